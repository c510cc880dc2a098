//! Asking pods for their load.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ebb_http::wire::{STATS_PATH, Stat};
use ebb_http::{Backend, Outgoing, Pool, Protocol, RequestBody, Target, balance};
use futures::stream::{FuturesUnordered, StreamExt};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::engine::{Key, Load};
use crate::sample::{project, sample_size};

/// Longer than this nobody waits for a pod.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The largest answer that is read.
const MAX_BODY: usize = 64 << 10;
/// Connections to pods of a revision that is not asked any more are kept this long.
const KEEP: Duration = Duration::from_secs(60);

/// One for each pod of a revision.
type Connections = HashMap<IpAddr, Arc<Backend>>;

/// Asks pods, keeping their connections from one second to the next.
pub(crate) struct Collector {
    pool: Pool,
    port: u16,
    trust_domain: Arc<str>,
    kept: Mutex<HashMap<Key, (Instant, Connections)>>,
}

impl Collector {
    pub(crate) fn new(pool: Pool, port: u16, trust_domain: &str) -> Self {
        Self { pool, port, trust_domain: trust_domain.into(), kept: Mutex::default() }
    }

    /// Asks a sample of `pods`, the first ones preferably, and projects the answers on all. None when fewer than half
    /// of the sample could be had: too few to stand for the others.
    pub(crate) async fn collect(&self, key: &Key, pods: &[IpAddr]) -> Option<Load> {
        let wanted = sample_size(pods.len());
        // A random stretch of the older half (or as many as are needed) spreads the asking.
        let old = (pods.len() / 2).max(wanted);
        let offset = usize::try_from(balance::random() % old.max(1) as u64).unwrap_or(0);
        let mut order = (0..old).map(|n| pods[(n + offset) % old]).chain(pods[old..].iter().copied());
        let backends = self.backends(key, pods);
        let mut asking: FuturesUnordered<_> = order
            .by_ref()
            .take(wanted)
            .filter_map(|ip| backends.get(&ip).cloned())
            .map(|b| ask(key, b))
            .collect();
        let (mut concurrency, mut rps, mut answered) = (0.0, 0.0, 0);
        while let Some(answer) = asking.next().await {
            match answer {
                Ok(stat) => {
                    concurrency +=
                        stat.average_concurrent_requests - stat.average_proxied_concurrent_requests;
                    rps += stat.request_count - stat.proxied_request_count;
                    answered += 1;
                }
                Err(error) => {
                    tracing::debug!(revision = %key, error, "a pod did not report its load");
                    if let Some(backend) = order.next().and_then(|ip| backends.get(&ip).cloned()) {
                        asking.push(ask(key, backend));
                    }
                }
            }
        }
        if answered * 2 < wanted {
            tracing::warn!(revision = %key, answered, wanted, "too few pods report their load; scaling waits");
            return None;
        }
        Some(Load {
            concurrency: project(concurrency.max(0.0), answered, pods.len())?,
            rps: project(rps.max(0.0), answered, pods.len())?,
        })
    }

    fn backends(&self, key: &Key, pods: &[IpAddr]) -> Connections {
        let peer: Arc<str> = format!("spiffe://{}/ns/{}/*", self.trust_domain, key.namespace).into();
        let now = Instant::now();
        let mut kept = self.kept.lock();
        kept.retain(|_, (used, _)| now.duration_since(*used) < KEEP);
        let (used, backends) = kept.entry(key.clone()).or_insert_with(|| (now, HashMap::new()));
        *used = now;
        backends.retain(|ip, _| pods.contains(ip));
        for ip in pods {
            backends.entry(*ip).or_insert_with(|| {
                self.pool.backend(&Target::tls(
                    SocketAddr::new(*ip, self.port),
                    Protocol::Http1,
                    peer.clone(),
                ))
            });
        }
        backends.clone()
    }
}

async fn ask(key: &Key, backend: Arc<Backend>) -> Result<Stat, String> {
    let request = Request::get(STATS_PATH)
        .header(header::HOST, format!("{}.{}", key.name, key.namespace))
        .body(RequestBody::empty())
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let mut outgoing = Outgoing::own(request).map_err(|error| error.to_string())?;
        let response = outgoing.send(&backend).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("status {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
    };
    tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| format!("no answer within {TIMEOUT:?}"))?
}
