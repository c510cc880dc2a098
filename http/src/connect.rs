//! How a pool reaches a backend. Encryption lives behind [`Connector`], so that this crate needs no identities.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::error::BoxError;

/// The HTTP version spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, one request at a time on a connection.
    Http1,
    /// HTTP/2: by ALPN under TLS, by prior knowledge without.
    Http2,
}

/// Whether and how a connection is protected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// No encryption.
    Plain,
    /// Mutual TLS with a peer whose identity matches.
    Tls {
        /// The identity expected of the peer, in the connector's own notation (ebb-mesh: a SPIFFE ID, or
        /// `spiffe://<trust domain>/ns/<namespace>/*` for any of a namespace).
        peer: Arc<str>,
    },
}

/// One backend, and how to speak with it. The key of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is spoken to.
    pub protocol: Protocol,
    /// How it is protected.
    pub security: Security,
}

impl Target {
    /// A backend without encryption.
    pub fn plain(address: SocketAddr, protocol: Protocol) -> Self {
        Self { address, protocol, security: Security::Plain }
    }

    /// A backend behind mutual TLS.
    pub fn tls(address: SocketAddr, protocol: Protocol, peer: impl Into<Arc<str>>) -> Self {
        Self { address, protocol, security: Security::Tls { peer: peer.into() } }
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Connected<Io> {
    /// The byte stream.
    pub io: Io,
    /// What was agreed on; may differ from what was asked for.
    pub protocol: Protocol,
}

/// Opens connections. Cancelling the future (a time limit passed) must close the socket.
pub trait Connector: Send + Sync + 'static {
    /// The stream it yields.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens a connection to `target`.
    fn connect(&self, target: &Target) -> impl Future<Output = Result<Connected<Self::Io>, BoxError>> + Send;
}

/// TCP without encryption; refuses targets that ask for TLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainConnector;

impl Connector for PlainConnector {
    type Io = TcpStream;

    async fn connect(&self, target: &Target) -> Result<Connected<TcpStream>, BoxError> {
        if target.security != Security::Plain {
            return Err("this connector speaks no TLS".into());
        }
        let io = TcpStream::connect(target.address).await?;
        io.set_nodelay(true)?;
        Ok(Connected { io, protocol: target.protocol })
    }
}
