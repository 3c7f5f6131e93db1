//! Chains and rings of real nodes: a VM goes to the far end through sites that only pass on, is
//! controlled from where it came from, is forced out, and comes home; and nothing is left behind.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use federation_tests::process::{Federation, Guest, SOON, Site};
use protocol::JourneyResult;
use serde_json::{Value, json};

/// Waits until the VM's one guest executes at a site.
fn running(federation: &Federation, vm: &str, site: &str) -> Guest {
    federation.wait_for(&format!("{vm} runs at {site}"), SOON, || {
        federation.assert_one_runs(vm);
        federation.runs_at(vm, site).ok_or_else(|| format!("{:#?}", federation.guests(vm)))
    })
}

/// There and back through a whole chain of sites.
fn there_and_back(names: &[&str]) {
    there_and_back_in(&Federation::chain(names), names);
}

fn there_and_back_in(federation: &Federation, names: &[&str]) {
    let (first, last) = (names[0], names[names.len() - 1]);
    federation[last].host("far", 1);
    let vm = federation.import(first, "web");

    let placed = federation[first].done(&["vm", "place", "web"]);
    assert_eq!(placed["result"], "done");
    let guest = running(federation, &vm, last);
    federation.settle(&vm, last, true, names);
    for site in &names[1..names.len() - 1] {
        let seen = federation[site].done(&["vm", "show", "web"]);
        assert_eq!(seen["host"], "", "{site} only passes it on");
        assert_eq!(seen["state"], "running", "{site} asks the site that has it");
    }

    for pair in names.windows(2) {
        let [one, other] = [0, 1].map(|at| {
            let listed = federation[pair[at]].done(&["contract", "list"]);
            let listed = listed.as_array().unwrap();
            let with = |contract: &&Value| contract["peer"] == pair[1 - at];
            listed.iter().find(with).unwrap_or_else(|| panic!("{listed:?}")).clone()
        });
        assert_eq!((&one["role"], &other["role"]), (&json!("customer"), &json!("provider")));
        for field in ["id", "signed", "provider_signature", "customer_signature"] {
            assert_eq!(one[field], other[field], "both have the same contract");
        }
    }

    let guest = control(federation, first, last, &vm, &guest.boot);

    if names.len() > 2 {
        // One site back: the last one wants it gone, and the one before it takes it.
        let before = names[names.len() - 2];
        federation[before].host("near", 1);
        federation[last].done(&["vm", "evict", "web", "--reason", "closing for the night"]);
        let moved = running(federation, &vm, before);
        assert_eq!(moved.boot, guest.boot, "its memory went along");
        federation.settle(&vm, before, true, &names[..names.len() - 1]);
        assert!(federation[last].vms().is_empty(), "{last} has forgotten it");
    }

    federation[first].host("home", 1);
    federation[first].done(&["vm", "migrate", "web", "--local-only"]);
    let home = running(federation, &vm, first);
    assert_eq!(home.boot, guest.boot, "its memory came home");
    federation.settle(&vm, first, true, &names[..1]);
    for site in &names[1..] {
        assert!(federation[site].vms().is_empty(), "{site} has forgotten it");
    }
    federation[first].done(&["vm", "destroy", "web", "--yes"]);
    federation.settle_destroyed(&vm);
}

/// Every change of its run state, asked for at the primary and done at the other end. In the end
/// it has booted anew.
fn control(federation: &Federation, primary: &str, host: &str, vm: &str, boot: &str) -> Guest {
    let ask = |verb: &str| {
        federation[primary].done(&["vm", verb, "web"])["state"].as_str().unwrap().to_owned()
    };
    let only_guest = || federation.guests(vm).first().cloned().expect("it is in memory");
    assert_eq!(ask("pause"), "paused");
    assert!(!only_guest().runs);
    assert_eq!(ask("resume"), "running");
    assert_eq!(ask("hibernate"), "hibernated");
    assert!(federation.guests(vm).is_empty(), "a hibernated guest has no process");
    assert_eq!(ask("start"), "running");
    assert_eq!(running(federation, vm, host).boot, boot, "it goes on, it does not boot");
    assert_eq!(ask("stop"), "stopped");
    assert!(federation.guests(vm).is_empty());
    assert_eq!(ask("start"), "running");
    let guest = running(federation, vm, host);
    assert_ne!(guest.boot, boot, "after a stop it boots");
    let again = federation[primary].run(&["vm", "resume", "web"]);
    assert_eq!(again.code, 0, "what is so already is no error: {again:?}");
    guest
}

#[test]
fn a_vm_goes_to_a_peer_and_comes_home() {
    there_and_back(&["a", "b"]);
}

