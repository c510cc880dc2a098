//! A namespace that is being deleted: its content goes first, then its finalizer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, PostParams},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    cache::Key,
    gc::{Collector, Kind},
    meta,
    queue::Queue,
    world::World,
};

const FINALIZER: &str = "kubernetes";
/// What is left is looked at again when something of it goes, and after this time at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

pub(crate) fn start(
    world: &Arc<World>,
    collector: Arc<Collector>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let queue: Arc<Queue<String>> = Queue::new();
    world.namespaces.on_change({
        let queue = Arc::clone(&queue);
        move |change| {
            if let Some(namespace) = change.new.as_ref().filter(|namespace| is_going(namespace)) {
                queue.add(meta::name(namespace.as_ref()).to_owned());
            }
        }
    });
    collector.on_removed({
        let (queue, world) = (Arc::clone(&queue), Arc::downgrade(world));
        move |name| {
            let world = world.upgrade();
            if world
                .and_then(|world| world.namespaces.get(&Key::new("", name)))
                .is_some_and(|held| is_going(&held))
            {
                // A pass deletes many objects; one look after the last of them is enough.
                queue.add_after(name.to_owned(), Duration::from_millis(20));
            }
        }
    });
    let (world, shutdown) = (Arc::clone(world), shutdown.clone());
    tasks.spawn(async move {
        world.namespaces.synced().await;
        let handle = move |name: String| reconcile(Arc::clone(&world), Arc::clone(&collector), name);
        queue.run("namespace", 4, shutdown, handle).await;
    });
}

fn finalizers(namespace: &Namespace) -> &[String] {
    namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default()
}

fn is_going(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers(namespace).iter().any(|held| held == FINALIZER)
}

/// What is left of one kind: how many objects, and which finalizers hold them.
#[derive(Default)]
struct Left {
    count: usize,
    finalizers: BTreeMap<String, usize>,
}

