//! Puts the platform's own objects on a cluster.
//!
//! Everything is server-side apply under one field manager: what the platform does not set is the user's and stays, and what an older
//! version set and this one does not goes.

use ebb_api::manifests::{Options, Place, manifests};
use futures::future::try_join_all;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use serde_json::Value;
use std::time::Duration;

use crate::error::Error;

/// Who owns what an installation sets.
pub const FIELD_MANAGER: &str = "ebb-install";

/// Applies all stages, and returns when every CRD is served. What others set against us in fields that we set is set back.
///
/// # Errors
/// The first write that is refused.
pub async fn install(client: &Client, options: &Options) -> Result<(), Error> {
    debug_assert!(matches!(options.place, Place::Embedded { .. }), "ebb install shows its progress");
    let mut stages = manifests(options).into_iter();
    if let Some(namespace) = stages.next() {
        try_join_all(namespace.objects.iter().map(|o| apply(client, o, true))).await?;
    }
    let rest: Vec<Value> = stages.flat_map(|stage| stage.objects).collect();
    try_join_all(rest.iter().map(|o| apply(client, o, true))).await?;
    let crds = rest.iter().filter(|o| o["kind"] == "CustomResourceDefinition");
    try_join_all(crds.map(|crd| established(client, text(&crd["metadata"]["name"])))).await?;
    Ok(())
}

/// Applies one object; without `force`, a field that another manager has set otherwise is a conflict.
///
/// # Errors
/// What the API server said.
pub async fn apply(client: &Client, object: &Value, force: bool) -> Result<DynamicObject, Error> {
    let name = text(&object["metadata"]["name"]);
    let params = PatchParams { force, ..PatchParams::apply(FIELD_MANAGER) };
    let applied = api(client, object).patch(name, &params, &Patch::Apply(object)).await;
    applied.map_err(|source| {
        let object = format!("{} {name}", text(&object["kind"]));
        Error::Write { verb: "apply", object, source: Box::new(source) }
    })
}

/// The API of an object of the manifests.
pub fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let resource = resource(text(&object["apiVersion"]), text(&object["kind"]));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// A kind of the manifests. The rules of English are enough for their plurals.
pub fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Waits until a CRD is served.
///
/// # Errors
/// When it cannot be read.
pub async fn established(client: &Client, name: &str) -> Result<(), Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    loop {
        let found =
            api.get(name).await.map_err(|source| Error::Read { what: "a CRD", source: Box::new(source) })?;
        let conditions = found.status.iter().flat_map(|s| s.conditions.iter().flatten());
        if conditions.into_iter().any(|c| c.type_ == "Established" && c.status == "True") {
            tracing::debug!(crd = %found.name_any(), "established");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals() {
        let options = Options::default();
        let mut kinds: Vec<String> = manifests(&options)
            .iter()
            .flat_map(|stage| &stage.objects)
            .map(|o| resource(text(&o["apiVersion"]), text(&o["kind"])).plural)
            .collect();
        kinds.sort();
        kinds.dedup();
        assert_eq!(
            kinds,
            [
                "clusterrolebindings",
                "clusterroles",
                "configmaps",
                "customresourcedefinitions",
                "deployments",
                "mutatingwebhookconfigurations",
                "namespaces",
                "networkpolicies",
                "poddisruptionbudgets",
                "rolebindings",
                "roles",
                "serviceaccounts",
                "services",
                "validatingwebhookconfigurations",
            ]
        );
    }
}
