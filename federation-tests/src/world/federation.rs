//! The federation as a value: what can happen next, and what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use model::{Epoch, FileId, HostName, MigrationId, PeerName, Peering, PublicKey, Time, VmId};
use protocol::{
    Answer, Ask, CallError, CallId, Caller, Command, Config, Effect, Event, Output, Reply, Request,
    library,
};

use super::invariant::Ledger;
use super::node::{Content, Node, profile};
use super::outside::Crypto;
use super::transfer::{End, Phase, Pulling, Route, Serving, Talk, root};

mod sessions;

/// When every world begins.
pub(super) const BEGINNING: Time = Time(1_700_000_000_000);

/// How long a message takes.
const LATENCY: Duration = Duration::from_millis(5);
/// How long a hypervisor's verb takes.
const VERB: Duration = Duration::from_millis(50);
/// How soon a caller hears that the connection broke.
const BROKEN: Duration = Duration::from_secs(1);

/// A request of one site, while it waits for the answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    /// The site.
    pub site: PeerName,
    /// Which of its lives.
    pub life: u32,
    /// Its number for the request.
    pub call: CallId,
}

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// When it arrives.
    pub due: Time,
    /// How long its sender's journal was.
    pub(super) journal: u64,
    /// What it is.
    pub load: Load,
}

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Load {
    /// A request.
    Request {
        /// Who waits for the answer.
        from: Line,
        /// Whom it goes to.
        to: PeerName,
        /// What is asked.
        request: Box<Request>,
    },
    /// An answer, or the news that none will come.
    Answer {
        /// Who waits for it.
        to: Line,
        /// Who answers.
        from: PeerName,
        /// The answer.
        answer: Result<Box<Answer>, CallError>,
    },
}

/// Something that can happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// The message with this index arrives.
    Deliver(usize),
    /// A site's hypervisor does the verb with this index.
    Guest(PeerName, usize),
    /// A transfer goes on, at the site where the event comes up.
    Transfer(PeerName, MigrationId, Phase),
    /// A site's earliest deadline has come.
    Tick(PeerName),
    /// A site has waited long enough for an answer.
    TimeOut(PeerName, CallId),
    /// A site goes on with what came while it was busy.
    Turn(PeerName),
    /// A site that is down comes up.
    Restart(PeerName),
}

/// Where, in the driver's law "step, persist, then send", a node crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// Nothing of the event is on the disk.
    BeforeRows,
    /// The rows are being written, and so many bytes of them are on the disk.
    Unsynced(usize),
    /// The rows are durable, and so many effects were carried out.
    AfterEffects(usize),
}

/// Decides, from what a site is about to do, whether it crashes in it.
pub(crate) type Crash<'a> = dyn FnMut(&PeerName, &Output) -> Option<Point> + 'a;

/// Several sites, and what is on its way between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Federation {
    /// The time, everywhere.
    pub now: Time,
    /// The sites by name.
    pub nodes: BTreeMap<PeerName, Arc<Node>>,
    /// Messages on their way.
    pub flights: Vec<Flight>,
    /// Replies to users, by ask.
    pub replies: BTreeMap<u64, Reply>,
    /// Rules that were broken. The first one counts.
    pub violations: Vec<String>,
    /// What happened, for people.
    pub log: Vec<String>,
    /// Whether the log is kept.
    pub logging: bool,
    /// The sites of each transfer's session so far, the Destination first and the Source last.
    pub sessions: Vec<Vec<PeerName>>,
    /// How often what was met: rows, faults, and crashes at rows.
    pub met: BTreeMap<(&'static str, &'static str), u64>,
    /// Whether that is counted.
    pub counting: bool,
    pub(super) ledger: Ledger,
    pub(super) crypto: Crypto,
    /// Whose messages do not reach whom.
    cuts: BTreeSet<(PeerName, PeerName)>,
    /// Links that are slower than others.
    slow: BTreeMap<(PeerName, PeerName), Duration>,
    asks: u64,
}

