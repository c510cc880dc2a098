//! What Knative allows of a pod, by flag.

use serde_json::{Value, json};

use super::{container, ksvc, verdict};
use crate::config::Configs;
use crate::defaults;

const POD: &str = "spec.template.spec";

fn flags(set: &[(&str, &str)]) -> Configs {
    let mut configs = Configs::default();
    let data = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    configs.set("config-features", &data).expect("good");
    configs
}

/// The errors of a pod with these fields beside a container.
fn pod(fields: &Value, set: &[(&str, &str)]) -> Vec<String> {
    let mut spec = container(&json!({}));
    for (key, value) in fields.as_object().expect("fields") {
        spec["template"]["spec"][key] = value.clone();
    }
    verdict(ksvc(spec), &flags(set)).lines().map(|line| line.replace(POD, "~")).collect()
}

#[test]
fn fields_by_flag() {
    for (fields, flag, message) in [
        (json!({"affinity": {}}), "podspec-affinity", "~.affinity"),
        (json!({"dnsPolicy": "Default"}), "podspec-dnspolicy", "~.dnsPolicy"),
        (json!({"hostIPC": true}), "podspec-hostipc", "~.hostIPC"),
        (json!({"priorityClassName": "high"}), "podspec-priorityclassname", "~.priorityClassName"),
        (json!({"shareProcessNamespace": false}), "podspec-shareprocessnamespace", "~.shareProcessNamespace"),
        (json!({"tolerations": [{"key": "a"}]}), "podspec-tolerations", "~.tolerations"),
    ] {
        let key = format!("kubernetes.{flag}");
        assert_eq!(pod(&fields, &[]), [format!("must not set the field(s): {message}")]);
        for state in ["allowed", "enabled"] {
            assert!(pod(&fields, &[(&key, state)]).is_empty(), "{fields} {state}");
        }
    }
    for (fields, field) in [
        (json!({"automountServiceAccountToken": true}), "automountServiceAccountToken"),
        (json!({"terminationGracePeriodSeconds": 0}), "terminationGracePeriodSeconds"),
        (json!({"hostname": "a"}), "hostname"),
        (json!({"priority": 0}), "priority"),
    ] {
        assert_eq!(pod(&fields, &[]), [format!("must not set the field(s): ~.{field}")]);
    }
    for fields in [json!({"automountServiceAccountToken": false}), json!({"hostNetwork": false})] {
        assert!(pod(&fields, &[]).is_empty(), "{fields}");
    }
}

