//! Sending metrics to a collector, as `config-observability` says, live. They can be scraped all the same.

use ebb_api::config::Observability;
use ebb_http::otlp::metrics::{Page, Settings, send};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::watch::{Change, follow};

const NAME: &str = "config-observability";

fn settings(config: &Observability) -> Result<Option<Settings>, String> {
    let (protocol, endpoint) = (&config.metrics_protocol, &config.metrics_endpoint);
    Settings::parse(protocol, endpoint, config.metrics_export_interval)
        .map_err(|why| format!("metrics-endpoint: {why}"))
}

/// Keeps sending what `page` tells of `component`, until `end`.
pub(crate) async fn run(
    component: &'static str,
    page: Page,
    client: kube::Client,
    namespace: String,
    end: CancellationToken,
) {
    let (to, told) = watch::channel(None);
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let following = follow(maps, only, end.clone(), move |change| {
        let data = match change {
            Change::Apply(map) => map.data.unwrap_or_default(),
            Change::Gone { .. } => Default::default(),
            Change::Synced => return,
        };
        let read = Observability::parse(&data)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        match read.and_then(|config| settings(&config)) {
            Ok(now) => _ = to.send_if_modified(|before| std::mem::replace(before, now.clone()) != now),
            Err(why) => tracing::warn!(config = NAME, why, "metrics go where they went before"),
        }
    });
    let source = crate::source(component);
    let sending = send(&source, page, told, end.clone());
    tokio::join!(end.run_until_cancelled(following), sending);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_by_its_key() {
        let config = Observability { metrics_protocol: "grpc".to_owned(), ..Observability::default() };
        assert!(settings(&config).unwrap_err().starts_with("metrics-endpoint: "));
        assert_eq!(settings(&Observability::default()), Ok(None));
    }
}
