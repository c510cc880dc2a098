//! Configuration -> Revisions, one for each generation of its template.

use ebb_api::conditions::{Condition, Conditioned, ConditionedObject, READY, Status};
use ebb_api::meta::serving::{self as keys, routing_state};
use ebb_api::serving::{Configuration, Revision};
use ebb_api::{names, serving};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::plan::{
    Change, Compare, Plan, annotation, cause_of, controlled_by, ensure, label, owner, rfc3339,
};

/// What a Configuration's plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The Configuration.
    pub configuration: &'a Configuration,
    /// Revisions with the Configuration's label.
    pub revisions: &'a [std::sync::Arc<Revision>],
    /// The Revision that has the name the next one would get, whoever owns it.
    pub named: Option<&'a Revision>,
    /// Routes that lead to it, comma-separated.
    pub routes: Option<&'a str>,
    /// What the API server said to the last attempt, if it refused that.
    pub refused: Option<&'a str>,
}

/// The name of the Revision of the present generation.
pub fn revision_name(configuration: &Configuration) -> String {
    match configuration.spec.template.metadata.name.as_deref() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => names::child(&configuration.name_any(), &format!("-{:05}", generation(&configuration.metadata))),
    }
}

fn generation(metadata: &ObjectMeta) -> i64 {
    metadata.generation.unwrap_or_default()
}

fn stamped_at(revision: &Revision) -> Option<i64> {
    label(&revision.metadata, keys::CONFIGURATION_GENERATION)?.parse().ok()
}

/// Decides about a Configuration.
pub fn plan(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let configuration = observed.configuration;
    if configuration.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let mut status = configuration.status.clone().unwrap_or_default();
    status.manage(now).initialize();

    match latest_created(observed) {
        Err(message) => creation_failed(&mut plan, &mut status, &message, now),
        Ok(None) => {
            let revision = make(configuration, now);
            let name = revision.name_any();
            plan.then.extend(ensure::<Revision>(None, &revision, Compare::Exists));
            match observed.refused {
                // It is tried again all the same: a quota may have been raised.
                Some(why) => creation_failed(&mut plan, &mut status, why, now),
                None => {
                    plan.note("Created", format!("Created Revision {name:?}"));
                    status.latest_created_revision_name = Some(name.clone());
                    status.manage(now).mark_unknown(READY, "", "");
                }
            }
        }
        Ok(Some(latest)) => {
            let name = latest.name_any();
            status.latest_created_revision_name = Some(name.clone());
            let is_latest_ready = status.latest_ready_revision_name.as_deref() == Some(&name);
            let ready = latest.condition(READY);
            let message = ready.and_then(|c| c.message.clone()).unwrap_or_default();
            match ready.map_or(Status::Unknown, |c| c.status) {
                // Only for a moment in trouble: what was Ready stays so.
                Status::Unknown if is_latest_ready => {}
                // Why it takes so long, once that is known.
                Status::Unknown if !message.is_empty() => {
                    let reason = ready.and_then(|c| c.reason.as_deref()).unwrap_or_default();
                    let text = format!("Revision {name:?} is not ready yet: {message}");
                    status.manage(now).mark_unknown(READY, reason, &text);
                }
                Status::Unknown => {
                    status.manage(now).mark_unknown(READY, "", "");
                }
                Status::True => {
                    if status.latest_ready_revision_name.is_none() {
                        plan.note("ConfigurationReady", "Configuration becomes ready");
                    }
                }
                Status::False => {
                    let text = format!("Revision {name:?} failed with message: {message}.");
                    let before = status.condition(READY).cloned();
                    status.manage(now).mark_false(READY, "RevisionFailed", &text);
                    if changed(before.as_ref(), status.condition(READY)) {
                        let (reason, which) = match is_latest_ready {
                            true => ("LatestReadyFailed", "ready"),
                            false => ("LatestCreatedFailed", "created"),
                        };
                        let why = ready.map(|c| cause_of(c.reason.as_deref(), c.message.as_deref()));
                        plan.warn(
                            reason,
                            format!(
                                "Latest {which} revision {name:?} has failed: {}",
                                why.unwrap_or_default()
                            ),
                        );
                    }
                }
            }
            ready_one(&mut plan, observed, &mut status, latest, now);
        }
    }
    if annotation(&configuration.metadata, keys::ROUTES) != observed.routes {
        let target =
            crate::plan::Target::of::<Configuration>(configuration.namespace(), configuration.name_any());
        let patch = serde_json::json!({"metadata": {"annotations": {keys::ROUTES: observed.routes}}});
        plan.then.push(Change::Patch(target, patch));
    }
    status.set_observed_generation(configuration.metadata.generation);
    plan.set_status(configuration.status.as_ref(), &status);
    plan
}

