//! Service -> Configuration and Route of its name.

use ebb_api::conditions::{Conditioned, ConditionedObject, READY, Status};
use ebb_api::meta::serving as keys;
use ebb_api::serving::{
    Configuration, ConfigurationSpec, Revision, Route, RouteSpec, Service, ServiceStatus, TrafficTarget,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use std::collections::BTreeMap;

use crate::configuration::is_taken;
use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, cause_of, controlled_by, owner};

const CONFIGURATIONS: &str = "ConfigurationsReady";
const ROUTES: &str = "RoutesReady";

/// What a Service's plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The Service.
    pub service: &'a Service,
    /// The Configuration of its name.
    pub configuration: Option<&'a Configuration>,
    /// The Route of its name.
    pub route: Option<&'a Route>,
    /// The Revision that has the name which the Service gives to its next one.
    pub named: Option<&'a Revision>,
}

/// Decides about a Service.
pub fn plan(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let service = observed.service;
    if service.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = service.status.clone().unwrap_or_default();
    status.manage(now).initialize();
    // Where the user names the revision, traffic must not move before the Configuration has looked at that name.
    let own_name = service.spec.template.metadata.name.as_deref().filter(|name| !name.is_empty());
    let reconciled = configurations_ready(&mut plan, observed, &mut status, now);
    let taken = own_name
        .filter(|_| reconciled)
        .filter(|_| observed.configuration.is_some_and(|c| is_taken(c, observed.named)));
    match (own_name, taken) {
        (_, Some(name)) => {
            let message = format!(
                "The revision name {name:?} is taken by a conflicting Revision, so traffic will not be migrated"
            );
            status.manage(now).mark_false(ROUTES, "RevisionNameTaken", &message);
        }
        (Some(_), None) if !reconciled => {}
        _ => routes_ready(&mut plan, observed, &mut status, now),
    }
    status.set_observed_generation(service.metadata.generation);
    tell(&mut plan, service.status.as_ref(), &status);
    plan.set_status(service.status.as_ref(), &status);
    plan
}

/// Makes the Configuration and takes over what it says; whether it speaks about the Service as it is.
fn configurations_ready(
    plan: &mut Plan,
    observed: &Observed<'_>,
    status: &mut ServiceStatus,
    now: Timestamp,
) -> bool {
    let service = observed.service;
    let name = service.name_any();
    let wanted = configuration(service);
    let live = match observed.configuration {
        Some(live) if !controlled_by(&live.metadata, service.metadata.uid.as_deref()) => {
            let message = format!("There is an existing Configuration {name:?} that we do not own.");
            status.manage(now).mark_false(CONFIGURATIONS, "NotOwned", &message);
            return true;
        }
        live => live,
    };
    if live.is_none() {
        plan.note("Created", format!("Created Configuration {name:?}"));
    }
    let changes = plan.ensure(live, &wanted, Compare::Exact(&[keys::ROUTES]));
    if let Some(found) = live.and_then(|c| c.status.as_ref()) {
        status.latest_created_revision_name.clone_from(&found.latest_created_revision_name);
        status.latest_ready_revision_name.clone_from(&found.latest_ready_revision_name);
    }
    let outdated = "The Configuration is still working to reflect the latest desired specification.";
    propagate(status, CONFIGURATIONS, live.filter(|_| !changes), outdated, now)
}

