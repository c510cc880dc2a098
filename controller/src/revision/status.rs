//! What the Deployment, its pods and the PodAutoscaler tell about a revision.

use ebb_api::autoscaling::PodAutoscaler;
use ebb_api::conditions::{Condition, Conditioned, READY, Status};
use ebb_api::config::Configs;
use ebb_api::meta::autoscaling::CLASS_NOT_SUPPORTED;
use ebb_api::meta::ebb::QUEUE_PROXY;
use ebb_api::serving::RevisionStatus;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use std::sync::Arc;

const AVAILABLE: &str = "ResourcesAvailable";
const HEALTHY: &str = "ContainerHealthy";

/// Waiting for these is in vain until somebody changes something.
const HOPELESS: &[&str] = &[
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// The Deployment has just been made.
pub(super) fn deploying(status: &mut RevisionStatus, now: Timestamp) {
    status.manage(now).mark_unknown(AVAILABLE, "Deploying", "").mark_unknown(HEALTHY, "Deploying", "");
}

/// Takes over what the Deployment and its pods say.
pub(super) fn of_deployment(
    status: &mut RevisionStatus,
    deployment: &Deployment,
    pods: &[Arc<Pod>],
    configs: &Configs,
    now: Timestamp,
) {
    let found = deployment.status.as_ref();
    let conditions = found.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let condition = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let mut manager = status.manage(now);
    // A quota or the like keeps pods from being made; a deadline passed; both are final until something changes.
    let failure = condition("ReplicaFailure").filter(|c| c.status == "True");
    let progress = condition("Progressing");
    match (failure, progress) {
        (Some(c), _) => {
            manager.mark_false(AVAILABLE, &text(&c.reason), &text(&c.message));
        }
        (None, Some(c)) if c.status == "False" => {
            manager.mark_false(AVAILABLE, &text(&c.reason), &text(&c.message));
        }
        (None, Some(c)) if c.status == "True" => {
            manager.mark_true(AVAILABLE);
        }
        _ => {
            manager.mark_unknown(AVAILABLE, "Deploying", "");
        }
    }

    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let available = found.and_then(|s| s.available_replicas).unwrap_or_default();
    if wanted > 0 && available == 0 {
        let mut manager = status.manage(now);
        let mut alive = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
        if let Some(problem) = alive.find_map(|p| problem(p, configs)) {
            manager.mark_false(problem.condition, &problem.reason, &problem.message);
        }
    }
    if found.and_then(|s| s.ready_replicas).unwrap_or_default() > 0 {
        status.manage(now).mark_true(HEALTHY);
    }
}

struct Problem {
    condition: &'static str,
    reason: String,
    message: String,
}

/// Why a pod does not come up, if that is known.
fn problem(pod: &Pod, configs: &Configs) -> Option<Problem> {
    let status = pod.status.as_ref()?;
    if !configs.deployment.pod_is_always_schedulable {
        let refused =
            status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        if let Some(c) = refused {
            return Some(Problem {
                condition: AVAILABLE,
                reason: c.reason.clone().unwrap_or_else(|| "Unschedulable".into()),
                message: c.message.clone().unwrap_or_default(),
            });
        }
    }
    let all =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let (mut own, sidecar): (Vec<_>, Vec<_>) = all.partition(|c| c.name != QUEUE_PROXY);
    // The sidecar's own failure matters only if the app's containers have nothing to say.
    own.extend(sidecar);
    own.into_iter().find_map(of_container)
}

fn of_container(container: &ContainerStatus) -> Option<Problem> {
    let state = container.state.as_ref();
    let ended = container
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref())
        .or_else(|| state.and_then(|s| s.terminated.as_ref()).filter(|t| t.exit_code != 0));
    if let Some(ended) = ended {
        let mut message = ended.message.clone().unwrap_or_default().trim().to_owned();
        if message.is_empty() {
            message = match ended.reason.as_deref() {
                Some("OOMKilled") => "out of memory: raise resources.limits.memory".into(),
                _ if ended.exit_code == 0 => "container exited with no error".into(),
                _ => String::new(),
            };
        }
        return Some(Problem {
            condition: HEALTHY,
            reason: format!("ExitCode{}", ended.exit_code),
            message: format!("Container failed with: {message}"),
        });
    }
    let waiting = state.and_then(|s| s.waiting.as_ref())?;
    let reason = waiting.reason.clone().filter(|r| HOPELESS.contains(&r.as_str()))?;
    Some(Problem { condition: AVAILABLE, reason, message: waiting.message.clone().unwrap_or_default() })
}

/// Takes over what the PodAutoscaler says.
pub(super) fn of_autoscaler(status: &mut RevisionStatus, pa: Option<&PodAutoscaler>, now: Timestamp) {
    let found = pa.and_then(|pa| pa.status.as_ref());
    let unavailable = status.is_false(AVAILABLE) || status.is_false(HEALTHY);
    status.actual_replicas = found.and_then(|s| s.actual_scale).filter(|n| *n >= 0);
    status.desired_replicas = found.and_then(|s| s.desired_scale).filter(|n| *n >= 0);
    let ready: Option<Condition> = found.and_then(|s| s.condition(READY)).cloned();
    let (Some(found), Some(ready)) = (found, ready) else {
        let mut manager = status.manage(now);
        manager.mark_unknown("Active", "Deploying", "");
        if !unavailable {
            manager.mark_unknown(AVAILABLE, "Deploying", "");
        }
        return;
    };
    let initialized = found.is_true("ScaleTargetInitialized");
    // Once a pod has served, the revision works: at zero it stays Ready.
    if initialized && !unavailable {
        status.manage(now).mark_true(AVAILABLE).mark_true(HEALTHY);
    }
    let named = !found.service_name.is_empty();
    if status.is_true(AVAILABLE) && (!named || !initialized) {
        status.manage(now).mark_unknown(AVAILABLE, "Deploying", "");
    }
    let (reason, message) = (ready.reason.unwrap_or_default(), ready.message.unwrap_or_default());
    let mut manager = status.manage(now);
    match ready.status {
        Status::Unknown => {
            manager.mark_unknown("Active", &reason, &message);
        }
        Status::False if reason == CLASS_NOT_SUPPORTED => {
            // Nothing will ever scale it: a failure, not a wait.
            manager.mark_false(AVAILABLE, &reason, &message).mark_false("Active", &reason, &message);
        }
        Status::False => {
            if !initialized && !unavailable && named {
                manager.mark_false(AVAILABLE, "ProgressDeadlineExceeded", "Initial scale was never achieved");
            }
            manager.mark_false("Active", &reason, &message);
        }
        Status::True => {
            manager.mark_true("Active");
        }
    }
}
