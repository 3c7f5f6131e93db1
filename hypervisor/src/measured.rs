//! What a guest has used of its host, counted since its process began.

use std::time::Duration;

use model::Bytes;

/// One look at a guest: counters that only grow, and two levels.
///
/// The counters begin at zero with each process, so a guest that was hibernated, moved or started
/// anew counts from zero again; whoever wants more adds up.
/// They stand still while the guest is paused. The values are read one after the other within some
/// milliseconds, not at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Tells one process of the guest from the next: another number, and all counters are new.
    pub process: u64,
    /// Time that the guest's processors have run, all added up; what QEMU does besides, such as
    /// its disks, is not in it. Of a processor that runs right now, up to a timer tick (some
    /// milliseconds) may not be counted yet.
    pub cpu_time: Duration,
    /// Memory of the host that is there because of this guest alone.
    ///
    /// The guest's memory as far as it was ever touched, and what its process has besides; under an
    /// emulator, that is translated code above all, which can be more than the guest has memory.
    /// Not its program's own pages, which all guests of a host share.
    pub memory_resident: Bytes,
    /// Memory that the guest is left with by its balloon: all that it has while nobody inflates it.
    /// None when it was launched without a balloon, by an earlier release.
    pub memory_balloon: Option<Bytes>,
    /// All disks together.
    pub disks: DiskCounters,
    /// All network cards together, as the guest sees them; none when nothing counts there.
    ///
    /// A card of [`crate::Qemu`] whose network is no bridge of the host leads nowhere, and nobody
    /// counts what the guest sends there. Zero would be a lie, so it is none.
    pub network: Option<NetworkCounters>,
}

/// What a guest asked of its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskCounters {
    /// From its disks.
    pub read: IoCounters,
    /// To its disks. Flushes and discards are not counted.
    pub written: IoCounters,
}

/// Transfers in one direction, as far as they are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoCounters {
    /// Content that was transferred.
    pub bytes: Bytes,
    /// Requests of the guest.
    pub operations: u64,
    /// How long each request took, added up: requests that overlap count for each.
    pub time: Duration,
}

/// What went through a guest's network cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkCounters {
    /// What the guest got.
    pub received: PacketCounters,
    /// What the guest sent.
    pub sent: PacketCounters,
}

/// Packets in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketCounters {
    /// Whole Ethernet frames.
    pub bytes: Bytes,
    /// How many frames.
    pub packets: u64,
}

impl PacketCounters {
    /// Both together; what is beyond the largest number stays there.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            bytes: Bytes(self.bytes.0.saturating_add(other.bytes.0)),
            packets: self.packets.saturating_add(other.packets),
        }
    }
}

impl IoCounters {
    /// Both together; what is beyond the largest number stays there.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            bytes: Bytes(self.bytes.0.saturating_add(other.bytes.0)),
            operations: self.operations.saturating_add(other.operations),
            time: self.time.saturating_add(other.time),
        }
    }
}
