//! The value constraints of one schema node, compiled when the schema is read.

use regex::Regex;
use serde_json::Value;

use super::fits;
use super::formats::Format;
use crate::error::{FieldError, Reason, child};
use crate::node::Node;
use crate::parse;

/// Constraints beyond type and fields; a node without any has no `Checks`.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    allowed: Vec<Value>,
    pattern: Option<Regex>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    unique_items: bool,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    format: Option<Format>,
    all_of: Vec<Part>,
    any_of: Vec<Part>,
    one_of: Vec<Part>,
    not: Option<Part>,
}

/// A schema under `allOf`, `anyOf`, `oneOf` or `not`: it only constrains, it declares nothing.
#[derive(Debug)]
struct Part(Node);

impl Part {
    fn parse(schema: &Value, path: &str, errors: &mut Vec<FieldError>) -> Part {
        let mut node =
            Node { ty: parse::ty(schema), nullable: parse::flag(schema, "nullable"), ..Node::default() };
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            for (name, property) in properties {
                let path = format!("{}[{name}]", child(path, "properties"));
                node.properties
                    .insert(name.clone(), crate::node::Sub::own(Part::parse(property, &path, errors).0));
            }
        }
        if let Some(items) = schema.get("items") {
            let part = Part::parse(items, &child(path, "items"), errors);
            node.items = Some(Box::new(crate::node::Sub::own(part.0)));
        }
        if let Some(entry @ Value::Object(_)) = schema.get("additionalProperties") {
            let part = Part::parse(entry, &child(path, "additionalProperties"), errors);
            node.additional = Some(Box::new(crate::node::Sub::own(part.0)));
        }
        if let Some(required) = schema.get("required").and_then(Value::as_array) {
            node.required = required.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        node.checks = Checks::parse(schema, path, errors);
        Part(node)
    }

    fn errors(&self, value: &Value, path: &mut String) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let options = super::Options { unique_lists: false, ratchet: false, nulls: false };
        super::walk(&self.0, value, None, path, &options, &mut errors);
        errors
    }
}

