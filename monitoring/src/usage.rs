//! What a VM has used, as the site that runs it states it: for bills, and for whoever checks them.
//!
//! ```text
//!   looks at guest ─▶ Tally ─▶ Statement, signed ─▶ book ══ hop by hop ══▶ book ─▶ Stay ─▶ sums
//!                     (meter,   (cumulative,        (the newest, and the
//!                      memory)   of one stay)        first of each hour)
//! ```
//!
//! A statement says what was used in one epoch so far. So the newest one of an epoch says all: one
//! that is lost or comes again makes no gap and no double count, and what a VM has used in all is
//! the sum over its epochs. It is signed with the per-VM key of the epoch's owner, as blocks of
//! values are, and names no site.
//!
//! What is counted, and what is not:
//! - Time of the processors, and bytes of the disks, from the first instruction of each process of
//!   the guest on, as the hypervisor counts them. What QEMU itself uses is not in it.
//! - Memory that the descriptor gives the VM times the time for which its process exists, running
//!   or paused, from the first look at it (when it was launched) to the last. A guest's balloon
//!   changes nothing: the host has set the memory aside, and the guest could say what it likes.
//! - What a process uses between the last look and its end is not in it, unless the end was a
//!   hibernation, which is measured when the guest has stopped. Looks come every few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::key::{Payload, Signed};
use model::{Bytes, Epoch, PeerName, Time, VmId};
use serde::{Deserialize, Serialize};

use crate::sample::{Meter, Sample};

/// Bytes of a statement at most; a usual one has about 70.
pub const MAX_STATEMENT_BYTES: usize = 256;
/// No statement speaks of a later time; that is in the year 287396.
const MAX_TIME: Time = Time(1 << 53);

/// Periods begin and end at full hours (UTC), of which each has this many milliseconds.
pub const HOUR_MS: u64 = 3_600_000;
/// The first statement of an hour counts as made at the full hour if it is not later than so many
/// milliseconds: none can be made at the very moment.
pub const LATE_MS: u64 = 60_000;

/// What was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Used {
    /// Nanoseconds that the guest's processors have run, all together.
    pub cpu_ns: u64,
    /// Bytes of memory times milliseconds for which the guest had them.
    pub memory_byte_ms: u128,
    /// Bytes that the guest read from its disks.
    pub disk_read_bytes: u64,
    /// Bytes that the guest wrote to its disks.
    pub disk_written_bytes: u64,
    /// What went through its network cards; none where nobody counts, which is not zero.
    pub network: Option<Traffic>,
}

/// What went through a guest's network cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes that the guest received.
    pub received_bytes: u64,
    /// Bytes that the guest sent.
    pub sent_bytes: u64,
}

impl Used {
    /// Both together; what is beyond the largest number stays there. Traffic is known if it is
    /// known of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let both = self.network.zip(other.network);
        Self {
            cpu_ns: self.cpu_ns.saturating_add(other.cpu_ns),
            memory_byte_ms: self.memory_byte_ms.saturating_add(other.memory_byte_ms),
            disk_read_bytes: self.disk_read_bytes.saturating_add(other.disk_read_bytes),
            disk_written_bytes: self.disk_written_bytes.saturating_add(other.disk_written_bytes),
            network: both.map(|(a, b)| Traffic {
                received_bytes: a.received_bytes.saturating_add(b.received_bytes),
                sent_bytes: a.sent_bytes.saturating_add(b.sent_bytes),
            }),
        }
    }

    /// What was used since `earlier`, which this covers.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let before = earlier.network.unwrap_or_default();
        Self {
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
            memory_byte_ms: self.memory_byte_ms.saturating_sub(earlier.memory_byte_ms),
            disk_read_bytes: self.disk_read_bytes.saturating_sub(earlier.disk_read_bytes),
            disk_written_bytes: self.disk_written_bytes.saturating_sub(earlier.disk_written_bytes),
            network: self.network.map(|now| Traffic {
                received_bytes: now.received_bytes.saturating_sub(before.received_bytes),
                sent_bytes: now.sent_bytes.saturating_sub(before.sent_bytes),
            }),
        }
    }

    /// Whether nothing of it is less than `earlier`, nor unknown where that was known.
    pub fn covers(&self, earlier: &Self) -> bool {
        let network = match (self.network, earlier.network) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(now), Some(then)) => {
                now.received_bytes >= then.received_bytes && now.sent_bytes >= then.sent_bytes
            }
        };
        network
            && self.cpu_ns >= earlier.cpu_ns
            && self.memory_byte_ms >= earlier.memory_byte_ms
            && self.disk_read_bytes >= earlier.disk_read_bytes
            && self.disk_written_bytes >= earlier.disk_written_bytes
    }

    /// Memory times time in GiB · h.
    pub fn memory_gib_hours(&self) -> f64 {
        const GIB_HOUR: f64 = (1_u64 << 30) as f64 * HOUR_MS as f64;
        self.memory_byte_ms as f64 / GIB_HOUR
    }
}

