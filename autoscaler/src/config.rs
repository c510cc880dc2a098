//! What the autoscaler is told at its start.

use std::net::{IpAddr, Ipv4Addr};

use ebb_component::leader::Candidate;
use ebb_component::{BadVariable, Env, Ports};
use ebb_http::ports;

/// Settings of the process; everything about scaling is in ConfigMaps and annotations.
#[derive(Debug, Clone)]
pub struct Config {
    /// The platform's namespace (SYSTEM_NAMESPACE).
    pub namespace: String,
    /// The address to listen at (EBB_BIND_ADDRESS).
    pub bind: IpAddr,
    /// Port for load reports by mutual TLS (EBB_MTLS_PORT).
    pub mtls_port: u16,
    /// Ports of health and metrics (EBB_HEALTH_PORT, EBB_METRICS_PORT).
    pub ports: Ports,
    /// Our name in the election of the replica that decides (POD_NAME, POD_IP); without one there is no election.
    pub candidate: Option<Candidate>,
    /// Port of the queue-proxies' load reports (EBB_STATS_PORT).
    pub stats_port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "ebb-system".to_owned(),
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            mtls_port: ports::MTLS,
            ports: Ports::default(),
            candidate: None,
            stats_port: ports::AUTOSCALE_METRICS,
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
            mtls_port: env.parsed("EBB_MTLS_PORT", "a port", default.mtls_port)?,
            ports: env.ports()?,
            candidate: env.candidate()?,
            stats_port: env.parsed("EBB_STATS_PORT", "a port", default.stats_port)?,
        })
    }
}
