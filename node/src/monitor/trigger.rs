//! What a condition that has come true leads to, at the VM's primary: its policy may place the VM
//! anew.

use std::collections::BTreeMap;
use std::time::Duration;

use model::decision::{Policy, Trigger};
use model::monitoring::{Delivery, Specifier};
use model::{Descriptor, PeerName, SecretKey, Time, VmId};
use monitoring::block::{Block, Value};
use protocol::{Ask, Mode, Reply};

use super::{Known, Monitor, opening_key};
use crate::driver::new_operation;
use crate::link::now;
use crate::lock;

/// Between two rounds of decisions about one VM.
const PAUSE: Duration = Duration::from_secs(1);
/// Blocks of a VM that wait for the next round; the oldest go.
const WAITING: usize = 64;

/// What a round of decisions is about.
struct Round {
    descriptor: Descriptor,
    delegate: Option<PeerName>,
    k0: SecretKey,
}

impl Monitor {
    /// Weighs a block that is new here, if this site is its VM's primary and it may tell of a
    /// condition.
    pub(super) fn weigh(&self, block: Block) {
        let vm = block.vm;
        if !lock(&self.0.known).get(&vm).is_some_and(|known| may_tell(known, &block)) {
            return;
        }
        let mut weighing = lock(&self.0.weighing);
        if let Some(waiting) = weighing.get_mut(&vm) {
            if waiting.len() == WAITING {
                waiting.remove(0);
            }
            waiting.push(block);
            return;
        }
        weighing.insert(vm, vec![block]);
        let monitor = self.clone();
        tokio::spawn(async move { monitor.weigh_all(vm).await });
    }

    /// The blocks of a VM that wait; with none, it is not being decided about any more.
    fn next_round(&self, vm: VmId) -> Vec<Block> {
        let mut weighing = lock(&self.0.weighing);
        let blocks = weighing.get_mut(&vm).map(std::mem::take).unwrap_or_default();
        if blocks.is_empty() {
            weighing.remove(&vm);
        }
        blocks
    }

    async fn weigh_all(self, vm: VmId) {
        loop {
            let blocks = self.next_round(vm);
            if blocks.is_empty() {
                return;
            }
            let round = self.0.driver.visit(move |core| {
                let entry = core.site.state.vms.get(&vm)?;
                let delegate = core.site.vm(vm)?.delegate;
                let k0 = core.key(&entry.chain.k0);
                Some(Round { descriptor: entry.descriptor.clone(), delegate, k0 })
            });
            if let Ok(Some(round)) = round.await {
                for (at, question) in fired(&round, blocks) {
                    self.decide(vm, at, question).await;
                }
            }
            tokio::time::sleep(PAUSE).await;
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

/// Whether a block may tell of a condition that counts. What an earlier owner says, or said by an
/// earlier section, is history.
fn may_tell(known: &Known, block: &Block) -> bool {
    let specifiers = &known.section.specifiers;
    let is_condition = |s: &Specifier| matches!(s.delivery, Delivery::When(_));
    let told =
        |value: &Value| specifiers.get(usize::from(value.specifier)).is_some_and(is_condition);
    let hidden = || specifiers.iter().any(|s| s.sealed && is_condition(s));
    let newest = known.owners.last_key_value().map(|(epoch, _)| *epoch);
    known.up.is_none()
        && block.section == known.id
        && Some(block.epoch) == newest
        && (block.open.iter().any(told) || block.sealed.is_some() && hidden())
}

/// The conditions that blocks tell of, each once: when it came true last, and what the policy is
/// asked.
fn fired(round: &Round, blocks: Vec<Block>) -> Vec<(Time, Trigger)> {
    let key = opening_key(&round.k0);
    let section = &round.descriptor.monitoring;
    let mut newest: BTreeMap<u16, (Time, f64)> = BTreeMap::new();
    for block in blocks.into_iter().filter(|block| block.section == section.id()) {
        let place = (block.vm, block.epoch, block.first);
        let sealed = block.sealed.as_ref().and_then(|sealed| key.values(place, sealed).ok());
        for value in block.open.into_iter().chain(sealed.unwrap_or_default()) {
            let at = Time(block.at.0.saturating_add_signed(value.after_ms));
            if let Some(number) = value.reading.number() {
                newest.insert(value.specifier, (at, number));
            }
        }
    }
    let mut fired = Vec::new();
    for (place, (at, value)) in newest {
        let Some(specifier) = section.specifiers.get(usize::from(place)) else { continue };
        let Delivery::When(condition) = &specifier.delivery else { continue };
        let question = Trigger {
            descriptor: round.descriptor.clone(),
            measure: specifier.measure.to_string(),
            condition: condition.to_string(),
            value,
            age_ms: u64::try_from(now().since(at).as_millis()).unwrap_or(u64::MAX),
            delegate: round.delegate.clone(),
        };
        fired.push((at, question));
    }
    fired
}
