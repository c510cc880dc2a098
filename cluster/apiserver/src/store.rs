//! Objects in memory, a log of changes for watches, and a writer thread that makes them durable.
//!
//! Memory is the truth for reads. A write is applied and published to watchers under one lock, then handed to the
//! writer thread in that order; [`Commit::durable`] resolves when the group commit that holds it has reached the disk.
//! So a change is *visible before it is durable*: a watcher may act on a write whose author has not yet got an answer.
//! Objects are kept as their bytes; those that were written last, and all of a kind that has few, also as trees ([`Tree`]).
//! After a crash such a write may be gone. Therefore the revision jumps ahead at every start and the change log starts
//! empty there, so that whoever has seen an older revision is told to list again (410).

mod disk;
mod history;
mod tree;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::lean;
pub(crate) use disk::Written;
use disk::{Disk, Record};
use history::History;
pub(crate) use tree::Tree;

/// How far the revision jumps at a start: more than could ever be waiting for one group commit.
const REVISION_JUMP: u64 = 10_000;

/// Why the store cannot work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database file cannot be opened.
    #[error("cannot open the object store {path}: {cause} (is another server using this data directory?)")]
    Open {
        /// The database file.
        path: String,
        /// What redb said.
        cause: String,
    },
    /// What is in the database is not what this program wrote.
    #[error("the object store holds an entry that cannot be read ({key}): {cause}")]
    Corrupt {
        /// The entry.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The group commit failed.
    #[error("the object store could not write to disk: {0} (is the disk full?)")]
    Write(String),
}

