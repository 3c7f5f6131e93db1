//! What a node asks of a transfer proxy, wherever that runs.

use std::path::PathBuf;

use model::{
    Bytes, Carrier, FileId, MigrationId, ProxyUri, PublicKey, SecretKey, Token, TokenHash, VmId,
};

use crate::transfer::{End, MAX_TELL_BYTES, Progress};

/// Transfers that share a rate: those with one peer.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Group(pub u64);

/// What a transfer may take of the site's link. All rates that are set hold together.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Share {
    /// Against others that wait, where a rate is set: 3 gets three times as much as 1.
    pub weight: u32,
    /// Goes before all that is not: a migration with a deadline.
    pub urgent: bool,
    /// Bytes a second, at most.
    pub rate: Option<Bytes>,
    /// The transfers that it shares `group_rate` with.
    pub group: Option<Group>,
    /// Bytes a second of the whole group, at most.
    pub group_rate: Option<Bytes>,
}

impl Default for Share {
    fn default() -> Self {
        Self { weight: 1, urgent: false, rate: None, group: None, group_rate: None }
    }
}

/// A proxy to dial for one transfer. It prints no token.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dial {
    /// Where it is. Where that has no address ([`ProxyUri::is_dial_out`]), the other side dials
    /// this proxy instead, and shows `token`.
    pub uri: ProxyUri,
    /// What to show there.
    pub token: Token,
    /// The key that it shows for the transfer.
    pub key: PublicKey,
}

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
    /// Where nobody can dial this proxy: the target's, or a relay's, that it dials.
    pub dial: Option<Dial>,
    /// What it may take of the link.
    pub share: Share,
}

/// A transfer of others to pass on, between its target, or a relay, and its source, or a relay. It
/// prints no key and no token.
#[derive(Clone)]
pub struct Relay {
    /// The migration.
    pub migration: MigrationId,
    /// What the token must hash to that is shown from the target's side.
    pub token_hash: TokenHash,
    /// [`Token::hint`] of that token.
    pub hint: [u8; 16],
    /// The key to show, to both sides.
    pub key: SecretKey,
    /// The next proxy on the way to the source.
    pub next: Dial,
    /// The only carrier that is allowed on the way there, if one is.
    pub carrier: Option<Carrier>,
    /// What it may take of the link.
    pub share: Share,
}

impl Relay {
    /// Whether both ask for the same, whatever it may take of the link.
    pub(crate) fn has_terms_of(&self, other: &Self) -> bool {
        let terms = |relay: &Self| {
            let Self { migration, token_hash, hint, key, next, .. } = relay.clone();
            (migration, token_hash, hint, key.public(), next)
        };
        terms(self) == terms(other)
    }
}

/// A transfer to fetch, as Target. It prints no key and no token.
#[derive(Clone)]
pub struct Pull {
    /// The migration.
    pub migration: MigrationId,
    /// The VM.
    pub vm: VmId,
    /// The source's proxy, or a relay's on the way to it. Where that has no address
    /// ([`ProxyUri::is_dial_out`]), it dials this proxy.
    pub from: ProxyUri,
    /// What to show there; where it has no address, what it shows here.
    pub token: Token,
    /// The key of the relay, if there is one at `from`.
    pub relay: Option<PublicKey>,
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
    /// Files that may hold much of the same: an earlier stay of the VM, or an image of its family.
    /// They are read, never written, and what they hold is not fetched.
    pub basis: Vec<(FileId, PathBuf)>,
    /// The only carrier that is allowed, if one is; else the path decides.
    pub carrier: Option<Carrier>,
    /// What it may take of the link.
    pub share: Share,
}

impl Serve {
    /// Whether both ask for the same, whatever they may take of the link or find here already: that
    /// may change between two lives of a node, and what goes on goes on as it began.
    pub(crate) fn has_terms_of(&self, other: &Self) -> bool {
        let terms = |serve: &Self| {
            let Self { migration, vm, token_hash, hint, key, peer_key, dial, .. } = serve;
            let limits = (serve.byte_budget, dial.clone());
            (*migration, *vm, *token_hash, *hint, key.public(), *peer_key, limits)
        };
        terms(self) == terms(other)
    }
}

impl Pull {
    /// The proxy that its connections go through, if the source's is not dialled itself.
    pub(crate) fn detour(&self) -> Option<Dial> {
        let key = match self.relay {
            Some(relay) => relay,
            // Nobody is dialled.
            None if self.from.is_dial_out() => self.peer_key,
            None => return None,
        };
        Some(Dial { uri: self.from.clone(), token: self.token.clone(), key })
    }

    /// Whether both ask for the same, whatever they may take of the link or find here already: that
    /// may change between two lives of a node, and what goes on goes on as it began.
    pub(crate) fn has_terms_of(&self, other: &Self) -> bool {
        let terms = |pull: &Self| {
            let Self { migration, vm, from, token, key, peer_key, folder, budget, .. } = pull;
            let from = (from.clone(), pull.relay);
            let (token, key) = (token.hash(), key.public());
            let files = (folder.clone(), *budget, pull.expected.clone());
            (*migration, *vm, from, token, key, *peer_key, files)
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

    /// Where the site's own proxies dial this one; whether or not others can.
    fn inner_uri(&self) -> ProxyUri;

    /// Source: be ready for the target that has the token and the key. A repeat changes nothing.
    fn serve(&self, serve: Serve) -> Result<(), ServeError>;

    /// Source: the guest is quiet, and here are its files. Their manifest is made, which takes as
    /// long as reading them once, then comes [`crate::Event::Sent`]; the session gets it when
    /// there is one. Repeated, it only tells again. The migration must be served.
    fn provide(&self, migration: MigrationId, files: Vec<(FileId, PathBuf)>);

    /// Target: fetch the files; reconnect as often as it takes until [`TransferProxy::close`].
    /// A repeat changes nothing while it is under way, and starts again what failed for good.
    fn pull(&self, pull: Pull) -> Result<(), PullError>;

    /// Neither: pass the streams of a transfer on, until [`TransferProxy::end_relay`]. A repeat
    /// changes nothing; other terms take the place of those before.
    fn relay(&self, relay: Relay) -> Result<(), ServeError>;

    /// Passes a transfer on no more.
    fn end_relay(&self, migration: MigrationId);

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
