//! The settings of the process. What users may change while it runs is in the `config-*` ConfigMaps instead.

use std::net::IpAddr;
use std::time::Duration;

use ebb_api::meta::ebb::SYSTEM_NAMESPACE;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::revision::Platform;

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

/// The settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The namespace of the components. `SYSTEM_NAMESPACE`, default ebb-system.
    pub system_namespace: String,
    /// Where to listen. `BIND_ADDRESS`, default 0.0.0.0.
    pub bind_address: IpAddr,
    /// The port of the webhooks. `WEBHOOK_PORT`, default 8443.
    pub webhook_port: u16,
    /// The port of the certificate authority. `CA_PORT`, default 8114.
    pub ca_port: u16,
    /// Where the API server reaches the webhooks, if not by the Service `controller`. `WEBHOOK_URL`, such as
    /// `https://10.0.0.2:8443`.
    pub webhook_url: Option<String>,
    /// Whose identities are signed. `TRUST_DOMAIN`, default cluster.local.
    pub trust_domain: String,
    /// How long workload certificates live. `CERTIFICATE_TTL`, default 24h.
    pub certificate_ttl: Duration,
    /// host:port of the activators, for queue-proxies. `EBB_ACTIVATOR`.
    pub activator: String,
    /// host:port of the authority, for queue-proxies. `EBB_CA`.
    pub ca: String,
    /// strict or permissive, for queue-proxies. `EBB_MTLS_MODE`, default strict.
    pub mtls_mode: String,
    /// The port of liveness and readiness over plain HTTP. `HEALTH_PORT`, default 8081; 0 for none.
    pub health_port: u16,
    /// Cancelled once the webhooks are registered and the reconcilers work. Not from the environment.
    pub ready: Readiness,
    /// Reconciliations at a time. `CONCURRENCY`, default 32.
    pub concurrency: usize,
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
            certificate_ttl: Duration::from_secs(24 * 3600),
            // The dot at the end makes the names absolute: with the five dots that a pod's resolv.conf asks for, each would else be looked up
            // in every search domain first, eight packets instead of two in the middle of a cold start.
            activator: format!("activator.{namespace}.svc.cluster.local.:{}", ebb_http::ports::MTLS),
            ca: format!("controller.{namespace}.svc.cluster.local.:{}", ebb_http::ports::CA),
            mtls_mode: "strict".into(),
            health_port: ebb_http::ports::HEALTH,
            ready: Readiness::default(),
            concurrency: 32,
        }
    }

    /// Reads the environment.
    ///
    /// # Errors
    /// The first bad variable.
    pub fn from_env(get: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        fn parsed<T: std::str::FromStr>(
            get: &dyn Fn(&str) -> Option<String>,
            variable: &'static str,
            kind: &str,
            target: &mut T,
        ) -> Result<(), Error> {
            let Some(raw) = get(variable).filter(|v| !v.is_empty()) else { return Ok(()) };
            *target = raw
                .parse()
                .map_err(|_| Error::Config { variable, message: format!("{raw:?} is not {kind}") })?;
            Ok(())
        }
        let namespace = get("SYSTEM_NAMESPACE").filter(|v| !v.is_empty());
        let mut config = Self::in_namespace(namespace.as_deref().unwrap_or(SYSTEM_NAMESPACE));
        parsed(get, "BIND_ADDRESS", "an IP address", &mut config.bind_address)?;
        parsed(get, "WEBHOOK_PORT", "a port", &mut config.webhook_port)?;
        parsed(get, "CA_PORT", "a port", &mut config.ca_port)?;
        parsed(get, "HEALTH_PORT", "a port", &mut config.health_port)?;
        parsed(get, "CONCURRENCY", "a number", &mut config.concurrency)?;
        parsed(get, "TRUST_DOMAIN", "a trust domain", &mut config.trust_domain)?;
        parsed(get, "EBB_ACTIVATOR", "host:port", &mut config.activator)?;
        parsed(get, "EBB_CA", "host:port", &mut config.ca)?;
        parsed(get, "EBB_MTLS_MODE", "a mode", &mut config.mtls_mode)?;
        config.webhook_url = get("WEBHOOK_URL").filter(|v| !v.is_empty());
        if let Some(raw) = get("CERTIFICATE_TTL").filter(|v| !v.is_empty()) {
            let ttl = ebb_api::duration::parse(&raw).filter(|d| *d >= Duration::from_secs(60));
            config.certificate_ttl = ttl.ok_or_else(|| Error::Config {
                variable: "CERTIFICATE_TTL",
                message: format!("{raw:?} is not a duration of at least a minute, such as 24h"),
            })?;
        }
        if !matches!(config.mtls_mode.as_str(), "strict" | "permissive") {
            let message = format!("{:?} is neither strict nor permissive", config.mtls_mode);
            return Err(Error::Config { variable: "EBB_MTLS_MODE", message });
        }
        if config.concurrency == 0 {
            return Err(Error::Config { variable: "CONCURRENCY", message: "must be at least 1".into() });
        }
        Ok(config)
    }

    /// What pods are told.
    pub(crate) fn platform(&self, roots: String) -> Platform {
        Platform {
            system_namespace: self.system_namespace.clone(),
            activator: self.activator.clone(),
            ca: self.ca.clone(),
            trust_domain: self.trust_domain.clone(),
            mtls_mode: self.mtls_mode.clone(),
            roots,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment() {
        let config = Config::from_env(&|_| None).expect("defaults are good");
        assert_eq!(config.activator, "activator.ebb-system.svc.cluster.local.:8112");
        let config =
            Config::from_env(&|name| (name == "SYSTEM_NAMESPACE").then(|| "other".into())).expect("good");
        assert_eq!(config.ca, "controller.other.svc.cluster.local.:8114");
        for (variable, value) in [
            ("WEBHOOK_PORT", "x"),
            ("EBB_MTLS_MODE", "maybe"),
            ("CERTIFICATE_TTL", "1s"),
            ("CONCURRENCY", "0"),
        ] {
            let error =
                Config::from_env(&|name| (name == variable).then(|| value.into())).expect_err(variable);
            assert!(error.to_string().starts_with(variable), "{error}");
        }
    }
}
