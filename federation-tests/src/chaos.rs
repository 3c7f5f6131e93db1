//! Real kills and cuts of real processes, over and over: nodes, transfer proxies and QEMU guests.
//!
//! A [`Fault`] is what befalls a federation in one run. Most are a [`Blow`] at a [`Moment`] in the
//! life of a VM whose real guest counts on its own disk (`trip`): the guest's console, read at
//! every site, is the witness that its counter never goes back and never forks (`witness`).
//! The rows that this life does not have are met in the simulated lives of [`crate::lives`].
//!
//! A moment is exact: the node whose row it is kills itself there, or holds itself there until the
//! blow has fallen on another process (`SOJOURN_KILL` in `node/src/driver.rs`).

mod plan;
mod report;
mod trip;
mod witness;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lives::{self, Run};
use crate::process::{Cut, Federation, interrupted};

pub use plan::{all, chosen};
pub use report::Report;

/// How long a VM may be down after a fault has ended: the promise.
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// How long killed processes may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What befalls a federation in one run.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Names it for `--only`.
    pub name: String,
    /// What the report counts it under.
    pub kind: &'static str,
    /// The fault.
    pub what: What,
}

/// Which federation, and what befalls it.
#[derive(Debug, Clone)]
pub enum What {
    /// A blow in the life of a real guest.
    Real(Moment, Blow),
    /// Kills in the life of a simulated one.
    Simulated(Run),
}

/// When a blow falls: where a site writes a row of a kind for the first time.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The site.
    pub site: &'static str,
    /// `before:KIND`, `after:KIND` or `replied:KIND`.
    pub at: String,
}

/// What is done to a process or to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// The node of the moment is killed.
    KillNode,
    /// It is held for so long.
    HoldNode(Duration),
    /// A site's proxy is killed.
    KillProxy(&'static str),
    /// It is held for so long.
    HoldProxy(&'static str, Duration),
    /// A site's QEMU is killed.
    KillGuest(&'static str),
    /// It is held for so long.
    HoldGuest(&'static str, Duration),
    /// A site is cut off for so long.
    Cut(Cut, Duration),
}

impl Fault {
    /// How many faults it is: a simulated life has one for each site.
    pub fn count(&self) -> usize {
        match &self.what {
            What::Real(..) => 1,
            What::Simulated(run) => run.kills.len(),
        }
    }

    /// How long it lasts.
    pub(crate) fn lasts(&self) -> Duration {
        match self.what {
            What::Real(
                _,
                Blow::HoldNode(time)
                | Blow::HoldProxy(_, time)
                | Blow::HoldGuest(_, time)
                | Blow::Cut(_, time),
            ) => time,
            _ => Duration::ZERO,
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// How long after each of its faults the VM was as it should be.
    pub recoveries: Vec<Duration>,
    /// What went wrong, if something did.
    pub failure: Option<Failure>,
    /// How long the whole run took.
    pub took: Duration,
}

/// What went wrong in a run.
#[derive(Debug)]
pub struct Failure {
    /// The words of whoever found it.
    pub why: String,
    /// The federation's folder, kept to be looked into.
    pub kept: Option<PathBuf>,
}

/// Makes a federation, lets the fault befall it, and looks at what becomes of it.
pub fn run(fault: &Fault) -> Ended {
    let began = Instant::now();
    let lived = match &fault.what {
        What::Real(moment, blow) => trip::live(moment, *blow).map(|took| vec![took]),
        What::Simulated(run) => simulated(run),
    };
    let took = began.elapsed();
    match lived {
        Ok(recoveries) => {
            let late = recoveries.iter().find(|took| **took > RECOVERY_LIMIT);
            let why = late.map(|late| format!("it took {late:.1?} to recover"));
            let failure = why.map(|why| Failure { why, kept: None });
            Ended { recoveries, failure, took }
        }
        Err(failure) => Ended { recoveries: Vec::new(), failure: Some(failure), took },
    }
}

fn simulated(run: &Run) -> Result<Vec<Duration>, Failure> {
    let lived = watched(run.federation(), |federation| lives::live(run, federation))?;
    Ok(lived.into_iter().map(|(_, took)| took).collect())
}

/// Lets something happen in a federation, and takes it down. If it panics, its folder is kept.
fn watched<T>(
    mut federation: Federation,
    live: impl FnOnce(&mut Federation) -> T,
) -> Result<T, Failure> {
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(&mut federation)));
    let kept = (lived.is_err() && !interrupted()).then(|| federation.keep());
    let folder = federation.folder().to_owned();
    drop(federation);
    let lived = lived.map_err(|panic| Failure { why: words(&*panic), kept: kept.clone() })?;
    let left = left_running(&folder);
    if left.is_empty() && !folder.exists() {
        return Ok(lived);
    }
    Err(Failure { why: format!("left behind: {}, {left:#?}", folder.display()), kept })
}

/// The processes that still have to do with a folder when there was time to end.
fn left_running(folder: &Path) -> Vec<String> {
    let until = Instant::now() + END_LIMIT;
    loop {
        let left = processes_of(folder);
        if left.is_empty() || Instant::now() > until {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn processes_of(folder: &Path) -> Vec<String> {
    let mark = folder.display().to_string();
    let entries = std::fs::read_dir("/proc").expect("there is /proc");
    let of_folder = |process: PathBuf| {
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let works_in = std::fs::read_link(process.join("cwd")).unwrap_or_default();
        let is_of = command.contains(&mark) || works_in.display().to_string().contains(&mark);
        is_of.then(|| format!("{} {command}", process.display()))
    };
    entries.flatten().filter_map(|entry| of_folder(entry.path())).collect()
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
