//! The end that gets the files: dials, checks the manifest, fetches, verifies, stores.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use model::{Digest, Manifest, limit, manifest::CHUNK};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::carrier::{Carrier, Closed, Code, Cut, DATA_STREAMS, Link, Stall};
use crate::fault::{Fault, Reason};
use crate::message::{self, Control, Fetch, FrameError, MAX_GREETING_BYTES, MAX_MANIFEST_BYTES};
use crate::session::{ControlStream, LAST_WORD_TIMEOUT, OPEN_TIMEOUT, Outcome, converse};
use crate::source::data_bytes;
use crate::store::{Store, StoreError};
use crate::tls::TransferKey;
use crate::transfer::{Event, Transfer};

/// Wait before the second attempt to connect; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait between two attempts. A session that lasted so long makes the next wait short.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Addresses that are tried when the source's proxy is given by name.
const MAX_ADDRESSES: usize = 4;

/// One transfer that this proxy fetches.
pub(crate) struct Pulling {
    pub(crate) transfer: Transfer,
    pub(crate) pull: crate::Pull,
    pub(crate) key: TransferKey,
    /// False once it failed for good or the source ended it.
    pub(crate) active: AtomicBool,
}

/// What outlives a session.
#[derive(Default)]
struct Held {
    store: Option<Arc<Store>>,
    /// The root of what was received completely.
    received: Option<Digest>,
}

/// Why no session came about.
enum OpenFailure {
    Retry(String),
    Final(Fault),
}

/// Why a download did not end well.
enum Trouble {
    /// It cannot go on.
    Fault(Fault),
    /// The session is over or useless; a new one may do better.
    Cut,
    /// This end is not ready; later it may be.
    NotYet(String),
}

impl From<Cut> for Trouble {
    fn from(_: Cut) -> Self {
        Self::Cut
    }
}

impl From<Reason> for Trouble {
    fn from(reason: Reason) -> Self {
        Self::Fault(reason.into())
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        let reason = match &error {
            StoreError::Busy(_) => return Self::NotYet(error.to_string()),
            StoreError::Mismatch(file) => Reason::Chunk(*file),
            StoreError::Io { .. } if error.is_full() => Reason::Full,
            StoreError::Io { .. } => Reason::Unwritable,
        };
        Self::Fault(Fault::with(reason, error))
    }
}

/// Fetches until the node closes the transfer, the source ends it, or it fails for good.
pub(crate) async fn run(pulling: Arc<Pulling>, carrier: Arc<Carrier>) {
    fetch_until_over(&pulling, &carrier).await;
    pulling.active.store(false, Ordering::Relaxed);
}

async fn fetch_until_over(pulling: &Arc<Pulling>, carrier: &Carrier) {
    let transfer = &pulling.transfer;
    let mut held = Held::default();
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        // An open session closes by itself, after a last word.
        let opened = tokio::select! {
            () = transfer.closing() => return,
            opened = open(pulling, carrier) => opened,
        };
        let error = match opened {
            Ok((link, stream)) => {
                told = false;
                let since = Instant::now();
                let outcome = session(pulling, &link, stream, &mut held).await;
                if since.elapsed() >= LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
                match outcome {
                    Outcome::ClosedHere => return,
                    Outcome::Over(Closed::ByPeer(Code::Done)) => return transfer.ended().await,
                    Outcome::Over(closed) => closed.to_string(),
                    Outcome::Fault(fault) => return transfer.fail(fault.local).await,
                    Outcome::PeerFault(reason) => {
                        return transfer.fail(format!("the source gave up: {reason}")).await;
                    }
                }
            }
            Err(OpenFailure::Retry(error)) => error,
            Err(OpenFailure::Final(fault)) => return transfer.fail(fault.local).await,
        };
        if !std::mem::replace(&mut told, true) {
            transfer.stumble(error).await;
        }
        tokio::select! {
            () = transfer.closing() => return,
            () = sleep(pause) => {}
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Connects and shows the token.
async fn open(pulling: &Pulling, carrier: &Carrier) -> Result<(Link, ControlStream), OpenFailure> {
    let authority = pulling.pull.from.authority();
    let resolved = timeout(OPEN_TIMEOUT, tokio::net::lookup_host(authority)).await;
    let addresses = match resolved {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(error)) => return Err(OpenFailure::Retry(format!("{authority}: {error}"))),
        Err(_) => {
            return Err(OpenFailure::Retry(format!("{authority}: no answer of the resolver")));
        }
    };
    let mut failure = OpenFailure::Retry(format!("{authority}: no address"));
    for address in addresses.take(MAX_ADDRESSES) {
        failure = match timeout(OPEN_TIMEOUT, open_at(pulling, carrier, address)).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(OpenFailure::Final(fault))) => return Err(OpenFailure::Final(fault)),
            Ok(Err(failure)) => failure,
            Err(_) => OpenFailure::Retry(format!("{address}: no answer")),
        };
    }
    Err(failure)
}

