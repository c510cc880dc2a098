//! What the node and a helper process say to each other: one JSON message a packet on a SOCK_SEQPACKET socket, file
//! descriptors beside it.
//!
//! Requests are answered in order; exits come unasked. Big things (the OCI specification) travel as files of the
//! container's bundle, so that a packet stays far under the socket buffer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A request with the number its answer will carry.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) seq: u64,
    pub(crate) request: Request,
}

/// What a helper can be asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Create and start a container. Descriptors: stdout, stderr, and stdin when `stdin` is set (none with `console`).
    Start(Start),
    /// Run a process in a running container. Descriptors as for `Start`.
    Exec(Exec),
    /// Send a signal to a container's first process, or to an exec'd one.
    Signal { id: String, signal: i32 },
    /// Remove what is left of a stopped container: its cgroups, state and root filesystem mount.
    Remove { id: String },
    /// Mount a tmpfs where all helpers (they share one mount namespace) see it.
    MountTmpfs { target: PathBuf, size: Option<u64> },
    /// Undo a `MountTmpfs`; a path that is no mount is fine.
    Unmount { target: PathBuf },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) id: String,
    /// Folder with `config.json`.
    pub(crate) bundle: PathBuf,
    pub(crate) overlay: Option<Overlay>,
    /// Absolute path inside each cgroup hierarchy.
    pub(crate) cgroup: String,
    pub(crate) stdin: bool,
    pub(crate) console: Option<PathBuf>,
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
    /// The mount point.
    pub target: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub(crate) container: String,
    pub(crate) id: String,
    /// A file with the OCI `process` object.
    pub(crate) process: PathBuf,
    pub(crate) stdin: bool,
    pub(crate) console: Option<PathBuf>,
}

/// What a helper sends.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The answer to the request `seq`: a pid (0 where there is none) or why not.
    Done { seq: u64, result: Result<Started, String> },
    /// A container's first process or an exec'd process has ended.
    Exited { id: String, exit: Exit },
}

/// How long the parts of a start took, for the trace.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub struct Started {
    /// The process, in the node's pid namespace; 0 where the request starts none.
    pub pid: i32,
    /// Microseconds for mounting the root filesystem.
    pub mount_us: u64,
    /// Microseconds for namespaces, cgroups and mounts of the container.
    pub create_us: u64,
    /// Microseconds from created to told to exec.
    pub start_us: u64,
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
