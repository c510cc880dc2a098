//! Metrics, sent to a collector as often as is said. They can be scraped all the same: what is sent is what a page of text says.

mod encode;
pub mod text;

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Endpoint, Protocol, Sender, Signal, Source};

const TIMEOUT: Duration = Duration::from_secs(10);
/// What a process that ends gives its collector for the last message.
const LAST: Duration = Duration::from_secs(2);
/// As OpenTelemetry's SDKs have it.
const USUAL: Duration = Duration::from_secs(60);
/// A collector is not asked more often than that, whatever is set.
const LEAST: Duration = Duration::from_secs(1);

/// Where, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    endpoint: Endpoint,
    interval: Duration,
}

impl Settings {
    /// As ConfigMaps say it; none for a protocol that sends nothing (`prometheus`, `none`, empty). An interval of zero is the usual one.
    ///
    /// # Errors
    /// What is wrong with the endpoint.
    pub fn parse(protocol: &str, endpoint: &str, interval: Duration) -> Result<Option<Self>, String> {
        let Some(protocol) = Protocol::of(protocol) else { return Ok(None) };
        let endpoint = Endpoint::parse(Signal::Metrics, protocol, endpoint)?;
        let interval = Some(interval).filter(|interval| !interval.is_zero());
        Ok(Some(Self { endpoint, interval: interval.unwrap_or(USUAL).max(LEAST) }))
    }
}

/// A page of metrics, made when it is asked for.
pub type Page = Box<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// Keeps sending what `page` tells of `source`, as `settings` say at the moment, until `end` and then once more; or until nobody is left who
/// could say otherwise.
pub async fn send(
    source: &Source,
    page: Page,
    mut settings: watch::Receiver<Option<Settings>>,
    end: CancellationToken,
) {
    let (sender, began) = (Sender::new(), SystemTime::now());
    let mut failing = false;
    loop {
        let Some(now) = settings.borrow_and_update().clone() else {
            match end.run_until_cancelled(settings.changed()).await {
                Some(Ok(())) => continue,
                _ => return,
            }
        };
        let last = end.is_cancelled();
        let message = encode::request(source, &text::parse(&page().await), began, SystemTime::now());
        let limit = if last { LAST } else { TIMEOUT };
        let sending = tokio::time::timeout(limit, sender.send(&now.endpoint, message));
        // Whoever ends waits for no answer but the last one.
        let sent = if last { Some(sending.await) } else { end.run_until_cancelled(sending).await };
        let why = match sent {
            None => continue,
            Some(Ok(Ok(()))) => None,
            Some(Ok(Err(why))) => Some(why),
            Some(Err(_)) => Some(format!("no answer within {limit:?}")),
        };
        if let Some(why) = &why
            && !failing
        {
            tracing::warn!(endpoint = now.endpoint.authority, why, "metrics cannot be sent");
        }
        failing = why.is_some();
        if last {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(now.interval) => {}
            () = end.cancelled() => {}
            changed = settings.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::testing::collector;

    fn settings(protocol: &str, endpoint: &str, interval: u64) -> Option<Settings> {
        Settings::parse(protocol, endpoint, Duration::from_secs(interval)).unwrap()
    }

    static PROBE: std::sync::LazyLock<Source> = std::sync::LazyLock::new(|| Source::alone("ebb-probe"));

    fn page() -> Page {
        Box::new(|| Box::pin(async { "# TYPE a gauge\na 1\n".to_owned() }))
    }

    #[test]
    fn what_is_not_sent_and_how_often_the_rest_is() {
        for other in ["", "none", "prometheus"] {
            assert_eq!(settings(other, "otel.test", 5), None);
        }
        let every = |interval| settings("grpc", "otel.test", interval).unwrap().interval;
        assert_eq!((every(0), every(5)), (USUAL, Duration::from_secs(5)));
        assert!(Settings::parse("grpc", "", USUAL).is_err());
    }

    #[tokio::test]
    async fn pages_reach_the_collector_as_often_as_is_said_and_no_more_when_it_is_unsaid() {
        let (at, mut got, _end) = collector().await;
        let (to, told) = watch::channel(None);
        let sending = tokio::spawn(send(&PROBE, page(), told, CancellationToken::new()));
        to.send(settings("http/protobuf", &at, 1)).expect("followed");
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

    #[tokio::test]
    async fn who_ends_tells_once_more() {
        let (at, mut got, _end) = collector().await;
        let (_to, told) = watch::channel(settings("grpc", &at, 3600));
        let end = CancellationToken::new();
        let sending = tokio::spawn(send(&PROBE, page(), told, end.clone()));
        got.recv().await.expect("the first");
        end.cancel();
        let last = tokio::time::timeout(TIMEOUT, got.recv()).await;
        last.expect("in time").expect("the last");
        sending.await.expect("it ends");
        assert!(got.try_recv().is_err(), "no more");
    }

    #[tokio::test]
    async fn who_ends_does_not_wait_for_a_collector_that_is_silent() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = silent.local_addr().expect("bound").to_string();
        let (_to, told) = watch::channel(settings("grpc", &at, 3600));
        let end = CancellationToken::new();
        let sending = tokio::spawn(send(&PROBE, page(), told, end.clone()));
        let _held = silent.accept().await.expect("it tries");
        end.cancel();
        let ended = tokio::time::timeout(LAST + Duration::from_secs(3), sending).await;
        ended.expect("in time").expect("it ends");
    }
}
