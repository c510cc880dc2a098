//! What can go wrong with identities.

use std::io;

use crate::spiffe::SpiffeError;

/// What can go wrong with identities.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a SPIFFE ID of the expected form.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
    /// Text that is no PEM of the expected kind.
    #[error("{what} is not valid PEM: {detail}")]
    Pem {
        /// What was read.
        what: &'static str,
        /// Where it fails.
        detail: String,
    },
    /// A request for a certificate that is refused.
    #[error("the certificate signing request is refused: {0}")]
    Csr(&'static str),
    /// A certificate that cannot be read or made.
    #[error("certificate: {0}")]
    Certificate(String),
    /// The TLS implementation refused a configuration.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A session was resumed that began with a certificate which does not count any more.
    #[error("a resumed session began with a certificate that does not count any more: {0}")]
    Outlived(#[source] rustls::Error),
    /// A token, root or socket could not be read.
    #[error("{what}: {cause}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The authority said no.
    #[error("the certificate authority at {address} answered {status}: {message}")]
    Refused {
        /// Its address.
        address: String,
        /// Status of its answer.
        status: u16,
        /// Its explanation.
        message: String,
    },
    /// The authority's answer makes no sense.
    #[error("the certificate authority's answer cannot be used: {0}")]
    Answer(String),
    /// The peer is somebody else.
    #[error("expected {expected}, the peer is {actual}")]
    WrongPeer {
        /// Whom we wanted.
        expected: String,
        /// Who answered.
        actual: String,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |cause| Error::Io { what, cause }
    }
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Self {
        Error::Certificate(error.to_string())
    }
}
