//! Webhooks asked for real: a TLS server on this machine whose answers the tests choose.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

type Handler = Arc<dyn Fn(&str, Value) -> Value + Send + Sync>;

/// A webhook server: every path has its own behaviour.
struct Server {
    address: SocketAddr,
    ca: String,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const NAME: &str = "hooks.system.svc";

fn encoded(text: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

impl Server {
    async fn start(handler: Handler) -> Server {
        let key = rcgen::generate_simple_self_signed(vec![NAME.to_owned(), "localhost".into()]).unwrap();
        let ca = encoded(key.cert.pem());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                key.signing_key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, handler) = (acceptor.clone(), handler.clone());
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| serve(handler.clone(), request));
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Server { address, ca, connections, task }
    }

    fn webhooks(&self) -> Webhooks {
        Webhooks::new(Arc::new(Fixed(Ok(self.address))))
    }

    fn hook(&self, name: &str, path: &str) -> Value {
        json!({
            "name": name, "sideEffects": "None", "failurePolicy": "Fail", "timeoutSeconds": 5, "admissionReviewVersions": ["v1"],
            "clientConfig": {"caBundle": self.ca, "service": {"namespace": "system", "name": "hooks", "port": 443, "path": path}},
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"], "scope": "*"}],
        })
    }
}

async fn serve(handler: Handler, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    if path.starts_with("/hang") {
        std::future::pending::<()>().await;
    }
    let status = if path.starts_with("/broken") { 500 } else { 200 };
    let answer = handler(&path, review).to_string();
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(answer))).unwrap())
}

struct Fixed(Result<SocketAddr, String>);

impl Resolver for Fixed {
    fn resolve<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<SocketAddr, String>> {
        assert_eq!((namespace, name, port), ("system", "hooks", 443));
        let answer = self.0.clone();
        async move { answer }.boxed()
    }
}

fn answer(review: &Value, mut response: Value) -> Value {
    response["uid"] = review["request"]["uid"].clone();
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

fn allow(review: &Value) -> Value {
    answer(review, json!({"allowed": true}))
}

fn patch(review: &Value, patch: Value) -> Value {
    answer(review, json!({"allowed": true, "patchType": "JSONPatch", "patch": encoded(patch.to_string())}))
}

fn attrs() -> Attributes {
    let gv = |name: &str| Gv { group: "apps".into(), version: "v1".into(), name: name.into() };
    Attributes {
        uid: "u-1".into(),
        gvk: gv("Deployment"),
        gvr: gv("deployments"),
        sub_resource: String::new(),
        name: "d".into(),
        namespace: Some("default".into()),
        namespace_labels: vec![("team".into(), "a".into())],
        operation: Operation::Create,
        user_info: UserInfo { username: "alice".into(), groups: vec!["dev".into()], ..UserInfo::default() },
        dry_run: false,
        options: Value::Null,
        old_object: Value::Null,
    }
}

fn config(name: &str, hooks: Vec<Value>) -> Value {
    json!({"metadata": {"name": name}, "webhooks": hooks})
}

#[tokio::test]
async fn mutates_in_order_and_again_where_asked() {
    // Each webhook appends its path to a list; `/first` wants to see later changes.
    let server = Server::start(Arc::new(|path, review| {
        let name = path.split('?').next().unwrap_or_default().to_owned();
        patch(&review, json!([{"op": "add", "path": "/seen/-", "value": name}]))
    }))
    .await;
    let mut first = server.hook("first.x.io", "/first");
    first["reinvocationPolicy"] = "IfNeeded".into();
    let configs = [
        config("b", vec![server.hook("third.x.io", "third")]),
        config("a", vec![first, server.hook("second.x.io", "/second")]),
    ];
    let mut obj = json!({"seen": []});
    let warnings = server.webhooks().mutate(&configs, &attrs(), &mut obj).await.unwrap();
    assert_eq!(obj, json!({"seen": ["/first", "/second", "/third", "/first"]}));
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "one connection serves all calls");
}

