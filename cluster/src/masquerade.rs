//! Outbound address translation for pods, by nf_tables' own netlink protocol: no `nft` or `iptables` program is needed.
//!
//! One table, owned by the socket that made it (Linux 5.12): it goes with the process, however that ends. Its one rule:
//! `ip saddr PODS ip daddr != CLUSTER masquerade` in postrouting. What another firewall on this machine forbids (for example Docker's
//! forward policy `drop`) it does not allow.

use std::{
    io::{self, IoSlice},
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

use ipnet::Ipv4Net;
use nix::sys::{
    socket::{
        self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, setsockopt,
        sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};

use crate::plan::NetworkPlan;

// linux/netlink.h
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const ERROR: u16 = 2;
const NESTED: u16 = 0x8000;
// linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
// linux/netfilter/nf_tables.h
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const TABLE_OWNER: u32 = 2;
const IPV4: u8 = 2;
const POSTROUTING: u32 = 4;
const SOURCE_NAT: u32 = 100;
const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

/// Keeps the translation in force until it is dropped.
#[derive(Debug)]
pub(crate) struct Masquerade {
    _owner: OwnedFd,
}

impl Masquerade {
    /// Translates what pods of this plan send beyond the cluster.
    pub(crate) fn start(plan: &NetworkPlan) -> io::Result<Self> {
        let fd = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::new(1, 0))?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let batch = batch(plan);
        let kernel = NetlinkAddr::new(0, 0);
        socket::sendmsg(fd.as_raw_fd(), &[IoSlice::new(&batch)], &[], MsgFlags::empty(), Some(&kernel))?;
        // Table, chain and rule are each acknowledged.
        let mut left = 3;
        let mut buffer = [0u8; 8192];
        while left > 0 {
            let length = socket::recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for code in codes(&buffer[..length]) {
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                left -= 1;
            }
        }
        Ok(Self { _owner: fd })
    }
}

/// The codes of the acknowledgements in a received datagram.
fn codes(mut bytes: &[u8]) -> Vec<i32> {
    let mut codes = Vec::new();
    while let (Some(length), Some(kind)) = (bytes.get(..4), bytes.get(4..6)) {
        let length =
            usize::try_from(u32::from_ne_bytes([length[0], length[1], length[2], length[3]])).unwrap_or(0);
        if u16::from_ne_bytes([kind[0], kind[1]]) == ERROR
            && let Some(code) = bytes.get(16..20)
        {
            codes.push(i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
        }
        if length < 16 {
            break;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    codes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    attribute(kind, &bytes)
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &[Vec<u8>],
) -> Vec<u8> {
    let body = attributes.concat();
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

/// Loads an address of the packet, cuts it to the network's length, and compares it.
fn compare(offset: u32, net: Ipv4Net, how: u32) -> [Vec<u8>; 3] {
    let value = |kind: u16, address: Ipv4Addr| nested(kind, &[attribute(1, &address.octets())]);
    [
        expression(
            "payload",
            &[number(1, REGISTER), number(2, NETWORK_HEADER), number(3, offset), number(4, 4)],
        ),
        expression(
            "bitwise",
            &[
                number(1, REGISTER),
                number(2, REGISTER),
                number(3, 4),
                value(4, net.netmask()),
                value(5, Ipv4Addr::UNSPECIFIED),
            ],
        ),
        expression("cmp", &[number(1, REGISTER), number(2, how), value(3, net.network())]),
    ]
}

fn batch(plan: &NetworkPlan) -> Vec<u8> {
    const CHAIN: &str = "postrouting";
    let table = plan.bridge();
    let tables = |kind: u16| (NFTABLES << 8) | kind;
    let hook = nested(4, &[number(1, POSTROUTING), number(2, SOURCE_NAT)]);
    let mut expressions = Vec::new();
    expressions.extend(compare(SOURCE, plan.pod_cidr(), EQUAL));
    expressions.extend(compare(DESTINATION, plan.cluster_cidr(), NOT_EQUAL));
    expressions.push(expression("masq", &[]));
    [
        message(BATCH_BEGIN, 0, 0, 0, NFTABLES, &[]),
        message(tables(NEW_TABLE), ACK | CREATE, 1, IPV4, 0, &[text(1, &table), number(2, TABLE_OWNER)]),
        message(
            tables(NEW_CHAIN),
            ACK | CREATE,
            2,
            IPV4,
            0,
            &[text(1, &table), text(3, CHAIN), hook, text(7, "nat")],
        ),
        message(
            tables(NEW_RULE),
            ACK | CREATE | APPEND,
            3,
            IPV4,
            0,
            &[text(1, &table), text(2, CHAIN), nested(4, &expressions)],
        ),
        message(BATCH_END, 0, 4, 0, NFTABLES, &[]),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_aligned_and_whole() {
        let bytes = batch(&NetworkPlan::new(120, "pods"));
        let (mut at, mut kinds) = (0, Vec::new());
        while at < bytes.len() {
            let length = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            assert_eq!(length % 4, 0);
            kinds.push(u16::from_ne_bytes(bytes[at + 4..at + 6].try_into().unwrap()));
            at += length;
        }
        assert_eq!(at, bytes.len());
        assert_eq!(kinds, [0x10, 0x0a00, 0x0a03, 0x0a06, 0x11]);
    }

    #[test]
    fn acknowledgements() {
        let mut bytes = message(ERROR, 0, 1, 0, 0, &[]);
        bytes[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        let mut fine = message(ERROR, 0, 2, 0, 0, &[]);
        fine[16..20].copy_from_slice(&0i32.to_ne_bytes());
        bytes.extend(fine);
        assert_eq!(codes(&bytes), [-17, 0]);
        assert!(codes(&bytes[..3]).is_empty());
    }
}
