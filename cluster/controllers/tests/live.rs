//! All controllers against the real API server in one process; a stand-in for the node agent says that pods run.
// Lint exceptions for tests do not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use cluster_apiserver::{ApiServer, Config, MASTERS};
use futures::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{ConfigMap, Event, Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy},
    runtime::watcher::{self, Event as Watched},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

struct Live {
    client: Client,
    api: ApiServer,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Live {
    async fn start() -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let dir = tempfile::tempdir().unwrap();
        let api = ApiServer::start(Config::new(dir.path())).await.unwrap();
        let client = api.client("system:test", &[MASTERS]);
        let shutdown = CancellationToken::new();
        let config = cluster_controllers::Config { root_ca_pem: "the root".into() };
        tokio::spawn(cluster_controllers::run(client.clone(), config, shutdown.clone()));
        let nodes: Api<Node> = Api::all(client.clone());
        let mut node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        node = nodes.create(&PostParams::default(), &node).await.unwrap();
        let allocatable = json!({"cpu": "4", "memory": "4Gi", "pods": "100"});
        node.status = serde_json::from_value(json!({"allocatable": allocatable})).unwrap();
        nodes.replace_status("n", &PostParams::default(), &node).await.unwrap();
        tokio::spawn(stand_in(client.clone(), shutdown.clone()));
        let live = Self { client, api, shutdown, _dir: dir };
        live.until::<ServiceAccount>("default", "metadata.name=default", |accounts| accounts.len() == 1)
            .await;
        live
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + serde::Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let object: K = serde_json::from_value(object).unwrap();
        let namespace = object.meta().namespace.clone().unwrap_or_else(|| "default".into());
        self.api::<K>(&namespace).create(&PostParams::default(), &object).await.unwrap()
    }

    /// Waits until the objects that a field selector selects are as wanted.
    async fn until<K>(&self, namespace: &str, fields: &str, wanted: impl Fn(&[K]) -> bool) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug
            + Send
            + 'static,
    {
        let api = self.api::<K>(namespace);
        let mut held: Vec<K> = Vec::new();
        let mut listing = true;
        let stream = watcher::watcher(api, watcher::Config::default().fields(fields));
        futures::pin_mut!(stream);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if !listing && wanted(&held) {
                return held;
            }
            let Ok(event) = tokio::time::timeout_at(deadline, stream.next()).await else {
                panic!("not as wanted within {PATIENCE:?}: {held:#?}");
            };
            match event.unwrap().unwrap() {
                Watched::Init => {
                    listing = true;
                    held.clear();
                }
                Watched::InitDone => listing = false,
                Watched::InitApply(object) | Watched::Apply(object) => {
                    held.retain(|known| known.meta().name != object.meta().name);
                    held.push(object);
                }
                Watched::Delete(object) => held.retain(|known| known.meta().name != object.meta().name),
            }
        }
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.api.shutdown().await;
    }
}

/// Says at once that bound pods are ready, unless their image is `broken`, and confirms deletions.
async fn stand_in(client: Client, shutdown: CancellationToken) {
    let stream = watcher::watcher(Api::<Pod>::all(client.clone()), watcher::Config::default());
    let mut stream = std::pin::pin!(stream.take_until(shutdown.cancelled_owned()));
    let mut number = 0;
    while let Some(event) = stream.next().await {
        let Ok(Watched::Apply(pod) | Watched::InitApply(pod)) = event else { continue };
        let (name, namespace) = (pod.metadata.name.clone().unwrap(), pod.metadata.namespace.clone().unwrap());
        let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        if pod.metadata.deletion_timestamp.is_some() {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            drop(api.delete(&name, &now).await);
            continue;
        }
        let spec = pod.spec.unwrap();
        let broken = spec.containers[0].image.as_deref() == Some("broken");
        if spec.node_name.is_none() || broken || pod.status.unwrap_or_default().pod_ip.is_some() {
            continue;
        }
        number += 1;
        let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let ip = format!("10.0.0.{number}");
        let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]});
        drop(
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await,
        );
    }
}

