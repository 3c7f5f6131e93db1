//! What users are shown of a VM: roles, state, and who has the next move.

use std::collections::BTreeSet;

use model::{
    Agreed, Descriptor, Epoch, HostName, MigrationId, OperationId, PeerName, PowerState, Time, VmId,
};

use crate::row::{Down, Party};
use crate::site::{OfferAt, Phase, Site};
use crate::source::is_quiet;
use crate::state::{Journey, Migration, SourceStep, TargetStep};
use crate::timer::Timer;

/// A VM as this site knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmView {
    /// Its id.
    pub vm: VmId,
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// The newest epoch known here.
    pub epoch: Epoch,
    /// Whether this site is its primary.
    pub primary: bool,
    /// The delegator, if any.
    pub delegator: Option<PeerName>,
    /// The delegate, if any.
    pub delegate: Option<PeerName>,
    /// The host it is on and what it does, if this site has it.
    pub here: Option<(HostName, PowerState)>,
    /// Why it is parked, if it is.
    pub parked: Option<String>,
    /// Whether it was destroyed.
    pub destroyed: bool,
    /// What is under way, if anything.
    pub next: Option<NextMove>,
}

/// Who must act next on a migration, as seen here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextMove {
    /// The migration, once there is one.
    pub migration: Option<MigrationId>,
    /// The role of this site and the step, in the journal's words.
    pub state: &'static str,
    /// Who has the next move, and what it is.
    pub who: &'static str,
    /// What happens by itself at this time; none where it is repeated until it succeeds.
    pub until: Option<(Time, &'static str)>,
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The journey, as far as it is durable.
    pub journey: Journey,
    /// What it is doing, in words.
    pub phase: &'static str,
}

/// An offer that this site has out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferView {
    /// The VM.
    pub vm: VmId,
    /// Who got it; none for this site itself.
    pub asker: Option<PeerName>,
    /// The host, or the peer that stands behind it.
    pub at: String,
    /// On what terms.
    pub terms: model::Terms,
}

/// A contract with a neighbour, about a VM on whose path this site stands or stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContractView {
    /// What was agreed, with both signatures.
    pub agreed: Agreed,
    /// The neighbour.
    pub peer: PeerName,
    /// Whether this site answers for the VM by it, and the neighbour pays.
    pub provides: bool,
    /// The migration that it came of.
    pub migration: MigrationId,
    /// The epoch that began with it.
    pub since: Epoch,
    /// The first epoch in which the VM's path did not go along it any more; none while it does.
    pub ended: Option<Epoch>,
}

