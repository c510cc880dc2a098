//! OpenAPI v3 documents.

use serde_json::Value;

use crate::Schema;

/// One resource of a group version, as discovery knows it.
#[derive(Clone, Debug)]
pub struct ResourceInfo {
    /// API group; empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Resource name in URLs.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// `status`, `scale`, ...
    pub subresources: Vec<String>,
    /// Its schema.
    pub schema: Schema,
    /// Kubernetes' own, rather than a CRD's.
    pub builtin: bool,
}

/// The document for `/openapi/v3/apis/GROUP/VERSION`.
pub fn v3_group(_group: &str, _version: &str, _resources: &[ResourceInfo]) -> Value {
    Value::Null
}
