//! The components as tasks of this process: each at an address of its own with its usual ports, each with its own identity.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use cluster::Cluster;
use ebb_mesh::ca::Authority;
use ebb_mesh::{Identity, SpiffeId};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::install::Lead;

/// How long components may take to finish what is under way.
const DRAIN: Duration = Duration::from_secs(5);

/// Where each component listens.
pub(super) struct Addresses {
    pub(super) controller: Ipv4Addr,
    pub(super) autoscaler: Ipv4Addr,
    pub(super) activator: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
}

/// Threads for those that have requests in hand. The cluster's own work comes in bursts, most of all when something starts; on threads
/// shared with it a request would wait behind it, which no other platform's data path does.
struct Requests(Option<Runtime>);

impl Requests {
    fn start() -> anyhow::Result<Self> {
        let runtime = ebb_component::threads::runtime().thread_name("requests").build();
        Ok(Self(Some(runtime.context("starting the threads that serve requests")?)))
    }

    fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // Waiting is not allowed where other tasks run, and who asked for an orderly end has waited already.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The tasks; the first that ends unasked is reported.
pub(super) struct Components {
    requests: Requests,
    stop: CancellationToken,
    tasks: TaskTracker,
    report: mpsc::Sender<anyhow::Error>,
    failed: Mutex<mpsc::Receiver<anyhow::Error>>,
}

/// Which Service leads to which component.
pub(super) fn leads(at: &Addresses) -> [Lead; 5] {
    [
        Lead { service: "controller", address: at.controller, ports: &[("webhook", 8443), ("ca", 8114)] },
        Lead { service: "autoscaler", address: at.autoscaler, ports: &[("https", 8112)] },
        Lead {
            service: "activator",
            address: at.activator,
            ports: &[("http", 8012), ("http2", 8013), ("https", 8112)],
        },
        Lead { service: "gateway", address: at.gateway, ports: &[("http", 8080), ("https", 8443)] },
        Lead { service: "gateway-internal", address: at.gateway, ports: &[("http", 8082)] },
    ]
}

impl Components {
    pub(super) fn new() -> anyhow::Result<Self> {
        let (report, failed) = mpsc::channel(4);
        let (stop, tasks, failed) = (CancellationToken::new(), TaskTracker::new(), Mutex::new(failed));
        Ok(Self { requests: Requests::start()?, stop, tasks, report, failed })
    }

    /// Starts all of them, and waits until each can do its work.
    pub(super) async fn start(
        &self,
        cluster: &Cluster,
        namespace: &str,
        at: &Addresses,
        mut listeners: ebb_gateway::Listeners,
    ) -> anyhow::Result<()> {
        let client = |account: &str| cluster.client(&format!("system:serviceaccount:{namespace}:{account}"));
        let config = ebb_controller::Config {
            bind_address: IpAddr::V4(at.controller),
            ..ebb_controller::Config::in_namespace(namespace)
        };
        let levels = ebb_component::logging::keep(
            client("controller"),
            namespace.into(),
            vec!["controller", "autoscaler", "activator", "gateway"],
            self.stop.child_token(),
        );
        self.tasks.spawn(levels);
        let ready = config.ready.clone();
        let custody = ebb_controller::ensure_authority(&client("controller"), &config).await?;
        let authority = custody.authority().clone();
        let (cluster_work, requests) = (Handle::current(), self.requests.handle());
        self.spawn(
            &cluster_work,
            "controller",
            ebb_controller::run_with_authority(
                config,
                client("controller"),
                custody,
                self.stop.child_token(),
            ),
        );
        let autoscaler = identity(&authority, namespace, "autoscaler").await?;
        let config = ebb_autoscaler::Config {
            namespace: namespace.into(),
            bind: IpAddr::V4(at.autoscaler),
            ..Default::default()
        };
        self.spawn(
            &requests,
            "autoscaler",
            ebb_autoscaler::run(config, client("autoscaler"), autoscaler, self.stop.child_token()),
        );
        let activator = identity(&authority, namespace, "activator").await?;
        let config = ebb_activator::Config {
            namespace: namespace.into(),
            bind: IpAddr::V4(at.activator),
            ..Default::default()
        };
        self.spawn(
            &requests,
            "activator",
            ebb_activator::run(config, client("activator"), activator, self.stop.child_token()),
        );
        let gateway = identity(&authority, namespace, "gateway").await?;
        let config = ebb_gateway::Config {
            namespace: namespace.into(),
            bind: IpAddr::V4(at.gateway),
            ..Default::default()
        };
        listeners.http.push(listen(at.gateway, config.http_port)?);
        listeners.tls.push(listen(at.gateway, config.tls_port)?);
        let run = ebb_gateway::run(config, listeners, client("gateway"), gateway, self.stop.child_token());
        self.spawn(&requests, "gateway", run);
        // Before its webhooks are registered, the API would refuse what users apply.
        tokio::select! {
            () = ready.wait() => Ok(()),
            failed = self.failed() => Err(failed),
        }
    }

    fn spawn<E>(
        &self,
        on: &Handle,
        name: &'static str,
        component: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: std::error::Error + Send + Sync + 'static,
    {
        let (stop, report) = (self.stop.clone(), self.report.clone());
        let task = async move {
            let ended = component.await;
            if !stop.is_cancelled() {
                let error = match ended {
                    Ok(()) => anyhow!("it ended unasked"),
                    Err(error) => anyhow::Error::new(error),
                };
                let _ = report.send(error.context(format!("the {name} has failed"))).await;
            }
        };
        self.tasks.spawn_on(task, on);
    }

    /// The first failure; normally waits for ever.
    pub(super) async fn failed(&self) -> anyhow::Error {
        let failed = self.failed.lock().await.recv().await;
        failed.unwrap_or_else(|| anyhow!("the components are gone"))
    }

    /// Lets what is under way end, and waits for it.
    pub(super) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some components did not end within {} s", DRAIN.as_secs());
        }
    }
}

/// The gateway's listener for pods, besides those for users on loopback.
fn listen(address: Ipv4Addr, port: u16) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((address, port))
        .with_context(|| format!("the gateway cannot listen on {address}:{port}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Certificates straight from the authority, which is in this process.
async fn identity(authority: &Arc<Authority>, namespace: &str, account: &str) -> anyhow::Result<Identity> {
    let id = SpiffeId::new(authority.trust_domain(), namespace, account).context(account.to_string())?;
    Identity::from_authority(authority.clone(), id)
        .await
        .with_context(|| format!("the identity of {account}"))
}
