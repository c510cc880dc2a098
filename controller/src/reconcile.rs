//! The loop: watches fill the caches and the queue, workers take keys, look, decide and write.

mod certificates;
mod inspect;
mod lookup;

use dashmap::DashMap;
use ebb_api::meta::ebb::{MESH_POLICY, MESH_ROOT};
use ebb_api::meta::networking::CERTIFICATE_UID;
use ebb_api::meta::serving as keys;
use ebb_api::mtls::Mode;
use ebb_api::serving::{Addressable, GROUP, Revision};
use ebb_component::Admin;
use ebb_component::leader::{Election, Term};
use ebb_component::watch::events;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Service as CoreService};
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::certificates::Signers;
use crate::cache::Cache;
use crate::config::Config;
use crate::custody::Custody;
use crate::error::{Error, Refusal};
use crate::executor::Executor;
use crate::plan::label;
use crate::revision::digest::Resolver;
use crate::revision::{Digests, Platform};
use crate::sks::private_name;
use crate::world::{ANY, Key, Kind, World};
use crate::{Live, configuration, domain_mapping, gc, hpa, labeler, revision, route, service, sks, wildcard};

/// Everything a worker needs.
struct Reconciler {
    world: Arc<World>,
    executor: Executor,
    live: Live,
    client: Client,
    config: Arc<Config>,
    authority: Arc<Custody>,
    resolver: Resolver,
    /// Lookups of digests by the revision's uid: the result and how often it has failed.
    digests: DashMap<String, (Digests, u32)>,
    signers: Signers,
    shutdown: CancellationToken,
    /// What was found out about pods that do not come up, by revision.
    found: DashMap<Key, inspect::Found>,
    /// What the API server refused to do for an object when it was last looked at.
    refused: DashMap<Key, Refusal>,
}

/// Runs until `shutdown`: the watches always, the reconcilers while this replica leads.
pub(crate) async fn run(
    config: &Arc<Config>,
    client: Client,
    live: Live,
    authority: Arc<Custody>,
    admin: &Admin,
    election: Election,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let world = World::new(config.system_namespace.clone());
    let mut tasks = JoinSet::new();
    watch_all(&mut tasks, &world, &client);
    let configured = Arc::new(tokio::sync::Notify::new());
    tasks.spawn(watch_configs(client.clone(), world.clone(), live.clone(), configured.clone()));
    let (renewed, mut roots) = (world.clone(), authority.changed());
    tasks.spawn(async move {
        // The ConfigMap with the roots comes with the revisions of its namespace.
        while roots.changed().await.is_ok() {
            renewed.want_revisions();
        }
    });
    let (queued, leading) = (world.clone(), election.clone());
    admin.also_tell(Box::new(move || {
        let text = figures(&queued, leading.leads());
        Box::pin(async move { text })
    }));
    let reconciler = Arc::new(Reconciler {
        executor: Executor::new(client.clone()),
        resolver: Resolver::default(),
        digests: DashMap::new(),
        signers: Signers::default(),
        shutdown: shutdown.clone(),
        found: DashMap::new(),
        refused: DashMap::new(),
        config: config.clone(),
        world: world.clone(),
        client,
        live,
        authority,
    });
    let work = async {
        configured.notified().await;
        // Deciding on half a picture would undo what is right.
        while !world.is_synced() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        reconciler.config.ready.reconcilers.cancel();
        election.lead(&shutdown, |term| reconciler.clone().work(term)).await;
    };
    let _ = shutdown.run_until_cancelled(work).await;
    Ok(())
}

/// What is told of the queue when the metrics are read.
fn figures(world: &World, leads: bool) -> String {
    let (waiting, running) = world.queue.lengths();
    format!(
        "# TYPE ebb_controller_queue_waiting gauge\nebb_controller_queue_waiting {waiting}\n\
         # TYPE ebb_controller_queue_running gauge\nebb_controller_queue_running {running}\n\
         # TYPE ebb_controller_leads gauge\nebb_controller_leads {}\n",
        u8::from(leads)
    )
}

