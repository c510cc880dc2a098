//! Sending spans: together, and without anybody waiting for it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::{BufMut, Bytes, BytesMut};
use ebb_http::{Outgoing, PlainConnector, Pool, PoolConfig, RequestBody, Target};
use http::{HeaderValue, Request, header};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::{Span, encode};

/// Spans that are sent in one message.
const TOGETHER: usize = 512;
/// How long the first of them waits for others.
const GATHER: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// How spans are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over HTTP, as protobuf.
    Http,
    /// OTLP over gRPC, without TLS.
    Grpc,
    /// One line for each on standard output.
    Stdout,
}

/// Where spans are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    protocol: Protocol,
    /// Host and port.
    authority: String,
    path: String,
}

impl Endpoint {
    pub(super) fn stdout() -> Self {
        Self { protocol: Protocol::Stdout, authority: String::new(), path: String::new() }
    }

    /// Reads `http://host:port/path` or `host:port`; the port and the path that OTLP gives may be left out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(protocol: Protocol, text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix("http://").unwrap_or(text);
        if bare.contains("://") {
            return Err(format!("{text:?} is not http://HOST:PORT; TLS to the collector is not supported"));
        }
        let (authority, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
        let (port, usual) = match protocol {
            Protocol::Grpc => (4317, "/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
            _ => (4318, "/v1/traces"),
        };
        let parsed: http::uri::Authority =
            authority.parse().map_err(|_| format!("{text:?} is not http://HOST:PORT"))?;
        let authority = match parsed.port_u16() {
            Some(_) => authority.to_owned(),
            None => format!("{authority}:{port}"),
        };
        let path = if path.trim_matches('/').is_empty() || protocol == Protocol::Grpc { usual } else { path };
        Ok(Self { protocol, authority, path: path.to_owned() })
    }
}

/// Sends what comes until the queue is closed.
pub(super) async fn run(
    component: &'static str,
    mut spans: mpsc::Receiver<Span>,
    endpoint: Arc<ArcSwapOption<Endpoint>>,
    lost: metrics::Counter,
) {
    let pool = Pool::new(PlainConnector, PoolConfig::default());
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
        let Some(endpoint) = endpoint.load_full() else {
            batch.clear();
            continue;
        };
        match tokio::time::timeout(TIMEOUT, send(&pool, &endpoint, component, &batch)).await {
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

async fn send(pool: &Pool, endpoint: &Endpoint, component: &str, spans: &[Span]) -> Result<(), String> {
    let body = encode::request(component, spans);
    let (wire, kind, body) = match endpoint.protocol {
        Protocol::Stdout => {
            for span in spans {
                println!("{span:?}");
            }
            return Ok(());
        }
        Protocol::Http => (ebb_http::Protocol::Http1, "application/x-protobuf", Bytes::from(body)),
        Protocol::Grpc => (ebb_http::Protocol::Http2, "application/grpc", framed(&body)),
    };
    let found = tokio::net::lookup_host(&endpoint.authority).await;
    let address = found
        .map_err(|error| format!("{} is not found: {error}", endpoint.authority))?
        .next()
        .ok_or_else(|| format!("{} has no address", endpoint.authority))?;
    let request = Request::post(&endpoint.path)
        .header(header::HOST, &endpoint.authority)
        .header(header::CONTENT_TYPE, kind)
        .header(header::TE, HeaderValue::from_static("trailers"))
        .body(RequestBody::full(body))
        .map_err(|error| error.to_string())?;
    let mut outgoing = Outgoing::own(request).map_err(|error| error.to_string())?;
    let backend = pool.backend(&Target::plain(address, wire));
    let response = outgoing.send(&backend).await.map_err(|error| error.to_string())?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?;
    if !parts.status.is_success() {
        return Err(format!("the collector answers {}", parts.status));
    }
    // gRPC tells in a trailer, or in the head where nothing follows.
    let told =
        body.trailers().and_then(|trailers| trailers.get("grpc-status")).or(parts.headers.get("grpc-status"));
    match told {
        Some(code) if code != "0" => Err(format!("the collector answers grpc-status {code:?}")),
        _ => Ok(()),
    }
}

/// A message as gRPC frames it: not compressed, and its length.
fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::Traces;
    use crate::traces::encode::tests::example;
    use ebb_api::config::Observability;
    use ebb_http::{Body, PlainAcceptor, ServerConfig, handler_fn, serve};
    use http::Response;
    use tokio_util::sync::CancellationToken;

    #[test]
    fn endpoints_with_their_usual_ports_and_paths() {
        let of =
            |protocol, text| Endpoint::parse(protocol, text).map(|e| format!("{}{}", e.authority, e.path));
        assert_eq!(of(Protocol::Http, "http://otel.test:4000"), Ok("otel.test:4000/v1/traces".to_owned()));
        assert_eq!(of(Protocol::Http, "http://otel.test/"), Ok("otel.test:4318/v1/traces".to_owned()));
        assert_eq!(of(Protocol::Http, "http://otel.test/x/v1"), Ok("otel.test:4318/x/v1".to_owned()));
        let grpc = of(Protocol::Grpc, "otel.test").expect("good");
        assert!(grpc.starts_with("otel.test:4317/opentelemetry.proto."), "{grpc}");
        assert!(of(Protocol::Http, "https://otel.test").expect_err("TLS").contains("TLS"));
        assert!(of(Protocol::Http, "").is_err());
    }

    #[tokio::test]
    async fn sampled_spans_reach_the_collector() {
        let (seen, mut got) = mpsc::unbounded_channel();
        let handler = handler_fn(move |request: Request<hyper::body::Incoming>, _| {
            let seen = seen.clone();
            async move {
                let kind = request.headers()[header::CONTENT_TYPE].to_str().unwrap_or_default().to_owned();
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                let _ = seen.send((kind, path, body));
                let mut response = Response::new(Body::Empty);
                response.headers_mut().insert("grpc-status", HeaderValue::from_static("0"));
                response
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("bound").to_string();
        let stop = CancellationToken::new();
        let _end = stop.clone().drop_guard();
        tokio::spawn(serve(listener, PlainAcceptor, handler, ServerConfig::default(), stop));

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
