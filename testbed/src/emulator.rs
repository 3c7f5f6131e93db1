//! A link that runs: two namespaces, a TUN device in each, and threads that carry packets between
//! them as [`crate::link`] says.
//!
//! # What is exact, and what it costs
//!
//! A packet's time of arrival is when the relay has seen it; all that follows is computed from it.
//! A relay that wakes up late adds that to the packets that it then delivers, and nothing to those
//! that come later: the rate is the model's, whatever the machine does.
//!
//! Waking up takes tens of microseconds, to see that a packet came and again to see that it is due.
//! A relay measures how late its timers wake it, takes half of that off the arrival of a packet that
//! woke it, and wakes up that much before one is due, to look for the right time without sleeping
//! ([`MAX_LATENESS`] at most).
//! Its threads have no timer slack, and the highest priority among ordinary threads (nice −20),
//! where the system lets them.
//! So a ping over a round trip of 0.2 ms takes 0.25 to 0.3 ms on two cores, of which the pinging
//! program's own waking up is the greater part.
//! A relay takes a third of a core at 100 Mbit/s of full packets, with what the kernel does for the
//! receiver in its name, and a full one at 1 Gbit/s; an idle link takes nothing.
//!
//! Packets on the link are packets of the MTU at most: the devices offer no segmentation or checksum
//! offload, so that the sending system cuts and sums up itself.
//! IPv6 is off on them, or the systems' own announcements would be counted.
//!
//! [`Traffic::missed`] says how many packets the relay was too slow for. Figures of a run in which
//! it is not 0 are figures of the machine.

mod relay;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tun_rs::{DeviceBuilder, SyncDevice};

use crate::link::Direction;
use crate::space::Space;
pub use relay::MAX_LATENESS;
use relay::Relay;

/// The name of the link's device on both sides.
pub const DEVICE: &str = "link";
/// The largest IP packet that is carried where nobody says otherwise, bytes.
pub const MTU: u16 = 1_500;
/// The smallest that IPv4 allows (RFC 791).
const MIN_MTU: u16 = 68;
/// Packets that a device keeps for a relay that is late; 100 ms of full packets at 1 Gbit/s.
const DEVICE_PACKETS: u32 = 8_192;

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one at 10.77.0.1.
    A,
    /// The one at 10.77.0.2.
    B,
}

impl Side {
    /// Its address, the same on every link: namespaces keep links apart.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::A => Ipv4Addr::new(10, 77, 0, 1),
            Self::B => Ipv4Addr::new(10, 77, 0, 2),
        }
    }
}

/// Two namespaces that can reach each other and nobody else.
pub struct Ends {
    a: Space,
    b: Space,
}

impl Ends {
    /// Two namespaces joined by a pair of Ethernet devices (veth) as fast as the machine. No relay
    /// is in between: nothing is emulated, lost or counted.
    pub fn veth(mtu: u16) -> Result<Self, String> {
        let ends = Self::apart()?;
        let (size, far) = (check_mtu(mtu)?.to_string(), ends.b.number().to_string());
        let near = ["ip", "link", "add", "name", DEVICE, "mtu", &size, "type", "veth"];
        let peer = ["peer", "name", DEVICE, "mtu", &size, "netns", &far];
        ends.a.run(&[&near[..], &peer[..]].concat())?;
        for side in [Side::A, Side::B] {
            ends.open(side)?;
        }
        Ok(ends)
    }

    fn apart() -> Result<Self, String> {
        let ends = Self { a: Space::new()?, b: Space::new()? };
        for space in [&ends.a, &ends.b] {
            space.run(&["ip", "link", "set", "dev", "lo", "up"])?;
        }
        Ok(ends)
    }

    /// Gives a side's device its address and switches it on.
    fn open(&self, side: Side) -> Result<(), String> {
        let space = self.side(side);
        let address = format!("{}/24", side.address());
        space.run(&["ip", "address", "add", &address, "dev", DEVICE])?;
        space.run(&["ip", "link", "set", "dev", DEVICE, "up"]).map(drop)
    }

    /// One of them.
    pub fn side(&self, side: Side) -> &Space {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// A command that runs a program on a side.
    pub fn command(&self, side: Side, program: &str) -> Command {
        self.side(side).command(program)
    }
}

/// What a link is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// From A to B.
    pub forward: Direction,
    /// From B to A.
    pub back: Direction,
    /// The largest IP packet, bytes.
    pub mtu: u16,
    /// What chance is drawn from; each direction has sequences of its own.
    pub seed: u64,
}

impl Settings {
    /// A link that is the same in both directions.
    pub fn both(direction: Direction) -> Self {
        Self { forward: direction, back: direction, mtu: MTU, seed: 1 }
    }

    /// A link of this rate (bits per second) and round trip, which loses nothing.
    pub fn new(rate: u64, round_trip: Duration) -> Self {
        Self::both(Direction::new(rate, round_trip / 2))
    }
}

/// Directions of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From A to B.
    Forward,
    /// From B to A.
    Back,
    /// The two.
    Both,
}

/// What has become of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// From A to B.
    pub forward: Traffic,
    /// From B to A.
    pub back: Traffic,
}

