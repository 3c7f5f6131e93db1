//! What a site must not forget: the fold of its journal through one total function.

use std::collections::{BTreeMap, BTreeSet};

use model::statement::Fact;
use model::{
    Agreed, Certificate, Chain, Descriptor, Digest, EdgeHandle, Epoch, HostName, MigrationId,
    Monitoring, OperationId, PowerState, PublicKey, Resources, RunProfile, Signed, Statement, Time,
    TokenHash, TransferEnd, VmId,
};
use serde::{Deserialize, Serialize};

use crate::index::Index;
use crate::relay::RelayRole;
use crate::row::{Down, Edge, Goal, LIBRARY, Mode, Party, Result, Row};

/// A host of this site.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// What it has for VMs.
    pub capacity: Resources,
    /// Whether it is being emptied.
    pub draining: bool,
}

/// A VM's files and run state at this site, while this site owns it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stay {
    /// On which host, or in the library.
    pub host: HostName,
    /// Since which epoch; it names the folder too.
    pub epoch: Epoch,
    /// This site's per-VM key.
    pub key: PublicKey,
    /// What its guest does, as far as is durable.
    pub power: PowerState,
    /// START_INTENT is durable and STARTED is not: it may have executed.
    pub starting: bool,
    /// It ran before a move that came to nothing, and is to go on as soon as it can.
    pub wanted: bool,
    /// What its run state depends on, from its first start on.
    pub profile: Option<RunProfile>,
}

/// A VM on whose path this site stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Vm {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// The newest certificates that this site knows.
    pub chain: Chain,
    /// The delegator's edge; none at the primary.
    pub up: Option<Edge>,
    /// Where the path goes on.
    pub down: Down,
    /// Its stay here, if this site owns it.
    pub stay: Option<Stay>,
    /// Why it is parked, if it is.
    pub parked: Option<String>,
    /// It was destroyed: kept as a tombstone.
    pub destroyed: bool,
}

impl Vm {
    /// Takes a section over if it is later; whether it is. Rows only have sections that are
    /// vouched for, or of revision 0.
    fn renew(&mut self, section: &Monitoring) -> bool {
        let is_later = section.revision > self.descriptor.monitoring.revision;
        if is_later {
            self.descriptor.monitoring = section.clone();
        }
        is_later
    }
}

/// Where a migration stands at its Source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceStep {
    /// A token is out.
    Offered,
    /// The other proxy came; the guest is being quieted.
    Initiated,
    /// The guest is quiet; the files are being read.
    Quiesced,
    /// All is read; the outcome is open.
    Sent,
    /// Decided: the Destination's.
    Released,
    /// Decided: it stays.
    Aborted,
    /// Released, and given back.
    Returned,
    /// Released, and the Destination has it.
    Receipted,
    /// Released, and the frozen copy is gone.
    Tombstone,
}

impl SourceStep {
    /// The steps in which nothing is decided yet.
    const OPEN: [Self; 4] = [Self::Offered, Self::Initiated, Self::Quiesced, Self::Sent];
}

/// A migration at its Source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceRole {
    /// Where it stands.
    pub step: SourceStep,
    /// Who gets the certificate.
    pub target_vm_key: PublicKey,
    /// The key that the other proxy must show.
    pub target_transfer_key: PublicKey,
    /// The key that this site's proxy shows.
    pub transfer_key: PublicKey,
    /// The token's stored form.
    pub token: TokenHash,
    /// The token's hint.
    pub hint: [u8; 16],
    /// The Controller's key.
    pub controller: PublicKey,
    /// What becomes of a running guest.
    pub mode: Mode,
    /// Whether the guest ran before.
    pub active: bool,
    /// When this site aborts by itself.
    pub deadline: Time,
    /// The Destination's end, if this site's proxy has to dial it.
    pub dial: Option<TransferEnd>,
    /// The copy here: the live stay until RELEASED, the frozen one from then on.
    pub copy: Stay,
    /// Root digest of what was read.
    pub sent: Option<Digest>,
    /// What the Destination gets.
    pub certificate: Option<Signed<Certificate>>,
    /// What is said if it stays.
    pub aborted: Option<Signed<Statement>>,
    /// When the frozen copy may go.
    pub purge: Option<Time>,
}

