//! Mutation testing of the rules: whether the tests would see it if a line of them were otherwise.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::prepare;
use crate::shell::{cargo, read, root};

/// Where cargo-mutants keeps what it found, seen from the workspace's folder.
const FOLDER: &str = "target/mutants";
/// Those that do not compile, of all runs.
const UNVIABLE: &str = "unviable.txt";
/// So many of a hundred mutants must be caught.
const CAUGHT: usize = 95;

/// What judges a mutant: tests that drive the real machines of `protocol`; none needs a node.
struct Round {
    /// Their packages.
    packages: &'static [&'static str],
    /// Which tests.
    tests: &'static [&'static str],
    /// Runs of the simulator.
    seeds: &'static str,
    /// How well the compiler optimises: a mutant costs its build, and then its tests.
    opt_level: &'static str,
    /// A mutant on which the tests take longer is as good as caught: it spins.
    timeout_seconds: &'static str,
}

/// Scenarios and transcripts: they take a second or two, and most mutants fall to them.
const QUICK: Round = Round {
    packages: &["federation-tests"],
    tests: &["--test=scenarios", "--test=transcripts"],
    seeds: "0",
    opt_level: "0",
    timeout_seconds: "120",
};
/// Of what is left most falls to tables of what is replied to whatever is said, and to few seeds.
const MIDDLE: Round = Round {
    packages: &["federation-tests"],
    tests: &["--test=old_journals", "--test=replies", "--test=simulator"],
    seeds: "500",
    opt_level: "1",
    timeout_seconds: "240",
};
/// What is left is judged by crashes at every row, and by as many seeds as each run of the tests has.
const THOROUGH: Round = Round {
    packages: &["federation-tests", "protocol"],
    tests: &["--lib", "--test=faults", "--test=simulator"],
    seeds: "10000",
    opt_level: "1",
    timeout_seconds: "600",
};

/// Which part, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this part of all mutants: K/N, with K from 0.
    #[arg(long)]
    shard: Option<String>,
    /// How many mutants are tried at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Try those again that were caught before, too.
    #[arg(long)]
    afresh: bool,
    /// Leave out the tests that take minutes for each mutant that the quick ones miss.
    #[arg(long)]
    quick: bool,
}

/// `cargo xtask mutants`: tries every mutant of `protocol` that was not caught yet.
pub(crate) fn run(args: &Args) -> Result<()> {
    prepare::cargo_mutants()?;
    fs::create_dir_all(root().join(FOLDER))?;
    judge(args, &QUICK, !args.afresh)?;
    judge(args, &MIDDLE, true)?;
    if !args.quick {
        judge(args, &THOROUGH, true)?;
    }
    tell(args.shard.is_some())
}

/// Lets these tests judge all mutants, or those alone that were not caught before.
fn judge(args: &Args, round: &Round, iterate: bool) -> Result<()> {
    let mut command = cargo();
    command.args(["mutants", "--package", "protocol", "--colors", "never"]);
    // A first run without a mutant would look for the tests in `protocol`, where none are; that they
    // pass is what `cargo xtask test` says.
    command.args(["--baseline", "skip", "--timeout", round.timeout_seconds]);
    command.arg("--output").arg(root().join(FOLDER)).args(["--jobs", &args.jobs.to_string()]);
    for package in round.packages {
        command.args(["--test-package", package]);
    }
    for test in ["--no-default-features"].iter().chain(round.tests) {
        command.arg(format!("--cargo-arg={test}"));
    }
    // The first failure says it all; where it was, nobody reads. The test programs take the flag on
    // a stable compiler only if they are told so.
    command.args(["--cargo-test-arg=--", "--cargo-test-arg=-Zunstable-options"]);
    command.arg("--cargo-test-arg=--fail-fast");
    command.env("RUSTC_BOOTSTRAP", "1");
    command.env("RUST_BACKTRACE", "0");
    command.env("SOJOURN_SEEDS", round.seeds);
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", round.opt_level);
    command.env("CARGO_PROFILE_DEV_DEBUG", "0");
    if iterate {
        command.arg("--iterate");
    }
    if let Some(shard) = &args.shard {
        command.args(["--shard", shard]);
    }
    // Missed mutants are no failure of its own; what they amount to is told at the end.
    let status = command.status().context("cannot run cargo mutants")?;
    ensure!(matches!(status.code(), Some(0 | 2 | 3)), "cargo mutants ended with {status}");
    // The next round counts them among those that were caught.
    let folder = root().join(FOLDER);
    let read = |path| lines(&fs::read_to_string(folder.join(path)).unwrap_or_default());
    let unviable = &read(UNVIABLE) | &read("mutants.out/unviable.txt");
    let unviable: Vec<&str> = unviable.iter().map(String::as_str).collect();
    fs::write(folder.join(UNVIABLE), unviable.join("\n"))?;
    Ok(())
}

/// What all runs so far have found.
fn tell(is_part: bool) -> Result<()> {
    let folder = root().join(FOLDER);
    let all = lines(&read(cargo().args(["mutants", "--list", "--package", "protocol"]))?);
    let found = |kinds: &[&str]| -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for kind in kinds {
            let path = folder.join("mutants.out").join(format!("{kind}.txt"));
            found.extend(lines(&fs::read_to_string(path).unwrap_or_default()));
        }
        Ok(found.intersection(&all).cloned().collect())
    };
    let unviable = lines(&fs::read_to_string(folder.join(UNVIABLE)).unwrap_or_default());
    let unviable: BTreeSet<String> = unviable.intersection(&all).cloned().collect();
    let missed = found(&["missed"])?;
    let caught = found(&["caught", "timeout", "previously_caught"])?;
    let caught = &(&caught - &unviable) - &missed;
    let tried = caught.len() + missed.len();
    println!(
        "{} mutants; {} do not compile; of {tried} tried {} are caught, {} missed:",
        all.len(),
        unviable.len(),
        caught.len(),
        missed.len()
    );
    for mutant in &missed {
        println!("  {mutant}");
    }
    ensure!(tried > 0, "no mutant was tried");
    let left = all.len() - tried - unviable.len();
    ensure!(is_part || left == 0, "{left} mutants were not tried yet; run it again, it goes on");
    let share = 100 * caught.len() / tried;
    if share < CAUGHT {
        bail!("{share} % are caught; {CAUGHT} % must be");
    }
    println!("{share} % are caught");
    Ok(())
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
