//! Defaulting of Kubernetes' own types, as the API server of 1.35 does it.
//!
//! A rule belongs to a type, not to a place: `Container` is defaulted wherever it stands. The rule of a type runs before those of
//! the types inside it.

use base64::Engine;
use serde_json::{Map, Value, json};

use crate::defaults::set;
use crate::node::{Field, Node, Ty};

/// Fills in the fields of one object of a type.
pub(crate) type Rule = fn(&mut Map<String, Value>);

/// Applies all rules, drops nulls, and writes quantities in canonical form.
pub(crate) fn object(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if node.preserve && node.properties.is_empty() {
                return;
            }
            map.retain(|_, value| !value.is_null());
            if let Some(rule) = node.defaults {
                rule(map);
            }
            for (key, value) in map.iter_mut() {
                if let Field::Known(sub) | Field::Entry(sub) = node.field(key) {
                    object(sub, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item) = &node.items {
                for value in items {
                    object(item, value);
                }
            }
        }
        Value::String(text) => {
            if node.ty == Ty::Quantity
                && let Some(canonical) = crate::quantity::canonical(text)
                && canonical != *text
            {
                *text = canonical;
            }
        }
        Value::Number(n) if node.ty == Ty::Quantity => {
            let text = n.to_string();
            *value = Value::String(crate::quantity::canonical(&text).unwrap_or(text));
        }
        _ => {}
    }
}

/// The rule of a type, by its name without `io.k8s.`.
pub(crate) fn rule(type_name: &str) -> Option<Rule> {
    let core = type_name.strip_prefix("api.core.v1.");
    if let Some(name) = core {
        return core_rule(name);
    }
    Some(match type_name {
        "api.apps.v1.Deployment" => deployment,
        "api.apps.v1.ReplicaSet" => |o| set(spec(o), "replicas", 1),
        "api.apps.v1.StatefulSet" => stateful_set,
        "api.apps.v1.DaemonSet" => daemon_set,
        "api.batch.v1.Job" => job,
        "api.batch.v1.CronJob" => cron_job,
        "api.batch.v1.PodFailurePolicyOnPodConditionsPattern" => |o| fill(o, "status", "True"),
        "api.autoscaling.v2.HorizontalPodAutoscaler" => autoscaler,
        "api.autoscaling.v1.HorizontalPodAutoscaler" => |o| set(spec(o), "minReplicas", 1),
        "api.policy.v1.PodDisruptionBudget" => |o| {
            for count in ["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"] {
                set(status(o), count, 0);
            }
        },
        "api.batch.v1.JobStatus" => |o| {
            if o.contains_key("startTime") {
                set(o, "uncountedTerminatedPods", json!({}));
            }
        },
        "api.batch.v1.JobTemplateSpec" => |o| set(o, "metadata", json!({})),
        "api.networking.v1.NetworkPolicyPort" => |o| fill(o, "protocol", "TCP"),
        "api.networking.v1.NetworkPolicy" => network_policy,
        "api.scheduling.v1.PriorityClass" => |o| fill(o, "preemptionPolicy", "PreemptLowerPriority"),
        "api.storage.v1.StorageClass" => |o| {
            fill(o, "reclaimPolicy", "Delete");
            fill(o, "volumeBindingMode", "Immediate");
        },
        "api.rbac.v1.RoleRef" => |o| fill(o, "apiGroup", RBAC),
        "api.rbac.v1.Subject" => |o| {
            if matches!(text(o, "kind"), "User" | "Group") {
                fill(o, "apiGroup", RBAC);
            }
        },
        "api.discovery.v1.EndpointPort" => |o| {
            set(o, "name", "");
            fill(o, "protocol", "TCP");
        },
        "api.admissionregistration.v1.ValidatingWebhook" => webhook,
        "api.admissionregistration.v1.MutatingWebhook" => |o| {
            webhook(o);
            fill(o, "reinvocationPolicy", "Never");
        },
        "api.admissionregistration.v1.RuleWithOperations" => |o| fill(o, "scope", "*"),
        "api.admissionregistration.v1.ServiceReference"
        | "apiextensions-apiserver.pkg.apis.apiextensions.v1.ServiceReference"
        | "kube-aggregator.pkg.apis.apiregistration.v1.ServiceReference" => |o| set(o, "port", 443),
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition" => crd,
        "api.authentication.v1.TokenRequest" => |o| set(spec(o), "expirationSeconds", 3600),
        _ => return None,
    })
}

const RBAC: &str = "rbac.authorization.k8s.io";

