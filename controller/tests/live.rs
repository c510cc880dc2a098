//! The controller against the real API server in one process: webhooks over TLS, the children of a Service, and how readiness is
//! carried up. What pods, autoscaler and gateway would say is written by the test.

#![allow(clippy::panic)] // a test ends that way

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use cluster_apiserver::{ApiServer, MASTERS};
use ebb_api::autoscaling::PodAutoscaler;
use ebb_api::conditions::ConditionedObject;
use ebb_api::manifests::{Options, Place};
use ebb_api::networking::{Certificate, Ingress};
use ebb_api::serving::{Configuration, Revision, Route, Service};
use ebb_controller::{Config, install};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service as CoreService, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);
const IMAGE: &str =
    "example.com/hello@sha256:0123456789012345678901234567890123456789012345678901234567890123";

struct Live {
    client: Client,
    stop: CancellationToken,
    _api: ApiServer,
    _dir: tempfile::TempDir,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

impl Live {
    async fn start() -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let dir = tempfile::tempdir().expect("a folder");
        let api = ApiServer::start(cluster_apiserver::Config::new(dir.path())).await.expect("an API server");
        let client = api.client("system:serviceaccount:ebb-system:controller", &[MASTERS]);
        let options = Options {
            domain: Some("localhost".into()),
            place: Place::Embedded {
                queue_sidecar_image: "queue-proxy:v1".into(),
                registry_mirror: String::new(),
                external_url_port: Some(8080),
                external_url_tls_port: None,
            },
            ..Options::default()
        };
        install::install(&client, &options).await.expect("the platform's objects");
        let webhook_port = free_port();
        let config = Config {
            bind_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            webhook_port,
            webhook_url: Some(format!("https://127.0.0.1:{webhook_port}")),
            ca_port: free_port(),
            ports: ebb_component::Ports::NONE,
            ..Config::default()
        };
        let (ready, stop) = (config.ready.clone(), CancellationToken::new());
        tokio::spawn(ebb_controller::run(config, client.clone(), stop.clone()));
        tokio::time::timeout(PATIENCE, ready.wait()).await.expect("the controller gets ready");
        Self { client, stop, _api: api, _dir: dir }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn until<K>(&self, name: &str, what: &str, wanted: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        let until = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < until {
            last = self.api::<K>().get_opt(name).await.expect("a read");
            if let Some(found) = last.as_ref().filter(|k| wanted(k)) {
                return found.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let last = serde_json::to_string_pretty(&last).unwrap_or_default();
        panic!("{} {name}: {what} did not come; last seen: {last}", K::kind(&()));
    }

    async fn status<K>(&self, name: &str, status: Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let patch = Patch::Merge(json!({"status": status}));
        self.api::<K>()
            .patch_status(name, &PatchParams::default(), &patch)
            .await
            .expect("a status is written");
    }

    async fn apply(&self, spec: Value) -> Result<Service, kube::Error> {
        let service = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": "hello", "namespace": "default"}, "spec": spec
        });
        let patch = Patch::Apply(&service);
        self.api::<Service>().patch("hello", &PatchParams::apply("test").force(), &patch).await
    }

