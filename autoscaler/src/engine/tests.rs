//! The life of revisions under a virtual clock, with a platform that does what the effects say.

use std::collections::BTreeMap;

use ebb_api::conditions::{Conditioned, READY};
use ebb_http::wire::Stat;
use serde_json::json;

use super::*;

const START: Duration = Duration::from_secs(1_700_000_000);

/// A platform for one revision that obeys at once; pods are ready as soon as they exist unless `broken`.
struct World {
    engine: Engine,
    now: Duration,
    key: Key,
    replicas: u32,
    broken: bool,
    in_path: bool,
    status: PodAutoscalerStatus,
    mode: Option<Mode>,
    load: f64,
    scales: Vec<(Duration, u32)>,
    probes: usize,
    status_writes: usize,
    collections: usize,
}

fn pa(annotations: serde_json::Value, concurrency: i64) -> Arc<PodAutoscaler> {
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "PodAutoscaler",
            "metadata": {"name": "r", "namespace": "n", "generation": 1, "annotations": annotations},
            "spec": {"containerConcurrency": concurrency, "protocolType": "http1", "reachability": "Reachable",
                     "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "r-deployment"}},
        }))
        .expect("a pod autoscaler"),
    )
}

impl World {
    fn new(annotations: serde_json::Value, concurrency: i64, replicas: u32) -> Self {
        let mut world = Self {
            engine: Engine::new(),
            now: START,
            key: Key::new("n", "r"),
            replicas: 0,
            broken: false,
            in_path: true,
            status: PodAutoscalerStatus::default(),
            mode: None,
            load: 0.0,
            scales: Vec::new(),
            probes: 0,
            status_writes: 0,
            collections: 0,
        };
        world.event(Event::Replicas(world.key.clone(), Some(replicas)));
        world.scale_to(replicas);
        world.event(Event::Revision(pa(annotations, concurrency)));
        world.event(Event::Start);
        world
    }

    fn event(&mut self, event: Event) {
        let effects = self.engine.handle(event, self.now);
        self.obey(effects);
    }

    fn obey(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Scale(_, replicas) => {
                    self.scales.push((self.now, replicas));
                    self.event(Event::Written(self.key.clone(), Write::Scale, true));
                    self.scale_to(replicas);
                }
                Effect::Sks { mode, num_activators, .. } => {
                    self.mode = Some(mode);
                    self.event(Event::Written(self.key.clone(), Write::Sks, true));
                    let sks = Sks {
                        mode,
                        num_activators,
                        observed: true,
                        not_ready: None,
                        service_name: "r".to_owned(),
                        private_service_name: "r-private".to_owned(),
                        proxied_since: None,
                    };
                    self.event(Event::Sks(self.key.clone(), Some(sks)));
                }
                Effect::Metric { .. } => self.event(Event::Written(self.key.clone(), Write::Metric, true)),
                Effect::Status(_, status) => {
                    self.status_writes += 1;
                    self.status = *status;
                    self.event(Event::Written(self.key.clone(), Write::Status, true));
                }
                Effect::Collect(_, pods) => {
                    self.collections += 1;
                    assert!(!pods.is_empty());
                    let load = Load { concurrency: self.load, rps: self.load };
                    self.event(Event::Collected(self.key.clone(), Some(load)));
                }
                Effect::Probe(_) => {
                    self.probes += 1;
                    self.event(Event::Probed(self.key.clone(), self.in_path));
                }
            }
        }
    }

    fn scale_to(&mut self, replicas: u32) {
        let ready = !self.broken;
        for n in self.replicas..replicas {
            let pod = Pod { ip: Some(IpAddr::from([10, 0, 0, n as u8])), ready, created: self.now };
            self.event(Event::Pod(self.key.clone(), format!("pod-{n}"), pod));
        }
        for n in replicas..self.replicas {
            self.event(Event::PodGone(self.key.clone(), format!("pod-{n}")));
        }
        self.replicas = replicas;
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while let Some(at) = self.engine.next_wake().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let effects = self.engine.tick(self.now);
            self.obey(effects);
        }
        self.now = end;
    }

    fn poke(&mut self, concurrency: f64) -> PokeResponse {
        let batch = StatBatch {
            stats: vec![Stat {
                namespace: "n".to_owned(),
                revision: "r".to_owned(),
                average_concurrent_requests: concurrency,
                request_count: concurrency,
                ..Stat::default()
            }],
        };
        let (answer, effects) = self.engine.report(&batch, self.now);
        assert!(
            self.replicas > 0 || effects.iter().any(|effect| matches!(effect, Effect::Scale(_, n) if *n > 0)),
            "the write is among the effects of the report itself: {effects:?}"
        );
        self.obey(effects);
        answer
    }

    fn condition(&self, type_: &str) -> (ebb_api::conditions::Status, String) {
        let condition = self.status.condition(type_).expect("the condition");
        (condition.status, condition.reason.clone().unwrap_or_default())
    }
}

