//! The scheduler: binds each pod to the first node that takes it. The embedded cluster has one node, so there is no scoring.

mod fit;
mod neighbours;

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Binding, Node, ObjectReference, Pod, PodCondition},
    jiff::Timestamp,
};
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    cache::{Change, Key},
    events::Draft,
    meta,
    queue::Queue,
    world::World,
};
use fit::Demand;
use neighbours::Placed;

const COMPONENT: &str = "default-scheduler";
/// A pod that does not fit is looked at again after this time even if nothing was freed.
const RETRY: Duration = Duration::from_secs(60);

/// What the nodes' pods ask for, kept up to date change by change so that binding does not add up thousands of pods.
#[derive(Default)]
struct Load {
    /// Node and demand of each pod that counts, and whether it cares for its neighbours, by uid.
    pods: HashMap<String, (String, Demand, bool)>,
    nodes: HashMap<String, Demand>,
    /// How many of them care who their neighbours are.
    caring: usize,
}

impl Load {
    fn put(&mut self, pod: &Pod, node: &str, demand: Demand) {
        let uid = meta::uid(pod);
        self.take(uid);
        self.nodes.entry(node.to_owned()).or_default().add(&demand);
        let cares = neighbours::cares(pod);
        self.caring += usize::from(cares);
        self.pods.insert(uid.to_owned(), (node.to_owned(), demand, cares));
    }

    fn take(&mut self, uid: &str) -> bool {
        let Some((node, demand, cares)) = self.pods.remove(uid) else { return false };
        self.caring -= usize::from(cares);
        if let Some(total) = self.nodes.get_mut(&node) {
            total.subtract(&demand);
        }
        true
    }
}

struct Scheduler {
    world: Arc<World>,
    load: Mutex<Load>,
}

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let queue: Arc<Queue<Key>> = Queue::new();
    let scheduler = Arc::new(Scheduler { world: Arc::clone(world), load: Mutex::default() });
    world.pods.on_change({
        let (queue, scheduler) = (Arc::clone(&queue), Arc::downgrade(&scheduler));
        move |change: &Change<Pod>| {
            let Some(scheduler) = scheduler.upgrade() else { return };
            let freed = scheduler.account(change);
            if let Some(pod) = change.new.as_ref().filter(|pod| is_waiting(pod)) {
                // A condition written about a pod that does not fit is no reason to try it again.
                if change.old.as_ref().is_none_or(|old| old.spec != pod.spec) {
                    queue.add(Key::of(pod.as_ref()));
                }
            }
            if freed {
                scheduler.retry(&queue, |_| true);
            } else if scheduler.is_company(change) {
                scheduler.retry(&queue, neighbours::wants_company);
            }
        }
    });
    world.nodes.on_change({
        let (queue, scheduler) = (Arc::clone(&queue), Arc::downgrade(&scheduler));
        move |change: &Change<Node>| {
            // Heartbeats change only conditions' times.
            let capacity =
                |node: &Arc<Node>| node.status.as_ref().and_then(|status| status.allocatable.clone());
            let same = |old: &Arc<Node>, new: &Arc<Node>| {
                old.spec == new.spec
                    && old.metadata.labels == new.metadata.labels
                    && capacity(old) == capacity(new)
            };
            if let (Some(old), Some(new)) = (&change.old, &change.new)
                && same(old, new)
            {
                return;
            }
            if let Some(scheduler) = scheduler.upgrade() {
                scheduler.retry(&queue, |_| true);
            }
        }
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        tokio::join!(world.pods.synced(), world.nodes.synced());
        queue.run("scheduler", 64, shutdown, move |key: Key| schedule(Arc::clone(&scheduler), key)).await;
    });
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// The scheduler of pods that name none.
const SCHEDULER: &str = "default-scheduler";

fn is_waiting(pod: &Pod) -> bool {
    let gated = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.as_ref())
        .is_some_and(|gates| !gates.is_empty());
    // Another scheduler's pods are left to it.
    let named = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    let ours = named.is_none_or(|name| name == SCHEDULER);
    node_of(pod).is_none() && meta::is_active(pod) && !gated && ours
}

impl Scheduler {
    /// Keeps the load; true if something was freed.
    fn account(&self, change: &Change<Pod>) -> bool {
        let uid = meta::uid(change.latest().as_ref());
        match change.new.as_ref().filter(|pod| !meta::is_finished(pod)) {
            None => self.load.lock().take(uid),
            Some(pod) => {
                if let Some(node) = node_of(pod) {
                    let known = change.old.as_ref().is_some_and(|old| old.spec == pod.spec);
                    if !known {
                        self.load.lock().put(pod, node, Demand::of(pod));
                    }
                }
                false
            }
        }
    }

