//! The ingress: hosts, paths, headers and percentage splits of KIngresses, served on an external and a local side.
//!
//! [`table::route`] is a pure function over an immutable table. The shell watches Ingresses, Services and
//! EndpointSlices, builds tables and swaps them in, serves the listeners from the table of the moment, and tells in an
//! Ingress's status when it is really served. With the API server away everything goes on from the last table.
//!
//! It never looks into a body, and never balances over a ClusterIP.

pub mod config;
mod shell;
pub mod table;
pub mod upstream;

pub use config::{Config, Listeners};
pub use shell::{Error, Handler, Snapshot, run};
