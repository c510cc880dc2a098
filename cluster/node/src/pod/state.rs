//! Everything a pod's worker knows, and how events change it. No IO, no clock: the time is an argument.

use std::net::Ipv4Addr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, EphemeralContainer, Pod};

use super::backoff::Backoff;

/// One pod on this node.
#[derive(Debug, Clone)]
pub(crate) struct PodState {
    /// The latest object seen.
    pub(crate) pod: Pod,
    /// Init containers in order, then the others, then ephemeral ones as they came.
    pub(crate) containers: Vec<ContainerState>,
    /// The specs of ephemeral containers, as those of any container.
    ephemeral: Vec<Container>,
    pub(crate) sandbox: Sandbox,
    pub(crate) volumes: Stage,
    /// The object is gone from the API: nothing is to be reported any more.
    pub(crate) gone: bool,
    /// Why the pod as a whole has failed (its deadline), reason and message.
    pub(crate) failed: Option<(String, String)>,
    /// When this node first saw the pod.
    pub(crate) started_at: Timestamp,
    /// The last deletion of the object has been asked for.
    pub(crate) delete_sent: bool,
    /// When this instance began to stop the pod, for pods that have no deletion timestamp.
    pub(crate) stopping_since: Option<Timestamp>,
}

/// A step that may be under way, done or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Absent,
    Working,
    Ready,
    Failed(Failure),
}

/// A failed step that is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
    pub(crate) retry_at: Timestamp,
}

/// The pod's namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sandbox {
    Absent,
    Making,
    Ready(Option<Ipv4Addr>),
    Failed(Failure),
    Removing(Option<Ipv4Addr>),
    Removed(Option<Ipv4Addr>),
}

impl Sandbox {
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Ready(address) | Self::Removing(address) | Self::Removed(address) => *address,
            _ => None,
        }
    }
}

/// What role a container has in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Must end with 0 before the next one starts.
    Init,
    /// An init container with restartPolicy Always: runs beside the others, ends after them.
    Sidecar,
    Main,
    /// Added to a running pod to look into it: starts once, and nothing depends on it.
    Ephemeral,
}

#[derive(Debug, Clone)]
pub(crate) struct ContainerState {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) image: Stage,
    pub(crate) image_backoff: Backoff,
    /// What the image turned out to be: reference and id for the status.
    pub(crate) image_id: Option<String>,
    pub(crate) run: Run,
    pub(crate) last: Option<Ended>,
    pub(crate) restarts: i32,
    /// Whether this process has started it before: then the next start is a restart.
    pub(crate) tried: bool,
    /// It was past its startup once: a sidecar then no longer holds the others back.
    pub(crate) passed: bool,
    pub(crate) backoff: Backoff,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Run {
    Waiting,
    Starting,
    Running(Running),
    Ended(Ended),
    /// It could not be started.
    Refused(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) since: Timestamp,
    /// postStart and the startup probe are through.
    pub(crate) started: bool,
    pub(crate) ready: bool,
    pub(crate) stopping: Option<Stopping>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stopping {
    pub(crate) deadline: Timestamp,
    pub(crate) killed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
}

/// What happened. Container numbers index [`PodState::containers`].
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The object changed.
    Changed(Box<Pod>),
    /// The object is gone.
    Gone,
    SandboxReady(Option<Ipv4Addr>),
    SandboxFailed(String),
    SandboxRemoved,
    VolumesReady,
    VolumesFailed(String),
    ImageReady(usize, String),
    /// Reason as in the status, and message.
    ImageFailed(usize, String, String),
    Started(usize, String),
    /// Reason as in the status, and message.
    StartFailed(usize, String, String),
    /// Container, its id, code, signal, out of memory, termination message.
    Exited(usize, String, ExitFacts),
    /// Hooks and startup probe of the container with this id are through.
    StartedUp(usize, String),
    /// The readiness of the container with this id.
    Readiness(usize, String, bool),
    /// A probe or hook failed for good: the container with this id must be stopped, within the probe's own grace if it has one.
    Unhealthy(usize, String, Option<i64>),
    Tick,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct ExitFacts {
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) oom: bool,
    pub(crate) message: Option<String>,
}

