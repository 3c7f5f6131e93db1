//! Measures one guest for as long as this site has its VM.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hypervisor::Instance;
use model::key::Strict;
use model::monitoring::Measure;
use model::{FileId, HostName, Monitoring, SecretKey, Time, VmId, limit};
use monitoring::block::{Block, SignedBlock};
use monitoring::book::KeptState;
use monitoring::history::History;
use monitoring::port::{self, Load, Row, Said};
use monitoring::producer::{Producer, State};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Monitor;
use crate::hands::{Hands, report};
use crate::link::now;
use crate::lock;
use crate::metrics::Origin;

/// How long a guest that is not there, or a database that fails, is left alone.
const AGAIN: Duration = Duration::from_secs(1);
/// For the guest's end to take a word.
const WORD_LIMIT: Duration = Duration::from_secs(5);
/// For the guest's end to say from where on rows come.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long samples that nothing was told of may stay in memory alone.
const SAMPLES_KEPT: Duration = Duration::from_secs(5);
/// Bytes of a guest's lines that are in memory, and of those that are taken together.
const PORT_BYTES: (usize, usize) = (8 << 20, 2 << 20);
/// Rows that are taken together, and that wait.
const ROWS: usize = 1024;

/// What the task is told. It ends when nobody can tell it anything any more.
pub(super) enum Order {
    /// The section or the path may have changed.
    Look,
    /// The guest is quiet: write what moves with the VM to this file.
    Pack(PathBuf, oneshot::Sender<Result<(), String>>),
}

/// Where the guest is, and who signs for it.
pub(super) struct Place {
    pub(super) instance: Instance,
    pub(super) host: HostName,
    pub(super) key: SecretKey,
    /// The folder of its files.
    pub(super) folder: PathBuf,
}

pub(super) struct Task {
    monitor: Monitor,
    hands: Hands,
    place: Place,
    producer: Producer,
    port: Option<Port>,
    /// When the guest is looked for again, if it is not there.
    again: Time,
    /// It was packed, and has not run since.
    quiet: bool,
    /// Made and not kept yet.
    pending: VecDeque<(SignedBlock, Block)>,
    /// The state has changed since it was kept, by what must not be lost, or by samples alone.
    changed: bool,
    sampled: bool,
    /// When it was kept last.
    kept: Time,
}

