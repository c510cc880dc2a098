//! Elections against a real API server.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ebb_api::config::LeaderElection;
use ebb_component::leader::{Candidate, Election, Standing, Term};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio_util::sync::CancellationToken;

use super::stage::{PATIENCE, Stage};

fn times() -> LeaderElection {
    LeaderElection {
        lease_duration: Duration::from_secs(3),
        renew_deadline: Duration::from_secs(2),
        retry_period: Duration::from_millis(500),
        buckets: 1,
    }
}

fn candidate(pod: &str) -> Candidate {
    Candidate { pod: pod.to_owned(), address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) }
}

fn stand(client: kube::Client, pod: &str, times: LeaderElection, stop: &CancellationToken) -> Election {
    Election::stand_with(client, "ebb-system", "test", candidate(pod), Some(times), stop.clone())
}

async fn leads(election: &mut Election) -> Term {
    let lead = async {
        loop {
            if let Standing::Leads(term) = election.changed().await {
                return term;
            }
        }
    };
    tokio::time::timeout(PATIENCE, lead).await.expect("it leads in time")
}

async fn follows(election: &mut Election) -> Candidate {
    let follow = async {
        loop {
            if let Standing::Follows(leader) = election.changed().await {
                return leader;
            }
        }
    };
    tokio::time::timeout(PATIENCE, follow).await.expect("it follows in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_gives_the_lease_back_and_the_next_one_leads_at_once() {
    let stage = Stage::installed().await;
    let (stop_a, stop_b) = (CancellationToken::new(), CancellationToken::new());
    // Times of which none may pass in this test.
    let slow = LeaderElection {
        lease_duration: Duration::from_secs(3600),
        renew_deadline: Duration::from_secs(3000),
        retry_period: Duration::from_secs(2000),
        buckets: 1,
    };
    let mut a = stand(stage.client().await, "a", slow.clone(), &stop_a);
    let term = leads(&mut a).await;
    let mut b = stand(stage.client().await, "b", slow, &stop_b);
    assert_eq!(follows(&mut b).await, candidate("a"));
    stop_a.cancel();
    let next = leads(&mut b).await;
    assert!(next.is_on() && !term.is_on());
    a.released().await;
    // It still knows who leads, to pass on what reaches it.
    assert_eq!(follows(&mut a).await, candidate("b"));
    let leases: Api<Lease> = Api::namespaced(stage.client().await, "ebb-system");
    let spec = leases.get("ebb-test").await.expect("the Lease").spec.expect("a spec");
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("b_10.0.0.1"), Some(1)));
    stop_b.cancel();
    b.released().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_killed_is_replaced_when_its_lease_has_expired() {
    let stage = Stage::installed().await;
    let stop = CancellationToken::new();
    // A runtime of its own, which dies with everything in it.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = stage.client().await;
    let a = {
        let (stop, _entered) = (stop.clone(), doomed.enter());
        stand(client, "a", times(), &stop)
    };
    leads(&mut a.clone()).await;
    let mut b = stand(stage.client().await, "b", times(), &stop);
    follows(&mut b).await;
    doomed.shutdown_background();
    let killed = Instant::now();
    leads(&mut b).await;
    // Not before the one that was killed would have stopped by its own clock.
    assert!(killed.elapsed() >= Duration::from_secs(2), "{:?}", killed.elapsed());
    stop.cancel();
    b.released().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_restarts_in_its_pod_leads_on_at_once() {
    let stage = Stage::installed().await;
    let stop = CancellationToken::new();
    let forever = LeaderElection { lease_duration: Duration::from_secs(3600), ..times() };
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = stage.client().await;
    let a = {
        let _entered = doomed.enter();
        stand(client, "a", forever.clone(), &stop)
    };
    leads(&mut a.clone()).await;
    doomed.shutdown_background();
    leads(&mut stand(stage.client().await, "a", forever, &stop)).await;
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_api_server_nobody_leads_and_afterwards_one_does() {
    let mut stage = Stage::installed().await;
    let stop = CancellationToken::new();
    let mut a = stand(stage.client().await, "a", times(), &stop);
    let term = leads(&mut a).await;
    let mut b = stand(stage.client().await, "b", times(), &stop);
    follows(&mut b).await;
    stage.stop().await;
    let went = Instant::now();
    tokio::time::timeout(PATIENCE, term.lost().cancelled()).await.expect("the fence");
    assert!(!term.is_on());
    assert!(
        went.elapsed() < Duration::from_secs(3),
        "before another one might take over: {:?}",
        went.elapsed()
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!a.leads() && !b.leads());
    stage.start().await;
    tokio::select! {
        term = leads(&mut a) => assert!(term.is_on()),
        term = leads(&mut b) => assert!(term.is_on()),
    }
    stop.cancel();
    a.released().await;
    b.released().await;
}
