//! What is looked up in a state with every request, and must not take a look at every VM.
//!
//! It follows from the rest of the state; [`State::apply`] alone changes it, with each row.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use model::{Descriptor, HostName, MigrationId, OperationId, PeerName, Resources, VmId};

use crate::row::{Party, Row};
use crate::state::{Journey, Migration, State};

/// Found by more than their own names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Index {
    /// What VMs and admitted migrations take of each host. No sum comes near what it can hold.
    used: BTreeMap<HostName, Resources>,
    /// VMs that are here for a peer.
    here: BTreeSet<(PeerName, VmId)>,
    /// Migrations that are admitted for a peer, and whose VM is not this site's yet.
    coming: BTreeSet<(PeerName, MigrationId)>,
    migrations: BTreeSet<(VmId, MigrationId)>,
    journeys: BTreeSet<(VmId, OperationId)>,
}

/// Equal states have equal indices, so that they need not be told apart by them.
impl Hash for Index {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// Something that takes of a host, for a peer or for this site itself.
type Holding<'a> = (&'a HostName, Resources, Option<&'a PeerName>);

/// A VM and a migration whose holdings a row may change.
pub(crate) type Touched = (Option<VmId>, Option<MigrationId>);

impl Index {
    /// Takes up what these have.
    fn add(&mut self, state: &State, (vm, migration): Touched) {
        if let Some((vm, (host, resources, peer))) = of(vm, |vm| state.holding_of_vm(vm)) {
            self.hold(host, resources);
            self.here.extend(peer.map(|peer| (peer.clone(), vm)));
        }
        let holding = of(migration, |id| state.holding_of_migration(id));
        if let Some((id, (host, resources, peer))) = holding {
            self.hold(host, resources);
            self.coming.extend(peer.map(|peer| (peer.clone(), id)));
        }
    }

    /// Forgets what these have, before it changes.
    fn remove(&mut self, state: &State, (vm, migration): Touched) {
        if let Some((vm, (host, resources, peer))) = of(vm, |vm| state.holding_of_vm(vm)) {
            self.let_go(host, resources);
            peer.map(|peer| self.here.remove(&(peer.clone(), vm)));
        }
        let holding = of(migration, |id| state.holding_of_migration(id));
        if let Some((id, (host, resources, peer))) = holding {
            self.let_go(host, resources);
            peer.map(|peer| self.coming.remove(&(peer.clone(), id)));
        }
    }

    fn hold(&mut self, host: &HostName, resources: Resources) {
        let used = self.used.entry(host.clone()).or_default();
        *used = used.plus(&resources);
    }

    fn let_go(&mut self, host: &HostName, resources: Resources) {
        let left = self.used.get(host).map(|used| used.minus(&resources)).unwrap_or_default();
        match left == Resources::default() {
            true => self.used.remove(host),
            false => self.used.insert(host.clone(), left),
        };
    }
}

fn of<I: Copy, T>(id: Option<I>, find: impl FnOnce(I) -> Option<T>) -> Option<(I, T)> {
    let id = id?;
    Some((id, find(id)?))
}

impl State {
    /// The VM and the migration of which a row may change what they take here, or for whom.
    pub(crate) fn touched(&self, row: &Row) -> Touched {
        match row {
            Row::Imported { vm, .. }
            | Row::Destroyed { vm }
            | Row::Adopted { vm, .. }
            | Row::Superseded { vm, .. }
            | Row::Reclaimed { vm, .. } => (Some(*vm), None),
            Row::Released { migration, .. }
            | Row::Returned { migration, .. }
            | Row::Admitted { migration, .. }
            | Row::Receiving { migration }
            | Row::Ready { migration, .. }
            | Row::Owned { migration, .. }
            | Row::HandedBack { migration, .. }
            | Row::Lapsed { migration }
            | Row::Dropped { migration, .. }
            | Row::Flipped { migration, .. } => {
                let vm = self.migrations.get(migration).map(|migration| migration.vm);
                (vm, Some(*migration))
            }
            Row::Retired { vm, .. } => (Some(*vm), None),
            Row::HostAdded { .. }
            | Row::HostDraining { .. }
            | Row::HostRemoved { .. }
            | Row::Began { .. }
            | Row::Chosen { .. }
            | Row::Concluded { .. }
            | Row::Offered { .. }
            | Row::Initiated { .. }
            | Row::Quiesced { .. }
            | Row::Sent { .. }
            | Row::Aborted { .. }
            | Row::Receipted { .. }
            | Row::Tombstone { .. }
            | Row::StartIntent { .. }
            | Row::Started { .. }
            | Row::Stopped { .. }
            | Row::Parked { .. }
            | Row::Pending { .. }
            | Row::Relaying { .. }
            | Row::Learned { .. }
            | Row::Monitored { .. }
            | Row::Rerouted { .. }
            | Row::Fenced { .. }
            | Row::Unfenced { .. } => (None, None),
        }
    }

