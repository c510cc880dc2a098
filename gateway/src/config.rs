//! What the gateway is told at its start.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use ebb_api::meta::networking::EBB_INGRESS_CLASS;
use ebb_component::{BadVariable, Env, Ports};
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
    /// Ports of health and metrics (EBB_HEALTH_PORT, EBB_METRICS_PORT).
    pub ports: Ports,
    /// The class of Ingresses that are served (EBB_INGRESS_CLASS).
    pub class: String,
    /// The cluster's DNS domain (EBB_CLUSTER_DOMAIN).
    pub cluster_domain: String,
    /// How long a request waits for an endpoint where there is none (EBB_ENDPOINT_WAIT_MS).
    pub endpoint_wait: Duration,
    /// The Unix socket of whoever keeps the listening sockets when this process dies (EBB_LISTENER_KEEPER).
    pub keeper: Option<PathBuf>,
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
            ports: Ports::default(),
            class: EBB_INGRESS_CLASS.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            endpoint_wait: Duration::from_secs(10),
            keeper: None,
        }
    }
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// The first bad variable.
    pub fn from_env(env: &Env<'_>) -> Result<Self, BadVariable> {
        let default = Self::default();
        Ok(Self {
            namespace: env.namespace(),
            bind: env.bind()?,
            http_port: env.parsed("EBB_HTTP_PORT", "a port", default.http_port)?,
            tls_port: env.parsed("EBB_TLS_PORT", "a port", default.tls_port)?,
            local_port: env.parsed("EBB_LOCAL_PORT", "a port", default.local_port)?,
            ports: env.ports()?,
            class: env.text("EBB_INGRESS_CLASS", default.class),
            cluster_domain: env.text("EBB_CLUSTER_DOMAIN", default.cluster_domain),
            endpoint_wait: Duration::from_millis(env.parsed(
                "EBB_ENDPOINT_WAIT_MS",
                "a number of milliseconds",
                10_000,
            )?),
            keeper: env.get(ebb_component::keeper::VARIABLE).map(PathBuf::from),
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
