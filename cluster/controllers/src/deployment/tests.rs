//! Rollouts against a simulated ReplicaSet controller and node, in random order and with random parameters.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
    serde_json::{self, Value, json},
};
use proptest::prelude::*;

use super::{
    plan::{self, Action, Observed, Plan},
    revision::{self, REVISION},
    rolling::{self, Bounds},
    status,
};
use crate::{cache::Key, meta};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn deployment(replicas: i32, strategy: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1, "annotations": {"note": "x"}},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 2,
            "strategy": strategy,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "web:1"}]},
            },
        },
    }))
    .unwrap()
}

fn rolling_update(surge: &Value, unavailable: &Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

/// A cluster of one Deployment: sets, their real pods, and what the sets' status says of them.
struct Sim {
    deployment: Deployment,
    sets: BTreeMap<String, ReplicaSet>,
    /// Pods of each set: how many exist, how many of them are ready.
    pods: BTreeMap<String, (i32, i32)>,
    now: i64,
}

impl Sim {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: BTreeMap::new(), pods: BTreeMap::new(), now: 0 }
    }

    fn edit(&mut self, edit: impl FnOnce(&mut k8s_openapi::api::apps::v1::DeploymentSpec)) {
        edit(self.deployment.spec.as_mut().unwrap());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn image(&mut self, image: &str) {
        self.edit(|spec| spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into()));
    }

    fn plan(&self) -> Plan {
        let with_pods = self.pods.iter().filter(|(_, pods)| pods.0 > 0);
        let observed = Observed {
            deployment: Arc::new(self.deployment.clone()),
            replica_sets: self.sets.values().cloned().map(Arc::new).collect(),
            sets_with_pods: with_pods.map(|(name, _)| name.clone()).collect(),
        };
        plan::plan(&observed, at(self.now))
    }

    /// One pass of the Deployment's controller; true if it wrote anything.
    fn pass(&mut self) -> bool {
        let plan = self.plan();
        let wrote = !plan.actions.is_empty() || plan.status.is_some();
        for action in plan.actions {
            match action {
                Action::Create(set) => {
                    let mut set = *set;
                    let name = meta::name(&set).to_owned();
                    set.metadata.uid = Some(name.clone());
                    set.metadata.generation = Some(1);
                    set.metadata.creation_timestamp = Some(Time(at(self.now)));
                    assert!(self.sets.insert(name, set).is_none(), "a set is made twice");
                }
                Action::Patch { name, patch } => {
                    let set = self.sets.get_mut(&name).unwrap();
                    let mut value = serde_json::to_value(&*set).unwrap();
                    merge(&mut value, &patch);
                    *set = serde_json::from_value(value).unwrap();
                    *set.metadata.generation.as_mut().unwrap() += 1;
                }
                Action::Delete(set) => {
                    self.sets.remove(meta::name(set.as_ref()));
                }
                Action::Revision(revision) => {
                    let annotations = self.deployment.metadata.annotations.get_or_insert_default();
                    annotations.insert(REVISION.into(), revision);
                }
            }
        }
        if let Some(status) = plan.status {
            self.deployment.status = Some(status);
        }
        wrote
    }

    /// The ReplicaSet controller makes and deletes pods of one set, those not ready first.
    fn fill(&mut self, name: &str) -> bool {
        let size = rolling::size(&self.sets[name]);
        let (count, ready) = self.pods.entry(name.to_owned()).or_default();
        let before = (*count, *ready);
        *count = size;
        *ready = (*ready).min(size);
        before != (*count, *ready)
    }

    /// One pod of the set gets ready.
    fn ready(&mut self, name: &str) -> bool {
        let (count, ready) = self.pods.entry(name.to_owned()).or_default();
        if *ready == *count {
            return false;
        }
        *ready += 1;
        true
    }

    /// The ReplicaSet controller writes the set's status.
    fn report(&mut self, name: &str) -> bool {
        let (count, ready) = self.pods.get(name).copied().unwrap_or_default();
        let set = self.sets.get_mut(name).unwrap();
        let status = ReplicaSetStatus {
            replicas: count,
            ready_replicas: Some(ready),
            available_replicas: Some(ready),
            observed_generation: set.metadata.generation,
            ..ReplicaSetStatus::default()
        };
        let changed = set.status.as_ref() != Some(&status);
        set.status = Some(status);
        changed
    }

    fn names(&self) -> Vec<String> {
        self.sets.keys().cloned().collect()
    }

    fn total(&self) -> i32 {
        self.pods.values().map(|pods| pods.0).sum()
    }

    fn available(&self) -> i32 {
        self.pods.values().map(|pods| pods.1).sum()
    }

    fn bounds(&self) -> Bounds {
        rolling::bounds(&self.deployment)
    }

    /// Everything happens until nothing does; all pods of sets that `works` accepts get ready.
    fn settle_if(&mut self, works: impl Fn(&ReplicaSet) -> bool) {
        for _ in 0..1000 {
            self.now += 1;
            let mut changed = self.pass();
            for name in self.names() {
                changed |= self.fill(&name);
                if works(&self.sets[&name]) {
                    changed |= self.ready(&name);
                }
                changed |= self.report(&name);
            }
            if !changed {
                return;
            }
        }
        panic!("never settles: {:?}", self.plan());
    }

    fn settle(&mut self) {
        self.settle_if(|_| true);
    }

    fn active(&self) -> Vec<(&str, i32)> {
        let image = |set: &ReplicaSet| {
            set.spec.as_ref().unwrap().template.as_ref().unwrap().spec.as_ref().unwrap().containers[0]
                .image
                .clone()
        };
        let mut active: Vec<(&str, i32)> = self
            .sets
            .values()
            .filter(|set| rolling::size(set) > 0)
            .map(|set| (Box::leak(image(set).unwrap().into_boxed_str()) as &str, rolling::size(set)))
            .collect();
        active.sort_unstable();
        active
    }

    fn condition(&self, type_: &str) -> DeploymentCondition {
        status::condition(self.deployment.status.as_ref(), type_).cloned().unwrap_or_default()
    }

    fn told(&self, type_: &str) -> (String, String) {
        let held = self.condition(type_);
        (held.status, held.reason.unwrap_or_default())
    }
}

