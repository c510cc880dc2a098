//! The way from pods to the world: what they send beyond the cluster gets this machine's address.
//!
//! What another firewall on this machine forbids (for example Docker's forward policy `drop`) it does not allow.

use cluster_firewall::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict};

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
