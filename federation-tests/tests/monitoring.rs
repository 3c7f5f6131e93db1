//! What is measured of a VM reaches its primary, over the sites in between, whatever happens on the
//! way.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::path::PathBuf;
use std::time::Duration;

use federation_tests::process::application::Application;
use federation_tests::process::{Federation, SOON, Small, guest_disk, missing};
use kpi_fs::outbox::Outbox;
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
    let vm = place_at_c(&federation, monitoring);
    (federation, vm)
}

fn place_at_c(federation: &Federation, monitoring: &Monitoring) -> String {
    federation["c"].host("c1", 4);
    let package = federation.monitored("web", None, monitoring);
    let a = &federation["a"];
    let vm = a.done(&["vm", "import", &package.display().to_string()]);
    a.done(&["vm", "place", "web"]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    federation.wait_for("it runs at c", SOON, || {
        federation.runs_at(&vm, "c").map(|_| ()).ok_or_else(|| "it does not".to_owned())
    });
    vm
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
    wait_until_nothing_is_owed(&federation);
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

/// Waits until so many values are at a site, each counted once.
fn wait_for_count(federation: &Federation, site: &str, expected: i64) {
    federation.wait_for("all values are there", SOON, || {
        let standing = federation[site].done(&["vm", "kpi", "web"])["standing"].clone();
        if standing["values"] == expected { Ok(()) } else { Err(standing.to_string()) }
    });
}

fn wait_until_nothing_is_owed(federation: &Federation) {
    federation.wait_for("nothing is owed", SOON, || {
        let owed = ["b", "c"].map(|site| shown_standing(federation, site)["owed"].clone());
        if owed.iter().all(|owed| *owed == 0) { Ok(()) } else { Err(format!("{owed:?}")) }
    });
}

#[test]
fn a_site_between_that_stands_still_and_whose_disk_is_slow_loses_and_repeats_nothing() {
    const ROUNDS: i64 = 4;
    const ROWS: i64 = 1_000;
    const MEMORY_MIB: u64 = 64;
    let (federation, vm) = placed_at_c(&users());
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    let write = |from: i64| {
        let rows: String = (from..from + ROWS).map(|users| format!("{users}\n")).collect();
        application.write("web", &format!("users\n{rows}"));
    };
    write(1);
    wait_for_count(&federation, "a", ROWS);
    let memory = || federation.sites().iter().map(|site| site.usage().most_memory.0 >> 20);
    let before: Vec<u64> = memory().collect();
    let mut written = ROWS;
    for _ in 0..ROUNDS {
        federation["b"].freeze();
        write(written + 1);
        written += ROWS;
        // Whoever waits for b does not hold up who writes.
        wait_for_count(&federation, "c", written);
        let owed = shown_standing(&federation, "c")["owed"].as_i64().unwrap();
        assert!((1..=written).contains(&owed), "{owed} of {written}");
        federation["b"].thaw();
        // Another program has b's database, so that b's commits wait.
        let book = rusqlite::Connection::open(federation["b"].folder().join("monitoring.db"));
        let book = book.unwrap();
        book.busy_timeout(SOON).unwrap();
        book.execute_batch("BEGIN IMMEDIATE").unwrap();
        write(written + 1);
        written += ROWS;
        wait_for_count(&federation, "c", written);
        book.execute_batch("ROLLBACK").unwrap();
    }
    let all: Vec<i64> = (1..=written).collect();
    for site in ["a", "b", "c"] {
        wait_for_count(&federation, site, written);
        let shown = shown(&federation, site);
        assert_eq!(numbers(&shown), all, "{site}");
        assert_eq!(shown["standing"]["missing"], 0, "{site}");
        assert_eq!(shown["standing"]["dropped"], 0, "{site}");
    }
    wait_until_nothing_is_owed(&federation);
    for ((site, now), before) in federation.sites().iter().zip(memory()).zip(before) {
        let name = site.name();
        assert!(now <= before + MEMORY_MIB, "{name}: {before} MiB before, {now} MiB now");
    }
}

/// Milliseconds since 1970, by this machine's clock.
fn clock() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// a, b, c whose clocks differ by these seconds from this machine's.
fn told_by_different_clocks(seconds: [i64; 3]) {
    const DELIVERY_MS: i64 = 1_500;
    const LASTING_MS: i64 = 700;
    let mut federation = Federation::new();
    for (name, seconds) in ["a", "b", "c"].into_iter().zip(seconds) {
        match federation.add_ahead(name, seconds) {
            Ok(site) => site.start(),
            Err(why) => return missing("faketime", why),
        }
    }
    federation.join("a", "b");
    federation.join("b", "c");
    let raw = specifier("web.users", Delivery::Every(0), Format::Raw);
    let condition = format!("> 1000 ~ 1 for {LASTING_MS} ms").parse().unwrap();
    let alarm = specifier("web.users", Delivery::When(condition), Format::Max);
    let delivery = Delivery::Every(u32::try_from(DELIVERY_MS).unwrap());
    let most = Specifier { interval_ms: 100, ..specifier("cpu_time", delivery, Format::Max) };
    let specifiers = vec![raw, alarm, most];
    let vm = place_at_c(&federation, &Monitoring { specifiers, ..Monitoring::default() });
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    let begun = clock();
    for users in [5, 2000, 3000, 7] {
        application.write("web", &format!("users\n{users}\n"));
        if users == 2000 {
            // It is still above when it has lasted.
            wait_for_told(&federation, "max", "> 1000", 1);
        }
    }
    wait_for_told(&federation, "raw", "", 4);
    wait_for_told(&federation, "max", "", 3);
    let shown = shown(&federation, "a");
    let ended = clock();
    assert_eq!(shown["standing"]["missing"], 0, "{shown}");
    let values = shown["values"].as_array().unwrap();
    let number = |value: &Value, name: &str| value[name].as_i64().unwrap();
    let all: Vec<i64> = values.iter().map(|value| number(value, "number")).collect();
    let expected: Vec<i64> = (1..).take(values.len()).collect();
    assert_eq!(all, expected, "in order, once: {shown}");
    let within = |what: &str, at: i64, seconds: i64| {
        let (from, to) = (begun + seconds * 1000 - 10_000, ended + seconds * 1000 + 10);
        assert!((from..=to).contains(&at), "{what}: {at} is not in {from}..{to}: {shown}");
    };
    let of = |format: &str, condition: &str| -> Vec<&Value> {
        values.iter().filter(|value| is_told(value, format, condition)).collect()
    };
    for value in values {
        within("came at a, by a's clock", number(value, "received_unix_ms"), seconds[0]);
    }
    // What the hypervisor measures has c's time, and c's intervals.
    let windows = of("max", "");
    let times: Vec<i64> = windows.iter().map(|value| number(value, "at_unix_ms")).collect();
    times.iter().for_each(|at| within("measured at c, by c's clock", *at, seconds[2]));
    let spans: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(spans.iter().all(|span| *span > 0 && span % DELIVERY_MS == 0), "{spans:?}");
    let measured: i64 = windows.iter().map(|value| number(value, "of")).sum();
    assert!(measured > i64::try_from(windows.len()).unwrap(), "{windows:?}");
    // A row has the time at which its guest stored it, but never one that c has not seen yet. The
    // guest's clock is this machine's.
    let raw = of("raw", "");
    let times: Vec<i64> = raw.iter().map(|value| number(value, "at_unix_ms")).collect();
    times.iter().for_each(|at| within("stored in the guest", *at, seconds[2].min(0)));
    assert!(times.is_sorted(), "{times:?}");
    let rows: Vec<i64> = raw.iter().map(|value| number(value, "value")).collect();
    assert_eq!(rows, [5, 2000, 3000, 7]);
    // What lasts, lasts by the time of the rows.
    let [alarm] = of("max", "> 1000")[..] else { panic!("once, and only once: {shown}") };
    assert_eq!(number(alarm, "value"), 2000);
    assert_eq!(number(alarm, "at_unix_ms"), times[1] + LASTING_MS, "{shown}");
}

/// Whether a value was told in this format, under a condition that begins so.
fn is_told(value: &Value, format: &str, condition: &str) -> bool {
    let told = value["condition"].as_str().unwrap();
    value["format"] == format
        && told.starts_with(condition)
        && told.is_empty() == condition.is_empty()
}

fn wait_for_told(federation: &Federation, format: &str, condition: &str, count: usize) {
    federation.wait_for("it is told", SOON, || {
        let shown = shown(federation, "a");
        let told = shown["values"].as_array().unwrap().iter();
        let told = told.filter(|value| is_told(value, format, condition)).count();
        if told >= count { Ok(()) } else { Err(shown.to_string()) }
    });
}

#[test]
fn where_clocks_are_ahead_up_the_path_times_order_and_intervals_are_the_producers() {
    told_by_different_clocks([100, 0, -100]);
}

#[test]
fn where_clocks_are_behind_up_the_path_times_order_and_intervals_are_the_producers() {
    told_by_different_clocks([-100, 0, 100]);
}

/// a, b, c, of which one keeps its values on a disk of its own, which can be filled.
fn with_a_disk_for_values(of: &str) -> Option<(Federation, Small)> {
    let mut federation = Federation::new();
    let small = Small::over(&federation.folder().join("small"), 2048)?;
    for name in ["a", "b", "c"] {
        let database = federation.add(name).folder().join("monitoring.db");
        if name == of {
            let target = federation.folder().join("small/monitoring.db");
            std::os::unix::fs::symlink(target, database).unwrap();
        }
        federation[name].start();
    }
    federation.join("a", "b");
    federation.join("b", "c");
    Some((federation, small))
}

/// Writes one number after the other until the site says that its database fails; the last one.
fn write_until_full(
    federation: &Federation,
    site: &str,
    application: &Application,
    first: i64,
) -> i64 {
    let mut users = first - 1;
    federation.wait_for("its disk is full", SOON, || {
        users += 1;
        application.write("web", &format!("users\n{users}\n"));
        let log = federation[site].log_text();
        let is_full = log.contains("the monitoring database failed");
        if is_full { Ok(users) } else { Err(format!("{users} rows were written")) }
    })
}

fn all_arrive(federation: &Federation, written: i64) {
    let shown = wait_for_numbers(federation, "a", &(1..=written).collect::<Vec<i64>>());
    assert_eq!(shown["standing"]["missing"], 0, "{shown}");
    assert_eq!(shown["standing"]["values"], written, "{shown}");
    wait_until_nothing_is_owed(federation);
}

/// The site does what its VM's owner wants, and the guest is the one that it was.
fn is_in_order(federation: &Federation, vm: &str, site: &str, act: impl FnOnce()) {
    let boot = federation.runs_at(vm, "c").expect("it runs at c").boot;
    federation[site].done(&["vm", "pause", "web"]);
    federation[site].done(&["vm", "resume", "web"]);
    act();
    assert!(!federation[site].is_gone());
    assert_eq!(federation.runs_at(vm, "c").expect("it still does").boot, boot);
}

#[test]
fn a_site_between_with_a_full_disk_stays_up_and_its_values_wait_below_until_there_is_space() {
    let Some((federation, small)) = with_a_disk_for_values("b") else { return };
    let vm = place_at_c(&federation, &users());
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    application.write("web", "users\n1\n");
    wait_for_numbers(&federation, "a", &[1]);
    small.fill();
    let full = write_until_full(&federation, "b", &application, 2);
    let written = full + 10;
    for users in full + 1..=written {
        application.write("web", &format!("users\n{users}\n"));
    }
    federation.wait_for("c keeps them", SOON, || {
        let standing = shown_standing(&federation, "c");
        let owed = standing["owed"].as_i64().unwrap();
        let is_kept = standing["values"] == written && owed >= 10;
        if is_kept { Ok(()) } else { Err(standing.to_string()) }
    });
    is_in_order(&federation, &vm, "b", || {
        small.free();
        all_arrive(&federation, written);
    });
}

#[test]
fn a_site_whose_disk_is_full_when_a_vm_comes_through_it_passes_its_values_on_when_there_is_space() {
    let Some((federation, small)) = with_a_disk_for_values("b") else { return };
    small.fill();
    let vm = place_at_c(&federation, &users());
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    let written = write_until_full(&federation, "b", &application, 1);
    wait_for_numbers(&federation, "c", &(1..=written).collect::<Vec<i64>>());
    is_in_order(&federation, &vm, "b", || {
        small.free();
        all_arrive(&federation, written);
    });
}

#[test]
fn rows_wait_in_the_guest_while_the_disk_of_the_site_that_runs_it_is_full() {
    let Some((federation, small)) = with_a_disk_for_values("c") else { return };
    let vm = place_at_c(&federation, &users());
    let database = federation.folder().join("kpi.db");
    let mut application = Application::new(&database);
    application.connect(&guest(&federation, &vm, "c"));
    application.write("web", "users\n1\n");
    wait_for_numbers(&federation, "a", &[1]);
    small.fill();
    let full = write_until_full(&federation, "c", &application, 2);
    let written = full + 10;
    for users in full + 1..=written {
        application.write("web", &format!("users\n{users}\n"));
    }
    let state = Outbox::open(&database).unwrap().state().unwrap();
    assert_eq!((state.last, state.dropped), (written, 0), "the guest does not wait for its site");
    assert!(state.acknowledged < written, "nothing is called safe that is not: {state:?}");
    is_in_order(&federation, &vm, "c", || {
        small.free();
        all_arrive(&federation, written);
    });
}