impl Hash for Federation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Left out: counters that only make names unique, what is told for people, and when
        // messages arrive, which whoever chooses the steps decides.
        self.now.hash(state);
        for node in self.nodes.values() {
            match &node.machine {
                Some(machine) => machine.hash(state),
                None => node.durable.hash(state),
            }
            (&node.copies, &node.guests, node.life, &node.callers, &node.calls).hash(state);
            (&node.serves, &node.pulls, &node.routes, &node.queue).hash(state);
            (&node.broken, node.full, node.damages, node.put_back).hash(state);
            for verb in &node.verbs {
                (&verb.place, verb.what).hash(state);
            }
        }
        let mut flights = 0_u64;
        for flight in &self.flights {
            let mut one = DefaultHasher::new();
            flight.load.hash(&mut one);
            flights = flights.wrapping_add(one.finish());
        }
        flights.hash(state);
        (&self.ledger.newest, &self.violations, &self.cuts).hash(state);
    }
}

fn pair(one: &PeerName, other: &PeerName) -> (PeerName, PeerName) {
    if one < other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) }
}

fn broken() -> CallError {
    CallError::Unreachable("the connection broke".to_owned())
}

impl Federation {
    pub(super) fn new(crypto: Crypto) -> Self {
        Self {
            now: BEGINNING,
            nodes: BTreeMap::new(),
            flights: vec![],
            replies: BTreeMap::new(),
            violations: vec![],
            log: vec![],
            logging: true,
            sessions: vec![],
            met: BTreeMap::new(),
            counting: false,
            ledger: Ledger::default(),
            crypto,
            cuts: BTreeSet::new(),
            slow: BTreeMap::new(),
            asks: 0,
        }
    }

    pub(super) fn add_site(&mut self, name: PeerName, config: Config) {
        let number = u8::try_from(self.nodes.len() + 1).expect("few sites");
        self.nodes.insert(name, Arc::new(Node::new(number, config)));
    }

