//! What a peer may do, held between real nodes: rights, limits, tickets that grant less than all,
//! and peerings that end without anybody being stranded.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::time::{Duration, Instant};

use federation_tests::process::{Federation, Guest, SOON, Site};
use serde_json::{Value, json};

/// Exit codes of `sojourn`.
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const REFUSED: i32 = 4;
const CONFLICT: i32 = 6;

fn running(federation: &Federation, vm: &str, site: &str) -> Guest {
    federation.wait_for(&format!("{vm} runs at {site}"), SOON, || {
        federation.assert_one_runs(vm);
        federation.runs_at(vm, site).ok_or_else(|| format!("{:#?}", federation.guests(vm)))
    })
}

fn peer(site: &Site, name: &str) -> Option<Value> {
    let all = site.done(&["peer", "list"]);
    all.as_array().unwrap().iter().find(|peer| peer["name"] == name).cloned()
}

fn gone(federation: &Federation, site: &str, name: &str) {
    federation.wait_for(&format!("{name} is no peer of {site}"), SOON, || {
        match peer(&federation[site], name) {
            None => Ok(()),
            Some(peer) => Err(peer.to_string()),
        }
    });
}

#[test]
fn a_peer_that_may_not_place_is_told_so_until_it_may() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 1);
    let vm = federation.import("a", "web");
    let set = b.done(&["peer", "set", "a", "--may", "host"]);
    assert_eq!(set["peering"]["may"], json!(["host"]));
    let refused = a.run(&["vm", "place", "web"]);
    refused.says(REFUSED, &["no place was found", "does not let you place VMs here", "may host"]);
    // What is said of a peer outlives the node.
    b.stop();
    b.start();
    a.run(&["vm", "place", "web"]).says(REFUSED, &["does not let you place VMs here"]);
    b.done(&["peer", "set", "a", "--may", "place"]);
    a.done(&["vm", "place", "web"]);
    federation.settle(&vm, "b", true, &["a", "b"]);
    // What it has placed it may still move, although it may place nothing new.
    let set = b.done(&["peer", "set", "a", "--may", "nothing"]);
    assert_eq!(set["vms_hosted_for"], 1, "it shows what the peer has here");
    b.host("b2", 1);
    b.done(&["host", "drain", "b1"]);
    assert_eq!(running(&federation, &vm, "b").host(), "b2");
}

#[test]
fn a_peer_that_may_not_host_is_not_asked_and_one_that_is_named_all_the_same_is_explained() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 1);
    federation.import("a", "web");
    a.done(&["peer", "set", "b", "--may", "place,intermediate"]);
    a.run(&["vm", "place", "web"]).says(REFUSED, &["no place was found"]);
    let named = a.run(&["vm", "place", "web", "--peer", "b"]);
    named.says(CONFLICT, &["does not let it host", "sojourn peer set b --may"]);
    a.done(&["peer", "set", "b", "--may", "host"]);
    a.done(&["vm", "place", "web", "--dry-run"]);
}

#[test]
fn a_peer_that_may_not_intermediate_is_asked_for_its_own_places_only() {
    let federation = Federation::chain(&["a", "b", "c"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    federation["c"].host("c1", 1);
    let vm = federation.import("a", "web");
    a.done(&["peer", "set", "b", "--may", "host"]);
    a.run(&["vm", "place", "web"]).says(REFUSED, &["no place was found", "no further site"]);
    b.host("b1", 1);
    a.done(&["vm", "place", "web"]);
    federation.settle(&vm, "b", true, &["a", "b"]);
}

#[test]
fn the_limits_of_a_peering_hold_and_a_refusal_quotes_them() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 4);
    federation.import("a", "web");
    federation.package("shop", None);
    let shop = federation.folder().join("shop.ova").display().to_string();
    a.done(&["vm", "import", &shop]);
    for (limit, value, quoted) in [
        ("--vms", "1", "1 of VMs, this would make 2"),
        ("--cpus", "1", "1 of processors, this would make 2"),
        ("--memory", "100M", "100 MiB of memory"),
        ("--disk", "1M", "1 MiB of disk, this would make 2 MiB"),
    ] {
        b.done(&["peer", "set", "a", limit, "any"]);
        if limit != "--memory" {
            a.done(&["vm", "place", "web"]);
        }
        b.done(&["peer", "set", "a", limit, value]);
        let refused = a.run(&["vm", "place", "shop"]);
        refused.says(REFUSED, &["no place was found", "the peering allows you", quoted]);
        b.done(&["peer", "set", "a", limit, "any"]);
        if limit == "--vms" {
            // The limit is of the peer alone.
            b.done(&["vm", "import", &shop]);
            b.done(&["vm", "place", "shop", "--local-only"]);
            b.done(&["vm", "destroy", "shop", "--yes"]);
        }
        if limit != "--memory" {
            b.done(&["vm", "evict", "web", "--reason", "for the next limit"]);
        }
    }
}