/// Where a migration stands at its Destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetStep {
    /// Capacity is taken.
    Admitted,
    /// Bytes arrive.
    Receiving,
    /// All is there.
    Ready,
    /// Nobody came for it: what arrived is deleted, and the outcome is still not known.
    Lapsed,
    /// The VM is this site's.
    Owned,
    /// It went back.
    HandedBack,
    /// Nothing came of it.
    Dropped,
}

impl TargetStep {
    /// Whether the VM is on its way here: capacity is taken, and its files arrive or have arrived.
    pub fn arrives(self) -> bool {
        self <= Self::Ready
    }

    /// Whether this site does not know the outcome yet.
    pub fn is_open(self) -> bool {
        self <= Self::Lapsed
    }
}

/// A migration at its Destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetRole {
    /// Where it stands.
    pub step: TargetStep,
    /// The descriptor that the offer was made for.
    pub descriptor: Descriptor,
    /// Who the offer was made to.
    pub asker: Party,
    /// The edge to the asker.
    pub handle: EdgeHandle,
    /// The host.
    pub host: HostName,
    /// This site's per-VM key.
    pub vm_key: PublicKey,
    /// The key that this site's proxy shows.
    pub transfer_key: PublicKey,
    /// The Controller's key.
    pub controller: PublicKey,
    /// Where the files are.
    pub source: TransferEnd,
    /// Who owned the VM when it was admitted.
    pub chain: Chain,
    /// The profile of the run state that may come.
    pub profile: Option<RunProfile>,
    /// Whether to boot it.
    pub boot: bool,
    /// When the capacity is freed.
    pub expires: Time,
    /// READY, its digest, whether a run state came, bytes of the files, bytes on the wire.
    pub ready: Option<(Signed<Statement>, Digest, bool, model::Bytes, model::Bytes)>,
    /// The signed OWNED.
    pub owned: Option<Signed<Statement>>,
    /// The chain with which the VM went back, to the certificate that says so.
    pub back: Option<Chain>,
}

impl Stay {
    /// What the guest does, as far as users are concerned: from its start intent on it runs.
    pub fn shown(&self) -> PowerState {
        if self.starting { PowerState::Active } else { self.power }
    }
}

impl TargetRole {
    /// The certificate that gives the VM back, once there is one.
    pub(crate) fn given_back(&self) -> Option<&Signed<Certificate>> {
        self.back.as_ref()?.certificates.last()
    }

    /// The epoch that begins when the VM becomes this site's.
    pub fn epoch(&self) -> Epoch {
        self.chain.epoch().next()
    }
}

/// A migration as this site knows it, in whatever roles.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Migration {
    /// The VM.
    pub vm: VmId,
    /// As Source.
    pub source: Option<SourceRole>,
    /// As Destination.
    pub target: Option<TargetRole>,
    /// As Controller: the edge of a peer's offer.
    pub offered: Option<Edge>,
    /// As Intermediary of the new path: up and down.
    pub pending: Option<(Edge, Edge)>,
    /// What an Intermediary of the new path knows of the VM.
    pub relayed: Option<(Descriptor, Chain)>,
    /// As one whose proxy passes the transfer on.
    pub relay: Option<RelayRole>,
    /// The path that the migration leaves behind, from the flip until it is retired.
    pub old: Option<(Option<Edge>, Down)>,
    /// The signed OWNED, once the new path counts.
    pub owned: Option<Signed<Statement>>,
    /// The old path is closed.
    pub retired: bool,
    /// The contract in which this site answers for the VM to the one above.
    pub promised: Option<Agreed>,
    /// The contract in which the one below answers for it to this site.
    pub taken: Option<Agreed>,
    /// The first epoch in which the VM's path did not go along each of them any more.
    pub ended: [Option<Epoch>; 2],
}

