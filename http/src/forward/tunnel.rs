//! Upgraded connections: bytes both ways, counted, and part of every drain.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::Limits;

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

    /// Joins the two halves once both sides have switched. `guard` lives as long as the tunnel. `limits` cut it: the total, and a pause in
    /// which no byte goes either way.
    pub(super) fn splice(
        &self,
        client: OnUpgrade,
        backend: OnUpgrade,
        guard: impl Send + 'static,
        limits: Limits,
    ) {
        self.0.open.fetch_add(1, Ordering::AcqRel);
        let open = Open(self.0.clone());
        tokio::spawn(async move {
            let _guard = guard;
            let state = open.0.clone();
            let activity = Activity::new(Instant::now());
            let copy = async {
                let (client, backend) = tokio::try_join!(client, backend)?;
                let mut client = Watched { inner: TokioIo::new(client), activity: &activity };
                let mut backend = Watched { inner: TokioIo::new(backend), activity: &activity };
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
                what = activity.over(limits) => tracing::debug!(what, "an upgraded connection was cut by a time limit"),
                () = state.kill.cancelled() => tracing::debug!("an upgraded connection was cut at the end of grace"),
            }
        });
    }
}

/// When something came last, in milliseconds since the tunnel began.
struct Activity {
    began: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new(now: Instant) -> Self {
        Self { began: now, last: AtomicU64::new(0) }
    }

    fn touch(&self) {
        let since = self.began.elapsed().as_millis();
        self.last.store(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns when a limit has passed, and which.
    async fn over(&self, limits: Limits) -> &'static str {
        let total = async {
            match limits.total {
                Some((at, _)) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let idle = async {
            let Some(idle) = limits.idle else { return std::future::pending().await };
            loop {
                let until = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed)) + idle;
                if Instant::now() >= until {
                    return;
                }
                tokio::time::sleep_until(until).await;
            }
        };
        tokio::select! {
            () = total => "total",
            () = idle => "idle",
        }
    }
}

/// A half whose bytes are noticed as they come.
struct Watched<'a, T> {
    inner: T,
    activity: &'a Activity,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        self.activity.touch();
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn traffic_puts_off_the_idle_limit_and_nothing_the_total() {
        let began = Instant::now();
        let activity = Activity::new(began);
        let limits = Limits { idle: Some(2 * SECOND), ..Limits::default() };
        let traffic = async {
            for _ in 0..5 {
                tokio::time::sleep(SECOND).await;
                activity.touch();
            }
        };
        let (what, ()) = tokio::join!(activity.over(limits), traffic);
        assert_eq!((what, began.elapsed()), ("idle", 7 * SECOND));

        let limits = Limits { total: Some((Instant::now() + SECOND, SECOND)), ..limits };
        activity.touch();
        assert_eq!(activity.over(limits).await, "total");
    }
}
