//! The settings of the process. What users may change while it runs is in the `config-*` ConfigMaps instead.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_api::meta::ebb::SYSTEM_NAMESPACE;
use ebb_component::leader::Candidate;
use ebb_component::{BadVariable, Env, Health, Ports};
use ebb_mesh::Mode;
use tokio_util::sync::CancellationToken;

use crate::revision::Platform;

const CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 3600);
const ROTATE_AFTER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Kubelet takes up to two minutes to bring a changed ConfigMap into a running pod.
const SHORTEST_STEP: Duration = Duration::from_secs(600);
const CONCURRENCY: NonZeroUsize = NonZeroUsize::new(32).expect("it is not 0");

/// What must have happened before the platform takes work. Shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// The webhooks are registered.
    pub webhooks: CancellationToken,
    /// The reconcilers have the whole picture.
    pub reconcilers: CancellationToken,
}

impl Readiness {
    /// Waits for both.
    pub async fn wait(&self) {
        tokio::join!(self.webhooks.cancelled(), self.reconcilers.cancelled());
    }

    /// Whether both have happened.
    pub fn is_ready(&self) -> bool {
        self.webhooks.is_cancelled() && self.reconcilers.is_cancelled()
    }
}

/// When a key that signs certificates is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// When it is this old; none for never.
    pub after: Option<Duration>,
    /// How long each step takes: at least the lifetime of the certificates that it signs, and long enough for the news of a root to reach
    /// whoever shall trust it.
    pub step: Duration,
}

/// The settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The namespace of the components. `SYSTEM_NAMESPACE`, default ebb-system.
    pub system_namespace: String,
    /// Where to listen. `EBB_BIND_ADDRESS`, default 0.0.0.0.
    pub bind_address: IpAddr,
    /// The port of the webhooks. `EBB_WEBHOOK_PORT`, default 8443.
    pub webhook_port: u16,
    /// The port of the certificate authority. `EBB_CA_PORT`, default 8114.
    pub ca_port: u16,
    /// Where the API server reaches the webhooks, if not by the Service `controller`. `EBB_WEBHOOK_URL`, such as
    /// `https://10.0.0.2:8443`.
    pub webhook_url: Option<String>,
    /// Whose identities are signed. `EBB_TRUST_DOMAIN`, default cluster.local.
    pub trust_domain: String,
    /// How long workload certificates live. `EBB_CERTIFICATE_TTL`, default 24h.
    pub certificate_ttl: Duration,
    /// When the keys of the mesh's authority and of the webhooks are replaced. `EBB_CA_ROTATE_AFTER`, default 8760h; 0 for never.
    pub renewal: Renewal,
    /// host:port of the activators, for queue-proxies. `EBB_ACTIVATOR`.
    pub activator: String,
    /// host:port of the authority, for queue-proxies. `EBB_CA`.
    pub ca: String,
    /// strict or permissive, for queue-proxies. `EBB_MTLS_MODE`, default strict.
    pub mtls_mode: String,
    /// The ports of health and metrics. `EBB_HEALTH_PORT`, `EBB_METRICS_PORT`.
    pub ports: Ports,
    /// Cancelled once the webhooks are registered and the reconcilers work. Not from the environment.
    pub ready: Readiness,
    /// Our name in the election of the replica whose reconcilers work. `POD_NAME`, `POD_IP`; without them there is no election.
    pub candidate: Option<Candidate>,
    /// Reconciliations at a time. `EBB_CONCURRENCY`, default 32.
    pub concurrency: NonZeroUsize,
}

impl Default for Config {
    fn default() -> Self {
        Self::in_namespace(SYSTEM_NAMESPACE)
    }
}

impl Config {
    /// The defaults for components in `namespace`.
    pub fn in_namespace(namespace: &str) -> Self {
        Self {
            system_namespace: namespace.into(),
            bind_address: IpAddr::from([0, 0, 0, 0]),
            webhook_port: 8443,
            ca_port: ebb_http::ports::CA,
            webhook_url: None,
            trust_domain: ebb_mesh::DEFAULT_TRUST_DOMAIN.into(),
            certificate_ttl: CERTIFICATE_TTL,
            renewal: Renewal { after: Some(ROTATE_AFTER), step: CERTIFICATE_TTL },
            // The dot at the end makes the names absolute: with the five dots that a pod's resolv.conf asks for, each would else be looked up
            // in every search domain first, eight packets instead of two in the middle of a cold start.
            activator: format!("activator.{namespace}.svc.cluster.local.:{}", ebb_http::ports::MTLS),
            ca: format!("controller.{namespace}.svc.cluster.local.:{}", ebb_http::ports::CA),
            mtls_mode: "strict".into(),
            ports: Ports::default(),
            ready: Readiness::default(),
            candidate: None,
            concurrency: CONCURRENCY,
        }
    }

