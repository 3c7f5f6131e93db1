//! Measures monitoring against what it cannot do without, side by side in one run:
//!
//! - `rows`: durable rows a second through the KPI file system, against SQLite and plain files;
//! - `latency`: from a file's close to its value at the primary two hops away, against a sync and
//!   three echoes over as many hops; and from inside a real guest;
//! - `relay`: bytes on the wire, processor time and memory of an Intermediary for the values of
//!   1, 100 and 10,000 VMs, and how many it takes at most on one core.
//!
//! `bench-monitoring [--quick] [--hours N] [--only rows|latency|relay]`

#![expect(clippy::print_stdout, reason = "a report is what it is for")]

mod fleet;
mod latency;
mod mount;
mod relay;
mod rows;
mod sink;

use std::process::ExitCode;
use std::time::Duration;

use federation_tests::bench::{Failure, echo, heading};

/// How it is called.
const USAGE: &str = "bench-monitoring [--quick] [--hours N] [--only rows|latency|relay]";
/// How long the Intermediary's memory is looked at, unless `--hours` says otherwise.
const WATCHED: Duration = Duration::from_secs(600);

/// How much is measured.
struct Extent {
    /// Everything is short, and no real guest is booted: about two minutes in all.
    is_quick: bool,
    /// How long the Intermediary's memory is looked at.
    watched: Duration,
    /// The one part that is wanted; all if empty.
    only: String,
}

impl Extent {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut all = Self { is_quick: false, watched: WATCHED, only: String::new() };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--quick" => all.is_quick = true,
                "--hours" => {
                    let hours: f64 = value()?.parse()?;
                    all.watched = Duration::try_from_secs_f64(hours * 3600.0)?;
                }
                "--only" => all.only = value()?,
                _ => return Err(format!("{word} is not known").into()),
            }
        }
        Ok(all)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only == part
    }
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}\nusage: {USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Failure> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("first of its kind");
    if let Some(role) = echo::role()? {
        return tokio::runtime::Runtime::new()?.block_on(echo::serve(role));
    }
    let extent = Extent::read(std::env::args().skip(1))?;
    println!("{}", heading());
    if extent.wants("rows") {
        rows::run(&extent)?;
    }
    if extent.wants("latency") {
        latency::run(&extent)?;
    }
    if extent.wants("relay") {
        relay::run(&extent)?;
    }
    println!("at the end: {}", heading());
    Ok(())
}
