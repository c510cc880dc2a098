//! One connection from handshake to close.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::accept::Acceptor;
use super::watch::{Judge, Verdict, Watch, Watched};
use super::{Handler, Peer, ServerConfig};
use crate::body::Guarded;
use crate::connect::Protocol;

pub(super) async fn connection<A, H>(
    tcp: TcpStream,
    remote: SocketAddr,
    acceptor: &A,
    handler: Arc<H>,
    config: ServerConfig,
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
        remote,
        local,
        secure: shake.secure,
        identity: shake.identity,
        server_name: shake.server_name,
        protocol,
    });
    let watch = Arc::new(Watch::default());
    let io = TokioIo::new(Watched { io, watch: watch.clone() });
    let service = {
        let watch = watch.clone();
        service_fn(move |request| {
            let busy = watch.begin();
            let answer = handler.clone().handle(request, peer.clone());
            async move {
                let response = answer.await;
                Ok::<_, Infallible>(response.map(|body| Guarded::new(body, busy)))
            }
        })
    };
    let period = config.header_timeout / 2;
    let ticks = (config.idle_timeout.as_millis() / period.as_millis().max(1)).max(1);
    let judge = Judge::new(u32::try_from(ticks).unwrap_or(u32::MAX), protocol == Protocol::Http1);
    let ended = match protocol {
        Protocol::Http1 => {
            // Never `pipeline_flush`: with it hyper buffers a response without limit for a client that does not read.
            let connection = http1::Builder::new()
                .max_buf_size(config.h1_buffer.max(8192))
                .max_headers(256)
                .serve_connection(io, service)
                .with_upgrades();
            until_end(pin!(connection), &watch, judge, period, shutdown).await
        }
        Protocol::Http2 => {
            let (stream, whole) = config.h2_windows;
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(config.h2_streams)
                .max_header_list_size(config.h2_header_list)
                .initial_stream_window_size(stream)
                .initial_connection_window_size(whole)
                .max_send_buf_size(64 << 10)
                .keep_alive_interval(std::time::Duration::from_secs(30))
                .keep_alive_timeout(std::time::Duration::from_secs(20))
                .serve_connection(io, service);
            until_end(pin!(connection), &watch, judge, period, shutdown).await
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

async fn until_end<C: Drain>(
    mut connection: Pin<&mut C>,
    watch: &Watch,
    mut judge: Judge,
    period: std::time::Duration,
    shutdown: CancellationToken,
) -> hyper::Result<()> {
    let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = pin!(shutdown.cancelled());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = stop.as_mut(), if !draining => {
                draining = true;
                connection.as_mut().drain();
            }
            _ = ticks.tick() => match judge.tick(watch.look()) {
                Verdict::Keep => {}
                Verdict::Idle if !draining => {
                    draining = true;
                    connection.as_mut().drain();
                }
                Verdict::Idle | Verdict::Slow => return Ok(()),
            },
        }
    }
}