/// A key that is being reconciled; whatever becomes of that, the queue is told.
struct Running {
    world: Arc<World>,
    key: Key,
    ok: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.world.queue.done(&self.key, self.ok);
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "Service",
        Kind::Configuration => "Configuration",
        Kind::Revision => "Revision",
        Kind::Route => "Route",
        Kind::Sks => "ServerlessService",
        Kind::DomainMapping => "DomainMapping",
        Kind::Certificate => "Certificate",
        Kind::Wildcard => "Wildcard",
        Kind::Gc => "Gc",
        Kind::Hpa => "HorizontalPodAutoscaler",
        Kind::MeshPolicy => "MeshPolicy",
    }
}

/// Is told of an object as it was and as it is.
type Changed<K> = fn(&World, Option<&Arc<K>>, Option<&Arc<K>>);

fn follow<K>(
    tasks: &mut JoinSet<()>,
    world: &Arc<World>,
    api: Api<K>,
    config: watcher::Config,
    cache: fn(&World) -> &Cache<K>,
    changed: Changed<K>,
) where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let world = world.clone();
    tasks.spawn(async move {
        cache(&world).follow(events(api, config), |before, after| changed(&world, before, after)).await;
    });
}

fn watch_all(tasks: &mut JoinSet<()>, world: &Arc<World>, client: &Client) {
    macro_rules! watch {
        ($cache:ident, $config:expr, |$world:ident, $object:ident| $changed:expr) => {
            follow(
                tasks,
                world,
                Api::all(client.clone()),
                $config,
                |w| &w.$cache,
                |$world, before, after| {
                    if let Some($object) = after.or(before) {
                        $changed;
                    }
                },
            );
        };
    }
    let all = watcher::Config::default;
    watch!(services, all(), |w, o| w.service_changed(o));
    watch!(configurations, all(), |w, o| w.configuration_changed(o));
    watch!(revisions, all(), |w, o| w.revision_changed(o));
    watch!(domain_mappings, all(), |w, o| w.want(
        Kind::DomainMapping,
        &o.namespace().unwrap_or_default(),
        &o.name_any()
    ));
    watch!(claims, all(), |w, o| w.claim_changed(o));
    watch!(certificates, all(), |w, o| w.certificate_changed(o));
    let of_certificates = watcher::Config::default().labels(CERTIFICATE_UID);
    watch!(secrets, of_certificates, |w, o| w.secret_changed(o));
    watch!(ingresses, all(), |w, o| w.ingress_changed(o));
    watch!(skss, all(), |w, o| w.sks_changed(o));
    watch!(pod_autoscalers, all(), |w, o| w.pod_autoscaler_changed(o));
    follow(tasks, world, Api::all(client.clone()), all(), |w| &w.images, |_, _, _| {});
    let of_revisions = || watcher::Config::default().labels(keys::REVISION);
    watch!(horizontals, of_revisions(), |w, o| w.horizontal_changed(o));
    watch!(pods, of_revisions(), |w, o| w.belongs_to_revision(&**o));
    watch!(core_services, all(), |w, o| w.core_service_changed(o));
    follow(
        tasks,
        world,
        Api::all(client.clone()),
        all(),
        |w| &w.slices,
        |w, before, after| w.slice_changed(before.map(|b| &**b), after.map(|a| &**a)),
    );
    follow(
        tasks,
        world,
        Api::all(client.clone()),
        all(),
        |w| &w.routes,
        |w, before, after| {
            // What the Route led to before is looked at as well: it may lead nowhere now.
            before.into_iter().chain(after).for_each(|route| w.route_changed(route));
        },
    );
    follow(
        tasks,
        world,
        Api::all(client.clone()),
        of_revisions(),
        |w| &w.deployments,
        |w, before, after| {
            let fresh = before.is_none() || after.is_none();
            after.or(before).into_iter().for_each(|d| w.deployment_changed(d, fresh));
        },
    );
    follow(
        tasks,
        world,
        Api::all(client.clone()),
        all(),
        |w| &w.namespaces,
        |w, before, after| {
            after.into_iter().for_each(|o| w.namespace_changed(before.map(|b| &**b), o));
        },
    );
    let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let api = Api::all(client.clone());
    follow(
        tasks,
        world,
        api,
        named(MESH_POLICY),
        |w| &w.network_policies,
        |w, before, after| {
            after.or(before).into_iter().for_each(|o| w.network_policy_changed(o, after.is_none()));
        },
    );
    let api = Api::all(client.clone());
    follow(
        tasks,
        world,
        api,
        named(MESH_ROOT),
        |w| &w.mesh_roots,
        |w, before, after| {
            after.or(before).into_iter().for_each(|map| w.mesh_root_changed(map, after.is_none()));
        },
    );
}

