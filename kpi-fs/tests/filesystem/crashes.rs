//! `kill -9` while applications write.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::mounted::{Mounted, shown};

/// What a line must end with, so that half of one shows.
fn line(writer: usize, number: usize) -> String {
    let fill = (number * 7 + writer) % 90;
    format!("w{writer},{number},{}e\n", "-".repeat(fill))
}

/// Writes until the mount is gone; notes what was acknowledged.
fn write(path: PathBuf, writer: usize, from: &AtomicUsize, acknowledged: &Mutex<BTreeSet<String>>) {
    loop {
        let number = from.fetch_add(1, Ordering::Relaxed);
        let text = line(writer, number);
        let done = match writer % 3 {
            // Appends, each with an fsync.
            0 => append(&path, &text),
            // Writes the file anew.
            1 => fs::File::create(&path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            }),
            // Writes beside it and renames.
            _ => {
                let beside = path.with_file_name(format!(".w{writer}"));
                fs::write(&beside, &text).and_then(|()| fs::rename(&beside, &path))
            }
        };
        if done.is_err() {
            return;
        }
        acknowledged.lock().unwrap().insert(text.trim_end().replace(',', " "));
    }
}

fn append(path: &PathBuf, text: &str) -> std::io::Result<()> {
    let mut file = fs::File::options().append(true).create(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// 200 kills at full size.
#[test]
fn every_acknowledged_row_survives_kills_and_none_is_half() {
    let Some(mut mounted) = Mounted::new(&[]) else { return };
    let kills = super::size(15, 200);
    let acknowledged = Mutex::new(BTreeSet::new());
    let number = AtomicUsize::new(0);
    for kill in 0..kills {
        let begun = acknowledged.lock().unwrap().len();
        // A stored version that a truncation must not take away.
        let kept = mounted.file("kept");
        fs::write(&kept, "n\n1\n").unwrap();
        let mut open = fs::File::create(&kept).unwrap();
        open.write_all(b"n\n").unwrap();
        thread::scope(|scope| {
            for writer in 0..4 {
                let path = mounted.file(format!("w{writer}"));
                let (number, acknowledged) = (&number, &acknowledged);
                scope.spawn(move || write(path, writer, number, acknowledged));
            }
            let deadline = Instant::now() + Duration::from_secs(30);
            // At another moment of a write each time.
            let wanted = begun + 4 + kill % 7;
            while acknowledged.lock().unwrap().len() < wanted {
                assert!(Instant::now() < deadline, "{}", mounted.log());
                thread::yield_now();
            }
            mounted.kill();
        });
        drop(open);
        mounted.start();
        assert_eq!(fs::read(&kept).unwrap(), b"n\n1\n");
        check(&mounted, &acknowledged.lock().unwrap());
    }
    assert!(mounted.stop());
}

fn check(mounted: &Mounted, acknowledged: &BTreeSet<String>) {
    let mut rows = BTreeSet::new();
    let mut seen = 0;
    for row in mounted.rows().iter().filter(|row| row.table != "kept") {
        assert!(row.seq > seen, "numbers only grow");
        seen = row.seq;
        let text = shown(row);
        let values: Vec<&str> =
            text.split(' ').map(|value| value.split_once('=').unwrap().1).collect();
        let [writer, number, _] = values[..] else { panic!("half: {text}") };
        let expected = line(writer[1..].parse().unwrap(), number.parse().unwrap());
        assert_eq!(values.join(","), expected.trim_end(), "half a row");
        assert!(rows.insert(values.join(" ")), "twice: {text}");
    }
    let lost: Vec<&String> = acknowledged.difference(&rows).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
}
