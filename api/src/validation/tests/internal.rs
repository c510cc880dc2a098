//! The kinds between the components.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::*;
use crate::defaults;

fn object<K: DeserializeOwned>(spec: &Value) -> K {
    serde_json::from_value(json!({
        "apiVersion": "x/v1alpha1", "kind": "X", "metadata": {"name": "hello", "namespace": "default"}, "spec": spec
    }))
    .expect("it parses")
}

#[test]
fn ingresses() {
    let split = |percent: i32| json!({"serviceName": "a", "serviceNamespace": "default", "servicePort": 80, "percent": percent});
    let with = |splits: Value| json!({"rules": [{"hosts": ["a"], "http": {"paths": [{"splits": splits}]}}]});
    let at = "spec.rules[0].http.paths[0].splits";
    for (spec, want) in [
        (with(json!([split(100)])), String::new()),
        (with(json!([split(0)])), String::new()),
        (json!({}), "missing field(s): spec".into()),
        (json!({"httpOption": "Redirected"}), "missing field(s): spec.rules".into()),
        (json!({"rules": [{"hosts": ["a"]}]}), "missing field(s): spec.rules[0].http".into()),
        (
            json!({"rules": [{"hosts": ["a"], "http": {"paths": []}}]}),
            "missing field(s): spec.rules[0].http.paths".into(),
        ),
        (
            with(json!([split(60), split(60)])),
            format!("traffic split percentage must total to 100, but was 120: {at}"),
        ),
        (with(json!([split(101)])), format!("invalid value: 101: {at}[0].percent")),
        (
            with(json!([{"serviceName": "", "serviceNamespace": "other", "servicePort": 0}])),
            format!(
                "missing field(s): {at}[0].serviceName, {at}[0].servicePort\nservice namespace must match ingress namespace: {at}[0].serviceNamespace"
            ),
        ),
        (
            json!({"rules": with(json!([split(100)]))["rules"], "tls": [{"hosts": ["a"]}]}),
            "missing field(s): spec.tls[0].secretName, spec.tls[0].secretNamespace".into(),
        ),
    ] {
        assert_eq!(ingress(&object(&spec)).to_string(), want, "{spec}");
    }
    let mut filled: crate::networking::Ingress = object(&with(json!([split(0)])));
    defaults::ingress(&mut filled);
    let paths = &filled.spec.rules[0].http.as_ref().expect("paths").paths;
    assert_eq!(paths[0].splits[0].percent, 100);
}

#[test]
fn the_other_kinds() {
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"});
    let configs = Configs::default();
    for (found, want) in [
        (certificate(&object(&json!({"dnsNames": ["a.b"], "secretName": "s", "domain": "b"}))), ""),
        (
            certificate(&object(&json!({"dnsNames": [], "secretName": ""}))),
            "missing field(s): spec.dnsNames, spec.secretName",
        ),
        (
            certificate(&object(&json!({"dnsNames": ["a", ""], "secretName": "s"}))),
            "invalid value: : spec.dnsNames[1]",
        ),
        (
            certificate(&object(&json!({"dnsNames": ["a.b"], "secretName": "s", "domain": "c"}))),
            "invalid value: c: spec.domain\nmust be one of dnsNames, or what one of them ends with after a dot",
        ),
        (serverless_service(&object(&json!({"objectRef": target}))), ""),
        (
            serverless_service(&object(
                &json!({"objectRef": {"kind": "1", "name": "a", "namespace": "b"}, "numActivators": -1}),
            )),
            "invalid value: -1: spec.numActivators\ninvalid value: a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*'): spec.objectRef.kind\nmissing field(s): spec.objectRef.apiVersion\nmust not set the field(s): spec.objectRef.namespace",
        ),
        (pod_autoscaler(&object(&json!({"scaleTargetRef": target})), &configs), ""),
        (
            pod_autoscaler(
                &object(&json!({"scaleTargetRef": target, "containerConcurrency": 2000})),
                &configs,
            ),
            "expected 0 <= 2000 <= 1000: spec.containerConcurrency",
        ),
        (image(&object(&json!({"image": ""}))), "missing field(s): spec.image"),
        (
            image(&object(&json!({"image": "a", "imagePullSecrets": [{"name": "a"}, {}]}))),
            "missing field(s): spec.imagePullSecrets[1].name",
        ),
    ] {
        assert_eq!(found.to_string(), want);
    }
    let mut scaler = object(&json!({"scaleTargetRef": target}));
    defaults::pod_autoscaler(&mut scaler, &configs);
    let annotations = scaler.metadata.annotations.unwrap_or_default();
    assert_eq!(annotations["autoscaling.knative.dev/metric"], "concurrency");
}
