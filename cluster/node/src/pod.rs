//! One pod: a pure state machine ([`decide`], [`state`], [`status`]) and the thin worker that feeds it.

mod backoff;
pub(crate) mod container;
mod decide;
mod dns;
pub(crate) mod env;
mod probe;
pub(crate) mod shared;
mod state;
mod status;
mod stop;
#[cfg(test)]
mod tests;
mod volumes;
mod worker;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;

pub(crate) use worker::{Handle, spawn};

use decide::Action;
use state::{PodState, Run, Sandbox, Stage, Stopping};

use crate::context::Context;

/// Where a volume of a pod lives.
pub(crate) fn volume_dir(pod_dir: &Path, name: &str) -> PathBuf {
    pod_dir.join("volumes").join(name)
}

/// Where a volume is found by containers: those with secrets are in memory, which [`crate::runtime::Runtime::among_mounts`] sees.
pub(crate) fn volume_root(context: &Context, pod_dir: &Path, volume: &Volume) -> PathBuf {
    if volumes::is_secret(volume) {
        return memory_dir(context, pod_dir).join(&volume.name);
    }
    volume_dir(pod_dir, &volume.name)
}

/// What a pod has in memory.
pub(crate) fn memory_dir(context: &Context, pod_dir: &Path) -> PathBuf {
    context.runtime.memory_dir().join(pod_dir.file_name().unwrap_or_default())
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
