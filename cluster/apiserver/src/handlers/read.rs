//! get and list.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};

use super::Ctx;
use crate::accept::Shape;
use crate::convert;
use crate::error::ApiError;
use crate::query::{ListOptions, Match};
use crate::registry::{Columns, Resource};
use crate::reply::{self, Reply};
use crate::store::Object;

/// One object.
pub(crate) async fn get(ctx: &Ctx) -> Result<Reply, ApiError> {
    ctx.query.revision(true)?;
    let object = match ctx.accept.shape {
        Shape::Partial => find(ctx)?,
        _ => find_shown(ctx).await?,
    };
    Ok(reply::stored(StatusCode::OK, ctx.accept, &ctx.resource, ctx.include, &object))
}

/// The object the request names.
pub(crate) fn find(ctx: &Ctx) -> Result<Arc<Object>, ApiError> {
    ctx.server
        .store
        .get(&ctx.resource.storage, &ctx.namespace, ctx.object_name())
        .ok_or_else(|| ApiError::not_found(ctx.subject()))
}

/// The same, in the version of the request.
pub(crate) async fn find_shown(ctx: &Ctx) -> Result<Arc<Object>, ApiError> {
    ctx.shown(find(ctx)?).await
}

/// Where a list goes on: after `key`, as of `revision`.
#[derive(Debug, PartialEq, Eq)]
struct Continue {
    revision: u64,
    after: (String, String),
}

impl Continue {
    fn encode(&self) -> String {
        let token =
            json!({"v": "meta.k8s.io/v1", "rv": self.revision, "ns": self.after.0, "name": self.after.1});
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn decode(text: &str) -> Option<Self> {
        let token: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let text = |field: &str| token[field].as_str().map(str::to_owned);
        Some(Self { revision: token["rv"].as_u64()?, after: (text("ns")?, text("name")?) })
    }
}

/// The fields a selector may speak of.
pub(crate) fn check_fields(resource: &Resource, options: &ListOptions) -> Result<(), ApiError> {
    if !resource.builtin || matches!(resource.columns, Columns::Crd(_)) {
        for field in options.fields.fields() {
            let known = field == "metadata.name"
                || (field == "metadata.namespace" && resource.namespaced)
                || resource.selectable.iter().any(|path| path == field);
            if !known {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
        }
        return Ok(());
    }
    let more = selectable(resource);
    for field in options.fields.fields() {
        let known =
            field == "metadata.name" || (field == "metadata.namespace" && resource.kind != "Namespace");
        if known || more.is_some_and(|more| more.contains(&field)) {
            continue;
        }
        return Err(ApiError::bad_request(match more {
            Some(_) => format!("field label not supported: {field}"),
            None => {
                format!(
                    "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                )
            }
        }));
    }
    Ok(())
}

/// Fields of a built-in type that a selector may speak of, beyond name and namespace; none for types that offer only those.
fn selectable(resource: &Resource) -> Option<&'static [&'static str]> {
    Some(match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "Event") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "ReplicationController") => &["status.replicas"],
        ("batch", "Job") => &["status.successful"],
        _ => return None,
    })
}

/// Why a continue token cannot be read, where Go would say it in these words.
fn broken(token: &str) -> String {
    let bad = token.bytes().position(|byte| !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'_'));
    match bad {
        Some(at) => format!("illegal base64 data at input byte {at}"),
        None => "it is not one of this server's".to_owned(),
    }
}

/// The objects that a list or watch selects, and the revision at which they were so. As they are stored: see [`settled`].
pub(crate) fn select(ctx: &Ctx, options: &ListOptions) -> (u64, Vec<Arc<Object>>) {
    let namespace = ctx.resource.namespaced.then_some(ctx.namespace.as_str()).filter(|n| !n.is_empty());
    if let (Some(name), true) = (options.fields.name(), namespace.is_some() || !ctx.resource.namespaced) {
        // Selecting one name is a look-up: what `kubectl wait` and single-object informers do.
        let revision = ctx.server.store.revision();
        let object = ctx.server.store.get(&ctx.resource.storage, namespace.unwrap_or_default(), name);
        let objects =
            object.into_iter().filter(|object| selects(&ctx.resource, options, &object.value)).collect();
        return (revision, objects);
    }
    let (revision, mut objects) = ctx.server.store.list(&ctx.resource.storage, namespace);
    if !options.labels.is_empty() || !options.fields.is_empty() {
        objects.retain(|object| object.value.look(|value| selects(&ctx.resource, options, value)));
    }
    (revision, objects)
}