/// What a VM has used in one epoch so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The VM.
    pub vm: VmId,
    /// The epoch, whose owner signs.
    pub epoch: Epoch,
    /// When its guest was seen first in this epoch, by the clock of the site that runs it.
    pub since: Time,
    /// Up to when this counts. It never goes back.
    pub until: Time,
    /// What was used.
    pub used: Used,
    /// It is the last one: the epoch is over.
    pub is_final: bool,
}

impl Payload for Statement {
    const TYPE: &'static str = "application/vnd.sojourn.usage.v1";
}

/// Bytes that are no statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the statement is too large, not well formed, or its times make no sense")]
pub struct Malformed;

impl Statement {
    /// Reads one, whoever made it.
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        if body.len() > MAX_STATEMENT_BYTES {
            return Err(Malformed);
        }
        match postcard::take_from_bytes::<Self>(body) {
            Ok((read, [])) if read.since <= read.until && read.until <= MAX_TIME => Ok(read),
            _ => Err(Malformed),
        }
    }

    /// Its place among those of its epoch: a later one takes its place.
    pub fn place(&self) -> (Time, bool) {
        (self.until, self.is_final)
    }

    /// Whether it can have been made after `earlier` by somebody who counts: it began with it, and
    /// nothing has shrunk, nor come after the last.
    pub fn continues(&self, earlier: &Self) -> bool {
        self.place() > earlier.place()
            && !earlier.is_final
            && self.since == earlier.since
            && self.used.covers(&earlier.used)
    }

    /// The hour that it was made in, counted from 1970.
    pub fn hour(&self) -> u64 {
        self.until.0 / HOUR_MS
    }
}

/// Adds up what a VM uses in one epoch. A plain value, kept while the epoch lasts: a node that
/// starts again goes on with it, and finds the guest's counters where they are meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    meter: Meter,
    /// From the first look to the last.
    times: Option<(Time, Time)>,
    memory_byte_ms: u128,
    /// Up to when the newest statement counts.
    stated: Option<Time>,
}

impl Tally {
    /// Takes a look at the guest, which has `memory`.
    ///
    /// Looks at one process may come out of order: one that is behind is passed over.
    pub fn take(&mut self, now: Time, sample: &Sample, memory: Bytes) {
        let (since, until) = *self.times.get_or_insert((now, now));
        let newest = *self.meter.newest();
        let is_same = sample.process == newest.process;
        if is_same && !sample.counted.covers(&newest.counted) {
            return;
        }
        if is_same {
            // It has lived from the one look to the other, whoever looked meanwhile.
            let lived = now.since(until).as_millis();
            self.memory_byte_ms =
                self.memory_byte_ms.saturating_add(lived.saturating_mul(memory.0.into()));
        }
        self.meter.take(*sample);
        self.times = Some((since, until.max(now)));
    }