use ebb_api::conditions::Status::{False, True, Unknown};

#[test]
fn up_then_idle_then_zero_then_woken() {
    let mut world = World::new(json!({}), 0, 1);
    assert_eq!(world.condition(READY).0, True);
    assert_eq!((world.status.desired_scale, world.status.actual_scale), (Some(-1), Some(1)));
    assert_eq!(world.status.service_name, "r");
    assert_eq!(world.status.metrics_service_name, "r-private");

    // Idle: nothing for a stable window, then Inactive; the activators were in the path all the time, so no grace.
    world.run(58);
    assert_eq!(world.scales, []);
    assert_eq!(world.condition("Active").0, True);
    world.run(10);
    assert_eq!(world.replicas, 0, "{:?}", world.engine.explain(&world.key));
    assert!(world.probes > 0);
    assert_eq!(world.condition("Active"), (False, "NoTraffic".to_owned()));
    assert_eq!(world.condition("ScaleTargetInitialized").0, True);
    assert_eq!((world.status.desired_scale, world.status.actual_scale), (Some(0), Some(0)));

    // At rest nothing is scheduled.
    assert_eq!(world.engine.next_wake(), None);
    assert_eq!(world.engine.counts(), (1, 1));
    world.run(10_000);

    let answer = world.poke(1.0);
    assert_eq!(answer.desired, Some(1));
    assert!(answer.reason.contains("concurrency 1.00"), "{}", answer.reason);
    assert_eq!(world.replicas, 1);
    assert_eq!(world.condition("Active").0, True);
    assert_eq!(world.status.desired_scale, Some(1));
}

#[test]
fn a_serverless_service_that_is_not_ready_is_told_in_its_words() {
    let mut world = World::new(json!({}), 0, 1);
    assert_eq!(world.condition("SKSReady").0, True);
    let sks = Sks {
        // As it is wanted, so that nothing is written.
        num_activators: 4,
        observed: true,
        private_service_name: "r-private".to_owned(),
        not_ready: Some("Resource r of type Service is not owned by SKS".to_owned()),
        ..Sks::default()
    };
    world.event(Event::Sks(world.key.clone(), Some(sks)));
    world.run(1);
    assert_eq!(world.condition("SKSReady"), (Unknown, "NotReady".to_owned()));
    let told = world.status.condition("SKSReady").and_then(|condition| condition.message.clone());
    assert_eq!(told.as_deref(), Some("Resource r of type Service is not owned by SKS"));
}

#[test]
fn a_storm_on_a_cold_revision_is_scaled_for_at_once() {
    let mut world = World::new(json!({}), 10, 1);
    world.run(100);
    assert_eq!(world.replicas, 0);
    world.broken = true;
    let first = world.poke(1.0);
    assert_eq!(first.desired, Some(1));
    assert_eq!(world.condition("Active").0, False, "that it is being woken is written when that lasts");
    for more in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 36.0] {
        world.poke(more);
    }
    assert_eq!(world.replicas, 15, "100 requests at 7 a pod, within the same second");
    world.run(1);
    assert_eq!(world.condition("Active"), (Unknown, "Queued".to_owned()));
}

#[test]
fn load_scales_up_and_switches_to_serve() {
    let mut world = World::new(json!({"autoscaling.knative.dev/target-burst-capacity": "50"}), 10, 1);
    world.load = 63.0;
    world.run(10);
    assert_eq!(world.replicas, 9);
    assert_eq!(world.mode, Some(Mode::Proxy), "90 - 63 is less than 50 to spare");
    world.load = 35.0;
    world.run(20);
    assert_eq!(world.replicas, 9, "panic does not shrink");
    assert_eq!(world.mode, Some(Mode::Serve));
}

#[test]
fn min_scale_is_kept_and_never_probed() {
    let mut world = World::new(json!({"autoscaling.knative.dev/min-scale": "2"}), 0, 1);
    assert_eq!(world.replicas, 2);
    world.run(600);
    assert_eq!(world.replicas, 2);
    assert_eq!(world.condition("Active").0, True);
    assert_eq!(world.probes, 0);
}

