//! The data plane: moves the files of a VM from the Source's proxy to the Destination's.
//!
//! The Destination's proxy dials the Source's, shows a token, and says what it has (papers/003,
//! "Initiate transfer handler").
//! Nobody outside a proxy knows what a token means; only the proxy's address crosses the border.
//! The data never passes the node: the node calls a [`TransferProxy`] and hears [`Event`]s.
//! That is a [`Proxy`] in its own process, or a [`RemoteProxy`]: the handle of a [`process`] on
//! another machine of the site.
//!
//! ```text
//!   target                                        source
//!     | QUIC, or TLS over TCP; raw public keys, both pinned
//!     |--- control: Hello(token), Holds ----------->|  key, token and hint belong together?
//!     |<-- control: Welcome(vm, migration) ---------|  Event::Opened
//!     |<== control: Tell, Taken, Broken ============|  both ways, at any time
//!     |                                             |  the guest is quiet: provide
//!     |<-- control: Layout (files and sizes) -------|
//!     |<-- lanes: chunks that the target has -------|  read and hashed once, while they are sent
//!     |           nothing of                        |
//!     |<-- control: Sums (a hash of each chunk) ----|
//!     |--- control: Judged (what it has of these)-->|
//!     |<-- lanes: chunks, or their blocks that -----|
//!     |           differ                            |  all was read: Event::Sent
//!     |<-- control: End(root of the manifest) ------|
//!     |  each chunk checked, written; fsync         |
//!     |  Event::Received                            |
//! ```
//!
//! From the outside in: `order` (what a node asks); [`process`] and `remote` (a proxy on another
//! machine, and the control channel to it); [`Proxy`] and its tables; `source`, `target` and
//! `session` (what the ends do and say); `message` (the bytes of it); `content`, `store`, `piece`,
//! `chunk` and `buffer` (files); `shaper` (who gets how much of the link), `pilot` (which carrier is used);
//! `carrier` (QUIC and TLS, the only module that knows quinn and sockets) and `tls` (keys).
//!
//! **Resuming needs no record.** Within a process a target knows what it saw; one that starts
//! again declares what lies in the folder, hashes it when the source has said what belongs there,
//! and fetches the blocks that differ. Nothing on disk is ever trusted.
//!
//! **Memory of one session** is bounded whatever the path: at either end by the connection window
//! (`carrier::quic::CONNECTION_WINDOW_BYTES`, 32 MiB; over TCP by the system's socket buffers),
//! plus six chunks of 1 MiB per lane (at most 16 lanes; ours have 4 or 2), plus 70 bytes per MiB of
//! files. For all sessions together a process keeps up to 16 chunks' room for later (`buffer`).

mod buffer;
mod call;
mod carrier;
mod chunk;
mod content;
mod fault;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod leg;
mod message;
mod order;
mod piece;
mod pilot;
mod places;
pub mod process;
mod proxy;
mod relay;
mod remote;
mod session;
mod shaper;
mod source;
mod store;
mod target;
mod tls;
mod transfer;

pub use carrier::{Doorstep, ResetKey};
pub use gate::network;
pub use order::{
    Dial, Group, Pull, PullError, Relay, Serve, ServeError, Share, TellError, TransferProxy,
};
pub use places::{Place, Places};
pub use proxy::{Config, Limits, Proxy, StartError};
pub use remote::{Connection, PATIENCE, RemoteConfig, RemoteProxy};
pub use transfer::{End, Event, MAX_TELL_BYTES, OUTBOX_MESSAGES, Progress};
