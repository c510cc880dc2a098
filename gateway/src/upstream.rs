//! A Service port with its endpoints of the moment: what a split points to.
//!
//! It lives as long as a table points to it, over all changes of its endpoints, so that a request that waits for one
//! sees the next list. An endpoint that could not be reached is avoided for a moment; nothing else is remembered.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebb_http::{Backend, Pool, Protocol, Security, Target, balance};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::table::BackendKey;

/// How long an endpoint that could not be reached is avoided while there are others.
const AVOID: Duration = Duration::from_secs(1);
/// With more requests than this at an endpoint further ones share an HTTP/2 connection: a storm must not cost a
/// handshake for each request, and below that HTTP/1.1 is cheaper.
const HTTP1_UP_TO: usize = 32;

/// Where one endpoint is, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Where it listens.
    pub socket: SocketAddr,
    /// The identity it must have, in ebb-mesh's notation; none for plaintext.
    pub peer: Option<Arc<str>>,
    /// It takes HTTP/2 only (without TLS by prior knowledge).
    pub h2: bool,
}

/// What a Service port is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These endpoints.
    Endpoints(Vec<Address>),
    /// Another name of this gateway: the request is looked up once more.
    Gateway,
}

impl Default for Content {
    fn default() -> Self {
        Content::Endpoints(Vec::new())
    }
}

/// See the module's documentation.
pub struct Upstream {
    /// Which Service port.
    pub key: BackendKey,
    pool: Pool,
    started: Instant,
    current: watch::Sender<Arc<Current>>,
}

/// The endpoints of a moment.
#[derive(Debug, Default)]
pub struct Current {
    content: Content,
    endpoints: Vec<Arc<Endpoint>>,
}

/// One endpoint.
pub struct Endpoint {
    /// Where and how.
    pub address: Address,
    http1: Arc<Backend>,
    http2: Arc<Backend>,
    avoid_until: AtomicU64,
    /// It is not a pod, but holds requests for one.
    pub is_activator: bool,
}

impl Upstream {
    /// A Service port whose endpoints are not known yet.
    pub fn new(key: BackendKey, pool: Pool) -> Arc<Self> {
        Arc::new(Self { key, pool, started: Instant::now(), current: watch::Sender::default() })
    }

    /// Takes over what the Service port is made of now. Endpoints that stay keep their connections.
    pub fn set(&self, content: Content) {
        let before = self.current.borrow().clone();
        if before.content == content {
            return;
        }
        let endpoints = match &content {
            Content::Gateway => Vec::new(),
            Content::Endpoints(addresses) => addresses
                .iter()
                .map(|address| {
                    let kept = before.endpoints.iter().find(|endpoint| endpoint.address == *address);
                    kept.cloned().unwrap_or_else(|| Arc::new(self.endpoint(address.clone())))
                })
                .collect(),
        };
        self.current.send_replace(Arc::new(Current { content, endpoints }));
    }

    fn endpoint(&self, address: Address) -> Endpoint {
        let target = |protocol| Target {
            address: address.socket,
            protocol,
            security: address.peer.clone().map_or(Security::Plain, |peer| Security::Tls { peer }),
        };
        Endpoint {
            http1: self.pool.backend(&target(Protocol::Http1)),
            http2: self.pool.backend(&target(Protocol::Http2)),
            avoid_until: AtomicU64::new(0),
            is_activator: address.peer.as_ref().is_some_and(|peer| peer.ends_with("/sa/activator")),
            address,
        }
    }

    /// Whether the Service is another name of this gateway.
    pub fn is_gateway(&self) -> bool {
        self.current.borrow().content == Content::Gateway
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.current.borrow().endpoints.len()
    }

    /// Whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An endpoint that is not among `tried`: the less busy of two, preferring those that could be reached lately.
    pub fn pick(&self, tried: &[SocketAddr]) -> Option<Arc<Endpoint>> {
        let current = self.current.borrow().clone();
        let now = self.now();
        let all = &current.endpoints;
        // The usual case costs no list.
        if tried.is_empty() && all.iter().all(|endpoint| endpoint.avoid_until.load(Ordering::Relaxed) <= now)
        {
            let at = balance::p2c(all.len(), balance::random(), |n| all[n].load())?;
            return Some(all[at].clone());
        }
        let untried = |endpoint: &&Arc<Endpoint>| !tried.contains(&endpoint.address.socket);
        let good: Vec<&Arc<Endpoint>> = all
            .iter()
            .filter(untried)
            .filter(|endpoint| endpoint.avoid_until.load(Ordering::Relaxed) <= now)
            .collect();
        let some = if good.is_empty() { all.iter().filter(untried).collect() } else { good };
        let at = balance::p2c(some.len(), balance::random(), |n| some[n].load())?;
        Some(some[at].clone())
    }

    /// An endpoint could not be reached: it is avoided for a moment.
    pub fn failed(&self, endpoint: &Endpoint) {
        endpoint.avoid_until.store(self.now() + AVOID.as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until the endpoints change.
    pub async fn changed(&self, seen: &mut watch::Receiver<Arc<Current>>) {
        if seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A view that notices changes from now on.
    pub fn watch(&self) -> watch::Receiver<Arc<Current>> {
        self.current.subscribe()
    }

    fn now(&self) -> u64 {
        // One later, so that 0 is always past.
        self.started.elapsed().as_millis() as u64 + 1
    }
}

impl Endpoint {
    /// Requests under way to it.
    pub fn in_flight(&self) -> usize {
        self.http1.in_flight() + self.http2.in_flight()
    }

    /// What balancing compares: requests under way, and more for one that failed of late.
    fn load(&self) -> f64 {
        balance::load(self.in_flight(), self.http1.penalty().max(self.http2.penalty()))
    }

    /// The connections to use, for a request that `needs` a protocol. Over mutual TLS any endpoint speaks both.
    pub fn backend(&self, needs: Option<Protocol>) -> &Arc<Backend> {
        let either = self.address.peer.is_some();
        match needs {
            Some(Protocol::Http1) => &self.http1,
            _ if self.address.h2 => &self.http2,
            Some(Protocol::Http2) if either => &self.http2,
            _ if either && self.http1.in_flight() >= HTTP1_UP_TO => &self.http2,
            _ => &self.http1,
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("key", &self.key)
            .field("endpoints", &self.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("address", &self.address).finish_non_exhaustive()
    }
}
