//! What the node, a helper and the processes it starts say to each other: one JSON message a packet on SOCK_SEQPACKET
//! sockets, file descriptors beside it.
//!
//! Requests are answered as they are done, not in order; exits come unasked. Big things (a container with all its
//! environment) travel as a memory file, so that a packet stays far under the socket buffer, and helpers only pass
//! them on.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cgroup::Hierarchies;
use crate::spec::{self, Processes};

/// The settings of a helper, its second argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HelperConfig {
    /// A folder of all helpers of this runtime; mount points are made in it.
    pub(crate) state_dir: PathBuf,
    /// Absolute path in each cgroup hierarchy below which containers have their own; None without cgroups.
    pub(crate) cgroup_parent: Option<String>,
    /// Beginning of the names of this helper's cgroups.
    pub(crate) name: String,
    /// How many processes to keep ready for containers.
    pub(crate) parked: usize,
    /// The cgroup hierarchies; None for what the machine has.
    pub(crate) hierarchies: Option<Hierarchies>,
}

/// A request with the number its answer will carry.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) seq: u64,
    pub(crate) request: Request,
}

/// What a helper can be asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Start a container from a [`Bundle`].
    Start { id: String, processes: Processes, handed: Handed },
    /// Make a process that containers can share their processes with.
    Hold { id: String },
    /// Run a [`spec::Process`] in a running container.
    Exec { container: String, id: String, handed: Handed },
    /// Send a signal to a container's first process, or to an exec'd one.
    Signal { id: String, signal: i32 },
    /// Remove what is left of a stopped container.
    Remove { id: String },
    /// Mount a tmpfs where all helpers (they share one mount namespace) and their containers see it.
    MountTmpfs { target: PathBuf, size: Option<u64> },
    /// Undo a `MountTmpfs`; a path that is no mount is fine.
    Unmount { target: PathBuf },
}

/// Which descriptors come with a message, in this order: the memory file; stdout and stderr unless there is a terminal;
/// then what is said here.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Handed {
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) net: bool,
    pub(crate) ipc: bool,
    pub(crate) uts: bool,
}

/// Received descriptors by what they are.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) body: OwnedFd,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) net: Option<OwnedFd>,
    pub(crate) ipc: Option<OwnedFd>,
    pub(crate) uts: Option<OwnedFd>,
}

impl Handed {
    /// Gives each descriptor its meaning; None when some are missing.
    pub(crate) fn sort(self, fds: Vec<OwnedFd>) -> Option<Received> {
        let mut fds = fds.into_iter();
        let body = fds.next()?;
        let mut next = |present: bool| if present { fds.next().map(Some) } else { Some(None) };
        Some(Received {
            body,
            stdout: next(!self.terminal)?,
            stderr: next(!self.terminal)?,
            stdin: next(self.stdin)?,
            net: next(self.net)?,
            ipc: next(self.ipc)?,
            uts: next(self.uts)?,
        })
    }
}

/// A container as the runtime is handed it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bundle {
    pub(crate) container: spec::Container,
    pub(crate) overlay: Overlay,
}

/// The root filesystem to mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    /// Read-only layers, top first.
    pub lower: Vec<PathBuf>,
    /// Where writes go.
    pub upper: PathBuf,
    /// Overlayfs' own work folder, on the same filesystem as `upper`.
    pub work: PathBuf,
}

/// What a helper sends; the master of a terminal comes with `Done`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The answer to the request `seq`.
    Done { seq: u64, result: Result<Answer, Failure> },
    /// A container's first process or an exec'd process has ended.
    Exited { id: String, exit: Exit },
}

/// What a request came to; most of it only for starts.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The process, in the node's pid namespace; 0 where the request starts none.
    pub(crate) pid: i32,
    /// The container's cgroup, absolute in each hierarchy.
    pub(crate) cgroup: Option<String>,
    pub(crate) timings: Timings,
}

/// How long the parts of a start took, for the trace.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Whether the process was ready before it was asked for.
    pub parked: bool,
    /// Microseconds for the root filesystem and all other mounts.
    pub mount_us: u64,
    /// Microseconds of all the process did before it became the container's program, the mounts included.
    pub create_us: u64,
    /// Microseconds from the request's arrival at the helper until the program ran.
    pub start_us: u64,
}

/// What a process that becomes a container tells its helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// All is done but exec. The master of the terminal, if there is one, comes with it.
    Ready { mount_us: u64, create_us: u64 },
    /// It ends without having become the program.
    Failed(Failure),
}

/// Why a container or an exec did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The image's or the user's fault: the program is missing or cannot be executed.
    pub(crate) program: bool,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { program: false, message: message.into() }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { program: false, message }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + signal for a process ended by a signal, as container runtimes report it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer struck in the container's cgroup.
    pub oom: bool,
}

/// A value as a memory file.
pub(crate) fn write_body(value: &impl Serialize) -> std::io::Result<OwnedFd> {
    let fd = memfd_create("container", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    let bytes = serde_json::to_vec(value).map_err(std::io::Error::other)?;
    std::io::Write::write_all(&mut file, &bytes)?;
    Ok(file.into())
}

/// The value of a memory file, from its beginning wherever its position is.
pub(crate) fn read_body<T: DeserializeOwned>(body: OwnedFd) -> std::io::Result<T> {
    use std::os::unix::fs::FileExt;
    let file = File::from(body);
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    serde_json::from_slice(&bytes).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_read_as_it_was_written() {
        let process = spec::Process { args: vec!["x".repeat(200_000)], ..spec::Process::default() };
        let body = write_body(&process).unwrap();
        let read: spec::Process = read_body(body).unwrap();
        assert_eq!(read.args, process.args);
    }

    #[test]
    fn descriptors_have_their_order() {
        let fds = |count: usize| {
            (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect::<Vec<OwnedFd>>()
        };
        let handed = Handed { uts: true, ..Handed::default() };
        let received = handed.sort(fds(4)).unwrap();
        assert!(received.stdout.is_some() && received.uts.is_some() && received.net.is_none());
        assert!(handed.sort(fds(3)).is_none(), "one is missing");
        assert!(Handed { terminal: true, ..handed }.sort(fds(2)).unwrap().stdout.is_none());
    }
}
