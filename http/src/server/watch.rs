//! What one coarse timer sees of a connection, and what it concludes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::strict::{Refused, Scanner};

/// Counters of one connection.
#[derive(Debug, Default)]
pub(super) struct Watch {
    busy: AtomicUsize,
    started: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    /// Responses of which the next part is there, or could be asked for, once the client takes it.
    offered: AtomicUsize,
    polls: AtomicU64,
    /// Requests that were given up before they had an answer.
    abandoned: AtomicU64,
    opaque: AtomicBool,
    leaving: AtomicBool,
    evicted: Notify,
    /// Requests that were read, where nothing but whole requests was; else [`MIDST`].
    whole: AtomicU64,
    /// Bytes were written that may not have left yet.
    unflushed: AtomicBool,
}

/// Part of a request was read, or what is none.
const MIDST: u64 = u64::MAX;

/// A client that gives up more requests than this, and more than half of all, opens them only to make work (CVE-2023-44487).
const ABANDONED: u64 = 500;

impl Watch {
    /// A request has begun; it lasts until the returned value is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.started.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy { watch: self.clone(), offered: false, answered: false }
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    /// Whether nearly all requests are given up.
    pub(super) fn is_hostile(&self) -> bool {
        let abandoned = self.abandoned.load(Ordering::Relaxed);
        abandoned >= ABANDONED && 2 * abandoned >= self.started.load(Ordering::Relaxed)
    }

    /// Asks an idle connection to make room for others.
    pub(super) fn evict(&self) {
        self.evicted.notify_one();
    }

    /// Waits until [`Self::evict`].
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Whether a request asked for another protocol: what came after it was read without being looked at.
    pub(super) fn is_opaque(&self) -> bool {
        self.opaque.load(Ordering::Relaxed)
    }

    /// From now on each answer is the last.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::leave`] was called.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Whether nothing of the connection is in anybody's hands: each request that was read has its whole answer, which has left. Only HTTP/1.1 is
    /// followed so closely.
    pub(super) fn is_at_rest(&self) -> bool {
        self.is_idle()
            && self.whole.load(Ordering::Relaxed) == self.started.load(Ordering::Relaxed)
            && !self.unflushed.load(Ordering::Relaxed)
    }

    pub(super) fn look(&self) -> Look {
        let busy = self.busy.load(Ordering::Relaxed);
        Look {
            busy: busy > 0,
            started: self.started.load(Ordering::Relaxed),
            read: self.read.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
            polls: self.polls.load(Ordering::Relaxed),
            offered: busy > 0 && self.offered.load(Ordering::Relaxed) == busy,
            midst: self.whole.load(Ordering::Relaxed) == MIDST,
        }
    }
}

/// A request in progress, from its head to the end of its response.
#[derive(Debug)]
pub(crate) struct Busy {
    watch: Arc<Watch>,
    offered: bool,
    answered: bool,
}

impl Busy {
    /// What is in use without a request of its own.
    pub(super) fn quiet(mut self) -> Self {
        self.answered = true;
        self
    }

    fn set_offered(&mut self, offered: bool) {
        match (std::mem::replace(&mut self.offered, offered), offered) {
            (false, true) => self.watch.offered.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.watch.offered.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.set_offered(false);
        self.watch.busy.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            self.watch.abandoned.fetch_add(1, Ordering::Relaxed);
            if self.watch.is_hostile() {
                self.watch.evict();
            }
        }
    }
}

/// The body of a response on its way to the client: ends the request at its end, and tells whose turn it is.
#[derive(Debug)]
pub(super) struct Reply<B> {
    inner: B,
    busy: Option<Busy>,
}

impl<B: Body> Reply<B> {
    pub(super) fn new(inner: B, mut busy: Busy) -> Self {
        busy.answered = true;
        busy.set_offered(true);
        let busy = (!inner.is_end_stream()).then_some(busy);
        Self { inner, busy }
    }
}

