//! Links as programs see them: round trips, rates, losses, order, cuts, and what is left behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bed;
mod program;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use bed::{DEADLINE, emulator, numbers, round_trips, send, tcp, udp, wait_until};
use testbed::emulator::DEVICE;
use testbed::link::{Link, Verdict};
use testbed::{Direction, Ends, Loss, Settings, Side, Way};

const MBIT: u64 = 1_000_000;
/// Bytes of IP and UDP headers.
const HEADERS: usize = 28;

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

#[test]
fn pings_take_the_round_trip_that_was_asked_for() {
    /// How much faster or slower one half of the pings may be: what is late is made good by estimate.
    const FASTER: Duration = Duration::from_micros(80);
    const SLOWER: Duration = Duration::from_micros(400);
    for asked in [Duration::from_micros(200), ms(20), ms(100)] {
        let Some(link) = emulator(Settings::new(1_000 * MBIT, asked)) else { return };
        let until = Instant::now() + DEADLINE;
        loop {
            let count = if asked > ms(1) { 9 } else { 99 };
            let times = round_trips(&link, count);
            let median = times[times.len() / 2];
            assert!(median + FASTER > asked, "{median:?}, asked for {asked:?}");
            if median < asked + SLOWER {
                break;
            }
            // Another program had the processors.
            assert!(Instant::now() < until, "{median:?}, asked for {asked:?}");
        }
    }
}

#[test]
fn a_flood_at_twice_the_rate_arrives_at_the_rate() {
    const RATE: u64 = 50 * MBIT;
    const COUNT: u32 = 10_000;
    // It lasts for 170 ms in which a busy machine may forget the sender.
    let direction = Direction { queue: 1 << 20, ..Direction::new(RATE, ms(1)) };
    let Some(link) = emulator(Settings::both(direction)) else { return };
    let (from, to) = (udp(&link, Side::A), udp(&link, Side::B));
    let (arrived, took) = std::thread::scope(|scope| {
        scope.spawn(|| {
            send(&from, &to, 0..COUNT, 1_500 - HEADERS, Some(2 * RATE));
            // The last word, which finds an empty queue.
            wait_until("the line is idle", || {
                let counted = link.counters().forward;
                counted.packets + counted.full == u64::from(COUNT)
            });
            send(&from, &to, COUNT..COUNT + 1, 4, None);
        });
        let mut buffer = [0; 2_000];
        let (mut arrived, mut begun, mut last) = (0_u64, None, Instant::now());
        while to.recv(&mut buffer).unwrap() > 4 {
            last = Instant::now();
            begun.get_or_insert(last);
            arrived += 1;
        }
        (arrived, last - begun.unwrap())
    });
    let counted = link.counters().forward;
    assert_eq!(counted.missed, 0, "{counted:?}");
    assert_eq!(counted.packets, arrived + 1);
    assert!(counted.full > u64::from(COUNT) / 3, "{counted:?}");
    let rate = (arrived - 1) as f64 * 12_000.0 / took.as_secs_f64() / RATE as f64;
    assert!((0.97..1.03).contains(&rate), "{rate} of the rate");
}

#[test]
fn losses_are_as_many_as_asked_for_and_the_same_ones_by_the_same_seed() {
    const COUNT: u32 = 20_000;
    let direction =
        Direction { loss: Loss::Independent(0.05), ..Direction::new(200 * MBIT, ms(1)) };
    let run = |seed| {
        let link = emulator(Settings { seed, ..Settings::both(direction) })?;
        let (from, to) = (udp(&link, Side::A), udp(&link, Side::B));
        send(&from, &to, 0..COUNT, 100, Some(50 * MBIT));
        wait_until("all have arrived or are lost", || {
            let counted = link.counters().forward;
            counted.packets + counted.lost == u64::from(COUNT)
        });
        let arrived: BTreeSet<u32> = numbers(&to, link.counters().forward.packets).collect();
        Some(arrived)
    };
    let Some(first) = run(7) else { return };
    let lost = f64::from(COUNT) - first.len() as f64;
    let (mean, deviation) = (1_000.0, 30.8);
    assert!((lost - mean).abs() < 3.0 * deviation, "{lost} were lost");
    assert_eq!(run(7).as_ref(), Some(&first));
    assert_ne!(run(8).as_ref(), Some(&first));
}

