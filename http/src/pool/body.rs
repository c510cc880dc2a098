//! The body of a backend's response: at its end the connection goes back to the pool.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;

use super::backend::{Backend, H2Stream, InFlight};
use crate::body::RequestBody;
use crate::body::request::Trace;
use crate::error::Error;

/// The body of a backend's response.
///
/// Dropped before its end, an HTTP/1.1 connection is closed and an HTTP/2 stream reset: the backend notices at once.
#[derive(Debug)]
pub struct PooledBody {
    incoming: Incoming,
    lease: Option<Lease>,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) connection: Leased,
    pub(super) in_flight: InFlight,
}

#[derive(Debug)]
pub(super) enum Leased {
    H1(http1::SendRequest<RequestBody>, Trace),
    H2 { _stream: H2Stream },
}

impl PooledBody {
    pub(super) fn new(incoming: Incoming, lease: Lease) -> Self {
        let mut body = Self { incoming, lease: Some(lease) };
        body.release_at_end();
        body
    }

    /// Never returns the connection: it changed its protocol.
    pub(super) fn detached(incoming: Incoming) -> Self {
        Self { incoming, lease: None }
    }

    fn release_at_end(&mut self) {
        if self.incoming.is_end_stream() {
            self.release();
        }
    }

    fn release(&mut self) {
        let Some(Lease { connection, in_flight }) = self.lease.take() else { return };
        let backend: Arc<Backend> = in_flight.end();
        if let Leased::H1(sender, trace) = connection {
            // An answer that overtook its request leaves bytes of that request on the way: not to be used again.
            if trace.finished() && !sender.is_closed() {
                backend.check_in(sender);
            }
        }
    }
}

impl Body for PooledBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.release();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.release_at_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.lease = None;
                Poll::Ready(Some(Err(Error::Body(error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
