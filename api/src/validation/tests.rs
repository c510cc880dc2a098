use serde_json::{Value, json};

use super::*;
use crate::defaults;
use crate::serving::DomainMapping;

mod internal;
mod pods;

fn ksvc(spec: Value) -> Service {
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "default"}, "spec": spec
    }))
    .expect("it parses")
}

fn verdict(mut object: Service, configs: &Configs) -> String {
    defaults::service(&mut object, None, configs, Some("jo"));
    service(&object, None, configs).errors().to_string()
}

fn container(fields: &Value) -> Value {
    let mut container = json!({"image": "hello"});
    for (key, value) in fields.as_object().expect("fields") {
        container[key] = value.clone();
    }
    json!({"template": {"spec": {"containers": [container]}}})
}

#[test]
fn containers() {
    let at = "spec.template.spec.containers[0]";
    for (fields, want) in [
        (json!({}), String::new()),
        (json!({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}), format!("must not set the field(s): {at}.lifecycle")),
        (json!({"stdin": true, "tty": true}), format!("must not set the field(s): {at}.stdin, {at}.tty")),
        (json!({"image": ""}), format!("missing field(s): {at}.image")),
        (json!({"name": "queue-proxy"}), format!("\"queue-proxy\" is a reserved container name: {at}.name")),
        (json!({"ports": [{"containerPort": 8012}]}), format!("invalid value: 8012 is a reserved port: {at}.ports.containerPort\n8012 is a reserved port, please use a different value")),
        (json!({"ports": [{"containerPort": 70000}]}), format!("expected 0 <= 70000 <= 65535: {at}.ports.containerPort")),
        (json!({"ports": [{"containerPort": 80, "hostPort": 80}]}), format!("must not set the field(s): {at}.ports.hostPort")),
        (json!({"ports": [{"containerPort": 80, "name": "grpc"}]}), format!("Port name grpc is not allowed: {at}.ports\nName must be empty, or one of: 'h2c', 'http1'")),
        (json!({"ports": [{"containerPort": 80, "protocol": "UDP"}]}), format!("invalid value: UDP: {at}.ports.protocol")),
        (json!({"ports": [{"containerPort": 80, "name": "h2c"}]}), String::new()),
        (json!({"ports": [{"containerPort": 80}, {"containerPort": 81}]}), "more than one container port is set: spec.template.spec.containers[*].ports\nOnly a single port is allowed across all containers".into()),
        (json!({"env": [{"name": "PORT", "value": "1"}]}), format!("\"PORT\" is a reserved environment variable: {at}.env[0].name")),
        (json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}), format!("must not set the field(s): {at}.env[0].valueFrom.fieldRef")),
        (json!({"envFrom": [{}]}), format!("expected exactly one, got neither: {at}.envFrom.configMapRef, {at}.envFrom.secretRef")),
        (json!({"readinessProbe": {"periodSeconds": 0, "timeoutSeconds": 1}}), format!("timeoutSeconds is disallowed when periodSeconds is zero: {at}.readinessProbe.timeoutSeconds")),
        (json!({"readinessProbe": {"httpGet": {"path": "/"}, "periodSeconds": 5}}), String::new()),
        (json!({"livenessProbe": {}}), format!("expected exactly one, got neither: {at}.livenessProbe.exec, {at}.livenessProbe.grpc, {at}.livenessProbe.httpGet, {at}.livenessProbe.tcpSocket")),
        (json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}), format!("volumeMount has no matching volume: {at}.volumeMounts[0].name")),
        (json!({"securityContext": {"privileged": true}}), format!("must not set the field(s): {at}.securityContext.privileged")),
        (json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}), format!("must not set the field(s): {at}.securityContext.capabilities.add")),
        (json!({"resources": {"limits": {"cpu": "lots"}}}), format!("invalid value: lots: {at}.resources.limits.cpu")),
    ] {
        assert_eq!(verdict(ksvc(container(&fields)), &Configs::default()), want, "{fields}");
    }
}

#[test]
fn image_names() {
    for (image, good) in [
        ("hello", true),
        ("hello:v1", true),
        ("localhost:5000/a/b:v1", true),
        ("ghcr.io/a/b@sha256:0123456789012345678901234567890123456789012345678901234567890123", true),
        ("Hello", false),
        ("a:b:c", false),
        ("a@sha256:1", false),
        ("a//b", false),
        ("hello world", false),
    ] {
        let found = verdict(ksvc(container(&json!({"image": image}))), &Configs::default());
        assert_eq!(found.is_empty(), good, "{image}: {found}");
    }
}

