//! The one sidecar of a pod: every request for the app comes through here.
//!
//! It holds the revision's promises at the pod: at most `containerConcurrency` requests in the app and ten times as many
//! waiting, its timeouts, probes answered for the app, no request lost when the pod goes away. It is the pod's end of the
//! mesh: it takes mutual TLS and, under STRICT, nothing else. It reports load to the autoscaler when asked, and tells the
//! activator the moment the app listens.
//!
//! It never speaks to Kubernetes and keeps nothing on disk. Each request is handled by [`proxy`]; the decisions are in
//! [`load`], [`breaker`], [`drain`] and [`probe`], without IO.

pub mod admin;
pub mod announce;
pub mod breaker;
pub mod config;
pub mod drain;
pub mod load;
mod logging;
pub mod metrics;
pub mod probe;
pub mod proxy;
mod run;
pub mod state;
pub mod stats;
mod workers;

pub use config::{Config, ConfigError};
pub use run::{Error, Listeners, run};
pub use workers::workers;
