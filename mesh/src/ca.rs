//! The certificate authority: a key, a chain to a root, and the set of roots that workloads shall trust.
//!
//! It signs for an identity that its host has established (from a ServiceAccount token); the names in a request are
//! ignored, its public key is all that counts. Workload certificates are for both ends of a connection, for 24 h.

pub mod rotation;
mod server;

pub use server::{HostCertificate, Inspected, inspect};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use crate::error::Error;
use crate::pem;
use crate::spiffe::SpiffeId;

/// How long a workload's certificate is valid where nothing else is configured.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long a root that we make ourselves is valid.
pub const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How many materials were read in this process.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Certificates are valid from so long before now: clocks differ.
const SKEW: Duration = Duration::from_secs(300);

/// The body of `POST /v1/certificates`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// PKCS #10, PEM, P-256.
    pub csr: String,
}

/// The answer to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateResponse {
    /// The certificate and the intermediates up to (not including) a root, PEM.
    pub chain: String,
    /// All roots to trust, PEM.
    pub roots: String,
    /// Seconds until the certificate expires.
    pub ttl_seconds: u64,
}

/// What an authority signs with, and what it tells workloads to trust.
pub struct Material {
    /// Tells one from another.
    number: u64,
    /// The signing certificate first, then its issuers without the root; empty when the root itself signs.
    intermediates: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    issuer_not_after: SystemTime,
    roots: Vec<CertificateDer<'static>>,
}

/// [`Material`] as text, to be kept in a Secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaterialPem {
    /// The signing certificate, then its issuers.
    pub chain: String,
    /// Its private key, PKCS #8.
    pub key: String,
    /// All roots that workloads shall trust.
    pub roots: String,
}

impl std::fmt::Debug for MaterialPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MaterialPem")
            .field("chain", &self.chain)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

impl MaterialPem {
    /// A new self-signed root, valid for [`ROOT_TTL`] from `now`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate_root(trust_domain: &str, now: SystemTime) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = ca_params(&format!("ebb root {trust_domain}"), now, ROOT_TTL)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key)?;
        let pem = pem::encode([root.der()]);
        Ok(Self { chain: pem.clone(), key: key.serialize_pem(), roots: pem })
    }

    /// A new intermediate, signed by `self`, which can then stay offline.
    ///
    /// # Errors
    /// When `self` cannot be read.
    pub fn generate_intermediate(
        &self,
        trust_domain: &str,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<Self, Error> {
        let parent = Material::from_pem(self)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = ca_params(&format!("ebb mesh intermediate {trust_domain}"), now, ttl)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &parent.issuer)?;
        let chain = std::iter::once(certificate.der()).chain(&parent.intermediates);
        Ok(Self { chain: pem::encode(chain), key: key.serialize_pem(), roots: self.roots.clone() })
    }

    /// The same, telling workloads to trust `other`'s signing root as well.
    pub fn trusting(&self, other: &MaterialPem) -> Result<Self, Error> {
        let mut roots = pem::certificates("the root bundle", &self.roots)?;
        for root in pem::certificates("the other root bundle", &other.roots)? {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        Ok(Self { roots: pem::encode(&roots), ..self.clone() })
    }
}

