//! Discovery of kinds, and one metadata watch for each.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api, Discovery,
    api::{ApiResource, DynamicObject, PartialObjectMeta},
    runtime::watcher::{self, Event},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Collector, Kind, act, graph::Object};

/// Discovers, watches and collects until `shutdown`.
pub(super) async fn run(collector: Arc<Collector>, shutdown: CancellationToken) {
    let tasks = TaskTracker::new();
    let mut monitors: HashMap<(String, String), (CancellationToken, watch::Receiver<bool>)> = HashMap::new();
    let mut worker = None;
    let mut failures = 0u32;
    loop {
        match discover(&collector).await {
            Ok(kinds) => {
                failures = 0;
                adjust(&collector, &kinds, &mut monitors, &tasks, &shutdown);
                collector.kinds.send_replace(Some(Arc::new(kinds)));
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "discovery failed, trying again");
                let pause = Duration::from_millis(20 << failures.min(8));
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(pause) => continue,
                }
            }
        }
        if worker.is_none() {
            for (_, synced) in monitors.values_mut() {
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    _ = synced.wait_for(|synced| *synced) => {}
                }
            }
            let (queue, shutdown) = (Arc::clone(&collector.queue), shutdown.clone());
            let worked = Arc::clone(&collector);
            let handle = move |work| act::perform(Arc::clone(&worked), work);
            worker =
                Some(tasks.spawn(async move { queue.run("garbage-collector", 16, shutdown, handle).await }));
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = collector.discover.notified() => {}
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn discover(collector: &Collector) -> Result<Vec<Kind>, kube::Error> {
    let discovery = Discovery::new(collector.client.clone()).run().await?;
    let groups = discovery.groups();
    // Not the preferred version of the group alone: a kind may be in another one only.
    let resources = groups.flat_map(kube::discovery::ApiGroup::resources_by_stability);
    Ok(resources.map(|(resource, capabilities)| Kind::new(resource, &capabilities)).collect())
}

/// Starts watches of kinds that are new and ends those of kinds that are gone.
fn adjust(
    collector: &Arc<Collector>,
    kinds: &[Kind],
    monitors: &mut HashMap<(String, String), (CancellationToken, watch::Receiver<bool>)>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let key = |resource: &ApiResource| (resource.api_version.clone(), resource.plural.clone());
    let watched: Vec<&Kind> = kinds
        .iter()
        // Events have no owners and are many.
        .filter(|kind| {
            kind.resource.kind != "Event" && ["list", "watch", "delete"].iter().all(|verb| kind.can(verb))
        })
        .collect();
    let wanted: HashSet<_> = watched.iter().map(|kind| key(&kind.resource)).collect();
    monitors.retain(|key, (stop, _)| {
        let stays = wanted.contains(key);
        if !stays {
            stop.cancel();
        }
        stays
    });
    for kind in watched {
        monitors.entry(key(&kind.resource)).or_insert_with(|| {
            let stop = shutdown.child_token();
            let synced = watch::Sender::new(false);
            let receiver = synced.subscribe();
            let watching =
                monitor(Arc::clone(collector), kind.clone(), synced, stop.clone(), shutdown.clone());
            tasks.spawn(watching);
            (stop, receiver)
        });
    }
}

async fn monitor(
    collector: Arc<Collector>,
    kind: Kind,
    synced: watch::Sender<bool>,
    stop: CancellationToken,
    shutdown: CancellationToken,
) {
    let kind = Arc::new(kind);
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(collector.client.clone(), &kind.resource);
    let stream = watcher::watcher(api, watcher::Config::default());
    futures::pin_mut!(stream);
    let definitions = kind.resource.kind == "CustomResourceDefinition";
    let mut listed: Option<HashSet<String>> = None;
    let mut held: HashSet<String> = HashSet::new();
    let mut failing: Option<(Instant, u32)> = None;
    let uid = |object: &PartialObjectMeta<DynamicObject>| object.metadata.uid.clone().unwrap_or_default();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = stream.next() => event,
        };
        match event {
            None => break,
            Some(Err(error)) => {
                let (since, failures) = failing.get_or_insert((Instant::now(), 0));
                *failures += 1;
                tracing::debug!(kind = kind.resource.kind, %error, failing = ?since.elapsed(), "watch failed, starting again");
                let pause = Duration::from_millis(20 << (*failures).min(8));
                // A kind that cannot be listed must not keep the others from being collected, and may be gone.
                synced.send_replace(true);
                if definitions || *failures == 3 {
                    collector.discover.notify_one();
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(pause) => {}
                }
                continue;
            }
            Some(Ok(Event::Init)) => listed = Some(HashSet::new()),
            Some(Ok(Event::InitApply(object))) => {
                if let Some(listed) = &mut listed {
                    listed.insert(uid(&object));
                }
                held.insert(uid(&object));
                upsert(&collector, &kind, object);
            }
            Some(Ok(Event::InitDone)) => {
                if let Some(listed) = listed.take() {
                    let vanished: Vec<String> = held.difference(&listed).cloned().collect();
                    for uid in vanished {
                        held.remove(&uid);
                        remove(&collector, &uid);
                    }
                }
                synced.send_replace(true);
            }
            Some(Ok(Event::Apply(object))) => {
                held.insert(uid(&object));
                upsert(&collector, &kind, object);
                if definitions {
                    collector.discover.notify_one();
                }
            }
            Some(Ok(Event::Delete(object))) => {
                held.remove(&uid(&object));
                remove(&collector, &uid(&object));
                if definitions {
                    collector.discover.notify_one();
                }
            }
        }
        failing = None;
    }
    if !shutdown.is_cancelled() {
        // The kind itself is gone, and with it all its objects.
        held.iter().for_each(|uid| remove(&collector, uid));
    }
    synced.send_replace(true);
}

fn upsert(collector: &Collector, kind: &Arc<Kind>, object: PartialObjectMeta<DynamicObject>) {
    let work = collector.graph.lock().upsert(Object::new(Arc::clone(kind), object.metadata));
    work.into_iter().for_each(|work| collector.queue.add(work));
}

fn remove(collector: &Collector, uid: &str) {
    let (namespace, work) = collector.graph.lock().remove(uid);
    work.into_iter().for_each(|work| collector.queue.add(work));
    if let Some(namespace) = namespace.filter(|namespace| !namespace.is_empty()) {
        collector.removed.lock().iter().for_each(|hook| hook(&namespace));
    }
}
