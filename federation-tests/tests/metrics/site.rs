//! What the metrics of a federation tell after a placement and some values, and that every one is
//! documented and every name that documents or dashboard use exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use federation_tests::process::application::Application;
use federation_tests::process::{Federation, SOON};
use model::Monitoring;
use model::monitoring::{Delivery, Format, Specifier};
use serde_json::Value;

use crate::http::{metrics, wait_for, watch};
use crate::openmetrics::{Exposition, Family};

fn specifier(measure: &str, delivery: Delivery) -> Specifier {
    let measure = measure.parse().unwrap();
    Specifier {
        measure,
        interval_ms: 0,
        delivery,
        format: Format::Raw,
        sealed: false,
        limit: false,
    }
}

/// The runtime folder of the VM's guest at a site.
pub(crate) fn guest(federation: &Federation, vm: &str, site: &str) -> PathBuf {
    let is_there = || federation.runs_at(vm, site).ok_or_else(|| format!("no guest at {site}"));
    federation.wait_for("the guest is there", SOON, is_there).folder
}

/// a, b, c in a row, of which a shows the users; the VM of a runs at c, and has told five values.
fn placed() -> (Federation, Application) {
    let mut federation = Federation::new();
    for name in ["a", "b", "c"] {
        let site = federation.add(name);
        watch(site);
        site.configure("metrics", "kpis", vec!["web.users"]);
        site.start();
    }
    federation.join("a", "b");
    federation.join("b", "c");
    federation["c"].host("c1", 4);
    // The second is sampled, and never comes true.
    let never = Delivery::When("< 0".parse().unwrap());
    let specifiers =
        vec![specifier("web.users", Delivery::Every(0)), specifier("memory_resident", never)];
    let monitoring = Monitoring { specifiers, ..Monitoring::default() };
    let package = federation.monitored("web", None, &monitoring);
    let vm = federation["a"].done(&["vm", "import", &package.display().to_string()]);
    let vm = vm["id"].as_str().unwrap().to_owned();
    federation["a"].done(&["vm", "place", "web"]);
    federation.settle(&vm, "c", true, &["a", "b", "c"]);
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(&federation, &vm, "c"));
    for users in 1..=5 {
        application.write("web", &format!("users\n{users}\n"));
    }
    (federation, application)
}

