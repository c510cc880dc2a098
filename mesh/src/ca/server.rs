//! The certificate of the authority's own endpoint, for workloads that have no identity yet: DNS names, signed by the
//! same roots that they were given to begin with. It renews itself.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

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
        resolver.fresh(SystemTime::now())?;
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
    current: Mutex<Option<Current>>,
}

struct Current {
    key: Arc<CertifiedKey>,
    good: Range<SystemTime>,
    /// The number of the material that signed it.
    material: u64,
}

impl SelfRenewing {
    /// By the time of day: the machine may have slept meanwhile. One that was set back counts as old.
    fn fresh(&self, now: SystemTime) -> Result<Arc<CertifiedKey>, Error> {
        // After a replacement of the authority's material the certificate must come from the new one.
        let material = self.authority.material.load().number;
        let mut current = self.current.lock();
        if let Some(current) = &*current
            && current.good.contains(&now)
            && current.material == material
        {
            return Ok(current.key.clone());
        }
        let (key, ttl) = self.authority.certify_server(&self.names, now)?;
        let key = Arc::new(key);
        *current = Some(Current { key: key.clone(), good: now..now + ttl * 2 / 3, material });
        Ok(key)
    }
}

impl ResolvesServerCert for SelfRenewing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.fresh(SystemTime::now()) {
            Ok(key) => Some(key),
            Err(error) => {
                tracing::error!(%error, "cannot renew the certificate authority's own server certificate");
                self.current.lock().as_ref().map(|current| current.key.clone())
            }
        }
    }
}

impl std::fmt::Debug for SelfRenewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SelfRenewing").field("names", &self.names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::MaterialPem;

    #[test]
    fn the_certificate_is_renewed_by_the_time_of_day() {
        let now = SystemTime::now();
        let (ttl, hour) = (Duration::from_secs(24 * 3600), Duration::from_secs(3600));
        let root = MaterialPem::generate_root("cluster.local", now).expect("a root");
        let authority = Arc::new(Authority::new("cluster.local", ttl, &root).expect("an authority"));
        let names = vec!["controller".to_owned()];
        let resolver = SelfRenewing { authority, names, current: Mutex::new(None) };
        let at = |time: SystemTime| resolver.fresh(time).expect("a certificate").cert.clone();
        let first = at(now);
        assert_eq!(at(now + 15 * hour), first);
        let second = at(now + 17 * hour);
        assert_ne!(second, first);
        assert_ne!(at(now), second, "the clock was set back: it may not be valid yet");
    }
}
