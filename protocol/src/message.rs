//! What sites say to each other.
//!
//! A request has two parts (security.md): the [`Op`] comes from the one who speaks and stays as it
//! is from end to end, signed with a key made for the migration; the [`Hop`] is made anew at each
//! hop, and signed with the sending site's identity key.

use std::sync::Arc;
use std::time::Duration;

use model::{
    Bytes, Certificate, Chain, Descriptor, Digest, EdgeHandle, Epoch, MigrationId, Monitoring,
    Offer, PowerState, PublicKey, RequestId, RunProfile, Signature, Signed, SiteKey, Statement,
    TransferEnd, VmId,
};
use serde::{Deserialize, Serialize};

use crate::row::Mode;

/// A request as it stands at one hop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    /// The part that stays as it is.
    pub origin: Origin,
    /// The part that each hop makes anew.
    pub hop: Hop,
}

/// The end-to-end part of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// What is asked.
    pub op: Op,
    /// The key of the one who speaks, made for this journey.
    pub key: PublicKey,
    /// The exact bytes that were signed, if it came from another site; they are passed on as
    /// they are. None while it is still to be sealed by this site.
    pub sealed: Option<Arc<Sealed>>,
}

/// The bytes and the signature of an [`Op`] as received.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sealed {
    /// The signed bytes.
    pub body: Vec<u8>,
    /// The signature over them.
    pub signature: Signature,
}

/// What each hop says for itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Hop {
    /// The edge between the two sites that the request goes along; none where no path exists yet.
    pub edge: Option<EdgeHandle>,
    /// Sites that the request may still pass, the receiver included.
    pub hops_left: u8,
    /// How long the sender will wait.
    pub time_left: Duration,
    /// The Source's end of the transfer, in Initiate transfer. A relay replaces it.
    pub source: Option<TransferEnd>,
    /// The Destination's end of the transfer, in Forced migration. A relay replaces it.
    pub target: Option<TransferEnd>,
    /// The sender's signature of the contract whose offer it takes, in Initiate transfer.
    pub taken: Option<Signature>,
}

