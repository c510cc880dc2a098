//! One run for many callers: whoever asks while the work is under way waits for the same outcome.
//!
//! The work runs in a task of its own, so a caller that goes away neither stops it for the others nor leaves it half done.

use std::{collections::HashMap, future::Future, sync::Arc};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;

use crate::ImageError;

type Outcome<T> = Shared<BoxFuture<'static, Result<T, ImageError>>>;

pub(crate) struct Flights<T: Clone>(Arc<Mutex<HashMap<String, Outcome<T>>>>);

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    pub(crate) async fn run<F>(&self, key: String, work: impl FnOnce() -> F) -> Result<T, ImageError>
    where
        F: Future<Output = Result<T, ImageError>> + Send + 'static,
    {
        let outcome = {
            let mut flights = self.0.lock();
            if let Some(outcome) = flights.get(&key) {
                outcome.clone()
            } else {
                let (work, map, done) = (work(), self.0.clone(), key.clone());
                // The guard removes the entry even if the work panics; it cannot run before the insert below, for it
                // needs the lock that is held here.
                let task = tokio::spawn(async move {
                    let _remove = Remove(map, done);
                    work.await
                });
                let outcome =
                    async move { task.await.unwrap_or_else(|e| Err(ImageError::Internal(e.to_string()))) }
                        .boxed()
                        .shared();
                flights.insert(key, outcome.clone());
                outcome
            }
        };
        outcome.await
    }
}

struct Remove<T: Clone>(Arc<Mutex<HashMap<String, Outcome<T>>>>, String);

impl<T: Clone> Drop for Remove<T> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn callers_share_one_run_and_the_next_starts_anew() {
        let flights = Arc::new(Flights::<usize>::new());
        let runs = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let call = || {
            let (flights, runs, go) = (flights.clone(), runs.clone(), go.clone());
            async move {
                flights
                    .run("k".into(), move || async move {
                        go.notified().await;
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    })
                    .await
            }
        };
        let first = tokio::spawn(call());
        tokio::task::yield_now().await;
        let second = tokio::spawn(call());
        tokio::task::yield_now().await;
        first.abort();
        go.notify_one();
        assert_eq!(second.await.unwrap().unwrap(), 0);
        go.notify_one();
        assert_eq!(call().await.unwrap(), 1);
    }
}
