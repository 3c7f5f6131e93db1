//! Floods: a node under each of them answers an honest peer nearly as soon as without it, in
//! bounded memory, and is as before when it is over.
//!
//! Everything is real: the node's process, its sockets, and peers with sound identities, which the
//! test plays from loopback addresses of its own. What was seen is printed as a table: the flood and
//! what it said; milliseconds of the 99th of a hundred answers on an old connection, quiet, flooded
//! and their ratio; the same on new connections, quiet and flooded; sockets and files that the node
//! had open; MiB of memory before, after and at most; seconds of processor time.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

mod control;
mod data;
mod frames;
mod ground;