#[test]
fn two_vms_that_are_placed_at_once_do_not_share_the_one_place_that_a_peer_may_take() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 4);
    b.done(&["peer", "set", "a", "--vms", "1"]);
    let names = ["one", "two", "three"];
    for name in names {
        let package = federation.package(name, None).display().to_string();
        a.done(&["vm", "import", &package]);
    }
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let place = |name| scope.spawn(move || a.run(&["vm", "place", name]).code);
        let all: Vec<_> = names.into_iter().map(place).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(peer(b, "a").unwrap()["vms_hosted_for"], 1);
}

#[test]
fn requests_beyond_the_agreed_rate_are_refused_and_the_others_answered() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 1);
    federation.import("a", "web");
    b.done(&["peer", "set", "a", "--requests", "1"]);
    // Each asks, and withdraws; the first has the budget of one second.
    federation.wait_for("a is held to its rate", SOON, || {
        let asked = a.run(&["vm", "place", "web", "--dry-run"]);
        let shown = peer(a, "b").unwrap()["trouble"].to_string();
        let told = shown.contains("the peering allows 1 requests a second; ask again in");
        if told { Ok(()) } else { Err(format!("{asked:?} {shown}")) }
    });
    b.done(&["peer", "set", "a", "--requests", "any"]);
    a.done(&["vm", "place", "web"]);
}

#[test]
fn a_transfer_takes_the_time_that_the_bandwidth_of_the_peering_leaves_it_at_either_end() {
    const DISK: usize = 12 << 20;
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 2);
    // Nothing of it can be left out or made smaller.
    let mut random = blake3::Hasher::new().finalize_xof();
    let mut import = |name: &str| {
        let mut content = vec![0; DISK];
        random.fill(&mut content);
        let disk = federation.folder().join(format!("{name}.raw"));
        std::fs::write(&disk, content).unwrap();
        let package = federation.package(name, Some(&disk));
        a.done(&["vm", "import", package.to_str().unwrap()]);
    };
    import("web");
    // A quarter may come at once, or be sent before the first second has begun.
    let least = Duration::from_secs_f64(0.75 * DISK as f64 / (4 << 20) as f64);
    b.done(&["peer", "set", "a", "--rate", "4M"]);
    let begun = Instant::now();
    a.done(&["vm", "place", "web"]);
    assert!(begun.elapsed() >= least, "the Destination's: {:?}", begun.elapsed());
    b.done(&["peer", "set", "a", "--rate", "any"]);
    a.done(&["peer", "set", "b", "--rate", "4M"]);
    import("shop");
    let begun = Instant::now();
    a.done(&["vm", "place", "shop"]);
    assert!(begun.elapsed() >= least, "the Source's: {:?}", begun.elapsed());
}

#[test]
fn a_ticket_grants_what_it_was_made_for_and_the_one_who_joins_is_told() {
    let mut federation = Federation::new();
    for name in ["a", "b"] {
        federation.add(name).start();
    }
    let (a, b) = (&federation["a"], &federation["b"]);
    let terms = ["--may", "place,host", "--vms", "2", "--memory", "1G", "--requests", "50"];
    let words = ["--rate", "10M", "--contract", "2026-17", "--mark", "partner", "--mark", "near"];
    let invite = [&["peer", "invite"], &terms[..], &words[..]].concat();
    let ticket = a.done(&invite)["ticket"].as_str().unwrap().to_owned();
    let joined = b.run(&["peer", "join", &ticket, "--may", "host"]);
    assert_eq!(joined.code, 0, "{joined:?}");
    assert!(joined.err.contains("there, this site may place, host; at most 2 VMs"), "{joined:?}");
    assert!(!joined.err.contains("partner"), "marks are the other's own business: {joined:?}");

    let at_a = peer(a, "b").unwrap()["peering"].clone();
    let limits = json!({
        "vms": 2, "cpus": null, "memory_bytes": 1 << 30, "disk_bytes": null,
        "requests_per_second": 50, "bytes_per_second": 10 << 20,
    });
    assert_eq!(at_a["limits"], limits);
    assert_eq!(at_a["may"], json!(["place", "host"]));
    assert_eq!(at_a["contract"], "2026-17");
    assert_eq!(at_a["marks"], json!(["near", "partner"]));
    assert_eq!(peer(b, "a").unwrap()["peering"]["may"], json!(["host"]));

    let changed = a.done(&["peer", "set", "b", "--vms", "any", "--unmark", "near"]);
    assert_eq!(changed["peering"]["limits"]["vms"], Value::Null);
    assert_eq!(changed["peering"]["limits"]["memory_bytes"], 1 << 30, "the rest stays");
    assert_eq!(changed["peering"]["marks"], json!(["partner"]));
}

