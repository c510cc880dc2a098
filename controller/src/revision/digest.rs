//! What an image's tag means, at the moment the revision is made.
//!
//! The mirror, where there is one, is asked first (with `?ns=` for the registry that the image names), then the registry
//! itself, with the credentials of the pod's and its account's pull secrets.

use base64::Engine as _;
use bytes::Bytes;
use ebb_api::config::Deployment as Config;
use ebb_api::serving::ContainerStatus;
use http::{Method, Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::{Container, Secret};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client as RegistryClient, Reference};
use serde_json::Value;
use std::collections::BTreeMap;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Resolves images. Cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    mirror: Client<HttpConnector, Empty<Bytes>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { mirror: Client::builder(TokioExecutor::new()).build_http() }
    }
}

impl Resolver {
    /// The images of `containers`, by digest.
    ///
    /// # Errors
    /// A message for users that names the first image that could not be resolved, and why.
    pub async fn resolve(
        &self,
        containers: &[Container],
        config: &Config,
        credentials: &Credentials,
    ) -> Result<Vec<ContainerStatus>, String> {
        let one = |container: &Container| {
            let image = container.image.clone().unwrap_or_default();
            let name = container.name.clone();
            async move {
                let digest = self
                    .image(&image, config, credentials)
                    .await
                    .map_err(|why| format!("Unable to fetch image {image:?}: {why}"))?;
                Ok(ContainerStatus { name: Some(name), image_digest: Some(digest) })
            }
        };
        futures::future::try_join_all(containers.iter().map(one)).await
    }

    async fn image(&self, image: &str, config: &Config, credentials: &Credentials) -> Result<String, String> {
        let reference: Reference = image.parse().map_err(|e| format!("could not parse reference: {e}"))?;
        if let Some(digest) = reference.digest() {
            return Ok(pinned(&reference, digest));
        }
        if config.registries_skipping_tag_resolving.contains(reference.registry()) {
            return Ok(image.to_owned());
        }
        let lookup = async {
            if let Some(mirror) = &config.registry_mirror
                && let Some(digest) = self.ask_mirror(mirror, &reference).await
            {
                return Ok(digest);
            }
            ask_registry(&reference, credentials).await
        };
        match tokio::time::timeout(config.digest_resolution_timeout, lookup).await {
            Ok(found) => found.map(|digest| pinned(&reference, &digest)),
            Err(_) => Err(format!(
                "the registry {} did not answer within {}",
                reference.registry(),
                ebb_api::duration::format(config.digest_resolution_timeout)
            )),
        }
    }

    /// The digest as the mirror knows it. What it does not know the registry is asked for, so an error here is none.
    async fn ask_mirror(&self, mirror: &str, reference: &Reference) -> Option<String> {
        let url = format!(
            "{mirror}/v2/{}/manifests/{}?ns={}",
            reference.repository(),
            reference.tag().unwrap_or("latest"),
            reference.registry()
        );
        let request = Request::builder()
            .method(Method::HEAD)
            .uri(url)
            .header(header::ACCEPT, MANIFESTS)
            .body(Empty::new())
            .ok()?;
        let response = self.mirror.request(request).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let digest = response.headers().get("docker-content-digest")?.to_str().ok()?;
        Some(digest.to_owned())
    }
}

fn pinned(reference: &Reference, digest: &str) -> String {
    format!("{}/{}@{digest}", reference.registry(), reference.repository())
}

/// Whether a registry is on this machine, where TLS is not the custom.
fn is_local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.starts_with("127.") || host == "[::1]" || host.ends_with(".local")
}

async fn ask_registry(reference: &Reference, credentials: &Credentials) -> Result<String, String> {
    let protocol = if is_local(reference.registry()) { ClientProtocol::Http } else { ClientProtocol::Https };
    let client = RegistryClient::new(ClientConfig { protocol, ..ClientConfig::default() });
    let auth = credentials.for_registry(reference.registry());
    client.fetch_manifest_digest(reference, &auth).await.map_err(|error| explain(&error))
}

/// The registry's own words, where it has some.
fn explain(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => {
            "manifest unknown: the registry has no such image or tag".into()
        }
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            format!("{error}: the image does not exist or needs imagePullSecrets")
        }
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .map(|e| if e.message.is_empty() { format!("{:?}", e.code) } else { e.message.clone() })
            .collect::<Vec<_>>()
            .join("; "),
        OciDistributionError::ServerError { code, message, .. } => format!("status {code}: {message}"),
        OciDistributionError::RequestError(request) => {
            let mut text = request.to_string();
            let mut source = std::error::Error::source(request);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        }
        other => other.to_string(),
    }
}

/// User names and passwords by registry.
#[derive(Clone, Debug, Default)]
pub struct Credentials(BTreeMap<String, (String, String)>);

impl Credentials {
    /// Adds those of a pull secret (`kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`). Earlier ones win.
    pub fn add(&mut self, secret: &Secret) {
        let data = secret.data.as_ref();
        let read = |key: &str| {
            data.and_then(|d| d.get(key)).and_then(|b| serde_json::from_slice::<Value>(&b.0).ok())
        };
        let auths = read(".dockerconfigjson").map(|v| v["auths"].clone()).or_else(|| read(".dockercfg"));
        for (registry, entry) in auths.as_ref().and_then(Value::as_object).into_iter().flatten() {
            let field = |name: &str| entry[name].as_str().map(str::to_owned);
            let decoded = field("auth")
                .and_then(|a| base64::engine::general_purpose::STANDARD.decode(a).ok())
                .and_then(|b| String::from_utf8(b).ok())
                .and_then(|t| t.split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned())));
            let pair = field("username").zip(field("password")).or(decoded);
            if let Some(pair) = pair {
                self.0.entry(host_of(registry)).or_insert(pair);
            }
        }
    }

    fn for_registry(&self, registry: &str) -> RegistryAuth {
        match self.0.get(&host_of(registry)) {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.clone()),
            None => RegistryAuth::Anonymous,
        }
    }
}

/// The host of a registry as pull secrets name it, with or without scheme and path.
fn host_of(registry: &str) -> String {
    let host = registry.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io".into() } else { host.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn pull_secrets() {
        let json = br#"{"auths": {"https://index.docker.io/v1/": {"auth": "am86c2VjcmV0"}, "ghcr.io": {"username": "a", "password": "b"}}}"#;
        let secret = Secret {
            data: Some(BTreeMap::from([(".dockerconfigjson".to_owned(), ByteString(json.to_vec()))])),
            ..Secret::default()
        };
        let mut credentials = Credentials::default();
        credentials.add(&secret);
        assert!(
            matches!(credentials.for_registry("docker.io"), RegistryAuth::Basic(u, p) if u == "jo" && p == "secret")
        );
        assert!(matches!(credentials.for_registry("ghcr.io"), RegistryAuth::Basic(u, _) if u == "a"));
        assert!(matches!(credentials.for_registry("quay.io"), RegistryAuth::Anonymous));
    }

    #[tokio::test]
    async fn digests_and_skipped_registries_need_no_registry() {
        let config = Config::default();
        let digest = format!("a.example/x@sha256:{}", "0".repeat(64));
        for (image, want) in [(digest.as_str(), digest.as_str()), ("ko.local/x:v1", "ko.local/x:v1")] {
            let container = Container { name: "c".into(), image: Some(image.into()), ..Container::default() };
            let found = Resolver::default().resolve(&[container], &config, &Credentials::default()).await;
            assert_eq!(found.expect("resolved")[0].image_digest.as_deref(), Some(want));
        }
    }
}