/// The operations (federation.md, "Operations"; papers/003, III-B), as signed end to end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    /// "Would you take this VM, and on what terms?" Answered by [`Answer::Offers`].
    MigrationRequest {
        /// The VM.
        vm: VmId,
        /// Recognises repeats, and loops.
        request: RequestId,
        /// Its descriptor.
        descriptor: Descriptor,
    },
    /// To the Source: make ready to hand the VM over. Answered by [`Answer::Prepared`].
    ForcedMigration {
        /// The VM.
        vm: VmId,
        /// The migration.
        migration: MigrationId,
        /// The chosen Destination's per-VM key: who gets the certificate.
        target_vm_key: PublicKey,
        /// The key that the Destination's proxy will show.
        target_transfer_key: PublicKey,
        /// What becomes of a running guest.
        mode: Mode,
    },
    /// Forced migration upward: the VM must leave the sender. Never refused, never ignored.
    Evict {
        /// The VM.
        vm: VmId,
        /// Why, in words.
        reason: String,
    },
    /// To the Destination: fetch the VM. Answered by [`Answer::Arrived`] when all is there.
    InitiateTransfer {
        /// The VM.
        vm: VmId,
        /// The migration.
        migration: MigrationId,
        /// Who owns the VM now, and since when.
        chain: Chain,
        /// The profile of the saved run state, if there is or will be one.
        profile: Option<RunProfile>,
        /// Whether the guest is to be started when no run state came along.
        boot: bool,
        /// What the Source monitors of it, which may be newer than what the offer was made for.
        monitoring: Monitoring,
    },
    /// To the Source: this is what arrived; release the VM, or tell what became of it.
    TransferVerification {
        /// The VM.
        vm: VmId,
        /// The migration.
        migration: MigrationId,
        /// The Destination's READY; none asks the Source to abort if it still can.
        ready: Option<Signed<Statement>>,
    },
    /// To the Destination: the VM is yours.
    Deliver {
        /// The VM.
        vm: VmId,
        /// The migration.
        migration: MigrationId,
        /// The certificate of the new epoch.
        certificate: Signed<Certificate>,
    },
    /// To the Source: the Destination gave it back.
    Handback {
        /// The VM.
        vm: VmId,
        /// The migration that is undone.
        migration: MigrationId,
        /// The certificate back to the Source.
        certificate: Signed<Certificate>,
    },
    /// Down the sub-path that the migration left behind: the VM is elsewhere, close the path.
    Retire {
        /// The VM.
        vm: VmId,
        /// The migration.
        migration: MigrationId,
        /// The Destination's OWNED: the Source's receipt.
        owned: Signed<Statement>,
    },
    /// To the Source: change or show the run state (DMTF DSP1057 state management).
    Control {
        /// The VM.
        vm: VmId,
        /// What to do.
        action: Action,
    },
    /// From the VM's primary to the Source, by Control: this is monitored of it from now on.
    /// Answered by [`Answer::State`].
    Monitor {
        /// The VM.
        vm: VmId,
        /// The whole section, signed with K0.
        section: Monitoring,
    },
    /// Up the path, or the path that is to come: what sites above know of the VM's epoch.
    Report {
        /// The VM.
        vm: VmId,
        /// Its newest chain.
        chain: Chain,
        /// Why it is parked, if it is.
        parked: Option<String>,
    },
    /// From a site that has lost a part of its memory, to its peers: is the VM still mine? The
    /// path above passes it on to the primary, a path that is to come to its end. Answered by
    /// [`Answer::Known`], by [`Answer::Unknown`] from who has nothing to do with it, and by
    /// [`Answer::Conflict`] while it cannot be said.
    Confirm {
        /// The VM.
        vm: VmId,
    },
    /// From the VM's primary to the site that has it, signed with K0: I am your delegator now.
    Reclaim {
        /// The VM.
        vm: VmId,
        /// The edge between the two.
        handle: EdgeHandle,
        /// The primary site, to which alone this is of use.
        by: SiteKey,
        /// The site that it is meant for.
        host: SiteKey,
    },
    /// Down the path: the primary took the VM over; who has it ends it.
    Superseded {
        /// The VM.
        vm: VmId,
        /// The chain that says so.
        chain: Chain,
    },
    /// To those whose offers were not taken.
    Withdraw {
        /// The VM.
        vm: VmId,
        /// The Migration request whose offers are dropped.
        request: RequestId,
    },
}

impl model::key::Payload for Op {
    const TYPE: &'static str = "application/vnd.sojourn.operation.v1";
}

impl Op {
    /// The VM that it is about.
    pub fn vm(&self) -> VmId {
        match self {
            Self::MigrationRequest { vm, .. }
            | Self::ForcedMigration { vm, .. }
            | Self::Evict { vm, .. }
            | Self::InitiateTransfer { vm, .. }
            | Self::TransferVerification { vm, .. }
            | Self::Deliver { vm, .. }
            | Self::Handback { vm, .. }
            | Self::Retire { vm, .. }
            | Self::Control { vm, .. }
            | Self::Monitor { vm, .. }
            | Self::Report { vm, .. }
            | Self::Confirm { vm }
            | Self::Reclaim { vm, .. }
            | Self::Superseded { vm, .. }
            | Self::Withdraw { vm, .. } => *vm,
        }
    }

    /// The migration that it belongs to, if any.
    pub fn migration(&self) -> Option<MigrationId> {
        match self {
            Self::ForcedMigration { migration, .. }
            | Self::InitiateTransfer { migration, .. }
            | Self::TransferVerification { migration, .. }
            | Self::Deliver { migration, .. }
            | Self::Handback { migration, .. }
            | Self::Retire { migration, .. } => Some(*migration),
            _ => None,
        }
    }

