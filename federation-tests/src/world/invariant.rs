//! What must hold after every step, whatever was lost, repeated or crashed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::statement::Fact;
use model::{Epoch, MigrationId, OperationId, PeerName, VmId};
use protocol::{JourneyResult as Ended, Row, TargetStep};

use super::federation::Federation;
use super::node::{Content, Node, Place};

/// The newest content of a VM: what must never be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Newest {
    /// Version of its disk.
    pub disk: u64,
    /// Its saved memory, until it executes again.
    pub saved: Option<u64>,
}

/// What only somebody who sees every site at once can know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ledger {
    writes: u64,
    pub newest: BTreeMap<VmId, Newest>,
    /// Rows that decided something of a migration, by any site.
    decisions: BTreeMap<MigrationId, BTreeSet<&'static str>>,
    /// VMs whose newest content was lost with a site, which is nobody's fault.
    mourned: BTreeSet<VmId>,
    /// A site has forgotten what it had decided.
    pub forgotten: bool,
    /// A site has not heard what another said, but something else.
    pub deceived: bool,
    /// The newest epoch in which a VM had an owner, and the revision of what is monitored there.
    revisions: BTreeMap<VmId, (Epoch, u64)>,
    /// The newest epoch that each site ever had durable.
    epochs: BTreeMap<(PeerName, VmId), Epoch>,
}

impl Ledger {
    /// A number that nothing had before.
    pub(super) fn fresh(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// The guest changes its disk.
    pub(super) fn write(&mut self, vm: VmId) -> u64 {
        let disk = self.fresh();
        self.newest.insert(vm, Newest { disk, saved: None });
        disk
    }

    /// The content of these VMs may have been lost with a site.
    pub(super) fn mourn(&mut self, vms: impl IntoIterator<Item = VmId>) {
        self.mourned.extend(vms);
    }

    /// Whether it is known what the newest content of a VM is.
    pub(super) fn knows(&self, vm: VmId) -> bool {
        !self.mourned.contains(&vm)
    }

    /// Takes down what a durable row decides, and tells which rule it breaks.
    pub(super) fn decided(&mut self, row: &Row) -> Option<String> {
        const AGAINST: [(&str, &str); 6] = [
            ("released", "aborted"),
            ("released", "dropped"),
            ("owned", "aborted"),
            ("owned", "handed_back"),
            ("owned", "lapsed"),
            ("receipted", "returned"),
        ];
        let migration = match row {
            Row::Released { migration, .. }
            | Row::Aborted { migration, .. }
            | Row::Dropped { migration, .. }
            | Row::Owned { migration, .. }
            | Row::HandedBack { migration, .. }
            | Row::Lapsed { migration }
            | Row::Receipted { migration, .. }
            | Row::Returned { migration, .. } => *migration,
            _ => return None,
        };
        let kinds = self.decisions.entry(migration).or_default();
        kinds.insert(row.kind());
        if self.forgotten {
            return None;
        }
        let both = AGAINST.iter().find(|(one, other)| kinds.contains(one) && kinds.contains(other));
        both.map(|(one, other)| format!("migration {migration} is both {one} and {other}"))
    }

    /// Whether some site wrote a row of this kind for any migration.
    pub(super) fn has(&self, kind: &str) -> bool {
        self.decisions.values().any(|kinds| kinds.contains(kind))
    }
}

impl Federation {
    /// Checks everything, and takes down what is broken.
    pub(super) fn check(&mut self) {
        let broken: Vec<String> = self
            .at_most_one_executes()
            .into_iter()
            .chain(self.newest_content_exists())
            .chain(self.epochs_never_fall())
            .chain(self.turned_paths_are_known())
            .chain(self.sections_are_kept())
            .collect();
        for violation in broken {
            self.violate(violation);
        }
    }

