//! Why a transfer cannot go on: in words that a peer may hear, and in words for this site.

use model::{Bytes, FileId};
use serde::{Deserialize, Serialize};

/// What one end tells the other when it gives up. It names no path and nothing of the inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Reason {
    #[error("{0} changed while it was sent; the guest must not run during the copy")]
    Changed(FileId),
    #[error("{0} cannot be read at the source")]
    Unreadable(FileId),
    #[error("a manifest that the protocol does not allow")]
    Manifest,
    #[error("{0} is not among the files agreed on")]
    Unexpected(FileId),
    #[error("{size} to move, {budget} agreed on")]
    Budget { size: Bytes, budget: Bytes },
    #[error("more content was asked for than agreed on ({0})")]
    Spent(Bytes),
    #[error("a chunk of {0} does not match the manifest")]
    Chunk(FileId),
    #[error("the target's storage is full; free some space and start the transfer again")]
    Full,
    #[error("the target cannot write the files")]
    Unwritable,
    #[error("the content changed after it was received")]
    Replaced,
    #[error("a message that the protocol does not allow")]
    Protocol,
    #[error("no carrier that both ends allow")]
    Carrier,
}

/// A [`Reason`] with what this site alone may know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: Reason,
    /// The whole story for this site's log and status; may name paths.
    pub(crate) local: String,
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Self {
        Self { reason, local: reason.to_string() }
    }
}

impl Fault {
    pub(crate) fn with(reason: Reason, detail: impl std::fmt::Display) -> Self {
        Self { reason, local: format!("{reason}: {detail}") }
    }
}
