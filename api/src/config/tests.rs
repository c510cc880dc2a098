use std::time::Duration;

use super::*;

fn data(pairs: &[(&str, &str)]) -> Data {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn bad_values_name_their_key() {
    for (map, key, value) in [
        ("config-autoscaler", "stable-window", "5s"),
        ("config-autoscaler", "stable-window", "soon"),
        ("config-autoscaler", "max-scale-up-rate", "1"),
        ("config-autoscaler", "panic-threshold-percentage", "109"),
        ("config-autoscaler", "target-burst-capacity", "-2"),
        ("config-autoscaler", "initial-scale", "0"),
        ("config-autoscaler", "scale-to-zero-grace-period", "0s"),
        ("config-autoscaler", "enable-scale-to-zero", "maybe"),
        ("config-defaults", "revision-timeout-seconds", "601"),
        ("config-defaults", "container-concurrency", "1001"),
        ("config-defaults", "revision-cpu-request", "lots"),
        ("config-deployment", "queue-sidecar-image", ""),
        ("config-deployment", "runtime-class-name", "Bad Name"),
        ("config-domain", "not_a_domain", ""),
        ("config-features", "multi-container", "perhaps"),
        ("config-gc", "retain-since-create-time", "long"),
        ("config-gc", "min-non-active-revisions", "1001"),
        ("config-leader-election", "buckets", "11"),
        ("config-network", "domain-template", "{{.Name}}_{{.Domain}}"),
        ("config-network", "tag-template", "{{.Tag}}"),
        (
            "config-network",
            "namespace-wildcard-cert-selector",
            "{matchExpressions: [{key: a, operator: Is}]}",
        ),
        ("config-network", "namespace-wildcard-cert-selector", "[1"),
        ("config-certmanager", "issuerRef", "ClusterIssuer"),
        ("config-certmanager", "issuerRef", "kind: ClusterIssuer"),
        ("config-domain", "example.com", "type: wild"),
        ("config-network", "tag-template", "{{.Tag"),
        ("config-network", "rollout-duration", "-1"),
        ("config-network", "http-protocol", "disabledish"),
        ("config-network", "external-url-port", "70000"),
        ("config-network", "mesh-compatibility-mode", "perhaps"),
        ("config-network", "mtls-mode", "sometimes"),
        ("config-network", "gateway-proxy-protocol", "http,ftp"),
        ("config-observability", "tracing-sampling-rate", "2"),
    ] {
        let errors = Configs::default().set(map, &data(&[(key, value)])).expect_err(key);
        assert!(errors.iter().any(|e| e.key == key), "{map} {key}={value}: {errors:?}");
    }
}

#[test]
fn a_bad_map_changes_nothing() {
    let mut configs = Configs::default();
    configs.set("config-gc", &data(&[("min-non-active-revisions", "3")])).expect("good");
    configs.set("config-gc", &data(&[("min-non-active-revisions", "x")])).expect_err("bad");
    assert_eq!(configs.gc.min_non_active_revisions, 3);
}

#[test]
fn both_spellings_and_percentages() {
    let config = Autoscaler::parse(&data(&[
        ("stableWindow", "30s"),
        ("container-concurrency-target-percentage", "80"),
    ]))
    .expect("good");
    assert_eq!(config.stable_window, Duration::from_secs(30));
    assert!((config.container_concurrency_target_fraction - 0.8).abs() < 1e-9);
}

#[test]
fn the_domain_with_the_most_labels_wins() {
    let config = Domain::parse(&data(&[
        ("example.com", ""),
        ("prod.example.com", "selector:\n  app: prod\n"),
        ("eu.example.com", "selector:\n  app: prod\n  zone: eu\n"),
        ("_example", "anything: {"),
    ]))
    .expect("good");
    let labels = |pairs: &[(&str, &str)]| data(pairs);
    assert_eq!(config.domain_for(None), "example.com");
    assert_eq!(config.domain_for(Some(&labels(&[("app", "prod")]))), "prod.example.com");
    assert_eq!(config.domain_for(Some(&labels(&[("app", "prod"), ("zone", "eu")]))), "eu.example.com");
    assert_eq!(
        config.domain_for(Some(&labels(&[("networking.knative.dev/visibility", "cluster-local")]))),
        "svc.cluster.local"
    );
}

#[test]
fn urls_carry_a_port_that_is_not_the_schemes() {
    let config = Network::parse(&data(&[("external-url-port", "8080")])).expect("good");
    assert_eq!(config.external_url("http", "a.b.localhost"), "http://a.b.localhost:8080");
    let config = Network::parse(&data(&[("external-url-port", "80")])).expect("good");
    assert_eq!(config.external_url("http", "a.b.localhost"), "http://a.b.localhost");
    assert_eq!(config.host("a", "b", "localhost", None, None), "a.b.localhost");
    assert_eq!(config.tag_name("a", "v1"), "v1-a");
}

#[test]
fn the_runtime_class_with_the_most_labels_wins() {
    let parse = |raw: &str| {
        let found = Deployment::parse(&data(&[("queue-sidecar-image", "x"), ("runtime-class-name", raw)]));
        found.expect("good")
    };
    let labels = data(&[("team", "a"), ("tier", "x")]);
    assert_eq!(parse("gvisor").runtime_class(None).as_deref(), Some("gvisor"));
    let several = parse("kata:\n  selector:\n    team: a\nanother:\n  selector:\n    team: a\ngvisor: {}\n");
    assert_eq!(several.runtime_class(Some(&labels)).as_deref(), Some("another"));
    assert_eq!(several.runtime_class(None).as_deref(), Some("gvisor"));
    assert_eq!(parse("").runtime_class(None), None);
}

#[test]
fn templates_of_what_routes_carry() {
    for template in [
        "{{.Name}}.{{.Domain}}",
        r#"{{.Name}}.{{index .Annotations "sub"}}.{{.Namespace}}.{{.Domain}}"#,
        "{{.Labels.team}}.{{.Domain}}",
    ] {
        Network::parse(&data(&[("domain-template", template)])).expect(template);
    }
}

#[test]
fn domains_with_a_wildcard() {
    let config = Domain::parse(&data(&[
        ("example.com", ""),
        ("prod.example.com", "selector:\n  app: prod\n"),
        ("eu.example.com", "selector:\n  zone: eu\ntype: wildcard\n"),
        ("svc.cluster.local", "selector:\n  app: secret\ntype: wildcard\n"),
    ]))
    .expect("good");
    assert_eq!(config.with_wildcard().collect::<Vec<_>>(), ["eu.example.com", "example.com"]);
    let config =
        CertManager::parse(&data(&[("issuerRef", "kind: Issuer\nname: letsencrypt\n")])).expect("good");
    assert_eq!(
        (config.issuer_ref.kind.as_deref(), config.issuer_ref.name.as_str()),
        (Some("Issuer"), "letsencrypt")
    );
}
