//! Kinds that are mostly written by hand and stored: networking, storage, quotas, budgets and the like.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::{LABEL_RULE, list, one_of, regex};
use crate::error::{FieldError, go_struct};
use crate::quantity::to_f64;

const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
                              and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const KEY_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
                        character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                        '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
static SUBDOMAIN: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
static KEY: LazyLock<Regex> = LazyLock::new(|| regex(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"));

/// A DNS name.
pub(super) fn subdomain(path: impl Into<String>, value: &Value, errors: &mut Vec<FieldError>) {
    if !SUBDOMAIN.is_match(value.as_str().unwrap_or_default()) {
        errors.push(FieldError::invalid(path, value, SUBDOMAIN_RULE));
    }
}

/// A DNS label.
pub(super) fn dns_label(path: impl Into<String>, value: &Value, errors: &mut Vec<FieldError>) {
    let text = value.as_str().unwrap_or_default();
    if text.contains('.') || !SUBDOMAIN.is_match(text) {
        errors.push(FieldError::invalid(path, value, LABEL_RULE));
    }
}

/// The keys of a selector.
pub(super) fn label_keys(path: &str, map: &Value, errors: &mut Vec<FieldError>) {
    for key in map.as_object().into_iter().flat_map(|map| map.keys()) {
        let name = key.rsplit('/').next().unwrap_or_default();
        if !KEY.is_match(name) {
            errors.push(FieldError::invalid(path, &key.as_str().into(), KEY_RULE));
        }
    }
}

fn amount(value: &Value) -> Option<f64> {
    value.as_str().map_or_else(|| value.as_f64(), to_f64)
}

pub(super) fn ingress(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    if spec["defaultBackend"].is_null() && list(spec, "rules").is_empty() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", &Value::Null, detail));
    }
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        if let Some(host) = rule["host"].as_str().filter(|host| !host.is_empty()) {
            let plain = host.strip_prefix("*.").unwrap_or(host);
            if !SUBDOMAIN.is_match(plain) {
                errors.push(FieldError::invalid(format!("{path}.host"), &rule["host"], SUBDOMAIN_RULE));
            }
        }
        for (j, one) in list(&rule["http"], "paths").iter().enumerate() {
            let path = format!("{path}.http.paths[{j}]");
            let kind = one["pathType"].as_str().unwrap_or_default();
            one_of(one, &path, "pathType", &["Exact", "ImplementationSpecific", "Prefix"], errors);
            let text = one["path"].as_str().unwrap_or_default();
            if matches!(kind, "Exact" | "Prefix") && !text.starts_with('/') {
                errors.push(FieldError::invalid(
                    format!("{path}.path"),
                    &text.into(),
                    "must be an absolute path",
                ));
            }
            let backend = &one["backend"];
            if backend["service"].is_null() && backend["resource"].is_null() {
                let detail = "resource or service backend is required";
                errors.push(FieldError::invalid(format!("{path}.backend"), &"".into(), detail));
            }
        }
    }
}

pub(super) fn network_policy(obj: &Value, errors: &mut Vec<FieldError>) {
    for (i, kind) in list(&obj["spec"], "policyTypes").iter().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            errors.push(FieldError::not_supported(
                format!("spec.policyTypes[{i}]"),
                kind,
                &["Ingress", "Egress"],
            ));
        }
    }
}

pub(super) fn budget(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        let shown = go_struct(&[
            ("MinAvailable", spec["minAvailable"].clone()),
            ("Selector", spec["selector"].clone()),
            ("MaxUnavailable", spec["maxUnavailable"].clone()),
            ("UnhealthyPodEvictionPolicy", spec["unhealthyPodEvictionPolicy"].clone()),
        ]);
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid("spec", spec, detail).showing(shown));
    }
}

