//! The columns of the built-in types, as the real server prints them.

/// Heading and type; a heading that starts with `~` is shown by `-o wide` only.
macro_rules! columns {
    ($($kind:ident $name:literal),* $(,)?) => {
        const { &[$($crate::table::printers::column($name, stringify!($kind))),*] }
    };
}

mod core;
mod pods;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, text};
use crate::registry::Resource;

const fn column(name: &'static str, kind: &'static str) -> Column {
    let (first, rest) = name.as_bytes().split_at(1);
    if first[0] == b'~' {
        // What follows an ASCII character is still UTF-8.
        match std::str::from_utf8(rest) {
            Ok(name) => Column { name, kind, wide: true },
            Err(_) => Column { name, kind, wide: true },
        }
    } else {
        Column { name, kind, wide: false }
    }
}

const PLAIN: &[Column] = columns![string "Name", string "Created At"];

/// The columns of a built-in type.
pub(super) fn columns(resource: &Resource) -> &'static [Column] {
    let kind = resource.kind.as_str();
    core::columns(kind)
        .or_else(|| workloads::columns(kind))
        .unwrap_or_else(|| if kind == "Pod" { pods::COLUMNS } else { PLAIN })
}

/// The cells of one object, one for each column.
pub(super) fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let kind = resource.kind.as_str();
    if kind == "Pod" {
        return pods::cells(object, now);
    }
    core::cells(kind, object, now).or_else(|| workloads::cells(kind, object, now)).unwrap_or_else(|| {
        vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
    })
}

/// Marks rows of pods that have ended, so that clients may leave them out.
pub(super) fn conditions(resource: &Resource, object: &Value) -> Option<Value> {
    if resource.kind != "Pod" || !resource.builtin {
        return None;
    }
    let phase = object["status"]["phase"].as_str()?;
    matches!(phase, "Succeeded" | "Failed").then(|| {
        json!([{"type": "Completed", "status": "True", "reason": phase,
            "message": if phase == "Failed" { "The pod failed." } else { "The pod has completed successfully." }}])
    })
}

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

fn age(object: &Value, now: Timestamp) -> Value {
    text::age_of(&object["metadata"]["creationTimestamp"], now)
}

fn number(value: &Value) -> Value {
    value.as_i64().unwrap_or(0).into()
}
