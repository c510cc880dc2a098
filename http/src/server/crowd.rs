//! Room for new connections where all places are taken: an idle connection goes, the oldest first.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::watch::Watch;

/// The connections of a server.
#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<VecDeque<Weak<Watch>>>);

impl Crowd {
    /// A connection has come.
    pub(super) fn enter(&self, watch: &Arc<Watch>) {
        let mut all = self.0.lock();
        // Whoever left is forgotten when the list would have to grow, so that its size follows the live ones.
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push_back(Arc::downgrade(watch));
    }

    /// Asks one that is idle to go. False when all are busy.
    pub(super) fn make_room(&self) -> bool {
        let mut all = self.0.lock();
        for _ in 0..all.len() {
            let Some(one) = all.pop_front() else { return false };
            let Some(watch) = one.upgrade() else { continue };
            if watch.is_idle() {
                watch.evict();
                return true;
            }
            all.push_back(one);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_idle_one_goes_and_the_list_follows_the_living() {
        let crowd = Crowd::default();
        let all: Vec<_> = (0..4).map(|_| Arc::new(Watch::default())).collect();
        all.iter().for_each(|one| crowd.enter(one));
        let busy = [all[0].begin(), all[2].begin()];
        assert!(crowd.make_room() && crowd.make_room());
        assert!(!crowd.make_room(), "the others are busy");
        drop(busy);
        drop(all);
        for _ in 0..100 {
            crowd.enter(&Arc::new(Watch::default()));
        }
        assert!(crowd.0.lock().capacity() < 50);
    }
}
