//! The short way of tracking: a write that takes no field from anybody leaves `managedFields` as they are but for one time.
//!
//! Most writes are of that kind: a controller sets again the status fields that it owns already. Decoding all sets, computing with
//! them and encoding them anew costs more than everything else about such a write; here the stored form is only looked into.

use serde_json::{Map, Value};

use super::set::FieldSet;
use super::typed::Diff;
use super::{Manager, strip};

/// Notes the write in the managed fields of `new`, which are those of `old`, if that needs no change of any set; says whether it did.
pub(super) fn keep(old: &Value, new: &mut Value, manager: &Manager<'_>, diff: &Diff, now: &str) -> bool {
    let Some(held) = entries(old).filter(|held| !held.is_empty()) else { return false };
    if entries(new) != Some(held) {
        return false;
    }
    let taken = strip(diff.modified.union(&diff.added));
    let mut mine = None;
    for (at, entry) in held.iter().enumerate() {
        let Some(fields) = entry.get("fieldsV1") else { return false };
        if touches(fields, &diff.removed) {
            return false;
        }
        if is_of(entry, manager) {
            if mine.replace(at).is_some() || !covers(fields, &taken) {
                return false;
            }
        } else if touches(fields, &diff.modified) || touches(fields, &diff.added) {
            return false;
        }
    }
    if taken.is_empty() {
        return true;
    }
    let Some(mine) = mine else { return false };
    let Some(Value::Array(held)) = new.pointer_mut("/metadata/managedFields") else { return false };
    held[mine]["time"] = now.into();
    // The order in which they are stored: see `managed::encode`.
    held.sort_by(|a, b| order(a).cmp(&order(b)));
    true
}

fn entries(object: &Value) -> Option<&Vec<Value>> {
    object.get("metadata")?.get("managedFields")?.as_array()
}

fn text<'a>(entry: &'a Value, field: &str) -> &'a str {
    entry.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn order(entry: &Value) -> [&str; 5] {
    ["operation", "time", "manager", "apiVersion", "subresource"].map(|field| text(entry, field))
}

fn is_of(entry: &Value, manager: &Manager<'_>) -> bool {
    text(entry, "operation") == manager.operation
        && text(entry, "manager") == manager.name
        && text(entry, "subresource") == manager.subresource
        && text(entry, "apiVersion") == manager.api_version
}

fn is_member(below: &Map<String, Value>) -> bool {
    below.is_empty() || below.contains_key(".")
}

fn below<'a>(fields: &'a Value, step: &str) -> Option<&'a Value> {
    fields.get(step).filter(|below| below.is_object())
}

/// Does the stored set hold any path of `set`?
fn touches(fields: &Value, set: &FieldSet) -> bool {
    let member = |step: &str| below(fields, step).and_then(Value::as_object).is_some_and(is_member);
    set.members.iter().any(|step| member(step))
        || set.children.iter().any(|(step, child)| below(fields, step).is_some_and(|at| touches(at, child)))
}

/// Does the stored set hold every path of `set`?
fn covers(fields: &Value, set: &FieldSet) -> bool {
    let member = |step: &str| below(fields, step).and_then(Value::as_object).is_some_and(is_member);
    set.members.iter().all(|step| member(step))
        && set.children.iter().all(|(step, child)| match below(fields, step) {
            Some(at) => covers(at, child),
            None => child.is_empty(),
        })
}