impl Task {
    pub(super) async fn run(
        monitor: Monitor,
        hands: Hands,
        place: Place,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        let (state, packed) = loop {
            match load(&monitor, &place).await {
                Ok(loaded) => break loaded,
                Err(error) => {
                    tracing::warn!(vm = %place.instance, error, "measuring cannot begin yet");
                    if orders.is_closed() {
                        return;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        let section = section(&monitor, place.instance.vm).unwrap_or_default();
        let mut task = Self {
            producer: Producer::new(&section, state, now()),
            monitor,
            hands,
            place,
            port: None,
            again: Time::default(),
            quiet: packed,
            pending: VecDeque::new(),
            changed: false,
            sampled: false,
            kept: now(),
        };
        task.measure(&mut orders).await;
    }

    async fn measure(&mut self, orders: &mut mpsc::UnboundedReceiver<Order>) {
        loop {
            let at = now();
            // What cannot be kept is not made more of.
            let is_kept = self.pending.is_empty();
            if at >= self.again && is_kept {
                self.meet(at).await;
            }
            if !self.quiet && is_kept {
                let Instance { vm, epoch } = self.place.instance;
                let blocks = self.producer.blocks(vm, epoch, at);
                self.sign(blocks);
            }
            self.keep().await;
            let wait = self.wait(now());
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Look) => self.look(),
                    // Who asked may have given up.
                    Some(Order::Pack(_, done)) if done.is_closed() => {}
                    Some(Order::Pack(path, done)) => {
                        let _ = done.send(self.pack(&path).await);
                    }
                    None => return,
                },
                said = next_said(&mut self.port), if self.pending.is_empty() => match said {
                    Some(said) => self.hear(said),
                    // The guest has ended, or its process.
                    None => {
                        self.port = None;
                        self.again = now().after(AGAIN);
                    }
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// How long nothing is to be done.
    fn wait(&self, at: Time) -> Duration {
        let needs_guest = self.producer.samples() || self.reads_files() && self.port.is_none();
        let guest = needs_guest.then_some(self.again.max(at));
        let due = match (self.quiet, self.pending.is_empty()) {
            (_, false) => Some(at.after(AGAIN)),
            (true, _) => guest.map(|guest| guest.max(at.after(AGAIN))),
            // Samples are due at the time of their interval, but not before the guest is there.
            (false, _) => self.producer.next().map(|next| match self.producer.wants_sample(next) {
                true => next.max(self.again),
                false => next,
            }),
        };
        let look = match &self.port {
            None => self.reads_files().then_some(self.again.max(at)),
            Some(port) => port.waits.then_some(port.asked.after(ANSWER_LIMIT)),
        };
        due.into_iter().chain(look).min().map_or(Duration::from_secs(60), |next| next.since(at))
    }

    fn reads_files(&self) -> bool {
        let of_vm = |measure: &Measure| matches!(measure, Measure::Vm(_));
        self.producer.section().specifiers.iter().any(|s| !of_vm(&s.measure))
    }

    /// Measures by what the descriptor says now.
    fn look(&mut self) {
        let Instance { vm, epoch } = self.place.instance;
        let Some(section) = section(&self.monitor, vm) else { return };
        // What is packed is told where it goes.
        if self.quiet || section == *self.producer.section() {
            return;
        }
        let blocks = self.producer.set_section(&section, (vm, epoch), now());
        self.sign(blocks);
        self.changed = true;
    }

    /// Asks the hypervisor, if it is time, and connects to the guest's port.
    async fn meet(&mut self, at: Time) {
        let (host, instance) = (self.place.host.clone(), self.place.instance);
        if self.producer.wants_sample(at) {
            match self.hands.measure(&host, instance).await {
                Ok(Some(sample)) => {
                    self.wake();
                    self.producer.sample(now(), sample);
                    self.sampled = true;
                }
                Ok(None) => self.again = at.after(AGAIN),
                Err(error) => {
                    tracing::debug!(%instance, error = report(&error), "cannot be measured now");
                    self.again = at.after(AGAIN);
                }
            }
        }
        if let Some(port) = &mut self.port {
            if port.waits && port.asked.after(ANSWER_LIMIT) <= at {
                self.ask().await;
            }
        } else if self.reads_files() {
            match self.hands.kpi_port(&host, instance).await {
                Ok(Some(stream)) => {
                    self.wake();
                    self.port = Some(Port::open(stream));
                    self.ask().await;
                }
                Ok(None) => self.again = at.after(AGAIN),
                Err(error) => {
                    tracing::debug!(%instance, error = report(&error), "has no KPI port now");
                    self.again = at.after(AGAIN);
                }
            }
        }
    }

    /// The guest is there: measuring goes on, if it was packed.
    fn wake(&mut self) {
        if std::mem::take(&mut self.quiet) {
            self.changed = true;
            self.look();
        }
    }

    /// Asks for rows from the last one on.
    async fn ask(&mut self) {
        let Some(port) = &mut self.port else { return };
        port.waits = true;
        port.asked = now();
        self.say(port::after(self.producer.state().row)).await;
    }

    /// Takes what the guest has said, and all that waits behind it.
    fn hear(&mut self, first: Line) {
        let at = now();
        let mut next = Some(first);
        let (mut left, mut bytes) = (ROWS, 0);
        while let (Some((said, room)), Some(port)) = (next, &mut self.port) {
            bytes += room.num_permits();
            match said {
                Said::After(row) => {
                    // An answer to an earlier question is as good: all ask for the same row.
                    if std::mem::take(&mut port.waits) && row != self.producer.state().row {
                        self.producer.begin_rows(row);
                    }
                }
                // What came before the answer is left over, and comes again.
                Said::Row(_) if port.waits => {}
                Said::Row(Row { number, saved, load: Load::Fields(file, fields) }) => {
                    self.producer.row(at, (number, saved), &file, &fields);
                    self.changed = true;
                }
                Said::Row(Row { number, saved, load: Load::Content(file, content) }) => {
                    self.producer.content(at, (number, saved), &file, content);
                    self.changed = true;
                }
            }
            left -= 1;
            let goes_on = left > 0 && bytes < PORT_BYTES.1;
            next = if goes_on { port.said.try_recv().ok() } else { None };
        }
    }

    fn sign(&mut self, blocks: Vec<Block>) {
        let key = &self.place.key;
        self.pending.extend(
            blocks
                .into_iter()
                .map(|block| (SignedBlock::seal(&block, |kind, body| key.sign(kind, body)), block)),
        );
    }

    /// Makes what was made durable, with where measuring stands, and only then tells the guest that
    /// its rows are safe. If it cannot be kept it is tried again; no row is taken meanwhile.
    async fn keep(&mut self) {
        let is_late = self.sampled && now() >= self.kept.after(SAMPLES_KEPT);
        if self.pending.is_empty() && !self.changed && !is_late {
            return;
        }
        let Instance { vm, epoch } = self.place.instance;
        let row = self.producer.state().row;
        let state = postcard::to_stdvec(self.producer.state()).expect("a state is plain data");
        let blocks: Vec<_> = self.pending.iter().cloned().collect();
        let (received, packed) = (now(), self.quiet);
        let kept = self.monitor.ledger().run(move |book| {
            let up = book.up(vm)?.flatten();
            for (signed, block) in &blocks {
                book.take(signed, block, &[], received, up.as_ref())?;
            }
            book.keep_state(vm, &KeptState { epoch, packed, state })?;
            Ok(up)
        });
        let Ok(up) = kept.await else { return };
        (self.changed, self.sampled, self.kept) = (false, false, received);
        let made: Vec<Block> = self.pending.drain(..).map(|(_, block)| block).collect();
        if !made.is_empty() {
            let values = made.iter().map(Block::count).sum();
            self.monitor.metrics().values_taken(Origin::Guest, made.len() as u64, values);
            self.monitor.tell(vm, up.as_ref());
            made.into_iter().for_each(|block| self.monitor.weigh(block));
        }
        if row > 0 {
            self.say(port::acknowledged(row)).await;
        }
    }

    async fn say(&mut self, word: String) {
        let Some(port) = &mut self.port else { return };
        let said = tokio::time::timeout(WORD_LIMIT, port.words.write_all(word.as_bytes())).await;
        if !matches!(said, Ok(Ok(()))) {
            // It is told again when it is there again.
            self.port = None;
            self.again = now().after(AGAIN);
        }
    }

    /// Writes what moves with the VM. Nothing is made from here on, unless the guest runs again.
    ///
    /// Said again, it changes nothing: the file may be on its way, and its digest told.
    async fn pack(&mut self, path: &Path) -> Result<(), String> {
        let Instance { vm, epoch } = self.place.instance;
        if self.quiet && tokio::fs::try_exists(path).await.unwrap_or(false) {
            return Ok(());
        }
        // Rows that nobody has taken yet are in the guest, and move with it.
        self.port = None;
        if !self.quiet {
            let blocks = self.producer.blocks(vm, epoch, now());
            self.sign(blocks);
        }
        self.changed = true;
        self.keep().await;
        if !self.pending.is_empty() || self.changed {
            return Err("the monitoring database failed; its disk may be full".to_owned());
        }
        self.again = now().after(AGAIN);
        pack(&self.monitor, self.place.instance, self.producer.state().clone(), path).await?;
        self.quiet = true;
        Ok(())
    }
}

/// Writes the history that moves with a VM, and then that this was done.
async fn pack(
    monitor: &Monitor,
    Instance { vm, epoch }: Instance,
    state: State,
    path: &Path,
) -> Result<(), String> {
    let backlog = monitor.ledger().run(move |book| book.backlog(vm)).await;
    let backlog = backlog.map_err(|error| error.to_string())?;
    let backlog = backlog.into_iter().map(|kept| kept.signed).collect();
    let kept = postcard::to_stdvec(&state).expect("a state is plain data");
    write(path, History { state: Some(state), backlog }).await?;
    let noted = monitor
        .ledger()
        .run(move |book| book.keep_state(vm, &KeptState { epoch, packed: true, state: kept }));
    noted.await.map_err(|error| error.to_string())
}

/// Writes the history of a VM that nothing measures here at the moment: what was kept of this stay,
/// else what came with it, else nothing.
pub(super) async fn pack_kept(
    monitor: &Monitor,
    instance: Instance,
    path: &Path,
) -> Result<(), String> {
    let Instance { vm, epoch } = instance;
    let is_there = tokio::fs::try_exists(path).await.unwrap_or(false);
    let kept = monitor.ledger().run(move |book| book.state(vm)).await;
    let kept = kept.map_err(|error| error.to_string())?.filter(|kept| kept.epoch == epoch);
    match kept {
        Some(kept) if !(kept.packed && is_there) => {
            let state = postcard::from_bytes(&kept.state).unwrap_or_default();
            pack(monitor, instance, state, path).await
        }
        None if !is_there => write(path, History::default()).await,
        _ => Ok(()),
    }
}

/// What is measured of a VM: what its own key has vouched for, or nothing.
fn section(monitor: &Monitor, vm: VmId) -> Option<Monitoring> {
    let known = lock(&monitor.0.known).get(&vm).cloned()?;
    if known.section.is_vouched(&known.k0, &Strict) {
        return Some(known.section);
    }
    if !known.section.specifiers.is_empty() {
        tracing::warn!(%vm, "its monitoring section is not vouched for: nothing is measured");
    }
    Some(Monitoring::default())
}

/// Where measuring stands, and whether it was packed: as this site has kept it, or as it came with
/// the VM.
async fn load(monitor: &Monitor, place: &Place) -> Result<(State, bool), String> {
    let Instance { vm, epoch } = place.instance;
    let kept = monitor.ledger().run(move |book| book.state(vm)).await;
    let kept = kept.map_err(|error| error.to_string())?;
    if let Some(kept) = kept.filter(|kept| kept.epoch == epoch)
        && let Ok(state) = postcard::from_bytes(&kept.state)
    {
        return Ok((state, kept.packed));
    }
    let file = place.folder.join(FileId::HISTORY.file_name());
    let came = match read(&file).await {
        Ok(came) => came,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("{}: {error}", file.display())),
    };
    // Another site may have left anything.
    let came = came.filter(|came| came.state.as_ref().is_none_or(State::is_sound));
    let came = came.unwrap_or_else(|| {
        tracing::debug!(%vm, "its monitoring begins anew");
        History::default()
    });
    // What another site has left is taken like what a peer sends.
    monitor.take(came.backlog).await.map_err(|error| error.to_string())?;
    Ok((came.state.unwrap_or_default(), false))
}

/// Reads a history; none if the file is no legal one.
async fn read(file: &Path) -> std::io::Result<Option<History>> {
    if tokio::fs::metadata(file).await?.len() > limit::MAX_HISTORY_BYTES {
        return Ok(None);
    }
    Ok(History::from_bytes(&tokio::fs::read(file).await?).ok())
}

/// Writes a history so that it is whole, or not there.
pub(super) async fn write(path: &Path, history: History) -> Result<(), String> {
    let path = path.to_owned();
    let written = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        use std::io::Write;
        let max = usize::try_from(limit::MAX_HISTORY_BYTES).expect("it fits memory");
        let folder = path.parent().expect("a history lies in its stay's folder");
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&history.to_bytes(max))?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        std::fs::File::open(folder)?.sync_all()
    });
    let written = written.await.map_err(|error| error.to_string())?;
    written.map_err(|error| format!("the history of its monitoring cannot be written: {error}"))
}

/// What a guest has said, and the room that it takes until it is done with.
type Line = (Said, OwnedSemaphorePermit);

/// The guest's end of its KPI port.
struct Port {
    said: mpsc::Receiver<Line>,
    words: OwnedWriteHalf,
    /// Whether it was not said yet from where on rows come, and when that was asked last. A guest
    /// that has not opened its port answers several questions once.
    waits: bool,
    asked: Time,
    reader: JoinHandle<()>,
}

impl Port {
    fn open(stream: UnixStream) -> Self {
        let (from, words) = stream.into_split();
        let (sender, said) = mpsc::channel(ROWS);
        let room = Arc::new(Semaphore::new(PORT_BYTES.0));
        let reader = tokio::spawn(async move {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            loop {
                match read_line(&mut from, &mut line).await {
                    Ok(true) => match port::said(&line) {
                        Ok(said) => {
                            let size = u32::try_from(line.len()).unwrap_or(u32::MAX);
                            let Ok(taken) = room.clone().acquire_many_owned(size).await else {
                                return;
                            };
                            if sender.send((said, taken)).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => tracing::debug!(%error, "passed over"),
                    },
                    Ok(false) => tracing::debug!("a guest's line is too long, and passed over"),
                    Err(_) => return,
                }
            }
        });
        Self { said, words, waits: false, asked: Time::default(), reader }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn next_said(port: &mut Option<Port>) -> Option<Line> {
    match port {
        Some(port) => port.said.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads a line into `line`; false if it was too long to be kept.
async fn read_line(
    from: &mut BufReader<tokio::net::unix::OwnedReadHalf>,
    line: &mut Vec<u8>,
) -> std::io::Result<bool> {
    line.clear();
    let mut fits = true;
    loop {
        let chunk = from.fill_buf().await?;
        if chunk.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        fits &= line.len() + part.len() <= port::MAX_LINE;
        if fits {
            line.extend_from_slice(part);
        }
        let used = end.map_or(chunk.len(), |end| end + 1);
        from.consume(used);
        if end.is_some() {
            return Ok(fits);
        }
    }
}
