//! The node that is measured, alone on one core, and everything around it on the others.
//!
//! Its peers join it with tickets. The VMs are written to its journal as placements leave them:
//! 10,000 real ones would take ten minutes, each with a Source to be played. None of them runs, and
//! their files are not there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::Identity;
use federation_tests::bench::{Failure, admin, median};
use federation_tests::process::{Federation, Site, Usage};
use model::{Bytes, SiteKey};
use proto::admin::{Name, Nothing};
use rusqlite::{Connection, OpenFlags};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::Runtime;

use crate::fleet::{HOST, Vm};
use crate::load::{self, AT_ONCE, Kind};
use crate::peers::{Line, Peers};
use crate::serve::Bare;

/// Small VMs that the host has room for: more than are ever there.
const ROOM: u32 = 100_000;
/// How long a node may take to be as idle as it ever is.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);
/// A look at what the node does, and what it may do meanwhile to count as idle.
const LOOK: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_millis(20);
/// Looks of a user.
const LOOKS: usize = 5;
/// Requests of each kind before any is counted, for each that is.
const WARM: usize = 10;

/// Everything that is running.
pub(crate) struct Stage {
    pub(crate) peers: Peers,
    federation: Federation,
    vms: Vec<Vm>,
    identity: Identity,
    bare: Bare,
    bare_lines: Arc<[Line]>,
    lines: Arc<[Line]>,
    cores: Cores,
    // Goes last: the others are served by it.
    runtime: Runtime,
}

/// The core of what is measured, and those of the rest.
struct Cores {
    all: CpuSet,
    own: CpuSet,
    others: CpuSet,
}

/// What of one kind of requests came of several rounds, each a median.
pub(crate) struct Figures {
    pub(crate) kind: Kind,
    pub(crate) node: Rate,
    pub(crate) bare: Rate,
}

/// How fast a server answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Requests a second by the clock.
    pub(crate) by_clock: f64,
    /// Microseconds of its processor time for each.
    pub(crate) micros: f64,
}

/// How long the node took to start, and until it was idle.
pub(crate) struct Started {
    pub(crate) serving: Duration,
    pub(crate) idle: Duration,
}

impl Stage {
    /// A node without peers, and the server that answers with nothing.
    pub(crate) fn new() -> Result<Self, Failure> {
        let cores = Cores::new()?;
        let mut federation = Federation::new();
        let site = federation.add("node");
        // A site remembers no more than 10,000 requests, each for as long as its offers stand.
        site.configure("time", "offer_s", 1);
        let identity = Identity::load(site.folder())?;
        let bare = cores.alone(|| {
            site.start();
            Bare::start()
        })?;
        // As many threads as there are cores left.
        let runtime = Runtime::new()?;
        site.host(HOST, ROOM);
        Ok(Self {
            peers: Peers::default(),
            vms: vec![],
            lines: Arc::new([]),
            bare_lines: Arc::new([]),
            federation,
            identity,
            bare,
            cores,
            runtime,
        })
    }

    fn site(&self) -> &Site {
        &self.federation["node"]
    }

    fn key(&self) -> SiteKey {
        self.identity.site_key()
    }

    /// Memory that the node has now.
    pub(crate) fn memory(&self) -> Bytes {
        self.site().usage().memory
    }

    /// Memory that the server has that answers with nothing.
    pub(crate) fn bare_memory(&self) -> Bytes {
        self.bare.usage().memory
    }

    /// Has peers join until there are so many; how long that took.
    pub(crate) fn join(&mut self, count: usize) -> Result<Duration, Failure> {
        let (site, begun) = (&self.federation["node"], Instant::now());
        let joined = self.peers.join(self.identity.site_key(), site.folder(), count);
        self.runtime.block_on(joined)?;
        Ok(begun.elapsed())
    }

    /// Connects the peers to either server, by one connection each and [`AT_ONCE`] at least.
    pub(crate) fn connect(&mut self) -> Result<(), Failure> {
        let count = self.peers.all.len().max(AT_ONCE);
        let (node, bare) = (self.site().address(), self.bare.address);
        (self.lines, self.bare_lines) = (Arc::new([]), Arc::new([]));
        self.lines = self.runtime.block_on(self.peers.connect(self.key(), node, count))?;
        self.bare_lines = self.runtime.block_on(self.peers.connect(self.bare.key, bare, count))?;
        Ok(())
    }

    /// Stops the node and starts it with so many VMs in its journal.
    pub(crate) fn restart(&mut self, vms: usize) -> Result<Started, Failure> {
        self.lines = Arc::new([]);
        let site = &self.federation["node"];
        site.stop();
        let new = self.vms.len()..vms;
        let new: Vec<Vm> = new.map(|at| Vm::new(at, self.peers.all.len())).collect();
        let mut rows = Vec::new();
        for vm in &new {
            rows.extend(vm.rows(&self.identity, &self.peers.all)?);
        }
        site.remember(&rows, &new.iter().flat_map(Vm::keys).collect::<Vec<_>>());
        self.vms.extend(new);
        let (told, begun) = (self.peers.told(), Instant::now());
        self.cores.alone(|| {
            site.start();
            Ok(())
        })?;
        let serving = begun.elapsed();
        self.settle(told)?;
        Ok(Started { serving, idle: begun.elapsed() })
    }

