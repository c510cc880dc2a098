//! How rules become messages and expressions of nf_tables.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::message::{Attributes, Batch, Kind};
use crate::rules::{Family, Hook, Match, Rule, Ruleset, Verdict};

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
        }
    }
}

/// What the table's name may stand for already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Nothing: the table is made.
    New,
    /// An older table, whose rules these replace.
    Replace,
    /// Nothing; and the table belongs to the socket that sends it, and goes with it (Linux 5.12).
    Owned,
}

impl Ruleset {
    /// The transaction that makes this table.
    pub(crate) fn encode(&self, way: Way) -> (Vec<u8>, u32) {
        /// `NFT_TABLE_F_OWNER`.
        const OWNER: u32 = 2;
        let mut batch = Batch::new();
        let family = self.family.number();
        // Table and chains that are there already are no error.
        batch.command(Kind::NewTable, family, |a| {
            a.string(1, &self.table);
            if way == Way::Owned {
                a.number(2, OWNER);
            }
        });
        if way == Way::Replace {
            // Without a chain: the rules of all. Chains stay where they are.
            batch.command(Kind::DelRule, family, |a| a.string(1, &self.table));
        }
        let mut sets = Sets { table: &self.table, family, made: 0 };
        for chain in &self.chains {
            batch.command(Kind::NewChain, family, |a| {
                a.string(1, &self.table);
                a.string(3, &chain.name);
                let (number, priority, kind) = chain.hook.place();
                a.nested(4, |hook| {
                    hook.number(1, number);
                    hook.number(2, priority.cast_unsigned());
                });
                a.number(5, 1);
                a.string(7, kind);
            });
            for rule in &chain.rules {
                let first = sets.made;
                for one in &rule.matches {
                    if let Match::SourceAmong(addresses) | Match::DestinationAmong(addresses) = one {
                        sets.add(&mut batch, addresses);
                    }
                }
                batch.command(Kind::NewRule, family, |a| {
                    a.string(1, &self.table);
                    a.string(2, &chain.name);
                    a.nested(4, |list| rule.encode(list, first));
                });
            }
        }
        batch.finish()
    }
}

impl Hook {
    /// Number of the hook, priority, and type of chain.
    fn place(self) -> (u32, i32, &'static str) {
        const FILTER: i32 = 0;
        const RAW: i32 = -300;
        const DESTINATION_NAT: i32 = -100;
        const SOURCE_NAT: i32 = 100;
        match self {
            Self::PreRouting => (0, DESTINATION_NAT, "nat"),
            Self::RawArrive => (0, RAW, "filter"),
            Self::Input => (1, FILTER, "filter"),
            Self::Output => (3, DESTINATION_NAT, "nat"),
            Self::Leave => (3, FILTER, "filter"),
            Self::RawLeave => (3, RAW, "filter"),
            Self::PostRouting => (4, SOURCE_NAT, "nat"),
        }
    }
}

/// Sets without a name, which belong to the rule that looks things up in them.
struct Sets<'a> {
    table: &'a str,
    family: u8,
    made: u32,
}

/// The kernel puts a number in place of `%d`.
const SET_NAME: &str = "__set%d";

impl Sets<'_> {
    fn add(&mut self, batch: &mut Batch, addresses: &[Ipv4Addr]) {
        const ANONYMOUS_AND_CONSTANT: u32 = 3;
        const TYPE_IPV4_ADDRESS: u32 = 7;
        /// An attribute holds 64 KiB, an element takes 16 bytes.
        const IN_ONE_MESSAGE: usize = 2000;
        self.made += 1;
        let id = self.made;
        batch.command(Kind::NewSet, self.family, |a| {
            a.string(1, self.table);
            a.string(2, SET_NAME);
            a.number(3, ANONYMOUS_AND_CONSTANT);
            a.number(4, TYPE_IPV4_ADDRESS);
            a.number(5, 4);
            a.number(10, id);
        });
        for part in addresses.chunks(IN_ONE_MESSAGE) {
            batch.command(Kind::NewSetElements, self.family, |a| {
                a.string(1, self.table);
                a.string(2, SET_NAME);
                a.number(4, id);
                a.nested(3, |list| {
                    for address in part {
                        list.nested(1, |element| element.nested(1, |key| key.bytes(1, &address.octets())));
                    }
                });
            });
        }
    }
}

