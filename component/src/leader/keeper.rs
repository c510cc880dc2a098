//! Reading and writing the Lease.

use std::pin::pin;
use std::time::Duration;

use ebb_api::config::LeaderElection;
use futures::{Stream, StreamExt};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::decide::{Action, Seen, View, decide};
use super::{Candidate, Standing, Term};
use crate::watch::events;

const CONFIG: &str = "config-leader-election";
/// How long work may take to stop before the Lease is given back.
const FINISH: Duration = Duration::from_secs(1);
/// How long giving back may take.
const RELEASE: Duration = Duration::from_secs(2);

/// One replica's part in the election.
pub(super) struct Seat {
    client: kube::Client,
    leases: Api<Lease>,
    namespace: String,
    name: String,
    me: String,
    tell: watch::Sender<Standing>,
    /// The Lease as it was read or written last.
    lease: Option<(Lease, Seen)>,
    /// The term, and when its last renewal was begun.
    term: Option<(Term, Instant)>,
}

impl Seat {
    pub(super) fn new(
        client: kube::Client,
        namespace: &str,
        component: &str,
        me: Candidate,
        tell: watch::Sender<Standing>,
    ) -> Self {
        Self {
            leases: Api::namespaced(client.clone(), namespace),
            client,
            namespace: namespace.to_owned(),
            name: format!("ebb-{component}"),
            me: me.to_string(),
            tell,
            lease: None,
            term: None,
        }
    }

    /// The times of the ConfigMap; the defaults where there is none, or a bad one.
    async fn times(&self) -> LeaderElection {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        loop {
            match api.get_opt(CONFIG).await {
                Ok(map) => {
                    let data = map.and_then(|map| map.data).unwrap_or_default();
                    let times = LeaderElection::parse(&data).unwrap_or_else(|errors| {
                        for error in errors {
                            tracing::warn!(config_map = CONFIG, %error, "configuration refused, the defaults are in force");
                        }
                        LeaderElection::default()
                    });
                    if times.buckets != 1 {
                        tracing::warn!(
                            "{CONFIG}: buckets={} has no effect: one replica does all",
                            times.buckets
                        );
                    }
                    return times;
                }
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    tracing::warn!(%status, "{CONFIG} may not be read: the defaults are in force");
                    return LeaderElection::default();
                }
                Err(error) => {
                    tracing::debug!(%error, "{CONFIG} is not to be had yet");
                    tokio::time::sleep(jittered(Duration::from_secs(1))).await;
                }
            }
        }
    }

    fn see(&mut self, lease: Option<Lease>) {
        let known = self.lease.take();
        self.lease = lease.map(|lease| {
            let spec = lease.spec.clone().unwrap_or_default();
            let same = known.filter(|(old, _)| {
                let old = old.spec.clone().unwrap_or_default();
                (&old.holder_identity, &old.renew_time) == (&spec.holder_identity, &spec.renew_time)
            });
            let since = same.map_or_else(Instant::now, |(_, seen)| seen.since);
            let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let seen = Seen {
                holder: spec.holder_identity.unwrap_or_default(),
                lasts: Duration::from_secs(lasts.unwrap_or(0)),
                since,
            };
            (lease, seen)
        });
        if self.term.is_none() {
            let holder = self.lease.as_ref().map(|(_, seen)| seen.holder.as_str()).unwrap_or_default();
            let leader = Candidate::parse(holder).filter(|_| holder != self.me);
            self.tell.send_if_modified(|standing| match (&*standing, leader) {
                (Standing::Follows(known), Some(leader)) if *known == leader => false,
                (Standing::Unknown, None) => false,
                (_, Some(leader)) => {
                    tracing::info!(lease = self.name, leader = %leader, "another replica leads");
                    *standing = Standing::Follows(leader);
                    true
                }
                (_, None) => {
                    *standing = Standing::Unknown;
                    true
                }
            });
        }
    }

    fn version(&self) -> Option<String> {
        self.lease.as_ref().and_then(|(lease, _)| lease.metadata.resource_version.clone())
    }

    async fn look(&mut self) -> kube::Result<()> {
        let lease = self.leases.get_opt(&self.name).await?;
        self.see(lease);
        Ok(())
    }

    /// The Lease with our name, renewed.
    fn ours(&self, times: &LeaderElection) -> Lease {
        let now = MicroTime(Timestamp::now());
        let (mut lease, held) = match &self.lease {
            Some((lease, seen)) => (lease.clone(), seen.holder == self.me),
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    namespace: Some(self.namespace.clone()),
                    ..ObjectMeta::default()
                };
                (Lease { metadata, ..Lease::default() }, false)
            }
        };
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if !held {
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = i32::try_from(times.lease_duration.as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }

    /// Writes our name; begins a term, or makes it longer.
    async fn write(&mut self, create: bool, times: &LeaderElection) -> kube::Result<()> {
        let (began, params, lease) = (Instant::now(), PostParams::default(), self.ours(times));
        let written = if create {
            self.leases.create(&params, &lease).await?
        } else {
            self.leases.replace(&self.name, &params, &lease).await?
        };
        let until = began + times.renew_deadline;
        if let Some((term, renewed)) = &mut self.term {
            *renewed = began;
            term.extend(until);
            self.see(Some(written));
            return Ok(());
        }
        let term = Term::new(Some(until));
        self.term = Some((term.clone(), began));
        self.see(Some(written));
        tracing::info!(lease = self.name, "this replica leads");
        self.tell.send_replace(Standing::Leads(term));
        Ok(())
    }

    fn step_down(&mut self) -> Option<Term> {
        let (term, _) = self.term.take()?;
        term.lost.cancel();
        self.tell.send_replace(Standing::Unknown);
        Some(term)
    }

    /// Ends the term, and lets others have the Lease at once.
    async fn release(&mut self) {
        let Some(term) = self.step_down() else { return };
        let _ = tokio::time::timeout(FINISH, term.finished.cancelled()).await;
        let Some((mut lease, _)) = self.lease.take() else { return };
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let params = PostParams::default();
        match tokio::time::timeout(RELEASE, self.leases.replace(&self.name, &params, &lease)).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "given back"),
            Ok(Err(error)) => {
                tracing::warn!(lease = self.name, %error, "could not be given back; it will expire");
            }
            Err(_) => tracing::warn!(lease = self.name, "could not be given back in time; it will expire"),
        }
    }
}

