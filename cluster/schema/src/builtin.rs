//! Kubernetes' own types: read once from k8s-openapi, joined with the table of merge keys and list types.
//!
//! The table is built on first use and lives as long as the process; a use of a type is an index into it. Descriptions are
//! not kept: [`definitions`] generates the full schemas again where somebody wants to read them (OpenAPI, `explain`).

pub(crate) mod checks;
pub(crate) mod defaults;
mod facts;
mod kinds;

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::node::{ListType, Node, Patch, Sub, Ty};
use crate::parse;
use facts::Fact;

pub(crate) const PREFIX: &str = "io.k8s.";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const DEFINITIONS: &str = "#/components/schemas/";

struct Types {
    nodes: Vec<Node>,
    kinds: HashMap<(&'static str, &'static str, &'static str), u32>,
    object_meta: u32,
}

static TYPES: LazyLock<Types> = LazyLock::new(build);

static FACTS: LazyLock<HashMap<(&'static str, &'static str), Fact>> =
    LazyLock::new(|| facts::FACTS.iter().map(|(t, f, fact)| ((*t, *f), *fact)).collect());

pub(crate) fn node(index: u32) -> &'static Node {
    &TYPES.nodes[index as usize]
}

pub(crate) fn object_meta() -> u32 {
    TYPES.object_meta
}

/// The type of a kind, if it is built in.
pub(crate) fn kind(group: &str, version: &str, kind: &str) -> Option<u32> {
    // The map is covariant in its keys' lifetimes, so that borrowed keys can be looked up without allocating.
    let kinds: &HashMap<(&str, &str, &str), u32> = &TYPES.kinds;
    kinds.get(&(group, version, kind)).copied()
}

/// Full name of a type: `io.k8s.api.apps.v1.Deployment`.
pub(crate) fn full_name(index: u32) -> String {
    format!("{PREFIX}{}", node(index).type_name.as_deref().unwrap_or_default())
}

fn build() -> Types {
    let (roots, definitions) = kinds::generate();
    let mut index: HashMap<String, u32> = HashMap::with_capacity(definitions.len());
    for (i, name) in definitions.keys().enumerate() {
        index.insert(name.clone(), i as u32);
    }
    let object_meta = index[OBJECT_META];
    let nodes = definitions.iter().map(|(name, schema)| type_node(name, schema, &index)).collect();
    let kinds =
        roots.into_iter().filter_map(|(g, v, k, name)| Some(((g, v, k), *index.get(&name)?))).collect();
    Types { nodes, kinds, object_meta }
}

fn type_node(name: &str, schema: &Value, index: &HashMap<String, u32>) -> Node {
    let short = name.strip_prefix(PREFIX).unwrap_or(name);
    let mut node = inline_node(schema, index);
    match name {
        QUANTITY => node.ty = Ty::Quantity,
        INT_OR_STRING => node.ty = Ty::IntOrString,
        _ => {}
    }
    // Types without a declared shape (RawExtension, JSON, FieldsV1) hold any value.
    if node.ty == Ty::Object && node.properties.is_empty() && node.additional.is_none() {
        node.preserve = true;
    }
    for (field, sub) in &mut node.properties {
        if let Some(fact) = FACTS.get(&(short, field.as_str())) {
            apply_fact(sub, fact);
        }
    }
    if let Some(fact) = FACTS.get(&(short, "")) {
        node.atomic_map = fact.atomic_map.unwrap_or_default();
    }
    // Part of a merge key, and optional: server-side apply needs to know the default before defaulting has run.
    if matches!(short, "api.core.v1.ContainerPort" | "api.core.v1.ServicePort")
        && let Some(Sub { target: crate::node::Target::Own(protocol), .. }) =
            node.properties.get_mut("protocol")
    {
        protocol.default = Some("TCP".into());
    }
    node.defaults = defaults::rule(short);
    node.type_name = Some(short.into());
    node
}

fn apply_fact(sub: &mut Sub, fact: &Fact) {
    sub.patch = Patch {
        merge: fact.merge,
        key: fact.merge_key.map(str::to_owned),
        retain_keys: fact.retain_keys,
        replace: fact.replace,
    };
    sub.map_type = fact.atomic_map;
    if let crate::node::Target::Own(node) = &mut sub.target {
        if fact.set {
            node.list = ListType::Set;
        } else if !fact.map_keys.is_empty() {
            node.list = ListType::Map(fact.map_keys.iter().map(|k| (*k).to_owned()).collect());
        }
    }
}

