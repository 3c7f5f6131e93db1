//! The data plane: moves the files of a VM from the Source's proxy to the Destination's.
//!
//! The Destination's proxy dials the Source's, shows a token, and pulls (papers/003, "Initiate
//! transfer handler").
//! Nobody outside a proxy knows what a token means; only the proxy's address crosses the border.
//! The data never passes the node: the node calls a [`TransferProxy`] and hears [`Event`]s.
//! That is a [`Proxy`] in its own process, or a [`RemoteProxy`]: the handle of a [`process`] on
//! another machine of the site.
//!
//! ```text
//!   target                                        source
//!     | QUIC, TLS raw public keys, both pinned      |
//!     |--- control: Hello(token) ------------------>|  key, token and hint belong together?
//!     |<-- control: Welcome(vm, migration) ---------|  Event::Opened
//!     |<== control: Tell, Ack, Broken ==============|  both ways, at any time
//!     |                                             |  provide, Event::Sent
//!     |<-- one stream: the manifest ----------------|
//!     |  checks it, looks at what it holds already  |
//!     |--- a stream per run: Fetch(file, chunks) -->|
//!     |<-- the bytes of these chunks ---------------|  hashed again while they are read
//!     |  each chunk checked, written, fsync         |
//!     |  Event::Received                            |
//! ```
//!
//! From the outside in: `order` (what a node asks); [`process`] and `remote` (a proxy on another
//! machine, and the control channel to it); [`Proxy`] and its tables; `source`, `target` and
//! `session` (what the ends do and say); `message` (the bytes of it); `store` and `chunk` (files);
//! `carrier` (QUIC, the only module that knows quinn) and `tls` (keys).
//! A second carrier goes beside `carrier` and offers the same few types.
//!
//! **Resuming needs no record.** A target that starts again reads what lies in the folder, hashes
//! it, and fetches only the chunks that differ from the manifest. Nothing on disk is ever trusted.
//!
//! **Memory of one session** is bounded whatever the path: at either end by the connection window
//! (`carrier::CONNECTION_WINDOW_BYTES`, 32 MiB), plus two chunks of 1 MiB per data stream
//! (`carrier::DATA_STREAMS`, 8), plus the manifest (34 bytes per MiB of data).

mod carrier;
mod chunk;
mod fault;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod message;
mod order;
pub mod process;
mod proxy;
mod remote;
mod session;
mod source;
mod store;
mod target;
mod tls;
mod transfer;

pub use carrier::ResetKey;
pub use order::{Pull, PullError, Serve, ServeError, TellError, TransferProxy};
pub use proxy::{Config, Limits, Proxy, StartError};
pub use remote::{Connection, PATIENCE, RemoteConfig, RemoteProxy};
pub use transfer::{End, Event, MAX_TELL_BYTES, OUTBOX_MESSAGES, Progress};
