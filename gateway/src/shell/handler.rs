//! One request: where the table sends it, and getting it there.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ebb_http::forward::{Forwarded, error_response, host_of};
use ebb_http::telemetry::Red;
use ebb_http::{Body, Outgoing, Peer, Retry, Tunnels, Via, balance, headers, timing};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use metrics::Counter;
use tokio::time::Instant;

use super::Snapshot;
use crate::config::Config;
use crate::table::{Outcome, RequestParts, Rule, Side, Table, route};
use crate::upstream::Upstream;

/// How often a request may come back to this gateway under another host before that is called a loop.
const MAX_HOPS: usize = 4;
/// When all endpoints failed, how long until they are tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// How many hosts a 404 tells.
const HINTS: usize = 10;
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers the requests of one side. See [`ebb_http::Handler`].
#[derive(Debug)]
pub struct Handler {
    snapshot: Snapshot,
    side: Side,
    tunnels: Tunnels,
    endpoint_wait: Duration,
    access_log: bool,
    answered: Red,
    retried: Counter,
    waited: Counter,
}

/// What is left of a route once the table is let go.
struct Way {
    upstream: Arc<Upstream>,
    rewrite_host: Option<HeaderValue>,
    append: Vec<(HeaderName, HeaderValue)>,
}

impl Handler {
    /// A handler that serves `side` of whatever table is in `snapshot`.
    pub fn new(snapshot: Snapshot, side: Side, config: &Config) -> Arc<Self> {
        Arc::new(Self {
            snapshot,
            side,
            tunnels: Tunnels::default(),
            endpoint_wait: config.endpoint_wait,
            access_log: config.access_log,
            answered: Red::new("ebb_gateway", &[("side", side_name(side))]),
            retried: metrics::counter!("ebb_gateway_retries_total"),
            waited: metrics::counter!("ebb_gateway_requests_without_endpoint_total"),
        })
    }

    /// The upgraded connections.
    pub fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Body> {
        let started = Instant::now();
        if !self.access_log {
            let response = self.serve(request, &peer).await;
            self.answered.record(response.status(), started.elapsed());
            return response;
        }
        let line = format!("{} {} {}", request.method(), host_of(&request).unwrap_or("-"), request.uri());
        let response = self.serve(request, &peer).await;
        self.answered.record(response.status(), started.elapsed());
        tracing::info!(target: "access", remote = %peer.remote, status = response.status().as_u16(), took = ?started.elapsed(), "{line}");
        response
    }

    async fn serve(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let way = match self.way(&request, peer) {
            Ok(way) => way,
            Err(answer) => return *answer,
        };
        let timed = timing::wanted(request.headers()).then(Instant::now);
        let forwarded = match self.side {
            Side::External => Forwarded::Replace,
            Side::Local => Forwarded::Append,
        };
        let via = Via { client: peer.remote.ip(), secure: peer.secure, forwarded, tunnels: &self.tunnels };
        let mut outgoing = match Outgoing::new(request, &via) {
            Ok(outgoing) => outgoing,
            Err(error) => return error_response(&error),
        };
        self.prepare(&mut outgoing, &way);
        let mut response = self.forward(&mut outgoing, &way.upstream).await;
        if let Some(started) = timed {
            timing::add(response.headers_mut(), &[("gateway", started.elapsed())]);
        }
        response
    }

    /// Looks the request up, following names of this gateway itself; or answers it.
    fn way(&self, request: &Request<Incoming>, peer: &Peer) -> Result<Way, Box<Response<Body>>> {
        let table = self.snapshot.load();
        let asked = host_of(request).unwrap_or_default();
        let probe = request.headers().get(headers::K_NETWORK_PROBE);
        if probe.is_some_and(|probe| probe == headers::PROBE_INGRESS) {
            // About the Ingress of the host, whatever its paths.
            return Err(Box::new(match table.hash_of(self.side, asked) {
                Some(hash) => hash_answer(hash.clone()),
                None => text(StatusCode::NOT_FOUND, format!("no Ingress has the host {asked:?}\n")),
            }));
        }
        let mut host = asked;
        let mut side = self.side;
        let mut rewrite_host = None;
        let mut append = Vec::new();
        for _ in 0..MAX_HOPS {
            let parts = RequestParts { side, host, path: request.uri().path(), headers: request.headers() };
            let (rule, split) = match route(&table, &parts, balance::random() as u32) {
                Outcome::Forward(rule, split) => (rule, split),
                missing => return Err(Box::new(not_found(&table, self.side, host, &parts, &missing))),
            };
            if let Some(answer) = self.own_answer(request, peer, rule) {
                return Err(Box::new(answer));
            }
            append.extend(rule.append.iter().chain(&split.append).cloned());
            if rule.rewrite_host.is_some() {
                rewrite_host.clone_from(&rule.rewrite_host);
            }
            if !split.backend.is_gateway() {
                return Ok(Way { upstream: split.backend.clone(), rewrite_host, append });
            }
            host = rule.next_host().unwrap_or(host);
            side = Side::Local;
        }
        Err(Box::new(text(
            StatusCode::LOOP_DETECTED,
            format!(
                "host {asked} leads back to this gateway again and again; check rewriteHost and ExternalName\n"
            ),
        )))
    }

