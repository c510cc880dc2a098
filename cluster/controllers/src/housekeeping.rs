//! What nobody waits for: pods whose node is gone, and events past their hour.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::core::v1::{Event, Pod},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Error, cache::Key, meta, world::World};

/// How long events are kept, as Kubernetes does by default.
const EVENT_LIFE: Duration = Duration::from_secs(3600);
const SWEEP: Duration = Duration::from_secs(300);

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        tokio::join!(world.pods.synced(), world.nodes.synced());
        let mut sweeps = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = sweeps.tick() => {}
            }
            for swept in [sweep_pods(&world).await, sweep_events(&world).await] {
                if let Err(error) = swept {
                    tracing::warn!(%error, "housekeeping failed, trying again in five minutes");
                }
            }
        }
    });
}

/// Pods bound to a node that does not exist: nobody would ever confirm their end.
async fn sweep_pods(world: &World) -> Result<(), Error> {
    // While no node is registered at all, the node agent is only late.
    if world.nodes.all().is_empty() {
        return Ok(());
    }
    let is_lost = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        node.is_some_and(|node| world.nodes.get(&Key::new("", node)).is_none())
    };
    for pod in world.pods.all().iter().filter(|pod| is_lost(pod)) {
        let key = Key::of(pod.as_ref());
        tracing::info!(pod = %key, "its node is gone, removing it");
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        match world.api::<Pod>(&key.namespace).delete(&key.name, &params).await.map_err(Error::from) {
            Err(error) if error.is_not_found() => {}
            other => drop(other?),
        }
    }
    Ok(())
}

async fn sweep_events(world: &World) -> Result<(), Error> {
    let all: Api<Event> = Api::all(world.client.clone());
    let mut params = ListParams::default().limit(500);
    loop {
        let page = all.list(&params).await?;
        let now = Timestamp::now();
        for event in page.items.iter().filter(|event| is_old(event, now)) {
            let key = Key::of(event);
            match world.api::<Event>(&key.namespace).delete(&key.name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other?),
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

fn is_old(event: &Event, now: Timestamp) -> bool {
    let series =
        event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let happened = event.event_time.as_ref().map(|time| time.0);
    let last = [series, last, happened, meta::created(event)].into_iter().flatten().max();
    last.is_some_and(|last| last + EVENT_LIFE < now)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn an_event_lives_an_hour_after_its_last_occurrence() {
        let time = |second| Some(Time(Timestamp::from_second(second).unwrap()));
        let mut event = Event { first_timestamp: time(0), last_timestamp: time(1000), ..Event::default() };
        event.metadata.creation_timestamp = time(0);
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(!is_old(&event, at(4600)));
        assert!(is_old(&event, at(4601)));
    }
}
