//! What either end keeps of a transfer besides its session: told messages, progress, events.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

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
        /// Bytes that this process gave to the network and took from it for it.
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
    /// Bytes given to the network and taken from it, in all sessions.
    pub wire: Bytes,
    /// Bytes of `done` a second, of late; none while too little is known.
    pub rate: Option<Bytes>,
    /// When the first session opened.
    pub started: Option<Instant>,
}

impl Progress {
    /// How long the rest takes at the present rate.
    pub fn left(&self) -> Option<Duration> {
        let rate = self.rate.filter(|rate| rate.0 > 0)?;
        let rest = self.total.0.saturating_sub(self.done.0);
        Some(Duration::from_secs_f64(rest as f64 / rate.0 as f64))
    }
}

/// How fast something grows: over the last ten seconds, so that a pause is seen and a single
/// chunk is not.
#[derive(Debug, Default)]
struct Pace(VecDeque<(Instant, u64)>);

impl Pace {
    const WINDOW: Duration = Duration::from_secs(10);
    const STEP: Duration = Duration::from_millis(250);
    /// Less is not told.
    const LEAST: Duration = Duration::from_millis(500);

    fn note(&mut self, now: Instant, done: u64) {
        if self.0.back().is_some_and(|(last, _)| now.duration_since(*last) < Self::STEP) {
            return;
        }
        self.0.push_back((now, done));
        while self.0.get(1).is_some_and(|(next, _)| now.duration_since(*next) >= Self::WINDOW) {
            self.0.pop_front();
        }
    }

    fn rate(&self, now: Instant, done: u64) -> Option<u64> {
        let (from, before) = *self.0.front()?;
        let past = now.duration_since(from);
        let grown = done.saturating_sub(before);
        (past >= Self::LEAST).then(|| (grown as f64 / past.as_secs_f64()) as u64)
    }
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
    pace: Mutex<Pace>,
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
            pace: Mutex::default(),
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

    /// To be called now and then while content moves, so that its rate is known.
    pub(crate) fn keep_pace(&self) {
        let done = self.done.load(Ordering::Relaxed).min(self.total.load(Ordering::Relaxed));
        guard(&self.pace).note(Instant::now(), done);
    }

    pub(crate) fn progress(&self) -> Progress {
        let total = self.total.load(Ordering::Relaxed);
        let done = self.done.load(Ordering::Relaxed).min(total);
        self.keep_pace();
        Progress {
            total: Bytes(total),
            done: Bytes(done),
            wire: self.wire(),
            rate: guard(&self.pace).rate(Instant::now(), done).map(Bytes),
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
    fn the_time_left_is_right_in_a_steady_transfer_and_follows_a_change_of_rate() {
        let (start, total) = (Instant::now(), 4000_u64);
        let mut pace = Pace::default();
        assert_eq!(pace.rate(start, 0), None);
        // 100 a second with jitter, then 25 a second.
        let done = |ms: u64| match ms {
            0..20_000 => ms / 10 + [0, 7, 3][ms as usize % 3],
            _ => 2000 + (ms - 20_000) / 40,
        };
        for ms in (0..100_000).step_by(50) {
            let now = start + Duration::from_millis(ms);
            pace.note(now, done(ms));
            let rate = pace.rate(now, done(ms)).map(Bytes);
            let progress = Progress {
                total: Bytes(total),
                done: Bytes(done(ms)),
                rate,
                ..Progress::default()
            };
            let settled = (2_000..20_000).contains(&ms) || ms >= 30_500;
            if settled {
                let wanted = if ms < 20_000 { 100.0 } else { 25.0 };
                let left = (total - done(ms)) as f64 / wanted;
                let told = progress.left().unwrap().as_secs_f64();
                assert!((told - left).abs() <= 0.1 * left + 0.2, "{ms}: {told} of {left}");
            }
        }
        assert!(pace.0.len() < 50);
    }

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
