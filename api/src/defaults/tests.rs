use serde_json::json;

use super::*;

fn ksvc(spec: serde_json::Value) -> Service {
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "default"}, "spec": spec
    }))
    .expect("it parses")
}

#[test]
fn a_bare_service_is_filled_in_and_then_left_alone() {
    let configs = Configs::default();
    let mut object = ksvc(json!({"template": {"spec": {"containers": [{"image": "hello"}]}}}));
    service(&mut object, None, &configs, Some("jo"));
    let spec = &object.spec.template.spec;
    assert_eq!(spec.timeout_seconds, Some(300));
    assert_eq!(spec.container_concurrency, Some(0));
    assert_eq!(spec.response_start_timeout_seconds, None);
    assert_eq!(spec.pod.enable_service_links, Some(false));
    let container = &spec.pod.containers[0];
    assert_eq!(container.name, "user-container");
    let probe = container.readiness_probe.as_ref().expect("a probe");
    assert_eq!((probe.success_threshold, probe.tcp_socket.is_some()), (Some(1), true));
    assert_eq!(object.spec.traffic[0].percent, Some(100));
    let annotations = object.metadata.annotations.clone().expect("user info");
    assert_eq!((annotations[CREATOR].as_str(), annotations[LAST_MODIFIER].as_str()), ("jo", "jo"));

    let once = object.clone();
    service(&mut object, Some(&once), &configs, Some("ann"));
    assert_eq!(object, once, "nothing changed, so neither does the modifier");

    object.spec.traffic[0].tag = Some("new".into());
    service(&mut object, Some(&once), &configs, Some("ann"));
    let annotations = object.metadata.annotations.clone().expect("user info");
    assert_eq!((annotations[CREATOR].as_str(), annotations[LAST_MODIFIER].as_str()), ("jo", "ann"));
}

#[test]
fn several_containers_get_distinct_names() {
    let mut object = ksvc(json!({"template": {"spec": {"containers": [
        {"image": "a", "ports": [{"containerPort": 80}]}, {"image": "b"}, {"image": "c", "name": "user-container-2"}, {"image": "d"}
    ]}}}));
    service(&mut object, None, &Configs::default(), None);
    let names: Vec<_> = object.spec.template.spec.pod.containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["user-container-0", "user-container-1", "user-container-2", "user-container-3"]);
    let probed: Vec<_> =
        object.spec.template.spec.pod.containers.iter().map(|c| c.readiness_probe.is_some()).collect();
    assert_eq!(probed, [true, false, false, false]);
}

#[test]
fn a_kept_revision_name_keeps_the_template() {
    let old = ksvc(
        json!({"template": {"metadata": {"name": "hello-a"}, "spec": {"containers": [{"image": "hello"}]}}}),
    );
    let mut object = old.clone();
    service(&mut object, Some(&old), &Configs::default(), None);
    assert_eq!(object.spec.template, old.spec.template);
    // What kubectl apply sends is the user's manifest again, without what was filled in.
    let mut stored = old.clone();
    service(&mut stored, None, &Configs::default(), None);
    let mut object = old.clone();
    service(&mut object, Some(&stored), &Configs::default(), None);
    assert_eq!(object.spec.template, stored.spec.template);
    // A change is not hidden: validation is to see and refuse it.
    let mut object = old.clone();
    object.spec.template.spec.pod.containers[0].image = Some("other".into());
    service(&mut object, Some(&stored), &Configs::default(), None);
    assert_ne!(object.spec.template, stored.spec.template);
}

#[test]
fn mounts_of_secrets_are_read_only() {
    let mut object = ksvc(json!({"template": {"spec": {
        "containers": [{"image": "a", "volumeMounts": [{"name": "s", "mountPath": "/s"}, {"name": "e", "mountPath": "/e"}]}],
        "volumes": [{"name": "s", "secret": {"secretName": "x"}}, {"name": "e", "emptyDir": {}}]
    }}}));
    service(&mut object, None, &Configs::default(), None);
    let mounts = object.spec.template.spec.pod.containers[0].volume_mounts.clone().expect("mounts");
    assert_eq!((mounts[0].read_only, mounts[1].read_only), (Some(true), None));
}

#[test]
fn secure_defaults() {
    let mut configs = Configs::default();
    configs
        .set("config-features", &[("secure-pod-defaults".to_owned(), "enabled".to_owned())].into())
        .expect("good");
    let mut object = ksvc(
        json!({"template": {"spec": {"containers": [{"image": "a", "ports": [{"containerPort": 80}]}]}}}),
    );
    service(&mut object, None, &configs, None);
    let context = object.spec.template.spec.pod.containers[0].security_context.clone().expect("a context");
    assert_eq!(context.run_as_non_root, Some(true));
    assert_eq!(context.capabilities.and_then(|c| c.add), Some(vec!["NET_BIND_SERVICE".to_owned()]));
}
