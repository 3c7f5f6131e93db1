//! Guests as found on the disk: a simulated one is a file, a real one is a process.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// A guest that exists at a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The site.
    pub site: String,
    /// Its runtime folder, `hosts/HOST/run/VM-EPOCH`.
    pub folder: PathBuf,
    /// Whether it executes; a real one may, as long as its process exists.
    pub runs: bool,
    /// What its memory holds: made at each boot. Empty for a real one.
    pub boot: String,
}

impl Guest {
    /// The host that has it.
    pub fn host(&self) -> &str {
        let host = self.folder.ancestors().nth(2).and_then(|folder| folder.file_name());
        host.and_then(|name| name.to_str()).expect("a host's folder bears its name")
    }

    /// Everything that it has printed.
    pub fn console(&self) -> String {
        fs::read_to_string(self.folder.join("console.log")).unwrap_or_default()
    }

    /// The process of a real guest.
    pub fn process(&self) -> Option<Pid> {
        process(&self.folder)
    }
}

/// What the test's real guest prints once a second.
///
/// It counts on its disk, and keeps in its memory where the count began and when it booted; so
/// `counter = since + uptime` holds for ever, unless a disk and a memory of different moments were
/// put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// On its disk.
    pub counter: u64,
    /// In its memory: lines since it booted.
    pub uptime: u64,
    /// In its memory: random, made at boot.
    pub boot: String,
    /// In its memory: the counter that it found at boot.
    pub since: u64,
}

impl Line {
    /// The line, if it is one of these.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim().strip_prefix("sojourn-guest counter=")?;
        let mut words = text.split(' ');
        let counter = words.next()?.parse().ok()?;
        let mut value = |name: &str| Some(words.next()?.strip_prefix(name)?.to_owned());
        let uptime = value("uptime=")?.parse().ok()?;
        let boot = value("boot=")?;
        let since = value("since=")?.parse().ok()?;
        Some(Self { counter, uptime, boot, since })
    }

    /// Whether the disk and the memory are of one moment.
    pub fn is_whole(&self) -> bool {
        self.counter == self.since + self.uptime
    }
}

/// Every guest of a VM in a site's folder.
pub(super) fn guests(site: &str, folder: &Path, vm: &str) -> Vec<Guest> {
    let of_vm = |folder: &PathBuf| {
        let name = folder.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(&format!("{vm}-")))
    };
    let look = |folder: PathBuf| {
        let found = simulated(&folder);
        let (runs, boot) = found.or_else(|| process(&folder).map(|_| (true, String::new())))?;
        Some(Guest { site: site.to_owned(), folder, runs, boot })
    };
    runtime_folders(folder).into_iter().filter(of_vm).filter_map(look).collect()
}

/// Ends the process of every real guest of a site.
pub(super) fn end_all(folder: &Path) {
    for process in runtime_folders(folder).iter().filter_map(|folder| process(folder)) {
        let _ = kill_process(process, Signal::KILL);
    }
}

fn simulated(folder: &Path) -> Option<(bool, String)> {
    let text = fs::read_to_string(folder.join("guest.json")).ok()?;
    let record: serde_json::Value = serde_json::from_str(&text).ok()?;
    let boot = record["memory"]["boot"].as_str()?.to_owned();
    Some((!record["active_since_ms"].is_null(), boot))
}

/// The process that works in a guest's runtime folder, if that is the one in its pid file.
fn process(folder: &Path) -> Option<Pid> {
    let number: i32 = fs::read_to_string(folder.join("pid")).ok()?.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{number}/cwd")).ok()?;
    (works_in == folder).then(|| Pid::from_raw(number))?
}

pub(super) fn runtime_folders(site: &Path) -> Vec<PathBuf> {
    entries(&site.join("hosts")).iter().flat_map(|host| entries(&host.join("run"))).collect()
}

/// What is in a folder that may not exist.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}
