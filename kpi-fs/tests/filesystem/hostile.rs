//! Names and contents that somebody chose to do harm with, against tables of what must come.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use super::mounted::Mounted;

/// What a name becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Becomes {
    Table,
    Scratch,
    Refused(Errno),
}

/// Every byte at every kind of place in a name, and names that mean something somewhere.
fn names() -> Vec<(Vec<u8>, Becomes)> {
    use Becomes::{Refused, Scratch, Table};
    let invalid = Refused(Errno::INVAL);
    let letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
    let inside = format!("{letters}0123456789-.");
    let has = |set: &str, byte: u8| set.as_bytes().contains(&byte);
    let is_printable = |byte: u8| (0x21..=0x7e).contains(&byte);
    let mut names = Vec::new();
    for byte in (1..=0x80_u8).chain([0xbf, 0xc3, 0xfe, 0xff]).filter(|byte| *byte != b'/') {
        let scratch = if is_printable(byte) { Scratch } else { invalid };
        let table = |is_fit: bool| if is_fit { Table } else { invalid };
        let first = if has(".#", byte) { Scratch } else { table(has(letters, byte)) };
        let last = if byte == b'~' { Scratch } else { table(has(&inside, byte)) };
        names.push(([&[byte], &b"front"[..]].concat(), first));
        names.push(([&b"mid"[..], &[byte], b"dle"].concat(), table(has(&inside, byte))));
        names.push(([&b"end"[..], &[byte]].concat(), last));
        names.push(([&b".dot"[..], &[byte]].concat(), scratch));
    }
    for (name, becomes) in [
        ("select", Table),
        ("table", Table),
        ("main.users", Table),
        ("temp", Table),
        ("sqlite", Table),
        ("sqlite_master", invalid),
        ("SQLITE_schema", invalid),
        ("sqlite_stat1", invalid),
        ("kpi_outbox", invalid),
        ("KPI_", invalid),
        ("users;drop", invalid),
        ("users\"--", invalid),
        ("'; DROP TABLE users; --", invalid),
        ("$(reboot)", invalid),
        ("`id`", invalid),
        ("%s%n", invalid),
        ("-rf", invalid),
        ("CON", Table),
        ("...", Scratch),
        (".nfs000001", Scratch),
        ("~", Scratch),
        ("größe", invalid),
        ("用户", invalid),
        ("a\u{200b}b", invalid),
        ("a\u{202e}b", invalid),
    ] {
        names.push((name.as_bytes().to_vec(), becomes));
    }
    names.push((vec![b'n'; 64], Table));
    names.push((vec![b'n'; 65], Refused(Errno::NAMETOOLONG)));
    names.push((vec![b'.'; 65], Refused(Errno::NAMETOOLONG)));
    names.push((vec![b'n'; 255], Refused(Errno::NAMETOOLONG)));
    names
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw_os_error(error.raw_os_error().expect("the kernel's"))
}

/// Writes and syncs, which tells what a close would.
fn write(mut file: fs::File, text: &[u8]) -> Result<(), Errno> {
    file.write_all(text).and_then(|()| file.sync_all()).map_err(|error| errno(&error))
}

#[test]
fn five_hundred_hostile_names_become_what_the_table_says() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let names = names();
    assert!(names.len() >= 500, "{}", names.len());
    for (name, becomes) in &names {
        let shown = String::from_utf8_lossy(name);
        let path = mounted.file(OsStr::from_bytes(name));
        let before = mounted.rows().len();
        let found = match fs::File::create_new(&path) {
            Err(error) => Becomes::Refused(errno(&error)),
            Ok(file) => {
                write(file, b"1\n").unwrap();
                let rows = mounted.rows();
                if rows.len() == before {
                    Becomes::Scratch
                } else {
                    // The table of an earlier file may be there, in other cases.
                    let table = rows.last().unwrap().table.as_bytes();
                    assert!(table.eq_ignore_ascii_case(name), "{shown:?}");
                    Becomes::Table
                }
            }
        };
        assert_eq!(found, *becomes, "{shown:?}");
        let is_there = fs::symlink_metadata(&path).is_ok();
        assert_eq!(is_there, !matches!(becomes, Becomes::Refused(_)), "{shown:?}");
        if is_there {
            fs::remove_file(&path).unwrap();
        }
    }
}

