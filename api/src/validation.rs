//! What users may ask for. Pure functions from an object (and what is stored of it) to errors with full paths.

mod annotations;
mod containers;
mod domain_mapping;
mod image;
mod internal;
mod mounts;
mod pod;
mod probes;
mod security;
mod traffic;
mod volumes;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

use crate::config::{Configs, example};
use crate::field_error::{CURRENT, FieldErrors};
use crate::meta::{autoscaling, serving};
use crate::names;
use crate::serving::{Configuration, Revision, RevisionSpec, RevisionTemplateSpec, Route, Service};

pub use domain_mapping::check as domain_mapping;
pub use internal::{certificate, image, ingress, metric, pod_autoscaler, serverless_service};

/// Checks a Service; `old` is what is stored.
#[must_use]
pub fn service(object: &Service, old: Option<&Service>, configs: &Configs) -> FieldErrors {
    let mut errors = metadata(&object.metadata)
        .also(no_autoscaling_annotations(&object.metadata))
        .also(annotations::rollout_duration(object.metadata.annotations.as_ref()).via_field("annotations"))
        .via_field("metadata");
    errors.add(
        template(&object.spec.template, &object.metadata, configs).via_field("template").via_field("spec"),
    );
    errors.add(traffic::list(&object.spec.traffic, true).via_field("traffic").via_field("spec"));
    if let Some(old) = old {
        errors.add(user_info(&old.metadata, &object.metadata, old.spec == object.spec));
        errors.add(name_change(&object.spec.template, &old.spec.template).via_field("spec.template"));
    }
    errors
}

/// Checks a Configuration.
#[must_use]
pub fn configuration(object: &Configuration, old: Option<&Configuration>, configs: &Configs) -> FieldErrors {
    let mut errors =
        metadata(&object.metadata).also(no_autoscaling_annotations(&object.metadata)).via_field("metadata");
    errors.add(owner_label(&object.metadata, serving::SERVICE, "Service"));
    errors.add(
        template(&object.spec.template, &object.metadata, configs).via_field("template").via_field("spec"),
    );
    if let Some(old) = old {
        if object.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
            errors.add(user_info(&old.metadata, &object.metadata, old.spec == object.spec));
        }
        errors.add(name_change(&object.spec.template, &old.spec.template).via_field("spec.template"));
    }
    errors
}

/// Checks a Revision: its spec when it is made, and later that it stays the same.
#[must_use]
pub fn revision(object: &Revision, old: Option<&Revision>, configs: &Configs) -> FieldErrors {
    let found = object.metadata.annotations.as_ref();
    let mut errors = metadata(&object.metadata)
        .also(annotations::autoscaling(found, configs).via_field("annotations"))
        .also(annotations::mtls(found).via_field("annotations"))
        .via_field("metadata");
    errors.add(owner_label(&object.metadata, serving::CONFIGURATION, "Configuration"));
    match old {
        Some(old) if old.spec == object.spec => errors,
        Some(old) => FieldErrors::new("Immutable fields changed (-old +new)", &["spec"])
            .with_details(&diff(&old.spec, &object.spec)),
        None => errors.also(revision_spec(&object.spec, configs).via_field("spec")),
    }
}

/// Checks a Route.
#[must_use]
pub fn route(object: &Route, old: Option<&Route>) -> FieldErrors {
    let mut errors = metadata(&object.metadata)
        .also(no_autoscaling_annotations(&object.metadata))
        .also(annotations::rollout_duration(object.metadata.annotations.as_ref()).via_field("annotations"))
        .via_field("metadata");
    errors.add(owner_label(&object.metadata, serving::SERVICE, "Service"));
    errors.add(traffic::list(&object.spec.traffic, false).via_field("traffic").via_field("spec"));
    if let Some(old) = old.filter(|_| object.metadata.owner_references.as_ref().is_none_or(Vec::is_empty)) {
        errors.add(user_info(&old.metadata, &object.metadata, old.spec == object.spec));
    }
    errors
}

