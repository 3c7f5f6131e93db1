//! Which congestion control a session's connections have: BBR where the path loses packets at
//! random, and what the system has for all, as a rule cubic, where it loses them because a queue is
//! full, or none.
//!
//! Beside a cubic neighbour the kernel's BBR takes all but a few hundredths of a queue that holds a
//! round trip's worth; and where nothing is lost it costs a third more processor time. Where
//! packets are lost at random cubic stands still, and BBR does not. A full queue shows in the round
//! trip before it loses anything.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::diag::Sample;

/// How often it is looked.
pub(super) const INTERVAL: Duration = Duration::from_millis(20);

/// How long a queue is remembered, at least, and in round trips: what it lost is sent again only
/// when it may be empty again.
const MEMORY: Duration = Duration::from_millis(200);
const MEMORY_TRIPS: u32 = 4;

/// A round trip that is longer than the shortest by this part of it, and by so much at least, has
/// waited in a queue. Cubic leaves 0.4 of a trip in one that holds a trip's worth of packets.
const QUEUE_PART: u32 = 4;
const QUEUE_LEAST: Duration = Duration::from_millis(3);

/// Looks that found losses without a queue, and the part of what was sent since the first that was
/// lost, from which on it is chance. Less does not slow cubic down on short paths.
const LOOKS: u32 = 3;
const LEAST_LOSS: f64 = 0.004;

/// Judges by what it is told; it has no clock.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// What was told last of each connection.
    before: Vec<Sample>,
    /// Of late: when, and how long packets waited.
    queues: VecDeque<(Instant, Duration)>,
    /// Since no queue was seen: looks with losses, and segments.
    looks: u32,
    again: u64,
    sent: u64,
}

impl Judge {
    /// Looks at all connections of a session, each look in the same order, and new ones behind:
    /// whether they lose at random.
    pub(super) fn is_random(&mut self, now: Instant, samples: &[Sample]) -> bool {
        let Some(least) = samples.iter().map(|sample| sample.least_trip).min() else {
            return false;
        };
        let (mut sent, mut again, mut longest) = (0, 0, least);
        for (at, sample) in samples.iter().enumerate() {
            let before = self.before.get(at).map_or((0, 0), |before| (before.sent, before.again));
            let more = sample.sent.wrapping_sub(before.0);
            sent += u64::from(more);
            again += u64::from(sample.again.wrapping_sub(before.1));
            // What one knows that does not send is of another time.
            longest = longest.max(if more > 0 { sample.trip } else { least });
        }
        self.before = samples.to_vec();
        self.queues.push_back((now, longest - least));
        let memory = MEMORY.max(least * MEMORY_TRIPS);
        while self.queues.front().is_some_and(|(then, _)| now.duration_since(*then) > memory) {
            self.queues.pop_front();
        }
        let is_queue = QUEUE_LEAST.max(least / QUEUE_PART);
        if self.queues.iter().any(|(_, queue)| *queue > is_queue) {
            (self.looks, self.again, self.sent) = (0, 0, 0);
            return false;
        }
        if again > 0 || self.looks > 0 {
            self.looks += u32::from(again > 0);
            self.again += again;
            self.sent += sent;
        }
        self.looks >= LOOKS && self.again as f64 >= self.sent as f64 * LEAST_LOSS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIP: Duration = Duration::from_millis(20);

    /// One connection; each look adds so many segments sent, sent again, and waits so long.
    fn judge(least: Duration, looks: impl IntoIterator<Item = (u32, u32, Duration)>) -> bool {
        let (mut judge, mut now) = (Judge::default(), Instant::now());
        let (mut sent, mut again) = (0, 0);
        looks.into_iter().any(|(more, lost, queue)| {
            now += INTERVAL;
            (sent, again) = (sent + more, again + lost);
            let sample = Sample { sent, again, trip: least + queue, least_trip: least };
            judge.is_random(now, &[sample])
        })
    }

    #[test]
    fn losses_without_a_queue_are_chance() {
        let wait = Duration::from_millis(1);
        assert!(judge(TRIP, (0..12).map(|n| (25, u32::from(n % 4 == 0), wait))));
        assert!(judge(Duration::from_micros(200), [(60, 3, wait); 3]));
    }

    #[test]
    fn losses_of_a_full_queue_are_not_nor_what_is_sent_again_when_it_is_empty() {
        let full = (170, 0, TRIP);
        let recovering = (90, 40, Duration::from_millis(1));
        assert!(!judge(TRIP, [full, (100, 60, TRIP), recovering, recovering, recovering]));
        let sawtooth = (0..500_u32).map(|n| {
            let rise = Duration::from_millis(8 + u64::from(n % 100) / 8);
            (160, u32::from(n % 100 == 99), rise)
        });
        assert!(!judge(TRIP, sawtooth));
    }

    #[test]
    fn a_path_that_loses_next_to_nothing_is_left_alone() {
        let rarely = (0..5000_u32).map(|n| (1000, u32::from(n % 10 == 0), Duration::ZERO));
        assert!(!judge(Duration::from_micros(100), rarely));
        assert!(!judge(TRIP, (0..500).map(|_| (170, 0, Duration::ZERO))));
    }

    #[test]
    fn a_queue_is_forgotten_when_it_is_long_gone() {
        let start = [(170, 20, TRIP)].into_iter();
        assert!(judge(TRIP, start.chain((0..40).map(|_| (25, 1, Duration::ZERO)))));
    }
}
