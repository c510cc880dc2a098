use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1 as admissions;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::{Serialize, de::DeserializeOwned};

use super::*;
use crate::config::{Configs, NAMES};

fn all() -> Vec<Value> {
    manifests(&Options::default()).into_iter().flat_map(|stage| stage.objects).collect()
}

fn of_kind(kind: &str) -> Vec<Value> {
    all().into_iter().filter(|o| o["kind"] == kind).collect()
}

/// What of `value` is not in `typed`: fields that the type does not know.
fn lost(value: &Value, typed: &Value, path: &str) -> Vec<String> {
    match (value, typed) {
        (Value::Object(value), Value::Object(typed)) => value
            .iter()
            .flat_map(|(key, v)| lost(v, typed.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}")))
            .collect(),
        (Value::Array(value), Value::Array(typed)) if value.len() == typed.len() => {
            let pairs = value.iter().zip(typed).enumerate();
            pairs.flat_map(|(i, (v, t))| lost(v, t, &format!("{path}[{i}]"))).collect()
        }
        // A selector of everything, `{}`, may be written as nothing.
        (value, typed) if value == typed => vec![],
        _ => vec![path.to_owned()],
    }
}

fn round<T: Serialize + DeserializeOwned>(object: &Value) -> Vec<String> {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e}: {object}"));
    lost(
        object,
        &serde_json::to_value(typed).expect("JSON"),
        &format!("{}/{}", object["kind"], object["metadata"]["name"]),
    )
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    for object in all() {
        let unknown = match object["kind"].as_str().expect("a kind") {
            "Namespace" => round::<Namespace>(&object),
            "CustomResourceDefinition" => round::<CustomResourceDefinition>(&object),
            "ServiceAccount" => round::<ServiceAccount>(&object),
            "ClusterRole" => round::<ClusterRole>(&object),
            "ClusterRoleBinding" => round::<ClusterRoleBinding>(&object),
            "Role" => round::<Role>(&object),
            "RoleBinding" => round::<RoleBinding>(&object),
            "ConfigMap" => round::<ConfigMap>(&object),
            "Service" => round::<Service>(&object),
            "NetworkPolicy" => round::<NetworkPolicy>(&object),
            "PodDisruptionBudget" => round::<PodDisruptionBudget>(&object),
            "MutatingWebhookConfiguration" => round::<admissions::MutatingWebhookConfiguration>(&object),
            "ValidatingWebhookConfiguration" => round::<admissions::ValidatingWebhookConfiguration>(&object),
            "Deployment" => round::<Deployment>(&object),
            other => panic!("no type for {other}"),
        };
        assert_eq!(unknown, Vec::<String>::new());
    }
}

#[test]
fn everything_can_be_told_from_what_users_made() {
    for object in all() {
        assert_eq!(
            object["metadata"]["labels"][INSTALLATION], "ebb-system",
            "{}",
            object["metadata"]["name"]
        );
    }
}

#[test]
fn no_object_is_there_twice() {
    let mut seen = BTreeSet::new();
    for object in all() {
        let id =
            format!("{} {}/{}", object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]);
        assert!(seen.insert(id.clone()), "{id}");
    }
}

/// The keys that are read, gathered by the reader itself.
fn keys_read(map: &str) -> BTreeSet<String> {
    crate::config::READ.with(|keys| keys.borrow_mut().clear());
    let _ = Configs::default().set(map, &BTreeMap::new());
    crate::config::READ.with(|keys| keys.borrow().clone())
}

/// Keys that are only understood because they were Knative's once.
const OLDER: &[&str] = &["ingress.class", "certificate.class", "auto-tls", "internal-encryption"];

#[test]
fn every_key_is_explained() {
    for map in NAMES.iter().filter(|n| **n != "config-domain") {
        let text = example(map).expect(map);
        let keys = keys_read(map);
        assert!(!keys.is_empty(), "{map}");
        for key in keys.iter().filter(|k| !OLDER.contains(&k.as_str())) {
            let shown = text.lines().any(|l| l.trim_start_matches("# ").starts_with(&format!("{key}:")));
            assert!(shown, "{map} does not explain {key}");
        }
        for line in text.lines() {
            let Some((key, _)) = line.split_once(": \"") else { continue };
            let key = key.trim_start_matches("# ");
            assert!(keys.contains(key) || key.contains(' '), "{map} explains {key}, which nobody reads");
        }
    }
}

#[test]
fn examples_are_the_defaults() {
    for map in NAMES.iter().filter(|n| **n != "config-domain") {
        let text = example(map).expect(map);
        let mut data: BTreeMap<String, String> = serde_saphyr::from_str(text).expect(map);
        let mut defaults = Configs::default();
        if *map == "config-deployment" {
            data.insert("queue-sidecar-image".into(), "image".into());
            defaults.deployment.queue_sidecar_image = "image".into();
        }
        let mut configs = Configs::default();
        configs.set(map, &data).expect(map);
        assert_eq!(configs, defaults, "{map}");
    }
}

