//! Why the cluster could not be started.

/// Why the cluster could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine's network could not be prepared.
    #[error("{what}: {cause}; it needs root (CAP_NET_ADMIN)")]
    Network {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        cause: String,
    },
    /// All of 10.88.0.0/16 to 10.247.0.0/16 is in use.
    #[error("no network from 10.88.0.0/16 to 10.247.0.0/16 is free: stop other instances, or remove a route that covers all of 10.0.0.0/8")]
    NoNetwork,
}

impl Error {
    pub(crate) fn network(what: impl Into<String>, cause: impl ToString) -> Self {
        Self::Network { what: what.into(), cause: cause.to_string() }
    }
}
