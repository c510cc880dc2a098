//! One request: probe, policy, limit, time, app.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ebb_http::body::Limits;
use ebb_http::forward::{Forwarded, error_response, grpc, own_response};
use ebb_http::headers::{
    K_KUBELET_PROBE, K_NETWORK_PROBE, K_ORIGINAL_HOST, K_PROXY_REQUEST, KNATIVE_SERVING_NAMESPACE,
    KNATIVE_SERVING_REVISION, KUBE_PROBE_UA, PROBE_QUEUE, PROXIED_BY_ACTIVATOR, TIMING_REQUEST,
};
use ebb_http::{
    Backend, Body, Error, Guarded, Handler, Outgoing, Peer, Pool, Protocol, Target, Timed, Via, balance,
    timing,
};
use ebb_mesh::{Backoff, PeerPolicy, Policy};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::breaker::Permit;
use crate::config::Config;
use crate::logging::{Line, RequestLog};
use crate::probe::Prober;
use crate::state::{InPod, State};

/// The body of every answer.
pub type Answer = Guarded<Timed<Body>, Option<Done>>;

/// Serves the app's ports.
pub struct Proxy {
    state: Arc<State>,
    /// The app, spoken to in either protocol.
    http1: Arc<Backend>,
    http2: Arc<Backend>,
    prober: Arc<Prober>,
    policy: Policy,
    /// Whose word counts that a request was reported already.
    activator: Option<Arc<str>>,
    log: Option<Arc<RequestLog>>,
    log_probes: bool,
    total: Duration,
    idle: Option<Duration>,
    first_byte: Duration,
}

/// Everything that ends with a request's response: its place in the app, its share of the load, its measurement.
#[derive(Debug)]
pub struct Done {
    _permit: Option<Permit>,
    _in_pod: InPod,
    state: Arc<State>,
    began: Instant,
    status: u16,
    log: Option<(Arc<RequestLog>, Box<Line>, Arc<AtomicU64>)>,
}

/// Nginx' code for a client that went away before its answer; seen only in metrics and logs.
const CLIENT_CLOSED: u16 = 499;

impl Drop for Done {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.state.metrics.record(self.status, took);
        if let Some((log, line, sent)) = &self.log {
            log.write(line, self.status, sent.load(Ordering::Relaxed), took);
        }
    }
}

/// What a started response ends with when its time is over.
const LAST_WORDS: &str = "request timeout";

/// What a request wants of the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `K-Network-Probe: queue`.
    Probe,
    /// `K-Network-Probe` with another value.
    WrongProbe,
    /// Kubelet's own.
    Kubelet,
    /// A request for the app.
    Request,
}

/// `plain`: it came without TLS, as kubelet comes; `activator`: from there. What a gateway passes on is a request, whatever a client outside put into
/// its headers: else it would be served beyond the limit and without being counted.
fn kind_of(headers: &HeaderMap, plain: bool, activator: bool) -> Kind {
    if let Some(value) = headers.get(&K_NETWORK_PROBE).filter(|_| plain || activator) {
        return if value == PROBE_QUEUE { Kind::Probe } else { Kind::WrongProbe };
    }
    if !plain {
        return Kind::Request;
    }
    let kubelet = headers.contains_key(&K_KUBELET_PROBE)
        || headers
            .get(header::USER_AGENT)
            .is_some_and(|ua| ua.as_bytes().starts_with(KUBE_PROBE_UA.as_bytes()));
    if kubelet { Kind::Kubelet } else { Kind::Request }
}

