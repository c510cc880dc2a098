//! One revision: what is known, what was decided, what is under way.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ebb_api::autoscaling::{PodAutoscaler, PodAutoscalerStatus};
use ebb_api::conditions::{Conditioned, Status};

use super::explain::{Entry, Explanation};
use super::{COLLECT_EVERY, Effect, Key, LAST_RETRY, Load, Pod, RETRY, Sks, TICK, Write, status};
use crate::core::{Metric, Mode, Observed, Reason, Samples, State, decide};
use crate::settings::{Defaults, Settings, settings};
use crate::window::Series;
use crate::zero::{self, Activity, Path, Scene, Stage};

/// How many decisions are kept for who asks why.
const HISTORY: usize = 16;
/// How long a status that only tells of work in progress is held.
const SETTLE: Duration = Duration::from_millis(100);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Revision {
    pa: Option<Arc<PodAutoscaler>>,
    ours: bool,
    settings: Settings,
    pods: HashMap<String, Pod>,
    sks: Option<Sks>,
    /// The scale target's replicas as last seen or written.
    replicas: Option<u32>,

    series: Series,
    state: State,
    activity: Option<Activity>,
    timed_out: bool,
    initialized: bool,
    desired: Option<u32>,
    excess_burst: Option<i64>,
    panicking: bool,
    reason: Option<Reason>,
    stage: Option<Stage>,
    mode: Mode,
    history: VecDeque<Entry>,

    confirmed: bool,
    proxied_since: Option<Duration>,
    under_way: UnderWay,
    /// The Metric as last seen or written.
    metric: Option<super::Metric>,
    /// For each kind of write, how many failed since the last that did not, and until when it waits therefore.
    failed: [(u32, Duration); 4],
    status_known: Option<PodAutoscalerStatus>,
    /// Since when a status waits to be written until things have settled.
    unsettled: Option<Duration>,

    next_tick: Option<Duration>,
    next_collect: Option<Duration>,
    next_probe: Option<Duration>,
    recheck: Option<Duration>,
    wake: Option<Duration>,
}

/// Effects that were not answered yet.
#[derive(Debug, Default)]
struct UnderWay {
    scale: Option<u32>,
    sks: Option<(Mode, u32)>,
    metric: bool,
    status: bool,
    probe: bool,
    collect: bool,
}

/// What is due now.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) decide: bool,
    pub(super) recheck: bool,
    pub(super) collect: Option<Vec<IpAddr>>,
}

impl Revision {
    pub(super) fn set_pa(&mut self, pa: Arc<PodAutoscaler>, ours: bool, defaults: &Defaults, now: Duration) {
        self.settings = settings(&pa, defaults);
        self.ours = ours;
        let first = self.pa.is_none();
        if !self.under_way.status {
            self.status_known.clone_from(&pa.status);
        }
        self.pa = Some(pa);
        if first {
            self.start(now);
        }
        self.series.resize(self.settings.spec.stable_window);
    }

    /// Starts from what is there, unless something was decided already: with more than one pod in panic.
    pub(super) fn start(&mut self, now: Duration) {
        if self.reason.is_some() {
            return;
        }
        self.series = Series::new(self.settings.spec.stable_window);
        if let Some(known) = self.pa.as_ref().and_then(|pa| pa.status.as_ref()) {
            self.initialized = known.is_true(status::SCALE_TARGET_INITIALIZED);
            self.activity = status::activity_of(known);
        }
        self.state = State::starting(self.ready(), now);
    }

    /// Forgets what was decided; keeps what is, and what is under way.
    pub(super) fn stand_by(&mut self) {
        let before = std::mem::take(self);
        *self = Self {
            pa: before.pa,
            ours: before.ours,
            settings: before.settings,
            pods: before.pods,
            sks: before.sks,
            metric: before.metric,
            replicas: before.replicas,
            proxied_since: before.proxied_since,
            under_way: before.under_way,
            status_known: before.status_known,
            history: before.history,
            ..Self::default()
        };
    }

    pub(super) fn configure(&mut self, defaults: &Defaults, ours: bool) {
        if let Some(pa) = &self.pa {
            self.ours = ours;
            self.settings = settings(pa, defaults);
            self.series.resize(self.settings.spec.stable_window);
        }
    }

