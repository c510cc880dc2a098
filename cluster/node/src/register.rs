//! The Node object, and the Lease that says that the node is alive.

use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// What the node is and has.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) pod_cidr: String,
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: i64,
    pub(crate) disk_bytes: u64,
    pub(crate) version: String,
    pub(crate) max_pods: u32,
    /// Controllers of cgroups that containers do not have.
    pub(crate) unenforced: Vec<&'static str>,
}

impl Facts {
    /// Reads the machine's figures.
    pub(crate) fn memory_of_machine() -> i64 {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<i64>().ok());
        kibibytes.unwrap_or(0) * 1024
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn os_image() -> String {
    read("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn labels(facts: &Facts) -> Value {
    json!({
        "kubernetes.io/hostname": facts.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture(),
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": architecture(),
        "node-role.kubernetes.io/control-plane": "",
    })
}

/// The status of the Node object.
fn status(facts: &Facts, now: Timestamp) -> Value {
    let resources = json!({
        "cpu": facts.cpus.to_string(),
        "memory": format!("{}Ki", facts.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", facts.disk_bytes / 1024),
        "pods": facts.max_pods.to_string(),
    });
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({ "type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": time, "lastTransitionTime": time })
    };
    let mut status = json!({
        "capacity": resources,
        "allocatable": resources,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "the node has sufficient memory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "the node has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "the node has sufficient process numbers"),
            condition("Ready", "True", "KubeletReady", "the node takes pods"),
        ],
        "addresses": [
            { "type": "InternalIP", "address": facts.address.to_string() },
            { "type": "Hostname", "address": facts.name },
        ],
        "nodeInfo": {
            "architecture": architecture(),
            "operatingSystem": "linux",
            "osImage": os_image(),
            "kernelVersion": read("/proc/sys/kernel/osrelease"),
            "machineID": read("/etc/machine-id"),
            "systemUUID": read("/etc/machine-id"),
            "bootID": read("/proc/sys/kernel/random/boot_id"),
            "containerRuntimeVersion": concat!("cluster-node://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": facts.version,
            "kubeProxyVersion": facts.version,
        },
    });
    if let (false, Some(conditions)) = (facts.unenforced.is_empty(), status["conditions"].as_array_mut()) {
        let message = format!(
            "containers are not held to their limits of: {} (no cgroup with these controllers may be made here)",
            facts.unenforced.join(", ")
        );
        conditions.push(condition("LimitsNotEnforced", "True", "NoCgroups", &message));
    }
    status
}

/// Creates or refreshes the Node object.
pub(crate) async fn register(client: &Client, facts: &Facts) -> Result<String, kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let spec = json!({ "podCIDR": facts.pod_cidr, "podCIDRs": [facts.pod_cidr] });
    let node: Node = serde_json::from_value(json!({
        "metadata": { "name": facts.name, "labels": labels(facts) }, "spec": spec,
    }))
    .map_err(kube::Error::SerdeError)?;
    let created = match api.create(&PostParams::default(), &node).await {
        Ok(created) => created,
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({ "metadata": { "labels": labels(facts) } });
            api.patch(&facts.name, &PatchParams::default(), &Patch::Merge(patch)).await?
        }
        Err(error) => return Err(error),
    };
    let patch = json!({ "status": status(facts, Timestamp::now()) });
    api.patch_status(&facts.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(created.metadata.uid.unwrap_or_default())
}

/// Says that the node is down, so that a stop is seen at once.
pub(crate) async fn unready(client: &Client, facts: &Facts) {
    let api: Api<Node> = Api::all(client.clone());
    let mut status = status(facts, Timestamp::now());
    if let Some(ready) = status.pointer_mut("/conditions/3") {
        ready["status"] = json!("Unknown");
        ready["reason"] = json!("NodeStatusUnknown");
        ready["message"] = json!("the node agent was stopped");
    }
    let patch = json!({ "status": { "conditions": status["conditions"] } });
    let _ = api.patch_status(&facts.name, &PatchParams::default(), &Patch::Merge(patch)).await;
}

/// How often the lease is renewed, and how long it is valid.
const RENEW: Duration = Duration::from_secs(10);
const VALID_SECONDS: i32 = 40;

/// Renews the node's lease until shutdown.
pub(crate) async fn heartbeat(client: Client, name: String, uid: String, shutdown: CancellationToken) {
    let api: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let mut known = false;
    loop {
        let renewed = format!("{:.6}", Timestamp::now());
        let spec =
            json!({ "holderIdentity": name, "leaseDurationSeconds": VALID_SECONDS, "renewTime": renewed });
        let result = if known {
            api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({ "spec": spec })))
                .await
                .map(|_| ())
        } else {
            let lease = serde_json::from_value(json!({
                "metadata": { "name": name, "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }] },
                "spec": spec,
            }));
            match lease {
                Ok(lease) => api.create(&PostParams::default(), &lease).await.map(|_| ()),
                Err(error) => Err(kube::Error::SerdeError(error)),
            }
        };
        let mut wait = RENEW;
        match result {
            Ok(()) => known = true,
            Err(kube::Error::Api(status)) if status.code == 409 && !known => {
                known = true;
                continue;
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                // The namespace is made by a controller that may start after the node.
                known = false;
                wait = Duration::from_secs(1);
            }
            Err(error) => warn!(%error, "the node's lease was not renewed"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_do_not_hold_are_told() {
        let mut facts = Facts {
            name: "node".to_owned(),
            address: Ipv4Addr::LOCALHOST,
            pod_cidr: String::new(),
            cpus: 2,
            memory_bytes: 1 << 30,
            disk_bytes: 1 << 30,
            version: "v1".to_owned(),
            max_pods: 10,
            unenforced: Vec::new(),
        };
        let told = |facts: &Facts| status(facts, Timestamp::UNIX_EPOCH)["conditions"].clone();
        assert_eq!(told(&facts).as_array().unwrap().len(), 4);
        facts.unenforced = vec!["cpu", "memory"];
        let last = told(&facts)[4].clone();
        assert_eq!((&last["type"], &last["status"]), (&json!("LimitsNotEnforced"), &json!("True")));
        assert!(last["message"].as_str().unwrap().contains("cpu, memory"));
    }
}
