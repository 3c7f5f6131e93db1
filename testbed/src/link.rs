//! One direction of a link, as a value: a packet's time of arrival and its length in, what becomes
//! of it out. No clock, no I/O; the same seed and the same arrivals give the same verdicts.
//!
//! A packet passes four stages in this order, as on a long cable behind a router:
//!
//! ```text
//!   queue ─▶ line ─────▶ loss ─────▶ delay
//!   bytes    bits/s      by chance   the same for all, with jitter; a reordered packet skips it
//! ```
//!
//! - **Queue and line.** A packet occupies its whole length in the queue from its arrival until its
//!   last bit has been sent. One that does not fit whole is dropped (tail drop).
//!   What counts, in the queue as on the line, is the IP packet: its headers and what is in it, and
//!   no framing below, so a full packet of a link with an MTU of 1500 takes 12,000 bits.
//! - **Loss** takes place behind the line: a lost packet has used it, as one with a bit error has.
//!   So of a flood with a share of losses p, (1 − p) × the rate arrives.
//! - **Delay** is of the last bit. Jitter is spread evenly over `delay − jitter ..= delay + jitter`.
//!   Order is kept: who would overtake arrives at the same time as the one before. Where packets
//!   follow each other closely, that moves the mean towards `delay + jitter`, as in every queue.
//! - **Reordering**: a share of packets skips the delay, and so overtakes those that are in it.
//!
//! Times are exact: the line's end of a packet is computed from the beginning of the busy period and
//! all bits since, rounded up to a nanosecond once, so that nothing accumulates.
//!
//! Loss, jitter and reordering each draw one number for every packet that comes onto the line, from
//! sequences of their own: whether the hundredth packet is lost does not depend on when it came, nor
//! on whether there is jitter.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::{show_rate, show_time};

/// The slowest line, bits per second.
pub const MIN_RATE: u64 = 1_000;
/// The fastest line, bits per second.
pub const MAX_RATE: u64 = 100_000_000_000;
/// The longest delay, one way.
pub const MAX_DELAY: Duration = Duration::from_secs(60);
/// What a direction may hold of packets: its queue, and what its line sends in the longest delay.
pub const MAX_HELD_BYTES: u64 = 256 << 20;
/// How long a line should be busy with a full queue, where nothing else asks for more.
const QUEUE_TIME: Duration = Duration::from_millis(20);
/// The smallest queue that [`Direction::new`] chooses, bytes: ten packets of 1500.
const QUEUE_FLOOR: u64 = 15_000;

/// Which packets are lost behind the line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// None.
    None,
    /// Each with this probability, 0 to 1, whatever happened to others.
    Independent(f64),
    /// Runs of packets, one after the other (Gilbert 1960, as in Elliott's model with a good state
    /// that loses nothing and a bad one that loses everything).
    Bursts {
        /// The share of packets that are lost in the long run, 0 to below 1.
        share: f64,
        /// The mean length of a run, packets, from 1.
        length: f64,
    },
}

/// What one direction of a link is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Direction {
    /// The line's rate, bits per second of IP packets with their headers.
    pub rate: u64,
    /// From a packet's last bit on the line to its arrival.
    pub delay: Duration,
    /// How much more or less than `delay` a packet may take; at most `delay`.
    pub jitter: Duration,
    /// Which packets are lost.
    pub loss: Loss,
    /// The share of packets that skip the delay, 0 to 1.
    pub reorder: f64,
    /// The queue in front of the line, bytes of IP packets.
    pub queue: u64,
}

impl Direction {
    /// A direction that loses nothing but what does not fit into its queue, which takes what the
    /// line sends in a round trip (twice `delay`), and in 20 ms at least.
    pub fn new(rate: u64, delay: Duration) -> Self {
        let time = (2 * delay).max(QUEUE_TIME);
        let queue = (u128::from(rate) * time.as_nanos() / 8 / NANOS).max(QUEUE_FLOOR.into());
        let queue = u64::try_from(queue).unwrap_or(u64::MAX);
        Self { rate, delay, jitter: Duration::ZERO, loss: Loss::None, reorder: 0.0, queue }
    }

