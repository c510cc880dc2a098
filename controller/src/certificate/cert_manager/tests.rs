use serde_json::{Value, json};

use super::*;
use crate::plan::Change;
use crate::testing::{at, condition, object, pair, summary};

fn certificate(host: &str, domain: &str) -> Certificate {
    object(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Certificate",
        "metadata": {
            "name": "route-1", "namespace": "default", "uid": "cert-uid", "generation": 1,
            "labels": {"serving.knative.dev/route": "hello"}
        },
        "spec": {"dnsNames": [host], "domain": domain, "secretName": "route-1"}
    }))
}

fn run(certificate: &Certificate, ordered: Option<&Ordered>, installed: bool) -> Plan {
    plan(&Observed { certificate, ordered, installed }, &CertManager::default(), at(1))
}

fn ordered(plan: &Plan) -> Value {
    match plan.then.as_slice() {
        [Change::Create(target, body)] => {
            let resource = &target.resource;
            assert_eq!(
                (resource.api_version.as_str(), resource.plural.as_str()),
                ("cert-manager.io/v1", "certificates")
            );
            body.clone()
        }
        other => panic!("one order, not {other:?}"),
    }
}

#[test]
fn it_is_ordered_and_its_readiness_taken_over() {
    let certificate = certificate("hello.default.example.com", "example.com");
    let first = run(&certificate, None, true);
    let body = ordered(&first);
    assert_eq!(
        body["spec"],
        json!({
            "commonName": "hello.default.example.com", "dnsNames": ["hello.default.example.com"], "secretName": "route-1",
            "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "knative-selfsigned-issuer"},
            "secretTemplate": {"labels": {"networking.internal.knative.dev/certificate-uid": "cert-uid"}}
        })
    );
    assert_eq!(body["metadata"]["labels"]["serving.knative.dev/route"], "hello");
    assert_eq!(condition(&first, "Ready"), pair("Unknown", "NoCertManagerCertCondition"));
    let said = |status: &str, reason: &str| {
        let mut value = body.clone();
        value["status"] = json!({
            "conditions": [{"type": "Ready", "status": status, "reason": reason, "message": "m"}],
            "notAfter": "2027-01-01T00:00:00Z"
        });
        // What cert-manager fills in is its own affair.
        value["spec"]["privateKey"] = json!({"rotationPolicy": "Always"});
        let plan = run(&certificate, Some(&object::<Ordered>(value)), true);
        assert_eq!(summary(&plan), [""; 0]);
        assert_eq!(plan.status.as_ref().expect("a status")["notAfter"], "2027-01-01T00:00:00Z");
        condition(&plan, "Ready")
    };
    assert_eq!(said("True", "Ready"), pair("True", ""));
    assert_eq!(said("False", "InProgress"), pair("Unknown", "InProgress"));
    assert_eq!(said("False", "Denied"), pair("False", "Denied"));
    assert_eq!(said("Unknown", "Thinking"), pair("Unknown", "Thinking"));
}

#[test]
fn without_cert_manager_it_says_so_and_asks_again() {
    let plan = run(&certificate("a.example.com", "example.com"), None, false);
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready"), pair("False", "CertManagerNotInstalled"));
    assert_eq!(plan.requeue_after, Some(AGAIN));
}

#[test]
fn a_long_host_gets_a_short_common_name() {
    let long = format!("{}.default.example.com", "a".repeat(60));
    let body = ordered(&run(&certificate(&long, "example.com"), None, true));
    assert_eq!(body["spec"]["commonName"], "k.example.com");
    assert_eq!(body["spec"]["dnsNames"], json!(["k.example.com", long]));
    for domain in [long.as_str(), "", &"b".repeat(62)] {
        let plan = run(&certificate(&long, domain), None, true);
        assert_eq!(condition(&plan, "Ready"), pair("False", "CommonNameTooLong"), "{domain}");
    }
}

#[test]
fn an_order_of_somebody_else_is_left_alone() {
    let certificate = certificate("a.example.com", "example.com");
    let mut body = ordered(&run(&certificate, None, true));
    body["metadata"]["ownerReferences"] = json!([]);
    let plan = run(&certificate, Some(&object::<Ordered>(body)), true);
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready"), pair("False", "NotOwned"));
}

#[test]
fn another_issuer_changes_the_order() {
    let certificate = certificate("a.example.com", "example.com");
    let body: Ordered = object(ordered(&run(&certificate, None, true)));
    let data = [("issuerRef".to_owned(), "kind: Issuer\nname: letsencrypt".to_owned())];
    let config = CertManager::parse(&data.into()).expect("good");
    let plan =
        plan(&Observed { certificate: &certificate, ordered: Some(&body), installed: true }, &config, at(1));
    let [Change::Patch(_, patch)] = plan.then.as_slice() else { panic!("{:?}", plan.then) };
    let wanted = json!({"group": "cert-manager.io", "kind": "Issuer", "name": "letsencrypt"});
    assert_eq!(patch["spec"]["issuerRef"], wanted, "what is left out would stay as it was");
}

/// What becomes of a Certificate that was Ready, or not, when cert-manager says these conditions.
fn told(was_ready: bool, conditions: Value) -> Plan {
    let mut certificate = certificate("a.example.com", "example.com");
    let mut order = ordered(&run(&certificate, None, true));
    order["status"] = json!({"conditions": conditions});
    if was_ready {
        certificate = crate::testing::with_status(
            &certificate,
            json!({"observedGeneration": 1, "notAfter": "2027-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True"}]}),
        );
    }
    run(&certificate, Some(&object::<Ordered>(order)), true)
}

#[test]
fn one_that_is_good_stays_until_the_next_is_there() {
    let other = json!([{"type": "Ready", "status": "False", "reason": "IncorrectIssuer", "message": "m"},
        {"type": "Issuing", "status": "True", "reason": "IncorrectIssuer"}]);
    let plan = told(true, other.clone());
    assert_eq!(condition(&plan, "Ready"), pair("True", "IncorrectIssuer"));
    assert_eq!(plan.status.as_ref().expect("a status")["notAfter"], "2027-01-01T00:00:00Z");
    let end = plan.requeue_after.expect("a look at its end");
    assert!(end > Duration::from_secs(30 * 24 * 3600), "{end:?}");
    assert_eq!(condition(&told(false, other), "Ready"), pair("Unknown", "IncorrectIssuer"), "under way");
    // While the attempts fail, too, which an event tells.
    let failing = json!([{"type": "Ready", "status": "False", "reason": "IncorrectIssuer"},
        {"type": "Issuing", "status": "False", "reason": "Failed", "message": "the CA said no"}]);
    let plan = told(true, failing);
    assert_eq!(condition(&plan, "Ready"), pair("True", "Failed"));
    assert!(plan.notes.iter().any(|note| note.reason == "IssuingFailed"), "{:?}", plan.notes);
    // Nothing is served from a Secret that is gone.
    let gone = json!([{"type": "Ready", "status": "False", "reason": "DoesNotExist"}]);
    assert_eq!(condition(&told(true, gone), "Ready"), pair("Unknown", "DoesNotExist"));
}

#[test]
fn why_an_attempt_failed_is_told_rather_than_that_there_is_none() {
    let failed = json!([{"type": "Ready", "status": "False", "reason": "DoesNotExist"},
        {"type": "Issuing", "status": "False", "reason": "Failed", "message": "the CA said no"}]);
    let plan = told(false, failed);
    assert_eq!(condition(&plan, "Ready"), pair("False", "Failed"));
    let conditions = plan.status.as_ref().expect("a status")["conditions"].to_string();
    assert!(conditions.contains("the CA said no"), "{conditions}");
}
