//! Which pods of a revision exist and can be used: what Kubernetes says, what pods say themselves, what was tried.
//!
//! Kubernetes' word is late (kubelet probes once a second, status goes through the API), so a pod may be used before
//! it is said to be ready: when its queue-proxy announced itself, or when our own probe was answered. It must not be
//! used after it is gone: when it left the EndpointSlices, is terminating, or refused a connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// An address in the EndpointSlices of the private Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Kubernetes says it is ready.
    pub ready: bool,
    /// It is on its way out.
    pub terminating: bool,
}

/// How long an announced pod that no EndpointSlice shows is believed.
pub const UNLISTED_FOR: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, Default)]
struct Dest {
    listed: bool,
    was_ready: bool,
    announced_at: Option<Duration>,
    usable: bool,
    /// It refused a connection since it was last known to be good: Kubernetes' word does not count until an own probe
    /// or an announcement does.
    suspect: bool,
}

impl Dest {
    fn is_wanted(&self, waiting: bool) -> bool {
        !self.usable && (waiting || self.suspect)
    }
}

/// What changed for the throttle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The pod takes requests, or does not for now.
    Usable(SocketAddr, bool),
    /// The pod is gone.
    Gone(SocketAddr),
}

/// The pods of one revision.
#[derive(Debug, Default)]
pub struct Dests {
    known: BTreeMap<SocketAddr, Dest>,
}

impl Dests {
    /// Takes over what the EndpointSlices say now.
    pub fn listed(&mut self, slices: &BTreeMap<SocketAddr, Listed>, now: Duration) -> Vec<Change> {
        let mut changes = Vec::new();
        self.known.retain(|address, dest| {
            let stays = match slices.get(address) {
                Some(listed) => !listed.terminating,
                None => {
                    !dest.listed && dest.announced_at.is_some_and(|at| now.saturating_sub(at) < UNLISTED_FOR)
                }
            };
            if !stays {
                changes.push(Change::Gone(*address));
            }
            stays
        });
        for (&address, listed) in slices.iter().filter(|(_, listed)| !listed.terminating) {
            let dest = self.known.entry(address).or_default();
            dest.listed = true;
            let usable = match (listed.ready, dest.was_ready) {
                (true, _) => dest.usable || !dest.suspect,
                // It was ready and is not any more: its readiness probe fails.
                (false, true) => false,
                (false, false) => dest.usable,
            };
            dest.was_ready = listed.ready;
            if usable != dest.usable {
                dest.usable = usable;
                changes.push(Change::Usable(address, usable));
            }
        }
        changes
    }

    /// A pod said that it takes requests.
    pub fn announced(&mut self, address: SocketAddr, now: Duration) -> Vec<Change> {
        let dest = self.known.entry(address).or_default();
        dest.announced_at = Some(now);
        self.good(address)
    }

    /// A probe was answered as it should be.
    pub fn probed(&mut self, address: SocketAddr) -> Vec<Change> {
        if self.known.contains_key(&address) { self.good(address) } else { Vec::new() }
    }

    fn good(&mut self, address: SocketAddr) -> Vec<Change> {
        let dest = self.known.entry(address).or_default();
        dest.suspect = false;
        if std::mem::replace(&mut dest.usable, true) {
            Vec::new()
        } else {
            vec![Change::Usable(address, true)]
        }
    }

    /// A connection could not be made.
    pub fn failed(&mut self, address: SocketAddr) -> Vec<Change> {
        let Some(dest) = self.known.get_mut(&address) else { return Vec::new() };
        if !dest.listed {
            self.known.remove(&address);
            return vec![Change::Gone(address)];
        }
        dest.suspect = true;
        if std::mem::replace(&mut dest.usable, false) {
            vec![Change::Usable(address, false)]
        } else {
            Vec::new()
        }
    }

