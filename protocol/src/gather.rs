//! Gathering offers: for a journey of this site, and for a peer that asks (papers/003, III-C-2), as
//! their Intermediary.

use std::collections::BTreeSet;
use std::time::Duration;

use model::decision::{Candidate, Delegate, Expose, Verdict};
use model::{Descriptor, EdgeHandle, Offer, PeerName, Peering, RequestId, Right, Time, VmId};

use crate::contract::proposal;
use crate::controller::short;
use crate::effect::{CallError, CallId, Caller};
use crate::message::{Answer, Hop, Op, Origin, Request};
use crate::path::Verifier;
use crate::row::{Down, Edge, Party};
use crate::site::{Asker, Gathering, OfferAt, OfferMade, Step, Waiting};
use crate::timer::Timer;

/// What is asked for must be what is there, or it would be counted as less than it takes.
const OTHERWISE: &str = "this site has the VM, and it is described otherwise than when it came";

impl Gathering {
    /// Takes down why a peer has no place, as far as it is short.
    fn add_reasons(&mut self, reasons: Vec<String>) {
        for mut reason in reasons.into_iter().take(model::limit::MAX_REASONS) {
            if let Some((end, _)) = reason.char_indices().nth(model::limit::MAX_REASON_CHARS) {
                reason.truncate(end);
            }
            if !self.reasons.contains(&reason) {
                self.reasons.push(reason);
            }
        }
    }
}

