//! The status of a pod as Kubernetes shows it, from the worker's state. Pure.

pub(crate) mod writer;

use std::net::Ipv4Addr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::state::{ContainerState, Ended, Kind, PodState, Run, Sandbox, Stage};

/// How long a failed pull shows as ErrImagePull before it shows as ImagePullBackOff.
pub(crate) const SHOW_PULL_ERROR: SignedDuration = SignedDuration::from_secs(2);

/// The name before `://` of container ids in the status.
pub(crate) const ID_SCHEME: &str = "oci";

/// Builds the status. `previous` gives the conditions' transition times and conditions that others own.
pub(crate) fn build(state: &PodState, previous: &PodStatus, host_ip: Ipv4Addr, now: Timestamp) -> PodStatus {
    let host_network = state.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let address =
        state.sandbox.address().or((host_network && state.sandbox != Sandbox::Absent).then_some(host_ip));
    let statuses = |kinds: &[Kind]| -> Vec<ContainerStatus> {
        state
            .containers
            .iter()
            .enumerate()
            .filter(|(_, container)| kinds.contains(&container.kind))
            .map(|(index, container)| container_status(state, index, container, now))
            .collect()
    };
    let init_statuses = statuses(&[Kind::Init, Kind::Sidecar]);
    let ephemeral_statuses = statuses(&[Kind::Ephemeral]);
    let outcome = state.outcome();
    let phase = match outcome {
        Some(true) if finished(state) => "Succeeded",
        Some(false) if finished(state) => "Failed",
        _ if !state.initialized() && !ever_ran(state) => "Pending",
        _ if ever_ran(state) => "Running",
        _ => "Pending",
    };
    let (reason, message) = state.failed.clone().map_or((None, None), |(r, m)| (Some(r), Some(m)));
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        host_ip: Some(host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: host_ip.to_string() }]),
        pod_ip: address.map(|ip| ip.to_string()),
        pod_ips: address.map(|ip| vec![PodIP { ip: ip.to_string() }]),
        start_time: Some(Time(state.started_at)),
        container_statuses: Some(statuses(&[Kind::Main])),
        ephemeral_container_statuses: (!ephemeral_statuses.is_empty()).then_some(ephemeral_statuses),
        init_container_statuses: (!init_statuses.is_empty()).then_some(init_statuses),
        conditions: Some(conditions(state, previous, phase, now)),
        qos_class: previous.qos_class.clone(),
        ..PodStatus::default()
    }
}

/// Does anybody act on what changed? That a container has been made, that it has an image, or that the pod has an address before it is
/// ready, is only looked at by people.
pub(crate) fn is_news(old: &PodStatus, new: &PodStatus) -> bool {
    let ready = |status: &PodStatus| {
        let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        condition.is_some_and(|condition| condition.status == "True")
    };
    let over = |status: &PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let trouble = |status: &PodStatus| -> Vec<_> {
        let statuses = status.container_statuses.iter().flatten();
        let told = statuses.map(|container| {
            let state = container.state.clone().unwrap_or_default();
            let waits = state.waiting.and_then(|waiting| waiting.reason);
            let waits =
                waits.filter(|reason| !matches!(reason.as_str(), "ContainerCreating" | "PodInitializing"));
            (waits, state.terminated, container.restart_count, container.last_state.clone())
        });
        told.collect()
    };
    ready(old) != ready(new)
        || over(old) != over(new)
        || old.reason != new.reason
        || old.init_container_statuses != new.init_container_statuses
        || old.container_statuses.is_some() && trouble(old) != trouble(new)
}

/// Whether nothing of the pod runs any more.
fn finished(state: &PodState) -> bool {
    !state.containers.iter().any(ContainerState::is_alive)
}

fn ever_ran(state: &PodState) -> bool {
    state
        .containers
        .iter()
        .filter(|c| c.kind == Kind::Main)
        .any(|container| matches!(container.run, Run::Running(_) | Run::Ended(_)) || container.last.is_some())
}

fn is_ready(container: &ContainerState) -> bool {
    match (&container.run, container.kind) {
        (Run::Running(running), _) => running.started && running.ready,
        (Run::Ended(ended), Kind::Init) => ended.code == 0,
        _ => false,
    }
}