    /// Forgets all but what may outlive the PodAutoscaler; answers with the calendar's entry.
    pub(super) fn forget_pa(&mut self) -> Option<Duration> {
        let before = std::mem::take(self);
        *self = Self { pods: before.pods, sks: before.sks, replicas: before.replicas, ..Self::default() };
        before.wake
    }

    /// Nothing of it is there any more.
    pub(super) fn is_forgettable(&self) -> bool {
        self.pa.is_none()
            && self.pods.is_empty()
            && self.sks.is_none()
            && self.metric.is_none()
            && self.replicas.is_none()
    }

    pub(super) fn pa(&self) -> Option<&Arc<PodAutoscaler>> {
        self.pa.as_ref()
    }

    /// Takes a pod's news; answers whether there were any.
    pub(super) fn set_pod(&mut self, name: String, pod: Option<Pod>) -> bool {
        match pod {
            Some(pod) => self.pods.insert(name, pod) != Some(pod),
            None => self.pods.remove(&name).is_some(),
        }
    }

    pub(super) fn set_sks(&mut self, sks: Option<Sks>, now: Duration) {
        match &sks {
            Some(sks) if sks.mode == Mode::Proxy && sks.observed => {
                let since = sks.proxied_since.unwrap_or(now);
                self.proxied_since = Some(self.proxied_since.map_or(since, |before| before.min(since)));
            }
            _ => {
                self.proxied_since = None;
                self.confirmed = false;
            }
        }
        self.sks = sks;
    }

    /// Takes the Metric over, unless it is of before a write that is under way.
    pub(super) fn set_metric(&mut self, metric: Option<super::Metric>) {
        if !self.under_way.metric {
            self.metric = metric;
        }
    }

    pub(super) fn set_replicas(&mut self, replicas: Option<u32>) {
        self.replicas = replicas;
    }

    pub(super) fn reported(&mut self, load: Load, now: Duration) {
        let value = match self.settings.spec.metric {
            Metric::Concurrency => load.concurrency,
            Metric::Rps => load.rps,
        };
        self.series.record(now, value);
        if self.next_tick.is_none() && !self.is_resting() {
            self.next_tick = Some(now + TICK);
        }
    }

    pub(super) fn collected(&mut self, load: Option<Load>, now: Duration) {
        self.under_way.collect = false;
        if let Some(load) = load {
            self.reported(load, now);
        }
    }

    /// Takes a probe's answer; answers whether the way to zero may go on.
    pub(super) fn probed(&mut self, in_path: bool, retry: Duration) -> bool {
        self.under_way.probe = false;
        self.confirmed = in_path && self.is_proxied();
        if !self.confirmed {
            self.next_probe = Some(retry);
            self.retry_at(retry);
        }
        self.confirmed
    }

    /// Whether a write may be made that perhaps has just failed. A scale may: somebody waits for it, and asks no more often than once a second.
    fn may(&self, write: Write, now: Duration) -> bool {
        let (failures, until) = self.failed[write as usize];
        write == Write::Scale || failures == 0 || until <= now
    }

    fn retry_at(&mut self, retry: Duration) {
        self.recheck = Some(self.recheck.map_or(retry, |at| at.min(retry)));
    }

    pub(super) fn written(&mut self, write: Write, ok: bool, now: Duration) {
        match write {
            Write::Scale => {
                let asked = self.under_way.scale.take();
                if ok {
                    self.replicas = asked;
                }
            }
            Write::Sks => {
                let asked = self.under_way.sks.take();
                // The watch may lag behind: what was written is what there is.
                if let (true, Some((mode, num_activators))) = (ok, asked) {
                    let sks = self.sks.get_or_insert_default();
                    if (sks.mode, sks.num_activators) != (mode, num_activators) {
                        sks.observed = false;
                    }
                    (sks.mode, sks.num_activators) = (mode, num_activators);
                }
            }
            Write::Metric => {
                self.under_way.metric = false;
                if !ok {
                    self.metric = None;
                }
            }
            Write::Status => {
                self.under_way.status = false;
                if !ok {
                    self.status_known = self.pa.as_ref().and_then(|pa| pa.status.clone());
                }
            }
        }
        let (failures, until) = &mut self.failed[write as usize];
        if ok {
            *failures = 0;
        } else {
            *until = now + (RETRY * (1 << (*failures).min(8))).min(LAST_RETRY);
            *failures += 1;
            let until = *until;
            self.retry_at(until);
        }
    }

