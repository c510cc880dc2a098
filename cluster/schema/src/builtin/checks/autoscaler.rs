//! HorizontalPodAutoscalers: bounds, the target, metrics and behavior.

use serde_json::Value;

use super::others::dns_label;
use super::{list, one_of};
use crate::error::FieldError;
use crate::quantity::to_f64;

/// What a type of metric is told in.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
const LONGEST_WINDOW: i64 = 3600;
const LONGEST_PERIOD: i64 = 1800;

type Errors = Vec<FieldError>;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub(super) fn autoscaler(obj: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &obj["spec"];
    let (least, most) = (spec["minReplicas"].as_i64(), spec["maxReplicas"].as_i64().unwrap_or(0));
    if least.is_some_and(|least| least < 1) {
        let detail = "must be greater than or equal to 1";
        errors.push(FieldError::invalid("spec.minReplicas", &spec["minReplicas"], detail));
    }
    if most < 1 {
        errors.push(FieldError::invalid("spec.maxReplicas", &most.into(), "must be greater than 0"));
    }
    if least.is_some_and(|least| most < least) {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid("spec.maxReplicas", &most.into(), detail));
    }
    let target = &spec["scaleTargetRef"];
    let before = old.map(|old| &old["spec"]["scaleTargetRef"]);
    // As it always was, an old one may stay.
    let same =
        before.is_some_and(|old| old["apiVersion"] == target["apiVersion"] && old["kind"] == target["kind"]);
    reference(target, "spec.scaleTargetRef", same, errors);
    for (at, metric) in list(spec, "metrics").iter().enumerate() {
        self::metric(metric, &format!("spec.metrics[{at}]"), errors);
    }
    let external = |metric: &Value| matches!(text(metric, "type"), "Object" | "External");
    if least == Some(0) && !list(spec, "metrics").iter().any(external) {
        let detail =
            "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(FieldError::forbidden("spec.metrics", detail));
    }
    for direction in ["scaleUp", "scaleDown"] {
        if let Some(rules) = spec["behavior"].get(direction).filter(|rules| rules.is_object()) {
            self::rules(rules, &format!("spec.behavior.{direction}"), errors);
        }
    }
}

/// A name that is to be a part of a path.
fn segment(value: &Value, path: String, errors: &mut Errors) {
    let text = value.as_str().unwrap_or_default();
    if matches!(text, "." | "..") {
        errors.push(FieldError::invalid(path.as_str(), value, format!("may not be '{text}'")));
    }
    for letter in ['/', '%'] {
        if text.contains(letter) {
            errors.push(FieldError::invalid(path.as_str(), value, format!("may not contain '{letter}'")));
        }
    }
}

fn reference(target: &Value, path: &str, group_may_be_empty: bool, errors: &mut Errors) {
    for field in ["kind", "name"] {
        let path = format!("{path}.{field}");
        if text(target, field).is_empty() {
            errors.push(FieldError::required(path, ""));
        } else {
            segment(&target[field], path, errors);
        }
    }
    let version = text(target, "apiVersion");
    let detail = match version.matches('/').count() {
        0 if text(target, "kind") == "ReplicationController" || group_may_be_empty => return,
        0 => "apiVersion must specify API group".to_owned(),
        1 => return,
        _ => format!("unexpected GroupVersion string: {version}"),
    };
    errors.push(FieldError::invalid(format!("{path}.apiVersion"), &version.into(), detail));
}

fn metric(metric: &Value, path: &str, errors: &mut Errors) {
    let types = SOURCES.map(|(name, _)| name);
    if text(metric, "type").is_empty() {
        errors.push(FieldError::required(format!("{path}.type"), "must specify a metric source type"));
        errors.push(FieldError::not_supported(format!("{path}.type"), &"".into(), &types));
    }
    one_of(metric, path, "type", &types, errors);
    let expected = SOURCES.iter().find(|(name, _)| *name == text(metric, "type")).map(|(_, field)| *field);
    // In upstream's order, of which the first that is there is looked at.
    let present: Vec<&str> = ["object", "external", "pods", "resource", "containerResource"]
        .into_iter()
        .filter(|field| metric[field].is_object())
        .collect();
    if let Some(first) = present.first() {
        source(&metric[first], first, &format!("{path}.{first}"), errors);
    }
    if let Some(expected) = expected.filter(|expected| !present.contains(expected)) {
        let detail = "must populate information for the given metric source";
        errors.push(FieldError::required(format!("{path}.{expected}"), detail));
    }
    if present.len() != 1 {
        for other in present.iter().filter(|field| Some(**field) != expected) {
            let detail = "must populate the given metric source only";
            errors.push(FieldError::forbidden(format!("{path}.{other}"), detail));
        }
    }
}

