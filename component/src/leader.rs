//! Which of several replicas works: the one that a Lease names.
//!
//! Whoever leads renews the Lease again and again. The others count, by their own clocks, the time since they saw it renewed; when that
//! is longer than the Lease lasts, or the leader has given it back, one of them takes it. Writes carry the version that was read, so
//! that of several only one succeeds. A leader that could not renew for a while (shorter than a Lease lasts) stops working by its
//! own clock, so that two never work at a time, however far their clocks are apart and whatever they can reach.
//!
//! A Lease lasts 15 s here, as for Kubernetes' own components, and not 60 s as elsewhere in this API's world: nobody's new
//! revision should wait a minute for a controller that was killed. On a graceful end the Lease is given back and the next one takes
//! it within milliseconds; a container that is restarted in its pod has the pod's name and goes on at once.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ebb_api::config::LeaderElection;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod decide;
mod keeper;

pub use decide::{Action, Seen, View, decide};

/// A replica's name in the Lease: its pod, and where the pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The pod's name.
    pub pod: String,
    /// Its address.
    pub address: IpAddr,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.pod, self.address)
    }
}

impl Candidate {
    /// From the holder of a Lease. No pod's name has an underscore.
    pub fn parse(holder: &str) -> Option<Self> {
        let (pod, address) = holder.rsplit_once('_')?;
        Some(Self { pod: pod.to_owned(), address: address.parse().ok()? })
    }
}

/// A time as the leader. It can end at any moment.
#[derive(Clone, Debug)]
pub struct Term {
    lost: CancellationToken,
    finished: CancellationToken,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Term {
    fn new(until: Option<Instant>) -> Self {
        Self {
            lost: CancellationToken::new(),
            finished: CancellationToken::new(),
            until: Arc::new(Mutex::new(until)),
        }
    }

    /// Cancelled when it is over: stop working.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether it goes on, by the clock as well: right before a write it counts that nobody was there to cancel.
    pub fn is_on(&self) -> bool {
        !self.lost.is_cancelled() && self.until.lock().is_none_or(|until| Instant::now() < until)
    }

    /// Says that no work of this term is under way any more. Until then (but not for long) the Lease is not given back.
    pub fn finish(&self) {
        self.finished.cancel();
    }

    fn extend(&self, until: Instant) {
        *self.until.lock() = Some(until);
    }
}

/// Who leads, as far as this replica knows.
#[derive(Clone, Debug, Default)]
pub enum Standing {
    /// Nobody known.
    #[default]
    Unknown,
    /// Somebody else.
    Follows(Candidate),
    /// This one.
    Leads(Term),
}

/// The election as a component sees it.
#[derive(Clone, Debug)]
pub struct Election {
    standing: watch::Receiver<Standing>,
    released: CancellationToken,
}

impl Election {
    /// Stands for election until `stop`, then gives the Lease back. Must run in a tokio runtime.
    ///
    /// `namespace` is that of the components; the Lease is named `ebb-<component>`.
    pub fn stand(
        client: kube::Client,
        namespace: &str,
        component: &'static str,
        me: Candidate,
        stop: CancellationToken,
    ) -> Self {
        Self::stand_with(client, namespace, component, me, None, stop)
    }

    /// As [`Election::stand`], with these times rather than those of the ConfigMap `config-leader-election`.
    pub fn stand_with(
        client: kube::Client,
        namespace: &str,
        component: &'static str,
        me: Candidate,
        times: Option<LeaderElection>,
        stop: CancellationToken,
    ) -> Self {
        let (tell, mut standing) = watch::channel(Standing::Unknown);
        standing.mark_changed();
        let released = CancellationToken::new();
        let seat = keeper::Seat::new(client, namespace, component, me, tell);
        tokio::spawn(keeper::run(seat, times, stop, released.clone().drop_guard()));
        Self { standing, released }
    }

    /// No election: this one leads until `stop`, as where there is only one.
    pub fn alone(stop: &CancellationToken) -> Self {
        let mut term = Term::new(None);
        term.lost = stop.child_token();
        let mut standing = watch::channel(Standing::Leads(term)).1;
        standing.mark_changed();
        let released = CancellationToken::new();
        released.cancel();
        Self { standing, released }
    }

    /// This replica's election: against others if it is a pod (`me`), else it leads.
    pub fn of(
        client: kube::Client,
        namespace: &str,
        component: &'static str,
        me: Option<Candidate>,
        stop: CancellationToken,
    ) -> Self {
        match me {
            Some(me) => Self::stand(client, namespace, component, me, stop),
            None => Self::alone(&stop),
        }
    }

    /// Whether this one leads.
    pub fn leads(&self) -> bool {
        matches!(&*self.standing.borrow(), Standing::Leads(term) if term.is_on())
    }

    /// Somebody else who leads.
    pub fn leader(&self) -> Option<Candidate> {
        match &*self.standing.borrow() {
            Standing::Follows(leader) => Some(leader.clone()),
            _ => None,
        }
    }

    /// Waits for another standing than this handle told last; the first time it tells that of now. For ever when there will be none.
    pub async fn changed(&mut self) -> Standing {
        if self.standing.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.standing.borrow_and_update().clone()
    }

    /// Waits until the Lease was given back, after `stop`.
    pub async fn released(&self) {
        self.released.cancelled().await;
    }

    /// Runs `work` in each term of this one until `stop`. Work is dropped where it stands when its term is over.
    pub async fn lead<F>(mut self, stop: &CancellationToken, mut work: impl FnMut(Term) -> F)
    where
        F: Future<Output = ()>,
    {
        loop {
            let Some(standing) = stop.run_until_cancelled(self.changed()).await else { return };
            let Standing::Leads(term) = standing else { continue };
            tokio::select! {
                () = term.lost().cancelled() => {}
                () = stop.cancelled() => {}
                () = work(term.clone()) => {}
            }
            term.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_candidate_by_its_name() {
        for text in ["autoscaler-6d5-x2_10.0.0.7", "autoscaler-6d5-x2_fd00::7"] {
            assert_eq!(Candidate::parse(text).expect("it parses").to_string(), text);
        }
        assert_eq!(Candidate::parse("somebody"), None);
        assert_eq!(Candidate::parse("somebody_else"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_ends_by_the_clock() {
        let term = Term::new(Some(Instant::now() + Duration::from_secs(10)));
        assert!(term.is_on());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!term.is_on(), "nobody was there to cancel it");
        term.extend(Instant::now() + Duration::from_secs(1));
        assert!(term.is_on());
    }

    #[tokio::test]
    async fn who_is_alone_leads_until_it_ends() {
        let stop = CancellationToken::new();
        let (began, mut begun) = tokio::sync::mpsc::channel(1);
        let election = Election::alone(&stop);
        let (lead, stopping) = (election.clone(), stop.clone());
        let leading = tokio::spawn(async move {
            let work = |term: Term| {
                let began = began.clone();
                async move {
                    began.send(term).await.expect("heard");
                    std::future::pending::<()>().await;
                }
            };
            lead.lead(&stopping, work).await;
        });
        let term = begun.recv().await.expect("it leads");
        assert!(term.is_on() && election.leader().is_none());
        stop.cancel();
        leading.await.expect("it ends");
        assert!(!term.is_on());
    }
}