impl<B: Body + Unpin> Body for Reply<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        if let Some(busy) = &mut this.busy {
            busy.watch.polls.fetch_add(1, Ordering::Relaxed);
            busy.set_offered(polled.is_ready());
        }
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(_))) if !this.inner.is_end_stream() => {}
            Poll::Ready(_) => this.busy = None,
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A connection at one tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    busy: bool,
    started: u64,
    read: u64,
    written: u64,
    polls: u64,
    offered: bool,
    /// Part of a request was read, or what is none.
    midst: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Part of a head came, and then not the rest.
    Slow,
    /// Nothing for long.
    Idle,
    /// Answers are there, and the client takes none of them.
    Stalled,
}

/// Judges at each tick. A head must be complete within two ticks after its first byte.
#[derive(Debug)]
pub(super) struct Judge {
    last: Look,
    partial: bool,
    quiet: u32,
    stuck: u32,
    idle_ticks: u32,
    stall_ticks: u32,
    http1: bool,
}

impl Judge {
    /// Whether a whole tick has passed without a request.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet > 0 && !self.partial
    }

    /// `http1`: bytes without a request mean part of a head, and bytes written are a response's; in HTTP/2 both may be frames of control.
    pub(super) fn new(idle_ticks: u32, stall_ticks: u32, http1: bool) -> Self {
        Self { last: Look::default(), partial: false, quiet: 0, stuck: 0, idle_ticks, stall_ticks, http1 }
    }

    pub(super) fn tick(&mut self, now: Look) -> Verdict {
        let last = std::mem::replace(&mut self.last, now);
        if now.busy || now.started != last.started {
            (self.partial, self.quiet) = (false, 0);
            let moved = now.polls != last.polls
                || now.started != last.started
                || (self.http1 && now.written != last.written);
            self.stuck = if now.offered && !moved { self.stuck + 1 } else { 0 };
            return if self.stuck >= self.stall_ticks { Verdict::Stalled } else { Verdict::Keep };
        }
        self.stuck = 0;
        if self.partial {
            return Verdict::Slow;
        }
        // What was read may have been the end of a long request.
        self.partial = self.http1 && now.midst && now.read != last.read;
        self.quiet += 1;
        if self.quiet >= self.idle_ticks && !self.partial { Verdict::Idle } else { Verdict::Keep }
    }
}

/// Where a stream goes when it is [`Shelf::wanted`] while what reads from it is dropped.
#[derive(Debug)]
pub(super) struct Shelf<Io>(Arc<Mutex<Place<Io>>>);

#[derive(Debug)]
struct Place<Io> {
    wanted: bool,
    stream: Option<Io>,
}

