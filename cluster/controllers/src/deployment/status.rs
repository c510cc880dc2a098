//! A Deployment's status and conditions, with Kubernetes' reasons and messages: `kubectl rollout status` and `kubectl wait` read them.

use std::time::Duration;

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    jiff::Timestamp,
};

use super::rolling;
use crate::meta;

const PROGRESSING: &str = "Progressing";
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

pub(crate) fn condition<'a>(
    status: Option<&'a DeploymentStatus>,
    type_: &str,
) -> Option<&'a DeploymentCondition> {
    status?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

/// Sets a condition; one of the same status and reason stays as it is, one of the same status keeps its transition time.
pub(crate) fn set(
    status: &mut DeploymentStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let now = meta::whole_seconds(now);
    let conditions = status.conditions.get_or_insert_default();
    let held = conditions.iter().position(|condition| condition.type_ == type_);
    if held
        .is_some_and(|at| conditions[at].status == value && conditions[at].reason.as_deref() == Some(reason))
    {
        return;
    }
    let mut made = DeploymentCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    };
    if let Some(held) = held.map(|at| conditions.remove(at))
        && held.status == made.status
    {
        made.last_transition_time = held.last_transition_time;
    }
    // As upstream, what changed last stands last.
    conditions.push(made);
}

fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
}

pub(crate) fn has_deadline(deployment: &Deployment) -> bool {
    deadline(deployment).is_some()
}

/// A deadline of i32::MAX means none.
fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| Duration::from_secs(seconds.unsigned_abs().into()))
}

fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Does anybody act on what changed? Only then is it written at once.
pub(crate) fn is_news(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let count = |count: Option<i32>| count.unwrap_or(0);
    let held = old.cloned().unwrap_or_default();
    let reason =
        |status: &DeploymentStatus, type_| condition(Some(status), type_).and_then(|c| c.reason.clone());
    // How a rollout ended, and that it cannot go on; that it goes on is seen from the counts.
    let verdict =
        |status| reason(status, PROGRESSING).filter(|reason| matches!(reason.as_str(), COMPLETE | TIMED_OUT));
    count(held.ready_replicas) != count(new.ready_replicas)
        || count(held.available_replicas) != count(new.available_replicas)
        || held.collision_count != new.collision_count
        || reason(&held, "ReplicaFailure") != reason(new, "ReplicaFailure")
        || verdict(new).is_some() && verdict(&held) != verdict(new)
        || reason(&held, PROGRESSING).is_some_and(|reason| reason.starts_with("Deployment"))
        || reason(new, PROGRESSING).is_some_and(|reason| reason.starts_with("Deployment"))
}

/// Counts, and the condition Available.
pub(crate) fn counted(
    deployment: &Deployment,
    base: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |count: fn(&ReplicaSet) -> i32| all.iter().map(|set| count(set)).sum::<i32>();
    let reported = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let available = sum(|set| set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0));
    let ready = sum(|set| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0));
    let terminating =
        sum(|set| set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(|set| set.status.as_ref().map_or(0, |status| status.replicas))),
        updated_replicas: some(new.map_or(0, reported)),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some((sum(rolling::size) - available).max(0)),
        terminating_replicas: Some(terminating),
        collision_count: base.collision_count,
        conditions: base.conditions.clone(),
    };
    let least = rolling::replicas(deployment) - rolling::bounds(deployment).unavailable;
    if available >= least {
        let message = "Deployment has minimum availability.".to_owned();
        set(&mut status, "Available", "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        set(&mut status, "Available", "False", "MinimumReplicasUnavailable", message, now);
    }
    status
}

/// All of it for a rollout: [`counted`], and the conditions Progressing and ReplicaFailure.
pub(crate) fn rollout(
    deployment: &Deployment,
    base: &DeploymentStatus,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counted(deployment, base, new, all, now);
    let held = condition(Some(base), PROGRESSING).cloned();
    let count = |count: Option<i32>| count.unwrap_or(0);
    let rolled = status.replicas == status.updated_replicas
        && held.as_ref().is_some_and(|held| held.reason.as_deref() == Some(COMPLETE));
    let subject = match new {
        Some(set) => format!("ReplicaSet \"{}\"", meta::name(set)),
        None => format!("Deployment \"{}\"", meta::name(deployment)),
    };
    let progressed = count(status.updated_replicas) > count(base.updated_replicas)
        || count(status.replicas) - count(status.updated_replicas)
            < count(base.replicas) - count(base.updated_replicas)
        || count(status.ready_replicas) > count(base.ready_replicas)
        || count(status.available_replicas) > count(base.available_replicas);
    if !has_deadline(deployment) {
        remove(&mut status, PROGRESSING);
    } else if !rolled {
        if is_complete(deployment, &status) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, PROGRESSING, "True", COMPLETE, message, now);
        } else if progressed {
            let message = format!("{subject} is progressing.");
            // Set anew even if it says the same: its update time is what the deadline counts from.
            remove(&mut status, PROGRESSING);
            set(&mut status, PROGRESSING, "True", "ReplicaSetUpdated", message, now);
            if let Some(held) = held.as_ref().filter(|held| held.status == "True")
                && let Some(made) =
                    status.conditions.iter_mut().flatten().find(|made| made.type_ == PROGRESSING)
            {
                made.last_transition_time.clone_from(&held.last_transition_time);
            }
        } else if timed_out(deployment, held.as_ref(), now) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, PROGRESSING, "False", TIMED_OUT, message, now);
        }
    }
    let failure = |set: &&ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == "ReplicaFailure" && c.status == "True").cloned()
    };
    match new.and_then(|new| failure(&new)).or_else(|| all.iter().find_map(failure)) {
        Some(failure) => {
            let reason = failure.reason.unwrap_or_default();
            let message = failure.message.unwrap_or_default();
            set(&mut status, "ReplicaFailure", "True", &reason, message, now);
        }
        None => remove(&mut status, "ReplicaFailure"),
    }
    status
}

/// The rollout is over: all pods are of the new template and available.
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = rolling::replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn timed_out(deployment: &Deployment, held: Option<&DeploymentCondition>, now: Timestamp) -> bool {
    let Some(held) = held else { return false };
    match held.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => expiry(deployment, held).is_some_and(|expiry| expiry < now),
    }
}

fn expiry(deployment: &Deployment, condition: &DeploymentCondition) -> Option<Timestamp> {
    condition.last_update_time.as_ref()?.0.checked_add(deadline(deployment)?).ok()
}

/// When to look again whether the progress deadline has passed, as nothing else would tell.
pub(crate) fn look_again(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let held = condition(Some(status), PROGRESSING)?;
    if is_complete(deployment, status)
        || matches!(held.reason.as_deref(), Some(TIMED_OUT | COMPLETE | "DeploymentPaused"))
    {
        return None;
    }
    Some(meta::until(expiry(deployment, held)?, now) + Duration::from_secs(1))
}
