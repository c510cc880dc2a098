//! Who may be connected to whom.
//!
//! An endpoint sees the proxy in place of the client, so what a pod's policies say about the client has to be asked here; and where
//! they keep everybody else out, they let the proxy in by the address that it connects from.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cluster_firewall::Origin;
use socket2::{Socket, Type};

use crate::index::Protocol;

/// Judges connections: client, endpoint, protocol.
type Judge = dyn Fn(IpAddr, SocketAddr, Protocol) -> bool + Send + Sync;

/// See the module's documentation.
#[derive(Clone)]
pub struct Gate {
    judge: Arc<Judge>,
    origin: Origin,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Gate {
    /// Connections from `origin`, if `judge` says so.
    pub fn new(
        origin: Origin,
        judge: impl Fn(IpAddr, SocketAddr, Protocol) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { judge: Arc::new(judge), origin }
    }

    /// A socket with which to connect to `target` for `client`.
    ///
    /// # Errors
    /// `PermissionDenied` when the client may not; else the system's.
    pub(crate) fn socket(
        &self,
        client: IpAddr,
        target: SocketAddr,
        protocol: Protocol,
    ) -> io::Result<Socket> {
        if !(self.judge)(client, target, protocol) {
            let message = format!("network policies do not let {client} reach {target}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let kind = match protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
        };
        self.origin.socket(target, kind)
    }
}