impl Step<'_> {
    /// Whether a VM that this site answers for is described as it was when it came. What is
    /// monitored of it changes, and nothing else.
    pub(crate) fn is_as_known(&self, vm: VmId, descriptor: &Descriptor) -> bool {
        let known = self.site.state.vms.get(&vm).filter(|vm| !vm.destroyed);
        known.is_none_or(|known| {
            let monitoring = known.descriptor.monitoring.clone();
            Descriptor { monitoring, ..descriptor.clone() } == known.descriptor
        })
    }

    /// Migration request (papers/003, III-C-2), from a peer.
    pub(crate) fn migration_request(&mut self, caller: Caller, from: Party, request: Request) {
        let Op::MigrationRequest { vm, request: id, descriptor } = &request.origin.op else {
            return self.answer(caller, Answer::Unknown);
        };
        let (vm, id) = (*vm, *id);
        let Party::Peer(peer) = from else { return self.answer(caller, Answer::Unknown) };
        let none = |reason: &str| Answer::Offers { offers: vec![], reasons: vec![reason.into()] };
        match self.site.gatherings.get_mut(&id).map(|gathering| &mut gathering.asker) {
            Some(Asker::Peer { peer: first, callers }) if *first == peer => {
                return callers.push(caller);
            }
            Some(Asker::Answered { peer: first, answer }) if *first == peer => {
                let answer = (**answer).clone();
                return self.answer(caller, answer);
            }
            Some(_) => return self.answer(caller, none("the request has been here already")),
            None => {}
        }
        if request.hop.hops_left == 0 {
            return self.answer(caller, none("the request has passed as many sites as it may"));
        }
        if let Err(error) = descriptor.check() {
            return self.answer(caller, none(&format!("the descriptor is not legal: {error}")));
        }
        let on_path = self.site.state.vms.get(&vm).filter(|vm| !vm.destroyed);
        if on_path.is_some_and(|vm| vm.up.as_ref().is_none_or(|up| up.peer != peer)) {
            return self.answer(caller, none("this site answers for the VM already"));
        }
        if !self.is_as_known(vm, descriptor) {
            return self.answer(caller, none(OTHERWISE));
        }
        let peering = self.peering(&peer);
        if peering.ending.is_some() {
            return self.answer(caller, none("the peering is being ended: nothing new is taken"));
        }
        // A VM that this site has for it already may be asked a better place for.
        if on_path.is_none() && !peering.lets(Right::Place) {
            let text = format!("the peering does not let you place VMs here: you {peering}");
            return self.answer(caller, none(&text));
        }
        let hops_left = request.hop.hops_left.min(model::limit::MAX_HOPS) - 1;
        let limit = request.hop.time_left.min(self.site.config.request_limit).mul_f32(0.8);
        let gathering = Gathering {
            vm,
            asker: Asker::Peer { peer: peer.clone(), callers: vec![caller] },
            descriptor: descriptor.clone(),
            awaiting: BTreeSet::new(),
            offers: vec![],
            reasons: vec![],
            asked: BTreeSet::new(),
            forget: self.world.now().after(self.site.config.offer_life),
        };
        if !self.site.gatherings.insert(id, gathering) {
            let text = "too many requests of yours are under way; ask again later";
            return self.answer(caller, none(text));
        }
        let asker = Party::Peer(peer.clone());
        let (offers, reasons) = self.local_offers(&asker, vm, id, descriptor, None, false);
        let gathering = self.site.gatherings.get_mut(&id).expect("just kept");
        gathering.offers = offers.into_iter().map(|offer| (None, offer)).collect();
        gathering.reasons = reasons;
        let mut out_of_question = BTreeSet::from([peer.clone()]);
        // A delegate that is to be relieved is not asked, and neither is a second way to it.
        if let Some(Down::Edge(edge)) = self.site.state.vms.get(&vm).map(|vm| &vm.down) {
            out_of_question.insert(edge.peer.clone());
        }
        let mut peers = self.hosting_peers();
        peers.retain(|peer| !out_of_question.contains(peer));
        self.ask_peers(id, request.origin, peers, Some(peer), hops_left, limit);
    }

    /// Peers that may be asked to host.
    pub(crate) fn hosting_peers(&self) -> BTreeSet<PeerName> {
        let hosting = self.site.peers.iter().filter(|(_, peering)| peering.lets(Right::Host));
        hosting.map(|(peer, _)| peer.clone()).collect()
    }

    /// This site's word about a peer. One that is not known any more may do nothing new.
    pub(crate) fn peering(&self, peer: &PeerName) -> Peering {
        let known = self.site.peers.get(peer).cloned();
        known.unwrap_or_else(|| Peering { ending: Some(Time(0)), ..Peering::default() })
    }

    pub(crate) fn candidates(&self, gathering: &Gathering) -> Vec<Candidate> {
        let asker = match &gathering.asker {
            Asker::Journey(_) => Party::Here,
            Asker::Peer { peer, .. } | Asker::Answered { peer, .. } => Party::Peer(peer.clone()),
        };
        let ways = self.group_by_way(gathering.vm, &gathering.descriptor, &asker);
        let one = |(via, offer): &(Option<PeerName>, Offer)| Candidate {
            via: via.clone(),
            peering: via.as_ref().map(|via| self.peering(via)),
            price_milli: offer.terms.price_milli,
            class: offer.terms.class.clone(),
            country: offer.terms.country.clone(),
            distance: if via.is_some() { offer.distance.saturating_add(1) } else { 0 },
            runs: offer.terms.runs,
            group: ways.get(via).copied().unwrap_or_default(),
        };
        gathering.offers.iter().map(one).collect()
    }

    /// Sends a Migration request to every peer that policy lets it go to.
    pub(crate) fn ask_peers(
        &mut self,
        id: RequestId,
        origin: Origin,
        peers: BTreeSet<PeerName>,
        asker: Option<PeerName>,
        hops_left: u8,
        limit: Duration,
    ) {
        let descriptor = match &origin.op {
            Op::MigrationRequest { descriptor, .. } => descriptor.clone(),
            _ => return,
        };
        for to in peers {
            let peering = self.peering(&to);
            // Whoever may not stand in between is asked for places of its own.
            let further = peering.lets(Right::Intermediate);
            let hops_left = if further { hops_left } else { hops_left.min(1) };
            let input = Delegate {
                peer: asker.clone(),
                peering: asker.as_ref().map(|asker| self.peering(asker)),
                to: to.clone(),
                to_peering: peering,
                descriptor: descriptor.clone(),
                hops_left,
            };
            if let Verdict::Refuse(why) = self.world.policy().delegate(&input) {
                // Whoever asked need not know how many peers there are, or what they are called.
                let gathering = self.site.gatherings.get_mut(&id).expect("just made");
                for reason in why {
                    let reason = format!("not passed on: {reason}");
                    if !gathering.reasons.contains(&reason) {
                        gathering.reasons.push(reason);
                    }
                }
                continue;
            }
            let hop = Hop { hops_left, time_left: limit, ..Hop::default() };
            let request = Request { origin: origin.clone(), hop };
            let waiting = Waiting::Gather(id, to.clone());
            let call = self.send(&Party::Peer(to.clone()), request, waiting);
            let gathering = self.site.gatherings.get_mut(&id).expect("just made");
            gathering.awaiting.insert(call);
            gathering.asked.insert(to);
        }
        if self.site.gatherings[&id].awaiting.is_empty() {
            self.close_gathering(id);
        } else {
            self.arm_after(Timer::Collect(id), limit);
        }
    }

    pub(crate) fn gathered(
        &mut self,
        id: RequestId,
        peer: PeerName,
        call: CallId,
        answer: Result<Answer, CallError>,
    ) {
        let Some(gathering) = self.site.gatherings.get_mut(&id) else { return };
        gathering.awaiting.remove(&call);
        if matches!(gathering.asker, Asker::Answered { .. }) {
            return;
        }
        match answer {
            Ok(Answer::Offers { offers, reasons }) => {
                let verify = Verifier(self.world);
                let peering = self.site.peers.get(&peer);
                let between = peering.is_some_and(|peering| peering.lets(Right::Intermediate));
                let (vm, asked_for) = (gathering.vm, gathering.descriptor.digest());
                let is_sound = |offer: &Offer| {
                    let proposal = proposal(self.world, &peer, vm, asked_for, offer);
                    let near = between || offer.distance == 0;
                    near && offer.target.is_proven(&verify) && proposal.is_some()
                };
                let (sound, other): (Vec<Offer>, Vec<Offer>) =
                    offers.into_iter().take(model::limit::MAX_OFFERS).partition(is_sound);
                gathering.offers.extend(sound.into_iter().map(|offer| (Some(peer.clone()), offer)));
                if !other.is_empty() {
                    let text = "an offer is not signed as it stands, or has come through a site \
                                that may not pass any on";
                    gathering.reasons.push(text.to_owned());
                }
                gathering.add_reasons(reasons);
            }
            Ok(Answer::Refused { reasons }) => gathering.add_reasons(reasons),
            Ok(other) => gathering.reasons.push(format!("unexpected answer: {}", short(&other))),
            Err(CallError::Unreachable(_)) => {
                gathering.reasons.push("a site does not answer".to_owned());
            }
            Err(CallError::Garbled(_)) => {
                gathering.reasons.push("a site's answer could not be read".to_owned());
            }
        }
        if gathering.awaiting.is_empty() {
            self.close_gathering(id);
        }
    }

    /// All have answered, or the time is up.
    pub(crate) fn close_gathering(&mut self, id: RequestId) {
        self.disarm(&Timer::Collect(id));
        let Some(gathering) = self.site.gatherings.get(&id).cloned() else { return };
        match gathering.asker.clone() {
            Asker::Journey(operation) => {
                self.site.gatherings.get_mut(&id).expect("just seen").awaiting.clear();
                self.offers_are_in(operation, id, gathering);
            }
            Asker::Peer { peer, callers } => {
                let answer = self.expose(id, &peer, gathering);
                for caller in callers {
                    self.answer(caller, answer.clone());
                }
                let gathering = self.site.gatherings.get_mut(&id).expect("just seen");
                gathering.asker = Asker::Answered { peer, answer: Box::new(answer) };
                gathering.offers.clear();
                gathering.reasons.clear();
                self.arm_forgetting();
            }
            Asker::Answered { .. } => {}
        }
    }

    /// Re-labels what peers offered, so that they stay unknown, and shows what policy lets show.
    fn expose(&mut self, id: RequestId, peer: &PeerName, gathering: Gathering) -> Answer {
        // A policy hides offers, and can do no more.
        let shown = match gathering.offers.is_empty() {
            true => vec![],
            false => self.world.policy().expose(&Expose {
                peer: peer.clone(),
                peering: self.peering(peer),
                offers: self.candidates(&gathering),
            }),
        };
        let asked_for = gathering.descriptor.digest();
        let mut offers = Vec::new();
        for (at, (via, mut offer)) in gathering.offers.into_iter().enumerate() {
            if !shown.contains(&at) || offers.len() >= model::limit::MAX_OFFERS {
                if via.is_none() {
                    self.site.offers.remove(&offer.edge);
                }
                continue;
            }
            if let Some(via) = via {
                let vm = gathering.vm;
                // It may have been revoked since.
                let Some(below) = proposal(self.world, &via, vm, asked_for, &offer) else {
                    continue;
                };
                let asker = Party::Peer(peer.clone());
                let edge = EdgeHandle(self.random16());
                let (target, stands) =
                    self.target_for(peer, &gathering.descriptor, edge, offer.target);
                offer.target = target;
                let proposal = self.propose(&asker, vm, asked_for, edge, &offer.terms);
                let signature = proposal.as_ref().map(|proposal| proposal.provider);
                let made = OfferMade {
                    vm,
                    request: id,
                    asker,
                    descriptor: gathering.descriptor.clone(),
                    terms: offer.terms.clone(),
                    proposal,
                    at: OfferAt::Peer(Edge { peer: via, handle: offer.edge }, below, stands),
                    forget: self.kept_until(&offer.terms),
                };
                self.keep_offer(edge, made);
                (offer.edge, offer.proposal) = (edge, signature);
                offer.distance = offer.distance.saturating_add(1);
            }
            offers.push(offer);
        }
        let mut reasons = gathering.reasons;
        reasons.truncate(model::limit::MAX_REASONS);
        Answer::Offers { offers, reasons }
    }

    /// Passes a withdrawal on to whoever was asked on that request's behalf.
    pub(crate) fn withdraw_below(&mut self, vm: VmId, id: RequestId, from: &Party) {
        let Some(gathering) = self.site.gatherings.get(&id) else { return };
        let rightful = match (&gathering.asker, from) {
            (Asker::Answered { peer, .. } | Asker::Peer { peer, .. }, Party::Peer(from)) => {
                peer == from
            }
            (Asker::Journey(_), Party::Here) => true,
            _ => false,
        };
        if !rightful {
            return;
        }
        for peer in gathering.asked.clone() {
            let key = self.world.create_key();
            let origin = Origin { op: Op::Withdraw { vm, request: id }, key, sealed: None };
            let hop = Hop {
                hops_left: model::limit::MAX_HOPS,
                time_left: self.site.config.request_limit,
                ..Hop::default()
            };
            self.send(&Party::Peer(peer), Request { origin, hop }, Waiting::Nobody);
        }
    }
}
