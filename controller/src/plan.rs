//! What a reconciler decides: changes to other objects, a status, events, and when to look again.
//!
//! Reconcilers are functions from what was observed to a [`Plan`]; they read no clock and do no IO. The executor carries any
//! plan out. Comparing what is wanted with what is there happens here, in one place, so that an object that is
//! as it should be is never written.

use ebb_api::conditions::Conditioned;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::core::ApiResource;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Annotations of clients' own bookkeeping, never copied to children.
pub const CLIENT_ANNOTATIONS: &[&str] =
    &["kubectl.kubernetes.io/last-applied-configuration", "client.knative.dev/updateTimestamp"];

/// A decision.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Changes to be made before all others, one after the other.
    pub first: Vec<Change>,
    /// Changes to be made next, in any order.
    pub then: Vec<Change>,
    /// A merge patch for the status, if it is to change.
    pub status: Option<Value>,
    /// When to look again even if nothing happens.
    pub requeue_after: Option<Duration>,
    /// What to tell the user.
    pub notes: Vec<Note>,
}

/// Something to tell the user by an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it is a warning.
    pub warning: bool,
    /// In one word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Which object.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its kind.
    pub resource: ApiResource,
    /// Its namespace; none for cluster-scoped ones.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Target {
    /// The object `name` of the kind `K`.
    pub fn of<K: Resource<DynamicType = ()>>(namespace: Option<String>, name: impl Into<String>) -> Self {
        Self { resource: ApiResource::erase::<K>(&()), namespace, name: name.into() }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Make an object. That it is there already is no failure: its event will come.
    Create(Target, Value),
    /// Merge into an object.
    Patch(Target, Value),
    /// Delete an object, only if it still has this uid.
    Delete(Target, Option<String>),
}

impl Plan {
    /// Adds what makes `live` as `desired`. Answers whether the spec of what is there changes thereby: its status is of before, then.
    pub fn ensure<K>(&mut self, live: Option<&K>, desired: &K, how: Compare) -> bool
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let change = ensure(live, desired, how);
        let outdates = matches!(&change, Some(Change::Patch(_, patch)) if patch.get("spec").is_some());
        self.then.extend(change);
        outdates
    }

    /// Adds a deletion.
    pub fn delete<K: Resource<DynamicType = ()>>(&mut self, object: &K) {
        if object.meta().deletion_timestamp.is_none() {
            let target = Target::of::<K>(object.namespace(), object.name_any());
            self.then.push(Change::Delete(target, object.uid()));
        }
    }

    /// Adds a note.
    pub fn note(&mut self, reason: &'static str, message: impl Into<String>) {
        self.notes.push(Note { warning: false, reason, message: message.into() });
    }

    /// Adds a warning.
    pub fn warn(&mut self, reason: &'static str, message: impl Into<String>) {
        self.notes.push(Note { warning: true, reason, message: message.into() });
    }

    /// Looks again after `after`, or sooner if that was said already.
    pub fn again(&mut self, after: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(after, |d| d.min(after)));
    }

    /// Sets the status if it differs from what is there. What went back and forth while it was worked out is no transition.
    pub fn set_status<S: Conditioned + Clone + Serialize + PartialEq>(&mut self, old: Option<&S>, new: &S) {
        let mut new = new.clone();
        for condition in new.conditions_mut() {
            let before = old.and_then(|o| o.condition(&condition.type_));
            if let Some(before) = before.filter(|b| b.status == condition.status)
                && before.last_transition_time.is_some()
            {
                condition.last_transition_time.clone_from(&before.last_transition_time);
            }
        }
        let new = &new;
        if old != Some(new) {
            let old = old.and_then(|s| serde_json::to_value(s).ok()).unwrap_or(Value::Null);
            let mut patch = serde_json::to_value(new).unwrap_or_default();
            // A list is replaced whole by a merge patch, so only what is gone must be named.
            if let (Some(old), Some(patch)) = (old.as_object(), patch.as_object_mut()) {
                for (key, old) in old {
                    match patch.get_mut(key) {
                        None => {
                            patch.insert(key.clone(), Value::Null);
                        }
                        Some(new) => *new = exact_patch(old, new).unwrap_or_else(|| new.clone()),
                    }
                }
            }
            self.status = Some(patch);
        }
    }
}

/// How an object is compared with what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Kinds that nobody else writes fields of: spec, labels and annotations shall be exactly so, except annotations that begin
    /// with one of these.
    Exact(&'static [&'static str]),
    /// Kinds that the API server adds defaults to: all that is wanted shall be there.
    Covers,
    /// Only its existence matters.
    Exists,
}

