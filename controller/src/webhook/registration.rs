//! Tells the API server of the webhooks, and again whenever somebody else changed that.

use base64::Engine as _;
use ebb_api::manifests::{
    CONFIG_WEBHOOK, Endpoint, MUTATING_WEBHOOK, Options, VALIDATING_WEBHOOK, admission,
};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::Value;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::custody::Custody;

const FIELD_MANAGER: &str = "ebb-controller";

/// Registers the webhooks: with each change of the CA, and to make sure every few minutes.
pub(super) async fn keep(client: Client, config: &Config, custody: &Custody, shutdown: CancellationToken) {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut failures = 0_u32;
    let mut news = custody.changed();
    loop {
        news.mark_unchanged();
        let [one, two, three] = configurations(config, &custody.authority().roots_pem());
        let (one, two, three) = (Patch::Apply(&one), Patch::Apply(&two), Patch::Apply(&three));
        let result = tokio::try_join!(
            mutating.patch(MUTATING_WEBHOOK, &params, &one),
            validating.patch(VALIDATING_WEBHOOK, &params, &two),
            validating.patch(CONFIG_WEBHOOK, &params, &three)
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
            Ok(()) = news.changed() => {}
        }
    }
}

/// The webhook configurations, with our CA.
pub(super) fn configurations(config: &Config, ca_pem: &str) -> [Value; 3] {
    let ca_bundle = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    let options = Options { namespace: config.system_namespace.clone(), ..Options::default() };
    let endpoint = match &config.webhook_url {
        Some(url) => Endpoint::Url { url: url.clone(), ca_bundle },
        None => Endpoint::Service { ca_bundle: Some(ca_bundle) },
    };
    admission(&options, &endpoint)
}
