//! Who a site is, on disk and on a channel.
//!
//! A site is its Ed25519 [`Identity`] key. For TLS the key stands behind a root certificate, and
//! the root behind a leaf whose key lives in memory only. A peer is checked against its own root
//! and nothing else: there is no merged store, so that no peer can speak for another.
//!
//! ```text
//!   identity key ──self-signs──▶ root ──signs──▶ leaf ──▶ TLS 1.3, both ways
//!    (pinned by peers)            (always the same bytes)   (new for every configuration)
//! ```
//!
//! Two sites come to know each other by a [`Ticket`], carried by people.

mod credentials;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod succession;
mod ticket;
mod tls;

pub use credentials::LEAF_VALIDITY;
pub use identity::{Identity, IdentityError, KEY_FILE};
pub use succession::LINE_FILE;
pub use ticket::{MAX_ADDRESSES, MAX_TICKET_CHARS, SecretHash, Ticket, TicketError, TicketSecret};
pub use tls::{
    ALPN, Refusal, TlsError, Trust, client_config, provider, server_config, server_name,
    site_key_of,
};
