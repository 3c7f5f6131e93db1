//! The program's commands, and what happens around a mount.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kpi_fs::seal::{SecretKey, open};
use rustix::process::Signal;

use super::mounted::Mounted;

fn kpi_fs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kpi-fs")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a command says as it fails.
fn failure(arguments: &[&str]) -> String {
    let output = kpi_fs(arguments);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn rows_are_printed_as_json_lines_after_a_number() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    fs::write(mounted.file("web"), "users,load\n5,\"a \"\"b\"\"\"\n6,\n").unwrap();
    fs::write(mounted.sealed("x"), "secret").unwrap();
    let printed = |after: &str| {
        let output = kpi_fs(&["rows", "--database", text(mounted.database()), "--after", after]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect::<Vec<serde_json::Value>>()
    };
    let rows = printed("0");
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["table"], "web");
    assert_eq!(rows[0]["columns"], serde_json::json!({"users": "5", "load": "a \"b\""}));
    assert_eq!(rows[2]["content"], "c2VjcmV0");
    assert_eq!(printed("2"), rows[2..]);
    assert!(printed("3").is_empty());
    let none = failure(&["rows", "--database", "/no/such.db"]);
    assert!(none.contains("kpi-fs mount makes one"), "{none}");
}

#[test]
fn a_second_mount_is_refused_with_what_to_do() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let folder = mounted.folder();
    let other = tempfile::tempdir().unwrap();
    let database = other.path().join("other.db");
    let twice = failure(&["mount", text(&folder), "--database", text(&database)]);
    assert!(twice.contains("is a mount of kpi-fs already") && twice.contains("umount"), "{twice}");
    let used = failure(&["mount", text(other.path()), "--database", "/dev/shm/../shm/no/x.db"]);
    assert!(used.contains("cannot be mounted"), "{used}");
    let place = other.path().join("kpi");
    fs::create_dir(&place).unwrap();
    let used = failure(&["mount", text(&place), "--database", text(mounted.database())]);
    assert!(used.contains("in use by another kpi-fs"), "{used}");
    let inside = place.join("inside.db");
    let inside = failure(&["mount", text(&place), "--database", text(&inside)]);
    assert!(inside.contains("put the database elsewhere"), "{inside}");
    let none = failure(&["mount", "/no/such/folder", "--database", text(&database)]);
    assert!(none.contains("cannot be mounted"), "{none}");
    fs::write(mounted.file("a"), "1\n").unwrap();
    assert_eq!(mounted.table("a").len(), 1, "the first goes on");
}

#[test]
fn the_mount_of_a_killed_program_is_taken_away_and_said_so() {
    let Some(mut mounted) = Mounted::new(&[]) else { return };
    fs::write(mounted.file("a"), "1\n").unwrap();
    mounted.kill();
    assert!(fs::read(mounted.file("a")).is_err());
    mounted.start();
    assert_eq!(fs::read(mounted.file("a")).unwrap(), b"1\n");
    assert!(mounted.log().contains("had not ended in order"), "{}", mounted.log());
}

#[test]
fn a_signal_frees_the_folder_and_lets_who_has_files_open_finish() {
    let Some(mut mounted) = Mounted::new(&[]) else { return };
    let mut file = fs::File::create(mounted.file("a")).unwrap();
    mounted.signal(Signal::TERM);
    let deadline = Instant::now() + Duration::from_secs(20);
    while mounted.file("a").exists() {
        assert!(Instant::now() < deadline, "{}", mounted.log());
        std::thread::yield_now();
    }
    file.write_all(b"1\n").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(mounted.wait(), "{}", mounted.log());
    assert_eq!(mounted.table("a"), ["column1=1"]);
}

#[test]
fn a_second_signal_ends_the_program_whoever_has_files_open() {
    let Some(mut mounted) = Mounted::new(&[]) else { return };
    fs::write(mounted.file("a"), "1\n").unwrap();
    let file = fs::File::options().append(true).open(mounted.file("a")).unwrap();
    mounted.signal(Signal::TERM);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !mounted.log().contains("at another signal") {
        assert!(Instant::now() < deadline, "{}", mounted.log());
        std::thread::yield_now();
    }
    mounted.signal(Signal::TERM);
    assert!(!mounted.wait());
    drop(file);
    mounted.start();
    assert_eq!(fs::read(mounted.file("a")).unwrap(), b"1\n");
}

/// Containers and sandboxes start with a copy of all mounts, and unmounting here leaves theirs.
#[test]
fn a_copy_of_the_mount_in_another_namespace_does_not_keep_the_program_from_ending() {
    let Some(mut mounted) = Mounted::new(&[]) else { return };
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 5];
    other.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    let has_ended = mounted.stop();
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(has_ended, "{}", mounted.log());
    assert!(mounted.log().contains("another mount namespace"), "{}", mounted.log());
}

#[test]
fn a_probe_writes_rows_and_goes_on_after_a_refusal() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let into = mounted.file("load");
    let note = tempfile::NamedTempFile::new().unwrap();
    // 1, then two fields where there is one column, then 3.
    let script = format!(
        "echo x >> {0}; n=$(wc -l < {0}); [ $n = 2 ] && echo 2,2 || echo $n",
        note.path().display()
    );
    let output = kpi_fs(&[
        "probe",
        "--every",
        "100ms",
        "--times",
        "3",
        "--header",
        "n",
        "--into",
        text(&into),
        "--",
        "sh",
        "-c",
        &script,
    ]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(mounted.table("load"), ["n=1", "n=3"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("Invalid argument"), "{told}");
}

#[test]
fn what_seal_writes_only_the_key_opens() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let (secret, public) = SecretKey::generate();
    let key = tempfile::NamedTempFile::new().unwrap();
    fs::write(key.path(), public.to_text() + "\n").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kpi-fs"))
        .args(["seal", "--key", text(key.path())])
        .stdin(Stdio::piped())
        .stdout(fs::File::create(mounted.sealed("balance")).unwrap())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"42\n").unwrap();
    assert!(child.wait().unwrap().success());
    let sealed = fs::read(mounted.sealed("balance")).unwrap();
    assert_eq!(open(&secret, &sealed).unwrap(), b"42\n");
    assert!(!sealed.windows(2).any(|bytes| bytes == b"42"));
    let rows = mounted.rows();
    assert_eq!(rows[0].values, kpi_fs::outbox::Values::Content(sealed));
    let none = failure(&["seal", "--key", "/dev/null"]);
    assert!(none.contains("64 hexadecimal digits"), "{none}");
}
