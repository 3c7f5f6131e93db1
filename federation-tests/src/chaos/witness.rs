//! What a real guest said, at every site at which it said something.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::process::{Federation, Line};

/// Everything that was seen on consoles.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// In the order in which they began.
    consoles: Vec<Console>,
}

/// The console of one process: a later one at the same place begins a new file.
#[derive(Debug)]
struct Console {
    file: PathBuf,
    text: String,
    lines: Vec<(Line, Instant)>,
}

impl Witness {
    /// Reads every console of a VM.
    pub(super) fn look(&mut self, federation: &Federation, vm: &str) {
        for (file, text) in federation.consoles(vm) {
            let now = Instant::now();
            // A line counts once it is ended: what is cut off may be a part of a number.
            let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
            let last = self.consoles.iter_mut().rev().find(|console| console.file == file);
            match last {
                Some(known) if whole.starts_with(&known.text) => {
                    let new = whole[known.text.len()..].lines().filter_map(Line::read);
                    known.lines.extend(new.map(|line| (line, now)));
                    whole.clone_into(&mut known.text);
                }
                _ if whole.is_empty() => {}
                _ => {
                    let lines = whole.lines().filter_map(Line::read);
                    let lines = lines.map(|line| (line, now)).collect();
                    self.consoles.push(Console { file, text: whole.to_owned(), lines });
                }
            }
        }
    }

    /// The highest counter that was seen, 0 before the first.
    pub(super) fn counter(&self) -> u64 {
        self.lines().map(|(line, _)| line.counter).max().unwrap_or_default()
    }

    /// The highest counter on the newest console in this folder.
    pub(super) fn counter_in(&self, folder: &std::path::Path) -> Option<u64> {
        let mut newest = self.consoles.iter().rev();
        let newest = newest.find(|console| console.file.starts_with(folder))?;
        newest.lines.iter().map(|(line, _)| line.counter).max()
    }

    /// How long after `since` a line was seen for the first time.
    pub(super) fn next_after(&self, since: Instant) -> Option<Duration> {
        let after = self.lines().filter_map(|(_, at)| at.checked_duration_since(since));
        after.min()
    }

    /// What is wrong with what was seen, given the counter on the guest's disk at the end and how
    /// often it may have booted.
    pub(super) fn contradiction(&self, on_disk: u64, boots: usize) -> Option<String> {
        let mut before: Option<&Line> = None;
        let mut booted = 0;
        for (line, _) in self.lines() {
            if !line.is_whole() {
                return Some(format!("disk and memory are of different moments: {line:?}"));
            }
            let same = before.is_some_and(|before| before.boot == line.boot);
            let last = before.map_or(0, |before| before.counter);
            if line.counter <= last {
                return Some(format!("its counter went back or forked: {line:?} after {before:?}"));
            }
            // A guest that was killed had perhaps written a number and not printed it.
            if !same && !(last..=last + 1).contains(&line.since) {
                return Some(format!("it booted from another disk: {line:?} after {before:?}"));
            }
            if same && before.is_some_and(|before| before.since != line.since) {
                return Some(format!("its memory forked: {line:?} after {before:?}"));
            }
            booted += usize::from(!same);
            before = Some(line);
        }
        let last = before.map_or(0, |line| line.counter);
        if !(last..=last + 1).contains(&on_disk) {
            return Some(format!("its disk ended at {on_disk}, its console at {before:?}"));
        }
        (booted > boots).then(|| format!("it booted {booted} times: its memory was lost"))
    }

    fn lines(&self) -> impl Iterator<Item = &(Line, Instant)> {
        self.consoles.iter().flat_map(|console| &console.lines)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

    use super::*;

    /// Consoles whose lines are (counter, boot, since).
    fn witness(consoles: &[&[(u64, &str, u64)]]) -> Witness {
        let line = |(counter, boot, since): &(u64, &str, u64)| {
            let boot = (*boot).to_owned();
            let line = Line { counter: *counter, uptime: counter - since, boot, since: *since };
            (line, Instant::now())
        };
        let console = |lines: &&[(u64, &str, u64)]| Console {
            file: PathBuf::new(),
            text: String::new(),
            lines: lines.iter().map(line).collect(),
        };
        Witness { consoles: consoles.iter().map(console).collect() }
    }

    #[test]
    fn a_guest_that_moved_with_its_memory_and_one_that_booted_again_are_believed() {
        let moved = witness(&[&[(1, "x", 0), (2, "x", 0)], &[(3, "x", 0)]]);
        assert_eq!(moved.contradiction(3, 1), None);
        let killed = witness(&[&[(1, "x", 0), (2, "x", 0)], &[(4, "y", 3)]]);
        assert_eq!(killed.contradiction(4, 2), None);
        assert!(killed.contradiction(4, 1).unwrap().contains("booted 2 times"));
    }

    #[test]
    fn a_fork_an_old_disk_an_old_memory_and_a_lost_end_are_found() {
        let fork = witness(&[&[(1, "x", 0), (2, "x", 0)], &[(2, "x", 0)]]);
        assert!(fork.contradiction(2, 1).unwrap().contains("forked"));
        let old_disk = witness(&[&[(5, "x", 4), (6, "x", 4)], &[(7, "y", 4)]]);
        assert!(old_disk.contradiction(7, 2).is_some());
        let old_memory = witness(&[&[(1, "x", 0), (2, "x", 0)], &[(4, "x", 1)]]);
        assert!(old_memory.contradiction(4, 1).unwrap().contains("memory forked"));
        let lost = witness(&[&[(1, "x", 0), (2, "x", 0)]]);
        assert!(lost.contradiction(1, 1).unwrap().contains("disk ended at 1"));
    }
}
