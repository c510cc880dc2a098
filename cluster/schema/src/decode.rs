//! Values of the wrong type, in the words of Kubernetes' decoders; and JSON values as Go prints them.
//!
//! Kubernetes decodes its own types before it validates them, so that a text in place of a number is a bad request (400) that
//! names the Go field, not an invalid object (422). Clients and people look for these words.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::node::{Field, Node, Sub, Ty};
use crate::validate::formats::Format;

/// The first value that does not fit its field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The struct that declares the field, such as `DeploymentSpec`.
    pub owner: String,
    /// Path of the field without indices and map keys: `spec.template.spec.containers.image`.
    pub path: String,
    /// What the value is: `string`, `number`, `bool`, `array` or `object`.
    pub found: &'static str,
    /// What the field takes, as a Go type.
    pub expected: String,
    /// What a text that is no base64 is told instead.
    pub corrupt: Option<String>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(corrupt) = &self.corrupt {
            return f.write_str(corrupt);
        }
        write!(
            f,
            "json: cannot unmarshal {} into Go struct field {}.{} of type {}",
            self.found, self.owner, self.path, self.expected
        )
    }
}

/// The kind of a JSON value, as Go's decoder names it.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(node: &Node) -> String {
    if let Some(name) = &node.type_name {
        // `api.core.v1.Container` is `v1.Container` to Go.
        let parts: Vec<&str> = name.rsplitn(3, '.').collect();
        return format!("{}.{}", parts.get(1).unwrap_or(&"v1"), parts[0]);
    }
    match node.ty {
        Ty::String => "string".to_owned(),
        Ty::Boolean => "bool".to_owned(),
        Ty::Integer if node.wide => "int64".to_owned(),
        Ty::Integer => "int32".to_owned(),
        Ty::Number => "float64".to_owned(),
        Ty::Array => {
            format!("[]{}", node.items.as_deref().map_or_else(|| "interface {}".to_owned(), |n| go_type(n)))
        }
        _ => match &node.additional {
            Some(entry) => format!("map[string]{}", go_type(entry)),
            None => "interface {}".to_owned(),
        },
    }
}

/// Types that decode themselves say what is wrong in their own way, which validation does.
fn is_plain(ty: Ty) -> bool {
    !matches!(ty, Ty::Any | Ty::IntOrString | Ty::Quantity)
}

fn fits(node: &Node, value: &Value) -> bool {
    match (node.ty, value) {
        (_, Value::Null) | (Ty::Any | Ty::IntOrString | Ty::Quantity, _) => true,
        (Ty::Object, _) if node.preserve && node.properties.is_empty() => true,
        (Ty::Object, Value::Object(_)) | (Ty::Array, Value::Array(_)) => true,
        (Ty::String, Value::String(_)) | (Ty::Boolean, Value::Bool(_)) | (Ty::Number, Value::Number(_)) => {
            true
        }
        (Ty::Integer, Value::Number(n)) => n.is_i64() || n.as_f64().is_some_and(|f| f.fract() == 0.0),
        _ => false,
    }
}

/// The first value below `root` that does not fit, in the order of the document.
pub(crate) fn mismatch(root: &Sub, value: &Value) -> Option<Mismatch> {
    walk(root, value, "", &mut String::new())
}

fn walk(node: &Node, value: &Value, owner: &str, path: &mut String) -> Option<Mismatch> {
    if !fits(node, value) && is_plain(node.ty) {
        return Some(Mismatch {
            owner: owner.to_owned(),
            path: path.clone(),
            found: kind(value),
            expected: go_type(node),
            corrupt: None,
        });
    }
    if let Value::String(text) = value
        && node.checks.as_ref().is_some_and(|checks| checks.format() == Some(Format::Byte))
        && STANDARD.decode(text).is_err()
    {
        let corrupt = Some(format!("illegal base64 data at input byte {}", broken_at(text)));
        let (owner, path) = (owner.to_owned(), path.clone());
        return Some(Mismatch { owner, path, found: "string", expected: "[]uint8".to_owned(), corrupt });
    }
    let owner = node.type_name.as_deref().and_then(|name| name.rsplit('.').next()).unwrap_or(owner);
    match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| match node.field(key) {
            Field::Known(sub) => {
                let length = path.len();
                if length > 0 {
                    path.push('.');
                }
                path.push_str(key);
                let found = walk(sub, value, owner, path);
                path.truncate(length);
                found
            }
            Field::Entry(sub) => walk(sub, value, owner, path),
            Field::Untyped | Field::Unknown => None,
        }),
        Value::Array(items) => {
            let item = node.items.as_deref()?;
            items.iter().find_map(|value| walk(item, value, owner, path))
        }
        _ => None,
    }
}

