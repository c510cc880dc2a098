//! The container runtime: a narrow interface over helper processes that run containers.
//!
//! The node's process has threads and an async runtime and therefore may not fork into namespaces; it commands
//! [`Runtime`]'s helpers, which do nothing else. There are several so that the containers of a pod start side by side.
//! All helpers share one mount namespace that only they are in: root filesystems are mounted there, so that nothing of
//! it is left on the machine when the helpers are gone. What is inside a helper (today the library libcontainer) is
//! known to nobody else: a runtime of parked processes can replace it behind the same requests.

mod helper;
mod protocol;
pub(crate) mod seqpacket;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, warn};

pub use protocol::{Exit, Overlay, Started};

use crate::cgroup::Hierarchies;
use protocol::{Envelope, Message, Request};

/// The first argument that makes a program call [`helper_main`].
pub const HELPER_ARGUMENT: &str = "container-helper";

/// The helper's main function: call it before anything else (threads, runtimes, signal handlers) when the program's
/// first argument is [`HELPER_ARGUMENT`]. Never returns.
pub fn helper_main() -> ! {
    let root = std::env::args_os().nth(2).map_or_else(|| PathBuf::from("/run/cluster-node"), PathBuf::from);
    // The socket comes as standard input; it moves away so that a container's stdin is never mistaken for it.
    let Ok(socket) = std::io::stdin().as_fd().try_clone_to_owned() else { std::process::exit(70) };
    if let Ok(null) = File::open("/dev/null") {
        // SAFETY: descriptor 0 is open (it has just been duplicated) and this process has a single thread, so nobody
        // else uses it while it is replaced. The wrapper must not close it: it stays the process's standard input.
        #[allow(unsafe_code)]
        let mut stdin = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(0) });
        let _ = nix::unistd::dup2(&null, &mut stdin);
    }
    std::process::exit(helper::run(socket, root))
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
    /// The helper could not do it; the text is the kernel's or the container library's.
    #[error("{0}")]
    Refused(String),
    /// A file of the bundle cannot be written.
    #[error("cannot prepare {path}: {cause}")]
    Prepare {
        /// The file.
        path: PathBuf,
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
    /// A terminal: its master is sent to the unix socket at this path.
    Console(PathBuf),
}

/// What a container is started from.
#[derive(Debug)]
pub struct StartContainer {
    /// Unique among all containers of this node.
    pub id: String,
    /// A folder of its own; `config.json` is written there.
    pub bundle: PathBuf,
    /// The OCI runtime specification.
    pub spec: serde_json::Value,
    /// The root filesystem; None when the specification names one that is there.
    pub overlay: Option<Overlay>,
    /// Absolute path in each cgroup hierarchy, the same as in the specification.
    pub cgroup: String,
    /// Standard streams.
    pub streams: Streams,
}

/// Settings of a [`Runtime`].
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// The program that calls [`helper_main`] when started with [`HELPER_ARGUMENT`].
    pub helper_exe: PathBuf,
    /// State folder of the container library.
    pub state_dir: PathBuf,
    /// How many helpers.
    pub helpers: usize,
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
}

#[derive(Clone)]
struct Owner {
    helper: usize,
    cgroup: Option<String>,
    /// Ids of exec'd processes end with their container when a helper dies.
    running: bool,
}

type Waiting = HashMap<u64, oneshot::Sender<Result<Started, RuntimeError>>>;

