use serde_json::{Value, json};

use super::*;
use crate::plan::Change;
use crate::testing::{at, condition, object, pair, ready, summary, with_status};
use ebb_api::networking::HttpOption;

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

const THERE: Target<'static> = Target::Address(Some("http://hello.default.svc.cluster.local"));

struct Scene {
    mapping: DomainMapping,
    claim: Option<ClusterDomainClaim>,
    ingress: Option<Ingress>,
    certificate: Option<Certificate>,
    target: Target<'static>,
    configs: Configs,
}

impl Scene {
    fn new(spec: Value) -> Self {
        Self {
            mapping: mapping(spec),
            claim: Some(claim("default")),
            ingress: None,
            certificate: None,
            target: THERE,
            configs: Configs::default(),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> &mut Self {
        self.configs
            .set("config-network", &[(key.to_owned(), value.to_owned())].into())
            .expect("a good config");
        self
    }

    fn run(&self) -> Plan {
        let observed = Observed {
            mapping: &self.mapping,
            claim: self.claim.as_ref(),
            ingress: self.ingress.as_ref(),
            certificate: self.certificate.as_ref(),
            target: self.target,
        };
        plan(&observed, &self.configs, at(1))
    }

    /// The condition, when everything else is as it should be.
    fn says(&self, type_: &str) -> (String, String) {
        condition(&self.run(), type_)
    }
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
    let mut scene = Scene::new(hello());
    let plan = scene.run();
    assert_eq!(summary(&plan), ["create Ingress/shop.example.org"]);
    assert_eq!(condition(&plan, "IngressReady"), pair("Unknown", "IngressNotConfigured"));
    assert_eq!(condition(&plan, "CertificateProvisioned"), pair("True", "TLSNotEnabled"));
    assert_eq!(plan.status.as_ref().expect("a status")["url"], "http://shop.example.org");
    let mut ingress = ingress_of(&plan);
    let path = &ingress.spec.rules[0].http.as_ref().expect("paths").paths[0];
    assert_eq!(path.rewrite_host.as_deref(), Some("hello.default.svc.cluster.local"));
    assert_eq!(path.splits[0].append_headers["K-Original-Host"], "shop.example.org");
    // The gateway serves it.
    ingress.metadata.generation = Some(1);
    scene.ingress = Some(with_status(&ingress, ready("True", None)));
    let plan = scene.run();
    assert_eq!(summary(&plan), [""; 0]);
    assert_eq!(condition(&plan, "Ready"), pair("True", ""));
    assert_eq!(plan.notes.iter().map(|n| n.reason).collect::<Vec<_>>(), ["Ready"]);
}

#[test]
fn a_new_generation_is_not_ready_by_what_was_said_before() {
    let mut scene = Scene::new(hello());
    scene.mapping = with_status(&scene.mapping, ready("True", None));
    scene.mapping.metadata.generation = Some(2);
    scene.target = Target::Missing;
    let plan = scene.run();
    assert_eq!(condition(&plan, "IngressReady"), pair("Unknown", "IngressNotConfigured"));
    assert_eq!(condition(&plan, "Ready"), pair("False", "ResolveFailed"));
}

#[test]
fn a_host_belongs_to_one_namespace() {
    let mut scene = Scene::new(hello());
    scene.claim = Some(claim("other"));
    assert_eq!(scene.says("DomainClaimed"), pair("False", "DomainAlreadyClaimed"));
    assert_eq!(scene.says("Ready"), pair("False", "DomainAlreadyClaimed"));
    assert_eq!(summary(&scene.run()), [""; 0], "it is not served");
    scene.claim = None;
    assert_eq!(scene.says("DomainClaimed"), pair("False", "DomainAlreadyClaimed"));
    assert_eq!(summary(&scene.run()), [""; 0]);
    scene.set("autocreate-cluster-domain-claims", "true");
    // It is served when the claim has come back: somebody else's may be there first.
    assert_eq!(summary(&scene.run()), ["create ClusterDomainClaim/shop.example.org"]);
    assert_eq!(scene.says("DomainClaimed"), pair("Unknown", "Claiming"));
    scene.claim = Some(claim("other"));
    assert_eq!(scene.says("DomainClaimed"), pair("False", "DomainAlreadyClaimed"));
}

#[test]
fn a_claim_goes_with_the_mapping_that_it_was_made_for() {
    let mut scene = Scene::new(hello());
    scene.claim = None;
    scene.set("autocreate-cluster-domain-claims", "true");
    let plan = scene.run();
    let [Change::Create(_, body)] = plan.then.as_slice() else { panic!("a claim is made") };
    let made: ClusterDomainClaim = object(body.clone());
    assert_eq!(made.spec.namespace, "default");
    assert_eq!(summary(&release(&made, Some(&scene.mapping))), [""; 0]);
    assert_eq!(summary(&release(&made, None)), ["delete ClusterDomainClaim/shop.example.org"]);
    assert_eq!(summary(&release(&claim("default"), None)), [""; 0], "an administrator's stays");
}

#[test]
fn what_it_refers_to_must_be_there() {
    for (target, serves) in [
        (Target::Missing, false),
        (Target::Unknown, false),
        (Target::Address(None), false),
        (THERE, true),
        (Target::Service, true),
    ] {
        let mut scene = Scene::new(hello());
        scene.target = target;
        let want = if serves { pair("True", "") } else { pair("False", "ResolveFailed") };
        assert_eq!(scene.says("ReferenceResolved"), want, "{target:?}");
        assert_eq!(summary(&scene.run()).is_empty(), !serves, "{target:?}");
    }
    let mut spec = hello();
    spec["ref"]["namespace"] = json!("other");
    assert_eq!(Scene::new(spec.clone()).says("ReferenceResolved"), pair("False", "ResolveFailed"));
    spec["ref"]["namespace"] = json!("default");
    assert_eq!(Scene::new(spec).says("ReferenceResolved"), pair("True", ""));
}

#[test]
fn an_ingress_of_somebody_else_is_left_alone() {
    let mut scene = Scene::new(hello());
    let mut ingress = ingress_of(&scene.run());
    ingress.metadata.owner_references = None;
    scene.ingress = Some(ingress);
    assert_eq!(scene.says("IngressReady"), pair("False", "NotOwned"));
    assert_eq!(summary(&scene.run()), [""; 0]);
}

#[test]
fn a_certificate_that_is_there_is_used() {
    let mut spec = hello();
    spec["tls"] = json!({"secretName": "cert"});
    let mut scene = Scene::new(spec);
    assert_eq!(scene.says("CertificateProvisioned"), pair("True", "CertificateExternallyProvided"));
    assert_eq!(scene.run().status.expect("a status")["url"], "https://shop.example.org");
    let ingress = ingress_of(&scene.run());
    let tls = &ingress.spec.tls[0];
    assert_eq!(
        (tls.hosts.as_slice(), tls.secret_name.as_str()),
        (&["shop.example.org".to_owned()][..], "cert")
    );
    assert_eq!(tls.secret_namespace.as_deref(), Some("default"));
    assert_eq!(ingress.spec.http_option, Some(HttpOption::Enabled));
    scene.set("http-protocol", "redirected");
    assert_eq!(ingress_of(&scene.run()).spec.http_option, Some(HttpOption::Redirected));
    let own = ("networking.knative.dev/http-protocol".to_owned(), "enabled".to_owned());
    scene.mapping.metadata.annotations.get_or_insert_default().extend([own]);
    assert_eq!(ingress_of(&scene.run()).spec.http_option, Some(HttpOption::Enabled));
}

#[test]
fn a_certificate_is_asked_for() {
    let mut scene = Scene::new(hello());
    scene.set("external-domain-tls", "enabled");
    let plan = scene.run();
    assert_eq!(summary(&plan), ["create Certificate/shop.example.org", "create Ingress/shop.example.org"]);
    assert_eq!(condition(&plan, "CertificateProvisioned"), pair("True", "HTTPDowngrade"));
    assert_eq!(plan.status.as_ref().expect("a status")["url"], "http://shop.example.org");
    let Change::Create(_, body) = &plan.then[0] else { panic!("a Certificate is made") };
    let mut certificate: Certificate = object(body.clone());
    assert_eq!(certificate.spec.dns_names, ["shop.example.org"]);
    certificate.metadata.generation = Some(1);
    scene.certificate = Some(with_status(&certificate, ready("True", None)));
    let plan = scene.run();
    assert_eq!(condition(&plan, "CertificateProvisioned"), pair("True", ""));
    assert_eq!(plan.status.as_ref().expect("a status")["url"], "https://shop.example.org");
    assert_eq!(ingress_of(&plan).spec.tls[0].secret_name, "shop.example.org");
    scene.certificate = Some(with_status(&certificate, ready("False", Some("Denied"))));
    assert_eq!(scene.says("CertificateProvisioned"), pair("False", "CertificateProvisionFailed"));
}
