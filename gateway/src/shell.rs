//! The IO of the gateway.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ebb_component::{Admin, Health, ListenError, ListenerKeeper, Traces, listen};
use ebb_http::{PlainAcceptor, Pool, PoolConfig, ServerConfig};
use ebb_mesh::Identity;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::WATCHES;
use crate::config::{Config, Listeners};
use crate::gateway_api::Keeper;
use crate::table::{Side, Table};
use crate::upstream::Upstream;
use live::Door;

mod access_log;
mod edge;
mod endpoints;
mod handler;
mod keyring;
mod live;
mod meter;
mod programmer;
mod settle;
mod sources;
mod spans;
mod tls;

pub use access_log::{AccessLog, Answer};
pub use edge::Edge;
pub use handler::Handler;
pub use live::Live;

/// What the data path reads.
pub type Snapshot = Arc<ArcSwap<Table<Arc<Upstream>>>>;

/// Clients outside keep connections, and nobody tells them that this gateway goes but its last answers.
const DRAIN_IDLE: Duration = Duration::from_secs(1);

/// Why the gateway cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is not to be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A listener that was handed in cannot be used.
    #[error("a listener that was handed in cannot be used: {0}")]
    Handed(std::io::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Runs until `shutdown`, then drains: requests under way are finished, new connections are not taken.
///
/// # Errors
/// When a port is not to be had, or TLS cannot be set up.
pub async fn run(
    config: Config,
    listeners: Listeners,
    client: kube::Client,
    identity: Identity,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admin = Admin::start("gateway", config.bind, config.ports, Health::new(&[WATCHES])).await?;
    serve(config, listeners, admin, client, identity, shutdown).await
}

/// As [`run`], with health and metrics served already.
pub(crate) async fn serve(
    config: Config,
    listeners: Listeners,
    admin: Admin,
    client: kube::Client,
    identity: Identity,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    admin.send_metrics(client.clone(), &config.namespace);
    let mut keeper = match config.keeper.clone() {
        Some(path) => Some(ListenerKeeper::find(path).await),
        None => None,
    };
    let http = bound(listeners.http, SocketAddr::new(config.bind, config.http_port), &mut keeper).await?;
    let tls = bound(listeners.tls, SocketAddr::new(config.bind, config.tls_port), &mut keeper).await?;
    let local = bound(listeners.local, SocketAddr::new(config.bind, config.local_port), &mut keeper).await?;

    let pool = Pool::new(identity.clone(), PoolConfig::default());
    let seen = programmer::Seen::default();
    seen.live.trace_by(Traces::start("gateway"));
    let background = CancellationToken::new();
    let synced = admin.health().condition(WATCHES);
    let tasks = TaskTracker::new();
    if let Some(keeper) = keeper {
        let listeners = [&http, &tls, &local].into_iter().flatten();
        let copies: std::io::Result<_> = listeners.map(|l| l.as_fd().try_clone_to_owned()).collect();
        let (copies, shutdown) = (copies.map_err(Error::Handed)?, shutdown.clone());
        tasks.spawn(async move { shutdown.run_until_cancelled(keeper.hold(copies)).await });
    }

    let own: Vec<SocketAddr> =
        local.iter().filter_map(|listener| listener.local_addr().ok()).map(reachable).collect();
    let settler = settle::Settler::new(client.clone(), &config, own);
    let inbox = sources::spawn(&tasks, &client, &config, &background);
    let programmer = programmer::Programmer::new(
        config.clone(),
        identity.trust_domain(),
        pool,
        seen.clone(),
        Keeper::new(client.clone()),
        settler,
    );
    tasks.spawn(programmer.run(inbox, client, synced.clone(), background.clone()));

    // Whoever connects before the first table is there waits in a listener's queue: answered now, every host would be unknown.
    tokio::select! {
        () = synced.cancelled() => {}
        () = shutdown.cancelled() => {}
    }
    let programmer::Seen { snapshot, certificates, live } = seen;
    let servers = TaskTracker::new();
    let limits = ServerConfig { drain_idle: DRAIN_IDLE, ..ServerConfig::default() };
    let external = Handler::new(snapshot.clone(), Side::External, &config, live.clone());
    let inside = Handler::new(snapshot, Side::Local, &config, live.clone());
    for listener in http {
        let acceptor = Edge::new(PlainAcceptor, Door::Http, live.clone());
        servers.spawn(ebb_http::serve(listener, acceptor, external.clone(), limits, shutdown.clone()));
    }
    let acceptor = Edge::new(tls::acceptor(&certificates)?, Door::Https, live);
    for listener in tls {
        servers.spawn(ebb_http::serve(
            listener,
            acceptor.clone(),
            external.clone(),
            limits,
            shutdown.clone(),
        ));
    }
    for listener in local {
        servers.spawn(ebb_http::serve(listener, PlainAcceptor, inside.clone(), limits, shutdown.clone()));
    }
    servers.close();
    servers.wait().await;
    external.tunnels().wait_closed().await;
    inside.tunnels().wait_closed().await;
    background.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn bound(
    mut handed: Vec<std::net::TcpListener>,
    address: SocketAddr,
    keeper: &mut Option<ListenerKeeper>,
) -> Result<Vec<TcpListener>, Error> {
    handed.extend(keeper.as_mut().and_then(|keeper| keeper.take(address)));
    if handed.is_empty() {
        return Ok(vec![listen(address).await?]);
    }
    handed.into_iter().map(ebb_http::adopt).collect::<std::io::Result<_>>().map_err(Error::Handed)
}

/// An address at which a listener of this process can be reached.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
