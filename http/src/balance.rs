//! Choosing a backend. Pure: a policy sees loads and a random word, and returns an index.

mod health;

pub use self::health::{HALF_LIFE, Health, load};

/// Two random choices, the less loaded one (Mitzenmacher). `load(i)` is asked for at most two backends.
///
/// `random` is one uniformly random word. Returns `None` when there is no backend.
pub fn p2c<L: PartialOrd>(n: usize, random: u64, load: impl Fn(usize) -> L) -> Option<usize> {
    match n {
        0 => None,
        1 => Some(0),
        _ => {
            let first = scale(random as u32, n);
            // An offset of 1 to n-1 makes the second choice differ, without a loop.
            let second = (first + 1 + scale((random >> 32) as u32, n - 1)) % n;
            Some(if load(second) < load(first) { second } else { first })
        }
    }
}

/// The first backend with room. Packs load onto few backends, so that the others can go away.
pub fn first_available(n: usize, has_room: impl Fn(usize) -> bool) -> Option<usize> {
    (0..n).find(|&i| has_room(i))
}

/// In turn, starting after `last`, skipping those without room.
pub fn round_robin(n: usize, last: usize, has_room: impl Fn(usize) -> bool) -> Option<usize> {
    (1..=n).map(|step| (last.wrapping_add(step)) % n).find(|&i| has_room(i))
}

/// An index by weights, exactly proportional: weight 0 is never, a sole weight always.
///
/// `random` is one uniformly random word. Returns `None` when all weights are 0.
pub fn weighted(weights: impl Iterator<Item = u32> + Clone, random: u64) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    let mut point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    for (i, w) in weights.enumerate() {
        let w = u64::from(w);
        if point < w {
            return Some(i);
        }
        point -= w;
    }
    None
}

/// A small fast random generator (splitmix64) for balancing; not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`; equal seeds give equal sequences.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts somewhere else in each process and at each call.
    pub fn seeded() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self(RandomState::new().hash_one(0u8))
    }

    /// The next word.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// One random word from a generator of the thread's own.
pub fn random() -> u64 {
    use std::cell::RefCell;
    thread_local!(static RANDOM: RefCell<Random> = RefCell::new(Random::seeded()));
    RANDOM.with_borrow_mut(Random::next_u64)
}

fn scale(word: u32, n: usize) -> usize {
    ((u64::from(word) * n as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p2c_compares_two_different_backends() {
        let mut random = Random::new(7);
        for n in 2..20 {
            for _ in 0..200 {
                // All loads differ, so picking the most loaded means that it was compared with itself.
                let got = p2c(n, random.next_u64(), |i| i).unwrap();
                assert!(got < n - 1, "{got} of {n}");
            }
        }
        assert_eq!(p2c(0, 1, |_| 0), None);
        assert_eq!(p2c(1, 1, |_| 0), Some(0));
    }

    #[test]
    fn p2c_spreads_an_even_load() {
        let mut random = Random::new(1);
        let mut counts = [0u32; 5];
        for _ in 0..10_000 {
            counts[p2c(5, random.next_u64(), |_| 0).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&c| (1_800..2_200).contains(&c)), "{counts:?}");
    }

    #[test]
    fn round_robin_visits_all_and_skips_the_full() {
        let mut last = 2;
        let seen: Vec<_> = (0..4)
            .map(|_| {
                last = round_robin(3, last, |i| i != 1).unwrap();
                last
            })
            .collect();
        assert_eq!(seen, [0, 2, 0, 2]);
        assert_eq!(round_robin(3, 0, |_| false), None);
        assert_eq!(round_robin(0, 0, |_| true), None);
    }

    #[test]
    fn first_available_packs() {
        assert_eq!(first_available(3, |i| i > 0), Some(1));
        assert_eq!(first_available(3, |_| false), None);
    }

    #[test]
    fn weights_hold_and_zero_is_never() {
        let mut random = Random::new(3);
        let weights = [90, 0, 10];
        let mut counts = [0u32; 3];
        for _ in 0..100_000 {
            counts[weighted(weights.iter().copied(), random.next_u64()).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((89_500..90_500).contains(&counts[0]), "{counts:?}");
        assert_eq!(weighted([0, 100].into_iter(), u64::MAX), Some(1));
        assert_eq!(weighted([0, 0].into_iter(), 5), None);
    }
}
