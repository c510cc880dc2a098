//! Several replicas of a component.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ebb_activator::{MeshReporter, Reporter};
use ebb_component::Ports;
use ebb_component::leader::Candidate;
use ebb_http::wire::{PokeResponse, Stat, StatBatch};
use ebb_http::{Pool, PoolConfig};
use ebb_mesh::ca::Authority;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::stage::{Running, Stage, apply, ask, authority, free_port, get, identity, until};

struct Replica {
    address: IpAddr,
    running: Running,
}

fn autoscaler_config(last: u8, ports: (u16, u16)) -> ebb_autoscaler::Config {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    ebb_autoscaler::Config {
        bind: address,
        mtls_port: ports.0,
        ports: Ports { health: ports.1, metrics: 0 },
        candidate: Some(Candidate { pod: format!("autoscaler-{last}"), address }),
        ..ebb_autoscaler::Config::default()
    }
}

async fn autoscaler(stage: &Stage, authority: &Arc<Authority>, last: u8, ports: (u16, u16)) -> Replica {
    let config = autoscaler_config(last, ports);
    let address = config.bind;
    let client = stage.account("autoscaler").await;
    let identity = identity(authority, "ebb-system", "autoscaler").await;
    let run = |stop| Box::pin(ebb_autoscaler::run(config, client, identity, stop)) as _;
    Replica { address, running: Running::start::<ebb_autoscaler::Error>(run) }
}

/// Several controllers with the same ports, each at an address of its own. The API server calls the webhooks of the last one.
pub(super) struct Controllers {
    webhook_port: u16,
    pub(super) ca_port: u16,
    health_port: u16,
    adjust: fn(&mut ebb_controller::Config),
}

pub(super) fn controllers(adjust: fn(&mut ebb_controller::Config)) -> Controllers {
    Controllers { webhook_port: free_port(), ca_port: free_port(), health_port: free_port(), adjust }
}

impl Controllers {
    pub(super) async fn start(&self, stage: &Stage, last: u8) -> Running {
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let mut config = ebb_controller::Config {
            bind_address: address,
            webhook_port: self.webhook_port,
            webhook_url: Some(format!("https://127.0.0.3:{}", self.webhook_port)),
            ca_port: self.ca_port,
            ports: Ports { health: self.health_port, metrics: 0 },
            candidate: Some(Candidate { pod: format!("controller-{last}"), address }),
            ..ebb_controller::Config::default()
        };
        (self.adjust)(&mut config);
        let client = stage.account("controller").await;
        Running::start::<ebb_controller::Error>(|stop| Box::pin(ebb_controller::run(config, client, stop)))
    }

