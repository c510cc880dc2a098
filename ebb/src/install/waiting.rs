//! What an installation waits for, and why that is not there yet.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

/// What to do about an image that the nodes cannot get.
pub(super) const IMAGES: &str = "Write the images with `ebb image export ebb.tar` and load that file on each node (`ctr -n k8s.io images import ebb.tar`, \
    `kind load image-archive ebb.tar`, `podman load -i ebb.tar` for CRI-O, ...), or push them to a registry and name it with --image-prefix.";
const NO_IMAGE: &str = "the node cannot get the image";

/// Whether one of these lacks an image.
pub(super) fn images_are_missing(missing: &[String]) -> bool {
    missing.iter().any(|why| why.contains(NO_IMAGE))
}

/// Why a Deployment is not as it should be; none when all its pods are of the newest kind and work.
pub(super) fn missing(deployment: &Deployment, pods: &[Pod]) -> Option<String> {
    let name = deployment.name_any();
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let seen = status.observed_generation >= deployment.metadata.generation;
    let (updated, available) =
        (status.updated_replicas.unwrap_or_default(), status.available_replicas.unwrap_or_default());
    let all = status.replicas.unwrap_or_default();
    if seen && updated >= wanted && available >= wanted && all == updated {
        return None;
    }
    let failure =
        status.conditions.iter().flatten().find(|c| c.type_ == "ReplicaFailure" && c.status == "True");
    if let Some(message) = failure.and_then(|c| c.message.clone()) {
        return Some(format!("{name}: its pods are refused: {message}"));
    }
    let mut own: Vec<&Pod> = pods
        .iter()
        .filter(|p| p.labels().get("app.kubernetes.io/component") == Some(&name))
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .collect();
    // The newest is the one that is to become ready.
    own.sort_by_key(|p| std::cmp::Reverse(p.metadata.creation_timestamp.clone().map(|t| t.0)));
    match own.iter().find_map(|pod| trouble(pod)) {
        Some(why) => Some(format!("{name}: {why}")),
        None => Some(format!("{name}: {available} of {wanted} ready")),
    }
}

/// What keeps a pod from being ready, in words.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let condition =
        |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "False");
    if condition("Ready").is_none() && status.phase.as_deref() == Some("Running") {
        return None;
    }
    if let Some(unscheduled) = condition("PodScheduled") {
        let why = unscheduled.message.as_deref().unwrap_or("no node takes it");
        return Some(format!("no node takes its pod: {why}"));
    }
    status.container_statuses.iter().flatten().find_map(container_trouble)
}

fn container_trouble(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref();
    let reason = waiting.and_then(|w| w.reason.as_deref()).unwrap_or_default();
    let message = waiting.and_then(|w| w.message.as_deref()).unwrap_or_default();
    match reason {
        "ImagePullBackOff" | "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" => {
            Some(format!("{NO_IMAGE} {} ({reason})", container.image))
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(format!("its container does not start ({reason}): {message}"))
        }
        _ => {
            let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
            let ended = state.terminated.as_ref().or(last)?;
            // Its last words, for the whole log may be long.
            let said = ended.message.as_deref().unwrap_or_default().trim();
            let said = said.lines().rev().take(3).collect::<Vec<_>>();
            let said = said.into_iter().rev().collect::<Vec<_>>().join(" | ");
            let times = container.restart_count;
            Some(format!("it ended with code {} ({times} restarts): {said}", ended.exit_code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(status: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "gateway", "generation": 2}, "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": status,
        }))
        .expect("a Deployment")
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "gateway-1", "labels": {"app.kubernetes.io/component": "gateway"}}, "status": status,
        }))
        .expect("a pod")
    }

    fn container(state: Value, last: Value) -> Value {
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [{
            "name": "gateway", "image": "localhost/ebb:1", "imageID": "", "ready": false, "restartCount": 4,
            "state": state, "lastState": last,
        }]})
    }

    #[test]
    fn ready_is_all_new_and_none_old() {
        let counts = |generation: i64, updated: i32, available: i32, all: i32| {
            deployment(json!({
                "observedGeneration": generation, "updatedReplicas": updated, "availableReplicas": available, "replicas": all,
            }))
        };
        assert_eq!(missing(&counts(2, 2, 2, 2), &[]), None);
        for not in [counts(1, 2, 2, 2), counts(2, 1, 2, 3), counts(2, 2, 1, 2), counts(2, 2, 2, 3)] {
            assert!(missing(&not, &[]).is_some());
        }
        assert_eq!(missing(&counts(2, 2, 1, 2), &[]).as_deref(), Some("gateway: 1 of 2 ready"));
    }

    #[test]
    fn why_not() {
        let waiting = deployment(json!({"observedGeneration": 2}));
        let told = |status: Value| missing(&waiting, &[pod(status)]).expect("not ready");
        let image =
            told(container(json!({"waiting": {"reason": "ImagePullBackOff", "message": "x"}}), json!({})));
        assert!(
            image.contains("localhost/ebb:1") && images_are_missing(std::slice::from_ref(&image)),
            "{image}"
        );
        let crash = told(container(
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}),
            json!({"terminated": {"exitCode": 64, "message": "one\ntwo\nthree\nthe port is taken"}}),
        ));
        assert!(
            crash.contains("code 64") && crash.contains("the port is taken") && !crash.contains("one"),
            "{crash}"
        );
        let full = told(json!({
            "phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "Insufficient cpu"}],
        }));
        assert!(full.contains("no node takes its pod: Insufficient cpu"), "{full}");
        let refused = deployment(json!({"conditions": [
            {"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity"},
        ]}));
        let refused = missing(&refused, &[]).expect("not ready");
        assert!(refused.contains("violates PodSecurity"), "{refused}");
    }
}
