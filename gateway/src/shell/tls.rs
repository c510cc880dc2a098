//! TLS for clients from outside, with the certificate of the host that they ask for.

use std::io;
use std::sync::Arc;

use ebb_http::{Acceptor, Handshake, Protocol};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::keyring::Certificates;

/// An acceptor over the certificates of the moment. A host without one fails the handshake.
pub(crate) fn acceptor(certificates: &Certificates) -> Result<EdgeAcceptor, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates.clone()));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(EdgeAcceptor(TlsAcceptor::from(Arc::new(config))))
}

/// TLS for clients from outside.
#[derive(Clone)]
pub(crate) struct EdgeAcceptor(TlsAcceptor);

impl Acceptor for EdgeAcceptor {
    type Io = Box<TlsStream<TcpStream>>;

    async fn accept(&self, tcp: TcpStream) -> io::Result<(Self::Io, Handshake)> {
        let tls = self.0.accept(tcp).await?;
        let state = tls.get_ref().1;
        let h2 = state.alpn_protocol() == Some(b"h2");
        let shake = Handshake {
            protocol: Some(if h2 { Protocol::Http2 } else { Protocol::Http1 }),
            secure: true,
            identity: None,
            server_name: state.server_name().map(Arc::from),
            ..Handshake::default()
        };
        Ok((Box::new(tls), shake))
    }
}
