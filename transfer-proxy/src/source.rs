//! The end that has the files: tells what their chunks hold, and sends those that are missing.
//!
//! ```text
//!   walk ──▶ a chunk that the target has nothing of ──▶ lane: read, hash, send
//!        └─▶ a chunk that it has something of ──▶ lane: read, hash ──▶ Sums ──▶ its verdict ──▶ lane
//! ```
//!
//! Lanes are as many as the carrier has; each takes the next chunk when it has room.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use model::{Bytes, Carrier, Digest, FileId, PublicKey, TokenHash, VmId};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::carrier::{Closed, Code, Cut, Link, MAX_LANES, Sender, Stall, Stream};
use crate::content::{Content, Walk, is_among};
use crate::fault::{Fault, Reason};
use crate::leg::MAX_STREAMS;
use crate::message::{
    self, ContentId, Control, Form, Held, Holds, MAX_GREETING_BYTES, MAX_RUNS, Piece, SessionId,
    Verdict,
};
use crate::order::Dial;
use crate::piece::{self, Gauge};
use crate::session::{LAST_WORD_TIMEOUT, Outcome, Work, converse, talk};
use crate::shaper::{Part, SLICE};
use crate::tls::{Hint, TransferKey};
use crate::transfer::{Event, Transfer};

/// Chunks that are at work for a lane: one is read while the other is sent.
const CHUNKS_PER_LANE: usize = 2;

/// Chunks that are read at a time while no session asks for any.
const SURVEY_CHUNKS: usize = 64;

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
    pub(crate) dial: Option<Dial>,
    /// Connections to it that come through streams of others.
    pub(crate) sealed: Arc<Semaphore>,
    part: Part,
    spent: AtomicU64,
    stage: watch::Sender<Stage>,
    /// The session whose lanes may come as connections of their own.
    pub(crate) open: watch::Sender<Option<Open>>,
    /// Sessions that read content.
    readers: watch::Sender<usize>,
}

/// A session that lanes may join.
#[derive(Clone)]
pub(crate) struct Open {
    pub(crate) session: SessionId,
    pub(crate) link: Link,
    pub(crate) lanes: mpsc::Sender<Stream>,
}

/// How far the content is.
#[derive(Clone)]
enum Stage {
    /// The guest still runs.
    Awaited,
    /// The files are being opened.
    Opening,
    /// Being read, and sent.
    Reading(Arc<Content>),
    /// All was read.
    Sealed(Arc<Content>, Seal),
    /// It cannot be sent.
    Failed(Fault),
}

/// What the node is told when all was read.
#[derive(Debug, Clone, Copy)]
struct Seal {
    root: Digest,
    size: Bytes,
    has_state: bool,
}

