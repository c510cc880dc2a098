//! Failures of a proxied request: on which side, and whether sending it again is safe.
//!
//! A proxy must know both. The side decides what the client is told and whose fault a metric counts; the safety
//! decides whether another backend may be tried without a request being executed twice.

use std::time::Duration;

use http::StatusCode;

/// Which side of the proxy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The client: it went away or sent something broken.
    Downstream,
    /// The backend or the way to it.
    Upstream,
    /// The proxy itself: limits, configuration, bugs.
    Internal,
}

/// Whether the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The backend cannot have acted on it.
    Safe,
    /// The backend may have seen it.
    Unsafe,
}

/// Why a request was not answered by its backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made.
    #[error("cannot connect to {target}: {cause}; is it listening, and does policy let us through?")]
    Connect {
        /// Address of the backend.
        target: String,
        /// What the connector said.
        #[source]
        cause: BoxError,
    },
    /// Connecting took too long.
    #[error("connecting to {target} took longer than {limit:?}")]
    ConnectTimeout {
        /// Address of the backend.
        target: String,
        /// The limit in force.
        limit: Duration,
    },
    /// A kept connection was closed as the request was sent; nothing of an answer was seen.
    #[error("the kept connection to {target} closed before the request was answered")]
    Stale {
        /// Address of the backend.
        target: String,
        /// Whether the backend cannot have acted on the request.
        retry: Retry,
    },
    /// The backend broke off, or answered with something that is not HTTP.
    #[error("{target} did not answer properly: {cause}")]
    Response {
        /// Address of the backend.
        target: String,
        /// What the protocol implementation said.
        #[source]
        cause: hyper::Error,
        /// Whether the backend cannot have acted on the request.
        retry: Retry,
    },
    /// A time limit on the response passed.
    #[error("no {what} within {limit:?}")]
    Timeout {
        /// `response` , `whole response` or `next byte`.
        what: &'static str,
        /// The limit in force.
        limit: Duration,
    },
    /// The client broke off while its request was being sent on.
    #[error("the client went away while sending its request: {0}")]
    ClientGone(#[source] hyper::Error),
    /// The request cannot be forwarded as it is.
    #[error("the request cannot be forwarded: {0}")]
    BadRequest(&'static str),
    /// A CONNECT that asks for a tunnel to anywhere.
    #[error("CONNECT is not served: this is no forward proxy")]
    NoTunnel,
    /// A web socket over HTTP/2 was asked for, and the backend answered as to a plain request.
    #[error("the backend did not switch to the protocol that was asked for")]
    NoUpgrade,
    /// A response body broke off.
    #[error("the response broke off: {0}")]
    Body(#[source] hyper::Error),
    /// A limit of this proxy was reached.
    #[error("{0}")]
    Overloaded(&'static str),
}

/// Any error that can cross a task.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    /// Which side failed.
    pub fn source_side(&self) -> Source {
        match self {
            Error::ClientGone(_) | Error::BadRequest(_) | Error::NoTunnel => Source::Downstream,
            Error::Overloaded(_) => Source::Internal,
            _ => Source::Upstream,
        }
    }

    /// [`Self::source_side`] as a word.
    pub fn side_name(&self) -> &'static str {
        match self.source_side() {
            Source::Downstream => "downstream",
            Source::Upstream => "upstream",
            Source::Internal => "internal",
        }
    }

    /// Whether the request may be sent again, to this backend or another.
    pub fn retry(&self) -> Retry {
        match self {
            Error::Connect { .. } | Error::ConnectTimeout { .. } => Retry::Safe,
            Error::Stale { retry, .. } | Error::Response { retry, .. } => *retry,
            _ => Retry::Unsafe,
        }
    }

    /// The same failure to connect once more, for others who waited for that attempt.
    pub(crate) fn of_connecting(&self) -> Option<Self> {
        match self {
            Error::Connect { target, cause } => {
                Some(Error::Connect { target: target.clone(), cause: cause.to_string().into() })
            }
            Error::ConnectTimeout { target, limit } => {
                Some(Error::ConnectTimeout { target: target.clone(), limit: *limit })
            }
            _ => None,
        }
    }

    /// What the client is told.
    pub fn status(&self) -> StatusCode {
        match self {
            Error::Timeout { .. } | Error::ConnectTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Error::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
            Error::BadRequest(_) | Error::ClientGone(_) => StatusCode::BAD_REQUEST,
            Error::NoTunnel => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::BAD_GATEWAY,
        }
    }
}
