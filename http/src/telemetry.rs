//! Rate, errors, duration, with a bounded number of label sets.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Histogram, Label};
use parking_lot::RwLock;

const CLASSES: [&str; 6] = ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Instruments for one label set. Registered once, so that recording looks nothing up.
#[derive(Debug, Clone)]
pub struct Red {
    requests: [Counter; 6],
    duration: Histogram,
}

impl Red {
    /// Registers `<prefix>_requests_total` (label `code_class`) and `<prefix>_request_duration_seconds`.
    pub fn new(prefix: &'static str, labels: &[(&'static str, String)]) -> Self {
        let labels: Vec<Label> = labels.iter().map(|(k, v)| Label::new(*k, v.clone())).collect();
        let requests = CLASSES.map(|class| {
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("code_class", class));
            metrics::counter!(format!("{prefix}_requests_total"), labels)
        });
        let duration = metrics::histogram!(format!("{prefix}_request_duration_seconds"), labels);
        Self { requests, duration }
    }

    /// Counts one answered request.
    pub fn record(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).min(CLASSES.len() - 1);
        self.requests[class].increment(1);
        self.duration.record(took.as_secs_f64());
    }
}

/// Instruments by key, at most `limit` of them; whatever comes beyond shares one set labelled `other`.
#[derive(Debug)]
pub struct Bounded<K, V> {
    known: RwLock<HashMap<K, Arc<V>>>,
    limit: usize,
    other: Arc<V>,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    /// `other` takes what does not fit.
    pub fn new(limit: usize, other: V) -> Self {
        Self { known: RwLock::default(), limit, other: Arc::new(other) }
    }

    /// The instruments of `key`, made by `make` the first time.
    pub fn get(&self, key: &K, make: impl FnOnce() -> V) -> Arc<V>
    where
        K: Clone,
    {
        if let Some(found) = self.known.read().get(key) {
            return found.clone();
        }
        let mut known = self.known.write();
        if let Some(found) = known.get(key) {
            return found.clone();
        }
        if known.len() >= self.limit {
            return self.other.clone();
        }
        let made = Arc::new(make());
        known.insert(key.clone(), made.clone());
        made
    }

    /// Forgets keys that are no longer served, making room.
    pub fn retain(&self, mut keep: impl FnMut(&K) -> bool) {
        self.known.write().retain(|k, _| keep(k));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cardinality_is_bounded() {
        let set = Bounded::new(2, "other");
        assert_eq!(*set.get(&1, || "one"), "one");
        assert_eq!(*set.get(&2, || "two"), "two");
        assert_eq!(*set.get(&3, || "three"), "other");
        assert_eq!(*set.get(&1, || "again"), "one");
        set.retain(|k| *k != 1);
        assert_eq!(*set.get(&3, || "three"), "three");
    }
}
