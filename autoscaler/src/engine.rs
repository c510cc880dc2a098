//! All revisions as one synchronous machine: events and time in, effects out.
//!
//! The engine owns every revision's state and one calendar of when to look at which. It does no IO and never reads a
//! clock, so that the same code runs live, in tests under a virtual clock, and in a replay. What the shell must do
//! comes out as [`Effect`]s; what became of them goes in as [`Event`]s. For each revision at most one write of a kind
//! is under way, and a revision at rest (zero pods, no load) has no entry in the calendar: idle costs nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ebb_api::autoscaling::{PodAutoscaler, PodAutoscalerStatus};
use ebb_http::wire::{PokeResponse, StatBatch};

use crate::core::Mode;
use crate::settings::{Defaults, is_ours};

mod explain;
mod figures;
mod revision;
mod status;

pub use explain::{Entry, Explanation};
use revision::Revision;
pub(crate) use status::since_epoch;

/// The time between two looks at a revision with pods or load.
pub const TICK: Duration = Duration::from_secs(2);
/// The time between two collections from a revision's pods.
pub const COLLECT_EVERY: Duration = Duration::from_secs(1);
/// When to try again what failed; twice as long each time.
const RETRY: Duration = Duration::from_secs(1);
/// No pause is longer.
const LAST_RETRY: Duration = Duration::from_secs(8);

/// A namespace and a name; a revision, its PodAutoscaler, ServerlessService and Metric share them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Key {
    /// A key.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod of a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// Its address, once it has one.
    pub ip: Option<IpAddr>,
    /// Kubernetes says it is ready, and it is not on its way out.
    pub ready: bool,
    /// When it was made.
    pub created: Duration,
}

/// What matters of a ServerlessService.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sks {
    /// Its spec's mode.
    pub mode: Mode,
    /// Its spec's number of activators.
    pub num_activators: u32,
    /// Its status speaks about this spec.
    pub observed: bool,
    /// Why its condition Ready does not hold; none when it does.
    pub not_ready: Option<String>,
    /// The public Service.
    pub service_name: String,
    /// The private Service.
    pub private_service_name: String,
    /// Since when its status says that the activators are in the path.
    pub proxied_since: Option<Duration>,
}

/// What matters of a Metric: all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metric {
    /// The stable window.
    pub stable_window: Duration,
    /// The panic window.
    pub panic_window: Duration,
    /// The private Service; empty where nothing is collected.
    pub scrape_target: String,
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A PodAutoscaler is there or changed.
    Revision(Arc<PodAutoscaler>),
    /// A PodAutoscaler is gone.
    RevisionGone(Key),
    /// A pod of a revision is there or changed.
    Pod(Key, String, Pod),
    /// A pod of a revision is gone.
    PodGone(Key, String),
    /// A ServerlessService is there, changed or (none) gone.
    Sks(Key, Option<Sks>),
    /// A Metric is there, changed or (none) gone.
    Metric(Key, Option<Metric>),
    /// The Deployment of a revision has this many replicas in its spec; none when it is gone.
    Replicas(Key, Option<u32>),
    /// The configuration changed.
    Config(Box<Defaults>),
    /// All is known that exists, and it is on us to decide: start.
    Start,
    /// It is on somebody else to decide: follow what happens, ask for nothing, and forget what was decided.
    StandBy,
    /// What the sampled pods reported, projected on all of them; none when too few answered.
    Collected(Key, Option<Load>),
    /// Whether the probe through the public endpoints met activators only.
    Probed(Key, bool),
    /// A write is done.
    Written(Key, Write, bool),
}

/// A load that was reported.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Requests in flight that no activator reported.
    pub concurrency: f64,
    /// Requests per second that no activator reported.
    pub rps: f64,
}

/// The kinds of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The scale subresource.
    Scale,
    /// The ServerlessService.
    Sks,
    /// The Metric.
    Metric,
    /// The PodAutoscaler's status.
    Status,
}

/// Something is to be done. Its outcome comes back as an [`Event`].
#[derive(Debug, Clone)]
pub enum Effect {
    /// Write the replicas of the revision's scale target. Answered by `Written(.., Scale, ..)`.
    Scale(Arc<PodAutoscaler>, u32),
    /// Create or change the ServerlessService. Answered by `Written(.., Sks, ..)`.
    Sks {
        /// Its owner.
        pa: Arc<PodAutoscaler>,
        /// The mode.
        mode: Mode,
        /// The number of activators.
        num_activators: u32,
        /// Whether it is there already.
        exists: bool,
    },
    /// Create or change the Metric. Answered by `Written(.., Metric, ..)`.
    Metric {
        /// Its owner.
        pa: Arc<PodAutoscaler>,
        /// What it shall say.
        wanted: Metric,
        /// Whether it is there already.
        exists: bool,
    },
    /// Write the status. Answered by `Written(.., Status, ..)`.
    Status(Key, Box<PodAutoscalerStatus>),
    /// Ask some of these pods (the older ones first) for their load. Answered by `Collected`.
    Collect(Key, Vec<IpAddr>),
    /// Probe through the public endpoints. Answered by `Probed`.
    Probe(Key),
}

