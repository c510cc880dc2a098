//! `config-domain`: the domain of a Route's host, by its labels.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

use super::{ConfigError, Data};
use crate::meta::networking::{CLUSTER_LOCAL, VISIBILITY};

/// The domain of Routes inside the cluster.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Domains and the labels that choose them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Domain to the labels that a Route must have for it; no labels make it the default.
    pub domains: BTreeMap<String, BTreeMap<String, String>>,
    /// Domains with labels of which namespaces get a wildcard certificate all the same.
    pub wildcards: BTreeSet<String>,
}

impl Default for Domain {
    fn default() -> Self {
        let domains = BTreeMap::from([(format!("svc.{CLUSTER_DOMAIN}"), BTreeMap::new())]);
        Self { domains, wildcards: BTreeSet::new() }
    }
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    selector: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "type")]
    type_: Option<String>,
}

impl Domain {
    /// Reads the ConfigMap's data: each key a domain, each value YAML with a `selector`, or nothing.
    ///
    /// # Errors
    /// Every bad key.
    pub fn parse(data: &Data) -> Result<Self, Vec<ConfigError>> {
        let mut domains = BTreeMap::new();
        let (mut errors, mut wildcards) = (Vec::new(), BTreeSet::new());
        for (domain, raw) in data.iter().filter(|(key, _)| *key != "_example") {
            let mut fail = |message: String| errors.push(ConfigError { key: domain.clone(), message });
            if !crate::names::dns1123_subdomain(domain).is_empty() {
                fail("is not a domain name".into());
                continue;
            }
            if raw.trim().is_empty() {
                domains.insert(domain.clone(), BTreeMap::new());
                continue;
            }
            match serde_saphyr::from_str::<Choice>(raw) {
                Ok(Choice { type_: Some(other), .. }) if !matches!(other.as_str(), "" | "wildcard") => {
                    fail(format!("type {other:?} is not known; wildcard is, or none"));
                }
                Ok(choice) => {
                    if choice.type_.as_deref() == Some("wildcard") {
                        wildcards.insert(domain.clone());
                    }
                    domains.insert(domain.clone(), choice.selector.unwrap_or_default());
                }
                Err(error) => fail(format!("must be empty or YAML with a selector: {error}")),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        if !domains.values().any(BTreeMap::is_empty) {
            domains.extend(Self::default().domains);
        }
        Ok(Self { domains, wildcards })
    }

    /// The domains outside of the cluster of which a namespace may have a wildcard certificate.
    pub fn with_wildcard(&self) -> impl Iterator<Item = &str> {
        let wanted = |(domain, labels): &(&String, &BTreeMap<String, String>)| {
            !domain.ends_with(CLUSTER_DOMAIN) && (labels.is_empty() || self.wildcards.contains(*domain))
        };
        self.domains.iter().filter(wanted).map(|(domain, _)| domain.as_str())
    }

    /// The domain of an object with these labels: of all that match, the one with the most labels in its selector (the
    /// first by name among equals). Cluster-local objects get the cluster's own.
    #[must_use]
    pub fn domain_for(&self, labels: Option<&BTreeMap<String, String>>) -> String {
        let empty = BTreeMap::new();
        let labels = labels.unwrap_or(&empty);
        if labels.get(VISIBILITY).is_some_and(|v| v == CLUSTER_LOCAL) {
            return format!("svc.{CLUSTER_DOMAIN}");
        }
        let mut best: Option<(&String, usize)> = None;
        for (domain, selector) in &self.domains {
            let matches = selector.iter().all(|(k, v)| labels.get(k) == Some(v));
            if matches && best.is_none_or(|(_, most)| selector.len() > most) {
                best = Some((domain, selector.len()));
            }
        }
        best.map_or_else(|| format!("svc.{CLUSTER_DOMAIN}"), |(domain, _)| domain.clone())
    }
}
