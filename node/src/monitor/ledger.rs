//! The one thread that owns the book: what waits is done together, in one commit.

use monitoring::book::{Book, BookError};
use tokio::sync::{mpsc, oneshot};

use crate::hands::report;

/// Jobs that wait; whoever adds one more waits.
const WAITING: usize = 1024;
/// Jobs that one commit takes together.
const BATCH: usize = 256;

/// Told whether the commit held.
type Finish = Box<dyn FnOnce(Result<(), LedgerError>) + Send>;
type Job = Box<dyn FnOnce(&mut Book) -> Result<Finish, BookError> + Send>;

/// The way to the book. Its thread ends when the last of these is gone.
#[derive(Clone)]
pub(crate) struct Ledger(mpsc::Sender<Job>);

/// The book could not do it; nothing of it is kept.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LedgerError(String);

impl Ledger {
    pub(crate) fn start(book: Book) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(WAITING);
        std::thread::Builder::new().name("book".into()).spawn(move || run(book, waiting))?;
        Ok(Self(jobs))
    }

    /// Does `work`; when this returns well, what it wrote is durable.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Book) -> Result<T, BookError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |book| {
            let done = work(book)?;
            let finish: Finish = Box::new(move |held| {
                let _ = answer.send(held.map(|()| done));
            });
            Ok(finish)
        });
        let ended = || LedgerError("the node is shutting down".to_owned());
        self.0.send(job).await.map_err(|_| ended())?;
        // A job that fails drops its answer.
        answered.await.unwrap_or_else(|_| Err(LedgerError("the monitoring database failed".into())))
    }
}

fn run(mut book: Book, mut waiting: mpsc::Receiver<Job>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut finishes = Vec::new();
        let held = book.commit(|book| {
            let mut next = Some(first);
            while let Some(job) = next {
                finishes.push(job(book)?);
                next = if finishes.len() < BATCH { waiting.try_recv().ok() } else { None };
            }
            Ok(())
        });
        let held = held.map_err(|error| {
            let why = report(&error);
            tracing::error!(error = why, "the monitoring database failed");
            LedgerError(why)
        });
        for finish in finishes {
            finish(held.clone());
        }
    }
}
