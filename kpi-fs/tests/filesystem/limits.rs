//! Limits, to the byte, and full disks.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;

use kpi_fs::name::Folder;
use kpi_fs::outbox::Outbox;
use kpi_fs::refusal::Refusal;
use kpi_fs::store::{Job, Limits, Owner, Position, Process, Store};
use rustix::io::Errno;

use super::mounted::{Disk, Mounted, can_mount};

fn errno<T: std::fmt::Debug>(done: std::io::Result<T>) -> Errno {
    Errno::from_raw_os_error(done.unwrap_err().raw_os_error().unwrap())
}

#[test]
fn the_quota_is_met_to_the_byte_and_a_refused_write_loses_nothing() {
    let Some(mounted) = Mounted::new(&["--quota", "2000"]) else { return };
    let free = || {
        let found = rustix::fs::statvfs(mounted.folder()).unwrap();
        (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
    };
    assert_eq!(free(), (1_536, 1_536), "whole blocks of 512");
    fs::write(mounted.file("a"), format!("{}\n", "x".repeat(999))).unwrap();
    assert_eq!(free().1, 512);
    let mut file = fs::File::create(mounted.file("b")).unwrap();
    file.write_all("y".repeat(1_000).as_bytes()).unwrap();
    assert_eq!(errno(file.write(b"z")), Errno::DQUOT);
}

#[test]
fn after_a_refused_write_the_close_is_refused_and_the_stored_version_stays() {
    let Some(mounted) = Mounted::new(&["--quota", "2000", "--file", "1500"]) else { return };
    fs::write(mounted.file("a"), format!("{}\n", "x".repeat(999))).unwrap();
    fs::write(mounted.file("b"), "1\n").unwrap();
    // 1,000 are used by a and 2 by b, whose new version may have 1,000.
    let mut file = fs::File::create(mounted.file("b")).unwrap();
    file.write_all("y".repeat(1_000).as_bytes()).unwrap();
    assert_eq!(errno(file.write(b"z")), Errno::DQUOT);
    assert_eq!(errno(file.write(b"z")), Errno::DQUOT, "until it is closed or synced");
    assert_eq!(errno(file.sync_all()), Errno::DQUOT);
    assert_eq!(fs::read(mounted.file("b")).unwrap(), b"1\n");
    file.write_all_at("y".repeat(1_000).as_bytes(), 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::metadata(mounted.file("b")).unwrap().len(), 1_000);
    assert_eq!(errno(fs::write(mounted.file("c"), "1")), Errno::DQUOT);
    fs::remove_file(mounted.file("b")).unwrap();
    drop(file);
    // The limit of one file.
    fs::remove_file(mounted.file("a")).unwrap();
    let file = fs::File::create(mounted.file("large")).unwrap();
    file.write_all_at("1".repeat(1_500).as_bytes(), 0).unwrap();
    assert_eq!(errno(file.write_at(b"1", 1_500)), Errno::FBIG);
    assert_eq!(errno(file.sync_all()), Errno::FBIG);
    assert_eq!(errno(file.set_len(1_501)), Errno::FBIG);
    assert_eq!(mounted.rows().len(), 3);
}

#[test]
fn a_file_of_encrypted_has_its_own_limit_and_the_number_of_files_another() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let limit = usize::try_from(kpi_fs::store::OPAQUE_MAX).unwrap();
    fs::write(mounted.sealed("x"), vec![7; limit]).unwrap();
    assert_eq!(errno(fs::write(mounted.sealed("y"), vec![7; limit + 1])), Errno::FBIG);
    assert_eq!(mounted.rows().len(), 1);
    for index in 0..kpi_fs::store::FILES_MAX - 1 {
        // Not stored, which needs no time: they are there until they are closed.
        std::mem::forget(fs::File::create(mounted.file(format!("f{index}"))).unwrap());
    }
    assert_eq!(errno(fs::File::create(mounted.file("more"))), Errno::DQUOT);
}

#[test]
fn old_rows_go_when_there_are_too_many_and_unacknowledged_ones_are_counted() {
    // A row of one byte counts for 65.
    let Some(mounted) = Mounted::new(&["--rows", "650"]) else { return };
    let mut file = fs::File::create(mounted.file("a")).unwrap();
    for index in 0..10 {
        file.write_all(format!("{index}\n").as_bytes()).unwrap();
        file.sync_all().unwrap();
    }
    assert_eq!(mounted.rows().len(), 10);
    let outbox = Outbox::open(mounted.database()).unwrap();
    outbox.acknowledge(4).unwrap();
    for index in 0..6 {
        file.write_all(format!("{index}\n").as_bytes()).unwrap();
        file.sync_all().unwrap();
    }
    let rows = mounted.rows();
    assert_eq!((rows.len(), rows[0].seq), (10, 7), "the oldest went");
    let state = outbox.state().unwrap();
    assert_eq!((state.last, state.acknowledged, state.dropped), (16, 4, 2));
    // A file with more rows than are kept is stored all the same.
    fs::write(mounted.file("many"), format!("n\n{}", "1\n".repeat(5_000))).unwrap();
    let rows = mounted.rows();
    assert_eq!((rows.len(), rows[9].seq), (10, 5_016));
    let count = |table: &str| -> i64 {
        let db = rusqlite::Connection::open(mounted.database()).unwrap();
        db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count("a") + count("many"), 10);
}

