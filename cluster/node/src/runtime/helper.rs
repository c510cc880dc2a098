//! The helper process: single-threaded, the parent of containers, and the only place that forks.
//!
//! It is a fresh exec of the node's own program (a fork of a process with threads may not do more than exec), holds
//! no state that the node could not rebuild, and lives exactly as long as the node: an end of file on its socket means
//! that the node is gone, however it went, and the helper kills its containers and ends. Descriptors of ended children
//! (pidfds) are polled beside the socket, so that no signal handler or blocked signal leaks into containers.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::protocol::{Envelope, Exec, Exit, Message, Overlay, Request, Start, Started};
use super::seqpacket;
use crate::cgroup::Hierarchies;

/// Runs the helper until the node is gone. `root` is where libcontainer keeps its state.
pub(super) fn run(socket: OwnedFd, root: PathBuf) -> i32 {
    // SAFETY: no handler is installed; the default disposition is restored, which Rust's start code had changed to
    // "ignore", and ignored signals would be inherited by containers.
    #[allow(unsafe_code)]
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let hierarchies = Hierarchies::detect().unwrap_or_default();
    let mut helper =
        Helper { socket, root, hierarchies, children: HashMap::new(), containers: HashMap::new() };
    helper.serve();
    helper.end();
    0
}

struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    cgroup: String,
}

struct Known {
    cgroup: String,
    overlay: Option<PathBuf>,
}

struct Helper {
    socket: OwnedFd,
    root: PathBuf,
    hierarchies: Hierarchies,
    /// Running processes by id: containers' first processes and exec'd ones.
    children: HashMap<String, Child>,
    /// Containers that are not yet removed.
    containers: HashMap<String, Known>,
}

impl Helper {
    fn serve(&mut self) {
        let mut buffer = vec![0; seqpacket::MAX_PACKET];
        loop {
            let ids: Vec<String> = self.children.keys().cloned().collect();
            let mut polled = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            polled
                .extend(ids.iter().map(|id| PollFd::new(self.children[id].pidfd.as_fd(), PollFlags::POLLIN)));
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
            let request = polled[0].any().unwrap_or(false);
            let ended: Vec<String> = ids
                .iter()
                .zip(&polled[1..])
                .filter(|(_, fd)| fd.any().unwrap_or(false))
                .map(|(id, _)| id.clone())
                .collect();
            for id in ended {
                self.reap(&id);
            }
            if request {
                match seqpacket::receive(self.socket.as_fd(), &mut buffer) {
                    Ok((0, _)) | Err(_) => return,
                    Ok((length, fds)) => {
                        let Ok(envelope) = serde_json::from_slice::<Envelope>(&buffer[..length]) else {
                            return;
                        };
                        let result = self.perform(envelope.request, fds);
                        self.send(&Message::Done { seq: envelope.seq, result });
                    }
                }
            }
        }
    }

    fn send(&self, message: &Message) {
        let Ok(bytes) = serde_json::to_vec(message) else { return };
        // A failure means that the node is gone, which the next receive reports.
        let _ = seqpacket::send(self.socket.as_fd(), &bytes, &[]);
    }

    fn reap(&mut self, id: &str) {
        let Some(child) = self.children.get(id) else { return };
        let (code, signal) = match waitpid(child.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => (code, None),
            Ok(WaitStatus::Signaled(_, signal, _)) => (128 + signal as i32, Some(signal as i32)),
            Ok(_) => return,
            Err(_) => (255, None),
        };
        let oom = signal == Some(Signal::SIGKILL as i32) && self.hierarchies.oom_kills(&child.cgroup) > 0;
        self.children.remove(id);
        self.send(&Message::Exited { id: id.to_owned(), exit: Exit { code, signal, oom } });
    }

