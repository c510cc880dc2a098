//! Accepting and connecting with an [`Identity`], and the bridge to ebb-http's traits.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ebb_http::connect::dial;
use ebb_http::error::BoxError;
use ebb_http::{Acceptor, Connected, Connector, Handshake, Protocol, Security, Target};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CommonState, HandshakeKind};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::error::Error;
use crate::identity::Identity;
use crate::policy::PeerPolicy;
use crate::spiffe::SpiffeId;

impl Identity {
    /// Shakes hands as the server. The identity is `None` when the client showed no certificate; one that does not verify
    /// fails the handshake.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn accept<S>(&self, stream: S) -> Result<(server::TlsStream<S>, Option<SpiffeId>), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let tls = TlsAcceptor::from(self.server_config())
            .accept(stream)
            .await
            .map_err(Error::io("TLS handshake with a client"))?;
        let id = self.peer(tls.get_ref().1, true)?;
        Ok((tls, id))
    }

    /// Shakes hands as the client with `server`, whose address or name serves only to find a session to resume, offering
    /// `protocol`, and checks that the peer is whom `expected` means before a byte is sent.
    ///
    /// # Errors
    /// [`Error::WrongPeer`] for somebody else; else when the handshake fails.
    pub async fn connect<S>(
        &self,
        stream: S,
        server: ServerName<'static>,
        expected: &PeerPolicy,
        protocol: Protocol,
    ) -> Result<(client::TlsStream<S>, SpiffeId), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let alpn = match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        };
        let tls = TlsConnector::from(self.client_config())
            .with_alpn(vec![alpn])
            .connect(server, stream)
            .await
            .map_err(Error::io("TLS handshake with a server"))?;
        let id = self.peer(tls.get_ref().1, false)?;
        match id {
            Some(id) if expected.matches(&id) => Ok((tls, id)),
            other => Err(Error::WrongPeer {
                expected: expected.to_string(),
                actual: other.map_or_else(|| "anonymous".into(), |id| id.to_string()),
            }),
        }
    }

    /// The peer's identity after a handshake, checked again when the handshake resumed an older session.
    fn peer(&self, state: &CommonState, client: bool) -> Result<Option<SpiffeId>, Error> {
        let Some(chain): Option<&[CertificateDer<'_>]> = state.peer_certificates() else { return Ok(None) };
        if state.handshake_kind() == Some(HandshakeKind::Resumed) {
            let verified = self.verifier().verify_resumed(chain, UnixTime::now(), client);
            return verified.map(Some).map_err(Error::Outlived);
        }
        Ok(crate::verify::peer_identity(Some(chain)))
    }
}

/// A connection that [`Identity`] made: with mutual TLS or without.
#[derive(Debug)]
pub enum MeshStream {
    /// No encryption.
    Plain(TcpStream),
    /// Mutual TLS. Boxed: it is a kilobyte, and futures that hold a stream shall stay small.
    Tls(Box<client::TlsStream<TcpStream>>),
}

impl Connector for Identity {
    type Io = MeshStream;

    async fn connect(&self, target: &Target) -> Result<Connected<MeshStream>, BoxError> {
        let tcp = dial(target.address).await?;
        let Security::Tls { peer } = &target.security else {
            return Ok(Connected { io: MeshStream::Plain(tcp), protocol: target.protocol });
        };
        let expected: PeerPolicy = peer.parse()?;
        let name = ServerName::IpAddress(target.address.ip().into());
        let (tls, _) = match Identity::connect(self, tcp, name.clone(), &expected, target.protocol).await {
            Err(Error::Outlived(error)) => {
                tracing::debug!(address = %target.address, %error, "once more, with a full handshake");
                self.forget_sessions();
                Identity::connect(self, dial(target.address).await?, name, &expected, target.protocol).await?
            }
            done => done?,
        };
        let protocol = protocol_of(tls.get_ref().1);
        Ok(Connected { io: MeshStream::Tls(Box::new(tls)), protocol })
    }
}

/// Accepts mutual TLS for an ebb-http server.
#[derive(Clone, Debug)]
pub struct MeshAcceptor(pub Identity);

impl Acceptor for MeshAcceptor {
    type Io = Box<server::TlsStream<TcpStream>>;

    async fn accept(&self, tcp: TcpStream) -> io::Result<(Self::Io, Handshake)> {
        let (tls, id) = self.0.accept(tcp).await.map_err(io::Error::other)?;
        let state = tls.get_ref().1;
        let shake = Handshake {
            protocol: Some(protocol_of(state)),
            secure: true,
            identity: id.map(|id| id.to_shared()),
            server_name: state.server_name().map(Arc::from),
            ..Handshake::default()
        };
        Ok((Box::new(tls), shake))
    }
}

fn protocol_of(state: &CommonState) -> Protocol {
    if state.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 }
}

impl AsyncRead for MeshStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MeshStream::Plain(io) => Pin::new(io).poll_read(cx, buf),
            MeshStream::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            MeshStream::Plain(io) => Pin::new(io).poll_write(cx, buf),
            MeshStream::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MeshStream::Plain(io) => Pin::new(io).poll_flush(cx),
            MeshStream::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MeshStream::Plain(io) => Pin::new(io).poll_shutdown(cx),
            MeshStream::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            MeshStream::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            MeshStream::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            MeshStream::Plain(io) => io.is_write_vectored(),
            MeshStream::Tls(io) => io.is_write_vectored(),
        }
    }
}
