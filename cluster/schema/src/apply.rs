//! Server-side apply and the tracking of field ownership in `metadata.managedFields`.
//!
//! The rules are those of Kubernetes (KEP-555, sigs.k8s.io/structured-merge-diff): an applier owns what it applies; what it applied
//! before and leaves out now is removed unless somebody else owns it; changing what another manager owns is a conflict unless
//! forced, except that equal values are owned together. Whoever changes a field by any other write owns it from then on.
//!
//! The caller decides what a request may write: for a kind with a status subresource it removes `status` from what is applied to the
//! main resource, and everything but `status` from what is applied to the subresource.

mod managed;
mod set;
mod tracked;
mod typed;

use serde_json::Value;

use crate::{Origin, Schema};
use managed::{APPLY, Entry, Key, Managers};
use set::FieldSet;

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// `fieldManager` of the request, or the first part of its user agent.
    pub name: &'a str,
    /// `Apply` or `Update`.
    pub operation: &'a str,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    /// `group/version` of the request.
    pub api_version: &'a str,
}

/// One field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner as Kubernetes prints it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// Path of the field, as in `.spec.replicas`.
    pub field: String,
}

impl Conflict {
    /// The message of the `FieldManagerConflict` cause.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// Why an apply was refused.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ApplyError {
    /// Other managers own what would change: 409, with a `FieldManagerConflict` cause for each.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The applied object cannot be applied at all: 500, as upstream has it.
    #[error("{0}")]
    Invalid(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", only.message(), only.field);
    }
    let mut out = format!("Apply failed with {} conflicts: ", conflicts.len());
    let mut managers: Vec<&str> = conflicts.iter().map(|c| c.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    let parts: Vec<String> = managers
        .into_iter()
        .map(|manager| {
            let fields: Vec<String> =
                conflicts.iter().filter(|c| c.manager == manager).map(|c| format!("- {}", c.field)).collect();
            format!("conflicts with {manager}:\n{}", fields.join("\n"))
        })
        .collect();
    out.push_str(&parts.join("\n"));
    out
}

/// Applies an object on behalf of a manager and returns the new object with its `managedFields`.
///
/// `live` is none where the object does not exist yet. `now` is RFC 3339 in whole seconds; it is written only where ownership or
/// the object changes, so that applying the same thing twice returns `live` as it is.
///
/// # Errors
/// [`ApplyError::Conflicts`] unless `force`, [`ApplyError::Invalid`] for an object that cannot be applied.
pub fn apply(
    schema: &Schema,
    live: Option<&Value>,
    applied: &Value,
    manager: &Manager<'_>,
    force: bool,
    now: &str,
) -> Result<Value, ApplyError> {
    let root = Some(schema.root());
    if applied.pointer("/metadata/managedFields").is_some_and(|m| m.as_array().is_none_or(|m| !m.is_empty()))
    {
        return Err(ApplyError::Invalid("metadata.managedFields must be nil".into()));
    }
    let mut applied = applied.clone();
    forget_system_fields(&mut applied, schema.origin());
    let mut errors = Vec::new();
    typed::fits(root, &applied, "", &mut errors);
    let fits = match errors.as_slice() {
        [] => typed::check(root, &applied, ""),
        [only] => Err(only.clone()),
        several => Err(format!("errors:\n  {}", several.join("\n  "))),
    };
    fits.map_err(|e| {
        ApplyError::Invalid(format!("failed to create typed patch object ({}): {e}", title(&applied)))
    })?;
    let skeleton = skeleton(&applied);
    let before = live.map_or_else(|| skeleton.clone(), without_managers);
    let mut managers = managed::decode(live);
    let mut first = false;
    if let Some(live) = live
        && managers.is_empty()
    {
        // The object was never tracked: what is there belongs to whoever was before.
        let set = strip(typed::compare(schema.root(), &skeleton, &without_managers(live)).added);
        if !set.is_empty() {
            let old = Manager { name: "before-first-apply", operation: "Update", ..*manager };
            let entry = Entry { set, api_version: manager.api_version.to_owned(), time: now.to_owned() };
            managers.insert(Key::of(&old, now), entry);
            first = true;
        }
    }
    let key = Key::of(manager, now);
    let original = managers.clone();

    let merged = typed::merge(root, &before, &applied);
    let last = managers.get(&key).map(|e| e.set.clone()).unwrap_or_default();
    let set = strip(typed::field_set(root, &applied));
    let entry = Entry { set, api_version: manager.api_version.to_owned(), time: now.to_owned() };
    managers.insert(key.clone(), entry);
    let object = prune(schema, merged, &managers, &last);

    let diff = typed::compare(schema.root(), &before, &object);
    if live.is_some()
        && diff.is_empty()
        && let Some(entry) = managers.get_mut(&key)
    {
        // As upstream: who takes part in what is there already, changes nothing at no time.
        entry.time = original.get(&key).map(|held| held.time.clone()).unwrap_or_default();
    }
    let (conflicts, taken) = yield_fields(&mut managers, &key, &diff);
    if !force && !conflicts.is_empty() {
        let allowed = if manager.name == KUBECTL { last_applied(schema, live) } else { FieldSet::default() };
        if !taken.difference(&allowed).is_empty() {
            return Err(ApplyError::Conflicts(conflicts));
        }
    }
    if managers.get(&key).is_some_and(|e| e.set.is_empty()) {
        managers.remove(&key);
    }
    if let Some(live) = live
        && diff.is_empty()
        && !first
        && same_ownership(&original, &managers)
    {
        return Ok(live.clone());
    }
    let mut object = object;
    if manager.name == KUBECTL && object["metadata"]["annotations"][LAST_APPLIED].is_string() {
        // kubectl may go back to applying on its own side: its note stays what was applied last.
        object["metadata"]["annotations"][LAST_APPLIED] = format!("{}\n", noted(&applied)).into();
    }
    managed::cap(&mut managers);
    managed::encode(&managers, &mut object);
    Ok(object)
}

/// The manager under which kubectl applies unless told otherwise.
const KUBECTL: &str = "kubectl";
/// Where client-side apply notes what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who and what an applied object is: `namespace/name; group/version, Kind=Kind`.
fn title(applied: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&applied["metadata"]["namespace"]), text(&applied["metadata"]["name"]));
    let version = text(&applied["apiVersion"]);
    let version = if version.contains('/') { version } else { format!("/{version}") };
    format!("{namespace}/{name}; {version}, Kind={}", text(&applied["kind"]))
}

