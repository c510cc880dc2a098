//! Which addresses an instance uses, and how a free network is found.
//!
//! The choice is pure ([`choose`]); it is held by an abstract Unix socket ([`Hold`]), which exists once for each network namespace, is
//! gone with its process however that ends, and leaves no file.

use std::{
    io,
    net::Ipv4Addr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use ipnet::Ipv4Net;

/// The numbers that are tried, in this order: first those that few others use.
const NUMBERS: [std::ops::RangeInclusive<u8>; 2] = [107..=239, 16..=106];
/// Used by default by other software of this kind: k3s, podman, kubeadm, flannel.
const USUAL: [u8; 6] = [42, 43, 88, 89, 96, 244];

/// The addresses of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPlan {
    number: u8,
    prefix: String,
}

impl NetworkPlan {
    /// The network `10.number.0.0/16`; its bridge is named `prefix` and the number.
    pub fn new(number: u8, prefix: &str) -> Self {
        Self { number, prefix: prefix.to_owned() }
    }

    /// The N of `10.N.0.0/16`.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The bridge device's name.
    pub fn bridge(&self) -> String {
        format!("{}{}", self.prefix, self.number)
    }

    /// All of the instance's addresses.
    pub fn cluster_cidr(&self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(10, self.number, 0, 0), 16)
    }

    /// The node, its system addresses and pods.
    pub fn pod_cidr(&self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(10, self.number, 0, 0), 17)
    }

    /// ClusterIPs.
    pub fn service_cidr(&self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(10, self.number, 128, 0), 17)
    }

    /// The bridge's address: the node's, and the pods' gateway.
    pub fn node_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 1)
    }

    /// Addresses for components in this process, 2 to 15; a pod never has them.
    pub fn system_ip(&self, index: u8) -> Option<Ipv4Addr> {
        (2..Self::FIRST_POD).contains(&index).then(|| Ipv4Addr::new(10, self.number, 0, index))
    }

    /// All system addresses.
    pub fn system_ips(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        (2..Self::FIRST_POD).filter_map(|index| self.system_ip(index))
    }

    /// The cluster's DNS server.
    pub fn dns_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 128, 10)
    }

    /// The ClusterIP of `kubernetes.default`.
    pub fn kubernetes_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 128, 1)
    }

    /// The bridge's hardware address. A bridge without one of its own takes that of some port, and changes it with the ports.
    pub(crate) fn bridge_mac(&self) -> [u8; 6] {
        [0x02, 0, 10, self.number, 0, 1]
    }

    /// Offset of the first pod's address in [`Self::pod_cidr`].
    pub(crate) const FIRST_POD: u8 = 16;
}

/// A network that is there already: a route's destination or an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    pub(crate) net: Ipv4Net,
    /// The device's name.
    pub(crate) device: String,
}

/// What a former instance of the same number may have left when it was killed, which does not count.
fn is_remnant(plan: &NetworkPlan, taken: &Taken) -> bool {
    let own = taken.device == plan.bridge() && plan.cluster_cidr().contains(&taken.net);
    own || taken.device == "lo" && taken.net == plan.service_cidr()
}

/// What is in the way of a plan.
pub(crate) fn obstacle<'a>(plan: &NetworkPlan, taken: &'a [Taken]) -> Option<&'a Taken> {
    let cidr = plan.cluster_cidr();
    let overlaps = |net: &Ipv4Net| net.contains(&cidr) || cidr.contains(net);
    // The default route covers everything and is in nobody's way.
    taken.iter().find(|taken| taken.net.prefix_len() > 0 && overlaps(&taken.net) && !is_remnant(plan, taken))
}

/// Plans with nothing in their way, in order of preference.
pub(crate) fn candidates<'a>(prefix: &'a str, taken: &'a [Taken]) -> impl Iterator<Item = NetworkPlan> + 'a {
    let numbers = NUMBERS.into_iter().flatten().filter(|number| !USUAL.contains(number));
    let plans = numbers.map(move |number| NetworkPlan::new(number, prefix));
    plans.filter(|plan| obstacle(plan, taken).is_none())
}

/// Holds a number for this process.
#[derive(Debug)]
pub(crate) struct Hold {
    _socket: UnixListener,
}

impl Hold {
    /// Takes the number; none if another process on this network has it.
    pub(crate) fn take(number: u8) -> io::Result<Option<Self>> {
        let name = SocketAddr::from_abstract_name(format!("cluster-network-10.{number}.0.0/16"))?;
        match UnixListener::bind_addr(&name) {
            Ok(socket) => Ok(Some(Self { _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(net: &str, device: &str) -> Taken {
        Taken { net: net.parse().unwrap(), device: device.into() }
    }

    fn first(held: &[Taken]) -> Option<u8> {
        candidates("pods", held).next().map(|plan| plan.number())
    }

    #[test]
    fn addresses() {
        let plan = NetworkPlan::new(120, "pods");
        assert_eq!(plan.bridge(), "pods120");
        assert_eq!(plan.cluster_cidr().to_string(), "10.120.0.0/16");
        assert_eq!(
            (plan.pod_cidr().to_string(), plan.service_cidr().to_string()),
            ("10.120.0.0/17".into(), "10.120.128.0/17".into())
        );
        assert!(
            plan.service_cidr().contains(&plan.dns_ip())
                && plan.service_cidr().contains(&plan.kubernetes_ip())
        );
        assert_eq!(plan.system_ips().count(), 14);
        assert_eq!((plan.system_ip(1), plan.system_ip(16)), (None, None));
        assert!(!plan.system_ips().any(|ip| ip == plan.node_ip()));
    }

    #[test]
    fn a_free_network_is_chosen() {
        assert_eq!(first(&[]), Some(107));
        assert_eq!(first(&[taken("0.0.0.0/0", "eth0"), taken("192.168.1.0/24", "eth0")]), Some(107));
        assert_eq!(first(&[taken("10.107.3.0/24", "tun0"), taken("10.108.0.1/32", "eth0")]), Some(109));
        assert_eq!(first(&[taken("10.96.0.0/12", "cni0")]), Some(112));
        assert_eq!(first(&[taken("10.0.0.0/8", "vpn0")]), None);
        assert!(candidates("pods", &[]).all(|plan| !USUAL.contains(&plan.number())));
    }

    #[test]
    fn what_a_killed_instance_left_is_in_nobodys_way() {
        let left = [
            taken("10.107.0.0/17", "pods107"),
            taken("10.107.0.2/32", "pods107"),
            taken("10.107.128.0/17", "lo"),
        ];
        assert_eq!(first(&left), Some(107));
        let other = [taken("10.107.0.0/17", "other107")];
        assert_eq!(obstacle(&NetworkPlan::new(107, "pods"), &other), Some(&other[0]));
    }

    #[test]
    fn a_number_is_held_once() {
        // A number outside of those that are chosen, so that no running instance is disturbed.
        let held = Hold::take(3).unwrap();
        assert!(held.is_some());
        assert!(Hold::take(3).unwrap().is_none());
        drop(held);
        assert!(Hold::take(3).unwrap().is_some());
    }
}
