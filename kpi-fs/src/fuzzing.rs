//! The host's words with the host given: for fuzzing. A guest that has been taken over says what it
//! wants to its host, and the other way round.

use std::io::{self, Write};
use std::sync::Arc;

use crate::export::{Place, hear, send};
use crate::outbox::{Bell, Outbox};

/// What is sent to a host that says `said` and then waits: the answer to its last question, and
/// what comes after that. Nothing if it asked nothing.
pub fn sent_after(said: &[u8], outbox: &Outbox, bell: &Bell) -> io::Result<Vec<u8>> {
    let place = Arc::new(Place::default());
    hear(&mut &*said, outbox, &place, |_| ())?;
    if !place.is_asked() {
        return Ok(Vec::new());
    }
    let last = outbox.state().map_err(io::Error::other)?.last;
    let all = format!("{{\"after\":{last}}}\n");
    let mut host = Host { heard: Vec::new(), flushes: 0, all, place: Arc::clone(&place) };
    send(&mut host, outbox, bell, &place)?;
    Ok(host.heard)
}

/// A host that goes when it has heard the answer and a batch of rows.
struct Host {
    heard: Vec<u8>,
    flushes: u32,
    /// The answer after which no rows come.
    all: String,
    place: Arc<Place>,
}

impl Write for Host {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heard.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        if self.flushes == 2 || self.heard == self.all.as_bytes() {
            self.place.end();
        }
        Ok(())
    }
}
