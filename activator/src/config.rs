//! What the activator is told at its start.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
    /// Ports for plaintext, only when permissive (EBB_MTLS=permissive): HTTP/1.1 and HTTP/2 on each.
    pub plain_ports: Vec<u16>,
    /// Port for liveness and readiness (EBB_HEALTH_PORT).
    pub health_port: u16,
    /// Where the autoscaler is (EBB_AUTOSCALER=address:port); its Service's EndpointSlices tell when absent.
    pub autoscaler: Option<SocketAddr>,
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
            health_port: ports::HEALTH,
            autoscaler: None,
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

impl Config {
    /// Reads the environment; names the variable that cannot be read.
    pub fn from_env() -> Result<Self, String> {
        let default = Self::default();
        let permissive = match std::env::var("EBB_MTLS") {
            Err(_) => false,
            Ok(mode) => {
                mode.parse::<ebb_mesh::Mode>().map_err(|error| format!("EBB_MTLS: {error}"))?
                    == ebb_mesh::Mode::Permissive
            }
        };
        Ok(Self {
            namespace: std::env::var("SYSTEM_NAMESPACE").unwrap_or(default.namespace),
            pod: std::env::var("POD_NAME").unwrap_or(default.pod),
            address: parsed("POD_IP")?,
            bind: parsed("EBB_BIND_ADDRESS")?.unwrap_or(default.bind),
            mtls_port: parsed("EBB_MTLS_PORT")?.unwrap_or(default.mtls_port),
            plain_ports: if permissive { vec![ports::HTTP1, ports::H2C] } else { Vec::new() },
            health_port: parsed("EBB_HEALTH_PORT")?.unwrap_or(default.health_port),
            autoscaler: parsed("EBB_AUTOSCALER")?,
            cluster_domain: std::env::var("EBB_CLUSTER_DOMAIN").unwrap_or(default.cluster_domain),
        })
    }

    /// The address by which this activator is known to others.
    pub fn own_address(&self) -> Option<IpAddr> {
        self.address.or_else(|| (!self.bind.is_unspecified()).then_some(self.bind))
    }
}

fn parsed<T: std::str::FromStr>(name: &str) -> Result<Option<T>, String> {
    match std::env::var(name) {
        Ok(text) => text.parse().map(Some).map_err(|_| format!("{name}={text:?} is not a valid value")),
        Err(_) => Ok(None),
    }
}
