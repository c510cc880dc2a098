//! The steps of the demo, in the order of a user's first day.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ebb_api::serving::Service;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Row, timing};
use crate::client::Connection;
use crate::platform::Platform;
use crate::progress::{Stage, count, duration};

const NAMESPACE: &str = "default";
const SERVICE: &str = "hello";
const PATIENCE: Duration = Duration::from_secs(120);
/// The example's project, so that the command needs no checkout to show it.
const PROJECT: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../../../examples/hello/Cargo.toml")),
    ("src/main.rs", include_str!("../../../examples/hello/src/main.rs")),
];
const FIRST: &str = include_str!("../../../examples/hello/service.yaml");
const CANARY: &str = include_str!("../../../examples/hello/canary.yaml");
const ROLLBACK: &str = include_str!("../../../examples/hello/rollback.yaml");

pub(super) async fn all(platform: &Platform, folder: &Path, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let demo = Demo {
        gateway: SocketAddr::from(([127, 0, 0, 1], platform.ports().gateway)),
        services: Api::namespaced(platform.client(), NAMESPACE),
        pods: Api::namespaced(platform.client(), NAMESPACE),
        host: format!("{SERVICE}.{NAMESPACE}.localhost"),
    };
    rows.push(build(platform, folder).await?);
    let configs: Api<ConfigMap> = Api::namespaced(platform.client(), "ebb-system");
    let grace = json!({"data": {"scale-to-zero-grace-period": "1s"}});
    configs.patch("config-autoscaler", &PatchParams::default(), &Patch::Merge(grace)).await?;
    rows.push(demo.first().await?);
    rows.push(demo.zero().await?);
    rows.push(demo.cold_start().await?);
    rows.push(demo.load().await?);
    rows.push(demo.zero().await?);
    rows.push(demo.canary().await?);
    rows.push(demo.rollback().await?);
    Ok(())
}

async fn build(platform: &Platform, folder: &Path) -> anyhow::Result<Row> {
    let stage = Stage::begin("build examples/hello into an OCI image, without Docker");
    let project = write_project(folder)?;
    let digest = crate::build::into_store(platform, &project, "hello:v1").await?;
    stage.done(&digest);
    Ok(Row { step: "ebb build", result: format!("hello:v1 {}", digest.get(..19).unwrap_or(&digest)) })
}

