//! What usual programs do with files here.

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::io::Errno;

use super::mounted::Mounted;

/// Runs a script in `unencrypted/`; answers its output, standard and error.
fn sh(mounted: &Mounted, script: &str) -> String {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).current_dir(mounted.file(".")).env("LC_ALL", "C");
    let output = command.output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn shells_and_tools_write_rows_as_they_write_files() {
    let Some(mut mounted) = Mounted::new(&[]) else { return };
    for (script, table, rows) in [
        ("printf 'users,load\\n5,0.7\\n' > web", "web", vec!["users=5 load=0.7"]),
        ("printf '6,0.9\\n' >> web", "web", vec!["users=5 load=0.7", "users=6 load=0.9"]),
        ("echo 5 > one; echo 5 > one", "one", vec!["column1=5", "column1=5"]),
        ("printf 5 > open; printf '\\n6' >> open", "open", vec!["column1=5", "column1=6"]),
        ("cp web copied", "copied", vec!["users=5 load=0.7", "users=6 load=0.9"]),
        (
            "echo a | tee -a tee > /dev/null; echo b | tee -a tee > /dev/null",
            "tee",
            vec!["column1=a", "column1=b"],
        ),
        (
            "printf 'x\\n1\\n' > .t1; mv .t1 moved; printf 'x\\n2\\n' > .t1; mv .t1 moved",
            "moved",
            vec!["x=1", "x=2"],
        ),
        ("printf 'a\\n1\\n' > sed; sed -i s/1/2/ sed", "sed", vec!["a=1", "a=2"]),
        (
            "dd if=web of=dd bs=7 conv=fsync 2>&-",
            "dd",
            vec!["users=5 load=0.7", "users=6 load=0.9"],
        ),
        ("{ echo k; /bin/echo 1; /bin/echo 2; } > group", "group", vec!["k=1", "k=2"]),
        (": > empty; touch empty", "empty", vec![]),
        ("printf '\\n007,1e5\\n' > text", "text", vec!["column1=007 column2=1e5"]),
        ("echo 1 > gone; rm gone; echo 2 > gone", "gone", vec!["column1=1", "column1=2"]),
    ] {
        assert_eq!(sh(&mounted, script), "", "{script}");
        assert_eq!(mounted.table(table), rows, "{script}");
    }
    assert_eq!(
        sh(&mounted, "cat web sed; ls .. | tr '\\n' ' '"),
        "users,load\n5,0.7\n6,0.9\na\n2\nencrypted unencrypted "
    );
    let reported = sh(&mounted, "cp /bin/sh binary || true; ls binary");
    assert!(reported.contains("cp: ") && reported.contains("No such file"), "{reported}");
    assert!(mounted.stop(), "{}", mounted.log());
    mounted.start();
    assert_eq!(sh(&mounted, "cat web"), "users,load\n5,0.7\n6,0.9\n");
    assert!(mounted.stop());
    assert!(fs::read_dir(mounted.folder()).unwrap().next().is_none(), "it is unmounted");
}

#[test]
fn numbers_are_seen_beside_the_text_as_written() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    fs::write(mounted.file("n"), "v\n007\n1e5\n1.5\n 7\n5 users\n\n0x10\n-3\n").unwrap();
    let db = rusqlite::Connection::open(mounted.database()).unwrap();
    let mut query = db.prepare("SELECT v FROM \"n/numbers\" ORDER BY kpi_seq").unwrap();
    let found: Vec<Option<f64>> =
        query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let expected = [Some(7.0), Some(100_000.0), Some(1.5), Some(7.0), None, None, None, Some(-3.0)];
    assert_eq!(found, expected);
    assert_eq!(mounted.table("n")[..2], ["v=007", "v=1e5"]);
}

#[test]
fn neither_a_second_close_nor_an_fsync_with_nothing_new_gives_a_row() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let mut file = fs::File::create(mounted.file("a")).unwrap();
    file.write_all(b"1\n").unwrap();
    file.sync_all().unwrap();
    assert_eq!(mounted.table("a").len(), 1, "fsync stores");
    file.sync_all().unwrap();
    drop(file.try_clone().unwrap());
    drop(fs::read(mounted.file("a")).unwrap());
    drop(file);
    assert_eq!(mounted.table("a").len(), 1);
    let file = fs::File::options().append(true).open(mounted.file("a")).unwrap();
    drop(file);
    assert_eq!(mounted.table("a"), ["column1=1"]);
}

