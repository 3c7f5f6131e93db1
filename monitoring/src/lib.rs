//! Producers and consumers of what is measured of a VM, as its descriptor configures them
//! (papers/003, section IV): the parts without sockets and clocks.
//!
//! ```text
//!   hypervisor ─▶ sample ─┐
//!                         ├─▶ producer ─▶ blocks, signed ─▶ book ══ hop by hop ══▶ book ─▶ readers
//!   guest's files ─ rows ─┘   (interval, format,             (kept until the       (query, policies,
//!                              condition)                     next site has it)     metrics)
//! ```
//!
//! - [`producer`]: which measurements are taken, and when they are told, and as what.
//! - [`port`]: what the guest and its site say to each other, a line each.
//! - [`sample`]: what a hypervisor counts, added up over all processes of a guest.
//! - [`block`]: values on the wire; [`seal`]: those that only the primary reads.
//! - [`book`]: what a site keeps, owes to the next site, has lost sight of, and shows.
//! - [`history`]: what moves with the VM.
//! - [`usage`]: what a VM has used, stated and signed for bills.
//! - [`query`]: SQL over one VM's values, which can neither write nor take for ever.

pub mod block;
pub mod book;
pub mod history;
pub mod port;
pub mod producer;
pub mod query;
pub mod sample;
pub mod seal;
pub mod usage;
