//! Devices, addresses and routes of an instance, by rtnetlink.

use std::{collections::HashMap, net::Ipv4Addr};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    link::LinkAttribute,
    route::{RouteAddress, RouteAttribute, RouteScope, RouteType},
};
use rtnetlink::{Handle, LinkBridge, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::{
    error::Error,
    plan::{NetworkPlan, Taken},
};

/// Index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;
/// The routing table of the machine's own addresses (RT_TABLE_LOCAL).
const LOCAL_TABLE: u32 = 255;
/// ENODEV, ENOENT and ESRCH: what was to be removed is not there.
const GONE: [i32; 3] = [19, 2, 3];

/// A netlink connection.
pub(crate) struct Links {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.into();
    move |error| match code(&error) {
        // EPERM and EACCES.
        Some(1 | 13) => Error::Unprivileged(what),
        _ => Error::Network { what, cause: error.to_string() },
    }
}

fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| code.get().abs()),
        _ => None,
    }
}

impl Links {
    pub(crate) fn open() -> Result<Self, Error> {
        let opened = rtnetlink::new_connection();
        let (connection, handle, _) = opened
            .map_err(|error| Error::Network { what: "opening netlink".into(), cause: error.to_string() })?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Index and name of every device.
    async fn devices(&self) -> Result<HashMap<u32, String>, Error> {
        let links: Vec<_> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("listing devices"))?;
        let name = |attributes: Vec<LinkAttribute>| {
            attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        };
        Ok(links.into_iter().filter_map(|link| Some((link.header.index, name(link.attributes)?))).collect())
    }

    async fn device(&self, name: &str) -> Result<Option<u32>, Error> {
        Ok(self.devices().await?.into_iter().find(|(_, held)| held == name).map(|(index, _)| index))
    }

    /// All IPv4 routes and addresses of the machine.
    pub(crate) async fn taken(&self) -> Result<Vec<Taken>, Error> {
        let devices = self.devices().await?;
        let device = |index: u32| devices.get(&index).cloned().unwrap_or_default();
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<_> = self
            .handle
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .map_err(failed("listing routes"))?;
        let mut taken = Vec::new();
        for route in routes {
            let (mut destination, mut out) = (None, 0);
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(address),
                    RouteAttribute::Oif(index) => out = index,
                    _ => {}
                }
            }
            let net = destination
                .and_then(|address| Ipv4Net::new(address, route.header.destination_prefix_length).ok());
            taken.extend(net.map(|net| Taken { net: net.trunc(), device: device(out) }));
        }
        let addresses: Vec<_> =
            self.handle.address().get().execute().try_collect().await.map_err(failed("listing addresses"))?;
        for address in addresses.into_iter().filter(|address| address.header.family == AddressFamily::Inet) {
            let held = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(std::net::IpAddr::V4(held)) => Some(*held),
                _ => None,
            });
            taken.extend(held.map(|held| Taken { net: held.into(), device: device(address.header.index) }));
        }
        Ok(taken)
    }

    /// Makes bridge, addresses and the Services' route, after removing what a killed instance of the same plan left.
    pub(crate) async fn make(&self, plan: &NetworkPlan) -> Result<(), Error> {
        self.remove(plan).await?;
        let name = plan.bridge();
        let bridge = LinkBridge::new(&name).address(plan.bridge_mac().to_vec()).build();
        self.handle
            .link()
            .add(bridge)
            .execute()
            .await
            .map_err(failed(format!("making the bridge {name}")))?;
        quiet(&name);
        let index = self.device(&name).await?.ok_or_else(|| Error::Network {
            what: format!("making the bridge {name}"),
            cause: "it is gone again".into(),
        })?;
        let node = (plan.node_ip(), plan.pod_cidr().prefix_len());
        for (address, length) in std::iter::once(node).chain(plan.system_ips().map(|address| (address, 32))) {
            let add = self.handle.address().add(index, address.into(), length);
            add.execute().await.map_err(failed(format!("giving {name} the address {address}")))?;
        }
        let route = self.services_route(plan);
        let what = format!("making {} local to this machine", plan.service_cidr());
        self.handle.route().add(route).replace().execute().await.map_err(failed(what))
    }

    /// In a network namespace of this process's own: packets to the world need a route before they can be redirected.
    pub(crate) async fn way_out(&self, plan: &NetworkPlan) -> Result<(), Error> {
        let name = plan.bridge();
        let index = self.device(&name).await?.unwrap_or(LOOPBACK);
        let up = rtnetlink::LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(up).execute().await.map_err(failed(format!("bringing {name} up")))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .pref_source(plan.node_ip())
            .scope(RouteScope::Link)
            .build();
        let what = "making a default route";
        self.handle.route().add(route).replace().execute().await.map_err(failed(what))
    }

    /// Removes what [`Self::make`] made; what is not there is no error.
    pub(crate) async fn remove(&self, plan: &NetworkPlan) -> Result<(), Error> {
        let forgiving = |result: Result<(), rtnetlink::Error>| match result {
            Err(error) if code(&error).is_some_and(|code| GONE.contains(&code)) => Ok(()),
            other => other,
        };
        let removed = self.handle.route().del(self.services_route(plan)).execute().await;
        forgiving(removed).map_err(failed(format!("removing the route of {}", plan.service_cidr())))?;
        if let Some(index) = self.device(&plan.bridge()).await? {
            let removed = self.handle.link().del(index).execute().await;
            forgiving(removed).map_err(failed(format!("removing the bridge {}", plan.bridge())))?;
        }
        Ok(())
    }

    /// Every address of the range is this machine's own (AnyIP), so that the proxy can listen on each ClusterIP.
    fn services_route(&self, plan: &NetworkPlan) -> netlink_packet_route::route::RouteMessage {
        let range = plan.service_cidr();
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .output_interface(LOOPBACK)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .table_id(LOCAL_TABLE)
            .build()
    }
}

/// The bridge speaks no IPv6: the cluster has none, and neighbour discovery would only make noise.
fn quiet(bridge: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6");
    if let Err(error) = std::fs::write(&path, "1") {
        tracing::debug!(path, %error, "IPv6 stays on");
    }
}

/// Lets pods reach the world beyond this machine: forwarding is on. It stays on, as others may rely on it.
pub(crate) fn enable_forwarding() -> std::io::Result<()> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(PATH)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(PATH, "1")
}
