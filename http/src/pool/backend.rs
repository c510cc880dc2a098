//! One backend: its connections, and sending one request to it.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use http::{Method, Request, Response, StatusCode};
use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::body::{Lease, Leased, PooledBody};
use super::dial::{Dial, Sender};
use super::{Inner, PoolConfig};
use crate::balance::Health;
use crate::body::RequestBody;
use crate::body::request::Trace;
use crate::connect::{Protocol, Target};
use crate::error::{Error, Retry, Source};

/// How often a request moves from one dead kept connection to the next before a new one is opened.
const STALE_LIMIT: u32 = 3;

/// One backend and its connections.
pub struct Backend {
    target: Target,
    config: PoolConfig,
    dial: Arc<dyn Dial>,
    pool: Weak<Inner>,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Arc<Shared>>>,
    /// HTTP/2 connections are opened one after the other, so that a burst does not open one for each request. Holds how the last
    /// attempt failed, and when.
    opening: tokio::sync::Mutex<Option<(Instant, Error)>>,
    in_flight: AtomicUsize,
    opened: AtomicU64,
    /// Whether there is anything in `health`: a good backend costs its requests no lock.
    ailing: AtomicBool,
    health: Mutex<Health>,
    made: Instant,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: AtomicUsize,
    last_used: Mutex<Instant>,
}

/// One stream of an HTTP/2 connection.
#[derive(Debug)]
pub(super) struct H2Stream(Arc<Shared>);