#[test]
fn revision_fields() {
    let with = |key: &str, value: Value| {
        let mut spec = container(&json!({}));
        spec["template"]["spec"][key] = value;
        verdict(ksvc(spec), &Configs::default())
    };
    let at = "spec.template.spec";
    assert_eq!(
        with("containerConcurrency", json!(-1)),
        format!("expected 0 <= -1 <= 1000: {at}.containerConcurrency")
    );
    assert_eq!(with("timeoutSeconds", json!(601)), format!("expected 0 <= 601 <= 600: {at}.timeoutSeconds"));
    assert_eq!(with("hostNetwork", json!(true)), format!("must not set the field(s): {at}.hostNetwork"));
    assert_eq!(
        with("nodeSelector", json!({"a": "b"})),
        format!("must not set the field(s): {at}.nodeSelector")
    );
    assert_eq!(
        with("serviceAccountName", json!("A b")).lines().next().unwrap_or_default(),
        format!("invalid value: A b: {at}.serviceAccountName")
    );
    assert_eq!(with("containers", json!([])), format!("missing field(s): {at}.containers"));
    assert_eq!(
        with("restartPolicy", json!("Never")),
        format!("must not set the field(s): {at}.restartPolicy")
    );
    assert_eq!(
        with("volumes", json!([{"name": "v", "hostPath": {"path": "/"}}])).lines().next().unwrap_or_default(),
        format!("HostPath volume support is disabled, but found HostPath volume v: {at}.volumes[0].hostPath")
    );
    assert_eq!(with("idleTimeoutSeconds", json!(700)), "");
    assert_eq!(
        with("idleTimeoutSeconds", json!(-1)),
        format!("expected 0 <= -1 <= 600: {at}.idleTimeoutSeconds")
    );
}

