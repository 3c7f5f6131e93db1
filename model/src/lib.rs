//! The nouns of Sojourn: what sites talk about, as plain values.
//!
//! Nothing here does I/O, knows a clock, or knows how a value travels.
//! Every identity and every unit has a type of its own, so that the wrong one does not compile.

pub mod contract;
pub mod decision;
pub mod digest;
pub mod id;
pub mod journal;
pub mod key;
pub mod limit;
pub mod manifest;
pub mod monitoring;
pub mod offer;
pub mod peering;
pub mod quantity;
pub mod statement;
pub mod time;
pub mod token;
pub mod vm;

pub use contract::{Agreed, Contract, Proposal};
pub use digest::Digest;
pub use id::{
    EdgeHandle, Epoch, HostName, MigrationId, OperationId, PeerName, RequestId, VmId, VmName,
};
pub use journal::JournalMark;
pub use key::{PublicKey, SecretKey, Signature, Signed, SiteKey};
pub use manifest::{FileId, FileKind, Manifest, ManifestFile};
pub use monitoring::Monitoring;
pub use offer::{
    Carrier, Offer, ProxyUri, Terms, TransferEnd, configured_uri, configured_uri_if_any,
};
pub use peering::{Limits, Peering, Right, Taken};
pub use quantity::{Bytes, Resources};
pub use statement::{Certificate, Chain, Statement};
pub use time::Time;
pub use token::{Token, TokenHash};
pub use vm::{Descriptor, PowerState, RunProfile};
