//! The `config-*` ConfigMaps as types: every key with its default, every value checked, errors that name the key.
//!
//! Keys are accepted in Knative's kebab-case and in its older camelCase. Keys that are not known are left alone: ConfigMaps
//! outlive versions of the platform. `_example` is documentation.

mod autoscaler;
mod certmanager;
mod defaults;
mod deployment;
mod domain;
pub mod example;
mod features;
mod gc;
mod leader_election;
mod logging;
mod network;
mod observability;
mod reader;

use std::collections::BTreeMap;

pub use autoscaler::{Autoscaler, TARGET_MIN, WINDOW_MAX, WINDOW_MIN};
pub use certmanager::{CertManager, IssuerRef};
pub use defaults::Defaults;
pub use deployment::Deployment;
pub use domain::{CLUSTER_DOMAIN, Domain};
pub use features::{Features, Flag};
pub use gc::Gc;
pub use leader_election::LeaderElection;
pub use logging::{LOGGED, Logging};
pub use network::{HttpProtocol, Network, ProxyProtocol};
pub use observability::{Observability, REQUEST_LOG_TEMPLATE};

/// The data of a ConfigMap.
pub type Data = BTreeMap<String, String>;

/// What is wrong with a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ConfigError {
    /// The key with the bad value.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configs {
    /// `config-autoscaler`.
    pub autoscaler: Autoscaler,
    /// `config-certmanager`.
    pub certmanager: CertManager,
    /// `config-defaults`.
    pub defaults: Defaults,
    /// `config-deployment`.
    pub deployment: Deployment,
    /// `config-domain`.
    pub domain: Domain,
    /// `config-features`.
    pub features: Features,
    /// `config-gc`.
    pub gc: Gc,
    /// `config-leader-election`.
    pub leader_election: LeaderElection,
    /// `config-logging`.
    pub logging: Logging,
    /// `config-network`.
    pub network: Network,
    /// `config-observability`.
    pub observability: Observability,
}

/// The names of the ConfigMaps that are understood.
pub const NAMES: &[&str] = &[
    "config-autoscaler",
    "config-certmanager",
    "config-defaults",
    "config-deployment",
    "config-domain",
    "config-features",
    "config-gc",
    "config-leader-election",
    "config-logging",
    "config-network",
    "config-observability",
];

impl Configs {
    /// Takes over the data of the ConfigMap `name`; others than [`NAMES`] are ignored.
    ///
    /// # Errors
    /// Every bad key. Nothing is changed then, so that the last good configuration stays in force.
    pub fn set(&mut self, name: &str, data: &Data) -> Result<(), Vec<ConfigError>> {
        match name {
            "config-autoscaler" => self.autoscaler = Autoscaler::parse(data)?,
            "config-certmanager" => self.certmanager = CertManager::parse(data)?,
            "config-defaults" => self.defaults = Defaults::parse(data)?,
            "config-deployment" => self.deployment = Deployment::parse(data)?,
            "config-domain" => self.domain = Domain::parse(data)?,
            "config-features" => self.features = Features::parse(data)?,
            "config-gc" => self.gc = Gc::parse(data)?,
            "config-leader-election" => self.leader_election = LeaderElection::parse(data)?,
            "config-logging" => self.logging = Logging::parse(data)?,
            "config-network" => self.network = Network::parse(data)?,
            "config-observability" => self.observability = Observability::parse(data)?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
thread_local! {
    /// The keys that were looked up: what has to be explained.
    pub(crate) static READ: std::cell::RefCell<std::collections::BTreeSet<String>> = const {
        std::cell::RefCell::new(std::collections::BTreeSet::new())
    };
}

#[cfg(test)]
mod tests;