#[test]
fn metrics_of_three_sites_tell_exactly_what_has_happened_and_each_is_documented() {
    let (federation, _application) = placed();
    let a = wait_for(
        &federation,
        "a",
        &[
            r#"sojourn_vms{role="primary"} 1"#,
            r#"sojourn_vms{role="intermediary"} 0"#,
            r#"sojourn_vms{role="host"} 0"#,
            r#"sojourn_guests{power="active"} 0"#,
            r#"sojourn_operations_total{end="done"} 1"#,
            r#"sojourn_operations_total{end="gave_up"} 0"#,
            "sojourn_operations_open 0",
            r#"sojourn_migrations_total{role="source",outcome="receipted"} 1"#,
            r#"sojourn_migrations_total{role="destination",outcome="owned"} 0"#,
            r#"sojourn_peer_requests_total{peer="b",direction="sent",operation="migration request",answer="offers"} 1"#,
            r#"sojourn_peer_request_duration_seconds_count{peer="b",direction="sent",operation="migration request"} 1"#,
            r#"sojourn_peer_reachable{peer="b"} 1"#,
            r#"sojourn_monitoring_values_taken_total{origin="peer"} 5"#,
            r#"sojourn_monitoring_values_taken_total{origin="guest"} 0"#,
            "sojourn_monitoring_values_missing 0",
            "sojourn_monitoring_values_dropped_total 0",
            r#"sojourn_policy_decisions_total{decision="rank",verdict="some"} 1"#,
            r#"sojourn_vm_kpi{vm="web",measure="web.users",format="raw"} 5"#,
            "sojourn_vm_kpi_series_dropped 0",
        ],
    );
    let b = wait_for(
        &federation,
        "b",
        &[
            r#"sojourn_vms{role="primary"} 0"#,
            r#"sojourn_vms{role="intermediary"} 1"#,
            r#"sojourn_vms{role="host"} 0"#,
            r#"sojourn_operations_total{end="done"} 0"#,
            r#"sojourn_peer_requests_total{peer="a",direction="received",operation="migration request",answer="offers"} 1"#,
            r#"sojourn_peer_requests_total{peer="c",direction="sent",operation="migration request",answer="offers"} 1"#,
            r#"sojourn_monitoring_values_taken_total{origin="peer"} 5"#,
            r#"sojourn_monitoring_values_forwarded_total{peer="a"} 5"#,
            r#"sojourn_monitoring_backlog_values{peer="a"} 0"#,
            "sojourn_monitoring_blocks_refused_total 0",
            r#"sojourn_policy_decisions_total{decision="delegate",verdict="allow"} 1"#,
            "sojourn_vm_kpi_series_dropped 0",
        ],
    );
    assert_eq!(b.of("sojourn_vm_kpi").count(), 0, "b is not the primary");
    let c = wait_for(
        &federation,
        "c",
        &[
            r#"sojourn_vms{role="host"} 1"#,
            r#"sojourn_vms{role="intermediary"} 0"#,
            r#"sojourn_guests{power="active"} 1"#,
            r#"sojourn_guests{power="defined"} 0"#,
            r#"sojourn_host_cpus{host="c1"} 4"#,
            r#"sojourn_host_cpus_used{host="c1"} 1"#,
            r#"sojourn_host_memory_bytes{host="c1"} 536870912"#,
            r#"sojourn_host_memory_used_bytes{host="c1"} 134217728"#,
            r#"sojourn_migrations_total{role="destination",outcome="owned"} 1"#,
            r#"sojourn_migrations_total{role="source",outcome="receipted"} 0"#,
            r#"sojourn_monitoring_values_taken_total{origin="guest"} 5"#,
            r#"sojourn_monitoring_values_forwarded_total{peer="b"} 5"#,
            // For the offer, and when it was taken.
            r#"sojourn_policy_decisions_total{decision="admit",verdict="allow"} 2"#,
            "sojourn_vms_parked 0",
            "sojourn_vms_held 0",
        ],
    );
    // The disk has 1 MiB without a zero, and it crossed the network once.
    for (exposition, role) in [(&a, "source"), (&c, "destination")] {
        let series = format!("sojourn_transfer_bytes_total{{role=\"{role}\"}}");
        let bytes = exposition.get(&series).unwrap();
        assert!((1_048_576.0..2_097_152.0).contains(&bytes), "{series} {bytes}");
    }
    assert!(c.get("sojourn_guest_measure_duration_seconds_count") > Some(0.0));
    for (site, exposition) in [("a", &a), ("b", &b), ("c", &c)] {
        let rows = federation[site].rows().len() as f64;
        assert_eq!(exposition.get("sojourn_journal_rows_total"), Some(rows), "{site}");
        let syncs = exposition.get("sojourn_journal_sync_duration_seconds_count").unwrap();
        assert!(syncs > 0.0, "{site}");
        assert_eq!(exposition.sum("sojourn_build_info", &["version=\"0.1.0\""]), 1.0, "{site}");
        assert!(exposition.get("sojourn_uptime_seconds") > Some(0.0), "{site}");
    }
    let no_vm = |exposition: &Exposition| {
        let of_vm = |(name, _): &(&String, &Family)| name.starts_with("sojourn_vm_kpi");
        let others = exposition.families.iter().filter(|family| !of_vm(family));
        others.flat_map(|(_, family)| &family.labels).all(|label| label != "vm")
    };
    assert!([&a, &b, &c].into_iter().all(no_vm), "VMs are labels of KPIs alone");
    documents_agree(&[a, b, c]);
}

