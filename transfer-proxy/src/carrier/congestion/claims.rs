//! What the controller promises, held in virtual time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, CubicConfig, NewRenoConfig};

use super::bench::{Congestion, Outcome, Path, Plan, Report, run};
use super::tolerant::{FIRST_PACKETS, Tolerant};
use super::{Factory, OPEN_WINDOW_BYTES, let_last_word_pass};

const MIB: u64 = 1 << 20;
const RTTS: [Duration; 3] =
    [Duration::from_micros(200), Duration::from_millis(20), Duration::from_millis(100)];
const LOSSES: [f64; 3] = [0.0, 0.01, 0.05];

/// More than any world here has time for.
const ENDLESS: u64 = 1 << 40;

fn ours() -> Congestion {
    Arc::new(Factory)
}

fn cubic() -> Congestion {
    Arc::new(CubicConfig::default())
}

fn new_reno() -> Congestion {
    Arc::new(NewRenoConfig::default())
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The time for 64 MiB over `path`, handshake and headers included, as a multiple of size by rate
/// by what is not lost. None if it takes longer than half a minute, which is five times the ideal.
fn multiple(congestion: &Congestion, path: &Path) -> Option<f64> {
    let report = run(path, secs(30), &[Plan::new(congestion, 64 * MIB)]);
    let ideal = (64 * MIB) as f64 * 8.0 / (path.rate[0].1 * (1.0 - path.loss));
    report.flows[0].took.map(|took| took.as_secs_f64() / ideal)
}

/// The median of three seeds: one lost packet of the handshake, or the very last one, costs 300 ms
/// under any control.
fn median_multiple(path: &Path) -> f64 {
    let mut all: Vec<f64> = (1..=3)
        .map(|seed| multiple(&ours(), &path.clone().seeded(seed)).expect("it ends"))
        .collect();
    all.sort_by(f64::total_cmp);
    all[1]
}

/// One endless flow of ours.
fn alone(path: &Path, until: Duration) -> Report {
    run(path, until, &[Plan::new(&ours(), ENDLESS)])
}

/// The share of the first of two flows between two moments.
fn share(flows: &[Outcome], from: Duration, to: Duration) -> f64 {
    let [first, second] = [0, 1].map(|flow| flows[flow].mbit(from, to));
    first / (first + second)
}

#[test]
fn neither_loss_nor_distance_costs_much_time() {
    for rtt in RTTS {
        let most = if rtt < ms(50) { 1.10 } else { 1.20 };
        let times: Vec<f64> = LOSSES
            .iter()
            .map(|loss| {
                let found = median_multiple(&Path::new(100.0, rtt).losing(*loss));
                assert!(found <= most, "{found} times the ideal at {rtt:?}, loss {loss}");
                found / (1.0 - loss)
            })
            .collect();
        let growth = times[2] / times[0];
        assert!(growth <= 1.12, "5 % loss makes it {growth} times as long at {rtt:?}");
    }
}

#[test]
#[allow(clippy::print_stdout, reason = "the table is for who asks for it, with --nocapture")]
fn no_other_controller_is_clearly_faster_in_any_cell() {
    let others: [(&str, Congestion); 3] =
        [("cubic", cubic()), ("NewReno", new_reno()), ("BBR", Arc::new(BbrConfig::default()))];
    println!(
        "{:>8} {:>5} {:>8} {:>8} {:>8} {:>8}",
        "rtt", "loss", "ours", "cubic", "NewReno", "BBR"
    );
    for rtt in RTTS {
        for loss in LOSSES {
            let path = Path::new(100.0, rtt).losing(loss);
            let ours = multiple(&ours(), &path).expect("it ends");
            print!("{:>8} {loss:>5} {ours:>8.3}", format!("{rtt:?}"));
            for (name, other) in &others {
                let other = multiple(other, &path).unwrap_or(f64::INFINITY);
                print!(" {other:>8.3}");
                assert!(ours < 1.05 * other, "{name} takes {other}, ours {ours}: {rtt:?}, {loss}");
            }
            println!();
        }
    }
}

#[test]
fn two_flows_share_alike_whoever_was_first() {
    for rtt in RTTS {
        for late in [0, 5] {
            let second = Plan::new(&ours(), ENDLESS).starting(secs(late));
            let path = Path::new(100.0, rtt);
            let report = run(&path, secs(25), &[Plan::new(&ours(), ENDLESS), second]);
            let found = share(&report.flows, secs(15), secs(25));
            // Over 0.2 ms the path holds two packets, and whoever comes late finds it full of the
            // smallest window of the other.
            let least = if rtt < Duration::from_millis(1) && late > 0 { 0.3 } else { 0.4 };
            assert!((least..=1.0 - least).contains(&found), "{found} at {rtt:?}, {late} s later");
        }
    }
}

/// Both beside each other on a clean path with a queue of one product, from so many seconds on.
fn beside(other: &Congestion, rtt: Duration, ours_at: u64, other_at: u64, until: u64) -> Report {
    let plans = [
        Plan::new(&ours(), ENDLESS).starting(secs(ours_at)),
        Plan::new(other, ENDLESS).starting(secs(other_at)),
    ];
    run(&Path::new(100.0, rtt), secs(until), &plans)
}

#[test]
fn beside_cubic_neither_gets_less_than_a_quarter() {
    for rtt in RTTS {
        for (ours_at, cubic_at) in [(0, 0), (0, 5), (5, 0)] {
            let flows = beside(&cubic(), rtt, ours_at, cubic_at, 25).flows;
            let whole = share(&flows, secs(5), secs(25));
            let what = format!("at {rtt:?}, ours from {ours_at} s, cubic from {cubic_at} s");
            assert!((0.25..=0.75).contains(&whole), "{whole} {what}");
            // Nor does whoever comes late have to wait for it.
            let first = share(&flows, secs(7), secs(15));
            assert!((0.2..=0.8).contains(&first), "{first} in the first seconds {what}");
        }
    }
}

#[test]
fn beside_new_reno_neither_gets_less_than_a_quarter() {
    for rtt in RTTS {
        // At 100 ms NewReno needs half a minute to grow to its share of an empty path.
        let until = if rtt < ms(50) { 25 } else { 40 };
        let found = share(&beside(&new_reno(), rtt, 0, 0, until).flows, secs(5), secs(until));
        assert!((0.25..=0.75).contains(&found), "{found} at {rtt:?}");
    }
}

#[test]
fn alone_it_fills_the_link_and_hardly_the_queue() {
    for rtt in RTTS {
        let report = alone(&Path::new(100.0, rtt).with_queue(4.0), secs(13));
        let got = report.flows[0].mbit(secs(2), secs(13));
        assert!(got >= 95.0, "{got} Mbit/s at {rtt:?}");
        let queue = report.queue_quantile(secs(2), secs(13), 0.99);
        assert!(queue <= ms(10), "{queue:?} at {rtt:?}");
    }
}

#[test]
fn a_queue_too_short_to_be_felt_is_not_flooded() {
    for rtt in RTTS {
        let report = alone(&Path::new(100.0, rtt).with_queue(0.1), secs(10));
        let got = report.flows[0].mbit(secs(2), secs(10));
        assert!(got >= 94.0, "{got} Mbit/s at {rtt:?}");
        let lost = report.overflowed as f64 / report.flows[0].sent_packets as f64;
        assert!(lost < 0.25, "{lost} of the packets found the queue full at {rtt:?}");
    }
}

#[test]
fn a_change_of_the_rate_is_followed() {
    for rtt in RTTS {
        let mut path = Path::new(100.0, rtt);
        path.rate = vec![(secs(0), 100e6), (secs(5), 25e6), (secs(10), 100e6), (secs(15), 200e6)];
        let report = alone(&path, secs(19));
        // Twenty round trips, or half a second.
        let grace = (20 * rtt).max(ms(500));
        for (from, to, rate) in [(5, 10, 25.0), (10, 15, 100.0), (15, 19, 200.0)] {
            let got = report.flows[0].mbit(secs(from) + grace, secs(to));
            assert!(got >= 0.9 * rate, "{got} of {rate} Mbit/s at {rtt:?}");
        }
        let queue = report.queue_quantile(secs(5) + grace, secs(10), 0.95);
        assert!(queue <= ms(20), "{queue:?} after the path became slower, at {rtt:?}");
    }
}

#[test]
fn what_the_application_did_not_send_is_not_held_against_the_path() {
    for rtt in RTTS {
        let sparing = Plan {
            // 20 Mbit/s, then everything.
            offered: |time| {
                let steady = (time.as_secs_f64() * 2.5e6) as u64;
                if time < Duration::from_secs(6) { steady } else { ENDLESS }
            },
            ..Plan::new(&ours(), ENDLESS)
        };
        let silent = Plan {
            offered: |time| if time < Duration::from_secs(6) { 20 * MIB } else { ENDLESS },
            ..Plan::new(&ours(), ENDLESS)
        };
        for (what, plan) in [("sparing", sparing), ("silent", silent)] {
            let report = run(&Path::new(100.0, rtt), secs(9), &[plan]);
            let got = report.flows[0].mbit(secs(7), secs(9));
            assert!(got >= 90.0, "{got} Mbit/s after a {what} application, at {rtt:?}");
        }
    }
}

#[test]
fn an_outage_is_over_when_it_is_over() {
    for rtt in RTTS {
        let mut path = Path::new(100.0, rtt);
        path.outage = Some((secs(3), ms(300)));
        let report = alone(&path, secs(9));
        for from in [4, 7] {
            let got = report.flows[0].mbit(secs(from), secs(from + 2));
            assert!(got >= 90.0, "{got} Mbit/s at {rtt:?}");
        }
    }
}

#[test]
fn a_loss_of_three_in_ten_is_borne() {
    for rtt in RTTS {
        let report = alone(&Path::new(100.0, rtt).losing(0.3), secs(10));
        let got = report.flows[0].mbit(secs(2), secs(10));
        assert!(got >= 20.0, "{got} Mbit/s at {rtt:?}");
    }
}

#[test]
fn acknowledgements_may_be_lost_or_come_in_heaps() {
    for rtt in [RTTS[1], RTTS[2]] {
        let mut lossy = Path::new(100.0, rtt);
        lossy.loss_back = 0.5;
        let mut gathering = Path::new(100.0, rtt);
        gathering.gather = Some(ms(10));
        for (what, path) in [("lost", lossy), ("gathered", gathering)] {
            let got = alone(&path, secs(8)).flows[0].mbit(secs(3), secs(8));
            assert!(got >= 85.0, "{got} Mbit/s at {rtt:?}, acknowledgements {what}");
        }
    }
}

#[test]
fn fast_links_are_filled() {
    let links = [(1e3, Duration::from_micros(100), 600), (1e3, ms(20), 1200), (1e4, ms(1), 300)];
    for (mbit, rtt, until) in links {
        // A switch has a megabyte or so.
        let mut path = Path::new(mbit, rtt);
        path.queue = path.queue.max(1 << 20);
        let report = alone(&path, ms(until));
        let got = report.flows[0].mbit(ms(until / 2), ms(until));
        assert!(got >= 0.85 * mbit, "{got} of {mbit} Mbit/s at {rtt:?}");
    }
}

#[test]
fn a_window_that_nobody_fills_does_not_grow() {
    const IN_FLIGHT: u64 = 100 * 1200;
    let mut now = Instant::now();
    let mut controller = Tolerant::new(now, 1200);
    // A path of 20 ms whose round trip is 60 ms later on, whatever is sent: that looks like a
    // neighbour. What limits the rate is the application, and quinn does not always say so.
    for round in 0..400 {
        let sent = now;
        now += ms(if round < 10 { 20 } else { 60 });
        controller.round.delivered += IN_FLIGHT;
        controller.batch = Some((sent, IN_FLIGHT));
        controller.on_end_acks(now, 0, false, None);
        assert!(controller.window() <= 8 * IN_FLIGHT, "{} in {round}", controller.window());
    }
}

#[test]
fn small_packets_only_are_no_hindrance() {
    let mut path = Path::new(100.0, ms(20)).losing(0.01);
    path.mtu = 1280;
    let got = alone(&path, secs(5)).flows[0].mbit(secs(2), secs(5));
    assert!(got >= 90.0, "{got} Mbit/s");
}

#[test]
fn the_window_opens_for_the_last_word() {
    let controller = Arc::new(Factory).build(Instant::now(), 1200);
    assert_eq!(controller.window(), FIRST_PACKETS * 1200);
    let_last_word_pass(controller.clone_box());
    assert_eq!(controller.window(), OPEN_WINDOW_BYTES);
}
