//! A map of which a copy is cheap, and stays cheap when one of the two is changed: what a change costs does not grow with the whole.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// With ten thousand names each part has some forty.
const PARTS: usize = 256;

/// Values by name, in parts that copies share until one of them changes a part.
#[derive(Clone, Debug)]
pub struct Shards<V> {
    /// Which part a name is in depends on a secret, so that nobody can choose names that all meet in one.
    hasher: RandomState,
    parts: Box<[Arc<Part<V>>]>,
    len: usize,
}

type Part<V> = HashMap<Arc<str>, V>;

impl<V> Default for Shards<V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { hasher: RandomState::new(), parts: vec![empty; PARTS].into(), len: 0 }
    }
}

impl<V> Shards<V> {
    fn part(&self, name: &str) -> usize {
        (self.hasher.hash_one(name) % PARTS as u64) as usize
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&V> {
        if self.len == 0 {
            return None;
        }
        self.parts[self.part(name)].get(name)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.parts.iter().flat_map(|part| part.iter()).map(|(name, value)| (&**name, value))
    }
}

impl<V: Clone> Shards<V> {
    /// Gives a name a value.
    pub fn insert(&mut self, name: &Arc<str>, value: V) {
        let part = self.part(name);
        let before = Arc::make_mut(&mut self.parts[part]).insert(name.clone(), value);
        self.len += usize::from(before.is_none());
    }

    /// Takes a name out.
    pub fn remove(&mut self, name: &str) {
        let part = self.part(name);
        if self.parts[part].contains_key(name) {
            Arc::make_mut(&mut self.parts[part]).remove(name);
            self.len -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_had_and_shares_the_rest() {
        let mut map = Shards::default();
        for n in 0..1000 {
            map.insert(&format!("host-{n}").into(), n);
        }
        let copy = map.clone();
        map.insert(&"host-7".into(), 70);
        map.remove("host-8");
        map.remove("nobody");
        assert_eq!((map.get("host-7"), map.get("host-8"), map.len()), (Some(&70), None, 999));
        assert_eq!((copy.get("host-7"), copy.get("host-8"), copy.len()), (Some(&7), Some(&8), 1000));
        let same = map.parts.iter().zip(&copy.parts).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert!(same >= PARTS - 2, "{same} parts are shared");
        assert_eq!(copy.iter().count(), 1000);
    }
}
