//! What users are shown of a VM: roles, state, and who has the next move.

use std::collections::BTreeSet;

use model::{
    Agreed, Descriptor, Epoch, HostName, MigrationId, OperationId, PeerName, PowerState, Time, VmId,
};

use crate::row::{Down, Party};
use crate::site::{OfferAt, Phase, Site};
use crate::state::{Journey, SourceStep, TargetStep};
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
    pub state: String,
    /// Who has the next move, and what it is.
    pub who: String,
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
        self.journeys.get(&operation).map_or("ended", |memory| match memory.phase {
            Phase::Collect => "collecting offers",
            Phase::Force => "asking the Source to make ready",
            Phase::Initiate => "moving the files",
            Phase::Verify => "verifying at the Source",
            Phase::Deliver => "handing over",
            Phase::Handback => "giving it back to the Source",
            Phase::Retire => "closing the old path",
            Phase::Abort => "giving the attempt up",
            Phase::PassUp => "waiting for the delegator",
        })
    }

    fn next_move(&self, id: VmId) -> Option<NextMove> {
        for (migration, known) in self.state.migrations_of(id) {
            if let Some(source) = &known.source {
                let (state, who) = match source.step {
                    SourceStep::Offered => ("OFFERED", "the Destination: to come for the files"),
                    SourceStep::Initiated => ("INITIATED", "this site: to quiet the guest"),
                    SourceStep::Quiesced => ("QUIESCED", "this site: to read the files"),
                    SourceStep::Sent => {
                        ("SENT", "the Controller: to bring the Destination's READY")
                    }
                    SourceStep::Released => {
                        ("RELEASED", "the Destination: to accept; repeated until it has")
                    }
                    _ => continue,
                };
                let until = match source.step {
                    SourceStep::Offered => self.timer(&Timer::SourceDeadline(*migration)),
                    step => (step < SourceStep::Released).then_some(source.deadline),
                };
                let until = until.map(|at| (at, "this site aborts and keeps the VM"));
                return Some(NextMove {
                    migration: Some(*migration),
                    state: format!("Source, {state}"),
                    who: who.to_owned(),
                    until,
                });
            }
            if let Some(target) = &known.target {
                let (state, who, until) = match target.step {
                    TargetStep::Admitted => (
                        "ADMITTED",
                        "this site: to fetch the files",
                        self.timer(&Timer::AdmitExpiry(*migration))
                            .map(|at| (at, "this site gives the place up, if no byte has come")),
                    ),
                    TargetStep::Receiving => (
                        "RECEIVING",
                        "this site: to fetch the files",
                        Some((target.expires, "this site drops what it has")),
                    ),
                    TargetStep::Ready => (
                        "READY",
                        "the Source: to release the VM, or to keep it",
                        self.timer(&Timer::Lapse(*migration)).map(|at| {
                            (at, "this site deletes what arrived, and gives back what comes later")
                        }),
                    ),
                    _ => continue,
                };
                return Some(NextMove {
                    migration: Some(*migration),
                    state: format!("Destination, {state}"),
                    who: who.to_owned(),
                    until,
                });
            }
        }
        if let Some(at) = self.timer(&Timer::Guest(id)) {
            let parked = self.state.vms.get(&id).is_some_and(|vm| vm.parked.is_some());
            let (who, then) = match parked {
                true => ("this site: to save the guest's memory", "it is tried again"),
                false => ("this site: to start the guest", "it is tried again"),
            };
            return Some(NextMove {
                migration: None,
                state: "the hypervisor refused; see `vm events`".to_owned(),
                who: who.to_owned(),
                until: Some((at, then)),
            });
        }
        let journey = self.state.open_journey(id)?;
        // From there on it is repeated until it is done.
        let memory = self.journeys.get(&journey.operation);
        let late = [Phase::Verify, Phase::Deliver, Phase::Handback, Phase::Retire];
        let is_late = memory.is_some_and(|memory| late.contains(&memory.phase));
        let phase = self.phase(journey.operation);
        Some(NextMove {
            migration: journey.chosen.as_ref().map(|chosen| chosen.migration),
            state: format!("Controller, {phase}"),
            who: "this site".to_owned(),
            until: (!is_late).then_some((journey.goal.deadline, "the operation ends")),
        })
    }

    fn timer(&self, timer: &Timer) -> Option<Time> {
        self.timers.at(timer)
    }
}

fn peer_of(party: &Party) -> Option<PeerName> {
    match party {
        Party::Peer(peer) => Some(peer.clone()),
        Party::Here => None,
    }
}
