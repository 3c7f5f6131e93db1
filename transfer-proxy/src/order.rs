//! What a node asks of a transfer proxy, wherever that runs.

use std::path::PathBuf;

use model::{Bytes, FileId, MigrationId, ProxyUri, PublicKey, SecretKey, Token, TokenHash, VmId};

use crate::transfer::{End, MAX_TELL_BYTES, Progress};

/// A transfer for the proxy to be ready for, as Source. It prints no key.
#[derive(Clone)]
pub struct Serve {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// What the target's token must hash to.
    pub token_hash: TokenHash,
    /// [`Token::hint`] of that token.
    pub hint: [u8; 16],
    /// This end's transfer key.
    pub key: SecretKey,
    /// The target's transfer key.
    pub peer_key: PublicKey,
    /// How much content may be sent for this token in all, repeats after a cut included.
    pub byte_budget: Bytes,
}

/// A transfer to fetch, as Target. It prints no key and no token.
#[derive(Clone)]
pub struct Pull {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// The source's proxy.
    pub from: ProxyUri,
    /// The source's token.
    pub token: Token,
    /// This end's transfer key.
    pub key: SecretKey,
    /// The source's transfer key.
    pub peer_key: PublicKey,
    /// Where the files go, as [`FileId::file_name`]. For this migration alone: what lies there
    /// under the name of an expected file is kept only as far as it fits the manifest.
    /// It is made if missing; its parent must be there.
    pub folder: PathBuf,
    /// Size of all files together at most, holes included.
    pub budget: Bytes,
    /// The files that may come. With none the session is only for what both nodes tell each
    /// other: nothing is read or written.
    pub expected: Vec<FileId>,
}

impl Serve {
    /// Whether both ask for the same.
    pub(crate) fn has_terms_of(&self, other: &Self) -> bool {
        let terms = |serve: &Self| {
            let Self { migration, vm, token_hash, hint, key, peer_key, byte_budget } = serve;
            (*migration, *vm, *token_hash, *hint, key.public(), *peer_key, *byte_budget)
        };
        terms(self) == terms(other)
    }
}

impl Pull {
    /// Whether both ask for the same.
    pub(crate) fn has_terms_of(&self, other: &Self) -> bool {
        let terms = |pull: &Self| {
            let Self { migration, vm, from, token, key, peer_key, folder, budget, expected } = pull;
            let (from, token, key) = (from.clone(), token.hash(), key.public());
            let (folder, expected) = (folder.clone(), expected.clone());
            (*migration, *vm, from, token, key, *peer_key, folder, *budget, expected)
        };
        terms(self) == terms(other)
    }
}

/// A transfer proxy, as its node uses it: in the node's process ([`crate::Proxy`]) or in one of
/// its own ([`crate::RemoteProxy`]). Nothing here waits; what comes of an order is an
/// [`crate::Event`].
pub trait TransferProxy: Send + Sync {
    /// Where proxies of other sites dial this one.
    fn uri(&self) -> ProxyUri;

    /// Source: be ready for the target that has the token and the key. A repeat changes nothing.
    fn serve(&self, serve: Serve) -> Result<(), ServeError>;

    /// Source: the guest is quiet, and here are its files. Their manifest is made, which takes as
    /// long as reading them once, then comes [`crate::Event::Sent`]; the session gets it when
    /// there is one. Repeated, it only tells again. The migration must be served.
    fn provide(&self, migration: MigrationId, files: Vec<(FileId, PathBuf)>);

    /// Target: fetch the files; reconnect as often as it takes until [`TransferProxy::close`].
    /// A repeat changes nothing while it is under way, and starts again what failed for good.
    fn pull(&self, pull: Pull) -> Result<(), PullError>;

    /// Tells the node at the other end something: at least once if a session comes about, else
    /// it is kept. Of messages that nobody took, the latest [`crate::OUTBOX_MESSAGES`] are kept,
    /// in memory: what must survive a restart is told again by the node.
    fn tell(&self, migration: MigrationId, end: End, message: Vec<u8>) -> Result<(), TellError>;

    /// Ends the transfer at this end: the token is revoked at once, and the session closed as
    /// soon as the other end took what was told, or within two seconds.
    fn close(&self, migration: MigrationId, end: End);

    /// How far a transfer is; none if it is not known here.
    fn progress(&self, migration: MigrationId, end: End) -> Option<Progress>;
}

/// Why a transfer cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// Too many at once.
    #[error("{0} transfers are served already; try again when one ended")]
    Full(usize),
    /// The migration is served on other terms, or another one uses the token.
    #[error("migration {0} or its token is served already on other terms; close it first")]
    Conflict(MigrationId),
}

/// Why a transfer cannot be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// Too many at once.
    #[error("{0} transfers are fetched already; try again when one ended")]
    Full(usize),
    /// The migration is fetched on other terms.
    #[error("migration {0} is fetched already on other terms; close it first")]
    Conflict(MigrationId),
}

/// Why a message cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// Longer than [`MAX_TELL_BYTES`].
    #[error("a message of {0} bytes is too long to be told, {MAX_TELL_BYTES} are allowed")]
    Long(usize),
    /// No such transfer: never begun, or closed.
    #[error("no transfer of migration {0} is open at this end")]
    Unknown(MigrationId),
}
