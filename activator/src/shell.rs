//! The IO of the activator.

use std::net::SocketAddr;
use std::sync::Arc;

use ebb_http::{PlainAcceptor, Pool, PoolConfig, ServerConfig, serve};
use ebb_mesh::{Identity, MeshAcceptor};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;

mod handler;
mod health;
mod probe;
mod registry;
mod report;
mod sources;
mod watch;

pub use handler::Handler;
pub use registry::Registry;
pub use report::{MeshReporter, ReportError, Reporter};

/// Why the activator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is not to be had.
    #[error("cannot listen at {address}: {source}; is another process using the port?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs until `shutdown`, then drains: requests that wait are still served, new connections are not taken.
pub async fn run(
    config: Config,
    client: kube::Client,
    identity: Identity,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let mtls = listen(SocketAddr::new(config.bind, config.mtls_port)).await?;
    let health = listen(SocketAddr::new(config.bind, config.health_port)).await?;
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
    let synced = CancellationToken::new();
    sources::spawn(&tasks, &client, &config, &registry, &reporter, &synced, &background);
    tasks.spawn(registry.clone().run_reports(background.clone()));
    tasks.spawn(health::serve(health, synced, background.clone()));

    let handler = Handler::new(registry, &config);
    let servers = TaskTracker::new();
    let limits = ServerConfig::default();
    servers.spawn(serve(mtls, MeshAcceptor(identity), handler.clone(), limits, shutdown.clone()));
    for listener in plain {
        servers.spawn(serve(listener, PlainAcceptor, handler.clone(), limits, shutdown.clone()));
    }
    servers.close();
    servers.wait().await;
    handler.tunnels().wait_closed().await;
    background.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}