impl Serving {
    pub(crate) fn new(
        transfer: Transfer,
        serve: &crate::Serve,
        part: Part,
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
            dial: serve.dial.clone(),
            sealed: Arc::new(Semaphore::new(MAX_STREAMS)),
            part,
            spent: AtomicU64::new(0),
            stage: watch::Sender::new(Stage::Awaited),
            open: watch::Sender::new(None),
            readers: watch::Sender::new(0),
        }
    }

    /// Opens the files of the quiet guest and makes their manifest, by what sessions read and by
    /// reading what none does. A repeat is answered with the same manifest; after a failure the
    /// files are read anew, as `id`.
    pub(crate) async fn provide(self: Arc<Self>, id: ContentId, files: Vec<(FileId, PathBuf)>) {
        let claimed = self.stage.send_if_modified(|stage| {
            let free = matches!(stage, Stage::Awaited | Stage::Failed(_));
            if free {
                *stage = Stage::Opening;
            }
            free
        });
        if !claimed {
            tokio::select! {
                () = self.transfer.closing() => {}
                // Whoever claimed it tells of a failure.
                sealed = self.sealed() => if let Ok(seal) = sealed {
                    self.tell_sent(seal).await;
                },
            }
            return;
        }
        let opened = blocking(move || Content::open(id, files)).await;
        let content = match opened {
            Ok(content) => Arc::new(content),
            Err(fault) => return self.fail(fault).await,
        };
        self.transfer.total.store(content.data(), Ordering::Relaxed);
        self.stage.send_replace(Stage::Reading(content.clone()));
        let failed = async {
            let mut stages = self.stage.subscribe();
            let _ = stages.wait_for(|stage| matches!(stage, Stage::Failed(_))).await;
        };
        tokio::select! {
            // A session told of it, and tells the node when it ends.
            () = failed => {}
            () = self.transfer.closing() => {}
            read = self.read_all(&content) => match read {
                Ok(seal) => {
                    self.tell_sent(seal).await;
                    self.stage.send_replace(Stage::Sealed(content, seal));
                }
                Err(_) if self.transfer.is_halted() => {}
                Err(fault) => self.fail(fault).await,
            },
        }
    }

    /// Reads what no session does, until all is known.
    async fn read_all(self: &Arc<Self>, content: &Arc<Content>) -> Result<Seal, Fault> {
        let mut unknown = content.unknown.subscribe();
        let mut readers = self.readers.subscribe();
        while *unknown.borrow_and_update() > 0 {
            if *readers.borrow_and_update() > 0 {
                tokio::select! {
                    _ = unknown.wait_for(|unknown| *unknown == 0) => {}
                    _ = readers.wait_for(|readers| *readers == 0) => {}
                }
                continue;
            }
            let (serving, content) = (self.clone(), content.clone());
            blocking(move || {
                let stop = || serving.transfer.is_halted() || *serving.readers.borrow() > 0;
                content.survey(SURVEY_CHUNKS, &stop)
            })
            .await?;
            if self.transfer.is_halted() {
                return Err(Fault::with(Reason::Unreadable(FileId::disk(0)), "interrupted"));
            }
        }
        let data = content.data();
        if data > self.budget.0 {
            return Err(Reason::Budget { size: Bytes(data), budget: self.budget }.into());
        }
        self.transfer.total.store(data, Ordering::Relaxed);
        let (vm, migration, content) = (self.vm, self.transfer.migration, content.clone());
        blocking(move || {
            let manifest = content.manifest(vm, migration)?;
            manifest.check().map_err(|error| Fault::with(Reason::Manifest, error))?;
            Ok(Seal {
                root: manifest.root(),
                size: manifest.size(),
                has_state: manifest.has_state(),
            })
        })
        .await
    }

    async fn tell_sent(&self, Seal { root, size, has_state }: Seal) {
        let migration = self.transfer.migration;
        self.transfer.emit(Event::Sent { migration, digest: root, size, has_state }).await;
    }

    async fn fail(&self, fault: Fault) {
        let error = fault.local.clone();
        self.stage.send_replace(Stage::Failed(fault));
        if !self.transfer.is_halted() {
            self.transfer.fail(error).await;
        }
    }

    /// Waits until there is something to read, or never will be.
    async fn content(&self) -> Result<Arc<Content>, Fault> {
        let mut stages = self.stage.subscribe();
        loop {
            let stage = stages.borrow_and_update().clone();
            match stage {
                Stage::Reading(content) | Stage::Sealed(content, _) => return Ok(content),
                Stage::Failed(fault) => return Err(fault),
                Stage::Awaited | Stage::Opening => {
                    stages.changed().await.expect("the sender is borrowed from self");
                }
            }
        }
    }

    /// Waits until all was read, and the node told so.
    async fn sealed(&self) -> Result<Seal, Fault> {
        let mut stages = self.stage.subscribe();
        loop {
            let stage = stages.borrow_and_update().clone();
            match stage {
                Stage::Sealed(_, seal) => return Ok(seal),
                Stage::Failed(fault) => return Err(fault),
                _ => stages.changed().await.expect("the sender is borrowed from self"),
            }
        }
    }

    /// Later sessions hear of it too. A manifest that no longer describes the files is useless.
    fn mark_failed(&self, fault: &Fault) {
        if matches!(fault.reason, Reason::Changed(_) | Reason::Unreadable(_)) {
            self.stage.send_replace(Stage::Failed(fault.clone()));
        }
    }

    /// Whether the other end of `link` has the key of this transfer's target.
    pub(crate) fn is_of(&self, link: &Link) -> bool {
        link.peer_key() == Some(self.peer_key)
    }

    /// Gives a connection to the session that it is a lane of, which may not have begun yet.
    pub(crate) async fn join(&self, session: SessionId, link: &Link, stream: Stream) {
        let mut open = self.open.subscribe();
        let is_it = |open: &Option<Open>| open.as_ref().is_some_and(|open| open.session == session);
        let Ok(open) = open.wait_for(is_it).await.map(|open| open.clone()) else { return };
        if let Some(open) = open
            && let Some(stream) = open.link.join(link, stream)
        {
            // A session has no more lanes than it takes.
            let _ = open.lanes.try_send(stream);
        }
    }

    fn spend(&self, bytes: usize) -> Result<(), Fault> {
        let bytes = bytes as u64;
        let spent = self.spent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if spent > self.budget.0 { Err(Reason::Spent(self.budget).into()) } else { Ok(()) }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("work on files does not panic")
}

