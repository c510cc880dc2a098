//! What the cluster needs of the machine's network: a bridge, addresses, a route, masquerade. All of it goes at a clean stop.

use std::net::{IpAddr, Ipv4Addr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use cluster_firewall::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteScope, RouteType};
use rtnetlink::{Handle, LinkBridge, RouteMessageBuilder};
use tracing::{debug, warn};

use crate::plan::{NetworkPlan, Taken, choose};
use crate::Error;

const LOCAL_TABLE: u32 = 255;

/// The machine's side of the cluster's network; dropping it gives the number back, [`HostNetwork::remove`] takes all of it away.
pub(crate) struct HostNetwork {
    plan: NetworkPlan,
    handle: Handle,
    driver: tokio::task::JoinHandle<()>,
    /// Held for the life of the process: the kernel frees it even after kill -9.
    _claim: UnixListener,
}

impl HostNetwork {
    /// Chooses addresses and makes the bridge.
    pub(crate) async fn make(prefix: &str, last: Option<u8>, system_addresses: u8) -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| Error::network("opening a netlink socket", e))?;
        let driver = tokio::spawn(connection);
        let taken = taken(&handle).await?;
        let mut claim = None;
        let plan = choose(prefix, last, &taken, |number| {
            claim = claim_number(prefix, number);
            claim.is_some()
        });
        let (Some(plan), Some(claim)) = (plan, claim) else {
            return Err(Error::NoNetwork);
        };
        let network = Self { plan, handle, driver, _claim: claim };
        network.remove_devices().await;
        network.configure(system_addresses).await?;
        Ok(network)
    }

    pub(crate) fn plan(&self) -> &NetworkPlan {
        &self.plan
    }

    async fn configure(&self, system_addresses: u8) -> Result<(), Error> {
        let plan = &self.plan;
        let failed = |what: String| move |e: rtnetlink::Error| Error::network(what, e);
        let bridge = LinkBridge::new(&plan.bridge).up().build();
        self.handle.link().add(bridge).execute().await.map_err(failed(format!("making bridge {}", plan.bridge)))?;
        let index = self.index(&plan.bridge).await?;
        let addresses = self.handle.address();
        let node = IpAddr::V4(plan.node_ip());
        let prefix = plan.pod_cidr().prefix_len();
        addresses.add(index, node, prefix).execute().await.map_err(failed(format!("adding address {node}")))?;
        for address in (0..system_addresses).filter_map(|i| plan.system_address(i)) {
            let added = addresses.add(index, IpAddr::V4(address), 32).execute().await;
            added.map_err(failed(format!("adding address {address}")))?;
        }
        // Every ClusterIP is an address of this machine, so that the service proxy can listen on it (AnyIP).
        let loopback = self.index("lo").await?;
        let services = plan.service_cidr();
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(services.addr(), services.prefix_len())
            .output_interface(loopback)
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .build();
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(failed(format!("adding a local route for {services}")))?;
        self.masquerade();
        Ok(())
    }

    /// Pods reach the world outside with the machine's address. Without it they still reach each other, so a failure only warns.
    fn masquerade(&self) {
        if let Err(e) = std::fs::write("/proc/sys/net/ipv4/ip_forward", "1") {
            warn!("pods cannot reach other machines: forwarding cannot be switched on: {e}");
        }
        let (pods, all) = (self.plan.pod_cidr(), self.plan.cluster_cidr());
        let rules = Ruleset {
            table: self.plan.bridge.clone(),
            family: Family::Ip,
            chains: vec![Chain {
                name: "outside".into(),
                hook: Hook::PostRouting,
                rules: vec![Rule {
                    matches: vec![Match::Source(pods), Match::DestinationOutside(all)],
                    verdict: Verdict::Masquerade,
                }],
            }],
        };
        if let Err(e) = cluster_firewall::load(&rules) {
            warn!("pods cannot reach other machines: {e}");
        }
    }

    /// Takes everything away again.
    pub(crate) async fn remove(self) {
        self.remove_devices().await;
        self.driver.abort();
    }

    async fn remove_devices(&self) {
        if let Err(e) = cluster_firewall::remove(&self.plan.bridge, Family::Ip) {
            debug!("removing the masquerade rule: {e}");
        }
        let services = self.plan.service_cidr();
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(services.addr(), services.prefix_len())
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .build();
        if let Err(e) = self.handle.route().del(route).execute().await {
            debug!("removing the route for {services}: {e}");
        }
        if let Ok(index) = self.index(&self.plan.bridge).await
            && let Err(e) = self.handle.link().del(index).execute().await
        {
            warn!("bridge {} is left behind: {e}", self.plan.bridge);
        }
    }

    async fn index(&self, device: &str) -> Result<u32, Error> {
        let mut links = self.handle.link().get().match_name(device.to_string()).execute();
        let found = links.try_next().await.map_err(|e| Error::network(format!("looking for device {device}"), e))?;
        Ok(found.ok_or_else(|| Error::network(format!("looking for device {device}"), "it does not exist"))?.header.index)
    }
}

/// Takes the number against other instances on this machine.
fn claim_number(prefix: &str, number: u8) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("{prefix}-network-{number}")).ok()?;
    UnixListener::bind_addr(&name).ok()
}

/// The IPv4 networks that the machine uses already.
async fn taken(handle: &Handle) -> Result<Vec<Taken>, Error> {
    let listing = |e| Error::network("listing the machine's networks", e);
    let mut names = std::collections::HashMap::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(listing)? {
        let name = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        names.insert(link.header.index, name.unwrap_or_default());
    }
    let mut taken = Vec::new();
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await.map_err(listing)? {
        let device = names.get(&address.header.index).cloned().unwrap_or_default();
        for attribute in &address.attributes {
            if let AddressAttribute::Address(IpAddr::V4(ip)) = attribute
                && let Ok(network) = Ipv4Net::new(*ip, address.header.prefix_len)
            {
                taken.push(Taken { network: network.trunc(), device: device.clone() });
            }
        }
    }
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await.map_err(listing)? {
        let mut destination = None;
        let mut device = String::new();
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = Some(*ip),
                RouteAttribute::Oif(index) => device = names.get(index).cloned().unwrap_or_default(),
                _ => {}
            }
        }
        if let Some(Ok(network)) = destination.map(|ip| Ipv4Net::new(ip, route.header.destination_prefix_length)) {
            taken.push(Taken { network, device });
        }
    }
    Ok(taken)
}

