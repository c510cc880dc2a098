//! A connection from outside: behind a load balancer its client's address comes first.

use std::io;
use std::sync::Arc;

use ebb_http::{Acceptor, Handshake};
use tokio::net::TcpStream;

use super::live::{Door, Live};
use crate::proxy_protocol;

/// Reads the PROXY protocol header where it is switched on, then goes on as `A` does.
#[derive(Debug, Clone)]
pub struct Edge<A> {
    inner: A,
    door: Door,
    live: Arc<Live>,
}

impl<A> Edge<A> {
    /// At one of the ports for the outside.
    pub(crate) fn new(inner: A, door: Door, live: Arc<Live>) -> Self {
        Self { inner, door, live }
    }

    /// At the port for HTTP.
    pub fn http(inner: A, live: Arc<Live>) -> Self {
        Self::new(inner, Door::Http, live)
    }
}

impl<A: Acceptor> Acceptor for Edge<A> {
    type Io = A::Io;

    async fn accept(&self, mut tcp: TcpStream) -> io::Result<(A::Io, Handshake)> {
        let client =
            if self.live.is_proxied(self.door) { proxy_protocol::read(&mut tcp).await? } else { None };
        let (io, shake) = self.inner.accept(tcp).await?;
        Ok((io, Handshake { client: client.or(shake.client), ..shake }))
    }
}
