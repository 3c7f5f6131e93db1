//! Which carrier a transfer uses: found by trying, since what a path does to UDP and to TCP, and
//! what either costs in CPU, is told by nothing else.
//!
//! ```text
//!   near path ─▶ TLS first        the first is measured; if what is left is worth it, the other
//!   else      ─▶ QUIC first       is tried; the better one stays, until its rate falls by half
//! ```

use std::time::{Duration, Instant};

use model::Carrier;

/// A path of so short a round trip is most likely a local network, where TCP over TLS costs less.
const NEAR: Duration = Duration::from_millis(3);

/// A trial takes so long, or so many round trips if that is longer. Its first half is not counted:
/// a carrier first has to find the rate of the path.
const TRIAL: Duration = Duration::from_millis(400);
const TRIAL_TRIPS: u32 = 12;

/// A change costs about so many round trips until the new carrier is at its rate.
const COST_TRIPS: u32 = 12;

/// What is left must take so many times as long as a change costs, and some time besides.
const WORTH: u32 = 20;
const WORTH_TIME: Duration = Duration::from_secs(8);

/// Another carrier is better if it is faster by this factor.
const BETTER: f64 = 1.15;

/// The rate is looked at over so long once the carrier is settled.
const WATCH: Duration = Duration::from_secs(5);

/// First pause before the other carrier is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(30);

/// Decides by what it is told; it has no clock.
#[derive(Debug)]
pub(crate) struct Pilot {
    /// Both, where there is something to decide.
    has_choice: bool,
    rates: [Option<f64>; 2],
    /// The present measurement.
    since: Instant,
    counted: Option<(Instant, u64)>,
    trip: Duration,
    /// Whether the present carrier stays, at the rate that was seen at best.
    settled: Option<f64>,
    /// The other one is not tried before.
    retry_at: Option<Instant>,
    pause: Duration,
}

fn slot(carrier: Carrier) -> usize {
    match carrier {
        Carrier::Quic => 0,
        Carrier::Tls => 1,
    }
}

fn other(carrier: Carrier) -> Carrier {
    match carrier {
        Carrier::Quic => Carrier::Tls,
        Carrier::Tls => Carrier::Quic,
    }
}

/// Whether a path of this round trip is begun with TLS.
pub(crate) fn is_near(trip: Duration) -> bool {
    trip < NEAR
}

impl Pilot {
    pub(crate) fn new(has_choice: bool, now: Instant) -> Self {
        Self {
            has_choice,
            rates: [None; 2],
            since: now,
            counted: None,
            trip: Duration::ZERO,
            settled: None,
            retry_at: None,
            pause: FIRST_PAUSE,
        }
    }

    /// From now on bytes come over a session with this round trip.
    pub(crate) fn begin(&mut self, now: Instant, trip: Duration) {
        (self.since, self.counted, self.trip) = (now, None, trip);
    }