fn container_status(
    state: &PodState,
    index: usize,
    container: &ContainerState,
    now: Timestamp,
) -> ContainerStatus {
    let spec = state.spec_of(index);
    let id = match &container.run {
        Run::Running(running) => Some(running.id.as_str()),
        Run::Ended(ended) => Some(ended.id.as_str()),
        _ => container.last.as_ref().map(|ended| ended.id.as_str()),
    };
    let (current, last) = api_state(state, container, now);
    ContainerStatus {
        name: container.name.clone(),
        image: spec.and_then(|spec| spec.image.clone()).unwrap_or_default(),
        image_id: container.image_id.clone().unwrap_or_default(),
        container_id: id.filter(|id| !id.is_empty()).map(|id| format!("{ID_SCHEME}://{id}")),
        ready: is_ready(container),
        started: Some(container.is_started()),
        restart_count: container.restarts,
        state: Some(current),
        last_state: last.map(|ended| ApiState { terminated: Some(terminated(ended)), ..ApiState::default() }),
        ..ContainerStatus::default()
    }
}

fn terminated(ended: &Ended) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: (!ended.id.is_empty()).then(|| format!("{ID_SCHEME}://{}", ended.id)),
        exit_code: ended.code,
        signal: ended.signal,
        reason: Some(ended.reason.clone()),
        message: ended.message.clone(),
        started_at: ended.started_at.map(Time),
        finished_at: Some(Time(ended.finished_at)),
    }
}

fn waiting(reason: &str, message: Option<String>) -> ApiState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ApiState { waiting: Some(waiting), ..ApiState::default() }
}

/// The container's state and what came before it.
fn api_state<'a>(
    state: &PodState,
    container: &'a ContainerState,
    now: Timestamp,
) -> (ApiState, Option<&'a Ended>) {
    let last = container.last.as_ref();
    let blocked = container.kind == Kind::Main && !state.initialized();
    match &container.run {
        Run::Running(running) => {
            let running = ContainerStateRunning { started_at: Some(Time(running.since)) };
            (ApiState { running: Some(running), ..ApiState::default() }, last)
        }
        Run::Ended(ended) => {
            let restarts = state.restarts(container.kind, ended.code)
                && state.failed.is_none()
                && state.pod.metadata.deletion_timestamp.is_none();
            let wait = container.backoff.current(ended.finished_at);
            match (restarts, wait) {
                (true, Some(wait)) if now >= ended.finished_at => {
                    let message = format!(
                        "back-off {} restarting failed container={} pod={}",
                        human(wait),
                        container.name,
                        state.label()
                    );
                    (waiting("CrashLoopBackOff", Some(message)), Some(ended))
                }
                _ => (ApiState { terminated: Some(terminated(ended)), ..ApiState::default() }, last),
            }
        }
        Run::Refused(failure) => (waiting(&failure.reason, Some(failure.message.clone())), last),
        Run::Waiting | Run::Starting => match &container.image {
            Stage::Failed(failure) => {
                let permanent = matches!(failure.reason.as_str(), "InvalidImageName" | "ErrImageNeverPull");
                if permanent || now < failure.at + SHOW_PULL_ERROR {
                    (waiting(&failure.reason, Some(failure.message.clone())), last)
                } else {
                    let message = format!("Back-off pulling image: {}", failure.message);
                    (waiting("ImagePullBackOff", Some(message)), last)
                }
            }
            _ if blocked => (waiting("PodInitializing", None), last),
            _ => (waiting("ContainerCreating", None), last),
        },
    }
}

