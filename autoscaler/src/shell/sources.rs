//! The watches, and what their objects mean to the engine.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebb_api::autoscaling::{Metric, PodAutoscaler};
use ebb_api::conditions::{Conditioned, READY, Status};
use ebb_api::config;
use ebb_api::meta::serving::REVISION;
use ebb_api::networking::{ServerlessService, SksMode};
use ebb_component::watch::{Change, follow};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod as KubePod};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Mailbox, Message};
use crate::core::Mode;
use crate::engine::{self, Event, Key, Pod, Sks, since_epoch};
use crate::settings::Defaults;

/// What the controller adds to a revision's name.
const DEPLOYMENT: &str = "-deployment";
/// The watches that must have delivered before anything is decided.
const SOURCES: usize = 6;

/// Starts all watches.
pub(crate) fn spawn(
    tasks: &TaskTracker,
    client: &kube::Client,
    namespace: &str,
    mailbox: &Mailbox,
    synced: &CancellationToken,
    shutdown: &CancellationToken,
) {
    let waiting = Arc::new(AtomicUsize::new(SOURCES));
    let start = || Source { mailbox: mailbox.clone(), waiting: Some(waiting.clone()), all: synced.clone() };
    let of_revisions = || watcher::Config::default().labels(REVISION);

    let mut source = start();
    let api: Api<PodAutoscaler> = Api::all(client.clone());
    tasks.spawn(follow(api, watcher::Config::default(), shutdown.clone(), move |change| match change {
        Change::Apply(pa) => source.tell(Event::Revision(Arc::new(pa))),
        Change::Gone { namespace, name } => source.tell(Event::RevisionGone(Key::new(namespace, name))),
        Change::Synced => source.synced(),
    }));

    let mut source = start();
    let api: Api<ServerlessService> = Api::all(client.clone());
    tasks.spawn(follow(api, watcher::Config::default(), shutdown.clone(), move |change| match change {
        Change::Apply(sks) => {
            let key = Key::new(sks.namespace().unwrap_or_default(), sks.name_any());
            source.tell(Event::Sks(key, Some(view(&sks))));
        }
        Change::Gone { namespace, name } => source.tell(Event::Sks(Key::new(namespace, name), None)),
        Change::Synced => source.synced(),
    }));

    let mut source = start();
    let api: Api<Metric> = Api::all(client.clone());
    tasks.spawn(follow(api, watcher::Config::default(), shutdown.clone(), move |change| match change {
        Change::Apply(metric) => {
            let key = Key::new(metric.namespace().unwrap_or_default(), metric.name_any());
            let nanos = |n: i64| Duration::from_nanos(u64::try_from(n).unwrap_or(0));
            let seen = engine::Metric {
                stable_window: nanos(metric.spec.stable_window),
                panic_window: nanos(metric.spec.panic_window),
                scrape_target: metric.spec.scrape_target,
            };
            source.tell(Event::Metric(key, Some(seen)));
        }
        Change::Gone { namespace, name } => source.tell(Event::Metric(Key::new(namespace, name), None)),
        Change::Synced => source.synced(),
    }));

    let mut source = start();
    let mut owners: HashMap<(String, String), Key> = HashMap::new();
    let api: Api<KubePod> = Api::all(client.clone());
    tasks.spawn(follow(api, of_revisions(), shutdown.clone(), move |change| match change {
        Change::Apply(pod) => {
            let Some(revision) = pod.labels().get(REVISION) else { return };
            let namespace = pod.namespace().unwrap_or_default();
            let key = Key::new(namespace.as_str(), revision.as_str());
            let name = pod.name_any();
            let ended = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref())
                .is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
            if ended {
                source.tell(Event::PodGone(key, name));
            } else {
                owners.insert((namespace, name.clone()), key.clone());
                source.tell(Event::Pod(key, name, seen(&pod)));
            }
        }
        Change::Gone { namespace, name } => {
            if let Some(key) = owners.remove(&(namespace, name.clone())) {
                source.tell(Event::PodGone(key, name));
            }
        }
        Change::Synced => source.synced(),
    }));

    let mut source = start();
    // Only of revisions with names so long that their Deployments' are shortened: of the others the name tells.
    let mut owners: HashMap<(String, String), Key> = HashMap::new();
    let api: Api<Deployment> = Api::all(client.clone());
    tasks.spawn(follow(api, of_revisions(), shutdown.clone(), move |change| match change {
        Change::Apply(deployment) => {
            let Some(revision) = deployment.labels().get(REVISION) else { return };
            let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
            let key = Key::new(namespace.as_str(), revision.as_str());
            if name.strip_suffix(DEPLOYMENT) != Some(revision) {
                owners.insert((namespace, name), key.clone());
            }
            source.tell(Event::Replicas(key, Some(u32::try_from(replicas).unwrap_or(0))));
        }
        Change::Gone { namespace, name } => {
            let usual = name.strip_suffix(DEPLOYMENT).map(|name| Key::new(namespace.as_str(), name));
            if let Some(key) = owners.remove(&(namespace, name)).or(usual) {
                source.tell(Event::Replicas(key, None));
            }
        }
        Change::Synced => source.synced(),
    }));

    let mut source = start();
    let defaults = Mutex::new(Defaults::default());
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    tasks.spawn(follow(api, watcher::Config::default(), shutdown.clone(), move |change| match change {
        Change::Apply(map) => {
            if configure(&map, &mut defaults.lock()) {
                source.tell(Event::Config(Box::new(defaults.lock().clone())));
            }
        }
        // Without it, what it says by default.
        Change::Gone { name, .. } => {
            let mut empty = ConfigMap::default();
            empty.metadata.name = Some(name);
            if configure(&empty, &mut defaults.lock()) {
                source.tell(Event::Config(Box::new(defaults.lock().clone())));
            }
        }
        Change::Synced => source.synced(),
    }));
}

