//! A federation in memory, and the driver that lets time pass in it.

mod disk;
mod federation;
mod invariant;
mod law;
mod node;
mod outside;
mod rules;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{
    Bytes, Chain, Descriptor, Epoch, FileId, HostName, OperationId, PeerName, Peering, PowerState,
    Resources, Time, VmId,
};
use protocol::{
    Action, Answer, Ask, Config, Down, JourneyResult, Mode, NextMove, Op, Output, Reply,
    SourceStep, VmView,
};

pub use federation::{Federation, Flight, Line, Load, Point, Step};
pub use node::{Content, Guest, Node, Place, Saved};
pub use outside::Crypto;
pub use transfer::{End, Phase};

/// How long a crashed site stays down, unless a scenario says otherwise.
const DOWN_FOR: Duration = Duration::from_secs(2);

/// Steps within one [`World::run_until`]; more means that something goes round in circles.
const MAX_STEPS: usize = 200_000;

/// Log lines that a failure shows.
const SHOWN_LINES: usize = 200;

/// What the network does with one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Arrives,
    /// It is lost, and whoever waits for an answer hears that the connection broke.
    Lost,
    /// It arrives twice.
    Twice,
    /// It arrives this much later, and so behind others.
    Late(Duration),
}

/// Before or after the rows of an event are durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing of the event is durable.
    Before,
    /// The rows are being written: so many bytes of them are on the disk, and not synced.
    During(usize),
    /// The rows are durable, and no effect was carried out.
    After,
}

/// A crash to come.
#[derive(Debug, Clone)]
struct Plan {
    site: PeerName,
    kind: &'static str,
    when: When,
    skip: usize,
}

type Network = Box<dyn FnMut(&mut Flight) -> Fate>;

/// A federation, and time. Sites and hosts are called by their plain names.
///
/// After every step the invariants are checked; a violation panics with the latest log lines.
pub struct World {
    /// What there is.
    pub federation: Federation,
    network: Option<Network>,
    plans: Vec<Plan>,
    crashes: Vec<(PeerName, &'static str)>,
    restarts: BTreeMap<PeerName, Time>,
    numbers: u8,
}

impl World {
    /// Sites that all know nobody, with fast stand-in signatures.
    pub fn of(sites: &[&str]) -> Self {
        Self::with(sites, Crypto::Fast, &Config::default())
    }

    /// Sites that all know nobody.
    pub fn with(sites: &[&str], crypto: Crypto, config: &Config) -> Self {
        let mut federation = Federation::new(crypto);
        for name in sites {
            federation.add_site(site(name), config.clone());
        }
        let mut world = Self {
            federation,
            network: None,
            plans: vec![],
            crashes: vec![],
            restarts: BTreeMap::new(),
            numbers: 0,
        };
        for name in sites {
            world.start(name);
        }
        world
    }

    /// Sites that each know the one before and the one after.
    pub fn chain(sites: &[&str]) -> Self {
        let mut world = Self::of(sites);
        for pair in sites.windows(2) {
            world.peer(pair[0], pair[1]);
        }
        world
    }

    /// Makes two sites peers.
    pub fn peer(&mut self, one: &str, other: &str) {
        self.federation.peer(&site(one), &site(other));
        self.check();
    }

    /// A site's user ends the peering with a peer; none keeps it after all.
    pub fn leave(&mut self, at: &str, peer: &str, within: Option<Duration>) {
        let ending = within.map(|within| self.federation.now.after(within));
        let peering = Peering { ending, ..Peering::default() };
        self.federation.set_peering(&site(at), &site(peer), peering);
        if ending.is_some() && self.is_up(at) {
            self.begin(at, Ask::Leave(site(peer)));
        }
    }

    /// A site lets a peer do this from now on, and no more.
    pub fn terms(&mut self, at: &str, peer: &str, peering: Peering) {
        self.federation.set_peering(&site(at), &site(peer), peering);
    }

