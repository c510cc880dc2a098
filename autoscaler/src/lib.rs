//! Decides how many pods each revision has, and sees to it.
//!
//! A pure core decides ([`core::decide`], [`zero::step`]), a synchronous [`engine`] keeps all revisions, and a thin
//! shell around it watches Kubernetes, collects load, and writes scales, ServerlessServices, Metrics and statuses. A
//! request to a revision at zero does not wait for any tick: the activator's report is decided upon at once, and the
//! write of the scale is on its way before the report is answered.
//!
//! It never touches a request, and never scales to zero but by the protocol of [`zero`].

use std::time::Duration;

pub mod config;
pub mod core;
pub mod engine;
pub mod sample;
pub mod settings;
mod shell;
pub mod window;
pub mod zero;

pub use config::Config;
use shell::serve;
pub use shell::{Error, run};

/// How long activators may not have heard of the next leader.
const LINGER: Duration = Duration::from_secs(2);
/// Writes under way.
const DRAIN: Duration = Duration::from_secs(20);
/// The condition of readiness that all watches have delivered.
const WATCHES: &str = "watches";

/// The autoscaler as a process of its own: settings from the environment, until a signal.
pub fn main() -> std::process::ExitCode {
    let process = ebb_component::Process { name: "autoscaler", linger: LINGER, drain: DRAIN };
    let serve = |config, started: ebb_component::Started, identity| {
        serve(config, started.admin, started.client, identity, started.shutdown)
    };
    process.run_in_mesh(Config::from_env, |config| (config.bind, config.ports), &[WATCHES], serve)
}