/// Checks a ConfigMap of the platform by its name, and that its documentation was not taken for its settings.
#[must_use]
pub fn config_map(
    name: &str,
    annotations: Option<&BTreeMap<String, String>>,
    data: &crate::config::Data,
) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for error in Configs::default().set(name, data).err().into_iter().flatten() {
        errors.add(FieldErrors::new(error.message, &[CURRENT]).via_key(&error.key).via_field("data"));
    }
    let noted = annotations.and_then(|a| a.get(example::ANNOTATION));
    let changed = |text: &String| noted.is_some_and(|noted| *noted != example::checksum(text));
    if crate::config::NAMES.contains(&name) && data.get(example::KEY).is_some_and(changed) {
        let message = format!(
            "the update modifies a key in {:?}, which has no effect; put the setting directly below \"data\"",
            example::KEY
        );
        errors.add(FieldErrors::new(message, &[example::KEY]).via_field("data"));
    }
    errors
}

fn template(template: &RevisionTemplateSpec, parent: &ObjectMeta, configs: &Configs) -> FieldErrors {
    let found = template.metadata.annotations.as_ref();
    let mut errors = revision_spec(&template.spec, configs).via_field("spec");
    let mut of_annotations = annotations::autoscaling(found, configs);
    of_annotations.add(annotations::networking(found));
    of_annotations.add(annotations::queue_resources(found));
    of_annotations.add(annotations::progress_deadline(found));
    of_annotations.add(annotations::mtls(found));
    errors.add(of_annotations.via_field("metadata.annotations"));
    errors.add(revision_name(template, parent));
    errors
}

fn revision_name(template: &RevisionTemplateSpec, parent: &ObjectMeta) -> FieldErrors {
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    if let Some(prefix) = given(&template.metadata.generate_name) {
        let problems = names::dns1035_prefix(&prefix);
        if !problems.is_empty() {
            let value = format!("not a DNS 1035 label prefix: [{}]", problems.join(" "));
            return FieldErrors::invalid(value, "metadata.generateName");
        }
    }
    let Some(name) = given(&template.metadata.name) else { return FieldErrors::none() };
    let problems = names::dns1035_label(&name);
    if !problems.is_empty() {
        let value = format!("not a DNS 1035 label: [{}]", problems.join(" "));
        return FieldErrors::invalid(value, "metadata.name");
    }
    let Some(parent) = given(&parent.name) else {
        // With generateName the parent's name, which must be the prefix, is not known yet.
        return FieldErrors::disallowed("metadata.name");
    };
    let prefix = format!("{parent}-");
    if name.starts_with(&prefix) {
        FieldErrors::none()
    } else {
        FieldErrors::invalid(format!("{name:?} must have prefix {prefix:?}"), "metadata.name")
    }
}

fn name_change(new: &RevisionTemplateSpec, old: &RevisionTemplateSpec) -> FieldErrors {
    let name = new.metadata.name.as_deref().filter(|n| !n.is_empty());
    if name.is_none() || name != old.metadata.name.as_deref() || new == old {
        return FieldErrors::none();
    }
    FieldErrors::new("Saw the following changes without a name change (-old +new)", &["metadata.name"])
        .with_details(&diff(old, new))
}

fn revision_spec(spec: &RevisionSpec, configs: &Configs) -> FieldErrors {
    let mut errors = pod::spec(&spec.pod, &configs.features);
    let longest = configs.defaults.max_revision_timeout_seconds;
    // Of these three only the whole has an upper bound: it ends what the others would let run on.
    for (field, value, most) in [
        ("timeoutSeconds", spec.timeout_seconds, longest),
        ("responseStartTimeoutSeconds", spec.response_start_timeout_seconds, i64::MAX),
        ("idleTimeoutSeconds", spec.idle_timeout_seconds, i64::MAX),
    ] {
        if let Some(value) = value.filter(|v| !(0..=most).contains(v)) {
            errors.add(FieldErrors::out_of_bounds(value, 0, longest, field));
        }
    }
    errors.also(spec.container_concurrency.map_or_else(FieldErrors::none, |n| concurrency(n, configs)))
}

fn concurrency(value: i64, configs: &Configs) -> FieldErrors {
    let least = i64::from(!configs.defaults.allow_container_concurrency_zero);
    let most = configs.defaults.container_concurrency_max_limit;
    if (least..=most).contains(&value) {
        return FieldErrors::none();
    }
    FieldErrors::out_of_bounds(value, least, most, "containerConcurrency")
}

