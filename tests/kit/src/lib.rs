//! What the end-to-end tests and the benchmarks share: an `ebb up` as a process of its own, and requests to its gateway.
//!
//! It never looks inside: only the command line, the files it leaves for users, and sockets.

pub mod http;
mod process;
mod shell;

pub use process::Process;
pub use shell::{run, tail};

use std::time::Duration;

/// How long a thing that should happen may take before one gives up; the machines that run this are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(90);
