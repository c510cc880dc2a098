//! The status of a PodAutoscaler, with Knative's conditions and reasons.

use std::time::Duration;

use ebb_api::autoscaling::PodAutoscalerStatus;
use ebb_api::conditions::{Conditioned, Status};
use jiff::Timestamp;

use super::Sks;
use crate::zero::Activity;

pub(super) const ACTIVE: &str = "Active";
pub(super) const SKS_READY: &str = "SKSReady";
pub(super) const SCALE_TARGET_INITIALIZED: &str = "ScaleTargetInitialized";
/// Annotation of the status: the last decision in one line. It is written along with other changes, never alone.
const DECISION: &str = "autoscaling.ebb.dev/decision";

/// What the status tells.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) generation: Option<i64>,
    pub(super) want: Option<u32>,
    pub(super) ready: u32,
    pub(super) activity: Activity,
    pub(super) timed_out: bool,
    pub(super) initialized: bool,
    pub(super) sks: Option<&'a Sks>,
    pub(super) decision: String,
}

/// The next status, made from the one before.
pub(super) fn compute(before: &PodAutoscalerStatus, facts: &Facts<'_>, now: Duration) -> PodAutoscalerStatus {
    let mut next = before.clone();
    next.observed_generation = facts.generation;
    next.actual_scale = Some(i32::try_from(facts.ready).unwrap_or(i32::MAX));
    next.desired_scale = match facts.want {
        Some(want) => Some(i32::try_from(want).unwrap_or(i32::MAX)),
        // Nothing is known (after a restart): what was said before still holds. -1 is Knative's word for unknown.
        None => before.desired_scale.or(Some(-1)),
    };
    if let Some(sks) = facts.sks {
        next.service_name.clone_from(&sks.service_name);
        next.metrics_service_name.clone_from(&sks.private_service_name);
    }
    if facts.decision.is_empty() {
        next.annotations.remove(DECISION);
    } else {
        next.annotations.insert(DECISION.to_owned(), facts.decision.clone());
    }

    let mut conditions = next.manage(timestamp(now));
    conditions.initialize();
    match facts.sks {
        Some(sks) if !sks.private_service_name.is_empty() => match &sks.not_ready {
            None => conditions.mark_true(SKS_READY),
            Some(message) => conditions.mark_unknown(SKS_READY, "NotReady", message),
        },
        _ => conditions.mark_unknown(SKS_READY, "NotReady", "No Private Service Name"),
    };
    if facts.initialized {
        conditions.mark_true(SCALE_TARGET_INITIALIZED);
    }
    match facts.activity {
        Activity::Active(_) => conditions.mark_true(ACTIVE),
        Activity::Activating(_) => conditions.mark_unknown(
            ACTIVE,
            "Queued",
            "Requests to the target are being buffered as resources are provisioned.",
        ),
        Activity::Inactive(_) if facts.timed_out => {
            conditions.mark_false(ACTIVE, "TimedOut", "The target could not be activated.")
        }
        Activity::Inactive(_) => {
            conditions.mark_false(ACTIVE, "NoTraffic", "The target is not receiving traffic.")
        }
    };
    next
}

/// Whether a status is worth writing over another.
pub(super) fn differs(before: &PodAutoscalerStatus, next: &PodAutoscalerStatus) -> bool {
    let mut before = before.clone();
    match next.annotations.get(DECISION) {
        Some(decision) => before.annotations.insert(DECISION.to_owned(), decision.clone()),
        None => before.annotations.remove(DECISION),
    };
    before != *next
}

/// What the condition Active of a stored status says.
pub(super) fn activity_of(status: &PodAutoscalerStatus) -> Option<Activity> {
    let condition = status.condition(ACTIVE)?;
    let since = condition.last_transition_time.as_ref().map(|time| since_epoch(time.0)).unwrap_or_default();
    Some(match condition.status {
        Status::True => Activity::Active(since),
        Status::False => Activity::Inactive(since),
        Status::Unknown => Activity::Activating(since),
    })
}

/// A duration since the Unix epoch as a timestamp.
pub(super) fn timestamp(at: Duration) -> Timestamp {
    Timestamp::from_millisecond(i64::try_from(at.as_millis()).unwrap_or(i64::MAX))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A timestamp as a duration since the Unix epoch.
pub(crate) fn since_epoch(at: Timestamp) -> Duration {
    u64::try_from(at.as_millisecond()).map(Duration::from_millis).unwrap_or_default()
}