fn merge(value: &mut Value, patch: &Value) {
    match (value, patch) {
        (Value::Object(held), Value::Object(patch)) => {
            for (key, patch) in patch {
                merge(held.entry(key.clone()).or_insert(Value::Null), patch);
            }
        }
        (held, patch) => *held = patch.clone(),
    }
}

fn told(status: &str, reason: &str) -> (String, String) {
    (status.into(), reason.into())
}

#[test]
fn first_rollout() {
    let mut sim = Sim::new(deployment(3, json!({"type": "RollingUpdate"})));
    let first = sim.plan();
    let Action::Create(set) = &first.actions[0] else { panic!("no set: {first:?}") };
    let hash = set.metadata.labels.as_ref().unwrap()[revision::HASH].clone();
    assert_eq!(meta::name(set.as_ref()), format!("web-{hash}"));
    let spec = set.spec.as_ref().unwrap();
    assert_eq!(spec.replicas, Some(3));
    assert_eq!(spec.selector.match_labels.as_ref().unwrap()[revision::HASH], hash);
    let annotations = set.metadata.annotations.as_ref().unwrap();
    assert_eq!((annotations["note"].as_str(), annotations[REVISION].as_str()), ("x", "1"));
    assert_eq!((annotations[revision::DESIRED].as_str(), annotations[revision::MAX].as_str()), ("3", "4"));
    assert!(first.events[0].message.ends_with("from 0 to 3"));
    assert_eq!(first.again.map(|again| again.as_secs()), Some(601));
    sim.settle();
    assert_eq!(sim.active(), [("web:1", 3)]);
    assert_eq!(sim.told("Available"), told("True", "MinimumReplicasAvailable"));
    assert_eq!(sim.told("Progressing"), told("True", "NewReplicaSetAvailable"));
    let status = sim.deployment.status.clone().unwrap();
    assert_eq!(status.observed_generation, sim.deployment.metadata.generation);
    assert_eq!((status.updated_replicas, status.unavailable_replicas), (Some(3), None));
    assert_eq!(meta::annotation(&sim.deployment, REVISION), Some("1"));
}

