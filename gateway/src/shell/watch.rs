//! Following a kind of objects: a watch that also tells what vanished while it was away.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as start};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// News of one kind.
pub(crate) enum Change<K> {
    /// It is there or changed.
    Apply(K),
    /// It is gone.
    Gone {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Everything that exists was told.
    Synced,
}

/// Follows until `shutdown`, through every error.
pub(crate) async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    shutdown: CancellationToken,
    mut on: impl FnMut(Change<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default + Clone + Eq + Hash,
{
    let stream = start(api, config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let mut known: HashSet<(String, String)> = HashSet::new();
    let mut listed = HashSet::new();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                tracing::warn!(kind = %K::kind(&K::DynamicType::default()), %error, "watch broke off, trying again");
            }
            Some(Ok(Event::Init)) => listed = HashSet::new(),
            Some(Ok(Event::InitApply(mut object))) => {
                listed.insert(id(&object));
                object.managed_fields_mut().clear();
                on(Change::Apply(object));
            }
            Some(Ok(Event::InitDone)) => {
                for (namespace, name) in known.difference(&listed).cloned() {
                    on(Change::Gone { namespace, name });
                }
                known = std::mem::take(&mut listed);
                on(Change::Synced);
            }
            Some(Ok(Event::Apply(mut object))) => {
                known.insert(id(&object));
                object.managed_fields_mut().clear();
                on(Change::Apply(object));
            }
            Some(Ok(Event::Delete(object))) => {
                let (namespace, name) = id(&object);
                known.remove(&(namespace.clone(), name.clone()));
                on(Change::Gone { namespace, name });
            }
        }
    }
}

fn id<K: Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}
