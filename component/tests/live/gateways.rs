//! Several gateways, their certificates, and what they say in statuses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ebb_api::conditions::ConditionedObject;
use ebb_api::networking::Ingress;
use ebb_component::Ports;
use ebb_gateway::{Config, Error, Listeners};
use ebb_http::{Body, Peer, PlainAcceptor, ServerConfig, handler_fn, headers};
use http::{Request, Response};
use hyper::body::Incoming;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

use super::stage::{
    Running, Stage, apply, ask, authority, exchange, free_port, identity, own_ip, serve, until,
};

/// A gateway, and where it is.
pub(super) struct Gateway {
    pub(super) running: Running,
    pub(super) http: SocketAddr,
    tls: SocketAddr,
    pub(super) health: SocketAddr,
    metrics: SocketAddr,
}

pub(super) async fn gateway(stage: &Stage) -> Gateway {
    gateway_at(stage, free_port()).await
}

async fn gateway_at(stage: &Stage, local_port: u16) -> Gateway {
    let bind = own_ip();
    let ports = Ports { health: free_port(), metrics: free_port() };
    let config = Config {
        bind,
        http_port: free_port(),
        tls_port: free_port(),
        local_port,
        ports,
        ..Config::default()
    };
    let at = |port| SocketAddr::new(bind, port);
    let (http, tls) = (at(config.http_port), at(config.tls_port));
    let client = stage.account("gateway").await;
    let identity = identity(&authority(), "ebb-system", "gateway").await;
    let run = |stop| Box::pin(ebb_gateway::run(config, Listeners::default(), client, identity, stop)) as _;
    let running = Running::start::<Error>(run);
    Gateway { running, http, tls, health: at(ports.health), metrics: at(ports.metrics) }
}

/// An Ingress that leads to the Service `plain`.
pub(super) fn ingress(name: &str, tls: Value) -> Value {
    json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "default",
                     "annotations": {"networking.knative.dev/ingress.class": "ebb.ingress.networking.knative.dev"}},
        "spec": {"httpOption": "Enabled", "tls": tls, "rules": [{
            "hosts": [format!("{name}.default.example.com")], "visibility": "ExternalIP",
            "http": {"paths": [{"splits": [
                {"serviceName": "plain", "serviceNamespace": "default", "servicePort": 80, "percent": 100}
            ]}]}
        }]}
    })
}

/// A Service with this endpoint, in plaintext.
pub(super) async fn service(client: &Client, namespace: &str, name: &str, endpoints: &[SocketAddr]) {
    apply(
        client,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
               "spec": {"ports": [{"name": "http", "port": 80}]}}),
    )
    .await;
    for (index, at) in endpoints.iter().enumerate() {
        apply(
            client,
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                   "metadata": {"name": format!("{name}-{index}"), "namespace": namespace,
                                "labels": {"kubernetes.io/service-name": name}},
                   "ports": [{"name": "http", "port": at.port(), "protocol": "TCP"}],
                   "endpoints": [{"addresses": [at.ip().to_string()], "conditions": {"ready": true}}]}),
        )
        .await;
    }
}

async fn found(client: &Client, name: &str) -> Ingress {
    Api::namespaced(client.clone(), "default").get(name).await.expect("the Ingress")
}

pub(super) async fn answers(at: SocketAddr, name: &str) -> bool {
    let answer = ask(at, &format!("{name}.default.example.com"), "/").await.unwrap_or_default();
    answer.starts_with("HTTP/1.1 200") && answer.contains("hello")
}

