//! delete and deletecollection.
//!
//! An object with finalizers is only marked; it goes when the last finalizer is taken off it. A running pod is marked
//! with the time by which it must be gone, and goes when its node agent deletes it with grace 0.

use std::sync::Arc;
use std::time::Duration;

use cluster_schema::FieldError;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::Ctx;
use super::write::settle;
use crate::error::{ApiError, Subject};
use crate::query::{ListOptions, Query, dry_run_error};
use crate::registry::{Resource, crd};
use crate::reply::{self, Reply};
use crate::store::{Conflict, Expect, Object};
use crate::{admit, convert, meta, request};

/// Attempts when others write too.
const ATTEMPTS: usize = 8;
/// A pod's grace if it does not say.
const DEFAULT_GRACE: i64 = 30;

/// `DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    grace: Option<i64>,
    propagation: Option<String>,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

impl Options {
    pub(crate) fn parse(query: &Query, body: &Value) -> Result<Self, ApiError> {
        let text = |field: &str| {
            body[field].as_str().map(str::to_owned).or_else(|| query.get(field).map(str::to_owned))
        };
        let grace = match body["gracePeriodSeconds"].as_i64() {
            Some(grace) => Some(grace),
            None => query.number("gracePeriodSeconds")?.map(|grace| grace as i64),
        };
        let mut errors = Vec::new();
        let mut propagation = text("propagationPolicy");
        let orphan =
            body["orphanDependents"].as_bool().or_else(|| query.get("orphanDependents").map(|v| v == "true"));
        if let (Some(policy), Some(_)) = (&propagation, orphan) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", &policy.as_str().into(), detail));
        } else if orphan == Some(true) {
            propagation = Some("Orphan".to_owned());
        }
        if let Some(policy) = &propagation
            && !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground")
        {
            let supported = ["Foreground", "Background", "Orphan", "nil"];
            errors.push(FieldError::not_supported("propagationPolicy", &policy.as_str().into(), &supported));
        }
        let in_body = body["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let dry: Vec<&str> = in_body.chain(query.all("dryRun")).filter(|value| !value.is_empty()).collect();
        errors.extend(dry_run_error(&dry));
        if !errors.is_empty() {
            return Err(ApiError::options("DeleteOptions", &errors));
        }
        let dry_run = !dry.is_empty();
        let condition = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        Ok(Self {
            grace,
            propagation,
            uid: condition("uid"),
            revision: condition("resourceVersion"),
            dry_run,
        })
    }
}

fn options(ctx: &Ctx, body: &[u8]) -> Result<Options, ApiError> {
    let body = if body.is_empty() { json!({}) } else { request::decode(ctx.content_type.as_deref(), body)? };
    Options::parse(&ctx.query, &body)
}

/// DELETE on an object.
pub(crate) async fn delete(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let options = options(ctx, body)?;
    match delete_object(ctx, ctx.object_name(), &options).await? {
        Deleted::Gone(object) => {
            let mut details = json!({"name": object.key.name, "kind": ctx.resource.plural, "uid": meta::uid(&object.value)});
            if !ctx.resource.group.is_empty() {
                details["group"] = ctx.resource.group.clone().into();
            }
            // As upstream, pods and namespaces and such answer with their last state.
            if matches!(ctx.resource.kind.as_str(), "Pod" | "Service" | "Namespace" | "ServiceAccount")
                && ctx.resource.builtin
            {
                return Ok(reply::stored(StatusCode::OK, ctx.accept, &ctx.resource, ctx.include, &object));
            }
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
            Ok(reply::value(StatusCode::OK, ctx.accept, &status))
        }
        Deleted::Marked(object) => {
            let object = ctx.shown(object).await?;
            Ok(reply::stored(StatusCode::OK, ctx.accept, &ctx.resource, ctx.include, &object))
        }
    }
}

