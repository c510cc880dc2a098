//! Telling the autoscaler.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use ebb_http::wire::{PokeResponse, STAT_BATCH_PATH, StatBatch};
use ebb_http::{Backend, Outgoing, Pool, Protocol, RequestBody, Target, headers};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};

use crate::config::Config;

/// A report is worth less than this late.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a report did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Nobody is there.
    #[error("the Service `autoscaler` has no ready endpoints; is the autoscaler running?")]
    NoAutoscaler,
    /// Everybody failed; the last error.
    #[error("the autoscaler at {address} did not take the report: {cause}")]
    Refused {
        /// Which one.
        address: SocketAddr,
        /// What it said or what failed.
        cause: String,
    },
}

/// Takes load reports: the autoscaler, or what a test puts in its place.
pub trait Reporter: Send + Sync + 'static {
    /// Delivers a batch and yields the answer.
    fn report(
        &self,
        batch: StatBatch,
    ) -> Pin<Box<dyn Future<Output = Result<PokeResponse, ReportError>> + Send + '_>>;
}

/// Reports over mutual TLS.
pub struct MeshReporter {
    pool: Pool,
    peer: Arc<str>,
    host: String,
    fixed: bool,
    backends: ArcSwap<Vec<Arc<Backend>>>,
    /// The replica that decides, as the others told.
    leader: ArcSwapOption<SocketAddr>,
}

impl std::fmt::Debug for MeshReporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshReporter").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl MeshReporter {
    /// A reporter that knows the configured address, or none until [`MeshReporter::set`].
    pub fn new(pool: &Pool, config: &Config, trust_domain: &str) -> Self {
        let reporter = Self {
            pool: pool.clone(),
            peer: format!("spiffe://{trust_domain}/ns/{}/sa/autoscaler", config.namespace).into(),
            host: format!("autoscaler.{}", config.namespace),
            fixed: config.autoscaler.is_some(),
            backends: ArcSwap::default(),
            leader: ArcSwapOption::empty(),
        };
        reporter.put(config.autoscaler.as_slice());
        reporter
    }

    /// Says where the autoscaler is; without effect when that is configured.
    pub fn set(&self, addresses: &[SocketAddr]) {
        if !self.fixed {
            self.put(addresses);
        }
    }

    fn put(&self, addresses: &[SocketAddr]) {
        let backend = |address| self.pool.backend(&Target::tls(address, Protocol::Http2, self.peer.clone()));
        self.backends.store(Arc::new(addresses.iter().copied().map(backend).collect()));
    }

    async fn send(&self, backend: &Arc<Backend>, body: Vec<u8>) -> Result<PokeResponse, String> {
        let request = Request::post(STAT_BATCH_PATH)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(RequestBody::full(body))
            .map_err(|error| error.to_string())?;
        let mut outgoing = Outgoing::own(request).map_err(|error| error.to_string())?;
        let response = outgoing.send(backend).await.map_err(|error| error.to_string())?;
        let status = response.status();
        if let Some(leader) = response.headers().get(headers::EBB_LEADER) {
            let leader = leader.to_str().ok().and_then(|leader| leader.parse().ok());
            self.leader.store(leader.map(Arc::new));
        }
        let body = Limited::new(response.into_body(), 64 << 10)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        if status != StatusCode::OK {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body.to_bytes()).trim_end()));
        }
        serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
    }
}

impl Reporter for MeshReporter {
    fn report(
        &self,
        batch: StatBatch,
    ) -> Pin<Box<dyn Future<Output = Result<PokeResponse, ReportError>> + Send + '_>> {
        Box::pin(async move {
            let body = serde_json::to_vec(&batch).unwrap_or_default();
            let (backends, leader) = (self.backends.load_full(), self.leader.load_full());
            let leads = |backend: &&Arc<Backend>| leader.as_deref() == Some(&backend.target().address);
            let first = backends.iter().filter(leads);
            let mut failed = ReportError::NoAutoscaler;
            for backend in first.chain(backends.iter().filter(|backend| !leads(backend))) {
                let sent = tokio::time::timeout(TIMEOUT, self.send(backend, body.clone())).await;
                match sent.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}"))) {
                    Ok(response) => {
                        metrics::counter!("ebb_activator_reports_total", "outcome" => "taken").increment(1);
                        return Ok(response);
                    }
                    Err(cause) => {
                        if leads(&backend) {
                            // It may be gone: the next report does not wait for it first.
                            self.leader.store(None);
                        }
                        failed = ReportError::Refused { address: backend.target().address, cause };
                    }
                }
            }
            metrics::counter!("ebb_activator_reports_total", "outcome" => "lost").increment(1);
            Err(failed)
        })
    }
}
