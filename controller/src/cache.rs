//! A local copy of all objects of one kind, kept by a watch, with an index.

use futures::{Stream, StreamExt};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};
use parking_lot::RwLock;
use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What an object can be found by besides its name: within its namespace, or, where that begins with `/`, in all of them.
pub(crate) type Index<K> = fn(&K) -> Vec<String>;

/// The objects of one kind.
pub(crate) struct Cache<K> {
    index: Index<K>,
    synced: AtomicBool,
    inner: RwLock<Inner<K>>,
}

struct Inner<K> {
    objects: HashMap<(String, String), Arc<K>>,
    index: HashMap<(String, String), BTreeSet<String>>,
}

impl<K> Default for Inner<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), index: HashMap::new() }
    }
}

impl<K> Inner<K>
where
    K: ResourceExt,
{
    fn put(&mut self, object: Arc<K>, index: Index<K>) -> Option<Arc<K>> {
        let key = key(&*object);
        let before = self.remove(&key, index);
        for entry in index(&object) {
            let (at, name) = place(&key, entry);
            self.index.entry(at).or_default().insert(name);
        }
        self.objects.insert(key, object);
        before
    }

    fn remove(&mut self, key: &(String, String), index: Index<K>) -> Option<Arc<K>> {
        let before = self.objects.remove(key)?;
        for entry in index(&before) {
            let (at, name) = place(key, entry);
            if let Some(names) = self.index.get_mut(&at) {
                names.remove(&name);
                if names.is_empty() {
                    self.index.remove(&at);
                }
            }
        }
        Some(before)
    }
}

/// Where the index has an object, and as what.
fn place(key: &(String, String), entry: String) -> ((String, String), String) {
    if entry.starts_with('/') {
        ((String::new(), entry), format!("{}/{}", key.0, key.1))
    } else {
        ((key.0.clone(), entry), key.1.clone())
    }
}

