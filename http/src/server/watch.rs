//! What one coarse timer sees of a connection, and what it concludes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Counters of one connection.
#[derive(Debug, Default)]
pub(super) struct Watch {
    busy: AtomicUsize,
    started: AtomicU64,
    read: AtomicU64,
}

impl Watch {
    /// A request has begun; it lasts until the returned value is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.started.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    pub(super) fn look(&self) -> Look {
        Look {
            busy: self.busy.load(Ordering::Relaxed) > 0,
            started: self.started.load(Ordering::Relaxed),
            read: self.read.load(Ordering::Relaxed),
        }
    }
}

/// A request in progress, from its head to the end of its response.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Watch>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection at one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    busy: bool,
    started: u64,
    read: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Part of a head came, and then not the rest.
    Slow,
    /// Nothing for long.
    Idle,
}

/// Judges at each tick. A head must be complete within two ticks after its first byte.
#[derive(Debug)]
pub(super) struct Judge {
    last: Look,
    partial: bool,
    quiet: u32,
    idle_ticks: u32,
    heads: bool,
}

impl Judge {
    /// `heads`: whether bytes without a request mean part of a head (HTTP/1.1) or may be frames of control (HTTP/2).
    pub(super) fn new(idle_ticks: u32, heads: bool) -> Self {
        Self { last: Look::default(), partial: false, quiet: 0, idle_ticks, heads }
    }

    pub(super) fn tick(&mut self, now: Look) -> Verdict {
        let last = std::mem::replace(&mut self.last, now);
        if now.busy || now.started != last.started {
            (self.partial, self.quiet) = (false, 0);
            return Verdict::Keep;
        }
        if self.partial {
            return Verdict::Slow;
        }
        self.partial = self.heads && now.read != last.read;
        self.quiet += 1;
        if self.quiet >= self.idle_ticks && !self.partial { Verdict::Idle } else { Verdict::Keep }
    }
}

/// A stream that counts what is read.
#[derive(Debug)]
pub(super) struct Watched<Io> {
    pub(super) io: Io,
    pub(super) watch: Arc<Watch>,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        let n = buf.filled().len() - before;
        if n > 0 {
            this.watch.read.fetch_add(n as u64, Ordering::Relaxed);
        }
        polled
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(busy: bool, started: u64, read: u64) -> Look {
        Look { busy, started, read }
    }

    #[test]
    fn a_head_that_never_ends_is_slow() {
        let mut judge = Judge::new(100, true);
        assert_eq!(judge.tick(look(false, 0, 10)), Verdict::Keep, "it may have begun a moment ago");
        assert_eq!(judge.tick(look(false, 0, 11)), Verdict::Slow, "one byte now and then does not help");
    }

    #[test]
    fn a_long_request_is_not_slow() {
        let mut judge = Judge::new(2, true);
        for read in 0..10 {
            assert_eq!(judge.tick(look(true, 1, read)), Verdict::Keep);
        }
        assert_eq!(judge.tick(look(false, 1, 10)), Verdict::Keep, "bytes of its end");
    }

    #[test]
    fn unused_is_idle_after_its_ticks_and_traffic_resets_it() {
        let mut judge = Judge::new(3, false);
        assert_eq!(judge.tick(look(false, 0, 5)), Verdict::Keep);
        assert_eq!(judge.tick(look(false, 0, 9)), Verdict::Keep, "HTTP/2 frames of control are not a head");
        assert_eq!(judge.tick(look(false, 1, 9)), Verdict::Keep);
        assert_eq!(judge.tick(look(false, 1, 9)), Verdict::Keep);
        assert_eq!(judge.tick(look(false, 1, 9)), Verdict::Keep);
        assert_eq!(judge.tick(look(false, 1, 9)), Verdict::Idle);
    }
}