impl Drop for H2Stream {
    fn drop(&mut self) {
        *self.0.last_used.lock() = Instant::now();
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counts one request of a backend, from sending it to the end of its response.
#[derive(Debug)]
pub(super) struct InFlight(Option<Arc<Backend>>);

impl InFlight {
    fn new(backend: &Arc<Backend>) -> Self {
        backend.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(Some(backend.clone()))
    }

    /// Stops counting and yields the backend.
    pub(super) fn end(mut self) -> Arc<Backend> {
        let backend = self.0.take().expect("taken only here, and `end` consumes");
        backend.in_flight.fetch_sub(1, Ordering::AcqRel);
        backend
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(backend) = &self.0 {
            backend.in_flight.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Why a request was not answered, and the request itself when it can be sent elsewhere.
#[derive(Debug)]
pub struct SendFailed {
    /// The cause.
    pub error: Error,
    /// The request as it was, when `error.retry()` is safe and nothing of it was consumed.
    pub request: Option<Request<RequestBody>>,
}

/// Numbers about a backend's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Ever opened.
    pub opened: u64,
    /// Kept and unused (HTTP/1.1).
    pub idle: usize,
    /// Kept (HTTP/2).
    pub shared: usize,
}

impl Backend {
    pub(super) fn new(target: Target, config: PoolConfig, dial: Arc<dyn Dial>, pool: Weak<Inner>) -> Self {
        Self {
            target,
            config,
            dial,
            pool,
            idle: Mutex::default(),
            shared: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            in_flight: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            ailing: AtomicBool::new(false),
            health: Mutex::default(),
            made: Instant::now(),
        }
    }

    /// Where and how it is reached.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Requests under way: the load that balancing goes by.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// How much it failed of late ([`balance::Health`](crate::balance::Health)): not to be reached, broken off, or answered 5xx. 0 for a good one.
    pub fn penalty(&self) -> f64 {
        if !self.ailing.load(Ordering::Relaxed) {
            return 0.0;
        }
        let penalty = self.health.lock().penalty(self.made.elapsed());
        if penalty == 0.0 {
            self.ailing.store(false, Ordering::Relaxed);
        }
        penalty
    }

    fn record(&self, failed: bool) {
        if failed || self.ailing.load(Ordering::Relaxed) {
            self.health.lock().record(failed, self.made.elapsed());
            self.ailing.store(true, Ordering::Relaxed);
        }
    }

    /// Numbers for tests and metrics.
    pub fn connections(&self) -> Connections {
        Connections {
            opened: self.opened.load(Ordering::Relaxed),
            idle: self.idle.lock().len(),
            shared: self.shared.lock().len(),
        }
    }

    /// Opens a connection if none is kept, so that the next request finds one.
    pub async fn warm(self: &Arc<Self>) -> Result<(), Error> {
        match self.target.protocol {
            Protocol::Http1 => {
                let kept = self.idle.lock().iter().any(|i| !i.sender.is_closed());
                if !kept {
                    let sender = self.dial_h1().await?;
                    self.check_in(sender);
                }
            }
            Protocol::Http2 => drop(self.share().await?),
        }
        Ok(())
    }

    /// Sends one request and waits for the head of its response; the caller puts a time limit on it by dropping the
    /// future. The request must have the form its protocol wants (see [`crate::forward::Outgoing`]).
    pub async fn send(
        self: &Arc<Self>,
        request: Request<RequestBody>,
    ) -> Result<Response<PooledBody>, Box<SendFailed>> {
        let in_flight = InFlight::new(self);
        let sent = match self.target.protocol {
            Protocol::Http1 => self.send_h1(request, in_flight).await,
            Protocol::Http2 => self.send_h2(request, in_flight).await,
        };
        self.record(match &sent {
            Ok(response) => response.status().is_server_error(),
            Err(failed) => failed.error.source_side() == Source::Upstream,
        });
        sent
    }

    async fn send_h1(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
        in_flight: InFlight,
    ) -> Result<Response<PooledBody>, Box<SendFailed>> {
        let mut stale = 0;
        loop {
            let kept = if stale < STALE_LIMIT { self.check_out().await } else { None };
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => match self.dial_h1().await {
                    Ok(sender) => sender,
                    Err(error) => return Err(Box::new(SendFailed { error, request: Some(request) })),
                },
            };
            let spare = Spare::keep(&request, reused, Protocol::Http1);
            let trace = request.body().trace();
            on_continue(&mut request, &trace);
            match sender.try_send_request(request).await {
                Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return Ok(response.map(PooledBody::detached));
                }
                Ok(response) => {
                    let lease = Lease { connection: Leased::H1(sender, trace), in_flight };
                    return Ok(response.map(|body| PooledBody::new(body, lease)));
                }
                Err(mut failed) => {
                    let unsent = failed.take_message();
                    let (error, again) = self.judge(failed.into_error(), unsent, spare, trace);
                    match again {
                        Some(again) if reused => {
                            stale += 1;
                            request = again;
                        }
                        again => return Err(Box::new(SendFailed { error, request: again })),
                    }
                }
            }
        }
    }

    async fn send_h2(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
        in_flight: InFlight,
    ) -> Result<Response<PooledBody>, Box<SendFailed>> {
        let mut stale = 0;
        loop {
            let stream = match self.share().await {
                Ok(stream) => stream,
                Err(error) => return Err(Box::new(SendFailed { error, request: Some(request) })),
            };
            // Shared connections are as good as reused: any may go away with other requests' fault.
            let spare = Spare::keep(&request, true, Protocol::Http2);
            let trace = request.body().trace();
            on_continue(&mut request, &trace);
            match stream.0.sender.clone().try_send_request(request).await {
                Ok(response) => {
                    let lease = Lease { connection: Leased::H2 { _stream: stream }, in_flight };
                    return Ok(response.map(|body| PooledBody::new(body, lease)));
                }
                Err(mut failed) => {
                    let unsent = failed.take_message();
                    let (error, again) = self.judge(failed.into_error(), unsent, spare, trace);
                    match again {
                        Some(again) if stale < STALE_LIMIT => {
                            stale += 1;
                            request = again;
                        }
                        again => return Err(Box::new(SendFailed { error, request: again })),
                    }
                }
            }
        }
    }

    /// What a failed attempt means, and the request again if it may be repeated.
    fn judge(
        &self,
        cause: hyper::Error,
        unsent: Option<Request<RequestBody>>,
        spare: Spare,
        trace: Trace,
    ) -> (Error, Option<Request<RequestBody>>) {
        let target = self.target.address.to_string();
        if unsent.is_some() {
            return (Error::Stale { target, retry: Retry::Safe }, unsent);
        }
        if trace.slot().is_some_and(|slot| slot.failed()) {
            return (Error::ClientGone(cause), None);
        }
        let again = if refused(&cause) || (broke_off(&cause) && (spare.idempotent || trace.untouched())) {
            spare.again(trace)
        } else {
            None
        };
        let retry = if again.is_some() { Retry::Safe } else { Retry::Unsafe };
        (Error::Response { target, cause, retry }, again)
    }

    async fn dial_h1(&self) -> Result<http1::SendRequest<RequestBody>, Error> {
        match self.dial.dial(&self.target, &self.config).await? {
            Sender::H1(sender) => {
                self.opened.fetch_add(1, Ordering::Relaxed);
                Ok(sender)
            }
            Sender::H2(_) => Err(Error::BadRequest("the connector yielded HTTP/2 for an HTTP/1.1 backend")),
        }
    }

    /// A kept connection that is alive, the most recently used first.
    async fn check_out(&self) -> Option<http1::SendRequest<RequestBody>> {
        let oldest = Instant::now().checked_sub(self.config.idle_timeout);
        loop {
            let mut idle = self.idle.lock().pop()?;
            let expired = oldest.is_some_and(|oldest| idle.since < oldest);
            if expired || idle.sender.is_closed() {
                continue;
            }
            // Its last response has ended, so at most its task has to run once more.
            if idle.sender.is_ready() || poll_fn(|cx| idle.sender.poll_ready(cx)).await.is_ok() {
                return Some(idle.sender);
            }
        }
    }

    pub(super) fn check_in(&self, sender: http1::SendRequest<RequestBody>) {
        let mut idle = self.idle.lock();
        if idle.len() < self.config.max_idle {
            idle.push(Idle { sender, since: Instant::now() });
            drop(idle);
            if let Some(pool) = self.pool.upgrade() {
                pool.ensure_sweeper();
            }
        }
    }

    /// A stream on a shared connection, opening one if all are full.
    async fn share(self: &Arc<Self>) -> Result<H2Stream, Error> {
        if let Some(stream) = self.join(self.config.max_streams) {
            return Ok(stream);
        }
        let came = Instant::now();
        let mut failed = self.opening.lock().await;
        // Somebody may have opened one while this request waited.
        if let Some(stream) = self.join(self.config.max_streams) {
            return Ok(stream);
        }
        if self.shared.lock().len() >= self.config.max_h2_connections
            && let Some(stream) = self.join(usize::MAX)
        {
            return Ok(stream);
        }
        // Who waited for an attempt that failed fails with it: one by one they would wait as long again, each behind all others.
        if let Some((_, error)) = failed.as_ref().filter(|(ended, _)| *ended > came)
            && let Some(error) = error.of_connecting()
        {
            return Err(error);
        }
        let sender = match self.dial.dial(&self.target, &self.config).await {
            Ok(Sender::H2(sender)) => sender,
            Ok(Sender::H1(_)) => {
                return Err(Error::BadRequest("the connector yielded HTTP/1.1 for an HTTP/2 backend"));
            }
            Err(error) => {
                *failed = error.of_connecting().map(|error| (Instant::now(), error));
                return Err(error);
            }
        };
        self.opened.fetch_add(1, Ordering::Relaxed);
        let shared =
            Arc::new(Shared { sender, streams: AtomicUsize::new(1), last_used: Mutex::new(Instant::now()) });
        self.shared.lock().push(shared.clone());
        if let Some(pool) = self.pool.upgrade() {
            pool.ensure_sweeper();
        }
        Ok(H2Stream(shared))
    }

    /// The live connection with the fewest streams, if that is below `limit`.
    fn join(&self, limit: usize) -> Option<H2Stream> {
        let mut shared = self.shared.lock();
        shared.retain(|s| !s.sender.is_closed());
        let least = shared.iter().min_by_key(|s| s.streams.load(Ordering::Acquire))?;
        if least.streams.load(Ordering::Acquire) >= limit {
            return None;
        }
        least.streams.fetch_add(1, Ordering::AcqRel);
        Some(H2Stream(least.clone()))
    }

    /// Closes what is unused for too long or dead; returns what is left to watch.
    pub(super) fn sweep(&self, now: Instant) -> usize {
        let limit = self.config.idle_timeout;
        let mut idle = self.idle.lock();
        idle.retain(|i| !i.sender.is_closed() && now.duration_since(i.since) < limit);
        let kept = idle.len();
        drop(idle);
        let mut shared = self.shared.lock();
        shared.retain(|s| {
            !s.sender.is_closed()
                && (s.streams.load(Ordering::Acquire) > 0 || now.duration_since(*s.last_used.lock()) < limit)
        });
        kept + shared.len()
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend")
            .field("target", &self.target)
            .field("in_flight", &self.in_flight())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// A copy of a request's head, for sending it again. Made only where a connection may turn out dead.
struct Spare {
    head: Option<Box<http::request::Parts>>,
    idempotent: bool,
}

impl Spare {
    fn keep(request: &Request<RequestBody>, reused: bool, protocol: Protocol) -> Self {
        let idempotent = request.method().is_idempotent();
        // HTTP/2 may say of any request that it was not looked at; of HTTP/1.1 that is known only where the body was not touched.
        let maybe = idempotent || request.body().is_streaming() || protocol == Protocol::Http2;
        let worth = reused && maybe && request.method() != Method::CONNECT;
        let head = worth.then(|| {
            let mut copy = Request::new(());
            *copy.method_mut() = request.method().clone();
            *copy.uri_mut() = request.uri().clone();
            *copy.version_mut() = request.version();
            *copy.headers_mut() = request.headers().clone();
            Box::new(copy.into_parts().0)
        });
        Self { head, idempotent }
    }

    fn again(self, trace: Trace) -> Option<Request<RequestBody>> {
        Some(Request::from_parts(*self.head?, trace.recover()?))
    }
}

/// Lets a waiting body flow when the backend says so.
fn on_continue(request: &mut Request<RequestBody>, trace: &Trace) {
    if let Some(slot) = trace.slot().filter(|slot| !slot.is_open()).cloned() {
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                slot.open();
            }
        });
    }
}

/// HTTP/2 says that the stream was not processed (RFC 9113 8.7): refused, or above the last one of a GOAWAY.
fn refused(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(|e| {
        e.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (e.is_go_away() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR))
    })
}

/// The connection ended under the request, rather than the peer having answered nonsense.
fn broke_off(error: &hyper::Error) -> bool {
    error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || std::error::Error::source(error).is_some_and(|s| s.is::<std::io::Error>())
        || h2_error(error).is_some_and(|e| e.is_io() || e.is_go_away())
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}
