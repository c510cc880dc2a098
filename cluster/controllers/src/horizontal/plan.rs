//! What to do about one HorizontalPodAutoscaler, and what it says of itself.

use k8s_openapi::{
    api::{
        autoscaling::v2::{
            HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
            MetricStatus,
        },
        core::v1::Pod,
    },
    jiff::Timestamp,
};

use super::behavior::{self, History};
use super::metrics::{self, PodUsage, Proposal, Sight, Silent};
use crate::meta;

pub(crate) const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
pub(crate) const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const IN_RANGE: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");

/// What it scales.
#[derive(Debug)]
pub(crate) struct Target {
    /// As asked for at the moment.
    pub(crate) replicas: i32,
    /// Whether its scale says which pods are its.
    pub(crate) selects: bool,
    pub(crate) pods: Vec<Pod>,
    pub(crate) usage: Result<Vec<PodUsage>, String>,
}

pub(crate) struct Observed<'a> {
    pub(crate) hpa: &'a HorizontalPodAutoscaler,
    pub(crate) target: Result<Target, String>,
    /// Other autoscalers of the same target.
    pub(crate) rivals: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Plan {
    /// The number of pods to ask for, if that is to change.
    pub(crate) rescale: Option<i32>,
    /// Why, as events tell it.
    why: String,
    pub(crate) status: HorizontalPodAutoscalerStatus,
    /// Whether it is a warning, the reason, the message.
    pub(crate) events: Vec<(bool, &'static str, String)>,
}

impl Plan {
    fn set(&mut self, type_: &str, holds: bool, (reason, message): (&str, &str), now: Timestamp) {
        let conditions = self.status.conditions.get_or_insert_default();
        let status = if holds { "True" } else { "False" };
        let index = match conditions.iter().position(|condition| condition.type_ == type_) {
            Some(index) => index,
            None => {
                let (type_, status) = (type_.to_owned(), String::new());
                conditions.push(HorizontalPodAutoscalerCondition { type_, status, ..Default::default() });
                conditions.len() - 1
            }
        };
        let condition = &mut conditions[index];
        if condition.status != status {
            condition.last_transition_time = Some(meta::whole_seconds(now));
        }
        condition.status = status.to_owned();
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message.to_owned());
    }

    /// The new scale was written.
    pub(crate) fn rescaled(&mut self, wanted: i32, now: Timestamp) {
        let message = format!("the HPA controller was able to update the target scale to {wanted}");
        self.set("AbleToScale", true, ("SucceededRescale", &message), now);
        self.status.desired_replicas = wanted;
        self.status.last_scale_time = Some(meta::whole_seconds(now));
        self.events.push((false, "SuccessfulRescale", format!("New size: {wanted}; reason: {}", self.why)));
    }

    /// The new scale was refused.
    pub(crate) fn not_rescaled(&mut self, wanted: i32, error: &str, now: Timestamp) {
        let message = format!("the HPA controller was unable to update the target scale: {error}");
        self.set("AbleToScale", false, ("FailedUpdateScale", &message), now);
        self.events.push((
            true,
            "FailedRescale",
            format!("New size: {wanted}; reason: {}; error: {error}", self.why),
        ));
    }
}

/// Decides on one.
pub(crate) fn plan(observed: &Observed<'_>, history: &mut History, now: Timestamp) -> Plan {
    let hpa = observed.hpa;
    let mut status = hpa.status.clone().unwrap_or_default();
    status.observed_generation = hpa.metadata.generation;
    let mut plan = Plan { rescale: None, why: String::new(), status, events: Vec::new() };
    let Some(spec) = &hpa.spec else { return plan };
    let target = match &observed.target {
        Ok(target) => target,
        Err(why) => {
            let message = format!("the HPA controller was unable to get the target's current scale: {why}");
            plan.set("AbleToScale", false, ("FailedGetScale", &message), now);
            plan.events.push((true, "FailedGetScale", why.clone()));
            return plan;
        }
    };
    let message = "the HPA controller was able to get the target's current scale";
    plan.set("AbleToScale", true, ("SucceededGetScale", message), now);
    let current = target.replicas;
    history.begin(current, now);
    plan.status.current_replicas = Some(current);
    plan.status.current_metrics = None;
    let least = spec.min_replicas.unwrap_or(1);
    let wanted = if current == 0 && least != 0 {
        let message = "scaling is disabled since the replica count of the target is zero";
        plan.set("ScalingActive", false, ("ScalingDisabled", message), now);
        0
    } else if current > spec.max_replicas {
        plan.why = "Current number of replicas above Spec.MaxReplicas".to_owned();
        spec.max_replicas
    } else if current < least {
        plan.why = "Current number of replicas below Spec.MinReplicas".to_owned();
        least
    } else {
        match by_metrics(observed, target, &mut plan, now) {
            Some(wanted) => within(spec, history, current, wanted, &mut plan, now),
            None => return plan,
        }
    };
    plan.status.desired_replicas = wanted;
    plan.rescale = (wanted != current).then_some(wanted);
    plan
}