async fn reconcile(
    world: Arc<World>,
    collector: Arc<Collector>,
    name: String,
) -> Result<Option<Duration>, Error> {
    let Some(namespace) = world.namespaces.get(&Key::new("", &name)).filter(|held| is_going(held)) else {
        return Ok(None);
    };
    let kinds = collector.kinds().await;
    let content = kinds.iter().filter(|kind| kind.namespaced && kind.can("list") && kind.can("delete"));
    let results: Vec<(String, Result<Left, Error>)> = stream::iter(content.cloned().collect::<Vec<_>>())
        .map(|kind| {
            let (world, name) = (Arc::clone(&world), name.clone());
            async move {
                (
                    format!("{}.{}", kind.resource.plural, kind.resource.group),
                    empty(&world, &name, &kind).await,
                )
            }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let mut left = BTreeMap::new();
    let mut failures = Vec::new();
    for (plural, result) in results {
        match result {
            Ok(held) if held.count > 0 => {
                left.insert(plural, held);
            }
            Ok(_) => {}
            Err(error) => failures.push(format!("{plural}: {error}")),
        }
    }
    if left.is_empty() && failures.is_empty() {
        finalize(&world, &namespace).await?;
        return Ok(None);
    }
    let conditions = conditions(&namespace, &left, &failures, Timestamp::now());
    let held = namespace.status.as_ref().and_then(|status| status.conditions.as_ref());
    if held != Some(&conditions) {
        let mut object = namespace.as_ref().clone();
        let status = object.status.get_or_insert_default();
        status.phase = Some("Terminating".to_owned());
        status.conditions = Some(conditions);
        let api: Api<Namespace> = Api::all(world.client.clone());
        match api.replace_status(&name, &PostParams::default(), &object).await.map_err(Error::from) {
            Ok(made) => world.namespaces.observe(made),
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    if failures.is_empty() { Ok(Some(LOOK_AGAIN)) } else { Err(Error::Unfinished(failures.join("; "))) }
}

/// Deletes all objects of a kind in a namespace and tells what is left.
async fn empty(world: &World, namespace: &str, kind: &Kind) -> Result<Left, Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(world.client.clone(), namespace, &kind.resource);
    let mut left = list(&api).await?;
    if left.is_empty() {
        return Ok(Left::default());
    }
    let background = DeleteParams::background();
    if kind.can("deletecollection") {
        let deleted = api.delete_collection(&background, &ListParams::default()).await;
        ignore_gone(deleted.map(drop))?;
    } else {
        for (name, _) in &left {
            ignore_gone(api.delete(name, &background).await.map(drop))?;
        }
    }
    left = list(&api).await?;
    let mut finalizers = BTreeMap::new();
    for finalizer in left.iter().flat_map(|(_, finalizers)| finalizers) {
        *finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(Left { count: left.len(), finalizers })
}

fn ignore_gone(result: Result<(), kube::Error>) -> Result<(), Error> {
    match result.map_err(Error::from) {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

async fn list(api: &Api<DynamicObject>) -> Result<Vec<(String, Vec<String>)>, Error> {
    let listed = api.list_metadata(&ListParams::default()).await.map_err(Error::from);
    match listed {
        Ok(listed) => Ok(listed
            .items
            .into_iter()
            .map(|object| {
                (object.metadata.name.unwrap_or_default(), object.metadata.finalizers.unwrap_or_default())
            })
            .collect()),
        // The kind went away since it was discovered, and its objects with it.
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

async fn finalize(world: &World, namespace: &Namespace) -> Result<(), Error> {
    let mut object = namespace.clone();
    if let Some(finalizers) = object.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|held| held != FINALIZER);
    }
    let api: Api<Namespace> = Api::all(world.client.clone());
    let name = meta::name(namespace);
    match api
        .replace_subresource("finalize", name, &PostParams::default(), &object)
        .await
        .map_err(Error::from)
    {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

fn conditions(
    namespace: &Namespace,
    left: &BTreeMap<String, Left>,
    failures: &[String],
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let held = namespace.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let make = |type_: &str, set: bool, reason: (&str, &str), message: (String, &str)| {
        let status = if set { "True" } else { "False" };
        let old = held.iter().find(|old| old.type_ == type_ && old.status == status);
        NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(if set { reason.0 } else { reason.1 }.to_owned()),
            message: Some(if set { message.0 } else { message.1.to_owned() }),
            last_transition_time: old
                .and_then(|old| old.last_transition_time.clone())
                .or_else(|| Some(meta::whole_seconds(now))),
        }
    };
    let counts = |counts: Vec<String>| counts.join(", ");
    let remaining =
        left.iter().map(|(plural, left)| format!("{plural} has {} resource instances", left.count));
    let mut holders: BTreeMap<&str, usize> = BTreeMap::new();
    for (finalizer, count) in left.values().flat_map(|left| &left.finalizers) {
        *holders.entry(finalizer).or_default() += count;
    }
    let holding =
        holders.iter().map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"));
    let failed =
        format!("Failed to delete all resource types, {} remaining: {}", failures.len(), failures.join("; "));
    vec![
        make(
            "NamespaceDeletionDiscoveryFailure",
            false,
            ("DiscoveryFailed", "ResourcesDiscovered"),
            (String::new(), "All resources successfully discovered"),
        ),
        make(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ("GroupVersionParsingFailed", "ParsedGroupVersions"),
            (String::new(), "All legacy kube types successfully parsed"),
        ),
        make(
            "NamespaceDeletionContentFailure",
            !failures.is_empty(),
            ("ContentDeletionFailed", "ContentDeleted"),
            (failed, "All content successfully deleted, may be waiting on finalization"),
        ),
        make(
            "NamespaceContentRemaining",
            !left.is_empty(),
            ("SomeResourcesRemain", "ContentRemoved"),
            (
                format!("Some resources are remaining: {}", counts(remaining.collect())),
                "All content successfully removed",
            ),
        ),
        make(
            "NamespaceFinalizersRemaining",
            !holders.is_empty(),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            (
                format!(
                    "Some content in the namespace has finalizers remaining: {}",
                    counts(holding.collect())
                ),
                "All content-preserving finalizers finished",
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_tell_what_holds_it_up() {
        let left = BTreeMap::from([(
            "pods.".to_owned(),
            Left { count: 2, finalizers: BTreeMap::from([("example.com/x".to_owned(), 1)]) },
        )]);
        let then = Timestamp::from_second(5).unwrap();
        let made = conditions(&Namespace::default(), &left, &[], then);
        let told: Vec<_> = made.iter().map(|made| (made.type_.as_str(), made.status.as_str())).collect();
        assert_eq!(
            told,
            [
                ("NamespaceDeletionDiscoveryFailure", "False"),
                ("NamespaceDeletionGroupVersionParsingFailure", "False"),
                ("NamespaceDeletionContentFailure", "False"),
                ("NamespaceContentRemaining", "True"),
                ("NamespaceFinalizersRemaining", "True")
            ]
        );
        assert_eq!(
            made[3].message.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances")
        );
        let mut namespace = Namespace::default();
        namespace.status.get_or_insert_default().conditions = Some(made.clone());
        let later = conditions(&namespace, &left, &[], Timestamp::from_second(50).unwrap());
        assert_eq!(later, made, "unchanged conditions keep their times");
    }
}
