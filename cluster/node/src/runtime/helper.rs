//! The helper process: single-threaded, the parent of containers, and the only place that forks.
//!
//! It is a fresh exec of the node's own program (a fork of a process with threads may not do more than exec), holds
//! no state that the node could not rebuild, and lives exactly as long as the node: an end of file on its socket means
//! that the node is gone, however it went, and the helper kills its containers and ends. Descriptors of children
//! (pidfds) are polled beside the socket, so that no signal handler or blocked signal leaks into containers.
//!
//! It waits for nothing but the next event: starting processes do their work themselves and report on channels.

mod children;
mod pool;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use self::children::{Child, Children, Of};
use self::pool::Pool;
use super::cgroups::Cgroups;
use super::parked::{self, Setup, Space, Spawned};
use super::privilege::Privilege;
use super::protocol::{Answer, Envelope, Failure, Handed, HelperConfig, Message, Report, Request, Timings};
use super::seccomp::Profiles;
use super::{seqpacket, sys};
use crate::cgroup::Hierarchies;
use crate::spec::Processes;

/// Runs the helper until the node is gone.
pub(super) fn run(socket: OwnedFd, config: &HelperConfig) -> i32 {
    default_signals();
    // Containers are not to differ by who started the node: with a umask of 077, only root could enter their `/`.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let hierarchies = config.hierarchies.clone().unwrap_or_else(|| Hierarchies::detect().unwrap_or_default());
    let stage = config.state_dir.join("stage");
    if std::fs::create_dir_all(&stage).is_err() {
        return 74;
    }
    let setup = Setup {
        stage,
        cgroups: Cgroups::new(hierarchies),
        privilege: Privilege::detect(),
        profiles: Profiles::usual(),
    };
    let mut helper = Helper {
        socket,
        pool: Pool::new(config),
        setup,
        children: Children::default(),
        containers: HashMap::new(),
        starting: Vec::new(),
        leaving: Vec::new(),
    };
    helper.serve();
    helper.end();
    0
}

/// What this process ignores, its children would ignore: Rust's start code ignores SIGPIPE, nohup SIGHUP.
fn default_signals() {
    (1..=64).for_each(sys::default_signal);
}

/// A container that is not yet removed.
struct Known {
    pid: i32,
    cgroup: Option<String>,
    host_pid: bool,
}

/// A process that has been told what to become.
struct Starting {
    seq: u64,
    id: String,
    spawned: Spawned,
    of: Of,
    host_pid: bool,
    begun: Instant,
    timings: Timings,
    ready: bool,
    terminal: Option<OwnedFd>,
}

impl Starting {
    fn new(seq: u64, id: String, spawned: Spawned, of: Of, host_pid: bool, begun: Instant) -> Self {
        let timings = Timings::default();
        Self { seq, id, spawned, of, host_pid, begun, timings, ready: false, terminal: None }
    }
}

struct Helper {
    socket: OwnedFd,
    setup: Setup,
    pool: Pool,
    children: Children,
    containers: HashMap<String, Known>,
    starting: Vec<Starting>,
    /// Cgroups that cannot be removed yet, and until when that is tried.
    leaving: Vec<(String, Instant)>,
}

/// How often the removal of a cgroup is tried whose last process has only just ended.
const AGAIN: Duration = Duration::from_millis(5);
/// And for how long.
const PATIENCE: Duration = Duration::from_secs(10);

