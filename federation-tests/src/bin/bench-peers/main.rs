//! Measures a node with 1,000 peers and 10,000 VMs:
//!
//! - `requests`: what its peers can ask it in a second, 64 of them at once, against the same gRPC
//!   server over the same mutual TLS that answers with nothing, turn and turn about; with one peer
//!   and no VM, with all peers, and with all peers and VMs; and the memory that it takes for each;
//! - `decisions`: how often its policies decide in a second.
//!
//! What asks shares the machine with what answers, and a server that answers with nothing is
//! faster than what asks. So beside what the clock says stands the processor time that either
//! server took for a request, which says more.
//!
//! `bench-peers [--quick] [--rounds N] [--json FILE] [--only requests|decisions]`

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

mod decisions;
mod fleet;
mod load;
mod peers;
mod serve;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use federation_tests::bench::report::{Aim, report};
use federation_tests::bench::{Failure, heading, ms};
use model::Bytes;
use serde_json::{Value, json};

use crate::stage::{Figures, Stage};

/// How it is called.
const USAGE: &str = "bench-peers [--quick] [--rounds N] [--json FILE] [--only requests|decisions]";
/// What can be measured, in this order.
const PARTS: [&str; 2] = ["requests", "decisions"];
/// Rounds of which medians are taken, unless `--rounds` says otherwise.
const ROUNDS: usize = 3;
/// Of the same server that answers with nothing, what the node is to answer at least.
const LEAST: f64 = 0.5;

/// How much is measured.
struct Extent {
    is_quick: bool,
    rounds: usize,
    /// The one part that is wanted; all if empty.
    only: String,
    json: Option<PathBuf>,
}

impl Extent {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let (mut is_quick, mut rounds, mut only, mut json) = (false, None, String::new(), None);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => is_quick = true,
                "--rounds" => rounds = Some(value()?.parse()?),
                "--only" => only = value()?,
                "--json" => json = Some(value()?.into()),
                _ => return Err(format!("{word} is not known").into()),
            }
        }
        if !(only.is_empty() || PARTS.contains(&only.as_str())) {
            return Err(format!("there is no part {only}").into());
        }
        let rounds = rounds.unwrap_or(if is_quick { 1 } else { ROUNDS });
        if !(1..=99).contains(&rounds) {
            return Err(format!("{rounds} rounds are not between 1 and 99").into());
        }
        Ok(Self { is_quick, rounds, only, json })
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only == part
    }

    /// One of two sizes.
    fn size<T>(&self, whole: T, quick: T) -> T {
        if self.is_quick { quick } else { whole }
    }
}

