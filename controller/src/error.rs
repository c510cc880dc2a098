//! What can go wrong, with what to do about it.

use ebb_component::said;

/// An error of the controller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused a write or could not be reached.
    #[error("could not {verb} {object}: {}", said(.source))]
    Write {
        /// create, change or delete.
        verb: &'static str,
        /// Kind and name.
        object: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// The API server refused a read or could not be reached.
    #[error("could not read {what}: {}", said(.source))]
    Read {
        /// What.
        what: &'static str,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// An object is not what it should be.
    #[error("an object cannot be written as JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// A Secret of the platform is damaged.
    #[error(
        "Secret {name} is damaged: {message}; delete it and restart the controller to have a new one made"
    )]
    Secret {
        /// Its name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A certificate could not be made.
    #[error("could not make a certificate: {0}")]
    Certificate(String),
    /// The mesh's authority could not be set up.
    #[error("the mesh's certificate authority: {0}")]
    Mesh(#[from] ebb_mesh::Error),
    /// A port cannot be had.
    #[error(transparent)]
    Listen(#[from] ebb_component::ListenError),
}

/// What the API server did not do, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    attempt: String,
    /// Its own words.
    pub(crate) message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.attempt, self.message)
    }
}

impl Error {
    /// Whether the API server understood a write and said no, as by a quota or a webhook; that it cannot be reached is no answer.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let Self::Write { verb, object, source } = self else { return None };
        let kube::Error::Api(status) = source.as_ref() else { return None };
        let refused = matches!(status.code, 400 | 403 | 405 | 406 | 413 | 422);
        refused.then(|| Refusal {
            attempt: format!("could not {verb} {object}"),
            message: status.message.clone(),
        })
    }

    /// Whether the object is on its way out, or has changed meanwhile: the next watch event ends it, nobody needs to know.
    pub(crate) fn is_passing(&self) -> bool {
        let Self::Write { source, .. } = self else { return false };
        let kube::Error::Api(status) = source.as_ref() else { return false };
        let causes = status.details.iter().flat_map(|d| &d.causes);
        matches!(status.code, 404 | 409) || causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
    }
}
