//! What goes into the machine and what it wants done.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{
    Bytes, Chain, Descriptor, Digest, Epoch, FileId, HostName, MigrationId, Monitoring,
    OperationId, PeerName, PowerState, PublicKey, Resources, RunProfile, TokenHash, TransferEnd,
    VmId,
};

use crate::message::{Action, Answer, Request, Told};
use crate::row::{Mode, Row};
use crate::state::Journey;

/// A request that this site sent and waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Who waits for an answer of this site. The driver chooses the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caller {
    /// A peer's request.
    Peer(u64),
    /// This site's own request to itself.
    Own(CallId),
}

/// Why no answer came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CallError {
    /// The peer could not be reached, hung up, or did not answer in time. It may have acted.
    Unreachable(String),
    /// The peer answered what cannot be read, or what its keys do not stand behind.
    Garbled(String),
}

/// What happens to a site.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A verified request of a peer.
    Request {
        /// To whom the answer goes.
        caller: Caller,
        /// The peer.
        from: PeerName,
        /// The request.
        request: Box<Request>,
    },
    /// The end of a request that this site sent.
    Answered {
        /// Which one.
        call: CallId,
        /// The answer.
        answer: Result<Box<Answer>, CallError>,
    },
    /// A user of this site wants something. Answered by [`Effect::Reply`] with the same number.
    Ask {
        /// Chosen by the driver.
        ask: u64,
        /// What is wanted.
        wish: Box<Ask>,
    },
    /// Something about a guest of this site.
    Guest {
        /// The VM.
        vm: VmId,
        /// Which of its stays here.
        epoch: Epoch,
        /// What happened.
        event: GuestEvent,
    },
    /// Something about a transfer of this site.
    Transfer {
        /// The migration.
        migration: MigrationId,
        /// What happened.
        event: TransferEvent,
    },
    /// The run profile that a host's hypervisor has.
    Profile(HostName, RunProfile),
    /// A peer remembers a longer journal of this site than it has: to be told before
    /// [`crate::Site::start`]'s own steps, or as soon as it is known.
    Fence {
        /// The length that the peer remembers.
        journal: u64,
    },
    /// The earliest deadline has come: [`crate::Site::turn`] sees to it.
    Tick,
}

/// What a site's user may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ask {
    /// Take a VM, whose files lie in the library, into this site's care as its primary.
    Import {
        /// Its descriptor.
        descriptor: Descriptor,
        /// K0, whose private half the driver has.
        k0: PublicKey,
    },
    /// Add a host, or change what it has.
    AddHost(HostName, Resources),
    /// Let no VM be placed on a host, and move those that are there.
    DrainHost(HostName, bool),
    /// Forget a host that has no VM.
    RemoveHost(HostName),
    /// Find a place for a VM, or another place, as Controller.
    Move {
        /// The operation's id, chosen by the driver.
        operation: OperationId,
        /// The VM.
        vm: VmId,
        /// Only these peers; empty means all.
        peers: BTreeSet<PeerName>,
        /// No peer at all.
        local_only: bool,
        /// Boot it even if it did not run before.
        boot: bool,
        /// What becomes of a running guest.
        mode: Mode,
        /// Collect and rank the offers, and withdraw them.
        dry_run: bool,
    },
    /// Force a VM out of this site.
    Evict {
        /// The operation's id, chosen by the driver.
        operation: OperationId,
        /// The VM.
        vm: VmId,
        /// Why, for whoever must find another place.
        reason: String,
        /// How long until it is parked.
        within: Duration,
    },
    /// Take a VM over from a site that is lost for good, from the copy kept here.
    Adopt {
        /// The VM.
        vm: VmId,
        /// The operator's written word that the other side is fenced.
        statement: String,
    },
    /// Become the delegator of the peer that has the VM, past an Intermediary that is gone.
    Reclaim {
        /// The VM.
        vm: VmId,
        /// The peer.
        at: PeerName,
    },
    /// Vouch for what nobody above can confirm.
    Unfence {
        /// This VM; without, all that the site knows to be here.
        vm: Option<VmId>,
    },
    /// Move away what is shared with a peer whose peering is being ended.
    Leave(PeerName),
    /// Stop trying.
    Cancel(OperationId),
    /// Change or show the run state of a VM, wherever it is.
    Control(VmId, Action),
    /// Change what is monitored of a VM, at its primary, wherever it is. Its revision and voucher
    /// are made here; without a sealing key it keeps the one that it has.
    Monitor(VmId, Monitoring),
}

