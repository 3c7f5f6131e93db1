//! The rows of the journal. [`crate::State`] is what they amount to.

use std::collections::BTreeSet;

use model::{
    Agreed, Certificate, Chain, Descriptor, Digest, EdgeHandle, Epoch, HostName, MigrationId,
    Monitoring, OperationId, PeerName, PowerState, PublicKey, Resources, RunProfile, Signed,
    Statement, Time, TokenHash, TransferEnd, VmId,
};
use serde::{Deserialize, Serialize};

use crate::state::Stay;

/// The name of the place that only stores VMs and never runs one.
pub const LIBRARY: &str = "library";

/// This site, or one of its peers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    /// This site.
    Here,
    /// A direct peer.
    Peer(PeerName),
}

/// One edge of a VM's path, at this end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// The site at the other end.
    pub peer: PeerName,
    /// What both ends call the edge.
    pub handle: EdgeHandle,
}

/// Where the path of a VM goes on from here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Down {
    /// This site has the VM.
    Here,
    /// A delegate has the responsibility.
    Edge(Edge),
}

/// What becomes of a running guest in a cold migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Its run state is saved and moves with it.
    Hibernate,
    /// It is shut down, and boots at the Destination.
    Restart,
}

/// What a journey is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Goal {
    /// Boot the guest even if it did not run.
    pub boot: bool,
    /// What becomes of a running guest.
    pub mode: Mode,
    /// Only these peers are asked; empty means all.
    pub peers: std::collections::BTreeSet<PeerName>,
    /// No peer is asked.
    pub local_only: bool,
    /// This host must not be the Destination.
    pub leave: Option<HostName>,
    /// Somebody below, or this site itself, must be rid of the VM: who, and why.
    pub evict: Option<Evict>,
    /// When to give up.
    pub deadline: Time,
    /// Only rank the offers, and withdraw them.
    #[serde(default)]
    pub dry_run: bool,
}

/// A duty to find another place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Evict {
    /// Who wants to be rid of it; never asked as Destination.
    pub from: Party,
    /// Why.
    pub reason: String,
}

/// How a journey ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Result {
    /// The VM is where it should be.
    Done,
    /// No placement; with every reason that was given.
    NoPlace(Vec<String>),
    /// Tried and given up; the VM is where it was.
    GaveUp(String),
    /// The duty went to the site above, or that site fulfilled it.
    PassedUp,
    /// The deadline came first: stopped, files kept.
    Parked(String),
    /// The user stopped it.
    Cancelled,
    /// Only looked: the offers in the order in which they would be tried, withdrawn since.
    Ranking(Vec<String>),
}

