//! The sidecar as a whole, over loopback sockets, with an app, an authority and an activator of the test's own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test shall fail it")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ebb_http::wire::{Announcement, Stat};
use ebb_http::{Body, Peer, Protocol, ServerConfig, handler_fn, serve};
use ebb_mesh::MeshAcceptor;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use support::{App, Mesh, ask, got, listener, mesh_client, plain, pod, ready, serve_app};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const PERMISSIVE: (&str, &str) = ("EBB_MTLS_MODE", "PERMISSIVE");

async fn app() -> (Arc<App>, std::net::SocketAddr) {
    let app = Arc::new(App::default());
    let (listener, at) = listener().await;
    serve_app(&app, listener);
    (app, at)
}

#[tokio::test]
async fn n_run_ten_n_wait_the_next_gets_503_and_all_others_200() {
    let (app, at) = app().await;
    let pod = pod(at, &Mesh::start().await, &[PERMISSIVE, ("CONTAINER_CONCURRENCY", "2")]).await;
    ready(pod.http1).await;
    let backend = plain(pod.http1);
    let all: Vec<_> = (0..22)
        .map(|_| {
            let backend = backend.clone();
            tokio::spawn(async move { got(&backend, "/hold", &[]).await.0 })
        })
        .collect();
    app.inside(2).await;
    let metrics = plain(pod.metrics);
    tokio::time::timeout(Duration::from_secs(10), async {
        while !got(&metrics, "/metrics", &[]).await.1.contains("\"} 20") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("20 wait");
    assert_eq!(got(&backend, "/", &[]).await, (503, "pending request queue full\n".into()));
    // Probes are not held up by the limit.
    assert_eq!(got(&backend, "/", &[("k-network-probe", "queue")]).await.0, 200);
    let releasing = app.clone();
    let release = tokio::spawn(async move {
        loop {
            releasing.release.notify_waiters();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    for one in all {
        assert_eq!(one.await.unwrap(), 200);
    }
    release.abort();
    assert_eq!(app.most.load(Ordering::SeqCst), 2);
    assert_eq!(app.seen.load(Ordering::SeqCst), 22);
}

#[tokio::test]
async fn a_client_that_gives_up_frees_its_place() {
    let (app, at) = app().await;
    let pod = pod(at, &Mesh::start().await, &[PERMISSIVE, ("CONTAINER_CONCURRENCY", "1")]).await;
    ready(pod.http1).await;
    let backend = plain(pod.http1);
    let gone = tokio::spawn({
        let backend = backend.clone();
        async move { ask(&backend, "/hold", &[]).await.map(|_| ()) }
    });
    app.inside(1).await;
    gone.abort();
    let answered = tokio::time::timeout(Duration::from_secs(10), got(&backend, "/", &[])).await;
    assert_eq!(answered.expect("the place is free").0, 200);
}

#[tokio::test]
async fn timeouts_answer_504_and_cut_a_started_response() {
    // An app that starts an answer and never ends it, or never starts one.
    let (listener, at) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                let n = tcp.read(&mut buf).await.unwrap();
                let head: &[u8] = match &buf[..n] {
                    request if request.starts_with(b"GET /start") => {
                        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome"
                    }
                    request if request.starts_with(b"GET /stream") => {
                        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n"
                    }
                    request if request.starts_with(b"GET /grpc") => {
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n"
                    }
                    request if request.starts_with(b"GET /ws") => {
                        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                    }
                    _ => b"",
                };
                let _ = tcp.write_all(head).await;
                std::future::pending::<()>().await;
            });
        }
    });
    let vars =
        [PERMISSIVE, ("REVISION_TIMEOUT_SECONDS", "2"), ("REVISION_RESPONSE_START_TIMEOUT_SECONDS", "1")];
    let pod = pod(at, &Mesh::start().await, &vars).await;
    ready(pod.http1).await;
    let backend = plain(pod.http1);
    let began = Instant::now();
    let (status, body) = got(&backend, "/never", &[]).await;
    assert_eq!((status, body.as_str()), (504, "no response within 1s\n"));
    assert!((900..1900).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());

    let began = Instant::now();
    let response = ask(&backend, "/start", &[]).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err(), "cut");
    assert!((1900..3500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());

    assert_eq!(got(&backend, "/stream", &[]).await, (200, "somerequest timeout".to_owned()));
    let call = ask(&backend, "/grpc", &[]).await.unwrap();
    assert!(call.into_body().collect().await.is_err(), "a call is not whole without its trailers");

    let mut ws = TcpStream::connect(pod.http1).await.unwrap();
    let request = b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    ws.write_all(request).await.unwrap();
    let mut seen = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), ws.read_to_end(&mut seen));
    let _ = read.await.expect("the whole time is over for a web socket too");
    assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
}

