//! The scale subresource, as `autoscaling/v1`.

use axum::body::Body;
use http::{Request, StatusCode};
use serde_json::{Value, json};

use super::write::{Outcome, Track, update_object};
use super::{Ctx, patch, read};
use crate::accept::Shape;
use crate::error::ApiError;
use crate::registry::ScalePaths;
use crate::reply::{self, Reply};
use crate::store::Object;
use crate::{convert, meta, request, table};

/// Attempts when others write too.
const ATTEMPTS: usize = 8;

fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |value, part| &value[part])
}

fn set(object: &mut Value, path: &str, new: Value) {
    let mut value = object;
    for part in path.split('.') {
        if !value.is_object() {
            *value = json!({});
        }
        value = &mut value[part];
    }
    *value = new;
}

/// A label selector as text.
fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let mut parts = Vec::new();
    // ReplicationControllers have a plain map.
    let labels = if selector["matchLabels"].is_object() || selector["matchExpressions"].is_array() {
        &selector["matchLabels"]
    } else {
        selector
    };
    for (key, value) in labels.as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

fn scale_of(paths: &ScalePaths, object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        meta::carry(field, &object["metadata"], &mut metadata);
    }
    let number = |path: &str| at(object, path).as_i64().unwrap_or(0);
    let mut status = json!({"replicas": number(&paths.status)});
    if let Some(path) = &paths.selector {
        status["selector"] = selector_text(at(object, path)).into();
    }
    let mut spec = json!({});
    if number(&paths.spec) != 0 {
        spec["replicas"] = number(&paths.spec).into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

fn answer(ctx: &Ctx, paths: &ScalePaths, object: &Value) -> Reply {
    let scale = scale_of(paths, object);
    let shown = match ctx.accept.shape {
        Shape::Table => table::scale(ctx.accept, ctx.include, &scale),
        Shape::Partial => reply::partial(ctx.accept, &scale),
        Shape::Plain => scale,
    };
    reply::value(StatusCode::OK, ctx.accept, &shown)
}

/// GET, PUT and PATCH of the scale.
pub(crate) async fn handle(ctx: &Ctx, verb: &str, request: Request<Body>) -> Result<Reply, ApiError> {
    let paths = ctx.resource.scale.clone().ok_or_else(ApiError::no_such_path)?;
    if verb == "get" {
        let object = read::find_shown(ctx).await?;
        return Ok(answer(ctx, &paths, &convert::from_storage(&ctx.resource, &object.value)));
    }
    if !matches!(verb, "update" | "patch") {
        return Err(ApiError::method_not_allowed());
    }
    let options = ctx.write_options(if verb == "patch" { "PatchOptions" } else { "UpdateOptions" })?;
    let body = request::read(request.into_body()).await?;
    for _ in 0..ATTEMPTS {
        let old = read::find_shown(ctx).await?;
        let wanted = wanted(ctx, &paths, verb, &old, &body)?;
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error = cluster_schema::FieldError::invalid(
                "spec.replicas",
                &replicas.into(),
                "must be greater than or equal to 0",
            );
            return Err(ApiError::invalid("autoscaling", "Scale", ctx.object_name(), &[error]));
        }
        let mut new = convert::from_storage(&ctx.resource, &old.value).into_owned();
        set(&mut new, &paths.spec, replicas.into());
        meta::unset(&mut new, "resourceVersion");
        if let Some(seen) = wanted["metadata"]["resourceVersion"].as_str().filter(|seen| !seen.is_empty()) {
            meta::set(&mut new, "resourceVersion", seen);
        }
        // The write is one of the object itself: its spec, its generation.
        let inner = ctx.of(ctx.resource.clone(), ctx.object_name());
        // Of custom objects, upstream does not say whose a scaled field is.
        let tracking = if ctx.resource.builtin { Track::Update } else { Track::Applied };
        match update_object(&inner, &old, new, &options, tracking).await? {
            Outcome::Stored(object) => {
                let object = ctx.shown(object).await?;
                return Ok(answer(ctx, &paths, &convert::from_storage(&ctx.resource, &object.value)));
            }
            Outcome::Dry(object) => return Ok(answer(ctx, &paths, &object)),
            Outcome::Raced => {}
        }
    }
    Err(ApiError::modified(ctx.subject()))
}

fn wanted(ctx: &Ctx, paths: &ScalePaths, verb: &str, old: &Object, body: &[u8]) -> Result<Value, ApiError> {
    if verb == "update" {
        return request::decode(ctx.content_type.as_deref(), body);
    }
    let scale = scale_of(paths, &convert::from_storage(&ctx.resource, &old.value));
    let patch: Value = request::yaml(body)?;
    let mut new = match patch::kind(ctx)? {
        patch::Kind::Json => patch::run(ctx, patch::Kind::Json, &scale, &patch)?,
        // A scale has nothing but plain fields, on which all the others agree.
        _ => patch::run(ctx, patch::Kind::Merge, &scale, &patch)?,
    };
    if patch["metadata"]["resourceVersion"].is_null() {
        meta::unset(&mut new, "resourceVersion");
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_become_text() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "Exists"}]});
        assert_eq!(selector_text(&selector), "a=b,c in (d,e),f");
        assert_eq!(selector_text(&json!("x=y")), "x=y");
        assert_eq!(selector_text(&json!({"app": "web"})), "app=web");
    }
}
