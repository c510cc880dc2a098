//! The container runtime: a narrow interface over helper processes that run containers.
//!
//! The node's process has threads and an async runtime and therefore may not fork into namespaces; it commands
//! [`Runtime`]'s helpers, which do nothing else. Each keeps a few processes *parked*: already in their own pid and mount
//! namespaces and cgroups, with /proc and /dev built. A start hands one of them the container, and it does the rest
//! itself; so starts run side by side, and what takes long is done before it is asked for.
//!
//! All helpers share one mount namespace that only they are in, and each container has its own: nothing of it is left on
//! the machine when its processes are gone. docs/adr/0004 tells why this is no library.

mod cgroups;
mod client;
mod devices;
mod helper;
mod inside;
mod mounts;
mod parked;
mod privilege;
mod process;
mod protocol;
pub(crate) mod seccomp;
pub(crate) mod seqpacket;
mod spawner;
mod sys;
mod terminal;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;

pub use privilege::Privilege;
pub use protocol::{Exit, Overlay, Timings};

use crate::cgroup::Hierarchies;
use crate::spec::{self, Processes};
use client::Helper;
use protocol::{Bundle, Handed, HelperConfig, Request, write_body};
use spawner::Spawner;

/// The first argument that makes a program call [`helper_main`].
pub const HELPER_ARGUMENT: &str = "container-helper";

/// The helper's main function: call it before anything else (threads, runtimes, signal handlers) when the program's
/// first argument is [`HELPER_ARGUMENT`]. Never returns.
pub fn helper_main() -> ! {
    let argument = std::env::args().nth(2).unwrap_or_default();
    let Ok(config) = serde_json::from_str::<HelperConfig>(&argument) else {
        eprintln!("{HELPER_ARGUMENT} is started by the node and by nobody else");
        std::process::exit(64);
    };
    // The socket comes as standard input; it moves away so that a container's stdin is never mistaken for it.
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else { std::process::exit(70) };
    if let Ok(null) = File::open("/dev/null") {
        // SAFETY: descriptor 0 is open (it has just been duplicated) and this process has a single thread, so nobody
        // else uses it while it is replaced. The wrapper must not close it: it stays the process's standard input.
        #[allow(unsafe_code)]
        let mut stdin = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(0) });
        let _ = nix::unistd::dup2(&null, &mut stdin);
    }
    std::process::exit(helper::run(socket, &config))
}

/// Why the runtime could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// No helper can be started.
    #[error("cannot start the container helper {exe}: {cause}")]
    Spawn {
        /// The program.
        exe: String,
        /// What went wrong.
        cause: String,
    },
    /// The helper ended while it was working on the request.
    #[error("the container helper ended unexpectedly; it is started again")]
    HelperGone,
    /// The program of a container or an exec is missing or cannot be executed.
    #[error("{0}")]
    Program(String),
    /// The kernel or the helper refused; the text says what.
    #[error("{0}")]
    Refused(String),
    /// What the request needs cannot be opened.
    #[error("cannot prepare {what}: {cause}")]
    Prepare {
        /// What is needed.
        what: String,
        /// What went wrong.
        cause: String,
    },
}

/// An ended process, with the id it was started under.
#[derive(Debug, Clone)]
pub struct Exited {
    /// The container's id or the exec's.
    pub id: String,
    /// How it ended.
    pub exit: Exit,
}

/// Where a process's standard streams go.
#[derive(Debug)]
pub enum Streams {
    /// Pipes or files.
    Pipes {
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
        /// Standard input; `/dev/null` without.
        stdin: Option<OwnedFd>,
    },
    /// A terminal, whose master comes back in [`Started::terminal`]; the process must ask for one too.
    Terminal,
}

/// What a container is started from.
#[derive(Debug)]
pub struct StartContainer {
    /// Unique among all containers of this node.
    pub id: String,
    /// What it is to be.
    pub container: spec::Container,
    /// The root filesystem.
    pub overlay: Overlay,
    /// Standard streams.
    pub streams: Streams,
}

