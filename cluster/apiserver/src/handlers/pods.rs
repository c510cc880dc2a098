//! pods/binding and pods/eviction.

use http::StatusCode;
use serde_json::{Value, json};

use super::write::{Outcome, commit_update};
use super::{Ctx, delete, read};
use crate::error::ApiError;
use crate::reply::{self, Reply};
use crate::selector::LabelSelector;
use crate::{meta, request};

/// Attempts when others write too.
const ATTEMPTS: usize = 8;

fn success(code: StatusCode, ctx: &Ctx) -> Reply {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()});
    reply::value(code, ctx.accept, &status)
}

/// Assigns a pod to a node.
pub(crate) async fn bind(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let binding = request::decode(ctx.content_type.as_deref(), body)?;
    bind_to(ctx, &binding).await
}

/// The same from a `Binding` posted on its own.
pub(crate) async fn bind_to(ctx: &Ctx, binding: &Value) -> Result<Reply, ApiError> {
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    if node.is_empty() {
        let error = cluster_schema::FieldError::required("target.name", "");
        return Err(ApiError::invalid("", "Binding", ctx.object_name(), &[error]));
    }
    let options = ctx.write_options("CreateOptions")?;
    for _ in 0..ATTEMPTS {
        let old = read::find(ctx)?;
        let uid = meta::uid(binding);
        if !uid.is_empty() && uid != meta::uid(&old.value) {
            return Err(ApiError::conflict(ctx.subject(), "the pod is another one: its uid differs"));
        }
        if meta::is_terminating(&old.value) {
            return Err(ApiError::conflict(
                ctx.subject(),
                format!("pod {} is being deleted, cannot be assigned to a host", old.key.name),
            ));
        }
        let bound = old.value["spec"]["nodeName"].as_str().unwrap_or_default();
        if !bound.is_empty() {
            return Err(ApiError::conflict(
                crate::error::Subject { resource: "pods/binding", ..ctx.subject() },
                format!("pod {} is already assigned to node \"{bound}\"", old.key.name),
            ));
        }
        let mut new = old.value.clone();
        new["spec"]["nodeName"] = node.into();
        for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            if !new["metadata"]["annotations"].is_object() {
                meta::set(&mut new, "annotations", json!({}));
            }
            new["metadata"]["annotations"][key] = value.clone();
        }
        set_scheduled(&mut new);
        match commit_update(ctx, &old, new, options.dry_run).await? {
            Outcome::Raced => {}
            _ => return Ok(success(StatusCode::CREATED, ctx)),
        }
    }
    Err(ApiError::modified(ctx.subject()))
}

fn set_scheduled(pod: &mut Value) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": meta::now()});
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = pod["status"]["conditions"].as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(condition);
    }
}

/// Deletes a pod, unless a disruption budget says not now.
pub(crate) async fn evict(ctx: &Ctx, body: &[u8]) -> Result<Reply, ApiError> {
    let eviction = request::decode(ctx.content_type.as_deref(), body)?;
    let pod = read::find(ctx)?;
    let options = delete::Options::parse(&ctx.query, &eviction["deleteOptions"])?;
    let ended = matches!(pod.value["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"));
    if !ended {
        let (_, budgets) = ctx.server.store.list("policy/poddisruptionbudgets", Some(&ctx.namespace));
        for budget in budgets {
            let selector = &budget.value["spec"]["selector"];
            if selector.is_null() || !LabelSelector::from_object(selector).matches(&pod.value) {
                continue;
            }
            let seen = &budget.value["status"]["observedGeneration"];
            let pending = seen.as_i64() < budget.value["metadata"]["generation"].as_i64();
            if pending || budget.value["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) <= 0 {
                let mut error = ApiError::too_many_requests(
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                );
                error.details = Some(json!({"causes": [{
                    "reason": "DisruptionBudget",
                    "message": match pending {
                        true => format!("The disruption budget {} is still being processed by the server.", budget.key.name),
                        false => format!("The disruption budget {} does not allow another disruption now", budget.key.name),
                    },
                }], "retryAfterSeconds": 10}));
                return Err(error);
            }
        }
    }
    delete::delete_object(ctx, ctx.object_name(), &options).await?;
    Ok(success(StatusCode::CREATED, ctx))
}
