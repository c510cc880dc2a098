//! The state machine under a clock of the test's own: no runtime, no sleeping.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

use super::decide::{Action, decide};
use super::state::{Event, ExitFacts, PodState, Run};
use super::status;

/// Performs the bookkeeping a worker does when it begins an action, and nothing else.
struct World {
    state: PodState,
    now: Timestamp,
    starts: u32,
}

impl World {
    fn new(spec: Value) -> Self {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec
        }))
        .unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        Self { state: PodState::new(pod, now), now, starts: 0 }
    }

    fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// Decides, begins what was decided, and returns it.
    fn step(&mut self) -> Vec<Action> {
        let plan = decide(&self.state, self.now);
        for action in &plan.actions {
            super::begin(&mut self.state, action, self.now);
        }
        plan.actions
    }

    fn wake(&self) -> Option<i64> {
        decide(&self.state, self.now).wake.map(|at| at.duration_since(self.now).as_secs())
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        self.state.apply(event, self.now);
        self.step()
    }

    /// Brings network, volumes and images up.
    fn prepare(&mut self) -> Vec<Action> {
        self.step();
        for index in 0..self.state.containers.len() {
            self.state.apply(Event::ImageReady(index, "i@sha256:0".into()), self.now);
        }
        self.state.apply(Event::VolumesReady, self.now);
        self.event(Event::SandboxReady(Some([10, 0, 0, 9].into())))
    }

    fn started(&mut self, index: usize) -> Vec<Action> {
        self.starts += 1;
        let id = format!("c{}", self.starts);
        self.state.apply(Event::Started(index, id.clone()), self.now);
        self.state.apply(Event::Readiness(index, id.clone(), true), self.now);
        self.event(Event::StartedUp(index, id))
    }

    fn exit(&mut self, index: usize, code: i32) -> Vec<Action> {
        let Run::Running(running) = &self.state.containers[index].run else { panic!("not running") };
        let id = running.id.clone();
        self.event(Event::Exited(index, id, ExitFacts { code, ..ExitFacts::default() }))
    }

    fn status(&self) -> Value {
        let status = status::build(&self.state, &PodStatus::default(), [10, 0, 0, 1].into(), self.now);
        serde_json::to_value(status).unwrap()
    }

    fn condition(&self, kind: &str) -> String {
        let status = self.status();
        let list = status["conditions"].as_array().unwrap().clone();
        list.iter().find(|c| c["type"] == kind).unwrap()["status"].as_str().unwrap().to_owned()
    }
}

fn one(policy: &str) -> World {
    World::new(json!({"restartPolicy": policy, "containers": [{"name": "app", "image": "i"}]}))
}

#[test]
fn everything_is_begun_at_once() {
    let mut world =
        World::new(json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "j"}]}));
    assert_eq!(world.step(), [Action::MakeSandbox, Action::MakeVolumes, Action::Pull(0), Action::Pull(1)]);
    assert_eq!(world.step(), [], "what is under way is not begun again");
    world.state.apply(Event::VolumesReady, world.now);
    assert_eq!(world.event(Event::SandboxReady(None)), []);
    assert_eq!(
        world.event(Event::ImageReady(1, "j".into())),
        [Action::Start(1)],
        "b does not wait for a's image"
    );
    assert_eq!(world.status()["phase"], "Pending");
    assert_eq!(world.event(Event::ImageReady(0, "i".into())), [Action::Start(0)]);
}