/// Runs a session whose target showed key and token, to its end.
pub(crate) async fn run(serving: Arc<Serving>, link: Link, mut stream: Stream, session: SessionId) {
    let transfer = &serving.transfer;
    let (add_lane, lanes) = mpsc::channel(MAX_LANES);
    let welcome = Control::Welcome { vm: serving.vm, migration: transfer.migration };
    if message::send(&mut stream.sender, &welcome).await.is_err() {
        return;
    }
    serving.open.send_replace(Some(Open { session, link: link.clone(), lanes: add_lane }));
    transfer.emit(Event::Opened { migration: transfer.migration }).await;
    let (talk, Work { say, heard, give_up }) = talk();
    let lanes = Lanes { link: link.clone(), session, joined: lanes };
    let work = async {
        match send_content(&serving, lanes, say, heard).await {
            Ok(never) => match never {},
            Err(Trouble::Fault(fault)) => {
                serving.mark_failed(&fault);
                // Cannot fail: the receiver lives as long as this future.
                let _ = give_up.send(fault).await;
            }
            Err(Trouble::Cut) => {
                // The conversation notices by itself, unless a single stream ended.
                tokio::time::sleep(2 * LAST_WORD_TIMEOUT).await;
                link.close(Code::Away);
            }
        }
        std::future::pending::<Infallible>().await
    };
    let outcome = tokio::select! {
        outcome = converse(transfer, &link, stream, talk) => outcome,
        never = work => match never {},
    };
    serving.open.send_if_modified(|open| {
        let is_this = open.as_ref().is_some_and(|open| open.session == session);
        if is_this {
            *open = None;
        }
        is_this
    });
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

/// Why sending ended.
enum Trouble {
    Fault(Fault),
    Cut,
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Reason> for Trouble {
    fn from(reason: Reason) -> Self {
        Self::Fault(reason.into())
    }
}

impl From<Cut> for Trouble {
    fn from(_: Cut) -> Self {
        Self::Cut
    }
}

/// Where the lanes of a session come from.
struct Lanes {
    link: Link,
    session: SessionId,
    /// Those that came as connections of their own.
    joined: mpsc::Receiver<Stream>,
}

impl Lanes {
    async fn next(&mut self) -> Result<Sender, Trouble> {
        if self.link.kind() == Carrier::Tls {
            return Ok(self.joined.recv().await.ok_or(Cut)?.sender);
        }
        let Stream { sender, mut receiver } = self.link.accept().await?;
        match message::receive(&mut receiver, MAX_GREETING_BYTES, Stall::Watched).await {
            Ok(Control::Lane { session, .. }) if session == self.session => Ok(sender),
            Err(message::FrameError::Cut) => Err(Trouble::Cut),
            _ => Err(Reason::Protocol.into()),
        }
    }
}

/// A session counts as reader of the content while it lives.
struct Reader<'a>(&'a watch::Sender<usize>);

impl<'a> Reader<'a> {
    fn new(readers: &'a watch::Sender<usize>) -> Self {
        readers.send_modify(|readers| *readers += 1);
        Self(readers)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|readers| *readers -= 1);
    }
}