fn main() -> ExitCode {
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("first of its kind");
    let is_bare = std::env::args().nth(1).is_some_and(|word| word == serve::ROLE);
    match if is_bare { serve::serve() } else { measure() } {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}\nusage: {USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Failure> {
    let extent = Extent::read(std::env::args().skip(1))?;
    println!("{}", heading());
    let mut found = serde_json::Map::new();
    if extent.wants("requests") {
        found.insert("requests".to_owned(), requests(&extent)?);
    }
    if extent.wants("decisions") {
        let time = Duration::from_millis(extent.size(1000, 200));
        found.insert("decisions".to_owned(), decisions::run(time, extent.rounds)?);
    }
    println!("at the end: {}", heading());
    match &extent.json {
        Some(file) => Ok(std::fs::write(file, format!("{}\n", Value::from(found)))?),
        None => Ok(()),
    }
}

fn requests(extent: &Extent) -> Result<Value, Failure> {
    let (peers, fleets) = extent.size((1000, [1000, 10_000]), (100, [200, 2000]));
    let count = extent.size(10_000, 2500);
    let mut stage = Stage::new()?;
    let mut found = Vec::new();
    println!();
    println!("Requests, {} at once, against a server that answers with nothing:", load::AT_ONCE);
    println!(
        "{:>6}{:>8}  {:<16}{:>9}{:>9}{:>8}{:>11}{:>9}{:>8}",
        "peers", "VMs", "request", "node/s", "bare/s", "ratio", "node CPU", "bare CPU", "ratio"
    );
    let empty = (stage.memory(), stage.bare_memory());
    stage.join(1)?;
    stage.connect()?;
    found.push(tell(1, 0, &stage.measure(count, extent.rounds)?));
    let joined = stage.join(peers)?;
    let mut sizes = Vec::new();
    for vms in [0, fleets[0], fleets[1]] {
        let started = stage.restart(vms)?;
        let idle = stage.memory();
        stage.connect()?;
        let connected = stage.memory();
        let figures = stage.measure(count, extent.rounds)?;
        found.push(tell(peers, vms, &figures));
        let (loaded, looks) = (stage.memory(), stage.looks()?);
        sizes.push(Size { vms, idle, connected, loaded, started, looks });
        if vms == fleets[1] {
            for of in &figures {
                let (clock, cpu) = of.ratios();
                report(&format!("{}, by the clock", of.kind.name()), clock, Aim::AtLeast(LEAST));
                report(&format!("{}, by processor time", of.kind.name()), cpu, Aim::AtLeast(LEAST));
            }
        }
    }
    println!(
        "the signatures of a request alone, two verified and one made: {:.0} µs",
        load::signatures().as_secs_f64() * 1e6
    );
    println!();
    println!("{peers} peers have joined with tickets in {:.1} s", joined.as_secs_f64());
    let bare = stage.bare_memory().0.saturating_sub(empty.1.0);
    println!(
        "a node without peers has {:.1} MiB; the bare server takes {:.1} KiB for a connection",
        mib(empty.0),
        bare as f64 / 1024.0 / peers as f64
    );
    Ok(json!({ "rates": found, "memory": tell_sizes(peers, empty.0, &sizes) }))
}

impl Figures {
    /// What the node answers of what the bare server does: by the clock, and by processor time.
    fn ratios(&self) -> (f64, f64) {
        (self.node.by_clock / self.bare.by_clock, self.bare.micros / self.node.micros)
    }
}

fn tell(peers: usize, vms: usize, all: &[Figures]) -> Value {
    let one = |of: &Figures| {
        let (clock, cpu) = of.ratios();
        let (name, node, bare) = (of.kind.name(), of.node, of.bare);
        println!(
            "{peers:>6}{vms:>8}  {name:<16}{:>9.0}{:>9.0}{clock:>8.2}{:>8.0} µs{:>6.0} µs{cpu:>8.2}",
            node.by_clock, bare.by_clock, node.micros, bare.micros
        );
        json!({
            "peers": peers, "vms": vms, "request": name,
            "node": { "per_second": node.by_clock, "cpu_micros": node.micros },
            "bare": { "per_second": bare.by_clock, "cpu_micros": bare.micros },
        })
    };
    all.iter().map(one).collect()
}

/// What the node takes with so many VMs.
struct Size {
    vms: usize,
    idle: Bytes,
    connected: Bytes,
    loaded: Bytes,
    started: stage::Started,
    looks: [Duration; 3],
}

fn mib(bytes: Bytes) -> f64 {
    bytes.0 as f64 / f64::from(1 << 20)
}

fn tell_sizes(peers: usize, empty: Bytes, sizes: &[Size]) -> Value {
    let kib = |more: Bytes, less: Bytes, count: usize| {
        (more.0 as f64 - less.0 as f64) / 1024.0 / count as f64
    };
    println!(
        "Memory of the node with {peers} peers; with the first VMs come its own connections to all \
         of them:"
    );
    println!(
        "{:>8}{:>10}{:>12}{:>12}{:>14}{:>10}{:>10}{:>10}{:>10}{:>11}",
        "VMs",
        "idle",
        "connected",
        "after load",
        "each more VM",
        "serves",
        "is idle",
        "vm show",
        "vm list",
        "peer list"
    );
    let mut all = Vec::new();
    for (at, size) in sizes.iter().enumerate() {
        let less = at.checked_sub(1).map(|at| &sizes[at]);
        let each = less.map(|less| kib(size.idle, less.idle, size.vms - less.vms));
        let shown = each.map_or_else(|| "–".to_owned(), |each| format!("{each:.1} KiB"));
        let one = match size.vms {
            0 => "–".to_owned(),
            _ => format!("{:.1} ms", ms(size.looks[0])),
        };
        println!(
            "{:>8}{:>6.1} MiB{:>8.1} MiB{:>8.1} MiB{shown:>14}{:>8.1} s{:>8.1} s{one:>10}\
             {:>7.1} ms{:>8.1} ms",
            size.vms,
            mib(size.idle),
            mib(size.connected),
            mib(size.loaded),
            size.started.serving.as_secs_f64(),
            size.started.idle.as_secs_f64(),
            ms(size.looks[1]),
            ms(size.looks[2])
        );
        all.push(json!({
            "vms": size.vms, "idle": size.idle.0, "connected": size.connected.0,
            "loaded": size.loaded.0, "kib_each_more": each,
            "serves_s": size.started.serving.as_secs_f64(),
            "is_idle_s": size.started.idle.as_secs_f64(),
            "vm_show_ms": ms(size.looks[0]), "vm_list_ms": ms(size.looks[1]),
            "peer_list_ms": ms(size.looks[2]),
        }));
    }
    println!(
        "for each peer that is known {:.1} KiB, that is connected {:.1} KiB more",
        kib(sizes[0].idle, empty, peers),
        kib(sizes[0].connected, sizes[0].idle, peers)
    );
    all.into()
}
