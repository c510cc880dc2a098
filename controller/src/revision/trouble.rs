//! Why a pod does not come up.
//!
//! Most of it is in the pod's own status. A volume that cannot be mounted and a probe that fails are not: about these only Events and the
//! sidecar know, and they are asked only once a pod has been on its way for longer than usual.

use ebb_api::meta::ebb::QUEUE_PROXY;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use std::time::Duration;

pub(super) const AVAILABLE: &str = "ResourcesAvailable";
pub(super) const HEALTHY: &str = "ContainerHealthy";
/// A pod that is on its way for longer is looked into.
pub const USUAL: Duration = Duration::from_secs(2);
/// The longest text that is taken over from elsewhere.
const LONGEST: usize = 1024;

/// Waiting for these is in vain until somebody changes something. Kubelet's words for images are in its `images` package.
const HOPELESS: &[&str] = &[
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// What keeps a pod from serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The condition of the revision that it is about.
    pub condition: &'static str,
    /// In one word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Waiting is in vain: somebody has to change something.
    pub is_final: bool,
}

/// Why a pod does not come up, if its status tells. Kubernetes' word for a container that waits is taken for a failure once the
/// Deployment is `late`.
pub(super) fn of_pod(pod: &Pod, always_schedulable: bool, late: bool) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    if !always_schedulable {
        let refused =
            status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        if let Some(c) = refused {
            return Some(Trouble {
                condition: AVAILABLE,
                reason: c.reason.clone().unwrap_or_else(|| "Unschedulable".into()),
                message: c.message.clone().unwrap_or_default(),
                is_final: true,
            });
        }
    }
    let all =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let (mut own, sidecar): (Vec<_>, Vec<_>) = all.partition(|c| c.name != QUEUE_PROXY);
    // The sidecar's own failure matters only if the app's containers have nothing to say.
    own.extend(sidecar);
    own.into_iter().find_map(|container| of_container(container, late))
}

fn of_container(container: &ContainerStatus, late: bool) -> Option<Trouble> {
    let state = container.state.as_ref();
    let ended = container
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref())
        .or_else(|| state.and_then(|s| s.terminated.as_ref()).filter(|t| t.exit_code != 0));
    if let Some(ended) = ended {
        let said = short(ended.message.as_deref().unwrap_or_default());
        let message = match (ended.reason.as_deref(), said) {
            (Some("OOMKilled"), "") => "out of memory: raise resources.limits.memory".into(),
            (Some("OOMKilled"), said) => {
                format!("out of memory: raise resources.limits.memory; its last words: {said}")
            }
            (_, "") if ended.exit_code == 0 => "container exited with no error".into(),
            (_, "") => format!("exit code {} and no last words", ended.exit_code),
            (_, said) => said.to_owned(),
        };
        return Some(Trouble {
            condition: HEALTHY,
            reason: format!("ExitCode{}", ended.exit_code),
            message: format!("Container failed with: {message}"),
            is_final: true,
        });
    }
    let waiting = state.and_then(|s| s.waiting.as_ref())?;
    let reason = waiting.reason.clone()?;
    let passing = ["ContainerCreating", "PodInitializing"].contains(&reason.as_str());
    let told = HOPELESS.contains(&reason.as_str()) || late && !passing;
    told.then(|| Trouble {
        condition: AVAILABLE,
        reason,
        message: waiting.message.clone().unwrap_or_default(),
        is_final: true,
    })
}

/// For how long a pod has been on its way to a node's containers; none if it is not.
pub(super) fn age(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let status = pod.status.as_ref()?;
    let holds = |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_);
    let scheduled = holds("PodScheduled").filter(|c| c.status == "True")?;
    if pod.metadata.deletion_timestamp.is_some() || holds("Ready").is_some_and(|c| c.status == "True") {
        return None;
    }
    let since = scheduled.last_transition_time.as_ref().map(|t| t.0)?;
    Some(Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

/// How long until a pod of this age is looked into, or looked into again: the longer it takes already, the less is new.
pub fn pause(age: Duration) -> Duration {
    if age < USUAL { USUAL - age } else { (age / 4).clamp(Duration::from_secs(1), Duration::from_secs(60)) }
}

/// Whether any container of a pod has been started.
fn has_started(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let inits = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let all = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    inits.iter().chain(all).any(|c| c.state.as_ref().is_some_and(|s| s.waiting.is_none()))
}

impl Trouble {
    /// Whether it can still be what keeps the pod: volumes and sandboxes come before the first container, probes after.
    pub(super) fn fits(&self, pod: &Pod) -> bool {
        has_started(pod) == (self.condition == HEALTHY)
    }
}

/// What the Events of a pod tell: the last that warns of a volume, a sandbox or a probe.
pub fn of_events(pod: &Pod, events: &[Event]) -> Option<Trouble> {
    let told = |event: &&Event| event.type_.as_deref() == Some("Warning");
    let at = |event: &Event| {
        let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref()).map(|t| t.0);
        let last = event.last_timestamp.as_ref().map(|t| t.0);
        series.or(last).or_else(|| event.event_time.as_ref().map(|t| t.0))
    };
    let known: &[&str] = match has_started(pod) {
        true => &["Unhealthy"],
        false => &["FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"],
    };
    let last = events
        .iter()
        .filter(told)
        .filter(|e| e.reason.as_deref().is_some_and(|r| known.contains(&r)))
        .max_by_key(|e| at(e))?;
    let message = short(last.message.as_deref().unwrap_or_default()).to_owned();
    if last.reason.as_deref() == Some("Unhealthy") {
        // The sidecar's probe says that the app is not ready, and no more.
        let path = last.involved_object.field_path.as_deref().unwrap_or_default();
        let sidecar = path.contains(QUEUE_PROXY);
        return (!sidecar).then(|| unready(&message));
    }
    let missing = ["not found", "non-existent"];
    Some(Trouble {
        condition: AVAILABLE,
        reason: last.reason.clone().unwrap_or_default(),
        is_final: missing.iter().any(|m| message.contains(m)),
        message,
    })
}

/// What the sidecar answers to a probe while the app is not ready.
pub fn of_sidecar(answer: &str) -> Option<Trouble> {
    let answer = short(answer);
    (!answer.is_empty()).then(|| unready(&format!("Readiness probe failed: {answer}")))
}

fn unready(message: &str) -> Trouble {
    Trouble { condition: HEALTHY, reason: "Unhealthy".into(), message: message.to_owned(), is_final: false }
}

fn short(text: &str) -> &str {
    let text = text.trim();
    let start = text.len().saturating_sub(LONGEST);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    // The end is where the cause stands.
    &text[start..]
}
