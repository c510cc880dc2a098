//! A collector for tests.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Body, PlainAcceptor, ServerConfig, handler_fn, serve};

/// What it got: content type, path and body.
pub type Got = (String, String, Bytes);

/// A collector on loopback; it ends with the guard.
pub async fn collector() -> (String, mpsc::UnboundedReceiver<Got>, DropGuard) {
    let (seen, got) = mpsc::unbounded_channel();
    let handler = handler_fn(move |request: Request<hyper::body::Incoming>, _| {
        let seen = seen.clone();
        async move {
            let kind = request.headers()[header::CONTENT_TYPE].to_str().unwrap_or_default().to_owned();
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let _ = seen.send((kind, path, body));
            let mut response = Response::new(Body::Empty);
            response.headers_mut().insert("grpc-status", HeaderValue::from_static("0"));
            response
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("bound").to_string();
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, PlainAcceptor, handler, ServerConfig::default(), stop.clone()));
    (at, got, stop.drop_guard())
}
