//! Monitoring at this site: measures the VMs that are here, takes what the sites below send, keeps
//! it, brings it to the site above, and shows it.
//!
//! ```text
//!   guest (one task a stay) ─┐                      ┌─▶ courier (one a peer) ─▶ site above
//!                            ├─▶ ledger (the book) ─┤
//!   gate: values from below ─┘     one thread       └─▶ whoever watches
//! ```
//!
//! Beside it, every guest is metered, and statements of its usage go the same way ([`usage`]).
//!
//! Nothing here decides about a VM, and nothing of it goes through the journal: a site that loses
//! its monitoring database loses values, never a VM.

mod census;
mod courier;
mod guest;
mod ledger;
mod meter;
mod show;
mod trigger;
mod usage;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hypervisor::Instance;
use model::key::Strict;
use model::monitoring::SectionId;
use model::{Bytes, Epoch, HostName, Monitoring, PeerName, PublicKey, SecretKey, VmId};
use monitoring::block::{Block, Malformed, SignedBlock};
use monitoring::book::{Book, BookError, Limits, Violation};
use monitoring::history::History;
use monitoring::seal::OpeningKey;
use proto::envelope::{Carried, Verdict};
use protocol::LIBRARY;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::driver::{Core, Driver, Ended};
use crate::folder::Folder;
use crate::hands::Hands;
use crate::link::{Links, now};
use crate::lock;
use crate::metrics::{CountedPolicy, Metrics, Origin};
use ledger::Ledger;

pub(crate) use ledger::LedgerError;
pub(crate) use show::{Asked, Shown, condition};

/// How soon after a change the VMs are looked at, and how often without one.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How long a VM that is to move waits for its history to be written.
const PACK_LIMIT: Duration = Duration::from_secs(60);
/// News that a watcher may be behind; then it looks at everything.
const NEWS: usize = 256;

/// A site's monitoring. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Monitor(Arc<Shared>);

struct Shared {
    folder: Folder,
    driver: Driver,
    policy: Arc<CountedPolicy>,
    ledger: Ledger,
    links: OnceLock<Links>,
    hands: OnceLock<Hands>,
    /// The VMs on whose path this site is.
    known: Mutex<HashMap<VmId, Known>>,
    guests: Mutex<HashMap<VmId, Guest>>,
    couriers: Mutex<HashMap<PeerName, Courier>>,
    news: broadcast::Sender<VmId>,
    /// Peers whose values are being taken.
    receiving: Mutex<HashSet<PeerName>>,
    /// Blocks that may tell of a condition and are to be weighed, of VMs that are being decided.
    weighing: Mutex<HashMap<VmId, Vec<Block>>>,
    accounts: usage::Accounts,
}

/// What monitoring knows of a VM.
#[derive(Clone)]
struct Known {
    k0: PublicKey,
    owners: Arc<BTreeMap<Epoch, PublicKey>>,
    section: Monitoring,
    /// The section's name.
    id: SectionId,
    up: Option<PeerName>,
    /// Where it is, if it is on a host of this site.
    stay: Option<(HostName, Epoch)>,
    /// Memory that it has by its descriptor.
    memory: Bytes,
    /// What opens its sealed values, at its primary, if limits of service are among them.
    opening: Option<Arc<OpeningKey>>,
    /// Whether the book has it.
    is_kept: bool,
}

impl Known {
    /// The newest epoch.
    fn newest(&self) -> Option<Epoch> {
        self.owners.last_key_value().map(|(epoch, _)| *epoch)
    }
}

/// A task that measures.
struct Guest {
    epoch: Epoch,
    orders: mpsc::UnboundedSender<guest::Order>,
}

/// A peer whose values are being taken, until this is dropped.
pub(crate) struct Alone {
    monitor: Monitor,
    peer: PeerName,
}

impl Drop for Alone {
    fn drop(&mut self) {
        lock(&self.monitor.0.receiving).remove(&self.peer);
    }
}

