//! Which addresses an instance uses: chosen so that several run side by side on one machine, and kept over a restart.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The numbers N tried for `10.N.0.0/16`, in order. Low ones are left to people's own networks.
const CANDIDATES: std::ops::RangeInclusive<u8> = 88..=247;

/// The addresses of one instance, all within `10.N.0.0/16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// N of `10.N.0.0/16`.
    pub number: u8,
    /// Name of the bridge that pods are connected to.
    pub bridge: String,
}

impl NetworkPlan {
    /// The plan with this number.
    pub fn new(prefix: &str, number: u8) -> Self {
        Self { number, bridge: format!("{prefix}{number}") }
    }

    /// Everything: `10.N.0.0/16`.
    pub fn cluster_cidr(&self) -> Ipv4Net {
        self.network(0, 16)
    }

    /// Pods, the node and the system's own addresses: `10.N.0.0/17`.
    pub fn pod_cidr(&self) -> Ipv4Net {
        self.network(0, 17)
    }

    /// ClusterIPs: `10.N.128.0/17`.
    pub fn service_cidr(&self) -> Ipv4Net {
        self.network(128, 17)
    }

    /// The node: `10.N.0.1`.
    pub fn node_ip(&self) -> Ipv4Addr {
        self.address(0, 1)
    }

    /// An address for a component that runs in the process of the cluster: `10.N.0.2` for 0, up to `10.N.0.15` for 13.
    ///
    /// `None` past the last of them.
    pub fn system_address(&self, index: u8) -> Option<Ipv4Addr> {
        (index < 14).then(|| self.address(0, 2 + index))
    }

    /// Offset in [`Self::pod_cidr`] of the first address for a pod.
    pub fn first_pod_offset(&self) -> u32 {
        16
    }

    /// The cluster's DNS server: `10.N.128.10`.
    pub fn dns_ip(&self) -> Ipv4Addr {
        self.address(128, 10)
    }

    /// The Service `kubernetes`: `10.N.128.1`.
    pub fn api_ip(&self) -> Ipv4Addr {
        self.address(128, 1)
    }

    fn address(&self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, third, fourth)
    }

    fn network(&self, third: u8, prefix: u8) -> Ipv4Net {
        Ipv4Net::new_assert(self.address(third, 0), prefix)
    }
}

/// A network that the machine has a route to or an address in, and the device it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The network.
    pub network: Ipv4Net,
    /// The device's name.
    pub device: String,
}

/// The first number whose addresses are free, the one of last time first.
///
/// `claim` takes the number for this process against other instances; a number that it takes and whose only user is the bridge of that
/// very number was left by an instance that was killed, and is used again. A default route takes nothing.
pub fn choose(prefix: &str, last: Option<u8>, taken: &[Taken], mut claim: impl FnMut(u8) -> bool) -> Option<NetworkPlan> {
    let order = last.into_iter().chain(CANDIDATES.filter(|n| Some(*n) != last));
    for number in order {
        let plan = NetworkPlan::new(prefix, number);
        let ours = plan.cluster_cidr();
        let overlaps = |t: &&Taken| {
            t.network.prefix_len() > 0 && (ours.contains(&t.network) || t.network.contains(&ours))
        };
        let foreign = taken.iter().filter(overlaps).any(|t| t.device != plan.bridge && t.device != "lo");
        if !foreign && claim(number) {
            return Some(plan);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(network: &str, device: &str) -> Taken {
        Taken { network: network.parse().unwrap(), device: device.into() }
    }

    #[test]
    fn addresses_do_not_overlap() {
        let plan = NetworkPlan::new("c", 90);
        assert_eq!(plan.node_ip().to_string(), "10.90.0.1");
        assert_eq!(plan.system_address(0).unwrap().to_string(), "10.90.0.2");
        assert_eq!(plan.system_address(13).unwrap().to_string(), "10.90.0.15");
        assert_eq!(plan.system_address(14), None);
        assert!(!plan.pod_cidr().contains(&plan.service_cidr()) && !plan.service_cidr().contains(&plan.pod_cidr()));
        assert!(plan.service_cidr().contains(&plan.dns_ip()) && plan.service_cidr().contains(&plan.api_ip()));
        assert!(plan.cluster_cidr().contains(&plan.pod_cidr()) && plan.cluster_cidr().contains(&plan.service_cidr()));
    }

    #[test]
    fn a_free_number_is_taken_and_a_used_one_is_not() {
        let busy = [taken("10.88.0.0/16", "eth0"), taken("0.0.0.0/0", "eth0"), taken("10.89.3.0/24", "docker0")];
        assert_eq!(choose("c", None, &busy, |_| true).unwrap().number, 90);
        assert_eq!(choose("c", Some(88), &busy, |_| true).unwrap().number, 90, "last time's is in use now");
        assert_eq!(choose("c", Some(200), &busy, |_| true).unwrap().number, 200);
        assert_eq!(choose("c", None, &[taken("10.0.0.0/8", "vpn0")], |_| true), None, "a wider network takes all");
    }

    #[test]
    fn another_instance_keeps_its_number_and_a_dead_one_gives_it_back() {
        let bridge = [taken("10.88.0.0/17", "c88"), taken("10.88.128.0/17", "lo")];
        assert_eq!(choose("c", None, &bridge, |n| n != 88).unwrap().number, 89, "88 is claimed by a living one");
        assert_eq!(choose("c", None, &bridge, |_| true).unwrap().number, 88, "88 is nobody's");
    }
}