    /// What was used.
    pub fn used(&self) -> Used {
        let counted = self.meter.counted();
        Used {
            cpu_ns: counted.cpu_ns,
            memory_byte_ms: self.memory_byte_ms,
            disk_read_bytes: counted.disk.read_bytes,
            disk_written_bytes: counted.disk.written_bytes,
            network: counted.network.map(|network| Traffic {
                received_bytes: network.received_bytes,
                sent_bytes: network.sent_bytes,
            }),
        }
    }

    /// When the next statement is due if one is made each `every`: at the full hour at the latest.
    /// None before the guest was seen.
    pub fn due(&self, every: Duration) -> Option<Time> {
        self.times?;
        let Some(last) = self.stated else { return Some(Time::default()) };
        let next_hour = Time((last.0 / HOUR_MS + 1) * HOUR_MS);
        Some(last.after(every).min(next_hour))
    }

    /// What is to be stated; none if there is nothing new. With it, the tally is to be kept.
    ///
    /// While the clock stands before the last statement's time nothing is new but the end.
    pub fn state(&mut self, vm: VmId, epoch: Epoch, is_final: bool) -> Option<Statement> {
        let (since, until) = self.times?;
        if !is_final && self.stated.is_some_and(|last| until <= last) {
            return None;
        }
        self.stated = Some(until);
        Some(Statement { vm, epoch, since, until, used: self.used(), is_final })
    }
}

/// What a VM has used in one epoch, or a part of it, as a site knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    /// The VM.
    pub vm: VmId,
    /// The epoch.
    pub epoch: Epoch,
    /// For whom: the peer above; none at the VM's primary.
    pub up: Option<PeerName>,
    /// Through whom: the peer below; none where it ran here.
    pub via: Option<PeerName>,
    /// From when on this counts.
    pub since: Time,
    /// Up to when this counts.
    pub until: Time,
    /// What was used.
    pub used: Used,
    /// How complete it is.
    pub standing: Standing,
    /// The statement of its end.
    pub statement: Signed<Statement>,
    /// The statement of its beginning, where that is not the epoch's.
    pub before: Option<Signed<Statement>>,
}

/// How complete a use is. What is greater makes a sum so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// All of it: the last statement has come, or one from after the period.
    Final,
    /// It goes on.
    Open,
    /// It is over, and its last statement has not come: at least this was used.
    AtLeast,
}

impl Standing {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Open => "open",
            Self::AtLeast => "at_least",
        }
    }
}

/// What was used by several stays together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// The VMs.
    pub vms: BTreeSet<VmId>,
    /// How many stays.
    pub stays: usize,
    /// The first beginning.
    pub since: Time,
    /// The last end.
    pub until: Time,
    /// All together. Traffic is known if it is known of all.
    pub used: Used,
    /// As complete as the least complete.
    pub standing: Standing,
}

/// Adds stays up by what they have in common, in its order.
pub fn sum_by<K: Ord>(stays: &[Stay], key: impl Fn(&Stay) -> K) -> BTreeMap<K, Sum> {
    let mut sums: BTreeMap<K, Sum> = BTreeMap::new();
    for stay in stays {
        let one = Sum {
            vms: BTreeSet::from([stay.vm]),
            stays: 1,
            since: stay.since,
            until: stay.until,
            used: stay.used,
            standing: stay.standing,
        };
        match sums.entry(key(stay)) {
            std::collections::btree_map::Entry::Vacant(free) => _ = free.insert(one),
            std::collections::btree_map::Entry::Occupied(mut sum) => sum.get_mut().add(one),
        }
    }
    sums
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.vms.extend(other.vms);
        self.stays += other.stays;
        self.since = self.since.min(other.since);
        self.until = self.until.max(other.until);
        self.used = self.used.plus(other.used);
        self.standing = self.standing.max(other.standing);
    }
}

#[cfg(test)]
mod tests;
