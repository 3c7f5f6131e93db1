//! The one driver loop: step, persist, then send.
//!
//! It is one task beside the gate and the links, so that no request changes threads to reach it.
//! A commit waits for the disk; the thread's other tasks go on meanwhile. What came in by then is
//! handled together and committed together; effects are done only after the commit that their
//! rows are part of. If the commit fails, nothing is sent and the node ends: after a restart it
//! goes on from what the disk has.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use certs::Identity;
use model::decision::{Granted, Policy, Share, TransferRole};
use model::key::{Strict, Verify};
use model::{
    EdgeHandle, HostName, JournalMark, MigrationId, OperationId, PeerName, ProxyUri, PublicKey,
    SecretKey, Signature, SiteKey, Time, Token, VmId,
};
use protocol::{Answer, Ask, Caller, Effect, Event, Found, Output, Party, Reply, Row, Site, World};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::block_in_place;

use crate::hands::{About, Hands};
use crate::journal::{EventLine, Journal, JournalError, Loaded, operation_subject, vm_subject};
use crate::link::Links;
use crate::metrics::{CountedPolicy, Metrics};
use crate::peers::Peers;
use crate::proxies::Proxies;

/// Inputs that wait for the driver; whoever adds one more waits.
const QUEUE: usize = 4096;
/// Inputs that one commit takes together.
const BATCH: usize = 128;
/// How long the loop sleeps at most: a clock that was set back is noticed then, and what is waited
/// for goes on.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How long a line about a VM may stay unwritten while nothing else is.
const EVENT_DELAY: Duration = Duration::from_millis(500);
/// How long keys of offers that nobody took are kept in memory, beyond twice the offers' own life.
const KEY_GRACE: Duration = Duration::from_secs(3600);

/// A look at, or a change of, what only the driver may touch.
type Visit = Box<dyn FnOnce(&mut Core) + Send>;

/// How long peers' journals are, shared between the doors and the driver.
type Seen = Arc<Mutex<BTreeMap<SiteKey, JournalMark>>>;

/// What the driver is fed.
pub(crate) enum Input {
    /// Something for the machine.
    Event(Event),
    /// A peer's request, and where its answer goes.
    Peer {
        from: model::PeerName,
        request: Box<protocol::Request>,
        answer: oneshot::Sender<Answered>,
    },
    /// A user's wish, and where the reply goes.
    User { wish: Box<Ask>, reply: oneshot::Sender<Reply> },
    /// Anything else.
    Visit(Visit),
    /// End the loop.
    Stop,
}

/// An answer to a peer, and how long this site's journal was when it was given.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) journal: JournalMark,
}

/// Feeds the driver.
#[derive(Clone)]
pub(crate) struct Driver {
    inputs: mpsc::Sender<Input>,
    changes: broadcast::Sender<()>,
    /// How long the journals of peers are that spoke since the last commit.
    seen: Seen,
    metrics: Metrics,
}

/// The driver has ended; the node is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node is shutting down")]
pub(crate) struct Ended;

/// What the driver owns.
pub(crate) struct Core {
    pub(crate) site: Site,
    pub(crate) journal: Journal,
    world: NodeWorld,
    desk: Desk,
}

/// Who waits for what, and what is to be told and remembered with the next commit.
struct Desk {
    now: Time,
    peers: HashMap<u64, oneshot::Sender<Answered>>,
    users: HashMap<u64, oneshot::Sender<Reply>>,
    next: u64,
    seen: Seen,
    lines: Vec<EventLine>,
    lines_since: Option<Time>,
    changes: broadcast::Sender<()>,
    metrics: Metrics,
}

/// The world, as the machine of a real node sees it.
pub(crate) struct NodeWorld {
    now: Time,
    /// Private halves of this site's per-VM, transfer and migration keys.
    keys: BTreeMap<PublicKey, SecretKey>,
    /// Made and not durable yet, oldest first.
    fresh: VecDeque<(Time, PublicKey)>,
    token_secret: [u8; 32],
    proxies: Proxies,
    policy: Arc<CountedPolicy>,
    identity: Arc<Identity>,
    known: Peers,
    /// How long keys of offers that nobody took are kept in memory.
    key_life: Duration,
}

impl Verify for NodeWorld {
    fn verify(&self, key: &PublicKey, kind: &str, body: &[u8], signature: &Signature) -> bool {
        Strict.verify(key, kind, body, signature)
    }

