//! A pod on loopback: an app, an authority, the sidecar under test.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ebb_http::{
    Backend, Body, Connector, Outgoing, PlainAcceptor, PlainConnector, Pool, PoolConfig, Protocol,
    RequestBody, ServerConfig, Target, handler_fn, serve,
};
use ebb_mesh::ca::{Authority, CertificateRequest, DEFAULT_TTL, MaterialPem};
use ebb_mesh::{CA_SERVER_NAME, Identity, IdentityConfig, Source, SpiffeId};
use ebb_queue_proxy::{Config, Error, Listeners, run};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) const TD: &str = "cluster.local";

/// An app whose requests can be held.
#[derive(Default)]
pub(crate) struct App {
    pub(crate) seen: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) most: AtomicUsize,
    pub(crate) release: Notify,
}

impl App {
    /// Waits until `n` requests are inside.
    pub(crate) async fn inside(&self, n: usize) {
        until(|| self.running.load(Ordering::SeqCst) == n).await;
    }
}

pub(crate) async fn until(condition: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("it never came true");
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    app.seen.fetch_add(1, Ordering::SeqCst);
    app.most.fetch_max(app.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    if request.uri().path() == "/hold" {
        app.release.notified().await;
    }
    if request.uri().path() == "/version" {
        app.running.fetch_sub(1, Ordering::SeqCst);
        return Response::new(Full::new(Bytes::from(format!("{:?}", request.version()))));
    }
    let names: Vec<_> =
        request.headers().iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
    app.running.fetch_sub(1, Ordering::SeqCst);
    Response::new(Full::new(Bytes::from(names.join("\n"))))
}

/// Serves `app` on `listener` for the rest of the test.
pub(crate) fn serve_app(app: &Arc<App>, listener: TcpListener) {
    let app = app.clone();
    let handler = handler_fn(move |request, _| answer(app.clone(), request));
    tokio::spawn(serve(listener, PlainAcceptor, handler, ServerConfig::default(), CancellationToken::new()));
}

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An authority with its endpoint; every token is a service account's name of namespace `default`.
pub(crate) struct Mesh {
    pub(crate) authority: Arc<Authority>,
    endpoint: SocketAddr,
}

impl Mesh {
    pub(crate) async fn start() -> Self {
        let root = MaterialPem::generate_root(TD, SystemTime::now()).unwrap();
        let authority = Arc::new(Authority::new(TD, DEFAULT_TTL, &root).unwrap());
        let (listener, endpoint) = listener().await;
        let tls = TlsAcceptor::from(authority.server_config(&[CA_SERVER_NAME.into()]).unwrap());
        let signing = authority.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(stream) = tls.accept(tcp).await else { continue };
                let signing = signing.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let signing = signing.clone();
                    async move {
                        let token = request.headers()[header::AUTHORIZATION].to_str().unwrap().to_owned();
                        let account = token.strip_prefix("Bearer ").unwrap();
                        let id = SpiffeId::new(TD, "default", account).unwrap();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let asked: CertificateRequest = serde_json::from_slice(&body).unwrap();
                        let answer = signing.issue(&asked.csr, &id, SystemTime::now()).unwrap();
                        let json = serde_json::to_vec(&answer).unwrap();
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(json))))
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { authority, endpoint }
    }

    pub(crate) async fn identity(&self, namespace: &str, account: &str) -> Identity {
        let id = SpiffeId::new(TD, namespace, account).unwrap();
        Identity::from_authority(self.authority.clone(), id).await.unwrap()
    }

    fn config(&self) -> IdentityConfig {
        IdentityConfig {
            ca_address: self.endpoint.to_string(),
            ca_name: CA_SERVER_NAME.into(),
            roots: Source::Text(self.authority.roots_pem().into()),
            token: Source::Text("app".into()),
            trust_domain: TD.into(),
        }
    }
}

/// The sidecar, running.
pub(crate) struct Pod {
    pub(crate) http1: SocketAddr,
    pub(crate) mtls: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) stats: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) ended: tokio::task::JoinHandle<Result<(), Error>>,
}

/// Starts a sidecar for the app at `app`. `vars` override the environment.
pub(crate) async fn pod(app: SocketAddr, mesh: &Mesh, vars: &[(&str, &str)]) -> Pod {
    let port = app.port().to_string();
    let mut config = Config::parse(|name| {
        if let Some((_, value)) = vars.iter().find(|(n, _)| *n == name) {
            return Some((*value).into());
        }
        let value = match name {
            "SERVING_NAMESPACE" => "default",
            "SERVING_REVISION" => "hello-00001",
            "SERVING_POD" => "hello-pod",
            "SERVING_POD_IP" => "127.0.0.1",
            "USER_PORT" => &port,
            "EBB_CA" => "replaced:1",
            "EBB_DRAIN_QUIET_MS" => "200",
            _ => return None,
        };
        Some(value.into())
    })
    .unwrap();
    config.identity = Some(mesh.config());
    config.bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let p = &mut config.ports;
    (p.http1, p.h2c, p.mtls, p.admin, p.stats, p.metrics) = (0, 0, 0, 0, 0, 0);
    let listeners = Listeners::bind(&config).await.unwrap();
    let at = |l: &TcpListener| l.local_addr().unwrap();
    let (http1, mtls) = (at(&listeners.http1), at(&listeners.mtls));
    let (admin, stats, metrics) = (at(&listeners.admin), at(&listeners.stats), at(&listeners.metrics));
    config.ports.mtls = mtls.port();
    let stop = CancellationToken::new();
    let ended = tokio::spawn(run(config, listeners, stop.clone()));
    Pod { http1, mtls, admin, stats, metrics, stop, ended }
}

pub(crate) fn plain(at: SocketAddr) -> Arc<Backend> {
    // The pool may go: a backend lives by itself.
    client(PlainConnector).backend(&Target::plain(at, Protocol::Http1))
}

pub(crate) fn client(connector: impl Connector) -> Pool {
    Pool::new(connector, PoolConfig::default())
}

pub(crate) async fn mesh_client(
    mesh: &Mesh,
    namespace: &str,
    account: &str,
    at: SocketAddr,
    p: Protocol,
) -> Arc<Backend> {
    let identity = mesh.identity(namespace, account).await;
    client(identity).backend(&Target::tls(at, p, "spiffe://cluster.local/ns/default/*"))
}

pub(crate) async fn ask(
    backend: &Arc<Backend>,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Response<Body>, ebb_http::Error> {
    let mut request = Request::get(path).header(header::HOST, "hello.default");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Outgoing::own(request.body(RequestBody::empty()).unwrap())?.send(backend).await
}

/// Status and body.
pub(crate) async fn got(backend: &Arc<Backend>, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let response = ask(backend, path, headers).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Waits until the sidecar answers kubelet's probe with yes.
pub(crate) async fn ready(at: SocketAddr) {
    let backend = plain(at);
    tokio::time::timeout(Duration::from_secs(20), async {
        while got(&backend, "/", &[("k-network-probe", "queue")]).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("never ready");
}
