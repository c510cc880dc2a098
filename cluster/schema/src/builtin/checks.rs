//! Checks of Kubernetes' own types beyond their shape: what its API server's `validation` packages say about the kinds that people
//! write by hand. Names, labels and what `metadata` may hold are the API server's to check.

mod autoscaler;
mod others;
mod pod;
mod service;
mod workload;

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::error::{FieldError, Reason};
use crate::node::Node;

/// Adds what is wrong with an object whose shape is right.
pub(crate) fn object(root: &Node, obj: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let Some(name) = root.type_name.as_deref() else { return };
    match name {
        // A pod's spec hardly changes, and the rules for that are the API server's.
        "api.core.v1.Pod" if old.is_none() => pod::spec(&obj["spec"], "spec", errors),
        "api.core.v1.Service" => service::object(obj, errors),
        "api.core.v1.ConfigMap" => {
            keys(obj, &["data", "binaryData"], "config", errors);
            for key in obj["data"].as_object().into_iter().flat_map(|map| map.keys()) {
                if obj["binaryData"].get(key).is_some() {
                    let value = Value::String(key.clone());
                    let detail = "duplicate of key present in binaryData";
                    errors.push(FieldError::invalid(format!("data[{key}]"), &value, detail));
                }
            }
            immutable(obj, old, &["data", "binaryData"], errors);
        }
        "api.core.v1.Secret" => {
            keys(obj, &["data"], "config", errors);
            immutable(obj, old, &["data"], errors);
            if obj["type"] == "kubernetes.io/tls" {
                for key in ["tls.crt", "tls.key"] {
                    if obj["data"].get(key).is_none() {
                        errors.push(FieldError::required(format!("data[{key}]"), ""));
                    }
                }
            }
            if old.is_some_and(|old| old["type"] != obj["type"]) {
                errors.push(FieldError::invalid("type", &obj["type"], "field is immutable"));
            }
        }
        "api.core.v1.ReplicationController" | "api.core.v1.PodTemplate" => workload::other(name, obj, errors),
        "api.apps.v1.Deployment"
        | "api.apps.v1.ReplicaSet"
        | "api.apps.v1.DaemonSet"
        | "api.apps.v1.StatefulSet" => {
            workload::app(obj, old, errors);
        }
        "api.batch.v1.Job" => workload::job(&obj["spec"], old.map(|o| &o["spec"]), "spec", errors),
        "api.batch.v1.CronJob" => workload::cron_job(obj, errors),
        "api.rbac.v1.RoleBinding" | "api.rbac.v1.ClusterRoleBinding"
            if old.is_some_and(|old| old["roleRef"] != obj["roleRef"]) =>
        {
            let reference = |key: &str| obj["roleRef"][key].clone();
            let shown = serde_json::json!({"APIGroup": reference("apiGroup"), "Kind": reference("kind"), "Name": reference("name")});
            errors.push(FieldError::invalid("roleRef", &shown, "cannot change roleRef"));
        }
        "api.rbac.v1.Role" | "api.rbac.v1.ClusterRole" => others::rules(obj, errors),
        "api.networking.v1.Ingress" => others::ingress(obj, errors),
        "api.networking.v1.NetworkPolicy" => others::network_policy(obj, errors),
        "api.policy.v1.PodDisruptionBudget" => others::budget(obj, errors),
        "api.coordination.v1.Lease" => others::lease(obj, errors),
        "api.scheduling.v1.PriorityClass" => others::priority_class(obj, errors),
        "api.core.v1.PersistentVolumeClaim" if old.is_none() => others::claim(obj, errors),
        "api.core.v1.PersistentVolume" if old.is_none() => others::volume(obj, errors),
        "api.core.v1.ResourceQuota" => others::quota(obj, errors),
        "api.core.v1.LimitRange" => others::limit_range(obj, errors),
        "api.discovery.v1.EndpointSlice" => others::slice(obj, errors),
        "api.core.v1.Event" if old.is_none() => others::event(obj, errors),
        "api.autoscaling.v1.HorizontalPodAutoscaler" | "api.autoscaling.v2.HorizontalPodAutoscaler" => {
            autoscaler::autoscaler(obj, old, errors);
        }
        "api.admissionregistration.v1.MutatingWebhookConfiguration"
        | "api.admissionregistration.v1.ValidatingWebhookConfiguration" => webhooks(obj, errors),
        _ => {}
    }
}

fn immutable(obj: &Value, old: Option<&Value>, fields: &[&str], errors: &mut Vec<FieldError>) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    if obj["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if obj[field] != old[field] {
            errors.push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a literal of this crate")
}

