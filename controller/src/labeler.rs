//! Which Routes lead to a Revision or a Configuration, kept in their labels and annotations.
//!
//! A revision is `active` while a Route names it, in its spec or in what it has resolved, or follows its Configuration and it is
//! the latest created there: so a new revision counts as reachable while it comes up. Otherwise it is `reserve`, from
//! when on the collector may count its age.

use ebb_api::conditions::ConditionedObject;
use ebb_api::meta::serving::{self as keys, routing_state};
use ebb_api::serving::{Configuration, Revision, Route};
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::plan::{annotation, label, rfc3339};

/// The Routes, comma-separated, that lead to a Configuration, or to any of its `revisions`.
pub fn of_configuration(
    configuration: &str,
    revisions: &[Arc<Revision>],
    routes: &[Arc<Route>],
) -> Option<String> {
    let own: BTreeSet<&str> = revisions.iter().filter_map(|r| r.metadata.name.as_deref()).collect();
    join(routes.iter().filter(|r| r.metadata.deletion_timestamp.is_none()).filter(|r| {
        let resolved = r.status.iter().flat_map(|s| &s.traffic);
        r.spec.traffic.iter().chain(resolved).any(|t| {
            t.configuration_name.as_deref() == Some(configuration)
                || t.revision_name.as_deref().is_some_and(|name| own.contains(name))
        })
    }))
}

fn join<'a>(routes: impl Iterator<Item = &'a Arc<Route>>) -> Option<String> {
    let names: BTreeSet<String> = routes.map(|r| r.name_any()).collect();
    (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(","))
}

/// The merge patch for a Revision's metadata, if it is to change. `routes` are those that may lead to it.
pub fn of_revision(
    revision: &Revision,
    configuration: Option<&Configuration>,
    routes: &[Arc<Route>],
    now: Timestamp,
) -> Option<Value> {
    let name = revision.name_any();
    let latest = configuration
        .and_then(|c| c.status.as_ref())
        .is_some_and(|s| s.latest_created_revision_name.as_deref() == Some(&name));
    let configuration = configuration.map(ResourceExt::name_any);
    let leads = |route: &&Arc<Route>| {
        if route.metadata.deletion_timestamp.is_some() {
            return false;
        }
        let resolved = route.status.iter().flat_map(|s| &s.traffic);
        // What was resolved before counts until the Route has settled on something else.
        let named =
            route.spec.traffic.iter().chain(resolved).any(|t| t.revision_name.as_deref() == Some(&name));
        let follows = route.spec.traffic.iter().any(|t| {
            t.revision_name.is_none()
                && t.configuration_name.is_some()
                && t.configuration_name == configuration
        });
        let unsettled = !(route.is_ready() || route.is_failed());
        let before = annotation(&revision.metadata, keys::ROUTES)
            .is_some_and(|list| list.split(',').any(|r| r == route.name_any()));
        named || (follows && latest) || (unsettled && before)
    };
    let wanted = join(routes.iter().filter(leads));
    let state = if wanted.is_some() { routing_state::ACTIVE } else { routing_state::RESERVE };
    let is = label(&revision.metadata, keys::ROUTING_STATE);
    // A revision that no Route has noticed yet stays pending: its Route may be on its way.
    let pending = wanted.is_none() && is == Some(routing_state::PENDING);
    if pending || (is == Some(state) && annotation(&revision.metadata, keys::ROUTES) == wanted.as_deref()) {
        return None;
    }
    let mut annotations = json!({keys::ROUTES: wanted});
    if is != Some(state) {
        annotations[keys::ROUTING_STATE_MODIFIED] = json!(rfc3339(now));
    }
    Some(json!({"metadata": {"labels": {keys::ROUTING_STATE: state}, "annotations": annotations}}))
}

#[cfg(test)]
mod tests;
