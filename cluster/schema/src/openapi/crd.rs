//! A CRD's schema in the form in which it is published.

use serde_json::{Map, Value, json};

use super::{API_VERSION, KIND, META, ResourceInfo, reference};

/// The CRD's schema with the fields that every object has, and with Kubernetes' own metadata.
pub(super) fn published(resource: &ResourceInfo) -> Value {
    let mut schema = resource.schema.raw().clone();
    embedded(&mut schema);
    object_fields(&mut schema);
    schema
}

/// Adds `apiVersion`, `kind` and `metadata`.
fn object_fields(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    schema.entry("type").or_insert_with(|| "object".into());
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    let Value::Object(properties) = properties else { return };
    let text = |description: &str| json!({"type": "string", "description": description});
    properties.insert("apiVersion".into(), text(API_VERSION));
    properties.insert("kind".into(), text(KIND));
    properties.insert(
        "metadata".into(),
        json!({"allOf": [reference(&format!("{META}.ObjectMeta"))],
            "description": "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"}),
    );
}

/// The same for objects inside of objects.
fn embedded(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    let below = |map: &mut Map<String, Value>| {
        if let Some(Value::Object(properties)) = map.get_mut("properties") {
            properties.values_mut().for_each(inner);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(sub) = map.get_mut(key) {
                inner(sub);
            }
        }
    };
    below(map);
}

fn inner(schema: &mut Value) {
    embedded(schema);
    if schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) {
        object_fields(schema);
    }
}
