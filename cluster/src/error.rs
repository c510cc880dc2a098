//! Why a cluster cannot start.

use std::{io, net::SocketAddr, path::PathBuf};

/// Why a cluster cannot start. Each message names the cause and the mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error(
        "cannot use the data directory {path}: {cause}; check that it can be written, or choose another one"
    )]
    DataDir {
        /// The file or folder.
        path: PathBuf,
        /// What the system said; in the message already, so it is no `source`.
        cause: io::Error,
    },
    /// Another cluster runs in the data directory.
    #[error(
        "the data directory {0} is in use by another cluster; stop that one, or choose another directory"
    )]
    InUse(PathBuf),
    /// The process may not make network devices.
    #[error("making network devices is not allowed ({0}); run as root, or with the capability CAP_NET_ADMIN")]
    Unprivileged(String),
    /// The kernel refused a network request.
    #[error("the cluster's network cannot be made: {what}: {cause}")]
    Network {
        /// What was attempted.
        what: String,
        /// What the kernel said.
        cause: String,
    },
    /// The network that this data directory's Services have their addresses from is taken.
    #[error(
        "10.{number}.0.0/16, where this data directory's Services have their addresses, is in use by {by}; free it, or start with another data directory"
    )]
    NetworkTaken {
        /// The N of the network.
        number: u8,
        /// A route, an address, or another cluster.
        by: String,
    },
    /// No network is free.
    #[error(
        "none of 10.16.0.0/16 to 10.239.0.0/16 is free on this machine; stop other clusters, or remove routes that cover 10.0.0.0/8"
    )]
    NoNetwork,
    /// A device's name would be too long.
    #[error("the device prefix {0:?} must have one to five letters or digits")]
    DevicePrefix(String),
    /// The registry's port is not to be had.
    #[error("the image registry cannot listen on {address}: {cause}; choose another port")]
    Registry {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// The API server's port is not to be had.
    #[error("the API server cannot listen on {address}: {cause}; choose another port")]
    ApiPort {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// The API server.
    #[error(transparent)]
    ApiServer(cluster_apiserver::Error),
    /// The image store.
    #[error(transparent)]
    Images(#[from] cluster_images::ImageError),
    /// The node agent.
    #[error(transparent)]
    Node(Box<cluster_node::Error>),
    /// DNS.
    #[error(transparent)]
    Services(#[from] cluster_services::Error),
    /// Something did not get ready in time.
    #[error("the cluster did not get ready within {seconds} s: {missing}; the log may say why")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// What is missing.
        missing: String,
    },
}

impl From<cluster_apiserver::Error> for Error {
    fn from(error: cluster_apiserver::Error) -> Self {
        match error {
            cluster_apiserver::Error::DataDir { path, cause } => Self::DataDir { path, cause },
            cluster_apiserver::Error::Listen { address, cause } => Self::ApiPort { address, cause },
            other => Self::ApiServer(other),
        }
    }
}

impl From<cluster_node::Error> for Error {
    fn from(error: cluster_node::Error) -> Self {
        Self::Node(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::other("no such luck");
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let errors = [
            Error::DataDir { path: "/x".into(), cause: cause() },
            Error::Registry { address, cause: cause() },
            cluster_apiserver::Error::DataDir { path: "/x".into(), cause: cause() }.into(),
            cluster_apiserver::Error::Listen { address, cause: cause() }.into(),
            cluster_services::Error::DnsListen { address, cause: cause() }.into(),
        ];
        for error in errors {
            let (mut told, mut next) = (error.to_string(), error.source());
            while let Some(source) = next {
                told.push_str(&source.to_string());
                next = source.source();
            }
            assert_eq!(told.matches("no such luck").count(), 1, "{told}");
        }
    }
}
