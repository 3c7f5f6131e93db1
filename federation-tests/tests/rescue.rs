//! Sites that are gone, or have forgotten: adopting, reclaiming, and starting fenced.

use std::path::Path;

use federation_tests::process::{Federation, SOON};

/// Two sites, or three, that keep frozen copies; the last has a host.
fn chain(names: &[&str]) -> Federation {
    let mut federation = Federation::new();
    for name in names {
        let site = federation.add(name);
        site.configure("time", "purge_s", 3600);
        site.start();
    }
    for pair in names.windows(2) {
        federation.join(pair[0], pair[1]);
    }
    federation[names[names.len() - 1]].host("one", 4);
    federation
}

fn state(federation: &Federation, site: &str, vm: &str) -> String {
    let shown = federation[site].done(&["vm", "show", vm]);
    shown["state"].as_str().expect("a VM has a state").to_owned()
}

#[test]
fn an_adopted_vm_is_the_primarys_and_ends_where_it_was_lost_as_soon_as_that_site_is_back() {
    let federation = chain(&["a", "b"]);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web", "--peer", "b"]);
    federation.wait_for("it runs at b", SOON, || {
        federation.runs_at(&vm, "b").map(drop).ok_or("not yet".to_owned())
    });
    federation["b"].kill();
    federation["a"].run(&["vm", "adopt", "web", "--statement", "no"]).says(2, &["10 to 400"]);
    let word = "the rack of b burnt down, seen by me; A. Operator";
    let adopted = federation["a"].done(&["vm", "adopt", "web", "--statement", word]);
    assert_eq!((adopted["place"].as_str(), adopted["epoch"].as_u64()), (Some("library"), Some(2)));
    federation["a"].run(&["vm", "adopt", "web", "--statement", word]).says(6, &["already"]);

    federation["b"].start();
    federation.wait_for("b has ended it", SOON, || {
        if federation.guests(&vm).is_empty() { Ok(()) } else { Err("it runs at b".to_owned()) }
    });
    let events = federation["b"].done(&["vm", "events", &vm]).to_string();
    assert!(events.contains("ALARM"), "{events}");

    federation["a"].host("one", 4);
    federation["a"].done(&["vm", "place", "web", "--local-only"]);
    federation.wait_for("it runs at a", SOON, || {
        federation.assert_one_runs(&vm);
        federation.runs_at(&vm, "a").map(drop).ok_or("not yet".to_owned())
    });
}

#[test]
fn a_vm_beyond_a_lost_intermediary_is_reclaimed_and_brought_home() {
    let federation = chain(&["a", "b", "c"]);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web", "--peer", "b"]);
    federation["b"].kill();
    federation.join("a", "c");
    federation["a"].run(&["vm", "reclaim", "web", "--at", "nobody"]).says(3, &["no peer nobody"]);
    let shown = federation["a"].done(&["vm", "reclaim", "web", "--at", "c"]);
    assert_eq!((shown["delegate"].as_str(), shown["state"].as_str()), (Some("c"), Some("running")));
    federation["a"].host("one", 4);
    federation["a"].done(&["vm", "migrate", "web", "--local-only"]);
    federation.wait_for("it runs at a", SOON, || {
        federation.assert_one_runs(&vm);
        federation.runs_at(&vm, "a").map(drop).ok_or("not yet".to_owned())
    });
    federation.wait_for("c is off the path", SOON, || {
        if federation["c"].vms().is_empty() { Ok(()) } else { Err("c lists it".to_owned()) }
    });
}

#[test]
fn a_site_whose_journal_was_rolled_back_runs_nothing_that_has_moved_on() {
    let federation = chain(&["a", "b"]);
    federation["a"].host("one", 4);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web", "--peer", "b"]);
    let old = federation.folder().join("old-journal");
    federation["b"].stop();
    copy_journal(federation["b"].folder(), &old);
    federation["b"].start();
    federation["a"].done(&["vm", "migrate", "web", "--local-only"]);
    federation["b"].stop();
    copy_journal(&old, federation["b"].folder());

    federation["b"].start();
    federation.wait_for("b knows better", SOON, || {
        federation.assert_one_runs(&vm);
        let rows = federation["b"].rows();
        let kinds: Vec<&str> = rows.iter().map(protocol::Row::kind).collect();
        if kinds.contains(&"unfenced") { Ok(()) } else { Err(format!("{kinds:?}")) }
    });
    assert!(federation.runs_at(&vm, "a").is_some(), "{:?}", federation.guests(&vm));
    assert_eq!(state(&federation, "a", "web"), "running");
    let events = federation["b"].done(&["vm", "events", &vm]).to_string();
    assert!(events.contains("older than a peer remembers"), "{events}");

    // Its journal is told longer than any that was remembered: the next start is an ordinary one.
    let rows = federation["b"].rows().len();
    federation["b"].crash();
    let again = federation["b"].rows();
    let fenced = again[rows..].iter().any(|row| row.kind() == "fenced");
    assert!(!fenced, "it was fenced again");
}

#[test]
fn a_vm_that_is_still_a_rolled_back_sites_own_goes_on_once_it_is_confirmed() {
    let federation = chain(&["a", "b"]);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web", "--peer", "b"]);
    let old = federation.folder().join("old-journal");
    federation["b"].stop();
    copy_journal(federation["b"].folder(), &old);
    federation["b"].start();
    // Rows that will be forgotten, and that do not change who owns it.
    federation["a"].done(&["vm", "pause", "web"]);
    federation["a"].done(&["vm", "resume", "web"]);
    // What b tells with its answers is written with a's next rows.
    federation["a"].host("two", 1);
    federation["a"].done(&["vm", "migrate", "web", "--dry-run"]);
    federation["b"].stop();
    copy_journal(&old, federation["b"].folder());
    // What a remembers was signed with the key of before.
    federation["b"].done(&["site", "rotate-key"]);
    federation["b"].start();
    federation.wait_for("it runs at b again", SOON, || {
        federation.assert_one_runs(&vm);
        let kinds: Vec<&str> = federation["b"].rows().iter().map(protocol::Row::kind).collect();
        let unfenced = kinds.contains(&"unfenced");
        let runs = federation.runs_at(&vm, "b").is_some();
        if unfenced && runs { Ok(()) } else { Err(format!("unfenced {unfenced}, runs {runs}")) }
    });
}

fn copy_journal(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder can be made");
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        let _ = std::fs::remove_file(to.join(name));
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).expect("it can be copied");
        }
    }
}
