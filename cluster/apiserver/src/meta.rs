//! Reading and writing `metadata` of an object held as JSON.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// Now, as Kubernetes writes times: RFC 3339, UTC, whole seconds.
pub(crate) fn now() -> String {
    rfc3339(Timestamp::now())
}

/// A time as Kubernetes writes it.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A string in `metadata`, empty if absent.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The object's name.
pub(crate) fn name(object: &Value) -> &str {
    text(object, "name")
}

/// The object's namespace.
pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// The object's uid.
pub(crate) fn uid(object: &Value) -> &str {
    text(object, "uid")
}

/// `metadata`, made if absent or not an object.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Map::new());
    }
    object["metadata"].as_object_mut().expect("it was made an object just now")
}

/// Sets a field of `metadata`.
pub(crate) fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    metadata(object).insert(field.to_owned(), value.into());
}

/// Removes a field of `metadata`.
pub(crate) fn unset(object: &mut Value, field: &str) {
    metadata(object).remove(field);
}

/// The finalizers.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Is its deletion under way?
pub(crate) fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The items of a list, to be changed; none if it is not there (indexing would make it null).
pub(crate) fn items_mut<'a>(object: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Copies a top-level field from one object to another, absence included.
pub(crate) fn carry(field: &str, from: &Value, to: &mut Value) {
    let Some(to) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => to.insert(field.to_owned(), value.clone()),
        None => to.remove(field),
    };
}

/// Gives all fields their former values, but for those that `kept` names. What is equal, most of it, is not copied.
pub(crate) fn restore(old: &Value, new: &mut Value, kept: impl Fn(&str) -> bool) {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object_mut()) else { return };
    new.retain(|field, _| kept(field) || old.contains_key(field));
    for (field, value) in old.iter().filter(|(field, _)| !kept(field)) {
        if new.get(field) != Some(value) {
            new.insert(field.clone(), value.clone());
        }
    }
}

/// Removes nulls, as decoding into typed structures would.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Are two states the same, apart from the revision and the times of `managedFields`?
///
/// A write that changes nothing keeps its resourceVersion, so that controllers may write without care.
pub(crate) fn same(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return old == new };
    old.len() == new.len()
        && old.iter().all(|(field, old)| {
            let Some(new) = new.get(field) else { return false };
            if field == "metadata" { same_metadata(old, new) } else { old == new }
        })
}

fn same_metadata(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return old == new };
    let fields = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key("resourceVersion"));
    fields(old) == fields(new)
        && old.iter().filter(|(field, _)| *field != "resourceVersion").all(|(field, old)| {
            let Some(new) = new.get(field) else { return false };
            if field == "managedFields" { same_managers(old, new) } else { old == new }
        })
}

fn same_managers(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_array(), new.as_array()) else { return old == new };
    old.len() == new.len()
        && old.iter().zip(new).all(|(old, new)| {
            let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return old == new };
            old.len() == new.len()
                && old.iter().all(|(field, old)| field == "time" || new.get(field) == Some(old))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sameness_ignores_revision_and_times_only() {
        let old = json!({"metadata": {"name": "a", "resourceVersion": "5", "managedFields": [{"manager": "m", "time": "1"}]}, "spec": 1});
        let mut new =
            json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": "2"}]}, "spec": 1});
        assert!(same(&old, &new));
        new["metadata"]["managedFields"][0]["manager"] = "n".into();
        assert!(!same(&old, &new));
        let more = json!({"metadata": {"name": "a", "labels": {}}, "spec": 1});
        assert!(!same(&old, &more));
    }

    #[test]
    fn restoring_leaves_only_what_is_kept() {
        let old = json!({"a": 1, "b": {"c": 2}, "kept": 3, "gone": 4});
        let mut new = json!({"a": 1, "b": {"c": 5}, "kept": 6, "more": 7});
        restore(&old, &mut new, |field| field == "kept");
        assert_eq!(new, json!({"a": 1, "b": {"c": 2}, "kept": 6, "gone": 4}));
    }

    #[test]
    fn nulls_go_at_any_depth() {
        let mut value = json!({"a": null, "b": [{"c": null, "d": 1}]});
        drop_nulls(&mut value);
        assert_eq!(value, json!({"b": [{"d": 1}]}));
    }
}