fn source(source: &Value, kind: &str, path: &str, errors: &mut Errors) {
    let target = &source["target"];
    let has = |field: &str| !target[field].is_null();
    let field = |name: &str| format!("{path}.target.{name}");
    match kind {
        "object" | "external" | "pods" => {
            if kind == "object" {
                reference(&source["describedObject"], &format!("{path}.describedObject"), false, errors);
            }
            let name = format!("{path}.metric.name");
            match text(&source["metric"], "name") {
                "" => errors.push(FieldError::required(name, "must specify a metric name")),
                _ => segment(&source["metric"]["name"], name, errors),
            }
        }
        _ => {
            if text(source, "name").is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), "must specify a resource name"));
            }
            if kind == "containerResource" {
                let container = format!("{path}.container");
                match text(source, "container") {
                    "" => errors.push(FieldError::required(container, "must specify a container")),
                    _ => dns_label(container, &source["container"], errors),
                }
            }
        }
    }
    self::target(target, path, errors);
    let (required, detail) = match kind {
        "object" if !has("value") && !has("averageValue") => {
            ("averageValue", "must set either a target value or averageValue")
        }
        "external" if !has("value") && !has("averageValue") => {
            ("averageValue", "must set either a target value for metric or a per-pod target")
        }
        "pods" if !has("averageValue") => ("averageValue", "must specify a positive target averageValue"),
        "resource" | "containerResource" if !has("averageUtilization") && !has("averageValue") => {
            ("averageUtilization", "must set either a target raw value or a target utilization")
        }
        _ => ("", ""),
    };
    if !required.is_empty() {
        errors.push(FieldError::required(field(required), detail));
    }
    if kind == "external" && has("value") && has("averageValue") {
        let detail = "may not set both a target value for metric and a per-pod target";
        errors.push(FieldError::forbidden(field("value"), detail));
    }
    if matches!(kind, "resource" | "containerResource") && has("averageUtilization") && has("averageValue") {
        let detail = "may not set both a target raw value and a target utilization";
        errors.push(FieldError::forbidden(field("averageValue"), detail));
    }
}

