//! Ending a peering: what is shared with the peer moves away first, and nobody is stranded
//! (federation.md, "Joining").
//!
//! Each VM on an edge with that peer is evicted from that edge, whichever side of it this site is
//! on, until none is left:
//!
//! | this site | who finds another place |
//! | --- | --- |
//! | had the peer take it | this site, as if the peer had forced it out |
//! | runs it for the peer | the peer: this site forces it out |
//! | stands between the peer and another | the peer: this site passes that on at once |
//!
//! When the time is up, what runs here for the peer is parked, as with every eviction; it still
//! goes as soon as somebody takes it.

use std::time::Duration;

use model::{OperationId, PeerName, Peering, Time, VmId};

use crate::controller::ASK_AGAIN;
use crate::effect::Reply;
use crate::row::{Down, Party, Result as Ended};
use crate::site::{Site, Step};
use crate::state::{Journey, TargetStep};
use crate::timer::Timer;

/// How long a peer may still be needed for the end of a migration whose end was never heard of: as
/// long as a Destination keeps what it admitted.
const LAST_WORDS: Duration = Duration::from_secs(24 * 3600);
/// How long an eviction is tried that begins when the time is up.
const AFTERWARDS: Duration = Duration::from_secs(3600);

impl Site {
    /// This site's word about a peer.
    pub fn peering(&self, peer: &PeerName) -> Option<&Peering> {
        self.peers.get(peer)
    }

    /// Peers that may be forgotten: their peering is being ended, and nothing is shared with them
    /// any more.
    ///
    /// A site that has forgotten something may have forgotten what it shares.
    pub fn peerings_over(&self, now: Time) -> impl Iterator<Item = &PeerName> {
        let remembers = self.state.held.is_empty();
        let ending = self.peers.iter().filter_map(|(peer, peering)| Some((peer, peering.ending?)));
        ending
            .filter(move |(peer, until)| {
                let late = now > until.after(LAST_WORDS);
                remembers && !self.shares_with(peer) && (late || !self.may_be_asked_by(peer))
            })
            .map(|(peer, _)| peer)
    }

    /// Whether this site and a peer still need each other: for a VM, or for a migration whose end
    /// one owes to the other. While they do, the peer must not be forgotten.
    pub fn shares_with(&self, peer: &PeerName) -> bool {
        let of_vm = self.state.vms.values().any(|vm| {
            let below = matches!(&vm.down, Down::Edge(edge) if edge.peer == *peer);
            !vm.destroyed && (below || vm.up.as_ref().is_some_and(|up| up.peer == *peer))
        });
        let is = |party: &Party| *party == Party::Peer(peer.clone());
        let mut migrations = self.state.migrations.values();
        let coming = migrations.any(|migration| {
            let target = migration.target.as_ref();
            target.is_some_and(|t| is(&t.asker) && t.step.arrives())
        });
        // A Controller tells the old path of it when all is done.
        let of_journey = self.state.journeys.values().any(|journey| {
            let Some(chosen) = &journey.chosen else { return false };
            let migration = self.state.migrations.get(&chosen.migration);
            let old = migration.filter(|m| !m.retired).and_then(|m| m.old.as_ref());
            let to_retire =
                old.is_some_and(|(_, down)| matches!(down, Down::Edge(edge) if edge.peer == *peer));
            match &journey.result {
                None => is(&chosen.at),
                Some(result) => *result == Ended::Done && to_retire,
            }
        });
        of_vm || coming || of_journey
    }

    /// Whether a migration between two others, one that was handed back, or one whose files are kept
    /// no longer, was never heard to have ended: its last word may have to come this way.
    fn may_be_asked_by(&self, peer: &PeerName) -> bool {
        self.state.migrations.values().any(|migration| {
            let pending = migration.pending.as_ref().filter(|_| migration.owned.is_none());
            let between = pending.is_some_and(|(up, down)| up.peer == *peer || down.peer == *peer);
            let target = migration.target.as_ref();
            let gives_back = |step| matches!(step, TargetStep::HandedBack | TargetStep::Lapsed);
            let given_back = target.is_some_and(|t| gives_back(t.step));
            let its = target.is_some_and(|t| t.asker == Party::Peer(peer.clone()));
            between || (given_back && its)
        })
    }
}

impl Step<'_> {
    /// Begins to move away what is shared with a peer whose peering ends.
    pub(crate) fn ask_leave(&mut self, ask: u64, peer: PeerName) {
        if self.site.peers.get(&peer).is_none_or(|peering| peering.ending.is_none()) {
            let text = format!("the peering with {peer} is not being ended");
            return self.reply(ask, Reply::Conflict(text));
        }
        let operations = self.leave(&peer);
        self.reply(ask, Reply::BeganMany(operations));
    }

    /// Begins what has not begun, and looks again later: VMs may come back, or a try may fail.
    pub(crate) fn leave(&mut self, peer: &PeerName) -> Vec<OperationId> {
        let Some(until) = self.site.peers.get(peer).and_then(|peering| peering.ending) else {
            return vec![];
        };
        let on_edge = |vm: &crate::state::Vm| match (&vm.down, &vm.up) {
            (Down::Edge(edge), _) if edge.peer == *peer => Some(Party::Peer(peer.clone())),
            (Down::Edge(edge), Some(up)) if up.peer == *peer => {
                Some(Party::Peer(edge.peer.clone()))
            }
            (Down::Here, Some(up)) if up.peer == *peer && vm.stay.is_some() => Some(Party::Here),
            _ => None,
        };
        let vms = self.site.state.vms.iter().filter(|(_, vm)| !vm.destroyed);
        let shared: Vec<(VmId, Party)> =
            vms.filter_map(|(id, vm)| Some((*id, on_edge(vm)?))).collect();
        // What is left when the time is up is asked for all the same, and parked.
        // One that goes on for long writes few rows.
        let left = until.since(self.world.now());
        let within = if left.is_zero() { AFTERWARDS } else { left };
        let within = within.max(self.site.config.request_limit * 2);
        let mut operations = Vec::new();
        for (vm, from) in shared {
            if let Some(open) = self.site.state.open_journey(vm) {
                operations.push(open.operation);
                continue;
            }
            let operation = OperationId(self.random16());
            let reason = "the peering is being ended".to_owned();
            let goal = self.eviction(from, reason, None, within);
            self.begin(operation, vm, goal);
            self.drive(operation);
            operations.push(operation);
        }
        self.arm_after(Timer::Leave(peer.clone()), ASK_AGAIN.max(Duration::from_secs(1)));
        operations
    }

    /// Goes on with the peerings that are being ended.
    pub(crate) fn resume_leaving(&mut self) {
        let ending = self.site.peers.iter().filter(|(_, peering)| peering.ending.is_some());
        let ending: Vec<PeerName> = ending.map(|(peer, _)| peer.clone()).collect();
        for peer in ending {
            self.arm_after(Timer::Leave(peer), Duration::ZERO);
        }
    }

    /// Whether an eviction goes to the delegator without a look at this site's own places: the
    /// peering with it ends, and a VM that stayed in this site would still be on its path. Where
    /// the delegator has failed to take it, any place is better than none.
    pub(crate) fn only_passes_up(&self, journey: &Journey, up: Option<&PeerName>) -> bool {
        let goal = &journey.goal;
        let memory = self.site.journeys.get(&journey.operation);
        if memory.is_some_and(|memory| memory.last_failure.is_some()) {
            return false;
        }
        let ends = |up: &PeerName| self.peering(up).ending.is_some();
        goal.evict.is_some() && goal.leave.is_none() && up.is_some_and(ends)
    }
}
