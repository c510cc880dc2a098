//! Discovery: the aggregated documents (v2 and v2beta1) and the older lists.

use base64::Engine;
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::accept::{Accept, media_types};
use crate::error::ApiError;
use crate::registry::{Resource, Snapshot, api_version};
use crate::reply::{self, Reply};

/// The version of aggregated discovery that a client prefers over the older lists.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    for media in media_types(headers) {
        let compact: String = media.chars().filter(|c| !c.is_whitespace()).collect();
        if compact.contains("g=apidiscovery.k8s.io") && compact.contains("as=APIGroupDiscoveryList") {
            if compact.contains("v=v2beta1") {
                return Some("v2beta1");
            }
            if compact.contains("v=v2") {
                return Some("v2");
            }
        } else if compact.starts_with("application/json") || compact.starts_with("*/*") {
            return None;
        }
    }
    None
}

/// Answers `/api`, `/apis` and what is right below.
pub(crate) fn handle(
    snapshot: &Snapshot,
    parts: &[&str],
    headers: &HeaderMap,
    address: &str,
) -> Result<Reply, ApiError> {
    let is_root = parts.len() == 1;
    if is_root && let Some(version) = aggregated(headers) {
        let core = parts[0] == "api";
        return Ok(aggregate(snapshot, core, version, headers));
    }
    let document = match parts {
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
        }),
        ["apis"] => {
            let groups: Vec<Value> = snapshot
                .groups
                .keys()
                .filter(|group| !group.is_empty())
                .map(|name| group(snapshot, name))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] if snapshot.groups.contains_key(*name) => {
            let mut group = group(snapshot, name);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }
        ["api", version] => resource_list(snapshot, "", version)?,
        ["apis", group, version] => resource_list(snapshot, group, version)?,
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(reply::value(StatusCode::OK, Accept::JSON, &document))
}

/// All paths, for `/`.
pub(crate) fn paths(snapshot: &Snapshot) -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in snapshot.groups.iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|(version, _)| format!("/apis/{group}/{version}")));
    }
    paths.extend(["/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
    paths
}

fn group(snapshot: &Snapshot, name: &str) -> Value {
    let versions: Vec<Value> = snapshot.groups[name]
        .iter()
        .map(|(version, _)| json!({"groupVersion": api_version(name, version), "version": version}))
        .collect();
    json!({"name": name, "preferredVersion": versions[0], "versions": versions})
}

fn resource_list(snapshot: &Snapshot, group: &str, version: &str) -> Result<Value, ApiError> {
    let versions = snapshot.groups.get(group).ok_or_else(ApiError::no_such_path)?;
    let (_, resources) = versions.iter().find(|(v, _)| v == version).ok_or_else(ApiError::no_such_path)?;
    let mut list = Vec::new();
    for resource in resources {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs(),
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        if !resource.virtual_only && !resource.computed {
            entry["storageVersionHash"] = storage_hash(resource).into();
        }
        list.push(entry);
        for sub in subresources(resource) {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (resource.group.as_str(), resource.version.as_str()) {
                entry["group"] = sub.group.into();
                entry["version"] = sub.version.into();
            }
            list.push(entry);
        }
    }
    let mut list =
        json!({"kind": "APIResourceList", "groupVersion": api_version(group, version), "resources": list});
    // The oldest of the lists has no version, as upstream.
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    Ok(list)
}

/// Tells clients when the form in which a type is stored changes.
fn storage_hash(resource: &Resource) -> String {
    let (group, version) =
        resource.storage_version.split_once('/').unwrap_or(("", &resource.storage_version));
    // Upstream never told its hash that definitions are of v1 now.
    let version = if resource.kind == "CustomResourceDefinition" { "v1beta1" } else { version };
    let digest = Sha256::digest(format!("{group}/{version}/{}", resource.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

struct SubEntry<'a> {
    name: &'a str,
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    verbs: &'a [&'a str],
}

fn subresources(resource: &Resource) -> Vec<SubEntry<'_>> {
    let mut list: Vec<SubEntry<'_>> = resource
        .subresources
        .iter()
        .map(|sub| SubEntry {
            name: sub.name,
            group: sub.gvk.0,
            version: sub.gvk.1,
            kind: sub.gvk.2,
            verbs: sub.verbs,
        })
        .collect();
    const VERBS: &[&str] = &["get", "patch", "update"];
    if resource.status {
        let (group, version, kind) = (&resource.group, &resource.version, &resource.kind);
        list.push(SubEntry { name: "status", group, version, kind, verbs: VERBS });
    }
    if resource.scale.is_some() {
        list.push(SubEntry {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: VERBS,
        });
    }
    if resource.builtin {
        list.sort_by_key(|sub| sub.name);
    }
    list
}

fn aggregate(snapshot: &Snapshot, core: bool, version: &str, headers: &HeaderMap) -> Reply {
    let items: Vec<Value> = snapshot
        .groups
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|(version, resources)| {
                    let resources: Vec<Value> =
                        resources.iter().map(|resource| aggregate_resource(resource)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let document = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let body = document.to_string();
    let etag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
    let unchanged = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()) == Some(etag.as_str());
    let mut reply = if unchanged {
        reply::bytes(StatusCode::NOT_MODIFIED, "application/json", "")
    } else {
        reply::bytes(StatusCode::OK, "application/json", body)
    };
    let media = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let (Ok(media), Ok(etag)) = (HeaderValue::from_str(&media), HeaderValue::from_str(&etag)) {
        reply.headers_mut().insert(CONTENT_TYPE, media);
        reply.headers_mut().insert(ETAG, etag);
    }
    reply
}

fn aggregate_resource(resource: &Resource) -> Value {
    // Within the core group upstream leaves the version out.
    let core = resource.group.is_empty();
    let kind = |group: &str, version: &str, kind: &str| {
        let version = if core && group.is_empty() { "" } else { version };
        json!({"group": group, "version": version, "kind": kind})
    };
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs(),
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    let subs: Vec<Value> = subresources(resource)
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": kind(sub.group, sub.version, sub.kind), "verbs": sub.verbs}))
        .collect();
    if !subs.is_empty() {
        entry["subresources"] = subs.into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn clients_choose_their_discovery() {
        let mut headers = HeaderMap::new();
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        headers.insert("accept", accept.parse().unwrap());
        assert_eq!(aggregated(&headers), Some("v2"));
        headers.insert("accept", "application/json".parse().unwrap());
        assert_eq!(aggregated(&headers), None);
    }

    #[test]
    fn lists_name_subresources_and_short_names() {
        let snapshot = Registry::new().snapshot();
        let list = resource_list(&snapshot, "apps", "v1").unwrap();
        let resources = list["resources"].as_array().unwrap();
        let find = |name: &str| resources.iter().find(|r| r["name"] == name).unwrap();
        assert_eq!(find("deployments")["shortNames"], json!(["deploy"]));
        assert_eq!(find("deployments/scale")["kind"], "Scale");
        assert_eq!(find("deployments/scale")["group"], "autoscaling");
        assert!(resource_list(&snapshot, "apps", "v9").is_err());
    }
}
