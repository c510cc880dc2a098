//! Which pods belong to one of several activators.

/// This activator's place among those in the path of a revision, ordered by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Its index.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Slice {
    /// The part of `items` that is this activator's: equal shares in order, one of the remaining items to each of the
    /// first activators; with fewer items than activators, several activators share an item.
    pub fn of<T: Copy>(self, items: &[T]) -> Vec<T> {
        let Slice { index, count } = self;
        if items.len() <= 1 || count <= 1 || index >= count {
            return items.to_vec();
        }
        if count > items.len() {
            return vec![items[index % items.len()]];
        }
        let share = items.len() / count;
        let mut mine = items[index * share..(index + 1) * share].to_vec();
        let rest = &items[share * count..];
        mine.extend(rest.get(index));
        mine
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares() {
        let pods: Vec<u32> = (0..5).collect();
        assert_eq!(Slice { index: 0, count: 2 }.of(&pods), [0, 1, 4]);
        assert_eq!(Slice { index: 1, count: 2 }.of(&pods), [2, 3]);
        assert_eq!(Slice { index: 4, count: 7 }.of(&pods), [4]);
        assert_eq!(Slice { index: 6, count: 7 }.of(&pods), [1]);
        assert_eq!(Slice { index: 0, count: 1 }.of(&pods), pods);
    }

    proptest! {
        #[test]
        fn every_pod_has_an_activator(pods in 0usize..40, count in 1usize..10) {
            let items: Vec<usize> = (0..pods).collect();
            let mut all: Vec<usize> = (0..count).flat_map(|index| Slice { index, count }.of(&items)).collect();
            let given = all.len();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(&all, &items);
            if pods >= count && pods > 1 {
                prop_assert_eq!(given, pods, "and only one");
            }
        }
    }
}
