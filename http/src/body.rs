//! Bodies: one concrete type for each direction, so that the hot path boxes nothing.

pub(crate) mod request;
mod timed;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

pub use self::request::RequestBody;
pub use self::timed::{Limits, Timed};
use crate::error::Error;
use crate::pool::PooledBody;

/// The body of a response on its way to the client.
#[derive(Debug, Default)]
pub enum Body {
    /// No bytes.
    #[default]
    Empty,
    /// An answer of the proxy's own.
    Full(Option<Bytes>),
    /// An answer of a backend; its connection returns to the pool at the end.
    Upstream(PooledBody),
}

impl Body {
    /// A body that is complete already.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Body::Empty } else { Body::Full(Some(bytes)) }
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Body::full(Bytes::from_static(text.as_bytes()))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Body::full(text)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Body::Upstream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_none(),
            Body::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty | Body::Full(None) => SizeHint::with_exact(0),
            Body::Full(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Body::Upstream(body) => body.size_hint(),
        }
    }
}

/// Keeps `G` alive exactly as long as the body is being sent: a permit, an in-flight counter, a stopwatch.
///
/// The guard is dropped at the end of the stream, at an error, or when the body is dropped, whichever is first.
#[derive(Debug)]
pub struct Guarded<B, G> {
    inner: B,
    guard: Option<G>,
}

impl<B: HttpBody, G> Guarded<B, G> {
    /// Ties `guard` to `inner`; a body that is at its end already drops it at once.
    pub fn new(inner: B, guard: G) -> Self {
        let guard = (!inner.is_end_stream()).then_some(guard);
        Self { inner, guard }
    }

    /// Ties `guard` to the body's life and keeps it even when the body is empty, until the body is dropped. For a
    /// guard that must outlive the response's head being written.
    pub fn until_dropped(inner: B, guard: G) -> Self {
        Self { inner, guard: Some(guard) }
    }
}

impl<B: HttpBody + Unpin, G: Unpin> HttpBody for Guarded<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(_))) if !this.inner.is_end_stream() => {}
            Poll::Ready(_) => this.guard = None,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn guard_lives_exactly_as_long_as_the_stream() {
        let guard = Arc::new(());
        let mut body = Guarded::new(Body::from("x"), guard.clone());
        assert_eq!(Arc::strong_count(&guard), 2);
        body.frame().await.unwrap().unwrap();
        assert_eq!(
            Arc::strong_count(&guard),
            1,
            "the last frame ends it, without waiting for a poll that never comes"
        );

        let empty = Guarded::new(Body::Empty, guard.clone());
        assert_eq!(Arc::strong_count(&guard), 1);
        drop(empty);
        let unread = Guarded::new(Body::from("x"), guard.clone());
        drop(unread);
        assert_eq!(Arc::strong_count(&guard), 1);
    }
}