#[test]
fn not_to_zero_before_the_activator_is_in_the_path() {
    let mut world = World::new(json!({}), 0, 1);
    world.in_path = false;
    world.run(300);
    assert_eq!(world.replicas, 1);
    assert_eq!(world.condition("Active"), (False, "NoTraffic".to_owned()), "Inactive, but the pod stays");
    assert!(world.probes > 100);
    world.in_path = true;
    world.run(3);
    assert_eq!(world.replicas, 0);
}

#[test]
fn grace_after_serving_directly() {
    let mut world = World::new(json!({"autoscaling.knative.dev/target-burst-capacity": "0"}), 0, 1);
    world.load = 1.0;
    world.run(20);
    assert_eq!(world.mode, Some(Mode::Serve));
    world.load = 0.0;
    // The stable window holds the load for 60 s, then Inactive and Proxy, then 30 s of grace.
    world.run(60);
    let left = world.now;
    world.run(27);
    assert_eq!((world.replicas, world.mode), (1, Some(Mode::Proxy)));
    world.run(10);
    assert_eq!(world.replicas, 0);
    let (at, replicas) = world.scales[world.scales.len() - 1];
    assert_eq!(replicas, 0);
    assert!(at >= left + Duration::from_secs(28), "{:?}", at - left);
}

#[test]
fn a_request_on_the_way_to_zero_keeps_the_pods() {
    let mut world = World::new(json!({"autoscaling.knative.dev/target-burst-capacity": "0"}), 0, 1);
    world.load = 1.0;
    world.run(20);
    world.load = 0.0;
    world.run(70);
    assert_eq!(world.condition("Active").0, False);
    world.load = 1.0;
    world.run(5);
    assert_eq!(world.condition("Active").0, True);
    assert_eq!(world.replicas, 1);
    assert!(world.scales.iter().all(|(_, replicas)| *replicas > 0));
}

#[test]
fn a_failed_activation_gives_up_and_says_so() {
    let mut world = World::new(json!({}), 0, 0);
    world.broken = true;
    world.scale_to(1);
    world.event(Event::Replicas(world.key.clone(), Some(1)));
    world.run(600);
    assert_eq!(world.condition("Active"), (Unknown, "Queued".to_owned()));
    world.run(40);
    assert_eq!(world.replicas, 0);
    assert_eq!(world.condition("Active"), (False, "TimedOut".to_owned()));
}

#[test]
fn a_restart_changes_nothing_until_it_knows() {
    let mut world = World::new(json!({}), 10, 8);
    world.load = 50.0;
    world.run(30);
    assert_eq!(world.replicas, 8, "starts in panic with the pods there are: {:?}", world.scales);
    let mut world = World::new(json!({}), 10, 1);
    world.run(100);
    assert_eq!(world.replicas, 0);
    // A new autoscaler that finds it at zero.
    let stored = world.status.clone();
    let mut again = World::new(json!({}), 10, 0);
    again.engine = Engine::new();
    let mut stored_pa = (*pa(json!({}), 10)).clone();
    stored_pa.status = Some(stored);
    again.event(Event::Revision(Arc::new(stored_pa)));
    again.event(Event::Replicas(again.key.clone(), Some(0)));
    again.event(Event::Start);
    again.scales.clear();
    again.run(100);
    assert_eq!(again.scales, []);
    again.poke(3.0);
    assert_eq!(again.replicas, 1);
}

#[test]
fn failed_writes_are_repeated() {
    let mut world = World::new(json!({}), 0, 1);
    world.run(100);
    assert_eq!(world.replicas, 0);
    let batch = StatBatch {
        stats: vec![Stat {
            namespace: "n".to_owned(),
            revision: "r".to_owned(),
            average_concurrent_requests: 1.0,
            ..Stat::default()
        }],
    };
    let (_, effects) = world.engine.report(&batch, world.now);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Scale(_, 1))));
    world.event(Event::Written(world.key.clone(), Write::Scale, false));
    assert_eq!(world.replicas, 0);
    world.run(2);
    assert_eq!(world.replicas, 1);
}

#[test]
fn nothing_before_all_is_known() {
    let mut engine = Engine::new();
    assert!(engine.handle(Event::Revision(pa(json!({}), 0)), START).is_empty());
    assert_eq!(engine.next_wake(), None);
    let effects = engine.handle(Event::Start, START);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Sks { exists: false, .. })));
}