#[test]
fn a_full_disk_is_told_at_close_and_what_was_stored_stays() {
    if !can_mount() {
        return;
    }
    let disk = Disk::new(2 << 20);
    let database = disk.path().join("kpi.db");
    let Some(mut mounted) = Mounted::with(tempfile::tempdir().unwrap(), database, &[]) else {
        return;
    };
    fs::write(mounted.file("a"), "n\n1\n").unwrap();
    // Fill what is left.
    let filler = disk.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4_096]).is_ok() {}
    drop(file);
    let mut stored = 0;
    // The log has space left that it was given before.
    let refused = loop {
        let mut file = fs::File::options().append(true).open(mounted.file("a")).unwrap();
        file.write_all(format!("{}\n", "2".repeat(4_000)).as_bytes()).unwrap();
        match file.sync_all() {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 1_000);
    };
    assert_eq!(refused.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{}", mounted.log());
    let size = 4 + stored * 4_001;
    assert_eq!(fs::metadata(mounted.file("a")).unwrap().len(), size);
    assert_eq!(mounted.table("a").len() as u64, 1 + stored);
    // Larger than memory is given: the write itself cannot be kept.
    fs::remove_file(&filler).unwrap();
    let big = fs::File::create(mounted.file(".big")).unwrap();
    let refused = (0..20).find_map(|index| big.write_all_at(&[9; 1 << 20], index << 20).err());
    assert_eq!(refused.unwrap().raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    drop(big);
    fs::write(mounted.file("a"), "n\n2\n").unwrap();
    mounted.kill();
    mounted.start();
    assert_eq!(fs::read(mounted.file("a")).unwrap(), b"n\n2\n");
    assert_eq!(mounted.table("a").len() as u64, 2 + stored);
    // The mount goes before the disk.
    assert!(mounted.stop());
}

#[test]
fn on_a_full_disk_a_large_file_fails_and_small_ones_beside_it_do_not() {
    if !can_mount() {
        return;
    }
    let disk = Disk::new(3 << 20);
    let path = disk.path().join("kpi.db");
    let mut store = Store::open(&path, Limits::default()).unwrap();
    let owner = Owner { uid: 0, gid: 0, mode: 0o644 };
    let mut write = |folder, name: &str, text: &[u8]| {
        let (_, handle) = store.create(folder, name.as_bytes(), owner).unwrap();
        store.write(handle, Process(1), Position::End, text).unwrap();
        handle
    };
    let large = format!("n\n{}", format!("{:01023}\n", 7).repeat(3 << 10));
    let handles = [
        write(Folder::Unencrypted, "before", b"1"),
        write(Folder::Unencrypted, "large", large.as_bytes()),
        write(Folder::Unencrypted, "after", b"2"),
    ];
    let done = store.commit(&handles.map(|handle| Job::Flush(handle, Process(1))));
    assert_eq!(done, [Ok(()), Err(Refusal::Disk), Ok(())]);
    let rows = Outbox::open(&path).unwrap().after(0, 10).unwrap();
    let tables: Vec<(i64, &str)> = rows.iter().map(|row| (row.seq, row.table.as_str())).collect();
    assert_eq!(tables, [(1, "before"), (2, "after")]);
    assert_eq!(store.usage().0, 2);
    drop(store);
    let store = Store::open(&path, Limits::default()).unwrap();
    assert_eq!((store.usage().0, store.count()), (2, 2));
}

/// 4 GiB at full size.
#[test]
fn a_large_file_is_read_at_random_places_in_bounded_memory() {
    let Some(mounted) = Mounted::new(&["--quota", "6G", "--file", "6G", "--rows", "1M"]) else {
        return;
    };
    const LINE: usize = 64 * 1024;
    let lines = super::size(48 << 20, 4 << 30) / LINE;
    let text = |line: usize| {
        let mut text = vec![b'a' + u8::try_from(line % 26).unwrap(); LINE];
        text[..12].copy_from_slice(format!("{line:011},").as_bytes());
        text[LINE - 1] = b'\n';
        text
    };
    let path = mounted.file("large");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"\n").unwrap();
    for line in 0..lines {
        file.write_all(&text(line)).unwrap();
    }
    file.sync_all().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), (1 + lines * LINE) as u64);
    let file = fs::File::open(&path).unwrap();
    let mut found = vec![0; LINE];
    for step in 0..400_usize {
        let line = step.wrapping_mul(2_654_435_761) % lines;
        file.read_exact_at(&mut found, (1 + line * LINE) as u64).unwrap();
        assert!(found == text(line), "line {line}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", mounted.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("peak memory {kib} KiB for a file of {} MiB", (lines * LINE) >> 20);
    assert!(kib < 64 * 1024, "{kib} KiB");
}