    /// Says what autoscaler and gateway would say of a revision that serves.
    async fn serve(&self, revision: &str) {
        let pa = self.until::<PodAutoscaler>(revision, "its PodAutoscaler", |_| true).await;
        self.status::<PodAutoscaler>(
            revision,
            json!({
                "observedGeneration": pa.metadata.generation, "serviceName": revision, "actualScale": 1, "desiredScale": 1,
                "conditions": [
                    {"type": "Ready", "status": "True"}, {"type": "ScaleTargetInitialized", "status": "True"}
                ]
            }),
        )
        .await;
        let leads = |i: &Ingress| {
            serde_json::to_string(&i.spec).is_ok_and(|text| text.contains(&format!("\"{revision}\"")))
        };
        let ingress = self.until::<Ingress>("hello", "an Ingress that leads there", leads).await;
        self.status::<Ingress>(
            "hello",
            json!({"observedGeneration": ingress.metadata.generation, "conditions": [{"type": "Ready", "status": "True"}]}),
        )
        .await;
    }
}

fn is_ready(service: &Service) -> bool {
    use ebb_api::conditions::ConditionedObject;
    service.is_ready()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_from_manifest_to_ready_and_on_to_a_canary() {
    let live = Live::start().await;
    let container = |value: &str| json!([{"image": IMAGE, "env": [{"name": "SAY", "value": value}]}]);
    let service =
        live.apply(json!({"template": {"spec": {"containers": container("one")}}})).await.expect("accepted");
    assert_eq!(service.spec.template.spec.timeout_seconds, Some(300), "defaulted by the webhook");
    assert_eq!(service.spec.traffic[0].percent, Some(100));
    let annotations = service.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations["serving.knative.dev/creator"], "system:serviceaccount:ebb-system:controller");

    let deployment = live.until::<Deployment>("hello-00001-deployment", "the Deployment", |_| true).await;
    assert_eq!(deployment.spec.and_then(|s| s.replicas), Some(1));
    let root = live.until::<ConfigMap>("ebb-mesh-root", "the mesh's roots", |_| true).await;
    assert!(root.data.unwrap_or_default()["ca.crt"].contains("BEGIN CERTIFICATE"));
    live.serve("hello-00001").await;
    let service = live.until::<Service>("hello", "Ready", is_ready).await;
    let status = service.status.expect("a status");
    assert_eq!(status.url.as_deref(), Some("http://hello.default.localhost:8080"));
    assert_eq!(status.latest_ready_revision_name.as_deref(), Some("hello-00001"));
    let placeholder = live.until::<CoreService>("hello", "the Service of its name", |_| true).await;
    assert_eq!(placeholder.spec.and_then(|s| s.type_).as_deref(), Some("ExternalName"));
    let active =
        |r: &Revision| r.labels().get("serving.knative.dev/routingState").is_some_and(|s| s == "active");
    live.until::<Revision>("hello-00001", "routing state active", active).await;

    // What it settled on stays: no write comes by itself.
    let before = live.until::<Service>("hello", "Ready", is_ready).await.resource_version();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(live.api::<Service>().get("hello").await.expect("it is there").resource_version(), before);

    let canary = json!([
        {"revisionName": "hello-00001", "percent": 90, "tag": "stable"},
        {"latestRevision": true, "percent": 10, "tag": "canary"}
    ]);
    live.apply(json!({"template": {"spec": {"containers": container("two")}}, "traffic": canary}))
        .await
        .expect("accepted");
    live.serve("hello-00002").await;
    let service = live.until::<Service>("hello", "Ready with the canary", |s| {
        is_ready(s) && s.status.as_ref().is_some_and(|t| t.traffic.len() == 2)
    });
    let traffic = service.await.status.expect("a status").traffic;
    assert_eq!((traffic[0].percent, traffic[1].percent), (Some(90), Some(10)));
    assert_eq!(traffic[1].revision_name.as_deref(), Some("hello-00002"));
    assert_eq!(traffic[1].url.as_deref(), Some("http://canary-hello.default.localhost:8080"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_manifests_are_refused_and_bad_images_explained() {
    let live = Live::start().await;
    let bad = json!({"template": {"spec": {
        "containers": [{"image": IMAGE, "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}], "containerConcurrency": -1
    }}});
    let error = live.apply(bad).await.expect_err("it is refused").to_string();
    for part in [
        "must not set the field(s): spec.template.spec.containers[0].lifecycle",
        "expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency",
    ] {
        assert!(error.contains(part), "{error}");
    }

    // Nobody listens there.
    let image = format!("127.0.0.1:{}/none:v1", free_port());
    live.apply(json!({"template": {"spec": {"containers": [{"image": image}]}}})).await.expect("accepted");
    let failed = |s: &Service| {
        use ebb_api::conditions::ConditionedObject;
        let message = s.condition("Ready").and_then(|c| c.message.clone()).unwrap_or_default();
        s.is_failed() && message.contains(&format!("Unable to fetch image \"{image}\""))
    };
    live.until::<Service>("hello", "a condition that names the image", failed).await;
    let configuration = live.until::<Configuration>("hello", "it", |_| true).await;
    assert_eq!(configuration.status.and_then(|s| s.latest_ready_revision_name), None);

    // A Revision never changes.
    let patch = Patch::Merge(json!({"spec": {"timeoutSeconds": 1}}));
    let error = live
        .api::<Revision>()
        .patch("hello-00001", &PatchParams::default(), &patch)
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("Immutable fields changed"), "{error}");

    let secrets: Api<Secret> = Api::namespaced(live.client.clone(), "ebb-system");
    for name in ["ebb-mesh-ca", "webhook-certs"] {
        assert!(secrets.get_opt(name).await.expect("a read").is_some(), "{name}");
    }
    let routes = live.api::<Route>().list(&Default::default()).await.expect("a list");
    assert_eq!(routes.items.len(), 1);
}

const DIGEST: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A registry with one image, for whoever knows the password ("jo", "secret").
async fn private_registry() -> String {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let allowed = head
                        .lines()
                        .any(|line| line.eq_ignore_ascii_case("authorization: basic am86c2VjcmV0"));
                    let answer = if allowed {
                        format!(
                            "HTTP/1.1 200 OK\r\ndocker-content-digest: {DIGEST}\r\ncontent-length: 0\r\n\r\n"
                        )
                    } else {
                        "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"here\"\r\ncontent-length: 0\r\n\r\n".to_owned()
                    };
                    if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_in_a_private_registry_needs_the_accounts_pull_secret() {
    let live = Live::start().await;
    let registry = private_registry().await;
    let template = |n: u32| {
        json!({"template": {
            "metadata": {"annotations": {"n": n.to_string()}},
            "spec": {"serviceAccountName": "puller", "containers": [{"image": format!("{registry}/private:v1")}]},
        }})
    };
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "puller"}});
    let account = serde_json::from_value(account).expect("an account");
    live.api::<ServiceAccount>().create(&PostParams::default(), &account).await.expect("it is made");
    live.apply(template(1)).await.expect("good");
    live.until::<Revision>("hello-00001", "why its image is not known", |revision| {
        let told = serde_json::to_string(&revision.status).unwrap_or_default();
        told.contains("ContainerMissing") && told.contains("imagePullSecrets")
    })
    .await;

    let config = json!({"auths": {registry.clone(): {"username": "jo", "password": "secret"}}}).to_string();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": "pull"}, "stringData": {".dockerconfigjson": config}});
    let secret = serde_json::from_value(secret).expect("a secret");
    live.api::<Secret>().create(&PostParams::default(), &secret).await.expect("it is made");
    let pulls = Patch::Merge(json!({"imagePullSecrets": [{"name": "pull"}]}));
    let params = PatchParams::default();
    live.api::<ServiceAccount>().patch("puller", &params, &pulls).await.expect("it is changed");
    live.apply(template(2)).await.expect("good");
    let image = format!("{registry}/private@{DIGEST}");
    live.until::<Revision>("hello-00002", "the digest of its image", |revision| {
        serde_json::to_string(&revision.status).is_ok_and(|told| told.contains(&image))
    })
    .await;
    live.until::<Deployment>("hello-00002-deployment", "the image by its digest", |deployment| {
        serde_json::to_string(&deployment.spec).is_ok_and(|spec| spec.contains(&image))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_ordered_of_cert_manager_is_taken_back_when_the_class_is_another() {
    const CLASS: &str = "networking.knative.dev/certificate-class";
    let live = Live::start().await;
    let definition = json!({
        "metadata": {"name": "certificates.cert-manager.io"},
        "spec": {"group": "cert-manager.io", "scope": "Namespaced",
            "names": {"kind": "Certificate", "plural": "certificates", "singular": "certificate", "listKind": "CertificateList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}
    });
    let definitions: Api<CustomResourceDefinition> = Api::all(live.client.clone());
    let definition: CustomResourceDefinition = serde_json::from_value(definition).expect("a definition");
    definitions.create(&PostParams::default(), &definition).await.expect("defined");
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"));
    let orders: Api<DynamicObject> = Api::default_namespaced_with(live.client.clone(), &kind);
    let until = async |wanted: bool| {
        let begun = Instant::now();
        while orders.get_opt("route-1").await.is_ok_and(|found| found.is_some()) != wanted {
            assert!(begun.elapsed() < PATIENCE, "the order: {wanted} did not come");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let certificate: Certificate = serde_json::from_value(json!({
        "metadata": {"name": "route-1", "annotations": {CLASS: "cert-manager.certificate.networking.knative.dev"}},
        "spec": {"dnsNames": ["a.example.com"], "domain": "example.com", "secretName": "route-1"}
    }))
    .expect("a Certificate");
    let made = live.api::<Certificate>().create(&PostParams::default(), &certificate).await.expect("made");
    until(true).await;
    // As cert-manager leaves it: without an owner, with the label that it was asked for.
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "route-1", "labels": {"networking.internal.knative.dev/certificate-uid": made.metadata.uid}},
        "type": "kubernetes.io/tls", "stringData": {"tls.crt": "", "tls.key": ""}
    }))
    .expect("a Secret");
    live.api::<Secret>().create(&PostParams::default(), &secret).await.expect("made");
    let ours = json!({"metadata": {"annotations": {CLASS: "ebb.certificate.networking.knative.dev"}}});
    let patched =
        live.api::<Certificate>().patch("route-1", &PatchParams::default(), &Patch::Merge(ours)).await;
    patched.expect("patched");
    until(false).await;
    live.until::<Secret>("route-1", "our certificate", |secret| {
        secret.data.as_ref().is_some_and(|data| data.contains_key("ca.crt"))
    })
    .await;
    live.until::<Certificate>("route-1", "Ready", |certificate| certificate.is_ready()).await;
}
