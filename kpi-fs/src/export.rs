//! Rows on their way out of a guest: through a virtio-serial port, which needs no network and
//! goes with the guest when it moves.
//!
//! Lines of JSON in both directions.
//!
//! ```text
//!   guest ─▶ host   {"seq":7,"table":"web","saved_ms":…,"columns":{"users":"5"}}     a row
//!   host ─▶ guest   {"after":6}          send what comes after this number: said first, and
//!                                        whenever a gap or half a line was seen
//!                   {"acknowledged":7}   all up to this number are safe
//! ```
//!
//! A number that is left out is a row that had to go before it was acknowledged.
//! Without a word from the host, rows are sent from the last acknowledged one on; the port's end or
//! an error means that the host is gone, and is tried again.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use crate::outbox::{BATCH_ROWS, Bell, Outbox, Row};
use crate::refusal::Refusal;

/// Longest line that is taken from the host.
const LINE_MAX: u64 = 4_096;

/// How long a host that is gone is left alone, and a wait for rows lasts.
const PAUSE: Duration = Duration::from_secs(1);

/// What the host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Word {
    After(i64),
    Acknowledged(i64),
}

/// What both directions know: the number after which rows are to be sent.
#[derive(Debug, Clone, Default)]
struct Place(Arc<Mutex<i64>>);

impl Place {
    fn get(&self) -> i64 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, seq: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seq;
    }

    /// Goes on, unless the host has asked for another place meanwhile.
    fn advance(&self, from: i64, to: i64) {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *place == from {
            *place = to;
        }
    }
}

/// Sends rows to `to` and takes the host's words from `from`, in two threads that end with the
/// process. Each has a connection of its own to the database.
pub fn start(
    to: impl Write + Send + 'static,
    from: impl Read + Send + 'static,
    outboxes: [Outbox; 2],
    bell: Arc<Bell>,
) -> io::Result<()> {
    let [sent, heard] = outboxes;
    let place = Place::default();
    let state = sent.state().map_err(io::Error::other)?;
    place.set(state.acknowledged);
    let other = place.clone();
    thread::Builder::new().name("rows".into()).spawn(move || send(to, &sent, &bell, &place))?;
    thread::Builder::new().name("words".into()).spawn(move || hear(from, &heard, &other))?;
    Ok(())
}

fn send(mut to: impl Write, outbox: &Outbox, bell: &Bell, place: &Place) {
    loop {
        let after = place.get();
        let read = || Ok((outbox.state()?.last, outbox.after(after, BATCH_ROWS)?));
        let sent = match read() {
            Ok((last, rows)) if rows.is_empty() => {
                // Those up to the last are gone; it is behind if the host was told of more before
                // the database was lost.
                place.advance(after, last.max(after));
                // Woken by a row, or looks anew for another place.
                bell.wait(last.max(after), PAUSE);
                continue;
            }
            Ok((_, rows)) => write(&mut to, &rows).inspect(|()| {
                place.advance(after, rows.last().expect("there are some").seq);
            }),
            Err::<_, Refusal>(refusal) => Err(io::Error::other(refusal)),
        };
        if let Err(error) = sent {
            tracing::warn!("rows cannot be sent, tried again in {PAUSE:?}: {error}");
            thread::sleep(PAUSE);
            if let Ok(state) = outbox.state() {
                place.set(state.acknowledged);
            }
        }
    }
}

fn write(to: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    for row in rows {
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        to.write_all(&line)?;
    }
    to.flush()
}

fn hear(from: impl Read, outbox: &Outbox, place: &Place) {
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        let heard = (&mut from).take(LINE_MAX).read_until(b'\n', &mut line);
        match heard {
            Ok(_) if line.ends_with(b"\n") => obey(&line, outbox, place),
            // Nobody is there, or the line was too long and its rest will be no word either.
            Ok(_) => thread::sleep(PAUSE),
            Err(error) => {
                tracing::warn!("the host cannot be heard, tried again in {PAUSE:?}: {error}");
                thread::sleep(PAUSE);
            }
        }
    }
}

fn obey(line: &[u8], outbox: &Outbox, place: &Place) {
    match serde_json::from_slice(line) {
        Ok(Word::After(seq)) => place.set(seq.max(0)),
        Ok(Word::Acknowledged(seq)) => {
            if let Err(refusal) = outbox.acknowledge(seq) {
                tracing::warn!("not acknowledged, the host will be sent them again: {refusal}");
            }
        }
        Err(error) => tracing::warn!("the host has said what is no word: {error}"),
    }
}
