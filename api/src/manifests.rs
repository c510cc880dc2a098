//! The objects of the platform itself, as pure data: what `ebb up` and `ebb install` apply, and what `config/` and the Helm chart hold.
//!
//! There is one source: [`manifests`]. Objects are JSON as the API server takes it; a test reads each into its Kubernetes type and back,
//! so that a misspelt field is noticed. They come in stages, each of which needs those before it.

mod access;
mod admission;
mod components;
mod network;
mod settings;

use serde_json::{Value, json};

use crate::meta::ebb::SYSTEM_NAMESPACE;

pub use admission::{CONFIG_WEBHOOK, Endpoint, MUTATING_WEBHOOK, VALIDATING_WEBHOOK, admission};
pub use settings::example;

/// Label of everything that the platform's installation made: the namespace of the components.
pub const INSTALLATION: &str = "install.ebb.dev/namespace";
/// Label of the namespace and the Deployments: the version that was installed.
pub const VERSION: &str = "app.kubernetes.io/version";

/// The components, which are also the names of their Deployments and ServiceAccounts.
pub const COMPONENTS: &[&str] = &["activator", "autoscaler", "controller", "gateway"];

/// The platform's own images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Registry and path: `registry.example.com/team`.
    pub prefix: String,
    /// Their tag.
    pub tag: String,
}

impl Default for Images {
    fn default() -> Self {
        Self { prefix: "localhost".into(), tag: env!("CARGO_PKG_VERSION").into() }
    }
}

impl Images {
    /// The components' image.
    #[must_use]
    pub fn ebb(&self) -> String {
        format!("{}/ebb:{}", self.prefix, self.tag)
    }

    /// The sidecar's image.
    #[must_use]
    pub fn queue_proxy(&self) -> String {
        format!("{}/ebb-queue-proxy:{}", self.prefix, self.tag)
    }
}

/// Where the components run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In pods.
    Cluster {
        /// The images of the components and the sidecar.
        images: Images,
        /// Pods of each component.
        replicas: u32,
    },
    /// In the process of the API server. Their Services have no selector then, and whoever runs them writes the EndpointSlices.
    Embedded {
        /// The image of the sidecar.
        queue_sidecar_image: String,
        /// A registry to ask first for digests, as a base URL.
        registry_mirror: String,
        /// The port to put into URLs, where it is not the scheme's own.
        external_url_port: Option<u16>,
        /// The same for https.
        external_url_tls_port: Option<u16>,
    },
}

/// What differs between one installation and another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The namespace of the components.
    pub namespace: String,
    /// The domain of Routes; without one they can be reached from inside the cluster only.
    pub domain: Option<String>,
    /// The version that is installed.
    pub version: String,
    /// Where the components run.
    pub place: Place,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: SYSTEM_NAMESPACE.into(),
            domain: None,
            version: env!("CARGO_PKG_VERSION").into(),
            place: Place::Cluster { images: Images::default(), replicas: 1 },
        }
    }
}

impl Options {
    fn embedded(&self) -> bool {
        matches!(self.place, Place::Embedded { .. })
    }

    fn meta(&self, name: &str, component: Option<&str>) -> Value {
        let mut meta = self.cluster_meta(name, component);
        meta["namespace"] = json!(self.namespace);
        meta
    }

    fn cluster_meta(&self, name: &str, component: Option<&str>) -> Value {
        let mut labels = json!({"app.kubernetes.io/name": "ebb", INSTALLATION: self.namespace});
        if let Some(component) = component {
            labels["app.kubernetes.io/component"] = json!(component);
        }
        json!({"name": name, "labels": labels})
    }
}

/// Objects that can be applied together once the stages before are there.
#[derive(Clone, Debug)]
pub struct Stage {
    /// In a word or two; in `config/` the name of its file.
    pub name: &'static str,
    /// The objects.
    pub objects: Vec<Value>,
}

/// Everything, in the order in which it is applied.
#[must_use]
pub fn manifests(options: &Options) -> Vec<Stage> {
    let stage = |name, objects| Stage { name, objects };
    let mut stages = vec![
        stage("namespace", vec![namespace(options)]),
        stage("crds", crds(options)),
        stage("access", access::accounts(options)),
        stage("settings", settings::config_maps(options)),
        stage("services", network::services(options)),
    ];
    if let Place::Cluster { images, replicas } = &options.place {
        let [_, _, access, ..] = stages.as_mut_slice() else { return stages };
        access.objects.extend(access::rights(options));
        stages.extend([
            stage("policies", [network::policies(options), components::budgets(options)].concat()),
            // Before the controller, which only adds its CA to them and may not make others.
            stage("admission", admission(options, &Endpoint::Service { ca_bundle: None }).into()),
            stage("components", components::deployments(options, images, *replicas)),
        ]);
    }
    stages
}

fn namespace(options: &Options) -> Value {
    let mut meta = options.cluster_meta(&options.namespace, None);
    meta["labels"][VERSION] = json!(options.version);
    if !options.embedded() {
        for mode in ["enforce", "audit", "warn"] {
            meta["labels"][format!("pod-security.kubernetes.io/{mode}")] = json!("restricted");
        }
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
}

fn crds(options: &Options) -> Vec<Value> {
    let all = crate::crds::crds().into_iter().filter_map(|crd| serde_json::to_value(crd).ok());
    all.map(|mut crd| {
        crd["metadata"]["labels"][INSTALLATION] = json!(options.namespace);
        crd
    })
    .collect()
}

#[cfg(test)]
mod tests;
