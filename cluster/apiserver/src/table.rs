//! Tables: what `kubectl get` prints, made by the server.

mod printers;
pub(crate) mod text;

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::accept::Accept;
use crate::jsonpath;
use crate::registry::{Columns, CrdColumn, Resource};
use crate::reply::{Include, partial};

/// What every table says of names.
const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

/// One column: heading, type and whether only `-o wide` shows it.
pub(crate) struct Column {
    name: &'static str,
    kind: &'static str,
    wide: bool,
}

fn definition(name: &str, kind: &str, format: &str, description: &str, priority: i64) -> Value {
    json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
}

fn definitions(resource: &Resource) -> Value {
    let mut columns = Vec::new();
    match &resource.columns {
        Columns::Builtin => {
            let list = printers::columns(resource);
            columns.extend(list.iter().map(|column| {
                let format = if column.name == "Name" { "name" } else { "" };
                definition(column.name, column.kind, format, column.name, i64::from(column.wide))
            }));
        }
        Columns::Crd(list) => {
            columns.push(definition("Name", "string", "name", NAME, 0));
            columns.extend(list.iter().map(|c| {
                let described = if c.description.is_empty() {
                    format!("Custom resource definition column (in JSONPath format): {}", c.path)
                } else {
                    c.description.clone()
                };
                definition(&c.name, &c.kind, &c.format, &described, c.priority)
            }));
        }
    }
    columns.into()
}

fn crd_cell(column: &CrdColumn, object: &Value, now: Timestamp) -> Value {
    let found = jsonpath::select(object, &column.path);
    let Some(first) = found.first() else { return Value::Null };
    match column.kind.as_str() {
        "date" => match first.as_str() {
            Some(time) => text::age(time, now).into(),
            None => Value::Null,
        },
        "integer" => first.as_i64().map_or(Value::Null, Value::from),
        "number" => first.as_f64().map_or(Value::Null, Value::from),
        "boolean" => first.as_bool().map_or(Value::Null, Value::from),
        _ if found.len() > 1 => {
            let parts: Vec<String> = found.iter().map(|value| plain(value)).collect();
            format!("[{}]", parts.join(" ")).into()
        }
        _ => plain(first).into(),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    match &resource.columns {
        Columns::Builtin => printers::cells(resource, object, now),
        Columns::Crd(list) => std::iter::once(object["metadata"]["name"].clone())
            .chain(list.iter().map(|column| crd_cell(column, object, now)))
            .collect(),
    }
}

/// A table of objects, already in the version asked for.
pub(crate) fn table(
    accept: Accept,
    resource: &Resource,
    include: Include,
    objects: &[Cow<'_, Value>],
    metadata: Value,
    header: bool,
) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = row(accept, include, object, cells(resource, object, now));
            if let Some(conditions) = printers::conditions(resource, object) {
                row["conditions"] = conditions;
            }
            row
        })
        .collect();
    let columns = if header { definitions(resource) } else { json!([]) };
    json!({"kind": "Table", "apiVersion": accept.meta_version(), "metadata": metadata, "columnDefinitions": columns, "rows": rows})
}

fn row(accept: Accept, include: Include, object: &Value, cells: Vec<Value>) -> Value {
    let object = match include {
        Include::Metadata => partial(accept, object),
        Include::Object => object.clone(),
        Include::Nothing => Value::Null,
    };
    json!({"cells": cells, "object": object})
}

/// The table of a scale.
pub(crate) fn scale(accept: Accept, include: Include, scale: &Value) -> Value {
    let columns = [("Name", "string"), ("Desired", "integer"), ("Available", "integer"), ("Age", "string")];
    let columns = columns.map(|(name, kind)| {
        let format = if name == "Name" { "name" } else { "" };
        definition(name, kind, format, name, 0)
    });
    let number = |side: &str| Value::from(scale[side]["replicas"].as_i64().unwrap_or(0));
    let age = text::age_of(&scale["metadata"]["creationTimestamp"], Timestamp::now());
    let cells = vec![scale["metadata"]["name"].clone(), number("spec"), number("status"), age];
    let metadata = json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
    json!({"kind": "Table", "apiVersion": accept.meta_version(), "metadata": metadata, "columnDefinitions": columns,
        "rows": [row(accept, include, scale, cells)]})
}

/// The table in a bookmark: one row without cells.
pub(crate) fn bookmark(accept: Accept, resource: &Resource, bare: &Value, metadata: Value) -> Value {
    json!({"kind": "Table", "apiVersion": accept.meta_version(), "metadata": metadata,
        "columnDefinitions": definitions(resource), "rows": [{"cells": [], "object": partial(accept, bare)}]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crd_columns_are_typed() {
        let column = |kind: &str, path: &str| CrdColumn {
            name: "X".into(),
            kind: kind.into(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            path: path.into(),
        };
        let object = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": {"n": 3, "s": "t", "l": ["a", "b"]}});
        let now = Timestamp::from_second(90).unwrap();
        assert_eq!(crd_cell(&column("integer", ".spec.n"), &object, now), 3);
        assert_eq!(crd_cell(&column("string", ".spec.n"), &object, now), "3");
        assert_eq!(crd_cell(&column("string", ".spec.l[*]"), &object, now), "[a b]");
        assert_eq!(crd_cell(&column("date", ".metadata.creationTimestamp"), &object, now), "90s");
        assert_eq!(crd_cell(&column("string", ".spec.none"), &object, now), Value::Null);
    }
}
