//! The simulated transfer proxy: tokens, sessions and what is told over them, as the real one
//! behaves towards its node.

use std::hash::{DefaultHasher, Hash, Hasher};

use model::{Digest, PeerName, PublicKey, Time, TokenHash, TransferEnd, VmId};
use protocol::Told;

use super::node::{Content, Place};

/// One end of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Where the files are.
    Source,
    /// Where they go.
    Target,
}

/// What a transfer can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The target's proxy opens a session.
    Dial,
    /// The source's proxy has read everything.
    Read,
    /// The first bytes arrive.
    Begin,
    /// Everything has arrived.
    Finish,
    /// What this end told arrives at the other.
    Carry(End),
    /// What the other end told before it closed arrives here.
    Hear(End),
    /// The other end has closed.
    Ended(End),
}

/// What both ends have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Talk {
    /// Told here, not taken by the other end.
    pub outbox: Vec<Told>,
    /// The last words of an other end that has closed.
    pub inbox: Vec<Told>,
    /// Whether a session is open.
    pub session: bool,
    /// The other end has closed, and the node here has not heard so.
    pub ended: bool,
}

/// A transfer that is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Serving {
    /// The VM.
    pub vm: VmId,
    /// What the token must hash to.
    pub token: TokenHash,
    /// The key shown.
    pub key: PublicKey,
    /// The key that must be shown.
    pub peer_key: PublicKey,
    /// What it dials, where nobody can dial it.
    pub dial: Option<TransferEnd>,
    /// Where the files are, and whether a run state is among them, once they may be read.
    pub files: Option<(Place, bool)>,
    /// What was read.
    pub content: Option<Content>,
    /// The node has heard that everything was read.
    pub reported: bool,
    /// The session.
    pub talk: Talk,
}

/// A transfer of others that is passed on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    /// What the token must hash to that the target's side shows.
    pub token: TokenHash,
    /// The key shown.
    pub key: PublicKey,
    /// The way to the source.
    pub next: TransferEnd,
}

/// A transfer that is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pulling {
    /// Where from.
    pub source: TransferEnd,
    /// The key shown.
    pub key: PublicKey,
    /// Where to.
    pub place: Place,
    /// The session is only for what is told.
    pub talks_only: bool,
    /// Whether a run state may come.
    pub takes_state: bool,
    /// It dials as long as it is active.
    pub active: bool,
    /// The sites that the session goes to and through, the Source last; empty without one.
    pub path: Vec<PeerName>,
    /// When its next step is due by the clock.
    pub due: Time,
    /// Bytes have come in this session.
    pub begun: bool,
    /// All have.
    pub finished: bool,
    /// The session.
    pub talk: Talk,
}

impl Hash for Pulling {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Not when it is due: that is for the clock, and whoever chooses the steps needs none.
        (&self.source, self.key, &self.place, self.talks_only, self.takes_state).hash(state);
        (&self.path, self.active, self.begun, self.finished, &self.talk).hash(state);
    }
}

impl Pulling {
    /// The session is gone; what has arrived completely is not fetched again.
    pub(super) fn cut(&mut self) {
        self.talk.session = false;
        self.path.clear();
        self.begun = false;
    }
}

/// The digest of what a transfer moves.
pub(super) fn root(vm: VmId, content: &Content) -> Digest {
    let mut hasher = DefaultHasher::new();
    (vm, content).hash(&mut hasher);
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&hasher.finish().to_be_bytes());
    Digest(digest)
}
