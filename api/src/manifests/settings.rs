//! The default ConfigMaps: what this installation sets, and every key with its default and its meaning under `_example`.

use serde_json::{Map, Value, json};

use super::{Options, Place};
use crate::config::example as noted;

/// What a ConfigMap says under `_example`: YAML with every key, its default, and what it means.
#[must_use]
pub fn example(name: &str) -> Option<&'static str> {
    Some(match name {
        "config-autoscaler" => include_str!("settings/config-autoscaler.yaml"),
        "config-certmanager" => include_str!("settings/config-certmanager.yaml"),
        "config-defaults" => include_str!("settings/config-defaults.yaml"),
        "config-deployment" => include_str!("settings/config-deployment.yaml"),
        "config-domain" => include_str!("settings/config-domain.yaml"),
        "config-features" => include_str!("settings/config-features.yaml"),
        "config-gc" => include_str!("settings/config-gc.yaml"),
        "config-leader-election" => include_str!("settings/config-leader-election.yaml"),
        "config-logging" => include_str!("settings/config-logging.yaml"),
        "config-network" => include_str!("settings/config-network.yaml"),
        "config-observability" => include_str!("settings/config-observability.yaml"),
        _ => return None,
    })
}

/// The ConfigMaps.
pub(super) fn config_maps(options: &Options) -> Vec<Value> {
    crate::config::NAMES
        .iter()
        .map(|name| {
            let mut data = settings(options, name);
            let mut metadata = options.meta(name, None);
            if let Some(text) = example(name) {
                metadata["annotations"] = json!({noted::ANNOTATION: noted::checksum(text)});
                data.insert(noted::KEY.to_owned(), json!(text));
            }
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        })
        .collect()
}

/// What this installation sets itself.
fn settings(options: &Options, name: &str) -> Map<String, Value> {
    let mut data = Map::new();
    let mut set = |key: &str, value: &str| data.insert(key.to_owned(), json!(value));
    match (name, &options.place) {
        ("config-deployment", Place::Cluster { images, .. }) => {
            set("queue-sidecar-image", &images.queue_proxy());
        }
        ("config-deployment", Place::Embedded { queue_sidecar_image, registry_mirror, .. }) => {
            set("queue-sidecar-image", queue_sidecar_image);
            set("registry-mirror", registry_mirror);
            // With the 25m of a cluster, two cores would be full with 80 pods, and the next would wait for one to end.
            set("queue-sidecar-cpu-request", "5m");
        }
        ("config-network", Place::Embedded { external_url_port, external_url_tls_port, .. }) => {
            let ports =
                [("external-url-port", external_url_port), ("external-url-tls-port", external_url_tls_port)];
            for (key, port) in ports {
                port.iter().for_each(|port| {
                    set(key, &port.to_string());
                });
            }
        }
        ("config-domain", _) => {
            if let Some(domain) = &options.domain {
                set(domain, "");
            }
        }
        _ => {}
    }
    data
}
