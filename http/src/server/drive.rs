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
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::accept::Acceptor;
use super::crowd::Crowd;
use super::strict::Scanner;
use super::watch::{Judge, Reply, Rest, Shelf, Verdict, Watch, Watched};
use super::{Handler, Peer, ServerConfig};
use crate::connect::Protocol;
use crate::error::BoxError;

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
    let guard = Guard { watch, judge, period, hostile, shutdown };
    // Boxed, so that a connection at rest does not take the room of one that works.
    let ended = match protocol {
        Protocol::Http1 => http1(io, service, guard, config).await,
        Protocol::Http2 => Box::pin(http2(io, service, guard, config)).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "connection ended");
    }
}

/// Looks at a connection now and then, and ends it.
struct Guard {
    watch: Arc<Watch>,
    judge: Judge,
    /// Between two looks.
    period: Duration,
    /// Whether a client is sent away that gives up its requests.
    hostile: bool,
    shutdown: CancellationToken,
}

/// Serves HTTP/1.1. hyper keeps two buffers for a connection; one that has no request for a while is taken from it, and given back with its next.
async fn http1<Io, S, B>(mut io: Io, service: S, mut guard: Guard, config: ServerConfig) -> hyper::Result<()>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B, Error: Into<BoxError>> + Clone,
    B: http_body::Body<Error: Into<BoxError>> + 'static,
{
    let shelf = Shelf::new();
    let head = config.h1_buffer.max(8192);
    let mut ahead = None;
    loop {
        let stream = Watched::requests(io, ahead, guard.watch.clone(), Scanner::new(head), &shelf);
        // Never `pipeline_flush`: with it hyper buffers a response without limit for a client that does not read.
        let mut connection = Box::pin(
            http1::Builder::new()
                .max_buf_size(head)
                .max_header_size(head)
                .max_headers(256)
                .serve_connection(TokioIo::new(stream), service.clone())
                .with_upgrades(),
        );
        match guard.until_end(connection.as_mut(), config.drain_idle, true).await {
            End::Done(result) => return result,
            End::Cut => return Ok(()),
            End::Rest => {}
        }
        shelf.want();
        drop(connection);
        let Some(stream) = shelf.take() else { return Ok(()) };
        let mut rest = Rest::new(stream);
        ahead = match guard.until_end(Pin::new(&mut rest), config.drain_idle, false).await {
            End::Done(Some(byte)) => Some(byte),
            End::Done(None) | End::Cut | End::Rest => return Ok(()),
        };
        io = rest.into_inner();
    }
}

async fn http2<Io, S, B>(io: Io, service: S, mut guard: Guard, config: ServerConfig) -> hyper::Result<()>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B, Error: Into<BoxError>, Future: Send + 'static>,
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
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
        .serve_connection(TokioIo::new(Watched::new(io, guard.watch.clone())), service);
    match guard.until_end(pin!(connection), Duration::ZERO, false).await {
        End::Done(result) => result,
        End::Cut | End::Rest => Ok(()),
    }
}

/// What all states of a connection have in common.
trait Drain: Future {
    /// Ends it when what is under way is done.
    fn drain(self: Pin<&mut Self>);
}

impl<I, S, B> Drain for http1::UpgradeableConnection<I, S>
where
    S: HttpService<Incoming, ResBody = B, Error: Into<BoxError>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    B: http_body::Body<Error: Into<BoxError>> + 'static,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B, E> Drain for http2::Connection<I, S, E>
where
    S: HttpService<Incoming, ResBody = B, Error: Into<BoxError>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: http_body::Body<Error: Into<BoxError>> + 'static,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Drain for Rest<Io> {
    fn drain(self: Pin<&mut Self>) {
        self.get_mut().end();
    }
}

/// How a state of a connection ends.
enum End<T> {
    /// By itself.
    Done(T),
    /// The connection has outlived its limits.
    Cut,
    /// Nothing happens on it.
    Rest,
}

