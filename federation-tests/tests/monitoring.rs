//! What is measured of a VM reaches its primary, over the sites in between, whatever happens on the
//! way.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::path::PathBuf;
use std::time::Duration;

use federation_tests::process::application::Application;
use federation_tests::process::{Federation, SOON, guest_disk, missing};
use model::Monitoring;
use model::monitoring::{Delivery, Format, Specifier};
use serde_json::Value;

/// How long a real guest may take to boot or to be moved: without KVM it is slow.
const SLOW: Duration = Duration::from_secs(120);

fn specifier(measure: &str, delivery: Delivery, format: Format) -> Specifier {
    let measure = measure.parse().unwrap();
    Specifier { measure, interval_ms: 0, delivery, format, sealed: false, limit: false }
}

fn users() -> Monitoring {
    let users = specifier("web.users", Delivery::Every(0), Format::Raw);
    Monitoring { specifiers: vec![users], ..Monitoring::default() }
}

/// a, b, c in a row; the VM of a runs at c.
fn placed_at_c(monitoring: &Monitoring) -> (Federation, String) {
    let federation = Federation::chain(&["a", "b", "c"]);
    federation["c"].host("c1", 4);
    let package = federation.monitored("web", None, monitoring);
    let a = &federation["a"];
    let vm = a.done(&["vm", "import", &package.display().to_string()]);
    a.done(&["vm", "place", "web"]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    federation.wait_for("it runs at c", SOON, || {
        federation.runs_at(&vm, "c").map(|_| ()).ok_or_else(|| "it does not".to_owned())
    });
    (federation, vm)
}

/// The runtime folder of the VM's guest at a site.
fn guest(federation: &Federation, vm: &str, site: &str) -> PathBuf {
    federation.wait_for("the guest is there", SOON, || {
        let stays = federation[site].stays().into_iter();
        let mut of_vm = stays.filter(|path| {
            path.to_str().is_some_and(|path| path.contains("/run/") && path.contains(vm))
        });
        of_vm.next().ok_or_else(|| format!("no guest at {site}"))
    })
}

/// What a site shows of the VM's values.
fn shown(federation: &Federation, site: &str) -> Value {
    federation[site].done(&["vm", "kpi", "web", "--last", "10000"])
}

fn numbers(shown: &Value) -> Vec<i64> {
    let values = shown["values"].as_array().unwrap().iter();
    values.filter_map(|value| value["value"].as_i64()).collect()
}

fn wait_for_numbers(federation: &Federation, site: &str, expected: &[i64]) -> Value {
    federation.wait_for("all values are there", SOON, || {
        let shown = shown(federation, site);
        let numbers = numbers(&shown);
        if numbers == expected { Ok(shown) } else { Err(format!("{numbers:?} of {expected:?}")) }
    })
}

#[test]
fn what_the_application_writes_reaches_the_primary_two_sites_away_and_every_site_between() {
    let (federation, vm) = placed_at_c(&users());
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    for users in 1..=50 {
        application.write("web", &format!("users,load\n{users},0.5\n"));
    }
    let all: Vec<i64> = (1..=50).collect();
    for site in ["a", "b", "c"] {
        let shown = wait_for_numbers(&federation, site, &all);
        assert_eq!(shown["standing"]["missing"], 0, "{site}: {shown}");
        assert_eq!(shown["standing"]["dropped"], 0, "{site}: {shown}");
        let order: Vec<u64> = shown["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value["number"].as_u64().unwrap())
            .collect();
        assert_eq!(order, (1..=50).collect::<Vec<u64>>(), "{site}");
    }
    let table =
        federation["a"].run(&["vm", "kpi", "web", "--sql", "SELECT max(users) AS most FROM web"]);
    assert!(table.out.contains("50"), "{table:?}");
}

#[test]
fn the_primary_changes_what_is_monitored_while_the_guest_runs_elsewhere_and_moves() {
    let (federation, vm) = placed_at_c(&users());
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    application.write("web", "users,load\n1,0.5\n");
    wait_for_numbers(&federation, "a", &[1]);
    let file = federation.folder().join("section.xml");
    let set = |measure: &str| {
        let text = format!(
            "<sj:MonitoringSection xmlns:sj='https://sojourn.example/ovf/1'>\n<Info>new</Info>\n\
             <sj:Monitor measure='{measure}'/>\n</sj:MonitoringSection>\n"
        );
        std::fs::write(&file, text).unwrap();
        vec!["vm", "set", "web", "--monitoring", file.to_str().unwrap()]
    };
    for (site, measure, why) in [
        ("a", "cpu", "line 3"),
        ("b", "web.load", "only the site that the VM was imported at"),
        ("c", "web.load", "only the site that the VM was imported at"),
    ] {
        let refused = federation[site].run(&set(measure));
        assert!(refused.code != 0 && refused.err.contains(why), "{site}: {refused:?}");
    }
    federation["a"].done(&set("web.visits"));
    for site in ["a", "b", "c"] {
        let shown = federation[site].done(&["vm", "show", "web", "--monitoring"]);
        assert_eq!(shown["revision"], 2, "{site}: {shown}");
        assert!(shown["section"].as_str().unwrap().contains("web.visits"), "{site}: {shown}");
    }
    let until = |application: &mut Application, rows: &str, site: &str, expected: i64| {
        federation.wait_for("the new section counts", SOON, || {
            application.write("web", rows);
            let newest = numbers(&shown(&federation, site)).last().copied();
            if newest == Some(expected) { Ok(()) } else { Err(format!("{newest:?}")) }
        });
    };
    until(&mut application, "users,visits\n2,7\n", "a", 7);
    // What is printed can be edited and set again; it moves with the VM.
    let shown = federation["a"].done(&["vm", "show", "web", "--monitoring"]);
    let printed = shown["section"].as_str().unwrap().replace("web.visits", "web.errors");
    std::fs::write(&file, printed).unwrap();
    federation["a"].done(&["vm", "set", "web", "--monitoring", file.to_str().unwrap()]);
    federation["b"].host("b1", 4);
    federation["c"].done(&["vm", "evict", "web", "--reason", "maintenance"]);
    federation.wait_for("it runs at b", SOON, || {
        federation.runs_at(&vm, "b").map(|_| ()).ok_or_else(|| "it does not".to_owned())
    });
    application.connect(&guest(&federation, &vm, "b"));
    until(&mut application, "visits,errors\n8,9\n", "a", 9);
}

#[test]
fn values_wait_while_a_site_between_is_down_and_none_is_lost_or_shown_twice() {
    let (federation, vm) = placed_at_c(&users());
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    let write = |from: i64, to: i64| {
        (from..=to).for_each(|users| application.write("web", &format!("users\n{users}\n")));
    };
    write(1, 5);
    wait_for_numbers(&federation, "a", &[1, 2, 3, 4, 5]);
    federation["b"].kill();
    write(6, 10);
    let shown = wait_for_numbers(&federation, "c", &(1..=10).collect::<Vec<i64>>());
    assert_eq!(shown["standing"]["owed"], 5, "{shown}");
    // Also the one that has them is stopped, with values on their way.
    federation["c"].kill();
    federation["c"].start();
    write(11, 15);
    federation["b"].start();
    let shown = wait_for_numbers(&federation, "a", &(1..=15).collect::<Vec<i64>>());
    assert_eq!(shown["standing"]["missing"], 0, "{shown}");
    assert_eq!(shown["standing"]["values"], 15, "each counted once: {shown}");
    federation.wait_for("nothing is owed", SOON, || {
        let owed: Vec<Value> =
            ["b", "c"].map(|site| shown_standing(&federation, site)["owed"].clone()).to_vec();
        if owed.iter().all(|owed| *owed == 0) { Ok(()) } else { Err(format!("{owed:?}")) }
    });
}

fn shown_standing(federation: &Federation, site: &str) -> Value {
    shown(federation, site)["standing"].clone()
}

#[test]
fn numbers_and_intervals_go_on_over_a_migration_in_the_middle_of_an_interval() {
    let raw = specifier("web.users", Delivery::Every(0), Format::Raw);
    let most = specifier("web.users", Delivery::Every(20_000), Format::Max);
    let monitoring = Monitoring { specifiers: vec![raw, most], ..Monitoring::default() };
    let (federation, vm) = placed_at_c(&monitoring);
    federation["b"].host("b1", 4);
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    application.write("web", "users\n900\n");
    wait_for_numbers(&federation, "a", &[900]);
    application.disconnect();
    federation["a"].done(&["vm", "migrate", "web", "--peer", "b"]);
    federation.settle(&vm, "b", true, &["a", "b"]);
    application.connect(&guest(&federation, &vm, "b"));
    application.write("web", "users\n7\n");
    let values = federation.wait_for("the interval has ended", SOON, || {
        let shown = shown(&federation, "a");
        let values = shown["values"].as_array().unwrap().clone();
        if values.len() == 3 { Ok(values) } else { Err(format!("{shown}")) }
    });
    let one = |value: &Value| {
        let text = |name: &str| value[name].to_string();
        format!("{} {} {} of {}", text("number"), text("format"), text("value"), text("of"))
    };
    let all: Vec<String> = values.iter().map(one).collect();
    assert_eq!(
        all,
        ["1 \"raw\" 900 of 1", "2 \"raw\" 7 of 1", "3 \"max\" 900 of 2"],
        "the maximum is of both sites"
    );
    let epochs: Vec<u64> = values.iter().map(|value| value["epoch"].as_u64().unwrap()).collect();
    assert_eq!(epochs, [1, 2, 2]);
    assert_eq!(shown_standing(&federation, "a")["missing"], 0);
}

#[test]
fn values_that_no_site_above_had_move_with_the_vm() {
    let (federation, vm) = placed_at_c(&users());
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    application.write("web", "users\n1\n");
    wait_for_numbers(&federation, "a", &[1]);
    // c keeps what it cannot deliver. Then c is gone for good, and only what moved is left.
    federation["b"].kill();
    application.write("web", "users\n2\n");
    wait_for_numbers(&federation, "c", &[1, 2]);
    application.disconnect();
    federation["c"].host("c2", 4);
    federation["c"].done(&["host", "drain", "c1"]);
    let moved = guest(&federation, &vm, "c");
    assert!(moved.to_str().unwrap().contains("/c2/"), "{moved:?}");
    application.connect(&moved);
    application.write("web", "users\n3\n");
    wait_for_numbers(&federation, "c", &[1, 2, 3]);
    federation["b"].start();
    let shown = wait_for_numbers(&federation, "a", &[1, 2, 3]);
    assert_eq!(shown["standing"]["missing"], 0, "{shown}");
}

#[test]
fn what_is_sealed_is_read_at_the_primary_alone() {
    let open = specifier("web.users", Delivery::Every(0), Format::Raw);
    let hidden =
        Specifier { sealed: true, ..specifier("web.income", Delivery::Every(0), Format::Raw) };
    let file = specifier("encrypted/balance", Delivery::Every(0), Format::Raw);
    let file = Specifier { sealed: true, ..file };
    let specifiers = vec![open, hidden, file];
    let (federation, vm) = placed_at_c(&Monitoring { specifiers, ..Monitoring::default() });
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    application.write("web", "users,income\n5,314159265\n");
    application.write_encrypted("balance", "2718281828");
    let shown = federation.wait_for("all is there", SOON, || {
        let shown = shown(&federation, "a");
        let count = shown["values"].as_array().unwrap().len();
        if count == 3 { Ok(shown) } else { Err(format!("{shown}")) }
    });
    assert_eq!(numbers(&shown), [5, 314_159_265]);
    let file =
        shown["values"].as_array().unwrap().iter().find_map(|v| v["value"]["base64"].as_str());
    assert_eq!(file, Some("MjcxODI4MTgyOA=="), "{shown}");
    let between = wait_for_numbers(&federation, "b", &[5]);
    assert_eq!(between["standing"]["sealed"], 2, "{between}");
    for site in ["b", "c"] {
        for name in ["monitoring.db", "monitoring.db-wal"] {
            let kept = std::fs::read(federation[site].folder().join(name)).unwrap_or_default();
            for secret in [&b"314159265"[..], b"2718281828"] {
                let found = kept.windows(secret.len()).any(|part| part == secret);
                assert!(!found, "{site} keeps {:?} in {name}", String::from_utf8_lossy(secret));
            }
        }
    }
}

#[test]
fn the_owner_of_a_real_guest_follows_its_users_and_its_use_while_it_moves() {
    let Ok(disk) = guest_disk().map_err(|why| missing("qemu", why)) else { return };
    let mut federation = Federation::new();
    for name in ["a", "b", "c"] {
        federation.add_real(name).start();
    }
    federation.join("a", "b");
    federation.join("b", "c");
    let users = specifier("web.current_users", Delivery::Every(0), Format::Raw);
    let time = specifier("cpu_time", Delivery::Every(0), Format::Raw);
    let time = Specifier { interval_ms: 1_000, ..time };
    let monitoring = Monitoring { specifiers: vec![users, time], ..Monitoring::default() };
    let package = federation.monitored("web", Some(&disk), &monitoring);
    let vm = federation["a"].done(&["vm", "import", &package.display().to_string()]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    federation["c"].host("c1", 1);
    federation["a"].done(&["vm", "place", "web"]);

    let of = |shown: &Value, measure: &str, epoch: u64| -> Vec<f64> {
        let values = shown["values"].as_array().unwrap().iter();
        let fits = |value: &&Value| value["measure"] == measure && value["epoch"] == epoch;
        values.filter(fits).map(|value| value["value"].as_f64().unwrap()).collect()
    };
    let follow = |epoch: u64| {
        federation.wait_for("its users and its use are told", SLOW, || {
            let shown = shown(&federation, "a");
            let (users, time) =
                (of(&shown, "web.current_users", epoch), of(&shown, "cpu_time", epoch));
            let is_told = users.len() >= 3 && time.len() >= 3;
            if is_told { Ok(shown) } else { Err(format!("{users:?} {time:?}")) }
        })
    };
    follow(1);
    federation["b"].host("b1", 1);
    federation["c"].done(&["vm", "evict", "web", "--reason", "closing"]);
    federation.settle(&vm, "b", true, &["a", "b"]);
    let shown = follow(2);
    assert_eq!(shown["standing"]["missing"], 0, "{shown}");
    let time = [of(&shown, "cpu_time", 1), of(&shown, "cpu_time", 2)].concat();
    assert!(time.is_sorted(), "its time goes on over both sites: {time:?}");
    // The application's visitors come 25 a second, and go 25 a second.
    let users = [of(&shown, "web.current_users", 1), of(&shown, "web.current_users", 2)].concat();
    assert!(users.iter().all(|users| (0.0..=2_000.0).contains(users)), "{users:?}");
    assert!(users.iter().any(|users| *users > 0.0), "{users:?}");
    // What it used is stated of each stay up to its end, and is at least what was measured in it.
    let last = |epoch: u64| of(&shown, "cpu_time", epoch).pop().unwrap();
    federation.wait_for("all of its use is stated", SLOW, || {
        let stays = federation["a"].done(&["usage", "export", "--by", "stay"]);
        let seconds = |at: usize| stays[at]["cpu_seconds"].as_f64().unwrap_or_default();
        let (first, both) = (seconds(0), seconds(0) + seconds(1));
        let is_all = first >= last(1) - 1e-6 && both >= last(2) - 1e-6;
        if !is_all || stays[0]["state"] != "final" {
            return Err(format!("{} and {} of {stays:#}", last(1), last(2)));
        }
        assert!(first < last(2), "the second counts on: {stays:#}");
        let unknown = |at: usize| stays[at]["network_sent_bytes"].is_null();
        assert!(unknown(0) && unknown(1), "nobody counts there, which is not zero: {stays:#}");
        let total = federation["a"].done(&["usage", "export"]);
        let sum = total[0]["cpu_seconds"].as_f64().unwrap();
        // The newest statement may be newer by now.
        if sum >= both - 1e-6 { Ok(()) } else { Err(format!("{both} and not {sum}")) }
    });
}

#[test]
fn a_condition_that_comes_true_has_the_owners_policy_move_the_vm() {
    let condition = Delivery::When("> 1000 ~ 100".parse().unwrap());
    let alarm = specifier("web.users", condition, Format::Raw);
    let (federation, vm) =
        placed_at_c(&Monitoring { specifiers: vec![alarm], ..Monitoring::default() });
    let a = &federation["a"];
    let rule = "package sojourn.trigger\n\nimport rego.v1\n\n\
        move contains \"too many users\" if {\n\tinput.measure == \"web.users\"\n\t\
        input.value > 1500\n}\n";
    std::fs::write(a.folder().join("policies/trigger.rego"), rule).unwrap();
    a.stop();
    a.start();
    a.host("a1", 1);
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    let wait_for_event = |words: &str| {
        federation.wait_for("an event", SOON, || {
            let events = a.run(&["vm", "events", "web"]).out;
            if events.contains(words) { Ok(()) } else { Err(events) }
        });
    };
    application.write("web", "users\n1200\n");
    wait_for_event("web.users > 1000 ~ 100: 1200");
    wait_for_event("leaves it where it is");
    assert!(federation.runs_at(&vm, "c").is_some());
    application.write("web", "users\n10\n");
    application.write("web", "users\n1600\n");
    wait_for_event("too many users; operation");
    application.disconnect();
    federation.settle(&vm, "a", true, &["a"]);
}

#[test]
fn a_limit_of_service_that_is_broken_is_held_against_each_contract_of_the_path_with_its_evidence() {
    let federation = Federation::chain(&["a", "b", "c"]);
    for (site, penalty) in [("b", 500), ("c", 200)] {
        federation[site].configure("offer", "penalty_milli", penalty);
        federation[site].stop();
        federation[site].start();
    }
    federation["c"].host("c1", 4);
    let condition = || Delivery::When("> 10".parse().unwrap());
    let limit = |measure, sealed| Specifier {
        sealed,
        limit: true,
        ..specifier(measure, condition(), Format::Raw)
    };
    let specifiers = vec![limit("web.users", false), limit("web.income", true)];
    let monitoring = Monitoring { specifiers, ..Monitoring::default() };
    let package = federation.monitored("web", None, &monitoring);
    let a = &federation["a"];
    let vm = a.done(&["vm", "import", &package.display().to_string()])["id"].clone();
    let vm = vm.as_str().unwrap();
    a.done(&["vm", "place", "web"]);
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, vm, "c"));
    application.write("web", "users,income\n5,5\n");
    application.write("web", "users,income\n50,70\n");
    let violations = |site: &str, count: usize| {
        federation.wait_for("what was broken is known", SOON, || {
            let found = federation[site].done(&["contract", "violations", "--vm", vm]);
            let found = found.as_array().unwrap().clone();
            if found.len() == count { Ok(found) } else { Err(format!("{found:?}")) }
        })
    };
    let contract = |site: &str, role: &str| {
        let all = federation[site].done(&["contract", "list"]);
        let found = all.as_array().unwrap().iter().find(|one| one["role"] == role).cloned();
        found.map_or((Value::from(""), 0), |one| {
            (one["id"].clone(), one["penalty_milli"].as_u64().unwrap())
        })
    };
    // What is sealed is known to the primary alone.
    let found = ["a", "b", "c"].map(|site| (site, violations(site, 1 + usize::from(site == "a"))));
    let evidence = found[0].1[0]["signed"].clone();
    for (site, found) in &found {
        let one = &found[0];
        assert_eq!((&one["measure"], &one["value"]), (&"web.users".into(), &50.0.into()), "{site}");
        assert_eq!(one["signed"], evidence, "the same word of the same owner");
        assert_eq!(one["owed_by"], contract(site, "customer").0, "{site}");
        assert_eq!(one["owes_by"], contract(site, "provider").0, "{site}");
    }
    assert_eq!(found[0].1[1]["measure"], "web.income");
    // A site between passes on the terms that it is offered.
    assert_eq!([contract("a", "customer").1, contract("b", "customer").1], [200, 200]);
}

#[test]
fn a_value_that_a_site_between_has_altered_is_refused_and_missed() {
    let (federation, vm) = placed_at_c(&users());
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    application.write("web", "users\n1\n");
    wait_for_numbers(&federation, "a", &[1]);
    federation["a"].stop();
    for users in 2..=4 {
        application.write("web", &format!("users\n{users}\n"));
        wait_for_numbers(&federation, "b", &(1..=users).collect::<Vec<i64>>());
    }
    federation["b"].stop();
    // b passes on another number of users than it got.
    let book = rusqlite::Connection::open(federation["b"].folder().join("monitoring.db")).unwrap();
    let (id, mut body): (i64, Vec<u8>) = book
        .query_row("SELECT id, body FROM blocks WHERE first = 3", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    let place = body.iter().rposition(|byte| *byte == 6).expect("a 3 is written as a 6");
    body[place] = 8;
    let changed = book.execute("UPDATE blocks SET body = ?2 WHERE id = ?1", (id, body)).unwrap();
    assert_eq!(changed, 1);
    drop(book);
    federation["b"].start();
    federation["a"].start();
    let shown = wait_for_numbers(&federation, "a", &[1, 2, 4]);
    assert_eq!(shown["standing"]["missing"], 1, "{shown}");
    federation.wait_for("b counts what was not taken", SOON, || {
        let standing = shown_standing(&federation, "b");
        if standing["dropped"] == 1 { Ok(()) } else { Err(standing.to_string()) }
    });
}
