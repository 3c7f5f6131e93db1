//! The end that gets the files: dials, says what it has, judges, verifies, stores.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::{Bytes, Carrier, Digest, FileId, Token};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::buffer::Buffer;
use crate::call::{Call, CallError};
use crate::carrier::{Closed, Code, Cut, Link, Port, Receiver, Stall, Stream};
use crate::content::is_among;
use crate::fault::{Fault, Reason};
use crate::leg::Way;
use crate::message::{
    self, Control, FrameError, Holds, MAX_GREETING_BYTES, MAX_PIECE_BYTES, MAX_VERDICTS, Piece,
    Run, SessionId,
};
use crate::pilot::Pilot;
use crate::session::{LAST_WORD_TIMEOUT, OPEN_TIMEOUT, Outcome, Work, converse, talk};
use crate::shaper::{Part, SLICE};
use crate::store::{self, Layout, Store, StoreError};
use crate::tls::{Tls, TransferKey};
use crate::transfer::{Event, Transfer};

/// Wait before the second attempt to connect; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait between two attempts. A session that lasted so long makes the next wait short.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often it is looked at how things go where nothing comes.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long no chunk and no message may come while something is due, unless so many bytes pass.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const STALL_BYTES: u64 = 64 << 10;

/// One transfer that this proxy fetches.
pub(crate) struct Pulling {
    pub(crate) transfer: Transfer,
    pub(crate) pull: crate::Pull,
    pub(crate) part: Part,
    pub(crate) key: TransferKey,
    /// How the source is reached, where its proxy is not dialled itself.
    pub(crate) way: Option<Way>,
    /// False once it failed for good or the source ended it.
    pub(crate) active: AtomicBool,
}

impl Pulling {
    /// The source's proxy, as it is dialled.
    fn call(&self) -> Call {
        let pull = &self.pull;
        Call {
            uri: pull.from.clone(),
            only: pull.carrier,
            key: self.key.clone(),
            peer: pull.peer_key,
            hint: pull.token.hint(),
        }
    }

    /// The token that a session shows.
    fn shown(&self) -> Token {
        match self.way {
            Some(_) => message::sealed_token(),
            None => self.pull.token.clone(),
        }
    }
}

/// What outlives a session.
struct Fetched {
    pilot: Pilot,
    /// The session to go on with, once the present one is at rest.
    next: Option<Link>,
    store: Option<Arc<Store>>,
    /// The root of what was received completely.
    received: Option<Digest>,
}

/// Why no session came about.
enum OpenFailure {
    Retry(String),
    Final(Fault),
}

impl From<CallError> for OpenFailure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Carrier => Self::Final(Fault::with(Reason::Carrier, error)),
            CallError::Refused | CallError::Lost(_) => Self::Retry(error.to_string()),
        }
    }
}

/// Why a download did not end well.
enum Trouble {
    /// It goes on in another session, which is made.
    Change,
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
            StoreError::Busy(_) | StoreError::Base(_) => return Self::NotYet(error.to_string()),
            StoreError::Mismatch(file) => Reason::Chunk(*file),
            StoreError::Protocol(_) => Reason::Protocol,
            StoreError::Io { .. } if error.is_full() => Reason::Full,
            StoreError::Io { .. } => Reason::Unwritable,
        };
        Self::Fault(Fault::with(reason, error))
    }
}

/// Fetches until the node closes the transfer, the source ends it, or it fails for good.
pub(crate) async fn run(pulling: Arc<Pulling>, port: Arc<Port>, tls: Tls) {
    let over = fetch_until_over(&pulling, &port, &tls).await;
    // Whoever hears of it may pull again at once.
    pulling.active.store(false, Ordering::Relaxed);
    match over {
        Over::ClosedHere => {}
        Over::Ended => pulling.transfer.ended().await,
        Over::Failed(error) => pulling.transfer.fail(error).await,
    }
}

/// Why nothing is fetched any more.
enum Over {
    /// The node closed the transfer.
    ClosedHere,
    /// The source ended it.
    Ended,
    /// It cannot go on.
    Failed(String),
}

