//! The door, seen from inside.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::packet::{self, Answer, Request};

/// The way from inside to the machine outside. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door {
    socket: Arc<Mutex<OwnedFd>>,
    outside: u32,
    egress: u16,
}

impl Door {
    pub(crate) fn new(socket: OwnedFd, outside: u32, egress: u16) -> Self {
        Self { socket: Arc::new(Mutex::new(socket)), outside, egress }
    }

    /// Listens on an address of the machine outside, such as its loopback. Blocks for a moment.
    ///
    /// # Errors
    /// As from [`TcpListener::bind`]; a broken pipe when outside is gone.
    pub fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        // One question at a time, so that answers need no number.
        let socket = self.socket.lock();
        packet::send(&socket, &Request::Listen(address), &[])?;
        match packet::receive::<Answer>(&socket)? {
            Some((Answer::Done, mut beside)) => {
                beside.pop().map(TcpListener::from).ok_or_else(|| io::ErrorKind::InvalidData.into())
            }
            Some((Answer::Failed(Some(number), _), _)) => Err(io::Error::from_raw_os_error(number)),
            Some((Answer::Failed(None, cause), _)) => Err(io::Error::other(cause)),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// The process that the user started, by the number that they see.
    #[must_use]
    pub fn outside_pid(&self) -> u32 {
        self.outside
    }

    /// The local port to which TCP connections to the world are to be redirected.
    #[must_use]
    pub fn egress_port(&self) -> u16 {
        self.egress
    }
}
