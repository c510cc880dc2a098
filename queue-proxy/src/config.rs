//! The environment, parsed once.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ebb_http::log::Template;
use ebb_http::otlp::metrics::Settings;
use ebb_http::{Protocol, ports};
use ebb_mesh::{IdentityConfig, Mode};

use crate::probe::Probe;

/// A variable that is missing or wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("environment variable {name}: {problem}")]
pub struct ConfigError {
    name: &'static str,
    problem: String,
}

/// The ports, which tests choose freely.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// HTTP/1.1 and h2c.
    pub http1: u16,
    /// The same, by the name that Kubernetes gives to h2c.
    pub h2c: u16,
    /// Mutual TLS.
    pub mtls: u16,
    /// Drain and readiness.
    pub admin: u16,
    /// Load reports.
    pub stats: u16,
    /// Prometheus metrics.
    pub metrics: u16,
}

/// Everything that the sidecar needs to know.
#[derive(Clone)]
pub struct Config {
    /// `SERVING_NAMESPACE`.
    pub namespace: String,
    /// `SERVING_SERVICE`; empty for a bare Configuration.
    pub service: String,
    /// `SERVING_CONFIGURATION`.
    pub configuration: String,
    /// `SERVING_REVISION`.
    pub revision: String,
    /// `SERVING_POD`.
    pub pod: String,
    /// `SERVING_POD_IP`.
    pub pod_ip: IpAddr,
    /// `CONTAINER_CONCURRENCY`; 0 is no limit.
    pub concurrency: u32,
    /// `REVISION_TIMEOUT_SECONDS`: the whole response.
    pub timeout: Duration,
    /// `REVISION_RESPONSE_START_TIMEOUT_SECONDS`: its first byte.
    pub start_timeout: Option<Duration>,
    /// `REVISION_IDLE_TIMEOUT_SECONDS`: between two bytes.
    pub idle_timeout: Option<Duration>,
    /// Where the app listens: `USER_PORT` on the pod's loopback.
    pub app: SocketAddr,
    /// `USER_PORT_PROTOCOL`: `http1` (default) or `h2c`.
    pub app_protocol: Protocol,
    /// `SERVING_READINESS_PROBE`: a Kubernetes probe as JSON; default is a TCP connection.
    pub probe: Probe,
    /// Probes of further containers, when that variable is a list: the app is ready when these hold as well.
    pub further_probes: Vec<Probe>,
    /// `EBB_ACTIVATOR`: `host:port` to announce to; empty announces nothing.
    pub activator: Option<String>,
    /// `EBB_CA` and `EBB_TRUST_DOMAIN`; without it there is no mesh.
    pub identity: Option<IdentityConfig>,
    /// `EBB_MTLS_MODE`: `STRICT` (default) or `PERMISSIVE`.
    pub mode: Mode,
    /// `EBB_TRUST_DOMAIN`.
    pub trust_domain: String,
    /// `SYSTEM_NAMESPACE`: where activator and autoscaler live.
    pub system_namespace: String,
    /// `ENABLE_HTTP2_AUTO_DETECTION`: find out whether an app of `http1` speaks h2c.
    pub detect_h2: bool,
    /// `SERVING_REQUEST_LOG_TEMPLATE`, when `SERVING_ENABLE_REQUEST_LOG` is true.
    pub request_log: Option<Template>,
    /// `SERVING_ENABLE_PROBE_REQUEST_LOG`: probes are in the request log too.
    pub log_probes: bool,
    /// `SERVING_REQUEST_METRICS_PROTOCOL`, `_ENDPOINT` and `_EXPORT_INTERVAL_SECONDS`: where metrics are sent, besides being there to be scraped.
    pub request_metrics: Option<Settings>,
    /// `EBB_DRAIN_QUIET_MS`: how long no request may have come before the sidecar leaves. Longer than it takes until
    /// everybody knows that the pod goes away.
    pub quiet: Duration,
    /// `EBB_BIND`: the address to listen on.
    pub bind: IpAddr,
    /// The ports; only tests change them.
    pub ports: Ports,
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// Names the first variable that is missing or wrong.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::parse(|name| std::env::var(name).ok())
    }

    /// Reads variables from `get`.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let vars = Vars(get);
        let user_port: u16 = vars.required("USER_PORT")?;
        if user_port == 0 {
            return Err(ConfigError { name: "USER_PORT", problem: "0 is no port".into() });
        }
        let app = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), user_port);
        let app_protocol = match vars.text("USER_PORT_PROTOCOL").as_deref() {
            None | Some("http1") => Protocol::Http1,
            Some("h2c") => Protocol::Http2,
            Some(other) => {
                return Err(vars.bad("USER_PORT_PROTOCOL", format!("`{other}` is neither http1 nor h2c")));
            }
        };
        let mut further_probes = match vars.text("SERVING_READINESS_PROBE") {
            Some(json) => {
                Probe::parse_all(&json, user_port).map_err(|e| vars.bad("SERVING_READINESS_PROBE", e))?
            }
            None => vec![Probe::tcp(user_port)],
        };
        let probe = further_probes.remove(0);
        let mode = vars.optional("EBB_MTLS_MODE")?.unwrap_or_default();
        let trust_domain =
            vars.text("EBB_TRUST_DOMAIN").unwrap_or_else(|| ebb_mesh::DEFAULT_TRUST_DOMAIN.into());
        let identity = vars.text("EBB_CA").map(|ca| IdentityConfig::in_pod(ca, trust_domain.clone()));
        if identity.is_none() && mode == Mode::Strict {
            return Err(
                vars.bad("EBB_CA", "is missing, and EBB_MTLS_MODE STRICT is impossible without it".into())
            );
        }
        let seconds = |name| Ok(vars.optional::<u64>(name)?.filter(|s| *s > 0).map(Duration::from_secs));
        let log_wanted = vars.optional::<bool>("SERVING_ENABLE_REQUEST_LOG")?.unwrap_or(false);
        let request_log = match vars.text("SERVING_REQUEST_LOG_TEMPLATE").filter(|_| log_wanted) {
            // A line of a log is not worth a pod that does not start.
            Some(text) => Template::parse(&text)
                .inspect_err(|error| tracing::error!(%error, "there will be no request log"))
                .ok(),
            None => None,
        };
        let text = |name| vars.text(name).unwrap_or_default();
        let interval = seconds("SERVING_REQUEST_METRICS_EXPORT_INTERVAL_SECONDS")?.unwrap_or_default();
        let (protocol, endpoint) =
            (text("SERVING_REQUEST_METRICS_PROTOCOL"), text("SERVING_REQUEST_METRICS_ENDPOINT"));
        // As with the log: figures that go nowhere are no reason not to serve.
        let request_metrics = Settings::parse(&protocol, &endpoint, interval)
            .inspect_err(|error| tracing::error!(error, "metrics will be sent nowhere"))
            .unwrap_or_default();
        let http1 = vars.optional("QUEUE_SERVING_PORT")?.unwrap_or(ports::HTTP1);
        Ok(Self {
            namespace: vars.required("SERVING_NAMESPACE")?,
            service: vars.text("SERVING_SERVICE").unwrap_or_default(),
            configuration: vars.text("SERVING_CONFIGURATION").unwrap_or_default(),
            revision: vars.required("SERVING_REVISION")?,
            pod: vars.required("SERVING_POD")?,
            pod_ip: vars.required("SERVING_POD_IP")?,
            concurrency: vars.optional("CONTAINER_CONCURRENCY")?.unwrap_or(0),
            timeout: seconds("REVISION_TIMEOUT_SECONDS")?.unwrap_or(Duration::from_secs(300)),
            start_timeout: seconds("REVISION_RESPONSE_START_TIMEOUT_SECONDS")?,
            idle_timeout: seconds("REVISION_IDLE_TIMEOUT_SECONDS")?,
            app,
            app_protocol,
            probe,
            further_probes,
            activator: vars.text("EBB_ACTIVATOR"),
            identity,
            mode,
            trust_domain,
            system_namespace: vars.text("SYSTEM_NAMESPACE").unwrap_or_else(|| "ebb-system".into()),
            detect_h2: vars.optional("ENABLE_HTTP2_AUTO_DETECTION")?.unwrap_or(false)
                && app_protocol == Protocol::Http1,
            request_log,
            log_probes: vars.optional("SERVING_ENABLE_PROBE_REQUEST_LOG")?.unwrap_or(false),
            request_metrics,
            quiet: Duration::from_millis(vars.optional("EBB_DRAIN_QUIET_MS")?.unwrap_or(3000)),
            bind: vars.optional("EBB_BIND")?.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            ports: Ports {
                // Either serving port may be named here; both are always served.
                http1: if http1 == ports::H2C { ports::HTTP1 } else { http1 },
                h2c: ports::H2C,
                mtls: ports::MTLS,
                admin: ports::ADMIN,
                stats: ports::AUTOSCALE_METRICS,
                metrics: ports::USER_METRICS,
            },
        })
    }
}

