//! Going on after a restart: the same steps, from what the journal says and what still runs.

use model::{Epoch, PowerState};

use crate::effect::{Command, Found, GuestEvent, Output};
use crate::row::{Down, Party, Result as Ended, Row};
use crate::site::{JourneyMemory, Phase, Site, Step, World};
use crate::source::is_quiet;
use crate::state::{SourceStep, TargetStep, library};
use crate::timer::Timer;

impl Site {
    /// Goes on with what the journal says, given every guest process that was found.
    ///
    /// Guests that run and are not this site's are ended, owned ones are adopted.
    pub(crate) fn restart(&mut self, world: &mut dyn World, found: &[Found]) -> Output {
        let inbox = std::collections::VecDeque::new();
        let mut step = Step { site: self, world, out: Output::default(), inbox };
        step.end_strangers(found);
        step.adopt(found);
        step.confirm_held();
        step.forget_destroyed();
        step.resume_sources();
        step.resume_targets();
        step.resume_relays();
        step.resume_journeys();
        step.resume_leaving();
        step.run();
        step.out
    }
}

impl Step<'_> {
    fn end_strangers(&mut self, found: &[Found]) {
        for guest in found.iter().filter(|found| found.power != PowerState::Suspended) {
            let owned = self.stay_matches(guest);
            let open = self.site.state.migrations.values().any(|migration| {
                migration.vm == guest.vm
                    && migration.target.as_ref().is_some_and(|target| {
                        target.step == TargetStep::Ready
                            && target.epoch() == guest.epoch
                            && target.host == guest.host
                    })
            });
            if !owned && !(open && guest.power == PowerState::Paused) {
                self.note(guest.vm, "a guest that this site does not own was found and ended");
                self.command(Command::Kill(guest.host.clone(), guest.vm, guest.epoch));
            }
        }
    }

    fn stay_matches(&self, guest: &Found) -> bool {
        let stay = self.site.state.vms.get(&guest.vm).and_then(|vm| vm.stay.as_ref());
        stay.is_some_and(|stay| stay.epoch == guest.epoch && stay.host == guest.host)
    }

    fn adopt(&mut self, found: &[Found]) {
        let stays: Vec<_> = self
            .site
            .state
            .vms
            .iter()
            .filter_map(|(vm, entry)| Some((*vm, entry.stay.clone()?, entry.parked.is_some())))
            .collect();
        for (vm, stay, parked) in stays {
            let guest = found.iter().find(|guest| guest.vm == vm && self.stay_matches(guest));
            if self.site.state.held.contains(&vm) {
                // Whatever the journal says: it may be of before it was started, or moved.
                if guest.is_some_and(|guest| guest.power == PowerState::Active) {
                    self.command(Command::Pause(stay.host, vm, stay.epoch));
                }
                continue;
            }
            let open = self.site.state.open_source(vm).map(|(_, source)| source.step);
            let moving = open.is_some_and(|step| step > SourceStep::Offered);
            let should_run = stay.power == PowerState::Active || stay.starting || stay.wanted;
            match guest.map(|guest| guest.power) {
                Some(PowerState::Suspended) => {
                    if !is_quiet(&stay) {
                        self.note(vm, "its saved state was found");
                        let power = PowerState::Suspended;
                        self.persist(Row::Stopped { vm, epoch: stay.epoch, power });
                    }
                    if (stay.wanted || stay.starting) && !parked && !moving {
                        self.start_again(vm);
                    }
                }
                Some(PowerState::Paused)
                    if is_quiet(&stay) && (moving || parked || !should_run) =>
                {
                    // Made for a start that nobody waits for any more; it has executed nothing.
                    self.command(Command::Kill(stay.host, vm, stay.epoch));
                }
                Some(PowerState::Active | PowerState::Paused) if moving => {}
                Some(PowerState::Active | PowerState::Paused) if parked => {
                    self.quiet(Command::Hibernate(stay.host, vm, stay.epoch));
                }
                Some(PowerState::Active) if stay.power != PowerState::Active => {
                    self.note(vm, "found running, and adopted");
                    self.on_guest(vm, stay.epoch, GuestEvent::Resumed);
                }
                Some(PowerState::Active) => self.note(vm, "found running, and adopted"),
                Some(PowerState::Paused) if should_run => self.let_run(vm),
                Some(PowerState::Paused | PowerState::Defined) => {}
                None => {
                    let was_up = matches!(stay.power, PowerState::Active | PowerState::Paused);
                    if was_up || stay.starting {
                        self.note(vm, "its process is gone");
                    }
                    if should_run && !parked && !moving {
                        // The journal goes on to say that it runs: should the node end again
                        // before it does, it is still to be started.
                        self.start_again(vm);
                    } else if was_up || stay.starting {
                        if stay.starting {
                            // It may have executed: its saved state is behind its disks.
                            let drop = Command::DropState(stay.host.clone(), vm, stay.epoch);
                            self.command(drop);
                        }
                        let power = PowerState::Defined;
                        self.persist(Row::Stopped { vm, epoch: stay.epoch, power });
                    }
                }
            }
        }
        let state = &self.site.state;
        let tells = state.vms.iter().filter(|(vm, entry)| {
            // What came from below may not have been passed on before the node ended.
            let answers_for = matches!(entry.down, Down::Edge(_)) && !state.held.contains(vm);
            entry.stay.is_some() || answers_for && !entry.destroyed
        });
        for vm in tells.map(|(vm, _)| *vm).collect::<Vec<_>>() {
            self.report_up(vm);
        }
    }

    /// Deletes the files of destroyed VMs again: the node may have ended before it had done so.
    fn forget_destroyed(&mut self) {
        let state = &self.site.state;
        let destroyed = state.vms.iter().filter(|(_, vm)| vm.destroyed);
        let imported = destroyed
            .filter(|(_, vm)| vm.up.is_none())
            .map(|(vm, _)| (library(), *vm, Epoch::default()));
        let owned = state.migrations.values().filter_map(|migration| {
            let vm = state.vms.get(&migration.vm).filter(|vm| vm.destroyed);
            let target = migration.target.as_ref().filter(|t| t.step == TargetStep::Owned);
            vm.and(target).map(|target| (target.host.clone(), migration.vm, target.epoch()))
        });
        let places: Vec<_> = imported.chain(owned).collect();
        for (host, vm, epoch) in places {
            self.purge_files(host, vm, epoch);
        }
    }

    fn resume_sources(&mut self) {
        let now = self.world.now();
        let purge_after = self.site.config.purge_after;
        let roles: Vec<_> = self
            .site
            .state
            .migrations
            .iter()
            .filter_map(|(id, migration)| Some((*id, migration.vm, migration.source.clone()?)))
            .collect();
        for (migration, vm, source) in roles {
            match source.step {
                SourceStep::Offered
                | SourceStep::Initiated
                | SourceStep::Quiesced
                | SourceStep::Sent => {
                    match source.step {
                        SourceStep::Offered => self.arm_offered(migration, source.deadline),
                        _ => self.arm(Timer::SourceDeadline(migration), source.deadline),
                    }
                    self.serve(migration);
                    if self.site.state.held.contains(&vm) {
                        // Whether its guest is quiet is among what was forgotten.
                        continue;
                    }
                    match source.step {
                        SourceStep::Initiated => self.quiesce(migration),
                        SourceStep::Quiesced | SourceStep::Sent => self.provide(migration),
                        _ => {}
                    }
                }
                SourceStep::Released => {
                    self.serve(migration);
                    self.tell_outcome(migration);
                }
                // The Destination may not have heard: it is told when it dials, for a while.
                SourceStep::Aborted if source.deadline.after(purge_after) > now => {
                    self.serve(migration);
                    self.tell_aborted(migration);
                }
                SourceStep::Aborted | SourceStep::Returned => {}
                SourceStep::Receipted => {
                    self.arm(Timer::Purge(migration), source.purge.unwrap_or(now));
                }
                SourceStep::Tombstone => {
                    let copy = source.copy;
                    self.purge_files(copy.host, vm, copy.epoch);
                }
            }
        }
    }

    fn resume_targets(&mut self) {
        let roles: Vec<_> = self
            .site
            .state
            .migrations
            .iter()
            .filter_map(|(id, migration)| Some((*id, migration.vm, migration.target.clone()?)))
            .collect();
        for (migration, vm, target) in roles {
            match target.step {
                TargetStep::Admitted | TargetStep::Receiving => {
                    let unused = self.world.now().after(crate::target::UNUSED_LIFE);
                    let until = match target.step {
                        TargetStep::Admitted => unused.min(target.expires),
                        _ => target.expires,
                    };
                    self.arm(Timer::AdmitExpiry(migration), until);
                    // What lies at its place may be the VM, which came in what was forgotten.
                    if !self.site.state.held.contains(&vm) {
                        self.pull(migration);
                    }
                }
                TargetStep::Ready => {
                    self.arm_lapse(migration);
                    self.pull(migration);
                }
                TargetStep::Owned => {}
                TargetStep::Lapsed | TargetStep::HandedBack | TargetStep::Dropped => {
                    self.purge_files(target.host.clone(), vm, target.epoch());
                }
            }
        }
    }

    fn resume_journeys(&mut self) {
        let journeys: Vec<_> = self.site.state.journeys.values().cloned().collect();
        for journey in journeys {
            let phase = match (&journey.result, &journey.chosen) {
                (None, None) => Phase::Collect,
                (None, Some(_)) => Phase::Force,
                (Some(Ended::Done), Some(chosen)) => {
                    let migration = self.site.state.migrations.get(&chosen.migration);
                    let left = migration.is_some_and(|m| !m.retired && m.old.is_some());
                    if !left {
                        continue;
                    }
                    Phase::Retire
                }
                _ => continue,
            };
            let operation = journey.operation;
            self.site
                .journeys
                .insert(operation, JourneyMemory { phase, sent: true, ..Default::default() });
            // Peers may not be reachable in the first moment; a step that fails is repeated.
            self.arm_after(Timer::Journey(operation), std::time::Duration::ZERO);
        }
    }

    /// Journeys that wait for this VM to be elsewhere look again at once.
    pub(crate) fn wake_journeys(&mut self, vm: model::VmId) {
        let open: Vec<_> = self
            .site
            .state
            .journeys_of(vm)
            .filter(|journey| journey.result.is_none())
            .filter(|journey| match (&journey.goal.evict, self.site.state.vms.get(&vm)) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(evict), Some(entry)) => match &evict.from {
                    Party::Here => entry.stay.is_none() && entry.down != Down::Here,
                    Party::Peer(peer) => {
                        !matches!(&entry.down, Down::Edge(edge) if edge.peer == *peer)
                    }
                },
            })
            .map(|journey| journey.operation)
            .collect();
        for operation in open {
            self.arm_after(Timer::Journey(operation), std::time::Duration::ZERO);
        }
    }
}
