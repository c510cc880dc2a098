//! Starting and stopping all parts in order.

use std::{
    fs,
    future::IntoFuture,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cluster_apiserver::{ApiServer, MASTERS};
use cluster_images::Store;
use cluster_node::{NetworkConfig, Node, Policies};
use cluster_rootless::Door;
use kube::Client;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::ClusterConfig,
    error::Error,
    link::{self, Links},
    masquerade,
    plan::{self, Hold, NetworkPlan},
    policies, ready,
};

/// The API server's port on the node's address, where `kubernetes.default` leads to. The address is the instance's own, so the port is free.
const NODE_API_PORT: u16 = 6443;
const NETWORK_FILE: &str = "network.json";
/// Held as long as a cluster runs in the directory.
const LOCK: &str = "lock";
/// Processes and threads of a container: many for an app, and few enough that a fork bomb leaves the machine usable.
const PIDS: i64 = 4096;

/// What of the network a restart needs.
#[derive(Serialize, Deserialize)]
struct Saved {
    number: u8,
}

/// A running cluster. Dropping it without [`Cluster::shutdown`] leaves the bridge and running containers, which the next start in
/// the same data directory removes.
pub struct Cluster {
    api: ApiServer,
    node: Node,
    images: Arc<Store>,
    registry: SocketAddr,
    plan: NetworkPlan,
    kubeconfig: PathBuf,
    links: Links,
    controllers: (CancellationToken, JoinHandle<()>),
    /// DNS, proxy and registry, which pods may need until they have stopped.
    services: (CancellationToken, TaskTracker),
    _masquerade: Option<cluster_firewall::Held>,
    /// The agent's address is its own.
    _guard: Option<cluster_firewall::Held>,
    _hold: Hold,
    _lock: fs::File,
}