#[test]
fn volumes_by_flag() {
    let mounted = |source: &Value, set: &[(&str, &str)]| {
        let mut volume = source.clone();
        volume["name"] = json!("v");
        let mount = json!({"name": "v", "mountPath": "/v"});
        pod(&json!({"volumes": [volume], "containers": [{"image": "hello", "volumeMounts": [mount]}]}), set)
    };
    for (source, kind, flag) in [
        (json!({"hostPath": {"path": "/"}}), "HostPath", "podspec-volumes-hostpath"),
        (json!({"csi": {"driver": "x"}}), "CSI", "podspec-volumes-csi"),
        (json!({"ephemeral": {}}), "Ephemeral", "podspec-volumes-ephemeral"),
        (json!({"image": {"reference": "data:v1"}}), "Image", "podspec-volumes-image"),
    ] {
        let field = source.as_object().and_then(|o| o.keys().next()).expect("a field").clone();
        let key = format!("kubernetes.{flag}");
        let off =
            format!("{kind} volume support is disabled, but found {kind} volume v: ~.volumes[0].{field}");
        let refused = format!("must not set the field(s): ~.volumes[0].{field}");
        assert_eq!(mounted(&source, &[]), [off.clone(), refused]);
        assert_eq!(mounted(&source, &[(&key, "allowed")]), [off], "allowed is not enough");
        assert!(mounted(&source, &[(&key, "enabled")]).is_empty());
    }
    let claim = json!({"persistentVolumeClaim": {"claimName": "c"}});
    let (on, write) =
        ("kubernetes.podspec-persistent-volume-claim", "kubernetes.podspec-persistent-volume-write");
    assert_eq!(
        mounted(&claim, &[(on, "enabled")]),
        [
            "Persistent volume write support is disabled, but found persistent volume claim c that is not read-only: ~.volumes[0].persistentVolumeClaim"
        ]
    );
    assert!(mounted(&claim, &[(on, "enabled"), (write, "enabled")]).is_empty());
    assert_eq!(mounted(&json!({"emptyDir": {}}), &[]), [""; 0]);
    let off = mounted(&json!({"emptyDir": {}}), &[("kubernetes.podspec-volumes-emptydir", "disabled")]);
    assert!(off[0].starts_with("EmptyDir volume support is disabled"), "{off:?}");
    assert_eq!(
        mounted(&json!({}), &[]),
        [
            "expected exactly one, got neither: ~.volumes[0].configMap, ~.volumes[0].emptyDir, ~.volumes[0].projected, ~.volumes[0].secret"
        ]
    );
    let downward = json!({"projected": {"sources": [{"downwardAPI": {"items": [{"path": ""}]}}]}});
    let at = "~.volumes[0].projected[0].downwardAPI.items[0]";
    assert_eq!(
        mounted(&downward, &[]),
        [
            format!("expected exactly one, got neither: {at}.fieldRef, {at}.resourceFieldRef"),
            format!("missing field(s): {at}.path")
        ]
    );
    let propagated = json!({
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"image": "hello", "volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]}]
    });
    let key = "kubernetes.podspec-volumes-mount-propagation";
    let at = "~.containers[0].volumeMounts[0].mountPropagation";
    assert_eq!(
        pod(&propagated, &[(key, "enabled")]),
        [format!("mount propagation should be set to None or HostToContainer: {at}")]
    );
    assert_eq!(pod(&propagated, &[]).len(), 3);
}

#[test]
fn init_containers() {
    let key = "kubernetes.podspec-init-containers";
    let with = |init: Value, set: &[(&str, &str)]| pod(&json!({"initContainers": [init]}), set);
    assert_eq!(
        with(json!({"image": "hello"}), &[]),
        [
            "must not set the field(s): ~.initContainers",
            "pod spec support for init-containers is off, but found 1 init containers: ~.initContainers"
        ]
    );
    let on: &[(&str, &str)] = &[(key, "enabled")];
    assert!(with(json!({"image": "hello", "env": [{"name": "PORT", "value": "1"}]}), on).is_empty());
    for (init, want) in [
        (
            json!({"image": "hello", "name": "user-container"}),
            "duplicate container name \"user-container\": ~.initContainers[0].name",
        ),
        (
            json!({"image": "hello", "readinessProbe": {"exec": {"command": ["a"]}}}),
            "field not allowed in an init container: ~.initContainers[0].readinessProbe",
        ),
        (
            json!({"image": "hello", "env": [{"name": "K_SERVICE"}]}),
            "\"K_SERVICE\" is a reserved environment variable: ~.initContainers[0].env[0].name",
        ),
    ] {
        assert_eq!(
            pod(
                &json!({"initContainers": [init], "containers": [{"image": "hello", "name": "user-container"}]}),
                on
            ),
            [want]
        );
    }
}