    fn is_sound(&self, key: &PublicKey) -> bool {
        Strict.is_sound(key)
    }
}

impl World for NodeWorld {
    fn now(&self) -> Time {
        self.now
    }

    fn random(&mut self) -> [u8; 32] {
        rand::random()
    }

    fn create_key(&mut self) -> PublicKey {
        let key = SecretKey::from_seed(&rand::random());
        let public = key.public();
        self.keys.insert(public, key);
        self.fresh.push_back((self.now, public));
        public
    }

    fn sign(&self, key: &PublicKey, kind: &str, body: &[u8]) -> Signature {
        self.key(key).sign(kind, body)
    }

    fn sign_as_site(&self, kind: &str, body: &[u8]) -> Signature {
        self.identity.sign(kind, body)
    }

    fn source_token(&self, migration: MigrationId) -> Token {
        Token(*blake3::keyed_hash(&self.token_secret, &migration.0).as_bytes())
    }

    fn relay_token(&self, of: EdgeHandle, for_source: bool) -> Token {
        // Longer than a migration's id, so that no token of a Source is among them.
        let mut name = [u8::from(for_source); 17];
        name[..16].copy_from_slice(&of.0);
        Token(*blake3::keyed_hash(&self.token_secret, &name).as_bytes())
    }

    fn relay_key(&mut self, of: EdgeHandle) -> PublicKey {
        let mut name = [2; 17];
        name[..16].copy_from_slice(&of.0);
        let seed = blake3::keyed_hash(&self.token_secret, &name);
        let key = SecretKey::from_seed(seed.as_bytes());
        let public = key.public();
        // It is made again whenever it is needed, and need not be kept for longer.
        if !self.keys.contains_key(&public) {
            self.add_key(key);
        }
        public
    }

    fn proxy_uri(&self, host: &HostName) -> ProxyUri {
        self.proxies.of(host).uri()
    }

    fn inner_uri(&self, host: &HostName) -> ProxyUri {
        self.proxies.of(host).inner_uri()
    }

    fn identity(&self, party: &Party) -> Option<SiteKey> {
        match party {
            Party::Here => Some(self.identity.site_key()),
            Party::Peer(name) => self.known.get(name).map(|peer| peer.key),
        }
    }

    fn policy(&self) -> &dyn Policy {
        &*self.policy
    }
}

impl NodeWorld {
    /// The private half of one of this site's keys.
    pub(crate) fn key(&self, public: &PublicKey) -> &SecretKey {
        self.keys.get(public).expect("the machine only names keys that it had made")
    }

    /// Adds a key that was made elsewhere, until it is durable.
    pub(crate) fn add_key(&mut self, key: SecretKey) {
        self.fresh.push_back((self.now, key.public()));
        self.keys.insert(key.public(), key);
    }

    /// The fresh keys that these rows make durable.
    fn take_keys(&mut self, rows: &[Row]) -> Vec<SecretKey> {
        let mut taken = Vec::new();
        for public in rows.iter().flat_map(keys_of) {
            if let Some(at) = self.fresh.iter().position(|(_, fresh)| *fresh == public) {
                self.fresh.remove(at);
                taken.push(self.keys[&public].clone());
            }
        }
        while let Some((made, public)) = self.fresh.front().copied()
            && made.after(self.key_life) < self.now
        {
            self.fresh.pop_front();
            self.keys.remove(&public);
        }
        taken
    }
}

/// This site's own keys that a row speaks of, and that must be durable with it.
fn keys_of(row: &Row) -> Vec<PublicKey> {
    match row {
        Row::Imported { chain, .. } => vec![chain.k0, chain.newest().owner],
        Row::Chosen { key, .. } => vec![*key],
        Row::Offered { transfer_key, .. } => vec![*transfer_key],
        Row::Admitted { vm_key, transfer_key, .. } => vec![*vm_key, *transfer_key],
        Row::Adopted { stay, .. } => vec![stay.key],
        _ => vec![],
    }
}

