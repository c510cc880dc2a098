//! A local copy of all objects of one kind, indexed by name, by controlling owner and by what its kind is asked for, that never goes back in
//! time.
//!
//! Two sources feed it: the watch, and [`Cache::observe`] with the answer to every write that a controller makes. Whichever
//! comes first wins, the other is recognised by its resourceVersion (which Kubernetes lets clients compare since 1.35) and dropped. Hence a
//! controller that has awaited its writes sees them in its next pass, and needs no expectations.
//!
//! An answer to a create may arrive after the watch has already told of the object's deletion; the uids of what is gone are
//! remembered for a while so that such an answer does not bring the object back.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::watcher::{self, Event},
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::meta;

/// How many uids of deleted objects are remembered.
const GONE: usize = 8192;

/// An object's namespace (empty for cluster-wide objects) and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(crate) fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What happened to one object: it appeared (`old` is none), changed, or went (`new` is none).
pub(crate) struct Change<K> {
    pub(crate) old: Option<Arc<K>>,
    pub(crate) new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object as it is now, or as it was last.
    pub(crate) fn latest(&self) -> &Arc<K> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has an old or a new object")
    }

    /// Both states, the old one first.
    pub(crate) fn both(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// What an object can be found by in its namespace, besides its name and its owner.
type Index<K> = fn(&K) -> Vec<String>;

/// Kinds that a cache can hold.
pub(crate) trait Cached:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static> Cached
    for K
{
}

/// See the module's documentation.
pub(crate) struct Cache<K> {
    inner: RwLock<Inner<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

struct Inner<K> {
    objects: HashMap<String, BTreeMap<String, Arc<K>>>,
    by_owner: HashMap<String, BTreeSet<Key>>,
    index: Index<K>,
    /// Names by namespace and entry.
    by_entry: HashMap<(String, String), BTreeSet<String>>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

impl<K: Cached> Cache<K> {
    pub(crate) fn new() -> Self {
        Self::indexed(|_| Vec::new())
    }

    /// One whose objects can be found by what `index` says of each.
    pub(crate) fn indexed(index: Index<K>) -> Self {
        let inner = Inner {
            objects: HashMap::new(),
            by_owner: HashMap::new(),
            index,
            by_entry: HashMap::new(),
            gone: HashSet::new(),
            gone_order: VecDeque::new(),
        };
        Self {
            inner: RwLock::new(inner),
            handlers: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
        }
    }

    /// Calls `handler` on every change from now on, in the order of the changes of one object. It must not block.
    pub(crate) fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.handlers.write().push(Box::new(handler));
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.inner.read().objects.get(&key.namespace)?.get(&key.name).cloned()
    }

    /// All objects of a namespace, by name.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.inner
            .read()
            .objects
            .get(namespace)
            .map(|map| map.values().cloned().collect())
            .unwrap_or_default()
    }

    /// The objects of a namespace that the index has under `entry`, by name.
    pub(crate) fn find(&self, namespace: &str, entry: &str) -> Vec<Arc<K>> {
        let inner = self.inner.read();
        let names = inner.by_entry.get(&(namespace.to_owned(), entry.to_owned()));
        let Some((names, objects)) = names.zip(inner.objects.get(namespace)) else { return Vec::new() };
        names.iter().filter_map(|name| objects.get(name).cloned()).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.inner.read().objects.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The objects of a namespace that no owner controls, by name.
    pub(crate) fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        self.controlled_by(&orphanage(namespace))
    }

    /// The objects whose controlling owner has this uid, by name.
    pub(crate) fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        let inner = self.inner.read();
        let Some(keys) = inner.by_owner.get(uid) else { return Vec::new() };
        keys.iter().filter_map(|key| inner.objects.get(&key.namespace)?.get(&key.name).cloned()).collect()
    }

    /// Resolves when the first list is complete.
    pub(crate) async fn synced(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Takes in an object that a write or a watch returned, unless something newer is known.
    pub(crate) fn observe(&self, object: K) {
        let key = Key::of(&object);
        let object = Arc::new(object);
        let change = {
            let mut inner = self.inner.write();
            if object.meta().uid.as_ref().is_some_and(|uid| inner.gone.contains(uid)) {
                return;
            }
            let old = inner.objects.get(&key.namespace).and_then(|names| names.get(&key.name)).cloned();
            if old.as_ref().is_some_and(|old| !newer(object.as_ref(), old.as_ref())) {
                return;
            }
            inner.insert(key, Arc::clone(&object));
            Change { old, new: Some(object) }
        };
        self.notify(&change);
    }

    /// Forgets an object that a delete's answer or a watch told to be gone. `uid` keeps a successor of the same name alive.
    pub(crate) fn forget(&self, key: &Key, uid: Option<&str>) {
        let change = {
            let mut inner = self.inner.write();
            if let Some(uid) = uid {
                inner.remember_gone(uid);
            }
            let Some(held) = inner.objects.get(&key.namespace).and_then(|names| names.get(&key.name)) else {
                return;
            };
            if uid.is_some() && held.meta().uid.as_deref() != uid {
                return;
            }
            Change { old: inner.remove(key), new: None }
        };
        self.notify(&change);
    }

    fn notify(&self, change: &Change<K>) {
        for handler in self.handlers.read().iter() {
            handler(change);
        }
    }

    /// Watches `api` until `shutdown`, starting again after errors.
    pub(crate) async fn run(
        self: Arc<Self>,
        api: Api<K>,
        config: watcher::Config,
        shutdown: CancellationToken,
    ) {
        let stream = watcher::watcher(api, config);
        futures::pin_mut!(stream);
        let mut listed: Option<HashSet<Key>> = None;
        let mut failures = 0u32;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = stream.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    failures += 1;
                    let pause = Duration::from_millis(20 << failures.min(8));
                    tracing::warn!(kind = %K::kind(&()), %error, ?pause, "watch failed, starting again");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                Some(Ok(event)) => {
                    failures = 0;
                    self.take(event, &mut listed);
                }
            }
        }
    }

    fn take(&self, event: Event<K>, listed: &mut Option<HashSet<Key>>) {
        match event {
            Event::Apply(object) => self.observe(object),
            Event::Delete(object) => self.forget(&Key::of(&object), object.meta().uid.as_deref()),
            Event::Init => *listed = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(listed) = listed {
                    listed.insert(Key::of(&object));
                }
                self.observe(object);
            }
            Event::InitDone => {
                if let Some(listed) = listed.take() {
                    let vanished: Vec<Key> = {
                        let inner = self.inner.read();
                        let held = inner.objects.values().flat_map(BTreeMap::values);
                        held.map(|object| Key::of(object.as_ref()))
                            .filter(|key| !listed.contains(key))
                            .collect()
                    };
                    // Without the uid: were one of them made after the list, the watch must be able to bring it back.
                    vanished.iter().for_each(|key| self.forget(key, None));
                }
                self.synced.send_replace(true);
            }
        }
    }
}

