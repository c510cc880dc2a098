//! HorizontalPodAutoscalers: how many pods a target has, by what its pods use of the processor and of memory.
//!
//! The algorithm is Kubernetes' own (<https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/>): what the pods use
//! against what they ask for, the largest number that a metric wants, then the bounds and the rates of `spec.behavior`. Figures come
//! from `metrics.k8s.io`; there is no API of custom or external metrics here, and an autoscaler that asks for one is told so.

mod behavior;
mod metrics;
mod plan;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::{
            v1::Scale,
            v2::{CrossVersionObjectReference, HorizontalPodAutoscaler},
        },
        core::v1::Pod,
    },
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
};
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    cache::{Change, Key},
    events::Draft,
    queue::Queue,
    world::World,
};
use behavior::History;
use plan::{Observed, Target};

pub(crate) const COMPONENT: &str = "horizontal-pod-autoscaler";
/// How often each is looked at, as Kubernetes does by default.
const PERIOD: Duration = Duration::from_secs(15);

type Histories = Arc<Mutex<HashMap<Key, History>>>;

pub(crate) fn start(world: &Arc<World>, tasks: &TaskTracker, shutdown: &CancellationToken) {
    let queue: Arc<Queue<Key>> = Queue::new();
    world.horizontals.on_change({
        let queue = Arc::clone(&queue);
        move |change: &Change<HorizontalPodAutoscaler>| {
            let spec = |hpa: &Arc<HorizontalPodAutoscaler>| hpa.spec.clone();
            // Its own status is no news.
            let same = change.old.as_ref().map(spec) == change.new.as_ref().map(spec);
            if !same {
                queue.add(Key::of(change.latest().as_ref()));
            }
        }
    });
    // A target that is made after its autoscaler. One whose scale somebody else changes is seen at the next look, or two who disagree about
    // it would answer each other without a pause.
    world.deployments.on_change({
        let (queue, world) = (Arc::clone(&queue), Arc::downgrade(world));
        move |change: &Change<Deployment>| {
            if change.old.is_some() {
                return;
            }
            let Some(world) = world.upgrade() else { return };
            let key = Key::of(change.latest().as_ref());
            for hpa in world.horizontals.in_namespace(&key.namespace) {
                let target = hpa.spec.as_ref().map(|spec| &spec.scale_target_ref);
                if target.is_some_and(|target| target.kind == "Deployment" && target.name == key.name) {
                    queue.add(Key::of(hpa.as_ref()));
                }
            }
        }
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        world.horizontals.synced().await;
        let histories = Histories::default();
        let handle = move |key: Key| reconcile(Arc::clone(&world), Arc::clone(&histories), key);
        queue.run("horizontal", 4, shutdown, handle).await;
    });
}

async fn reconcile(world: Arc<World>, histories: Histories, key: Key) -> Result<Option<Duration>, Error> {
    let Some(hpa) = world.horizontals.get(&key) else {
        histories.lock().remove(&key);
        return Ok(None);
    };
    let Some(spec) = hpa.spec.as_ref().filter(|_| hpa.metadata.deletion_timestamp.is_none()) else {
        return Ok(None);
    };
    let scales = scales_of(&world, &key.namespace, &spec.scale_target_ref).await;
    let scale = match &scales {
        Ok(scales) => get_scale(scales, &spec.scale_target_ref.name).await,
        Err(why) => Err(why.clone()),
    };
    let target = match &scale {
        Ok(scale) => observe(&world, &key.namespace, scale).await,
        Err(why) => Err(why.clone()),
    };
    let rivals = rivals(&world, hpa.as_ref());
    let observed = Observed { hpa: hpa.as_ref(), target, rivals };
    let now = Timestamp::now();
    let mut history = histories.lock().get(&key).cloned().unwrap_or_default();
    let mut plan = plan::plan(&observed, &mut history, now);
    if let (Some(wanted), Ok(scales), Ok(scale)) = (plan.rescale, &scales, scale) {
        match rescale(scales, &spec.scale_target_ref.name, scale, wanted).await {
            Ok(before) => {
                history.rescaled(wanted - before, now);
                plan.rescaled(wanted, now);
            }
            Err(error) => plan.not_rescaled(wanted, &error, now),
        }
    }
    histories.lock().insert(key.clone(), history);
    for (warning, reason, message) in plan.events {
        let draft = Draft::normal(hpa.as_ref(), COMPONENT, reason, message);
        world.events.record(Draft { warning, ..draft });
    }
    if hpa.status.as_ref() != Some(&plan.status) {
        let object = HorizontalPodAutoscaler { status: Some(plan.status), ..hpa.as_ref().clone() };
        match world.replace_status(&world.horizontals, &object).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        }
    }
    Ok(Some(PERIOD))
}

