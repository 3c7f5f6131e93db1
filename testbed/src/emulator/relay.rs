//! A thread that carries the packets of one direction from device to device, when they are due.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tun_rs::SyncDevice;

use super::Traffic;
use crate::link::{Direction, Link, Verdict};

/// The most that a late wake-up counts in the estimate of the next one, and so the longest that a
/// relay looks for packets without sleeping before one is due.
pub const MAX_LATENESS: Duration = Duration::from_micros(200);
/// The weight of what is known against the newest lateness, as in TCP's smoothed round trip.
const SMOOTHING: u32 = 8;
/// Packets that are read before it is looked again which are due.
const BATCH: usize = 16;
/// The priority of a relay's thread: the highest for which no real-time rights are needed.
const NICE: i32 = -20;

/// A direction that runs, until this is dropped.
pub(super) struct Relay {
    shared: Arc<Shared>,
    mtu: u16,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    lane: Mutex<Lane>,
    /// Wakes the thread up.
    bell: OwnedFd,
    stops: AtomicBool,
}

/// Packets under way, and what has become of others.
struct Lane {
    link: Link,
    /// Those in the delay, in their order.
    delayed: VecDeque<Packet>,
    /// Those that skip it, in theirs.
    overtaking: VecDeque<Packet>,
    traffic: Traffic,
    is_cut: bool,
    failure: Option<String>,
}

struct Packet {
    due: Duration,
    content: Box<[u8]>,
}

impl Relay {
    /// Starts to carry packets from the first device to the second.
    pub(super) fn start(
        name: &str,
        [from, to]: [&Arc<SyncDevice>; 2],
        direction: Direction,
        seed: u64,
        mtu: u16,
    ) -> Result<Self, String> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = bell.map_err(|why| format!("no eventfd can be made: {why}"))?;
        let lane = Lane {
            link: Link::new(direction, seed)?,
            delayed: VecDeque::new(),
            overtaking: VecDeque::new(),
            traffic: Traffic::default(),
            is_cut: false,
            failure: None,
        };
        let lane = Mutex::new(lane);
        let shared = Arc::new(Shared { lane, bell, stops: AtomicBool::new(false) });
        let carrier = Carrier {
            from: Arc::clone(from),
            to: Arc::clone(to),
            shared: Arc::clone(&shared),
            begun: Instant::now(),
            lateness: Duration::ZERO,
            slept_at: None,
            // One byte more than fits, to see what should not come.
            buffer: vec![0; usize::from(mtu) + 1],
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(|| carrier.run()).map_err(|why| format!("no thread: {why}"))?;
        Ok(Self { shared, mtu, thread: Some(thread) })
    }

    pub(super) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Changes what the direction is like.
    pub(super) fn set(&self, direction: Direction) -> Result<(), String> {
        self.shared.lane().link.set(direction)
    }

    /// Drops everything, from what is under way on.
    pub(super) fn cut(&self) {
        let mut lane = self.shared.lane();
        lane.is_cut = true;
        lane.traffic.cut += (lane.delayed.len() + lane.overtaking.len()) as u64;
        lane.delayed.clear();
        lane.overtaking.clear();
        lane.link.clear();
    }

    pub(super) fn heal(&self) {
        self.shared.lane().is_cut = false;
    }

    /// What has become of packets, of which this many were missed by the device.
    pub(super) fn traffic(&self, missed: u64) -> Traffic {
        let mut traffic = self.shared.lane().traffic;
        traffic.missed += missed;
        traffic
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.shared.lane().failure.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::Relaxed);
        // It cannot fail: the counter of a bell is far from its end.
        let _ = rustix::io::write(&self.shared.bell, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().expect("nothing panics while it has a lane")
    }
}

/// What the thread has.
struct Carrier {
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
    shared: Arc<Shared>,
    /// When the time of the link began.
    begun: Instant,
    /// How late the thread wakes up when it has slept, by experience.
    lateness: Duration,
    /// When it fell asleep, if it has just woken up.
    slept_at: Option<Duration>,
    buffer: Vec<u8>,
}

/// What the thread does next.
enum Next {
    /// Looks again at once: more may have come.
    Look,
    /// Waits for packets, and until this time of the link if one is due then.
    Wait(Option<Duration>),
}

