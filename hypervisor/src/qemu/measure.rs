//! What a guest's process has used: its disks and its balloon as QEMU tells, the time of its
//! processors and its memory as the kernel does.
//!
//! All of it is a look. QEMU answers from its main loop, whether the guest runs or not, without
//! stopping a processor. Memory comes from `/proc/<pid>/status`, which takes the same time for every
//! guest, and not from `smaps_rollup`, for which the kernel walks all page tables of the guest with
//! its memory map locked. A control group's count would have the page cache in it too, and guests
//! have no groups of their own.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use model::Bytes;
use serde::Deserialize;

use super::network;
use super::qmp::{Qmp, QmpError};
use crate::measured::{DiskCounters, IoCounters, Measured};
use crate::{Error, files};

/// Ticks in a second in which `/proc/<pid>/stat` counts (`USER_HZ`), on all machines that run QEMU.
const TICKS_PER_SECOND: u64 = 100;

/// What QEMU tells of a guest.
#[derive(Debug)]
pub(crate) struct Told {
    /// The threads that are the guest's processors. One may be several processors (TCG without
    /// threads), and is named for each.
    threads: BTreeSet<u32>,
    balloon: Option<Bytes>,
    disks: DiskCounters,
}

/// Of `query-cpus-fast`.
#[derive(Debug, Deserialize)]
struct Cpu {
    #[serde(rename = "thread-id")]
    thread: u32,
}

/// Of `query-balloon`.
#[derive(Debug, Deserialize)]
struct Balloon {
    actual: Bytes,
}

/// Of `query-blockstats`: a disk that a device of the guest is the user of.
#[derive(Debug, Deserialize)]
struct Disk {
    stats: DiskStats,
}

#[derive(Debug, Deserialize)]
struct DiskStats {
    rd_bytes: Bytes,
    rd_operations: u64,
    rd_total_time_ns: u64,
    wr_bytes: Bytes,
    wr_operations: u64,
    wr_total_time_ns: u64,
}

impl Told {
    /// Asks QEMU, in three short commands.
    pub(crate) async fn ask(qmp: &mut Qmp) -> Result<Self, QmpError> {
        let cpus: Vec<Cpu> = qmp.ask("query-cpus-fast").await?;
        let balloon = match qmp.ask::<Balloon>("query-balloon").await {
            Ok(balloon) => Some(balloon.actual),
            // Its words for a machine without a balloon.
            Err(QmpError::Refused { class, .. }) if class == "DeviceNotActive" => None,
            Err(error) => return Err(error),
        };
        let disks: Vec<Disk> = qmp.ask("query-blockstats").await?;
        let threads = cpus.iter().map(|cpu| cpu.thread).collect();
        Ok(Self { threads, balloon, disks: sum(&disks) })
    }

    /// With what the kernel says of the process whose folder in `/proc` this is.
    pub(crate) fn measured(self, process: &Path) -> Result<Measured, Error> {
        let mut cpu_time = Duration::ZERO;
        for thread in &self.threads {
            cpu_time += time_of(&process.join("task").join(thread.to_string()))?;
        }
        let memory_resident = files::read(&process.join("status"), resident)?;
        Ok(Measured {
            process: files::read(&process.join("stat"), started)?,
            cpu_time,
            memory_resident,
            memory_balloon: self.balloon,
            disks: self.disks,
            network: network::counted(process)?,
        })
    }
}

fn sum(disks: &[Disk]) -> DiskCounters {
    disks.iter().fold(DiskCounters::default(), |all, Disk { stats }| DiskCounters {
        read: all.read.plus(IoCounters {
            bytes: stats.rd_bytes,
            operations: stats.rd_operations,
            time: Duration::from_nanos(stats.rd_total_time_ns),
        }),
        written: all.written.plus(IoCounters {
            bytes: stats.wr_bytes,
            operations: stats.wr_operations,
            time: Duration::from_nanos(stats.wr_total_time_ns),
        }),
    })
}

