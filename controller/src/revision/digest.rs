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
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client as RegistryClient, Reference};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The authority of the API server, which may be that of others in the cluster as well.
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
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
                let digest = self.image(&image, config, credentials).await.map_err(|why| {
                    format!("Unable to fetch image {image:?}: failed to resolve image to digest: {why}")
                })?;
                Ok(ContainerStatus { name: Some(name), image_digest: digest })
            }
        };
        futures::future::try_join_all(containers.iter().map(one)).await
    }

    /// The image by digest; none where the tag is to be used as it is.
    async fn image(
        &self,
        image: &str,
        config: &Config,
        credentials: &Credentials,
    ) -> Result<Option<String>, String> {
        let reference: Reference =
            image.parse().map_err(|e| format!("failed to parse image name {image:?}: {e}"))?;
        if reference.digest().is_some() {
            return Ok(Some(image.to_owned()));
        }
        if skips(config, reference.registry()) {
            return Ok(None);
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
            Ok(Ok(digest)) => {
                Ok(Some(format!("{}/{}@{digest}", reference.registry(), reference.repository())))
            }
            Ok(Err(why)) => Err(credentials.remark(why)),
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

/// Whether tags of a registry are used as they are. Docker's has two names.
fn skips(config: &Config, registry: &str) -> bool {
    let skipped = &config.registries_skipping_tag_resolving;
    skipped.contains(registry) || registry == "docker.io" && skipped.contains("index.docker.io")
}

/// Whether a registry is on this machine or in a private network, where TLS is not always the custom.
fn is_near(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.rsplit_once(':').map_or(registry, |(host, _)| host),
    };
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_private(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unique_local(),
        Err(_) => host == "localhost" || host.ends_with(".local") || host.ends_with(".localhost"),
    }
}

async fn ask_registry(reference: &Reference, credentials: &Credentials) -> Result<String, String> {
    if !is_near(reference.registry()) {
        return ask_by(ClientProtocol::Https, reference, credentials).await.map_err(|e| explain(&e));
    }
    let plain = match ask_by(ClientProtocol::Http, reference, credentials).await {
        Ok(digest) => return Ok(digest),
        Err(error) => error,
    };
    // Plain HTTP at a port that speaks TLS: whatever is said over TLS counts. Where there is no TLS, what was said without it.
    match ask_by(ClientProtocol::Https, reference, credentials).await {
        Ok(digest) => Ok(digest),
        Err(OciDistributionError::RequestError(_)) => Err(explain(&plain)),
        Err(error) => Err(explain(&error)),
    }
}

async fn ask_by(
    protocol: ClientProtocol,
    reference: &Reference,
    credentials: &Credentials,
) -> Result<String, OciDistributionError> {
    // A registry in the cluster may have a certificate of the cluster's own authority.
    let cluster = std::fs::read(CLUSTER_CA).ok();
    let extra = cluster.map(|data| Certificate { encoding: CertificateEncoding::Pem, data });
    let config = ClientConfig {
        protocol,
        extra_root_certificates: extra.into_iter().collect(),
        ..ClientConfig::default()
    };
    let auth = credentials.for_registry(reference.registry());
    RegistryClient::new(config).fetch_manifest_digest(reference, &auth).await
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
pub struct Credentials {
    known: BTreeMap<String, (String, String)>,
    missing: Vec<String>,
}

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
                self.known.entry(host_of(registry)).or_insert(pair);
            }
        }
    }

    /// Notes that a pull secret is not there, or is of no use.
    pub fn lack(&mut self, secret: &str, why: &str) {
        self.missing.push(format!("pull secret {secret:?} {why}"));
    }

    /// What went wrong, and what may be the cause.
    fn remark(&self, why: String) -> String {
        if self.missing.is_empty() { why } else { format!("{why} ({})", self.missing.join(", ")) }
    }

    fn for_registry(&self, registry: &str) -> RegistryAuth {
        match self.known.get(&host_of(registry)) {
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
        let short = format!("x@sha256:{}", "0".repeat(64));
        for (image, want) in [
            (digest.as_str(), Some(digest.as_str())),
            (short.as_str(), Some(short.as_str())),
            ("ko.local/x:v1", None),
        ] {
            let container = Container { name: "c".into(), image: Some(image.into()), ..Container::default() };
            let found = Resolver::default().resolve(&[container], &config, &Credentials::default()).await;
            assert_eq!(found.expect("resolved")[0].image_digest.as_deref(), want);
        }
    }

    #[tokio::test]
    async fn what_failed_and_what_may_be_the_cause() {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let mut credentials = Credentials::default();
        credentials.lack("regcred", "is not there");
        let container =
            Container { name: "c".into(), image: Some("localhost:1/x:v1".into()), ..Container::default() };
        let said = Resolver::default().resolve(&[container], &Config::default(), &credentials).await;
        let said = said.expect_err("nothing listens there");
        let prefix = "Unable to fetch image \"localhost:1/x:v1\": failed to resolve image to digest: ";
        assert!(said.starts_with(prefix), "{said}");
        assert!(said.ends_with("(pull secret \"regcred\" is not there)"), "{said}");
    }

    #[test]
    fn near_registries() {
        for (registry, want) in [
            ("localhost:5000", true),
            ("127.0.0.1", true),
            ("[::1]:5000", true),
            ("10.0.0.7:5000", true),
            ("registry.default.svc.cluster.local:5000", true),
            ("docker.io", false),
            ("8.8.8.8:5000", false),
        ] {
            assert_eq!(is_near(registry), want, "{registry}");
        }
    }
}