/// A task that delivers.
struct Courier {
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

/// What has changed of a VM.
struct Change {
    vm: VmId,
    /// The newest; none if this site has left its path.
    known: Option<Known>,
    /// The key that this site signs with, if it has the VM.
    key: Option<SecretKey>,
}

impl Monitor {
    /// Opens the database of the site in `folder`.
    pub(crate) fn open(
        folder: &Folder,
        driver: &Driver,
        policy: Arc<CountedPolicy>,
    ) -> Result<Self, BookError> {
        let book = Book::open(&folder.monitoring(), Limits::default())?;
        let (news, _) = broadcast::channel(NEWS);
        Ok(Self(Arc::new(Shared {
            folder: folder.clone(),
            driver: driver.clone(),
            policy,
            ledger: Ledger::start(book).expect("threads can be started"),
            links: OnceLock::new(),
            hands: OnceLock::new(),
            known: Mutex::default(),
            guests: Mutex::default(),
            couriers: Mutex::default(),
            news,
            receiving: Mutex::default(),
            weighing: Mutex::default(),
            accounts: usage::Accounts::default(),
        })))
    }

    /// Measures and delivers, for as long as the node runs.
    pub(crate) async fn run(self, links: Links, hands: Hands) {
        let _ = self.0.links.set(links);
        let _ = self.0.hands.set(hands);
        let creditors = self.ledger().run(|book| book.creditors()).await;
        for peer in creditors.unwrap_or_default() {
            self.wake(&peer);
        }
        let mut changes = self.0.driver.changes();
        let mut sweep = tokio::time::interval(usage::SWEEP);
        while self.look().await.is_ok() {
            tokio::select! {
                _ = changes.recv() => {}
                () = self.0.accounts.ended.notified() => {}
                _ = sweep.tick() => self.sweep_usage().await,
                () = tokio::time::sleep(LOOK.1) => {}
            }
            tokio::time::sleep(LOOK.0).await;
        }
        self.stop_metering();
        lock(&self.0.guests).clear();
        lock(&self.0.couriers).drain().for_each(|(_, courier)| courier.task.abort());
    }

    fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    fn metrics(&self) -> &Metrics {
        self.0.driver.metrics()
    }

    fn links(&self) -> &Links {
        self.0.links.get().expect("couriers are started after it is set")
    }

    /// Takes over what the driver knows of the VMs.
    async fn look(&self) -> Result<(), Ended> {
        let _turn = self.0.accounts.turn.lock().await;
        let monitor = self.clone();
        let changed = self.0.driver.visit(move |core| monitor.changes(core)).await?;
        for change in changed {
            self.apply(change).await;
        }
        self.close_accounts().await
    }

    /// What has changed since the last look. It is made in the driver, and must not take long.
    fn changes(&self, core: &Core) -> Vec<Change> {
        let mut known = lock(&self.0.known);
        let mut changes = Vec::new();
        let vms = &core.site.state.vms;
        known.retain(|vm, _| {
            let is_there = vms.get(vm).is_some_and(|entry| !entry.destroyed);
            if !is_there {
                changes.push(Change { vm: *vm, known: None, key: None });
            }
            is_there
        });
        for (vm, entry) in vms.iter().filter(|(_, entry)| !entry.destroyed) {
            let stay = entry.stay.as_ref().filter(|stay| stay.host.as_str() != LIBRARY);
            let place = stay.map(|stay| (stay.host.clone(), stay.epoch));
            let up = entry.up.as_ref().map(|edge| &edge.peer);
            let old = known.get(vm);
            let newest = entry.chain.epoch();
            let is_same = old.is_some_and(|old| {
                old.is_kept
                    && old.newest() == Some(newest)
                    && old.memory == entry.descriptor.resources.memory
                    && old.section == entry.descriptor.monitoring
                    && old.up.as_ref() == up
                    && old.stay == place
            });
            if is_same {
                continue;
            }
            let owners = (0..=newest.0).map(Epoch);
            let owners = owners.filter_map(|epoch| Some((epoch, entry.chain.owner_at(epoch)?)));
            let now = Known {
                k0: entry.chain.k0,
                owners: Arc::new(owners.collect()),
                section: entry.descriptor.monitoring.clone(),
                id: entry.descriptor.monitoring.id(),
                up: up.cloned(),
                stay: place,
                memory: entry.descriptor.resources.memory,
                opening: (up.is_none() && hides_a_limit(&entry.descriptor.monitoring))
                    .then(|| Arc::new(opening_key(&core.key(&entry.chain.k0)))),
                is_kept: false,
            };
            let key = stay.map(|stay| core.key(&stay.key));
            known.insert(*vm, now.clone());
            changes.push(Change { vm: *vm, known: Some(now), key });
        }
        changes
    }

