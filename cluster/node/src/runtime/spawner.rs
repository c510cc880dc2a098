//! Starting helpers, from a thread in the mount namespace that all of them share. The namespace lives as long as the
//! thread or a helper does.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::protocol::HelperConfig;
use super::{HELPER_ARGUMENT, RuntimeConfig, RuntimeError, mounts, seqpacket};

type Reply = oneshot::Sender<Result<OwnedFd, RuntimeError>>;

enum Job {
    Spawn(usize, Reply),
    Run(Box<dyn FnOnce() + Send>),
}

/// What the names of a helper's cgroups begin with.
pub(super) fn name(index: usize) -> String {
    format!("h{index}")
}

/// A handle to the thread.
#[derive(Clone)]
pub(super) struct Spawner {
    requests: std::sync::mpsc::Sender<Job>,
}

impl Spawner {
    pub(super) fn start(config: RuntimeConfig) -> Self {
        let (requests, inbox) = std::sync::mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("container-mounts".to_owned())
            .spawn(move || {
                // Before any helper, so that all of them have it.
                let isolated = isolate_mounts().and_then(|()| mount_memory(&config.memory_dir()));
                let mut config = config;
                if isolated.is_ok() {
                    protect(&mut config);
                }
                while let Ok(job) = inbox.recv() {
                    let (index, reply) = match job {
                        Job::Spawn(index, reply) => (index, reply),
                        Job::Run(work) => {
                            work();
                            continue;
                        }
                    };
                    let spawned = match &isolated {
                        Ok(()) => spawn(&config, index),
                        Err(cause) => Err(RuntimeError::Spawn {
                            exe: config.helper_exe.display().to_string(),
                            cause: format!("no mount namespace: {cause} (CAP_SYS_ADMIN is needed)"),
                        }),
                    };
                    let _ = reply.send(spawned);
                }
            })
            .expect("the operating system can start a thread");
        Self { requests }
    }

    pub(super) async fn spawn(&self, index: usize) -> Result<UnixDatagram, RuntimeError> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.requests.send(Job::Spawn(index, sender));
        let socket = receiver.await.map_err(|_| RuntimeError::HelperGone)??;
        // Any unix socket will do for tokio's datagram type: packets are sent and received by `seqpacket`.
        UnixDatagram::from_std(std::os::unix::net::UnixDatagram::from(socket))
            .map_err(|error| RuntimeError::Spawn { exe: "socket".to_owned(), cause: error.to_string() })
    }
}

impl Spawner {
    /// Does something where the helpers' mounts can be seen. Short work: helpers are started by the same thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.requests.send(Job::Run(Box::new(move || drop(sender.send(work())))));
        receiver.await.map_err(|_| RuntimeError::HelperGone)
    }
}

/// A file system in memory for what must not get onto the disk; it goes with the mount namespace. Not swapped out, where the kernel
/// (6.4) can promise that.
fn mount_memory(folder: &Path) -> nix::Result<()> {
    std::fs::create_dir_all(folder)
        .map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let tmpfs = |options: &str| mount(Some("tmpfs"), folder, Some("tmpfs"), flags, Some(options));
    tmpfs("mode=0755,noswap").or_else(|_| tmpfs("mode=0755"))
}

fn isolate_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    // What is mounted on the machine later still arrives here (hostPath volumes); what is mounted here stays here, but
    // arrives at the processes that wait to become containers (volumes in memory).
    for flags in [MsFlags::MS_SLAVE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | flags, None::<&str>)?;
    }
    Ok(())
}

/// Whatever a container does to the program that its processes were before they became its own (`/proc/self/exe`), it
/// cannot write to it: helpers run it from a read-only mount.
fn protect(config: &mut RuntimeConfig) {
    let place = config.state_dir.join("helper");
    let shown = std::fs::create_dir_all(&config.state_dir)
        // By its path: what a link of /proc leads to is in the mount namespace that this thread has left.
        .and_then(|()| config.helper_exe.canonicalize())
        .and_then(|program| mounts::show_read_only(&program, &place));
    match shown {
        Ok(()) => config.helper_exe = place,
        Err(error) => {
            warn!(%error, "container helpers run from where the program is, not from a read-only mount");
        }
    }
}

fn spawn(config: &RuntimeConfig, index: usize) -> Result<OwnedFd, RuntimeError> {
    let fail = |cause: String| RuntimeError::Spawn { exe: config.helper_exe.display().to_string(), cause };
    std::fs::create_dir_all(&config.state_dir).map_err(|error| fail(error.to_string()))?;
    let helper = HelperConfig {
        state_dir: config.state_dir.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        name: name(index),
        parked: config.parked,
        hierarchies: config.hierarchies.clone(),
    };
    let argument = serde_json::to_string(&helper).map_err(|error| fail(error.to_string()))?;
    let (ours, theirs) = seqpacket::pair().map_err(|error| fail(error.to_string()))?;
    let mut child = Command::new(&config.helper_exe)
        .arg(HELPER_ARGUMENT)
        .arg(argument)
        .stdin(Stdio::from(theirs))
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    debug!(pid = child.id(), "container helper started");
    std::thread::Builder::new()
        .name("container-reaper".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || child.wait())
        .map_err(|error| fail(error.to_string()))?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| fail(error.to_string()))?;
    Ok(ours)
}
