//! What a hypervisor counts of a guest, added up over all processes that the guest has had.

use std::ops::{Add, Sub};

use model::monitoring::VmMeasure;
use serde::{Deserialize, Serialize};

/// One measurement of a guest. What only grows is counted from the beginning of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Tells one process of the guest from another: its counters begin anew.
    pub process: u64,
    /// What only grows.
    pub counted: Counted,
    /// Memory of the guest that is in the host's, in bytes.
    pub memory_resident: u64,
    /// What the guest has of its memory by its balloon, in bytes; none where there is no balloon.
    pub memory_balloon: Option<u64>,
}

/// What only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Nanoseconds that its processors have run.
    pub cpu_ns: u64,
    /// Of its disks together.
    pub disk: Disk,
    /// Of its network cards together; none where nobody counts.
    pub network: Option<Network>,
}

/// Counters of disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Disk {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Operations that read.
    pub reads: u64,
    /// Operations that write.
    pub writes: u64,
    /// Nanoseconds that reads have taken, each counted.
    pub read_ns: u64,
    /// Nanoseconds that writes have taken, each counted.
    pub write_ns: u64,
}

/// Counters of network cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// Bytes that the guest received.
    pub received_bytes: u64,
    /// Bytes that the guest sent.
    pub sent_bytes: u64,
    /// Packets that the guest received.
    pub received_packets: u64,
    /// Packets that the guest sent.
    pub sent_packets: u64,
}

impl Counted {
    /// Whether nothing of it is less than `earlier`, nor unknown where that was known: it can have
    /// been counted after it.
    pub fn covers(&self, earlier: &Self) -> bool {
        self.with(*earlier, u64::max) == *self
    }

    fn with(self, other: Self, each: impl Fn(u64, u64) -> u64 + Copy) -> Self {
        let (a, b) = (self.disk, other.disk);
        let network = match (self.network, other.network) {
            (None, None) => None,
            (a, b) => {
                let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
                Some(Network {
                    received_bytes: each(a.received_bytes, b.received_bytes),
                    sent_bytes: each(a.sent_bytes, b.sent_bytes),
                    received_packets: each(a.received_packets, b.received_packets),
                    sent_packets: each(a.sent_packets, b.sent_packets),
                })
            }
        };
        Self {
            cpu_ns: each(self.cpu_ns, other.cpu_ns),
            disk: Disk {
                read_bytes: each(a.read_bytes, b.read_bytes),
                written_bytes: each(a.written_bytes, b.written_bytes),
                reads: each(a.reads, b.reads),
                writes: each(a.writes, b.writes),
                read_ns: each(a.read_ns, b.read_ns),
                write_ns: each(a.write_ns, b.write_ns),
            },
            network,
        }
    }
}

impl Add for Counted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }
}

/// What was counted from `other` to `self`.
impl Sub for Counted {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }
}

/// Adds up over the processes of a guest, at whatever sites they ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meter {
    /// Of processes that have ended.
    ended: Counted,
    /// The newest measurement of the process that there is, or was last.
    newest: Sample,
}

impl Meter {
    /// Takes a measurement.
    pub fn take(&mut self, sample: Sample) {
        let before = self.newest.counted;
        let fell = sample.counted.cpu_ns < before.cpu_ns
            || sample.counted.disk.reads < before.disk.reads
            || sample.counted.disk.writes < before.disk.writes;
        if sample.process != self.newest.process || fell {
            self.ended = self.counted();
        }
        self.newest = sample;
    }

    /// All that was counted since the guest's first start.
    pub fn counted(&self) -> Counted {
        self.ended + self.newest.counted
    }

    /// The newest measurement.
    pub fn newest(&self) -> &Sample {
        &self.newest
    }
}

/// What a measure is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Made {
    /// A number as it is now.
    Now(f64),
    /// What was counted of the first, for each of the second, since the measurement before.
    Ratio(f64, f64),
}

const SECOND_NS: f64 = 1e9;

/// The measure at this moment; none where it is not measured. `seconds` is the time of day.
pub(crate) fn measure(meter: &Meter, what: VmMeasure, seconds: f64) -> Option<Made> {
    let counted = meter.counted();
    let disk = counted.disk;
    // Exact up to 2^53: 104 days of nanoseconds, 9 PB.
    let now = |number: u64| Some(Made::Now(number as f64));
    let ratio = |of: u64, each: u64| Some(Made::Ratio(of as f64 / SECOND_NS, each as f64));
    match what {
        VmMeasure::CpuTime => Some(Made::Now(counted.cpu_ns as f64 / SECOND_NS)),
        VmMeasure::CpuShare => Some(Made::Ratio(counted.cpu_ns as f64 / SECOND_NS, seconds)),
        VmMeasure::MemoryResident => now(meter.newest.memory_resident),
        VmMeasure::MemoryBalloon => meter.newest.memory_balloon.and_then(now),
        VmMeasure::DiskRead => now(disk.read_bytes),
        VmMeasure::DiskWritten => now(disk.written_bytes),
        VmMeasure::DiskReads => now(disk.reads),
        VmMeasure::DiskWrites => now(disk.writes),
        VmMeasure::DiskReadLatency => ratio(disk.read_ns, disk.reads),
        VmMeasure::DiskWriteLatency => ratio(disk.write_ns, disk.writes),
        VmMeasure::NetworkReceived => now(counted.network?.received_bytes),
        VmMeasure::NetworkSent => now(counted.network?.sent_bytes),
        VmMeasure::NetworkPacketsReceived => now(counted.network?.received_packets),
        VmMeasure::NetworkPacketsSent => now(counted.network?.sent_packets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(process: u64, cpu_ns: u64) -> Sample {
        let counted = Counted { cpu_ns, ..Counted::default() };
        Sample { process, counted, ..Sample::default() }
    }

    #[test]
    fn counters_go_on_when_the_guest_gets_a_new_process_however_much_that_has_counted() {
        let mut meter = Meter::default();
        for (process, cpu, total) in
            [(7, 5, 5), (7, 9, 9), (8, 2, 11), (8, 4, 13), (9, 20, 33), (9, 1, 34)]
        {
            meter.take(sample(process, cpu));
            assert_eq!(meter.counted().cpu_ns, total);
        }
    }

    #[test]
    fn what_nobody_counts_has_no_measure_and_what_was_counted_once_stays() {
        let mut meter = Meter::default();
        meter.take(sample(1, 5));
        assert_eq!(measure(&meter, VmMeasure::NetworkSent, 0.0), None);
        assert_eq!(measure(&meter, VmMeasure::MemoryBalloon, 0.0), None);
        let network = Some(Network { sent_bytes: 10, ..Network::default() });
        let counted = Counted { network, ..Counted::default() };
        meter.take(Sample { process: 2, counted, ..Sample::default() });
        meter.take(sample(3, 1));
        assert_eq!(measure(&meter, VmMeasure::NetworkSent, 0.0), Some(Made::Now(10.0)));
    }
}
