//! What the cluster takes by itself: a plain Deployment from nothing or from zero to one Ready pod.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use testkit::PATIENCE;

use crate::platform::{Platform, is_ready};

const NAME: &str = "bare";

/// Makes the Deployment, with no pod.
pub(crate) async fn create(platform: &Platform) -> Result<()> {
    platform.deployments().create(&PostParams::default(), &deployment(platform, NAME, 0)?).await?;
    Ok(())
}

/// From the creation of a Deployment of one pod until the API says that the pod is Ready.
pub(crate) async fn create_to_ready(platform: &Platform, name: &str) -> Result<Duration> {
    let label = WatchParams::default().labels(&format!("app={name}"));
    let deployment = deployment(platform, name, 1)?;
    let start = Instant::now();
    let made = platform.deployments().create(&PostParams::default(), &deployment).await?;
    let version = made.metadata.resource_version.unwrap_or_default();
    ready(platform, &label, &version, start).await.with_context(|| format!("the bare Deployment {name}"))
}

/// Deletes Deployments and waits until their pods are gone.
pub(crate) async fn delete(platform: &Platform, names: &[String]) -> Result<()> {
    for name in names {
        platform.deployments().delete(name, &DeleteParams::background()).await?;
    }
    platform.wait_zero().await
}

fn deployment(platform: &Platform, name: &str, replicas: u32) -> Result<Deployment> {
    let manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "app", "image": platform.image, "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}],
            }},
        },
    });
    Ok(serde_json::from_value(manifest)?)
}

/// From the change of the scale until the API says that the pod is Ready; then back to none.
pub(crate) async fn zero_to_one(platform: &Platform) -> Result<Duration> {
    let pods = platform.pods();
    let label = format!("app={NAME}");
    // The pod of the time before must be gone: news of it would be taken for the new one's.
    let only = ListParams::default().labels(&label);
    let begun = Instant::now();
    let version = loop {
        let found = pods.list(&only).await?;
        if found.items.is_empty() {
            break found.metadata.resource_version;
        }
        ensure!(begun.elapsed() < PATIENCE, "the bare Deployment's pod does not go away");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let start = Instant::now();
    scale(platform, 1).await?;
    let label = WatchParams::default().labels(&label);
    let took =
        ready(platform, &label, &version.unwrap_or_default(), start).await.context("the bare Deployment")?;
    scale(platform, 0).await?;
    Ok(took)
}

/// Until one of these pods is Ready.
async fn ready(platform: &Platform, pods: &WatchParams, version: &str, start: Instant) -> Result<Duration> {
    let mut events = platform.pods().watch(pods, version).await?.boxed();
    let wait = async {
        while let Some(event) = events.next().await {
            if let WatchEvent::Modified(pod) = event?
                && is_ready(&serde_json::to_value(pod)?)
            {
                return Ok(start.elapsed());
            }
        }
        bail!("the watch of pods ended")
    };
    tokio::time::timeout(PATIENCE, wait).await.context("its pod is not Ready")?
}

async fn scale(platform: &Platform, replicas: u32) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    platform.deployments().patch_scale(NAME, &PatchParams::default(), &patch).await?;
    Ok(())
}