#[test]
fn terms_that_make_no_sense_are_refused_with_what_would() {
    let federation = Federation::chain(&["a", "b"]);
    let a = &federation["a"];
    let set = |terms: &[&str]| a.run(&[&["peer", "set", "b"], terms].concat());
    set(&["--may", "rule"]).says(USAGE, &["place, host or intermediate", "rule"]);
    set(&["--vms", "many"]).says(USAGE, &["many", "or any"]);
    set(&["--memory", "lots"]).says(USAGE, &["lots", "or any"]);
    set(&["--mark", "two words"]).says(USAGE, &["printable characters"]);
    set(&["--requests", "0"]).says(USAGE, &["peer remove"]);
    a.run(&["peer", "set", "z", "--vms", "1"]).says(NOT_FOUND, &["there is no peer z"]);
    a.run(&["peer", "remove", "z"]).says(NOT_FOUND, &["there is no peer z"]);
}

#[test]
fn a_peer_is_removed_when_the_vms_of_both_have_moved_away() {
    // Both a and b have other peers, to which what is shared can go.
    let mut federation = Federation::new();
    for name in ["a", "b", "c", "d"] {
        federation.add(name).start();
    }
    federation.join("a", "b");
    federation.join("a", "c");
    federation.join("b", "d");
    let (a, b) = (&federation["a"], &federation["b"]);
    a.host("a1", 1);
    b.host("b1", 1);
    federation["c"].host("c1", 1);
    federation["d"].host("d1", 1);
    let mine = federation.import("a", "web");
    a.done(&["vm", "place", "web", "--peer", "b"]);
    let package = federation.package("shop", None).display().to_string();
    let its = b.done(&["vm", "import", &package])["id"].as_str().unwrap().to_owned();
    b.done(&["vm", "place", "shop", "--peer", "a"]);
    let boots = [(&mine, "b"), (&its, "a")].map(|(vm, at)| running(&federation, vm, at).boot);

    let removed = a.run(&["peer", "remove", "b"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    gone(&federation, "a", "b");
    federation.settle(&mine, "c", true, &["a", "c"]);
    federation.settle(&its, "d", true, &["b", "d"]);
    let after = [(&mine, "c"), (&its, "d")].map(|(vm, at)| running(&federation, vm, at).boot);
    assert_eq!(boots, after, "their memory went along");
    let refused = b.run(&["vm", "place", "shop", "--peer", "a", "--dry-run"]);
    assert_ne!(refused.code, 0, "a lets b in no more: {refused:?}");
}

#[test]
fn a_site_in_between_that_removes_either_neighbour_leaves_the_path_and_the_vm_runs_on() {
    for removed in ["a", "c"] {
        let federation = Federation::chain(&["a", "b", "c"]);
        federation["c"].host("c1", 1);
        let vm = federation.import("a", "web");
        federation["a"].done(&["vm", "place", "web"]);
        let boot = running(&federation, &vm, "c").boot;
        federation["a"].host("a1", 1);
        let done = federation["b"].run(&["peer", "remove", removed]);
        assert_eq!(done.code, 0, "{done:?}");
        gone(&federation, "b", removed);
        federation.settle(&vm, "a", true, &["a"]);
        assert_eq!(running(&federation, &vm, "a").boot, boot, "its memory went along");
        assert!(federation["b"].vms().is_empty());
    }
}

#[test]
fn a_peering_that_ends_takes_nothing_new_and_goes_on_ending_after_a_crash() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 2);
    let vm = federation.import("a", "web");
    a.done(&["vm", "place", "web"]);
    let boot = running(&federation, &vm, "b").boot;
    let package = federation.package("shop", None).display().to_string();
    a.done(&["vm", "import", &package]);

    // a is down: what is shared cannot leave.
    a.stop();
    b.done(&["peer", "remove", "a", "--detach"]);
    assert!(peer(b, "a").unwrap()["peering"]["ending_unix_ms"].is_u64());
    b.kill();
    b.start();
    a.start();
    let refused = a.run(&["vm", "place", "shop"]);
    refused.says(REFUSED, &["no place was found", "being ended"]);
    let back = b.run(&["vm", "import", &package]);
    assert_eq!(back.code, 0, "{back:?}");
    b.run(&["vm", "place", "shop", "--peer", "a"]).says(CONFLICT, &["is being ended"]);

    a.host("a1", 1);
    federation.settle(&vm, "a", true, &["a"]);
    assert_eq!(running(&federation, &vm, "a").boot, boot, "its memory went along");
    gone(&federation, "b", "a");
}

