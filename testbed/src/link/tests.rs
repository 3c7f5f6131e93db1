use std::time::Duration;

use super::{Direction, Link, Loss, Verdict};

const MBIT: u64 = 1_000_000;
const FULL: usize = 1_500;

fn ns(time: u64) -> Duration {
    Duration::from_nanos(time)
}

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

/// A clean line with a queue that takes everything.
fn wide(rate: u64, delay: Duration) -> Direction {
    Direction { queue: 100 << 20, ..Direction::new(rate, delay) }
}

fn link(direction: Direction) -> Link {
    Link::new(direction, 7).unwrap()
}

/// Verdicts of packets that come one after the other, each when the line is free again.
fn verdicts(link: &mut Link, count: u64) -> Vec<Verdict> {
    (0..count).map(|at| link.offer(ns(at * 120_000), FULL)).collect()
}

fn lost(verdicts: &[Verdict]) -> usize {
    verdicts.iter().filter(|verdict| **verdict == Verdict::Lost).count()
}

#[test]
fn a_packet_arrives_when_its_bits_are_sent_and_the_delay_is_over() {
    let mut link = link(wide(100 * MBIT, ms(10)));
    assert_eq!(link.offer(ms(5), FULL), Verdict::Arrives(ms(15) + ns(120_000)));
    assert_eq!(link.offer(ms(5), 100), Verdict::Arrives(ms(15) + ns(128_000)));
    // The line has been idle since.
    assert_eq!(link.offer(ms(50), 20), Verdict::Arrives(ms(60) + ns(1_600)));
}

#[test]
fn a_million_packets_leave_at_the_rate_to_the_nanosecond() {
    // Rates of which a packet's time is no whole number of nanoseconds; small and large packets.
    for rate in [7 * MBIT + 1, 999_999_937, 31_000] {
        let direction = Direction { queue: 4_000, ..Direction::new(rate, Duration::ZERO) };
        let mut link = link(direction);
        let (mut bits, mut last) = (0_u128, Duration::ZERO);
        for at in 0..1_000_000_usize {
            let len = 40 + at % 1_461;
            // The line always has one more packet waiting, and is never idle.
            let verdict = link.offer(last.saturating_sub(ns(1)), len);
            bits += len as u128 * 8;
            let exact = (bits * 1_000_000_000).div_ceil(rate.into());
            last = ns(exact.try_into().unwrap());
            assert_eq!(verdict, Verdict::Arrives(last), "packet {at} at {rate} bits/s");
        }
    }
}

#[test]
fn the_queue_holds_its_bytes_and_not_one_more() {
    let direction = Direction { queue: 4_000, ..Direction::new(8 * MBIT, ms(1)) };
    let mut link = link(direction);
    // At 8 Mbit/s a byte takes a microsecond.
    assert_eq!(link.offer(ns(0), 1_500), Verdict::Arrives(ns(2_500_000)));
    assert_eq!(link.offer(ns(0), 1_500), Verdict::Arrives(ns(4_000_000)));
    assert_eq!(link.offer(ns(0), 1_001), Verdict::Full);
    assert_eq!(link.offer(ns(0), 1_000), Verdict::Arrives(ns(5_000_000)));
    assert_eq!(link.offer(ns(0), 1), Verdict::Full);
    // The first is in the queue until its last bit is sent.
    assert_eq!(link.offer(ns(1_499_999), 1), Verdict::Full);
    assert_eq!(link.offer(ns(1_500_000), 1_501), Verdict::Full);
    assert_eq!(link.offer(ns(1_500_000), 1_500), Verdict::Arrives(ns(6_500_000)));
    assert_eq!(link.offer(ns(1_500_000), 1), Verdict::Full);
}

#[test]
fn a_flood_fills_the_queue_and_leaves_at_the_rate() {
    let direction = Direction { queue: 15_000, ..Direction::new(100 * MBIT, Duration::ZERO) };
    let mut link = link(direction);
    // Twice the rate for a second: the last one comes at 1,000.02 ms.
    let sent: Vec<Verdict> = (0..16_668).map(|at| link.offer(ns(at * 60_000), FULL)).collect();
    let arrived = sent.iter().filter(|verdict| **verdict != Verdict::Full).count();
    // What the line sends in that time, and what is in the queue at the end.
    assert_eq!(arrived, 8_333 + 10);
}