    /// Its name, as in federation.md.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MigrationRequest { .. } => "migration request",
            Self::ForcedMigration { .. } => "forced migration",
            Self::Evict { .. } => "eviction",
            Self::InitiateTransfer { .. } => "initiate transfer",
            Self::TransferVerification { .. } => "transfer verification",
            Self::Deliver { .. } => "deliver",
            Self::Handback { .. } => "handback",
            Self::Retire { .. } => "retire",
            Self::Control { .. } => "control",
            Self::Monitor { .. } => "monitor",
            Self::Report { .. } => "report",
            Self::Confirm { .. } => "confirm",
            Self::Reclaim { .. } => "reclaim",
            Self::Superseded { .. } => "superseded",
            Self::Withdraw { .. } => "withdraw",
        }
    }
}

/// A change of the run state, or a look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Only tell the state.
    Show,
    /// Boot it, or go on from its saved state.
    Start,
    /// ACPI stop, then by force.
    Stop,
    /// Keep it in memory, not executing.
    Pause,
    /// Go on from a pause.
    Resume,
    /// Save the run state to a file and end the process.
    Hibernate,
    /// Stop it at once and delete its files, for good.
    Destroy,
}

/// What comes back for a request. Signed as a whole by the answering hop, bound to the request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// To a Migration request: offers, best first, or the reasons for none.
    Offers {
        /// Possible placements.
        offers: Vec<Offer>,
        /// Why there are no more.
        reasons: Vec<String>,
    },
    /// To a forced migration: the Source's end of the transfer.
    Prepared {
        /// Where to fetch from.
        source: TransferEnd,
        /// Who owns the VM.
        chain: Chain,
        /// Whether the guest runs, or will go on running from its saved state.
        active: bool,
        /// The profile of its run state, if it has one.
        profile: Option<RunProfile>,
        /// What is monitored of it; it does not change until the migration has ended.
        monitoring: Monitoring,
    },
    /// To an eviction: the receiver looks for another place.
    Accepted,
    /// To Initiate transfer: everything is there and checked.
    Arrived {
        /// The signed READY.
        ready: Signed<Statement>,
        /// Bytes of the files, as the guest sees them.
        size: Bytes,
        /// Bytes that crossed the network.
        wire: Bytes,
    },
    /// To Initiate transfer: the capacity was given away meanwhile, or does not fit. To Forced
    /// migration: the VM was destroyed.
    Gone {
        /// Why.
        reason: String,
    },
    /// To Transfer verification: the Source's own outcome.
    Verified(Outcome),
    /// To Deliver: the Destination owns it.
    Owned {
        /// The signed OWNED.
        statement: Signed<Statement>,
    },
    /// To Deliver: it cannot be started there; it goes back.
    HandedBack {
        /// The certificate back to the Source.
        certificate: Signed<Certificate>,
    },
    /// To Control: the state.
    State {
        /// Its power state at the Source.
        power: PowerState,
        /// The epoch there.
        epoch: Epoch,
        /// Why it is parked, if it is.
        parked: Option<String>,
    },
    /// To Confirm, and to a Report that is behind: what this site knows of the VM's owner.
    Known {
        /// Its newest chain.
        chain: Chain,
    },
    /// Done, or was done before.
    Done,
    /// Another migration of this VM is open.
    Conflict {
        /// What stands in the way.
        reason: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Not possible now; the VM is where it was.
    Failed {
        /// Why, in words that a peer may see.
        reason: String,
    },
    /// Not allowed by policy.
    Refused {
        /// Every reason.
        reasons: Vec<String>,
    },
    /// The VM, the edge or the migration is not known here.
    Unknown,
}

/// What the Source's disk says of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing is decided.
    Open {
        /// What is missing.
        reason: String,
    },
    /// The VM belongs to the Destination.
    Released(Signed<Certificate>),
    /// The VM stays at the Source.
    Aborted(Signed<Statement>),
    /// The Source has other data than arrived: the transfer is to be repeated.
    Differs {
        /// What the Source read.
        sent: Digest,
    },
}

/// What the two ends tell each other over the transfer session, beside the path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Told {
    /// Source to Destination: the VM is yours.
    Released(Signed<Certificate>),
    /// Source to Destination: it stays here.
    Aborted(Signed<Statement>),
    /// Destination to Source: received, and mine.
    Owned(Signed<Statement>),
    /// Destination to Source: take it back.
    HandedBack(Signed<Certificate>),
}