    fn at_most_one_executes(&self) -> Vec<String> {
        let mut broken = vec![];
        let mut executing: BTreeMap<VmId, Vec<&PeerName>> = BTreeMap::new();
        for (name, node) in &self.nodes {
            for ((host, vm, epoch), guest) in &node.guests {
                if !guest.executes {
                    continue;
                }
                executing.entry(*vm).or_default().push(name);
                if self.ledger.forgotten {
                    // A site that has forgotten ends its strangers when it has come up.
                    continue;
                }
                // What a site knew that is lost for good was overruled by whoever adopted the VM.
                let newest = self
                    .nodes
                    .values()
                    .filter(|node| !node.gone)
                    .filter_map(|node| Some(node.durable.vms.get(vm)?.chain.epoch()));
                let entry = node.durable.vms.get(vm);
                let stay = entry.and_then(|entry| entry.stay.as_ref());
                if !stay.is_some_and(|stay| stay.host == *host && stay.epoch == *epoch) {
                    // A guest that is about to be ended by the restart of its node has no
                    // business to execute either: nothing that was released ever runs on.
                    broken.push(format!("a guest executes at {name}, which does not own it"));
                }
                if entry.map(|entry| entry.chain.epoch()) < newest.max() {
                    broken.push(format!("a guest executes at {name} under an old epoch"));
                }
                if stay.is_some_and(|s| !s.starting && s.power != model::PowerState::Active) {
                    broken.push(format!("a guest executes at {name} without START_INTENT"));
                }
            }
        }
        for (vm, places) in executing {
            if places.len() > 1 {
                broken.push(format!("{vm} executes at {places:?} at once"));
            }
        }
        broken
    }

    fn newest_content_exists(&self) -> Vec<String> {
        let mut broken = vec![];
        for (vm, newest) in &self.ledger.newest {
            if !self.ledger.knows(*vm) {
                continue;
            }
            if self.nodes.values().any(|n| n.durable.vms.get(vm).is_some_and(|vm| vm.destroyed)) {
                continue;
            }
            // The memory is in the file, or in the process that was made from it.
            let holds = |node: &Node, place: &Place, content: &Content| {
                let file = content.state.as_ref().map(|state| state.memory);
                let process = node.guests.get(place).map(|guest| guest.memory);
                content.disk == newest.disk
                    && (newest.saved.is_none() || file == newest.saved || process == newest.saved)
            };
            let held_at = |node: &Arc<Node>| {
                let copies = node.copies.iter().filter(|((_, of, _), _)| of == vm);
                copies.into_iter().any(|(place, content)| holds(node, place, content))
            };
            if !self.nodes.values().any(held_at) {
                broken.push(format!("the newest content of {vm} is nowhere any more"));
            }
        }
        broken
    }

    /// A site whose journal was put back may know of older epochs than before.
    pub(super) fn forget_epochs(&mut self, name: &PeerName) {
        let known = &self.nodes[name].durable.vms;
        self.ledger.epochs.retain(|(site, vm), epoch| {
            site != name || known.get(vm).is_some_and(|vm| vm.chain.epoch() >= *epoch)
        });
    }

    fn epochs_never_fall(&mut self) -> Vec<String> {
        let mut broken = vec![];
        if self.ledger.forgotten {
            // Who alone knew of an epoch may have forgotten it: the VM comes by again under a lower
            // one, if its operator says so. It does not fall while a site has the VM.
            let nodes = &self.nodes;
            let epochs = &mut self.ledger.epochs;
            epochs.retain(|(site, vm), _| nodes[site].durable.vms.contains_key(vm));
        }
        for (name, node) in &self.nodes {
            for (vm, entry) in &node.durable.vms {
                let epoch = entry.chain.epoch();
                let key = (name.clone(), *vm);
                let before = self.ledger.epochs.insert(key, epoch);
                if before.is_some_and(|before| before > epoch) {
                    broken.push(format!("at {name} the epoch of {vm} fell to {epoch}"));
                }
            }
        }
        broken
    }

    /// Whoever has seen that a VM is owned elsewhere knows of that epoch: it may be asked.
    fn turned_paths_are_known(&self) -> Vec<String> {
        let mut broken = vec![];
        if self.ledger.forgotten {
            // The VM may come by again under a lower epoch, see above.
            return broken;
        }
        for (name, node) in &self.nodes {
            for (id, migration) in &node.durable.migrations {
                let owned = migration.owned.as_ref().and_then(|owned| owned.peek().ok());
                let Some(Fact::Owned { epoch }) = owned.map(|owned| owned.fact) else { continue };
                let known = node.durable.vms.get(&migration.vm).map(|vm| vm.chain.epoch());
                if let Some(known) = known.filter(|known| *known < epoch) {
                    let end = format!("{name} has seen {id} end in epoch {epoch}, knows {known}");
                    broken.push(end);
                }
            }
        }
        broken
    }

