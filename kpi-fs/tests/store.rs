//! The store and its outbox, without a mount.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests, too")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use kpi_fs::export;
use kpi_fs::name::{Folder, Name};
use kpi_fs::outbox::Outbox;
use kpi_fs::refusal::Refusal;
use kpi_fs::store::{Job, Limits, OpenError, Owner, Position, Process, Store};

const OWNER: Owner = Owner { uid: 0, gid: 0, mode: 0o644 };

fn open(path: &Path, rows: u64) -> Store {
    Store::open(path, Limits { rows, ..Limits::default() }).unwrap()
}

/// Writes a new file without closing it; answers its handle.
fn write(store: &mut Store, name: &str, text: &[u8]) -> u64 {
    let made = store.create(Folder::Unencrypted, name.as_bytes(), OWNER);
    let (_, handle) = made.unwrap();
    store.write(handle, Process(1), Position::End, text).unwrap();
    handle
}

fn put(store: &mut Store, name: &str, text: &[u8]) {
    let handle = write(store, name, text);
    store.commit(&[Job::Flush(handle, Process(1))]).remove(0).unwrap();
    store.release(handle);
}

#[test]
fn a_waiter_is_woken_by_new_rows_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpi.db");
    let mut store = open(&path, 1 << 20);
    let (bell, outbox) = (store.bell(), Outbox::open(&path).unwrap());
    assert_eq!(bell.wait(0, Duration::from_millis(50)), 0, "there is none");
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let waiter = scope.spawn(move || bell.wait(0, Duration::from_secs(60)));
        put(&mut store, "a", b"n\n1\n2\n");
        assert_eq!(waiter.join().unwrap(), 2);
        assert!(begun.elapsed() < Duration::from_secs(30), "it was woken, and did not wait");
    });
    let rows = outbox.after(0, 1).unwrap();
    assert_eq!((rows.len(), rows[0].seq), (1, 1), "as many as were asked for");
    assert_eq!(outbox.after(1, 10).unwrap().len(), 1);
}

#[test]
fn acknowledgements_only_grow_and_numbers_never_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpi.db");
    // Nothing is kept.
    let mut store = open(&path, 0);
    put(&mut store, "a", b"n\n1\n2\n");
    let outbox = Outbox::open(&path).unwrap();
    assert!(outbox.after(0, 10).unwrap().is_empty());
    let state = outbox.state().unwrap();
    assert_eq!((state.last, state.acknowledged, state.dropped), (2, 0, 2));
    drop((store, outbox));
    let mut store = open(&path, 1 << 20);
    put(&mut store, "b", b"3");
    let outbox = Outbox::open(&path).unwrap();
    assert_eq!(outbox.after(0, 10).unwrap()[0].seq, 3);
    outbox.acknowledge(1_000).unwrap();
    assert_eq!(outbox.state().unwrap().acknowledged, 3, "not beyond what there is");
    outbox.acknowledge(1).unwrap();
    assert_eq!(outbox.state().unwrap().acknowledged, 3);
    assert_eq!(outbox.after(0, 10).unwrap().len(), 1, "it stays as history");
}

#[test]
fn jobs_that_wait_together_are_answered_each_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpi.db");
    let mut store = open(&path, 1 << 20);
    let handles: Vec<u64> = [("a", "1"), ("b", "n\n1,2\n"), ("c", "3")]
        .into_iter()
        .map(|(name, text)| write(&mut store, name, text.as_bytes()))
        .collect();
    let jobs: Vec<Job> = handles.iter().map(|handle| Job::Flush(*handle, Process(1))).collect();
    let done = store.commit(&jobs);
    assert_eq!(done[0], Ok(()));
    assert_eq!(done[1], Err(Refusal::Fields { at: 2, found: 2, columns: 1 }));
    assert_eq!(done[2], Ok(()));
    let rows = Outbox::open(&path).unwrap().after(0, 10).unwrap();
    let tables: Vec<(i64, &str)> = rows.iter().map(|row| (row.seq, row.table.as_str())).collect();
    assert_eq!(tables, [(1, "a"), (2, "c")], "a refusal leaves no gap");
    assert_eq!(store.commit(&jobs), [Ok(()), Ok(()), Ok(())], "once each");
    assert_eq!(Outbox::open(&path).unwrap().state().unwrap().last, 2);
}

#[test]
fn a_database_is_for_one_store_at_a_time_and_not_for_an_older_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpi.db");
    let store = open(&path, 1 << 20);
    assert!(matches!(Store::open(&path, Limits::default()), Err(OpenError::InUse(_))));
    drop(store);
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", 2).unwrap();
    drop(db);
    assert!(matches!(Outbox::open(&path), Err(OpenError::Newer { found: 2, .. })));
    assert!(matches!(Store::open(&path, Limits::default()), Err(OpenError::Newer { .. })));
}

