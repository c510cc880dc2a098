//! The watches, and what their objects mean to the registry.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebb_api::meta::networking::SERVICE_TYPE;
use ebb_api::meta::serving::REVISION;
use ebb_api::serving::Revision as ApiRevision;
use ebb_component::watch::{Change, follow};
use ebb_http::ports;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::registry::Registry;
use super::report::MeshReporter;
use crate::config::Config;
use crate::dests::Listed;
use crate::revision::{Key, Settings};
use crate::throttle::Slice;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SOURCES: usize = 2;
const DEFAULT_TIMEOUT: u64 = 300;

/// Starts all watches; `synced` is cancelled when all have delivered what exists.
pub(crate) fn spawn(
    tasks: &TaskTracker,
    client: &kube::Client,
    config: &Config,
    registry: &Arc<Registry>,
    reporter: &Arc<MeshReporter>,
    synced: &CancellationToken,
    shutdown: &CancellationToken,
) {
    let waiting = Arc::new(AtomicUsize::new(SOURCES));
    let done = || {
        let (waiting, synced) = (waiting.clone(), synced.clone());
        let mut told = false;
        move || {
            if !std::mem::replace(&mut told, true) && waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
                synced.cancel();
            }
        }
    };

    // Endpoints may be known before their revision; they are put together when it comes.
    let endpoints = Arc::new(parking_lot::Mutex::new(Endpoints::new(config)));

    let mut finished = done();
    let (known, slices) = (registry.clone(), endpoints.clone());
    let api: Api<ApiRevision> = Api::all(client.clone());
    tasks.spawn(follow(api, watcher::Config::default(), shutdown.clone(), move |change| match change {
        Change::Apply(revision) => {
            let key = Key::new(revision.namespace().unwrap_or_default(), revision.name_any());
            known.set(&key, settings(&revision));
            slices.lock().apply(&key, &known);
        }
        Change::Gone { namespace, name } => known.remove(&Key::new(namespace, name)),
        Change::Synced => finished(),
    }));

    let mut finished = done();
    let (known, reporter) = (registry.clone(), reporter.clone());
    let api: Api<EndpointSlice> = Api::all(client.clone());
    tasks.spawn(follow(api, watcher::Config::default(), shutdown.clone(), move |change| {
        let touched = match change {
            Change::Apply(slice) => endpoints.lock().set(&slice),
            Change::Gone { namespace, name } => endpoints.lock().forget(namespace, name),
            Change::Synced => {
                finished();
                None
            }
        };
        match touched {
            Some(Touched::Revision(key)) => endpoints.lock().apply(&key, &known),
            Some(Touched::Autoscaler) => reporter.set(&endpoints.lock().autoscalers()),
            None => {}
        }
    }));
}

fn settings(revision: &ApiRevision) -> Settings {
    let spec = serde_json::to_value(&revision.spec).unwrap_or_default();
    let number = |name: &str| spec.get(name).and_then(serde_json::Value::as_u64);
    let h2c = spec["containers"].as_array().into_iter().flatten().any(|container| {
        container["ports"].as_array().into_iter().flatten().any(|port| port["name"] == "h2c")
    });
    Settings {
        limit: number("containerConcurrency").and_then(|limit| u32::try_from(limit).ok()).unwrap_or(0),
        timeout: Duration::from_secs(
            number("timeoutSeconds").filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_TIMEOUT),
        ),
        h2c,
    }
}

/// What an EndpointSlice belongs to.
enum Touched {
    Revision(Key),
    Autoscaler,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Of {
    Private(Key),
    Public(Key),
    Autoscaler,
}

struct Endpoints {
    system: String,
    own: Option<IpAddr>,
    /// By namespace and name of the slice.
    slices: HashMap<(String, String), (Of, BTreeMap<SocketAddr, Listed>)>,
    by_owner: HashMap<Of, Vec<(String, String)>>,
}

impl Endpoints {
    fn new(config: &Config) -> Self {
        Self {
            system: config.namespace.clone(),
            own: config.own_address(),
            slices: HashMap::new(),
            by_owner: HashMap::new(),
        }
    }

