//! SPIFFE IDs of Kubernetes workloads.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, parsed strictly: no other path, no query, no port,
/// lower case, names as Kubernetes allows them. Cheap to clone.
///
/// Source: the SPIFFE-ID standard, section 2, narrowed to the form that Kubernetes meshes share.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    domain_end: u16,
    namespace_end: u16,
}

const SCHEME: &str = "spiffe://";
const NS: &str = "/ns/";
const SA: &str = "/sa/";

/// Why a text is no [`SpiffeId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>: {why}")]
pub struct SpiffeError {
    text: String,
    why: &'static str,
}

impl SpiffeId {
    /// Puts an ID together.
    ///
    /// # Errors
    /// When a part has characters or a length that its kind of name does not allow.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        Self::from_str(&format!("{SCHEME}{trust_domain}{NS}{namespace}{SA}{service_account}"))
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The whole URI, shared.
    pub fn to_shared(&self) -> Arc<str> {
        self.uri.clone()
    }

    /// Who vouches for it.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..usize::from(self.domain_end)]
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.uri[usize::from(self.domain_end) + NS.len()..usize::from(self.namespace_end)]
    }

    /// The Kubernetes ServiceAccount.
    pub fn service_account(&self) -> &str {
        &self.uri[usize::from(self.namespace_end) + SA.len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let error = |why| SpiffeError { text: text.chars().take(200).collect(), why };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| error("it does not start with spiffe://"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| error("it has no path"))?;
        if domain.is_empty()
            || domain.len() > 255
            || !domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b))
        {
            return Err(error("the trust domain is not a lower-case name"));
        }
        let (namespace, account) = path
            .strip_prefix("ns/")
            .and_then(|p| p.split_once(SA))
            .ok_or_else(|| error("the path is not /ns/<namespace>/sa/<service account>"))?;
        if !is_name(namespace, 63, false) {
            return Err(error("the namespace is not a DNS label"));
        }
        if !is_name(account, 253, true) {
            return Err(error("the service account is not a DNS name"));
        }
        let domain_end = SCHEME.len() + domain.len();
        let namespace_end = domain_end + NS.len() + namespace.len();
        // The lengths checked above sum up to less than 1024.
        Ok(Self { uri: text.into(), domain_end: domain_end as u16, namespace_end: namespace_end as u16 })
    }
}

/// A DNS label, or labels joined by dots: what Kubernetes accepts as a name.
fn is_name(name: &str, max: usize, dots: bool) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.len() <= max && if dots { name.split('.').all(label) } else { label(name) }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_out_as_they_went_in() {
        let id = SpiffeId::new("cluster.local", "default", "web.v1").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/default/sa/web.v1");
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "default", "web.v1")
        );
    }

    #[test]
    fn strict() {
        for bad in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/a",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/a/sa/b?c",
            "spiffe://cluster.local/ns/a/sa/b#c",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local:80/ns/a/sa/b",
            "spiffe://u@cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns/a.b/sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b%2fc",
            "spiffe://cluster.local/ns/a/sa/B",
            "spiffe://cluster.local/ns/a/sa/b/sa/c",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