fn sub(schema: &Value, index: &HashMap<String, u32>) -> Sub {
    let reference = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next());
    match reference.and_then(|name| index.get(name)) {
        Some(i) => Sub::builtin(*i),
        None => Sub::own(inline_node(schema, index)),
    }
}

fn inline_node(schema: &Value, index: &HashMap<String, u32>) -> Node {
    let mut node = Node { ty: parse::ty(schema), checks: parse::checks(schema), ..Node::default() };
    node.wide = schema.get("format").and_then(Value::as_str) == Some("int64");
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        node.properties = properties.iter().map(|(k, v)| (k.clone(), sub(v, index))).collect();
    }
    if let Some(items) = schema.get("items") {
        node.items = Some(Box::new(sub(items, index)));
    }
    match schema.get("additionalProperties") {
        Some(Value::Bool(true)) => node.preserve = true,
        Some(v @ Value::Object(_)) => node.additional = Some(Box::new(sub(v, index))),
        _ => {}
    }
    if let Some(required) = schema.get("required").and_then(Value::as_array) {
        node.required = required.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        // k8s-openapi marks `metadata` required because its Rust field is; Kubernetes does not.
        node.required.retain(|r| r != "metadata");
    }
    node
}

/// Complete schemas of the named types and of everything that they refer to, with descriptions and `x-kubernetes-*` extensions,
/// as they stand under `components/schemas` of an OpenAPI v3 document.
pub(crate) fn definitions(names: &BTreeSet<String>) -> Map<String, Value> {
    let (_, mut all) = kinds::generate();
    let mut wanted: Vec<String> = names.iter().cloned().collect();
    let mut out = Map::new();
    while let Some(name) = wanted.pop() {
        if out.contains_key(&name) {
            continue;
        }
        let Some(mut schema) = all.remove(&name) else { continue };
        publish(&name, &mut schema, &mut wanted);
        out.insert(name, schema);
    }
    out
}

/// Turns one generated schema into the form that Kubernetes publishes.
fn publish(name: &str, schema: &mut Value, wanted: &mut Vec<String>) {
    let short = name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    match name {
        QUANTITY => {
            *schema = json!({"description": schema["description"], "oneOf": [{"type": "string"}, {"type": "number"}]});
        }
        INT_OR_STRING => {
            *schema = json!({"description": schema["description"], "format": "int-or-string",
                "oneOf": [{"type": "integer"}, {"type": "string"}]});
        }
        _ => {}
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (field, property) in properties {
            if let Some(fact) = FACTS.get(&(short.as_str(), field.as_str())) {
                annotate(property, fact);
            }
        }
    }
    if let Some(fact) = FACTS.get(&(short.as_str(), "")) {
        annotate(schema, fact);
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|r| r != "metadata");
        if required.is_empty()
            && let Some(object) = schema.as_object_mut()
        {
            object.remove("required");
        }
    }
    relink(schema, wanted);
}

fn annotate(schema: &mut Value, fact: &Fact) {
    let Some(schema) = schema.as_object_mut() else { return };
    if fact.set {
        schema.insert("x-kubernetes-list-type".into(), "set".into());
    } else if !fact.map_keys.is_empty() {
        schema.insert("x-kubernetes-list-type".into(), "map".into());
        schema.insert("x-kubernetes-list-map-keys".into(), json!(fact.map_keys));
    }
    if let Some(atomic) = fact.atomic_map {
        schema.insert("x-kubernetes-map-type".into(), if atomic { "atomic" } else { "granular" }.into());
    }
    if let Some(key) = fact.merge_key {
        schema.insert("x-kubernetes-patch-merge-key".into(), key.into());
    }
    let strategy = match (fact.merge, fact.retain_keys, fact.replace) {
        (true, true, _) => "merge,retainKeys",
        (true, false, _) => "merge",
        (false, true, _) => "retainKeys",
        (false, false, true) => "replace",
        _ => return,
    };
    schema.insert("x-kubernetes-patch-strategy".into(), strategy.into());
}

/// Points references at `components/schemas`, in the `allOf` form that leaves room for the description, and notes their targets.
fn relink(schema: &mut Value, wanted: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref")
                && let Some(name) = reference.rsplit('/').next()
            {
                let target = json!({"$ref": format!("{DEFINITIONS}{name}")});
                wanted.push(name.to_owned());
                map.remove("$ref");
                if map.is_empty() {
                    *schema = target;
                } else {
                    map.insert("allOf".into(), json!([target]));
                }
                return;
            }
            for value in map.values_mut() {
                relink(value, wanted);
            }
        }
        Value::Array(items) => {
            for item in items {
                relink(item, wanted);
            }
        }
        _ => {}
    }
}
