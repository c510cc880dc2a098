//! Keys are replaced while everything goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebb_http::{Outgoing, Pool, PoolConfig, Protocol, RequestBody, Target};
use ebb_mesh::{Identity, IdentityConfig, MeshAcceptor, Source};
use http::{Request, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::replicas::{controllers, ksvc};
use super::stage::{Stage, TRUST_DOMAIN, apply, serve};

const STEP: Duration = Duration::from_secs(8);

async fn roots(client: &Client) -> std::io::Result<String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "ebb-system");
    let map = api.get("ebb-mesh-root").await.map_err(std::io::Error::other)?;
    Ok(map.data.unwrap_or_default()["ca.crt"].clone())
}

async fn token(client: &Client) -> std::io::Result<String> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let spec = TokenRequestSpec { audiences: vec!["ebb-mesh".into()], ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let made = api.create_token_request("workload", &PostParams::default(), &request).await;
    let status = made.map_err(std::io::Error::other)?.status;
    Ok(status.map(|status| status.token).unwrap_or_default())
}

/// A workload's identity as a pod gets it: a token, the published roots, and the authority's endpoint of this controller.
async fn workload(client: &Client, ca: SocketAddr) -> Identity {
    let (of_roots, of_token) = (client.clone(), client.clone());
    let config = IdentityConfig {
        ca_address: ca.to_string(),
        ca_name: ebb_mesh::CA_SERVER_NAME.into(),
        roots: Source::Fetch(Arc::new(move || {
            let client = of_roots.clone();
            Box::pin(async move { roots(&client).await })
        })),
        token: Source::Fetch(Arc::new(move || {
            let client = of_token.clone();
            Box::pin(async move { token(&client).await })
        })),
        trust_domain: TRUST_DOMAIN.into(),
    };
    Identity::obtain(config).await.expect("an identity")
}

/// A request on a connection of its own.
async fn request(identity: &Identity, to: SocketAddr) -> Result<(), String> {
    let peer = format!("spiffe://{TRUST_DOMAIN}/ns/default/sa/workload");
    let pool = Pool::new(identity.clone(), PoolConfig::default());
    let backend = pool.backend(&Target::tls(to, Protocol::Http1, peer));
    let request = Request::get("/").header("host", "x").body(RequestBody::empty()).expect("a request");
    let mut outgoing = Outgoing::own(request).map_err(|error| error.to_string())?;
    let response = outgoing.send(&backend).await.map_err(|error| format!("{error:?}"))?;
    if response.status() == StatusCode::OK { Ok(()) } else { Err(response.status().to_string()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_replaced_and_neither_a_request_nor_an_admission_is_lost() {
    let stage = Stage::installed().await;
    let controllers = controllers(|config| {
        config.certificate_ttl = STEP;
        config.renewal = ebb_controller::Renewal { after: Some(Duration::from_secs(1)), step: STEP };
    });
    let client = stage.client().await;
    apply(
        &client,
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "workload", "namespace": "default"}}),
    )
    .await;
    let (one, two) = (controllers.start(&stage, 2).await, controllers.start(&stage, 3).await);
    tokio::join!(controllers.ready(2), controllers.ready(3));
    // What is there before the second controller has taken over anything.
    let first = roots(&client).await.expect("published");
    let first = first.split_inclusive("-----END CERTIFICATE-----").next().expect("a root").to_owned();
    // Each has its certificates from another controller.
    let server = workload(&client, SocketAddr::from(([127, 0, 0, 2], controllers.ca_port))).await;
    let caller = workload(&client, SocketAddr::from(([127, 0, 0, 3], controllers.ca_port))).await;
    let stop = CancellationToken::new();
    let address = serve(MeshAcceptor(server), "hello", &stop).await;

    let (began, mut sent, mut failed, mut admitted) = (Instant::now(), 0, Vec::new(), 0);
    while roots(&client).await.expect("a read").contains(&first) {
        assert!(began.elapsed() < Duration::from_secs(60), "the first root is still trusted");
        for _ in 0..10 {
            sent += 1;
            if let Err(error) = request(&caller, address).await {
                failed.push((began.elapsed(), error));
            }
        }
        // Refused, if the API server did not trust the webhooks' certificate.
        apply(&client, ksvc("hello", &admitted.to_string())).await;
        admitted += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(failed.is_empty(), "{} of {sent} requests failed: {failed:?}", failed.len());
    assert!(sent > 100 && admitted > 10, "{sent} requests, {admitted} admissions");
    // Two steps, each at least as long as a certificate lives.
    assert!(began.elapsed() > 2 * STEP, "{:?}", began.elapsed());
    stop.cancel();
    one.end().await;
    two.end().await;
}