    /// Whether a site ends its peering with a peer.
    pub fn is_ending(&self, at: &str, peer: &str) -> bool {
        let machine = self.federation.nodes[&site(at)].machine.as_ref();
        let peering = machine.and_then(|machine| machine.peering(&site(peer)));
        peering.is_some_and(|peering| peering.ending.is_some())
    }

    /// Whether a site and a peer share nothing any more.
    pub fn has_left(&self, at: &str, peer: &str) -> bool {
        self.federation.nodes[&site(at)]
            .machine
            .as_ref()
            .is_some_and(|machine| !machine.shares_with(&site(peer)))
    }

    /// Gives a site a host with room for `vms` VMs.
    pub fn host(&mut self, at: &str, name: &str, vms: u32) {
        self.open_host(at, name);
        let wish = Ask::AddHost(host(name), Self::room(vms));
        self.ask_until(at, &wish, |world| world.state(at).hosts.contains_key(&host(name)));
    }

    /// Opens a host's hypervisor, as has to be done before the site can have the host.
    pub fn open_host(&mut self, at: &str, name: &str) {
        self.federation.connect_host(&site(at), host(name));
    }

    /// What a host has that holds so many VMs.
    pub fn room(vms: u32) -> Resources {
        let one = descriptor().resources;
        Resources { cpus: one.cpus * vms, memory: Bytes(one.memory.0 * u64::from(vms)) }
    }

    /// Imports a VM at its primary.
    pub fn import(&mut self, at: &str) -> VmId {
        self.import_as(at, descriptor())
    }

    /// Imports a VM that is described so at its primary.
    pub fn import_as(&mut self, at: &str, descriptor: Descriptor) -> VmId {
        let (k0, vm) = self.federation.prepare_import(&site(at));
        let wish = Ask::Import { descriptor, k0 };
        self.ask_until(at, &wish, |world| world.state(at).vms.contains_key(&vm));
        vm
    }

    /// Lets a site's user ask for something as often as it takes until it is so: a crash of the
    /// site may swallow the wish, or the reply.
    pub fn ask_until(&mut self, at: &str, wish: &Ask, done: impl Fn(&Self) -> bool) {
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            self.run_until("the site is up", Duration::from_secs(60), |world| world.is_up(at));
            let ask = self.begin(at, wish.clone());
            self.run_until("a reply", Duration::from_secs(600), |world| {
                done(world) || world.reply(ask).is_some() || !world.is_up(at)
            });
            self.run_until("the site is up", Duration::from_secs(60), |world| world.is_up(at));
            if done(self) {
                return;
            }
            self.run(Duration::from_secs(60));
        }
        panic!("{wish:?}: not after {TRIES} tries\n{}", self.story());
    }

    /// Lets a site's user ask for something; the answer comes at once, or [`None`] comes.
    pub fn begin(&mut self, at: &str, wish: Ask) -> u64 {
        let mut crash = decide(&mut self.plans, &mut self.crashes);
        let ask = self.federation.ask(&site(at), wish, &mut crash);
        drop(crash);
        self.after_step();
        self.check();
        ask
    }

    /// The reply to what a user asked for, if there is one yet.
    pub fn reply(&self, ask: u64) -> Option<&Reply> {
        self.federation.replies.get(&ask)
    }

    /// Lets a site's user ask for something, and waits for the reply.
    pub fn ask(&mut self, at: &str, wish: Ask) -> Reply {
        let ask = self.begin(at, wish);
        self.run_until("a reply", Duration::from_secs(3600), |world| world.reply(ask).is_some());
        self.reply(ask).expect("just seen").clone()
    }

    fn operation(&mut self) -> OperationId {
        self.numbers += 1;
        let mut id = [self.numbers; 16];
        // Apart from the ids that scenarios choose.
        id[0] = 0xff;
        OperationId(id)
    }

