//! The walks of server-side apply over a value and its schema: which paths it has, what differs, merging, removing.
//!
//! Behaviour: sigs.k8s.io/structured-merge-diff `typed`. A list of type map or set is walked item by item, each named by its keys
//! or value; an atomic list or map is one field. What the schema does not know is a granular map, an atomic list, or a scalar.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::set::{FieldSet, Step, sorted};
use crate::decode::{go_syntax, go_text, go_type_of};
use crate::node::{Field, ListType, Node, Sub, Ty};

/// How a value takes part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Scalars, and lists and maps that are owned as a whole.
    Leaf,
    Map,
    List,
}

fn shape(sub: Option<&Sub>, value: &Value) -> Shape {
    match value {
        Value::Object(_) if !sub.is_some_and(Sub::atomic_map) => Shape::Map,
        Value::Array(_) if sub.is_some_and(|s| s.list != ListType::Atomic) => Shape::List,
        _ => Shape::Leaf,
    }
}

/// The step that names an item of a set or map list; without one (a key is missing and has no default) the item's index.
fn item_step(node: &Node, index: usize, item: &Value) -> Step {
    match &node.list {
        ListType::Set => format!("v:{}", sorted(item)).into(),
        ListType::Map(keys) => {
            let mut out = Map::new();
            for key in keys {
                let default = || node.items.as_deref()?.properties.get(key)?.default.as_ref();
                if let Some(value) = item.get(key).or_else(default) {
                    out.insert(key.clone(), value.clone());
                }
            }
            if out.is_empty() {
                format!("i:{index}").into()
            } else {
                format!("k:{}", sorted(&Value::Object(out))).into()
            }
        }
        ListType::Atomic => format!("i:{index}").into(),
    }
}

fn steps(sub: Option<&Sub>, items: &[Value]) -> Vec<Step> {
    match sub {
        Some(sub) => items.iter().enumerate().map(|(i, item)| item_step(sub, i, item)).collect(),
        None => Vec::new(),
    }
}

/// Fields that the schema does not declare, and values of another type than it says.
pub(crate) fn fits(sub: Option<&Sub>, value: &Value, path: &str, errors: &mut Vec<String>) {
    let Some(sub) = sub else { return };
    let unstructured = || format!("&value.valueUnstructured{{Value:{}}}", go_syntax(value));
    let wrong = match (sub.ty, value) {
        (_, Value::Null) | (Ty::Any | Ty::IntOrString | Ty::Quantity, _) => return,
        (Ty::Object, _) if sub.preserve && sub.properties.is_empty() => return,
        (Ty::Object, Value::Object(map)) => {
            for (key, value) in map {
                let path = format!("{path}.{key}");
                match sub.field(key) {
                    Field::Known(sub) | Field::Entry(sub) => fits(Some(sub), value, &path, errors),
                    Field::Untyped => {}
                    Field::Unknown => errors.push(format!("{path}: field not declared in schema")),
                }
            }
            return;
        }
        (Ty::Array, Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                let step = if sub.list == ListType::Atomic {
                    format!("i:{index}").into()
                } else {
                    item_step(sub, index, item)
                };
                let step = FieldSet { members: [step].into(), ..FieldSet::default() };
                fits(sub.items.as_deref(), item, &format!("{path}{}", step.paths()[0]), errors);
            }
            return;
        }
        (Ty::String, Value::String(_))
        | (Ty::Boolean, Value::Bool(_))
        | (Ty::Integer | Ty::Number, Value::Number(_)) => return,
        (Ty::String, _) => format!("expected string, got {}", unstructured()),
        (Ty::Boolean, _) => format!("expected boolean, got {}", unstructured()),
        (Ty::Integer | Ty::Number, _) => {
            format!("expected numeric (int or float), got {}", go_type_of(value))
        }
        (Ty::Array, _) => format!("expected list, got &{{{}}}", go_text(value)),
        (Ty::Object, _) => format!("expected map, got &{{{}}}", go_text(value)),
    };
    errors.push(format!("{path}: {wrong}"));
}