/// A gateway of somebody else's making, which serves the present version only once it is told to; it asks a real one what that is.
async fn laggard(
    real: SocketAddr,
    stop: &CancellationToken,
) -> (SocketAddr, Arc<AtomicBool>, Arc<AtomicBool>) {
    let (current, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (serves, noted) = (current.clone(), asked.clone());
    let handler = handler_fn(move |request: Request<Incoming>, _: Arc<Peer>| {
        let (serves, noted) = (serves.clone(), noted.clone());
        async move {
            noted.store(true, Ordering::SeqCst);
            let mut response = Response::new(Body::from(""));
            let host = request.headers()["host"].to_str().expect("text").to_owned();
            let hash = if serves.load(Ordering::SeqCst) {
                hash_of(real, &host).await.parse().expect("a value")
            } else {
                "of-before".parse().expect("a value")
            };
            response.headers_mut().insert(headers::K_NETWORK_HASH, hash);
            response
        }
    });
    let listener = tokio::net::TcpListener::bind((own_ip(), 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(ebb_http::serve(listener, PlainAcceptor, handler, ServerConfig::default(), stop.clone()));
    (address, current, asked)
}

/// The hash that a gateway serves for a host.
async fn hash_of(gateway: SocketAddr, host: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(gateway).await.expect("connected");
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {host}\r\nk-network-probe: ingress\r\nk-network-hash: override\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let line = answer.lines().find_map(|line| line.strip_prefix("k-network-hash: "));
    line.unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_is_ready_when_every_gateway_serves_it() {
    let stage = Stage::installed().await;
    let (client, stop) = (stage.client().await, CancellationToken::new());
    let app = serve(PlainAcceptor, "hello", &stop).await;
    service(&client, "default", "plain", &[app]).await;
    // Both know of all from the start: what a gateway was not told of yet it cannot wait for.
    let ports = (free_port(), free_port());
    let (first, second) = (SocketAddr::new(own_ip(), ports.0), SocketAddr::new(own_ip(), ports.1));
    let (late, current, asked) = laggard(first, &stop).await;
    service(&client, "ebb-system", "gateway-internal", &[first, second, late]).await;
    let one = gateway_at(&stage, ports.0).await;
    let two = gateway_at(&stage, ports.1).await;
    apply(&client, ingress("hello", json!([]))).await;
    until("both gateways serve", async || {
        answers(one.http, "hello").await && answers(two.http, "hello").await
    })
    .await;
    until("the third one is asked", async || asked.load(Ordering::SeqCst)).await;
    // Longer than a gateway that does not answer at all would be waited for.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!found(&client, "hello").await.is_ready(), "a gateway serves the version before");
    current.store(true, Ordering::SeqCst);
    until("Ready", async || found(&client, "hello").await.is_ready()).await;

    // The address of the load balancer is told as soon as it is known.
    apply(
        &client,
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gateway", "namespace": "ebb-system"},
               "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80}]}}),
    )
    .await;
    let services: Api<k8s_openapi::api::core::v1::Service> = Api::namespaced(client.clone(), "ebb-system");
    let given = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}});
    let patch = kube::api::Patch::Merge(&given);
    services.patch_status("gateway", &Default::default(), &patch).await.expect("written");
    until("the load balancer's address", async || {
        let status = found(&client, "hello").await.status.unwrap_or_default();
        let public = status.public_load_balancer.unwrap_or_default().ingress;
        public
            .first()
            .is_some_and(|first| first.ip.as_deref() == Some("192.0.2.7") && first.domain_internal.is_some())
    })
    .await;
    let text = ask(one.metrics, "x", "/metrics").await.expect("metrics");
    for wanted in [
        "ebb_gateway_requests_total{side=\"external\",code_class=\"2xx\"}",
        "# TYPE ebb_gateway_ingresses gauge",
    ] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    stop.cancel();
    one.running.end().await;
    two.running.end().await;
}

/// A certificate of its own for a host: Secret, and what a client must trust.
fn certificate(host: &str) -> (Value, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).expect("a certificate");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": host.split('.').next().expect("a name"), "namespace": "default"},
        "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()}
    });
    (secret, made.cert.der().clone())
}

async fn over_tls(at: SocketAddr, host: &str, trusted: &CertificateDer<'static>) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).map_err(|error| error.to_string())?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let stream = tokio::net::TcpStream::connect(at).await.map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    exchange(stream.map_err(|error| error.to_string())?, host, "/").await.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_have_their_certificates_and_a_new_one_is_served_at_once() {
    let stage = Stage::installed().await;
    let (client, stop) = (stage.client().await, CancellationToken::new());
    let app = serve(PlainAcceptor, "hello", &stop).await;
    service(&client, "default", "plain", &[app]).await;
    let gateway = gateway(&stage).await;
    let (one, other) = ("one.default.example.com", "other.default.example.com");
    let ((secret, trusted), (other_secret, other_trusted)) = (certificate(one), certificate(other));
    apply(&client, secret).await;
    apply(&client, other_secret).await;
    for name in ["one", "other"] {
        let host = format!("{name}.default.example.com");
        let tls = json!([{"hosts": [host], "secretName": name, "secretNamespace": "default"}]);
        apply(&client, ingress(name, tls)).await;
    }
    let ok = |answer: Result<String, String>| answer.is_ok_and(|answer| answer.contains("hello"));
    until("one", async || ok(over_tls(gateway.tls, one, &trusted).await)).await;
    until("the other", async || ok(over_tls(gateway.tls, other, &other_trusted).await)).await;
    let error = over_tls(gateway.tls, one, &other_trusted).await.expect_err("each has its own");
    assert!(error.contains("certificate"), "{error}");
    over_tls(gateway.tls, "none.default.example.com", &trusted).await.expect_err("nobody's host");
    // Renewed.
    let (renewed, trusted) = certificate(one);
    apply(&client, renewed).await;
    until("the renewed one", async || ok(over_tls(gateway.tls, one, &trusted).await)).await;
    assert!(ok(over_tls(gateway.tls, other, &other_trusted).await));
    stop.cancel();
    gateway.running.end().await;
}
