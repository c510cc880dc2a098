//! Holds requests for revisions that have no pod yet, wakes them, and forwards as soon as a pod can be used.
//!
//! Pure cores say who may go where ([`throttle`]), which pods exist ([`dests`]) and what load there is ([`meter`]); a
//! [`revision::Revision`] joins them to waiting requests; the shell watches Kubernetes, serves the ports, probes pods
//! and reports load. Nothing on the way of a cold request waits for a tick.
//!
//! It never decides how many pods there are, and never answers for an app.

use std::time::Duration;

pub mod budget;
pub mod config;
pub mod dests;
pub mod meter;
pub mod revision;
mod shell;
pub mod throttle;

pub use config::Config;
use shell::serve;
pub use shell::{Error, Handler, MeshReporter, Registry, ReportError, Reporter, run};

/// Gateways learn within milliseconds that this one goes; their requests of that moment still come.
const LINGER: Duration = Duration::from_secs(5);
/// Requests that wait, and those under way, may take their whole time.
const DRAIN: Duration = Duration::from_secs(600);
/// The condition of readiness that all watches have delivered.
const WATCHES: &str = "watches";

/// The activator as a process of its own: settings from the environment, until a signal.
pub fn main() -> std::process::ExitCode {
    let process = ebb_component::Process { name: "activator", linger: LINGER, drain: DRAIN };
    let serve = |config, started: ebb_component::Started, identity| {
        serve(config, started.admin, started.client, identity, started.shutdown)
    };
    process.run_in_mesh(Config::from_env, |config| (config.bind, config.ports), &[WATCHES], serve)
}