impl Site {
    /// Every contract of this site that came to count: whose VM came.
    pub fn contracts(&self) -> impl Iterator<Item = ContractView> + '_ {
        let chosen = |id: &MigrationId| {
            let mut journeys = self.state.journeys.values();
            journeys.find_map(|journey| journey.chosen.as_ref().filter(|c| c.migration == *id))
        };
        self.state.migrations.iter().flat_map(move |(id, migration)| {
            let (up, down) = match &migration.pending {
                Some((up, down)) => (Some(up.peer.clone()), Some(down.peer.clone())),
                None => {
                    let asker = migration.target.as_ref().map(|target| &target.asker);
                    (asker.and_then(peer_of), chosen(id).and_then(|chosen| peer_of(&chosen.at)))
                }
            };
            let promised = migration.promised.clone().map(|agreed| (agreed, up, true));
            let taken = migration.taken.clone().map(|agreed| (agreed, down, false));
            [promised, taken].into_iter().flatten().filter_map(move |(agreed, peer, provides)| {
                let (peer, since) = (peer?, migration.left_at()?);
                let ended = migration.ended[usize::from(!provides)];
                Some(ContractView { agreed, peer, provides, migration: *id, since, ended })
            })
        })
    }

    /// Every offer that this site has out, made here or passed on.
    pub fn offers(&self) -> impl Iterator<Item = OfferView> + '_ {
        self.offers.values().map(|offer| OfferView {
            vm: offer.vm,
            asker: match &offer.asker {
                Party::Peer(peer) => Some(peer.clone()),
                Party::Here => None,
            },
            at: match &offer.at {
                OfferAt::Local { host, .. } => format!("host {host}"),
                OfferAt::Peer(edge, ..) => format!("peer {}", edge.peer),
            },
            terms: offer.terms.clone(),
        })
    }

    /// Every VM that this site knows, in order of id.
    pub fn vms(&self) -> impl Iterator<Item = VmView> + '_ {
        let arriving = self.state.migrations.values();
        let arriving =
            arriving.filter(|m| m.target.as_ref().is_some_and(|t| t.step.arrives())).map(|m| m.vm);
        let all: BTreeSet<VmId> = self.state.vms.keys().copied().chain(arriving).collect();
        all.into_iter().filter_map(|vm| self.vm(vm))
    }

    /// One VM.
    pub fn vm(&self, id: VmId) -> Option<VmView> {
        let Some(vm) = self.state.vms.get(&id) else { return self.arriving(id) };
        Some(VmView {
            vm: id,
            descriptor: vm.descriptor.clone(),
            epoch: vm.chain.epoch(),
            primary: vm.up.is_none(),
            delegator: vm.up.as_ref().map(|up| up.peer.clone()),
            delegate: match &vm.down {
                Down::Edge(edge) => Some(edge.peer.clone()),
                Down::Here => None,
            },
            here: vm.stay.as_ref().map(|stay| (stay.host.clone(), stay.shown())),
            parked: vm.parked.clone(),
            destroyed: vm.destroyed,
            next: self.next_move(id),
        })
    }

    /// A VM that this site has admitted and does not own yet.
    fn arriving(&self, id: VmId) -> Option<VmView> {
        let of_vm = self.state.migrations_of(id);
        let target =
            of_vm.filter_map(|(_, m)| m.target.as_ref()).find(|target| target.step.arrives())?;
        Some(VmView {
            vm: id,
            descriptor: target.descriptor.clone(),
            epoch: target.chain.epoch(),
            primary: false,
            delegator: match &target.asker {
                Party::Peer(peer) => Some(peer.clone()),
                Party::Here => None,
            },
            delegate: None,
            here: None,
            parked: None,
            destroyed: false,
            next: self.next_move(id),
        })
    }

    /// Every operation, ended or not.
    pub fn operations(&self) -> impl Iterator<Item = Progress> + '_ {
        let progress = |journey: &Journey| Progress {
            journey: journey.clone(),
            phase: self.phase(journey.operation),
        };
        self.state.journeys.values().map(progress)
    }

    /// One operation.
    pub fn operation(&self, id: OperationId) -> Option<Progress> {
        let journey = self.state.journeys.get(&id)?.clone();
        Some(Progress { journey, phase: self.phase(id) })
    }

    /// What an operation is doing, in words.
    fn phase(&self, operation: OperationId) -> &'static str {
        let memory = self.journeys.get(&operation);
        memory.map_or("ended", |memory| said(memory.phase).0.trim_start_matches("Controller, "))
    }

    /// What holds everything up comes first, what goes on by itself last.
    fn next_move(&self, id: VmId) -> Option<NextMove> {
        self.held_move(id)
            .or_else(|| self.first_of(id, |id, known| self.source_move(id, known)))
            .or_else(|| self.first_of(id, |id, known| self.target_move(id, known)))
            .or_else(|| self.controller_move(id))
            .or_else(|| self.guest_move(id))
            .or_else(|| self.first_of(id, |id, known| self.copy_move(id, known)))
    }

    fn first_of(
        &self,
        vm: VmId,
        of: impl Fn(MigrationId, &Migration) -> Option<NextMove>,
    ) -> Option<NextMove> {
        self.state.migrations_of(vm).find_map(|(id, known)| of(*id, known))
    }

    /// The journal is older than a peer remembers.
    fn held_move(&self, id: VmId) -> Option<NextMove> {
        let who = match self.came.contains(&id) {
            _ if !self.state.held.contains(&id) => return None,
            true => "the operator: `site unfence VM --yes`, once it is known what became of the VM",
            false => "the sites that know of the VM: to confirm that it is here",
        };
        Some(NextMove { migration: None, state: "held: the journal is old", who, until: None })
    }

    fn source_move(&self, id: MigrationId, known: &Migration) -> Option<NextMove> {
        let source = known.source.as_ref()?;
        let (state, who) = match source.step {
            SourceStep::Offered if source.dial.is_some() => {
                ("Source, OFFERED", "this site: to dial the Destination")
            }
            SourceStep::Offered => ("Source, OFFERED", "the Destination: to come for the files"),
            SourceStep::Initiated => ("Source, INITIATED", "this site: to quiet the guest"),
            SourceStep::Quiesced => ("Source, QUIESCED", "this site: to read the files"),
            SourceStep::Sent => {
                ("Source, SENT", "the Controller: to bring the Destination's READY")
            }
            SourceStep::Released if self.has_gone_on(id, known.vm) => return None,
            SourceStep::Released => {
                ("Source, RELEASED", "the Destination: to accept; repeated until it has")
            }
            // What is left of these is a copy, or nothing.
            SourceStep::Aborted
            | SourceStep::Returned
            | SourceStep::Receipted
            | SourceStep::Tombstone => return None,
        };
        let until = match source.step {
            SourceStep::Offered => self.timer(&Timer::SourceDeadline(id)),
            step => (step < SourceStep::Released).then_some(source.deadline),
        };
        let until = until.map(|at| (at, "this site aborts and keeps the VM"));
        Some(NextMove { migration: Some(id), state, who, until })
    }

    /// Whether the VM has gone on from where this migration released it to.
    fn has_gone_on(&self, migration: MigrationId, vm: VmId) -> bool {
        let chain = self.state.vms.get(&vm).map(|entry| &entry.chain);
        chain.is_some_and(|chain| {
            let newest = chain.certificates.last();
            chain.released_by(migration).is_some_and(|released| newest != Some(released))
        })
    }

    fn target_move(&self, id: MigrationId, known: &Migration) -> Option<NextMove> {
        let target = known.target.as_ref()?;
        let (state, who, until) = match target.step {
            TargetStep::Admitted => (
                "Destination, ADMITTED",
                "this site: to fetch the files",
                self.timer(&Timer::AdmitExpiry(id))
                    .map(|at| (at, "this site gives the place up, if no byte has come")),
            ),
            TargetStep::Receiving => (
                "Destination, RECEIVING",
                "this site: to fetch the files",
                Some((target.expires, "this site drops what it has")),
            ),
            TargetStep::Ready => (
                "Destination, READY",
                "the Source: to release the VM, or to keep it",
                self.timer(&Timer::Lapse(id)).map(|at| {
                    (at, "this site deletes what arrived, and gives back what comes later")
                }),
            ),
            // Of these nothing is here.
            TargetStep::Lapsed
            | TargetStep::Owned
            | TargetStep::HandedBack
            | TargetStep::Dropped => return None,
        };
        Some(NextMove { migration: Some(id), state, who, until })
    }

    fn controller_move(&self, id: VmId) -> Option<NextMove> {
        let journey = self.state.open_journey(id).or_else(|| self.closing_journey(id))?;
        let phase = self.journeys.get(&journey.operation).map(|memory| memory.phase)?;
        let (state, who) = said(phase);
        // From then on it is repeated until it is done: the VM may be released.
        let early = [Phase::Collect, Phase::Force, Phase::Initiate, Phase::PassUp];
        let is_here = self.state.vms.get(&id).is_some_and(|vm| vm.stay.is_some());
        let end = match &journey.goal.evict {
            Some(evict) if is_here && evict.from == Party::Here => "the VM is parked here",
            _ => "the operation ends",
        };
        Some(NextMove {
            migration: journey.chosen.as_ref().map(|chosen| chosen.migration),
            state,
            who,
            until: early.contains(&phase).then_some((journey.goal.deadline, end)),
        })
    }

    /// One that has ended, and whose old path is not closed.
    fn closing_journey(&self, vm: VmId) -> Option<&Journey> {
        let closing = self.journeys.iter().filter(|(_, memory)| memory.phase == Phase::Retire);
        let mut journeys = closing.filter_map(|(operation, _)| self.state.journeys.get(operation));
        journeys.find(|journey| {
            let chosen = journey.chosen.as_ref().map(|chosen| &chosen.migration);
            let migration = chosen.and_then(|chosen| self.state.migrations.get(chosen));
            journey.vm == vm && migration.is_some_and(|m| !m.retired && m.old.is_some())
        })
    }

    fn guest_move(&self, id: VmId) -> Option<NextMove> {
        let entry = self.state.vms.get(&id)?;
        let stay = entry.stay.as_ref()?;
        let started = "this site: to start the guest";
        let is_wrong = match entry.parked {
            Some(_) => !is_quiet(stay),
            None => stay.starting || stay.wanted && is_quiet(stay),
        };
        if let Some(at) = self.timer(&Timer::Guest(id)).filter(|_| is_wrong) {
            let who = match entry.parked {
                Some(_) => "this site: to save the guest's memory",
                None => started,
            };
            return Some(NextMove {
                migration: None,
                state: "the hypervisor refused; see `vm events`",
                who,
                until: Some((at, "it is tried again")),
            });
        }
        let is_made = self.launching.contains_key(&(id, stay.epoch));
        let state = "the guest is being started";
        (is_made || stay.starting).then_some(NextMove {
            migration: None,
            state,
            who: started,
            until: None,
        })
    }

    /// What is waited for with nothing, and a frozen copy whose VM runs elsewhere.
    fn copy_move(&self, id: MigrationId, known: &Migration) -> Option<NextMove> {
        let epoch = self.state.vms.get(&known.vm).map(|entry| entry.chain.epoch());
        let lapsed = known.target.as_ref().filter(|target| target.step == TargetStep::Lapsed);
        if lapsed.is_some_and(|target| epoch < Some(target.epoch())) {
            return Some(NextMove {
                migration: Some(id),
                state: "Destination, LAPSED",
                who: "the Controller: to bring the outcome; this site has deleted what arrived",
                until: None,
            });
        }
        let is_here = self.state.vms.get(&known.vm).is_some_and(|vm| vm.stay.is_some());
        let is_kept = known.source.as_ref()?.step == SourceStep::Receipted && !is_here;
        let at = self.timer(&Timer::Purge(id)).filter(|_| is_kept)?;
        Some(NextMove {
            migration: Some(id),
            state: "Source, RECEIPTED",
            who: "this site: to keep its frozen copy for a while",
            until: Some((at, "this site deletes the copy")),
        })
    }

    fn timer(&self, timer: &Timer) -> Option<Time> {
        self.timers.at(timer)
    }
}

/// What a Controller is doing, and who has the next move.
fn said(phase: Phase) -> (&'static str, &'static str) {
    match phase {
        Phase::Collect => ("Controller, collecting offers", "this site's peers: to offer"),
        Phase::Force => (
            "Controller, asking the Source to make ready",
            "the Source: to say where its files are",
        ),
        Phase::Initiate => ("Controller, moving the files", "the Destination: to fetch the files"),
        Phase::Verify => {
            ("Controller, verifying at the Source", "the Source: to release the VM, or to keep it")
        }
        Phase::Deliver => ("Controller, handing over", "the Destination: to accept"),
        Phase::Handback => {
            ("Controller, giving it back to the Source", "the Source: to take it back")
        }
        Phase::Retire => {
            ("Controller, closing the old path", "the sites of the old path: to let it go")
        }
        Phase::Abort => (
            "Controller, giving the attempt up",
            "the Source: to say that it keeps the VM, or has released it",
        ),
        Phase::PassUp => {
            ("Controller, waiting for the delegator", "the delegator: to find a place")
        }
    }
}

fn peer_of(party: &Party) -> Option<PeerName> {
    match party {
        Party::Peer(peer) => Some(peer.clone()),
        Party::Here => None,
    }
}
