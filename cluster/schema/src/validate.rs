//! Validation of an object against its schema, in the words of the Kubernetes API server.
//!
//! Two passes: shape and values first, CEL rules second, and those only when the first pass found nothing that would make a
//! rule stumble. With an old object, what has not changed is not judged again ("ratcheting"): a stored object stays writable
//! when its CRD becomes stricter. Transition rules are always evaluated.

pub(crate) mod cel;
mod checks;
pub(crate) mod formats;

use serde_json::{Map, Value};

pub(crate) use checks::Checks;

use crate::error::{FieldError, Reason, child};
use crate::node::{Field, ListType, Node, Sub, Ty};

const RULES_SKIPPED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to \
                             complete validation";

pub(crate) struct Options {
    /// Lists declared as sets or maps may not hold duplicates; Kubernetes checks that for CRDs here and for its own types elsewhere.
    pub(crate) unique_lists: bool,
    /// Skip what is equal to the old object.
    pub(crate) ratchet: bool,
    /// Null is no value at all, as for Kubernetes' own types.
    pub(crate) nulls: bool,
}

pub(crate) fn validate(root: &Sub, obj: &Value, old: Option<&Value>, options: &Options) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(root, obj, old, &mut String::new(), options, &mut errors);
    if root.has_rules {
        let blocking = errors.iter().any(|e| {
            matches!(
                e.reason,
                Reason::Required
                    | Reason::TooLong
                    | Reason::TooMany
                    | Reason::TypeInvalid
                    | Reason::NotSupported
            )
        });
        if blocking {
            errors.push(FieldError::invalid("", &Value::Null, RULES_SKIPPED));
        } else {
            cel::evaluate(root, obj, old, &mut String::new(), &mut errors);
        }
    }
    errors
}

/// Name of a JSON value's type, as error messages have it.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn fits(ty: Ty, value: &Value) -> bool {
    match ty {
        Ty::Any => true,
        Ty::Object => value.is_object(),
        Ty::Array => value.is_array(),
        Ty::String => value.is_string(),
        Ty::Integer => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0),
        Ty::Number => value.is_number(),
        Ty::Boolean => value.is_boolean(),
        Ty::IntOrString => value.is_i64() || value.is_u64() || value.is_string(),
        Ty::Quantity => value.is_number() || value.is_string(),
    }
}

fn type_error(path: &str, ty: Ty, value: &Value) -> FieldError {
    let got = type_name(value);
    FieldError {
        field: path.to_owned(),
        reason: Reason::TypeInvalid,
        bad_value: Some(Value::String(got.into())),
        shown: None,
        detail: format!("{path} in body must be of type {}: {got:?}", ty.name()),
    }
}

/// Appends to a path for the time of one call.
pub(crate) fn within<R>(path: &mut String, part: &str, f: impl FnOnce(&mut String) -> R) -> R {
    let len = path.len();
    path.push_str(part);
    let out = f(path);
    path.truncate(len);
    out
}

pub(crate) fn within_field<R>(path: &mut String, name: &str, f: impl FnOnce(&mut String) -> R) -> R {
    let len = path.len();
    if len > 0 {
        path.push('.');
    }
    path.push_str(name);
    let out = f(path);
    path.truncate(len);
    out
}

fn walk(
    node: &Node,
    value: &Value,
    old: Option<&Value>,
    path: &mut String,
    options: &Options,
    errors: &mut Vec<FieldError>,
) {
    if options.ratchet && old == Some(value) {
        return;
    }
    if value.is_null() && (node.nullable || options.nulls || node.ty == Ty::Any) {
        return;
    }
    if !fits(node.ty, value) {
        errors.push(type_error(path, node.ty, value));
        return;
    }
    if node.ty == Ty::Quantity
        && let Value::String(text) = value
        && crate::quantity::canonical(text).is_none()
    {
        errors.push(FieldError::invalid(
            path.clone(),
            value,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ));
    }
    if let Some(checks) = &node.checks {
        checks.run(value, path, errors);
    }
    match value {
        Value::Object(map) => object(node, map, old, path, options, errors),
        Value::Array(items) => array(node, items, old, path, options, errors),
        _ => {}
    }
}

fn object(
    node: &Node,
    map: &Map<String, Value>,
    old: Option<&Value>,
    path: &mut String,
    options: &Options,
    errors: &mut Vec<FieldError>,
) {
    for name in &node.required {
        if !map.contains_key(name) {
            errors.push(FieldError::required(child(path, name), ""));
        }
    }
    if node.embedded {
        for name in crate::node::TYPE_META {
            if map.get(name).and_then(Value::as_str).unwrap_or_default().is_empty()
                && !node.required.iter().any(|r| r == name)
            {
                errors.push(FieldError::required(child(path, name), "must not be empty"));
            }
        }
    }
    for (key, value) in map {
        if let Field::Known(sub) | Field::Entry(sub) = node.field(key) {
            let old = old.and_then(|old| old.get(key));
            within_field(path, key, |path| walk(sub, value, old, path, options, errors));
        }
    }
}

fn array(
    node: &Node,
    items: &[Value],
    old: Option<&Value>,
    path: &mut String,
    options: &Options,
    errors: &mut Vec<FieldError>,
) {
    let Some(item) = &node.items else { return };
    if options.unique_lists {
        duplicates(node, items, path, errors);
    }
    for (i, value) in items.iter().enumerate() {
        let old = correlated(node, value, old);
        within(path, &format!("[{i}]"), |path| walk(item, value, old, path, options, errors));
    }
}

/// The item of the old list that is the same item: only lists of type map have such a thing.
pub(crate) fn correlated<'a>(node: &Node, value: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    let ListType::Map(keys) = &node.list else { return None };
    old?.as_array()?.iter().find(|o| keys.iter().all(|k| o.get(k) == value.get(k)))
}

fn duplicates(node: &Node, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = std::collections::HashSet::with_capacity(items.len());
    match &node.list {
        ListType::Atomic => {}
        ListType::Set => {
            for (i, value) in items.iter().enumerate() {
                if !seen.insert(value.clone()) {
                    errors.push(FieldError::duplicate(format!("{path}[{i}]"), value));
                }
            }
        }
        ListType::Map(keys) => {
            for (i, value) in items.iter().enumerate() {
                let key: Map<String, Value> =
                    keys.iter().filter_map(|k| Some((k.clone(), value.get(k)?.clone()))).collect();
                let key = Value::Object(key);
                if !seen.insert(key.clone()) {
                    errors.push(FieldError::duplicate(format!("{path}[{i}]"), &key));
                }
            }
        }
    }
}
