//! What one write of a pod costs this process, watchers included, in CPU time:
//! `cargo run --release -p cluster-apiserver --example writes -- POD.json [WATCHERS] [WRITES] [CONFIGURATIONS.json]`.
//!
//! POD.json is a pod as the API shows it; its status is written again and again, each time with another condition, as a node does.

use std::time::Duration;

use cluster_apiserver::{ApiServer, Config, MASTERS};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use serde_json::{Value, json};

/// CPU time of all threads so far.
fn cpu() -> Duration {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        total += Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0));
    }
    total
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| args.get(at).and_then(|n| n.parse().ok()).unwrap_or(default);
    let (watchers, writes) = (number(1, 6), number(2, 1000));
    let mut pod: Value = serde_json::from_slice(&std::fs::read(args.first().ok_or("which pod?")?)?)?;
    let status = pod["status"].take();
    let map = pod.as_object_mut().ok_or("not an object")?;
    map.remove("status");
    for field in ["resourceVersion", "uid", "creationTimestamp", "managedFields", "ownerReferences"] {
        map["metadata"].as_object_mut().ok_or("no metadata")?.remove(field);
    }
    let folder = tempfile::tempdir()?;
    let server = ApiServer::start(Config { sync: false, ..Config::new(folder.path()) }).await?;
    let client = server.client("node", &[MASTERS]);
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let made = pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let name = made.metadata.name.unwrap_or_default();
    for _ in 0..watchers {
        let api: Api<Pod> = Api::all(client.clone());
        tokio::spawn(watcher(api, watcher::Config::default()).for_each(|_| async {}));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = (cpu(), std::time::Instant::now());
    for n in 0..writes {
        let mut status = status.clone();
        status["conditions"][0]["message"] = format!("write {n}").into();
        let patch = json!({"metadata": {"uid": made.metadata.uid}, "status": status});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let each = |time: Duration| time / u32::try_from(writes.max(1)).unwrap_or(1);
    println!("cpu {:.1?}, elapsed {:.1?} for each write", each(cpu() - begun.0), each(begun.1.elapsed()));
    // Without its server, a watcher would try again for ever.
    drop(server);
    std::process::exit(0)
}
