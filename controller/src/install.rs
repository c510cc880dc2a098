//! Puts the platform's own objects on a cluster.

use ebb_api::manifests::{Manifests, Options, manifests};
use futures::future::try_join_all;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;

use crate::error::Error;

const FIELD_MANAGER: &str = "ebb-install";

/// Applies namespace, CRDs, accounts and Services, and makes the ConfigMaps that are not there yet; of those that are there only
/// the keys that the options set are written. Returns when every CRD is served.
///
/// # Errors
/// The first write that is refused.
pub async fn install(client: &Client, options: &Options) -> Result<(), Error> {
    let Manifests { namespace, crds, config_maps, service_accounts, services } = manifests(options);
    apply(&Api::all(client.clone()), &namespace).await?;
    let of_crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let within = &options.namespace;
    tokio::try_join!(
        try_join_all(crds.iter().map(|crd| apply(&of_crds, crd))),
        try_join_all(
            service_accounts
                .iter()
                .map(|a| async { apply(&Api::namespaced(client.clone(), within), a).await })
        ),
        try_join_all(
            services.iter().map(|s| async { apply(&Api::namespaced(client.clone(), within), s).await })
        ),
        try_join_all(config_maps.iter().map(|map| async {
            let api: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(client.clone(), within);
            match api.create(&PostParams::default(), map).await {
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    let empty = map.data.as_ref().is_none_or(std::collections::BTreeMap::is_empty);
                    if empty { Ok(()) } else { apply(&api, map).await }
                }
                Err(source) => Err(failed(map, source)),
                Ok(_) => Ok(()),
            }
        })),
    )?;
    try_join_all(crds.iter().map(|crd| established(&of_crds, crd.name_any()))).await?;
    Ok(())
}

fn failed<K: Resource<DynamicType = ()>>(object: &K, source: kube::Error) -> Error {
    let object = format!("{} {}", K::kind(&()), object.name_any());
    Error::Write { verb: "apply", object, source: Box::new(source) }
}

async fn apply<K>(api: &Api<K>, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&object.name_any(), &params, &Patch::Apply(object))
        .await
        .map(drop)
        .map_err(|e| failed(object, e))
}

async fn established(api: &Api<CustomResourceDefinition>, name: String) -> Result<(), Error> {
    loop {
        let found =
            api.get(&name).await.map_err(|source| Error::Read { what: "a CRD", source: Box::new(source) })?;
        let conditions = found.status.and_then(|s| s.conditions).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