    /// Tells if an operation that ends does not say the truth of the migration that it tried last.
    pub(super) fn concludes(&mut self, name: &PeerName, operation: OperationId, result: &Ended) {
        let journey = self.nodes[name].durable.journeys.get(&operation);
        let chosen = journey.and_then(|journey| journey.chosen.as_ref());
        let Some(id) = chosen.map(|chosen| chosen.migration) else { return };
        let owns = |node: &Arc<Node>| {
            let migration = node.durable.migrations.get(&id);
            let target = migration.and_then(|migration| migration.target.as_ref());
            target.is_some_and(|target| target.step == TargetStep::Owned)
        };
        let owned = self.nodes.values().any(owns);
        let holds = match result {
            Ended::Done => owned,
            Ended::PassedUp | Ended::Ranking(_) => true,
            _ => !owned,
        };
        if !holds && !self.ledger.forgotten && !self.ledger.deceived {
            self.violate(format!("operation {operation}: {result:?}, but {id} owned: {owned}"));
        }
    }

    /// What an owner has taken to be monitored, every later owner monitors.
    fn sections_are_kept(&mut self) -> Vec<String> {
        let mut broken = vec![];
        if self.ledger.forgotten {
            return broken;
        }
        for node in self.nodes.values() {
            for (vm, entry) in node.durable.vms.iter().filter(|(_, vm)| vm.stay.is_some()) {
                let (epoch, revision) = (entry.chain.epoch(), entry.descriptor.monitoring.revision);
                let newest = self.ledger.revisions.entry(*vm).or_default();
                // One that was overtaken, or adopted over, and does not know yet, monitors nothing
                // that counts.
                if epoch < newest.0 || self.ledger.mourned.contains(vm) {
                    continue;
                }
                if revision < newest.1 {
                    broken.push(format!("what is monitored of {vm} fell to revision {revision}"));
                }
                *newest = (epoch, revision);
            }
        }
        broken
    }

    /// What is left over at any site although nothing is under way any more.
    pub fn leftovers(&self) -> Vec<String> {
        let here = self.nodes.iter().filter(|(_, node)| !node.gone);
        here.flat_map(|(name, node)| left_at(name, node)).collect()
    }
}

fn left_at(name: &PeerName, node: &Node) -> Vec<String> {
    let mut left = vec![];
    let mut add = |what: String| left.push(format!("{name}: {what}"));
    if node.machine.is_none() {
        add("it is down".to_owned());
    }
    let state = &node.durable;
    for journey in state.journeys.values().filter(|journey| journey.result.is_none()) {
        add(format!("operation {} is open", journey.operation));
    }
    for (id, migration) in &state.migrations {
        use protocol::SourceStep as S;
        if let Some(source) = &migration.source
            && !matches!(source.step, S::Aborted | S::Returned | S::Tombstone)
        {
            add(format!("migration {id} is {:?} as Source", source.step));
        }
        if let Some(target) = &migration.target
            && target.step.arrives()
        {
            add(format!("migration {id} is {:?} as Destination", target.step));
        }
    }
    let stays: BTreeSet<_> = state
        .vms
        .iter()
        .filter_map(|(vm, entry)| {
            entry.stay.as_ref().map(|stay| (stay.host.clone(), *vm, stay.epoch))
        })
        .collect();
    for place in node.guests.keys().filter(|place| !stays.contains(place)) {
        add(format!("a guest at {place:?}"));
    }
    for place in node.copies.keys().filter(|place| !stays.contains(place)) {
        add(format!("files at {place:?}"));
    }
    for migration in node.serves.keys() {
        add(format!("a token for {migration}"));
    }
    for (migration, pull) in &node.pulls {
        if pull.active {
            add(format!("a session for {migration}"));
        }
    }
    for call in node.calls.keys() {
        add(format!("call {} is open", call.0));
    }
    left
}