/// Follows the `config-*` ConfigMaps. A bad one leaves what was in force.
async fn watch_configs(client: Client, world: Arc<World>, live: Live, first: Arc<tokio::sync::Notify>) {
    let api: Api<ConfigMap> = Api::namespaced(client, &world.system_namespace);
    let mut events = std::pin::pin!(events(api, watcher::Config::default()));
    let apply = |map: &ConfigMap| {
        let name = map.name_any();
        if !ebb_api::config::NAMES.contains(&name.as_str()) {
            return;
        }
        let mut next = (**live.load()).clone();
        match next.set(&name, map.data.as_ref().unwrap_or(&BTreeMap::new())) {
            Ok(()) if next != **live.load() => {
                live.store(Arc::new(next));
                world.want_all();
            }
            Ok(()) => {}
            Err(errors) => {
                let errors = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                tracing::warn!(config = %name, %errors, "a bad ConfigMap: what was in force stays");
            }
        }
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(map) | Event::InitApply(map)) => apply(&map),
            Ok(Event::Delete(map)) => apply(&ConfigMap { data: None, ..map }),
            Ok(Event::InitDone) => first.notify_one(),
            Ok(Event::Init) => {}
            Err(_) => {}
        }
    }
}

impl Reconciler {
    /// Takes keys from the queue for as long as the term lasts. The caches were kept all the time; what another replica did before
    /// is looked at again.
    async fn work(self: Arc<Self>, term: Term) {
        tracing::info!("reconciling");
        let world = self.world.clone();
        let _open = world.queue.open();
        world.want_all();
        let permits = Arc::new(Semaphore::new(self.config.concurrency.get()));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let key = self.world.queue.next().await;
            let running = Running { world: self.world.clone(), key, ok: false };
            let (this, term) = (self.clone(), term.clone());
            tokio::spawn(async move {
                if term.is_on() {
                    let _ = term.lost().run_until_cancelled(this.one(running)).await;
                }
                drop(permit);
            });
        }
    }

    async fn one(self: Arc<Self>, mut running: Running) {
        let (key, started) = (running.key.clone(), std::time::Instant::now());
        let result = self.reconcile(&key).await;
        let kind = kind_name(key.kind);
        let outcome = match &result {
            Ok(()) => "ok",
            Err(error) if error.is_passing() => "passing",
            Err(_) => "error",
        };
        metrics::histogram!("ebb_controller_reconcile_seconds", "kind" => kind)
            .record(started.elapsed().as_secs_f64());
        metrics::counter!("ebb_controller_reconciles_total", "kind" => kind, "outcome" => outcome)
            .increment(1);
        let (namespace, name) = (&key.namespace, &key.name);
        match &result {
            Ok(()) => running.ok = true,
            Err(error) if error.is_passing() => {
                tracing::debug!(kind, namespace, name, %error, "will be tried again");
            }
            Err(error) => tracing::warn!(kind, namespace, name, %error, "will be tried again"),
        }
    }

    async fn reconcile(self: &Arc<Self>, key: &Key) -> Result<(), Error> {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let world = &self.world;
        let configs = self.live.load_full();
        let now = Timestamp::now();
        match key.kind {
            Kind::Service => {
                let Some(object) = world.services.get(namespace, name) else { return Ok(()) };
                let configuration = world.configurations.get(namespace, name);
                let route = world.routes.get(namespace, name);
                let own_name = object.spec.template.metadata.name.as_deref();
                let named = own_name.and_then(|name| world.revisions.get(namespace, name));
                let observed = service::Observed {
                    service: &object,
                    configuration: configuration.as_deref(),
                    route: route.as_deref(),
                    named: named.as_deref(),
                };
                self.execute(key, &*object, service::plan(&observed, now)).await
            }
            Kind::Configuration => {
                let Some(object) = world.configurations.get(namespace, name) else { return Ok(()) };
                let revisions = world.revisions.find(namespace, &format!("cfg/{name}"));
                let named = world.revisions.get(namespace, &configuration::revision_name(&object));
                let mut routes = world.routes.find(namespace, &format!("cfg/{name}"));
                for revision in &revisions {
                    routes.extend(world.routes.find(namespace, &format!("rev/{}", revision.name_any())));
                }
                let routes = labeler::of_configuration(name, &revisions, &routes);
                let refused = self.refused.get(key).map(|r| r.clone());
                let observed = configuration::Observed {
                    configuration: &object,
                    revisions: &revisions,
                    named: named.as_deref(),
                    routes: routes.as_deref(),
                    refused: refused.as_ref().map(|r| r.message.as_str()),
                };
                self.execute(key, &*object, configuration::plan(&observed, now)).await
            }
            Kind::Gc => {
                let Some(object) = world.configurations.get(namespace, name) else { return Ok(()) };
                let revisions = world.revisions.find(namespace, &format!("cfg/{name}"));
                self.execute(key, &*object, gc::plan(&object, &revisions, &configs.gc, now)).await
            }
            Kind::Hpa => {
                let Some(object) = world.pod_autoscalers.get(namespace, name) else { return Ok(()) };
                let (live, sks) = (world.horizontals.get(namespace, name), world.skss.get(namespace, name));
                let refused = self.refused.get(key).map(|r| r.clone());
                let observed = hpa::Observed {
                    pa: &object,
                    hpa: live.as_deref(),
                    sks: sks.as_deref(),
                    refused: refused.as_ref().map(|r| r.message.as_str()),
                };
                self.execute(key, &*object, hpa::plan(&observed, &configs.autoscaler, now)).await
            }
            Kind::Revision => self.revision(key, &configs, now).await,
            Kind::MeshPolicy => {
                let Some(object) = world.network_policies.get(namespace, name) else { return Ok(()) };
                let platform = self.mode(&configs);
                let needed = world.revisions.any(namespace, ANY, |revision| {
                    revision.metadata.deletion_timestamp.is_none()
                        && world.mode(revision, platform) == Mode::Strict
                });
                self.execute(key, &*object, revision::network_policy::plan(&object, needed)).await
            }
            Kind::Route => self.route(key, &configs, now).await,
            Kind::Sks => self.sks(key, now).await,
            Kind::DomainMapping => self.domain_mapping(key, &configs, now).await,
            Kind::Certificate => self.certificate(key, &configs, now).await,
            Kind::Wildcard => {
                let Some(object) = world.namespaces.get("", name) else { return Ok(()) };
                let certificates = world.certificates.find(name, wildcard::ENTRY);
                self.execute(key, &*object, wildcard::plan(&object, &certificates, &configs)).await
            }
        }
    }

    async fn domain_mapping(
        &self,
        key: &Key,
        configs: &ebb_api::config::Configs,
        now: Timestamp,
    ) -> Result<(), Error> {
        use domain_mapping::Target;

        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let world = &self.world;
        let claim = world.claims.get("", name);
        let object = world.domain_mappings.get(namespace, name);
        if let Some(claim) = claim.as_ref().filter(|claim| claim.spec.namespace == namespace) {
            self.execute(key, &**claim, domain_mapping::release(claim, object.as_deref())).await?;
        }
        let Some(object) = object else { return Ok(()) };
        let child = domain_mapping::child_name(name);
        let ingress = world.ingresses.get(namespace, &child);
        let certificate = world.certificates.get(namespace, &child);
        let reference = &object.spec.reference;
        let group = reference.api_version.as_deref().unwrap_or_default();
        let group = group.rsplit_once('/').map_or("", |(group, _)| group);
        let url = |address: Option<&Addressable>| address.and_then(|a| a.url.clone());
        let (mut found, mut address) = (true, None);
        match (reference.kind.as_str(), group) {
            ("Service", "") => found = world.core_services.get(namespace, &reference.name).is_some(),
            ("Service", GROUP) => match world.services.get(namespace, &reference.name) {
                Some(service) => address = url(service.status.as_ref().and_then(|s| s.address.as_ref())),
                None => found = false,
            },
            ("Route", GROUP) => match world.routes.get(namespace, &reference.name) {
                Some(route) => address = url(route.status.as_ref().and_then(|s| s.address.as_ref())),
                None => found = false,
            },
            _ => {}
        }
        let target = match (reference.kind.as_str(), group) {
            ("Service", "" | GROUP) | ("Route", GROUP) if !found => Target::Missing,
            ("Service", "") => Target::Service,
            ("Service" | "Route", GROUP) => Target::Address(address.as_deref()),
            _ => Target::Unknown,
        };
        let observed = domain_mapping::Observed {
            mapping: &object,
            claim: claim.as_deref(),
            ingress: ingress.as_deref(),
            certificate: certificate.as_deref(),
            target,
        };
        self.execute(key, &*object, domain_mapping::plan(&observed, configs, now)).await
    }

    async fn execute<K>(&self, key: &Key, object: &K, plan: crate::plan::Plan) -> Result<(), Error>
    where
        K: Resource<DynamicType = ()>,
    {
        if let Some(after) = plan.requeue_after {
            self.world.queue.add_after(key.clone(), after);
        }
        let result = self.executor.run(object, plan).await;
        match result.as_ref().err().filter(|error| !error.is_passing()) {
            Some(error) => {
                self.executor.warn(object, "InternalError", error.to_string());
                if let Some(refusal) = error.refusal() {
                    self.refused.insert(key.clone(), refusal);
                }
            }
            None if result.is_ok() && self.refused.remove(key).is_some() => {
                // It went well after all, and shall be told so.
                self.world.queue.add(key.clone());
            }
            None => {}
        }
        result
    }

    async fn revision(
        self: &Arc<Self>,
        key: &Key,
        configs: &ebb_api::config::Configs,
        now: Timestamp,
    ) -> Result<(), Error> {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let world = &self.world;
        let Some(object) = world.revisions.get(namespace, name) else {
            self.found.remove(key);
            return Ok(());
        };
        let digests = self.digests(key, &object, configs);
        let owner = label(&object.metadata, keys::CONFIGURATION);
        let configuration = owner.and_then(|c| world.configurations.get(namespace, c));
        let mut routes = world.routes.find(namespace, &format!("rev/{name}"));
        if let Some(owner) = owner {
            routes.extend(world.routes.find(namespace, &format!("cfg/{owner}")));
        }
        routes.sort_by_key(|r| r.name_any());
        routes.dedup_by_key(|r| r.name_any());
        let deployment = world.deployments.get(namespace, &revision::deployment_name(name));
        let pods = world.pods.find(namespace, name);
        let pod_autoscaler = world.pod_autoscalers.get(namespace, name);
        let mesh_root = world.mesh_roots.get(namespace, MESH_ROOT);
        let images: Vec<String> = world.images.find(namespace, name).iter().map(|i| i.name_any()).collect();
        let network_policy = world.network_policies.get(namespace, MESH_POLICY);
        let trouble = self.trouble(key, &pods);
        let refused = self.refused.get(key).map(|r| r.to_string());
        let observed = revision::Observed {
            revision: &object,
            configuration: configuration.as_deref(),
            routes: &routes,
            digests: &digests,
            deployment: deployment.as_deref(),
            pods: &pods,
            pod_autoscaler: pod_autoscaler.as_deref(),
            mesh_root: mesh_root.as_deref(),
            network_policy: network_policy.as_deref(),
            images: &images,
            trouble: trouble.as_ref(),
            refused: refused.as_deref(),
        };
        self.inspect(key, revision::inspect(&observed, now));
        let platform = Platform {
            mtls_mode: world.mode(&object, self.mode(configs)),
            ..self.config.platform(self.authority.authority().roots_pem())
        };
        self.execute(key, &*object, revision::plan(&observed, configs, &platform, now)).await
    }

    /// Whether plaintext is refused where nobody nearer says so.
    fn mode(&self, configs: &ebb_api::config::Configs) -> Mode {
        configs.network.mtls_mode.or_else(|| self.config.mtls_mode.parse().ok()).unwrap_or_default()
    }

    async fn route(
        &self,
        key: &Key,
        configs: &ebb_api::config::Configs,
        now: Timestamp,
    ) -> Result<(), Error> {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let world = &self.world;
        let Some(object) = world.routes.get(namespace, name) else { return Ok(()) };
        let ingress = world.ingresses.get(namespace, name);
        let mut configurations = BTreeMap::new();
        let rolling = ingress.as_deref().and_then(route::Rollout::of).unwrap_or_default();
        let mut named: BTreeSet<String> = rolling.revisions().map(str::to_owned).collect();
        for target in &object.spec.traffic {
            let set = |name: &Option<String>| name.clone().filter(|n| !n.is_empty());
            if let Some(revision) = set(&target.revision_name) {
                let found = world.revisions.get(namespace, &revision);
                let owner = found.as_ref().and_then(|r| label(&r.metadata, keys::CONFIGURATION));
                let owner = owner.and_then(|c| world.configurations.get(namespace, c));
                configurations.extend(owner.map(|c| (c.name_any(), c)));
                named.insert(revision);
            } else if let Some(found) =
                set(&target.configuration_name).and_then(|c| world.configurations.get(namespace, &c))
            {
                named.extend(found.status.as_ref().and_then(|s| s.latest_ready_revision_name.clone()));
                configurations.insert(found.name_any(), found);
            }
        }
        let revisions: BTreeMap<String, Arc<Revision>> = named
            .into_iter()
            .filter_map(|name| world.revisions.get(namespace, &name).map(|found| (name, found)))
            .collect();
        let mut services: BTreeMap<String, Arc<CoreService>> =
            world.core_services.find(namespace, name).into_iter().map(|s| (s.name_any(), s)).collect();
        let tags = object.spec.traffic.iter().filter_map(|t| t.tag.as_deref());
        let names = tags.map(|t| configs.network.tag_name(name, t)).chain([name.to_owned()]);
        for wanted in names {
            if let Some(found) = world.core_services.get(namespace, &wanted) {
                services.insert(wanted, found);
            }
        }
        let mut certificates = world.certificates.find(namespace, &format!("route/{name}"));
        certificates.extend(world.certificates.find(namespace, wildcard::ENTRY));
        let observed = route::Observed {
            route: &object,
            configurations: &configurations,
            revisions: &revisions,
            ingress: ingress.as_deref(),
            services: &services,
            certificates: &certificates,
            system_namespace: &world.system_namespace,
        };
        self.execute(key, &*object, route::plan(&observed, configs, now)).await
    }

    async fn sks(&self, key: &Key, now: Timestamp) -> Result<(), Error> {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let world = &self.world;
        let Some(object) = world.skss.get(namespace, name) else { return Ok(()) };
        let target = object.spec.object_ref.name.clone().unwrap_or_default();
        let deployment = world.deployments.get(namespace, &target);
        let selector =
            deployment.as_ref().and_then(|d| d.spec.as_ref()).and_then(|s| s.selector.match_labels.as_ref());
        let private = private_name(name);
        let public_service = world.core_services.get(namespace, name);
        let private_service = world.core_services.get(namespace, &private);
        let by_service = |namespace: &str, service: &str| world.slices.find(namespace, service);
        let (public_slices, private_slices) = (by_service(namespace, name), by_service(namespace, &private));
        let activator_slices = by_service(&world.system_namespace, "activator");
        let observed = sks::Observed {
            sks: &object,
            selector,
            public: public_service.as_deref(),
            private: private_service.as_deref(),
            public_slices: &public_slices,
            private_slices: &private_slices,
            activator_slices: &activator_slices,
        };
        self.execute(key, &*object, sks::plan(&observed, now)).await
    }
}
