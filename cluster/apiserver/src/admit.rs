//! Admission by the server itself: what Kubernetes' built-in plugins and strategies do to a write.

pub(crate) mod crds;
pub(crate) mod limits;
pub(crate) mod quota;
pub(crate) mod serviceaccount;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt;
use serde_json::{Value, json};

use crate::authorize::escalation;
use crate::error::{ApiError, Subject};
use crate::handlers::Ctx;
use crate::meta;
use crate::registry::{Resource, crd};
use crate::server::Server;
use crate::services::Reserved;
use crate::store::Object;

/// Letters of generated names: as upstream, none that makes a word or looks like a digit.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];
/// Longest prefix of a generated name.
const MAX_PREFIX: usize = 63 - 5;

/// Five random letters.
pub(crate) fn random_suffix() -> String {
    let mut rng = rand::rng();
    (0..5).map(|_| LETTERS[rng.random_range(0..LETTERS.len())] as char).collect()
}

/// A name from `generateName`.
pub(crate) fn generate_name(prefix: &str) -> String {
    let mut end = prefix.len().min(MAX_PREFIX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], random_suffix())
}

/// 404 if the namespace is not there, 403 if it is about to go.
pub(crate) fn namespace_accepts(ctx: &Ctx, name: &str) -> Result<(), ApiError> {
    if !ctx.resource.namespaced {
        return Ok(());
    }
    let namespace = ctx.server.store.get("/namespaces", "", &ctx.namespace);
    let Some(namespace) = namespace else {
        return Err(ApiError::not_found(Subject { group: "", resource: "namespaces", name: &ctx.namespace }));
    };
    if meta::is_terminating(&namespace.value) {
        let cause = format!(
            "unable to create new content in namespace {} because it is being terminated",
            ctx.namespace
        );
        let mut error = ApiError::forbidden(ctx.resource.subject(name), cause);
        if let Some(details) = &mut error.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {} is being terminated", ctx.namespace),
                "field": "metadata.namespace",
            }]);
        }
        return Err(error);
    }
    Ok(())
}