    /// Reads the environment.
    ///
    /// # Errors
    /// The first bad variable.
    pub fn from_env(env: &Env<'_>) -> Result<Self, BadVariable> {
        let default = Self::in_namespace(&env.namespace());
        let mode = env.parsed("EBB_MTLS_MODE", "strict or permissive", Mode::Strict)?;
        let certificate_ttl = duration(env, "EBB_CERTIFICATE_TTL", false)?.unwrap_or(CERTIFICATE_TTL);
        let rotate_after = duration(env, "EBB_CA_ROTATE_AFTER", true)?.unwrap_or(ROTATE_AFTER);
        Ok(Self {
            bind_address: env.bind()?,
            ports: env.ports()?,
            webhook_port: env.parsed("EBB_WEBHOOK_PORT", "a port", default.webhook_port)?,
            ca_port: env.parsed("EBB_CA_PORT", "a port", default.ca_port)?,
            webhook_url: env.get("EBB_WEBHOOK_URL"),
            trust_domain: env.text("EBB_TRUST_DOMAIN", default.trust_domain),
            certificate_ttl,
            renewal: Renewal {
                after: (!rotate_after.is_zero()).then_some(rotate_after),
                step: certificate_ttl.max(SHORTEST_STEP),
            },
            activator: env.text("EBB_ACTIVATOR", default.activator),
            ca: env.text("EBB_CA", default.ca),
            mtls_mode: if mode == Mode::Strict { "strict" } else { "permissive" }.into(),
            concurrency: env.parsed("EBB_CONCURRENCY", "a number of at least 1", default.concurrency)?,
            candidate: env.candidate()?,
            system_namespace: default.system_namespace,
            ready: default.ready,
        })
    }

    /// Readiness as kubelet sees it.
    pub(crate) fn health(&self) -> Health {
        Health::of([("webhooks", self.ready.webhooks.clone()), ("caches", self.ready.reconcilers.clone())])
    }

    /// What pods are told.
    pub(crate) fn platform(&self, roots: String) -> Platform {
        Platform {
            system_namespace: self.system_namespace.clone(),
            activator: self.activator.clone(),
            ca: self.ca.clone(),
            trust_domain: self.trust_domain.clone(),
            mtls_mode: self.mtls_mode.parse().unwrap_or_default(),
            roots,
        }
    }
}

/// A duration of at least a minute; where it can be turned off, also 0.
fn duration(env: &Env<'_>, variable: &'static str, or_off: bool) -> Result<Option<Duration>, BadVariable> {
    let Some(value) = env.get(variable) else { return Ok(None) };
    let parsed = if value == "0" { Some(Duration::ZERO) } else { ebb_api::duration::parse(&value) };
    match parsed.filter(|d| *d >= Duration::from_secs(60) || (or_off && d.is_zero())) {
        Some(duration) => Ok(Some(duration)),
        None => {
            let off = if or_off { ", or 0 for never" } else { "" };
            let wanted = format!("a duration of at least a minute, such as 24h{off}");
            Err(BadVariable { variable, value, wanted })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment() {
        let config = Config::from_env(&Env::new(&|_| None)).expect("defaults are good");
        assert_eq!(config.activator, "activator.ebb-system.svc.cluster.local.:8112");
        let get = |name: &str| (name == "SYSTEM_NAMESPACE").then(|| "other".into());
        let config = Config::from_env(&Env::new(&get)).expect("good");
        assert_eq!(config.ca, "controller.other.svc.cluster.local.:8114");
        let get = |name: &str| (name == "EBB_CA_ROTATE_AFTER").then(|| "0".into());
        assert_eq!(Config::from_env(&Env::new(&get)).expect("good").renewal.after, None);
        for (variable, value) in [
            ("EBB_WEBHOOK_PORT", "x"),
            ("EBB_MTLS_MODE", "maybe"),
            ("EBB_CERTIFICATE_TTL", "1s"),
            ("EBB_CA_ROTATE_AFTER", "1s"),
            ("EBB_CONCURRENCY", "0"),
        ] {
            let get = |name: &str| (name == variable).then(|| value.into());
            let error = Config::from_env(&Env::new(&get)).expect_err(variable);
            assert!(error.to_string().starts_with(variable), "{error}");
        }
    }
}
