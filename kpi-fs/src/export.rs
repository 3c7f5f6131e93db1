//! Rows on their way out: through a virtio-serial port, which needs no network and goes with the
//! guest when it moves, or through a Unix socket ([`crate::listen`]).
//!
//! Lines of JSON in both directions.
//!
//! ```text
//!   guest ─▶ host   {"seq":7,"table":"web","saved_ms":…,"columns":{"users":"5"}}     a row
//!                   {"after":6}          the answer to each "after": rows come from here on
//!   host ─▶ guest   {"after":6}          send what comes after this number: said first, and
//!                                        whenever half a line or a line of nonsense was seen
//!                   {"acknowledged":7}   all up to this number are safe
//! ```
//!
//! - A number that is left out is a row that had to go before it was acknowledged.
//! - Rows before the answer were on their way when the host asked, and some of those between them
//!   may be lost: the host passes over whatever comes before it.
//!   What comes behind it is whole until the connection ends: where a connection is cut, it is the
//!   oldest bytes on their way that are lost.
//! - A host begins with an empty line, which is passed over: it ends what another host before it
//!   has left half said.
//!   It asks again if there is no answer for a while, since even so a word may have been lost.
//! - If the host asks for rows after a number that was never given, the database is not the one
//!   that it knows. The answer then names the last acknowledged number, 0 in a new database, and all
//!   rows after it come.
//! - Without a word from the host, rows are sent from the last acknowledged one on.
//!
//! A port whose host is away: Linux makes writes wait and reads end at once, and QEMU throws away
//! what is on its way. So the writer waits in the middle of its rows, for as long as it takes, and
//! goes on with them when the next host comes, which is what the answer is for.
//! Whatever the host does, the file system does not wait for it: rows wait in the database.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outbox::{BATCH_ROWS, Bell, Outbox, Row};

/// Longest line that is taken from the host, with its end.
const LINE_MAX: u64 = 4_096;

/// Bytes that are handed to the port at once: Linux takes no more. Between two pieces a new
/// question of the host's is seen.
const PIECE: usize = 32 * 1024;

/// How long a host that is gone, or talks nonsense, is left alone, and how long a wait for rows
/// lasts.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// How long no word is heard after rows were acknowledged, which is a commit: a host that floods
/// its guest with words costs it twenty a second.
const COMMIT_PAUSE: Duration = Duration::from_millis(50);

/// What the host says, and what the first of its words is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Word {
    After(i64),
    Acknowledged(i64),
}

impl Word {
    /// Reads a line; none for an empty one.
    pub(crate) fn read(line: &[u8]) -> serde_json::Result<Option<Self>> {
        let line = line.trim_ascii();
        if line.is_empty() { Ok(None) } else { serde_json::from_slice(line).map(Some) }
    }
}

/// Where sending stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Turn {
    /// The number after which rows are to be sent; none for the last that was acknowledged.
    after: Option<i64>,
    /// How often the host has asked for a place.
    asked: u64,
    /// The question that was answered last.
    answered: u64,
    /// Whether there is no host any more.
    is_over: bool,
}

/// What both directions know.
#[derive(Debug, Default)]
pub(crate) struct Place(Mutex<Turn>);

impl Place {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> Turn {
        *self.lock()
    }

    /// Whether the host waits for an answer.
    pub(crate) fn is_asked(&self) -> bool {
        let turn = self.lock();
        turn.asked != turn.answered
    }

    fn ask(&self, seq: i64) {
        let mut turn = self.lock();
        turn.after = Some(seq.max(0));
        turn.asked += 1;
    }

    /// Goes on to `seq`, unless the host has asked for another place since `turn`. (That it asks
    /// for the very number that is being left is no reason to leave it.)
    fn go_on(&self, turn: &Turn, seq: i64) {
        let mut now = self.lock();
        now.answered = turn.asked;
        if now.asked == turn.asked {
            now.after = Some(seq);
        }
    }

    /// Goes back to what was acknowledged, unless there is a question to be answered.
    fn go_back(&self) {
        let mut now = self.lock();
        if now.asked == now.answered {
            now.after = None;
        }
    }

    /// Makes [`send`] and [`hear`] end, at the latest after [`PAUSE`] if what they write to and
    /// read from does not hold them up.
    pub(crate) fn end(&self) {
        self.lock().is_over = true;
    }
}

/// Sends rows to `to` and takes the host's words from `from`, the two directions of a port, in two
/// threads that end with the process. Each has a connection of its own to the database.
pub fn start(
    mut to: impl Write + Send + 'static,
    mut from: impl Read + Send + 'static,
    outboxes: [Outbox; 2],
    bell: Arc<Bell>,
) -> io::Result<()> {
    let [sent, heard] = outboxes;
    let place = Arc::new(Place::default());
    let other = Arc::clone(&place);
    thread::Builder::new().name("rows".into()).spawn(move || {
        while let Err(error) = send(&mut to, &sent, &bell, &place) {
            tracing::warn!("rows cannot be sent, tried again in {PAUSE:?}: {error}");
            thread::sleep(PAUSE);
            place.go_back();
        }
    })?;
    thread::Builder::new().name("words".into()).spawn(move || {
        loop {
            // A port ends when its host is away.
            if let Err(error) = hear(&mut from, &heard, &other, thread::sleep) {
                tracing::warn!("the host cannot be heard, tried again in {PAUSE:?}: {error}");
            }
            thread::sleep(PAUSE);
        }
    })?;
    Ok(())
}

