//! Who may go to which pod now, and who waits: the activator's breaker and balancer for one revision, pure.
//!
//! A revision with a container concurrency N takes N requests on each of its pods at a time; without a limit any
//! number. What finds no place waits in one queue, first come first served, [`QUEUE_DEPTH`] deep. Whoever gets a
//! place gets a [`Slot`] and gives it back with [`Throttle::finish`]; every change that makes room answers with the
//! waiters that may go. The caller does the waiting: `W` is whatever wakes a waiter.
//!
//! Balancing: without a limit the less busy of two random pods; up to a limit of three the first pod with room (a
//! pod is then kept full rather than all half full); else in turn. With a limit and several activators each keeps
//! to its own slice of the pods, so that together they respect the limit. Pods that failed of late get less: they count as busier, and where there
//! is a limit the others are filled first.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use ebb_http::balance::{self, Health};

mod slice;

pub use slice::Slice;

/// How many requests may wait for one revision before more are refused with 503.
pub const QUEUE_DEPTH: usize = 10_000;
/// Up to this limit pods are filled one after the other.
const FIRST_AVAILABLE_UP_TO: u32 = 3;

/// A place at a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Where to go.
    pub address: SocketAddr,
    /// Which incarnation of that address: a pod that left and came back is another one.
    id: u64,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Somebody who waited may go.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant<W> {
    /// Who.
    pub waiter: W,
    /// Where.
    pub slot: Slot,
}

#[derive(Debug)]
struct Pod {
    address: SocketAddr,
    id: u64,
    in_flight: u32,
    usable: bool,
    health: Health,
    /// Of `health`, at the moment of the last [`Throttle::advance`].
    penalty: f64,
}

/// The breaker and balancer of one revision at one activator.
#[derive(Debug)]
pub struct Throttle<W> {
    limit: u32,
    slice: Option<Slice>,
    /// Sorted by address, so that all activators slice alike.
    pods: Vec<Pod>,
    by_id: HashMap<u64, usize>,
    /// Indices of the pods that may be given requests by this activator.
    eligible: Vec<usize>,
    queue: BTreeMap<Ticket, W>,
    next: u64,
    turn: usize,
}

impl<W> Throttle<W> {
    /// A throttle without pods. `limit`: requests at a time for each pod, 0 for any number.
    pub fn new(limit: u32) -> Self {
        Self {
            limit,
            slice: None,
            pods: Vec::new(),
            by_id: HashMap::new(),
            eligible: Vec::new(),
            queue: BTreeMap::new(),
            next: 0,
            turn: 0,
        }
    }

    /// A place right now, if there is one and nobody waits for it. `draw` is a random number.
    pub fn take(&mut self, draw: u64) -> Option<Slot> {
        if self.queue.is_empty() { self.pick(draw) } else { None }
    }

    /// Queues a waiter; gives it back when the queue is full.
    pub fn wait(&mut self, waiter: W) -> Result<Ticket, W> {
        if self.queue.len() >= QUEUE_DEPTH {
            return Err(waiter);
        }
        self.next += 1;
        let ticket = Ticket(self.next);
        self.queue.insert(ticket, waiter);
        Ok(ticket)
    }