#[test]
fn a_host_gets_every_row_again_until_it_has_acknowledged_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kpi.db");
    let mut store = open(&path, 1 << 20);
    put(&mut store, "a", b"n\n1\n2\n");
    let outboxes = || [Outbox::open(&path).unwrap(), Outbox::open(&path).unwrap()];
    let (guest, host) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    export::start(guest.try_clone().unwrap(), guest, outboxes(), store.bell()).unwrap();
    let mut lines = BufReader::new(host.try_clone().unwrap()).lines();
    let mut next = |key: &str| -> i64 {
        let line: serde_json::Value = lines.next().unwrap().unwrap().parse().unwrap();
        line[key].as_i64().unwrap_or_else(|| panic!("no {key}: {line}"))
    };
    let say = |text: &str| (&host).write_all(text.as_bytes()).unwrap();
    assert_eq!([next("seq"), next("seq")], [1, 2], "from the start, unasked");
    put(&mut store, "b", b"n\n3\n");
    assert_eq!(next("seq"), 3, "as it comes");
    say("{\"acknowledged\":1}\nnonsense\n{\"after\":1}\n");
    assert_eq!([next("after"), next("seq"), next("seq")], [1, 2, 3], "again, when asked");
    let deadline = Instant::now() + Duration::from_secs(30);
    let outbox = Outbox::open(&path).unwrap();
    while outbox.state().unwrap().acknowledged != 1 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    // Another process of the guest begins where the acknowledgements ended.
    let (guest, host) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    export::start(guest.try_clone().unwrap(), guest, outboxes(), store.bell()).unwrap();
    let first = BufReader::new(host).lines().next().unwrap().unwrap();
    assert!(first.starts_with("{\"seq\":2,"), "{first}");
}

/// In memory where there is such a place: what is tested is not the disk.
fn folder_in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Chunks in the database that belong to no file.
fn garbage(path: &Path) -> i64 {
    let db = rusqlite::Connection::open(path).unwrap();
    db.query_row(
        "SELECT count(*) FROM \"kpi/chunks\" AS chunks
         WHERE NOT EXISTS (SELECT 1 FROM \"kpi/files\" WHERE content = chunks.id >> 32)",
        [],
        |row| row.get(0),
    )
    .unwrap()
}

/// Drafts above 8 MiB go to the database before they are stored.
#[test]
fn drafts_that_do_not_fit_memory_are_what_a_buffer_is_and_leave_nothing_behind() {
    const MIB: usize = 1 << 20;
    let folder = folder_in_memory();
    let path = folder.path().join("kpi.db");
    let mut store = open(&path, 1 << 20);
    let handle = write(&mut store, ".big", b"");
    store.commit(&[Job::Fsync(handle)]).remove(0).unwrap();
    let (mut file, mut handle) = (store.find(Folder::Unencrypted, b".big").unwrap(), handle);
    let (mut stored, mut model) = (Vec::new(), Vec::new());
    let mut state = 11_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        usize::try_from(state >> 33).unwrap() % below
    };
    for step in 0..120 {
        match random(12) {
            0..=5 => {
                let (offset, len) = (random(16 * MIB), random(5 * MIB));
                let fill = u8::try_from(step).unwrap();
                let data: Vec<u8> = (0..len).map(|index| fill ^ (index % 249) as u8).collect();
                let at = Position::At(offset as u64);
                store.write(handle, Process(1), at, &data).unwrap();
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&data);
            }
            6 => {
                let size = random(20 * MIB);
                store.truncate(handle, size as u64).unwrap();
                model.resize(size, 0);
            }
            7 => {
                store.truncate(handle, 0).unwrap();
                model.clear();
            }
            8 | 9 => {
                store.commit(&[Job::Flush(handle, Process(1))]).remove(0).unwrap();
                stored.clone_from(&model);
            }
            10 => {
                // The last close of a file whose changes were not stored.
                store.release(handle);
                handle = store.open_handle(file).unwrap();
                model.clone_from(&stored);
            }
            _ => {
                drop(store);
                store = open(&path, 1 << 20);
                file = store.find(Folder::Unencrypted, b".big").unwrap();
                handle = store.open_handle(file).unwrap();
                model.clone_from(&stored);
            }
        }
        assert_eq!(store.attributes(file).unwrap().size, model.len() as u64, "step {step}");
        assert!(store.read(file, 0, 64 * MIB).unwrap() == model, "step {step}");
        let (offset, len) = (random(21 * MIB), random(9_000));
        let end = (offset + len).min(model.len());
        let expected = model.get(offset..end).unwrap_or_default();
        assert!(store.read(file, offset as u64, len).unwrap() == expected, "step {step}");
    }
    store.release(handle);
    put(&mut store, "any", b"1");
    assert_eq!(garbage(&path), 0);
}

#[test]
fn with_too_many_tables_the_oldest_without_a_file_goes_and_its_rows_are_counted() {
    let folder = folder_in_memory();
    let path = folder.path().join("kpi.db");
    let mut store = open(&path, 1 << 30);
    put(&mut store, "kept", b"1");
    let name = |index: i64| format!("t{index}");
    for round in 0..21_i64 {
        let indices = || round * 100..round * 100 + 100;
        let handles: Vec<u64> =
            indices().map(|index| write(&mut store, &name(index), b"1")).collect();
        let flushes: Vec<Job> = handles.iter().map(|h| Job::Flush(*h, Process(1))).collect();
        assert!(store.commit(&flushes).iter().all(Result::is_ok));
        handles.into_iter().for_each(|handle| store.release(handle));
        let parse = |index| Name::parse(name(index).as_bytes()).unwrap();
        let folder = Folder::Unencrypted;
        let unlinks: Vec<Job> =
            indices().map(|index| Job::Unlink { folder, name: parse(index) }).collect();
        assert!(store.commit(&unlinks).iter().all(Result::is_ok));
    }
    // 2,048 tables are left of 2,101: that of the file, and the newest.
    let outbox = Outbox::open(&path).unwrap();
    assert_eq!(outbox.state().unwrap().dropped, 53);
    let rows = outbox.after(0, 2).unwrap();
    assert_eq!([rows[0].table.as_str(), rows[1].table.as_str()], ["kept", "t53"]);
    drop(store);
    let limit = 2_048 * 65;
    let mut store = open(&path, limit);
    put(&mut store, "last", b"1");
    let state = outbox.state().unwrap();
    assert_eq!((state.last, state.dropped), (2_102, 54), "what went with a table counts no more");
}