struct Helper {
    socket: Mutex<Arc<UnixDatagram>>,
    waiting: Mutex<Waiting>,
    seq: AtomicU64,
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
        let spawner = Spawner::start(config.clone());
        let mut helpers = Vec::new();
        for _ in 0..config.helpers.max(1) {
            let socket = spawner.spawn().await?;
            helpers.push(Helper {
                socket: Mutex::new(Arc::new(socket)),
                waiting: Mutex::default(),
                seq: AtomicU64::new(1),
            });
        }
        let hierarchies = Hierarchies::detect().unwrap_or_default();
        let inner =
            Arc::new(Inner { helpers, next: AtomicUsize::new(0), owners: Mutex::default(), hierarchies });
        let (events, receiver) = mpsc::unbounded_channel();
        for index in 0..inner.helpers.len() {
            tokio::spawn(listen(Arc::downgrade(&inner), index, spawner.clone(), events.clone()));
        }
        Ok((Self { inner }, receiver))
    }

    /// Starts a container. Its exit arrives on the receiver of [`Runtime::start`] under its id.
    pub async fn start_container(&self, start: StartContainer) -> Result<Started, RuntimeError> {
        write_json(&start.bundle, "config.json", &start.spec)?;
        let helper = self.inner.next.fetch_add(1, Ordering::Relaxed) % self.inner.helpers.len();
        self.own(&start.id, helper, Some(start.cgroup.clone()));
        let (stdin, console, fds) = split(start.streams);
        let request = Request::Start(protocol::Start {
            id: start.id.clone(),
            bundle: start.bundle,
            overlay: start.overlay,
            cgroup: start.cgroup,
            stdin,
            console,
        });
        let result = self.inner.helpers[helper].call(request, fds).await;
        if result.is_err() {
            self.inner.owners.lock().remove(&start.id);
        }
        result
    }

    /// Starts a process in a running container; `process` is the OCI `process` object. Its exit arrives under `id`.
    pub async fn exec(
        &self,
        container: &str,
        id: &str,
        folder: &Path,
        process: &serde_json::Value,
        streams: Streams,
    ) -> Result<Started, RuntimeError> {
        let owner = self.owner(container)?;
        let path = write_json(folder, &format!("{id}.json"), process)?;
        self.own(id, owner.helper, None);
        let (stdin, console, fds) = split(streams);
        let request = Request::Exec(protocol::Exec {
            container: container.to_owned(),
            id: id.to_owned(),
            process: path.clone(),
            stdin,
            console,
        });
        let result = self.inner.helpers[owner.helper].call(request, fds).await;
        let _ = std::fs::remove_file(path);
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

    /// Removes a stopped container: kills what is left in it, removes cgroups and the root filesystem mount.
    pub async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let Ok(owner) = self.owner(id) else { return Ok(()) };
        let request = Request::Remove { id: id.to_owned() };
        let result = self.inner.helpers[owner.helper].call(request, Vec::new()).await.map(|_| ());
        self.inner.owners.lock().remove(id);
        result
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

    fn own(&self, id: &str, helper: usize, cgroup: Option<String>) {
        self.inner.owners.lock().insert(id.to_owned(), Owner { helper, cgroup, running: true });
    }

    fn owner(&self, id: &str) -> Result<Owner, RuntimeError> {
        let owners = self.inner.owners.lock();
        owners.get(id).cloned().ok_or_else(|| RuntimeError::Refused(format!("{id} is not running")))
    }
}

fn split(streams: Streams) -> (bool, Option<PathBuf>, Vec<OwnedFd>) {
    match streams {
        Streams::Console(path) => (false, Some(path), Vec::new()),
        Streams::Pipes { stdout, stderr, stdin } => {
            let has_stdin = stdin.is_some();
            (has_stdin, None, [stdout, stderr].into_iter().chain(stdin).collect())
        }
    }
}

fn write_json(folder: &Path, name: &str, value: &serde_json::Value) -> Result<PathBuf, RuntimeError> {
    let path = folder.join(name);
    let prepare = |cause: String| RuntimeError::Prepare { path: path.clone(), cause };
    let bytes = serde_json::to_vec(value).map_err(|error| prepare(error.to_string()))?;
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&path, bytes))
        .map_err(|error| prepare(error.to_string()))?;
    Ok(path)
}

impl Helper {
    async fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Started, RuntimeError> {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let bytes = serde_json::to_vec(&Envelope { seq, request })
            .map_err(|error| RuntimeError::Refused(error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().insert(seq, sender);
        let socket = Arc::clone(&self.socket.lock());
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                seqpacket::send(socket.as_fd(), &bytes, &raw).map_err(std::io::Error::from)
            })
            .await;
        drop(fds);
        if let Err(cause) = sent {
            self.waiting.lock().remove(&seq);
            warn!(%cause, "a container helper does not take requests");
            return Err(RuntimeError::HelperGone);
        }
        receiver.await.unwrap_or(Err(RuntimeError::HelperGone))
    }
}