impl Cluster {
    /// Starts a cluster and waits until pods can be made.
    ///
    /// The process must have a rustls crypto provider installed, and needs the rights to make network devices, mounts and cgroups.
    ///
    /// # Errors
    /// See [`Error`]. What was made before the error is removed, or is at the next start.
    pub async fn start(config: ClusterConfig) -> Result<Self, Error> {
        let begin = Instant::now();
        let valid = config.device_prefix.chars().all(|c| c.is_ascii_alphanumeric());
        if !valid || !(1..=5).contains(&config.device_prefix.len()) {
            return Err(Error::DevicePrefix(config.device_prefix));
        }
        let lock = lock(&config.data_dir, config.door.is_some()).await?;
        let links = Links::open()?;
        let (plan, hold) = choose(&config, &links).await?;
        links.make(&plan).await?;
        save(&config.data_dir, &plan)?;
        if config.door.is_some() {
            links.way_out(&plan).await?;
        }
        let masquerade = outbound(&plan, config.door.as_ref());
        let guard = policies::guard(&plan);
        tracing::debug!(elapsed = ?begin.elapsed(), network = %plan.cluster_cidr(), "network made");
        match Self::start_on(&config, &plan).await {
            Ok((api, node, images, registry, controllers, services)) => {
                let cluster = Self {
                    kubeconfig: config.data_dir.join("kubeconfig"),
                    api,
                    node,
                    images,
                    registry,
                    plan,
                    links,
                    controllers,
                    services,
                    _masquerade: masquerade,
                    _guard: guard,
                    _hold: hold,
                    _lock: lock,
                };
                let ready = match write_private(&cluster.kubeconfig, &cluster.api.admin_kubeconfig()) {
                    Ok(()) => ready::wait(&cluster.client("system:admin"), &config.node_name).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = ready {
                    cluster.shutdown().await;
                    return Err(error);
                }
                tracing::info!(elapsed = ?begin.elapsed(), network = %cluster.plan.cluster_cidr(), "cluster is ready");
                Ok(cluster)
            }
            Err(error) => {
                if let Err(left) = links.remove(&plan).await {
                    tracing::warn!(error = %left, "after a failed start");
                }
                Err(error)
            }
        }
    }

    #[allow(clippy::type_complexity)]
    async fn start_on(
        config: &ClusterConfig,
        plan: &NetworkPlan,
    ) -> Result<
        (
            ApiServer,
            Node,
            Arc<Store>,
            SocketAddr,
            (CancellationToken, JoinHandle<()>),
            (CancellationToken, TaskTracker),
        ),
        Error,
    > {
        let images_dir = config.data_dir.join("images");
        let images = tokio::task::spawn_blocking(move || Store::open(&images_dir));
        let api = ApiServer::start(api_config(config, plan)?).await?;
        let started = Self::start_parts(config, plan, &api, async {
            images
                .await
                .map_err(|error| io_error(&config.data_dir, io::Error::other(error)))?
                .map_err(Error::from)
        });
        match started.await {
            Ok((node, images, registry, controllers, services)) => {
                Ok((api, node, images, registry, controllers, services))
            }
            Err(error) => {
                api.shutdown().await;
                Err(error)
            }
        }
    }

    #[allow(clippy::type_complexity)]
    async fn start_parts(
        config: &ClusterConfig,
        plan: &NetworkPlan,
        api: &ApiServer,
        images: impl Future<Output = Result<Arc<Store>, Error>>,
    ) -> Result<
        (Node, Arc<Store>, SocketAddr, (CancellationToken, JoinHandle<()>), (CancellationToken, TaskTracker)),
        Error,
    > {
        let stop = CancellationToken::new();
        let controllers = {
            let client = api.client("system:kube-controller-manager", &[MASTERS]);
            let wanted = cluster_controllers::Config { root_ca_pem: api.ca_pem() };
            let stop = stop.clone();
            tokio::spawn(async move {
                if let Err(error) = cluster_controllers::run(client, wanted, stop).await {
                    tracing::error!(%error, "the controllers stopped");
                }
            })
        };
        let serve = CancellationToken::new();
        let tasks = TaskTracker::new();
        let policies = Policies::new(policies::always(plan));
        let origin = policies::origin(plan);
        // Whatever fails from here on takes the parts that run already with it.
        let guard = (stop.clone().drop_guard(), serve.clone().drop_guard());
        let images = images.await?;
        let registry = start_registry(config, plan, &images, &tasks, &serve).await?;
        start_services(config, plan, api, &policies, (&tasks, &serve));
        let node = Node::start(cluster_node::Config {
            node_name: config.node_name.clone(),
            data_dir: config.data_dir.join("node"),
            client: api.client(&format!("system:node:{}", config.node_name), &[MASTERS, "system:nodes"]),
            images: Arc::new(Arc::clone(&images)),
            network: NetworkConfig {
                bridge: plan.bridge(),
                node_ip: plan.node_ip(),
                pod_cidr: plan.pod_cidr(),
                first_pod_ip: NetworkPlan::FIRST_POD.into(),
                dns_ip: plan.dns_ip(),
                cluster_domain: config.cluster_domain.clone(),
                pool: config.network_pool,
            },
            policies,
            origin: Some(origin),
            helper_exe: config.helper_exe.clone(),
            helpers: config.helpers,
            pids_limit: Some(PIDS),
            max_pods: 1000,
            version: config.git_version.clone(),
        })
        .await?;
        api.set_kubelet(node.router());
        tasks.close();
        let (keep_controllers, keep_services) = guard;
        keep_controllers.disarm();
        keep_services.disarm();
        Ok((node, images, registry, (stop, controllers), (serve, tasks)))
    }

    /// Whether a cluster runs in this data directory at the moment.
    pub fn runs_on(data_dir: &Path) -> bool {
        let lock = fs::File::options().write(true).open(data_dir.join(LOCK));
        lock.is_ok_and(|file| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock)))
    }

    /// A client in this process that acts as `user` and may do everything.
    pub fn client(&self, user: &str) -> Client {
        self.api.client(user, &[MASTERS])
    }

    /// The addresses of this instance.
    pub fn network(&self) -> &NetworkPlan {
        &self.plan
    }

    /// The administrator's kubeconfig, as text; it is in the data directory, too ([`Cluster::kubeconfig_path`]).
    pub fn kubeconfig(&self) -> String {
        self.api.admin_kubeconfig()
    }

    /// Where the administrator's kubeconfig is.
    pub fn kubeconfig_path(&self) -> &Path {
        &self.kubeconfig
    }

    /// The images of this cluster.
    pub fn images(&self) -> &Arc<Store> {
        &self.images
    }

    /// Where the API server listens on loopback.
    pub fn api_addr(&self) -> SocketAddr {
        self.api.local_addr()
    }

    /// Where the image registry listens on loopback; the same port answers on the node's address.
    pub fn registry_addr(&self) -> SocketAddr {
        self.registry
    }

    /// PEM of the API server's certificate authority.
    pub fn ca_pem(&self) -> String {
        self.api.ca_pem()
    }

    /// Stops everything in order: controllers first, so that nothing is made anew; then pods, the services they may need to end well,
    /// the API server, and the network. All objects stay for the next start.
    pub async fn shutdown(self) {
        let (stop, controllers) = self.controllers;
        stop.cancel();
        let within = |what: &'static str, ended: bool| {
            if !ended {
                tracing::warn!("the {what} did not stop in time");
            }
        };
        within("controllers", tokio::time::timeout(Duration::from_secs(2), controllers).await.is_ok());
        self.node.shutdown().await;
        let (serve, tasks) = self.services;
        serve.cancel();
        within("services", tokio::time::timeout(Duration::from_secs(2), tasks.wait()).await.is_ok());
        self.api.shutdown().await;
        if let Err(error) = self.links.remove(&self.plan).await {
            tracing::warn!(%error, "the network is not removed; the next start in this data directory does it");
        }
    }
}

