//! How long writes take, and how soon watchers see them: `cargo run -p cluster-apiserver --example latency [--release]`.

use std::time::{Duration, Instant};

use cluster_apiserver::{ApiServer, Config, MASTERS};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

fn show(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100];
    println!("{what:24} p50 {:>9.1?}  p99 {:>9.1?}", at(50), at(99));
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let begun = Instant::now();
    let server = ApiServer::start(Config::new(folder.path())).await?;
    println!("started in {:.1?}", begun.elapsed());
    let client = server.client("test", &[MASTERS]);
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    accounts
        .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": "default"}}))?)
        .await?;
    let pods: Api<Pod> = Api::default_namespaced(client);
    let mut events = pods.watch(&WatchParams::default(), "0").await?.boxed();
    let (mut created, mut patched, mut removed, mut seen) = (vec![], vec![], vec![], vec![]);
    for n in 0..500 {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("p{n}"), "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "a", "image": "i", "env": [{"name": "A", "value": "b"}], "ports": [{"containerPort": 80}]},
                {"name": "b", "image": "j"}]},
        }))?;
        let begun = Instant::now();
        let (made, event) = tokio::join!(
            async {
                let made = pods.create(&PostParams::default(), &pod).await;
                (made, begun.elapsed())
            },
            async { (events.try_next().await, begun.elapsed()) }
        );
        made.0?;
        assert!(matches!(event.0?, Some(WatchEvent::Added(_))));
        created.push(made.1);
        seen.push(event.1);
        let status = Patch::Merge(
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        let begun = Instant::now();
        pods.patch_status(&format!("p{n}"), &PatchParams::default(), &status).await?;
        patched.push(begun.elapsed());
        events.try_next().await?;
        let begun = Instant::now();
        pods.delete(&format!("p{n}"), &DeleteParams::default().grace_period(0)).await?;
        removed.push(begun.elapsed());
        events.try_next().await?;
    }
    show("create, acknowledged", &mut created);
    show("create, seen by a watch", &mut seen);
    show("status, acknowledged", &mut patched);
    show("delete, acknowledged", &mut removed);
    server.shutdown().await;
    Ok(())
}
