//! Waiting through the sleep of a machine.
//!
//! tokio's clock stands still while a machine is suspended; certificates expire all the same. A laptop that was closed for the night would wake
//! with certificates that nobody renews for hours.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

/// How often the time of day is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Waits until `total` has passed by either clock; not much longer after the machine woke. `today` tells the time of day.
pub(crate) async fn pass(total: Duration, today: impl Fn() -> SystemTime) {
    let (began, day) = (Instant::now(), today());
    loop {
        // One that was set back counts for nothing.
        let passed = began.elapsed().max(today().duration_since(day).unwrap_or_default());
        match total.checked_sub(passed).filter(|left| !left.is_zero()) {
            Some(left) => sleep(left.min(LOOK)).await,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_slept_is_not_waited_for_again() {
        let (began, looks) = (Instant::now(), AtomicU64::new(0));
        // Asleep for a day after the first looks.
        let today = || {
            let slept = if looks.fetch_add(1, Ordering::Relaxed) > 5 { 24 } else { 0 };
            SystemTime::UNIX_EPOCH + began.elapsed() + slept * HOUR
        };
        pass(16 * HOUR, today).await;
        assert!(began.elapsed() < HOUR, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn otherwise_it_takes_its_time_wherever_the_clock_is_set() {
        for now in [SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + HOUR] {
            let (began, first) = (Instant::now(), std::cell::Cell::new(true));
            let today = || if first.replace(false) { SystemTime::UNIX_EPOCH + HOUR } else { now };
            pass(16 * HOUR, today).await;
            assert_eq!(began.elapsed(), 16 * HOUR);
        }
    }
}
