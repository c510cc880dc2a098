//! What clients rely on without asking: bookmarks, dry runs, pages that are no more, watches that are to last for ever.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests, which clippy does not know as such.

mod common;

use std::time::Duration;

use cluster_apiserver::{ApiServer, Config, MASTERS};
use common::start;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    from(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}}))
}

async fn revision(maps: &Api<ConfigMap>) -> String {
    maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap()
}

#[tokio::test]
async fn a_dry_run_answers_and_stores_nothing() {
    let fixture = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(fixture.client());
    maps.create(&PostParams::default(), &config_map("there", "old")).await.unwrap();
    let before = revision(&maps).await;
    let post = PostParams { dry_run: true, ..PostParams::default() };
    let patch = PatchParams { dry_run: true, ..PatchParams::apply("me").force() };
    let told = |map: ConfigMap| map.data.unwrap()["k"].clone();
    assert_eq!(told(maps.create(&post, &config_map("new", "new")).await.unwrap()), "new");
    assert_eq!(told(maps.replace("there", &post, &config_map("there", "put")).await.unwrap()), "put");
    let merge = PatchParams { dry_run: true, ..PatchParams::default() };
    let change = Patch::Merge(json!({"data": {"k": "patched"}}));
    assert_eq!(told(maps.patch("there", &merge, &change).await.unwrap()), "patched");
    let applied = Patch::Apply(config_map("there", "applied"));
    assert_eq!(told(maps.patch("there", &patch, &applied).await.unwrap()), "applied");
    maps.delete("there", &DeleteParams { dry_run: true, ..DeleteParams::default() }).await.unwrap();
    assert_eq!(revision(&maps).await, before, "nothing was written");
    assert_eq!(told(maps.get("there").await.unwrap()), "old");

    let services: Api<Service> = Api::default_namespaced(fixture.client());
    let service: Service = from(
        json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.0.77", "ports": [{"port": 80}]}}),
    );
    services.create(&post, &service).await.unwrap();
    services.create(&PostParams::default(), &service).await.expect("the address is still to be had");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_tells_how_far_it_is() {
    let fixture = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(fixture.client());
    let from = revision(&maps).await;
    let mut events = maps.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    // Another kind moves the revision on, of which this watch has nothing to tell.
    let services: Api<Service> = Api::default_namespaced(fixture.client());
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    services.create(&PostParams::default(), &self::from(service)).await.unwrap();
    let now = revision(&maps).await;
    assert_ne!(now, from);
    let WatchEvent::Bookmark(mark) = events.try_next().await.unwrap().unwrap() else { panic!("a bookmark") };
    assert_eq!(mark.metadata.resource_version, now);
    // From there it goes on, without what was told before.
    let mut later =
        maps.watch(&WatchParams::default(), &mark.metadata.resource_version).await.unwrap().boxed();
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(matches!(later.try_next().await.unwrap().unwrap(), WatchEvent::Added(_)));
}

#[tokio::test]
async fn a_page_of_a_list_that_is_no_more_is_refused() {
    let fixture = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(fixture.client());
    for name in ["a", "b"] {
        maps.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    let first = maps.list(&ListParams::default().limit(1)).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    let common::Fixture { folder, server } = fixture;
    server.shutdown().await;
    // What happened meanwhile is not known after a start: the pages would not fit together.
    let again = ApiServer::start(Config::new(folder.path())).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(again.client("test", &[MASTERS]));
    let refused = maps.list(&ListParams::default().limit(1).continue_token(&token)).await.unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 410 && status.reason == "Expired"),
        "{refused}"
    );
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 2);
    again.shutdown().await;
}

#[tokio::test]
async fn a_watch_that_is_to_last_for_ever_lasts() {
    let fixture = start().await;
    let client = fixture.client();
    let path = format!("/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds={}", i64::MAX);
    let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let frame = http_body_util::BodyExt::frame(&mut body);
    let frame = tokio::time::timeout(Duration::from_secs(10), frame).await.unwrap().unwrap().unwrap();
    assert!(frame.into_data().unwrap().starts_with(b"{\"type\":\"ADDED\""));
}

