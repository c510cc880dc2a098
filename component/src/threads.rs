//! The threads of a process, and what each does before it sleeps.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;

/// So often at most a thread tidies up.
const EVERY: Duration = Duration::from_secs(5);

static TIDY: OnceLock<fn()> = OnceLock::new();

thread_local! {
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Has each thread of a [`runtime`] call `tidy` now and then when it has nothing to do. An allocator with a heap for each thread hears of what other
/// threads freed only when the owner asks for more of the same size; one that stays idle would keep the memory of its busiest moment. The first
/// call in a process counts.
pub fn tidy_by(tidy: fn()) {
    let _ = TIDY.set(tidy);
}

/// A runtime of as many threads as there are processors.
pub fn runtime() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.enable_all().on_thread_park(before_sleep);
    builder
}

fn before_sleep() {
    let Some(tidy) = TIDY.get() else { return };
    LAST.with(|last| {
        let now = Instant::now();
        if due(last.get(), now) {
            last.set(Some(now));
            tidy();
        }
    });
}

fn due(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= EVERY)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static CALLS: AtomicUsize = AtomicUsize::new(0);

    #[test]
    fn a_thread_tidies_when_it_sleeps_and_not_each_time() {
        let now = Instant::now();
        assert!(due(None, now));
        assert!(!due(Some(now), now + EVERY / 2));
        assert!(due(Some(now), now + EVERY));

        tidy_by(|| _ = CALLS.fetch_add(1, Ordering::SeqCst));
        for _ in 0..100 {
            before_sleep();
        }
        assert_eq!(CALLS.load(Ordering::SeqCst), 1);
    }
}
