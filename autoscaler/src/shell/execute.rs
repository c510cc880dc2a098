//! Doing what the engine says.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ebb_api::autoscaling::{Metric, MetricSpec, PodAutoscaler};
use ebb_api::names::public_slice;
use ebb_api::networking::{ServerlessService, ServerlessServiceSpec, SksMode};
use ebb_component::leader::Term;
use ebb_http::{Outgoing, Pool, PoolConfig, Protocol, RequestBody, Target, headers};
use ebb_mesh::Identity;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::Semaphore;

use super::collect::Collector;
use super::{Mailbox, Message};
use crate::config::Config;
use crate::core::Mode;
use crate::engine::{Effect, Event, Key, Write, key_of};

const MANAGER: &str = "ebb-autoscaler";
/// Whoever waits for a revision to be woken asks again after this.
const WAKE: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Writes at a time, scales aside, which a cold start waits for.
const AT_ONCE: usize = 64;

/// Turns effects into IO and tells the engine how it went.
pub(crate) struct Executor {
    client: kube::Client,
    collector: Collector,
    pool: Pool,
    activator: Arc<str>,
    mailbox: Mailbox,
    /// Writes are made in it only.
    term: ArcSwapOption<Term>,
    /// For what nobody waits for: after a start, thousands of revisions may have something to write at once.
    turns: Semaphore,
}

impl Executor {
    pub(crate) fn new(client: kube::Client, identity: Identity, config: &Config, mailbox: Mailbox) -> Self {
        let trust_domain = identity.trust_domain().to_owned();
        let pool = Pool::new(
            identity,
            PoolConfig { connect_timeout: Duration::from_secs(2), max_idle: 1, ..PoolConfig::default() },
        );
        Self {
            client,
            collector: Collector::new(pool.clone(), config.stats_port, &trust_domain),
            pool,
            activator: format!("spiffe://{trust_domain}/ns/{}/sa/activator", config.namespace).into(),
            mailbox,
            term: ArcSwapOption::empty(),
            turns: Semaphore::new(AT_ONCE),
        }
    }

    /// From now on writes are made in this term; in none they fail.
    pub(crate) fn begin(&self, term: Option<Term>) {
        self.term.store(term.map(Arc::new));
    }

    pub(crate) async fn execute(&self, effect: Effect) {
        let Some((key, write)) = write_of(&effect) else {
            let event = self.done(effect).await;
            let _ = self.mailbox.send(Message::Event(event));
            return;
        };
        // Never closed, so an error means nothing here.
        let _turn = if write == Write::Scale { None } else { self.turns.acquire().await.ok() };
        let started = std::time::Instant::now();
        let term = self.term.load_full().filter(|term| term.is_on());
        let done = match term {
            Some(term) => term.lost().clone().run_until_cancelled_owned(self.done(effect)).await,
            None => None,
        };
        let event = done.unwrap_or(Event::Written(key, write, false));
        let outcome = if matches!(event, Event::Written(_, _, true)) { "ok" } else { "error" };
        let labels = [("write", write_name(write)), ("outcome", outcome)];
        metrics::counter!("ebb_autoscaler_writes_total", &labels).increment(1);
        metrics::histogram!("ebb_autoscaler_write_seconds", "write" => write_name(write))
            .record(started.elapsed().as_secs_f64());
        let _ = self.mailbox.send(Message::Event(event));
    }

