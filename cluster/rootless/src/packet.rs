//! What goes through the door: one request or answer a packet, with open sockets beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
};
use serde::{Deserialize, Serialize};

/// Longer than any request.
const LONGEST: usize = 4096;

/// What inside asks for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// A listener on the machine's loopback.
    Listen(SocketAddr),
    /// Carry what arrives at these sockets out: a listener of redirected connections, a socket and a listener for DNS.
    Carry,
}

/// What outside answers; a listener comes beside [`Answer::Done`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It was done.
    Done,
    /// The system's error number, and what it means.
    Failed(Option<i32>, String),
}

/// A connected pair, both ends close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message.
pub(crate) fn send(door: &OwnedFd, message: &impl Serialize, beside: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let rights = [ControlMessage::ScmRights(beside)];
    let control: &[ControlMessage<'_>] = if beside.is_empty() { &[] } else { &rights };
    let parts = [IoSlice::new(&bytes)];
    loop {
        match socket::sendmsg::<()>(door.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Receives one message; None when the other side is gone.
pub(crate) fn receive<T: for<'a> Deserialize<'a>>(door: &OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = [0; LONGEST];
    let mut control = nix::cmsg_space!([RawFd; 4]);
    let (length, beside) = {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match socket::recvmsg::<()>(door.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut beside = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = part {
                // SAFETY: the kernel has just made these descriptors for this process; nothing else knows their numbers.
                #[allow(unsafe_code)]
                beside.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, beside)
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..length])?, beside)))
}
