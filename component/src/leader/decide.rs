//! What to do about the Lease, as a pure function of what is known and of the time.

use std::time::Duration;

use ebb_api::config::LeaderElection;
use tokio::time::Instant;

/// The Lease as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who holds it; empty when it was given back.
    pub holder: String,
    /// How long it lasts without being renewed, in its holder's words.
    pub lasts: Duration,
    /// When this renewal was first seen here. The holder's own times are of another clock.
    pub since: Instant,
}

/// Everything that counts.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The Lease; none when there is no such object.
    pub lease: Option<&'a Seen>,
    /// Our name.
    pub me: &'a str,
    /// When our last successful renewal was begun, while we lead.
    pub renewed: Option<Instant>,
    /// The times agreed on.
    pub times: &'a LeaderElection,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the Lease, with our name.
    Create,
    /// Write our name into it.
    Take,
    /// Write that we are still there.
    Renew,
    /// We led and must not any more: stop working, then decide again.
    Yield,
    /// Nothing, until this time or news.
    Wait(Instant),
}

/// Decides.
pub fn decide(view: &View<'_>, now: Instant) -> Action {
    let ours = |seen: &Seen| seen.holder == view.me;
    if let Some(renewed) = view.renewed {
        // The fence: before anybody else may think that it has expired.
        if now >= renewed + view.times.renew_deadline {
            return Action::Yield;
        }
        return match view.lease {
            Some(seen) if !ours(seen) => Action::Yield,
            // Somebody deleted it.
            None => Action::Create,
            Some(_) if now >= renewed + view.times.retry_period => Action::Renew,
            Some(_) => Action::Wait(renewed + view.times.retry_period),
        };
    }
    match view.lease {
        None => Action::Create,
        // Ours from before: of this pod there is only one process, and we are it.
        Some(seen) if ours(seen) || seen.holder.is_empty() => Action::Take,
        Some(seen) if now >= seen.since + seen.lasts => Action::Take,
        Some(seen) => Action::Wait(seen.since + seen.lasts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "a_10.0.0.1";

    fn times() -> LeaderElection {
        LeaderElection {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            buckets: 1,
        }
    }

    fn held(by: &str, since: Instant) -> Seen {
        Seen { holder: by.to_owned(), lasts: Duration::from_secs(15), since }
    }

    fn decided(lease: Option<&Seen>, renewed: Option<Instant>, now: Instant) -> Action {
        decide(&View { lease, me: ME, renewed, times: &times() }, now)
    }

    #[test]
    fn a_free_lease_is_taken_at_once() {
        let now = Instant::now();
        assert_eq!(decided(None, None, now), Action::Create);
        assert_eq!(decided(Some(&held("", now)), None, now), Action::Take);
        // This pod held it before its container was restarted.
        assert_eq!(decided(Some(&held(ME, now)), None, now), Action::Take);
    }

    #[test]
    fn another_ones_lease_is_taken_when_it_has_expired_by_our_clock() {
        let since = Instant::now();
        let lease = held("b_10.0.0.2", since);
        let end = since + Duration::from_secs(15);
        assert_eq!(decided(Some(&lease), None, since), Action::Wait(end));
        assert_eq!(decided(Some(&lease), None, end - Duration::from_millis(1)), Action::Wait(end));
        assert_eq!(decided(Some(&lease), None, end), Action::Take);
    }

    #[test]
    fn a_leader_renews_and_yields_before_others_may_take_over() {
        let began = Instant::now();
        let lease = held(ME, began);
        let after = |seconds: u64| decided(Some(&lease), Some(began), began + Duration::from_secs(seconds));
        assert_eq!(after(1), Action::Wait(began + Duration::from_secs(2)));
        assert_eq!(after(2), Action::Renew);
        assert_eq!(after(9), Action::Renew);
        assert_eq!(after(10), Action::Yield);
    }

    #[test]
    fn a_leader_whose_lease_was_taken_or_deleted() {
        let now = Instant::now();
        assert_eq!(decided(Some(&held("b_10.0.0.2", now)), Some(now), now), Action::Yield);
        assert_eq!(decided(Some(&held("", now)), Some(now), now), Action::Yield);
        assert_eq!(decided(None, Some(now), now), Action::Create);
    }

    /// Two replicas whose clocks run apart by less than the margin never lead at the same time.
    #[test]
    fn no_two_at_a_time() {
        let start = Instant::now();
        // A's last renewal was begun at 0 and stored up to a second later; B sees it up to a second after that.
        for stored in [0, 500, 1000_u64] {
            for seen in [0, 500, 1000_u64] {
                let at = |ms: u64| start + Duration::from_millis(ms);
                let a_yields = (0..30_000)
                    .step_by(250)
                    .find(|ms| decided(Some(&held(ME, start)), Some(start), at(*ms)) == Action::Yield)
                    .expect("it yields");
                let lease = held("b_10.0.0.2", at(stored + seen));
                let b_takes = (stored + seen..30_000)
                    .step_by(250)
                    .find(|ms| decided(Some(&lease), None, at(*ms)) == Action::Take)
                    .expect("it takes over");
                assert!(a_yields < b_takes, "{a_yields} {b_takes}");
            }
        }
    }
}