#[test]
fn feature_flags_open_fields() {
    let mut configs = Configs::default();
    let data = [("kubernetes.podspec-nodeselector".to_owned(), "enabled".to_owned())].into();
    configs.set("config-features", &data).expect("good");
    let mut spec = container(&json!({}));
    spec["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
    assert_eq!(verdict(ksvc(spec), &configs), "");
}

#[test]
fn template_annotations() {
    let at = "spec.template.metadata.annotations";
    for (key, value, want) in [
        ("min-scale", "-1", "expected 0 <= -1 <= 2147483647"),
        ("minScale", "x", "invalid value: x"),
        ("max-scale", "99999999999", "expected 0 <= 99999999999 <= 2147483647"),
        ("class", "x.knative.dev", "invalid value: x.knative.dev"),
        ("class", "x.autoscaling.knative.dev", "invalid value: x.autoscaling.knative.dev"),
        ("metric", "cpu", "invalid value: cpu"),
        ("target", "0.001", "target 0.001 should be at least 0.01"),
        ("target-utilization-percentage", "101", "expected 1 <= 101 <= 100"),
        ("window", "5s", "expected 6s <= 5s <= 1h0m0s"),
        ("window", "6500ms", "must be specified with at most second precision"),
        ("panic-window-percentage", "0", "expected 1 <= 0 <= 100"),
        ("panicThresholdPercentage", "100", "expected 110 <= 100 <= 1000"),
        ("scale-down-delay", "2h", "expected 0s <= 2h <= 1h0m0s"),
        ("target-burst-capacity", "-2", "invalid value: -2"),
        ("activation-scale", "1", "activation-scale=1 must be greater than 1"),
        ("min-scale", "2", ""),
        ("target-burst-capacity", "-1", ""),
        ("metric", "rps", ""),
    ] {
        let key = format!("autoscaling.knative.dev/{key}");
        let mut spec = container(&json!({}));
        spec["template"]["metadata"] = json!({"annotations": {key.clone(): value}});
        let want = if want.is_empty() { String::new() } else { format!("{want}: {at}.{key}") };
        assert_eq!(verdict(ksvc(spec), &Configs::default()), want);
    }
}

#[test]
fn autoscaling_annotations_belong_to_the_template() {
    let mut object = ksvc(container(&json!({})));
    object.metadata.annotations =
        Some([("autoscaling.knative.dev/min-scale".to_owned(), "1".to_owned())].into());
    let found = verdict(object, &Configs::default());
    assert!(
        found.starts_with("invalid key name \"autoscaling.knative.dev/min-scale\": metadata.annotations\n"),
        "{found}"
    );
}

#[test]
fn traffic_targets() {
    for (traffic, want) in [
        (json!([{"percent": 100, "latestRevision": true}]), ""),
        (
            json!([{"percent": 90, "revisionName": "hello-00001"}, {"percent": 10, "latestRevision": true, "tag": "new"}]),
            "",
        ),
        (json!([{"percent": 99}]), "Traffic targets sum to 99, want 100: spec.traffic"),
        (
            json!([{"percent": 101}, {"percent": -1}]),
            "expected 0 <= -1 <= 100: spec.traffic[1].percent\nexpected 0 <= 101 <= 100: spec.traffic[0].percent",
        ),
        (
            json!([{"percent": 100, "revisionName": "a", "latestRevision": true}]),
            "may not set revisionName \"a\" when latestRevision is true: spec.traffic[0].latestRevision",
        ),
        (
            json!([{"percent": 100, "configurationName": "a"}]),
            "must not set the field(s): spec.traffic[0].configurationName",
        ),
        (
            json!([{"percent": 50, "tag": "a"}, {"percent": 50, "tag": "a"}]),
            "Multiple definitions for \"a\": spec.traffic[0].tag, spec.traffic[1].tag",
        ),
        (
            json!([{"percent": 100, "tag": "a", "url": "http://x"}]),
            "must not set the field(s): spec.traffic[0].url",
        ),
    ] {
        let mut spec = container(&json!({}));
        spec["traffic"] = traffic;
        assert_eq!(verdict(ksvc(spec), &Configs::default()), want);
    }
}

#[test]
fn own_revision_names() {
    let named = |name: &str, image: &str| {
        let mut spec = container(&json!({"image": image}));
        spec["template"]["metadata"] = json!({"name": name});
        let mut object = ksvc(spec);
        defaults::service(&mut object, None, &Configs::default(), None);
        object
    };
    let configs = Configs::default();
    assert!(service(&named("hello-one", "a"), None, &configs).is_ok());
    assert_eq!(
        service(&named("other", "a"), None, &configs).errors().to_string(),
        "invalid value: \"other\" must have prefix \"hello-\": spec.template.metadata.name"
    );
    let old = named("hello-one", "a");
    let found = service(&named("hello-one", "b"), Some(&old), &configs).errors().to_string();
    assert!(
        found.starts_with(
            "Saw the following changes without a name change (-old +new): spec.template.metadata.name\n"
        ),
        "{found}"
    );
    assert!(service(&named("hello-two", "b"), Some(&old), &configs).is_ok());
}

#[test]
fn revisions_do_not_change() {
    let old: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": "hello-00001"},
        "spec": {"containers": [{"name": "user-container", "image": "a"}]}
    }))
    .expect("it parses");
    let mut new = old.clone();
    assert!(revision(&new, Some(&old), &Configs::default()).is_ok());
    new.spec.pod.containers[0].image = Some("b".into());
    let found = revision(&new, Some(&old), &Configs::default()).to_string();
    assert_eq!(
        found,
        "Immutable fields changed (-old +new): spec\n-containers[0].image: \"a\"\n+containers[0].image: \"b\""
    );
}

#[test]
fn creators_do_not_change() {
    let configs = Configs::default();
    let mut old = ksvc(container(&json!({})));
    defaults::service(&mut old, None, &configs, Some("jo"));
    let mut new = old.clone();
    new.metadata.annotations.get_or_insert_default().insert(serving::CREATOR.into(), "mallory".into());
    let found = service(&new, Some(&old), &configs).errors().to_string();
    assert_eq!(found, "annotation value is immutable: metadata.annotations.serving.knative.dev/creator");
}

#[test]
fn annotations_that_only_a_template_or_nobody_has() {
    let with = |key: &str, value: &str, class: Option<&str>| {
        let mut spec = container(&json!({}));
        spec["template"]["metadata"]["annotations"] = json!({key: value});
        if let Some(class) = class {
            spec["template"]["metadata"]["annotations"]["autoscaling.knative.dev/class"] = json!(class);
        }
        let mut object = ksvc(spec);
        defaults::service(&mut object, None, &Configs::default(), None);
        let found = service(&object, None, &Configs::default());
        (found.errors().to_string(), found.warnings())
    };
    let at = "spec.template.metadata.annotations";
    let (errors, _) = with("networking.knative.dev/visibility", "cluster-local", None);
    assert_eq!(errors, format!("invalid key name \"networking.knative.dev/visibility\": {at}"));
    assert_eq!(with("networking.knative.dev/ingress-class", "x", None).0, "");
    let share = "queue.sidecar.serving.knative.dev/resource-percentage";
    let (errors, warnings) = with(share, "200", None);
    assert_eq!(errors, format!("expected 0.1 <= 200 <= 100: {at}.[{share}]"));
    assert!(warnings.iter().any(|w| w.contains("deprecated") && w.ends_with(&format!("{at}.[{share}]"))));
    let algorithm = "autoscaling.knative.dev/metric-aggregation-algorithm";
    let (errors, warnings) = with(algorithm, "median", None);
    assert!(errors.is_empty() && warnings.iter().any(|w| w.contains("linear is taken")), "{warnings:?}");
    let (errors, _) = with(algorithm, "median", Some("kpa.autoscaling.knative.dev"));
    assert_eq!(errors, format!("invalid value: median: {at}.{algorithm}"));
}

