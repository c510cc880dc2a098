//! ResourceQuotas: what new objects count for, and what they may no longer.
//!
//! Usage is counted anew from the store at each decision and after each write that can change it: everything is in memory, so
//! there is no count that could drift. `status` tells what was counted last.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_schema::quantity;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use super::limits;
use crate::error::ApiError;
use crate::handlers::Ctx;
use crate::meta;
use crate::server::Server;
use crate::store::{Commit, Expect, Object};

pub(crate) const STORAGE: &str = "/resourcequotas";

/// One decision at a time, up to its write.
static GATE: Mutex<()> = Mutex::new(());

type Usage = BTreeMap<String, String>;

/// Object counts that have a name of their own besides `count/...`.
const COUNTED: [&str; 8] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "serviceaccounts",
];

/// What one object uses of everything that a quota may limit.
fn usage_of(group: &str, plural: &str, object: &Value) -> Usage {
    let mut usage = Usage::new();
    let count = |usage: &mut Usage, name: String, number: usize| {
        usage.insert(name, number.to_string());
    };
    let ended =
        plural == "pods" && matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    count(&mut usage, format!("count/{qualified}"), 1);
    if !group.is_empty() || ended {
        return usage;
    }
    if COUNTED.contains(&plural) && plural != "serviceaccounts" {
        count(&mut usage, plural.to_owned(), 1);
    }
    match plural {
        "pods" => {
            for side in ["requests", "limits"] {
                for (resource, value) in limits::total(object, side).as_object().into_iter().flatten() {
                    let value = value.as_str().unwrap_or("0").to_owned();
                    if side == "requests"
                        && matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage")
                    {
                        usage.insert(resource.clone(), value.clone());
                    }
                    usage.insert(format!("{side}.{resource}"), value);
                }
            }
        }
        "services" => {
            let kind = object["spec"]["type"].as_str().unwrap_or_default();
            let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len);
            if matches!(kind, "NodePort" | "LoadBalancer") {
                count(&mut usage, "services.nodeports".to_owned(), ports);
            }
            if kind == "LoadBalancer" {
                count(&mut usage, "services.loadbalancers".to_owned(), 1);
            }
        }
        "persistentvolumeclaims" => {
            if let Some(asked) = object["spec"]["resources"]["requests"]["storage"].as_str() {
                usage.insert("requests.storage".to_owned(), asked.to_owned());
                if let Some(class) = object["spec"]["storageClassName"].as_str() {
                    usage.insert(
                        format!("{class}.storageclass.storage.k8s.io/requests.storage"),
                        asked.to_owned(),
                    );
                    let number = format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims");
                    count(&mut usage, number, 1);
                }
            }
        }
        _ => {}
    }
    usage
}

/// The type whose objects a limited name counts: `(group, plural)`.
fn counted(name: &str) -> (&str, &str) {
    if let Some(qualified) = name.strip_prefix("count/") {
        return qualified.split_once('.').map_or(("", qualified), |(plural, group)| (group, plural));
    }
    if name.starts_with("services") {
        return ("", "services");
    }
    if name.contains("storageclass.storage.k8s.io/") || name == "requests.storage" {
        return ("", "persistentvolumeclaims");
    }
    COUNTED.into_iter().find(|known| *known == name).map_or(("", "pods"), |known| ("", known))
}

fn add(total: &mut Usage, more: &Usage) {
    for (name, value) in more {
        let held = total.get(name).map_or("0", String::as_str);
        if let Some(sum) = quantity::sum(held, value) {
            total.insert(name.clone(), sum);
        }
    }
}

/// Does a quota count this object? Scopes speak of pods only.
fn in_scope(quota: &Value, plural: &str, object: &Value) -> bool {
    let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut scopes = scopes.peekable();
    if scopes.peek().is_none() {
        return true;
    }
    let best_effort = object["status"]["qosClass"] == "BestEffort";
    let terminating = object["spec"]["activeDeadlineSeconds"].is_number();
    plural == "pods"
        && scopes.all(|scope| match scope {
            "BestEffort" => best_effort,
            "NotBestEffort" => !best_effort,
            "Terminating" => terminating,
            "NotTerminating" => !terminating,
            _ => false,
        })
}

fn names(quota: &Value) -> Vec<String> {
    quota["spec"]["hard"].as_object().map(|hard| hard.keys().cloned().collect()).unwrap_or_default()
}