fn clock() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the driver starts from.
pub(crate) struct Start {
    pub config: protocol::Config,
    pub journal: Journal,
    /// What the journal says.
    pub loaded: Loaded,
    pub policy: Arc<CountedPolicy>,
    pub identity: Arc<Identity>,
    pub known: Peers,
    pub proxies: Proxies,
    /// Every host's profile, where its hypervisor could tell.
    pub profiles: Vec<(HostName, model::RunProfile)>,
    pub found: Vec<Found>,
    /// The longest journal of this site that a peer remembers.
    pub journal_seen: u64,
}

impl Driver {
    /// Makes the channel; the loop is started with [`Driver::run`].
    pub(crate) fn channel(metrics: Metrics) -> (Self, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(QUEUE);
        let (changes, _) = broadcast::channel(16);
        (Self { inputs, changes, seen: Seen::default(), metrics }, receiver)
    }

    /// The loop. It ends with [`Input::Stop`], or with the error after which nothing may be promised
    /// any more. Its runtime must be one that can replace a thread that waits for the disk.
    ///
    /// `ready` is told when guests that are not this site's were ended, and doors may open.
    pub(crate) async fn run(
        &self,
        start: Start,
        mut inputs: mpsc::Receiver<Input>,
        hands: &Hands,
        links: &Links,
        ready: oneshot::Sender<()>,
    ) -> Result<(), JournalError> {
        let loaded = start.loaded;
        let world = NodeWorld {
            now: clock(),
            keys: loaded.keys,
            fresh: VecDeque::new(),
            token_secret: loaded.token_secret,
            proxies: start.proxies,
            policy: start.policy,
            identity: start.identity,
            known: start.known,
            key_life: 2 * start.config.offer_life + KEY_GRACE,
        };
        let mut core = Core {
            site: Site::new(start.config, loaded.state),
            journal: start.journal,
            desk: Desk {
                now: world.now,
                peers: HashMap::new(),
                users: HashMap::new(),
                next: 0,
                seen: self.seen.clone(),
                lines: Vec::new(),
                lines_since: None,
                changes: self.changes.clone(),
                metrics: self.metrics.clone(),
            },
            world,
        };
        let begin = protocol::Start {
            peers: peerings(&core.journal)?,
            profiles: start.profiles,
            found: start.found,
            journal: core.journal.len(),
            journal_seen: start.journal_seen,
        };
        let Core { site, journal, world, desk } = &mut core;
        let mut doors = Doors { journal, desk, hands, links, durable: vec![] };
        site.start(world, begin, &mut doors)?;
        fail_point("replied", &doors.durable);
        let _ = ready.send(());
        core.turn(&mut inputs, hands, links).await
    }

    /// Tells the machine that something happened.
    pub(crate) async fn event(&self, event: Event) {
        // At shutdown nobody is left to hear it; after the restart it is found again.
        let _ = self.inputs.send(Input::Event(event)).await;
    }

    /// A peer's request, and its answer.
    pub(crate) async fn request(
        &self,
        from: model::PeerName,
        request: protocol::Request,
    ) -> Result<Answered, Ended> {
        let (answer, receiver) = oneshot::channel();
        let input = Input::Peer { from, request: Box::new(request), answer };
        self.inputs.send(input).await.map_err(|_| Ended)?;
        receiver.await.map_err(|_| Ended)
    }

    /// Notes how long a peer's journal is.
    ///
    /// It is written with the next rows: what a peer did that matters here has some.
    pub(crate) fn saw_journal(&self, key: SiteKey, mark: JournalMark) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = seen.entry(key).or_insert(mark);
        if mark.length > longest.length {
            *longest = mark;
        }
    }

    /// A user's wish, and the reply.
    pub(crate) async fn ask(&self, wish: Ask) -> Result<Reply, Ended> {
        let (reply, receiver) = oneshot::channel();
        let input = Input::User { wish: Box::new(wish), reply };
        self.inputs.send(input).await.map_err(|_| Ended)?;
        receiver.await.map_err(|_| Ended)
    }

    /// Does something in the driver, between two events.
    pub(crate) async fn visit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (done, receiver) = oneshot::channel();
        let visit: Visit = Box::new(move |core| {
            let _ = done.send(work(core));
        });
        self.inputs.send(Input::Visit(visit)).await.map_err(|_| Ended)?;
        receiver.await.map_err(|_| Ended)
    }

    /// Where everything that has a driver's handle counts what happens.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Wakes whenever something changed that a user may watch.
    pub(crate) fn changes(&self) -> broadcast::Receiver<()> {
        self.changes.subscribe()
    }

    /// Ends the loop, after what is in the queue.
    pub(crate) async fn stop(&self) {
        let _ = self.inputs.send(Input::Stop).await;
    }
}