#[tokio::test]
async fn a_connection_that_the_app_has_no_room_for_is_tried_again() {
    // An app with the shortest queue there is, which stops to take connections when it is told.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let at = listener.local_addr().unwrap();
    let (takes, mut taking) = tokio::sync::watch::channel(true);
    tokio::spawn(async move {
        loop {
            taking.wait_for(|taking| *taking).await.unwrap();
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                if tcp.read(&mut buf).await.is_ok_and(|n| n > 0) {
                    let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsome").await;
                }
            });
        }
    });
    let pod = pod(at, &Mesh::start().await, &[PERMISSIVE]).await;
    ready(pod.http1).await;
    takes.send(false).unwrap();
    let mut full = Vec::new();
    while let Ok(connection) = tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(at)).await
    {
        full.push(connection.unwrap());
    }
    let backend = plain(pod.http1);
    let asked = tokio::spawn(async move { got(&backend, "/", &[]).await });
    // A connection that is left to the kernel, which sends the first packet again after 1 s, and then 2 s or 3 s.
    let left = tokio::spawn(TcpStream::connect(at));
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!asked.is_finished() && !left.is_finished(), "both wait");
    takes.send(true).unwrap();
    assert_eq!(asked.await.unwrap(), (200, "some".to_owned()));
    assert!(!left.is_finished(), "the kernel was faster");
}

#[tokio::test]
async fn probes_follow_the_app_and_wrong_ones_are_400() {
    let (free, at) = listener().await;
    drop(free);
    let mesh = Mesh::start().await;
    let pod = pod(at, &mesh, &[]).await;
    let backend = plain(pod.http1);
    let probe = [("k-network-probe", "queue")];
    assert_eq!(got(&backend, "/", &probe).await.0, 503);
    let late = Arc::new(App::default());
    serve_app(&late, TcpListener::bind(at).await.unwrap());
    ready(pod.http1).await;
    assert_eq!(got(&backend, "/", &probe).await, (200, "queue".into()));
    assert_eq!(got(&backend, "/", &[("k-network-probe", "activator")]).await.0, 400);
    assert_eq!(got(&plain(pod.admin), "/ready", &[]).await.0, 200);
    assert_eq!(got(&plain(pod.admin), "/nothing", &[]).await.0, 404);
    assert_eq!(late.seen.load(Ordering::SeqCst), 0, "a TCP probe sends no request");
}

