//! The objects of the platform itself, as pure data: namespace, CRDs, ConfigMaps, accounts, Services.
//!
//! `ebb up` and `ebb install` write these with server-side apply; ConfigMaps only where there are none, for they are the user's.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;

use crate::meta::ebb::SYSTEM_NAMESPACE;

/// What differs between one installation and another.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the components.
    pub namespace: String,
    /// The domain of Routes; `localhost` on the embedded platform.
    pub domain: Option<String>,
    /// The image of the sidecar.
    pub queue_sidecar_image: String,
    /// A registry to ask first for digests, as a base URL.
    pub registry_mirror: Option<String>,
    /// The port to put into URLs, where it is not the scheme's own.
    pub external_url_port: Option<u16>,
    /// Whether the components run outside of pods: their Services then have no selector, and whoever runs the components
    /// writes their EndpointSlices.
    pub embedded: bool,
    /// Labels for all objects.
    pub labels: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: SYSTEM_NAMESPACE.into(),
            domain: None,
            queue_sidecar_image: "queue-proxy".into(),
            registry_mirror: None,
            external_url_port: None,
            embedded: false,
            labels: BTreeMap::from([("app.kubernetes.io/name".into(), "ebb".into())]),
        }
    }
}

/// The components, which are also the names of their ServiceAccounts.
pub const COMPONENTS: &[&str] = &["activator", "autoscaler", "controller", "gateway"];

/// Everything that must be there before a component starts.
#[derive(Clone, Debug)]
pub struct Manifests {
    /// The namespace.
    pub namespace: Namespace,
    /// The CRDs.
    pub crds: Vec<CustomResourceDefinition>,
    /// The ConfigMaps, with what the options say.
    pub config_maps: Vec<ConfigMap>,
    /// The accounts.
    pub service_accounts: Vec<ServiceAccount>,
    /// The Services.
    pub services: Vec<Service>,
}

/// Makes them.
#[must_use]
pub fn manifests(options: &Options) -> Manifests {
    Manifests {
        namespace: Namespace {
            metadata: ObjectMeta {
                name: Some(options.namespace.clone()),
                labels: Some(options.labels.clone()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        },
        crds: crate::crds::crds(),
        config_maps: config_maps(options),
        service_accounts: COMPONENTS
            .iter()
            .map(|name| ServiceAccount { metadata: meta(options, name), ..ServiceAccount::default() })
            .collect(),
        services: services(options),
    }
}

fn meta(options: &Options, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(options.namespace.clone()),
        labels: Some(options.labels.clone()),
        ..ObjectMeta::default()
    }
}

fn config_maps(options: &Options) -> Vec<ConfigMap> {
    crate::config::NAMES
        .iter()
        .map(|name| {
            let mut data = BTreeMap::new();
            match *name {
                "config-deployment" => {
                    data.insert("queue-sidecar-image".to_owned(), options.queue_sidecar_image.clone());
                    data.extend(options.registry_mirror.clone().map(|m| ("registry-mirror".to_owned(), m)));
                    if options.embedded {
                        // With the 25m of a cluster, two cores would be full with 80 pods, and the next would wait for one to end.
                        data.insert("queue-sidecar-cpu-request".to_owned(), "5m".to_owned());
                    }
                }
                "config-domain" => data.extend(options.domain.clone().map(|d| (d, String::new()))),
                "config-network" => {
                    let port =
                        options.external_url_port.map(|p| ("external-url-port".to_owned(), p.to_string()));
                    data.extend(port);
                }
                _ => {}
            }
            ConfigMap { metadata: meta(options, name), data: Some(data), ..ConfigMap::default() }
        })
        .collect()
}

fn services(options: &Options) -> Vec<Service> {
    let port = |name: &str, port: i32, target: i32| ServicePort {
        name: Some(name.into()),
        port,
        target_port: Some(IntOrString::Int(target)),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    };
    let table: [(&str, &str, Option<&str>, Vec<ServicePort>); 5] = [
        ("controller", "controller", None, vec![port("webhook", 443, 8443), port("ca", 8114, 8114)]),
        ("autoscaler", "autoscaler", None, vec![port("https", 8112, 8112)]),
        // Headless: queue-proxies announce themselves to every activator.
        (
            "activator",
            "activator",
            Some("None"),
            vec![port("http", 8012, 8012), port("http2", 8013, 8013), port("https", 8112, 8112)],
        ),
        ("gateway", "gateway", None, vec![port("http", 80, 8080), port("https", 443, 8443)]),
        ("gateway-internal", "gateway", None, vec![port("http", 80, 8082)]),
    ];
    table
        .into_iter()
        .map(|(name, component, cluster_ip, ports)| Service {
            metadata: meta(options, name),
            spec: Some(ServiceSpec {
                type_: Some(if name == "gateway" { "LoadBalancer" } else { "ClusterIP" }.into()),
                cluster_ip: cluster_ip.map(Into::into),
                selector: (!options.embedded)
                    .then(|| BTreeMap::from([("app.kubernetes.io/component".into(), component.into())])),
                ports: Some(ports),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        })
        .collect()
}
