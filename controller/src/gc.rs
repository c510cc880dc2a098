//! Deletes old Revisions that get no traffic.

use ebb_api::conditions::ConditionedObject;
use ebb_api::config::Gc;
use ebb_api::meta::serving::{self as keys, routing_state};
use ebb_api::serving::{Configuration, Revision};
use jiff::Timestamp;
use kube::ResourceExt;
use std::sync::Arc;
use std::time::Duration;

use crate::plan::{Plan, annotation, label};

/// Decides which revisions of a Configuration go.
///
/// Never one that has traffic, that is the latest created or ready, that is annotated no-gc, or that is not settled. Of the others
/// those beyond the maximum go, oldest first, and those that are older than both times, down to the minimum.
pub fn plan(configuration: &Configuration, revisions: &[Arc<Revision>], config: &Gc, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let status = configuration.status.as_ref();
    let latest: Vec<&str> = status
        .iter()
        .flat_map(|s| [s.latest_created_revision_name.as_deref(), s.latest_ready_revision_name.as_deref()])
        .flatten()
        .collect();
    let mut idle: Vec<&Arc<Revision>> = revisions
        .iter()
        .filter(|r| r.metadata.deletion_timestamp.is_none())
        .filter(|r| label(&r.metadata, keys::ROUTING_STATE) == Some(routing_state::RESERVE))
        .filter(|r| !latest.contains(&r.name_any().as_str()))
        .filter(|r| annotation(&r.metadata, keys::NO_GC) != Some("true"))
        .filter(|r| r.is_ready() || r.is_failed())
        .collect();
    let least = usize::try_from(config.min_non_active_revisions).unwrap_or_default();
    if idle.len() <= least {
        return plan;
    }
    idle.sort_by_key(|r| last_active(r));
    let mut left = idle.len();
    let most = config.max_non_active_revisions.and_then(|m| usize::try_from(m).ok());
    for revision in idle {
        if left <= least {
            break;
        }
        let due = due(revision, config, now);
        if most.is_some_and(|most| left > most) || due == Some(Duration::ZERO) {
            plan.delete(&**revision);
            left -= 1;
        } else if let Some(wait) = due {
            plan.again(wait + Duration::from_secs(1));
        }
    }
    plan
}

fn last_active(revision: &Revision) -> Option<Timestamp> {
    annotation(&revision.metadata, keys::ROUTING_STATE_MODIFIED)
        .and_then(|t| t.parse().ok())
        .or_else(|| revision.metadata.creation_timestamp.as_ref().map(|t| t.0))
}

/// How long until the revision is old enough; none if never.
fn due(revision: &Revision, config: &Gc, now: Timestamp) -> Option<Duration> {
    let (created, active) = (config.retain_since_create_time?, config.retain_since_last_active_time?);
    let left = |since: Option<Timestamp>, keep: Duration| {
        let age =
            since.map_or(Duration::MAX, |t| Duration::try_from(now.duration_since(t)).unwrap_or_default());
        keep.saturating_sub(age)
    };
    let made = revision.metadata.creation_timestamp.as_ref().map(|t| t.0);
    Some(left(made, created).max(left(last_active(revision), active)))
}

#[cfg(test)]
mod tests;
