//! Many who write at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::thread;

use super::mounted::{Mounted, shown};

/// 64 writers: half append to one file, each other has its own; 10,000 rows each at full size.
#[test]
fn rows_of_many_writers_are_neither_torn_nor_lost() {
    let Some(mounted) = Mounted::new(&["--quota", "4G", "--file", "4G", "--rows", "4G"]) else {
        return;
    };
    const WRITERS: usize = 64;
    let rows = super::size(100, 10_000);
    // Who stores a file first decides whether its first line names the columns.
    fs::write(mounted.file("shared"), "writer,row,fill\nfirst,0,\n").unwrap();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let name = if writer % 2 == 0 { "shared".to_owned() } else { format!("own{writer}") };
            let path = mounted.file(name);
            scope.spawn(move || {
                let open = || fs::File::options().append(true).create(true).open(&path).unwrap();
                let mut file = open();
                if writer % 2 == 1 {
                    // No names for the columns.
                    file.write_all(b"\n").unwrap();
                }
                for row in 0..rows {
                    // Lines of very different lengths, so that a torn one would show.
                    let fill = "x".repeat((writer * 31 + row * 17) % 300);
                    let line = format!("w{writer},r{row},{fill}\n");
                    file.write_all(line.as_bytes()).unwrap();
                    match row % 25 {
                        7 => file.sync_all().unwrap(),
                        19 => file = open(),
                        _ => {}
                    }
                }
                file.sync_all().unwrap();
            });
        }
    });
    let mut next: BTreeMap<usize, usize> = BTreeMap::new();
    let found = mounted.rows();
    assert_eq!(found.len(), 1 + WRITERS * rows);
    assert_eq!(shown(&found[0]), "writer=first row=0 fill=");
    for row in &found[1..] {
        let text = shown(row);
        let values: Vec<&str> =
            text.split(' ').map(|value| value.split_once('=').unwrap().1).collect();
        let [writer, number, fill] = values[..] else { panic!("torn: {text}") };
        let writer: usize = writer[1..].parse().unwrap();
        let number: usize = number[1..].parse().unwrap();
        assert_eq!(fill.len(), (writer * 31 + number * 17) % 300, "torn: {text}");
        let expected = next.entry(writer).or_default();
        assert_eq!(number, *expected, "writer {writer}'s rows are in its order");
        *expected = number + 1;
    }
    let lines = fs::read_to_string(mounted.file("shared")).unwrap().lines().count();
    assert_eq!(lines, 2 + WRITERS / 2 * rows);
}

/// Two handles on one file, one of them in the middle of a line.
#[test]
fn a_close_does_not_make_a_row_of_what_another_is_still_writing() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let path = mounted.file("a");
    fs::write(&path, "n\n1\n").unwrap();
    let mut slow = fs::File::options().append(true).open(&path).unwrap();
    slow.write_all(b"2").unwrap();
    let other = fs::File::options().append(true).open(&path).unwrap();
    other.sync_all().unwrap();
    assert_eq!(mounted.table("a"), ["n=1"]);
    slow.write_all(b"3\n").unwrap();
    drop(slow);
    assert_eq!(mounted.table("a"), ["n=1", "n=23"]);
}

#[test]
fn whoever_loses_what_was_written_is_told() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let path = mounted.file("a");
    fs::write(&path, "n\n1\n").unwrap();
    let open = || fs::File::options().append(true).open(&path).unwrap();
    let (mut good, mut bad) = (open(), open());
    good.write_all(b"2\n").unwrap();
    bad.write_all(b"3,3\n").unwrap();
    assert!(bad.sync_all().is_err());
    assert_eq!(fs::read(&path).unwrap(), b"n\n1\n");
    assert!(good.sync_all().is_err(), "its line went with the other");
    good.write_all(b"2\n").unwrap();
    good.sync_all().unwrap();
    assert_eq!(mounted.table("a"), ["n=1", "n=2"]);
}
