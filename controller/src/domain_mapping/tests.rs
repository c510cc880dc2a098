use serde_json::{Value, json};

use super::*;
use crate::plan::Change;
use crate::testing::{at, condition, object, pair, ready, summary, with_status};

fn mapping(spec: Value) -> DomainMapping {
    object(json!({
        "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
        "metadata": {"name": "shop.example.org", "namespace": "default", "uid": "dm-uid", "generation": 1}, "spec": spec
    }))
}

fn hello() -> Value {
    json!({"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello"}})
}

fn claim(namespace: &str) -> ClusterDomainClaim {
    object(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ClusterDomainClaim",
        "metadata": {"name": "shop.example.org"}, "spec": {"namespace": namespace}
    }))
}

fn run(
    mapping: &DomainMapping,
    claim: Option<&ClusterDomainClaim>,
    ingress: Option<&Ingress>,
    target: bool,
) -> Plan {
    plan(&Observed { mapping, claim, ingress, target }, &Configs::default(), at(1))
}

fn ingress_of(plan: &Plan) -> Ingress {
    let made = plan.then.iter().find_map(|change| match change {
        Change::Create(target, body) if target.resource.kind == "Ingress" => Some(body.clone()),
        _ => None,
    });
    object(made.expect("an Ingress is made"))
}

#[test]
fn the_host_leads_to_the_target_through_the_gateway() {
    let mapping = mapping(hello());
    let plan = run(&mapping, Some(&claim("default")), None, true);
    assert_eq!(summary(&plan), ["create Ingress/shop.example.org"]);
    assert_eq!(condition(&plan, "IngressReady"), pair("Unknown", "IngressNotConfigured"));
    assert_eq!(condition(&plan, "CertificateProvisioned"), pair("True", "TLSNotEnabled"));
    assert_eq!(plan.status.as_ref().expect("a status")["url"], "http://shop.example.org");
    let mut ingress = ingress_of(&plan);
    let path = &ingress.spec.rules[0].http.as_ref().expect("paths").paths[0];
    assert_eq!(path.rewrite_host.as_deref(), Some("hello.default.svc.cluster.local"));
    assert_eq!(path.append_headers["K-Original-Host"], "shop.example.org");
    // The gateway serves it.
    ingress.metadata.generation = Some(1);
    let served: Ingress = with_status(&ingress, ready("True", None));
    let plan = run(&mapping, Some(&claim("default")), Some(&served), true);
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready"), pair("True", ""));
}

#[test]
fn a_host_belongs_to_one_namespace() {
    let taken = run(&mapping(hello()), Some(&claim("other")), None, true);
    assert_eq!(condition(&taken, "DomainClaimed"), pair("False", "DomainAlreadyClaimed"));
    assert_eq!(condition(&taken, "Ready"), pair("False", "DomainAlreadyClaimed"));
    let unclaimed = run(&mapping(hello()), None, None, true);
    assert_eq!(condition(&unclaimed, "DomainClaimed"), pair("False", "DomainClaimNotOwned"));
    assert_eq!((summary(&taken), summary(&unclaimed)), (Vec::new(), Vec::new()), "it is not served");
    let mut configs = Configs::default();
    configs.network.autocreate_cluster_domain_claims = true;
    let observed = Observed { mapping: &mapping(hello()), claim: None, ingress: None, target: true };
    let plan = plan(&observed, &configs, at(1));
    let made = ["create ClusterDomainClaim/shop.example.org", "create Ingress/shop.example.org"];
    assert_eq!(summary(&plan), made);
    assert_eq!(condition(&plan, "DomainClaimed"), pair("True", ""));
}

#[test]
fn what_it_refers_to_must_be_there() {
    let plan = run(&mapping(hello()), Some(&claim("default")), None, false);
    assert_eq!(condition(&plan, "ReferenceResolved"), pair("False", "ResolveFailed"));
    assert_eq!(summary(&plan), [""; 0]);
}

#[test]
fn an_ingress_of_somebody_else_is_left_alone() {
    let mapping = mapping(hello());
    let mut ingress = ingress_of(&run(&mapping, Some(&claim("default")), None, true));
    ingress.metadata.owner_references = None;
    let plan = run(&mapping, Some(&claim("default")), Some(&ingress), true);
    assert_eq!(condition(&plan, "IngressReady"), pair("False", "NotOwned"));
    assert_eq!(summary(&plan), [""; 0]);
}

#[test]
fn a_certificate_that_is_there_is_used() {
    let mut spec = hello();
    spec["tls"] = json!({"secretName": "cert"});
    let plan = run(&mapping(spec), Some(&claim("default")), None, true);
    let provided = pair("True", "TLSCertificateProvidedExternally");
    assert_eq!(condition(&plan, "CertificateProvisioned"), provided);
    assert_eq!(plan.status.as_ref().expect("a status")["url"], "https://shop.example.org");
    let tls = &ingress_of(&plan).spec.tls[0];
    assert_eq!(
        (tls.hosts.as_slice(), tls.secret_name.as_str()),
        (&["shop.example.org".to_owned()][..], "cert")
    );
    assert_eq!(tls.secret_namespace.as_deref(), Some("default"));
}
