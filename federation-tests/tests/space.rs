//! Full disks: at the Destination, at the Source, and under the journal. The error is clear, the
//! guest goes on where it was, and the same can be done again once there is space.
//!
//! Each place is a small file system of its own, which needs root.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::time::Duration;

use federation_tests::process::{Federation, SOON, Small};

/// Waits until the VM runs at a site, and returns what its memory holds.
fn boot(federation: &Federation, vm: &str, site: &str) -> String {
    federation.wait_for(&format!("it runs at {site}"), SOON, || {
        federation.assert_one_runs(vm);
        federation.runs_at(vm, site).map(|guest| guest.boot).ok_or(String::new())
    })
}

#[test]
fn a_destination_without_space_gives_the_transfer_up_and_the_guest_goes_on() {
    let federation = Federation::chain(&["a", "b"]);
    federation["a"].host("a1", 1);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web", "--local-only"]);
    let before = boot(&federation, &vm, "a");
    let Some(small) = Small::over(&federation["b"].folder().join("hosts"), 512) else { return };
    federation["b"].host("b1", 1);

    let failed = federation["a"].run(&["vm", "migrate", "web", "--peer", "b"]);
    failed.says(1, &["given up, the VM is where it was", "space"]);
    let events = federation["b"].done(&["vm", "events", &vm]).to_string();
    assert!(events.contains("space"), "its own operator learns why: {events}");
    assert_eq!(boot(&federation, &vm, "a"), before, "it goes on with its memory");
    federation.settle(&vm, "a", true, &["a"]);
    drop(small);

    federation["b"].done(&["host", "add", "b1", "--cpus", "1", "--memory", "128M"]);
    federation["a"].done(&["vm", "migrate", "web", "--peer", "b"]);
    assert_eq!(boot(&federation, &vm, "b"), before);
    federation.settle(&vm, "b", true, &["a", "b"]);
}

#[test]
fn a_source_without_space_for_the_run_state_keeps_its_guest_running() {
    let mut federation = Federation::new();
    let hosts = federation.add("a").folder().join("hosts");
    let Some(small) = Small::over(&hosts, 4096) else { return };
    federation.add("b");
    federation["a"].start();
    federation["b"].start();
    federation.join("a", "b");
    federation["a"].host("a1", 1);
    federation["b"].host("b1", 1);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web", "--local-only"]);
    let before = boot(&federation, &vm, "a");
    federation.settle(&vm, "a", true, &["a"]);

    small.fill();
    let failed = federation["a"].run(&["vm", "hibernate", "web"]);
    failed.says(1, &["No space left"]);
    let failed = federation["a"].run(&["vm", "migrate", "web", "--peer", "b"]);
    failed.says(1, &["given up, the VM is where it was"]);
    small.free();
    assert_eq!(boot(&federation, &vm, "a"), before, "it goes on with its memory");
    federation["a"].done(&["vm", "migrate", "web", "--peer", "b"]);
    assert_eq!(boot(&federation, &vm, "b"), before);
    federation.settle(&vm, "b", true, &["a", "b"]);
}

#[test]
fn a_node_whose_journal_has_no_space_ends_and_goes_on_when_there_is_some() {
    let mut federation = Federation::new();
    let folder = federation.folder().join("a");
    let Some(small) = Small::over(&folder, 8192) else { return };
    federation.add("a").start();
    federation.add("b").start();
    federation.join("a", "b");
    federation["b"].host("b1", 1);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web"]);
    let before = boot(&federation, &vm, "b");
    federation.settle(&vm, "b", true, &["a", "b"]);

    small.fill();
    // Every change needs a row; sooner or later there is no room for one.
    federation.wait_for("the node ends", Duration::from_secs(60), || {
        federation["a"].run(&["vm", "place", "web", "--peer", "b", "--dry-run"]);
        if federation["a"].has_died() { Ok(()) } else { Err("it still runs".to_owned()) }
    });
    let log = federation["a"].log_text();
    assert!(log.contains("free space"), "{}", federation["a"].log_tail());
    assert_eq!(boot(&federation, &vm, "b"), before, "the VM does not care");

    small.free();
    federation["a"].start();
    federation["a"].host("a1", 1);
    federation["a"].done(&["vm", "migrate", "web", "--local-only"]);
    assert_eq!(boot(&federation, &vm, "a"), before);
    federation.settle(&vm, "a", true, &["a"]);
}
