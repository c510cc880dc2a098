//! A registry elsewhere, by crate oci-client, with its errors put into this crate's terms.

use std::time::Duration;

use bytes::Bytes;
use oci_client::{
    Client, Reference as Named,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError as Failure, OciErrorCode as Code},
    secrets::RegistryAuth,
};

use crate::{
    Digest, ImageError, Reference,
    manifest::{ACCEPTED, MAX_MANIFEST},
};

/// One image at its registry, with the credentials to use.
pub(super) struct Remote {
    /// The name as the user wrote it, for messages.
    pub(super) image: String,
    pub(super) reference: Reference,
    pub(super) client: Client,
    pub(super) named: Named,
    auth: RegistryAuth,
}

impl Remote {
    /// No request is made yet. A client of its own for each pull: it remembers credentials by registry, and two pull
    /// secrets for one registry must not mix.
    pub(super) async fn new(
        image: &str,
        reference: &Reference,
        auth: RegistryAuth,
        plain: bool,
    ) -> Result<Self, ImageError> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Fails only if another thread was first, which is as good.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let plain = plain || reference.is_loopback();
        let mut config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(Duration::from_secs(10)),
            use_monolithic_push: true,
            read_timeout: Some(Duration::from_secs(30)),
            user_agent: concat!("cluster-images/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        if plain {
            // HTTP_PROXY is not for this machine's own addresses, and only an explicit proxy turns that off: one that is
            // used for no host.
            config.http_proxy = Some("http://127.0.0.1:9".into());
            config.no_proxy = Some("*,0.0.0.0/0,::/0".into());
        }
        let named = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => Named::with_digest(
                reference.registry.clone(),
                reference.repository.clone(),
                digest.to_string(),
            ),
            (None, tag) => {
                let tag = tag.clone().unwrap_or_else(|| "latest".into());
                Named::with_tag(reference.registry.clone(), reference.repository.clone(), tag)
            }
        };
        let client = Client::try_from(config).map_err(|e| ImageError::Unreachable {
            image: image.to_owned(),
            registry: reference.registry.clone(),
            detail: format!("no client could be made: {}; are CA certificates installed?", chain(&e)),
        })?;
        client.store_auth_if_needed(named.resolve_registry(), &auth).await;
        Ok(Self { image: image.to_owned(), reference: reference.clone(), client, named, auth })
    }

    /// The manifest that the reference names, or the one with `digest`, checked against it.
    pub(super) async fn manifest(&self, digest: Option<&Digest>) -> Result<Bytes, ImageError> {
        let named = match digest {
            Some(digest) => self.named.clone_with_digest(digest.to_string()),
            None => self.named.clone(),
        };
        let (bytes, _) =
            self.client.pull_manifest_raw(&named, &self.auth, ACCEPTED).await.map_err(|e| self.error(e))?;
        if bytes.len() > MAX_MANIFEST {
            return Err(self.refused("its manifest is larger than 4 MiB"));
        }
        match digest {
            Some(digest) if Digest::of(&bytes) != *digest => Err(ImageError::corrupt(
                format!("manifest {digest} of {}", self.image),
                "the registry sent other content",
            )),
            _ => Ok(bytes),
        }
    }

    pub(super) fn refused(&self, detail: &str) -> ImageError {
        ImageError::Registry { image: self.image.clone(), detail: detail.to_owned() }
    }

    pub(super) fn unreachable(&self, detail: String) -> ImageError {
        ImageError::Unreachable {
            image: self.image.clone(),
            registry: self.reference.registry.clone(),
            detail,
        }
    }

    /// Whether to try again at once, from where a transfer broke off.
    pub(super) fn is_broken_connection(error: &Failure) -> bool {
        match error {
            Failure::RequestError(_) | Failure::IoError(_) => true,
            Failure::ServerError { code, .. } => *code >= 500 || *code == 429,
            _ => false,
        }
    }

    pub(super) fn error(&self, failure: Failure) -> ImageError {
        let (image, registry) = (self.image.clone(), self.reference.registry.clone());
        let unauthorized = |detail: String| ImageError::Unauthorized {
            image: image.clone(),
            registry: registry.clone(),
            detail,
        };
        let not_found = |detail: &str| ImageError::NotFound {
            image: image.clone(),
            detail: format!(
                "{registry} has no such {detail}; check name and tag, or build, load or push it here"
            ),
        };
        match &failure {
            Failure::UnauthorizedError { .. } => unauthorized("401 Unauthorized".into()),
            Failure::AuthenticationFailure(why) => unauthorized(shorten(why)),
            Failure::ImageManifestNotFoundError(_) => not_found("manifest"),
            Failure::RegistryError { envelope, .. } => {
                let said: Vec<_> =
                    envelope.errors.iter().map(|e| e.message.as_str()).filter(|m| !m.is_empty()).collect();
                let said = shorten(&said.join("; "));
                match envelope.errors.first().map(|e| &e.code) {
                    Some(Code::Unauthorized | Code::Denied) => unauthorized(said),
                    Some(Code::ManifestUnknown | Code::NotFound) => not_found("tag or digest"),
                    Some(Code::NameUnknown | Code::NameInvalid) => not_found("repository"),
                    Some(Code::BlobUnknown | Code::ManifestBlobUnknown) => not_found("layer, though its manifest names it"),
                    Some(Code::Toomanyrequests) => self.refused(&format!(
                        "{registry} limits the rate: {said}; wait, or pull with credentials in imagePullSecrets"
                    )),
                    _ => self.refused(&format!("{registry} answered: {said}")),
                }
            }
            Failure::ServerError { code: 404, .. } => not_found("repository or tag"),
            Failure::ServerError { code: code @ (401 | 403), message, .. } => {
                unauthorized(format!("{code}: {}", shorten(message)))
            }
            Failure::ServerError { code, message, .. } => {
                self.refused(&format!("{registry} answered {code}: {}", shorten(message)))
            }
            Failure::DigestError(e) => ImageError::corrupt(format!("what {registry} sent for {image}"), e),
            Failure::RequestError(e) => {
                let detail = chain(e);
                self.unreachable(if detail.contains("InvalidContentType") || detail.contains("corrupt message") {
                    format!("{detail}; it seems to speak plain HTTP, which is used only for registries on this machine")
                } else {
                    detail
                })
            }
            Failure::IoError(e) => self.unreachable(chain(e)),
            other => self.refused(&format!("{registry}: {}", shorten(&other.to_string()))),
        }
    }
}

/// An error with its causes; reqwest's own text stops before what matters.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = e.source();
    }
    text
}

/// What a stranger sent, fit for a status message.
fn shorten(text: &str) -> String {
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match one_line.char_indices().nth(200) {
        Some((at, _)) => format!("{}...", &one_line[..at]),
        None => one_line,
    }
}
