//! Rounds of runs, turn and turn about, and what came of them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use federation_tests::bench::{Failure, median};
use serde_json::{Value, json};

use crate::place::Place;
use crate::ways::{self, Job, Peers, Taken, Way};
use crate::{Extent, Folder};

/// What TCP is controlled by where nothing else is said: what Linux does.
pub(crate) const CUBIC: &str = "cubic";
/// What bears loss.
pub(crate) const BBR: &str = "bbr";

/// What all parts share.
pub(crate) struct Bench {
    pub(crate) extent: Extent,
    peers: Peers,
    json: Option<File>,
    // Goes last: the others have files in it.
    folder: Folder,
}

/// A way to move a file, and what controls TCP meanwhile. Ours over TLS asks for BBR by itself.
pub(crate) type Entry = (Way, &'static str);

/// Runs of several ways, in the order in which they were asked for.
pub(crate) struct Tally {
    /// Bytes of the file, holes included.
    size: u64,
    limit: Duration,
    runs: Vec<(Entry, Vec<Taken>)>,
}

impl Bench {
    pub(crate) fn new(extent: Extent, folder: Folder) -> Result<Self, Failure> {
        let json = extent.json.as_ref().map(File::create).transpose()?;
        let peers = Peers::new(&folder.0)?;
        Ok(Self { extent, peers, json, folder })
    }

    /// Where files may lie.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// The path of a file to be moved: in a folder of its own, which an rsync daemon shows.
    pub(crate) fn file(&self, name: &str) -> Result<PathBuf, Failure> {
        let folder = self.folder().join("source");
        std::fs::create_dir_all(&folder)?;
        Ok(folder.join(name))
    }

    /// Removes what was moved.
    pub(crate) fn clear(&self) -> Result<(), Failure> {
        Ok(std::fs::remove_dir_all(self.folder().join("source"))?)
    }

    /// Writes a measurement down, if it is wanted.
    pub(crate) fn note(&mut self, value: &Value) -> Result<(), Failure> {
        match &mut self.json {
            Some(file) => Ok(writeln!(file, "{value}")?),
            None => Ok(()),
        }
    }

    /// Moves a file in several ways, one after the other, for so many rounds: ours in each, others
    /// in `others` of them. What was given up is not tried again: that would take most of the time.
    pub(crate) fn compare(
        &mut self,
        cell: &str,
        place: &Place,
        job: &Job,
        entries: &[Entry],
        others: usize,
    ) -> Result<Tally, Failure> {
        let size = job.file.metadata()?.len();
        let runs = entries.iter().map(|entry| (*entry, Vec::new())).collect();
        let mut tally = Tally { size, limit: job.limit, runs };
        for round in 0..self.extent.rounds {
            for ((way, control), runs) in &mut tally.runs {
                let is_given_up = runs.iter().any(|taken| !taken.is_over());
                if is_given_up || (!way.is_ours() && round >= others) {
                    continue;
                }
                place.set_congestion(control)?;
                let taken = ways::run(*way, place, job, &self.peers, &self.folder.0)?;
                self.note(&json!({
                    "cell": cell, "way": way.name(), "congestion": control, "round": round,
                    "bytes": size, "wire": taken.wire, "missed": taken.missed,
                    "seconds": taken.is_over().then_some(taken.seconds),
                    "cpu_source": taken.source, "cpu_target": taken.target,
                }))?;
                runs.push(taken);
            }
        }
        Ok(tally)
    }
}

impl Taken {
    fn is_over(&self) -> bool {
        self.seconds.is_finite()
    }
}

impl Tally {
    fn of(&self, entry: Entry, what: impl Fn(&Taken) -> f64) -> f64 {
        let runs = self.runs.iter().find(|(of, _)| *of == entry).map(|(_, runs)| runs);
        median(runs.expect("only what was measured is asked for").iter().map(what).collect())
    }

    /// The median of the seconds that it took; infinite if that was above the limit.
    pub(crate) fn seconds(&self, entry: Entry) -> f64 {
        self.of(entry, |taken| taken.seconds)
    }

    /// The median of the bytes on the wire.
    pub(crate) fn wire(&self, entry: Entry) -> f64 {
        self.of(entry, |taken| taken.wire as f64)
    }

    /// Packets that the emulator was too slow for, in all runs.
    pub(crate) fn missed(&self) -> u64 {
        self.runs.iter().flat_map(|(_, runs)| runs).map(|taken| taken.missed).sum()
    }

    /// Says it as a table: medians, with what is the ideal for the first column if there is one.
    pub(crate) fn show(&self, ideal: Option<f64>) {
        let header = ["seconds", "(all)", "MB/s", "wire MB", "CPU source", "CPU target"];
        let [seconds, all, rate, wire, source, target] = header;
        println!(
            "    {:<20} {seconds:>8} {rate:>7} {wire:>9} {source:>10} {target:>10}  {all}",
            "way"
        );
        if let Some(ideal) = ideal {
            let rate = self.size as f64 / ideal / 1e6;
            println!("    {:<20} {ideal:>8.3} {rate:>7.1}", "the line's time");
        }
        for (entry, runs) in &self.runs {
            let name = name(*entry);
            let every = runs.iter().map(|taken| format!("{:.2}", taken.seconds));
            let every = every.collect::<Vec<_>>().join(" ");
            let wire = self.wire(*entry) / 1e6;
            let seconds = self.seconds(*entry);
            if seconds.is_infinite() {
                let limit = self.limit.as_secs_f64();
                println!("    {name:<20} {:>8} {:>7} {wire:>9.1}", format!("> {limit:.0}"), "");
                continue;
            }
            let rate = self.size as f64 / seconds / 1e6;
            let source = self.of(*entry, |taken| taken.source);
            let target = self.of(*entry, |taken| taken.target);
            println!(
                "    {name:<20} {seconds:>8.3} {rate:>7.0} {wire:>9.1} {source:>10.2} \
                 {target:>10.2}  {every}"
            );
        }
        if self.missed() > 0 {
            println!("    the emulator was too slow for {} packets", self.missed());
        }
    }
}

/// How an entry is called.
pub(crate) fn name((way, control): Entry) -> String {
    if way.is_ours() || control == CUBIC {
        way.name().to_owned()
    } else {
        format!("{}, {control}", way.name())
    }
}
