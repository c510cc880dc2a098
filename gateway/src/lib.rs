//! The ingress: hosts, paths, headers and percentage splits of KIngresses, served on an external and a local side.
//!
//! [`table::route`] is a pure function over an immutable table. The shell watches Ingresses, Services and
//! EndpointSlices, builds tables and swaps them in, serves the listeners from the table of the moment, and tells in an
//! Ingress's status when it is really served. With the API server away everything goes on from the last table.
//!
//! It never looks into a body, and never balances over a ClusterIP.

use std::time::Duration;

pub mod config;
pub mod gateway_api;
pub mod proxy_protocol;
mod shell;
pub mod table;
pub mod upstream;

pub use config::{Config, Listeners};
use shell::serve;
pub use shell::{AccessLog, Answer, Edge, Error, Handler, Live, Snapshot, run};

/// How long each node's packet rules, and a load balancer, may go on sending connections.
const LINGER: Duration = Duration::from_secs(8);
/// Requests under way may take their whole time.
const DRAIN: Duration = Duration::from_secs(600);
/// The condition of readiness that all watches have delivered.
const WATCHES: &str = "watches";

/// The gateway as a process of its own: settings from the environment, until a signal.
pub fn main() -> std::process::ExitCode {
    let process = ebb_component::Process { name: "gateway", linger: LINGER, drain: DRAIN };
    let serve = |config, started: ebb_component::Started, identity| {
        serve(config, Listeners::default(), started.admin, started.client, identity, started.shutdown)
    };
    process.run_in_mesh(Config::from_env, |config| (config.bind, config.ports), &[WATCHES], serve)
}
