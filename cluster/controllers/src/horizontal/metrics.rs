//! What one metric wants: pods as they are, what they use, and a target.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
            ResourceMetricStatus,
        },
        core::v1::{Container, Pod},
    },
    apimachinery::pkg::api::resource::Quantity,
    jiff::Timestamp,
};
use kube::{Client, api::ListParams, api::Request};
use serde::Deserialize;

use crate::{meta, quantity};

/// A pod this young may be busy with its start, which is no load.
const INITIALIZATION: Duration = Duration::from_secs(300);
/// A pod that has never been ready for longer than this after its start is not starting any more.
const INITIAL_READINESS: Duration = Duration::from_secs(30);

/// What one pod uses, in thousandths by container and resource.
#[derive(Clone, Debug)]
pub(crate) struct PodUsage {
    pub(crate) pod: String,
    pub(crate) at: Timestamp,
    pub(crate) window: Duration,
    pub(crate) containers: BTreeMap<String, BTreeMap<String, i128>>,
}

#[derive(Deserialize)]
struct PodMetricsList {
    #[serde(default)]
    items: Vec<PodMetrics>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    timestamp: Timestamp,
    window: String,
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: BTreeMap<String, Quantity>,
}

/// Asks `metrics.k8s.io`.
pub(crate) async fn fetch(
    client: &Client,
    namespace: &str,
    selected: &ListParams,
) -> Result<Vec<PodUsage>, String> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
    let request = Request::new(path).list(selected).map_err(|error| error.to_string())?;
    let list: PodMetricsList = client.request(request).await.map_err(|error| {
        format!("unable to fetch metrics from resource metrics API: {}", super::words(error))
    })?;
    Ok(list.items.into_iter().map(PodUsage::from).collect())
}

impl From<PodMetrics> for PodUsage {
    fn from(told: PodMetrics) -> Self {
        let usage = |usage: BTreeMap<String, Quantity>| {
            usage.into_iter().filter_map(|(name, value)| Some((name, quantity::milli(&value)?))).collect()
        };
        let seconds = told.window.strip_suffix('s').and_then(|seconds| seconds.parse().ok());
        Self {
            pod: told.metadata.name.unwrap_or_default(),
            at: told.timestamp,
            window: seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_default(),
            containers: told.containers.into_iter().map(|one| (one.name, usage(one.usage))).collect(),
        }
    }
}

/// How far from 1 the ratio of what is used to what is wanted may be, below and above.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    pub(crate) down: f64,
    pub(crate) up: f64,
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        ratio >= 1.0 - self.down && ratio <= 1.0 + self.up
    }
}

/// What a metric says.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) replicas: i32,
    /// What it goes by, as conditions and events name it.
    pub(crate) name: String,
    pub(crate) status: MetricStatus,
}

/// A metric that says nothing: the reason of the condition, and why.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Silent {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// All that a metric is answered from.
pub(crate) struct Sight<'a> {
    pub(crate) replicas: i32,
    pub(crate) pods: &'a [Pod],
    pub(crate) usage: &'a Result<Vec<PodUsage>, String>,
    pub(crate) tolerance: Tolerance,
    pub(crate) now: Timestamp,
}

/// How many pods one metric wants.
pub(crate) fn propose(spec: &MetricSpec, sight: &Sight<'_>) -> Result<Proposal, Silent> {
    match spec.type_.as_str() {
        "Resource" => {
            let source = spec.resource.as_ref().ok_or_else(|| incomplete("resource"))?;
            let silent = |why: String| Silent { reason: "FailedGetResourceMetric", message: why };
            let (replicas, current, name) =
                by_resource(&source.name, None, &source.target, sight).map_err(silent)?;
            let status = ResourceMetricStatus { name: source.name.clone(), current };
            let status =
                MetricStatus { type_: spec.type_.clone(), resource: Some(status), ..MetricStatus::default() };
            Ok(Proposal { replicas, name, status })
        }
        "ContainerResource" => {
            let source = spec.container_resource.as_ref().ok_or_else(|| incomplete("containerResource"))?;
            let silent = |why: String| Silent { reason: "FailedGetContainerResourceMetric", message: why };
            let container = Some(source.container.as_str());
            let (replicas, current, name) =
                by_resource(&source.name, container, &source.target, sight).map_err(silent)?;
            let status = ContainerResourceMetricStatus {
                container: source.container.clone(),
                name: source.name.clone(),
                current,
            };
            let status = MetricStatus {
                type_: spec.type_.clone(),
                container_resource: Some(status),
                ..MetricStatus::default()
            };
            Ok(Proposal { replicas, name, status })
        }
        other => {
            let (reason, api) = match other {
                "Pods" => ("FailedGetPodsMetric", "custom metrics API (custom.metrics.k8s.io)"),
                "Object" => ("FailedGetObjectMetric", "custom metrics API (custom.metrics.k8s.io)"),
                "External" => ("FailedGetExternalMetric", "external metrics API (external.metrics.k8s.io)"),
                _ => ("InvalidMetricSourceType", "API of such metrics"),
            };
            let message = format!("unable to fetch metrics of type {other:?}: this cluster has no {api}");
            Err(Silent { reason, message })
        }
    }
}

