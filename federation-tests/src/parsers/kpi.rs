//! The KPI file system: files that an application writes, and the words of whoever gets their rows.

use std::collections::BTreeMap;
use std::path::Path;

use kpi_fs::csv;
use kpi_fs::fuzzing::sent_after;
use kpi_fs::name::{Folder, Name};
use kpi_fs::outbox::{Outbox, Row, Values};
use kpi_fs::refusal::Refusal;
use kpi_fs::store::{Job, Limits, Owner, Position, Process, Store};

/// Files as [`sheet`] takes them: a name, a line's end, and what is in it.
pub(super) const FILES: [&str; 8] = [
    "web\ncurrent_users,requests\n125,17\n",
    "load\n0.7 0.5\n",
    "many\nusers,,load\r\n5,6,7\r\n8,9,10",
    "quoted\na,b\n\"x,y\",\"say \"\"hi\"\"\"\n",
    "unnamed\n\n007,1e5\n",
    "wrong\na,b\n1\n",
    ".scratch\nanything \u{1} at all\n",
    "sqlite_x\n1\n",
];

/// What a host may say, as [`words`] takes it.
pub(super) const SAID: [&str; 4] = [
    "\n{\"after\":0}\n{\"acknowledged\":3}\n",
    "{\"acknowledged\":2}\n{\"after\":2}\n{\"acknowledged\":9223372036854775807}\n",
    "{\"after\":-1}\nnonsense\n{\"after\":4,\"acknowledged\":4}\n{\"after\":9}\n",
    "{\"after\":1.5}\n{\"after\":1}\n{\"after\":",
];

/// Rows that there are for the host of [`words`].
const ROWS: i64 = 5;

const OWNER: Owner = Owner { uid: 0, gid: 0, mode: 0o600 };

/// A store that is gone with its folder.
fn store(folder: &Path) -> (Store, Outbox) {
    let path = folder.join("kpi.db");
    let store = Store::open(&path, Limits::default()).expect("a new database");
    (store, Outbox::open(&path).expect("the store's outbox"))
}

fn create(store: &mut Store, name: &[u8], content: &[u8]) -> Result<(u64, u64), Refusal> {
    let (file, handle) = store.create(Folder::Unencrypted, name, OWNER)?;
    store.write(handle, Process(1), Position::End, content).expect("a small file");
    Ok((file, handle))
}

/// Everything that has not been taken yet; it is told in pieces.
fn all_rows(outbox: &Outbox) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let last = rows.last().map_or(0, |row| row.seq);
        let more = outbox.after(last, usize::MAX).expect("a database that works");
        if more.is_empty() {
            return rows;
        }
        rows.extend(more);
    }
}

/// A file's name up to the first line's end, and behind it what is in it. It is refused, and
/// nothing of it is left; or it reads back byte for byte, with rows that are those of its text.
///
/// # Panics
///
/// If a promise is broken.
pub fn sheet(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (name, content) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut store, outbox) = store(folder.path());
    let parsed = Name::parse(name);
    let made = create(&mut store, name, content);
    let (file, handle) = match (&parsed, made) {
        (Ok(_), Ok(made)) => made,
        (Err(wrong), Err(refused)) => return assert_eq!(*wrong, refused),
        (parsed, made) => panic!("{parsed:?}, and yet {made:?}"),
    };
    let stored = store.commit(&[Job::Flush(handle, Process(1))]).remove(0);
    let read = store.read(file, 0, content.len() + 1);
    store.release(handle);
    let rows = all_rows(&outbox);
    let Ok(Name::Kpi(table)) = parsed else {
        assert_eq!((stored, read.as_deref()), (Ok(()), Ok(content)));
        return assert!(rows.is_empty(), "a scratch file has given rows");
    };
    let expected = match csv::read(content) {
        Ok(sheet) => sheet,
        Err(refusal) => {
            assert_eq!(stored.map_err(|stored| stored.errno()), Err(refusal.errno()));
            assert!(rows.is_empty() && store.find(Folder::Unencrypted, name).is_err());
            return;
        }
    };
    assert_eq!((stored, read.as_deref()), (Ok(()), Ok(content)));
    assert_eq!(rows.len(), expected.rows.len());
    for (number, (row, fields)) in (1..).zip(rows.iter().zip(&expected.rows)) {
        assert_eq!((row.seq, row.table.as_str()), (number, table.as_str()));
        let Values::Columns(columns) = &row.values else { panic!("{row:?}") };
        // A table has an order of its own.
        let found: BTreeMap<&str, &str> =
            columns.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let names = expected.columns.iter().map(|name| name.as_str());
        assert_eq!(found, names.zip(fields.iter().map(String::as_str)).collect());
    }
}

/// What a host says to a guest with [`ROWS`] rows. No row is lost by it, no more is acknowledged
/// than there is, and the last question is answered, with every row that comes after the answer.
///
/// # Panics
///
/// If a promise is broken.
pub fn words(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut store, outbox) = store(folder.path());
    let (_, handle) = create(&mut store, b"a", b"n\n1\n2\n3\n4\n5\n").expect("a good file");
    store.commit(&[Job::Flush(handle, Process(1))]).remove(0).expect("a good file");
    let before = outbox.after(0, usize::MAX).expect("a database that works");
    assert_eq!(before.len() as i64, ROWS);
    let sent = sent_after(data, &outbox, &store.bell()).expect("a database that works");
    assert_eq!(outbox.after(0, usize::MAX).as_ref(), Ok(&before));
    let state = outbox.state().expect("a database that works");
    assert!((0..=ROWS).contains(&state.acknowledged), "{state:?}");
    assert_eq!((state.last, state.dropped), (ROWS, 0));
    if sent.is_empty() {
        return;
    }
    let text = String::from_utf8(sent).expect("JSON is text");
    let mut lines = text.lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line).expect("each line is one of JSON")
    });
    let answer = lines.next().expect("an answer");
    let after = answer["after"].as_i64().expect("the answer names a number");
    assert!((0..=ROWS).contains(&after), "{answer}");
    let numbers: Vec<i64> = lines.filter_map(|row| row["seq"].as_i64()).collect();
    assert_eq!(numbers, (after + 1..=ROWS).collect::<Vec<_>>());
}