#[tokio::test]
async fn a_key_that_stands_twice_is_refused_or_warned_of() {
    let fixture = start().await;
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&fixture.server.admin_kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let post = async |name: &str, validation: &str| {
        let body = format!(r#"{{"metadata": {{"name": "{name}"}}, "data": {{"k": "1", "k": "2"}}}}"#);
        let path = format!("/api/v1/namespaces/default/configmaps?fieldValidation={validation}");
        client.send(http::Request::post(path).body(body.into_bytes().into()).unwrap()).await.unwrap()
    };
    assert_eq!(post("strict", "Strict").await.status(), 400);
    let warned = post("warned", "Warn").await;
    assert_eq!(warned.status(), 201);
    assert!(warned.headers()["warning"].to_str().unwrap().contains("duplicate field"));
    assert!(post("ignored", "Ignore").await.headers().get("warning").is_none());
}

#[tokio::test]
async fn nobody_grants_what_he_does_not_have() {
    use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
    let fixture = start().await;
    let roles: Api<Role> = Api::default_namespaced(fixture.client());
    let bindings: Api<RoleBinding> = Api::default_namespaced(fixture.client());
    let role = |name: &str, resources: Value| -> Role {
        from(
            json!({"metadata": {"name": name}, "rules": [{"apiGroups": ["*"], "resources": resources, "verbs": ["create", "get", "patch"]}]}),
        )
    };
    let binding = |name: &str, kind: &str, role: &str| -> RoleBinding {
        from(
            json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "bob"}]}),
        )
    };
    let post = PostParams::default();
    roles.create(&post, &role("own", json!(["roles", "rolebindings", "configmaps"]))).await.unwrap();
    bindings.create(&post, &binding("own", "Role", "own")).await.unwrap();

    let bob = fixture.server.client("bob", &[]);
    let roles: Api<Role> = Api::default_namespaced(bob.clone());
    let bindings: Api<RoleBinding> = Api::default_namespaced(bob);
    roles.create(&post, &role("less", json!(["configmaps"]))).await.unwrap();
    let refused = roles.create(&post, &role("more", json!(["secrets"]))).await.unwrap_err().to_string();
    assert!(refused.contains("attempting to grant RBAC permissions not currently held"), "{refused}");
    let wider = Patch::Merge(json!({"rules": role("", json!(["secrets"])).rules}));
    assert!(roles.patch("less", &PatchParams::default(), &wider).await.is_err());
    assert!(bindings.create(&post, &binding("up", "ClusterRole", "cluster-admin")).await.is_err());
    bindings.create(&post, &binding("same", "Role", "less")).await.unwrap();
}

#[tokio::test]
async fn acting_as_somebody_is_heeded_as_a_whole_or_not_at_all() {
    let client = start().await;
    let client = client.client();
    let request = http::Request::get("/api/v1/namespaces").header("Impersonate-Group", "nobodies");
    let refused = client.request::<Value>(request.body(Vec::new()).unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("without naming the user"), "{refused}");
}

#[tokio::test]
async fn what_is_nested_too_deep_to_be_read_back_is_refused() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use kube::api::{ApiResource, DynamicObject};
    let fixture = start().await;
    let definition: CustomResourceDefinition = from(json!({
        "metadata": {"name": "boxes.test.dev"},
        "spec": {"group": "test.dev", "scope": "Namespaced",
            "names": {"kind": "Box", "plural": "boxes", "singular": "box", "listKind": "BoxList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}
    }));
    let definitions: Api<CustomResourceDefinition> = Api::all(fixture.client());
    definitions.create(&PostParams::default(), &definition).await.unwrap();
    let kind = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("test.dev", "v1", "Box"));
    let boxes: Api<DynamicObject> = Api::default_namespaced_with(fixture.client(), &kind);
    let nested = |levels: usize| (1..levels).fold(json!({"b": "c"}), |inner, _| json!({"a": inner}));
    let object = |levels: usize| json!({"apiVersion": "test.dev/v1", "kind": "Box", "metadata": {"name": "b"}, "spec": nested(levels)});
    let by_me = PatchParams::apply("me");
    boxes.patch("b", &by_me, &Patch::Apply(object(90))).await.expect("deep enough");
    // Neither is deep itself.
    let mut end = String::from("/spec");
    end.push_str(&"/a".repeat(89));
    let more = json!([{"op": "add", "path": format!("{end}/more"), "value": nested(20)}]);
    let refused =
        boxes.patch("b", &PatchParams::default(), &Patch::<()>::Json(from(more))).await.unwrap_err();
    assert!(refused.to_string().contains("nested deeper"), "{refused}");
    assert_eq!(boxes.get("b").await.unwrap().data["spec"], nested(90));
}
