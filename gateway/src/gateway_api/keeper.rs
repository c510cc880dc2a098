//! What there is of Gateway API, kept up to date, translated and told about.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;

use ebb_component::watch::{Change, follow};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::status;
use super::translate::translate;
use super::types::{Address, Gateway, GatewayClass, GatewayClassSpec, HTTPRoute, Labels, ReferenceGrant};
use super::world::{CONTROLLER, World};
use crate::table::{BackendKey, Certificate, Claims, Compiled, Key, Kind, Owner, Problem, Routes, Touched};

const CRD: &str = "httproutes.gateway.networking.k8s.io";
const CLASS: &str = "ebb";
const RETRY: Duration = Duration::from_millis(500);

/// What happened.
#[derive(Debug)]
pub(crate) enum News {
    Class(Box<GatewayClass>),
    ClassGone(String),
    Gateway(Box<Gateway>),
    GatewayGone(Key),
    Route(Box<HTTPRoute>),
    RouteGone(Key),
    Grant(Box<ReferenceGrant>),
    GrantGone(Key),
    Namespace(String, Labels),
    NamespaceGone(String),
    /// The CRDs are gone.
    Off,
}

/// Follows the CRDs, and while they are there their objects.
pub(crate) async fn watch<M: From<News> + Send + 'static>(
    client: kube::Client,
    to: mpsc::UnboundedSender<M>,
    shutdown: CancellationToken,
) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut running: Option<CancellationToken> = None;
    let only = watcher::Config::default().fields(&format!("metadata.name={CRD}"));
    let end = shutdown.clone();
    follow(api, only, shutdown, move |change| match change {
        Change::Apply(crd) => {
            let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
            let established = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
            if established && running.is_none() {
                tracing::info!("Gateway API is installed: its HTTPRoutes are served");
                let until = end.child_token();
                objects(&client, &to, &until);
                running = Some(until);
            }
        }
        Change::Gone { .. } => {
            if let Some(until) = running.take() {
                until.cancel();
                let _ = to.send(News::Off.into());
            }
        }
        Change::Synced => {}
    })
    .await;
}

fn objects<M: From<News> + Send + 'static>(
    client: &kube::Client,
    to: &mpsc::UnboundedSender<M>,
    until: &CancellationToken,
) {
    tokio::spawn(ensure_class(client.clone(), until.clone()));
    one::<GatewayClass, M>(client, to, until, |o| News::Class(Box::new(o)), |key| News::ClassGone(key.name));
    one::<Gateway, M>(client, to, until, |o| News::Gateway(Box::new(o)), News::GatewayGone);
    one::<HTTPRoute, M>(client, to, until, |o| News::Route(Box::new(o)), News::RouteGone);
    one::<ReferenceGrant, M>(client, to, until, |o| News::Grant(Box::new(o)), News::GrantGone);
    let labels = |namespace: Namespace| {
        News::Namespace(namespace.name_any(), namespace.metadata.labels.unwrap_or_default())
    };
    one::<Namespace, M>(client, to, until, labels, |key| News::NamespaceGone(key.name));
}

fn one<K, M>(
    client: &kube::Client,
    to: &mpsc::UnboundedSender<M>,
    until: &CancellationToken,
    there: impl Fn(K) -> News + Send + 'static,
    gone: impl Fn(Key) -> News + Send + 'static,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default + Clone + Eq + std::hash::Hash + Send + Sync,
    M: From<News> + Send + 'static,
{
    let (api, to): (Api<K>, _) = (Api::all(client.clone()), to.clone());
    tokio::spawn(follow(api, watcher::Config::default(), until.clone(), move |change| {
        let _ = match change {
            Change::Apply(object) => to.send(there(object).into()),
            Change::Gone { namespace, name } => to.send(gone(Key::new(namespace, name)).into()),
            Change::Synced => Ok(()),
        };
    }));
}

/// Makes the class that users name.
async fn ensure_class(client: kube::Client, until: CancellationToken) {
    let classes: Api<GatewayClass> = Api::all(client);
    let class = GatewayClass::new(CLASS, GatewayClassSpec { controller_name: CONTROLLER.to_owned() });
    loop {
        match classes.create(&PostParams::default(), &class).await {
            Ok(_) => return,
            Err(kube::Error::Api(answer)) if answer.code == 409 => return,
            Err(error) => tracing::warn!(%error, "the GatewayClass {CLASS} cannot be made, trying again"),
        }
        if until.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
            return;
        }
    }
}

