//! The server seen through kube's client: in this process, and over TLS.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests, which clippy does not know as such.

mod common;

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::routing::get;
use cluster_apiserver::{ApiServer, Config, MASTERS};
use common::start;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str) -> ConfigMap {
    from(json!({"metadata": {"name": name}, "data": {"a": "b"}}))
}

fn code(error: kube::Error) -> (u16, String, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason, status.message),
        other => panic!("not an API error: {other:?}"),
    }
}

async fn account(client: &kube::Client) {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    accounts.create(&PostParams::default(), &from(json!({"metadata": {"name": "default"}}))).await.unwrap();
}

fn pod(name: &str, node: Option<&str>) -> Pod {
    from(
        json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}}),
    )
}

#[tokio::test]
async fn objects_are_made_changed_and_removed() {
    let fixture = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(fixture.client());
    let made = maps.create(&PostParams::default(), &config_map("one")).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    let (status, reason, _) =
        code(maps.create(&PostParams::default(), &config_map("one")).await.unwrap_err());
    assert_eq!((status, reason.as_str()), (409, "AlreadyExists"));

    let mut stale = made.clone();
    let patch = Patch::Merge(json!({"data": {"a": "c"}}));
    let changed = maps.patch("one", &PatchParams::default(), &patch).await.unwrap();
    assert_ne!(changed.metadata.resource_version, made.metadata.resource_version);
    let again = maps.patch("one", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(
        again.metadata.resource_version, changed.metadata.resource_version,
        "a write of nothing writes nothing"
    );
    stale.data = None;
    let (status, reason, _) = code(maps.replace("one", &PostParams::default(), &stale).await.unwrap_err());
    assert_eq!((status, reason.as_str()), (409, "Conflict"));

    maps.delete("one", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("one").await.unwrap_err()).0, 404);
    let mut generated = config_map("");
    generated.metadata.name = None;
    generated.metadata.generate_name = Some("gen-".to_owned());
    let made = maps.create(&PostParams::default(), &generated).await.unwrap();
    assert!(made.metadata.name.unwrap().starts_with("gen-"));
}

#[tokio::test]
async fn a_watch_delivers_while_the_writer_still_waits() {
    let fixture = start().await;
    let client = fixture.client();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let list = maps.list(&ListParams::default()).await.unwrap();
    let version = list.metadata.resource_version.unwrap();
    let mut events = maps.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    maps.create(&PostParams::default(), &config_map("one")).await.unwrap();
    maps.patch("one", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}})))
        .await
        .unwrap();
    maps.delete("one", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, ["added", "modified", "deleted"]);

    // A selector turns changes into arrivals and departures.
    let selected = WatchParams::default().labels("a=b");
    let version = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = maps.watch(&selected, &version).await.unwrap().boxed();
    maps.create(&PostParams::default(), &config_map("two")).await.unwrap();
    for labels in [json!({"a": "b"}), json!({"a": "c"})] {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        maps.patch("two", &PatchParams::default(), &patch).await.unwrap();
    }
    assert!(matches!(events.try_next().await.unwrap().unwrap(), WatchEvent::Added(_)));
    assert!(matches!(events.try_next().await.unwrap().unwrap(), WatchEvent::Deleted(_)));

    // From too long ago: told to list again.
    let mut events = maps.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    match events.try_next().await.unwrap().unwrap() {
        WatchEvent::Error(status) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn informers_of_both_kinds_follow() {
    let fixture = start().await;
    let maps: Api<ConfigMap> = Api::all(fixture.client());
    let own: Api<ConfigMap> = Api::default_namespaced(fixture.client());
    own.create(&PostParams::default(), &config_map("before")).await.unwrap();
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut stream = watcher(maps.clone(), config).default_backoff().applied_objects().boxed();
        let first = stream.try_next().await.unwrap().unwrap();
        assert_eq!(first.metadata.name.as_deref(), Some("before"));
        own.create(&PostParams::default(), &config_map("after")).await.unwrap();
        let second = stream.try_next().await.unwrap().unwrap();
        assert_eq!(second.metadata.name.as_deref(), Some("after"));
        own.delete("after", &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let fixture = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(fixture.client());
    for n in 0..20 {
        maps.create(&PostParams::default(), &config_map(&format!("m{n}"))).await.unwrap();
    }
    let version = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    // The files as a killed process would leave them.
    let killed = tempfile::tempdir().unwrap();
    std::fs::create_dir(killed.path().join("pki")).unwrap();
    for entry in std::fs::read_dir(fixture.folder.path().join("pki")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), killed.path().join("pki").join(entry.file_name())).unwrap();
    }
    std::fs::copy(fixture.folder.path().join("objects.redb"), killed.path().join("objects.redb")).unwrap();
    let again = ApiServer::start(Config::new(killed.path())).await.unwrap();
    assert_eq!(again.ca_pem(), fixture.server.ca_pem());
    let maps: Api<ConfigMap> = Api::default_namespaced(again.client("test", &[MASTERS]));
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 20);
    let mut events = maps.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    assert!(
        matches!(events.try_next().await.unwrap().unwrap(), WatchEvent::Error(status) if status.code == 410)
    );
    again.shutdown().await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let fixture = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(fixture.client());
    for n in 0..5 {
        maps.create(&PostParams::default(), &config_map(&format!("m{n}"))).await.unwrap();
    }
    let mut params = ListParams::default().limit(2);
    let mut names = Vec::new();
    loop {
        let page = maps.list(&params).await.unwrap();
        names.extend(page.items.into_iter().map(|map| map.metadata.name.unwrap()));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4"]);
}

