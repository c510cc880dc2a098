//! What each protocol promises, kept through a proxy.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ebb_http::{Outgoing, PoolConfig, Protocol, ServerConfig, Target, Tunnels, handler_fn};
use futures::{StreamExt, TryStreamExt, future};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::hostile::exchange;
use crate::support::{Running, get, listener, pool, proxy, read_head, start};

/// An app that sends back what it gets, frame by frame, and ends with trailers.
async fn echo() -> Running {
    let handler = handler_fn(|r: Request<Incoming>, _| async move {
        let (parts, body) = r.into_parts();
        let frames = BodyStream::new(body).map_ok(|frame| match frame.into_trailers() {
            Ok(trailers) => Frame::trailers(trailers),
            Err(frame) => frame,
        });
        let mut end = HeaderMap::new();
        end.insert("grpc-status", "0".parse().unwrap());
        end.insert("grpc-message", "fine".parse().unwrap());
        let end = futures::stream::once(future::ready(Ok(Frame::trailers(end))));
        let had_trailers = parts.headers.contains_key("trailer");
        let frames = if had_trailers { frames.boxed() } else { frames.chain(end).boxed() };
        let mut response = Response::new(StreamBody::new(frames));
        for name in ["grpc-timeout", "content-type", "trailer"] {
            if let Some(value) = parts.headers.get(name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        if let Some(te) = parts.headers.get("te") {
            response.headers_mut().insert("x-te", te.clone());
        }
        response
    });
    start(handler, ServerConfig::default()).await
}

/// A sequence of raw answers: the app reads a head, sends the next one, and keeps the connection.
async fn scripted(answers: &'static [&'static str]) -> SocketAddr {
    let (listener, at) = listener().await;
    tokio::spawn(async move {
        let mut answers = answers.iter().cycle();
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            while read_head(&mut tcp).await.is_ok() {
                tcp.write_all(answers.next().unwrap().as_bytes()).await.unwrap();
            }
        }
    });
    at
}

