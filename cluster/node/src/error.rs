//! Why the node agent cannot work.

use std::path::PathBuf;

/// An error of [`crate::Node::start`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not do what containers need.
    #[error(
        "this process may not run containers: {missing}. Run it as root (sudo), or in a container or user namespace \
         that has these rights"
    )]
    Unprivileged {
        /// What is missing, one by one.
        missing: String,
    },
    /// A folder cannot be used.
    #[error("cannot use {path}: {cause}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// No pod network.
    #[error("pod network: {0}")]
    Network(#[from] crate::network::NetworkError),
    /// No helpers.
    #[error("container runtime: {0}")]
    Runtime(#[from] crate::runtime::RuntimeError),
    /// The API refused the node.
    #[error("cannot register the node with the API server: {0}")]
    Api(#[from] Box<kube::Error>),
}