fn target(target: &Value, path: &str, errors: &mut Errors) {
    let kind = text(target, "type");
    if kind.is_empty() {
        errors.push(FieldError::required(format!("{path}.target.type"), "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.push(FieldError::invalid(format!("{path}.target.type"), &kind.into(), detail));
    }
    for field in ["value", "averageValue"] {
        let value = &target[field];
        if value.as_str().and_then(to_f64).is_some_and(|value| value <= 0.0) {
            errors.push(FieldError::invalid(format!("{path}.target.{field}"), value, "must be positive"));
        }
    }
    let percent = &target["averageUtilization"];
    if percent.as_i64().is_some_and(|percent| percent < 1) {
        let path = format!("{path}.target.averageUtilization");
        errors.push(FieldError::invalid(path, percent, "must be greater than 0"));
    }
}

fn rules(rules: &Value, path: &str, errors: &mut Errors) {
    let window = &rules["stabilizationWindowSeconds"];
    let window_path = format!("{path}.stabilizationWindowSeconds");
    match window.as_i64() {
        Some(seconds) if seconds < 0 => {
            errors.push(FieldError::invalid(window_path, window, "must be greater than or equal to zero"));
        }
        Some(seconds) if seconds > LONGEST_WINDOW => {
            let detail = format!("must be less than or equal to {LONGEST_WINDOW}");
            errors.push(FieldError::invalid(window_path, window, detail));
        }
        _ => {}
    }
    one_of(rules, path, "selectPolicy", &["Disabled", "Max", "Min"], errors);
    let policies = list(rules, "policies");
    if policies.is_empty() {
        errors.push(FieldError::required(format!("{path}.policies"), "must specify at least one Policy"));
    }
    for (at, policy) in policies.iter().enumerate() {
        let path = format!("{path}.policies[{at}]");
        one_of(policy, &path, "type", &["Percent", "Pods"], errors);
        for field in ["value", "periodSeconds"] {
            let value = policy[field].as_i64().unwrap_or(0);
            if value <= 0 {
                let detail = "must be greater than zero";
                errors.push(FieldError::invalid(format!("{path}.{field}"), &value.into(), detail));
            }
            if field == "periodSeconds" && value > LONGEST_PERIOD {
                let detail = format!("must be less than or equal to {LONGEST_PERIOD}");
                errors.push(FieldError::invalid(format!("{path}.{field}"), &value.into(), detail));
            }
        }
    }
    let tolerance = &rules["tolerance"];
    if tolerance.as_str().and_then(to_f64).is_some_and(|value| value < 0.0) {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(format!("{path}.tolerance"), tolerance, detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(change: Value) -> Vec<String> {
        let mut spec = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 3});
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let mut errors = Vec::new();
        autoscaler(&json!({"spec": spec}), None, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn resource(target: Value) -> Value {
        json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]})
    }

    /// Each was tried on a server of 1.35.
    #[test]
    fn what_a_real_server_refuses() {
        let behavior = |rules: Value| json!({"behavior": {"scaleDown": rules}});
        let policy = |policy: Value| behavior(json!({"policies": [policy]}));
        let cases = [
            (json!({"minReplicas": 0}), "must be greater than or equal to 1"),
            (json!({"minReplicas": 0}), "at least one Object or External metric"),
            (
                resource(json!({"type": "Utilization", "averageUtilization": 0})),
                "averageUtilization: Invalid value: 0: must be greater than 0",
            ),
            (
                resource(json!({"type": "Utilization", "averageUtilization": 5, "averageValue": "1"})),
                "may not set both a target raw value",
            ),
            (
                resource(json!({"type": "Utilization"})),
                "averageUtilization: Required value: must set either a target raw value",
            ),
            (resource(json!({"type": "Value", "value": "1"})), "must set either a target raw value"),
            (
                json!({"metrics": [{"type": "Foo"}]}),
                "supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
            ),
            (
                json!({"metrics": [{"type": "Pods"}]}),
                "spec.metrics[0].pods: Required value: must populate information",
            ),
            (
                json!({"metrics": [{"type": "Pods", "pods": {"metric": {"name": ""}, "target": {"type": "AverageValue", "averageValue": "1"}}}]}),
                "must specify a metric name",
            ),
            (
                json!({"metrics": [{"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "", "target": {"type": "Utilization", "averageUtilization": 5}}}]}),
                "must specify a container",
            ),
            (
                behavior(
                    json!({"stabilizationWindowSeconds": 4000, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 1}]}),
                ),
                "must be less than or equal to 3600",
            ),
            (behavior(json!({"policies": []})), "must specify at least one Policy"),
            (
                policy(json!({"type": "Pods", "value": 0, "periodSeconds": 15})),
                "policies[0].value: Invalid value: 0: must be greater than zero",
            ),
            (
                policy(json!({"type": "Pods", "value": 1, "periodSeconds": 3600})),
                "must be less than or equal to 1800",
            ),
            (
                policy(json!({"type": "Podz", "value": 1, "periodSeconds": 60})),
                "supported values: \"Percent\", \"Pods\"",
            ),
            (
                behavior(
                    json!({"selectPolicy": "Most", "policies": [{"type": "Pods", "value": 1, "periodSeconds": 1}]}),
                ),
                "selectPolicy: Unsupported value",
            ),
            (
                behavior(
                    json!({"tolerance": "-1", "policies": [{"type": "Pods", "value": 1, "periodSeconds": 1}]}),
                ),
                "tolerance: Invalid value",
            ),
            (
                json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "a/b"}}),
                "name: Invalid value: \"a/b\": may not contain '/'",
            ),
            (
                json!({"scaleTargetRef": {"apiVersion": "a/b/c", "kind": "Deployment", "name": "a"}}),
                "unexpected GroupVersion string: a/b/c",
            ),
            (
                json!({"scaleTargetRef": {"apiVersion": "v1", "kind": "Deployment", "name": "a"}}),
                "apiVersion must specify API group",
            ),
        ];
        for (change, wanted) in cases {
            let told = told(change.clone());
            assert!(told.iter().any(|error| error.contains(wanted)), "{change}: {told:?}, not {wanted}");
        }
    }

    #[test]
    fn what_is_good_is_taken() {
        let good = [
            json!({}),
            resource(json!({"type": "Utilization", "averageUtilization": 50})),
            resource(json!({"type": "AverageValue", "averageValue": "100Mi"})),
            json!({"scaleTargetRef": {"apiVersion": "v1", "kind": "ReplicationController", "name": "a"}}),
            json!({"behavior": {"scaleUp": {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}}),
        ];
        for change in good {
            assert_eq!(told(change.clone()), [""; 0], "{change}");
        }
    }
}
