//! Forced migration: a site or a host must be rid of a VM (papers/003, II-B, 6).

use std::collections::BTreeSet;
use std::time::Duration;

use model::{HostName, OperationId, VmId};

use super::ASK_AGAIN;
use crate::effect::{Caller, Reply};
use crate::message::{Answer, Hop, Op, Origin, Request};
use crate::row::{Down, Evict, Goal, Mode, Party, Result as Ended, Row};
use crate::site::{Phase, Step, Waiting};
use crate::state::Journey;

/// How often an eviction doubles its wait while offers are made and come to nothing.
const MAX_DOUBLINGS: u32 = 7;

impl Step<'_> {
    pub(crate) fn ask_evict(
        &mut self,
        ask: u64,
        operation: OperationId,
        vm: VmId,
        reason: String,
        within: Duration,
    ) {
        let Some(entry) = self.site.state.vms.get(&vm).filter(|vm| !vm.destroyed) else {
            return self.reply(ask, Reply::NotFound(format!("there is no VM {vm}")));
        };
        if entry.stay.is_none() {
            let text = "this site does not have the VM; evict it where it runs, or migrate it";
            return self.reply(ask, Reply::Conflict(text.to_owned()));
        }
        if let Some(open) = self.site.state.open_journey(vm) {
            let text = format!("operation {} is moving this VM already", open.operation);
            return self.reply(ask, Reply::Conflict(text));
        }
        let goal = self.eviction(Party::Here, reason, None, within);
        self.begin(operation, vm, goal);
        self.reply(ask, Reply::Began);
        self.drive(operation);
    }

    pub(crate) fn eviction(
        &self,
        from: Party,
        reason: String,
        leave: Option<HostName>,
        within: Duration,
    ) -> Goal {
        Goal {
            boot: false,
            mode: Mode::Hibernate,
            peers: BTreeSet::new(),
            local_only: false,
            leave,
            evict: Some(Evict { from, reason }),
            deadline: self.world.now().after(within),
            dry_run: false,
        }
    }

    /// Forced migration from below: never refused, never ignored (papers/003, II-B, 6).
    pub(crate) fn evict_from_below(
        &mut self,
        caller: Caller,
        from: Party,
        vm: VmId,
        reason: String,
        hop: Hop,
    ) {
        let Party::Peer(peer) = &from else { return self.answer(caller, Answer::Unknown) };
        let entry = self.site.state.vms.get(&vm);
        let below = entry.is_some_and(|vm| match &vm.down {
            Down::Edge(edge) => edge.peer == *peer && Some(edge.handle) == hop.edge,
            Down::Here => false,
        });
        if !below {
            return self.answer(caller, Answer::Unknown);
        }
        if self.site.state.open_journey(vm).is_none() {
            let operation = OperationId(self.random16());
            self.note(vm, format!("the delegate must be rid of it: {reason}"));
            let goal = self.eviction(from, reason, None, hop.time_left);
            self.begin(operation, vm, goal);
            self.drive(operation);
        }
        self.answer(caller, Answer::Accepted);
    }

    pub(crate) fn drain_host(&mut self, ask: u64, host: HostName, draining: bool) {
        let Some(known) = self.site.state.hosts.get(&host) else {
            return self.reply(ask, Reply::NotFound(format!("there is no host {host}")));
        };
        if known.draining != draining {
            self.persist(Row::HostDraining { host: host.clone(), draining });
        }
        let mut operations = Vec::new();
        if draining {
            let vms: Vec<VmId> = self
                .site
                .state
                .vms
                .iter()
                .filter(|(_, vm)| vm.stay.as_ref().is_some_and(|stay| stay.host == host))
                .map(|(vm, _)| *vm)
                .collect();
            for vm in vms {
                if let Some(open) = self.site.state.open_journey(vm) {
                    operations.push(open.operation);
                    continue;
                }
                let operation = OperationId(self.random16());
                let reason = "the host it runs on is being emptied".to_owned();
                let within = self.site.config.source_patience;
                let goal = self.eviction(Party::Here, reason, Some(host.clone()), within);
                self.begin(operation, vm, goal);
                operations.push(operation);
            }
        }
        self.reply(ask, Reply::BeganMany(operations.clone()));
        for operation in operations {
            self.drive(operation);
        }
    }

    /// Whether the site or the host that had to be rid of the VM is, by another way than this journey.
    pub(super) fn is_rid(&self, journey: &Journey) -> bool {
        let Some(evict) = &journey.goal.evict else { return false };
        let Some(vm) = self.site.state.vms.get(&journey.vm) else { return true };
        let is_there = match &evict.from {
            Party::Here => vm.stay.as_ref().is_some_and(|stay| {
                journey.goal.leave.as_ref().is_none_or(|leave| *leave == stay.host)
            }),
            Party::Peer(peer) => matches!(&vm.down, Down::Edge(edge) if edge.peer == *peer),
        };
        let released = vm.stay.is_none() && vm.down == Down::Here;
        !is_there && !(released && self.site.state.open_source(journey.vm).is_none())
    }

    pub(super) fn no_place(&mut self, journey: &Journey, reasons: &[String]) {
        let operation = journey.operation;
        let Some(_) = &journey.goal.evict else {
            let tried = journey.chosen.is_some();
            let last = self.memory(operation).last_failure.clone();
            let result = match last {
                Some(last) if tried => Ended::GaveUp(last),
                _ => Ended::NoPlace(reasons.to_vec()),
            };
            return self.conclude(operation, result);
        };
        let up = self.site.state.vms.get(&journey.vm).and_then(|vm| vm.up.as_ref()).is_some();
        if up && self.memory(operation).left.is_empty() {
            self.go(operation, Phase::PassUp);
        } else {
            let memory = self.memory(operation);
            memory.phase = Phase::Collect;
            // Asking costs nothing, but each offer that was tried has stopped the guest for a
            // while.
            memory.rounds = if memory.tries > 0 { memory.rounds + 1 } else { 0 };
            let wait = ASK_AGAIN * (1 << memory.rounds.min(MAX_DOUBLINGS));
            let left = journey.goal.deadline.since(self.world.now());
            self.tell(operation, "no place yet; asking again");
            self.later(operation, wait.min(left));
        }
    }

    pub(super) fn pass_up(&mut self, journey: &Journey) {
        let operation = journey.operation;
        let (Some(up), Some(evict)) = (
            self.site.state.vms.get(&journey.vm).and_then(|vm| vm.up.clone()),
            journey.goal.evict.clone(),
        ) else {
            self.memory(operation).phase = Phase::Collect;
            return self.later(operation, ASK_AGAIN);
        };
        // A site on the way keeps half of the time for itself, so that it hears of a failure.
        let left = journey.goal.deadline.since(self.world.now());
        let time_left = if evict.from == Party::Here { left } else { left / 2 };
        let op = Op::Evict { vm: journey.vm, reason: evict.reason };
        let key = self.world.create_key();
        let origin = Origin { op, key, sealed: None };
        let hop = Hop {
            edge: Some(up.handle),
            hops_left: model::limit::MAX_HOPS,
            time_left,
            ..Hop::default()
        };
        self.busy(operation);
        self.tell(operation, "asking the delegator to find another place");
        let waiting = Waiting::Journey(operation, "pass up");
        self.send(&Party::Peer(up.peer), Request { origin, hop }, waiting);
    }
}
