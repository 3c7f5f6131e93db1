//! Usage at this site: has every guest metered, ends the accounts of stays that are over, takes the
//! statements of the sites below, and tells what was used.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use hypervisor::Instance;
use model::key::{Signed, Strict};
use model::{Bytes, Epoch, PeerName, PublicKey, SecretKey, Signature, VmId};
use monitoring::book::{Asked, Entry};
use monitoring::sample::Sample;
use monitoring::usage::{Statement, Stay};
use proto::envelope::Verdict;
use tokio::sync::{Mutex as Turn, Notify, mpsc, oneshot};

use super::ledger::LedgerError;
use super::{Monitor, Owners, meter, owner};
use crate::driver::Ended;
use crate::link::now;
use crate::lock;

/// How often what was kept for long enough is removed.
pub(super) const SWEEP: Duration = Duration::from_secs(3600);
/// How long a guest that is to end waits for its account.
const ACCOUNT_LIMIT: Duration = Duration::from_secs(1);

/// The metering of this site.
#[derive(Default)]
pub(super) struct Accounts {
    meters: Mutex<HashMap<VmId, Metered>>,
    /// What a task meters, also one that is about to end.
    alive: Mutex<HashSet<(VmId, Epoch)>>,
    /// A task has ended.
    pub(super) ended: Notify,
    /// One look at the VMs at a time: who comes second finds what the first has begun.
    pub(super) turn: Turn<()>,
}

/// A stay that is metered.
struct Metered {
    instance: Instance,
    epoch: Epoch,
    orders: mpsc::UnboundedSender<meter::Order>,
}

/// That a task meters, until this is dropped.
pub(super) struct Metering {
    monitor: Monitor,
    of: (VmId, Epoch),
}

impl Drop for Metering {
    fn drop(&mut self) {
        let accounts = &self.monitor.0.accounts;
        lock(&accounts.alive).remove(&self.of);
        accounts.ended.notify_one();
    }
}

impl Monitor {
    /// Has this stay of a VM metered, and no other.
    pub(super) fn meter(&self, vm: VmId, stay: Option<meter::Stay>) {
        let accounts = &self.0.accounts;
        let mut meters = lock(&accounts.meters);
        let Some(stay) = stay else { return drop(meters.remove(&vm)) };
        let place = (stay.instance, stay.epoch);
        if meters.get(&vm).is_some_and(|metered| (metered.instance, metered.epoch) == place) {
            return;
        }
        let of = (vm, stay.epoch);
        lock(&accounts.alive).insert(of);
        let alive = Metering { monitor: self.clone(), of };
        let hands = self.0.hands.get().expect("it is set before the first look").clone();
        let (orders, receiver) = mpsc::unbounded_channel();
        meters.insert(vm, Metered { instance: stay.instance, epoch: stay.epoch, orders });
        tokio::spawn(meter::Meter::run(self.clone(), hands, stay, receiver, alive));
    }

    /// Nothing is metered any more.
    pub(super) fn stop_metering(&self) {
        lock(&self.0.accounts.meters).clear();
    }

    /// The memory that a VM has by its descriptor.
    pub(super) fn memory(&self, vm: VmId) -> Option<Bytes> {
        lock(&self.0.known).get(&vm).map(|known| known.memory)
    }

    /// Takes a guest to account: as it was measured when it stopped, or by a look now. When this
    /// returns its use is durable, or could not be within a second.
    pub(crate) async fn account(&self, instance: Instance, used: Option<Sample>) {
        if self.0.hands.get().is_none() {
            // The node is starting, and looks at every guest when it has.
            return;
        }
        let accounted = async {
            let done = match self.order(instance, used) {
                Some(done) => done,
                None => {
                    // It has come a moment ago.
                    self.look().await.ok()?;
                    self.order(instance, used)?
                }
            };
            done.await.ok()
        };
        if !matches!(tokio::time::timeout(ACCOUNT_LIMIT, accounted).await, Ok(Some(()))) {
            tracing::debug!(%instance, "its use could not be stated now");
        }
    }