    /// Leaves the queue. False when the ticket is not there any more: the waiter was granted a slot, or left before.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        self.queue.remove(&ticket).is_some()
    }

    /// Gives a place back; answers with who may go instead.
    #[must_use]
    pub fn finish(&mut self, slot: Slot, draw: u64) -> Vec<Grant<W>> {
        if let Some(&at) = self.by_id.get(&slot.id) {
            self.pods[at].in_flight = self.pods[at].in_flight.saturating_sub(1);
        }
        self.grant(draw)
    }

    /// Says whether a pod takes requests, adding it if it is new.
    #[must_use]
    pub fn set(&mut self, address: SocketAddr, usable: bool, draw: u64) -> Vec<Grant<W>> {
        match self.pods.binary_search_by_key(&address, |pod| pod.address) {
            Ok(at) if self.pods[at].usable == usable => return Vec::new(),
            // Whoever comes back was probed, or said so itself: what was before does not count.
            Ok(at) => {
                let pod = &mut self.pods[at];
                (pod.usable, pod.health, pod.penalty) = (usable, Health::default(), 0.0);
            }
            Err(at) => {
                self.next += 1;
                self.pods.insert(
                    at,
                    Pod {
                        address,
                        id: self.next,
                        in_flight: 0,
                        usable,
                        health: Health::default(),
                        penalty: 0.0,
                    },
                );
            }
        }
        self.arrange();
        self.grant(draw)
    }

    /// Forgets a pod. Requests on it finish without effect. The slices shift, which may give this activator others.
    #[must_use]
    pub fn remove(&mut self, address: SocketAddr, draw: u64) -> Vec<Grant<W>> {
        let Ok(at) = self.pods.binary_search_by_key(&address, |pod| pod.address) else { return Vec::new() };
        self.pods.remove(at);
        self.arrange();
        self.grant(draw)
    }

    /// Says which part of the pods is this activator's; none for all of them.
    #[must_use]
    pub fn assign(&mut self, slice: Option<Slice>, draw: u64) -> Vec<Grant<W>> {
        if self.slice == slice {
            return Vec::new();
        }
        self.slice = slice;
        self.arrange();
        self.grant(draw)
    }

    /// Changes the limit.
    #[must_use]
    pub fn set_limit(&mut self, limit: u32, draw: u64) -> Vec<Grant<W>> {
        self.limit = limit;
        self.arrange();
        self.grant(draw)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests at pods.
    pub fn in_flight(&self) -> u32 {
        self.pods.iter().map(|pod| pod.in_flight).sum()
    }

    /// Whether any pod takes requests of this activator.
    pub fn has_pods(&self) -> bool {
        !self.eligible.is_empty()
    }

    /// A pod answered, or failed to.
    pub fn record(&mut self, address: SocketAddr, failed: bool, now: Duration) {
        if let Ok(at) = self.pods.binary_search_by_key(&address, |pod| pod.address) {
            let pod = &mut self.pods[at];
            pod.health.record(failed, now);
            pod.penalty = pod.health.penalty(now);
        }
    }

    /// Lets penalties fade; answers whether any is left.
    pub fn advance(&mut self, now: Duration) -> bool {
        let mut left = false;
        for pod in self.pods.iter_mut().filter(|pod| pod.penalty > 0.0) {
            pod.penalty = pod.health.penalty(now);
            left |= pod.penalty > 0.0;
        }
        left
    }

    fn arrange(&mut self) {
        self.by_id = self.pods.iter().enumerate().map(|(at, pod)| (pod.id, at)).collect();
        let usable: Vec<usize> = (0..self.pods.len()).filter(|&at| self.pods[at].usable).collect();
        self.eligible = match self.slice {
            Some(slice) if self.limit > 0 => slice.of(&usable),
            _ => usable,
        };
    }

    fn grant(&mut self, mut draw: u64) -> Vec<Grant<W>> {
        let mut grants = Vec::new();
        while !self.queue.is_empty() {
            let Some(slot) = self.pick(draw) else { break };
            let Some((_, waiter)) = self.queue.pop_first() else { break };
            grants.push(Grant { waiter, slot });
            // A different draw for each of many waiters that are let go at once.
            draw = draw.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31).wrapping_add(1);
        }
        grants
    }

    fn pick(&mut self, draw: u64) -> Option<Slot> {
        let count = self.eligible.len();
        let at = match count {
            0 => return None,
            _ if self.limit == 0 => self.less_busy_of_two(draw),
            _ if self.limit <= FIRST_AVAILABLE_UP_TO => {
                let well = self.eligible.iter().find(|&&at| self.has_room(at) && self.is_well(at));
                *well.or_else(|| self.eligible.iter().find(|&&at| self.has_room(at)))?
            }
            _ => {
                let start = self.turn % count;
                let pod = |step: &usize| self.eligible[(start + step) % count];
                let well = (0..count).find(|step| self.has_room(pod(step)) && self.is_well(pod(step)));
                let offset = well.or_else(|| (0..count).find(|step| self.has_room(pod(step))))?;
                let place = (start + offset) % count;
                self.turn = place + 1;
                self.eligible[place]
            }
        };
        let pod = &mut self.pods[at];
        pod.in_flight += 1;
        Some(Slot { address: pod.address, id: pod.id })
    }

    fn has_room(&self, at: usize) -> bool {
        self.pods[at].in_flight < self.limit
    }

    /// Whether it has not failed again and again of late.
    fn is_well(&self, at: usize) -> bool {
        self.pods[at].penalty < 2.0
    }

    fn less_busy_of_two(&self, draw: u64) -> usize {
        let count = self.eligible.len() as u64;
        let first = ((draw & 0xFFFF_FFFF) * count) >> 32;
        if count == 1 {
            return self.eligible[0];
        }
        // The second is another one than the first.
        let second = (first + 1 + (((draw >> 32) * (count - 1)) >> 32)) % count;
        let (first, second) = (self.eligible[first as usize], self.eligible[second as usize]);
        let load = |at: usize| balance::load(self.pods[at].in_flight as usize, self.pods[at].penalty);
        if load(second) < load(first) { second } else { first }
    }
}

#[cfg(test)]
mod tests;