impl Core {
    async fn turn(
        &mut self,
        inputs: &mut mpsc::Receiver<Input>,
        hands: &Hands,
        links: &Links,
    ) -> Result<(), JournalError> {
        loop {
            let first = match tokio::time::timeout(self.next_wake(), inputs.recv()).await {
                Ok(Some(input)) => Some(input),
                Ok(None) => Some(Input::Stop),
                Err(_) => None,
            };
            let mut events = Vec::new();
            let mut visits = Vec::new();
            let mut stop = false;
            let mut next = first;
            while let Some(input) = next {
                match input {
                    Input::Stop => stop = true,
                    Input::Visit(visit) => {
                        // A visitor sees only what is durable.
                        visits.push(visit);
                        break;
                    }
                    other => events.push(self.desk.event_of(other)),
                }
                next = if events.len() < BATCH && !stop { inputs.try_recv().ok() } else { None };
            }
            self.set_clock();
            let Self { site, journal, world, desk } = self;
            let mut doors = Doors { journal, desk, hands, links, durable: vec![] };
            site.turn(world, events, &mut doors)?;
            fail_point("replied", &doors.durable);
            self.end_peerings()?;
            for visit in visits {
                // It may read the journal.
                block_in_place(|| visit(self));
            }
            if stop {
                return self.write_lines();
            }
        }
    }

    /// Forgets the peers whose peering was to end and with whom nothing is shared any more.
    fn end_peerings(&mut self) -> Result<(), JournalError> {
        let over: Vec<model::PeerName> = self.site.peerings_over(self.world.now).cloned().collect();
        if over.is_empty() {
            return Ok(());
        }
        for name in over {
            self.journal.remove_peer(&name)?;
            tracing::info!(peer = %name, "the peering has ended");
        }
        self.world.known.load(self.journal.peers()?, self.journal.inviting_until()?);
        self.peers_changed()
    }

    fn set_clock(&mut self) {
        self.world.now = clock();
        self.desk.now = self.world.now;
    }

    fn next_wake(&self) -> Duration {
        let now = clock();
        let deadline = self.site.next_deadline().map(|at| at.since(now));
        let lines = self.desk.lines_since.map(|since| since.after(EVENT_DELAY).since(now));
        deadline
            .into_iter()
            .chain(lines)
            .min()
            .map_or(LONGEST_SLEEP, |wait| wait.min(LONGEST_SLEEP))
    }

    pub(crate) fn write_lines(&mut self) -> Result<(), JournalError> {
        self.desk.write_lines(&mut self.journal)
    }

    /// The events about a subject, with those not written yet.
    pub(crate) fn events(&mut self, subject: &str) -> Result<Vec<EventLine>, JournalError> {
        self.write_lines()?;
        self.journal.events(subject)
    }

    /// The private half of one of this site's keys.
    pub(crate) fn key(&self, public: &PublicKey) -> SecretKey {
        self.world.key(public).clone()
    }

    /// The private half of a key, if it is one of this site's.
    pub(crate) fn known_key(&self, public: &PublicKey) -> Option<SecretKey> {
        self.world.keys.get(public).cloned()
    }

    /// Adds a key that was made elsewhere; it becomes durable with the first row that names it.
    pub(crate) fn add_key(&mut self, key: SecretKey) {
        self.world.add_key(key);
    }

    /// Takes down something that happened to a VM, for its events.
    pub(crate) fn note(&mut self, vm: VmId, text: String) {
        self.desk.note(&[Effect::Note { vm, text }]);
    }

    /// How long the journal is, for peers to remember.
    pub(crate) fn journal_mark(&mut self) -> JournalMark {
        self.journal.mark(&self.world.identity)
    }

    /// What time it is for the driver.
    pub(crate) fn now(&self) -> Time {
        self.world.now
    }

    /// A peer has a new key, which its old one has certified.
    pub(crate) fn renew_peer(&mut self, old: &SiteKey, new: &SiteKey) -> Result<(), JournalError> {
        self.journal.renew_key(old, new)?;
        self.world.known.load(self.journal.peers()?, self.journal.inviting_until()?);
        if let Some(peer) = self.world.known.by_key(new) {
            tracing::info!(peer = %peer.name, key = %new, "the peer has a new key");
        }
        Ok(())
    }

