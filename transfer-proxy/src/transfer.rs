//! What either end keeps of a transfer besides its session: told messages, progress, events.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use model::{Bytes, Digest, MigrationId};
use tokio::sync::{mpsc, watch};

use crate::carrier::{Code, Link};

/// Size of one message given to [`crate::TransferProxy::tell`], in bytes.
pub const MAX_TELL_BYTES: usize = 64 << 10;

/// Told messages that wait to be acknowledged; the oldest gives way.
pub const OUTBOX_MESSAGES: usize = 8;

/// An end of a transfer. One site may be both ends of one migration, between two of its hosts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum End {
    /// Where the files are.
    Source,
    /// Where they go.
    Target,
}

/// What a proxy tells its node. Each may come again after a reconnect or a restart.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Event {
    /// Source: the target showed token and key, and its session is open.
    Opened {
        /// The migration.
        migration: MigrationId,
    },
    /// Source: the files were read and their manifest is made.
    Sent {
        /// The migration.
        migration: MigrationId,
        /// [`model::Manifest::root`].
        digest: Digest,
        /// Size of all files, holes included.
        size: Bytes,
        /// Whether a saved run state is among them.
        has_state: bool,
    },
    /// Target: every chunk was verified, and everything is on stable storage.
    Received {
        /// The migration.
        migration: MigrationId,
        /// [`model::Manifest::root`].
        digest: Digest,
        /// Size of all files, holes included.
        size: Bytes,
        /// Bytes in UDP datagrams that this process sent and received for it.
        wire: Bytes,
        /// Whether a saved run state is among the files.
        has_state: bool,
    },
    /// The node at the other end said something.
    Told {
        /// The migration.
        migration: MigrationId,
        /// The end here that received it.
        end: End,
        /// At most [`MAX_TELL_BYTES`]; to be treated as hostile.
        message: Vec<u8>,
    },
    /// The other end ended the transfer: it will not be back, and is not dialled any more.
    Closed {
        /// The migration.
        migration: MigrationId,
        /// The end here.
        end: End,
    },
    /// Something went wrong.
    Failed {
        /// The migration.
        migration: MigrationId,
        /// The end here.
        end: End,
        /// What, for this site only: it may hold paths and addresses.
        error: String,
        /// It does not get better by itself. Else it is tried again until
        /// [`crate::TransferProxy::close`], and this is told once per outage.
        final_: bool,
    },
}

impl Event {
    /// The transfer that it is about.
    pub fn transfer(&self) -> (MigrationId, End) {
        match *self {
            Self::Opened { migration } | Self::Sent { migration, .. } => (migration, End::Source),
            Self::Received { migration, .. } => (migration, End::Target),
            Self::Told { migration, end, .. }
            | Self::Closed { migration, end }
            | Self::Failed { migration, end, .. } => (migration, end),
        }
    }
}

/// How far a transfer is, as this process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes in chunks that are not all zero; 0 until the manifest is known.
    pub total: Bytes,
    /// Of these: sent (Source, repeats not counted beyond `total`), or verified (Target).
    pub done: Bytes,
    /// Bytes in UDP datagrams, both directions, all sessions.
    pub wire: Bytes,
    /// When the first session opened.
    pub started: Option<Instant>,
}

/// One end of one transfer.
pub(crate) struct Transfer {
    pub(crate) migration: MigrationId,
    pub(crate) end: End,
    pub(crate) outbox: Outbox,
    /// Becomes true once, when the node closes the transfer.
    pub(crate) closing: watch::Sender<bool>,
    pub(crate) total: AtomicU64,
    pub(crate) done: AtomicU64,
    halted: AtomicBool,
    past_wire: AtomicU64,
    started: Mutex<Option<Instant>>,
    link: Mutex<Option<Link>>,
    events: mpsc::Sender<Event>,
}

impl Transfer {
    pub(crate) fn new(migration: MigrationId, end: End, events: mpsc::Sender<Event>) -> Self {
        Self {
            migration,
            end,
            outbox: Outbox::new(),
            closing: watch::Sender::new(false),
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            halted: AtomicBool::new(false),
            past_wire: AtomicU64::new(0),
            started: Mutex::new(None),
            link: Mutex::new(None),
            events,
        }
    }

