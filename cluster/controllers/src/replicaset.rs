//! ReplicaSets: as many pods as asked for, made and deleted at once.

mod plan;
mod rank;

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::{
    api::{apps::v1::ReplicaSet, core::v1::Pod},
    jiff::Timestamp,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    cache::{Change, Key},
    events::Draft,
    meta,
    queue::Queue,
    settle::{Settle, earlier},
    world::World,
};
use plan::{Observed, Outcome};

pub(crate) const COMPONENT: &str = "replicaset-controller";
/// Size of the first batch of creates; it doubles with each batch that succeeds, so that a set whose pods are refused does not
/// ask a thousand times. (Kubernetes begins with one; here a batch costs one group commit.)
const FIRST_BATCH: usize = 16;

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let queue: Arc<Queue<Key>> = Queue::new();
    world.replica_sets.on_change({
        let queue = Arc::clone(&queue);
        move |change| queue.add(Key::of(change.latest().as_ref()))
    });
    world.pods.on_change({
        let (queue, world) = (Arc::clone(&queue), Arc::downgrade(world));
        move |change: &Change<Pod>| {
            for pod in change.both() {
                match meta::controller_of(pod.as_ref()) {
                    Some(owner) if owner.kind == "ReplicaSet" => {
                        queue.add(Key::new(Key::of(pod.as_ref()).namespace, &owner.name));
                    }
                    Some(_) => {}
                    None => {
                        let Some(world) = world.upgrade() else { return };
                        let sets = world.replica_sets.in_namespace(&Key::of(pod.as_ref()).namespace);
                        sets.iter()
                            .filter(|set| selected(set, pod))
                            .for_each(|set| queue.add(Key::of(set.as_ref())));
                    }
                }
            }
        }
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        tokio::join!(world.replica_sets.synced(), world.pods.synced());
        let settle = Arc::new(Settle::new());
        let handle = move |key: Key| reconcile(Arc::clone(&world), Arc::clone(&settle), key);
        queue.run("replicaset", 32, shutdown, handle).await;
    });
}

fn selected(set: &ReplicaSet, pod: &Pod) -> bool {
    set.spec.as_ref().is_some_and(|spec| {
        !meta::is_empty_selector(&spec.selector)
            && meta::selects(&spec.selector, pod.metadata.labels.as_ref())
    })
}

async fn reconcile(world: Arc<World>, settle: Arc<Settle<Key>>, key: Key) -> Result<Option<Duration>, Error> {
    let Some(set) = world.replica_sets.get(&key) else {
        settle.forget(&key);
        return Ok(None);
    };
    let mut pods = world.pods.controlled_by(meta::uid(set.as_ref()));
    if set.metadata.deletion_timestamp.is_none() {
        let orphans = world.pods.orphans(&key.namespace);
        pods.extend(orphans.into_iter().filter(|pod| meta::is_active(pod) && selected(&set, pod)));
    }
    let observed = Observed { set: Arc::clone(&set), pods };
    let orphans = observed.pods.iter().any(|pod| meta::controller_of(pod.as_ref()).is_none());
    if orphans && !world.may_adopt(&world.replica_sets, set.as_ref()).await? {
        // Its own event is on the way.
        return Ok(None);
    }
    let plan = plan::plan(&observed);
    for (name, patch) in &plan.patches {
        world.merge(&world.pods, &Key::new(&key.namespace, name), patch).await?;
    }
    if !plan.patches.is_empty() {
        // The patched pods have queued this set again.
        return Ok(None);
    }
    let failure = if plan.create > 0 {
        create(&world, &set, plan.create).await
    } else {
        delete(&world, &set, &plan.delete).await
    };
    let pods = world.pods.controlled_by(meta::uid(set.as_ref()));
    let outcome = Outcome { failure: failure.as_ref().map(|(reason, error)| (*reason, error.to_string())) };
    let (status, again) = plan::status(&Observed { set: Arc::clone(&set), pods }, &outcome, Timestamp::now());
    let urgent = status.as_ref().is_some_and(|new| plan::is_news(set.status.as_ref(), new));
    if status.is_some()
        && failure.is_none()
        && let Some(left) = settle.hold(&key, urgent)
    {
        return Ok(earlier(again, Some(left)));
    }
    if let Some(status) = status {
        // The newest version of the set may be newer than the one that was planned for; its event is queued already.
        let mut object = set.as_ref().clone();
        if let Some(newest) = world
            .replica_sets
            .get(&key)
            .filter(|newest| meta::uid(newest.as_ref()) == meta::uid(set.as_ref()))
        {
            object.metadata.resource_version.clone_from(&newest.metadata.resource_version);
            object.metadata.clone_from(&newest.metadata);
            object.spec.clone_from(&newest.spec);
        }
        object.status = Some(status);
        match world.replace_status(&world.replica_sets, &object).await {
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
    }
    match failure {
        Some((_, error)) => Err(error),
        None => Ok(again),
    }
}

async fn create(world: &World, set: &ReplicaSet, count: usize) -> Option<(&'static str, Error)> {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref())?;
    let pod = meta::pod_from(template, set);
    let (mut left, mut batch) = (count, FIRST_BATCH);
    while left > 0 {
        let made = join_all((0..batch.min(left)).map(|_| world.create(&world.pods, &pod))).await;
        left -= made.len();
        batch *= 2;
        let mut failure = None;
        for pod in made {
            match pod {
                Ok(pod) => {
                    let message = format!("Created pod: {}", meta::name(&pod));
                    world.events.record(Draft::normal(set, COMPONENT, "SuccessfulCreate", message));
                }
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            // Nothing can be made in a namespace that is going away; its set follows soon.
            if error.is_not_found() || is_terminating(&error) {
                return None;
            }
            world.events.record(Draft::warning(
                set,
                COMPONENT,
                "FailedCreate",
                format!("Error creating: {error}"),
            ));
            return Some(("FailedCreate", error));
        }
    }
    None
}

fn is_terminating(error: &Error) -> bool {
    let Error::Api(kube::Error::Api(status)) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

async fn delete(world: &World, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Option<(&'static str, Error)> {
    let deletions =
        pods.iter().map(|pod| async move { (pod, world.delete(&world.pods, pod.as_ref()).await) });
    let mut failure = None;
    for (pod, result) in join_all(deletions).await {
        match result {
            Ok(()) => {
                let message = format!("Deleted pod: {}", meta::name(pod.as_ref()));
                world.events.record(Draft::normal(set, COMPONENT, "SuccessfulDelete", message));
            }
            Err(error) => {
                let message = format!("Error deleting: {error}");
                world.events.record(Draft::warning(set, COMPONENT, "FailedDelete", message));
                failure = Some(("FailedDelete", error));
            }
        }
    }
    failure
}
