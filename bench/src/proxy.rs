//! The data path beside peers in one run: gateway and sidecar of ebb, and a peer in the same two places of the same pod, before the same app.
//!
//! In each round every side has its turn, as fast as it goes (requests per second, processor time for a request, and how much of that the kernel took),
//! then by a timetable (latencies, corrected for coordinated omission): at half the pace of the slowest, and of one lane at a pace that leaves the
//! machine mostly idle, so that what a hop adds is the hop's and not a queue's. Medians over the rounds are reported, and ratios.

pub(crate) mod load;
mod peer;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::ListParams;
use serde_json::{Map, Value, json};
use testkit::http;

use crate::platform::{Platform, Target};
use crate::usage::{self, cpu_parts_ms, rss_kib};
use load::Ask;
pub(crate) use peer::Peer;
use peer::{Pair, Place};

/// How long each turn is.
const TURN: Duration = Duration::from_secs(4);
/// Requests a second of one lane by the timetable.
const CALM: f64 = 400.0;
const APP_PORT: u16 = 8080;
/// Connections that do nothing, in the benchmark of these.
const IDLE: usize = 8_000;

/// One way to the app.
struct Side {
    name: String,
    http1: SocketAddr,
    /// For HTTP/2 by prior knowledge; none where that is not spoken.
    http2: Option<SocketAddr>,
    host: String,
    /// Processes by their place.
    processes: Vec<(&'static str, Vec<u32>)>,
}

/// What a side showed in a setting, one entry a round.
#[derive(Default)]
struct Shown {
    figures: BTreeMap<String, Vec<f64>>,
}

impl Shown {
    fn add(&mut self, name: impl Into<String>, value: f64) {
        self.figures.entry(name.into()).or_default().push(value);
    }

