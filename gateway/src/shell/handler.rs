//! One request: where the table sends it, and getting it there.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ebb_http::forward::{Forwarded, error_response, grpc, host_of, own_response};
use ebb_http::telemetry::Red;
use ebb_http::{Body, Outgoing, Peer, Retry, Tunnels, Via, balance, headers, timing};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use metrics::Counter;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::Snapshot;
use super::access_log::Answer;
use super::live::Live;
use super::meter::Meter;
use super::spans::Trace;
use crate::config::Config;
use crate::table::{Changes, Key, Outcome, Redirect, RequestParts, Rule, Side, Table, route};
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
    live: Arc<Live>,
    meter: Meter,
    answered: Red,
    retried: Counter,
    waited: Counter,
}

/// What is left of a route once the table is let go: the rules that were met, more than one where a backend was another name
/// of this gateway.
type Hops = SmallVec<[Hop; 1]>;

/// What a request met on its way.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// The Revision that was drawn.
    pub(super) revision: Option<Arc<Key>>,
    /// Whether it went through the activator.
    pub(super) activator: bool,
}

/// A rule and the split that was drawn.
struct Hop {
    rule: Arc<Rule<Arc<Upstream>>>,
    split: usize,
}

impl Hop {
    fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.rule.splits[self.split].backend.as_ref()
    }

    /// The changes of the rule, then those of the split.
    fn changes(&self) -> [&Changes; 2] {
        [&self.rule.changes, &self.rule.splits[self.split].changes]
    }
}

impl Handler {
    /// A handler that serves `side` of whatever table is in `snapshot`.
    pub fn new(snapshot: Snapshot, side: Side, config: &Config, live: Arc<Live>) -> Arc<Self> {
        Arc::new(Self {
            snapshot,
            side,
            tunnels: Tunnels::default(),
            endpoint_wait: config.endpoint_wait,
            live,
            meter: Meter::default(),
            answered: Red::new("ebb_gateway", &[("side", side_name(side))]),
            retried: metrics::counter!("ebb_gateway_retries_total"),
            waited: metrics::counter!("ebb_gateway_requests_without_endpoint_total"),
        })
    }