static KEY: LazyLock<Regex> = LazyLock::new(|| regex(r"^[-._a-zA-Z0-9]+$"));
static LABEL: LazyLock<Regex> = LazyLock::new(|| regex(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
static PORT_NAME: LazyLock<Regex> = LazyLock::new(|| regex(r"^[-a-z0-9]*[a-z][-a-z0-9]*$"));

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
                          end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                          '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

fn keys(obj: &Value, fields: &[&str], what: &str, errors: &mut Vec<FieldError>) {
    for field in fields {
        for key in obj[field].as_object().into_iter().flat_map(|m| m.keys()) {
            let path = format!("{field}[{key}]");
            if key.len() > 253 {
                errors.push(FieldError::invalid(
                    path,
                    &key.as_str().into(),
                    "must be no more than 253 characters",
                ));
            } else if key == ".." {
                errors.push(FieldError::invalid(path, &key.as_str().into(), "must not be '..'"));
            } else if !KEY.is_match(key) || key == "." || key.starts_with("..") {
                let rule = format!(
                    "a valid {what} key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  \
                     or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                );
                errors.push(FieldError::invalid(path, &key.as_str().into(), rule));
            }
        }
    }
}

fn webhooks(obj: &Value, errors: &mut Vec<FieldError>) {
    for (i, hook) in list(obj, "webhooks").iter().enumerate() {
        let path = format!("webhooks[{i}]");
        let name = hook["name"].as_str().unwrap_or_default();
        if name.split('.').filter(|p| !p.is_empty()).count() < 3 {
            errors.push(FieldError::invalid(
                format!("{path}.name"),
                &hook["name"],
                "should be a domain with at least three segments separated by dots",
            ));
        }
        one_of(hook, &path, "sideEffects", &["None", "NoneOnDryRun"], errors);
        let config = &hook["clientConfig"];
        if config["url"].is_null() == config["service"].is_null() {
            errors.push(FieldError::required(
                format!("{path}.clientConfig"),
                "exactly one of url or service is required",
            ));
        }
        for (j, rule) in list(hook, "rules").iter().enumerate() {
            const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
            for (k, operation) in list(rule, "operations").iter().enumerate() {
                if !operation.as_str().is_some_and(|operation| OPERATIONS.contains(&operation)) {
                    let path = format!("{path}.rules[{j}].operations[{k}]");
                    errors.push(FieldError::not_supported(path, operation, &OPERATIONS));
                }
            }
        }
        if let Some(scheme) =
            config["url"].as_str().and_then(|url| url.split_once("://")).map(|(scheme, _)| scheme)
            && scheme != "https"
        {
            let detail = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
            errors.push(FieldError::invalid(format!("{path}.clientConfig.url"), &scheme.into(), detail));
        }
        let timeout = hook["timeoutSeconds"].as_i64().unwrap_or(10);
        if !(1..=30).contains(&timeout) {
            errors.push(FieldError::invalid(
                format!("{path}.timeoutSeconds"),
                &hook["timeoutSeconds"],
                "the timeout value must be between 1 and 30 seconds",
            ));
        }
        one_of(hook, &path, "failurePolicy", &["Fail", "Ignore"], errors);
        let versions = list(hook, "admissionReviewVersions");
        if versions.is_empty() {
            let detail = "must specify one of v1, v1beta1";
            errors.push(FieldError::required(format!("{path}.admissionReviewVersions"), detail));
        } else if !versions.iter().any(|v| v == "v1") {
            errors.push(FieldError::invalid(
                format!("{path}.admissionReviewVersions"),
                &hook["admissionReviewVersions"],
                "must include at least one of v1",
            ));
        }
        for (j, condition) in list(hook, "matchConditions").iter().enumerate() {
            let expression = condition["expression"].as_str().unwrap_or_default();
            if let Err(e) = crate::expression::check(expression) {
                let path = format!("{path}.matchConditions[{j}].expression");
                errors.push(FieldError::invalid(path, &condition["expression"], e));
            }
        }
    }
}

/// The list under a key; empty where there is none.
fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A text field with a closed set of values; absent is fine.
fn one_of(value: &Value, path: &str, key: &str, allowed: &[&str], errors: &mut Vec<FieldError>) {
    if let Some(text) = value.get(key).and_then(Value::as_str)
        && !allowed.contains(&text)
    {
        errors.push(FieldError::not_supported(format!("{path}.{key}"), &text.into(), allowed));
    }
}

fn not_negative(value: &Value, path: &str, key: &str, errors: &mut Vec<FieldError>) {
    if value.get(key).and_then(Value::as_i64).is_some_and(|n| n < 0) {
        errors.push(FieldError::invalid(
            format!("{path}.{key}"),
            &value[key],
            "must be greater than or equal to 0",
        ));
    }
}

fn label(path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    let text = value.as_str().unwrap_or_default();
    if text.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if text.len() > 63 {
        errors.push(FieldError::invalid(path, value, "must be no more than 63 bytes"));
    } else if !LABEL.is_match(text) {
        errors.push(FieldError::invalid(path, value, LABEL_RULE));
    }
}

fn port_name(path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    let text = value.as_str().unwrap_or_default();
    let ok = text.len() <= 15
        && PORT_NAME.is_match(text)
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-');
    if !ok {
        let rule = if text.len() > 15 {
            "must be no more than 15 characters"
        } else {
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
        };
        errors.push(FieldError::invalid(path, value, rule));
    }
}

fn port_number(path: &str, value: &Value, errors: &mut Vec<FieldError>) {
    match value.as_i64() {
        Some(n) if (1..=65535).contains(&n) => {}
        _ => errors.push(FieldError::invalid(path, value, "must be between 1 and 65535, inclusive")),
    }
}

fn not_found(path: String, value: &Value) -> FieldError {
    FieldError {
        field: path,
        reason: Reason::NotFound,
        bad_value: Some(value.clone()),
        shown: None,
        detail: String::new(),
    }
}