/// Where an object lives: the kind of storage (`group/plural`), the namespace (empty if it has none) and the name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// `group/plural`, shared by all versions of a resource.
    pub kind: Arc<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl Key {
    /// A key.
    pub(crate) fn new(kind: &Arc<str>, namespace: &str, name: &str) -> Self {
        Self { kind: kind.clone(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn path(&self) -> String {
        path(&self.namespace, &self.name)
    }
}

fn path(namespace: &str, name: &str) -> String {
    let mut path = String::with_capacity(namespace.len() + name.len() + 1);
    path.push_str(namespace);
    path.push('/');
    path.push_str(name);
    path
}

/// One state of one object.
#[derive(Debug)]
pub(crate) struct Object {
    /// Where it lives.
    pub key: Key,
    /// The revision that wrote this state.
    pub revision: u64,
    /// The object, `metadata.resourceVersion` included.
    pub value: Tree,
    /// The same, serialised once.
    pub json: Bytes,
    /// Whether each who asks gets a copy, whose tree goes when he is done.
    folded: bool,
}

impl Object {
    /// A state of an object.
    pub(crate) fn new(key: Key, revision: u64, value: Value) -> Self {
        let json = to_bytes(&value);
        Self { key, revision, value: Tree::of(value, json.clone()), json, folded: false }
    }

    /// The same without its tree.
    fn fold(&self) -> Self {
        let (key, value, json) = (self.key.clone(), self.value.folded(), self.json.clone());
        Self { key, revision: self.revision, value, json, folded: true }
    }

    /// What whoever asks for it gets.
    fn handed_out(self: &Arc<Self>) -> Arc<Self> {
        if self.folded { Arc::new(self.fold()) } else { self.clone() }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The object is new.
    Added,
    /// The object changed.
    Modified,
    /// The object is gone; the event holds its last state.
    Deleted,
}

impl Change {
    /// As it stands in a watch event.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Change::Added => "ADDED",
            Change::Modified => "MODIFIED",
            Change::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Event {
    /// What happened.
    pub change: Change,
    /// The state after it (before it, if deleted, with the revision of the deletion).
    pub object: Arc<Object>,
    /// The state before it.
    pub previous: Option<Arc<Object>>,
    /// Of both states' trees, only what selectors look at is left; the JSON of the present one is whole.
    slim: bool,
    frame: OnceLock<Bytes>,
    lean: OnceLock<Bytes>,
    partial: OnceLock<Bytes>,
}

impl Event {
    pub(crate) fn of(change: Change, object: Arc<Object>, previous: Option<Arc<Object>>) -> Self {
        let (frame, lean, partial) = Default::default();
        Self { change, object, previous, slim: false, frame, lean, partial }
    }

    /// The object's tree, whole.
    pub(crate) fn value(&self) -> Cow<'_, Value> {
        if self.slim {
            // It was written by this program.
            return Cow::Owned(serde_json::from_slice(&self.object.json).unwrap_or_default());
        }
        Cow::Borrowed(&self.object.value)
    }

    /// The same as [`Event::frame`], without `managedFields`.
    pub(crate) fn lean(&self) -> Bytes {
        self.lean.get_or_init(|| frame(self.change, &lean::object(&self.value()))).clone()
    }

    /// The event with the object's metadata alone, without `managedFields`.
    pub(crate) fn partial(&self) -> Bytes {
        self.partial.get_or_init(|| frame(self.change, &lean::partial(&self.value()))).clone()
    }

    /// The watch event as one JSON line, serialised once for all watchers.
    pub(crate) fn frame(&self) -> Bytes {
        self.frame.get_or_init(|| frame(self.change, &self.object.json)).clone()
    }
}

/// A watch event as one JSON line.
pub(crate) fn frame(change: Change, json: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(json.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(change.as_str().as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(json);
    line.extend_from_slice(b"}\n");
    line.into()
}

/// What a write expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// No such object.
    Absent,
    /// The object in the state that this revision wrote.
    Revision(u64),
}

/// A write found something else than it expected.
#[derive(Debug)]
pub(crate) enum Conflict {
    /// There is an object already.
    Exists,
    /// There is no such object.
    Missing,
    /// The object has changed in the meantime.
    Changed,
}

/// A write that is visible and on its way to the disk.
#[derive(Debug)]
pub(crate) struct Commit {
    /// The state that was written (or, after a deletion, the last one).
    pub object: Arc<Object>,
    done: oneshot::Receiver<Result<(), Arc<str>>>,
}

impl Commit {
    /// Waits until the write has reached the disk.
    pub(crate) async fn durable(self) -> Result<Arc<Object>, StoreError> {
        match self.done.await {
            Ok(Ok(())) => Ok(self.object),
            Ok(Err(cause)) => Err(StoreError::Write(cause.to_string())),
            Err(_) => Err(StoreError::Write("the store is shutting down".to_owned())),
        }
    }
}

/// The history no longer reaches back to the revision asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    /// The oldest revision a watch can start from.
    pub oldest: u64,
}

/// The objects of a kind that were written last keep their trees: whoever wrote them often writes again, and others look at what is new.
const RECENT: usize = 64;
/// A kind with at most so many objects keeps all trees.
const FEW: usize = 64;

/// Whether all objects of a kind are looked at again and again, so that it keeps all trees however many there are: who may do what, which kinds
/// there are, and who is asked about a write.
fn is_always_asked(kind: &str) -> bool {
    ["rbac.authorization.k8s.io/", "apiextensions.k8s.io/", "admissionregistration.k8s.io/"]
        .iter()
        .any(|group| kind.starts_with(group))
}

struct Table {
    objects: BTreeMap<String, Arc<Object>>,
    /// Paths and revisions of the last writes.
    recent: VecDeque<(String, u64)>,
    history: History,
    changed: watch::Sender<u64>,
}

struct State {
    revision: u64,
    started_at: u64,
    tables: HashMap<Arc<str>, Table>,
}

impl Table {
    fn get(&self, path: &str) -> Option<Arc<Object>> {
        self.objects.get(path).map(Object::handed_out)
    }

    /// The same; `known` is that object, if it has not changed since.
    fn get_known(&self, path: &str, known: Option<Arc<Object>>) -> Option<Arc<Object>> {
        let now = self.objects.get(path)?;
        Some(known.filter(|known| known.revision == now.revision).unwrap_or_else(|| now.handed_out()))
    }

    fn put(&mut self, path: &str, object: Arc<Object>) {
        self.recent.push_back((path.to_owned(), object.revision));
        self.objects.insert(path.to_owned(), object);
        if self.recent.len() <= RECENT {
            return;
        }
        let Some((path, revision)) = self.recent.pop_front() else { return };
        if self.objects.len() > FEW
            && let Some(object) = self.objects.get_mut(&path)
            && object.revision == revision
            && !is_always_asked(&object.key.kind)
        {
            *object = Arc::new(object.fold());
        }
    }
}

impl State {
    fn table(&mut self, kind: &Arc<str>) -> &mut Table {
        let started_at = self.started_at;
        self.tables.entry(kind.clone()).or_insert_with(|| Table {
            objects: BTreeMap::new(),
            recent: VecDeque::new(),
            history: History::new(started_at),
            changed: watch::channel(started_at).0,
        })
    }
}

/// The object store.
pub(crate) struct Store {
    state: RwLock<State>,
    disk: Disk,
}

impl Store {
    /// Opens (or makes) the store in `folder`. With `sync` off, a commit survives the death of the process, yet not of the machine.
    pub(crate) fn open(folder: &Path, sync: bool) -> Result<Arc<Self>, StoreError> {
        let (disk, loaded, last) = Disk::open(&folder.join("objects.redb"), sync)?;
        let revision = last + REVISION_JUMP;
        let mut state = State { revision, started_at: revision, tables: HashMap::new() };
        for object in loaded {
            let table = state.table(&object.key.kind);
            table.objects.insert(object.key.path(), Arc::new(object));
        }
        let many =
            |(kind, table): &(&Arc<str>, &mut Table)| table.objects.len() > FEW && !is_always_asked(kind);
        for (_, table) in state.tables.iter_mut().filter(many) {
            table.objects.values_mut().for_each(|object| *object = Arc::new(object.fold()));
        }
        Ok(Arc::new(Self { state: RwLock::new(state), disk }))
    }

    /// The revision of the last write.
    pub(crate) fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// One object.
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.state.read().tables.get(kind)?.get(&path(namespace, name))
    }

    /// One object, with its tree: what is to be looked at under the lock is read before it is taken.
    fn read(&self, key: &Key) -> Option<Arc<Object>> {
        let object = self.get(&key.kind, &key.namespace, &key.name)?;
        let _: &Value = &object.value;
        Some(object)
    }

    /// All objects of a kind (of a namespace), ordered by namespace and name, and the revision at which they were so.
    pub(crate) fn list(&self, kind: &str, namespace: Option<&str>) -> (u64, Vec<Arc<Object>>) {
        let state = self.state.read();
        let Some(table) = state.tables.get(kind) else { return (state.revision, Vec::new()) };
        let objects = match namespace {
            None => table.objects.values().map(Object::handed_out).collect(),
            Some(namespace) => {
                // '0' follows '/'.
                let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
                table.objects.range(from..to).map(|(_, object)| object.handed_out()).collect()
            }
        };
        (state.revision, objects)
    }

    /// How many objects of a kind there are.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.state.read().tables.get(kind).map_or(0, |table| table.objects.len())
    }

    /// How many objects of each kind there are, and the bytes of their JSON.
    pub(crate) fn sizes(&self) -> Vec<(Arc<str>, usize, usize)> {
        let state = self.state.read();
        let size = |table: &Table| table.objects.values().map(|object| object.json.len()).sum();
        let mut sizes: Vec<_> = state
            .tables
            .iter()
            .map(|(kind, table)| (kind.clone(), table.objects.len(), size(table)))
            .filter(|(_, objects, _)| *objects > 0)
            .collect();
        sizes.sort();
        sizes
    }

    /// What was written to the disk so far.
    pub(crate) fn written(&self) -> &Written {
        self.disk.written()
    }

    /// Writes an object. `metadata.resourceVersion` is set here.
    pub(crate) fn put(&self, key: &Key, expect: Expect, mut value: Value) -> Result<Commit, Conflict> {
        let path = key.path();
        let known = self.read(key);
        let mut state = self.state.write();
        let revision = state.revision + 1;
        let table = state.table(&key.kind);
        let previous = table.get_known(&path, known);
        match (expect, &previous) {
            (Expect::Absent, Some(_)) => return Err(Conflict::Exists),
            (Expect::Revision(_), None) => return Err(Conflict::Missing),
            (Expect::Revision(seen), Some(now)) if now.revision != seen => return Err(Conflict::Changed),
            _ => {}
        }
        value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        let object = Arc::new(Object::new(key.clone(), revision, value));
        table.put(&path, object.clone());
        let change = if previous.is_some() { Change::Modified } else { Change::Added };
        table.history.push(Arc::new(Event::of(change, object.clone(), previous)));
        table.changed.send_replace(revision);
        state.revision = revision;
        let done = self.disk.write(Record::put(&object, &path));
        Ok(Commit { object, done })
    }

    /// Removes an object in the state that `seen` wrote.
    pub(crate) fn remove(&self, key: &Key, seen: u64) -> Result<Commit, Conflict> {
        let path = key.path();
        let known = self.read(key);
        let mut state = self.state.write();
        let revision = state.revision + 1;
        let table = state.table(&key.kind);
        let Some(previous) = table.get_known(&path, known) else { return Err(Conflict::Missing) };
        if previous.revision != seen {
            return Err(Conflict::Changed);
        }
        table.objects.remove(&path);
        let mut value = previous.value.clone();
        value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        let object = Arc::new(Object::new(key.clone(), revision, value));
        table.history.push(Arc::new(Event::of(Change::Deleted, object.clone(), Some(previous))));
        table.changed.send_replace(revision);
        state.revision = revision;
        let done = self.disk.write(Record::delete(key, &path, revision));
        Ok(Commit { object, done })
    }

    /// Watches a kind for what happens after `revision`.
    pub(crate) fn watch(self: &Arc<Self>, kind: &Arc<str>, revision: u64) -> Result<Watch, Expired> {
        let mut state = self.state.write();
        let current = state.revision;
        let table = state.table(kind);
        let oldest = table.history.oldest();
        if revision < oldest || revision > current {
            return Err(Expired { oldest });
        }
        Ok(Watch {
            store: self.clone(),
            kind: kind.clone(),
            cursor: revision,
            changed: table.changed.subscribe(),
        })
    }

    /// Is everything after `revision` still known?
    pub(crate) fn reaches_back_to(&self, kind: &str, revision: u64) -> bool {
        let state = self.state.read();
        let oldest = state.tables.get(kind).map_or(state.started_at, |table| table.history.oldest());
        revision >= oldest
    }

    /// Writes what is waiting and closes the database.
    pub(crate) async fn close(&self) {
        self.disk.close().await;
    }
}

fn to_bytes(value: &Value) -> Bytes {
    let mut json = Vec::with_capacity(2048);
    // Writing a Value into memory fails on nothing: its keys are strings.
    serde_json::to_writer(&mut json, value).expect("a JSON value serialises");
    json.shrink_to_fit();
    json.into()
}

/// A place in the change log of a kind.
pub(crate) struct Watch {
    store: Arc<Store>,
    kind: Arc<str>,
    cursor: u64,
    changed: watch::Receiver<u64>,
}

impl Watch {
    /// The changes since the last call, at least one; in order. Cancel-safe.
    ///
    /// # Errors
    /// [`Expired`] if this watcher was so slow that changes it has not seen were dropped.
    pub(crate) async fn next(&mut self) -> Result<Vec<Arc<Event>>, Expired> {
        loop {
            self.changed.borrow_and_update();
            {
                let state = self.store.state.read();
                if let Some(table) = state.tables.get(&self.kind) {
                    let events = table.history.after(self.cursor)?;
                    if let Some(last) = events.last() {
                        self.cursor = last.object.revision;
                        return Ok(events);
                    }
                }
            }
            if self.changed.changed().await.is_err() {
                return Err(Expired { oldest: u64::MAX });
            }
        }
    }

    /// A revision up to which this watch has nothing more to tell.
    pub(crate) fn progress(&mut self) -> Option<u64> {
        let state = self.store.state.read();
        let table = state.tables.get(&self.kind)?;
        match table.history.after(self.cursor) {
            Ok(events) if events.is_empty() => {
                self.cursor = state.revision;
                Some(state.revision)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
