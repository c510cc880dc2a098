//! Connections to backends, kept and used again.
//!
//! One [`Backend`] for one [`Target`]. HTTP/1.1 connections carry one request at a time and wait on a stack, the
//! most recently used on top; HTTP/2 connections are shared up to a number of streams, then another is opened.
//!
//! A kept connection may be closed by its peer at the moment it is used. Such a request is never lost when it is
//! certain that the backend did not act on it: hyper hands it back unsent, HTTP/2 refused the stream, its body was
//! not touched, or its method is idempotent (RFC 9110 9.2.2). It goes out again on another connection, unseen by the
//! caller.

mod backend;
mod body;
mod dial;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::backend::{Backend, Connections, SendFailed};
pub use self::body::PooledBody;
use self::dial::{Dial, Dialer};
use crate::connect::{Connector, Target};

/// How connections are opened and kept.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// The longest time for opening a connection, handshakes included.
    pub connect_timeout: Duration,
    /// A connection unused for so long is closed. Keep it below the backend's own limit.
    pub idle_timeout: Duration,
    /// At most so many unused HTTP/1.1 connections are kept for one backend.
    pub max_idle: usize,
    /// At most so many requests share one HTTP/2 connection before another is opened.
    pub max_streams: usize,
    /// At most so many HTTP/2 connections to one backend; then they are shared beyond `max_streams`.
    pub max_h2_connections: usize,
    /// HTTP/2 flow control: for one stream, and for all streams of a connection. The second must be a multiple of
    /// the first, or one stream that nobody reads stops all others.
    pub h2_windows: (u32, u32),
    /// The largest HTTP/1.1 response head, and read buffer, in bytes. At least 8192.
    pub h1_buffer: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(45),
            max_idle: 128,
            max_streams: 100,
            max_h2_connections: 8,
            h2_windows: (256 << 10, 2 << 20),
            h1_buffer: 64 << 10,
        }
    }
}

/// All backends behind one connector. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    dial: Arc<dyn Dial>,
    config: PoolConfig,
    backends: Mutex<HashMap<Target, Weak<Backend>>>,
    sweeping: AtomicBool,
}

impl Pool {
    /// A pool that opens connections with `connector`.
    pub fn new(connector: impl Connector, config: PoolConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                dial: Arc::new(Dialer(connector)),
                config,
                backends: Mutex::default(),
                sweeping: AtomicBool::new(false),
            }),
        }
    }

    /// The backend at `target`: the same one as long as somebody holds it. When the last holder drops it, its idle
    /// connections close; requests under way finish.
    pub fn backend(&self, target: &Target) -> Arc<Backend> {
        let mut backends = self.inner.backends.lock();
        if let Some(backend) = backends.get(target).and_then(Weak::upgrade) {
            return backend;
        }
        let backend = Arc::new(Backend::new(
            target.clone(),
            self.inner.config,
            self.inner.dial.clone(),
            Arc::downgrade(&self.inner),
        ));
        // Entries of backends that went away are dropped here, so that the map's size follows the live ones.
        if backends.len() == backends.capacity() {
            backends.retain(|_, weak| weak.strong_count() > 0);
        }
        backends.insert(target.clone(), Arc::downgrade(&backend));
        backend
    }

    /// The limits in force.
    pub fn config(&self) -> &PoolConfig {
        &self.inner.config
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Inner {
    /// Closes what is unused for too long; returns how many unused connections remain.
    fn sweep(&self, now: Instant) -> usize {
        let live: Vec<_> = self.backends.lock().values().filter_map(Weak::upgrade).collect();
        live.iter().map(|b| b.sweep(now)).sum()
    }

    /// A task sweeps while there is something to sweep, so that a quiet process does not wake up.
    fn ensure_sweeper(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::AcqRel) {
            return;
        }
        let weak = Arc::downgrade(self);
        let period = (self.config.idle_timeout / 2).max(Duration::from_millis(100));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(period).await;
                let Some(pool) = weak.upgrade() else { return };
                if pool.sweep(Instant::now()) == 0 {
                    pool.sweeping.store(false, Ordering::Release);
                    // A connection that came in between would find nobody sweeping: look once more.
                    if pool.sweep(Instant::now()) == 0 || pool.sweeping.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
            }
        });
    }
}