#[test]
fn a_vm_that_nobody_takes_is_parked_when_the_peering_was_to_end_and_is_not_lost() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 1);
    let vm = federation.import("a", "web");
    a.done(&["vm", "place", "web"]);
    let boot = running(&federation, &vm, "b").boot;
    // Its owner cannot be reached, and nobody else may have it.
    a.stop();
    b.done(&["peer", "remove", "a", "--deadline", "1s", "--detach"]);
    federation.wait_for("it is parked", SOON, || {
        let state = b.state();
        let parked = state.vms.values().any(|vm| vm.parked.is_some());
        if parked { Ok(()) } else { Err(format!("{:?}", state.vms)) }
    });
    assert!(peer(b, "a").is_some(), "it is a peer as long as a VM of it is here");
    a.start();
    a.host("a1", 1);
    federation.settle(&vm, "a", true, &["a"]);
    assert_eq!(running(&federation, &vm, "a").boot, boot, "its memory was kept");
    gone(&federation, "b", "a");
}

#[test]
fn a_peering_that_was_to_end_can_be_kept() {
    let federation = Federation::chain(&["a", "b"]);
    let (a, b) = (&federation["a"], &federation["b"]);
    b.host("b1", 1);
    let vm = federation.import("a", "web");
    a.done(&["vm", "place", "web"]);
    running(&federation, &vm, "b");
    a.stop();
    b.done(&["peer", "remove", "a", "--detach"]);
    b.done(&["peer", "remove", "a", "--undo"]);
    let open = b.done(&["op", "list"]);
    for operation in open.as_array().unwrap().iter().filter(|op| op["ended"] == false) {
        b.done(&["op", "cancel", operation["id"].as_str().unwrap()]);
    }
    a.start();
    federation.settle(&vm, "b", true, &["a", "b"]);
    assert_eq!(peer(b, "a").unwrap()["peering"]["ending_unix_ms"], Value::Null);
}

#[test]
fn sites_change_their_keys_and_their_peers_follow_while_a_vm_runs_on() {
    let federation = Federation::chain(&["a", "b", "c"]);
    federation["c"].host("c1", 2);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web"]);
    federation.settle(&vm, "c", true, &["a", "b", "c"]);
    let boot = running(&federation, &vm, "c").boot;
    federation["b"].run(&["site", "rotate-key"]).says(1, &["another node runs on"]);

    // The one that is in the middle changes it twice while a neighbour is down; all others once.
    let before = peer(&federation["a"], "b").unwrap()["key"].clone();
    let contracts = federation["b"].done(&["contract", "list"]);
    federation["a"].stop();
    for site in ["b", "b", "c", "a"] {
        let site = &federation[site];
        if site.name() != "a" {
            site.stop();
        }
        let rotated = site.done(&["site", "rotate-key"]);
        site.start();
        assert_ne!(rotated["old"], rotated["key"]);
    }
    federation.wait_for("a asks c by way of b", SOON, || {
        let shown = federation["a"].done(&["vm", "show", "web"]);
        if shown["state"] == "running" { Ok(()) } else { Err(shown.to_string()) }
    });
    for (site, other) in [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")] {
        federation.wait_for(&format!("{site} has {other}'s new key"), SOON, || {
            let key = federation[other].done(&["site", "show"])["key"].clone();
            let known = peer(&federation[site], other).unwrap()["key"].clone();
            if known == key { Ok(()) } else { Err(known.to_string()) }
        });
    }
    assert_ne!(peer(&federation["a"], "b").unwrap()["key"], before);
    let contracts_now = federation["b"].done(&["contract", "list"]);
    assert_eq!(contracts_now, contracts, "what was agreed before stays agreed");
    federation["a"].host("a1", 1);
    federation["a"].done(&["vm", "migrate", "web", "--local-only"]);
    federation.settle(&vm, "a", true, &["a"]);
    assert_eq!(running(&federation, &vm, "a").boot, boot, "its memory went along");
}