/// A started program inherits descriptors and closes them, at any moment of their writers.
#[test]
fn a_program_that_is_started_in_the_middle_of_a_line_does_not_store_it() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let mut file = fs::File::create(mounted.file("a")).unwrap();
    file.write_all(b"n\n1").unwrap();
    for _ in 0..3 {
        assert!(Command::new("true").status().unwrap().success());
    }
    assert!(mounted.rows().iter().all(|row| row.table != "a"), "{:?}", mounted.rows());
    file.write_all(b"2\n").unwrap();
    // One that gets it as its output, and writes.
    let given = file.try_clone().unwrap();
    assert!(Command::new("echo").arg("34").stdout(given).status().unwrap().success());
    assert_eq!(mounted.table("a"), ["n=12", "n=34"]);
    drop(file);
    assert_eq!(mounted.table("a").len(), 2);
}

#[test]
fn a_file_of_encrypted_gives_its_whole_content_each_time() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let content: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    fs::write(mounted.sealed("x"), &content).unwrap();
    let mut file = fs::File::options().append(true).open(mounted.sealed("x")).unwrap();
    file.write_all(b"\0more").unwrap();
    drop(file);
    let rows = mounted.rows();
    assert_eq!(rows.len(), 2);
    let contents: Vec<_> = rows
        .iter()
        .map(|row| match &row.values {
            kpi_fs::outbox::Values::Content(content) => content.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(contents[0], content);
    assert_eq!(contents[1], [&content[..], b"\0more"].concat());
    assert_eq!(rows[0].table, "encrypted/x");
}

#[test]
fn what_is_no_plain_file_is_refused_with_its_errno() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    fs::write(mounted.file("a"), "1\n").unwrap();
    fs::write(mounted.file("B"), "1\n").unwrap();
    let errno = |done: std::io::Result<()>| {
        Errno::from_raw_os_error(done.unwrap_err().raw_os_error().unwrap())
    };
    let created = |path| fs::File::create(path).map(drop);
    let (a, new) = (mounted.file("a"), mounted.file("new"));
    let renamed = |flags| {
        let here = rustix::fs::CWD;
        let done = rustix::fs::renameat_with(here, &a, here, mounted.file("B"), flags);
        done.map_err(Into::into)
    };
    for (done, expected) in [
        (fs::create_dir(&new), Errno::PERM),
        (fs::hard_link(&a, &new), Errno::PERM),
        (std::os::unix::fs::symlink(&a, &new), Errno::PERM),
        (fs::remove_dir(mounted.folder().join("unencrypted")), Errno::PERM),
        (created(mounted.folder().join("a")), Errno::PERM),
        (fs::rename(&a, mounted.sealed("a")), Errno::XDEV),
        (fs::rename(&a, mounted.file("no name")), Errno::INVAL),
        (fs::rename(&a, mounted.file("b")), Errno::EXIST),
        (renamed(rustix::fs::RenameFlags::NOREPLACE), Errno::EXIST),
        (renamed(rustix::fs::RenameFlags::EXCHANGE), Errno::INVAL),
        (created(mounted.file("A")), Errno::EXIST),
        (created(mounted.file("x".repeat(65))), Errno::NAMETOOLONG),
        (created(a.join("b")), Errno::NOTDIR),
        (fs::read(mounted.file("none")).map(drop), Errno::NOENT),
    ] {
        assert_eq!(errno(done), expected);
    }
    let device = rustix::fs::mknodat(
        rustix::fs::CWD,
        &new,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    );
    assert_eq!(device, Err(Errno::PERM));
    let file = fs::File::options().write(true).open(&a).unwrap();
    let fallocated = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 10);
    assert_eq!(fallocated, Err(Errno::OPNOTSUPP));
    assert_eq!(mounted.table("a").len() + mounted.table("B").len(), 2, "no refusal gave a row");
}

