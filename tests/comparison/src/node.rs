//! A node that only says that pods run: enough for rollouts, waits, endpoints and jobs on a control plane without machines.
//!
//! A pod bound to it is told Running and Ready at once; one whose containers are not to be restarted then succeeds (or fails, if
//! an image is called `fail`). One with an image called `missing` stays in ImagePullBackOff. A pod marked for deletion is let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// The node's name.
pub(crate) const NAME: &str = "node-1";

/// Registers the node and returns when it is there; pods are looked after until the task is dropped.
pub(crate) async fn start(client: Client) -> Result<tokio::task::JoinHandle<()>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({
        "metadata": {"name": NAME, "labels": {"kubernetes.io/hostname": NAME, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": "10.244.0.0/24"},
    }))?;
    nodes.create(&PostParams::default(), &node).await.context("the node cannot be registered")?;
    let amounts = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
    let status = json!({"status": {
        "capacity": amounts, "allocatable": amounts,
        "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": NAME}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
            "lastHeartbeatTime": now(), "lastTransitionTime": now()}],
        "nodeInfo": {"kubeletVersion": "v1.35.4", "osImage": "none", "kernelVersion": "none", "containerRuntimeVersion": "none://0",
            "architecture": "amd64", "bootID": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "linux", "systemUUID": ""},
    }});
    nodes.patch_status(NAME, &PatchParams::default(), &Patch::Merge(status)).await?;
    // Kubernetes taints a new node until its lifecycle controller has seen it ready; none runs here.
    nodes.patch(NAME, &PatchParams::default(), &Patch::Merge(json!({"spec": {"taints": null}}))).await?;
    Ok(tokio::spawn(run(client)))
}

fn now() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string()
}

async fn run(client: Client) {
    let addresses = Arc::new(AtomicU8::new(10));
    let all: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={NAME}"));
    let pods = watcher(all, config).default_backoff().applied_objects();
    let mut pods = std::pin::pin!(pods);
    while let Some(pod) = pods.next().await {
        let Ok(pod) = pod else { continue };
        let (client, addresses) = (client.clone(), addresses.clone());
        // A pod that changes meanwhile comes again as another event.
        tokio::spawn(async move {
            let _ = tend(&client, &pod, &addresses).await;
        });
    }
}

async fn tend(client: &Client, pod: &Pod, addresses: &AtomicU8) -> kube::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        let uid = Preconditions { uid: pod.uid(), resource_version: None };
        let options = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(uid),
            ..DeleteParams::default()
        };
        return api.delete(&name, &options).await.map(|_| ());
    }
    let Some(status) = next(pod, addresses) else { return Ok(()) };
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ())
}

/// The status that comes next, if any.
fn next(pod: &Pod, addresses: &AtomicU8) -> Option<Value> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.clone().unwrap_or_default();
    let has = |what: &str| {
        spec.containers.iter().any(|c| c.image.as_deref().is_some_and(|image| image.contains(what)))
    };
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let started = status.pod_ip.is_some();
    let state = match (phase, started) {
        ("Pending", false) if has("missing") && status.container_statuses.is_none() => {
            json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}})
        }
        ("Pending", false) if has("missing") => return None,
        ("Pending", false) => json!({"running": {"startedAt": now()}}),
        ("Running", true) if spec.restart_policy.as_deref() != Some("Always") && !has("stays") => {
            let (code, reason) = if has("fail") { (1, "Error") } else { (0, "Completed") };
            json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": now(), "finishedAt": now()}})
        }
        _ => return None,
    };
    let running = state["running"].is_object();
    let phase = match (&state["waiting"], &state["terminated"]["exitCode"]) {
        (Value::Object(_), _) => "Pending",
        (_, Value::Null) => "Running",
        (_, code) if code == 0 => "Succeeded",
        _ => "Failed",
    };
    let containers: Vec<Value> = spec
        .containers
        .iter()
        .map(|c| json!({"name": c.name, "image": c.image, "imageID": "", "ready": running, "started": running, "restartCount": 0, "state": state}))
        .collect();
    let condition = |kind: &str, is: bool| json!({"type": kind, "status": if is { "True" } else { "False" }, "lastTransitionTime": now()});
    let mut next = json!({
        "phase": phase,
        "hostIP": "192.0.2.1",
        "startTime": status.start_time.map_or_else(|| json!(now()), |time| json!(time)),
        "containerStatuses": containers,
        "conditions": [condition("Initialized", true), condition("Ready", running), condition("ContainersReady", running)],
    });
    if !state["waiting"].is_object() && !started {
        let ip = format!("10.244.0.{}", addresses.fetch_add(1, Ordering::Relaxed));
        next["podIP"] = ip.clone().into();
        next["podIPs"] = json!([{"ip": ip}]);
    }
    Some(next)
}

/// Waits until the account and certificates of a new namespace are there, as a pod in it would.
pub(crate) async fn namespace_ready(client: &Client, namespace: &str) -> Result<()> {
    use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    appears(accounts, "default").await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    appears(maps, "kube-root-ca.crt").await
}

async fn appears<K>(api: Api<K>, name: &str) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let objects = watcher(api, config).default_backoff().applied_objects();
    let mut objects = std::pin::pin!(objects);
    let first = tokio::time::timeout(std::time::Duration::from_secs(30), objects.try_next());
    first.await.with_context(|| format!("{name} did not appear within 30 s"))??;
    Ok(())
}