fn message(text: &str) -> Bytes {
    [&[0u8][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat().into()
}

#[tokio::test]
async fn a_grpc_stream_goes_both_ways_and_ends_with_its_status() {
    let app = echo().await;
    let front = proxy(Target::plain(app.address, Protocol::Http2), Tunnels::default()).await;
    let (client, connection) =
        h2::client::handshake(TcpStream::connect(front.address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://app.example/pkg.Service/Method")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "5S")
        .body(())
        .unwrap();
    let (answer, mut out) = client.ready().await.unwrap().send_request(request, false).unwrap();
    out.send_data(message("one"), false).unwrap();
    // The head is there before the request has ended, and so is each answer.
    let (parts, mut body) = answer.await.unwrap().into_parts();
    assert_eq!(parts.headers["grpc-timeout"], "5S", "the deadline is the app's to keep");
    assert_eq!(
        (&parts.headers["x-te"], &parts.headers["content-type"]),
        (&"trailers".parse().unwrap(), &"application/grpc".parse().unwrap())
    );
    assert_eq!(body.data().await.unwrap().unwrap(), message("one"));
    for text in ["two", "three"] {
        out.send_data(message(text), false).unwrap();
        assert_eq!(body.data().await.unwrap().unwrap(), message(text));
    }
    out.send_data(message("last"), true).unwrap();
    assert_eq!(body.data().await.unwrap().unwrap(), message("last"));
    assert!(body.data().await.is_none());
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"0".parse().unwrap(), &"fine".parse().unwrap())
    );
}

#[tokio::test]
async fn a_grpc_error_without_messages_and_a_cancelled_call() {
    let (gone, mut cancelled) = tokio::sync::mpsc::unbounded_channel();
    struct OnDrop(tokio::sync::mpsc::UnboundedSender<()>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let handler = handler_fn(move |r: Request<Incoming>, _| {
        let gone = gone.clone();
        async move {
            if r.uri().path() == "/wait" {
                let _guard = OnDrop(gone);
                std::future::pending::<()>().await;
            }
            let mut response = Response::new(Full::new(Bytes::new()));
            response.headers_mut().insert("grpc-status", "5".parse().unwrap());
            response
        }
    });
    let app = start(handler, ServerConfig::default()).await;
    let front = proxy(Target::plain(app.address, Protocol::Http2), Tunnels::default()).await;
    let client = pool(PoolConfig::default()).backend(&Target::plain(front.address, Protocol::Http2));
    let ask = |path: &str| {
        Request::post(path).header(header::HOST, "a").body(ebb_http::RequestBody::full("x")).unwrap()
    };
    let answer = Outgoing::own(ask("/error")).unwrap().send(&client).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "5");
    let mut outgoing = Outgoing::own(ask("/wait")).unwrap();
    let call = tokio::time::timeout(Duration::from_millis(200), outgoing.send(&client)).await;
    assert!(call.is_err(), "the client gives up");
    tokio::time::timeout(Duration::from_secs(5), cancelled.recv()).await.expect("the app is told at once");
}

#[tokio::test]
async fn request_trailers_pass_from_either_protocol_to_either() {
    let app = echo().await;
    for inner in [Protocol::Http1, Protocol::Http2] {
        let front = proxy(Target::plain(app.address, inner), Tunnels::default()).await;
        let (answer, _) = exchange(
            front.address,
            b"POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await;
        assert!(answer.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{inner:?}: {answer}");

        let tcp = TcpStream::connect(front.address).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
        tokio::spawn(connection);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from("hi"))), Ok(Frame::trailers(trailers))];
        let request = Request::post("http://a/")
            .header("te", "trailers")
            .header("trailer", "x-sum")
            .body(StreamBody::new(futures::stream::iter(frames)))
            .unwrap();
        let got = client.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(got.trailers().unwrap()["x-sum"], "7", "{inner:?}");
        assert_eq!(got.to_bytes(), "hi");
    }
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connections_in_step() {
    let at = scripted(&[
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\netag: \"x\"\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nend",
    ])
    .await;
    let front = proxy(Target::plain(at, Protocol::Http1), Tunnels::default()).await;
    let ask = |method: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
    let all = ask("DELETE") + &ask("GET") + &ask("HEAD") + &ask("GET");
    let (answer, _) = exchange(front.address, all.as_bytes()).await;
    let lower = answer.to_ascii_lowercase();
    let heads: Vec<_> = lower.split_inclusive("\r\n\r\n").collect();
    assert_eq!(heads.len(), 5, "{answer}");
    assert!(heads[0].contains(" 204 ") && !heads[0].contains("content-length"), "{answer}");
    assert!(heads[1].contains(" 304 ") && heads[1].contains("etag"), "{answer}");
    assert!(heads[2].contains(" 200 ") && heads[2].contains("content-length: 100"), "{answer}");
    // Hints end at the first proxy, the answer does not.
    assert!(heads[3].contains(" 200 ") && heads[4] == "end", "{answer}");
}

#[tokio::test]
async fn events_are_passed_on_as_they_come() {
    let (go, mut going) = tokio::sync::mpsc::unbounded_channel::<()>();
    let (listener, at) = listener().await;
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_head(&mut tcp).await.unwrap();
        tcp.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await
        .unwrap();
        while going.recv().await.is_some() {
            tcp.write_all(b"9\r\ndata: 1\n\n\r\n").await.unwrap();
        }
        tcp.write_all(b"0\r\n\r\n").await.unwrap();
    });
    let front = proxy(Target::plain(at, Protocol::Http1), Tunnels::default()).await;
    let client = pool(PoolConfig::default()).backend(&Target::plain(front.address, Protocol::Http1));
    let mut answer = Outgoing::own(get("/")).unwrap().send(&client).await.unwrap();
    for _ in 0..20 {
        go.send(()).unwrap();
        let event = tokio::time::timeout(Duration::from_secs(5), answer.body_mut().frame()).await;
        assert_eq!(event.expect("at once").unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    }
    drop(go);
    assert!(answer.body_mut().frame().await.is_none());
}

#[tokio::test]
async fn an_answer_may_begin_before_its_request_has_ended() {
    let app = echo().await;
    let front = proxy(Target::plain(app.address, Protocol::Http1), Tunnels::default()).await;
    let mut tcp = TcpStream::connect(front.address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    for n in 0..10 {
        tcp.write_all(format!("2\r\nn{n}\r\n").as_bytes()).await.unwrap();
        let want = format!("n{n}");
        tokio::time::timeout(Duration::from_secs(5), async {
            while !String::from_utf8_lossy(&got).contains(&want) {
                assert!(tcp.read_buf(&mut got).await.unwrap() > 0);
            }
        })
        .await
        .expect("both ways at a time");
    }
    tcp.write_all(b"0\r\n\r\n").await.unwrap();
    while !got.ends_with(b"0\r\n\r\n") {
        assert!(tcp.read_buf(&mut got).await.unwrap() > 0);
    }
}

#[tokio::test]
async fn an_expectation_that_is_not_met_and_an_early_answer_confuse_nobody() {
    let (listener, at) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut first = true;
                while let Ok(head) = read_head(&mut tcp).await {
                    let answer: &[u8] = match (first, head.starts_with("POST")) {
                        (true, true) => b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n",
                        (true, false) => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
                        (false, _) => b"HTTP/1.1 500 Used Again\r\ncontent-length: 0\r\n\r\n",
                    };
                    first = false;
                    tcp.write_all(answer).await.unwrap();
                }
            });
        }
    });
    let front = proxy(Target::plain(at, Protocol::Http1), Tunnels::default()).await;
    let mut tcp = TcpStream::connect(front.address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 34\r\n\r\n")
        .await
        .unwrap();
    assert!(read_head(&mut tcp).await.unwrap().starts_with("HTTP/1.1 417"));
    // The body never came: what comes now on this connection is not a request, and the app's connection is not used again.
    let _ = tcp.write_all(b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_millis(500), tcp.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    let (answer, _) = exchange(front.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
}

#[tokio::test]
async fn a_body_is_not_lost_because_its_method_seldom_has_one() {
    let app = echo().await;
    for inner in [Protocol::Http1, Protocol::Http2] {
        let front = proxy(Target::plain(app.address, inner), Tunnels::default()).await;
        for framing in
            ["Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "Content-Length: 5\r\n\r\nhello"]
        {
            let (answer, _) =
                exchange(front.address, format!("GET / HTTP/1.1\r\nHost: a\r\n{framing}").as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello"), "{inner:?}: {answer}");
        }
    }
}

/// Switches to the protocol it is asked for, and then echoes.
async fn switching_app() -> SocketAddr {
    let (listener, at) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let head = read_head(&mut tcp).await.unwrap().to_ascii_lowercase();
                if !head.contains("upgrade: websocket") || head.starts_with("get /plain") {
                    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
                    return;
                }
                assert!(
                    head.starts_with("get /ws?x http/1.1") && head.contains("sec-websocket-version: 13"),
                    "{head}"
                );
                let key = head.lines().find_map(|l| l.strip_prefix("sec-websocket-key: ")).unwrap().trim();
                assert!(key.len() == 24 && key.ends_with("=="), "{key}");
                tcp.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\nsec-websocket-protocol: chat\r\n\r\n").await.unwrap();
                let (mut r, mut w) = tcp.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
            });
        }
    });
    at
}

