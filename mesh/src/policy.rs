//! Whom to talk to, and whom to let in. Pure.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::Error;
use crate::spiffe::SpiffeId;

/// Which identities are meant. Textual form: a SPIFFE ID, or `spiffe://<trust domain>/ns/<namespace>/*`, or
/// `spiffe://<trust domain>/*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerPolicy {
    /// Exactly this one.
    Exact(SpiffeId),
    /// Any of a namespace.
    Namespace {
        /// The trust domain.
        trust_domain: Arc<str>,
        /// The namespace.
        namespace: Arc<str>,
    },
    /// Any of a trust domain.
    TrustDomain(Arc<str>),
}

impl PeerPolicy {
    /// Any identity of a namespace.
    pub fn namespace(trust_domain: &str, namespace: &str) -> Self {
        PeerPolicy::Namespace { trust_domain: trust_domain.into(), namespace: namespace.into() }
    }

    /// One system component: service account `name` in `system_namespace`.
    ///
    /// # Errors
    /// When a part is no valid name.
    pub fn component(trust_domain: &str, system_namespace: &str, name: &str) -> Result<Self, Error> {
        Ok(PeerPolicy::Exact(SpiffeId::new(trust_domain, system_namespace, name)?))
    }

    /// Whether `id` is meant.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            PeerPolicy::Exact(expected) => expected == id,
            PeerPolicy::Namespace { trust_domain, namespace } => {
                **trust_domain == *id.trust_domain() && **namespace == *id.namespace()
            }
            PeerPolicy::TrustDomain(domain) => **domain == *id.trust_domain(),
        }
    }

    /// The textual form, as `ebb_http::Security::Tls` takes it.
    pub fn to_shared(&self) -> Arc<str> {
        match self {
            PeerPolicy::Exact(id) => id.to_shared(),
            other => other.to_string().into(),
        }
    }
}

impl fmt::Display for PeerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerPolicy::Exact(id) => id.fmt(f),
            PeerPolicy::Namespace { trust_domain, namespace } => {
                write!(f, "spiffe://{trust_domain}/ns/{namespace}/*")
            }
            PeerPolicy::TrustDomain(domain) => write!(f, "spiffe://{domain}/*"),
        }
    }
}

impl FromStr for PeerPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let Some(prefix) = text.strip_suffix("/*") else { return Ok(PeerPolicy::Exact(text.parse()?)) };
        // A wildcard stands for the last names: filling them in makes the one strict parser check the rest.
        if let Ok(id) = format!("{prefix}/sa/any").parse::<SpiffeId>() {
            return Ok(PeerPolicy::namespace(id.trust_domain(), id.namespace()));
        }
        let id: SpiffeId = format!("{prefix}/ns/any/sa/any").parse()?;
        Ok(PeerPolicy::TrustDomain(id.trust_domain().into()))
    }
}

/// Whether plaintext is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Both plaintext and mutual TLS.
    Permissive,
    /// Mutual TLS only.
    #[default]
    Strict,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            _ if text.eq_ignore_ascii_case("permissive") => Ok(Mode::Permissive),
            _ if text.eq_ignore_ascii_case("strict") => Ok(Mode::Strict),
            _ => Err(format!("`{text}` is neither PERMISSIVE nor STRICT")),
        }
    }
}

/// Who may come in.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Whether plaintext is taken.
    pub mode: Mode,
    /// Identities that may; empty means any of our trust domain, which the handshake has checked already.
    pub allow: Vec<PeerPolicy>,
}

/// Why somebody may not come in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No encryption under [`Mode::Strict`].
    #[error("plaintext is refused here (mTLS mode STRICT): connect to port 8112 with a mesh identity")]
    Plaintext,
    /// Encrypted, but without a client certificate.
    #[error("a client certificate with a mesh identity is required")]
    Anonymous,
    /// An identity that policy does not name.
    #[error("policy does not allow {0}")]
    Identity(String),
}

impl Policy {
    /// Decides on a peer: `secure` whether the connection is encrypted, `identity` what it proved.
    pub fn check(&self, secure: bool, identity: Option<&str>) -> Result<(), Refusal> {
        match (secure, identity) {
            (false, _) if self.mode == Mode::Permissive => Ok(()),
            (false, _) => Err(Refusal::Plaintext),
            (true, None) => Err(Refusal::Anonymous),
            (true, Some(_)) if self.allow.is_empty() => Ok(()),
            (true, Some(text)) => {
                let allowed =
                    text.parse::<SpiffeId>().is_ok_and(|id| self.allow.iter().any(|p| p.matches(&id)));
                if allowed { Ok(()) } else { Err(Refusal::Identity(text.to_owned())) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn textual_form_round_trips_and_is_strict() {
        for text in ["spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/*", "spiffe://td/*"] {
            assert_eq!(text.parse::<PeerPolicy>().unwrap().to_string(), text);
        }
        for text in ["*", "spiffe://td/ns/*", "spiffe://td/ns/a/sa/*", "spiffe:///*", "spiffe://td/ns/a*"] {
            assert!(text.parse::<PeerPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn namespace_means_that_namespace_of_that_domain() {
        let policy: PeerPolicy = "spiffe://td/ns/a/*".parse().unwrap();
        assert!(policy.matches(&"spiffe://td/ns/a/sa/x".parse().unwrap()));
        assert!(!policy.matches(&"spiffe://td/ns/ab/sa/x".parse().unwrap()));
        assert!(!policy.matches(&"spiffe://other/ns/a/sa/x".parse().unwrap()));
    }

    #[test]
    fn who_comes_in() {
        let gateway = "spiffe://td/ns/ebb-system/sa/gateway";
        let policy = Policy { mode: Mode::Strict, allow: vec![gateway.parse().unwrap()] };
        assert_eq!(policy.check(true, Some(gateway)), Ok(()));
        assert_eq!(
            policy.check(true, Some("spiffe://td/ns/x/sa/y")),
            Err(Refusal::Identity("spiffe://td/ns/x/sa/y".into()))
        );
        assert_eq!(policy.check(true, None), Err(Refusal::Anonymous));
        assert_eq!(policy.check(false, None), Err(Refusal::Plaintext));
        let permissive = Policy { mode: Mode::Permissive, ..policy };
        assert_eq!(permissive.check(false, None), Ok(()));
        assert!(
            permissive.check(true, Some("spiffe://td/ns/x/sa/y")).is_err(),
            "an identity is held to policy in any mode"
        );
    }
}
