//! What the cluster takes by itself: a plain Deployment from zero to one Ready pod.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use testkit::PATIENCE;

use crate::platform::{Platform, is_ready};

const NAME: &str = "bare";

/// Makes the Deployment, with no pod.
pub(crate) async fn create(platform: &Platform) -> Result<()> {
    let manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"app": NAME}},
            "template": {"metadata": {"labels": {"app": NAME}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "app", "image": platform.image, "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}],
            }},
        },
    });
    platform.deployments().create(&PostParams::default(), &serde_json::from_value(manifest)?).await?;
    Ok(())
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
    let mut events =
        pods.watch(&WatchParams::default().labels(&label), &version.unwrap_or_default()).await?.boxed();
    let start = Instant::now();
    scale(platform, 1).await?;
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
    let took =
        tokio::time::timeout(PATIENCE, wait).await.context("the bare Deployment's pod is not Ready")??;
    scale(platform, 0).await?;
    Ok(took)
}

async fn scale(platform: &Platform, replicas: u32) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    platform.deployments().patch_scale(NAME, &PatchParams::default(), &patch).await?;
    Ok(())
}