    fn set(&mut self, slice: &EndpointSlice) -> Option<Touched> {
        let id = (slice.namespace().unwrap_or_default(), slice.name_any());
        let of = self.owner(slice)?;
        let addresses = addresses(slice);
        self.forget(id.0.clone(), id.1.clone());
        self.by_owner.entry(of.clone()).or_default().push(id.clone());
        self.slices.insert(id, (of.clone(), addresses));
        Some(touched(of))
    }

    fn forget(&mut self, namespace: String, name: String) -> Option<Touched> {
        let id = (namespace, name);
        let (of, _) = self.slices.remove(&id)?;
        if let Some(ids) = self.by_owner.get_mut(&of) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_owner.remove(&of);
            }
        }
        Some(touched(of))
    }

    fn owner(&self, slice: &EndpointSlice) -> Option<Of> {
        let namespace = slice.namespace().unwrap_or_default();
        let service = slice.labels().get(SERVICE_NAME)?;
        if namespace == self.system && service == "autoscaler" {
            return Some(Of::Autoscaler);
        }
        let named = slice.labels().get(REVISION);
        let public = slice.labels().get(SERVICE_TYPE).is_some_and(|kind| kind == "Public");
        if !public && let Some(private) = service.strip_suffix("-private") {
            // A long name is shortened with a checksum; then only the label tells.
            return Some(Of::Private(Key::new(namespace.as_str(), named.map_or(private, String::as_str))));
        }
        let revision = named?;
        (revision == service).then(|| Of::Public(Key::new(namespace.as_str(), revision.as_str())))
    }

    fn merged(&self, of: &Of) -> BTreeMap<SocketAddr, Listed> {
        let mut all: BTreeMap<SocketAddr, Listed> = BTreeMap::new();
        for id in self.by_owner.get(of).into_iter().flatten() {
            for (address, listed) in self.slices.get(id).map(|(_, addresses)| addresses).into_iter().flatten()
            {
                let entry = all.entry(*address).or_insert(*listed);
                entry.ready |= listed.ready;
                entry.terminating &= listed.terminating;
            }
        }
        all
    }

    fn apply(&self, key: &Key, registry: &Arc<Registry>) {
        let Some(revision) = registry.get(key) else { return };
        revision.listed(&self.merged(&Of::Private(key.clone())));
        let activators: Vec<IpAddr> =
            self.merged(&Of::Public(key.clone())).keys().map(|address| address.ip()).collect();
        let index = self.own.and_then(|own| activators.iter().position(|ip| *ip == own));
        revision.assign(index.map(|index| Slice { index, count: activators.len() }));
        registry.probe(&revision);
    }

    fn autoscalers(&self) -> Vec<SocketAddr> {
        self.merged(&Of::Autoscaler)
            .into_iter()
            .filter(|(_, listed)| listed.ready)
            .map(|(address, _)| address)
            .collect()
    }
}

fn touched(of: Of) -> Touched {
    match of {
        Of::Private(key) | Of::Public(key) => Touched::Revision(key),
        Of::Autoscaler => Touched::Autoscaler,
    }
}

/// The addresses of a slice with the port of mutual TLS: that named `https`, else the usual one.
fn addresses(slice: &EndpointSlice) -> BTreeMap<SocketAddr, Listed> {
    let port = slice
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref() == Some("https"))
        .and_then(|port| port.port)
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(ports::MTLS);
    let mut all = BTreeMap::new();
    for endpoint in &slice.endpoints {
        let conditions = endpoint.conditions.as_ref();
        let listed = Listed {
            // Absent means ready, says the API.
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        };
        for ip in endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()) {
            all.insert(SocketAddr::new(ip, port), listed);
        }
    }
    all
}