    pub(super) fn node(&mut self, name: &PeerName) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(name).expect("a known site"))
    }

    /// Counts what was met, for whoever wants to know what a run has covered.
    pub(super) fn met(&mut self, what: &'static str, which: &'static str) {
        if self.counting {
            *self.met.entry((what, which)).or_default() += 1;
        }
    }

    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.logging {
            let line = format!("{:>12} {}", self.now.since(BEGINNING).as_millis(), line());
            self.log.push(line);
        }
    }

    pub(super) fn violate(&mut self, what: String) {
        self.tell(|| format!("VIOLATION: {what}"));
        self.violations.push(what);
    }

    /// Whether a site of this federation ever wrote a row of this kind in some migration.
    pub fn has_decided(&self, kind: &str) -> bool {
        self.ledger.has(kind)
    }

    // What scenarios change.

    /// From now on sites hear what nobody has said: what they tell their users may be wrong.
    pub fn is_deceived(&mut self) {
        self.ledger.deceived = true;
    }

    pub(super) fn peer(&mut self, one: &PeerName, other: &PeerName) {
        for (site, peer) in [(one, other), (other, one)] {
            let node = self.node(site);
            node.peers.insert(peer.clone(), Peering::default());
            let peers = node.peers.clone();
            if let Some(machine) = &mut node.machine {
                machine.set_peers(peers);
            }
        }
    }

    /// Changes what a site says of a peer.
    pub(super) fn set_peering(&mut self, at: &PeerName, peer: &PeerName, peering: Peering) {
        let node = self.node(at);
        node.peers.insert(peer.clone(), peering);
        let peers = node.peers.clone();
        if let Some(machine) = &mut node.machine {
            machine.set_peers(peers);
        }
    }

    pub(super) fn connect_host(&mut self, at: &PeerName, host: HostName) {
        self.node(at).hosts.insert(host.clone());
        self.feed(at, Event::Profile(host, profile()), &mut |_, _| None);
    }

    pub(super) fn break_host(&mut self, at: &PeerName, host: HostName, broken: bool) {
        let node = self.node(at);
        if broken {
            node.broken.insert(host);
        } else {
            node.broken.remove(&host);
        }
    }

    /// Makes a VM's own key, and lays its files into the library.
    pub(super) fn prepare_import(&mut self, at: &PeerName) -> (PublicKey, VmId) {
        let crypto = self.crypto;
        let node = self.node(at);
        let k0 = node.made.key(node.number, crypto);
        let vm = VmId::of(&k0);
        let disk = self.ledger.write(vm);
        let place = (library(), vm, Epoch(0));
        self.node(at).copies.insert(place, Content { disk, state: None });
        (k0, vm)
    }

    /// A site's user asks for something.
    pub fn ask(&mut self, at: &PeerName, wish: Ask, crash: &mut Crash<'_>) -> u64 {
        self.asks += 1;
        let ask = self.asks;
        self.tell(|| format!("{at}: user asks {}", asked(&wish)));
        self.feed(at, Event::Ask { ask, wish: Box::new(wish) }, crash);
        ask
    }

    /// Lets messages of one site no longer reach the other, or lets them again. What is on its way
    /// is lost, and a transfer between the two breaks: it needs both directions.
    pub(super) fn cut(&mut self, from: &PeerName, to: &PeerName, cut: bool) {
        let way = (from.clone(), to.clone());
        if cut == self.cuts.contains(&way) {
            return;
        }
        self.tell(|| format!("{from} reaches {to}: {}", !cut));
        if !cut {
            self.cuts.remove(&way);
            return;
        }
        self.cuts.insert(way);
        for (site, peer) in [(from, to), (to, from)] {
            self.hang_up(site, |line| line.site == *peer);
            let mut lost = vec![];
            for (name, node) in &self.nodes {
                let crosses = |pull: &Pulling| {
                    let stations: Vec<_> = [name].into_iter().chain(&pull.path).collect();
                    stations.windows(2).any(|pair| pair == [site, peer])
                };
                let crossing = node.pulls.iter().filter(|(_, pull)| crosses(pull));
                lost.extend(crossing.map(|(migration, _)| (name.clone(), *migration)));
            }
            for (name, migration) in lost {
                self.break_session(&name, migration);
            }
        }
        while let Some(at) = self.flights.iter().position(|flight| match &flight.load {
            Load::Request { from: line, to: site, .. } => line.site == *from && site == to,
            Load::Answer { to: line, from: site, answer } => {
                site == from && line.site == *to && answer.is_ok()
            }
        }) {
            self.lose(at);
        }
    }

    fn reaches(&self, from: &PeerName, to: &PeerName) -> bool {
        !self.cuts.contains(&(from.clone(), to.clone()))
    }

    /// Makes a link slow, or as quick as others again.
    pub(super) fn slow(&mut self, one: &PeerName, other: &PeerName, by: Duration) {
        self.slow.insert(pair(one, other), by);
    }

    fn latency(&self, one: &PeerName, other: &PeerName) -> Duration {
        self.slow.get(&pair(one, other)).copied().unwrap_or_default() + LATENCY
    }

    /// How long a message takes over several links.
    fn along(&self, from: &PeerName, path: &[PeerName]) -> Duration {
        let stations: Vec<_> = [from].into_iter().chain(path).collect();
        stations.windows(2).map(|pair| self.latency(pair[0], pair[1])).sum()
    }

    /// The longest journal of a site that a peer which it reaches remembers.
    pub(super) fn remembered(&self, name: &PeerName) -> u64 {
        let peers = self.nodes[name].peers.keys().filter(|peer| {
            let there = self.nodes.get(*peer).is_some_and(|node| node.is_up());
            there && self.reaches(name, peer) && self.reaches(peer, name)
        });
        let remember = peers.filter_map(|peer| self.nodes[peer].remembers.get(name));
        remember.copied().max().unwrap_or_default()
    }

    /// The longest journal of a site that any peer remembers.
    pub(super) fn remembered_by_any(&self, name: &PeerName) -> u64 {
        let peers = self.nodes[name].peers.keys().filter_map(|peer| self.nodes.get(peer));
        peers.filter_map(|peer| peer.remembers.get(name)).copied().max().unwrap_or_default()
    }

    /// Callers of a site hear that their connection broke.
    fn hang_up(&mut self, site: &PeerName, which: impl Fn(&Line) -> bool) {
        let node = self.node(site);
        let lines: Vec<Line> =
            node.callers.values().flatten().filter(|l| which(l)).cloned().collect();
        for line in node.callers.values_mut() {
            // The site will answer all the same; nobody hears it.
            if line.as_ref().is_some_and(&which) {
                *line = None;
            }
        }
        for line in lines {
            self.answer(line, site.clone(), Err(broken()), BROKEN);
        }
    }

    /// A site's process ends. What was on its way to it breaks; what it sent goes on.
    pub fn crash(&mut self, name: &PeerName) {
        self.end(name, 0);
    }

    /// A site's process ends, and so many bytes that were not synced are on its disk all the same.
    pub(super) fn end(&mut self, name: &PeerName, keep: usize) {
        self.tell(|| format!("{name}: CRASH"));
        self.hang_up(name, |_| true);
        let node = self.node(name);
        node.machine = None;
        node.working = false;
        node.queue.clear();
        node.disk.crash(keep);
        node.calls.clear();
        node.verbs.clear();
        node.callers.clear();
        let (serves, pulls) = (std::mem::take(&mut node.serves), std::mem::take(&mut node.pulls));
        node.routes.clear();
        for (other, migration) in self.passing(name, |_| true) {
            self.break_session(&other, migration);
        }
        for other in self.names() {
            let node = self.node(&other);
            for migration in serves.keys() {
                node.pulls.get_mut(migration).into_iter().for_each(Pulling::cut);
            }
            for migration in pulls.keys() {
                let serve = node.serves.get_mut(migration);
                serve.into_iter().for_each(|serve| serve.talk.session = false);
            }
        }
        self.flights
            .retain(|flight| !matches!(&flight.load, Load::Answer { to, .. } if to.site == *name));
        while let Some(at) = self
            .flights
            .iter()
            .position(|flight| matches!(&flight.load, Load::Request { to, .. } if to == name))
        {
            self.lose(at);
        }
    }

    /// Every guest process of a site ends, unsaved.
    pub fn end_guests(&mut self, name: &PeerName) {
        let guests = std::mem::take(&mut self.node(name).guests);
        for (place, guest) in guests {
            let disk = if guest.executes {
                self.ledger.write(place.1)
            } else {
                let newest = self.ledger.newest.entry(place.1).or_default();
                newest.saved = None;
                newest.disk
            };
            if guest.executes {
                self.node(name).copies.get_mut(&place).expect("a guest has files").disk = disk;
            }
        }
    }

    /// A site is lost with all that it has.
    pub(super) fn lose_for_good(&mut self, name: &PeerName) {
        self.end(name, 0);
        self.end_guests(name);
        let node = self.node(name);
        node.gone = true;
        let copies = std::mem::take(&mut node.copies);
        self.ledger.mourn(copies.into_keys().map(|(_, vm, _)| vm));
    }

    /// Lets a site end and start from an old copy of its journal: the one that is so many hundredths
    /// along those that no longer say which VMs it has. What is cut off must go further back than
    /// some peer remembers: of what nobody was told nobody can tell either. For the same reason only
    /// one site forgets.
    pub(super) fn restore_journal(&mut self, name: &PeerName, share: usize) -> bool {
        let node = &self.nodes[name];
        if self.ledger.forgotten || node.gone {
            return false;
        }
        let copies = node.disk.outdated(self.remembered(name));
        let Some(old) = copies.get(copies.len() * share / 100).copied() else { return false };
        let vms: Vec<VmId> = node.durable.vms.keys().copied().collect();
        self.end(name, 0);
        self.node(name).restore = Some(old);
        self.node(name).put_back = true;
        self.ledger.forgotten = true;
        self.ledger.mourn(vms);
        true
    }

    /// There is space again everywhere, and nothing more is damaged.
    pub(super) fn have_space(&mut self) {
        for name in self.names() {
            let node = self.node(&name);
            node.disk.full = false;
            node.full = false;
            node.damages = false;
            node.sync_time = Duration::ZERO;
        }
    }

    /// Sites that are down.
    pub fn down(&self) -> Vec<PeerName> {
        let down = self.nodes.iter().filter(|(_, node)| !node.is_up() && !node.gone);
        down.map(|(name, _)| name.clone()).collect()
    }

    fn names(&self) -> Vec<PeerName> {
        self.nodes.keys().cloned().collect()
    }

    /// The message with this index is lost, and whoever waits hears that the connection broke.
    pub fn lose(&mut self, at: usize) {
        let flight = self.flights.remove(at);
        self.tell(|| format!("LOST {}", short(&flight.load)));
        match flight.load {
            Load::Request { from, to, .. } => self.answer(from, to, Err(broken()), BROKEN),
            Load::Answer { to, from, .. } => self.answer(to, from, Err(broken()), BROKEN),
        }
    }

    /// The message with this index will arrive twice, if it is a request; the second answer goes to
    /// nobody.
    pub fn repeat(&mut self, at: usize) -> bool {
        let mut flight = self.flights[at].clone();
        let Load::Request { from, .. } = &mut flight.load else { return false };
        from.life = u32::MAX;
        flight.due = flight.due.after(LATENCY);
        self.flights.push(flight);
        true
    }

    pub(super) fn delay(&mut self, at: usize, by: Duration) {
        let flight = &mut self.flights[at];
        flight.due = flight.due.after(by);
    }

    fn answer(
        &mut self,
        to: Line,
        from: PeerName,
        answer: Result<Box<Answer>, CallError>,
        wait: Duration,
    ) {
        // Nobody waits for the answer to a repeat, or in an earlier life.
        let waits = |node: &Arc<Node>| node.life == to.life && node.calls.contains_key(&to.call);
        if self.nodes.get(&to.site).is_some_and(waits) {
            let slower = self.slow.get(&pair(&to.site, &from)).copied().unwrap_or_default();
            let due = self.now.after(wait + slower);
            let journal = self.nodes[&from].disk.len();
            self.flights.push(Flight { due, journal, load: Load::Answer { to, from, answer } });
        }
    }

    /// Puts a message on the network that arrives now and that its sender's machine never sent.
    pub fn forge(&mut self, load: Load) {
        let (Load::Request { from: Line { site, .. }, .. } | Load::Answer { from: site, .. }) =
            &load;
        let journal = self.nodes[site].disk.len();
        self.flights.push(Flight { due: self.now, journal, load });
    }

    // What can happen.

    fn verb_heads(node: &Node) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        let heads = node.verbs.iter().enumerate().filter(|(_, verb)| seen.insert(verb.place.1));
        heads.map(|(at, _)| at).collect()
    }

    /// The deadline that a site waits for next, with the step that it is.
    fn deadlines(&self) -> Vec<(Time, Step)> {
        let mut due = vec![];
        for (name, node) in &self.nodes {
            if let Some(at) = node.deadline() {
                due.push((at.max(node.busy_until), Step::Tick(name.clone())));
            }
            for (call, at) in &node.calls {
                due.push((*at, Step::TimeOut(name.clone(), *call)));
            }
        }
        due
    }

    /// Sites that something waits for, and when they can go on.
    fn waiting(&self) -> impl Iterator<Item = (Time, &PeerName)> {
        let waiting = self.nodes.iter().filter(|(_, node)| !node.queue.is_empty());
        waiting.map(|(name, node)| (node.busy_until, name))
    }

    /// Everything that can happen next, in whatever order. Time passes only when nothing else can
    /// happen.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = (0..self.flights.len()).map(Step::Deliver).collect();
        for (name, node) in &self.nodes {
            let heads = Self::verb_heads(node).into_iter();
            steps.extend(heads.map(|at| Step::Guest(name.clone(), at)));
        }
        steps.extend(self.transfers());
        steps.extend(self.waiting().map(|(_, name)| Step::Turn(name.clone())));
        steps.extend(self.down().into_iter().map(Step::Restart));
        if steps.is_empty() {
            let deadlines = self.deadlines();
            if let Some(first) = deadlines.iter().map(|(at, _)| *at).min() {
                let due = deadlines.into_iter().filter(|(at, _)| *at == first);
                steps.extend(due.map(|(_, step)| step));
            }
        }
        steps
    }

    /// Deadlines that may come although something else can happen too: a slow world.
    pub fn early_steps(&self) -> Vec<Step> {
        self.deadlines().into_iter().map(|(_, step)| step).collect()
    }

    /// The step that is due now by the clock, if any. Sites that are down stay down.
    pub(super) fn due_step(&self) -> Option<Step> {
        let flights =
            self.flights.iter().enumerate().map(|(at, flight)| (flight.due, Step::Deliver(at)));
        let verbs = self.nodes.iter().flat_map(|(name, node)| {
            let heads = Self::verb_heads(node).into_iter();
            heads.map(|at| (node.verbs[at].due, Step::Guest(name.clone(), at)))
        });
        let turns = self.waiting().map(|(due, name)| (due, Step::Turn(name.clone())));
        let timed = flights.chain(verbs).chain(turns).filter(|(due, _)| *due <= self.now);
        timed
            .min_by_key(|(due, _)| *due)
            .map(|(_, step)| step)
            .or_else(|| {
                self.transfers().into_iter().find(|step| self.transfer_due(step) <= self.now)
            })
            .or_else(|| {
                let due = self.deadlines().into_iter().filter(|(due, _)| *due <= self.now);
                due.min_by_key(|(due, _)| *due).map(|(_, step)| step)
            })
    }

    /// When the next step is due by the clock.
    pub(super) fn next_due(&self) -> Option<Time> {
        let flights = self.flights.iter().map(|flight| flight.due);
        let verbs = self.nodes.values().flat_map(|node| node.verbs.iter().map(|verb| verb.due));
        let turns = self.waiting().map(|(due, _)| due);
        let transfers = self.transfers();
        let transfers = transfers.iter().map(|step| self.transfer_due(step));
        let deadlines = self.deadlines().into_iter().map(|(due, _)| due);
        flights.chain(verbs).chain(turns).chain(transfers).chain(deadlines).min()
    }

    // What happens.

    /// Does one step. The site that handles it may crash in it.
    pub fn perform(&mut self, step: &Step, crash: &mut Crash<'_>) {
        if self.logging {
            let line = self.describe(step);
            self.tell(|| line);
        }
        match step {
            Step::Deliver(at) => self.deliver(*at, crash),
            Step::Guest(name, at) => {
                let verb = self.node(name).verbs.remove(*at);
                if let Some(event) = self.act(name, &verb) {
                    self.feed(name, event, crash);
                }
            }
            Step::Transfer(name, id, phase) => {
                if let Some((at, event)) = self.transfer(name, *id, *phase) {
                    self.feed(&at, Event::Transfer { migration: *id, event }, crash);
                }
            }
            Step::Tick(name) => {
                let deadline = self.nodes[name].deadline();
                self.now = self.now.max(deadline.unwrap_or(self.now));
                self.turn(name, crash);
            }
            Step::TimeOut(name, call) => {
                let deadline = self.node(name).calls.remove(call);
                self.now = self.now.max(deadline.unwrap_or(self.now));
                let why = CallError::Unreachable("no answer in time".to_owned());
                self.feed(name, Event::Answered { call: *call, answer: Err(why) }, crash);
            }
            Step::Turn(name) => self.turn(name, crash),
            Step::Restart(name) => self.restart(name, crash),
        }
        self.check();
    }

    fn deliver(&mut self, at: usize, crash: &mut Crash<'_>) {
        let Flight { load, journal, .. } = self.flights.remove(at);
        match load {
            Load::Request { from, to, request } => {
                if !self.nodes[&to].is_up() {
                    return self.answer(from, to, Err(broken()), BROKEN);
                }
                self.greet(&from.site, &to, journal, crash);
                let node = self.node(&to);
                let caller = (0..).find(|n| !node.callers.contains_key(n)).expect("few callers");
                let peer = from.site.clone();
                node.callers.insert(caller, Some(from));
                let caller = Caller::Peer(caller);
                self.feed(&to, Event::Request { caller, from: peer, request }, crash);
            }
            Load::Answer { to, from, answer } => {
                if answer.is_ok() {
                    self.greet(&from, &to.site, journal, crash);
                }
                if self.node(&to.site).calls.remove(&to.call).is_some() {
                    self.feed(&to.site, Event::Answered { call: to.call, answer }, crash);
                }
            }
        }
    }

    /// What comes with each message: the length of its sender's journal, which the one who hears
    /// it remembers. When two sites first speak after a restart of one of them, each is told what
    /// the other remembers.
    fn greet(&mut self, from: &PeerName, to: &PeerName, journal: u64, crash: &mut Crash<'_>) {
        let longest = self.node(to).remembers.entry(from.clone()).or_default();
        *longest = journal.max(*longest);
        for (one, other) in [(from, to), (to, from)] {
            let life = self.nodes[other].life;
            if self.node(one).greeted.insert(other.clone(), life) == Some(life) {
                continue;
            }
            let seen = self.nodes[one].remembers.get(other).copied().unwrap_or_default();
            if seen > self.nodes[other].disk.len() {
                self.feed(other, Event::Fence { journal: seen }, crash);
            }
        }
    }

    pub(super) fn carry_out(&mut self, name: &PeerName, effect: Effect) {
        match effect {
            Effect::Send { call, to, request } => {
                let deadline = self.now.after(request.hop.time_left);
                let node = self.node(name);
                node.calls.insert(call, deadline);
                let from = Line { site: name.clone(), life: node.life, call };
                let peers = node.peers.contains_key(&to);
                let up = self.nodes.get(&to).is_some_and(|node| node.is_up());
                if !peers || !up || !self.reaches(name, &to) {
                    return self.answer(from, to, Err(broken()), BROKEN);
                }
                let due = self.now.after(self.latency(name, &to));
                let journal = self.nodes[name].disk.len();
                let load = Load::Request { from, to, request };
                self.flights.push(Flight { due, journal, load });
            }
            Effect::Answer { caller: Caller::Peer(caller), answer } => {
                let line = self.node(name).callers.remove(&caller);
                match line {
                    None => self.violate(format!("{name} answers caller {caller} twice")),
                    Some(None) => {}
                    Some(Some(line)) if !self.reaches(name, &line.site) => {
                        self.answer(line, name.clone(), Err(broken()), BROKEN);
                    }
                    Some(Some(line)) => self.answer(line, name.clone(), Ok(answer), LATENCY),
                }
            }
            Effect::Answer { caller: Caller::Own(_), .. } => {
                self.violate(format!("{name} answers itself by the network"));
            }
            Effect::Reply { ask, reply } => {
                self.tell(|| format!("{name}:   reply {reply:?}"));
                self.replies.insert(ask, reply);
            }
            Effect::Do(command) => self.command(name, command),
            Effect::Progress { text, .. } => self.tell(|| format!("{name}:   progress: {text}")),
            Effect::Note { text, .. } => self.tell(|| format!("{name}:   note: {text}")),
            Effect::Ended(journey) => {
                self.tell(|| format!("{name}:   ended: {:?}", journey.result));
            }
        }
    }

    fn command(&mut self, name: &PeerName, command: Command) {
        self.tell(|| format!("{name}:   command {}", brief(&command)));
        let due = self.now.after(VERB);
        if let Some(violation) = self.node(name).command(&command, due) {
            self.violate(violation);
        }
        let now = self.now;
        let node = self.node(name);
        match command {
            Command::Serve { migration, vm, token, key, peer_key, dial, .. } => {
                let dial = dial.map(|dial| *dial);
                let new = Serving {
                    vm,
                    token,
                    key,
                    peer_key,
                    dial,
                    files: None,
                    content: None,
                    reported: false,
                    talk: Talk::default(),
                };
                let serve = node.serves.entry(migration).or_insert_with(|| new.clone());
                if (serve.token, serve.key, serve.peer_key) != (token, key, peer_key) {
                    *serve = new;
                }
            }
            Command::Provide { migration, host, vm, epoch, files } => {
                let place = (host, vm, epoch);
                let executes = node.guests.get(&place).is_some_and(|guest| guest.executes);
                if let Some(serve) = node.serves.get_mut(&migration) {
                    serve.files = Some((place, files.contains(&FileId::STATE)));
                    serve.reported = false;
                }
                if executes {
                    self.violate(format!("{name} reads the files of an executing guest"));
                }
            }
            Command::Pull { migration, vm, source, key, host, epoch, files, .. } => {
                let pull = node.pulls.entry(migration).or_insert_with(|| Pulling {
                    source: *source,
                    key,
                    place: (host, vm, epoch),
                    talks_only: files.is_empty(),
                    takes_state: files.contains(&FileId::STATE),
                    active: true,
                    path: vec![],
                    due: now,
                    begun: false,
                    finished: false,
                    talk: Talk::default(),
                });
                pull.active = true;
            }
            Command::Tell { migration, source, told } => {
                if let Some(talk) = talk_of(node, migration, end(source)) {
                    talk.outbox.push(told);
                }
            }
            Command::Close { migration, source } => self.close(name, migration, end(source)),
            Command::Relay { migration, token, key, next, .. } => {
                let new = Route { token, key, next: *next };
                if node.routes.get(&migration) != Some(&new) {
                    node.routes.insert(migration, new);
                    self.break_passing(name, migration);
                }
            }
            Command::EndRelay { migration } => {
                node.routes.remove(&migration);
                self.break_passing(name, migration);
            }
            _ => {}
        }
    }

    /// A step in words.
    pub fn describe(&self, step: &Step) -> String {
        match step {
            Step::Deliver(at) => short(&self.flights[*at].load),
            Step::Guest(name, at) => {
                let verb = &self.nodes[name].verbs[*at];
                format!("{name}: guest {:?} on {} epoch {}", verb.what, verb.place.0, verb.place.2)
            }
            Step::Transfer(name, id, phase) => format!("{name}: transfer {id} {phase:?}"),
            Step::Tick(name) => format!("{name}: tick"),
            Step::TimeOut(name, call) => format!("{name}: call {} times out", call.0),
            Step::Turn(name) => format!("{name}: goes on"),
            Step::Restart(name) => format!("{name}: START"),
        }
    }
}

