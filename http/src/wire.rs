//! JSON messages between components. Unknown fields are ignored, so that neighbouring versions understand each other.

use serde::{Deserialize, Serialize};

/// The path of [`Stat`] on a queue-proxy.
pub const STATS_PATH: &str = "/stats";
/// The path where the autoscaler takes a [`StatBatch`].
pub const STAT_BATCH_PATH: &str = "/v1/stats";
/// The path where the activator takes an [`Announcement`].
pub const ANNOUNCE_PATH: &str = "/v1/announce";
/// The authority of an announcement.
pub const ANNOUNCE_AUTHORITY: &str = "activator.ebb-system";

/// The load of one pod, or of one revision at one activator, over the time since the last report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stat {
    /// Namespace of the revision.
    pub namespace: String,
    /// The revision's name.
    pub revision: String,
    /// Who reports: a pod's name.
    pub pod: String,
    /// Time-weighted mean of the requests in the pod, running and queued.
    pub average_concurrent_requests: f64,
    /// The part of it that an activator forwarded and so already reported.
    pub average_proxied_concurrent_requests: f64,
    /// Requests that arrived since the last report, per second.
    pub request_count: f64,
    /// The part of it that an activator forwarded.
    pub proxied_request_count: f64,
    /// Seconds since the reporter started.
    pub process_uptime_s: f64,
    /// When the report was made, in microseconds since the Unix epoch.
    pub timestamp_us: u64,
}

/// What an activator sends to the autoscaler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatBatch {
    /// One entry for each revision with traffic.
    pub stats: Vec<Stat>,
}

/// The autoscaler's answer to a batch that woke a revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PokeResponse {
    /// When the decision was made, in microseconds since the Unix epoch.
    pub decided_at_us: u64,
    /// Wanted replicas, when this autoscaler owns the revision.
    pub desired: Option<i32>,
    /// Why, for humans.
    pub reason: String,
}

/// A queue-proxy tells an activator that its app takes requests.
///
/// Accepted only when the sender's mesh identity is of `namespace` and its address equals `address`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// Namespace of the revision.
    pub namespace: String,
    /// The revision's name.
    pub revision: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's address, without a port.
    pub address: String,
    /// The port to send requests to, mutual TLS.
    pub port: u16,
    /// When the queue-proxy started, in microseconds since the Unix epoch.
    pub started_at_us: u64,
    /// When it had its certificate.
    pub certified_at_us: u64,
    /// When the app answered for the first time.
    pub listening_at_us: u64,
}

/// Microseconds since the Unix epoch, as every `_us` field counts.
pub fn now_us() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}