    /// Asks a site to place a VM somewhere and boot it.
    pub fn place(&mut self, at: &str, vm: VmId) -> OperationId {
        self.move_to(at, vm, &[])
    }

    /// Asks a site to place a VM at one of some peers and boot it.
    pub fn move_to(&mut self, at: &str, vm: VmId, peers: &[&str]) -> OperationId {
        let operation = self.operation();
        let wish = moving(operation, vm, peers);
        self.begin(at, wish);
        operation
    }

    /// Asks a site to move a VM to a host of its own.
    pub fn bring_home(&mut self, at: &str, vm: VmId) -> OperationId {
        let operation = self.operation();
        let wish = match moving(operation, vm, &[]) {
            Ask::Move { operation, vm, peers, mode, .. } => Ask::Move {
                operation,
                vm,
                peers,
                local_only: true,
                boot: true,
                mode,
                dry_run: false,
            },
            other => other,
        };
        self.begin(at, wish);
        operation
    }

    /// Asks a site what placing a VM would give.
    pub fn dry_run(&mut self, at: &str, vm: VmId) -> OperationId {
        let operation = self.operation();
        let wish = Ask::Move {
            operation,
            vm,
            peers: BTreeSet::new(),
            local_only: false,
            boot: true,
            mode: Mode::Hibernate,
            dry_run: true,
        };
        self.begin(at, wish);
        operation
    }

    /// Asks a site to force a VM out.
    pub fn evict(&mut self, at: &str, vm: VmId, within: Duration) -> OperationId {
        let operation = self.operation();
        let reason = "maintenance".to_owned();
        self.begin(at, Ask::Evict { operation, vm, reason, within });
        operation
    }