impl<K: Cached> Inner<K> {
    fn insert(&mut self, key: Key, object: Arc<K>) {
        self.remove(&key);
        self.by_owner.entry(owner_of(object.as_ref())).or_default().insert(key.clone());
        for entry in (self.index)(object.as_ref()) {
            self.by_entry.entry((key.namespace.clone(), entry)).or_default().insert(key.name.clone());
        }
        self.objects.entry(key.namespace).or_default().insert(key.name, object);
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let names = self.objects.get_mut(&key.namespace)?;
        let old = names.remove(&key.name)?;
        if names.is_empty() {
            self.objects.remove(&key.namespace);
        }
        let owner = owner_of(old.as_ref());
        if let Some(keys) = self.by_owner.get_mut(&owner) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        for entry in (self.index)(old.as_ref()) {
            let at = (key.namespace.clone(), entry);
            if let Some(names) = self.by_entry.get_mut(&at) {
                names.remove(&key.name);
                if names.is_empty() {
                    self.by_entry.remove(&at);
                }
            }
        }
        Some(old)
    }

    fn remember_gone(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
        }
        if self.gone_order.len() > GONE
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }
}

/// Where objects of a namespace without a controlling owner are indexed; no uid looks like this.
fn orphanage(namespace: &str) -> String {
    format!("/{namespace}")
}

