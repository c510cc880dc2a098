//! Where a collector is, and how a message gets there.

use bytes::{BufMut, Bytes, BytesMut};

use http::{HeaderValue, Request, header};
use http_body_util::BodyExt;

use crate::{Outgoing, PlainConnector, Pool, PoolConfig, RequestBody, Target};

/// How messages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Over HTTP, as protobuf.
    Http,
    /// Over gRPC, without TLS.
    Grpc,
}

impl Protocol {
    /// As `config-observability` names it; none for what is not sent by OTLP.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "http/protobuf" => Some(Self::Http),
            "grpc" => Some(Self::Grpc),
            _ => None,
        }
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Figures.
    Metrics,
}

impl Signal {
    /// Where collectors expect it.
    fn path(self, protocol: Protocol) -> &'static str {
        match (self, protocol) {
            (Self::Traces, Protocol::Http) => "/v1/traces",
            (Self::Traces, Protocol::Grpc) => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            (Self::Metrics, Protocol::Http) => "/v1/metrics",
            (Self::Metrics, Protocol::Grpc) => {
                "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
            }
        }
    }
}

/// Where messages are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    protocol: Protocol,
    /// Host and port.
    pub authority: String,
    path: String,
}

impl Endpoint {
    /// Reads `http://host:port/path` or `host:port`; the port and the path that OTLP gives may be left out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(signal: Signal, protocol: Protocol, text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix("http://").unwrap_or(text);
        if bare.contains("://") {
            return Err(format!("{text:?} is not http://HOST:PORT; TLS to the collector is not supported"));
        }
        let (authority, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
        let port = if protocol == Protocol::Grpc { 4317 } else { 4318 };
        let parsed: http::uri::Authority =
            authority.parse().map_err(|_| format!("{text:?} is not http://HOST:PORT"))?;
        let authority = match parsed.port_u16() {
            Some(_) => authority.to_owned(),
            None => format!("{authority}:{port}"),
        };
        let usual = signal.path(protocol);
        let path = if path.trim_matches('/').is_empty() || protocol == Protocol::Grpc { usual } else { path };
        Ok(Self { protocol, authority, path: path.to_owned() })
    }
}

/// Connections to collectors.
#[derive(Debug, Clone)]
pub struct Sender(Pool);

impl Default for Sender {
    fn default() -> Self {
        Self::new()
    }
}

impl Sender {
    /// Without any connection yet.
    pub fn new() -> Self {
        Self(Pool::new(PlainConnector, PoolConfig::default()))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// Why it did not arrive.
    pub async fn send(&self, endpoint: &Endpoint, body: Vec<u8>) -> Result<(), String> {
        let (wire, kind, body) = match endpoint.protocol {
            Protocol::Http => (crate::Protocol::Http1, "application/x-protobuf", Bytes::from(body)),
            Protocol::Grpc => (crate::Protocol::Http2, "application/grpc", framed(&body)),
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
        let backend = self.0.backend(&Target::plain(address, wire));
        let response = outgoing.send(&backend).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        if !parts.status.is_success() {
            return Err(format!("the collector answers {}", parts.status));
        }
        // gRPC tells in a trailer, or in the head where nothing follows.
        let told = body
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"))
            .or(parts.headers.get("grpc-status"));
        match told {
            Some(code) if code != "0" => Err(format!("the collector answers grpc-status {code:?}")),
            _ => Ok(()),
        }
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

    #[test]
    fn endpoints_with_their_usual_ports_and_paths() {
        let of = |protocol, text| {
            Endpoint::parse(Signal::Traces, protocol, text).map(|e| format!("{}{}", e.authority, e.path))
        };
        assert_eq!(of(Protocol::Http, "http://otel.test:4000"), Ok("otel.test:4000/v1/traces".to_owned()));
        assert_eq!(of(Protocol::Http, "http://otel.test/"), Ok("otel.test:4318/v1/traces".to_owned()));
        assert_eq!(of(Protocol::Http, "http://otel.test/x/v1"), Ok("otel.test:4318/x/v1".to_owned()));
        let grpc = of(Protocol::Grpc, "otel.test").expect("good");
        assert!(grpc.starts_with("otel.test:4317/opentelemetry.proto."), "{grpc}");
        assert!(of(Protocol::Http, "https://otel.test").expect_err("TLS").contains("TLS"));
        assert!(of(Protocol::Http, "").is_err());
        let metrics = Endpoint::parse(Signal::Metrics, Protocol::Http, "otel.test").expect("good");
        assert_eq!(metrics.path, "/v1/metrics");
    }
}