#[test]
fn a_vm_goes_through_an_intermediary_is_forced_back_and_comes_home() {
    there_and_back(&["a", "b", "c"]);
}

#[test]
fn a_vm_goes_through_three_intermediaries_and_comes_home() {
    there_and_back(&["a", "b", "c", "d", "e"]);
}

/// A chain whose sites are prepared before they are started.
fn chain_of(names: &[&str], prepare: impl Fn(&str, &Site)) -> Federation {
    let mut federation = Federation::new();
    for name in names {
        let site = federation.add(name);
        prepare(name, site);
        site.start();
    }
    for pair in names.windows(2) {
        federation.join(pair[0], pair[1]);
    }
    federation
}

fn relays(site: &Site) {
    let rule = "package sojourn.transfer\n\nimport rego.v1\n\nmode := \"relayed\"\n";
    std::fs::write(site.folder().join("policies/transfer.rego"), rule).unwrap();
}

fn dials_out(site: &Site) {
    site.configure("proxy", "advertise", "dial-out");
}

/// The files of a site that hold a text.
fn files_with(site: &Site, text: &str) -> Vec<PathBuf> {
    let mut folders = vec![site.folder().to_owned()];
    let mut found = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path)
                .is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
            {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn through_two_sites_that_relay_neither_end_ever_learns_where_the_other_is() {
    let names = ["a", "b", "c", "d"];
    let federation = chain_of(&names, |name, site| {
        if ["b", "c"].contains(&name) {
            relays(site);
        }
    });
    there_and_back_in(&federation, &names);
    let address = |name: &str| federation[name].address().ip().to_string();
    // Only neighbours know each other, and each is known by its neighbours.
    for (one, other) in [("a", "c"), ("a", "d"), ("b", "d"), ("d", "a"), ("d", "b"), ("c", "a")] {
        let known = files_with(&federation[one], &address(other));
        assert!(known.is_empty(), "{one} has the address of {other} in {known:?}");
    }
    assert!(!files_with(&federation["a"], &address("b")).is_empty());
    for relay in ["b", "c"] {
        let kinds = federation[relay].rows();
        assert!(kinds.iter().any(|row| row.kind() == "relaying"), "{relay} passed nothing on");
    }
}

#[test]
fn a_site_whose_data_port_takes_nothing_inbound_sends_and_takes_vms_all_the_same() {
    let names = ["a", "b", "c"];
    let federation = chain_of(&names, |name, site| {
        if name == "a" {
            dials_out(site);
        }
    });
    there_and_back_in(&federation, &names);
    let passed_on = federation["b"].rows().iter().any(|row| row.kind() == "relaying");
    assert!(!passed_on, "the Source was to dial the Destination itself");
}

#[test]
fn two_sites_whose_data_ports_take_nothing_inbound_meet_at_the_site_between_them() {
    let names = ["a", "b", "c"];
    let federation = chain_of(&names, |name, site| {
        if name != "b" {
            dials_out(site);
        }
    });
    there_and_back_in(&federation, &names);
    let rows = federation["b"].rows();
    assert!(rows.iter().any(|row| row.kind() == "relaying"), "they met elsewhere");
}

#[test]
fn a_transfer_goes_on_when_a_site_that_relays_is_killed_and_started_again() {
    let names = ["a", "b", "c"];
    let federation = chain_of(&names, |name, site| {
        if name == "b" {
            relays(site);
        }
    });
    federation["c"].host("far", 1);
    let disk = federation.folder().join("noise.raw");
    noise(&disk, 256 << 20);
    let package = federation.package("web", Some(&disk));
    let vm = federation["a"].done(&["vm", "import", &package.display().to_string()]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    federation["a"].done(&["vm", "place", "web", "--detach"]);
    federation.wait_for("b passes it on", SOON, || {
        let relays = federation["b"].rows().iter().any(|row| row.kind() == "relaying");
        let arrives = federation["c"].rows().iter().any(|row| row.kind() == "receiving");
        if relays && arrives { Ok(()) } else { Err("not yet".to_owned()) }
    });
    federation["b"].kill();
    federation["b"].start();
    running(&federation, &vm, "c");
    federation.settle(&vm, "c", true, &names);
}

/// What the site's latest transfer took: bytes of the files, and on the wire.
fn last_ready(site: &Site) -> (u64, u64) {
    let ready = site.rows().into_iter().rev().find_map(|row| match row {
        protocol::Row::Ready { size, wire, .. } => Some((size.0, wire.0)),
        _ => None,
    });
    ready.expect("something has arrived")
}

#[test]
fn what_a_site_still_has_of_an_earlier_stay_of_a_vm_is_not_fetched_again() {
    let names = ["a", "b"];
    let federation = chain_of(&names, |_, site| site.configure("time", "purge_s", 3600));
    federation["b"].host("b1", 1);
    let disk = federation.folder().join("noise.raw");
    noise(&disk, 32 << 20);
    let package = federation.package("web", Some(&disk));
    let vm = federation["a"].done(&["vm", "import", &package.display().to_string()]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    federation["a"].done(&["vm", "place", "web"]);
    running(&federation, &vm, "b");
    assert!(last_ready(&federation["b"]).1 > 32 << 20);
    federation["a"].host("a1", 1);
    federation["a"].done(&["vm", "migrate", "web", "--local-only"]);
    running(&federation, &vm, "a");
    let (size, wire) = last_ready(&federation["a"]);
    assert!(
        size > 32 << 20 && wire < 8 << 20,
        "{wire} bytes for {size}, of which 32 MiB were here"
    );
    federation["a"].done(&["vm", "migrate", "web", "--peer", "b"]);
    running(&federation, &vm, "b");
    let (_, wire) = last_ready(&federation["b"]);
    assert!(wire < 8 << 20, "{wire} bytes, though all was here");
}

#[test]
fn proxies_that_allow_no_carrier_in_common_say_so_and_the_vm_stays() {
    let federation = chain_of(&["a", "b"], |name, site| match name {
        "a" => {
            let address = site.address();
            site.configure("proxy", "advertise", format!("quic://{address}"));
        }
        _ => site.configure("transfer", "carrier", "tls"),
    });
    federation["b"].host("b1", 1);
    federation.import("a", "web");
    federation["a"].run(&["vm", "place", "web"]).says(1, &["gave the transfer up"]);
    let events = federation["b"].log_text();
    assert!(events.contains("no carrier of the other proxy is allowed here"), "{events}");
    federation["b"].configure("transfer", "carrier", "quic");
    federation["b"].stop();
    federation["b"].start();
    assert_eq!(federation["a"].done(&["vm", "place", "web"])["result"], "done");
}

/// Makes a file of bytes that do not repeat.
fn noise(path: &Path, bytes: u64) {
    let mut file = std::fs::File::create(path).unwrap();
    let mut random = std::fs::File::open("/dev/urandom").unwrap().take(bytes);
    std::io::copy(&mut random, &mut file).unwrap();
}

#[test]
fn in_a_ring_a_request_ends_and_a_path_never_visits_a_site_twice() {
    let federation = Federation::chain(&["a", "b", "c"]);
    federation.join("c", "a");
    let vm = federation.import("a", "web");
    let nowhere = federation["a"].run(&["vm", "place", "web"]);
    nowhere.says(4, &["no place was found", "no host takes VMs here now"]);

    federation["c"].host("c1", 1);
    federation["a"].done(&["vm", "place", "web", "--peer", "b"]);
    let guest = running(&federation, &vm, "c");
    federation.settle(&vm, "c", true, &["a", "b", "c"]);

    // Round the ring: c sends it away, and b, which passed it on, has room now.
    federation["b"].host("b1", 1);
    federation["c"].done(&["vm", "evict", "web", "--reason", "no room"]);
    running(&federation, &vm, "b");
    federation.settle(&vm, "b", true, &["a", "b"]);

    // The other way round, straight to c: b is left.
    federation["a"].done(&["vm", "migrate", "web", "--peer", "c"]);
    running(&federation, &vm, "c");
    federation.settle(&vm, "c", true, &["a", "c"]);

    federation["a"].host("a1", 1);
    federation["c"].done(&["vm", "evict", "web", "--reason", "no room"]);
    assert_eq!(running(&federation, &vm, "a").boot, guest.boot);
    federation.settle(&vm, "a", true, &["a"]);
}

#[test]
fn draining_a_host_moves_its_guests_to_another_and_the_primary_only_learns_the_epoch() {
    let federation = Federation::chain(&["a", "b"]);
    federation["b"].host("b1", 2);
    let first = federation.import("a", "one");
    let second = federation.import("a", "two");
    federation["a"].done(&["vm", "place", "one"]);
    federation["a"].done(&["vm", "place", "two"]);
    let boots = [running(&federation, &first, "b").boot, running(&federation, &second, "b").boot];
    federation["b"].host("b2", 2);
    federation["b"].done(&["host", "drain", "b1"]);
    for (vm, boot) in [&first, &second].into_iter().zip(boots) {
        let guest = running(&federation, vm, "b");
        assert_eq!((guest.host(), &guest.boot), ("b2", &boot));
        federation.settle(vm, "b", true, &["a", "b"]);
    }
    federation.wait_for("the primary learns the epoch", SOON, || {
        let seen = federation["a"].done(&["vm", "show", "one"]);
        if seen["epoch"] == 2 { Ok(()) } else { Err(seen.to_string()) }
    });
    let shown = federation["a"].done(&["vm", "show", "one"]).to_string();
    assert!(!shown.contains("\"b2\""), "hosts are never named outside their site: {shown}");
    federation["b"].done(&["host", "remove", "b1"]);
}

#[test]
fn when_the_primary_and_the_hosting_site_move_a_vm_at_once_both_end_and_one_guest_runs() {
    let federation = Federation::chain(&["a", "b"]);
    federation["b"].host("b1", 1);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web"]);
    let boot = running(&federation, &vm, "b").boot;
    federation["a"].host("a1", 1);
    federation["b"].host("b2", 1);
    let at_b = &federation["b"];
    std::thread::scope(|scope| {
        let home = scope.spawn(|| federation["a"].run(&["vm", "migrate", "web", "--local-only"]));
        let evict = ["vm", "evict", "web", "--reason", "no room", "--deadline", "60s"];
        let away = scope.spawn(move || at_b.run(&evict));
        let (home, away) = (home.join().unwrap(), away.join().unwrap());
        // Both end; who came second is told so, or finds that it is done.
        for outcome in [&home, &away] {
            assert!([0, 1, 6].contains(&outcome.code), "{outcome:?}");
        }
        assert!(home.code == 0 || away.code == 0, "{home:?} {away:?}");
    });
    let at = federation.wait_for("one guest runs", SOON, || {
        let found = ["a", "b"].into_iter().find(|site| federation.runs_at(&vm, site).is_some());
        found.ok_or_else(|| format!("{:#?}", federation.guests(&vm)))
    });
    let path: &[&str] = if at == "a" { &["a"] } else { &["a", "b"] };
    federation.settle(&vm, at, true, path);
    assert_eq!(federation.runs_at(&vm, at).unwrap().boot, boot);
}

#[test]
fn of_two_placements_that_compete_for_the_last_place_one_gets_it_and_the_other_is_told() {
    let federation = Federation::chain(&["a", "b", "c"]);
    federation["b"].host("b1", 1);
    let (mine, yours) = (federation.import("a", "mine"), federation.import("c", "yours"));
    let outcomes = std::thread::scope(|scope| {
        let one = scope.spawn(|| federation["a"].run(&["vm", "place", "mine"]));
        let two = scope.spawn(|| federation["c"].run(&["vm", "place", "yours"]));
        [one.join().unwrap(), two.join().unwrap()]
    });
    let won = outcomes.iter().position(|outcome| outcome.code == 0);
    let won = won.unwrap_or_else(|| panic!("nobody got the place: {outcomes:#?}"));
    let lost = &outcomes[1 - won];
    assert!([1, 4].contains(&lost.code), "only one fits: {outcomes:#?}");
    let said = lost.err.contains("was given away") || lost.err.contains("memory");
    assert!(said, "the loser learns why: {lost:?}");
    let [(winner, site), (loser, home)] =
        if won == 0 { [(&mine, "a"), (&yours, "c")] } else { [(&yours, "c"), (&mine, "a")] };
    running(&federation, winner, "b");
    federation.settle(winner, "b", true, &[site, "b"]);
    federation.settle(loser, home, false, &[home]);
    let ended = federation[home].state().journeys.into_values().next().unwrap().result;
    assert!(
        matches!(ended, Some(JourneyResult::NoPlace(_) | JourneyResult::GaveUp(_))),
        "{ended:?}"
    );
}

#[test]
fn an_intermediary_that_is_down_cuts_knowledge_and_not_the_vm() {
    let federation = Federation::chain(&["a", "b", "c"]);
    federation["c"].host("c1", 1);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web"]);
    running(&federation, &vm, "c");
    federation.settle(&vm, "c", true, &["a", "b", "c"]);
    federation["b"].kill();
    let stop = federation["a"].run(&["vm", "stop", "web"]);
    stop.says(5, &["does not answer"]);
    assert!(federation.runs_at(&vm, "c").is_some(), "it goes on");
    assert_eq!(federation["a"].done(&["vm", "show", "web"])["state"], "unknown");
    federation["b"].start();
    federation.wait_for("b is on the way again", Duration::from_secs(20), || {
        let stop = federation["a"].run(&["vm", "stop", "web"]);
        if stop.code == 0 { Ok(()) } else { Err(format!("{stop:?}")) }
    });
    federation.settle(&vm, "c", false, &["a", "b", "c"]);
}