impl Guard {
    /// `drain_idle`: how long it stays open, unused, once the server shuts down. `may_rest`: whether it ends when nothing happens on it.
    async fn until_end<C: Drain>(
        &mut self,
        mut connection: Pin<&mut C>,
        drain_idle: Duration,
        may_rest: bool,
    ) -> End<C::Output> {
        let Self { watch, judge, period, hostile, shutdown } = self;
        let mut ticks = tokio::time::interval_at(Instant::now() + *period, *period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = pin!(shutdown.cancelled());
        let (mut stopping, mut draining) = (false, false);
        let mut left = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => return End::Done(ended),
                () = stop.as_mut(), if !stopping => {
                    stopping = true;
                    // Where it ends at once hyper says so in its last answer.
                    if !drain_idle.is_zero() {
                        watch.leave();
                    }
                    left.as_mut().reset(Instant::now() + drain_idle);
                }
                () = left.as_mut(), if stopping && !draining => {
                    draining = true;
                    connection.as_mut().drain();
                }
                () = watch.evicted(), if !draining => {
                    if *hostile && watch.is_hostile() {
                        tracing::debug!("a client gives up nearly all of its requests");
                        return End::Cut;
                    }
                    // A request may have come since.
                    if watch.is_idle() {
                        draining = true;
                        connection.as_mut().drain();
                    }
                }
                _ = ticks.tick() => match judge.tick(watch.look()) {
                    Verdict::Keep if judge.is_quiet() && !draining && may_rest && watch.is_at_rest() => return End::Rest,
                    Verdict::Keep => {}
                    Verdict::Idle if !draining => {
                        draining = true;
                        connection.as_mut().drain();
                    }
                    Verdict::Idle | Verdict::Slow | Verdict::Stalled => return End::Cut,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;
    use http_body_util::{BodyExt, Full};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    /// What the service holds; a connection at rest has one copy of it, one that is served two.
    type Sign = Arc<()>;

    fn start(
        buffer: usize,
        shutdown: CancellationToken,
    ) -> (DuplexStream, Sign, tokio::task::JoinHandle<()>) {
        let (client, server) = tokio::io::duplex(buffer);
        let sign = Sign::default();
        let held = sign.clone();
        let serving = tokio::spawn(async move {
            let watch = Arc::new(Watch::default());
            let service = {
                let watch = watch.clone();
                service_fn(move |request: Request<Incoming>| {
                    let (busy, held) = (watch.begin(), held.clone());
                    async move {
                        assert_eq!(request.method(), Method::POST, "a byte of it is lost");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        drop(held);
                        Ok::<_, Infallible>(Response::new(Reply::new(Full::<Bytes>::new(body), busy)))
                    }
                })
            };
            let (judge, period) = (Judge::new(30, 100, true), Duration::from_secs(10));
            let guard = Guard { watch, judge, period, hostile: false, shutdown };
            let _ = http1(server, service, guard, ServerConfig::default()).await;
        });
        (client, sign, serving)
    }

    /// Time stands still but for this.
    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    async fn answer(client: &mut DuplexStream, body: &str) {
        let mut read = String::new();
        while !read.ends_with(body) {
            let mut piece = [0; 1024];
            let n = client.read(&mut piece).await.unwrap();
            assert!(n > 0, "it ended after {read:?}");
            read.push_str(std::str::from_utf8(&piece[..n]).unwrap());
        }
        assert!(read.starts_with("HTTP/1.1 200 OK\r\n"), "{read}");
    }

    const RESTING: usize = 2;
    const SERVED: usize = 3;

    #[tokio::test(start_paused = true)]
    async fn an_unused_connection_rests_and_serves_on() {
        let (mut client, sign, serving) = start(1 << 16, CancellationToken::new());
        for body in ["one", "two", "three"] {
            let request =
                format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            client.write_all(request.as_bytes()).await.unwrap();
            answer(&mut client, body).await;
            pass(5).await;
            assert_eq!(Sign::strong_count(&sign), SERVED, "a moment between two requests is no rest");
            pass(20).await;
            assert_eq!(Sign::strong_count(&sign), RESTING);
        }
        // Piece by piece.
        for byte in b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\n\r\n!" {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        answer(&mut client, "!").await;
        // Its time to be unused counts the rest.
        pass(250).await;
        assert!(!serving.is_finished());
        pass(70).await;
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_has_not_read_yet_keeps_a_connection_from_its_rest() {
        let (mut client, sign, _serving) = start(64, CancellationToken::new());
        let body = "x".repeat(500);
        let request = format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 500\r\n\r\n{body}");
        client.write_all(request.as_bytes()).await.unwrap();
        pass(60).await;
        assert_eq!(Sign::strong_count(&sign), SERVED);
        answer(&mut client, &body).await;
        pass(30).await;
        assert_eq!(Sign::strong_count(&sign), RESTING);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_after_a_rest_is_not_waited_for() {
        let (mut client, sign, serving) = start(64, CancellationToken::new());
        pass(30).await;
        assert_eq!(Sign::strong_count(&sign), RESTING);
        client.write_all(b"G").await.unwrap();
        pass(40).await;
        assert!(serving.is_finished());
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_leaves_ends_what_rests() {
        let shutdown = CancellationToken::new();
        let (mut client, _, serving) = start(64, shutdown.clone());
        pass(30).await;
        shutdown.cancel();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        serving.await.unwrap();
    }
}
