//! patch: JSON patch, JSON merge patch, strategic merge patch and server-side apply.

use std::sync::Arc;

use cluster_schema::FieldError;
use cluster_schema::apply::{ApplyError, Manager, apply};
use cluster_schema::decode::go_text;
use cluster_schema::patch::{PatchError, json_patch, merge_patch, strategic_merge};
use http::StatusCode;
use serde_json::Value;

use super::Ctx;
use super::write::{Outcome, Track, check_fields, check_kind, create_object, update_object};
use crate::error::ApiError;
use crate::query::WriteOptions;
use crate::reply::Reply;
use crate::store::Object;
use crate::{convert, meta, request};

/// Attempts when others write too.
const ATTEMPTS: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Json,
    Merge,
    Strategic,
    Apply,
}

/// The kind of a patch, from its content type.
pub(crate) fn kind(ctx: &Ctx) -> Result<Kind, ApiError> {
    let media = ctx.content_type.as_deref().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match media {
        "application/json-patch+json" => Ok(Kind::Json),
        "application/merge-patch+json" => Ok(Kind::Merge),
        "application/strategic-merge-patch+json" if ctx.resource.builtin => Ok(Kind::Strategic),
        "application/apply-patch+yaml" => Ok(Kind::Apply),
        "application/strategic-merge-patch+json" => Err(ApiError::unsupported_media(
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        )),
        _ => Err(ApiError::unknown_patch()),
    }
}

/// PATCH on an object or its status.
pub(crate) async fn patch(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let kind = kind(ctx)?;
    let options = ctx.write_options("PatchOptions")?;
    if kind == Kind::Apply {
        return self::apply_patch(ctx, body, &options).await;
    }
    if ctx.query.get("force").is_some() {
        let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
        return Err(ApiError::options("PatchOptions", &[error]));
    }
    let patch: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    let (fits, wanted) = match kind {
        Kind::Json => (patch.is_array(), "[]handlers.jsonPatchOp"),
        _ => (patch.is_object(), "map[string]interface {}"),
    };
    if !fits {
        let got = cluster_schema::decode::kind(&patch);
        return Err(ApiError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {got} into Go value of type {wanted}"
        )));
    }
    for _ in 0..ATTEMPTS {
        let old = super::read::find_shown(ctx).await?;
        let new = patched(ctx, kind, &old, &patch, &options)?;
        match update_object(ctx, &old, new, &options, Track::Update).await? {
            Outcome::Raced => {}
            done => return done.reply(ctx, StatusCode::OK).await,
        }
    }
    Err(ApiError::modified(ctx.subject()))
}

fn patched(
    ctx: &Ctx,
    kind: Kind,
    old: &Arc<Object>,
    patch: &Value,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    let before = convert::from_storage(&ctx.resource, &old.value);
    let mut new = run(ctx, kind, &before, patch)?;
    // A patch that names no revision applies to whatever is there.
    if patch["metadata"]["resourceVersion"].is_null()
        && meta::text(&new, "resourceVersion") == meta::text(&before, "resourceVersion")
    {
        meta::unset(&mut new, "resourceVersion");
    }
    if meta::name(&new) != old.key.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            meta::name(&new),
            old.key.name
        )));
    }
    check_kind(ctx, &mut new)?;
    let (before, after) = (meta::uid(&before), meta::uid(&new));
    if !after.is_empty() && before != after {
        // A patch changes what is there: to another uid is no precondition, but a change of what cannot change.
        let error = FieldError::invalid("metadata.uid", &after.into(), "field is immutable");
        return Err(ctx.invalid(&old.key.name, &[error.clone(), error]));
    }
    if kind == Kind::Strategic
        && let Some(mismatch) = ctx.resource.schema().mismatch(&new)
    {
        let detail = mismatch.corrupt.unwrap_or_else(|| format!("unrecognized type: {}", mismatch.expected));
        let patch = go_text(patch);
        return Err(ApiError::invalid("", "", "", &[FieldError::invalid("patch", &patch.into(), detail)]));
    }
    check_fields(ctx, &mut new, options.field_validation)?;
    Ok(new)
}

