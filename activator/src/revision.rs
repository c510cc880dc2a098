//! One revision at this activator: its pods, its queue, its load, and the requests in between.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use ebb_http::wire::{Announcement, PokeResponse};
use ebb_http::{Backend, Pool, Protocol, Target, balance};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::budget::Share;
use crate::dests::{Change, Dests, Listed};
use crate::meter::{Meter, Report};
use crate::throttle::{Grant, Slice, Slot, Throttle, Ticket};

/// With more requests than this at a pod further ones share an HTTP/2 connection: a storm must not cost a handshake
/// for each request, and below that HTTP/1.1 is cheaper.
const HTTP1_UP_TO: usize = 32;

/// The namespace and name of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Key {
    /// A key.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What its spec says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Requests at a time for each pod; 0 for any number.
    pub limit: u32,
    /// The longest time a request may wait here.
    pub timeout: Duration,
    /// The app speaks HTTP/2 without TLS.
    pub h2c: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { limit: 0, timeout: Duration::from_secs(300), h2c: false }
    }
}

type Waiter = oneshot::Sender<Place>;

/// See the module's documentation.
pub struct Revision {
    /// Which one.
    pub key: Key,
    settings: ArcSwap<Settings>,
    core: Mutex<Core>,
    meter: Mutex<Meter>,
    poked: Mutex<Option<PokeResponse>>,
    early: AtomicU64,
    /// What its waiting requests hold of the memory for all.
    pub share: Share,
    /// Whether a pod failed of late: only then outcomes are written down.
    ailing: AtomicBool,
    pool: Pool,
    peer: Arc<str>,
    started: Instant,
}

struct Core {
    throttle: Throttle<Waiter>,
    dests: Dests,
    backends: HashMap<SocketAddr, Backends>,
    announced: HashMap<SocketAddr, Announcement>,
    probing: HashSet<SocketAddr>,
    gone: bool,
}

#[derive(Clone)]
struct Backends {
    http1: Arc<Backend>,
    http2: Arc<Backend>,
}

/// Why a request got no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many wait already.
    #[error(
        "too many requests wait for this revision; it has no capacity left, raise max-scale or its limits"
    )]
    Full,
    /// Requests that wait hold as much memory as they may.
    #[error(
        "requests that wait hold as much memory as they may, and this revision its share of it; send smaller bodies, or raise EBB_QUEUE_BYTES of the activator"
    )]
    Crowded,
    /// It waited as long as the revision's timeout allows.
    #[error("no pod of this revision became available in time; see its Revision for the reason")]
    Timeout,
    /// The revision was deleted meanwhile.
    #[error("the revision was deleted while the request waited")]
    Gone,
}

/// A place at a pod, given back when dropped.
#[derive(Debug)]
pub struct Place {
    revision: Arc<Revision>,
    slot: Slot,
}

impl Place {
    /// The pod.
    pub fn address(&self) -> SocketAddr {
        self.slot.address
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let grants = self.revision.core.lock().throttle.finish(self.slot, balance::random());
        self.revision.deliver(grants);
    }
}

/// A request counted in the load until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<Revision>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.meter.lock().leave(self.0.now());
    }
}

struct InQueue<'a> {
    revision: &'a Revision,
    ticket: Ticket,
}

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        self.revision.core.lock().throttle.leave(self.ticket);
    }
}

