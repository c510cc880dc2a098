//! Between the version an object is stored in and the version a client speaks.
//!
//! Versions of a CRD differ in nothing but `apiVersion`, unless its definition names a [`webhook`]. The conversions done here are those of
//! events, which live in core and are shown in events.k8s.io under other field names, and of autoscalers, which `autoscaling/v1` shows
//! with the one metric that it knows, the others kept in annotations.

pub(crate) mod webhook;

use std::borrow::Cow;

use serde_json::Value;

use crate::registry::Resource;

const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// Does a stored object differ from what this version shows? Custom objects may be older than the version that is stored now.
pub(crate) fn is_needed(resource: &Resource, object: &Value) -> bool {
    is_needed_of(resource, object["apiVersion"].as_str().unwrap_or_default())
}

/// The same of an object with this `apiVersion`, which may be empty.
pub(crate) fn is_needed_of(resource: &Resource, api_version: &str) -> bool {
    if resource.builtin || api_version.is_empty() {
        return !is_stored_version(resource);
    }
    !is_version(resource, api_version)
}

/// Is it the version in which new objects are stored?
fn is_stored_version(resource: &Resource) -> bool {
    is_version(resource, &resource.storage_version)
}

fn is_version(resource: &Resource, api_version: &str) -> bool {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    group == resource.group && version == resource.version
}

fn is_event(resource: &Resource) -> bool {
    resource.group == "events.k8s.io"
}

/// As this version shows it.
pub(crate) fn from_storage<'a>(resource: &Resource, object: &'a Value) -> Cow<'a, Value> {
    if !is_needed(resource, object) && object["apiVersion"].is_string() {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    if is_event(resource) {
        rename(&mut object, |core, new| (core, new));
        if let Some(map) = object.as_object_mut() {
            // Where core always says who reported, this group does only when it knows.
            map.retain(|field, value| !(field.starts_with("reporting") && value == ""));
        }
    } else if is_first_autoscaler(resource) {
        to_first_autoscaler(&mut object);
    }
    object["apiVersion"] = resource.api_version().into();
    Cow::Owned(object)
}

/// As it is stored.
pub(crate) fn to_storage(resource: &Resource, mut object: Value) -> Value {
    if !is_stored_version(resource) {
        if is_event(resource) {
            rename(&mut object, |core, new| (new, core));
        } else if is_first_autoscaler(resource) {
            from_first_autoscaler(&mut object);
        }
        object["apiVersion"] = resource.storage_version.clone().into();
    }
    object
}

fn is_first_autoscaler(resource: &Resource) -> bool {
    resource.group == "autoscaling" && resource.version == "v1"
}

const CPU: &str = "targetCPUUtilizationPercentage";
/// What v1 has no fields for, by the fields of v2.
const KEPT: [(&str, &str); 2] = [
    ("metrics", "autoscaling.alpha.kubernetes.io/metrics"),
    ("behavior", "autoscaling.alpha.kubernetes.io/behavior"),
];

fn is_cpu(metric: &Value) -> bool {
    let resource = &metric["resource"];
    metric["type"] == "Resource" && resource["name"] == "cpu" && resource["target"]["type"] == "Utilization"
}

fn to_first_autoscaler(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let mut cpu = None;
    if let Some(Value::Array(metrics)) = spec.get_mut("metrics") {
        if let Some(at) = metrics.iter().position(is_cpu) {
            cpu = Some(metrics.remove(at)["resource"]["target"]["averageUtilization"].take());
        }
        if metrics.is_empty() {
            spec.remove("metrics");
        }
    }
    if let Some(cpu) = cpu {
        spec.insert(CPU.to_owned(), cpu);
    }
    let kept: Vec<(&str, Value)> =
        KEPT.iter().filter_map(|(field, note)| Some((*note, spec.remove(*field)?))).collect();
    for (note, value) in kept {
        object["metadata"]["annotations"][note] = value.to_string().into();
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("conditions");
        let metrics = status.remove("currentMetrics");
        let metrics = metrics.as_ref().and_then(Value::as_array).into_iter().flatten();
        let cpu = metrics.map(|metric| &metric["resource"]).find(|metric| metric["name"] == "cpu");
        if let Some(percent) = cpu.map(|cpu| &cpu["current"]["averageUtilization"]).filter(|it| it.is_i64()) {
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent.clone());
        }
        if status.is_empty() || status.values().all(Value::is_null) {
            *status = serde_json::Map::new();
        }
        for count in ["currentReplicas", "desiredReplicas"] {
            status.entry(count).or_insert_with(|| 0.into());
        }
    }
}