#[test]
fn who_stands_by_asks_for_nothing_and_starts_from_what_is_there() {
    let mut world = World::new(json!({}), 10, 1);
    world.load = 50.0;
    world.run(30);
    let pods = world.replicas;
    assert!(pods > 1);
    world.event(Event::StandBy);
    assert!(!world.engine.is_started());
    let (scales, writes, collections) = (world.scales.len(), world.status_writes, world.collections);
    world.run(120);
    assert_eq!(world.engine.next_wake(), None);
    // Another replica scales; this one follows.
    world.scale_to(3);
    let report = StatBatch::default();
    assert!(world.engine.report(&report, world.now).1.is_empty());
    assert_eq!((world.scales.len(), world.status_writes, world.collections), (scales, writes, collections));
    // With several pods it starts in panic, as any autoscaler does that finds them: not below what is there.
    world.load = 1.0;
    world.event(Event::Start);
    world.run(30);
    assert!(world.collections > collections);
    assert_eq!(world.replicas, 3, "{:?}", world.scales);
}

#[test]
fn figures_are_told_of_those_that_are_awake() {
    let mut world = World::new(json!({}), 10, 2);
    world.load = 10.0;
    world.run(3);
    let text = world.engine.figures();
    for line in [
        "ebb_autoscaler_revisions 1",
        "ebb_autoscaler_revisions_not_shown 0",
        "ebb_autoscaler_actual_pods{namespace=\"n\",revision=\"r\"} 2",
        "ebb_autoscaler_panicking{namespace=\"n\",revision=\"r\"} 1",
    ] {
        assert!(text.lines().any(|told| told == line), "{line} in {text}");
    }
    let mut idle = World::new(json!({}), 10, 1);
    idle.run(100);
    assert!(!idle.engine.figures().contains("namespace"), "{}", idle.engine.figures());
}

#[test]
fn other_classes_are_left_alone() {
    let mut engine = Engine::new();
    engine.handle(Event::Start, START);
    for class in ["keda.example.com", "hpa.autoscaling.knative.dev"] {
        let other = pa(json!({"autoscaling.knative.dev/class": class}), 0);
        assert!(engine.handle(Event::Revision(other), START).is_empty());
    }
    assert_eq!(engine.next_wake(), None);
}

#[test]
fn what_is_at_zero_is_known_while_nobody_decides() {
    let report = |revision: &str, load: f64| Stat {
        namespace: "n".to_owned(),
        revision: revision.to_owned(),
        average_concurrent_requests: load,
        ..Stat::default()
    };
    let asleep = |engine: &Engine, stats: &[Stat]| -> Vec<u32> {
        let found = engine.asleep(&StatBatch { stats: stats.to_vec() });
        found.into_iter().map(|(_, least)| least).collect()
    };
    let key = Key::new("n", "r");
    for (annotations, least) in [
        (json!({}), 1),
        (json!({"autoscaling.knative.dev/activation-scale": "3"}), 3),
        (json!({"autoscaling.knative.dev/min-scale": "4", "autoscaling.knative.dev/max-scale": "4"}), 4),
    ] {
        let mut engine = Engine::new();
        engine.handle(Event::Revision(pa(annotations, 0)), START);
        assert!(asleep(&engine, &[report("r", 1.0)]).is_empty(), "its scale is not known yet");
        engine.handle(Event::Replicas(key.clone(), Some(0)), START);
        let storm = [report("r", 1.0), report("r", 9.0), report("unknown", 1.0)];
        assert_eq!(asleep(&engine, &storm), [least], "once");
        assert!(asleep(&engine, &[report("r", 0.0)]).is_empty(), "nobody waits");
        engine.handle(Event::Replicas(key.clone(), Some(1)), START);
        assert!(asleep(&engine, &storm).is_empty(), "it is awake");
    }
}

#[test]
fn a_deleted_revision_leaves_nothing() {
    let mut world = World::new(json!({}), 0, 2);
    world.event(Event::RevisionGone(world.key.clone()));
    assert_eq!(world.engine.next_wake(), None);
    assert!(world.engine.explain(&world.key).is_none());
    world.scale_to(0);
    // What belongs to it goes after it, in any order and not without a last word.
    world.event(Event::Replicas(world.key.clone(), Some(0)));
    world.event(Event::Sks(world.key.clone(), Some(Sks::default())));
    world.event(Event::Sks(world.key.clone(), None));
    world.event(Event::Metric(world.key.clone(), Some(Metric::default())));
    world.event(Event::Replicas(world.key.clone(), None));
    world.event(Event::Metric(world.key.clone(), None));
    assert!(world.engine.revisions.is_empty());
    // Nor does what is said of it later bring it back.
    world.event(Event::Sks(world.key.clone(), None));
    world.event(Event::Replicas(world.key.clone(), None));
    assert!(world.engine.revisions.is_empty());
}

