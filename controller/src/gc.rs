//! Deletes old Revisions that get no traffic.

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
/// Never one that has traffic, that is the latest created or ready, or that is annotated no-gc. Of the others those go that are older than
/// both times (a time that is disabled does not count, and with both nothing is ever too old), those longest without traffic first, and then
/// as many as there are beyond the maximum; the minimum stays in any case.
pub fn plan(configuration: &Configuration, revisions: &[Arc<Revision>], config: &Gc, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let status = configuration.status.as_ref();
    let latest: Vec<&str> = status
        .iter()
        .flat_map(|s| [s.latest_created_revision_name.as_deref(), s.latest_ready_revision_name.as_deref()])
        .flatten()
        .collect();
    let no_gc =
        |r: &Revision| annotation(&r.metadata, keys::NO_GC).is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let mut idle: Vec<&Arc<Revision>> = revisions
        .iter()
        .filter(|r| r.metadata.deletion_timestamp.is_none())
        .filter(|r| label(&r.metadata, keys::ROUTING_STATE) == Some(routing_state::RESERVE))
        .filter(|r| !latest.contains(&r.name_any().as_str()) && !no_gc(r))
        .collect();
    idle.sort_by_key(|r| last_active(r));
    let least = usize::try_from(config.min_non_active_revisions).unwrap_or_default();
    let most = config.max_non_active_revisions.and_then(|m| usize::try_from(m).ok());
    let may_go = idle.len().saturating_sub(least);
    let (stale, fresh): (Vec<&Revision>, Vec<&Revision>) =
        idle.iter().map(|r| &***r).partition(|r| due(r, config, now) == Some(Duration::ZERO));
    let beyond = most.map_or(0, |most| (idle.len() - stale.len().min(may_go)).saturating_sub(most));
    let gone: Vec<&Revision> =
        stale.into_iter().take(may_go).chain(fresh.iter().copied().take(beyond)).collect();
    for revision in &gone {
        plan.note(
            "RevisionCollected",
            format!("Deleted Revision {:?}, which had no traffic", revision.name_any()),
        );
        plan.delete(*revision);
    }
    if idle.len() - gone.len() > least {
        let next = fresh.iter().skip(beyond).filter_map(|r| due(r, config, now)).min();
        next.into_iter().for_each(|wait| plan.again(wait + Duration::from_secs(1)));
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
    let left = |since: Option<Timestamp>, keep: Duration| {
        let age =
            since.map_or(Duration::MAX, |t| Duration::try_from(now.duration_since(t)).unwrap_or_default());
        keep.saturating_sub(age)
    };
    let made = revision.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let created = config.retain_since_create_time.map(|keep| left(made, keep));
    let active = config.retain_since_last_active_time.map(|keep| left(last_active(revision), keep));
    created.into_iter().chain(active).max()
}

#[cfg(test)]
mod tests;
