//! Peers that are slow, greedy or hostile cost only themselves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ebb_http::{Outgoing, PoolConfig, Protocol, ServerConfig, Target, handler_fn};
use http::{Request, Response};
use http_body_util::{Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Running, get, pool, read_head, start, text};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;
/// `GET http://a/` in HPACK.
const BLOCK: &[u8] = &[0x82, 0x84, 0x86, 0x41, 1, b'a'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

async fn http2(at: std::net::SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    tcp
}

/// Reads frames until GOAWAY or the end; the error of the former.
async fn goaway(tcp: &mut (impl AsyncReadExt + Unpin)) -> Option<u32> {
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tcp.read_exact(&mut payload).await.ok()?;
        if head[3] == GOAWAY {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
}

/// Counts requests; answers those that may, never the others.
async fn counting(answers: bool) -> (Running, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let handler = {
        let count = count.clone();
        handler_fn(move |r: Request<Incoming>, _| {
            count.fetch_add(1, Ordering::SeqCst);
            let waits = !answers && r.uri().path() == "/";
            async move {
                if waits {
                    std::future::pending::<()>().await;
                }
                Response::new(Full::new(Bytes::from("ok")))
            }
        })
    };
    (start(handler, ServerConfig::default()).await, count)
}

async fn still_serves(server: &Running) {
    let client = pool(PoolConfig::default()).backend(&Target::plain(server.address, Protocol::Http2));
    let answer = Outgoing::own(get("/other")).unwrap().send(&client).await.unwrap();
    assert_eq!(text(answer).await, "ok");
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let (server, count) = counting(false).await;
    let mut tcp = http2(server.address).await;
    let mut burst = Vec::new();
    for n in 0..10_000 {
        burst.extend(frame(HEADERS, 5, 2 * n + 1, BLOCK));
        burst.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    let _ = tcp.write_all(&burst).await;
    assert_eq!(goaway(&mut tcp).await, Some(ENHANCE_YOUR_CALM));
    assert!(count.load(Ordering::SeqCst) < 1000, "{}", count.load(Ordering::SeqCst));
    still_serves(&server).await;
}

#[tokio::test]
async fn requests_that_are_given_up_one_by_one_end_the_connection_too() {
    let (server, count) = counting(false).await;
    let mut tcp = http2(server.address).await;
    let (mut read, mut write) = tcp.split();
    let send = async {
        for n in 0..5_000 {
            let before = count.load(Ordering::SeqCst);
            if write.write_all(&frame(HEADERS, 5, 2 * n + 1, BLOCK)).await.is_err() {
                return;
            }
            // Each one is accepted before it is taken back, so that it made work.
            for _ in 0..200 {
                if count.load(Ordering::SeqCst) > before {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if write.write_all(&frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes())).await.is_err() {
                return;
            }
        }
    };
    let end = goaway(&mut read);
    tokio::select! {
        () = send => {}
        _ = end => {}
    }
    let made = count.load(Ordering::SeqCst);
    assert!((500..700).contains(&made), "{made}");
    still_serves(&server).await;
}

#[tokio::test]
async fn a_head_without_end_in_http2_ends_the_connection() {
    let (server, count) = counting(true).await;
    let mut tcp = http2(server.address).await;
    let (mut read, mut write) = tcp.split();
    let send = async {
        let mut sent = 0;
        if write.write_all(&frame(HEADERS, 1, 1, BLOCK)).await.is_err() {
            return sent;
        }
        // Empty ones cost nobody anything but time; small ones fill the list of fields.
        let more = frame(CONTINUATION, 0, 1, &[]).repeat(1000);
        while sent < 64 << 20 && write.write_all(&more).await.is_ok() {
            sent += more.len();
        }
        sent
    };
    let sent = tokio::select! {
        sent = send => sent,
        code = goaway(&mut read) => {
            assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
            0
        }
    };
    assert!(sent < 64 << 20, "it reads on");
    assert_eq!(count.load(Ordering::SeqCst), 0);
    still_serves(&server).await;
}

#[tokio::test]
async fn pings_and_settings_without_end_are_not_piled_up() {
    for flood in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])] {
        let (server, _) = counting(true).await;
        let mut tcp = http2(server.address).await;
        let many = flood.repeat(1000);
        let mut sent = 0;
        // Nobody reads the answers: the server has to stop reading, or would keep them all.
        while sent < 256 << 20 {
            match tokio::time::timeout(Duration::from_secs(2), tcp.write_all(&many)).await {
                Ok(Ok(())) => sent += many.len(),
                _ => break,
            }
        }
        assert!(sent < 256 << 20, "{sent} bytes of control frames were taken");
        still_serves(&server).await;
    }
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_the_others_answered() {
    let server = start(
        handler_fn(|_: Request<Incoming>, _| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Response::new(Full::new(Bytes::from("ok")))
        }),
        ServerConfig { h2_streams: 10, ..ServerConfig::default() },
    )
    .await;
    let mut tcp = http2(server.address).await;
    let all: Vec<u8> = (0..30).flat_map(|n| frame(HEADERS, 5, 2 * n + 1, BLOCK)).collect();
    tcp.write_all(&all).await.unwrap();
    let (mut answered, mut refused) = (0, 0);
    while answered < 10 || refused < 20 {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tcp.read_exact(&mut payload).await.unwrap();
        match head[3] {
            DATA => answered += 1,
            // REFUSED_STREAM: the client may repeat it.
            RST_STREAM => {
                assert_eq!(payload, 7u32.to_be_bytes());
                refused += 1;
            }
            _ => {}
        }
    }
}

/// Tells when it is dropped.
struct Told(tokio::sync::mpsc::UnboundedSender<&'static str>, &'static str);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_and_one_that_waits_for_a_slow_app_is_not() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let handler = handler_fn(move |r: Request<Incoming>, _| {
        let tell = tell.clone();
        async move {
            let endless = r.uri().path() == "/endless";
            let guard = Told(tell, if endless { "endless" } else { "slow" });
            let parts = futures::stream::unfold((guard, 0), move |(guard, n)| async move {
                if endless {
                    return Some((
                        Ok::<_, io::Error>(Frame::data(Bytes::from(vec![0; 1 << 14]))),
                        (guard, n),
                    ));
                }
                tokio::time::sleep(Duration::from_millis(1500)).await;
                (n < 2).then(|| (Ok(Frame::data(Bytes::from("x"))), (guard, n + 1)))
            });
            Response::new(StreamBody::new(Box::pin(parts)))
        }
    });
    let config = ServerConfig {
        header_timeout: Duration::from_millis(200),
        stall_timeout: Duration::from_millis(500),
        ..ServerConfig::default()
    };
    let server = start(handler, config).await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let slow = pool(PoolConfig::default()).backend(&Target::plain(server.address, protocol));
        let waits = tokio::spawn(async move {
            text(Outgoing::own(get("/slow")).unwrap().send(&slow).await.unwrap()).await
        });
        let greedy = pool(PoolConfig::default()).backend(&Target::plain(server.address, protocol));
        let untaken = Outgoing::own(get("/endless")).unwrap().send(&greedy).await.unwrap();
        let first = tokio::time::timeout(Duration::from_secs(10), told.recv()).await.expect("somebody ends");
        assert_eq!(first, Some("endless"), "{protocol:?}");
        assert_eq!(waits.await.unwrap(), "xx");
        assert_eq!(told.recv().await, Some("slow"));
        drop(untaken);
    }
}

#[tokio::test]
async fn where_all_places_are_taken_an_idle_connection_makes_room() {
    let server = start(
        handler_fn(|r: Request<Incoming>, _| async move {
            if r.uri().path() == "/hold" {
                std::future::pending::<()>().await;
            }
            Response::new(Full::new(Bytes::from("ok")))
        }),
        ServerConfig { max_connections: 5, ..ServerConfig::default() },
    )
    .await;
    let ask = async |path: &str| {
        let mut tcp = TcpStream::connect(server.address).await.unwrap();
        tcp.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        tcp
    };
    let mut busy = Vec::new();
    for _ in 0..2 {
        busy.push(ask("/hold").await);
    }
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut tcp = ask("/").await;
        let answer = tokio::time::timeout(Duration::from_secs(5), read_head(&mut tcp)).await;
        assert!(answer.expect("room").unwrap().starts_with("HTTP/1.1 200"));
        idle.push(tcp);
    }
    // The oldest idle one was closed, none that is in use.
    assert_eq!(idle[0].read(&mut [0; 64]).await.unwrap_or(0), 0);
    for tcp in &mut busy {
        assert!(tokio::time::timeout(Duration::from_millis(50), tcp.read(&mut [0; 1])).await.is_err());
    }
}
