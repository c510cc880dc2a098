//! Listening: TLS, HTTP/1.1 and HTTP/2, one task for each connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::auth::User;
use crate::pki;
use crate::server::Server;

/// A handshake that takes longer is not meant.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long after a failed accept (no more files, mostly) the next is tried.
const RETRY: Duration = Duration::from_millis(50);
/// Watches share a connection: as many as upstream allows.
const STREAMS: u32 = 250;

/// Accepts connections until the server stops.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    server: Arc<Server>,
    tasks: TaskTracker,
) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (acceptor, server) = (acceptor.clone(), server.clone());
                tasks.spawn(async move {
                    if let Err(error) = connection(stream, acceptor, server).await {
                        tracing::debug!(%peer, error, "connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, server: Arc<Server>) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(|_| "the TLS handshake took too long".to_owned())?
        .map_err(|error| error.to_string())?;
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(pki::certificate_user);
    let shutdown = server.shutdown.clone();
    let service =
        service_fn(move |request: Request<Incoming>| respond(server.clone(), user.clone(), request));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        result = serving.as_mut() => return result.map_err(|error| error.to_string()),
        () = shutdown.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    serving.await.map_err(|error| error.to_string())
}

async fn respond(
    server: Arc<Server>,
    user: Option<User>,
    request: Request<Incoming>,
) -> Result<crate::reply::Reply, Infallible> {
    let mut request = request.map(Body::new);
    if let Some(user) = user {
        request.extensions_mut().insert(user);
    }
    Ok(server.handle(request).await)
}
