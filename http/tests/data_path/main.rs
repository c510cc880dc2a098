//! Server, pool and forwarding together, over loopback sockets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test shall fail it")]

mod hostile;
mod limits;
mod protocols;
mod support;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ebb_http::error::BoxError;
use ebb_http::{
    Connected, Connector, Outgoing, Pool, PoolConfig, Protocol, RequestBody, Retry, ServerConfig, Target,
    Tunnels, adopt, handler_fn, listen,
};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use support::{get, listener, pool, proxy, read_head, start, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_burst_waits_in_the_queue_of_a_listener() {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for listener in [adopt(bound).unwrap(), listen("127.0.0.1:0".parse().unwrap()).unwrap()] {
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        // Nobody accepts. What does not fit is dropped, and the kernel tries again a second later.
        for n in 0..500 {
            let connecting = tokio::time::timeout(Duration::from_millis(900), TcpStream::connect(address));
            waiting.push(connecting.await.unwrap_or_else(|_| panic!("connection {n} was dropped")).unwrap());
        }
    }
}

#[tokio::test]
async fn connections_are_used_again() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let app = start(
            handler_fn(|r: Request<Incoming>, _| async move {
                Response::new(Full::new(Bytes::from(format!("{} {:?}", r.uri().path(), r.version()))))
            }),
            ServerConfig::default(),
        )
        .await;
        let backend = pool(PoolConfig::default()).backend(&Target::plain(app.address, protocol));
        for i in 0..50 {
            let response = Outgoing::own(get(&format!("/{i}"))).unwrap().send(&backend).await.unwrap();
            let version = if protocol == Protocol::Http1 { "HTTP/1.1" } else { "HTTP/2.0" };
            assert_eq!(text(response).await, format!("/{i} {version}"));
        }
        assert_eq!(backend.connections().opened, 1, "{protocol:?}");
        assert_eq!(backend.in_flight(), 0);
    }
}

/// A server that answers the first request of each connection and closes as the second one comes.
async fn closes_on_second(seen: Arc<AtomicUsize>) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                read_head(&mut tcp).await?;
                seen.fetch_add(1, Ordering::SeqCst);
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
                // The second request is read, so that it counts as seen, and then the connection dies.
                read_head(&mut tcp).await?;
                seen.fetch_add(1, Ordering::SeqCst);
                io::Result::Ok(())
            });
        }
    });
    address
}

#[tokio::test]
async fn a_dead_kept_connection_loses_no_idempotent_request_and_repeats_no_other() {
    let seen = Arc::new(AtomicUsize::new(0));
    let address = closes_on_second(seen.clone()).await;
    let pool = pool(PoolConfig::default());
    let backend = pool.backend(&Target::plain(address, Protocol::Http1));
    for _ in 0..20 {
        let response = Outgoing::own(get("/")).unwrap().send(&backend).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
    let before = seen.load(Ordering::SeqCst);
    let post = Request::post("/").header(header::HOST, "a").body(RequestBody::full("x")).unwrap();
    let mut outgoing = Outgoing::own(post).unwrap();
    let error = outgoing.send(&backend).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Unsafe, "{error}");
    assert!(!outgoing.can_retry());
    assert_eq!(seen.load(Ordering::SeqCst), before + 1, "sent once");
}

#[tokio::test]
async fn connections_closed_while_idle_are_not_noticed_by_anybody() {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                read_head(&mut tcp).await?;
                // Promises to keep the connection, and closes it.
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await
            });
        }
    });
    let backend = pool(PoolConfig::default()).backend(&Target::plain(address, Protocol::Http1));
    for _ in 0..200 {
        // The method that may not be repeated: it succeeds only when the dead connection is seen before it is used.
        let post = Request::post("/").header(header::HOST, "a").body(RequestBody::full("x")).unwrap();
        match Outgoing::own(post).unwrap().send(&backend).await {
            Ok(response) => assert_eq!(text(response).await, "ok"),
            Err(error) => assert_eq!(error.retry(), Retry::Unsafe, "only a real race may fail: {error}"),
        }
        let response = Outgoing::own(get("/")).unwrap().send(&backend).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
}

#[tokio::test]
async fn a_refused_connection_hands_the_request_back() {
    let (gone, address) = listener().await;
    drop(gone);
    let alive = start(
        handler_fn(|r: Request<Incoming>, _| async move {
            Response::new(Full::new(r.into_body().collect().await.unwrap().to_bytes()))
        }),
        ServerConfig::default(),
    )
    .await;
    let pool = pool(PoolConfig::default());
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let post = Request::post("/").header(header::HOST, "a").body(RequestBody::full("payload")).unwrap();
        let mut outgoing = Outgoing::own(post).unwrap();
        let error = outgoing.send(&pool.backend(&Target::plain(address, protocol))).await.unwrap_err();
        assert_eq!(error.retry(), Retry::Safe);
        let other = pool.backend(&Target::plain(alive.address, Protocol::Http1));
        assert_eq!(text(outgoing.send(&other).await.unwrap()).await, "payload");
    }
}

