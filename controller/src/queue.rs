//! Keys that wait for being reconciled: each at most once, and never two of one key at a time.
//!
//! What happened goes before what is only looked at again, as everything is when the configuration changes; the latter gets every
//! [`SHARE`]th turn, so that it is done in the end. What failed is tried again, later each time, and all of that together no more often than
//! [`RETRIES`] allows: when the API server is not well, thousands of keys that fail shall not keep it so.
//!
//! While nobody takes keys, none are kept: a replica that does not lead would gather the names of all objects that ever were.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Each so many-th turn is for what is not urgent.
const SHARE: u64 = 16;
/// The first pause after a failure; it doubles each time.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Between two retries, whatever their keys, once there were more than [`BURST`].
const RETRIES: Duration = Duration::from_millis(5);
const BURST: u32 = 200;

/// The queue.
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    open: bool,
    ready: VecDeque<K>,
    /// May hold keys that have become urgent since, or were taken.
    idle: VecDeque<K>,
    /// What waits in either, and whether it is urgent.
    waiting: HashMap<K, bool>,
    turns: u64,
    running: HashSet<K>,
    /// Keys that came again while they ran.
    again: HashSet<K>,
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    /// When the next retry would be due, were there one every [`RETRIES`].
    retries: Option<Instant>,
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
            idle: VecDeque::new(),
            waiting: HashMap::new(),
            turns: 0,
            running: HashSet::new(),
            again: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            retries: None,
            count: 0,
        }
    }
}

impl<K: Hash + Eq + Clone> State<K> {
    fn put(&mut self, key: K, urgent: bool) {
        match self.waiting.get(&key) {
            Some(true) => return,
            Some(false) if !urgent => return,
            _ => {}
        }
        self.waiting.insert(key.clone(), urgent);
        if urgent { self.ready.push_back(key) } else { self.idle.push_back(key) }
    }

    fn take(&mut self) -> Option<K> {
        self.turns += 1;
        let idle_first = self.turns.is_multiple_of(SHARE);
        let key = if idle_first { self.take_idle() } else { None };
        let key = key.or_else(|| self.ready.pop_front()).or_else(|| self.take_idle())?;
        self.waiting.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn take_idle(&mut self) -> Option<K> {
        while let Some(key) = self.idle.pop_front() {
            if self.waiting.get(&key) == Some(&false) {
                return Some(key);
            }
        }
        None
    }

    /// How long a retry must be held back for the sake of all.
    fn held(&mut self, now: Instant) -> Duration {
        let due = self.retries.map_or(now, |due| due.max(now));
        self.retries = Some(due + RETRIES);
        (due - now).saturating_sub(RETRIES * BURST)
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
        self.put(key, true);
    }

    /// Wants `key` reconciled when nothing else is to be done.
    pub(crate) fn add_idle(&self, key: K) {
        self.put(key, false);
    }

    fn put(&self, key: K, urgent: bool) {
        let mut state = self.state.lock();
        if !state.open {
            return;
        }
        if state.running.contains(&key) {
            state.again.insert(key);
        } else {
            state.put(key, urgent);
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
                    } else {
                        state.put(key, true);
                    }
                }
                if let Some(key) = state.take() {
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
        (state.waiting.len(), state.running.len())
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
            let pause = (FIRST_RETRY * (1 << (*failures).min(10))).min(LAST_RETRY);
            *failures += 1;
            pause.max(state.held(Instant::now()))
        });
        let again = state.again.remove(key);
        drop(state);
        if let Some(after) = retry {
            self.add_after(key.clone(), after);
        }
        // What happened meanwhile may be what was missing.
        if again {
            self.add(key.clone());
        }
    }
}

#[cfg(test)]
mod tests;