/// What an applied object may not hold: list items without their keys, or twice.
pub(crate) fn check(sub: Option<&Sub>, value: &Value, path: &str) -> Result<(), String> {
    match (shape(sub, value), value) {
        (Shape::Map, Value::Object(map)) => {
            for (key, value) in map {
                check(sub.and_then(|s| s.field(key).sub()), value, &format!("{path}.{key}"))?;
            }
        }
        (Shape::List, Value::Array(items)) => {
            let Some(sub) = sub else { return Ok(()) };
            let mut seen = std::collections::HashSet::new();
            for (i, item) in items.iter().enumerate() {
                if let ListType::Map(keys) = &sub.list {
                    for key in keys {
                        let default =
                            sub.items.as_deref().and_then(|s| s.properties.get(key)?.default.as_ref());
                        if item.get(key).is_none() && default.is_none() {
                            return Err(format!(
                                "{path}: element {i}: associative list with keys has an element that omits key field {key:?} (and \
                                 doesn't have default value)"
                            ));
                        }
                    }
                }
                let step = item_step(sub, i, item);
                let at = format!(
                    "{path}{}",
                    &FieldSet { members: [step.clone()].into(), ..FieldSet::default() }.paths()[0]
                );
                if !seen.insert(step) {
                    let key = at.strip_prefix(path).unwrap_or_default();
                    return Err(format!("{path}: duplicate entries for key {key}"));
                }
                check(sub.items.as_deref(), item, &at)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The paths that a value has.
pub(crate) fn field_set(sub: Option<&Sub>, value: &Value) -> FieldSet {
    let mut out = FieldSet::default();
    collect(sub, value, &mut out);
    out
}

/// Collects what is below a value; says whether its own path belongs to the set.
fn collect(sub: Option<&Sub>, value: &Value, out: &mut FieldSet) -> bool {
    match (shape(sub, value), value) {
        (Shape::Map, Value::Object(map)) => {
            for (key, value) in map {
                let field = sub.map_or(Field::Untyped, |s| s.field(key));
                let step: Step = format!("f:{key}").into();
                let mut below = FieldSet::default();
                let own = collect(field.sub(), value, &mut below);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if own || empty || !matches!(field, Field::Known(_)) {
                    out.members.insert(step.clone());
                }
                out.graft(&step, below);
            }
            false
        }
        (Shape::List, Value::Array(items)) => {
            let item_sub = sub.and_then(|s| s.items.as_deref());
            let steps = steps(sub, items);
            let mut count: HashMap<&Step, usize> = HashMap::new();
            for step in &steps {
                *count.entry(step).or_default() += 1;
            }
            if items.is_empty() {
                // Said to be empty is something that is said.
                return true;
            }
            for (step, item) in steps.iter().zip(items) {
                out.members.insert(step.clone());
                // Duplicates are owned as one thing: it cannot be said whose fields are whose.
                if count[step] == 1 {
                    let mut below = FieldSet::default();
                    collect(item_sub, item, &mut below);
                    out.graft(step, below);
                }
            }
            false
        }
        _ => true,
    }
}

/// What differs between two objects.
#[derive(Debug, Default)]
pub(crate) struct Diff {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

impl Diff {
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    fn graft(&mut self, step: &str, below: Diff, own: Own) {
        match own {
            Own::Same => {}
            Own::Added => drop(self.added.members.insert(step.into())),
            Own::Modified => drop(self.modified.members.insert(step.into())),
            Own::Removed => drop(self.removed.members.insert(step.into())),
        }
        self.added.graft(step, below.added);
        self.modified.graft(step, below.modified);
        self.removed.graft(step, below.removed);
    }
}

static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

enum Own {
    Same,
    Added,
    Modified,
    Removed,
}

/// Compares two objects; paths are those of the schema.
pub(crate) fn compare(sub: &Sub, lhs: &Value, rhs: &Value) -> Diff {
    let mut out = Diff::default();
    differ(Some(sub), Some(lhs), Some(rhs), &mut out);
    out
}

/// Compares two objects but for their `managedFields`, and without copying them first.
pub(crate) fn compare_tracked(sub: &Sub, lhs: &Value, rhs: &Value) -> Diff {
    const METADATA: &str = "metadata";
    let mut out = Diff::default();
    let (Value::Object(left), Value::Object(right)) = (lhs, rhs) else { return compare(sub, lhs, rhs) };
    maps(Some(sub), Some(left), Some(right), Some(METADATA), &mut out);
    let (left, right) = (left.get(METADATA), right.get(METADATA));
    let child = sub.field(METADATA).sub();
    let mut below = Diff::default();
    let own = match (left, right) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            maps(child, Some(left), Some(right), Some("managedFields"), &mut below);
            Own::Same
        }
        (Some(Value::Object(left)), None) => {
            maps(child, Some(left), None, Some("managedFields"), &mut below);
            Own::Removed
        }
        (None, Some(Value::Object(right))) => {
            maps(child, None, Some(right), Some("managedFields"), &mut below);
            Own::Added
        }
        _ => differ(child, left, right, &mut below),
    };
    out.graft("f:metadata", below, own);
    out
}

/// Fields that are structs by value in Kubernetes' own types: they are always there, so that they never come or go as fields.
const ALWAYS: [&str; 11] = [
    "metadata",
    "spec",
    "status",
    "template",
    "strategy",
    "updateStrategy",
    "jobTemplate",
    "loadBalancer",
    "resources",
    "nodeInfo",
    "daemonEndpoints",
];

fn differ(sub: Option<&Sub>, lhs: Option<&Value>, rhs: Option<&Value>, out: &mut Diff) -> Own {
    match (lhs, rhs) {
        (None, None) => return Own::Same,
        (Some(l), Some(r)) if l == r => return Own::Same,
        _ => {}
    }
    // Null takes the shape of what it is compared with.
    let shape_of = |v: Option<&Value>, other: Option<&Value>| match (v, other) {
        (Some(Value::Null), Some(other)) => Some(shape(sub, other)),
        (v, _) => v.map(|v| shape(sub, v)),
    };
    let (left, right) = (shape_of(lhs, rhs), shape_of(rhs, lhs));
    let whole = match (lhs.is_some(), rhs.is_some()) {
        (false, _) => Own::Added,
        (_, false) => Own::Removed,
        _ => Own::Same,
    };
    match (left, right) {
        (Some(Shape::Leaf), Some(Shape::Leaf)) => return Own::Modified,
        (Some(Shape::Leaf), None) | (None, Some(Shape::Leaf)) => return whole,
        (Some(l), Some(r)) if l != r => {
            // The kind of value changed: what was below is gone, what is below now is new.
            differ(sub, lhs, None, out);
            differ(sub, None, rhs, out);
            return Own::Modified;
        }
        _ => {}
    }
    if is_empty(lhs) && is_empty(rhs) {
        return whole;
    }
    if left.or(right) == Some(Shape::Map) {
        maps(sub, lhs.and_then(Value::as_object), rhs.and_then(Value::as_object), None, out);
    } else {
        lists(sub, lhs.and_then(Value::as_array), rhs.and_then(Value::as_array), out);
    }
    whole
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

fn maps(
    sub: Option<&Sub>,
    lhs: Option<&Map<String, Value>>,
    rhs: Option<&Map<String, Value>>,
    hidden: Option<&str>,
    out: &mut Diff,
) {
    let builtin = sub.is_some_and(|s| s.type_name.is_some());
    let both = lhs.is_some() && rhs.is_some();
    let keys = lhs.into_iter().flat_map(Map::keys);
    let more = rhs.into_iter().flat_map(Map::keys).filter(|k| lhs.is_none_or(|l| !l.contains_key(*k)));
    for key in keys.chain(more).filter(|key| hidden != Some(key.as_str())) {
        let (l, r) = (lhs.and_then(|m| m.get(key)), rhs.and_then(|m| m.get(key)));
        if l.is_some() && l == r {
            continue;
        }
        let child = sub.and_then(|s| s.field(key).sub());
        let (l, r) = if builtin && both && ALWAYS.contains(&key.as_str()) {
            (
                l.or(r.filter(|v| v.is_object()).map(|_| &*EMPTY)),
                r.or(l.filter(|v| v.is_object()).map(|_| &*EMPTY)),
            )
        } else if builtin && both && key == "containers" {
            // Never left out by Kubernetes: null where there are none.
            (l.or(Some(&Value::Null)), r.or(Some(&Value::Null)))
        } else {
            (l, r)
        };
        let mut below = Diff::default();
        let own = differ(child, l, r, &mut below);
        out.graft(&format!("f:{key}"), below, own);
    }
}

fn lists(sub: Option<&Sub>, lhs: Option<&Vec<Value>>, rhs: Option<&Vec<Value>>, out: &mut Diff) {
    let item_sub = sub.and_then(|s| s.items.as_deref());
    let group = |items: Option<&Vec<Value>>| -> (Vec<Step>, HashMap<Step, Vec<usize>>) {
        let steps = items.map(|items| steps(sub, items)).unwrap_or_default();
        let mut groups: HashMap<Step, Vec<usize>> = HashMap::new();
        for (i, step) in steps.iter().enumerate() {
            groups.entry(step.clone()).or_default().push(i);
        }
        (steps, groups)
    };
    let ((left, lgroups), (right, rgroups)) = (group(lhs), group(rhs));
    let at = |items: Option<&Vec<Value>>, i: usize| -> Value {
        items.and_then(|items| items.get(i)).cloned().unwrap_or_default()
    };
    let mut done = std::collections::HashSet::new();
    for step in left.iter().chain(&right) {
        if !done.insert(step) {
            continue;
        }
        let ls: &[usize] = lgroups.get(step).map(Vec::as_slice).unwrap_or_default();
        let rs: &[usize] = rgroups.get(step).map(Vec::as_slice).unwrap_or_default();
        let mut below = Diff::default();
        let own = match (ls, rs) {
            ([], []) => Own::Same,
            ([_] | [], [_] | []) => {
                let l = ls.first().and_then(|i| lhs?.get(*i));
                let r = rs.first().and_then(|i| rhs?.get(*i));
                differ(item_sub, l, r, &mut below)
            }
            ([_, _, ..], [_, _, ..]) => {
                let equal =
                    ls.len() == rs.len() && ls.iter().zip(rs).all(|(l, r)| at(lhs, *l) == at(rhs, *r));
                if equal { Own::Same } else { Own::Modified }
            }
            ([_, _, ..], _) => {
                if let Some(r) = rs.first() {
                    differ(item_sub, None, Some(&at(rhs, *r)), &mut below);
                }
                Own::Removed
            }
            (_, _) => {
                if let Some(l) = ls.first() {
                    differ(item_sub, Some(&at(lhs, *l)), None, &mut below);
                }
                Own::Added
            }
        };
        out.graft(step, below, own);
    }
}

/// Puts `rhs` over `lhs`: maps and keyed lists merge, everything else is replaced.
pub(crate) fn merge(sub: Option<&Sub>, lhs: &Value, rhs: &Value) -> Value {
    match (shape(sub, lhs), shape(sub, rhs), lhs, rhs) {
        (Shape::Map, Shape::Map, Value::Object(l), Value::Object(r)) => {
            let mut out = l.clone();
            for (key, value) in r {
                let child = sub.and_then(|s| s.field(key).sub());
                let merged = match l.get(key) {
                    Some(there) => merge(child, there, value),
                    None => value.clone(),
                };
                out.insert(key.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::List, Shape::List, Value::Array(l), Value::Array(r)) => Value::Array(merge_lists(sub, l, r)),
        _ => rhs.clone(),
    }
}

/// The applier's items in the applier's order; items of others stay where they are relative to what follows them.
fn merge_lists(sub: Option<&Sub>, lhs: &[Value], rhs: &[Value]) -> Vec<Value> {
    let item_sub = sub.and_then(|s| s.items.as_deref());
    let (lsteps, rsteps) = (steps(sub, lhs), steps(sub, rhs));
    let mut place: HashMap<&Step, usize> = HashMap::new();
    for (i, step) in lsteps.iter().enumerate() {
        place.entry(step).or_insert(i);
    }
    let named: std::collections::HashSet<&Step> = rsteps.iter().collect();
    let mut merged: std::collections::HashSet<&Step> = std::collections::HashSet::new();
    let mut out = Vec::with_capacity(lhs.len().max(rhs.len()));
    let (mut l, mut r) = (0, 0);
    while l < lhs.len() || r < rhs.len() {
        if let Some(step) = lsteps.get(l) {
            if !named.contains(step) {
                out.push(lhs[l].clone());
                l += 1;
                continue;
            }
            if merged.contains(step) {
                l += 1;
                continue;
            }
        }
        let Some(step) = rsteps.get(r) else { break };
        let item = match place.get(step) {
            Some(i) => merge(item_sub, &lhs[*i], &rhs[r]),
            None => rhs[r].clone(),
        };
        out.push(item);
        merged.insert(step);
        r += 1;
    }
    out
}

/// Removes the paths of `gone`. A list or map whose content is gone stays, empty, unless its own path is gone too.
pub(crate) fn remove(sub: Option<&Sub>, value: &Value, gone: &FieldSet) -> Value {
    match (shape(sub, value), value) {
        (Shape::Map, Value::Object(map)) if !map.is_empty() => {
            let mut out = Map::new();
            for (key, value) in map {
                let step: Step = format!("f:{key}").into();
                if gone.members.contains(&step) {
                    continue;
                }
                let child = sub.and_then(|s| s.field(key).sub());
                let rest = match gone.children.get(&step) {
                    Some(below) => remove(child, value, below),
                    None => value.clone(),
                };
                out.insert(key.clone(), rest);
            }
            Value::Object(out)
        }
        (Shape::List, Value::Array(items)) if !items.is_empty() => {
            let item_sub = sub.and_then(|s| s.items.as_deref());
            let mut out = Vec::with_capacity(items.len());
            for (step, item) in steps(sub, items).iter().zip(items) {
                if gone.members.contains(step) {
                    continue;
                }
                out.push(match gone.children.get(step) {
                    Some(below) => remove(item_sub, item, below),
                    None => item.clone(),
                });
            }
            Value::Array(out)
        }
        _ => value.clone(),
    }
}
