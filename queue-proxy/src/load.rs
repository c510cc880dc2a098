//! How busy the pod is: requests in it, weighted by time. Pure; the clock is an argument.
//!
//! What the activator forwarded is counted a second time apart, because the activator has reported it already.

use std::time::{Duration, Instant};

/// Counts requests and integrates their number over time.
#[derive(Debug)]
pub struct Load {
    all: Line,
    proxied: Line,
    changed: Instant,
    mark: Mark,
    last: Report,
}

/// One kind of request.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    running: u32,
    arrived: u64,
    /// Request-seconds since the start.
    area: f64,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    all: Line,
    proxied: Line,
}

/// The load over one period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Mean number of requests in the pod.
    pub concurrency: f64,
    /// Mean number of those that an activator forwarded.
    pub proxied_concurrency: f64,
    /// Arrivals per second.
    pub rate: f64,
    /// Arrivals per second from an activator.
    pub proxied_rate: f64,
}

/// A period shorter than this says little: whoever asks again so soon gets the report before.
pub const SHORTEST_PERIOD: Duration = Duration::from_millis(250);

impl Load {
    /// No load at `now`.
    pub fn new(now: Instant) -> Self {
        let line = Line::default();
        Self {
            all: line,
            proxied: line,
            changed: now,
            mark: Mark { at: now, all: line, proxied: line },
            last: Report::default(),
        }
    }

    fn advance(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.changed).as_secs_f64();
        self.all.area += seconds * f64::from(self.all.running);
        self.proxied.area += seconds * f64::from(self.proxied.running);
        self.changed = self.changed.max(now);
    }

    /// A request came.
    pub fn begin(&mut self, now: Instant, proxied: bool) {
        self.advance(now);
        self.all.running += 1;
        self.all.arrived += 1;
        if proxied {
            self.proxied.running += 1;
            self.proxied.arrived += 1;
        }
    }

    /// Its response has ended.
    pub fn end(&mut self, now: Instant, proxied: bool) {
        self.advance(now);
        self.all.running = self.all.running.saturating_sub(1);
        if proxied {
            self.proxied.running = self.proxied.running.saturating_sub(1);
        }
    }

    /// Requests in the pod now.
    pub fn running(&self) -> u32 {
        self.all.running
    }

    /// Requests that ever came.
    pub fn arrived(&self) -> u64 {
        self.all.arrived
    }

    /// The load since the last report. No moment is left out between two reports, none counted twice.
    pub fn report(&mut self, now: Instant) -> Report {
        let period = now.saturating_duration_since(self.mark.at);
        if period < SHORTEST_PERIOD {
            return self.last;
        }
        self.advance(now);
        let seconds = period.as_secs_f64();
        let mean = |now: Line, then: Line| (now.area - then.area) / seconds;
        let rate = |now: Line, then: Line| (now.arrived - then.arrived) as f64 / seconds;
        self.last = Report {
            concurrency: mean(self.all, self.mark.all),
            proxied_concurrency: mean(self.proxied, self.mark.proxied),
            rate: rate(self.all, self.mark.all),
            proxied_rate: rate(self.proxied, self.mark.proxied),
        };
        self.mark = Mark { at: now, all: self.all, proxied: self.proxied };
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn weighted_by_time_and_apart_by_origin() {
        let t0 = Instant::now();
        let at = |ms: u64| t0 + Duration::from_millis(ms);
        let mut load = Load::new(t0);
        load.begin(at(0), false);
        load.begin(at(500), true);
        load.end(at(750), false);
        let r = load.report(at(1000));
        // 0.75 s of the direct one, 0.5 s of the proxied one.
        assert!(close(r.concurrency, 1.25), "{r:?}");
        assert!(close(r.proxied_concurrency, 0.5), "{r:?}");
        assert!(close(r.rate, 2.0) && close(r.proxied_rate, 1.0), "{r:?}");

        let r = load.report(at(3000));
        assert!(close(r.concurrency, 1.0) && close(r.rate, 0.0), "what goes on is counted on: {r:?}");
        load.end(at(3000), true);
        assert_eq!(load.report(at(4000)), Report::default());
    }

    #[test]
    fn a_burst_between_reports_is_seen() {
        let t0 = Instant::now();
        let mut load = Load::new(t0);
        for _ in 0..1000 {
            load.begin(t0 + Duration::from_millis(10), false);
        }
        for _ in 0..1000 {
            load.end(t0 + Duration::from_millis(11), false);
        }
        let r = load.report(t0 + Duration::from_secs(1));
        assert!(close(r.concurrency, 1.0) && close(r.rate, 1000.0), "{r:?}");
    }

    #[test]
    fn two_readers_do_not_starve_each_other() {
        let t0 = Instant::now();
        let mut load = Load::new(t0);
        load.begin(t0, false);
        let first = load.report(t0 + Duration::from_secs(1));
        let second = load.report(t0 + Duration::from_millis(1001));
        assert_eq!(first, second, "not a period of one millisecond");
    }

    #[test]
    fn a_clock_that_steps_back_does_no_harm() {
        let t0 = Instant::now() + Duration::from_secs(10);
        let mut load = Load::new(t0);
        load.begin(t0, false);
        load.end(t0 - Duration::from_secs(1), false);
        assert_eq!(load.running(), 0);
    }
}