    fn holding_of_vm(&self, vm: VmId) -> Option<Holding<'_>> {
        let vm = self.vms.get(&vm)?;
        let stay = vm.stay.as_ref()?;
        Some((&stay.host, vm.descriptor.resources, vm.up.as_ref().map(|up| &up.peer)))
    }

    fn holding_of_migration(&self, migration: MigrationId) -> Option<Holding<'_>> {
        let target = self.migrations.get(&migration)?.target.as_ref()?;
        let peer = match &target.asker {
            Party::Peer(peer) => Some(peer),
            Party::Here => None,
        };
        target.step.arrives().then_some((&target.host, target.descriptor.resources, peer))
    }

    /// Has the index follow a change of what these have.
    pub(crate) fn indexed<T>(
        &mut self,
        touched: Touched,
        change: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let mut index = std::mem::take(&mut self.index);
        index.remove(self, touched);
        self.index = index;
        let done = change(self);
        let mut index = std::mem::take(&mut self.index);
        index.add(self, touched);
        self.index = index;
        done
    }

    /// A migration or a journey of a VM is new.
    pub(crate) fn list_migration(&mut self, vm: VmId, id: MigrationId) {
        self.index.migrations.insert((vm, id));
    }

    pub(crate) fn list_journey(&mut self, vm: VmId, id: OperationId) {
        self.index.journeys.insert((vm, id));
    }

    /// The migrations of a VM, in order of their ids.
    pub fn migrations_of(&self, vm: VmId) -> impl Iterator<Item = (&MigrationId, &Migration)> {
        let all = (vm, MigrationId([0; 16]))..=(vm, MigrationId([u8::MAX; 16]));
        let ids = self.index.migrations.range(all);
        ids.filter_map(|(_, id)| self.migrations.get_key_value(id))
    }

    /// The journeys of a VM, in order of their ids.
    pub fn journeys_of(&self, vm: VmId) -> impl Iterator<Item = &Journey> {
        let all = (vm, OperationId([0; 16]))..=(vm, OperationId([u8::MAX; 16]));
        self.index.journeys.range(all).filter_map(|(_, id)| self.journeys.get(id))
    }

    /// What VMs and admitted migrations take of a host.
    pub fn used(&self, host: &HostName) -> Resources {
        self.index.used.get(host).copied().unwrap_or_default()
    }

    /// Every VM that is here for a peer, or admitted for it.
    pub(crate) fn held_for(&self, peer: &PeerName) -> BTreeMap<VmId, &Descriptor> {
        let all = (peer.clone(), MigrationId([0; 16]))..=(peer.clone(), MigrationId([u8::MAX; 16]));
        let coming = self.index.coming.range(all).filter_map(|(_, id)| {
            let migration = self.migrations.get(id)?;
            Some((migration.vm, &migration.target.as_ref()?.descriptor))
        });
        let all = (peer.clone(), VmId([0; 16]))..=(peer.clone(), VmId([u8::MAX; 16]));
        let here = self.index.here.range(all);
        let here = here.filter_map(|(_, vm)| Some((*vm, &self.vms.get(vm)?.descriptor)));
        // A VM that moves within this site is here twice, and counts once.
        coming.chain(here).collect()
    }

    /// Whether what is looked up is what is there: for whoever tests the fold.
    pub fn is_indexed(&self) -> bool {
        self.index_anew() == self.index
    }

    /// Makes what is looked up follow a change by other means than rows: for tests' copies.
    pub fn reindex(&mut self) {
        self.index = self.index_anew();
    }

    fn index_anew(&self) -> Index {
        let mut anew = Index::default();
        for vm in self.vms.keys() {
            anew.add(self, (Some(*vm), None));
        }
        for (id, migration) in &self.migrations {
            anew.add(self, (None, Some(*id)));
            anew.migrations.insert((migration.vm, *id));
        }
        anew.journeys.extend(self.journeys.iter().map(|(id, journey)| (journey.vm, *id)));
        anew
    }
}
