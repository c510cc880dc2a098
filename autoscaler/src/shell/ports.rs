//! The ports: load reports by mutual TLS, and explanations in plain HTTP.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode as AxumStatus;
use axum::response::{IntoResponse, Response as AxumResponse};
use axum::routing::get;
use ebb_component::admin::Extra;
use ebb_component::leader::Election;
use ebb_http::wire::{STAT_BATCH_PATH, StatBatch};
use ebb_http::{Body, Peer, ServerConfig, handler_fn, headers, serve};
use ebb_mesh::{Identity, MeshAcceptor, Mode, PeerPolicy, Policy};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::pass_on::PassOn;
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
    pass_on: PassOn,
    shutdown: CancellationToken,
) -> Result<impl Future<Output = ()> + use<>, Error> {
    let component = |name| PeerPolicy::component(identity.trust_domain(), &config.namespace, name);
    let allow = vec![component("activator")?, component("autoscaler")?];
    let policy = Arc::new(Policy { mode: Mode::Strict, allow });
    let handler = handler_fn(move |request: Request<Incoming>, peer: Arc<Peer>| {
        let (policy, mailbox, pass_on) = (policy.clone(), mailbox.clone(), pass_on.clone());
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
            let (outcome, answer) = report(request, &mailbox, &pass_on).await;
            metrics::counter!("ebb_autoscaler_reports_total", "outcome" => outcome).increment(1);
            answer
        }
    });
    Ok(serve(listener, MeshAcceptor(identity), handler, ServerConfig::default(), shutdown))
}

async fn report(
    request: Request<Incoming>,
    mailbox: &Mailbox,
    pass_on: &PassOn,
) -> (&'static str, Response<Body>) {
    let started = Instant::now();
    let passed_on = request.headers().contains_key(headers::EBB_PASSED_ON);
    let refused = |status, text| ("refused", plain(status, text));
    let body = match Limited::new(request.into_body(), MAX_BATCH).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return refused(StatusCode::BAD_REQUEST, format!("the report cannot be read: {error}\n"));
        }
    };
    let mut why = "no replica of the autoscaler decides at the moment: try again\n".to_owned();
    if let Some(leader) = pass_on.leader() {
        if passed_on {
            // Two replicas that each take the other for the leader, for a moment.
            return refused(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{} decides, not this one\n", leader.pod),
            );
        }
        why = match pass_on.send(&leader, body.clone()).await {
            Ok(answer) => return ("passed_on", answer),
            // It may be gone for good. Until it is replaced, what is at zero is woken here.
            Err(why) => format!("{why}\n"),
        };
    }
    let batch: StatBatch = match serde_json::from_slice(&body) {
        Ok(batch) => batch,
        Err(error) => {
            return refused(StatusCode::BAD_REQUEST, format!("the report is not a StatBatch: {error}\n"));
        }
    };
    let (answer, decided) = oneshot::channel();
    let sent = mailbox.send(Message::Report(batch, answer)).is_ok();
    match decided.await {
        Ok(response) if sent => {
            metrics::histogram!("ebb_autoscaler_report_seconds").record(started.elapsed().as_secs_f64());
            ("taken", plain(StatusCode::OK, serde_json::to_string(&response).unwrap_or_default()))
        }
        _ => refused(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

/// Answers why a revision has as many pods as it has; a replica that does not decide says who does.
pub(crate) fn explanations(mailbox: Mailbox, election: Election, port: u16) -> Router {
    let state = (mailbox, election, port);
    Router::new().route("/v1/decisions/{namespace}/{revision}", get(decisions)).with_state(state)
}

async fn decisions(
    State((mailbox, election, port)): State<(Mailbox, Election, u16)>,
    Path((namespace, revision)): Path<(String, String)>,
) -> AxumResponse {
    if let Some(leader) = election.leader() {
        let there = SocketAddr::new(leader.address, port);
        let location = format!("http://{there}/v1/decisions/{namespace}/{revision}");
        let text = format!("{} decides: {location}\n", leader.pod);
        return (AxumStatus::TEMPORARY_REDIRECT, [(header::LOCATION, location)], text).into_response();
    }
    let key = Key::new(namespace, revision);
    let (answer, told) = oneshot::channel();
    let sent = mailbox.send(Message::Explain(key.clone(), answer)).is_ok();
    match told.await {
        Ok(Some(explanation)) if sent => axum::Json(explanation).into_response(),
        _ => (AxumStatus::NOT_FOUND, format!("no revision {key} is scaled here\n")).into_response(),
    }
}

/// What the engine adds to the metrics.
pub(crate) fn figures(mailbox: Mailbox, election: Election) -> Extra {
    Box::new(move || {
        let (mailbox, leads) = (mailbox.clone(), u8::from(election.leads()));
        Box::pin(async move {
            let (answer, told) = oneshot::channel();
            let _ = mailbox.send(Message::Figures(answer));
            let text = told.await.unwrap_or_default();
            format!("{text}# TYPE ebb_autoscaler_leads gauge\nebb_autoscaler_leads {leads}\n")
        })
    })
}