#[test]
fn a_rename_that_is_refused_changes_nothing_and_one_that_is_not_gives_rows() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    fs::write(mounted.file("users"), "n\n1\n").unwrap();
    fs::write(mounted.file(".tmp"), "n\n1,2\n").unwrap();
    let refused = fs::rename(mounted.file(".tmp"), mounted.file("users")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    assert_eq!(fs::read(mounted.file(".tmp")).unwrap(), b"n\n1,2\n");
    assert_eq!(fs::read(mounted.file("users")).unwrap(), b"n\n1\n");
    // Not closed and not synced, as some write: the rename stores it.
    let mut file = fs::File::create(mounted.file(".tmp")).unwrap();
    file.write_all(b"n\n2\n").unwrap();
    fs::rename(mounted.file(".tmp"), mounted.file("users")).unwrap();
    assert_eq!(mounted.table("users"), ["n=1", "n=2"]);
    drop(file);
    assert_eq!(mounted.table("users"), ["n=1", "n=2"]);
    assert!(mounted.table(".tmp").is_empty());
}

#[test]
fn attributes_are_as_they_were_set_also_after_a_restart() {
    let Some(mut mounted) = Mounted::new(&[]) else { return };
    let path = mounted.file("a");
    fs::write(&path, "12\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
    for _ in 0..2 {
        let found = fs::metadata(&path).unwrap();
        let seen = (found.len(), found.mode() & 0o7777, found.uid(), found.gid(), found.nlink());
        assert_eq!(seen, (3, 0o640, 12, 34, 1));
        assert_eq!(found.modified().unwrap(), then);
        assert!(mounted.stop());
        mounted.start();
    }
    assert_eq!(mounted.table("a").len(), 1, "attributes are no content");
}

#[test]
fn a_file_that_was_removed_lives_while_it_is_open() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let path = mounted.file("a");
    fs::write(&path, "1\n").unwrap();
    let mut file = fs::File::options().read(true).append(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b"2\n").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "1\n2\n");
    fs::write(&path, "3\n").unwrap();
    drop(file);
    assert_eq!(mounted.table("a"), ["column1=1", "column1=3"]);
}

#[test]
fn many_files_are_listed_once_each_also_while_they_are_removed() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    for index in 0..300 {
        drop(fs::File::create(mounted.file(format!("f{index}"))).unwrap());
    }
    let mut seen = 0;
    for entry in fs::read_dir(mounted.file(".")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 300);
    assert!(fs::read_dir(mounted.file(".")).unwrap().next().is_none());
}

/// What fsx does, on a file that no rule of CSV applies to.
#[test]
fn random_reads_writes_and_truncations_do_what_a_buffer_does() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let path = mounted.file(".fsx");
    let options = || {
        let mut options = fs::File::options();
        options.read(true).write(true).create(true).truncate(false).clone()
    };
    let mut file = options().open(&path).unwrap();
    let mut model: Vec<u8> = Vec::new();
    let mut state = 5_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        usize::try_from(state >> 33).unwrap() % below
    };
    for step in 0..super::size(3_000, 100_000) {
        let offset = random(260_000);
        let len = random(40_000);
        match random(10) {
            0..=3 => {
                let fill = u8::try_from(1 + step % 255).unwrap();
                let data: Vec<u8> = (0..len).map(|index| fill ^ (index % 251) as u8).collect();
                file.write_all_at(&data, offset as u64).unwrap();
                if len > 0 {
                    model.resize(model.len().max(offset + len), 0);
                    model[offset..offset + len].copy_from_slice(&data);
                }
            }
            4..=7 => {
                let mut found = vec![0; len];
                let mut read = 0;
                while read < len {
                    let more = file.read_at(&mut found[read..], (offset + read) as u64).unwrap();
                    if more == 0 {
                        break;
                    }
                    read += more;
                }
                let end = (offset + len).min(model.len());
                let expected = model.get(offset..end).unwrap_or_default();
                assert!(found[..read] == *expected, "step {step}: {offset} + {len}");
            }
            8 => {
                file.set_len(offset as u64).unwrap();
                model.resize(offset, 0);
            }
            _ => {
                match random(3) {
                    0 => file.sync_all().unwrap(),
                    1 => file.sync_data().unwrap(),
                    _ => file = options().open(&path).unwrap(),
                }
                assert_eq!(fs::metadata(&path).unwrap().len(), model.len() as u64);
            }
        }
    }
    drop(file);
    assert!(fs::read(&path).unwrap() == model);
    assert!(mounted.rows().is_empty());
}
