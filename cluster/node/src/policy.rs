//! NetworkPolicy (networking.k8s.io/v1): who may connect to a pod, and where a pod may connect to.
//!
//! What policies mean for a pod is a pure function of policies, pods and namespaces ([`World::isolation`]); what that means to the
//! kernel is another ([`rules`]). [`Policies`] keeps the world up to date by watches and hands out work: a pod's rules are loaded in
//! its network namespace before any of its containers starts, and again when they change, each time in one transaction, so that there
//! is no moment without rules. A pod that no policy selects has no rules at all.
//!
//! # What is always free
//! - A pod's own loopback and its own address, and connections that are under way when a policy changes.
//! - The node's agent: probes, and the service proxy, which asks [`Policies::admits`] for the pod that it connects for, as the pod's
//!   own rules see only the proxy. Both send from an address of their own ([`cluster_firewall::Origin`]).
//! - From a pod to the node: the API server, DNS, and the components that run in this process.
//! - ICMP, which policies say nothing about.
//!
//! Kubernetes lets in all that comes from a pod's node, so that kubelet can probe. Here the node is this process: other processes of
//! the machine are outside the cluster, and what they send is judged like any other address.
//!
//! # Limits
//! Rules are enforced inside the pod's network namespace: a container with CAP_NET_ADMIN there could lift those of its own pod.
//! Pods on the machine's network are not governed, as in Kubernetes. Only IPv4 addresses can be allowed: pods have no others.

mod keeper;
mod model;
mod ruleset;
mod select;
#[cfg(test)]
mod tests;
mod world;

pub(crate) use ruleset::TABLE;

pub use keeper::Policies;
pub use model::{Allow, Block, Isolation, Peers, Ports, Range, Transport};
pub use ruleset::{Always, rules};
pub use world::{PodFacts, World};