/// One row of the journal. Every change of what a site must not forget is one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Row {
    /// The site has a host.
    HostAdded {
        /// Its name.
        host: HostName,
        /// What it has for VMs.
        capacity: Resources,
    },
    /// A host takes no more VMs, or takes them again.
    HostDraining {
        /// The host.
        host: HostName,
        /// Whether it is to be emptied.
        draining: bool,
    },
    /// A host is gone.
    HostRemoved {
        /// The host.
        host: HostName,
    },
    /// This site is the primary of a new VM, whose files lie in the library.
    Imported {
        /// The VM.
        vm: VmId,
        /// Its descriptor.
        descriptor: Descriptor,
        /// Certificate 0.
        chain: Chain,
    },
    /// A journey as Controller began.
    Began {
        /// The operation.
        operation: OperationId,
        /// The VM.
        vm: VmId,
        /// What for.
        goal: Goal,
    },
    /// The Controller chose an offer.
    Chosen {
        /// The operation.
        operation: OperationId,
        /// The migration that begins.
        migration: MigrationId,
        /// The key that speaks for the Controller.
        key: PublicKey,
        /// Who made the offer.
        at: Party,
        /// The edge it gets.
        handle: EdgeHandle,
        /// The Destination's end of the transfer.
        target: TransferEnd,
        /// The contract with whoever made the offer; none with this site itself.
        #[serde(default)]
        taken: Option<Agreed>,
    },
    /// A journey ended.
    Concluded {
        /// The operation.
        operation: OperationId,
        /// How.
        result: Result,
    },
    /// Source: a token was given out; not bound to a session yet.
    Offered {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// The Controller's key.
        controller: PublicKey,
        /// Who gets the certificate.
        target_vm_key: PublicKey,
        /// The key that the other proxy must show.
        target_transfer_key: PublicKey,
        /// The key that this site's proxy shows.
        transfer_key: PublicKey,
        /// The token's stored form.
        token: TokenHash,
        /// The token's hint.
        hint: [u8; 16],
        /// What becomes of a running guest.
        mode: Mode,
        /// When this site aborts by itself, as long as nothing is released.
        deadline: Time,
        /// The Destination's end, if this site's proxy has to dial it.
        #[serde(default)]
        dial: Option<TransferEnd>,
    },
    /// Source: the Destination's proxy came.
    Initiated {
        /// The migration.
        migration: MigrationId,
        /// Whether the guest ran, and goes on if nothing comes of it.
        active: bool,
    },
    /// Source: the guest does not run, and its files are final.
    Quiesced {
        /// The migration.
        migration: MigrationId,
    },
    /// Source: everything was read.
    Sent {
        /// The migration.
        migration: MigrationId,
        /// Root digest.
        digest: Digest,
    },
    /// Source: the VM is the Destination's. The one bit.
    Released {
        /// The migration.
        migration: MigrationId,
        /// The certificate of the next epoch.
        certificate: Signed<Certificate>,
    },
    /// Source: the VM stays. The other value of the one bit.
    Aborted {
        /// The migration.
        migration: MigrationId,
        /// For whoever asks.
        statement: Signed<Statement>,
        /// Why.
        reason: String,
    },
    /// Source: the Destination gave it back before it could execute.
    Returned {
        /// The migration.
        migration: MigrationId,
        /// The certificate back.
        certificate: Signed<Certificate>,
    },
    /// Source: the Destination has it.
    Receipted {
        /// The migration.
        migration: MigrationId,
        /// The signed OWNED.
        owned: Signed<Statement>,
        /// When the frozen copy may go.
        purge: Time,
    },
    /// Source: the frozen copy is deleted after this.
    Tombstone {
        /// The migration.
        migration: MigrationId,
    },
    /// Destination: capacity is taken.
    Admitted {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// Its descriptor.
        descriptor: Descriptor,
        /// Who the offer was made to.
        asker: Party,
        /// The edge to the asker.
        handle: EdgeHandle,
        /// The host.
        host: HostName,
        /// This site's per-VM key.
        vm_key: PublicKey,
        /// The key that this site's proxy shows.
        transfer_key: PublicKey,
        /// The Controller's key.
        controller: PublicKey,
        /// Where the files are.
        source: TransferEnd,
        /// Who owns the VM.
        chain: Chain,
        /// The profile of the run state that may come.
        profile: Option<RunProfile>,
        /// Whether to boot it if none comes.
        boot: bool,
        /// When the capacity is freed if nothing more is heard.
        expires: Time,
        /// The contract with the asker; none with this site itself.
        #[serde(default)]
        promised: Option<Agreed>,
    },
    /// Destination: bytes arrive.
    Receiving {
        /// The migration.
        migration: MigrationId,
    },
    /// Destination: everything is checked and on stable storage.
    Ready {
        /// The migration.
        migration: MigrationId,
        /// The signed READY.
        statement: Signed<Statement>,
        /// Its digest.
        digest: Digest,
        /// Whether a saved run state came.
        has_state: bool,
        /// Bytes of the files.
        size: model::Bytes,
        /// Bytes that crossed the network.
        wire: model::Bytes,
    },
    /// Destination: nobody came for what is READY; it is deleted, and the record stays. A
    /// certificate that comes all the same is answered by a handback.
    Lapsed {
        /// The migration.
        migration: MigrationId,
    },
    /// Destination: the VM is this site's.
    Owned {
        /// The migration.
        migration: MigrationId,
        /// The certificate.
        certificate: Signed<Certificate>,
        /// The signed OWNED.
        statement: Signed<Statement>,
    },
    /// Destination: it cannot be started here, and goes back.
    HandedBack {
        /// The migration.
        migration: MigrationId,
        /// The certificate that came.
        certificate: Signed<Certificate>,
        /// The certificate that goes back.
        back: Signed<Certificate>,
    },
    /// Destination: nothing came of it; the capacity is free, and what arrived is deleted.
    Dropped {
        /// The migration.
        migration: MigrationId,
        /// Why.
        reason: String,
    },
    /// The guest may execute from here on.
    StartIntent {
        /// The VM.
        vm: VmId,
        /// Which stay.
        epoch: Epoch,
    },
    /// The guest executes.
    Started {
        /// The VM.
        vm: VmId,
        /// Which stay.
        epoch: Epoch,
        /// What its run state depends on from now on.
        profile: RunProfile,
    },
    /// The guest does not execute any more.
    Stopped {
        /// The VM.
        vm: VmId,
        /// Which stay.
        epoch: Epoch,
        /// Defined, Paused or Suspended.
        power: PowerState,
    },
    /// Stopped for want of a place; files kept. Without a reason it is no longer so.
    Parked {
        /// The VM.
        vm: VmId,
        /// Why.
        reason: Option<String>,
    },
    /// Intermediary: the edges of a path that may become the VM's.
    Pending {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// Its descriptor.
        descriptor: Descriptor,
        /// Who owns it.
        chain: Chain,
        /// The edge to the asker.
        up: Edge,
        /// The edge to the one who made the offer.
        down: Edge,
        /// The contract with the asker.
        #[serde(default)]
        promised: Option<Agreed>,
        /// The contract with the one who made the offer.
        #[serde(default)]
        taken: Option<Agreed>,
    },
    /// Controller and Intermediaries: this site's proxy stands between the two ends of a transfer.
    Relaying {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// What the Source's side was given a token of, if this site stands in the Destination's
        /// place.
        given: Option<EdgeHandle>,
        /// The way to the Source.
        source: TransferEnd,
        /// When it is passed on no more.
        until: Time,
    },
    /// Controller and Intermediaries: the new path counts.
    Flipped {
        /// The migration.
        migration: MigrationId,
        /// The certificate of the new epoch.
        certificate: Signed<Certificate>,
        /// The signed OWNED.
        owned: Signed<Statement>,
    },
    /// The path that the migration left behind is closed below this site.
    Retired {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// The edge that it was asked along: this site leaves the path if it still hangs on it.
        #[serde(default)]
        came: Option<Edge>,
    },
    /// What a site below told of the VM.
    Learned {
        /// The VM.
        vm: VmId,
        /// Its newest chain.
        chain: Chain,
        /// Why it is parked, if it is.
        parked: Option<String>,
    },
    /// The VM's primary changed what is monitored of it.
    Monitored {
        /// The VM.
        vm: VmId,
        /// The section, of a later revision than the one before.
        section: Monitoring,
    },
    /// The VM is gone for good.
    Destroyed {
        /// The VM.
        vm: VmId,
    },
    /// The primary took it over from a site that is lost for good, as it was when it left.
    Adopted {
        /// The VM.
        vm: VmId,
        /// The chain that ends in the certificate that is signed with K0.
        chain: Chain,
        /// The operator's written word that the other side is fenced.
        statement: String,
        /// The copy that was kept here.
        stay: Stay,
    },
    /// Another site owns it by a newer certificate: it ends here, its files are kept.
    Superseded {
        /// The VM.
        vm: VmId,
        /// The chain that says so.
        chain: Chain,
    },
    /// The primary became this site's delegator for the VM.
    Reclaimed {
        /// The VM.
        vm: VmId,
        /// The edge to the primary.
        up: Edge,
    },
    /// The primary's path leads to another peer, which has or answers for the VM.
    Rerouted {
        /// The VM.
        vm: VmId,
        /// The edge to that peer.
        down: Edge,
    },
    /// The journal was found older than a peer remembers.
    Fenced {
        /// The length of the journal that was remembered; nobody is told a lower one again.
        journal: u64,
        /// VMs that it says are here, on their way here, or released: they are held.
        vms: BTreeSet<VmId>,
    },
    /// What the journal says of a VM that was held was confirmed, or overtaken.
    Unfenced {
        /// The VM.
        vm: VmId,
    },
}

