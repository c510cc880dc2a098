//! What the autoscaler is told at its start.

use std::net::{IpAddr, Ipv4Addr};

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
    /// Port for liveness, readiness and `GET /v1/decisions/{namespace}/{revision}` (EBB_HEALTH_PORT).
    pub health_port: u16,
    /// Port of the queue-proxies' load reports (EBB_STATS_PORT).
    pub stats_port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "ebb-system".to_owned(),
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            mtls_port: ports::MTLS,
            health_port: ports::HEALTH,
            stats_port: ports::AUTOSCALE_METRICS,
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
            mtls_port: parsed("EBB_MTLS_PORT", default.mtls_port)?,
            health_port: parsed("EBB_HEALTH_PORT", default.health_port)?,
            stats_port: parsed("EBB_STATS_PORT", default.stats_port)?,
        })
    }
}

fn parsed<T: std::str::FromStr>(name: &str, default: T) -> Result<T, String> {
    match std::env::var(name) {
        Ok(text) => text.parse().map_err(|_| format!("{name}={text:?} is not a valid value")),
        Err(_) => Ok(default),
    }
}
