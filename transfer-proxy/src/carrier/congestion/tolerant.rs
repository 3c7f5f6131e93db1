//! The controller: by the measured rate of delivery and the measured queue, and not by loss alone.
//!
//! Loss says little about a path between sites: a bad line loses packets whatever is sent, and a
//! control that halves its window for each of them (RFC 9002, RFC 9438) leaves most of the path
//! unused; migrations then take tens of times as long (papers/002, section 5.2).
//! So each **round** (at least one round trip) is measured: the rate of delivery, the shortest
//! round trip and with it the queue, the share that was lost ([`super::measure`]); at its end the
//! window is set anew.
//!
//! ```text
//!             rate no longer grows,      a queue that does not go,
//!             or a queue stands          or the base round trip is old
//!   Startup ----------------------> Cruise <-----------------> Drain
//!      ^                              ^  alone: the queue went    |
//!      | nothing came through         |                           | it stayed: a neighbour
//!      | for long (any state)         '-------- Compete <---------'
//!                                the queue went  (and back to Drain every 10 s)
//! ```
//!
//! - **Startup** doubles the window each round, whatever is lost (slow start; left as BBR does,
//!   draft-ietf-ccwg-bbr, or as HyStart++ does, RFC 9406).
//! - **Cruise** keeps `rate x base round trip` in flight, and a small queue of its own: FAST TCP's
//!   rule (Wei, Jin, Low and Hegde 2006). The queue that is aimed at is the longer the slower the
//!   flow, as in Swift (Kumar and others 2020), and that is what makes flows of this kind share
//!   alike. While there is less of a queue the window grows faster and faster; when more is lost
//!   than the path loses anyway, the own queue is made shorter.
//! - **Drain** takes the own queue away for a round or two. Alone, the base round trip is seen
//!   again. If a queue is left, it is somebody else's, who fills it until it overflows; to give
//!   way to the delay would be to starve (Copa, Arun and Balakrishnan 2018, decides alike).
//! - **Compete** grows until the full queue drops packets, and gives way by three tenths then, as
//!   cubic does: here alone a loss is congestion, since the queue stands.
//!
//! quinn asks a controller for a window only, and paces at 1.25 windows per smoothed round trip:
//! in the long run the rate is the window over the round trip, so the measured rate is turned into
//! a window, and the pacer spreads it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerMetrics};
use quinn_proto::RttEstimator;

use super::OPEN_WINDOW_BYTES;
use super::contest::Contest;
use super::measure::{BaseRtt, Losses, Rates, Round};

/// The smallest window, in packets. quinn sends while less than the window is in flight, so one
/// packet less is in flight. With seven the loss of one is noticed at once (three later ones are
/// acknowledged), none waits for the timer of a delayed acknowledgement, and they go out together.
const FLOOR_PACKETS: u64 = 8;

/// The window before anything was measured, in packets (RFC 9002, section 7.2).
pub(super) const FIRST_PACKETS: u64 = 10;

/// The window of the first round: what this many bytes per second have in flight, up to this many
/// packets. Sites have 16 Mbit/s to move VMs over, and at 100 ms each doubling counts. It is paced
/// over a round trip.
const FIRST_RATE: f64 = 2e6;
const FIRST_PACKETS_LIMIT: u64 = 128;

/// Startup ends when the rate of delivery did not grow by this factor for so many rounds: doubling
/// goes on while acknowledgements are late, and ends when the path is full.
const STARTUP_GROWTH: f64 = 1.25;
const STARTUP_ROUNDS: u32 = 3;

/// Seconds of queue that Startup takes for noise: an eighth of the base round trip within these
/// limits (RFC 9406, section 4.3).
const STARTUP_QUEUE: (f64, f64) = (0.004, 0.016);

/// The queue that Cruise aims at, in seconds, is the root of this (byte-seconds) over the rate:
/// 5 ms at 100 Mbit/s and 0.5 ms at 10 Gbit/s. The slower flow aims at the longer one and gains.
const QUEUE_SCALE: f64 = 290.0;

/// The most of it, in seconds: slow paths would have a long queue.
const QUEUE_LIMIT: f64 = 0.008;

/// What hosts add to it, in seconds: batches, timers of a millisecond, delayed acknowledgements.
const HOST_TIME: f64 = 0.001;

/// The window of Cruise never falls below this share of the best rate of late: who gives way to
/// every queue that a neighbour makes has nothing left when that one is at last noticed.
const HELD_SHARE: f64 = 0.5;

/// Seconds after which a best rate, and a longest queue, count for 1/e.
const PEAK_LIFE: f64 = 30.0;

