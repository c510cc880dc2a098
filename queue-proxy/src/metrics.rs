//! The sidecar's own figures, as Prometheus text. A handful of atomics: a general recorder would cost more memory than the
//! rest of the sidecar.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::state::State;

/// Upper bounds of the latency buckets, in microseconds.
const BUCKETS: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 60_000_000,
];

/// Counters of one sidecar.
#[derive(Debug)]
pub struct Metrics {
    classes: [AtomicU64; 6],
    buckets: [AtomicU64; BUCKETS.len() + 1],
    total_us: AtomicU64,
    refused_plaintext: AtomicU64,
    started: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            classes: Default::default(),
            buckets: Default::default(),
            total_us: AtomicU64::new(0),
            refused_plaintext: AtomicU64::new(0),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        }
    }
}

impl Metrics {
    /// Counts one request that was answered with `status` after `took`.
    pub fn record(&self, status: u16, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.classes[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
        self.buckets[BUCKETS.partition_point(|b| *b < us)].fetch_add(1, Ordering::Relaxed);
        self.total_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Counts one refusal under STRICT; returns how many there were before.
    pub fn refuse(&self) -> u64 {
        self.refused_plaintext.fetch_add(1, Ordering::Relaxed)
    }

    /// The page.
    pub fn render(&self, config: &Config, state: &State) -> String {
        let labels = format!(
            "namespace_name=\"{}\",service_name=\"{}\",configuration_name=\"{}\",revision_name=\"{}\"",
            config.namespace, config.service, config.configuration, config.revision
        );
        let mut out = String::with_capacity(4096);
        let mut metric = |name: &str, kind: &str, help: &str, lines: &dyn Fn(&mut String)| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            lines(&mut out);
        };
        metric("revision_request_count", "counter", "Requests answered.", &|out| {
            for (class, count) in self.classes.iter().enumerate().skip(1) {
                let count = count.load(Ordering::Relaxed);
                let _ = writeln!(
                    out,
                    "revision_request_count{{{labels},response_code_class=\"{class}xx\"}} {count}"
                );
            }
        });
        metric(
            "revision_request_latencies",
            "histogram",
            "Milliseconds until the end of the response.",
            &|out| {
                let mut sum = 0;
                for (i, bucket) in self.buckets.iter().enumerate() {
                    sum += bucket.load(Ordering::Relaxed);
                    let le = BUCKETS.get(i).map_or_else(|| "+Inf".into(), |b| (*b as f64 / 1e3).to_string());
                    let _ = writeln!(out, "revision_request_latencies_bucket{{{labels},le=\"{le}\"}} {sum}");
                }
                let total = self.total_us.load(Ordering::Relaxed) as f64 / 1e3;
                let _ = writeln!(out, "revision_request_latencies_sum{{{labels}}} {total}");
                let _ = writeln!(out, "revision_request_latencies_count{{{labels}}} {sum}");
            },
        );
        for (name, kind, help, value) in [
            (
                "revision_queue_depth",
                "gauge",
                "Requests waiting for a place in the app.",
                u64::from(state.breaker.waiting()),
            ),
            ("revision_requests_running", "gauge", "Requests in the pod.", u64::from(state.running())),
            ("revision_tunnels_open", "gauge", "Upgraded connections.", state.tunnels.open() as u64),
            (
                "revision_plaintext_refused_total",
                "counter",
                "Requests refused under STRICT.",
                self.refused_plaintext.load(Ordering::Relaxed),
            ),
        ] {
            metric(name, kind, help, &|out| {
                let _ = writeln!(out, "{name}{{{labels}}} {value}");
            });
        }
        metric("process_start_time_seconds", "gauge", "Start, in seconds since the Unix epoch.", &|out| {
            let _ = writeln!(out, "process_start_time_seconds {}", self.started);
        });
        out
    }
}
