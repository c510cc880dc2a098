//! One request: whose it is, where it waits, where it goes.

use std::net::SocketAddr;
use std::sync::Arc;

use ebb_http::forward::{Forwarded, error_response, host_of, own_response};
use ebb_http::telemetry::{Bounded, Red};
use ebb_http::wire::{ANNOUNCE_AUTHORITY, ANNOUNCE_PATH, Announcement, now_us};
use ebb_http::{
    Body, Error as HttpError, Guarded, Outgoing, Peer, Retry, Source, Tunnels, Via, headers, timing,
};
use ebb_mesh::{Mode, PeerPolicy, Policy, SpiffeId};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use metrics::{Counter, Gauge, Histogram};
use tokio::time::Instant;

use super::registry::Registry;
use crate::budget::Budget;
use crate::config::Config;
use crate::revision::{Counted, Key, Place, Refused, Revision};

mod breakdown;

use breakdown::Breakdown;

/// How many places a request may try when pods turn it away before it was seen.
const ATTEMPTS: u32 = 20;
/// An announcement is some hundred bytes.
const MAX_ANNOUNCEMENT: usize = 16 << 10;

/// Answers requests. See [`ebb_http::Handler`].
#[derive(Debug)]
pub struct Handler {
    registry: Arc<Registry>,
    policy: Policy,
    tunnels: Tunnels,
    cluster_suffix: String,
    /// What it passes on are requests, whatever clients outside put into their headers.
    gateway: Option<Arc<str>>,
    budget: Budget,
    meters: Meters,
}

/// What is counted of requests. Durations do not tell revisions apart: their sidecars do that.
#[derive(Debug)]
struct Meters {
    answered: Red,
    /// By revision, class of code, and whether it had to start.
    by_revision: Bounded<(Key, u16, bool), Counter>,
    waiting: Gauge,
    wait: Histogram,
    cold: Histogram,
}

impl Meters {
    fn new() -> Self {
        Self {
            answered: Red::new("ebb_activator", &[]),
            by_revision: Bounded::new(SERIES, requests_of("other", "other", "other", "other")),
            waiting: metrics::gauge!("ebb_activator_requests_waiting"),
            wait: metrics::histogram!("ebb_activator_wait_seconds"),
            cold: metrics::histogram!("ebb_activator_cold_start_seconds"),
        }
    }
}

/// Series of requests by revision; what comes beyond is counted together.
const SERIES: usize = 2000;

fn requests_of(namespace: &str, name: &str, class: &str, start: &'static str) -> Counter {
    metrics::counter!(
        "ebb_activator_revision_requests_total",
        "namespace_name" => namespace.to_owned(),
        "revision_name" => name.to_owned(),
        "response_code_class" => class.to_owned(),
        "start" => start,
    )
}

impl Meters {
    fn count(&self, key: &Key, status: StatusCode, cold: bool) {
        let class = status.as_u16() / 100;
        let start = if cold { "cold" } else { "warm" };
        let make = || requests_of(&key.namespace, &key.name, &format!("{class}xx"), start);
        self.by_revision.get(&(key.clone(), class, cold), make).increment(1);
    }
}

/// One request in the gauge of those that wait.
struct Waiting<'a>(&'a Gauge);

impl<'a> Waiting<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

/// What lives as long as a response: the place at the pod and the count in the load.
pub(super) type Held = Option<(Counted, Place)>;

impl Handler {
    /// A handler over these revisions.
    pub fn new(registry: Arc<Registry>, config: &Config) -> Arc<Self> {
        let mode = if config.plain_ports.is_empty() { Mode::Strict } else { Mode::Permissive };
        let gateway = PeerPolicy::component(registry.trust_domain(), &config.namespace, "gateway").ok();
        Arc::new(Self {
            registry,
            gateway: gateway.map(|gateway| gateway.to_shared()),
            policy: Policy { mode, allow: Vec::new() },
            tunnels: Tunnels::default(),
            budget: Budget::new(config.queue_bytes),
            cluster_suffix: format!(".svc.{}", config.cluster_domain),
            meters: Meters::new(),
        })
    }