    pub(super) async fn ready(&self, last: u8) {
        let health = SocketAddr::from(([127, 0, 0, last], self.health_port));
        until("a ready controller", async || {
            ask(health, "x", "/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        })
        .await;
    }
}

/// A report by way of this replica first.
async fn report(reporter: &MeshReporter) -> Option<PokeResponse> {
    let stat = Stat {
        namespace: "default".into(),
        revision: "hello-00001".into(),
        pod: "activator-1".into(),
        average_concurrent_requests: 1.0,
        ..Stat::default()
    };
    reporter.report(StatBatch { stats: vec![stat] }).await.ok()
}

fn pod_autoscaler() -> Value {
    json!({
        "apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "PodAutoscaler",
        "metadata": {"name": "hello-00001", "namespace": "default"},
        "spec": {"containerConcurrency": 0, "protocolType": "http1", "reachability": "Reachable",
                 "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001-deployment"}},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_to_any_autoscaler_reaches_the_one_that_decides() {
    let stage = Stage::installed().await;
    let authority = authority();
    apply(&stage.client().await, pod_autoscaler()).await;
    let ports = (free_port(), free_port());
    let first = autoscaler(&stage, &authority, 2, ports).await;
    let pool = Pool::new(identity(&authority, "ebb-system", "activator").await, PoolConfig::default());
    let to = |replica: &Replica| {
        let reporter = MeshReporter::new(&pool, &ebb_activator::Config::default(), "cluster.local");
        reporter.set(&[SocketAddr::new(replica.address, ports.0)]);
        reporter
    };
    let to_first = to(&first);
    let desired = |response: Option<PokeResponse>| response.and_then(|response| response.desired);
    until("the first decides", async || desired(report(&to_first).await) == Some(1)).await;
    let second = autoscaler(&stage, &authority, 3, ports).await;
    let to_second = to(&second);
    // It stands by: what it answers, the first one has decided.
    until("the second passes on", async || desired(report(&to_second).await) == Some(1)).await;
    let asked = SocketAddr::new(second.address, ports.1);
    let answer = get(asked, "/v1/decisions/default/hello-00001").await;
    assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
    assert!(answer.contains(&format!("location: http://127.0.0.2:{}/v1/decisions", ports.1)), "{answer}");
    // With the first gone it decides itself.
    first.running.end().await;
    until("the second decides", async || desired(report(&to_second).await) == Some(1)).await;
    let answer = get(asked, "/v1/decisions/default/hello-00001").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    second.running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_start_does_not_wait_until_a_killed_autoscaler_is_replaced() {
    let stage = Stage::installed().await;
    let authority = authority();
    let client = stage.client().await;
    let labels = json!({"serving.knative.dev/revision": "hello-00001"});
    let container = json!({"name": "app", "image": "example.com/hello:v1"});
    apply(
        &client,
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "hello-00001-deployment", "namespace": "default", "labels": labels},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels},
                     "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}},
        }),
    )
    .await;
    apply(&client, pod_autoscaler()).await;
    let ports = (free_port(), free_port());
    // With a runtime of its own, which dies with everything in it.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let of_first = stage.account("autoscaler").await;
    let first = autoscaler_config(2, ports);
    let own = identity(&authority, "ebb-system", "autoscaler").await;
    doomed.spawn(ebb_autoscaler::run(first, of_first, own, CancellationToken::new()));
    let leases: Api<Lease> = Api::namespaced(client.clone(), "ebb-system");
    let holder = async || {
        let lease = leases.get_opt("ebb-autoscaler").await.expect("a read");
        lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default()
    };
    until("the first leads", async || holder().await == "autoscaler-2_127.0.0.2").await;
    let second = autoscaler(&stage, &authority, 3, ports).await;
    let asked = SocketAddr::new(second.address, ports.1);
    until("the second follows", async || {
        ask(asked, "x", "/v1/decisions/a/b").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 307"))
    })
    .await;
    doomed.shutdown_background();
    let pool = Pool::new(identity(&authority, "ebb-system", "activator").await, PoolConfig::default());
    let reporter = MeshReporter::new(&pool, &ebb_activator::Config::default(), "cluster.local");
    reporter.set(&[SocketAddr::new(second.address, ports.0)]);
    until("it is woken", async || report(&reporter).await.and_then(|response| response.desired) == Some(1))
        .await;
    assert_eq!(holder().await, "autoscaler-2_127.0.0.2", "nobody else leads yet");
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let scale = deployments.get_scale("hello-00001-deployment").await.expect("a scale");
    assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(1));
    second.running.end().await;
}

pub(super) fn ksvc(name: &str, say: &str) -> Value {
    let image = "example.com/hello@sha256:0123456789012345678901234567890123456789012345678901234567890123";
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [{"image": image, "env": [{"name": "SAY", "value": say}]}]}}}
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_share_their_keys_and_one_takes_over_from_the_other() {
    let stage = Stage::installed().await;
    let controllers = controllers(|_| {});
    // Both at once: of the two, one makes each Secret.
    let (first, second) = tokio::join!(controllers.start(&stage, 2), controllers.start(&stage, 3));
    tokio::join!(controllers.ready(2), controllers.ready(3));
    let client = stage.client().await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "ebb-system");
    for name in ["ebb-mesh-ca", "webhook-certs"] {
        let secret = secrets.get(name).await.expect("it is there");
        assert!(secret.data.expect("data").contains_key("issued"), "{name}");
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let exists = async |name: &str| deployments.get_opt(name).await.expect("a read").is_some();
    // Accepted by the second one's webhook with the CA that either has registered.
    apply(&client, ksvc("hello", "one")).await;
    until("the first revision", async || exists("hello-00001-deployment").await).await;
    // The one that leads goes; the other one does the next revision. The webhooks are at the second, which must not be it.
    let leases: Api<Lease> = Api::namespaced(client.clone(), "ebb-system");
    let lease = leases.get("ebb-controller").await.expect("the Lease").spec.expect("a spec");
    let (second, first) = if lease.holder_identity.as_deref() == Some("controller-3_127.0.0.3") {
        second.end().await;
        until("the first leads", async || leads(&leases, "controller-2_127.0.0.2").await).await;
        (controllers.start(&stage, 3).await, first)
    } else {
        (second, first)
    };
    controllers.ready(3).await;
    first.end().await;
    apply(&client, ksvc("hello", "two")).await;
    until("the second revision", async || exists("hello-00002-deployment").await).await;
    assert!(leads(&leases, "controller-3_127.0.0.3").await);
    second.end().await;
}

async fn leads(leases: &Api<Lease>, holder: &str) -> bool {
    let lease = leases.get("ebb-controller").await.expect("the Lease").spec.expect("a spec");
    lease.holder_identity.as_deref() == Some(holder)
}