#[test]
fn names_of_objects() {
    let named = |name: &str, prefix: &str| {
        let mut object = ksvc(container(&json!({})));
        object.metadata.name = Some(name.to_owned());
        object.metadata.generate_name = Some(prefix.to_owned());
        verdict(object, &Configs::default())
    };
    assert_eq!(named("", "hello-"), "");
    assert_eq!(named("", ""), "name or generateName is required: metadata.name");
    assert!(named("Hello", "").starts_with("not a DNS 1035 label: [a DNS-1035 label must consist of"));
    let found = named("", "Hello-");
    assert!(
        found.starts_with("not a DNS 1035 label prefix: [") && found.ends_with(": metadata.generateName")
    );
}

#[test]
fn config_maps() {
    let data = [("stable-window".to_owned(), "1s".to_owned())].into();
    let found = config_map("config-autoscaler", None, &data).to_string();
    assert!(found.ends_with(": data[stable-window]"), "{found}");
    assert!(config_map("unknown", None, &data).is_ok());
}

#[test]
fn who_edits_the_documentation_is_told_so() {
    let data = |text: &str| [("_example".to_owned(), text.to_owned())].into();
    let noted = [(example::ANNOTATION.to_owned(), example::checksum("a: b"))].into();
    let check = |text, noted| config_map("config-gc", noted, &data(text)).to_string();
    assert_eq!(check("a: b\n", Some(&noted)), "");
    assert_eq!(check("a: c", None), "");
    let found = check("a: c", Some(&noted));
    assert!(found.starts_with("the update modifies a key in \"_example\""), "{found}");
    assert!(found.ends_with(": data._example"), "{found}");
    // The ConfigMaps that are installed carry the right sum.
    let stages = crate::manifests::manifests(&crate::manifests::Options::default());
    for map in stages.into_iter().flat_map(|stage| stage.objects) {
        if map["kind"] == "ConfigMap" && map["data"]["_example"].is_string() {
            let map: k8s_openapi::api::core::v1::ConfigMap =
                serde_json::from_value(map).expect("a ConfigMap");
            let (name, annotations) = (map.metadata.name.unwrap_or_default(), map.metadata.annotations);
            assert!(annotations.as_ref().is_some_and(|a| a.contains_key(example::ANNOTATION)), "{name}");
            let mut data = map.data.unwrap_or_default();
            data.insert("queue-sidecar-image".into(), "x".into());
            let found = config_map(&name, annotations.as_ref(), &data);
            assert!(name == "config-domain" || found.is_ok(), "{name}: {found}");
        }
    }
}

#[test]
fn domain_mappings() {
    let mapping = |name: &str| -> DomainMapping {
        serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"ref": {"kind": "Service", "name": "hello", "apiVersion": "serving.knative.dev/v1"}}
        }))
        .expect("it parses")
    };
    assert!(domain_mapping(&mapping("www.example.com"), None).is_ok());
    assert!(!domain_mapping(&mapping("example"), None).is_ok());
    assert!(!domain_mapping(&mapping("x.default.svc.cluster.local"), None).is_ok());
    let with = |change: &dyn Fn(&mut DomainMapping)| {
        let mut object = mapping("www.example.com");
        change(&mut object);
        domain_mapping(&object, None).to_string()
    };
    assert_eq!(
        with(&|o| o.spec.reference = Default::default()),
        "missing field(s): spec.ref.apiVersion, spec.ref.kind, spec.ref.name"
    );
    assert_eq!(
        with(&|o| o.spec.reference.group = Some("serving.knative.dev".into())),
        "must not set the field(s): spec.ref.group"
    );
    assert_eq!(
        with(&|o| o.spec.reference.namespace = Some("other".into())),
        "mismatched namespaces: spec.ref.namespace\nparent namespace: \"default\" does not match ref: \"other\""
    );
    assert_eq!(
        domain_mapping(&mapping("example"), None).to_string(),
        "invalid name \"example\": name: Invalid value: \"example\": should be a domain with at least two segments separated by dots: metadata.name"
    );
}