/// See the module's documentation.
pub(crate) struct Keeper {
    client: kube::Client,
    world: World,
    stale: Stale,
    writing: HashMap<(&'static str, Key), AbortOnDropHandle<()>>,
}

/// What must be translated anew.
#[derive(Debug, Default)]
struct Stale {
    all: bool,
    some: BTreeSet<Key>,
    /// Whether statuses may differ.
    told: bool,
}

impl Keeper {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, world: World::default(), stale: Stale::default(), writing: HashMap::new() }
    }

    /// Takes news over; what left the table at once is answered.
    pub(crate) fn take<B>(&mut self, news: News, routes: &mut Routes<B>) -> Touched {
        let mut touched = Touched::default();
        self.stale.told = true;
        let world = &mut self.world;
        match news {
            News::Route(route) => {
                let key = key_of(&*route);
                let before = world.routes.insert(key.clone(), *route);
                let now = &world.routes[&key];
                if before.is_none_or(|before| {
                    before.spec != now.spec
                        || before.metadata.generation != now.metadata.generation
                        || before.metadata.uid != now.metadata.uid
                }) {
                    self.stale.some.insert(key);
                }
            }
            News::RouteGone(key) => {
                world.routes.remove(&key);
                touched.extend(routes.remove(&Owner { kind: Kind::HttpRoute, key }));
            }
            News::Gateway(gateway) => {
                let key = key_of(&*gateway);
                let before = world.gateways.insert(key.clone(), *gateway);
                self.stale.all |= before.is_none_or(|before| before.spec != world.gateways[&key].spec);
            }
            News::GatewayGone(key) => {
                world.gateways.remove(&key);
                touched.extend(routes.remove(&Owner { kind: Kind::Gateway, key }));
                self.stale.all = true;
            }
            News::Class(class) => {
                let name = class.name_any();
                let before = world.classes.insert(name.clone(), *class);
                self.stale.all |= before.is_none_or(|before| before.spec != world.classes[&name].spec);
            }
            News::ClassGone(name) => {
                world.classes.remove(&name);
                self.stale.all = true;
            }
            News::Grant(grant) => {
                world.grants.insert(key_of(&*grant), *grant);
                self.stale.all = true;
            }
            News::GrantGone(key) => {
                world.grants.remove(&key);
                self.stale.all = true;
            }
            News::Namespace(name, labels) => {
                self.stale.all |= world.namespaces.insert(name.clone(), labels.clone()) != Some(labels);
            }
            News::NamespaceGone(name) => self.stale.all |= world.namespaces.remove(&name).is_some(),
            News::Off => {
                for key in std::mem::take(&mut world.routes).into_keys() {
                    touched.extend(routes.remove(&Owner { kind: Kind::HttpRoute, key }));
                }
                for key in std::mem::take(&mut world.gateways).into_keys() {
                    touched.extend(routes.remove(&Owner { kind: Kind::Gateway, key }));
                }
                world.classes.clear();
                world.grants.clear();
                self.writing.clear();
            }
        }
        touched
    }

    /// A Service that routes may name.
    pub(crate) fn set_service(&mut self, service: &Service) {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
        let ports = ports.filter_map(|port| u16::try_from(port.port).ok()).collect();
        let key = key_of(service);
        let before = self.world.services.insert(key.clone(), ports);
        self.stale.all |= !self.world.routes.is_empty() && before.as_ref() != self.world.services.get(&key);
    }

    /// A Service that is gone.
    pub(crate) fn forget_service(&mut self, key: &Key) {
        self.stale.all |= self.world.services.remove(key).is_some() && !self.world.routes.is_empty();
    }

    /// Where this gateway can be reached; `otherwise` where no load balancer says.
    pub(crate) fn set_addresses(&mut self, service: &Service, otherwise: String) {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let given = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
        let mut all: Vec<Address> = given
            .filter_map(|given| match (&given.ip, &given.hostname) {
                (Some(ip), _) => Some(Address { type_: "IPAddress".to_owned(), value: ip.clone() }),
                (None, Some(name)) => Some(Address { type_: "Hostname".to_owned(), value: name.clone() }),
                (None, None) => None,
            })
            .collect();
        if all.is_empty() {
            all.push(Address { type_: "Hostname".to_owned(), value: otherwise });
        }
        self.stale.told |= self.world.addresses != all;
        self.world.addresses = all;
    }

    /// What is told may be another now: a Secret's certificate came or went, or somebody's host.
    pub(crate) fn tell_again(&mut self) {
        self.stale.told = true;
    }

    /// Translates what is stale into `routes`, and writes statuses that differ. `has` says whether a Secret holds a certificate.
    pub(crate) fn refresh<B: Clone>(
        &mut self,
        routes: &mut Routes<B>,
        resolve: &mut impl FnMut(&BackendKey) -> B,
    ) -> Touched {
        let mut touched = Touched::default();
        if self.stale.all {
            for (key, gateway) in &self.world.gateways {
                touched.extend(routes.set(certificates(&self.world, key, gateway)));
            }
        }
        let all = std::mem::take(&mut self.stale.all);
        let some = std::mem::take(&mut self.stale.some);
        self.stale.told |= all || !some.is_empty();
        let keys: Vec<Key> =
            if all { self.world.routes.keys().cloned().collect() } else { some.into_iter().collect() };
        for key in keys {
            if let Some(route) = self.world.routes.get(&key) {
                touched.extend(routes.set(translate(&self.world, route, resolve).compiled));
            }
        }
        touched
    }

    /// Writes statuses that differ from what is the case. `has` says whether a Secret holds a certificate.
    pub(crate) fn tell<B>(&mut self, routes: &Routes<B>, has: impl Fn(&Key) -> bool) {
        if !std::mem::take(&mut self.stale.told) || self.world.classes.is_empty() {
            return;
        }
        let now = Timestamp::now();
        let mut due: Vec<(&'static str, Key, Value, Option<String>)> = Vec::new();
        for (name, class) in &self.world.classes {
            let status = status::class(class, now);
            if class.spec.controller_name == CONTROLLER && class.status.as_ref() != Some(&status) {
                due.push(("GatewayClass", Key::new("", name.as_str()), json!(status), None));
            }
        }
        for (key, gateway) in &self.world.gateways {
            if !self.world.is_ours(gateway) {
                continue;
            }
            let status = status::gateway(&self.world, key, gateway, &has, now);
            if gateway.status.as_ref() != Some(&status) {
                due.push(("Gateway", key.clone(), json!(status), None));
            }
        }
        for (key, route) in &self.world.routes {
            let translated = translate(&self.world, route, &mut |_: &BackendKey| ());
            let taken = taken(routes, key);
            let status = status::route(route, &translated.parents, &translated.resolved, taken.as_ref(), now);
            if route.status.clone().unwrap_or_default() != status {
                due.push(("HTTPRoute", key.clone(), json!(status), route.metadata.resource_version.clone()));
            }
        }
        for (kind, key, status, version) in due {
            let client = self.client.clone();
            let at = key.clone();
            let task = match kind {
                "GatewayClass" => tokio::spawn(write::<GatewayClass>(Api::all(client), at, status, version)),
                "Gateway" => tokio::spawn(write::<Gateway>(namespaced(client, &key), at, status, version)),
                _ => tokio::spawn(write::<HTTPRoute>(namespaced(client, &key), at, status, version)),
            };
            self.writing.insert((kind, key), AbortOnDropHandle::new(task));
        }
        self.writing.retain(|_, task| !task.is_finished());
    }
}

