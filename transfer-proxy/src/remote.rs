//! A proxy in a process of its own, and the channel between it and its node.
//!
//! ```text
//!   node: RemoteProxy                               proxy process: ControlPort
//!     | TCP, TLS 1.3, each pins the other's key       |
//!     |--- Hello(versions) -------------------------->|
//!     |<-- Welcome(version, uri) ---------------------|  an older connection ends
//!     |<== what the node may have missed, Synced =====|
//!     |=== every open order, Keep(their names) ======>|  all other transfers are closed
//!     |<== orders, events and progress as they come =>|
//! ```
//!
//! **Neither side stores anything, and nothing is lost.** The node's side keeps every open order
//! in memory and gives all of them again on each new connection, so that a proxy may restart at
//! any time; a node that restarts is given its orders anew by the machine that runs it. The
//! proxy's side keeps per open transfer what the node must have heard, and tells it again on each
//! new connection. All orders and all events may come twice, and a repeat changes nothing.
//! While there is no connection, transfers go on.
//!
//! The channel is the one place where private transfer keys, and where a host's files are, leave
//! a process. Both ends are the same owner's.

mod control;
mod held;
mod node;
pub(crate) mod wire;

pub(crate) use control::ControlPort;
pub use node::{Connection, PATIENCE, RemoteConfig, RemoteProxy};