#[tokio::test]
async fn a_web_socket_of_http2_becomes_one_of_http1() {
    let tunnels = Tunnels::default();
    let front = proxy(Target::plain(switching_app().await, Protocol::Http1), tunnels.clone()).await;
    let (client, mut connection) =
        h2::client::handshake(TcpStream::connect(front.address).await.unwrap()).await.unwrap();
    // The server's settings say whether it may be asked.
    let mut client = client.ready().await.unwrap();
    while !client.is_extended_connect_protocol_enabled() {
        let _ = tokio::time::timeout(Duration::from_millis(10), &mut connection).await;
    }
    tokio::spawn(connection);
    let ask = |path: &str| {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://a{path}"))
            .header("sec-websocket-version", "13")
            .body(())
            .unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        request
    };
    let (answer, mut out) = client.send_request(ask("/ws?x"), false).unwrap();
    let (parts, mut body) = answer.await.unwrap().into_parts();
    assert_eq!(parts.status, StatusCode::OK);
    assert_eq!(parts.headers["sec-websocket-protocol"], "chat");
    assert!(!parts.headers.contains_key("upgrade") && !parts.headers.contains_key("sec-websocket-accept"));
    for word in ["hello", "world"] {
        out.send_data(Bytes::from(word), false).unwrap();
        assert_eq!(body.data().await.unwrap().unwrap(), word);
    }
    assert_eq!(tunnels.open(), 1);
    // An app that does not switch must not look like an open web socket.
    let (answer, _out) = client.ready().await.unwrap().send_request(ask("/plain"), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::BAD_GATEWAY);
    out.send_data(Bytes::new(), true).unwrap();
    assert!(body.data().await.is_none_or(|end| end.unwrap().is_empty()));
    tunnels.wait_closed().await;
}

