//! Thousands of Services on one `ebb up`: what making them takes, what they cost at rest, and what they cost others.
//!
//! They are made with an initial scale of zero, at most [`AT_ONCE`] of them not Ready at a time: a machine holds few pods, and what is asked is what
//! the control plane bears. [`FEW`] more have pods; their cold starts are measured before and after.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use testkit::{PATIENCE, http};
use tokio::sync::oneshot;

use crate::figures::distribution;
use crate::platform::{Platform, Target, is_ready};
use crate::usage::{cpu_ms, own_kib, rss_kib};

const AT_ONCE: usize = 20;
const FEW: usize = 10;
const COLD_STARTS: usize = 40;
const IDLE: Duration = Duration::from_secs(30);
/// So long must nothing be written for all to have settled: longer than a stable window and a grace period.
const QUIET: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(300);

pub(crate) fn run(n: usize, target: &Target) -> Result<Value> {
    ensure!(
        target.kubeconfig.is_none(),
        "scale measures `ebb up`, whose processor time is one process's; for a cluster there is `components`"
    );
    let runtime = tokio::runtime::Runtime::new()?;
    let platform = runtime.block_on(Platform::start(target))?;
    let pid = platform.process().context("not started here")?.pid();
    for i in 0..FEW {
        runtime.block_on(platform.create(&format!("few-{i}")))?;
    }
    let cold_few = cold_starts(&runtime, &platform)?;
    runtime.block_on(quiet(&platform))?;
    let (rss_few, own_few) = (rss_kib(pid)?, own_kib(pid)?);

    let before = runtime.block_on(Counts::read(&platform))?;
    let (cpu, start) = (cpu_ms(pid)?, Instant::now());
    let ready = runtime.block_on(create(&platform, n))?;
    let (created_after, created_cpu) = (start.elapsed(), cpu_ms(pid)? - cpu);
    let settled_after = runtime.block_on(quiet(&platform))?;
    let settled_cpu = cpu_ms(pid)? - cpu;
    let made = runtime.block_on(Counts::read(&platform))?;
    let calls = made.since(&before);

    let (cpu, rested) = (cpu_ms(pid)?, runtime.block_on(Counts::read(&platform))?);
    std::thread::sleep(IDLE);
    let idle_cpu = (cpu_ms(pid)? - cpu) as f64 / IDLE.as_secs_f64();
    let idle = runtime.block_on(Counts::read(&platform))?.since(&rested);
    let (rss, own) = (rss_kib(pid)?, own_kib(pid)?);

    let cold_many = cold_starts(&runtime, &platform)?;
    runtime.block_on(quiet(&platform))?;

    let platform = platform.restart()?;
    let process = platform.process().context("not started here")?;
    let (pid, ready_again) = (process.pid(), process.ready_after());
    let (start, cpu_at_ready) = (Instant::now(), cpu_ms(pid)?);
    let quiet_again = runtime.block_on(quiet(&platform))?.min(start.elapsed());
    let again = runtime.block_on(Counts::read(&platform))?;
    let (cpu_again, rss_again) = (cpu_ms(pid)?, rss_kib(pid)?);
    runtime.block_on(platform.stop())?;

    let each = |total: u64| two(total as f64 / n as f64);
    let ms = |d: Duration| two(d.as_secs_f64() * 1e3);
    Ok(json!({
        "bench": "scale", "unit": "ms", "services": n, "at_once": AT_ONCE,
        "create_to_ready": distribution(&ready),
        "last_ready": ms(created_after),
        "settled_after_last": ms(settled_after),
        "cpu_per_service_until_ready": each(created_cpu),
        "cpu_per_service_until_settled": each(settled_cpu),
        "calls_per_service": each(calls.total(|_| true)),
        "writes_per_service": each(calls.total(Call::writes)),
        "calls_per_service_by_verb": by(&calls, n, |call| call.verb.clone()),
        "calls_per_service_by_client": by(&calls, n, |call| call.client.clone()),
        "calls_per_service_by_resource": by(&calls, n, Call::what),
        "errors_per_service_by_code": by(&calls.only(|call| call.code >= 400 && call.code != 499), n, |call| format!("{} {} {}", call.code, call.verb, call.what())),
        "watch_events_per_service": each(calls.events),
        "stored_kib_per_service": two(calls.stored as f64 / 1024.0 / n as f64),
        "written_kib_per_service": two(calls.written as f64 / 1024.0 / n as f64),
        "commits_per_service": each(calls.commits),
        "idle_cpu_ms_per_s": two(idle_cpu),
        "idle_writes": idle.total(|call| call.writes() && call.resource != "leases"),
        "idle_writes_of_leases": idle.total(|call| call.writes() && call.resource == "leases"),
        "idle_commits": idle.commits,
        "idle_calls": by(&idle, 1, |call| format!("{} {} {}", call.client, call.verb, call.what())),
        "rss_kib_with_few": rss_few, "own_kib_with_few": own_few,
        "rss_kib": rss, "own_kib": own,
        "own_kib_per_service": two(own.saturating_sub(own_few) as f64 / n as f64),
        "cold_start_with_few": distribution(&cold_few),
        "cold_start_with_all": distribution(&cold_many),
        "restart_to_ready": ms(ready_again),
        "restart_cpu_to_ready": cpu_at_ready,
        "restart_quiet_after_ready": ms(quiet_again),
        "restart_cpu_to_quiet": cpu_again,
        "restart_calls": again.total(|_| true),
        "restart_writes": by(&again.only(|call| call.writes() && call.resource != "leases"), 1, |call| format!("{} {} {}", call.client, call.verb, call.what())),
        "restart_rss_kib": rss_again,
    }))
}

