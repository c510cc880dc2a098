//! Writes what must be there before a component starts: CRDs, namespace, ConfigMaps, accounts, Services and where those lead.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Context;
use ebb_api::manifests::{Manifests, Options, manifests};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

const MANAGER: &str = "ebb";

/// Applies everything; what is there already and equal costs nothing.
pub(super) async fn apply(client: &Client, options: &Options) -> anyhow::Result<()> {
    let Manifests { namespace, crds, config_maps, service_accounts, services } = manifests(options);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    patch(&namespaces, &namespace).await?;
    let all: Api<CustomResourceDefinition> = Api::all(client.clone());
    let (_, (), (), ()) = tokio::try_join!(
        try_join_all(crds.iter().map(|crd| patch(&all, crd))),
        every(client, &options.namespace, &config_maps),
        every(client, &options.namespace, &service_accounts),
        every(client, &options.namespace, &services),
    )?;
    let _: (&[ConfigMap], &[ServiceAccount], &[Service]) = (&config_maps, &service_accounts, &services);
    Ok(())
}

async fn every<K>(client: &Client, namespace: &str, objects: &[K]) -> anyhow::Result<()>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    try_join_all(objects.iter().map(|object| patch(&api, object))).await?;
    Ok(())
}

async fn patch<K>(api: &Api<K>, object: &K) -> anyhow::Result<()>
where
    K: Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
    K::DynamicType: Default,
{
    let name = object.name_any();
    let mut value = serde_json::to_value(object)?;
    // k8s-openapi leaves the type to the request; server-side apply wants it in the body.
    value["apiVersion"] = K::api_version(&K::DynamicType::default()).into();
    value["kind"] = K::kind(&K::DynamicType::default()).into();
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&value))
        .await
        .with_context(|| format!("applying {} {name}", K::kind(&K::DynamicType::default())))?;
    Ok(())
}

/// Where a Service of the platform leads, since its component is no pod here: name of the port and number.
pub(super) struct Lead {
    pub(super) service: &'static str,
    pub(super) address: Ipv4Addr,
    pub(super) ports: &'static [(&'static str, u16)],
}

/// Writes the EndpointSlices of the components in this process.
pub(super) async fn lead(client: &Client, namespace: &str, leads: &[Lead]) -> anyhow::Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let one = |lead: &Lead| {
        let ports: Vec<_> =
            lead.ports.iter().map(|(name, port)| json!({"name": name, "port": port, "protocol": "TCP"})).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-local", lead.service),
                "labels": BTreeMap::from([("kubernetes.io/service-name", lead.service)]),
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [lead.address.to_string()], "conditions": {"ready": true, "serving": true}}],
            "ports": ports,
        });
        let slices = slices.clone();
        async move {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default().to_string();
            let params = PatchParams::apply(MANAGER).force();
            slices.patch(&name, &params, &Patch::Apply(&slice)).await.with_context(|| format!("applying EndpointSlice {name}"))
        }
    };
    try_join_all(leads.iter().map(one)).await?;
    Ok(())
}

/// The gateway's Service shows where it listens for users: on loopback, at its real port.
pub(super) async fn publish_gateway(client: &Client, namespace: &str, port: u16) -> anyhow::Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let spec = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "gateway"},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": port}]},
    });
    let params = PatchParams::apply("ebb-gateway-port").force();
    services.patch("gateway", &params, &Patch::Apply(&spec)).await.context("setting the gateway's port")?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}});
    services
        .patch_status("gateway", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .context("setting the gateway's address")?;
    Ok(())
}
