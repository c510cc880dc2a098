//! Kubernetes' object machinery as pure functions over JSON: schemas, validation, defaulting, patches, server-side apply and
//! OpenAPI documents.
//!
//! A [`Schema`] is either one of Kubernetes' own ([`Schema::builtin`]) or a CRD's ([`Schema::from_crd`]); everything else takes
//! one and does not care which. Nothing here does IO, reads a clock, or knows about storage.
//!
//! The order in which an API server uses it on a write: `unknown_fields` (strict and warn), `prune`, `default`, admission,
//! `default` again, `validate`, [`apply::track_update`].

pub mod apply;
mod builtin;
pub mod decode;
mod defaults;
mod error;
pub mod expression;
mod fields;
mod node;
pub mod openapi;
mod parse;
pub mod patch;
pub mod quantity;
mod validate;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::RwLock;
use serde_json::Value;

pub use error::{FieldError, Reason, go_struct};

use node::{Sub, Target};

/// Whose schema it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Kubernetes' own: strategic merge patch is possible, defaults are built in.
    Builtin,
    /// From a CustomResourceDefinition.
    Crd,
}

/// The schema of one kind. Cloning is a reference count.
#[derive(Clone, Debug)]
pub struct Schema(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Origin,
    root: Sub,
    raw: OnceLock<Value>,
}

/// Schemas of built-in kinds that were asked for, so that all users share them.
static BUILTIN: LazyLock<RwLock<HashMap<u32, Schema>>> = LazyLock::new(RwLock::default);

impl Schema {
    /// The schema of one of Kubernetes' own kinds; `group` is empty for the core group.
    pub fn builtin(group: &str, version: &str, kind: &str) -> Option<Schema> {
        let index = builtin::kind(group, version, kind)?;
        if let Some(schema) = BUILTIN.read().get(&index) {
            return Some(schema.clone());
        }
        let inner = Inner { origin: Origin::Builtin, root: Sub::builtin(index), raw: OnceLock::new() };
        Some(BUILTIN.write().entry(index).or_insert_with(|| Schema(Arc::new(inner))).clone())
    }

    /// Parses a CRD's `openAPIV3Schema` and compiles its patterns and CEL rules.
    ///
    /// # Errors
    /// Everything that makes the schema unusable: not structural, a pattern or rule that does not compile, a default that its
    /// own schema refuses. Paths start at `openAPIV3Schema`.
    pub fn from_crd(open_api_v3_schema: &Value) -> Result<Schema, Vec<FieldError>> {
        const ROOT: &str = "openAPIV3Schema";
        let root = parse::crd(open_api_v3_schema, ROOT)?;
        let mut errors = Vec::new();
        parse::check_defaults(&root, ROOT, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let raw = OnceLock::from(open_api_v3_schema.clone());
        Ok(Schema(Arc::new(Inner { origin: Origin::Crd, root, raw })))
    }

    /// A schema for objects about which nothing is known: everything is kept and allowed.
    pub fn untyped() -> Schema {
        static UNTYPED: LazyLock<Schema> = LazyLock::new(|| {
            let mut node = node::Node { ty: node::Ty::Object, preserve: true, ..node::Node::default() };
            node::embed(&mut node);
            let raw = OnceLock::from(
                serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            );
            Schema(Arc::new(Inner { origin: Origin::Crd, root: Sub::own(node), raw }))
        });
        UNTYPED.clone()
    }

    /// Whose schema it is.
    pub fn origin(&self) -> Origin {
        self.0.origin
    }

    /// Paths of fields that the schema does not declare, as in `unknown field "spec.foo"`. Duplicate keys are the decoder's to find.
    pub fn unknown_fields(&self, obj: &Value) -> Vec<String> {
        let mut out = Vec::new();
        fields::unknown(&self.0.root, obj, &mut String::new(), &mut out);
        out
    }

    /// Removes what [`Schema::unknown_fields`] names.
    pub fn prune(&self, obj: &mut Value) {
        fields::prune(&self.0.root, obj);
    }

    /// The first value whose type is not that of its field: only of built-in kinds, whose decoding knows types.
    pub fn mismatch(&self, obj: &Value) -> Option<decode::Mismatch> {
        if self.0.origin == Origin::Builtin { decode::mismatch(&self.0.root, obj) } else { None }
    }

    /// Removes empty lists and maps of built-in kinds, as Kubernetes' encoding does. Custom resources keep theirs.
    pub fn drop_empty(&self, obj: &mut Value) {
        if self.0.origin == Origin::Builtin {
            decode::drop_empty(&self.0.root, obj);
        }
    }

    /// Fills in what was left out, and brings quantities into canonical form. Doing it twice changes nothing.
    pub fn default(&self, obj: &mut Value) {
        match &self.0.root.target {
            Target::Type(_) => builtin::defaults::object(&self.0.root, obj),
            Target::Own(root) => {
                if let Some(metadata) = obj.get_mut("metadata") {
                    defaults::drop_nulls(metadata);
                }
                defaults::crd(root, obj);
            }
        }
    }

    /// Checks types, required fields, values and (CRDs) CEL rules. `old` is the object before the write: it is what transition
    /// rules see, and what did not change is not judged again.
    pub fn validate(&self, obj: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let crd = self.0.origin == Origin::Crd;
        let options = validate::Options { unique_lists: crd, ratchet: old.is_some(), nulls: !crd };
        let mut errors = validate::validate(&self.0.root, obj, old, &options);
        if !crd && errors.iter().all(|error| error.reason == Reason::Required) {
            // What is missing is to Kubernetes' own checks what is empty, and they say more of it than that it is not there.
            let mut found = Vec::new();
            builtin::checks::object(&self.0.root, obj, old, &mut found);
            let below = |outer: &str, inner: &str| {
                inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            errors.retain(|error| !found.iter().any(|other| below(&error.field, &other.field)));
            errors.append(&mut found);
        }
        errors
    }

    /// The OpenAPI v3 schema with `x-kubernetes-*` extensions: a CRD's as it was given, a built-in one with references to
    /// `#/components/schemas/...`. Built-in ones are generated on the first call and kept.
    pub fn raw(&self) -> &Value {
        self.0.raw.get_or_init(|| match self.type_name() {
            Some(name) => {
                let mut all = builtin::definitions(&BTreeSet::from([name.clone()]));
                all.remove(&name).unwrap_or_default()
            }
            None => Value::Null,
        })
    }

    /// Full name of a built-in type (`io.k8s.api.apps.v1.Deployment`); none for CRDs.
    pub fn type_name(&self) -> Option<String> {
        match self.0.root.target {
            Target::Type(index) => Some(builtin::full_name(index)),
            Target::Own(_) => None,
        }
    }

    pub(crate) fn root(&self) -> &Sub {
        &self.0.root
    }
}

#[cfg(test)]
mod tests;