#[test]
fn one_tcp_connection_fills_a_clean_link() {
    const BYTES: usize = 25_000_000;
    let Some(link) = emulator(Settings::new(100 * MBIT, ms(10))) else { return };
    let until = Instant::now() + DEADLINE;
    loop {
        let (mut from, mut to) = tcp(&link);
        let took = std::thread::scope(|scope| {
            scope.spawn(move || from.write_all(&vec![7; BYTES]).unwrap());
            let begun = Instant::now();
            let mut some = vec![0; 1 << 16];
            let mut left = BYTES;
            while left > 0 {
                let count = to.read(&mut some).unwrap();
                assert!(count > 0, "the connection ended {left} bytes too early");
                left -= count;
            }
            begun.elapsed()
        });
        let share = BYTES as f64 * 8.0 / took.as_secs_f64() / 100e6;
        // Headers take 3.5 %.
        assert!(share < 0.97, "{share} of the rate; {:?}", link.counters());
        if share > 0.9 {
            return;
        }
        // Another program had the processors.
        assert!(Instant::now() < until, "{share} of the rate; {:?}", link.counters());
    }
}

#[test]
fn order_is_kept_with_jitter() {
    let direction = Direction { jitter: ms(5), ..Direction::new(100 * MBIT, ms(5)) };
    let Some(link) = emulator(Settings::both(direction)) else { return };
    let (from, to) = (udp(&link, Side::B), udp(&link, Side::A));
    send(&from, &to, 0..2_000, 100, Some(5 * MBIT));
    let arrived: Vec<u32> = numbers(&to, 2_000).collect();
    assert!(arrived.is_sorted(), "{arrived:?}");
    assert_eq!(arrived.len(), 2_000);
}

#[test]
fn reordered_packets_overtake_and_none_is_lost() {
    let direction = Direction { reorder: 0.05, ..Direction::new(100 * MBIT, ms(10)) };
    let Some(link) = emulator(Settings::both(direction)) else { return };
    let (from, to) = (udp(&link, Side::A), udp(&link, Side::B));
    send(&from, &to, 0..2_000, 100, Some(5 * MBIT));
    let mut arrived: Vec<u32> = numbers(&to, 2_000).collect();
    let mut highest = 0;
    let overtaken = arrived.iter().filter(|number| {
        highest = highest.max(**number);
        **number < highest
    });
    // 100 overtake on average, each some 80 to 100 others; of some runs of them one is counted.
    let overtaken = overtaken.count();
    assert!(overtaken > 1_000, "{overtaken}");
    arrived.sort_unstable();
    assert!(arrived.into_iter().eq(0..2_000));
}

#[test]
fn a_cut_takes_what_is_under_way_one_direction_at_a_time_and_heals() {
    // Half of the packets take five seconds, the others overtake them.
    let fast = Direction::new(10 * MBIT, ms(1));
    let slow = Direction { reorder: 0.5, ..Direction::new(10 * MBIT, ms(5_000)) };
    let settings = Settings { forward: slow, ..Settings::both(fast) };
    let Some(link) = emulator(settings) else { return };
    let (a, b) = (udp(&link, Side::A), udp(&link, Side::B));
    let mut model = Link::new(slow, settings.seed).unwrap();
    let overtakes = |_: &u32| matches!(model.offer(ms(0), 128), Verdict::Overtakes(_));
    let overtaking: Vec<u32> = (0..20).filter(overtakes).collect();
    assert!((3..17).contains(&overtaking.len()));
    send(&a, &b, 0..20, 100, None);
    assert_eq!(numbers(&b, overtaking.len() as u64).collect::<Vec<_>>(), overtaking);
    // Those that were overtaken are under way.
    link.cut(Way::Forward);
    assert!(link.counters().forward.cut > 0);
    let slower = 20 - overtaking.len() as u64;
    wait_until("all others vanished", || link.counters().forward.cut == slower);
    link.set(fast, fast).unwrap();
    send(&a, &b, 1..2, 100, None);
    wait_until("one more vanished", || link.counters().forward.cut == slower + 1);
    send(&b, &a, 2..3, 100, None);
    assert!(numbers(&a, 1).eq([2]), "the way back is open");
    link.cut(Way::Back);
    send(&b, &a, 3..4, 100, None);
    wait_until("both ways are cut", || link.counters().back.cut == 1);
    link.heal();
    send(&a, &b, 4..5, 100, None);
    send(&b, &a, 5..6, 100, None);
    assert!(numbers(&b, 1).eq([4]));
    assert!(numbers(&a, 1).eq([5]));
    let counted = link.counters();
    assert_eq!((counted.forward.packets, counted.back.packets), (21 - slower, 2));
    assert_eq!(counted.forward.bytes, 128 * (21 - slower));
}