/// The time that a thread has run, from the scheduler's own count where the kernel shows it.
fn time_of(thread: &Path) -> Result<Duration, Error> {
    match files::read(&thread.join("schedstat"), scheduled) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            files::read(&thread.join("stat"), ticked)
        }
        other => other,
    }
}

/// The first number of a `schedstat`, in nanoseconds (the kernel's `scheduler/sched-stats.rst`).
fn scheduled(text: &str) -> Option<Duration> {
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

/// When a process was started, in ticks since the machine was: `starttime`, field 22 of a `stat`.
fn started(text: &str) -> Option<u64> {
    let (_, fields) = text.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

/// `utime` and `stime` of a `stat`, fields 14 and 15 in proc(5). Field 2, the name, may have
/// anything in it, also spaces and brackets; field 3 comes after its last bracket.
fn ticked(text: &str) -> Option<Duration> {
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11).map(str::parse::<u64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    let ticks = user.checked_add(system)?;
    Some(Duration::from_millis(ticks.checked_mul(1000 / TICKS_PER_SECOND)?))
}

/// What a process keeps in memory besides pages of files, from its `status` (proc(5)).
fn resident(text: &str) -> Option<Bytes> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_suffix(" kB")?.trim().parse().ok()
    };
    let kib = field("RssAnon:")?.checked_add(field("RssShmem:")?)?;
    kib.checked_mul(1024).map(Bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_proc_says_is_read_and_nothing_else() {
        assert_eq!(
            scheduled("4216719155 230688718 4219\n"),
            Some(Duration::from_nanos(4216719155))
        );
        let stat = "17 (CPU 0/T) R (x) S 1 2 3 4 5 6 7 8 9 10 250 3 0 0 20 0 1 0";
        assert_eq!(ticked(stat), Some(Duration::from_millis(2530)));
        let long = format!("{stat} 12345 0");
        assert_eq!((started(&long), started(stat)), (Some(12345), None));
        let status = "Name:\tqemu\nVmRSS:\t  9 kB\nRssAnon:\t   18096 kB\nRssFile:\t   22224 kB\n\
            RssShmem:\t       4 kB\n";
        assert_eq!(resident(status), Some(Bytes(18_100 * 1024)));
        for bad in
            ["", "x", "-1 0 0", "q (qemu) S 1 2 3", "RssAnon:\t5 kB\n", "RssAnon:\nRssShmem:"]
        {
            assert_eq!((scheduled(bad), ticked(bad), resident(bad)), (None, None, None), "{bad:?}");
        }
    }

    #[test]
    fn a_kernel_without_a_schedulers_count_is_asked_for_ticks() {
        let thread = tempfile::tempdir().unwrap();
        let error = time_of(thread.path()).unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound));
        fs::write(thread.path().join("stat"), "1 (q) S 0 0 0 0 0 0 0 0 0 0 7 8 0").unwrap();
        assert_eq!(time_of(thread.path()).unwrap(), Duration::from_millis(150));
        fs::write(thread.path().join("schedstat"), "5 6 7").unwrap();
        assert_eq!(time_of(thread.path()).unwrap(), Duration::from_nanos(5));
        // This very thread, from the real thing.
        let own = Path::new("/proc/thread-self");
        let before = time_of(own).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while time_of(own).unwrap() == before {
            assert!(std::time::Instant::now() < deadline, "its own time stands still");
        }
    }

    #[test]
    fn all_disks_are_added_up() {
        let disk = r#"{"device": "", "stats": {"rd_bytes": 512, "rd_operations": 1,
            "rd_total_time_ns": 7, "wr_bytes": 18446744073709551615, "wr_operations": 3,
            "wr_total_time_ns": 2000, "flush_operations": 9}, "node-name": "disk0-raw"}"#;
        let disks: Vec<Disk> = serde_json::from_str(&format!("[{disk},{disk}]")).unwrap();
        let sum = sum(&disks);
        assert_eq!((sum.read.bytes, sum.read.operations), (Bytes(1024), 2));
        assert_eq!((sum.read.time, sum.written.time.as_nanos()), (Duration::from_nanos(14), 4000));
        assert_eq!((sum.written.bytes, sum.written.operations), (Bytes(u64::MAX), 6));
    }
}
