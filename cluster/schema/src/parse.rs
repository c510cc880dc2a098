//! From JSON schema to [`Node`]: the parts that built-in types and CRDs have in common, and CRDs' structural schemas.

use serde_json::Value;

use crate::error::{FieldError, child};
use crate::node::{ListType, Node, Sub, Ty, embed};
use crate::validate::{Checks, cel::Rules};

pub(crate) fn ty(schema: &Value) -> Ty {
    if flag(schema, "x-kubernetes-int-or-string") {
        return Ty::IntOrString;
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => Ty::Object,
        Some("array") => Ty::Array,
        Some("string") => Ty::String,
        Some("integer") => Ty::Integer,
        Some("number") => Ty::Number,
        Some("boolean") => Ty::Boolean,
        _ => Ty::Any,
    }
}

pub(crate) fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

pub(crate) fn checks(schema: &Value) -> Option<Box<Checks>> {
    // Built-in schemas hold nothing that cannot be parsed.
    let mut ignored = Vec::new();
    Checks::parse(schema, "", &mut ignored)
}

/// Depth at which a schema is refused: deeper ones are mistakes or attacks on the stack.
const MAX_DEPTH: usize = 64;

/// Parses a CRD's `openAPIV3Schema`; `path` names the schema in errors.
pub(crate) fn crd(schema: &Value, path: &str) -> Result<Sub, Vec<FieldError>> {
    let mut errors = Vec::new();
    if schema.get("type").and_then(Value::as_str) != Some("object")
        && !flag(schema, "x-kubernetes-preserve-unknown-fields")
    {
        match schema.get("type") {
            None => errors.push(FieldError::required(child(path, "type"), "must not be empty at the root")),
            Some(other) => {
                errors.push(FieldError::invalid(child(path, "type"), other, "must be object at the root"));
            }
        }
    }
    let mut node = structural(schema, path, 0, &mut errors);
    node.ty = Ty::Object;
    if let Some(metadata) = schema.pointer("/properties/metadata") {
        metadata_rules(metadata, &child(path, "properties[metadata]"), &mut errors);
    }
    embed(&mut node);
    if errors.is_empty() { Ok(Sub::own(node)) } else { Err(errors) }
}

fn metadata_rules(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if schema.get("type").and_then(Value::as_str).is_some_and(|t| t != "object") {
        errors.push(FieldError::invalid(child(path, "type"), &schema["type"], "must be object"));
    }
}

fn structural(schema: &Value, path: &str, depth: usize, errors: &mut Vec<FieldError>) -> Node {
    let mut node = Node::default();
    let Some(object) = schema.as_object() else {
        errors.push(FieldError::invalid(path, schema, "must be a schema object"));
        return node;
    };
    if depth > MAX_DEPTH {
        errors
            .push(FieldError::forbidden(path, format!("schema is nested more than {MAX_DEPTH} levels deep")));
        return node;
    }
    node.ty = ty(schema);
    node.nullable = flag(schema, "nullable");
    node.preserve = flag(schema, "x-kubernetes-preserve-unknown-fields");
    node.embedded = flag(schema, "x-kubernetes-embedded-resource");
    for keyword in [
        "$ref",
        "definitions",
        "dependencies",
        "deprecated",
        "id",
        "patternProperties",
        "readOnly",
        "writeOnly",
        "xml",
    ] {
        if object.contains_key(keyword) {
            errors.push(FieldError::forbidden(child(path, keyword), format!("{keyword} is not supported")));
        }
    }
    let typed = object.get("type").is_some();
    if !typed && node.ty == Ty::Any && !node.preserve {
        errors
            .push(FieldError::required(child(path, "type"), "must not be empty for specified object fields"));
    }
    if typed && node.ty == Ty::Any {
        errors.push(FieldError::not_supported(
            child(path, "type"),
            &object["type"],
            &["array", "boolean", "integer", "number", "object", "string"],
        ));
    }
    children(schema, path, depth, &mut node, errors);
    list_type(schema, path, &mut node, errors);
    if schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic") {
        node.atomic_map = true;
    }
    node.checks = Checks::parse(schema, path, errors);
    node.rules = Rules::parse(schema, &node, path, errors);
    node.default = object.get("default").cloned();
    if node.embedded {
        embed(&mut node);
    }
    mark(&mut node);
    node
}

