//! `metrics.k8s.io`: what pods and the node use at the moment, told as metrics-server tells it, from the node agent's running totals.
//!
//! Processor time is a rate between two readings, and readings are taken only when somebody asks. An autoscaler that asks every fifteen
//! seconds gets the average since it last asked; whoever asks out of the blue waits for a second.
//!
//! Shapes: <https://github.com/kubernetes/metrics/blob/master/pkg/apis/metrics/v1beta1/types.go>.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

use super::Ctx;
use super::read::check_fields;
use crate::error::ApiError;
use crate::meta;
use crate::query::ListOptions;
use crate::reply::{self, Reply};
use crate::store::{Key, Object};

/// A reading as young as this is not taken again.
const FRESH: Duration = Duration::from_secs(5);
/// The average over more than this is not what is used at the moment.
const STALE: Duration = Duration::from_secs(60);
/// How long two readings are apart where there was none to go by.
const APART: Duration = Duration::from_secs(1);
/// Over less, a rate is noise.
const SHORTEST: Duration = Duration::from_millis(500);
/// Of a container that was not there at the first reading nothing is told before it has run for so long: its start would be taken for its load.
const SETTLED: Duration = Duration::from_secs(10);

/// The readings that the next answer goes by; whoever reads holds it, so that all who ask meanwhile share one reading.
#[derive(Debug, Default)]
pub(crate) struct History(tokio::sync::Mutex<Option<Readings>>);

#[derive(Clone, Debug)]
struct Readings {
    base: Arc<Reading>,
    latest: Arc<Reading>,
}

/// The totals of one moment.
#[derive(Debug)]
struct Reading {
    /// By the clock that nobody sets.
    at: Instant,
    node: String,
    machine: Option<Total>,
    /// By namespace, name and uid; then by container.
    pods: BTreeMap<(String, String, String), BTreeMap<String, Total>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Total {
    at: Timestamp,
    /// When it began at nothing.
    since: Option<Timestamp>,
    cpu_ns: u64,
    working_set: u64,
}

/// What something uses: billionths of a processor on average over the window, and bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Usage {
    nano_cores: u64,
    window: Duration,
    at: Timestamp,
    working_set: u64,
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// The rate since an earlier total, or since its own begin where it is another's (a container that was started anew counts from nothing).
fn rate(earlier: Option<&Total>, latest: &Total) -> Option<Usage> {
    let same = earlier.filter(|earlier| earlier.since == latest.since && earlier.cpu_ns <= latest.cpu_ns);
    let (from, used, least) = match same {
        Some(earlier) => (earlier.at, latest.cpu_ns - earlier.cpu_ns, SHORTEST),
        None => (latest.since?, latest.cpu_ns, SETTLED),
    };
    let window = between(from, latest.at);
    if window < least {
        return None;
    }
    let nano_cores = u128::from(used) * 1_000_000_000 / window.as_nanos();
    Some(Usage {
        nano_cores: u64::try_from(nano_cores).unwrap_or(u64::MAX),
        window,
        at: latest.at,
        working_set: latest.working_set,
    })
}

impl Reading {
    /// Reads kubelet's `/stats/summary`.
    fn parse(summary: &Value, now: Instant) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let total = |of: &Value| {
            Some(Total {
                at: time(&of["cpu"]["time"])?,
                since: time(&of["startTime"]),
                cpu_ns: of["cpu"]["usageCoreNanoSeconds"].as_u64()?,
                working_set: of["memory"]["workingSetBytes"].as_u64()?,
            })
        };
        let pods = summary["pods"].as_array().into_iter().flatten().map(|pod| {
            let told = &pod["podRef"];
            let containers = pod["containers"].as_array().into_iter().flatten();
            let containers = containers.filter_map(|one| Some((text(&one["name"]), total(one)?)));
            ((text(&told["namespace"]), text(&told["name"]), text(&told["uid"])), containers.collect())
        });
        Self {
            at: now,
            node: text(&summary["node"]["nodeName"]),
            machine: total(&summary["node"]),
            pods: pods.collect(),
        }
    }
}

impl Readings {
    /// What each container of a pod uses; none while that of one of them is not known, as half a pod would mislead.
    fn pod(&self, key: &(String, String, String)) -> Option<BTreeMap<&str, Usage>> {
        let containers = self.latest.pods.get(key).filter(|containers| !containers.is_empty())?;
        let earlier = self.base.pods.get(key);
        let usage = containers.iter().map(|(name, total)| {
            Some((name.as_str(), rate(earlier.and_then(|earlier| earlier.get(name)), total)?))
        });
        usage.collect()
    }

