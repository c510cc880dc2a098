//! A workload's identity: obtained once, renewed for ever, used through one shared pair of TLS configurations.
//!
//! Flow: make a P-256 key, send its CSR with a token, put certificate and roots where every handshake looks them up;
//! at two thirds of the lifetime do it again with a new key. A failed renewal is tried again with growing, jittered
//! pauses while the certificate in use stays valid. Established connections are not touched.

mod client;
mod resolver;
mod sessions;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::Resumption;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::task::AbortOnDropHandle;

pub use self::client::dial_ca;
use self::resolver::Resolver;
use self::sessions::Sessions;
use crate::ca::{Authority, CertificateResponse};
use crate::clock;
use crate::error::Error;
use crate::pem;
use crate::spiffe::SpiffeId;
use crate::verify::{Verifier, peer_identity};

/// Where a text comes from: read anew each time, because kubelet replaces tokens and roots.
#[derive(Clone)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// The text itself.
    Text(Arc<str>),
    /// A function.
    Fetch(Fetch),
}

/// See [`Source::Fetch`].
pub type Fetch = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = std::io::Result<String>> + Send>> + Send + Sync>;

impl Source {
    pub(crate) async fn read(&self, what: &str) -> Result<String, Error> {
        match self {
            // These are a few kilobytes in memory-backed volumes: a thread to read them would cost more.
            Source::File(path) => std::fs::read_to_string(path)
                .map_err(Error::io(format!("reading {what} from {}", path.display()))),
            Source::Text(text) => Ok(text.to_string()),
            Source::Fetch(fetch) => fetch().await.map_err(Error::io(format!("fetching {what}"))),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "File({})", path.display()),
            Source::Text(_) => f.write_str("Text"),
            Source::Fetch(_) => f.write_str("Fetch"),
        }
    }
}

/// How a workload reaches the authority.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// `host:port` of its endpoint.
    pub ca_address: String,
    /// The DNS name that its certificate must have.
    pub ca_name: String,
    /// Roots to verify that certificate with, PEM.
    pub roots: Source,
    /// The token that proves who we are.
    pub token: Source,
    /// Our trust domain.
    pub trust_domain: String,
}

impl IdentityConfig {
    /// Token and roots where the projected volume puts them, and the endpoint's usual name.
    pub fn in_pod(ca_address: impl Into<String>, trust_domain: impl Into<String>) -> Self {
        Self {
            ca_address: ca_address.into(),
            ca_name: crate::CA_SERVER_NAME.into(),
            roots: Source::File("/var/run/secrets/ebb/ca.crt".into()),
            token: Source::File("/var/run/secrets/ebb/token".into()),
            trust_domain: trust_domain.into(),
        }
    }
}

/// Gets a CSR signed. Implemented by the authority's endpoint over the network, and by an [`Authority`] in the process.
pub trait Issue: Send + Sync + 'static {
    /// Has the key of `csr` (PEM) certified.
    fn issue(
        &self,
        csr: String,
    ) -> Pin<Box<dyn Future<Output = Result<CertificateResponse, Error>> + Send + '_>>;
}

struct Local {
    authority: Arc<Authority>,
    id: SpiffeId,
}

impl Issue for Local {
    fn issue(
        &self,
        csr: String,
    ) -> Pin<Box<dyn Future<Output = Result<CertificateResponse, Error>> + Send + '_>> {
        Box::pin(async move { self.authority.issue(&csr, &self.id, SystemTime::now()) })
    }
}

/// Growing pauses with full jitter: a crowd that failed together does not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    ceiling: Duration,
    max: Duration,
}

impl Backoff {
    /// The first pause is at most `first`, none is more than `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { ceiling: first, max }
    }

    /// The next pause; `random` is one uniformly random word.
    pub fn next(&mut self, random: u64) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(self.max);
        // At least a quarter, so that chance does not turn retries into a flood.
        let share = 0.25 + 0.75 * (random as f64 / u64::MAX as f64);
        ceiling.mul_f64(share)
    }
}

/// When a certificate that lives for `ttl` is renewed, counted from its issue.
pub fn renew_after(ttl: Duration) -> Duration {
    ttl * 2 / 3
}

/// A workload's identity. Cheap to clone; renewal ends when the last clone is dropped.
#[derive(Clone)]
pub struct Identity {
    shared: Arc<Shared>,
    _renewal: Arc<AbortOnDropHandle<()>>,
}

struct Shared {
    id: SpiffeId,
    verifier: Arc<Verifier>,
    resolver: Arc<Resolver>,
    sessions: Arc<Sessions>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Identity {
    /// Obtains an identity from the authority's endpoint, trying until it succeeds: put a time limit around it if there
    /// shall be one. Failures are logged. Must run in a tokio runtime, which the renewal then uses.
    ///
    /// # Errors
    /// When the answer cannot be used at all; everything that may pass is tried again.
    pub async fn obtain(config: IdentityConfig) -> Result<Self, Error> {
        let trust_domain = config.trust_domain.clone();
        Self::from_issuer(Arc::new(client::Endpoint(config)), &trust_domain).await
    }

    /// An identity for the process that holds the authority itself.
    ///
    /// # Errors
    /// As [`Authority::issue`]. Must run in a tokio runtime.
    pub async fn from_authority(authority: Arc<Authority>, id: SpiffeId) -> Result<Self, Error> {
        let trust_domain = authority.trust_domain().to_owned();
        // It fails only for reasons that stay: no use in trying again.
        let issuer = Arc::new(Local { authority, id });
        let first = request(&*issuer).await?;
        Self::start(issuer, first, &trust_domain)
    }

    /// An identity from any issuer, trying until it succeeds.
    ///
    /// # Errors
    /// As [`Self::obtain`].
    pub async fn from_issuer(issuer: Arc<dyn Issue>, trust_domain: &str) -> Result<Self, Error> {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(5));
        let first = retrying(&*issuer, &mut backoff).await;
        Self::start(issuer, first, trust_domain)
    }

