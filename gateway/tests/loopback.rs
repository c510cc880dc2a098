//! The gateway's handler between real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use ebb_api::networking::Ingress;
use ebb_gateway::table::{BackendKey, Routes, Side, compile};
use ebb_gateway::upstream::{Address, Content, Upstream};
use ebb_gateway::{Config, Edge, Handler, Live, Snapshot};
use ebb_http::forward::own_response;
use ebb_http::{
    Body, Outgoing, Peer, PlainAcceptor, PlainConnector, Pool, PoolConfig, Protocol, RequestBody,
    ServerConfig, Target, handler_fn, headers, serve,
};
use ebb_mesh::ca::{Authority, MaterialPem};
use ebb_mesh::{Identity, MeshAcceptor};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

const TRUST_DOMAIN: &str = "cluster.local";

struct Stage {
    authority: Arc<Authority>,
    pool: Pool,
    upstreams: Arc<Mutex<Vec<Arc<Upstream>>>>,
    snapshot: Snapshot,
    live: Arc<Live>,
    external: SocketAddr,
    local: SocketAddr,
    stop: CancellationToken,
    _stop: DropGuard,
}

async fn identity(authority: &Arc<Authority>, namespace: &str, account: &str) -> Identity {
    let id = format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}").parse().expect("an id");
    Identity::from_authority(authority.clone(), id).await.expect("an identity")
}

async fn stage(spec: Value) -> Stage {
    let root = MaterialPem::generate_root(TRUST_DOMAIN, SystemTime::now()).expect("a root");
    let authority =
        Arc::new(Authority::new(TRUST_DOMAIN, Duration::from_secs(3600), &root).expect("an authority"));
    let own = identity(&authority, "ebb-system", "gateway").await;
    let stop = CancellationToken::new();
    let pool = Pool::new(own, PoolConfig::default());
    let snapshot = Snapshot::default();
    let config = Config { endpoint_wait: Duration::from_secs(5), ..Config::default() };
    let mut bound = Vec::new();
    let live: Arc<Live> = Arc::default();
    for side in [Side::External, Side::Local] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        bound.push(listener.local_addr().expect("bound"));
        let handler = Handler::new(snapshot.clone(), side, &config, live.clone());
        let acceptor = Edge::http(PlainAcceptor, live.clone());
        tokio::spawn(serve(listener, acceptor, handler, ServerConfig::default(), stop.clone()));
    }
    let _stop = stop.clone().drop_guard();
    let stage = Stage {
        authority,
        pool,
        upstreams: Arc::default(),
        snapshot,
        live,
        external: bound[0],
        local: bound[1],
        stop,
        _stop,
    };
    stage.program(spec);
    stage
}

impl Stage {
    fn program(&self, spec: Value) {
        let ingress: Ingress = serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"namespace": "default", "name": "hello", "generation": 1}, "spec": spec}))
        .expect("an ingress");
        let resolve = &mut |key: &BackendKey| {
            let mut all = self.upstreams.lock();
            if let Some(known) = all.iter().find(|upstream| upstream.key == *key) {
                return known.clone();
            }
            let upstream = Upstream::new(key.clone(), self.pool.clone());
            all.push(upstream.clone());
            upstream
        };
        let mut routes = Routes::default();
        routes.set(compile(&ingress, "cluster.local", resolve));
        self.snapshot.store(Arc::new(routes.table()));
    }

    fn set(&self, service: &str, endpoints: &[SocketAddr]) {
        let peer: Arc<str> = format!("spiffe://{TRUST_DOMAIN}/ns/default/*").into();
        let content = endpoints
            .iter()
            .map(|socket| Address { socket: *socket, peer: Some(peer.clone()), h2: false })
            .collect();
        let all = self.upstreams.lock();
        let upstream = all.iter().find(|upstream| upstream.key.service.name == service).expect("known");
        upstream.set(Content::Endpoints(content));
    }

    /// A pod behind mutual TLS that answers with its name; stops taking connections when the token is cancelled.
    async fn pod(&self, name: &'static str) -> (SocketAddr, CancellationToken, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let handler = handler_fn(move |request: Request<Incoming>, _: Arc<Peer>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                let mut response = Response::new(Body::from(name));
                for seen in [
                    "host",
                    "knative-serving-revision",
                    "x-request-id",
                    "x-forwarded-for",
                    "x-level",
                    "traceparent",
                ] {
                    if let (Some(value), Ok(name)) =
                        (request.headers().get(seen), http::HeaderName::try_from(format!("saw-{seen}")))
                    {
                        response.headers_mut().insert(name, value.clone());
                    }
                }
                response
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let own = identity(&self.authority, "default", "default").await;
        let stop = self.stop.child_token();
        tokio::spawn(serve(listener, MeshAcceptor(own), handler, ServerConfig::default(), stop.clone()));
        (address, stop, count)
    }
}

