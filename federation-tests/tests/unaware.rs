//! Location unawareness (federation.md, "Principle"): whatever a site keeps, logs, prints or
//! exports is searched for what is another site's own business. What a site was ever sent is among
//! that, so a leak anywhere on the way is found at the end of it.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::fs;
use std::path::Path;

use federation_tests::process::{Federation, SOON, Site};
use hypervisor::SimulatedFault;
use model::Monitoring;
use model::monitoring::{Delivery, Format, Specifier};

/// The sites of a chain. Their names are nowhere else in the program or in what it writes.
const NAMES: [&str; 4] = ["kestrel", "osprey", "merlin", "harrier"];

/// The one host of a site.
fn rack(site: &str) -> String {
    format!("rack-{site}-17")
}

/// A text that must not be at another site, and what it is.
struct Canary {
    what: &'static str,
    text: String,
    /// Its neighbours may know it.
    for_peers: bool,
}

fn canaries(site: &Site) -> Vec<Canary> {
    let one = |what, text, for_peers| Canary { what, text, for_peers };
    vec![
        one("name", site.name().to_owned(), true),
        one("address", site.address().ip().to_string(), true),
        one("host", rack(site.name()), false),
        one("path", site.folder().display().to_string(), false),
    ]
}

/// Everything that a site has of the world: its folder, its log, and all that it prints.
fn all_of(site: &Site, vm: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![("log".to_owned(), site.log_text().into_bytes())];
    read(site.folder(), &mut all);
    for command in [
        &["site", "show"][..],
        &["peer", "list"],
        &["host", "list"],
        &["vm", "list"],
        &["vm", "show", vm],
        &["vm", "show", vm, "--monitoring"],
        &["vm", "events", vm],
        &["vm", "kpi", vm],
        &["op", "list"],
        &["offer", "list"],
        &["contract", "list"],
        &["contract", "violations"],
        &["usage", "export"],
        &["doctor"],
    ] {
        let said = site.run(command);
        let text = [said.out, said.err].concat();
        all.push((command.join(" "), text.into_bytes()));
    }
    for operation in site.done(&["op", "list"]).as_array().unwrap() {
        let shown = site.run(&["op", "show", operation["id"].as_str().unwrap()]);
        all.push(("op show".to_owned(), [shown.out, shown.err].concat().into_bytes()));
    }
    all
}

fn read(folder: &Path, all: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            read(&path, all);
        } else if kind.is_file() {
            // One that is gone by now was only passing.
            let bytes = fs::read(&path).unwrap_or_default();
            all.push((path.display().to_string(), bytes));
        }
    }
}

/// What one site has of another's own business.
fn leaks(federation: &Federation, vm: &str, direct: bool) -> Vec<String> {
    let mut found = vec![];
    for (at, name) in NAMES.iter().enumerate() {
        let all = all_of(&federation[name], vm);
        assert!(all.len() > 20, "there is something to search at {name}");
        for (other_at, other) in NAMES.iter().enumerate().filter(|(other, _)| *other != at) {
            let is_peer = at.abs_diff(other_at) == 1;
            for canary in canaries(&federation[other]) {
                if is_peer && canary.for_peers {
                    continue;
                }
                let proxy = direct && canary.what == "address";
                for (place, bytes) in &all {
                    if has(bytes, &canary.text, proxy) {
                        let Canary { what, text, .. } = &canary;
                        found.push(format!("{name}: the {what} of {other} ({text}) in {place}"));
                    }
                }
            }
        }
    }
    found
}

/// Whether the text is there, apart from proxies' URIs where these are told.
fn has(bytes: &[u8], text: &str, but_uris: bool) -> bool {
    const SCHEME: &[u8] = b"sojourn://";
    let mut from = 0;
    let at = |from: usize| {
        bytes[from..].windows(text.len()).position(|window| window == text.as_bytes())
    };
    while let Some(found) = at(from).map(|found| found + from) {
        if !(but_uris && bytes[..found].ends_with(SCHEME)) {
            return true;
        }
        from = found + 1;
    }
    false
}