/// Tells and sends all that the target has not.
async fn send_content(
    serving: &Arc<Serving>,
    mut lanes: Lanes,
    say: mpsc::Sender<Control>,
    mut heard: mpsc::Receiver<Control>,
) -> Result<Infallible, Trouble> {
    let (content_id, held) = match heard.recv().await.ok_or(Cut)? {
        Control::Holds(Holds::Aside) => std::future::pending().await,
        Control::Holds(Holds::All) => {
            let root = serving.sealed().await?.root;
            say.send(Control::End { root }).await.map_err(|_| Cut)?;
            std::future::pending().await
        }
        Control::Holds(Holds::Some { content, files }) => (content, files),
        _ => return Err(Reason::Protocol.into()),
    };
    let content = serving.content().await?;
    let _reader = Reader::new(&serving.readers);
    let layout = Control::Layout {
        content: content.id,
        files: content.layout(),
        data: Bytes(content.data()),
    };
    say.send(layout).await.map_err(|_| Cut)?;
    let plan = Plan::new(&content, content_id == Some(content.id), held)?;
    let sending = Arc::new(Sending {
        serving: serving.clone(),
        content,
        queue: Mutex::new(Queue::default()),
        answered: Mutex::default(),
        stirred: Notify::new(),
        gauge: Gauge::new(lanes.link.clone()),
        plan,
    });
    let work = async {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                lane = lanes.next(), if running.len() < MAX_LANES * CHUNKS_PER_LANE => {
                    let lane = Arc::new(tokio::sync::Mutex::new(lane?));
                    for _ in 0..CHUNKS_PER_LANE {
                        running.spawn(sending.clone().work(lane.clone()));
                    }
                }
                Some(ended) = running.join_next() => {
                    match ended.expect("lanes do not panic") {
                        Ok(never) => match never {},
                        Err(trouble) => return Err::<Infallible, _>(trouble),
                    }
                }
            }
        }
    };
    let judge = async {
        while let Some(message) = heard.recv().await {
            match message {
                Control::Judged { file, verdicts } => sending.judge(file, verdicts)?,
                Control::Rest => guard(&sending.queue).rests = true,
                _ => return Err::<Infallible, Trouble>(Reason::Protocol.into()),
            }
            sending.stirred.notify_waiters();
        }
        Err(Trouble::Cut)
    };
    let rest = async {
        let pieces = sending.at_rest().await;
        say.send(Control::Resting { pieces }).await.map_err(|_| Cut)?;
        Ok::<Infallible, Trouble>(std::future::pending().await)
    };
    let tell = async {
        sending.tell(&say).await?;
        sending.all_sent().await;
        let root = serving.sealed().await?.root;
        say.send(Control::End { root }).await.map_err(|_| Cut)?;
        Ok::<Infallible, Trouble>(std::future::pending().await)
    };
    let failed = async {
        // Something else that reads found that it cannot be sent.
        let mut stages = serving.stage.subscribe();
        let stage = stages.wait_for(|stage| matches!(stage, Stage::Failed(_))).await;
        match stage.expect("the sender is borrowed from the serving").clone() {
            Stage::Failed(fault) => Trouble::Fault(fault),
            _ => Trouble::Cut,
        }
    };
    tokio::select! {
        ended = work => ended,
        ended = judge => ended,
        ended = tell => ended,
        ended = rest => ended,
        trouble = failed => Err(trouble),
    }
}

/// What the target has, per file in the content's order.
struct Plan {
    /// Chunks before this one it knows; of these, it misses the bytes of some.
    known: Vec<u32>,
    missing: Vec<Vec<message::Run>>,
    held: Vec<Vec<message::Run>>,
}

/// What is to be done with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Nothing.
    Skip,
    /// Read it, so that it can be judged.
    Read,
    /// Send it.
    Send,
}

