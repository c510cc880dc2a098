//! Following a kind of objects: a watch that also tells what vanished while it was away.
//!
//! A watch that breaks off goes on from where it was; only when the API server does not know that place any more is everything listed
//! again, in pages. Pauses grow and are jittered, for the watches of all components break off together, when the API server ends, and
//! shall not come back together. Meanwhile whoever follows keeps what it knows.

use std::collections::HashSet;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::runtime::watcher as start;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// The first pause is at most this.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// None is longer: an API server that is back should be noticed soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// News of one kind.
#[derive(Debug)]
pub enum Change<K> {
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

/// The pauses between attempts.
#[derive(Clone, Debug)]
struct Pauses(ebb_mesh::Backoff);

impl Pauses {
    const fn new() -> Self {
        Self(ebb_mesh::Backoff::new(FIRST_PAUSE, LONGEST_PAUSE))
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.next(rand::random()))
    }
}

/// The events of a watch that is begun again for ever. Objects come without their managed fields, which nobody reads and which are half
/// of their size.
pub fn events<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    paced(kind, start(api, config))
        .map(|event| event.map(|event| event.modify(|object| object.managed_fields_mut().clear())))
}

/// A pause after each failure, which grows until the API server has really answered: a list that begins (`Init`) is no answer yet.
fn paced<K, E: Display>(
    kind: String,
    events: impl Stream<Item = Result<Event<K>, E>>,
) -> impl Stream<Item = Result<Event<K>, E>> {
    let mut pauses = Pauses::new();
    let mut broken = false;
    events.then(move |event| {
        let pause = match &event {
            Err(error) => {
                if broken {
                    tracing::debug!(kind, %error, "a watch is still broken off");
                } else {
                    // Once for each time that it breaks off, not once for each attempt.
                    tracing::warn!(kind, %error, "a watch broke off; what is known stays in force, trying again");
                }
                broken = true;
                pauses.next()
            }
            Ok(Event::Init) => None,
            Ok(_) => {
                if std::mem::take(&mut broken) {
                    tracing::info!(kind, "a watch goes on");
                    pauses = Pauses::new();
                }
                None
            }
        };
        async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            event
        }
    })
}

/// Follows until `shutdown`, through every error.
pub async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    shutdown: CancellationToken,
    mut on: impl FnMut(Change<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default + Clone + Eq + Hash,
{
    let mut events = std::pin::pin!(events(api, config));
    let mut known: HashSet<(String, String)> = HashSet::new();
    let mut listed = HashSet::new();
    while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
        match event {
            Err(_) => {}
            Ok(Event::Init) => listed = HashSet::new(),
            Ok(Event::InitApply(object)) => {
                listed.insert(id(&object));
                on(Change::Apply(object));
            }
            Ok(Event::InitDone) => {
                for (namespace, name) in known.difference(&listed).cloned() {
                    on(Change::Gone { namespace, name });
                }
                known = std::mem::take(&mut listed);
                on(Change::Synced);
            }
            Ok(Event::Apply(object)) => {
                known.insert(id(&object));
                on(Change::Apply(object));
            }
            Ok(Event::Delete(object)) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_while_only_lists_begin() {
        let attempts = 12;
        let events =
            futures::stream::iter((0..attempts).flat_map(|_| [Ok(Event::<()>::Init), Err("refused")]));
        let start = tokio::time::Instant::now();
        paced("Thing".into(), events).for_each(async |_| {}).await;
        assert!(start.elapsed() > FIRST_PAUSE * attempts, "{:?}", start.elapsed());
    }
}
