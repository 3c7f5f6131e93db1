//! What many faults came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::{Ended, Fault};

/// Counts faults by kind.
#[derive(Debug, Default)]
pub struct Report {
    kinds: BTreeMap<&'static str, Row>,
}

#[derive(Debug, Default)]
struct Row {
    faults: usize,
    /// Of the runs, which may have several faults.
    failed: usize,
    recoveries: Vec<Duration>,
}

impl Report {
    /// Adds how a run ended.
    pub fn add(&mut self, fault: &Fault, ended: &Ended) {
        let row = self.kinds.entry(fault.kind).or_default();
        row.faults += fault.count();
        row.failed += usize::from(ended.failure.is_some());
        row.recoveries.extend(&ended.recoveries);
    }

    /// How many runs failed.
    pub fn failed(&self) -> usize {
        self.kinds.values().map(|row| row.failed).sum()
    }

    /// The longest recovery.
    pub fn longest(&self) -> Duration {
        let all = self.kinds.values().flat_map(|row| &row.recoveries);
        all.max().copied().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            to,
            "{:<44}{:>7}{:>8}{:>10}{:>10}",
            "fault", "faults", "failed", "median", "longest"
        )?;
        let mut all = Row::default();
        for (kind, row) in &self.kinds {
            row.write(kind, to)?;
            all.faults += row.faults;
            all.failed += row.failed;
            all.recoveries.extend(&row.recoveries);
        }
        all.write("all", to)
    }
}

impl Row {
    fn write(&self, kind: &str, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.recoveries.clone();
        times.sort_unstable();
        let seconds = |time: Option<&Duration>| {
            time.map_or("-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
        };
        let (median, longest) = (seconds(times.get(times.len() / 2)), seconds(times.last()));
        writeln!(to, "{kind:<44}{:>7}{:>8}{median:>10}{longest:>10}", self.faults, self.failed)
    }
}