struct Client(Pool);

impl Client {
    fn new() -> Self {
        Self(Pool::new(PlainConnector, PoolConfig::default()))
    }

    async fn get(
        &self,
        at: SocketAddr,
        host: &str,
        more: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::get("/").header("host", host);
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let mut outgoing =
            Outgoing::own(request.body(RequestBody::empty()).expect("a request")).expect("has a host");
        let backend = self.0.backend(&Target::plain(at, Protocol::Http1));
        let response = outgoing.send(&backend).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let text = body.collect().await.expect("a body").to_bytes();
        (parts.status, parts.headers, String::from_utf8_lossy(&text).into_owned())
    }
}

fn split(service: &str, percent: u32) -> Value {
    json!({"serviceNamespace": "default", "serviceName": service, "servicePort": 80, "percent": percent,
           "appendHeaders": {"Knative-Serving-Revision": service, "X-Level": "split"}})
}

fn both_sides() -> Value {
    json!({"rules": [
        {"hosts": ["hello.example.com"], "visibility": "ExternalIP",
         "http": {"paths": [{"appendHeaders": {"X-Level": "path"}, "splits": [split("one", 100)]}]}},
        {"hosts": ["hello.default.svc.cluster.local"], "visibility": "ClusterLocal",
         "http": {"paths": [{"splits": [split("one", 100)]}]}}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwards_with_headers_and_keeps_what_is_inside_inside() {
    let stage = stage(both_sides()).await;
    let (pod, _, _) = stage.pod("one").await;
    stage.set("one", &[pod]);
    let client = Client::new();
    let forged = [("Knative-Serving-Revision", "forged"), ("X-Forwarded-For", "6.6.6.6")];
    let (status, headers, body) = client.get(stage.external, "hello.example.com:8080", &forged).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "one"));
    assert_eq!(headers["saw-knative-serving-revision"], "one");
    assert_eq!(headers["saw-x-level"], "split");
    assert_eq!(headers["saw-x-forwarded-for"], "127.0.0.1", "the edge trusts nobody");
    assert!(headers.contains_key("saw-x-request-id"));
    assert_eq!(headers["saw-host"], "hello.example.com:8080");

    assert_eq!(client.get(stage.local, "hello.default", &[]).await.0, StatusCode::OK);
    let (status, _, body) = client.get(stage.external, "hello.default", &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.contains("cluster-local"), "{body}");
    let (status, _, body) = client.get(stage.external, "nobody.example.com", &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body.contains("nobody.example.com"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_probes_with_the_hash_of_what_it_serves() {
    let stage = stage(both_sides()).await;
    let client = Client::new();
    let probe = [("K-Network-Probe", "probe"), ("K-Network-Hash", "override")];
    let (status, headers, _) = client.get(stage.external, "hello.example.com", &probe).await;
    assert_eq!(status, StatusCode::OK);
    let served = headers[headers::K_NETWORK_HASH].to_str().expect("a hash").to_owned();
    let known = stage.snapshot.load().hash_of(Side::External, "hello.example.com").cloned().expect("known");
    assert_eq!((known.to_str().ok(), served.len()), (Some(served.as_str()), 64));
    let own = [("K-Network-Probe", "probe"), ("K-Network-Hash", "mine")];
    let (_, headers, _) = client.get(stage.external, "hello.example.com", &own).await;
    assert_eq!(headers[headers::K_NETWORK_HASH], "mine");
    stage.program(json!({"rules": [{"hosts": ["hello.example.com"], "http": {"paths": [{"splits": [split("two", 100)]}]}}]}));
    let (_, headers, _) = client.get(stage.external, "hello.example.com", &probe).await;
    assert_ne!(headers[headers::K_NETWORK_HASH], served.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switching_endpoints_under_load_loses_nothing() {
    let stage = Arc::new(stage(both_sides()).await);
    let (first, _, _) = stage.pod("first").await;
    stage.set("one", &[first]);
    let done = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..8 {
        let (at, done) = (stage.external, done.clone());
        clients.push(tokio::spawn(async move {
            let client = Client::new();
            let mut count = 0;
            while !done.load(Ordering::SeqCst) {
                let (status, _, body) = client.get(at, "hello.example.com", &[]).await;
                assert_eq!(status, StatusCode::OK, "{body}");
                count += 1;
            }
            count
        }));
    }
    // Serve and Proxy change places: old endpoints stop taking connections before, at, and after the switch, and the
    // list is empty in between.
    let mut before: Option<CancellationToken> = None;
    for round in 0..15 {
        let (pod, stop, count) = stage.pod("next").await;
        if round % 3 == 0 {
            if let Some(before) = before.take() {
                before.cancel();
            }
            stage.set("one", &[]);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stage.set("one", &[pod]);
        while count.load(Ordering::SeqCst) < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if let Some(before) = before.replace(stop) {
            before.cancel();
        }
    }
    done.store(true, Ordering::SeqCst);
    let mut all = 0;
    for client in clients {
        all += client.await.expect("no request failed");
    }
    assert!(all > 300, "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_the_next_list_of_endpoints() {
    let stage = Arc::new(stage(both_sides()).await);
    let (pod, _, _) = stage.pod("late").await;
    let at = stage.external;
    let asked = tokio::spawn(async move { Client::new().get(at, "hello.example.com", &[]).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!asked.is_finished());
    stage.set("one", &[pod]);
    assert_eq!(asked.await.expect("no panic").2, "late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_with_a_foreign_identity_gets_nothing() {
    let stage = stage(both_sides()).await;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let handler = handler_fn(move |_: Request<Incoming>, _: Arc<Peer>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Response::new(Body::from("stolen")) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let foreign = listener.local_addr().expect("bound");
    let thief = identity(&stage.authority, "elsewhere", "default").await;
    tokio::spawn(serve(listener, MeshAcceptor(thief), handler, ServerConfig::default(), stage.stop.clone()));
    let (pod, _, _) = stage.pod("right").await;
    stage.set("one", &[foreign, pod]);
    let client = Client::new();
    for _ in 0..20 {
        assert_eq!(client.get(stage.external, "hello.example.com", &[]).await.2, "right");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_hold_through_the_wire() {
    let stage = stage(json!({"rules": [{"hosts": ["h"], "http": {"paths":
        [{"splits": [split("one", 90), split("two", 10), split("never", 0)]}]}}]}))
    .await;
    let (one, _, ones) = stage.pod("one").await;
    let (two, _, twos) = stage.pod("two").await;
    let (never, _, nevers) = stage.pod("never").await;
    stage.set("one", &[one]);
    stage.set("two", &[two]);
    stage.set("never", &[never]);
    let client = Client::new();
    for _ in 0..1000 {
        client.get(stage.external, "h", &[]).await;
    }
    let twos = twos.load(Ordering::SeqCst);
    assert!((55..=150).contains(&twos), "{twos} of 1000 at 10 %");
    assert_eq!(ones.load(Ordering::SeqCst) + twos, 1000);
    assert_eq!(nevers.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_of_the_gateway_itself_is_looked_up_again() {
    let stage = stage(json!({"rules": [
        {"hosts": ["mapped.example.com"], "http": {"paths": [{"rewriteHost": "hello.default.svc.cluster.local",
            "splits": [{"serviceNamespace": "default", "serviceName": "hello", "servicePort": 80, "percent": 100}]}]}},
        {"hosts": ["hello.default.svc.cluster.local"], "visibility": "ClusterLocal",
            "http": {"paths": [{"splits": [split("one", 100)]}]}}]}))
    .await;
    let (pod, _, _) = stage.pod("one").await;
    stage.set("one", &[pod]);
    stage
        .upstreams
        .lock()
        .iter()
        .find(|u| u.key.service.name == "hello")
        .expect("known")
        .set(Content::Gateway);
    let client = Client::new();
    let (status, headers, body) = client.get(stage.external, "mapped.example.com", &[]).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "one"));
    assert_eq!(headers["saw-host"], "hello.default.svc.cluster.local");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web_sockets_pass() {
    let stage = stage(both_sides()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let pod = listener.local_addr().expect("bound");
    let own = identity(&stage.authority, "default", "default").await;
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let (mut tls, _) = own.accept(tcp).await.expect("a handshake");
        let mut head = vec![0; 4096];
        let n = tls.read(&mut head).await.expect("a request");
        assert!(String::from_utf8_lossy(&head[..n]).to_lowercase().contains("upgrade: websocket"));
        tls.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await
        .expect("written");
        let n = tls.read(&mut head).await.expect("bytes");
        let echo = head[..n].to_vec();
        tls.write_all(&echo).await.expect("written");
        tls.flush().await.expect("flushed");
        let _ = tls.read(&mut head).await;
    });
    stage.set("one", &[pod]);
    let mut tcp = TcpStream::connect(stage.external).await.expect("connected");
    tcp.write_all(b"GET /ws HTTP/1.1\r\nhost: hello.example.com\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n\r\n")
        .await
        .expect("written");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.expect("a byte"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    tcp.write_all(b"ping").await.expect("written");
    let mut echo = [0; 4];
    tcp.read_exact(&mut echo).await.expect("an echo");
    assert_eq!(&echo, b"ping");
}

/// What was written, for a look at it.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Written {
    async fn lines(&self, count: usize) -> Vec<String> {
        loop {
            let text = String::from_utf8_lossy(&self.0.lock()).into_owned();
            if text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_a_line_of_the_access_log_while_it_is_on() {
    let stage = stage(both_sides()).await;
    let written = Written::default();
    stage.live.access_log.write_to(written.clone());
    let (pod, _, _) = stage.pod("one").await;
    stage.set("one", &[pod]);
    let client = Client::new();
    client.get(stage.external, "hello.example.com", &[("x-n", "off")]).await;
    let template = r#"{{.Request.Host}} {{.Response.Code}} {{.Response.Size}} {{.Revision.Name}} {{.Request.Header.Get "x-n"}}"#;
    stage.live.access_log.set(Some(ebb_http::log::Template::parse(template).expect("a template")));
    client.get(stage.external, "hello.example.com", &[("x-n", "on")]).await;
    client.get(stage.external, "nobody.example.com", &[("x-n", "on")]).await;
    let lines = written.lines(2).await;
    assert_eq!(lines[0], "hello.example.com 200 3 one on");
    assert!(lines[1].starts_with("nobody.example.com 404 ") && lines[1].ends_with("  on"), "{}", lines[1]);
    stage.live.access_log.set(None);
    client.get(stage.external, "hello.example.com", &[]).await;
    assert_eq!(written.lines(2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_protocol_tells_the_client_and_counts_only_where_it_is_on() {
    let stage = stage(both_sides()).await;
    let (pod, _, _) = stage.pod("one").await;
    stage.set("one", &[pod]);
    let ask = async |head: &[u8]| -> String {
        let mut tcp = TcpStream::connect(stage.external).await.expect("connected");
        tcp.write_all(head).await.expect("written");
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: hello.example.com\r\nconnection: close\r\n\r\n")
            .await
            .expect("written");
        let mut answer = String::new();
        let _ = tcp.read_to_string(&mut answer).await;
        answer
    };
    let line = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n";
    assert!(ask(b"").await.contains("saw-x-forwarded-for: 127.0.0.1"));
    let answer = ask(line).await;
    assert!(!answer.contains("200 OK") && !answer.contains("192.0.2.7"), "off, it is no request: {answer}");
    stage.live.set_proxy_protocol(ebb_api::config::ProxyProtocol { http: true, https: false });
    let answer = ask(line).await;
    assert!(answer.contains("200 OK") && answer.contains("saw-x-forwarded-for: 192.0.2.7"), "{answer}");
    assert_eq!(ask(b"").await, "", "on, every connection must begin with it");
}

/// A pod that answers each request with this status; as its sidecar, where `marked`.
async fn refusing(stage: &Stage, status: StatusCode, marked: bool) -> SocketAddr {
    let handler = handler_fn(move |_: Request<Incoming>, _: Arc<Peer>| async move {
        let mut response = own_response(status, "pending request queue full\n");
        if !marked {
            response.headers_mut().remove(headers::PROXY_ERROR);
        }
        response
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let own = identity(&stage.authority, "default", "default").await;
    tokio::spawn(serve(listener, MeshAcceptor(own), handler, ServerConfig::default(), stage.stop.clone()));
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_grpc_is_told_in_its_words_what_a_proxy_refused() {
    let stage = stage(both_sides()).await;
    let client = Client::new();
    let call = [("content-type", "application/grpc+proto")];
    let (status, headers, body) = client.get(stage.external, "nobody.example.com", &call).await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
    assert_eq!(
        (&headers["grpc-status"], &headers["content-type"]),
        (&"12".parse().unwrap(), &call[0].1.parse().unwrap())
    );
    assert!(headers["grpc-message"].to_str().expect("text").contains("nobody.example.com"));
    assert_eq!(client.get(stage.external, "nobody.example.com", &[]).await.0, StatusCode::NOT_FOUND);

    stage.set("one", &[refusing(&stage, StatusCode::SERVICE_UNAVAILABLE, true).await]);
    let (status, headers, _) = client.get(stage.external, "hello.example.com", &call).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&headers["grpc-status"], &headers["grpc-message"]),
        (&"14".parse().unwrap(), &"pending request queue full".parse().unwrap())
    );

    stage.set("one", &[refusing(&stage, StatusCode::SERVICE_UNAVAILABLE, false).await]);
    let (status, headers, body) = client.get(stage.external, "hello.example.com", &call).await;
    assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "pending request queue full\n"));
    assert!(!headers.contains_key("grpc-status"), "the app's own answer");
}

/// A pod that answers an upgrade with 101 and sends back what it gets.
async fn echo(stage: &Stage) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let pod = listener.local_addr().expect("bound");
    let own = identity(&stage.authority, "default", "default").await;
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let (mut tls, _) = own.accept(tcp).await.expect("a handshake");
        let mut bytes = vec![0; 4096];
        let _ = tls.read(&mut bytes).await.expect("a request");
        tls.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await
        .expect("written");
        while let Ok(n) = tls.read(&mut bytes).await
            && n > 0
        {
            tls.write_all(&bytes[..n]).await.expect("written");
            tls.flush().await.expect("flushed");
        }
    });
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_replaced_under_load_loses_nothing() {
    let stage = stage(json!({"rules": [
        {"hosts": ["hello.example.com"], "http": {"paths": [{"splits": [split("one", 100)]}]}},
        {"hosts": ["socket.example.com"], "http": {"paths": [{"splits": [split("two", 100)]}]}}]}))
    .await;
    let (pod, _, count) = stage.pod("one").await;
    stage.set("one", &[pod]);
    let echo = echo(&stage).await;
    stage.set("two", &[echo]);
    // Old and new share the port, as behind a load balancer that goes on sending connections to whoever takes them.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = socket.local_addr().expect("bound");
    let config = Config::default();
    let start = || {
        let stop = CancellationToken::new();
        let handler = Handler::new(stage.snapshot.clone(), Side::External, &config, stage.live.clone());
        let listener = ebb_http::adopt(socket.try_clone().expect("a copy")).expect("a listener");
        let served = serve(listener, PlainAcceptor, handler.clone(), ServerConfig::default(), stop.clone());
        (stop, handler, tokio::spawn(served))
    };
    let mut running = start();

    let mut web_socket = TcpStream::connect(at).await.expect("connected");
    web_socket
        .write_all(b"GET / HTTP/1.1\r\nhost: socket.example.com\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n\r\n")
        .await
        .expect("written");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(web_socket.read_u8().await.expect("a byte"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let first = running.1.clone();

    let done = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Http1, Protocol::Http2] {
        let done = done.clone();
        clients.push(tokio::spawn(async move {
            let pool = Pool::new(PlainConnector, PoolConfig::default());
            let backend = pool.backend(&Target::plain(at, protocol));
            let mut sent = 0;
            while !done.load(Ordering::SeqCst) {
                let request = Request::get("/").header("host", "hello.example.com");
                let mut outgoing = Outgoing::own(request.body(RequestBody::empty()).expect("a request"))
                    .expect("has a host");
                let response = outgoing.send(&backend).await.expect("an answer");
                assert_eq!(response.status(), StatusCode::OK);
                response.into_body().collect().await.expect("a body");
                sent += 1;
            }
            sent
        }));
    }
    let mut ended = Vec::new();
    for _ in 0..5 {
        let until = count.load(Ordering::SeqCst) + 100;
        while count.load(Ordering::SeqCst) < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let next = start();
        let (stop, _, served) = std::mem::replace(&mut running, next);
        stop.cancel();
        ended.push(served);
    }
    for served in ended {
        served.await.expect("every connection was let go");
    }
    done.store(true, Ordering::SeqCst);
    let mut sent = 0;
    for client in clients {
        sent += client.await.expect("no request failed");
    }
    assert_eq!(count.load(Ordering::SeqCst), sent, "each request reached the pod once");

    // The socket goes on through the gateway that ended, which waits for it.
    web_socket.write_all(b"still here").await.expect("written");
    let mut back = [0; 10];
    web_socket.read_exact(&mut back).await.expect("an echo");
    assert_eq!(&back, b"still here");
    let closed = first.tunnels().wait_closed();
    tokio::pin!(closed);
    assert!(futures::poll!(closed.as_mut()).is_pending());
    drop(web_socket);
    closed.await;
    running.0.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_trace_goes_on_while_tracing_is_on() {
    let stage = stage(both_sides()).await;
    let (pod, _, _) = stage.pod("one").await;
    stage.set("one", &[pod]);
    let traces = ebb_component::Traces::start("gateway");
    stage.live.trace_by(traces.clone());
    let client = Client::new();
    let said = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let seen = async |more: &[(&str, &str)]| {
        let (_, headers, _) = client.get(stage.external, "hello.example.com", more).await;
        headers.get("saw-traceparent").map(|value| value.to_str().expect("text").to_owned())
    };
    assert_eq!(seen(&[]).await, None);
    assert_eq!(
        seen(&[("traceparent", said)]).await.as_deref(),
        Some(said),
        "off, it is a header like others"
    );
    let config = ebb_api::config::Observability {
        tracing_protocol: "http/protobuf".to_owned(),
        tracing_endpoint: "127.0.0.1:9".to_owned(),
        ..Default::default()
    };
    traces.configure(&config).expect("good");
    let made = seen(&[]).await.expect("made");
    assert!(made.len() == 55 && made.ends_with("-00"), "{made}");
    let went_on = seen(&[("traceparent", said)]).await.expect("went on");
    assert!(went_on.starts_with(&said[..36]) && went_on.ends_with("-00") && went_on != said, "{went_on}");
}