/// Where a text ceases to be base64: at the first letter that is none of its, or at its end.
fn broken_at(text: &str) -> usize {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    text.bytes().position(|byte| !letter(byte)).unwrap_or(text.len())
}

/// Removes empty lists and maps, as encoding Go's structs with `omitempty` does; what a type requires stays.
pub(crate) fn drop_empty(node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            let keeps = |key: &str| {
                node.required.iter().any(|required| required == key)
                    || ALWAYS
                        .iter()
                        .any(|(owner, field)| *field == key && node.type_name.as_deref() == Some(owner))
            };
            map.retain(|key, value| {
                let Field::Known(sub) = node.field(key) else {
                    if let Field::Entry(sub) = node.field(key) {
                        drop_empty(sub, value);
                    }
                    return true;
                };
                drop_empty(sub, value);
                let empty = match value {
                    Value::Array(items) => items.is_empty() && sub.ty == Ty::Array,
                    Value::Object(map) => {
                        map.is_empty() && sub.additional.is_some() && sub.properties.is_empty()
                    }
                    _ => false,
                };
                !empty || keeps(key)
            });
        }
        Value::Array(items) => {
            if let Some(item) = node.items.as_deref() {
                items.iter_mut().for_each(|value| drop_empty(item, value));
            }
        }
        _ => {}
    }
}

/// Lists that Kubernetes writes even where they are empty, and that no schema requires.
const ALWAYS: &[(&str, &str)] = &[
    ("api.rbac.v1.ClusterRole", "rules"),
    ("api.rbac.v1.Role", "rules"),
    ("api.discovery.v1.EndpointSlice", "endpoints"),
    ("api.discovery.v1.EndpointSlice", "ports"),
    // An empty list in a selector's place means something other than none.
    ("api.networking.v1.NetworkPolicySpec", "podSelector"),
];

/// A value as Go's `%v` prints it: `map[a:1 b:[x y]]`.
pub fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_text).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            let pairs: Vec<String> =
                pairs.into_iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// A value in Go's own syntax, as `%#v` prints it.
pub(crate) fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(map) => {
            let mut pairs: Vec<(&String, &Value)> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            let pairs: Vec<String> =
                pairs.into_iter().map(|(key, value)| format!("{key:?}:{}", go_syntax(value))).collect();
            format!("map[string]interface {{}}{{{}}}", pairs.join(", "))
        }
        other => other.to_string(),
    }
}

/// A value's Go type.
pub fn go_type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::Schema;

    use super::*;

    fn found(group: &str, kind: &str, value: &Value) -> Option<String> {
        Schema::builtin(group, "v1", kind).unwrap().mismatch(value).map(|m| m.to_string())
    }

    #[test]
    fn the_go_field_is_named() {
        let replicas = found("apps", "Deployment", &json!({"spec": {"replicas": "three"}}));
        let expected =
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32";
        assert_eq!(replicas.as_deref(), Some(expected));
        let data = found("", "ConfigMap", &json!({"data": {"number": 1}}));
        let expected = "json: cannot unmarshal number into Go struct field ConfigMap.data of type string";
        assert_eq!(data.as_deref(), Some(expected));
        let containers = found("", "Pod", &json!({"spec": {"containers": {"name": "x"}}}));
        let expected = "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container";
        assert_eq!(containers.as_deref(), Some(expected));
        assert_eq!(found("", "Pod", &json!({"spec": {"containers": [{"name": "x", "args": null}]}})), None);
        let secret = found("", "Secret", &json!({"data": {"good": "Yg==", "a": "not base64!"}}));
        assert_eq!(secret.as_deref(), Some("illegal base64 data at input byte 3"));
    }

    #[test]
    fn empty_lists_and_maps_go_and_empty_structs_stay() {
        let schema = Schema::builtin("", "v1", "Pod").unwrap();
        let mut pod = json!({"metadata": {"labels": {}, "ownerReferences": []},
            "spec": {"containers": [], "nodeSelector": {}, "volumes": [{"name": "a", "emptyDir": {}}], "securityContext": {}}});
        schema.drop_empty(&mut pod);
        assert_eq!(
            pod,
            json!({"metadata": {}, "spec": {"containers": [], "volumes": [{"name": "a", "emptyDir": {}}], "securityContext": {}}})
        );
    }

    #[test]
    fn values_print_as_in_go() {
        let value = json!({"b": [1, "x"], "a": {"c": null}});
        assert_eq!(go_text(&value), "map[a:map[c:<nil>] b:[1 x]]");
        assert_eq!(go_syntax(&json!({"b": "c"})), "map[string]interface {}{\"b\":\"c\"}");
    }
}
