//! Passing load reports on to the replica that decides.
//!
//! Activators send to any replica; each answer that came from another one says where that is, so that the next report goes there directly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ebb_component::leader::{Candidate, Election};
use ebb_http::wire::STAT_BATCH_PATH;
use ebb_http::{Body, Outgoing, Pool, PoolConfig, Protocol, RequestBody, Target, headers};
use ebb_mesh::Identity;
use http::{HeaderValue, Request, Response, header};

use crate::config::Config;

/// Shorter than an activator waits for the whole.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct PassOn {
    pool: Pool,
    election: Election,
    peer: Arc<str>,
    host: Arc<str>,
    port: u16,
}

impl PassOn {
    pub(crate) fn new(identity: Identity, election: Election, config: &Config) -> Self {
        let peer = format!("spiffe://{}/ns/{}/sa/autoscaler", identity.trust_domain(), config.namespace);
        let pool = PoolConfig { connect_timeout: TIMEOUT, ..PoolConfig::default() };
        Self {
            pool: Pool::new(identity, pool),
            election,
            peer: peer.into(),
            host: format!("autoscaler.{}", config.namespace).into(),
            port: config.mtls_port,
        }
    }

    /// The replica to pass on to, if it is another one.
    pub(crate) fn leader(&self) -> Option<Candidate> {
        self.election.leader()
    }

    /// The leader's answer to a report.
    pub(crate) async fn send(&self, leader: &Candidate, report: Bytes) -> Result<Response<Body>, String> {
        let address = SocketAddr::new(leader.address, self.port);
        let failed = |why: String| {
            format!("{} at {address}, which decides, did not take the report: {why}", leader.pod)
        };
        let request = Request::post(STAT_BATCH_PATH)
            .header(header::HOST, &*self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(headers::EBB_PASSED_ON, "true")
            .body(RequestBody::full(report))
            .map_err(|error| failed(error.to_string()))?;
        let backend = self.pool.backend(&Target::tls(address, Protocol::Http2, self.peer.clone()));
        let mut outgoing = Outgoing::own(request).map_err(|error| failed(error.to_string()))?;
        let sent = tokio::time::timeout(TIMEOUT, outgoing.send(&backend)).await;
        let mut response = sent
            .map_err(|_| failed(format!("no answer within {TIMEOUT:?}")))?
            .map_err(|error| failed(error.to_string()))?;
        if let Ok(value) = HeaderValue::from_str(&address.to_string()) {
            response.headers_mut().insert(headers::EBB_LEADER, value);
        }
        Ok(response)
    }
}