/// No Revision of the present generation can be made.
fn creation_failed(plan: &mut Plan, status: &mut serving::ConfigurationStatus, why: &str, now: Timestamp) {
    let before = status.condition(READY).cloned();
    let text = format!("Revision creation failed with message: {why}.");
    status.manage(now).mark_false(READY, "RevisionFailed", &text);
    if changed(before.as_ref(), status.condition(READY)) {
        plan.warn("CreationFailed", format!("Failed to create Revision: {why}"));
    }
}

/// Whether a condition says something else.
fn changed(before: Option<&Condition>, after: Option<&Condition>) -> bool {
    let said = |c: Option<&Condition>| c.map(|c| (c.status, c.reason.clone(), c.message.clone()));
    said(before) != said(after)
}

/// The ready revision is the newest that is Ready, and never older than the one before.
fn ready_one(
    plan: &mut Plan,
    observed: &Observed<'_>,
    status: &mut serving::ConfigurationStatus,
    latest: &Revision,
    now: Timestamp,
) {
    let before = status.latest_ready_revision_name.clone();
    let from = before
        .as_deref()
        .and_then(|name| observed.revisions.iter().find(|r| r.name_any() == name))
        .and_then(|r| stamped_at(r));
    let best = observed
        .revisions
        .iter()
        .map(AsRef::as_ref)
        .filter(|r| r.is_ready() && r.metadata.deletion_timestamp.is_none())
        .filter(|r| {
            let own = r.name_any() == latest.name_any();
            own || from.is_none() || stamped_at(r) >= from
        })
        .max_by_key(|r| (r.name_any() == latest.name_any(), stamped_at(r)));
    let Some(best) = best else { return };
    let name = best.name_any();
    if before.as_deref() != Some(&name) {
        plan.note("LatestReadyUpdate", format!("LatestReadyRevisionName updated to {name:?}"));
        status.latest_ready_revision_name = Some(name.clone());
    }
    if name == latest.name_any() {
        status.manage(now).mark_true(READY);
    }
}

/// Whether the name that a Configuration gives to its Revision belongs to another, or to one with another spec.
pub fn is_taken(configuration: &Configuration, named: Option<&Revision>) -> bool {
    let Some(named) = named else { return false };
    let own = controlled_by(&named.metadata, configuration.metadata.uid.as_deref());
    let wanted = generation(&configuration.metadata);
    !own || stamped_at(named) != Some(wanted) && named.spec != configuration.spec.template.spec
}

/// The Revision of the present generation, or what stands in its way.
fn latest_created<'a>(observed: &Observed<'a>) -> Result<Option<&'a Revision>, String> {
    let configuration = observed.configuration;
    let wanted = generation(&configuration.metadata);
    let own_name = configuration.spec.template.metadata.name.as_deref().filter(|n| !n.is_empty());
    if own_name.is_none() {
        let found = observed.revisions.iter().find(|r| {
            stamped_at(r) == Some(wanted) && controlled_by(&r.metadata, configuration.metadata.uid.as_deref())
        });
        if let Some(found) = found {
            return Ok(Some(found));
        }
    }
    match observed.named {
        Some(named) if is_taken(configuration, Some(named)) => {
            Err(format!("revisions.serving.knative.dev {:?} already exists", named.name_any()))
        }
        named => Ok(named),
    }
}

/// The Revision of the present generation.
pub fn make(configuration: &Configuration, now: Timestamp) -> Revision {
    let template = &configuration.spec.template;
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    let mut annotations = template.metadata.annotations.clone().unwrap_or_default();
    labels.insert(keys::CONFIGURATION.into(), configuration.name_any());
    labels.insert(keys::CONFIGURATION_GENERATION.into(), generation(&configuration.metadata).to_string());
    labels.extend(configuration.metadata.uid.clone().map(|uid| (keys::CONFIGURATION_UID.to_owned(), uid)));
    for key in [keys::SERVICE, keys::SERVICE_UID] {
        labels.extend(label(&configuration.metadata, key).map(|v| (key.to_owned(), v.to_owned())));
    }
    let routes = annotation(&configuration.metadata, keys::ROUTES);
    let state = if routes.is_some() { routing_state::ACTIVE } else { routing_state::PENDING };
    labels.insert(keys::ROUTING_STATE.into(), state.into());
    annotations.insert(keys::ROUTING_STATE_MODIFIED.into(), rfc3339(now));
    annotations.extend(routes.map(|r| (keys::ROUTES.to_owned(), r.to_owned())));
    let modifier = annotation(&configuration.metadata, keys::LAST_MODIFIER);
    annotations.extend(modifier.map(|m| (keys::CREATOR.to_owned(), m.to_owned())));
    Revision {
        metadata: ObjectMeta {
            name: Some(revision_name(configuration)),
            namespace: configuration.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(owner(configuration)),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests;
