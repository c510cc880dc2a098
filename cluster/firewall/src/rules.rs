//! Rules as values.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

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
    /// Packets made here, where they are let out or not.
    Leave,
    /// Packets that arrive, before connections are tracked.
    RawArrive,
    /// Packets made here, before connections are tracked.
    RawLeave,
}

/// What a packet must be for a rule to apply; all matches of a rule must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// It came in by this interface.
    FromInterface(String),
    /// It belongs to a connection that was let in, or answers one from here.
    Established,
    /// It goes out by this interface.
    ToInterface(String),
    /// TCP, but not the packet that opens a connection. Letting these pass and judging the opening one is as good as tracking
    /// connections, for without that one there is none, and costs less.
    TcpUnderWay,
    /// Of this IP protocol.
    Protocol(u8),
    /// Sent by a socket with another mark (SO_MARK).
    MarkOtherThan(u32),
    /// IPv4 source within the network.
    Source(Ipv4Net),
    /// IPv4 source among these.
    SourceAmong(Vec<Ipv4Addr>),
    /// IPv4 destination within the network.
    Destination(Ipv4Net),
    /// IPv4 destination among these.
    DestinationAmong(Vec<Ipv4Addr>),
    /// IPv4 source outside the network.
    SourceOutside(Ipv4Net),
    /// IPv4 destination outside the network.
    DestinationOutside(Ipv4Net),
    /// TCP to a port in the range, both ends included.
    Tcp(u16, u16),
    /// UDP to a port in the range, both ends included.
    Udp(u16, u16),
    /// SCTP to a port in the range, both ends included.
    Sctp(u16, u16),
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
    /// Its connection is not tracked; other rules still apply.
    NoTrack,
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
