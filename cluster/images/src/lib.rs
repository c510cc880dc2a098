//! Container images for one machine: where they are kept, how they get there, how they leave.
//!
//! - [`Store`] keeps blobs by their digest, remembers names, and unpacks layers once into directories that overlayfs
//!   takes as they are. [`Store::ensure`] is what a node agent calls before it starts a container.
//! - [`registry_router`] serves the same store as an OCI registry, so that docker, podman, skopeo and ko push to it.
//! - [`build::build`] makes an image of a binary or a Cargo or Go project without a container engine.
//! - [`Store::load_archive`] and [`Store::export`] read and write `docker save` and OCI layout archives.
//!
//! The crate never starts a container, never mounts anything and knows nothing of Kubernetes but the meaning of a pull
//! policy and of a `dockerconfigjson` secret.
//!
//! # Names
//! A name without a registry means Docker Hub to every Kubernetes manifest, yet what was built, loaded or pushed here is
//! meant first. So `foo`, `docker.io/library/foo`, `localhost:PORT/foo` and `127.0.0.1:PORT/foo` all name the local
//! repository `foo`; only when that has no such tag is a registry asked. See [`Reference::local_repository`].

mod archive;
mod auth;
pub mod build;
mod digest;
mod error;
mod flight;
mod manifest;
mod pull;
mod reference;
mod registry;
mod store;
mod unpack;

pub use auth::RegistryAuth;
pub use digest::Digest;
pub use error::{Error, ImageError};
pub use manifest::Platform;
pub use pull::PullPolicy;
pub use reference::Reference;
pub use registry::registry_router;
pub use store::{Collected, Image, ImageSummary, Origin, Store};

/// What a long operation is doing, for whoever shows it to a user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A name is being looked up at a registry.
    Resolving {
        /// The image asked for.
        image: String,
    },
    /// Bytes of a layer or config arrived.
    Downloading {
        /// Digest of the blob.
        digest: String,
        /// Bytes on disk so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer is being unpacked.
    Unpacking {
        /// Digest of the layer's blob.
        digest: String,
    },
    /// A step of a build, or a line of a compiler's output.
    Building {
        /// What to show.
        message: String,
    },
}

/// Where [`Progress`] goes. A receiver that has gone away is no error.
pub type ProgressSender = tokio::sync::mpsc::UnboundedSender<Progress>;

pub(crate) fn report(progress: Option<&ProgressSender>, event: impl FnOnce() -> Progress) {
    if let Some(sender) = progress {
        // Whoever asked may have lost interest; the work goes on regardless.
        let _ = sender.send(event());
    }
}