#[test]
fn update_undo_and_history() {
    let mut sim = Sim::new(deployment(2, json!({"type": "RollingUpdate"})));
    sim.settle();
    for (number, revision) in [(2, "2"), (3, "3"), (4, "4")] {
        sim.image(&format!("web:{number}"));
        sim.settle();
        assert_eq!(meta::annotation(&sim.deployment, REVISION), Some(revision));
    }
    assert_eq!(sim.sets.len(), 3, "two old ones are kept");
    sim.image("web:3");
    sim.settle();
    assert_eq!(sim.active(), [("web:3", 2)]);
    assert_eq!(meta::annotation(&sim.deployment, REVISION), Some("5"));
    let back = sim.sets.values().find(|set| rolling::size(set) > 0).unwrap();
    assert_eq!(meta::annotation(back, revision::HISTORY), Some("3"));
}

#[test]
fn a_broken_image_stops_at_the_bounds_and_times_out() {
    let mut sim = Sim::new(deployment(4, rolling_update(&json!(1), &json!(1))));
    sim.settle();
    sim.image("web:broken");
    let broken = |set: &ReplicaSet| revision::revision(set) == 2;
    sim.settle_if(|set| !broken(set));
    assert_eq!(sim.available(), 3);
    assert_eq!(sim.active(), [("web:1", 3), ("web:broken", 2)]);
    assert_eq!(sim.told("Available").0, "True");
    let again = sim.plan().again.or_else(|| {
        status::look_again(&sim.deployment, sim.deployment.status.as_ref().unwrap(), at(sim.now))
    });
    sim.now += i64::try_from(again.unwrap().as_secs()).unwrap();
    sim.settle_if(|set| !broken(set));
    assert_eq!(sim.told("Progressing"), told("False", "ProgressDeadlineExceeded"));
    sim.image("web:1");
    sim.settle();
    assert_eq!(sim.active(), [("web:1", 4)]);
    assert_eq!(sim.told("Progressing"), told("True", "NewReplicaSetAvailable"));
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut sim = Sim::new(deployment(2, json!({"type": "Recreate"})));
    sim.settle();
    sim.image("web:2");
    sim.pass();
    assert!(sim.active().is_empty());
    let old = sim.names();
    sim.report(&old[0]);
    sim.pass();
    assert_eq!(sim.sets.len(), 1, "old pods still run");
    sim.fill(&old[0]);
    sim.settle();
    assert_eq!(sim.active(), [("web:2", 2)]);
}

#[test]
fn pause_scales_but_does_not_roll() {
    let mut sim = Sim::new(deployment(2, json!({"type": "RollingUpdate"})));
    sim.settle();
    sim.image("web:2");
    sim.edit(|spec| {
        spec.paused = Some(true);
        spec.replicas = Some(5);
    });
    sim.settle();
    assert_eq!(sim.active(), [("web:1", 5)]);
    assert_eq!(sim.told("Progressing"), told("Unknown", "DeploymentPaused"));
    sim.edit(|spec| spec.paused = Some(false));
    sim.settle();
    assert_eq!(sim.active(), [("web:2", 5)]);
    assert_eq!(sim.told("Progressing"), told("True", "NewReplicaSetAvailable"));
}

#[test]
fn scaled_in_mid_rollout_both_sets_grow_in_proportion() {
    let mut sim = Sim::new(deployment(10, rolling_update(&json!(3), &json!(2))));
    sim.settle();
    sim.image("web:broken");
    sim.settle_if(|set| revision::revision(set) == 1);
    assert_eq!(sim.active(), [("web:1", 8), ("web:broken", 5)]);
    sim.edit(|spec| spec.replicas = Some(15));
    sim.pass();
    // Kubernetes' own example: 5 more are split 3 to 2.
    assert_eq!(sim.active(), [("web:1", 11), ("web:broken", 7)]);
}