/// The applied object as the note has it: keys in order, without the note itself.
fn noted(applied: &Value) -> String {
    let mut applied = without_managers(applied);
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    set::sorted(&applied).to_string()
}

/// What client-side apply owns beyond doubt: fields of its note that are still as it wrote them. kubectl takes them over without
/// a conflict when it turns to server-side apply.
fn last_applied(schema: &Schema, live: Option<&Value>) -> FieldSet {
    let note = live.and_then(|live| live["metadata"]["annotations"][LAST_APPLIED].as_str());
    let Some(noted) = note.and_then(|note| serde_json::from_str::<Value>(note).ok()) else {
        return FieldSet::default();
    };
    let live = live.map(without_managers).unwrap_or_default();
    let diff = typed::compare(schema.root(), &noted, &live);
    typed::field_set(Some(schema.root()), &noted).difference(&diff.modified.union(&diff.removed))
}

/// Records who changed what by a create, update or patch: rewrites `metadata.managedFields` of `new`.
///
/// A client may write `managedFields` itself (kubectl does, to move from client-side to server-side apply); without any, those of
/// `old` go on; a list of one empty entry forgets them all. An update of an object that nobody tracks stays untracked.
pub fn track_update(schema: &Schema, old: Option<&Value>, new: &mut Value, manager: &Manager<'_>, now: &str) {
    let diff = match old {
        Some(old) => typed::compare_tracked(schema.root(), old, new),
        None => typed::compare_tracked(schema.root(), &skeleton(new), new),
    };
    if let Some(old) = old
        && tracked::keep(old, new, manager, &diff, now)
    {
        return;
    }
    recompute(old, new, manager, &diff, now);
}

/// The long way of [`track_update`].
fn recompute(old: Option<&Value>, new: &mut Value, manager: &Manager<'_>, diff: &typed::Diff, now: &str) {
    let mut managers = if managed::is_reset(new) {
        Managers::new()
    } else {
        let given = if manager.subresource.is_empty() { managed::decode(Some(new)) } else { Managers::new() };
        if given.is_empty() { managed::decode(old) } else { given }
    };
    if old.is_some() && managers.is_empty() {
        managed::encode(&managers, new);
        return;
    }
    // The operation is a manager of its own until it is known whether it took anything.
    let current = Key {
        operation: "Update".into(),
        name: String::new(),
        subresource: String::new(),
        ..Key::of(manager, "")
    };
    yield_fields(&mut managers, &current, diff);
    let taken = strip(diff.modified.union(&diff.added));
    if !taken.is_empty() {
        let key = Key::of(manager, now);
        let mut set = taken;
        let mine: Vec<Key> = managers.keys().filter(|k| k.same_updater(&key)).cloned().collect();
        for old in mine {
            if let Some(entry) = managers.remove(&old) {
                set = set.union(&entry.set);
            }
        }
        managers
            .insert(key, Entry { set, api_version: manager.api_version.to_owned(), time: now.to_owned() });
    }
    managed::cap(&mut managers);
    managed::encode(&managers, new);
}

