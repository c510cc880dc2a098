//! Images from a registry that wants to know who asks: pull secrets, pull policies.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use cluster::images::{Store, registry_router};
use serde_json::json;

use crate::Case;
use crate::world::{World, merge, pod};

pub(crate) const CASES: &[Case] = &[
    ("pull_secrets_of_pods_and_accounts", secrets),
    ("pull_with_bearer_tokens", bearer),
    ("pull_policies", policies),
];

/// `user:pass`.
const BASIC: &str = "Basic dXNlcjpwYXNz";
const REASON: &str = "{.status.containerStatuses[0].state.waiting.reason}";

struct Registry {
    address: SocketAddr,
    /// Requests for manifests that were let in.
    manifests: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Gate {
    /// Whether it wants a token, which a page of its own gives for the password.
    token: bool,
    address: SocketAddr,
    manifests: Arc<AtomicUsize>,
}

async fn gate(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if request.uri().path() == "/token" {
        return match given {
            Some(BASIC) => axum::Json(json!({"token": "t0k"})).into_response(),
            _ => StatusCode::UNAUTHORIZED.into_response(),
        };
    }
    let (wanted, challenge) = match gate.token {
        true => ("Bearer t0k", format!("Bearer realm=\"http://{}/token\",service=\"here\"", gate.address)),
        false => (BASIC, "Basic realm=\"here\"".to_owned()),
    };
    if given != Some(wanted) {
        let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "who are you?"}]}).to_string();
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)], body).into_response();
    }
    if request.uri().path().contains("/manifests/") {
        gate.manifests.fetch_add(1, Ordering::Relaxed);
    }
    next.run(request).await
}

/// A registry with the test's image as `private/app:v1`.
fn registry(world: &World, dir: &Path, token: bool) -> Registry {
    world.runtime.block_on(async {
        let store = Store::open(dir).unwrap();
        store.load_archive(&world.image, Some("private/app:v1")).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let manifests = Arc::new(AtomicUsize::new(0));
        let gate_state = Gate { token, address, manifests: Arc::clone(&manifests) };
        let router = registry_router(store).layer(from_fn_with_state(gate_state, gate));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Registry { address, manifests }
    })
}

impl Registry {
    fn image(&self) -> String {
        format!("{}/private/app:v1", self.address)
    }

    fn secret(&self, world: &World, name: &str, password: &str) {
        let server = format!("--docker-server={}", self.address);
        let password = format!("--docker-password={password}");
        world.kubectl(&[
            "create",
            "secret",
            "docker-registry",
            name,
            &server,
            "--docker-username=user",
            &password,
        ]);
    }

    fn pod(&self, world: &World, name: &str, secret: Option<&str>) {
        let secrets = secret.map(|name| json!([{ "name": name }])).unwrap_or(json!([]));
        world.pod(name, json!({"image": self.image()}), json!({"imagePullSecrets": secrets}));
    }
}

/// Waits for the refusal and gives its message.
fn refusal(world: &World, pod: &str) -> String {
    let described = || world.kubectl(&["describe", "pod", pod]);
    let message = "jsonpath={.status.containerStatuses[0].state.waiting.message}";
    let (code, _, err) = world.run(
        &[
            "wait",
            "--for=jsonpath={.status.containerStatuses[0].state.waiting.message}",
            &format!("pod/{pod}"),
            "--timeout=60s",
        ],
        None,
    );
    assert_eq!(code, 0, "{err}{}", described());
    let reasons = described();
    assert!(reasons.contains("ErrImagePull"), "{reasons}");
    world.kubectl(&["get", "pod", pod, "-o", message])
}

fn secrets(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(world, dir.path(), false);
    registry.secret(world, "right", "pass");
    registry.secret(world, "wrong", "no");
    registry.pod(world, "pull-none", None);
    let message = refusal(world, "pull-none");
    assert!(message.contains("refused access") && message.contains("imagePullSecrets"), "{message}");
    registry.pod(world, "pull-wrong", Some("wrong"));
    let message = refusal(world, "pull-wrong");
    assert!(message.contains("refused access") && message.matches("who are you?").count() <= 1, "{message}");
    registry.pod(world, "pull-missing", Some("nowhere"));
    refusal(world, "pull-missing");
    let described = world.kubectl(&["describe", "pod", "pull-missing"]);
    assert!(described.contains("Unable to retrieve some image pull secrets (nowhere)"), "{described}");
    registry.pod(world, "pull-right", Some("right"));
    world.ready("pull-right");
    world.kubectl(&["create", "serviceaccount", "puller"]);
    let patch = json!({"imagePullSecrets": [{"name": "right"}]}).to_string();
    world.kubectl(&["patch", "serviceaccount", "puller", "-p", &patch]);
    let container = json!({"image": registry.image(), "imagePullPolicy": "Always"});
    world.pod("pull-account", container, json!({"serviceAccountName": "puller"}));
    world.ready("pull-account");
    for pod in ["none", "wrong", "missing", "right", "account"] {
        world.delete(&format!("pod/pull-{pod}"));
    }
}

fn bearer(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(world, dir.path(), true);
    registry.secret(world, "token-right", "pass");
    registry.secret(world, "token-wrong", "no");
    registry.pod(world, "token-wrong", Some("token-wrong"));
    let message = refusal(world, "token-wrong");
    assert!(message.contains("refused access") && message.contains("401"), "{message}");
    registry.pod(world, "token-right", Some("token-right"));
    world.ready("token-right");
    world.delete("pod/token-right");
    world.delete("pod/token-wrong");
}

fn policies(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(world, dir.path(), false);
    registry.secret(world, "policy", "pass");
    let make = |name: &str, policy: &str| {
        let container = json!({"image": registry.image(), "imagePullPolicy": policy});
        let mut object = pod(name, container, json!({}));
        merge(&mut object["spec"], json!({"imagePullSecrets": [{"name": "policy"}]}));
        world.apply(&object);
    };
    let asked = || registry.manifests.load(Ordering::Relaxed);
    make("policy-never", "Never");
    world.until("pod/policy-never", REASON, "ErrImageNeverPull");
    assert_eq!(asked(), 0);
    make("policy-first", "IfNotPresent");
    world.ready("policy-first");
    let after = asked();
    assert!(after > 0);
    make("policy-second", "IfNotPresent");
    world.ready("policy-second");
    assert_eq!(asked(), after, "it is here");
    make("policy-always", "Always");
    world.ready("policy-always");
    assert!(asked() > after, "the registry is asked although it is here");
    // Now that it is here, even that.
    make("policy-never-2", "Never");
    world.ready("policy-never-2");
    for pod in ["never", "first", "second", "always", "never-2"] {
        world.delete(&format!("pod/policy-{pod}"));
    }
}
