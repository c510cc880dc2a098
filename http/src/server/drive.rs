//! One connection from handshake to close.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::accept::Acceptor;
use super::crowd::Crowd;
use super::strict::Scanner;
use super::watch::{Judge, Reply, Verdict, Watch, Watched};
use super::{Handler, Peer, ServerConfig};
use crate::connect::Protocol;

pub(super) async fn connection<A, H>(
    tcp: TcpStream,
    remote: SocketAddr,
    acceptor: &A,
    handler: Arc<H>,
    config: ServerConfig,
    crowd: &Crowd,
    shutdown: CancellationToken,
) where
    A: Acceptor,
    H: Handler,
{
    let Ok(local) = tcp.local_addr() else { return };
    let shake = tokio::select! {
        biased;
        shake = tokio::time::timeout(config.header_timeout, acceptor.accept(tcp)) => shake,
        // Nothing was asked on it yet, so nothing is lost.
        () = shutdown.cancelled() => return,
    };
    let (io, shake) = match shake {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "handshake failed"),
        Err(_) => return tracing::debug!(%remote, "handshake took too long"),
    };
    let protocol = shake.protocol.unwrap_or(Protocol::Http1);
    let peer = Arc::new(Peer {
        remote: shake.client.unwrap_or(remote),
        local,
        secure: shake.secure,
        identity: shake.identity,
        server_name: shake.server_name,
        protocol,
    });
    // Whoever passes on the requests of others gives up what they give up.
    let hostile = protocol == Protocol::Http2 && peer.identity.is_none();
    let watch = Arc::new(Watch::default());
    crowd.enter(&watch);
    let scanner = (protocol == Protocol::Http1).then(|| Scanner::new(config.h1_buffer.max(8192)));
    let io = TokioIo::new(Watched::new(io, watch.clone(), scanner));
    let service = {
        let watch = watch.clone();
        service_fn(move |mut request: Request<Incoming>| {
            let busy = watch.begin();
            if request.method() == Method::CONNECT {
                request.extensions_mut().insert(Arc::new(watch.begin().quiet()));
            }
            let watch = watch.clone();
            let answer = handler.clone().handle(request, peer.clone());
            async move {
                let mut response = answer.await;
                // The server leaves; or the protocol stays, and what came since was not looked at.
                if (watch.is_opaque() || watch.is_leaving())
                    && response.status() != StatusCode::SWITCHING_PROTOCOLS
                {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| Reply::new(body, busy)))
            }
        })
    };
    let period = config.header_timeout / 2;
    let ticks = |limit: Duration| {
        u32::try_from((limit.as_millis() / period.as_millis().max(1)).max(1)).unwrap_or(u32::MAX)
    };
    let judge =
        Judge::new(ticks(config.idle_timeout), ticks(config.stall_timeout), protocol == Protocol::Http1);
    let ended = match protocol {
        Protocol::Http1 => {
            // Never `pipeline_flush`: with it hyper buffers a response without limit for a client that does not read.
            let connection = http1::Builder::new()
                .max_buf_size(config.h1_buffer.max(8192))
                .max_header_size(config.h1_buffer.max(8192))
                .max_headers(256)
                .serve_connection(io, service)
                .with_upgrades();
            let leave = Leave { shutdown, after: config.drain_idle };
            until_end(pin!(connection), &watch, judge, period, hostile, leave).await
        }
        Protocol::Http2 => {
            let (stream, whole) = config.h2_windows;
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(config.h2_streams)
                .enable_connect_protocol()
                // Rapid reset (CVE-2023-44487) and its kin: a client that opens streams only to end them, or that we have to end, is sent away.
                .max_pending_accept_reset_streams(20)
                .max_local_error_reset_streams(100)
                .max_header_list_size(config.h2_header_list)
                .initial_stream_window_size(stream)
                .initial_connection_window_size(whole)
                .max_send_buf_size(64 << 10)
                .keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(20))
                .serve_connection(io, service);
            let leave = Leave { shutdown, after: Duration::ZERO };
            until_end(pin!(connection), &watch, judge, period, hostile, leave).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "connection ended");
    }
}

/// What the two kinds of connection have in common.
trait Drain: Future<Output = hyper::Result<()>> {
    fn drain(self: Pin<&mut Self>);
}

impl<I, S, B> Drain for http1::UpgradeableConnection<I, S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B, E> Drain for http2::Connection<I, S, E>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// When a connection ends for its server's sake.
struct Leave {
    shutdown: CancellationToken,
    /// So long after it.
    after: Duration,
}

async fn until_end<C: Drain>(
    mut connection: Pin<&mut C>,
    watch: &Watch,
    mut judge: Judge,
    period: Duration,
    hostile: bool,
    leave: Leave,
) -> hyper::Result<()> {
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = pin!(leave.shutdown.cancelled());
    let (mut stopping, mut draining) = (false, false);
    let mut left = pin!(tokio::time::sleep(Duration::ZERO));
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = stop.as_mut(), if !stopping => {
                stopping = true;
                // Where it ends at once hyper says so in its last answer.
                if !leave.after.is_zero() {
                    watch.leave();
                }
                left.as_mut().reset(Instant::now() + leave.after);
            }
            () = left.as_mut(), if stopping && !draining => {
                draining = true;
                connection.as_mut().drain();
            }
            () = watch.evicted(), if !draining => {
                if hostile && watch.is_hostile() {
                    tracing::debug!("a client gives up nearly all of its requests");
                    return Ok(());
                }
                // A request may have come since.
                if watch.is_idle() {
                    draining = true;
                    connection.as_mut().drain();
                }
            }
            _ = ticks.tick() => match judge.tick(watch.look()) {
                Verdict::Keep => {}
                Verdict::Idle if !draining => {
                    draining = true;
                    connection.as_mut().drain();
                }
                Verdict::Idle | Verdict::Slow | Verdict::Stalled => return Ok(()),
            },
        }
    }
}
