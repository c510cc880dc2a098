//! How Services of the embedded cluster are reached: a DNS server for their names, and a userspace proxy for their ClusterIPs and NodePorts.
//!
//! Both work from [`index`](index/index.html), which a watch of Services and one of EndpointSlices keep; both go on with what they know while
//! the API server is away. A name or an endpoint counts from the moment its watch event arrives.
//!
//! This crate allocates no ClusterIP and makes no route: the addresses of the service range must be local to the machine
//! already (`local CIDR dev lo`).

mod dns;
mod gate;
mod index;
mod proxy;
mod watch;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use cluster_rootless::Door;
use ipnet::Ipv4Net;
use kube::Client;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use gate::Gate;
pub use index::Protocol;

use crate::index::Index;

/// What the services of one cluster need to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the DNS server listens, UDP and TCP; none for no DNS server.
    pub dns: Option<SocketAddr>,
    /// The cluster's domain, without dots at the ends: `cluster.local`.
    pub cluster_domain: String,
    /// Ranges of addresses whose reverse names are answered here and not by others: Services and pods.
    pub reverse_zones: Vec<Ipv4Net>,
    /// Servers asked for all other names; none means those of /etc/resolv.conf.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// Addresses on which NodePorts are served; empty for none.
    pub node_port_addresses: Vec<IpAddr>,
    /// Who may connect to which endpoint, and from where the proxy does so for them; none lets everybody.
    pub gate: Option<Gate>,
    /// The machine's loopback, where this process has a network of its own: loopback NodePorts are served there.
    pub door: Option<Door>,
}

/// Why Services cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The DNS server's address is not to be had.
    #[error(
        "the cluster's DNS server cannot listen on {address}: {cause}; is the address local, and port 53 free and allowed?"
    )]
    DnsListen {
        /// The address from the configuration.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
}

/// Serves names and addresses of Services until `shutdown` is cancelled. Connections through the proxy end with it.
///
/// # Errors
/// If the DNS server's address cannot be bound. All other errors concern one Service and are logged.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let tasks = TaskTracker::new();
    let index = Arc::new(Index::default());
    if let Some(address) = config.dns {
        let listen =
            dns::Sockets::bind(address).await.map_err(|cause| Error::DnsListen { address, cause })?;
        let upstreams = config.upstreams.clone().unwrap_or_else(|| dns::host_upstreams(address.ip()));
        let zone = dns::Zone::new(&config.cluster_domain, config.reverse_zones.clone());
        let server = Arc::new(dns::Server::new(Arc::clone(&index), zone, upstreams));
        tasks.spawn(server.run(listen, shutdown.clone()));
    }
    let proxy = Arc::new(proxy::Proxy::new(
        config.node_port_addresses.clone(),
        config.door.clone(),
        config.gate.clone(),
        shutdown.clone(),
    ));
    tasks.spawn(watch::run(client, index, proxy, shutdown.clone()));
    tasks.close();
    shutdown.cancelled().await;
    tasks.wait().await;
    Ok(())
}