impl Carrier {
    fn run(mut self) {
        // Both make it more punctual, and it works without.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let _ = rustix::process::setpriority_process(None, NICE);
        while !self.shared.stops.load(Ordering::Relaxed) {
            let done = self.carry().and_then(|next| match next {
                Next::Look => Ok(()),
                Next::Wait(until) => self.wait(until),
            });
            if let Err(why) = done {
                self.shared.lane().failure = Some(format!("the link's device: {why}"));
                return;
            }
        }
    }

    /// Delivers what is due, and takes what has come.
    fn carry(&mut self) -> io::Result<Next> {
        let shared = Arc::clone(&self.shared);
        let mut lane = shared.lane();
        let now = self.begun.elapsed();
        while let Some(packet) = lane.pop_due(now) {
            match self.to.send(&packet.content) {
                Ok(_) => {
                    lane.traffic.packets += 1;
                    lane.traffic.bytes += packet.content.len() as u64;
                }
                // The far device is down, or the kernel has no memory: no reason to end.
                Err(_) => lane.traffic.missed += 1,
            }
        }
        for _ in 0..BATCH {
            match self.from.recv(&mut self.buffer) {
                Ok(length) => {
                    let mut now = self.begun.elapsed();
                    if let Some(slept_at) = self.slept_at.take() {
                        // It came when it woke the thread up, and not when that ran; what comes wakes
                        // it up in about half the time that a timer needs.
                        now = now.saturating_sub(self.lateness / 2).max(slept_at);
                    }
                    lane.take(now, &self.buffer[..length]);
                }
                Err(why) if why.kind() == ErrorKind::WouldBlock => {
                    return Ok(Next::Wait(lane.next_due()));
                }
                Err(why) if why.kind() == ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        Ok(Next::Look)
    }

    fn wait(&mut self, until: Option<Duration>) -> io::Result<()> {
        let now = self.begun.elapsed();
        let wakes_at = until.map(|until| until.saturating_sub(self.lateness));
        self.slept_at = None;
        if wakes_at.is_some_and(|wakes_at| wakes_at <= now) {
            // Too short to sleep: it goes round in `run`, and looks for packets meanwhile.
            std::hint::spin_loop();
            return Ok(());
        }
        let pause = wakes_at.map(|wakes_at| {
            Timespec::try_from(wakes_at - now).expect("a delay is at most minutes")
        });
        let mut waits = [
            PollFd::from_borrowed_fd(self.from.as_fd(), PollFlags::IN),
            PollFd::new(&self.shared.bell, PollFlags::IN),
        ];
        match poll(&mut waits, pause.as_ref()) {
            Ok(0) => {
                let wakes_at = wakes_at.expect("only a timer wakes up without an event");
                let late = self.begun.elapsed().saturating_sub(wakes_at).min(MAX_LATENESS);
                self.lateness = (self.lateness * (SMOOTHING - 1) + late) / SMOOTHING;
                Ok(())
            }
            Ok(_) => {
                self.slept_at = Some(now);
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(why) => Err(why.into()),
        }
    }
}

impl Lane {
    /// A packet that has come.
    fn take(&mut self, now: Duration, content: &[u8]) {
        if self.is_cut {
            self.traffic.cut += 1;
            return;
        }
        let packet = |due| Packet { due, content: content.into() };
        match self.link.offer(now, content.len()) {
            Verdict::Arrives(due) => self.delayed.push_back(packet(due)),
            Verdict::Overtakes(due) => self.overtaking.push_back(packet(due)),
            Verdict::Lost => self.traffic.lost += 1,
            Verdict::Full => self.traffic.full += 1,
        }
    }

    /// The packet that arrives next.
    fn next(&mut self) -> Option<&mut VecDeque<Packet>> {
        let of = |queue: &VecDeque<Packet>| queue.front().map(|packet| packet.due);
        match (of(&self.delayed), of(&self.overtaking)) {
            (None, None) => None,
            (Some(delayed), overtaking) if overtaking.is_none_or(|other| delayed <= other) => {
                Some(&mut self.delayed)
            }
            _ => Some(&mut self.overtaking),
        }
    }

    fn next_due(&mut self) -> Option<Duration> {
        self.next()?.front().map(|packet| packet.due)
    }

    fn pop_due(&mut self, now: Duration) -> Option<Packet> {
        self.next()?.pop_front_if(|packet| packet.due <= now)
    }
}