    /// Why there can be no such direction.
    pub fn check(&self) -> Result<(), String> {
        let share = |what: &str, share: f64| {
            let fits = (0.0..=1.0).contains(&share);
            fits.then_some(()).ok_or(format!("{what} of {share} is not between 0 and 1"))
        };
        if !(MIN_RATE..=MAX_RATE).contains(&self.rate) {
            let (low, high) = (show_rate(MIN_RATE), show_rate(MAX_RATE));
            return Err(format!("a rate of {} is not in {low} to {high}", show_rate(self.rate)));
        }
        if self.delay > MAX_DELAY {
            let (delay, most) = (show_time(self.delay), show_time(MAX_DELAY));
            return Err(format!("a delay of {delay} one way is above {most}"));
        }
        if self.jitter > self.delay {
            let (jitter, delay) = (show_time(self.jitter), show_time(self.delay));
            return Err(format!("jitter of {jitter} is above the delay of {delay} one way"));
        }
        share("reordering", self.reorder)?;
        match self.loss {
            Loss::None => {}
            Loss::Independent(lost) => share("loss", lost)?,
            Loss::Bursts { share: lost, length } => {
                share("loss", lost)?;
                if !(length >= 1.0 && length.is_finite()) {
                    return Err(format!("a run of {length} losses is shorter than one packet"));
                }
                if lost >= 1.0 || enter(lost, length) > 1.0 {
                    let most = length / (length + 1.0);
                    return Err(format!(
                        "runs of {length} losses cannot make {lost} of all packets: {most:.3} is \
                         the most"
                    ));
                }
            }
        }
        let longest = (self.delay + self.jitter).as_nanos();
        let way = u128::from(self.rate) * longest / 8 / NANOS;
        if way + u128::from(self.queue) > u128::from(MAX_HELD_BYTES) {
            return Err(format!(
                "the queue of {} bytes and {way} bytes on their way are above {MAX_HELD_BYTES}: \
                 choose a lower rate, delay or queue",
                self.queue
            ));
        }
        Ok(())
    }
}

/// The probability to fall into the bad state, that makes this share of losses in such runs.
fn enter(share: f64, length: f64) -> f64 {
    share / (1.0 - share) / length
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It arrives at this time.
    Arrives(Duration),
    /// The same, past those that are in the delay.
    Overtakes(Duration),
    /// It was sent and is lost.
    Lost,
    /// The queue has no room for it.
    Full,
}

/// One direction of a link, with what is in its queue and on its line.
#[derive(Debug, Clone)]
pub struct Link {
    direction: Direction,
    /// The latest time of which it was told; time does not go back.
    now: u64,
    /// When the line became busy, and what it has had to send since.
    busy_since: u64,
    busy_bits: u128,
    /// Packets in the queue: when their last bit is sent, and their lengths.
    queued: VecDeque<(u64, u64)>,
    queued_bytes: u64,
    /// When the last packet arrives that did not skip the delay.
    latest: u64,
    /// In a run of losses.
    is_bad: bool,
    loss: Draws,
    jitter: Draws,
    reorder: Draws,
}

const NANOS: u128 = 1_000_000_000;

impl Link {
    /// An idle one. The error says why there can be no such direction.
    pub fn new(direction: Direction, seed: u64) -> Result<Self, String> {
        direction.check()?;
        Ok(Self {
            direction,
            now: 0,
            busy_since: 0,
            busy_bits: 0,
            queued: VecDeque::new(),
            queued_bytes: 0,
            latest: 0,
            is_bad: false,
            loss: Draws::new(seed, 1),
            jitter: Draws::new(seed, 2),
            reorder: Draws::new(seed, 3),
        })
    }

