//! Federations from seeds: no rule is broken, and a run is a pure function of its seed.

#![allow(clippy::print_stdout, reason = "a failing run is found by what it prints")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use federation_tests::simulator::{Met, Plan, run};
use protocol::Row;

/// Runs in each run of the tests; `SOJOURN_SEEDS` takes another count. `cargo xtask simulate` makes
/// any number.
const SEEDS: u64 = 10_000;
/// Runs that are made twice.
const TWICE: u64 = 40;

#[test]
fn every_rule_holds_in_ten_thousand_federations_and_every_vm_is_found() {
    let seeds = std::env::var("SOJOURN_SEEDS").ok();
    let seeds = seeds.map_or(SEEDS, |count| count.parse().expect("SOJOURN_SEEDS is a number"));
    let next = AtomicU64::new(0);
    let (met, broken) = (Mutex::new(Met::new()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || !broken.lock().expect("no panic here").is_empty() {
                        return;
                    }
                    let run = run(&Plan::of(seed), false);
                    for (what, count) in run.met {
                        *met.lock().expect("no panic here").entry(what).or_default() += count;
                    }
                    if let Some(why) = run.broken {
                        broken.lock().expect("no panic here").push((seed, why));
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().expect("no panic here");
    if let Some((seed, why)) = broken.iter().min() {
        panic!("{why}\nsee it: cargo xtask simulate --seeds {seed}..{}", seed + 1);
    }
    let met = met.into_inner().expect("no panic here");
    println!("{met:?}");
    let missing: Vec<&str> =
        Row::KINDS.into_iter().filter(|kind| !met.contains_key(&("row", *kind))).collect();
    // Fewer seeds than that cannot be expected to meet each.
    assert!(missing.is_empty() || seeds < SEEDS, "rows that no run wrote: {missing:?}");
}

#[test]
fn a_run_is_the_same_to_the_last_byte_whenever_it_is_made() {
    for seed in 0..TWICE {
        let plan = Plan::of(seed);
        let (one, two) = (run(&plan, true), run(&plan, true));
        assert!(one.trace.len() > 10, "seed {seed} does nothing");
        assert_eq!(one.trace.join("\n"), two.trace.join("\n"), "seed {seed}");
        assert_eq!(one.met, run(&plan, false).met, "looking changes seed {seed}");
    }
}