/// DELETE on a collection.
pub(crate) async fn collection(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let options = options(ctx, body)?;
    let selection = ListOptions::from_query(&ctx.query)?;
    super::read::check_fields(&ctx.resource, &selection)?;
    if ctx.resource.namespaced && ctx.namespace.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    let (revision, objects) = super::read::select(ctx, &selection);
    let objects = match selection.fields.is_empty() {
        true => objects,
        false => super::read::settled(ctx, &selection, objects).await?,
    };
    let mut deleted = Vec::with_capacity(objects.len());
    for object in objects {
        match delete_object(ctx, &object.key.name, &options).await {
            Ok(Deleted::Gone(object) | Deleted::Marked(object)) => deleted.push(object),
            Err(error) if error.code == StatusCode::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
    }
    let deleted = convert::webhook::shown(&ctx.server, &ctx.resource, deleted).await?;
    let metadata = json!({"resourceVersion": revision.to_string()});
    Ok(reply::list(ctx.accept, &ctx.resource, ctx.include, &deleted, &metadata))
}

/// What a deletion did.
pub(crate) enum Deleted {
    /// The object is no more.
    Gone(Arc<Object>),
    /// The object is marked and waits for its finalizers, or for the node agent.
    Marked(Arc<Object>),
}

/// Deletes one object of the context's type and namespace.
pub(crate) async fn delete_object(ctx: &Ctx, name: &str, options: &Options) -> Result<Deleted, ApiError> {
    let resource = &ctx.resource;
    let key = ctx.key(name);
    let subject = resource.subject(name);
    for attempt in 0..ATTEMPTS {
        let Some(old) = ctx.server.store.get(&key.kind, &key.namespace, name) else {
            return Err(ApiError::not_found(subject));
        };
        check(resource, options, &old)?;
        admit::delete(ctx, &old)?;
        if attempt == 0 {
            ctx.server.hooks.validate_deletion(ctx, &old, options.dry_run).await?;
        }
        let (new, grace_left) = marked(resource, &old.value, options, Timestamp::now());
        if options.dry_run {
            return Ok(Deleted::Marked(old));
        }
        let result = if !grace_left && is_finished(resource, &new) {
            ctx.server.store.remove(&key, old.revision).map(|commit| (commit, true))
        } else if meta::same(&old.value, &new) {
            return Ok(Deleted::Marked(old));
        } else {
            ctx.server.store.put(&key, Expect::Revision(old.revision), new).map(|commit| (commit, false))
        };
        match result {
            Ok((commit, gone)) => {
                let object = settle(ctx, commit).await?;
                if !gone && &*key.kind == crd::STORAGE {
                    admit::crds::clean_up(&ctx.server, &object.value);
                }
                return Ok(if gone { Deleted::Gone(object) } else { Deleted::Marked(object) });
            }
            Err(Conflict::Missing) => return Err(ApiError::not_found(subject)),
            Err(_) => tokio::time::sleep(Duration::from_millis(attempt as u64)).await,
        }
    }
    Err(ApiError::modified(subject))
}

fn check(resource: &Resource, options: &Options, old: &Object) -> Result<(), ApiError> {
    // Upstream names the kind here, not the resource.
    let subject = Subject { group: &resource.group, resource: &resource.kind, name: &old.key.name };
    let differs = |what: &str, wanted: &str, found: &str, perhaps: &str| {
        let cause = format!(
            "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {perhaps}"
        );
        Err(ApiError::conflict(subject, cause))
    };
    if let Some(uid) = &options.uid
        && uid != meta::uid(&old.value)
    {
        return differs("UID", uid, meta::uid(&old.value), "deleted and then recreated");
    }
    if let Some(revision) = &options.revision
        && *revision != old.revision.to_string()
    {
        return differs("ResourceVersion", revision, &old.revision.to_string(), "modified");
    }
    Ok(())
}

/// The object as the deletion leaves it, and whether it must be given time.
fn marked(resource: &Resource, old: &Value, options: &Options, now: Timestamp) -> (Value, bool) {
    let mut new = old.clone();
    let first = !meta::is_terminating(old);
    if first {
        let mut finalizers: Vec<String> = meta::finalizers(old).into_iter().map(str::to_owned).collect();
        let (wanted, other) = match options.propagation.as_deref() {
            Some("Orphan") => (Some("orphan"), "foregroundDeletion"),
            Some("Foreground") => (Some("foregroundDeletion"), "orphan"),
            Some("Background") => (None, "orphan"),
            _ => (None, ""),
        };
        finalizers.retain(|finalizer| {
            *finalizer != other
                && (options.propagation.as_deref() != Some("Background") || finalizer != "foregroundDeletion")
        });
        if let Some(wanted) = wanted
            && !finalizers.iter().any(|finalizer| finalizer == wanted)
        {
            finalizers.push(wanted.to_owned());
        }
        if resource.builtin && matches!(resource.kind.as_str(), "PersistentVolume" | "PersistentVolumeClaim")
        {
            // No volume is ever mounted here, so nothing protects one from its end.
            finalizers.retain(|finalizer| !finalizer.starts_with("kubernetes.io/pv"));
        }
        if resource.storage.as_ref() == crd::STORAGE {
            condition_terminating(&mut new, now);
            let cleanup = admit::crds::CLEANUP.to_owned();
            if !finalizers.contains(&cleanup) {
                finalizers.push(cleanup);
            }
        }
        if finalizers.is_empty() {
            meta::unset(&mut new, "finalizers");
        } else {
            meta::set(&mut new, "finalizers", finalizers);
        }
    }
    let grace = if resource.builtin && resource.kind == "Pod" { pod_grace(old, options) } else { 0 };
    let until = now.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if first {
        meta::set(&mut new, "deletionTimestamp", meta::rfc3339(until));
        meta::set(&mut new, "deletionGracePeriodSeconds", grace);
        // As upstream: the mark is a change of what is wanted.
        if let Some(generation) = old["metadata"]["generation"].as_i64() {
            meta::set(&mut new, "generation", generation + 1);
        }
        if resource.builtin && resource.kind == "Namespace" {
            new["status"]["phase"] = "Terminating".into();
        }
        return (new, grace > 0);
    }
    match (before, options.grace) {
        // Grace may be shortened, never extended.
        (Some(before), Some(asked)) if grace < before && asked < before => {
            meta::set(&mut new, "deletionTimestamp", meta::rfc3339(until));
            meta::set(&mut new, "deletionGracePeriodSeconds", grace);
            (new, grace > 0)
        }
        (Some(before), _) => (new, before > 0),
        (None, _) => (new, false),
    }
}

/// A definition that goes tells that its objects go first.
fn condition_terminating(definition: &mut Value, now: Timestamp) {
    let condition = json!({"type": "Terminating", "status": "True", "reason": "InstanceDeletionInProgress",
        "message": "CustomResource deletion is in progress", "lastTransitionTime": meta::rfc3339(now)});
    if let Some(conditions) = definition["status"]["conditions"].as_array_mut() {
        conditions.push(condition);
    }
}

/// How long a pod may take to stop: none if no node has it, or if it has ended.
fn pod_grace(pod: &Value, options: &Options) -> i64 {
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if ended || pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
        return 0;
    }
    options
        .grace
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64())
        // Below zero is upstream's way to say at once.
        .map_or(DEFAULT_GRACE, |grace| if grace < 0 { 1 } else { grace })
}

