//! The Source: making ready, deciding, and keeping the frozen copy.
//!
//! ```text
//!  OFFERED ──session──▶ INITIATED ──guest quiet──▶ QUIESCED ──all read──▶ SENT
//!     │                     │                          │                   │ READY = SENT
//!     └─────────────────────┴──────────────────────────┴──▶ ABORTED        ▼
//!                                                        (runs on)      RELEASED ──▶ RECEIPTED ──▶ TOMBSTONE
//!                                                                          └──▶ RETURNED (runs on)
//! ```
//!
//! One failure arm, [`Step::abort`]: up to SENT the VM runs on here. From RELEASED on nothing here
//! can make it run again but a certificate.

use model::key::Verify;
use model::statement::{Cause, Fact};
use model::{
    Certificate, Epoch, FileId, HostName, MigrationId, PowerState, PublicKey, Signed, Statement,
    Time, TransferEnd, VmId,
};

use crate::effect::{Caller, Command, GuestEvent, TransferEvent};
use crate::message::{Action, Answer, Op, Outcome, Request, Told};
use crate::path::Verifier;
use crate::row::{Down, Edge, Mode, Party, Row};
use crate::site::{GivenUp, Step};
use crate::state::{SourceRole, SourceStep, Stay, TargetStep};
use crate::target::UNUSED_LIFE;
use crate::timer::Timer;

/// A guest that was to run and whose hypervisor refused is told again after this.
const LET_RUN_AGAIN: std::time::Duration = std::time::Duration::from_secs(2);
/// One that could not be made, or not be parked, is tried again after this.
const START_AGAIN: std::time::Duration = std::time::Duration::from_secs(60);
/// How long a fenced Source waits before it looks again whether it may abort.
pub(crate) const FENCED_RETRY: std::time::Duration = std::time::Duration::from_secs(10);
/// How long another Controller is told to wait while a migration of the VM is open.
pub(crate) const CONFLICT_RETRY: std::time::Duration = std::time::Duration::from_secs(5);

