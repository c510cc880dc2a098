//! Defaulting of custom resources: `default:` values, and nulls where a value is not nullable but has a default.

use serde_json::{Map, Value};

use crate::node::{Field, Node, Target};

/// Fills in defaults below `node`. Types of Kubernetes inside of a custom resource are left alone, as upstream does.
pub(crate) fn crd(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            // Kubernetes decodes metadata as its own type, which drops nulls.
            if node.has_defaults {
                for (name, sub) in &node.properties {
                    if let Some(default) = &sub.default {
                        let missing = match map.get(name) {
                            None => true,
                            Some(value) => value.is_null() && !sub.nullable,
                        };
                        if missing {
                            map.insert(name.clone(), default.clone());
                        }
                    }
                }
                if let Some(default) =
                    node.additional.as_ref().filter(|a| !a.nullable).and_then(|a| a.default.as_ref())
                {
                    for value in map.values_mut().filter(|v| v.is_null()) {
                        *value = default.clone();
                    }
                }
            }
            for (key, value) in map.iter_mut() {
                match node.field(key) {
                    Field::Known(sub) | Field::Entry(sub) => match &sub.target {
                        Target::Own(own) if own.has_defaults => crd(own, value),
                        Target::Own(own) if own.embedded => embedded(own, value),
                        Target::Type(_) => drop_nulls(value),
                        Target::Own(_) => {}
                    },
                    Field::Untyped | Field::Unknown => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(item) = &node.items else { return };
            if let Some(default) = item.default.as_ref().filter(|_| !item.nullable) {
                for value in items.iter_mut().filter(|v| v.is_null()) {
                    *value = default.clone();
                }
            }
            if item.has_defaults {
                for value in items {
                    crd(item, value);
                }
            }
        }
        _ => {}
    }
}

fn embedded(node: &Node, value: &mut Value) {
    if node.embedded
        && let Some(metadata) = value.get_mut("metadata")
    {
        drop_nulls(metadata);
    }
}

/// Removes map entries that are null: to Kubernetes' own types they are as good as absent.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            for value in map.values_mut() {
                drop_nulls(value);
            }
        }
        Value::Array(items) => {
            for value in items {
                drop_nulls(value);
            }
        }
        _ => {}
    }
}

/// Sets `key` unless it is there.
pub(crate) fn set(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if !map.contains_key(key) {
        map.insert(key.to_owned(), value.into());
    }
}