    /// Tells the machine which peers there are, after a visitor has changed them.
    pub(crate) fn peers_changed(&mut self) -> Result<(), JournalError> {
        self.site.set_peers(peerings(&self.journal)?);
        let _ = self.desk.changes.send(());
        Ok(())
    }
}

impl Desk {
    fn event_of(&mut self, input: Input) -> Event {
        self.next += 1;
        match input {
            Input::Event(event) => event,
            Input::Peer { from, request, answer } => {
                self.peers.insert(self.next, answer);
                Event::Request { caller: Caller::Peer(self.next), from, request }
            }
            Input::User { wish, reply } => {
                self.users.insert(self.next, reply);
                Event::Ask { ask: self.next, wish }
            }
            Input::Visit(_) | Input::Stop => {
                unreachable!("the loop keeps these to itself")
            }
        }
    }

    /// Takes down what is to be told, to be written with the next rows or a little later.
    fn note(&mut self, effects: &[Effect]) {
        for effect in effects {
            let (subject, text) = match effect {
                Effect::Note { vm, text } => (vm_subject(*vm), text),
                Effect::Progress { operation, text } => (operation_subject(*operation), text),
                _ => continue,
            };
            tracing::info!(subject, "{text}");
            self.lines.push(EventLine { at: self.now, subject, text: text.clone() });
            self.lines_since.get_or_insert(self.now);
        }
    }

    fn take_lines(&mut self) -> Vec<EventLine> {
        self.lines_since = None;
        std::mem::take(&mut self.lines)
    }

    fn take_seen(&self) -> BTreeMap<SiteKey, JournalMark> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_lines(&mut self, journal: &mut Journal) -> Result<(), JournalError> {
        let lines = self.take_lines();
        if lines.is_empty() {
            return Ok(());
        }
        let seen = self.take_seen();
        block_in_place(|| {
            journal.write(self.now, &[], &[], &lines, &seen)?;
            self.sync(journal)
        })
    }

    fn sync(&self, journal: &mut Journal) -> Result<(), JournalError> {
        let begun = Instant::now();
        journal.sync()?;
        self.metrics.synced(begun.elapsed());
        Ok(())
    }
}

/// What the machine's outputs go through.
struct Doors<'a> {
    journal: &'a mut Journal,
    desk: &'a mut Desk,
    hands: &'a Hands,
    links: &'a Links,
    /// The types of the rows of this turn, once they are durable.
    durable: Vec<&'static str>,
}

impl protocol::Driver<NodeWorld> for Doors<'_> {
    type Error = JournalError;

    /// Persists rows with the keys that they speak of, and what is to be told about them.
    fn write(&mut self, world: &mut NodeWorld, output: &Output) -> Result<(), JournalError> {
        self.desk.note(&output.effects);
        let keys = world.take_keys(&output.rows);
        if !output.rows.is_empty() {
            let lines = self.desk.take_lines();
            let seen = self.desk.take_seen();
            fail_point("before", &kinds(&output.rows));
            let rows = &output.rows;
            block_in_place(|| self.journal.write(world.now, rows, &keys, &lines, &seen))?;
        } else if self.desk.lines_since.is_some_and(|s| s.after(EVENT_DELAY) <= world.now) {
            self.desk.write_lines(self.journal)?;
        }
        if !output.effects.is_empty() || !output.rows.is_empty() {
            let _ = self.desk.changes.send(());
        }
        Ok(())
    }

    fn sync(&mut self, rows: &[Row]) -> Result<(), JournalError> {
        block_in_place(|| self.desk.sync(self.journal))?;
        self.desk.metrics.durable(rows);
        self.durable = kinds(rows);
        fail_point("after", &self.durable);
        tracing::debug!(rows = ?self.durable, "durable");
        Ok(())
    }

    fn end_stranger(&mut self, command: protocol::Command) -> Result<(), JournalError> {
        let hands = self.hands;
        block_in_place(|| Handle::current().block_on(hands.end_stranger(&command)));
        Ok(())
    }

    fn carry_out(
        &mut self,
        site: &Site,
        world: &NodeWorld,
        effect: Effect,
    ) -> Result<(), JournalError> {
        match effect {
            Effect::Send { call, to, request } => {
                let mark = self.journal.mark(&world.identity);
                self.links.send(call, to, *request, mark, |key, kind, body| {
                    world.key(key).sign(kind, body)
                });
            }
            Effect::Answer { caller: Caller::Peer(id), answer } => {
                if let Some(waiting) = self.desk.peers.remove(&id) {
                    // The peer may have hung up; it asks again.
                    let journal = self.journal.mark(&world.identity);
                    let _ = waiting.send(Answered { answer: *answer, journal });
                }
            }
            Effect::Answer { caller: Caller::Own(_), .. } => {
                unreachable!("the machine answers itself")
            }
            Effect::Reply { ask, reply } => {
                if let Some(waiting) = self.desk.users.remove(&ask) {
                    let _ = waiting.send(reply);
                }
            }
            Effect::Do(command) => {
                let peer = command_peer(site, &command);
                let urgent = is_urgent(site, &command, world.now);
                let about = About {
                    host: command_host(site, &command),
                    budget: command_budget(site, &command),
                    granted: granted(world, site, &command, peer.clone(), urgent),
                    peer_rate: peer.as_ref().and_then(|peer| site.peering(peer)?.limits.rate),
                    peer,
                    urgent,
                };
                self.hands.carry_out(command, &about, |key| world.key(key).clone());
            }
            Effect::Progress { .. } | Effect::Note { .. } => {}
            Effect::Ended(journey) => {
                let result = format!("{:?}", journey.result);
                tracing::info!(operation = %journey.operation, result, "operation ended");
            }
        }
        Ok(())
    }
}

