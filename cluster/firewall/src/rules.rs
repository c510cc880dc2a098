//! Rules as values, and how each becomes expressions of nf_tables.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::message::{Attributes, Batch, Kind};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 only.
    Ip,
    /// IPv4 and IPv6.
    Inet,
}

/// Where a chain is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets to this network namespace.
    Input,
    /// Packets that leave it, where source addresses are rewritten.
    PostRouting,
    /// Packets that arrive, before they are routed, where destinations are rewritten.
    PreRouting,
    /// Packets made here, where destinations are rewritten.
    Output,
}

/// What a packet must be for a rule to apply; all matches of a rule must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It came in by this interface.
    FromInterface(String),
    /// It belongs to a connection that was let in, or answers one from here.
    Established,
    /// IPv4 source within the network.
    Source(Ipv4Net),
    /// IPv4 source outside the network.
    SourceOutside(Ipv4Net),
    /// IPv4 destination outside the network.
    DestinationOutside(Ipv4Net),
    /// TCP to a port in the range, both ends included.
    Tcp(u16, u16),
    /// UDP to a port in the range, both ends included.
    Udp(u16, u16),
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass.
    Accept,
    /// Lose it without a word.
    Drop,
    /// TCP: answer with a reset, so that the peer knows at once.
    Reset,
    /// Give it the address of the interface by which it leaves.
    Masquerade,
    /// Give it to this port of this machine instead.
    Redirect(u16),
}

/// Matches and their verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// Then this.
    pub verdict: Verdict,
}

/// Rules at a hook, tried in order; a packet that none decides passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name within the table.
    pub name: String,
    /// Where it is attached.
    pub hook: Hook,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Name of the table: one for each owner.
    pub table: String,
    /// What it sees.
    pub family: Family,
    /// Its chains.
    pub chains: Vec<Chain>,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
        }
    }
}

impl Ruleset {
    /// The transaction that makes this table, and its count of acknowledgements. `owned`: it belongs to the socket that sends it, and
    /// goes with it (Linux 5.12); else it takes the place of an older one of its name.
    pub(crate) fn encode(&self, owned: bool) -> (Vec<u8>, u32) {
        /// `NFT_TABLE_F_OWNER`.
        const OWNER: u32 = 2;
        let mut batch = Batch::new();
        let family = self.family.number();
        if owned {
            batch.command(Kind::NewTable, family, |a| {
                a.string(1, &self.table);
                a.number(2, OWNER);
            });
        } else {
            // Made (which is no error when it is there), removed, made: a replacement, whatever was before.
            batch.command(Kind::NewTable, family, |a| a.string(1, &self.table));
            batch.command(Kind::DelTable, family, |a| a.string(1, &self.table));
            batch.command(Kind::NewTable, family, |a| a.string(1, &self.table));
        }
        for chain in &self.chains {
            batch.command(Kind::NewChain, family, |a| {
                a.string(1, &self.table);
                a.string(3, &chain.name);
                let (number, priority, kind) = match chain.hook {
                    Hook::Input => (1, 0, "filter"),
                    Hook::PostRouting => (4, 100, "nat"),
                    Hook::PreRouting => (0, DESTINATION_NAT, "nat"),
                    Hook::Output => (3, DESTINATION_NAT, "nat"),
                };
                a.nested(4, |hook| {
                    hook.number(1, number);
                    hook.number(2, priority);
                });
                a.number(5, 1);
                a.string(7, kind);
            });
            for rule in &chain.rules {
                batch.command(Kind::NewRule, family, |a| {
                    a.string(1, &self.table);
                    a.string(2, &chain.name);
                    a.nested(4, |list| rule.encode(list));
                });
            }
        }
        batch.finish()
    }
}

