//! TLS sessions to resume, forgotten before the certificates that they began with can expire.
//!
//! A resumed session shows no certificate again: each side holds the other to the one of the full handshake, however long ago that was.
//! Certificates are renewed at two thirds of their life, so one that is shown has a third of it left; a session that is forgotten within
//! that time never outlives it. So nobody is refused for a certificate that was replaced long ago.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls_pki_types::ServerName;

/// Sessions that are remembered, one for each address.
const SESSIONS: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Sessions(ArcSwap<ClientSessionMemoryCache>);

impl Sessions {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(ClientSessionMemoryCache::new(SESSIONS))))
    }

    pub(super) fn forget(&self) {
        self.0.store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.0.load().set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.load().kx_hint(server_name)
    }

    // There is only TLS 1.3 here.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.load().insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.load().take_tls13_ticket(server_name)
    }
}