fn deployment(namespace: &str, name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

fn available(deployment: &Deployment) -> (i32, i32, bool) {
    let status = deployment.status.clone().unwrap_or_default();
    let current = status.observed_generation == deployment.metadata.generation;
    (status.updated_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0), current)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_scale_to_bound_pod_without_a_pause() {
    let live = Live::start().await;
    live.create::<Deployment>(deployment("default", "web", 0, "web")).await;
    live.until::<ReplicaSet>("default", "", |sets| sets.len() == 1).await;
    let deployments = live.api::<Deployment>("default");
    let mut times = Vec::new();
    for _ in 0..10 {
        let begin = Instant::now();
        let scale = |replicas: i32| Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let params = PatchParams::default();
        let bound = live.until::<Pod>("default", "", |pods| {
            pods.iter().any(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()))
        });
        let one = scale(1);
        let (_, scaled) = tokio::join!(bound, deployments.patch_scale("web", &params, &one));
        scaled.unwrap();
        times.push(begin.elapsed());
        deployments.patch_scale("web", &PatchParams::default(), &scale(0)).await.unwrap();
        live.until::<Pod>("default", "", <[Pod]>::is_empty).await;
    }
    times.sort();
    println!("scale to bound pod: p50 {:?}, max {:?}", times[times.len() / 2], times[times.len() - 1]);
    // A poll, a debounce or a back-off anywhere on the way would show in the median.
    assert!(times[times.len() / 2] < Duration::from_millis(250), "{times:?}");
    live.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_moves_endpoints_and_can_be_undone() {
    let live = Live::start().await;
    let service = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    live.create::<Service>(service).await;
    live.create::<Deployment>(deployment("default", "web", 3, "one")).await;
    live.until::<Deployment>("default", "", |held| held.iter().any(|held| available(held) == (3, 3, true)))
        .await;
    let ready = |slices: &[EndpointSlice]| {
        let mine = slices.iter().filter(|slice| slice.metadata.generate_name.as_deref() == Some("web-"));
        let endpoints = mine.flat_map(|slice| slice.endpoints.clone());
        let ready = endpoints
            .filter(|endpoint| endpoint.conditions.as_ref().and_then(|held| held.ready) == Some(true));
        ready.count()
    };
    let slices = live.until::<EndpointSlice>("default", "", |slices| ready(slices) == 3).await;
    let slice = slices.iter().find(|slice| slice.metadata.generate_name.is_some()).unwrap();
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));

    let deployments = live.api::<Deployment>("default");
    let image = |image: &str| {
        let template = json!({"spec": {"containers": [{"name": "c", "image": image}]}});
        Patch::Strategic(json!({"spec": {"template": template}}))
    };
    deployments.patch("web", &PatchParams::default(), &image("broken")).await.unwrap();
    live.until::<ReplicaSet>("default", "", |sets| {
        sets.len() == 2
            && sets.iter().any(|set| set.status.as_ref().is_some_and(|status| status.replicas == 1))
    })
    .await;
    assert_eq!(available(&deployments.get("web").await.unwrap()).1, 3, "25 % of 3 rounds down to none");
    deployments.patch("web", &PatchParams::default(), &image("one")).await.unwrap();
    let after = live.until::<Deployment>("default", "", |held| {
        held.iter()
            .any(|held| available(held) == (3, 3, true) && held.status.as_ref().unwrap().replicas == Some(3))
    });
    let revision =
        after.await[0].metadata.annotations.clone().unwrap()["deployment.kubernetes.io/revision"].clone();
    assert_eq!(revision, "3");
    live.until::<Event>("default", "", |events| {
        events.iter().any(|event| event.reason.as_deref() == Some("ScalingReplicaSet"))
    })
    .await;
    live.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owned_goes_with_its_owner() {
    let live = Live::start().await;
    let deployments = live.api::<Deployment>("default");
    for (policy, left) in [
        (PropagationPolicy::Background, 0),
        (PropagationPolicy::Foreground, 0),
        (PropagationPolicy::Orphan, 2),
    ] {
        live.create::<Deployment>(deployment("default", "web", 2, "web")).await;
        live.until::<Deployment>("default", "", |held| {
            held.iter().any(|held| available(held) == (2, 2, true))
        })
        .await;
        let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
        deployments.delete("web", &params).await.unwrap();
        live.until::<Deployment>("default", "", <[Deployment]>::is_empty).await;
        live.until::<Pod>("default", "", |pods| pods.len() == left).await;
    }
    let sets = live.until::<ReplicaSet>("default", "", |sets| sets.len() == 1).await;
    assert_eq!(sets[0].metadata.owner_references.clone().unwrap_or_default(), []);
    live.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_it_holds() {
    let live = Live::start().await;
    let namespaces: Api<Namespace> = Api::all(live.client.clone());
    let made: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &made).await.unwrap();
    let maps =
        live.until::<ConfigMap>("team", "metadata.name=kube-root-ca.crt", |maps| maps.len() == 1).await;
    assert_eq!(maps[0].data.as_ref().unwrap()["ca.crt"], "the root");
    live.create::<Deployment>(deployment("team", "web", 2, "web")).await;
    live.until::<Deployment>("team", "", |held| held.iter().any(|held| available(held) == (2, 2, true)))
        .await;
    let held = json!({"metadata": {"name": "held", "namespace": "team", "finalizers": ["example.com/wait"]}});
    live.create::<ConfigMap>(held).await;
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    live.until::<Pod>("team", "", <[Pod]>::is_empty).await;
    live.until::<ConfigMap>("team", "", |maps| {
        maps.len() == 1 && maps[0].metadata.deletion_timestamp.is_some()
    })
    .await;
    let condition = |namespace: &Namespace| {
        let conditions = namespace.status.as_ref().and_then(|status| status.conditions.clone());
        let held = conditions
            .unwrap_or_default()
            .into_iter()
            .find(|held| held.type_ == "NamespaceFinalizersRemaining");
        held.is_some_and(|held| held.message.unwrap_or_default().contains("example.com/wait"))
    };
    let told =
        kube::runtime::wait::await_condition(namespaces.clone(), "team", |held: Option<&Namespace>| {
            held.is_some_and(condition)
        });
    tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    live.api::<ConfigMap>("team").patch("held", &PatchParams::default(), &release).await.unwrap();
    let gone =
        kube::runtime::wait::await_condition(namespaces, "team", |held: Option<&Namespace>| held.is_none());
    tokio::time::timeout(PATIENCE, gone).await.unwrap().unwrap();
    let left = live.api::<Deployment>("team").list(&ListParams::default()).await.unwrap();
    assert!(left.items.is_empty());
    live.end().await;
}