    /// The upgraded connections.
    pub fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, peer: Arc<Peer>) -> Response<Answer> {
        let started = Instant::now();
        let line = self.live.access_log.begin(&request, &peer);
        let mut met = Met::default();
        let call = grpc::content_type(request.headers()).cloned();
        let trace = self.live.traces().and_then(|traces| Trace::begin(traces, &request));
        let mut response = self.serve(request, &peer, &mut met, trace.as_ref()).await;
        let took = started.elapsed();
        self.answered.record(response.status(), took);
        if let Some(revision) = &met.revision {
            self.meter.record(revision, met.activator, response.status(), took);
        }
        if let Some(trace) = trace {
            trace.end(&mut response, &met);
        }
        // Last: to whoever counts, a failure is one.
        if let Some(call) = call {
            response = grpc::answer(call, response).await;
        }
        Answer::of(response, line, met.revision.as_ref())
    }

    async fn serve(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        met: &mut Met,
        trace: Option<&Trace>,
    ) -> Response<Body> {
        let hops = match self.hops(&request, peer) {
            Ok(hops) => hops,
            Err(answer) => return *answer,
        };
        met.revision = hops.last().and_then(|hop| hop.rule.splits[hop.split].revision.clone());
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
        self.prepare(&mut outgoing, &hops);
        if let (Some(trace), Some(to)) = (trace, outgoing.headers_mut()) {
            trace.pass_on(to);
        }
        let mut response = self.within(&mut outgoing, &hops, met).await;
        for change in hops.iter().rev().flat_map(Hop::changes) {
            change.response.apply(response.headers_mut());
        }
        if let Some(started) = timed {
            timing::add(response.headers_mut(), &[("gateway", started.elapsed())]);
        }
        response
    }

    /// Looks the request up, following names of this gateway itself; or answers it.
    fn hops(&self, request: &Request<Incoming>, peer: &Peer) -> Result<Hops, Box<Response<Body>>> {
        let table = self.snapshot.load();
        let asked = host_of(request).unwrap_or_default();
        let probe = request.headers().get(headers::K_NETWORK_PROBE);
        if probe.is_some_and(|probe| probe == headers::PROBE_INGRESS) {
            // About the Ingress of the host, whatever its paths.
            return Err(Box::new(match table.hash_of(self.side, asked) {
                Some(hash) => hash_answer(hash.clone()),
                None => own_response(StatusCode::NOT_FOUND, format!("no Ingress has the host {asked:?}\n")),
            }));
        }
        let uri = request.uri();
        let mut parts = RequestParts {
            side: self.side,
            host: asked,
            path: uri.path(),
            query: uri.query(),
            method: request.method(),
            headers: request.headers(),
            secure: peer.secure,
        };
        let mut hops = Hops::new();
        for _ in 0..MAX_HOPS {
            let outcome = route(&table, &parts, balance::random() as u32);
            if probe.is_some_and(|probe| probe == "probe")
                && let Outcome::Forward(rule, _) | Outcome::Redirect(rule, _) = &outcome
            {
                return Err(Box::new(probe_answer(request, rule)));
            }
            let (rule, split) = match outcome {
                Outcome::Forward(rule, split) => (rule, split),
                Outcome::Redirect(rule, redirect) => {
                    return Err(Box::new(redirected(
                        request,
                        peer.secure,
                        rule,
                        redirect,
                        self.live.tls_port(),
                    )));
                }
                missing => return Err(Box::new(not_found(&table, self.side, &parts, &missing))),
            };
            hops.push(Hop { rule: rule.clone(), split });
            if !rule.splits[split].backend.as_ref().is_some_and(|backend| backend.is_gateway()) {
                return Ok(hops);
            }
            parts.host = rule.next_host().unwrap_or(parts.host);
            parts.side = Side::Local;
        }
        Err(Box::new(own_response(
            StatusCode::LOOP_DETECTED,
            format!(
                "host {asked} leads back to this gateway again and again; check rewriteHost and ExternalName\n"
            ),
        )))
    }

    fn prepare(&self, outgoing: &mut Outgoing, hops: &Hops) {
        let Some(request) = outgoing.request_mut() else { return };
        let to = request.headers_mut();
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
        for hop in hops {
            for change in hop.changes() {
                change.request.apply(request.headers_mut());
                if let Some(host) = &change.host {
                    request.headers_mut().insert(header::HOST, host.clone());
                }
                if let Some(path) = &change.path
                    && let Some(target) = request
                        .uri()
                        .path_and_query()
                        .and_then(|from| path.target(from, hop.rule.matches.path.len()))
                {
                    *request.uri_mut() = target.into();
                }
            }
        }
    }

    /// Forwards within the times that the rules allow.
    async fn within(&self, outgoing: &mut Outgoing, hops: &Hops, met: &mut Met) -> Response<Body> {
        let Some((hop, upstream)) = hops.last().and_then(|hop| Some((hop, hop.upstream()?))) else {
            return own_response(StatusCode::INTERNAL_SERVER_ERROR, "the rule has no backend\n".to_owned());
        };
        let allowed = hops.iter().filter_map(|hop| hop.rule.timeout).min();
        let forward = self.forward(outgoing, upstream, hop.rule.backend_timeout, met);
        match allowed {
            None => forward.await,
            Some(allowed) => match tokio::time::timeout(allowed, forward).await {
                Ok(response) => response,
                Err(_) => late(&hop.rule, allowed),
            },
        }
    }

    /// Sends the request to an endpoint; to another one when it certainly was not seen by the first. A request that
    /// finds no endpoint waits for one: lists are empty for a moment when modes change.
    async fn forward(
        &self,
        outgoing: &mut Outgoing,
        upstream: &Arc<Upstream>,
        allowed: Option<Duration>,
        met: &mut Met,
    ) -> Response<Body> {
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut started: Option<Instant> = None;
        loop {
            let Some(endpoint) = upstream.pick(&tried) else {
                let deadline = *started.get_or_insert_with(Instant::now) + self.endpoint_wait;
                if Instant::now() >= deadline {
                    let (service, waited) = (&upstream.key.service, self.endpoint_wait);
                    return own_response(
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
            let backend = endpoint.backend(outgoing.needs());
            met.activator = endpoint.is_activator;
            let sent = match allowed {
                None => outgoing.send(backend).await,
                Some(allowed) => match tokio::time::timeout(allowed, outgoing.send(backend)).await {
                    Ok(sent) => sent,
                    Err(_) => {
                        return own_response(
                            StatusCode::GATEWAY_TIMEOUT,
                            format!("Service {} did not answer within {allowed:?}\n", upstream.key.service),
                        );
                    }
                },
            };
            match sent {
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
    type Body = Answer;

    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Arc<Peer>,
    ) -> impl Future<Output = Response<Answer>> + Send + 'static {
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
    parts: &RequestParts<'_>,
    outcome: &Outcome<'_, Arc<Upstream>>,
) -> Response<Body> {
    let host = parts.host;
    let (status, mut body) = match outcome {
        Outcome::OnlyLocal => (
            StatusCode::NOT_FOUND,
            format!("host {host} is cluster-local: it is served to clients inside the cluster only\n"),
        ),
        Outcome::UnknownPath => {
            (StatusCode::NOT_FOUND, format!("host {host} has no route for the path {}\n", parts.path))
        }
        Outcome::NoBackend(rule) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the {} gives no backend a share of this path\n", rule.owner),
        ),
        Outcome::BadBackend(rule) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("a backend of the {} cannot be used; its status says why\n", rule.owner),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            format!("no Route has the host {host:?}; check the URL with `kubectl get ksvc -A`\n"),
        ),
    };
    if side == Side::Local && matches!(outcome, Outcome::UnknownHost) {
        let known = table.some_hosts(side, HINTS);
        if !known.is_empty() {
            let _ = writeln!(body, "known hosts, among others: {}", known.join(", "));
        }
    }
    own_response(status, body)
}

fn late(rule: &Rule<Arc<Upstream>>, allowed: Duration) -> Response<Body> {
    own_response(
        StatusCode::GATEWAY_TIMEOUT,
        format!("no answer within {allowed:?}, which is all that the {} allows\n", rule.owner),
    )
}

fn redirected(
    request: &Request<Incoming>,
    secure: bool,
    rule: &Rule<Arc<Upstream>>,
    redirect: &Redirect,
    https: Option<u16>,
) -> Response<Body> {
    let root = PathAndQuery::from_static("/");
    let target = request.uri().path_and_query().unwrap_or(&root);
    let host = host_of(request).unwrap_or_default();
    let location = redirect.location(secure, host, target, rule.matches.path.len(), https);
    let Ok(location) = HeaderValue::from_str(&location) else {
        return own_response(
            StatusCode::BAD_REQUEST,
            "the request's target cannot be redirected\n".to_owned(),
        );
    };
    let mut response = own_response(redirect.status, String::new());
    response.headers_mut().insert(header::LOCATION, location);
    rule.changes.response.apply(response.headers_mut());
    response
}

/// The answer to a probe of the configuration.
fn probe_answer(request: &Request<Incoming>, rule: &Rule<Arc<Upstream>>) -> Response<Body> {
    let Some(asked) = request.headers().get(headers::K_NETWORK_HASH) else {
        return own_response(StatusCode::BAD_REQUEST, "a probe needs the header K-Network-Hash\n".to_owned());
    };
    hash_answer(if asked == headers::HASH_OVERRIDE { rule.hash.clone() } else { asked.clone() })
}

fn hash_answer(hash: HeaderValue) -> Response<Body> {
    let mut response = own_response(StatusCode::OK, String::new());
    response.headers_mut().insert(headers::K_NETWORK_HASH, hash);
    response
}
