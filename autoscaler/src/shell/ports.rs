//! The ports: load reports by mutual TLS, and explanations in plain HTTP.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode as AxumStatus;
use axum::response::{IntoResponse, Response as AxumResponse};
use axum::routing::get;
use ebb_http::wire::{STAT_BATCH_PATH, StatBatch};
use ebb_http::{Body, Peer, ServerConfig, handler_fn, serve};
use ebb_mesh::{Identity, MeshAcceptor, Mode, PeerPolicy, Policy};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Error, Mailbox, Message};
use crate::config::Config;
use crate::engine::Key;

/// The largest batch: some ten thousand revisions.
const MAX_BATCH: usize = 8 << 20;

/// Takes load reports from activators.
pub(crate) fn reports(
    listener: TcpListener,
    config: &Config,
    identity: Identity,
    mailbox: Mailbox,
    shutdown: CancellationToken,
) -> Result<impl Future<Output = ()> + use<>, Error> {
    let activator = PeerPolicy::component(identity.trust_domain(), &config.namespace, "activator")?;
    let policy = Arc::new(Policy { mode: Mode::Strict, allow: vec![activator] });
    let handler = handler_fn(move |request: Request<Incoming>, peer: Arc<Peer>| {
        let (policy, mailbox) = (policy.clone(), mailbox.clone());
        async move {
            if let Err(refusal) = policy.check(peer.secure, peer.identity.as_deref()) {
                tracing::warn!(remote = %peer.remote, %refusal, "a load report was refused");
                return plain(StatusCode::FORBIDDEN, format!("{refusal}\n"));
            }
            if request.method() != Method::POST || request.uri().path() != STAT_BATCH_PATH {
                return plain(
                    StatusCode::NOT_FOUND,
                    format!("the autoscaler takes POST {STAT_BATCH_PATH} here\n"),
                );
            }
            report(request, &mailbox).await
        }
    });
    Ok(serve(listener, MeshAcceptor(identity), handler, ServerConfig::default(), shutdown))
}

async fn report(request: Request<Incoming>, mailbox: &Mailbox) -> Response<Body> {
    let body = match Limited::new(request.into_body(), MAX_BATCH).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return plain(StatusCode::BAD_REQUEST, format!("the report cannot be read: {error}\n")),
    };
    let batch: StatBatch = match serde_json::from_slice(&body) {
        Ok(batch) => batch,
        Err(error) => {
            return plain(StatusCode::BAD_REQUEST, format!("the report is not a StatBatch: {error}\n"));
        }
    };
    let (answer, decided) = oneshot::channel();
    let sent = mailbox.send(Message::Report(batch, answer)).is_ok();
    match decided.await {
        Ok(response) if sent => plain(StatusCode::OK, serde_json::to_string(&response).unwrap_or_default()),
        _ => plain(StatusCode::SERVICE_UNAVAILABLE, "the autoscaler is shutting down\n".to_owned()),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

/// Answers why a revision has as many pods as it has.
pub(crate) fn explanations(mailbox: Mailbox) -> Router {
    Router::new().route("/v1/decisions/{namespace}/{revision}", get(decisions)).with_state(mailbox)
}

async fn decisions(
    State(mailbox): State<Mailbox>,
    Path((namespace, revision)): Path<(String, String)>,
) -> AxumResponse {
    let key = Key::new(namespace, revision);
    let (answer, told) = oneshot::channel();
    let sent = mailbox.send(Message::Explain(key.clone(), answer)).is_ok();
    match told.await {
        Ok(Some(explanation)) if sent => axum::Json(explanation).into_response(),
        _ => (AxumStatus::NOT_FOUND, format!("no revision {key} is scaled here\n")).into_response(),
    }
}
