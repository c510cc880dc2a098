//! Policies as they are judged: parsed once, and what they come to for a pod.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::select::Selector;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    pub(crate) fn parse(name: Option<&str>) -> Option<Self> {
        match name.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// Ports of a protocol, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// Of which protocol.
    pub transport: Transport,
    /// The first.
    pub low: u16,
    /// The last.
    pub high: u16,
}

impl Range {
    pub(crate) fn one(transport: Transport, port: u16) -> Self {
        Self { transport, low: port, high: port }
    }

    pub(crate) fn contains(&self, transport: Transport, port: u16) -> bool {
        self.transport == transport && (self.low..=self.high).contains(&port)
    }
}

/// Ports that something is allowed at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ports {
    /// All of all protocols.
    All,
    /// Those of any of these.
    Some(BTreeSet<Range>),
}

/// A network less some of its parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// The network.
    pub net: Ipv4Net,
    /// Parts that do not count.
    pub except: Vec<Ipv4Net>,
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peers {
    /// Whoever.
    Anyone,
    /// Pods by their addresses, or anybody in a network.
    Some {
        /// Of pods.
        addresses: BTreeSet<Ipv4Addr>,
        /// Networks.
        blocks: BTreeSet<Block>,
    },
}

/// Something that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// With whom.
    pub peers: Peers,
    /// At which ports.
    pub ports: Ports,
}

impl Allow {
    pub(crate) fn covers(&self, peer: Ipv4Addr, transport: Transport, port: u16) -> bool {
        let whom = match &self.peers {
            Peers::Anyone => true,
            Peers::Some { addresses, blocks } => {
                let inside = |block: &Block| {
                    block.net.contains(&peer) && !block.except.iter().any(|except| except.contains(&peer))
                };
                addresses.contains(&peer) || blocks.iter().any(inside)
            }
        };
        whom && match &self.ports {
            Ports::All => true,
            Ports::Some(ranges) => ranges.iter().any(|range| range.contains(transport, port)),
        }
    }
}

/// What all policies come to for one pod; None where no policy restricts it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Isolation {
    /// What may come in: nothing but this.
    pub ingress: Option<BTreeSet<Allow>>,
    /// What may go out: nothing but this.
    pub egress: Option<BTreeSet<Allow>>,
}

impl Isolation {
    /// Whether nothing is restricted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// A NetworkPolicy, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) pods: Selector,
    pub(crate) ingress: Option<Vec<Rule>>,
    pub(crate) egress: Option<Vec<Rule>>,
}

/// An entry of `ingress` or `egress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// None stands for whoever.
    pub(crate) peers: Option<Vec<Peer>>,
    /// None stands for all.
    pub(crate) ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    Block(Block),
    Pods {
        /// None for the policy's own namespace.
        namespaces: Option<Selector>,
        pods: Selector,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Port {
    Range(Range),
    Named(Transport, String),
}

impl Policy {
    pub(crate) fn of(spec: &NetworkPolicySpec) -> Self {
        let named = |what: &str| spec.policy_types.iter().flatten().any(|kind| kind == what);
        let types = spec.policy_types.as_ref().is_some_and(|types| !types.is_empty());
        let ingress = if types { named("Ingress") } else { true };
        let egress =
            if types { named("Egress") } else { spec.egress.as_ref().is_some_and(|e| !e.is_empty()) };
        let incoming = || {
            let rules = spec.ingress.iter().flatten();
            rules.map(|rule| Rule::of(rule.from.as_deref(), rule.ports.as_deref())).collect()
        };
        let outgoing = || {
            let rules = spec.egress.iter().flatten();
            rules.map(|rule| Rule::of(rule.to.as_deref(), rule.ports.as_deref())).collect()
        };
        Self {
            pods: spec.pod_selector.as_ref().map(Selector::of).unwrap_or_default(),
            ingress: ingress.then(incoming),
            egress: egress.then(outgoing),
        }
    }

    /// Whether it depends on other pods than the one it selects.
    pub(crate) fn names_pods(&self) -> bool {
        let mut rules = self.ingress.iter().flatten().chain(self.egress.iter().flatten());
        rules.any(|rule| {
            let peers = rule.peers.iter().flatten().any(|peer| matches!(peer, Peer::Pods { .. }));
            peers || rule.ports.iter().flatten().any(|port| matches!(port, Port::Named(..)))
        })
    }
}

impl Rule {
    fn of(peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> Self {
        // An empty list is as good as none: everybody, everything. A list of what cannot be read allows nothing.
        let peers = peers.filter(|peers| !peers.is_empty());
        let ports = ports.filter(|ports| !ports.is_empty());
        Self {
            peers: peers.map(|peers| peers.iter().filter_map(Peer::of).collect()),
            ports: ports.map(|ports| ports.iter().filter_map(Port::of).collect()),
        }
    }
}

impl Peer {
    fn of(peer: &NetworkPolicyPeer) -> Option<Self> {
        if let Some(IPBlock { cidr, except }) = &peer.ip_block {
            // A block of IPv6 addresses allows nobody here.
            let net = cidr.parse::<Ipv4Net>().ok()?.trunc();
            let except = except.iter().flatten().filter_map(|e| Some(e.parse::<Ipv4Net>().ok()?.trunc()));
            return Some(Self::Block(Block { net, except: except.collect() }));
        }
        if peer.namespace_selector.is_none() && peer.pod_selector.is_none() {
            return None;
        }
        Some(Self::Pods {
            namespaces: peer.namespace_selector.as_ref().map(Selector::of),
            pods: peer.pod_selector.as_ref().map(Selector::of).unwrap_or_default(),
        })
    }
}

impl Port {
    fn of(port: &NetworkPolicyPort) -> Option<Self> {
        let transport = Transport::parse(port.protocol.as_deref())?;
        let number = |number: i32| u16::try_from(number).ok();
        Some(match &port.port {
            None => Self::Range(Range { transport, low: 0, high: u16::MAX }),
            Some(IntOrString::Int(low)) => {
                let low = number(*low)?;
                let high = port.end_port.map_or(Some(low), number)?;
                Self::Range(Range { transport, low, high })
            }
            Some(IntOrString::String(name)) => Self::Named(transport, name.clone()),
        })
    }
}