struct Source {
    mailbox: Mailbox,
    waiting: Option<Arc<AtomicUsize>>,
    all: CancellationToken,
}

impl Source {
    fn tell(&self, event: Event) {
        // The receiver is gone only when everything ends.
        let _ = self.mailbox.send(Message::Event(event));
    }

    /// The first time counts; the last of all sources starts the engine.
    fn synced(&mut self) {
        if let Some(waiting) = self.waiting.take()
            && waiting.fetch_sub(1, Ordering::AcqRel) == 1
        {
            let _ = self.mailbox.send(Message::Synced);
            self.all.cancel();
        }
    }
}

fn seen(pod: &KubePod) -> Pod {
    let status = pod.status.as_ref();
    let ready = status.and_then(|status| status.conditions.as_ref()).is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    Pod {
        ip: status.and_then(|status| status.pod_ip.as_ref()).and_then(|ip| ip.parse().ok()),
        ready: ready && pod.metadata.deletion_timestamp.is_none(),
        created: pod.creation_timestamp().map_or(Duration::ZERO, |time| since_epoch(time.0)),
    }
}

fn view(sks: &ServerlessService) -> Sks {
    let status = sks.status.clone().unwrap_or_default();
    let proxied_since = status
        .condition("ActivatorEndpointsPopulated")
        .filter(|condition| condition.status == Status::True)
        .and_then(|condition| condition.last_transition_time.as_ref())
        .map(|time| since_epoch(time.0));
    let not_ready = match status.condition(READY) {
        Some(condition) if condition.status == Status::True => None,
        Some(condition) => Some(condition.message.clone().unwrap_or_default()),
        None => Some("the ServerlessService was not reconciled yet".to_owned()),
    };
    Sks {
        mode: match sks.spec.mode {
            SksMode::Serve => Mode::Serve,
            SksMode::Proxy => Mode::Proxy,
        },
        num_activators: u32::try_from(sks.spec.num_activators).unwrap_or(0),
        observed: status.observed_generation == sks.metadata.generation,
        not_ready,
        service_name: status.service_name.unwrap_or_default(),
        private_service_name: status.private_service_name.unwrap_or_default(),
        proxied_since,
    }
}

/// Takes a ConfigMap over; whether it matters here. A bad one leaves the last good one in force.
fn configure(map: &ConfigMap, defaults: &mut Defaults) -> bool {
    let empty = config::Data::new();
    let data = map.data.as_ref().unwrap_or(&empty);
    let name = map.name_any();
    let errors = match name.as_str() {
        "config-autoscaler" => match config::Autoscaler::parse(data) {
            Ok(parsed) => {
                defaults.autoscaler = parsed;
                return true;
            }
            Err(errors) => errors,
        },
        "config-deployment" => match config::Deployment::parse(data) {
            Ok(parsed) => {
                defaults.progress_deadline = parsed.progress_deadline;
                return true;
            }
            Err(errors) => errors,
        },
        _ => return false,
    };
    for error in errors {
        tracing::warn!(config_map = %name, %error, "configuration refused, the last good one stays in force");
    }
    false
}