fn two(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Requests to the few Services with pods, each at zero.
fn cold_starts(runtime: &tokio::runtime::Runtime, platform: &Platform) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    while took.len() < COLD_STARTS {
        runtime.block_on(platform.wait_zero())?;
        // The proxy's and the autoscaler's last words of the round before.
        std::thread::sleep(Duration::from_millis(500));
        for i in 0..FEW {
            let answer = http::get(platform.gateway, &platform.host(&format!("few-{i}")), "/")?;
            ensure!(answer.status == 200, "few-{i}: {answer:?}");
            took.push(answer.took);
        }
    }
    Ok(took)
}

/// Creates the Services; from `create` to Ready of each. One watch sees all of them.
async fn create(platform: &Platform, n: usize) -> Result<Vec<Duration>> {
    let services = platform.services();
    let version = services.list(&ListParams::default().limit(1)).await?.metadata.resource_version;
    let mut events = services.watch(&WatchParams::default(), &version.unwrap_or_default()).await?.boxed();
    let waiting: Arc<Mutex<HashMap<String, oneshot::Sender<Instant>>>> = Arc::default();
    let told = waiting.clone();
    let watching = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let (WatchEvent::Added(service) | WatchEvent::Modified(service)) = event? else { continue };
            let name = service.metadata.name.clone().unwrap_or_default();
            if told.lock().contains_key(&name)
                && is_ready(&serde_json::to_value(service)?)
                && let Some(waiter) = told.lock().remove(&name)
            {
                let _ = waiter.send(Instant::now());
            }
        }
        told.lock().clear();
        Ok::<_, anyhow::Error>(())
    });
    let one = |i: usize| {
        let (services, waiting) = (services.clone(), waiting.clone());
        async move {
            let name = format!("scale-{i}");
            let (tell, ready) = oneshot::channel();
            waiting.lock().insert(name.clone(), tell);
            let zero = json!({"autoscaling.knative.dev/initial-scale": "0"});
            let service = platform.service(&name, zero)?;
            let start = Instant::now();
            services.create(&PostParams::default(), &service).await?;
            match tokio::time::timeout(PATIENCE, ready).await {
                Ok(Ok(at)) => Ok(at - start),
                Ok(Err(_)) => Err(anyhow!("the watch of Services ended")),
                Err(_) => {
                    let found = serde_json::to_value(services.get(&name).await?)?;
                    bail!("{name} is not Ready after {} s: {}", PATIENCE.as_secs(), found["status"])
                }
            }
        }
    };
    let took = futures::stream::iter((0..n).map(one)).buffer_unordered(AT_ONCE).try_collect().await;
    watching.abort();
    took
}