async fn fetch_until_over(pulling: &Arc<Pulling>, port: &Arc<Port>, tls: &Tls) -> Over {
    let transfer = &pulling.transfer;
    let has_choice = pulling.way.is_none() && pulling.call().carriers().len() > 1;
    let pilot = Pilot::new(has_choice, Instant::now());
    let mut fetched = Fetched { pilot, next: None, store: None, received: None };
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let session = tls.random();
        // An open session closes by itself, after a last word.
        let opened = tokio::select! {
            () = transfer.closing() => return Over::ClosedHere,
            opened = open(pulling, port, session, fetched.next.take()) => opened,
        };
        let error = match opened {
            Ok((link, stream)) => {
                told = false;
                let since = Instant::now();
                let outcome =
                    run_session(pulling, port, &link, session, stream, &mut fetched).await;
                if fetched.next.is_some() {
                    continue;
                }
                if since.elapsed() >= LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
                match outcome {
                    Outcome::ClosedHere => return Over::ClosedHere,
                    Outcome::Over(Closed::ByPeer(Code::Done)) => return Over::Ended,
                    Outcome::Over(closed) => closed.to_string(),
                    Outcome::Fault(fault) => return Over::Failed(fault.local),
                    Outcome::PeerFault(reason) => {
                        return Over::Failed(format!("the source gave up: {reason}"));
                    }
                }
            }
            Err(OpenFailure::Retry(error)) => error,
            Err(OpenFailure::Final(fault)) => return Over::Failed(fault.local),
        };
        if !std::mem::replace(&mut told, true) {
            transfer.stumble(error).await;
        }
        tokio::select! {
            () = transfer.closing() => return Over::ClosedHere,
            () = sleep(pause) => {}
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Connects, unless that is done, and shows the token.
async fn open(
    pulling: &Pulling,
    port: &Arc<Port>,
    session: SessionId,
    made: Option<Link>,
) -> Result<(Link, Stream), OpenFailure> {
    let link = match (made, &pulling.way) {
        (Some(link), _) => link,
        (None, None) => pulling.call().connect(port).await?,
        (None, Some(way)) => {
            let (key, peer) = (pulling.key.clone(), &pulling.pull.peer_key);
            let dialling = port.dial_through(way.clone().opener(port.clone()), key, peer);
            let no_answer = || OpenFailure::Retry("no answer through the relay".to_owned());
            let dialled = timeout(2 * OPEN_TIMEOUT, dialling).await.map_err(|_| no_answer())?;
            dialled.map_err(|closed| OpenFailure::Retry(closed.to_string()))?
        }
    };
    greet(pulling, link, session).await
}

/// Shows the token to the source that was dialled.
async fn greet(
    pulling: &Pulling,
    link: Link,
    session: SessionId,
) -> Result<(Link, Stream), OpenFailure> {
    let pull = &pulling.pull;
    let greeted = async {
        let Stream { mut sender, mut receiver } = link.open().await?;
        let hello = Control::Hello { token: pulling.shown(), session };
        message::send(&mut sender, &hello).await?;
        let answer = message::receive(&mut receiver, MAX_GREETING_BYTES, Stall::Never).await;
        if matches!(answer, Err(FrameError::Cut)) {
            receiver.is_lost("the connection broke");
        }
        Ok::<_, FrameError>((answer?, Stream { sender, receiver }))
    };
    let Ok(greeted) = timeout(OPEN_TIMEOUT, greeted).await else {
        return Err(OpenFailure::Retry("no answer to the token".to_owned()));
    };
    match greeted {
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
        Err(FrameError::Cut) => Err(OpenFailure::Retry(link.closed().await.to_string())),
        Err(error) => Err(OpenFailure::Final(Fault::with(Reason::Protocol, error))),
    }
}

/// Runs an open session to its end.
async fn run_session(
    pulling: &Arc<Pulling>,
    port: &Port,
    link: &Link,
    session: SessionId,
    stream: Stream,
    fetched: &mut Fetched,
) -> Outcome {
    let (talk, Work { say, heard, give_up }) = talk();
    let work = async {
        let download = Download { pulling, port, link, session, say, held: vec![] };
        match download.run(heard, fetched).await {
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
            // Nothing is under way any more.
            Err(Trouble::Change) => link.close(Code::Superseded),
            Err(Trouble::NotYet(error)) => {
                pulling.transfer.stumble(error).await;
                link.close(Code::Away);
            }
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        outcome = converse(&pulling.transfer, link, stream, talk) => outcome,
        never = work => match never {},
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work).await.expect("work on files does not panic")
}

/// The fetching of one session.
struct Download<'a> {
    pulling: &'a Arc<Pulling>,
    port: &'a Port,
    link: &'a Link,
    session: SessionId,
    say: mpsc::Sender<Control>,
    /// What the source was told, per file.
    held: Vec<(FileId, Vec<Run>)>,
}

impl Download<'_> {
    /// Gets all that is missing. May be dropped at any point and begun again.
    async fn run(
        mut self,
        mut heard: mpsc::Receiver<Control>,
        fetched: &mut Fetched,
    ) -> Result<(), Trouble> {
        let pull = &self.pulling.pull;
        if pull.expected.is_empty() {
            // All is here from before, and a guest may be about to use it.
            return self.say(Control::Holds(Holds::Aside)).await;
        }
        if let Some(received) = fetched.received {
            self.say(Control::Holds(Holds::All)).await?;
            return match heard.recv().await.ok_or(Cut)? {
                Control::End { root } if root == received => Ok(()),
                Control::End { .. } => Err(Reason::Replaced.into()),
                _ => Err(Reason::Protocol.into()),
            };
        }
        let (content, files) = match &fetched.store {
            Some(store) => {
                let store = store.clone();
                let (content, files) = blocking(move || Ok(store.declare())).await?;
                (Some(content), files)
            }
            None => {
                let owner = self.pulling.clone();
                let look = move || {
                    let pull = &owner.pull;
                    store::look(&pull.folder, &pull.expected, &pull.basis)
                };
                (None, blocking(look).await?)
            }
        };
        self.held = files.iter().map(|held| (held.file, held.held.clone())).collect();
        self.say(Control::Holds(Holds::Some { content, files })).await?;
        // They are open by the time that the source has something to send.
        let (ready, store) = watch::channel(None);
        let came = Arc::new(Came::default());
        let mut lanes = JoinSet::new();
        for _ in 0..self.link.lanes() {
            let lane = Lane {
                pulling: self.pulling.clone(),
                link: self.link.clone(),
                session: self.session,
                store: store.clone(),
                came: came.clone(),
            };
            lanes.spawn(lane.run());
        }
        let follow = self.follow(heard, fetched, ready, &came);
        let received = tokio::select! {
            followed = follow => followed?,
            Some(ended) = lanes.join_next() => {
                return Err(match ended.expect("lanes do not panic") {
                    Ok(never) => match never {},
                    Err(trouble) => trouble,
                });
            }
        };
        // The lock on the folder goes with them: from here on the files are the node's.
        lanes.shutdown().await;
        fetched.store = None;
        self.pulling.transfer.emit(received).await;
        Ok(())
    }

    async fn say(&self, message: Control) -> Result<(), Trouble> {
        self.say.send(message).await.map_err(|_| Trouble::Cut)
    }

    /// Follows what the source says, until everything is here.
    async fn follow(
        &mut self,
        mut heard: mpsc::Receiver<Control>,
        fetched: &mut Fetched,
        ready: watch::Sender<Option<Arc<Store>>>,
        came: &Came,
    ) -> Result<Event, Trouble> {
        let transfer = &self.pulling.transfer;
        let Control::Layout { content, files, data } = heard.recv().await.ok_or(Cut)? else {
            return Err(Reason::Protocol.into());
        };
        transfer.total.store(data.0, Ordering::Relaxed);
        let store = self.open_store(content, files, fetched).await?;
        transfer.done.store(store.verified_bytes(), Ordering::Relaxed);
        ready.send_replace(Some(store.clone()));
        fetched.pilot.begin(Instant::now(), self.link.trip());
        let mut change = Change::None;
        let mut end = None;
        let mut silence = Silence { since: Instant::now(), wire: 0 };
        let root = loop {
            let stirring = came.stirred.notified();
            let done = store.verified_bytes();
            transfer.done.store(done, Ordering::Relaxed);
            transfer.keep_pace();
            if let Some(root) = end.filter(|_| store.is_complete()) {
                break root;
            }
            let pieces = came.pieces.load(Ordering::Relaxed);
            change = match change {
                Change::None => {
                    let left = transfer.total.load(Ordering::Relaxed).saturating_sub(done);
                    let next = fetched.pilot.look(Instant::now(), self.link.kind(), done, left);
                    match next {
                        Some(kind) => Change::Dial(Box::pin(self.dial(kind))),
                        None => Change::None,
                    }
                }
                Change::Rest(link, Some(sent)) if sent <= pieces => {
                    fetched.next = Some(link);
                    return Err(Trouble::Change);
                }
                change => change,
            };
            tokio::select! {
                dialled = change.dialled() => change = match dialled {
                    Ok(link) => {
                        self.say(Control::Rest).await?;
                        Change::Rest(link, None)
                    }
                    Err(_) => {
                        fetched.pilot.failed(Instant::now());
                        Change::None
                    }
                },
                message = heard.recv() => match message.ok_or(Cut)? {
                    Control::Sums { file, first, entries, data } => {
                        transfer.total.store(data.0, Ordering::Relaxed);
                        self.learn(&store, file, first, entries).await?;
                    }
                    Control::Resting { pieces } => match &mut change {
                        Change::Rest(_, sent @ None) => *sent = Some(pieces),
                        _ => return Err(Reason::Protocol.into()),
                    },
                    Control::End { root } => end = Some(root),
                    _ => return Err(Reason::Protocol.into()),
                },
                () = stirring => {}
                () = sleep(LOOK_INTERVAL) => {
                    if silence.is_long(self.link.wire_bytes()) {
                        return Err(Trouble::Cut);
                    }
                }
            }
        };
        let (pull, finished) = (&self.pulling.pull, store.clone());
        let (vm, migration) = (pull.vm, pull.migration);
        let manifest = blocking(move || finished.finish(vm, migration)).await?;
        let fault = |detail: String| Trouble::Fault(Fault::with(Reason::Manifest, detail));
        manifest.check().map_err(|error| fault(error.to_string()))?;
        if manifest.root() != root {
            return Err(fault("it is not what came".to_owned()));
        }
        fetched.received = Some(root);
        Ok(Event::Received {
            migration,
            digest: root,
            size: manifest.size(),
            wire: transfer.wire(),
            has_state: manifest.has_state(),
        })
    }

    /// Connects over another carrier, without a word that would end the present session.
    async fn dial(&self, kind: Carrier) -> Result<Link, OpenFailure> {
        Ok(self.pulling.call().connect_over(self.port, kind).await?)
    }

    /// Nothing is written, and no file made, before everything here holds.
    async fn open_store(
        &self,
        content: message::ContentId,
        files: Vec<(FileId, Bytes)>,
        fetched: &mut Fetched,
    ) -> Result<Arc<Store>, Trouble> {
        let pull = &self.pulling.pull;
        if let Some((file, _)) = files.iter().find(|(file, _)| !pull.expected.contains(file)) {
            return Err(Reason::Unexpected(*file).into());
        }
        if files.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(Reason::Manifest.into());
        }
        let size = files.iter().try_fold(0_u64, |sum, (_, size)| sum.checked_add(size.0));
        let size = Bytes(size.unwrap_or(u64::MAX));
        if size > pull.budget {
            return Err(Reason::Budget { size, budget: pull.budget }.into());
        }
        let store = match fetched.store.take() {
            Some(store) if store.has_files(&files) => {
                store.turn_to(content);
                store
            }
            other => {
                drop(other);
                let owner = self.pulling.clone();
                let open = move || {
                    let crate::Pull { folder, expected, basis, .. } = &owner.pull;
                    Store::open(folder, &Layout { content, files: &files, expected, basis })
                };
                Arc::new(blocking(open).await?)
            }
        };
        fetched.store = Some(store.clone());
        Ok(store)
    }

    /// Takes what the source says of chunks, and judges those that it was told are here.
    async fn learn(
        &self,
        store: &Arc<Store>,
        file: FileId,
        mut first: u32,
        entries: Vec<message::Entry>,
    ) -> Result<(), Trouble> {
        let held = self.held.iter().find(|(of, _)| *of == file).map(|(_, held)| held.clone());
        let held = Arc::new(held.unwrap_or_default());
        for part in entries.chunks(MAX_VERDICTS) {
            let (store, part, held) = (store.clone(), part.to_vec(), held.clone());
            let (verdicts, next) = blocking(move || {
                let verdicts = store.learn(file, first, &part, |index| is_among(&held, index))?;
                let count = |entry: &message::Entry| match entry {
                    message::Entry::Zero(count) => *count,
                    message::Entry::Data(_) => 1,
                };
                // No overflow: it was checked that they lie within the file.
                Ok((verdicts, first + part.iter().map(count).sum::<u32>()))
            })
            .await?;
            first = next;
            if !verdicts.is_empty() {
                self.say(Control::Judged { file, verdicts }).await?;
            }
        }
        Ok(())
    }
}

