//! Those who watch a container's output as it comes.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::writer::Chunk;

/// Chunks that wait for a client.
const WAITING: usize = 64;
/// How long the container's output waits for a client that takes nothing, before that client is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The clients of one container. Nothing is left out for a slow one: as with any pipe, the container waits for it.
#[derive(Debug)]
pub(crate) struct Attached {
    clients: Mutex<Clients>,
    patience: Duration,
}

impl Default for Attached {
    fn default() -> Self {
        Self { clients: Mutex::default(), patience: PATIENCE }
    }
}

#[derive(Debug, Default)]
struct Clients {
    list: Vec<mpsc::Sender<Chunk>>,
    closed: bool,
}

impl Attached {
    /// All output from now on; ends with the container's output, or when the client is too slow.
    pub(crate) fn join(&self) -> mpsc::Receiver<Chunk> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut clients = self.clients.lock();
        if !clients.closed {
            clients.list.push(sender);
        }
        receiver
    }

    pub(super) async fn send(&self, chunk: &Chunk) {
        let list = self.clients.lock().list.clone();
        for client in list {
            let taken = tokio::time::timeout(self.patience, client.send(chunk.clone())).await;
            if !matches!(taken, Ok(Ok(()))) {
                self.clients.lock().list.retain(|known| !known.same_channel(&client));
            }
        }
    }

    pub(super) fn close(&self) {
        let mut clients = self.clients.lock();
        clients.closed = true;
        clients.list.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: usize) -> Chunk {
        Chunk { stderr: false, bytes: number.to_string().into() }
    }

    #[tokio::test]
    async fn a_slow_client_misses_nothing_and_a_stuck_one_goes() {
        let patience = Duration::from_millis(200);
        let attached = std::sync::Arc::new(Attached { patience, ..Attached::default() });
        let (mut slow, stuck) = (attached.join(), attached.join());
        let sending = tokio::spawn({
            let attached = attached.clone();
            async move {
                for number in 0..3 * WAITING {
                    attached.send(&chunk(number)).await;
                }
                attached.close();
            }
        });
        let mut heard = 0;
        while let Some(chunk) = slow.recv().await {
            assert_eq!(chunk.bytes, heard.to_string());
            heard += 1;
            tokio::task::yield_now().await;
        }
        assert_eq!(heard, 3 * WAITING);
        sending.await.unwrap();
        assert!(stuck.is_closed(), "its sender is gone");
        assert!(attached.join().recv().await.is_none(), "too late to hear anything");
    }
}