    /// The pods that are worth a probe: listed, not usable; while nobody waits, only those that nothing but a probe can bring back.
    pub fn to_probe(&self, waiting: bool) -> impl Iterator<Item = SocketAddr> + '_ {
        let wanted = move |(_, dest): &(_, &Dest)| dest.is_wanted(waiting);
        self.known.iter().filter(wanted).map(|(address, _)| *address)
    }

    /// Whether the pod should still be probed.
    pub fn is_wanted(&self, address: SocketAddr, waiting: bool) -> bool {
        self.known.get(&address).is_some_and(|dest| dest.is_wanted(waiting))
    }

    /// All pods.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.known.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn pod(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 8112))
    }

    fn slices(entries: &[(u8, bool)]) -> BTreeMap<SocketAddr, Listed> {
        entries.iter().map(|&(n, ready)| (pod(n), Listed { ready, terminating: false })).collect()
    }

    #[test]
    fn ready_pods_are_used_others_are_probed() {
        let mut dests = Dests::default();
        assert_eq!(dests.listed(&slices(&[(1, true), (2, false)]), NOW), [Change::Usable(pod(1), true)]);
        assert_eq!(dests.to_probe(true).collect::<Vec<_>>(), [pod(2)]);
        assert_eq!(dests.to_probe(false).count(), 0, "Kubernetes will say so");
        assert_eq!(dests.probed(pod(2)), [Change::Usable(pod(2), true)]);
        assert_eq!(
            dests.listed(&slices(&[(1, true), (2, false)]), NOW),
            [],
            "our probe is ahead of Kubernetes'"
        );
        assert_eq!(dests.probed(pod(9)), [], "nobody knows it any more");
    }

    #[test]
    fn an_announcement_counts_before_any_slice() {
        let mut dests = Dests::default();
        assert_eq!(dests.announced(pod(1), NOW), [Change::Usable(pod(1), true)]);
        assert_eq!(dests.listed(&slices(&[]), NOW), [], "the slices are behind");
        assert_eq!(dests.listed(&slices(&[(1, false)]), NOW), []);
        assert_eq!(dests.listed(&slices(&[]), NOW), [Change::Gone(pod(1))], "now they are not");
    }

    #[test]
    fn an_announced_pod_that_never_shows_up_is_forgotten() {
        let mut dests = Dests::default();
        let _ = dests.announced(pod(1), NOW);
        assert_eq!(dests.listed(&slices(&[]), NOW + UNLISTED_FOR), [Change::Gone(pod(1))]);
        let _ = dests.announced(pod(2), NOW);
        assert_eq!(dests.failed(pod(2)), [Change::Gone(pod(2))]);
    }

    #[test]
    fn a_refused_connection_needs_a_probe_to_heal() {
        let mut dests = Dests::default();
        let _ = dests.listed(&slices(&[(1, true)]), NOW);
        assert_eq!(dests.failed(pod(1)), [Change::Usable(pod(1), false)]);
        assert_eq!(dests.listed(&slices(&[(1, true)]), NOW), [], "Kubernetes may not have noticed yet");
        assert!(dests.is_wanted(pod(1), true));
        assert!(dests.is_wanted(pod(1), false), "nothing else would heal it");
        assert_eq!(dests.probed(pod(1)), [Change::Usable(pod(1), true)]);
    }

    #[test]
    fn no_longer_ready_or_terminating() {
        let mut dests = Dests::default();
        let _ = dests.listed(&slices(&[(1, true), (2, true)]), NOW);
        assert_eq!(dests.listed(&slices(&[(1, false), (2, true)]), NOW), [Change::Usable(pod(1), false)]);
        let mut leaving = slices(&[(1, true)]);
        leaving.insert(pod(2), Listed { ready: true, terminating: true });
        let changes = dests.listed(&leaving, NOW);
        assert!(changes.contains(&Change::Gone(pod(2))) && changes.contains(&Change::Usable(pod(1), true)));
        assert_eq!(dests.addresses().collect::<Vec<_>>(), [pod(1)]);
    }
}
