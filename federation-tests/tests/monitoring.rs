//! What is measured of a VM reaches its primary, over the sites in between, whatever happens on the
//! way.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::path::PathBuf;

use federation_tests::process::application::Application;
use federation_tests::process::{Federation, SOON};
use model::Monitoring;
use model::monitoring::{Delivery, Format, Specifier};
use serde_json::Value;

fn specifier(measure: &str, delivery: Delivery, format: Format) -> Specifier {
    let measure = measure.parse().unwrap();
    Specifier { measure, interval_ms: 0, delivery, format, sealed: false }
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