fn resident() -> usize {
    let pages: usize =
        std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test]
async fn a_body_of_a_gibibyte_passes_both_ways_in_little_memory() {
    const CHUNK: usize = 64 << 10;
    const CHUNKS: usize = 1 << 14;
    let app = echo().await;
    for (outer, inner) in [(Protocol::Http1, Protocol::Http1), (Protocol::Http2, Protocol::Http2)] {
        let front = proxy(Target::plain(app.address, inner), Tunnels::default()).await;
        let chunk = Bytes::from(vec![7u8; CHUNK]);
        // A quarter for HTTP/2, which takes longer without optimisation.
        let chunks = if outer == Protocol::Http1 { CHUNKS } else { CHUNKS / 4 };
        let frames =
            futures::stream::iter((0..chunks).map(move |_| Ok::<_, Infallible>(Frame::data(chunk.clone()))));
        let request = Request::post("http://a/").header("host", "a").body(StreamBody::new(frames)).unwrap();
        let io = TokioIo::new(TcpStream::connect(front.address).await.unwrap());
        let answer = if outer == Protocol::Http1 {
            let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            client.send_request(request).await.unwrap()
        } else {
            let (mut client, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            client.send_request(request).await.unwrap()
        };
        let (before, mut most, mut got) = (resident(), 0, 0);
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.unwrap().into_data() {
                got += data.len();
            }
            if got % (16 << 20) < CHUNK {
                most = most.max(resident());
            }
        }
        assert_eq!(got, CHUNK * chunks, "{outer:?}");
        let grown = most.saturating_sub(before);
        assert!(grown < 128 << 20, "{outer:?}: {grown} bytes more");
    }
}

#[tokio::test]
async fn an_app_that_breaks_off_is_a_broken_answer_not_a_short_one() {
    let (listener, at) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let head = read_head(&mut tcp).await.unwrap();
            let answer: &[u8] = if head.starts_with("GET /sized") {
                b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome"
            } else {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n"
            };
            tcp.write_all(answer).await.unwrap();
        }
    });
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let front = proxy(Target::plain(at, Protocol::Http1), Tunnels::default()).await;
        let client = pool(PoolConfig::default()).backend(&Target::plain(front.address, protocol));
        for path in ["/sized", "/chunked"] {
            let answer = Outgoing::own(get(path)).unwrap().send(&client).await.unwrap();
            assert!(answer.into_body().collect().await.is_err(), "{protocol:?} {path}");
        }
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_served_in_its_own_way() {
    let app = echo().await;
    let front = proxy(Target::plain(app.address, Protocol::Http1), Tunnels::default()).await;
    let (answer, closed) =
        exchange(front.address, b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(closed && answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
    let (answer, _) = exchange(front.address, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 400") && answer.contains("names no host"), "{answer}");
}