#[tokio::test]
async fn server_side_apply_knows_who_owns_what() {
    let fixture = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(fixture.client());
    let apply = |manager: &str, value: &str| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"k": value}});
        (PatchParams::apply(manager), Patch::Apply(map))
    };
    let (params, patch) = apply("first", "1");
    let one = maps.patch("one", &params, &patch).await.unwrap();
    let same = maps.patch("one", &params, &patch).await.unwrap();
    assert_eq!(one.metadata.resource_version, same.metadata.resource_version);
    let (params, patch) = apply("second", "2");
    let (status, _, message) = code(maps.patch("one", &params, &patch).await.unwrap_err());
    assert_eq!(status, 409);
    assert!(message.contains("first"), "{message}");
    let forced = maps.patch("one", &params.force(), &patch).await.unwrap();
    assert_eq!(forced.data.unwrap()["k"], "2");
}

#[tokio::test]
async fn pods_are_admitted_bound_and_deleted_gracefully() {
    let fixture = start().await;
    let client = fixture.client();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let (status, _, message) = code(pods.create(&PostParams::default(), &pod("p", None)).await.unwrap_err());
    assert_eq!(status, 403);
    assert!(message.contains("serviceaccount \"default\" not found"), "{message}");
    account(&client).await;
    let made = pods.create(&PostParams::default(), &pod("p", None)).await.unwrap();
    let spec = made.spec.unwrap();
    assert_eq!(spec.service_account_name.as_deref(), Some("default"));
    assert!(spec.volumes.unwrap()[0].name.starts_with("kube-api-access-"));
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));

    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let bind = || {
        let body = serde_json::to_vec(&binding).unwrap();
        http::Request::post("/api/v1/namespaces/default/pods/p/binding").body(body).unwrap()
    };
    let _: Value = client.request(bind()).await.unwrap();
    let (status, _, _) = code(client.request::<Value>(bind()).await.unwrap_err());
    assert_eq!(status, 409, "a pod is bound once");

    let deleted = pods.delete("p", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(deleted.metadata.deletion_grace_period_seconds, Some(30));
    assert!(pods.get_opt("p").await.unwrap().is_some(), "it waits for its node agent");
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(pods.get_opt("p").await.unwrap().is_none());

    // Status is the node agent's: a plain update cannot change it.
    pods.create(&PostParams::default(), &pod("q", Some("n"))).await.unwrap();
    let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
    let after = pods.patch("q", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(after.status.unwrap().phase.as_deref(), Some("Pending"));
    let after = pods.patch_status("q", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(after.status.unwrap().phase.as_deref(), Some("Running"));
}

#[tokio::test]
async fn finalizers_hold_and_namespaces_end() {
    let fixture = start().await;
    let client = fixture.client();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut held = config_map("held");
    held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    maps.delete("held", &DeleteParams::foreground()).await.unwrap();
    let marked = maps.get("held").await.unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    assert_eq!(marked.metadata.finalizers.unwrap(), ["example.com/hold", "foregroundDeletion"]);
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("held", &PatchParams::default(), &none).await.unwrap();
    assert!(maps.get_opt("held").await.unwrap().is_none());

    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &from(json!({"metadata": {"name": "x"}}))).await.unwrap();
    namespaces.delete("x", &DeleteParams::default()).await.unwrap();
    let within: Api<ConfigMap> = Api::namespaced(client.clone(), "x");
    let (status, _, message) =
        code(within.create(&PostParams::default(), &config_map("a")).await.unwrap_err());
    assert_eq!(status, 403);
    assert!(message.contains("being terminated"), "{message}");
    let ending = namespaces.get("x").await.unwrap();
    assert_eq!(ending.status.as_ref().unwrap().phase.as_deref(), Some("Terminating"));
    let mut last = serde_json::to_value(&ending).unwrap();
    last["spec"]["finalizers"] = json!([]);
    let body = serde_json::to_vec(&last).unwrap();
    let _: Value = client
        .request(http::Request::put("/api/v1/namespaces/x/finalize").body(body).unwrap())
        .await
        .unwrap();
    assert!(namespaces.get_opt("x").await.unwrap().is_none());
}

#[tokio::test]
async fn services_get_addresses_of_their_own() {
    let fixture = start().await;
    let services: Api<Service> = Api::default_namespaced(fixture.client());
    let service = |name: &str, extra: Value| -> Service {
        let mut spec = json!({"ports": [{"port": 80}], "selector": {"a": "b"}});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        from(json!({"metadata": {"name": name}, "spec": spec}))
    };
    let create =
        async |name: &str, extra: Value| services.create(&PostParams::default(), &service(name, extra)).await;
    let plain = create("plain", json!({})).await.unwrap().spec.unwrap();
    let ip = plain.cluster_ip.clone().unwrap();
    assert!(ip.starts_with("10.96."));
    assert_eq!(plain.ports.unwrap()[0].protocol.as_deref(), Some("TCP"));
    let (status, _, message) = code(create("taken", json!({"clusterIP": ip})).await.unwrap_err());
    assert_eq!(status, 422);
    assert!(message.contains("already allocated"), "{message}");
    let headless = create("headless", json!({"clusterIP": "None"})).await.unwrap().spec.unwrap();
    assert_eq!(headless.cluster_ip.as_deref(), Some("None"));
    let node = create("node", json!({"type": "NodePort"})).await.unwrap().spec.unwrap();
    assert!(node.ports.unwrap()[0].node_port.unwrap() >= 30000);
    services.delete("plain", &DeleteParams::default()).await.unwrap();
    create("taken", json!({"clusterIP": ip})).await.unwrap();
    let kubernetes = services.get("kubernetes").await.unwrap();
    assert_eq!(kubernetes.spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.1"));
}

#[tokio::test]
async fn scale_changes_what_it_scales() {
    let fixture = start().await;
    let deployments: Api<Deployment> = Api::default_namespaced(fixture.client());
    let deployment = from(json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}));
    let made = deployments.create(&PostParams::default(), &deployment).await.unwrap();
    assert_eq!(made.spec.unwrap().replicas, Some(1), "defaults are the server's");
    let scale = Patch::Merge(json!({"spec": {"replicas": 0}}));
    let scale = deployments.patch_scale("web", &PatchParams::default(), &scale).await.unwrap();
    assert_eq!(scale.status.unwrap().selector.as_deref(), Some("a=b"));
    let after = deployments.get("web").await.unwrap();
    assert_eq!((after.spec.unwrap().replicas, after.metadata.generation), (Some(0), Some(2)));
}