fn ca_params(name: &str, now: SystemTime, ttl: Duration) -> Result<CertificateParams, Error> {
    let mut params = base_params(now, ttl)?;
    params.distinguished_name.push(DnType::OrganizationName, "ebb");
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn base_params(now: SystemTime, ttl: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + ttl).into();
    let mut serial = [0u8; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_| Error::Certificate("the system has no randomness".into()))?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

impl Material {
    /// Reads material, checking that key, chain and roots belong together.
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn from_pem(pem: &MaterialPem) -> Result<Self, Error> {
        let mut chain = pem::certificates("the CA chain", &pem.chain)?;
        let roots = pem::certificates("the root bundle", &pem.roots)?;
        let key = KeyPair::from_pem(&pem.key)
            .map_err(|e| Error::Pem { what: "the CA key", detail: e.to_string() })?;
        let signer = chain[0].clone();
        let issuer_not_after = {
            let (_, parsed) =
                X509Certificate::from_der(&signer).map_err(|e| Error::Certificate(e.to_string()))?;
            if !parsed.is_ca() {
                return Err(Error::Certificate("the first certificate of the CA chain is not a CA".into()));
            }
            if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
                return Err(Error::Certificate("the CA key does not belong to the CA certificate".into()));
            }
            UNIX_EPOCH + Duration::from_secs(parsed.validity().not_after.timestamp().try_into().unwrap_or(0))
        };
        // Roots are known to workloads; sending them along would only lengthen every handshake.
        chain.retain(|c| !roots.contains(c));
        if chain.first() != Some(&signer) && !roots.contains(&signer) {
            return Err(Error::Certificate(
                "the CA certificate is neither a root nor first in its chain".into(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&signer, key)?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { number, intermediates: chain, issuer, issuer_not_after, roots })
    }
}

/// Signs certificates. Its material can be replaced while it is in use. Shared by `Arc`.
pub struct Authority {
    trust_domain: String,
    ttl: Duration,
    material: ArcSwap<Material>,
}

impl Authority {
    /// An authority for `trust_domain` whose workload certificates live for `ttl`.
    ///
    /// # Errors
    /// When the material cannot be read.
    pub fn new(trust_domain: impl Into<String>, ttl: Duration, pem: &MaterialPem) -> Result<Self, Error> {
        let material = ArcSwap::from_pointee(Material::from_pem(pem)?);
        Ok(Self { trust_domain: trust_domain.into(), ttl, material })
    }

    /// Signs with other material from now on.
    ///
    /// # Errors
    /// When it cannot be read; the material before stays then.
    pub fn replace(&self, pem: &MaterialPem) -> Result<(), Error> {
        self.material.store(Arc::new(Material::from_pem(pem)?));
        Ok(())
    }

    /// Whose identities it signs.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// How long its certificates live.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// All roots that workloads shall trust, PEM.
    pub fn roots_pem(&self) -> String {
        pem::encode(&self.material.load().roots)
    }

    /// Signs the public key of a request for `id`. Everything else in the request is ignored.
    ///
    /// # Errors
    /// [`Error::Csr`] when the request is malformed, not P-256, or not signed by its own key; [`Error::Certificate`] when
    /// `id` is of another trust domain.
    pub fn issue(&self, csr_pem: &str, id: &SpiffeId, now: SystemTime) -> Result<CertificateResponse, Error> {
        if id.trust_domain() != self.trust_domain {
            return Err(Error::Certificate(format!("{id} is not of the trust domain {}", self.trust_domain)));
        }
        let key = public_key_of(csr_pem)?;
        let material = self.material.load();
        // A certificate that outlives its issuer would fail before its holder thinks of renewing it.
        let left = material.issuer_not_after.duration_since(now).unwrap_or_default();
        let ttl = self.ttl.min(left);
        if ttl.is_zero() {
            return Err(Error::Certificate(
                "the signing certificate has expired; replace the CA's material".into(),
            ));
        }
        let mut params = leaf_params(now, ttl)?;
        let uri = id.as_str().try_into().map_err(|e: rcgen::Error| Error::Certificate(e.to_string()))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &material.issuer)?;
        Ok(CertificateResponse {
            chain: pem::encode(std::iter::once(leaf.der()).chain(&material.intermediates)),
            roots: pem::encode(&material.roots),
            ttl_seconds: ttl.as_secs(),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

fn leaf_params(now: SystemTime, ttl: Duration) -> Result<CertificateParams, Error> {
    let mut params = base_params(now, ttl)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The public key of a request whose signature proves that the sender has the private one.
fn public_key_of(csr_pem: &str) -> Result<SubjectPublicKeyInfo, Error> {
    const MAX: usize = 16 << 10;
    if csr_pem.len() > MAX {
        return Err(Error::Csr("it is larger than 16 KiB"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|_| Error::Csr("it is not a PEM `CERTIFICATE REQUEST`"))?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|_| Error::Csr("it is not PKCS #10"))?;
    if !rest.is_empty() {
        return Err(Error::Csr("bytes follow it"));
    }
    let spki = &request.certification_request_info.subject_pki;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &spki.subject_public_key.data);
    key.verify(request.certification_request_info.raw, &request.signature_value.data)
        .map_err(|_| Error::Csr("its signature is not a valid ECDSA P-256 signature by its own key"))?;
    SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| Error::Csr("its key is of an unknown kind"))
}

#[cfg(test)]
mod tests;
