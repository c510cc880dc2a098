//! `containerConcurrency`: N requests in the app, ten times N waiting in order, no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that may wait for each one that may run.
const QUEUE_FACTOR: u32 = 10;

/// The limit. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Breaker(Option<Arc<Limit>>);

#[derive(Debug)]
struct Limit {
    running: Arc<Semaphore>,
    inside: AtomicU32,
    most: u32,
}

/// A place in the app. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Permit {
    _place: Option<(OwnedSemaphorePermit, Seat)>,
}

/// A place in the app or in the queue.
#[derive(Debug)]
struct Seat(Arc<Limit>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pod is at its limit: {running} requests run and {waiting} wait")]
pub struct Full {
    running: u32,
    waiting: u32,
}

impl Breaker {
    /// `concurrency` 0 is no limit.
    pub fn new(concurrency: u32) -> Self {
        Self((concurrency > 0).then(|| {
            Arc::new(Limit {
                running: Arc::new(Semaphore::new(concurrency as usize)),
                inside: AtomicU32::new(0),
                most: concurrency.saturating_mul(1 + QUEUE_FACTOR),
            })
        }))
    }

    /// Waits for a place in the app, first come first served. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// At once, when the queue is full.
    pub async fn enter(&self) -> Result<Permit, Full> {
        let Some(limit) = &self.0 else { return Ok(Permit { _place: None }) };
        let seat = limit.seat()?;
        match limit.running.clone().acquire_owned().await {
            Ok(permit) => Ok(Permit { _place: Some((permit, seat)) }),
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Requests waiting.
    pub fn waiting(&self) -> u32 {
        let Some(limit) = &self.0 else { return 0 };
        let running = limit.most / (1 + QUEUE_FACTOR) - limit.running.available_permits() as u32;
        limit.inside.load(Ordering::Acquire).saturating_sub(running)
    }
}

impl Limit {
    fn seat(self: &Arc<Self>) -> Result<Seat, Full> {
        let taken = self
            .inside
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < self.most).then_some(n + 1));
        match taken {
            Ok(_) => Ok(Seat(self.clone())),
            Err(_) => {
                let running = self.most / (1 + QUEUE_FACTOR);
                Err(Full { running, waiting: self.most - running })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn ten_times_as_many_wait_and_the_next_is_refused() {
        let breaker = Breaker::new(2);
        let running = [breaker.enter().await.unwrap(), breaker.enter().await.unwrap()];
        let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(breaker.enter())).collect();
        for w in &mut waiting {
            assert!(futures::poll!(w).is_pending());
        }
        assert_eq!(breaker.waiting(), 20);
        assert_eq!(breaker.enter().await.unwrap_err(), Full { running: 2, waiting: 20 });
        // Somebody gives up: there is one seat again.
        drop(waiting.pop());
        let mut late = Box::pin(breaker.enter());
        assert!(futures::poll!(&mut late).is_pending());
        drop(running);
        let first = waiting.remove(0);
        first.await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn never_more_than_the_limit_under_contention() {
        let breaker = Breaker::new(3);
        let (now, most, served, refused) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
        );
        let tasks: Vec<_> = (0..500)
            .map(|_| {
                let (breaker, now, most, served, refused) =
                    (breaker.clone(), now.clone(), most.clone(), served.clone(), refused.clone());
                tokio::spawn(async move {
                    let Ok(_permit) = breaker.enter().await else {
                        refused.fetch_add(1, Ordering::SeqCst);
                        return;
                    };
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    served.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        for t in tasks {
            t.await.unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= 3);
        assert_eq!(served.load(Ordering::SeqCst) + refused.load(Ordering::SeqCst), 500);
        assert_eq!(breaker.waiting(), 0);
    }

    #[tokio::test]
    async fn zero_is_no_limit() {
        let breaker = Breaker::new(0);
        let mut all = Vec::new();
        for _ in 0..5000 {
            all.push(breaker.enter().await.unwrap());
        }
        assert_eq!(breaker.waiting(), 0);
    }
}
