//! The whole platform in this process: the embedded cluster, and on it the same components that run as Deployments elsewhere.

mod components;
mod install;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use cluster::images::Store;
use cluster::rootless::Door;
use cluster::{Cluster, ClusterConfig};
use ebb_api::manifests;
use kube::Client;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::settings::Misuse;
use crate::signals::Signals;
use components::{Addresses, Components};

/// The sidecar, static, as built by this build.
pub(crate) const SIDECAR: &[u8] = include_bytes!(env!("EBB_SIDECAR_BINARY"));
/// What `kubectl version` shows of the embedded API.
const KUBERNETES_VERSION: &str = concat!("v1.35.0+ebb-", env!("CARGO_PKG_VERSION"));
/// Without the platform it is a Kubernetes like another: `ebb install` takes it for one.
const BARE_VERSION: &str = "v1.35.0";

/// What the user chose.
pub(crate) struct Options {
    pub(crate) data_dir: PathBuf,
    /// Port of the Kubernetes API on 127.0.0.1; 0 for any.
    pub(crate) api_port: u16,
    /// Port of the gateway on loopback; 0 for any.
    pub(crate) gateway_port: u16,
    /// Port of the gateway for https on loopback; 0 for any, none for the usual one or any.
    pub(crate) gateway_tls_port: Option<u16>,
    /// Port of the registry on 127.0.0.1; 0 for any.
    pub(crate) registry_port: u16,
    /// Only the embedded Kubernetes, and nothing of the platform on it.
    pub(crate) bare: bool,
    /// The way to the machine, where this process is in namespaces of its own.
    pub(crate) door: Option<Door>,
}

/// Where things listen.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) api: u16,
    pub(crate) gateway: u16,
    pub(crate) gateway_tls: u16,
    pub(crate) registry: u16,
}

/// A running platform.
pub(crate) struct Platform {
    cluster: Cluster,
    components: Components,
    ports: Ports,
}

impl Platform {
    /// Starts everything, and waits until a Service can be applied and asked. Whoever asks to end meanwhile finds nothing left behind:
    /// half a platform cannot be stopped in good order, so it is made whole first.
    pub(crate) async fn start_unless(options: Options, signals: &mut Signals) -> anyhow::Result<Self> {
        let mut start = pin!(Self::start(options));
        let asked = tokio::select! {
            started = &mut start => return started,
            asked = signals.asked() => asked,
        };
        let end = async {
            if let Ok(platform) = start.await {
                platform.shutdown().await;
            }
        };
        // Who asks twice does not want to wait.
        tokio::select! {
            () = end => {}
            _ = signals.asked() => {}
        }
        Err(asked.into())
    }

    async fn start(options: Options) -> anyhow::Result<Self> {
        let start = Instant::now();
        more_files();
        // First of all, so that a port that is taken is said at once.
        let listeners = match listen_all(&options) {
            Ok(listeners) => listeners,
            Err(_) if Cluster::runs_on(&options.data_dir) => {
                return Err(named(cluster::Error::InUse(options.data_dir)));
            }
            Err(error) => return Err(error),
        };
        let port = |listeners: &[TcpListener]| -> anyhow::Result<u16> {
            Ok(listeners.first().context("no listener for the gateway")?.local_addr()?.port())
        };
        let (gateway, gateway_tls) = (port(&listeners.http)?, port(&listeners.tls)?);
        let mut config = ClusterConfig::new(options.data_dir.clone());
        config.api_port = options.api_port;
        config.registry_port = options.registry_port;
        config.door = options.door;
        config.git_version = if options.bare { BARE_VERSION } else { KUBERNETES_VERSION }.into();
        config.device_prefix = "ebb".into();
        config.node_name = "ebb".into();
        let components = Components::new()?;
        let cluster = Cluster::start(config).await.map_err(named)?;
        tracing::info!(elapsed = ?start.elapsed(), "cluster is up");
        let ports = Ports {
            api: cluster.api_addr().port(),
            gateway,
            gateway_tls,
            registry: cluster.registry_addr().port(),
        };
        if options.bare {
            return Ok(Self { cluster, components, ports });
        }
        match start_components(&cluster, &components, listeners, ports).await {
            Ok(()) => {
                tracing::info!(elapsed = ?start.elapsed(), "platform is up");
                Ok(Self { cluster, components, ports })
            }
            Err(error) => {
                components.shutdown().await;
                cluster.shutdown().await;
                Err(error)
            }
        }
    }

    pub(crate) fn ports(&self) -> Ports {
        self.ports
    }

    pub(crate) fn kubeconfig(&self) -> &Path {
        self.cluster.kubeconfig_path()
    }

    /// A client that may do everything.
    pub(crate) fn client(&self) -> Client {
        self.cluster.client("kubernetes-admin")
    }

    pub(crate) fn images(&self) -> &Arc<Store> {
        self.cluster.images()
    }

    /// Waits until a component ends that should not; normally for ever.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        self.components.failed().await
    }

    /// Pods first, while their sidecars can still report; then the components, then the cluster.
    pub(crate) async fn shutdown(self) {
        self.components.shutdown().await;
        self.cluster.shutdown().await;
    }
}

