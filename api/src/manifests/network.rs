//! Services, and who may reach which port.

use serde_json::{Value, json};

use super::Options;

/// The Services through which components are found.
pub(super) fn services(options: &Options) -> Vec<Value> {
    let port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"});
    let table = [
        ("controller", "controller", vec![port("webhook", 443, 8443), port("ca", 8114, 8114)]),
        ("autoscaler", "autoscaler", vec![port("https", 8112, 8112)]),
        (
            "activator",
            "activator",
            vec![port("http", 8012, 8012), port("http2", 8013, 8013), port("https", 8112, 8112)],
        ),
        ("gateway", "gateway", vec![port("http", 80, 8080), port("https", 443, 8443)]),
        ("gateway-internal", "gateway", vec![port("http", 80, 8082)]),
    ];
    table
        .into_iter()
        .map(|(name, component, ports)| {
            let mut spec =
                json!({"type": if name == "gateway" { "LoadBalancer" } else { "ClusterIP" }, "ports": ports});
            if name == "activator" {
                // Headless: queue-proxies announce themselves to every activator.
                spec["clusterIP"] = json!("None");
            }
            if !options.embedded() {
                spec["selector"] = selector(component);
            }
            json!({"apiVersion": "v1", "kind": "Service", "metadata": options.meta(name, Some(component)), "spec": spec})
        })
        .collect()
}

/// The labels of a component's pods.
pub(super) fn selector(component: &str) -> Value {
    json!({"app.kubernetes.io/name": "ebb", "app.kubernetes.io/component": component})
}

/// Nothing reaches the components but what they are there for. What they reach themselves (the API server, pods in every namespace) is not
/// limited: where an API server is differs from cluster to cluster.
pub(super) fn policies(options: &Options) -> Vec<Value> {
    let ports =
        |all: &[u16]| -> Value { all.iter().map(|p| json!({"port": p, "protocol": "TCP"})).collect() };
    let pods = json!([{"namespaceSelector": {}}]);
    // Each other too: a replica that does not lead passes reports on.
    let reporters =
        ["activator", "autoscaler"].map(|name| json!({"podSelector": {"matchLabels": selector(name)}}));
    let metrics = json!({"from": pods, "ports": ports(&[9090])});
    let table = [
        // The API server, which calls the webhooks, has an address that no selector can name.
        (
            "controller",
            vec![json!({"ports": ports(&[8443])}), json!({"from": pods, "ports": ports(&[8114])})],
        ),
        ("autoscaler", vec![json!({"from": reporters, "ports": ports(&[8112])})]),
        ("activator", vec![json!({"from": pods, "ports": ports(&[8012, 8013, 8112])})]),
        (
            "gateway",
            vec![json!({"ports": ports(&[8080, 8443])}), json!({"from": pods, "ports": ports(&[8082])})],
        ),
    ];
    table
        .into_iter()
        .map(|(component, mut ingress)| {
            ingress.push(metrics.clone());
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": options.meta(component, Some(component)),
                "spec": {
                    "podSelector": {"matchLabels": selector(component)},
                    "policyTypes": ["Ingress"],
                    "ingress": ingress,
                }
            })
        })
        .collect()
}
