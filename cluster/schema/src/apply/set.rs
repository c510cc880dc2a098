//! Sets of field paths, and their `fieldsV1` form.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::node::{Field, Sub};

/// A step of a path in its wire form: `f:name`, `k:{"name":"a"}`, `v:"x"` or `i:0`. The form is canonical, so that equal steps are
/// equal texts.
pub(crate) type Step = Box<str>;

/// A set of paths as a tree: `members` end here, `children` go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    pub(crate) members: BTreeSet<Step>,
    pub(crate) children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(FieldSet::is_empty)
    }

    /// Adds a subtree, unless it is empty.
    pub(crate) fn graft(&mut self, step: &str, child: FieldSet) {
        if !child.is_empty() {
            match self.children.get_mut(step) {
                Some(there) => there.extend(child),
                None => {
                    self.children.insert(step.into(), child);
                }
            }
        }
    }

    pub(crate) fn extend(&mut self, other: FieldSet) {
        self.members.extend(other.members);
        for (step, child) in other.children {
            self.graft(&step, child);
        }
    }

    pub(crate) fn union(&self, other: &FieldSet) -> FieldSet {
        let mut out = self.clone();
        out.extend(other.clone());
        out
    }

    pub(crate) fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet {
            members: self.members.intersection(&other.members).cloned().collect(),
            ..FieldSet::default()
        };
        for (step, child) in &self.children {
            if let Some(there) = other.children.get(step) {
                out.graft(step, child.intersection(there));
            }
        }
        out
    }

    /// Exactly the paths of `self` that are not in `other`; removing a path does not remove those below it.
    pub(crate) fn difference(&self, other: &FieldSet) -> FieldSet {
        let mut out = FieldSet {
            members: self.members.difference(&other.members).cloned().collect(),
            ..FieldSet::default()
        };
        for (step, child) in &self.children {
            let rest = match other.children.get(step) {
                Some(there) => child.difference(there),
                None => child.clone(),
            };
            out.graft(step, rest);
        }
        out
    }

    /// Adds the declared fields on the way to each path: owning a field's content is owning the field, for purposes of removal.
    pub(crate) fn with_named_parents(&self, sub: Option<&Sub>) -> FieldSet {
        let mut out = FieldSet { members: self.members.clone(), ..FieldSet::default() };
        for (step, child) in &self.children {
            let below = descend(sub, step);
            if let (Some(name), Some(sub)) = (step.strip_prefix("f:"), sub)
                && matches!(sub.field(name), Field::Known(_))
            {
                out.members.insert(step.clone());
            }
            out.graft(step, child.with_named_parents(below));
        }
        out
    }

    /// All paths in a printable form: `.spec.containers[name="a"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect(&mut String::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut String, out: &mut Vec<String>) {
        for step in &self.members {
            out.push(format!("{prefix}{}", printed(step)));
        }
        for (step, child) in &self.children {
            let len = prefix.len();
            prefix.push_str(&printed(step));
            child.collect(prefix, out);
            prefix.truncate(len);
        }
    }

    pub(crate) fn to_fields_v1(&self) -> Value {
        let mut out = Map::new();
        for step in &self.members {
            if !self.children.contains_key(step) {
                out.insert(step.to_string(), Value::Object(Map::new()));
            }
        }
        for (step, child) in &self.children {
            let mut value = child.to_fields_v1();
            if self.members.contains(step)
                && let Value::Object(map) = &mut value
            {
                map.insert(".".into(), Value::Object(Map::new()));
            }
            out.insert(step.to_string(), value);
        }
        Value::Object(out)
    }

    /// Reads `fieldsV1`; steps of unknown form are dropped.
    pub(crate) fn from_fields_v1(value: &Value) -> FieldSet {
        let mut out = FieldSet::default();
        let Value::Object(map) = value else { return out };
        for (step, below) in map {
            let Some(step) = canonical(step) else { continue };
            let Value::Object(entries) = below else { continue };
            if entries.is_empty() || entries.contains_key(".") {
                out.members.insert(step.clone());
            }
            out.graft(&step, FieldSet::from_fields_v1(below));
        }
        out
    }
}

/// The schema one step down.
pub(crate) fn descend<'a>(sub: Option<&'a Sub>, step: &str) -> Option<&'a Sub> {
    let sub = sub?;
    match step.strip_prefix("f:") {
        Some(name) => sub.field(name).sub(),
        None => sub.items.as_deref(),
    }
}

/// A step as this crate would write it, whatever spacing the client used.
fn canonical(step: &str) -> Option<Step> {
    let (kind, rest) = step.split_once(':')?;
    match kind {
        "f" | "i" => Some(step.into()),
        "k" | "v" => {
            let value: Value = serde_json::from_str(rest).ok()?;
            Some(format!("{kind}:{}", sorted(&value)).into())
        }
        _ => None,
    }
}

/// JSON with sorted keys, which is what makes texts comparable.
pub(crate) fn sorted(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<&String, String> = map.iter().map(|(k, v)| (k, sorted(v))).collect();
            let body: Vec<String> =
                ordered.iter().map(|(k, v)| format!("{}:{v}", Value::String((*k).clone()))).collect();
            format!("{{{}}}", body.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(sorted).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

fn printed(step: &str) -> String {
    match step.split_at(2.min(step.len())) {
        ("f:", name) => format!(".{name}"),
        ("v:", value) => format!("[={value}]"),
        ("i:", index) => format!("[{index}]"),
        ("k:", keys) => {
            let Ok(Value::Object(keys)) = serde_json::from_str(keys) else { return format!("[{keys}]") };
            let keys: BTreeMap<String, Value> = keys.into_iter().collect();
            let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", parts.join(","))
        }
        _ => step.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wire_form_round_trips() {
        let wire = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"a\"": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}}
        });
        let set = FieldSet::from_fields_v1(&wire);
        assert_eq!(set.to_fields_v1(), wire);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.finalizers[=\"a\"]",
                ".metadata.labels.app",
                ".spec.containers[name=\"a\"]",
                ".spec.containers[name=\"a\"].image"
            ]
        );
    }

    #[test]
    fn keys_are_canonical() {
        let spaced = FieldSet::from_fields_v1(&json!({"k:{ \"protocol\": \"TCP\", \"port\": 80 }": {}}));
        let tight = FieldSet::from_fields_v1(&json!({"k:{\"port\":80,\"protocol\":\"TCP\"}": {}}));
        assert_eq!(spaced, tight);
    }

    #[test]
    fn difference_is_exact() {
        let a = FieldSet::from_fields_v1(&json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let b = FieldSet::from_fields_v1(&json!({"f:a": {}}));
        assert_eq!(a.difference(&b).to_fields_v1(), json!({"f:a": {"f:b": {}}, "f:c": {}}));
        assert_eq!(a.intersection(&b).to_fields_v1(), json!({"f:a": {}}));
    }
}
