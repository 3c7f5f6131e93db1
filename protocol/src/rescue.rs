//! What is left when a site is gone, or has forgotten: adopting, reclaiming, and starting fenced.
//!
//! None of this is automatic where it could make a VM run twice: adopting needs the operator's
//! written word that the other side is fenced, and a site whose journal is older than its peers
//! remember runs nothing until the path above has confirmed each VM.

use std::collections::BTreeSet;

use model::statement::Cause;
use model::{Certificate, Chain, Digest, EdgeHandle, MigrationId, PeerName, PowerState, VmId};

use crate::effect::{CallError, Caller, Command, Reply};
use crate::message::{Answer, Hop, Op, Origin, Request};
use crate::path::Verifier;
use crate::row::{Down, Edge, Party, Row};
use crate::site::{Step, Timer, Waiting};
use crate::state::{SourceStep, Stay, TargetRole, TargetStep};

/// How long a fenced site waits before it asks again about a VM.
const CONFIRM_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

impl Step<'_> {
    // Adopting: the primary takes its VM over from a site that is lost for good.

    /// Takes the VM over from its newest copy here, signed with K0.
    pub(crate) fn ask_adopt(&mut self, ask: u64, vm: VmId, statement: String) {
        let Some(entry) = self.site.state.vms.get(&vm).filter(|vm| !vm.destroyed).cloned() else {
            return self.reply(ask, Reply::NotFound(format!("there is no VM {vm}")));
        };
        let refusal = match (&entry.up, &entry.stay) {
            (Some(_), _) => Some("only the VM's primary site can adopt it"),
            (None, Some(_)) => Some("this site has the VM already"),
            (None, None) => None,
        };
        if let Some(refusal) = refusal {
            return self.reply(ask, Reply::Conflict(refusal.to_owned()));
        }
        let kept = self.site.state.migrations.values().filter(|migration| migration.vm == vm);
        let kept = kept
            .filter_map(|migration| migration.source.as_ref())
            .filter(|source| matches!(source.step, SourceStep::Released | SourceStep::Receipted));
        let Some(copy) = kept.map(|source| &source.copy).max_by_key(|copy| copy.epoch).cloned()
        else {
            let text = "this site keeps no copy of the VM any more; import it again";
            return self.reply(ask, Reply::Conflict(text.to_owned()));
        };
        let owner = self.world.create_key();
        let cause = Cause::Adopt { statement: Digest::of(statement.as_bytes()) };
        let epoch = entry.chain.epoch().next();
        let certificate = self.seal(entry.chain.k0, &Certificate { vm, epoch, owner, cause });
        let chain = entry.chain.extended(certificate);
        let stay = Stay { key: owner, starting: false, wanted: false, ..copy };
        debug_assert!(stay.power != PowerState::Active, "a copy that was released does not run");
        self.persist(Row::Adopted { vm, chain, statement, stay });
        self.note(vm, format!("adopted by this site, as it was when it left; epoch {epoch}"));
        if let Down::Edge(edge) = entry.down {
            self.tell_superseded(vm, edge);
        }
        self.reply(ask, Reply::Done);
    }

    /// A lost site is back with more certificates than the adoption counted: the primary's word
    /// still stands, and is given again above them. False if there is nothing to stand by.
    pub(crate) fn adopt_above(&mut self, vm: VmId, theirs: &Chain) -> bool {
        let Some(entry) = self.site.state.vms.get(&vm).cloned() else { return false };
        let cause = entry.chain.newest().cause;
        let adopted = matches!(cause, Cause::Adopt { .. }) && entry.up.is_none();
        let longer = theirs.epoch() >= entry.chain.epoch() && *theirs != entry.chain;
        if !adopted || !longer || theirs.verify(vm, &Verifier(self.world)).is_err() {
            return false;
        }
        let Some(stay) = entry.stay else {
            self.note(
                vm,
                "ALARM: a site that was given up holds a newer certificate, and the VM has \
                           moved on since; end it there by hand",
            );
            return false;
        };
        let epoch = theirs.epoch().next();
        let certificate = Certificate { vm, epoch, owner: stay.key, cause };
        let certificate = self.seal(entry.chain.k0, &certificate);
        let chain = theirs.extended(certificate);
        let statement = "as before, above the certificates of a site that came back".to_owned();
        self.persist(Row::Adopted { vm, chain, statement, stay });
        self.note(vm, format!("adopted again, above a site that came back; epoch {epoch}"));
        true
    }

    /// Tells a site below that the VM was adopted. It hears so as well whenever it reports.
    fn tell_superseded(&mut self, vm: VmId, edge: Edge) {
        let chain = self.site.state.vms[&vm].chain.clone();
        let key = self.world.create_key();
        let origin = Origin { op: Op::Superseded { vm, chain }, key, sealed: None };
        let limit = self.site.config.request_limit;
        self.send_down(&Down::Edge(edge), origin, limit, Waiting::Nobody);
    }

    /// A chain that ends in a newer epoch than this site's own stay: the VM stops here.
    pub(crate) fn superseded(&mut self, vm: VmId, chain: &Chain) -> bool {
        if chain.verify(vm, &Verifier(self.world)).is_err() {
            return false;
        }
        let Some(entry) = self.site.state.vms.get(&vm).cloned() else { return false };
        let adopted = matches!(chain.newest().cause, Cause::Adopt { .. });
        let (theirs, mine) = (chain.epoch(), entry.chain.epoch());
        if theirs < mine || (theirs == mine && (!adopted || *chain == entry.chain)) {
            return false;
        }
        let Some(stay) = entry.stay else {
            if let Down::Edge(edge) = entry.down {
                self.persist(Row::Superseded { vm, chain: chain.clone() });
                self.tell_superseded(vm, edge);
            }
            return true;
        };
        if chain.newest().owner == stay.key {
            return false;
        }
        let open = self.site.state.open_source(vm).map(|(migration, _)| migration);
        if let Some(migration) = open {
            self.abort(migration, "the VM belongs to another site by now");
        }
        self.persist(Row::Superseded { vm, chain: chain.clone() });
        self.note(
            vm,
            "ALARM: another site owns it by a newer certificate; it is ended here, its \
                       files are kept",
        );
        self.command(Command::Kill(stay.host, vm, stay.epoch));
        if self.site.state.held.contains(&vm) {
            self.persist(Row::Unfenced { vm });
        }
        true
    }

    // Reclaiming: the primary finds its VM again beyond an Intermediary that is gone.

    /// Becomes the delegator of the peer that has, or answers for, the VM.
    pub(crate) fn ask_reclaim(&mut self, ask: u64, vm: VmId, at: PeerName) {
        let Some(entry) = self.site.state.vms.get(&vm).filter(|vm| !vm.destroyed).cloned() else {
            return self.reply(ask, Reply::NotFound(format!("there is no VM {vm}")));
        };
        if entry.up.is_some() || entry.stay.is_some() {
            let text = "only a VM's primary site can reclaim it, and only from elsewhere";
            return self.reply(ask, Reply::Conflict(text.to_owned()));
        }
        if !self.site.peers.contains(&at) {
            return self.reply(ask, Reply::NotFound(format!("there is no peer {at}")));
        }
        let mut journeys = self.site.state.journeys.values();
        if let Some(open) = journeys.find(|j| j.vm == vm && j.result.is_none()) {
            let text = format!(
                "operation {} is changing the VM's path; wait for it, or cancel it",
                open.operation
            );
            return self.reply(ask, Reply::Conflict(text));
        }
        let (Some(by), Some(host)) =
            (self.world.identity(&Party::Here), self.world.identity(&Party::Peer(at.clone())))
        else {
            return self.reply(ask, Reply::NotFound(format!("there is no peer {at}")));
        };
        let handle = EdgeHandle(self.random16());
        let origin =
            Origin { op: Op::Reclaim { vm, handle, by, host }, key: entry.chain.k0, sealed: None };
        let hop = Hop { hops_left: 1, time_left: self.site.config.request_limit, ..Hop::default() };
        let waiting = Waiting::Reclaim(ask, vm, Edge { peer: at.clone(), handle });
        self.send(&Party::Peer(at), Request { origin, hop }, waiting);
    }

    pub(crate) fn reclaimed(
        &mut self,
        ask: u64,
        vm: VmId,
        edge: Edge,
        answer: Result<Answer, CallError>,
    ) {
        let reply = match answer {
            Ok(Answer::Done) => {
                self.note(vm, format!("reclaimed; {} answers for it now", edge.peer));
                self.persist(Row::Rerouted { vm, down: edge });
                Reply::Done
            }
            Ok(_) => Reply::Conflict(format!("{} does not have the VM", edge.peer)),
            Err(CallError::Unreachable(why) | CallError::Garbled(why)) => Reply::Unavailable(why),
        };
        self.reply(ask, reply);
    }

    /// The VM's own key speaks: whoever holds it is its primary site.
    pub(crate) fn reclaim(&mut self, caller: Caller, from: &Party, request: &Request) {
        let (Op::Reclaim { vm, handle, by, host }, Party::Peer(peer)) = (&request.origin.op, from)
        else {
            return self.answer(caller, Answer::Unknown);
        };
        // Nobody else may show it, and not to anybody else.
        let here = self.world.identity(&Party::Here);
        if Some(*by) != self.world.identity(from) || Some(*host) != here {
            return self.answer(caller, Answer::Unknown);
        }
        let known = self.site.state.vms.get(vm).is_some_and(|vm| vm.up.is_some());
        // The envelope has proven that this key signed; the id proves that it is K0.
        if !known || VmId::of(&request.origin.key) != *vm {
            return self.answer(caller, Answer::Unknown);
        }
        let up = Edge { peer: peer.clone(), handle: *handle };
        if self.site.state.vms[vm].up.as_ref() != Some(&up) {
            self.persist(Row::Reclaimed { vm: *vm, up });
            self.note(*vm, format!("reclaimed by its primary site, through {peer}"));
            self.report_up(*vm);
        }
        self.answer(caller, Answer::Done);
    }

    // Starting fenced: this site's journal is older than its peers remember.

    /// Nothing runs here until the path above has confirmed that it may.
    pub(crate) fn fence(&mut self, journal: u64) {
        let state = &self.site.state;
        // What a migration that is open here leads to may have happened, and be over.
        let open = state.migrations.values().filter(|migration| {
            let target = migration.target.as_ref().is_some_and(|t| t.step <= TargetStep::Ready);
            target || migration.source.as_ref().is_some_and(|s| s.step == SourceStep::Released)
        });
        let stays = state.vms.iter().filter(|(_, entry)| entry.stay.is_some());
        let held: BTreeSet<VmId> =
            stays.map(|(vm, _)| *vm).chain(open.map(|migration| migration.vm)).collect();
        // Durable, or rows written from here on would make the journal look as long as it was.
        self.persist(Row::Fenced { journal, vms: held.clone() });
        for vm in held {
            self.note(
                vm,
                "ALARM: this site's journal is older than a peer remembers; the VM is \
                           held until its delegator confirms that it is still here",
            );
            let stay = self.site.state.vms.get(&vm).and_then(|entry| entry.stay.clone());
            if let Some(stay) = stay.filter(|s| s.power == PowerState::Active || s.starting) {
                self.command(Command::Pause(stay.host, vm, stay.epoch));
            }
            self.confirm(vm);
        }
    }

    /// Asks about every VM that is held.
    pub(crate) fn confirm_held(&mut self) {
        for vm in self.site.state.held.clone() {
            self.confirm(vm);
        }
    }

    /// Asks the site above whether the VM is still here, unless it is being asked.
    pub(crate) fn confirm(&mut self, vm: VmId) {
        let mut waiting = self.site.waiting.values();
        let asked = waiting.any(|what| matches!(what, Waiting::Confirm(of) if *of == vm));
        if asked || !self.site.state.held.contains(&vm) {
            return;
        }
        let up = match self.site.state.vms.get(&vm) {
            // At the primary there is nobody above: the operator decides.
            Some(entry) => entry.up.clone(),
            None => self.open_targets(vm).find_map(|(_, target)| match &target.asker {
                Party::Peer(peer) => Some(Edge { peer: peer.clone(), handle: target.handle }),
                Party::Here => None,
            }),
        };
        let Some(up) = up else {
            if !self.site.state.vms.contains_key(&vm) {
                // What was on its way has been given up since.
                self.persist(Row::Unfenced { vm });
            }
            return;
        };
        let key = self.world.create_key();
        let origin = Origin { op: Op::Confirm { vm }, key, sealed: None };
        let hop = Hop {
            edge: Some(up.handle),
            hops_left: 1,
            time_left: self.site.config.request_limit,
            ..Hop::default()
        };
        self.send(&Party::Peer(up.peer), Request { origin, hop }, Waiting::Confirm(vm));
    }

    /// A site below has lost a part of its memory: it hears what this one knows.
    ///
    /// It need not be on the path any more: that is what it must learn. It must have been once, by
    /// an edge that nobody else knows, and hears how often the VM changed hands, not where it is.
    pub(crate) fn confirm_below(&mut self, caller: Caller, from: &Party, vm: VmId, hop: &Hop) {
        let entry = self.site.state.vms.get(&vm);
        let answer = match (entry, from, hop.edge) {
            (Some(entry), Party::Peer(peer), Some(handle))
                if self.led_below(vm, &Edge { peer: peer.clone(), handle }) =>
            {
                Answer::Known { chain: entry.chain.clone() }
            }
            _ => Answer::Unknown,
        };
        self.answer(caller, answer);
    }

    /// Whether the VM's path leads, or once led, along this edge.
    fn led_below(&self, vm: VmId, edge: &Edge) -> bool {
        let state = &self.site.state;
        let now = state.vms.get(&vm).map(|entry| &entry.down);
        let of_vm = state.migrations.values().filter(|migration| migration.vm == vm);
        let mut passed_on = of_vm.filter_map(|migration| migration.pending.as_ref());
        let mut chosen = state.journeys.values().filter_map(|journey| journey.chosen.as_ref());
        now == Some(&Down::Edge(edge.clone()))
            || passed_on.any(|(_, down)| down == edge)
            || chosen.any(|c| c.at == Party::Peer(edge.peer.clone()) && c.handle == edge.handle)
    }

    pub(crate) fn confirmed(&mut self, vm: VmId, answer: Result<Answer, CallError>) {
        match answer {
            Ok(Answer::Known { chain }) => {
                let over = self.end_overtaken(vm, &chain);
                if !self.superseded(vm, &chain) && !over {
                    self.unfence(vm);
                } else if self.site.state.held.contains(&vm) {
                    self.persist(Row::Unfenced { vm });
                }
            }
            // Not on the path any more, or not reachable: it stays held, and is asked again.
            _ => self.arm_after(Timer::Confirm(vm), CONFIRM_AGAIN),
        }
    }

    /// What this site is still to get, by its journal.
    fn open_targets(&self, vm: VmId) -> impl Iterator<Item = (MigrationId, &TargetRole)> {
        let of_vm = self.site.state.migrations.iter().filter(move |(_, entry)| entry.vm == vm);
        let targets = of_vm.filter_map(|(id, entry)| Some((*id, entry.target.as_ref()?)));
        targets.filter(|(_, target)| target.step <= TargetStep::Ready)
    }

    /// Gives up what this site is still to get, if by this chain the VM has been here and gone on
    /// meanwhile. True if there was something.
    fn end_overtaken(&mut self, vm: VmId, chain: &Chain) -> bool {
        if chain.verify(vm, &Verifier(self.world)).is_err() {
            return false;
        }
        let (epoch, owner) = (chain.epoch(), chain.newest().owner);
        let overtaken: Vec<MigrationId> = self
            .open_targets(vm)
            .filter(|(_, target)| {
                epoch > target.epoch() || (epoch == target.epoch() && owner != target.vm_key)
            })
            .map(|(migration, _)| migration)
            .collect();
        for migration in &overtaken {
            self.drop_target(*migration, "the VM has been elsewhere since");
        }
        !overtaken.is_empty()
    }

    /// The operator vouches for what nobody above can confirm.
    pub(crate) fn ask_unfence(&mut self, ask: u64) {
        for vm in self.site.state.held.clone() {
            self.unfence(vm);
        }
        self.reply(ask, Reply::Done);
    }

    fn unfence(&mut self, vm: VmId) {
        if !self.site.state.held.contains(&vm) {
            return;
        }
        self.persist(Row::Unfenced { vm });
        self.note(vm, "confirmed: what this site knows of it holds");
        let targets: Vec<_> = self.open_targets(vm).map(|(migration, _)| migration).collect();
        for migration in targets {
            self.pull(migration);
        }
        let of_vm = self.site.state.migrations.iter().filter(|(_, entry)| entry.vm == vm);
        let released = of_vm.filter(|(_, entry)| {
            entry.source.as_ref().is_some_and(|source| source.step == SourceStep::Released)
        });
        for migration in released.map(|(migration, _)| *migration).collect::<Vec<_>>() {
            self.tell_outcome(migration);
        }
        let Some(entry) = self.site.state.vms.get(&vm) else { return };
        let Some(stay) = entry.stay.clone().filter(|_| entry.parked.is_none()) else { return };
        let runs = stay.power == PowerState::Active || stay.starting || stay.wanted;
        if runs && self.site.state.open_source(vm).is_none() {
            self.start_again(vm);
        }
    }
}
