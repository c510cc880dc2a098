//! What the activator is told at its start.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ebb_component::{BadVariable, Env, Ports};
use ebb_http::ports;

/// Settings of the process.
#[derive(Debug, Clone)]
pub struct Config {
    /// The platform's namespace (SYSTEM_NAMESPACE).
    pub namespace: String,
    /// This activator's name in load reports (POD_NAME).
    pub pod: String,
    /// The address by which it is in EndpointSlices (POD_IP); the bind address when that is a specific one.
    pub address: Option<IpAddr>,
    /// The address to listen at (EBB_BIND_ADDRESS).
    pub bind: IpAddr,
    /// Port for mutual TLS (EBB_MTLS_PORT).
    pub mtls_port: u16,
    /// Ports for plaintext, only when permissive (EBB_MTLS_MODE=permissive): HTTP/1.1 and HTTP/2 on each.
    pub plain_ports: Vec<u16>,
    /// Ports of health and metrics (EBB_HEALTH_PORT, EBB_METRICS_PORT).
    pub ports: Ports,
    /// Where the autoscaler is (EBB_AUTOSCALER=address:port); its Service's EndpointSlices tell when absent.
    pub autoscaler: Option<SocketAddr>,
    /// Bytes that waiting requests of all revisions may hold together (EBB_QUEUE_BYTES).
    pub queue_bytes: u64,
    /// The cluster's DNS domain (EBB_CLUSTER_DOMAIN).
    pub cluster_domain: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "ebb-system".to_owned(),
            pod: "activator".to_owned(),
            address: None,
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            mtls_port: ports::MTLS,
            plain_ports: Vec::new(),
            ports: Ports::default(),
            autoscaler: None,
            queue_bytes: 256 << 20,
            cluster_domain: "cluster.local".to_owned(),
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
        let mode = env.parsed("EBB_MTLS_MODE", "strict or permissive", ebb_mesh::Mode::Strict)?;
        let permissive = mode == ebb_mesh::Mode::Permissive;
        Ok(Self {
            namespace: env.namespace(),
            pod: env.text("POD_NAME", default.pod),
            address: env.optional("POD_IP", "an IP address")?,
            bind: env.bind()?,
            mtls_port: env.parsed("EBB_MTLS_PORT", "a port", default.mtls_port)?,
            plain_ports: if permissive { vec![ports::HTTP1, ports::H2C] } else { Vec::new() },
            ports: env.ports()?,
            autoscaler: env.optional("EBB_AUTOSCALER", "address:port")?,
            queue_bytes: env.parsed("EBB_QUEUE_BYTES", "a number of bytes", default.queue_bytes)?,
            cluster_domain: env.text("EBB_CLUSTER_DOMAIN", default.cluster_domain),
        })
    }

    /// The address by which this activator is known to others.
    pub fn own_address(&self) -> Option<IpAddr> {
        self.address.or_else(|| (!self.bind.is_unspecified()).then_some(self.bind))
    }
}
