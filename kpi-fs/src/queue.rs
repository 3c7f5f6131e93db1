//! The one thread that owns the store.
//!
//! What waits is taken together: first everything that concerns memory alone, then all jobs in one
//! commit. What waits at one moment was asked by callers that do not wait for each other, so that
//! its order is free.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::refusal::Refusal;
use crate::store::{Job, Store};

/// Requests that wait at most; who comes then, waits to be let in.
const WAITING_MAX: usize = 1_024;

/// Requests that are handled together.
const TURN_MAX: usize = 256;

type Look = Box<dyn FnOnce(&mut Store) + Send>;
type Answer = Box<dyn FnOnce(&mut Store, Result<(), Refusal>) + Send>;

enum Ask {
    Look(Look),
    Do(Job, Answer),
}

/// The way to the store's thread, which ends when the last of these is gone.
#[derive(Clone)]
pub(crate) struct Queue {
    asks: SyncSender<Ask>,
}

impl Queue {
    /// Starts the thread.
    pub(crate) fn start(store: Store) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (asks, waiting) = sync_channel(WAITING_MAX);
        let thread =
            std::thread::Builder::new().name("store".into()).spawn(|| run(store, waiting))?;
        Ok((Self { asks }, thread))
    }

    /// Looks at the store, or changes what is in its memory.
    pub(crate) fn look(&self, look: impl FnOnce(&mut Store) + Send + 'static) {
        self.put(Ask::Look(Box::new(look)));
    }

    /// Has a job done; `answer` hears when it is durable, or why not.
    pub(crate) fn make(
        &self,
        job: Job,
        answer: impl FnOnce(&mut Store, Result<(), Refusal>) + Send + 'static,
    ) {
        self.put(Ask::Do(job, Box::new(answer)));
    }

    fn put(&self, ask: Ask) {
        // If the thread is gone, the caller's reply is dropped here, which answers EIO.
        drop(self.asks.send(ask));
    }
}

fn run(mut store: Store, waiting: Receiver<Ask>) {
    while let Ok(first) = waiting.recv() {
        let mut jobs = Vec::new();
        let mut answers = Vec::new();
        for ask in std::iter::once(first).chain(waiting.try_iter()).take(TURN_MAX) {
            match ask {
                Ask::Look(look) => look(&mut store),
                Ask::Do(job, answer) => {
                    jobs.push(job);
                    answers.push(answer);
                }
            }
        }
        let done = store.commit(&jobs);
        for (answer, done) in answers.into_iter().zip(done) {
            answer(&mut store, done);
        }
    }
}
