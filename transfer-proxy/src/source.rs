//! The end that has the files: makes their manifest and answers requests for chunks.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model::{Bytes, FileId, Manifest, ManifestFile, PublicKey, TokenHash, VmId, limit};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::carrier::{Closed, Code, Cut, Link, Receiver, Sender, Stall};
use crate::chunk;
use crate::fault::{Fault, Reason};
use crate::message::{self, Control, Fetch, FrameError, MAX_FETCH_BYTES, MAX_RUN};
use crate::session::{ControlStream, Outcome, converse};
use crate::tls::{Hint, TransferKey};
use crate::transfer::{Event, Transfer};

/// One transfer that this proxy is ready to send.
pub(crate) struct Serving {
    pub(crate) transfer: Transfer,
    pub(crate) vm: VmId,
    pub(crate) token_hash: TokenHash,
    pub(crate) hint: Hint,
    pub(crate) key: TransferKey,
    pub(crate) public_key: PublicKey,
    pub(crate) peer_key: PublicKey,
    /// Bytes of content that may be sent, repeats included.
    pub(crate) budget: Bytes,
    spent: AtomicU64,
    content: watch::Sender<Stage>,
}

/// How far the content is.
#[derive(Clone)]
enum Stage {
    /// The guest still runs.
    Awaited,
    /// The manifest is being made.
    Reading,
    /// Ready to send.
    Ready(Arc<Content>),
    /// It cannot be sent.
    Failed(Fault),
}

/// The files, open, and what they held when they were read.
struct Content {
    manifest: Manifest,
    /// In the manifest's order.
    files: Vec<File>,
}

impl Serving {
    pub(crate) fn new(
        transfer: Transfer,
        serve: &crate::Serve,
        key: TransferKey,
        public_key: PublicKey,
    ) -> Self {
        Self {
            transfer,
            vm: serve.vm,
            token_hash: serve.token_hash,
            hint: serve.hint,
            key,
            public_key,
            peer_key: serve.peer_key,
            budget: serve.byte_budget,
            spent: AtomicU64::new(0),
            content: watch::Sender::new(Stage::Awaited),
        }
    }

    /// Reads the files of the quiet guest and makes their manifest. A repeat is answered with
    /// the same manifest; after a failure the files are read anew.
    pub(crate) async fn provide(self: Arc<Self>, files: Vec<(FileId, PathBuf)>) {
        let claimed = self.content.send_if_modified(|stage| {
            let free = matches!(stage, Stage::Awaited | Stage::Failed(_));
            if free {
                *stage = Stage::Reading;
            }
            free
        });
        if claimed {
            let serving = self.clone();
            let read = spawn_blocking(move || serving.read(files)).await;
            let read = read.expect("reading files does not panic");
            let stage = match read {
                Ok(content) => Stage::Ready(Arc::new(content)),
                Err(fault) => Stage::Failed(fault),
            };
            self.content.send_replace(stage);
        }
        let stage = self.content.borrow().clone();
        match stage {
            Stage::Ready(content) => {
                self.transfer
                    .emit(Event::Sent {
                        migration: self.transfer.migration,
                        digest: content.manifest.root(),
                        size: content.manifest.size(),
                        has_state: content.manifest.has_state(),
                    })
                    .await;
            }
            // Interrupted because the transfer was closed.
            Stage::Failed(_) if self.transfer.is_halted() => {}
            Stage::Failed(fault) => self.transfer.fail(fault.local).await,
            Stage::Awaited | Stage::Reading => {}
        }
    }

