//! Deployments: ReplicaSets by revision, rolled over as the strategy says.
//!
//! Follows Kubernetes' controller: the newest ReplicaSet whose template equals the Deployment's is the new one; older ones
//! are kept for `kubectl rollout undo`, which only puts an older template back. One pass of [`plan::plan`] moves at most
//! one step; what it writes comes back as a ReplicaSet's change and brings the next pass.

pub(crate) mod plan;
mod revision;
mod rolling;
mod status;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet},
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
use plan::{Action, Observed};

/// The name under which events are recorded.
pub(crate) const COMPONENT: &str = "deployment-controller";

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let queue: Arc<Queue<Key>> = Queue::new();
    world.deployments.on_change({
        let queue = Arc::clone(&queue);
        move |change| queue.add(Key::of(change.latest().as_ref()))
    });
    world.replica_sets.on_change({
        let (queue, seen) = (Arc::clone(&queue), Arc::downgrade(world));
        move |change: &Change<ReplicaSet>| {
            for set in change.both() {
                if let Some(owner) =
                    meta::controller_of(set.as_ref()).filter(|owner| owner.kind == "Deployment")
                {
                    queue.add(Key::new(Key::of(set.as_ref()).namespace, &owner.name));
                } else if let Some(world) = seen.upgrade() {
                    // An orphan: any Deployment that selects it may adopt it.
                    let namespace = Key::of(set.as_ref()).namespace;
                    for deployment in world.deployments.in_namespace(&namespace) {
                        if selected(&deployment, set) {
                            queue.add(Key::of(deployment.as_ref()));
                        }
                    }
                }
            }
        }
    });
    world.pods.on_change({
        let (queue, seen) = (Arc::clone(&queue), Arc::downgrade(world));
        // Strategy Recreate waits until the last old pod is gone; no other change of a pod matters here.
        move |change| {
            if change.new.as_ref().is_some_and(|pod| !meta::is_finished(pod)) {
                return;
            }
            let pod = change.latest();
            let Some(world) = seen.upgrade() else { return };
            let namespace = Key::of(pod.as_ref()).namespace;
            let set = meta::controller_of(pod.as_ref()).filter(|owner| owner.kind == "ReplicaSet");
            let set = set.and_then(|owner| world.replica_sets.get(&Key::new(&namespace, &owner.name)));
            if let Some(owner) = set.as_ref().and_then(|set| meta::controller_of(set.as_ref())) {
                queue.add(Key::new(namespace, &owner.name));
            }
        }
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        tokio::join!(world.deployments.synced(), world.replica_sets.synced(), world.pods.synced());
        let settle = Arc::new(Settle::new());
        let handle = move |key: Key| reconcile(Arc::clone(&world), Arc::clone(&settle), key);
        queue.run("deployment", 16, shutdown, handle).await;
    });
}

fn selected(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
    selector.is_some_and(|selector| {
        !meta::is_empty_selector(selector) && meta::selects(selector, set.metadata.labels.as_ref())
    })
}

fn observe(world: &World, deployment: Arc<Deployment>) -> Observed {
    let namespace = Key::of(deployment.as_ref()).namespace;
    let mut sets = world.replica_sets.controlled_by(meta::uid(deployment.as_ref()));
    if deployment.metadata.deletion_timestamp.is_none() {
        let orphans = world.replica_sets.orphans(&namespace);
        sets.extend(
            orphans
                .into_iter()
                .filter(|set| set.metadata.deletion_timestamp.is_none() && selected(&deployment, set)),
        );
    }
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let recreate = strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"));
    let live = |set: &Arc<ReplicaSet>| {
        let pods = world.pods.controlled_by(meta::uid(set.as_ref()));
        pods.iter().any(|pod| !meta::is_finished(pod))
    };
    let sets_with_pods = if recreate {
        sets.iter().filter(|set| live(set)).map(|set| meta::uid(set.as_ref()).to_owned()).collect()
    } else {
        Vec::new()
    };
    Observed { deployment, replica_sets: sets, sets_with_pods }
}

async fn reconcile(world: Arc<World>, settle: Arc<Settle<Key>>, key: Key) -> Result<Option<Duration>, Error> {
    let Some(deployment) = world.deployments.get(&key) else {
        settle.forget(&key);
        return Ok(None);
    };
    let observed = observe(&world, Arc::clone(&deployment));
    let orphans = observed.replica_sets.iter().any(|set| meta::controller_of(set.as_ref()).is_none());
    if orphans && !world.may_adopt(&world.deployments, deployment.as_ref()).await? {
        // Its own event is on the way.
        return Ok(None);
    }
    let plan = plan::plan(&observed, Timestamp::now());
    let mut status = plan.status;
    let mut revision = None;
    for action in plan.actions {
        match action {
            Action::Create(set) => match world.create(&world.replica_sets, set.as_ref()).await {
                Ok(_) => {}
                Err(error) if error.is_conflict() => {
                    if collides(&world, &deployment, &set).await? {
                        // The name is taken by another template of the same hash: the next pass uses another one.
                        let bumped =
                            status.get_or_insert_with(|| deployment.status.clone().unwrap_or_default());
                        bumped.collision_count = Some(bumped.collision_count.unwrap_or(0) + 1);
                        bumped.observed_generation = deployment.metadata.generation;
                    }
                }
                Err(error) => {
                    let message =
                        format!("Failed to create new replica set \"{}\": {error}", meta::name(set.as_ref()));
                    let event =
                        Draft::warning(deployment.as_ref(), COMPONENT, "ReplicaSetCreateError", message);
                    world.events.record(event);
                    return Err(error);
                }
            },
            Action::Patch { name, patch } => {
                world.merge(&world.replica_sets, &Key::new(&key.namespace, name), &patch).await?;
            }
            Action::Delete(set) => world.delete(&world.replica_sets, set.as_ref()).await?,
            Action::Revision(number) => revision = Some(number),
        }
    }
    plan.events.into_iter().for_each(|event| world.events.record(event));
    if status.is_some() || revision.is_some() {
        let urgent = status.as_ref().is_some_and(|new| status::is_news(deployment.status.as_ref(), new));
        if let Some(left) = settle.hold(&key, urgent) {
            return Ok(earlier(plan.again, Some(left)));
        }
        let newest = world
            .deployments
            .get(&key)
            .filter(|newest| meta::uid(newest.as_ref()) == meta::uid(deployment.as_ref()));
        let mut object = newest.map_or_else(|| deployment.as_ref().clone(), |newest| newest.as_ref().clone());
        if object.metadata.generation == deployment.metadata.generation {
            object.status = status.or(object.status);
            if let Some(revision) = revision {
                let annotations = object.metadata.annotations.get_or_insert_default();
                annotations.insert(revision::REVISION.to_owned(), revision);
            }
            match world.replace_status(&world.deployments, &object).await {
                Err(error) if error.is_not_found() => {}
                other => other?,
            }
        }
    }
    Ok(plan.again)
}

/// Whether the ReplicaSet that holds the wanted name is another one than the wanted. If it is the wanted one, the cache gets to know it.
async fn collides(world: &World, deployment: &Deployment, wanted: &ReplicaSet) -> Result<bool, Error> {
    let key = Key::of(wanted);
    let held = match world.api::<ReplicaSet>(&key.namespace).get(&key.name).await.map_err(Error::from) {
        Ok(held) => held,
        // Gone again, or the namespace is going away: the next event decides.
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    };
    let ours = meta::controller_of(&held).is_some_and(|owner| owner.uid == meta::uid(deployment));
    let same = ours && plan::same_template(deployment, &held);
    world.replica_sets.observe(held);
    Ok(!same)
}
