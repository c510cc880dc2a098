//! The way from pods to the world: what they send beyond the cluster gets this machine's address.
//!
//! What another firewall on this machine forbids (for example Docker's forward policy `drop`) it does not allow.

use std::net::Ipv4Addr;

use cluster_firewall::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict};
use ipnet::Ipv4Net;

use crate::plan::NetworkPlan;

/// `ip saddr PODS ip daddr != CLUSTER masquerade`, in a table named as the bridge.
pub(crate) fn rules(plan: &NetworkPlan) -> Ruleset {
    let beyond = vec![Match::Source(plan.pod_cidr()), Match::DestinationOutside(plan.cluster_cidr())];
    Ruleset {
        table: plan.bridge(),
        family: Family::Ip,
        chains: vec![Chain {
            name: "outside".into(),
            hook: Hook::PostRouting,
            rules: vec![Rule { matches: beyond, verdict: Verdict::Masquerade }],
        }],
    }
}

/// In a network namespace of this process's own, where nothing leads out: TCP to the world goes to `port`, which carries it.
pub(crate) fn redirect(plan: &NetworkPlan, port: u16) -> Ruleset {
    let loopback = Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8).trunc();
    let world = vec![
        Match::Tcp(0, u16::MAX),
        Match::DestinationOutside(plan.cluster_cidr()),
        Match::DestinationOutside(loopback),
    ];
    let chain = |name: &str, hook| Chain {
        name: name.into(),
        hook,
        rules: vec![Rule { matches: world.clone(), verdict: Verdict::Redirect(port) }],
    };
    Ruleset {
        table: plan.bridge(),
        family: Family::Ip,
        chains: vec![chain("from-pods", Hook::PreRouting), chain("from-here", Hook::Output)],
    }
}