async fn open_at(
    pulling: &Pulling,
    carrier: &Carrier,
    address: SocketAddr,
) -> Result<(Link, ControlStream), OpenFailure> {
    let pull = &pulling.pull;
    let hint = pull.token.hint();
    let retry = |closed: Closed| OpenFailure::Retry(closed.to_string());
    let link =
        carrier.dial(address, pulling.key.clone(), &pull.peer_key, &hint).await.map_err(retry)?;
    let greeted = async {
        let (mut sender, mut receiver) = link.open().await?;
        message::send(&mut sender, &Control::Hello { token: pull.token.clone() }).await?;
        let answer = message::receive(&mut receiver, MAX_GREETING_BYTES, Stall::Never).await?;
        Ok::<_, FrameError>((answer, ControlStream { sender, receiver }))
    };
    match greeted.await {
        Ok((Control::Welcome { vm, migration }, stream))
            if vm == pull.vm && migration == pull.migration =>
        {
            Ok((link, stream))
        }
        Ok((Control::Welcome { .. }, _)) => {
            let detail = "the source's token stands for another migration";
            Err(OpenFailure::Final(Fault::with(Reason::Protocol, detail)))
        }
        Ok(_) => Err(OpenFailure::Final(Reason::Protocol.into())),
        Err(FrameError::Cut) => Err(retry(link.closed().await)),
        Err(error) => Err(OpenFailure::Final(Fault::with(Reason::Protocol, error))),
    }
}

/// Runs an open session to its end.
async fn session(
    pulling: &Arc<Pulling>,
    link: &Link,
    stream: ControlStream,
    held: &mut Held,
) -> Outcome {
    let (give_up, mut faults) = mpsc::channel(1);
    let work = async {
        match download(pulling, link, held).await {
            Ok(()) => {}
            Err(Trouble::Fault(fault)) => {
                // Cannot fail: the receiver lives as long as this future.
                let _ = give_up.send(fault).await;
            }
            Err(Trouble::Cut) => {
                // Usually the session is over, or the source is about to say why it gives up.
                sleep(2 * LAST_WORD_TIMEOUT).await;
                link.close(Code::Away);
            }
            Err(Trouble::NotYet(error)) => {
                pulling.transfer.stumble(error).await;
                link.close(Code::Away);
            }
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        outcome = converse(&pulling.transfer, link, stream, &mut faults) => outcome,
        never = work => match never {},
    }
}

/// Gets the manifest and all that is missing of it. May be dropped at any point and called again.
async fn download(pulling: &Arc<Pulling>, link: &Link, held: &mut Held) -> Result<(), Trouble> {
    if pulling.pull.expected.is_empty() {
        // All is here from before, and a guest may be about to use it.
        return Ok(());
    }
    let manifest = receive_manifest(pulling, link).await?;
    let root = manifest.root();
    match held.received {
        Some(received) if received == root => return Ok(()),
        Some(_) => return Err(Reason::Replaced.into()),
        None => {}
    }
    let transfer = &pulling.transfer;
    let data = manifest.files.iter().map(|file| data_bytes(file.size.0, &file.chunks)).sum();
    transfer.total.store(data, Ordering::Relaxed);
    let store = match held.store.take() {
        Some(store) if store.manifest().root() == root => store,
        other => {
            drop(other);
            let owner = pulling.clone();
            blocking(move || {
                let pull = &owner.pull;
                let stop = || owner.transfer.is_halted();
                Store::open(&pull.folder, manifest, &pull.expected, &stop).map(Arc::new)
            })
            .await?
        }
    };
    held.store = Some(store.clone());
    transfer.done.store(store.verified_bytes(), Ordering::Relaxed);
    fetch_missing(pulling, link, &store).await?;
    let finished = store.clone();
    blocking(move || finished.finish()).await?;
    let manifest = store.manifest();
    let received = Event::Received {
        migration: manifest.migration,
        digest: root,
        size: manifest.size(),
        wire: transfer.wire(),
        has_state: manifest.has_state(),
    };
    transfer.emit(received).await;
    held.received = Some(root);
    // The lock on the folder goes with it: from here on the files are the node's.
    held.store = None;
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work).await.expect("work on files does not panic")
}