impl Proxy {
    /// Serves `app` as `config` says.
    pub fn new(config: &Config, state: Arc<State>, app: &Pool, prober: Arc<Prober>) -> Self {
        let activator =
            PeerPolicy::component(&config.trust_domain, &config.system_namespace, "activator").ok();
        let first_byte = [config.start_timeout, config.idle_timeout, Some(config.timeout)];
        Self {
            state,
            http1: app.backend(&Target::plain(config.app, Protocol::Http1)),
            http2: app.backend(&Target::plain(config.app, Protocol::Http2)),
            prober,
            policy: Policy { mode: config.mode, allow: Vec::new() },
            activator: activator.map(|activator| activator.to_shared()),
            log: RequestLog::new(config).map(Arc::new),
            log_probes: config.log_probes,
            total: config.timeout,
            idle: config.idle_timeout,
            first_byte: first_byte.into_iter().flatten().min().unwrap_or(config.timeout),
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Answer> {
        let activator = peer.identity.is_some() && peer.identity == self.activator;
        let kind = kind_of(request.headers(), !peer.secure, activator);
        if kind == Kind::Request {
            if let Err(refusal) = self.policy.check(peer.secure, peer.identity.as_deref()) {
                let before = self.state.metrics.refuse();
                // One line for a power of ten: whoever is refused must not be able to fill the log.
                if before == 0 || before.ilog10() != (before + 1).ilog10() {
                    let path = request.uri().path();
                    tracing::warn!(remote = %peer.remote, path, %refusal, so_far = before + 1, "refused by policy");
                }
                return plain(StatusCode::FORBIDDEN, format!("{refusal}\n"));
            }
            return self.forward(request, &peer).await;
        }
        let began = Instant::now();
        let logged = self.log.as_ref().filter(|_| self.log_probes);
        let line = logged.map(|log| (log.clone(), log.line(&request, peer.remote)));
        let response = self.answer_probe(kind, request, &peer).await;
        if let Some((log, line)) = line {
            let size = response.body().size_hint().exact().unwrap_or(0);
            log.write(&line, response.status().as_u16(), size, began.elapsed());
        }
        response
    }

    async fn answer_probe(&self, kind: Kind, request: Request<Incoming>, peer: &Peer) -> Response<Answer> {
        match kind {
            Kind::WrongProbe => {
                plain(StatusCode::BAD_REQUEST, "unexpected K-Network-Probe header value: this is `queue`\n")
            }
            // Under STRICT, plaintext gets the answer to a probe at most, whatever it calls itself.
            Kind::Kubelet if self.policy.check(peer.secure, peer.identity.as_deref()).is_ok() => {
                self.pass_probe(request, peer).await
            }
            _ => self.probe().await,
        }
    }

    /// Answers for the app.
    async fn probe(&self) -> Response<Answer> {
        if self.state.draining() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
        }
        if !self.state.is_ready() {
            let why = self.prober.last_failure().await;
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            return plain(StatusCode::SERVICE_UNAVAILABLE, format!("the app has not started yet{why}\n"));
        }
        match self.prober.check().await {
            Ok(()) => plain(StatusCode::OK, PROBE_QUEUE),
            Err(error) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        }
    }

    /// Kubelet's probe of the app goes to the app, uncounted and unlimited.
    async fn pass_probe(&self, request: Request<Incoming>, peer: &Peer) -> Response<Answer> {
        let sent = async {
            let mut outgoing = self.prepare(request, peer)?;
            self.send(&mut outgoing).await
        };
        match sent.await {
            Ok(response) => whole(response),
            Err(error) => failed(&error),
        }
    }

    fn prepare(&self, request: Request<Incoming>, peer: &Peer) -> Result<Outgoing, Error> {
        let via = Via {
            client: peer.remote.ip(),
            secure: peer.secure,
            forwarded: Forwarded::Complete,
            tunnels: &self.state.tunnels,
        };
        let mut outgoing = Outgoing::new(request, &via)?;
        if let Some(headers) = outgoing.headers_mut() {
            headers.remove(&KNATIVE_SERVING_REVISION);
            headers.remove(&KNATIVE_SERVING_NAMESPACE);
            headers.remove(&K_PROXY_REQUEST);
            headers.remove(&K_NETWORK_PROBE);
            headers.remove(&TIMING_REQUEST);
            if let Some(host) = headers.remove(&K_ORIGINAL_HOST) {
                headers.insert(header::HOST, host);
            }
        }
        Ok(outgoing)
    }

    /// Sends to the app. Where more connect at once than an app takes, the kernel drops who comes late: they wait, as others that cannot be
    /// served yet do, and no longer than a request may.
    async fn send(&self, outgoing: &mut Outgoing) -> Result<Response<Body>, Error> {
        let mut pauses = Backoff::new(Duration::from_millis(10), Duration::from_millis(200));
        let app = if self.prober.speaks_h2() && !outgoing.is_upgrade() { &self.http2 } else { &self.http1 };
        loop {
            match outgoing.send(app).await {
                Err(Error::ConnectTimeout { .. }) if outgoing.can_retry() => {
                    tokio::time::sleep(pauses.next(balance::random())).await;
                }
                sent => return sent,
            }
        }
    }

    async fn forward(&self, request: Request<Incoming>, peer: &Peer) -> Response<Answer> {
        let began = Instant::now();
        let proxied = request.headers().get(&K_PROXY_REQUEST).is_some_and(|v| v == PROXIED_BY_ACTIVATOR)
            && peer.identity == self.activator;
        let timed = timing::wanted(request.headers());
        let mut done = Some(Done {
            _permit: None,
            _in_pod: self.state.arrive(began, proxied),
            state: self.state.clone(),
            began,
            status: CLIENT_CLOSED,
            log: self.log.as_ref().map(|log| (log.clone(), log.line(&request, peer.remote), Arc::default())),
        });
        let mut limits = Limits {
            total: Some(((began + self.total).into(), self.total)),
            idle: self.idle,
            last_words: None,
        };
        let mut entered = began;
        let limit = self.first_byte;
        let work = async {
            let mut outgoing = self.prepare(request, peer)?;
            // The app was announced or probed before anybody sends; waiting covers a sender that did neither.
            self.state.wait_ready().await;
            let permit = self.state.breaker.enter().await;
            entered = Instant::now();
            match permit {
                Ok(permit) => {
                    if let Some(done) = &mut done {
                        done._permit = Some(permit);
                    }
                }
                Err(full) => {
                    tracing::debug!(%full, "refused");
                    return Err(Error::Overloaded("pending request queue full"));
                }
            }
            if outgoing.is_upgrade() {
                // The tunnel keeps the place; its own end ends the request.
                if let Some(mut done) = done.take() {
                    done.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
                    outgoing.hold(done);
                    outgoing.limit_upgrade(limits);
                }
            }
            self.send(&mut outgoing).await
        };
        let sent = tokio::time::timeout_at((began + limit).into(), work).await;
        let mut response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => error_response(&error),
            Err(_) => error_response(&Error::Timeout { what: "response", limit }),
        };
        if timed {
            let head = Instant::now();
            timing::add(response.headers_mut(), &[("queue", entered - began), ("app", head - entered)]);
        }
        if self.state.draining() && peer.protocol == Protocol::Http1 && done.is_some() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut sent = None;
        if let Some(done) = &mut done {
            done.status = response.status().as_u16();
            sent = done.log.as_ref().map(|(_, _, sent)| sent.clone());
        }
        // A call of gRPC is whole with its trailers only, and words in it would be taken for a message.
        limits.last_words = grpc::content_type(response.headers()).is_none().then_some(LAST_WORDS);
        response.map(|body| Guarded::new(Timed::new(body, limits).counted(sent), done))
    }
}