fn children(schema: &Value, path: &str, depth: usize, node: &mut Node, errors: &mut Vec<FieldError>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            let path = format!("{}[{name}]", child(path, "properties"));
            node.properties.insert(name.clone(), Sub::own(structural(property, &path, depth + 1, errors)));
        }
    }
    match schema.get("additionalProperties") {
        Some(Value::Bool(true)) => node.preserve = true,
        Some(Value::Bool(false)) | None => {}
        Some(entry) => {
            if !node.properties.is_empty() {
                errors.push(FieldError::forbidden(
                    child(path, "additionalProperties"),
                    "additionalProperties and properties are mutual exclusive",
                ));
            }
            let path = child(path, "additionalProperties");
            node.additional = Some(Box::new(Sub::own(structural(entry, &path, depth + 1, errors))));
        }
    }
    match schema.get("items") {
        Some(items) => {
            node.items =
                Some(Box::new(Sub::own(structural(items, &child(path, "items"), depth + 1, errors))));
        }
        None if node.ty == Ty::Array => {
            errors.push(FieldError::required(child(path, "items"), "must be specified"));
        }
        None => {}
    }
    if let Some(required) = schema.get("required").and_then(Value::as_array) {
        node.required = required.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    }
}

fn list_type(schema: &Value, path: &str, node: &mut Node, errors: &mut Vec<FieldError>) {
    let keys: Vec<String> = schema
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .map(|keys| keys.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        None | Some("atomic") => {}
        Some("set") => node.list = ListType::Set,
        Some("map") => {
            if keys.is_empty() {
                errors.push(FieldError::required(
                    child(path, "x-kubernetes-list-map-keys"),
                    "must not be empty if x-kubernetes-list-type is map",
                ));
            }
            for (i, key) in keys.iter().enumerate() {
                if node.items.as_ref().is_some_and(|items| !items.properties.contains_key(key)) {
                    errors.push(FieldError::invalid(
                        format!("{}[{i}]", child(path, "x-kubernetes-list-map-keys")),
                        &Value::String(key.clone()),
                        "key does not exist in items.properties",
                    ));
                }
            }
            node.list = ListType::Map(keys);
        }
        Some(other) => errors.push(FieldError::not_supported(
            child(path, "x-kubernetes-list-type"),
            &Value::String(other.to_owned()),
            &["atomic", "map", "set"],
        )),
    }
}

/// Notes what is below a node, so that walks can skip it.
fn mark(node: &mut Node) {
    let below = || node.properties.values().chain(node.additional.as_deref()).chain(node.items.as_deref());
    let rules = node.rules.is_some() || below().any(|sub| sub.has_rules);
    let defaults = below().any(|sub| sub.default.is_some() || sub.has_defaults);
    node.has_rules = rules;
    node.has_defaults = defaults;
}

/// Defaults must fit the schema that they stand in.
pub(crate) fn check_defaults(sub: &Sub, path: &str, errors: &mut Vec<FieldError>) {
    if let crate::node::Target::Type(_) = sub.target {
        return;
    }
    if let Some(default) = &sub.default {
        let at = child(path, "default");
        if !crate::fields::known(sub, default) {
            errors.push(FieldError::invalid(&at, default, "must not have unknown fields"));
        }
        let mut whole = default.clone();
        crate::defaults::crd(sub, &mut whole);
        let options = crate::validate::Options { unique_lists: true, ratchet: false, nulls: false };
        for mut e in crate::validate::validate(sub, &whole, None, &options) {
            e.field = if e.field.is_empty() { at.clone() } else { child(&at, &e.field) };
            errors.push(e);
        }
    }
    for (name, property) in &sub.properties {
        check_defaults(property, &format!("{}[{name}]", child(path, "properties")), errors);
    }
    if let Some(entry) = &sub.additional {
        check_defaults(entry, &child(path, "additionalProperties"), errors);
    }
    if let Some(items) = &sub.items {
        check_defaults(items, &child(path, "items"), errors);
    }
}