#[test]
fn zero_and_back() {
    let mut sim = Sim::new(deployment(1, json!({"type": "RollingUpdate"})));
    sim.settle();
    sim.edit(|spec| spec.replicas = Some(0));
    sim.settle();
    assert_eq!((sim.total(), sim.told("Available").0.as_str()), (0, "True"));
    sim.edit(|spec| spec.replicas = Some(1));
    let plan = sim.plan();
    let Action::Patch { patch, .. } = &plan.actions[0] else { panic!("not scaled: {plan:?}") };
    assert_eq!(patch["spec"]["replicas"], 1, "one pass is enough on the way of a cold start");
    assert_eq!(plan.events[0].message.split(' ').next_back(), Some("1"));
}

#[test]
fn claims_orphans_and_releases_strangers_first() {
    let mut sim = Sim::new(deployment(1, json!({"type": "RollingUpdate"})));
    sim.settle();
    let set = sim.sets.values_mut().next().unwrap();
    let owners = set.metadata.owner_references.take();
    let plan = sim.plan();
    assert_eq!(plan.actions.len(), 1);
    let Action::Patch { patch, .. } = &plan.actions[0] else { panic!("not adopted") };
    assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "d");
    let set = sim.sets.values_mut().next().unwrap();
    set.metadata.owner_references = owners;
    set.metadata.labels = None;
    let Action::Patch { patch, .. } = &sim.plan().actions[0] else { panic!("not released") };
    assert_eq!(patch["metadata"]["ownerReferences"], json!([]));
}

#[test]
fn a_collision_gives_another_name() {
    let mut sim = Sim::new(deployment(1, json!({"type": "RollingUpdate"})));
    let name = |plan: Plan| match &plan.actions[0] {
        Action::Create(set) => Key::of(set.as_ref()).name,
        other => panic!("{other:?}"),
    };
    let first = name(sim.plan());
    sim.deployment.status =
        Some(DeploymentStatus { collision_count: Some(1), ..DeploymentStatus::default() });
    assert_ne!(name(sim.plan()), first);
}

#[test]
fn bounds_are_rounded_as_kubernetes_does() {
    let cases = [
        (4, json!("25%"), json!("25%"), (1, 1)),
        (1, json!("25%"), json!("25%"), (1, 0)),
        (10, json!("25%"), json!("25%"), (3, 2)),
        (3, json!(0), json!("10%"), (0, 1)),
        (3, json!(2), json!(7), (2, 3)),
        (0, json!(1), json!(1), (0, 0)),
    ];
    for (replicas, surge, unavailable, expected) in cases {
        let made = rolling::bounds(&deployment(replicas, rolling_update(&surge, &unavailable)));
        assert_eq!((made.surge, made.unavailable), expected, "{replicas} {surge} {unavailable}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever the order in which controllers run, statuses arrive and pods get ready: a rolling update never has more pods than
    /// size + maxSurge, never takes the available ones below size - maxUnavailable, and always ends.
    #[test]
    fn rolling_update_keeps_its_bounds(
        replicas in 1i32..12,
        surge in 0i32..5,
        unavailable in 0i32..5,
        images in 1usize..4,
        steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>()), 50..400),
    ) {
        let mut sim = Sim::new(deployment(replicas, rolling_update(&json!(surge), &json!(unavailable))));
        sim.settle();
        let (most, least) = (replicas + sim.bounds().surge, replicas - sim.bounds().unavailable);
        let mut left = images;
        sim.image("web:next-0");
        for (number, (step, pick)) in steps.into_iter().enumerate() {
            sim.now += 1;
            let names = sim.names();
            let name = pick.get(&names);
            match step {
                0 => drop(sim.pass()),
                1 => drop(sim.fill(name)),
                2 => drop(sim.report(name)),
                3 => drop(sim.ready(name)),
                // Another template in the middle of the rollout.
                _ if number % 40 == 39 && left > 1 => {
                    left -= 1;
                    sim.image(&format!("web:next-{left}"));
                }
                _ => {}
            }
            let specified: i32 = sim.sets.values().map(rolling::size).sum();
            prop_assert!(specified <= most, "{specified} pods asked for, {most} allowed");
            prop_assert!(sim.available() >= least, "{} available, {least} wanted", sim.available());
        }
        let last = sim.deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].image.clone();
        sim.settle();
        prop_assert_eq!(sim.active(), [(last.as_deref().unwrap(), replicas)]);
        prop_assert_eq!(sim.told("Progressing"), told("True", "NewReplicaSetAvailable"));
    }
}
