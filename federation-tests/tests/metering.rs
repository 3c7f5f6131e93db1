//! What a VM uses is metered where it runs, stated, signed, and adds up at every site on its path.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::path::Path;

use federation_tests::process::{Federation, SOON};
use serde_json::Value;

/// What a program gets that does not know what it asks for.
const USAGE: i32 = 2;
/// Bytes of memory of the packages' VMs.
const MEMORY: f64 = (128 << 20) as f64;

/// What a site knows of the VM's use.
fn exported(federation: &Federation, site: &str, vm: &str, by: &str) -> Vec<Value> {
    let export = ["usage", "export", "--vm", vm, "--by", by, "--format", "json"];
    federation[site].done(&export).as_array().unwrap().clone()
}

/// Nanoseconds of processor time.
fn cpu_ns(line: &Value) -> u64 {
    (line["cpu_seconds"].as_f64().unwrap() * 1e9).round() as u64
}

/// How long the simulated guest has run since it was booted, at whatever sites, in milliseconds.
/// It is a quarter busy.
fn uptime_ms(federation: &Federation, vm: &str) -> u64 {
    let guests = federation.guests(vm);
    assert!(guests.len() == 1 && !guests[0].runs, "it is paused: {guests:#?}");
    let text = std::fs::read_to_string(guests[0].folder.join("guest.json")).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    record["memory"]["uptime_ms"].as_u64().unwrap()
}

fn runs_at(federation: &Federation, vm: &str, site: &str) {
    federation.wait_for("it runs there", SOON, || {
        federation.runs_at(vm, site).map(|_| ()).ok_or_else(|| format!("not at {site}"))
    });
}

/// Imports a VM at the first site, and has it run at the last.
fn placed(federation: &Federation, first: &str, last: &str) -> String {
    federation[last].host("h1", 4);
    let vm = federation.import(first, "web");
    federation[first].done(&["vm", "place", "web"]);
    runs_at(federation, &vm, last);
    vm
}

fn wait_for_stays(federation: &Federation, site: &str, vm: &str, states: &[&str]) -> Vec<Value> {
    federation.wait_for("all stays are known", SOON, || {
        let stays = exported(federation, site, vm, "stay");
        let are = stays.iter().map(|stay| stay["state"].as_str().unwrap()).collect::<Vec<_>>();
        if are == states { Ok(stays) } else { Err(format!("{site}: {are:?} of {states:?}")) }
    })
}

#[test]
fn use_adds_up_at_every_site_over_moves_and_kills_without_gap_or_double_count() {
    let federation = Federation::chain(&["a", "b", "c", "d"]);
    let vm = placed(&federation, "a", "d");
    wait_for_stays(&federation, "a", &vm, &["open"]);
    // The guest outlives its node; a site between misses what is stated meanwhile.
    federation["d"].kill();
    federation["b"].kill();
    federation["d"].start();
    federation["d"].host("h2", 4);
    federation["d"].done(&["host", "drain", "h1"]);
    federation["d"].kill();
    federation["b"].start();
    federation["d"].start();
    federation.settle(&vm, "d", true, &["a", "b", "c", "d"]);
    federation["c"].host("h1", 4);
    federation["d"].done(&["vm", "evict", "web", "--reason", "closing"]);
    federation["c"].kill();
    federation["c"].start();
    federation.settle(&vm, "c", true, &["a", "b", "c"]);
    federation["a"].done(&["vm", "pause", "web"]);

    // A quarter of the time for which it ran is all that it used, at three places.
    let expected = uptime_ms(&federation, &vm) * 1_000_000 / 4;
    for site in ["a", "b", "c"] {
        federation.wait_for("all of its use is known", SOON, || {
            let total = exported(&federation, site, &vm, "vm");
            let is_all = total.len() == 1 && cpu_ns(&total[0]) == expected;
            if is_all { Ok(()) } else { Err(format!("{site}: {expected} of {total:#?}")) }
        });
    }
    let stays = wait_for_stays(&federation, "a", &vm, &["final", "final", "open"]);
    for stay in &stays {
        let time = |name: &str| stay[name].as_u64().unwrap();
        let hours = (time("until_unix_ms") - time("since_unix_ms")) as f64 / 3_600_000.0;
        let gib_hours = stay["memory_gib_hours"].as_f64().unwrap();
        let all = MEMORY / f64::from(1 << 30) * hours;
        assert!((gib_hours - all).abs() < 1e-12, "it had its memory all the time: {stay:#}");
        assert_eq!(stay["network_sent_bytes"], 0, "it was counted: {stay:#}");
    }
    let statements = |stays: &[Value]| -> Vec<Value> {
        stays.iter().map(|stay| stay["statement"].clone()).collect()
    };
    let ways = |stays: &[Value]| -> Vec<(Value, Value)> {
        stays.iter().map(|stay| (stay["for"].clone(), stay["through"].clone())).collect()
    };
    let peer = |name: &str| Value::from(name);
    let here = Value::Null;
    assert_eq!(ways(&stays), vec![(Value::Null, peer("b")); 3]);
    for (site, through) in
        [("b", [peer("c"), peer("c"), peer("c")]), ("c", [peer("d"), peer("d"), here.clone()])]
    {
        let there = wait_for_stays(&federation, site, &vm, &["final", "final", "open"]);
        assert_eq!(statements(&there), statements(&stays), "{site} has the very same");
        let up = if site == "b" { "a" } else { "b" };
        assert_eq!(ways(&there), through.map(|through| (peer(up), through)).to_vec(), "{site}");
    }
    let left = wait_for_stays(&federation, "d", &vm, &["final", "final"]);
    assert_eq!(statements(&left), statements(&stays)[..2], "what d metered");
    assert_eq!(ways(&left), vec![(peer("c"), here); 2]);

    let pairs = exported(&federation, "c", &vm, "peer");
    let sum: u64 = pairs.iter().map(cpu_ns).sum();
    assert_eq!((pairs.len(), sum), (2, expected), "{pairs:#?}");
    federation["a"].done(&["vm", "destroy", "web", "--yes"]);
    for site in ["a", "b", "c"] {
        let ended = wait_for_stays(&federation, site, &vm, &["final", "final", "final"]);
        assert_eq!(ended.iter().map(cpu_ns).sum::<u64>(), expected, "{site}");
    }
    verifies(&federation, &vm);
}

