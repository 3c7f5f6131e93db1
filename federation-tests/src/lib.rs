//! Whole federations, to be tried out.
//!
//! [`world`] runs several real [`protocol::Site`] machines in one thread and in virtual time, over
//! simulated disks, guests, transfers and a network that loses, repeats and reorders.
//! Everything that happens is a [`world::Step`] of a [`world::Federation`], which is a plain value:
//! scenarios take the steps in the order of time, the model checker in every order.
//!
//! [`transcript`] makes texts of what happened, to be read and compared.
//!
//! [`simulator`] makes millions of them from seeds, with everything that can go wrong.
//! [`parsers`] has what must hold of everything that reads bytes from outside, for fuzzing and for
//! the tests alike.
//!
//! [`process`] runs real nodes, over real disks and sockets, driven through the command line.
//! [`lives`] kills them at their journal rows; [`chaos`] kills, holds and cuts off nodes, proxies
//! and real guests. [`mod@bench`] has what the measuring programs share.

#[cfg(feature = "processes")]
pub mod bench;
#[cfg(feature = "processes")]
pub mod chaos;
#[cfg(feature = "processes")]
pub mod lives;
#[cfg(feature = "processes")]
pub mod parsers;
#[cfg(feature = "processes")]
pub mod process;
pub mod simulator;
pub mod transcript;
pub mod world;

/// Does something with each of `items`, `at_once` of them at the same time.
pub fn side_by_side<T: Sync>(items: &[T], at_once: usize, work: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let take = || items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| std::iter::from_fn(take).for_each(&work));
        }
    });
}
