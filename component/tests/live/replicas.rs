//! Several replicas of a component.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ebb_activator::{MeshReporter, Reporter};
use ebb_api::autoscaling::PodAutoscaler;
use ebb_component::Ports;
use ebb_component::leader::Candidate;
use ebb_http::wire::{PokeResponse, Stat, StatBatch};
use ebb_http::{Pool, PoolConfig};
use ebb_mesh::Identity;
use ebb_mesh::ca::{Authority, MaterialPem};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::stage::{Stage, free_port, until};

struct Replica {
    address: IpAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Replica {
    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("it ends well");
    }
}

async fn identity(authority: &Arc<Authority>, account: &str) -> Identity {
    let id = format!("spiffe://cluster.local/ns/ebb-system/sa/{account}").parse().expect("an id");
    Identity::from_authority(authority.clone(), id).await.expect("an identity")
}

async fn autoscaler(stage: &Stage, authority: &Arc<Authority>, last: u8, ports: (u16, u16)) -> Replica {
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    let config = ebb_autoscaler::Config {
        bind: address,
        mtls_port: ports.0,
        ports: Ports { health: ports.1, metrics: 0 },
        candidate: Some(Candidate { pod: format!("autoscaler-{last}"), address }),
        ..ebb_autoscaler::Config::default()
    };
    let (client, stop) = (stage.client().await, CancellationToken::new());
    let run = ebb_autoscaler::run(config, client, identity(authority, "autoscaler").await, stop.clone());
    let task = tokio::spawn(async move { run.await.expect("it ran") });
    Replica { address, stop, task }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_to_any_autoscaler_reaches_the_one_that_decides() {
    let stage = Stage::installed().await;
    let root = MaterialPem::generate_root("cluster.local", SystemTime::now()).expect("a root");
    let authority = Authority::new("cluster.local", Duration::from_secs(3600), &root).expect("an authority");
    let authority = Arc::new(authority);
    let pa: PodAutoscaler = serde_json::from_value(json!({
        "apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "PodAutoscaler",
        "metadata": {"name": "hello-00001", "namespace": "default"},
        "spec": {"containerConcurrency": 0, "protocolType": "http1", "reachability": "Reachable",
                 "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001-deployment"}},
    }))
    .expect("a PodAutoscaler");
    let pas: Api<PodAutoscaler> = Api::namespaced(stage.client().await, "default");
    pas.create(&PostParams::default(), &pa).await.expect("created");

    let ports = (free_port(), free_port());
    let first = autoscaler(&stage, &authority, 2, ports).await;
    let pool = Pool::new(identity(&authority, "activator").await, PoolConfig::default());
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
    let answer = super::stage::get(asked, "/v1/decisions/default/hello-00001").await;
    assert!(answer.starts_with("HTTP/1.1 307"), "{answer}");
    assert!(answer.contains(&format!("location: http://127.0.0.2:{}/v1/decisions", ports.1)), "{answer}");
    // With the first gone it decides itself.
    first.end().await;
    until("the second decides", async || desired(report(&to_second).await) == Some(1)).await;
    let answer = super::stage::get(asked, "/v1/decisions/default/hello-00001").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    second.end().await;
}
