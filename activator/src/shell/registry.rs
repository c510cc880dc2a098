//! All revisions at this activator, and the reports of their load.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use ebb_http::Pool;
use ebb_http::wire::{Stat, StatBatch, now_us};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::probe;
use super::report::Reporter;
use crate::meter::Report;
use crate::revision::{Key, Revision, Settings};

/// The time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub struct Registry {
    revisions: DashMap<Key, Arc<Revision>>,
    /// Those with load: only they are looked at each second.
    loaded: Mutex<HashMap<Key, Arc<Revision>>>,
    some_loaded: Notify,
    pool: Pool,
    trust_domain: Arc<str>,
    pod: String,
    reporter: Arc<dyn Reporter>,
}

impl Registry {
    /// A registry without revisions. `pod`: this activator's name in its reports.
    pub fn new(pool: Pool, trust_domain: &str, pod: &str, reporter: Arc<dyn Reporter>) -> Arc<Self> {
        Arc::new(Self {
            revisions: DashMap::new(),
            loaded: Mutex::default(),
            some_loaded: Notify::new(),
            pool,
            trust_domain: trust_domain.into(),
            pod: pod.to_owned(),
            reporter,
        })
    }

    /// The trust domain of the pods.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The revision, if it exists.
    pub fn get(&self, key: &Key) -> Option<Arc<Revision>> {
        self.revisions.get(key).map(|found| found.clone())
    }

    /// Adds or changes a revision.
    pub fn set(&self, key: &Key, settings: Settings) -> Arc<Revision> {
        let revision = self
            .revisions
            .entry(key.clone())
            .or_insert_with(|| {
                let peer = format!("spiffe://{}/ns/{}/*", self.trust_domain, key.namespace);
                Revision::new(key.clone(), settings, self.pool.clone(), peer.into())
            })
            .clone();
        revision.configure(settings);
        revision
    }

    /// Forgets a revision; whoever waits for it is told.
    pub fn remove(&self, key: &Key) {
        if let Some((_, revision)) = self.revisions.remove(key) {
            revision.close();
        }
        self.loaded.lock().remove(key);
    }

    /// Has the load of a revision reported: each second from now on, and `now` at once.
    pub fn load(self: &Arc<Self>, revision: &Arc<Revision>, now: Report) {
        let first = {
            let mut loaded = self.loaded.lock();
            loaded.insert(revision.key.clone(), revision.clone());
            loaded.len() == 1
        };
        if first {
            self.some_loaded.notify_one();
        }
        let (registry, revision) = (self.clone(), revision.clone());
        tokio::spawn(async move { registry.poke(&revision, now).await });
    }

    /// Tells the autoscaler at once, again and again while requests wait and it cannot be reached.
    async fn poke(&self, revision: &Arc<Revision>, report: Report) {
        let batch = StatBatch { stats: vec![self.stat(revision, report)] };
        let mut pause = Duration::from_millis(10);
        loop {
            match self.reporter.report(batch.clone()).await {
                Ok(response) => return revision.set_poked(response),
                Err(error) => {
                    tracing::warn!(revision = %revision.key, %error, "the autoscaler could not be told, trying again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
            if revision.waiting() == 0 {
                return;
            }
        }
    }

    fn stat(&self, revision: &Revision, report: Report) -> Stat {
        Stat {
            namespace: revision.key.namespace.to_string(),
            revision: revision.key.name.to_string(),
            pod: self.pod.clone(),
            average_concurrent_requests: report.concurrency,
            request_count: report.rps,
            timestamp_us: now_us(),
            ..Stat::default()
        }
    }

    /// Reports each second while there is load; sleeps without a timer while there is none.
    pub async fn run_reports(self: Arc<Self>, shutdown: CancellationToken) {
        let mut next = Instant::now() + REPORT_EVERY;
        loop {
            let idle = self.loaded.lock().is_empty();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.some_loaded.notified(), if idle => {
                    next = Instant::now() + REPORT_EVERY;
                    continue;
                }
                () = tokio::time::sleep_until(next), if !idle => next += REPORT_EVERY,
            }
            let stats = self.cut();
            if stats.is_empty() {
                continue;
            }
            let reporter = self.reporter.clone();
            tokio::spawn(async move {
                if let Err(error) = reporter.report(StatBatch { stats }).await {
                    tracing::warn!(%error, "a load report was lost");
                }
            });
        }
    }

    fn cut(&self) -> Vec<Stat> {
        let mut stats = Vec::new();
        self.loaded.lock().retain(|_, revision| match revision.cut() {
            Some(report) => {
                stats.push(self.stat(revision, report));
                true
            }
            None => false,
        });
        stats
    }

    /// Starts the probes that waiting requests need.
    pub fn probe(&self, revision: &Arc<Revision>) {
        for (address, backend) in revision.begin_probes() {
            tokio::spawn(probe::until_answered(revision.clone(), address, backend));
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("revisions", &self.revisions.len()).finish_non_exhaustive()
    }
}
