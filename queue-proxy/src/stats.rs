//! Load for the autoscaler (port 9090, mutual TLS), figures for Prometheus (port 9091, plain).

use std::sync::Arc;
use std::time::Instant;

use ebb_http::wire::{STATS_PATH, Stat, now_us};
use ebb_http::{Body, Handler, Peer};
use ebb_mesh::{Mode, Policy};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use crate::config::Config;
use crate::state::State;

/// Serves `/stats` to whom `policy` allows.
pub struct Stats {
    config: Arc<Config>,
    state: Arc<State>,
    policy: Policy,
}

impl Stats {
    /// For the autoscaler's identity only.
    ///
    /// # Errors
    /// When trust domain or system namespace are no valid names.
    pub fn new(config: Arc<Config>, state: Arc<State>) -> Result<Self, ebb_mesh::Error> {
        let autoscaler =
            ebb_mesh::PeerPolicy::component(&config.trust_domain, &config.system_namespace, "autoscaler")?;
        Ok(Self { config, state, policy: Policy { mode: Mode::Strict, allow: vec![autoscaler] } })
    }

    /// The load since the last report.
    pub fn stat(&self, now: Instant) -> Stat {
        let report = self.state.report(now);
        Stat {
            namespace: self.config.namespace.clone(),
            revision: self.config.revision.clone(),
            pod: self.config.pod.clone(),
            average_concurrent_requests: report.concurrency,
            average_proxied_concurrent_requests: report.proxied_concurrency,
            request_count: report.rate,
            proxied_request_count: report.proxied_rate,
            process_uptime_s: now.duration_since(self.state.started).as_secs_f64(),
            timestamp_us: now_us(),
        }
    }
}

impl Handler for Stats {
    type Body = Body;

    async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Body> {
        if let Err(refusal) = self.policy.check(peer.secure, peer.identity.as_deref()) {
            return answer(StatusCode::FORBIDDEN, "text/plain", format!("{refusal}\n"));
        }
        if request.uri().path() != STATS_PATH {
            return answer(StatusCode::NOT_FOUND, "text/plain", "there is only /stats\n".into());
        }
        match serde_json::to_string(&self.stat(Instant::now())) {
            Ok(json) => answer(StatusCode::OK, "application/json", json),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
        }
    }
}

/// Serves `/metrics`.
pub struct MetricsPage {
    /// For the labels.
    pub config: Arc<Config>,
    /// The figures.
    pub state: Arc<State>,
}

impl Handler for MetricsPage {
    type Body = Body;

    async fn handle(self: Arc<Self>, request: Request<Incoming>, _peer: Arc<Peer>) -> Response<Body> {
        if request.uri().path() != "/metrics" {
            return answer(StatusCode::NOT_FOUND, "text/plain", "there is only /metrics\n".into());
        }
        let page = self.state.metrics.render(&self.config, &self.state);
        answer(StatusCode::OK, "text/plain; version=0.0.4", page)
    }
}

fn answer(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
