//! The node agent: runs the pods that the API assigns to this node as real Linux containers.
//!
//! It watches pods, makes their network, volumes and containers, probes them, restarts them, keeps their logs and
//! writes their status. It decides nothing about which pods exist or where: that is the scheduler's and the
//! controllers' business.
//!
//! # Life and death
//! Containers are children of helper processes ([`runtime`]), which end with the node, however it ends, and take their
//! containers with them. What the kernel keeps in spite of that (cgroups of a helper that was killed too) bears this
//! instance's name and is removed at the next start. Namespaces and mounts need no clean-up: they are referred to by
//! processes and descriptors only. After a start, pods that the API still assigns to this node are started again, with
//! their volumes' contents, new addresses, and a restart counted.
//!
//! # Without root
//! In a user namespace (crate cluster-rootless makes one around the whole process) everything works but what belongs to
//! the machine: there are no cgroups, so limits are not enforced, which the log and a condition of the Node object say;
//! and with a single user in it, all containers run as that one. [`Node::start`] says what else is missing.

pub mod cgroup;
mod context;
mod error;
mod events;
pub mod images;
mod logs;
pub mod network;
mod node;
mod objects;
mod pod;
pub mod policy;
pub mod quantity;
mod register;
mod rights;
pub mod runtime;
mod server;
pub mod spec;
mod terminal;
mod users;

pub use error::Error;
pub use network::NetworkConfig;
pub use node::{Config, Node};
pub use policy::Policies;

/// A new id for a container or an exec: 32 hexadecimal digits.
pub(crate) fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