    async fn apply(&self, Change { vm, known, key }: Change) {
        let Some(known) = known else {
            lock(&self.0.guests).remove(&vm);
            self.meter(vm, None);
            // What the site above is to have stays until it has it.
            let _ = self.ledger().run(move |book| book.forget(vm)).await;
            return;
        };
        let owners: Vec<_> = known.owners.iter().map(|(epoch, key)| (*epoch, *key)).collect();
        let (section, up) = (known.section.clone(), known.up.clone());
        let kept = self.ledger().run(move |book| {
            book.remember(vm, &owners, &section, up.as_ref())?;
            match &up {
                Some(up) => book.redirect(vm, up),
                None => Ok(()),
            }
        });
        // Else it is taken over again at the next look: without its path in the book, what comes of
        // this VM would never be passed on.
        if kept.await.is_ok() {
            if let Some(known) = lock(&self.0.known).get_mut(&vm) {
                known.is_kept = true;
            }
            if let Some(up) = &known.up {
                self.wake(up);
            }
        }
        let metered = known.stay.as_ref().zip(key.as_ref()).zip(known.newest());
        self.meter(
            vm,
            metered.map(|(((host, stay), key), epoch)| {
                let instance = Instance { vm, epoch: *stay };
                meter::Stay { instance, host: host.clone(), epoch, key: key.clone() }
            }),
        );
        let mut guests = lock(&self.0.guests);
        match (known.stay, key) {
            (Some((host, epoch)), Some(key)) => {
                if let Some(guest) = guests.get(&vm).filter(|guest| guest.epoch == epoch) {
                    let _ = guest.orders.send(guest::Order::Look);
                    return;
                }
                let (orders, receiver) = mpsc::unbounded_channel();
                let folder = self.0.folder.stay(&host, vm, epoch);
                let instance = Instance { vm, epoch };
                let place = guest::Place { instance, host, key, folder };
                let hands = self.0.hands.get().expect("it is set before the first look").clone();
                tokio::spawn(guest::Task::run(self.clone(), hands, place, receiver));
                guests.insert(vm, Guest { epoch, orders });
            }
            _ => {
                guests.remove(&vm);
            }
        }
    }

    /// Makes the file that moves with a VM which is quiet.
    pub(crate) async fn pack(&self, instance: Instance, path: &Path) -> Result<(), String> {
        let (done, packed) = oneshot::channel();
        {
            let guests = lock(&self.0.guests);
            let guest = guests.get(&instance.vm).filter(|guest| guest.epoch == instance.epoch);
            let order = guest::Order::Pack(path.to_owned(), done);
            if let Some(guest) = guest {
                let _ = guest.orders.send(order);
            }
        }
        let why = match tokio::time::timeout(PACK_LIMIT, packed).await {
            Ok(Ok(packed)) => match packed {
                Ok(()) => return Ok(()),
                Err(why) => why,
            },
            // Nothing measures it here.
            Ok(Err(_)) => match guest::pack_kept(self, instance, path).await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            },
            Err(_) => format!("not done in {PACK_LIMIT:?}"),
        };
        // Values may be lost; a VM that must move moves.
        tracing::error!(%instance, why, "the history of its monitoring stays behind");
        guest::write(path, History::default()).await
    }

    /// Lets one message of a peer in at a time.
    pub(crate) fn alone(&self, peer: &PeerName) -> Option<Alone> {
        let is_first = lock(&self.0.receiving).insert(peer.clone());
        is_first.then(|| Alone { monitor: self.clone(), peer: peer.clone() })
    }