/// As Go prints durations of whole seconds: 10s, 1m20s, 5m0s.
fn human(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

fn conditions(state: &PodState, previous: &PodStatus, phase: &str, now: Timestamp) -> Vec<PodCondition> {
    let names = |unfit: &dyn Fn(&ContainerState) -> bool| {
        let list: Vec<&str> = state.containers.iter().filter(|c| unfit(c)).map(|c| c.name.as_str()).collect();
        list.join(" ")
    };
    let over = matches!(phase, "Succeeded" | "Failed");
    let completed = |reason: &str| match phase {
        "Succeeded" => ("False", Some("PodCompleted".to_owned()), None),
        _ => ("False", Some(reason.to_owned()), None),
    };
    let uninitialized = names(&|container| !container.init_done());
    let initialized = match phase {
        "Succeeded" => ("True", Some("PodCompleted".to_owned()), None),
        _ if uninitialized.is_empty() => ("True", None, None),
        _ => (
            "False",
            Some("ContainersNotInitialized".to_owned()),
            Some(format!("containers with incomplete status: [{uninitialized}]")),
        ),
    };
    let unready =
        names(&|container| !matches!(container.kind, Kind::Init | Kind::Ephemeral) && !is_ready(container));
    let containers_ready = if over {
        completed("PodFailed")
    } else if unready.is_empty() && uninitialized.is_empty() {
        ("True", None, None)
    } else {
        (
            "False",
            Some("ContainersNotReady".to_owned()),
            Some(format!("containers with unready status: [{unready}]")),
        )
    };
    let foreign: Vec<&PodCondition> = previous
        .conditions
        .iter()
        .flatten()
        .filter(|condition| !OWN.contains(&condition.type_.as_str()))
        .collect();
    let gates = state.pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
    let closed: Vec<&str> = gates
        .into_iter()
        .flatten()
        .map(|gate| gate.condition_type.as_str())
        .filter(|gate| {
            let reported = state.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            !reported.into_iter().flatten().any(|c| c.type_ == *gate && c.status == "True")
        })
        .collect();
    let ready = if containers_ready.0 == "True" && !closed.is_empty() {
        let message = closed
            .iter()
            .map(|gate| {
                format!(
                    "corresponding condition of pod readiness gate \"{gate}\" does not exist or is not True."
                )
            })
            .collect::<Vec<_>>()
            .join(" ");
        ("False", Some("ReadinessGatesNotReady".to_owned()), Some(message))
    } else {
        containers_ready.clone()
    };
    let sandbox = if matches!(state.sandbox, Sandbox::Ready(_)) { "True" } else { "False" };
    let wanted = [
        ("PodReadyToStartContainers", (sandbox, None, None)),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", ("True", None, None)),
    ];
    let mut conditions: Vec<PodCondition> = wanted
        .into_iter()
        .map(|(kind, (status, reason, message))| {
            let before = previous.conditions.iter().flatten().find(|condition| condition.type_ == kind);
            let since = before
                .filter(|before| before.status == status)
                .and_then(|before| before.last_transition_time.clone())
                .unwrap_or(Time(now));
            PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason,
                message,
                last_transition_time: Some(since),
                ..PodCondition::default()
            }
        })
        .collect();
    conditions.extend(foreign.into_iter().cloned());
    conditions
}

const OWN: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn news_is_what_others_act_on() {
        let status = |value: serde_json::Value| serde_json::from_value::<PodStatus>(value).unwrap();
        let container = |ready: bool, state: serde_json::Value| json!([{"name": "a", "image": "i", "imageID": "", "restartCount": 0, "ready": ready, "state": state}]);
        let pending = status(json!({"phase": "Pending"}));
        let creating = status(json!({"phase": "Pending",
            "containerStatuses": container(false, json!({"waiting": {"reason": "ContainerCreating"}}))}));
        let running = status(json!({"phase": "Running", "podIP": "10.0.0.1",
            "containerStatuses": container(false, json!({"running": {}}))}));
        let ready = status(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": container(true, json!({"running": {}}))}));
        let failing = status(json!({"phase": "Pending",
            "containerStatuses": container(false, json!({"waiting": {"reason": "ErrImagePull"}}))}));
        assert!(!is_news(&pending, &creating), "it begins");
        assert!(!is_news(&creating, &running), "it runs, and nobody may send it anything yet");
        assert!(is_news(&running, &ready));
        assert!(is_news(&ready, &running), "it must get no more requests");
        assert!(is_news(&creating, &failing), "a person waits for this");
        assert!(is_news(&running, &status(json!({"phase": "Succeeded"}))));
    }
}