    /// What becomes of a packet of `len` bytes that arrives `now`, a time since any beginning. Times
    /// that go back count as the latest one.
    pub fn offer(&mut self, now: Duration, len: usize) -> Verdict {
        let len = len as u64;
        self.now = self.now.max(nanos(now));
        while let Some(&(_, bytes)) = self.queued.front().filter(|(sent, _)| *sent <= self.now) {
            self.queued.pop_front();
            self.queued_bytes -= bytes;
        }
        if self.queued_bytes + len > self.direction.queue {
            return Verdict::Full;
        }
        if self.line_free() <= self.now {
            (self.busy_since, self.busy_bits) = (self.now, 0);
        }
        self.busy_bits += u128::from(len) * 8;
        let sent = self.line_free();
        self.queued.push_back((sent, len));
        self.queued_bytes += len;
        self.travel(sent)
    }

    /// What becomes of a packet whose last bit has been sent.
    fn travel(&mut self, sent: u64) -> Verdict {
        // All three, whatever comes of them: see above.
        let (loss, jitter, skips) = (self.loss.next(), self.jitter.next(), self.reorder.next());
        if self.loses(loss) {
            return Verdict::Lost;
        }
        if is_within(skips, self.direction.reorder) {
            return Verdict::Overtakes(Duration::from_nanos(sent));
        }
        let spread = nanos(self.direction.jitter);
        let more = (u128::from(jitter) * (2 * u128::from(spread) + 1)) >> 64;
        let more = u64::try_from(more).expect("it is at most twice the jitter");
        let at = sent + nanos(self.direction.delay) - spread + more;
        self.latest = self.latest.max(at);
        Verdict::Arrives(Duration::from_nanos(self.latest))
    }

    fn loses(&mut self, draw: u64) -> bool {
        match self.direction.loss {
            Loss::None => false,
            Loss::Independent(share) => is_within(draw, share),
            Loss::Bursts { share, length } => {
                let turns = if self.is_bad { 1.0 / length } else { enter(share, length) };
                self.is_bad ^= is_within(draw, turns);
                self.is_bad
            }
        }
    }

    /// When the line has sent everything, rounded up.
    fn line_free(&self) -> u64 {
        let took = (self.busy_bits * NANOS).div_ceil(self.direction.rate.into());
        self.busy_since + u64::try_from(took).expect("the queue bounds what is to be sent")
    }

    /// Changes what it is like from the next packet on; those before keep their times, and order is
    /// kept. The error says why there can be no such direction.
    pub fn set(&mut self, direction: Direction) -> Result<(), String> {
        direction.check()?;
        (self.busy_since, self.busy_bits) = (self.line_free(), 0);
        self.is_bad &= matches!(direction.loss, Loss::Bursts { .. });
        self.direction = direction;
        Ok(())
    }

    /// Forgets what is in the queue, on the line and in the delay.
    pub fn clear(&mut self) {
        self.queued.clear();
        self.queued_bytes = 0;
        (self.busy_since, self.busy_bits, self.latest) = (0, 0, 0);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("five centuries are enough")
}

/// A sequence of numbers from a seed (splitmix64, Steele et al. 2014): the same in every build, and
/// good enough for chances.
#[derive(Debug, Clone)]
struct Draws(u64);

impl Draws {
    /// The sequence of this number among those of a seed.
    fn new(seed: u64, number: u64) -> Self {
        // Neighbouring states give overlapping sequences; mixed ones do not in any length of use.
        let mut first = Self(seed);
        let mixed = first.next();
        let mut second = Self(mixed ^ number);
        Self(second.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Whether a draw is among this share of all draws.
fn is_within(draw: u64, share: f64) -> bool {
    // 53 bits, which a float has: 0 takes none and 1 takes all.
    const SCALE: f64 = (1_u64 << 53) as f64;
    ((draw >> 11) as f64) < share * SCALE
}

#[cfg(test)]
mod tests;
