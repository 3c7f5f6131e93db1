//! The Destination: offering, fetching, and becoming the owner.
//!
//! ```text
//!  (offer) ──initiate──▶ ADMITTED ──▶ RECEIVING ──all checked──▶ READY ──certificate──▶ OWNED ──▶ (guest)
//!                           │             │                        │
//!                           └─────────────┴──────▶ DROPPED ◀───────┤ the Source says ABORTED
//!                                                                  ├──▶ HANDED_BACK (cannot start)
//!                                                                  └──▶ LAPSED (nobody came)
//! ```
//!
//! Up to READY this site may drop what it has at any time. From READY on it keeps the record until
//! it is told; from OWNED on only it may run the VM. LAPSED has the record alone, and becomes
//! HANDED_BACK if the VM is released to it after all.

use model::decision::{Admit, Verdict};
use model::statement::{Cause, Fact};
use model::{
    Agreed, Bytes, Certificate, Descriptor, Digest, EdgeHandle, Epoch, FileId, HostName,
    MigrationId, Offer, PeerName, RequestId, Resources, Signed, Statement, Taken, Terms,
    TransferEnd, VmId,
};

use crate::effect::{Caller, Command};
use crate::message::{Answer, Op, Request, Told};
use crate::path::Verifier;
use crate::row::{LIBRARY, Party, Row};
use crate::site::{OfferAt, OfferMade, Step};
use crate::source::{FENCED_RETRY, forgotten};
use crate::state::{SourceStep, Stay, TargetRole, TargetStep, library};
use crate::timer::Timer;

/// The capacity class of every host, until classes are configured.
const CLASS: &str = "standard";

/// How long capacity stays taken while not one byte arrives: ample for a Source to save a large
/// guest's memory first.
pub(crate) const UNUSED_LIFE: std::time::Duration = std::time::Duration::from_secs(3600);

/// What a peer hears of a transfer that was dropped; the cause is this site's own business.
const GIVEN_UP: &str = "the Destination gave the transfer up; its operator sees why, and a usual \
                        reason is that no space is left";

/// How long a READY Destination waits before it dials a Source again that hung up.
const REDIAL: std::time::Duration = std::time::Duration::from_secs(10);

/// What a saved run state may take beside the guest's memory: device state, page headers.
const STATE_OVERHEAD: u64 = 64 << 20;

/// What a VM takes of what a peering allows.
fn wanted(descriptor: &Descriptor) -> Taken {
    Taken { vms: 1, resources: descriptor.resources, disk: descriptor.disk_capacity() }
}

