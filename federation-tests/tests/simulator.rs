//! Federations from seeds: no rule is broken, and a run is a pure function of its seed.

#![allow(clippy::print_stdout, reason = "a failing run is found by what it prints")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use federation_tests::simulator::{Met, Plan, rule, run, shrink};
use protocol::Row;

/// Runs in each run of the tests; `SOJOURN_SEEDS` takes another count. `cargo xtask simulate` makes
/// any number.
const SEEDS: u64 = 10_000;
/// Runs that are made twice, from each of these on: from there federations have relays and sites
/// that nobody can dial, and from there peerings that end.
const TWICE: u64 = 20;
const KINDS_OF_SEEDS: [u64; 3] = [0, 1_000, 2_000];

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
    if seeds < SEEDS {
        return;
    }
    assert!(missing.is_empty(), "rows that no run wrote: {missing:?}");
    let missing: Vec<_> = FAULTS.iter().filter(|fault| !met.contains_key(fault)).collect();
    assert!(missing.is_empty(), "what befell no run: {missing:?}");
    let shown: Vec<&str> =
        met.keys().filter_map(|(what, which)| (*what == "shown").then_some(*which)).collect();
    let odd: Vec<_> = shown.iter().filter(|said| !MOVES.contains(said)).collect();
    assert!(odd.is_empty(), "`vm show` says what nobody documents: {odd:?}");
    let unseen: Vec<_> = MOVES.iter().filter(|said| !shown.contains(said)).collect();
    // It takes a site that is on the VM's path, and has nothing else to do with it.
    assert!(unseen.is_empty() || unseen == [&"Destination, LAPSED"], "never shown: {unseen:?}");
    let architecture = include_str!("../../ARCHITECTURE.md");
    let untold: Vec<_> = MOVES.iter().filter(|said| !is_told(architecture, said)).collect();
    assert!(untold.is_empty(), "ARCHITECTURE.md does not tell what an operator can do: {untold:?}");
}

/// Whether a table has it, where those of Controllers do not say whose phases they are.
fn is_told(text: &str, said: &str) -> bool {
    let short = said.strip_prefix("Controller, ").unwrap_or(said);
    text.contains(short)
}

/// All that sites may say of who has the next move.
const MOVES: [&str; 22] = [
    "held: the journal is old",
    "Source, OFFERED",
    "Source, INITIATED",
    "Source, QUIESCED",
    "Source, SENT",
    "Source, RELEASED",
    "Source, RECEIPTED",
    "Destination, ADMITTED",
    "Destination, RECEIVING",
    "Destination, READY",
    "Destination, LAPSED",
    "Controller, collecting offers",
    "Controller, asking the Source to make ready",
    "Controller, moving the files",
    "Controller, verifying at the Source",
    "Controller, handing over",
    "Controller, giving it back to the Source",
    "Controller, closing the old path",
    "Controller, giving the attempt up",
    "Controller, waiting for the delegator",
    "the guest is being started",
    "the hypervisor refused; see `vm events`",
];

/// What befalls federations.
const FAULTS: [(&str, &str); 21] = [
    ("message", "lost"),
    ("message", "repeated"),
    ("message", "late"),
    ("crash", "before a row"),
    ("crash", "in the middle of a row"),
    ("crash", "after a row, not synced"),
    ("crash", "after a row"),
    ("fault", "crash"),
    ("fault", "power failure"),
    ("fault", "cut one way"),
    ("fault", "cut both ways"),
    ("fault", "slow link"),
    ("fault", "slow disk"),
    ("fault", "clock jump"),
    ("fault", "full disk (journal)"),
    ("fault", "full disk (files)"),
    ("fault", "damaged files"),
    ("fault", "broken host"),
    ("fault", "peer gone for good"),
    ("fault", "journal from an old copy"),
    ("fault", "peering ended"),
];

#[test]
fn a_run_is_the_same_to_the_last_byte_whenever_it_is_made() {
    for seed in KINDS_OF_SEEDS.into_iter().flat_map(|first| first..first + TWICE) {
        let plan = Plan::of(seed);
        let (one, two) = (run(&plan, true), run(&plan, true));
        assert!(one.trace.len() > 10, "seed {seed} does nothing");
        assert_eq!(one.trace.join("\n"), two.trace.join("\n"), "seed {seed}");
        assert_eq!(one.met, run(&plan, false).met, "looking changes seed {seed}");
    }
}

/// A run "fails" here when a migration is given up in it, so that there is something to cut down.
#[test]
fn a_failing_run_is_cut_down_to_the_same_few_deeds_each_time_and_still_fails() {
    let fails = |plan: &Plan| run(plan, false).met.contains_key(&("row", "aborted"));
    let mut cut_down = 0;
    for plan in (0..20).map(Plan::of).filter(fails) {
        let short = shrink(&plan, fails);
        assert!(fails(&short), "seed {}", plan.seed);
        assert_eq!(short, shrink(&plan, fails), "seed {}", plan.seed);
        let (before, after) = (plan.deeds(), short.deeds());
        assert!(after <= 8 && after < before, "seed {}: {before} deeds, then {after}", plan.seed);
        cut_down += 1;
    }
    assert!(cut_down > 5, "{cut_down} runs failed");
}

#[test]
fn a_rule_is_the_same_whatever_vm_and_time_it_was_broken_by() {
    let one = "vm-0c1b executes at [\"a\", \"b\"] at once\n   1 a -> b";
    let two = "vm-77aa executes at [\"a\", \"b\"] at once\n   9 c -> d";
    assert_eq!(rule(one), rule(two));
    assert_ne!(rule(one), rule("the newest content of vm-0c1b is nowhere any more"));
}