impl Checks {
    /// Compiles the constraints of `schema`; what cannot be compiled goes to `errors` under `path`.
    pub(crate) fn parse(schema: &Value, path: &str, errors: &mut Vec<FieldError>) -> Option<Box<Checks>> {
        let object = schema.as_object()?;
        let number = |name: &str| object.get(name).and_then(Value::as_f64);
        let count = |name: &str| object.get(name).and_then(Value::as_u64);
        let flag = |name: &str| parse::flag(schema, name);
        let mut any = false;
        let mut checks = Checks {
            allowed: object.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag("uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            format: object.get("format").and_then(Value::as_str).and_then(Format::parse),
            ..Checks::default()
        };
        if let Some(Value::String(pattern)) = object.get("pattern") {
            match Regex::new(pattern) {
                Ok(regex) => checks.pattern = Some(regex),
                Err(e) => errors.push(FieldError::invalid(
                    child(path, "pattern"),
                    &object["pattern"],
                    format!("must be a valid regular expression, but isn't: {e}"),
                )),
            }
        }
        let mut parts = |name: &str| -> Vec<Part> {
            let schemas = object.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let path = child(path, name);
            schemas.iter().enumerate().map(|(i, s)| Part::parse(s, &format!("{path}[{i}]"), errors)).collect()
        };
        checks.all_of = parts("allOf");
        checks.any_of = parts("anyOf");
        checks.one_of = parts("oneOf");
        if let Some(not) = object.get("not") {
            checks.not = Some(Part::parse(not, &child(path, "not"), errors));
        }
        for name in KEYWORDS {
            any |= object.contains_key(*name);
        }
        (any || checks.format.is_some()).then(|| Box::new(checks))
    }

    /// The format that the schema names, if it is one that is known here.
    pub(crate) fn format(&self) -> Option<Format> {
        self.format
    }

    pub(crate) fn run(&self, value: &Value, path: &mut String, errors: &mut Vec<FieldError>) {
        if !self.allowed.is_empty() && !self.allowed.contains(value) {
            let supported: Vec<String> = self.allowed.iter().map(ToString::to_string).collect();
            errors.push(FieldError {
                field: path.clone(),
                reason: Reason::NotSupported,
                bad_value: Some(value.clone()),
                shown: None,
                detail: format!("supported values: {}", supported.join(", ")),
            });
        }
        match value {
            Value::String(text) => self.string(text, value, path, errors),
            Value::Number(n) => self.number(n.as_f64().unwrap_or_default(), value, path, errors),
            Value::Array(items) => self.array(items, value, path, errors),
            Value::Object(map) => {
                let len = map.len() as u64;
                if let Some(min) = self.min_properties.filter(|min| len < *min) {
                    errors.push(body(path, value, format!("should have at least {min} properties")));
                }
                if let Some(max) = self.max_properties.filter(|max| len > *max) {
                    errors.push(too_many(path, len, max));
                }
            }
            _ => {}
        }
        self.junctions(value, path, errors);
    }

    fn string(&self, text: &str, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        if self.min_length.is_some() || self.max_length.is_some() {
            let len = text.chars().count() as u64;
            if let Some(min) = self.min_length.filter(|min| len < *min) {
                errors.push(body(path, value, format!("should be at least {min} chars long")));
            }
            if let Some(max) = self.max_length.filter(|max| len > *max) {
                errors.push(FieldError {
                    field: path.to_owned(),
                    reason: Reason::TooLong,
                    bad_value: None,
                    shown: None,
                    detail: format!("may not be more than {max} bytes"),
                });
            }
        }
        if let Some(pattern) = &self.pattern
            && !pattern.is_match(text)
        {
            errors.push(body(path, value, format!("should match '{pattern}'")));
        }
        if let Some(format) = self.format
            && !format.accepts(text)
        {
            errors.push(body(path, value, format!("must be of type {}: {text:?}", format.name())));
        }
    }

    fn number(&self, n: f64, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        if let Some((min, exclusive)) = self.minimum
            && (n < min || exclusive && n == min)
        {
            let equal = if exclusive { "" } else { " or equal to" };
            errors.push(body(path, value, format!("should be greater than{equal} {min}")));
        }
        if let Some((max, exclusive)) = self.maximum
            && (n > max || exclusive && n == max)
        {
            let equal = if exclusive { "" } else { " or equal to" };
            errors.push(body(path, value, format!("should be less than{equal} {max}")));
        }
        if let Some(step) = self.multiple_of
            && step > 0.0
            && (n / step).fract() != 0.0
        {
            errors.push(body(path, value, format!("should be a multiple of {step}")));
        }
        if let Some(format) = self.format
            && !format.accepts_number(n)
        {
            errors.push(body(path, value, format!("must be of type {}: {n:?}", format.name())));
        }
    }

    fn array(&self, items: &[Value], value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        let len = items.len() as u64;
        if let Some(min) = self.min_items.filter(|min| len < *min) {
            errors.push(body(path, value, format!("should have at least {min} items")));
        }
        if let Some(max) = self.max_items.filter(|max| len > *max) {
            errors.push(too_many(path, len, max));
        }
        if self.unique_items {
            let mut seen = std::collections::HashSet::new();
            if !items.iter().all(|item| seen.insert(item)) {
                errors.push(body(path, value, "shouldn't contain duplicates".into()));
            }
        }
    }

    fn junctions(&self, value: &Value, path: &mut String, errors: &mut Vec<FieldError>) {
        for part in &self.all_of {
            errors.extend(part.errors(value, path));
        }
        if !self.any_of.is_empty() && !self.any_of.iter().any(|p| p.errors(value, path).is_empty()) {
            errors.push(junction(path, value, "must validate at least one schema (anyOf)"));
        }
        if !self.one_of.is_empty() {
            let valid = self.one_of.iter().filter(|p| p.errors(value, path).is_empty()).count();
            if valid != 1 {
                let found =
                    if valid == 0 { "none valid".to_owned() } else { format!("{valid} valid alternatives") };
                errors.push(junction(
                    path,
                    value,
                    &format!("must validate one and only one schema (oneOf). Found {found}"),
                ));
            }
        }
        if let Some(not) = &self.not
            && fits(not.0.ty, value)
            && not.errors(value, path).is_empty()
        {
            errors.push(junction(path, value, "must not validate the schema (not)"));
        }
    }
}

const KEYWORDS: &[&str] = &[
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
];

fn body(path: &str, value: &Value, rule: String) -> FieldError {
    FieldError::invalid(path, value, format!("{path} in body {rule}"))
}

fn junction(path: &str, value: &Value, rule: &str) -> FieldError {
    FieldError::invalid(path, value, format!("{path:?} {rule}"))
}

fn too_many(path: &str, len: u64, max: u64) -> FieldError {
    FieldError {
        field: path.to_owned(),
        reason: Reason::TooMany,
        bad_value: Some(len.into()),
        shown: None,
        detail: format!("must have at most {max} items"),
    }
}
