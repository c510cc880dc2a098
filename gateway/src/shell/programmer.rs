//! The one task that turns news into tables and endpoints.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Instant;

use ebb_api::networking::Ingress;
use ebb_http::{Pool, ports};
use kube::ResourceExt;
use rustls::sign::CertifiedKey;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Snapshot;
use super::endpoints::Endpoints;
use super::keyring::{Certificates, Keyring, certified};
use super::live::Live;
use super::settle::Settler;
use super::sources::{Inbox, Message, SOURCES, secrets};
use crate::config::Config;
use crate::gateway_api::Keeper;
use crate::table::{BackendKey, Key, Kind, Owner, Problem, Routes, Touched, compile};
use crate::upstream::Upstream;

/// The Service through which clients come from outside.
const EXTERNAL_SERVICE: &str = "gateway";

/// See the module's documentation.
pub(crate) struct Programmer {
    config: Config,
    pool: Pool,
    snapshot: Snapshot,
    settler: Settler,
    ingresses: HashMap<Key, Arc<Ingress>>,
    routes: Routes<Arc<Upstream>>,
    endpoints: Endpoints,
    upstreams: Upstreams,
    keyring: Keyring,
    gateway_api: Keeper,
    live: Arc<Live>,
    waiting: usize,
    /// What changed since the last table.
    touched: Touched,
    routes_changed: bool,
}

/// What the data path sees of the programmer's work.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) snapshot: Snapshot,
    pub(crate) certificates: Certificates,
    pub(crate) live: Arc<Live>,
}

/// The upstreams that rules point to.
#[derive(Default)]
struct Upstreams {
    known: HashMap<BackendKey, Weak<Upstream>>,
    by_service: HashMap<Key, Vec<BackendKey>>,
    /// With so many the dead ones are thrown out.
    sweep_at: usize,
}

impl Upstreams {
    /// The upstream of a Service port, a new one when no rule points to it yet.
    fn get(&mut self, key: &BackendKey, endpoints: &Endpoints, pool: &Pool) -> Arc<Upstream> {
        if let Some(upstream) = self.known.get(key).and_then(Weak::upgrade) {
            return upstream;
        }
        let upstream = Upstream::new(key.clone(), pool.clone());
        upstream.set(endpoints.content(key));
        if self.known.insert(key.clone(), Arc::downgrade(&upstream)).is_none() {
            self.by_service.entry(key.service.clone()).or_default().push(key.clone());
        }
        upstream
    }

    fn sweep(&mut self) {
        if self.known.len() < self.sweep_at {
            return;
        }
        self.known.retain(|_, upstream| upstream.strong_count() > 0);
        let known = &self.known;
        self.by_service.retain(|_, keys| {
            keys.retain(|key| known.contains_key(key));
            !keys.is_empty()
        });
        self.sweep_at = self.known.len() * 2 + 64;
    }
}

impl Programmer {
    pub(crate) fn new(
        config: Config,
        trust_domain: &str,
        pool: Pool,
        seen: Seen,
        gateway_api: Keeper,
        settler: Settler,
    ) -> Self {
        let endpoints = Endpoints::new(config.internal_name(), &config.namespace, trust_domain);
        Self {
            config,
            pool,
            snapshot: seen.snapshot,
            settler,
            ingresses: HashMap::new(),
            routes: Routes::default(),
            endpoints,
            upstreams: Upstreams::default(),
            keyring: Keyring::new(seen.certificates),
            gateway_api,
            live: seen.live,
            waiting: SOURCES,
            touched: Touched::default(),
            routes_changed: true,
        }
    }

