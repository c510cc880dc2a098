//! What was observed, second by second, and its averages over the stable and the panic window.
//!
//! Values are summed into buckets of one second: within a second the reports of several activators and the
//! sample of the pods add up to the load of the whole revision. Only seconds with a report are stored, so a
//! revision at zero costs nothing, and one series serves any number of windows.
//!
//! The averages follow Knative's collector:
//! - a window that is younger than its length is averaged over the seconds since its first report, so that the
//!   first request after a silence weighs as what it is;
//! - seconds after the last report are unknown, not zero: they leave the window;
//! - a silence as long as the window makes the next report the first one.

use std::collections::VecDeque;
use std::time::Duration;

/// How the buckets of a window become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// All seconds weigh the same.
    #[default]
    Linear,
    /// The newest second weighs most; the sum of the weights in a window is at least 0.9999.
    WeightedExponential,
}

/// The weight that must lie inside the window (Knative's `weightPrecision`).
const WEIGHT_INSIDE: f64 = 0.9999;
/// However long the window, the newest second weighs at least this much.
const MIN_DECAY: f64 = 0.2;

/// A series of one-second sums. Times are durations since the Unix epoch.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Ascending in time; at most two stable windows of them.
    entries: VecDeque<(u64, f64)>,
    keep: u64,
}

impl Series {
    /// A series that can answer for windows up to `longest`.
    pub fn new(longest: Duration) -> Self {
        Self { entries: VecDeque::new(), keep: seconds(longest) * 2 }
    }

    /// Changes the longest window that the series must answer for.
    pub fn resize(&mut self, longest: Duration) {
        self.keep = seconds(longest) * 2;
    }

    /// Adds `value` to the bucket of `now`. A report older than everything kept is dropped.
    pub fn record(&mut self, now: Duration, value: f64) {
        let second = now.as_secs();
        match self.entries.back_mut() {
            Some((last, sum)) if *last == second => *sum += value,
            Some((last, _)) if *last > second => {
                match self.entries.binary_search_by_key(&second, |entry| entry.0) {
                    Ok(at) => self.entries[at].1 += value,
                    Err(0) => {}
                    Err(at) => self.entries.insert(at, (second, value)),
                }
            }
            _ => self.entries.push_back((second, value)),
        }
        let newest = self.entries.back().map_or(second, |entry| entry.0);
        while self.entries.front().is_some_and(|entry| entry.0 + self.keep < newest) {
            self.entries.pop_front();
        }
    }

    /// Whether nothing was reported for longer than `window`.
    pub fn is_empty(&self, window: Duration, now: Duration) -> bool {
        self.entries.back().is_none_or(|entry| now.as_secs().saturating_sub(entry.0) > seconds(window))
    }

    /// Forgets everything when nothing was reported for longer than the kept time: the memory of an idle
    /// revision goes back.
    pub fn forget_old(&mut self, now: Duration) {
        if self.entries.back().is_some_and(|entry| now.as_secs().saturating_sub(entry.0) > self.keep) {
            self.entries = VecDeque::new();
        }
    }

    /// The average over `window` ending at `now`; 0 when nothing was reported for the whole window.
    pub fn average(&self, window: Duration, algorithm: Algorithm, now: Duration) -> f64 {
        match algorithm {
            Algorithm::Linear => self.linear(seconds(window), now.as_secs()),
            Algorithm::WeightedExponential => self.weighted(seconds(window), now.as_secs()),
        }
    }

    fn linear(&self, window: u64, now: u64) -> f64 {
        let Some(&(last, _)) = self.entries.back() else { return 0.0 };
        let now = now.max(last);
        let silent = now - last;
        if silent >= window {
            return 0.0;
        }
        let mut first = last;
        let mut sum = 0.0;
        for &(second, value) in self.entries.iter().rev() {
            if first - second >= window {
                // A silence as long as the window: what lies before belongs to another episode.
                break;
            }
            first = second;
            if second + window <= now {
                break;
            }
            sum += value;
        }
        let covered = (last - first + 1).min(window - silent);
        round_micro(sum / covered as f64)
    }

    fn weighted(&self, window: u64, now: u64) -> f64 {
        let Some(&(last, _)) = self.entries.back() else { return 0.0 };
        let now = now.max(last);
        if now - last > window {
            return 0.0;
        }
        let decay = (1.0 - (1.0 - WEIGHT_INSIDE).powf(1.0 / window as f64)).max(MIN_DECAY);
        self.entries
            .iter()
            .rev()
            .take_while(|entry| entry.0 + window > now)
            .map(|&(second, value)| value * decay * (1.0 - decay).powf((now - second) as f64))
            .sum()
    }
}