    /// Has a site do something until it is so, as a patient user does: what was lost, given up or
    /// refused for now is asked for again.
    pub fn insist(
        &mut self,
        at: &str,
        what: &str,
        begin: impl Fn(&mut Self) -> OperationId,
        done: impl Fn(&Self) -> bool,
    ) {
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            if done(self) {
                return;
            }
            let operation = begin(self);
            let name = at.to_owned();
            let over = |world: &Self| {
                let journey = world.state(&name).journeys.get(&operation);
                // A wish that a crash swallowed leaves no journey.
                journey.is_none_or(|journey| journey.result.is_some()) && world.is_up(&name)
            };
            self.run(Duration::from_secs(5));
            self.run_until(what, Duration::from_secs(2 * 24 * 3600), |world| {
                done(world) || over(world)
            });
            self.run(Duration::from_secs(60));
        }
        assert!(done(self), "{what}: not after {TRIES} tries\n{}", self.story());
    }

    /// Whether a site is up.
    pub fn is_up(&self, at: &str) -> bool {
        self.federation.nodes[&site(at)].is_up()
    }

    /// Changes or shows a VM's run state, from a site on its path.
    pub fn control(&mut self, at: &str, vm: VmId, action: Action) -> Answer {
        match self.ask(at, Ask::Control(vm, action)) {
            Reply::Answer(answer) => *answer,
            other => panic!("control was answered by {other:?}\n{}", self.story()),
        }
    }

    /// The power state of a VM, as a site on its path hears it.
    pub fn power(&mut self, at: &str, vm: VmId) -> PowerState {
        match self.control(at, vm, Action::Show) {
            Answer::State { power, .. } => power,
            other => panic!("no state but {other:?}\n{}", self.story()),
        }
    }

    // Faults.

    /// From now on `network` decides what becomes of each message, and may make another of it.
    pub fn network(&mut self, network: impl FnMut(&mut Flight) -> Fate + 'static) {
        self.network = Some(Box::new(network));
    }

    /// The network works again.
    pub fn calm(&mut self) {
        self.network = None;
    }

    /// No fault comes any more, and sites that are down come up.
    pub fn heal(&mut self) {
        self.calm();
        self.plans.clear();
        self.federation.have_space();
        for down in self.federation.down() {
            self.start(down.as_str());
        }
    }

    /// Cuts two sites off from each other, or joins them again.
    pub fn cut(&mut self, one: &str, other: &str, cut: bool) {
        self.federation.cut(&site(one), &site(other), cut);
        self.federation.cut(&site(other), &site(one), cut);
    }

    /// Lets messages of one site no longer reach another, or lets them again.
    pub fn cut_one_way(&mut self, from: &str, to: &str, cut: bool) {
        self.federation.cut(&site(from), &site(to), cut);
    }

    /// Everything between two sites takes so much longer from now on.
    pub fn slow(&mut self, one: &str, other: &str, by: Duration) {
        self.federation.slow(&site(one), &site(other), by);
    }

    /// Sets a site's clock: so many milliseconds off the true time. Its node would see it when it
    /// wakes for something, within a minute; here it does at once.
    pub fn set_clock(&mut self, at: &str, by: i64) {
        let node = self.federation.node(&site(at));
        node.skew = by;
        if node.is_up() {
            let mut crash = decide(&mut self.plans, &mut self.crashes);
            self.federation.perform(&Step::Turn(site(at)), &mut crash);
            drop(crash);
            self.after_step();
        }
    }

    /// There is no space for a site's journal, or there is again. The site ends when it needs some.
    pub fn fill_journal(&mut self, at: &str, full: bool) {
        self.federation.node(&site(at)).disk.full = full;
    }

    /// There is no space for a site's files, or there is again.
    pub fn fill_files(&mut self, at: &str, full: bool) {
        self.federation.node(&site(at)).full = full;
    }

    /// Nobody can dial a site's proxy from now on.
    pub fn dial_out(&mut self, at: &str) {
        self.federation.node(&site(at)).dials_out = true;
    }

    /// A site passes the transfers of others through its own proxy from now on.
    pub fn relay(&mut self, at: &str) {
        self.federation.node(&site(at)).relays = true;
    }

    /// The next files that arrive at a site are not what was sent.
    pub fn damage(&mut self, at: &str) {
        self.federation.node(&site(at)).damages = true;
    }

    /// Each commit of a site takes so long from now on; what comes meanwhile is handled together.
    pub fn slow_disk(&mut self, at: &str, by: Duration) {
        self.federation.node(&site(at)).sync_time = by;
    }

    /// A site is lost with all that it has, and never comes back.
    pub fn lose_for_good(&mut self, at: &str) {
        self.federation.lose_for_good(&site(at));
        self.restarts.remove(&site(at));
        self.check();
    }

    /// Puts an old copy of a site's journal back: so many hundredths of it, but nothing that no
    /// peer could tell is missing. The site starts anew from it. False if there is no such copy.
    pub fn restore_journal(&mut self, at: &str, share: usize) -> bool {
        let restored = self.federation.restore_journal(&site(at), share);
        if restored {
            self.start(at);
        }
        restored
    }

    /// Counts what sites show of who has the next move on VMs.
    pub fn met_moves(&mut self) {
        let sites = self.federation.nodes.values().filter_map(|node| node.machine.as_ref());
        let moves = sites.flat_map(|site| site.vms().filter_map(|vm| vm.next));
        for next in moves.collect::<Vec<_>>() {
            self.met("shown", next.state);
        }
    }

    /// Counts what a run has met.
    pub fn met(&mut self, what: &'static str, which: &'static str) {
        self.federation.met(what, which);
    }

    /// Crashes a site; its guests go on. It stays down until [`World::start`].
    pub fn crash(&mut self, at: &str) {
        self.federation.crash(&site(at));
        self.check();
    }

    /// Ends every guest process of a site, as a power failure does.
    pub fn power_failure(&mut self, at: &str) {
        self.crash(at);
        self.federation.end_guests(&site(at));
        self.check();
    }

    /// Starts a site that is down.
    pub fn start(&mut self, at: &str) {
        self.restarts.remove(&site(at));
        let mut crash = decide(&mut self.plans, &mut self.crashes);
        self.federation.perform(&Step::Restart(site(at)), &mut crash);
        drop(crash);
        self.after_step();
    }

    /// Crashes a site when it writes a row of `kind`, for the time after next `skip` times; it
    /// comes up again by itself.
    pub fn crash_at(&mut self, at: &str, kind: &'static str, when: When, skip: usize) {
        self.plans.push(Plan { site: site(at), kind, when, skip });
    }

    /// Which of the planned crashes have come.
    pub fn crashes(&self) -> &[(PeerName, &'static str)] {
        &self.crashes
    }

    /// No guest comes up on this host from now on, or they do again.
    pub fn break_host(&mut self, at: &str, name: &str, broken: bool) {
        self.federation.break_host(&site(at), host(name), broken);
    }

    // Time.

    /// Does the next step if one is due by `limit`, letting time pass until then.
    fn step(&mut self, limit: Time) -> bool {
        let now = self.federation.now;
        if let Some((name, _)) = self.restarts.iter().find(|(_, at)| **at <= now) {
            let name = name.as_str().to_owned();
            self.start(&name);
            return true;
        }
        let Some(step) = self.federation.due_step() else {
            let restart = self.restarts.values().min().copied();
            let next = self.federation.next_due().into_iter().chain(restart).min();
            let Some(next) = next.filter(|next| *next <= limit) else { return false };
            self.federation.now = next.max(now);
            return true;
        };
        let mut fate = Fate::Arrives;
        if let Step::Deliver(at) = step
            && let Some(network) = &mut self.network
        {
            fate = network(&mut self.federation.flights[at]);
        }
        match (fate, step) {
            (Fate::Lost, Step::Deliver(at)) => {
                self.federation.met("message", "lost");
                self.federation.lose(at);
            }
            (Fate::Late(by), Step::Deliver(at)) => {
                self.federation.met("message", "late");
                self.federation.delay(at, by);
            }
            (fate, step) => {
                if let (Fate::Twice, Step::Deliver(at)) = (fate, &step)
                    && self.federation.repeat(*at)
                {
                    self.federation.met("message", "repeated");
                }
                let mut crash = decide(&mut self.plans, &mut self.crashes);
                self.federation.perform(&step, &mut crash);
            }
        }
        self.after_step();
        true
    }

    fn after_step(&mut self) {
        for name in self.federation.down() {
            let planned = self.crashes.iter().any(|(site, _)| *site == name);
            let full = self.federation.nodes[&name].disk.full;
            if planned && !full && !self.restarts.contains_key(&name) {
                self.restarts.insert(name, self.federation.now.after(DOWN_FOR));
            }
        }
        self.look();
    }

    /// Checks the rules where something happened that is no step.
    fn check(&mut self) {
        self.federation.check();
        self.look();
    }

    fn look(&self) {
        if let Some(violation) = self.federation.violations.first() {
            panic!("{violation}\n{}", self.story());
        }
    }

    /// Lets time pass until `done`, and panics when it is not so within `limit`.
    pub fn run_until(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> bool) {
        let until = self.federation.now.after(limit);
        for _ in 0..MAX_STEPS {
            if done(self) {
                return;
            }
            if !self.step(until) {
                panic!("{what}: not within {limit:?}\n{}", self.story());
            }
        }
        panic!("{what}: not within {MAX_STEPS} steps\n{}", self.story());
    }

    /// Lets time pass.
    pub fn run(&mut self, span: Duration) {
        let until = self.federation.now.after(span);
        for _ in 0..MAX_STEPS {
            if !self.step(until) {
                self.federation.now = until;
                return;
            }
        }
        panic!("no rest within {MAX_STEPS} steps\n{}", self.story());
    }

    /// Lets time pass as long as this is so.
    pub fn run_while(&mut self, limit: Duration, so: impl Fn(&Self) -> bool) {
        let until = self.federation.now.after(limit);
        for _ in 0..MAX_STEPS {
            if !so(self) || !self.step(until) {
                return;
            }
        }
        panic!("no rest within {MAX_STEPS} steps\n{}", self.story());
    }

    /// Lets three days pass, then checks that nothing is left over anywhere: no open migration or
    /// journey, no taken capacity, no guest, file, token or session that nobody needs.
    pub fn settle(&mut self) {
        self.calm();
        self.run(Duration::from_secs(3 * 24 * 3600));
        let left = self.federation.leftovers();
        assert!(left.is_empty(), "left over: {left:#?}\n{}", self.story());
    }

    // Looking.

    /// The sites at which a guest of the VM executes.
    pub fn running_at(&self, vm: VmId) -> Vec<&str> {
        let nodes = self.federation.nodes.iter();
        let runs = |node: &Node| {
            node.guests.iter().filter(|((_, of, _), guest)| *of == vm && guest.executes).count()
        };
        nodes.flat_map(|(name, node)| vec![name.as_str(); runs(node)]).collect()
    }

    /// Whether the VM executes at exactly this site.
    pub fn runs(&self, vm: VmId, at: &str) -> bool {
        self.running_at(vm) == [at]
    }

    /// Waits until the VM executes at this site.
    pub fn until_runs(&mut self, vm: VmId, at: &str) {
        let what = format!("the VM runs at {at}");
        self.run_until(&what, Duration::from_secs(3600), |world| world.runs(vm, at));
    }

    /// What the memory of the VM's executing guest stands for: booting anew makes another.
    pub fn memory(&self, vm: VmId) -> Option<u64> {
        let guests = self.federation.nodes.values().flat_map(|node| &node.guests);
        guests
            .filter(|((_, of, _), guest)| *of == vm && guest.executes)
            .map(|(_, g)| g.memory)
            .next()
    }

    /// The host that has the VM at a site.
    pub fn host_of(&self, at: &str, vm: VmId) -> Option<String> {
        let stay = self.state(at).vms.get(&vm)?.stay.as_ref()?;
        Some(stay.host.to_string())
    }

    /// Whether a site has files of the VM, of whatever stay.
    pub fn has_files(&self, at: &str, vm: VmId) -> bool {
        self.federation.nodes[&site(at)].copies.keys().any(|(_, of, _)| *of == vm)
    }

    /// Whether its destruction is durable at some site.
    pub fn is_destroyed(&self, vm: VmId) -> bool {
        let nodes = self.federation.nodes.values();
        nodes.filter_map(|node| node.durable.vms.get(&vm)).any(|entry| entry.destroyed)
    }

    /// The sites that own a VM, whether it executes there, and whether it should.
    pub fn owners(&self, vm: VmId) -> Vec<(String, bool, bool)> {
        let nodes = self.federation.nodes.iter().filter(|(_, node)| !node.gone);
        nodes
            .filter_map(|(name, node)| {
                let entry = node.durable.vms.get(&vm)?;
                let stay = entry.stay.as_ref()?;
                let runs = self.running_at(vm).contains(&name.as_str());
                Some((name.to_string(), runs, stay.wanted && entry.parked.is_none()))
            })
            .collect()
    }

    /// Whether a site has a copy of a VM that it released.
    pub fn has_frozen(&self, at: &str, vm: VmId) -> bool {
        let mut migrations = self.state(at).migrations_of(vm);
        migrations.any(|(_, migration)| {
            let step = migration.source.as_ref().map(|source| source.step);
            matches!(step, Some(SourceStep::Released | SourceStep::Receipted))
        })
    }

    /// The contracts of a site, which must be up.
    pub fn contracts(&self, at: &str) -> Vec<protocol::ContractView> {
        let machine = self.federation.nodes[&site(at)].machine.as_ref();
        machine.expect("the site is up").contracts().collect()
    }

    /// The revision of what is monitored of a VM, as a site has it on its disk.
    pub fn revision(&self, at: &str, vm: VmId) -> u64 {
        self.state(at).vms[&vm].descriptor.monitoring.revision
    }

    /// Whether no other site knows a newer certificate of any VM that this one holds, other than
    /// that it is to get the VM.
    pub fn remembers_best(&self, at: &str) -> bool {
        let state = self.state(at);
        let knows = |vm: &VmId, other: &Chain| {
            let newer = |chain: &Chain| chain.epoch() < other.epoch();
            let mut targets = state.migrations.values().filter(|migration| migration.vm == *vm);
            let owner = other.newest().owner;
            state.vms.get(vm).is_some_and(|entry| !newer(&entry.chain))
                || targets.any(|m| m.target.as_ref().is_some_and(|t| t.vm_key == owner))
        };
        state.held.iter().all(|vm| {
            let others = self.federation.nodes.values();
            let known = others.filter_map(|node| node.durable.vms.get(vm));
            known.into_iter().all(|entry| knows(vm, &entry.chain))
        })
    }

    /// What is durable at a site.
    pub fn state(&self, at: &str) -> &protocol::State {
        &self.federation.nodes[&site(at)].durable
    }

    /// Waits until an operation has ended, and tells how.
    pub fn result(&mut self, at: &str, operation: OperationId) -> JourneyResult {
        let name = at.to_owned();
        let ended = move |world: &Self| {
            let journey = world.state(&name).journeys.get(&operation);
            journey.and_then(|journey| journey.result.clone())
        };
        self.run_until("the operation ends", Duration::from_secs(2 * 24 * 3600), |world| {
            ended(world).is_some()
        });
        ended(self).expect("just seen")
    }

    /// The sites on the VM's path from its primary on, as each names the next.
    pub fn path(&self, primary: &str, vm: VmId) -> Vec<String> {
        let mut path = vec![primary.to_owned()];
        while path.len() < 10 {
            let entry = self.state(path.last().expect("never empty")).vms.get(&vm);
            match entry.map(|entry| &entry.down) {
                Some(Down::Edge(edge)) => path.push(edge.peer.to_string()),
                _ => break,
            }
        }
        path
    }

    /// The sites that the latest transfer went through, the Destination first.
    pub fn last_session(&self) -> Vec<&str> {
        let last = self.federation.sessions.last();
        last.into_iter().flatten().map(|site| site.as_str()).collect()
    }

    /// Tells in the log what each site shows of a VM.
    pub fn show(&mut self, vm: VmId) {
        let shown = self.federation.nodes.iter().map(|(name, node)| {
            let view = node.machine.as_ref().and_then(|machine| machine.vm(vm));
            view.map_or(format!("{name} shows nothing"), |view| {
                format!("{name} shows {}", told(view))
            })
        });
        for line in shown.collect::<Vec<_>>() {
            self.federation.tell(|| line);
        }
    }

    /// Tells in the log of each peering that ends what keeps it.
    pub fn show_peerings(&mut self) {
        let names: Vec<&PeerName> = self.federation.nodes.keys().collect();
        let mut lines = Vec::new();
        for (name, node) in &self.federation.nodes {
            let Some(machine) = &node.machine else { continue };
            let ends = |peer: &&&PeerName| {
                machine.peering(peer).is_some_and(|peering| peering.ending.is_some())
            };
            for peer in names.iter().filter(ends) {
                let why = match (
                    machine.shares_with(peer),
                    machine.peerings_over(self.federation.now).any(|over| over == *peer),
                ) {
                    (true, false) => "they share something",
                    (false, false) => "something may have to be said yet",
                    (false, true) => "it is over",
                    (true, true) => "it is over though they share something",
                };
                lines.push(format!("{name} ends its peering with {peer}: {why}"));
            }
        }
        for line in lines {
            self.federation.tell(|| line);
        }
    }

    /// What a site shows of who has the next move on a VM.
    pub fn next_move(&self, at: &str, vm: VmId) -> Option<NextMove> {
        self.federation.nodes[&site(at)].machine.as_ref()?.vm(vm)?.next
    }

    /// The newest epoch that a site knows of.
    pub fn epoch(&self, at: &str, vm: VmId) -> Option<Epoch> {
        Some(self.state(at).vms.get(&vm)?.chain.epoch())
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.federation.now.since(federation::BEGINNING)
    }

    /// The latest lines of what happened.
    pub fn story(&self) -> String {
        let log = &self.federation.log;
        log[log.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

/// The crash that is planned for an output, if any.
fn decide<'a>(
    plans: &'a mut Vec<Plan>,
    crashes: &'a mut Vec<(PeerName, &'static str)>,
) -> impl FnMut(&PeerName, &Output) -> Option<Point> + 'a {
    move |name, output| {
        for row in &output.rows {
            let Some(at) = plans.iter().position(|p| p.site == *name && p.kind == row.kind())
            else {
                continue;
            };
            if plans[at].skip > 0 {
                plans[at].skip -= 1;
                continue;
            }
            let plan = plans.remove(at);
            crashes.push((plan.site, plan.kind));
            return Some(match plan.when {
                When::Before => Point::BeforeRows,
                When::During(bytes) => Point::Unsynced(bytes),
                When::After => Point::AfterEffects(0),
            });
        }
        None
    }
}