impl Migration {
    /// The edges, up and down, of a path through this site that may come yet, if this is the chain
    /// that it knows of the VM.
    pub(crate) fn may_turn(
        &self,
        id: MigrationId,
        known: Option<&Chain>,
    ) -> Option<(&Edge, &Edge)> {
        let (up, down) = self.pending.as_ref().filter(|_| self.owned.is_none())?;
        let next = self.relayed.as_ref().map(|(_, chain)| chain.epoch().next());
        // The VM was released by another one instead, or has moved on since.
        let overtaken = known.is_some_and(|chain| {
            let newest = Some(chain.epoch());
            newest > next || newest == next && chain.released_by(id).is_none()
        });
        (!overtaken).then_some((up, down))
    }

    /// The epoch that began with the path that counts since the flip, if there was one.
    pub(crate) fn left_at(&self) -> Option<Epoch> {
        match self.owned.as_ref()?.peek().ok()?.fact {
            Fact::Owned { epoch } => Some(epoch),
            _ => None,
        }
    }
}

/// A journey of this site as Controller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Journey {
    /// The operation's id.
    pub operation: OperationId,
    /// The VM.
    pub vm: VmId,
    /// What for.
    pub goal: Goal,
    /// The offer that is being tried: migration, Controller's key, who made it, edge, its end.
    pub chosen: Option<Chosen>,
    /// How it ended.
    pub result: Option<Result>,
}

/// The offer that a journey tries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chosen {
    /// The migration.
    pub migration: MigrationId,
    /// The key that speaks for the Controller.
    pub key: PublicKey,
    /// Who made the offer.
    pub at: Party,
    /// The edge it gets.
    pub handle: EdgeHandle,
    /// The Destination's end of the transfer.
    pub target: TransferEnd,
    /// The primary has reclaimed the VM since: its path leads elsewhere.
    pub rerouted: bool,
}

/// What a site must not forget.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    /// Its hosts.
    pub hosts: BTreeMap<HostName, Host>,
    /// The VMs on whose path it stands, or stood.
    pub vms: BTreeMap<VmId, Vm>,
    /// Every migration that it had a role in.
    pub migrations: BTreeMap<MigrationId, Migration>,
    /// Its journeys as Controller.
    pub journeys: BTreeMap<OperationId, Journey>,
    /// VMs that must not execute here, be taken, given, or given up, until the path above, or the
    /// operator, has confirmed what an old journal says of them.
    pub held: BTreeSet<VmId>,
    pub(crate) index: Index,
}

/// A row that contradicts the rows before it: the journal is damaged, or the program is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a row of type {row} does not follow from the journal before it: {why}")]
pub struct Illegal {
    /// The row's type.
    pub row: &'static str,
    /// What is missing.
    pub why: &'static str,
}

impl State {
    /// The state after `row`. Total: a row is legal here, or a typed error and nothing changed.
    pub fn apply(&mut self, row: &Row) -> std::result::Result<(), Illegal> {
        if let Row::Offered { migration, vm, .. }
        | Row::Admitted { migration, vm, .. }
        | Row::Pending { migration, vm, .. }
        | Row::Relaying { migration, vm, .. }
        | Row::Retired { migration, vm, .. } = row
            && self.migrations.get(migration).is_some_and(|known| known.vm != *vm)
        {
            return Err(Illegal { row: row.kind(), why: "the migration is of another VM" });
        }
        let turned = match row {
            Row::Owned { migration, .. } | Row::Flipped { migration, .. } => {
                self.migrations.get(migration).map(|migration| migration.vm)
            }
            Row::Retired { vm, .. }
            | Row::Destroyed { vm }
            | Row::Adopted { vm, .. }
            | Row::Reclaimed { vm, .. }
            | Row::Rerouted { vm, .. } => Some(*vm),
            _ => None,
        };
        let before = turned.and_then(|vm| Some((vm, self.edges(vm)?)));
        let touched = self.touched(row);
        self.indexed(touched, |state| state.apply_row(row))?;
        if let Some((vm, before)) = before {
            self.end_contracts(vm, before);
        }
        Ok(())
    }