/// The change, if any, that makes `live` as `desired`.
pub fn ensure<K>(live: Option<&K>, desired: &K, how: Compare) -> Option<Change>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let target = Target::of::<K>(desired.namespace(), desired.name_any());
    let wanted = serde_json::to_value(desired).ok()?;
    let Some(live) = live else { return Some(Change::Create(target, wanted)) };
    let live = serde_json::to_value(live).ok()?;
    let patch = match how {
        Compare::Exists => None,
        Compare::Exact(keep) => exact(&live, &wanted, keep),
        Compare::Covers => covering(&live, &wanted),
    };
    patch.map(|patch| Change::Patch(target, patch))
}

fn exact(live: &Value, wanted: &Value, keep: &[&str]) -> Option<Value> {
    let mut patch = Map::new();
    if let Some(spec) = exact_patch(&live["spec"], &wanted["spec"]) {
        patch.insert("spec".into(), spec);
    }
    let mut metadata = Map::new();
    for field in ["labels", "annotations"] {
        let kept = |key: &str| field == "annotations" && keep.iter().any(|k| key.starts_with(k));
        let mut live = live["metadata"][field].as_object().cloned().unwrap_or_default();
        live.retain(|key, _| !kept(key));
        let mut wanted = wanted["metadata"][field].as_object().cloned().unwrap_or_default();
        wanted.retain(|key, _| !kept(key));
        if let Some(found) = exact_patch(&Value::Object(live), &Value::Object(wanted)) {
            metadata.insert(field.into(), found);
        }
    }
    if !metadata.is_empty() {
        patch.insert("metadata".into(), Value::Object(metadata));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn covering(live: &Value, wanted: &Value) -> Option<Value> {
    let mut patch = Map::new();
    for (key, value) in wanted.as_object()? {
        if matches!(key.as_str(), "apiVersion" | "kind" | "status") {
            continue;
        }
        if key == "metadata" {
            let mut metadata = Map::new();
            for field in ["labels", "annotations"] {
                if !covers(&live["metadata"][field], &value[field]) {
                    metadata.insert(field.into(), value[field].clone());
                }
            }
            if !metadata.is_empty() {
                patch.insert(key.clone(), Value::Object(metadata));
            }
        } else if !covers(&live[key], value) {
            patch.insert(key.clone(), value.clone());
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(m) => m.values().all(is_empty),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Whether everything in `wanted` is in `live`, which may have more. Quantities are compared by amount.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (live, wanted) if live == wanted || is_empty(wanted) && is_empty(live) => true,
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| covers(live.get(key).unwrap_or(&Value::Null), value))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(l, w)| covers(l, w))
        }
        (Value::String(live), Value::String(wanted)) => {
            ebb_api::quantity::parse(live).is_some_and(|n| ebb_api::quantity::parse(wanted) == Some(n))
        }
        _ => false,
    }
}

/// The merge patch that turns `live` into exactly `wanted`.
pub fn exact_patch(live: &Value, wanted: &Value) -> Option<Value> {
    if live == wanted {
        return None;
    }
    let (Some(from), Some(to)) = (live.as_object(), wanted.as_object()) else {
        return (!(live.is_null() && is_empty(wanted))).then(|| wanted.clone());
    };
    let mut patch = Map::new();
    for (key, value) in to {
        match from.get(key) {
            None => {
                patch.insert(key.clone(), value.clone());
            }
            Some(old) => patch.extend(exact_patch(old, value).map(|p| (key.clone(), p))),
        }
    }
    for key in from.keys().filter(|k| !to.contains_key(*k)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// A reference to the object that controls another.
pub fn owner<K: Resource<DynamicType = ()>>(object: &K) -> Vec<OwnerReference> {
    object
        .controller_owner_ref(&())
        .into_iter()
        .map(|r| OwnerReference { block_owner_deletion: Some(true), ..r })
        .collect()
}

/// Whether `child` is controlled by the object with this uid.
pub fn controlled_by(child: &ObjectMeta, uid: Option<&str>) -> bool {
    child.owner_references.iter().flatten().any(|o| o.controller == Some(true) && Some(o.uid.as_str()) == uid)
}

/// The controlling owner of a kind.
pub fn controller_of<'a>(child: &'a ObjectMeta, kind: &str) -> Option<&'a OwnerReference> {
    child.owner_references.iter().flatten().find(|o| o.controller == Some(true) && o.kind == kind)
}

/// The value of a label.
pub fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// The value of an annotation.
pub fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Reason and message of a condition in one line, as Events tell it.
pub fn cause_of(reason: Option<&str>, message: Option<&str>) -> String {
    match (reason.unwrap_or_default(), message.unwrap_or_default().trim_end()) {
        (reason, "") => reason.to_owned(),
        ("", message) => message.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

/// A time as annotations carry it.
pub fn rfc3339(now: Timestamp) -> String {
    json!(Time(now)).as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
