//! Requests to the gateway, one at a time or many at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The code.
    pub status: u16,
    /// All headers.
    pub headers: http::HeaderMap,
    /// The body as text.
    pub body: String,
    /// From before the connection until the end of the body.
    pub took: Duration,
}

/// The runtime that all requests of this process run on.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime starts")
    })
}

/// One GET on a connection of its own.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    runtime().block_on(get_async(address, host, path, &[]))
}

/// One GET with headers.
pub fn get_with(address: SocketAddr, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    runtime().block_on(get_async(address, host, path, headers))
}

async fn get_async(address: SocketAddr, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let start = Instant::now();
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::get(path).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response: Response<_> = send.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(send);
    let _ = driver.await;
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
        took: start.elapsed(),
    })
}

/// How many answers had which status and body; a request without an answer counts under its error.
pub type Tally = BTreeMap<String, usize>;

/// `count` GETs, at most `at_once` under way at a time, counted by `key`.
pub fn many(
    address: SocketAddr,
    host: &str,
    path: &str,
    count: usize,
    at_once: usize,
    key: fn(&Answer) -> String,
) -> Tally {
    runtime().block_on(async {
        let mut tally = Tally::new();
        let mut flying = JoinSet::new();
        let mut sent = 0;
        while sent < count || !flying.is_empty() {
            while sent < count && flying.len() < at_once {
                let (host, path) = (host.to_string(), path.to_string());
                flying.spawn(async move { get_async(address, &host, &path, &[]).await });
                sent += 1;
            }
            if let Some(done) = flying.join_next().await {
                let key = match done {
                    Ok(Ok(answer)) => key(&answer),
                    Ok(Err(e)) => format!("{e:#}"),
                    Err(e) => format!("{e:#}"),
                };
                *tally.entry(key).or_default() += 1;
            }
        }
        tally
    })
}

/// The least time from one request of a lane to its next. Each is a connection of its own, whose port rests for a minute after it, and of
/// ports there are 28,000: four lanes without a pause use them up in an outage of minutes.
const PACE: Duration = Duration::from_millis(15);

/// Requests that go on, one after the other on each of some lanes, while something else happens.
pub struct Load {
    stop: tokio::sync::watch::Sender<bool>,
    lanes: JoinSet<Tally>,
    slowest: Arc<Mutex<Duration>>,
}

impl Load {
    /// Begins, with so many lanes.
    pub fn start(address: SocketAddr, host: &str, lanes: usize, key: fn(&Answer) -> String) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let slowest = Arc::new(Mutex::new(Duration::ZERO));
        let mut set = JoinSet::new();
        for _ in 0..lanes {
            let (host, stopped, slowest) = (host.to_string(), stopped.clone(), slowest.clone());
            set.spawn_on(
                async move {
                    let mut tally = Tally::new();
                    while !*stopped.borrow() {
                        let next = tokio::time::Instant::now() + PACE;
                        let key = match get_async(address, &host, "/", &[]).await {
                            Ok(answer) => {
                                let mut slowest = slowest.lock().unwrap_or_else(PoisonError::into_inner);
                                *slowest = answer.took.max(*slowest);
                                key(&answer)
                            }
                            Err(e) => {
                                // Nobody there: a client waits a moment before it tries again.
                                tokio::time::sleep(Duration::from_millis(10)).await;
                                format!("{e:#}")
                            }
                        };
                        *tally.entry(key).or_default() += 1;
                        tokio::time::sleep_until(next).await;
                    }
                    tally
                },
                runtime().handle(),
            );
        }
        Self { stop, lanes: set, slowest }
    }

    /// How long the slowest answer took until now.
    pub fn slowest(&self) -> Duration {
        *self.slowest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets what is under way end, and counts.
    pub fn stop(mut self) -> Tally {
        let _ = self.stop.send(true);
        runtime().block_on(async {
            let mut all = Tally::new();
            while let Some(lane) = self.lanes.join_next().await {
                for (key, count) in lane.unwrap_or_default() {
                    *all.entry(key).or_default() += count;
                }
            }
            all
        })
    }
}

/// Counts by status; a failure also by what it says.
pub fn by_status(answer: &Answer) -> String {
    if answer.status < 400 { answer.status.to_string() } else { by_body(answer) }
}

/// Counts by status and body.
pub fn by_body(answer: &Answer) -> String {
    format!("{} {}", answer.status, answer.body.trim())
}