impl Plan {
    fn new(content: &Content, is_same: bool, held: Vec<Held>) -> Result<Self, Fault> {
        let count = content.files.len();
        let mut plan =
            Self { known: vec![0; count], missing: vec![vec![]; count], held: vec![vec![]; count] };
        let runs: usize = held.iter().map(|held| held.missing.len() + held.held.len()).sum();
        let ascend =
            |runs: &[message::Run]| runs.windows(2).all(|pair| pair[0].end() <= pair[1].first);
        for Held { file, known, missing, held } in held {
            // What it has of files that are not sent is of no interest.
            let Some(at) = content.position(file) else { continue };
            let is_sound = runs <= MAX_RUNS && ascend(&missing) && ascend(&held);
            if !is_sound {
                return Err(Reason::Protocol.into());
            }
            if is_same {
                plan.known[at] = known.min(content.files[at].chunks);
                plan.missing[at] = missing;
            }
            plan.held[at] = held;
        }
        Ok(plan)
    }

    fn deed(&self, at: usize, index: u32) -> Deed {
        if index < self.known[at] {
            if is_among(&self.missing[at], index) { Deed::Send } else { Deed::Skip }
        } else if is_among(&self.held[at], index) {
            Deed::Read
        } else {
            Deed::Send
        }
    }
}

/// Where chunks are sent, one at a time.
type Lane = tokio::sync::Mutex<Sender>;

/// Something for a lane to do.
enum Job {
    Read(usize, u32),
    Send(usize, u32),
    /// Send the blocks that do not have these sums.
    Patch(usize, u32, Vec<u64>),
}

#[derive(Default)]
struct Queue {
    walk: Walk,
    /// A lane has come to its end.
    walked: bool,
    /// What the target wants of what it judged.
    judged: VecDeque<Job>,
    /// Jobs under way.
    busy: usize,
    /// No job is begun any more.
    rests: bool,
    /// Chunks that were sent.
    pieces: u64,
}

