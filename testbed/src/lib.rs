//! Links between places that have none: two network namespaces, and between them a line with a
//! rate, a delay, jitter, loss, reordering and a queue, by a seed.
//!
//! ```text
//!   namespace A                    this process                    namespace B
//!   10.77.0.1                                                      10.77.0.2
//!   programs ─▶ TUN `link` ─▶ relay: queue ▷ line ▷ delay ─▶ TUN `link` ─▶ programs
//!            ◀──           ◀── relay: delay ◁ line ◁ queue ◀──          ◀──
//! ```
//!
//! - [`link`]: what one direction does to packets, as a value without a clock.
//! - [`space`]: a network namespace without a name.
//! - [`emulator`]: both, joined and running: [`Emulator`]; and [`Ends::veth`] where no link is to be
//!   emulated.
//! - [`units`]: how people write rates, times, shares and sizes.
//!
//! The program `sojourn-testbed` is this for operators.
//!
//! # Why not netem
//!
//! Linux has an emulator, the queueing discipline `netem`, and where its kernel module is missing
//! there is none.
//! Here one implementation runs everywhere, also where netem is there: figures that were measured
//! on two machines mean the same, a seed gives the same losses on each, and nothing has to be
//! installed in a kernel.
//! The price is processor time and some tens of microseconds, which [`emulator`] states.

pub mod emulator;
pub mod link;
pub mod space;
pub mod units;

pub use emulator::{Counters, Emulator, Ends, Settings, Side, Traffic, Way};
pub use link::{Direction, Loss};
pub use space::Space;
