//! An API server at an address that stays, and how to reach it.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Once};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use cluster_apiserver::{ApiServer, Config, MASTERS};
use ebb_api::manifests::{COMPONENTS, Options, Place, manifests};
use ebb_http::{Acceptor, Body, Peer, ServerConfig, handler_fn, headers};
use ebb_mesh::Identity;
use ebb_mesh::ca::{Authority, MaterialPem};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::client::ClientBuilder;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::layer::layer_fn;

pub(crate) const TRUST_DOMAIN: &str = "cluster.local";

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An API server that can be stopped and started.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    address: SocketAddr,
    server: Option<ApiServer>,
    kubeconfig: String,
    /// Of the components' accounts.
    tokens: HashMap<&'static str, String>,
    /// What they asked for and may not.
    forbidden: Forbidden,
}

type Forbidden = Arc<Mutex<BTreeSet<String>>>;

/// A component needs no right that the manifests do not give it.
impl Drop for Stage {
    fn drop(&mut self) {
        let forbidden = self.forbidden.lock();
        if !std::thread::panicking() {
            assert!(forbidden.is_empty(), "a component has not the right to {forbidden:#?}");
        }
    }
}

/// Notes what is forbidden.
#[derive(Clone)]
struct Noted<S> {
    inner: S,
    account: &'static str,
    forbidden: Forbidden,
}

impl<S, B, R> tower::Service<Request<B>> for Noted<S>
where
    S: tower::Service<Request<B>, Response = Response<R>, Future: Send + 'static>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let what = format!("{}: {} {}", self.account, request.method(), request.uri().path());
        let forbidden = self.forbidden.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if answer.status() == StatusCode::FORBIDDEN {
                forbidden.lock().insert(what);
            }
            Ok(answer)
        })
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// An address of this machine that may stand in an EndpointSlice: loopback may not.
pub(crate) fn own_ip() -> IpAddr {
    // Nothing is sent: the system only says from where it would be.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    let routed = socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr());
    routed.expect("these tests need a network interface besides loopback, with a route").ip()
}

impl Stage {
    pub(crate) async fn new() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let filter =
                tracing_subscriber::EnvFilter::try_from_env("EBB_LOG").unwrap_or_else(|_| "off".into());
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        });
        let dir = tempfile::tempdir().expect("a folder");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (tokens, forbidden) = (HashMap::new(), Forbidden::default());
        let mut stage = Self { dir, address, server: None, kubeconfig: String::new(), tokens, forbidden };
        stage.start().await;
        stage.kubeconfig = stage.server.as_ref().expect("it runs").admin_kubeconfig();
        stage
    }

    /// With the platform's own objects, and the rights that components have on a cluster.
    pub(crate) async fn installed() -> Self {
        let mut stage = Self::new().await;
        let options = Options {
            domain: Some("localhost".into()),
            place: Place::Embedded {
                queue_sidecar_image: "queue-proxy:v1".into(),
                registry_mirror: String::new(),
                external_url_port: None,
                external_url_tls_port: None,
            },
            ..Options::default()
        };
        let client = stage.server.as_ref().expect("it runs").client("admin", &[MASTERS]);
        ebb_controller::install::install(&client, &options).await.expect("the platform's objects");
        let of_cluster = manifests(&Options::default());
        for object in
            of_cluster.iter().filter(|stage| stage.name == "access").flat_map(|stage| &stage.objects)
        {
            ebb_controller::install::apply(&client, object, true).await.expect("accounts and rights");
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "ebb-system");
        for account in COMPONENTS {
            let request = TokenRequest::default();
            let made = accounts.create_token_request(account, &PostParams::default(), &request).await;
            let token = made.expect("a token").status.expect("a token").token;
            stage.tokens.insert(account, token);
        }
        stage
    }

    pub(crate) async fn start(&mut self) {
        let mut config = Config::new(self.dir.path());
        config.listen = vec![self.address];
        config.sync = false;
        self.server = Some(ApiServer::start(config).await.expect("an API server"));
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    async fn config(&self) -> kube::Config {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig).expect("it parses");
        let options = KubeConfigOptions::default();
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("usable")
    }

    /// An administrator's client, over TCP and TLS.
    pub(crate) async fn client(&self) -> Client {
        Client::try_from(self.config().await).expect("a client")
    }

    /// A client as a component on a cluster has it, with just the rights of its account.
    pub(crate) async fn account(&self, account: &'static str) -> Client {
        let mut config = self.config().await;
        let token = self.tokens.get(account).expect("a component").clone();
        config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        let forbidden = self.forbidden.clone();
        let noted = layer_fn(|inner| Noted { inner, account, forbidden: forbidden.clone() });
        ClientBuilder::try_from(config).expect("a client").with_layer(&noted).build()
    }
}

/// Waits until `wanted` holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut wanted: impl FnMut() -> F) {
    let waited = async {
        while !wanted().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waited).await.is_ok(), "{what} did not come");
}

/// The whole answer to a GET.
pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, "localhost", path).await.expect("an answer")
}

/// The whole answer to a GET for this host, on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, host: &str, path: &str) -> std::io::Result<String> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    exchange(stream, host, path).await
}

/// As [`ask`], on this connection.
pub(crate) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer).await {
        // TLS without a goodbye: the answer is whole all the same.
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

pub(crate) fn authority() -> Arc<Authority> {
    let root = MaterialPem::generate_root(TRUST_DOMAIN, SystemTime::now()).expect("a root");
    Arc::new(Authority::new(TRUST_DOMAIN, Duration::from_secs(3600), &root).expect("an authority"))
}

pub(crate) async fn identity(authority: &Arc<Authority>, namespace: &str, account: &str) -> Identity {
    let id = format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}").parse().expect("an id");
    Identity::from_authority(authority.clone(), id).await.expect("an identity")
}

/// A server that answers `text`, until the token is cancelled.
pub(crate) async fn serve(
    acceptor: impl Acceptor,
    text: &'static str,
    stop: &CancellationToken,
) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((own_ip(), 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let handler = handler_fn(move |request: Request<Incoming>, _: Arc<Peer>| {
        let probe = request.headers().contains_key(headers::K_NETWORK_PROBE);
        async move { Response::new(Body::from(if probe { headers::PROBE_QUEUE } else { text })) }
    });
    tokio::spawn(ebb_http::serve(listener, acceptor, handler, ServerConfig::default(), stop.clone()));
    address
}

/// A component that runs until it is told to end.
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start<E: std::fmt::Debug + Send + 'static>(
        run: impl FnOnce(CancellationToken) -> Pin<Box<dyn Future<Output = Result<(), E>> + Send>>,
    ) -> Self {
        let stop = CancellationToken::new();
        let run = run(stop.clone());
        Self { stop, task: tokio::spawn(async move { run.await.expect("it runs to a good end") }) }
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("it ends well");
    }
}

/// Applies an object, whatever it is.
pub(crate) async fn apply(client: &Client, object: Value) {
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    let types = object.types.clone().expect("a kind");
    let kind = GroupVersionKind::try_from(&types).expect("a kind");
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &object.namespace().unwrap_or_default(), &resource);
    let params = PatchParams::apply("test").force();
    api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await.expect("applied");
}
