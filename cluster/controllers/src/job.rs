//! Jobs: pods that run to completion. Completion modes NonIndexed and Indexed, parallelism, backoffLimit, activeDeadlineSeconds, suspend and
//! ttlSecondsAfterFinished are honoured; podFailurePolicy, successPolicy and per-index backoff are not, and a Job that asks
//! for them is told so by a condition rather than run wrongly.

mod plan;

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    cache::{Change, Key},
    events::Draft,
    meta,
    queue::Queue,
    world::World,
};

const COMPONENT: &str = "job-controller";

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let queue: Arc<Queue<Key>> = Queue::new();
    world.jobs.on_change({
        let queue = Arc::clone(&queue);
        move |change| queue.add(Key::of(change.latest().as_ref()))
    });
    world.pods.on_change({
        let queue = Arc::clone(&queue);
        move |change: &Change<Pod>| {
            for pod in change.both() {
                if let Some(owner) = meta::controller_of(pod.as_ref()).filter(|owner| owner.kind == "Job") {
                    queue.add(Key::new(Key::of(pod.as_ref()).namespace, &owner.name));
                }
            }
        }
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        tokio::join!(world.jobs.synced(), world.pods.synced());
        queue.run("job", 16, shutdown, move |key: Key| reconcile(Arc::clone(&world), key)).await;
    });
}

async fn reconcile(world: Arc<World>, key: Key) -> Result<Option<Duration>, Error> {
    let Some(job) = world.jobs.get(&key) else { return Ok(None) };
    let pods = world.pods.controlled_by(meta::uid(job.as_ref()));
    let plan = plan::plan(&job, &pods, Timestamp::now());
    if plan.remove {
        world.delete(&world.jobs, job.as_ref()).await?;
        return Ok(None);
    }
    for pod in &plan.delete {
        world.delete(&world.pods, pod.as_ref()).await?;
    }
    for pod in &plan.create {
        match world.create(&world.pods, pod).await {
            Ok(made) => {
                let message = format!("Created pod: {}", meta::name(&made));
                world.events.record(Draft::normal(job.as_ref(), COMPONENT, "SuccessfulCreate", message));
            }
            Err(error) => {
                let message = format!("Error creating: {error}");
                world.events.record(Draft::warning(job.as_ref(), COMPONENT, "FailedCreate", message));
                return Err(error);
            }
        }
    }
    plan.events.into_iter().for_each(|event| world.events.record(event));
    if let Some(status) = plan.status {
        let mut object = job.as_ref().clone();
        object.status = Some(status);
        match world.replace_status(&world.jobs, &object).await {
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
    }
    Ok(plan.again)
}