/// All revisions. See the module's documentation. Times are durations since the Unix epoch.
#[derive(Debug, Default)]
pub struct Engine {
    /// Pods, scales and ServerlessServices may be seen before their PodAutoscaler.
    revisions: HashMap<Key, Revision>,
    /// When to look at which; at most one entry for each.
    calendar: BTreeSet<(Duration, Key)>,
    defaults: Defaults,
    started: bool,
    effects: Vec<Effect>,
}

impl Engine {
    /// An engine that knows nothing and decides nothing until [`Event::Start`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an event in; answers with what is to be done.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        match event {
            Event::Revision(pa) => {
                let key = key_of(&pa);
                let ours = is_ours(&pa, &self.defaults);
                let revision = self.revisions.entry(key.clone()).or_default();
                revision.set_pa(pa, ours, &self.defaults, now);
                self.react(&key, true, now);
            }
            Event::RevisionGone(key) => {
                // What belongs to a PodAutoscaler may outlive it for a moment; what is said of it still must not be kept for ever.
                if let Some(revision) = self.revisions.get_mut(&key) {
                    let wake = revision.forget_pa();
                    if let Some(at) = wake {
                        self.calendar.remove(&(at, key.clone()));
                    }
                    if revision.is_forgettable() {
                        self.revisions.remove(&key);
                    }
                }
            }
            Event::Pod(key, name, pod) => {
                let changed = self.revisions.entry(key.clone()).or_default().set_pod(name, Some(pod));
                if changed {
                    self.react(&key, false, now);
                }
            }
            Event::PodGone(key, name) => {
                if let Some(revision) = self.revisions.get_mut(&key) {
                    revision.set_pod(name, None);
                    self.changed(&key, now);
                }
            }
            Event::Sks(key, sks) => {
                if sks.is_some() || self.revisions.contains_key(&key) {
                    self.revisions.entry(key.clone()).or_default().set_sks(sks, now);
                    self.changed(&key, now);
                }
            }
            Event::Metric(key, metric) => {
                if metric.is_some() || self.revisions.contains_key(&key) {
                    self.revisions.entry(key.clone()).or_default().set_metric(metric);
                    self.changed(&key, now);
                }
            }
            Event::Replicas(key, replicas) => {
                if replicas.is_some() || self.revisions.contains_key(&key) {
                    self.revisions.entry(key.clone()).or_default().set_replicas(replicas);
                    self.changed(&key, now);
                }
            }
            Event::Config(defaults) => {
                self.defaults = *defaults;
                let keys: Vec<Key> = self.revisions.keys().cloned().collect();
                for key in keys {
                    if let Some(revision) = self.revisions.get_mut(&key) {
                        let ours = revision.pa().is_some_and(|pa| is_ours(pa, &self.defaults));
                        revision.configure(&self.defaults, ours);
                    }
                    self.react(&key, true, now);
                }
            }
            Event::StandBy => {
                self.started = false;
                self.calendar.clear();
                self.revisions.values_mut().for_each(Revision::stand_by);
            }
            Event::Start => {
                if !std::mem::replace(&mut self.started, true) {
                    let keys: Vec<Key> = self.revisions.keys().cloned().collect();
                    for key in keys {
                        if let Some(revision) = self.revisions.get_mut(&key) {
                            revision.start(now);
                        }
                        self.react(&key, true, now);
                    }
                }
            }
            Event::Collected(key, load) => {
                if let Some(revision) = self.revisions.get_mut(&key) {
                    revision.collected(load, now);
                    self.plan_wake(&key);
                }
            }
            Event::Probed(key, in_path) => {
                if let Some(revision) = self.revisions.get_mut(&key) {
                    if revision.probed(in_path, now + RETRY) {
                        self.react(&key, false, now);
                    } else {
                        self.plan_wake(&key);
                    }
                }
            }
            Event::Written(key, write, ok) => {
                if let Some(revision) = self.revisions.get_mut(&key) {
                    revision.written(write, ok, now);
                    if ok {
                        self.react(&key, false, now);
                    } else {
                        self.plan_wake(&key);
                    }
                }
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// Takes load reports of an activator in. A revision without ready pods is decided at once; the effects hold its
    /// scale, so that the caller starts the write before it answers.
    pub fn report(&mut self, batch: &StatBatch, now: Duration) -> (PokeResponse, Vec<Effect>) {
        let mut answer = PokeResponse {
            decided_at_us: micros(now),
            desired: None,
            reason: "nothing had to be decided".to_owned(),
        };
        let mut touched = HashSet::new();
        for stat in &batch.stats {
            let key = Key::new(stat.namespace.as_str(), stat.revision.as_str());
            let Some(revision) = self.revisions.get_mut(&key) else { continue };
            revision.reported(
                Load {
                    concurrency: (stat.average_concurrent_requests
                        - stat.average_proxied_concurrent_requests)
                        .max(0.0),
                    rps: (stat.request_count - stat.proxied_request_count).max(0.0),
                },
                now,
            );
            let wakes = stat.average_concurrent_requests > 0.0 && revision.must_wake();
            if wakes && touched.insert(key.clone()) {
                self.react(&key, true, now);
            } else {
                self.plan_wake(&key);
            }
            if let Some(revision) = self.revisions.get(&key)
                && wakes
            {
                answer.desired = revision.desired().map(|desired| i32::try_from(desired).unwrap_or(i32::MAX));
                answer.reason = revision.reason();
            }
        }
        (answer, std::mem::take(&mut self.effects))
    }

    /// Which of the revisions that these reports tell of are at zero, and the least scale that wakes each: what may be done for them
    /// while nobody decides. Works without [`Event::Start`].
    pub fn asleep(&self, batch: &StatBatch) -> Vec<(Arc<PodAutoscaler>, u32)> {
        let loaded = batch.stats.iter().filter(|stat| stat.average_concurrent_requests > 0.0);
        let keys: BTreeSet<Key> =
            loaded.map(|stat| Key::new(stat.namespace.as_str(), stat.revision.as_str())).collect();
        keys.iter().filter_map(|key| self.revisions.get(key)?.asleep()).collect()
    }

    /// When [`Engine::tick`] must be called next, if nothing happens before.
    pub fn next_wake(&self) -> Option<Duration> {
        self.calendar.first().map(|(at, _)| *at)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration) -> Vec<Effect> {
        while let Some((at, key)) = self.calendar.first().cloned() {
            if at > now {
                break;
            }
            self.calendar.remove(&(at, key.clone()));
            let Some(revision) = self.revisions.get_mut(&key) else { continue };
            let due = revision.due(now);
            if let Some(addresses) = due.collect {
                self.effects.push(Effect::Collect(key.clone(), addresses));
            }
            if due.decide || due.recheck {
                self.react(&key, due.decide, now);
            } else {
                self.plan_wake(&key);
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// Why a revision has as many pods as it has.
    pub fn explain(&self, key: &Key) -> Option<Explanation> {
        self.revisions
            .get(key)
            .filter(|revision| revision.pa().is_some())
            .map(|revision| revision.explain(key))
    }

    /// Whether it decides.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// How many revisions are scaled, and how many of them are at rest.
    pub fn counts(&self) -> (usize, usize) {
        let all = self.revisions.values().filter(|revision| revision.pa().is_some()).count();
        (all, all.saturating_sub(self.calendar.len()))
    }

    /// Something that belongs to a revision is there, changed or gone.
    fn changed(&mut self, key: &Key, now: Duration) {
        if self.revisions.get(key).is_some_and(Revision::is_forgettable) {
            self.revisions.remove(key);
        } else {
            self.react(key, false, now);
        }
    }

    fn react(&mut self, key: &Key, decide: bool, now: Duration) {
        if self.started
            && let Some(revision) = self.revisions.get_mut(key)
        {
            revision.react(key, decide, now, &mut self.effects);
        }
        self.plan_wake(key);
    }

    fn plan_wake(&mut self, key: &Key) {
        let Some(revision) = self.revisions.get_mut(key) else { return };
        let (before, after) = revision.plan_wake();
        if before != after
            && let Some(at) = before
        {
            self.calendar.remove(&(at, key.clone()));
        }
        if let Some(at) = after
            && self.started
        {
            self.calendar.insert((at, key.clone()));
        }
    }
}

/// The key of a PodAutoscaler.
pub fn key_of(pa: &PodAutoscaler) -> Key {
    Key::new(
        pa.metadata.namespace.as_deref().unwrap_or_default(),
        pa.metadata.name.as_deref().unwrap_or_default(),
    )
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
