use serde_json::{Value, json};

use super::*;
use crate::plan::Change;
use crate::testing::{at, condition, object, pair, ready, revision, summary, with_status};

fn pa(annotations: &[(&str, &str)]) -> PodAutoscaler {
    let mut revision = revision(1);
    let all = revision.metadata.annotations.get_or_insert_default();
    all.insert(keys::CLASS.key().into(), keys::HPA.into());
    all.extend(annotations.iter().map(|(k, v)| (format!("autoscaling.knative.dev/{k}"), (*v).to_owned())));
    let mut pa = crate::revision::pod_autoscaler(&revision, keys::KPA);
    pa.metadata.uid = Some("pa-uid".into());
    pa.metadata.generation = Some(1);
    pa
}

fn run(pa: &PodAutoscaler, hpa: Option<Value>, sks_ready: &str) -> Plan {
    let config = Autoscaler::default();
    let hpa = hpa.map(|status| with_status(&horizontal(pa, &config), status));
    let mut sks = serverless_service(pa);
    sks.metadata.generation = Some(1);
    let mut status = ready(sks_ready, None);
    (status["serviceName"], status["privateServiceName"]) =
        (json!("hello-00001"), json!("hello-00001-private"));
    let sks: ServerlessService = with_status(&sks, status);
    plan(&Observed { pa, hpa: hpa.as_ref(), sks: Some(&sks), refused: None }, &config, at(1))
}

fn spec(annotations: &[(&str, &str)]) -> Value {
    serde_json::to_value(horizontal(&pa(annotations), &Autoscaler::default())).expect("JSON")["spec"].clone()
}

#[test]
fn what_kubernetes_is_asked_for() {
    let plain = spec(&[("metric", "cpu")]);
    assert_eq!((&plain["minReplicas"], &plain["maxReplicas"]), (&json!(1), &json!(i32::MAX)));
    assert_eq!(
        plain["scaleTargetRef"],
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001-deployment"})
    );
    assert_eq!(plain.get("metrics"), None, "Kubernetes has a default");
    let bounded = spec(&[("min-scale", "2"), ("maxScale", "5"), ("window", "30s")]);
    assert_eq!((&bounded["minReplicas"], &bounded["maxReplicas"]), (&json!(2), &json!(5)));
    assert_eq!(bounded["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 30);
    for (metric, want) in [
        (
            "cpu",
            json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 75}}}),
        ),
        (
            "memory",
            json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "74Mi"}}}),
        ),
        (
            "queue",
            json!({"type": "Pods", "pods": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "74"}}}),
        ),
    ] {
        assert_eq!(spec(&[("metric", metric), ("target", "74.5")])["metrics"], json!([want]));
    }
    let mut idle = pa(&[("min-scale", "3")]);
    idle.spec.reachability = Reachability::Unreachable;
    let made = horizontal(&idle, &Autoscaler::default());
    assert_eq!(made.spec.and_then(|s| s.min_replicas), Some(1), "nothing is kept that no Route leads to");
}

#[test]
fn it_is_made_and_followed() {
    let mut fresh = pa(&[("min-scale", "2")]);
    let plan = super::plan(
        &Observed { pa: &fresh, hpa: None, sks: None, refused: None },
        &Autoscaler::default(),
        at(1),
    );
    assert_eq!(
        summary(&plan),
        ["create HorizontalPodAutoscaler/hello-00001", "create ServerlessService/hello-00001"]
    );
    let Change::Create(_, sks) = &plan.then[1] else { panic!("the ServerlessService is made") };
    assert_eq!(sks["spec"]["mode"], "Serve");
    assert_eq!(condition(&plan, "Active").0, "True");
    assert_eq!(condition(&plan, "SKSReady"), pair("Unknown", "NotReady"));
    for (current, sks, initialized) in
        [(2, "Unknown", "Unknown"), (1, "True", "Unknown"), (2, "True", "True")]
    {
        let plan = run(&fresh, Some(json!({"currentReplicas": current, "desiredReplicas": 3})), sks);
        assert_eq!(summary(&plan), [""; 0]);
        assert_eq!(condition(&plan, "ScaleTargetInitialized").0, initialized);
        assert_eq!(condition(&plan, "Ready").0, initialized, "the rest holds");
        let status = plan.status.expect("a status");
        assert_eq!((&status["actualScale"], &status["desiredScale"]), (&json!(current), &json!(3)));
        assert_eq!(status["metricsServiceName"], "hello-00001-private");
    }
    // Another class: it goes.
    let live: HorizontalPodAutoscaler =
        object(serde_json::to_value(horizontal(&fresh, &Autoscaler::default())).expect("JSON"));
    fresh.metadata.annotations.get_or_insert_default().insert(keys::CLASS.key().into(), keys::KPA.into());
    let plan = super::plan(
        &Observed { pa: &fresh, hpa: Some(&live), sks: None, refused: None },
        &Autoscaler::default(),
        at(1),
    );
    assert_eq!(summary(&plan), ["delete HorizontalPodAutoscaler/hello-00001"]);
}

#[test]
fn anothers_is_left_alone_and_refusals_are_told() {
    let pa = pa(&[]);
    let mut foreign = horizontal(&pa, &Autoscaler::default());
    foreign.metadata.owner_references = None;
    let observed = Observed { pa: &pa, hpa: Some(&foreign), sks: None, refused: None };
    let plan = super::plan(&observed, &Autoscaler::default(), at(1));
    assert_eq!((summary(&plan).len(), condition(&plan, "Active")), (0, pair("False", "NotOwned")));
    let observed = Observed { hpa: None, refused: Some("exceeded quota"), ..observed };
    let plan = super::plan(&observed, &Autoscaler::default(), at(1));
    assert_eq!(condition(&plan, "Active"), pair("False", "FailedCreate"));
}