    fn perform(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Started, String> {
        match request {
            Request::Start(start) => {
                let overlay = start.overlay.clone();
                self.start(start, fds).inspect_err(|_| {
                    if let Some(overlay) = overlay {
                        let _ = umount2(&overlay.target, MntFlags::MNT_DETACH);
                    }
                })
            }
            Request::Exec(exec) => self.exec(exec, fds),
            Request::Signal { id, signal } => {
                let child = self.children.get(&id).ok_or("no such process")?;
                let signal = Signal::try_from(signal).map_err(|error| error.to_string())?;
                // The process is our own child and not reaped yet, so its number cannot have been given away.
                kill(child.pid, signal).map_err(|error| error.to_string())?;
                Ok(Started::default())
            }
            Request::Remove { id } => self.remove(&id).map(|()| Started::default()),
            Request::MountTmpfs { target, size } => {
                let options =
                    size.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
                mount(
                    Some("tmpfs"),
                    &target,
                    Some("tmpfs"),
                    MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
                    Some(options.as_str()),
                )
                .map_err(|error| format!("cannot mount tmpfs at {}: {error}", target.display()))?;
                Ok(Started::default())
            }
            Request::Unmount { target } => {
                let _ = umount2(&target, MntFlags::MNT_DETACH);
                Ok(Started::default())
            }
        }
    }

    fn builder(
        &self,
        id: &str,
        fds: Vec<OwnedFd>,
        stdin: bool,
        console: Option<PathBuf>,
    ) -> Result<ContainerBuilder, String> {
        let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
            .with_root_path(&self.root)
            .map_err(|error| chain(&error))?;
        if console.is_some() {
            return Ok(builder.with_console_socket(console));
        }
        let mut fds = fds.into_iter();
        let (Some(stdout), Some(stderr)) = (fds.next(), fds.next()) else {
            return Err("stdout and stderr are missing".to_owned());
        };
        builder = builder.with_stdout(stdout).with_stderr(stderr);
        let stdin = match (stdin, fds.next()) {
            (true, Some(fd)) => fd,
            _ => fs::File::open("/dev/null").map_err(|error| error.to_string())?.into(),
        };
        Ok(builder.with_stdin(stdin))
    }

    fn start(&mut self, start: Start, fds: Vec<OwnedFd>) -> Result<Started, String> {
        let mut timings = Started::default();
        let mut begun = Instant::now();
        if let Some(overlay) = &start.overlay {
            mount_overlay(overlay)?;
        }
        timings.mount_us = lap(&mut begun);
        let mut container = self
            .builder(&start.id, fds, start.stdin, start.console)?
            .as_init(&start.bundle)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(|error| chain(&error))?;
        timings.create_us = lap(&mut begun);
        let pid = container.pid().ok_or("the container has no process")?;
        let pidfd = pidfd(pid.as_raw())?;
        if let Err(error) = container.start() {
            let _ = container.delete(true);
            return Err(chain(&error));
        }
        timings.start_us = lap(&mut begun);
        timings.pid = pid.as_raw();
        let overlay = start.overlay.map(|overlay| overlay.target);
        self.children.insert(
            start.id.clone(),
            Child { pid: Pid::from_raw(timings.pid), pidfd, cgroup: start.cgroup.clone() },
        );
        self.containers.insert(start.id, Known { cgroup: start.cgroup, overlay });
        Ok(timings)
    }

    fn exec(&mut self, exec: Exec, fds: Vec<OwnedFd>) -> Result<Started, String> {
        let mut begun = Instant::now();
        let cgroup =
            self.containers.get(&exec.container).ok_or("the container is not running")?.cgroup.clone();
        let pid = self
            .builder(&exec.container, fds, exec.stdin, exec.console)?
            .as_tenant()
            .with_process(Some(&exec.process))
            .with_detach(true)
            .build()
            .map_err(|error| chain(&error))?;
        let pidfd = pidfd(pid.as_raw())?;
        let started = Started { pid: pid.as_raw(), create_us: lap(&mut begun), ..Started::default() };
        self.children.insert(exec.id, Child { pid: Pid::from_raw(started.pid), pidfd, cgroup });
        Ok(started)
    }

    fn remove(&mut self, id: &str) -> Result<(), String> {
        let Some(known) = self.containers.remove(id) else { return Ok(()) };
        let folder = self.root.join(id);
        let deleted = match Container::load(folder.clone()) {
            Ok(mut container) => container.delete(true).map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        };
        if deleted.is_err() {
            self.hierarchies.kill_and_remove(&known.cgroup);
            let _ = fs::remove_dir_all(&folder);
        }
        if let Some(target) = known.overlay {
            let _ = umount2(&target, MntFlags::MNT_DETACH);
        }
        Ok(())
    }

    /// The node is gone: nothing of what it ran may stay.
    fn end(&mut self) {
        for child in self.children.values() {
            let _ = kill(child.pid, Signal::SIGKILL);
        }
        for child in self.children.values() {
            let _ = waitpid(child.pid, None);
        }
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            let _ = self.remove(&id);
        }
    }
}

fn lap(since: &mut Instant) -> u64 {
    let now = Instant::now();
    let took = now.duration_since(*since).as_micros();
    *since = now;
    u64::try_from(took).unwrap_or(u64::MAX)
}

fn pidfd(pid: i32) -> Result<OwnedFd, String> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or("process number 0")?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|error| format!("pidfd_open: {error} (the kernel must be 5.3 or newer)"))
}

/// The options of one mount(2) call may not exceed a page, and image stores have long paths: layers are given relative
/// to their common parent.
fn mount_overlay(overlay: &Overlay) -> Result<(), String> {
    let fail = |what: &str, error: &dyn std::fmt::Display| {
        format!("cannot mount the root filesystem at {}: {what}: {error}", overlay.target.display())
    };
    for folder in [&overlay.upper, &overlay.work, &overlay.target] {
        fs::create_dir_all(folder).map_err(|error| fail(&folder.display().to_string(), &error))?;
    }
    let parent = common_parent(&overlay.lower);
    let lower: Vec<String> = overlay
        .lower
        .iter()
        .map(|layer| layer.strip_prefix(&parent).unwrap_or(layer).display().to_string().replace(':', "\\:"))
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        overlay.upper.display(),
        overlay.work.display()
    );
    if options.len() > 4000 {
        return Err(fail("too many layers for one mount", &overlay.lower.len()));
    }
    std::env::set_current_dir(&parent).map_err(|error| fail(&parent.display().to_string(), &error))?;
    let mounted =
        mount(Some("overlay"), &overlay.target, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    let _ = std::env::set_current_dir("/");
    mounted.map_err(|error| fail("overlay", &error))
}

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let mut parent = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/")).to_owned();
    while !paths.iter().all(|path| path.starts_with(&parent) && path != &parent) {
        match parent.parent() {
            Some(up) => parent = up.to_owned(),
            None => return PathBuf::from("/"),
        }
    }
    parent
}

/// An error with its causes: libcontainer's outermost messages say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The socket as a raw number, for logs.
impl std::fmt::Debug for Helper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helper").field("socket", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_from_their_common_parent() {
        let paths = ["/data/images/layers/a/fs", "/data/images/layers/b/fs"].map(PathBuf::from);
        assert_eq!(common_parent(&paths), Path::new("/data/images/layers"));
        assert_eq!(common_parent(&paths[..1]), Path::new("/data/images/layers/a"));
        assert_eq!(common_parent(&["/a".into(), "/b".into()]), Path::new("/"));
    }
}