    /// Wakes a revision that is at zero, in whatever term and in none: a cold start does not wait until a leader that was killed is replaced.
    /// Only from zero, and by the version that was read, so that nobody who decides is undone; whoever decides next goes on from there.
    pub(crate) async fn wake(&self, pa: &PodAutoscaler, replicas: u32) -> bool {
        let name = pa.spec.scale_target_ref.name.as_deref().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &pa.namespace().unwrap_or_default());
        let woken = async {
            let scale = api.get_scale(name).await?;
            if scale.spec.and_then(|spec| spec.replicas).unwrap_or(0) > 0 {
                return Ok(());
            }
            let version = scale.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}});
            api.patch_scale(name, &params(), &Patch::Merge(patch)).await.map(|_| ())
        };
        match tokio::time::timeout(WAKE, woken).await {
            Ok(Ok(())) => {
                tracing::info!(revision = %key_of(pa), replicas, "woken while nobody decides");
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(revision = %key_of(pa), %error, "could not be woken while nobody decides");
                false
            }
            Err(_) => false,
        }
    }

    async fn done(&self, effect: Effect) -> Event {
        match effect {
            Effect::Scale(pa, replicas) => {
                let done = self.scale(&pa, replicas).await;
                written(&pa, Write::Scale, done)
            }
            Effect::Sks { pa, mode, num_activators, exists } => {
                let done = self.sks(&pa, mode, num_activators, exists).await;
                written(&pa, Write::Sks, done)
            }
            Effect::Metric { pa, wanted, exists } => {
                let spec = MetricSpec {
                    stable_window: nanos(wanted.stable_window),
                    panic_window: nanos(wanted.panic_window),
                    scrape_target: wanted.scrape_target,
                };
                let done = self.metric(&pa, spec, exists).await;
                written(&pa, Write::Metric, done)
            }
            Effect::Status(key, status) => {
                let api: Api<PodAutoscaler> = Api::namespaced(self.client.clone(), &key.namespace);
                let patch = Patch::Merge(json!({"status": status}));
                let done = api.patch_status(&key.name, &params(), &patch).await.map(|_| ());
                let ok = outcome(&key, Write::Status, done);
                Event::Written(key, Write::Status, ok)
            }
            Effect::Collect(key, pods) => {
                let load = self.collector.collect(&key, &pods).await;
                let outcome = if load.is_some() { "ok" } else { "too_few" };
                metrics::counter!("ebb_autoscaler_collections_total", "outcome" => outcome).increment(1);
                Event::Collected(key, load)
            }
            Effect::Probe(key) => {
                let in_path = match self.probe(&key).await {
                    Ok(()) => true,
                    Err(reason) => {
                        tracing::debug!(revision = %key, reason, "not yet backed by activators");
                        false
                    }
                };
                Event::Probed(key, in_path)
            }
        }
    }

    async fn scale(&self, pa: &PodAutoscaler, replicas: u32) -> kube::Result<()> {
        let target = &pa.spec.scale_target_ref;
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &pa.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        api.patch_scale(target.name.as_deref().unwrap_or_default(), &params(), &patch).await?;
        tracing::info!(revision = %key_of(pa), replicas, "scaled");
        Ok(())
    }

    async fn sks(&self, pa: &PodAutoscaler, mode: Mode, activators: u32, exists: bool) -> kube::Result<()> {
        let api: Api<ServerlessService> =
            Api::namespaced(self.client.clone(), &pa.namespace().unwrap_or_default());
        let spec = ServerlessServiceSpec {
            mode: match mode {
                Mode::Serve => SksMode::Serve,
                Mode::Proxy => SksMode::Proxy,
            },
            object_ref: pa.spec.scale_target_ref.clone(),
            protocol_type: pa.spec.protocol_type,
            num_activators: i32::try_from(activators).unwrap_or(i32::MAX),
        };
        let patch = json!({"spec": {"mode": spec.mode, "numActivators": spec.num_activators}});
        let sks = ServerlessService { metadata: child(pa), spec, status: None };
        create_or_patch(&api, &sks, exists, patch).await
    }

    async fn metric(&self, pa: &PodAutoscaler, spec: MetricSpec, exists: bool) -> kube::Result<()> {
        let api: Api<Metric> = Api::namespaced(self.client.clone(), &pa.namespace().unwrap_or_default());
        let patch = json!({"spec": spec});
        create_or_patch(&api, &Metric { metadata: child(pa), spec, status: None }, exists, patch).await
    }

    /// Every address of the public Service must answer as an activator.
    async fn probe(&self, key: &Key) -> Result<(), String> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        // By its name: a list by label has the API server look at every slice of the namespace. There are never activators for a second one.
        let slice = api.get_opt(&public_slice(&key.name, 0)).await.map_err(|error| error.to_string())?;
        let addresses = slice.as_ref().map(public_addresses).unwrap_or_default();
        if addresses.is_empty() {
            return Err(format!("the Service {key} has no endpoints with a port https"));
        }
        for address in addresses {
            tokio::time::timeout(PROBE_TIMEOUT, self.probe_one(key, address))
                .await
                .map_err(|_| format!("{address} did not answer within {PROBE_TIMEOUT:?}"))??;
        }
        Ok(())
    }

    async fn probe_one(&self, key: &Key, address: SocketAddr) -> Result<(), String> {
        let request = Request::get("/healthz")
            .header(header::HOST, format!("{}.{}", key.name, key.namespace))
            .header(header::USER_AGENT, "Knative-Autoscaling-Probe")
            .header(headers::K_NETWORK_PROBE, headers::PROBE_ACTIVATOR)
            .header(headers::KNATIVE_SERVING_NAMESPACE, &*key.namespace)
            .header(headers::KNATIVE_SERVING_REVISION, &*key.name)
            .body(RequestBody::empty())
            .map_err(|error| error.to_string())?;
        let backend = self.pool.backend(&Target::tls(address, Protocol::Http1, self.activator.clone()));
        let mut outgoing = Outgoing::own(request).map_err(|error| error.to_string())?;
        let response = outgoing.send(&backend).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), 1024).collect().await.map_err(|error| error.to_string())?;
        if status == StatusCode::OK && body.to_bytes() == headers::PROBE_ACTIVATOR {
            Ok(())
        } else {
            Err(format!("{address} answered {status}, not as an activator"))
        }
    }
}