    /// Tells the node. A node that is gone hears nothing.
    pub(crate) async fn emit(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    /// Tells the node that something went wrong and is tried again.
    pub(crate) async fn stumble(&self, error: String) {
        self.emit(Event::Failed { migration: self.migration, end: self.end, error, final_: false })
            .await;
    }

    /// Tells the node that the transfer cannot go on.
    pub(crate) async fn fail(&self, error: String) {
        self.emit(Event::Failed { migration: self.migration, end: self.end, error, final_: true })
            .await;
    }

    /// Tells the node that the other end ended the transfer.
    pub(crate) async fn ended(&self) {
        self.emit(Event::Closed { migration: self.migration, end: self.end }).await;
    }

    /// Starts to close: the session goes when the other end took what was told, or soon after.
    pub(crate) fn close(&self) {
        self.halt();
        self.closing.send_replace(true);
    }

    /// Waits until the node closes the transfer.
    pub(crate) async fn closing(&self) {
        // Fails only when the sender is gone, which is `self`.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// Ends work on files at its next chunk.
    pub(crate) fn halt(&self) {
        self.halted.store(true, Ordering::Relaxed);
    }

    /// Ends the session as interrupted, not over.
    pub(crate) fn hang_up(&self) {
        if let Some(link) = guard(&self.link).take() {
            link.close(Code::Away);
        }
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    /// `link` is the session from now on; an older one ends.
    pub(crate) fn attach(&self, link: &Link) {
        guard(&self.started).get_or_insert_with(Instant::now);
        if let Some(older) = guard(&self.link).replace(link.clone()) {
            older.close(Code::Superseded);
        }
    }

    /// `link` is over.
    pub(crate) fn detach(&self, link: &Link) {
        let mut current = guard(&self.link);
        self.past_wire.fetch_add(link.wire_bytes(), Ordering::Relaxed);
        if current.as_ref().is_some_and(|current| current.is_same(link)) {
            *current = None;
        }
    }

    pub(crate) fn wire(&self) -> Bytes {
        let current = guard(&self.link);
        let live = current.as_ref().map_or(0, Link::wire_bytes);
        Bytes(self.past_wire.load(Ordering::Relaxed) + live)
    }

    pub(crate) fn progress(&self) -> Progress {
        let total = self.total.load(Ordering::Relaxed);
        Progress {
            total: Bytes(total),
            done: Bytes(self.done.load(Ordering::Relaxed).min(total)),
            wire: self.wire(),
            started: *guard(&self.started),
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

/// Messages for the other end's node, kept until it took them.
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    /// The number of the latest message; each session watches it for itself.
    latest: watch::Sender<u64>,
}

type Queue = VecDeque<(u64, Vec<u8>)>;

impl Outbox {
    fn new() -> Self {
        Self { queue: Mutex::default(), latest: watch::Sender::new(0) }
    }

    pub(crate) fn push(&self, body: Vec<u8>) {
        let mut queue = guard(&self.queue);
        let number = *self.latest.borrow() + 1;
        queue.push_back((number, body));
        if queue.len() > OUTBOX_MESSAGES {
            queue.pop_front();
        }
        self.latest.send_replace(number);
    }

    /// The first message with a number above `sent`.
    pub(crate) fn after(&self, sent: u64) -> Option<(u64, Vec<u8>)> {
        guard(&self.queue).iter().find(|(number, _)| *number > sent).cloned()
    }

    /// The other end took every message up to `number`.
    pub(crate) fn taken(&self, number: u64) {
        guard(&self.queue).retain(|(waiting, _)| *waiting > number);
    }

    pub(crate) fn is_empty(&self) -> bool {
        guard(&self.queue).is_empty()
    }

    /// Changes with each push.
    pub(crate) fn latest(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_keeps_the_latest_messages_until_they_are_taken() {
        let outbox = Outbox::new();
        for body in 0..OUTBOX_MESSAGES as u8 + 2 {
            outbox.push(vec![body]);
        }
        assert_eq!(outbox.after(0), Some((3, vec![2])));
        assert_eq!(outbox.after(3), Some((4, vec![3])));
        outbox.taken(9);
        assert_eq!(outbox.after(0), Some((10, vec![9])));
        outbox.taken(10);
        assert!(outbox.is_empty());
        assert_eq!(outbox.after(0), None);
    }
}
