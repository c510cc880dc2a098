//! The body of a request on its way to a backend.
//!
//! A streaming body sits in a slot until the connection asks for its first byte. If the connection dies before that,
//! the body is taken back and the request can be sent elsewhere: nothing of it was consumed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::Sleep;

/// How long a body waits for `100 Continue` before it is sent all the same (RFC 9110 10.1.1 wants a limit).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// The body of a request on its way to a backend. Holds no bytes of its own beyond what the caller gave it.
#[derive(Debug, Default)]
pub struct RequestBody(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Sent,
    Stream(Streaming),
}

#[derive(Debug)]
struct Streaming {
    slot: Arc<Slot>,
    taken: Option<Incoming>,
    hint: SizeHint,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// What sender and body share about one streaming body.
#[derive(Debug)]
pub(crate) struct Slot {
    body: Mutex<Option<Incoming>>,
    state: AtomicU8,
    open: AtomicBool,
    waker: AtomicWaker,
}

const READING: u8 = 1;
const DONE: u8 = 2;
const FAILED: u8 = 3;

impl Slot {
    fn new(body: Incoming, open: bool) -> Arc<Self> {
        Arc::new(Self {
            body: Mutex::new(Some(body)),
            state: AtomicU8::new(0),
            open: AtomicBool::new(open),
            waker: AtomicWaker::new(),
        })
    }

    /// Lets the body flow: the backend said `100 Continue`.
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether the body flows without waiting for the backend.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether the client's side of the stream failed.
    pub(crate) fn failed(&self) -> bool {
        self.state.load(Ordering::Acquire) == FAILED
    }
}

/// What the sender keeps of a body that it handed to a connection.
#[derive(Debug, Default, Clone)]
pub(crate) enum Trace {
    #[default]
    Empty,
    Full(Bytes),
    Stream(Arc<Slot>, SizeHint),
}

impl Trace {
    /// The body again, if none of it was consumed.
    pub(crate) fn recover(self) -> Option<RequestBody> {
        match self {
            Trace::Empty => Some(RequestBody(Kind::Empty)),
            Trace::Full(bytes) => Some(RequestBody(Kind::Full(bytes))),
            Trace::Stream(slot, hint) => {
                let body = slot.body.lock().take()?;
                let open = slot.open.load(Ordering::Acquire);
                Some(RequestBody(Kind::Stream(Streaming {
                    slot: Slot::new(body, open),
                    taken: None,
                    hint,
                    waiting: None,
                })))
            }
        }
    }

    /// Whether the whole body went out, so that the connection may carry another request.
    pub(crate) fn finished(&self) -> bool {
        match self {
            Trace::Stream(slot, _) => slot.state.load(Ordering::Acquire) == DONE,
            _ => true,
        }
    }

    pub(crate) fn slot(&self) -> Option<&Arc<Slot>> {
        match self {
            Trace::Stream(slot, _) => Some(slot),
            _ => None,
        }
    }

    /// Whether there was a body and the connection did not touch it.
    pub(crate) fn untouched(&self) -> bool {
        match self {
            Trace::Stream(slot, _) => slot.state.load(Ordering::Acquire) == 0,
            _ => false,
        }
    }
}

impl RequestBody {
    /// No body.
    pub const fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// A body in memory; it can be sent again.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self(if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) })
    }

    /// The body of a request that came in. With `wait`, it flows only after `100 Continue` (or a second).
    pub fn stream(body: Incoming, wait: bool) -> Self {
        if body.is_end_stream() {
            return Self(Kind::Empty);
        }
        let hint = body.size_hint();
        Self(Kind::Stream(Streaming { slot: Slot::new(body, !wait), taken: None, hint, waiting: None }))
    }

    /// Whether bytes are still to come from a client.
    pub fn is_streaming(&self) -> bool {
        matches!(self.0, Kind::Stream(_))
    }

    pub(crate) fn trace(&self) -> Trace {
        match &self.0 {
            Kind::Empty | Kind::Sent => Trace::Empty,
            Kind::Full(bytes) => Trace::Full(bytes.clone()),
            Kind::Stream(s) => Trace::Stream(s.slot.clone(), s.hint),
        }
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self::stream(body, false)
    }
}

impl Streaming {
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.slot.open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.slot.waker.register(cx.waker());
        if self.slot.open.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let wait = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(CONTINUE_WAIT)));
        if wait.as_mut().poll(cx).is_ready() {
            self.slot.open.store(true, Ordering::Release);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.taken.is_none() {
            if self.poll_gate(cx).is_pending() {
                return Poll::Pending;
            }
            self.waiting = None;
            self.taken = self.slot.body.lock().take();
            self.slot.state.store(READING, Ordering::Release);
        }
        let Some(body) = &mut self.taken else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Err(_))) => self.slot.state.store(FAILED, Ordering::Release),
            Poll::Ready(None) => self.slot.state.store(DONE, Ordering::Release),
            Poll::Ready(Some(Ok(_))) if body.is_end_stream() => {
                self.slot.state.store(DONE, Ordering::Release);
            }
            _ => {}
        }
        polled
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        match &mut this.0 {
            Kind::Empty | Kind::Sent => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.0 = Kind::Sent;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Stream(s) => s.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty | Kind::Sent => true,
            Kind::Full(_) => false,
            Kind::Stream(s) => s.taken.as_ref().is_some_and(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty | Kind::Sent => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(s) => s.taken.as_ref().map_or_else(|| s.hint, Body::size_hint),
        }
    }
}
