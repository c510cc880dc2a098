//! A cluster without root: the whole process in namespaces of its own, and a door to the machine outside.
//!
//! A user who is not root has every capability inside a user namespace that they made, and so everything that pods need: mounts, network
//! devices, packet rules, processes of other (mapped) users. What they do not have there is the machine's network. [`enter`] therefore makes
//! three processes of one:
//!
//! - *outside* stays where the user started it. It forwards signals, ends with the exit code of the program, and serves the door: it opens
//!   listeners on the machine's loopback and hands them in ([`Door::listen`]), and carries connections and DNS questions from inside out.
//! - *init* is process 1 of a new process namespace and reaps what is left behind. When outside is gone, for whatever reason, the kernel
//!   ends init, and with it every process inside: nothing survives a kill -9.
//! - *inside* is the program, which goes on after [`enter`] as if it were root.
//!
//! Inside, a packet to anywhere but the cluster is redirected to [`Door::egress_port`], where outside accepts it and connects to where it was
//! going: TCP reaches the world with the user's own sockets, as with slirp4netns or pasta, without either. UDP reaches only the machine's
//! DNS servers.
//!
//! Caveats: no cgroups are delegated to an ordinary user of cgroups v1, so limits are not enforced there; without ranges in `/etc/subuid`
//! and the program `newuidmap` there is one user inside, and containers all run as that one.

mod door;
mod enter;
mod init;
mod mapping;
mod need;
mod outside;
mod packet;

pub use door::Door;
pub use enter::{Entered, enter};

/// Why a program cannot have namespaces of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel, or its configuration, does not let users make namespaces.
    #[error("running without root needs user namespaces, and {0}")]
    NotAllowed(String),
    /// What went wrong in the new namespaces.
    #[error("{0}")]
    Inside(String),
    /// A step failed.
    #[error("cannot run without root: {what}: {cause}; run as root instead")]
    Step {
        /// What was attempted.
        what: String,
        /// What the kernel or a program said.
        cause: String,
    },
}

impl Error {
    fn step(what: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Step { what: what.into(), cause: cause.to_string() }
    }
}