    /// Values and usage from the site below: verified against the VM's owners, kept, and owed to the
    /// site above; a verdict for each.
    pub(crate) async fn receive(
        &self,
        carried: Vec<Carried>,
        from: &PeerName,
    ) -> Result<Vec<Verdict>, LedgerError> {
        let (mut blocks, mut statements, mut are_values) = (Vec::new(), Vec::new(), Vec::new());
        for one in carried {
            are_values.push(matches!(one, Carried::Values(..)));
            match one {
                Carried::Values(body, signature) => blocks.push(SignedBlock { body, signature }),
                Carried::Usage(body, signature) => statements.push((body, signature)),
            }
        }
        let mut values = self.take(blocks).await?.into_iter();
        let mut usage = self.take_statements(statements, from).await?.into_iter();
        let next = |is_value| if is_value { values.next() } else { usage.next() };
        let verdicts = are_values.into_iter().map(next);
        Ok(verdicts.map(|verdict| verdict.expect("there is one for each")).collect())
    }

    /// Verifies blocks and keeps them; a verdict for each.
    async fn take(&self, blocks: Vec<SignedBlock>) -> Result<Vec<Verdict>, LedgerError> {
        if blocks.is_empty() {
            return Ok(vec![]);
        }
        let read = tokio::task::spawn_blocking(move || {
            let one = |signed: SignedBlock| signed.peek().map(|block| (signed, block));
            blocks.into_iter().map(one).collect::<Vec<_>>()
        });
        let read = read.await.expect("reading does not panic");
        let of = read.iter().flatten().map(|(_, block)| (block.vm, block.epoch));
        let owners = self.owners_of(of).await?;
        let opening: HashMap<VmId, Arc<OpeningKey>> = {
            let known = lock(&self.0.known);
            let vms = read.iter().flatten().map(|(_, block)| block.vm);
            vms.filter_map(|vm| Some((vm, known.get(&vm)?.opening.clone()?))).collect()
        };
        let judged = tokio::task::spawn_blocking(move || {
            let one = |read: Result<(SignedBlock, Block), Malformed>| {
                let (signed, block) = read.map_err(|_| Verdict::Refused)?;
                judge(&signed, &block, &owners)?;
                let hidden = opening.get(&block.vm).and_then(|key| {
                    let place = (block.vm, block.epoch, block.first);
                    key.values(place, block.sealed.as_ref()?).ok()
                });
                Ok((signed, block, hidden.unwrap_or_default()))
            };
            read.into_iter().map(one).collect::<Vec<_>>()
        });
        let judged = judged.await.expect("judging does not panic");
        let received = now();
        let kept = self.ledger().run(move |book| {
            let (mut verdicts, mut news) = (Vec::new(), Vec::new());
            for judged in judged {
                let (signed, block, hidden) = match judged {
                    Ok(sound) => sound,
                    Err(verdict) => {
                        verdicts.push(verdict);
                        continue;
                    }
                };
                // A site that has left the path passes on to whoever was above.
                let Some(up) = book.up(block.vm)? else {
                    verdicts.push(Verdict::Later);
                    continue;
                };
                if book.take(&signed, &block, &hidden, received, up.as_ref())? {
                    news.push((block, up));
                }
                verdicts.push(Verdict::Taken);
            }
            Ok((verdicts, news))
        });
        let (verdicts, news) = kept.await?;
        let refused = verdicts.iter().filter(|verdict| **verdict == Verdict::Refused).count();
        self.metrics().values_refused(refused as u64);
        let values = news.iter().map(|(block, _)| block.count()).sum();
        self.metrics().values_taken(Origin::Peer, news.len() as u64, values);
        let mut told = HashSet::new();
        for (block, up) in news {
            if told.insert(block.vm) {
                self.tell(block.vm, up.as_ref());
            }
            self.weigh(block);
        }
        Ok(verdicts)
    }

    /// The owners of VMs in these epochs, as far as this site knows them.
    async fn owners_of(
        &self,
        of: impl Iterator<Item = (VmId, Epoch)>,
    ) -> Result<Owners, LedgerError> {
        let mut owners = Owners::new();
        let mut unknown = Vec::new();
        for (vm, epoch) in of {
            let known = lock(&self.0.known).get(&vm).map(|known| known.owners.clone());
            match known {
                Some(known) => _ = owners.insert(vm, known),
                None => unknown.push((vm, epoch)),
            }
        }
        if unknown.is_empty() {
            return Ok(owners);
        }
        let remembered = self.ledger().run(move |book| {
            let mut remembered: HashMap<VmId, BTreeMap<Epoch, PublicKey>> = HashMap::new();
            for (vm, epoch) in unknown {
                if let Some(key) = book.owner(vm, epoch)? {
                    remembered.entry(vm).or_default().insert(epoch, key);
                }
            }
            Ok(remembered)
        });
        owners.extend(remembered.await?.into_iter().map(|(vm, keys)| (vm, Arc::new(keys))));
        Ok(owners)
    }

