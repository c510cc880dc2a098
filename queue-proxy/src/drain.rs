//! When may the sidecar leave? Pure; the clock is an argument.
//!
//! After SIGTERM, requests keep coming until everybody upstream knows. So it serves on, fails its probes, and leaves when
//! nothing runs and nothing has come for a quiet period, upgraded connections included; at the end of the grace period in
//! any case.

use std::time::{Duration, Instant};

/// What is seen at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Requests and upgraded connections that are open.
    pub open: usize,
    /// The latter alone.
    pub tunnels: usize,
    /// When the last request came or ended; before the drain counts as its beginning.
    pub last_activity: Instant,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look again then.
    Wait(Instant),
    /// Quiet: leave.
    Leave,
    /// Grace is over: cut what is open, and leave.
    Cut,
}

/// Decides for a drain that began at `began`.
pub fn next(seen: Seen, began: Instant, now: Instant, quiet: Duration, grace: Duration) -> Next {
    let end = began + grace;
    if now >= end {
        return if seen.open == 0 { Next::Leave } else { Next::Cut };
    }
    let quiet_at = seen.last_activity.max(began) + quiet;
    if seen.open == 0 && now >= quiet_at {
        return Next::Leave;
    }
    // With requests open, their end is an event of its own that is looked for at short intervals.
    let look = if seen.open == 0 {
        quiet_at
    } else {
        now + quiet.clamp(Duration::from_millis(10), Duration::from_millis(250))
    };
    Next::Wait(look.min(end))
}

/// Whether only upgraded connections are left. They end when the app ends them, and that is for the app to be told.
pub fn only_tunnels(seen: Seen, began: Instant, now: Instant, quiet: Duration) -> bool {
    seen.tunnels > 0 && seen.open <= seen.tunnels && now >= seen.last_activity.max(began) + quiet
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(3);
    const GRACE: Duration = Duration::from_secs(30);

    #[test]
    fn quiet_means_nothing_open_and_nothing_new() {
        let t0 = Instant::now();
        let at = |s: u64| t0 + Duration::from_secs(s);
        let decide = |open, last, now| {
            next(Seen { open, tunnels: 0, last_activity: at(last) }, at(100), at(now), QUIET, GRACE)
        };
        assert_eq!(
            decide(0, 0, 100),
            Next::Wait(at(103)),
            "an idle pod waits too: a request may be on its way"
        );
        assert_eq!(decide(0, 0, 103), Next::Leave);
        assert_eq!(decide(0, 102, 103), Next::Wait(at(105)), "a late request begins the period anew");
        assert!(matches!(decide(1, 102, 120), Next::Wait(_)), "a long request is not cut within grace");
        assert_eq!(decide(1, 102, 130), Next::Cut);
        assert_eq!(decide(0, 129, 130), Next::Leave);
    }

    #[test]
    fn the_app_is_told_when_only_tunnels_are_left() {
        let t0 = Instant::now();
        let at = |s: u64| t0 + Duration::from_secs(s);
        let told = |open, tunnels, now| {
            only_tunnels(Seen { open, tunnels, last_activity: at(0) }, at(100), at(now), QUIET)
        };
        assert!(!told(2, 1, 110), "a request runs");
        assert!(!told(1, 1, 102), "one may be on its way");
        assert!(told(1, 1, 103));
        assert!(!told(0, 0, 110), "nothing is left: that is drained");
    }
}