/// Nobody answers where it connects to.
struct Nowhere(Arc<AtomicUsize>);

impl Connector for Nowhere {
    type Io = TcpStream;

    async fn connect(&self, _: &Target) -> Result<Connected<TcpStream>, BoxError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_connection_that_is_not_to_be_had_waits_for_one_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let config = PoolConfig::default();
    let backend = Pool::new(Nowhere(attempts.clone()), config)
        .backend(&Target::plain("192.0.2.1:80".parse().unwrap(), Protocol::Http2));
    let began = tokio::time::Instant::now();
    let asked: Vec<_> = (0..100)
        .map(|_| {
            let backend = backend.clone();
            tokio::spawn(async move {
                let mut outgoing = Outgoing::own(get("/")).unwrap();
                let error = outgoing.send(&backend).await.unwrap_err();
                assert!(outgoing.can_retry());
                error.retry()
            })
        })
        .collect();
    for asked in asked {
        assert_eq!(asked.await.unwrap(), Retry::Safe);
    }
    assert_eq!((attempts.load(Ordering::SeqCst), began.elapsed()), (1, config.connect_timeout));
    // Who comes later tries anew.
    assert!(Outgoing::own(get("/")).unwrap().send(&backend).await.is_err());
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn many_streams_share_few_connections() {
    let app = start(
        handler_fn(|_: Request<Incoming>, _| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Response::new(Full::new(Bytes::from("ok")))
        }),
        ServerConfig::default(),
    )
    .await;
    let pool = pool(PoolConfig { max_streams: 50, ..PoolConfig::default() });
    let backend = pool.backend(&Target::plain(app.address, Protocol::Http2));
    let all: Vec<_> = (0..200)
        .map(|_| {
            let backend = backend.clone();
            tokio::spawn(
                async move { text(Outgoing::own(get("/")).unwrap().send(&backend).await.unwrap()).await },
            )
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap(), "ok");
    }
    assert_eq!(backend.connections().opened, 4);
}

#[tokio::test]
async fn bodies_and_trailers_stream_through_both_protocols() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let app = start(
            handler_fn(|r: Request<Incoming>, _| async move {
                assert!(!r.headers().contains_key("x-hop"), "hop-by-hop");
                assert_eq!(r.headers()["forwarded"], "for=127.0.0.1;host=app.example;proto=http");
                let te = r.headers().get("te").cloned();
                let got = r.into_body().collect().await.unwrap();
                let sum: u64 = got.to_bytes().iter().map(|b| u64::from(*b)).sum();
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", sum.into());
                let frames = [
                    Ok::<_, io::Error>(Frame::data(Bytes::from_static(b"part one, "))),
                    Ok(Frame::data(Bytes::from_static(b"part two"))),
                    Ok(Frame::trailers(trailers)),
                ];
                let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
                response.headers_mut().insert("trailer", "x-sum".parse().unwrap());
                if let Some(te) = te {
                    response.headers_mut().insert("x-te", te);
                }
                response
            }),
            ServerConfig::default(),
        )
        .await;
        let front = proxy(Target::plain(app.address, protocol), Tunnels::default()).await;
        let client = pool(PoolConfig::default()).backend(&Target::plain(front.address, protocol));
        let body = vec![1u8; 3 << 20];
        let request = Request::post("/")
            .header(header::HOST, "app.example")
            .header(header::TE, "trailers")
            .body(RequestBody::full(body))
            .unwrap();
        // The pool's client side does not strip: only what a proxy forwards is.
        let response = client.send(shape(request, protocol)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{protocol:?}");
        assert_eq!(response.headers()["x-te"], "trailers");
        let got = response.into_body().collect().await.unwrap();
        assert_eq!(got.trailers().unwrap()["x-sum"], (3u64 << 20).to_string(), "{protocol:?}");
        assert_eq!(got.to_bytes(), "part one, part two");
    }
}

fn shape(mut request: Request<RequestBody>, protocol: Protocol) -> Request<RequestBody> {
    if protocol == Protocol::Http2 {
        request.headers_mut().remove(header::HOST);
        *request.uri_mut() = "http://app.example/".parse().unwrap();
        *request.version_mut() = http::Version::HTTP_2;
    } else {
        request.headers_mut().insert(header::CONNECTION, "x-hop".parse().unwrap());
        request.headers_mut().insert("x-hop", "1".parse().unwrap());
    }
    request
}