fn metadata(metadata: &ObjectMeta) -> FieldErrors {
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    let (name, prefix) = (given(&metadata.name), given(&metadata.generate_name));
    let refuse = |what: &str, problems: Vec<String>, field: &str| {
        FieldErrors::new(format!("not a DNS 1035 label{what}: [{}]", problems.join(" ")), &[field])
    };
    if let Some(problems) = prefix.as_deref().map(names::dns1035_prefix).filter(|p| !p.is_empty()) {
        return refuse(" prefix", problems, "generateName");
    }
    if let Some(problems) = name.as_deref().map(names::dns1035_label).filter(|p| !p.is_empty()) {
        return refuse("", problems, "name");
    }
    if name.is_none() && prefix.is_none() {
        return FieldErrors::new("name or generateName is required", &["name"]);
    }
    FieldErrors::none()
}

fn no_autoscaling_annotations(metadata: &ObjectMeta) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for key in
        metadata.annotations.iter().flatten().map(|(k, _)| k).filter(|k| k.starts_with(autoscaling::PREFIX))
    {
        let details =
            "autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work";
        errors.add(FieldErrors::invalid_key(key, CURRENT, details).via_field("annotations"));
    }
    errors
}

/// The labels of ownership are the controller's: they must agree with the owner references.
fn owner_label(metadata: &ObjectMeta, key: &str, kind: &str) -> FieldErrors {
    let Some(value) = metadata.labels.as_ref().and_then(|l| l.get(key)) else { return FieldErrors::none() };
    let owned = metadata.owner_references.iter().flatten().any(|o| o.kind == kind && o.name == *value);
    if owned {
        FieldErrors::none()
    } else {
        FieldErrors::missing(key).via_field("labels").via_field("metadata")
    }
}

/// Who made an object never changes, and who modified it only with the spec.
fn user_info(old: &ObjectMeta, new: &ObjectMeta, same_spec: bool) -> FieldErrors {
    let get = |m: &ObjectMeta, key: &str| m.annotations.as_ref().and_then(|a| a.get(key)).cloned();
    let mut errors = FieldErrors::none();
    let creator = get(old, serving::CREATOR);
    if creator != get(new, serving::CREATOR) {
        errors.add(FieldErrors::new("annotation value is immutable", &[serving::CREATOR]));
    }
    if same_spec && get(old, serving::LAST_MODIFIER) != get(new, serving::LAST_MODIFIER) {
        errors.add(FieldErrors::invalid(
            get(new, serving::LAST_MODIFIER).unwrap_or_default(),
            serving::LAST_MODIFIER,
        ));
    }
    errors.via_field("metadata.annotations")
}

/// Fields whose zero says something, so that it counts as set; any other `false` or 0 is as good as nothing.
const ZERO_COUNTS: &[&str] = &[
    "activeDeadlineSeconds",
    "hostUsers",
    "priority",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "terminationGracePeriodSeconds",
];

/// Fields of a JSON object that are set and not in `allowed`.
fn only<T: Serialize>(value: &T, allowed: &[&str]) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let Ok(Value::Object(map)) = serde_json::to_value(value) else { return errors };
    for (field, value) in &map {
        let unset = match value {
            Value::Null => true,
            Value::Bool(false) => !ZERO_COUNTS.contains(&field.as_str()),
            Value::Number(n) => n.as_i64() == Some(0) && !ZERO_COUNTS.contains(&field.as_str()),
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            _ => false,
        };
        if !unset && !allowed.contains(&field.as_str()) {
            errors.add(FieldErrors::disallowed(field));
        }
    }
    errors
}

/// What changed, a line for each leaf: `-path: old` and `+path: new`.
fn diff<T: Serialize>(old: &T, new: &T) -> String {
    fn leaves(path: &str, value: &Value, out: &mut std::collections::BTreeMap<String, String>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                map.iter().for_each(|(k, v)| leaves(&format!("{path}.{k}"), v, out));
            }
            Value::Array(list) if !list.is_empty() => {
                list.iter().enumerate().for_each(|(i, v)| leaves(&format!("{path}[{i}]"), v, out));
            }
            leaf => {
                out.insert(path.trim_start_matches('.').to_owned(), leaf.to_string());
            }
        }
    }
    let (mut before, mut after) = Default::default();
    leaves("", &serde_json::to_value(old).unwrap_or_default(), &mut before);
    leaves("", &serde_json::to_value(new).unwrap_or_default(), &mut after);
    let mut lines = Vec::new();
    for (path, value) in &before {
        if after.get(path) != Some(value) {
            lines.push(format!("-{path}: {value}"));
        }
    }
    for (path, value) in &after {
        if before.get(path) != Some(value) {
            lines.push(format!("+{path}: {value}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests;
