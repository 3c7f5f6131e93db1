//! An Intermediary that passes on the values of 1, 100 and 10,000 VMs.
//!
//! The Intermediary is a real node, alone on one core, with the VMs in its journal as placements
//! through it leave them. Below it is this process, which makes the blocks of all VMs ([`Fleet`])
//! and brings them as a node's courier does: what waits, up to [`MAX_VALUES_BYTES`] a message, and
//! the next when the answer is there. Above it is this process too ([`Sink`]).
//! Values pass when the site above has answered for them; so whatever the Intermediary does for them
//! is in its processor time: verifying, keeping, sending, settling.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use certs::Identity;
use federation_tests::bench::{Failure, Wire, clock, dial};
use federation_tests::process::{Federation, Site, Usage};
use model::monitoring::Delivery;
use model::{JournalMark, PeerName, SiteKey};
use monitoring::block::SignedBlock;
use prost::Message;
use proto::envelope::{self, Carried, MAX_VALUES_BYTES, Sealer, Verdict};
use proto::federation::federation_client::FederationClient;
use rusqlite::{Connection, OpenFlags};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::Extent;
use crate::fleet::{self, Fleet, VALUES};
use crate::sink::{Came, Sink};
use federation_tests::bench::report::{Aim, report};

/// VMs whose values pass.
const FLEETS: [usize; 3] = [1, 100, 10_000];
/// Blocks that wait for the courier: two seconds of the largest fleet.
const WAITING: usize = 20_000;
/// Blocks that are made ahead for each second of passing on as fast as it can: to make them then
/// would take from the machine what is measured.
const AHEAD_EACH: u64 = 12_000;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Before it counts.
const WARM: Duration = Duration::from_secs(3);
/// How long an Intermediary may take to start with its journal, and to know all its VMs.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Values a second that one core is to pass on.
const MOST: f64 = 100_000.0;

pub(crate) fn run(extent: &Extent) -> Result<(), Failure> {
    let time = Duration::from_secs(if extent.is_quick { 8 } else { 30 });
    let second = Delivery::Every(1000);
    println!(
        "An Intermediary on a core of its own, {VALUES} values a second of each VM, delivered \
         every second:"
    );
    println!(
        "VMs        values/s   bytes a value: messages in  out   sockets in  out    CPU a value   \
         of a core"
    );
    for size in FLEETS {
        let relay = Relay::start(size, &second)?;
        let figures = relay.measure(Some(1.0), time)?;
        figures.tell(&size.to_string());
        if size == FLEETS[FLEETS.len() - 1] {
            report("bytes a value in messages", figures.message_in, Aim::AtMost(32.0));
        }
    }
    let relay = Relay::start(100, &Delivery::Every(0))?;
    relay.measure(Some(1.0), time)?.tell("100, each at once");
    drop(relay);
    let size = FLEETS[FLEETS.len() - 1];
    let relay = Relay::start(size, &second)?;
    let most = relay.measure(None, time)?;
    most.tell("10000, as fast as it can");
    println!("    (its core was its own among these processes, not among all of this machine)");
    report("values in a second of its core's time", 1e6 / most.cpu_micros, Aim::AtLeast(MOST));
    report("values a second by the clock", most.rate, Aim::AtLeast(MOST));
    drop(relay);
    if extent.is_quick {
        return Ok(());
    }
    // What it can do for long.
    let pace = (most.rate * 0.8 / (size as f64 * VALUES as f64)).min(1.0);
    Relay::start(size, &second)?.watch(pace, extent.watched)
}

/// An Intermediary under load.
struct Relay {
    federation: Federation,
    runtime: Runtime,
    came: Arc<Came>,
    size: usize,
    delivery: Delivery,
    all_cores: CpuSet,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.all_cores);
    }
}

