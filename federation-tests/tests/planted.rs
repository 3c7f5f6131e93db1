//! Planted bugs: the simulator must find each of them, or what it does not find proves nothing.
//!
//! Every patch of `planted/` puts one bug into the rules. It is applied to a copy of the
//! workspace, the simulator is built with it, and must break a rule within a thousand federations:
//! the first ones, or those "from seed N on", as the patch says.
//! `SOJOURN_PLANTED=NAME` tries one bug alone.

#![allow(clippy::print_stdout, reason = "what was found, and how soon, is the measurement")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Federations in which a bug must be found.
const SEEDS: u64 = 1_000;
/// How many bugs there are, so that none is lost unseen.
const PLANTED: usize = 46;
/// Lines of a failed build that are shown.
const SHOWN: usize = 20;

/// A bug that is put in for a while.
struct Bug {
    name: String,
    patch: PathBuf,
    /// The first seed.
    from: u64,
}

/// A copy of the workspace. It is kept for the next run, as what was built from it is.
struct Copy {
    root: PathBuf,
    built: PathBuf,
    /// One run uses it at a time.
    _lock: File,
}

#[test]
fn every_planted_bug_is_found_within_a_thousand_federations() {
    let bugs = planted();
    assert_eq!(bugs.len(), PLANTED, "planted bugs");
    let only = std::env::var("SOJOURN_PLANTED").ok();
    let chosen: Vec<&Bug> =
        bugs.iter().filter(|bug| only.as_ref().is_none_or(|only| *only == bug.name)).collect();
    assert!(!chosen.is_empty(), "no planted bug is called {}", only.unwrap_or_default());

    let copy = Copy::new();
    copy.build().unwrap_or_else(|why| panic!("the rules as they are: {why}"));
    let windows: BTreeSet<u64> = chosen.iter().map(|bug| bug.from).collect();
    for from in windows {
        let sound = copy.simulate(from);
        let text = String::from_utf8_lossy(&sound.stdout);
        assert!(sound.status.success(), "without any bug a rule is broken:\n{text}");
    }

    let (mut missed, mut latest) = (String::new(), 0);
    for bug in &chosen {
        match copy.find(bug) {
            Ok((seed, rule)) => {
                println!("{}: seed {seed}: {rule}", bug.name);
                latest = latest.max(seed);
            }
            Err(why) => {
                println!("{}: NOT FOUND: {why}", bug.name);
                writeln!(missed, "{}: {why}", bug.name).expect("memory");
            }
        }
    }
    assert!(missed.is_empty(), "planted bugs that were not found:\n{missed}");
    println!("{} planted bugs, all found, the latest by seed {latest}", chosen.len());
}

/// The bugs, by name.
fn planted() -> Vec<Bug> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("planted");
    let mut bugs = vec![];
    for entry in fs::read_dir(folder).expect("the folder of planted bugs") {
        let patch = entry.expect("readable").path();
        let name = patch.file_stem().expect("a file").to_str().expect("a plain name").to_owned();
        assert_eq!(patch.extension().and_then(|e| e.to_str()), Some("patch"), "{patch:?}");
        let text = fs::read_to_string(&patch).expect("readable");
        let what = text.split("diff --git").next().unwrap_or_default().trim();
        assert!(what.ends_with('.'), "{name} does not begin with a sentence that says the bug");
        let touched = text.lines().filter_map(|line| line.strip_prefix("+++ b/"));
        for file in touched {
            assert!(file.starts_with("protocol/src/"), "{name} is not in the rules: {file}");
        }
        let from = what.split_once("from seed ").map_or(0, |(_, seed)| {
            let digits = seed.split(' ').next().unwrap_or_default();
            digits.parse().unwrap_or_else(|_| panic!("{name}: from which seed?"))
        });
        bugs.push(Bug { name, patch, from });
    }
    bugs.sort_by(|one, other| one.name.cmp(&other.name));
    bugs
}

impl Copy {
    /// Copies the workspace as it is now.
    fn new() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member");
        let target = std::env::current_exe().expect("a test knows itself");
        let target = target.ancestors().nth(3).expect("target/PROFILE/deps/NAME");
        let folder = target.join("planted");
        fs::create_dir_all(&folder).expect("a folder");
        let lock = File::create(folder.join("lock")).expect("a file");
        lock.lock().expect("the run before has ended");
        let root = folder.join("workspace");
        if root.exists() {
            fs::remove_dir_all(&root).expect("the copy of the run before");
        }
        fs::create_dir_all(&root).expect("a folder");
        for entry in fs::read_dir(workspace).expect("readable") {
            let entry = entry.expect("readable");
            let name = entry.file_name().into_string().expect("a plain name");
            let path = entry.path();
            if path.join("Cargo.toml").is_file() {
                copy(&path, &root.join(&name));
            } else if name.starts_with("Cargo.") {
                fs::copy(&path, root.join(&name)).expect("space");
            }
        }
        Self { root, built: folder.join("target"), _lock: lock }
    }

    /// Puts a bug in, looks for it, and takes it out: the seed that found it, and the rule.
    fn find(&self, bug: &Bug) -> Result<(u64, String), String> {
        self.apply(bug, &[])?;
        let found = self.build().and_then(|()| self.look(bug.from));
        self.apply(bug, &["--reverse"]).expect("it was applied");
        found
    }

    fn apply(&self, bug: &Bug, more: &[&str]) -> Result<(), String> {
        let mut git = Command::new("git");
        git.current_dir(&self.root).arg("apply").args(more).arg(&bug.patch);
        // The copy lies within the repository, whose own files are to be left alone.
        git.env("GIT_CEILING_DIRECTORIES", self.root.parent().expect("it lies in a folder"));
        let output = git.output().expect("git is there");
        let why = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("does not apply: {why}")) }
    }

    fn build(&self) -> Result<(), String> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(&self.root).args(["build", "--quiet", "--offline", "--release"]);
        cargo.args(["-p", "federation-tests", "--no-default-features", "--bin", "simulate"]);
        cargo.env("CARGO_TARGET_DIR", &self.built).env("CARGO_INCREMENTAL", "1");
        // A build takes longer than a thousand federations: it is not worth a better one.
        cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
        let output = cargo.output().expect("cargo runs this test");
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().take(SHOWN).collect();
        Err(format!("does not build:\n{}", lines.join("\n")))
    }

    fn simulate(&self, from: u64) -> Output {
        let mut simulate = Command::new(self.built.join("release/simulate"));
        let seeds = format!("{from}..{}", from + SEEDS);
        simulate.args(["--no-shrink", "--seeds", &seeds]);
        simulate.output().expect("it was just built")
    }

    fn look(&self, from: u64) -> Result<(u64, String), String> {
        let output = self.simulate(from);
        let text = String::from_utf8_lossy(&output.stdout);
        match (output.status.code(), text.split_once("BROKEN by seed ")) {
            (Some(1), Some((_, found))) => {
                let (seed, rule) = found.split_once(": ").expect("the seed, then the rule");
                let rule = rule.lines().take(2).map(str::trim).collect::<Vec<_>>().join(" ");
                Ok((seed.parse().expect("a seed"), rule))
            }
            (Some(0), None) => Err(format!("{SEEDS} federations broke no rule")),
            (code, _) => Err(format!("the simulator ended with {code:?}:\n{text}")),
        }
    }
}

/// Copies a crate, without what was built from it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if !path.is_dir() {
            fs::copy(&path, &to).expect("space");
        } else if entry.file_name() != "target" {
            copy(&path, &to);
        }
    }
}