/// Switches protocols and then echoes.
async fn echo_app() -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let head = read_head(&mut tcp).await?.to_ascii_lowercase();
                assert!(
                    head.contains("connection: upgrade") && head.contains("upgrade: websocket"),
                    "{head}"
                );
                tcp.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                )
                .await?;
                let (mut r, mut w) = tcp.split();
                tokio::io::copy(&mut r, &mut w).await
            });
        }
    });
    address
}

async fn open_tunnel(front: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(front).await.unwrap();
    tcp.write_all(
        b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n",
    )
    .await
    .unwrap();
    let head = read_head(&mut tcp).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    tcp
}

async fn echoed(tcp: &mut TcpStream, what: &[u8]) {
    tcp.write_all(what).await.unwrap();
    let mut got = vec![0; what.len()];
    tcp.read_exact(&mut got).await.unwrap();
    assert_eq!(got, what);
}

#[tokio::test]
async fn upgrades_pass_are_counted_and_outlive_the_server() {
    let tunnels = Tunnels::default();
    let front = proxy(Target::plain(echo_app().await, Protocol::Http1), tunnels.clone()).await;
    let mut one = open_tunnel(front.address).await;
    let mut two = open_tunnel(front.address).await;
    echoed(&mut one, b"hello").await;
    echoed(&mut two, b"world!").await;
    assert_eq!(tunnels.open(), 2);

    // The server drains: its connections have become tunnels, which go on.
    front.stop.cancel();
    front.ended.await.unwrap();
    echoed(&mut one, b"still here").await;

    drop(one);
    while tunnels.open() != 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tunnels.bytes(), (15, 15));
    let closed = tunnels.wait_closed();
    tunnels.kill();
    closed.await;
    assert_eq!(two.read(&mut [0; 8]).await.unwrap_or(0), 0, "cut");
}

#[tokio::test]
async fn the_body_waits_for_the_backends_100_continue() {
    let (backend, address) = listener().await;
    let front = proxy(Target::plain(address, Protocol::Http1), Tunnels::default()).await;
    let mut client = TcpStream::connect(front.address).await.unwrap();
    client
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        .await
        .unwrap();
    let (mut app, _) = backend.accept().await.unwrap();
    let head = read_head(&mut app).await.unwrap();
    assert!(head.to_ascii_lowercase().contains("expect: 100-continue"));
    let early = tokio::time::timeout(Duration::from_millis(100), client.read(&mut [0; 1])).await;
    assert!(early.is_err(), "no 100 to the client before the backend's");
    app.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 100"));
    client.write_all(b"hello").await.unwrap();
    let mut body = [0; 5];
    app.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"hello");
    app.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 201"));
}

#[tokio::test]
async fn a_drain_finishes_every_request_and_takes_no_new_connection() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let (begun, finish) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let app = {
            let (begun, finish) = (begun.clone(), finish.clone());
            let handler = handler_fn(move |_: Request<Incoming>, _| {
                let (begun, finish) = (begun.clone(), finish.clone());
                async move {
                    begun.fetch_add(1, Ordering::SeqCst);
                    finish.cancelled().await;
                    Response::new(Full::new(Bytes::from("done")))
                }
            });
            start(handler, ServerConfig::default()).await
        };
        let backend = pool(PoolConfig::default()).backend(&Target::plain(app.address, protocol));
        let all: Vec<_> = (0..20)
            .map(|_| {
                let backend = backend.clone();
                tokio::spawn(async move {
                    text(Outgoing::own(get("/")).unwrap().send(&backend).await.unwrap()).await
                })
            })
            .collect();
        while begun.load(Ordering::SeqCst) < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        app.stop.cancel();
        // The listener goes away while the requests run.
        while TcpStream::connect(app.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!app.ended.is_finished());
        finish.cancel();
        for one in all {
            assert_eq!(one.await.unwrap(), "done", "{protocol:?}");
        }
        tokio::time::timeout(Duration::from_secs(5), app.ended).await.expect("drained").unwrap();
    }
}

