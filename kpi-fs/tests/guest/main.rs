//! `kpi-fs` in a real guest: QEMU, Debian's kernel, a port, and a host that comes and goes.
//!
//! The guest is made by `cargo xtask guest-image`: it mounts the file system and runs an
//! application that writes a row of the table `web` about once a second.
//! Where it or QEMU is missing, a test says so and passes, unless `SOJOURN_REQUIRE` names `qemu`.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

mod host;
mod machine;

use std::collections::BTreeMap;

use host::{Host, Row};
use machine::{Machine, Port};

/// Rows whose numbers follow each other without a gap, from `first` on.
fn assert_whole(rows: &[Row], first: i64) {
    let numbers: Vec<i64> = rows.iter().map(|row| row.seq).collect();
    let expected: Vec<i64> = (first..).take(rows.len()).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn rows_of_a_guests_application_arrive_in_order_without_gaps_and_are_acknowledged() {
    let Some(mut machine) = Machine::new(Port::Open) else { return };
    machine.boot();
    let mut host = Host::connect(&machine, 0);
    let mut rows = host.rows(5);
    while rows.last().unwrap().number("current_users") < 100 {
        rows.extend(host.rows(1));
    }
    assert_whole(&rows, 1);
    assert!(rows.iter().all(|row| row.table == "web"), "{rows:?}");
    assert!(rows.is_sorted_by_key(|row| (row.saved_ms, row.number("requests"))), "{rows:?}");
    // 25 users come with each second that the guest counts.
    let counter = machine.beat(|_| true).counter;
    let users = rows.last().unwrap().number("current_users");
    assert!(
        users.is_multiple_of(25) && users <= 25 * counter,
        "{users} users after {counter} counts"
    );
    // For a number that was never given, the answer is the one that was acknowledged.
    let last = rows.last().unwrap().seq;
    host.acknowledge(last);
    assert_eq!(host.ask(1_000_000), last);
    assert_whole(&host.rows(2), last + 1);
}

#[test]
fn a_host_that_goes_in_the_middle_of_a_word_and_comes_back_has_lost_nothing() {
    let Some(mut machine) = Machine::new(Port::Open) else { return };
    machine.boot();
    let mut host = Host::connect(&machine, 0);
    let seen = host.rows(6);
    assert_whole(&seen, 1);
    host.acknowledge(4);
    host.say("{\"after\":1");
    drop(host);
    let counter = machine.beat(|_| true).counter;
    machine.beat(|beat| beat.counter >= counter + 6);
    // Only what was not acknowledged comes again, and it is the same.
    let mut host = Host::connect(&machine, 4);
    let rows = host.rows(10);
    assert_whole(&rows, 5);
    assert_eq!(rows[..2], seen[4..]);
    // A newer host that has less gets all.
    drop(host);
    let all = Host::connect(&machine, 0).rows(14);
    assert_whole(&all, 1);
    assert_eq!([&seen[..], &rows[2..]].concat(), all);
}

#[test]
fn after_a_power_cut_every_row_that_a_host_saw_is_there_and_numbers_go_on() {
    let Some(mut machine) = Machine::new(Port::Open) else { return };
    machine.boot();
    let mut host = Host::connect(&machine, 0);
    let seen = host.rows(8);
    host.acknowledge(5);
    let before = machine.beat(|_| true);
    machine.cut_power();
    drop(host);
    machine.boot();
    let mut host = Host::connect(&machine, 0);
    let again = host.rows(seen.len());
    assert_eq!(again, seen);
    // What follows was stored before the cut and not seen, or after it; either has new numbers.
    let mut later = host.rows(1);
    let reboot = machine.beat(|beat| beat.boot != before.boot);
    assert!(reboot.since >= before.counter);
    while later.last().unwrap().number("requests") > 2 {
        later.extend(host.rows(1));
    }
    assert_whole(&later, 9);
    // The application counts anew: what comes now is written by the second life.
    let newest = host.rows(3);
    assert_whole(&newest, later.last().unwrap().seq + 1);
}

#[test]
fn a_guest_that_is_saved_and_loaded_again_goes_on_from_where_the_host_says() {
    let Some(mut machine) = Machine::new(Port::Open) else { return };
    machine.boot();
    let mut host = Host::connect(&machine, 0);
    let mut seen: BTreeMap<i64, Row> = BTreeMap::new();
    seen.extend(host.rows(5).into_iter().map(|row| (row.seq, row)));
    host.acknowledge(2);
    let before = machine.beat(|_| true);
    // The host does not read meanwhile, so that there is something on its way.
    machine.beat(|beat| beat.counter >= before.counter + 3);
    machine.save();
    drop(host);
    machine.load();
    let mut host = Host::connect(&machine, 2);
    let rows = host.rows(10);
    assert_whole(&rows, 3);
    for row in &rows {
        assert!(seen.get(&row.seq).is_none_or(|known| known == row), "{row:?}");
    }
    let after = machine.beat(|beat| beat.counter > before.counter + 3);
    assert_eq!((&after.boot, after.since), (&before.boot, before.since), "it has booted");
    assert_eq!(after.counter, after.since + after.uptime);
}

#[test]
fn a_guest_without_a_port_counts_and_does_nothing_else() {
    let Some(mut machine) = Machine::new(Port::None) else { return };
    machine.boot();
    let beat = machine.beat(|beat| beat.uptime >= 8);
    assert_eq!((beat.counter, beat.since), (beat.uptime, 0));
    let console = machine.console();
    let others = console.lines().filter(|line| !line.starts_with("sojourn-guest counter="));
    let others: Vec<&str> = others.filter(|line| line.starts_with("sojourn-guest")).collect();
    assert_eq!(others, [format!("sojourn-guest booted boot={}", beat.boot)], "{console}");
}