impl Rule {
    /// `sets`: how many sets there were before this rule's own.
    fn encode(&self, list: &mut Attributes<'_>, mut sets: u32) {
        for one in &self.matches {
            one.encode(list, &mut sets);
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
            Verdict::NoTrack => expression(list, "notrack", |_| {}),
        }
    }
}

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// Where the addresses are in an IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

impl Match {
    fn encode(&self, list: &mut Attributes<'_>, sets: &mut u32) {
        match self {
            Self::FromInterface(name) => interface(list, META_IIFNAME, name),
            Self::ToInterface(name) => interface(list, META_OIFNAME, name),
            Self::Protocol(number) => {
                meta(list, META_L4PROTO);
                compare(list, EQUAL, &[*number]);
            }
            Self::TcpUnderWay => {
                // Of the flags, SYN (2) without ACK (16) opens a connection, whatever else is set.
                meta(list, META_L4PROTO);
                compare(list, EQUAL, &[6]);
                payload(list, TRANSPORT_HEADER, 13, 1);
                bitwise(list, &[0x12]);
                compare(list, NOT_EQUAL, &[0x02]);
            }
            Self::MarkOtherThan(mark) => {
                meta(list, META_MARK);
                compare(list, NOT_EQUAL, &mark.to_ne_bytes());
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
            Self::Source(network) => address(list, SOURCE, network, EQUAL),
            Self::SourceOutside(network) => address(list, SOURCE, network, NOT_EQUAL),
            Self::SourceAmong(_) => among(list, SOURCE, sets),
            Self::Destination(network) => address(list, DESTINATION, network, EQUAL),
            Self::DestinationOutside(network) => address(list, DESTINATION, network, NOT_EQUAL),
            Self::DestinationAmong(_) => among(list, DESTINATION, sets),
            Self::Tcp(low, high) => ports(list, 6, *low, *high),
            Self::Udp(low, high) => ports(list, 17, *low, *high),
            Self::Sctp(low, high) => ports(list, 132, *low, *high),
        }
    }
}

fn interface(list: &mut Attributes<'_>, key: u32, name: &str) {
    let mut padded = [0u8; 16];
    let bytes = name.as_bytes();
    let length = bytes.len().min(15);
    padded[..length].copy_from_slice(&bytes[..length]);
    meta(list, key);
    compare(list, EQUAL, &padded);
}

fn load_address(list: &mut Attributes<'_>, offset: u32) {
    // In an inet table the packet may be IPv6, whose bytes mean something else.
    meta(list, META_NFPROTO);
    compare(list, EQUAL, &[2]);
    payload(list, NETWORK_HEADER, offset, 4);
}

/// In the rule's next set.
fn among(list: &mut Attributes<'_>, offset: u32, sets: &mut u32) {
    *sets += 1;
    load_address(list, offset);
    expression(list, "lookup", |a| {
        a.string(1, SET_NAME);
        a.number(2, 1);
        a.number(4, *sets);
    });
}

fn address(list: &mut Attributes<'_>, offset: u32, network: &Ipv4Net, operation: u32) {
    load_address(list, offset);
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

fn bitwise(list: &mut Attributes<'_>, mask: &[u8]) {
    expression(list, "bitwise", |a| {
        a.number(1, 1);
        a.number(2, 1);
        a.number(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
        a.nested(4, |m| m.bytes(1, mask));
        a.nested(5, |x| x.bytes(1, &[0; 4][..mask.len().min(4)]));
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