    /// The upgraded connections.
    pub fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Arc<Peer>,
    ) -> Response<Guarded<Body, Held>> {
        if let Err(refusal) = self.policy.check(peer.secure, peer.identity.as_deref()) {
            tracing::warn!(remote = %peer.remote, %refusal, "a request was refused");
            return own(StatusCode::FORBIDDEN, format!("{refusal}\n"));
        }
        if Self::is_control(&request) {
            return self.announce(request, &peer).await;
        }
        let passed_on = peer.identity.is_some() && peer.identity == self.gateway;
        if !passed_on && let Some(answer) = probe(request.headers()) {
            return answer;
        }
        let Some(key) = self.key_of(&request) else {
            return own(
                StatusCode::NOT_FOUND,
                "the request names no revision: the gateway sets Knative-Serving-Revision and -Namespace\n"
                    .to_owned(),
            );
        };
        let Some(revision) = self.registry.get(&key) else {
            return own(StatusCode::NOT_FOUND, format!("there is no revision {key}\n"));
        };
        let started = Instant::now();
        let mut cold = false;
        let response = self.forward(revision, request, &peer, &mut cold).await;
        self.meters.answered.record(response.status(), started.elapsed());
        self.meters.count(&key, response.status(), cold);
        response
    }

    async fn forward(
        &self,
        revision: Arc<Revision>,
        request: Request<Incoming>,
        peer: &Peer,
        cold: &mut bool,
    ) -> Response<Guarded<Body, Held>> {
        let arrived = Instant::now();
        let mut breakdown = timing::wanted(request.headers()).then(|| Breakdown::new(now_us()));
        let (counted, report) = revision.count();
        if let Some(report) = report {
            self.registry.load(&revision, report);
        }
        let via = Via {
            client: peer.remote.ip(),
            secure: peer.secure,
            forwarded: Forwarded::Keep,
            tunnels: &self.tunnels,
        };
        let mut outgoing = match Outgoing::new(request, &via) {
            Ok(outgoing) => outgoing,
            Err(error) => return held(error_response(&error), None),
        };
        if let Some(headers) = outgoing.headers_mut() {
            headers.remove(headers::KNATIVE_SERVING_REVISION);
            headers.remove(headers::KNATIVE_SERVING_NAMESPACE);
            // To a sidecar it would be the activator's own.
            headers.remove(headers::K_NETWORK_PROBE);
            headers.insert(headers::K_PROXY_REQUEST, HeaderValue::from_static(headers::PROXIED_BY_ACTIVATOR));
        }
        let mut counted = Some(counted);
        let deadline = arrived + revision.settings().timeout;
        for _ in 0..ATTEMPTS {
            let place = match revision.take() {
                Some(place) => place,
                None => {
                    *cold |= !revision.has_pods();
                    match self.wait(&revision, deadline, outgoing.held_bytes(), *cold).await {
                        Ok(place) => place,
                        Err(why) => return refused(why),
                    }
                }
            };
            let address = place.address();
            // A pod that left between the grant and now.
            let Some(backend) = revision.backend(address, outgoing.needs()) else { continue };
            if let Some(breakdown) = &mut breakdown {
                breakdown.placed(now_us());
            }
            // An upgraded connection holds its place until it closes; until then (or else) the response does.
            let mut held_place = counted.take().map(|counted| (counted, place));
            let upgrading = outgoing.is_upgrade();
            let shared = upgrading.then(|| Arc::new(held_place.take()));
            if let Some(shared) = &shared {
                outgoing.hold(shared.clone());
            }
            match outgoing.send(&backend).await {
                Ok(mut response) => {
                    revision.answered(address, response.status().is_server_error());
                    if let Some(breakdown) = breakdown {
                        let (poked, announced) = revision.story(address);
                        breakdown.finish(
                            response.headers_mut(),
                            poked.as_ref(),
                            announced.as_ref(),
                            now_us(),
                        );
                    }
                    return held(response, held_place);
                }
                Err(error) => {
                    if error.source_side() == Source::Upstream {
                        revision.answered(address, true);
                    }
                    let connecting =
                        matches!(error, HttpError::Connect { .. } | HttpError::ConnectTimeout { .. });
                    if connecting {
                        tracing::debug!(revision = %revision.key, %address, %error, "a pod cannot be reached");
                        revision.failed(address);
                        self.registry.probe(&revision);
                    }
                    if error.retry() != Retry::Safe || !outgoing.can_retry() {
                        tracing::warn!(revision = %revision.key, %address, %error, "a request failed");
                        return held(error_response(&error), None);
                    }
                    outgoing.hold(());
                    let back = match shared {
                        Some(shared) => Arc::try_unwrap(shared).ok().flatten(),
                        None => held_place,
                    };
                    counted = back.map(|(counted, _)| counted).or_else(|| Some(revision.count().0));
                    if Instant::now() >= deadline {
                        return refused(Refused::Timeout);
                    }
                }
            }
        }
        own(
            StatusCode::BAD_GATEWAY,
            format!("no pod of {} took the request in {ATTEMPTS} attempts\n", revision.key),
        )
    }

    async fn wait(
        &self,
        revision: &Arc<Revision>,
        deadline: Instant,
        bytes: u64,
        cold: bool,
    ) -> Result<Place, Refused> {
        let began = Instant::now();
        let place = match self.budget.take(&revision.share, bytes) {
            Some(_reserved) => {
                let _waiting = Waiting::new(&self.meters.waiting);
                revision.wait(deadline, || self.registry.probe(revision)).await
            }
            None => Err(Refused::Crowded),
        };
        match &place {
            Ok(_) if cold => self.meters.cold.record(began.elapsed().as_secs_f64()),
            Ok(_) => self.meters.wait.record(began.elapsed().as_secs_f64()),
            Err(refused) => {
                let reason = reason_of(*refused);
                metrics::counter!("ebb_activator_requests_refused_total", "reason" => reason).increment(1);
            }
        }
        place
    }

    fn is_control(request: &Request<Incoming>) -> bool {
        request.headers().get(headers::EBB_CONTROL).is_some_and(|value| value == headers::CONTROL_ANNOUNCE)
            && host_of(request).is_some_and(|host| host.split(':').next() == Some(ANNOUNCE_AUTHORITY))
    }

    /// A queue-proxy says that its pod takes requests.
    async fn announce(&self, request: Request<Incoming>, peer: &Peer) -> Response<Guarded<Body, Held>> {
        if request.method() != Method::POST || request.uri().path() != ANNOUNCE_PATH {
            return own(StatusCode::NOT_FOUND, format!("announcements go to POST {ANNOUNCE_PATH}\n"));
        }
        let body = match Limited::new(request.into_body(), MAX_ANNOUNCEMENT).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return own(StatusCode::BAD_REQUEST, format!("it cannot be read: {error}\n")),
        };
        let announcement: Announcement = match serde_json::from_slice(&body) {
            Ok(announcement) => announcement,
            Err(error) => {
                return own(StatusCode::BAD_REQUEST, format!("it is not an Announcement: {error}\n"));
            }
        };
        match vouched(&announcement, peer) {
            Ok(address) => {
                let key = Key::new(announcement.namespace.as_str(), announcement.revision.as_str());
                let Some(revision) = self.registry.get(&key) else {
                    return own(StatusCode::NOT_FOUND, format!("there is no revision {key}\n"));
                };
                tracing::debug!(revision = %key, %address, pod = announcement.pod, "a pod announced itself");
                revision.announced(address, announcement);
                metrics::counter!("ebb_activator_announcements_total", "outcome" => "taken").increment(1);
                own(StatusCode::OK, "welcome\n".to_owned())
            }
            Err(why) => {
                tracing::warn!(remote = %peer.remote, why, "an announcement was refused");
                metrics::counter!("ebb_activator_announcements_total", "outcome" => "refused").increment(1);
                own(StatusCode::FORBIDDEN, format!("{why}\n"))
            }
        }
    }

    fn key_of(&self, request: &Request<Incoming>) -> Option<Key> {
        let named = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        match (named(headers::KNATIVE_SERVING_NAMESPACE), named(headers::KNATIVE_SERVING_REVISION)) {
            (Some(namespace), Some(name)) if !namespace.is_empty() && !name.is_empty() => {
                Some(Key::new(namespace, name))
            }
            _ => {
                let host = host_of(request)?.split(':').next()?;
                let short = host.strip_suffix(&self.cluster_suffix)?;
                let (name, namespace) = short.split_once('.')?;
                Some(Key::new(namespace, name))
            }
        }
    }
}

