//! How a pool reaches a backend. Encryption lives behind [`Connector`], so that this crate needs no identities.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
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

/// After so long without a byte the other side is asked whether it is still there, and as often as this says.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// Connects for requests: without delay for small packets, and so that who waits for an answer notices in half a minute that the machine which
/// would give it is gone.
///
/// # Errors
/// What the system says.
pub async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    SockRef::from(&tcp).set_tcp_keepalive(&KEEPALIVE)?;
    Ok(tcp)
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
        Ok(Connected { io: dial(target.address).await?, protocol: target.protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanishes_is_noticed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let tcp = dial(listener.local_addr().expect("bound")).await.expect("connected");
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().expect("told") && tcp.nodelay().expect("told"));
        let retries = socket.tcp_keepalive_retries().expect("told");
        let silent = socket.tcp_keepalive_time().expect("told")
            + retries * socket.tcp_keepalive_interval().expect("told");
        assert_eq!(silent, Duration::from_secs(30));
    }
}