    fn machine(&self) -> Option<Usage> {
        // When it was started is told by a clock that may be set; it is the same machine all the same.
        let latest = self.latest.machine.as_ref()?;
        let earlier = self.base.machine.map(|earlier| Total { since: latest.since, ..earlier });
        rate(earlier.as_ref(), latest)
    }
}

async fn read(ctx: &Ctx) -> Result<Arc<Reading>, ApiError> {
    let kubelet = ctx.server.kubelet.load_full();
    let Some(kubelet) = kubelet else {
        return Err(ApiError::unavailable("no node agent is connected to this server"));
    };
    let request = Request::get("/stats/summary").body(Body::empty()).map_err(ApiError::internal)?;
    let answer = match axum::Router::clone(&kubelet).oneshot(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    };
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.map_err(ApiError::internal)?;
    let summary: Value = serde_json::from_slice(&body).map_err(ApiError::internal)?;
    Ok(Arc::new(Reading::parse(&summary, Instant::now())))
}

async fn readings(ctx: &Ctx) -> Result<Readings, ApiError> {
    let mut known = ctx.server.usage.0.lock().await;
    let age = known.as_ref().map(|known| known.latest.at.elapsed());
    let base = match (&*known, age) {
        (Some(known), Some(age)) if age < FRESH => return Ok(known.clone()),
        (Some(known), Some(age)) if age <= STALE => Arc::clone(&known.latest),
        _ => {
            let base = read(ctx).await?;
            tokio::time::sleep(APART).await;
            base
        }
    };
    let taken = Readings { base, latest: read(ctx).await? };
    *known = Some(taken.clone());
    Ok(taken)
}

fn quantities(usage: &Usage) -> Value {
    let cpu = if usage.nano_cores == 0 { "0".to_owned() } else { format!("{}n", usage.nano_cores) };
    json!({"cpu": cpu, "memory": format!("{}Ki", usage.working_set.div_ceil(1024))})
}

fn window(usage: &Usage) -> String {
    format!("{:.3}s", usage.window.as_secs_f64())
}

fn object(ctx: &Ctx, stored: &Object, fields: Value) -> Arc<Object> {
    let mut value = fields;
    value["apiVersion"] = ctx.resource.api_version().into();
    value["kind"] = ctx.resource.kind.clone().into();
    value["metadata"] = json!({"name": stored.key.name, "creationTimestamp": meta::now()});
    if ctx.resource.namespaced {
        value["metadata"]["namespace"] = stored.key.namespace.clone().into();
    }
    let labels = stored.value.look(|object| object["metadata"]["labels"].clone());
    if !labels.is_null() {
        value["metadata"]["labels"] = labels;
    }
    let key = Key::new(&ctx.resource.storage, &stored.key.namespace, &stored.key.name);
    Arc::new(Object::new(key, 0, value))
}

fn of_pod(ctx: &Ctx, readings: &Readings, pod: &Object) -> Option<Arc<Object>> {
    let uid = pod.value.look(|pod| meta::uid(pod).to_owned());
    let usage = readings.pod(&(pod.key.namespace.clone(), pod.key.name.clone(), uid))?;
    let shortest = usage.values().min_by_key(|usage| usage.window)?;
    let containers: Vec<Value> =
        usage.iter().map(|(name, usage)| json!({"name": name, "usage": quantities(usage)})).collect();
    let fields = json!({"timestamp": meta::rfc3339(shortest.at), "window": window(shortest), "containers": containers});
    Some(object(ctx, pod, fields))
}

fn of_node(ctx: &Ctx, readings: &Readings, node: &Object) -> Option<Arc<Object>> {
    let usage = readings.machine().filter(|_| node.key.name == readings.latest.node)?;
    let fields =
        json!({"timestamp": meta::rfc3339(usage.at), "window": window(&usage), "usage": quantities(&usage)});
    Some(object(ctx, node, fields))
}

fn of(ctx: &Ctx, readings: &Readings, stored: &Object) -> Option<Arc<Object>> {
    if ctx.resource.namespaced { of_pod(ctx, readings, stored) } else { of_node(ctx, readings, stored) }
}

/// Where what is asked for lives as an object.
fn storage(ctx: &Ctx) -> &'static str {
    if ctx.resource.namespaced { "/pods" } else { "/nodes" }
}

