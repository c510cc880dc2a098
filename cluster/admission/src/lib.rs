//! Admission webhooks: which ones a request matches, asking them, and what their answers mean.
//!
//! Takes the webhook configurations as they are stored and the attributes of one request; knows nothing of storage. Mutating webhooks
//! are asked one after the other, in the order of their configurations' names, each seeing what those before it changed; those with
//! `reinvocationPolicy: IfNeeded` are asked once more if a later one changed the object. Validating webhooks are asked all at once.
//!
//! `matchPolicy: Equivalent` is treated as `Exact`: a rule has to name the version that is used.
//!
//! The webhooks that [convert](Webhooks::convert) custom objects between versions are called in the same way.

mod client;
mod conversion;
mod matching;
mod response;
mod review;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;

use client::{Clients, Target};
pub use conversion::REVIEWS;
pub use matching::names;
use response::Answer;

/// Group, version and kind, or group, version and resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gv {
    /// API group; empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind, or plural resource name.
    pub name: String,
}

/// The kind of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A change of one that exists.
    Update,
    /// Removal.
    Delete,
    /// `exec`, `attach`, `portforward`, `proxy`.
    Connect,
}

impl Operation {
    /// As it stands in rules and reviews.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct UserInfo {
    /// Name.
    pub username: String,
    /// Uid; may be empty.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Extra attributes: an object of lists of strings, or null.
    pub extra: Value,
}

/// Everything about a request that is not the object.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// Identifies the request; answers must repeat it.
    pub uid: String,
    /// Kind of the object.
    pub gvk: Gv,
    /// Resource in the URL.
    pub gvr: Gv,
    /// Subresource in the URL; empty for the resource itself.
    pub sub_resource: String,
    /// Object's name; empty where `generateName` will make one.
    pub name: String,
    /// Namespace; none for cluster-scoped resources.
    pub namespace: Option<String>,
    /// Labels of that namespace. For a Namespace object: its own.
    pub namespace_labels: Vec<(String, String)>,
    /// Kind of write.
    pub operation: Operation,
    /// Who asks.
    pub user_info: UserInfo,
    /// Nothing will be stored: webhooks with side effects must not be asked.
    pub dry_run: bool,
    /// `CreateOptions`, `UpdateOptions`, ... as sent, or null.
    pub options: Value,
    /// The object before the write; null on create.
    pub old_object: Value,
}

/// A refusal, as the fields of a `Status`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    /// HTTP status.
    pub code: u16,
    /// `Status.reason`.
    pub reason: String,
    /// `admission webhook "x" denied the request: ...`, or why the webhook could not be asked.
    pub message: String,
    /// `Status.details` of the webhook's answer.
    pub details: Option<Value>,
}

impl Denied {
    fn internal(message: impl std::fmt::Display) -> Denied {
        Denied {
            code: 500,
            reason: "InternalError".into(),
            message: format!("Internal error occurred: {message}"),
            details: None,
        }
    }
}

/// Finds an address for a webhook that is given as a Service.
pub trait Resolver: Send + Sync + 'static {
    /// An address that serves `port` of the Service now, or why there is none (in words for the user).
    fn resolve<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<SocketAddr, String>>;
}

/// Calls webhooks. Connections are kept between requests.
pub struct Webhooks {
    clients: Clients,
}

/// What one webhook did to a request.
enum Outcome {
    Allowed(Answer),
    /// It could not be asked, and its policy says to go on without it.
    Ignored,
}

impl Webhooks {
    /// Webhooks whose Services are found by `resolver`.
    pub fn new(resolver: Arc<dyn Resolver>) -> Webhooks {
        Webhooks { clients: Clients::new(resolver) }
    }

