//! `metadata.managedFields`: who owns which fields, and since when.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Manager;
use super::set::FieldSet;

/// Identity of an entry. Appliers are the same whatever version they use; updaters are not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) operation: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// Empty for appliers.
    pub(crate) api_version: String,
    /// Two entries that a client wrote with the same identity stay apart by their time, as upstream; empty for appliers.
    pub(crate) time: String,
}

impl Key {
    pub(crate) fn of(manager: &Manager<'_>, now: &str) -> Key {
        let apply = manager.operation == APPLY;
        Key {
            operation: manager.operation.to_owned(),
            name: manager.name.to_owned(),
            subresource: manager.subresource.to_owned(),
            api_version: if apply { String::new() } else { manager.api_version.to_owned() },
            time: if apply { String::new() } else { now.to_owned() },
        }
    }

    pub(crate) fn same_updater(&self, other: &Key) -> bool {
        self.operation == other.operation
            && self.name == other.name
            && self.subresource == other.subresource
            && self.api_version == other.api_version
    }
}

pub(crate) const APPLY: &str = "Apply";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) set: FieldSet,
    pub(crate) api_version: String,
    pub(crate) time: String,
}

pub(crate) type Managers = BTreeMap<Key, Entry>;

/// The entries of an object; anything malformed counts as none.
pub(crate) fn decode(obj: Option<&Value>) -> Managers {
    let Some(Value::Array(entries)) = obj.and_then(|o| o.pointer("/metadata/managedFields")) else {
        return Managers::new();
    };
    let mut out = Managers::new();
    for entry in entries {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (operation, fields) = (text("operation"), entry.get("fieldsV1"));
        if !matches!(operation.as_str(), "Apply" | "Update") || text("apiVersion").is_empty() {
            return Managers::new();
        }
        let apply = operation == APPLY;
        let key = Key {
            operation,
            name: text("manager"),
            subresource: text("subresource"),
            api_version: if apply { String::new() } else { text("apiVersion") },
            time: if apply { String::new() } else { text("time") },
        };
        let set = fields.map(FieldSet::from_fields_v1).unwrap_or_default();
        out.insert(key, Entry { set, api_version: text("apiVersion"), time: text("time") });
    }
    out
}

/// Whether a client asks to forget all ownership: one empty entry.
pub(crate) fn is_reset(obj: &Value) -> bool {
    matches!(obj.pointer("/metadata/managedFields"), Some(Value::Array(entries))
        if entries.len() == 1 && entries[0].as_object().is_some_and(Map::is_empty))
}

/// Writes the entries into an object, in Kubernetes' order: appliers first, then by time and name.
pub(crate) fn encode(managers: &Managers, obj: &mut Value) {
    let mut entries: Vec<(&Key, &Entry)> = managers.iter().collect();
    entries.sort_by(|(ka, a), (kb, b)| {
        (&ka.operation, &a.time, &ka.name, &a.api_version, &ka.subresource).cmp(&(
            &kb.operation,
            &b.time,
            &kb.name,
            &b.api_version,
            &kb.subresource,
        ))
    });
    let list: Vec<Value> = entries
        .into_iter()
        .map(|(key, entry)| {
            let mut out = Map::new();
            out.insert("manager".into(), key.name.clone().into());
            out.insert("operation".into(), key.operation.clone().into());
            out.insert("apiVersion".into(), entry.api_version.clone().into());
            if !entry.time.is_empty() {
                out.insert("time".into(), entry.time.clone().into());
            }
            out.insert("fieldsType".into(), "FieldsV1".into());
            out.insert("fieldsV1".into(), entry.set.to_fields_v1());
            if !key.subresource.is_empty() {
                out.insert("subresource".into(), key.subresource.clone().into());
            }
            Value::Object(out)
        })
        .collect();
    let Value::Object(map) = obj else { return };
    let metadata = map.entry("metadata").or_insert_with(|| json!({}));
    let Value::Object(metadata) = metadata else { return };
    if list.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), Value::Array(list));
    }
}

/// More updaters than this are folded into one entry per version, so that `managedFields` stays bounded.
const MAX_UPDATERS: usize = 10;

pub(crate) fn cap(managers: &mut Managers) {
    let mut updaters: Vec<(String, Key)> = managers
        .iter()
        .filter(|(key, _)| key.operation != APPLY)
        .map(|(key, entry)| (entry.time.clone(), key.clone()))
        .collect();
    if updaters.len() <= MAX_UPDATERS {
        return;
    }
    updaters.sort();
    let mut count = updaters.len();
    for (_, key) in updaters {
        if count <= MAX_UPDATERS {
            break;
        }
        let bucket = Key {
            operation: "Update".into(),
            name: "ancient-changes".into(),
            subresource: String::new(),
            api_version: key.api_version.clone(),
            time: String::new(),
        };
        if key == bucket {
            continue;
        }
        let Some(entry) = managers.remove(&key) else { continue };
        match managers.get_mut(&bucket) {
            Some(there) => {
                there.set = there.set.union(&entry.set);
                there.time = entry.time;
                count -= 1;
            }
            None => drop(managers.insert(bucket, entry)),
        }
    }
}