#[tokio::test]
async fn definitions_serve_at_once_and_take_their_objects_along() {
    let fixture = start().await;
    let client = fixture.client();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = from(json!({"metadata": {"name": "widgets.example.com"}, "spec": {
    "group": "example.com", "scope": "Namespaced", "names": {"kind": "Widget", "plural": "widgets"},
    "versions": [
        {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 1, "maximum": 5}}},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}},
        {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
    ]}}));
    let made = definitions.create(&PostParams::default(), &definition).await.unwrap();
    assert!(
        made.status
            .unwrap()
            .conditions
            .unwrap()
            .iter()
            .any(|c| c.type_ == "Established" && c.status == "True")
    );

    let api = |version: &str| -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", version, "Widget"));
        Api::default_namespaced_with(client.clone(), &resource)
    };
    let widget = |spec: Value| -> DynamicObject {
        from(
            json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "one"}, "spec": spec, "status": {"x": 1}}),
        )
    };
    let (status, _, message) =
        code(api("v1").create(&PostParams::default(), &widget(json!({"size": 9}))).await.unwrap_err());
    assert_eq!(status, 422);
    assert!(message.contains("spec.size"), "{message}");
    let made = api("v1").create(&PostParams::default(), &widget(json!({"gone": true}))).await.unwrap();
    assert_eq!(made.data["spec"], json!({"size": 1}), "defaulted and pruned");
    assert_eq!(made.data.get("status"), None, "status has an entrance of its own");
    let other = api("v1beta1").get("one").await.unwrap();
    assert_eq!(other.types.unwrap().api_version, "example.com/v1beta1");

    let mut events = definitions
        .watch(&WatchParams::default().fields("metadata.name=widgets.example.com"), "0")
        .await
        .unwrap()
        .boxed();
    definitions.delete("widgets.example.com", &DeleteParams::default()).await.unwrap();
    let gone = async {
        while let Some(event) = events.try_next().await.unwrap() {
            if matches!(event, WatchEvent::Deleted(_)) {
                return;
            }
        }
        panic!("the watch ended");
    };
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .expect("the definition goes when its objects are gone");
    assert_eq!(code(api("v1").list(&ListParams::default()).await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn tokens_tell_who_holds_them() {
    let fixture = start().await;
    let client = fixture.client();
    account(&client).await;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let request = from(json!({"spec": {"audiences": ["mesh"], "expirationSeconds": 600}}));
    let token = accounts.create_token_request("default", &PostParams::default(), &request).await.unwrap();
    let token = token.status.unwrap().token;
    let review = async |audience: &str| -> Value {
        let body = json!({"spec": {"token": token, "audiences": [audience]}}).to_string().into_bytes();
        client
            .request(http::Request::post("/apis/authentication.k8s.io/v1/tokenreviews").body(body).unwrap())
            .await
            .unwrap()
    };
    let good = review("mesh").await;
    assert_eq!(good["status"]["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(good["status"]["audiences"], json!(["mesh"]));
    assert_ne!(review("other").await["status"]["authenticated"], true);
}

#[tokio::test]
async fn roles_decide_what_others_may() {
    let fixture = start().await;
    let nobody = fixture.server.client("bob", &[]);
    let secrets: Api<Secret> = Api::default_namespaced(nobody.clone());
    let (status, reason, message) = code(secrets.list(&ListParams::default()).await.unwrap_err());
    assert_eq!((status, reason.as_str()), (403, "Forbidden"));
    assert!(message.contains("User \"bob\" cannot list resource \"secrets\""), "{message}");
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}, "subjects": [{"kind": "User", "name": "bob"}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let request = http::Request::post(path).body(binding.to_string().into_bytes()).unwrap();
    let _: Value = fixture.client().request(request).await.unwrap();
    secrets.list(&ListParams::default()).await.unwrap();
    let elsewhere: Api<Secret> = Api::namespaced(nobody, "kube-system");
    assert_eq!(code(elsewhere.list(&ListParams::default()).await.unwrap_err()).0, 403);
}

#[tokio::test]
async fn tls_clients_prove_themselves_by_certificate() {
    let fixture = start().await;
    let kubeconfig = Kubeconfig::from_yaml(&fixture.server.admin_kubeconfig()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let mut anonymous = config.clone();
    anonymous.auth_info = Default::default();
    let maps: Api<ConfigMap> = Api::default_namespaced(kube::Client::try_from(config).unwrap());
    maps.create(&PostParams::default(), &config_map("one")).await.unwrap();
    let anonymous = kube::Client::try_from(anonymous).unwrap();
    assert_eq!(anonymous.apiserver_version().await.unwrap().git_version, "v1.35.0");
    let maps: Api<ConfigMap> = Api::default_namespaced(anonymous);
    assert_eq!(code(maps.get("one").await.unwrap_err()).0, 403);
}

#[tokio::test]
async fn logs_and_terminals_reach_the_node_agent() {
    let fixture = start().await;
    let client = fixture.client();
    account(&client).await;
    let echo = |request: Request| async move {
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            let mut stream = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
            let mut bytes = [0; 4];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut bytes).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
        });
        http::Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "raw")
            .body(Body::empty())
            .unwrap()
    };
    let kubelet = axum::Router::new()
        .route(
            "/containerLogs/default/p/c",
            get(|request: Request| async move { request.uri().query().unwrap_or("").to_owned() }),
        )
        .route("/exec/default/p/c", get(echo));
    fixture.server.set_kubelet(kubelet);
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    pods.create(&PostParams::default(), &pod("p", Some("n"))).await.unwrap();
    let parameters = kube::api::LogParams { tail_lines: Some(5), ..Default::default() };
    assert_eq!(pods.logs("p", &parameters).await.unwrap(), "tailLines=5");

    let request = http::Request::get("/api/v1/namespaces/default/pods/p/exec?command=sh&stdin=true")
        .header("connection", "upgrade")
        .header("upgrade", "raw")
        .body(kube::client::Body::empty())
        .unwrap();
    let answer = client.send(request).await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut stream = hyper_util::rt::TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"ping").await.unwrap();
    let mut bytes = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

#[tokio::test(start_paused = true)]
async fn what_pods_use_is_told_from_two_readings() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let fixture = start().await;
    let client = fixture.client();
    account(&client).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut made = Vec::new();
    for name in ["p", "other"] {
        let mut pod = pod(name, Some("n"));
        pod.metadata.labels = Some([("app".to_owned(), name.to_owned())].into());
        made.push(pods.create(&PostParams::default(), &pod).await.unwrap().metadata.uid.unwrap());
    }
    let readings = std::sync::Arc::new(AtomicU64::new(0));
    let figures = get({
        let readings = readings.clone();
        move || async move {
            // Two seconds apart, half a second of processor time each.
            let nth = readings.fetch_add(1, Ordering::SeqCst);
            let container = |name: &str| {
                serde_json::json!({"name": name, "startTime": "2026-01-01T00:00:00Z",
                    "cpu": {"time": format!("2026-01-01T00:01:{:02}Z", 2 * nth), "usageCoreNanoSeconds": 500_000_000 * nth},
                    "memory": {"workingSetBytes": 5000}})
            };
            let of = |name: &str, uid: &str| serde_json::json!({"podRef": {"namespace": "default", "name": name, "uid": uid}, "containers": [container("c")]});
            axum::Json(
                serde_json::json!({"node": {"nodeName": "n"}, "pods": [of("p", &made[0]), of("other", &made[1]), of("gone", "x")]}),
            )
        }
    });
    fixture.server.set_kubelet(axum::Router::new().route("/stats/summary", figures));
    let ask = async |path: &str| -> serde_json::Value {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/default/{path}");
        client.request(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap()
    };
    let list = ask("pods?labelSelector=app%3Dp").await;
    assert_eq!(list["kind"], "PodMetricsList");
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{list}");
    assert_eq!((&items[0]["metadata"]["name"], &items[0]["window"]), (&"p".into(), &"2.000s".into()));
    let usage = serde_json::json!({"cpu": "250000000n", "memory": "5Ki"});
    assert_eq!(items[0]["containers"], serde_json::json!([{"name": "c", "usage": usage}]));
    assert_eq!(ask("pods/other").await["containers"][0]["usage"], usage);
    assert_eq!(readings.load(Ordering::SeqCst), 2, "who asks at once gets the same readings");
    let table = http::Request::get("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods")
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .unwrap();
    let table: serde_json::Value = client.request(table).await.unwrap();
    assert_eq!(table["rows"].as_array().unwrap().len(), 2, "{table}");
    let refused = |method: &str, path: &str| {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/default/{path}");
        client.request::<serde_json::Value>(
            http::Request::builder().method(method).uri(path).body(Vec::new()).unwrap(),
        )
    };
    assert_eq!(code(refused("GET", "pods/gone").await.unwrap_err()).0, 404);
    assert_eq!(code(refused("DELETE", "pods/p").await.unwrap_err()).0, 405);
}
