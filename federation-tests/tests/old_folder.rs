//! A committed state folder of this release, stopped in mid-migration, opens and finishes: what a
//! later release must still be able to do.
//!
//! `fixtures/mid-migration` holds the folders of two sites, killed right after the Source had read
//! everything and the Destination had not said READY. `SOJOURN_REGENERATE=1` makes it anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use federation_tests::process::{Federation, SOON};
use rusqlite::Connection;
use serde_json::Value;

/// The VM of the fixture.
const NAME: &str = "web";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mid-migration")
}

#[test]
fn a_state_folder_stopped_in_mid_migration_opens_and_finishes() {
    if std::env::var_os("SOJOURN_REGENERATE").is_some() {
        make();
    }
    let mut federation = Federation::new();
    for name in ["a", "b"] {
        federation.add(name);
        let old = fixture().join(name);
        copy(&old, federation[name].folder());
    }
    for name in ["a", "b"] {
        readdress(&federation, name);
        redate(&federation, name);
    }
    let steps = |name: &str| -> Vec<&'static str> {
        federation[name].rows().iter().map(protocol::Row::kind).collect()
    };
    assert!(steps("a").contains(&"sent") && !steps("a").contains(&"released"));
    assert!(!steps("b").contains(&"ready"));

    federation["b"].start();
    federation["a"].start();
    let vms = federation["a"].done(&["vm", "list"]);
    let vm = vms[0]["id"].as_str().expect("the fixture has a VM").to_owned();
    federation.wait_for("the migration has finished", SOON, || {
        federation.assert_one_runs(&vm);
        federation.runs_at(&vm, "b").map(drop).ok_or("it does not run at b".to_owned())
    });
    federation.settle(&vm, "b", true, &["a", "b"]);
}

/// Stops two real sites in mid-migration and keeps their folders.
fn make() {
    let federation = Federation::chain(&["a", "b"]);
    federation["b"].host("one", 4);
    federation.import("a", NAME);
    federation["a"].kill();
    let once = federation.folder().join("once");
    let once = once.to_str().expect("a plain path");
    let kill = [("SOJOURN_KILL", "after:sent"), ("SOJOURN_KILL_ONCE", once)];
    federation["a"].start_with(&kill);
    // b must not become ready: it dies with its first byte, or before.
    federation["b"].kill();
    let once_b = federation.folder().join("once-b");
    let once_b = once_b.to_str().expect("a plain path");
    let kill = [("SOJOURN_KILL", "before:ready"), ("SOJOURN_KILL_ONCE", once_b)];
    federation["b"].start_with(&kill);
    federation["a"].run(&["vm", "place", NAME, "--peer", "b", "--detach"]);
    federation.wait_for("the Source was killed", SOON, || {
        if federation["a"].has_died() { Ok(()) } else { Err("it lives".to_owned()) }
    });
    federation["b"].kill();
    let _ = fs::remove_dir_all(fixture());
    for name in ["a", "b"] {
        let folder = federation[name].folder();
        // One file, without what SQLite keeps beside it while it is open.
        let journal = Connection::open(folder.join("journal.db")).expect("it opens");
        journal.pragma_update(None, "journal_mode", "DELETE").expect("nobody else has it open");
        drop(journal);
        let kept = fixture().join(name);
        copy(folder, &kept);
        for leftover in ["sojourn.toml", "lock", "admin.sock"] {
            let _ = fs::remove_file(kept.join(leftover));
        }
        shrink(&kept);
        fs::write(kept.join("address"), federation[name].address().to_string())
            .expect("the fixture can be written");
    }
}

/// Log files are of no use in the fixture.
fn shrink(folder: &Path) {
    for entry in fs::read_dir(folder).expect("it is a folder").flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "log") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder can be made");
    for entry in fs::read_dir(from).expect("it is a folder").flatten() {
        let target = to.join(entry.file_name());
        let kind = entry.file_type().expect("it has a type");
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).expect("it can be copied");
        }
    }
    use std::os::unix::fs::PermissionsExt;
    let key = to.join(certs::KEY_FILE);
    if key.exists() {
        // Git keeps no such modes.
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
}

/// The times by which the migration must be done are days ago by now: they are as far off again as
/// they were when the nodes were stopped.
fn redate(federation: &Federation, name: &str) {
    let path = federation[name].folder().join("journal.db");
    let journal = Connection::open(path).expect("the fixture's journal opens");
    let newest = "SELECT max(at_ms) FROM journal";
    let stopped: i64 = journal.query_row(newest, [], |row| row.get(0)).expect("it has rows");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    let age = i64::try_from(now.as_millis()).expect("a time") - stopped;
    let mut rows = journal.prepare("SELECT seq, body FROM journal").expect("it is sound");
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("it can be read");
    let rows: Vec<(i64, String)> = rows.collect::<Result<_, _>>().expect("it can be read");
    let mut changed = 0;
    for (seq, body) in rows {
        let mut body: Value = serde_json::from_str(&body).expect("rows are JSON");
        changed += later(&mut body, age);
        let sql = "UPDATE journal SET body = ?2 WHERE seq = ?1";
        journal.execute(sql, (seq, body.to_string())).expect("it can be written");
    }
    assert!(changed > 0, "{name} has no time by which anything must be done");
}

/// Puts off every time by which something must be done, and says how many there were.
fn later(value: &mut Value, by: i64) -> usize {
    match value {
        Value::Array(values) => values.iter_mut().map(|value| later(value, by)).sum(),
        Value::Object(fields) => fields
            .iter_mut()
            .map(|(name, value)| match value.as_i64() {
                Some(time) if ["deadline", "expires"].contains(&name.as_str()) => {
                    *value = (time + by).into();
                    1
                }
                _ => later(value, by),
            })
            .sum(),
        _ => 0,
    }
}

/// The sites of this test have other addresses than those of the fixture had.
fn readdress(federation: &Federation, name: &str) {
    let path = federation[name].folder().join("journal.db");
    let journal = Connection::open(path).expect("the fixture's journal opens");
    for other in ["a", "b"] {
        let old = fs::read_to_string(fixture().join(other).join("address"));
        let old = old.expect("the fixture tells its addresses");
        let new = federation[other].address().to_string();
        for sql in [
            "UPDATE peers SET addresses = replace(addresses, ?1, ?2)",
            "UPDATE journal SET body = replace(body, ?1, ?2)",
        ] {
            journal.execute(sql, [old.trim(), &new]).expect("it can be written");
        }
    }
}
