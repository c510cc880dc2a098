//! Requests that are built to be read in two ways, byte by byte over raw sockets, through a proxy to an app that writes down what arrives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ebb_http::{PoolConfig, Protocol, ServerConfig, Target, Tunnels, handler_fn};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Running, pool, proxy, start};

/// What the app saw of each request: its line, host and body.
#[derive(Default, Clone)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

/// A proxy and an app that answers with the number of the request.
pub(crate) async fn stage() -> (Running, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let app = start(
        handler_fn(move |request: Request<Incoming>, _| {
            let log = log.clone();
            async move {
                let line = format!("{} {}", request.method(), request.uri());
                let host = request.headers().get("host").map_or("-", |h| h.to_str().unwrap()).to_owned();
                let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let number = {
                    let mut all = log.0.lock();
                    all.push(format!("{line} {host} {}", String::from_utf8_lossy(&body)));
                    all.len()
                };
                Response::new(Full::new(Bytes::from(format!("<{number}>"))))
            }
        }),
        ServerConfig::default(),
    )
    .await;
    let front = proxy(Target::plain(app.address, Protocol::Http1), Tunnels::default()).await;
    (front, seen)
}

/// Sends `bytes` and reads until the server closes, or is silent for a while.
pub(crate) async fn exchange(at: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    let mut got = Vec::new();
    let mut buf = [0; 4096];
    loop {
        match tokio::time::timeout(Duration::from_millis(700), tcp.read(&mut buf)).await {
            Ok(Ok(0) | Err(_)) => return (String::from_utf8_lossy(&got).into_owned(), true),
            Ok(Ok(n)) => got.extend_from_slice(&buf[..n]),
            Err(_) => return (String::from_utf8_lossy(&got).into_owned(), false),
        }
    }
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect()
}

#[tokio::test]
async fn smuggled_requests_reach_nobody() {
    let (front, seen) = stage().await;
    // Whatever the first part is taken for, the second must never be seen as a request of its own.
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}");
    for attack in [
        post("Content-Length: 6\r\nTransfer-Encoding: chunked", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\nContent-Length: 6", &format!("0\r\n\r\n{hidden}")),
        post("Content-Length: 0\r\nContent-Length: 34", hidden),
        post("Content-Length: 0, 34", hidden),
        post("Transfer-Encoding: xchunked", hidden),
        post("Transfer-Encoding: chunked, identity", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding : chunked", &format!("0\r\n\r\n{hidden}")),
        post("Transfer-Encoding:\x0bchunked", &format!("0\r\n\r\n{hidden}")),
        post("X: y\r\n Transfer-Encoding: chunked", &format!("0\r\n\r\n{hidden}")),
        post("X: y\nTransfer-Encoding: chunked", &format!("0\r\n\r\n{hidden}")),
        post("X: \0", hidden),
        post("Host: b", hidden),
        format!("GET / HTTP/1.1\n\n{hidden}"),
        format!("GET / HTTP/1.1\r\n\r\n{hidden}"),
        format!("GET internal HTTP/1.1\r\nHost: a\r\n\r\n{hidden}"),
        format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
    ] {
        let (answer, closed) = exchange(front.address, attack.as_bytes()).await;
        assert_eq!((statuses(&answer), closed), (vec!["400"], true), "{attack:?}: {answer}");
        assert_eq!(seen.take(), [""; 0], "{attack:?}");
    }
}

#[tokio::test]
async fn a_body_that_is_framed_wrongly_ends_the_connection() {
    let (front, seen) = stage().await;
    for body in [
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloXX\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello",
        "-1\r\nhello",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nX: \0\r\n\r\n",
    ] {
        let attack = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let (answer, closed) = exchange(front.address, attack.as_bytes()).await;
        assert!(closed && !answer.contains("HTTP/1.1 2"), "{body:?}: {answer}");
        assert!(!seen.take().iter().any(|line| line.contains("hidden")), "{body:?}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_one_at_a_time_up_to_the_first_bad_one() {
    let (front, seen) = stage().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let all = get("/1") + post + &get("/3") + "GET /4 HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n" + &get("/5");
    let (answer, closed) = exchange(front.address, all.as_bytes()).await;
    assert_eq!((statuses(&answer), closed), (vec!["200", "200", "200", "400"], true), "{answer}");
    let bodies: Vec<_> = ["<1>", "<2>", "<3>"].iter().map(|n| answer.find(n).unwrap()).collect();
    assert!(bodies.is_sorted());
    assert_eq!(seen.take(), ["GET /1 a ", "POST /2 a abc", "GET /3 a "]);
}

#[tokio::test]
async fn the_host_of_an_absolute_target_wins_and_connect_is_refused() {
    let (front, seen) = stage().await;
    let (answer, _) =
        exchange(front.address, b"GET http://a.example:81/x?y HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    assert_eq!(statuses(&answer), ["200"]);
    assert_eq!(seen.take(), ["GET /x?y a.example:81 "]);
    let (answer, closed) = exchange(
        front.address,
        b"CONNECT db.internal:5432 HTTP/1.1\r\nHost: db.internal:5432\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    assert_eq!((statuses(&answer), closed), (vec!["405"], true), "{answer}");
    let (answer, _) = exchange(front.address, b"GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(statuses(&answer), ["400"], "{answer}");
    assert_eq!(seen.take(), [""; 0]);
}

#[tokio::test]
async fn bytes_after_an_upgrade_that_is_not_granted_are_no_request() {
    let (front, seen) = stage().await;
    let (answer, closed) = exchange(
        front.address,
        b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nGET /2 HTTP/1.1\nHost: a\n\n",
    )
    .await;
    assert_eq!((statuses(&answer), closed), (vec!["200"], true), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    // A wish that comes with a body is not heard; the body arrives.
    let (answer, closed) = exchange(
        front.address,
        b"POST /3 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nhiGET /4 HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    assert_eq!((statuses(&answer), closed), (vec!["200", "200"], false), "{answer}");
    assert_eq!(seen.take(), ["GET /1 a ", "POST /3 a hi", "GET /4 a "]);
}

#[tokio::test]
async fn heads_beyond_the_limits_get_431() {
    let (front, seen) = stage().await;
    let many = "X: 1\r\n".repeat(300);
    let large = format!("X: {}\r\n", "x".repeat(100 << 10));
    for fields in [many, large] {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let (answer, closed) = exchange(front.address, head.as_bytes()).await;
        assert_eq!((statuses(&answer), closed), (vec!["431"], true), "{answer}");
    }
    assert_eq!(seen.take(), [""; 0]);
}

#[tokio::test]
async fn an_http2_request_names_one_host_and_a_path() {
    let (front, seen) = stage().await;
    let client = pool(PoolConfig::default()).backend(&Target::plain(front.address, Protocol::Http2));
    let ask = |uri: &str, host: Option<&str>| {
        let mut request = Request::builder().uri(uri.parse::<Uri>().unwrap()).version(http::Version::HTTP_2);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(ebb_http::RequestBody::empty()).unwrap();
        let client = client.clone();
        async move { client.send(request).await.unwrap().status() }
    };
    assert_eq!(ask("http://a/x", Some("A")).await, StatusCode::OK);
    assert_eq!(ask("http://a/x", Some("b")).await, StatusCode::BAD_REQUEST);
    assert_eq!(ask("http://u@a/x", None).await, StatusCode::BAD_REQUEST);
    assert_eq!(seen.take(), ["GET /x a "]);
}
