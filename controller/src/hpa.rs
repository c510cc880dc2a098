//! A PodAutoscaler of the class hpa -> a HorizontalPodAutoscaler, which Kubernetes itself acts on, and a ServerlessService that leads to the
//! pods. There are always pods, so nothing holds requests, and the PodAutoscaler is always active.

use ebb_api::autoscaling::{PodAutoscaler, Reachability};
use ebb_api::conditions::{Conditioned, ConditionedObject};
use ebb_api::config::Autoscaler;
use ebb_api::duration;
use ebb_api::meta::{Keys, autoscaling as keys};
use ebb_api::networking::{ServerlessService, ServerlessServiceSpec, SksMode};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior,
    HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget, PodsMetricSource,
    ResourceMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::plan::{CLIENT_ANNOTATIONS, Compare, Plan, controlled_by, owner};

const ACTIVE: &str = "Active";
const INITIALIZED: &str = "ScaleTargetInitialized";

/// What the plan depends on.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// The PodAutoscaler.
    pub pa: &'a PodAutoscaler,
    /// The HorizontalPodAutoscaler of its name.
    pub hpa: Option<&'a HorizontalPodAutoscaler>,
    /// The ServerlessService of its name.
    pub sks: Option<&'a ServerlessService>,
    /// What the API server said to the last attempt, if it refused that.
    pub refused: Option<&'a str>,
}

/// Whether Kubernetes scales it.
pub fn is_hpa(pa: &PodAutoscaler, config: &Autoscaler) -> bool {
    let class = keys::CLASS.value(pa.metadata.annotations.as_ref());
    class.unwrap_or(&config.pod_autoscaler_class) == keys::HPA
}

/// Decides about a PodAutoscaler: one of another class has no HorizontalPodAutoscaler, or not any more.
pub fn plan(observed: &Observed<'_>, config: &Autoscaler, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let pa = observed.pa;
    if pa.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let uid = pa.metadata.uid.as_deref();
    let owned = observed.hpa.filter(|hpa| controlled_by(&hpa.metadata, uid));
    if !is_hpa(pa, config) {
        owned.into_iter().for_each(|hpa| plan.delete(hpa));
        return plan;
    }
    let mut status = pa.status.clone().unwrap_or_default();
    status.manage(now).initialize();
    status.set_observed_generation(pa.metadata.generation);
    let name = pa.name_any();
    if observed.hpa.is_some() && owned.is_none() {
        let message = format!("There is an existing HorizontalPodAutoscaler {name:?} that we do not own.");
        status.manage(now).mark_false(ACTIVE, "NotOwned", &message);
        plan.set_status(pa.status.as_ref(), &status);
        return plan;
    }
    plan.ensure(owned, &horizontal(pa, config), Compare::Covers);
    plan.ensure(observed.sks, &serverless_service(pa), Compare::Covers);

    let found = observed.sks.and_then(|sks| sks.status.as_ref());
    status.service_name = found.and_then(|s| s.service_name.clone()).unwrap_or_default();
    status.metrics_service_name = found.and_then(|s| s.private_service_name.clone()).unwrap_or_default();
    let (current, desired) = owned
        .and_then(|hpa| hpa.status.as_ref())
        .map_or((0, 0), |status| (status.current_replicas.unwrap_or_default(), status.desired_replicas));
    if observed.sks.is_some_and(ConditionedObject::is_ready) {
        status.manage(now).mark_true("SKSReady");
        let (min, _) = bounds(pa, config);
        if !status.is_true(INITIALIZED) && current >= min.max(initial(pa, config)) {
            status.manage(now).mark_true(INITIALIZED);
        }
    } else {
        status.manage(now).mark_unknown("SKSReady", "NotReady", "SKS Services are not ready yet");
    }
    match observed.refused {
        Some(why) => {
            let message = format!("Failed to create HorizontalPodAutoscaler {name:?}: {why}");
            status.manage(now).mark_false(ACTIVE, "FailedCreate", &message);
        }
        None => {
            status.manage(now).mark_true(ACTIVE);
        }
    }
    status.desired_scale = Some(desired);
    status.actual_scale = Some(current);
    plan.set_status(pa.status.as_ref(), &status);
    plan
}

