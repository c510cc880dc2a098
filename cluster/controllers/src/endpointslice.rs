//! EndpointSlices of Services that have a selector; slices of Services without one are their makers' own business.

mod plan;

pub(crate) use plan::{has_selector, is_ours, labels_of, selector_of, service_of};

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::api::PostParams;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    cache::{Change, Key},
    meta,
    queue::Queue,
    world::World,
};

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let queue: Arc<Queue<Key>> = Queue::new();
    world.services.on_change({
        let queue = Arc::clone(&queue);
        move |change| queue.add(Key::of(change.latest().as_ref()))
    });
    world.endpoint_slices.on_change({
        let queue = Arc::clone(&queue);
        move |change: &Change<EndpointSlice>| {
            let slice = change.latest();
            if let Some(service) = plan::service_of(slice).filter(|_| plan::is_ours(slice)) {
                queue.add(Key::new(Key::of(slice.as_ref()).namespace, service));
            }
        }
    });
    world.pods.on_change({
        let (queue, world) = (Arc::clone(&queue), Arc::downgrade(world));
        move |change: &Change<Pod>| {
            if !matters(change) {
                return;
            }
            let Some(world) = world.upgrade() else { return };
            let namespace = Key::of(change.latest().as_ref()).namespace;
            for pod in change.both() {
                let services =
                    labels_of(pod).into_iter().flat_map(|label| world.services.find(&namespace, &label));
                for service in services.filter(|service| plan::selects(service, pod)) {
                    queue.add(Key::of(service.as_ref()));
                }
            }
        }
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        tokio::join!(world.services.synced(), world.endpoint_slices.synced(), world.pods.synced());
        queue.run("endpointslice", 16, shutdown, move |key: Key| reconcile(Arc::clone(&world), key)).await;
    });
}

/// Whether a pod's change can change an endpoint. A pod without an address has none.
fn matters(change: &Change<Pod>) -> bool {
    let address = |pod: &Arc<Pod>| pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    let (Some(old), Some(new)) = (&change.old, &change.new) else {
        return address(change.latest()).is_some();
    };
    address(old) != address(new)
        || meta::is_ready(old) != meta::is_ready(new)
        || meta::is_finished(old) != meta::is_finished(new)
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
        || old.metadata.labels != new.metadata.labels
        || meta::uid(old.as_ref()) != meta::uid(new.as_ref())
}

async fn reconcile(world: Arc<World>, key: Key) -> Result<Option<Duration>, Error> {
    let Some(service) = world.services.get(&key) else { return Ok(None) };
    if !plan::has_selector(&service) || service.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let label = selector_of(&service).pop().unwrap_or_default();
    let mut pods = world.pods.find(&key.namespace, &label);
    pods.retain(|pod| plan::selects(&service, pod));
    let mut slices = world.endpoint_slices.find(&key.namespace, &key.name);
    slices.retain(|slice| plan::is_ours(slice));
    let plan = plan::plan(&service, &pods, &slices);
    write(&world, &key, &service, plan).await
}

async fn write(
    world: &World,
    key: &Key,
    service: &Service,
    plan: plan::Plan,
) -> Result<Option<Duration>, Error> {
    let api = world.api::<EndpointSlice>(&key.namespace);
    let ignore_gone = |result: Result<(), Error>| match result {
        // The namespace or the slice is gone; its deletion has queued the service again if there is still one.
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    };
    for slice in plan.create {
        let made = world.create(&world.endpoint_slices, &slice).await;
        if let Err(error) = &made
            && world.services.get(key).is_none_or(|held| meta::uid(held.as_ref()) != meta::uid(service))
        {
            tracing::debug!(%key, %error, "the service went away while its slice was made");
            return Ok(None);
        }
        made?;
    }
    for slice in plan.update {
        let name = meta::name(&slice).to_owned();
        let replaced = api.replace(&name, &PostParams::default(), &slice).await.map_err(Error::from);
        ignore_gone(replaced.map(|slice| world.endpoint_slices.observe(slice)))?;
    }
    for slice in plan.delete {
        world.delete(&world.endpoint_slices, slice.as_ref()).await?;
    }
    Ok(None)
}