    pub(super) fn desired(&self) -> Option<u32> {
        self.desired
    }

    pub(super) fn reason(&self) -> String {
        self.reason.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// A report of load must be acted upon now: there is no pod that could take it.
    pub(super) fn must_wake(&self) -> bool {
        self.ready() == 0 || matches!(self.desired, None | Some(0))
    }

    /// If it is at zero, the least scale that wakes it.
    pub(super) fn asleep(&self) -> Option<(Arc<PodAutoscaler>, u32)> {
        let pa = self.pa.as_ref().filter(|pa| self.ours && pa.metadata.deletion_timestamp.is_none())?;
        let spec = &self.settings.spec;
        let least = spec.min.max(spec.activation_scale).max(1);
        let most = if spec.max == 0 { u32::MAX } else { spec.max };
        (self.replicas == Some(0)).then(|| (pa.clone(), least.min(most)))
    }

    pub(super) fn is_panicking(&self) -> bool {
        self.panicking
    }

    /// Has pods or wants some.
    pub(super) fn is_awake(&self) -> bool {
        self.pa.is_some() && !(self.pods.is_empty() && matches!(self.desired, None | Some(0)))
    }

    pub(super) fn ready(&self) -> u32 {
        u32::try_from(self.pods.values().filter(|pod| pod.ready).count()).unwrap_or(u32::MAX)
    }

    fn is_proxied(&self) -> bool {
        self.sks.as_ref().is_some_and(|sks| sks.mode == Mode::Proxy && sks.observed)
    }

    /// At zero, and nothing is to be expected but a report.
    fn is_resting(&self) -> bool {
        self.pods.is_empty()
            && self.replicas == Some(0)
            && self.under_way.scale.is_none()
            && self.activity.is_some_and(Activity::is_inactive)
            && matches!(self.desired, None | Some(0))
    }

    pub(super) fn due(&mut self, now: Duration) -> Due {
        self.wake = None;
        let mut due = Due::default();
        if self.next_tick.is_some_and(|at| at <= now) {
            self.next_tick = Some(now + TICK);
            due.decide = true;
        }
        if self.recheck.is_some_and(|at| at <= now) {
            self.recheck = None;
            due.recheck = true;
        }
        if self.next_collect.is_some_and(|at| at <= now) {
            self.next_collect = Some(now + COLLECT_EVERY);
            let mut pods: Vec<_> = self.pods.values().filter(|pod| pod.ready).collect();
            // Older pods are at their usual load; a pod that is new is not.
            pods.sort_by_key(|pod| pod.created);
            let addresses: Vec<IpAddr> = pods.iter().filter_map(|pod| pod.ip).collect();
            if !self.under_way.collect && !addresses.is_empty() {
                self.under_way.collect = true;
                due.collect = Some(addresses);
            }
        }
        due
    }

    /// Works out when this revision must be looked at; answers with the calendar's entry before and now.
    pub(super) fn plan_wake(&mut self) -> (Option<Duration>, Option<Duration>) {
        let before = self.wake;
        self.wake = if self.pa.is_some() && self.ours {
            [self.next_tick, self.next_collect, self.recheck].into_iter().flatten().min()
        } else {
            None
        };
        (before, self.wake)
    }

    /// Decides (if asked to), and asks for everything that is not as it should be.
    pub(super) fn react(&mut self, key: &Key, decide_now: bool, now: Duration, effects: &mut Vec<Effect>) {
        let Some(pa) = self.pa.clone() else { return };
        if pa.metadata.deletion_timestamp.is_some() {
            return;
        }
        if !self.ours {
            return;
        }
        if decide_now {
            self.decide(now);
        }
        let private = self.sks.as_ref().map(|sks| sks.private_service_name.clone()).unwrap_or_default();
        if private.is_empty() && !self.initialized {
            // Neither the pods nor the path to them can be known before the private Service is.
            if self.sks.is_none() {
                self.want_sks(&pa, Mode::Proxy, 2, now, effects);
            }
            self.stand(None, now);
            self.want_status(key, &pa, None, now, effects);
            self.schedule(None, now);
            return;
        }

        let activity = *self.activity.get_or_insert(Activity::Activating(now));
        let (min, max) = self.settings.spec.bounds(self.initialized);
        let bounded = self
            .desired
            .map(|desired| if max == 0 { desired.max(min) } else { desired.max(min).min(max) })
            .or_else(|| (activity.is_activating() && min > 0).then_some(min));
        let path = Path { confirmed: self.confirmed, proxied_since: self.proxied_since };
        let step = zero::step(&self.settings.protocol, bounded, activity, path, now);
        if step.apply
            && let Some(want) = step.want
            && self.under_way.scale.is_none()
            && self.replicas != Some(want)
        {
            self.under_way.scale = Some(want);
            effects.push(Effect::Scale(pa.clone(), want));
        }
        let probe_due = !self.under_way.probe && self.next_probe.is_none_or(|at| at <= now);
        if step.probe && probe_due && self.is_proxied() {
            self.under_way.probe = true;
            self.next_probe = None;
            effects.push(Effect::Probe(key.clone()));
        }
        let excess = self.excess_burst.unwrap_or_else(|| self.settings.spec.initial_burst());
        let mode = if step.want > Some(0) && excess >= 0 { Mode::Serve } else { Mode::Proxy };
        self.want_sks(&pa, mode, self.settings.spec.activators(self.ready()), now, effects);
        self.want_metric(&pa, private, now, effects);
        self.stand(step.want, now);
        let settles = self.want_status(key, &pa, step.want, now, effects);
        self.remember(step.stage, step.want, mode, now);
        // What `stand` has just changed may be the next step already.
        let soon = (self.activity != Some(activity)).then_some(now + Duration::from_millis(50));
        self.schedule([soon.or(step.recheck), settles].into_iter().flatten().min(), now);
    }

    fn decide(&mut self, now: Duration) {
        let spec = &self.settings.spec;
        let known = !self.series.is_empty(spec.stable_window, now);
        // When the activators are always in the path, no report means no load.
        let observed = (known || self.settings.protocol.always_proxied).then(|| Observed {
            stable: self.series.average(spec.stable_window, spec.algorithm, now),
            panic: self.series.average(spec.panic_window, spec.algorithm, now),
        });
        let samples = Samples { ready: self.ready(), observed, initialized: self.initialized };
        let decision = decide(spec, &self.state, &samples, now);
        if let Some(desired) = decision.desired {
            self.desired = Some(desired);
            self.excess_burst = Some(decision.excess_burst);
        }
        self.panicking = decision.panicking;
        self.reason = Some(decision.reason);
        self.state = decision.state;
    }

    /// Works out the condition Active.
    fn stand(&mut self, want: Option<u32>, now: Duration) {
        let before = *self.activity.get_or_insert(Activity::Activating(now));
        let spec = &self.settings.spec;
        let min = if spec.reachable { spec.min } else { 0 };
        let scene = Scene {
            want,
            ready: self.ready(),
            threshold: if self.initialized { min.max(1) } else { min.max(spec.initial) },
            has_service: self.sks.as_ref().is_some_and(|sks| !sks.service_name.is_empty()),
            initialized: self.initialized,
        };
        let standing = zero::activity(before, scene, now);
        self.timed_out = standing.timed_out || (self.timed_out && standing.activity.is_inactive());
        self.activity = Some(standing.activity);
        self.initialized = standing.initialized;
    }

    fn schedule(&mut self, recheck: Option<Duration>, now: Duration) {
        if let Some(at) = recheck {
            self.recheck =
                Some(self.recheck.filter(|before| *before > now).map_or(at, |before| before.min(at)));
        }
        if self.is_resting() {
            self.next_tick = None;
            self.next_collect = None;
            self.recheck = None;
            // What was before the rest says nothing about what wakes it.
            self.series = Series::new(self.settings.spec.stable_window);
            return;
        }
        self.next_tick.get_or_insert(now + TICK);
        if self.ready() > 0 && !self.settings.protocol.always_proxied {
            self.next_collect.get_or_insert(now);
        } else {
            self.next_collect = None;
        }
    }

    fn want_sks(
        &mut self,
        pa: &Arc<PodAutoscaler>,
        mode: Mode,
        num_activators: u32,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        self.mode = mode;
        let there = self.sks.as_ref().map(|sks| (sks.mode, sks.num_activators));
        let busy = self.under_way.sks.is_some() || !self.may(Write::Sks, now);
        if there == Some((mode, num_activators)) || busy {
            return;
        }
        // In Serve mode the number of activators matters to nobody: no write for it alone.
        if mode == Mode::Serve && there.is_some_and(|(before, _)| before == mode) {
            return;
        }
        if mode == Mode::Serve {
            self.confirmed = false;
        }
        self.under_way.sks = Some((mode, num_activators));
        effects.push(Effect::Sks { pa: pa.clone(), mode, num_activators, exists: there.is_some() });
    }

    fn want_metric(
        &mut self,
        pa: &Arc<PodAutoscaler>,
        private: String,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let spec = &self.settings.spec;
        let scrape_target = if self.settings.protocol.always_proxied { String::new() } else { private };
        let wanted = super::Metric {
            stable_window: spec.stable_window,
            panic_window: spec.panic_window,
            scrape_target,
        };
        let busy = self.under_way.metric || !self.may(Write::Metric, now);
        if busy || self.metric.as_ref() == Some(&wanted) {
            return;
        }
        self.under_way.metric = true;
        let exists = self.metric.replace(wanted.clone()).is_some();
        effects.push(Effect::Metric { pa: pa.clone(), wanted, exists });
    }

    fn want_status(
        &mut self,
        key: &Key,
        pa: &PodAutoscaler,
        want: Option<u32>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<Duration> {
        if self.under_way.status || !self.may(Write::Status, now) {
            return None;
        }
        let facts = status::Facts {
            generation: pa.metadata.generation,
            want,
            ready: self.ready(),
            activity: self.activity.unwrap_or(Activity::Activating(now)),
            timed_out: self.timed_out,
            initialized: self.initialized,
            sks: self.sks.as_ref(),
            decision: self.reason(),
        };
        let known = self.status_known.clone().unwrap_or_default();
        let next = status::compute(&known, &facts, now);
        if !status::differs(&known, &next) {
            self.unsettled = None;
            return None;
        }
        // Between zero and ready lie states that are over as soon as they are written: the pod needs the processor more.
        let settled = next.condition("Ready").is_none_or(|ready| ready.status != Status::Unknown);
        let due = *self.unsettled.get_or_insert(now) + SETTLE;
        if self.initialized && !settled && now < due {
            return Some(due);
        }
        self.unsettled = None;
        self.under_way.status = true;
        self.status_known = Some(next.clone());
        effects.push(Effect::Status(key.clone(), Box::new(next)));
        None
    }

    fn remember(&mut self, stage: Stage, want: Option<u32>, mode: Mode, now: Duration) {
        self.stage = Some(stage);
        let last = self.history.back();
        if last.is_none_or(|last| (last.stage, last.want, last.desired) != (stage, want, self.desired)) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(Entry {
                at: now,
                desired: self.desired,
                want,
                ready: self.ready(),
                mode,
                panicking: self.panicking,
                stage,
                reason: self.reason(),
            });
        }
    }

    pub(super) fn explain(&self, key: &Key) -> Explanation {
        Explanation {
            namespace: key.namespace.to_string(),
            revision: key.name.to_string(),
            desired: self.desired,
            replicas: self.replicas,
            ready: self.ready(),
            active: match self.activity {
                Some(Activity::Active(_)) => Status::True,
                Some(Activity::Inactive(_)) => Status::False,
                _ => Status::Unknown,
            },
            stage: self.stage,
            mode: self.mode,
            panicking: self.panicking,
            excess_burst_capacity: self.excess_burst,
            why: self.reason(),
            reason: self.reason.clone(),
            decisions: self.history.iter().rev().cloned().collect(),
        }
    }
}