#[test]
fn independent_losses_are_as_many_as_asked_for() {
    for share in [0.001, 0.01, 0.05, 0.5] {
        let mut link =
            link(Direction { loss: Loss::Independent(share), ..wide(100 * MBIT, ms(1)) });
        let count = 200_000;
        let lost = lost(&verdicts(&mut link, count)) as f64;
        let (mean, deviation) =
            (count as f64 * share, (count as f64 * share * (1.0 - share)).sqrt());
        assert!(
            (lost - mean).abs() < 3.0 * deviation,
            "{lost} lost, {mean} ± {deviation} expected"
        );
    }
}

#[test]
fn nothing_is_lost_at_no_loss_and_everything_at_full_loss() {
    for (loss, expected) in [(Loss::None, 0), (Loss::Independent(0.0), 0)] {
        let mut link = link(Direction { loss, ..wide(100 * MBIT, ms(1)) });
        assert_eq!(lost(&verdicts(&mut link, 10_000)), expected);
    }
    let mut link = link(Direction { loss: Loss::Independent(1.0), ..wide(100 * MBIT, ms(1)) });
    assert_eq!(lost(&verdicts(&mut link, 10_000)), 10_000);
}

#[test]
fn losses_in_bursts_have_their_share_and_their_length() {
    let loss = Loss::Bursts { share: 0.05, length: 8.0 };
    let mut link = link(Direction { loss, ..wide(100 * MBIT, ms(1)) });
    let verdicts = verdicts(&mut link, 1_000_000);
    let all = lost(&verdicts);
    let runs = verdicts
        .windows(2)
        .filter(|pair| pair[0] != Verdict::Lost && pair[1] == Verdict::Lost)
        .count();
    let (share, length) = (all as f64 / 1e6, all as f64 / runs as f64);
    // Three deviations: of 6,250 runs, whose lengths are geometric.
    assert!((share - 0.05).abs() < 0.003, "{share}");
    assert!((length - 8.0).abs() < 0.3, "{length}");
}

#[test]
fn a_lost_packet_has_used_the_line() {
    let mut link = link(Direction { loss: Loss::Independent(1.0), ..wide(8 * MBIT, ms(1)) });
    assert_eq!(link.offer(ns(0), 1_000), Verdict::Lost);
    link.set(wide(8 * MBIT, ms(1))).unwrap();
    assert_eq!(link.offer(ns(0), 1_000), Verdict::Arrives(ms(3)));
}

#[test]
fn jitter_is_spread_evenly_and_keeps_within_its_bounds() {
    let direction = Direction { jitter: ms(2), ..wide(1_000 * MBIT, ms(10)) };
    let mut link = link(direction);
    // Far apart, so that order asks for nothing.
    let mut buckets = [0_usize; 4];
    for at in 0..40_000 {
        let now = ms(at * 20);
        let Verdict::Arrives(then) = link.offer(now, 125) else { panic!("nothing is lost here") };
        let took = then - now - ns(1_000);
        assert!((ms(8)..=ms(12)).contains(&took), "{took:?}");
        buckets[usize::try_from((took - ms(8)).as_micros() / 1_000).unwrap().min(3)] += 1;
    }
    // 10,000 each; a deviation is 87.
    assert!(buckets.iter().all(|count| count.abs_diff(10_000) < 350), "{buckets:?}");
}

#[test]
fn order_is_kept_with_jitter() {
    let mut link = link(Direction { jitter: ms(10), ..wide(100 * MBIT, ms(10)) });
    let mut last = Duration::ZERO;
    for verdict in verdicts(&mut link, 20_000) {
        let Verdict::Arrives(at) = verdict else { panic!("nothing is lost here") };
        assert!(at >= last, "{at:?} after {last:?}");
        last = at;
    }
}