/// The peers of a journal, and what they may do.
fn peerings(journal: &Journal) -> Result<BTreeMap<model::PeerName, model::Peering>, JournalError> {
    let peers = journal.peers()?.into_iter();
    Ok(peers.map(|peer| (peer.name, peer.peering)).collect())
}

/// Bytes that a Source's session may carry: what the VM can have in files, and a quarter for
/// repeats.
fn command_budget(site: &Site, command: &protocol::Command) -> model::Bytes {
    let protocol::Command::Serve { vm, .. } = command else { return model::Bytes::default() };
    let Some(vm) = site.state.vms.get(vm) else { return model::Bytes::default() };
    let disks: u64 = vm.descriptor.disks.iter().map(|disk| disk.capacity.0).sum();
    let whole = disks + vm.descriptor.resources.memory.0 + (64 << 20);
    model::Bytes(whole + whole / 4)
}

/// The host whose files a command is about. Of a transfer that the machine no longer knows there
/// is none, and any proxy is as good as another.
fn command_host(site: &Site, command: &protocol::Command) -> HostName {
    use protocol::Command as C;
    let migration = |id| site.state.migrations.get(id);
    let source = |id| Some(migration(id)?.source.as_ref()?.copy.host.clone());
    let target = |id| Some(migration(id)?.target.as_ref()?.host.clone());
    let known = match command {
        C::Pull { host, .. } | C::Provide { host, .. } => Some(host.clone()),
        C::Serve { migration, .. }
        | C::Tell { migration, source: true, .. }
        | C::Close { migration, source: true } => source(migration),
        C::Tell { migration, source: false, .. } | C::Close { migration, source: false } => {
            target(migration)
        }
        _ => command.guest().map(|(host, ..)| host.clone()),
    };
    known.unwrap_or_else(protocol::library)
}

/// The peer that a transfer is made with, as far as this site knows: the one that asked for it, or
/// was asked.
fn command_peer(site: &Site, command: &protocol::Command) -> Option<PeerName> {
    use protocol::Command as C;
    let (C::Serve { migration, .. } | C::Pull { migration, .. } | C::Relay { migration, .. }) =
        command
    else {
        return None;
    };
    let known = site.state.migrations.get(migration)?;
    let of = |party: &Party| match party {
        Party::Peer(peer) => Some(peer.clone()),
        Party::Here => None,
    };
    let vm = site.state.vms.get(&known.vm);
    let below = || match &vm?.down {
        protocol::Down::Edge(edge) => Some(edge.peer.clone()),
        protocol::Down::Here => None,
    };
    let chosen = || {
        let mut journeys = site.state.journeys.values();
        let chosen = journeys.find_map(|j| j.chosen.as_ref().filter(|c| c.migration == *migration));
        of(&chosen?.at)
    };
    let above = || Some(vm?.up.as_ref()?.peer.clone());
    match (command, &known.target, &known.pending) {
        (C::Pull { .. }, Some(target), _) => of(&target.asker).or_else(below),
        (C::Serve { .. }, ..) => chosen().or_else(above),
        (_, _, Some((_, down))) => Some(down.peer.clone()),
        _ => chosen().or_else(above),
    }
}

