//! The transport of in-process clients: a call of the server's handler, no socket.
//!
//! Only what upgrades (exec, attach, portforward) runs over a pipe in memory with HTTP on it, because an upgraded
//! connection is made by hyper alone.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use http::header::{CONNECTION, HOST, UPGRADE, USER_AGENT};
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::auth::User;
use crate::lean::Lean;
use crate::server::Server;

/// Bytes in flight on the pipe of an upgraded connection.
const PIPE: usize = 64 << 10;

/// A tower service that is the server itself, for one user.
#[derive(Clone)]
pub(crate) struct Transport {
    server: Arc<Server>,
    user: User,
}

impl Transport {
    pub(crate) fn new(server: Arc<Server>, user: User) -> Self {
        Self { server, user }
    }
}

impl tower::Service<Request<kube::client::Body>> for Transport {
    type Response = Response<Body>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let server = self.server.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.user.clone());
        request.extensions_mut().insert(Lean);
        // The manager of the fields that a component writes is called as the component.
        let agent = self.user.name.rsplit(':').next().unwrap_or_default();
        if let Ok(agent) = HeaderValue::from_str(agent) {
            request.headers_mut().entry(USER_AGENT).or_insert(agent);
        }
        if request.headers().contains_key(UPGRADE) || request.headers().contains_key(CONNECTION) {
            let user = self.user.clone();
            return Box::pin(piped(server, user, request));
        }
        Box::pin(async move { Ok(server.handle(request).await) })
    }
}

async fn piped(
    server: Arc<Server>,
    user: User,
    mut request: Request<Body>,
) -> Result<Response<Body>, hyper::Error> {
    let (near, far) = tokio::io::duplex(PIPE);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(user.clone());
        let server = server.clone();
        async move { Ok::<_, std::convert::Infallible>(server.handle(request).await) }
    });
    tokio::spawn(async move {
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
        if let Err(error) = serving.with_upgrades().await {
            tracing::debug!(%error, "an in-process upgraded connection ended");
        }
    });
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "an in-process upgraded connection ended");
        }
    });
    request.headers_mut().insert(HOST, HeaderValue::from_static("kubernetes.default.svc"));
    let path = request.uri().path_and_query().cloned();
    if let Some(path) = path {
        *request.uri_mut() = path.into();
    }
    Ok(sender.send_request(request).await?.map(Body::new))
}
