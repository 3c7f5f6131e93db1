//! The host's end of a port: what `kpi_fs::export` asks of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde::Deserialize;

use super::machine::{Machine, PATIENCE};

/// A row as it arrives.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Row {
    pub(crate) seq: i64,
    pub(crate) table: String,
    pub(crate) saved_ms: i64,
    pub(crate) columns: BTreeMap<String, String>,
}

impl Row {
    pub(crate) fn number(&self, column: &str) -> u64 {
        self.columns[column].parse().unwrap()
    }
}

/// What the guest says to a question, before the rows.
#[derive(Deserialize)]
struct Answer {
    after: i64,
}

/// A host that is connected.
pub(crate) struct Host {
    lines: BufReader<UnixStream>,
    seen: i64,
}

impl Host {
    /// Connects, and asks for what comes after a number.
    pub(crate) fn connect(machine: &Machine, after: i64) -> Self {
        let mut host = Self { lines: BufReader::new(machine.port()), seen: 0 };
        host.say("\n");
        assert_eq!(host.ask(after), after);
        host
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.lines.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Asks for what comes after a number, and passes over what was on its way; gives the answer.
    pub(crate) fn ask(&mut self, after: i64) -> i64 {
        self.say(&format!("{{\"after\":{after}}}\n"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.line();
            // Before the answer there may be half a line.
            if let Ok(Answer { after }) = serde_json::from_str(&line) {
                self.seen = after;
                return after;
            }
            assert!(Instant::now() < deadline, "no answer, but {line}");
        }
    }

    pub(crate) fn acknowledge(&mut self, seq: i64) {
        self.say(&format!("{{\"acknowledged\":{seq}}}\n"));
    }

    /// The next rows after an answer, which have no gap.
    pub(crate) fn rows(&mut self, count: usize) -> Vec<Row> {
        let mut rows = Vec::with_capacity(count);
        while rows.len() < count {
            let line = self.line();
            let row: Row = serde_json::from_str(&line)
                .unwrap_or_else(|error| panic!("{error} behind row {}: {line:?}", self.seen));
            assert_eq!(row.seq, self.seen + 1, "{line}");
            self.seen = row.seq;
            rows.push(row);
        }
        rows
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line).expect("a line in time");
        assert!(!line.is_empty(), "the guest's QEMU has gone");
        String::from_utf8_lossy(&line).into_owned()
    }
}