/// What one of them uses.
pub(crate) async fn get(ctx: &Ctx) -> Result<Reply, ApiError> {
    let not_found = || ApiError::not_found(ctx.subject());
    let stored =
        ctx.server.store.get(storage(ctx), &ctx.namespace, ctx.object_name()).ok_or_else(not_found)?;
    let usage = of(ctx, &readings(ctx).await?, &stored).ok_or_else(not_found)?;
    Ok(reply::stored(StatusCode::OK, ctx.accept, &ctx.resource, ctx.include, &usage))
}

/// What all of them use that are selected.
pub(crate) async fn list(ctx: &Ctx) -> Result<Reply, ApiError> {
    let options = ListOptions::from_query(&ctx.query)?;
    check_fields(&ctx.resource, &options)?;
    let readings = readings(ctx).await?;
    let namespace = ctx.resource.namespaced.then_some(ctx.namespace.as_str()).filter(|n| !n.is_empty());
    let (_, stored) = ctx.server.store.list(storage(ctx), namespace);
    let objects: Vec<Arc<Object>> = stored
        .iter()
        .filter(|object| object.value.look(|object| options.selects(object)))
        .filter_map(|object| of(ctx, &readings, object))
        .collect();
    Ok(reply::list(ctx.accept, &ctx.resource, ctx.include, &objects, &json!({})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn total(millis: i64, since: i64, cpu_ms: u64) -> Total {
        Total { at: at(millis), since: Some(at(since)), cpu_ns: cpu_ms * 1_000_000, working_set: 2048 }
    }

    #[test]
    fn a_rate_is_taken_between_two_readings_of_the_same_run() {
        let cores = |earlier: Option<&Total>, latest: &Total| {
            rate(earlier, latest).map(|usage| (usage.nano_cores, usage.window.as_millis()))
        };
        let first = total(10_000, 0, 1_000);
        assert_eq!(cores(Some(&first), &total(12_000, 0, 2_000)), Some((500_000_000, 2_000)));
        assert_eq!(cores(None, &total(10_000, 0, 1_000)), Some((100_000_000, 10_000)), "from its begin");
        // Started anew between the readings: what it used before is no part of it.
        assert_eq!(cores(Some(&first), &total(32_000, 20_000, 1_500)), Some((125_000_000, 12_000)));
        assert_eq!(cores(Some(&first), &total(12_000, 11_000, 1_500)), None, "its start is no load");
        assert_eq!(cores(Some(&first), &total(10_100, 0, 1_050)), None, "too short to tell");
        let unknown = Total { since: None, ..first };
        assert_eq!(cores(None, &unknown), None);
        assert_eq!(cores(Some(&unknown), &Total { cpu_ns: 0, at: at(20_000), ..unknown }), None, "it fell");
    }

    #[test]
    fn half_a_pod_is_not_told() {
        let summary = |time: &str, second: Value| {
            let one = json!({"name": "a", "startTime": "2026-01-01T00:00:00Z",
                "cpu": {"time": time, "usageCoreNanoSeconds": 1_000_000_000}, "memory": {"workingSetBytes": 1}});
            let pods =
                json!([{"podRef": {"namespace": "n", "name": "p", "uid": "u"}, "containers": [one, second]}]);
            Reading::parse(&json!({"node": {"nodeName": "x"}, "pods": pods}), Instant::now())
        };
        let key = ("n".to_owned(), "p".to_owned(), "u".to_owned());
        let fresh = json!({"name": "b", "startTime": "2026-01-01T00:00:09.9Z",
            "cpu": {"time": "2026-01-01T00:00:10Z", "usageCoreNanoSeconds": 5}, "memory": {"workingSetBytes": 1}});
        let base = Arc::new(Reading::parse(&Value::Null, Instant::now()));
        let half = Readings { base: base.clone(), latest: Arc::new(summary("2026-01-01T00:00:10Z", fresh)) };
        assert_eq!(half.pod(&key), None);
        let known = json!({"name": "b", "startTime": "2026-01-01T00:00:00Z",
            "cpu": {"time": "2026-01-01T00:00:10Z", "usageCoreNanoSeconds": 5}, "memory": {"workingSetBytes": 1}});
        let whole = Readings { base, latest: Arc::new(summary("2026-01-01T00:00:10Z", known)) };
        let usage = whole.pod(&key).unwrap();
        assert_eq!(usage["a"].nano_cores, 100_000_000);
        assert_eq!(usage.len(), 2);
    }
}