impl Helper {
    fn serve(&mut self) {
        let mut buffer = vec![0; seqpacket::MAX_PACKET];
        loop {
            let mut polled = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            polled.extend(
                self.starting.iter().map(|s| PollFd::new(s.spawned.channel.as_fd(), PollFlags::POLLIN)),
            );
            let (pids, pidfds): (Vec<i32>, Vec<PollFd<'_>>) = self.children.polled().unzip();
            polled.extend(pidfds);
            let wait = if self.leaving.is_empty() { self.pool.wait() } else { Some(AGAIN) };
            let timeout = wait.map_or(PollTimeout::NONE, |wait| {
                // Rounded up: waking a moment too early would only mean waiting again.
                PollTimeout::try_from(wait.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut polled, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(polled);
            let (request, reports) = (ready[0], &ready[1..=self.starting.len()]);
            let ended: Vec<i32> = pids
                .iter()
                .zip(&ready[1 + reports.len()..])
                .filter(|(_, ready)| **ready)
                .map(|(pid, _)| *pid)
                .collect();
            // From behind, as those that are through are taken out; and before exits, so that a program that ends at once
            // is seen to have started.
            for at in (0..reports.len()).rev().filter(|at| reports[*at]).collect::<Vec<_>>() {
                self.report(at, &mut buffer);
            }
            for pid in ended {
                self.reap(pid);
            }
            let now = Instant::now();
            let cgroups = &self.setup.cgroups;
            self.leaving.retain(|(cgroup, until)| !cgroups.remove(cgroup) && now < *until);
            if request {
                match seqpacket::receive(self.socket.as_fd(), &mut buffer) {
                    Ok((0, _)) | Err(_) => return,
                    Ok((length, fds)) => {
                        let Ok(envelope) = serde_json::from_slice::<Envelope>(&buffer[..length]) else {
                            return;
                        };
                        self.perform(envelope, fds);
                    }
                }
            } else {
                self.pool.fill(&self.setup, now);
            }
        }
    }

    fn send(&self, message: &Message, terminal: Option<&OwnedFd>) {
        let Ok(bytes) = serde_json::to_vec(message) else { return };
        let fds: Vec<i32> = terminal.iter().map(|fd| fd.as_raw_fd()).collect();
        // A failure means that the node is gone, which the next receive reports.
        let _ = seqpacket::send(self.socket.as_fd(), &bytes, &fds);
    }

    fn perform(&mut self, envelope: Envelope, fds: Vec<OwnedFd>) {
        let seq = envelope.seq;
        let done = match envelope.request {
            Request::Start { id, processes, handed } => match self.start(seq, id, processes, handed, fds) {
                Ok(()) => return,
                Err(message) => Err(message),
            },
            Request::Hold { id } => match self.hold(seq, id) {
                Ok(()) => return,
                Err(message) => Err(message),
            },
            Request::Exec { container, id, handed } => match self.exec(seq, &container, id, handed, fds) {
                Ok(()) => return,
                Err(message) => Err(message),
            },
            Request::Signal { id, signal } => self.children.signal(&id, signal),
            Request::Remove { id } => {
                self.remove(&id);
                Ok(())
            }
            Request::MountTmpfs { target, size } => mount_tmpfs(&target, size),
            Request::Unmount { target } => {
                let _ = umount2(&target, MntFlags::MNT_DETACH);
                Ok(())
            }
        };
        let result = done.map(|()| Answer::default()).map_err(Failure::new);
        self.send(&Message::Done { seq, result }, None);
    }

    fn start(
        &mut self,
        seq: u64,
        id: String,
        processes: Processes,
        handed: Handed,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let begun = Instant::now();
        let space = self.space(&processes)?;
        let mut timings = Timings { parked: true, ..Timings::default() };
        let claimed = loop {
            let Some(spawned) = self.pool.take(&space) else { break None };
            match spawned.claim(handed, &fds) {
                Ok(()) => break Some(spawned),
                // Killed while it waited: it is cleared away and the next one taken.
                Err(_) => self.children.add(Child { spawned, of: Of::Nobody }),
            }
        };
        let spawned = match claimed {
            Some(spawned) => spawned,
            None => {
                timings.parked = false;
                let spawned = self.pool.make(&self.setup, &space)?;
                spawned
                    .claim(handed, &fds)
                    .map_err(|error| format!("cannot hand over a container: {error}"))?;
                spawned
            }
        };
        let of = Of::Container { id: id.clone() };
        let host_pid = processes == Processes::Machine;
        self.starting.push(Starting { timings, ..Starting::new(seq, id, spawned, of, host_pid, begun) });
        Ok(())
    }

    fn space(&self, processes: &Processes) -> Result<Space, String> {
        Ok(match processes {
            Processes::Own => Space::Own,
            Processes::Machine => Space::Machine,
            Processes::Of(other) => {
                let known = self
                    .containers
                    .get(other)
                    .ok_or("the container to see the processes of is not running")?;
                if known.host_pid {
                    return Ok(Space::Machine);
                }
                let first = self.children.pidfd(known.pid).map(|pidfd| pidfd.try_clone());
                let first = first.ok_or("the container to see the processes of has ended")?;
                Space::Of(first.map_err(|error| format!("cannot duplicate a descriptor: {error}"))?)
            }
        })
    }

    fn hold(&mut self, seq: u64, id: String) -> Result<(), String> {
        let begun = Instant::now();
        let spawned =
            parked::hold(&self.setup).map_err(|error| format!("cannot make a process to share: {error}"))?;
        let of = Of::Container { id: id.clone() };
        self.starting.push(Starting::new(seq, id, spawned, of, false, begun));
        Ok(())
    }

    fn exec(
        &mut self,
        seq: u64,
        container: &str,
        id: String,
        handed: Handed,
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let begun = Instant::now();
        let known = self.containers.get(container).ok_or("the container is not running")?;
        let target = self.children.pidfd(known.pid).ok_or("the container is not running")?;
        let received = handed.sort(fds).ok_or("descriptors are missing")?;
        let spawned = parked::exec(&self.setup, target, known.host_pid, known.cgroup.clone(), received)
            .map_err(|error| format!("cannot make a process in the container: {error}"))?;
        let of = Of::Exec { id: id.clone(), cgroup: known.cgroup.clone() };
        self.starting.push(Starting::new(seq, id, spawned, of, known.host_pid, begun));
        Ok(())
    }

    /// A starting process has something to say, or its channel is closed: it has become its program, or ended.
    fn report(&mut self, at: usize, buffer: &mut [u8]) {
        let starting = &mut self.starting[at];
        let received = seqpacket::receive(starting.spawned.channel.as_fd(), buffer);
        let failure = match received {
            Ok((length, mut fds)) if length > 0 => match serde_json::from_slice(&buffer[..length]) {
                Ok(Report::Ready { mount_us, create_us }) => {
                    (starting.timings.mount_us, starting.timings.create_us) = (mount_us, create_us);
                    (starting.ready, starting.terminal) = (true, fds.pop());
                    return;
                }
                Ok(Report::Failed(failure)) => Some(failure),
                Err(error) => {
                    Some(Failure::new(format!("a container's process said what cannot be read: {error}")))
                }
            },
            _ if starting.ready => None,
            _ => Some(Failure::new("the container's process ended before it became its program")),
        };
        let starting = self.starting.swap_remove(at);
        match failure {
            None => self.started(starting),
            Some(failure) => {
                self.send(&Message::Done { seq: starting.seq, result: Err(failure) }, None);
                self.children.add(Child { spawned: starting.spawned, of: Of::Nobody });
            }
        }
    }

    fn started(&mut self, starting: Starting) {
        let Starting { seq, id, spawned, of, host_pid, begun, mut timings, terminal, .. } = starting;
        timings.start_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let pid = spawned.pid.as_raw();
        let answer = Answer { pid, cgroup: spawned.cgroup.clone(), timings };
        if let Of::Container { .. } = &of {
            self.containers.insert(id, Known { pid, cgroup: spawned.cgroup.clone(), host_pid });
        }
        self.children.add(Child { spawned, of });
        self.send(&Message::Done { seq, result: Ok(answer) }, terminal.as_ref());
    }

    fn reap(&mut self, pid: i32) {
        let Some((child, exit)) = self.children.reap(pid, &self.setup.cgroups) else { return };
        match child.of {
            Of::Container { id } | Of::Exec { id, .. } => self.send(&Message::Exited { id, exit }, None),
            Of::Nobody => {
                if let Some(cgroup) = child.spawned.cgroup {
                    self.leave(cgroup);
                }
            }
        }
    }

    fn remove(&mut self, id: &str) {
        let Some(known) = self.containers.remove(id) else { return };
        let _ = self.children.signal(id, Signal::SIGKILL as i32);
        if let Some(cgroup) = known.cgroup {
            self.leave(cgroup);
        }
    }

    /// Removes a cgroup, now or as soon as nothing is left in it.
    fn leave(&mut self, cgroup: String) {
        if !self.setup.cgroups.remove(&cgroup) {
            self.leaving.push((cgroup, Instant::now() + PATIENCE));
        }
    }

    /// The node is gone: nothing of what it ran may stay.
    fn end(&mut self) {
        let mut cgroups: Vec<String> =
            self.containers.drain().filter_map(|(_, known)| known.cgroup).collect();
        let unfinished = self.starting.drain(..).map(|starting| starting.spawned).chain(self.pool.drain());
        for spawned in unfinished {
            cgroups.extend(spawned.cgroup.clone());
            self.children.add(Child { spawned, of: Of::Nobody });
        }
        self.children.end();
        cgroups.extend(self.leaving.drain(..).map(|(cgroup, _)| cgroup));
        let until = Instant::now() + Duration::from_secs(2);
        while !cgroups.is_empty() && Instant::now() < until {
            cgroups.retain(|cgroup| !self.setup.cgroups.remove(cgroup));
            if !cgroups.is_empty() {
                std::thread::sleep(AGAIN);
            }
        }
    }
}

fn mount_tmpfs(target: &PathBuf, size: Option<u64>) -> Result<(), String> {
    let options = size.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| format!("cannot mount tmpfs at {}: {error}", target.display()))
}
