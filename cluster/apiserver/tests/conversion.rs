//! Custom objects of two versions between which a webhook converts: v1 has `spec.host`, v2 `spec.address`.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests, which clippy does not know as such.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::start;
use futures::{StreamExt, TryStreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

/// The webhook, and how often it was asked.
struct Webhook {
    url: String,
    ca: String,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn convert(review: &Value) -> Value {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].as_str().unwrap();
    let (old, new) = if wanted.ends_with("/v2") { ("host", "address") } else { ("address", "host") };
    let mut objects = request["objects"].clone();
    for object in objects.as_array_mut().unwrap() {
        let value = object["spec"].as_object_mut().unwrap().remove(old).unwrap();
        object["spec"][new] = value;
        object["apiVersion"] = wanted.into();
    }
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
        "response": {"uid": request["uid"], "convertedObjects": objects, "result": {"status": "Success"}}})
}

impl Webhook {
    async fn start() -> Self {
        let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                key.signing_key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/convert", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let answer = move |Json(review): Json<Value>| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { Json(convert(&review)) }
        };
        let router = Router::new().route("/convert", post(answer));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ =
                        server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
                });
            }
        });
        Self { url, ca: STANDARD.encode(key.cert.pem()), asked, task }
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

fn definition(webhook: &Webhook, storage: &str) -> Value {
    let version = |name: &str, field: &str| {
        json!({"name": name, "served": true, "storage": name == storage, "selectableFields": [{"jsonPath": format!(".spec.{field}")}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
                field: {"type": "string", "maxLength": 5}, "size": {"type": "integer", "default": 1}}}}}}})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "cups.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"kind": "Cup", "plural": "cups"},
        "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
            "clientConfig": {"url": webhook.url, "caBundle": webhook.ca}}},
        "versions": [version("v1", "host"), version("v2", "address")]}})
}

fn cups(client: &kube::Client, version: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", version, "Cup"));
    Api::default_namespaced_with(client.clone(), &resource)
}