fn core_rule(name: &str) -> Option<Rule> {
    Some(match name {
        "Pod" => pod,
        "PodSpec" => pod_spec,
        "Container" | "EphemeralContainer" => container,
        "ContainerPort" => |o| fill(o, "protocol", "TCP"),
        "Probe" => |o| {
            for (key, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                positive(o, key, value);
            }
        },
        "HTTPGetAction" => |o| {
            fill(o, "path", "/");
            fill(o, "scheme", "HTTP");
        },
        "GRPCAction" => |o| set(o, "service", ""),
        "Volume" => volume,
        "SecretVolumeSource"
        | "ConfigMapVolumeSource"
        | "DownwardAPIVolumeSource"
        | "ProjectedVolumeSource" => |o| set(o, "defaultMode", 420),
        "ServiceAccountTokenProjection" => |o| set(o, "expirationSeconds", 3600),
        "HostPathVolumeSource" => |o| set(o, "type", ""),
        "ObjectFieldSelector" => |o| fill(o, "apiVersion", "v1"),
        "ResourceFieldSelector" => |o| set(o, "divisor", "0"),
        "Service" => service,
        "Secret" => secret,
        "Namespace" => namespace,
        // What Go's types write even when it is not set.
        "PodTemplateSpec" => |o| set(o, "metadata", json!({})),
        "Event" => |o| {
            set(o, "eventTime", Value::Null);
            set(o, "reportingComponent", "");
            set(o, "reportingInstance", "");
        },
        "PodCondition" => |o| set(o, "lastProbeTime", Value::Null),
        "ContainerStatus" => |o| {
            set(o, "lastState", json!({}));
            set(o, "state", json!({}));
        },
        "NodeSpec" => |o| {
            if let Some(range) = o.get("podCIDR").cloned() {
                set(o, "podCIDRs", json!([range]));
            }
        },
        "NodeStatus" => |o| {
            with(o, "daemonEndpoints", |o| with(o, "kubeletEndpoint", |o| set(o, "Port", 0)));
            if let Some(capacity) = o.get("capacity").cloned() {
                set(o, "allocatable", capacity);
            }
        },
        "PersistentVolume" => |o| {
            fill(status(o), "phase", "Pending");
            fill(spec(o), "persistentVolumeReclaimPolicy", "Retain");
            fill(spec(o), "volumeMode", "Filesystem");
        },
        "PersistentVolumeClaim" => |o| fill(status(o), "phase", "Pending"),
        "PersistentVolumeClaimSpec" => |o| {
            fill(o, "volumeMode", "Filesystem");
            set(o, "resources", json!({}));
        },
        "EndpointPort" => |o| fill(o, "protocol", "TCP"),
        "ReplicationController" => replication_controller,
        "LimitRangeItem" => limit_range_item,
        _ => return None,
    })
}

/// Sets a text that is missing or empty.
fn fill(map: &mut Map<String, Value>, key: &str, value: &str) {
    if text(map, key).is_empty() {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets a number that is missing or zero.
fn positive(map: &mut Map<String, Value>, key: &str, value: i64) {
    if map.get(key).is_none_or(|v| v.as_i64() == Some(0)) {
        map.insert(key.to_owned(), value.into());
    }
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    match map.get(key) {
        None => "",
        Some(Value::String(text)) => text,
        // A wrong type is for validation to name; here it is something that is set.
        Some(_) => "?",
    }
}

/// The object under `key`, created where missing; a value of another type is left for validation and a scratch map returned.
fn sub<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    map.entry(key.to_owned()).or_insert_with(|| json!({})).as_object_mut()
}

fn with(map: &mut Map<String, Value>, key: &str, f: impl FnOnce(&mut Map<String, Value>)) {
    if let Some(map) = sub(map, key) {
        f(map);
    }
}

/// `spec`; an object with a `spec` that is no object is turned away before its defaults matter.
fn spec(map: &mut Map<String, Value>) -> &mut Map<String, Value> {
    part(map, "spec")
}

fn status(map: &mut Map<String, Value>) -> &mut Map<String, Value> {
    part(map, "status")
}

fn part<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    if map.get(key).is_some_and(|v| !v.is_object()) {
        return map;
    }
    match map.entry(key.to_owned()).or_insert_with(|| json!({})) {
        Value::Object(map) => map,
        _ => unreachable!("checked above"),
    }
}