fn incomplete(field: &'static str) -> Silent {
    let message = format!("spec.metrics: {field} is missing: it says what the type of the metric announces");
    Silent { reason: "InvalidMetricSourceType", message }
}

/// A resource, of all containers of the pods or of one.
fn by_resource(
    resource: &str,
    container: Option<&str>,
    target: &MetricTarget,
    sight: &Sight<'_>,
) -> Result<(i32, MetricValueStatus, String), String> {
    let name = match container {
        Some(_) => format!("{resource} container resource"),
        None => format!("{resource} resource"),
    };
    if let Some(average) = target.average_value.as_ref().and_then(quantity::milli) {
        let (replicas, used) = replicas(resource, container, Goal::Average(average), sight)
            .map_err(|why| format!("failed to get {resource} usage: {why}"))?;
        let current =
            MetricValueStatus { average_value: Some(used.average(resource)), ..MetricValueStatus::default() };
        return Ok((replicas, current, name));
    }
    let percent = target.average_utilization.ok_or_else(|| {
        format!("spec.metrics: the target of {resource} has neither averageUtilization nor averageValue")
    })?;
    let (replicas, used) = replicas(resource, container, Goal::Utilization(percent), sight)
        .map_err(|why| format!("failed to get {resource} utilization: {why}"))?;
    let current = MetricValueStatus {
        average_utilization: Some(used.percent()),
        average_value: Some(used.average(resource)),
        value: None,
    };
    Ok((replicas, current, format!("{name} utilization (percentage of request)")))
}

#[derive(Clone, Copy)]
enum Goal {
    /// Percent of what is asked for.
    Utilization(i32),
    /// Thousandths for each pod.
    Average(i128),
}

/// What counted pods use in all, and ask for.
#[derive(Clone, Copy, Default)]
struct Used {
    pods: i128,
    used: i128,
    asked: i128,
}

impl Used {
    fn percent(self) -> i32 {
        i32::try_from(self.used * 100 / self.asked.max(1)).unwrap_or(i32::MAX)
    }

    fn average(self, resource: &str) -> Quantity {
        let milli = self.used / self.pods.max(1);
        if resource == "memory" {
            return Quantity(binary(milli / 1000));
        }
        Quantity(if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") })
    }

    fn ratio(self, goal: Goal) -> f64 {
        match goal {
            Goal::Utilization(percent) => f64::from(self.percent()) / f64::from(percent.max(1)),
            Goal::Average(each) => (self.used / self.pods.max(1)) as f64 / each.max(1) as f64,
        }
    }
}

/// Pods by what can be said of them.
#[derive(Default)]
struct Groups<'a> {
    /// Counted with what they use.
    ready: usize,
    unready: BTreeSet<&'a str>,
    missing: BTreeSet<&'a str>,
    ignored: BTreeSet<&'a str>,
}

