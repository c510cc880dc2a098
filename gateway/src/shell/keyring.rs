//! Certificates of hosts: which Secret is wanted for which, and what handshakes pick from.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Secret;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::table::{self, Key, Shards};

/// The certificates by host; shared with the handshakes.
#[derive(Clone, Default)]
pub(crate) struct Certificates(Arc<ArcSwap<Shards<Arc<CertifiedKey>>>>);

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates", self.0.load().len())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.of(hello.server_name()?)
    }
}

impl Certificates {
    fn of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        table::certified(&self.0.load(), name).cloned()
    }
}

/// The writer's side.
pub(crate) struct Keyring {
    shared: Certificates,
    served: Shards<Arc<CertifiedKey>>,
    changed: bool,
    keys: HashMap<Key, Arc<CertifiedKey>>,
    wanted: HashMap<Arc<str>, Key>,
    by_secret: HashMap<Key, BTreeSet<Arc<str>>>,
    synced: bool,
}

impl Keyring {
    pub(crate) fn new(shared: Certificates) -> Self {
        Self {
            shared,
            served: Shards::default(),
            changed: false,
            keys: HashMap::new(),
            wanted: HashMap::new(),
            by_secret: HashMap::new(),
            synced: false,
        }
    }

    /// Every Secret that exists was told.
    pub(crate) fn synced(&mut self) {
        self.synced = true;
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Whether any host wants a certificate.
    pub(crate) fn wants_any(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Whether a Secret holds a certificate that can be used.
    pub(crate) fn has(&self, secret: &Key) -> bool {
        self.keys.contains_key(secret)
    }

    /// A host wants this Secret's certificate, or none any more.
    pub(crate) fn want(&mut self, host: &Arc<str>, secret: Option<&Key>) {
        if let Some(before) = self.wanted.remove(host)
            && let Some(hosts) = self.by_secret.get_mut(&before)
        {
            hosts.remove(host);
            if hosts.is_empty() {
                self.by_secret.remove(&before);
            }
        }
        let Some(secret) = secret else { return self.serve(host, None) };
        self.wanted.insert(host.clone(), secret.clone());
        self.by_secret.entry(secret.clone()).or_default().insert(host.clone());
        self.serve(host, self.keys.get(secret).cloned());
    }

    /// A Secret's certificate, or that it is gone; answers with the hosts that it is for.
    pub(crate) fn set(&mut self, secret: &Key, key: Option<Arc<CertifiedKey>>) -> Vec<Arc<str>> {
        match &key {
            Some(key) => self.keys.insert(secret.clone(), key.clone()),
            None => self.keys.remove(secret),
        };
        let hosts: Vec<_> = self.by_secret.get(secret).into_iter().flatten().cloned().collect();
        for host in &hosts {
            self.serve(host, key.clone());
        }
        hosts
    }

    fn serve(&mut self, host: &Arc<str>, key: Option<Arc<CertifiedKey>>) {
        self.changed = true;
        match key {
            Some(key) => self.served.insert(host, key),
            None => self.served.remove(host),
        }
    }

    /// Lets handshakes see what changed.
    pub(crate) fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            metrics::gauge!("ebb_gateway_certificates").set(self.served.len() as f64);
            self.shared.0.store(Arc::new(self.served.clone()));
        }
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

    #[test]
    fn hosts_get_what_their_secret_holds_at_the_moment() {
        let key = || {
            let made =
                rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).expect("a certificate");
            let data = [("tls.crt", made.cert.pem()), ("tls.key", made.signing_key.serialize_pem())];
            let data = data.map(|(name, pem)| (name.to_owned(), ByteString(pem.into_bytes())));
            certified(&Secret { data: Some(data.into()), ..Secret::default() }).expect("a certificate")
        };
        let served = |shared: &Certificates, host: &str| shared.of(host).map(|key| key.cert[0].to_vec());
        let shared = Certificates::default();
        let mut ring = Keyring::new(shared.clone());
        let (first, second) = (key(), key());
        let secret = Key::new("default", "cert");
        ring.want(&"a.example".into(), Some(&secret));
        ring.want(&"*.b.example".into(), Some(&secret));
        assert!(ring.set(&Key::new("default", "other"), Some(first.clone())).is_empty());
        assert_eq!(ring.set(&secret, Some(first.clone())).len(), 2);
        assert_eq!(served(&shared, "a.example"), None, "not published yet");
        ring.publish();
        for host in ["a.example", "x.b.example"] {
            assert_eq!(served(&shared, host).as_deref(), Some(&*first.cert[0]), "{host}");
        }
        assert_eq!(served(&shared, "x.y.b.example"), None, "a certificate's wildcard is one label");
        ring.set(&secret, Some(second.clone()));
        ring.want(&"*.b.example".into(), None);
        ring.publish();
        assert_eq!(served(&shared, "a.example").as_deref(), Some(&*second.cert[0]), "renewed");
        assert_eq!(served(&shared, "x.b.example"), None);
        ring.set(&secret, None);
        ring.publish();
        assert_eq!(served(&shared, "a.example"), None);
        assert!(ring.wants_any() && !ring.has(&secret));
    }
}
