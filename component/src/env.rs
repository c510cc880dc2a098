//! Settings from environment variables, where an empty one counts as unset.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ebb_mesh::IdentityConfig;

use crate::admin::Ports;
use crate::leader::Candidate;

/// A variable that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{variable}={value:?} is not {wanted}")]
pub struct BadVariable {
    /// Its name.
    pub variable: &'static str,
    /// What it holds.
    pub value: String,
    /// What would be right.
    pub wanted: String,
}

/// Where variables come from.
pub struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

impl std::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Env")
    }
}

impl Env<'static> {
    /// The variables of this process.
    pub fn process() -> Self {
        Self(&|name| std::env::var(name).ok())
    }
}

impl<'a> Env<'a> {
    /// Variables from a function.
    pub fn new(get: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self(get)
    }

    /// The variable, if it is set to something.
    pub fn get(&self, variable: &str) -> Option<String> {
        (self.0)(variable).filter(|value| !value.is_empty())
    }

    /// The variable, or `default`.
    pub fn text(&self, variable: &str, default: impl Into<String>) -> String {
        self.get(variable).unwrap_or_else(|| default.into())
    }

    /// The variable as what it means; `wanted` says what that is, such as "a port".
    ///
    /// # Errors
    /// When it is set to something else.
    pub fn optional<T: FromStr>(
        &self,
        variable: &'static str,
        wanted: &str,
    ) -> Result<Option<T>, BadVariable> {
        let Some(value) = self.get(variable) else { return Ok(None) };
        let parsed = value.parse().map(Some);
        parsed.map_err(|_| BadVariable { variable, value, wanted: wanted.to_owned() })
    }

    /// As [`Env::optional`], with a default.
    ///
    /// # Errors
    /// When it is set to something else.
    pub fn parsed<T: FromStr>(
        &self,
        variable: &'static str,
        wanted: &str,
        default: T,
    ) -> Result<T, BadVariable> {
        Ok(self.optional(variable, wanted)?.unwrap_or(default))
    }

    /// The namespace of the platform: SYSTEM_NAMESPACE, default ebb-system.
    pub fn namespace(&self) -> String {
        self.text("SYSTEM_NAMESPACE", "ebb-system")
    }

    /// Where to listen: EBB_BIND_ADDRESS, default all addresses.
    ///
    /// # Errors
    /// When it is no address.
    pub fn bind(&self) -> Result<IpAddr, BadVariable> {
        self.parsed("EBB_BIND_ADDRESS", "an IP address", IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// The ports of health and metrics: EBB_HEALTH_PORT and EBB_METRICS_PORT, default 8081 and 9090, 0 for none.
    ///
    /// # Errors
    /// When one is no port.
    pub fn ports(&self) -> Result<Ports, BadVariable> {
        let default = Ports::default();
        Ok(Ports {
            health: self.parsed("EBB_HEALTH_PORT", "a port", default.health)?,
            metrics: self.parsed("EBB_METRICS_PORT", "a port", default.metrics)?,
        })
    }

    /// This replica's name in elections: POD_NAME and POD_IP. None where it is no pod, and then there is no election.
    ///
    /// # Errors
    /// When the address is none.
    pub fn candidate(&self) -> Result<Option<Candidate>, BadVariable> {
        let address = self.optional("POD_IP", "an IP address")?;
        Ok(self.get("POD_NAME").zip(address).map(|(pod, address)| Candidate { pod, address }))
    }

    /// How this pod gets its mesh identity: EBB_CA (host:port of the authority, default the Service `controller`) and
    /// EBB_TRUST_DOMAIN (default cluster.local); token and roots are in the projected volume at /var/run/secrets/ebb.
    pub fn mesh(&self) -> IdentityConfig {
        let ca = format!("controller.{}.svc:8114", self.namespace());
        IdentityConfig::in_pod(
            self.text("EBB_CA", ca),
            self.text("EBB_TRUST_DOMAIN", ebb_mesh::DEFAULT_TRUST_DOMAIN),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_variable_is_named_and_an_empty_one_is_unset() {
        let get = |name: &str| match name {
            "EBB_HEALTH_PORT" => Some("eighty".to_owned()),
            "EBB_CA" => Some(String::new()),
            _ => None,
        };
        let env = Env::new(&get);
        let error = env.ports().expect_err("it is no port").to_string();
        assert_eq!(error, "EBB_HEALTH_PORT=\"eighty\" is not a port");
        assert_eq!(env.mesh().ca_address, "controller.ebb-system.svc:8114");
    }
}
