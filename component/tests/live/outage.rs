//! The API server is away for a while: what was known stays in force, and what changes afterwards comes through.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ebb_component::Ports;
use ebb_http::{Outgoing, PlainAcceptor, Pool, PoolConfig, Protocol, RequestBody, Target, headers};
use ebb_mesh::MeshAcceptor;
use http::Request;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::gateways::{answers, gateway, ingress, service};
use super::stage::{Running, Stage, apply, ask, authority, free_port, get, identity, serve, until};

const AWAY: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_starts_before_the_api_server_and_serves_while_it_is_away() {
    let mut stage = Stage::installed().await;
    let (client, stop) = (stage.client().await, CancellationToken::new());
    let app = serve(PlainAcceptor, "hello", &stop).await;
    service(&client, "default", "plain", &[app]).await;
    apply(&client, ingress("before", json!([]))).await;
    stage.stop().await;
    let gateway = gateway(&stage).await;
    until("it lives", async || ask(gateway.health, "x", "/healthz").await.is_ok()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let answer = get(gateway.health, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("waiting for: watches"), "{answer}");
    stage.start().await;
    until("it serves", async || answers(gateway.http, "before").await).await;
    assert!(get(gateway.health, "/readyz").await.starts_with("HTTP/1.1 200"));

    stage.stop().await;
    let back = tokio::time::Instant::now() + AWAY;
    let mut asked = 0;
    while tokio::time::Instant::now() < back {
        assert!(answers(gateway.http, "before").await, "request {asked} without an API server");
        asked += 1;
    }
    assert!(asked > 10, "{asked}");
    assert!(get(gateway.health, "/readyz").await.starts_with("HTTP/1.1 200"), "it can do its work");
    stage.start().await;
    apply(&client, ingress("after", json!([]))).await;
    until("the new one", async || answers(gateway.http, "after").await).await;
    assert!(answers(gateway.http, "before").await);
    stop.cancel();
    gateway.running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_activator_forwards_while_the_api_server_is_away() {
    let mut stage = Stage::installed().await;
    let (client, stop, authority) = (stage.client().await, CancellationToken::new(), authority());
    let pod = serve(MeshAcceptor(identity(&authority, "default", "default").await), "hello", &stop).await;
    apply(
        &client,
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
               "metadata": {"name": "hello-00001", "namespace": "default"},
               "spec": {"containers": [{"image": "example.com/hello:v1"}], "timeoutSeconds": 20}}),
    )
    .await;
    apply(
        &client,
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
               "metadata": {"name": "hello-00001-private-1", "namespace": "default",
                            "labels": {"kubernetes.io/service-name": "hello-00001-private"}},
               "ports": [{"name": "https", "port": pod.port(), "protocol": "TCP"}],
               "endpoints": [{"addresses": [pod.ip().to_string()], "conditions": {"ready": true}}]}),
    )
    .await;
    let bind = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let ports = Ports { health: free_port(), metrics: free_port() };
    let config = ebb_activator::Config { bind, mtls_port: free_port(), ports, ..Default::default() };
    let (address, own) =
        (SocketAddr::new(bind, config.mtls_port), identity(&authority, "ebb-system", "activator").await);
    let of_activator = stage.account("activator").await;
    let run = |stop| Box::pin(ebb_activator::run(config, of_activator, own, stop)) as _;
    let running = Running::start::<ebb_activator::Error>(run);

    let pool = Pool::new(identity(&authority, "ebb-system", "gateway").await, PoolConfig::default());
    let peer = "spiffe://cluster.local/ns/ebb-system/sa/activator";
    let backend = pool.backend(&Target::tls(address, Protocol::Http1, peer));
    let request = async || -> bool {
        let request = Request::get("/")
            .header("host", "hello.default.example.com")
            .header(headers::KNATIVE_SERVING_NAMESPACE, "default")
            .header(headers::KNATIVE_SERVING_REVISION, "hello-00001")
            .body(RequestBody::empty())
            .expect("a request");
        let mut outgoing = Outgoing::own(request).expect("it can be sent");
        outgoing.send(&backend).await.is_ok_and(|response| response.status() == 200)
    };
    until("it forwards", request).await;
    stage.stop().await;
    let back = tokio::time::Instant::now() + AWAY;
    while tokio::time::Instant::now() < back {
        assert!(request().await, "without an API server");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage.start().await;
    assert!(request().await);
    let text = get(SocketAddr::new(bind, ports.metrics), "/metrics").await;
    for wanted in ["ebb_activator_requests_total{code_class=\"2xx\"}", "ebb_activator_requests_waiting 0"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    stop.cancel();
    running.end().await;
}
