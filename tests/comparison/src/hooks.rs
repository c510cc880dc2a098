//! The webhooks that steps register: one HTTPS server for both sides.
//!
//! `/mutate` adds the annotation `mutated: yes`; `/validate` refuses what has the label `refuse` and warns of what has `warn`;
//! `/convert` sets `converted-to` and the wanted apiVersion; `/broken` answers what is no review.

use std::sync::Arc;

use anyhow::{Context, Result};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A running server.
pub(crate) struct Hooks {
    url: String,
    ca: String,
    task: tokio::task::JoinHandle<()>,
}

impl Hooks {
    pub(crate) fn start() -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no port for the webhooks")?;
        listener.set_nonblocking(true)?;
        let url = format!("https://127.0.0.1:{}", listener.local_addr()?.port());
        let listener = TcpListener::from_std(listener)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(serve(listener, acceptor));
        Ok(Self { url, ca: STANDARD.encode(certificate.pem()), task })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// For `caBundle`.
    pub(crate) fn ca(&self) -> &str {
        &self.ca
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    let router = Router::new()
        .route("/mutate", post(async |Json(review): Json<Value>| Json(mutate(&review))))
        .route("/validate", post(async |Json(review): Json<Value>| Json(validate(&review))))
        .route("/convert", post(async |Json(review): Json<Value>| Json(convert(&review))))
        .route("/broken", post(async || Json(json!({"not": "a review"}))));
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
        });
    }
}

fn answer(review: &Value, mut response: Value) -> Value {
    response["uid"] = review["request"]["uid"].clone();
    json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response})
}

/// The object a review is about: the new state, or the old one of a deletion.
fn object(review: &Value) -> &Value {
    let request = &review["request"];
    if request["object"].is_object() { &request["object"] } else { &request["oldObject"] }
}

fn mutate(review: &Value) -> Value {
    if !review["request"]["object"].is_object() {
        return answer(review, json!({"allowed": true}));
    }
    let patch = match object(review)["metadata"]["annotations"].is_object() {
        true => json!([{"op": "add", "path": "/metadata/annotations/mutated", "value": "yes"}]),
        false => json!([{"op": "add", "path": "/metadata/annotations", "value": {"mutated": "yes"}}]),
    };
    answer(
        review,
        json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())}),
    )
}

fn validate(review: &Value) -> Value {
    let operation = review["request"]["operation"].as_str().unwrap_or_default();
    let labels = &object(review)["metadata"]["labels"];
    if labels["refuse"] == operation.to_lowercase().as_str() {
        let status = json!({"code": 403, "message": format!("{operation} is refused by its label")});
        return answer(review, json!({"allowed": false, "status": status}));
    }
    let mut response = json!({"allowed": true});
    if let Some(warning) = labels["warn"].as_str() {
        response["warnings"] = json!([format!("the label says: {warning}")]);
    }
    answer(review, response)
}

fn convert(review: &Value) -> Value {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].clone();
    let objects: Vec<Value> = request["objects"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|object| {
            let mut object = object.clone();
            let from = object["apiVersion"].clone();
            // v1 has spec.host, v2 has spec.address: what a conversion is for.
            if let Some(spec) = object["spec"].as_object_mut() {
                let (old, new) = if wanted.as_str().is_some_and(|v| v.ends_with("/v2")) {
                    ("host", "address")
                } else {
                    ("address", "host")
                };
                if from != wanted
                    && let Some(value) = spec.remove(old)
                {
                    spec.insert(new.to_owned(), value);
                }
            }
            object["apiVersion"] = wanted.clone();
            object
        })
        .collect();
    answer(review, json!({"convertedObjects": objects, "result": {"status": "Success"}}))
}