#[test]
fn a_ready_pod() {
    let mut world = one("Always");
    assert_eq!(world.prepare(), [Action::Start(0)]);
    assert_eq!(world.status()["podIP"], "10.0.0.9");
    assert_eq!(world.condition("PodReadyToStartContainers"), "True");
    assert_eq!(world.status()["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    world.started(0);
    assert_eq!(world.status()["phase"], "Running");
    assert_eq!(world.condition("Ready"), "True");
    assert_eq!(world.wake(), None, "a pod that runs needs no timer");
}

#[test]
fn crashes_back_off_and_are_counted() {
    let mut world = one("Always");
    world.prepare();
    world.started(0);
    assert_eq!(world.exit(0, 1), [Action::Start(0)], "the first restart is at once");
    world.started(0);
    assert_eq!(world.exit(0, 1), []);
    let status = world.status();
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(status["phase"], "Running");
    assert_eq!(world.wake(), Some(10));
    world.pass(10);
    assert_eq!(world.step(), [Action::Start(0)]);
    world.started(0);
    assert_eq!(world.status()["containerStatuses"][0]["restartCount"], 2);
}

#[test]
fn policies() {
    for (policy, code, again, phase) in [
        ("Never", 0, false, "Succeeded"),
        ("Never", 3, false, "Failed"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 3, true, "Running"),
        ("Always", 0, true, "Running"),
    ] {
        let mut world = one(policy);
        world.prepare();
        world.started(0);
        let actions = world.exit(0, code);
        assert_eq!(actions.contains(&Action::Start(0)), again, "{policy} {code}");
        assert_eq!(world.status()["phase"], phase, "{policy} {code}");
        if !again {
            assert_eq!(actions, [Action::RemoveSandbox], "the network is given back");
            assert_eq!(world.event(Event::SandboxRemoved), [], "the object stays");
        }
    }
}

#[test]
fn init_containers_and_sidecars_go_in_order() {
    let mut world = World::new(json!({
        "initContainers": [
            {"name": "first", "image": "i"}, {"name": "side", "image": "i", "restartPolicy": "Always"},
            {"name": "last", "image": "i"}],
        "containers": [{"name": "app", "image": "i"}], "restartPolicy": "Never"
    }));
    assert_eq!(world.prepare(), [Action::Start(0)]);
    assert_eq!(world.condition("Initialized"), "False");
    world.started(0);
    assert_eq!(world.exit(0, 0), [Action::Start(1)]);
    assert_eq!(world.step(), [], "the next one waits until the sidecar has started");
    assert_eq!(world.started(1), [Action::Start(2)]);
    assert_eq!(world.status()["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    world.started(2);
    assert_eq!(world.exit(2, 0), [Action::Start(3)]);
    world.started(3);
    assert_eq!(world.condition("Ready"), "True");
    let actions = world.exit(3, 0);
    assert!(matches!(actions[..], [Action::Stop(1, _)]), "the sidecar ends after the app: {actions:?}");
    assert_eq!(world.exit(1, 137), [Action::RemoveSandbox]);
    assert_eq!(world.status()["phase"], "Succeeded");
}

#[test]
fn a_failed_init_container_fails_the_pod_or_is_tried_again() {
    let spec = |policy: &str| {
        json!({"restartPolicy": policy, "initContainers": [{"name": "i", "image": "i"}],
               "containers": [{"name": "app", "image": "i"}]})
    };
    let mut never = World::new(spec("Never"));
    never.prepare();
    never.started(0);
    assert_eq!(never.exit(0, 1), [Action::RemoveSandbox]);
    assert_eq!(never.status()["phase"], "Failed");
    let mut always = World::new(spec("Always"));
    always.prepare();
    always.started(0);
    assert_eq!(always.exit(0, 1), [Action::Start(0)]);
    assert_eq!(always.status()["phase"], "Pending");
}

#[test]
fn deletion_is_graceful_then_forceful_then_final() {
    let mut world = one("Always");
    world.prepare();
    world.started(0);
    let mut pod = world.state.pod.clone();
    let deadline = world.now + SignedDuration::from_secs(30);
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(deadline));
    pod.metadata.deletion_grace_period_seconds = Some(30);
    assert_eq!(world.event(Event::Changed(Box::new(pod.clone()))), [Action::Stop(0, deadline)]);
    assert_eq!(world.wake(), Some(30));
    // A second deletion shortens the grace.
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now + SignedDuration::from_secs(2)));
    world.event(Event::Changed(Box::new(pod)));
    assert_eq!(world.wake(), Some(2));
    world.pass(2);
    assert_eq!(world.step(), [Action::Kill(0)]);
    assert_eq!(world.step(), [], "killed once");
    assert_eq!(world.exit(0, 137), [Action::RemoveSandbox]);
    assert_eq!(world.event(Event::SandboxRemoved), [Action::Delete]);
    assert_eq!(world.step(), []);
}

#[test]
fn a_pod_deleted_before_it_started_leaves_at_once() {
    let mut world = one("Always");
    let mut pod = world.state.pod.clone();
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now));
    assert_eq!(world.event(Event::Changed(Box::new(pod))), [Action::Delete]);
}