impl Step<'_> {
    /// A request that reached the site that has the VM, or had it.
    ///
    /// `came` is the edge that it came along; none if this very site asks.
    pub(crate) fn at_source(&mut self, caller: Caller, came: Option<Edge>, request: Request) {
        let controller = request.origin.key;
        match request.origin.op {
            Op::ForcedMigration { vm, migration, target_vm_key, target_transfer_key, mode } => {
                let target = (target_vm_key, target_transfer_key, request.hop.target);
                self.prepare(caller, vm, migration, controller, target, mode);
            }
            Op::TransferVerification { vm, migration, .. }
                if self.site.state.held.contains(&vm) && self.source_role(migration).is_none() =>
            {
                // It may have been released by what was forgotten.
                self.answer(caller, forgotten());
            }
            Op::TransferVerification { vm, migration, ready: None }
                if !self.site.state.migrations.contains_key(&migration) =>
            {
                let from = came.map_or(Party::Here, |edge| Party::Peer(edge.peer));
                self.give_up_unheard(from, vm, migration);
                self.answer(caller, Answer::Unknown);
            }
            Op::TransferVerification { vm, migration, ready } => {
                self.verify(caller, vm, migration, controller, ready);
            }
            Op::Handback { migration, certificate, .. } => {
                let answer = match self.take_back(migration, &certificate) {
                    Ok(()) => Answer::Done,
                    Err(reason) => Answer::Failed { reason },
                };
                self.answer(caller, answer);
            }
            Op::Retire { vm, migration, owned } => {
                self.receipt(migration, &owned);
                let step = self.source_role(migration).map(|(_, source)| source.step);
                if step.is_some_and(|step| step < SourceStep::Receipted) {
                    let reason = "the Destination's statement does not hold".to_owned();
                    return self.answer(caller, Answer::Failed { reason });
                }
                self.retired(migration, vm, came);
                self.answer(caller, Answer::Done);
            }
            Op::Control { vm, action } => self.control(caller, vm, action),
            Op::Monitor { vm, section } => self.monitor(caller, vm, &section),
            Op::Superseded { vm, chain } => {
                if !self.is_news(vm, &chain) {
                    let reason = "the chain of certificates does not hold".to_owned();
                    return self.answer(caller, Answer::Failed { reason });
                }
                self.superseded(vm, &chain);
                self.answer(caller, Answer::Done);
            }
            _ => self.answer(caller, Answer::Unknown),
        }
    }

    fn prepare(
        &mut self,
        caller: Caller,
        vm: VmId,
        migration: MigrationId,
        controller: PublicKey,
        (target_vm_key, target_transfer_key, target): (PublicKey, PublicKey, Option<TransferEnd>),
        mode: Mode,
    ) {
        let keys = [target_vm_key, target_transfer_key];
        if !keys.iter().all(|key| Verifier(self.world).is_sound(key)) {
            let reason = "a key of the Destination is no key that can sign".to_owned();
            return self.answer(caller, Answer::Failed { reason });
        }
        let known = self.site.state.migrations.get(&migration).and_then(|m| m.source.clone());
        if let Some(source) = &known {
            if source.controller != controller {
                return self.answer(caller, Answer::Unknown);
            }
            // Decided: a Controller that lost its memory goes on from the outcome.
            let decided = match (&source.certificate, &source.aborted) {
                (Some(certificate), _) => Some(Outcome::Released(certificate.clone())),
                (None, Some(statement)) => Some(Outcome::Aborted(statement.clone())),
                (None, None) => None,
            };
            if let Some(outcome) = decided {
                return self.answer(caller, Answer::Verified(outcome));
            }
        }
        let over = self.site.state.migrations.get(&migration).is_some_and(|one| {
            let came = one.target.as_ref().is_some_and(|target| !target.step.is_open());
            one.source.is_none() && came
        });
        if over {
            let reason = "this migration led here, and is over".to_owned();
            return self.answer(caller, Answer::Failed { reason });
        }
        let given_up = self.site.given_up.get(&migration);
        if given_up.is_some_and(|given_up| given_up.vm == vm && given_up.forget > self.world.now())
        {
            let reason = "its Controller has given this migration up".to_owned();
            return self.answer(caller, Answer::Failed { reason });
        }
        if self.site.state.open_source(vm).is_some_and(|(open, _)| open != migration) {
            let reason = "another migration of this VM is under way".to_owned();
            return self.answer(caller, Answer::Conflict { reason, retry_after: CONFLICT_RETRY });
        }
        let Some(entry) = self.site.state.vms.get(&vm) else {
            return self.answer(caller, Answer::Unknown);
        };
        if entry.destroyed {
            return self.answer(caller, Answer::Gone { reason: "the VM was destroyed".to_owned() });
        }
        let Some(stay) = entry.stay.clone() else {
            let reason = "this site does not have the VM now; ask again".to_owned();
            return self.answer(caller, Answer::Conflict { reason, retry_after: CONFLICT_RETRY });
        };
        if self.site.state.held.contains(&vm) {
            let reason = "this site is finding out what it has; ask again".to_owned();
            return self.answer(caller, Answer::Conflict { reason, retry_after: CONFLICT_RETRY });
        }
        let (chain, monitoring) = (entry.chain.clone(), entry.descriptor.monitoring.clone());
        let bound = known.as_ref().filter(|source| {
            source.step > SourceStep::Offered
                || (source.target_vm_key, source.target_transfer_key)
                    == (target_vm_key, target_transfer_key)
        });
        if let Some(source) = bound
            && source.target_vm_key != target_vm_key
        {
            let reason = "this migration already has another Destination".to_owned();
            return self.answer(caller, Answer::Failed { reason });
        }
        let token = self.world.source_token(migration);
        let uri = self.world.proxy_uri(&stay.host);
        // Where nobody dials it, it dials; a relay may stand in the place of a Destination that
        // nobody can dial either.
        let dial = target.filter(|target| {
            let is_chosen = (target.vm_key, target.transfer_key)
                == (target_vm_key, target_transfer_key)
                && target.is_proven(&Verifier(self.world));
            is_chosen && uri.is_dial_out() && !target.uri.is_dial_out()
        });
        let transfer_key = match &bound {
            Some(source) => source.transfer_key,
            None => {
                let transfer_key = self.world.create_key();
                let deadline = self.world.now().after(self.site.config.source_patience);
                self.persist(Row::Offered {
                    migration,
                    vm,
                    controller,
                    target_vm_key,
                    target_transfer_key,
                    transfer_key,
                    token: token.hash(),
                    hint: token.hint(),
                    mode,
                    deadline,
                    dial,
                });
                self.arm_offered(migration, deadline);
                transfer_key
            }
        };
        self.serve(migration);
        let proof = self.world.sign(&stay.key, TransferEnd::TYPE, &transfer_key.0);
        let relay = None;
        let source = TransferEnd { uri, token, relay, transfer_key, vm_key: stay.key, proof };
        let will_move = matches!(mode, Mode::Hibernate) || stay.power == PowerState::Suspended;
        let ran = stay.power != PowerState::Defined || stay.starting || stay.wanted;
        let profile = self.profile_of(&stay).filter(|_| will_move && ran);
        let active = known.filter(|s| s.step > SourceStep::Offered).map_or(ran, |s| s.active);
        self.answer(caller, Answer::Prepared { source, chain, active, profile, monitoring });
    }

    /// Nobody may ever come: the Controller may have gone on, and this be its late word.
    pub(crate) fn arm_offered(&mut self, migration: MigrationId, deadline: Time) {
        let unused = self.world.now().after(UNUSED_LIFE);
        self.arm(Timer::SourceDeadline(migration), unused.min(deadline));
    }

    /// A migration is given up that never came here. It may still be on its way, and would have
    /// this site wait for a Destination that nobody sends. Nothing is signed: this is not durable.
    fn give_up_unheard(&mut self, from: Party, vm: VmId, migration: MigrationId) {
        let now = self.world.now();
        self.site.given_up.retain(|given_up| given_up.forget > now);
        let forget = now.after(UNUSED_LIFE);
        self.site.given_up.insert(migration, GivenUp { from, vm, forget });
    }

    pub(crate) fn serve(&mut self, migration: MigrationId) {
        let Some((vm, source)) = self.source_role(migration) else { return };
        let command = Command::Serve {
            migration,
            vm,
            token: source.token,
            hint: source.hint,
            key: source.transfer_key,
            peer_key: source.target_transfer_key,
            dial: source.dial.clone().map(Box::new),
        };
        self.command(command);
    }

    fn source_role(&self, migration: MigrationId) -> Option<(VmId, &SourceRole)> {
        let entry = self.site.state.migrations.get(&migration)?;
        Some((entry.vm, entry.source.as_ref()?))
    }

    /// The transfer's events at this end.
    pub(crate) fn on_transfer(&mut self, migration: MigrationId, event: TransferEvent) {
        match event {
            TransferEvent::Opened => self.opened(migration),
            TransferEvent::Sent { digest } => {
                let role =
                    self.source_role(migration).map(|(_, source)| (source.step, source.sent));
                match role {
                    Some((SourceStep::Quiesced, _)) => {
                        self.persist(Row::Sent { migration, digest })
                    }
                    Some((SourceStep::Sent, sent)) if sent != Some(digest) => {
                        self.abort(migration, "the files changed while they were read");
                    }
                    _ => {}
                }
            }
            TransferEvent::Receiving => self.receiving(migration),
            TransferEvent::Received { digest, size, wire, has_state } => {
                self.received(migration, digest, size, wire, has_state);
            }
            TransferEvent::Told { source: true, told } => match told {
                Told::Owned(owned) => self.receipt(migration, &owned),
                Told::HandedBack(certificate) => {
                    // What does not hold is not acted upon; the path brings it too.
                    let _ = self.take_back(migration, &certificate);
                }
                Told::Released(_) | Told::Aborted(_) => {}
            },
            TransferEvent::Told { source: false, told } => match told {
                Told::Released(certificate) => self.accept(migration, certificate, None),
                Told::Aborted(statement) => self.source_aborted(migration, &statement),
                Told::Owned(_) | Told::HandedBack(_) => {}
            },
            TransferEvent::Failed { source: true, reason } => {
                self.abort(migration, &format!("the transfer failed: {reason}"));
            }
            TransferEvent::Failed { source: false, reason } => {
                self.transfer_failed(migration, &reason);
            }
        }
    }

    /// The Destination's proxy is there: only now is a running guest disturbed.
    fn opened(&mut self, migration: MigrationId) {
        let Some((vm, source)) = self.source_role(migration) else { return };
        match source.step {
            SourceStep::Offered => {}
            // A session came back after a cut.
            SourceStep::Initiated | SourceStep::Quiesced | SourceStep::Sent => return,
            _ => return self.tell_outcome(migration),
        }
        let Some(stay) = self.stay_of(vm) else { return };
        let active = stay.power == PowerState::Active || stay.starting || stay.wanted;
        let deadline = source.deadline;
        self.persist(Row::Initiated { migration, active });
        self.arm(Timer::SourceDeadline(migration), deadline);
        self.quiesce(migration);
    }

    fn stay_of(&self, vm: VmId) -> Option<Stay> {
        self.site.state.vms.get(&vm)?.stay.clone()
    }

    /// Quiets the guest, or goes on if it is quiet.
    pub(crate) fn quiesce(&mut self, migration: MigrationId) {
        let Some((vm, source)) = self.source_role(migration) else { return };
        let mode = source.mode;
        let Some(stay) = self.stay_of(vm) else { return };
        if is_quiet(&stay) {
            self.persist(Row::Quiesced { migration });
            return self.provide(migration);
        }
        self.note(
            vm,
            match mode {
                Mode::Hibernate => "saving its run state to move",
                Mode::Restart => "shutting down to move",
            },
        );
        self.quiet(match mode {
            Mode::Hibernate => Command::Hibernate(stay.host, vm, stay.epoch),
            Mode::Restart => Command::ShutDown(stay.host, vm, stay.epoch),
        });
    }

    /// Lets the proxy read the files of the quiet guest.
    pub(crate) fn provide(&mut self, migration: MigrationId) {
        let Some((vm, source)) = self.source_role(migration) else { return };
        let copy = source.copy.clone();
        let Some(entry) = self.site.state.vms.get(&vm) else { return };
        let mut files: Vec<FileId> = entry.descriptor.disks.iter().map(|disk| disk.file).collect();
        if copy.power == PowerState::Suspended {
            files.push(FileId::STATE);
        }
        files.push(FileId::HISTORY);
        files.sort_unstable();
        self.command(Command::Provide { migration, host: copy.host, vm, epoch: copy.epoch, files });
    }

    /// Transfer verification (papers/003, III-C-3), and the commit.
    fn verify(
        &mut self,
        caller: Caller,
        vm: VmId,
        migration: MigrationId,
        controller: PublicKey,
        ready: Option<Signed<Statement>>,
    ) {
        let role = self.source_role(migration).filter(|(known, _)| *known == vm);
        let Some((_, source)) = role.filter(|(_, source)| source.controller == controller) else {
            return self.answer(caller, Answer::Unknown);
        };
        let source = source.clone();
        let outcome = match (source.step, ready) {
            (SourceStep::Aborted, _) => {
                Outcome::Aborted(source.aborted.expect("ABORTED holds its statement"))
            }
            (step, _) if step >= SourceStep::Released => {
                Outcome::Released(source.certificate.expect("RELEASED holds its certificate"))
            }
            (_, None) => {
                self.abort(migration, "the Controller gave this attempt up");
                let role = self.source_role(migration);
                let Some(statement) = role.and_then(|(_, source)| source.aborted.clone()) else {
                    // Fenced: what was decided before it forgot is not known here yet.
                    return self.answer(caller, forgotten());
                };
                Outcome::Aborted(statement)
            }
            (SourceStep::Sent, Some(ready)) => self.commit(vm, migration, &source, &ready),
            (_, Some(_)) => {
                Outcome::Open { reason: "the Source has not read everything yet".to_owned() }
            }
        };
        self.answer(caller, Answer::Verified(outcome));
    }

    /// Decides. SENT must equal READY, and READY must be the Destination's own.
    fn commit(
        &mut self,
        vm: VmId,
        migration: MigrationId,
        source: &SourceRole,
        ready: &Signed<Statement>,
    ) -> Outcome {
        if self.site.state.held.contains(&vm) {
            return Outcome::Open { reason: "the Source is finding out what it has".to_owned() };
        }
        let sent = source.sent.expect("SENT holds its digest");
        let Ok(statement) = ready.open(&source.target_vm_key, &Verifier(self.world)) else {
            return Outcome::Open { reason: "READY is not signed by the Destination".to_owned() };
        };
        if statement.vm != vm || statement.migration != migration {
            return Outcome::Open { reason: "READY is for another migration".to_owned() };
        }
        if statement.fact != (Fact::Ready { digest: sent }) {
            return Outcome::Differs { sent };
        }
        let certificate = Certificate {
            vm,
            epoch: self.site.state.vms[&vm].chain.epoch().next(),
            owner: source.target_vm_key,
            cause: Cause::Release { migration, digest: sent },
        };
        let certificate = self.seal(source.copy.key, &certificate);
        self.persist(Row::Released { migration, certificate: certificate.clone() });
        self.disarm(&Timer::SourceDeadline(migration));
        self.note(vm, "released to the Destination");
        self.tell_outcome(migration);
        Outcome::Released(certificate)
    }

    /// Says the outcome over the session; the proxy keeps it until the other end has it.
    pub(crate) fn tell_outcome(&mut self, migration: MigrationId) {
        let Some((_, source)) = self.source_role(migration) else { return };
        let told = match (&source.certificate, &source.aborted) {
            (Some(certificate), _) => Told::Released(certificate.clone()),
            (None, Some(statement)) => Told::Aborted(statement.clone()),
            (None, None) => return,
        };
        self.command(Command::Tell { migration, source: true, told });
    }

    /// Says that nothing was released, to a Destination that may dial late; after a while no more.
    pub(crate) fn tell_aborted(&mut self, migration: MigrationId) {
        let Some((_, source)) = self.source_role(migration) else { return };
        let until = source.deadline.after(self.site.config.purge_after);
        self.arm(Timer::Purge(migration), until);
        self.tell_outcome(migration);
    }

    /// The failure arm: nothing is released, the VM stays, and its guest goes on as it was.
    pub(crate) fn abort(&mut self, migration: MigrationId, reason: &str) {
        let Some((vm, source)) = self.source_role(migration) else { return };
        if source.step >= SourceStep::Released {
            return;
        }
        if self.site.state.held.contains(&vm) {
            // It may have been released in what was forgotten: nothing may be said before that is clear.
            return self.arm_after(Timer::SourceDeadline(migration), FENCED_RETRY);
        }
        let Some((_, source)) = self.source_role(migration) else { return };
        let (active, key, step) = (source.active, source.copy.key, source.step);
        let statement = self.seal(key, &Statement { vm, migration, fact: Fact::Aborted });
        self.persist(Row::Aborted { migration, statement, reason: reason.to_owned() });
        self.disarm(&Timer::SourceDeadline(migration));
        self.note(vm, format!("migration aborted, the VM stays here: {reason}"));
        self.tell_aborted(migration);
        // While it is still being quieted, the end of that decides: see `stopped`.
        if step > SourceStep::Initiated && active {
            self.start_again(vm);
        }
        if step == SourceStep::Offered {
            self.command(Command::Close { migration, source: true });
        }
    }

    pub(crate) fn source_deadline(&mut self, migration: MigrationId) {
        let step = self.source_role(migration).map(|(_, source)| source.step);
        let why = match step {
            Some(SourceStep::Offered) => "no Destination came for it in time",
            _ => "no outcome in the time that the Source waits",
        };
        self.abort(migration, why);
    }

    /// The Destination owns it: the frozen copy has had its use, after a while.
    fn receipt(&mut self, migration: MigrationId, owned: &Signed<Statement>) {
        let Some((vm, source)) = self.source_role(migration) else { return };
        if source.step != SourceStep::Released {
            return;
        }
        let certificate = source.certificate.clone().expect("RELEASED holds its certificate");
        if self.proves_ownership(&certificate, owned).is_none() {
            return;
        }
        let purge = self.world.now().after(self.site.config.purge_after);
        self.persist(Row::Receipted { migration, owned: owned.clone(), purge });
        self.note(vm, "the Destination has it");
        self.arm(Timer::Purge(migration), purge);
        self.command(Command::Close { migration, source: true });
    }

    pub(crate) fn purge(&mut self, migration: MigrationId) {
        let Some((vm, source)) = self.source_role(migration) else { return };
        if source.step == SourceStep::Aborted {
            return self.command(Command::Close { migration, source: true });
        }
        if !matches!(source.step, SourceStep::Receipted | SourceStep::Tombstone) {
            return;
        }
        let copy = source.copy.clone();
        if source.step == SourceStep::Receipted {
            self.persist(Row::Tombstone { migration });
        }
        self.purge_files(copy.host, vm, copy.epoch);
    }

    /// The Destination gave it back before its guest could execute: the frozen copy thaws.
    fn take_back(
        &mut self,
        migration: MigrationId,
        certificate: &Signed<Certificate>,
    ) -> Result<(), String> {
        let (vm, source) = self.source_role(migration).ok_or("no such migration here")?;
        match source.step {
            SourceStep::Returned => return Ok(()),
            SourceStep::Released => {}
            _ => return Err("this migration is not in a state to be handed back".to_owned()),
        }
        if self.site.state.held.contains(&vm) {
            return Err("this site's journal is older than a peer remembers".to_owned());
        }
        let (active, key) = (source.active, source.copy.key);
        let chain = self.site.state.vms[&vm].chain.extended(certificate.clone());
        let owner = chain.verify(vm, &Verifier(self.world)).map_err(|e| e.to_string())?;
        if owner.key != key || chain.newest().cause != (Cause::Handback { migration }) {
            return Err("the certificate does not give the VM back to this site".to_owned());
        }
        self.persist(Row::Returned { migration, certificate: certificate.clone() });
        self.note(vm, "handed back by the Destination");
        self.command(Command::Close { migration, source: true });
        if active {
            self.start_again(vm);
        }
        Ok(())
    }

    // The guest.

    /// Starts the guest as its stay says: from its saved state, or by booting.
    pub(crate) fn start_again(&mut self, vm: VmId) {
        let Some(stay) = self.stay_of(vm) else { return };
        if stay.starting {
            // It may have executed: its saved state is behind its disks.
            self.command(Command::DropState(stay.host.clone(), vm, stay.epoch));
        }
        let loads = stay.power == PowerState::Suspended && !stay.starting;
        let state = self.profile_of(&stay).filter(|_| loads);
        let descriptor = self.site.state.vms[&vm].descriptor.clone();
        self.launch(Command::Launch { vm, epoch: stay.epoch, host: stay.host, descriptor, state });
    }

    /// What a stay's run state depends on. Its first STARTED says so; if the node ended before it
    /// was written, the host that made the guest says the same.
    fn profile_of(&self, stay: &Stay) -> Option<model::RunProfile> {
        stay.profile.clone().or_else(|| self.site.profiles.get(&stay.host).cloned())
    }

    /// Makes a guest's process, unless that is under way.
    pub(crate) fn launch(&mut self, launch: Command) {
        let Some((host, vm, epoch)) = launch.guest() else { return };
        if self.site.launching.insert((vm, epoch), host.clone()).is_none() {
            self.command(launch);
        }
    }

    /// Saves or stops a guest. Until it has come to an end nothing lets the guest run: what is asked
    /// of one guest is done in its order.
    pub(crate) fn quiet(&mut self, command: Command) {
        self.site.quieting.extend(command.guest().map(|(_, vm, epoch)| (vm, epoch)));
        self.command(command);
    }

    /// The one way that a guest gets to execute: this site owns the VM, the intent is durable.
    pub(crate) fn let_run(&mut self, vm: VmId) {
        let Some(entry) = self.site.state.vms.get(&vm) else { return };
        let Some(stay) = entry.stay.clone().filter(|_| !entry.destroyed) else { return };
        let is_quieted = self.site.quieting.contains(&(vm, stay.epoch));
        if is_quieted || self.site.state.held.contains(&vm) {
            return;
        }
        let owns = entry.chain.newest().owner == stay.key;
        assert!(owns, "a stay ends in the transaction that releases the VM");
        if !stay.starting {
            self.persist(Row::StartIntent { vm, epoch: stay.epoch });
        }
        if stay.power == PowerState::Suspended {
            // A saved state that is there after a crash is one that nothing has overtaken.
            self.command(Command::DropState(stay.host.clone(), vm, stay.epoch));
        }
        self.command(Command::Resume(stay.host, vm, stay.epoch));
    }

    /// A guest that should run is told so again, or made again; a parked one is hibernated again.
    pub(crate) fn see_to_guest(&mut self, vm: VmId) {
        let open = self.site.state.open_source(vm);
        let moving = open.is_some_and(|(_, source)| source.step > SourceStep::Offered);
        let Some(entry) = self.site.state.vms.get(&vm) else { return };
        let Some(stay) = entry.stay.clone().filter(|_| !moving && !entry.destroyed) else { return };
        if entry.parked.is_some() {
            if !is_quiet(&stay) {
                self.quiet(Command::Hibernate(stay.host, vm, stay.epoch));
            }
        } else if stay.starting {
            self.let_run(vm);
        } else if stay.wanted && is_quiet(&stay) {
            self.start_again(vm);
        }
    }

    /// What happened to a guest of this site.
    pub(crate) fn on_guest(&mut self, vm: VmId, epoch: Epoch, event: GuestEvent) {
        use GuestEvent::{Ended, Failed, Hibernated};
        let quieted = matches!(event, Ended | Hibernated | Failed(_))
            && self.site.quieting.remove(&(vm, epoch));
        let launched = match event {
            GuestEvent::Launched(_) | GuestEvent::LaunchFailed(_) => {
                self.site.launching.remove(&(vm, epoch))
            }
            _ => None,
        };
        if let Some(migration) = self.accepting(vm, epoch) {
            match event {
                GuestEvent::Launched(_) => return self.own(migration),
                GuestEvent::LaunchFailed(reason) => return self.hand_back(migration, &reason),
                _ => {}
            }
        }
        let Some(stay) = self.stay_of(vm).filter(|stay| stay.epoch == epoch) else {
            if let (Some(host), GuestEvent::Launched(_)) = (launched, &event) {
                // The VM went, or was destroyed, while its guest was being made.
                self.command(Command::Kill(host, vm, epoch));
            }
            return;
        };
        let open = self.site.state.open_source(vm);
        let moving = open.is_some_and(|(_, source)| source.step > SourceStep::Offered);
        let should_run = !moving && self.site.state.vms[&vm].parked.is_none();
        match event {
            GuestEvent::Launched(_) => {
                if moving || self.site.state.vms[&vm].parked.is_some() {
                    // Its files are final since it was asked for; it has executed nothing.
                    self.command(Command::Kill(stay.host, vm, epoch));
                } else {
                    // If it is being saved all the same, for a migration that was aborted since, the
                    // end of that starts it again.
                    self.let_run(vm);
                }
            }
            GuestEvent::LaunchFailed(reason) => {
                self.note(vm, format!("could not be started: {reason}"));
                if !is_quiet(&stay) {
                    self.stopped(vm, epoch, PowerState::Defined);
                }
                self.controls_failed(vm, &reason);
                if stay.wanted {
                    self.arm_after(Timer::Guest(vm), START_AGAIN);
                }
            }
            GuestEvent::Resumed => {
                let Some(profile) = self.profile_of(&stay) else {
                    // After a restart a guest may be found before its host has said what it is.
                    self.site.unprofiled.insert(vm);
                    return;
                };
                self.persist(Row::Started { vm, epoch, profile });
                self.note(vm, "running");
                self.power_changed(vm);
            }
            // Held by the fence only: what it was is what it will be.
            GuestEvent::Paused if self.site.state.held.contains(&vm) => {}
            GuestEvent::Paused => self.stopped(vm, epoch, PowerState::Paused),
            GuestEvent::Ended if is_quiet(&stay) => {
                // It ended before it executed anything: its saved state is as good as before.
                self.controls_failed(vm, "its process ended before it ran");
                if stay.wanted {
                    self.arm_after(Timer::Guest(vm), START_AGAIN);
                }
            }
            GuestEvent::Ended => self.stopped(vm, epoch, PowerState::Defined),
            GuestEvent::Hibernated => {
                self.stopped(vm, epoch, PowerState::Suspended);
                if should_run && stay.starting {
                    self.start_again(vm);
                }
            }
            GuestEvent::Failed(reason) => {
                self.note(vm, reason.clone());
                self.controls_failed(vm, &reason);
                let open = self.site.state.open_source(vm).map(|(id, source)| (id, source.step));
                if let Some((migration, SourceStep::Initiated)) = open {
                    self.abort_in_place(migration, &reason);
                } else if self.site.state.vms[&vm].parked.is_some() {
                    self.arm_after(Timer::Guest(vm), START_AGAIN);
                } else if stay.starting {
                    self.arm_after(Timer::Guest(vm), LET_RUN_AGAIN);
                } else if quieted && stay.power == PowerState::Active {
                    // It may be paused, or was made meanwhile and not let run.
                    self.let_run(vm);
                }
            }
        }
    }

    /// A host said what it is: its guests that were found executing are taken down as started.
    pub(crate) fn profile_is_known(&mut self, host: &HostName) {
        for vm in std::mem::take(&mut self.site.unprofiled) {
            match self.stay_of(vm) {
                Some(stay) if stay.host == *host => {
                    self.on_guest(vm, stay.epoch, GuestEvent::Resumed);
                }
                Some(_) => {
                    self.site.unprofiled.insert(vm);
                }
                None => {}
            }
        }
    }

    /// The guest could not be quieted: it was left as it was, so nothing is to be started again.
    fn abort_in_place(&mut self, migration: MigrationId, reason: &str) {
        let Some((vm, source)) = self.source_role(migration) else { return };
        let key = source.copy.key;
        let statement = self.seal(key, &Statement { vm, migration, fact: Fact::Aborted });
        let reason = format!("the guest could not be quieted: {reason}");
        self.persist(Row::Aborted { migration, statement, reason: reason.clone() });
        self.disarm(&Timer::SourceDeadline(migration));
        self.note(vm, format!("migration aborted, the VM stays here: {reason}"));
        self.tell_aborted(migration);
        self.let_run(vm);
    }

    fn stopped(&mut self, vm: VmId, epoch: Epoch, power: PowerState) {
        self.site.unprofiled.remove(&vm);
        self.persist(Row::Stopped { vm, epoch, power });
        self.note(vm, power.to_string());
        let open = self.site.state.open_source(vm).map(|(id, source)| (id, source.step));
        if let Some((migration, SourceStep::Initiated)) = open {
            self.quiesce(migration);
        }
        if self.stay_of(vm).is_some_and(|stay| stay.wanted) {
            self.start_again(vm);
        }
        self.power_changed(vm);
    }

    /// Control (DMTF DSP1057, "State management"): legal changes only, each named.
    fn control(&mut self, caller: Caller, vm: VmId, action: Action) {
        let gone = self.site.state.vms.get(&vm).is_some_and(|vm| vm.destroyed);
        if gone && action == Action::Destroy {
            // The answer to the first request was lost on its way.
            return self.answer(caller, Answer::Done);
        }
        let entry = self.site.state.vms.get(&vm).filter(|vm| !vm.destroyed);
        let Some((stay, parked)) = entry.and_then(|vm| Some((vm.stay.clone()?, vm.parked.clone())))
        else {
            let handing = entry.is_some_and(|vm| vm.down == Down::Here);
            return self.answer(
                caller,
                if handing {
                    Answer::Failed { reason: "it is being handed over; ask again".to_owned() }
                } else {
                    Answer::Unknown
                },
            );
        };
        if action == Action::Show {
            return self.answer_state(caller, vm);
        }
        let moving = self.site.state.open_source(vm);
        if moving.is_some_and(|(_, source)| source.step > SourceStep::Offered) {
            let reason = "it is being moved".to_owned();
            return self.answer(caller, Answer::Conflict { reason, retry_after: CONFLICT_RETRY });
        }
        let (host, epoch) = (stay.host.clone(), stay.epoch);
        if self.site.quieting.contains(&(vm, epoch)) {
            match action {
                // They end it in any case.
                Action::Stop | Action::Destroy => {}
                Action::Hibernate => return self.wait_for_guest(caller, vm, action),
                _ => {
                    let reason = "it is being saved".to_owned();
                    let answer = Answer::Conflict { reason, retry_after: CONFLICT_RETRY };
                    return self.answer(caller, answer);
                }
            }
        }
        let fail = |reason: String| Answer::Failed { reason };
        use PowerState::{Active, Defined, Paused, Suspended};
        // Its process is being made, or about to execute, and has its files open.
        let starting = stay.starting || self.site.launching.contains_key(&(vm, epoch));
        let command = match (action, stay.power) {
            (Action::Stop, Defined | Suspended) if starting => {
                Some(Command::ShutDown(host, vm, epoch))
            }
            (Action::Destroy, Defined | Suspended) if starting => {
                Some(Command::Kill(host, vm, epoch))
            }
            // Also where it ran before and its process has to be made anew: it would be told to go
            // on after it was paused. And what goes on anyway is no wrong state to be resumed in.
            (Action::Pause | Action::Hibernate, _) | (Action::Resume, Defined | Suspended)
                if starting =>
            {
                let reason = "it is being started".to_owned();
                return self
                    .answer(caller, Answer::Conflict { reason, retry_after: CONFLICT_RETRY });
            }
            (Action::Start, Defined | Suspended) if !Self::runs_guests(&host) => {
                return self.answer(caller, fail("it is in the library; place it first".into()));
            }
            (Action::Start, Defined | Suspended) => match parked {
                Some(why) => {
                    return self.answer(caller, fail(format!("it is parked ({why}); move it")));
                }
                None => None,
            },
            (Action::Start | Action::Resume, Active)
            | (Action::Stop, Defined)
            | (Action::Pause, Paused)
            | (Action::Hibernate, Suspended) => return self.answer_state(caller, vm),
            (Action::Stop, Active | Paused) => Some(Command::ShutDown(host, vm, epoch)),
            (Action::Pause, Active) => Some(Command::Pause(host, vm, epoch)),
            (Action::Start | Action::Resume, Paused) => {
                self.wait_for_guest(caller, vm, action);
                return self.let_run(vm);
            }
            (Action::Hibernate, Active | Paused) => Some(Command::Hibernate(host, vm, epoch)),
            (Action::Destroy, Active | Paused) => Some(Command::Kill(host, vm, epoch)),
            (Action::Destroy, Defined | Suspended) => {
                self.destroy(vm);
                return self.answer(caller, Answer::Done);
            }
            (action, power) => {
                let what = format!("{action:?}").to_lowercase();
                return self.answer(caller, fail(format!("cannot {what} a VM that is {power}")));
            }
        };
        self.wait_for_guest(caller, vm, action);
        match command {
            Some(command @ Command::Hibernate(..)) => self.quiet(command),
            Some(command) => self.command(command),
            None => self.start_again(vm),
        }
    }

    fn wait_for_guest(&mut self, caller: Caller, vm: VmId, action: Action) {
        self.site.controls.entry(vm).or_default().push((caller, action));
    }

    pub(crate) fn answer_state(&mut self, caller: Caller, vm: VmId) {
        let entry = &self.site.state.vms[&vm];
        let Some(stay) = &entry.stay else {
            // Another user destroyed it, or it left, while this one waited for its guest.
            let reason = "the VM was destroyed, or has left, meanwhile".to_owned();
            return self.answer(caller, Answer::Failed { reason });
        };
        let power = stay.shown();
        let (epoch, parked) = (entry.chain.epoch(), entry.parked.clone());
        self.answer(caller, Answer::State { power, epoch, parked });
    }

    /// The guest's state is final for now: whoever waited for it is told.
    fn power_changed(&mut self, vm: VmId) {
        for (caller, action) in self.site.controls.remove(&vm).unwrap_or_default() {
            let runs = self.stay_of(vm).is_some_and(|stay| !is_quiet(&stay));
            if runs && matches!(action, Action::Stop | Action::Destroy) {
                // It was starting when this was asked for; its end is still to come.
                self.wait_for_guest(caller, vm, action);
            } else if action == Action::Destroy {
                self.destroy(vm);
                self.answer(caller, Answer::Done);
            } else {
                self.answer_state(caller, vm);
            }
        }
    }

    fn controls_failed(&mut self, vm: VmId, reason: &str) {
        for (caller, _) in self.site.controls.remove(&vm).unwrap_or_default() {
            let outward = "the hypervisor of the site that has it refused";
            self.answer_failed(caller, reason, outward);
        }
    }

    fn destroy(&mut self, vm: VmId) {
        let Some(stay) = self.stay_of(vm) else { return };
        let open = self.site.state.open_source(vm).map(|(id, _)| id);
        if let Some(migration) = open {
            self.abort(migration, "the VM was destroyed");
        }
        self.persist(Row::Destroyed { vm });
        self.note(vm, "destroyed");
        self.purge_files(stay.host, vm, stay.epoch);
    }

    /// Stops the VM for want of a place and keeps its files, with its run state.
    pub(crate) fn park(&mut self, vm: VmId, reason: &str) {
        let Some(stay) = self.stay_of(vm) else { return };
        let open = self.site.state.open_source(vm).map(|(id, _)| id);
        if let Some(migration) = open {
            self.abort(migration, "the VM is parked");
        }
        self.persist(Row::Parked { vm, reason: Some(reason.to_owned()) });
        self.note(vm, format!("parked: {reason}"));
        if stay.power == PowerState::Active || stay.power == PowerState::Paused || stay.starting {
            self.quiet(Command::Hibernate(stay.host, vm, stay.epoch));
        }
        self.report_up(vm);
    }

    /// The migration whose certificate this site holds while the guest is launched.
    fn accepting(&self, vm: VmId, epoch: Epoch) -> Option<MigrationId> {
        self.site.accepting.keys().copied().find(|id| {
            self.site.state.migrations.get(id).is_some_and(|migration| {
                let target = migration.target.as_ref();
                migration.vm == vm
                    && target.is_some_and(|t| t.step == TargetStep::Ready && t.epoch() == epoch)
            })
        })
    }
}

/// Whether nothing of the guest can have executed since its files were final.
pub(crate) fn is_quiet(stay: &Stay) -> bool {
    !stay.starting && matches!(stay.power, PowerState::Defined | PowerState::Suspended)
}

/// The answer of a site that holds the VM, since its journal is old, on what it may have forgotten.
pub(crate) fn forgotten() -> Answer {
    let reason = "this site's journal is older than a peer remembers".to_owned();
    Answer::Conflict { reason, retry_after: FENCED_RETRY }
}