impl PodState {
    /// A pod as it is first seen. A status from an earlier process of this node counts its restarts on.
    pub(crate) fn new(pod: Pod, now: Timestamp) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let known: Vec<ContainerStatus> = status
            .init_container_statuses
            .into_iter()
            .flatten()
            .chain(status.container_statuses.into_iter().flatten())
            .collect();
        let mut containers = Vec::new();
        for container in spec.init_containers.iter().flatten() {
            let sidecar = container.restart_policy.as_deref() == Some("Always");
            containers.push(ContainerState::new(
                container,
                if sidecar { Kind::Sidecar } else { Kind::Init },
                &known,
                now,
            ));
        }
        for container in &spec.containers {
            containers.push(ContainerState::new(container, Kind::Main, &known, now));
        }
        let started_at = status.start_time.map_or(now, |time| time.0);
        let phase = status.phase.unwrap_or_default();
        let failed = (phase == "Failed")
            .then(|| (status.reason.unwrap_or_default(), status.message.unwrap_or_default()));
        if !matches!(phase.as_str(), "Succeeded" | "Failed") {
            // The sandbox is a new one, so what init containers prepared is prepared again.
            for container in containers.iter_mut().filter(|container| container.kind != Kind::Main) {
                if let Run::Ended(ended) = std::mem::replace(&mut container.run, Run::Waiting) {
                    container.last = Some(ended);
                }
            }
        }
        let mut state = Self {
            pod,
            containers,
            ephemeral: Vec::new(),
            sandbox: Sandbox::Absent,
            volumes: Stage::Absent,
            gone: false,
            failed,
            started_at,
            delete_sent: false,
            stopping_since: None,
        };
        state.add_ephemeral(now);
        state
    }

    /// Takes in ephemeral containers that are new in the object; they are never changed or removed.
    fn add_ephemeral(&mut self, now: Timestamp) {
        let wanted =
            self.pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default();
        let known =
            self.pod.status.as_ref().and_then(|status| status.ephemeral_container_statuses.as_deref());
        for container in &wanted[self.ephemeral.len().min(wanted.len())..] {
            let container = plain(container);
            let mut state = ContainerState::new(&container, Kind::Ephemeral, known.unwrap_or_default(), now);
            if let Some(ended) = state.last.take() {
                // It ended with an earlier process of this node, and is not started twice.
                state.restarts = 0;
                state.run = Run::Ended(ended);
            }
            self.containers.push(state);
            self.ephemeral.push(container);
        }
    }

    /// The container's part of the pod's spec.
    pub(crate) fn spec_of(&self, index: usize) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        inits.iter().chain(&spec.containers).chain(&self.ephemeral).nth(index)
    }

    /// The container whose processes an ephemeral one wants to see.
    pub(crate) fn target_of(&self, index: usize) -> Option<&str> {
        let spec = self.pod.spec.as_ref()?;
        let place = index.checked_sub(self.containers.len() - self.ephemeral.len())?;
        let container = spec.ephemeral_containers.as_deref()?.get(place)?;
        container.target_container_name.as_deref().filter(|name| !name.is_empty())
    }

    pub(crate) fn restart_policy(&self) -> &str {
        self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
    }

    /// `namespace/name`, for messages.
    pub(crate) fn label(&self) -> String {
        let metadata = &self.pod.metadata;
        format!(
            "{}_{}({})",
            metadata.name.as_deref().unwrap_or_default(),
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.uid.as_deref().unwrap_or_default()
        )
    }

    /// Whether a container that ended that way is started again.
    pub(crate) fn restarts(&self, kind: Kind, code: i32) -> bool {
        match (kind, self.restart_policy()) {
            (Kind::Sidecar, _) => true,
            (Kind::Ephemeral, _) | (_, "Never") => false,
            (Kind::Main, "Always") => true,
            _ => code != 0,
        }
    }

    /// Whether every init container has done its part.
    pub(crate) fn initialized(&self) -> bool {
        self.containers.iter().all(ContainerState::init_done)
    }

    /// Succeeded (true) or failed (false), once all is over and nothing will be started again.
    pub(crate) fn outcome(&self) -> Option<bool> {
        if self.failed.is_some() {
            return Some(false);
        }
        let over = |container: &ContainerState| match &container.run {
            Run::Ended(ended) if !self.restarts(container.kind, ended.code) => Some(ended.code == 0),
            _ => None,
        };
        if self.containers.iter().any(|c| c.kind == Kind::Init && over(c) == Some(false)) {
            return Some(false);
        }
        let mut success = true;
        for container in self.containers.iter().filter(|container| container.kind == Kind::Main) {
            success &= over(container)?;
        }
        Some(success)
    }

    /// Applies an event.
    pub(crate) fn apply(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Changed(pod) => {
                self.pod = *pod;
                self.add_ephemeral(now);
            }
            Event::Gone => {
                self.gone = true;
                self.stopping_since.get_or_insert(now);
            }
            Event::SandboxReady(address) => self.sandbox = Sandbox::Ready(address),
            Event::SandboxFailed(message) => {
                self.sandbox = Sandbox::Failed(Failure::new("FailedCreatePodSandBox", message, now));
            }
            Event::SandboxRemoved => self.sandbox = Sandbox::Removed(self.sandbox.address()),
            Event::VolumesReady => self.volumes = Stage::Ready,
            Event::VolumesFailed(message) => {
                self.volumes = Stage::Failed(Failure::new("FailedMount", message, now));
            }
            Event::Tick => {}
            Event::ImageReady(index, id) => {
                let container = &mut self.containers[index];
                container.image = Stage::Ready;
                container.image_id = Some(id);
                container.image_backoff = Backoff::default();
            }
            Event::ImageFailed(index, reason, message) => {
                let container = &mut self.containers[index];
                container.image_backoff.retry(now, now);
                let retry_at = container.image_backoff.ready_at(now);
                container.image = Stage::Failed(Failure { reason, message, at: now, retry_at });
            }
            Event::Started(index, id) => {
                let running = Running { id, since: now, started: false, ready: false, stopping: None };
                self.containers[index].run = Run::Running(running);
            }
            Event::StartFailed(index, reason, message) => self.start_failed(index, reason, message, now),
            Event::Exited(index, id, facts) => self.exited(index, &id, facts, now),
            Event::StartedUp(index, id) => {
                let container = &mut self.containers[index];
                if let Some(running) = container.running(&id) {
                    running.started = true;
                    container.passed = true;
                }
            }
            Event::Readiness(index, id, ready) => {
                if let Some(running) = self.containers[index].running(&id) {
                    running.ready = ready;
                }
            }
            Event::Unhealthy(index, id, grace) => {
                let grace = self.grace_of(grace);
                if let Some(running) = self.containers[index].running(&id)
                    && running.stopping.is_none()
                {
                    running.ready = false;
                    running.stopping = Some(Stopping { deadline: now + grace, killed: false });
                }
            }
        }
    }

    /// How long containers are given to end.
    pub(crate) fn grace(&self) -> SignedDuration {
        let spec = self.pod.spec.as_ref();
        let seconds = self
            .pod
            .metadata
            .deletion_grace_period_seconds
            .or_else(|| spec.and_then(|spec| spec.termination_grace_period_seconds))
            .unwrap_or(30);
        SignedDuration::from_secs(seconds.max(0))
    }

    /// How long a container is given to end whose probe has a grace of its own, or none; a deletion's counts before either.
    pub(crate) fn grace_of(&self, probe: Option<i64>) -> SignedDuration {
        let deleted = self.pod.metadata.deletion_grace_period_seconds.is_some();
        let own = probe.filter(|seconds| *seconds > 0 && !deleted);
        own.map_or_else(|| self.grace(), SignedDuration::from_secs)
    }

    fn start_failed(&mut self, index: usize, reason: String, message: String, now: Timestamp) {
        let container = &mut self.containers[index];
        if matches!(reason.as_str(), "StartError") {
            // The container existed and its program could not be executed: it counts as having run and failed.
            let ended = Ended {
                id: String::new(),
                code: 128,
                signal: None,
                reason,
                message: Some(message),
                started_at: None,
                finished_at: now,
            };
            container.run = Run::Ended(ended);
        } else {
            if reason == "RunContainerError" {
                // Perhaps its layers went while it was being started, when the disk was full: asking for an image that is there costs little.
                container.image = Stage::Absent;
            }
            // Configuration errors (a missing ConfigMap) mend themselves without notice: look again every few seconds.
            container.run = Run::Refused(Failure::new(&reason, message, now));
        }
    }

    fn exited(&mut self, index: usize, id: &str, facts: ExitFacts, now: Timestamp) {
        let always =
            self.spec_of(index).is_some_and(|spec| spec.image_pull_policy.as_deref() == Some("Always"));
        let container = &mut self.containers[index];
        let since = match &container.run {
            Run::Running(running) if running.id == id => running.since,
            // The exit can overtake the answer to the start; then the worker delivers it after `Started`.
            _ => return,
        };
        let reason = if facts.oom {
            "OOMKilled"
        } else if facts.code == 0 {
            "Completed"
        } else {
            "Error"
        };
        container.run = Run::Ended(Ended {
            id: id.to_owned(),
            code: facts.code,
            signal: facts.signal,
            reason: reason.to_owned(),
            message: facts.message,
            started_at: Some(since),
            finished_at: now,
        });
        if always {
            container.image = Stage::Absent;
        }
    }
}

