//! The load of one revision at this activator, and when it must be told.
//!
//! The first request after silence is told at once; so is every doubling of what waits, so that a storm on a cold
//! revision is known in full within milliseconds with a logarithmic number of reports. Once a second the time-weighted
//! mean is told, less what was told early. After a second without anything the meter is silent again.

use std::time::Duration;

/// A load to be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Mean requests in flight.
    pub concurrency: f64,
    /// Requests per second.
    pub rps: f64,
}

/// See the module's documentation. Times are of any monotonic clock.
#[derive(Debug, Default)]
pub struct Meter {
    active: bool,
    since: Duration,
    last: Duration,
    /// Integral of `current` since `since`, in request-seconds.
    area: f64,
    current: u32,
    arrived: u32,
    told: u32,
    told_waiting: u32,
}

impl Meter {
    /// A request came; `waiting` counts those that have no place, this one included if it has none. Answers with what
    /// must be told at once.
    pub fn arrive(&mut self, waiting: u32, now: Duration) -> Option<Report> {
        if !self.active {
            *self = Self { active: true, since: now, last: now, current: self.current, ..Self::default() };
        }
        self.advance(now);
        self.current += 1;
        self.arrived += 1;
        let due = if self.told_waiting == 0 && self.told == 0 && self.arrived == 1 {
            1
        } else if waiting >= 2 * self.told_waiting.max(1) {
            waiting - self.told_waiting
        } else {
            0
        };
        if due == 0 {
            return None;
        }
        self.told += due;
        self.told_waiting = waiting.max(1);
        Some(Report { concurrency: f64::from(due), rps: f64::from(due) })
    }

    /// A request is done.
    pub fn leave(&mut self, now: Duration) {
        self.advance(now);
        self.current = self.current.saturating_sub(1);
    }

    /// Whether [`Meter::cut`] is to be called each second.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// The second's report; `waiting` as in [`Meter::arrive`]. None when there is nothing to tell any more.
    pub fn cut(&mut self, waiting: u32, now: Duration) -> Option<Report> {
        if !self.active {
            return None;
        }
        self.advance(now);
        let elapsed = now.saturating_sub(self.since).as_secs_f64().max(1e-3);
        let silent = self.current == 0 && self.arrived == 0 && self.area == 0.0;
        let told = f64::from(self.told);
        let report = Report {
            concurrency: (self.area / elapsed - told).max(0.0),
            rps: (f64::from(self.arrived) / elapsed - told).max(0.0),
        };
        self.since = now;
        self.area = 0.0;
        self.arrived = 0;
        self.told = 0;
        // From here on only a further doubling is news.
        self.told_waiting = waiting.max(1);
        self.active = !silent;
        Some(report)
    }

    fn advance(&mut self, now: Duration) {
        self.area += f64::from(self.current) * now.saturating_sub(self.last).as_secs_f64();
        self.last = self.last.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_first_is_told_at_once_then_once_a_second() {
        let mut meter = Meter::default();
        assert_eq!(meter.arrive(1, ms(0)), Some(Report { concurrency: 1.0, rps: 1.0 }));
        assert_eq!(meter.cut(1, ms(1000)), Some(Report { concurrency: 0.0, rps: 0.0 }), "already told");
        assert_eq!(meter.cut(1, ms(2000)), Some(Report { concurrency: 1.0, rps: 0.0 }));
        meter.leave(ms(2500));
        assert_eq!(meter.cut(0, ms(3000)), Some(Report { concurrency: 0.5, rps: 0.0 }));
        assert_eq!(
            meter.cut(0, ms(4000)),
            Some(Report { concurrency: 0.0, rps: 0.0 }),
            "the last word is zero"
        );
        assert_eq!(meter.cut(0, ms(5000)), None);
        assert!(!meter.is_active());
        assert!(meter.arrive(0, ms(9000)).is_some(), "and then it is the first again");
    }

    #[test]
    fn a_storm_is_told_by_doublings() {
        let mut meter = Meter::default();
        let told: Vec<f64> =
            (1..=1000).filter_map(|n| meter.arrive(n, ms(0))).map(|report| report.concurrency).collect();
        assert!(told.len() <= 11, "{told:?}");
        assert!(told.iter().sum::<f64>() >= 500.0, "{told:?}");
        let rest = meter.cut(1000, ms(1000)).expect("active").concurrency;
        assert!((told.iter().sum::<f64>() + rest - 1000.0).abs() < 1e-6);
    }

    #[test]
    fn load_that_does_not_wait_is_not_told_early() {
        let mut meter = Meter::default();
        let told = (0..100).filter_map(|_| meter.arrive(0, ms(0))).count();
        assert_eq!(told, 1);
        assert_eq!(meter.cut(0, ms(1000)).expect("active").concurrency, 99.0);
    }

    #[test]
    fn the_mean_is_weighted_by_time() {
        let mut meter = Meter::default();
        meter.arrive(0, ms(0));
        meter.cut(0, ms(1000));
        for n in 0..9 {
            meter.arrive(0, ms(1000 + n));
        }
        for _ in 0..9 {
            meter.leave(ms(1500));
        }
        let report = meter.cut(0, ms(2000)).expect("active");
        assert!((report.concurrency - 5.5).abs() < 0.1, "{report:?}");
        assert_eq!(report.rps, 9.0);
    }
}