#[test]
fn pull_errors_show_then_back_off() {
    let mut world = one("Always");
    world.step();
    world.state.apply(Event::VolumesReady, world.now);
    world.event(Event::SandboxReady(None));
    world.event(Event::ImageFailed(0, "ErrImagePull".into(), "no such image".into()));
    assert_eq!(world.status()["containerStatuses"][0]["state"]["waiting"]["reason"], "ErrImagePull");
    assert_eq!(world.wake(), Some(2));
    world.pass(2);
    assert_eq!(world.status()["containerStatuses"][0]["state"]["waiting"]["reason"], "ImagePullBackOff");
    assert_eq!(world.wake(), Some(8));
    world.pass(8);
    assert_eq!(world.step(), [Action::Pull(0)]);
    assert_eq!(world.status()["phase"], "Pending");
}

#[test]
fn a_missing_config_map_is_waited_for() {
    let mut world = one("Never");
    world.prepare();
    world.event(Event::StartFailed(
        0,
        "CreateContainerConfigError".into(),
        "configmap \"ns/x\" not found".into(),
    ));
    let status = world.status();
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "CreateContainerConfigError");
    assert_eq!(status["phase"], "Pending");
    world.pass(2);
    assert_eq!(world.step(), [Action::Start(0)]);
}

#[test]
fn an_unhealthy_container_is_stopped_and_restarted() {
    let mut world = one("Always");
    world.prepare();
    world.started(0);
    let actions = world.event(Event::Unhealthy(0, "c1".into(), None));
    assert!(matches!(actions[..], []), "the worker stops it, the state has the deadline: {actions:?}");
    assert_eq!(world.condition("Ready"), "False");
    assert_eq!(world.wake(), Some(30));
    world.event(Event::Unhealthy(0, "c0".into(), None));
    assert_eq!(world.exit(0, 137), [Action::Start(0)]);
}

#[test]
fn a_probes_own_grace_counts_before_the_pods_and_after_a_deletions() {
    let mut world = one("Always");
    world.prepare();
    world.started(0);
    world.event(Event::Unhealthy(0, "c1".into(), Some(5)));
    assert_eq!(world.wake(), Some(5));
    world.pass(5);
    assert_eq!(world.step(), [Action::Kill(0)]);
    let grace = |world: &World| world.state.grace_of(Some(5)).as_secs();
    assert_eq!(grace(&world), 5);
    world.state.pod.metadata.deletion_grace_period_seconds = Some(9);
    assert_eq!(grace(&world), 9);
}

#[test]
fn active_deadline() {
    let mut world = World::new(json!({
        "activeDeadlineSeconds": 5, "restartPolicy": "Never", "containers": [{"name": "app", "image": "i"}]
    }));
    world.prepare();
    world.started(0);
    assert_eq!(world.wake(), Some(5));
    world.pass(5);
    let actions = world.step();
    assert!(matches!(actions[..], [Action::Fail(..)]), "{actions:?}");
    let actions = world.step();
    assert!(matches!(actions[..], [Action::Stop(0, _)]), "{actions:?}");
    world.exit(0, 143);
    let status = world.status();
    assert_eq!(
        (status["phase"].as_str(), status["reason"].as_str()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
}

#[test]
fn a_restart_of_the_node_counts_as_a_restart_of_its_containers() {
    let mut world = one("Always");
    world.prepare();
    world.started(0);
    let mut pod = world.state.pod.clone();
    pod.status = serde_json::from_value(world.status()).unwrap();
    let mut again = World { state: PodState::new(pod, world.now), now: world.now, starts: 7 };
    assert_eq!(again.prepare(), [Action::Start(0)]);
    again.started(0);
    let status = again.status();
    assert_eq!(status["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 137);
}

#[test]
fn finished_pods_stay_finished_over_a_restart() {
    let mut world = one("Never");
    world.prepare();
    world.started(0);
    world.exit(0, 0);
    let mut pod = world.state.pod.clone();
    pod.status = serde_json::from_value(world.status()).unwrap();
    let again = World { state: PodState::new(pod, world.now), now: world.now, starts: 0 };
    assert_eq!(decide(&again.state, again.now).actions, []);
    assert_eq!(again.status()["phase"], "Succeeded");
}

#[test]
fn readiness_gates_hold_the_pod_back() {
    let mut world = World::new(json!({
        "readinessGates": [{"conditionType": "lb/ready"}], "containers": [{"name": "app", "image": "i"}]
    }));
    world.prepare();
    world.started(0);
    assert_eq!(
        (world.condition("ContainersReady").as_str(), world.condition("Ready").as_str()),
        ("True", "False")
    );
    let mut pod = world.state.pod.clone();
    pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "lb/ready", "status": "True"}]})).unwrap();
    world.event(Event::Changed(Box::new(pod)));
    assert_eq!(world.condition("Ready"), "True");
}

