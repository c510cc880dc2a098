//! The netlink socket: one transaction, its acknowledgements, done.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::Error;
use crate::message::{Batch, Kind, acknowledgements};
use crate::rules::{Family, Ruleset};

/// Puts the table in place of one of its name, in the network namespace of the calling thread.
pub fn load(rules: &Ruleset) -> Result<(), Error> {
    let (bytes, count) = rules.encode(false);
    transact(&open()?, &bytes, count, &rules.table)
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
    let (bytes, count) = rules.encode(true);
    let socket = open()?;
    transact(&socket, &bytes, count, &rules.table)?;
    Ok(Held { _owner: socket })
}

/// Takes the table away; that it is not there is no error.
pub fn remove(table: &str, family: Family) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.command(Kind::NewTable, family.number(), |a| a.string(1, table));
    batch.command(Kind::DelTable, family.number(), |a| a.string(1, table));
    let (bytes, count) = batch.finish();
    transact(&open()?, &bytes, count, table)
}

fn transact(socket: &OwnedFd, bytes: &[u8], expected: u32, table: &str) -> Result<(), Error> {
    sendto(socket.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())
        .map_err(|e| Error::Socket(e.into()))?;
    let mut buffer = vec![0u8; 32 * 1024];
    let mut seen = 0;
    while seen < expected {
        let length =
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(|e| Error::Socket(e.into()))?;
        for (_, code) in acknowledgements(&buffer[..length]) {
            if code != 0 {
                let source = io::Error::from_raw_os_error(code);
                return Err(Error::Refused { table: table.into(), source });
            }
            seen += 1;
        }
    }
    Ok(())
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
