//! Sending spans: together, and without anybody waiting for it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc;

use super::{Span, encode};
use ebb_http::otlp::{Endpoint, Sender};

/// Spans that are sent in one message.
const TOGETHER: usize = 512;
/// How long the first of them waits for others.
const GATHER: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// One line for each on standard output.
    Stdout,
    Collector(Endpoint),
}

/// Sends what comes until the queue is closed.
pub(super) async fn run(
    component: &'static str,
    mut spans: mpsc::Receiver<Span>,
    destination: Arc<ArcSwapOption<Destination>>,
    lost: metrics::Counter,
) {
    let sender = Sender::new();
    let mut batch = Vec::new();
    let mut failing = false;
    while let Some(first) = spans.recv().await {
        batch.push(first);
        let gathered = async {
            while batch.len() < TOGETHER
                && let Some(next) = spans.recv().await
            {
                batch.push(next);
            }
        };
        let _ = tokio::time::timeout(GATHER, gathered).await;
        let destination = destination.load_full();
        let endpoint = match destination.as_deref() {
            Some(Destination::Collector(endpoint)) => endpoint,
            elsewhere => {
                if elsewhere.is_some() {
                    batch.iter().for_each(|span| println!("{span:?}"));
                }
                batch.clear();
                continue;
            }
        };
        let message = encode::request(component, &batch);
        match tokio::time::timeout(TIMEOUT, sender.send(endpoint, message)).await {
            Ok(Ok(())) => failing = false,
            failed => {
                lost.increment(batch.len() as u64);
                if !std::mem::replace(&mut failing, true) {
                    let why = match failed {
                        Ok(Err(why)) => why,
                        _ => format!("no answer within {TIMEOUT:?}"),
                    };
                    tracing::warn!(endpoint = endpoint.authority, why, "spans cannot be sent and are lost");
                }
            }
        }
        batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::Traces;
    use crate::traces::encode::tests::example;
    use ebb_api::config::Observability;
    use ebb_http::otlp::testing::collector;

    #[tokio::test]
    async fn sampled_spans_reach_the_collector() {
        let (at, mut got, _end) = collector().await;

        let traces = Traces::start("gateway");
        let headers = http::HeaderMap::new();
        assert!(traces.begin(&headers).is_none(), "off");
        for (protocol, kind, path, frame) in [
            ("http/protobuf", "application/x-protobuf", "/v1/traces", 0),
            ("grpc", "application/grpc", "/opentelemetry.proto.collector.trace.v1.TraceService/Export", 5),
        ] {
            let config = Observability {
                tracing_protocol: protocol.to_owned(),
                tracing_endpoint: at.clone(),
                tracing_sampling_rate: 1.0,
                ..Observability::default()
            };
            traces.configure(&config).expect("good");
            let mut unsampled = example();
            unsampled.context.sampled = false;
            traces.record(unsampled);
            traces.record(example());
            let (got_kind, got_path, body) = got.recv().await.expect("a message");
            assert_eq!((got_kind.as_str(), got_path.as_str()), (kind, path));
            assert_eq!(&body[frame..], encode::request("gateway", &[example()]));
        }
        traces.configure(&Observability::default()).expect("good");
        assert!(traces.begin(&headers).is_none(), "off again");
    }
}