/// What the lanes of a session share.
struct Sending {
    serving: Arc<Serving>,
    content: Arc<Content>,
    plan: Plan,
    queue: Mutex<Queue>,
    answered: Mutex<HashSet<(usize, u32)>>,
    /// Something was judged or done.
    stirred: Notify,
    gauge: Gauge,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Sending {
    /// What is judged goes first: the rest can be read ahead.
    fn take(&self) -> Option<Job> {
        let mut queue = guard(&self.queue);
        if queue.rests {
            return None;
        }
        let mut job = queue.judged.pop_front();
        while job.is_none() {
            let Some((at, index)) = queue.walk.next(&self.content) else {
                if !std::mem::replace(&mut queue.walked, true) {
                    // Whoever waits for that may have nothing else to wait for: all was judged
                    // before there was a lane.
                    self.stirred.notify_waiters();
                }
                break;
            };
            job = match self.plan.deed(at, index) {
                Deed::Skip => None,
                // It was read for another session.
                Deed::Read if self.content.is_known(at, index) => None,
                Deed::Read => Some(Job::Read(at, index)),
                Deed::Send => Some(Job::Send(at, index)),
            };
        }
        queue.busy += usize::from(job.is_some());
        job
    }

    /// For a lane: does what there is to do, and waits for more.
    async fn work(self: Arc<Self>, lane: Arc<Lane>) -> Result<Infallible, Trouble> {
        loop {
            let stirred = self.stirred.notified();
            let Some(job) = self.take() else {
                stirred.await;
                continue;
            };
            self.clone().perform(job, &lane).await?;
            guard(&self.queue).busy -= 1;
            self.stirred.notify_waiters();
        }
    }

    async fn perform(self: Arc<Self>, job: Job, lane: &Lane) -> Result<(), Trouble> {
        let transfer = &self.serving.transfer;
        let (at, index, sums) = match job {
            Job::Read(at, index) => {
                let content = self.content.clone();
                blocking(move || content.read(at, index).map(drop)).await?;
                transfer.total.store(self.content.data(), Ordering::Relaxed);
                return Ok(());
            }
            Job::Send(at, index) => (at, index, None),
            Job::Patch(at, index, sums) => (at, index, Some(sums)),
        };
        let squeeze = self.gauge.squeeze();
        let sending = self.clone();
        let made = blocking(move || {
            let Some((digest, bytes)) = sending.content.read(at, index)? else { return Ok(None) };
            let length = bytes.len();
            let made = piece::make(bytes, sums.as_deref(), squeeze.then_some(&sending.gauge));
            Ok::<_, Fault>(Some((digest, length, made)))
        })
        .await?;
        transfer.total.store(self.content.data(), Ordering::Relaxed);
        let Some((digest, length, (form, packed, bytes))) = made else { return Ok(()) };
        self.serving.spend(if matches!(form, Form::Patch(_)) { bytes.len() } else { length })?;
        let file = self.content.files[at].id;
        let count = u32::try_from(bytes.len()).expect("at most a chunk");
        let header = Piece { file, index, digest, form, packed, length: count };
        let mut lane = lane.lock().await;
        message::send(&mut lane, &header).await?;
        let mut bytes = bytes::Bytes::from_owner(bytes);
        while !bytes.is_empty() {
            let slice = bytes.split_to(bytes.len().min(SLICE));
            self.serving.part.take(slice.len()).await;
            lane.send(slice).await?;
        }
        guard(&self.queue).pieces += 1;
        transfer.done.fetch_add(length as u64, Ordering::Relaxed);
        transfer.keep_pace();
        Ok(())
    }

    /// Takes what the target makes of chunks: each once, and none that it has nothing of.
    fn judge(&self, file: FileId, verdicts: Vec<(u32, Verdict)>) -> Result<(), Fault> {
        let at = self.content.position(file).ok_or(Reason::Protocol)?;
        for (index, verdict) in verdicts {
            let is_asked = index < self.content.files[at].chunks
                && self.plan.deed(at, index) == Deed::Read
                && guard(&self.answered).insert((at, index));
            if !is_asked {
                return Err(Reason::Protocol.into());
            }
            let job = match verdict {
                Verdict::Kept => {
                    let length = crate::chunk::length(self.content.files[at].size, index) as u64;
                    self.serving.transfer.done.fetch_add(length, Ordering::Relaxed);
                    continue;
                }
                Verdict::Wanted => Job::Send(at, index),
                Verdict::Patch(sums) => Job::Patch(at, index, sums),
            };
            guard(&self.queue).judged.push_back(job);
        }
        Ok(())
    }

    /// Waits until nothing is begun any more and all that was is sent: how many pieces that were.
    async fn at_rest(&self) -> u64 {
        loop {
            let stirred = self.stirred.notified();
            {
                let queue = guard(&self.queue);
                if queue.rests && queue.busy == 0 {
                    return queue.pieces;
                }
            }
            stirred.await;
        }
    }

    /// Tells what chunks hold as it becomes known, until all is told.
    async fn tell(&self, say: &mpsc::Sender<Control>) -> Result<(), Cut> {
        let mut unknown = self.content.unknown.subscribe();
        let mut told = self.plan.known.clone();
        loop {
            unknown.mark_unchanged();
            for (at, listed) in self.content.files.iter().enumerate() {
                loop {
                    let first = told[at];
                    let (entries, next) = self.content.entries(at, first);
                    if entries.is_empty() {
                        break;
                    }
                    told[at] = next;
                    let data = Bytes(self.content.data());
                    let sums = Control::Sums { file: listed.id, first, entries, data };
                    say.send(sums).await.map_err(|_| Cut)?;
                }
            }
            let is_all =
                self.content.files.iter().zip(&told).all(|(file, told)| file.chunks == *told);
            if is_all {
                return Ok(());
            }
            unknown.changed().await.map_err(|_| Cut)?;
        }
    }

    /// Waits until nothing is left to send: all is known by now.
    async fn all_sent(&self) {
        let mut asked = 0;
        let mut walk = Walk::default();
        while let Some((at, index)) = walk.next(&self.content) {
            asked += usize::from(self.plan.deed(at, index) == Deed::Read);
        }
        loop {
            let stirred = self.stirred.notified();
            let is_answered = guard(&self.answered).len() == asked;
            let is_idle = {
                let queue = guard(&self.queue);
                queue.judged.is_empty() && queue.busy == 0 && queue.walked
            };
            if is_answered && is_idle {
                return;
            }
            stirred.await;
        }
    }
}