impl<Io> Shelf<Io> {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Place { wanted: false, stream: None })))
    }

    /// From now on a stream that is dropped is kept here.
    pub(super) fn want(&self) {
        self.0.lock().wanted = true;
    }

    /// Takes what is kept. None is wanted after that.
    pub(super) fn take(&self) -> Option<Io> {
        let mut place = self.0.lock();
        place.wanted = false;
        place.stream.take()
    }

    fn same(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A stream that counts what is read, and refuses what must not be.
#[derive(Debug)]
pub(super) struct Watched<Io> {
    /// There until it is dropped.
    io: Option<Io>,
    watch: Arc<Watch>,
    /// For HTTP/1.1.
    scanner: Option<Scanner>,
    /// Requests before those that the scanner sees.
    before: u64,
    refused: Option<Refused>,
    /// A byte that was read before this.
    ahead: Option<u8>,
    shelf: Option<Shelf<Io>>,
}

impl<Io> Watched<Io> {
    /// Over a whole connection.
    pub(super) fn new(io: Io, watch: Arc<Watch>) -> Self {
        watch.whole.store(MIDST, Ordering::Relaxed);
        Self { io: Some(io), watch, scanner: None, before: 0, refused: None, ahead: None, shelf: None }
    }

    /// Over a connection of HTTP/1.1 from a request on, of which `ahead` was read already. The stream goes to `shelf`, if it is wanted there.
    pub(super) fn requests(
        io: Io,
        ahead: Option<u8>,
        watch: Arc<Watch>,
        scanner: Scanner,
        shelf: &Shelf<Io>,
    ) -> Self {
        let before = watch.started.load(Ordering::Relaxed);
        watch.whole.store(if ahead.is_some() { MIDST } else { before }, Ordering::Relaxed);
        let (scanner, shelf) = (Some(scanner), Some(shelf.same()));
        Self { io: Some(io), watch, scanner, before, refused: None, ahead, shelf }
    }

    fn wrote(&self, polled: &Poll<io::Result<usize>>) {
        self.watch.unflushed.store(true, Ordering::Relaxed);
        if let Poll::Ready(Ok(n)) = polled {
            self.watch.written.fetch_add(*n as u64, Ordering::Relaxed);
        }
    }

    /// Looks at what was read into `buf` beyond `before`. In place of a violation in a head hyper gets to read a NUL, which it answers with 400 like
    /// anything else that is not HTTP, after the answers to earlier requests; a body breaks off.
    fn scan(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let Some(scanner) = &mut self.scanner else { return };
        let fed = scanner.feed(&buf.filled()[before..]);
        let whole = fed.is_ok() && scanner.between_requests();
        self.watch
            .whole
            .store(if whole { self.before + scanner.requests() } else { MIDST }, Ordering::Relaxed);
        if let Err(refused) = fed {
            metrics::counter!("ebb_http_requests_malformed_total", "reason" => refused.why.name())
                .increment(1);
            tracing::debug!(reason = refused.why.name(), "a request that could be read in two ways");
            buf.set_filled(before + refused.at);
            if refused.in_head {
                buf.put_slice(&[0]);
            }
            self.refused = Some(refused);
            self.scanner = None;
        } else if scanner.is_opaque() {
            self.watch.opaque.store(true, Ordering::Relaxed);
            self.scanner = None;
        }
    }
}

impl<Io> Drop for Watched<Io> {
    fn drop(&mut self) {
        let Some(shelf) = &self.shelf else { return };
        let mut place = shelf.0.lock();
        if place.wanted {
            place.stream = self.io.take();
        }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(refused) = this.refused {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refused.why.name())));
        }
        let Some(io) = &mut this.io else { return Poll::Ready(Err(gone())) };
        let before = buf.filled().len();
        let ahead = if buf.remaining() > 1 { this.ahead.take() } else { None };
        buf.put_slice(ahead.as_slice());
        let polled = match Pin::new(io).poll_read(cx, buf) {
            // The byte before it is there.
            Poll::Pending if ahead.is_some() => Poll::Ready(Ok(())),
            polled => polled,
        };
        let n = buf.filled().len() - before;
        if n > 0 {
            this.watch.read.fetch_add(n as u64, Ordering::Relaxed);
            this.scan(buf, before);
            if let Some(refused) = this.refused
                && buf.filled().len() == before
            {
                // Nothing before it: an empty read would be the stream's end.
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refused.why.name())));
            }
        }
        polled
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(io) = &mut this.io else { return Poll::Ready(Err(gone())) };
        let polled = Pin::new(io).poll_write(cx, buf);
        this.wrote(&polled);
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(io) = &mut this.io else { return Poll::Ready(Err(gone())) };
        let polled = Pin::new(io).poll_flush(cx);
        // Whoever writes flushes as often as it is told to wait, until all is gone.
        this.watch.unflushed.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // It ends: nothing else may take it over.
        this.watch.whole.store(MIDST, Ordering::Relaxed);
        match &mut this.io {
            Some(io) => Pin::new(io).poll_shutdown(cx),
            None => Poll::Ready(Err(gone())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(io) = &mut this.io else { return Poll::Ready(Err(gone())) };
        let polled = Pin::new(io).poll_write_vectored(cx, bufs);
        this.wrote(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}

/// A connection between two requests, without any buffer: waits for the first byte of the next one. `None` when there will be none.
#[derive(Debug)]
pub(super) struct Rest<Io> {
    io: Io,
    ending: bool,
}

impl<Io> Rest<Io> {
    pub(super) fn new(io: Io) -> Self {
        Self { io, ending: false }
    }

    /// The connection itself.
    pub(super) fn into_inner(self) -> Io {
        self.io
    }

    /// Ends the connection.
    pub(super) fn end(&mut self) {
        self.ending = true;
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Future for Rest<Io> {
    type Output = Option<u8>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u8>> {
        let this = self.get_mut();
        if !this.ending {
            let mut byte = [0];
            let mut buf = ReadBuf::new(&mut byte);
            match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => return Poll::Ready(Some(byte[0])),
                Poll::Ready(_) => this.ending = true,
            }
        }
        // So that a client with TLS knows that this is the end.
        Pin::new(&mut this.io).poll_shutdown(cx).map(|_| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(busy: bool, started: u64, read: u64) -> Look {
        // No request was whole yet, or all that was read is whole.
        Look { busy, started, read, midst: started == 0, ..Look::default() }
    }

    #[test]
    fn a_head_that_never_ends_is_slow() {
        let mut judge = Judge::new(100, 6, true);
        assert_eq!(judge.tick(look(false, 0, 10)), Verdict::Keep, "it may have begun a moment ago");
        assert_eq!(judge.tick(look(false, 0, 11)), Verdict::Slow, "one byte now and then does not help");
    }

    #[test]
    fn a_long_request_is_not_slow() {
        let mut judge = Judge::new(2, 6, true);
        for read in 0..10 {
            assert_eq!(judge.tick(look(true, 1, read)), Verdict::Keep);
        }
        assert_eq!(judge.tick(look(false, 1, 10)), Verdict::Keep, "bytes of its end");
        assert_eq!(judge.tick(look(false, 1, 10)), Verdict::Idle, "unused since, not slow");
    }

    #[test]
    fn unused_is_idle_after_its_ticks_and_traffic_resets_it() {
        let mut judge = Judge::new(3, 6, false);
        assert_eq!(judge.tick(look(false, 0, 5)), Verdict::Keep);
        assert_eq!(judge.tick(look(false, 0, 9)), Verdict::Keep, "HTTP/2 frames of control are not a head");
        assert_eq!(judge.tick(look(false, 1, 9)), Verdict::Keep);
        assert_eq!(judge.tick(look(false, 1, 9)), Verdict::Keep);
        assert_eq!(judge.tick(look(false, 1, 9)), Verdict::Keep);
        assert_eq!(judge.tick(look(false, 1, 9)), Verdict::Idle);
    }

    #[test]
    fn a_client_that_takes_nothing_is_stalled_and_a_slow_app_is_not() {
        let look = |offered, polls, written| Look {
            busy: true,
            started: 1,
            offered,
            polls,
            written,
            read: 9,
            midst: false,
        };
        let mut judge = Judge::new(100, 2, true);
        assert_eq!(judge.tick(look(true, 1, 10)), Verdict::Keep);
        assert_eq!(judge.tick(look(true, 1, 10)), Verdict::Keep);
        assert_eq!(judge.tick(look(true, 1, 11)), Verdict::Keep, "a byte was taken");
        for _ in 0..10 {
            assert_eq!(judge.tick(look(false, 2, 11)), Verdict::Keep, "the app's turn");
        }
        assert_eq!(judge.tick(look(true, 2, 11)), Verdict::Keep);
        assert_eq!(judge.tick(look(true, 2, 11)), Verdict::Stalled);
        let mut judge = Judge::new(100, 2, false);
        for written in 0..2 {
            assert_eq!(judge.tick(look(true, 1, written)), Verdict::Keep);
        }
        assert_eq!(judge.tick(look(true, 1, 9)), Verdict::Stalled, "pings are no progress");
    }
}
