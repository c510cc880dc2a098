//! Holds requests for revisions that have no pod yet, wakes them, and forwards as soon as a pod can be used.
//!
//! Pure cores say who may go where ([`throttle`]), which pods exist ([`dests`]) and what load there is ([`meter`]); a
//! [`revision::Revision`] joins them to waiting requests; the shell watches Kubernetes, serves the ports, probes pods
//! and reports load. Nothing on the way of a cold request waits for a tick.
//!
//! It never decides how many pods there are, and never answers for an app.

pub mod config;
pub mod dests;
pub mod meter;
pub mod revision;
mod shell;
pub mod throttle;

pub use config::Config;
pub use shell::{Error, Handler, MeshReporter, Registry, ReportError, Reporter, run};
