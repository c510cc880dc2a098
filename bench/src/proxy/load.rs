//! Load on one address: lanes that send one request after the other, as fast as they are answered or by a timetable.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Lanes that share an HTTP/2 connection.
const STREAMS: usize = 16;

/// What is asked, and how.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) h2: bool,
    pub(crate) lanes: usize,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) answers: u64,
    pub(crate) failed: u64,
    pub(crate) per_second: f64,
    latency: Histogram<u64>,
}

impl Outcome {
    /// p50, p99, p99.9 and the largest, in microseconds.
    pub(crate) fn latency(&self) -> Value {
        let at = |q: f64| self.latency.value_at_quantile(q);
        json!({"p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999), "max": self.latency.max()})
    }
}

/// One connection of HTTP/1.1.
pub(crate) struct Client(http1::SendRequest<Empty<Bytes>>);

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// The status of `/` of a host.
    pub(crate) async fn status(&mut self, host: &str) -> Result<u16> {
        self.0.ready().await?;
        let request = Request::get("/").header(http::header::HOST, host).body(Empty::new())?;
        let answer = self.0.send_request(request).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok(status)
    }
}

enum Sender {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
}

impl Sender {
    async fn once(&mut self, host: &str) -> Result<()> {
        let request = Request::get(format!("http://{host}/"));
        let answer = match self {
            Self::H1(sender) => {
                sender.ready().await?;
                sender
                    .send_request(Request::get("/").header(http::header::HOST, host).body(Empty::new())?)
                    .await?
            }
            Self::H2(sender) => sender.send_request(request.body(Empty::new())?).await?,
        };
        ensure!(answer.status() == 200, "status {}", answer.status());
        answer.into_body().collect().await?;
        Ok(())
    }
}

async fn connect(ask: &Ask) -> Result<Vec<Sender>> {
    let mut senders = Vec::new();
    let connections = if ask.h2 { ask.lanes.div_ceil(STREAMS) } else { ask.lanes };
    for at in 0..connections {
        let stream = TcpStream::connect(ask.address)
            .await
            .with_context(|| format!("connecting to {}", ask.address))?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        if ask.h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            let lanes = STREAMS.min(ask.lanes - at * STREAMS);
            senders.extend((0..lanes).map(|_| Sender::H2(sender.clone())));
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            senders.push(Sender::H1(sender));
        }
    }
    Ok(senders)
}

/// Sends for `span`. With `rate`, requests per second over all lanes, by a timetable: a request that could not be sent when it was due, as the
/// one before it had no answer yet, is counted from then, so that a stall is seen by all requests that it held up (Gil Tene, "How NOT to
/// Measure Latency": coordinated omission).
pub(crate) async fn run(ask: &Ask, span: Duration, rate: Option<f64>) -> Result<Outcome> {
    let senders = connect(ask).await?;
    let begin = Instant::now();
    let step = rate.map(|rate| Duration::from_secs_f64(ask.lanes as f64 / rate));
    let mut lanes = JoinSet::new();
    for (at, mut sender) in senders.into_iter().enumerate() {
        let host = ask.host.clone();
        let offset = step.map_or(Duration::ZERO, |step| step.mul_f64(at as f64 / ask.lanes as f64));
        lanes.spawn(async move {
            let mut latency = histogram();
            let (mut answers, mut failed, mut why) = (0_u64, 0_u64, None);
            let mut due = begin + offset;
            while begin.elapsed() < span {
                // Only what the other side held up counts as late, not the timer of this one, which has milliseconds.
                let mut from = due;
                if step.is_none() || Instant::now() < due {
                    if step.is_some() {
                        tokio::time::sleep_until(due.into()).await;
                    }
                    from = Instant::now();
                }
                match sender.once(&host).await {
                    Ok(()) => answers += 1,
                    Err(e) => {
                        failed += 1;
                        why = Some(e);
                        // A broken connection stays broken: the rest of this lane would only spin.
                        break;
                    }
                }
                latency.saturating_record(from.elapsed().as_micros().min(u128::from(u64::MAX)) as u64);
                if let Some(step) = step {
                    due += step;
                }
            }
            (answers, failed, latency, why)
        });
    }
    let mut all = Outcome { answers: 0, failed: 0, per_second: 0.0, latency: histogram() };
    let mut why = None;
    while let Some(lane) = lanes.join_next().await {
        let (answers, failed, latency, error) = lane?;
        why = why.or(error);
        all.answers += answers;
        all.failed += failed;
        all.latency.add(&latency)?;
    }
    if all.answers == 0 {
        let why = why.unwrap_or_else(|| anyhow!("nothing was sent"));
        return Err(why.context(format!("no answer from {} for {}", ask.address, ask.host)));
    }
    all.per_second = all.answers as f64 / begin.elapsed().as_secs_f64();
    Ok(all)
}

/// Connections that each had one answer and are idle now.
pub(crate) async fn hold(ask: &Ask) -> Result<Vec<impl Sized + use<>>> {
    let mut senders = connect(ask).await?;
    for sender in &mut senders {
        sender.once(&ask.host).await?;
    }
    Ok(senders)
}

fn histogram() -> Histogram<u64> {
    // From one microsecond to one minute, to three digits: a literal that is always valid.
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap_or_else(|_| unreachable!())
}
