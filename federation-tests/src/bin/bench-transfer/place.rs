//! Where files are moved: between two namespaces, over a line that is emulated or as fast as the
//! machine.

use std::fs;
use std::process::Command;
use std::time::Duration;

use federation_tests::bench::Failure;
use rustix::process::{Signal, kill_process};
use testbed::emulator::{DEVICE, MTU};
use testbed::{Direction, Emulator, Ends, Loss, Settings, Side};

/// The side that has the files.
pub(crate) const SOURCE: Side = Side::A;
/// The side that gets them.
pub(crate) const TARGET: Side = Side::B;

/// Where both sides are.
const NETWORK: &str = "10.77.0.0/24";

/// Two namespaces and the line between them.
pub(crate) struct Place(Line);

enum Line {
    Clean(Ends),
    Emulated(Emulator),
}

/// What an emulated line is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell {
    /// Bits per second.
    pub(crate) rate: u64,
    pub(crate) round_trip: Duration,
    /// The share of packets that are lost, each way.
    pub(crate) loss: f64,
    /// Bytes; none for what [`Direction::new`] takes.
    pub(crate) queue: Option<u64>,
}

impl Place {
    /// Nothing in between.
    pub(crate) fn clean() -> Result<Self, Failure> {
        Ok(Self(Line::Clean(Ends::veth(MTU)?)))
    }

    /// A line.
    pub(crate) fn emulated(cell: Cell) -> Result<Self, Failure> {
        let mut direction = Direction::new(cell.rate, cell.round_trip / 2);
        if cell.loss > 0.0 {
            direction.loss = Loss::Independent(cell.loss);
        }
        direction.queue = cell.queue.unwrap_or(direction.queue);
        Ok(Self(Line::Emulated(Emulator::new(Settings::both(direction))?)))
    }

    pub(crate) fn ends(&self) -> &Ends {
        match &self.0 {
            Line::Clean(ends) => ends,
            Line::Emulated(emulator) => emulator.ends(),
        }
    }

    /// A command that runs a program on a side, and kills it when this program ends.
    pub(crate) fn command(&self, side: Side, program: &str) -> Command {
        let mut command = self.ends().command(side, "setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        command
    }

    /// Bytes that both sides have given to their devices so far: IP packets on an emulated line,
    /// lost ones too; on a clean one what the kernels hand over, up to 64 KiB under one header.
    pub(crate) fn wire_bytes(&self) -> Result<u64, Failure> {
        let sides = [SOURCE, TARGET].map(|side| sent(self.ends().side(side).number()));
        sides.into_iter().sum()
    }

    /// Packets that the emulator was too slow for so far.
    pub(crate) fn missed(&self) -> u64 {
        match &self.0 {
            Line::Clean(_) => 0,
            Line::Emulated(emulator) => {
                let counters = emulator.counters();
                counters.forward.missed + counters.back.missed
            }
        }
    }

    /// What TCP connections that say nothing else are controlled by from now on.
    ///
    /// The route says it: the system's setting takes, in a namespace, only what is allowed to
    /// everybody on this machine.
    pub(crate) fn set_congestion(&self, name: &str) -> Result<(), Failure> {
        for side in [SOURCE, TARGET] {
            let own = side.address().to_string();
            let route = ["ip", "route", "replace", NETWORK, "dev", DEVICE, "proto", "kernel"];
            let rest = ["scope", "link", "src", &own, "congctl", name];
            self.ends().side(side).run(&[&route[..], &rest[..]].concat())?;
        }
        Ok(())
    }

    /// Ends what runs on the sides, however it came there: programs that are given up have started
    /// others.
    pub(crate) fn clear(&self) {
        for side in [SOURCE, TARGET] {
            for process in self.ends().side(side).processes() {
                // One that has ended by now is no loss.
                let _ = kill_process(process, Signal::KILL);
            }
        }
    }

    /// Whether somebody listens at a TCP port of a side.
    pub(crate) fn is_listened_at(&self, side: Side, port: u16) -> bool {
        let number = self.ends().side(side).number();
        let tables = ["tcp", "tcp6"].map(|table| {
            fs::read_to_string(format!("/proc/{number}/net/{table}")).unwrap_or_default()
        });
        let (suffix, listening) = (format!(":{port:04X}"), "0A");
        tables.iter().flat_map(|table| table.lines()).any(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (local, state) = (words.next(), words.nth(1));
            local.is_some_and(|local| local.ends_with(&suffix)) && state == Some(listening)
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Bytes that the link's device in the namespace of this process has sent: the ninth number of its
/// line in `/proc/net/dev`.
fn sent(process: u32) -> Result<u64, Failure> {
    let table = fs::read_to_string(format!("/proc/{process}/net/dev"))?;
    let line = table.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == DEVICE).then_some(numbers)
    });
    let number = line.and_then(|line| line.split_whitespace().nth(8)?.parse().ok());
    Ok(number.ok_or_else(|| format!("no device {DEVICE} in the namespace of {process}"))?)
}
