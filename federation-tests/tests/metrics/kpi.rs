//! The KPIs that an operator chose to show.

use federation_tests::process::Federation;
use federation_tests::process::application::Application;
use model::Monitoring;
use model::monitoring::{Delivery, Format, Specifier};

use crate::http::{metrics, wait_for, watch};
use crate::site::guest;

/// a and b, of which a shows these KPIs; the VM of a with these measures runs at b.
fn placed(kpis: &[&str], max_series: i64, measures: &[(&str, Format, bool)]) -> Federation {
    let mut federation = Federation::new();
    for name in ["a", "b"] {
        let site = federation.add(name);
        watch(site);
        site.configure("metrics", "kpis", kpis.to_vec());
        site.configure("metrics", "max_series", max_series);
        site.start();
    }
    federation.join("a", "b");
    federation["b"].host("b1", 4);
    let specifier = |(measure, format, sealed): &(&str, Format, bool)| Specifier {
        measure: measure.parse().unwrap(),
        interval_ms: 0,
        delivery: Delivery::Every(0),
        format: *format,
        sealed: *sealed,
        limit: false,
    };
    let specifiers = measures.iter().map(specifier).collect();
    let monitoring = Monitoring { specifiers, ..Monitoring::default() };
    let package = federation.monitored("web", None, &monitoring);
    federation["a"].done(&["vm", "import", &package.display().to_string()]);
    federation["a"].done(&["vm", "place", "web"]);
    federation
}

fn application(federation: &Federation) -> Application {
    let vms = federation["a"].done(&["vm", "list"]);
    let vm = vms[0]["id"].as_str().unwrap();
    let mut application = Application::new(&federation.folder().join("kpi.db"));
    application.connect(&guest(federation, vm, "b"));
    application
}

#[test]
fn chosen_kpis_are_shown_by_the_primary_alone_sealed_ones_too_and_again_after_a_restart() {
    let federation = placed(
        &["web.users", "web.income", "web.note"],
        1000,
        &[
            ("web.users", Format::Raw, false),
            ("web.users", Format::Max, false),
            ("web.income", Format::Raw, true),
            ("web.note", Format::Raw, false),
            ("web.load", Format::Raw, false),
        ],
    );
    let application = application(&federation);
    application.write("web", "users,income,note,load\n5,10.5,busy,0.5\n");
    application.write("web", "users,income,note,load\n3,-2.25,007,0.7\n");
    let expected = [
        r#"sojourn_vm_kpi{vm="web",measure="web.users",format="raw"} 3"#,
        r#"sojourn_vm_kpi{vm="web",measure="web.users",format="max"} 3"#,
        r#"sojourn_vm_kpi{vm="web",measure="web.income",format="raw"} -2.25"#,
        r#"sojourn_vm_kpi{vm="web",measure="web.note",format="raw"} 7"#,
        "sojourn_vm_kpi_series_dropped 0",
    ];
    let seen = wait_for(&federation, "a", &expected);
    assert_eq!(seen.of("sojourn_vm_kpi").count(), 4, "the load was not chosen");
    let ages: Vec<(&str, f64)> = seen.of("sojourn_vm_kpi_age_seconds").collect();
    assert_eq!(ages.len(), 4);
    assert!(ages.iter().all(|(_, age)| (0.0..60.0).contains(age)), "{ages:?}");
    let b = metrics(&federation["b"]);
    assert_eq!(b.of("sojourn_vm_kpi").count(), 0, "b only runs it");
    assert_eq!(b.get("sojourn_vm_kpi_series_dropped"), Some(0.0));

    application.write("web", "users,income,note,load\n4,1,closing,0.9\n");
    wait_for(
        &federation,
        "a",
        &[
            r#"sojourn_vm_kpi{vm="web",measure="web.users",format="raw"} 4"#,
            r#"sojourn_vm_kpi{vm="web",measure="web.note",format="raw"} 7"#,
        ],
    );
    let skipped = metrics(&federation["a"]).get("sojourn_vm_kpi_values_skipped_total").unwrap();
    assert!(
        (1.0..=2.0).contains(&skipped),
        "of two texts, the first may have been over: {skipped}"
    );
    federation["a"].crash();
    wait_for(
        &federation,
        "a",
        &[
            r#"sojourn_vm_kpi{vm="web",measure="web.users",format="raw"} 4"#,
            r#"sojourn_vm_kpi{vm="web",measure="web.income",format="raw"} 1"#,
            "sojourn_vm_kpi_values_skipped_total 1",
        ],
    );
}

#[test]
fn series_beyond_the_bound_are_counted_and_said_once() {
    let federation = placed(
        &["web.users", "web.load", "cpu_share"],
        2,
        &[
            ("web.users", Format::Raw, false),
            ("web.load", Format::Raw, false),
            ("web.load", Format::Mean, false),
        ],
    );
    let application = application(&federation);
    application.write("web", "users,load\n5,0.5\n");
    let seen = wait_for(
        &federation,
        "a",
        &[
            r#"sojourn_vm_kpi{vm="web",measure="web.load",format="mean"} 0.5"#,
            r#"sojourn_vm_kpi{vm="web",measure="web.load",format="raw"} 0.5"#,
            "sojourn_vm_kpi_series_dropped 1",
        ],
    );
    assert_eq!(seen.of("sojourn_vm_kpi").count(), 2);
    metrics(&federation["a"]);
    let said = "more KPIs than metrics.max_series are not shown";
    assert_eq!(federation["a"].log_text().matches(said).count(), 1);
    federation["a"].done(&["vm", "destroy", "web", "--yes"]);
    let seen = wait_for(&federation, "a", &["sojourn_vm_kpi_series_dropped 0"]);
    assert_eq!(seen.of("sojourn_vm_kpi").count(), 0, "a VM that is gone is not shown");
}