impl Rule {
    fn encode(&self, list: &mut Attributes<'_>) {
        for one in &self.matches {
            one.encode(list);
        }
        match self.verdict {
            Verdict::Accept => verdict(list, 1),
            Verdict::Drop => verdict(list, 0),
            Verdict::Reset => expression(list, "reject", |a| {
                a.number(1, 1);
                a.bytes(2, &[0]);
            }),
            Verdict::Masquerade => expression(list, "masq", |_| {}),
            Verdict::Redirect(port) => {
                expression(list, "immediate", |a| {
                    a.number(1, 1);
                    a.nested(2, |data| data.bytes(1, &port.to_be_bytes()));
                });
                expression(list, "redir", |a| a.number(1, 1));
            }
        }
    }
}

/// `NF_IP_PRI_NAT_DST`, -100.
const DESTINATION_NAT: u32 = (-100i32).cast_unsigned();
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

impl Match {
    fn encode(&self, list: &mut Attributes<'_>) {
        match self {
            Self::FromInterface(name) => {
                let mut padded = [0u8; 16];
                let bytes = name.as_bytes();
                let length = bytes.len().min(15);
                padded[..length].copy_from_slice(&bytes[..length]);
                meta(list, META_IIFNAME);
                compare(list, EQUAL, &padded);
            }
            Self::Established => {
                // ct state: bit 1 is established, bit 2 related, in the byte order of this machine.
                let mask = 6u32.to_ne_bytes();
                expression(list, "ct", |a| {
                    a.number(1, 1);
                    a.number(2, 0);
                });
                bitwise(list, &mask);
                compare(list, NOT_EQUAL, &[0; 4]);
            }
            Self::Source(network) => address(list, 12, network, EQUAL),
            Self::SourceOutside(network) => address(list, 12, network, NOT_EQUAL),
            Self::DestinationOutside(network) => address(list, 16, network, NOT_EQUAL),
            Self::Tcp(low, high) => ports(list, 6, *low, *high),
            Self::Udp(low, high) => ports(list, 17, *low, *high),
        }
    }
}

fn address(list: &mut Attributes<'_>, offset: u32, network: &Ipv4Net, operation: u32) {
    // In an inet table the packet may be IPv6, whose bytes mean something else.
    meta(list, META_NFPROTO);
    compare(list, EQUAL, &[2]);
    payload(list, NETWORK_HEADER, offset, 4);
    let mask: Ipv4Addr = network.netmask();
    if network.prefix_len() < 32 {
        bitwise(list, &mask.octets());
    }
    compare(list, operation, &network.network().octets());
}

fn ports(list: &mut Attributes<'_>, protocol: u8, low: u16, high: u16) {
    meta(list, META_L4PROTO);
    compare(list, EQUAL, &[protocol]);
    payload(list, TRANSPORT_HEADER, 2, 2);
    if low == high {
        compare(list, EQUAL, &low.to_be_bytes());
    } else {
        compare(list, AT_LEAST, &low.to_be_bytes());
        compare(list, AT_MOST, &high.to_be_bytes());
    }
}

/// Every expression reads or writes register 1.
fn expression(list: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    list.nested(1, |element| {
        element.string(1, name);
        element.nested(2, data);
    });
}

fn meta(list: &mut Attributes<'_>, key: u32) {
    expression(list, "meta", |a| {
        a.number(1, 1);
        a.number(2, key);
    });
}

fn payload(list: &mut Attributes<'_>, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |a| {
        a.number(1, 1);
        a.number(2, base);
        a.number(3, offset);
        a.number(4, length);
    });
}

fn bitwise(list: &mut Attributes<'_>, mask: &[u8; 4]) {
    expression(list, "bitwise", |a| {
        a.number(1, 1);
        a.number(2, 1);
        a.number(3, 4);
        a.nested(4, |m| m.bytes(1, mask));
        a.nested(5, |x| x.bytes(1, &[0; 4]));
    });
}

fn compare(list: &mut Attributes<'_>, operation: u32, value: &[u8]) {
    expression(list, "cmp", |a| {
        a.number(1, 1);
        a.number(2, operation);
        a.nested(3, |d| d.bytes(1, value));
    });
}

fn verdict(list: &mut Attributes<'_>, code: u32) {
    expression(list, "immediate", |a| {
        a.number(1, 0);
        a.nested(2, |data| data.nested(2, |v| v.number(1, code)));
    });
}