fn group<'a>(
    pods: &'a [Pod],
    usage: &BTreeMap<&str, &PodUsage>,
    resource: &str,
    now: Timestamp,
) -> Groups<'a> {
    let mut groups = Groups::default();
    for pod in pods {
        let name = meta::name(pod);
        if pod.metadata.deletion_timestamp.is_some() || meta::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if meta::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(usage) = usage.get(name) {
            // What a start takes of the processor would count as load; memory that is taken stays taken.
            if resource == "cpu" && is_starting(pod, usage, now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

fn is_starting(pod: &Pod, usage: &PodUsage, now: Timestamp) -> bool {
    let status = pod.status.as_ref();
    let started = status.and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    let (Some(started), Some(ready)) = (started, ready) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(started, |time| time.0);
    let unready = ready.status == "False";
    // Whoever may write the status may write any time: one that nothing can be added to is none that comes.
    let after = |at: Timestamp, time: Duration| at.checked_add(time).unwrap_or(Timestamp::MAX);
    if after(started, INITIALIZATION) > now {
        // Figures from before it was ready are those of its start. Conditions have whole seconds, so that it was up to one later.
        unready || usage.at < after(changed, Duration::from_secs(1) + usage.window)
    } else {
        unready && after(started, INITIAL_READINESS) > changed
    }
}

/// What a pod asks for of a resource.
fn asked(pod: &Pod, resource: &str, only: Option<&str>) -> Result<i128, String> {
    let Some(spec) = &pod.spec else { return Ok(0) };
    let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
    if let Some(whole) = whole.filter(|_| only.is_none()).and_then(quantity::milli) {
        return Ok(whole);
    }
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let counted = |container: &&Container| only.is_none_or(|only| only == container.name);
    let request = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let request = requests.and_then(|requests| requests.get(resource)).and_then(quantity::milli);
        request.ok_or_else(|| {
            format!(
                "missing request for {resource} in container {} of Pod {}",
                container.name,
                meta::name(pod)
            )
        })
    };
    spec.containers.iter().chain(sidecars).filter(counted).map(request).sum()
}

/// How many pods bring what is used to the goal, and what is used.
fn replicas(
    resource: &str,
    container: Option<&str>,
    goal: Goal,
    sight: &Sight<'_>,
) -> Result<(i32, Used), String> {
    let usage = sight
        .usage
        .as_ref()
        .map_err(|why| format!("unable to get metrics for resource {resource}: {why}"))?;
    let of = |usage: &PodUsage| -> Option<i128> {
        let counted =
            usage.containers.iter().filter(|(name, _)| container.is_none_or(|only| only == name.as_str()));
        let values: Option<Vec<i128>> = counted.map(|(_, usage)| usage.get(resource).copied()).collect();
        Some(values.filter(|values| !values.is_empty())?.iter().sum())
    };
    if let Some(container) = container
        && let Some(other) = usage.iter().find(|usage| !usage.containers.contains_key(container))
    {
        return Err(format!("container {container} not found in Pod {}", other.pod));
    }
    let told: BTreeMap<&str, &PodUsage> =
        usage.iter().filter(|usage| of(usage).is_some()).map(|usage| (usage.pod.as_str(), usage)).collect();
    if told.is_empty() {
        return Err(format!(
            "unable to get metrics for resource {resource}: no metrics returned from resource metrics API"
        ));
    }
    if sight.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(sight.pods, &told, resource, sight.now);
    let mut values: BTreeMap<&str, i128> = BTreeMap::new();
    let mut requests: BTreeMap<&str, i128> = BTreeMap::new();
    for pod in sight.pods.iter().filter(|pod| !groups.ignored.contains(meta::name(*pod))) {
        let name = meta::name(pod);
        if matches!(goal, Goal::Utilization(_)) {
            requests.insert(name, asked(pod, resource, container)?);
        }
        if !groups.unready.contains(name)
            && let Some(value) = told.get(name).and_then(|usage| of(usage))
        {
            values.insert(name, value);
        }
    }
    if values.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let sum = |values: &BTreeMap<&str, i128>| Used {
        pods: values.len() as i128,
        used: values.values().sum(),
        asked: values.keys().filter_map(|name| requests.get(name)).sum(),
    };
    let used = sum(&values);
    if matches!(goal, Goal::Utilization(_)) && used.asked == 0 {
        return Err(format!("the pods ask for no {resource}"));
    }
    let ratio = used.ratio(goal);
    let keep = (sight.replicas, used);
    let rises_while_some_start = ratio > 1.0 && !groups.unready.is_empty();
    if !rises_while_some_start && groups.missing.is_empty() {
        if sight.tolerance.covers(ratio) {
            return Ok(keep);
        }
        return Ok((ceil(ratio * groups.ready as f64), used));
    }
    // What is not known is taken for what speaks against the change: for all that was asked for on the way down, for nothing on the
    // way up.
    let missing = groups.missing.iter().filter(|_| (ratio - 1.0).abs() > f64::EPSILON);
    for name in missing {
        let value = match goal {
            _ if ratio > 1.0 => 0,
            Goal::Utilization(percent) => {
                requests.get(name).copied().unwrap_or_default() * i128::from(percent.max(100)) / 100
            }
            Goal::Average(each) => each,
        };
        values.insert(name, value);
    }
    if rises_while_some_start {
        values.extend(groups.unready.iter().map(|name| (*name, 0)));
    }
    let new = sum(&values).ratio(goal);
    if sight.tolerance.covers(new) || (ratio < 1.0 && new > 1.0) || (ratio > 1.0 && new < 1.0) {
        return Ok(keep);
    }
    let wanted = ceil(new * values.len() as f64);
    if (new < 1.0 && wanted > sight.replicas) || (new > 1.0 && wanted < sight.replicas) {
        return Ok(keep);
    }
    Ok((wanted, used))
}

/// Bytes, in the largest unit that they are whole in.
fn binary(bytes: i128) -> String {
    let (mut left, mut unit) = (bytes, "");
    for next in ["Ki", "Mi", "Gi", "Ti"] {
        if left == 0 || left % 1024 != 0 {
            break;
        }
        (left, unit) = (left / 1024, next);
    }
    format!("{left}{unit}")
}

fn ceil(value: f64) -> i32 {
    // Saturates.
    value.ceil() as i32
}