    /// Whether a pod has come to its node, beside which others may want to be.
    fn is_company(&self, change: &Change<Pod>) -> bool {
        let placed = |pod: &Arc<Pod>| node_of(pod).is_some();
        change.new.as_ref().is_some_and(placed) && !change.old.as_ref().is_some_and(placed)
    }

    /// The pods that count, where they are or are about to be.
    fn placed(&self, load: &Load, nodes: &[Arc<Node>]) -> Vec<Placed> {
        let at = |pod: Arc<Pod>| {
            let (name, ..) = load.pods.get(meta::uid(pod.as_ref()))?;
            let node = nodes.iter().find(|node| meta::name(node.as_ref()) == name)?;
            Some(Placed { pod, node: Arc::clone(node) })
        };
        self.world.pods.all().into_iter().filter_map(at).collect()
    }

    fn retry(&self, queue: &Queue<Key>, which: impl Fn(&Pod) -> bool) {
        for pod in self.world.pods.all() {
            if is_waiting(&pod) && which(&pod) {
                queue.add(Key::of(pod.as_ref()));
            }
        }
    }
}

async fn schedule(scheduler: Arc<Scheduler>, key: Key) -> Result<Option<Duration>, Error> {
    let world = &scheduler.world;
    let Some(pod) = world.pods.get(&key).filter(|pod| is_waiting(pod)) else { return Ok(None) };
    let nodes = world.nodes.all();
    let demand = Demand::of(&pod);
    let chosen = {
        let mut load = scheduler.load.lock();
        let idle = Demand::default();
        // Only with those whose place depends on others need the others be looked at.
        let placed = match neighbours::cares(&pod) || load.caring > 0 {
            true => scheduler.placed(&load, &nodes),
            false => Vec::new(),
        };
        let fits = |node: &Arc<Node>| {
            let used = load.nodes.get(meta::name(node.as_ref())).unwrap_or(&idle);
            fit::refusal(&pod, &demand, node, used)
                .or_else(|| neighbours::unwanted(&pod, node, &placed).map(fit::Refusal::Neighbour))
        };
        let refusals: Vec<Option<fit::Refusal>> = nodes.iter().map(fits).collect();
        match refusals.iter().position(Option::is_none) {
            Some(at) => {
                let name = meta::name(nodes[at].as_ref()).to_owned();
                // Counted at once, so that the next pod does not take the same place before this one's binding is seen.
                load.put(&pod, &name, demand);
                Ok(name)
            }
            None => Err(fit::message(nodes.len(), refusals.into_iter().flatten())),
        }
    };
    match chosen {
        Ok(node) => bind(&scheduler, &pod, &node).await,
        Err(message) => {
            refuse(world, &pod, &message).await?;
            Ok(Some(RETRY))
        }
    }
}

async fn bind(scheduler: &Scheduler, pod: &Pod, node: &str) -> Result<Option<Duration>, Error> {
    let world = &scheduler.world;
    let key = Key::of(pod);
    let mut binding = Binding {
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
        ..Binding::default()
    };
    binding.metadata.name = Some(key.name.clone());
    binding.metadata.namespace = Some(key.namespace.clone());
    // With the uid, a pod of the same name that came after this one is not bound by mistake.
    binding.metadata.uid.clone_from(&pod.metadata.uid);
    let api = world.api::<Pod>(&key.namespace);
    let result: Result<serde_json::Value, _> =
        api.create_subresource("binding", &key.name, &PostParams::default(), &binding).await;
    match result.map_err(Error::from) {
        Ok(_) => {
            let message = format!("Successfully assigned {key} to {node}");
            world.events.record(Draft::normal(pod, COMPONENT, "Scheduled", message));
            Ok(None)
        }
        Err(error) => {
            let bound = world.pods.get(&key).is_some_and(|held| node_of(&held).is_some());
            if !bound {
                scheduler.load.lock().take(meta::uid(pod));
            }
            if error.is_not_found() || error.is_conflict() { Ok(None) } else { Err(error) }
        }
    }
}

async fn refuse(world: &World, pod: &Pod, message: &str) -> Result<(), Error> {
    let held = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let held = held.into_iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    if held.is_some_and(|held| held.status == "False" && held.message.as_deref() == Some(message)) {
        return Ok(());
    }
    world.events.record(Draft::warning(pod, COMPONENT, "FailedScheduling", message.to_owned()));
    let key = Key::of(pod);
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("Unschedulable".into()),
        message: Some(message.to_owned()),
        last_transition_time: Some(meta::whole_seconds(Timestamp::now())),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    };
    // A strategic merge keeps the conditions of others.
    let patch = json!({"status": {"conditions": [condition]}});
    let api = world.api::<Pod>(&key.namespace);
    match api
        .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map_err(Error::from)
    {
        Ok(pod) => world.pods.observe(pod),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
