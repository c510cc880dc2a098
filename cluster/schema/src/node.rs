//! The parsed form of a schema: what every walk over an object looks at.
//!
//! A [`Node`] is one type. Built-in types live in one static table and refer to each other by index, so that recursive types
//! cost nothing; the nodes of a CRD own their children.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde_json::Value;

use crate::builtin;
use crate::validate::{Checks, cel::Rules};

/// JSON type of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ty {
    /// Anything: what a schema without a type says.
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    /// `resource.Quantity`: a string or a number, kept in canonical form.
    Quantity,
}

impl Ty {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Ty::Any => "any",
            Ty::Object => "object",
            Ty::Array => "array",
            Ty::String => "string",
            Ty::Integer => "integer",
            Ty::Number => "number",
            Ty::Boolean => "boolean",
            Ty::IntOrString => "integer,string",
            Ty::Quantity => "quantity",
        }
    }
}

/// How the items of a list are identified under server-side apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// How strategic merge patch treats a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Lists: merge instead of replace. With a key the items are objects, without one they are primitives.
    pub(crate) merge: bool,
    pub(crate) key: Option<String>,
    pub(crate) retain_keys: bool,
    /// Maps: replace instead of merge.
    pub(crate) replace: bool,
}

/// One type.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) ty: Ty,
    pub(crate) properties: BTreeMap<String, Sub>,
    pub(crate) additional: Option<Box<Sub>>,
    pub(crate) items: Option<Box<Sub>>,
    pub(crate) required: Vec<String>,
    pub(crate) nullable: bool,
    /// An integer of 64 bits rather than 32.
    pub(crate) wide: bool,
    pub(crate) preserve: bool,
    pub(crate) embedded: bool,
    pub(crate) default: Option<Value>,
    pub(crate) list: ListType,
    pub(crate) atomic_map: bool,
    pub(crate) checks: Option<Box<Checks>>,
    pub(crate) rules: Option<Box<Rules>>,
    /// A node below here has rules of its own, or defaults: walks that look only for those skip the rest.
    pub(crate) has_rules: bool,
    pub(crate) has_defaults: bool,
    /// Defaults of a built-in type.
    pub(crate) defaults: Option<builtin::defaults::Rule>,
    /// Name of a built-in type, without `io.k8s.`.
    pub(crate) type_name: Option<Box<str>>,
}

/// What an object's schema says about one of its keys.
pub(crate) enum Field<'a> {
    /// A declared property.
    Known(&'a Sub),
    /// A key of a map.
    Entry(&'a Sub),
    /// Allowed, and nothing is known about it.
    Untyped,
    /// Not in the schema.
    Unknown,
}

impl<'a> Field<'a> {
    pub(crate) fn sub(&self) -> Option<&'a Sub> {
        match self {
            Field::Known(s) | Field::Entry(s) => Some(s),
            Field::Untyped | Field::Unknown => None,
        }
    }
}

impl Node {
    pub(crate) fn field(&self, key: &str) -> Field<'_> {
        if let Some(sub) = self.properties.get(key) {
            return Field::Known(sub);
        }
        if let Some(sub) = &self.additional {
            return Field::Entry(sub);
        }
        if self.preserve || self.ty == Ty::Any {
            return Field::Untyped;
        }
        Field::Unknown
    }
}

/// Where a node lives.
#[derive(Debug)]
pub(crate) enum Target {
    Own(Box<Node>),
    /// Index into the table of built-in types.
    Type(u32),
}

/// A use of a type: the node and what the place where it is used adds.
#[derive(Debug)]
pub(crate) struct Sub {
    pub(crate) target: Target,
    pub(crate) patch: Patch,
    pub(crate) map_type: Option<bool>,
}

impl Sub {
    pub(crate) fn own(node: Node) -> Sub {
        Sub { target: Target::Own(Box::new(node)), patch: Patch::default(), map_type: None }
    }

    pub(crate) fn builtin(index: u32) -> Sub {
        Sub { target: Target::Type(index), patch: Patch::default(), map_type: None }
    }

    /// Whether a map at this place is one value, owned and replaced as a whole.
    pub(crate) fn atomic_map(&self) -> bool {
        self.map_type.unwrap_or(self.atomic_map)
    }
}

impl Deref for Sub {
    type Target = Node;

    fn deref(&self) -> &Node {
        match &self.target {
            Target::Own(node) => node,
            Target::Type(index) => builtin::node(*index),
        }
    }
}

/// Names of the fields that every object has.
pub(crate) const TYPE_META: [&str; 2] = ["apiVersion", "kind"];

/// Gives `node` the fields of an embedded (or the root) object.
pub(crate) fn embed(node: &mut Node) {
    for name in TYPE_META {
        node.properties
            .entry(name.to_owned())
            .or_insert_with(|| Sub::own(Node { ty: Ty::String, ..Node::default() }));
    }
    node.properties.insert("metadata".to_owned(), Sub::builtin(builtin::object_meta()));
}