/// When more is lost than the path loses anyway, the own queue is halved, down to this share; else
/// it grows back by this factor a round.
const RESTRAINT_FLOOR: f64 = 1.0 / 16.0;
const RESTRAINT_GROWTH: f64 = 1.1;

/// The window grows beyond that only where at least this share was borne.
const BOOST_RESTRAINT: f64 = 0.5;

/// A queue is suspicious above this many times the one that is aimed at, and above so many seconds
/// in any case; a neighbour of this kind does not make one, unless there are many.
const SUSPECT_FACTOR: f64 = 1.7;
const SUSPECT_LIMIT: f64 = 0.010;

/// So is a queue above the one aimed at, while the rate is below this share of the best of late.
const ROBBED_SHARE: f64 = 0.7;

/// Suspicious rounds in a row that lead to Drain; a queue of three times that does at once, since
/// it means that the path has become slower.
const SUSPECT_ROUNDS: u32 = 5;
const JUMP_FACTOR: f64 = 3.0;

/// The window of Drain, in products of rate and base round trip: the own queue goes, the path
/// stays full.
const DRAIN_GAIN: f64 = 0.95;

/// A queue that is longer than this after Drain, in seconds, belongs to a neighbour.
const JUDGE_LIMIT: f64 = 0.006;

/// After a judgement in its own favour a flow does not drain again for so long.
const CALM: Duration = Duration::from_secs(5);

/// The base round trip is looked for again when it was not seen for so long, as in BBR; in Compete
/// Drain follows as often.
const BASE_LIFE: Duration = Duration::from_secs(10);

/// After so long what Drain sees is the base round trip, even if it looks like a neighbour: the
/// path has become longer.
const BASE_END: Duration = Duration::from_secs(30);

/// Rounds of Cruise without suspicion after which the best rate is known to be the path's.
const QUIET_ROUNDS: u32 = 20;

/// A queue that stood through a round of so many packets is believed to be one.
const DEPTH_PACKETS: u64 = 32;

/// What the window is set by; see the module.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// `best` is the best rate so far, in bytes per second, `stalled` the rounds without a better,
    /// `limit` what the window may grow to within this round, in bytes.
    Startup {
        best: f64,
        stalled: u32,
        limit: f64,
    },
    Cruise,
    /// Has less in flight once `settled`, and is judged by the round after that. `resume` is the
    /// window in bytes to go back to in Compete, if that was the phase before.
    Drain {
        resume: Option<f64>,
        settled: bool,
    },
    Compete(Contest),
}

impl Phase {
    fn startup(window: f64) -> Self {
        Self::Startup { best: 0.0, stalled: 0, limit: 2.0 * window }
    }
}

/// The controller. Rates are bytes per second, queues are seconds.
#[derive(Clone)]
pub(super) struct Tolerant {
    mtu: u64,
    window: f64,
    phase: Phase,
    pub(super) round: Round,
    /// Of the acknowledgements that arrive together: when the last of their packets was sent, and
    /// their bytes.
    pub(super) batch: Option<(Instant, u64)>,
    base: BaseRtt,
    rates: Rates,
    losses: Losses,
    /// The queue that stood through the last round.
    queue: f64,
    /// The best rate of late.
    peak: f64,
    /// The longest queue of late that stood through a round, in bytes of this flow.
    depth: f64,
    /// The share of the own queue that the path bears without losing more.
    restraint: f64,
    /// Bytes beyond what Cruise aims at, while there is no queue.
    boost: f64,
    suspicious: u32,
    quiet: u32,
    calm_until: Instant,
    /// Shared by all duplicates of the controller.
    pub(super) closing: Arc<AtomicBool>,
}

