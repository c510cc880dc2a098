//! An address that only this process sends from.
//!
//! The node's agent reaches pods whatever their policies say: its probes, and the connections of the service proxy, which has
//! judged them already. Pods know the agent by its source address; but any process of the machine may bind a local address. So the
//! agent's sockets carry a mark, which takes CAP_NET_ADMIN to set, and [`Origin::guard`] refuses what is sent from the address
//! without it. Marks stay on this side of a veth pair, so the pod itself could not ask for it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use ipnet::Ipv4Net;
use nix::libc;
use socket2::{Domain, Socket, Type};

use crate::rules::{Chain, Family, Hook, Match, Rule, Ruleset, Verdict};

/// The mark: "ebb" and a number.
const MARK: u32 = 0x6562_6201;

/// Where the agent's connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The address, local to this network namespace.
    pub address: Ipv4Addr,
    /// Where it is used: connections to elsewhere have the system's choice.
    pub pods: Ipv4Net,
}

impl Origin {
    /// Rules for the namespace of the agent, as table `name`: only marked packets leave from the address.
    #[must_use]
    pub fn guard(&self, name: &str) -> Ruleset {
        let own = Match::Source(self.address.into());
        // Answers of the agent's own servers, had it any there, are no connections that it opens.
        let rule = |matches: Vec<Match>, verdict| Rule { matches, verdict };
        Ruleset {
            table: name.into(),
            family: Family::Ip,
            chains: vec![Chain {
                name: "agent".into(),
                hook: Hook::Leave,
                rules: vec![
                    rule(vec![own.clone(), Match::MarkOtherThan(MARK), Match::Protocol(6)], Verdict::Reset),
                    rule(vec![own, Match::MarkOtherThan(MARK)], Verdict::Drop),
                ],
            }],
        }
    }

    /// A socket for a connection to `target`, not blocking: from the address when the target is among the pods.
    ///
    /// # Errors
    /// The system's, among them EPERM without CAP_NET_ADMIN.
    pub fn socket(&self, target: SocketAddr, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(target), kind.nonblocking().cloexec(), None)?;
        if let SocketAddr::V4(target) = target
            && self.pods.contains(target.ip())
        {
            socket.set_mark(MARK)?;
            late_port(&socket)?;
            socket.bind(&SocketAddrV4::new(self.address, 0).into())?;
        }
        Ok(socket)
    }
}

/// Leaves the choice of the local port to connect(): the same one serves connections to different targets, so that ports do not
/// run out.
#[allow(unsafe_code)]
fn late_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: the descriptor is open for as long as the socket is borrowed, and the value is an int of the length given.
    let code = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            std::ptr::from_ref(&on).cast(),
            length,
        )
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