struct Vars<F>(F);

impl<F: Fn(&str) -> Option<String>> Vars<F> {
    fn bad(&self, name: &'static str, problem: String) -> ConfigError {
        ConfigError { name, problem }
    }

    /// An empty variable is as good as none: templates leave them so.
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|v| !v.is_empty())
    }

    fn optional<T: FromStr<Err: fmt::Display>>(&self, name: &'static str) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|e| self.bad(name, format!("`{text}` cannot be used: {e}")))
    }

    fn required<T: FromStr<Err: fmt::Display>>(&self, name: &'static str) -> Result<T, ConfigError> {
        self.optional(name)?.ok_or_else(|| self.bad(name, "is missing".into()))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("revision", &format_args!("{}/{}", self.namespace, self.revision))
            .field("pod", &self.pod)
            .field("pod_ip", &self.pod_ip)
            .field("concurrency", &self.concurrency)
            .field("timeouts", &(self.start_timeout, self.idle_timeout, self.timeout))
            .field("app", &self.app)
            .field("app_protocol", &self.app_protocol)
            .field("probe", &self.probe)
            .field("mode", &self.mode)
            .field("ca", &self.identity.as_ref().map(|i| &i.ca_address))
            .field("activator", &self.activator)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn minimal(name: &str) -> Option<String> {
        let value = match name {
            "SERVING_NAMESPACE" => "default",
            "SERVING_REVISION" => "hello-00001",
            "SERVING_POD" => "hello-00001-deployment-abc",
            "SERVING_POD_IP" => "10.0.0.7",
            "USER_PORT" => "8080",
            "EBB_CA" => "controller.ebb-system.svc.cluster.local:8114",
            _ => return None,
        };
        Some(value.into())
    }

    #[test]
    fn defaults_are_knatives_and_strict() {
        let c = Config::parse(minimal).unwrap();
        assert_eq!((c.concurrency, c.timeout, c.mode), (0, Duration::from_secs(300), Mode::Strict));
        assert_eq!((c.ports.http1, c.ports.admin, c.ports.mtls), (8012, 8022, 8112));
        assert_eq!(c.app.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn a_bad_one_is_named() {
        let with = |name: &'static str, value: &'static str| {
            Config::parse(move |n| if n == name { Some(value.into()) } else { minimal(n) })
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(with("USER_PORT", ""), "environment variable USER_PORT: is missing");
        assert!(
            with("CONTAINER_CONCURRENCY", "-1")
                .starts_with("environment variable CONTAINER_CONCURRENCY: `-1` cannot be used")
        );
        assert!(with("EBB_MTLS_MODE", "maybe").contains("PERMISSIVE nor STRICT"));
        assert!(with("EBB_CA", "").contains("STRICT is impossible"));
        assert!(with("SERVING_READINESS_PROBE", "{").contains("SERVING_READINESS_PROBE"));
        assert!(with("USER_PORT_PROTOCOL", "quic").contains("neither"));
    }
}
