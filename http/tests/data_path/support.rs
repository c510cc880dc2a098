//! Servers, a proxy and a client on loopback.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ebb_http::forward::{Forwarded, error_response};
use ebb_http::{
    Body, Handler, Outgoing, Peer, PlainAcceptor, PlainConnector, Pool, PoolConfig, RequestBody,
    ServerConfig, Target, Tunnels, Via, handler_fn, serve,
};
use http::{Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A server whose end is in the test's hands.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) ended: tokio::task::JoinHandle<()>,
}

pub(crate) async fn start<H: Handler>(handler: Arc<H>, config: ServerConfig) -> Running {
    let (listener, address) = listener().await;
    let stop = CancellationToken::new();
    let ended = tokio::spawn(serve(listener, PlainAcceptor, handler, config, stop.clone()));
    Running { address, stop, ended }
}

pub(crate) fn pool(config: PoolConfig) -> Pool {
    Pool::new(PlainConnector, config)
}

/// A proxy in front of `target`.
pub(crate) async fn proxy(target: Target, tunnels: Tunnels) -> Running {
    let pool = pool(PoolConfig::default());
    let backend = pool.backend(&target);
    let handler = handler_fn(move |request: Request<Incoming>, peer: Arc<Peer>| {
        let (backend, tunnels) = (backend.clone(), tunnels.clone());
        async move {
            let via = Via {
                client: peer.remote.ip(),
                secure: peer.secure,
                forwarded: Forwarded::Replace,
                tunnels: &tunnels,
            };
            let sent = async { Outgoing::new(request, &via)?.send(&backend).await };
            sent.await.unwrap_or_else(|error| error_response(&error))
        }
    });
    start(handler, ServerConfig::default()).await
}

pub(crate) fn get(path: &str) -> Request<RequestBody> {
    Request::get(path).header(header::HOST, "app.example").body(RequestBody::empty()).unwrap()
}

pub(crate) async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Reads one head (and whatever came with it) from a raw connection.
pub(crate) async fn read_head(tcp: &mut TcpStream) -> io::Result<String> {
    let mut got = Vec::new();
    let mut buf = [0; 1024];
    while !got.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = tcp.read(&mut buf).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        got.extend_from_slice(&buf[..n]);
    }
    Ok(String::from_utf8_lossy(&got).into_owned())
}