/// How far the change to another session is.
enum Change<'a> {
    None,
    /// It is being made.
    Dial(Pin<Box<dyn Future<Output = Result<Link, OpenFailure>> + Send + 'a>>),
    /// It is made, and the source was asked to rest; then how many pieces it sent.
    Rest(Link, Option<u64>),
}

impl Change<'_> {
    /// Waits until it is made.
    async fn dialled(&mut self) -> Result<Link, OpenFailure> {
        match self {
            Self::Dial(dialling) => dialling.await,
            Self::None | Self::Rest(..) => std::future::pending().await,
        }
    }
}

/// Finds out whether nothing comes although something is due. Slow is not silent.
struct Silence {
    since: Instant,
    wire: u64,
}

impl Silence {
    fn is_long(&mut self, wire: u64) -> bool {
        if wire - self.wire >= STALL_BYTES {
            *self = Self { since: Instant::now(), wire };
        }
        self.since.elapsed() > STALL_TIMEOUT
    }
}

/// What came of all lanes of a session.
#[derive(Default)]
struct Came {
    pieces: AtomicU64,
    /// Told of each.
    stirred: Notify,
}

/// Receives chunks.
struct Lane {
    pulling: Arc<Pulling>,
    link: Link,
    session: SessionId,
    /// Where they go, once that is open.
    store: watch::Receiver<Option<Arc<Store>>>,
    came: Arc<Came>,
}

