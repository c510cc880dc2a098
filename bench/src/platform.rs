//! A platform to measure: started here, or one on a cluster that a kubeconfig names; a client and a namespace at hand.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ebb_api::serving::Service;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use testkit::{PATIENCE, Process};

const NAMESPACE: &str = "bench";
const SYSTEM: &str = "ebb-system";

/// Which platform.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// Measure the platform on this cluster instead of an `ebb up` of one's own.
    #[arg(long, value_name = "FILE", requires = "gateway")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Where its gateway is reached.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "kubeconfig")]
    gateway: Option<SocketAddr>,
    /// The image to deploy there. The cluster must be able to pull it; one that was loaded into its nodes needs a name whose
    /// digest is not looked up, as `dev.local/hello:v1`.
    #[arg(long, value_name = "NAME", default_value = "dev.local/hello:v1")]
    image: String,
}

/// The platform, with its Services going to zero as soon as the contract allows.
pub(crate) struct Platform {
    process: Option<Process>,
    pub(crate) client: kube::Client,
    pub(crate) gateway: SocketAddr,
    pub(crate) image: String,
    /// What follows a Service's name in its host; known from the first Service on.
    suffix: OnceLock<String>,
    /// What `config-autoscaler` said before.
    before: Option<ConfigMap>,
}

/// The release build of `ebb` beside this binary.
pub(crate) fn ebb() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("ebb");
    ensure!(path.exists(), "{} is missing: run `cargo build --release -p ebb` first", path.display());
    Ok(path)
}

impl Platform {
    /// Starts one, or takes the one that is given.
    pub(crate) async fn start(target: &Target) -> Result<Self> {
        let (process, kubeconfig, gateway) = match (&target.kubeconfig, target.gateway) {
            (Some(file), Some(gateway)) => (None, file.clone(), gateway),
            _ => {
                let process = Process::start(&ebb()?)?;
                let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello");
                process.ebb(&["build", &project.display().to_string(), "-t", &target.image])?;
                let (kubeconfig, gateway) = (process.kubeconfig(), process.gateway());
                (Some(process), kubeconfig, gateway)
            }
        };
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = kube::Client::try_from(config)?;
        let settings: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM);
        let before = settings.get("config-autoscaler").await?;
        let quick = json!({"data": {"scale-to-zero-grace-period": "1s", "allow-zero-initial-scale": "true"}});
        settings.patch("config-autoscaler", &PatchParams::default(), &Patch::Merge(quick)).await?;
        let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.with_context(
            || format!("creating namespace {NAMESPACE}, which this benchmark fills and deletes"),
        )?;
        let before = process.is_none().then_some(before);
        Ok(Self { process, client, gateway, image: target.image.clone(), suffix: OnceLock::new(), before })
    }

    /// Ends it; on a cluster, takes away what was made there.
    pub(crate) async fn stop(self) -> Result<()> {
        if let Some(process) = self.process {
            return process.stop();
        }
        if let Some(before) = self.before {
            let settings: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
            let key = |k: &str| before.data.as_ref().and_then(|d| d.get(k)).cloned();
            let grace = key("scale-to-zero-grace-period");
            let back = json!({"data": {"scale-to-zero-grace-period": grace, "allow-zero-initial-scale": key("allow-zero-initial-scale")}});
            settings.patch("config-autoscaler", &PatchParams::default(), &Patch::Merge(back)).await?;
        }
        let namespaces: Api<Namespace> = Api::all(self.client);
        namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
        let start = Instant::now();
        while namespaces.get_opt(NAMESPACE).await?.is_some() {
            ensure!(start.elapsed() < PATIENCE, "namespace {NAMESPACE} does not go away");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// The process, where it is one.
    pub(crate) fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    pub(crate) fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Objects of a kind in the benchmark's namespace.
    pub(crate) fn namespaced<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub(crate) fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Creates a Service of the example and gives the time until it was Ready.
    pub(crate) async fn create(&self, name: &str) -> Result<Duration> {
        self.create_with(name, json!({})).await
    }

    /// The same with more annotations.
    pub(crate) async fn create_with(&self, name: &str, annotations: Value) -> Result<Duration> {
        let services = self.services();
        let service = self.service(name, annotations)?;
        let start = Instant::now();
        let created = services.create(&PostParams::default(), &service).await?;
        let version = created.metadata.resource_version.unwrap_or_default();
        let only = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = services.watch(&only, &version).await?.boxed();
        let wait = async {
            while let Some(event) = events.next().await {
                if let WatchEvent::Modified(service) = event? {
                    let value = serde_json::to_value(service)?;
                    if is_ready(&value) {
                        let took = start.elapsed();
                        self.learn_suffix(name, &value)?;
                        return Ok(took);
                    }
                }
            }
            bail!("the watch of {name} ended")
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(took) => took,
            Err(_) => {
                let service = serde_json::to_value(services.get(name).await?)?;
                bail!("{name} is not Ready after {} s: {}", PATIENCE.as_secs(), said(&service))
            }
        }
    }

    /// A Service of the example with these annotations.
    pub(crate) fn service(&self, name: &str, annotations: Value) -> Result<Service> {
        let mut manifest = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"template": {
                "metadata": {"annotations": annotations},
                "spec": {"containers": [{"image": self.image}]},
            }},
        });
        manifest["spec"]["template"]["metadata"]["annotations"]["autoscaling.knative.dev/window"] =
            "6s".into();
        Ok(serde_json::from_value(manifest)?)
    }

    /// Ends the process in order and starts it again on its folder; only what was started here can.
    pub(crate) fn restart(mut self) -> Result<Self> {
        let process = self.process.take().context("it was not started here")?;
        self.process = Some(process.restart()?);
        Ok(self)
    }

    fn learn_suffix(&self, name: &str, service: &Value) -> Result<()> {
        let url = service["status"]["url"].as_str().context("a Ready Service has no URL")?;
        let suffix = url.split_once("://").and_then(|(_, host)| host.strip_prefix(name));
        self.suffix.get_or_init(|| suffix.unwrap_or_default().trim_end_matches('/').to_owned());
        Ok(())
    }

    /// Waits until no Service has a pod.
    pub(crate) async fn wait_zero(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = self.pods().list(&ListParams::default()).await?.items.len();
            let wanted = self.deployments().list(&ListParams::default()).await?;
            let wanted: i32 = wanted.iter().filter_map(|d| d.spec.as_ref()?.replicas).sum();
            if left == 0 && wanted == 0 {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("{left} pods are left after {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The host of a Service, once one has been Ready.
    pub(crate) fn host(&self, name: &str) -> String {
        format!("{name}{}", self.suffix.get().map_or("", String::as_str))
    }
}

/// What an object's condition Ready says.
fn said(object: &Value) -> String {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().find(|c| c["type"] == "Ready");
    ready.map_or_else(
        || "it has no condition Ready".to_owned(),
        |c| format!("{} {}", c["reason"], c["message"]),
    )
}

/// Whether an object's condition Ready is True.
pub(crate) fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}
