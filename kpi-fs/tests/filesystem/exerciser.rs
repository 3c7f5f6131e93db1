//! fsx, the file system exerciser of Apple and FreeBSD in its Rust form: random operations on one
//! file, after each of which the file is what it should be.
//!
//! It works on files without rows: `encrypted/` ones and scratch names. A table's file is CSV, and
//! takes no random bytes. What it can do and does not do here is in [`NOT_HERE`], each tried, too.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use crate::mounted::Mounted;
use crate::size;

/// What fsx does by the weight of each.
const HERE: [&str; 10] = [
    "close_open",
    "read",
    "write",
    "truncate",
    "fsync",
    "fdatasync",
    "sendfile",
    "posix_fadvise",
    "copy_file_range",
    // By the C library, which writes where the file system cannot allocate.
    "posix_fallocate",
];

/// What does not apply, how it is refused, and why.
const NOT_HERE: [(&str, &str, &str); 4] = [
    ("mapread", "ENODEV", SHARED),
    ("mapwrite", "ENODEV", SHARED),
    ("invalidate", "ENODEV", SHARED),
    ("punch_hole", "EOPNOTSUPP", "a file is what was written, and a hole would be written zeros"),
];
const SHARED: &str =
    "shared mappings are refused: files are not cached, so that every write is seen";

/// Runs fsx with these operations alone; none where it is not installed.
fn fsx(file: &Path, operations: &[&str], seed: u64, count: usize) -> Option<Output> {
    let mut config = String::from("flen = 262144\n[opsize]\nmax = 65536\n[weights]\n");
    for operation in HERE.into_iter().chain(NOT_HERE.map(|(operation, ..)| operation)) {
        let weight = match operation {
            _ if !operations.contains(&operation) => 0,
            "read" | "write" | "truncate" => 10,
            _ => 1,
        };
        writeln!(config, "{operation} = {weight}").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fsx.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new("fsx");
    command.arg("-f").arg(&path).arg("-P").arg(folder.path());
    command.args(["-S", &seed.to_string(), "-N", &count.to_string()]).arg(file);
    match command.output() {
        Ok(output) => Some(output),
        Err(why) => {
            let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "fsx"), "fsx is required: {why}");
            eprintln!("skipped: no fsx here ({why}); cargo install --locked fsx");
            None
        }
    }
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

#[test]
fn fsx_finds_every_file_as_it_should_be_after_each_of_its_operations() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    for (seed, file) in [(7, "encrypted/random"), (8, "unencrypted/.random")] {
        let file = mounted.folder().join(file);
        let Some(output) = fsx(&file, &HERE, seed, size(3_000, 100_000)) else { return };
        assert!(output.status.success(), "{}: {}", file.display(), text(&output));
        assert!(text(&output).contains("A-OK"), "{}", text(&output));
    }
}

#[test]
fn what_fsx_cannot_do_here_is_refused_as_it_is_documented() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let file = mounted.folder().join("encrypted/random");
    for (operation, errno, why) in NOT_HERE {
        let Some(output) = fsx(&file, &["write", operation], 7, 1_000) else { return };
        let text = text(&output);
        assert!(!output.status.success(), "{operation} is done, and was not to be: {why}");
        assert!(text.contains(errno), "{operation}: {text}");
    }
}
