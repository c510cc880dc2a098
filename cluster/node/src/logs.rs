//! Container output: captured from pipes into files in the format of the container runtime interface, rotated, read
//! back for `kubectl logs`.
//!
//! A line is `2026-01-02T03:04:05.678901234Z stdout F text`, F for a whole line and P for a part of one longer than
//! 16 KiB. Files are `DIR/NAMESPACE_POD_UID/CONTAINER/N.log` with N counting restarts; rotated ones have a `.1` to
//! `.4` behind.

pub(crate) mod attached;
pub(crate) mod reader;
pub(crate) mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// The longest part of a line that becomes one record.
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// All logs of this node.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    root: PathBuf,
    live: Arc<Mutex<HashMap<PathBuf, watch::Receiver<u64>>>>,
}

impl Logs {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, live: Arc::default() }
    }

    /// The folder of all logs of a pod.
    pub(crate) fn pod_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.root.join(format!("{namespace}_{name}_{uid}"))
    }

    /// The log of one run of a container.
    pub(crate) fn path(pod_dir: &Path, container: &str, attempt: i32) -> PathBuf {
        pod_dir.join(container).join(format!("{attempt}.log"))
    }

    /// Announces that a log is being written; the sender counts its records and closes at its end.
    pub(crate) fn begin(&self, path: &Path) -> watch::Sender<u64> {
        let (sender, receiver) = watch::channel(0);
        self.live.lock().insert(path.to_owned(), receiver);
        sender
    }

    pub(crate) fn end(&self, path: &Path) {
        self.live.lock().remove(path);
    }

    /// Tells when a log grows; None when it is no longer written.
    pub(crate) fn watch(&self, path: &Path) -> Option<watch::Receiver<u64>> {
        self.live.lock().get(path).cloned()
    }
}
