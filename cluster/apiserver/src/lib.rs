//! A Kubernetes API server in one process: storage, watches, discovery, admission, and the built-in resource types.
//!
//! [`ApiServer::start`] opens the store, listens with TLS, and gives out clients: kubeconfigs for people
//! ([`ApiServer::admin_kubeconfig`]) and in-process ones for components ([`ApiServer::client`]). It runs no controllers and
//! no pods: it stores what they should do, tells them of changes, and hands logs and terminals to the node agent it was
//! given ([`ApiServer::set_kubelet`]).
//!
//! One generic path serves every resource type; what differs is a row in `registry`'s table, a schema from
//! `cluster-schema`, and the few hooks in `admit`.

mod accept;
mod admit;
mod auth;
mod authorize;
mod bootstrap;
mod convert;
mod discovery;
mod error;
mod figures;
mod handlers;
mod inprocess;
mod jsonpath;
mod lean;
mod meta;
mod openapi;
mod pki;
mod protobuf;
mod query;
mod registry;
mod reply;
mod request;
mod selector;
mod serve;
mod server;
mod services;
mod store;
mod table;
mod validate;
mod webhooks;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ipnet::Ipv4Net;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use auth::{Authenticator, User};
use server::Server;

pub use auth::MASTERS;
pub use store::StoreError;

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects, keys and certificates are kept. Made if absent; used by one server at a time.
    pub data_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Listeners that the caller has opened already; they come before those of `listen`.
    pub opened: Vec<Arc<std::net::TcpListener>>,
    /// Further names and addresses in the server's certificate.
    pub extra_sans: Vec<String>,
    /// Cluster IPs are from here; the first is that of `kubernetes.default`.
    pub service_cidr: Ipv4Net,
    /// What `/version` says, such as `v1.35.0`.
    pub git_version: String,
    /// The address that pods can reach this server at: the endpoint of `kubernetes.default`. None: no endpoint.
    pub advertise: Option<SocketAddr>,
    /// Does a write wait for the disk (true), or only for the kernel? The latter outlives the process, not a power cut.
    pub sync: bool,
}

impl Config {
    /// A server on a free port of loopback.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            opened: Vec::new(),
            extra_sans: Vec::new(),
            service_cidr: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16),
            git_version: "v1.35.0".to_owned(),
            advertise: None,
            sync: true,
        }
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {cause} (check that it exists and belongs to you)")]
    DataDir {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// Keys or certificates cannot be made or read.
    #[error(
        "cannot prepare the server's certificates: {0} (removing the folder pki in the data directory makes new ones)"
    )]
    Pki(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {cause} (is another server running there? choose another port)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The first objects could not be made.
    #[error("cannot set up the first objects: {0}")]
    Bootstrap(String),
}

/// A running server.
pub struct ApiServer {
    server: Arc<Server>,
    pki: pki::Pki,
    addresses: Vec<SocketAddr>,
    tasks: tokio_util::task::TaskTracker,
}

impl ApiServer {
    /// Opens the store, makes what a new cluster needs, and listens.
    ///
    /// # Errors
    /// See [`Error`]; each says what to do.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let data_dir = |cause| Error::DataDir { path: config.data_dir.clone(), cause };
        std::fs::create_dir_all(&config.data_dir).map_err(data_dir)?;
        let folder = config.data_dir.clone();
        let sync = config.sync;
        let store = tokio::task::spawn_blocking(move || store::Store::open(&folder, sync))
            .await
            .map_err(|error| Error::Bootstrap(error.to_string()))??;

        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for opened in &config.opened {
            let failed = |cause| Error::Listen { address: SocketAddr::from(([127, 0, 0, 1], 0)), cause };
            let listener = opened.try_clone().map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let listener = TcpListener::from_std(listener).map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        for &address in &config.listen {
            let failed = |cause| Error::Listen { address, cause };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }

        let names = server_names(&config);
        let pki = pki::Pki::open(&config.data_dir.join("pki"), &names)?;
        let tokens = auth::token::Tokens::new(&pki.token_key).map_err(Error::Pki)?;
        let server = Arc::new(Server {
            addresses: services::Addresses::new(config.service_cidr, &store),
            hooks: webhooks::Hooks::new(&store),
            store,
            registry: registry::Registry::new(),
            auth: Authenticator { tokens },
            kubelet: ArcSwapOption::empty(),
            usage: Default::default(),
            figures: figures::Figures::default(),
            git_version: config.git_version.clone(),
            address: config
                .advertise
                .or_else(|| addresses.first().copied())
                .map(|address| address.to_string())
                .unwrap_or_default(),
            shutdown: CancellationToken::new(),
        });
        bootstrap::run(&server, &config).await?;

        let tasks = tokio_util::task::TaskTracker::new();
        let tls = pki.server_config()?;
        for listener in listeners {
            tasks.spawn(serve::accept(listener, tls.clone(), server.clone(), tasks.clone()));
        }
        Ok(Self { server, pki, addresses, tasks })
    }

    /// A client in this process, without TCP or TLS, that acts as this user. Components use group [`MASTERS`].
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        kube::Client::new(inprocess::Transport::new(self.server.clone(), User::new(user, groups)), "default")
    }

    /// A kubeconfig with an administrator's client certificate, for the first listening address.
    pub fn admin_kubeconfig(&self) -> String {
        self.pki.admin_kubeconfig(self.local_addr())
    }

    /// The certificate of the authority that signed the server's.
    pub fn ca_pem(&self) -> String {
        self.pki.ca_pem.clone()
    }

    /// Where logs, exec, attach and portforward go, and figures of pods come from: a router with the kubelet's own paths.
    pub fn set_kubelet(&self, router: axum::Router) {
        self.server.kubelet.store(Some(Arc::new(router)));
        self.server.registry.serve_figures();
    }

    /// The first listening address.
    pub fn local_addr(&self) -> SocketAddr {
        self.addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// All listening addresses, in the order of the configuration.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Listens on one more address, such as the cluster IP of `kubernetes.default` once it can be bound.
    ///
    /// # Errors
    /// If the address cannot be listened on, or the certificate does not load.
    pub async fn listen(&self, address: SocketAddr) -> Result<SocketAddr, Error> {
        let failed = |cause| Error::Listen { address, cause };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let tls = self.pki.server_config()?;
        self.tasks.spawn(serve::accept(listener, tls, self.server.clone(), self.tasks.clone()));
        Ok(local)
    }

    /// Ends watches and connections and closes the store. Everything acknowledged is on disk already.
    pub async fn shutdown(self) {
        self.server.shutdown.cancel();
        self.tasks.close();
        // Connections end by themselves once told; one that does not is not worth waiting for.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), self.tasks.wait()).await;
        self.server.store.close().await;
    }
}

/// The names and addresses by which the server may be reached.
fn server_names(config: &Config) -> Vec<String> {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "127.0.0.1",
        "::1",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push(bootstrap::kubernetes_ip(config.service_cidr).to_string());
    names.extend(
        config
            .listen
            .iter()
            .map(SocketAddr::ip)
            .filter(|ip| !ip.is_unspecified())
            .map(|ip: IpAddr| ip.to_string()),
    );
    names.extend(config.advertise.map(|address| address.ip().to_string()));
    names.extend(config.extra_sans.iter().cloned());
    names.sort();
    names.dedup();
    names
}