fn io_error(path: &Path, cause: io::Error) -> Error {
    Error::DataDir { path: path.to_owned(), cause }
}

/// One cluster in a data directory at a time; the lock goes with the process. Where the processes of a cluster end with another one (`ending`),
/// that of a killed one may be there for a moment still.
async fn lock(data_dir: &Path, ending: bool) -> Result<fs::File, Error> {
    private(data_dir)?;
    let path = data_dir.join(LOCK);
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| io_error(&path, source))?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if ending && begin.elapsed() < Duration::from_secs(1) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(fs::TryLockError::WouldBlock) => return Err(Error::InUse(data_dir.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(io_error(&path, source)),
        }
    }
}

/// Makes the data directory, and in it the folders that other users of this machine have no business in: objects (Secrets are among them), and
/// files of containers and images, where a program may be root's and set-user-id.
fn private(data_dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    for folder in [data_dir.to_owned(), data_dir.join("api"), data_dir.join("node"), data_dir.join("images")]
    {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| io_error(&folder, source))?;
        if folder != data_dir {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
                .map_err(|source| io_error(&folder, source))?;
        }
    }
    Ok(())
}

/// The plan and the hold on its number: that of the configuration or of the last start, or else a free one.
async fn choose(config: &ClusterConfig, links: &Links) -> Result<(NetworkPlan, Hold), Error> {
    let taken = links.taken().await?;
    let path = config.data_dir.join(NETWORK_FILE);
    let saved = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice::<Saved>(&bytes).ok().map(|saved| saved.number),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(io_error(&path, error)),
    };
    let hold = |number: u8| {
        Hold::take(number)
            .map_err(|error| Error::Network { what: "holding a network".into(), cause: error.to_string() })
    };
    if let Some(number) = saved.or(config.network) {
        let plan = NetworkPlan::new(number, &config.device_prefix);
        let taken_by = |by: String| Error::NetworkTaken { number, by };
        if let Some(obstacle) = plan::obstacle(&plan, &taken) {
            return Err(taken_by(format!("{} on {}", obstacle.net, obstacle.device)));
        }
        let hold = hold(number)?.ok_or_else(|| taken_by("another cluster".to_owned()))?;
        return Ok((plan, hold));
    }
    for plan in plan::candidates(&config.device_prefix, &taken) {
        if let Some(hold) = hold(plan.number())? {
            return Ok((plan, hold));
        }
    }
    Err(Error::NoNetwork)
}

fn save(data_dir: &Path, plan: &NetworkPlan) -> Result<(), Error> {
    let path = data_dir.join(NETWORK_FILE);
    let text = format!("{{\"number\":{}}}\n", plan.number());
    fs::write(&path, text).map_err(|source| io_error(&path, source))
}

