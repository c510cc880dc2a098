//! Admission: fills in and checks what users write, before it is stored.
//!
//! The controller registers itself: its webhook configurations point at its own Service (or URL) and carry the CA that it made.
//! Failing closed, an object that nobody checked is never stored; only the ConfigMaps of the platform fail open, for they must be
//! writable before a controller runs, and a bad one is refused again when it is read.

mod admission;
mod certificates;
mod registration;

use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use axum::{Json, Router};
use kube::Client;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::{Live, tls};

pub use admission::{Verdict, config_maps, defaulting, validation};

/// Kubernetes' own limit of a request, with room for the old object.
const LARGEST: usize = 7 * 1024 * 1024;

/// Serves the webhooks until `shutdown`.
pub(crate) async fn run(
    config: &Arc<Config>,
    client: Client,
    live: Live,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let certificates = certificates::Certificates::ensure(&client, config).await?;
    let listener = ebb_component::listen(SocketAddr::new(config.bind_address, config.webhook_port)).await?;
    let router = Router::new()
        .route(
            "/defaulting",
            post(|State(live): State<Live>, Json(review)| async move {
                answer(&review, |request| defaulting(request, &live.load()))
            }),
        )
        .route(
            "/validation",
            post(|State(live): State<Live>, Json(review)| async move {
                answer(&review, |request| validation(request, &live.load()))
            }),
        )
        .route(
            "/config-validation",
            post(|Json(review): Json<Value>| async move { answer(&review, config_maps) }),
        )
        .layer(DefaultBodyLimit::max(LARGEST))
        .with_state(live);
    let registered =
        registration::keep(client, config.clone(), certificates.ca_pem().to_owned(), shutdown.clone());
    let renewed = certificates.renew(shutdown.clone());
    tokio::join!(tls::serve(listener, certificates.server_config(), router, shutdown), registered, renewed);
    Ok(())
}

/// The AdmissionReview that answers another.
fn answer(review: &Value, decide: impl FnOnce(&Value) -> Verdict) -> Json<Value> {
    let request = &review["request"];
    let mut response = decide(request).into_response();
    response["uid"] = request["uid"].clone();
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}