    /// A VM's edges here, up and down, and the first epoch for which this site does not answer
    /// as things stand.
    fn edges(&self, vm: VmId) -> Option<([Option<Edge>; 2], Epoch)> {
        let vm = self.vms.get(&vm).filter(|vm| !vm.destroyed)?;
        let newest = vm.chain.epoch();
        let (down, next) = match &vm.down {
            Down::Edge(edge) => (Some(edge.clone()), newest.next()),
            // Released, and another's from the newest on.
            Down::Here if vm.stay.is_none() => (None, newest),
            Down::Here => (None, newest.next()),
        };
        Some(([vm.up.clone(), down], next))
    }

    /// Takes down when the path of a VM left the edges that it had.
    fn end_contracts(&mut self, vm: VmId, (before, next): ([Option<Edge>; 2], Epoch)) {
        let after = self.edges(vm).map(|(edges, _)| edges).unwrap_or_default();
        let newest = self.vms.get(&vm).map(|vm| vm.chain.epoch());
        let epoch = newest.unwrap_or(next).max(next);
        let left = |at: usize| before[at].as_ref().filter(|edge| after[at].as_ref() != Some(edge));
        let of_vm: Vec<MigrationId> = self.migrations_of(vm).map(|(id, _)| *id).collect();
        for (at, edge) in [0, 1].into_iter().filter_map(|at| Some((at, left(at)?))) {
            for id in &of_vm {
                let Some(migration) = self.migrations.get_mut(id) else { continue };
                let contract = [&migration.promised, &migration.taken][at].as_ref();
                if contract.is_some_and(|agreed| agreed.contract.edge == edge.handle) {
                    migration.ended[at].get_or_insert(epoch);
                }
            }
        }
    }