fn number(pa: &PodAutoscaler, key: Keys) -> Option<i32> {
    key.value(pa.metadata.annotations.as_ref())?.parse().ok()
}

/// The fewest pods (nothing is kept for what no Route leads to) and the most, 0 for no bound.
fn bounds(pa: &PodAutoscaler, config: &Autoscaler) -> (i32, i32) {
    let min = match pa.spec.reachability {
        Reachability::Unreachable => 0,
        _ => number(pa, keys::MIN_SCALE).unwrap_or(config.min_scale),
    };
    (min, number(pa, keys::MAX_SCALE).unwrap_or(config.max_scale))
}

fn initial(pa: &PodAutoscaler, config: &Autoscaler) -> i32 {
    let given = number(pa, keys::INITIAL_SCALE);
    given.filter(|n| *n > 0 || config.allow_zero_initial_scale).unwrap_or(config.initial_scale)
}

fn child(pa: &PodAutoscaler) -> ObjectMeta {
    let mut annotations = pa.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !CLIENT_ANNOTATIONS.contains(&key.as_str()));
    ObjectMeta {
        name: pa.metadata.name.clone(),
        namespace: pa.metadata.namespace.clone(),
        labels: pa.metadata.labels.clone(),
        annotations: Some(annotations),
        owner_references: Some(owner(pa)),
        ..ObjectMeta::default()
    }
}

fn horizontal(pa: &PodAutoscaler, config: &Autoscaler) -> HorizontalPodAutoscaler {
    let (min, max) = bounds(pa, config);
    let target = &pa.spec.scale_target_ref;
    let window = keys::WINDOW.value(pa.metadata.annotations.as_ref()).and_then(duration::parse);
    let behavior = window.map(|window| {
        let seconds = i32::try_from(window.as_secs()).unwrap_or(i32::MAX);
        let rules =
            HPAScalingRules { stabilization_window_seconds: Some(seconds), ..HPAScalingRules::default() };
        HorizontalPodAutoscalerBehavior { scale_down: Some(rules.clone()), scale_up: Some(rules) }
    });
    HorizontalPodAutoscaler {
        metadata: child(pa),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: target.api_version.clone(),
                kind: target.kind.clone().unwrap_or_default(),
                name: target.name.clone().unwrap_or_default(),
            },
            // Kubernetes' own least is 1: this class never goes to zero.
            min_replicas: Some(min.max(1)),
            max_replicas: if max == 0 { i32::MAX } else { max },
            metrics: metric(pa).map(|metric| vec![metric]),
            behavior,
        }),
        status: None,
    }
}

/// What it is scaled by; without a target Kubernetes' own default.
fn metric(pa: &PodAutoscaler) -> Option<MetricSpec> {
    let annotations = pa.metadata.annotations.as_ref();
    let target: f64 = keys::TARGET.value(annotations)?.parse().ok()?;
    let whole = target as i64;
    let value = |amount: String| MetricTarget {
        type_: "AverageValue".into(),
        average_value: Some(Quantity(amount)),
        ..MetricTarget::default()
    };
    let resource = |name: &str, target: MetricTarget| MetricSpec {
        type_: "Resource".into(),
        resource: Some(ResourceMetricSource { name: name.into(), target }),
        ..MetricSpec::default()
    };
    Some(match keys::METRIC.value(annotations).unwrap_or("cpu") {
        "cpu" => resource(
            "cpu",
            MetricTarget {
                type_: "Utilization".into(),
                average_utilization: Some(target.ceil() as i32),
                ..MetricTarget::default()
            },
        ),
        "memory" => resource("memory", value(format!("{whole}Mi"))),
        custom => MetricSpec {
            type_: "Pods".into(),
            pods: Some(PodsMetricSource {
                metric: MetricIdentifier { name: custom.into(), selector: None },
                target: value(whole.to_string()),
            }),
            ..MetricSpec::default()
        },
    })
}

/// It always leads to the pods.
fn serverless_service(pa: &PodAutoscaler) -> ServerlessService {
    let spec = ServerlessServiceSpec {
        mode: SksMode::Serve,
        object_ref: pa.spec.scale_target_ref.clone(),
        protocol_type: pa.spec.protocol_type,
        num_activators: 0,
    };
    ServerlessService { metadata: child(pa), spec, status: None }
}

#[cfg(test)]
mod tests;
