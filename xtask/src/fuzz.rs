//! Fuzzing: the targets of `fuzz/`, run by cargo-fuzz's libFuzzer, and what comes of it.
//!
//! ```text
//!   fuzz/corpus/TARGET     kept, small: replayed by the ordinary tests   ◀─┐ minimised
//!   fuzz/findings/TARGET   kept: what broke a promise, replayed too      ◀─┼─ moved
//!   target/fuzz/seeds      real inputs, made anew for every run            │
//!   target/fuzz/work       all that was found so far on this machine    ───┘
//! ```
//!
//! The code under test forbids `unsafe`, so that no sanitizer is needed: a broken promise is a
//! panic, and libFuzzer itself sees what hangs or takes too much memory. That is also why a stable
//! toolchain is enough.

mod corpus;
mod run;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::prepare;
use crate::shell::{cargo, read, root, run as run_program};
use run::Figures;

/// Where everything is that is not kept, seen from the workspace's folder.
const FOLDER: &str = "target/fuzz";

/// What to run, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these targets, of `fuzz/fuzz_targets`; all without.
    targets: Vec<String>,
    /// How long each target runs at most; 0 only minimises what earlier runs brought, and tells
    /// their figures.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// A target ends earlier when so long no new edge of the code was reached.
    #[arg(long, default_value_t = 10)]
    quiet_minutes: u64,
    /// How many targets run at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// `cargo xtask fuzz`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let targets = targets(&options.targets)?;
    prepare::machine()?;
    prepare::cargo_fuzz()?;
    let programs = build()?;
    let seeds = root().join(FOLDER).join("seeds");
    let _ = std::fs::remove_dir_all(&seeds);
    run_program(
        cargo()
            .args(["run", "--quiet", "-p", "federation-tests", "--bin", "fuzz-seeds"])
            .arg(&seeds),
    )?;
    let scratch = Scratch::new()?;
    let minutes = |minutes| Duration::from_secs(60 * minutes);
    let waiting = Mutex::new(VecDeque::from(targets.clone()));
    let failed = Mutex::new(vec![]);
    let next = || waiting.lock().expect("no holder of this lock panics").pop_front();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let work = || {
                        if options.minutes > 0 {
                            let bounds = run::Bounds {
                                whole: minutes(options.minutes),
                                quiet: minutes(options.quiet_minutes),
                            };
                            let figures = run::run(&target, &programs, &scratch.0, &bounds)?;
                            figures.keep(&target)?;
                            println!("{target}: {figures}");
                        }
                        corpus::minimise(&target, &programs, &scratch.0)
                    };
                    if let Err(error) = work() {
                        let mut failed = failed.lock().expect("no holder of this lock panics");
                        failed.push(format!("{target}: {error:#}"));
                    }
                }
            });
        }
    });
    let found = table(&targets)?;
    let failed = failed.into_inner().expect("no holder of this lock panics");
    match (failed.is_empty(), found) {
        (true, 0) => Ok(()),
        (true, found) => bail!("{found} findings; each is in fuzz/findings, and fails the tests"),
        (false, _) => bail!("not all targets ran:\n  {}", failed.join("\n  ")),
    }
}

/// The wanted targets, or all.
fn targets(wanted: &[String]) -> Result<Vec<String>> {
    let mut known = vec![];
    for entry in std::fs::read_dir(root().join("fuzz/fuzz_targets"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        known.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    known.sort();
    if let Some(unknown) = wanted.iter().find(|wanted| !known.contains(wanted)) {
        bail!("there is no target {unknown}; there are: {}", known.join(", "));
    }
    Ok(if wanted.is_empty() { known } else { wanted.to_vec() })
}

/// Builds all targets; gives the folder that they are in.
fn build() -> Result<PathBuf> {
    let folder = root().join(FOLDER);
    // The same versions of everything as in the workspace, and libFuzzer's binding beside them.
    std::fs::copy(root().join("Cargo.lock"), root().join("fuzz/Cargo.lock"))?;
    run_program(
        cargo()
            .args(["fuzz", "build", "--sanitizer", "none", "--target-dir"])
            .arg(&folder)
            .current_dir(root().join("fuzz")),
    )?;
    let about = read(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    let Some(host) = host else { bail!("rustc does not tell its host") };
    Ok(folder.join(host).join("release"))
}

/// Prints the figures of the last run of each target; gives how many findings there were.
fn table(targets: &[String]) -> Result<usize> {
    println!("\n| target | inputs tried | per second | edges | corpus | time | ended | findings |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut found = 0;
    for target in targets {
        let kept = corpus::size(target)?;
        let Some(figures) = Figures::kept(target)? else {
            println!("| `{target}` | not run | | | {kept} | | | |");
            continue;
        };
        found += figures.findings;
        println!(
            "| `{target}` | {} | {} | {} | {kept} | {} min | {} | {} |",
            thousands(figures.tried),
            thousands(figures.per_second()),
            thousands(figures.edges),
            figures.time.as_secs().div_ceil(60),
            figures.ended,
            figures.findings,
        );
    }
    Ok(found)
}

/// A number with its thousands apart.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A folder in memory for what the targets write, if the machine has one; gone at the end, also
/// with what a target left that was stopped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = parent.join(format!("sojourn-fuzz-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
