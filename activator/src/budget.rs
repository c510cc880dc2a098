//! Memory for requests that wait: a bound on the bytes of all revisions together, shared fairly.
//!
//! A revision may hold as much as is still free (a dynamic threshold, as switches have it for their ports). So one alone gets half, two get a third
//! each, and there is always room for one that has none: a flood on one revision does not refuse the first request of another. Nothing has to be
//! known about how many revisions wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bound. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    limit: u64,
    used: Arc<AtomicU64>,
}

/// What one revision holds of it.
#[derive(Debug, Clone, Default)]
pub struct Share(Arc<AtomicU64>);

/// Bytes of one request, given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    used: Arc<AtomicU64>,
    share: Share,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.share.0.fetch_sub(self.bytes, Ordering::AcqRel);
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Budget {
    /// At most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, used: Arc::default() }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    /// Takes `bytes` for a revision; none when that is more than its fair part of what is left.
    pub fn take(&self, share: &Share, bytes: u64) -> Option<Reserved> {
        let fits = |used: u64| {
            let held = share.0.load(Ordering::Acquire);
            (held + bytes <= self.limit.saturating_sub(used)).then_some(used + bytes)
        };
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        share.0.fetch_add(bytes, Ordering::AcqRel);
        Some(Reserved { used: self.used.clone(), share: share.clone(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_gets_half_two_a_third_and_a_newcomer_always_some() {
        let budget = Budget::new(1200);
        let fill = |share: &Share| std::iter::from_fn(|| budget.take(share, 10)).collect::<Vec<_>>();
        let (first, second, third) = (Share::default(), Share::default(), Share::default());
        let flood = fill(&first);
        assert_eq!(flood.len(), 60);
        let other = fill(&second);
        assert_eq!(other.len(), 30);
        assert_eq!(fill(&third).len(), 15, "there is room for whoever has none");
        drop(flood);
        let again = fill(&second);
        assert_eq!(other.len() + again.len(), 60, "what comes free is for all");
        drop((other, again));
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit(asks in proptest::collection::vec((0usize..5, 1u64..500, any::<bool>()), 1..300)) {
            let budget = Budget::new(2000);
            let shares: Vec<Share> = (0..5).map(|_| Share::default()).collect();
            let mut held = Vec::new();
            for (who, bytes, leave) in asks {
                if leave && !held.is_empty() {
                    held.swap_remove(0);
                }
                held.extend(budget.take(&shares[who], bytes));
                let sum: u64 = held.iter().map(|one: &Reserved| one.bytes).sum();
                prop_assert_eq!(budget.used(), sum);
                prop_assert!(sum <= 2000);
            }
        }
    }
}
