//! The database file and its writer thread: everything that waits goes into one commit, with one fsync.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use parking_lot::Mutex;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{Key, Object, StoreError, Tree};

/// `kind NUL namespace/name` to the object's JSON.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const SEPARATOR: char = '\0';
/// What redb may keep of the file; all objects are in memory anyhow.
const CACHE_BYTES: usize = 4 << 20;

type Done = oneshot::Sender<Result<(), Arc<str>>>;

/// One change on its way to the disk.
pub(super) struct Record {
    key: String,
    revision: u64,
    json: Option<Bytes>,
}

impl Record {
    pub(super) fn put(object: &Object, path: &str) -> Self {
        Self {
            key: database_key(&object.key.kind, path),
            revision: object.revision,
            json: Some(object.json.clone()),
        }
    }

    pub(super) fn delete(key: &Key, path: &str, revision: u64) -> Self {
        Self { key: database_key(&key.kind, path), revision, json: None }
    }
}

fn database_key(kind: &str, path: &str) -> String {
    let mut key = String::with_capacity(kind.len() + path.len() + 1);
    key.push_str(kind);
    key.push(SEPARATOR);
    key.push_str(path);
    key
}

/// What was written since the start.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Commits, each with one sync.
    pub(crate) commits: AtomicU64,
    /// Objects that were put or removed.
    pub(crate) records: AtomicU64,
    /// The JSON of those that were put.
    pub(crate) bytes: AtomicU64,
}

impl Written {
    fn count(&self, records: &[Record]) {
        let bytes: usize = records.iter().filter_map(|record| record.json.as_ref()).map(Bytes::len).sum();
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records.len() as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The handle to the writer thread.
pub(super) struct Disk {
    written: Arc<Written>,
    sender: Mutex<Option<mpsc::Sender<(Record, Done)>>>,
    closed: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Disk {
    /// Opens the file: the handle, the objects in it and the last revision.
    pub(super) fn open(path: &Path, sync: bool) -> Result<(Self, Vec<Object>, u64), StoreError> {
        let open_error = |cause: &dyn std::fmt::Display| StoreError::Open {
            path: path.display().to_string(),
            cause: cause.to_string(),
        };
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = if sync {
            builder.create(path).map_err(|e| open_error(&e))?
        } else {
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(|e| open_error(&e))?;
            let backend = redb::backends::FileBackend::new(file).map_err(|e| open_error(&e))?;
            builder.create_with_backend(Unsynced(backend)).map_err(|e| open_error(&e))?
        };
        let (objects, revision) = load(&database).map_err(|e| match e {
            LoadError::Corrupt(error) => error,
            LoadError::Database(error) => open_error(&error),
        })?;
        let (sender, receiver) = mpsc::channel::<(Record, Done)>();
        let written = Arc::<Written>::default();
        let counts = written.clone();
        let (closing, closed) = oneshot::channel();
        thread::Builder::new()
            .name("object-store".to_owned())
            .spawn(move || {
                write_loop(&database, &receiver, &counts);
                drop(database);
                let _ = closing.send(());
            })
            .map_err(|e| open_error(&e))?;
        let disk = Self { written, sender: Mutex::new(Some(sender)), closed: Mutex::new(Some(closed)) };
        Ok((disk, objects, revision))
    }

    pub(super) fn written(&self) -> &Written {
        &self.written
    }

    pub(super) fn write(&self, record: Record) -> oneshot::Receiver<Result<(), Arc<str>>> {
        let (done, waiting) = oneshot::channel();
        if let Some(sender) = &*self.sender.lock() {
            // A closed channel drops `done`, which the waiter sees.
            let _ = sender.send((record, done));
        }
        waiting
    }

    pub(super) async fn close(&self) {
        drop(self.sender.lock().take());
        let closed = self.closed.lock().take();
        if let Some(closed) = closed {
            let _ = closed.await;
        }
    }
}

enum LoadError {
    Corrupt(StoreError),
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

fn load(database: &Database) -> Result<(Vec<Object>, u64), LoadError> {
    let transaction = database.begin_write()?;
    transaction.open_table(OBJECTS)?;
    transaction.open_table(META)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let mut revision = transaction.open_table(META)?.get(REVISION)?.map_or(0, |value| value.value());
    let mut objects = Vec::new();
    for entry in transaction.open_table(OBJECTS)?.iter()? {
        let (key, json) = entry?;
        let object = parse(key.value(), json.value()).map_err(|cause| {
            LoadError::Corrupt(StoreError::Corrupt { key: key.value().replace(SEPARATOR, " "), cause })
        })?;
        revision = revision.max(object.revision);
        objects.push(object);
    }
    Ok((objects, revision))
}

fn parse(key: &str, json: &[u8]) -> Result<Object, String> {
    let (kind, path) = key.split_once(SEPARATOR).ok_or("its key has no kind")?;
    let (namespace, name) = path.split_once('/').ok_or("its key has no namespace")?;
    let value: Value = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let revision = value["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or("it has no resourceVersion")?;
    let json = Bytes::copy_from_slice(json);
    Ok(Object {
        key: Key { kind: kind.into(), namespace: namespace.to_owned(), name: name.to_owned() },
        revision,
        // Most are not looked at for long.
        value: Tree::of(value, json.clone()).folded(),
        json,
        folded: false,
    })
}

fn write_loop(database: &Database, receiver: &mpsc::Receiver<(Record, Done)>, written: &Written) {
    // What a failed commit held: memory has it, so the disk must get it with the next commit that works.
    let mut records = Vec::new();
    let mut waiting = Vec::new();
    while let Ok((record, done)) = receiver.recv() {
        records.push(record);
        waiting.push(done);
        while let Ok((record, done)) = receiver.try_recv() {
            records.push(record);
            waiting.push(done);
        }
        let result = commit(database, &records).map_err(|error| {
            tracing::error!(%error, "the object store cannot write");
            Arc::<str>::from(error.to_string())
        });
        if result.is_ok() {
            written.count(&records);
            records.clear();
        }
        for done in waiting.drain(..) {
            let _ = done.send(result.clone());
        }
    }
    if !records.is_empty() {
        let _ = commit(database, &records);
    }
}

fn commit(database: &Database, records: &[Record]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        for record in records {
            match &record.json {
                Some(json) => objects.insert(record.key.as_str(), json.as_ref())?,
                None => objects.remove(record.key.as_str())?,
            };
        }
        if let Some(last) = records.last() {
            transaction.open_table(META)?.insert(REVISION, last.revision)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// A file that leaves the moment of writing to the kernel: safe against the death of the process, not of the machine.
#[derive(Debug)]
struct Unsynced(redb::backends::FileBackend);

impl redb::StorageBackend for Unsynced {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> std::io::Result<()> {
        self.0.close()
    }
}
