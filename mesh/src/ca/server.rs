//! The certificate of the authority's own endpoint, for workloads that have no identity yet: DNS names, signed by the
//! same roots that they were given to begin with. It renews itself.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::{Authority, leaf_params};
use crate::error::Error;
use crate::pem;

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

    /// A key and a certificate for hosts, a leading `*` among them, for whoever serves them with nothing but TLS.
    ///
    /// # Errors
    /// When a name is no DNS name, or the authority's own certificate has expired.
    pub fn certify_hosts(&self, names: &[String], now: SystemTime) -> Result<HostCertificate, Error> {
        let (key, chain, ttl) = self.sign_server(names, now)?;
        if ttl.is_zero() {
            return Err(Error::Certificate(
                "the signing certificate has expired; replace the CA's material".into(),
            ));
        }
        Ok(HostCertificate { chain: pem::encode(&chain), key: key.serialize_pem(), not_after: now + ttl })
    }

    fn certify_server(&self, names: &[String], now: SystemTime) -> Result<(CertifiedKey, Duration), Error> {
        let (key, chain, ttl) = self.sign_server(names, now)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
        Ok((CertifiedKey::new(chain, signer), ttl))
    }

    fn sign_server(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<(KeyPair, Vec<CertificateDer<'static>>, Duration), Error> {
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
        Ok((key, chain, ttl))
    }
}

/// What [`Authority::certify_hosts`] makes.
pub struct HostCertificate {
    /// The certificate, then the intermediates, PEM.
    pub chain: String,
    /// The private key, PKCS #8, PEM.
    pub key: String,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for HostCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostCertificate").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The DNS names, sorted.
    pub names: Vec<String>,
    /// From when and until when it is valid.
    pub valid: Range<SystemTime>,
}

/// Reads the first certificate of a PEM text.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn inspect(chain: &str) -> Result<Inspected, Error> {
    let chain = pem::certificates("the certificate", chain)?;
    let bad = |error: String| Error::Certificate(error);
    let (_, parsed) = X509Certificate::from_der(&chain[0]).map_err(|e| bad(e.to_string()))?;
    let mut names = Vec::new();
    if let Some(found) = parsed.subject_alternative_name().map_err(|e| bad(e.to_string()))? {
        names.extend(found.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        }));
    }
    names.sort();
    let at = |time: ASN1Time| UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().unwrap_or(0));
    let validity = parsed.validity();
    Ok(Inspected { names, valid: at(validity.not_before)..at(validity.not_after) })
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
    fn certificates_for_hosts() {
        let now = UNIX_EPOCH + Duration::from_secs(20_000 * 24 * 3600);
        let ttl = Duration::from_secs(90 * 24 * 3600);
        let root = MaterialPem::generate_root("domains", now).expect("a root");
        let authority = Authority::new("domains", ttl, &root).expect("an authority");
        let names = vec!["b.example.org".to_owned(), "*.a.example.org".to_owned()];
        let made = authority.certify_hosts(&names, now).expect("a certificate");
        let read = inspect(&made.chain).expect("it can be read");
        assert_eq!(read.names, ["*.a.example.org", "b.example.org"]);
        assert_eq!((read.valid.end, made.not_after), (now + ttl, now + ttl));
        assert!(read.valid.start < now && made.key.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(authority.certify_hosts(&["hö.example.org".to_owned()], now).is_err());
        let late = now + Duration::from_secs(4000 * 24 * 3600);
        assert!(authority.certify_hosts(&names, late).is_err(), "the root is no more");
        assert!(inspect("x").is_err());
    }

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