impl Relay {
    fn start(size: usize, delivery: &Delivery) -> Result<Self, Failure> {
        let federation = Federation::chain(&["a", "b", "c"]);
        federation.sites().iter().for_each(Site::stop);
        let [a, b] = ["a", "b"].map(|name| &federation[name]);
        let [up, down] = ["a", "c"].map(|name| name.parse::<PeerName>().expect("a legal name"));
        b.remember(&fleet::rows(size, delivery, &up, &down)?, &[]);
        // One core for it, the others for who brings and takes.
        let all_cores = sched_getaffinity(None)?;
        let (mut own, mut others) = (CpuSet::new(), all_cores);
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| all_cores.is_set(*core));
        let last = cores.next_back().ok_or("no core")?;
        own.set(last);
        if all_cores.count() > 1 {
            others.unset(last);
        }
        sched_setaffinity(None, &others)?;
        let runtime = Runtime::new()?;
        let (identity, below) = (Identity::load(a.folder())?, key(b)?);
        let came = runtime.block_on(async {
            Sink::start(identity, below, TcpListener::bind(a.address()).await?)
        })?;
        sched_setaffinity(None, &own)?;
        b.start();
        sched_setaffinity(None, &others)?;
        let delivery = delivery.clone();
        let relay = Self { federation, runtime, came, size, delivery, all_cores };
        let begun = Instant::now();
        relay.wait_until_known()?;
        if size == FLEETS[FLEETS.len() - 1] {
            println!(
                "    (after its start it had taken over {size} VMs in {:.1?})",
                begun.elapsed()
            );
        }
        Ok(relay)
    }

    fn node(&self) -> &Site {
        &self.federation["b"]
    }

    /// Waits until monitoring has taken over the journal's VMs.
    fn wait_until_known(&self) -> Result<(), Failure> {
        let path = self.node().folder().join("monitoring.db");
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let until = Instant::now() + START_LIMIT;
        loop {
            let known = db.query_row("SELECT count(*) FROM paths", [], |row| row.get::<_, i64>(0));
            if known? == i64::try_from(self.size)? {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("it does not know its VMs in {START_LIMIT:?}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Passes values on: each VM's seconds at `pace` times the speed of time, or as fast as it can
    /// what was made before.
    fn measure(&self, pace: Option<f64>, time: Duration) -> Result<Figures, Failure> {
        let ahead = AHEAD_EACH * (WARM + time).as_secs();
        let load = self.load(pace, ahead)?;
        std::thread::sleep(WARM);
        let (before, begun) = (self.look(&load), Instant::now());
        let mut after = self.look(&load);
        let mut took = begun.elapsed();
        while took < time && (pace.is_some() || after.in_blocks < ahead) {
            std::thread::sleep(LOOK);
            (after, took) = (self.look(&load), begun.elapsed());
        }
        load.end(&self.runtime)?;
        let blocks = (after.out_blocks - before.out_blocks) as f64;
        let in_block = fleet::values_in_block(&self.delivery) as f64;
        let values = blocks * in_block;
        // What waits at the Intermediary has come in and not gone out.
        let values_in = (after.in_blocks - before.in_blocks) as f64 * in_block;
        let cpu = after.usage.cpu.saturating_sub(before.usage.cpu);
        Ok(Figures {
            rate: values / took.as_secs_f64(),
            message_in: (after.in_bytes - before.in_bytes) as f64 / values_in,
            message_out: (after.out_bytes - before.out_bytes) as f64 / values,
            socket_in: (after.in_wire - before.in_wire) as f64 / values_in,
            socket_out: (after.out_wire - before.out_wire) as f64 / values,
            cpu_micros: cpu.as_secs_f64() * 1e6 / values,
            share: cpu.as_secs_f64() / took.as_secs_f64(),
        })
    }

    /// Begins to bring values; where there is no pace, so many blocks and no more.
    fn load(&self, pace: Option<f64>, ahead: u64) -> Result<Load, Failure> {
        let c = &self.federation["c"];
        let identity = Identity::load(c.folder())?;
        let to = key(self.node())?;
        let brought = Arc::new(Brought::default());
        let address = self.node().address().to_string();
        let channel = self.runtime.block_on(dial(&identity, to, &address, &brought.wire))?;
        let (blocks, waiting) = mpsc::channel(WAITING);
        let mut fleet = Fleet::new(self.size, self.delivery.clone(), clock());
        let made = if pace.is_none() { fleet.make(usize::try_from(ahead)?) } else { vec![] };
        let making = brought.clone();
        let maker = std::thread::spawn(move || match pace {
            Some(pace) => make(&mut fleet, pace, &blocks, &making.ended),
            None => {
                made.into_iter().try_for_each(|block| blocks.blocking_send(block)).unwrap_or(())
            }
        });
        let courier = carry(identity, to, channel, waiting, brought.clone());
        Ok(Load { brought, maker, courier: self.runtime.spawn(courier) })
    }

    fn look(&self, load: &Load) -> Look {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Look {
            in_blocks: read(&load.brought.blocks),
            in_bytes: read(&load.brought.bytes),
            in_wire: load.brought.wire.bytes(),
            out_blocks: read(&self.came.blocks),
            out_bytes: read(&self.came.bytes),
            out_wire: self.came.wire.bytes(),
            usage: self.node().usage(),
        }
    }

    /// Looks at its memory every second.
    fn watch(&self, pace: f64, time: Duration) -> Result<(), Failure> {
        let load = self.load(Some(pace), 0)?;
        std::thread::sleep(WARM);
        let (begun, first) = (Instant::now(), self.look(&load));
        let mut sizes = Vec::new();
        while begun.elapsed() < time {
            std::thread::sleep(Duration::from_secs(1));
            let memory = self.node().usage().memory.0 as f64 / f64::from(1 << 20);
            sizes.push((begun.elapsed().as_secs_f64() / 3600.0, memory));
        }
        let last = self.look(&load);
        load.end(&self.runtime)?;
        let passed = (last.out_blocks - first.out_blocks) * VALUES;
        let rate = passed as f64 / begun.elapsed().as_secs_f64();
        let mean = |part: &[(f64, f64)]| {
            part.iter().map(|(_, size)| size).sum::<f64>() / part.len().max(1) as f64
        };
        let half = &sizes[sizes.len() / 2..];
        let minute = sizes.len().min(60);
        println!(
            "Memory over {time:?} at {rate:.0} values a second: {:.0} MiB in the first minute, \
             {:.0} MiB in the last, at most {:.0} MiB; in the second half it grew by {:.1} MiB an \
             hour; at the end {} blocks had come and not gone on",
            mean(&sizes[..minute]),
            mean(&sizes[sizes.len() - minute..]),
            last.usage.most_memory.0 as f64 / f64::from(1 << 20),
            slope(half),
            last.in_blocks - last.out_blocks
        );
        Ok(())
    }
}

/// How fast it grows, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len().max(1) as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    let (x, y) = (x / count, y / count);
    let across: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let along: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    across / along
}

/// The key of a site.
fn key(site: &Site) -> Result<SiteKey, Failure> {
    Ok(Identity::load(site.folder())?.site_key())
}

/// What the site below has brought.
#[derive(Default)]
struct Brought {
    blocks: AtomicU64,
    bytes: AtomicU64,
    wire: Wire,
    ended: AtomicBool,
}

/// What was counted up to a moment.
struct Look {
    in_blocks: u64,
    in_bytes: u64,
    in_wire: u64,
    out_blocks: u64,
    out_bytes: u64,
    out_wire: u64,
    usage: Usage,
}

/// The site below at work.
struct Load {
    brought: Arc<Brought>,
    maker: std::thread::JoinHandle<()>,
    courier: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Load {
    /// Stops it; says what was wrong, if something was.
    fn end(self, runtime: &Runtime) -> Result<(), Failure> {
        self.brought.ended.store(true, Ordering::Relaxed);
        let carried = runtime.block_on(self.courier)?;
        self.maker.join().map_err(|_| "the blocks cannot be made")?;
        carried
    }
}

/// Makes blocks when they are due, until it is to end or nobody takes them.
fn make(fleet: &mut Fleet, pace: f64, blocks: &mpsc::Sender<SignedBlock>, ended: &AtomicBool) {
    let begun = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let due = fleet.due().div_f64(pace).saturating_sub(begun.elapsed());
        if due > Duration::from_millis(1) {
            std::thread::sleep(due.min(Duration::from_millis(100)));
            continue;
        }
        for block in fleet.next() {
            if blocks.blocking_send(block).is_err() {
                return;
            }
        }
    }
}

/// Brings blocks to the Intermediary, as a node's courier does.
async fn carry(
    identity: Identity,
    to: SiteKey,
    channel: Channel,
    mut waiting: mpsc::Receiver<SignedBlock>,
    brought: Arc<Brought>,
) -> Result<(), Failure> {
    let mut client = FederationClient::new(channel);
    let me = identity.site_key();
    let mut next = None;
    while !brought.ended.load(Ordering::Relaxed) {
        let mut block = match next.take() {
            Some(block) => Some(block),
            None => waiting.recv().await,
        };
        let (mut batch, mut size) = (Vec::new(), 0);
        while let Some(one) = block {
            size += one.size();
            if size > MAX_VALUES_BYTES {
                next = Some(one);
                break;
            }
            batch.push(Carried::Values(one.body, one.signature));
            block = waiting.try_recv().ok();
        }
        if batch.is_empty() {
            break;
        }
        let count = batch.len() as u64;
        let (sealed, digest) = {
            let sign = |kind: &str, body: &[u8]| identity.sign(kind, body);
            let sealer = Sealer { site: me, sign: &sign, journal: JournalMark::new(0, sign) };
            envelope::seal_values(&sealer, to, batch, clock(), rand::random())
        };
        let bytes = sealed.encoded_len() as u64;
        let answer = client.values(sealed).await?.into_inner();
        let verdicts = envelope::open_verdicts(&answer, to, me, digest)?.content.into_inner();
        if verdicts.iter().any(|verdict| *verdict != Verdict::Taken) {
            return Err("the Intermediary does not take what it should".into());
        }
        brought.blocks.fetch_add(count, Ordering::Relaxed);
        brought.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    Ok(())
}

/// What was measured.
struct Figures {
    rate: f64,
    message_in: f64,
    message_out: f64,
    socket_in: f64,
    socket_out: f64,
    cpu_micros: f64,
    share: f64,
}

impl Figures {
    fn tell(&self, what: &str) {
        println!(
            "{what:<10}{:>9.0}{:>27.1}{:>6.1}{:>12.1}{:>6.1}{:>11.2} µs{:>10.0} %",
            self.rate,
            self.message_in,
            self.message_out,
            self.socket_in,
            self.socket_out,
            self.cpu_micros,
            self.share * 100.0
        );
    }
}
