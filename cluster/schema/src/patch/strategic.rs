//! Strategic merge patch: a merge patch that knows which lists are maps in disguise.
//!
//! Directives: `$patch: replace|delete|merge` on a map or a list item, `$retainKeys` on a map, `$setElementOrder/FIELD` and
//! `$deleteFromPrimitiveList/FIELD` beside a list. Source: k8s.io/apimachinery `util/strategicpatch`.

use serde_json::{Map, Value};

use super::PatchError;
use crate::decode::go_text;
use crate::node::Sub;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

fn malformed<T>(message: impl Into<String>) -> Result<T, PatchError> {
    Err(PatchError::Malformed(message.into()))
}

/// Merges `patch`, an object, into `doc`.
pub(super) fn merge(sub: Option<&Sub>, doc: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        *doc = patch.clone();
        return Ok(());
    };
    match directive(patch)? {
        Some("replace") => {
            *doc = clean(&Value::Object(patch.clone()));
            return Ok(());
        }
        Some("delete") => {
            *doc = Value::Object(Map::new());
            return Ok(());
        }
        _ => {}
    }
    if !doc.is_object() {
        *doc = Value::Object(Map::new());
    }
    let Value::Object(doc) = doc else { return Ok(()) };
    retain_keys(doc, patch)?;
    for (key, value) in patch {
        if key == PATCH || key == RETAIN {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            let Value::Array(gone) = value else { return malformed(format!("{key} must be a list")) };
            if let Some(Value::Array(items)) = doc.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if let Some(field) = key.strip_prefix(ORDER) {
            // With the list itself in the patch, ordering is part of merging that; alone, it only reorders.
            if !patch.contains_key(field) {
                set_order(sub, doc, field, value, None)?;
            }
            continue;
        }
        if value.is_null() {
            doc.remove(key);
            continue;
        }
        let child = sub.and_then(|s| s.field(key).sub());
        let order = patch.get(&format!("{ORDER}{key}"));
        field(child, doc, key, value)?;
        if let Some(order) = order {
            set_order(sub, doc, key, order, Some(value))?;
        }
    }
    Ok(())
}

fn directive(patch: &Map<String, Value>) -> Result<Option<&str>, PatchError> {
    match patch.get(PATCH) {
        None => Ok(None),
        Some(Value::String(d)) if matches!(d.as_str(), "replace" | "delete" | "merge") => Ok(Some(d)),
        Some(other) => malformed(format!(
            "unknown patch type: {} in map: {}",
            go_text(other),
            go_text(&Value::Object(patch.clone()))
        )),
    }
}

fn field(
    child: Option<&Sub>,
    doc: &mut Map<String, Value>,
    key: &str,
    value: &Value,
) -> Result<(), PatchError> {
    let Some(current) = doc.get_mut(key) else {
        if let Some(value) = fresh(child, value)? {
            doc.insert(key.to_owned(), value);
        }
        return Ok(());
    };
    match (&mut *current, value) {
        (Value::Object(_), Value::Object(_)) if child.is_some_and(|c| c.patch.replace) => {
            *current = clean(value);
        }
        (Value::Object(_), Value::Object(_)) => merge(child, current, value)?,
        (Value::Array(items), Value::Array(patch)) => match child {
            Some(sub) if sub.patch.merge => list(sub, items, patch)?,
            _ => *current = clean(value),
        },
        _ => {
            if let Some(value) = fresh(child, value)? {
                *current = value;
            }
        }
    }
    Ok(())
}

/// What a patch value leaves where there was nothing to merge with.
fn fresh(child: Option<&Sub>, value: &Value) -> Result<Option<Value>, PatchError> {
    match value {
        Value::Object(patch) => {
            if directive(patch)? == Some("delete") {
                return Ok(None);
            }
            let mut out = Value::Object(Map::new());
            merge(child, &mut out, value)?;
            Ok(Some(out))
        }
        Value::Array(patch) if child.is_some_and(|c| c.patch.merge) => {
            let mut out = Vec::new();
            if let Some(sub) = child {
                list(sub, &mut out, patch)?;
            }
            Ok(Some(Value::Array(out)))
        }
        _ => Ok(Some(clean(value))),
    }
}