    fn median(&self, name: &str) -> Option<f64> {
        let mut all = self.figures.get(name)?.clone();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

struct Scene {
    platform: Platform,
    place: Place,
    gateway: Side,
    direct: Side,
    runtime: tokio::runtime::Runtime,
}

/// A platform with one warm pod. Its own port is open (permissive), so that peers and the bare way reach the same app; ebb's hop is mutual TLS all
/// the same.
fn scene(target: &Target) -> Result<Scene> {
    ensure!(target.kubeconfig.is_none(), "this benchmark reads the processes of an `ebb up` of its own");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let platform = runtime.block_on(Platform::start(target))?;
    let annotations = json!({
        "autoscaling.knative.dev/min-scale": "1", "autoscaling.knative.dev/max-scale": "1",
        // Else the activator is on the way, ready for a burst.
        "autoscaling.knative.dev/target-burst-capacity": "0",
        "mesh.ebb.dev/mtls": "permissive",
    });
    runtime.block_on(platform.create_with("proxied", annotations))?;
    let answer = http::get(platform.gateway, &platform.host("proxied"), "/")?;
    ensure!(answer.status == 200, "{answer:?}");
    let pods = runtime.block_on(async { platform.pods().list(&ListParams::default()).await })?;
    let pod = pods.items.first().context("the Service has no pod")?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let address = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).context("its pod has no address")?;
    let mut sidecars = usage::processes("queue-proxy")?;
    sidecars.retain(|pid| usage::has_environment(*pid, &format!("SERVING_POD={name}")));
    let sidecar = *sidecars.first().context("no queue-proxy of the pod runs")?;
    let place = Place { sidecar, address: address.parse()?, app_port: APP_PORT };
    let app = SocketAddr::new(place.address, APP_PORT);
    let ebb = platform.process().context("not started here")?.pid();
    let gateway = Side {
        name: "ebb".into(),
        http1: platform.gateway,
        http2: Some(platform.gateway),
        host: platform.host("proxied"),
        processes: vec![("edge", vec![ebb]), ("pod", vec![sidecar])],
    };
    let direct =
        Side { name: "direct".into(), http1: app, http2: None, host: app.to_string(), processes: Vec::new() };
    Ok(Scene { platform, place, gateway, direct, runtime })
}

pub(crate) fn run(rounds: usize, peers: &[Peer], target: &Target) -> Result<Value> {
    let Scene { platform, place, gateway, direct, runtime } = scene(target)?;
    let folder = platform.process().context("not started here")?.data_dir().join("peers");
    let pairs: Vec<Pair> =
        peers.iter().map(|peer| Pair::start(*peer, &place, &folder)).collect::<Result<_>>()?;
    let mut sides = vec![direct, gateway];
    sides.extend(pairs.iter().map(|pair| Side {
        name: pair.peer.binary().into(),
        http1: pair.http1,
        http2: Some(pair.http2),
        host: "pod.bench".into(),
        processes: vec![("edge", pair.edge.pids.clone()), ("pod", pair.pod.pids.clone())],
    }));
    let mut figures = Map::new();
    for (h2, protocol) in [(false, "http1"), (true, "h2")] {
        for lanes in [1, 64] {
            let mut shown: Vec<Shown> = sides.iter().map(|_| Shown::default()).collect();
            for _ in 0..rounds {
                runtime.block_on(round(&sides, h2, lanes, &mut shown))?;
            }
            for (side, shown) in sides.iter().zip(&shown).filter(|(side, _)| !h2 || side.http2.is_some()) {
                let medians: Map<String, Value> =
                    shown.figures.keys().filter_map(|k| Some((k.clone(), json!(shown.median(k)?)))).collect();
                figures.insert(format!("{protocol}_{lanes}_{}", side.name), medians.into());
            }
            // Each side but the direct one has two hops on the way.
            for (side, shown_by) in sides.iter().zip(&shown).skip(1) {
                let added = |name: &str| {
                    let added = (shown_by.median(name)? - shown[0].median(name)?) / 2.0;
                    (!h2).then(|| json!((added * 10.0).round() / 10.0))
                };
                if let (Some(p50), Some(p99)) = (added("p50_us"), added("p99_us")) {
                    let name = format!("{protocol}_{lanes}_added_by_a_hop_{}", side.name);
                    figures.insert(name, json!({"p50_us": p50, "p99_us": p99}));
                }
            }
            for (peer, theirs) in sides.iter().zip(&shown).skip(2) {
                let ratio = |name: &str| {
                    let ratio = shown[1].median(name)? / theirs.median(name)?;
                    ratio.is_finite().then(|| json!((ratio * 100.0).round() / 100.0))
                };
                let names = [
                    "per_second",
                    "edge_cpu_us",
                    "pod_cpu_us",
                    "pod_kernel_us",
                    "p50_us",
                    "p99_us",
                    "p99.9_us",
                ];
                let ratios: Map<String, Value> =
                    names.iter().filter_map(|name| Some(((*name).to_owned(), ratio(name)?))).collect();
                figures.insert(format!("{protocol}_{lanes}_ebb_to_{}", peer.name), ratios.into());
            }
        }
    }
    drop(pairs);
    runtime.block_on(platform.stop())?;
    let mut all = json!({"bench": "proxy", "rounds": rounds, "turn_s": TURN.as_secs()});
    all.as_object_mut().context("an object")?.extend(figures);
    Ok(all)
}

/// Every side once, at full pace and by the timetable.
async fn round(sides: &[Side], h2: bool, lanes: usize, shown: &mut [Shown]) -> Result<()> {
    let ask = |side: &Side| {
        let address = if h2 { side.http2? } else { side.http1 };
        Some(Ask { address, host: side.host.clone(), h2, lanes })
    };
    let mut slowest = f64::MAX;
    for (side, shown) in sides.iter().zip(&mut *shown) {
        let Some(ask) = ask(side) else { continue };
        let before = cpu(side)?;
        let outcome = load::run(&ask, TURN, None).await.with_context(|| side.name.clone())?;
        for ((place, after), (_, before)) in cpu(side)?.into_iter().zip(before) {
            let us = |ms: u64| (ms as f64 * 1e4 / outcome.answers as f64).round() / 10.0;
            let (user, kernel) = (after.0 - before.0, after.1 - before.1);
            shown.add(format!("{place}_cpu_us"), us(user + kernel));
            shown.add(format!("{place}_kernel_us"), us(kernel));
        }
        shown.add("per_second", outcome.per_second.round());
        shown.add("failed", outcome.failed as f64);
        slowest = slowest.min(outcome.per_second);
    }
    for (side, shown) in sides.iter().zip(&mut *shown) {
        let Some(ask) = ask(side) else { continue };
        let pace = if lanes == 1 { CALM.min(slowest / 2.0) } else { slowest / 2.0 };
        let outcome = load::run(&ask, TURN, Some(pace)).await.with_context(|| side.name.clone())?;
        for (name, value) in outcome.latency().as_object().into_iter().flatten() {
            shown.add(format!("{name}_us"), value.as_f64().unwrap_or(0.0));
        }
        shown.add("failed", outcome.failed as f64);
        for (place, pids) in &side.processes {
            let rss: u64 = pids.iter().map(|pid| rss_kib(*pid)).sum::<Result<u64>>()?;
            shown.add(format!("{place}_rss_kib"), rss as f64);
        }
    }
    Ok(())
}

/// Processor time of each place so far, in milliseconds: its own, and the kernel's on its behalf.
fn cpu(side: &Side) -> Result<Vec<(&'static str, (u64, u64))>> {
    let of = |pids: &[u32]| {
        pids.iter().try_fold((0, 0), |sum: (u64, u64), pid| {
            let (user, kernel) = cpu_parts_ms(*pid)?;
            anyhow::Ok((sum.0 + user, sum.1 + kernel))
        })
    };
    side.processes.iter().map(|(place, pids)| Ok((*place, of(pids)?))).collect()
}

/// Full load for so many minutes: memory of `ebb up` and of the sidecar, twelve times.
pub(crate) fn soak(minutes: usize, target: &Target) -> Result<Value> {
    let Scene { platform, place, gateway, runtime, .. } = scene(target)?;
    let ebb = platform.process().context("not started here")?.pid();
    let ask = Ask { address: gateway.http1, host: gateway.host, h2: false, lanes: 64 };
    let (mut edge, mut pod) = (Vec::new(), Vec::new());
    let (mut answers, mut failed) = (0, 0);
    for _ in 0..12 {
        let outcome = runtime.block_on(load::run(&ask, Duration::from_secs(minutes as u64 * 5), None))?;
        answers += outcome.answers;
        failed += outcome.failed;
        edge.push(usage::own_kib(ebb)?);
        pod.push(usage::own_kib(place.sidecar)?);
    }
    runtime.block_on(platform.stop())?;
    Ok(json!({"bench": "soak", "minutes": minutes, "answers": answers, "failed": failed,
        "ebb_up_own_kib": edge, "queue_proxy_own_kib": pod}))
}

/// By then connections without requests have been put to rest: they are looked at every ten seconds.
const REST: Duration = Duration::from_secs(30);

/// Memory that connections take which do nothing, each after one request: at once, and at rest.
pub(crate) fn connections(target: &Target) -> Result<Value> {
    let Scene { platform, place, gateway, runtime, .. } = scene(target)?;
    let ebb = platform.process().context("not started here")?.pid();
    let before = (usage::own_kib(ebb)?, usage::own_kib(place.sidecar)?);
    let ask = Ask { address: gateway.http1, host: gateway.host, h2: false, lanes: IDLE };
    let held = runtime.block_on(load::hold(&ask))?;
    let after = (usage::own_kib(ebb)?, usage::own_kib(place.sidecar)?);
    std::thread::sleep(REST);
    let rest = (usage::own_kib(ebb)?, usage::own_kib(place.sidecar)?);
    let count = held.len();
    drop(held);
    runtime.block_on(platform.stop())?;
    let for_10000 = |now: u64| now.saturating_sub(before.0) * 10_000 / count as u64;
    Ok(json!({"bench": "connections", "idle_connections": count,
        "ebb_up_own_kib": {"before": before.0, "with": after.0, "for_10000": for_10000(after.0),
            "at_rest": rest.0, "for_10000_at_rest": for_10000(rest.0)},
        "queue_proxy_own_kib": {"before": before.1, "with": after.1, "at_rest": rest.1}}))
}
