//! What a site keeps in mind for those who asked, in memory only: bounded, and shared out so that
//! whoever asks much pushes out what is its own, and never what is another's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use model::Time;

use crate::row::Party;

/// What is kept at most, in all.
pub(crate) const MAX_KEPT: usize = 10_000;
/// What is kept at most for one peer.
pub(crate) const MAX_KEPT_FOR_ONE: usize = 1_000;

/// Something that is kept for somebody.
pub(crate) trait Keepsake {
    /// For whom; this does not change.
    fn asker(&self) -> Party;
    /// Until when; nor does this.
    fn until(&self) -> Time;
    /// Whether it may be dropped before, to make room.
    fn may_go(&self) -> bool {
        true
    }
}

/// Things by their names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Kept<K: Ord, V> {
    all: BTreeMap<K, V>,
    /// The same by asker, what ends first in front.
    order: BTreeMap<Party, BTreeSet<(Time, K)>>,
}

impl<K: Ord, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), order: BTreeMap::new() }
    }
}

impl<K: Ord, V> Deref for Kept<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl<K: Ord + Copy, V: Keepsake> Kept<K, V> {
    /// Keeps it. Where there is no room left for its asker the oldest of the asker's own goes; where
    /// there is none at all, the oldest of whoever has the most. False, and nothing has changed, if
    /// what would have to go may not. What is this site's own is kept all the same, and pushes out
    /// what is its own alone.
    pub(crate) fn insert(&mut self, key: K, value: V) -> bool {
        let asker = value.asker();
        if !self.make_room(&asker) && asker != Party::Here {
            return false;
        }
        self.remove(&key);
        self.order.entry(asker).or_default().insert((value.until(), key));
        self.all.insert(key, value);
        true
    }

    fn make_room(&mut self, asker: &Party) -> bool {
        let own = self.order.get(asker).map_or(0, BTreeSet::len);
        let is_own = *asker == Party::Here;
        let share = if is_own { MAX_KEPT } else { MAX_KEPT_FOR_ONE };
        let is_full = self.all.len() >= MAX_KEPT;
        let whose = if own >= share || (is_full && is_own) {
            Some(asker)
        } else if is_full {
            // Of whoever has one that may go.
            let may = |kept: &BTreeSet<(Time, K)>| {
                kept.first().is_some_and(|(_, key)| self.all[key].may_go())
            };
            let some = self.order.iter().filter(|(_, kept)| may(kept));
            some.max_by_key(|(_, kept)| kept.len()).map(|(whose, _)| whose).or(Some(asker))
        } else {
            None
        };
        let Some(whose) = whose else { return true };
        let oldest = self.order.get(whose).and_then(|kept| kept.first()).map(|(_, key)| *key);
        let oldest = oldest.filter(|key| self.all[key].may_go());
        oldest.is_some_and(|key| self.remove(&key).is_some())
    }

    /// The value, to be changed; not its asker, and not its end.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.all.get_mut(key)
    }

    /// Drops it.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.all.remove(key)?;
        let asker = value.asker();
        let of_asker = self.order.get_mut(&asker).expect("each that is kept is in the order");
        of_asker.remove(&(value.until(), *key));
        if of_asker.is_empty() {
            self.order.remove(&asker);
        }
        Some(value)
    }

    /// Drops all that `stays` says no of.
    pub(crate) fn retain(&mut self, stays: impl Fn(&V) -> bool) {
        let over = self.all.iter().filter(|(_, value)| !stays(value)).map(|(key, _)| *key);
        for key in over.collect::<Vec<_>>() {
            self.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Thing(Party, Time, bool);

    impl Keepsake for Thing {
        fn asker(&self) -> Party {
            self.0.clone()
        }

        fn until(&self) -> Time {
            self.1
        }

        fn may_go(&self) -> bool {
            self.2
        }
    }

    fn party(number: usize) -> Party {
        Party::Peer(format!("p{number}").parse().unwrap())
    }

    fn thing(of: usize, until: usize) -> Thing {
        Thing(party(of), Time(until as u64), true)
    }

    #[test]
    fn whoever_asks_much_pushes_out_its_own_oldest_and_nobody_elses() {
        let mut kept = Kept::default();
        assert!(kept.insert(0, thing(1, 0)));
        for at in 1..=2 * MAX_KEPT_FOR_ONE {
            assert!(kept.insert(at, thing(2, at)));
        }
        assert_eq!(kept.len(), 1 + MAX_KEPT_FOR_ONE);
        assert!(kept.contains_key(&0), "another's, and older");
        assert!(!kept.contains_key(&MAX_KEPT_FOR_ONE));
        assert!(kept.contains_key(&(MAX_KEPT_FOR_ONE + 1)));
    }

    #[test]
    fn where_all_places_are_taken_whoever_has_the_most_loses_its_oldest() {
        let mut kept = Kept::default();
        let (many, few) = (MAX_KEPT_FOR_ONE, MAX_KEPT_FOR_ONE / 2);
        let parties = (0..9).map(|of| (of, many)).chain([(9, few), (10, few)]);
        let mut key = 0;
        for (of, count) in parties {
            for _ in 0..count {
                assert!(kept.insert(key, thing(of, key)));
                key += 1;
            }
        }
        assert_eq!(kept.len(), MAX_KEPT);
        assert!(kept.insert(key, thing(9, 0)));
        assert_eq!(kept.len(), MAX_KEPT);
        let of = |of: usize| kept.values().filter(|thing| thing.0 == party(of)).count();
        assert_eq!((of(9), of(10)), (few + 1, few));
        assert_eq!((0..9).map(of).filter(|count| *count == many - 1).count(), 1);
    }

    #[test]
    fn what_may_not_go_stays_and_the_new_one_is_not_kept() {
        let mut kept = Kept::default();
        for at in 0..MAX_KEPT_FOR_ONE {
            assert!(kept.insert(at, Thing(party(1), Time(at as u64), at != 0)));
        }
        let before = kept.clone();
        assert!(!kept.insert(MAX_KEPT_FOR_ONE, thing(1, 7)));
        assert_eq!(kept, before);
        kept.get_mut(&0).unwrap().2 = true;
        assert!(kept.insert(MAX_KEPT_FOR_ONE, thing(1, 7)));
        for at in MAX_KEPT_FOR_ONE + 1..=2 * MAX_KEPT {
            assert!(kept.insert(at, Thing(Party::Here, Time(9), false)), "this site's own");
        }
        kept.retain(|thing| thing.1 < Time(5));
        assert_eq!(kept.len(), 4);
        for at in 1..5 {
            assert_eq!(kept.remove(&at), Some(thing(1, at)));
        }
        assert_eq!(kept, Kept::default(), "and no trace of them is left");
    }
}