/// Whole seconds of a window, at least one.
fn seconds(window: Duration) -> u64 {
    (window.as_secs() + u64::from(window.subsec_nanos() > 0)).max(1)
}

/// Six digits are enough, and hide that a sum of floats depends on their order.
fn round_micro(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(1_000_000 + seconds)
    }

    fn filled(values: &[(u64, f64)]) -> Series {
        let mut series = Series::new(Duration::from_secs(60));
        for &(second, value) in values {
            series.record(s(second), value);
        }
        series
    }

    fn linear(series: &Series, window: u64, now: u64) -> f64 {
        series.average(Duration::from_secs(window), Algorithm::Linear, s(now))
    }

    #[test]
    fn reports_of_one_second_add_up() {
        let series = filled(&[(0, 1.0), (0, 2.0), (1, 3.0)]);
        assert_eq!(linear(&series, 60, 1), 3.0);
    }

    #[test]
    fn a_young_window_is_averaged_over_its_age() {
        let series = filled(&[(0, 10.0), (1, 10.0), (2, 10.0)]);
        assert_eq!(linear(&series, 60, 2), 10.0);
    }

    #[test]
    fn gaps_inside_the_window_are_zero() {
        let series = filled(&[(0, 10.0), (3, 10.0)]);
        assert_eq!(linear(&series, 60, 3), 5.0);
    }

    #[test]
    fn seconds_after_the_last_report_leave_the_window() {
        let mut series = Series::new(Duration::from_secs(10));
        for second in 0..10 {
            series.record(s(second), if second < 5 { 0.0 } else { 10.0 });
        }
        assert_eq!(linear(&series, 10, 9), 5.0);
        // Five seconds later the five zeros have left, and nothing was learnt since.
        assert_eq!(linear(&series, 10, 14), 10.0);
        assert_eq!(linear(&series, 10, 19), 0.0);
    }

    #[test]
    fn a_silence_as_long_as_the_window_starts_anew() {
        let mut series = Series::new(Duration::from_secs(6));
        for second in 0..6 {
            series.record(s(second), 0.0);
        }
        series.record(s(11), 6.0);
        assert_eq!(linear(&series, 6, 11), 6.0, "six seconds after the last report: a first report again");
        let mut series = Series::new(Duration::from_secs(6));
        for second in 0..6 {
            series.record(s(second), 0.0);
        }
        series.record(s(10), 6.0);
        assert_eq!(linear(&series, 6, 10), 1.0, "five seconds: still the same window");
    }

    #[test]
    fn one_series_serves_two_windows() {
        let mut series = Series::new(Duration::from_secs(60));
        for second in 0..60 {
            series.record(s(second), if second < 54 { 1.0 } else { 11.0 });
        }
        assert_eq!(linear(&series, 60, 59), 2.0);
        assert_eq!(linear(&series, 6, 59), 11.0);
    }

    #[test]
    fn weighted_favours_the_newest() {
        let window = Duration::from_secs(4);
        let rising = filled(&[(0, 5.0), (1, 5.0), (2, 10.0), (3, 10.0)]);
        let falling = filled(&[(0, 10.0), (1, 10.0), (2, 5.0), (3, 5.0)]);
        let rising = rising.average(window, Algorithm::WeightedExponential, s(3));
        let falling = falling.average(window, Algorithm::WeightedExponential, s(3));
        assert!(rising > 9.4 && rising < 10.0, "{rising}");
        assert!(falling > 5.0 && falling < 5.6, "{falling}");
    }

    #[test]
    fn weighted_decays_in_silence() {
        let series = filled(&[(0, 100.0)]);
        let window = Duration::from_secs(60);
        let at = |now| series.average(window, Algorithm::WeightedExponential, s(now));
        assert!((at(0) - 20.0).abs() < 1e-9);
        assert!((at(1) - 16.0).abs() < 1e-9);
        assert_eq!(at(61), 0.0);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut series = Series::new(Duration::from_secs(60));
        for second in 0..10_000 {
            series.record(s(second), 1.0);
        }
        assert!(series.entries.len() <= 121);
        series.forget_old(s(10_500));
        assert_eq!(series.entries.capacity(), 0);
    }

    #[test]
    fn a_late_report_lands_in_its_second() {
        let series = filled(&[(0, 1.0), (2, 1.0), (1, 4.0)]);
        assert_eq!(linear(&series, 60, 2), 2.0);
    }
}