/// The most that a metric wants; none where that cannot be known.
fn by_metrics(observed: &Observed<'_>, target: &Target, plan: &mut Plan, now: Timestamp) -> Option<i32> {
    let spec = observed.hpa.spec.as_ref()?;
    if !target.selects {
        let message = "the HPA target's scale is missing a selector";
        plan.set("ScalingActive", false, ("InvalidSelector", message), now);
        plan.events.push((true, "SelectorRequired", "selector is required".to_owned()));
        return None;
    }
    if !observed.rivals.is_empty() {
        let own = crate::cache::Key::of(observed.hpa).to_string();
        let mut all: Vec<&str> = observed.rivals.iter().map(String::as_str).chain([own.as_str()]).collect();
        all.sort_unstable();
        let message = format!("its pods are controlled by multiple HPAs: [{}]", all.join(" "));
        plan.set("ScalingActive", false, ("AmbiguousSelector", &message), now);
        plan.events.push((true, "AmbiguousSelector", message));
        return None;
    }
    let sight = Sight {
        replicas: target.replicas,
        pods: &target.pods,
        usage: &target.usage,
        tolerance: behavior::tolerance(spec),
        now,
    };
    let specs = spec.metrics.as_deref().unwrap_or_default();
    let (mut best, mut first, mut silent): (Option<Proposal>, Option<Silent>, usize) = (None, None, 0);
    let mut told = Vec::new();
    // Of pods that are not there yet there are no figures; that is not worth a warning.
    let begun = target.pods.iter().any(meta::is_ready);
    for metric in specs {
        match metrics::propose(metric, &sight) {
            Ok(proposal) => {
                told.push(proposal.status.clone());
                if best.as_ref().is_none_or(|best| proposal.replicas > best.replicas) {
                    best = Some(proposal);
                }
            }
            Err(why) => {
                if begun {
                    plan.events.push((true, why.reason, why.message.clone()));
                }
                // Its place is kept: the others are found by their index.
                told.push(MetricStatus::default());
                silent += 1;
                first = first.or(Some(why));
            }
        }
    }
    plan.status.current_metrics = (!told.is_empty()).then_some(told);
    // With a metric missing, the others may be enough to go up, never to go down.
    let best = best.filter(|best| silent == 0 || best.replicas >= target.replicas);
    let Some(best) = best else {
        let first = first.unwrap_or_else(|| Silent {
            reason: "InvalidMetricSourceType",
            message: "spec.metrics names no metric".to_owned(),
        });
        let message = format!("the HPA was unable to compute the replica count: {}", first.message);
        plan.set("ScalingActive", false, (first.reason, &message), now);
        let message = format!(
            "invalid metrics ({silent} invalid out of {}), first error is: {}",
            specs.len(),
            first.message
        );
        if begun {
            plan.events.push((true, "FailedComputeMetricsReplicas", message));
        }
        return None;
    };
    let message = format!("the HPA was able to successfully calculate a replica count from {}", best.name);
    plan.set("ScalingActive", true, ("ValidMetricFound", &message), now);
    plan.why = if best.replicas > target.replicas {
        format!("{} above target", best.name)
    } else {
        "All metrics below target".to_owned()
    };
    Some(best.replicas)
}

/// Windows, rates and bounds.
fn within(
    spec: &k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerSpec,
    history: &mut History,
    current: i32,
    wanted: i32,
    plan: &mut Plan,
    now: Timestamp,
) -> i32 {
    let (stable, held) = behavior::stabilize(spec, history, current, wanted, now);
    let ready = ("ReadyForNewScale", "recommended size matches current size");
    plan.set("AbleToScale", true, held.unwrap_or(ready), now);
    let (limited, why) = behavior::limit(spec, history, current, stable, now);
    plan.set("ScalingLimited", why.is_some(), why.unwrap_or(IN_RANGE), now);
    limited
}