#[test]
fn a_link_is_changed_while_it_runs_or_stays_as_it_was() {
    let Some(link) = emulator(Settings::new(100 * MBIT, ms(1))) else { return };
    let slow = Direction::new(100 * MBIT, ms(40));
    let wrong = Direction { queue: 1_000, ..slow };
    assert!(link.set(slow, wrong).unwrap_err().contains("no room for a packet of 1500"));
    assert!(round_trips(&link, 5)[0] < ms(40));
    link.set(slow, slow).unwrap();
    assert!(round_trips(&link, 5)[0] >= ms(80));
}

#[test]
fn packets_are_no_larger_than_the_mtu_and_hold_what_was_sent() {
    let Some(link) = emulator(Settings { mtu: 600, ..Settings::new(100 * MBIT, ms(1)) }) else {
        return;
    };
    let (mut from, mut to) = tcp(&link);
    let sent: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    let mut got = vec![0; sent.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(&sent).unwrap());
        to.read_exact(&mut got).unwrap();
    });
    assert!(got == sent, "the content is another one");
    let counted = link.counters().forward;
    // 40 bytes of headers at least, so 560 of content at most.
    assert!(counted.packets > 200_000 / 560, "{counted:?}");
    assert!(counted.bytes <= 600 * counted.packets, "{counted:?}");
}

#[test]
fn two_ends_without_a_link_reach_each_other() {
    let ends = match Ends::veth(1_500) {
        Ok(ends) => ends,
        Err(why) => return bed::missing(&why),
    };
    let socket = |side: Side| {
        let made = ends.side(side).inside(|| UdpSocket::bind((side.address(), 0)));
        let socket = made.unwrap().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let (a, b) = (socket(Side::A), socket(Side::B));
    a.send_to(b"one", b.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(b.recv_from(&mut buffer).unwrap(), (3, a.local_addr().unwrap()));
}

#[test]
fn a_link_that_goes_takes_its_devices_and_processes_with_it() {
    let Some(link) = emulator(Settings::new(100 * MBIT, ms(1))) else { return };
    let files = [Side::A, Side::B].map(|side| link.side(side).file());
    // Held open, the namespaces stay, and it can be seen what of the link is in them.
    let held = files.each_ref().map(|file| File::open(file).unwrap());
    assert!(held.iter().all(has_device));
    drop(link);
    for (file, space) in files.iter().zip(&held) {
        assert!(!file.exists(), "its process is still there");
        wait_until("its device goes", || !has_device(space));
    }
}

/// Whether a link's device is in a namespace.
fn has_device(space: &File) -> bool {
    let path = format!("--net=/proc/{}/fd/{}", std::process::id(), space.as_raw_fd());
    let mut command = Command::new("nsenter");
    let found = command.args([&path, "ip", "link", "show", "dev", DEVICE]).output().unwrap();
    let said = String::from_utf8_lossy(&found.stderr).into_owned();
    assert!(found.status.success() || said.contains("does not exist"), "{said}");
    found.status.success()
}

/// Whether a process is there.
fn is_there(process: u32) -> bool {
    // One that has ended and was not waited for yet is in no namespace.
    std::fs::read_link(format!("/proc/{process}/ns/net")).is_ok()
}
