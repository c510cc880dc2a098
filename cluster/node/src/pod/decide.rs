//! What to do next for a pod: a pure function of what is known and the time.
//!
//! Nothing here waits for anything but events; `wake` is only set for what time itself brings about (backoff, grace,
//! deadlines). Network, volumes and all images are begun together; containers start when their own needs are met.

use jiff::{SignedDuration, Timestamp};

use super::state::{ContainerState, Kind, PodState, Run, Sandbox, Stage};

/// Something the worker has to do. Numbers index [`PodState::containers`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    MakeSandbox,
    MakeVolumes,
    Pull(usize),
    Start(usize),
    /// preStop, then the stop signal; `deadline` is when `Kill` will come.
    Stop(usize, Timestamp),
    Kill(usize),
    /// Give the whole pod up: reason and message.
    Fail(String, String),
    RemoveSandbox,
    /// Delete the object, all being over.
    Delete,
}

/// The actions, in order, and when to look again at the latest.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    pub(crate) wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Decides.
pub(crate) fn decide(state: &PodState, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if state.delete_sent {
        return plan;
    }
    if let Some(deadline) = active_deadline(state)
        && state.failed.is_none()
        && state.outcome().is_none()
    {
        if now >= deadline {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            plan.actions.push(Action::Fail("DeadlineExceeded".to_owned(), message));
            return plan;
        }
        plan.wake_at(deadline);
    }
    escalate(state, now, &mut plan);
    let deleted = state.pod.metadata.deletion_timestamp.is_some() || state.gone;
    if deleted || state.outcome().is_some() {
        wind_down(state, deleted, now, &mut plan);
    } else {
        bring_up(state, now, &mut plan);
    }
    plan
}

fn active_deadline(state: &PodState) -> Option<Timestamp> {
    let seconds = state.pod.spec.as_ref()?.active_deadline_seconds?;
    Some(state.started_at + SignedDuration::from_secs(seconds))
}

/// Containers that are being stopped and have had their time.
fn escalate(state: &PodState, now: Timestamp, plan: &mut Plan) {
    let deletion = state.pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    for (index, container) in state.containers.iter().enumerate() {
        let Run::Running(running) = &container.run else { continue };
        let Some(stopping) = running.stopping.as_ref().filter(|stopping| !stopping.killed) else { continue };
        // A second deletion with a shorter grace brings the end nearer.
        let deadline = deletion.map_or(stopping.deadline, |deletion| stopping.deadline.min(deletion));
        if now >= deadline {
            plan.actions.push(Action::Kill(index));
        } else {
            plan.wake_at(deadline);
        }
    }
}

/// Ends what runs: first the containers, then sidecars in reverse order, then the network, then the object.
fn wind_down(state: &PodState, deleted: bool, now: Timestamp, plan: &mut Plan) {
    let deadline = match &state.pod.metadata.deletion_timestamp {
        Some(time) => time.0.max(now),
        None => now + state.grace(),
    };
    let stop = |index: usize, container: &ContainerState, plan: &mut Plan| {
        if matches!(&container.run, Run::Running(running) if running.stopping.is_none()) {
            plan.actions.push(Action::Stop(index, deadline));
        }
    };
    let others_alive = state.containers.iter().any(|c| c.kind != Kind::Sidecar && c.is_alive());
    if others_alive {
        for (index, container) in state.containers.iter().enumerate().filter(|(_, c)| c.kind != Kind::Sidecar)
        {
            stop(index, container, plan);
        }
        return;
    }
    let last = state.containers.iter().enumerate().rev().find(|(_, container)| container.is_alive());
    if let Some((index, container)) = last {
        stop(index, container, plan);
        return;
    }
    match state.sandbox {
        Sandbox::Ready(_) => plan.actions.push(Action::RemoveSandbox),
        Sandbox::Making | Sandbox::Removing(_) => {}
        Sandbox::Absent | Sandbox::Failed(_) | Sandbox::Removed(_) => {
            if deleted && state.volumes != Stage::Working {
                plan.actions.push(Action::Delete);
            }
        }
    }
}

fn bring_up(state: &PodState, now: Timestamp, plan: &mut Plan) {
    match &state.sandbox {
        Sandbox::Absent => plan.actions.push(Action::MakeSandbox),
        Sandbox::Failed(failure) => {
            if now >= failure.retry_at {
                plan.actions.push(Action::MakeSandbox);
            } else {
                plan.wake_at(failure.retry_at);
            }
        }
        _ => {}
    }
    if due(&state.volumes, now, plan) {
        plan.actions.push(Action::MakeVolumes);
    }
    for (index, container) in state.containers.iter().enumerate() {
        let needed = match &container.run {
            Run::Waiting | Run::Refused(_) => true,
            Run::Ended(ended) => state.restarts(container.kind, ended.code),
            _ => false,
        };
        if needed && due(&container.image, now, plan) {
            plan.actions.push(Action::Pull(index));
        }
        if let (true, Stage::Failed(failure)) = (needed, &container.image) {
            // ErrImagePull turns into ImagePullBackOff: the status is looked at again then.
            let turns = failure.at + super::status::SHOW_PULL_ERROR;
            if now < turns {
                plan.wake_at(turns);
            }
        }
    }
    if !matches!(state.sandbox, Sandbox::Ready(_)) || state.volumes != Stage::Ready {
        return;
    }
    // Who looks into a pod may want to see why an init container hangs.
    for (index, container) in state.containers.iter().enumerate().filter(|(_, c)| c.kind == Kind::Ephemeral) {
        start_when_due(state, index, container, now, plan);
    }
    for (index, container) in state.containers.iter().enumerate() {
        if matches!(container.kind, Kind::Init | Kind::Sidecar) {
            start_when_due(state, index, container, now, plan);
            if !container.init_done() {
                return;
            }
        }
    }
    for (index, container) in state.containers.iter().enumerate().filter(|(_, c)| c.kind == Kind::Main) {
        start_when_due(state, index, container, now, plan);
    }
}

/// Whether a step has to be begun now; sets the wake-up for a later try.
fn due(stage: &Stage, now: Timestamp, plan: &mut Plan) -> bool {
    match stage {
        Stage::Absent => true,
        Stage::Failed(failure) if now >= failure.retry_at => true,
        Stage::Failed(failure) => {
            plan.wake_at(failure.retry_at);
            false
        }
        Stage::Working | Stage::Ready => false,
    }
}

fn start_when_due(
    state: &PodState,
    index: usize,
    container: &ContainerState,
    now: Timestamp,
    plan: &mut Plan,
) {
    let at = match &container.run {
        Run::Waiting => now,
        Run::Refused(failure) => failure.retry_at,
        Run::Ended(ended) if state.restarts(container.kind, ended.code) => {
            container.backoff.ready_at(ended.finished_at)
        }
        _ => return,
    };
    if now < at {
        plan.wake_at(at);
    } else if container.image == Stage::Ready {
        plan.actions.push(Action::Start(index));
    }
}
