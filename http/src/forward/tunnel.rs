//! Upgraded connections: bytes both ways, counted, and part of every drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// All upgraded connections of a proxy. Cheap to clone; clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Tunnels(Arc<State>);

#[derive(Debug, Default)]
struct State {
    open: AtomicUsize,
    from_client: AtomicU64,
    to_client: AtomicU64,
    closed: Notify,
    kill: CancellationToken,
}

struct Open(Arc<State>);

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.closed.notify_waiters();
        }
    }
}

impl Tunnels {
    /// How many are open.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Acquire)
    }

    /// Bytes of finished tunnels: from clients, and to them.
    pub fn bytes(&self) -> (u64, u64) {
        (self.0.from_client.load(Ordering::Relaxed), self.0.to_client.load(Ordering::Relaxed))
    }

    /// Waits until none is open.
    pub async fn wait_closed(&self) {
        loop {
            let closed = self.0.closed.notified();
            tokio::pin!(closed);
            closed.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            closed.await;
        }
    }

    /// Cuts all, now and later: the end of the grace period.
    pub fn kill(&self) {
        self.0.kill.cancel();
    }

    /// Joins the two halves once both sides have switched. `guard` lives as long as the tunnel.
    pub(super) fn splice(&self, client: OnUpgrade, backend: OnUpgrade, guard: impl Send + 'static) {
        self.0.open.fetch_add(1, Ordering::AcqRel);
        let open = Open(self.0.clone());
        tokio::spawn(async move {
            let _guard = guard;
            let state = open.0.clone();
            let copy = async {
                let (client, backend) = tokio::try_join!(client, backend)?;
                let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
                let bytes = tokio::io::copy_bidirectional(&mut client, &mut backend).await?;
                Ok::<_, crate::error::BoxError>(bytes)
            };
            tokio::select! {
                copied = copy => match copied {
                    Ok((from, to)) => {
                        state.from_client.fetch_add(from, Ordering::Relaxed);
                        state.to_client.fetch_add(to, Ordering::Relaxed);
                    }
                    Err(error) => tracing::debug!(%error, "an upgraded connection broke off"),
                },
                () = state.kill.cancelled() => tracing::debug!("an upgraded connection was cut at the end of grace"),
            }
        });
    }
}
