//! HTTPS to webhooks, with connections kept for each target and trust.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine;
use bytes::Bytes;
use dashmap::DashMap;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Url;

use crate::Resolver;

/// Largest answer that is read; Kubernetes' own objects are limited to 3 MiB.
const MAX_ANSWER: usize = 8 << 20;

/// Where a webhook is.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) url: Url,
    /// Namespace, name and port, if it is a Service.
    service: Option<(String, String, u16)>,
    ca_bundle: String,
}

impl Target {
    /// Reads a `clientConfig`.
    pub(crate) fn parse(config: &Value, timeout: u64) -> Result<Target, String> {
        let ca_bundle = config.get("caBundle").and_then(Value::as_str).unwrap_or_default().to_owned();
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let (mut url, service) = match (text(config, "url"), config.get("service")) {
            (Some(url), None) => {
                let url =
                    Url::parse(&url).map_err(|e| format!("unable to load clientConfig.url {url:?}: {e}"))?;
                if url.scheme() != "https" {
                    return Err(format!("clientConfig.url must be https, got {url}"));
                }
                (url, None)
            }
            (None, Some(service)) => {
                let namespace = text(service, "namespace").unwrap_or_default();
                let name = text(service, "name").unwrap_or_default();
                let port = service
                    .get("port")
                    .and_then(Value::as_u64)
                    .and_then(|p| u16::try_from(p).ok())
                    .unwrap_or(443);
                let path = text(service, "path").unwrap_or_default();
                let url = format!("https://{name}.{namespace}.svc:{port}/{}", path.trim_start_matches('/'));
                let url =
                    Url::parse(&url).map_err(|e| format!("clientConfig.service makes no address: {e}"))?;
                (url, Some((namespace, name, port)))
            }
            _ => return Err("exactly one of clientConfig.url and clientConfig.service must be set".into()),
        };
        url.query_pairs_mut().append_pair("timeout", &format!("{timeout}s"));
        Ok(Target { url, service, ca_bundle })
    }

    fn key(&self) -> String {
        format!(
            "{}:{} {}",
            self.url.host_str().unwrap_or_default(),
            self.url.port().unwrap_or(443),
            self.ca_bundle
        )
    }
}

type Pool = Client<Connector, Full<Bytes>>;

/// One pool of connections for each target and trust.
pub(crate) struct Clients {
    resolver: Arc<dyn Resolver>,
    pools: DashMap<String, Pool>,
}

/// More targets than this are forgotten together: configurations come and go, and their old certificates with them.
const MAX_POOLS: usize = 256;

impl Clients {
    pub(crate) fn new(resolver: Arc<dyn Resolver>) -> Clients {
        Clients { resolver, pools: DashMap::new() }
    }

    /// Sends a review and returns the body of the answer.
    pub(crate) async fn post(&self, target: Target, body: Vec<u8>) -> Result<Bytes, String> {
        let url = target.url.to_string();
        let failed = |e: String| format!("failed to call webhook: Post {url:?}: {e}");
        let uri: Uri = url.parse().map_err(|e| failed(format!("{e}")))?;
        let pool = self.pool(target).map_err(failed)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| failed(e.to_string()))?;
        let response = pool.request(request).await.map_err(|e| failed(root_cause(&e)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| failed(format!("reading the answer: {e}")))?
            .to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        let text: String = text.trim().chars().take(256).collect();
        Err(match status.as_u16() {
            404 => "failed to call webhook: the server could not find the requested resource".into(),
            code if code >= 500 => {
                format!(
                    "failed to call webhook: an error on the server ({text:?}) has prevented the request from succeeding"
                )
            }
            _ => format!("failed to call webhook: the server rejected our request: {status}: {text}"),
        })
    }

    fn pool(&self, target: Target) -> Result<Pool, String> {
        let key = target.key();
        if let Some(pool) = self.pools.get(&key) {
            return Ok(pool.clone());
        }
        let connector = Connector { target: Arc::new(connect_to(&target)?), resolver: self.resolver.clone() };
        let pool: Pool = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(8).build(connector);
        if self.pools.len() >= MAX_POOLS {
            self.pools.clear();
        }
        self.pools.insert(key, pool.clone());
        Ok(pool)
    }
}

/// The innermost error: it names what really happened.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

struct Endpoint {
    host: String,
    port: u16,
    service: Option<(String, String, u16)>,
    name: ServerName<'static>,
    tls: TlsConnector,
}

fn connect_to(target: &Target) -> Result<Endpoint, String> {
    let host = target.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|e| format!("{host:?} is no server name: {e}"))?;
    let mut roots = RootCertStore::empty();
    if target.ca_bundle.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    } else {
        let pem = base64::engine::general_purpose::STANDARD
            .decode(target.ca_bundle.trim())
            .map_err(|e| format!("unable to load root certificates: caBundle is not base64: {e}"))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let certificates = certificates.map_err(|e| format!("unable to load root certificates: {e}"))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err("unable to load root certificates: unable to parse bytes as PEM block".into());
        }
    }
    let provider = rustls::crypto::CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("no usable TLS version: {e}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Endpoint {
        host,
        port: target.url.port().unwrap_or(443),
        service: target.service.clone(),
        name,
        tls: TlsConnector::from(Arc::new(config)),
    })
}

#[derive(Clone)]
struct Connector {
    target: Arc<Endpoint>,
    resolver: Arc<dyn Resolver>,
}

impl tower::Service<Uri> for Connector {
    type Response = Tls;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Tls, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Connector { target, resolver } = self.clone();
        Box::pin(async move {
            let tcp = match &target.service {
                Some((namespace, name, port)) => {
                    let address: SocketAddr =
                        resolver.resolve(namespace, name, *port).await.map_err(std::io::Error::other)?;
                    dial(address).await?
                }
                None => TcpStream::connect((target.host.as_str(), target.port)).await.map_err(|e| {
                    std::io::Error::new(e.kind(), format!("dial tcp {}:{}: {e}", target.host, target.port))
                })?,
            };
            tcp.set_nodelay(true)?;
            let stream = target.tls.connect(target.name.clone(), tcp).await.map_err(|e| {
                std::io::Error::other(format!("tls: failed to verify certificate or to shake hands: {e}"))
            })?;
            Ok(Tls(TokioIo::new(stream)))
        })
    }
}

async fn dial(address: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect(address)
        .await
        .map_err(|e| std::io::Error::new(e.kind(), format!("dial tcp {address}: {e}")))
}

/// A TLS connection that tells the pool whether it speaks HTTP/2.
struct Tls(TokioIo<TlsStream<TcpStream>>);

impl Connection for Tls {
    fn connected(&self) -> Connected {
        let (_, session) = self.0.inner().get_ref();
        if session.alpn_protocol() == Some(b"h2") {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl hyper::rt::Read for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<Result<usize, std::io::Error>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