#[tokio::test]
async fn strict_takes_no_plaintext_whatever_it_calls_itself() {
    let (app, at) = app().await;
    let mesh = Mesh::start().await;
    let pod = pod(at, &mesh, &[]).await;
    ready(pod.http1).await;
    let backend = plain(pod.http1);
    let (status, body) = got(&backend, "/", &[]).await;
    assert_eq!(status, 403);
    assert!(body.contains("STRICT") && body.contains("8112"), "{body}");
    assert_eq!(got(&backend, "/", &[("user-agent", "kube-probe/1.35")]).await, (200, "queue".into()));
    assert_eq!(got(&backend, "/", &[("k-kubelet-probe", "x")]).await, (200, "queue".into()));
    assert_eq!(app.seen.load(Ordering::SeqCst), 0, "no byte of it reached the app");

    for protocol in [Protocol::Http1, Protocol::Http2] {
        let gateway = mesh_client(&mesh, "ebb-system", "gateway", pod.mtls, protocol).await;
        assert_eq!(got(&gateway, "/", &[]).await.0, 200, "{protocol:?}");
    }
    let stranger = Mesh::start().await;
    let stranger = mesh_client(&stranger, "ebb-system", "gateway", pod.mtls, Protocol::Http1).await;
    assert!(ask(&stranger, "/", &[]).await.is_err(), "another authority's identity");
    assert_eq!(app.seen.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn headers_are_restored_and_the_platforms_own_removed() {
    let (_app, at) = app().await;
    let mesh = Mesh::start().await;
    let pod = pod(at, &mesh, &[]).await;
    ready(pod.http1).await;
    let gateway = mesh_client(&mesh, "ebb-system", "gateway", pod.mtls, Protocol::Http2).await;
    let sent = [
        ("k-original-host", "hello.example.com"),
        ("knative-serving-revision", "hello-00001"),
        ("knative-serving-namespace", "default"),
        ("k-proxy-request", "activator"),
        ("ebb-timing", "1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-forwarded-for", "9.9.9.9"),
        ("x-forwarded-proto", "https"),
    ];
    let response = ask(&gateway, "/", &sent).await.unwrap();
    let timing = response.headers()["server-timing"].to_str().unwrap().to_owned();
    assert!(timing.starts_with("queue;dur=") && timing.contains(", app;dur="), "{timing}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut seen: Vec<_> = std::str::from_utf8(&body).unwrap().lines().collect();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            "forwarded: for=9.9.9.9;proto=https",
            "host: hello.example.com",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "x-forwarded-for: 9.9.9.9",
            "x-forwarded-proto: https",
        ]
    );
}

#[tokio::test]
async fn load_is_for_the_autoscaler_only() {
    let (app, at) = app().await;
    let mesh = Mesh::start().await;
    let pod = pod(at, &mesh, &[]).await;
    ready(pod.http1).await;
    let gateway = mesh_client(&mesh, "ebb-system", "gateway", pod.mtls, Protocol::Http1).await;
    let activator = mesh_client(&mesh, "ebb-system", "activator", pod.mtls, Protocol::Http1).await;
    let mut held = Vec::new();
    // What an activator forwarded is told apart, and nobody else can hide a load by saying so.
    for from in [&activator, &activator, &gateway] {
        let from = from.clone();
        let headers: &[_] = &[("k-proxy-request", "activator")];
        held.push(tokio::spawn(async move { got(&from, "/hold", headers).await.0 }));
    }
    app.inside(3).await;
    let nosy = mesh_client(&mesh, "ebb-system", "gateway", pod.stats, Protocol::Http1).await;
    assert_eq!(got(&nosy, "/stats", &[]).await.0, 403);
    let autoscaler = mesh_client(&mesh, "ebb-system", "autoscaler", pod.stats, Protocol::Http1).await;
    // One report to begin a new period with, once the sidecar is old enough to give one.
    tokio::time::sleep(ebb_queue_proxy::load::SHORTEST_PERIOD).await;
    got(&autoscaler, "/stats", &[]).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let (status, json) = got(&autoscaler, "/stats", &[]).await;
    assert_eq!(status, 200);
    let stat: Stat = serde_json::from_str(&json).unwrap();
    assert!((stat.average_concurrent_requests - 3.0).abs() < 0.01, "{stat:?}");
    assert!((stat.average_proxied_concurrent_requests - 2.0).abs() < 0.01, "{stat:?}");
    assert_eq!((stat.revision.as_str(), stat.pod.as_str()), ("hello-00001", "hello-pod"));
    app.release.notify_waiters();
    for one in held {
        assert_eq!(one.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn announces_as_soon_as_the_app_listens_until_it_is_heard() {
    let mesh = Mesh::start().await;
    let (door, activator_at) = listener().await;
    let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
    let attempts = Arc::new(AtomicUsize::new(0));
    let handler = {
        let attempts = attempts.clone();
        handler_fn(move |request: Request<Incoming>, peer: Arc<Peer>| {
            let (heard, first) = (heard.clone(), attempts.fetch_add(1, Ordering::SeqCst) == 0);
            async move {
                assert_eq!(request.headers()["host"], "activator.ebb-system");
                assert_eq!(request.headers()["ebb-control"], "announce");
                assert_eq!(request.uri().path(), "/v1/announce");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let announcement: Announcement = serde_json::from_slice(&body).unwrap();
                let mut response = Response::new(Body::Empty);
                if first {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                } else {
                    heard.send((announcement, peer.identity.clone(), Instant::now())).unwrap();
                }
                response
            }
        })
    };
    let acceptor = MeshAcceptor(mesh.identity("ebb-system", "activator").await);
    tokio::spawn(serve(door, acceptor, handler, ServerConfig::default(), CancellationToken::new()));

    let (free, at) = listener().await;
    drop(free);
    let pod = pod(at, &mesh, &[("EBB_ACTIVATOR", &activator_at.to_string())]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(attempts.load(Ordering::SeqCst), 0, "not before the app listens");
    let listening = TcpListener::bind(at).await.unwrap();
    let since = Instant::now();
    serve_app(&Arc::new(App::default()), listening);
    let (announcement, identity, when) = hearing.recv().await.unwrap();
    assert_eq!(identity.as_deref(), Some("spiffe://cluster.local/ns/default/sa/app"));
    assert_eq!((announcement.address.as_str(), announcement.port), ("127.0.0.1", pod.mtls.port()));
    assert!(announcement.started_at_us <= announcement.certified_at_us);
    assert!(announcement.certified_at_us <= announcement.listening_at_us);
    assert!(when - since < Duration::from_millis(500), "{:?}", when - since);
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_drain_loses_no_request() {
    let (app, at) = app().await;
    let mesh = Mesh::start().await;
    let pod = pod(at, &mesh, &[]).await;
    ready(pod.http1).await;
    let gateway = mesh_client(&mesh, "ebb-system", "gateway", pod.mtls, Protocol::Http1).await;
    let long = tokio::spawn({
        let gateway = gateway.clone();
        async move { got(&gateway, "/hold", &[]).await.0 }
    });
    app.inside(1).await;
    let hook = plain(pod.admin);
    let hook = tokio::spawn(async move { got(&hook, "/wait-for-drain", &[]).await.0 });
    pod.stop.cancel();
    // Those who do not know yet keep sending for a while, over kept and over new connections.
    for i in 0..100 {
        let (status, _) = got(&gateway, "/", &[]).await;
        assert_eq!(status, 200, "request {i} after SIGTERM");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(got(&plain(pod.http1), "/", &[("k-network-probe", "queue")]).await.0, 503);
    assert!(!hook.is_finished() && !pod.ended.is_finished(), "one request still runs");
    app.release.notify_waiters();
    assert_eq!(long.await.unwrap(), 200);
    assert_eq!(hook.await.unwrap(), 200);
    tokio::time::timeout(Duration::from_secs(10), pod.ended)
        .await
        .expect("ends when quiet")
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(pod.mtls).await.is_err());
}

#[tokio::test]
async fn an_upgraded_connection_holds_its_place_and_the_drain() {
    let (door, at) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = door.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                let n = tcp.read(&mut buf).await.unwrap();
                if !buf[..n].starts_with(b"GET /ws") {
                    return;
                }
                let head =
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                tcp.write_all(head).await.unwrap();
                let (mut r, mut w) = tcp.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
            });
        }
    });
    let vars = [PERMISSIVE, ("REVISION_TIMEOUT_SECONDS", "6"), ("CONTAINER_CONCURRENCY", "1")];
    let pod = pod(at, &Mesh::start().await, &vars).await;
    ready(pod.http1).await;
    let mut ws = TcpStream::connect(pod.http1).await.unwrap();
    ws.write_all(b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut buf = [0; 1024];
    let n = ws.read(&mut buf).await.unwrap();
    assert!(buf[..n].starts_with(b"HTTP/1.1 101"));
    let metrics = plain(pod.metrics);
    let page = got(&metrics, "/metrics", &[]).await.1;
    assert!(page.contains("revision_tunnels_open{") && page.contains("revision_requests_running{"), "{page}");
    let running = page.lines().find(|l| l.starts_with("revision_requests_running{")).unwrap();
    assert!(running.ends_with(" 1"), "{running}");
    pod.stop.cancel();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!pod.ended.is_finished(), "an open tunnel is not quiet");
    let hook = got(&plain(pod.admin), "/wait-for-drain", &[]).await;
    assert_eq!(hook.0, 503, "the app is told while the tunnel is open: {}", hook.1);
    ws.write_all(b"ping").await.unwrap();
    ws.read_exact(&mut buf[..4]).await.unwrap();
    // It never ends by itself: the end of grace cuts it.
    tokio::time::timeout(Duration::from_secs(10), pod.ended).await.expect("grace ends").unwrap().unwrap();
    assert_eq!(ws.read(&mut buf).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn what_a_client_says_of_itself_through_a_gateway_is_no_probe() {
    let (app, at) = app().await;
    let mesh = Mesh::start().await;
    let pod = pod(at, &mesh, &[("CONTAINER_CONCURRENCY", "1")]).await;
    ready(pod.http1).await;
    let gateway = mesh_client(&mesh, "ebb-system", "gateway", pod.mtls, Protocol::Http1).await;
    // It arrives at the app as the request that it is, and the app does not see it.
    let (status, body) = got(&gateway, "/", &[("k-network-probe", "queue")]).await;
    assert!(status == 200 && body.contains("host:") && !body.contains("k-network-probe"), "{status} {body}");
    let activator = mesh_client(&mesh, "ebb-system", "activator", pod.mtls, Protocol::Http1).await;
    assert_eq!(got(&activator, "/", &[("k-network-probe", "queue")]).await, (200, "queue".into()));
    // Nor does it pass the limit.
    let held = tokio::spawn({
        let gateway = gateway.clone();
        async move { got(&gateway, "/hold", &[]).await.0 }
    });
    app.inside(1).await;
    let seen = app.seen.load(Ordering::SeqCst);
    for header in [("user-agent", "kube-probe/1.35"), ("k-kubelet-probe", "x"), ("k-network-probe", "queue")]
    {
        let sly = tokio::time::timeout(Duration::from_millis(200), got(&gateway, "/", &[header])).await;
        assert!(sly.is_err(), "{header:?} did not wait");
    }
    assert_eq!(app.seen.load(Ordering::SeqCst), seen);
    app.release.notify_waiters();
    assert_eq!(held.await.unwrap(), 200);
}

#[tokio::test]
async fn an_app_of_http2_is_found_out_when_switched_on() {
    let (_app, at) = app().await;
    let mesh = Mesh::start().await;
    for (detect, version) in [("false", "HTTP/1.1"), ("true", "HTTP/2.0")] {
        let pod = pod(at, &mesh, &[PERMISSIVE, ("ENABLE_HTTP2_AUTO_DETECTION", detect)]).await;
        ready(pod.http1).await;
        assert_eq!(got(&plain(pod.http1), "/version", &[]).await, (200, version.into()));
    }
    // Apps of HTTP/1.1 only: one that calls the preface a bad request, and one that waits for more.
    for answers in [true, false] {
        let (listener, at) = listener().await;
        tokio::spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut buf = [0; 4096];
                    while let Ok(n) = tcp.read(&mut buf).await {
                        let answer: &[u8] = match () {
                            () if n == 0 => return,
                            () if buf[..n].starts_with(b"GET ") => {
                                b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nold"
                            }
                            () if answers => b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
                            () => continue,
                        };
                        tcp.write_all(answer).await.unwrap();
                    }
                });
            }
        });
        let pod = pod(at, &mesh, &[PERMISSIVE, ("ENABLE_HTTP2_AUTO_DETECTION", "true")]).await;
        ready(pod.http1).await;
        assert_eq!(got(&plain(pod.http1), "/", &[]).await, (200, "old".into()));
    }
}

