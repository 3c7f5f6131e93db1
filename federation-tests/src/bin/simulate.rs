//! Runs federations from seeds on every core: `simulate --seeds A..B [--trace] [--no-shrink]`.
//!
//! Prints seeds per second and what was met. Ends with 1 at the first seed that breaks a rule,
//! after it has shown that it breaks it again the same way, and the shortest run that still does;
//! with `--no-shrink` it only says which seed and which rule.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use federation_tests::simulator::{Met, Plan, Run, rule, run, shrink};
use protocol::Row;

/// How often it is told how far it is.
const TELL: Duration = Duration::from_secs(10);
/// Lines of a failing run that are shown.
const SHOWN: usize = 150;
/// Lines of the reason that are shown.
const WHY: usize = 6;
/// How it is called.
const USAGE: &str = "simulate --seeds A..B [--trace] [--no-shrink]";

/// What it was asked for.
struct Wanted {
    seeds: Range<u64>,
    /// Everything that happens is shown.
    trace: bool,
    /// A failing run is cut down.
    shrink: bool,
}

fn main() -> ExitCode {
    let Wanted { seeds, trace, shrink } = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("error: {why}\nusage: {USAGE}");
            return ExitCode::from(2);
        }
    };
    // A broken rule is a panic within its run, and told below.
    std::panic::set_hook(Box::new(|_| {}));
    if trace {
        for seed in seeds {
            let run = run(&Plan::of(seed), true);
            println!("seed {seed}\n{}\n{}", Plan::of(seed), run.trace.join("\n"));
        }
        return ExitCode::SUCCESS;
    }
    let began = Instant::now();
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let met = Mutex::new(Met::new());
    let told = Mutex::new(Instant::now());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let mut mine = Met::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.load(Ordering::Relaxed) < seed {
                        break;
                    }
                    let run = run(&Plan::of(seed), false);
                    add(&mut mine, &run.met);
                    if run.broken.is_some() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                    let mut told = told.lock().expect("no panic here");
                    if told.elapsed() > TELL {
                        *told = Instant::now();
                        let done = seed - seeds.start;
                        let rate = done as f64 / began.elapsed().as_secs_f64();
                        println!("{done} seeds, {rate:.0} a second");
                    }
                }
                add(&mut met.lock().expect("no panic here"), &mine);
            });
        }
    });
    let failed = failed.into_inner();
    if failed < u64::MAX {
        show(failed, shrink);
        return ExitCode::FAILURE;
    }
    let count = seeds.end - seeds.start;
    let took = began.elapsed().as_secs_f64();
    tell(&met.into_inner().expect("no panic here"));
    println!("{count} seeds in {took:.1} s: {:.0} a second on {jobs} cores", count as f64 / took);
    ExitCode::SUCCESS
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Wanted, String> {
    let (mut seeds, mut trace, mut shrink) = (None, false, true);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--seeds" => {
                let text = given.next().ok_or("--seeds wants a range, such as 0..10000")?;
                let (start, end) = text.split_once("..").unwrap_or((&text, ""));
                let number = |text: &str| {
                    text.parse::<u64>().map_err(|e| format!("{text:?} is not a seed: {e}"))
                };
                let start = number(start)?;
                let end = if end.is_empty() { start + 1 } else { number(end)? };
                if end <= start {
                    return Err(format!("there is no seed in {text}"));
                }
                seeds = Some(start..end);
            }
            "--trace" => trace = true,
            "--no-shrink" => shrink = false,
            other => return Err(format!("{other:?} is not known")),
        }
    }
    Ok(Wanted { seeds: seeds.ok_or("--seeds is missing")?, trace, shrink })
}

fn add(all: &mut Met, more: &Met) {
    for (what, count) in more {
        *all.entry(*what).or_default() += count;
    }
}

/// What was met, a line for each kind.
fn tell(met: &Met) {
    let mut kinds: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
    for ((what, which), count) in met {
        kinds.entry(what).or_default().push((which, *count));
    }
    for (what, counts) in &kinds {
        let list: Vec<String> =
            counts.iter().map(|(which, count)| format!("{which} {count}")).collect();
        println!("{what}: {}", list.join(", "));
    }
    let missing: Vec<&str> =
        Row::KINDS.iter().copied().filter(|kind| !met.contains_key(&("row", *kind))).collect();
    if !missing.is_empty() {
        println!("rows never written: {}", missing.join(", "));
    }
}

/// A failing seed: that it fails the same way again, and the shortest run that fails.
fn show(seed: u64, cut_down: bool) {
    let plan = Plan::of(seed);
    if !cut_down {
        return tell_broken(seed, &run(&plan, false));
    }
    let (one, two) = (run(&plan, true), run(&plan, true));
    let same = one.trace == two.trace && one.broken == two.broken;
    println!(
        "seed {seed} breaks a rule; run again: {}",
        if same { "the same" } else { "NOT THE SAME" }
    );
    let broken = one.broken.as_deref().map(rule);
    let short = shrink(&plan, |plan| run(plan, false).broken.as_deref().map(rule) == broken);
    let run = run(&short, true);
    let from = run.trace.len().saturating_sub(SHOWN);
    println!("the shortest run found that breaks one: {short}{}", run.trace[from..].join("\n"));
    tell_broken(seed, &run);
}

fn tell_broken(seed: u64, run: &Run) {
    let why: Vec<&str> = run.broken.iter().flat_map(|why| why.lines()).take(WHY).collect();
    println!("BROKEN by seed {seed}: {}", why.join("\n"));
}
