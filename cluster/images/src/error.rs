use std::{io, path::Path, sync::Arc};

/// The crate's one error; [`ImageError`] is its full name.
pub type Error = ImageError;

/// Why an image operation failed. Cloneable, because concurrent callers share one pull and its outcome.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The name is not a valid image reference (`InvalidImageName` in Kubernetes).
    #[error("couldn't parse image name {name:?}: {why}")]
    InvalidName {
        /// The name as given.
        name: String,
        /// Which rule it breaks.
        why: String,
    },
    /// No such image, here or at its registry.
    #[error("image {image:?} not found: {detail}")]
    NotFound {
        /// The image asked for.
        image: String,
        /// Where it was looked for, and what to do.
        detail: String,
    },
    /// The registry wants credentials, or other ones.
    #[error(
        "{registry} refused access to image {image:?}: {detail}; the image does not exist there or needs credentials: check the name, \
         or name a Secret of type kubernetes.io/dockerconfigjson in imagePullSecrets"
    )]
    Unauthorized {
        /// The image asked for.
        image: String,
        /// The registry that refused.
        registry: String,
        /// What it said.
        detail: String,
    },
    /// The registry could not be reached, or broke off too often.
    #[error(
        "cannot reach registry {registry} for image {image:?}: {detail}; check the name, DNS, proxy and network of this machine, or load \
         the image from a file"
    )]
    Unreachable {
        /// The image asked for.
        image: String,
        /// The registry tried.
        registry: String,
        /// The chain of causes.
        detail: String,
    },
    /// The image is absent and the policy forbids to pull (`ErrImageNeverPull` in Kubernetes).
    #[error("Container image {image:?} is not present with pull policy of Never")]
    NeverPull {
        /// The image asked for.
        image: String,
    },
    /// The registry answered with something else than the image.
    #[error("pulling image {image:?} failed: {detail}")]
    Registry {
        /// The image asked for.
        image: String,
        /// What the registry answered.
        detail: String,
    },
    /// Content does not match its digest, or a blob that should be there is gone.
    #[error("{what} is damaged: {detail}")]
    Corrupt {
        /// What was checked.
        what: String,
        /// How it differs.
        detail: String,
    },
    /// A manifest, archive, layer or secret that breaks its format's rules.
    #[error("{what} is not valid: {detail}")]
    Invalid {
        /// What was read.
        what: String,
        /// Which rule it breaks.
        detail: String,
    },
    /// A build could not be made.
    #[error("{0}")]
    Build(String),
    /// The disk or another system call failed.
    #[error("{context}: {cause}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The system's error. The message has it, so it is no `source`, which whoever prints chains of causes would say again.
        cause: Arc<io::Error>,
    },
    /// A bug: a task of this crate died.
    #[error("internal error: {0}")]
    Internal(String),
}

impl ImageError {
    /// The reason a kubelet writes into a waiting container's status for this error.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::NeverPull { .. } => "ErrImageNeverPull",
            Self::Unreachable { .. } => "RegistryUnavailable",
            _ => "ErrImagePull",
        }
    }

    /// Whether trying again later, with nothing changed here, can succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Registry { .. } | Self::Io { .. })
    }

    pub(crate) fn invalid(what: impl Into<String>, detail: impl ToString) -> Self {
        Self::Invalid { what: what.into(), detail: detail.to_string() }
    }

    pub(crate) fn corrupt(what: impl Into<String>, detail: impl ToString) -> Self {
        Self::Corrupt { what: what.into(), detail: detail.to_string() }
    }
}

/// Adds what was being done to a system error.
pub(crate) trait Context<T> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, ImageError>;
    fn at(self, verb: &str, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T, ImageError> {
        self.map_err(|cause| ImageError::Io { context: doing(), cause: Arc::new(cause.into()) })
    }

    fn at(self, verb: &str, path: &Path) -> Result<T, ImageError> {
        self.context(|| format!("cannot {verb} {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let missing = std::fs::read("/no/such/file").at("read", Path::new("/no/such/file")).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read /no/such/file: No such file or directory (os error 2)");
        assert!(missing.source().is_none(), "a chain of causes would repeat it");
    }
}
