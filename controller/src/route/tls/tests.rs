use std::sync::Arc;

use ebb_api::config::Network;
use ebb_api::meta::networking::{CLUSTER_LOCAL, VISIBILITY, WILDCARD_DOMAIN};
use ebb_api::networking::{Certificate, HttpOption};
use serde_json::json;

use crate::route::tests::{Scene, canary, latest};
use crate::testing::{object, pair, ready, summary, with_status};

fn tls(scene: &mut Scene, settings: &[(&str, &str)]) {
    let data = settings.iter().chain(&[("external-domain-tls", "enabled")]);
    let data = data.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    scene.configs.network = Network::parse(&data).expect("a good config");
}

/// What the signer says of all Certificates.
fn say(scene: &mut Scene, status: &str, reason: Option<&str>) {
    for certificate in &mut scene.certificates {
        let mut said: Certificate = with_status(&**certificate, ready(status, reason));
        said.metadata.generation = Some(1);
        *certificate = Arc::new(said);
    }
}

fn provisioned(scene: &Scene) -> (String, String) {
    scene.says("CertificateProvisioned")
}

#[test]
fn what_is_said_where_there_is_no_tls() {
    let mut scene = Scene::new(latest());
    assert_eq!(provisioned(&scene), pair("True", "TLSNotEnabled"));
    tls(&mut scene, &[]);
    scene.route.metadata.labels.get_or_insert_default().insert(VISIBILITY.into(), CLUSTER_LOCAL.into());
    assert_eq!(provisioned(&scene), pair("True", "TLSNotEnabled"), "nobody comes from outside");
    let mut scene = Scene::new(latest());
    tls(&mut scene, &[]);
    let off = ("networking.knative.dev/disable-external-domain-tls".to_owned(), "true".to_owned());
    scene.route.metadata.annotations.get_or_insert_default().extend([off]);
    assert_eq!(provisioned(&scene), pair("True", "TLSNotEnabled"));
    assert!(!summary(&scene.run()).iter().any(|change| change.contains("Certificate")));
}

#[test]
fn a_certificate_for_each_host() {
    let mut scene = Scene::new(canary());
    tls(&mut scene, &[]);
    scene.settle("True");
    let names: Vec<_> = scene.certificates.iter().map(|c| c.spec.dns_names.join(",")).collect();
    assert_eq!(
        names,
        ["hello.default.example.com", "canary-hello.default.example.com", "stable-hello.default.example.com"]
    );
    let first = &scene.certificates[0];
    assert_eq!(
        (first.metadata.name.as_deref(), first.spec.secret_name.as_str()),
        (Some("route-route-uid"), "route-route-uid")
    );
    assert_eq!(
        first.metadata.annotations.as_ref().expect("annotations")["networking.knative.dev/certificate.class"],
        "ebb.certificate.networking.knative.dev"
    );
    // Plain HTTP is served until they are there.
    assert_eq!(provisioned(&scene), pair("True", "HTTPDowngrade"));
    let url = |scene: &Scene| scene.route.status.as_ref().and_then(|s| s.url.clone()).expect("a URL");
    assert_eq!(url(&scene), "http://hello.default.example.com");
    assert!(scene.ingress.as_ref().expect("an Ingress").spec.tls.is_empty());

    say(&mut scene, "True", None);
    scene.settle("True");
    scene.settle("True");
    assert_eq!(url(&scene), "https://hello.default.example.com");
    assert_eq!(scene.says("Ready"), pair("True", ""));
    let ingress = scene.ingress.clone().expect("an Ingress");
    assert_eq!(ingress.spec.tls.len(), 3);
    assert_eq!(ingress.spec.tls[0].secret_name, "route-route-uid");
    assert_eq!(ingress.spec.http_option, Some(HttpOption::Enabled));
    let traffic = scene.route.status.as_ref().expect("a status").traffic.clone();
    assert_eq!(traffic[1].url.as_deref(), Some("https://canary-hello.default.example.com"));

    // A tag that goes takes its Certificate along.
    scene.route.spec.traffic = serde_json::from_value(latest()).expect("traffic");
    let deleted: Vec<_> =
        summary(&scene.run()).into_iter().filter(|c| c.starts_with("delete Certificate")).collect();
    assert_eq!(deleted.len(), 2);
}