#[test]
fn a_reordered_packet_skips_the_delay_and_nobody_waits_for_it() {
    let share = 0.02;
    let mut link = link(Direction { reorder: share, ..wide(100 * MBIT, ms(10)) });
    let mut overtaking = 0;
    for (at, verdict) in (1..).zip(verdicts(&mut link, 50_000)) {
        let sent = ns(at * 120_000);
        match verdict {
            Verdict::Arrives(then) => assert_eq!(then, sent + ms(10)),
            Verdict::Overtakes(then) => {
                assert_eq!(then, sent);
                overtaking += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    // 1,000; a deviation is 31.
    assert!(1_000_i32.abs_diff(overtaking) < 95, "{overtaking}");
}

#[test]
fn the_same_seed_gives_the_same_verdicts_and_another_one_others() {
    let direction = Direction {
        jitter: ms(2),
        loss: Loss::Independent(0.1),
        reorder: 0.1,
        ..wide(100 * MBIT, ms(5))
    };
    let run = |seed| verdicts(&mut Link::new(direction, seed).unwrap(), 1_000);
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn which_packets_are_lost_depends_on_nothing_but_the_seed_and_their_number() {
    let direction = Direction { loss: Loss::Independent(0.1), ..wide(100 * MBIT, ms(5)) };
    let jittery = Direction { jitter: ms(5), reorder: 0.3, ..direction };
    let lost = |direction: Direction, pause: u64| {
        let mut link = link(direction);
        let verdicts = (0..5_000).map(|at| link.offer(ns(at * pause), 100 + at as usize % 1_000));
        verdicts.map(|verdict| verdict == Verdict::Lost).collect::<Vec<_>>()
    };
    assert_eq!(lost(direction, 10_000), lost(jittery, 333_333));
}

#[test]
fn a_change_keeps_what_is_queued_in_its_order() {
    let mut link = link(wide(8 * MBIT, ms(100)));
    assert_eq!(link.offer(ns(0), 1_000), Verdict::Arrives(ms(101)));
    link.set(wide(80 * MBIT, ms(1))).unwrap();
    // It is sent behind the first, at the new rate, and does not overtake it.
    assert_eq!(link.offer(ns(0), 1_000), Verdict::Arrives(ms(101)));
    assert_eq!(link.offer(ms(200), 1_000), Verdict::Arrives(ms(201) + ns(100_000)));
    link.set(wide(8 * MBIT, ms(1))).unwrap();
    assert_eq!(link.offer(ms(200), 1_000), Verdict::Arrives(ms(202) + ns(100_000)));
}

#[test]
fn a_cleared_link_is_idle() {
    let mut link = link(Direction { queue: 1_500, ..Direction::new(8 * MBIT, ms(100)) });
    link.offer(ms(1), 1_500);
    assert_eq!(link.offer(ms(1), 1_500), Verdict::Full);
    link.clear();
    assert_eq!(link.offer(ms(1), 1_500), Verdict::Arrives(ms(102) + ns(500_000)));
}

#[test]
fn directions_that_cannot_be_are_refused_in_words() {
    let fine = Direction::new(100 * MBIT, ms(10));
    let refused = [
        (Direction { rate: 0, ..fine }, "a rate of 0bit"),
        (Direction { delay: Duration::from_secs(61), ..fine }, "a delay of 61s"),
        (Direction { jitter: ms(11), ..fine }, "jitter of 11ms is above the delay of 10ms"),
        (Direction { reorder: 1.1, ..fine }, "reordering of 1.1"),
        (Direction { loss: Loss::Independent(f64::NAN), ..fine }, "loss of NaN"),
        (Direction { loss: Loss::Bursts { share: 0.1, length: 0.5 }, ..fine }, "a run of 0.5"),
        (Direction { loss: Loss::Bursts { share: 0.9, length: 2.0 }, ..fine }, "0.667 is the most"),
        (Direction { loss: Loss::Bursts { share: 1.0, length: 2.0 }, ..fine }, "cannot make 1"),
        (Direction { queue: 1 << 30, ..fine }, "choose a lower"),
        (Direction::new(100_000 * MBIT, ms(1_000)), "choose a lower"),
    ];
    assert_eq!(fine.check(), Ok(()));
    for (direction, words) in refused {
        let why = direction.check().unwrap_err();
        assert!(why.contains(words), "{why:?} does not say {words:?}");
        assert!(Link::new(direction, 1).is_err());
    }
}

#[test]
fn the_queue_that_is_chosen_holds_a_round_trip_or_twenty_milliseconds() {
    assert_eq!(Direction::new(100 * MBIT, ms(50)).queue, 1_250_000);
    assert_eq!(Direction::new(100 * MBIT, ns(100_000)).queue, 250_000);
    assert_eq!(Direction::new(1_000, ms(1)).queue, 15_000);
}