fn items<'a>(
    map: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> + use<'a> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn rolling_update(map: &mut Map<String, Value>, surge: Value, unavailable: Value) {
    fill(map, "type", "RollingUpdate");
    if text(map, "type") == "RollingUpdate" {
        with(map, "rollingUpdate", |o| {
            set(o, "maxSurge", surge);
            set(o, "maxUnavailable", unavailable);
        });
    }
}

fn deployment(o: &mut Map<String, Value>) {
    let spec = spec(o);
    set(spec, "replicas", 1);
    with(spec, "strategy", |o| rolling_update(o, "25%".into(), "25%".into()));
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
}

fn daemon_set(o: &mut Map<String, Value>) {
    let spec = spec(o);
    with(spec, "updateStrategy", |o| rolling_update(o, 0.into(), 1.into()));
    set(spec, "revisionHistoryLimit", 10);
}

fn stateful_set(o: &mut Map<String, Value>) {
    for count in ["availableReplicas", "replicas"] {
        set(status(o), count, 0);
    }
    let spec = spec(o);
    set(spec, "serviceName", "");
    fill(spec, "podManagementPolicy", "OrderedReady");
    with(spec, "updateStrategy", |o| {
        if text(o, "type").is_empty() {
            fill(o, "type", "RollingUpdate");
            set(o, "rollingUpdate", json!({}));
        }
        if text(o, "type") == "RollingUpdate"
            && let Some(update) = o.get_mut("rollingUpdate").and_then(Value::as_object_mut)
        {
            set(update, "partition", 0);
        }
    });
    with(spec, "persistentVolumeClaimRetentionPolicy", |o| {
        fill(o, "whenDeleted", "Retain");
        fill(o, "whenScaled", "Retain");
    });
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
}

fn job(o: &mut Map<String, Value>) {
    set(spec(o), "suspend", false);
    let labels = o.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    if let Some(labels) = labels {
        with(o, "metadata", |m| {
            if m.get("labels").and_then(Value::as_object).is_none_or(Map::is_empty) {
                m.insert("labels".into(), labels);
            }
        });
    }
    let spec = spec(o);
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    let limit = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
    set(spec, "backoffLimit", limit);
    fill(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    let replacement = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    fill(spec, "podReplacementPolicy", replacement);
    set(spec, "manualSelector", false);
}

fn cron_job(o: &mut Map<String, Value>) {
    set(o, "status", json!({}));
    let spec = spec(o);
    fill(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", false);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "failedJobsHistoryLimit", 1);
}

fn autoscaler(o: &mut Map<String, Value>) {
    let spec = spec(o);
    set(spec, "minReplicas", 1);
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 80}}});
        spec.insert("metrics".into(), json!([cpu]));
    }
    if let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) {
        with(behavior, "scaleUp", |o| {
            set(o, "stabilizationWindowSeconds", 0);
            fill(o, "selectPolicy", "Max");
            set(
                o,
                "policies",
                json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
            );
        });
        with(behavior, "scaleDown", |o| {
            fill(o, "selectPolicy", "Max");
            set(o, "policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
        });
    }
}

fn network_policy(o: &mut Map<String, Value>) {
    let spec = spec(o);
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty());
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".into(), types);
    }
}

fn webhook(o: &mut Map<String, Value>) {
    fill(o, "failurePolicy", "Fail");
    fill(o, "matchPolicy", "Equivalent");
    set(o, "namespaceSelector", json!({}));
    set(o, "objectSelector", json!({}));
    set(o, "timeoutSeconds", 10);
}

fn crd(o: &mut Map<String, Value>) {
    let spec = spec(o);
    with(spec, "conversion", |o| fill(o, "strategy", "None"));
    with(spec, "names", |names| {
        let kind = text(names, "kind").to_owned();
        fill(names, "singular", &kind.to_lowercase());
        fill(names, "listKind", &format!("{kind}List"));
    });
}

fn pod(o: &mut Map<String, Value>) {
    let spec = spec(o);
    for key in ["containers", "initContainers"] {
        for container in items(spec, key) {
            let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else {
                continue;
            };
            let Some(Value::Object(limits)) = resources.get("limits").cloned() else { continue };
            with(resources, "requests", |requests| {
                for (name, value) in limits {
                    set(requests, &name, value);
                }
            });
        }
    }
    set(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for key in ["containers", "initContainers"] {
            for container in items(spec, key) {
                for port in items(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        set(port, "hostPort", number);
                    }
                }
            }
        }
    }
}

