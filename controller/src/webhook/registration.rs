//! Tells the API server of the webhooks, and again whenever somebody else changed that.

use base64::Engine as _;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

const FIELD_MANAGER: &str = "ebb-controller";
const MUTATING: &str = "webhook.serving.knative.dev";
const VALIDATING: &str = "validation.webhook.serving.knative.dev";
const CONFIG: &str = "config.webhook.serving.knative.dev";

/// Registers the webhooks, and makes sure of it every few minutes.
pub(super) async fn keep(client: Client, config: Arc<Config>, ca_pem: String, shutdown: CancellationToken) {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut failures = 0_u32;
    loop {
        let [one, two, three] = configurations(&config, &ca_pem);
        let (one, two, three) = (Patch::Apply(&one), Patch::Apply(&two), Patch::Apply(&three));
        let result = tokio::try_join!(
            mutating.patch(MUTATING, &params, &one),
            validating.patch(VALIDATING, &params, &two),
            validating.patch(CONFIG, &params, &three)
        );
        let wait = match result {
            Ok(_) => {
                failures = 0;
                config.ready.webhooks.cancel();
                Duration::from_secs(300)
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "the webhooks could not be registered; will be tried again");
                Duration::from_millis(100 << failures.min(8))
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The webhook configurations: defaulting, validation, and validation of ConfigMaps.
pub(super) fn configurations(config: &Config, ca_pem: &str) -> [Value; 3] {
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    let at = |path: &str| match &config.webhook_url {
        Some(url) => json!({"caBundle": ca, "url": format!("{}{path}", url.trim_end_matches('/'))}),
        None => json!({
            "caBundle": ca,
            "service": {"name": "controller", "namespace": config.system_namespace, "path": path, "port": 443}
        }),
    };
    let kinds = json!([
        {
            "apiGroups": ["serving.knative.dev"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
            "resources": ["configurations", "revisions", "routes", "services"], "scope": "*"
        },
        {
            "apiGroups": ["serving.knative.dev"], "apiVersions": ["v1beta1"], "operations": ["CREATE", "UPDATE"],
            "resources": ["domainmappings"], "scope": "*"
        }
    ]);
    let webhook = |name: &str, path: &str| {
        json!({
            "name": name, "clientConfig": at(path), "rules": kinds, "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 10, "matchPolicy": "Equivalent"
        })
    };
    let of_kind = |kind: &str, name: &str, webhook: Value| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "ebb"}}, "webhooks": [webhook]
        })
    };
    let mut maps = webhook(CONFIG, "/config-validation");
    maps["rules"] = json!([{
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["configmaps"], "scope": "Namespaced"
    }]);
    // ConfigMaps are written before the first controller runs.
    maps["failurePolicy"] = json!("Ignore");
    maps["timeoutSeconds"] = json!(3);
    maps["namespaceSelector"] =
        json!({"matchLabels": {"kubernetes.io/metadata.name": config.system_namespace}});
    [
        of_kind("MutatingWebhookConfiguration", MUTATING, webhook(MUTATING, "/defaulting")),
        of_kind("ValidatingWebhookConfiguration", VALIDATING, webhook(VALIDATING, "/validation")),
        of_kind("ValidatingWebhookConfiguration", CONFIG, maps),
    ]
}