/// What somebody would rather have in an export, and how it is done.
type Change = (&'static str, fn(&mut Value));

/// Whoever gets the primary's export can check it, and sees what was changed in it.
fn verifies(federation: &Federation, vm: &str) {
    let a = &federation["a"];
    let file = federation.folder().join("usage.json");
    let verify = |content: &Value| {
        std::fs::write(&file, content.to_string()).unwrap();
        a.run(&["usage", "verify", file.to_str().unwrap()])
    };
    let stays = Value::from(exported(federation, "a", vm, "stay"));
    let sound = verify(&stays);
    assert_eq!(sound.code, 0, "{sound:?}");
    let verdicts = sound.json();
    assert!(verdicts.as_array().unwrap().iter().all(|v| v["holds"] == true), "{verdicts:#}");
    let changes: [Change; 6] = [
        ("less use", |all| all[1]["disk_written_bytes"] = 0.into()),
        ("less time", |all| all[1]["until_unix_ms"] = all[1]["since_unix_ms"].clone()),
        ("another epoch", |all| all[1]["epoch"] = 3.into()),
        ("another's statement", |all| all[1]["statement"] = all[2]["statement"].clone()),
        ("another's key", |all| all[1]["owner"] = all[2]["owner"].clone()),
        ("another VM", |all| all[1]["vm"] = "00".repeat(16).into()),
    ];
    for (what, change) in changes {
        let mut changed = stays.clone();
        change(&mut changed);
        let outcome = verify(&changed);
        assert_eq!(outcome.code, 1, "{what}: {outcome:?}");
        outcome.says(1, &["1 of 3 lines do not hold"]);
    }
    let sums = Value::from(exported(federation, "a", vm, "vm"));
    verify(&sums).says(USAGE, &["--by stay"]);
}

#[test]
fn a_statement_that_a_site_between_has_altered_is_refused_and_the_stay_shown_as_a_lower_bound() {
    let federation = Federation::chain(&["a", "b", "c"]);
    let vm = placed(&federation, "a", "c");
    let known = &wait_for_stays(&federation, "a", &vm, &["open"])[0];
    federation["a"].stop();
    federation["c"].host("h2", 4);
    federation["c"].done(&["host", "drain", "h1"]);
    let stated = wait_for_stays(&federation, "b", &vm, &["final", "open"]);
    federation["b"].stop();
    // b would rather pay for less.
    let book = Book::of(federation["b"].folder());
    let (id, mut body) = book.last_statement();
    let place = body.len() - 6;
    body[place] ^= 1;
    book.replace(id, &body);
    drop(book);
    federation["b"].start();
    federation["a"].start();
    let stays = wait_for_stays(&federation, "a", &vm, &["at_least", "open"]);
    assert_eq!(stays[1]["statement"], wait_for_same(&federation, &vm)[1]["statement"]);
    assert!(cpu_ns(&stays[0]) <= cpu_ns(&stated[0]), "{stays:#?}");
    assert!(cpu_ns(&stays[0]) >= cpu_ns(known), "{stays:#?}");
    let total = &exported(&federation, "a", &vm, "vm")[0];
    assert_eq!(total["state"], "at_least", "{total:#}");
    let told = federation["a"].run(&["usage", "export"]);
    assert!(told.err.contains("1 lines are not complete"), "{told:?}");
}

/// What the hosting site says, once the primary has it too.
fn wait_for_same(federation: &Federation, vm: &str) -> Vec<Value> {
    federation.wait_for("the primary has the newest", SOON, || {
        let (there, here) =
            (exported(federation, "c", vm, "stay"), exported(federation, "a", vm, "stay"));
        if there[1]["statement"] == here[1]["statement"] {
            Ok(there)
        } else {
            Err(format!("{here:#?}"))
        }
    })
}

/// The monitoring database of a site whose node does not run.
struct Book(rusqlite::Connection);

impl Book {
    fn of(folder: &Path) -> Self {
        Self(rusqlite::Connection::open(folder.join("monitoring.db")).unwrap())
    }

    fn last_statement(&self) -> (i64, Vec<u8>) {
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let query = "SELECT id, body FROM usage WHERE final AND owed IS NOT NULL";
        self.0.query_row(query, [], row).unwrap()
    }

    fn replace(&self, id: i64, body: &[u8]) {
        let changed = self.0.execute("UPDATE usage SET body = ?2 WHERE id = ?1", (id, body));
        assert_eq!(changed.unwrap(), 1);
    }
}

#[test]
fn a_guest_that_is_stopped_and_started_counts_on_and_periods_are_full_hours() {
    let federation = Federation::chain(&["a"]);
    let vm = placed(&federation, "a", "a");
    let a = &federation["a"];
    let total = || exported(&federation, "a", &vm, "vm").pop();
    let wait_for_more = |than: u64| {
        federation.wait_for("it has used more", SOON, || {
            // A change is stated at once; without one it would take a minute.
            a.done(&["vm", "pause", "web"]);
            a.done(&["vm", "resume", "web"]);
            let used = total().map_or(0, |total| cpu_ns(&total));
            if used > than { Ok(used) } else { Err(format!("{used} of more than {than}")) }
        })
    };
    let first = wait_for_more(200_000_000);
    a.done(&["vm", "stop", "web"]);
    let stopped = federation.wait_for("its end is stated", SOON, || {
        total().map(|total| cpu_ns(&total)).filter(|used| *used >= first).ok_or_else(String::new)
    });
    a.done(&["vm", "start", "web"]);
    runs_at(&federation, &vm, "a");
    // The new process has counted less than the one before, and the sum goes on.
    wait_for_more(stopped);
    let stay = &exported(&federation, "a", &vm, "stay")[0];
    assert_eq!((stay["state"].as_str(), &stay["for"]), (Some("open"), &Value::Null));
    let lived = stay["until_unix_ms"].as_u64().unwrap() - stay["since_unix_ms"].as_u64().unwrap();
    let gib_hours = stay["memory_gib_hours"].as_f64().unwrap();
    let most = MEMORY / f64::from(1 << 30) * lived as f64 / 3_600_000.0;
    assert!(gib_hours > 0.0 && gib_hours < most, "stopped, it had no memory: {stay:#}");

    let export = |more: &[&str]| a.run(&[&["usage", "export"], more].concat());
    let csv = export(&["--by", "stay", "--format", "csv"]).out;
    let heading = "vm,name,epoch,for,through,since,until,state,cpu_seconds,memory_gib_hours,\
        disk_read_bytes,disk_written_bytes,network_received_bytes,network_sent_bytes";
    assert_eq!(csv.lines().next(), Some(heading));
    assert!(csv.lines().nth(1).unwrap().starts_with(&format!("{vm},web,")), "{csv}");
    assert!(csv.lines().nth(1).unwrap().contains(",own,here,"), "{csv}");
    let json = ["--format", "json"];
    assert_eq!(export(&[&["--until", "2020-01-01"], &json[..]].concat()).out.trim(), "[]");
    let since = export(&[&["--since", "2020-01-01T10:00Z"], &json[..]].concat()).json();
    assert_eq!(since.as_array().unwrap().len(), 1);
    export(&["--since", "2020-01-01T10:30Z"]).says(USAGE, &["full hour"]);
    export(&["--vm", "nobody"]).says(3, &["there is no VM nobody"]);
}