#[tokio::test]
async fn the_question_is_complete() {
    let server = Server::start(Arc::new(|path, review| {
        let request = &review["request"];
        assert_eq!(path, "/check?timeout=5s");
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(request["kind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
        assert_eq!(request["resource"], json!({"group": "apps", "version": "v1", "resource": "deployments"}));
        assert_eq!(request["userInfo"], json!({"username": "alice", "groups": ["dev"]}));
        assert_eq!(request["operation"], "CREATE");
        assert_eq!(request["object"], json!({"x": 1}));
        assert_eq!(request["oldObject"], Value::Null);
        assert_eq!(request["namespace"], "default");
        assert_eq!(request["dryRun"], false);
        answer(&review, json!({"allowed": true, "warnings": ["careful"]}))
    }))
    .await;
    let configs = [config("a", vec![server.hook("check.x.io", "/check")])];
    let warnings = server.webhooks().validate(&configs, &attrs(), &json!({"x": 1})).await.unwrap();
    assert_eq!(warnings, ["careful"]);
}

#[tokio::test]
async fn refusals_are_told_as_kubernetes_tells_them() {
    let server = Server::start(Arc::new(|path, review| {
        let status = match path.split('?').next().unwrap_or_default() {
            "/message" => {
                json!({"code": 422, "reason": "Invalid", "message": "spec.x: bad", "details": {"causes": []}})
            }
            "/reason" => json!({"reason": "Because"}),
            "/success" => json!({"code": 200, "status": "Success"}),
            _ => return allow(&review),
        };
        answer(&review, json!({"allowed": false, "status": status}))
    }))
    .await;
    let ask = async |path: &str| {
        let configs = [config("a", vec![server.hook("ok.x.io", "/ok"), server.hook("deny.x.io", path)])];
        server.webhooks().validate(&configs, &attrs(), &json!({})).await.expect_err("a refusal")
    };
    let denied = ask("/message").await;
    assert_eq!((denied.code, denied.reason.as_str()), (422, "Invalid"));
    assert_eq!(denied.message, "admission webhook \"deny.x.io\" denied the request: spec.x: bad");
    assert_eq!(denied.details, Some(json!({"causes": []})));
    assert_eq!(ask("/reason").await.message, "admission webhook \"deny.x.io\" denied the request: Because");
    let denied = ask("/success").await;
    assert_eq!(denied.code, 400);
    assert_eq!(denied.message, "admission webhook \"deny.x.io\" denied the request without explanation");
}

#[tokio::test]
async fn failures_follow_the_policy() {
    let server = Server::start(Arc::new(|path, review| match path.split('?').next().unwrap_or_default() {
        "/uid" => json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "other", "allowed": true}}),
        "/kind" => json!({"apiVersion": "v1", "kind": "Pod"}),
        "/broken" => json!("oops"),
        "/badpatch" => patch(&review, json!([{"op": "remove", "path": "/missing"}])),
        _ => allow(&review),
    }))
    .await;
    let cases = [
        ("/uid", "received invalid webhook response: expected response.uid=\"u-1\", got \"other\""),
        (
            "/kind",
            "received invalid webhook response: expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got v1, Kind=Pod",
        ),
        (
            "/broken",
            "failed to call webhook: an error on the server (\"\\\"oops\\\"\") has prevented the request from succeeding",
        ),
        (
            "/hang",
            "failed to call webhook: Post \"https://hooks.system.svc/hang?timeout=1s\": context deadline exceeded",
        ),
        ("/badpatch", "failed to apply the patch of its answer: "),
    ];
    for (path, expected) in cases {
        let mut hook = server.hook("x.x.io", path);
        if path == "/hang" {
            hook["timeoutSeconds"] = 1.into();
        }
        let denied = server
            .webhooks()
            .mutate(&[config("a", vec![hook.clone()])], &attrs(), &mut json!({}))
            .await
            .unwrap_err();
        assert_eq!((denied.code, denied.reason.as_str()), (500, "InternalError"));
        let whole = format!("Internal error occurred: failed calling webhook \"x.x.io\": {expected}");
        assert!(denied.message.starts_with(&whole), "{} is not {whole}", denied.message);
        if path != "/badpatch" {
            hook["failurePolicy"] = "Ignore".into();
            server.webhooks().mutate(&[config("a", vec![hook])], &attrs(), &mut json!({})).await.unwrap();
        }
    }
}

#[tokio::test]
async fn unreachable_and_untrusted_webhooks_fail() {
    let server = Server::start(Arc::new(|_, review| allow(&review))).await;
    let ask = async |hooks: &Webhooks, hook: Value| {
        hooks.validate(&[config("a", vec![hook])], &attrs(), &json!({})).await.expect_err("a failure").message
    };
    let gone = Webhooks::new(Arc::new(Fixed(Err("no endpoints available for service \"hooks\"".into()))));
    let message = ask(&gone, server.hook("x.x.io", "/")).await;
    assert!(
        message.ends_with(
            "Post \"https://hooks.system.svc/?timeout=5s\": no endpoints available for service \"hooks\""
        ),
        "{message}"
    );
    let other = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    let mut stranger = server.hook("x.x.io", "/");
    stranger["clientConfig"]["caBundle"] = encoded(other.cert.pem()).into();
    let message = ask(&server.webhooks(), stranger).await;
    assert!(message.contains("tls: failed to verify certificate"), "{message}");
    let mut garbled = server.hook("x.x.io", "/");
    garbled["clientConfig"]["caBundle"] = encoded("nonsense").into();
    assert!(ask(&server.webhooks(), garbled).await.contains("unable to parse bytes as PEM block"));
    let mut plain = server.hook("x.x.io", "/");
    plain["clientConfig"] = json!({"url": "http://localhost/x"});
    assert!(ask(&server.webhooks(), plain).await.contains("must be https"));
}

#[tokio::test]
async fn urls_are_called_as_they_are() {
    let server = Server::start(Arc::new(|path, review| {
        assert_eq!(path, "/a/b?c=d&timeout=5s");
        allow(&review)
    }))
    .await;
    let mut hook = server.hook("x.x.io", "/");
    hook["clientConfig"] =
        json!({"caBundle": server.ca, "url": format!("https://localhost:{}/a/b?c=d", server.address.port())});
    server.webhooks().validate(&[config("a", vec![hook])], &attrs(), &json!({})).await.unwrap();
}

