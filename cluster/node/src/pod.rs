//! One pod: a pure state machine ([`decide`], [`state`], [`status`]) and the thin worker that feeds it.

mod backoff;
pub(crate) mod container;
mod decide;
mod dns;
pub(crate) mod env;
mod probe;
mod state;
mod status;
mod stop;
#[cfg(test)]
mod tests;
mod volumes;
mod worker;

use std::path::{Path, PathBuf};

use jiff::Timestamp;

pub(crate) use worker::{Handle, spawn};

use decide::Action;
use state::{PodState, Run, Sandbox, Stage, Stopping};

/// Where a volume of a pod lives.
pub(crate) fn volume_dir(pod_dir: &Path, name: &str) -> PathBuf {
    pod_dir.join("volumes").join(name)
}

/// Notes in the state that an action is under way.
fn begin(state: &mut PodState, action: &Action, now: Timestamp) {
    match action {
        Action::MakeSandbox => state.sandbox = Sandbox::Making,
        Action::MakeVolumes => state.volumes = Stage::Working,
        Action::Pull(index) => state.containers[*index].image = Stage::Working,
        Action::Start(index) => state.containers[*index].begin_start(now),
        Action::Stop(index, deadline) => {
            if let Run::Running(running) = &mut state.containers[*index].run {
                running.stopping = Some(Stopping { deadline: *deadline, killed: false });
            }
        }
        Action::Kill(index) => {
            if let Run::Running(running) = &mut state.containers[*index].run
                && let Some(stopping) = &mut running.stopping
            {
                stopping.killed = true;
            }
        }
        Action::Fail(reason, message) => state.failed = Some((reason.clone(), message.clone())),
        Action::RemoveSandbox => state.sandbox = Sandbox::Removing(state.sandbox.address()),
        Action::Delete => state.delete_sent = true,
    }
}
