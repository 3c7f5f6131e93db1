//! The Controller: the main migration algorithm (papers/003, III-C-1).
//!
//! ```text
//!  collect ─▶ choose ─▶ force ─▶ initiate ─▶ verify ─▶ deliver ─▶ retire
//!     ▲                   │         │          │          └─▶ handback ─┐
//!     └──── next offer ◀──┴─ abort ◀┴──────────┘ ◀────────────────────┘
//! ```
//!
//! Every step can be repeated: after a crash the journey goes on from CHOSEN by asking again. A
//! Destination that shows that the VM was released to it brings it to `deliver` from any step between.

mod evict;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::decision::Rank;
use model::statement::Cause;
use model::{
    Certificate, Chain, EdgeHandle, MigrationId, Offer, OperationId, RequestId, Right, Signed, VmId,
};

use crate::contract::proposal;
use crate::effect::{CallError, Effect, Reply};
use crate::message::{Answer, Hop, Op, Origin, Outcome, Request};
use crate::path::{Verifier, back_off};
use crate::row::{Down, Edge, Evict, Goal, Party, Result as Ended, Row};
use crate::site::{Asker, Gathering, JourneyMemory, Phase, Step, Waiting};
use crate::state::{Chosen, Journey};
use crate::timer::Timer;

/// How long an eviction waits before it asks everybody again.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How often a Source may say that nothing is decided while the Destination is ready: for two
/// minutes. A Destination may say so that has fetched nothing, and would keep the VM from moving.
const MAX_OPEN: u32 = 10;
/// How often a step that may be given up is tried against a site that does not answer.
const MAX_FAILURES: u32 = 6;

impl JourneyMemory {
    /// Offers in their order, with those first that were not tried yet. Which of several a party
    /// made again is not known but by their order.
    fn untried_first(&mut self, offers: Vec<(Party, Offer)>) -> Vec<(Party, Offer)> {
        let mut counts: BTreeMap<Party, usize> = BTreeMap::new();
        let (tried, mut untried): (Vec<_>, Vec<_>) = offers.into_iter().partition(|(at, _)| {
            let count = counts.entry(at.clone()).or_default();
            *count += 1;
            self.tried.get(at).is_some_and(|tried| *count <= *tried)
        });
        if untried.is_empty() {
            self.tried.clear();
        }
        untried.extend(tried);
        untried
    }
}