    /// Waits until the node has told the peers of all VMs that it started with, has taken over what
    /// is monitored of them, and does nothing any more.
    fn settle(&self, told: u64) -> Result<(), Failure> {
        let until = Instant::now() + SETTLE_LIMIT;
        let path = self.site().folder().join("monitoring.db");
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let vms = u64::try_from(self.vms.len())?;
        loop {
            let before = self.site().usage().cpu;
            std::thread::sleep(LOOK);
            let is_idle = self.site().usage().cpu.saturating_sub(before) <= IDLE;
            let known: i64 = db.query_row("SELECT count(*) FROM paths", [], |row| row.get(0))?;
            let told = self.peers.told() - told;
            if is_idle && u64::try_from(known)? == vms && told >= vms {
                return Ok(());
            }
            if Instant::now() > until {
                let (tail, what) = (self.site().log_tail(), format!("{known} taken over"));
                return Err(format!("of {vms} VMs {told} were told, {what}\n{tail}").into());
            }
        }
    }

    /// Asks either server the same, turn and turn about; the medians of all rounds.
    pub(crate) fn measure(&self, count: usize, rounds: usize) -> Result<Vec<Figures>, Failure> {
        let kinds = Kind::ALL.into_iter();
        let kinds = kinds.filter(|kind| *kind != Kind::Shown || !self.vms.is_empty());
        let mut all: Vec<(Kind, Vec<Rate>, Vec<Rate>)> =
            kinds.map(|kind| (kind, vec![], vec![])).collect();
        for round in 0..=rounds {
            for (kind, node, bare) in &mut all {
                let count = if round == 0 { count / WARM } else { count };
                let rates = self.round(*kind, count)?;
                if round > 0 {
                    node.push(rates.0);
                    bare.push(rates.1);
                }
            }
        }
        let figures = all.into_iter().map(|(kind, node, bare)| Figures {
            kind,
            node: Rate::median(&node),
            bare: Rate::median(&bare),
        });
        Ok(figures.collect())
    }

    /// How long a user waits for one VM, for the list of them (for which each peer is asked that
    /// has some), and for that of the peers: the medians of several looks.
    pub(crate) fn looks(&self) -> Result<[Duration; 3], Failure> {
        let name = self.vms.first().map(|vm| vm.id.to_string());
        self.runtime.block_on(async {
            let mut node = admin(self.site().folder()).await?;
            let mut all = [vec![], vec![], vec![]];
            for _ in 0..LOOKS {
                let begun = Instant::now();
                if let Some(name) = &name {
                    node.get_vm(Name { name: name.clone() }).await?;
                }
                all[0].push(begun.elapsed());
                let begun = Instant::now();
                node.list_vms(Nothing {}).await?;
                all[1].push(begun.elapsed());
                let begun = Instant::now();
                node.list_peers(Nothing {}).await?;
                all[2].push(begun.elapsed());
            }
            Ok(all.map(|mut times| {
                times.sort_unstable();
                times[times.len() / 2]
            }))
        })
    }

    fn round(&self, kind: Kind, count: usize) -> Result<(Rate, Rate), Failure> {
        let by = (&self.peers, self.lines.len());
        let asks = load::asks(kind, count, by, &self.vms, self.key());
        let site = self.site();
        let usage = || site.usage();
        let (node, answers) = self.timed(kind, asks.clone(), &self.lines, &usage)?;
        load::check(kind, &asks, &answers, &self.peers, self.key())?;
        let usage = || self.bare.usage();
        let (bare, _) = self.timed(kind, asks, &self.bare_lines, &usage)?;
        Ok((node, bare))
    }

    fn timed(
        &self,
        kind: Kind,
        asks: Vec<load::Ask>,
        lines: &Arc<[Line]>,
        usage: &dyn Fn() -> Usage,
    ) -> Result<(Rate, Vec<proto::federation::Sealed>), Failure> {
        let (before, count) = (usage().cpu, asks.len() as f64);
        let (took, answers) = self.runtime.block_on(load::send(kind, asks, lines))?;
        let cpu = usage().cpu.saturating_sub(before);
        let by_clock = count / took.as_secs_f64();
        Ok((Rate { by_clock, micros: cpu.as_secs_f64() * 1e6 / count }, answers))
    }
}

impl Rate {
    fn median(rates: &[Self]) -> Self {
        let of = |what: fn(&Self) -> f64| median(rates.iter().map(what).collect());
        Self { by_clock: of(|rate| rate.by_clock), micros: of(|rate| rate.micros) }
    }
}

impl Cores {
    fn new() -> Result<Self, Failure> {
        let all = sched_getaffinity(None)?;
        let (mut own, mut others) = (CpuSet::new(), all);
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
        let last = cores.next_back().ok_or("no core")?;
        own.set(last);
        if all.count() > 1 {
            others.unset(last);
        }
        sched_setaffinity(None, &others)?;
        Ok(Self { all, own, others })
    }

    /// What this starts has the core of its own.
    fn alone<T>(&self, start: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        sched_setaffinity(None, &self.own)?;
        let started = start();
        sched_setaffinity(None, &self.others)?;
        started
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.all);
    }
}