impl Lane {
    async fn run(mut self) -> Result<Infallible, Trouble> {
        let Stream { mut sender, receiver } = self.link.open().await?;
        let token = self.pulling.shown();
        message::send(&mut sender, &Control::Lane { token, session: self.session }).await?;
        let opened = self.store.wait_for(Option::is_some).await;
        let store = opened.map_err(|_| Cut)?.clone().ok_or(Cut)?;
        // One chunk is written while the next one comes.
        let receiver = tokio::sync::Mutex::new(receiver);
        let (one, other) =
            (self.receive_all(&receiver, &store), self.receive_all(&receiver, &store));
        tokio::select! {
            ended = one => ended,
            ended = other => ended,
        }
    }

    async fn receive_all(
        &self,
        receiver: &tokio::sync::Mutex<Receiver>,
        store: &Arc<Store>,
    ) -> Result<Infallible, Trouble> {
        loop {
            self.receive(receiver, store).await?;
            self.came.pieces.fetch_add(1, Ordering::Relaxed);
            self.came.stirred.notify_one();
        }
    }

    async fn receive(
        &self,
        receiver: &tokio::sync::Mutex<Receiver>,
        store: &Arc<Store>,
    ) -> Result<(), Trouble> {
        let mut receiver = receiver.lock().await;
        let received = message::receive(&mut receiver, MAX_PIECE_BYTES, Stall::Never).await;
        let piece: Piece = received.map_err(|error| match error {
            FrameError::Cut => Trouble::Cut,
            error => Trouble::Fault(Fault::with(Reason::Protocol, error)),
        })?;
        if piece.length as usize > store.length(piece.file, piece.index)? {
            return Err(Reason::Protocol.into());
        }
        let mut bytes = Buffer::unfilled(piece.length as usize);
        for slice in bytes.chunks_mut(SLICE) {
            self.pulling.part.take(slice.len()).await;
            receiver.fill(slice, Stall::Watched).await?;
        }
        drop(receiver);
        let store = store.clone();
        Ok(blocking(move || store.put(&piece, bytes)).await?)
    }
}