/// Takes what changed away from all managers but one, and lists what that would mean as conflicts. Fields that are gone are
/// nobody's, and no conflict.
fn yield_fields(managers: &mut Managers, except: &Key, diff: &typed::Diff) -> (Vec<Conflict>, FieldSet) {
    let mut conflicts = Vec::new();
    let mut all = FieldSet::default();
    let changed = diff.modified.union(&diff.added);
    for (key, entry) in managers.iter_mut() {
        if key == except {
            continue;
        }
        let taken = entry.set.intersection(&changed);
        if !taken.is_empty() {
            let manager = printed(key, &entry.api_version);
            conflicts
                .extend(taken.paths().into_iter().map(|field| Conflict { manager: manager.clone(), field }));
            entry.set = entry.set.difference(&taken);
            all = all.union(&taken);
        }
        entry.set = entry.set.difference(&diff.removed);
    }
    managers.retain(|key, entry| key == except || !entry.set.is_empty());
    (conflicts, all)
}

fn printed(key: &Key, api_version: &str) -> String {
    let mut out = format!("{:?}", key.name);
    if !key.subresource.is_empty() {
        out.push_str(&format!(" with subresource {:?}", key.subresource));
    }
    if key.operation != APPLY {
        out.push_str(&format!(" using {api_version}"));
    }
    out
}

/// Removes what the applier owned before, does not apply now, and nobody else owns.
fn prune(schema: &Schema, merged: Value, managers: &Managers, last: &FieldSet) -> Value {
    if last.is_empty() {
        return merged;
    }
    let root = Some(schema.root());
    let named = |set: &FieldSet| set.with_named_parents(root);
    let removed = |gone: &FieldSet| typed::remove(root, &merged, gone);
    let merged_set = named(&typed::field_set(root, &merged));
    let last = named(last);

    let pruned = removed(&last);
    // What others own, and what is applied now, comes back.
    let owned = managers.values().fold(FieldSet::default(), |all, entry| all.union(&entry.set));
    let kept = named(&typed::field_set(root, &pruned)).union(&named(&owned));
    let pruned = removed(&merged_set.difference(&kept));
    // So does what was never the applier's, such as fields without an owner.
    let kept = named(&typed::field_set(root, &pruned));
    removed(&merged_set.difference(&kept).intersection(&last))
}

fn same_ownership(a: &Managers, b: &Managers) -> bool {
    a.len() == b.len()
        && a.iter().all(|(key, entry)| {
            b.get(key).is_some_and(|other| other.set == entry.set && other.api_version == entry.api_version)
        })
}

/// Paths that nobody owns.
fn strip(mut set: FieldSet) -> FieldSet {
    const SYSTEM: [&str; 8] = [
        "f:name",
        "f:namespace",
        "f:creationTimestamp",
        "f:selfLink",
        "f:uid",
        "f:generation",
        "f:managedFields",
        "f:resourceVersion",
    ];
    for step in ["f:apiVersion", "f:kind", "f:metadata"] {
        set.members.remove(step);
    }
    if let Some(metadata) = set.children.get_mut("f:metadata") {
        for step in SYSTEM {
            metadata.members.remove(step);
        }
        metadata.children.remove("f:managedFields");
        if metadata.is_empty() {
            set.children.remove("f:metadata");
        }
    }
    set
}

/// What an applied object says about the server's own fields is not said.
fn forget_system_fields(applied: &mut Value, origin: Origin) {
    if origin == Origin::Builtin {
        crate::defaults::drop_nulls(applied);
    }
    if let Some(Value::Object(metadata)) = applied.get_mut("metadata") {
        for name in ["creationTimestamp", "selfLink", "generation", "managedFields", "deletionTimestamp"] {
            metadata.remove(name);
        }
        metadata.retain(|_, value| !value.is_null());
    }
}

fn without_managers(obj: &Value) -> Value {
    let mut out = obj.clone();
    if let Some(Value::Object(metadata)) = out.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    out
}

/// The object before it existed.
fn skeleton(obj: &Value) -> Value {
    let mut out = serde_json::Map::new();
    for name in crate::node::TYPE_META {
        if let Some(value) = obj.get(name) {
            out.insert(name.into(), value.clone());
        }
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests;