    fn apply_row(&mut self, row: &Row) -> std::result::Result<(), Illegal> {
        let illegal = |why| Illegal { row: row.kind(), why };
        match row {
            Row::HostAdded { host, capacity } => {
                let draining = self.hosts.get(host).is_some_and(|host| host.draining);
                self.hosts.insert(host.clone(), Host { capacity: *capacity, draining });
            }
            Row::HostDraining { host, draining } => {
                self.hosts.get_mut(host).ok_or(illegal("no such host"))?.draining = *draining;
            }
            Row::HostRemoved { host } => {
                self.hosts.remove(host).ok_or(illegal("no such host"))?;
            }
            Row::Imported { vm, descriptor, chain } => {
                if self.vms.contains_key(vm) {
                    return Err(illegal("the VM is known"));
                }
                let owner = chain.owner_at(chain.epoch());
                let stay = Stay {
                    host: library(),
                    epoch: Epoch(0),
                    key: owner.ok_or(illegal("its chain names no owner"))?,
                    power: PowerState::Defined,
                    starting: false,
                    wanted: false,
                    profile: None,
                };
                let entry = Vm {
                    descriptor: descriptor.clone(),
                    chain: chain.clone(),
                    up: None,
                    down: Down::Here,
                    stay: Some(stay),
                    parked: None,
                    destroyed: false,
                };
                self.vms.insert(*vm, entry);
            }
            Row::Began { operation, vm, goal } => {
                let journey = Journey {
                    operation: *operation,
                    vm: *vm,
                    goal: goal.clone(),
                    chosen: None,
                    result: None,
                };
                self.journeys.insert(*operation, journey);
                self.list_journey(*vm, *operation);
            }
            Row::Chosen { operation, migration, key, at, handle, target, taken } => {
                let journey =
                    self.journeys.get_mut(operation).ok_or(illegal("no such operation"))?;
                journey.chosen = Some(Chosen {
                    migration: *migration,
                    key: *key,
                    at: at.clone(),
                    handle: *handle,
                    target: target.clone(),
                    rerouted: false,
                });
                let vm = journey.vm;
                let entry = self.migration(*migration, vm);
                entry.taken = taken.clone();
                if let Party::Peer(peer) = at {
                    entry.offered = Some(Edge { peer: peer.clone(), handle: *handle });
                }
            }
            Row::Concluded { operation, result } => {
                let journey =
                    self.journeys.get_mut(operation).ok_or(illegal("no such operation"))?;
                journey.result = Some(result.clone());
            }
            Row::Parked { vm, reason } => {
                self.vms.get_mut(vm).ok_or(illegal("no such VM"))?.parked = reason.clone();
            }
            Row::Learned { vm, chain, parked } => {
                let entry = self.vms.get_mut(vm).ok_or(illegal("no such VM"))?;
                if chain.epoch() > entry.chain.epoch() {
                    entry.chain = chain.clone();
                }
                entry.parked = parked.clone();
            }
            Row::Monitored { vm, section } => {
                let entry = self.vms.get_mut(vm).ok_or(illegal("no such VM"))?;
                if !entry.renew(section) {
                    return Err(illegal("its monitoring is as new already"));
                }
            }
            Row::Destroyed { vm } => {
                let entry = self.vms.get_mut(vm).ok_or(illegal("no such VM"))?;
                entry.destroyed = true;
                entry.stay = None;
            }
            Row::Adopted { vm, chain, stay, .. } => {
                let entry = self.vms.get_mut(vm).ok_or(illegal("no such VM"))?;
                entry.chain = chain.clone();
                entry.stay = Some(stay.clone());
                entry.down = Down::Here;
                entry.parked = None;
            }
            Row::Superseded { vm, chain } => {
                let entry = self.vms.get_mut(vm).ok_or(illegal("no such VM"))?;
                entry.chain = chain.clone();
                entry.stay = None;
                entry.parked = Some("another site owns it by a newer certificate".to_owned());
            }
            Row::Reclaimed { vm, up } => {
                self.vms.get_mut(vm).ok_or(illegal("no such VM"))?.up = Some(up.clone());
            }
            Row::Rerouted { vm, down } => {
                let entry = self.vms.get_mut(vm).ok_or(illegal("no such VM"))?;
                entry.down = Down::Edge(down.clone());
                let open = self.open_journey(*vm).map(|journey| journey.operation);
                let journey = open.and_then(|operation| self.journeys.get_mut(&operation));
                if let Some(chosen) = journey.and_then(|journey| journey.chosen.as_mut()) {
                    chosen.rerouted = true;
                }
            }
            Row::Fenced { vms, .. } => self.held.extend(vms),
            Row::Unfenced { vm } => {
                if !self.held.remove(vm) {
                    return Err(illegal("the VM is not held"));
                }
            }
            Row::StartIntent { vm, epoch } => {
                let stay = self.stay_at(*vm, *epoch).ok_or(illegal("the VM is not here"))?;
                stay.starting = true;
                stay.wanted = false;
            }
            Row::Started { vm, epoch, profile } => {
                let stay = self.stay_at(*vm, *epoch).ok_or(illegal("the VM is not here"))?;
                stay.starting = false;
                stay.power = PowerState::Active;
                stay.profile = Some(profile.clone());
            }
            Row::Stopped { vm, epoch, power } => {
                let stay = self.stay_at(*vm, *epoch).ok_or(illegal("the VM is not here"))?;
                stay.starting = false;
                stay.power = *power;
            }
            Row::Offered { .. }
            | Row::Initiated { .. }
            | Row::Quiesced { .. }
            | Row::Sent { .. }
            | Row::Released { .. }
            | Row::Aborted { .. }
            | Row::Returned { .. }
            | Row::Receipted { .. }
            | Row::Tombstone { .. } => self.apply_as_source(row).map_err(illegal)?,
            Row::Admitted { .. }
            | Row::Receiving { .. }
            | Row::Ready { .. }
            | Row::Owned { .. }
            | Row::Lapsed { .. }
            | Row::HandedBack { .. }
            | Row::Dropped { .. } => self.apply_as_target(row).map_err(illegal)?,
            Row::Pending { .. }
            | Row::Relaying { .. }
            | Row::Flipped { .. }
            | Row::Retired { .. } => {
                self.apply_to_path(row).map_err(illegal)?;
            }
        }
        Ok(())
    }