fn cup(version: &str, name: &str, spec: Value) -> DynamicObject {
    let object = json!({"apiVersion": format!("example.com/{version}"), "kind": "Cup", "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

fn version(object: &DynamicObject) -> &str {
    &object.types.as_ref().unwrap().api_version
}

#[tokio::test]
async fn both_versions_show_the_same_objects() {
    let (fixture, webhook) = (start().await, Webhook::start().await);
    let client = fixture.client();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let made = serde_json::from_value(definition(&webhook, "v1")).unwrap();
    definitions.create(&PostParams::default(), &made).await.unwrap();
    let (v1, v2) = (cups(&client, "v1"), cups(&client, "v2"));

    v1.create(&PostParams::default(), &cup("v1", "a", json!({"host": "one"}))).await.unwrap();
    assert_eq!(webhook.asked(), 0, "what is stored as it is written needs no webhook");
    let made = v2.create(&PostParams::default(), &cup("v2", "b", json!({"address": "two"}))).await.unwrap();
    assert_eq!(
        (version(&made), &made.data["spec"]),
        ("example.com/v2", &json!({"address": "two", "size": 1}))
    );
    assert_eq!(v1.get("b").await.unwrap().data["spec"], json!({"host": "two", "size": 1}));
    let shown = v2.get("a").await.unwrap();
    assert_eq!((version(&shown), &shown.data["spec"]["address"]), ("example.com/v2", &json!("one")));
    webhook.asked();
    let list = v2.list(&ListParams::default()).await.unwrap().items;
    let addresses: Vec<_> = list.iter().map(|cup| cup.data["spec"]["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["one", "two"]);
    assert_eq!(webhook.asked(), 1, "a list is converted in one call");
    let two = v2.list(&ListParams::default().fields("spec.address=two")).await.unwrap().items;
    assert_eq!(two.len(), 1, "selectors speak of the fields of the version asked for");
    webhook.asked();
    assert_eq!(v2.list_metadata(&ListParams::default()).await.unwrap().items.len(), 2);
    assert_eq!(webhook.asked(), 0, "metadata needs no webhook");

    // Writes are judged in their own version, and one of nothing writes nothing.
    let patch = |address: &str| Patch::Merge(json!({"spec": {"address": address}}));
    let changed = v2.patch("a", &PatchParams::default(), &patch("three")).await.unwrap();
    assert_eq!(v1.get("a").await.unwrap().data["spec"]["host"], "three");
    let again = v2.patch("a", &PatchParams::default(), &patch("three")).await.unwrap();
    assert_eq!(again.metadata.resource_version, changed.metadata.resource_version);
    let refused = v2.patch("a", &PatchParams::default(), &patch("too long")).await.unwrap_err();
    assert!(refused.to_string().contains("spec.address: Too long"), "{refused}");

    // A watch tells of what was there and of what changes, in its version, and of what its selector loses.
    let selected = WatchParams::default().fields("spec.address=three");
    let mut events = v2.watch(&selected, "0").await.unwrap().boxed();
    let WatchEvent::Added(first) = events.try_next().await.unwrap().unwrap() else {
        panic!("the cup is there")
    };
    assert_eq!((version(&first), &first.data["spec"]["address"]), ("example.com/v2", &json!("three")));
    v1.patch("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"host": "four"}}))).await.unwrap();
    let WatchEvent::Deleted(last) = events.try_next().await.unwrap().unwrap() else {
        panic!("it is not selected")
    };
    assert_eq!(last.data["spec"]["address"], "four");
}

#[tokio::test]
async fn what_was_stored_before_is_converted_and_written_anew() {
    let (fixture, webhook) = (start().await, Webhook::start().await);
    let client = fixture.client();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let made = serde_json::from_value(definition(&webhook, "v1")).unwrap();
    definitions.create(&PostParams::default(), &made).await.unwrap();
    let v2 = cups(&client, "v2");
    cups(&client, "v1")
        .create(&PostParams::default(), &cup("v1", "a", json!({"host": "one"})))
        .await
        .unwrap();
    let patch = json!({"spec": {"versions": definition(&webhook, "v2")["spec"]["versions"]}});
    let patched =
        definitions.patch("cups.example.com", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    assert_eq!(patched.status.unwrap().stored_versions.unwrap(), ["v1", "v2"]);

    let old = v2.get("a").await.unwrap();
    assert_eq!((version(&old), &old.data["spec"]["address"]), ("example.com/v2", &json!("one")));
    assert_eq!(webhook.asked(), 1, "it is stored as v1 still");
    let moved = v2.replace("a", &PostParams::default(), &old).await.unwrap();
    assert_ne!(moved.metadata.resource_version, old.metadata.resource_version, "a write of nothing moves it");
    webhook.asked();
    assert_eq!(v2.get("a").await.unwrap().data["spec"]["address"], "one");
    assert_eq!(webhook.asked(), 0, "it is stored as v2 now");
}

#[tokio::test]
async fn without_its_webhook_only_the_other_version_fails() {
    let (fixture, webhook) = (start().await, Webhook::start().await);
    let client = fixture.client();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut made = definition(&webhook, "v1");
    made["spec"]["conversion"]["webhook"]["clientConfig"]["url"] = "https://127.0.0.1:1/convert".into();
    definitions.create(&PostParams::default(), &serde_json::from_value(made).unwrap()).await.unwrap();
    let (v1, v2) = (cups(&client, "v1"), cups(&client, "v2"));
    v1.create(&PostParams::default(), &cup("v1", "a", json!({"host": "one"}))).await.unwrap();
    let failed = v2.get("a").await.unwrap_err().to_string();
    assert!(failed.contains("conversion webhook for example.com/v1, Kind=Cup failed: "), "{failed}");
    assert!(v2.create(&PostParams::default(), &cup("v2", "b", json!({"address": "x"}))).await.is_err());
    assert_eq!(v1.list(&ListParams::default()).await.unwrap().items.len(), 1, "nothing was stored");
    assert_eq!(v2.list_metadata(&ListParams::default()).await.unwrap().items.len(), 1);
    v2.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(v1.get_opt("a").await.unwrap().is_none(), "what is deleted need not be converted");
}