/// Stands for election until `stop`.
pub(super) async fn run(
    mut seat: Seat,
    times: Option<LeaderElection>,
    stop: CancellationToken,
    released: DropGuard,
) {
    let asked = async {
        match times {
            Some(times) => times,
            None => seat.times().await,
        }
    };
    let Some(times) = stop.run_until_cancelled(asked).await else { return };
    let of_lease = watcher::Config::default().fields(&format!("metadata.name={}", seat.name));
    let mut news = pin!(changes(seat.leases.clone(), of_lease));
    let _ = stop.run_until_cancelled(stand(&mut seat, &times, &mut news)).await;
    seat.release().await;
    drop(released);
    // Who leads next is still told, for as long as work is passed on.
    while !seat.tell.is_closed() {
        tokio::select! {
            _ = news.next() => {}
            () = seat.tell.closed() => return,
        }
        let _ = seat.look().await;
    }
}

async fn stand(
    seat: &mut Seat,
    times: &LeaderElection,
    news: &mut (impl Stream<Item = Option<String>> + Unpin),
) {
    let mut stale = true;
    loop {
        if stale {
            match within(seat, times, Step::Look).await {
                Ok(()) => stale = false,
                Err(()) => continue,
            }
        }
        let view = View {
            lease: seat.lease.as_ref().map(|(_, seen)| seen),
            me: &seat.me,
            renewed: seat.term.as_ref().map(|(_, renewed)| *renewed),
            times,
        };
        match decide(&view, Instant::now()) {
            Action::Wait(until) => tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                // Of our own writes we know.
                Some(version) = news.next() => stale = version.is_none() || version != seat.version(),
            },
            Action::Yield => {
                tracing::warn!(lease = seat.name, "this replica leads no more");
                seat.step_down();
                stale = true;
            }
            Action::Create => stale = within(seat, times, Step::Write { create: true }).await.is_err(),
            Action::Take | Action::Renew => {
                stale = within(seat, times, Step::Write { create: false }).await.is_err();
            }
        }
    }
}

enum Step {
    Look,
    Write { create: bool },
}

/// One exchange with the API server, which never lasts longer than the fence allows. After a failure that may last, a pause.
async fn within(seat: &mut Seat, times: &LeaderElection, step: Step) -> Result<(), ()> {
    let fence = seat.term.as_ref().map(|(_, renewed)| *renewed + times.renew_deadline);
    let limit = fence.unwrap_or_else(|| Instant::now() + times.renew_deadline);
    let exchange = async {
        match step {
            Step::Look => seat.look().await,
            Step::Write { create } => seat.write(create, times).await,
        }
    };
    let failed = match tokio::time::timeout_at(limit, exchange).await {
        Ok(Ok(())) => return Ok(()),
        // Somebody was faster: look at once.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => return Err(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    tracing::warn!(lease = seat.name, error = failed, "the Lease cannot be read or written, trying again");
    let again = Instant::now() + jittered(times.retry_period.min(Duration::from_secs(2)));
    tokio::time::sleep_until(fence.map_or(again, |fence| again.min(fence))).await;
    // A fence that was passed while nothing could be read.
    if fence.is_some_and(|fence| Instant::now() >= fence) {
        tracing::warn!(lease = seat.name, "not renewed in time: this replica leads no more");
        seat.step_down();
    }
    Err(())
}

/// That the Lease changed, with the version that it has now, if that was told.
fn changes(api: Api<Lease>, config: watcher::Config) -> impl Stream<Item = Option<String>> + Send {
    events(api, config).filter_map(|event| async move {
        match event {
            Ok(watcher::Event::Apply(lease)) => Some(lease.metadata.resource_version),
            Ok(watcher::Event::Delete(_) | watcher::Event::InitDone) => Some(None),
            _ => None,
        }
    })
}

fn jittered(longest: Duration) -> Duration {
    longest.mul_f64(rand::random_range(0.5..1.0))
}