impl Revision {
    /// A revision without pods. `peer`: the identity that its pods must have, in ebb-mesh's notation.
    pub fn new(key: Key, settings: Settings, pool: Pool, peer: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            key,
            settings: ArcSwap::from_pointee(settings),
            core: Mutex::new(Core {
                throttle: Throttle::new(settings.limit),
                dests: Dests::default(),
                backends: HashMap::new(),
                announced: HashMap::new(),
                probing: HashSet::new(),
                gone: false,
            }),
            meter: Mutex::default(),
            poked: Mutex::default(),
            early: AtomicU64::new(0),
            share: Share::default(),
            ailing: AtomicBool::new(false),
            pool,
            peer,
            started: Instant::now(),
        })
    }

    /// What its spec says.
    pub fn settings(&self) -> Settings {
        **self.settings.load()
    }

    /// Takes a changed spec over.
    pub fn configure(self: &Arc<Self>, settings: Settings) {
        let before = self.settings.swap(Arc::new(settings));
        if before.limit != settings.limit {
            let grants = self.core.lock().throttle.set_limit(settings.limit, balance::random());
            self.deliver(grants);
        }
    }

    /// Counts a request; answers with the guard and, if so, what must be told at once.
    pub fn count(self: &Arc<Self>) -> (Counted, Option<Report>) {
        let waiting = {
            let core = self.core.lock();
            let waits = u32::from(core.throttle.waiting() > 0 || !core.throttle.has_pods());
            u32::try_from(core.throttle.waiting()).unwrap_or(u32::MAX).saturating_add(waits)
        };
        let report = self.meter.lock().arrive(waiting, self.now());
        if report.is_some() {
            self.early.fetch_add(1, Ordering::Relaxed);
        }
        (Counted(self.clone()), report)
    }

    /// The second's report.
    pub fn cut(&self) -> Option<Report> {
        let waiting = u32::try_from(self.waiting()).unwrap_or(u32::MAX);
        self.meter.lock().cut(waiting, self.now())
    }

    /// How many early reports were made; tells a test and a metric what a storm costs.
    pub fn early_reports(&self) -> u64 {
        self.early.load(Ordering::Relaxed)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.core.lock().throttle.waiting()
    }

    /// Whether there is a pod that takes requests, busy or not.
    pub fn has_pods(&self) -> bool {
        self.core.lock().throttle.has_pods()
    }

    /// A place at a pod now, if there is one.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let slot = {
            let mut core = self.core.lock();
            if self.ailing.load(Ordering::Relaxed) && !core.throttle.advance(self.now()) {
                self.ailing.store(false, Ordering::Relaxed);
            }
            core.throttle.take(balance::random())?
        };
        Some(Place { revision: self.clone(), slot })
    }

    /// Waits for a place until `deadline`. `queued` is called once the request stands in the queue. Dropping the
    /// future leaves the queue.
    ///
    /// # Errors
    /// When there will be none.
    pub async fn wait(self: &Arc<Self>, deadline: Instant, queued: impl FnOnce()) -> Result<Place, Refused> {
        let (ticket, mut place) = {
            let mut core = self.core.lock();
            if core.gone {
                return Err(Refused::Gone);
            }
            // Between the first look and this lock a place may have come free.
            if let Some(slot) = core.throttle.take(balance::random()) {
                drop(core);
                return Ok(Place { revision: self.clone(), slot });
            }
            let (waiter, place) = oneshot::channel();
            (core.throttle.wait(waiter).map_err(|_| Refused::Full)?, place)
        };
        let _in_queue = InQueue { revision: self, ticket };
        queued();
        match tokio::time::timeout_at(deadline, &mut place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(Refused::Gone),
            Err(_) => Err(Refused::Timeout),
        }
    }

    /// The connections to a pod, for a request that `needs` a protocol; a sidecar speaks both.
    pub fn backend(&self, address: SocketAddr, needs: Option<Protocol>) -> Option<Arc<Backend>> {
        let core = self.core.lock();
        let backends = core.backends.get(&address)?;
        let many = || self.settings.load().h2c || backends.http1.in_flight() >= HTTP1_UP_TO;
        Some(match needs {
            Some(Protocol::Http1) => backends.http1.clone(),
            Some(Protocol::Http2) => backends.http2.clone(),
            None if many() => backends.http2.clone(),
            None => backends.http1.clone(),
        })
    }

    /// Takes over the EndpointSlices of the private Service.
    pub fn listed(self: &Arc<Self>, slices: &BTreeMap<SocketAddr, Listed>) {
        self.change(|dests, now| dests.listed(slices, now));
    }

    /// A pod announced itself: it is used from now on.
    pub fn announced(self: &Arc<Self>, address: SocketAddr, announcement: Announcement) {
        self.core.lock().announced.insert(address, announcement);
        self.change(|dests, now| dests.announced(address, now));
    }

    /// A probe of a pod was answered.
    pub fn probed(self: &Arc<Self>, address: SocketAddr) {
        self.change(|dests, _| dests.probed(address));
    }

    /// A connection to a pod could not be made.
    pub fn failed(self: &Arc<Self>, address: SocketAddr) {
        self.change(|dests, _| dests.failed(address));
    }

    /// A pod answered, or failed to: those that failed of late get less.
    pub fn answered(&self, address: SocketAddr, failed: bool) {
        if failed || self.ailing.load(Ordering::Relaxed) {
            self.core.lock().throttle.record(address, failed, self.now());
            self.ailing.store(true, Ordering::Relaxed);
        }
    }

    /// Says which part of the pods is this activator's.
    pub fn assign(self: &Arc<Self>, slice: Option<Slice>) {
        let grants = self.core.lock().throttle.assign(slice, balance::random());
        self.deliver(grants);
    }

    /// The pods to start probing now: those that cannot be used yet, while requests wait; those that failed, in any case.
    pub fn begin_probes(&self) -> Vec<(SocketAddr, Arc<Backend>)> {
        let mut core = self.core.lock();
        let waiting = core.throttle.waiting() > 0;
        let wanted: Vec<SocketAddr> =
            core.dests.to_probe(waiting).filter(|address| !core.probing.contains(address)).collect();
        wanted
            .into_iter()
            .map(|address| {
                core.probing.insert(address);
                (address, self.backends_of(&mut core, address).http1)
            })
            .collect()
    }

    /// Whether a pod should still be probed, and if so, whether anybody waits for it; if not, its probing is over.
    pub fn keep_probing(&self, address: SocketAddr) -> Option<bool> {
        let mut core = self.core.lock();
        let waiting = core.throttle.waiting() > 0;
        if core.dests.is_wanted(address, waiting) {
            return Some(waiting);
        }
        core.probing.remove(&address);
        None
    }

    /// The probing of a pod is over.
    pub fn end_probing(&self, address: SocketAddr) {
        self.core.lock().probing.remove(&address);
    }

    /// The autoscaler answered a report that woke the revision.
    pub fn set_poked(&self, response: PokeResponse) {
        *self.poked.lock() = Some(response);
    }

    /// What is known of how a pod came to be: the decision and the pod's own announcement.
    pub fn story(&self, address: SocketAddr) -> (Option<PokeResponse>, Option<Announcement>) {
        (self.poked.lock().clone(), self.core.lock().announced.get(&address).cloned())
    }

    /// The revision is gone: whoever waits is told.
    pub fn close(&self) {
        let mut core = self.core.lock();
        core.gone = true;
        let limit = self.settings.load().limit;
        let old = std::mem::replace(&mut core.throttle, Throttle::new(limit));
        drop(core);
        drop(old);
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn backends_of(&self, core: &mut Core, address: SocketAddr) -> Backends {
        core.backends
            .entry(address)
            .or_insert_with(|| Backends {
                http1: self.pool.backend(&Target::tls(address, Protocol::Http1, self.peer.clone())),
                http2: self.pool.backend(&Target::tls(address, Protocol::Http2, self.peer.clone())),
            })
            .clone()
    }

    fn change(self: &Arc<Self>, change: impl FnOnce(&mut Dests, Duration) -> Vec<Change>) {
        let now = self.now();
        let mut grants = Vec::new();
        {
            let mut core = self.core.lock();
            for change in change(&mut core.dests, now) {
                match change {
                    Change::Usable(address, usable) => {
                        self.backends_of(&mut core, address);
                        grants.extend(core.throttle.set(address, usable, balance::random()));
                    }
                    Change::Gone(address) => {
                        grants.extend(core.throttle.remove(address, balance::random()));
                        core.backends.remove(&address);
                        core.announced.remove(&address);
                    }
                }
            }
        }
        self.deliver(grants);
    }

    /// Wakes waiters. A place whose waiter has gone meanwhile comes back by being dropped.
    fn deliver(self: &Arc<Self>, grants: Vec<Grant<Waiter>>) {
        for Grant { waiter, slot } in grants {
            let _ = waiter.send(Place { revision: self.clone(), slot });
        }
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revision")
            .field("key", &self.key)
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}