/// What a user gets back at once. Long actions go on as operations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reply {
    /// Done.
    Done,
    /// An operation has begun.
    Began,
    /// The VM's id.
    Imported(VmId),
    /// Several operations have begun.
    BeganMany(Vec<OperationId>),
    /// The answer of the site that runs the VM.
    Answer(Box<Answer>),
    /// There is no such thing here.
    NotFound(String),
    /// It contradicts what is under way.
    Conflict(String),
    /// It cannot be reached now.
    Unavailable(String),
}

/// What the hypervisor did, or what became of a guest by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GuestEvent {
    /// It is there, and has not executed anything.
    Launched(RunProfile),
    /// It could not be launched.
    LaunchFailed(String),
    /// It executes.
    Resumed,
    /// It is in memory and does not execute.
    Paused,
    /// Its process is gone; stopped by command, by itself, or by a fault.
    Ended,
    /// Its run state is in its file, and its process is gone.
    Hibernated,
    /// A command on it failed; it is as it was.
    Failed(String),
}

/// What a transfer did.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TransferEvent {
    /// At the Source: the Destination's proxy is there, with the right token and key.
    Opened,
    /// At the Source: everything was read.
    Sent {
        /// Root digest of what was read.
        digest: Digest,
    },
    /// At the Destination: the first bytes came.
    Receiving,
    /// At the Destination: everything is there, checked, and on stable storage.
    Received {
        /// Root digest of what arrived.
        digest: Digest,
        /// Bytes of the files.
        size: Bytes,
        /// Bytes that crossed the network.
        wire: Bytes,
        /// Whether a saved run state came along.
        has_state: bool,
    },
    /// The other end said something. True if it was told to the Source.
    Told {
        /// Which end of this site heard it.
        source: bool,
        /// What it was.
        told: Told,
    },
    /// It cannot go on by itself.
    Failed {
        /// Which end of this site says so.
        source: bool,
        /// Why.
        reason: String,
    },
}

/// What the machine wants persisted and done, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Output {
    /// Made durable first, all in one transaction.
    pub rows: Vec<Row>,
    /// Carried out then, in order.
    pub effects: Vec<Effect>,
}

/// What is to be done once the rows are durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send a request; its end comes back as [`Event::Answered`].
    Send {
        /// Which call it is.
        call: CallId,
        /// To whom.
        to: PeerName,
        /// What.
        request: Box<Request>,
    },
    /// Answer a peer.
    Answer {
        /// Whom.
        caller: Caller,
        /// What.
        answer: Box<Answer>,
    },
    /// Answer a user.
    Reply {
        /// Which wish.
        ask: u64,
        /// What.
        reply: Reply,
    },
    /// Let a hand do something.
    Do(Command),
    /// An operation made progress; for whoever watches.
    Progress {
        /// The operation.
        operation: OperationId,
        /// One line about what happens now.
        text: String,
    },
    /// Something about a VM that its events should tell.
    Note {
        /// The VM.
        vm: VmId,
        /// One line.
        text: String,
    },
    /// An operation has ended, or was replaced by its state in [`Journey`].
    Ended(Box<Journey>),
}