/// Reads one helper's messages; starts it again when it ends.
async fn listen(
    inner: std::sync::Weak<Inner>,
    index: usize,
    spawner: Spawner,
    events: mpsc::UnboundedSender<Exited>,
) {
    let mut buffer = vec![0; seqpacket::MAX_PACKET];
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let socket = Arc::clone(&strong.helpers[index].socket.lock());
        drop(strong);
        // Woken also when the runtime is dropped: see `Drop`, which shuts the socket down.
        let received = socket
            .async_io(Interest::READABLE, || {
                seqpacket::receive(socket.as_fd(), &mut buffer).map_err(std::io::Error::from)
            })
            .await;
        let Some(inner) = inner.upgrade() else { return };
        match received {
            Ok((length, _)) if length > 0 => match serde_json::from_slice(&buffer[..length]) {
                Ok(Message::Done { seq, result }) => {
                    if let Some(waiting) = inner.helpers[index].waiting.lock().remove(&seq) {
                        let _ = waiting.send(result.map_err(RuntimeError::Refused));
                    }
                }
                Ok(Message::Exited { id, exit }) => {
                    inner.ended(&id);
                    let _ = events.send(Exited { id, exit });
                }
                Err(cause) => error!(%cause, "a container helper sent what cannot be read"),
            },
            _ => inner.replace(index, &spawner, &events).await,
        }
    }
}

impl Inner {
    fn ended(&self, id: &str) {
        let mut owners = self.owners.lock();
        if let Some(owner) = owners.get_mut(id) {
            owner.running = false;
            if owner.cgroup.is_none() {
                owners.remove(id);
            }
        }
    }

    /// A helper is gone: its containers are killed and reported, requests fail, and a new helper takes its place.
    async fn replace(&self, index: usize, spawner: &Spawner, events: &mpsc::UnboundedSender<Exited>) {
        warn!(
            helper = index,
            "a container helper has ended; its containers are killed and it is started again"
        );
        let lost: Vec<(String, Owner)> = {
            let mut owners = self.owners.lock();
            let ids: Vec<String> =
                owners.iter().filter(|(_, o)| o.helper == index).map(|(id, _)| id.clone()).collect();
            ids.into_iter().filter_map(|id| owners.remove(&id).map(|owner| (id, owner))).collect()
        };
        for (id, owner) in lost {
            if let Some(cgroup) = owner.cgroup {
                let hierarchies = self.hierarchies.clone();
                let _ = tokio::task::spawn_blocking(move || hierarchies.kill_and_remove(&cgroup)).await;
            }
            if owner.running {
                let _ = events.send(Exited { id, exit: Exit { code: 137, signal: Some(9), oom: false } });
            }
        }
        self.helpers[index].waiting.lock().clear();
        loop {
            match spawner.spawn().await {
                Ok(socket) => {
                    *self.helpers[index].socket.lock() = Arc::new(socket);
                    return;
                }
                Err(cause) => {
                    error!(%cause, "trying again in 1 s");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for helper in &self.helpers {
            let socket = helper.socket.lock();
            // The helper reads this as the end of the node, `listen` as the end of the helper.
            let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
    }
}

/// A thread in the mount namespace that all helpers share; it starts them. The namespace lives as long as the thread
/// or a helper does.
#[derive(Clone)]
struct Spawner {
    requests: std::sync::mpsc::Sender<oneshot::Sender<Result<OwnedFd, RuntimeError>>>,
}

impl Spawner {
    fn start(config: RuntimeConfig) -> Self {
        let (requests, inbox) = std::sync::mpsc::channel::<oneshot::Sender<Result<OwnedFd, RuntimeError>>>();
        std::thread::Builder::new()
            .name("container-mounts".to_owned())
            .spawn(move || {
                let isolated = isolate_mounts();
                while let Ok(reply) = inbox.recv() {
                    let spawned = match &isolated {
                        Ok(()) => spawn(&config),
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

    async fn spawn(&self) -> Result<UnixDatagram, RuntimeError> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.requests.send(sender);
        let socket = receiver.await.map_err(|_| RuntimeError::HelperGone)??;
        // Any unix socket will do for tokio's datagram type: packets are sent and received by `seqpacket`.
        UnixDatagram::from_std(std::os::unix::net::UnixDatagram::from(socket))
            .map_err(|error| RuntimeError::Spawn { exe: "socket".to_owned(), cause: error.to_string() })
    }
}

fn isolate_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    // What is mounted on the machine later still arrives here (hostPath volumes); what is mounted here stays here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}

fn spawn(config: &RuntimeConfig) -> Result<OwnedFd, RuntimeError> {
    let fail = |cause: String| RuntimeError::Spawn { exe: config.helper_exe.display().to_string(), cause };
    std::fs::create_dir_all(&config.state_dir).map_err(|error| fail(error.to_string()))?;
    let (ours, theirs) = seqpacket::pair().map_err(|error| fail(error.to_string()))?;
    let mut child = Command::new(&config.helper_exe)
        .arg(HELPER_ARGUMENT)
        .arg(&config.state_dir)
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
