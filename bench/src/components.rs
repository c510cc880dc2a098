//! What the components cost on a cluster, as its kubelets account for them: idle, and with many Services at zero.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::platform::{Platform, Target};

/// So many Services are created at a time.
const AT_ONCE: usize = 10;
/// Kubelets renew their account every ten seconds or so; over this long a difference means something.
const SPAN: Duration = Duration::from_secs(60);

pub(crate) fn run(n: usize, target: &Target) -> Result<Value> {
    ensure!(
        target.kubeconfig.is_some(),
        "components are pods on a cluster only: give --kubeconfig and --gateway"
    );
    tokio::runtime::Runtime::new()?.block_on(async {
        let platform = Platform::start(target).await?;
        let idle = account(&platform).await?;
        let names: Vec<String> = (0..n).map(|i| format!("idle-{i}")).collect();
        let none = json!({"autoscaling.knative.dev/initial-scale": "0"});
        for chunk in names.chunks(AT_ONCE) {
            try_join_all(chunk.iter().map(|name| platform.create_with(name, none.clone()))).await?;
        }
        platform.wait_zero().await?;
        let with = account(&platform).await?;
        platform.stop().await?;
        Ok(json!({"bench": "components", "services": n, "idle": idle, "with_services": with}))
    })
}

/// Memory in KiB and processor time in ms per second of each container in the platform's namespace.
async fn account(platform: &Platform) -> Result<Value> {
    let before = usage(platform).await?;
    tokio::time::sleep(SPAN).await;
    let mut all = serde_json::Map::new();
    for (container, now) in usage(platform).await? {
        let Some(then) = before.get(&container) else { continue };
        let seconds = (now.at - then.at).as_secs_f64().max(1.0);
        let cpu = (now.cpu_ns.saturating_sub(then.cpu_ns)) as f64 / 1e6 / seconds;
        all.insert(
            container,
            json!({"memory_kib": now.memory >> 10, "cpu_ms_per_s": (cpu * 100.0).round() / 100.0}),
        );
    }
    Ok(all.into())
}

struct Usage {
    at: Duration,
    memory: u64,
    cpu_ns: u64,
}

async fn usage(platform: &Platform) -> Result<BTreeMap<String, Usage>> {
    let nodes = Api::<Node>::all(platform.client.clone()).list(&ListParams::default()).await?;
    let mut all = BTreeMap::new();
    for node in nodes {
        let name = node.metadata.name.unwrap_or_default();
        let request =
            http::Request::get(format!("/api/v1/nodes/{name}/proxy/stats/summary")).body(Vec::new())?;
        let summary: Value = platform.client.request(request).await?;
        for pod in summary["pods"].as_array().into_iter().flatten() {
            if pod["podRef"]["namespace"] != "ebb-system" {
                continue;
            }
            let name = pod["podRef"]["name"].as_str().unwrap_or_default();
            for container in pod["containers"].as_array().into_iter().flatten() {
                let time = container["cpu"]["time"].as_str().context("the kubelet gives no time")?;
                let at: jiff::Timestamp = time.parse()?;
                all.insert(
                    format!("{name}/{}", container["name"].as_str().unwrap_or_default()),
                    Usage {
                        at: Duration::from_millis(u64::try_from(at.as_millisecond())?),
                        memory: container["memory"]["workingSetBytes"].as_u64().unwrap_or_default(),
                        cpu_ns: container["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap_or_default(),
                    },
                );
            }
        }
    }
    Ok(all)
}
