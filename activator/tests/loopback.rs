//! The activator between real sockets: a fake autoscaler behind the trait, fake pods with mutual TLS.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use ebb_activator::dests::Listed;
use ebb_activator::revision::{Key, Revision, Settings};
use ebb_activator::{Config, Handler, Registry, ReportError, Reporter};
use ebb_http::wire::{ANNOUNCE_PATH, Announcement, PokeResponse, StatBatch, now_us};
use ebb_http::{
    Backend, Body, Outgoing, Peer, PlainAcceptor, PlainConnector, Pool, PoolConfig, Protocol, RequestBody,
    ServerConfig, Target, handler_fn, headers, serve,
};
use ebb_mesh::ca::{Authority, MaterialPem};
use ebb_mesh::{Identity, MeshAcceptor};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

const TRUST_DOMAIN: &str = "cluster.local";
const WITHIN: Duration = Duration::from_secs(20);

/// Keeps every report and calls `wake` on those with load.
struct Autoscaler {
    reports: Mutex<Vec<StatBatch>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Reporter for Autoscaler {
    fn report(
        &self,
        batch: StatBatch,
    ) -> Pin<Box<dyn Future<Output = Result<PokeResponse, ReportError>> + Send + '_>> {
        let load = batch.stats.iter().any(|stat| stat.average_concurrent_requests > 0.0);
        self.reports.lock().push(batch);
        if load {
            (self.wake)();
        }
        Box::pin(async {
            Ok(PokeResponse { decided_at_us: now_us(), desired: Some(1), reason: String::new() })
        })
    }
}

struct Stage {
    authority: Arc<Authority>,
    registry: Arc<Registry>,
    revision: Arc<Revision>,
    autoscaler: Arc<Autoscaler>,
    activator: SocketAddr,
    gateway: Pool,
    stop: CancellationToken,
    _stop: DropGuard,
}

async fn identity(authority: &Arc<Authority>, namespace: &str, account: &str) -> Identity {
    let id = format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}").parse().expect("an id");
    Identity::from_authority(authority.clone(), id).await.expect("an identity")
}

async fn stage(settings: Settings, wake: impl Fn() + Send + Sync + 'static) -> Stage {
    let root = MaterialPem::generate_root(TRUST_DOMAIN, SystemTime::now()).expect("a root");
    let authority =
        Arc::new(Authority::new(TRUST_DOMAIN, Duration::from_secs(3600), &root).expect("an authority"));
    let own = identity(&authority, "ebb-system", "activator").await;
    let autoscaler = Arc::new(Autoscaler { reports: Mutex::default(), wake: Box::new(wake) });
    let pool = Pool::new(own.clone(), PoolConfig::default());
    let registry = Registry::new(pool, TRUST_DOMAIN, "activator-0", autoscaler.clone());
    let revision = registry.set(&Key::new("default", "hello-00001"), settings);
    let stop = CancellationToken::new();
    tokio::spawn(registry.clone().run_reports(stop.clone()));
    let handler = Handler::new(registry.clone(), &Config::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let activator = listener.local_addr().expect("bound");
    tokio::spawn(serve(listener, MeshAcceptor(own), handler, ServerConfig::default(), stop.clone()));
    let gateway = Pool::new(identity(&authority, "ebb-system", "gateway").await, PoolConfig::default());
    let _stop = stop.clone().drop_guard();
    Stage { authority, registry, revision, autoscaler, activator, gateway, stop, _stop }
}

/// What a fake pod saw.
#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    probes: AtomicUsize,
    last: Mutex<HeaderMap>,
    version: Mutex<Option<http::Version>>,
}

impl Stage {
    /// A pod that answers probes, and requests after `work`.
    async fn pod(&self, work: Duration) -> (SocketAddr, Arc<Seen>) {
        self.pod_at("127.0.0.1:0".parse().expect("an address"), work).await
    }

    async fn pod_at(&self, address: SocketAddr, work: Duration) -> (SocketAddr, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        let state = seen.clone();
        let handler = handler_fn(move |request: Request<Incoming>, _: Arc<Peer>| {
            let seen = state.clone();
            async move {
                if request.headers().get(headers::K_NETWORK_PROBE).is_some() {
                    seen.probes.fetch_add(1, Ordering::SeqCst);
                    return Response::new(Body::from(headers::PROBE_QUEUE));
                }
                seen.requests.fetch_add(1, Ordering::SeqCst);
                let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
                seen.most.fetch_max(now, Ordering::SeqCst);
                *seen.last.lock() = request.headers().clone();
                *seen.version.lock() = Some(request.version());
                tokio::time::sleep(work).await;
                seen.now.fetch_sub(1, Ordering::SeqCst);
                Response::new(Body::from("hello"))
            }
        });
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let own = identity(&self.authority, "default", "default").await;
        tokio::spawn(serve(listener, MeshAcceptor(own), handler, ServerConfig::default(), self.stop.clone()));
        (address, seen)
    }