/// Makes the Route and takes over what it says.
fn routes_ready(plan: &mut Plan, observed: &Observed<'_>, status: &mut ServiceStatus, now: Timestamp) {
    let service = observed.service;
    let name = service.name_any();
    let live = match observed.route {
        Some(live) if !controlled_by(&live.metadata, service.metadata.uid.as_deref()) => {
            let message = format!("There is an existing Route {name:?} that we do not own.");
            status.manage(now).mark_false(ROUTES, "NotOwned", &message);
            return;
        }
        live => live,
    };
    if live.is_none() {
        plan.note("Created", format!("Created Route {name:?}"));
    }
    let wanted = route(service);
    let changes = plan.ensure(live, &wanted, Compare::Exact(&[]));
    let found = live.and_then(|r| r.status.as_ref());
    if let Some(found) = found {
        status.url.clone_from(&found.url);
        status.address.clone_from(&found.address);
        status.traffic.clone_from(&found.traffic);
    }
    let outdated = "The Route is still working to reflect the latest desired specification.";
    propagate(status, ROUTES, live.filter(|_| !changes), outdated, now);
    // The Route may still be Ready for the revision before: only when it sends to the new one is the Service done.
    if status.is_true(ROUTES) && !has_moved(&wanted, &status.traffic, status) {
        let message = "Traffic is not yet migrated to the latest revision.";
        status.manage(now).mark_unknown(ROUTES, "TrafficNotMigrated", message);
    }
}

/// Whether the traffic is as the Route wants it, with the latest ready revision where it follows the Configuration.
fn has_moved(wanted: &Route, traffic: &[TrafficTarget], status: &ServiceStatus) -> bool {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let is = |want: &TrafficTarget, got: &TrafficTarget| {
        let revision = match &want.revision_name {
            Some(name) => Some(name.clone()),
            None => status.latest_ready_revision_name.clone(),
        };
        text(&revision) == text(&got.revision_name)
            && text(&want.tag) == text(&got.tag)
            && want.percent.unwrap_or_default() == got.percent.unwrap_or_default()
    };
    let wanted = &wanted.spec.traffic;
    wanted.len() == traffic.len() && wanted.iter().zip(traffic).all(|(want, got)| is(want, got))
}

/// Takes over what a child says about itself, if that is about what it is to be now; whether it is.
fn propagate<K: ConditionedObject>(
    status: &mut ServiceStatus,
    type_: &str,
    child: Option<&K>,
    outdated: &str,
    now: Timestamp,
) -> bool {
    let speaks =
        |child: &&K| child.status_ref().is_some_and(|s| s.observed_generation() == child.generation());
    match child.filter(speaks) {
        Some(child) => {
            status.manage(now).propagate(type_, child.condition(READY));
            true
        }
        None => {
            status.manage(now).mark_unknown(type_, "OutOfDate", outdated);
            false
        }
    }
}

/// Tells the story of the Service: its revisions, what keeps it, and that it is Ready.
fn tell(plan: &mut Plan, before: Option<&ServiceStatus>, after: &ServiceStatus) {
    let none = ServiceStatus::default();
    let before = before.unwrap_or(&none);
    if let Some(name) = &after.latest_created_revision_name
        && before.latest_created_revision_name.as_ref() != Some(name)
    {
        plan.note("RevisionCreated", format!("Created Revision {name:?}"));
    }
    for (type_, reason) in [(CONFIGURATIONS, "RevisionFailed"), (ROUTES, "RouteFailed")] {
        let said = |status: &ServiceStatus| {
            let condition = status.condition(type_).filter(|c| c.status != Status::True)?;
            let cause = cause_of(condition.reason.as_deref(), condition.message.as_deref());
            Some((condition.status, cause))
        };
        let passing = |status: &ServiceStatus| {
            let reason = status.condition(type_).and_then(|c| c.reason.clone()).unwrap_or_default();
            ["", "OutOfDate"].contains(&reason.as_str()) || type_ == ROUTES
        };
        match said(after).filter(|said_now| said(before).as_ref() != Some(said_now)) {
            Some((Status::False, cause)) => plan.warn(reason, cause),
            Some((Status::Unknown, cause)) if !passing(after) => plan.warn("RevisionNotReady", cause),
            _ => {}
        }
    }
    if let Some(name) = &after.latest_ready_revision_name
        && before.latest_ready_revision_name.as_ref() != Some(name)
    {
        plan.note("LatestReadyUpdate", format!("Revision {name:?} is ready, and the latest that is"));
    }
    if after.is_true(READY) && !before.is_true(READY) {
        let url = after.url.as_deref().unwrap_or_default();
        plan.note("ServiceReady", format!("Service is ready at {url}").trim_end_matches(" at ").to_owned());
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