fn pod_spec(o: &mut Map<String, Value>) {
    fill(o, "dnsPolicy", "ClusterFirst");
    fill(o, "restartPolicy", "Always");
    set(o, "securityContext", json!({}));
    set(o, "terminationGracePeriodSeconds", 30);
    fill(o, "schedulerName", "default-scheduler");
    // The deprecated alias follows the field that replaced it, as conversion does upstream.
    if let Some(name) = o.get("serviceAccountName").filter(|n| *n != "").cloned() {
        o.insert("serviceAccount".into(), name);
    } else if let Some(name) = o.get("serviceAccount").filter(|n| *n != "").cloned() {
        o.insert("serviceAccountName".into(), name);
    }
}

fn container(o: &mut Map<String, Value>) {
    if text(o, "imagePullPolicy").is_empty() {
        let policy = if latest(text(o, "image")) { "Always" } else { "IfNotPresent" };
        o.insert("imagePullPolicy".into(), policy.into());
    }
    fill(o, "terminationMessagePath", "/dev/termination-log");
    fill(o, "terminationMessagePolicy", "File");
    set(o, "resources", json!({}));
}

/// Whether an image reference means the tag `latest`: by name, or by having neither tag nor digest.
fn latest(image: &str) -> bool {
    if image.is_empty() || image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

fn volume(o: &mut Map<String, Value>) {
    if o.keys().all(|key| key == "name") {
        o.insert("emptyDir".into(), json!({}));
    }
    if let Some(image) = o.get_mut("image").and_then(Value::as_object_mut)
        && text(image, "pullPolicy").is_empty()
    {
        let policy = if latest(text(image, "reference")) { "Always" } else { "IfNotPresent" };
        image.insert("pullPolicy".into(), policy.into());
    }
}

fn service(o: &mut Map<String, Value>) {
    {
        let spec = spec(o);
        fill(spec, "sessionAffinity", "None");
        match text(spec, "sessionAffinity") {
            "None" => {
                spec.remove("sessionAffinityConfig");
            }
            "ClientIP" => with(spec, "sessionAffinityConfig", |o| {
                with(o, "clientIP", |o| set(o, "timeoutSeconds", 10800));
            }),
            _ => {}
        }
        fill(spec, "type", "ClusterIP");
        for port in items(spec, "ports") {
            fill(port, "protocol", "TCP");
            if port.get("targetPort").is_none_or(|p| p == "" || p == 0)
                && let Some(number) = port.get("port").cloned()
            {
                port.insert("targetPort".into(), number);
            }
        }
        let kind = text(spec, "type").to_owned();
        let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
            || kind == "ClusterIP"
                && spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
        if external {
            fill(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
            fill(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            set(spec, "allocateLoadBalancerNodePorts", true);
        }
    }
    with(o, "status", |status| {
        with(status, "loadBalancer", |balancer| {
            for ingress in items(balancer, "ingress") {
                if !text(ingress, "ip").is_empty() {
                    fill(ingress, "ipMode", "VIP");
                }
            }
        });
    });
}

fn secret(o: &mut Map<String, Value>) {
    fill(o, "type", "Opaque");
    // Write-only: what it holds is stored, encoded, in `data`. Only texts; anything else is left for validation to name.
    if o.get("stringData").and_then(Value::as_object).is_some_and(|m| m.values().all(Value::is_string))
        && let Some(Value::Object(texts)) = o.remove("stringData")
    {
        with(o, "data", |data| {
            for (key, text) in texts {
                let encoded =
                    base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
                data.insert(key, encoded.into());
            }
        });
    }
}

fn namespace(o: &mut Map<String, Value>) {
    let name =
        o.get("metadata").and_then(|m| m.get("name")).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !name.is_empty() {
        with(o, "metadata", |m| {
            with(m, "labels", |labels| {
                labels.insert("kubernetes.io/metadata.name".into(), name.into());
            });
        });
    }
    fill(status(o), "phase", "Active");
}

fn replication_controller(o: &mut Map<String, Value>) {
    let labels = o.get("spec").and_then(|s| s.pointer("/template/metadata/labels")).cloned();
    if let Some(labels) = labels {
        set(spec(o), "selector", labels.clone());
        with(o, "metadata", |m| set(m, "labels", labels));
    }
    set(spec(o), "replicas", 1);
}

fn limit_range_item(o: &mut Map<String, Value>) {
    if text(o, "type") != "Container" {
        return;
    }
    let limits = |o: &Map<String, Value>, key: &str| {
        o.get(key).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    for (target, source) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        let values = limits(o, source);
        if !values.is_empty() {
            with(o, target, |o| {
                for (name, value) in values {
                    set(o, &name, value);
                }
            });
        }
    }
}
