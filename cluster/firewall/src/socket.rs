//! The netlink socket: one transaction, its acknowledgements, done.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::Error;
use crate::encode::Way;
use crate::message::{Batch, Kind, acknowledgements};
use crate::rules::{Family, Ruleset};

/// Transactions up to here fit into any socket's buffer.
const DEFAULT_BUFFER: usize = 64 * 1024;

/// Puts rules in the place of those of the table of that name, in the network namespace of the calling thread: there is no moment
/// without either. A chain of the older table that the newer lacks stays, empty; one of both must be at the same hook.
///
/// The rules are in force after some 100 us; then closing the socket waits until the kernel has disposed of the older ones, some
/// 15 ms.
pub fn load(rules: &Ruleset) -> Result<(), Error> {
    let (bytes, last) = rules.encode(Way::Replace);
    transact(&open()?, &bytes, last, &rules.table)
}

/// Makes the table in a network namespace that is known to have none of its name; cheaper there than [`load`].
pub fn make(rules: &Ruleset) -> Result<(), Error> {
    let (bytes, last) = rules.encode(Way::New);
    transact(&open()?, &bytes, last, &rules.table)
}

/// Rules that are in force as long as this lives, and not longer than the process, however that ends.
#[derive(Debug)]
pub struct Held {
    _owner: OwnedFd,
}

/// Makes a table that belongs to what is returned.
///
/// # Errors
/// [`Error::Refused`] when another process holds a table of that name, or the kernel is older than 5.12.
pub fn hold(rules: &Ruleset) -> Result<Held, Error> {
    let (bytes, last) = rules.encode(Way::Owned);
    let socket = open()?;
    transact(&socket, &bytes, last, &rules.table)?;
    Ok(Held { _owner: socket })
}

/// Takes the table away; that it is not there is no error.
pub fn remove(table: &str, family: Family) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.command(Kind::NewTable, family.number(), |a| a.string(1, table));
    batch.command(Kind::DelTable, family.number(), |a| a.string(1, table));
    let (bytes, last) = batch.finish();
    transact(&open()?, &bytes, last, table)
}

fn transact(socket: &OwnedFd, bytes: &[u8], last: u32, table: &str) -> Result<(), Error> {
    if bytes.len() > DEFAULT_BUFFER {
        // The kernel doubles it. What is larger than the buffer is refused, however empty the buffer is.
        let _ = setsockopt(socket, sockopt::SndBufForce, &bytes.len());
    }
    sendto(socket.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())
        .map_err(|e| Error::Socket(e.into()))?;
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let length =
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(|e| Error::Socket(e.into()))?;
        for (sequence, code) in acknowledgements(&buffer[..length]) {
            if code != 0 {
                let source = io::Error::from_raw_os_error(code);
                return Err(Error::Refused { table: table.into(), source });
            }
            if sequence == last {
                return Ok(());
            }
        }
    }
}

fn open() -> Result<OwnedFd, Error> {
    let open = || {
        let kind = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // An acknowledgement that never comes must not hang a pod's start.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(socket)
    };
    open().map_err(|e: nix::Error| Error::Socket(e.into()))
}
