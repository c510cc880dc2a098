//! What the Deployment, its pods and the PodAutoscaler tell about a revision.

use ebb_api::autoscaling::PodAutoscaler;
use ebb_api::conditions::{Condition, Conditioned, READY, Status};
use ebb_api::config::Configs;
use ebb_api::serving::RevisionStatus;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

use super::trouble::{self, AVAILABLE, HEALTHY, Trouble};

const DEPLOYING: &str = "Deploying";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

/// The Deployment has just been made.
pub(super) fn deploying(status: &mut RevisionStatus, now: Timestamp) {
    status.manage(now).mark_unknown(AVAILABLE, DEPLOYING, "").mark_unknown(HEALTHY, DEPLOYING, "");
}

/// The Deployment could not be made or changed; it is tried again.
pub(super) fn refused(status: &mut RevisionStatus, why: &str, now: Timestamp) {
    status.manage(now).mark_false(AVAILABLE, "FailedCreate", why);
}

/// Pods are wanted, and none is there that could serve.
pub(super) fn lacks_pods(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let available = deployment.status.as_ref().and_then(|s| s.available_replicas).unwrap_or_default();
    wanted > 0 && available == 0
}

/// Takes over what the Deployment and its pods say.
pub(super) fn of_deployment(
    status: &mut RevisionStatus,
    deployment: &Deployment,
    pods: &[Arc<Pod>],
    trouble: Option<&Trouble>,
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
            manager.mark_unknown(AVAILABLE, DEPLOYING, "");
        }
    }

    if lacks_pods(deployment) {
        let timed_out =
            progress.is_some_and(|c| c.status == "False" && c.reason.as_deref() == Some(TIMED_OUT));
        let always = configs.deployment.pod_is_always_schedulable;
        let mut alive = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
        let known = alive.find_map(|p| trouble::of_pod(p, always, timed_out));
        if let Some(problem) = known.as_ref().or(trouble.filter(|t| t.is_final)) {
            status.manage(now).mark_false(problem.condition, &problem.reason, &problem.message);
        }
        // That it took too long is no cause: the cause is told with it.
        let late = status.condition(AVAILABLE).filter(|c| c.reason.as_deref() == Some(TIMED_OUT)).cloned();
        if let (Some(late), Some(trouble)) = (late, trouble) {
            let message = format!("{} {}", late.message.unwrap_or_default(), trouble.message);
            status.manage(now).mark_false(AVAILABLE, TIMED_OUT, message.trim());
        }
    }
    if found.and_then(|s| s.ready_replicas).unwrap_or_default() > 0 {
        status.manage(now).mark_true(HEALTHY);
    }
}

/// What takes so long, where nothing has failed yet.
pub(super) fn explain(status: &mut RevisionStatus, trouble: &Trouble, now: Timestamp) {
    let waits = |status: &RevisionStatus, type_: &str| {
        status.condition(type_).is_some_and(|c| c.status == Status::Unknown)
    };
    if !trouble.is_final && waits(status, READY) && waits(status, trouble.condition) {
        status.manage(now).mark_unknown(trouble.condition, DEPLOYING, &trouble.message);
    }
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
        manager.mark_unknown("Active", DEPLOYING, "");
        if !unavailable {
            manager.mark_unknown(AVAILABLE, DEPLOYING, "");
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
        status.manage(now).mark_unknown(AVAILABLE, DEPLOYING, "");
    }
    let (reason, message) = (ready.reason.unwrap_or_default(), ready.message.unwrap_or_default());
    let mut manager = status.manage(now);
    match ready.status {
        Status::Unknown => {
            manager.mark_unknown("Active", &reason, &message);
        }
        Status::False => {
            if !initialized && !unavailable && named {
                manager.mark_false(AVAILABLE, TIMED_OUT, "Initial scale was never achieved");
            }
            manager.mark_false("Active", &reason, &message);
        }
        Status::True => {
            manager.mark_true("Active");
        }
    }
}
