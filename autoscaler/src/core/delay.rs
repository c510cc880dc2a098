//! The largest of the values of the last while: what the scale-down delay holds on to.

use std::collections::VecDeque;
use std::time::Duration;

/// A maximum over a sliding window of time. Values that can never again be the maximum are dropped at once, so a
/// steady wish costs one entry however long the window.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WindowedMax {
    /// Ascending in time, descending in value.
    entries: VecDeque<(Duration, u32)>,
}

impl WindowedMax {
    /// Adds `value` at `now` and forgets what is older than `window`.
    pub fn record(&mut self, now: Duration, value: u32, window: Duration) {
        while self.entries.back().is_some_and(|entry| entry.1 <= value) {
            self.entries.pop_back();
        }
        self.entries.push_back((now, value));
        while self.entries.front().is_some_and(|entry| entry.0 + window < now) {
            self.entries.pop_front();
        }
    }

    /// The maximum as of the last `record`.
    pub fn current(&self) -> Option<u32> {
        self.entries.front().map(|entry| entry.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_largest_for_the_window() {
        let window = Duration::from_secs(10);
        let mut max = WindowedMax::default();
        let at = Duration::from_secs;
        max.record(at(0), 5, window);
        max.record(at(2), 3, window);
        assert_eq!(max.current(), Some(5));
        max.record(at(4), 4, window);
        max.record(at(10), 1, window);
        assert_eq!(max.current(), Some(5));
        max.record(at(11), 1, window);
        assert_eq!(max.current(), Some(4));
        max.record(at(15), 1, window);
        assert_eq!(max.current(), Some(1));
        assert_eq!(max.entries.len(), 1, "equal values do not pile up");
    }

    #[test]
    fn growth_counts_at_once() {
        let mut max = WindowedMax::default();
        max.record(Duration::from_secs(1), 1, Duration::from_secs(60));
        max.record(Duration::from_secs(2), 9, Duration::from_secs(60));
        assert_eq!(max.current(), Some(9));
    }
}
