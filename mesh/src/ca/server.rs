//! The certificate of the authority's own endpoint, for workloads that have no identity yet: DNS names, signed by the
//! same roots that they were given to begin with. It renews itself.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Authority, leaf_params};
use crate::error::Error;

impl Authority {
    /// A TLS 1.3 configuration for the authority's endpoint with `dns_names`; clients show no certificate. ALPN offers
    /// `http/1.1` and `h2`.
    ///
    /// # Errors
    /// When a name is no DNS name.
    pub fn server_config(self: &Arc<Self>, dns_names: &[String]) -> Result<Arc<ServerConfig>, Error> {
        let resolver =
            SelfRenewing { authority: self.clone(), names: dns_names.to_vec(), current: Mutex::new(None) };
        resolver.fresh(SystemTime::now(), Instant::now())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn certify_server(&self, names: &[String], now: SystemTime) -> Result<(CertifiedKey, Duration), Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let material = self.material.load();
        let left = material.issuer_not_after.duration_since(now).unwrap_or_default();
        let ttl = self.ttl.min(left);
        let mut params = leaf_params(now, ttl)?;
        params.subject_alt_names = names
            .iter()
            .map(|name| {
                Ok(match name.parse() {
                    Ok(ip) => SanType::IpAddress(ip),
                    Err(_) => SanType::DnsName(name.as_str().try_into()?),
                })
            })
            .collect::<Result<_, rcgen::Error>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &material.issuer)?;
        let chain =
            std::iter::once(leaf.der().clone()).chain(material.intermediates.iter().cloned()).collect();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
        Ok((CertifiedKey::new(chain, signer), ttl))
    }
}

struct SelfRenewing {
    authority: Arc<Authority>,
    names: Vec<String>,
    current: Mutex<Option<(Arc<CertifiedKey>, Instant, u64)>>,
}

impl SelfRenewing {
    fn fresh(&self, now: SystemTime, instant: Instant) -> Result<Arc<CertifiedKey>, Error> {
        // After a replacement of the authority's material the certificate must come from the new one.
        let material = self.authority.material.load().number;
        let mut current = self.current.lock();
        if let Some((key, until, of)) = &*current
            && instant < *until
            && *of == material
        {
            return Ok(key.clone());
        }
        let (key, ttl) = self.authority.certify_server(&self.names, now)?;
        let key = Arc::new(key);
        *current = Some((key.clone(), instant + ttl * 2 / 3, material));
        Ok(key)
    }
}

impl ResolvesServerCert for SelfRenewing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.fresh(SystemTime::now(), Instant::now()) {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(%error, "cannot renew the certificate authority's own server certificate");
                self.current.lock().as_ref().map(|(key, ..)| key.clone())
            }
        }
    }
}

impl std::fmt::Debug for SelfRenewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SelfRenewing").field("names", &self.names).finish_non_exhaustive()
    }
}