    fn order(&self, instance: Instance, used: Option<Sample>) -> Option<oneshot::Receiver<()>> {
        let meters = lock(&self.0.accounts.meters);
        let metered = meters.get(&instance.vm).filter(|metered| metered.instance == instance)?;
        let (done, is_done) = oneshot::channel();
        metered.orders.send(meter::Order { used, done }).ok()?;
        Some(is_done)
    }

    /// Makes the last statements of stays that are over: of those that a node before this one
    /// metered, too.
    pub(super) async fn close_accounts(&self) -> Result<(), Ended> {
        let Ok(tallies) = self.ledger().run(|book| book.tallies()).await else { return Ok(()) };
        let over: Vec<(VmId, Epoch, PublicKey)> = {
            let (alive, known) = (lock(&self.0.accounts.alive), lock(&self.0.known));
            let goes_on = |vm: &VmId, epoch: &Epoch| {
                alive.contains(&(*vm, *epoch))
                    || known
                        .get(vm)
                        .is_some_and(|known| known.stay.is_some() && known.newest() == Some(*epoch))
            };
            tallies.into_iter().filter(|(vm, epoch, _)| !goes_on(vm, epoch)).collect()
        };
        if over.is_empty() {
            return Ok(());
        }
        let keys = self.0.driver.visit(move |core| {
            let key = |of: (VmId, Epoch, PublicKey)| (of, core.known_key(&of.2));
            over.into_iter().map(key).collect::<Vec<_>>()
        });
        for ((vm, epoch, owner), key) in keys.await? {
            self.close(vm, epoch, owner, key).await;
        }
        Ok(())
    }

    async fn close(&self, vm: VmId, epoch: Epoch, owner: PublicKey, key: Option<SecretKey>) {
        let closed = self.ledger().run(move |book| {
            let tally = book.tally(vm, epoch)?;
            book.forget_tally(vm, epoch)?;
            // On a branch of the VM's life that counts no more nobody would take its word.
            let is_owner = book.owner(vm, epoch)?.is_none_or(|known| known == owner);
            let (Some(mut tally), Some(key), true) = (tally, key, is_owner) else {
                tracing::warn!(%vm, %epoch, "the last statement of its usage cannot be made");
                return Ok(None);
            };
            let Some(last) = tally.state(vm, epoch, true) else { return Ok(None) };
            let made = Signed::seal(&last, owner, |kind, body| key.sign(kind, body));
            let up = book.up(vm)?.flatten();
            book.take_statement(&made, &last, now(), None, up.as_ref())?;
            Ok(up)
        });
        // What could not be closed is tried again at the next look.
        if let Ok(Some(up)) = closed.await {
            self.wake(&up);
        }
    }

    /// Removes statements that were kept for long enough.
    pub(super) async fn sweep_usage(&self) {
        // A database that fails says so itself, and is asked again in an hour.
        let _ = self.ledger().run(|book| book.sweep_usage(now())).await;
    }

    /// Statements from the site below: verified against the VM's owners, kept, and owed to the site
    /// above; a verdict for each.
    pub(super) async fn take_statements(
        &self,
        statements: Vec<(Vec<u8>, Signature)>,
        from: &PeerName,
    ) -> Result<Vec<Verdict>, LedgerError> {
        if statements.is_empty() {
            return Ok(vec![]);
        }
        let read = |(body, signature): (Vec<u8>, Signature)| {
            Statement::read(&body).ok().map(|statement| Read { statement, body, signature })
        };
        let read: Vec<_> = statements.into_iter().map(read).collect();
        let of = read.iter().flatten().map(|read| (read.statement.vm, read.statement.epoch));
        let owners = self.owners_of(of).await?;
        let judged = tokio::task::spawn_blocking(move || {
            let one = |read: Option<Read>| judge(read.ok_or(Verdict::Refused)?, &owners);
            read.into_iter().map(one).collect::<Vec<_>>()
        });
        let judged = judged.await.expect("judging does not panic");
        let from = from.clone();
        let kept = self.ledger().run(move |book| {
            let (mut verdicts, mut ups) = (Vec::new(), HashSet::new());
            for judged in judged {
                let (made, statement) = match judged {
                    Ok(sound) => sound,
                    Err(verdict) => {
                        verdicts.push(verdict);
                        continue;
                    }
                };
                let Some(up) = book.up(statement.vm)? else {
                    verdicts.push(Verdict::Later);
                    continue;
                };
                let entry =
                    book.take_statement(&made, &statement, now(), Some(&from), up.as_ref())?;
                verdicts.push(match entry {
                    Entry::Contradiction => Verdict::Refused,
                    Entry::New | Entry::Known => Verdict::Taken,
                });
                ups.extend(up);
            }
            Ok((verdicts, ups))
        });
        let (verdicts, ups) = kept.await?;
        ups.iter().for_each(|up| self.wake(up));
        Ok(verdicts)
    }