impl Step<'_> {
    /// The offers that this site's own hosts make, or the reasons for none.
    ///
    /// A peer sees one per capacity class at most; a journey of this site sees every host.
    pub(crate) fn local_offers(
        &mut self,
        asker: &Party,
        vm: VmId,
        request: RequestId,
        descriptor: &Descriptor,
        leave: Option<&HostName>,
        storage: bool,
    ) -> (Vec<Offer>, Vec<String>) {
        let here = self.site.state.vms.get(&vm).and_then(|vm| vm.stay.as_ref());
        let current = here.map(|stay| stay.host.clone());
        let mut hosts: Vec<(HostName, Resources)> = self
            .site
            .state
            .hosts
            .iter()
            .filter(|(name, host)| {
                !host.draining && Some(*name) != leave && Some(*name) != current.as_ref()
            })
            .map(|(name, host)| (name.clone(), host.capacity.minus(&self.site.state.used(name))))
            .collect();
        hosts.sort_by_key(|(name, free)| {
            (std::cmp::Reverse((free.memory, free.cpus)), name.clone())
        });
        let mut reasons = Vec::new();
        if hosts.is_empty() {
            reasons.push("no host takes VMs here now".to_owned());
        }
        let peer = match asker {
            Party::Peer(peer) => Some(peer.clone()),
            Party::Here => None,
        };
        if let Some(peer) = &peer {
            let taken = self.taken_by(peer, vm);
            let beyond = self.peering(peer).beyond(&taken, &wanted(descriptor));
            if !beyond.is_empty() {
                return (vec![], beyond);
            }
        }
        let mut offers = Vec::new();
        for (host, free) in hosts {
            let price_milli = self.site.config.price_milli;
            match self.admits(asker, vm, descriptor, &host, free, price_milli) {
                Verdict::Allow => {
                    let offer = self.offer(asker, vm, request, descriptor, host, true);
                    offers.push(offer);
                    if peer.is_some() {
                        break;
                    }
                }
                Verdict::Refuse(why) => {
                    for reason in why {
                        if !reasons.contains(&reason) {
                            reasons.push(reason);
                        }
                    }
                }
            }
        }
        if storage && current.is_none_or(|host| host.as_str() != LIBRARY) {
            offers.push(self.offer(asker, vm, request, descriptor, library(), false));
        }
        (offers, reasons)
    }

    /// Whether policy lets the VM come to this host, where so much is free.
    fn admits(
        &self,
        asker: &Party,
        vm: VmId,
        descriptor: &Descriptor,
        host: &HostName,
        free: Resources,
        price_milli: u64,
    ) -> Verdict {
        let peer = match asker {
            Party::Peer(peer) => Some(peer.clone()),
            Party::Here => None,
        };
        self.world.policy().admit(&Admit {
            peering: peer.as_ref().map(|peer| self.peering(peer)),
            taken: peer.as_ref().map_or_else(Taken::default, |peer| self.taken_by(peer, vm)),
            peer,
            descriptor: descriptor.clone(),
            free,
            group: self.group_here(vm, descriptor, asker, host),
            price_milli,
            country: self.site.config.country.clone(),
            now: self.world.now(),
        })
    }

    /// What runs here, or is on its way here, for a peer; without this VM, which may only move.
    fn taken_by(&self, peer: &PeerName, except: VmId) -> Taken {
        let others = self.site.state.held_for(peer).into_iter().filter(|(vm, _)| *vm != except);
        others.fold(Taken::default(), |sum, (_, descriptor)| sum.plus(&wanted(descriptor)))
    }

    fn offer(
        &mut self,
        asker: &Party,
        vm: VmId,
        request: RequestId,
        descriptor: &Descriptor,
        host: HostName,
        runs: bool,
    ) -> Offer {
        let vm_key = self.world.create_key();
        let transfer_key = self.world.create_key();
        let proof = self.world.sign(&vm_key, TransferEnd::TYPE, &transfer_key.0);
        let token = model::Token(self.world.random());
        let uri = self.world.proxy_uri(&host);
        let target = TransferEnd { uri, token, relay: None, transfer_key, vm_key, proof };
        let terms = Terms {
            price_milli: self.site.config.price_milli,
            penalty_milli: self.site.config.penalty_milli,
            class: CLASS.to_owned(),
            country: self.site.config.country.clone(),
            expires: self.world.now().after(self.site.config.offer_life),
            runs,
        };
        let edge = EdgeHandle(self.random16());
        let proposal = self.propose(asker, vm, descriptor.digest(), edge, &terms);
        let signature = proposal.as_ref().map(|proposal| proposal.provider);
        let made = OfferMade {
            vm,
            request,
            asker: asker.clone(),
            descriptor: descriptor.clone(),
            terms: terms.clone(),
            proposal,
            at: OfferAt::Local { host, end: target.clone() },
            forget: self.kept_until(&terms),
        };
        self.keep_offer(edge, made);
        Offer { edge, target, terms, distance: 0, proposal: signature }
    }

    /// Until when an offer is kept in mind. What a peer says of its own offers is no bound.
    pub(crate) fn kept_until(&self, terms: &Terms) -> model::Time {
        terms.expires.min(self.world.now().after(self.site.config.offer_life))
    }

    pub(crate) fn keep_offer(&mut self, edge: EdgeHandle, made: OfferMade) {
        self.site.offers.insert(edge, made);
        self.arm_forgetting();
    }

    /// Drops the offers of a request, for whoever got them.
    pub(crate) fn withdraw(&mut self, vm: VmId, request: RequestId, from: &Party) {
        self.site.offers.retain(|o| !(o.vm == vm && o.request == request && o.asker == *from));
        self.withdraw_below(vm, request, from);
    }

    /// Initiate transfer (papers/003, III-C-2): takes the capacity, and fetches.
    pub(crate) fn admit(
        &mut self,
        caller: Caller,
        from: &Party,
        offer: &OfferMade,
        (host, end): (HostName, TransferEnd),
        request: Request,
        promised: Option<Agreed>,
    ) {
        let controller = request.origin.key;
        let Op::InitiateTransfer { vm, migration, chain, profile, boot, monitoring } =
            request.origin.op
        else {
            return self.answer(caller, Answer::Unknown);
        };
        let handle = request.hop.edge.expect("the offer was found by it");
        let gone = |reason: &str| Answer::Gone { reason: reason.to_owned() };
        let Some(source) = request.hop.source else {
            return self.answer(caller, gone("the request names no source"));
        };
        let owner = match chain.verify(vm, &Verifier(self.world)) {
            Ok(owner) => owner,
            Err(error) => return self.answer(caller, gone(&error.to_string())),
        };
        if owner.key != source.vm_key || !source.is_proven(&Verifier(self.world)) {
            return self.answer(caller, gone("the source is not the VM's owner"));
        }
        let source = match self.usable_source(migration, source, &end) {
            Ok(source) => source,
            Err(why) => return self.answer(caller, gone(why)),
        };
        let newest = self.site.state.vms.get(&vm).map(|vm| vm.chain.epoch());
        if newest.is_some_and(|epoch| epoch > owner.epoch) {
            return self.answer(caller, gone("the VM has changed its owner since"));
        }
        // A site that has forgotten how the VM left it learns so now; it would else hold on to its
        // old copy when it has been given the new one.
        let known = self.site.state.vms.get(&vm);
        let has_old = known.is_some_and(|vm| vm.stay.is_some() && vm.chain.epoch() < owner.epoch);
        if has_old && !self.superseded(vm, &chain) {
            return self.answer(caller, gone("this site has the VM by another chain"));
        }
        if !self.is_as_known(vm, &offer.descriptor) {
            return self.answer(caller, gone("the VM is described otherwise than when it came"));
        }
        // Offers hold nothing: others of this peer's may have been taken meanwhile.
        if let Party::Peer(peer) = from {
            let taken = self.taken_by(peer, vm);
            let beyond = self.peering(peer).beyond(&taken, &wanted(&offer.descriptor));
            if !beyond.is_empty() {
                return self.answer(caller, gone(&beyond.join("; ")));
            }
        }
        if Self::runs_guests(&host) {
            let Some(known) = self.site.state.hosts.get(&host).filter(|host| !host.draining) else {
                return self.answer(caller, gone("the capacity was given away"));
            };
            let free = known.capacity.minus(&self.site.state.used(&host));
            if !free.fits(&offer.descriptor.resources) {
                return self.answer(caller, gone("the capacity was given away"));
            }
            // Others of its group, or of a quota that policy has, may have come in the meantime.
            let price = offer.terms.price_milli;
            let verdict = self.admits(from, vm, &offer.descriptor, &host, free, price);
            if let Verdict::Refuse(why) = verdict {
                return self.answer(caller, gone(&why.join("; ")));
            }
            if let (Some(saved), Some(mine)) = (&profile, self.site.profiles.get(&host))
                && let Some(mismatch) = saved.mismatch(mine)
            {
                return self.answer(caller, gone(&mismatch));
            }
        }
        let expires = self.world.now().after(self.site.config.admit_life);
        self.persist(Row::Admitted {
            migration,
            vm,
            descriptor: self.renewed(offer.descriptor.clone(), &chain, &monitoring),
            asker: from.clone(),
            handle,
            host,
            vm_key: end.vm_key,
            transfer_key: end.transfer_key,
            controller,
            source,
            chain,
            profile,
            boot,
            expires,
            promised,
        });
        self.site.offers.remove(&handle);
        let unused = self.world.now().after(UNUSED_LIFE);
        self.arm(Timer::AdmitExpiry(migration), unused.min(expires));
        self.note(vm, "admitted; fetching its files");
        self.site.arriving.entry(migration).or_default().push(caller);
        self.pull(migration);
    }

    fn target_role(&self, migration: MigrationId) -> Option<(VmId, &TargetRole)> {
        let entry = self.site.state.migrations.get(&migration)?;
        Some((entry.vm, entry.target.as_ref()?))
    }

    pub(crate) fn pull(&mut self, migration: MigrationId) {
        let Some((vm, target)) = self.target_role(migration) else { return };
        let disks = &target.descriptor.disks;
        let mut files: Vec<FileId> = disks.iter().map(|disk| disk.file).collect();
        let mut budget: u64 = disks.iter().map(|disk| disk.capacity.0).sum();
        if target.profile.is_some() {
            files.push(FileId::STATE);
            budget += target.descriptor.resources.memory.0 + STATE_OVERHEAD;
        }
        files.push(FileId::HISTORY);
        budget += model::limit::MAX_HISTORY_BYTES;
        if target.step >= TargetStep::Ready {
            // All is here. The certificate may come at any moment, and the guest with it: nothing
            // may be written to its files any more.
            files.clear();
            budget = 0;
        }
        let command = Command::Pull {
            migration,
            vm,
            source: Box::new(target.source.clone()),
            key: target.transfer_key,
            host: target.host.clone(),
            epoch: target.epoch(),
            files,
            budget: Bytes(budget),
        };
        self.command(command);
    }

    /// Dials again; a site that has accepted has said so long enough, and hangs up.
    pub(crate) fn dial_again(&mut self, migration: MigrationId) {
        let Some((_, target)) = self.target_role(migration) else { return };
        match target.step {
            TargetStep::Admitted | TargetStep::Receiving | TargetStep::Ready => {
                self.pull(migration);
            }
            TargetStep::Lapsed
            | TargetStep::Owned
            | TargetStep::HandedBack
            | TargetStep::Dropped => {
                self.command(Command::Close { migration, source: false });
            }
        }
    }

    /// A request for a migration that this site has admitted.
    pub(crate) fn at_target(&mut self, caller: Caller, request: Request) {
        let migration = request.origin.op.migration().expect("these operations have one");
        let (_, target) = self.target_role(migration).expect("the caller found it");
        match request.origin.op {
            // A certificate proves itself, whoever brings it.
            Op::Deliver { certificate, .. } => self.accept(migration, certificate, Some(caller)),
            _ if target.controller != request.origin.key => self.answer(caller, Answer::Unknown),
            Op::InitiateTransfer { .. } => match (target.step, &target.ready) {
                (TargetStep::Dropped | TargetStep::Lapsed, _) => {
                    let reason = GIVEN_UP.to_owned();
                    self.answer(caller, Answer::Gone { reason });
                }
                (_, Some((ready, _, _, size, wire))) => {
                    let answer = Answer::Arrived { ready: ready.clone(), size: *size, wire: *wire };
                    self.answer(caller, answer);
                }
                (_, None) => {
                    self.site.arriving.entry(migration).or_default().push(caller);
                    self.pull(migration);
                }
            },
            _ => self.answer(caller, Answer::Unknown),
        }
    }

    pub(crate) fn receiving(&mut self, migration: MigrationId) {
        let step = self.target_role(migration).map(|(_, target)| target.step);
        if step == Some(TargetStep::Admitted) {
            self.persist(Row::Receiving { migration });
        }
    }

    pub(crate) fn received(
        &mut self,
        migration: MigrationId,
        digest: Digest,
        size: Bytes,
        wire: Bytes,
        has_state: bool,
    ) {
        let Some((vm, target)) = self.target_role(migration) else { return };
        match target.step {
            TargetStep::Admitted | TargetStep::Receiving => {}
            // The same content, found again after a restart.
            _ => return,
        }
        if has_state && target.profile.is_none() {
            return self.drop_target(migration, "a run state came that was not announced");
        }
        let key = target.vm_key;
        let statement = self.seal(key, &Statement { vm, migration, fact: Fact::Ready { digest } });
        let row =
            Row::Ready { migration, statement: statement.clone(), digest, has_state, size, wire };
        self.persist(row);
        self.disarm(&Timer::AdmitExpiry(migration));
        self.arm_lapse(migration);
        self.note(vm, format!("all {size} are here and checked, {wire} on the wire"));
        for caller in self.site.arriving.remove(&migration).unwrap_or_default() {
            self.answer(caller, Answer::Arrived { ready: statement.clone(), size, wire });
        }
    }

    /// The transfer cannot go on: the Controller hears it, and decides.
    pub(crate) fn transfer_failed(&mut self, migration: MigrationId, reason: &str) {
        let step = self.target_role(migration).map(|(_, target)| target.step);
        match step {
            Some(TargetStep::Admitted | TargetStep::Receiving) => {
                self.drop_target(migration, reason);
            }
            // The record stays; the certificate may come by the path, or after the next dial.
            Some(TargetStep::Ready) => {
                self.command(Command::Close { migration, source: false });
                self.arm_after(Timer::Pull(migration), REDIAL);
            }
            // The Source has heard all it must and hung up, or will hear it by the path.
            Some(_) => self.command(Command::Close { migration, source: false }),
            None => {}
        }
    }

    pub(crate) fn admit_expired(&mut self, migration: MigrationId) {
        let vm = self.target_role(migration).map(|(vm, _)| vm);
        if vm.is_some_and(|vm| self.site.state.held.contains(&vm)) {
            // It may have been here in what was forgotten, and its files be the VM's.
            return self.arm_after(Timer::AdmitExpiry(migration), FENCED_RETRY);
        }
        let role = self.target_role(migration).map(|(_, target)| (target.step, target.expires));
        match role {
            // Bytes arrive: it has all of its time.
            Some((TargetStep::Receiving, expires)) if expires > self.world.now() => {
                self.arm(Timer::AdmitExpiry(migration), expires);
            }
            _ => self.transfer_failed(migration, "nothing arrived in time"),
        }
    }

    /// The Source keeps the VM: what arrived is of no use.
    pub(crate) fn source_aborted(&mut self, migration: MigrationId, statement: &Signed<Statement>) {
        let Some((vm, target)) = self.target_role(migration) else { return };
        let Ok(said) = statement.open(&target.source.vm_key, &Verifier(self.world)) else { return };
        let aborted = said == Statement { vm, migration, fact: Fact::Aborted };
        if aborted && target.step.is_open() {
            self.drop_target(migration, "the Source kept the VM");
        }
    }

    pub(crate) fn drop_target(&mut self, migration: MigrationId, reason: &str) {
        let Some((vm, target)) = self.target_role(migration) else { return };
        let (host, epoch, step) = (target.host.clone(), target.epoch(), target.step);
        self.persist(Row::Dropped { migration, reason: reason.to_owned() });
        self.disarm(&Timer::AdmitExpiry(migration));
        self.disarm(&Timer::Lapse(migration));
        self.note(vm, format!("transfer given up: {reason}"));
        self.command(Command::Close { migration, source: false });
        self.site.accepting.remove(&migration);
        if step == TargetStep::Ready && self.is_free(&host, vm, epoch) {
            // Its guest may have been made for a certificate that is not known any more: this site
            // ended before it was durable, and the Source has forgotten it. It never executed.
            self.command(Command::Kill(host.clone(), vm, epoch));
        }
        self.purge_files(host, vm, epoch);
        for caller in self.site.arriving.remove(&migration).unwrap_or_default() {
            self.answer_failed(caller, reason, GIVEN_UP);
        }
    }

    /// Arms what ends the keeping of files that nobody comes for.
    pub(crate) fn arm_lapse(&mut self, migration: MigrationId) {
        let Some((_, target)) = self.target_role(migration) else { return };
        let at = target.expires.after(self.site.config.ready_life);
        self.arm(Timer::Lapse(migration), at);
    }

    /// The Source has not said for so long whether it released the VM that its files are kept no
    /// more. The Source still has them: it keeps its frozen copy until it has a receipt.
    pub(crate) fn lapse(&mut self, migration: MigrationId) {
        let Some((vm, target)) = self.target_role(migration) else { return };
        let is_decided = self.site.accepting.contains_key(&migration);
        if target.step != TargetStep::Ready || is_decided {
            return;
        }
        if self.site.state.held.contains(&vm) {
            // What was forgotten may have used them; the peers will tell.
            return self.arm_after(Timer::Lapse(migration), UNUSED_LIFE);
        }
        let (host, epoch) = (target.host.clone(), target.epoch());
        self.persist(Row::Lapsed { migration });
        // It dials no more: the places of a proxy are few. Who has the certificate brings it.
        self.disarm(&Timer::Pull(migration));
        self.command(Command::Close { migration, source: false });
        self.note(
            vm,
            "ALARM: the Source has not said for too long whether the VM is this site's; what \
             arrived is deleted, and the VM goes back if it was released after all",
        );
        if self.is_free(&host, vm, epoch) {
            // As when it is dropped, below.
            self.command(Command::Kill(host.clone(), vm, epoch));
        }
        self.purge_files(host, vm, epoch);
    }

    /// Deletes the files of a stay that ended, or never began, unless a later one has its place.
    pub(crate) fn purge_files(&mut self, host: HostName, vm: VmId, epoch: Epoch) {
        if self.is_free(&host, vm, epoch) {
            self.command(Command::Purge(host, vm, epoch));
        }
    }

    /// Whether nothing of this VM lives, arrives or is kept at this place. An epoch's number comes
    /// again when a migration came to nothing, so that a place may be in use by a later one.
    fn is_free(&self, host: &HostName, vm: VmId, epoch: Epoch) -> bool {
        let here = |stay: &Stay| stay.host == *host && stay.epoch == epoch;
        let lives = self.site.state.vms.get(&vm).and_then(|vm| vm.stay.as_ref()).is_some_and(here);
        let used = self.site.state.migrations_of(vm).any(|(_, migration)| {
            let arrives = migration.target.as_ref().is_some_and(|target| {
                target.step.arrives() && target.host == *host && target.epoch() == epoch
            });
            let frozen = migration.source.as_ref().is_some_and(|source| {
                matches!(source.step, SourceStep::Released | SourceStep::Receipted)
                    && here(&source.copy)
            });
            arrives || frozen
        });
        !lives && !used
    }

    /// The certificate came, over the session or by the path.
    pub(crate) fn accept(
        &mut self,
        migration: MigrationId,
        certificate: Signed<Certificate>,
        caller: Option<Caller>,
    ) {
        let Some((vm, target)) = self.target_role(migration) else {
            if let Some(caller) = caller {
                self.answer(caller, Answer::Unknown);
            }
            return;
        };
        match target.step {
            TargetStep::Ready | TargetStep::Lapsed if self.site.state.held.contains(&vm) => {
                // It may have been here and gone on in what was forgotten.
                return caller.into_iter().for_each(|caller| self.answer(caller, forgotten()));
            }
            TargetStep::Ready | TargetStep::Lapsed => {}
            TargetStep::Owned | TargetStep::HandedBack => {
                let answer = match (&target.owned, target.given_back()) {
                    (Some(statement), _) => Answer::Owned { statement: statement.clone() },
                    (None, back) => Answer::HandedBack {
                        certificate: back.cloned().expect("HANDED_BACK holds its certificate"),
                    },
                };
                if caller.is_none() {
                    self.tell_accepted(migration);
                }
                return caller.into_iter().for_each(|caller| self.answer(caller, answer.clone()));
            }
            _ => {
                let reason = "not everything has arrived here".to_owned();
                let answer = Answer::Failed { reason };
                return caller.into_iter().for_each(|caller| self.answer(caller, answer.clone()));
            }
        }
        if let Err(reason) = self.check_release(vm, migration, target, &certificate) {
            let answer = Answer::Failed { reason };
            return caller.into_iter().for_each(|caller| self.answer(caller, answer.clone()));
        }
        let has_lapsed = target.step == TargetStep::Lapsed;
        let runs = Self::runs_guests(&target.host);
        let has_state = target.ready.as_ref().is_some_and(|ready| ready.2);
        let launch = (runs && (target.boot || has_state)).then(|| Command::Launch {
            vm,
            epoch: target.epoch(),
            host: target.host.clone(),
            descriptor: target.descriptor.clone(),
            state: target.profile.clone().filter(|_| has_state),
        });
        if let Some(caller) = caller {
            self.site.delivering.entry(migration).or_default().push(caller);
        }
        if self.site.accepting.insert(migration, certificate).is_some() {
            return; // its guest is being launched
        }
        match launch {
            _ if has_lapsed => self.hand_back(migration, "its files were kept no longer"),
            Some(launch) => self.launch(launch),
            None => self.own(migration),
        }
    }

    fn check_release(
        &self,
        vm: VmId,
        migration: MigrationId,
        target: &TargetRole,
        certificate: &Signed<Certificate>,
    ) -> Result<(), String> {
        let chain = target.chain.extended(certificate.clone());
        let owner = chain.verify(vm, &Verifier(self.world)).map_err(|e| e.to_string())?;
        let digest = target.ready.as_ref().expect("READY holds its digest").1;
        let release = Cause::Release { migration, digest };
        if owner.key != target.vm_key || chain.newest().cause != release {
            return Err("the certificate does not give this site what arrived here".to_owned());
        }
        Ok(())
    }

    /// The guest is there and has executed nothing, or none is wanted: the VM is this site's.
    pub(crate) fn own(&mut self, migration: MigrationId) {
        let Some(certificate) = self.site.accepting.remove(&migration) else { return };
        let Some((vm, target)) = self.target_role(migration) else { return };
        let (key, epoch) = (target.vm_key, target.epoch());
        let has_state = target.ready.as_ref().is_some_and(|ready| ready.2);
        let runs = Self::runs_guests(&target.host) && (target.boot || has_state);
        let statement = self.seal(key, &Statement { vm, migration, fact: Fact::Owned { epoch } });
        self.persist(Row::Owned { migration, certificate, statement });
        self.disarm(&Timer::Lapse(migration));
        self.note(vm, format!("this site owns it; epoch {epoch}"));
        if runs {
            self.let_run(vm);
        }
        self.tell_accepted(migration);
        self.arm_after(Timer::Pull(migration), self.site.config.purge_after);
        self.settle_delivery(migration);
        self.report_up(vm);
    }

    /// It cannot be started here, and nothing of it has executed: back it goes.
    pub(crate) fn hand_back(&mut self, migration: MigrationId, reason: &str) {
        let Some(certificate) = self.site.accepting.remove(&migration) else { return };
        let Some((vm, target)) = self.target_role(migration) else { return };
        let back = Certificate {
            vm,
            epoch: target.epoch().next(),
            owner: target.source.vm_key,
            cause: Cause::Handback { migration },
        };
        let (key, host, epoch) = (target.vm_key, target.host.clone(), target.epoch());
        let back = self.seal(key, &back);
        self.persist(Row::HandedBack { migration, certificate, back });
        self.disarm(&Timer::Lapse(migration));
        self.note(vm, format!("handed back, it cannot be started here: {reason}"));
        self.tell_accepted(migration);
        self.arm_after(Timer::Pull(migration), self.site.config.purge_after);
        self.settle_delivery(migration);
        self.purge_files(host, vm, epoch);
    }

    /// Says over the session what became of the certificate.
    pub(crate) fn tell_accepted(&mut self, migration: MigrationId) {
        let Some((_, target)) = self.target_role(migration) else { return };
        let told = match (&target.owned, target.given_back()) {
            (Some(statement), _) => Told::Owned(statement.clone()),
            (None, Some(back)) => Told::HandedBack(back.clone()),
            (None, None) => return,
        };
        self.command(Command::Tell { migration, source: false, told });
    }

    fn settle_delivery(&mut self, migration: MigrationId) {
        let Some((_, target)) = self.target_role(migration) else { return };
        let answer = match (&target.owned, target.given_back()) {
            (Some(statement), _) => Answer::Owned { statement: statement.clone() },
            (None, Some(back)) => Answer::HandedBack { certificate: back.clone() },
            (None, None) => return,
        };
        for caller in self.site.delivering.remove(&migration).unwrap_or_default() {
            self.answer(caller, answer.clone());
        }
    }
}
