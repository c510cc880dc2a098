//! Liveness and readiness.

use std::sync::Arc;

use ebb_http::{Body, Peer, PlainAcceptor, ServerConfig, handler_fn};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Answers `/healthz` always and `/readyz` once all watches have delivered.
pub(crate) async fn serve(listener: TcpListener, synced: CancellationToken, shutdown: CancellationToken) {
    let handler = handler_fn(move |request: Request<Incoming>, _: Arc<Peer>| {
        let ready = synced.is_cancelled();
        async move {
            let (status, text) = match request.uri().path() {
                "/healthz" => (StatusCode::OK, "ok"),
                "/readyz" if ready => (StatusCode::OK, "ok"),
                "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "the watches have not delivered yet"),
                _ => (StatusCode::NOT_FOUND, "here are /healthz and /readyz"),
            };
            let mut response = Response::new(Body::from(text));
            *response.status_mut() = status;
            response
        }
    });
    ebb_http::serve(listener, PlainAcceptor, handler, ServerConfig::default(), shutdown).await;
}