#[tokio::test]
async fn a_body_that_drips_is_cut_by_the_timeout_and_frees_its_place() {
    // The app waits for the whole body, as most do.
    let (listener, at) = listener().await;
    tokio::spawn(async move {
        let handler = handler_fn(|request: Request<Incoming>, _| async move {
            let whole = request.into_body().collect().await;
            Response::new(Body::from(if whole.is_ok() { "whole" } else { "broken" }))
        });
        serve(listener, ebb_http::PlainAcceptor, handler, ServerConfig::default(), CancellationToken::new())
            .await;
    });
    let vars = [PERMISSIVE, ("REVISION_TIMEOUT_SECONDS", "1"), ("CONTAINER_CONCURRENCY", "1")];
    let pod = pod(at, &Mesh::start().await, &vars).await;
    ready(pod.http1).await;
    let mut slow = TcpStream::connect(pod.http1).await.unwrap();
    slow.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
    let (mut read, mut write) = slow.split();
    let began = Instant::now();
    let mut answer = Vec::new();
    let drip = async {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = drip => {}
        end = read.read_to_end(&mut answer) => drop(end),
    }
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let next = tokio::time::timeout(Duration::from_secs(5), got(&plain(pod.http1), "/", &[])).await;
    assert_eq!(next.expect("the place is free"), (200, "whole".into()));
}

