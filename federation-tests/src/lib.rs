//! Whole federations, to be tried out.
//!
//! [`world`] runs several real [`protocol::Site`] machines in one thread and in virtual time, over
//! simulated disks, guests, transfers and a network that loses, repeats and reorders.
//! Everything that happens is a [`world::Step`] of a [`world::Federation`], which is a plain value:
//! scenarios take the steps in the order of time, the model checker in every order.
//!
//! [`simulator`] makes millions of them from seeds, with everything that can go wrong.
//!
//! [`process`] runs real nodes, over real disks and sockets, driven through the command line.

#[cfg(feature = "processes")]
pub mod process;
pub mod simulator;
pub mod world;