/// Of selected objects those that are selected in the version of the request, and in that version, where a webhook must be asked.
pub(crate) async fn settled(
    ctx: &Ctx,
    options: &ListOptions,
    objects: Vec<Arc<Object>>,
) -> Result<Vec<Arc<Object>>, ApiError> {
    if ctx.resource.conversion.is_none() || (ctx.accept.shape == Shape::Partial && options.fields.is_empty())
    {
        return Ok(objects);
    }
    let mut objects = convert::webhook::shown(&ctx.server, &ctx.resource, objects).await?;
    objects.retain(|object| object.value.look(|value| selects(&ctx.resource, options, value)));
    Ok(objects)
}

/// Does the request select this stored object? Where only a webhook knows, it may.
pub(crate) fn selects(resource: &Resource, options: &ListOptions, object: &Value) -> bool {
    if options.fields.is_empty() {
        return options.labels.matches(object);
    }
    if resource.conversion.is_some() && convert::is_needed(resource, object) {
        let named = options.fields.name().is_none_or(|name| name == crate::meta::name(object));
        return named && options.labels.matches(object);
    }
    options.selects(&convert::from_storage(resource, object))
}

/// A list.
pub(crate) async fn list(ctx: &Ctx) -> Result<Reply, ApiError> {
    let options = ListOptions::from_query(&ctx.query)?;
    check_fields(&ctx.resource, &options)?;
    let current = ctx.server.store.revision();
    if let Some(wanted) = options.revision {
        if options.revision_match == Some(Match::Exact) && wanted != current {
            return Err(ApiError::expired(format!(
                "The provided resource version {wanted} is not available: only the latest is kept"
            )));
        }
        if wanted > current {
            let mut error =
                ApiError::unavailable(format!("Too large resource version: {wanted}, current: {current}"));
            error.code = StatusCode::GATEWAY_TIMEOUT;
            error.reason = "Timeout";
            error.details = Some(
                json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1}),
            );
            return Err(error);
        }
    }
    let (mut revision, mut objects) = select(ctx, &options);
    if !options.fields.is_empty() {
        // How many there are, and so the page, is known only then.
        objects = settled(ctx, &options, objects).await?;
    }
    if let Some(token) = &options.continue_token {
        if options.revision.is_some_and(|revision| revision > 0) {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = Continue::decode(token).ok_or_else(|| {
            ApiError::bad_request(format!(
                "invalid continue token: continue key is not valid: {}",
                broken(token)
            ))
        })?;
        if !ctx.server.store.reaches_back_to(&ctx.resource.storage, token.revision) {
            return Err(ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
            ));
        }
        // A watch from the first page's revision replays what changed between the pages.
        revision = token.revision;
        let from =
            objects.partition_point(|object| path(object) <= format!("{}/{}", token.after.0, token.after.1));
        objects.drain(..from);
    }
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(limit) = options.limit
        && objects.len() > limit
    {
        if options.labels.is_empty() && options.fields.is_empty() {
            metadata["remainingItemCount"] = (objects.len() - limit).into();
        }
        objects.truncate(limit);
        if let Some(last) = objects.last() {
            let after = (last.key.namespace.clone(), last.key.name.clone());
            metadata["continue"] = Continue { revision, after }.encode().into();
        }
    }
    let objects = settled(ctx, &options, objects).await?;
    Ok(reply::list(ctx.accept, &ctx.resource, ctx.include, &objects, &metadata))
}

fn path(object: &Object) -> String {
    format!("{}/{}", object.key.namespace, object.key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens() {
        let token = Continue { revision: 7, after: ("ns".into(), "n".into()) };
        assert_eq!(Continue::decode(&token.encode()), Some(token));
        assert_eq!(Continue::decode("nonsense"), None);
    }
}