fn key<K: ResourceExt>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + ResourceExt + Clone + std::fmt::Debug + Send + Sync + 'static,
{
    pub(crate) fn new(index: Index<K>) -> Self {
        Self { index, synced: AtomicBool::new(false), inner: RwLock::default() }
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.inner.read().objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The objects of a namespace that the index has under `entry`, sorted by name.
    pub(crate) fn find(&self, namespace: &str, entry: &str) -> Vec<Arc<K>> {
        let inner = self.inner.read();
        let names = inner.index.get(&(namespace.to_owned(), entry.to_owned()));
        names
            .into_iter()
            .flatten()
            .filter_map(|name| inner.objects.get(&(namespace.to_owned(), name.clone())).cloned())
            .collect()
    }

    /// The objects of all namespaces that the index has under `entry`, which begins with `/`.
    pub(crate) fn find_anywhere(&self, entry: &str) -> Vec<Arc<K>> {
        let inner = self.inner.read();
        let found = inner.index.get(&(String::new(), entry.to_owned()));
        let keys = found.into_iter().flatten().filter_map(|at| at.split_once('/'));
        keys.filter_map(|(namespace, name)| {
            inner.objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
        })
        .collect()
    }

    /// Whether any of the objects that [`Self::find`] finds is such.
    pub(crate) fn any(&self, namespace: &str, entry: &str, such: impl Fn(&K) -> bool) -> bool {
        let inner = self.inner.read();
        let names = inner.index.get(&(namespace.to_owned(), entry.to_owned()));
        let mut objects = names
            .into_iter()
            .flatten()
            .filter_map(|name| inner.objects.get(&(namespace.to_owned(), name.clone())));
        objects.any(|object| such(object))
    }

    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.inner.read().objects.values().cloned().collect()
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Follows a watch for ever. `changed` is told of each object that came, changed or went: as it was and as it is.
    pub(crate) async fn follow(
        &self,
        events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
        changed: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>),
    ) {
        let mut events = pin!(events);
        let mut listed: Vec<Arc<K>> = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(object)) => {
                    let object = Arc::new(object);
                    let before = self.inner.write().put(object.clone(), self.index);
                    changed(before.as_ref(), Some(&object));
                }
                Ok(Event::Delete(object)) => {
                    let before = self.inner.write().remove(&key(&object), self.index);
                    let last = before.unwrap_or_else(|| Arc::new(object));
                    changed(Some(&last), None);
                }
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => listed.push(Arc::new(object)),
                Ok(Event::InitDone) => {
                    let mut fresh = Inner::default();
                    for object in &listed {
                        fresh.put(object.clone(), self.index);
                    }
                    // What is gone since the last list went without an event.
                    let before = std::mem::replace(&mut *self.inner.write(), fresh);
                    self.synced.store(true, Ordering::Release);
                    for (key, old) in &before.objects {
                        if self.get(&key.0, &key.1).is_none() {
                            changed(Some(old), None);
                        }
                    }
                    for object in listed.drain(..) {
                        let old = before.objects.get(&key(&*object));
                        // A list that was begun anew tells mostly what is known: looking at all of it again would be a storm.
                        if old.is_none_or(|old| old.resource_version() != object.resource_version()) {
                            changed(old, Some(&object));
                        }
                    }
                }
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_api::serving::DomainMapping;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;
    use std::cell::RefCell;

    fn map(name: &str, version: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(version.into());
        map
    }

    #[tokio::test]
    async fn a_list_that_is_begun_anew_tells_only_what_is_new() {
        let cache: Cache<ConfigMap> = Cache::new(|_| Vec::new());
        let told = RefCell::new(Vec::new());
        let changed = |before: Option<&Arc<ConfigMap>>, after: Option<&Arc<ConfigMap>>| {
            let name = after.or(before).map(|map| map.name_any()).unwrap_or_default();
            told.borrow_mut().push((name, before.is_some(), after.is_some()));
        };
        let list = |maps: Vec<ConfigMap>| {
            let listed = maps.into_iter().map(|map| Ok(Event::InitApply(map)));
            [Ok(Event::Init)].into_iter().chain(listed).chain([Ok(Event::InitDone)]).collect::<Vec<_>>()
        };
        let first = list(vec![map("same", "1"), map("changed", "2"), map("gone", "3")]);
        cache.follow(futures::stream::iter(first), changed).await;
        assert_eq!(told.take().len(), 3);
        let again = list(vec![map("same", "1"), map("changed", "4"), map("new", "5")]);
        cache.follow(futures::stream::iter(again), changed).await;
        let mut told = told.take();
        told.sort();
        assert_eq!(
            told,
            [("changed".into(), true, true), ("gone".into(), true, false), ("new".into(), false, true)]
        );
        assert!(cache.get("ns", "same").is_some() && cache.get("ns", "gone").is_none());
    }

    #[tokio::test]
    async fn what_is_found_in_a_namespace_and_what_anywhere() {
        let cache: Cache<DomainMapping> =
            Cache::new(|m| vec![format!("ref/{}", m.spec.reference.name), format!("/{}", m.name_any())]);
        let mapping = |namespace: &str, name: &str, to: &str| -> DomainMapping {
            crate::testing::object(json!({
                "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
                "metadata": {"name": name, "namespace": namespace}, "spec": {"ref": {"kind": "Service", "name": to}}
            }))
        };
        let events = [
            Event::Init,
            Event::InitApply(mapping("a", "x.org", "one")),
            Event::InitApply(mapping("b", "x.org", "one")),
            Event::InitApply(mapping("b", "y.org", "one")),
            Event::InitDone,
            Event::Apply(mapping("b", "y.org", "two")),
            Event::Delete(mapping("a", "x.org", "one")),
            Event::Apply(mapping("c", "x.org", "one")),
        ];
        cache.follow(futures::stream::iter(events.map(Ok)), |_, _| {}).await;
        let namespaces = |entry: &str| -> Vec<_> {
            cache.find_anywhere(entry).iter().filter_map(|m| m.namespace()).collect()
        };
        assert_eq!(namespaces("/x.org"), ["b", "c"]);
        assert_eq!(namespaces("/y.org"), ["b"]);
        assert_eq!(cache.find("b", "ref/one").len(), 1);
        assert_eq!(cache.find("a", "ref/one").len(), 0);
    }
}