    fn start(issuer: Arc<dyn Issue>, first: Issued, trust_domain: &str) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let id = peer_identity(Some(&first.key.cert))
            .ok_or_else(|| Error::Answer("the certificate carries no SPIFFE ID".into()))?;
        if id.trust_domain() != trust_domain {
            return Err(Error::Answer(format!(
                "the certificate is for {id}, not of the trust domain {trust_domain}"
            )));
        }
        let verifier = Arc::new(Verifier::new(first.roots, trust_domain, provider.clone())?);
        let resolver = Arc::new(Resolver(ArcSwap::from_pointee(first.key)));
        let alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(resolver.clone());
        server.alpn_protocols.clone_from(&alpn);
        // Sessions live in tickets at the clients: no memory here, however many clients there are.
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        server.send_tls13_tickets = 1;

        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(resolver.clone());
        client.alpn_protocols = alpn;
        let sessions = Sessions::new();
        client.resumption = Resumption::store(sessions.clone());

        let shared = Arc::new(Shared {
            id,
            verifier,
            resolver,
            sessions,
            server: Arc::new(server),
            client: Arc::new(client),
        });
        let renewal = tokio::spawn(renew(issuer, shared.clone(), first.ttl));
        Ok(Self { shared, _renewal: Arc::new(AbortOnDropHandle::new(renewal)) })
    }

    /// Who we are.
    pub fn id(&self) -> &SpiffeId {
        &self.shared.id
    }

    /// Our trust domain.
    pub fn trust_domain(&self) -> &str {
        self.shared.id.trust_domain()
    }

    /// The one configuration for accepting: TLS 1.3, ALPN `h2` and `http/1.1`, client certificates asked for and, when
    /// shown, verified; not demanded, so that policy can say why it refuses.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.shared.server.clone()
    }

    /// The one configuration for connecting. Sharing it is what makes sessions resume.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.shared.client.clone()
    }

    /// The roots trusted now, PEM.
    pub fn roots_pem(&self) -> String {
        pem::encode(&self.shared.verifier.roots())
    }

    /// Our certificate chain of now, DER, the leaf first. Changes with each renewal.
    pub fn chain(&self) -> Vec<rustls_pki_types::CertificateDer<'static>> {
        self.shared.resolver.0.load().cert.clone()
    }

    /// The next connection to each peer is a full handshake.
    pub(crate) fn forget_sessions(&self) {
        self.shared.sessions.forget();
    }

    pub(crate) fn verifier(&self) -> &Verifier {
        &self.shared.verifier
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.shared.id).finish()
    }
}

struct Issued {
    key: CertifiedKey,
    roots: Vec<rustls_pki_types::CertificateDer<'static>>,
    ttl: Duration,
}

/// One attempt: a new key, its CSR, the answer checked.
async fn request(issuer: &dyn Issue) -> Result<Issued, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?.pem()?;
    let answer = issuer.issue(csr).await?;
    let chain = pem::certificates("the issued chain", &answer.chain)?;
    let roots = pem::certificates("the root bundle", &answer.roots)?;
    if answer.ttl_seconds == 0 {
        return Err(Error::Answer("the certificate's lifetime is 0".into()));
    }
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = CertifiedKey::new(chain, rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?);
    key.keys_match()?;
    Ok(Issued { key, roots, ttl: Duration::from_secs(answer.ttl_seconds) })
}

async fn retrying(issuer: &dyn Issue, backoff: &mut Backoff) -> Issued {
    let mut quiet = 3u32;
    loop {
        match request(issuer).await {
            Ok(issued) => return issued,
            Err(error) => {
                let pause = backoff.next(random());
                // The first failures are usual while a platform starts.
                if quiet > 0 {
                    quiet -= 1;
                    tracing::debug!(%error, ?pause, "no certificate yet");
                } else {
                    tracing::warn!(%error, ?pause, "no certificate yet");
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn renew(issuer: Arc<dyn Issue>, shared: Arc<Shared>, mut ttl: Duration) {
    loop {
        // Sessions live for a third of a certificate's life, half of the time until its renewal.
        clock::pass(renew_after(ttl) / 2, SystemTime::now).await;
        shared.sessions.forget();
        clock::pass(renew_after(ttl) / 2, SystemTime::now).await;
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let issued = retrying(&*issuer, &mut backoff).await;
        let id = peer_identity(Some(&issued.key.cert));
        if id.as_ref() != Some(&shared.id) {
            tracing::error!(expected = %shared.id, actual = ?id, "the renewed certificate is for somebody else; ignored");
            ttl = Duration::from_secs(60);
            continue;
        }
        // Roots first: whoever is shown the new certificate may answer with one of a new root.
        if let Err(error) = shared.verifier.set_roots(issued.roots) {
            tracing::error!(%error, "the renewed roots cannot be used; the ones before stay");
        }
        shared.resolver.0.store(Arc::new(issued.key));
        shared.sessions.forget();
        ttl = issued.ttl;
        tracing::info!(id = %shared.id, ttl = ?ttl, "certificate renewed");
    }
}

fn random() -> u64 {
    let mut word = [0u8; 8];
    // Without randomness the pause is the longest of its range, which is safe.
    if aws_lc_rs::rand::fill(&mut word).is_err() {
        return u64::MAX;
    }
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests;