impl Step<'_> {
    // Beginning and ending journeys.

    pub(crate) fn ask_move(&mut self, ask: u64, operation: OperationId, vm: VmId, goal: Goal) {
        if self.site.state.vms.get(&vm).is_none_or(|vm| vm.destroyed) {
            return self.reply(ask, Reply::NotFound(format!("there is no VM {vm}")));
        }
        if let Some(open) = self.site.state.open_journey(vm) {
            let text = format!("operation {} is moving this VM already", open.operation);
            return self.reply(ask, Reply::Conflict(text));
        }
        for peer in &goal.peers {
            match self.site.peers.get(peer) {
                None => {
                    return self.reply(ask, Reply::NotFound(format!("there is no peer {peer}")));
                }
                Some(peering) if peering.ending.is_some() => {
                    let text = format!("the peering with {peer} is being ended");
                    return self.reply(ask, Reply::Conflict(text));
                }
                Some(peering) if !peering.lets(Right::Host) => {
                    let text = format!(
                        "the peering with {peer} does not let it host VMs of this site; \
                         `sojourn peer set {peer} --may` says what it may"
                    );
                    return self.reply(ask, Reply::Conflict(text));
                }
                Some(_) => {}
            }
        }
        self.begin(operation, vm, goal);
        self.reply(ask, Reply::Began);
        self.drive(operation);
    }

    pub(crate) fn begin(&mut self, operation: OperationId, vm: VmId, goal: Goal) {
        self.persist(Row::Began { operation, vm, goal });
        self.site.journeys.insert(operation, JourneyMemory::default());
    }

    pub(crate) fn cancel(&mut self, ask: u64, operation: OperationId) {
        let Some(journey) = self.site.state.journeys.get(&operation).cloned() else {
            return self.reply(ask, Reply::NotFound(format!("there is no operation {operation}")));
        };
        if journey.result.is_some() {
            return self.reply(ask, Reply::Conflict("the operation has ended".to_owned()));
        }
        let phase = self.memory(operation).phase;
        if matches!(phase, Phase::Verify | Phase::Deliver | Phase::Handback | Phase::Retire) {
            let text = "everything has arrived and is being handed over; it ends by itself";
            return self.reply(ask, Reply::Conflict(text.to_owned()));
        }
        self.end_attempt(&journey, Ended::Cancelled);
        self.reply(ask, Reply::Done);
    }

    /// Ends a journey, once the Source has aborted what is under way: left alone it would wait for
    /// as long as a transfer may take, and nobody could move the VM meanwhile. If it has released
    /// the VM instead, the journey goes on to its end.
    fn end_attempt(&mut self, journey: &Journey, result: Ended) {
        let operation = journey.operation;
        let memory = self.memory(operation);
        if journey.chosen.is_none() || memory.phase == Phase::Collect {
            return self.finish(journey, result);
        }
        memory.ending = Some(result);
        if memory.phase != Phase::Abort {
            memory.busy = false;
            self.go(operation, Phase::Abort);
        }
    }

    fn finish(&mut self, journey: &Journey, result: Ended) {
        if let Ended::Parked(reason) = &result {
            self.park(journey.vm, reason);
        }
        self.conclude(journey.operation, result);
    }

    fn conclude(&mut self, operation: OperationId, result: Ended) {
        let memory = self.memory(operation).clone();
        self.persist(Row::Concluded { operation, result });
        self.disarm(&Timer::Journey(operation));
        let journey = self.site.state.journeys[&operation].clone();
        if let Some(request) = memory.request {
            self.withdraw(journey.vm, request, &Party::Here);
            self.site.gatherings.remove(&request);
        }
        self.effect(Effect::Ended(Box::new(journey)));
    }

    fn memory(&mut self, operation: OperationId) -> &mut JourneyMemory {
        self.site.journeys.entry(operation).or_default()
    }

    /// Whether the VM is where it was to go, by another way: the one that was chosen has a site that
    /// is gone, and the primary has reclaimed the VM past it.
    fn is_there_otherwise(&self, journey: &Journey) -> bool {
        let Some(chosen) = journey.chosen.as_ref().filter(|chosen| chosen.rerouted) else {
            return false;
        };
        self.site.state.vms.get(&journey.vm).is_some_and(|vm| {
            let back = Cause::Handback { migration: chosen.migration };
            let is_back =
                |signed: &Signed<Certificate>| signed.peek().is_ok_and(|c| c.cause == back);
            vm.chain.released_by(chosen.migration).is_some()
                && !vm.chain.certificates.iter().any(is_back)
        })
    }

    fn tell(&mut self, operation: OperationId, text: impl Into<String>) {
        self.effect(Effect::Progress { operation, text: text.into() });
    }

    // Driving a journey.

    /// Does the next step of a journey, if none is on its way.
    pub(crate) fn drive(&mut self, operation: OperationId) {
        let Some(journey) = self.site.state.journeys.get(&operation).cloned() else { return };
        let memory = self.memory(operation);
        if memory.busy || (journey.result.is_some() && memory.phase != Phase::Retire) {
            return;
        }
        if journey.result.is_none() && self.is_there_otherwise(&journey) {
            return self.conclude(operation, Ended::Done);
        }
        let memory = self.memory(operation);
        let waits = [Phase::Force, Phase::Initiate, Phase::Verify, Phase::Abort];
        if memory.certificate.is_some() && waits.contains(&memory.phase) {
            memory.phase = Phase::Deliver;
        }
        let memory = memory.clone();
        let early =
            matches!(memory.phase, Phase::Collect | Phase::Force | Phase::Initiate | Phase::PassUp);
        if journey.result.is_none() && early && self.out_of_time(&journey) {
            return;
        }
        match (memory.phase, journey.chosen.clone()) {
            (Phase::Collect, _) => self.collect(&journey),
            (Phase::PassUp, _) => self.pass_up(&journey),
            (Phase::Force, Some(chosen)) => self.force(&journey, &chosen),
            (Phase::Initiate, Some(chosen)) => self.initiate(&journey, &chosen),
            (Phase::Verify, Some(chosen)) => {
                let waiting = Waiting::Journey(operation, "verify");
                self.ask_source(&journey, &chosen, memory.ready, waiting);
            }
            (Phase::Abort, Some(chosen)) => {
                let waiting = Waiting::Journey(operation, "abort");
                self.ask_source(&journey, &chosen, None, waiting);
            }
            (Phase::Deliver, Some(chosen)) => self.deliver(&journey, &chosen),
            (Phase::Handback, Some(chosen)) => self.pass_handback(&journey, &chosen),
            (Phase::Retire, Some(chosen)) => self.retire(&journey, &chosen),
            (_, None) => {
                self.memory(operation).phase = Phase::Collect;
                self.collect(&journey);
            }
        }
    }

    fn busy(&mut self, operation: OperationId) {
        self.memory(operation).busy = true;
    }

    fn go(&mut self, operation: OperationId, phase: Phase) {
        let memory = self.memory(operation);
        memory.phase = phase;
        memory.failures = 0;
        self.drive(operation);
    }

    fn later(&mut self, operation: OperationId, wait: Duration) {
        self.arm_after(Timer::Journey(operation), wait);
    }

    /// An eviction that is fulfilled, or whose time is up, ends here.
    fn out_of_time(&mut self, journey: &Journey) -> bool {
        let operation = journey.operation;
        let now = self.world.now();
        let chosen = journey.chosen.as_ref().map(|chosen| chosen.migration);
        let chosen = chosen.and_then(|id| self.site.state.migrations.get(&id));
        if chosen.is_some_and(|migration| migration.owned.is_some()) {
            return false; // it is done but for telling the Source, and closing the old path
        }
        if self.is_rid(journey) {
            self.conclude(operation, Ended::PassedUp);
            return true;
        }
        if now < journey.goal.deadline {
            return false;
        }
        let last = self.memory(operation).last_failure.clone();
        let why = last.unwrap_or_else(|| "no site takes it".to_owned());
        let parks = journey.goal.evict.as_ref().is_some_and(|evict| evict.from == Party::Here);
        let stays = self.site.state.vms.get(&journey.vm).is_some_and(|vm| vm.stay.is_some());
        let result = match (parks, stays) {
            (true, true) => Ended::Parked(format!("no other place was found in time: {why}")),
            // Released, and on its way.
            (true, false) => Ended::PassedUp,
            (false, _) => Ended::GaveUp(format!("out of time: {why}")),
        };
        self.end_attempt(journey, result);
        true
    }

    /// Steps 1 and 2.
    fn collect(&mut self, journey: &Journey) {
        let operation = journey.operation;
        let Some(entry) = self.site.state.vms.get(&journey.vm) else {
            return self.conclude(operation, Ended::GaveUp("the VM is not here any more".into()));
        };
        let descriptor = entry.descriptor.clone();
        let (up, goal) = (entry.up.clone(), &journey.goal);
        if self.only_passes_up(journey, up.as_ref().map(|up| &up.peer)) {
            return self.go(operation, Phase::PassUp);
        }
        let id = RequestId(self.random16());
        let evict = goal.evict.as_ref();
        let from_here = evict.is_some_and(|evict| evict.from == Party::Here);
        let storage = evict.is_some() && up.is_none();
        // Whoever wants a VM gone from this site does not offer its hosts; draining one host does.
        let own_hosts = goal.peers.is_empty() && !(from_here && goal.leave.is_none());
        let (offers, reasons) = if own_hosts || storage {
            let here = Party::Here;
            let (mut offers, reasons) =
                self.local_offers(&here, journey.vm, id, &descriptor, goal.leave.as_ref(), storage);
            if !own_hosts {
                offers.retain(|offer| !offer.terms.runs);
            }
            (offers, reasons)
        } else {
            (vec![], vec![])
        };
        let mut peers = BTreeSet::new();
        // A Source that wants a VM gone is Controller only among its own hosts.
        if !goal.local_only && !(from_here && up.is_some()) {
            peers = self.hosting_peers();
            if !goal.peers.is_empty() {
                peers.retain(|peer| goal.peers.contains(peer));
            }
            if let Some(up) = &up {
                peers.remove(&up.peer);
            }
            if let Some(Evict { from: Party::Peer(peer), .. }) = evict {
                peers.remove(peer);
            }
        }
        let gathering = Gathering {
            vm: journey.vm,
            asker: Asker::Journey(operation),
            descriptor: descriptor.clone(),
            awaiting: BTreeSet::new(),
            offers: offers.into_iter().map(|offer| (None, offer)).collect(),
            reasons,
            asked: peers.clone(),
            forget: self.world.now().after(self.site.config.offer_life),
        };
        self.site.gatherings.insert(id, gathering);
        let memory = self.memory(operation);
        memory.request = Some(id);
        memory.busy = true;
        let whom = match (own_hosts || storage, peers.len()) {
            (true, 0) => Some("asking this site for a place".to_owned()),
            (true, n) => Some(format!("asking this site and {n} peers for a place")),
            (false, 0) => None,
            (false, n) => Some(format!("asking {n} peers for a place")),
        };
        if let Some(text) = whom {
            self.tell(operation, text);
        }
        let op = Op::MigrationRequest { vm: journey.vm, request: id, descriptor };
        let key = self.world.create_key();
        let origin = Origin { op, key, sealed: None };
        let limit = self.site.config.request_limit;
        self.ask_peers(id, origin, peers, None, model::limit::DEFAULT_HOPS, limit);
    }

    /// Step 3.
    pub(crate) fn offers_are_in(
        &mut self,
        operation: OperationId,
        id: RequestId,
        gathering: Gathering,
    ) {
        let memory = self.memory(operation);
        if memory.request != Some(id) || memory.phase != Phase::Collect {
            return;
        }
        memory.busy = false;
        let Some(journey) = self.site.state.journeys.get(&operation).cloned() else { return };
        if journey.result.is_some() {
            return;
        }
        let input =
            Rank { descriptor: gathering.descriptor.clone(), offers: self.candidates(&gathering) };
        let ranked = self.world.policy().rank(&input);
        let mut left = Vec::new();
        let mut lines = Vec::new();
        let mut reasons = gathering.reasons.clone();
        for place in ranked {
            let Some((via, offer)) = gathering.offers.get(place.offer) else { continue };
            let at = via.clone().map_or(Party::Here, Party::Peer);
            let whence = match &at {
                Party::Here => "this site".to_owned(),
                Party::Peer(peer) => format!("peer {peer}"),
            };
            let terms = &offer.terms;
            // What it may do can have changed since it was asked.
            if via.as_ref().is_some_and(|via| !self.peering(via).lets(Right::Host)) {
                reasons.push(format!("{whence} ({terms}): it may not host VMs of this site's"));
                continue;
            }
            let ranked = place.reasons.join(", ");
            let line = format!("{whence}: {terms}, {} sites further on; {ranked}", offer.distance);
            if place.excluded {
                reasons.push(format!("{whence} ({terms}): {ranked}"));
                lines.push(format!("out of the question: {line}"));
            } else {
                lines.push(line);
                left.push((at, offer.clone()));
            }
        }
        if journey.goal.dry_run {
            let result =
                if left.is_empty() { Ended::NoPlace(reasons) } else { Ended::Ranking(lines) };
            return self.conclude(operation, result);
        }
        if !left.is_empty() {
            self.tell(operation, format!("{} offers", left.len()));
        }
        let memory = self.memory(operation);
        memory.left = memory.untried_first(left);
        memory.asked_for = Some(gathering.descriptor.digest());
        memory.tries = 0;
        if !reasons.is_empty() {
            memory.last_failure = Some(reasons.join("; "));
        }
        self.next_offer(operation, &reasons);
    }

    /// Takes the best offer that was not tried, or ends for want of one.
    fn next_offer(&mut self, operation: OperationId, reasons: &[String]) {
        let Some(journey) = self.site.state.journeys.get(&operation).cloned() else { return };
        let max_tries = self.site.config.max_tries;
        let memory = self.memory(operation);
        if let Some(result) = memory.ending.take() {
            return self.finish(&journey, result);
        }
        if memory.left.is_empty() && memory.request.is_none() {
            // A restart has lost the other offers, and this site's own are void since.
            memory.phase = Phase::Collect;
            return self.drive(operation);
        }
        if memory.left.is_empty() || memory.tries >= max_tries {
            return self.no_place(&journey, reasons);
        }
        memory.tries += 1;
        memory.certificate = None;
        let asked_for = memory.asked_for;
        let (at, offer) = memory.left.remove(0);
        if let Party::Peer(peer) = &at
            && !self.peering(peer).lets(Right::Host)
        {
            return self.next_offer(operation, reasons);
        }
        let taken = match (&at, asked_for) {
            (Party::Peer(peer), Some(asked_for)) => {
                let proposal = proposal(self.world, peer, journey.vm, asked_for, &offer);
                proposal.map(|proposal| self.take(proposal))
            }
            _ => None,
        };
        let whence = match &at {
            Party::Here => "this site".to_owned(),
            Party::Peer(peer) => format!("peer {peer}"),
        };
        *self.memory(operation).tried.entry(at.clone()).or_default() += 1;
        let migration = MigrationId(self.random16());
        let key = self.world.create_key();
        self.persist(Row::Chosen {
            operation,
            migration,
            key,
            at,
            handle: offer.edge,
            target: offer.target,
            taken,
        });
        self.memory(operation).sent = false;
        self.tell(operation, format!("chose the offer of {whence}; migration {migration}"));
        self.go(operation, Phase::Force);
    }

    /// Step 4.
    fn force(&mut self, journey: &Journey, chosen: &Chosen) {
        let Some(down) = self.down(journey, chosen) else { return };
        let op = Op::ForcedMigration {
            vm: journey.vm,
            migration: chosen.migration,
            target_vm_key: chosen.target.vm_key,
            target_transfer_key: chosen.target.transfer_key,
            mode: journey.goal.mode,
        };
        let origin = Origin { op, key: chosen.key, sealed: None };
        self.busy(journey.operation);
        let target = chosen.target.clone();
        let (target, stands) = match (&down, &chosen.at) {
            // Between two others; else one end of the transfer is here.
            (Down::Edge(edge), Party::Peer(_)) => {
                self.target_below(chosen.migration, journey.vm, edge, target)
            }
            _ => (target, false),
        };
        self.memory(journey.operation).stands = stands;
        let hop = Hop {
            hops_left: model::limit::MAX_HOPS,
            time_left: self.site.config.request_limit,
            target: Some(target),
            ..Hop::default()
        };
        self.send_hop_down(&down, origin, hop, Waiting::Journey(journey.operation, "force"));
    }

    /// The way to the Source of the chosen migration: the VM's path as it was before this very
    /// migration changed it here. This site may be the Destination, and own the VM already.
    fn down(&mut self, journey: &Journey, chosen: &Chosen) -> Option<Down> {
        let migration = self.site.state.migrations.get(&chosen.migration);
        let old = migration.and_then(|migration| migration.old.clone());
        let current = || self.site.state.vms.get(&journey.vm).map(|vm| vm.down.clone());
        let down = old.map(|(_, down)| down).or_else(current);
        if down.is_none() {
            self.conclude(journey.operation, Ended::GaveUp("the VM is not here any more".into()));
        }
        down
    }

    /// Step 5.
    fn initiate(&mut self, journey: &Journey, chosen: &Chosen) {
        let memory = self.memory(journey.operation);
        memory.sent = true;
        let memory = memory.clone();
        let (Some(source), Some(chain)) = (memory.source, memory.chain) else {
            return self.go(journey.operation, Phase::Force);
        };
        let op = Op::InitiateTransfer {
            vm: journey.vm,
            migration: chosen.migration,
            chain,
            profile: memory.profile,
            boot: journey.goal.boot || memory.active,
            monitoring: memory.monitoring,
        };
        let origin = Origin { op, key: chosen.key, sealed: None };
        let is_here = self.site.state.migrations.get(&chosen.migration);
        let is_here = is_here.is_some_and(|migration| migration.source.is_some());
        let source = match &chosen.at {
            Party::Peer(peer) if !is_here => {
                let given = memory.stands.then_some(EdgeHandle(chosen.migration.0));
                self.source_for(chosen.migration, journey.vm, peer, source, (given, true))
            }
            _ => source,
        };
        let hop = Hop {
            edge: Some(chosen.handle),
            hops_left: model::limit::MAX_HOPS,
            time_left: self.site.config.source_patience,
            source: Some(source),
            target: None,
            taken: self.taken_of(chosen.migration),
        };
        self.busy(journey.operation);
        self.tell(journey.operation, "the Source is ready; the files move");
        let waiting = Waiting::Journey(journey.operation, "initiate");
        self.send(&chosen.at, Request { origin, hop }, waiting);
    }

    /// Step 6, or with no READY a request to abort.
    fn ask_source(
        &mut self,
        journey: &Journey,
        chosen: &Chosen,
        ready: Option<Signed<model::Statement>>,
        waiting: Waiting,
    ) {
        if let Some(down) = self.down(journey, chosen) {
            self.busy(journey.operation);
            self.ask_outcome(&down, journey.vm, chosen, ready, waiting);
        }
    }

    fn ask_outcome(
        &mut self,
        down: &Down,
        vm: model::VmId,
        chosen: &Chosen,
        ready: Option<Signed<model::Statement>>,
        waiting: Waiting,
    ) {
        let op = Op::TransferVerification { vm, migration: chosen.migration, ready };
        let origin = Origin { op, key: chosen.key, sealed: None };
        let limit = self.site.config.request_limit;
        self.send_down(down, origin, limit, waiting);
    }

    /// Step 8.
    fn deliver(&mut self, journey: &Journey, chosen: &Chosen) {
        let Some(certificate) = self.memory(journey.operation).certificate.clone() else {
            return self.go(journey.operation, Phase::Verify);
        };
        let op = Op::Deliver { vm: journey.vm, migration: chosen.migration, certificate };
        let origin = Origin { op, key: chosen.key, sealed: None };
        let hop = Hop {
            edge: Some(chosen.handle),
            hops_left: model::limit::MAX_HOPS,
            time_left: DELIVER_LIMIT,
            ..Hop::default()
        };
        self.busy(journey.operation);
        self.tell(journey.operation, "released by the Source; handing over");
        let waiting = Waiting::Journey(journey.operation, "deliver");
        self.send(&chosen.at, Request { origin, hop }, waiting);
    }

    fn pass_handback(&mut self, journey: &Journey, chosen: &Chosen) {
        let Some(certificate) = self.memory(journey.operation).back.clone() else {
            return self.go(journey.operation, Phase::Deliver);
        };
        let newest = self.site.state.vms.get(&journey.vm).map(|vm| vm.chain.epoch());
        if newest >= certificate.peek().ok().map(|certificate| certificate.epoch) {
            // The Source heard it over the session: the VM has moved on from there since.
            return self.handed_back(journey.operation);
        }
        let Some(down) = self.down(journey, chosen) else { return };
        let op = Op::Handback { vm: journey.vm, migration: chosen.migration, certificate };
        let origin = Origin { op, key: chosen.key, sealed: None };
        self.busy(journey.operation);
        let limit = self.site.config.request_limit;
        self.send_down(&down, origin, limit, Waiting::Journey(journey.operation, "handback"));
    }

    fn retire(&mut self, journey: &Journey, chosen: &Chosen) {
        let migration = self.site.state.migrations.get(&chosen.migration);
        let old =
            migration.filter(|m| !m.retired).and_then(|m| Some((m.old.clone()?, m.owned.clone()?)));
        let Some(((_, down), owned)) = old else { return };
        let op = Op::Retire { vm: journey.vm, migration: chosen.migration, owned };
        let origin = Origin { op, key: chosen.key, sealed: None };
        self.busy(journey.operation);
        let limit = self.site.config.request_limit;
        self.send_down(&down, origin, limit, Waiting::Journey(journey.operation, "retire"));
    }

    /// The end of a journey's call.
    pub(crate) fn journey_answer(
        &mut self,
        operation: OperationId,
        answer: Result<Answer, CallError>,
    ) {
        let Some(journey) = self.site.state.journeys.get(&operation).cloned() else { return };
        let memory = self.memory(operation);
        memory.busy = false;
        let phase = memory.phase;
        if journey.result.is_some() && phase != Phase::Retire {
            return;
        }
        let answer = answer.unwrap_or_else(|error| Answer::Failed {
            reason: match error {
                CallError::Unreachable(why) => format!("no answer: {why}"),
                CallError::Garbled(why) => format!("an answer that cannot be used: {why}"),
            },
        });
        match (phase, answer) {
            (Phase::Force, Answer::Prepared { source, chain, active, profile, monitoring }) => {
                self.renew(journey.vm, &monitoring);
                self.learn(journey.vm, &chain);
                let memory = self.memory(operation);
                memory.source = Some(source);
                memory.chain = Some(chain);
                memory.active = active;
                memory.profile = profile;
                memory.monitoring = monitoring;
                // Failures count on: a Destination that is gone for good leads here every time.
                memory.phase = Phase::Initiate;
                self.drive(operation);
            }
            (Phase::Force, Answer::Conflict { reason, retry_after }) => {
                self.memory(operation).last_failure = Some(reason);
                self.later(operation, retry_after);
            }
            (Phase::Force, Answer::Gone { reason }) => {
                self.destroyed_below(journey.vm);
                self.finish(&journey, Ended::GaveUp(reason));
            }
            (Phase::Initiate, Answer::Arrived { ready, size, wire }) => {
                self.tell(operation, format!("all {size} arrived, {wire} on the wire"));
                self.memory(operation).ready = Some(ready);
                self.go(operation, Phase::Verify);
            }
            (Phase::Initiate, Answer::Gone { reason }) => self.attempt_failed(operation, reason),
            (Phase::Force | Phase::Verify | Phase::Abort, Answer::Verified(outcome)) => {
                self.outcome(operation, phase, outcome);
            }
            (Phase::Abort, Answer::Unknown | Answer::Gone { .. }) => {
                self.next_offer(operation, &[]);
            }
            (Phase::Deliver, Answer::Owned { statement }) => {
                self.delivered(&journey, &statement);
            }
            (Phase::Deliver, Answer::HandedBack { certificate })
                if self.gives_back(&journey, &certificate) =>
            {
                self.memory(operation).back = Some(certificate);
                self.tell(operation, "the Destination could not start it and gives it back");
                self.go(operation, Phase::Handback);
            }
            (Phase::Handback, Answer::Done) => self.handed_back(operation),
            (Phase::Retire, Answer::Done | Answer::Unknown) => {
                let chosen = journey.chosen.expect("only a chosen migration is retired");
                self.retired(chosen.migration, journey.vm, None);
                self.site.journeys.remove(&operation);
            }
            (Phase::PassUp, Answer::Accepted) => {
                self.tell(operation, "the delegator is looking for another place");
                self.later(operation, ASK_AGAIN);
            }
            (phase, answer) => self.step_failed(operation, phase, &answer),
        }
    }

    fn outcome(&mut self, operation: OperationId, phase: Phase, outcome: Outcome) {
        match outcome {
            Outcome::Released(certificate) => {
                if !self.releases(operation, &certificate) {
                    let answer =
                        Answer::Failed { reason: "a certificate that does not hold".into() };
                    return self.step_failed(operation, phase, &answer);
                }
                self.memory(operation).certificate = Some(certificate);
                self.go(operation, Phase::Deliver);
            }
            Outcome::Aborted(_) => {
                let chosen = self.site.state.journeys[&operation].chosen.as_ref();
                if let Some(migration) = chosen.map(|chosen| chosen.migration) {
                    self.relay_is_over(migration);
                }
                if phase == Phase::Verify {
                    self.memory(operation).last_failure = Some("the Source kept it".to_owned());
                }
                self.next_offer(operation, &[]);
            }
            Outcome::Open { reason } => {
                let memory = self.memory(operation);
                memory.failures += 1;
                if memory.failures > MAX_OPEN {
                    return self.attempt_failed(operation, reason);
                }
                memory.last_failure = Some(reason);
                let wait = back_off(memory.failures);
                self.later(operation, wait);
            }
            Outcome::Differs { .. } => {
                let reason = "what arrived differs from what was sent".to_owned();
                self.attempt_failed(operation, reason);
            }
        }
    }

    fn handed_back(&mut self, operation: OperationId) {
        let chosen = self.site.state.journeys[&operation].chosen.as_ref();
        if let Some(migration) = chosen.map(|chosen| chosen.migration) {
            self.relay_is_over(migration);
        }
        let reason = "the Destination could not start it".to_owned();
        self.memory(operation).last_failure = Some(reason);
        self.next_offer(operation, &[]);
    }

    /// The Destination shows that the Source has released the VM to it: what is shown is delivered,
    /// since the Source may not be there any more to say so, and the answer tells whether that is
    /// the owner. False if no open journey has chosen that place, or the chain does not say so.
    pub(crate) fn take_release(&mut self, vm: VmId, edge: &Edge, chain: &Chain) -> bool {
        let Some(journey) = self.site.state.open_journey(vm) else { return false };
        let operation = journey.operation;
        let Some(chosen) = journey.chosen.clone() else { return false };
        let is_chosen = chosen.at == Party::Peer(edge.peer.clone()) && chosen.handle == edge.handle;
        let is_its = |signed: &Signed<Certificate>| {
            signed.peek().is_ok_and(|certificate| certificate.owner == chosen.target.vm_key)
        };
        let certificate = chain.released_by(chosen.migration).cloned().filter(is_its);
        let Some(certificate) = certificate.filter(|_| is_chosen && self.is_news(vm, chain)) else {
            return false;
        };
        if self.site.state.vms.get(&vm).is_some_and(|entry| entry.stay.is_some()) {
            // This site is the Source as well, and has forgotten how it decided.
            self.superseded(vm, chain);
        }
        self.memory(operation).certificate = Some(certificate);
        self.drive(operation);
        true
    }

    /// Whether a certificate gives the VM to the Destination that was chosen, as far as this site
    /// can tell: after a restart it has not asked for the chain again.
    fn releases(&self, operation: OperationId, certificate: &Signed<Certificate>) -> bool {
        let journey = &self.site.state.journeys[&operation];
        let chosen = journey.chosen.as_ref().expect("only a chosen migration has an outcome");
        let chain = self.site.journeys.get(&operation).and_then(|memory| memory.chain.as_ref());
        let holds = chain.is_none_or(|chain| {
            let chain = chain.extended(certificate.clone());
            chain.verify(journey.vm, &Verifier(self.world)).is_ok()
        });
        let owner = certificate.peek().map(|certificate| certificate.owner);
        holds && owner == Ok(chosen.target.vm_key)
    }

    /// Whether a certificate is the chosen Destination's, by which it gives the VM back. Whom it
    /// goes back to is the Source's to judge.
    fn gives_back(&self, journey: &Journey, certificate: &Signed<Certificate>) -> bool {
        let chosen = journey.chosen.as_ref().expect("only a chosen migration is delivered");
        let back = certificate.open(&chosen.target.vm_key, &Verifier(self.world));
        let cause = Cause::Handback { migration: chosen.migration };
        back.is_ok_and(|back| back.vm == journey.vm && back.cause == cause)
    }

    fn delivered(&mut self, journey: &Journey, statement: &Signed<model::Statement>) {
        let operation = journey.operation;
        let chosen = journey.chosen.clone().expect("only a chosen migration is delivered");
        let certificate = self.memory(operation).certificate.clone().expect("it was delivered");
        if self.proves_ownership(&certificate, statement).is_none() {
            let answer = Answer::Failed { reason: "a statement that does not hold".to_owned() };
            return self.step_failed(operation, Phase::Deliver, &answer);
        }
        if matches!(chosen.at, Party::Peer(_)) && !flipped_here(self, &chosen) {
            self.persist(Row::Flipped {
                migration: chosen.migration,
                certificate,
                owned: statement.clone(),
            });
            self.relay_is_over(chosen.migration);
        }
        self.memory(operation).phase = Phase::Retire;
        self.conclude(operation, Ended::Done);
        self.report_up(journey.vm);
        self.drive(operation);
    }

    /// This attempt came to nothing: the Source is to abort, then the next offer is tried.
    fn attempt_failed(&mut self, operation: OperationId, reason: String) {
        self.tell(operation, format!("this offer failed: {reason}"));
        self.memory(operation).last_failure = Some(reason);
        self.go(operation, Phase::Abort);
    }

    /// A step got no usable answer.
    fn step_failed(&mut self, operation: OperationId, phase: Phase, answer: &Answer) {
        let reason = short(answer);
        let memory = self.memory(operation);
        memory.failures += 1;
        memory.last_failure = Some(reason.clone());
        let (failures, wait) = (memory.failures, back_off(memory.failures));
        match phase {
            // What is not known at the Source cannot have been released.
            Phase::Verify if matches!(answer, Answer::Unknown) && failures > MAX_FAILURES => {
                self.conclude(operation, Ended::GaveUp(reason));
            }
            Phase::Initiate if failures > MAX_FAILURES => self.attempt_failed(operation, reason),
            Phase::Initiate => {
                // The Source may have a new token; the Destination goes on where it stopped.
                self.memory(operation).phase = Phase::Force;
                self.later(operation, wait);
            }
            Phase::Force if failures > MAX_FAILURES => self.attempt_failed(operation, reason),
            Phase::PassUp => {
                self.memory(operation).phase = Phase::Collect;
                self.later(operation, ASK_AGAIN);
            }
            _ => {
                self.tell(operation, format!("asking again: {reason}"));
                self.later(operation, wait);
            }
        }
    }
}

/// Whether this site's own edge points along the chosen offer already.
fn flipped_here(step: &Step<'_>, chosen: &Chosen) -> bool {
    let vm = step.site.state.migrations.get(&chosen.migration).map(|migration| migration.vm);
    let entry = vm.and_then(|vm| step.site.state.vms.get(&vm));
    entry.is_some_and(|vm| matches!(&vm.down, Down::Edge(edge) if edge.handle == chosen.handle))
}

/// How long a Destination may take to launch the guest and become the owner.
const DELIVER_LIMIT: Duration = Duration::from_secs(120);

/// An answer in a few words, for a reason.
pub(crate) fn short(answer: &Answer) -> String {
    match answer {
        Answer::Failed { reason } | Answer::Gone { reason } | Answer::Conflict { reason, .. } => {
            reason.clone()
        }
        Answer::Refused { reasons } => reasons.join("; "),
        Answer::Unknown => "the other side does not know of it".to_owned(),
        _ => "an answer that does not fit the request".to_owned(),
    }
}
