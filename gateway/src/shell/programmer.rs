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
use super::settle::Settler;
use super::sources::{Inbox, Message, SOURCES, secrets};
use super::tls::{Certificates, certified};
use crate::config::Config;
use crate::table::{BackendKey, Builder, Key, Table};
use crate::upstream::Upstream;

/// The Service through which clients come from outside.
const EXTERNAL_SERVICE: &str = "gateway";

/// See the module's documentation.
pub(crate) struct Programmer {
    config: Config,
    pool: Pool,
    snapshot: Snapshot,
    certificates: Certificates,
    settler: Settler,
    ingresses: BTreeMap<Key, Arc<Ingress>>,
    endpoints: Endpoints,
    upstreams: HashMap<BackendKey, Weak<Upstream>>,
    by_service: HashMap<Key, Vec<BackendKey>>,
    secrets: HashMap<Key, Arc<CertifiedKey>>,
    waiting: usize,
    routes_changed: bool,
    certificates_changed: bool,
}

impl Programmer {
    pub(crate) fn new(
        config: Config,
        trust_domain: &str,
        pool: Pool,
        snapshot: Snapshot,
        certificates: Certificates,
        settler: Settler,
    ) -> Self {
        let endpoints = Endpoints::new(config.internal_name(), &config.namespace, trust_domain);
        Self {
            config,
            pool,
            snapshot,
            certificates,
            settler,
            ingresses: BTreeMap::new(),
            endpoints,
            upstreams: HashMap::new(),
            by_service: HashMap::new(),
            secrets: HashMap::new(),
            waiting: SOURCES,
            routes_changed: false,
            certificates_changed: false,
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
            if std::mem::take(&mut self.routes_changed) {
                self.program();
            }
            synced.cancel();
            if !self.snapshot.load().certificates.is_empty() && secret_watch.is_none() {
                let watch = secrets(client.clone(), sender.clone(), shutdown.clone());
                secret_watch = Some(tokio::spawn(watch));
            }
            if std::mem::take(&mut self.certificates_changed) {
                self.certify();
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Ingress(ingress) => {
                let key = Key::new(ingress.namespace().unwrap_or_default(), ingress.name_any());
                let ingress = Arc::from(ingress);
                let before = self.ingresses.insert(key.clone(), Arc::clone(&ingress));
                let same_spec = before.is_some_and(|before| {
                    before.spec == ingress.spec && before.metadata.generation == ingress.metadata.generation
                });
                if same_spec {
                    // Only its status or labels changed: perhaps somebody else's write to undo.
                    self.settler.check(&key, &ingress, &self.snapshot.load());
                } else {
                    self.routes_changed = true;
                }
            }
            Message::IngressGone(key) => {
                if self.ingresses.remove(&key).is_some() {
                    self.settler.forget(&key);
                    self.routes_changed = true;
                }
            }
            Message::Service(service) => {
                let outside = service.name_any() == EXTERNAL_SERVICE
                    && service.namespace().as_deref() == Some(&*self.config.namespace);
                if outside && self.settler.set_public(&service) && self.waiting == 0 {
                    self.settle();
                }
                if let Some(key) = self.endpoints.set_service(&service) {
                    self.refresh(&key);
                }
            }
            Message::ServiceGone(key) => {
                if self.endpoints.forget_service(&key) {
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
                    Ok(certified) => {
                        self.secrets.insert(key, certified);
                        self.certificates_changed = true;
                    }
                    Err(error) => tracing::warn!(secret = %key, error, "a certificate cannot be used"),
                }
            }
            Message::SecretGone(key) => {
                self.certificates_changed |= self.secrets.remove(&key).is_some();
            }
            Message::Synced => {
                self.waiting = self.waiting.saturating_sub(1);
                self.routes_changed = true;
            }
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
            self.upstreams.keys().cloned().collect()
        } else {
            self.by_service.get(service).cloned().unwrap_or_default()
        };
        for key in keys {
            if let Some(upstream) = self.upstreams.get(&key).and_then(Weak::upgrade) {
                upstream.set(self.endpoints.content(&key));
            }
        }
    }

    fn program(&mut self) {
        let started = Instant::now();
        let (upstreams, by_service, endpoints, pool) =
            (&mut self.upstreams, &mut self.by_service, &self.endpoints, &self.pool);
        let builder = Builder::new(&self.config.cluster_domain, |key: &BackendKey| {
            if let Some(upstream) = upstreams.get(key).and_then(Weak::upgrade) {
                return upstream;
            }
            let upstream = Upstream::new(key.clone(), pool.clone());
            upstream.set(endpoints.content(key));
            upstreams.insert(key.clone(), Arc::downgrade(&upstream));
            by_service.entry(key.service.clone()).or_default().push(key.clone());
            upstream
        });
        let table: Arc<Table<Arc<Upstream>>> =
            Arc::new(builder.build(self.ingresses.values().map(AsRef::as_ref)));
        let before = self.snapshot.swap(table.clone());
        if before.certificates != table.certificates {
            self.certificates_changed = true;
        }
        drop(before);
        self.upstreams.retain(|_, upstream| upstream.strong_count() > 0);
        let upstreams = &self.upstreams;
        self.by_service.retain(|_, keys| {
            keys.retain(|key| upstreams.contains_key(key));
            keys.dedup();
            !keys.is_empty()
        });
        metrics::gauge!("ebb_gateway_ingresses").set(self.ingresses.len() as f64);
        metrics::histogram!("ebb_gateway_table_seconds").record(started.elapsed().as_secs_f64());
        self.settle();
    }

    fn settle(&mut self) {
        let table = self.snapshot.load_full();
        for (key, ingress) in &self.ingresses {
            self.settler.check(key, ingress, &table);
        }
    }

    fn certify(&self) {
        let table = self.snapshot.load();
        let by_host = table.certificates.iter();
        let known: HashMap<_, _> = by_host
            .filter_map(|(host, secret)| Some((host.clone(), self.secrets.get(secret)?.clone())))
            .collect();
        metrics::gauge!("ebb_gateway_certificates").set(known.len() as f64);
        self.certificates.set(known);
    }
}
