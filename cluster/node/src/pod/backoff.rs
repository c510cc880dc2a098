//! How long to wait before a crashed container or a failed pull is tried again: at once the first time, then 10 s,
//! doubling to 5 min; forgotten after 10 min without a failure. Kubernetes' figures and shape
//! (<https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>).

use jiff::{SignedDuration, Timestamp};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(300);
const FORGET: SignedDuration = SignedDuration::from_secs(600);

/// The waits of one thing that may fail repeatedly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    wait: Option<SignedDuration>,
    tried: Option<Timestamp>,
}

impl Backoff {
    /// When the next try may be, after a failure at `failed`.
    pub(crate) fn ready_at(&self, failed: Timestamp) -> Timestamp {
        match self.current(failed) {
            None => failed,
            Some(wait) => failed + wait,
        }
    }

    /// How long the next wait is; None when there is none.
    pub(crate) fn current(&self, failed: Timestamp) -> Option<SignedDuration> {
        let tried = self.tried?;
        if failed.duration_since(tried) > FORGET { None } else { self.wait }
    }

    /// Notes a further try at `now` after a failure.
    pub(crate) fn retry(&mut self, failed: Timestamp, now: Timestamp) {
        self.wait = Some(match self.current(failed) {
            None => FIRST,
            Some(wait) => (wait * 2).min(LONGEST),
        });
        self.tried = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_once_then_doubling_to_five_minutes_then_forgotten() {
        let mut now = Timestamp::from_second(1_000_000).unwrap();
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let ready = backoff.ready_at(now);
            waits.push(ready.duration_since(now).as_secs());
            backoff.retry(now, ready);
            now = ready + SignedDuration::from_secs(1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        let much_later = now + SignedDuration::from_secs(601);
        assert_eq!(backoff.ready_at(much_later), much_later);
    }
}
