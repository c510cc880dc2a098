//! Sending metrics to a collector, as `config-observability` says, live. They can be scraped all the same.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use ebb_api::config::Observability;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{encode, text};
use crate::otlp::{Endpoint, Protocol, Sender, Signal};
use crate::watch::{Change, follow};

const NAME: &str = "config-observability";
const TIMEOUT: Duration = Duration::from_secs(10);
/// As OpenTelemetry's SDKs have it.
const USUAL: Duration = Duration::from_secs(60);
/// A collector is not asked more often than that, whatever is set.
const LEAST: Duration = Duration::from_secs(1);

/// Where, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    endpoint: Endpoint,
    interval: Duration,
}

impl Settings {
    /// None where metrics are not to be sent.
    pub(crate) fn of(config: &Observability) -> Result<Option<Self>, String> {
        let Some(protocol) = Protocol::of(&config.metrics_protocol) else { return Ok(None) };
        let endpoint = Endpoint::parse(Signal::Metrics, protocol, &config.metrics_endpoint)
            .map_err(|why| format!("metrics-endpoint: {why}"))?;
        let interval = Some(config.metrics_export_interval).filter(|interval| !interval.is_zero());
        Ok(Some(Self { endpoint, interval: interval.unwrap_or(USUAL).max(LEAST) }))
    }
}

/// A page of metrics, made when it is asked for.
pub(crate) type Page = Box<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// Keeps sending what `page` tells of `component`, until `end`.
pub(crate) async fn run(
    component: &'static str,
    page: Page,
    client: kube::Client,
    namespace: String,
    end: CancellationToken,
) {
    let (to, settings) = watch::channel(None);
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
        match read.and_then(|config| Settings::of(&config)) {
            Ok(now) => _ = to.send_if_modified(|before| std::mem::replace(before, now.clone()) != now),
            Err(why) => tracing::warn!(config = NAME, why, "metrics go where they went before"),
        }
    });
    let _ = end.run_until_cancelled(async { tokio::join!(following, send(component, page, settings)) }).await;
}

async fn send(component: &'static str, page: Page, mut settings: watch::Receiver<Option<Settings>>) {
    let (sender, began) = (Sender::new(), SystemTime::now());
    let mut failing = false;
    loop {
        let Some(now) = settings.borrow_and_update().clone() else {
            if settings.changed().await.is_err() {
                return;
            }
            continue;
        };
        let message = encode::request(component, &text::parse(&page().await), began, SystemTime::now());
        let why = match tokio::time::timeout(TIMEOUT, sender.send(&now.endpoint, message)).await {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("no answer within {TIMEOUT:?}")),
        };
        if let Some(why) = &why
            && !failing
        {
            tracing::warn!(endpoint = now.endpoint.authority, why, "metrics cannot be sent");
        }
        failing = why.is_some();
        tokio::select! {
            () = tokio::time::sleep(now.interval) => {}
            changed = settings.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::collector;

    fn config(protocol: &str, endpoint: &str, interval: u64) -> Observability {
        Observability {
            metrics_protocol: protocol.to_owned(),
            metrics_endpoint: endpoint.to_owned(),
            metrics_export_interval: Duration::from_secs(interval),
            ..Observability::default()
        }
    }

    #[test]
    fn what_is_not_sent_and_how_often_the_rest_is() {
        for other in ["", "none", "prometheus"] {
            assert_eq!(Settings::of(&config(other, "otel.test", 5)), Ok(None));
        }
        let every =
            |interval| Settings::of(&config("grpc", "otel.test", interval)).unwrap().unwrap().interval;
        assert_eq!((every(0), every(5)), (USUAL, Duration::from_secs(5)));
        assert!(Settings::of(&config("grpc", "", 5)).unwrap_err().starts_with("metrics-endpoint: "));
    }

    #[tokio::test]
    async fn pages_reach_the_collector_as_often_as_is_said_and_no_more_when_it_is_unsaid() {
        let (at, mut got, _end) = collector().await;

        let (to, settings) = watch::channel(None);
        let page: Page = Box::new(|| Box::pin(async { "# TYPE a gauge\na 1\n".to_owned() }));
        let sending = tokio::spawn(send("probe", page, settings));
        to.send(Settings::of(&config("http/protobuf", &at, 1)).unwrap()).expect("followed");
        for _ in 0..2 {
            let (_, path, body) = got.recv().await.expect("a message");
            assert_eq!(path, "/v1/metrics");
            assert!(body.windows(9).any(|part| part == b"ebb-probe"));
        }
        to.send(None).expect("followed");
        drop(to);
        sending.await.expect("it ends with whoever tells it");
        assert!(got.try_recv().is_err(), "no more");
    }
}