    fn read(&self, mut files: Vec<(FileId, PathBuf)>) -> Result<Content, Fault> {
        files.sort();
        let mut manifest = Manifest {
            vm: self.vm,
            migration: self.transfer.migration,
            files: Vec::with_capacity(files.len().min(limit::MAX_FILES)),
        };
        let mut open = Vec::with_capacity(files.len().min(limit::MAX_FILES));
        let mut data = 0;
        for (id, path) in files {
            let unreadable = |error: io::Error| {
                Fault::with(Reason::Unreadable(id), format_args!("{}: {error}", path.display()))
            };
            let file = File::open(&path).map_err(unreadable)?;
            let size = file.metadata().map_err(unreadable)?.len();
            let chunks =
                chunk::scan(&file, size, &|| self.transfer.is_halted()).map_err(unreadable)?;
            data += data_bytes(size, &chunks);
            manifest.files.push(ManifestFile { id, size: Bytes(size), chunks });
            open.push(file);
        }
        manifest.check().map_err(|error| Fault::with(Reason::Manifest, error))?;
        if data > self.budget.0 {
            let reason = Reason::Budget { size: Bytes(data), budget: self.budget };
            return Err(reason.into());
        }
        self.transfer.total.store(data, Ordering::Relaxed);
        Ok(Content { manifest, files: open })
    }

    /// Waits until there is something to send, or never will be.
    async fn content(&self) -> Result<Arc<Content>, Fault> {
        let mut stages = self.content.subscribe();
        loop {
            let stage = stages.borrow_and_update().clone();
            match stage {
                Stage::Ready(content) => return Ok(content),
                Stage::Failed(fault) => return Err(fault),
                Stage::Awaited | Stage::Reading => {
                    stages.changed().await.expect("the sender is borrowed from self");
                }
            }
        }
    }

    /// Later sessions hear of it too. A manifest that no longer describes the files is useless.
    fn mark_failed(&self, fault: &Fault) {
        if matches!(fault.reason, Reason::Changed(_) | Reason::Unreadable(_)) {
            self.content.send_replace(Stage::Failed(fault.clone()));
        }
    }

    /// Reads a chunk and makes sure that it still is what the manifest says.
    fn read_chunk(&self, content: &Content, file: usize, index: u32) -> Result<Vec<u8>, Fault> {
        let listed = &content.manifest.files[file];
        let bytes = chunk::read(&content.files[file], listed.size.0, index).map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::UnexpectedEof => Reason::Changed(listed.id),
                _ => Reason::Unreadable(listed.id),
            };
            Fault::with(reason, error)
        })?;
        if chunk::entry(&bytes) != listed.chunks[index as usize] {
            return Err(Reason::Changed(listed.id).into());
        }
        Ok(bytes)
    }

    fn spend(&self, bytes: usize) -> Result<(), Fault> {
        let bytes = bytes as u64;
        let spent = self.spent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if spent > self.budget.0 { Err(Reason::Spent(self.budget).into()) } else { Ok(()) }
    }
}

/// Bytes of the chunks that are not all zero.
pub(crate) fn data_bytes(size: u64, chunks: &[Option<model::Digest>]) -> u64 {
    (0..)
        .zip(chunks)
        .filter(|(_, entry)| entry.is_some())
        .map(|(index, _)| chunk::length(size, index) as u64)
        .sum()
}

/// Runs a session whose target showed key and token, to its end.
pub(crate) async fn run(serving: Arc<Serving>, link: Link, mut stream: ControlStream) {
    let transfer = &serving.transfer;
    let welcome = Control::Welcome { vm: serving.vm, migration: transfer.migration };
    if message::send(&mut stream.sender, &welcome).await.is_err() {
        return;
    }
    transfer.emit(Event::Opened { migration: transfer.migration }).await;
    let (give_up, mut faults) = mpsc::channel(1);
    let work = async {
        match answer_requests(&serving, &link).await {
            Ok(never) => match never {},
            Err(Some(fault)) => {
                serving.mark_failed(&fault);
                // Cannot fail: the receiver lives as long as this future.
                let _ = give_up.send(fault).await;
            }
            // The session is over, which the conversation notices by itself.
            Err(None) => {}
        }
        std::future::pending::<Infallible>().await
    };
    let outcome = tokio::select! {
        outcome = converse(transfer, &link, stream, &mut faults) => outcome,
        never = work => match never {},
    };
    match outcome {
        Outcome::ClosedHere | Outcome::Over(Closed::Here | Closed::ByPeer(Code::Superseded)) => {}
        Outcome::Over(Closed::ByPeer(Code::Done)) => transfer.ended().await,
        Outcome::Over(closed) => transfer.stumble(closed.to_string()).await,
        Outcome::Fault(fault) => transfer.fail(fault.local).await,
        Outcome::PeerFault(reason) => {
            transfer.fail(format!("the target gave up: {reason}")).await;
        }
    }
}

