//! The IO of the activator.

use std::net::SocketAddr;
use std::sync::Arc;

use ebb_component::{Admin, Health, ListenError, listen};
use ebb_http::{PlainAcceptor, Pool, PoolConfig, ServerConfig};
use ebb_mesh::{Identity, MeshAcceptor};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::WATCHES;
use crate::config::Config;

mod handler;
mod probe;
mod registry;
mod report;
mod sources;

pub use handler::Handler;
pub use registry::Registry;
pub use report::{MeshReporter, ReportError, Reporter};

/// Why the activator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is not to be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Runs until `shutdown`, then drains: requests that wait are still served, new connections are not taken.
///
/// # Errors
/// When a port is not to be had.
pub async fn run(
    config: Config,
    client: kube::Client,
    identity: Identity,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admin = Admin::start("activator", config.bind, config.ports, Health::new(&[WATCHES])).await?;
    serve(config, admin, client, identity, shutdown).await
}

/// As [`run`], with health and metrics served already.
pub(crate) async fn serve(
    config: Config,
    admin: Admin,
    client: kube::Client,
    identity: Identity,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    admin.send_metrics(client.clone(), &config.namespace);
    let mtls = listen(SocketAddr::new(config.bind, config.mtls_port)).await?;
    let mut plain = Vec::new();
    for port in &config.plain_ports {
        plain.push(listen(SocketAddr::new(config.bind, *port)).await?);
    }

    let pool = Pool::new(identity.clone(), PoolConfig::default());
    let reporter = Arc::new(MeshReporter::new(&pool, &config, identity.trust_domain()));
    let registry = Registry::new(pool, identity.trust_domain(), &config.pod, reporter.clone());
    // The watches go on while requests drain: those that wait need pods.
    let background = CancellationToken::new();
    let tasks = TaskTracker::new();
    let synced = admin.health().condition(WATCHES);
    sources::spawn(&tasks, &client, &config, &registry, &reporter, &synced, &background);
    tasks.spawn(registry.clone().run_reports(background.clone()));

    let handler = Handler::new(registry, &config);
    let servers = TaskTracker::new();
    let limits = ServerConfig::default();
    servers.spawn(ebb_http::serve(mtls, MeshAcceptor(identity), handler.clone(), limits, shutdown.clone()));
    for listener in plain {
        servers.spawn(ebb_http::serve(listener, PlainAcceptor, handler.clone(), limits, shutdown.clone()));
    }
    servers.close();
    servers.wait().await;
    handler.tunnels().wait_closed().await;
    background.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}
