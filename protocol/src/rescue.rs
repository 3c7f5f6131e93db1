//! What is left when a site is gone, or has forgotten: adopting, reclaiming, and starting fenced.
//!
//! None of this is automatic where it could make a VM run twice: adopting needs the operator's
//! written word that the other side is fenced, and a site whose journal is older than its peers
//! remember runs nothing until the path above has confirmed each VM, and no peer knows better.

use std::collections::BTreeSet;
use std::time::Duration;

use model::statement::Cause;
use model::{Certificate, Chain, Digest, EdgeHandle, MigrationId, PeerName, PowerState, VmId};

use crate::effect::{CallError, Caller, Command, Reply};
use crate::message::{Answer, Hop, Op, Origin, Request};
use crate::path::Verifier;
use crate::row::{Down, Edge, Party, Row};
use crate::site::{Step, Waiting};
use crate::state::{SourceStep, Stay, TargetRole, TargetStep};
use crate::timer::Timer;

/// How long a fenced site waits before it asks again about a VM.
const CONFIRM_AGAIN: Duration = Duration::from_secs(5);

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
        let kept = self.site.state.migrations_of(vm);
        let kept = kept
            .filter_map(|(_, migration)| migration.source.as_ref())
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
        let power = match copy.power {
            // Released by a site that has forgotten that it was quieted.
            PowerState::Active | PowerState::Paused => PowerState::Defined,
            quiet => quiet,
        };
        let stay = Stay { key: owner, power, starting: false, wanted: false, ..copy };
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

    /// A chain that ends in a newer epoch than this site's own stay, or than what is on its way
    /// here: the VM stops here. False if this site knows nothing that the chain has overtaken.
    pub(crate) fn superseded(&mut self, vm: VmId, chain: &Chain) -> bool {
        if !self.is_news(vm, chain) {
            return false;
        }
        let over = self.end_overtaken(vm, chain);
        let over = self.end_stay(vm, chain) || over;
        let stays = self.site.state.vms.get(&vm).is_some_and(|entry| entry.stay.is_some());
        if over && !stays && self.open_targets(vm).next().is_none() {
            self.release(vm);
        }
        over
    }

    /// Whether a chain holds, and goes on from what this site knows of the VM. One that parts from
    /// it proves that an owner has signed two certificates of one epoch, and is told of.
    pub(crate) fn is_news(&mut self, vm: VmId, chain: &Chain) -> bool {
        if chain.verify(vm, &Verifier(self.world)).is_err() {
            return false;
        }
        let Some(known) = self.site.state.vms.get(&vm) else { return true };
        let is_news = chain.supersedes(&known.chain);
        if !is_news && !known.chain.supersedes(chain) {
            let epoch = known.chain.parts_from(chain);
            let text = format!(
                "ALARM: an owner has signed two different certificates of epoch {epoch}; the one \
                 that came first counts here"
            );
            self.note(vm, text);
        }
        is_news
    }

    fn end_stay(&mut self, vm: VmId, chain: &Chain) -> bool {
        let Some(entry) = self.site.state.vms.get(&vm).cloned() else { return false };
        let adopted = matches!(chain.newest().cause, Cause::Adopt { .. });
        let (theirs, mine) = (chain.epoch(), entry.chain.epoch());
        if theirs < mine || (theirs == mine && (!adopted || *chain == entry.chain)) {
            return false;
        }
        let Some(stay) = entry.stay else {
            match entry.down {
                Down::Edge(edge) => {
                    self.persist(Row::Superseded { vm, chain: chain.clone() });
                    self.tell_superseded(vm, edge);
                }
                // It was released by what this site remembers, and has come back and gone on since:
                // a handback of that release must find a chain that it does not continue.
                Down::Here if self.site.state.held.contains(&vm) => {
                    self.persist(Row::Superseded { vm, chain: chain.clone() });
                }
                Down::Here => {}
            }
            return true;
        };
        if chain.newest().owner == stay.key {
            return false;
        }
        self.release(vm);
        let open = self.site.state.open_source(vm).map(|(migration, _)| migration);
        if let Some(migration) = open {
            match chain.released_by(migration).cloned() {
                // This site has forgotten how it decided.
                Some(certificate) => {
                    self.persist(Row::Released { migration, certificate });
                    self.disarm(&Timer::SourceDeadline(migration));
                    self.tell_outcome(migration);
                }
                None => self.abort(migration, "the VM belongs to another site by now"),
            }
        }
        self.persist(Row::Superseded { vm, chain: chain.clone() });
        self.note(
            vm,
            "ALARM: another site owns it by a newer certificate; it is ended here, its \
                       files are kept",
        );
        self.command(Command::Kill(stay.host, vm, stay.epoch));
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
        if !self.site.peers.contains_key(&at) {
            return self.reply(ask, Reply::NotFound(format!("there is no peer {at}")));
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
            // One that has released it cannot say that anybody has taken it.
            let entry = &self.site.state.vms[vm];
            if entry.stay.is_some() || entry.down != Down::Here {
                self.report_up(*vm);
            }
        }
        self.answer(caller, Answer::Done);
    }

    // Starting fenced: this site's journal is older than its peers remember.

    /// Nothing runs here until the path above has confirmed that it may.
    pub(crate) fn fence(&mut self, journal: u64) {
        let state = &self.site.state;
        // What a migration that is open here leads to may have happened, and be over.
        let open = state.migrations.values().filter(|migration| {
            let target = migration.target.as_ref().is_some_and(|t| t.step.is_open());
            target || migration.source.as_ref().is_some_and(|s| s.step == SourceStep::Released)
        });
        let stays = state.vms.iter().filter(|(_, entry)| entry.stay.is_some());
        let held: BTreeSet<VmId> =
            stays.map(|(vm, _)| *vm).chain(open.map(|migration| migration.vm)).collect();
        // Durable, or rows written from here on would make the journal look as long as it was.
        self.persist(Row::Fenced { journal, vms: held.clone() });
        self.site.confirmed.clear();
        self.site.came.clear();
        for vm in held {
            self.note(
                vm,
                "ALARM: this site's journal is older than a peer remembers; the VM is \
                           held until the path above confirms that it is still here",
            );
            let stay = self.site.state.vms.get(&vm).and_then(|entry| entry.stay.clone());
            if let Some(stay) = stay.filter(|s| s.power == PowerState::Active || s.starting) {
                self.command(Command::Pause(stay.host, vm, stay.epoch));
            }
            // Where files arrive the VM may lie already, which came in what was forgotten.
            let arriving = self.open_targets(vm).filter(|(_, t)| t.step < TargetStep::Ready);
            for migration in arriving.map(|(migration, _)| migration).collect::<Vec<_>>() {
                self.command(Command::Close { migration, source: false });
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

    /// Asks every peer that has not answered yet about a VM that is held: the path above, which
    /// knows what its sites have decided, and all others, one of which got the VM if this site has
    /// passed it on. When all have answered, it is this site's.
    pub(crate) fn confirm(&mut self, vm: VmId) {
        if !self.site.state.held.contains(&vm) {
            return;
        }
        let known = self.site.state.vms.contains_key(&vm);
        let up = self.delegator_of(vm);
        if up.is_none() && !known && self.open_targets(vm).next().is_none() {
            // What was on its way has been given up since.
            return self.release(vm);
        }
        let answered = self.site.confirmed.entry(vm).or_default();
        let missing: Vec<PeerName> = {
            let peers = self.site.peers.keys();
            peers.filter(|peer| !answered.contains(*peer)).cloned().collect()
        };
        if missing.is_empty() {
            return match up {
                _ if self.site.came.contains(&vm) => {}
                Some(up) if self.site.peers.contains_key(&up.peer) => self.unfence(vm),
                Some(_) => {}
                // There is nobody above the primary: its operator decides.
                None => self
                    .note(vm, "no peer knows of a newer certificate; `site unfence` lets it go on"),
            };
        }
        for peer in missing {
            let mut waiting = self.site.waiting.values();
            let asked = Waiting::Confirm(vm, peer.clone());
            if !waiting.any(|what| *what == asked) {
                let edge = up.as_ref().filter(|up| up.peer == peer).map(|up| up.handle);
                self.ask_confirm(peer, edge, vm, self.site.config.request_limit, asked);
            }
        }
    }

    /// Who answers above for a VM that this site has, or is to get; nobody does for its primary.
    fn delegator_of(&self, vm: VmId) -> Option<Edge> {
        if let Some(entry) = self.site.state.vms.get(&vm) {
            return entry.up.clone();
        }
        let (_, target) = self.open_targets(vm).next()?;
        match &target.asker {
            Party::Peer(peer) => Some(Edge { peer: peer.clone(), handle: target.handle }),
            Party::Here => None,
        }
    }

    /// Holds the VM no longer, if it is held.
    fn release(&mut self, vm: VmId) {
        if self.site.state.held.contains(&vm) {
            self.persist(Row::Unfenced { vm });
            self.site.confirmed.remove(&vm);
            self.site.came.remove(&vm);
        }
    }

    fn ask_confirm(
        &mut self,
        peer: PeerName,
        edge: Option<EdgeHandle>,
        vm: VmId,
        time_left: Duration,
        waiting: Waiting,
    ) {
        let key = self.world.create_key();
        let origin = Origin { op: Op::Confirm { vm }, key, sealed: None };
        let hop = Hop { edge, hops_left: 1, time_left, ..Hop::default() };
        self.send(&Party::Peer(peer), Request { origin, hop }, waiting);
    }

    /// A peer has lost a part of its memory: it hears what this site knows, if it has to do with
    /// the VM by way of that peer.
    ///
    /// Who asks from below need not be on the path any more: that is what it must learn. It must
    /// have been once, by an edge that nobody else knows. The path above this site has a word in
    /// it: a site further up may have moved the VM. Whoever asks hears how often the VM changed
    /// hands, not where it is.
    pub(crate) fn confirm_asked(&mut self, caller: Caller, from: &Party, vm: VmId, hop: &Hop) {
        let Party::Peer(peer) = from else { return self.answer(caller, Answer::Unknown) };
        let edge = hop.edge.map(|handle| Edge { peer: peer.clone(), handle });
        let below = edge.filter(|edge| self.led_below(vm, edge));
        if below.is_none() && !self.led_above(vm, peer) {
            return self.answer(caller, Answer::Unknown);
        }
        if self.is_undecided(vm) {
            return self.answer(caller, not_confirmed());
        }
        let Some(below) = below else {
            // Whoever asks from above may be all that could settle it, and has forgotten how.
            if self.has_lapsed(vm) {
                return self.answer(caller, not_confirmed());
            }
            return self.ask_below(caller, vm, hop.edge, None);
        };
        let up = self.above(vm, &below);
        // If the path may turn yet, or could have, whoever chose that is further up, and knows.
        let peer = up.as_ref().map(|up| &up.peer);
        if self.may_turn(vm).any(|(_, (up, _))| Some(&up.peer) != peer) {
            return self.answer(caller, not_confirmed());
        }
        let Some(up) = up else { return self.tell_known(caller, vm) };
        let waiting = Waiting::ConfirmFor { caller, vm, of: None };
        self.ask_confirm(up.peer, Some(up.handle), vm, hop.time_left, waiting);
    }

    /// What this site knows of a VM.
    fn tell_known(&mut self, caller: Caller, vm: VmId) {
        let here = self.site.state.vms.get(&vm).map(|entry| &entry.chain);
        // What went back from here never was its site's.
        let of_vm = self.site.state.migrations_of(vm);
        let back = of_vm.filter_map(|(_, migration)| migration.target.as_ref()?.back.as_ref());
        let chain = back.chain(here).max_by_key(|chain| chain.epoch()).cloned();
        let answer = chain.map_or(Answer::Unknown, |chain| Answer::Known { chain });
        self.answer(caller, answer);
    }

    /// Asks at the end of each path that may come, one after the other: who has the VM if it was
    /// released. The last that was asked is named. Whoever asks by the edge of such a path asks of
    /// that one alone.
    fn ask_below(
        &mut self,
        caller: Caller,
        vm: VmId,
        by: Option<EdgeHandle>,
        asked: Option<MigrationId>,
    ) {
        let next = self.may_turn(vm).find(|(migration, (up, _))| {
            asked < Some(*migration) && by.is_none_or(|by| by == up.handle)
        });
        let next = next.map(|(migration, (_, down))| (migration, down.clone()));
        let Some((migration, down)) = next else { return self.tell_known(caller, vm) };
        let waiting = Waiting::ConfirmFor { caller, vm, of: Some((migration, by)) };
        let limit = self.site.config.request_limit;
        self.ask_confirm(down.peer, Some(down.handle), vm, limit, waiting);
    }

    /// Who is at the end of a path that may come has said what it knows, to a site above.
    pub(crate) fn confirmed_below(
        &mut self,
        caller: Caller,
        vm: VmId,
        (migration, by): (MigrationId, Option<EdgeHandle>),
        answer: Result<Answer, CallError>,
    ) {
        let came_to_nothing = match &answer {
            Ok(Answer::Known { chain }) if self.released_along(vm, chain).is_some() => {
                return self.answer(caller, Answer::Known { chain: chain.clone() });
            }
            Ok(Answer::Known { chain }) => {
                let known = self.site.state.migrations.get(&migration);
                let may_turn = known.and_then(|known| known.may_turn(migration, Some(chain)));
                may_turn.is_none() && chain.verify(vm, &Verifier(self.world)).is_ok()
            }
            Ok(Answer::Unknown) => true,
            _ => false,
        };
        if came_to_nothing && !self.is_undecided(vm) {
            return self.ask_below(caller, vm, by, Some(migration));
        }
        self.answer(caller, not_confirmed());
    }

    /// Whether the VM will go back from here if it was released, and nobody has said that it was.
    fn has_lapsed(&self, vm: VmId) -> bool {
        let mut targets = self.open_targets(vm);
        targets.any(|(_, target)| target.step == TargetStep::Lapsed)
    }

    /// Paths through this site, by their edges up and down, that the VM may take yet.
    fn may_turn(&self, vm: VmId) -> impl Iterator<Item = (MigrationId, (&Edge, &Edge))> {
        let known = self.site.state.vms.get(&vm).map(|entry| &entry.chain);
        let of_vm = self.site.state.migrations_of(vm);
        of_vm.filter_map(move |(id, migration)| Some((*id, migration.may_turn(*id, known)?)))
    }

    /// Who is to be asked for a site below: the one above on the path that leads there.
    fn above(&self, vm: VmId, below: &Edge) -> Option<Edge> {
        let known = self.site.state.vms.get(&vm).map(|entry| entry.up.clone());
        let of_vm = self.site.state.migrations_of(vm);
        let mut passed_on = of_vm.filter_map(|(_, migration)| migration.pending.as_ref());
        match known {
            Some(up) => up,
            None => passed_on.find(|(_, down)| down == below).map(|(up, _)| up.clone()),
        }
    }

    /// The path above has said what it knows of a VM that a site below asks about.
    pub(crate) fn confirmed_above(
        &mut self,
        caller: Caller,
        vm: VmId,
        answer: Result<Answer, CallError>,
    ) {
        let here = self.site.state.vms.get(&vm).map(|entry| &entry.chain);
        let answer = match answer {
            Ok(Answer::Known { chain }) if !self.is_undecided(vm) => {
                let newer = here.filter(|here| here.epoch() > chain.epoch());
                Answer::Known { chain: newer.cloned().unwrap_or(chain) }
            }
            _ => not_confirmed(),
        };
        self.answer(caller, answer);
    }

    /// Whether a migration of the VM that this site takes part in may be decided already without
    /// this site's knowledge; what one that only passes through it has come to is known above.
    fn is_undecided(&self, vm: VmId) -> bool {
        let state = &self.site.state;
        let (mut journeys, mut migrations) = (state.journeys_of(vm), state.migrations_of(vm));
        state.held.contains(&vm)
            || journeys.any(|journey| {
                let memory = self.site.journeys.get(&journey.operation);
                // What its Destination was never asked to fetch was not released.
                let sent = memory.is_none_or(|memory| memory.sent);
                journey.result.is_none() && journey.chosen.is_some() && sent
            })
            || migrations.any(|(_, migration)| {
                migration.target.as_ref().is_some_and(|target| target.step == TargetStep::Ready)
            })
    }

    /// Whether this site has, or is to have, the VM or its path from this peer.
    fn led_above(&self, vm: VmId, peer: &PeerName) -> bool {
        let state = &self.site.state;
        let up = state.vms.get(&vm).and_then(|entry| entry.up.as_ref());
        up.is_some_and(|up| up.peer == *peer)
            || state.migrations_of(vm).any(|(_, migration)| {
                let pending = migration.pending.as_ref().map(|(up, _)| &up.peer);
                let asker = migration.target.as_ref().map(|target| &target.asker);
                pending == Some(peer) || asker == Some(&Party::Peer(peer.clone()))
            })
    }

    /// Whether the VM's path leads, or once led, along this edge.
    fn led_below(&self, vm: VmId, edge: &Edge) -> bool {
        let state = &self.site.state;
        let now = state.vms.get(&vm).map(|entry| &entry.down);
        now == Some(&Down::Edge(edge.clone()))
            || state.migrations_of(vm).any(|(_, migration)| {
                let passed_on = migration.pending.as_ref().map(|(_, down)| down);
                passed_on == Some(edge) || migration.offered.as_ref() == Some(edge)
            })
    }

    pub(crate) fn confirmed(
        &mut self,
        vm: VmId,
        peer: PeerName,
        answer: Result<Answer, CallError>,
    ) {
        if !self.site.state.held.contains(&vm) {
            return;
        }
        let above = self.delegator_of(vm).is_some_and(|up| up.peer == peer)
            || self.open_targets(vm).any(|(_, t)| t.asker == Party::Peer(peer.clone()));
        match answer {
            Ok(Answer::Known { chain }) => {
                let has_come = self.has_come(vm, &chain);
                if self.stays_as(vm, &chain) {
                    // What this site signs next continues that.
                    self.learn(vm, &chain);
                }
                if has_come {
                    if self.site.came.insert(vm) {
                        let text = format!(
                            "ALARM: the VM came here after what this site's journal says, and may \
                             have run; its files are kept, but not known to be whole: save them \
                             before `site unfence {vm}` lets them go"
                        );
                        self.note(vm, text);
                    }
                } else if self.superseded(vm, &chain) && !self.site.state.held.contains(&vm) {
                    return;
                }
            }
            // It has nothing to do with it. The site above would.
            Ok(Answer::Unknown) if !above => {}
            // Not on the path any more, or not reachable, or in the middle of something.
            _ => return self.arm_after(Timer::Confirm(vm), CONFIRM_AGAIN),
        }
        let answered = self.site.confirmed.entry(vm).or_default();
        answered.insert(peer);
        if self.site.peers.keys().all(|peer| answered.contains(peer)) {
            self.confirm(vm);
        }
    }

    /// Whether the VM is here, and is by this chain: one that is longer than the journal knows shows
    /// that it was given away and came back.
    fn stays_as(&self, vm: VmId, chain: &Chain) -> bool {
        let stay = self.site.state.vms.get(&vm).and_then(|entry| entry.stay.as_ref());
        stay.is_some_and(|stay| stay.key == chain.newest().owner)
    }

    /// Whether by this chain the VM is at this site, which knows only that it was on its way here or
    /// from here, or that it had released it.
    fn has_come(&self, vm: VmId, chain: &Chain) -> bool {
        let owner = chain.newest().owner;
        let fetching = self.open_targets(vm).any(|(_, t)| t.step.arrives() && t.vm_key == owner);
        let known = self.site.state.vms.get(&vm).map(|entry| entry.chain.epoch());
        let of_vm = self.site.state.migrations_of(vm);
        let mut sources = of_vm.filter_map(|(id, one)| Some((*id, one.source.as_ref()?)));
        let given_back = sources.any(|(id, source)| {
            let gone = source.step == SourceStep::Released && Some(chain.epoch()) > known;
            // Also if the chain was learned before: what came of its migration is forgotten.
            let going = source.step < SourceStep::Released && chain.released_by(id).is_some();
            (gone || going) && source.copy.key == owner
        });
        (fetching || given_back) && chain.verify(vm, &Verifier(self.world)).is_ok()
    }

    /// What this site is still to get, by its journal.
    fn open_targets(&self, vm: VmId) -> impl Iterator<Item = (MigrationId, &TargetRole)> {
        let of_vm = self.site.state.migrations_of(vm);
        let targets = of_vm.filter_map(|(id, entry)| Some((*id, entry.target.as_ref()?)));
        targets.filter(|(_, target)| target.step.is_open())
    }

    /// Gives up what this site is still to get, if by this verified chain the VM has been here and
    /// gone on meanwhile. True if there was something.
    fn end_overtaken(&mut self, vm: VmId, chain: &Chain) -> bool {
        let (epoch, owner) = (chain.epoch(), chain.newest().owner);
        let overtaken: Vec<MigrationId> = self
            .open_targets(vm)
            .filter(|(_, target)| {
                // A chain that ends with its own key shows that the VM is here, or was given back.
                epoch >= target.epoch() && owner != target.vm_key
            })
            .map(|(migration, _)| migration)
            .collect();
        for migration in &overtaken {
            self.drop_target(*migration, "the VM has been elsewhere since");
        }
        !overtaken.is_empty()
    }

    /// The operator vouches for what nobody above can confirm: for one VM, or for all that this site
    /// knows to be here; others may have come by what was forgotten.
    pub(crate) fn ask_unfence(&mut self, ask: u64, vm: Option<VmId>) {
        let held = self.site.state.held.clone();
        if let Some(vm) = vm.filter(|vm| !held.contains(vm)) {
            return self.reply(ask, Reply::Conflict(format!("VM {vm} is not held")));
        }
        let (known, unknown): (Vec<_>, Vec<_>) = held.into_iter().partition(|vm| {
            let entry = self.site.state.vms.get(vm);
            !self.site.came.contains(vm) && entry.is_some_and(|entry| entry.stay.is_some())
        });
        for vm in vm.map_or(known, |vm| vec![vm]) {
            self.unfence(vm);
        }
        let reply = match unknown.first().filter(|_| vm.is_none()) {
            Some(left) => Reply::Conflict(format!(
                "VM {left} stays held: it may have come here after what the journal says; save \
                 its files, then name it"
            )),
            None => Reply::Done,
        };
        self.reply(ask, reply);
    }

    fn unfence(&mut self, vm: VmId) {
        if !self.site.state.held.contains(&vm) {
            return;
        }
        self.release(vm);
        self.note(vm, "confirmed: what this site knows of it holds");
        let targets = self.open_targets(vm).filter(|(_, target)| target.step.arrives());
        for migration in targets.map(|(migration, _)| migration).collect::<Vec<_>>() {
            self.pull(migration);
        }
        let of_vm = self.site.state.migrations_of(vm);
        let released = of_vm.filter(|(_, entry)| {
            entry.source.as_ref().is_some_and(|source| source.step == SourceStep::Released)
        });
        for migration in released.map(|(migration, _)| *migration).collect::<Vec<_>>() {
            self.tell_outcome(migration);
        }
        if let Some((migration, _)) = self.site.state.open_source(vm) {
            // Its guest may have run since its files were read.
            self.abort(migration, "this site has forgotten what came of it");
        }
        let Some(entry) = self.site.state.vms.get(&vm) else { return };
        let Some(stay) = entry.stay.clone().filter(|_| entry.parked.is_none()) else { return };
        if stay.power == PowerState::Active || stay.starting || stay.wanted {
            self.start_again(vm);
        } else {
            // What was forgotten may have started it.
            self.command(Command::Kill(stay.host, vm, stay.epoch));
        }
    }
}

/// The answer to a site that must ask again.
fn not_confirmed() -> Answer {
    let reason = "this cannot be said now; ask again".to_owned();
    Answer::Conflict { reason, retry_after: CONFIRM_AGAIN }
}