/// The document with the patch applied.
pub(crate) fn run(ctx: &Ctx, kind: Kind, before: &Value, patch: &Value) -> Result<Value, ApiError> {
    match kind {
        Kind::Json => json_patch(before, patch).map_err(|error| {
            tracing::debug!(%error, name = ctx.object_name(), "a JSON patch does not apply");
            ApiError {
                code: StatusCode::UNPROCESSABLE_ENTITY,
                reason: "Invalid",
                message: "the server rejected our request due to an error in our request".to_owned(),
                details: Some(Value::Object(serde_json::Map::new())),
            }
        }),
        Kind::Merge => Ok(merge_patch(before, patch)),
        Kind::Strategic | Kind::Apply => strategic_merge(ctx.resource.schema(), before, patch)
            .map_err(|error: PatchError| ApiError::failure(error.to_string())),
    }
}

/// Server-side apply.
async fn apply_patch(ctx: &Ctx, body: &[u8], options: &WriteOptions) -> Result<Reply, ApiError> {
    if ctx.query.get("fieldManager").is_none() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        return Err(ApiError::options("PatchOptions", &[error]));
    }
    let mut applied = request::yaml(body)?;
    if !applied["apiVersion"].is_string() || !applied["kind"].is_string() {
        let (group, version) = match applied["apiVersion"].as_str().unwrap_or_default().rsplit_once('/') {
            Some((group, version)) => (group, version),
            None => ("", applied["apiVersion"].as_str().unwrap_or_default()),
        };
        let kind = applied["kind"].as_str().unwrap_or_default();
        return Err(ApiError::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
    }
    if applied["metadata"]["managedFields"].as_array().is_some_and(|list| !list.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    meta::unset(&mut applied, "managedFields");
    let placed = !meta::namespace(&applied).is_empty();
    check_kind(ctx, &mut applied)?;
    if !placed {
        // What the applier did not say is not in its words when they are refused.
        meta::unset(&mut applied, "namespace");
    }
    if meta::name(&applied).is_empty() {
        meta::set(&mut applied, "name", ctx.object_name());
    } else if meta::name(&applied) != ctx.object_name() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            meta::name(&applied),
            ctx.object_name()
        )));
    }
    admit_names(&mut applied);
    let api_version = ctx.resource.api_version();
    let manager = Manager {
        name: &options.field_manager,
        operation: "Apply",
        subresource: &ctx.sub,
        api_version: &api_version,
    };
    for _ in 0..ATTEMPTS {
        let old = match ctx.server.store.get(&ctx.resource.storage, &ctx.namespace, ctx.object_name()) {
            Some(old) => Some(ctx.shown(old).await?),
            None => None,
        };
        let before = old.as_ref().map(|object| convert::from_storage(&ctx.resource, &object.value));
        let merged =
            apply(ctx.resource.schema(), before.as_deref(), &applied, &manager, options.force, &meta::now())
                .map_err(|error| refused(&error))?;
        let mut merged = merged;
        if ctx.resource.namespaced {
            meta::set(&mut merged, "namespace", ctx.namespace.clone());
        }
        let (outcome, code) = match &old {
            Some(old) => {
                if applied["metadata"]["resourceVersion"].is_null() {
                    meta::unset(&mut merged, "resourceVersion");
                }
                (update_object(ctx, old, merged, options, Track::Applied).await?, StatusCode::OK)
            }
            None if !ctx.sub.is_empty() => return Err(ApiError::not_found(ctx.subject())),
            None => {
                if !meta::uid(&applied).is_empty() {
                    return Err(ApiError::conflict(
                        ctx.subject(),
                        "uid mismatch: the provided object specified a uid, and no existing object was found",
                    ));
                }
                match create_object(ctx, merged, options, Track::Applied).await {
                    Ok(outcome) => (outcome, StatusCode::CREATED),
                    // Somebody else made it since we looked: apply to that.
                    Err(error) if error.reason == "AlreadyExists" => continue,
                    Err(error) => return Err(error),
                }
            }
        };
        match outcome {
            Outcome::Raced => {}
            done => return done.reply(ctx, code).await,
        }
    }
    Err(ApiError::modified(ctx.subject()))
}

/// Server-set fields that some tools send back are no claim of theirs.
fn admit_names(applied: &mut Value) {
    for field in ["creationTimestamp", "selfLink", "generation", "deletionTimestamp"] {
        meta::unset(applied, field);
    }
}

fn refused(error: &ApplyError) -> ApiError {
    match error {
        ApplyError::Conflicts(conflicts) => {
            let list: Vec<(String, String)> =
                conflicts.iter().map(|conflict| (conflict.manager.clone(), conflict.field.clone())).collect();
            ApiError::apply_conflicts(&list)
        }
        other => ApiError::failure(other.to_string()),
    }
}
