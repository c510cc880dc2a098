//! Between the version an object is stored in and the version a client speaks.
//!
//! Versions of a CRD differ in nothing but `apiVersion` (conversion strategy None). The one real conversion is that of
//! events, which live in core and are shown in events.k8s.io under other field names.

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

/// Does a stored object differ from what this version shows?
pub(crate) fn is_needed(resource: &Resource) -> bool {
    if resource.group.is_empty() {
        return false;
    }
    match resource.storage_version.split_once('/') {
        Some((group, version)) => group != resource.group || version != resource.version,
        None => true,
    }
}

fn is_event(resource: &Resource) -> bool {
    resource.group == "events.k8s.io"
}

/// As this version shows it.
pub(crate) fn from_storage<'a>(resource: &Resource, object: &'a Value) -> Cow<'a, Value> {
    if !is_needed(resource) && object["apiVersion"].is_string() {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    if is_event(resource) {
        rename(&mut object, |core, new| (core, new));
    }
    object["apiVersion"] = resource.api_version().into();
    Cow::Owned(object)
}

/// As it is stored.
pub(crate) fn to_storage(resource: &Resource, mut object: Value) -> Value {
    if is_needed(resource) {
        if is_event(resource) {
            rename(&mut object, |core, new| (new, core));
        }
        object["apiVersion"] = resource.storage_version.clone().into();
    }
    object
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