async fn start_components(
    cluster: &Cluster,
    components: &Components,
    listeners: ebb_gateway::Listeners,
    ports: Ports,
) -> anyhow::Result<()> {
    let plan = cluster.network();
    let address =
        |index| plan.system_ip(index).context("the network plan has too few addresses for the components");
    let at = Addresses {
        controller: address(2)?,
        autoscaler: address(3)?,
        activator: address(4)?,
        gateway: address(5)?,
    };
    let options = manifests::Options {
        domain: Some("localhost".into()),
        place: manifests::Place::Embedded {
            queue_sidecar_image: import_sidecar(cluster).await?,
            registry_mirror: format!("http://127.0.0.1:{}", ports.registry),
            external_url_port: (ports.gateway != 80).then_some(ports.gateway),
            external_url_tls_port: (ports.gateway_tls != 443).then_some(ports.gateway_tls),
        },
        ..manifests::Options::default()
    };
    let client = cluster.client("system:serviceaccount:ebb-system:controller");
    ebb_controller::install::install(&client, &options)
        .await
        .context("applying the platform's own objects")?;
    let (namespace, leads) = (&options.namespace, components::leads(&at));
    tokio::try_join!(
        install::lead(&client, namespace, &leads),
        install::publish_gateway(&client, namespace, ports),
    )?;
    tracing::info!("the platform's own objects are there");
    components.start(cluster, namespace, &at, listeners).await
}

/// Takes as many open files as the process may have: each port of a Service is a listener, and most shells allow no more than 1,024.
fn more_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most));
    match raised {
        Ok(most) => tracing::debug!(most, "open files"),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised: few Services can be served");
        }
    }
}

/// Puts the sidecar into the image store, and gives its name.
async fn import_sidecar(cluster: &Cluster) -> anyhow::Result<String> {
    let images = cluster.images().clone();
    let name = concat!("ebb.local/queue-proxy:", env!("CARGO_PKG_VERSION"));
    let import = move || images.import_binary(SIDECAR, name, "/queue-proxy", &["/queue-proxy"]);
    let digest = tokio::task::spawn_blocking(import).await.context("importing the sidecar")??;
    // By digest: another build of ebb on the same folder brings another sidecar under the same tag.
    Ok(format!("ebb.local/queue-proxy@{digest}"))
}

/// Says which argument is meant, and what to do.
fn named(error: cluster::Error) -> anyhow::Error {
    match error {
        cluster::Error::ApiPort { address, cause } => taken("--api-port", address, &cause),
        cluster::Error::Registry { address, cause } => taken("--registry-port", address, &cause),
        cluster::Error::InUse(dir) => anyhow!(
            "a platform runs on {0} already: use it (export KUBECONFIG={0}/kubeconfig), stop it, or name another folder with --data-dir",
            dir.display()
        ),
        cluster::Error::DataDir { path, cause } => Misuse(format!(
            "--data-dir: cannot use {}: {cause}; name a folder that can be written",
            path.display()
        ))
        .into(),
        other => other.into(),
    }
}

fn taken(flag: &str, address: SocketAddr, cause: &std::io::Error) -> anyhow::Error {
    anyhow!(
        "{flag} {}: cannot listen on {address}: {cause}; choose another, or 0 for any that is free",
        address.port()
    )
}

/// The usual port for https; where it is taken, any other does, so that platforms run side by side without being told.
const USUAL_TLS_PORT: u16 = 8443;

/// The gateway's listeners for users.
fn listen_all(options: &Options) -> anyhow::Result<ebb_gateway::Listeners> {
    let door = options.door.as_ref();
    let http = listen("--gateway-port", options.gateway_port, door)?;
    let flag = "--gateway-tls-port";
    let tls = match options.gateway_tls_port {
        Some(port) => listen(flag, port, door)?,
        None => listen(flag, USUAL_TLS_PORT, door).or_else(|_| listen(flag, 0, door))?,
    };
    Ok(ebb_gateway::Listeners { http, tls, ..Default::default() })
}

/// Listeners on IPv4 loopback, and IPv6 where the machine has it, since `localhost` may mean either.
fn listen(flag: &str, port: u16, door: Option<&Door>) -> anyhow::Result<Vec<TcpListener>> {
    let bind = |ip: IpAddr, port: u16| match door {
        Some(door) => door.listen((ip, port).into()),
        None => TcpListener::bind((ip, port)),
    };
    let first = bind(Ipv4Addr::LOCALHOST.into(), port)
        .map_err(|cause| taken(flag, (Ipv4Addr::LOCALHOST, port).into(), &cause))?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    if door.is_some() {
        // For this process itself, whose own loopback is another.
        listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?);
    }
    match bind(Ipv6Addr::LOCALHOST.into(), port) {
        Ok(second) => listeners.push(second),
        Err(e) => tracing::debug!("no IPv6 loopback for the gateway: {e}"),
    }
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    Ok(listeners)
}
