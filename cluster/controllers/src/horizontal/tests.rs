use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod},
    jiff::Timestamp,
};
use serde_json::{Value, json};

use super::{
    behavior::History,
    metrics::PodUsage,
    plan::{Observed, Plan, Target, plan},
};

/// Later than any initialization.
const NOW: i64 = 10_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Running and ready, started at 0, asking for a tenth of a processor.
fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]},
        "status": {"phase": "Running", "startTime": "1970-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:01Z"}]}})
}

fn usage(pod: &str, milli: i128) -> PodUsage {
    let used = BTreeMap::from([("cpu".to_owned(), milli), ("memory".to_owned(), milli * 1000)]);
    PodUsage {
        pod: pod.to_owned(),
        at: at(NOW),
        window: Duration::from_secs(15),
        containers: [("app".to_owned(), used)].into(),
    }
}

struct Case {
    spec: Value,
    pods: Vec<Value>,
    usage: Vec<PodUsage>,
    replicas: i32,
    history: History,
    status: Value,
    rivals: Vec<String>,
    now: i64,
}

impl Case {
    /// As many pods as there are values, each using so many thousandths of a processor; the target is half of what is asked for.
    fn of(milli: &[i128]) -> Self {
        let names: Vec<String> = (0..milli.len()).map(|n| format!("p{n}")).collect();
        Self {
            spec: json!({"minReplicas": 1, "maxReplicas": 10, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
                "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 50}}}]}),
            pods: names.iter().map(|name| pod(name)).collect(),
            usage: names.iter().zip(milli).map(|(name, milli)| usage(name, *milli)).collect(),
            replicas: i32::try_from(milli.len()).unwrap(),
            history: History::default(),
            status: Value::Null,
            rivals: Vec::new(),
            now: NOW,
        }
    }

    fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        self.spec.pointer_mut(parent).unwrap()[field] = value;
        self
    }

    fn down_at_once(self) -> Self {
        self.with("/behavior", json!({"scaleDown": {"stabilizationWindowSeconds": 0}}))
    }

    fn plan(&mut self) -> Plan {
        let object = json!({"metadata": {"name": "h", "generation": 3}, "spec": self.spec});
        let mut hpa: HorizontalPodAutoscaler = serde_json::from_value(object).unwrap();
        hpa.status = serde_json::from_value(self.status.clone()).unwrap();
        let pods: Vec<Pod> =
            self.pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect();
        let target = Target { replicas: self.replicas, selects: true, pods, usage: Ok(self.usage.clone()) };
        let plan = plan(
            &Observed { hpa: &hpa, target: Ok(target), rivals: self.rivals.clone() },
            &mut self.history,
            at(self.now),
        );
        self.status = serde_json::to_value(&plan.status).unwrap();
        plan
    }

    fn wanted(&mut self) -> i32 {
        self.plan().rescale.unwrap_or(self.replicas)
    }
}

fn condition(plan: &Plan, type_: &str) -> (String, String, String) {
    let all = plan.status.conditions.as_ref().unwrap();
    let found = all.iter().find(|condition| condition.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone().unwrap(), found.message.clone().unwrap())
}

#[test]
fn as_many_as_bring_the_use_to_the_target() {
    // What each uses of its 100m; the target is 50 %.
    assert_eq!(Case::of(&[100]).wanted(), 2);
    assert_eq!(Case::of(&[80, 80, 80]).wanted(), 5);
    assert_eq!(Case::of(&[54, 54]).wanted(), 2, "within a tenth of the target");
    assert_eq!(Case::of(&[25, 25, 25, 25]).down_at_once().wanted(), 2);
    assert_eq!(Case::of(&[400]).wanted(), 4, "no more than four at once, or twice as many");
    assert_eq!(Case::of(&[400, 400, 400]).wanted(), 6);
    let plan = Case::of(&[100]).plan();
    assert_eq!(condition(&plan, "ScalingActive").0, "True");
    assert_eq!(plan.status.observed_generation, Some(3));
    let told = serde_json::to_value(&plan.status.current_metrics).unwrap();
    assert_eq!(told[0]["resource"]["current"], json!({"averageUtilization": 100, "averageValue": "100m"}));
}

#[test]
fn an_average_counts_without_requests() {
    let target = json!([{"type": "Resource", "resource": {"name": "memory",
        "target": {"type": "AverageValue", "averageValue": "50"}}}]);
    let mut case = Case::of(&[100, 100]).with("/metrics", target);
    for pod in &mut case.pods {
        pod["spec"]["containers"][0]["resources"] = json!({});
    }
    let plan = case.plan();
    assert_eq!(plan.rescale, Some(4));
    let told = serde_json::to_value(&plan.status.current_metrics).unwrap();
    assert_eq!(told[0]["resource"]["current"], json!({"averageValue": "100"}));
}

#[test]
fn one_container_may_be_what_counts() {
    let target = json!([{"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "app",
        "target": {"type": "Utilization", "averageUtilization": 50}}}]);
    let mut case = Case::of(&[100]).with("/metrics", target);
    // The other has no request and is busy.
    case.pods[0]["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "sidecar"}));
    case.usage[0].containers.insert("sidecar".into(), BTreeMap::from([("cpu".into(), 900)]));
    assert_eq!(case.wanted(), 2);
}

#[test]
fn pods_that_start_count_for_nothing_on_the_way_up() {
    // Alone, the first would want two more; the second, which is on its way, may be all that is needed.
    let mut case = Case::of(&[80, 500]);
    case.pods[1]["status"]["startTime"] = json!(at(NOW - 20).to_string());
    case.pods[1]["status"]["conditions"][0] =
        json!({"type": "Ready", "status": "False", "lastTransitionTime": at(NOW - 20).to_string()});
    assert_eq!(case.wanted(), 2);
    // Ready, but the figures are of its start.
    case.pods[1]["status"]["conditions"][0] =
        json!({"type": "Ready", "status": "True", "lastTransitionTime": at(NOW - 5).to_string()});
    assert_eq!(case.wanted(), 2);
    case.pods[1]["status"]["conditions"][0]["lastTransitionTime"] = at(NOW - 17).to_string().into();
    assert_eq!(case.wanted(), 4, "its load is its own");
    let mut pending = Case::of(&[80, 500]);
    pending.pods[1]["status"]["phase"] = "Pending".into();
    assert_eq!(pending.wanted(), 2);
}

#[test]
fn what_is_not_known_speaks_against_the_change() {
    // Three are idle, one tells nothing: it counts for all that it asks for.
    let mut down = Case::of(&[10, 10, 10, 10]).down_at_once();
    down.usage.pop();
    assert_eq!(down.wanted(), 3, "(30 + 100) of 400 is a third, not a tenth");
    let mut up = Case::of(&[90, 90]);
    up.usage.pop();
    assert_eq!(up.wanted(), 2, "90 of 200 is no more than the target");
    let mut failed = Case::of(&[90, 90]);
    failed.pods[1]["status"]["phase"] = "Failed".into();
    assert_eq!(failed.wanted(), 2, "one that has failed is none: 90 of 100 wants two");
}

#[test]
fn it_says_why_it_cannot_tell() {
    let mut case = Case::of(&[100]);
    case.pods[0]["spec"]["containers"][0]["resources"] = json!({});
    let plan = case.plan();
    assert_eq!(plan.rescale, None);
    let (status, reason, message) = condition(&plan, "ScalingActive");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "FailedGetResourceMetric"));
    assert_eq!(
        message,
        "the HPA was unable to compute the replica count: failed to get cpu utilization: \
         missing request for cpu in container app of Pod p0"
    );
    assert_eq!(plan.events[1].1, "FailedComputeMetricsReplicas");

    let mut silent = Case::of(&[100]);
    silent.usage.clear();
    assert!(
        condition(&silent.plan(), "ScalingActive")
            .2
            .ends_with("no metrics returned from resource metrics API")
    );

    let mut begins = Case::of(&[]);
    begins.replicas = 1;
    let plan = begins.plan();
    assert_eq!(condition(&plan, "ScalingActive").0, "False");
    assert_eq!(plan.events, [], "there is no pod yet");

    let custom = json!({"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "1"}}});
    let mut both = Case::of(&[10, 10]).down_at_once();
    both.spec["metrics"].as_array_mut().unwrap().push(custom);
    let plan = both.plan();
    assert_eq!(plan.rescale, None, "with a metric missing it does not go down");
    let told = plan.status.current_metrics.as_ref().unwrap();
    assert_eq!((told.len(), told[0].resource.is_some(), told[1].type_.as_str()), (2, true, ""));
    assert_eq!(condition(&plan, "ScalingActive").1, "FailedGetPodsMetric");
    both.usage = vec![usage("p0", 100), usage("p1", 100)];
    assert_eq!(both.wanted(), 4, "the other is enough to go up");
}

#[test]
fn bounds_hold() {
    let most = Case::of(&[400, 400]).with("/maxReplicas", json!(3)).plan();
    assert_eq!(most.rescale, Some(3));
    assert_eq!(condition(&most, "ScalingLimited").1, "TooManyReplicas");
    let least = Case::of(&[1, 1, 1]).with("/minReplicas", json!(2)).down_at_once().plan();
    assert_eq!(least.rescale, Some(2));
    assert_eq!(condition(&least, "ScalingLimited").1, "TooFewReplicas");
    // Whatever the metrics say.
    assert_eq!(Case::of(&[1, 1, 1]).with("/maxReplicas", json!(2)).wanted(), 2);
    assert_eq!(Case::of(&[400]).with("/minReplicas", json!(4)).wanted(), 4);
    let zero = Case::of(&[]).plan();
    assert_eq!(zero.rescale, None, "somebody has switched it off");
    assert_eq!(condition(&zero, "ScalingActive").1, "ScalingDisabled");
}

#[test]
fn it_goes_down_once_nothing_has_spoken_against_it_for_five_minutes() {
    let mut case = Case::of(&[50, 50, 50, 50]);
    assert_eq!(case.wanted(), 4);
    case.usage.iter_mut().for_each(|usage| *usage = self::usage(&usage.pod.clone(), 10));
    case.now += 299;
    let plan = case.plan();
    assert_eq!(plan.rescale, None);
    assert_eq!(condition(&plan, "AbleToScale").1, "ScaleDownStabilized");
    case.now += 2;
    assert_eq!(case.wanted(), 1);
}

#[test]
fn a_restart_of_the_controller_is_no_reason_to_go_down() {
    assert_eq!(Case::of(&[1, 1]).wanted(), 2);
}

#[test]
fn policies_limit_what_is_done_within_their_period() {
    let policies = json!({"scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
        "scaleDown": {"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}]}});
    let mut case = Case::of(&[400, 400]).with("/behavior", policies.clone());
    let plan = case.plan();
    assert_eq!((plan.rescale, condition(&plan, "ScalingLimited").1.as_str()), (Some(4), "ScaleUpLimit"));
    case.history.rescaled(2, at(case.now));
    let mut next = Case::of(&[400, 400, 400, 400]).with("/behavior", policies.clone());
    next.history = case.history.clone();
    next.now += 30;
    assert_eq!(next.wanted(), 4, "two within the minute are all");
    next.now += 31;
    assert_eq!(next.wanted(), 6);
    let mut down = Case::of(&[1, 1, 1, 1]).with("/behavior", policies);
    let plan = down.plan();
    assert_eq!((plan.rescale, condition(&plan, "ScalingLimited").1.as_str()), (Some(2), "ScaleDownLimit"));
    let never = json!({"scaleDown": {"selectPolicy": "Disabled", "stabilizationWindowSeconds": 0}});
    assert_eq!(Case::of(&[1, 1]).with("/behavior", never).wanted(), 2);
}

#[test]
fn what_was_done_is_told() {
    let mut plan = Case::of(&[100]).plan();
    plan.rescaled(2, at(NOW));
    assert_eq!(condition(&plan, "AbleToScale").1, "SucceededRescale");
    assert_eq!(plan.status.desired_replicas, 2);
    let message = "New size: 2; reason: cpu resource utilization (percentage of request) above target";
    assert_eq!(plan.events, [(false, "SuccessfulRescale", message.to_owned())]);
    let mut refused = Case::of(&[100]).plan();
    refused.not_rescaled(2, "no", at(NOW));
    assert_eq!(
        condition(&refused, "AbleToScale"),
        (
            "False".into(),
            "FailedUpdateScale".into(),
            "the HPA controller was unable to update the target scale: no".into(),
        )
    );
}

#[test]
fn at_the_target_a_pod_without_figures_changes_nothing() {
    let mut case = Case::of(&[50, 50]);
    case.usage.pop();
    assert_eq!(case.wanted(), 2);
}

#[test]
fn two_for_one_target_scale_by_no_metric() {
    let mut case = Case::of(&[100, 100]);
    case.rivals = vec!["default/other".to_owned()];
    let plan = case.plan();
    assert_eq!(plan.rescale, None);
    assert_eq!(condition(&plan, "ScalingActive").1, "AmbiguousSelector");
    // Bounds are kept all the same.
    assert_eq!(case.with("/maxReplicas", json!(1)).wanted(), 1);
}

#[test]
fn what_the_pod_asks_for_as_a_whole_counts() {
    let mut case = Case::of(&[100]);
    case.pods[0]["spec"]["containers"][0]["resources"] = json!({});
    case.pods[0]["spec"]["resources"] = json!({"requests": {"cpu": "200m"}});
    assert_eq!(case.wanted(), 1, "100 of 200 is the target");
}

#[test]
fn a_container_that_is_not_there_is_named() {
    let target = json!([{"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "nosuch",
        "target": {"type": "Utilization", "averageUtilization": 50}}}]);
    let plan = Case::of(&[100]).with("/metrics", target).plan();
    assert!(condition(&plan, "ScalingActive").2.ends_with("container nosuch not found in Pod p0"));
}