/// Other autoscalers of the same target.
fn rivals(world: &World, hpa: &HorizontalPodAutoscaler) -> Vec<String> {
    let target = |hpa: &HorizontalPodAutoscaler| {
        let target = &hpa.spec.as_ref()?.scale_target_ref;
        Some((target.kind.clone(), target.name.clone()))
    };
    let own = Key::of(hpa);
    let others = world.horizontals.in_namespace(&own.namespace);
    let others = others.iter().filter(|other| target(other.as_ref()) == target(hpa));
    others.map(|other| Key::of(other.as_ref())).filter(|key| *key != own).map(|key| key.to_string()).collect()
}

/// Writes a scale; returns the number of replicas before. Somebody else's write in between is read again, and written over.
async fn rescale(
    scales: &Api<DynamicObject>,
    name: &str,
    mut scale: Scale,
    wanted: i32,
) -> Result<i32, String> {
    const ATTEMPTS: usize = 3;
    let mut attempt = 1;
    loop {
        let before = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        scale.spec.get_or_insert_default().replicas = Some(wanted);
        match scales.replace_subresource("scale", name, &PostParams::default(), &scale).await {
            Ok(_) => return Ok(before),
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < ATTEMPTS => {
                attempt += 1;
                scale = get_scale(scales, name).await?;
            }
            Err(error) => return Err(words(error)),
        }
    }
}

/// What the API server said, as it said it.
fn words(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    }
}

/// Where the target's kind has its scale subresources.
async fn scales_of(
    world: &World,
    namespace: &str,
    target: &CrossVersionObjectReference,
) -> Result<Api<DynamicObject>, String> {
    let version = target.api_version.as_deref().unwrap_or("v1");
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = GroupVersionKind::gvk(group, version, &target.kind);
    // The common case needs no look at what the server serves.
    let resource = match (group, target.kind.as_str()) {
        ("apps", "Deployment") => ApiResource::erase::<Deployment>(&()),
        _ => {
            let found = kube::discovery::pinned_kind(&world.client, &kind).await;
            found
                .map_err(|_| {
                    format!("no matches for kind {:?} in version {:?}", kind.kind, kind.api_version())
                })?
                .0
        }
    };
    Ok(Api::namespaced_with(world.client.clone(), namespace, &resource))
}

async fn get_scale(scales: &Api<DynamicObject>, name: &str) -> Result<Scale, String> {
    let object = scales.get_subresource("scale", name).await.map_err(words)?;
    let value = serde_json::to_value(object).map_err(|error| error.to_string())?;
    serde_json::from_value(value).map_err(|error| format!("its scale is not understood: {error}"))
}

/// The target's pods, and what they use.
async fn observe(world: &World, namespace: &str, scale: &Scale) -> Result<Target, String> {
    let replicas = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
    let selector = scale.status.as_ref().and_then(|status| status.selector.clone()).unwrap_or_default();
    let mut target =
        Target { replicas, selects: !selector.is_empty(), pods: Vec::new(), usage: Ok(Vec::new()) };
    if replicas == 0 || !target.selects {
        return Ok(target);
    }
    let selected = ListParams::default().labels(&selector);
    let pods: Api<Pod> = world.api(namespace);
    target.pods = pods.list(&selected).await.map_err(words)?.items;
    target.usage = metrics::fetch(&world.client, namespace, &selected).await;
    Ok(target)
}
