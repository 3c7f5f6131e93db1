//! Measures the transfer of files between two proxies against what else moves files, side by side
//! in one run, between two network namespaces:
//!
//! - `clean`: a file of random bytes over a pair of veth devices, as fast as the machine;
//! - `image`: a disk image with holes, and the same again when a little of it has changed;
//! - `loss`: 100 Mbit/s with round trips and losses, against the time that the line needs;
//! - `fair`: a transfer over QUIC beside one TCP connection;
//! - `many`: memory of open sessions, and the rate of several transfers at once;
//! - `chunks`: what an update of a disk image costs by several ways to cut it into chunks.
//!
//! `bench-transfer [--quick] [--rounds N] [--only PART] [--folder FOLDER] [--json FILE]`

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

mod bare;
mod chunks;
mod end;
mod fair;
mod image;
mod loss;
mod many;
mod moves;
mod place;
mod program;
mod tally;
mod ways;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use federation_tests::bench::{Failure, heading};

use crate::tally::Bench;

/// How it is called.
const USAGE: &str = "bench-transfer [--quick] [--rounds N] [--folder FOLDER] [--json FILE] \
                     [--only clean|image|loss|fair|many|chunks]";
/// What can be measured, in this order.
const PARTS: [&str; 6] = ["clean", "image", "loss", "fair", "many", "chunks"];
/// Rounds of which medians are taken, unless `--rounds` says otherwise.
const ROUNDS: usize = 3;
/// More are of no use.
const MAX_ROUNDS: usize = 99;
/// Where files are moved from and to, unless `--folder` says otherwise: memory.
const FOLDER: &str = "/dev/shm";
/// Room that is needed there: the largest image, changed once, and both without holes.
const ROOM: u64 = 6 << 30;
const QUICK_ROOM: u64 = 2 << 30;

/// How much is measured.
struct Extent {
    /// Everything is small, once: about two minutes in all.
    is_quick: bool,
    rounds: usize,
    /// The one part that is wanted; all if empty.
    only: String,
    folder: PathBuf,
    /// Where measurements go, one line of JSON for each.
    json: Option<PathBuf>,
}

impl Extent {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let (mut is_quick, mut rounds, mut only) = (false, None, String::new());
        let (mut folder, mut json) = (PathBuf::from(FOLDER), None);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => is_quick = true,
                "--rounds" => rounds = Some(value()?.parse()?),
                "--only" => only = value()?,
                "--folder" => folder = value()?.into(),
                "--json" => json = Some(value()?.into()),
                _ => return Err(format!("{word} is not known").into()),
            }
        }
        if !(only.is_empty() || PARTS.contains(&only.as_str())) {
            return Err(format!("there is no part {only}").into());
        }
        let rounds = rounds.unwrap_or(if is_quick { 1 } else { ROUNDS });
        if !(1..=MAX_ROUNDS).contains(&rounds) {
            return Err(format!("{rounds} rounds are not between 1 and {MAX_ROUNDS}").into());
        }
        Ok(Self { is_quick, rounds, only, folder, json })
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only == part
    }

    /// One of two sizes.
    fn size<T>(&self, whole: T, quick: T) -> T {
        if self.is_quick { quick } else { whole }
    }
}

/// A folder of this run, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &Path, room: u64) -> Result<Self, Failure> {
        let there = rustix::fs::statvfs(parent)?;
        let free = there.f_bavail * there.f_frsize;
        if free < room {
            let (parent, room) = (parent.display(), room >> 20);
            let free = free >> 20;
            return Err(format!(
                "{parent} has {free} MiB free and {room} MiB are needed; choose another --folder"
            )
            .into());
        }
        let path = parent.join(format!("sojourn-bench-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn main() -> ExitCode {
    let role = std::env::args().nth(1).unwrap_or_default();
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("first of its kind");
    let done = match role.as_str() {
        end::ROLE => runtime().and_then(|runtime| runtime.block_on(end::serve())),
        bare::ROLE => bare::serve(),
        _ => measure(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) if [end::ROLE, bare::ROLE].contains(&role.as_str()) => {
            println!("failed {why}");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("error: {why}\nusage: {USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Runtime::new()?)
}

fn measure() -> Result<(), Failure> {
    let extent = Extent::read(std::env::args().skip(1))?;
    let folder = Folder::new(&extent.folder, extent.size(ROOM, QUICK_ROOM))?;
    remove_when_interrupted(folder.0.clone())?;
    println!("{}", heading());
    println!("{}", peers());
    let mut bench = Bench::new(extent, folder)?;
    for part in PARTS.into_iter().filter(|part| bench.extent.wants(part)).collect::<Vec<_>>() {
        match part {
            "clean" => moves::clean(&mut bench)?,
            "image" => moves::image(&mut bench)?,
            "loss" => loss::run(&mut bench)?,
            "fair" => fair::run(&mut bench)?,
            "many" => many::run(&mut bench)?,
            _ => chunks::run(&mut bench)?,
        }
    }
    println!("at the end: {}", heading());
    Ok(())
}

/// Whoever interrupts gets the memory back that the folder takes. Programs end with this one.
fn remove_when_interrupted(folder: PathBuf) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(mut terminated) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
        });
        let _ = std::fs::remove_dir_all(&folder);
        // 128 and SIGINT, as shells have it.
        std::process::exit(130);
    });
    Ok(())
}

/// The versions of what is measured against.
fn peers() -> String {
    let said = |program: &str, flag: &str| {
        let output = Command::new(program).arg(flag).output();
        // ssh says it where errors go.
        let words = output.map(|output| [output.stdout, output.stderr].concat());
        let words = words.unwrap_or_default();
        let line = String::from_utf8_lossy(&words).lines().next().unwrap_or_default().to_owned();
        line.split(", ").next().unwrap_or_default().split("  protocol").next().map(str::to_owned)
    };
    let programs = [("ssh", "-V"), ("rsync", "--version"), ("nbdkit", "--version")];
    let programs = programs.into_iter().chain([("nbdcopy", "--version")]);
    programs.filter_map(|(program, flag)| said(program, flag)).collect::<Vec<_>>().join(", ")
}
