//! Places for whoever comes in: so many at once, and who gives way when there are no more.
//!
//! Refusing the newest would let whoever came first keep all others out for as long as it likes, and
//! if the oldest gave way to each newcomer, a crowd would push out whoever takes longer than it does
//! to come. So somebody gives way whom nobody can foresee, of whoever holds most: a crowd loses its
//! own places to others, whoever holds one keeps it, and in a crowd of many each try may succeed.
//! Who has its share gives its own oldest for a new one.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use rand::seq::IndexedRandom;
use tokio::sync::oneshot;

/// Places, held in the name of a `K`. Clones are the same places.
pub struct Places<K>(Arc<Mutex<Table<K>>>);

struct Table<K> {
    most: usize,
    share: usize,
    /// The number of the next place.
    next: u64,
    /// Oldest first. Whoever loses a place hears of it by the end of the channel.
    held: BTreeMap<u64, (K, oneshot::Sender<()>)>,
}

/// A place, until it is dropped or given to another.
pub struct Place<K: Clone + Eq + Hash> {
    number: u64,
    /// None once it is known to be lost.
    held: Option<oneshot::Receiver<()>>,
    places: Places<K>,
}

impl<K> Clone for Places<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Places<K> {
    fn table(&self) -> MutexGuard<'_, Table<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> Places<K> {
    /// `most` places in all, and `share` at most for one holder.
    pub fn new(most: usize, share: usize) -> Self {
        Self(Arc::new(Mutex::new(Table { most, share, next: 0, held: BTreeMap::new() })))
    }

    /// Takes a place. There always is one: another gives way where they are short.
    pub fn take(&self, holder: K) -> Place<K> {
        let (sender, held) = oneshot::channel();
        let mut table = self.table();
        if let Some(number) = table.gives_way(&holder) {
            table.held.remove(&number);
        }
        let number = table.next;
        table.next += 1;
        table.held.insert(number, (holder, sender));
        Place { number, held: Some(held), places: self.clone() }
    }

    /// Places that are held.
    pub fn taken(&self) -> usize {
        self.table().held.len()
    }
}

impl<K: Clone + Eq + Hash> Table<K> {
    /// The place that is given to a newcomer, if there is none left for it.
    fn gives_way(&self, newcomer: &K) -> Option<u64> {
        let mut own = self.held.iter().filter(|(_, (holder, _))| holder == newcomer);
        let oldest = own.next().map(|(number, _)| *number);
        if 1 + own.count() >= self.share && oldest.is_some() {
            return oldest;
        }
        if self.held.len() < self.most {
            return None;
        }
        let mut counts: HashMap<&K, usize> = HashMap::new();
        for (holder, _) in self.held.values() {
            *counts.entry(holder).or_default() += 1;
        }
        let most = counts.values().max()?;
        let of_most = self.held.iter().filter(|(_, (holder, _))| counts.get(holder) == Some(most));
        let of_most: Vec<u64> = of_most.map(|(number, _)| *number).collect();
        of_most.choose(&mut rand::rng()).copied()
    }
}

impl<K: Clone + Eq + Hash> Place<K> {
    /// Waits until it is given to another.
    pub async fn lost(&mut self) {
        std::future::poll_fn(|context| self.poll_lost(context)).await;
    }

    /// Whether it was given to another.
    pub fn poll_lost(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(held) = &mut self.held {
            std::task::ready!(Pin::new(held).poll(context)).unwrap_or_default();
            self.held = None;
        }
        Poll::Ready(())
    }
}

impl<K: Clone + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        self.places.table().held.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it was given to another.
    fn is_lost(place: &mut Place<u8>) -> bool {
        place.poll_lost(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn whoever_holds_its_share_gives_its_own_oldest_for_a_new_one() {
        let places = Places::new(10, 2);
        let mut held: Vec<Place<u8>> = [1, 1, 2, 1].map(|holder| places.take(holder)).into();
        let lost: Vec<bool> = held.iter_mut().map(is_lost).collect();
        assert_eq!(lost, [true, false, false, false]);
        assert_eq!(places.taken(), 3);
    }

    #[test]
    fn one_of_whoever_holds_most_gives_way_when_all_are_taken() {
        for _ in 0..20 {
            let places = Places::new(4, 3);
            let mut held: Vec<Place<u8>> = [7, 1, 1, 2].map(|holder| places.take(holder)).into();
            held.push(places.take(3));
            let lost: Vec<bool> = held.iter_mut().map(is_lost).collect();
            assert_eq!([lost[0], lost[1] ^ lost[2], lost[3], lost[4]], [false, true, false, false]);
            assert_eq!(places.taken(), 4);
        }
    }

    #[test]
    fn in_a_crowd_of_many_somebody_who_takes_longer_to_come_may_stay() {
        let places = Places::new(64, 16);
        let stays = (0..100).filter(|_| {
            let mut slow = places.take(0);
            // So many have come meanwhile for whom there was no place as there are places.
            let _crowd: Vec<Place<u8>> = (1..=127).map(|n| places.take(n)).collect();
            !is_lost(&mut slow)
        });
        let stays = stays.count();
        assert!((10..=90).contains(&stays), "{stays} of 100, and one in e should");
    }

    #[test]
    fn a_place_that_is_left_is_free() {
        let places = Places::new(1, 1);
        drop(places.take(1));
        assert_eq!(places.taken(), 0);
        let (mut first, second) = (places.take(1), places.take(2));
        assert!(is_lost(&mut first));
        // Whoever has lost a place takes none along when it goes.
        drop(first);
        assert_eq!(places.taken(), 1);
        drop(second);
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn one_of_a_crowd_gives_way_to_whoever_comes_alone() {
        let places = Places::new(64, 16);
        let mut alone = places.take(0);
        let _crowd: Vec<Place<u8>> = (0..200).map(|n| places.take(1 + n % 4)).collect();
        assert!(!is_lost(&mut alone));
        assert_eq!(places.taken(), 64);
    }
}