pub(super) fn lease(obj: &Value, errors: &mut Vec<FieldError>) {
    let seconds = &obj["spec"]["leaseDurationSeconds"];
    if seconds.as_i64().is_some_and(|seconds| seconds <= 0) {
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
}

pub(super) fn priority_class(obj: &Value, errors: &mut Vec<FieldError>) {
    let name = obj["metadata"]["name"].as_str().unwrap_or_default();
    if name.starts_with("system-") && !matches!(name, "system-node-critical" | "system-cluster-critical") {
        let detail = format!(
            "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"
        );
        errors.push(FieldError::forbidden("metadata.name", detail));
    }
}

pub(super) fn claim(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    if list(spec, "accessModes").is_empty() {
        errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
    }
    if spec["resources"]["requests"]["storage"].is_null() {
        errors.push(FieldError::required("spec.resources[storage]", ""));
    }
}

pub(super) fn volume(obj: &Value, errors: &mut Vec<FieldError>) {
    /// What is in the spec of a volume besides its one source.
    const COMMON: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let spec = &obj["spec"];
    if list(spec, "accessModes").is_empty() {
        errors.push(FieldError::required("spec.accessModes", ""));
    }
    if spec["capacity"].is_null() {
        errors.push(FieldError::required("spec.capacity", ""));
    }
    if spec["capacity"]["storage"].is_null() {
        errors.push(FieldError::not_supported("spec.capacity", &spec["capacity"], &["storage"]));
    }
    let sources =
        spec.as_object().into_iter().flatten().filter(|(field, _)| !COMMON.contains(&field.as_str()));
    match sources.count() {
        0 => errors.push(FieldError::required("spec", "must specify a volume type")),
        1 => {}
        _ => errors.push(FieldError::forbidden("spec", "may not specify more than 1 volume type")),
    }
}

pub(super) fn quota(obj: &Value, errors: &mut Vec<FieldError>) {
    const STANDARD: [&str; 17] = [
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.storage",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "services",
        "services.nodeports",
        "services.loadbalancers",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
    ];
    for (name, value) in obj["spec"]["hard"].as_object().into_iter().flatten() {
        let path = format!("spec.hard[{name}]");
        let known = STANDARD.contains(&name.as_str())
            || matches!(name.as_str(), "configmaps" | "persistentvolumeclaims" | "storage")
            || name.contains("hugepages-");
        if !known && !name.contains('/') {
            let value = Value::String(name.clone());
            errors.push(FieldError::invalid(
                &path,
                &value,
                "must be a standard resource type or fully qualified",
            ));
            errors.push(FieldError::invalid(&path, &value, "must be a standard resource for quota"));
        }
        if amount(value).is_some_and(|amount| amount < 0.0) {
            errors.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
        }
    }
}

pub(super) fn rules(obj: &Value, errors: &mut Vec<FieldError>) {
    for (i, rule) in list(obj, "rules").iter().enumerate() {
        if list(rule, "verbs").is_empty() {
            let detail = "verbs must contain at least one value";
            errors.push(FieldError::required(format!("rules[{i}].verbs"), detail));
        }
    }
}

pub(super) fn limit_range(obj: &Value, errors: &mut Vec<FieldError>) {
    for (i, limit) in list(&obj["spec"], "limits").iter().enumerate() {
        let path = format!("spec.limits[{i}]");
        let of = |bound: &str, resource: &str| amount(&limit[bound][resource]);
        let text =
            |bound: &str, resource: &str| limit[bound][resource].as_str().unwrap_or_default().to_owned();
        for (resource, least) in limit["min"].as_object().into_iter().flatten() {
            let least_amount = amount(least);
            let mut check = |field: &str, shown: &Value, against: &str, words: &str| {
                if of(against, resource).is_some_and(|value| least_amount > Some(value)) {
                    let detail = format!(
                        "min value {} is greater than {words} value {}",
                        text("min", resource),
                        text(against, resource)
                    );
                    errors.push(FieldError::invalid(format!("{path}.{field}[{resource}]"), shown, detail));
                }
            };
            check("min", least, "max", "max");
            check("defaultRequest", &limit["defaultRequest"][resource], "defaultRequest", "default request");
            // As upstream, which shows the least here and the default itself above.
            check("default", least, "default", "default");
        }
    }
}

pub(super) fn slice(obj: &Value, errors: &mut Vec<FieldError>) {
    let kind = obj["addressType"].as_str().unwrap_or_default();
    if kind.is_empty() {
        errors.push(FieldError::required("addressType", ""));
        return;
    }
    one_of(obj, "", "addressType", &["FQDN", "IPv4", "IPv6"], errors);
    for (i, endpoint) in list(obj, "endpoints").iter().enumerate() {
        for (j, address) in list(endpoint, "addresses").iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let ip: Option<std::net::IpAddr> = text.parse().ok();
            let path = format!("endpoints[{i}].addresses");
            match kind {
                "IPv4" if !ip.is_some_and(|ip| ip.is_ipv4()) => {
                    errors.push(FieldError::invalid(&path, address, "must be an IPv4 address"));
                }
                "IPv6" if !ip.is_some_and(|ip| ip.is_ipv6()) => {
                    errors.push(FieldError::invalid(&path, address, "must be an IPv6 address"));
                }
                _ => {}
            }
            if ip.is_some_and(|ip| ip.is_loopback()) {
                let detail = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
                errors.push(FieldError::invalid(format!("{path}[{j}]"), address, detail));
            }
        }
    }
}

pub(super) fn event(obj: &Value, errors: &mut Vec<FieldError>) {
    let (about, own) = (&obj["involvedObject"]["namespace"], &obj["metadata"]["namespace"]);
    let about_text = about.as_str().unwrap_or_default();
    if !about_text.is_empty() && about != own {
        errors.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
    }
}