/// What policy lets a transfer take of the site's links.
fn granted(
    world: &NodeWorld,
    site: &Site,
    command: &protocol::Command,
    peer: Option<PeerName>,
    urgent: bool,
) -> Granted {
    use protocol::Command as C;
    let (migration, role) = match command {
        C::Serve { migration, .. } => (migration, TransferRole::Source),
        C::Pull { migration, .. } => (migration, TransferRole::Destination),
        C::Relay { migration, .. } => (migration, TransferRole::Relay),
        _ => return Granted::default(),
    };
    let Some(known) = site.state.migrations.get(migration) else { return Granted::default() };
    let offered = known.target.as_ref().map(|target| &target.descriptor);
    let passed_on = known.relayed.as_ref().map(|(descriptor, _)| descriptor);
    let here = site.state.vms.get(&known.vm).map(|vm| &vm.descriptor);
    let Some(descriptor) = offered.or(passed_on).or(here).cloned() else {
        return Granted::default();
    };
    let peering = peer.as_ref().and_then(|peer| site.peering(peer).cloned());
    world.policy().share(&Share { peer, peering, role, descriptor, urgent })
}

/// Whether a transfer is of a VM that must leave this site, or one below, by a deadline.
fn is_urgent(site: &Site, command: &protocol::Command, now: Time) -> bool {
    use protocol::Command as C;
    let (C::Serve { migration, .. } | C::Pull { migration, .. } | C::Relay { migration, .. }) =
        command
    else {
        return false;
    };
    let Some(known) = site.state.migrations.get(migration) else { return false };
    let forced = |journey: &protocol::Journey| {
        let chosen = journey.chosen.as_ref().is_some_and(|chosen| chosen.migration == *migration);
        let waits = matches!(journey.result, None | Some(protocol::JourneyResult::PassedUp));
        let is_forced = journey.goal.evict.is_some() && journey.goal.deadline > now;
        journey.vm == known.vm && is_forced && (chosen || waits)
    };
    site.state.journeys.values().any(forced)
}

fn kinds(rows: &[Row]) -> Vec<&'static str> {
    rows.iter().map(Row::kind).collect()
}

/// How long replies and orders are given to leave before a test's kill at `replied`.
const REPLY_GRACE: Duration = Duration::from_millis(50);

/// Ends the process here if a test asked for it, to show that this is survivable.
///
/// `SOJOURN_KILL` names the place: `before:released`, right before that row is written;
/// `after:released`, when it is durable and nothing that follows from it was done;
/// `replied:released`, when all that follows from it was handed to links, hands and doors, and
/// these had a moment to put it on the wire, while the driver handled nothing else.
/// `SOJOURN_KILL_ONCE=FILE` is made before the kill and prevents the next one.
/// With `SOJOURN_KILL_SIGNAL=stop` the process is held there instead, until it gets SIGCONT.
fn fail_point(when: &str, kinds: &[&'static str]) {
    let Ok(wanted) = std::env::var("SOJOURN_KILL") else { return };
    let hit = kinds.iter().any(|kind| wanted == format!("{when}:{kind}"));
    let Ok(once) = std::env::var("SOJOURN_KILL_ONCE") else { return };
    if !hit || std::fs::File::create_new(once).is_err() {
        return;
    }
    if when == "replied" {
        std::thread::sleep(REPLY_GRACE);
    }
    let end = |signal| {
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    };
    if std::env::var("SOJOURN_KILL_SIGNAL").is_ok_and(|signal| signal == "stop") {
        end(rustix::process::Signal::STOP);
        // The signal may reach another thread first: this one is not to run ahead.
        return std::thread::sleep(REPLY_GRACE);
    }
    end(rustix::process::Signal::KILL);
    std::thread::park();
}

/// A new operation id.
pub(crate) fn new_operation() -> OperationId {
    OperationId(rand::random())
}
