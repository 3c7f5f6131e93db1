//! Compete: a window beside a neighbour who fills the queue.

use std::time::{Duration, Instant};

/// How much of the longest queue of late is remembered after a round; the queue that overflows may
/// become smaller.
const LONGEST_FADING: f64 = 0.99;

/// In Compete the window is cut to this share when the queue overflows (RFC 9438, section 4.6).
const CUT: f64 = 0.7;

/// After a cut the window grows by this many packets times the root of (path's product in packets
/// x seconds since then): faster than NewReno at first, slower than cubic at last, and found to
/// take between a quarter and three quarters beside either.
const GROWTH: f64 = 2.6;

/// Growth per round of one who has not yet its share.
const CATCH_UP_GROWTH: f64 = 1.25;

/// The state of Compete. Windows are bytes, rates bytes per second, queues seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contest {
    /// The window grows steeply up to this rate, or until the first overflow.
    goal: f64,
    /// The longest queue of late.
    longest: f64,
    /// The window at the last cut, and when that was.
    ground: f64,
    cut_at: Instant,
    began: Instant,
}

impl Contest {
    /// Begins with `window`, beside a neighbour whose queue was seen.
    pub(super) fn new(now: Instant, window: f64, goal: f64, queue: f64) -> Self {
        Self { goal, longest: queue, ground: window, cut_at: now, began: now }
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// What queue stood through a round.
    pub(super) fn note(&mut self, queue: f64) {
        self.longest = queue.max(self.longest * LONGEST_FADING);
    }

    /// The window after a round with this rate. `product` is what the path holds without a queue,
    /// in bytes.
    pub(super) fn grow(
        &mut self,
        now: Instant,
        window: f64,
        rate: f64,
        product: f64,
        mtu: u64,
    ) -> f64 {
        if rate < self.goal {
            self.ground = window * CATCH_UP_GROWTH;
            self.cut_at = now;
        } else {
            self.goal = 0.0;
        }
        let mtu = mtu as f64;
        let since = now.saturating_duration_since(self.cut_at).as_secs_f64();
        self.ground + GROWTH * (product / mtu * since).sqrt() * mtu
    }

    /// The window after the loss of packets of which the last was sent at `sent`, if that was an
    /// overflow: one cut for all losses of a round trip (RFC 9002, section 7.3.2), and none where
    /// the queue was far from full.
    pub(super) fn cut(
        &mut self,
        now: Instant,
        sent: Instant,
        window: f64,
        queue: f64,
    ) -> Option<f64> {
        (sent > self.cut_at && queue > self.longest / 2.0).then(|| {
            self.goal = 0.0;
            self.ground = window * CUT;
            self.cut_at = now;
            self.ground
        })
    }
}