/// What has become of the packets of a direction; those that are under way are in none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets that arrived.
    pub packets: u64,
    /// Their bytes, with IP headers.
    pub bytes: u64,
    /// Packets that were lost by chance.
    pub lost: u64,
    /// Packets that the queue had no room for.
    pub full: u64,
    /// Packets that vanished because the direction was cut.
    pub cut: u64,
    /// Packets that the link never saw or could not hand over: the machine was too slow.
    pub missed: u64,
}

/// A link that is being emulated. When it goes, its namespaces and devices do, and what still runs
/// on its sides has no network left.
pub struct Emulator {
    // In this order they go: relays before the devices' namespaces.
    forward: Relay,
    back: Relay,
    ends: Ends,
}

impl Emulator {
    /// Makes a link. The error says what is wrong with the settings, or what the machine lacks.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let mtu = check_mtu(settings.mtu)?;
        for direction in [&settings.forward, &settings.back] {
            check(direction, mtu)?;
        }
        let ends = Ends::apart()?;
        let near = Arc::new(device(&ends.a, mtu)?);
        let far = Arc::new(device(&ends.b, mtu)?);
        for side in [Side::A, Side::B] {
            ends.open(side)?;
        }
        let Settings { forward, back, seed, .. } = settings;
        let forward = Relay::start("link-forward", [&near, &far], forward, seed, mtu)?;
        let back = Relay::start("link-back", [&far, &near], back, !seed, mtu)?;
        Ok(Self { forward, back, ends })
    }

    /// The namespaces, to run programs in.
    pub fn ends(&self) -> &Ends {
        &self.ends
    }

    /// One of them.
    pub fn side(&self, side: Side) -> &Space {
        self.ends.side(side)
    }

    /// A command that runs a program on a side.
    pub fn command(&self, side: Side, program: &str) -> Command {
        self.ends.command(side, program)
    }

    /// Changes what the link is like, from the next packet on; those that are under way keep their
    /// times. The error says what is wrong with the directions, and then nothing has changed.
    pub fn set(&self, forward: Direction, back: Direction) -> Result<(), String> {
        for direction in [&forward, &back] {
            check(direction, self.forward.mtu())?;
        }
        self.forward.set(forward)?;
        self.back.set(back)
    }

    /// Makes packets vanish, those that are under way too, until [`Emulator::heal`].
    /// When it returns, nothing arrives any more.
    pub fn cut(&self, way: Way) {
        if way != Way::Back {
            self.forward.cut();
        }
        if way != Way::Forward {
            self.back.cut();
        }
    }

    /// Ends every cut; the link begins idle.
    pub fn heal(&self) {
        self.forward.heal();
        self.back.heal();
    }

    /// What has become of all packets so far.
    pub fn counters(&self) -> Counters {
        let forward = self.forward.traffic(refused(&self.ends.a));
        Counters { forward, back: self.back.traffic(refused(&self.ends.b)) }
    }

    /// Why the link carries nothing any more, if it broke: its device was taken away, for example.
    pub fn failure(&self) -> Option<String> {
        self.forward.failure().or(self.back.failure())
    }
}

fn check_mtu(mtu: u16) -> Result<u16, String> {
    if mtu < MIN_MTU { Err(format!("an MTU of {mtu} is below {MIN_MTU}")) } else { Ok(mtu) }
}

fn check(direction: &Direction, mtu: u16) -> Result<(), String> {
    direction.check()?;
    if direction.queue < mtu.into() {
        let queue = direction.queue;
        return Err(format!("a queue of {queue} bytes has no room for a packet of {mtu}"));
    }
    Ok(())
}

/// A TUN device in a namespace. It goes with its descriptor.
fn device(space: &Space, mtu: u16) -> Result<SyncDevice, String> {
    let made = space.inside(|| {
        // Devices that are made from here on have no IPv6; a kernel without it has no such file.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let device = DeviceBuilder::new().name(DEVICE).mtu(mtu).inherit_enable_state();
        let device = device.offload(false).tx_queue_len(DEVICE_PACKETS).build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    })?;
    made.map_err(|why: io::Error| {
        format!("no TUN device can be made: {why}; are you root, and is /dev/net/tun there?")
    })
}

/// How many packets the device of a namespace had no room for, because nobody read them in time.
fn refused(space: &Space) -> u64 {
    let table = fs::read_to_string(format!("/proc/{}/net/dev", space.number()));
    let table = table.unwrap_or_default();
    table.lines().find_map(refused_in).unwrap_or(0)
}

/// The same of a line of `/proc/net/dev`: the fourth of the numbers about sending, behind eight
/// about receiving.
fn refused_in(line: &str) -> Option<u64> {
    let (name, numbers) = line.split_once(':')?;
    if name.trim() != DEVICE {
        return None;
    }
    numbers.split_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_table_tells_what_the_relay_missed() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     840      10    0    1    0     0          0         0      840      10    0    2    0     0       0          0
  link:    1680      20    3    4    5     6          7         8     3360      40    9   17    0     0       0          0";
        assert_eq!(table.lines().find_map(refused_in), Some(17));
    }

    #[test]
    fn a_queue_without_room_for_a_packet_is_refused() {
        let direction = Direction { queue: 1_499, ..Direction::new(1_000_000, Duration::ZERO) };
        assert!(check(&direction, 1_500).unwrap_err().contains("no room for a packet of 1500"));
        assert!(check(&direction, 1_499).is_ok());
        assert!(check_mtu(67).is_err());
    }
}
