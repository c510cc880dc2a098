//! The authority's endpoint, seen from a workload.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{IdentityConfig, Issue};
use crate::ca::{CertificateRequest, CertificateResponse};
use crate::error::Error;
use crate::pem;

/// One exchange takes milliseconds; beyond this the other side is gone.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 256 << 10;

pub(super) struct Endpoint(pub(super) IdentityConfig);

impl Issue for Endpoint {
    fn issue(
        &self,
        csr: String,
    ) -> Pin<Box<dyn Future<Output = Result<CertificateResponse, Error>> + Send + '_>> {
        Box::pin(async move {
            match tokio::time::timeout(TIMEOUT, exchange(&self.0, csr)).await {
                Ok(answer) => answer,
                Err(_) => {
                    Err(Error::Answer(format!("{} did not answer within {TIMEOUT:?}", self.0.ca_address)))
                }
            }
        })
    }
}

/// Connects to the authority's endpoint and verifies it by the bootstrap roots and its DNS name.
///
/// # Errors
/// When roots cannot be read, or the endpoint is unreachable or somebody else.
pub async fn dial_ca(config: &IdentityConfig) -> Result<TlsStream<TcpStream>, Error> {
    let roots = pem::certificates("the bootstrap roots", &config.roots.read("the mesh roots").await?)?;
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(store)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(config.ca_name.clone())
        .map_err(|_| Error::Answer(format!("`{}` is not a DNS name", config.ca_name)))?;
    let what = || format!("connecting to the certificate authority at {}", config.ca_address);
    let tcp = TcpStream::connect(&config.ca_address).await.map_err(Error::io(what()))?;
    tcp.set_nodelay(true).map_err(Error::io(what()))?;
    TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(Error::io(what()))
}

async fn exchange(config: &IdentityConfig, csr: String) -> Result<CertificateResponse, Error> {
    let token = config.token.read("the service account token").await?;
    let stream = dial_ca(config).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(answer)?;
    let driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let body = serde_json::to_vec(&CertificateRequest { csr }).map_err(answer)?;
    let request = Request::post(crate::CERTIFICATES_PATH)
        .header(header::HOST, config.ca_name.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
        .body(Full::new(Bytes::from(body)))
        .map_err(answer)?;
    let response = sender.send_request(request).await.map_err(answer)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|e| Error::Answer(e.to_string()))?
        .to_bytes();
    drop(driver);
    if !status.is_success() {
        return Err(Error::Refused {
            address: config.ca_address.clone(),
            status: status.as_u16(),
            message: String::from_utf8_lossy(&body).trim().chars().take(500).collect(),
        });
    }
    serde_json::from_slice(&body).map_err(answer)
}

fn answer(error: impl std::error::Error) -> Error {
    Error::Answer(error.to_string())
}