/// Two servers, of which one goes while many clients send what may not be repeated: each uses the other once the first one does not take connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_leaves_under_load_loses_no_request() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let count = Arc::new(AtomicUsize::new(0));
        let answering = || {
            let count = count.clone();
            handler_fn(move |r: Request<Incoming>, _| {
                count.fetch_add(1, Ordering::SeqCst);
                async move { Response::new(Full::new(r.into_body().collect().await.unwrap().to_bytes())) }
            })
        };
        let config = ServerConfig { drain_idle: Duration::from_secs(1), ..ServerConfig::default() };
        let (leaving, staying) = (start(answering(), config).await, start(answering(), config).await);
        let addresses = [leaving.address, staying.address];
        let clients: Vec<_> = (0..16)
            .map(|_| {
                let pool = pool(PoolConfig::default());
                let [first, second] =
                    addresses.map(|address| pool.backend(&Target::plain(address, protocol)));
                tokio::spawn(async move {
                    for n in 0..300 {
                        let body = RequestBody::full(format!("request {n}"));
                        let post = Request::post("/").header(header::HOST, "a").body(body).unwrap();
                        let mut outgoing = Outgoing::own(post).unwrap();
                        let answer = match outgoing.send(&first).await {
                            Err(error) if error.retry() == Retry::Safe => outgoing.send(&second).await,
                            answer => answer,
                        };
                        assert_eq!(text(answer.unwrap()).await, format!("request {n}"));
                        // A pause now and then leaves connections unused.
                        if n % 7 == 0 {
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                    }
                })
            })
            .collect();
        while count.load(Ordering::SeqCst) < 1000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        leaving.stop.cancel();
        for client in clients {
            client.await.expect("every request is answered");
        }
        assert_eq!(count.load(Ordering::SeqCst), 16 * 300, "{protocol:?}: each once");
        tokio::time::timeout(Duration::from_secs(10), leaving.ended).await.expect("it leaves").unwrap();
    }
}

#[tokio::test]
async fn a_slow_head_costs_only_its_sender() {
    let config = ServerConfig { header_timeout: Duration::from_millis(200), ..ServerConfig::default() };
    let app = start(
        handler_fn(|_: Request<Incoming>, _| async { Response::new(Full::new(Bytes::from("ok"))) }),
        config,
    )
    .await;
    let mut slow = TcpStream::connect(app.address).await.unwrap();
    let dribble = tokio::spawn(async move {
        let began = std::time::Instant::now();
        for byte in b"GET / HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat_n(&b'x', 10_000)) {
            if slow.write_all(&[*byte]).await.is_err() {
                break;
            }
            if let Ok(Ok(0) | Err(_)) =
                tokio::time::timeout(Duration::from_millis(20), slow.read(&mut [0; 64])).await
            {
                break;
            }
        }
        began.elapsed()
    });
    let backend = pool(PoolConfig::default()).backend(&Target::plain(app.address, Protocol::Http1));
    for _ in 0..50 {
        assert_eq!(text(Outgoing::own(get("/")).unwrap().send(&backend).await.unwrap()).await, "ok");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let lasted = dribble.await.unwrap();
    assert!(lasted < Duration::from_secs(2), "{lasted:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_backend_not_its_neighbours() {
    let sent = Arc::new(AtomicUsize::new(0));
    let app = {
        let sent = sent.clone();
        let handler = handler_fn(move |r: Request<Incoming>, _| {
            let sent = sent.clone();
            let endless = r.uri().path() == "/endless";
            async move {
                let chunks = futures::stream::iter(0..if endless { usize::MAX } else { 1 }).map(move |_| {
                    sent.fetch_add(1 << 14, Ordering::Relaxed);
                    Ok::<_, io::Error>(Frame::data(Bytes::from(vec![0; 1 << 14])))
                });
                Response::new(StreamBody::new(chunks))
            }
        });
        start(handler, ServerConfig::default()).await
    };
    use futures::StreamExt as _;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        sent.store(0, Ordering::SeqCst);
        let front = proxy(Target::plain(app.address, protocol), Tunnels::default()).await;
        let client = pool(PoolConfig::default()).backend(&Target::plain(front.address, protocol));
        let stuck = Outgoing::own(get("/endless")).unwrap().send(&client).await.unwrap();
        let mut last = usize::MAX;
        while sent.load(Ordering::SeqCst) != last {
            last = sent.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(last < 32 << 20, "{protocol:?}: {last} bytes went to a client that reads none");
        for _ in 0..20 {
            let other = Outgoing::own(get("/")).unwrap().send(&client).await.unwrap();
            let got = other.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(got.len(), 1 << 14, "{protocol:?}");
        }
        drop(stuck);
    }
}

#[tokio::test]
async fn idle_connections_are_closed_by_the_pool() {
    let app = start(
        handler_fn(|_: Request<Incoming>, _| async { Response::new(Full::new(Bytes::from("ok"))) }),
        ServerConfig::default(),
    )
    .await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let pool = pool(PoolConfig { idle_timeout: Duration::from_millis(100), ..PoolConfig::default() });
        let backend = pool.backend(&Target::plain(app.address, protocol));
        text(Outgoing::own(get("/")).unwrap().send(&backend).await.unwrap()).await;
        let kept = backend.connections();
        assert_eq!(kept.idle + kept.shared, 1);
        tokio::time::timeout(Duration::from_secs(5), async {
            while {
                let c = backend.connections();
                c.idle + c.shared > 0
            } {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("swept");
    }
}
