//! Histograms with exponential buckets, beside the classic ones of the same name: what Prometheus calls native histograms.
//!
//! A bound lies at each eighth of a doubling (schema 3), so that a quantile read from them is off by no more than a twelfth, wherever it lies; the
//! classic buckets are right only near their bounds. Recording takes a logarithm and three additions.
//! <https://prometheus.io/docs/specs/native_histograms/>

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::PrometheusRecorder;
use parking_lot::RwLock;

/// Bounds for each doubling: 2 to the power of this.
pub(super) const SCHEMA: i32 = 3;
/// The first bucket ends here: what takes fifteen microseconds or less counts as nothing.
const FIRST: i32 = -16 << SCHEMA;
/// The last one ends here: what takes more than seventeen minutes is in it too.
const LAST: i32 = 10 << SCHEMA;
const BUCKETS: usize = (LAST - FIRST) as usize;

/// One histogram.
#[derive(Debug)]
pub(super) struct Native {
    zero: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    /// The sum, as the bits of a float.
    sum: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Snapshot {
    pub(super) zero: u64,
    /// By index, those that hold something: bucket `i` ends at 2 to the power of `i` eighths.
    pub(super) buckets: Vec<(i32, u64)>,
    pub(super) sum: f64,
}

impl Snapshot {
    /// What is at most this is in `zero`.
    pub(super) fn zero_threshold() -> f64 {
        f64::from(FIRST >> SCHEMA).exp2()
    }

    pub(super) fn count(&self) -> u64 {
        self.zero + self.buckets.iter().map(|(_, count)| count).sum::<u64>()
    }
}

impl Default for Native {
    fn default() -> Self {
        Self {
            zero: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
        }
    }
}

/// The bucket of a value: the smallest index whose bound is not below it. None for what counts as nothing.
fn bucket(value: f64) -> Option<i32> {
    if value.is_nan() || value <= Snapshot::zero_threshold() {
        return None;
    }
    let index = (value.log2() * f64::from(1 << SCHEMA)).ceil();
    // Saturates, at infinity too.
    Some((index as i32).clamp(FIRST + 1, LAST))
}

impl Native {
    fn snapshot(&self) -> Snapshot {
        let held = |(index, count): (i32, &AtomicU64)| {
            Some((index, count.load(Ordering::Relaxed))).filter(|(_, n)| *n > 0)
        };
        Snapshot {
            zero: self.zero.load(Ordering::Relaxed),
            buckets: (FIRST + 1..).zip(&self.buckets).filter_map(held).collect(),
            sum: f64::from_bits(self.sum.load(Ordering::Relaxed)),
        }
    }
}

impl HistogramFn for Native {
    fn record(&self, value: f64) {
        let counter = match bucket(value) {
            Some(index) => &self.buckets[(index - FIRST - 1) as usize],
            None => &self.zero,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// All native histograms of the process.
#[derive(Debug, Default)]
pub(super) struct Natives(RwLock<HashMap<Key, Arc<Native>>>);

impl Natives {
    fn get(&self, key: &Key) -> Arc<Native> {
        if let Some(known) = self.0.read().get(key) {
            return known.clone();
        }
        self.0.write().entry(key.clone()).or_default().clone()
    }

    /// All of them, to be found by [`id`].
    pub(super) fn snapshots(&self) -> HashMap<Id, Snapshot> {
        let known = self.0.read();
        let told = known.iter().map(|(key, native)| {
            let labels = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned()));
            (id(key.name(), labels.collect()), native.snapshot())
        });
        told.collect()
    }
}

/// What a histogram is found by.
pub(super) type Id = (String, Vec<(String, String)>);

/// A name and its labels, in whatever order they are.
pub(super) fn id(name: &str, mut labels: Vec<(String, String)>) -> Id {
    labels.sort_unstable();
    (name.to_owned(), labels)
}

/// A recorder that keeps each histogram in both forms.
pub(super) struct Both {
    pub(super) classic: PrometheusRecorder,
    pub(super) natives: Arc<Natives>,
}

struct Pair {
    classic: Histogram,
    native: Arc<Native>,
}

impl HistogramFn for Pair {
    fn record(&self, value: f64) {
        self.classic.record(value);
        self.native.record(value);
    }
}

impl Recorder for Both {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.classic.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.classic.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.classic.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.classic.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.classic.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        let classic = self.classic.register_histogram(key, metadata);
        Histogram::from_arc(Arc::new(Pair { classic, native: self.natives.get(key) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_bucket_that_ends_at_or_above_it() {
        assert_eq!(bucket(1.0), Some(0));
        assert_eq!(bucket(1.000_1), Some(1));
        assert_eq!(bucket(2.0), Some(8));
        assert_eq!(bucket(0.5), Some(-8));
        assert_eq!(bucket(0.001), Some(-79), "2^(-79/8) is 1.066 ms, 2^(-80/8) is 0.977");
        assert_eq!((bucket(0.0), bucket(-1.0), bucket(f64::NAN)), (None, None, None));
        assert_eq!((bucket(1e-5), bucket(1.6e-5)), (None, Some(FIRST + 1)));
        assert_eq!((bucket(1e9), bucket(f64::INFINITY)), (Some(LAST), Some(LAST)));
        let histogram = Native::default();
        for value in [1e-9, 0.75, 1.0, 1.0, 1e9] {
            histogram.record(value);
        }
        let held = histogram.snapshot();
        assert_eq!((held.zero, held.buckets.as_slice()), (1, [(-3, 1), (0, 2), (LAST, 1)].as_slice()));
        assert_eq!((held.count(), held.sum), (5, 1e-9 + 0.75 + 2.0 + 1e9));
    }

    #[test]
    fn found_by_name_and_labels_in_any_order() {
        let natives = Natives::default();
        let key = Key::from_parts("a", vec![metrics::Label::new("x", "1"), metrics::Label::new("y", "2")]);
        natives.get(&key).record(1.0);
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let all = natives.snapshots();
        assert_eq!(all[&id("a", pairs(&[("y", "2"), ("x", "1")]))].count(), 1);
        assert_eq!(all.get(&id("a", pairs(&[("x", "1")]))), None);
        assert_eq!(all.get(&id("b", pairs(&[("x", "1"), ("y", "2")]))), None);
    }
}
