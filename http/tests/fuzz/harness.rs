//! What must hold for any input. Each function is a fuzz target (`fuzz/`), and a test replays the corpus through it and changes it at random.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ebb_http::log::{Entry, Revision, Template};
use ebb_http::server::strict::Scanner;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: usize = 16 << 10;

/// HTTP/1.1 from its first byte.
///
/// - However the bytes are cut, the verdict is the same.
/// - Of what is let through, hyper sees no request that the scanner did not see: there is no second reading.
/// - Where all was let through and whole, hyper sees all of them, and bodies as long, unless one closes the connection or is bad in a way that is hyper's business.
pub(crate) fn heads(input: &[u8]) {
    let mut whole = Scanner::new(LIMIT);
    let verdict = whole.feed(input);
    let mut bytewise = Scanner::new(LIMIT);
    let refused = input.chunks(1).enumerate().find_map(|(at, byte)| Some((at, bytewise.feed(byte).err()?)));
    match (verdict, refused) {
        (Ok(()), None) => assert_eq!(whole.requests(), bytewise.requests()),
        (Err(one), Some((at, other))) => {
            assert_eq!((one.why, one.in_head), (other.why, other.in_head));
            // A line that is too long is noticed when it is, which depends on the cuts.
            assert!(at <= one.at, "{at} and {one:?}");
        }
        other => panic!("it depends on how the bytes are cut: {other:?}"),
    }
    if whole.is_opaque() {
        return;
    }
    let mut passed = input[..verdict.map_or_else(|refused| refused.at, |()| input.len())].to_vec();
    if verdict.is_err_and(|refused| refused.in_head) {
        passed.push(0);
    }
    let (seen, bytes, bad) = served(&passed);
    assert!(seen <= whole.requests(), "hyper saw {seen} requests, the scanner {}", whole.requests());
    let text = String::from_utf8_lossy(input).to_ascii_lowercase();
    let stays = !["close", "http/1.0", "expect", "upgrade"].iter().any(|word| text.contains(word));
    if verdict.is_ok() && whole.between_requests() && stays && !bad {
        assert_eq!((seen, bytes), (whole.requests(), whole.body_bytes()));
    }
}

/// A chunked body and what follows.
pub(crate) fn chunked(input: &[u8]) {
    heads(&[b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", input].concat());
}

/// A template of the request log: what is accepted writes one line, whatever the request says.
pub(crate) fn templates(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(template) = Template::parse(&text) else { return };
    let mut headers = HeaderMap::new();
    if let Ok(value) = http::HeaderValue::from_bytes(b"a\t\"b\"\xff") {
        headers.insert("x-a", value);
    }
    let entry = Entry {
        method: "GET",
        host: "a\nb",
        uri: "/\n?",
        proto: "HTTP/1.1",
        remote: "1.1.1.1:1",
        headers: &headers,
        code: 200,
        size: 1,
        latency: Duration::ZERO,
        revision: &Revision::default(),
    };
    let mut line = String::new();
    template.write(&mut line, &entry);
    if !text.contains(['\n', '\r']) {
        assert!(!line.contains(['\n', '\r']), "{line:?}");
    }
}

/// How many requests hyper hands on, with how many bytes of bodies, and whether it refused something itself.
fn served(input: &[u8]) -> (u64, u64, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (count, bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(input.len() + 1);
        client.write_all(input).await.expect("there is room");
        client.shutdown().await.expect("open");
        let (counting, adding) = (count.clone(), bytes.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (counting, adding) = (counting.clone(), adding.clone());
            async move {
                counting.fetch_add(1, Ordering::Relaxed);
                if let Ok(body) = request.into_body().collect().await {
                    adding.fetch_add(body.to_bytes().len() as u64, Ordering::Relaxed);
                }
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .max_buf_size(LIMIT)
            .half_close(true)
            .serve_connection(TokioIo::new(server), service);
        // Nobody reads the answers but this.
        let mut answers = Vec::new();
        let _ = futures::join!(connection, client.read_to_end(&mut answers));
        let bad = String::from_utf8_lossy(&answers).contains("HTTP/1.1 4");
        (count.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed), bad)
    })
}
