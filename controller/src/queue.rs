//! Keys that wait for being reconciled: each at most once, and never two of one key at a time.
//!
//! While nobody takes keys, none are kept: a replica that does not lead would gather the names of all objects that ever were.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The queue.
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    open: bool,
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    running: HashSet<K>,
    /// Keys that came again while they ran.
    again: HashSet<K>,
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    count: u64,
}

/// Somebody takes keys; until this is dropped.
pub(crate) struct Open<'a, K: Hash + Eq + Clone>(&'a Queue<K>);

impl<K: Hash + Eq + Clone> Drop for Open<'_, K> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        // What still runs ends by itself.
        let running = std::mem::take(&mut state.running);
        *state = State { running, ..State::default() };
    }
}

impl<K> Default for State<K> {
    fn default() -> Self {
        Self {
            open: false,
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            running: HashSet::new(),
            again: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            count: 0,
        }
    }
}

impl<K: Hash + Eq + Clone> Queue<K> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), wake: Notify::new() }
    }

    /// From now on keys are kept.
    pub(crate) fn open(&self) -> Open<'_, K> {
        self.state.lock().open = true;
        Open(self)
    }

    /// Wants `key` reconciled soon.
    pub(crate) fn add(&self, key: K) {
        let mut state = self.state.lock();
        if !state.open {
            return;
        }
        if state.running.contains(&key) {
            state.again.insert(key);
        } else if state.waiting.insert(key.clone()) {
            state.ready.push_back(key);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Wants `key` reconciled after a while; the sooner of two wishes counts.
    pub(crate) fn add_after(&self, key: K, after: Duration) {
        let mut state = self.state.lock();
        if !state.open {
            return;
        }
        state.count += 1;
        let at = (Instant::now() + after, state.count);
        if let Some(due) = state.due.get(&key).copied() {
            if due.0 <= at.0 {
                return;
            }
            state.later.remove(&due);
        }
        state.due.insert(key.clone(), at);
        state.later.insert(at, key);
        drop(state);
        self.wake.notify_one();
    }

    /// Waits for the next key, which is running until [`Self::done`].
    pub(crate) async fn next(&self) -> K {
        loop {
            let due = {
                let mut state = self.state.lock();
                let now = Instant::now();
                while let Some(entry) = state.later.first_entry().filter(|e| e.key().0 <= now) {
                    let key = entry.remove();
                    state.due.remove(&key);
                    if state.running.contains(&key) {
                        state.again.insert(key);
                    } else if state.waiting.insert(key.clone()) {
                        state.ready.push_back(key);
                    }
                }
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.running.insert(key.clone());
                    return key;
                }
                state.later.first_key_value().map(|(at, _)| at.0)
            };
            match due {
                None => self.wake.notified().await,
                Some(due) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = sleep_until(due) => {}
                    }
                }
            }
        }
    }

    /// How many wait and how many run.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.ready.len(), state.running.len())
    }

    /// `key` has run; `ok` says whether it worked. A failure is tried again, later each time up to a minute.
    pub(crate) fn done(&self, key: &K, ok: bool) {
        let mut state = self.state.lock();
        state.running.remove(key);
        if ok {
            state.failures.remove(key);
        }
        let retry = !ok && state.open;
        let retry = retry.then(|| {
            let failures = state.failures.entry(key.clone()).or_default();
            *failures += 1;
            Duration::from_millis(50 << (*failures).min(10)).min(Duration::from_secs(60))
        });
        let again = state.again.remove(key);
        drop(state);
        match retry {
            Some(after) => self.add_after(key.clone(), after),
            None if again => self.add(key.clone()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_key_at_a_time_and_none_lost() {
        let queue = Queue::new();
        let _open = queue.open();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        queue.done(&"a", true);
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", true);
        queue.done(&"b", true);
        queue.add_after("c", Duration::from_secs(60));
        queue.add_after("c", Duration::from_secs(1));
        queue.add_after("c", Duration::from_secs(30));
        let before = Instant::now();
        assert_eq!(queue.next().await, "c");
        assert_eq!((Instant::now() - before).as_secs(), 1);
        queue.done(&"c", false);
        let before = Instant::now();
        assert_eq!(queue.next().await, "c");
        assert!(Instant::now() - before >= Duration::from_millis(100));
    }
    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_while_nobody_takes_it() {
        let kept = |queue: &Queue<u32>| {
            let state = queue.state.lock();
            let (ready, later) =
                (state.ready.len() + state.waiting.len(), state.later.len() + state.due.len());
            ready + later + state.again.len() + state.failures.len()
        };
        let queue = Queue::new();
        for key in 0..1000 {
            queue.add(key);
            queue.add_after(key, Duration::from_secs(1));
        }
        assert_eq!(kept(&queue), 0);
        let open = queue.open();
        queue.add(1);
        queue.add(2);
        queue.add_after(3, Duration::from_secs(1));
        assert_eq!(queue.next().await, 1);
        drop(open);
        // What was begun ends in its own time, and is one of its kind until then.
        queue.done(&1, false);
        assert_eq!((kept(&queue), queue.lengths()), (0, (0, 0)));
        let _open = queue.open();
        queue.add(4);
        assert_eq!(queue.next().await, 4);
    }
}
