//! Time limits on a body. A timer exists only while the body makes its reader wait.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::error::Error;

/// The limits on one response body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The whole response ends by then; the duration is for the error's text.
    pub total: Option<(Instant, Duration)>,
    /// The longest pause between two frames.
    pub idle: Option<Duration>,
    /// What a body of undeclared length ends with when its time is over, as Knative's do: a whole response for HTTP, though not for its reader.
    /// Without it, and where the length was declared, the response breaks off.
    pub last_words: Option<&'static str>,
}

impl Limits {
    /// When a reader that starts to wait at `now` gives up, and which limit that is. `None`: never.
    fn next(&self, now: Instant) -> Option<(Instant, &'static str, Duration)> {
        let idle = self.idle.map(|d| (now + d, "next byte", d));
        let total = self.total.map(|(at, d)| (at, "whole response", d));
        match (idle, total) {
            (Some(i), Some(t)) => Some(if i.0 < t.0 { i } else { t }),
            (one, other) => one.or(other),
        }
    }
}

/// Cuts a body off when a limit passes: the frame that comes out then is [`Error::Timeout`], or [`Limits::last_words`] and nothing more.
#[derive(Debug)]
pub struct Timed<B> {
    inner: B,
    limits: Limits,
    waiting: Option<(Pin<Box<Sleep>>, &'static str, Duration)>,
    counter: Option<Arc<AtomicU64>>,
    ended: bool,
}

impl<B> Timed<B> {
    /// Puts `limits` on `inner`.
    pub fn new(inner: B, limits: Limits) -> Self {
        Self { inner, limits, waiting: None, counter: None, ended: false }
    }

    /// Adds the bytes that pass to `counter`.
    pub fn counted(mut self, counter: Option<Arc<AtomicU64>>) -> Self {
        self.counter = counter;
        self
    }
}

impl<B: Body> Timed<B> {
    fn cut(&mut self, what: &'static str, limit: Duration) -> Result<Frame<Bytes>, Error> {
        match self.limits.last_words.filter(|_| self.inner.size_hint().exact().is_none()) {
            Some(words) => {
                self.ended = true;
                Ok(Frame::data(Bytes::from_static(words.as_bytes())))
            }
            None => Err(Error::Timeout { what, limit }),
        }
    }
}

impl<B> Body for Timed<B>
where
    B: Body<Data = Bytes, Error = Error> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            // A stream that is always ready must not escape the total limit.
            if let (Some(Ok(_)), Some((at, limit))) = (&frame, this.limits.total)
                && !this.inner.is_end_stream()
                && Instant::now() >= at
            {
                return Poll::Ready(Some(this.cut("whole response", limit)));
            }
            this.waiting = None;
            if let (Some(counter), Some(Ok(frame))) = (&this.counter, &frame) {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                counter.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            return Poll::Ready(frame);
        }
        if this.waiting.is_none() {
            let Some((at, what, limit)) = this.limits.next(Instant::now()) else { return Poll::Pending };
            this.waiting = Some((Box::pin(tokio::time::sleep_until(at)), what, limit));
        }
        let Some((sleep, what, limit)) = &mut this.waiting else { return Poll::Pending };
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let (what, limit) = (*what, *limit);
        Poll::Ready(Some(this.cut(what, limit)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// Yields a frame each `every`, for ever.
    struct Drip {
        every: Duration,
        sleep: Pin<Box<Sleep>>,
    }

    impl Drip {
        fn new(every: Duration) -> Self {
            Self { every, sleep: Box::pin(tokio::time::sleep(every)) }
        }
    }

    impl Body for Drip {
        type Data = Bytes;
        type Error = Error;
        fn poll_frame(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            let this = self.get_mut();
            if this.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.sleep = Box::pin(tokio::time::sleep(this.every));
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b".")))))
        }
    }

    async fn frames_until_cut(every: Duration, limits: Limits) -> (usize, &'static str) {
        let mut body = Timed::new(Drip::new(every), limits);
        let mut n = 0;
        loop {
            match body.frame().await.unwrap() {
                Ok(_) => n += 1,
                Err(Error::Timeout { what, .. }) => return (n, what),
                Err(e) => panic!("{e}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn total_cuts_a_stream_that_never_pauses() {
        let d = Duration::from_secs(10);
        let limits = Limits {
            total: Some((Instant::now() + d, d)),
            idle: Some(Duration::from_secs(2)),
            last_words: None,
        };
        assert_eq!(frames_until_cut(Duration::from_millis(1001), limits).await, (9, "whole response"));
    }

    #[tokio::test]
    async fn bytes_are_counted() {
        let counter = Arc::new(AtomicU64::new(1));
        let body = crate::Body::from("four");
        Timed::new(body, Limits::default()).counted(Some(counter.clone())).collect().await.unwrap();
        assert_eq!(counter.load(Ordering::Relaxed), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_cuts_a_pause() {
        let limits = Limits { total: None, idle: Some(Duration::from_secs(2)), last_words: None };
        assert_eq!(frames_until_cut(Duration::from_secs(3), limits).await, (0, "next byte"));
    }

    #[tokio::test(start_paused = true)]
    async fn last_words_end_a_body_of_undeclared_length_properly() {
        let limits =
            Limits { total: None, idle: Some(Duration::from_secs(2)), last_words: Some("request timeout") };
        let body = Timed::new(Drip::new(Duration::from_secs(3)), limits);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "request timeout");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_owes_its_declared_length_breaks_off() {
        struct Owing(Drip);
        impl Body for Owing {
            type Data = Bytes;
            type Error = Error;
            fn poll_frame(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
                Pin::new(&mut self.get_mut().0).poll_frame(cx)
            }
            fn size_hint(&self) -> SizeHint {
                SizeHint::with_exact(100)
            }
        }
        let limits =
            Limits { total: None, idle: Some(Duration::from_secs(2)), last_words: Some("request timeout") };
        let body = Timed::new(Owing(Drip::new(Duration::from_secs(3))), limits);
        assert!(matches!(body.collect().await, Err(Error::Timeout { .. })));
    }
}
