//! Reviews and bindings: asked, answered, never stored.

use cluster_schema::FieldError;
use http::StatusCode;
use serde_json::{Value, json};

use super::Ctx;
use crate::auth::{User, token};
use crate::authorize::{self, Action, Attributes};
use crate::error::ApiError;
use crate::reply::{self, Reply};

/// POST on one of the review types, or on bindings.
pub(crate) async fn create(ctx: &Ctx, mut review: Value) -> Result<Reply, ApiError> {
    review["apiVersion"] = ctx.resource.api_version().into();
    review["kind"] = ctx.resource.kind.clone().into();
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    if matches!(ctx.resource.group.as_str(), "authentication.k8s.io" | "authorization.k8s.io")
        && !ctx.resource.kind.starts_with("Self")
        || ctx.resource.kind == "SelfSubjectAccessReview"
    {
        super::write::track_review(ctx, &mut review)?;
    }
    match ctx.resource.kind.as_str() {
        "Binding" => return bind(ctx, &review).await,
        "TokenReview" => review["status"] = token_review(ctx, &review["spec"]),
        "SelfSubjectReview" => {
            review["metadata"]["creationTimestamp"] = crate::meta::now().into();
            review["status"] = json!({"userInfo": ctx.user.info()});
        }
        "SelfSubjectAccessReview" => review["status"] = access(ctx, &ctx.user, &review["spec"])?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let spec = &review["spec"];
            let texts = |value: &Value| -> Vec<String> {
                value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let user = User {
                name: spec["user"].as_str().unwrap_or_default().to_owned(),
                uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
                groups: texts(&spec["groups"]),
                extra: spec["extra"].as_object().cloned().unwrap_or_default(),
            };
            let mut errors = Vec::new();
            if spec["resourceAttributes"].is_object() == spec["nonResourceAttributes"].is_object() {
                let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
                errors.push(FieldError::invalid("spec.resourceAttributes", &Value::Null, detail));
            }
            if user.name.is_empty() && user.groups.is_empty() {
                let detail = "at least one of user or group must be specified";
                errors.push(FieldError::invalid("spec.user", &"".into(), detail));
            }
            if !errors.is_empty() {
                return Err(ApiError::invalid(&ctx.resource.group, "", "", &errors));
            }
            review["status"] = access(ctx, &user, &review["spec"])?;
        }
        _ => review["status"] = rules(ctx, review["spec"]["namespace"].as_str().unwrap_or_default()),
    }
    Ok(reply::object(StatusCode::CREATED, ctx.accept, &ctx.resource, ctx.include, &review))
}

async fn bind(ctx: &Ctx, binding: &Value) -> Result<Reply, ApiError> {
    let snapshot = ctx.server.registry.snapshot();
    let pods = snapshot.find("", "v1", "pods").ok_or_else(ApiError::no_such_path)?;
    let pod = ctx.of(pods.clone(), crate::meta::name(binding));
    super::pods::bind_to(&pod, binding).await
}

fn token_review(ctx: &Ctx, spec: &Value) -> Value {
    let given: Vec<&str> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let audiences = if given.is_empty() { vec![token::ISSUER] } else { given };
    let text = spec["token"].as_str().unwrap_or_default();
    match ctx.server.auth.tokens.verify(&ctx.server.store, text, &audiences) {
        Some(verified) => {
            json!({"authenticated": true, "user": verified.user.info(), "audiences": verified.audiences})
        }
        None => json!({"user": {}, "error": "invalid bearer token"}),
    }
}

fn access(ctx: &Ctx, user: &User, spec: &Value) -> Result<Value, ApiError> {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let allowed = if resource.is_object() {
        let (verb, group, kind) =
            (text(resource, "verb"), text(resource, "group"), text(resource, "resource"));
        let (sub, namespace, name) =
            (text(resource, "subresource"), text(resource, "namespace"), text(resource, "name"));
        let attributes = Attributes {
            verb: &verb,
            group: &group,
            resource: &kind,
            subresource: &sub,
            namespace: &namespace,
            name: &name,
        };
        authorize::allowed(&ctx.server.store, user, Action::Resource(attributes))
    } else if path.is_object() {
        let (verb, path) = (text(path, "verb"), text(path, "path"));
        authorize::allowed(&ctx.server.store, user, Action::NonResource { verb: &verb, path: &path })
    } else {
        return Err(ApiError::bad_request(
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    };
    Ok(if allowed { json!({"allowed": true}) } else { json!({"allowed": false}) })
}

fn rules(ctx: &Ctx, namespace: &str) -> Value {
    let all = authorize::rules(&ctx.server.store, &ctx.user, namespace);
    let (paths, resources): (Vec<Value>, Vec<Value>) =
        all.into_iter().partition(|rule| rule["nonResourceURLs"].is_array());
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}
