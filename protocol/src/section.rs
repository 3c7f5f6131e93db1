//! What is monitored of a VM: changed by its primary, and brought to whoever has it.
//!
//! A section is signed with K0 and numbered, so that wherever two meet the later one counts, and
//! nobody on the way can alter one or hold back a part of it. It takes three ways to the VM's next
//! owner, and the latest of them counts there: with the Migration request, with the Source's word
//! that it is ready, and, for a site on the path itself, by this very request. A Source that has
//! said that it is ready takes none until the migration has ended: what it has taken is never lost.

use model::{Chain, Descriptor, Monitoring, VmId};

use crate::effect::{Caller, Reply};
use crate::message::{Answer, Op, Origin};
use crate::path::Verifier;
use crate::row::{Down, Row};
use crate::site::{Step, Waiting};
use crate::source::CONFLICT_RETRY;

impl Step<'_> {
    /// The primary's user changes what is monitored.
    pub(crate) fn ask_monitor(&mut self, ask: u64, vm: VmId, mut section: Monitoring) {
        let Some(entry) = self.site.state.vms.get(&vm) else {
            return self.reply(ask, Reply::NotFound(format!("there is no VM {vm}")));
        };
        if entry.destroyed {
            return self.reply(ask, Reply::NotFound(format!("VM {vm} was destroyed")));
        }
        if entry.up.is_some() {
            let text = "only the site that the VM was imported at can say what is monitored of it";
            return self.reply(ask, Reply::Conflict(text.to_owned()));
        }
        let (k0, down, now) = (entry.chain.k0, entry.down.clone(), &entry.descriptor.monitoring);
        section.revision = now.revision + 1;
        section.sealing_key = section.sealing_key.or(now.sealing_key);
        section.vouch(|kind, body| self.world.sign(&k0, kind, body));
        if matches!(down, Down::Edge(_)) {
            // It counts for the next place, whatever the Source says now.
            self.persist(Row::Monitored { vm, section: section.clone() });
        }
        let key = self.world.create_key();
        let origin = Origin { op: Op::Monitor { vm, section }, key, sealed: None };
        let limit = self.site.config.request_limit;
        self.send_down(&down, origin, limit, Waiting::User(ask, None));
    }

    /// At the Source: takes a section over, as long as none has been promised to a Destination.
    pub(crate) fn monitor(&mut self, caller: Caller, vm: VmId, section: &Monitoring) {
        let entry = self.site.state.vms.get(&vm).filter(|vm| !vm.destroyed);
        let Some(entry) = entry else { return self.answer(caller, Answer::Unknown) };
        if entry.stay.is_none() && entry.down != Down::Here {
            return self.answer(caller, Answer::Unknown);
        }
        let held = self.site.state.held.contains(&vm);
        if entry.stay.is_none() || held || self.site.state.open_source(vm).is_some() {
            let reason = "it is being moved".to_owned();
            return self.answer(caller, Answer::Conflict { reason, retry_after: CONFLICT_RETRY });
        }
        self.renew(vm, section);
        if self.site.state.vms[&vm].descriptor.monitoring == *section {
            return self.answer_state(caller, vm);
        }
        let reason = "the section is not a later one that the VM's own key vouches for".to_owned();
        self.answer(caller, Answer::Failed { reason });
    }

    /// Takes a section over, if it is a later one.
    pub(crate) fn renew(&mut self, vm: VmId, section: &Monitoring) {
        let Some(entry) = self.site.state.vms.get(&vm) else { return };
        let (now, k0) = (&entry.descriptor.monitoring, &entry.chain.k0);
        if now.yields_to(section, k0, &Verifier(self.world)) {
            self.persist(Row::Monitored { vm, section: section.clone() });
            self.note(vm, "what is monitored of it has changed");
        }
    }

    /// A descriptor that came with an offer, with what the Source monitors if that is later.
    /// The chain has been verified.
    pub(crate) fn renewed(
        &self,
        mut descriptor: Descriptor,
        chain: &Chain,
        section: &Monitoring,
    ) -> Descriptor {
        let verify = Verifier(self.world);
        if !descriptor.monitoring.is_vouched(&chain.k0, &verify) {
            // Whoever passed it on may have numbered it too.
            descriptor.monitoring.revision = 0;
        }
        if descriptor.monitoring.yields_to(section, &chain.k0, &verify) {
            descriptor.monitoring = section.clone();
        }
        descriptor
    }
}
