//! What the gateway is told at its start.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::Duration;

use ebb_api::meta::networking::EBB_INGRESS_CLASS;
use ebb_http::ports;

/// Settings of the process.
#[derive(Debug, Clone)]
pub struct Config {
    /// The platform's namespace (SYSTEM_NAMESPACE).
    pub namespace: String,
    /// The address to listen at where no listeners are handed in (EBB_BIND_ADDRESS).
    pub bind: IpAddr,
    /// Port for HTTP from outside (EBB_HTTP_PORT).
    pub http_port: u16,
    /// Port for TLS from outside (EBB_TLS_PORT); it answers for hosts whose Ingress names a certificate.
    pub tls_port: u16,
    /// Port for HTTP from inside the cluster (EBB_LOCAL_PORT).
    pub local_port: u16,
    /// Port for liveness and readiness (EBB_HEALTH_PORT).
    pub health_port: u16,
    /// The class of Ingresses that are served (EBB_INGRESS_CLASS).
    pub class: String,
    /// The cluster's DNS domain (EBB_CLUSTER_DOMAIN).
    pub cluster_domain: String,
    /// How long a request waits for an endpoint where there is none (EBB_ENDPOINT_WAIT_MS).
    pub endpoint_wait: Duration,
    /// Whether each request is logged (EBB_ACCESS_LOG=true).
    pub access_log: bool,
}

/// Sockets that are bound already; where a list is empty, the gateway binds by its [`Config`].
#[derive(Debug, Default)]
pub struct Listeners {
    /// HTTP from outside.
    pub http: Vec<TcpListener>,
    /// TLS from outside.
    pub tls: Vec<TcpListener>,
    /// HTTP from inside the cluster.
    pub local: Vec<TcpListener>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "ebb-system".to_owned(),
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            http_port: 8080,
            tls_port: 8443,
            local_port: ports::GATEWAY_LOCAL,
            health_port: ports::HEALTH,
            class: EBB_INGRESS_CLASS.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            endpoint_wait: Duration::from_secs(10),
            access_log: false,
        }
    }
}

impl Config {
    /// Reads the environment; names the variable that cannot be read.
    pub fn from_env() -> Result<Self, String> {
        let default = Self::default();
        Ok(Self {
            namespace: std::env::var("SYSTEM_NAMESPACE").unwrap_or(default.namespace),
            bind: parsed("EBB_BIND_ADDRESS", default.bind)?,
            http_port: parsed("EBB_HTTP_PORT", default.http_port)?,
            tls_port: parsed("EBB_TLS_PORT", default.tls_port)?,
            local_port: parsed("EBB_LOCAL_PORT", default.local_port)?,
            health_port: parsed("EBB_HEALTH_PORT", default.health_port)?,
            class: std::env::var("EBB_INGRESS_CLASS").unwrap_or(default.class),
            cluster_domain: std::env::var("EBB_CLUSTER_DOMAIN").unwrap_or(default.cluster_domain),
            endpoint_wait: Duration::from_millis(parsed("EBB_ENDPOINT_WAIT_MS", 10_000)?),
            access_log: parsed("EBB_ACCESS_LOG", false)?,
        })
    }

    /// The name by which clients inside the cluster reach this gateway.
    pub fn internal_name(&self) -> String {
        format!("gateway-internal.{}.svc.{}", self.namespace, self.cluster_domain)
    }

    /// The name of the Service for clients from outside.
    pub fn external_name(&self) -> String {
        format!("gateway.{}.svc.{}", self.namespace, self.cluster_domain)
    }
}

fn parsed<T: std::str::FromStr>(name: &str, default: T) -> Result<T, String> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text:?} is not a valid value")),
        Err(_) => Ok(default),
    }
}
