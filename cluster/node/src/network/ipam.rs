//! Which pod address is free.
//!
//! Nothing is persisted: pods do not outlive the node's process (their helpers end with it), so a start begins with an
//! empty range. Addresses are given out round robin, so that one that has just been freed is the last to come again:
//! clients that still talk to the old pod must not reach a stranger.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Addresses of one range. The network's and the broadcast address are never given out.
#[derive(Debug)]
pub(crate) struct Ipam {
    base: u32,
    first: u32,
    last: u32,
    next: u32,
    used: HashSet<u32>,
}

impl Ipam {
    /// Addresses from `cidr`'s network address plus `first_offset`.
    pub(crate) fn new(cidr: Ipv4Net, first_offset: u32) -> Self {
        let base = u32::from(cidr.network());
        let last = u32::from(cidr.broadcast()).saturating_sub(base + 1);
        let first = first_offset.max(1);
        Self { base, first, last, next: first, used: HashSet::new() }
    }

    /// A free address; None when all are in use.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let size = self.last.checked_sub(self.first)? + 1;
        for _ in 0..size {
            let offset = self.next;
            self.next = if offset >= self.last { self.first } else { offset + 1 };
            if self.used.insert(offset) {
                return Some(Ipv4Addr::from(self.base + offset));
            }
        }
        None
    }

    /// Gives an address back.
    pub(crate) fn free(&mut self, address: Ipv4Addr) {
        self.used.remove(&u32::from(address).wrapping_sub(self.base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_robin_and_exhaustion() {
        let mut ipam = Ipam::new("10.1.0.0/29".parse().unwrap(), 4);
        let all: Vec<_> = std::iter::from_fn(|| ipam.take()).collect();
        assert_eq!(all, ["10.1.0.4", "10.1.0.5", "10.1.0.6"].map(|a| a.parse::<Ipv4Addr>().unwrap()));
        ipam.free(all[0]);
        assert_eq!(ipam.take(), Some(all[0]));
        assert_eq!(ipam.take(), None);
    }

    #[test]
    fn a_freed_address_comes_last() {
        let mut ipam = Ipam::new("10.1.0.0/28".parse().unwrap(), 1);
        let first = ipam.take().unwrap();
        ipam.free(first);
        assert_ne!(ipam.take(), Some(first));
    }
}