/// A started process.
#[derive(Debug)]
pub struct Started {
    /// Its number in the node's pid namespace.
    pub pid: i32,
    /// The container's cgroup, absolute in each hierarchy; None without cgroups, and for an exec.
    pub cgroup: Option<String>,
    /// How long it took.
    pub timings: Timings,
    /// The master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

/// Settings of a [`Runtime`].
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// The program that calls [`helper_main`] when started with [`HELPER_ARGUMENT`].
    pub helper_exe: PathBuf,
    /// A folder for mount points, of this runtime only.
    pub state_dir: PathBuf,
    /// How many helpers. Starts run side by side in one of them too; with several, the end of one is not that of all.
    pub helpers: usize,
    /// How many processes each helper keeps ready for containers.
    pub parked: usize,
    /// Absolute path in each cgroup hierarchy below which containers get their own. None where none may be made: limits
    /// are then not enforced.
    pub cgroup_parent: Option<String>,
    /// The hierarchies; None for what the machine has.
    pub hierarchies: Option<Hierarchies>,
}

impl RuntimeConfig {
    /// Where [`Runtime::memory_dir`] is.
    pub(crate) fn memory_dir(&self) -> PathBuf {
        self.state_dir.join("memory")
    }
}

/// A handle to the helper processes. Dropping the last one ends them and with them all containers.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    helpers: Vec<Helper>,
    next: AtomicUsize,
    /// Which helper a container or exec belongs to, and its cgroup.
    owners: Mutex<HashMap<String, Owner>>,
    hierarchies: Hierarchies,
    cgroup_parent: Option<String>,
    spawner: Spawner,
    memory_dir: PathBuf,
}

#[derive(Clone)]
struct Owner {
    helper: usize,
    container: bool,
    cgroup: Option<String>,
    running: bool,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("helpers", &self.inner.helpers.len()).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Starts the helpers. Exits of processes arrive on the receiver.
    pub async fn start(
        config: RuntimeConfig,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Exited>), RuntimeError> {
        let hierarchies = match &config.hierarchies {
            Some(hierarchies) => hierarchies.clone(),
            None => Hierarchies::detect().unwrap_or_default(),
        };
        if let Some(parent) = &config.cgroup_parent {
            let prepare = |cause: std::io::Error| RuntimeError::Prepare {
                what: format!("the cgroup {parent}"),
                cause: cause.to_string(),
            };
            hierarchies.prepare(parent).map_err(prepare)?;
        }
        let cgroup_parent = config.cgroup_parent.clone();
        let count = config.helpers.max(1);
        let memory_dir = config.memory_dir();
        let spawner = Spawner::start(config);
        let mut helpers = Vec::new();
        for index in 0..count {
            helpers.push(Helper::new(spawner.spawn(index).await?));
        }
        let inner = Arc::new(Inner {
            helpers,
            next: AtomicUsize::new(0),
            owners: Mutex::default(),
            hierarchies,
            cgroup_parent,
            spawner: spawner.clone(),
            memory_dir,
        });
        let (events, receiver) = mpsc::unbounded_channel();
        for index in 0..count {
            tokio::spawn(client::listen(Arc::downgrade(&inner), index, spawner.clone(), events.clone()));
        }
        Ok((Self { inner }, receiver))
    }

    /// Starts a container. Its exit arrives on the receiver of [`Runtime::start`] under its id.
    pub async fn start_container(&self, start: StartContainer) -> Result<Started, RuntimeError> {
        let StartContainer { id, container, overlay, streams } = start;
        let namespace = |path: &Option<PathBuf>| path.as_deref().map(open).transpose();
        let (net, ipc, uts) =
            (namespace(&container.net)?, namespace(&container.ipc)?, namespace(&container.uts)?);
        let processes = container.processes.clone();
        let (mut handed, mut fds) = hand_over(&Bundle { container, overlay }, streams)?;
        (handed.net, handed.ipc, handed.uts) = (net.is_some(), ipc.is_some(), uts.is_some());
        fds.extend([net, ipc, uts].into_iter().flatten());
        let helper = match &processes {
            // Only the helper of the other one knows it so that it cannot be mistaken.
            Processes::Of(other) => self.owner(other)?.helper,
            _ => self.next(),
        };
        self.own(&id, helper, true);
        let request = Request::Start { id: id.clone(), processes, handed };
        let result = self.inner.helpers[helper].call(request, fds).await;
        let mut owners = self.inner.owners.lock();
        match &result {
            Ok(started) => {
                if let Some(owner) = owners.get_mut(&id) {
                    owner.cgroup.clone_from(&started.cgroup);
                }
            }
            Err(_) => drop(owners.remove(&id)),
        }
        result
    }

    /// Makes a process whose process namespace containers can share ([`Processes::Of`]): it does nothing but wait for processes that nobody else
    /// waits for. It lives until [`Runtime::remove`].
    pub async fn hold_processes(&self, id: &str) -> Result<(), RuntimeError> {
        let helper = self.next();
        self.own(id, helper, true);
        let result = self.inner.helpers[helper].call(Request::Hold { id: id.to_owned() }, Vec::new()).await;
        if result.is_err() {
            self.inner.owners.lock().remove(id);
        }
        result.map(drop)
    }