    /// Has all matching mutating webhooks change `obj`; returns their warnings.
    ///
    /// # Errors
    /// The first refusal, or failure of a webhook whose policy is `Fail`; `obj` may be changed then.
    pub async fn mutate<C: Borrow<Value> + Sync>(
        &self,
        configs: &[C],
        attrs: &Attributes,
        obj: &mut Value,
    ) -> Result<Vec<String>, Denied> {
        let mut warnings = Vec::new();
        if configs.is_empty() || matching::exempt(attrs) {
            return Ok(warnings);
        }
        let mut configs: Vec<&Value> = configs.iter().map(Borrow::borrow).collect();
        configs.sort_by_key(|c| {
            c.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned()
        });
        // Webhooks that want to see later changes, and whether one came.
        let mut again: Vec<(&Value, bool)> = Vec::new();
        for hook in configs.into_iter().flat_map(matching::webhooks) {
            if !matching::matches(hook, attrs, obj).map_err(|e| failed(hook, &e))? {
                continue;
            }
            let Outcome::Allowed(answer) = self.ask(hook, attrs, obj).await? else { continue };
            let changed = apply(hook, answer, obj, &mut warnings)?;
            if changed {
                for (_, stale) in &mut again {
                    *stale = true;
                }
            }
            if hook.get("reinvocationPolicy").and_then(Value::as_str) == Some("IfNeeded") {
                again.push((hook, false));
            }
        }
        for (hook, stale) in again {
            if stale
                && matching::matches(hook, attrs, obj).map_err(|e| failed(hook, &e))?
                && let Outcome::Allowed(answer) = self.ask(hook, attrs, obj).await?
            {
                apply(hook, answer, obj, &mut warnings)?;
            }
        }
        Ok(warnings)
    }

    /// Asks all matching validating webhooks at once; returns their warnings. `obj` is null on delete.
    ///
    /// # Errors
    /// A refusal, or failure of a webhook whose policy is `Fail`. Of several, the one that comes first in the configurations.
    pub async fn validate<C: Borrow<Value> + Sync>(
        &self,
        configs: &[C],
        attrs: &Attributes,
        obj: &Value,
    ) -> Result<Vec<String>, Denied> {
        if configs.is_empty() || matching::exempt(attrs) {
            return Ok(Vec::new());
        }
        let mut calls = FuturesUnordered::new();
        for (i, hook) in configs.iter().flat_map(|c| matching::webhooks(c.borrow())).enumerate() {
            if matching::matches(hook, attrs, obj).map_err(|e| failed(hook, &e))? {
                calls.push(async move { (i, self.ask(hook, attrs, obj).await) });
            }
        }
        let mut outcomes = Vec::new();
        while let Some(outcome) = calls.next().await {
            outcomes.push(outcome);
        }
        outcomes.sort_by_key(|(i, _)| *i);
        let mut warnings = Vec::new();
        for (_, outcome) in outcomes {
            if let Outcome::Allowed(answer) = outcome? {
                warnings.extend(answer.warnings);
            }
        }
        Ok(warnings)
    }

    async fn ask(&self, hook: &Value, attrs: &Attributes, obj: &Value) -> Result<Outcome, Denied> {
        let name = matching::name(hook);
        let effects = hook.get("sideEffects").and_then(Value::as_str).unwrap_or("Unknown");
        if attrs.dry_run && !matches!(effects, "None" | "NoneOnDryRun") {
            return Err(Denied {
                code: 400,
                reason: "BadRequest".into(),
                message: format!("admission webhook {name:?} does not support dry run"),
                details: None,
            });
        }
        let timeout = hook.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10).clamp(1, 30);
        let called = async {
            let target = Target::parse(&hook["clientConfig"], timeout)?;
            let body = review::request(attrs, obj);
            let url = target.url.to_string();
            match tokio::time::timeout(Duration::from_secs(timeout), self.clients.post(target, body)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("failed to call webhook: Post {url:?}: context deadline exceeded")),
            }
        };
        let answer = match called.await {
            Ok(body) => response::parse(&body, &attrs.uid)
                .map_err(|e| format!("received invalid webhook response: {e}")),
            Err(e) => Err(e),
        };
        match answer {
            Ok(answer) => answer.allowed(name).map(Outcome::Allowed),
            Err(reason) if hook.get("failurePolicy").and_then(Value::as_str) == Some("Ignore") => {
                // What its owner said may be ignored is no warning, above all while a platform starts whose webhook comes last.
                tracing::info!(webhook = name, %reason, "webhook failed and its failurePolicy is Ignore: going on without it");
                Ok(Outcome::Ignored)
            }
            Err(reason) => Err(failed(hook, &reason)),
        }
    }
}

fn failed(hook: &Value, reason: &str) -> Denied {
    Denied::internal(format!("failed calling webhook {:?}: {reason}", matching::name(hook)))
}

/// Takes over what a mutating webhook answered; says whether the object changed.
fn apply(hook: &Value, answer: Answer, obj: &mut Value, warnings: &mut Vec<String>) -> Result<bool, Denied> {
    warnings.extend(answer.warnings);
    let Some(patch) = answer.patch else { return Ok(false) };
    let patched = cluster_schema::patch::json_patch(obj, &patch)
        .map_err(|e| failed(hook, &format!("failed to apply the patch of its answer: {e}")))?;
    let changed = patched != *obj;
    *obj = patched;
    Ok(changed)
}