/// Sends the manifest, then answers requests. Ends with none when the session is over.
async fn answer_requests(serving: &Arc<Serving>, link: &Link) -> Result<Infallible, Option<Fault>> {
    let content = serving.content().await.map_err(Some)?;
    let over = |_: Cut| None;
    let mut sender = link.open_one_way().await.map_err(over)?;
    message::send(&mut sender, &content.manifest).await.map_err(over)?;
    sender.finish();
    // Bounded by the streams that the carrier lets the target open.
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            stream = link.accept() => {
                let (sender, receiver) = stream.map_err(over)?;
                answers.spawn(answer(serving.clone(), content.clone(), sender, receiver));
            }
            Some(answered) = answers.join_next() => {
                answered.expect("answers do not panic").map_err(Some)?;
            }
        }
    }
}

/// Answers one request with the bytes of its chunks. A stream that the target dropped is no
/// fault.
async fn answer(
    serving: Arc<Serving>,
    content: Arc<Content>,
    mut sender: Sender,
    mut receiver: Receiver,
) -> Result<(), Fault> {
    let fetch: Fetch = match message::receive(&mut receiver, MAX_FETCH_BYTES, Stall::Watched).await
    {
        Ok(fetch) => fetch,
        Err(FrameError::Cut) => return Ok(()),
        Err(error) => return Err(Fault::with(Reason::Protocol, error)),
    };
    let (file, chunks) = wanted(&content.manifest, &fetch).ok_or(Reason::Protocol)?;
    for index in chunks {
        let (reader, content) = (serving.clone(), content.clone());
        let read = spawn_blocking(move || reader.read_chunk(&content, file, index)).await;
        let bytes = match read.expect("reading a chunk does not panic") {
            Ok(bytes) => bytes,
            Err(fault) => {
                sender.abort();
                return Err(fault);
            }
        };
        let length = bytes.len();
        serving.spend(length)?;
        if sender.send(bytes.into()).await.is_err() {
            return Ok(());
        }
        serving.transfer.done.fetch_add(length as u64, Ordering::Relaxed);
    }
    sender.finish();
    Ok(())
}

/// The place of the file in the manifest and its chunks, if the request is a legal one.
fn wanted(manifest: &Manifest, fetch: &Fetch) -> Option<(usize, std::ops::Range<u32>)> {
    let file = manifest.files.iter().position(|file| file.id == fetch.file)?;
    let end = fetch.first.checked_add(fetch.count)?;
    let range = manifest.files[file].chunks.get(fetch.first as usize..end as usize)?;
    let legal = (1..=MAX_RUN).contains(&fetch.count) && range.iter().all(Option::is_some);
    legal.then_some((file, fetch.first..end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Digest, MigrationId};

    #[test]
    fn only_listed_chunks_with_data_may_be_asked_for() {
        let some = Some(Digest([1; 32]));
        let manifest = Manifest {
            vm: VmId([0; 16]),
            migration: MigrationId([0; 16]),
            files: vec![ManifestFile {
                id: FileId::disk(0),
                size: Bytes((8 << 20) - 1),
                chunks: vec![some, some, None, some, some, some, some, some],
            }],
        };
        let ask = |file, first, count| wanted(&manifest, &Fetch { file, first, count });
        let disk = FileId::disk(0);
        assert_eq!(ask(disk, 0, 2), Some((0, 0..2)));
        assert_eq!(ask(disk, 4, 4), Some((0, 4..8)));
        for (first, count) in [(0, 0), (0, 3), (2, 1), (3, 5), (7, 2), (8, 1), (u32::MAX, 1)] {
            assert_eq!(ask(disk, first, count), None, "{first} {count}");
        }
        assert_eq!(ask(FileId::disk(1), 0, 1), None);
        assert_eq!(data_bytes((8 << 20) - 1, &manifest.files[0].chunks), (7 << 20) - 1);
    }
}