    /// What VMs have used, by VM and epoch.
    pub(crate) async fn stays(&self, asked: Asked) -> Result<Vec<Stay>, LedgerError> {
        // Of a VM that this site has left it hears no more.
        let newest: HashMap<VmId, Epoch> = lock(&self.0.known)
            .iter()
            .filter_map(|(vm, known)| Some((*vm, known.newest()?)))
            .collect();
        let is_open = move |vm: VmId, epoch: Epoch| newest.get(&vm) == Some(&epoch);
        self.ledger().run(move |book| book.stays(&asked, is_open)).await
    }
}

/// A statement that came, whoever made it.
struct Read {
    statement: Statement,
    body: Vec<u8>,
    signature: Signature,
}

/// Whether a statement counts: whoever owned its VM in its epoch made it.
fn judge(read: Read, owners: &Owners) -> Result<(Signed<Statement>, Statement), Verdict> {
    let owner = owner(owners, read.statement.vm, read.statement.epoch)?;
    let made = Signed::<Statement>::from_parts(read.body, owner, read.signature);
    match made.open(&owner, &Strict) {
        Ok(statement) => Ok((made, statement)),
        Err(_) => Err(Verdict::Refused),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use model::Time;
    use monitoring::usage::Used;

    use super::*;

    const VM: VmId = VmId([7; 16]);

    fn key(epoch: u8) -> SecretKey {
        SecretKey::from_seed(&[epoch; 32])
    }

    /// What becomes of a statement of an epoch that the owner of another one makes.
    fn judged(vm: VmId, epoch: u64, by: u8) -> Result<Statement, Verdict> {
        // The site knows the owners of the epochs 1 and 2, as one that came to the path later.
        let known = BTreeMap::from([1, 2].map(|n: u8| (Epoch(n.into()), key(n).public())));
        let owners = Owners::from([(VM, Arc::new(known))]);
        let (since, until, used) = (Time(1), Time(2), Used::default());
        let statement = Statement { vm, epoch: Epoch(epoch), since, until, used, is_final: false };
        let made = Signed::seal(&statement, key(by).public(), |kind, b| key(by).sign(kind, b));
        let (body, signature) = (made.body, made.signature);
        judge(Read { statement, body, signature }, &owners).map(|(_, statement)| statement)
    }

    #[test]
    fn a_statement_counts_from_the_owner_of_its_epoch_alone() {
        assert!(judged(VM, 1, 1).is_ok() && judged(VM, 2, 2).is_ok());
        // A Source that has released the VM, and one that is to get it.
        assert_eq!(judged(VM, 2, 1), Err(Verdict::Refused));
        assert_eq!(judged(VM, 1, 2), Err(Verdict::Refused));
        assert_eq!(judged(VM, 0, 1), Err(Verdict::Refused), "nobody knows who owned it then");
        assert_eq!(judged(VM, 3, 3), Err(Verdict::Later), "its owner may become known");
        assert_eq!(judged(VmId([8; 16]), 1, 1), Err(Verdict::Later));
    }
}
