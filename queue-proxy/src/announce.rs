//! Tells every activator that the app takes requests, the moment it does: ahead of kubelet and of the API server.
//!
//! Connections are opened while the app still starts. Each activator is told until it accepts; an attempt that fails asks
//! for the addresses again, because an activator that went away has a successor. Losing an announcement costs time, not
//! requests: activators probe pods as well.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ebb_http::headers::{CONTROL_ANNOUNCE, EBB_CONTROL};
use ebb_http::wire::{ANNOUNCE_AUTHORITY, ANNOUNCE_PATH, Announcement};
use ebb_http::{Backend, Outgoing, Pool, Protocol, RequestBody, Target};
use ebb_mesh::Backoff;
use futures::future::join_all;
use http::{Request, header};
use http_body_util::{BodyExt, Limited};
use tokio::time::Instant;

/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(2);
/// After so long every activator has found the pod by its own means.
const GIVE_UP: Duration = Duration::from_secs(120);

/// Announces to the activators behind one name.
#[derive(Debug)]
pub struct Announcer {
    pool: Pool,
    activator: String,
    peer: Arc<str>,
}

impl Announcer {
    /// `activator` is `host:port`; `peer` its identity.
    pub fn new(pool: Pool, activator: String, peer: Arc<str>) -> Self {
        Self { pool, activator, peer }
    }

    async fn backends(&self) -> std::io::Result<Vec<Arc<Backend>>> {
        let addresses: HashSet<SocketAddr> = tokio::net::lookup_host(&self.activator).await?.collect();
        let backend = |at| self.pool.backend(&Target::tls(at, Protocol::Http1, self.peer.clone()));
        Ok(addresses.into_iter().map(backend).collect())
    }

    /// Opens connections ahead of time. Failures are left to [`Self::announce`].
    pub async fn warm(&self) -> Vec<Arc<Backend>> {
        let Ok(backends) = self.backends().await else { return Vec::new() };
        let opening = backends.iter().map(|b| tokio::time::timeout(ATTEMPT, b.warm()));
        for opened in join_all(opening).await {
            if let Ok(Err(error)) = opened {
                tracing::debug!(%error, "an activator cannot be reached yet");
            }
        }
        backends
    }

    /// Tells all of `known`, then whoever the name resolves to until all have accepted.
    pub async fn announce(&self, known: Vec<Arc<Backend>>, announcement: &Announcement) {
        let Ok(body) = serde_json::to_vec(announcement) else { return };
        let body = bytes::Bytes::from(body);
        let began = Instant::now();
        let mut told = HashSet::new();
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(5));
        let mut backends = known;
        loop {
            let open: Vec<_> = backends.iter().filter(|b| !told.contains(&b.target().address)).collect();
            let answers = join_all(open.iter().map(|b| self.tell(b, body.clone()))).await;
            let mut failed = backends.is_empty();
            for (backend, answer) in open.iter().zip(answers) {
                let activator = backend.target().address;
                match answer {
                    Ok(()) => {
                        told.insert(activator);
                        tracing::debug!(%activator, "announced");
                    }
                    Err(error) => {
                        failed = true;
                        tracing::debug!(%activator, error, "not announced yet");
                    }
                }
            }
            if !failed {
                return;
            }
            if began.elapsed() > GIVE_UP {
                tracing::warn!(
                    activator = self.activator,
                    "some activator never took the announcement; it has to find the pod by itself"
                );
                return;
            }
            tokio::time::sleep(backoff.next(ebb_http::balance::random())).await;
            match self.backends().await {
                Ok(found) => backends = found,
                Err(error) => {
                    tracing::debug!(activator = self.activator, %error, "cannot resolve the activator");
                }
            }
        }
    }

    async fn tell(&self, backend: &Arc<Backend>, body: bytes::Bytes) -> Result<(), String> {
        let exchange = async {
            let request = Request::post(ANNOUNCE_PATH)
                .header(header::HOST, ANNOUNCE_AUTHORITY)
                .header(EBB_CONTROL, CONTROL_ANNOUNCE)
                .header(header::CONTENT_TYPE, "application/json")
                .body(RequestBody::full(body))
                .map_err(|e| e.to_string())?;
            let mut outgoing = Outgoing::own(request).map_err(|e| e.to_string())?;
            let response = outgoing.send(backend).await.map_err(|e| e.to_string())?;
            let status = response.status();
            let text = Limited::new(response.into_body(), 4096).collect().await.map(|b| b.to_bytes());
            if status.is_success() {
                return Ok(());
            }
            let text = text.unwrap_or_default();
            Err(format!("{status}: {}", String::from_utf8_lossy(&text).trim()))
        };
        tokio::time::timeout(ATTEMPT, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {ATTEMPT:?}")))
    }
}