/// Sends rows until [`Place::end`], or until it fails.
pub(crate) fn send(
    to: &mut impl Write,
    outbox: &Outbox,
    bell: &Bell,
    place: &Place,
) -> io::Result<()> {
    loop {
        let turn = place.turn();
        if turn.is_over {
            return Ok(());
        }
        let state = outbox.state().map_err(io::Error::other)?;
        let after = turn.after.unwrap_or(state.acknowledged);
        if turn.asked != turn.answered {
            let after = if after > state.last { state.acknowledged } else { after };
            write_lines(to, &[Word::After(after)], || true)?;
            place.go_on(&turn, after);
            continue;
        }
        let rows = outbox.after(after, BATCH_ROWS).map_err(io::Error::other)?;
        let Some(last) = rows.last().map(|row: &Row| row.seq) else {
            // Those up to the last are gone. It was read before the rows, so that none is missed.
            place.go_on(&turn, state.last.max(after));
            bell.wait(state.last.max(after), PAUSE);
            continue;
        };
        write_lines(to, &rows, || place.turn() == turn)?;
        place.go_on(&turn, last);
    }
}

/// Writes whole lines, in pieces, while `goes_on`.
fn write_lines<T: Serialize>(
    to: &mut impl Write,
    values: &[T],
    goes_on: impl Fn() -> bool,
) -> io::Result<()> {
    let mut piece = Vec::new();
    for value in values {
        serde_json::to_writer(&mut piece, value)?;
        piece.push(b'\n');
        if piece.len() >= PIECE {
            to.write_all(&piece)?;
            piece.clear();
            if !goes_on() {
                break;
            }
        }
    }
    to.write_all(&piece)?;
    to.flush()
}

/// Does what the host says until the end, or until it cannot be read. `rest` is how to do nothing
/// for a while.
pub(crate) fn hear(
    from: &mut impl Read,
    outbox: &Outbox,
    place: &Place,
    rest: impl Fn(Duration),
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut acknowledged = None;
    let acknowledge = |waiting: &mut Option<i64>| {
        if let Some(seq) = waiting.take() {
            if let Err(refusal) = outbox.acknowledge(seq) {
                tracing::warn!("not acknowledged, the host will be sent them again: {refusal}");
            }
            rest(COMMIT_PAUSE);
        }
    };
    loop {
        let mut line = Vec::new();
        (&mut from).take(LINE_MAX).read_until(b'\n', &mut line)?;
        let is_end = !line.ends_with(b"\n") && (line.len() as u64) < LINE_MAX;
        // The end may come in the middle of a line, and before all is heard that was said.
        if is_end || place.turn().is_over {
            return Ok(());
        }
        match Word::read(&line) {
            Ok(Some(Word::After(seq))) => {
                acknowledge(&mut acknowledged);
                place.ask(seq);
            }
            Ok(Some(Word::Acknowledged(seq))) => acknowledged = acknowledged.max(Some(seq)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("the host has said what is no word: {error}");
                rest(PAUSE);
            }
        }
        // Of those that have come together only the highest counts.
        if !from.buffer().contains(&b'\n') {
            acknowledge(&mut acknowledged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that asks for the first place again while it is sent its rows, and goes when it has
    /// them twice.
    struct Host<'a> {
        place: &'a Place,
        pieces: Vec<String>,
    }

    impl Write for Host<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.pieces.push(String::from_utf8(bytes.to_vec()).unwrap());
            match self.pieces.len() {
                2 => self.place.ask(0),
                4 => self.place.end(),
                _ => {}
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The same happens when a host has seen half a line, or comes in the middle of rows.
    #[test]
    fn a_question_for_the_number_that_is_being_left_is_answered_all_the_same() {
        use crate::name::Folder;
        use crate::store::{Job, Limits, Owner, Position, Process, Store};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kpi.db");
        let mut store = Store::open(&path, Limits::default()).unwrap();
        let owner = Owner { uid: 0, gid: 0, mode: 0o600 };
        let (_, handle) = store.create(Folder::Unencrypted, b"a", owner).unwrap();
        store.write(handle, Process(1), Position::End, b"n\n1\n2\n").unwrap();
        store.commit(&[Job::Flush(handle, Process(1))]).remove(0).unwrap();
        let outbox = Outbox::open(&path).unwrap();
        let place = Place::default();
        place.ask(0);
        let mut host = Host { place: &place, pieces: Vec::new() };
        send(&mut host, &outbox, &store.bell(), &place).unwrap();
        let [answer, rows, again, same] = &host.pieces[..] else { panic!("{:?}", host.pieces) };
        assert_eq!((answer.as_str(), rows.lines().count()), ("{\"after\":0}\n", 2));
        assert_eq!((again, same), (answer, rows));
    }
}