    /// Runs until `shutdown`. `synced` is cancelled when the first table is served.
    pub(crate) async fn run(
        mut self,
        (sender, mut inbox): (mpsc::UnboundedSender<Message>, Inbox),
        client: kube::Client,
        synced: CancellationToken,
        shutdown: CancellationToken,
    ) {
        let mut secret_watch = None;
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => return,
                message = inbox.recv() => message,
            };
            let Some(message) = message else { return };
            self.take(message);
            // One table for all the news there is.
            while let Ok(message) = inbox.try_recv() {
                self.take(message);
            }
            if self.waiting > 0 {
                continue;
            }
            self.program();
            synced.cancel();
            if secret_watch.is_none() && self.keyring.wants_any() {
                let watch = secrets(client.clone(), sender.clone(), shutdown.clone());
                secret_watch = Some(tokio::spawn(watch));
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Ingress(ingress) => self.take_ingress(Arc::from(ingress)),
            Message::IngressGone(key) => {
                if self.ingresses.remove(&key).is_some() {
                    self.settler.forget(&key);
                    let touched = self.routes.remove(&Owner { kind: Kind::Ingress, key });
                    self.touched.extend(touched);
                    self.routes_changed = true;
                }
            }
            Message::Service(service) => {
                let outside = service.name_any() == EXTERNAL_SERVICE
                    && service.namespace().as_deref() == Some(&*self.config.namespace);
                if outside && self.settler.set_public(&service) {
                    let all = self.ingresses.keys().cloned();
                    self.touched.owners.extend(all.map(|key| Owner { kind: Kind::Ingress, key }));
                }
                if outside {
                    self.gateway_api.set_addresses(&service, self.config.external_name());
                }
                if let Some(key) = self.endpoints.set_service(&service) {
                    self.gateway_api.set_service(&service);
                    self.refresh(&key);
                }
            }
            Message::ServiceGone(key) => {
                if self.endpoints.forget_service(&key) {
                    self.gateway_api.forget_service(&key);
                    self.refresh(&key);
                }
            }
            Message::Slice(slice) => {
                if let Some(service) = self.endpoints.set_slice(&slice) {
                    self.refresh(&service);
                }
            }
            Message::SliceGone(id) => {
                if let Some(service) = self.endpoints.forget_slice(&id) {
                    self.refresh(&service);
                }
            }
            Message::Secret(secret) => {
                let key = Key::new(secret.namespace().unwrap_or_default(), secret.name_any());
                match certified(&secret) {
                    Ok(certified) => self.rekey(&key, Some(certified)),
                    // What was good goes on.
                    Err(error) => tracing::warn!(secret = %key, error, "a certificate cannot be used"),
                }
            }
            Message::SecretGone(key) => self.rekey(&key, None),
            Message::SecretsSynced => {
                self.keyring.synced();
                let hosts: Vec<_> = self.routes.secured().map(|(host, _)| host.clone()).collect();
                for host in hosts {
                    self.touched.owners.extend(self.routes.certified_at(&host));
                }
                self.gateway_api.tell_again();
            }
            Message::GatewayApi(news) => {
                let touched = self.gateway_api.take(news, &mut self.routes);
                self.routes_changed |= !touched.owners.is_empty();
                self.touched.extend(touched);
            }
            Message::Config(map) => {
                self.live.configure(&map.name_any(), &map.data.unwrap_or_default());
            }
            Message::ConfigGone(name) => self.live.configure(&name, &BTreeMap::new()),
            Message::Synced => self.waiting = self.waiting.saturating_sub(1),
        }
    }

    fn take_ingress(&mut self, ingress: Arc<Ingress>) {
        let key = Key::new(ingress.namespace().unwrap_or_default(), ingress.name_any());
        let before = self.ingresses.insert(key.clone(), Arc::clone(&ingress));
        let same_spec = before.is_some_and(|before| {
            before.spec == ingress.spec
                && before.metadata.generation == ingress.metadata.generation
                && before.metadata.creation_timestamp == ingress.metadata.creation_timestamp
        });
        if same_spec {
            // Only its status or labels changed: perhaps somebody else's write to undo.
            self.touched.owners.insert(Owner { kind: Kind::Ingress, key });
            return;
        }
        let (upstreams, endpoints, pool) = (&mut self.upstreams, &self.endpoints, &self.pool);
        let resolve = &mut |key: &BackendKey| upstreams.get(key, endpoints, pool);
        let touched = self.routes.set(compile(&ingress, &self.config.cluster_domain, resolve));
        self.touched.extend(touched);
        self.routes_changed = true;
    }

    /// A Secret's certificate is another now, or gone.
    fn rekey(&mut self, secret: &Key, certified: Option<Arc<CertifiedKey>>) {
        self.gateway_api.tell_again();
        for host in self.keyring.set(secret, certified) {
            self.touched.owners.extend(self.routes.certified_at(&host));
        }
    }

    /// The endpoints of a Service changed: those who use it see the new list at once.
    fn refresh(&mut self, service: &Key) {
        let gateways = Key::new(self.config.namespace.as_str(), "gateway-internal");
        if *service == gateways {
            let all = self.endpoints.sockets(&gateways, "http", ports::GATEWAY_LOCAL);
            self.settler.set_gateways(all);
        }
        let keys: Vec<BackendKey> = if self.endpoints.is_activators(service) {
            self.upstreams.known.keys().cloned().collect()
        } else {
            self.upstreams.by_service.get(service).cloned().unwrap_or_default()
        };
        for key in keys {
            if let Some(upstream) = self.upstreams.known.get(&key).and_then(Weak::upgrade) {
                upstream.set(self.endpoints.content(&key));
            }
        }
    }

    /// Serves what there is now, and tells whom it touches.
    fn program(&mut self) {
        let started = Instant::now();
        let (upstreams, endpoints, pool) = (&mut self.upstreams, &self.endpoints, &self.pool);
        let resolve = &mut |key: &BackendKey| upstreams.get(key, endpoints, pool);
        let of_gateway_api = self.gateway_api.refresh(&mut self.routes, resolve);
        self.routes_changed |= !of_gateway_api.owners.is_empty();
        let mut touched = std::mem::take(&mut self.touched);
        touched.extend(of_gateway_api);
        for host in &touched.certificates {
            self.keyring.want(host, self.routes.secret(host));
        }
        self.keyring.publish();
        if std::mem::take(&mut self.routes_changed) {
            self.snapshot.store(Arc::new(self.routes.table()));
            self.upstreams.sweep();
            metrics::gauge!("ebb_gateway_ingresses").set(self.ingresses.len() as f64);
            metrics::histogram!("ebb_gateway_table_seconds").record(started.elapsed().as_secs_f64());
        }
        for owner in touched.owners.iter().filter(|owner| owner.kind == Kind::Ingress) {
            self.settle(owner);
        }
        if touched.owners.iter().any(|owner| owner.kind == Kind::HttpRoute) {
            self.gateway_api.tell_again();
        }
        if self.keyring.is_synced() || !self.keyring.wants_any() {
            self.gateway_api.tell(&self.routes, |secret| self.keyring.has(secret));
        }
    }

    fn settle(&mut self, owner: &Owner) {
        let Some(ingress) = self.ingresses.get(&owner.key) else { return };
        let missing = self
            .routes
            .certificates(owner)
            .iter()
            .find(|certificate| !self.keyring.has(&certificate.secret))
            .map(|certificate| Problem::NoCertificate { secret: certificate.secret.clone() });
        if missing.is_some() && !self.keyring.is_synced() {
            // It may be there all the same; all are checked again once that is known.
            return;
        }
        let problem = self.routes.problem(owner).or(missing);
        self.settler.check(&owner.key, ingress, self.routes.served(owner), problem);
    }
}
