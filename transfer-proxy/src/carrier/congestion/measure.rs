//! What is measured of the path: rounds, the base round trip, rates of delivery, loss.

use std::time::{Duration, Instant};

/// A round lasts at least so long: within less, batches of packets and acknowledgements are taken
/// for changes of the rate.
const ROUND_FLOOR: Duration = Duration::from_millis(5);

/// A round trip this little above the base counts as the base seen again.
const BASE_TOLERANCE: f64 = 1.0 / 16.0;

/// What the base is taken for before anything was measured, in seconds.
const BASE_UNKNOWN: f64 = 0.1;

/// Rates of so many rounds are remembered.
const RATES: usize = 3;

/// A share of loss is told from so many bytes on; below, a share of 5 % cannot be told from 10 %.
const LOSS_SAMPLE_BYTES: u64 = 64 * 1452;

/// Loss is above the base if it is more than this factor and this share more (the draft of BBR
/// takes 2 %; samples of 64 packets need more).
const LOSS_FACTOR: f64 = 1.5;
const LOSS_STEP: f64 = 0.03;

/// After so many samples a base of more than `LOSS_STEP` is put to the test: what once was the
/// path's loss may be one's own overflow since.
const LOSS_TRUSTED: u32 = 32;

/// What happened from one moment on, for a round trip at least.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) began: Instant,
    /// Bytes that were acknowledged, and that were found lost.
    pub(super) delivered: u64,
    pub(super) lost: u64,
    /// The shortest round trip: what it is above the base stood in a queue all the time.
    pub(super) fastest: Duration,
    /// The application had nothing to send, or the other end's windows were full.
    pub(super) app_limited: bool,
    /// At least half of the window was in flight at some time: it may be what limits the rate.
    pub(super) filled: bool,
    /// A router marked packets instead of dropping them.
    pub(super) marked: bool,
}

impl Round {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            delivered: 0,
            lost: 0,
            fastest: Duration::MAX,
            app_limited: false,
            filled: false,
            marked: false,
        }
    }

    /// Whether a packet that was sent after the round began is acknowledged; `newest` is when the
    /// last acknowledged one was sent.
    pub(super) fn is_over(&self, now: Instant, newest: Instant) -> bool {
        newest >= self.began && now >= self.began + ROUND_FLOOR
    }
}

/// The round trip without any queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct BaseRtt {
    least: Option<f64>,
    seen: Instant,
}

impl BaseRtt {
    pub(super) fn new(now: Instant) -> Self {
        Self { least: None, seen: now }
    }

    pub(super) fn is_known(&self) -> bool {
        self.least.is_some()
    }

    pub(super) fn seconds(&self) -> f64 {
        self.least.unwrap_or(BASE_UNKNOWN)
    }

    pub(super) fn add(&mut self, now: Instant, rtt: Duration) {
        let rtt = rtt.as_secs_f64();
        let least = self.least.unwrap_or(rtt);
        if rtt <= least * (1.0 + BASE_TOLERANCE) {
            self.seen = now;
        }
        self.least = Some(least.min(rtt));
    }

    /// What was seen without a queue of one's own replaces what was known.
    pub(super) fn set(&mut self, now: Instant, seconds: f64) {
        self.least = Some(seconds);
        self.seen = now;
    }

    /// Since when it was not seen.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.seen)
    }
}

/// Rates of delivery of the last rounds, in bytes per second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rates {
    samples: [f64; RATES],
    next: usize,
}

impl Rates {
    pub(super) fn add(&mut self, rate: f64) {
        self.samples[self.next] = rate;
        self.next = (self.next + 1) % RATES;
    }

    /// The path is not what it was.
    pub(super) fn forget(&mut self) {
        self.samples = [0.0; RATES];
    }

    /// The best of them; none is above what the path can do for long.
    pub(super) fn best(&self) -> f64 {
        self.samples.iter().copied().fold(0.0, f64::max)
    }
}

/// Which share is lost, and which share the path loses whatever is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    delivered: u64,
    lost: u64,
    base: f64,
    /// Samples since the base was last learned without a queue of one's own.
    trusted: u32,
}

impl Losses {
    /// Adds the bytes of a round, and tells whether clearly more is lost than the base.
    /// The base falls with every lower sample, and rises with those that are `innocent`: where no
    /// queue of one's own can have overflowed.
    pub(super) fn add(&mut self, delivered: u64, lost: u64, innocent: bool) -> bool {
        self.delivered += delivered;
        self.lost += lost;
        let all = self.delivered + self.lost;
        if all < LOSS_SAMPLE_BYTES {
            return false;
        }
        let share = self.lost as f64 / all as f64;
        (self.delivered, self.lost) = (0, 0);
        let above = share > LOSS_FACTOR * self.base + LOSS_STEP;
        if innocent {
            self.base += (share - self.base) / 2.0;
            self.trusted = 0;
        } else {
            self.base += (share - self.base).min(0.0) / 4.0;
            self.trusted += 1;
        }
        above
    }

    /// Whether the base should be learned again.
    pub(super) fn is_doubtful(&self) -> bool {
        self.base > LOSS_STEP && self.trusted >= LOSS_TRUSTED
    }
}
