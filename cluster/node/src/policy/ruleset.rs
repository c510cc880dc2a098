//! What a pod's isolation means to the kernel. Pure.
//!
//! TCP is judged by the packet that opens a connection, and not tracked: what a request costs inside the pod is one comparison for
//! each packet. Other protocols are tracked, so that answers to what the pod itself sent come in.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use cluster_firewall::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict};
use ipnet::Ipv4Net;

use super::model::{Allow, Isolation, Peers, Ports, Range, Transport};

/// The table in a pod's network namespace.
pub(crate) const TABLE: &str = "network-policy";

/// What no policy can forbid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Always {
    /// Addresses whose connections come in: the node's agent.
    pub from: Vec<Ipv4Net>,
    /// Addresses to which connections go out: the node, and Services, whose proxy judges for itself.
    pub to: Vec<Ipv4Net>,
}

impl Always {
    pub(crate) fn lets_out_to(&self, address: Ipv4Addr) -> bool {
        self.to.iter().any(|net| net.contains(&address))
    }
}

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The rules of a pod; None where nothing is restricted.
#[must_use]
pub fn rules(isolation: &Isolation, always: &Always) -> Option<Ruleset> {
    if isolation.is_open() {
        return None;
    }
    let untracked = |name: &str, hook| Chain {
        name: name.into(),
        hook,
        rules: vec![rule(vec![Match::Protocol(TCP)], Verdict::NoTrack)],
    };
    let mut chains = vec![untracked("arriving", Hook::RawArrive), untracked("leaving", Hook::RawLeave)];
    if let Some(allowed) = &isolation.ingress {
        chains.push(chain("ingress", Way::In, allowed, &always.from));
    }
    if let Some(allowed) = &isolation.egress {
        chains.push(chain("egress", Way::Out, allowed, &always.to));
    }
    Some(Ruleset { table: TABLE.into(), family: Family::Inet, chains })
}

fn rule(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { matches, verdict }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

fn chain(name: &str, way: Way, allowed: &BTreeSet<Allow>, always: &[Ipv4Net]) -> Chain {
    let loopback = match way {
        Way::In => Match::FromInterface("lo".into()),
        Way::Out => Match::ToInterface("lo".into()),
    };
    let mut rules: Vec<Rule> = [
        // First, as it decides about nearly every packet.
        Match::TcpUnderWay,
        loopback,
        Match::Established,
        Match::Protocol(ICMP),
        Match::Protocol(ICMPV6),
    ]
    .into_iter()
    .map(|one| rule(vec![one], Verdict::Accept))
    .collect();
    rules.extend(always.iter().map(|net| rule(vec![way.within(*net)], Verdict::Accept)));
    for allow in allowed {
        let ports: Vec<Option<Match>> = match &allow.ports {
            Ports::All => vec![None],
            Ports::Some(ranges) => merged(ranges).into_iter().map(|range| Some(port(range))).collect(),
        };
        for peers in whom(way, &allow.peers) {
            rules.extend(ports.iter().map(|port| {
                let matches = peers.iter().cloned().chain(port.clone()).collect();
                rule(matches, Verdict::Accept)
            }));
        }
    }
    // A reset tells the peer at once what silence would tell after minutes.
    rules.push(rule(vec![Match::Protocol(TCP)], Verdict::Reset));
    rules.push(rule(Vec::new(), Verdict::Drop));
    Chain { name: name.into(), hook: if way == Way::In { Hook::Input } else { Hook::Leave }, rules }
}

impl Way {
    fn within(self, net: Ipv4Net) -> Match {
        match self {
            Self::In => Match::Source(net),
            Self::Out => Match::Destination(net),
        }
    }
}

/// Alternatives, each a list of matches that must all hold.
fn whom(way: Way, peers: &Peers) -> Vec<Vec<Match>> {
    let Peers::Some { addresses, blocks } = peers else { return vec![Vec::new()] };
    let outside = |net: Ipv4Net| match way {
        Way::In => Match::SourceOutside(net),
        Way::Out => Match::DestinationOutside(net),
    };
    let mut alternatives = Vec::new();
    if !addresses.is_empty() {
        let addresses = addresses.iter().copied().collect();
        alternatives.push(vec![match way {
            Way::In => Match::SourceAmong(addresses),
            Way::Out => Match::DestinationAmong(addresses),
        }]);
    }
    alternatives.extend(blocks.iter().map(|block| {
        let except = block.except.iter().map(|net| outside(*net));
        std::iter::once(way.within(block.net)).chain(except).collect()
    }));
    alternatives
}

/// Neighbours and overlaps as one range: fewer rules.
fn merged(ranges: &BTreeSet<Range>) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last)
                if last.transport == range.transport && u32::from(range.low) <= u32::from(last.high) + 1 =>
            {
                last.high = last.high.max(range.high);
            }
            _ => merged.push(*range),
        }
    }
    merged
}

fn port(range: Range) -> Match {
    match range.transport {
        Transport::Tcp => Match::Tcp(range.low, range.high),
        Transport::Udp => Match::Udp(range.low, range.high),
        Transport::Sctp => Match::Sctp(range.low, range.high),
    }
}
