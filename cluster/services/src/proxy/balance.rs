//! Which endpoint a connection goes to: any at random, or with session affinity the one its client had last.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::RngExt;

/// Clients remembered for one port at most; beyond that the expired ones are dropped, and then new ones are not remembered.
const CLIENTS: usize = 65_536;

type Memory = Arc<Mutex<HashMap<IpAddr, (SocketAddr, Instant)>>>;

/// The endpoints of one port of one Service.
pub(super) struct Balancer {
    targets: Arc<[SocketAddr]>,
    affinity: Option<(Duration, Memory)>,
}

impl Balancer {
    pub(super) fn new(targets: Arc<[SocketAddr]>, affinity: Option<Duration>) -> Self {
        Self { targets, affinity: affinity.map(|last| (last, Memory::default())) }
    }

    /// This one with the memory of its predecessor.
    pub(super) fn succeed(mut self, predecessor: &Self) -> Self {
        if let (Some((_, memory)), Some((_, held))) = (&mut self.affinity, &predecessor.affinity) {
            *memory = Arc::clone(held);
        }
        self
    }

    /// The endpoints in the order in which a connection of `client` should try them.
    pub(super) fn order(&self, client: IpAddr, now: Instant) -> impl Iterator<Item = SocketAddr> + use<> {
        let first = self.remembered(client, now).unwrap_or_else(|| match self.targets.len() {
            0 | 1 => 0,
            count => rand::rng().random_range(0..count),
        });
        let targets = Arc::clone(&self.targets);
        (0..targets.len()).map(move |step| targets[(first + step) % targets.len()])
    }

    fn remembered(&self, client: IpAddr, now: Instant) -> Option<usize> {
        let (last, memory) = self.affinity.as_ref()?;
        let memory = memory.lock();
        let (target, at) = memory.get(&client)?;
        if now.saturating_duration_since(*at) > *last {
            return None;
        }
        self.targets.iter().position(|held| held == target)
    }

    /// The client's connection went to `target`.
    pub(super) fn chosen(&self, client: IpAddr, target: SocketAddr, now: Instant) {
        let Some((last, memory)) = &self.affinity else { return };
        let mut memory = memory.lock();
        if memory.len() >= CLIENTS && !memory.contains_key(&client) {
            memory.retain(|_, (_, at)| now.saturating_duration_since(*at) <= *last);
            if memory.len() >= CLIENTS {
                return;
            }
        }
        memory.insert(client, (target, now));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn targets(count: u8) -> Arc<[SocketAddr]> {
        (1..=count).map(|n| SocketAddr::from(([10, 0, 0, n], 80))).collect()
    }

    #[test]
    fn tries_every_target_once() {
        let balancer = Balancer::new(targets(5), None);
        let tried: HashSet<_> = balancer.order([192, 0, 2, 1].into(), Instant::now()).collect();
        assert_eq!(tried.len(), 5);
        assert_eq!(Balancer::new(targets(0), None).order([192, 0, 2, 1].into(), Instant::now()).count(), 0);
    }

    #[test]
    fn affinity_lasts_its_time_and_survives_changes_of_other_targets() {
        let (client, begin) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        let last = Duration::from_secs(60);
        let balancer = Balancer::new(targets(200), Some(last));
        let chosen = targets(200)[150];
        balancer.chosen(client, chosen, begin);
        let successor = Balancer::new(targets(180), Some(last)).succeed(&balancer);
        assert_eq!(successor.order(client, begin + last).next(), Some(chosen));
        assert_eq!(successor.remembered(client, begin + last * 2), None);
        let without = Balancer::new(targets(100), Some(last)).succeed(&successor);
        assert_eq!(without.remembered(client, begin), None);
    }
}