fn write_project(folder: &Path) -> anyhow::Result<PathBuf> {
    let project = folder.join("hello");
    for (name, text) in PROJECT {
        let file = project.join(name);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(project)
}

struct Demo {
    gateway: SocketAddr,
    services: Api<Service>,
    pods: Api<Pod>,
    host: String,
}

impl Demo {
    /// Applies a manifest of the example, with a window that suits a demo, and waits until it is served.
    async fn apply(&self, manifest: &str, stage: &Stage) -> anyhow::Result<()> {
        let mut manifest: Value = serde_saphyr::from_str(manifest).context("the example's manifest")?;
        manifest["spec"]["template"]["metadata"]["annotations"] = json!({
            "autoscaling.knative.dev/window": "6s",
            "autoscaling.knative.dev/metric": "rps",
            "autoscaling.knative.dev/target": "200",
            "autoscaling.knative.dev/max-scale": "5",
        });
        let params = PatchParams::apply("ebb-demo").force();
        self.services.patch(SERVICE, &params, &Patch::Apply(&manifest)).await.context("apply")?;
        let start = Instant::now();
        let mut said = String::new();
        loop {
            let service = serde_json::to_value(self.services.get(SERVICE).await?)?;
            let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().find(|c| c["type"] == "Ready");
            let current = service["status"]["observedGeneration"] == service["metadata"]["generation"];
            if current && ready.is_some_and(|c| c["status"] == "True") {
                return Ok(());
            }
            let why = ready
                .and_then(|c| c["message"].as_str().or(c["reason"].as_str()))
                .unwrap_or("reconciling")
                .to_string();
            ensure!(
                start.elapsed() < PATIENCE,
                "the Service is not Ready after {}: {why}",
                duration(PATIENCE)
            );
            if why != said {
                stage.note(&why);
                said = why;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn first(&self) -> anyhow::Result<Row> {
        let stage = Stage::begin("apply the Service");
        self.apply(FIRST, &stage).await?;
        let answer = Connection::open(self.gateway, &self.host).await?.get(false).await?;
        ensure!(
            answer.status == 200 && answer.body == "Hello World!\n",
            "{}: {}",
            answer.status,
            answer.body
        );
        let took =
            stage.done(format!("http://{}:{} says {}", self.host, self.gateway.port(), answer.body.trim()));
        Ok(Row { step: "create to Ready, and the first answer", result: duration(took) })
    }

    async fn zero(&self) -> anyhow::Result<Row> {
        let stage = Stage::begin("wait for zero (window 6 s, grace 1 s in this demo)");
        let start = Instant::now();
        let mut before = usize::MAX;
        loop {
            let left = self.pods.list(&ListParams::default()).await?.items.len();
            if left == 0 {
                break;
            }
            if left != before {
                stage.note(count(left, "pod"));
                before = left;
            }
            ensure!(start.elapsed() < PATIENCE, "{} left after {}", count(left, "pod"), duration(PATIENCE));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let took = stage.done("no pod, no process");
        Ok(Row { step: "idle at zero", result: format!("no pod after {}", duration(took)) })
    }

    async fn cold_start(&self) -> anyhow::Result<Row> {
        let stage = Stage::begin("cold start");
        let mut connection = Connection::open(self.gateway, &self.host).await?;
        let cold = connection.get(true).await?;
        ensure!(cold.status == 200, "{}: {}", cold.status, cold.body);
        let parts = timing::parts(&cold.headers);
        ensure!(!parts.is_empty(), "the answer carries no breakdown");
        let mut warm = Vec::new();
        for _ in 0..100 {
            let answer = connection.get(false).await?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
            warm.push(answer.took);
        }
        warm.sort();
        let warm = warm.get(warm.len() / 2).copied().unwrap_or_default();
        stage.done(format!("the first answer after {}, warm ones {}", duration(cold.took), duration(warm)));
        let longest = parts.iter().map(|(_, ms)| *ms).fold(0.1, f64::max);
        for (name, ms) in &parts {
            let bar = "#".repeat((ms / longest * 40.0).round().clamp(0.0, 40.0) as usize);
            println!("        {name:<12} {ms:>8.2} ms  {bar}");
        }
        Ok(Row { step: "cold start", result: format!("{} (warm {})", duration(cold.took), duration(warm)) })
    }

    async fn load(&self) -> anyhow::Result<Row> {
        let stage = Stage::begin(
            "scale under load: 16 connections for 10 s, 200 requests a second for each pod wanted",
        );
        let until = Instant::now() + Duration::from_secs(10);
        let mut lanes = JoinSet::new();
        for _ in 0..16 {
            let (gateway, host) = (self.gateway, self.host.clone());
            lanes.spawn(async move {
                let mut connection = Connection::open(gateway, &host).await?;
                let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
                while Instant::now() < until {
                    *statuses.entry(connection.get(false).await?.status).or_default() += 1;
                    // About 1,000 requests a second in all, so that the demo is no stress test.
                    tokio::time::sleep(Duration::from_millis(15)).await;
                }
                anyhow::Ok(statuses)
            });
        }
        let mut most = 0;
        while Instant::now() < until {
            let ready =
                self.pods.list(&ListParams::default()).await?.iter().filter(|pod| is_ready(pod)).count();
            if ready != most {
                stage.note(format!("{} ready", count(ready, "pod")));
                most = most.max(ready);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
        while let Some(lane) = lanes.join_next().await {
            for (status, n) in lane?? {
                *statuses.entry(status).or_default() += n;
            }
        }
        let all: usize = statuses.values().sum();
        ensure!(statuses.keys().all(|status| *status == 200), "not all answers were 200: {statuses:?}");
        if most < 2 {
            bail!("{all} requests in 10 s should have needed more than {most} pod");
        }
        stage.done(format!("{all} requests, all 200, up to {most} pods"));
        Ok(Row { step: "scaling under load", result: format!("{all} requests, all 200, up to {most} pods") })
    }

    async fn count(&self, n: usize) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        let mut connection = Connection::open(self.gateway, &self.host).await?;
        for _ in 0..n {
            let answer = connection.get(false).await?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
            *counts.entry(answer.body.trim().to_string()).or_default() += 1;
        }
        Ok(counts)
    }

    async fn canary(&self) -> anyhow::Result<Row> {
        let stage = Stage::begin("canary: 90 / 10 between two revisions, 1,000 requests counted");
        self.apply(CANARY, &stage).await?;
        let counts = self.count(1000).await?;
        let canary = counts.get("Hello Canary!").copied().unwrap_or(0);
        // Five standard deviations around the mean of a binomial with p = 0.1.
        ensure!((53..=147).contains(&canary), "the canary got {canary} of 1000: {counts:?}");
        stage.done(format!("{} stable, {canary} canary", 1000 - canary));
        Ok(Row { step: "canary 90 / 10", result: format!("{} / {canary} of 1000", 1000 - canary) })
    }

    async fn rollback(&self) -> anyhow::Result<Row> {
        let stage = Stage::begin("roll back");
        self.apply(ROLLBACK, &stage).await?;
        let counts = self.count(500).await?;
        ensure!(counts.keys().all(|body| body == "Hello World!"), "after the rollback: {counts:?}");
        stage.done("500 of 500 to the first revision");
        Ok(Row { step: "rollback", result: "500 of 500 to the first revision".into() })
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}