fn from_first_autoscaler(object: &mut Value) {
    let mut back = Vec::new();
    if let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") {
        for (field, note) in KEPT {
            let value = annotations.remove(note);
            let value =
                value.as_ref().and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
            back.extend(value.map(|value: Value| (field, value)));
        }
    }
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for (field, value) in back {
        spec.insert(field.to_owned(), value);
    }
    if let Some(cpu) = spec.remove(CPU) {
        let metric = serde_json::json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": cpu}}});
        match spec.get_mut("metrics").and_then(Value::as_array_mut) {
            Some(metrics) => metrics.insert(0, metric),
            None => drop(spec.insert("metrics".to_owned(), Value::Array(vec![metric]))),
        }
    }
}

fn rename(
    object: &mut Value,
    direction: impl Fn(&'static str, &'static str) -> (&'static str, &'static str),
) {
    let Some(map) = object.as_object_mut() else { return };
    for &(core, new) in EVENT_FIELDS {
        let (from, to) = direction(core, new);
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    #[test]
    fn autoscalers_keep_what_the_first_version_does_not_know() {
        let registry = Registry::new();
        let snapshot = registry.snapshot();
        let resource = snapshot.find("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        let stored = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"annotations": {}}, "spec": {
            "maxReplicas": 3, "behavior": {"scaleDown": {"selectPolicy": "Min"}}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}}]}});
        let shown = from_storage(resource, &stored).into_owned();
        assert_eq!((&shown["spec"][CPU], &shown["spec"]["metrics"]), (&json!(80), &Value::Null));
        assert_eq!(to_storage(resource, shown), stored);
    }

    #[test]
    fn what_was_stored_in_another_version_is_shown_in_this() {
        let definition = json!({"spec": {"group": "g.io", "versions": [
            {"name": "v1", "served": true, "schema": {"openAPIV3Schema": {"type": "object"}}},
            {"name": "v2", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
            "status": {"acceptedNames": {"kind": "Cup", "plural": "cups"}, "conditions": [{"type": "NamesAccepted", "status": "True"}]}});
        let resources = crate::registry::crd::resources(&definition, &crate::registry::Snapshot::default());
        let shown = |version: &str, stored: &str| {
            let resource = resources.iter().find(|resource| resource.version == version).unwrap();
            from_storage(resource, &json!({"apiVersion": stored}))["apiVersion"].as_str().unwrap().to_owned()
        };
        for (version, stored) in [("v1", "g.io/v1"), ("v1", "g.io/v2"), ("v2", "g.io/v1"), ("v2", "g.io/v2")]
        {
            assert_eq!(shown(version, stored), format!("g.io/{version}"), "stored as {stored}");
        }
    }

    #[test]
    fn events_go_there_and_back() {
        let registry = Registry::new();
        let snapshot = registry.snapshot();
        let resource = snapshot.find("events.k8s.io", "v1", "events").unwrap();
        let stored = json!({"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"name": "a"}, "count": 2});
        let shown = from_storage(resource, &stored).into_owned();
        assert_eq!(shown["apiVersion"], "events.k8s.io/v1");
        assert_eq!((&shown["note"], &shown["regarding"]["name"]), (&json!("m"), &json!("a")));
        assert_eq!(to_storage(resource, shown), stored);
    }
}
