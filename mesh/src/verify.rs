//! Checking a peer's certificate: chain to the roots of now, validity, and exactly one SPIFFE ID of our trust domain.
//! Host names play no part.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::Error;
use crate::spiffe::SpiffeId;

/// Verifies clients and servers against roots that may change while it is in use.
pub struct Verifier {
    provider: Arc<CryptoProvider>,
    trust_domain: String,
    roots: ArcSwap<Roots>,
    generation: AtomicU64,
}

struct Roots {
    der: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Roots {
    fn new(der: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        for root in &der {
            store.add(root.clone())?;
        }
        let store = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone())
            .build()
            .map_err(|e| Error::Certificate(e.to_string()))?;
        Ok(Self { der, store, clients })
    }
}

impl Verifier {
    /// Trusts `roots` for identities of `trust_domain`.
    ///
    /// # Errors
    /// When a root cannot be used as one, or there is none.
    pub fn new(
        roots: Vec<CertificateDer<'static>>,
        trust_domain: impl Into<String>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let roots = ArcSwap::from_pointee(Roots::new(roots, &provider)?);
        Ok(Self { provider, trust_domain: trust_domain.into(), roots, generation: AtomicU64::new(0) })
    }

    /// Trusts these roots from now on. No effect when they are the same as before.
    ///
    /// # Errors
    /// As [`Self::new`]; the roots before stay then.
    pub fn set_roots(&self, roots: Vec<CertificateDer<'static>>) -> Result<(), Error> {
        if self.roots.load().der != roots {
            self.roots.store(Arc::new(Roots::new(roots, &self.provider)?));
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The roots trusted now.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.load().der.clone()
    }

    /// Whose identities are taken.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    fn identity(&self, leaf: &CertificateDer<'_>) -> Result<SpiffeId, TlsError> {
        let refuse = || TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let id = identity_of(leaf).ok_or_else(refuse)?;
        if id.trust_domain() == self.trust_domain { Ok(id) } else { Err(refuse()) }
    }

    /// Verifies a server's chain at `now`.
    ///
    /// # Errors
    /// As rustls names them: unknown issuer, expired, not yet valid, wrong purpose; or
    /// `ApplicationVerificationFailure` for a missing or foreign identity.
    pub fn verify_server(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<SpiffeId, TlsError> {
        let (leaf, intermediates) = chain.split_first().ok_or(TlsError::NoCertificatesPresented)?;
        self.server(leaf, intermediates, now)
    }

    fn server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, TlsError> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots.load().store,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        self.identity(leaf)
    }

    /// Verifies a client's chain at `now`.
    ///
    /// # Errors
    /// As [`Self::verify_server`].
    pub fn verify_client(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<SpiffeId, TlsError> {
        let (leaf, intermediates) = chain.split_first().ok_or(TlsError::NoCertificatesPresented)?;
        self.client(leaf, intermediates, now)
    }

    fn client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, TlsError> {
        self.roots.load().clients.verify_client_cert(leaf, intermediates, now)?;
        self.identity(leaf)
    }

    /// Verifies a chain that a resumed session brought along: it was checked when the session began, but may have
    /// expired since, or its root may be gone. Signatures are checked again only after a change of roots.
    pub(crate) fn verify_resumed(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        client: bool,
    ) -> Result<SpiffeId, TlsError> {
        if self.generation.load(Ordering::Acquire) > 0 {
            return if client { self.verify_client(chain, now) } else { self.verify_server(chain, now) };
        }
        let leaf = chain.first().ok_or(TlsError::NoCertificatesPresented)?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let valid =
            X509Certificate::from_der(leaf).is_ok_and(|(_, c)| c.validity().not_after.timestamp() >= seconds);
        if !valid {
            return Err(TlsError::InvalidCertificate(CertificateError::Expired));
        }
        self.identity(leaf)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("trust_domain", &self.trust_domain)
            .field("roots", &self.roots.load().der.len())
            .finish_non_exhaustive()
    }
}

/// The identity in a peer's certificates, as rustls hands them out after a handshake. No verification.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Option<SpiffeId> {
    identity_of(certificates?.first()?)
}

/// The only URI of a certificate's alternative names, if it is a SPIFFE ID (X509-SVID, section 2: exactly one).
fn identity_of(leaf: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    }
}

/// The methods that both of rustls' traits want in the same words.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, TlsError> {
            verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.server(end_entity, intermediates, now).map(|_| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Verifier {
    /// Clients without a certificate get through the handshake, so that policy can answer them with a 403 that says why.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.client(end_entity, intermediates, now).map(|_| ClientCertVerified::assertion())
    }

    signatures!();
}