fn moving(operation: OperationId, vm: VmId, peers: &[&str]) -> Ask {
    Ask::Move {
        operation,
        vm,
        peers: peers.iter().map(|peer| site(peer)).collect(),
        local_only: false,
        boot: true,
        mode: Mode::Hibernate,
        dry_run: false,
    }
}

/// A site, as its peers call it.
pub fn site(name: &str) -> PeerName {
    name.parse().expect("a legal name")
}

/// A host's name.
pub fn host(name: &str) -> HostName {
    name.parse().expect("a legal name")
}

/// The descriptor of every VM here: one processor, 512 MiB, one disk.
pub fn descriptor() -> Descriptor {
    Descriptor {
        name: "web".parse().expect("a legal name"),
        resources: Resources { cpus: 1, memory: Bytes::mib(512) },
        disks: vec![model::vm::Disk { file: FileId::disk(0), capacity: Bytes::mib(1024) }],
        nics: vec![],
        restrictions: model::vm::Restrictions::default(),
        monitoring: Default::default(),
    }
}

/// Whether a message is a request for this operation, by its name in federation.md.
pub fn asks(flight: &Flight, operation: &str) -> bool {
    matches!(&flight.load, Load::Request { request, .. } if request.origin.op.name() == operation)
}

/// Whether a message is a request for an operation that `wanted` knows.
pub fn asks_for(flight: &Flight, wanted: impl Fn(&Op) -> bool) -> bool {
    matches!(&flight.load, Load::Request { request, .. } if wanted(&request.origin.op))
}

/// What users are shown, in a line.
fn told(view: VmView) -> String {
    let mut line = format!("epoch {}", view.epoch);
    let mut add = |text: String| {
        line.push_str(", ");
        line.push_str(&text);
    };
    if view.primary {
        add("its own".to_owned());
    }
    if let Some(peer) = view.delegator {
        add(format!("from {peer}"));
    }
    if let Some(peer) = view.delegate {
        add(format!("at {peer}"));
    }
    if let Some((host, power)) = view.here {
        add(format!("{power:?} on {host}"));
    }
    if let Some(why) = view.parked {
        add(format!("parked: {why}"));
    }
    if view.destroyed {
        add("destroyed".to_owned());
    }
    if let Some(next) = view.next {
        add(format!("{}; {}", next.state, next.who));
        if let Some((at, what)) = next.until {
            add(format!("until {}: {what}", at.since(federation::BEGINNING).as_millis()));
        }
    }
    line
}