fn end(source: bool) -> End {
    if source { End::Source } else { End::Target }
}

fn talk_of(node: &mut Node, id: MigrationId, end: End) -> Option<&mut Talk> {
    match end {
        End::Source => node.serves.get_mut(&id).map(|serve| &mut serve.talk),
        End::Target => node.pulls.get_mut(&id).map(|pull| &mut pull.talk),
    }
}

fn short(load: &Load) -> String {
    match load {
        Load::Request { from, to, request } => {
            let (op, call, hop) = (request.origin.op.name(), from.call.0, &request.hop);
            let (hops, left) = (hop.hops_left, hop.time_left);
            format!("{} -> {to}: {op} (call {call}; {hops} hops, {left:?} left)", from.site)
        }
        Load::Answer { to, from, answer } => {
            let what = match answer {
                Ok(answer) => {
                    let text = format!("{answer:?}");
                    let cut = text.char_indices().nth(90).map_or(text.len(), |(at, _)| at);
                    text[..cut].to_owned()
                }
                Err(error) => format!("{error:?}"),
            };
            format!("{from} => {} (call {}): {what}", to.site, to.call.0)
        }
    }
}

fn brief(command: &Command) -> String {
    match command {
        Command::Launch { host, epoch, state, .. } => {
            format!("Launch on {host}, epoch {epoch}, loads {}", state.is_some())
        }
        Command::Serve { migration, .. } => format!("Serve {migration}"),
        Command::Provide { migration, files, .. } => format!("Provide {migration} {files:?}"),
        Command::Pull { migration, .. } => format!("Pull {migration}"),
        Command::Tell { migration, source, told } => {
            let told = match told {
                protocol::Told::Released(_) => "released",
                protocol::Told::Aborted(_) => "aborted",
                protocol::Told::Owned(_) => "owned",
                protocol::Told::HandedBack(_) => "handed back",
            };
            format!("Tell {migration} source {source}: {told}")
        }
        other => format!("{other:?}"),
    }
}

fn asked(wish: &Ask) -> String {
    match wish {
        Ask::Import { descriptor, .. } => format!("Import {}", descriptor.name),
        wish => format!("{wish:?}"),
    }
}