    fn apply_as_source(&mut self, row: &Row) -> std::result::Result<(), &'static str> {
        use SourceStep as S;
        if let Row::Offered {
            migration,
            vm,
            controller,
            target_vm_key,
            target_transfer_key,
            transfer_key,
            token,
            hint,
            mode,
            deadline,
            dial,
        } = row
        {
            let copy =
                self.vms.get(vm).and_then(|vm| vm.stay.clone()).ok_or("the VM is not here")?;
            let entry = self.migration(*migration, *vm);
            if entry.source.as_ref().is_some_and(|source| source.step != S::Offered) {
                return Err("the migration is under way");
            }
            entry.source = Some(SourceRole {
                step: S::Offered,
                target_vm_key: *target_vm_key,
                target_transfer_key: *target_transfer_key,
                transfer_key: *transfer_key,
                token: *token,
                hint: *hint,
                controller: *controller,
                mode: *mode,
                active: false,
                deadline: *deadline,
                dial: dial.clone(),
                copy,
                sent: None,
                certificate: None,
                aborted: None,
                purge: None,
            });
            return Ok(());
        }
        let (id, legal, next): (_, &[S], S) = match row {
            Row::Initiated { migration, .. } => (migration, &[S::Offered], S::Initiated),
            Row::Quiesced { migration } => (migration, &[S::Initiated], S::Quiesced),
            Row::Sent { migration, .. } => (migration, &[S::Quiesced, S::Sent], S::Sent),
            // From an earlier step than SENT by a site that had forgotten what came between.
            Row::Released { migration, .. } => (migration, &S::OPEN, S::Released),
            Row::Aborted { migration, .. } => (migration, &S::OPEN, S::Aborted),
            Row::Returned { migration, .. } => (migration, &[S::Released], S::Returned),
            Row::Receipted { migration, .. } => (migration, &[S::Released], S::Receipted),
            Row::Tombstone { migration } => {
                (migration, &[S::Receipted, S::Tombstone], S::Tombstone)
            }
            _ => unreachable_row(),
        };
        let migration = self.migrations.get_mut(id).ok_or("no such migration")?;
        let source = migration.source.as_mut().ok_or("this site is not its Source")?;
        if !legal.contains(&source.step) {
            return Err("not in this step");
        }
        let vm = self.vms.get_mut(&migration.vm);
        // In each case what may be missing is looked for before anything changes.
        match row {
            Row::Initiated { active, .. } => source.active = *active,
            Row::Quiesced { .. } => {
                let stay = vm.and_then(|vm| vm.stay.clone()).ok_or("the VM is not here")?;
                source.copy = stay;
            }
            Row::Sent { digest, .. } => source.sent = Some(*digest),
            Row::Aborted { statement, .. } => {
                source.aborted = Some(statement.clone());
                if let Some(stay) = vm.and_then(|vm| vm.stay.as_mut()) {
                    stay.wanted |= source.active;
                }
            }
            Row::Released { certificate, .. } => {
                let vm = vm.ok_or("no such VM")?;
                source.copy = vm.stay.take().ok_or("the VM is not here")?;
                source.certificate = Some(certificate.clone());
                vm.chain = vm.chain.extended(certificate.clone());
            }
            Row::Returned { certificate, .. } => {
                let vm = vm.ok_or("no such VM")?;
                vm.chain = vm.chain.extended(certificate.clone());
                vm.stay = Some(Stay { wanted: source.active, ..source.copy.clone() });
            }
            Row::Receipted { owned, purge, .. } => {
                source.purge = Some(*purge);
                migration.owned = Some(owned.clone());
            }
            _ => {}
        }
        source.step = next;
        Ok(())
    }

    fn apply_as_target(&mut self, row: &Row) -> std::result::Result<(), &'static str> {
        use TargetStep as T;
        if let Row::Admitted {
            migration,
            vm,
            descriptor,
            asker,
            handle,
            host,
            vm_key,
            transfer_key,
            controller,
            source,
            chain,
            profile,
            boot,
            expires,
            promised,
        } = row
        {
            let entry = self.migration(*migration, *vm);
            if entry.target.as_ref().is_some_and(|target| target.step > T::Receiving) {
                return Err("the migration is under way");
            }
            entry.promised = promised.clone();
            entry.target = Some(TargetRole {
                step: T::Admitted,
                descriptor: descriptor.clone(),
                asker: asker.clone(),
                handle: *handle,
                host: host.clone(),
                vm_key: *vm_key,
                transfer_key: *transfer_key,
                controller: *controller,
                source: source.clone(),
                chain: chain.clone(),
                profile: profile.clone(),
                boot: *boot,
                expires: *expires,
                ready: None,
                owned: None,
                back: None,
            });
            return Ok(());
        }
        let (id, legal, next): (_, &[T], T) = match row {
            Row::Receiving { migration } => (migration, &[T::Admitted], T::Receiving),
            Row::Ready { migration, .. } => (migration, &[T::Admitted, T::Receiving], T::Ready),
            Row::Owned { migration, .. } => (migration, &[T::Ready], T::Owned),
            Row::Lapsed { migration } => (migration, &[T::Ready], T::Lapsed),
            Row::HandedBack { migration, .. } => (migration, &[T::Ready, T::Lapsed], T::HandedBack),
            Row::Dropped { migration, .. } => {
                (migration, &[T::Admitted, T::Receiving, T::Ready, T::Lapsed], T::Dropped)
            }
            _ => unreachable_row(),
        };
        let migration = self.migrations.get_mut(id).ok_or("no such migration")?;
        let target = migration.target.as_mut().ok_or("this site is not its Destination")?;
        if !legal.contains(&target.step) {
            return Err("not in this step");
        }
        target.step = next;
        match row {
            Row::Ready { statement, digest, has_state, size, wire, .. } => {
                target.ready = Some((statement.clone(), *digest, *has_state, *size, *wire));
            }
            Row::HandedBack { certificate, back, .. } => {
                let released = target.chain.extended(certificate.clone());
                target.back = Some(released.extended(back.clone()));
            }
            Row::Owned { certificate, statement, .. } => {
                target.owned = Some(statement.clone());
                migration.owned = Some(statement.clone());
                let has_state = target.ready.as_ref().is_some_and(|ready| ready.2);
                let power = if has_state { PowerState::Suspended } else { PowerState::Defined };
                let stay = Stay {
                    host: target.host.clone(),
                    epoch: target.epoch(),
                    key: target.vm_key,
                    power,
                    starting: false,
                    wanted: false,
                    profile: target.profile.clone(),
                };
                let chain = target.chain.extended(certificate.clone());
                let up = match &target.asker {
                    Party::Peer(peer) => Some(Edge { peer: peer.clone(), handle: target.handle }),
                    Party::Here => None,
                };
                let vm = self.vms.entry(migration.vm).or_insert_with(|| Vm {
                    descriptor: target.descriptor.clone(),
                    chain: chain.clone(),
                    up: up.clone(),
                    down: Down::Here,
                    stay: None,
                    parked: None,
                    destroyed: false,
                });
                let old_up = vm.up.clone();
                migration.old = Some((old_up, vm.down.clone()));
                if up.is_some() {
                    vm.up = up;
                }
                vm.down = Down::Here;
                vm.chain = chain;
                vm.renew(&target.descriptor.monitoring);
                vm.stay = Some(stay);
                vm.parked = None;
            }
            _ => {}
        }
        Ok(())
    }

    fn apply_to_path(&mut self, row: &Row) -> std::result::Result<(), &'static str> {
        match row {
            Row::Pending { migration, vm, descriptor, chain, up, down, promised, taken } => {
                let entry = self.migration(*migration, *vm);
                entry.pending = Some((up.clone(), down.clone()));
                entry.relayed = Some((descriptor.clone(), chain.clone()));
                (entry.promised, entry.taken) = (promised.clone(), taken.clone());
            }
            Row::Relaying { migration, vm, given, source, until } => {
                self.migration(*migration, *vm).relay =
                    Some(RelayRole { given: *given, source: source.clone(), until: *until });
            }
            Row::Flipped { migration, certificate, owned } => {
                let entry = self.migrations.get_mut(migration).ok_or("no such migration")?;
                let (up, down) = match (&entry.pending, &entry.offered) {
                    (Some((up, down)), _) => (Some(up.clone()), down.clone()),
                    (None, Some(down)) => (None, down.clone()),
                    (None, None) => return Err("this site has no edge of the new path"),
                };
                let epoch = certificate.peek().map_err(|_| "certificate is malformed")?.epoch;
                if let Some((descriptor, chain)) = &entry.relayed {
                    self.vms.entry(entry.vm).or_insert_with(|| Vm {
                        descriptor: descriptor.clone(),
                        chain: chain.clone(),
                        up: up.clone(),
                        down: Down::Edge(down.clone()),
                        stay: None,
                        parked: None,
                        destroyed: false,
                    });
                }
                let vm = self.vms.get_mut(&entry.vm).ok_or("no such VM")?;
                entry.owned = Some(owned.clone());
                if let Some((descriptor, chain)) = &entry.relayed {
                    vm.renew(&descriptor.monitoring);
                    if chain.epoch() > vm.chain.epoch() {
                        vm.chain = chain.clone();
                    }
                }
                if epoch == vm.chain.epoch().next() {
                    vm.chain = vm.chain.extended(certificate.clone());
                }
                entry.old = Some((vm.up.clone(), vm.down.clone()));
                if up.is_some() {
                    vm.up = up;
                }
                vm.down = Down::Edge(down);
                vm.parked = None;
            }
            Row::Retired { migration, vm, came } => {
                let entry = self.migration(*migration, *vm);
                entry.retired = true;
                entry.old = None;
                let hangs_on_it = |vm: &Vm| came.is_some() && vm.up == *came && vm.stay.is_none();
                if self.vms.get(vm).is_some_and(hangs_on_it) {
                    self.vms.remove(vm);
                }
            }
            _ => unreachable_row(),
        }
        Ok(())
    }

    fn migration(&mut self, id: MigrationId, vm: VmId) -> &mut Migration {
        self.list_migration(vm, id);
        self.migrations.entry(id).or_insert_with(|| Migration {
            vm,
            source: None,
            target: None,
            offered: None,
            pending: None,
            relayed: None,
            relay: None,
            old: None,
            owned: None,
            retired: false,
            promised: None,
            taken: None,
            ended: [None, None],
        })
    }

    fn stay_at(&mut self, vm: VmId, epoch: Epoch) -> Option<&mut Stay> {
        self.vms.get_mut(&vm)?.stay.as_mut().filter(|stay| stay.epoch == epoch)
    }

    /// The migration that this site's Source role has open for `vm`, if any.
    pub fn open_source(&self, vm: VmId) -> Option<(MigrationId, &SourceRole)> {
        self.migrations_of(vm).find_map(|(id, migration)| {
            let source = migration.source.as_ref()?;
            (source.step < SourceStep::Released).then_some((*id, source))
        })
    }

    /// The journey that this site has open for `vm`, if any.
    pub fn open_journey(&self, vm: VmId) -> Option<&Journey> {
        self.journeys_of(vm).find(|journey| journey.result.is_none())
    }

    /// What each VM and each admitted migration takes, and of which host.
    pub fn taken(&self) -> impl Iterator<Item = (&HostName, Resources)> {
        let stays = self.vms.values().filter_map(|vm| {
            let stay = vm.stay.as_ref()?;
            Some((&stay.host, vm.descriptor.resources))
        });
        let admitted = self.migrations.values().filter_map(|migration| {
            let target = migration.target.as_ref()?;
            target.step.arrives().then_some((&target.host, target.descriptor.resources))
        });
        stays.chain(admitted)
    }
}

/// The name of the library as a host.
pub fn library() -> HostName {
    LIBRARY.parse().expect("a legal name")
}

fn unreachable_row() -> ! {
    unreachable!("State::apply sends only the rows of this group here")
}
