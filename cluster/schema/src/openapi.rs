//! OpenAPI v3 documents, one for each group and version, with what `kubectl explain`, `apply`, `diff` and `--validate` look at.
//!
//! kubectl finds the schema of a resource by its path and `x-kubernetes-group-version-kind`; it takes strategic merge patch for
//! possible where a PATCH lists that media type, and server-side field validation where one has the `fieldValidation` parameter.

mod crd;
mod paths;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{Schema, builtin};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

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
    /// Kubernetes' own, rather than a CRD's: strategic merge patch is offered.
    pub builtin: bool,
}

impl ResourceInfo {
    fn gvk(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }

    /// Name of the schema under `components/schemas`: Kubernetes' own, or the group reversed with version and kind.
    fn schema_name(&self) -> String {
        self.schema.type_name().unwrap_or_else(|| {
            let mut parts: Vec<&str> = self.group.split('.').rev().filter(|p| !p.is_empty()).collect();
            parts.extend([self.version.as_str(), self.kind.as_str()]);
            parts.join(".")
        })
    }
}

/// The document for `/openapi/v3/apis/GROUP/VERSION` (`/openapi/v3/api/VERSION` for the core group, whose name is empty).
///
/// Making one costs milliseconds: built-in schemas are generated anew each time, so that nobody pays for descriptions in memory.
pub fn v3_group(group: &str, version: &str, resources: &[ResourceInfo]) -> Value {
    let mut names: BTreeSet<String> =
        ["DeleteOptions", "Status", "ListMeta", "ObjectMeta"].iter().map(|n| format!("{META}.{n}")).collect();
    names.extend(resources.iter().filter_map(|r| r.schema.type_name()));
    for (_, name) in
        resources.iter().flat_map(|r| r.subresources.iter()).filter_map(|s| paths::subresource_kind(s))
    {
        names.insert(name.to_owned());
    }
    let mut schemas = builtin::definitions(&names);
    schemas.insert(
        format!("{META}.Patch"),
        json!({"type": "object", "description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body."}),
    );
    let mut paths = Map::new();
    for resource in resources {
        let name = resource.schema_name();
        if resource.schema.type_name().is_none() {
            schemas.insert(name.clone(), crd::published(resource));
        }
        if let Some(Value::Object(schema)) = schemas.get_mut(&name) {
            schema.insert("x-kubernetes-group-version-kind".into(), json!([resource.gvk()]));
        }
        schemas.insert(format!("{name}List"), list(resource, &name));
        paths::add(&mut paths, resource, &name);
    }
    // The kinds that are shared by groups carry the name under which this group knows them.
    if let Some(Value::Object(options)) = schemas.get_mut(&format!("{META}.DeleteOptions")) {
        options.insert(
            "x-kubernetes-group-version-kind".into(),
            json!([{"group": group, "version": version, "kind": "DeleteOptions"}]),
        );
    }
    if let Some(Value::Object(status)) = schemas.get_mut(&format!("{META}.Status")) {
        status.insert(
            "x-kubernetes-group-version-kind".into(),
            json!([{"group": "", "version": "v1", "kind": "Status"}]),
        );
    }
    if let Some(Value::Object(scale)) = schemas.get_mut("io.k8s.api.autoscaling.v1.Scale") {
        scale.insert(
            "x-kubernetes-group-version-kind".into(),
            json!([{"group": "autoscaling", "version": "v1", "kind": "Scale"}]),
        );
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"}},
        },
    })
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn list(resource: &ResourceInfo, name: &str) -> Value {
    let kind = format!("{}List", resource.kind);
    json!({
        "type": "object",
        "description": format!("{kind} is a list of {}", resource.kind),
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": API_VERSION},
            "kind": {"type": "string", "description": KIND},
            "metadata": {"allOf": [reference(&format!("{META}.ListMeta"))], "default": {},
                "description": "Standard list metadata."},
            "items": {"type": "array", "description": format!("List of {}.", resource.plural),
                "items": {"allOf": [reference(name)], "default": {}}},
        },
        "x-kubernetes-group-version-kind": [{"group": resource.group, "version": resource.version, "kind": kind}],
    })
}

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert \
                           recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
                           https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the \
                    endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
                    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

#[cfg(test)]
mod tests;