impl Handler for Proxy {
    type Body = Answer;

    async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Answer> {
        self.answer(request, peer).await
    }
}

fn failed(error: &Error) -> Response<Answer> {
    whole(error_response(error))
}

fn whole(response: Response<Body>) -> Response<Answer> {
    response.map(|body| Guarded::new(Timed::new(body, Limits::default()), None))
}

/// An answer of the sidecar's own.
fn plain(status: StatusCode, text: impl Into<Body>) -> Response<Answer> {
    whole(own_response(status, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_told_from_requests() {
        let kind = |name: &'static str, value: &'static str, plain, activator| {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]);
            kind_of(&headers, plain, activator)
        };
        for (plain, activator) in [(true, false), (false, true)] {
            assert_eq!(kind("k-network-probe", "queue", plain, activator), Kind::Probe);
            assert_eq!(kind("k-network-probe", "activator", plain, activator), Kind::WrongProbe);
        }
        assert_eq!(kind("user-agent", "kube-probe/1.35", true, false), Kind::Kubelet);
        assert_eq!(kind("user-agent", "curl/8", true, false), Kind::Request);
        for (name, value) in
            [("k-network-probe", "queue"), ("user-agent", "kube-probe/1.35"), ("k-kubelet-probe", "x")]
        {
            assert_eq!(kind(name, value, false, false), Kind::Request, "through a gateway");
        }
        assert_eq!(kind("user-agent", "kube-probe/1.35", false, true), Kind::Request);
    }

    /// A request's future lives as long as its response takes to start: thousands of them at a time.
    #[test]
    fn the_future_of_a_request_stays_small() {
        fn size<F>(_: impl FnOnce(Arc<Proxy>, Request<Incoming>, Arc<Peer>) -> F) -> usize {
            std::mem::size_of::<F>()
        }
        let size = size(Handler::handle);
        assert!(size < 6 << 10, "{size} bytes");
    }
}