/// Every metric has its line in METRICS.md, as it is told; and every name in README.md, METRICS.md
/// and the dashboard is one that was told.
fn documents_agree(told: &[Exposition]) {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for (name, family) in told.iter().flat_map(|exposition| &exposition.families) {
        let known = families.entry(name.clone()).or_insert_with(|| family.clone());
        known.labels.extend(family.labels.iter().cloned());
        let same = (&known.kind, &known.help, &known.unit);
        assert_eq!(same, (&family.kind, &family.help, &family.unit), "{name}");
    }
    let documented = read("node/METRICS.md");
    let (_, table) = documented.split_once("| metric |").expect("METRICS.md has the table");
    let table: String = table.lines().skip(2).take_while(|line| line.starts_with('|')).fold(
        String::new(),
        |mut all, line| {
            writeln!(all, "{line}").unwrap();
            all
        },
    );
    let mut should = String::new();
    for (name, family) in &families {
        let suffix = match family.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (kind, help) = (&family.kind, family.help.trim_end_matches('.'));
        writeln!(should, "| `{name}{suffix}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
    }
    assert!(table == should, "the table of node/METRICS.md should be\n{should}");

    let names: BTreeSet<String> = told.iter().flat_map(Exposition::names).collect();
    let mut documents = vec![
        ("README.md".to_owned(), read("README.md")),
        ("node/METRICS.md".to_owned(), documented),
    ];
    let dashboard: Value = serde_json::from_str(&read("node/dashboards/sojourn.json")).unwrap();
    documents.extend(expressions(&dashboard));
    let mut used = BTreeSet::new();
    for (document, text) in &documents {
        for name in names_in(text) {
            let is_histogram = families.get(&name).is_some_and(|f| f.kind == "histogram");
            let is_told = names.contains(&name) || is_histogram && document.ends_with(".md");
            assert!(is_told, "{document} speaks of {name}, which no site tells");
            used.insert(name);
        }
    }
    let dashboards = documents.iter().filter(|(document, _)| document.contains("panel")).count();
    assert!(dashboards > 20 && used.len() > 30, "{dashboards} {used:?}");
}

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The names of metrics in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_word(c));
    words.filter(|word| word.starts_with("sojourn_")).map(str::to_owned).collect()
}

/// Every expression of a dashboard, with where it stands. What a Grafana needs to take the file in
/// is checked on the way.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let source = "${DS_PROMETHEUS}";
    assert_eq!(dashboard["__inputs"][0]["name"], "DS_PROMETHEUS");
    assert_eq!(dashboard["__inputs"][0]["pluginId"], "prometheus");
    assert!(dashboard["schemaVersion"].as_u64() >= Some(39), "of a current Grafana");
    assert!(dashboard["id"].is_null(), "the Grafana that takes it in gives it a number");
    let mut found = Vec::new();
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        assert_eq!(variable["datasource"]["uid"], source, "{variable}");
        let place = format!("variable {}", variable["name"]);
        found.push((place, variable["definition"].as_str().unwrap().to_owned()));
    }
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title} has an id of its own");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for (x, y) in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(x < 24 && places.insert((x, y)), "{title} lies on another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], source, "{title}");
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], source, "{title}");
            let expression = target["expr"].as_str().unwrap();
            assert!(expression.contains("instance=~\"$instance\""), "{title}: {expression}");
            assert!(!names_in(expression).is_empty(), "{title}: {expression}");
            found.push((format!("panel {title}"), expression.to_owned()));
        }
    }
    found
}

#[test]
fn what_cannot_be_delivered_is_a_backlog_of_the_peer_until_it_is_back() {
    let (federation, application) = placed();
    wait_for(&federation, "b", &[r#"sojourn_monitoring_backlog_values{peer="a"} 0"#]);
    wait_for(&federation, "c", &[r#"sojourn_monitoring_values_forwarded_total{peer="b"} 5"#]);
    federation["b"].kill();
    for users in 6..=9 {
        application.write("web", &format!("users\n{users}\n"));
    }
    wait_for(
        &federation,
        "c",
        &[
            r#"sojourn_monitoring_backlog_values{peer="b"} 4"#,
            r#"sojourn_peer_reachable{peer="b"} 0"#,
        ],
    );
    let seen = metrics(&federation["c"]);
    let failed = seen.sum("sojourn_peer_requests_total", &["\"values\"", "\"no connection\""])
        + seen.sum("sojourn_peer_requests_total", &["\"values\"", "\"error\""]);
    assert!(failed >= 1.0, "{:?}", seen.of("sojourn_peer_requests_total").collect::<Vec<_>>());
    federation["b"].start();
    wait_for(
        &federation,
        "c",
        &[
            r#"sojourn_monitoring_backlog_values{peer="b"} 0"#,
            r#"sojourn_monitoring_values_forwarded_total{peer="b"} 9"#,
            r#"sojourn_peer_reachable{peer="b"} 1"#,
        ],
    );
    let last = [r#"sojourn_vm_kpi{vm="web",measure="web.users",format="raw"} 9"#];
    wait_for(&federation, "a", &last);
}
