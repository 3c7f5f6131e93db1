//! Real guests under QEMU: the demo's journey, step by step, and what kills leave.
//!
//! The guest counts on its disk and in its memory, as [`Line`] tells.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::time::Duration;

use federation_tests::process::{Federation, Guest, Line, guest_disk, missing};
use rustix::process::{Signal, kill_process};

/// How long a guest may take to boot or to be moved: without KVM it is slow.
const SLOW: Duration = Duration::from_secs(120);

/// A chain of sites with real hosts, and the guest's VM in the library of the first.
fn real(names: &[&str]) -> Option<(Federation, String)> {
    let disk = guest_disk().map_err(|why| missing("qemu", why)).ok()?;
    let mut federation = Federation::new();
    for name in names {
        federation.add_real(name).start();
    }
    for pair in names.windows(2) {
        federation.join(pair[0], pair[1]);
    }
    let package = federation.package("web", Some(&disk));
    let vm = federation[names[0]].done(&["vm", "import", package.to_str().unwrap()]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    Some((federation, vm))
}

/// Waits until the one guest is at a site and has counted on, and returns what it says.
fn counts(federation: &Federation, vm: &str, site: &str, beyond: u64) -> Line {
    federation.wait_for(&format!("it counts beyond {beyond} at {site}"), SLOW, || {
        federation.assert_one_runs(vm);
        let guest = federation.runs_at(vm, site).ok_or("there is no guest")?;
        let console = guest.console();
        for line in console.lines().filter_map(Line::read) {
            assert!(line.is_whole(), "disk and memory differ: {line:?}");
        }
        let last = console.lines().filter_map(Line::read).next_back();
        last.filter(|line| line.counter > beyond).ok_or_else(|| console.clone())
    })
}

fn guest(federation: &Federation, vm: &str, site: &str) -> Guest {
    federation.runs_at(vm, site).expect("it was seen there")
}

#[test]
fn a_guest_is_placed_through_an_intermediary_moved_evicted_and_comes_home_with_its_memory() {
    let Some((federation, vm)) = real(&["a", "b", "c"]) else { return };
    federation["c"].host("c1", 1);
    federation["a"].done(&["vm", "place", "web"]);
    let first = counts(&federation, &vm, "c", 2);
    let moved = |site: &str, host: &str, before: &Line| {
        let line = counts(&federation, &vm, site, before.counter + 1);
        assert_eq!(guest(&federation, &vm, site).host(), host);
        assert_eq!((&line.boot, line.since), (&before.boot, before.since), "it booted again");
        line
    };
    federation.settle(&vm, "c", true, &["a", "b", "c"]);

    federation["c"].host("c2", 1);
    federation["c"].done(&["host", "drain", "c1"]);
    let second = moved("c", "c2", &first);

    federation["b"].host("b1", 1);
    federation["c"].done(&["vm", "evict", "web", "--reason", "closing"]);
    let third = moved("b", "b1", &second);
    federation.settle(&vm, "b", true, &["a", "b"]);

    federation["a"].host("a1", 1);
    federation["a"].done(&["vm", "migrate", "web", "--local-only"]);
    moved("a", "a1", &third);
    federation.settle(&vm, "a", true, &["a"]);

    federation["a"].done(&["vm", "destroy", "web", "--yes"]);
    federation.settle_destroyed(&vm);
}

#[test]
fn a_guest_goes_on_when_its_node_is_killed_and_is_adopted_by_the_next() {
    let Some((federation, vm)) = real(&["a"]) else { return };
    federation["a"].host("a1", 1);
    federation["a"].done(&["vm", "place", "web"]);
    let before = counts(&federation, &vm, "a", 1);
    let process = guest(&federation, &vm, "a").process();
    federation["a"].kill();
    let meanwhile = counts(&federation, &vm, "a", before.counter + 1);
    assert_eq!(meanwhile.boot, before.boot);
    federation["a"].start();
    assert_eq!(guest(&federation, &vm, "a").process(), process, "it is the same process");
    assert_eq!(federation["a"].done(&["vm", "show", "web"])["state"], "running");

    federation["a"].done(&["vm", "pause", "web"]);
    federation["a"].crash();
    assert_eq!(federation["a"].done(&["vm", "show", "web"])["state"], "paused");
    federation["a"].done(&["vm", "resume", "web"]);
    counts(&federation, &vm, "a", meanwhile.counter + 1);

    federation["a"].done(&["vm", "hibernate", "web"]);
    assert!(federation.guests(&vm).is_empty());
    federation["a"].crash();
    federation["a"].done(&["vm", "start", "web"]);
    let after = counts(&federation, &vm, "a", meanwhile.counter + 2);
    assert_eq!(after.boot, before.boot, "its memory was kept");
}

#[test]
fn a_guest_whose_process_is_killed_is_shown_as_stopped_and_boots_again_from_its_disk() {
    let Some((federation, vm)) = real(&["a"]) else { return };
    federation["a"].host("a1", 1);
    federation["a"].done(&["vm", "place", "web"]);
    let before = counts(&federation, &vm, "a", 1);
    let process = guest(&federation, &vm, "a").process().expect("a real guest is a process");
    kill_process(process, Signal::KILL).unwrap();
    federation.wait_for("it is shown as stopped", Duration::from_secs(10), || {
        let shown = federation["a"].done(&["vm", "show", "web"]);
        if shown["state"] == "stopped" { Ok(()) } else { Err(shown.to_string()) }
    });
    federation["a"].done(&["vm", "start", "web"]);
    let after = counts(&federation, &vm, "a", before.counter);
    assert_ne!(after.boot, before.boot, "a new boot");
    assert!(after.since >= before.counter, "its disk is the newest: {before:?} {after:?}");
    federation["a"].done(&["vm", "stop", "web"]);
    federation.settle(&vm, "a", false, &["a"]);
}
