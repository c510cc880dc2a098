//! The listening side: accept, limit, serve, drain.
//!
//! HTTP/1.1 and HTTP/2 by ALPN under TLS, by the client's first bytes without. A connection that dawdles with a
//! request's head, or is unused for long, is closed by one coarse timer for each connection, so that a request costs
//! none; so is one whose client takes nothing of an answer that is there. Memory is bounded by the limits of [`ServerConfig`]; where `max_connections`
//! are open, an idle one makes room, and while all are busy the kernel's queue holds clients. What could be read in two ways is refused ([`strict`]).

mod accept;
mod crowd;
mod drive;
pub mod strict;
mod watch;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::accept::{Acceptor, Handshake, PlainAcceptor};
use self::crowd::Crowd;
pub(crate) use self::watch::Busy;
use crate::connect::Protocol;
use crate::error::BoxError;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub remote: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// Whether the connection is encrypted.
    pub secure: bool,
    /// Its proven identity, in the acceptor's notation (ebb-mesh: a SPIFFE ID).
    pub identity: Option<Arc<str>>,
    /// The host it asked for in the TLS handshake (SNI).
    pub server_name: Option<Arc<str>>,
    /// What it speaks.
    pub protocol: Protocol,
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// The body of its answers.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static;

    /// Answers one request. Dropped when the client goes away.
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Arc<Peer>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + 'static;
}

/// A [`Handler`] out of a function.
pub fn handler_fn<F, Fut, B>(f: F) -> Arc<HandlerFn<F>>
where
    F: Fn(Request<Incoming>, Arc<Peer>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
{
    Arc::new(HandlerFn(f))
}

/// See [`handler_fn`].
#[derive(Debug)]
pub struct HandlerFn<F>(F);

impl<F, Fut, B> Handler for HandlerFn<F>
where
    F: Fn(Request<Incoming>, Arc<Peer>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Body = B;

    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Arc<Peer>,
    ) -> impl Future<Output = Response<B>> + Send + 'static {
        (self.0)(request, peer)
    }
}

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// Connections at a time.
    pub max_connections: usize,
    /// A handshake, and the head of a request, must be complete by then.
    pub header_timeout: Duration,
    /// A connection without requests is closed after so long. Keep it above every client pool's own limit.
    pub idle_timeout: Duration,
    /// How long a drain leaves unused HTTP/1.1 connections open. Closing one at the moment its client uses it again loses a request that may not be
    /// repeated; meanwhile each answer says `Connection: close`, so that nobody who is active is left. HTTP/2 needs none: its GOAWAY says which
    /// requests count.
    pub drain_idle: Duration,
    /// A connection whose client takes nothing of an answer for so long is cut.
    pub stall_timeout: Duration,
    /// The largest request head of HTTP/1.1, and read buffer, in bytes. At least 8192.
    pub h1_buffer: usize,
    /// The largest header list of HTTP/2, in bytes.
    pub h2_header_list: u32,
    /// Requests at a time on one HTTP/2 connection.
    pub h2_streams: u32,
    /// HTTP/2 flow control: for one stream, and for all of a connection (a multiple of the first).
    pub h2_windows: (u32, u32),
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 100_000,
            header_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(300),
            drain_idle: Duration::ZERO,
            stall_timeout: Duration::from_secs(60),
            h1_buffer: 64 << 10,
            h2_header_list: 64 << 10,
            h2_streams: 250,
            h2_windows: (256 << 10, 2 << 20),
        }
    }
}

/// Connections that may wait to be accepted: a burst must not overflow the kernel's queue, or whoever comes late waits a second and more for
/// the kernel's next attempt.
const QUEUE: u32 = 4096;

/// How soon another idle connection is asked to go when the first one took its time.
const AGAIN: Duration = Duration::from_millis(50);

/// Listens at `address`.
///
/// # Errors
/// What the system says. Must run in a tokio runtime.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// Takes over a listener that somebody else has bound, whose queue may be short.
///
/// # Errors
/// What the system says. Must run in a tokio runtime.
pub fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    // A second call only changes the length.
    socket2::SockRef::from(&listener).listen(QUEUE.cast_signed())?;
    TcpListener::from_std(listener)
}

/// Serves `listener` until `shutdown`, then drains: no new connection, each request under way is finished, connections
/// close. Returns when all are closed; the caller puts a time limit on that by dropping the future, which cuts them.
pub async fn serve<A, H>(
    listener: TcpListener,
    acceptor: A,
    handler: Arc<H>,
    config: ServerConfig,
    shutdown: CancellationToken,
) where
    A: Acceptor,
    H: Handler,
{
    let acceptor = Arc::new(acceptor);
    let permits = Arc::new(Semaphore::new(config.max_connections));
    let crowd = Arc::new(Crowd::default());
    let tasks = TaskTracker::new();
    // Cancelled when this future is dropped, so that no connection outlives its server.
    let cut = CancellationToken::new();
    let _cut_on_drop = cut.clone().drop_guard();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept_one(&listener, &permits, &crowd) => accepted,
        };
        let (permit, tcp, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if !accept::is_connection_error(&error) {
                    // Out of descriptors or memory: wait for some to come free instead of spinning.
                    tracing::warn!(%error, "cannot accept connections; is the limit on open files too low?");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                continue;
            }
        };
        let (acceptor, handler) = (acceptor.clone(), handler.clone());
        let (shutdown, cut, crowd) = (shutdown.clone(), cut.clone(), crowd.clone());
        tasks.spawn(async move {
            let _permit = permit;
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = drive::connection(tcp, remote, &*acceptor, handler, config, &crowd, shutdown) => {}
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

async fn accept_one(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    crowd: &Crowd,
) -> io::Result<(tokio::sync::OwnedSemaphorePermit, tokio::net::TcpStream, SocketAddr)> {
    let (tcp, remote) = listener.accept().await?;
    let permit = loop {
        let waiting = permits.clone().acquire_owned();
        if permits.available_permits() == 0 {
            crowd.make_room();
            if let Ok(permit) = tokio::time::timeout(AGAIN, waiting).await {
                break permit;
            }
        } else {
            break waiting.await;
        }
    }
    .map_err(io::Error::other)?;
    tcp.set_nodelay(true)?;
    Ok((permit, tcp, remote))
}
