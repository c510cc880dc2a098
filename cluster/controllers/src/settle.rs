//! Statuses that can wait are written once things have settled.
//!
//! While something starts, its status passes through states that nobody acts on: so many replicas made, so many not yet available. Each
//! such write costs processor time just when the containers need it, here and in everything that watches. What others wait for is written
//! at once; the rest is held for [`TIME`], and mostly overtaken by then.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::queue::Work;

/// How long at most.
const TIME: Duration = Duration::from_millis(100);

/// What is being held, and since when.
pub(crate) struct Settle<T> {
    since: Mutex<HashMap<T, Instant>>,
}

impl<T: Work> Settle<T> {
    pub(crate) fn new() -> Self {
        Self { since: Mutex::default() }
    }

    /// Is a write to be held, and for how long from now?
    pub(crate) fn hold(&self, work: &T, urgent: bool) -> Option<Duration> {
        let mut since = self.since.lock();
        let left = if urgent {
            None
        } else {
            let begun = *since.entry(work.clone()).or_insert_with(Instant::now);
            TIME.checked_sub(begun.elapsed()).filter(|left| !left.is_zero())
        };
        if left.is_none() {
            since.remove(work);
        }
        left
    }

    /// There is nothing to be written any more.
    pub(crate) fn forget(&self, work: &T) {
        self.since.lock().remove(work);
    }
}

/// The earlier of two times to look again.
pub(crate) fn earlier(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn writes_wait_no_longer_than_settling_takes() {
        let settle = Settle::new();
        assert_eq!(settle.hold(&1, false), Some(TIME));
        tokio::time::advance(TIME / 2).await;
        assert_eq!(settle.hold(&1, false), Some(TIME / 2), "a second reason does not prolong it");
        tokio::time::advance(TIME / 2).await;
        assert_eq!(settle.hold(&1, false), None);
        assert_eq!(settle.hold(&1, false), Some(TIME), "the next one waits anew");
        assert_eq!(settle.hold(&1, true), None, "news does not wait");
        assert_eq!(settle.hold(&1, false), Some(TIME));
        settle.forget(&1);
        assert!(settle.since.lock().is_empty());
    }
}