/// Is nothing left that keeps a marked object?
pub(crate) fn is_finished(resource: &Resource, object: &Value) -> bool {
    if !meta::is_terminating(object) || !meta::finalizers(object).is_empty() {
        return false;
    }
    if resource.builtin && resource.kind == "Namespace" {
        return object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    }
    object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn pod(node: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 10}})
    }

    fn resource(plural: &str) -> Arc<Resource> {
        Registry::new().snapshot().find("", "v1", plural).unwrap().clone()
    }

    #[test]
    fn a_running_pod_gets_its_grace_and_an_unscheduled_one_none() {
        let now = Timestamp::UNIX_EPOCH;
        let resource = resource("pods");
        let (new, wait) = marked(&resource, &pod("n"), &Options::default(), now);
        assert!(wait && !is_finished(&resource, &new));
        assert_eq!(new["metadata"]["deletionTimestamp"], "1970-01-01T00:00:10Z");
        let now_delete = Options { grace: Some(0), ..Options::default() };
        let (last, wait) = marked(&resource, &new, &now_delete, now);
        assert!(!wait && is_finished(&resource, &last), "the node agent's delete ends it");
        let (again, wait) = marked(&resource, &new, &Options::default(), now);
        assert!(wait && again == new, "a second plain delete changes nothing");
        let (new, wait) = marked(&resource, &pod(""), &Options::default(), now);
        assert!(!wait && is_finished(&resource, &new));
    }

    #[test]
    fn propagation_becomes_finalizers() {
        let object = json!({"metadata": {"name": "c", "finalizers": ["orphan", "x"]}});
        let with = |policy: &str| Options { propagation: Some(policy.to_owned()), ..Options::default() };
        let finalizers = |options: &Options| {
            let (new, _) = marked(&resource("configmaps"), &object, options, Timestamp::UNIX_EPOCH);
            meta::finalizers(&new).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(finalizers(&with("Foreground")), ["x", "foregroundDeletion"]);
        assert_eq!(finalizers(&with("Orphan")), ["orphan", "x"]);
        assert_eq!(finalizers(&with("Background")), ["x"]);
        assert_eq!(finalizers(&Options::default()), ["orphan", "x"]);
    }

    #[test]
    fn a_namespace_waits_for_its_own_finalizer() {
        let resource = resource("namespaces");
        let object = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}});
        let (mut new, _) = marked(&resource, &object, &Options::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(new["status"]["phase"], "Terminating");
        assert!(!is_finished(&resource, &new));
        new["spec"]["finalizers"] = json!([]);
        assert!(is_finished(&resource, &new));
    }
}