    /// Probes of the configuration, and the redirect to https.
    fn own_answer(
        &self,
        request: &Request<Incoming>,
        peer: &Peer,
        rule: &Rule<Arc<Upstream>>,
    ) -> Option<Response<Body>> {
        if request.headers().get(headers::K_NETWORK_PROBE).is_some_and(|probe| probe == "probe") {
            let Some(asked) = request.headers().get(headers::K_NETWORK_HASH) else {
                return Some(text(
                    StatusCode::BAD_REQUEST,
                    "a probe needs the header K-Network-Hash\n".to_owned(),
                ));
            };
            let hash = if asked == headers::HASH_OVERRIDE { rule.hash.clone() } else { asked.clone() };
            return Some(hash_answer(hash));
        }
        if rule.redirect && self.side == Side::External && !peer.secure {
            let host = host_of(request)?.split(':').next()?;
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let location = HeaderValue::from_str(&format!("https://{host}{path}")).ok()?;
            let mut response = text(StatusCode::MOVED_PERMANENTLY, String::new());
            response.headers_mut().insert(header::LOCATION, location);
            return Some(response);
        }
        None
    }

    fn prepare(&self, outgoing: &mut Outgoing, way: &Way) {
        let Some(to) = outgoing.headers_mut() else { return };
        if self.side == Side::External {
            // Words between components; nobody outside may speak them.
            for name in [
                headers::KNATIVE_SERVING_REVISION,
                headers::KNATIVE_SERVING_NAMESPACE,
                headers::K_PROXY_REQUEST,
                headers::K_ORIGINAL_HOST,
                headers::EBB_CONTROL,
            ] {
                to.remove(name);
            }
        }
        if !to.contains_key(X_REQUEST_ID) {
            let id = format!("{:016x}{:016x}", balance::random(), balance::random());
            if let Ok(id) = HeaderValue::from_str(&id) {
                to.insert(X_REQUEST_ID, id);
            }
        }
        to.remove(headers::K_NETWORK_HASH);
        for (name, value) in &way.append {
            to.insert(name.clone(), value.clone());
        }
        if let Some(host) = &way.rewrite_host {
            to.insert(header::HOST, host.clone());
        }
    }

    /// Sends the request to an endpoint; to another one when it certainly was not seen by the first. A request that
    /// finds no endpoint waits for one: lists are empty for a moment when modes change.
    async fn forward(&self, outgoing: &mut Outgoing, upstream: &Arc<Upstream>) -> Response<Body> {
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut started: Option<Instant> = None;
        loop {
            let Some(endpoint) = upstream.pick(&tried) else {
                let deadline = *started.get_or_insert_with(Instant::now) + self.endpoint_wait;
                if Instant::now() >= deadline {
                    let (service, waited) = (&upstream.key.service, self.endpoint_wait);
                    return text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        format!("Service {service} had no endpoint that could be reached for {waited:?}\n"),
                    );
                }
                self.waited.increment(1);
                // Subscribed before looking again, so that no change in between is missed.
                let mut seen = upstream.watch();
                if upstream.pick(&tried).is_none() {
                    let again =
                        if upstream.is_empty() { deadline } else { (Instant::now() + AGAIN).min(deadline) };
                    tokio::select! {
                        () = upstream.changed(&mut seen) => {}
                        () = tokio::time::sleep_until(again) => {}
                    }
                }
                tried.clear();
                continue;
            };
            match outgoing.send(endpoint.backend(outgoing.needs())).await {
                Ok(response) => return response,
                Err(error) => {
                    let socket = endpoint.address.socket;
                    if error.retry() != Retry::Safe || !outgoing.can_retry() {
                        tracing::warn!(service = %upstream.key.service, %socket, %error, "a request failed");
                        return error_response(&error);
                    }
                    tracing::debug!(service = %upstream.key.service, %socket, %error, "trying another endpoint");
                    self.retried.increment(1);
                    started.get_or_insert_with(Instant::now);
                    upstream.failed(&endpoint);
                    tried.push(socket);
                }
            }
        }
    }
}

impl ebb_http::Handler for Handler {
    type Body = Body;

    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Arc<Peer>,
    ) -> impl Future<Output = Response<Body>> + Send + 'static {
        self.answer(request, peer)
    }
}

fn side_name(side: Side) -> String {
    match side {
        Side::External => "external",
        Side::Local => "local",
    }
    .to_owned()
}

fn not_found(
    table: &Table<Arc<Upstream>>,
    side: Side,
    host: &str,
    parts: &RequestParts<'_>,
    outcome: &Outcome<'_, Arc<Upstream>>,
) -> Response<Body> {
    let mut body = match outcome {
        Outcome::OnlyLocal => {
            format!("host {host} is cluster-local: it is served to clients inside the cluster only\n")
        }
        Outcome::UnknownPath => format!("host {host} has no route for the path {}\n", parts.path),
        Outcome::NoBackend(rule) => {
            format!("the Ingress {} gives no backend a share of this path\n", rule.ingress)
        }
        _ => format!("no Route has the host {host:?}; check the URL with `kubectl get ksvc -A`\n"),
    };
    if side == Side::Local && matches!(outcome, Outcome::UnknownHost) {
        let known = table.some_hosts(side, HINTS);
        if !known.is_empty() {
            let _ = writeln!(body, "known hosts, among others: {}", known.join(", "));
        }
    }
    let status = if matches!(outcome, Outcome::NoBackend(_)) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::NOT_FOUND
    };
    text(status, body)
}

fn hash_answer(hash: HeaderValue) -> Response<Body> {
    let mut response = text(StatusCode::OK, String::new());
    response.headers_mut().insert(headers::K_NETWORK_HASH, hash);
    response
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
