//! Location unawareness (federation.md, "Principle"): whatever a site keeps, logs, prints or
//! exports is searched for what is another site's own business. What a site was ever sent is among
//! that, so a leak anywhere on the way is found at the end of it.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use federation_tests::process::{Federation, SOON, Site, guest_disk, missing};
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
#[derive(Clone)]
struct Canary {
    what: &'static str,
    text: String,
    /// Its neighbours may know it.
    for_peers: bool,
}

/// A site's own business.
fn canaries(site: &Site) -> Vec<Canary> {
    let one = |what, text, for_peers| Canary { what, text, for_peers };
    vec![
        one("name", site.name().to_owned(), true),
        one("address", site.address().ip().to_string(), true),
        one("host", rack(site.name()), false),
        one("path", site.folder().display().to_string(), false),
    ]
}

/// What a real guest adds to that while it runs: its process, its node's, and every word of QEMU's
/// command line that says something of the site.
fn of_a_real_guest(federation: &Federation, vm: &str, site: &str) -> Vec<Canary> {
    let guest = federation.runs_at(vm, site).expect("it runs there");
    let qemu = guest.process().expect("a real one is a process").as_raw_pid();
    let line = fs::read_to_string(format!("/proc/{qemu}/cmdline")).unwrap();
    let folder = federation.folder().display().to_string();
    let told = |word: &&str| word.contains(&folder) || word.contains(&rack(site));
    // An argument of several parts may be written otherwise elsewhere, its parts may not.
    let words: Vec<&str> = line.split(['\0', '"', ',', '=']).filter(told).collect();
    assert!(!words.is_empty(), "QEMU is told where the disk is: {line}");
    let one = |what, text: &str| Canary { what, text: text.to_owned(), for_peers: false };
    let processes = [qemu.to_string(), federation[site].process_id().to_string()];
    let words = words.into_iter().map(|word| one("QEMU's argument", word));
    let processes = processes.iter().map(|id| one(PROCESS, id));
    words.chain(processes).collect()
}

/// A number that other things have, too; it tells something where a word says what it is.
const PROCESS: &str = "process id";

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
    leaks_with(federation, vm, direct, &[])
}

/// The same, and what else is some sites' own.
fn leaks_with(
    federation: &Federation,
    vm: &str,
    direct: bool,
    more: &[(&str, Vec<Canary>)],
) -> Vec<String> {
    let mut found = vec![];
    let sites = federation.sites();
    for (at, site) in sites.iter().enumerate() {
        let (name, all) = (site.name(), all_of(site, vm));
        assert!(all.len() > 20, "there is something to search at {name}");
        for (other_at, other) in sites.iter().enumerate().filter(|(other, _)| *other != at) {
            let is_peer = at.abs_diff(other_at) == 1;
            let more = more.iter().filter(|(site, _)| *site == other.name());
            let more = more.flat_map(|(_, canaries)| canaries.clone());
            for canary in canaries(other).into_iter().chain(more) {
                if is_peer && canary.for_peers {
                    continue;
                }
                let proxy = direct && canary.what == "address";
                let other = other.name();
                for (place, bytes) in &all {
                    let has = match canary.what {
                        PROCESS => is_named(bytes, &["pid", "proc", "qemu"], &canary.text),
                        _ => has(bytes, &canary.text, proxy),
                    };
                    if has {
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
    let mut found = memchr::memmem::find_iter(bytes, text);
    found.any(|at| !(but_uris && bytes[..at].ends_with(SCHEME)))
}

/// Whether this number is there, shortly after a word that says what it is.
fn is_named(bytes: &[u8], words: &[&str], number: &str) -> bool {
    let mut found = memchr::memmem::find_iter(bytes, number);
    found.any(|at| {
        let before = String::from_utf8_lossy(&bytes[at.saturating_sub(16)..at]).to_lowercase();
        let ends = |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_digit());
        let whole =
            ends(bytes.get(at + number.len())) && !before.ends_with(|c: char| c.is_numeric());
        whole && words.iter().any(|word| before.contains(word))
    })
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

/// How long a real guest may take to boot or to be moved: without KVM it is slow.
const SLOW: Duration = Duration::from_secs(120);

#[test]
fn of_a_real_guest_no_argument_process_or_path_is_known_at_another_site_and_a_planted_one_is_found()
{
    let Ok(disk) = guest_disk().map_err(|why| missing("qemu", why)) else { return };
    let names = &NAMES[..3];
    let (near, far) = (names[0], names[2]);
    let mut federation = Federation::new();
    for name in names {
        federation.add_real(name).start();
    }
    for pair in names.windows(2) {
        federation.join(pair[0], pair[1]);
    }
    let specifiers = vec![Specifier {
        measure: "memory_resident".parse().unwrap(),
        interval_ms: 200,
        delivery: Delivery::Every(0),
        format: Format::Raw,
        sealed: false,
        limit: false,
    }];
    let monitoring = Monitoring { specifiers, ..Monitoring::default() };
    let package = federation.monitored("web", Some(&disk), &monitoring);
    let first = &federation[near];
    let vm = first.done(&["vm", "import", package.to_str().unwrap()]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    federation[far].host(&rack(far), 1);
    first.done(&["vm", "place", "web"]);
    federation.wait_for("a value is home", SLOW, || {
        let values = first.run(&["vm", "kpi", "web"]);
        if values.out.contains("memory_resident") { Ok(()) } else { Err(format!("{values:?}")) }
    });
    let there = of_a_real_guest(&federation, &vm, far);
    first.host(&rack(near), 1);
    first.done(&["vm", "migrate", "web", "--local-only"]);
    federation.settle(&vm, near, true, &names[..1]);
    let here = of_a_real_guest(&federation, &vm, near);
    let planted = format!("{}, process {}", there[0].text, federation[far].process_id());
    let own = [(far, there), (near, here)];
    let found = leaks_with(&federation, &vm, true, &own);
    assert!(found.is_empty(), "{found:#?}");

    let rule = format!(
        "package sojourn.admit\n\nimport rego.v1\n\nrefuse contains {}\n",
        serde_json::Value::from(planted)
    );
    fs::write(federation[far].folder().join("policies/admit.rego"), rule).unwrap();
    federation[far].hang_up();
    federation.import(near, "shop");
    federation.wait_for("the refusal is told", SOON, || {
        let refused = first.run(&["vm", "place", "shop", "--peer", names[1]]);
        if refused.err.contains("process") { Ok(()) } else { Err(format!("{refused:?}")) }
    });
    let found = leaks_with(&federation, &vm, true, &own);
    for what in ["QEMU's argument", "process id"] {
        let is_it = |leak: &&String| leak.starts_with(near) && leak.contains(what);
        assert!(found.iter().any(|leak| is_it(&leak)), "no {what} in {found:#?}");
    }
}