    fn list(&self, pods: &[(SocketAddr, bool)]) {
        let slices: BTreeMap<_, _> = pods
            .iter()
            .map(|(address, ready)| (*address, Listed { ready: *ready, terminating: false }))
            .collect();
        self.revision.listed(&slices);
        self.registry.probe(&self.revision);
    }

    fn backend(&self) -> Arc<Backend> {
        let peer = format!("spiffe://{TRUST_DOMAIN}/ns/ebb-system/sa/activator");
        self.gateway.backend(&Target::tls(self.activator, Protocol::Http2, peer))
    }

    /// A request as the gateway sends it.
    async fn ask(&self) -> (StatusCode, HeaderMap, String) {
        ask(self.backend(), "hello-00001").await
    }

    async fn announce(&self, namespace: &str, pod: SocketAddr) -> StatusCode {
        let announcement = Announcement {
            namespace: "default".to_owned(),
            revision: "hello-00001".to_owned(),
            pod: "hello-00001-abc".to_owned(),
            address: pod.ip().to_string(),
            port: pod.port(),
            started_at_us: now_us(),
            certified_at_us: now_us(),
            listening_at_us: now_us(),
        };
        let sidecar = Pool::new(identity(&self.authority, namespace, "default").await, PoolConfig::default());
        let peer = format!("spiffe://{TRUST_DOMAIN}/ns/ebb-system/sa/activator");
        let backend = sidecar.backend(&Target::tls(self.activator, Protocol::Http1, peer));
        let body = serde_json::to_vec(&announcement).expect("json");
        let request = Request::post(ANNOUNCE_PATH)
            .header("host", "activator.ebb-system")
            .header(headers::EBB_CONTROL, headers::CONTROL_ANNOUNCE)
            .body(RequestBody::full(body))
            .expect("a request");
        Outgoing::own(request).expect("has a host").send(&backend).await.expect("an answer").status()
    }
}