impl Tolerant {
    pub(super) fn new(now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu);
        let window = (FIRST_PACKETS * mtu) as f64;
        Self {
            mtu,
            window,
            phase: Phase::startup(window),
            round: Round::new(now),
            batch: None,
            base: BaseRtt::new(now),
            rates: Rates::default(),
            losses: Losses::default(),
            queue: 0.0,
            peak: 0.0,
            depth: 0.0,
            restraint: 1.0,
            boost: 0.0,
            suspicious: 0,
            quiet: 0,
            calm_until: now,
            closing: Arc::default(),
        }
    }

    /// The queue to aim at.
    fn target(rate: f64) -> f64 {
        (QUEUE_SCALE / rate.max(1.0)).sqrt().min(QUEUE_LIMIT) + HOST_TIME
    }

    /// The queue that is suspicious.
    fn suspect(&self) -> f64 {
        (SUSPECT_FACTOR * Self::target(self.peak)).min(SUSPECT_LIMIT)
    }

    /// The queue that ends Startup.
    fn patience(&self) -> f64 {
        (self.base.seconds() / 8.0).clamp(STARTUP_QUEUE.0, STARTUP_QUEUE.1)
    }

    fn cruise_window(&self) -> f64 {
        let (rate, base) = (self.rates.best(), self.base.seconds());
        let aim = rate * (base + Self::target(rate) * self.restraint) + self.boost;
        aim.max(HELD_SHARE * self.peak * base).max((FLOOR_PACKETS * self.mtu) as f64)
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::replace(&mut self.round, Round::new(now));
        let elapsed = (now - round.began).as_secs_f64();
        let rate = round.delivered as f64 / elapsed;
        let limited = round.app_limited || !round.filled;
        self.queue = (round.fastest.as_secs_f64() - self.base.seconds()).max(0.0);
        let grew = match self.phase {
            Phase::Startup { best, .. } => rate >= best * STARTUP_GROWTH,
            _ => false,
        };
        // What is lost while the rate still grows, or while the queue is much shorter than one that
        // was seen, or without a queue of one's own, is lost by the path.
        let standing = self.queue * rate;
        let deep = 2.0 * standing.max(rate * Self::target(self.peak));
        let shallow = self.depth > deep;
        let innocent = grew || shallow || self.restraint <= RESTRAINT_FLOOR;
        let above = self.losses.add(round.delivered, round.lost, innocent);
        let congested = round.marked || (above && !shallow);
        if self.queue > 2.0 * self.suspect() && !limited {
            self.rates.forget();
        }
        // A rate that the application or Drain kept low says nothing about the path.
        let kept_low = limited || matches!(self.phase, Phase::Drain { .. });
        if !kept_low || rate > self.rates.best() {
            self.rates.add(rate);
        }
        let fading = (-elapsed / PEAK_LIFE).exp();
        self.peak = rate.max(self.peak * fading);
        self.depth *= fading;
        // Of a few packets each may have waited for the timer of its acknowledgement.
        if !limited && round.delivered >= DEPTH_PACKETS * self.mtu {
            self.depth = self.depth.max(standing);
        }
        match self.phase {
            Phase::Startup { best, stalled, .. } if !limited => {
                let stalled = if grew { 0 } else { stalled + 1 };
                let limit = 2.0 * self.window;
                self.phase = Phase::Startup { best: best.max(rate), stalled, limit };
                let stands = self.queue > self.patience() || round.marked;
                if stands || stalled >= STARTUP_ROUNDS {
                    self.cruise();
                }
            }
            Phase::Cruise => self.cruise_round(now, limited, congested),
            Phase::Drain { resume, settled: true } => self.judge(now, resume),
            Phase::Compete(contest) => self.compete_round(now, limited, rate, contest),
            Phase::Startup { .. } | Phase::Drain { .. } => {}
        }
    }

    fn cruise(&mut self) {
        self.phase = Phase::Cruise;
        self.boost = 0.0;
        self.suspicious = 0;
        self.window = self.cruise_window();
    }

    fn cruise_round(&mut self, now: Instant, limited: bool, congested: bool) {
        let rate = self.rates.best();
        let target = Self::target(rate);
        if self.losses.is_doubtful() {
            self.restraint = RESTRAINT_FLOOR;
            self.boost = 0.0;
        } else if congested {
            self.restraint = (self.restraint / 2.0).max(RESTRAINT_FLOOR);
            self.boost = 0.0;
        } else if !limited {
            self.restraint = (self.restraint * RESTRAINT_GROWTH).min(1.0);
            if self.queue < target / 2.0 && self.restraint > BOOST_RESTRAINT {
                let most = rate * self.base.seconds().max(target);
                self.boost = (2.0 * self.boost).max(rate * target / 2.0).min(most);
            } else if self.queue > target {
                self.boost = 0.0;
            }
        }
        self.window = self.cruise_window();
        let robbed = rate < ROBBED_SHARE * self.peak && self.queue > Self::target(self.peak);
        if self.queue > self.suspect() || robbed {
            let jumped = self.queue > JUMP_FACTOR * self.suspect();
            self.suspicious += if jumped { SUSPECT_ROUNDS } else { 1 };
        } else {
            self.quiet += 1;
            self.suspicious = 0;
        }
        let suspects = self.suspicious >= SUSPECT_ROUNDS && now >= self.calm_until;
        let forgets = self.base.age(now) > BASE_LIFE && !limited;
        if suspects || forgets {
            self.drain(None);
        }
    }

    fn drain(&mut self, resume: Option<f64>) {
        self.phase = Phase::Drain { resume, settled: false };
        let product = self.rates.best() * self.base.seconds();
        self.window = (DRAIN_GAIN * product).max((FLOOR_PACKETS * self.mtu) as f64);
    }

    /// The own queue is gone: is there another?
    fn judge(&mut self, now: Instant, resume: Option<f64>) {
        let rate = self.rates.best();
        let seen = self.base.seconds() + self.queue;
        let alone = self.queue <= Self::target(self.peak).min(JUDGE_LIMIT);
        if alone || self.base.age(now) > BASE_END {
            self.base.set(now, seen);
            self.peak = rate;
            self.calm_until = now + CALM;
            self.cruise();
            return;
        }
        let goal = match resume {
            Some(_) => 0.0,
            // Half of what it had is a fair share beside one neighbour.
            None if self.quiet >= QUIET_ROUNDS => self.peak / 2.0,
            // One who has just come does not know the path.
            None => f64::INFINITY,
        };
        self.quiet = QUIET_ROUNDS;
        self.window = resume.unwrap_or(rate * seen);
        self.phase = Phase::Compete(Contest::new(now, self.window, goal, self.queue));
    }

    fn compete_round(&mut self, now: Instant, limited: bool, rate: f64, mut contest: Contest) {
        if self.queue < Self::target(self.peak) / 2.0 {
            self.cruise();
            return;
        }
        contest.note(self.queue);
        if !limited {
            let product = self.peak * self.base.seconds();
            self.window = contest.grow(now, self.window, rate, product, self.mtu);
        }
        self.window = self.window.max(self.cruise_window());
        self.phase = Phase::Compete(contest);
        if contest.age(now) > BASE_LIFE {
            self.drain(Some(self.window));
        }
    }
}