/// What a line of two fields becomes.
type Fields = Result<[&'static str; 2], Errno>;

/// A line, and what it becomes as one of a file with two columns `a` and `b`.
fn lines() -> Vec<(Vec<u8>, Fields)> {
    let invalid = || Err(Errno::INVAL);
    let mut lines: Vec<(Vec<u8>, Fields)> = Vec::new();
    for (line, expected) in [
        ("1,2", Ok(["1", "2"])),
        (",", Ok(["", ""])),
        ("007,1e5", Ok(["007", "1e5"])),
        (" 1 , 2 ", Ok([" 1 ", " 2 "])),
        ("\t,\t", Ok(["\t", "\t"])),
        ("\"1\",\"2\"", Ok(["1", "2"])),
        ("\"1,5\",2", Ok(["1,5", "2"])),
        ("\"\",\"\"", Ok(["", ""])),
        ("\"\"\"\",x", Ok(["\"", "x"])),
        ("\"a \"\"b\"\" c\",x", Ok(["a \"b\" c", "x"])),
        ("'; DROP TABLE a; --,x", Ok(["'; DROP TABLE a; --", "x"])),
        ("NULL,null", Ok(["NULL", "null"])),
        ("=cmd|' /C calc'!A0,x", Ok(["=cmd|' /C calc'!A0", "x"])),
        ("../../etc/passwd,%00", Ok(["../../etc/passwd", "%00"])),
        ("ü,用户", Ok(["ü", "用户"])),
        ("\u{feff}1,\u{202e}2", Ok(["\u{feff}1", "\u{202e}2"])),
        ("{\"x\":1};2,<b>", invalid()),
        ("1", invalid()),
        ("1,2,3", invalid()),
        ("1;2", invalid()),
        ("1\t2", invalid()),
        ("\"1,2", invalid()),
        ("1,\"2", invalid()),
        ("1,2\"", invalid()),
        ("1\"1,2", invalid()),
        ("\"1\"1,2", invalid()),
        ("\"1\" ,2", invalid()),
        ("1, \"2\"", invalid()),
        ("\"1\"\",2", invalid()),
        ("1,\0", Err(Errno::ILSEQ)),
        ("\u{1b}[2J,2", Err(Errno::ILSEQ)),
        ("1\r1,2", Err(Errno::ILSEQ)),
        ("1,2\u{7f}", Err(Errno::ILSEQ)),
        ("\u{8},2", Err(Errno::ILSEQ)),
    ] {
        lines.push((line.as_bytes().to_vec(), expected));
    }
    for bytes in
        [&b"\xff,2"[..], b"1,\xc3", b"\xc0\xaf,2", b"\xed\xa0\x80,2", b"1,\xf8\x88\x80\x80\x80"]
    {
        lines.push((bytes.to_vec(), Err(Errno::ILSEQ)));
    }
    lines.push((",".repeat(127).into_bytes(), invalid()));
    lines.push((",".repeat(128).into_bytes(), Err(Errno::TOOBIG)));
    lines.push((vec![b'x'; 64 * 1024], invalid()));
    lines.push((vec![b'x'; 64 * 1024 + 1], Err(Errno::MSGSIZE)));
    lines.push((vec![b'x'; 300_000], Err(Errno::MSGSIZE)));
    lines
}

#[test]
fn three_hundred_hostile_files_are_stored_whole_or_refused_whole() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let good = (0..200).map(|index| format!("{index},good\n")).collect::<String>();
    let mut tried = 0;
    for (line, expected) in lines() {
        let shown = String::from_utf8_lossy(&line[..line.len().min(30)]).into_owned();
        let text = |parts: &[&[u8]]| parts.concat();
        // Whole files with the line at different places, and what it is appended to.
        let files = [
            ("alone", None, text(&[b"a,b\n", &line, b"\n"])),
            ("unended", None, text(&[b"a,b\n", &line])),
            ("crlf", None, text(&[b"a,b\r\n", &line, b"\r\n"])),
            ("first", None, text(&[b"a,b\n", &line, b"\n", good.as_bytes()])),
            ("last", None, text(&[b"a,b\n", good.as_bytes(), &line, b"\n"])),
            ("appended", Some(&b"a,b\n0,0\n"[..]), text(&[&line, b"\n"])),
            ("nameless", Some(&b"\n0,0\n"[..]), text(&[&line, b"\n", good.as_bytes()])),
        ];
        for (index, (place, old, new)) in files.into_iter().enumerate() {
            let path = mounted.file(format!("f{index}"));
            let _ = fs::remove_file(&path);
            if let Some(old) = old {
                fs::write(&path, old).unwrap();
            }
            let before = mounted.rows().last().map_or(0, |row| row.seq);
            let options = fs::File::options().append(true).create(true).open(&path);
            let done = write(options.unwrap(), &new);
            let rows: Vec<_> = mounted.rows().into_iter().filter(|row| row.seq > before).collect();
            let now = fs::read(&path).unwrap_or_default();
            match &expected {
                Ok(values) => {
                    assert_eq!(done, Ok(()), "{shown:?} {place}");
                    assert_eq!(now, text(&[old.unwrap_or_default(), &new]), "{shown:?} {place}");
                    let values: Vec<String> =
                        values.iter().map(|value| (*value).to_owned()).collect();
                    let found = rows.iter().filter(|row| match &row.values {
                        kpi_fs::outbox::Values::Columns(columns) => {
                            columns.iter().map(|column| &column.1).eq(&values)
                        }
                        other => panic!("{other:?}"),
                    });
                    assert_eq!(found.count(), 1, "{shown:?} {place}");
                }
                Err(errno) => {
                    assert_eq!(done, Err(*errno), "{shown:?} {place}");
                    assert_eq!(now, old.unwrap_or_default(), "{shown:?} {place}");
                    assert!(rows.is_empty(), "{shown:?} {place}: {rows:?}");
                }
            }
            tried += 1;
        }
    }
    assert!(tried >= 300, "{tried}");
    let db = rusqlite::Connection::open(mounted.database()).unwrap();
    let whole: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(whole, "ok");
}