/// A VM is placed three sites away, fails to start there once, is measured, controlled, forced out
/// by one site and brought home by another; what is asked for in vain is asked for, too.
fn much_happens(federation: &Federation) -> String {
    let first = &federation[NAMES[0]];
    let specifier = |measure: &str| Specifier {
        measure: measure.parse().unwrap(),
        interval_ms: 200,
        delivery: Delivery::Every(0),
        format: Format::Raw,
        sealed: false,
        limit: false,
    };
    let specifiers = vec![specifier("cpu_time"), specifier("memory_resident")];
    let monitoring = Monitoring { specifiers, ..Monitoring::default() };
    let package = federation.monitored("web", None, &monitoring);
    let vm = first.done(&["vm", "import", package.to_str().unwrap()]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    federation[NAMES[3]].host(&rack(NAMES[3]), 1);
    let faults = federation[NAMES[3]].faults(&rack(NAMES[3]));
    faults.set(SimulatedFault::Launch, "no luck").unwrap();
    let failed = first.run(&["vm", "place", "web"]);
    assert_ne!(failed.code, 0, "it cannot be started: {failed:?}");
    faults.clear(SimulatedFault::Launch).unwrap();
    first.done(&["vm", "place", "web"]);
    federation.settle(&vm, NAMES[3], true, &NAMES);
    federation.wait_for("a value is home", SOON, || {
        let values = first.run(&["vm", "kpi", "web"]);
        if values.out.contains("cpu_time") { Ok(()) } else { Err(format!("{values:?}")) }
    });
    first.done(&["vm", "pause", "web"]);
    first.done(&["vm", "resume", "web"]);
    // The only place is taken.
    let package = federation.package("shop", None);
    first.done(&["vm", "import", package.to_str().unwrap()]);
    assert_ne!(first.run(&["vm", "place", "shop"]).code, 0);
    federation[NAMES[2]].host(&rack(NAMES[2]), 1);
    federation[NAMES[3]].done(&["vm", "evict", "web", "--reason", "the night begins"]);
    federation.settle(&vm, NAMES[2], true, &NAMES[..3]);
    // A site that does not answer has its silence told, and nothing else.
    federation[NAMES[3]].stop();
    federation[NAMES[2]].run(&["vm", "place", "shop"]);
    assert_ne!(first.run(&["vm", "place", "shop"]).code, 0);
    federation[NAMES[3]].start();
    first.host(&rack(NAMES[0]), 1);
    first.done(&["vm", "migrate", "web", "--local-only"]);
    federation.settle(&vm, NAMES[0], true, &NAMES[..1]);
    vm
}

#[test]
fn no_site_learns_of_another_more_than_its_peers_names_and_proxies_where_these_are_told() {
    let federation = Federation::chain(&NAMES);
    let vm = much_happens(&federation);
    let found = leaks(&federation, &vm, true);
    assert!(found.is_empty(), "{found:#?}");
    // Proxies are told here, so that what is exempt is known to be looked at.
    let proxies = leaks(&federation, &vm, false);
    assert!(proxies.iter().all(|leak| leak.contains("the address of")), "{proxies:#?}");
    assert!(!proxies.is_empty(), "without relays two proxies far apart know of each other");
}

#[test]
fn where_every_transfer_is_relayed_not_even_a_proxy_is_known_two_sites_away() {
    let mut federation = Federation::new();
    for name in NAMES {
        let site = federation.add(name);
        let rule = "package sojourn.transfer\n\nimport rego.v1\n\nmode := \"relayed\"\n";
        fs::write(site.folder().join("policies/transfer.rego"), rule).unwrap();
        site.start();
    }
    for pair in NAMES.windows(2) {
        federation.join(pair[0], pair[1]);
    }
    let vm = much_happens(&federation);
    let found = leaks(&federation, &vm, false);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_leak_that_is_planted_is_found_at_the_other_end_of_the_chain() {
    let mut federation = Federation::new();
    for name in NAMES {
        federation.add(name);
    }
    let secret = rack(NAMES[3]);
    let rule = format!(
        "package sojourn.admit\n\nimport rego.v1\n\nrefuse contains \"no room on {secret}\"\n"
    );
    let last = &federation[NAMES[3]];
    fs::write(last.folder().join("policies/admit.rego"), rule).unwrap();
    for name in NAMES {
        federation[name].start();
    }
    for pair in NAMES.windows(2) {
        federation.join(pair[0], pair[1]);
    }
    last.host(&secret, 1);
    federation.import(NAMES[0], "web");
    assert_ne!(federation[NAMES[0]].run(&["vm", "place", "web"]).code, 0);
    let found = leaks(&federation, "web", true);
    assert!(found.iter().any(|leak| leak.starts_with(NAMES[0])), "{found:#?}");
}