/// The verbs of the hands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Command {
    /// Make the guest's process, paused; from its saved state if there is one.
    Launch {
        /// The VM.
        vm: VmId,
        /// Which stay.
        epoch: Epoch,
        /// On which host.
        host: HostName,
        /// Its descriptor.
        descriptor: Descriptor,
        /// The profile of its saved state, which is to be loaded; none boots it.
        state: Option<RunProfile>,
    },
    /// Let it execute. Only ever asked for after START_INTENT is durable.
    Resume(HostName, VmId, Epoch),
    /// Hold it.
    Pause(HostName, VmId, Epoch),
    /// ACPI stop, then by force.
    ShutDown(HostName, VmId, Epoch),
    /// End it at once.
    Kill(HostName, VmId, Epoch),
    /// Save its run state and end it.
    Hibernate(HostName, VmId, Epoch),
    /// Remove its saved run state, which its execution is about to overtake. To be durable before
    /// what follows for the same guest.
    DropState(HostName, VmId, Epoch),
    /// Delete the files of a stay.
    Purge(HostName, VmId, Epoch),
    /// Source: let the Destination's proxy in.
    Serve {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// The token's stored form.
        token: TokenHash,
        /// The token's hint.
        hint: [u8; 16],
        /// The transfer key to show, whose private half the driver has.
        key: PublicKey,
        /// The key that the other end must show.
        peer_key: PublicKey,
        /// The Destination's end, if this site's proxy has to dial it.
        dial: Option<Box<TransferEnd>>,
    },
    /// Source: the guest is quiet; these files may be read.
    Provide {
        /// The migration.
        migration: MigrationId,
        /// The host that has them.
        host: HostName,
        /// The VM.
        vm: VmId,
        /// Which stay.
        epoch: Epoch,
        /// The files.
        files: Vec<FileId>,
    },
    /// Destination: fetch the files. With none to fetch the session is only for what both ends tell
    /// each other, and nothing is read or written.
    Pull {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// Where from.
        source: Box<TransferEnd>,
        /// The transfer key to show.
        key: PublicKey,
        /// The host that gets them.
        host: HostName,
        /// The stay that they are for.
        epoch: Epoch,
        /// The files that may come; empty once all are here.
        files: Vec<FileId>,
        /// Bytes that they may have in all.
        budget: Bytes,
    },
    /// Neither: pass a transfer on between its two sides.
    Relay {
        /// The migration.
        migration: MigrationId,
        /// The stored form of the token that the Destination's side shows.
        token: TokenHash,
        /// That token's hint.
        hint: [u8; 16],
        /// The key to show to both sides, whose private half the driver has.
        key: PublicKey,
        /// The way to the Source; where that cannot be dialled, the token that it shows.
        next: Box<TransferEnd>,
    },
    /// Pass a transfer on no more.
    EndRelay {
        /// The migration.
        migration: MigrationId,
    },
    /// Say something to the other end over the session.
    Tell {
        /// The migration.
        migration: MigrationId,
        /// Whether this site speaks as its Source.
        source: bool,
        /// What.
        told: Told,
    },
    /// End the session; its token is void.
    Close {
        /// The migration.
        migration: MigrationId,
        /// Whether this site's Source end is meant.
        source: bool,
    },
}

impl Command {
    /// The stay whose guest it acts on, for hypervisor commands.
    pub fn guest(&self) -> Option<(&HostName, VmId, Epoch)> {
        match self {
            Self::Launch { vm, epoch, host, .. } => Some((host, *vm, *epoch)),
            Self::Resume(host, vm, epoch)
            | Self::Pause(host, vm, epoch)
            | Self::ShutDown(host, vm, epoch)
            | Self::Kill(host, vm, epoch)
            | Self::Hibernate(host, vm, epoch)
            | Self::DropState(host, vm, epoch)
            | Self::Purge(host, vm, epoch) => Some((host, *vm, *epoch)),
            _ => None,
        }
    }
}

/// A guest process that was found when the node started, or the saved run state of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Found {
    /// On which host.
    pub host: HostName,
    /// The VM.
    pub vm: VmId,
    /// Which stay.
    pub epoch: Epoch,
    /// Active or paused; or suspended, where there is no process but a complete saved run state.
    /// It counts only if the node was ended between saving it and writing so down; since
    /// [`Command::DropState`] comes before [`Command::Resume`], nothing has executed after it.
    pub power: PowerState,
}

/// What sites above are told, kept until they have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Duty {
    pub chain: Chain,
    pub parked: Option<String>,
    pub attempts: u32,
}
