//! Listening sockets that outlive the process that serves them.
//!
//! When a process is killed, whoever waits in the queues of its listening sockets is reset, and whoever comes next is refused, until the packet
//! rules of every node have left its pod out: seconds. So a second container of the pod, the *keeper*, holds a copy of each socket. It never accepts; with
//! it the kernel goes on taking connections, they wait in the queue, and the process takes the very same sockets over when it is back.
//!
//! One exchange over a Unix socket in a volume of the pod: the keeper hands over what it has (nothing, at first), the process binds what is missing
//! and deposits all of it, and the connection stays open: its end tells each of the other's death. A new keeper is given the sockets
//! again. Without a keeper the process serves all the same.
//!
//! A pod that is told to end loses its keeper at once, so that nobody waits in the queue of a process that will not come back; and a keeper whose process
//! is away for longer than [`PATIENCE`] lets go, for a refusal is better than a wait without end.

use std::convert::Infallible;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, error, info, warn};

use crate::env::Env;

/// The variable with the path of the keeper's Unix socket.
pub const VARIABLE: &str = "EBB_LISTENER_KEEPER";
/// For how long sockets are kept for a process that is away: longer than its restart, with the kubelet's first pause of 10 s.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// For how long a process that starts looks for its keeper, which may start after it.
const FIND: Duration = Duration::from_secs(2);
/// Between two attempts to reach a keeper.
const RETRY: Duration = Duration::from_millis(100);
/// Sockets in one message.
const MOST: usize = 8;

/// The keeper, seen from the process whose sockets it keeps.
#[derive(Debug)]
pub struct ListenerKeeper {
    path: PathBuf,
    stream: Option<UnixStream>,
    kept: Vec<TcpListener>,
}

