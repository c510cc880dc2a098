//! Which webhooks a request matches.

use serde_json::Value;

use crate::{Attributes, Operation};

/// Requests that no webhook sees: a broken one must not keep its own configuration from being mended.
pub(crate) fn exempt(attrs: &Attributes) -> bool {
    attrs.gvr.group == "admissionregistration.k8s.io"
        && matches!(
            attrs.gvr.name.as_str(),
            "mutatingwebhookconfigurations"
                | "validatingwebhookconfigurations"
                | "validatingadmissionpolicies"
                | "validatingadmissionpolicybindings"
        )
}

/// The webhooks of a configuration.
pub(crate) fn webhooks(config: &Value) -> impl Iterator<Item = &Value> {
    config.get("webhooks").and_then(Value::as_array).into_iter().flatten()
}

pub(crate) fn name(hook: &Value) -> &str {
    hook.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Whether a webhook is to be asked about a request.
///
/// # Errors
/// A selector or match condition that cannot be evaluated.
pub(crate) fn matches(hook: &Value, attrs: &Attributes, obj: &Value) -> Result<bool, String> {
    let rules = hook.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !rules.iter().any(|rule| rule_matches(rule, attrs)) {
        return Ok(false);
    }
    // Cluster-scoped objects other than namespaces have no namespace whose labels could exclude them.
    let has_namespace = attrs.namespace.is_some() || is_namespace(attrs);
    if has_namespace && let Some(selector) = hook.get("namespaceSelector") {
        let labels =
            |key: &str| attrs.namespace_labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        if !selected(selector, &labels)? {
            return Ok(false);
        }
    }
    if let Some(selector) = hook.get("objectSelector").filter(|s| !is_empty(s)) {
        let mut any = false;
        for candidate in [obj, &attrs.old_object] {
            let Some(meta) = candidate.get("metadata") else { continue };
            let labels = |key: &str| meta.get("labels")?.get(key)?.as_str();
            any |= selected(selector, &labels)?;
        }
        if !any {
            return Ok(false);
        }
    }
    conditions(hook, attrs, obj)
}

fn conditions(hook: &Value, attrs: &Attributes, obj: &Value) -> Result<bool, String> {
    let Some(conditions) = hook.get("matchConditions").and_then(Value::as_array).filter(|c| !c.is_empty())
    else {
        return Ok(true);
    };
    let request = crate::review::attributes(attrs);
    let variables = [("object", obj), ("oldObject", &attrs.old_object), ("request", &request)];
    let mut failure = None;
    for condition in conditions {
        let text = |key: &str| condition.get(key).and_then(Value::as_str).unwrap_or_default();
        match cluster_schema::expression::evaluate_bool(text("expression"), &variables) {
            Ok(true) => {}
            // One that is false settles it, whatever the others would say.
            Ok(false) => return Ok(false),
            Err(e) => {
                failure.get_or_insert_with(|| {
                    format!("match condition {:?} could not be evaluated: {e}", text("name"))
                });
            }
        }
    }
    match failure {
        None => Ok(true),
        Some(_) if hook.get("failurePolicy").and_then(Value::as_str) == Some("Ignore") => Ok(false),
        Some(failure) => Err(failure),
    }
}

fn is_namespace(attrs: &Attributes) -> bool {
    attrs.gvr.group.is_empty() && attrs.gvr.name == "namespaces"
}

fn is_empty(selector: &Value) -> bool {
    selector.as_object().is_none_or(|s| {
        s.values().all(|v| match v {
            Value::Object(map) => map.is_empty(),
            Value::Array(items) => items.is_empty(),
            other => other.is_null(),
        })
    })
}

fn contains(rule: &Value, key: &str, value: &str) -> bool {
    rule.get(key)
        .and_then(Value::as_array)
        .is_some_and(|list| list.iter().filter_map(Value::as_str).any(|item| item == "*" || item == value))
}

fn rule_matches(rule: &Value, attrs: &Attributes) -> bool {
    let gvr = &attrs.gvr;
    rule_names(rule, attrs.operation, (&gvr.group, &gvr.version, &gvr.name), &attrs.sub_resource)
        && scope_matches(rule, attrs)
}

/// Whether a rule of any webhook of a configuration names such a request (group, version, resource), whatever its object and scope.
///
/// For most requests it is `false`, and then nothing else about them needs to be put together.
pub fn names(config: &Value, operation: Operation, gvr: (&str, &str, &str), sub_resource: &str) -> bool {
    webhooks(config)
        .flat_map(|hook| hook.get("rules").and_then(Value::as_array).into_iter().flatten())
        .any(|rule| rule_names(rule, operation, gvr, sub_resource))
}

fn rule_names(rule: &Value, operation: Operation, gvr: (&str, &str, &str), sub_resource: &str) -> bool {
    let (group, version, resource) = gvr;
    contains(rule, "operations", operation.as_str())
        && contains(rule, "apiGroups", group)
        && contains(rule, "apiVersions", version)
        && rule.get("resources").and_then(Value::as_array).is_some_and(|list| {
            list.iter().filter_map(Value::as_str).any(|r| resource_matches(r, resource, sub_resource))
        })
}

fn scope_matches(rule: &Value, attrs: &Attributes) -> bool {
    match rule.get("scope").and_then(Value::as_str) {
        Some("Namespaced") => attrs.namespace.is_some() && !is_namespace(attrs),
        Some("Cluster") => attrs.namespace.is_none() || is_namespace(attrs),
        _ => true,
    }
}

fn resource_matches(pattern: &str, wanted: &str, sub_resource: &str) -> bool {
    let (resource, sub) = match pattern.split_once('/') {
        Some((resource, sub)) => (resource, Some(sub)),
        None => (pattern, None),
    };
    let sub_matches = match sub {
        None => sub_resource.is_empty(),
        Some("*") => true,
        Some(sub) => sub == sub_resource,
    };
    sub_matches && (resource == "*" || resource == wanted)
}

/// Evaluates a `LabelSelector`.
fn selected<'a>(selector: &Value, labels: &dyn Fn(&str) -> Option<&'a str>) -> Result<bool, String> {
    if let Some(exact) = selector.get("matchLabels").and_then(Value::as_object)
        && !exact.iter().all(|(key, value)| labels(key) == value.as_str())
    {
        return Ok(false);
    }
    for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = expression.get("key").and_then(Value::as_str).unwrap_or_default();
        let value = labels(key);
        let listed = || {
            expression
                .get("values")
                .and_then(Value::as_array)
                .is_some_and(|list| list.iter().any(|v| v.as_str() == value && value.is_some()))
        };
        let ok = match expression.get("operator").and_then(Value::as_str) {
            Some("In") => listed(),
            Some("NotIn") => !listed(),
            Some("Exists") => value.is_some(),
            Some("DoesNotExist") => value.is_none(),
            other => {
                return Err(format!(
                    "{:?} is not a valid label selector operator",
                    other.unwrap_or_default()
                ));
            }
        };
        if !ok {
            return Ok(false);
        }
    }
    Ok(true)
}