#[test]
fn what_is_only_suggested_is_understood() {
    for map in NAMES {
        let text = example(map).expect(map);
        let suggested = text
            .lines()
            .filter_map(|l| l.strip_prefix("# "))
            .filter(|l| l.split_once(": \"").is_some_and(|(key, _)| !key.contains(' ')));
        let mut data: BTreeMap<String, String> =
            serde_saphyr::from_str(&suggested.collect::<Vec<_>>().join("\n")).unwrap_or_default();
        data.entry("queue-sidecar-image".into()).or_insert_with(|| "image".into());
        if *map == "config-domain" {
            data = serde_saphyr::from_str(text).expect(map);
        }
        Configs::default().set(map, &data).expect(map);
    }
}

#[test]
fn settings_of_both_places_are_understood() {
    let embedded = Options {
        domain: Some("localhost".into()),
        place: Place::Embedded {
            queue_sidecar_image: "ebb.local/queue-proxy".into(),
            registry_mirror: "http://127.0.0.1:5000".into(),
            external_url_port: Some(8080),
            external_url_tls_port: Some(8443),
        },
        ..Options::default()
    };
    for options in [Options::default(), embedded] {
        for map in settings::config_maps(&options) {
            let data: BTreeMap<String, String> =
                serde_json::from_value(map["data"].clone()).expect("strings");
            Configs::default()
                .set(map["metadata"]["name"].as_str().expect("a name"), &data)
                .expect("understood");
        }
    }
}

#[test]
fn pods_are_as_restricted_as_the_namespace_wants_them() {
    for deployment in of_kind("Deployment") {
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for container in pod["containers"].as_array().expect("containers") {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        }
    }
}

#[test]
fn ports_of_services_are_ports_of_pods_and_open() {
    let deployments = of_kind("Deployment");
    let policies = of_kind("NetworkPolicy");
    let component = |o: &Value| o["metadata"]["labels"]["app.kubernetes.io/component"].clone();
    for service in of_kind("Service") {
        let name = component(&service);
        assert_eq!(service["spec"]["selector"]["app.kubernetes.io/component"], name);
        let pod = deployments.iter().find(|d| d["metadata"]["name"] == name).expect("a Deployment");
        let policy = policies.iter().find(|p| p["metadata"]["name"] == name).expect("a NetworkPolicy");
        for port in service["spec"]["ports"].as_array().expect("ports") {
            let target = &port["targetPort"];
            let has = |list: &Value, field: &str| {
                list.as_array().into_iter().flatten().any(|p| p[field] == *target)
            };
            assert!(
                has(&pod["spec"]["template"]["spec"]["containers"][0]["ports"], "containerPort"),
                "{name} {target}"
            );
            let rules = policy["spec"]["ingress"].as_array().expect("rules");
            assert!(rules.iter().any(|rule| has(&rule["ports"], "port")), "{name} {target} is closed");
        }
    }
}

#[test]
fn webhooks_leave_the_rest_of_the_cluster_alone() {
    for configuration in
        of_kind("MutatingWebhookConfiguration").iter().chain(&of_kind("ValidatingWebhookConfiguration"))
    {
        for webhook in configuration["webhooks"].as_array().expect("webhooks") {
            for rule in webhook["rules"].as_array().expect("rules") {
                let group = rule["apiGroups"][0].as_str().unwrap_or_default();
                // The kinds between the components: theirs never wait for a webhook.
                let by_others = webhook["matchConditions"][0]["expression"]
                    == "!request.userInfo.username.startsWith('system:serviceaccount:ebb-system:')";
                let internal = group.ends_with(".internal.knative.dev") && by_others;
                let own = group == "serving.knative.dev" || internal;
                let home = webhook["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
                    == "ebb-system";
                assert!(own || home && webhook["failurePolicy"] == "Ignore", "{rule}");
            }
        }
    }
}

#[test]
fn nobody_may_do_everything() {
    for role in of_kind("ClusterRole").iter().chain(&of_kind("Role")) {
        for rule in role["rules"].as_array().expect("rules") {
            let has = |field: &str| rule[field].as_array().into_iter().flatten().any(|v| v == "*");
            assert!(!has("verbs") && !has("apiGroups"), "{}: {rule}", role["metadata"]["name"]);
            let components = role["metadata"]["labels"].get("app.kubernetes.io/component").is_some();
            assert!(!(components && has("resources")), "{}: {rule}", role["metadata"]["name"]);
        }
    }
}