#[test]
fn security_contexts() {
    let own = |context: Value, set: &[(&str, &str)]| {
        let found = container(&json!({"securityContext": context}));
        verdict(ksvc(found), &flags(set)).replace(POD, "~")
    };
    let low_port = json!({"capabilities": {"add": ["NET_BIND_SERVICE"]}});
    let refused = "must not set the field(s): ~.containers[0].securityContext.capabilities.add";
    assert_eq!(own(low_port.clone(), &[]), refused);
    assert_eq!(own(low_port, &[("secure-pod-defaults", "AllowRootBounded")]), "");
    let admin = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
    assert_eq!(own(admin.clone(), &[("secure-pod-defaults", "enabled")]), refused);
    assert_eq!(own(admin, &[("kubernetes.containerspec-addcapabilities", "enabled")]), "");
    assert_eq!(own(json!({"privileged": false}), &[]), "");
    assert_eq!(
        own(json!({"runAsUser": -1}), &[]),
        "expected 0 <= -1 <= 2147483647: ~.containers[0].securityContext.runAsUser"
    );

    let of_pod = |context: Value, set: &[(&str, &str)]| pod(&json!({"securityContext": context}), set);
    let key = "kubernetes.podspec-securitycontext";
    assert_eq!(
        of_pod(json!({"runAsUser": 1}), &[]),
        ["must not set the field(s): ~.securityContext, ~.securityContext.runAsUser"]
    );
    assert!(of_pod(json!({"runAsUser": 1, "fsGroup": 2}), &[(key, "enabled")]).is_empty());
    assert_eq!(
        of_pod(json!({"fsGroupChangePolicy": "Always"}), &[(key, "enabled")]),
        ["must not set the field(s): ~.securityContext.fsGroupChangePolicy"]
    );
    let secure: &[(&str, &str)] = &[("secure-pod-defaults", "enabled")];
    assert!(of_pod(json!({"seccompProfile": {"type": "RuntimeDefault"}}), secure).is_empty());
    assert_eq!(
        of_pod(json!({"runAsUser": 1}), secure),
        ["must not set the field(s): ~.securityContext.runAsUser"]
    );
}

#[test]
fn warnings_about_open_defaults() {
    let warnings = |context: Value, set: &[(&str, &str)]| {
        let configs = flags(set);
        let mut object = ksvc(container(&json!({"securityContext": context})));
        defaults::service(&mut object, None, &configs, None);
        super::service(&object, None, &configs).warnings()
    };
    let found = warnings(json!({"runAsNonRoot": true}), &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    let at = "spec.template.spec.containers[0].securityContext";
    let end = format!(": {at}.allowPrivilegeEscalation, {at}.capabilities, {at}.seccompProfile");
    assert!(found[0].starts_with("Kubernetes' default is insecure") && found[0].ends_with(&end), "{found:?}");
    let closed = |drop: &str| {
        json!({
            "runAsNonRoot": true, "allowPrivilegeEscalation": false, "seccompProfile": {"type": "RuntimeDefault"},
            "capabilities": {"drop": [drop]}
        })
    };
    assert!(warnings(closed("ALL"), &[]).is_empty());
    let found = warnings(closed("all"), &[]);
    assert_eq!(found, [format!("invalid value: all: {at}.capabilities.drop: Must be spelled as 'ALL'")]);
    assert!(warnings(json!({}), &[("secure-pod-defaults", "allowrootbounded")]).is_empty());
}

#[test]
fn several_containers() {
    let with = |containers: Value, set: &[(&str, &str)]| pod(&json!({"containers": containers}), set);
    assert_eq!(
        with(json!([{"image": "a"}, {"image": "b"}]), &[]),
        ["missing field(s): ~.containers[*].ports"]
    );
    let probed = json!([
        {"image": "a", "ports": [{"containerPort": 80}]},
        {"image": "b", "livenessProbe": {"tcpSocket": {"port": 0}}}
    ]);
    assert_eq!(
        with(probed.clone(), &[]),
        ["must not set the field(s): ~.containers[1].livenessProbe.tcpSocket"]
    );
    assert_eq!(
        with(probed, &[("multi-container-probing", "enabled")]),
        ["invalid value: 0: ~.containers[1].livenessProbe.tcpSocket.port", "Probe port must be specified"]
    );
    let two =
        json!([{"image": "a", "name": "x", "ports": [{"containerPort": 80}]}, {"image": "b", "name": "x"}]);
    assert_eq!(with(two.clone(), &[]), ["duplicate container name \"x\": ~.containers[1].name"]);
    assert_eq!(
        with(two, &[("multi-container", "disabled")]),
        ["multi-container is off, but found 2 containers: ~.containers"]
    );
}
