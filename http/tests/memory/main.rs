//! What a connection costs that does nothing: every allocation of this process is counted.

#![allow(unsafe_code, reason = "an allocator is unsafe by its nature")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test shall fail it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebb_http::{Body, PlainAcceptor, ServerConfig, handler_fn, serve};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONNECTIONS: usize = 200;

#[tokio::test]
async fn a_connection_at_rest_holds_no_buffers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handler = handler_fn(|_: Request<Incoming>, _| async { Response::new(Body::from("yes")) });
    let config = ServerConfig { header_timeout: Duration::from_millis(400), ..ServerConfig::default() };
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, PlainAcceptor, handler, config, stop.clone()));
    let mut clients = Vec::with_capacity(CONNECTIONS);
    let before = HELD.load(Ordering::Relaxed);
    for _ in 0..CONNECTIONS {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
        let mut answer = [0; 512];
        let n = client.read(&mut answer).await.unwrap();
        assert!(answer[..n].ends_with(b"yes"));
        clients.push(client);
    }
    let each = || HELD.load(Ordering::Relaxed).saturating_sub(before) / CONNECTIONS;
    assert!(each() > 8 << 10, "they have their buffers for a while: {} bytes each", each());
    // Both ends of a connection are here.
    let rest = async {
        while each() > 4 << 10 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let rested = tokio::time::timeout(Duration::from_secs(30), rest).await;
    assert!(rested.is_ok(), "{} bytes each", each());
    for client in &mut clients {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
        let mut answer = [0; 512];
        let n = client.read(&mut answer).await.unwrap();
        assert!(answer[..n].ends_with(b"yes"), "at rest, not gone");
    }
    stop.cancel();
    serving.await.unwrap();
}
