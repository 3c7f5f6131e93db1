//! `kill -9` of real nodes right before and right after every kind of journal row, at every site
//! that writes it in the life of a VM, as [`federation_tests::lives`] tells.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::sync::Mutex;
use std::time::Instant;

use federation_tests::lives::{ROWS, Run, live, runs};
use federation_tests::side_by_side;
use protocol::Row;

/// Runs at once. They mostly wait for each other's disks.
const RUNS_AT_ONCE: usize = 6;
#[test]
fn the_table_names_every_kind_of_row_once() {
    let named: Vec<&str> = ROWS.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(named, Row::KINDS);
}

/// `SOJOURN_TEST_KILLS` keeps those runs only whose description contains it, such as
/// `after:released` or `Troubles`.
#[test]
fn a_node_that_is_killed_at_any_row_goes_on_and_nothing_is_lost_or_left() {
    let wanted = std::env::var("SOJOURN_TEST_KILLS").unwrap_or_default();
    let mut runs: Vec<Run> = runs(&["before", "after"], |_, _| true);
    runs.retain(|run| format!("{run:?}").contains(&wanted));
    let failures = Mutex::new(Vec::new());
    side_by_side(&runs, RUNS_AT_ONCE, |run| {
        let began = Instant::now();
        let lived = std::panic::catch_unwind(|| live(run, &run.federation()));
        eprintln!("{:>6.1?} {run:?}", began.elapsed());
        if let Err(panic) = lived {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            failures.lock().unwrap().push(format!("{run:?}: {}", why.unwrap_or_default()));
        }
    });
    let failures = failures.into_inner().unwrap();
    let (failed, all) = (failures.len(), runs.len());
    assert!(failures.is_empty(), "{failed} of {all} runs failed:\n{}", failures.join("\n\n"));
}