    /// Starts a process in a running container. Its exit arrives under `id`.
    pub async fn exec(
        &self,
        container: &str,
        id: &str,
        process: &spec::Process,
        streams: Streams,
    ) -> Result<Started, RuntimeError> {
        let owner = self.owner(container)?;
        let (handed, fds) = hand_over(process, streams)?;
        self.own(id, owner.helper, false);
        let request = Request::Exec { container: container.to_owned(), id: id.to_owned(), handed };
        let result = self.inner.helpers[owner.helper].call(request, fds).await;
        if result.is_err() {
            self.inner.owners.lock().remove(id);
        }
        result
    }

    /// Sends a signal to a container's first process or an exec'd process.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let owner = self.owner(id)?;
        let request = Request::Signal { id: id.to_owned(), signal };
        self.inner.helpers[owner.helper].call(request, Vec::new()).await.map(|_| ())
    }

    /// Removes a stopped container: kills what is left in it and removes its cgroups.
    pub async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let Ok(owner) = self.owner(id) else { return Ok(()) };
        let request = Request::Remove { id: id.to_owned() };
        let result = self.inner.helpers[owner.helper].call(request, Vec::new()).await.map(|_| ());
        self.inner.owners.lock().remove(id);
        result
    }

    /// A folder in memory that only containers and [`Runtime::among_mounts`] see.
    #[must_use]
    pub fn memory_dir(&self) -> &Path {
        &self.inner.memory_dir
    }

    /// Does something where the mounts that containers are given can be seen: this process itself does not see them. Short work,
    /// on a thread that all share.
    ///
    /// # Errors
    /// [`RuntimeError::HelperGone`] when the runtime is being closed.
    pub async fn among_mounts<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RuntimeError> {
        self.inner.spawner.run(work).await
    }

    /// Mounts a tmpfs for containers; `size` in bytes, the kernel's default (half of memory) without.
    pub async fn mount_tmpfs(&self, target: &Path, size: Option<u64>) -> Result<(), RuntimeError> {
        let request = Request::MountTmpfs { target: target.to_owned(), size };
        self.inner.helpers[0].call(request, Vec::new()).await.map(|_| ())
    }

    /// Unmounts what [`Runtime::mount_tmpfs`] mounted.
    pub async fn unmount(&self, target: &Path) -> Result<(), RuntimeError> {
        let request = Request::Unmount { target: target.to_owned() };
        self.inner.helpers[0].call(request, Vec::new()).await.map(|_| ())
    }

    /// CPU and memory of a container; None when it is gone.
    #[must_use]
    pub fn stats(&self, id: &str) -> Option<crate::cgroup::Usage> {
        let cgroup = self.owner(id).ok()?.cgroup?;
        self.inner.hierarchies.usage(&cgroup)
    }

    fn next(&self) -> usize {
        self.inner.next.fetch_add(1, Ordering::Relaxed) % self.inner.helpers.len()
    }

    fn own(&self, id: &str, helper: usize, container: bool) {
        let owner = Owner { helper, container, cgroup: None, running: true };
        self.inner.owners.lock().insert(id.to_owned(), owner);
    }

    fn owner(&self, id: &str) -> Result<Owner, RuntimeError> {
        let owners = self.inner.owners.lock();
        owners.get(id).cloned().ok_or_else(|| RuntimeError::Refused(format!("{id} is not running")))
    }
}

fn open(path: &Path) -> Result<OwnedFd, RuntimeError> {
    let prepare = |cause: std::io::Error| RuntimeError::Prepare {
        what: path.display().to_string(),
        cause: cause.to_string(),
    };
    File::open(path).map(OwnedFd::from).map_err(prepare)
}

fn hand_over(body: &impl serde::Serialize, streams: Streams) -> Result<(Handed, Vec<OwnedFd>), RuntimeError> {
    let body = write_body(body).map_err(|cause| RuntimeError::Prepare {
        what: "a memory file".to_owned(),
        cause: cause.to_string(),
    })?;
    Ok(match streams {
        Streams::Terminal => (Handed { terminal: true, ..Handed::default() }, vec![body]),
        Streams::Pipes { stdout, stderr, stdin } => {
            let handed = Handed { stdin: stdin.is_some(), ..Handed::default() };
            (handed, [body, stdout, stderr].into_iter().chain(stdin).collect())
        }
    })
}
