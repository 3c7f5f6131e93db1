//! Meters one guest for as long as this site owns its VM, whatever else is measured of it.
//!
//! What is added up is kept with each statement, in one commit. A node that ends loses nothing
//! while the guest's process lives, since that goes on counting; if both end together, what was
//! used since the last statement is lost: a minute's at most.

use std::time::Duration;

use hypervisor::Instance;
use model::key::Signed;
use model::{Epoch, HostName, SecretKey, Time};
use monitoring::book::Entry;
use monitoring::sample::Sample;
use monitoring::usage::Tally;
use tokio::sync::{mpsc, oneshot};

use super::Monitor;
use super::usage::Metering;
use crate::hands::{Hands, report};
use crate::link::now;

/// How often a guest is looked at: what it used in between is lost if it ends by itself.
const LOOK: Duration = Duration::from_secs(10);
/// How often its use is stated, beside full hours and each change that this site makes of it.
const STATE: Duration = Duration::from_secs(60);
/// How long a database that fails is left alone.
const AGAIN: Duration = Duration::from_secs(1);

/// What is metered, and who signs.
pub(super) struct Stay {
    pub(super) instance: Instance,
    pub(super) host: HostName,
    /// The epoch whose owner this site is. A stay that began earlier and was given back has another
    /// one than its files.
    pub(super) epoch: Epoch,
    pub(super) key: SecretKey,
}

/// To state what is used now. It is told when that is durable.
pub(super) struct Order {
    /// What the guest had used when it stopped; none to look at it.
    pub(super) used: Option<Sample>,
    pub(super) done: oneshot::Sender<()>,
}

pub(super) struct Meter {
    monitor: Monitor,
    hands: Hands,
    stay: Stay,
    tally: Tally,
}

impl Meter {
    /// Meters until nobody can order anything any more.
    pub(super) async fn run(
        monitor: Monitor,
        hands: Hands,
        stay: Stay,
        mut orders: mpsc::UnboundedReceiver<Order>,
        _alive: Metering,
    ) {
        let (vm, epoch) = (stay.instance.vm, stay.epoch);
        let tally = loop {
            match monitor.ledger().run(move |book| book.tally(vm, epoch)).await {
                Ok(tally) => break tally.unwrap_or_default(),
                Err(_) if orders.is_closed() => return,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        };
        let mut meter = Self { monitor, hands, stay, tally };
        let mut next = now();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => break,
                    // Who asked has given up, and what it saw may be of the past.
                    Some(order) if order.done.is_closed() => {}
                    Some(Order { used, done }) => {
                        match used {
                            Some(used) => meter.take(&used),
                            None => meter.look().await,
                        }
                        if meter.state().await {
                            let _ = done.send(());
                        }
                    }
                },
                () = tokio::time::sleep(next.since(now())) => {
                    meter.look().await;
                    if meter.tally.due(STATE).is_some_and(|due| due <= now()) {
                        meter.state().await;
                    }
                    next = meter.next(now());
                }
            }
        }
        // Nothing comes any more: this is what there is for the last statement.
        meter.state().await;
    }

    /// When the guest is looked at next.
    fn next(&self, at: Time) -> Time {
        let look = at.after(LOOK);
        self.tally.due(STATE).filter(|due| *due > at).map_or(look, |due| due.min(look))
    }

    async fn look(&mut self) {
        let instance = self.stay.instance;
        match self.hands.measure(&self.stay.host, instance).await {
            Ok(Some(sample)) => self.take(&sample),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%instance, error = report(&error), "cannot be metered now");
            }
        }
    }

    fn take(&mut self, sample: &Sample) {
        if let Some(memory) = self.monitor.memory(self.stay.instance.vm) {
            self.tally.take(now(), sample, memory);
        }
    }

    /// States what was used, if that is new; false if it could not be kept.
    async fn state(&mut self) -> bool {
        let (vm, epoch) = (self.stay.instance.vm, self.stay.epoch);
        let mut tally = self.tally.clone();
        let Some(statement) = tally.state(vm, epoch, false) else { return true };
        let key = &self.stay.key;
        let made = Signed::seal(&statement, key.public(), |kind, body| key.sign(kind, body));
        let (owner, kept) = (key.public(), tally.clone());
        let kept = self.monitor.ledger().run(move |book| {
            let up = book.up(vm)?.flatten();
            book.keep_tally((vm, epoch), &owner, &kept)?;
            Ok((book.take_statement(&made, &statement, now(), None, up.as_ref())?, up))
        });
        let Ok((entry, up)) = kept.await else { return false };
        if entry == Entry::Contradiction {
            tracing::warn!(
                %vm,
                "its usage contradicts what was stated before: is monitoring.db an old copy?"
            );
        }
        self.tally = tally;
        if let Some(up) = up {
            self.monitor.wake(&up);
        }
        true
    }
}
