//! Rows through a Unix socket, to clients that come, stall, talk nonsense and go.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::mounted::Mounted;

/// For anything that is waited for, on a machine that does more besides.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mount whose socket lies in a folder of its own.
struct Place {
    mounted: Mounted,
    folder: tempfile::TempDir,
    socket: PathBuf,
}

impl Place {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("kpi.sock");
        let mounted = Mounted::new(&["--listen", socket.to_str().unwrap()])?;
        Some(Self { mounted, folder, socket })
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(BufReader::new(stream))
    }

    fn write(&self, text: &str) {
        fs::write(self.mounted.file("a"), text).unwrap();
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line in time");
        line.parse().unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Asks for what comes after a number; gives the answer.
    fn ask(&mut self, after: i64) -> i64 {
        self.say(&format!("{{\"after\":{after}}}\n"));
        self.answer()
    }

    /// The number after which rows come from here on.
    fn answer(&mut self) -> i64 {
        loop {
            if let Some(after) = self.line().get("after") {
                return after.as_i64().unwrap();
            }
        }
    }

    /// The numbers of the next rows.
    fn numbers(&mut self, count: usize) -> Vec<i64> {
        (0..count).map(|_| self.line()["seq"].as_i64().unwrap()).collect()
    }

    /// Whether it was shown the door; what is still on its way is passed over.
    fn is_out(&mut self) -> bool {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).is_ok()
    }
}

#[test]
fn rows_leave_through_a_socket_and_the_newest_client_wins() {
    let Some(place) = Place::new() else { return };
    place.write("n\n1\n2\n");
    let mode = fs::metadata(&place.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others could read rows");
    let mut first = place.connect();
    assert_eq!(first.ask(0), 0);
    assert_eq!(first.numbers(2), [1, 2]);
    place.write("n\n3\n");
    assert_eq!(first.numbers(1), [3]);
    first.say("{\"acknowledged\":1}\n{\"acknowledged\":2}\n");
    assert_eq!(first.ask(9), 2, "for a number that was never given, the acknowledged one");
    let mut second = place.connect();
    assert!(first.is_out());
    assert_eq!(second.numbers(1), [3], "unasked, from the acknowledged one");
    assert_eq!(second.ask(1), 1);
    assert_eq!(second.numbers(2), [2, 3]);
    // One that has gone makes room, too.
    drop(second);
    place.write("n\n4\n");
    let mut third = place.connect();
    assert_eq!(third.numbers(2), [3, 4]);
}

#[test]
fn of_questions_that_come_together_the_last_is_answered() {
    let Some(place) = Place::new() else { return };
    place.write("n\n1\n2\n3\n");
    let mut client = place.connect();
    assert_eq!(client.ask(0), 0);
    // Written at once, they are read at once.
    client.say(&["{\"after\":0}\n".repeat(20).as_str(), "{\"after\":1}\n"].concat());
    assert_eq!(client.answer(), 1);
    assert_eq!(client.numbers(2), [2, 3]);
}

#[test]
fn a_client_that_does_not_read_keeps_no_writer_waiting_and_loses_nothing() {
    const ROWS: usize = 60;
    let Some(place) = Place::new() else { return };
    let mut client = place.connect();
    assert_eq!(client.ask(0), 0);
    // Together more than the socket takes.
    let text = "x".repeat(60_000);
    for number in 0..ROWS {
        place.write(&format!("{number}{text}"));
    }
    assert_eq!(place.mounted.rows().len(), ROWS);
    // It is heard even so.
    client.say("{\"acknowledged\":5}\n");
    let deadline = Instant::now() + PATIENCE;
    let outbox = kpi_fs::outbox::Outbox::open(place.mounted.database()).unwrap();
    while outbox.state().unwrap().acknowledged != 5 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    // It goes in the middle of a row and of a word.
    let mut half = [0; 40_000];
    client.0.read_exact(&mut half).unwrap();
    client.say("{\"after\":");
    drop(client);
    let mut client = place.connect();
    let expected: Vec<i64> = (6..=60).collect();
    assert_eq!(client.numbers(ROWS - 5), expected);
    assert_eq!(client.ask(0), 0);
    assert_eq!(client.numbers(ROWS), (1..=60).collect::<Vec<i64>>());
}

#[test]
fn a_client_that_floods_hurts_neither_writers_nor_the_next_client() {
    let Some(place) = Place::new() else { return };
    place.write("n\n1\n2\n");
    let floods: [&[u8]; 3] = [
        b"{\"acknowledged\":1}\n{\"after\":0}\n",
        b"nonsense without an end ",
        b"\xff\n{}\n{\"after\":1,\"acknowledged\":1}\n[[[[\n",
    ];
    for flood in floods {
        let mut stream = UnixStream::connect(&place.socket).unwrap();
        let text = flood.repeat(4_096 / flood.len());
        // It ends when it is shown the door.
        let flooding = thread::spawn(move || while stream.write_all(&text).is_ok() {});
        let before = place.mounted.rows().len();
        for number in 0..20 {
            place.write(&format!("n\n{number}\n"));
        }
        assert_eq!(place.mounted.rows().len(), before + 20);
        let mut client = place.connect();
        assert_eq!(client.ask(1), 1);
        assert_eq!(client.numbers(1), [2]);
        flooding.join().unwrap();
    }
    let log = place.mounted.log();
    let said = log.lines().filter(|line| line.contains("what is no word")).count();
    assert!(said < 30, "the log was flooded, too: {said}");
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced_and_is_gone_at_the_end() {
    let Some(mut place) = Place::new() else { return };
    place.write("n\n1\n");
    place.mounted.kill();
    assert!(fs::metadata(&place.socket).unwrap().file_type().is_socket());
    place.mounted.start();
    assert_eq!(place.connect().numbers(1), [1]);
    assert!(place.mounted.stop());
    assert!(!place.socket.exists());
    // One that has been replaced by somebody is left to them.
    place.mounted.start();
    fs::remove_file(&place.socket).unwrap();
    let other = UnixListener::bind(&place.socket).unwrap();
    assert!(place.mounted.stop());
    assert!(place.socket.exists());
    drop(other);
}

/// What a mount says that cannot begin to listen.
fn refused(folder: &Path, socket: &Path) -> String {
    let mount = folder.join("kpi");
    fs::create_dir_all(&mount).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kpi-fs"))
        .arg("mount")
        .arg(mount)
        .arg("--database")
        .arg(folder.join("other.db"))
        .arg("--listen")
        .arg(socket)
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_socket_that_is_used_and_a_file_that_is_none_are_left_alone() {
    let Some(place) = Place::new() else { return };
    let said = refused(place.folder.path(), &place.socket);
    assert!(said.contains("another program listens"), "{said}");
    assert!(place.socket.exists());
    let file = place.folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let said = refused(place.folder.path(), &file);
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let nowhere = place.folder.path().join("no/such/folder/kpi.sock");
    let said = refused(place.folder.path(), &nowhere);
    assert!(said.contains("cannot be listened on"), "{said}");
    place.write("n\n1\n");
    assert_eq!(place.connect().numbers(1), [1], "it goes on");
}

#[test]
fn a_sockets_path_may_be_longer_than_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a".repeat(100)).join("b".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    let socket = deep.join("kpi.sock");
    let Some(mut mounted) = Mounted::new(&["--listen", socket.to_str().unwrap()]) else { return };
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
    assert!(mounted.stop());
    assert!(!socket.exists());
}