/// Whether hosts of a route are an Ingress's.
fn taken<B>(routes: &Routes<B>, route: &Key) -> Option<status::Taken> {
    let owner = Owner { kind: Kind::HttpRoute, key: route.clone() };
    let Some(problem @ Problem::HostTaken { .. }) = routes.problem(&owner) else { return None };
    let all = routes.served(&owner).is_none_or(|served| served.hosts.is_empty());
    Some(status::Taken { why: problem.to_string(), all })
}

fn namespaced<K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>>(
    client: kube::Client,
    key: &Key,
) -> Api<K> {
    Api::namespaced(client, &key.namespace)
}

fn key_of(object: &impl ResourceExt) -> Key {
    Key::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// The certificates of a Gateway's listeners, as what it asks for.
fn certificates<B>(world: &World, key: &Key, gateway: &Gateway) -> Compiled<B> {
    let mut certificates: Vec<Certificate> = Vec::new();
    if world.is_ours(gateway) {
        for listener in gateway.spec.listeners.iter().filter(|listener| listener.protocol == "HTTPS") {
            let first = listener.tls.as_ref().and_then(|tls| tls.certificate_refs.first());
            let Some(Ok(secret)) = first.map(|first| world.secret(first, &key.namespace)) else { continue };
            let host: Arc<str> = listener.hostname.as_deref().unwrap_or("*").to_ascii_lowercase().into();
            if !certificates.iter().any(|known| known.host == host) {
                certificates.push(Certificate { host, secret });
            }
        }
    }
    Compiled {
        owner: Arc::new(Owner { kind: Kind::Gateway, key: key.clone() }),
        created: gateway.metadata.creation_timestamp.as_ref().map(|time| time.0),
        generation: gateway.metadata.generation.unwrap_or(0),
        hash: String::new(),
        claims: Claims::default(),
        certificates,
        problem: None,
    }
}

/// Writes a status. With a version only over that one: whoever wrote since is seen, and what he wrote is kept.
async fn write<K>(api: Api<K>, key: Key, status: Value, version: Option<String>)
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut patch = json!({"status": status});
    if let Some(version) = version {
        patch["metadata"] = json!({"resourceVersion": version});
    }
    let params = PatchParams { field_manager: Some("ebb-gateway".to_owned()), ..PatchParams::default() };
    loop {
        match api.patch_status(&key.name, &params, &Patch::Merge(&patch)).await {
            Ok(_) => return,
            // Gone, or changed: its news is on the way.
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => return,
            Err(error) => {
                tracing::warn!(object = %key, %error, "a status could not be written, trying again");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