#[test]
fn how_far_it_is() {
    for (protocol, status, want, scheme) in [
        ("enabled", "Unknown", pair("True", "HTTPDowngrade"), "http"),
        ("enabled", "False", pair("False", "CertificateProvisionFailed"), "http"),
        ("redirected", "Unknown", pair("Unknown", "CertificateNotReady"), "https"),
        ("redirected", "False", pair("False", "CertificateProvisionFailed"), "https"),
    ] {
        let mut scene = Scene::new(latest());
        tls(&mut scene, &[("http-protocol", protocol)]);
        scene.settle("True");
        say(&mut scene, status, Some("Because"));
        scene.settle("True");
        assert_eq!(provisioned(&scene), want, "{protocol} {status}");
        let url = scene.route.status.as_ref().and_then(|s| s.url.clone()).expect("a URL");
        assert!(url.starts_with(&format!("{scheme}://")), "{protocol} {status}: {url}");
    }
}

#[test]
fn one_bad_host_is_not_hidden_by_a_good_one() {
    let mut scene = Scene::new(canary());
    tls(&mut scene, &[]);
    scene.settle("True");
    say(&mut scene, "True", None);
    let mut bad: Certificate = with_status(&*scene.certificates[0], ready("False", Some("Denied")));
    bad.metadata.generation = Some(1);
    scene.certificates[0] = Arc::new(bad);
    assert_eq!(provisioned(&scene), pair("False", "CertificateProvisionFailed"));
    let mut foreign = (*scene.certificates[1]).clone();
    foreign.metadata.owner_references = None;
    scene.certificates[1] = Arc::new(foreign);
    assert_eq!(provisioned(&scene), pair("False", "CertificateNotOwned"));
}

#[test]
fn plain_http_is_redirected_where_that_is_asked_for() {
    let option = |settings: &[(&str, &str)], annotation: Option<&str>| {
        let mut scene = Scene::new(latest());
        tls(&mut scene, settings);
        let own = annotation.map(|a| ("networking.knative.dev/http-protocol".to_owned(), a.to_owned()));
        scene.route.metadata.annotations.get_or_insert_default().extend(own);
        scene.settle("True");
        scene.ingress.and_then(|i| i.spec.http_option)
    };
    assert_eq!(option(&[], None), Some(HttpOption::Enabled));
    assert_eq!(option(&[("http-protocol", "redirected")], None), Some(HttpOption::Redirected));
    assert_eq!(option(&[("http-protocol", "redirected")], Some("enabled")), Some(HttpOption::Enabled));
    assert_eq!(option(&[], Some("Redirected")), Some(HttpOption::Redirected));
    let off = [("external-domain-tls", "disabled"), ("http-protocol", "redirected")];
    let mut scene = Scene::new(latest());
    let data = off.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    scene.configs.network = Network::parse(&data).expect("a good config");
    scene.settle("True");
    assert_eq!(
        scene.ingress.and_then(|i| i.spec.http_option),
        Some(HttpOption::Enabled),
        "there is nowhere to go"
    );
}

#[test]
fn a_wildcard_of_the_namespace_is_taken() {
    let mut scene = Scene::new(latest());
    tls(&mut scene, &[]);
    let wildcard: Certificate = object(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Certificate",
        "metadata": {
            "name": "default.example.com", "namespace": "default", "generation": 1,
            "labels": {WILDCARD_DOMAIN: "example.com"}
        },
        "spec": {"dnsNames": ["*.default.example.com"], "secretName": "default.example.com"}
    }));
    scene.certificates.push(Arc::new(with_status(&wildcard, ready("True", None))));
    scene.settle("True");
    assert_eq!(scene.certificates.len(), 1, "no other is asked for");
    let tls = scene.ingress.as_ref().expect("an Ingress").spec.tls.clone();
    assert_eq!(
        (tls[0].hosts.clone(), tls[0].secret_name.as_str()),
        (vec!["hello.default.example.com".to_owned()], "default.example.com")
    );
}
