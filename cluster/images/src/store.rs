//! The store: a folder with content by digest, and names that point into it.
//!
//! ```text
//! blobs/sha256/HEX     manifests, configs, layers as they were transferred; a file here is complete and verified
//! layers/HEX           one unpacked layer, named by its diff ID (or chain ID, see `unpack`), ready as a lowerdir
//! names.json           repositories, tags, and what was pulled
//! partial/HEX          downloads that broke off, to be resumed
//! uploads/, tmp/       what nobody has finished; emptied at start
//! lock                 held by the one process that uses the folder
//! ```
//!
//! Everything that is complete gets its place by one `rename`, after an fsync where the content cannot be made again from
//! elsewhere. So a process that is killed at any instruction leaves either the old state or the new one, and garbage only
//! in the folders that the next start empties. Unpacked layers are not fsynced: after a power failure remove `layers/`.

mod blobs;
mod gc;
mod image;
mod names;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};

pub(crate) use blobs::{BlobWriter, copy};
pub use gc::Collected;
pub use image::Image;
pub(crate) use image::parse_config;
pub(crate) use names::{Entry, State, remove_manifest, remove_tag};
pub use names::{ImageSummary, Origin};

use crate::{
    Digest, ImageError, Platform, Reference, error::Context, flight::Flights, registry::Uploads,
    unpack::Rights,
};

/// Images of one machine. Open it once and share it; see the crate's documentation for what names mean.
pub struct Store {
    root: PathBuf,
    state: RwLock<Arc<State>>,
    /// Held while names change, so that a change sees the one before it.
    writer: Mutex<()>,
    /// Images that are unpacked and ready, by the digest they were asked for.
    ready: DashMap<Digest, Image>,
    /// Registries that are this store, besides everything on loopback with the same port.
    own: RwLock<BTreeSet<String>>,
    pub(crate) platform: Platform,
    pub(crate) rights: Rights,
    pub(crate) pulls: Flights<Image>,
    preparations: Flights<Image>,
    /// Held for as long as the blob or layer of that name is being made.
    locks: DashMap<String, Arc<tokio::sync::Mutex<()>>>,
    pub(crate) uploads: Uploads,
    /// Shared by whoever relies on content for a moment, exclusive for garbage collection. Never held while waiting for a
    /// network: there, `keep_blob` is what protects.
    pub(crate) growth: Arc<tokio::sync::RwLock<()>>,
    _lock: fs::File,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in `dir`, making it if need be, and clears what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the folder cannot be used or another process has it open; [`ImageError::Corrupt`] if
    /// `names.json` cannot be read.
    pub fn open(dir: &Path) -> Result<Arc<Self>, ImageError> {
        let root = dir.to_path_buf();
        for folder in ["blobs/sha256", "layers", "partial"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).at("make folder", &path)?;
        }
        let root = root.canonicalize().at("open folder", dir)?;
        let lock_path = root.join("lock");
        let lock = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .at("open", &lock_path)?;
        lock.try_lock().map_err(std::io::Error::from).context(|| {
            format!(
                "the image store {} is in use by another process; stop that one, or push to its registry instead of opening the folder",
                root.display()
            )
        })?;
        for folder in ["uploads", "tmp"] {
            let path = root.join(folder);
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("clear", &path),
                _ => fs::create_dir(&path).at("make folder", &path)?,
            }
        }
        let state = names::read(&root)?;
        let uploads = Uploads::new(root.join("uploads"));
        Ok(Arc::new(Self {
            root,
            state: RwLock::new(Arc::new(state)),
            writer: Mutex::new(()),
            ready: DashMap::new(),
            own: RwLock::default(),
            platform: Platform::host(),
            rights: Rights::of_this_process(),
            pulls: Flights::new(),
            preparations: Flights::new(),
            locks: DashMap::new(),
            uploads,
            growth: Arc::default(),
            _lock: lock,
        }))
    }

    /// Says under which `host:port` names this store's own registry answers. A name there that is not in the store is
    /// then known not to exist, instead of the registry being asked by way of the network; and a name with one of these
    /// hosts means the same local repository as one with `localhost`.
    pub fn set_own_registries(&self, hosts: impl IntoIterator<Item = String>) {
        *self.own.write() = hosts.into_iter().collect();
    }

    /// The folder given to [`Store::open`], made absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether `registry` is this store's own: named so, or loopback with the port of one that is.
    pub(crate) fn is_own(&self, registry: &str) -> bool {
        let own = self.own.read();
        let port = |host: &str| host.rsplit_once(':').map(|(_, port)| port.to_owned());
        own.contains(registry)
            || (crate::reference::is_loopback(registry)
                && own.iter().any(|o| port(o).is_some() && port(o) == port(registry)))
    }

    /// The local repository a reference means, own registries counted as local.
    pub(crate) fn local_repository(&self, reference: &Reference) -> String {
        if self.is_own(&reference.registry) {
            crate::reference::local_repository("localhost", &reference.repository)
        } else {
            reference.local_repository()
        }
    }

    pub(crate) fn lock_of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.locks.entry(name.to_owned()).or_default().clone()
    }

    pub(crate) fn forget_locks(&self) {
        self.locks.retain(|_, lock| Arc::strong_count(lock) > 1);
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp").join(uuid::Uuid::new_v4().to_string())
    }

    pub(crate) fn state(&self) -> Arc<State> {
        self.state.read().clone()
    }
}
