//! Objects without `managedFields`, for clients in this process.
//!
//! Half of an object as a controller writes it is the record of who wrote which field. No component reads it, and a write that leaves it
//! out keeps it; parsing it, in each of a dozen watches, would cost more than all the rest.

use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

/// Marks a request whose answers shall be lean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lean;

/// Serialises an object without its `managedFields`.
pub(crate) struct Object<'a>(pub &'a Value);

/// Serialises a `PartialObjectMetadata` of `meta.k8s.io/v1` without `managedFields`.
struct Partial<'a>(&'a Value);

struct Metadata<'a>(&'a Map<String, Value>);

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(field, _)| *field != "managedFields"))
    }
}

/// Serialises the fields of an object that `wanted` names, `metadata` without `managedFields`.
pub(crate) fn fields<S: Serializer>(
    object: &Value,
    wanted: impl Fn(&str) -> bool,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let Value::Object(map) = object else { return object.serialize(serializer) };
    let mut out = serializer.serialize_map(None)?;
    for (field, value) in map.iter().filter(|(field, _)| wanted(field)) {
        if let ("metadata", Value::Object(metadata)) = (field.as_str(), value) {
            out.serialize_entry(field, &Metadata(metadata))?;
        } else {
            out.serialize_entry(field, value)?;
        }
    }
    out.end()
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fields(self.0, |_| true, serializer)
    }
}

impl Serialize for Partial<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(Some(3))?;
        out.serialize_entry("kind", "PartialObjectMetadata")?;
        out.serialize_entry("apiVersion", "meta.k8s.io/v1")?;
        match &self.0["metadata"] {
            Value::Object(metadata) => out.serialize_entry("metadata", &Metadata(metadata))?,
            other => out.serialize_entry("metadata", other)?,
        }
        out.end()
    }
}

fn to_bytes(value: &impl Serialize, size: usize) -> Bytes {
    let mut json = Vec::with_capacity(size);
    // Writing a Value into memory fails on nothing: its keys are strings.
    serde_json::to_writer(&mut json, value).expect("a JSON value serialises");
    json.into()
}

/// The object as JSON.
pub(crate) fn object(object: &Value) -> Bytes {
    to_bytes(&Object(object), 8192)
}

/// Its metadata as JSON.
pub(crate) fn partial(object: &Value) -> Bytes {
    to_bytes(&Partial(object), 1024)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_managed_fields_are_left_out() {
        let whole = json!({"kind": "A", "metadata": {"name": "a", "managedFields": [{}]}, "spec": {"managedFields": 1}});
        let read = |bytes: Bytes| serde_json::from_slice::<Value>(&bytes).unwrap();
        assert_eq!(
            read(object(&whole)),
            json!({"kind": "A", "metadata": {"name": "a"}, "spec": {"managedFields": 1}})
        );
        assert_eq!(
            read(partial(&whole)),
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}})
        );
    }
}
