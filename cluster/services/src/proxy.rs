//! The userspace service proxy: listens on each Service's ClusterIP and NodePort and joins connections to ready endpoints.
//!
//! A port without any endpoint has no listener, so that the kernel refuses connections to it, as kube-proxy does. Established
//! connections are tasks of their own: they outlive changes of endpoints and of the listener, and end with `shutdown`.

mod balance;
mod tcp;
mod udp;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Shutdown, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use cluster_rootless::Door;
use parking_lot::Mutex;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;
use crate::index::{Address, Key, Protocol, Service};
use balance::Balancer;

/// See the module's documentation.
pub(crate) struct Proxy {
    node_port_addresses: Vec<IpAddr>,
    door: Option<Door>,
    gate: Option<Gate>,
    /// By Service, then by where they listen.
    listeners: Mutex<HashMap<Key, HashMap<Listen, Listener>>>,
    shutdown: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Listen {
    protocol: Protocol,
    address: SocketAddr,
    /// A NodePort may be taken by somebody else, a ClusterIP's port not.
    node_port: bool,
}

struct Listener {
    balancer: Arc<ArcSwap<Balancer>>,
    stop: CancellationToken,
    open: Open,
}

/// A socket, shared with its task: one descriptor for each port, of which there are thousands.
enum Open {
    Tcp(Arc<TcpListener>),
    Udp(Arc<UdpSocket>),
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
        // The task lets go of it a moment later. A socket that listens no more refuses connections from now on, and
        // lets a successor bind the same address.
        let socket = match &self.open {
            Open::Tcp(listener) => SockRef::from(listener.as_ref()),
            Open::Udp(socket) => SockRef::from(socket.as_ref()),
        };
        drop(socket.shutdown(Shutdown::Read));
    }
}

impl Proxy {
    pub(crate) fn new(
        node_port_addresses: Vec<IpAddr>,
        door: Option<Door>,
        gate: Option<Gate>,
        shutdown: CancellationToken,
    ) -> Self {
        Self { node_port_addresses, door, gate, listeners: Mutex::default(), shutdown }
    }

    /// Brings the listeners of one Service up to date; none means that it is gone. Must be called in a runtime.
    pub(crate) fn update(&self, key: &Key, service: Option<&Service>) {
        let wanted = service.map(|service| self.wanted(service)).unwrap_or_default();
        let mut all = self.listeners.lock();
        let held = all.entry(key.clone()).or_default();
        held.retain(|listen, _| wanted.contains_key(listen));
        for (listen, balancer) in wanted {
            match held.get(&listen) {
                Some(listener) => {
                    let successor = balancer.succeed(&listener.balancer.load());
                    listener.balancer.store(Arc::new(successor));
                }
                None => match self.listen(listen, balancer) {
                    Ok(listener) => drop(held.insert(listen, listener)),
                    Err(error) if listen.node_port => {
                        tracing::debug!(service = ?key, address = %listen.address, %error, "NodePort left to others");
                    }
                    Err(error) => {
                        tracing::warn!(service = ?key, address = %listen.address, %error, "the service's port cannot be served");
                    }
                },
            }
        }
        if held.is_empty() {
            all.remove(key);
        }
    }

    fn wanted(&self, service: &Service) -> HashMap<Listen, Balancer> {
        let Address::Cluster(cluster) = service.address else { return HashMap::new() };
        let mut wanted = HashMap::new();
        for port in &service.ports {
            let targets = service.targets(port);
            if targets.is_empty() {
                continue;
            }
            let targets: Arc<[SocketAddr]> = targets.into_iter().map(SocketAddr::from).collect();
            let mut add = |address: SocketAddr, node_port: bool| {
                let listen = Listen { protocol: port.protocol, address, node_port };
                wanted.insert(listen, Balancer::new(Arc::clone(&targets), service.affinity));
            };
            add((cluster, port.number).into(), false);
            if let Some(number) = port.node_port {
                self.node_port_addresses.iter().for_each(|address| add((*address, number).into(), true));
            }
        }
        wanted
    }

    fn listen(&self, listen: Listen, balancer: Balancer) -> io::Result<Listener> {
        let socket = match &self.door {
            // UDP from outside has no way in.
            Some(door) if listen.address.ip().is_loopback() && listen.protocol == Protocol::Tcp => {
                let opened = door.listen(listen.address)?;
                opened.set_nonblocking(true)?;
                opened.into()
            }
            _ => socket(listen)?,
        };
        let balancer = Arc::new(ArcSwap::from_pointee(balancer));
        let stop = self.shutdown.child_token();
        let open = match listen.protocol {
            Protocol::Tcp => {
                socket.listen(1024)?;
                let listener = Arc::new(TcpListener::from_std(socket.into())?);
                let (own, stop, balancer) = (Arc::clone(&listener), stop.clone(), Arc::clone(&balancer));
                tokio::spawn(tcp::serve(own, balancer, self.gate.clone(), stop, self.shutdown.clone()));
                Open::Tcp(listener)
            }
            Protocol::Udp => {
                let socket = Arc::new(UdpSocket::from_std(socket.into())?);
                let (balancer, gate) = (Arc::clone(&balancer), self.gate.clone());
                tokio::spawn(udp::serve(Arc::clone(&socket), balancer, gate, stop.clone()));
                Open::Udp(socket)
            }
        };
        Ok(Listener { balancer, stop, open })
    }
}

fn socket(listen: Listen) -> io::Result<Socket> {
    let kind = match listen.protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(listen.address), kind, None)?;
    if listen.address.is_ipv4() {
        // The range is local by a route; should the route come later, the listener is there already.
        socket.set_freebind_v4(true)?;
    }
    // Of UDP sockets that share an address the last one gets the datagrams: right for a successor, wrong for a NodePort of others.
    if listen.protocol == Protocol::Tcp || !listen.node_port {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
