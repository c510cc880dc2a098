//! What network policies mean to an embedded cluster: who is the node, and who connects in place of pods.

use cluster_firewall::{Held, Origin};
use cluster_node::Policies;
use cluster_node::policy::{Always, Transport};
use cluster_services::{Gate, Protocol};
use ipnet::Ipv4Net;

use crate::plan::NetworkPlan;

/// Where the agent's own connections come from: the last system address, which no component listens at.
pub(crate) fn origin(plan: &NetworkPlan) -> Origin {
    let address = plan.system_ips().last().unwrap_or_else(|| plan.node_ip());
    Origin { address, pods: plan.pod_cidr() }
}

/// The agent comes in everywhere. Pods go out to the node with all that listens on it, and to Services: their proxy asks the policies
/// about the endpoint that it connects to.
pub(crate) fn always(plan: &NetworkPlan) -> Always {
    let node = Ipv4Net::new_assert(plan.pod_cidr().network(), 28);
    Always { from: vec![origin(plan).address.into()], to: vec![node, plan.service_cidr()] }
}

/// The proxy connects for whom policies let through.
pub(crate) fn gate(plan: &NetworkPlan, policies: &Policies) -> Gate {
    let policies = policies.clone();
    Gate::new(origin(plan), move |client, endpoint, protocol| {
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        };
        policies.admits(client, endpoint, transport)
    })
}

/// Keeps the agent's address for the agent, as long as what is returned lives.
pub(crate) fn guard(plan: &NetworkPlan) -> Option<Held> {
    let guarded = cluster_firewall::hold(&origin(plan).guard(&format!("{}-agent", plan.bridge())));
    let warn = |error: &cluster_firewall::Error| {
        tracing::warn!(%error, "network policies cannot be enforced: pods that have some will not start");
    };
    guarded.inspect_err(warn).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_no_pod() {
        let plan = NetworkPlan::new(7, "x");
        let always = always(&plan);
        assert!(always.from.iter().all(|net| net.contains(&origin(&plan).address) && net.prefix_len() == 32));
        let inside = |address: std::net::Ipv4Addr| always.to.iter().any(|net| net.contains(&address));
        assert!(inside(plan.node_ip()) && inside(plan.dns_ip()) && plan.system_ips().all(inside));
        let first_pod = u32::from(plan.pod_cidr().network()) + u32::from(NetworkPlan::FIRST_POD);
        assert!(!inside(first_pod.into()), "pods are judged");
    }
}
