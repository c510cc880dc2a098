//! The work queue of a controller, as client-go's: a key waits at most once, is never worked on twice at the same time, and what changes
//! while it is worked on is worked on again. Failures are tried again with exponential backoff.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::Debug,
    future::Future,
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore},
    task::AbortHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::Error;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// A failure that has come back until the pause is this long is no passing one.
const LASTING: Duration = Duration::from_millis(300);

/// What a work queue may hold.
pub(crate) trait Work: Clone + Eq + Hash + Debug + Send + Sync + 'static {}
impl<T: Clone + Eq + Hash + Debug + Send + Sync + 'static> Work for T {}

/// See the module's documentation.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to be put there when its present run ends.
    dirty: HashSet<T>,
    running: HashSet<T>,
    failures: HashMap<T, u32>,
    timers: HashMap<T, (Instant, AbortHandle)>,
}

impl<T: Work> Queue<T> {
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            running: HashSet::new(),
            failures: HashMap::new(),
            timers: HashMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), wake: Notify::new() })
    }

    pub(crate) fn add(&self, work: T) {
        let mut state = self.state.lock();
        if !state.dirty.insert(work.clone()) || state.running.contains(&work) {
            return;
        }
        state.ready.push_back(work);
        drop(state);
        self.wake.notify_one();
    }

    /// Adds `work` after `delay`, or earlier when an earlier timer of it is set.
    pub(crate) fn add_after(self: &Arc<Self>, work: T, delay: Duration) {
        let at = Instant::now() + delay;
        let mut state = self.state.lock();
        if let Some((earlier, timer)) = state.timers.get(&work) {
            if *earlier <= at {
                return;
            }
            timer.abort();
        }
        let queue = Arc::downgrade(self);
        let key = work.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            if let Some(queue) = queue.upgrade() {
                queue.state.lock().timers.remove(&key);
                queue.add(key);
            }
        });
        state.timers.insert(work, (at, timer.abort_handle()));
    }

    async fn next(&self) -> T {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(work) = state.ready.pop_front() {
                    state.dirty.remove(&work);
                    state.running.insert(work.clone());
                    return work;
                }
            }
            self.wake.notified().await;
        }
    }

    fn done(&self, work: &T) {
        let mut state = self.state.lock();
        state.running.remove(work);
        if state.dirty.contains(work) {
            state.ready.push_back(work.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    fn failed(&self, work: &T) -> Duration {
        let mut state = self.state.lock();
        let failures = state.failures.entry(work.clone()).or_default();
        let pause = FIRST_RETRY.saturating_mul(1 << (*failures).min(16)).min(LAST_RETRY);
        *failures += 1;
        pause
    }

    fn succeeded(&self, work: &T) {
        self.state.lock().failures.remove(work);
    }

    /// Works off the queue with `handle`, at most `parallel` keys at a time, until `shutdown`. `handle` returns when the key
    /// should be looked at again even if nothing changes.
    pub(crate) async fn run<F, R>(
        self: Arc<Self>,
        name: &'static str,
        parallel: usize,
        shutdown: CancellationToken,
        handle: F,
    ) where
        F: Fn(T) -> R,
        R: Future<Output = Result<Option<Duration>, Error>> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(parallel));
        let tasks = TaskTracker::new();
        loop {
            let work = tokio::select! {
                () = shutdown.cancelled() => break,
                work = self.next() => work,
            };
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { break };
            let queue = Arc::clone(&self);
            let run = handle(work.clone());
            tasks.spawn(async move {
                match run.await {
                    Ok(again) => {
                        queue.succeeded(&work);
                        if let Some(delay) = again {
                            queue.add_after(work.clone(), delay);
                        }
                    }
                    Err(error) => {
                        let pause = queue.failed(&work);
                        // Caches lag behind each other for moments, and a namespace that is going away refuses what is made in it:
                        // only what keeps failing is worth a person's attention.
                        if error.is_conflict() || pause < LASTING {
                            tracing::debug!(controller = name, ?work, %error, ?pause, "failed, trying again");
                        } else {
                            tracing::warn!(controller = name, ?work, %error, ?pause, "failed, trying again");
                        }
                        queue.add_after(work.clone(), pause);
                    }
                }
                queue.done(&work);
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn one_key_runs_once_at_a_time_and_again_when_dirty() {
        let queue = Queue::new();
        let shutdown = CancellationToken::new();
        let (runs, active) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::new(Semaphore::new(0));
        let (started, mut on_start) = tokio::sync::mpsc::unbounded_channel();
        let worker = tokio::spawn({
            let (queue, shutdown, gate) = (Arc::clone(&queue), shutdown.clone(), Arc::clone(&gate));
            queue.run("test", 4, shutdown, move |_: u32| {
                let (runs, active) = (Arc::clone(&runs), Arc::clone(&active));
                let (gate, started) = (Arc::clone(&gate), started.clone());
                async move {
                    assert_eq!(active.fetch_add(1, Ordering::SeqCst), 0, "two runs at once");
                    let _ = started.send(runs.fetch_add(1, Ordering::SeqCst));
                    gate.acquire().await.unwrap().forget();
                    active.fetch_sub(1, Ordering::SeqCst);
                    Ok(None)
                }
            })
        });
        queue.add(7);
        assert_eq!(on_start.recv().await, Some(0));
        queue.add(7);
        queue.add(7);
        gate.add_permits(1);
        assert_eq!(on_start.recv().await, Some(1));
        gate.add_permits(1);
        shutdown.cancel();
        worker.await.unwrap();
        assert!(on_start.try_recv().is_err(), "two additions while running make one more run");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_the_earliest_timer_wins() {
        let queue = Queue::new();
        assert_eq!(queue.failed(&1), Duration::from_millis(5));
        assert_eq!(queue.failed(&1), Duration::from_millis(10));
        queue.succeeded(&1);
        assert_eq!(queue.failed(&1), Duration::from_millis(5));
        let begin = Instant::now();
        queue.add_after(1, Duration::from_secs(60));
        queue.add_after(1, Duration::from_secs(1));
        queue.add_after(1, Duration::from_secs(30));
        assert_eq!(queue.next().await, 1);
        assert_eq!(begin.elapsed().as_secs(), 1);
    }
}