/// An ephemeral container as any other: it has the same fields and one more, which [`PodState::target_of`] gives.
fn plain(container: &EphemeralContainer) -> Container {
    let value = serde_json::to_value(container).and_then(serde_json::from_value);
    value.unwrap_or_else(|_| Container { name: container.name.clone(), ..Container::default() })
}

impl ContainerState {
    fn new(container: &Container, kind: Kind, known: &[ContainerStatus], now: Timestamp) -> Self {
        let before = known.iter().find(|status| status.name == container.name);
        let state = before.and_then(|status| status.state.as_ref());
        let mut restarts = before.map_or(0, |status| status.restart_count);
        let mut run = Run::Waiting;
        let mut last = None;
        let ended = |terminated: &k8s_openapi::api::core::v1::ContainerStateTerminated| Ended {
            id: terminated
                .container_id
                .clone()
                .unwrap_or_default()
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
            code: terminated.exit_code,
            signal: terminated.signal,
            reason: terminated.reason.clone().unwrap_or_default(),
            message: terminated.message.clone(),
            started_at: terminated.started_at.as_ref().map(|time| time.0),
            finished_at: terminated.finished_at.as_ref().map_or(now, |time| time.0),
        };
        if let Some(running) = state.and_then(|state| state.running.as_ref()) {
            // It ran when the node's process ended, and that ended it too.
            restarts += 1;
            last = Some(Ended {
                id: before
                    .and_then(|status| status.container_id.clone())
                    .unwrap_or_default()
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                code: 137,
                signal: None,
                reason: "NodeRestart".to_owned(),
                message: Some("The node agent was restarted while this container ran".to_owned()),
                started_at: running.started_at.as_ref().map(|time| time.0),
                finished_at: now,
            });
        } else if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
            run = Run::Ended(ended(terminated));
        } else if let Some(terminated) =
            before.and_then(|status| status.last_state.as_ref()).and_then(|state| state.terminated.as_ref())
        {
            last = Some(ended(terminated));
        }
        Self {
            name: container.name.clone(),
            kind,
            image: Stage::Absent,
            image_backoff: Backoff::default(),
            image_id: before.map(|status| status.image_id.clone()).filter(|id| !id.is_empty()),
            tried: matches!(run, Run::Ended(_)),
            passed: false,
            run,
            last,
            restarts,
            backoff: Backoff::default(),
        }
    }

    fn running(&mut self, id: &str) -> Option<&mut Running> {
        match &mut self.run {
            Run::Running(running) if running.id == id => Some(running),
            _ => None,
        }
    }

    /// Whether the container, if it is an init container, lets the next one start.
    pub(crate) fn init_done(&self) -> bool {
        match self.kind {
            Kind::Main | Kind::Ephemeral => true,
            Kind::Init => matches!(&self.run, Run::Ended(ended) if ended.code == 0),
            Kind::Sidecar => self.passed,
        }
    }

    /// Whether it runs and is past its startup probe.
    pub(crate) fn is_started(&self) -> bool {
        matches!(&self.run, Run::Running(running) if running.started)
    }

    /// Whether a process of it exists or is about to.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.run, Run::Starting | Run::Running(_))
    }

    /// Notes that a start has been ordered.
    pub(crate) fn begin_start(&mut self, now: Timestamp) {
        if let Run::Ended(ended) = &self.run {
            self.backoff.retry(ended.finished_at, now);
            self.last = Some(ended.clone());
            if self.tried {
                self.restarts += 1;
            }
        }
        self.tried = true;
        self.run = Run::Starting;
    }
}

impl Failure {
    fn new(reason: &str, message: String, now: Timestamp) -> Self {
        Self { reason: reason.to_owned(), message, at: now, retry_at: now + SignedDuration::from_secs(2) }
    }
}