fn owner_of(object: &impl Resource) -> String {
    let controller = meta::controller_of(object).map(|owner| owner.uid.clone());
    controller.unwrap_or_else(|| orphanage(object.meta().namespace.as_deref().unwrap_or_default()))
}

/// Whether `candidate` is newer than `held`. Versions that are no numbers count as newer: the watch is then the only order there is.
fn newer(candidate: &impl Resource, held: &impl Resource) -> bool {
    let version = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        meta.resource_version.as_ref().and_then(|version| version.parse::<u64>().ok())
    };
    match (version(candidate.meta()), version(held.meta())) {
        (Some(candidate), Some(held)) => candidate > held,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::OwnerReference};

    use super::*;

    fn map(name: &str, uid: &str, version: u64, owner: Option<&str>) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.uid = Some(uid.into());
        map.metadata.resource_version = Some(version.to_string());
        map.metadata.owner_references = owner.map(|uid| {
            vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
        });
        map
    }

    #[test]
    fn never_goes_back_in_time() {
        let cache = Cache::new();
        let changes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&changes);
        cache.on_change(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let key = Key::new("ns", "a");
        cache.observe(map("a", "1", 9, None));
        cache.observe(map("a", "1", 10, Some("boss")));
        cache.observe(map("a", "1", 9, None));
        assert_eq!(cache.get(&key).unwrap().metadata.resource_version.as_deref(), Some("10"));
        assert_eq!(changes.load(Ordering::Relaxed), 2);
        assert_eq!(cache.controlled_by("boss").len(), 1);
    }

    #[test]
    fn late_answer_does_not_revive() {
        let cache = Cache::new();
        let key = Key::new("ns", "a");
        cache.forget(&key, Some("1"));
        cache.observe(map("a", "1", 5, None));
        assert!(cache.get(&key).is_none());
        cache.observe(map("a", "2", 6, None));
        cache.forget(&key, Some("1"));
        assert!(cache.get(&key).is_some(), "a successor of the same name stays");
    }

    #[test]
    fn found_by_what_the_index_says_now() {
        let cache =
            Cache::indexed(|map: &ConfigMap| map.data.iter().flatten().map(|(key, _)| key.clone()).collect());
        let with = |name: &str, version, key: &str| ConfigMap {
            data: Some([(key.to_owned(), String::new())].into()),
            ..map(name, name, version, None)
        };
        cache.observe(with("a", 1, "red"));
        cache.observe(with("b", 2, "red"));
        assert_eq!((cache.find("ns", "red").len(), cache.find("other", "red").len()), (2, 0));
        cache.observe(with("a", 3, "blue"));
        cache.forget(&Key::new("ns", "b"), None);
        assert_eq!((cache.find("ns", "red").len(), cache.find("ns", "blue").len()), (0, 1));
        assert_eq!(cache.inner.read().by_entry.len(), 1, "nothing is kept of what is gone");
    }

    #[test]
    fn relist_drops_what_is_gone_and_owners_are_reindexed() {
        let cache = Cache::new();
        cache.observe(map("a", "1", 5, Some("boss")));
        cache.observe(map("b", "2", 6, Some("boss")));
        let mut listed = None;
        cache.take(Event::Init, &mut listed);
        cache.take(Event::InitApply(map("b", "2", 7, None)), &mut listed);
        cache.take(Event::InitDone, &mut listed);
        assert_eq!(cache.all().len(), 1);
        assert!(cache.controlled_by("boss").is_empty());
        assert_eq!((cache.orphans("ns").len(), cache.orphans("other").len()), (1, 0));
    }
}