/// The way from pods to the world; a cluster without it works, but for that.
fn outbound(plan: &NetworkPlan, door: Option<&Door>) -> Option<cluster_firewall::Held> {
    let forwarding = link::enable_forwarding();
    let rules = match door {
        Some(door) => masquerade::redirect(plan, door.egress_port()),
        None => masquerade::rules(plan),
    };
    let started = forwarding.and_then(|()| cluster_firewall::hold(&rules).map_err(io::Error::other));
    match started {
        Ok(masquerade) => Some(masquerade),
        Err(error) => {
            tracing::warn!(%error, "pods cannot reach addresses beyond this machine: forwarding or nf_tables is not to be had");
            None
        }
    }
}

fn api_config(config: &ClusterConfig, plan: &NetworkPlan) -> Result<cluster_apiserver::Config, Error> {
    let on_node = SocketAddr::from((plan.node_ip(), NODE_API_PORT));
    let mut api = cluster_apiserver::Config::new(config.data_dir.join("api"));
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, config.api_port));
    api.listen = vec![local, on_node];
    if let Some(door) = &config.door {
        let failed = |cause| cluster_apiserver::Error::Listen { address: local, cause };
        api.opened = vec![Arc::new(door.listen(local).map_err(failed)?)];
        api.listen = vec![on_node];
    }
    api.advertise = Some(on_node);
    api.service_cidr = plan.service_cidr();
    api.git_version.clone_from(&config.git_version);
    api.sync = config.durable;
    api.extra_sans.clone_from(&config.extra_sans);
    api.extra_sans.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    Ok(api)
}

async fn start_registry(
    config: &ClusterConfig,
    plan: &NetworkPlan,
    images: &Arc<Store>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<SocketAddr, Error> {
    let bind = async |address: SocketAddr| {
        TcpListener::bind(address).await.map_err(|cause| Error::Registry { address, cause })
    };
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, config.registry_port));
    let local = match &config.door {
        Some(door) => door.listen(loopback).and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        }),
        None => TcpListener::bind(loopback).await,
    };
    let local = local.map_err(|cause| Error::Registry { address: loopback, cause })?;
    let address = local.local_addr().map_err(|cause| Error::Registry { address: loopback, cause })?;
    let mut listeners = vec![local, bind((plan.node_ip(), address.port()).into()).await?];
    if config.door.is_some() {
        // For this process itself, whose own loopback is another.
        listeners.push(bind((Ipv4Addr::LOCALHOST, address.port()).into()).await?);
    }
    let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned(), plan.node_ip().to_string()];
    images.set_own_registries(hosts.map(|host| format!("{host}:{}", address.port())));
    let router = cluster_images::registry_router(Arc::clone(images));
    for listener in listeners {
        let serve = axum::serve(listener, router.clone()).into_future();
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = serve => {}
            }
        });
    }
    Ok(address)
}

fn start_services(
    config: &ClusterConfig,
    plan: &NetworkPlan,
    api: &ApiServer,
    policies: &Policies,
    (tasks, stop): (&TaskTracker, &CancellationToken),
) {
    let client = api.client("system:kube-proxy", &[MASTERS]);
    let wanted = cluster_services::Config {
        dns: Some((plan.dns_ip(), 53).into()),
        cluster_domain: config.cluster_domain.clone(),
        reverse_zones: vec![plan.cluster_cidr()],
        upstreams: None,
        // Not on every address of the machine: what a developer tries out is not for the whole neighbourhood.
        node_port_addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(plan.node_ip())],
        door: config.door.clone(),
        gate: Some(policies::gate(plan, policies)),
    };
    let stop = stop.clone();
    tasks.spawn(async move {
        if let Err(error) = cluster_services::run(client, wanted, stop).await {
            tracing::error!(%error, "names and addresses of Services do not work");
        }
    });
}

/// Writes a file that only its owner may read, all of it or nothing.
fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let new = path.with_extension("new");
    let write = || {
        let mut file = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, path)
    };
    write().map_err(|source| io_error(path, source))
}