/// What decoding and strategies do to some types, before defaulting.
pub(crate) fn prepare(resource: &Resource, object: &mut Value, old: Option<&Value>) {
    if !resource.builtin {
        return;
    }
    match resource.kind.as_str() {
        "Secret" => {
            let plain = object.as_object_mut().and_then(|map| map.remove("stringData"));
            for (key, value) in plain.as_ref().and_then(Value::as_object).into_iter().flatten() {
                if !object["data"].is_object() {
                    object["data"] = json!({});
                }
                object["data"][key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
            }
        }
        "CustomResourceDefinition" => crd::default(object),
        "Namespace" => {
            let name = meta::name(object).to_owned();
            if old.is_none() {
                object["spec"]["finalizers"] = json!(["kubernetes"]);
                object["status"]["phase"] = "Active".into();
            }
            if !object["metadata"]["labels"].is_object() {
                meta::set(object, "labels", json!({}));
            }
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
        }
        "Job" if old.is_none() && object["spec"]["manualSelector"] != true => select_own_pods(object),
        "Pod" if old.is_none() => {
            object["status"] = json!({"phase": "Pending", "qosClass": qos(&object["spec"])});
        }
        "PersistentVolumeClaim" | "PersistentVolume" if old.is_none() => {
            object["status"] = json!({"phase": "Pending"});
        }
        _ => {}
    }
}

/// Gives a job's pods labels that are its alone, and selects them by one.
fn select_own_pods(job: &mut Value) {
    let (uid, name) = (meta::uid(job).to_owned(), meta::name(job).to_owned());
    let template = &mut job["spec"]["template"];
    if !template["metadata"]["labels"].is_object() {
        meta::set(template, "labels", json!({}));
    }
    for (label, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        template["metadata"]["labels"][label] = value.clone().into();
    }
    let labels = template["metadata"]["labels"].clone();
    if job["spec"]["selector"].is_null() {
        job["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    }
    if job["metadata"]["labels"].as_object().is_none_or(serde_json::Map::is_empty) {
        meta::set(job, "labels", labels);
    }
}

/// The quality-of-service class of a pod.
fn qos(spec: &Value) -> &'static str {
    let containers = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| spec[list].as_array().into_iter().flatten())
        .collect::<Vec<_>>();
    let amount = |container: &Value, side: &str, what: &str| container["resources"][side][what].clone();
    let mut any = false;
    let mut guaranteed = true;
    for container in &containers {
        for what in ["cpu", "memory"] {
            let (limit, request) = (amount(container, "limits", what), amount(container, "requests", what));
            any |= !limit.is_null() || !request.is_null();
            guaranteed &= !limit.is_null() && (request.is_null() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Admission of a new object: may fill in fields; what it reserves is given back unless the write succeeds.
pub(crate) fn create<'a>(ctx: &'a Ctx, object: &mut Value, dry_run: bool) -> Result<Reserved<'a>, ApiError> {
    let mut reserved = Reserved::none(&ctx.server.addresses);
    if !ctx.resource.builtin {
        return Ok(reserved);
    }
    match ctx.resource.kind.as_str() {
        "Pod" => {
            serviceaccount::admit(ctx, object)?;
            priority(ctx, object)?;
            tolerations(object);
            limits::admit(ctx, object)?;
        }
        "PersistentVolumeClaim" => {
            limits::admit(ctx, object)?;
            protect(object, "kubernetes.io/pvc-protection");
        }
        "PersistentVolume" => {
            protect(object, "kubernetes.io/pv-protection");
            object["status"]["lastPhaseTransitionTime"] = meta::now().into();
        }
        "Service" => reserved = ctx.server.addresses.assign(ctx, object, None, dry_run)?,
        "CustomResourceDefinition" => crds::admit(ctx, object),
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => {
            escalation::check(ctx, object, None)?;
        }
        _ => {}
    }
    Ok(reserved)
}

/// Admission of a new state.
pub(crate) fn update(ctx: &Ctx, object: &mut Value, old: &Value) -> Result<(), ApiError> {
    if !ctx.resource.builtin {
        return Ok(());
    }
    match ctx.resource.kind.as_str() {
        "Service" if ctx.sub.is_empty() => {
            // What an update reserves stays reserved until the service goes or changes again.
            ctx.server.addresses.assign(ctx, object, Some(old), false)?.keep();
        }
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => {
            escalation::check(ctx, object, Some(old))?;
        }
        "CustomResourceDefinition" if ctx.sub.is_empty() => {
            meta::carry("status", old, object);
            crds::admit(ctx, object);
        }
        _ => {}
    }
    Ok(())
}

/// Admission of a deletion.
pub(crate) fn delete(ctx: &Ctx, old: &Object) -> Result<(), ApiError> {
    let name = old.key.name.as_str();
    if ctx.resource.builtin && ctx.resource.kind == "Namespace" && IMMORTAL.contains(&name) {
        return Err(ApiError::forbidden(ctx.resource.subject(name), "this namespace may not be deleted"));
    }
    Ok(())
}

/// Storage is kept while it is in use; a finalizer says so from the start.
fn protect(object: &mut Value, finalizer: &str) {
    let mut finalizers: Vec<String> = meta::finalizers(object).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|held| held == finalizer) {
        finalizers.push(finalizer.to_owned());
        meta::set(object, "finalizers", finalizers);
    }
}

/// What must follow a write before its author gets an answer.
pub(crate) fn committed(server: &Server, object: &Object) {
    match &*object.key.kind {
        crd::STORAGE => {
            let (_, definitions) = server.store.list(crd::STORAGE, None);
            server.registry.set_crds(definitions.iter().map(|object| &*object.value));
        }
        "/services" => {
            // Gone, or another state: what nobody holds any more is free again.
            let held = server.store.get("/services", &object.key.namespace, &object.key.name);
            server.addresses.settle(&object.key, held.as_ref().map(|object| &*object.value));
        }
        _ => {}
    }
    quota::committed(server, &object.key.kind, object);
}

/// `spec.priority` from the priority class.
fn priority(ctx: &Ctx, pod: &mut Value) -> Result<(), ApiError> {
    const KIND: &str = "scheduling.k8s.io/priorityclasses";
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if name.is_empty() {
        let (_, classes) = ctx.server.store.list(KIND, None);
        classes.into_iter().find(|class| class.value["globalDefault"] == true)
    } else {
        let class = ctx.server.store.get(KIND, "", &name);
        if class.is_none() {
            let cause = format!("no PriorityClass with name {name} was found");
            return Err(ApiError::forbidden(ctx.resource.subject(meta::name(pod)), cause));
        }
        class
    };
    match class {
        Some(class) => {
            pod["spec"]["priorityClassName"] = class.key.name.clone().into();
            pod["spec"]["priority"] = class.value["value"].clone();
            let preemption = class.value["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
            pod["spec"]["preemptionPolicy"] = preemption.into();
        }
        None => {
            pod["spec"]["priority"] = 0.into();
            pod["spec"]["preemptionPolicy"] = "PreemptLowerPriority".into();
        }
    }
    Ok(())
}

/// A pod tolerates an unready node for five minutes, unless it says otherwise.
fn tolerations(pod: &mut Value) {
    if !pod["spec"]["tolerations"].is_array() {
        pod["spec"]["tolerations"] = json!([]);
    }
    let Some(list) = pod["spec"]["tolerations"].as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let known = list.iter().any(|toleration| {
            let own = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (own == key || own.is_empty()) && (effect.is_empty() || effect == "NoExecute")
        });
        if !known {
            list.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_short_enough() {
        let name = generate_name(&"x".repeat(100));
        assert_eq!(name.len(), 63);
        assert!(generate_name("web-").starts_with("web-"));
        assert_ne!(generate_name("web-"), generate_name("web-"));
    }

    #[test]
    fn qos_classes() {
        let spec = |resources: Value| json!({"containers": [{"resources": resources}]});
        assert_eq!(qos(&spec(json!({}))), "BestEffort");
        assert_eq!(qos(&spec(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(qos(&spec(json!({"limits": {"cpu": "1", "memory": "1Gi"}}))), "Guaranteed");
    }
}