#[tokio::test]
async fn an_open_web_socket_is_not_cut_by_the_limit_on_a_responses_start() {
    let (door, at) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = door.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                if tcp.read(&mut buf).await.is_ok_and(|n| n > 0) {
                    let head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                    tcp.write_all(head).await.unwrap();
                    let (mut r, mut w) = tcp.split();
                    let _ = tokio::io::copy(&mut r, &mut w).await;
                }
            });
        }
    });
    let vars = [PERMISSIVE, ("REVISION_RESPONSE_START_TIMEOUT_SECONDS", "1")];
    let pod = pod(at, &Mesh::start().await, &vars).await;
    ready(pod.http1).await;
    let mut ws = TcpStream::connect(pod.http1).await.unwrap();
    ws.write_all(b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut buf = [0; 1024];
    let n = ws.read(&mut buf).await.unwrap();
    assert!(buf[..n].starts_with(b"HTTP/1.1 101"));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    ws.write_all(b"ping").await.unwrap();
    ws.read_exact(&mut buf[..4]).await.unwrap();
    assert_eq!(&buf[..4], b"ping");
}

#[tokio::test]
async fn metrics_are_sent_to_a_collector_and_once_more_at_the_end() {
    let (collector, mut sent, _end) = ebb_http::otlp::testing::collector().await;
    let (_app, at) = app().await;
    let mesh = Mesh::start().await;
    let vars = [
        ("SERVING_REQUEST_METRICS_PROTOCOL", "http/protobuf"),
        ("SERVING_REQUEST_METRICS_ENDPOINT", collector.as_str()),
        ("SERVING_REQUEST_METRICS_EXPORT_INTERVAL_SECONDS", "3600"),
        PERMISSIVE,
    ];
    let pod = pod(at, &mesh, &vars).await;
    // A point's value, three.
    let three = [&[0x21][..], &3.0_f64.to_le_bytes()].concat();
    let holds = |message: &[u8]| message.windows(9).any(|part| part == three);
    let (_, path, first) = sent.recv().await.expect("a message");
    assert_eq!(path, "/v1/metrics");
    for told in ["ebb-queue-proxy", "service.instance.id", "hello-pod"] {
        assert!(first.windows(told.len()).any(|part| part == told.as_bytes()), "{told}");
    }
    assert!(!holds(&first));
    ready(pod.http1).await;
    let backend = plain(pod.http1);
    for _ in 0..3 {
        assert_eq!(got(&backend, "/", &[]).await.0, 200);
    }
    pod.stop.cancel();
    let last = tokio::time::timeout(Duration::from_secs(20), sent.recv()).await.expect("in time");
    let (_, _, last) = last.expect("the last message");
    assert!(holds(&last), "what came since is not lost with the pod");
    pod.ended.await.unwrap().unwrap();
}