/// The object with an ephemeral container, as `kubectl debug` makes it.
fn with_ephemeral(world: &World, target: &str) -> Pod {
    let mut pod = world.state.pod.clone();
    let container = json!({"name": "look", "image": "d", "targetContainerName": target});
    pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![serde_json::from_value(container).unwrap()]);
    pod
}

#[test]
fn an_ephemeral_container_starts_once_and_counts_for_nothing() {
    let mut world = one("Always");
    world.prepare();
    world.started(0);
    let pod = with_ephemeral(&world, "");
    assert_eq!(world.event(Event::Changed(Box::new(pod.clone()))), [Action::Pull(1)]);
    assert_eq!(world.condition("Ready"), "True", "nobody waits for it");
    assert_eq!(world.event(Event::ImageReady(1, "d".into())), [Action::Start(1)]);
    assert_eq!(world.state.target_of(1), None);
    world.started(1);
    assert!(world.status()["ephemeralContainerStatuses"][0]["state"]["running"].is_object());
    assert_eq!(world.status()["containerStatuses"].as_array().unwrap().len(), 1);
    assert_eq!(world.exit(1, 3), [], "it is not started again, whatever the pod's policy");
    assert_eq!(world.event(Event::Changed(Box::new(pod))), [], "nor by a change of the object");
    world.pass(1000);
    assert_eq!(world.step(), []);
    assert_eq!(world.condition("Ready"), "True");
    assert_eq!(world.status()["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
}

#[test]
fn an_ephemeral_container_keeps_no_pod_from_ending_and_is_not_started_after_a_restart_of_the_node() {
    let mut world = one("Never");
    world.prepare();
    world.started(0);
    let pod = with_ephemeral(&world, "app");
    world.event(Event::Changed(Box::new(pod)));
    world.event(Event::ImageReady(1, "d".into()));
    assert_eq!(world.state.target_of(1), Some("app"));
    assert_eq!(world.state.target_of(0), None);
    world.started(1);
    // The node's process ends and comes again.
    let mut after = World { state: world.state.clone(), ..World::new(json!({"containers": []})) };
    let mut pod = world.state.pod.clone();
    pod.status = serde_json::from_value(world.status()).unwrap();
    after.state = PodState::new(pod, after.now);
    after.prepare();
    assert!(matches!(after.state.containers[1].run, Run::Ended(_)));
    // Here, the app ends: so does who looked at it, and the pod is over.
    let stopped = world.exit(0, 0);
    assert!(matches!(stopped[..], [Action::Stop(1, _)]), "{stopped:?}");
    world.exit(1, 0);
    assert_eq!(world.status()["phase"], "Succeeded");
}

#[test]
fn after_a_start_that_the_node_failed_at_the_image_is_asked_for_again() {
    let mut world = World::new(json!({"containers": [{"name": "c", "image": "i"}]}));
    assert_eq!(world.prepare(), [Action::Start(0)]);
    let refused = |reason: &str| Event::StartFailed(0, reason.to_owned(), "no such layer".to_owned());
    assert_eq!(world.event(refused("RunContainerError")), [Action::Pull(0)]);
    assert_eq!(world.event(Event::ImageReady(0, "i@sha256:0".into())), []);
    world.pass(2);
    assert_eq!(world.step(), [Action::Start(0)]);
    assert_eq!(
        world.event(refused("CreateContainerConfigError")),
        [],
        "a missing Secret is none of the image's"
    );
}
