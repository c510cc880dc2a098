//! What the parts of the sidecar know in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use ebb_http::Tunnels;
use ebb_http::wire::now_us;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::breaker::Breaker;
use crate::drain::Seen;
use crate::load::{Load, Report};
use crate::metrics::Metrics;

/// Shared by `Arc`.
#[derive(Debug)]
pub struct State {
    /// The limit on requests in the app.
    pub breaker: Breaker,
    /// Upgraded connections.
    pub tunnels: Tunnels,
    /// Counters.
    pub metrics: Metrics,
    /// Cancelled when nothing is left to wait for: `/wait-for-drain` answers then.
    pub drained: CancellationToken,
    /// Cancelled when only upgraded connections are left: `/wait-for-drain` says so.
    pub only_tunnels: CancellationToken,
    /// When the sidecar started.
    pub started: Instant,
    /// The same, in microseconds since the Unix epoch.
    pub started_us: u64,
    load: Mutex<Load>,
    last_activity: Mutex<Instant>,
    ready: watch::Sender<bool>,
    listening_us: AtomicU64,
    draining: AtomicBool,
}

/// Counts one request in the load until it is dropped.
#[derive(Debug)]
pub struct InPod {
    state: Arc<State>,
    proxied: bool,
}

impl Drop for InPod {
    fn drop(&mut self) {
        let now = Instant::now();
        self.state.load.lock().end(now, self.proxied);
        if self.state.draining() {
            *self.state.last_activity.lock() = now;
        }
    }
}

impl State {
    /// Nothing has happened yet.
    pub fn new(concurrency: u32) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            breaker: Breaker::new(concurrency),
            tunnels: Tunnels::default(),
            metrics: Metrics::default(),
            drained: CancellationToken::new(),
            only_tunnels: CancellationToken::new(),
            started: now,
            started_us: now_us(),
            load: Mutex::new(Load::new(now)),
            last_activity: Mutex::new(now),
            ready: watch::Sender::new(false),
            listening_us: AtomicU64::new(0),
            draining: AtomicBool::new(false),
        })
    }

    /// A request came that counts.
    pub fn arrive(self: &Arc<Self>, now: Instant, proxied: bool) -> InPod {
        self.load.lock().begin(now, proxied);
        if self.draining() {
            *self.last_activity.lock() = now;
        }
        InPod { state: self.clone(), proxied }
    }

    /// Requests in the pod.
    pub fn running(&self) -> u32 {
        self.load.lock().running()
    }

    /// The load since the last report.
    pub fn report(&self, now: Instant) -> Report {
        self.load.lock().report(now)
    }

    /// The app has answered its probe for the first time.
    pub fn app_ready(&self) {
        self.listening_us.store(now_us(), Ordering::Release);
        self.ready.send_replace(true);
    }

    /// Whether the app has ever answered its probe.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// When the app answered for the first time, in microseconds since the Unix epoch.
    pub fn listening_us(&self) -> u64 {
        self.listening_us.load(Ordering::Acquire)
    }

    /// Waits until the app has answered its probe.
    pub async fn wait_ready(&self) {
        if self.is_ready() {
            return;
        }
        // Fails only when the sender is gone, and `self` holds it.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// From now on probes fail.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the pod is going away.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// What a drain goes by.
    pub fn seen(&self) -> Seen {
        // A tunnel's request counts as running as long as the tunnel lives.
        let tunnels = self.tunnels.open();
        let open = (self.running() as usize).max(tunnels);
        Seen { open, tunnels, last_activity: *self.last_activity.lock() }
    }
}
