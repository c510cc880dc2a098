//! Service -> Configuration and Route of its name.

use ebb_api::conditions::{Conditioned, ConditionedObject};
use ebb_api::meta::serving as keys;
use ebb_api::serving::{
    Configuration, ConfigurationSpec, Revision, Route, RouteSpec, Service, TrafficTarget,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use std::collections::BTreeMap;

use crate::configuration::is_of;
use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, controlled_by, owner};

/// What a Service's plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The Service.
    pub service: &'a Service,
    /// The Configuration of its name.
    pub configuration: Option<&'a Configuration>,
    /// The Route of its name.
    pub route: Option<&'a Route>,
    /// The Revision that has the name that the Service gives its next one, whoever owns it.
    pub named: Option<&'a Revision>,
}

/// The name that a Service gives its next Revision.
pub fn own_name(service: &Service) -> Option<&str> {
    service.spec.template.metadata.name.as_deref().filter(|name| !name.is_empty())
}

/// Decides about a Service.
pub fn plan(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let service = observed.service;
    if service.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let uid = service.metadata.uid.as_deref();
    let mut status = service.status.clone().unwrap_or_default();
    let mut conditions = status.manage(now);
    conditions.initialize();

    let name = service.name_any();
    let mut reconciled = false;
    match observed.configuration {
        Some(live) if !controlled_by(&live.metadata, uid) => {
            let message = format!("There is an existing Configuration {name:?} that we do not own.");
            conditions.mark_false("ConfigurationsReady", "NotOwned", &message);
        }
        live => {
            if live.is_none() {
                plan.note("Created", format!("Created Configuration {name:?}"));
            }
            let changes = plan.ensure(live, &configuration(service), Compare::Exact(&[keys::ROUTES]));
            let outdated = "The Configuration is still working to reflect the latest desired specification.";
            propagate(&mut conditions, "ConfigurationsReady", live, changes, outdated);
            reconciled = !changes && live.is_some_and(is_current);
        }
    }
    // A Revision of the user's naming may be somebody else's, or an older one of other content: the Route waits until it is known
    // that it is not.
    let conflict = observed.configuration.zip(observed.named).filter(|(c, n)| !is_of(n, c));
    match (observed.route, own_name(service)) {
        (_, Some(_)) if !reconciled => {}
        (_, Some(taken)) if conflict.is_some() => {
            let message = format!(
                "The revision name {taken:?} is taken by a conflicting Revision, so traffic will not be migrated"
            );
            conditions.mark_false("RoutesReady", "RevisionNameTaken", &message);
        }
        (Some(live), _) if !controlled_by(&live.metadata, uid) => {
            let message = format!("There is an existing Route {name:?} that we do not own.");
            conditions.mark_false("RoutesReady", "NotOwned", &message);
        }
        (live, _) => {
            if live.is_none() {
                plan.note("Created", format!("Created Route {name:?}"));
            }
            let changes = plan.ensure(live, &route(service), Compare::Exact(&[]));
            let outdated = "The Route is still working to reflect the latest desired specification.";
            propagate(&mut conditions, "RoutesReady", live, changes, outdated);
        }
    }

    if let Some(found) = observed.configuration.and_then(|c| c.status.as_ref()) {
        status.latest_created_revision_name.clone_from(&found.latest_created_revision_name);
        status.latest_ready_revision_name.clone_from(&found.latest_ready_revision_name);
    }
    if let Some(found) = observed.route.and_then(|r| r.status.as_ref()) {
        status.url.clone_from(&found.url);
        status.address.clone_from(&found.address);
        status.traffic.clone_from(&found.traffic);
    }
    // The Route may still be Ready for the revision before: only when it sends to the new one is the Service done.
    let behind = status.is_true("ConfigurationsReady")
        && status.is_true("RoutesReady")
        && status
            .traffic
            .iter()
            .any(|t| t.latest_revision == Some(true) && t.revision_name != status.latest_ready_revision_name);
    if behind {
        let message = "Traffic is not yet migrated to the latest revision.";
        status.manage(now).mark_unknown("RoutesReady", "TrafficNotMigrated", message);
    }
    status.set_observed_generation(service.metadata.generation);
    plan.set_status(service.status.as_ref(), &status);
    plan
}

/// Whether the status is about the present spec.
fn is_current<K: ConditionedObject>(child: &K) -> bool {
    child.status_ref().is_some_and(|s| s.observed_generation() == child.generation())
}

fn propagate<K: ConditionedObject>(
    conditions: &mut ebb_api::conditions::Manager<'_>,
    type_: &str,
    child: Option<&K>,
    changes: bool,
    outdated: &str,
) {
    let Some(child) = child else {
        conditions.mark_unknown(type_, "", "");
        return;
    };
    if !changes && is_current(child) || child.status_ref().is_none() {
        conditions.propagate(type_, child.condition("Ready"));
    } else {
        conditions.mark_unknown(type_, "OutOfDate", outdated);
    }
}

fn child_meta(service: &Service, drop: &[&str]) -> ObjectMeta {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(keys::SERVICE.into(), service.name_any());
    labels.extend(service.metadata.uid.clone().map(|uid| (keys::SERVICE_UID.to_owned(), uid)));
    let mut annotations: BTreeMap<_, _> = service.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !CLIENT_ANNOTATIONS.contains(&key.as_str()) && !drop.contains(&key.as_str()));
    ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(owner(service)),
        ..ObjectMeta::default()
    }
}

/// The Configuration of a Service.
pub fn configuration(service: &Service) -> Configuration {
    Configuration {
        metadata: child_meta(service, keys::ROLLOUT_DURATION.0),
        spec: ConfigurationSpec { template: service.spec.template.clone() },
        status: None,
    }
}

/// The Route of a Service: targets without a revision follow its Configuration.
pub fn route(service: &Service) -> Route {
    let target = |target: &TrafficTarget| {
        let mut target = target.clone();
        if target.revision_name.as_ref().is_none_or(String::is_empty) {
            target.configuration_name = service.metadata.name.clone();
            target.revision_name = None;
        }
        target
    };
    Route {
        metadata: child_meta(service, &[]),
        spec: RouteSpec { traffic: service.spec.traffic.iter().map(target).collect() },
        status: None,
    }
}

#[cfg(test)]
mod tests;