#[test]
fn many_revisions_at_zero_cost_nothing() {
    let mut engine = Engine::new();
    for n in 0..10_000 {
        let mut pa = (*pa(json!({}), 0)).clone();
        pa.metadata.name = Some(format!("r{n}"));
        pa.status = Some(
            serde_json::from_value(json!({"conditions": [
                {"type": "Active", "status": "False", "lastTransitionTime": "2023-01-01T00:00:00Z"},
                {"type": "ScaleTargetInitialized", "status": "True"}],
                "desiredScale": 0, "actualScale": 0, "serviceName": "s", "metricsServiceName": "p"}))
            .expect("a status"),
        );
        let key = key_of(&pa);
        engine.handle(Event::Revision(Arc::new(pa)), START);
        engine.handle(Event::Replicas(key.clone(), Some(0)), START);
        let sks = Sks {
            num_activators: 3,
            observed: true,
            service_name: "s".to_owned(),
            private_service_name: "p".to_owned(),
            ..Sks::default()
        };
        engine.handle(Event::Sks(key.clone(), Some(sks)), START);
        let metric = Metric {
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            scrape_target: "p".to_owned(),
        };
        engine.handle(Event::Metric(key, Some(metric)), START);
    }
    let effects = engine.handle(Event::Start, START);
    let anew = effects.iter().find(|effect| !matches!(effect, Effect::Status(..)));
    assert!(anew.is_none(), "what is there is not written again by whoever leads next: {anew:?}");
    assert_eq!(engine.next_wake(), None);
    assert_eq!(engine.counts(), (10_000, 10_000));
}

#[test]
fn the_same_status_is_not_written_twice() {
    let mut world = World::new(json!({"autoscaling.knative.dev/min-scale": "1"}), 0, 1);
    world.load = 1.0;
    world.run(30);
    let writes = world.status_writes;
    world.run(300);
    assert_eq!(world.status_writes, writes, "the decision in the annotation alone is not worth a write");
    assert!(world.collections > 300);
}

#[test]
fn explanations_tell_the_history() {
    let mut world = World::new(json!({}), 0, 1);
    world.run(100);
    world.poke(5.0);
    let told = world.engine.explain(&world.key).expect("known");
    assert_eq!(told.desired, Some(1));
    assert!(told.decisions.len() >= 3);
    let json = serde_json::to_value(&told).expect("json");
    assert!(json["decisions"][0]["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{json}");
    let _: BTreeMap<String, serde_json::Value> = serde_json::from_value(json).expect("an object");
}

#[test]
fn what_fails_is_tried_less_and_less() {
    let mut engine = Engine::new();
    let (key, mut now) = (Key::new("n", "r"), START);
    engine.handle(Event::Revision(pa(json!({}), 0)), now);
    let mut effects = engine.handle(Event::Start, now);
    let mut tried = Vec::new();
    while tried.len() < 8 {
        for effect in std::mem::take(&mut effects) {
            let write = match effect {
                Effect::Sks { .. } => {
                    tried.push(now);
                    Write::Sks
                }
                Effect::Status(..) => Write::Status,
                other => panic!("{other:?}"),
            };
            // That other writes work does not make this one more frequent.
            effects.extend(engine.handle(Event::Written(key.clone(), write, write == Write::Status), now));
        }
        if effects.is_empty() {
            now = engine.next_wake().expect("it is tried again").max(now);
            effects = engine.tick(now);
        }
    }
    let pauses: Vec<u64> = tried.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    // A look at the revision every two seconds tries again what is missing, were it not for the pauses.
    assert_eq!(pauses, [1, 2, 4, 8, 8, 8, 8]);
}

#[test]
fn a_metric_that_somebody_took_away_is_made_again() {
    let mut world = World::new(json!({}), 0, 1);
    let effects = world.engine.handle(Event::Metric(world.key.clone(), None), world.now);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Metric { exists: false, .. })),
        "{effects:?}"
    );
}

#[test]
fn a_setting_reaches_a_revision_that_runs() {
    let mut world = World::new(json!({}), 0, 1);
    world.run(10);
    assert_eq!(world.replicas, 1, "the stable window is a minute");
    let mut defaults = Defaults::default();
    defaults.autoscaler.stable_window = Duration::from_secs(6);
    defaults.autoscaler.scale_to_zero_grace_period = Duration::from_secs(1);
    let effects = world.engine.handle(Event::Config(Box::new(defaults)), world.now);
    let told = effects.iter().any(|effect| {
        matches!(effect, Effect::Metric { wanted, .. } if wanted.stable_window == Duration::from_secs(6))
    });
    assert!(told, "{effects:?}");
    world.obey(effects);
    world.run(15);
    assert_eq!(world.replicas, 0);
}
