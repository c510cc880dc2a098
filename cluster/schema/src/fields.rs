//! Fields that a schema does not know: named (strict and warning validation) or removed (pruning).

use serde_json::Value;

use crate::node::{Field, Node, Sub};

/// Paths of all fields that the schema does not declare.
pub(crate) fn unknown(node: &Node, value: &Value, path: &mut String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let len = path.len();
                if len > 0 {
                    path.push('.');
                }
                path.push_str(key);
                match node.field(key) {
                    Field::Known(sub) | Field::Entry(sub) => unknown(sub, value, path, out),
                    Field::Untyped => {}
                    Field::Unknown => {
                        // A scalar type with an object in its place is a type error, which validation reports.
                        if node.ty == crate::node::Ty::Object {
                            out.push(path.clone());
                        }
                    }
                }
                path.truncate(len);
            }
        }
        Value::Array(items) => {
            let Some(item) = &node.items else { return };
            for (i, value) in items.iter().enumerate() {
                let len = path.len();
                path.push_str(&format!("[{i}]"));
                unknown(item, value, path, out);
                path.truncate(len);
            }
        }
        _ => {}
    }
}

/// Removes what [`unknown`] would name.
pub(crate) fn prune(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if node.ty != crate::node::Ty::Object && node.ty != crate::node::Ty::Any {
                return;
            }
            map.retain(|key, value| match node.field(key) {
                Field::Known(sub) | Field::Entry(sub) => {
                    prune(sub, value);
                    true
                }
                Field::Untyped => true,
                Field::Unknown => false,
            });
        }
        Value::Array(items) => {
            if let Some(item) = &node.items {
                for value in items {
                    prune(item, value);
                }
            }
        }
        _ => {}
    }
}

/// Whether every `default:` in a CRD schema would survive pruning and is thus usable.
pub(crate) fn known(sub: &Sub, value: &Value) -> bool {
    let mut out = Vec::new();
    unknown(sub, value, &mut String::new(), &mut out);
    out.is_empty()
}