    /// Nothing came of the other carrier; it is not tried again for a while.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.retry_at = Some(now + self.pause);
        self.pause *= 2;
    }

    /// `done` bytes are here and `left` are not, over `carrier` at present: the carrier to change
    /// to, if that pays.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        carrier: Carrier,
        done: u64,
        left: u64,
    ) -> Option<Carrier> {
        if !self.has_choice {
            return None;
        }
        let trial = match self.settled {
            Some(_) => 2 * WATCH,
            None => TRIAL.max(self.trip * TRIAL_TRIPS),
        };
        let past = now.duration_since(self.since);
        if past < trial / 2 {
            return None;
        }
        let (from, before) = *self.counted.get_or_insert((now, done));
        if past < trial {
            return None;
        }
        let took = now.duration_since(from).as_secs_f64().max(1e-3);
        let rate = done.saturating_sub(before) as f64 / took;
        (self.since, self.counted) = (now, None);
        self.rates[slot(carrier)] = Some(rate);
        if let Some(best) = self.settled {
            self.settled = Some(best.max(rate));
            if rate * 2.0 > best || self.retry_at.is_some_and(|at| now < at) {
                return None;
            }
            // The path is another one than it was.
            self.settled = None;
            self.rates[slot(other(carrier))] = None;
            self.failed(now);
        }
        let change = match self.rates[slot(other(carrier))] {
            Some(known) => known > rate * BETTER,
            None => self.is_worth(left, rate) && self.retry_at.is_none_or(|at| now >= at),
        };
        if change {
            return Some(other(carrier));
        }
        if self.rates[slot(other(carrier))].is_some() {
            self.settled = Some(rate);
        }
        None
    }

    fn is_worth(&self, left: u64, rate: f64) -> bool {
        let cost = self.trip * COST_TRIPS * WORTH + WORTH_TIME;
        left as f64 > rate * cost.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// Moves `size` bytes over a path on which the carriers have these rates, in bytes a second;
    /// gives the carriers in the order in which they were used, and the bytes over each turn.
    fn fly(size: u64, trip: Duration, rate: impl Fn(Carrier, u64) -> u64) -> Vec<(Carrier, u64)> {
        let mut now = Instant::now();
        let mut pilot = Pilot::new(true, now);
        let mut carrier = if is_near(trip) { Carrier::Tls } else { Carrier::Quic };
        let mut turns = vec![(carrier, 0)];
        pilot.begin(now, trip);
        let (mut done, step) = (0, Duration::from_millis(10));
        while done < size {
            now += step;
            let came = rate(carrier, done) / 100;
            done += came;
            turns.last_mut().unwrap().1 += came;
            let left = size.saturating_sub(done);
            if let Some(next) = pilot.look(now, carrier, done, left) {
                carrier = next;
                turns.push((carrier, 0));
                pilot.begin(now, trip);
            }
        }
        turns
    }

    fn carriers(turns: &[(Carrier, u64)]) -> Vec<Carrier> {
        turns.iter().map(|turn| turn.0).collect()
    }

    #[test]
    fn the_better_carrier_has_nearly_all_of_a_long_transfer() {
        let trip = Duration::from_millis(20);
        let turns = fly(100_000 * MB, trip, |carrier, _| match carrier {
            Carrier::Quic => 300 * MB,
            Carrier::Tls => 900 * MB,
        });
        assert_eq!(carriers(&turns), [Carrier::Quic, Carrier::Tls]);
        let turns = fly(10_000 * MB, trip, |carrier, _| match carrier {
            Carrier::Quic => 12 * MB,
            Carrier::Tls => 2 * MB,
        });
        assert_eq!(carriers(&turns), [Carrier::Quic, Carrier::Tls, Carrier::Quic]);
        assert!(turns[2].1 > 9_900 * MB);
    }

    #[test]
    fn a_transfer_that_is_soon_over_is_not_disturbed() {
        let rate = |_, _| 12 * MB;
        let turns = fly(64 * MB, Duration::from_millis(20), rate);
        assert_eq!(carriers(&turns), [Carrier::Quic]);
        let turns = fly(1000 * MB, Duration::from_micros(200), |_, _| 1000 * MB);
        assert_eq!(carriers(&turns), [Carrier::Tls]);
    }

    #[test]
    fn carriers_that_are_alike_are_tried_once_each() {
        let turns = fly(20_000 * MB, Duration::from_millis(20), |_, _| 50 * MB);
        assert_eq!(carriers(&turns), [Carrier::Quic, Carrier::Tls]);
    }

    #[test]
    fn a_path_that_gets_worse_for_one_carrier_is_tried_with_the_other_again() {
        let turns = fly(20_000 * MB, Duration::from_millis(20), |carrier, done| match carrier {
            Carrier::Quic if done > 5_000 * MB => 2 * MB,
            Carrier::Quic => 50 * MB,
            Carrier::Tls => 40 * MB,
        });
        let order = [Carrier::Quic, Carrier::Tls, Carrier::Quic, Carrier::Tls];
        assert_eq!(carriers(&turns), order);
        assert!(turns[3].1 > 14_000 * MB);
    }

    #[test]
    fn nothing_is_decided_where_there_is_no_choice_and_a_failure_is_not_repeated_at_once() {
        let (mut now, trip) = (Instant::now(), Duration::from_millis(1));
        let mut pilot = Pilot::new(false, now);
        pilot.begin(now, trip);
        for step in 1..100 {
            now += Duration::from_millis(100);
            assert_eq!(pilot.look(now, Carrier::Quic, step * MB, 1 << 40), None);
        }
        let mut pilot = Pilot::new(true, now);
        pilot.begin(now, trip);
        let mut tries = vec![];
        let begun = now;
        for step in 1..1200 {
            now += Duration::from_millis(100);
            if pilot.look(now, Carrier::Quic, step * MB, 1 << 40).is_some() {
                pilot.failed(now);
                tries.push(now.duration_since(begun).as_secs());
            }
        }
        assert!(tries.len() == 3 && tries[1] >= 30 && tries[2] >= 90, "{tries:?}");
    }
}
