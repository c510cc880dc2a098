//! Traces: W3C trace context on requests, and spans sent by OTLP, as `config-observability` says, live.
//!
//! Whoever serves a request asks [`Traces::begin`]; that answers nothing while tracing is off, and then a request costs one load. A trace that a
//! client began goes on with the client's word on whether it is sampled; a new one is sampled by the rate. Spans wait in a bounded queue
//! and are sent together; what does not fit, or cannot be sent, is counted and forgotten.

pub mod context;
mod encode;
mod export;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use ebb_api::config::Observability;
use http::HeaderMap;
use tokio::sync::mpsc;

pub use context::Context;
use export::Destination;

use ebb_http::otlp::{Endpoint, Protocol, Signal};

/// Spans that may wait.
const WAITING: usize = 8192;

/// A piece of work in a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The trace, the span itself, and its parent.
    pub context: Context,
    /// What was done.
    pub name: &'static str,
    /// Whether it answered a request of somebody else's, or is a part of such work.
    pub server: bool,
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// More about it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Whether it failed.
    pub failed: bool,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Traces {
    /// The rate, as bits; below zero while tracing is off.
    rate: AtomicU64,
    destination: Arc<ArcSwapOption<Destination>>,
    queue: mpsc::Sender<Span>,
    lost: metrics::Counter,
}

impl Traces {
    /// Tracing of a component, off until it is configured. Spans are sent by a task that ends with the last handle; must run in a tokio
    /// runtime.
    pub fn start(component: &'static str) -> Arc<Self> {
        let (queue, spans) = mpsc::channel(WAITING);
        let destination = Arc::new(ArcSwapOption::empty());
        let lost = metrics::counter!(format!("ebb_{component}_spans_lost_total"));
        tokio::spawn(export::run(component, spans, destination.clone(), lost.clone()));
        Arc::new(Self { rate: AtomicU64::new((-1.0_f64).to_bits()), destination, queue, lost })
    }

    /// Takes the settings over.
    ///
    /// # Errors
    /// When they cannot be used, with the key; what was before stays in force.
    pub fn configure(&self, config: &Observability) -> Result<(), String> {
        let rate = config.tracing_sampling_rate;
        if config.tracing_protocol == "stdout" {
            return self.set(Some(Destination::Stdout), rate);
        }
        let Some(protocol) = Protocol::of(&config.tracing_protocol) else { return self.set(None, -1.0) };
        let endpoint = Endpoint::parse(Signal::Traces, protocol, &config.tracing_endpoint)
            .map_err(|why| format!("tracing-endpoint: {why}"))?;
        self.set(Some(Destination::Collector(endpoint)), rate)
    }

    fn set(&self, destination: Option<Destination>, rate: f64) -> Result<(), String> {
        self.destination.store(destination.map(Arc::new));
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
        Ok(())
    }

    /// The context of a request that is being served: the client's trace, or a new one. None while tracing is off.
    pub fn begin(&self, headers: &HeaderMap) -> Option<Context> {
        let rate = f64::from_bits(self.rate.load(Ordering::Relaxed));
        if rate < 0.0 {
            return None;
        }
        Some(Context::of(headers, rate, &mut rand::random))
    }

    /// Takes a span to be sent, if its trace is sampled.
    pub fn record(&self, span: Span) {
        if span.context.sampled && self.queue.try_send(span).is_err() {
            self.lost.increment(1);
        }
    }
}