#[test]
fn hostile_headers_are_refused_and_good_ones_widen_the_table() {
    let Some(mounted) = Mounted::new(&[]) else { return };
    let write = |text: &str| write(fs::File::create(mounted.file("t")).unwrap(), text.as_bytes());
    for (header, errno) in [
        ("a,a", Errno::INVAL),
        ("a,A", Errno::INVAL),
        ("column2,", Errno::INVAL),
        ("rowid,b", Errno::INVAL),
        ("_ROWID_,b", Errno::INVAL),
        ("kpi_seq,b", Errno::INVAL),
        ("kpi_saved_ms,b", Errno::INVAL),
        ("sqlite_x,b", Errno::INVAL),
        ("a\"b,c", Errno::INVAL),
        ("\"a\"\"); DROP TABLE t; --\",c", Errno::INVAL),
        ("a b,c", Errno::INVAL),
        ("1,2", Errno::INVAL),
        ("größe,c", Errno::INVAL),
        ("a\u{1b},c", Errno::ILSEQ),
    ] {
        assert_eq!(write(&format!("{header}\n1,2\n")), Err(errno), "{header:?}");
    }
    assert!(mounted.rows().is_empty());
    write("a,b\n1,2\n").unwrap();
    write("B,c\n3,4\n").unwrap();
    assert_eq!(mounted.table("t"), ["a=1 b=2", "b=3 c=4"]);
    let wide: Vec<String> = (0..126).map(|index| format!("x{index}")).collect();
    let ones = vec!["1"; 126].join(",");
    assert_eq!(write(&format!("{}\n{ones}\n", wide.join(","))), Err(Errno::TOOBIG));
    write(&format!("{}\n{}\n", wide[1..].join(","), &ones[2..])).unwrap();
    assert_eq!(mounted.rows().len(), 3);
}