/// What is used now of everything that a quota limits.
fn used(server: &Server, quota: &Value) -> Usage {
    let names = names(quota);
    let mut total = Usage::new();
    let mut kinds: Vec<(&str, &str)> = names.iter().map(|name| counted(name)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for (group, plural) in kinds {
        let (_, objects) = server.store.list(&format!("{group}/{plural}"), Some(meta::namespace(quota)));
        for object in &objects {
            object.value.look(|value| {
                if in_scope(quota, plural, value) {
                    add(&mut total, &usage_of(group, plural, value));
                }
            });
        }
    }
    names
        .into_iter()
        .map(|name| {
            let value = total.remove(&name).unwrap_or_else(|| "0".to_owned());
            (name, value)
        })
        .collect()
}

fn printed(usage: &Usage) -> String {
    usage.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Admission of a new object against the quotas of its namespace.
///
/// What it returns is held until the object is stored, so that two writers do not take the last place both.
pub(crate) fn admit(ctx: &Ctx, object: &Value) -> Result<Option<MutexGuard<'static, ()>>, ApiError> {
    if !ctx.resource.namespaced || ctx.server.store.count(STORAGE) == 0 {
        return Ok(None);
    }
    let (_, quotas) = ctx.server.store.list(STORAGE, Some(&ctx.namespace));
    if quotas.is_empty() {
        return Ok(None);
    }
    let gate = GATE.lock();
    let (group, plural) = (ctx.resource.group.as_str(), ctx.resource.plural.as_str());
    let asked = usage_of(group, plural, object);
    let subject = ctx.resource.subject(meta::name(object));
    for quota in quotas.iter().filter(|quota| in_scope(&quota.value, plural, object)) {
        let (name, hard) = (&quota.key.name, &quota.value["spec"]["hard"]);
        if plural == "pods" && group.is_empty() {
            unspecified(name, &quota.value, object).map_err(|cause| ApiError::forbidden(subject, cause))?;
        }
        let requested: Usage = asked
            .iter()
            .filter(|(name, _)| hard.get(name).is_some())
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect();
        if requested.is_empty() {
            continue;
        }
        let used = used(&ctx.server, &quota.value);
        let beyond: Vec<&String> = requested
            .keys()
            .filter(|name| {
                let sum = quantity::sum(used.get(*name).map_or("0", String::as_str), &requested[*name]);
                let limit = hard[name.as_str()].as_str().and_then(quantity::to_f64);
                sum.as_deref().and_then(quantity::to_f64) > limit
            })
            .collect();
        if beyond.is_empty() {
            continue;
        }
        let only = |all: &dyn Fn(&str) -> String| -> Usage {
            beyond.iter().map(|name| ((*name).clone(), all(name))).collect()
        };
        let cause = format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            printed(&only(&|name| requested[name].clone())),
            printed(&only(&|name| used.get(name).cloned().unwrap_or_else(|| "0".to_owned()))),
            printed(&only(&|name| hard[name].as_str().unwrap_or_default().to_owned())),
        );
        return Err(ApiError::forbidden(subject, cause));
    }
    Ok(Some(gate))
}

/// A quota on what containers ask for needs each to say it.
fn unspecified(name: &str, quota: &Value, pod: &Value) -> Result<(), String> {
    let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for limited in names(quota) {
        let (side, resource) = match limited.split_once('.') {
            Some((side @ ("requests" | "limits"), resource)) if resource != "storage" => (side, resource),
            _ if matches!(limited.as_str(), "cpu" | "memory") => ("requests", limited.as_str()),
            _ => continue,
        };
        if !matches!(resource, "cpu" | "memory") {
            continue;
        }
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                if container["resources"][side].get(resource).is_none() {
                    missing
                        .entry(limited.clone())
                        .or_default()
                        .push(container["name"].as_str().unwrap_or_default());
                }
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        missing.iter().map(|(name, containers)| format!("{name} for: {}", containers.join(","))).collect();
    Err(format!("failed quota: {name}: must specify {}", list.join("; ")))
}

/// After a write: brings the status of the quotas of its namespace up to date.
pub(crate) fn committed(server: &Server, resource_kind: &str, object: &Object) {
    let namespace = object.key.namespace.as_str();
    if namespace.is_empty() || server.store.count(STORAGE) == 0 {
        return;
    }
    let (_, quotas) = server.store.list(STORAGE, Some(namespace));
    for quota in quotas {
        let touches = resource_kind == STORAGE
            || names(&quota.value).iter().any(|name| {
                let (group, plural) = counted(name);
                resource_kind == format!("{group}/{plural}")
            });
        if touches {
            let _ = refresh(server, &quota);
        }
    }
}

fn refresh(server: &Server, quota: &Arc<Object>) -> Option<Commit> {
    let mut new = quota.value.clone();
    let used = used(server, &new);
    let status = json!({"hard": new["spec"]["hard"], "used": used});
    if new["status"] == status || meta::is_terminating(&new) {
        return None;
    }
    new["status"] = status;
    server.store.put(&quota.key, Expect::Revision(quota.revision), new).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_uses_what_its_containers_ask_for() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "600m"}, "limits": {"memory": "1Gi"}}},
            {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}});
        let usage = usage_of("", "pods", &pod);
        assert_eq!(
            (usage["requests.cpu"].as_str(), usage["cpu"].as_str(), usage["pods"].as_str()),
            ("1600m", "1600m", "1")
        );
        assert_eq!(usage["limits.memory"], "1Gi");
        let ended = json!({"status": {"phase": "Succeeded"}, "spec": {}});
        assert_eq!(usage_of("", "pods", &ended).len(), 1);
    }

    #[test]
    fn names_say_what_they_count() {
        assert_eq!(counted("requests.cpu"), ("", "pods"));
        assert_eq!(counted("services.nodeports"), ("", "services"));
        assert_eq!(counted("count/deployments.apps"), ("apps", "deployments"));
        assert_eq!(
            counted("gold.storageclass.storage.k8s.io/requests.storage"),
            ("", "persistentvolumeclaims")
        );
    }

    #[test]
    fn what_a_quota_limits_must_be_said() {
        let quota = json!({"spec": {"hard": {"requests.cpu": "1", "pods": "1"}}});
        let pod = json!({"spec": {"containers": [{"name": "none", "resources": {}}]}});
        assert_eq!(
            unspecified("q", &quota, &pod),
            Err("failed quota: q: must specify requests.cpu for: none".to_owned())
        );
    }
}