#[tokio::test]
async fn dry_run_spares_webhooks_with_side_effects() {
    let server = Server::start(Arc::new(|_, review| allow(&review))).await;
    let dry = Attributes { dry_run: true, ..attrs() };
    let mut hook = server.hook("x.x.io", "/");
    server.webhooks().validate(&[config("a", vec![hook.clone()])], &dry, &json!({})).await.unwrap();
    hook["sideEffects"] = "Some".into();
    let denied = server.webhooks().validate(&[config("a", vec![hook])], &dry, &json!({})).await.unwrap_err();
    assert_eq!(
        (denied.code, denied.message.as_str()),
        (400, "admission webhook \"x.x.io\" does not support dry run")
    );
}

fn matched(change: impl Fn(&mut Value), attrs: &Attributes, obj: &Value) -> bool {
    let mut hook = json!({"name": "x.x.io", "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["deployments"]}]});
    change(&mut hook);
    matching::matches(&hook, attrs, obj).expect("can be evaluated")
}

#[test]
fn rules_match_resources() {
    let resources = |list: Value| move |hook: &mut Value| hook["rules"][0]["resources"] = list.clone();
    let status = Attributes { sub_resource: "status".into(), ..attrs() };
    let cases = [
        (json!(["deployments"]), true, false),
        (json!(["*"]), true, false),
        (json!(["*/*"]), true, true),
        (json!(["deployments/*"]), true, true),
        (json!(["deployments/status"]), false, true),
        (json!(["*/status"]), false, true),
        (json!(["pods", "pods/*"]), false, false),
    ];
    for (list, whole, sub) in cases {
        assert_eq!(matched(resources(list.clone()), &attrs(), &json!({})), whole, "{list}");
        assert_eq!(matched(resources(list.clone()), &status, &json!({})), sub, "{list} with status");
    }
    assert!(!matched(|h| h["rules"][0]["operations"] = json!(["UPDATE", "DELETE"]), &attrs(), &json!({})));
    assert!(!matched(|h| h["rules"][0]["apiGroups"] = json!([""]), &attrs(), &json!({})));
    assert!(!matched(|h| h["rules"][0]["apiVersions"] = json!(["v2"]), &attrs(), &json!({})));
    assert!(!matched(|h| h["rules"][0]["scope"] = "Cluster".into(), &attrs(), &json!({})));
    assert!(matched(|h| h["rules"][0]["scope"] = "Namespaced".into(), &attrs(), &json!({})));
}

#[test]
fn selectors_and_conditions() {
    let namespace = |s: Value| move |hook: &mut Value| hook["namespaceSelector"] = s.clone();
    assert!(matched(namespace(json!({})), &attrs(), &json!({})));
    assert!(matched(namespace(json!({"matchLabels": {"team": "a"}})), &attrs(), &json!({})));
    assert!(!matched(namespace(json!({"matchLabels": {"team": "b"}})), &attrs(), &json!({})));
    let not_in = json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]});
    assert!(!matched(namespace(not_in), &attrs(), &json!({})));
    let cluster = Attributes { namespace: None, namespace_labels: Vec::new(), ..attrs() };
    assert!(matched(namespace(json!({"matchLabels": {"team": "b"}})), &cluster, &json!({})));
    let object = |hook: &mut Value| {
        hook["objectSelector"] = json!({"matchExpressions": [{"key": "l", "operator": "Exists"}]});
    };
    assert!(!matched(object, &attrs(), &json!({"metadata": {}})));
    assert!(matched(object, &attrs(), &json!({"metadata": {"labels": {"l": ""}}})));
    let gone = Attributes { old_object: json!({"metadata": {"labels": {"l": "x"}}}), ..attrs() };
    assert!(matched(object, &gone, &Value::Null), "the old object counts too");
    let condition = |e: &'static str| {
        move |hook: &mut Value| hook["matchConditions"] = json!([{"name": "c", "expression": e}])
    };
    assert!(matched(
        condition("object.metadata.name == 'x' && request.userInfo.username == 'alice'"),
        &attrs(),
        &json!({"metadata": {"name": "x"}})
    ));
    assert!(!matched(condition("request.operation == 'UPDATE'"), &attrs(), &json!({})));
    let mut hook = json!({"name": "x", "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}],
        "matchConditions": [{"name": "c", "expression": "object.missing.field"}]});
    assert!(matching::matches(&hook, &attrs(), &json!({})).is_err());
    hook["failurePolicy"] = "Ignore".into();
    assert_eq!(matching::matches(&hook, &attrs(), &json!({})), Ok(false));
}

#[test]
fn webhook_configurations_are_exempt() {
    let mut own = attrs();
    own.gvr = Gv {
        group: "admissionregistration.k8s.io".into(),
        version: "v1".into(),
        name: "validatingwebhookconfigurations".into(),
    };
    assert!(matching::exempt(&own));
    assert!(!matching::exempt(&attrs()));
}
