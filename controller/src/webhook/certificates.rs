//! The webhooks' certificate: a CA in the Secret `webhook-certs`, and a leaf that is made anew in memory long before it expires.

use arc_swap::ArcSwap;
use kube::Client;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::secrets;

const SECRET: &str = "webhook-certs";
const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A CA that is older makes room for a new one when the controller starts.
const CA_RENEW_BEFORE: Duration = Duration::from_secs(365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

fn bad(error: impl std::fmt::Display) -> Error {
    Error::Certificate(error.to_string())
}

/// The CA, and the leaf of now.
pub(super) struct Certificates {
    ca_pem: String,
    ca_key: String,
    names: Vec<String>,
    leaf: Arc<Leaf>,
}

#[derive(Debug)]
struct Leaf(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificates {
    /// The CA of the Secret; the first controller makes it.
    pub(super) async fn ensure(client: &Client, config: &Config) -> Result<Self, Error> {
        let namespace = &config.system_namespace;
        let mut data = secrets::ensure(client, namespace, SECRET, make_ca).await?;
        if expires(&data).is_none_or(|at| at < SystemTime::now() + CA_RENEW_BEFORE) {
            data = make_ca()?;
            secrets::replace(client, namespace, SECRET, &data).await?;
        }
        let field = |key: &str| {
            data.get(key).and_then(|v| String::from_utf8(v.clone()).ok()).ok_or_else(|| Error::Secret {
                name: SECRET.into(),
                message: format!("{key} is missing or no text"),
            })
        };
        let (ca_pem, ca_key) = (field("ca-cert.pem")?, field("ca-key.pem")?);
        let mut names = vec![
            "controller".to_owned(),
            format!("controller.{namespace}"),
            format!("controller.{namespace}.svc"),
            format!("controller.{namespace}.svc.cluster.local"),
            "localhost".to_owned(),
            config.bind_address.to_string(),
        ];
        let url_host = config.webhook_url.as_deref().and_then(|u| u.parse::<http::Uri>().ok());
        names.extend(url_host.and_then(|u| u.host().map(|h| h.trim_matches(['[', ']']).to_owned())));
        names.dedup();
        let first = make_leaf(&ca_pem, &ca_key, &names)?;
        Ok(Self { ca_pem, ca_key, names, leaf: Arc::new(Leaf(ArcSwap::from_pointee(first))) })
    }

    pub(super) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider has suites of TLS 1.2 and 1.3");
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.leaf.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// Makes the leaf anew each day.
    pub(super) async fn renew(&self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(DAY) => {}
            }
            match make_leaf(&self.ca_pem, &self.ca_key, &self.names) {
                Ok(leaf) => self.leaf.0.store(Arc::new(leaf)),
                Err(error) => tracing::warn!(%error, "the webhooks' certificate was not renewed"),
            }
        }
    }
}

fn make_ca() -> Result<secrets::Data, Error> {
    let now = SystemTime::now();
    let key = KeyPair::generate().map_err(bad)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(bad)?;
    params.distinguished_name.push(DnType::CommonName, "ebb webhook CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - DAY).into();
    params.not_after = (now + CA_LIFE).into();
    let certificate = params.self_signed(&key).map_err(bad)?;
    let expires = (now + CA_LIFE).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(secrets::Data::from([
        ("ca-cert.pem".to_owned(), certificate.pem().into_bytes()),
        ("ca-key.pem".to_owned(), key.serialize_pem().into_bytes()),
        ("expires".to_owned(), expires.to_string().into_bytes()),
    ]))
}

fn expires(data: &secrets::Data) -> Option<SystemTime> {
    let seconds: u64 = std::str::from_utf8(data.get("expires")?).ok()?.parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn make_leaf(ca_pem: &str, ca_key: &str, names: &[String]) -> Result<CertifiedKey, Error> {
    let now = SystemTime::now();
    let issuer = Issuer::from_ca_cert_pem(ca_pem, KeyPair::from_pem(ca_key).map_err(bad)?).map_err(bad)?;
    let key = KeyPair::generate().map_err(bad)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(bad)?;
    params.distinguished_name.push(DnType::CommonName, "ebb webhook");
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => Ok(SanType::DnsName(name.as_str().try_into().map_err(bad)?)),
        })
        .collect::<Result<_, Error>>()?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = (now - DAY).into();
    params.not_after = (now + LEAF_LIFE).into();
    let certificate = params.signed_by(&key, &issuer).map_err(bad)?;
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(bad)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).map_err(bad)?;
    Ok(CertifiedKey::new(vec![certificate.der().clone(), ca], signer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_made_of_the_stored_ca() {
        let data = make_ca().expect("a CA");
        let text = |key: &str| String::from_utf8(data[key].clone()).expect("text");
        let names = ["controller.ebb-system.svc".to_owned(), "10.0.0.2".to_owned()];
        let leaf = make_leaf(&text("ca-cert.pem"), &text("ca-key.pem"), &names).expect("a leaf");
        assert_eq!(leaf.cert.len(), 2);
        assert!(expires(&data).expect("a time") > SystemTime::now() + CA_RENEW_BEFORE);
    }
}
