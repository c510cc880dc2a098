//! The node's side of a helper: requests out, answers and exits in, and a new helper for one that has ended.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use super::protocol::{Answer, Envelope, Failure, Message, Request};
use super::spawner::{self, Spawner};
use super::{Exit, Exited, Inner, Owner, RuntimeError, Started, seqpacket};

type Waiting = HashMap<u64, oneshot::Sender<Result<Started, RuntimeError>>>;

pub(super) struct Helper {
    socket: Mutex<Arc<UnixDatagram>>,
    waiting: Mutex<Waiting>,
    seq: AtomicU64,
}

impl Helper {
    pub(super) fn new(socket: UnixDatagram) -> Self {
        Self { socket: Mutex::new(Arc::new(socket)), waiting: Mutex::default(), seq: AtomicU64::new(1) }
    }

    pub(super) async fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Started, RuntimeError> {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let bytes = serde_json::to_vec(&Envelope { seq, request })
            .map_err(|error| RuntimeError::Refused(error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().insert(seq, sender);
        let socket = Arc::clone(&self.socket.lock());
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                seqpacket::send(socket.as_fd(), &bytes, &raw).map_err(std::io::Error::from)
            })
            .await;
        drop(fds);
        if let Err(cause) = sent {
            self.waiting.lock().remove(&seq);
            warn!(%cause, "a container helper does not take requests");
            return Err(RuntimeError::HelperGone);
        }
        receiver.await.unwrap_or(Err(RuntimeError::HelperGone))
    }

    fn answer(&self, seq: u64, result: Result<Answer, Failure>, terminal: Option<OwnedFd>) {
        let Some(waiting) = self.waiting.lock().remove(&seq) else { return };
        let _ = waiting.send(match result {
            Ok(Answer { pid, cgroup, timings }) => Ok(Started { pid, cgroup, timings, terminal }),
            Err(Failure { program: true, message }) => Err(RuntimeError::Program(message)),
            Err(Failure { program: false, message }) => Err(RuntimeError::Refused(message)),
        });
    }
}

/// Reads one helper's messages; starts it again when it ends.
pub(super) async fn listen(
    inner: Weak<Inner>,
    index: usize,
    spawner: Spawner,
    events: mpsc::UnboundedSender<Exited>,
) {
    let mut buffer = vec![0; seqpacket::MAX_PACKET];
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let socket = Arc::clone(&strong.helpers[index].socket.lock());
        drop(strong);
        // Woken also when the runtime is dropped: see `Drop`, which shuts the socket down.
        let received = socket
            .async_io(Interest::READABLE, || {
                seqpacket::receive(socket.as_fd(), &mut buffer).map_err(std::io::Error::from)
            })
            .await;
        let Some(inner) = inner.upgrade() else { return };
        match received {
            Ok((length, mut fds)) if length > 0 => match serde_json::from_slice(&buffer[..length]) {
                Ok(Message::Done { seq, result }) => inner.helpers[index].answer(seq, result, fds.pop()),
                Ok(Message::Exited { id, exit }) => {
                    inner.ended(&id);
                    let _ = events.send(Exited { id, exit });
                }
                Err(cause) => error!(%cause, "a container helper sent what cannot be read"),
            },
            _ => inner.replace(index, &spawner, &events).await,
        }
    }
}

impl Inner {
    fn ended(&self, id: &str) {
        let mut owners = self.owners.lock();
        if let Some(owner) = owners.get_mut(id) {
            owner.running = false;
            if !owner.container {
                owners.remove(id);
            }
        }
    }

    /// A helper is gone: its containers are killed and reported, requests fail, and a new helper takes its place.
    async fn replace(&self, index: usize, spawner: &Spawner, events: &mpsc::UnboundedSender<Exited>) {
        warn!(
            helper = index,
            "a container helper has ended; its containers are killed and it is started again"
        );
        let lost: Vec<(String, Owner)> = {
            let mut owners = self.owners.lock();
            let ids: Vec<String> =
                owners.iter().filter(|(_, o)| o.helper == index).map(|(id, _)| id.clone()).collect();
            ids.into_iter().filter_map(|id| owners.remove(&id).map(|owner| (id, owner))).collect()
        };
        // With the cgroups of processes that were only waiting.
        if let Some(parent) = self.cgroup_parent.clone() {
            let (hierarchies, name) = (self.hierarchies.clone(), format!("{}-", spawner::name(index)));
            let killing = move || hierarchies.kill_and_remove_named(&parent, &name);
            let _ = tokio::task::spawn_blocking(killing).await;
        }
        for (id, owner) in lost {
            if owner.running {
                let _ = events.send(Exited { id, exit: Exit { code: 137, signal: Some(9), oom: false } });
            }
        }
        self.helpers[index].waiting.lock().clear();
        loop {
            match spawner.spawn(index).await {
                Ok(socket) => {
                    *self.helpers[index].socket.lock() = Arc::new(socket);
                    return;
                }
                Err(cause) => {
                    error!(%cause, "trying again in 1 s");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for helper in &self.helpers {
            let socket = helper.socket.lock();
            // The helper reads this as the end of the node, `listen` as the end of the helper.
            let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
    }
}
