//! Where the Services of the platform lead when its components are no pods but tasks of this process.

use std::net::Ipv4Addr;

use anyhow::Context;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::Ports;

const MANAGER: &str = "ebb-up";

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
        let ports: Vec<_> = lead
            .ports
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port, "protocol": "TCP"}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-local", lead.service),
                "labels": {"kubernetes.io/service-name": lead.service},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [lead.address.to_string()], "conditions": {"ready": true, "serving": true}}],
            "ports": ports,
        });
        let slices = slices.clone();
        async move {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default().to_string();
            let params = PatchParams::apply(MANAGER).force();
            slices
                .patch(&name, &params, &Patch::Apply(&slice))
                .await
                .with_context(|| format!("applying EndpointSlice {name}"))
        }
    };
    try_join_all(leads.iter().map(one)).await?;
    Ok(())
}

/// The gateway's Service shows where it listens for users: on loopback, at its real ports.
pub(super) async fn publish_gateway(client: &Client, namespace: &str, at: Ports) -> anyhow::Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let spec = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "gateway"},
        "spec": {"type": "LoadBalancer", "ports": [
            {"name": "http", "port": 80, "protocol": "TCP", "nodePort": at.gateway},
            {"name": "https", "port": 443, "protocol": "TCP", "nodePort": at.gateway_tls},
        ]},
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
