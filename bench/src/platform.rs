//! A platform to measure, with the example in its registry and a client at hand.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ebb_api::serving::Service;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use testkit::{PATIENCE, Process};

pub(crate) const IMAGE: &str = "hello:v1";

pub(crate) struct Platform {
    pub(crate) process: Process,
    pub(crate) client: kube::Client,
}

/// The release build of `ebb` beside this binary.
pub(crate) fn ebb() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("ebb");
    ensure!(path.exists(), "{} is missing: run `cargo build --release -p ebb` first", path.display());
    Ok(path)
}

impl Platform {
    /// Starts one whose Services go to zero as soon as the contract allows.
    pub(crate) async fn start() -> Result<Self> {
        let process = Process::start(&ebb()?)?;
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello");
        process.ebb(&["build", &project.display().to_string(), "-t", IMAGE])?;
        let kubeconfig = Kubeconfig::read_from(process.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = kube::Client::try_from(config)?;
        let grace = json!({"data": {"scale-to-zero-grace-period": "1s"}});
        Api::<ConfigMap>::namespaced(client.clone(), "ebb-system")
            .patch("config-autoscaler", &PatchParams::default(), &Patch::Merge(grace))
            .await?;
        Ok(Self { process, client })
    }

    pub(crate) fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates a Service of the example and gives the time until it was Ready.
    pub(crate) async fn create(&self, name: &str) -> Result<Duration> {
        let services = self.services();
        let start = Instant::now();
        let manifest: Service = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"template": {
                "metadata": {"annotations": {"autoscaling.knative.dev/window": "6s"}},
                "spec": {"containers": [{"image": IMAGE}]},
            }},
        }))?;
        let created = services.create(&PostParams::default(), &manifest).await?;
        let version = created.metadata.resource_version.unwrap_or_default();
        let only = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = services.watch(&only, &version).await?.boxed();
        let wait = async {
            while let Some(event) = events.next().await {
                if let WatchEvent::Modified(service) = event?
                    && is_ready(&service)?
                {
                    return Ok(start.elapsed());
                }
            }
            bail!("the watch of {name} ended")
        };
        tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("{name} is not Ready"))?
    }

    /// Waits until no Service has a pod.
    pub(crate) async fn wait_zero(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), "default");
        let start = Instant::now();
        loop {
            let left = pods.list(&ListParams::default()).await?.items.len();
            let wanted = deployments.list(&ListParams::default()).await?;
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

    pub(crate) fn host(&self, name: &str) -> String {
        format!("{name}.default.localhost:{}", self.process.gateway().port())
    }
}

fn is_ready(service: &Service) -> Result<bool> {
    let value = serde_json::to_value(service)?;
    let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Ok(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}