/// Nothing is written, and no file made, before everything here holds.
async fn receive_manifest(pulling: &Pulling, link: &Link) -> Result<Manifest, Trouble> {
    let pull = &pulling.pull;
    let mut stream = link.accept_one_way().await?;
    let received = message::receive(&mut stream, manifest_limit(pull.budget.0), Stall::Watched);
    let manifest: Manifest = received.await.map_err(|error| match error {
        FrameError::Cut => Trouble::Cut,
        error => Trouble::Fault(Fault::with(Reason::Manifest, error)),
    })?;
    let fault = |detail: String| Trouble::Fault(Fault::with(Reason::Manifest, detail));
    manifest.check().map_err(|error| fault(error.to_string()))?;
    if (manifest.vm, manifest.migration) != (pull.vm, pull.migration) {
        return Err(fault("it is about another migration".into()));
    }
    if let Some(file) = manifest.files.iter().find(|file| !pull.expected.contains(&file.id)) {
        return Err(Reason::Unexpected(file.id).into());
    }
    if manifest.size() > pull.budget {
        return Err(Reason::Budget { size: manifest.size(), budget: pull.budget }.into());
    }
    Ok(manifest)
}

/// Bytes of the longest manifest within a budget.
fn manifest_limit(budget: u64) -> usize {
    const CHUNK_BYTES: u64 = 33;
    const FILE_BYTES: u64 = 64;
    let chunks = budget / u64::from(CHUNK) + limit::MAX_FILES as u64;
    let bytes = chunks.saturating_mul(CHUNK_BYTES) + FILE_BYTES * (1 + limit::MAX_FILES as u64);
    usize::try_from(bytes).map_or(MAX_MANIFEST_BYTES, |bytes| bytes.min(MAX_MANIFEST_BYTES))
}

async fn fetch_missing(
    pulling: &Arc<Pulling>,
    link: &Link,
    store: &Arc<Store>,
) -> Result<(), Trouble> {
    let mut runs = store.missing().into_iter();
    let mut under_way = JoinSet::new();
    for run in runs.by_ref().take(DATA_STREAMS as usize) {
        under_way.spawn(fetch_run(pulling.clone(), link.clone(), store.clone(), run));
    }
    while let Some(fetched) = under_way.join_next().await {
        fetched.expect("a fetch does not panic")?;
        if let Some(run) = runs.next() {
            under_way.spawn(fetch_run(pulling.clone(), link.clone(), store.clone(), run));
        }
    }
    Ok(())
}

async fn fetch_run(
    pulling: Arc<Pulling>,
    link: Link,
    store: Arc<Store>,
    run: Fetch,
) -> Result<(), Trouble> {
    let (mut sender, mut receiver) = link.open().await?;
    message::send(&mut sender, &run).await?;
    sender.finish();
    for index in run.first..run.first + run.count {
        let length = store.length(run.file, index);
        let mut bytes = vec![0; length];
        receiver.fill(&mut bytes, Stall::Watched).await?;
        let writer = store.clone();
        blocking(move || writer.write(run.file, index, &bytes)).await?;
        pulling.transfer.done.fetch_add(length as u64, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Bytes, FileId, ManifestFile, MigrationId, VmId};

    #[test]
    fn the_longest_manifest_within_a_budget_fits_its_limit_and_no_budget_lifts_the_limit() {
        let size = (64 << 20) - 1;
        let file = |index| ManifestFile {
            id: FileId::disk(index),
            size: Bytes(size),
            chunks: vec![Some(Digest([0xff; 32])); 64],
        };
        let manifest = Manifest {
            vm: VmId([0xff; 16]),
            migration: MigrationId([0xff; 16]),
            files: (0..limit::MAX_FILES).map(file).collect(),
        };
        let bytes = 1 + postcard_length(&manifest);
        assert!(bytes <= manifest_limit(manifest.size().0));
        assert!(manifest_limit(0) < 8192);
        assert_eq!(manifest_limit(u64::MAX), MAX_MANIFEST_BYTES);
    }

    fn postcard_length(manifest: &Manifest) -> usize {
        postcard::to_stdvec(manifest).unwrap().len()
    }
}
