//! `/openapi/v3`: what `kubectl explain`, `apply` and `--validate` read; and a `/openapi/v2` that describes nothing.

use cluster_schema::openapi::{ResourceInfo, v3_group};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::accept::Accept;
use crate::error::ApiError;
use crate::registry::{Resource, Snapshot};
use crate::reply::{self, Reply};

/// Answers the root and the document of each group and version.
pub(crate) fn handle(snapshot: &Snapshot, parts: &[&str], _headers: &HeaderMap) -> Result<Reply, ApiError> {
    match parts {
        [] => Ok(reply::value(StatusCode::OK, Accept::JSON, &root(snapshot))),
        ["api", version] => document(snapshot, "", version),
        ["apis", group, version] => document(snapshot, group, version),
        _ => Err(ApiError::no_such_path()),
    }
}

/// The older document, without definitions. kubectl asks for it where a `List` is applied, to check the list's items before it sends them, and
/// leaves that to the server for types that are not described; without the document it would refuse the list.
pub(crate) fn v2(headers: &HeaderMap) -> Reply {
    /// `Document { swagger: "2.0", info: Info { title: "k", version: "1" } }` of gnostic's openapi.v2.
    const PROTOBUF: &[u8] = b"\x0a\x032.0\x12\x06\x0a\x01k\x12\x011";
    const MEDIA: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let wanted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if wanted.contains("protobuf") {
        return reply::bytes(StatusCode::OK, MEDIA, PROTOBUF);
    }
    let document = json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "unversioned"}, "paths": {}, "definitions": {}});
    reply::value(StatusCode::OK, Accept::JSON, &document)
}

/// Changes whenever the document does, without making the document.
fn fingerprint(resources: &[std::sync::Arc<Resource>]) -> String {
    let mut hash = Sha256::new();
    for resource in resources {
        hash.update(resource.api_version());
        hash.update(&resource.plural);
        for sub in resource.subresource_names() {
            hash.update(sub);
        }
        if !resource.builtin {
            hash.update(resource.schema().raw().to_string());
        }
    }
    hex::encode_upper(&hash.finalize()[..16])
}

fn root(snapshot: &Snapshot) -> Value {
    let mut paths = Map::new();
    for (group, versions) in &snapshot.groups {
        for (version, resources) in versions {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let url = format!("/openapi/v3/{path}?hash={}", fingerprint(resources));
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

fn document(snapshot: &Snapshot, group: &str, version: &str) -> Result<Reply, ApiError> {
    let versions = snapshot.groups.get(group).ok_or_else(ApiError::no_such_path)?;
    let (_, resources) = versions.iter().find(|(v, _)| v == version).ok_or_else(ApiError::no_such_path)?;
    let infos: Vec<ResourceInfo> = resources
        .iter()
        .map(|resource| ResourceInfo {
            group: resource.group.clone(),
            version: resource.version.clone(),
            kind: resource.kind.clone(),
            plural: resource.plural.clone(),
            namespaced: resource.namespaced,
            subresources: resource.subresource_names(),
            schema: resource.schema().clone(),
            builtin: resource.builtin && !resource.computed,
        })
        .collect();
    Ok(reply::value(StatusCode::OK, Accept::JSON, &v3_group(group, version, &infos)))
}
