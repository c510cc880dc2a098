//! The store as an OCI registry: distribution specification v1.1, pull, push, content discovery and management.
//!
//! - Any client may read and write everything: the embedded registry listens on this machine only.
//! - Blobs are shared by all repositories, so a blob that any of them has need not be sent again, and `mount` always works.
//! - `?ns=HOST` on a request, as containerd sends to mirrors, says which registry the repository is of: with `ns=docker.io`,
//!   `library/foo` is the local repository `foo`. Without it, `library/foo` is `foo` too.
//! - Bodies go to disk and from disk as they come; only manifests (4 MiB at most) are held in memory.

mod blobs;
mod failure;
mod lists;
mod manifests;
mod path;
mod uploads;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use http::{HeaderValue, StatusCode, header};

use crate::Store;
use failure::{Code, Failure};
use path::{Call, Target};
pub(crate) use uploads::Uploads;

type Answer = Result<Response, Failure>;

/// Serves `store` under `/v2/`. To be mounted at the root of a listener of its own.
pub fn registry_router(store: Arc<Store>) -> Router {
    Router::new()
        .route("/v2", any(serve))
        .route("/v2/", any(serve))
        .route("/v2/{*rest}", any(serve))
        .with_state(store)
}

async fn serve(State(store): State<Arc<Store>>, request: Request) -> Response {
    let mut response = match Call::parse(request.uri()) {
        Ok(call) => dispatch(&store, &call, request).await.unwrap_or_else(IntoResponse::into_response),
        Err(failure) => failure.into_response(),
    };
    response
        .headers_mut()
        .insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    response
}

async fn dispatch(store: &Arc<Store>, call: &Call, request: Request) -> Answer {
    use http::Method as M;
    match (&call.target, request.method().clone()) {
        (Target::Base, M::GET | M::HEAD) => Ok(json(StatusCode::OK, &serde_json::json!({}))),
        (Target::Catalog, M::GET) => lists::catalog(store, call),
        (Target::Tags, M::GET) => lists::tags(store, call),
        (Target::Referrers(digest), M::GET) => lists::referrers(store, call, digest),
        (Target::Blob(digest), M::GET | M::HEAD) => {
            blobs::get(
                store,
                digest,
                request.method() == M::HEAD,
                request.headers().get(http::header::RANGE).cloned(),
            )
            .await
        }
        (Target::Blob(digest), M::DELETE) => blobs::delete(store, digest).await,
        (Target::Uploads, M::POST) => blobs::start(store, call, request).await,
        (Target::Upload(id), M::GET) => blobs::status(store, call, id),
        (Target::Upload(id), M::PATCH) => blobs::patch(store, call, id, request).await,
        (Target::Upload(id), M::PUT) => blobs::put(store, call, id, request).await,
        (Target::Upload(id), M::DELETE) => blobs::cancel(store, id),
        (Target::Manifest(name), M::GET | M::HEAD) => manifests::get(store, call, name).await,
        (Target::Manifest(name), M::PUT) => manifests::put(store, call, name, request).await,
        (Target::Manifest(name), M::DELETE) => manifests::delete(store, call, name).await,
        (_, method) => Err(Failure::new(Code::Unsupported, format!("{method} is not defined for this path"))),
    }
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    json_as(status, "application/json", body)
}

fn json_as(status: StatusCode, kind: &'static str, body: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, kind)], bytes).into_response(),
        Err(e) => Failure::new(Code::Unknown, e.to_string()).into_response(),
    }
}

/// An answer without a body, from headers that are known to be valid.
fn empty(status: StatusCode, headers: &[(&'static str, &str)]) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(*name, value);
        }
    }
    response
}

/// Runs what waits for the disk where that is no harm.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::ImageError> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Failure::new(Code::Unknown, e.to_string()))?
        .map_err(Failure::from)
}
