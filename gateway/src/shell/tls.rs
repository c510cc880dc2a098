//! Certificates of hosts, and the acceptor that picks one by SNI.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ebb_http::{Acceptor, Handshake, Protocol};
use k8s_openapi::api::core::v1::Secret;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// The certificates by host; shared with the handshakes.
#[derive(Clone, Default)]
pub(crate) struct Certificates(Arc<ArcSwap<HashMap<String, Arc<CertifiedKey>>>>);

impl Certificates {
    pub(crate) fn set(&self, by_host: HashMap<String, Arc<CertifiedKey>>) {
        self.0.store(Arc::new(by_host));
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.load().keys()).finish()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        let by_host = self.0.load();
        let wildcard = || by_host.get(&format!("*.{}", name.split_once('.')?.1));
        by_host.get(&name).or_else(wildcard).cloned()
    }
}

/// Reads `tls.crt` and `tls.key`.
pub(crate) fn certified(secret: &Secret) -> Result<Arc<CertifiedKey>, String> {
    let data = |key: &str| {
        let found = secret.data.as_ref().and_then(|data| data.get(key));
        found.map(|bytes| bytes.0.as_slice()).ok_or_else(|| format!("the Secret has no {key}"))
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(data("tls.crt")?)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("tls.crt is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("tls.crt holds no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(data("tls.key")?)
        .map_err(|error| format!("tls.key is not PEM: {error}"))?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|error| format!("tls.key is of a kind that is not supported: {error}"))?;
    let certified = CertifiedKey::new(chain, key);
    certified
        .keys_match()
        .map_err(|error| format!("tls.key is not the key of the first certificate in tls.crt: {error}"))?;
    Ok(Arc::new(certified))
}

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
        };
        Ok((Box::new(tls), shake))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn certificate_and_key_belong_together() {
        let made =
            || rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).expect("a certificate");
        let (one, other) = (made(), made());
        let read = |cert: &str, key: &str| {
            let data = [("tls.crt", cert), ("tls.key", key)];
            let data = data.map(|(name, pem)| (name.to_owned(), ByteString(pem.as_bytes().to_vec())));
            certified(&Secret { data: Some(data.into()), ..Secret::default() }).map(|_| ())
        };
        assert_eq!(read(&one.cert.pem(), &one.signing_key.serialize_pem()), Ok(()));
        let error = read(&one.cert.pem(), &other.signing_key.serialize_pem()).expect_err("of another");
        assert!(error.starts_with("tls.key is not the key of"), "{error}");
        assert_eq!(
            read("", &one.signing_key.serialize_pem()),
            Err("tls.crt holds no certificate".to_owned())
        );
    }
}
