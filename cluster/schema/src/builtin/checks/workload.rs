//! What makes pods from a template: Deployments and their kin, Jobs.

use serde_json::Value;

use super::{list, not_negative, one_of, pod};
use crate::error::{FieldError, go_struct};

/// Deployment, ReplicaSet, DaemonSet, StatefulSet.
pub(super) fn app(obj: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        not_negative(spec, "spec", key, errors);
    }
    let selector = &spec["selector"];
    let empty = list(selector, "matchExpressions").is_empty()
        && selector["matchLabels"].as_object().is_none_or(serde_json::Map::is_empty);
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    }
    if selector.is_object() && empty {
        errors.push(FieldError::invalid(
            "spec.selector",
            selector,
            "empty selector is invalid for deployment",
        ));
    } else if selector.is_null() || !selects(selector, &spec["template"]["metadata"]["labels"]) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            &spec["template"]["metadata"]["labels"],
            "`selector` does not match template `labels`",
        ));
    }
    if old.is_some_and(|old| old["spec"]["selector"] != *selector) {
        errors.push(FieldError::invalid("spec.selector", selector, "field is immutable"));
    }
    let strategy = &spec["strategy"];
    if strategy["type"].as_str().is_some_and(|kind| !matches!(kind, "Recreate" | "RollingUpdate")) {
        let shown = go_struct(&[
            ("Type", strategy["type"].clone()),
            ("RollingUpdate", strategy["rollingUpdate"].clone()),
        ]);
        let supported = ["Recreate", "RollingUpdate"];
        errors.push(FieldError::not_supported("spec.strategy", strategy, &supported).showing(shown));
    }
    for field in ["maxSurge", "maxUnavailable"] {
        let value = &strategy["rollingUpdate"][field];
        let percent = |text: &str| {
            text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        if value.as_str().is_some_and(|text| !percent(text)) {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used \
                          for validation is '[0-9]+%')";
            errors.push(FieldError::invalid(format!("spec.strategy.rollingUpdate.{field}"), value, detail));
        }
    }
    let deadline = &spec["progressDeadlineSeconds"];
    if deadline.as_i64().is_some_and(|seconds| seconds <= spec["minReadySeconds"].as_i64().unwrap_or(0)) {
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
    if spec["strategy"]["type"] == "Recreate" && !spec["strategy"]["rollingUpdate"].is_null() {
        errors.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ));
    }
    let rolling = &spec["strategy"]["rollingUpdate"];
    let zero = |v: &Value| v.as_i64() == Some(0) || v.as_str() == Some("0%");
    if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
        errors.push(FieldError::invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            &rolling["maxUnavailable"],
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    let template = &spec["template"];
    // What is stored was judged when it was written: only a changed template is judged again.
    if old.is_some_and(|old| old["spec"]["template"] == *template) {
        return;
    }
    pod::spec(&template["spec"], "spec.template.spec", errors);
    one_of(&template["spec"], "spec.template.spec", "restartPolicy", &["Always"], errors);
}

/// A Job's spec, also inside of a CronJob's template.
pub(super) fn job(spec: &Value, old: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    for key in
        ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"]
    {
        not_negative(spec, path, key, errors);
    }
    if let Some(old) = old {
        for key in ["selector", "template", "completionMode"] {
            // The server itself adds the selector and its labels after creation.
            if !old[key].is_null() && old[key] != spec[key] && old["suspend"] != true {
                errors.push(FieldError::invalid(format!("{path}.{key}"), &spec[key], "field is immutable"));
            }
        }
        return;
    }
    pod::spec(&spec["template"]["spec"], &format!("{path}.template.spec"), errors);
    let policy = spec["template"]["spec"]["restartPolicy"].as_str().unwrap_or_default();
    if !matches!(policy, "OnFailure" | "Never") {
        let field = format!("{path}.template.spec.restartPolicy");
        errors.push(FieldError::required(field, "valid values: \"OnFailure\", \"Never\""));
    }
}

pub(super) fn cron_job(obj: &Value, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let schedule = spec["schedule"].as_str().unwrap_or_default();
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else if !schedule.starts_with('@') && schedule.split_whitespace().count() != 5 {
        let found = schedule.split_whitespace().count();
        errors.push(FieldError::invalid(
            "spec.schedule",
            &spec["schedule"],
            format!("expected exactly 5 fields, found {found}: [{schedule}]"),
        ));
    }
    one_of(spec, "spec", "concurrencyPolicy", &["Allow", "Forbid", "Replace"], errors);
    job(&spec["jobTemplate"]["spec"], None, "spec.jobTemplate.spec", errors);
}

/// ReplicationController and PodTemplate.
pub(super) fn other(type_name: &str, obj: &Value, errors: &mut Vec<FieldError>) {
    if type_name.ends_with("PodTemplate") {
        pod::spec(&obj["template"]["spec"], "template.spec", errors);
    } else if !obj["spec"]["template"].is_null() {
        not_negative(&obj["spec"], "spec", "replicas", errors);
        pod::spec(&obj["spec"]["template"]["spec"], "spec.template.spec", errors);
    }
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let exact = selector["matchLabels"]
        .as_object()
        .is_none_or(|all| all.iter().all(|(k, v)| labels.get(k) == Some(v)));
    exact
        && list(selector, "matchExpressions").iter().all(|e| {
            let value = labels.get(e["key"].as_str().unwrap_or_default());
            let listed = value.is_some_and(|v| list(e, "values").contains(v));
            match e["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => value.is_some(),
                Some("DoesNotExist") => value.is_none(),
                _ => false,
            }
        })
}
