//! Admission: fills in and checks what users write, before it is stored.
//!
//! The controller registers itself: its webhook configurations point at its own Service (or URL) and carry the CA that it made. All
//! replicas serve, each with a certificate of its own that it makes in memory, renewed at two thirds of its life; the CA's key they share.
//! Failing closed, an object that nobody checked is never stored; only the ConfigMaps of the platform fail open, for they must be
//! writable before a controller runs, and a bad one is refused again when it is read.

mod admission;
mod dry_run;
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
use crate::custody::Custody;
use crate::error::Error;
use crate::{Live, tls};
use dry_run::tried;

pub use admission::{Verdict, config_maps, defaulting, validation};

/// The Secret with the key that the webhooks' certificates are signed with.
const SECRET: &str = "webhook-certs";
/// Kubernetes' own limit of a request, with room for the old object.
const LARGEST: usize = 7 * 1024 * 1024;

/// Serves the webhooks until `shutdown`.
pub(crate) async fn run(
    config: &Arc<Config>,
    client: Client,
    live: Live,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (namespace, domain) = (&config.system_namespace, format!("webhooks.{}", config.system_namespace));
    let lifetime = config.certificate_ttl;
    let custody = Custody::open(&client, namespace, SECRET, &domain, lifetime, &config.renewal).await?;
    let tls = custody.authority().server_config(&names(config))?;
    let listener = ebb_component::listen(SocketAddr::new(config.bind_address, config.webhook_port)).await?;
    let (platform, tester) = (config.platform(String::new()), client.clone());
    let router = Router::new()
        .route(
            "/defaulting",
            post(|State(live): State<Live>, Json(review): Json<Value>| async move {
                answer(&review, defaulting(&review["request"], &live.load()))
            }),
        )
        .route(
            "/validation",
            post(move |State(live): State<Live>, Json(review): Json<Value>| async move {
                let configs = live.load_full();
                let verdict = validation(&review["request"], &configs);
                answer(&review, tried(verdict, &review["request"], &configs, &platform, &tester).await)
            }),
        )
        .route(
            "/config-validation",
            post(|Json(review): Json<Value>| async move { answer(&review, config_maps(&review["request"])) }),
        )
        .layer(DefaultBodyLimit::max(LARGEST))
        .with_state(live);
    let registered = registration::keep(client, config, &custody, shutdown.clone());
    let kept = custody.keep(shutdown.clone());
    tokio::join!(tls::serve(listener, tls, router, shutdown.clone()), registered, kept);
    Ok(())
}

/// The names and addresses by which the API server may reach the webhooks.
fn names(config: &Config) -> Vec<String> {
    let namespace = &config.system_namespace;
    let mut names = vec![
        "controller".to_owned(),
        format!("controller.{namespace}"),
        format!("controller.{namespace}.svc"),
        format!("controller.{namespace}.svc.cluster.local"),
        "localhost".to_owned(),
        config.bind_address.to_string(),
    ];
    let url_host = config.webhook_url.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
    let url_host = url_host.and_then(|url| url.host().map(|host| host.trim_matches(['[', ']']).to_owned()));
    names.extend(url_host.filter(|host| !names.contains(host)));
    names
}

/// The AdmissionReview that answers another.
fn answer(review: &Value, verdict: Verdict) -> Json<Value> {
    let mut response = verdict.into_response();
    let allowed = if response["allowed"] == json!(true) { "true" } else { "false" };
    metrics::counter!("ebb_controller_admissions_total", "allowed" => allowed).increment(1);
    response["uid"] = review["request"]["uid"].clone();
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}
