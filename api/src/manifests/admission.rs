//! Which webhooks the API server calls before it stores what users write.
//!
//! They cover the kinds of `serving.knative.dev`, the kinds between the components where somebody else than a component writes them, and, in
//! the platform's own namespace, ConfigMaps: nothing that the cluster needs to run, or to start the controller. They fail closed, so that an object nobody checked is never stored; only the ConfigMaps fail open, for
//! they must be writable before a controller runs, and a bad one is refused again when it is read.

use serde_json::{Value, json};

use super::Options;

/// The configuration for defaulting.
pub const MUTATING_WEBHOOK: &str = "webhook.serving.knative.dev";
/// The configuration for validation.
pub const VALIDATING_WEBHOOK: &str = "validation.webhook.serving.knative.dev";
/// The configuration for the validation of ConfigMaps.
pub const CONFIG_WEBHOOK: &str = "config.webhook.serving.knative.dev";

/// Where the webhooks are.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// Behind the Service `controller`.
    Service {
        /// The CA, base64 of PEM, once the controller has made it.
        ca_bundle: Option<String>,
    },
    /// At a URL.
    Url {
        /// Without a path.
        url: String,
        /// The CA, base64 of PEM.
        ca_bundle: String,
    },
}

/// The webhook configurations: defaulting, validation, and validation of ConfigMaps.
#[must_use]
pub fn admission(options: &Options, endpoint: &Endpoint) -> [Value; 3] {
    let at = |path: &str| match endpoint {
        Endpoint::Url { url, ca_bundle } => {
            json!({"caBundle": ca_bundle, "url": format!("{}{path}", url.trim_end_matches('/'))})
        }
        Endpoint::Service { ca_bundle } => {
            let mut config = json!({
                "service": {"name": "controller", "namespace": options.namespace, "path": path, "port": 443}
            });
            if let Some(ca) = ca_bundle {
                config["caBundle"] = json!(ca);
            }
            config
        }
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
    let internal = json!([
        {
            "apiGroups": ["networking.internal.knative.dev"], "apiVersions": ["v1alpha1"],
            "operations": ["CREATE", "UPDATE"],
            "resources": ["certificates", "ingresses", "serverlessservices"], "scope": "*"
        },
        {
            "apiGroups": ["autoscaling.internal.knative.dev"], "apiVersions": ["v1alpha1"],
            "operations": ["CREATE", "UPDATE"], "resources": ["metrics", "podautoscalers"], "scope": "*"
        },
        {
            "apiGroups": ["caching.internal.knative.dev"], "apiVersions": ["v1alpha1"],
            "operations": ["CREATE", "UPDATE"], "resources": ["images"], "scope": "*"
        }
    ]);
    let webhook = |name: &str, path: &str| {
        json!({
            "name": name, "clientConfig": at(path), "rules": kinds, "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail", "sideEffects": "None", "timeoutSeconds": 10, "matchPolicy": "Equivalent"
        })
    };
    // What the components write is right, and waits for nobody.
    let of_others = |name: &str, path: &str| {
        let mut hook = webhook(&format!("internal.{name}"), path);
        hook["rules"] = internal.clone();
        let ours = format!("system:serviceaccount:{}:", options.namespace);
        hook["matchConditions"] = json!([{
            "name": "not-a-component",
            "expression": format!("!request.userInfo.username.startsWith('{ours}')")
        }]);
        hook
    };
    let of_kind = |kind: &str, name: &str, webhooks: Value| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": options.cluster_meta(name, Some("controller")), "webhooks": webhooks
        })
    };
    let mut maps = webhook(CONFIG_WEBHOOK, "/config-validation");
    maps["rules"] = json!([{
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["configmaps"], "scope": "Namespaced"
    }]);
    maps["failurePolicy"] = json!("Ignore");
    maps["timeoutSeconds"] = json!(3);
    maps["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": options.namespace}});
    let both = |name: &str, path: &str| json!([webhook(name, path), of_others(name, path)]);
    [
        of_kind("MutatingWebhookConfiguration", MUTATING_WEBHOOK, both(MUTATING_WEBHOOK, "/defaulting")),
        of_kind(
            "ValidatingWebhookConfiguration",
            VALIDATING_WEBHOOK,
            both(VALIDATING_WEBHOOK, "/validation"),
        ),
        of_kind("ValidatingWebhookConfiguration", CONFIG_WEBHOOK, json!([maps])),
    ]
}
