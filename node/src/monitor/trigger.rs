//! What a condition that has come true leads to, at the VM's primary: its policy may place the VM
//! anew.

use model::decision::{Policy, Trigger};
use model::monitoring::Delivery;
use model::{Time, VmId};
use monitoring::block::{Block, Value};
use protocol::{Ask, Mode, Reply};

use super::{Monitor, lock, opening_key};
use crate::driver::{Core, new_operation};
use crate::link::now;

impl Monitor {
    /// Weighs blocks that are new here, all of one VM, if this site is its primary.
    pub(super) fn weigh(&self, blocks: Vec<Block>) {
        let Some(vm) = blocks.first().map(|block| block.vm) else { return };
        let has_condition = lock(&self.0.known).get(&vm).is_some_and(|known| {
            let mut deliveries = known.section.specifiers.iter().map(|s| &s.delivery);
            known.up.is_none() && deliveries.any(|delivery| matches!(delivery, Delivery::When(_)))
        });
        if has_condition {
            let monitor = self.clone();
            tokio::spawn(async move {
                let told = monitor.0.driver.visit(move |core| fired(core, vm, blocks)).await;
                for (at, question) in told.unwrap_or_default() {
                    monitor.decide(vm, at, question).await;
                }
            });
        }
    }

    async fn decide(&self, vm: VmId, at: Time, question: Trigger) {
        let what = format!(
            "{} {}: {}, {} s ago",
            question.measure,
            question.condition,
            question.value,
            now().since(at).as_secs()
        );
        let policy = self.0.policy.clone();
        let asked = tokio::task::spawn_blocking(move || policy.trigger(&question));
        let reasons = asked.await.unwrap_or_default();
        if reasons.is_empty() {
            self.note(vm, format!("{what}; the policy `trigger` leaves it where it is")).await;
            return;
        }
        let operation = new_operation();
        let wish = Ask::Move {
            operation,
            vm,
            peers: Default::default(),
            local_only: false,
            boot: false,
            mode: Mode::Hibernate,
            dry_run: false,
        };
        let reasons = reasons.join("; ");
        let came = match self.0.driver.ask(wish).await {
            Ok(Reply::Began) => format!("operation {operation} looks for another place"),
            Ok(Reply::Conflict(why) | Reply::NotFound(why) | Reply::Unavailable(why)) => {
                format!("it is not moved: {why}")
            }
            _ => return,
        };
        self.note(vm, format!("{what}; {reasons}; {came}")).await;
    }

    async fn note(&self, vm: VmId, text: String) {
        // At shutdown nobody is left to take it down.
        let _ = self.0.driver.visit(move |core| core.note(vm, text)).await;
    }
}

/// The conditions of a VM that blocks tell of: when each came true, and what its policy is asked.
fn fired(core: &Core, vm: VmId, blocks: Vec<Block>) -> Vec<(Time, Trigger)> {
    let Some(entry) = core.site.state.vms.get(&vm) else { return vec![] };
    let key = opening_key(&core.key(&entry.chain.k0));
    let delegate = core.site.vm(vm).and_then(|view| view.delegate);
    let section = &entry.descriptor.monitoring;
    let mut fired = Vec::new();
    // What was told by a section of before is history.
    for block in blocks.into_iter().filter(|block| block.section == section.id()) {
        let place = (block.vm, block.epoch, block.first);
        let sealed = block.sealed.as_ref().and_then(|sealed| key.values(place, sealed).ok());
        for value in block.open.into_iter().chain(sealed.unwrap_or_default()) {
            let Value { specifier, after_ms, reading, .. } = value;
            let Some(specifier) = section.specifiers.get(usize::from(specifier)) else { continue };
            let Delivery::When(condition) = &specifier.delivery else { continue };
            let Some(value) = reading.number() else { continue };
            let at = Time(block.at.0.saturating_add_signed(after_ms));
            let question = Trigger {
                descriptor: entry.descriptor.clone(),
                measure: specifier.measure.to_string(),
                condition: condition.to_string(),
                value,
                age_ms: u64::try_from(now().since(at).as_millis()).unwrap_or(u64::MAX),
                delegate: delegate.clone(),
            };
            fired.push((at, question));
        }
    }
    fired
}