/// A patch value without its directives and nulls.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(key, value)| {
                    !value.is_null()
                        && *key != PATCH
                        && *key != RETAIN
                        && !key.starts_with(ORDER)
                        && !key.starts_with(DELETE_PRIMITIVES)
                })
                .map(|(key, value)| (key.clone(), clean(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .filter(|item| item.get(PATCH).and_then(Value::as_str) != Some("delete"))
                .map(clean)
                .collect(),
        ),
        other => other.clone(),
    }
}

fn retain_keys(doc: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), PatchError> {
    let Some(keys) = patch.get(RETAIN) else { return Ok(()) };
    let Some(keys) = keys.as_array() else { return malformed("$retainKeys must be a list of field names") };
    let listed = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    for (key, value) in patch {
        if !value.is_null() && !key.starts_with('$') && !listed(key) {
            return malformed(format!(
                "{RETAIN} directive doesn't match the keys of the patch: {key} is not in it"
            ));
        }
    }
    doc.retain(|key, _| listed(key));
    Ok(())
}

fn list(sub: &Sub, items: &mut Vec<Value>, patch: &[Value]) -> Result<(), PatchError> {
    let before = items.clone();
    let Some(key) = &sub.patch.key else {
        for value in patch {
            if !items.contains(value) {
                items.push(value.clone());
            }
        }
        let order: Vec<Value> = patch.to_vec();
        *items = ordered(std::mem::take(items), &order, &before, |a, b| a == b);
        return Ok(());
    };
    let same = |a: &Value, b: &Value| a.get(key).is_some() && a.get(key) == b.get(key);
    let mut plain: Vec<&Value> = Vec::with_capacity(patch.len());
    let mut replace = false;
    for value in patch {
        let Value::Object(map) = value else {
            return malformed(format!("list items merged by {key:?} must be objects, got {value}"));
        };
        match directive(map)? {
            Some("replace") if !map.contains_key(key) => replace = true,
            Some("delete") => {
                if !map.contains_key(key) {
                    return malformed(format!("delete patch type with no merge key {key:?} defined"));
                }
                items.retain(|item| !same(item, value));
            }
            _ => {
                if !map.contains_key(key) {
                    return malformed(format!(
                        "map: {} does not contain declared merge key: {key}",
                        go_text(value)
                    ));
                }
                plain.push(value);
            }
        }
    }
    if replace {
        *items = plain.into_iter().map(clean).collect();
        return Ok(());
    }
    let item_sub = sub.items.as_deref();
    for value in &plain {
        match items.iter_mut().find(|item| same(item, value)) {
            Some(item) => merge(item_sub, item, value)?,
            None => items.extend(fresh(item_sub, value)?),
        }
    }
    let order: Vec<Value> = plain.into_iter().cloned().collect();
    *items = ordered(std::mem::take(items), &order, &before, same);
    Ok(())
}

fn set_order(
    sub: Option<&Sub>,
    doc: &mut Map<String, Value>,
    field: &str,
    order: &Value,
    patch: Option<&Value>,
) -> Result<(), PatchError> {
    let Value::Array(order) = order else { return malformed(format!("{ORDER}{field} must be a list")) };
    let Some(child) = sub.and_then(|s| s.field(field).sub()) else { return Ok(()) };
    let key = child.patch.key.clone();
    let same = |a: &Value, b: &Value| match &key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    };
    for value in patch.and_then(Value::as_array).into_iter().flatten() {
        let special = value.get(PATCH).is_some();
        if !special && !order.iter().any(|o| same(o, value)) {
            return malformed(format!(
                "the order in patch list doesn't match {ORDER}{field}: {value} is not in it"
            ));
        }
    }
    if let Some(Value::Array(items)) = doc.get_mut(field) {
        let before = items.clone();
        *items = ordered(std::mem::take(items), order, &before, same);
    }
    Ok(())
}

/// Items named in `order` stand in that order; the others keep their place relative to them as far as the list before the patch
/// tells it.
fn ordered(
    items: Vec<Value>,
    order: &[Value],
    before: &[Value],
    same: impl Fn(&Value, &Value) -> bool,
) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|o| same(o, item));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|i| place(order, i).is_some());
    named.sort_by_key(|item| place(order, item));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        match (others.peek(), named.peek()) {
            (Some(other), Some(name)) => {
                let first = match (place(before, other), place(before, name)) {
                    (Some(o), Some(n)) => o < n,
                    _ => false,
                };
                out.extend(if first { others.next() } else { named.next() });
            }
            (Some(_), None) => out.extend(others.next()),
            (None, Some(_)) => out.extend(named.next()),
            (None, None) => return out,
        }
    }
}