fn public_addresses(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let port = slice.ports.iter().flatten().find(|port| port.name.as_deref() == Some("https"));
    let Some(port) = port.and_then(|port| port.port).and_then(|port| u16::try_from(port).ok()) else {
        return Vec::new();
    };
    let ips = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    ips.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, port)).collect()
}

async fn create_or_patch<K>(
    api: &Api<K>,
    object: &K,
    exists: bool,
    patch: serde_json::Value,
) -> kube::Result<()>
where
    K: Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    if !exists {
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match api.create(&params, object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => return other.map(|_| ()),
        }
    }
    api.patch(&object.name_any(), &params(), &Patch::Merge(patch)).await.map(|_| ())
}

/// Metadata of an object that belongs to a PodAutoscaler and has its name.
fn child(pa: &PodAutoscaler) -> ObjectMeta {
    ObjectMeta {
        name: pa.metadata.name.clone(),
        namespace: pa.metadata.namespace.clone(),
        labels: pa.metadata.labels.clone(),
        annotations: pa.metadata.annotations.as_ref().map(|all| {
            let mut all = all.clone();
            all.remove("kubectl.kubernetes.io/last-applied-configuration");
            all
        }),
        owner_references: pa.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// What an effect writes, if it does.
fn write_of(effect: &Effect) -> Option<(Key, Write)> {
    match effect {
        Effect::Scale(pa, _) => Some((key_of(pa), Write::Scale)),
        Effect::Sks { pa, .. } => Some((key_of(pa), Write::Sks)),
        Effect::Metric { pa, .. } => Some((key_of(pa), Write::Metric)),
        Effect::Status(key, _) => Some((key.clone(), Write::Status)),
        Effect::Collect(..) | Effect::Probe(_) => None,
    }
}

fn write_name(write: Write) -> &'static str {
    match write {
        Write::Scale => "scale",
        Write::Sks => "sks",
        Write::Metric => "metric",
        Write::Status => "status",
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

fn written(pa: &PodAutoscaler, write: Write, done: kube::Result<()>) -> Event {
    let key = key_of(pa);
    let ok = outcome(&key, write, done);
    Event::Written(key, write, ok)
}

fn outcome(key: &Key, write: Write, done: kube::Result<()>) -> bool {
    match done {
        Ok(()) => true,
        // It is being deleted; the watch will say so.
        Err(kube::Error::Api(status)) if status.code == 404 => {
            tracing::debug!(revision = %key, ?write, "nothing to write to any more");
            false
        }
        // So does its namespace.
        Err(kube::Error::Api(status)) if going_away(&status) => {
            tracing::debug!(revision = %key, ?write, "the namespace is going away");
            false
        }
        Err(error) => {
            tracing::warn!(revision = %key, ?write, %error, "a write failed, trying again");
            false
        }
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Whether a write was refused since its namespace is being deleted.
fn going_away(status: &kube::core::Status) -> bool {
    status.details.iter().flat_map(|d| &d.causes).any(|cause| cause.reason == "NamespaceTerminating")
}