impl ebb_http::Handler for Handler {
    type Body = Guarded<Body, Held>;

    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Arc<Peer>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + 'static {
        self.answer(request, peer)
    }
}

/// The address of an announced pod, if the sender may speak for it: it is of the revision's namespace, and it speaks
/// from that very address.
fn vouched(announcement: &Announcement, peer: &Peer) -> Result<SocketAddr, String> {
    let id: SpiffeId = peer
        .identity
        .as_deref()
        .and_then(|id| id.parse().ok())
        .ok_or("an announcement needs a mesh identity")?;
    if id.namespace() != announcement.namespace {
        return Err(format!("{id} cannot speak for the namespace {}", announcement.namespace));
    }
    let ip =
        announcement.address.parse().map_err(|_| format!("{:?} is not an address", announcement.address))?;
    if peer.remote.ip().to_canonical() != ip {
        return Err(format!("{} cannot speak for the address {ip}", peer.remote.ip()));
    }
    Ok(SocketAddr::new(ip, announcement.port))
}

/// Answers what asks for the activator itself.
fn probe(headers: &HeaderMap) -> Option<Response<Guarded<Body, Held>>> {
    let value = headers.get(headers::K_NETWORK_PROBE)?;
    if value == headers::PROBE_ACTIVATOR {
        return Some(own(StatusCode::OK, headers::PROBE_ACTIVATOR.to_owned()));
    }
    // The probe of the path as a whole gets back the hash that the gateway put in.
    if value == "probe" {
        let Some(hash) = headers.get(headers::K_NETWORK_HASH) else {
            return Some(own(
                StatusCode::BAD_REQUEST,
                "a probe needs the header K-Network-Hash\n".to_owned(),
            ));
        };
        let mut response = own(StatusCode::OK, String::new());
        response.headers_mut().insert(headers::K_NETWORK_HASH, hash.clone());
        return Some(response);
    }
    Some(own(
        StatusCode::BAD_REQUEST,
        "the activator does not answer this value of K-Network-Probe\n".to_owned(),
    ))
}

fn reason_of(refused: Refused) -> &'static str {
    match refused {
        Refused::Full => "full",
        Refused::Crowded => "crowded",
        Refused::Timeout => "timeout",
        Refused::Gone => "gone",
    }
}

fn status_of(refused: Refused) -> StatusCode {
    match refused {
        Refused::Full | Refused::Crowded => StatusCode::SERVICE_UNAVAILABLE,
        Refused::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Refused::Gone => StatusCode::NOT_FOUND,
    }
}

/// The answer to a request that gets no place. What is full may have room in a second.
fn refused(why: Refused) -> Response<Guarded<Body, Held>> {
    let mut response = own(status_of(why), format!("{why}\n"));
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn own(status: StatusCode, text: String) -> Response<Guarded<Body, Held>> {
    held(own_response(status, text), None)
}

fn held(response: Response<Body>, held: Held) -> Response<Guarded<Body, Held>> {
    response.map(|body| Guarded::new(body, held))
}