    /// Limits of service that were broken, of one VM or of all, the oldest first.
    pub(crate) async fn violations(&self, vm: Option<VmId>) -> Result<Vec<Violation>, LedgerError> {
        self.ledger().run(move |book| book.violations(vm)).await
    }

    /// There is something new of a VM: for who watches, and for the site above.
    fn tell(&self, vm: VmId, up: Option<&PeerName>) {
        let _ = self.0.news.send(vm);
        if let Some(up) = up {
            self.wake(up);
        }
    }

    /// Wakes the courier to a peer, and starts it if there is none yet.
    fn wake(&self, peer: &PeerName) {
        let mut couriers = lock(&self.0.couriers);
        let courier = couriers.entry(peer.clone()).or_insert_with(|| {
            let wake = Arc::new(Notify::new());
            let task = tokio::spawn(courier::run(self.clone(), peer.clone(), wake.clone()));
            Courier { wake, task }
        });
        courier.wake.notify_one();
    }
}

/// By VM, the owners of its epochs.
type Owners = HashMap<VmId, Arc<BTreeMap<Epoch, PublicKey>>>;

/// Who owned a VM in an epoch, or what becomes of a word of it.
fn owner(owners: &Owners, vm: VmId, epoch: Epoch) -> Result<PublicKey, Verdict> {
    let of_vm = owners.get(&vm).ok_or(Verdict::Later)?;
    of_vm.get(&epoch).copied().ok_or_else(|| {
        // The news of a new owner comes by another way, and may be slower.
        let newest = of_vm.last_key_value().map(|(epoch, _)| *epoch);
        let is_new = newest.is_none_or(|newest| epoch > newest);
        if is_new { Verdict::Later } else { Verdict::Refused }
    })
}

/// Whether a block counts: whoever owned its VM in its epoch made it.
fn judge(signed: &SignedBlock, block: &Block, owners: &Owners) -> Result<(), Verdict> {
    let owner = owner(owners, block.vm, block.epoch)?;
    if signed.is_of(&owner, &Strict) { Ok(()) } else { Err(Verdict::Refused) }
}

fn hides_a_limit(section: &Monitoring) -> bool {
    section.specifiers.iter().any(|specifier| specifier.limit && specifier.sealed)
}

/// What opens the sealed values of a VM, at its primary, which alone has the VM's own key.
pub(crate) fn opening_key(k0: &SecretKey) -> OpeningKey {
    OpeningKey::from_seed(&sealing_seed(k0)).0
}

fn sealing_seed(k0: &SecretKey) -> [u8; 32] {
    blake3::derive_key("sojourn 2026 sealing key of a VM v1", &*k0.seed())
}

/// Takes away what is this VM's alone, for a package that another may be made of: the voucher, and
/// the sealing key that its primary made, where that can be told.
pub(crate) fn unvouch(monitoring: &mut Monitoring, k0: Option<&SecretKey>) {
    (monitoring.revision, monitoring.voucher) = (0, None);
    let made = k0.map(|k0| OpeningKey::from_seed(&sealing_seed(k0)).1);
    if made == monitoring.sealing_key {
        monitoring.sealing_key = None;
    }
}

/// Gives a new VM a sealing key, and its own key's word for what is measured of it.
///
/// A key that its package names stays: then whoever made that opens what is sealed to it.
pub(crate) fn vouch(monitoring: &mut Monitoring, k0: &SecretKey) {
    let made = || OpeningKey::from_seed(&sealing_seed(k0)).1;
    monitoring.sealing_key = Some(monitoring.sealing_key.unwrap_or_else(made));
    monitoring.revision = 1;
    monitoring.vouch(|kind, body| k0.sign(kind, body));
}
