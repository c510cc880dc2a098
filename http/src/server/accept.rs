//! Turning an accepted socket into a stream that HTTP can be spoken on.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::connect::Protocol;

/// What a handshake found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// The protocol agreed on; `None` means HTTP/1.1.
    pub protocol: Option<Protocol>,
    /// Whether the stream is encrypted.
    pub secure: bool,
    /// The peer's proven identity.
    pub identity: Option<Arc<str>>,
    /// The host the client asked for (SNI).
    pub server_name: Option<Arc<str>>,
    /// Whose connection it is, where somebody trusted passed it on for another.
    pub client: Option<SocketAddr>,
}

/// Makes a stream of an accepted socket: the place for TLS. The server puts a time limit on it.
pub trait Acceptor: Send + Sync + 'static {
    /// The stream it yields.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Shakes hands. An error closes the connection and is logged at debug level: any port scan causes it.
    fn accept(&self, tcp: TcpStream) -> impl Future<Output = io::Result<(Self::Io, Handshake)>> + Send;
}

/// No TLS; HTTP/1.1, or HTTP/2 when the client starts with its preface.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainAcceptor;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Acceptor for PlainAcceptor {
    type Io = TcpStream;

    async fn accept(&self, tcp: TcpStream) -> io::Result<(TcpStream, Handshake)> {
        let protocol = sniff(&tcp).await?;
        Ok((tcp, Handshake { protocol: Some(protocol), ..Handshake::default() }))
    }
}

/// Looks at the first bytes without taking them. Three bytes decide: no HTTP/1.1 method starts with `PRI`.
async fn sniff(tcp: &TcpStream) -> io::Result<Protocol> {
    let mut start = [0u8; 4];
    loop {
        let n = tcp.peek(&mut start).await?;
        if n == 0 || start[..n] != PREFACE[..n] {
            return Ok(Protocol::Http1);
        }
        if n == start.len() {
            return Ok(Protocol::Http2);
        }
        // `peek` is ready at once while those bytes lie there: wait for more without spinning.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Errors of one connection, as opposed to those of the listener.
pub(super) fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::InvalidInput
    )
}