/// Waits until nothing was written for a while, leases aside; since when that is so.
async fn quiet(platform: &Platform) -> Result<Duration> {
    let writes = async || -> Result<u64> {
        let counts = Counts::read(platform).await?;
        Ok(counts.total(|call| call.writes() && call.resource != "leases"))
    };
    let start = Instant::now();
    let (mut seen, mut since) = (writes().await?, start);
    while since.elapsed() < QUIET {
        ensure!(start.elapsed() < SETTLE, "there are still writes after {} s", SETTLE.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = writes().await?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    Ok(since - start)
}

/// One kind of request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    client: String,
    verb: String,
    resource: String,
    subresource: String,
    code: u16,
}

impl Call {
    fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "GET" | "LIST" | "WATCH") && !self.resource.ends_with("reviews")
    }

    fn what(&self) -> String {
        match self.subresource.as_str() {
            "" => self.resource.clone(),
            sub => format!("{}/{sub}", self.resource),
        }
    }
}

/// What the API server has counted.
#[derive(Clone, Debug, Default)]
struct Counts {
    calls: BTreeMap<Call, u64>,
    events: u64,
    /// Bytes of all objects.
    stored: u64,
    /// Bytes of all objects that were written.
    written: u64,
    commits: u64,
}

impl Counts {
    async fn read(platform: &Platform) -> Result<Self> {
        let request = ::http::Request::get("/metrics").body(Vec::new())?;
        let text = platform.client.request_text(request).await?;
        let mut counts = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let value = value.parse::<u64>().with_context(|| line.to_owned())?;
            let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
            let label = |wanted: &str| {
                let mut pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
                let value = pairs.find(|(key, _)| *key == wanted).map(|(_, value)| value.trim_matches('"'));
                value.unwrap_or_default().to_owned()
            };
            match name {
                "apiserver_request_total" => {
                    let call = Call {
                        client: label("client"),
                        verb: label("verb"),
                        resource: label("resource"),
                        subresource: label("subresource"),
                        code: label("code").parse().unwrap_or(0),
                    };
                    *counts.calls.entry(call).or_default() += value;
                }
                "apiserver_watch_events_total" => counts.events += value,
                "apiserver_resource_bytes" => counts.stored += value,
                "apiserver_storage_record_bytes_total" => counts.written += value,
                "apiserver_storage_commits_total" => counts.commits += value,
                _ => {}
            }
        }
        ensure!(!counts.calls.is_empty(), "the API server counts no requests");
        Ok(counts)
    }

    fn since(&self, before: &Self) -> Self {
        let calls =
            self.calls.iter().map(|(call, n)| (call.clone(), n - before.calls.get(call).unwrap_or(&0)));
        Self {
            calls: calls.filter(|(_, n)| *n > 0).collect(),
            events: self.events - before.events,
            stored: self.stored.saturating_sub(before.stored),
            written: self.written - before.written,
            commits: self.commits - before.commits,
        }
    }

    fn only(&self, such: impl Fn(&Call) -> bool) -> Self {
        let calls = self.calls.iter().filter(|(call, _)| such(call)).map(|(call, n)| (call.clone(), *n));
        Self { calls: calls.collect(), ..Self::default() }
    }

    fn total(&self, such: impl Fn(&Call) -> bool) -> u64 {
        self.calls.iter().filter(|(call, _)| such(call)).map(|(_, n)| n).sum()
    }
}

/// Calls for each of `n` by `part`, the most first; what is rarer than one in a hundred is left out.
fn by(counts: &Counts, n: usize, part: impl Fn(&Call) -> String) -> Value {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (call, count) in &counts.calls {
        *sums.entry(part(call)).or_default() += count;
    }
    let mut sums: Vec<(String, f64)> = sums
        .into_iter()
        .map(|(part, sum)| (part, two(sum as f64 / n as f64)))
        .filter(|(_, x)| *x >= 0.01)
        .collect();
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    Value::Object(sums.into_iter().map(|(part, each)| (part, json!(each))).collect::<Map<_, _>>())
}