impl ListenerKeeper {
    /// Finds the keeper at `path` and takes over what it has. Where there is none, it is looked for again later.
    pub async fn find(path: PathBuf) -> Self {
        let claimed = async {
            loop {
                match claim(&path).await {
                    Ok(claimed) => break claimed,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        };
        if let Ok((stream, fds)) = tokio::time::timeout(FIND, claimed).await {
            let kept: Vec<_> = fds.into_iter().map(TcpListener::from).collect();
            info!(sockets = kept.len(), "taken over from the keeper of listening sockets");
            Self { path, stream: Some(stream), kept }
        } else {
            warn!(path = %path.display(), "no keeper of listening sockets yet");
            Self { path, stream: None, kept: Vec::new() }
        }
    }

    /// The kept socket that is bound to `address`.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let found = self.kept.iter().position(|kept| kept.local_addr().is_ok_and(|at| at == address))?;
        Some(self.kept.swap_remove(found))
    }

    /// Deposits copies of these sockets, and again with each keeper that comes after, until it is dropped.
    pub async fn hold(self, listeners: Vec<OwnedFd>) -> Infallible {
        let Self { path, mut stream, kept } = self;
        // Of an address that is not served any more.
        drop(kept);
        loop {
            if let Some(keeper) = stream.take()
                && give(&keeper, &listeners).await.is_ok()
            {
                debug!(sockets = listeners.len(), "deposited");
                // It says no more; this waits for its end.
                let _ = receive(&keeper).await;
            }
            tokio::time::sleep(RETRY).await;
            stream = claim(&path).await.ok().map(|(keeper, _)| keeper);
        }
    }
}

/// Connects, and receives what the keeper has.
async fn claim(path: &Path) -> io::Result<(UnixStream, Vec<OwnedFd>)> {
    let stream = UnixStream::connect(path).await?;
    let kept = receive(&stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((stream, kept))
}

/// The keeper's work: what one process deposits is handed to the next.
///
/// # Errors
/// When `door` does not take connections any more.
pub async fn keep(door: UnixListener, patience: Duration) -> io::Error {
    let mut kept: Vec<OwnedFd> = Vec::new();
    loop {
        let accepted = if kept.is_empty() {
            door.accept().await
        } else if let Ok(accepted) = tokio::time::timeout(patience, door.accept()).await {
            accepted
        } else {
            warn!(after = ?patience, "their process did not come back: the listening sockets are let go");
            kept.clear();
            continue;
        };
        let process = match accepted {
            Ok((process, _)) => process,
            Err(cause) => return cause,
        };
        if give(&process, &kept).await.is_err() {
            continue;
        }
        while let Ok(Some(deposited)) = receive(&process).await {
            debug!(sockets = deposited.len(), "kept");
            kept = deposited;
        }
        info!(sockets = kept.len(), "their process is gone; the listening sockets wait for its next");
    }
}

/// The keeper as a process of its own, until a signal.
pub fn main() -> ExitCode {
    let env = Env::process();
    if let Err(why) = crate::logging::start_from(&env) {
        eprintln!("error: {why}");
        return ExitCode::from(crate::process::EX_USAGE);
    }
    let Some(path) = env.get(VARIABLE).map(PathBuf::from) else {
        error!("{VARIABLE} is not set: it names the Unix socket to listen at");
        return ExitCode::from(crate::process::EX_USAGE);
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            error!("cannot start the async runtime: {why}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(until_told(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            error!(
                "cannot keep sockets at {}: {cause}; is its folder there, and ours to write?",
                path.display()
            );
            ExitCode::FAILURE
        }
    }
}

async fn until_told(path: &Path) -> io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // What a keeper before this one left.
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    let door = UnixListener::bind(path)?;
    info!(path = %path.display(), "keeping listening sockets");
    tokio::select! {
        cause = keep(door, PATIENCE) => Err(cause),
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}

/// Sends copies of descriptors, or word that there are none.
async fn give(to: &UnixStream, fds: &[impl AsFd]) -> io::Result<()> {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let beside: &[_] = if fds.is_empty() { &[] } else { &rights };
    // Descriptors travel beside data only.
    let data = [IoSlice::new(b".")];
    let send = || sendmsg::<()>(to.as_raw_fd(), &data, beside, MsgFlags::MSG_NOSIGNAL, None);
    to.async_io(Interest::WRITABLE, || Ok(send()?)).await.map(drop)
}

/// Receives them; None at the other's end.
async fn receive(from: &UnixStream) -> io::Result<Option<Vec<OwnedFd>>> {
    from.async_io(Interest::READABLE, || {
        let mut space = nix::cmsg_space!([RawFd; MOST]);
        let (mut data, mut fds) = ([0], Vec::new());
        let mut parts = [IoSliceMut::new(&mut data)];
        let got = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for part in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = part {
                // SAFETY: the kernel has just made these descriptors for this process; nothing else knows their numbers.
                #[allow(unsafe_code)]
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        Ok((got.bytes > 0).then_some(fds))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    fn bound() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port")
    }

    fn copy(listener: &TcpListener) -> Vec<OwnedFd> {
        vec![listener.try_clone().expect("a copy").into()]
    }

    fn connects(address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect_timeout(&address, Duration::from_secs(5))
    }

    /// A keeper at a path of its own, and the path; ends with the runtime, or when aborted.
    fn keeper(at: &Path, patience: Duration) -> tokio::task::JoinHandle<io::Error> {
        let _ = std::fs::remove_file(at);
        tokio::spawn(keep(UnixListener::bind(at).expect("a path"), patience))
    }

    /// A process that deposits these, and dies.
    async fn held(mut process: ListenerKeeper, listener: &TcpListener) {
        let stream = process.stream.take().expect("a keeper");
        give(&stream, &copy(listener)).await.expect("sent");
    }

    #[tokio::test]
    async fn a_connection_made_while_the_process_is_dead_is_answered_by_its_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keeper");
        let _keeper = keeper(&path, PATIENCE);
        let mut first = ListenerKeeper::find(path.clone()).await;
        let listener = bound();
        let address = listener.local_addr().expect("an address");
        assert!(first.take(address).is_none(), "nothing was deposited yet");
        held(first, &listener).await;
        drop(listener);

        let waits = connects(address).expect("the keeper holds the socket");
        let mut next = ListenerKeeper::find(path).await;
        let other: SocketAddr = (Ipv4Addr::LOCALHOST, 1).into();
        assert!(next.take(other).is_none(), "of another address");
        let taken = next.take(address).expect("the same socket");
        let (accepted, _) = taken.accept().expect("who waited");
        assert_eq!(accepted.peer_addr().expect("a peer"), waits.local_addr().expect("an address"));
    }

    #[tokio::test]
    async fn a_new_keeper_is_given_the_sockets_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keeper");
        let old = keeper(&path, PATIENCE);
        let listener = bound();
        let address = listener.local_addr().expect("an address");
        let hold = tokio::spawn(ListenerKeeper::find(path.clone()).await.hold(copy(&listener)));
        old.abort();
        let _ = old.await;
        let (seen, mut given) = tokio::sync::mpsc::channel(1);
        let _ = std::fs::remove_file(&path);
        let door = UnixListener::bind(&path).expect("a path");
        tokio::spawn(async move {
            let (process, _) = door.accept().await.expect("the process");
            give(&process, &[] as &[OwnedFd]).await.expect("nothing to give");
            seen.send(receive(&process).await).await.expect("the test waits");
        });
        let fds = given.recv().await.expect("a deposit").expect("no error").expect("not the end");
        let again: Vec<_> = fds.into_iter().map(TcpListener::from).collect();
        assert_eq!(again[0].local_addr().expect("an address"), address);
        hold.abort();
    }

    #[tokio::test]
    async fn sockets_of_a_process_that_does_not_come_back_are_let_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keeper");
        let _keeper = keeper(&path, Duration::from_millis(100));
        let listener = bound();
        let address = listener.local_addr().expect("an address");
        held(ListenerKeeper::find(path).await, &listener).await;
        drop(listener);
        connects(address).expect("kept for a while");
        let refused = async {
            while connects(address).is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), refused).await.expect("refused in the end");
    }
}