async fn ask(backend: Arc<Backend>, revision: &str) -> (StatusCode, HeaderMap, String) {
    let request = Request::get("/x")
        .header("host", "hello.default.example.com")
        .header(headers::KNATIVE_SERVING_NAMESPACE, "default")
        .header(headers::KNATIVE_SERVING_REVISION, revision)
        .header(headers::TIMING_REQUEST, "1")
        .body(RequestBody::empty())
        .expect("a request");
    let mut outgoing = Outgoing::own(request).expect("has a host");
    let response =
        tokio::time::timeout(WITHIN, outgoing.send(&backend)).await.expect("in time").expect("an answer");
    let (parts, body) = response.into_parts();
    let text = body.collect().await.expect("a body").to_bytes();
    (parts.status, parts.headers, String::from_utf8_lossy(&text).into_owned())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + WITHIN;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_request_is_held_until_the_pod_announces_itself() {
    let (woken, mut wakes) = tokio::sync::mpsc::unbounded_channel();
    let stage = Arc::new(
        stage(Settings::default(), move || {
            let _ = woken.send(());
        })
        .await,
    );
    let waker = stage.clone();
    let pod = tokio::spawn(async move {
        wakes.recv().await.expect("the autoscaler is told");
        let (address, seen) = waker.pod(Duration::ZERO).await;
        assert_eq!(waker.announce("default", address).await, StatusCode::OK);
        seen
    });
    let (status, headers, body) = stage.ask().await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "hello"));
    let timing = headers[headers::SERVER_TIMING].to_str().expect("text");
    for name in ["queued", "decided", "pod", "listening", "announced", "proxied"] {
        assert!(timing.contains(&format!("{name};dur=")), "{timing}");
    }
    let seen = pod.await.expect("the pod came up");
    let last = seen.last.lock().clone();
    assert_eq!(last[headers::K_PROXY_REQUEST], "activator");
    assert!(!last.contains_key(headers::KNATIVE_SERVING_REVISION));
    let reports = stage.autoscaler.reports.lock();
    assert_eq!(reports[0].stats[0].revision, "hello-00001");
    assert_eq!(reports[0].stats[0].average_concurrent_requests, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_a_cold_revision_loses_nothing_and_keeps_the_limit() {
    let stage = Arc::new(stage(Settings { limit: 10, ..Settings::default() }, || {}).await);
    let asking: Vec<_> = (0..500)
        .map(|_| {
            let backend = stage.backend();
            tokio::spawn(ask(backend, "hello-00001"))
        })
        .collect();
    until("all wait", || stage.revision.waiting() == 500).await;
    assert!(stage.revision.early_reports() <= 12, "{}", stage.revision.early_reports());
    let (first, saw_first) = stage.pod(Duration::from_millis(5)).await;
    let (second, saw_second) = stage.pod(Duration::from_millis(5)).await;
    stage.list(&[(first, true), (second, true)]);
    for asked in asking {
        assert_eq!(asked.await.expect("no panic").0, StatusCode::OK);
    }
    for seen in [&saw_first, &saw_second] {
        assert!(seen.most.load(Ordering::SeqCst) <= 10, "{}", seen.most.load(Ordering::SeqCst));
        assert!(seen.requests.load(Ordering::SeqCst) > 100);
    }
    assert_eq!(saw_first.requests.load(Ordering::SeqCst) + saw_second.requests.load(Ordering::SeqCst), 500);
    until("the places are free", || stage.revision.waiting() == 0).await;
    let told: f64 = {
        let reports = stage.autoscaler.reports.lock();
        reports.iter().flat_map(|batch| &batch.stats).map(|stat| stat.average_concurrent_requests).sum()
    };
    assert!(told >= 250.0, "the storm was told: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_not_ready_yet_is_probed_and_used() {
    let stage = stage(Settings::default(), || {}).await;
    let (address, seen) = stage.pod(Duration::ZERO).await;
    stage.list(&[(address, false)]);
    assert_eq!(seen.probes.load(Ordering::SeqCst), 0, "nobody waits, nobody probes");
    assert_eq!(stage.ask().await.0, StatusCode::OK);
    assert!(seen.probes.load(Ordering::SeqCst) >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_refuses_connections_costs_no_request() {
    let stage = stage(Settings::default(), || {}).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let (alive, seen) = stage.pod(Duration::ZERO).await;
    stage.list(&[(dead, true), (alive, true)]);
    for _ in 0..50 {
        assert_eq!(stage.ask().await.0, StatusCode::OK);
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_refused_a_connection_is_used_again_though_nobody_waits_for_it() {
    let stage = stage(Settings::default(), || {}).await;
    let away = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let (alive, _) = stage.pod(Duration::ZERO).await;
    stage.list(&[(away, true), (alive, true)]);
    for _ in 0..50 {
        assert_eq!(stage.ask().await.0, StatusCode::OK);
    }
    let (_, back) = stage.pod_at(away, Duration::ZERO).await;
    tokio::time::timeout(WITHIN, async {
        while back.requests.load(Ordering::SeqCst) == 0 {
            assert_eq!(stage.ask().await.0, StatusCode::OK);
        }
    })
    .await
    .expect("it is used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_frees_its_place() {
    let stage = stage(Settings::default(), || {}).await;
    let asked = tokio::spawn(ask(stage.backend(), "hello-00001"));
    until("it waits", || stage.revision.waiting() == 1).await;
    asked.abort();
    until("it left", || stage.revision.waiting() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_and_who_asks_for_nothing() {
    let brief = Settings { timeout: Duration::from_millis(50), ..Settings::default() };
    let stage = stage(brief, || {}).await;
    assert_eq!(stage.ask().await.0, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(ask(stage.backend(), "unknown").await.0, StatusCode::NOT_FOUND);
    stage.revision.configure(Settings::default());
    let asked = tokio::spawn(ask(stage.backend(), "hello-00001"));
    until("it waits", || stage.revision.waiting() == 1).await;
    stage.registry.remove(&stage.revision.key);
    assert_eq!(asked.await.expect("no panic").0, StatusCode::NOT_FOUND, "deleted while it waited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_another_namespace_and_plaintext_is_refused() {
    let stage = stage(Settings::default(), || {}).await;
    let (address, _) = stage.pod(Duration::ZERO).await;
    assert_eq!(stage.announce("other", address).await, StatusCode::FORBIDDEN);
    let elsewhere = SocketAddr::from(([10, 1, 2, 3], 8112));
    assert_eq!(stage.announce("default", elsewhere).await, StatusCode::FORBIDDEN);
    assert_eq!(stage.announce("default", address).await, StatusCode::OK);

    let handler = Handler::new(stage.registry.clone(), &Config::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let plain = listener.local_addr().expect("bound");
    tokio::spawn(serve(listener, PlainAcceptor, handler, ServerConfig::default(), stage.stop.clone()));
    let pool = Pool::new(PlainConnector, PoolConfig::default());
    let backend = pool.backend(&Target::plain(plain, Protocol::Http1));
    assert_eq!(ask(backend, "hello-00001").await.0, StatusCode::FORBIDDEN);
}

/// A second door to the same registry, in plaintext, with a life of its own.
async fn plain_door(
    stage: &Stage,
    config: Config,
) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let config = Config { plain_ports: vec![1], ..config };
    let handler = Handler::new(stage.registry.clone(), &config);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let ended = tokio::spawn(serve(listener, PlainAcceptor, handler, ServerConfig::default(), stop.clone()));
    (at, stop, ended)
}

fn plain_backend(at: SocketAddr, protocol: Protocol) -> Arc<Backend> {
    Pool::new(PlainConnector, PoolConfig::default()).backend(&Target::plain(at, protocol))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_on_one_revision_is_bounded_in_bytes_and_refuses_no_other() {
    let stage = stage(Settings::default(), || {}).await;
    let (at, _stop, _) = plain_door(&stage, Config { queue_bytes: 64 << 10, ..Config::default() }).await;
    let other = stage.registry.set(&Key::new("default", "other-00001"), Settings::default());
    let flood: Vec<_> =
        (0..30).map(|_| tokio::spawn(ask(plain_backend(at, Protocol::Http1), "hello-00001"))).collect();
    until("all are waiting or refused", || {
        stage.revision.waiting() + flood.iter().filter(|one| one.is_finished()).count() == 30
    })
    .await;
    let held = stage.revision.waiting();
    // Each is a little more than 4 KiB, and one revision gets half.
    assert!((4..=8).contains(&held), "{held}");
    let first = tokio::spawn(ask(plain_backend(at, Protocol::Http1), "other-00001"));
    until("the other revision's waits", || other.waiting() == 1).await;
    let (pod, _) = stage.pod(Duration::ZERO).await;
    stage.list(&[(pod, true)]);
    other.listed(&BTreeMap::from([(pod, Listed { ready: true, terminating: false })]));
    let mut served = 0;
    for one in flood {
        let (status, headers, body) = one.await.expect("no panic");
        match status {
            StatusCode::OK => served += 1,
            status => {
                assert_eq!(
                    (status, &headers["retry-after"]),
                    (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().expect("a value"))
                );
                assert!(body.contains("EBB_QUEUE_BYTES"), "{body}");
            }
        }
    }
    assert_eq!(served, held);
    assert_eq!(first.await.expect("no panic").0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_serves_all_who_wait() {
    let stage = stage(Settings::default(), || {}).await;
    let (at, stop, ended) = plain_door(&stage, Config::default()).await;
    let mut waiting = Vec::new();
    for n in 0..200 {
        let protocol = if n % 2 == 0 { Protocol::Http1 } else { Protocol::Http2 };
        waiting.push(tokio::spawn(ask(plain_backend(at, protocol), "hello-00001")));
    }
    until("all wait", || stage.revision.waiting() == 200).await;
    stop.cancel();
    until("the door is closed", || std::net::TcpStream::connect(at).is_err()).await;
    assert!(!ended.is_finished());
    let (pod, seen) = stage.pod(Duration::from_millis(20)).await;
    stage.list(&[(pod, true)]);
    for one in waiting {
        assert_eq!(one.await.expect("no panic").0, StatusCode::OK);
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 200);
    tokio::time::timeout(WITHIN, ended).await.expect("it ends").expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_socket_waits_for_its_pod_and_passes() {
    let stage = stage(Settings { limit: 1, ..Settings::default() }, || {}).await;
    let (at, _stop, _) = plain_door(&stage, Config::default()).await;
    let mut client = TcpStream::connect(at).await.expect("connected");
    let head = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nKnative-Serving-Namespace: default\r\nKnative-Serving-Revision: hello-00001\r\n\r\n";
    client.write_all(head.as_bytes()).await.expect("sent");
    until("it waits", || stage.revision.waiting() == 1).await;
    let pod = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = pod.local_addr().expect("bound");
    let handler = handler_fn(|mut request: Request<Incoming>, _: Arc<Peer>| async move {
        assert_eq!(request.headers()["upgrade"], "websocket");
        let switching = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(switching.await.expect("switched"));
            let mut word = [0; 4];
            while io.read_exact(&mut word).await.is_ok() {
                io.write_all(&word).await.expect("sent");
            }
        });
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", "upgrade".parse().expect("a value"));
        response.headers_mut().insert("upgrade", "websocket".parse().expect("a value"));
        response
    });
    let own = identity(&stage.authority, "default", "default").await;
    tokio::spawn(serve(pod, MeshAcceptor(own), handler, ServerConfig::default(), stage.stop.clone()));
    stage.list(&[(address, true)]);
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\n") {
        assert!(client.read_buf(&mut got).await.expect("read") > 0, "{}", String::from_utf8_lossy(&got));
    }
    assert!(got.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&got));
    for word in [b"ping", b"pong"] {
        client.write_all(word).await.expect("sent");
        let mut back = [0; 4];
        client.read_exact(&mut back).await.expect("read");
        assert_eq!(&back, word);
    }
    // It holds the only place until it closes.
    let next = tokio::spawn(ask(plain_backend(at, Protocol::Http1), "hello-00001"));
    until("the next one waits", || stage.revision.waiting() == 1).await;
    drop(client);
    until("it gets the place", || stage.revision.waiting() == 0).await;
    next.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_with_trailers_goes_by_http2_to_its_pod() {
    let stage = stage(Settings::default(), || {}).await;
    let (at, _stop, _) = plain_door(&stage, Config::default()).await;
    let (pod, seen) = stage.pod(Duration::ZERO).await;
    stage.list(&[(pod, true)]);
    let backend = plain_backend(at, Protocol::Http2);
    for (te, version) in [(None, http::Version::HTTP_11), (Some("trailers"), http::Version::HTTP_2)] {
        let mut request = Request::post("/pkg.Service/Method")
            .header("host", "a")
            .header(headers::KNATIVE_SERVING_NAMESPACE, "default")
            .header(headers::KNATIVE_SERVING_REVISION, "hello-00001");
        if let Some(te) = te {
            request = request.header("te", te);
        }
        let mut outgoing =
            Outgoing::own(request.body(RequestBody::empty()).expect("a request")).expect("has a host");
        assert_eq!(outgoing.send(&backend).await.expect("an answer").status(), StatusCode::OK);
        assert_eq!(*seen.version.lock(), Some(version));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_only_fails_does_not_draw_the_requests() {
    let stage = stage(Settings::default(), || {}).await;
    let (at, _stop, _) = plain_door(&stage, Config::default()).await;
    let (good, seen) = stage.pod(Duration::from_millis(5)).await;
    let bad = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let bad_at = bad.local_addr().expect("bound");
    let failing = handler_fn(|_: Request<Incoming>, _: Arc<Peer>| async {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    });
    let own = identity(&stage.authority, "default", "default").await;
    tokio::spawn(serve(bad, MeshAcceptor(own), failing, ServerConfig::default(), stage.stop.clone()));
    stage.list(&[(good, true), (bad_at, true)]);
    let backend = plain_backend(at, Protocol::Http1);
    let mut failed = 0;
    for _ in 0..200 {
        failed += usize::from(ask(backend.clone(), "hello-00001").await.0 != StatusCode::OK);
    }
    assert!(failed < 20, "{failed} of 200 went to the pod that fails at once");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 200 - failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_a_client_outside_claims_is_a_request() {
    let stage = stage(Settings::default(), || {}).await;
    for value in ["queue", "activator"] {
        let request = Request::get("/")
            .header("host", "a")
            .header(headers::KNATIVE_SERVING_NAMESPACE, "default")
            .header(headers::KNATIVE_SERVING_REVISION, "hello-00001")
            .header(headers::K_NETWORK_PROBE, value)
            .body(RequestBody::empty())
            .expect("a request");
        let backend = stage.backend();
        let asked = tokio::spawn(async move {
            Outgoing::own(request).expect("has a host").send(&backend).await.expect("an answer").status()
        });
        until("it waits like any other", || stage.revision.waiting() == 1).await;
        let (pod, seen) = stage.pod(Duration::ZERO).await;
        stage.list(&[(pod, true)]);
        assert_eq!(asked.await.expect("no panic"), StatusCode::OK);
        assert_eq!(seen.requests.load(Ordering::SeqCst), 1, "{value}");
        stage.list(&[]);
    }
}