impl Controller for Tolerant {
    fn on_ack(
        &mut self,
        _now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        self.round.delivered += bytes;
        let (newest, together) = self.batch.unwrap_or((sent, 0));
        self.batch = Some((newest.max(sent), together + bytes));
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        let Some((newest, bytes)) = self.batch.take() else { return };
        let rtt = now.saturating_duration_since(newest).max(Duration::from_micros(1));
        if !self.base.is_known() {
            let packets = FIRST_RATE * rtt.as_secs_f64() / self.mtu as f64;
            let packets = (packets as u64).clamp(FIRST_PACKETS, FIRST_PACKETS_LIMIT);
            self.window = (packets * self.mtu) as f64;
            self.phase = Phase::startup(self.window);
        }
        self.base.add(now, rtt);
        self.round.fastest = self.round.fastest.min(rtt);
        self.round.app_limited |= app_limited;
        self.round.filled |= 2.0 * (in_flight + bytes) as f64 >= self.window;
        let patience = self.patience();
        match &mut self.phase {
            // A queue that builds up within the round is enough to grow no further.
            Phase::Startup { limit, .. } => {
                let queue = rtt.as_secs_f64() - self.base.seconds();
                if !app_limited && queue < patience {
                    self.window = (self.window + bytes as f64).min(limit.max(self.window));
                }
            }
            Phase::Drain { settled, .. } if !*settled && in_flight as f64 <= self.window => {
                *settled = true;
                self.round = Round::new(now);
                return;
            }
            _ => {}
        }
        if self.round.is_over(now, newest) {
            self.end_round(now);
        }
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.round.lost += lost_bytes;
        // That is how quinn tells a mark of explicit congestion notification.
        self.round.marked |= lost_bytes == 0;
        if is_persistent_congestion {
            self.window = (FIRST_PACKETS * self.mtu) as f64;
            self.phase = Phase::startup(self.window);
            return;
        }
        match self.phase {
            // The window grows by what arrived; half of the lost makes good for random loss, and
            // does not double into a queue that overflows.
            Phase::Startup { limit, .. } => {
                let window = self.window + lost_bytes as f64 / 2.0;
                self.window = window.min(limit.max(self.window));
            }
            Phase::Compete(mut contest) => {
                if let Some(window) = contest.cut(now, sent, self.window, self.queue) {
                    self.window = window.max(self.cruise_window());
                    self.phase = Phase::Compete(contest);
                }
            }
            _ => {}
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.window = self.window.max((FLOOR_PACKETS * self.mtu) as f64);
    }

    fn window(&self) -> u64 {
        if self.closing.load(Ordering::Relaxed) { OPEN_WINDOW_BYTES } else { self.window as u64 }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        FIRST_PACKETS * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