impl Row {
    /// The place of this row in a journal that is `len` rows long.
    pub fn place_after(&self, len: u64) -> u64 {
        match self {
            // Peers that remember a longer journal are never told of a shorter one again.
            Self::Fenced { journal, .. } => len.max(*journal) + 1,
            _ => len + 1,
        }
    }
}

/// Names each type of row, so that none is forgotten in [`Row::KINDS`].
macro_rules! kinds {
    ($($row:ident = $name:literal,)*) => {
        impl Row {
            /// The name of the row's type, for the journal's `type` column.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$row { .. } => $name,)*
                }
            }

            /// Every name that [`Row::kind`] can give.
            pub const KINDS: [&'static str; [$($name),*].len()] = [$($name),*];
        }
    };
}

kinds! {
    HostAdded = "host_added",
    HostDraining = "host_draining",
    HostRemoved = "host_removed",
    Imported = "imported",
    Began = "began",
    Chosen = "chosen",
    Concluded = "concluded",
    Offered = "offered",
    Initiated = "initiated",
    Quiesced = "quiesced",
    Sent = "sent",
    Released = "released",
    Aborted = "aborted",
    Returned = "returned",
    Receipted = "receipted",
    Tombstone = "tombstone",
    Admitted = "admitted",
    Receiving = "receiving",
    Ready = "ready",
    Lapsed = "lapsed",
    Owned = "owned",
    HandedBack = "handed_back",
    Dropped = "dropped",
    StartIntent = "start_intent",
    Started = "started",
    Stopped = "stopped",
    Parked = "parked",
    Pending = "pending",
    Relaying = "relaying",
    Flipped = "flipped",
    Retired = "retired",
    Learned = "learned",
    Monitored = "monitored",
    Destroyed = "destroyed",
    Adopted = "adopted",
    Superseded = "superseded",
    Reclaimed = "reclaimed",
    Rerouted = "rerouted",
    Fenced = "fenced",
    Unfenced = "unfenced",
}
