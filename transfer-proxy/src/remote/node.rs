//! The node's end of the channel: a handle that keeps every open order, and the connection that
//! gives them to the proxy, again and again if need be.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use certs::Identity;
use model::{FileId, MigrationId, ProxyUri, SiteKey};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::order::{Pull, PullError, Relay, Serve, ServeError, TellError, TransferProxy};
use crate::proxy::Limits;
use crate::remote::wire::{
    ALIVE_INTERVAL, ALPN, BadPath, FrameWriter, Hello, MAX_FRAME_BYTES, MAX_GREETING_BYTES,
    OPEN_TIMEOUT, Order, Report, VERSION, Welcome, WireError, receive,
};
use crate::transfer::{End, Event, MAX_TELL_BYTES, OUTBOX_MESSAGES, Progress};

/// How long a new order waits for a proxy that cannot be reached, before it fails. Orders that
/// the proxy once took wait as long as it takes: it has part of the files, and will be back.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Wait before the second attempt to connect; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Orders that wait to be sent. A proxy that takes them so slowly is given all of them anew on
/// its next connection.
const ORDERS: usize = 1024;

/// Where a proxy of this site runs, and how it is known.
#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// What the site calls it, for the log.
    pub name: String,
    /// Its control port, TCP.
    pub control: SocketAddr,
    /// Its data port, as proxies of other sites dial it. Known from the start, since it is told to
    /// other sites before the proxy is first spoken to; the proxy must say the same.
    pub uri: ProxyUri,
    /// The key that it must show.
    pub key: SiteKey,
    /// [`PATIENCE`], unless a test has less.
    pub patience: Duration,
}

/// A proxy in another process, as its node holds it. Clones are the same.
///
/// Whether it can be reached is no matter of its callers: an order is kept, and what cannot be
/// done comes back as [`Event::Failed`].
#[derive(Clone)]
pub struct RemoteProxy(Arc<Shared>);

struct Shared {
    config: RemoteConfig,
    identity: Arc<Identity>,
    events: mpsc::Sender<Event>,
    state: Mutex<State>,
}

struct State {
    open: BTreeMap<(MigrationId, End), Entry>,
    relays: BTreeMap<MigrationId, Relay>,
    /// The port that it listens at, as it said last.
    port: Option<u16>,
    /// To the present connection, once it has all that is open.
    link: Option<mpsc::Sender<Order>>,
}

/// An open order.
struct Entry {
    terms: Terms,
    /// The latest messages for the other end's node, each once.
    told: VecDeque<Vec<u8>>,
    progress: Progress,
    since: Instant,
    /// The proxy had it once.
    taken: bool,
}

enum Terms {
    Serve { serve: Serve, files: Option<Vec<(FileId, PathBuf)>> },
    Pull { pull: Pull, over: bool },
}

impl Entry {
    fn new(terms: Terms) -> Self {
        let (told, progress) = (VecDeque::new(), Progress::default());
        Self { terms, told, progress, since: Instant::now(), taken: false }
    }

    /// All that it takes to open the transfer at a proxy that knows nothing of it.
    fn orders(&self, (migration, end): (MigrationId, End)) -> Vec<Order> {
        let begin = match &self.terms {
            Terms::Serve { serve, files } => {
                let files = files.as_ref().and_then(|files| Order::provide(migration, files).ok());
                [Some(Order::serve(serve)), files]
            }
            Terms::Pull { over: true, .. } => [None, None],
            Terms::Pull { pull, over: false } => [Order::pull(pull).ok(), None],
        };
        let told = self.told.iter().cloned();
        let told = told.map(|message| Order::Tell { migration, end, message });
        begin.into_iter().flatten().chain(told).collect()
    }
}

impl State {
    /// Gives an order to the proxy, if there is a connection; else it comes with the next one.
    fn send(&mut self, order: Order) {
        let Some(link) = &self.link else { return };
        let about = order.transfer();
        if link.try_send(order).is_err() {
            self.link = None;
        } else if let Some(entry) = about.and_then(|transfer| self.open.get_mut(&transfer)) {
            entry.taken = true;
        }
    }

    fn count(&self, wanted: End) -> usize {
        self.open.keys().filter(|(_, end)| *end == wanted).count()
    }
}

impl RemoteProxy {
    /// The handle of the proxy, and the connection to it, which the caller lets run.
    ///
    /// Orders may be given before that. The caller lets it run only when it has given every order
    /// that was open before, if it had any: what the proxy then has and the node does not is
    /// closed.
    pub fn new(
        config: RemoteConfig,
        identity: Arc<Identity>,
        events: mpsc::Sender<Event>,
    ) -> (Self, Connection) {
        let state = Mutex::new(State {
            open: BTreeMap::new(),
            relays: BTreeMap::new(),
            port: None,
            link: None,
        });
        let shared = Arc::new(Shared { config, identity, events, state });
        (Self(shared.clone()), Connection(shared))
    }

    /// Whether there is a connection to it now.
    pub fn is_connected(&self) -> bool {
        self.0.state().link.is_some()
    }

    fn refuse(&self, migration: MigrationId, end: End, why: BadPath) {
        let event = Event::Failed { migration, end, error: why.to_string(), final_: true };
        let events = self.0.events.clone();
        // Not awaited here: callers do not wait.
        tokio::spawn(async move { events.send(event).await });
    }
}

impl TransferProxy for RemoteProxy {
    fn uri(&self) -> ProxyUri {
        self.0.config.uri.clone()
    }

    fn inner_uri(&self) -> ProxyUri {
        let config = &self.0.config;
        match self.0.state().port {
            Some(port) => ProxyUri::at(SocketAddr::new(config.control.ip(), port)),
            None => config.uri.clone(),
        }
    }

    fn serve(&self, serve: Serve) -> Result<(), ServeError> {
        let mut state = self.0.state();
        let transfer = (serve.migration, End::Source);
        match state.open.get(&transfer).map(|entry| &entry.terms) {
            Some(Terms::Serve { serve: known, .. }) if known.has_terms_of(&serve) => {}
            Some(_) => return Err(ServeError::Conflict(serve.migration)),
            None if state.count(End::Source) >= Limits::default().serves => {
                return Err(ServeError::Full(Limits::default().serves));
            }
            None => {
                let terms = Terms::Serve { serve: serve.clone(), files: None };
                state.open.insert(transfer, Entry::new(terms));
            }
        }
        state.send(Order::serve(&serve));
        Ok(())
    }

    fn provide(&self, migration: MigrationId, provided: Vec<(FileId, PathBuf)>) {
        let order = match Order::provide(migration, &provided) {
            Ok(order) => order,
            Err(why) => return self.refuse(migration, End::Source, why),
        };
        let mut state = self.0.state();
        let known = state.open.get_mut(&(migration, End::Source)).map(|entry| &mut entry.terms);
        if let Some(Terms::Serve { files, .. }) = known {
            *files = Some(provided);
        }
        state.send(order);
    }

    fn pull(&self, pull: Pull) -> Result<(), PullError> {
        let order = match Order::pull(&pull) {
            Ok(order) => order,
            Err(why) => {
                self.refuse(pull.migration, End::Target, why);
                return Ok(());
            }
        };
        let mut state = self.0.state();
        let transfer = (pull.migration, End::Target);
        match state.open.get(&transfer).map(|entry| &entry.terms) {
            Some(Terms::Pull { pull: known, over: false }) if known.has_terms_of(&pull) => {}
            Some(Terms::Pull { over: false, .. } | Terms::Serve { .. }) => {
                return Err(PullError::Conflict(pull.migration));
            }
            None if state.count(End::Target) >= Limits::default().pulls => {
                return Err(PullError::Full(Limits::default().pulls));
            }
            Some(Terms::Pull { over: true, .. }) | None => {
                let terms = Terms::Pull { pull, over: false };
                state.open.insert(transfer, Entry::new(terms));
            }
        }
        state.send(order);
        Ok(())
    }

    fn relay(&self, relay: Relay) -> Result<(), ServeError> {
        let mut state = self.0.state();
        let limit = Limits::default().relays;
        if state.relays.len() >= limit && !state.relays.contains_key(&relay.migration) {
            return Err(ServeError::Full(limit));
        }
        state.send(Order::relay(&relay));
        state.relays.insert(relay.migration, relay);
        Ok(())
    }

    fn end_relay(&self, migration: MigrationId) {
        let mut state = self.0.state();
        if state.relays.remove(&migration).is_some() {
            state.send(Order::EndRelay { migration });
        }
    }

    fn tell(&self, migration: MigrationId, end: End, message: Vec<u8>) -> Result<(), TellError> {
        if message.len() > MAX_TELL_BYTES {
            return Err(TellError::Long(message.len()));
        }
        let mut state = self.0.state();
        let entry = state.open.get_mut(&(migration, end)).ok_or(TellError::Unknown(migration))?;
        entry.told.retain(|known| *known != message);
        entry.told.push_back(message.clone());
        if entry.told.len() > OUTBOX_MESSAGES {
            entry.told.pop_front();
        }
        state.send(Order::Tell { migration, end, message });
        Ok(())
    }

    fn close(&self, migration: MigrationId, end: End) {
        let mut state = self.0.state();
        state.open.remove(&(migration, end));
        state.send(Order::Close { migration, end });
    }

    fn progress(&self, migration: MigrationId, end: End) -> Option<Progress> {
        self.0.state().open.get(&(migration, end)).map(|entry| entry.progress)
    }
}

/// The connection to a proxy: whoever has it lets it [`Connection::run`], on a task of its own.
pub struct Connection(Arc<Shared>);

/// Why there is no connection, for this site's log.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no answer")]
    Timeout,
    #[error("nothing listens there: {0}")]
    Reach(io::Error),
    #[error("another key than the configured one: {0}")]
    Key(certs::Refusal),
    #[error("no TLS with it: {0}")]
    Handshake(io::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] certs::TlsError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("it speaks versions {lowest} to {highest}, this node {VERSION}; upgrade the older one")]
    Version { lowest: u8, highest: u8 },
    #[error("it says that peers dial it at {0}; make sojourn.toml and proxy.toml agree")]
    Uri(ProxyUri),
    #[error("it takes orders too slowly")]
    Slow,
}

type Stream = TlsStream<TcpStream>;

impl Connection {
    /// Connects, and again after each loss, for as long as the future is polled.
    pub async fn run(self) {
        let shared = &*self.0;
        let RemoteConfig { name, control, .. } = &shared.config;
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut told = None;
        loop {
            let opened = timeout(OPEN_TIMEOUT, shared.open()).await;
            let fault = match opened.unwrap_or(Err(Fault::Timeout)) {
                Ok(stream) => {
                    tracing::info!(name, %control, "connected to a transfer proxy");
                    pause = FIRST_PAUSE;
                    let fault = shared.serve(stream).await;
                    shared.state().link = None;
                    fault
                }
                Err(fault) => fault,
            };
            let fault = fault.to_string();
            if told.as_ref() != Some(&fault) {
                tracing::warn!(name, %control, fault, "no connection to a transfer proxy; \
                    is `sojourn proxy run` running there?");
                told = Some(fault);
            }
            shared.give_up_waiting(begun).await;
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.state().link = None;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    async fn open(&self) -> Result<Stream, Fault> {
        let RemoteConfig { control, key, .. } = &self.config;
        let stream = TcpStream::connect(control).await.map_err(Fault::Reach)?;
        stream.set_nodelay(true).map_err(Fault::Reach)?;
        let mut tls = Arc::unwrap_or_clone(certs::client_config(&self.identity, *key)?);
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = TlsConnector::from(Arc::new(tls));
        let refused = |error| match certs::Refusal::of(&error) {
            Some(refusal) => Fault::Key(refusal.clone()),
            None => Fault::Handshake(error),
        };
        let mut stream = tls.connect(certs::server_name(key), stream).await.map_err(refused)?;
        let hello = Hello { lowest: VERSION, highest: VERSION };
        FrameWriter::new(&mut stream).send(&hello).await?;
        match receive(&mut stream, MAX_GREETING_BYTES).await? {
            Welcome::Speak { uri, .. } if uri != self.config.uri => Err(Fault::Uri(uri)),
            Welcome::Speak { version: VERSION, port, .. } => {
                self.state().port = Some(port);
                Ok(stream)
            }
            Welcome::Speak { version, .. } => {
                Err(Fault::Version { lowest: version, highest: version })
            }
            Welcome::Unsupported { lowest, highest } => Err(Fault::Version { lowest, highest }),
        }
    }

    /// Hears what was missed, gives every open order, and goes on with both until it ends.
    async fn serve(&self, stream: Stream) -> Fault {
        let (mut reader, writer) = tokio::io::split(stream);
        loop {
            match receive(&mut reader, MAX_FRAME_BYTES).await {
                Ok(Report::Synced) => break,
                Ok(report) => self.heard(report).await,
                Err(error) => return error.into(),
            }
        }
        let reading = async {
            loop {
                match receive(&mut reader, MAX_FRAME_BYTES).await {
                    Ok(report) => self.heard(report).await,
                    Err(error) => return error.into(),
                }
            }
        };
        let (first, queue) = self.link();
        tokio::select! {
            fault = reading => fault,
            fault = give(FrameWriter::new(writer), first, queue) => fault,
        }
    }

    /// From here on orders go to this connection, behind those that are open now.
    fn link(&self) -> (Vec<Order>, mpsc::Receiver<Order>) {
        let (link, queue) = mpsc::channel(ORDERS);
        let mut state = self.state();
        let mut first = Vec::new();
        for (transfer, entry) in &mut state.open {
            entry.taken = true;
            first.extend(entry.orders(*transfer));
        }
        first.extend(state.relays.values().map(Order::relay));
        let open = state.open.keys().copied().collect();
        first.push(Order::Keep(open, state.relays.keys().copied().collect()));
        state.link = Some(link);
        (first, queue)
    }

    async fn heard(&self, report: Report) {
        match report {
            Report::Event(event) => {
                if let Some(entry) = self.state().open.get_mut(&event.transfer()) {
                    entry.learn(&event);
                }
                // A node that is gone hears nothing.
                let _ = self.events.send(event).await;
            }
            Report::Progress { migration, end, total, done, wire, rate, age } => {
                let started = age.and_then(|age| Instant::now().checked_sub(age));
                if let Some(entry) = self.state().open.get_mut(&(migration, end)) {
                    entry.progress = Progress { total, done, wire, rate, started };
                }
            }
            Report::Synced | Report::Alive => {}
        }
    }

    /// Lets orders fail that the proxy never had and that have waited long enough.
    async fn give_up_waiting(&self, begun: Instant) {
        let patience = self.config.patience;
        let is_due = |entry: &Entry| !entry.taken && entry.since.max(begun).elapsed() >= patience;
        let due: Vec<_> = self
            .state()
            .open
            .extract_if(.., |_, entry| is_due(entry))
            .map(|(key, _)| key)
            .collect();
        for (migration, end) in due {
            // It may be passed on to a peer, whom it tells nothing of the inside.
            let error = "the transfer proxy of this host cannot be reached".to_owned();
            let failed = Event::Failed { migration, end, error, final_: true };
            let _ = self.events.send(failed).await;
        }
    }
}

impl Entry {
    /// What will not be done again unless it is asked for again.
    fn learn(&mut self, event: &Event) {
        match (&mut self.terms, event) {
            (Terms::Serve { files, .. }, Event::Failed { final_: true, .. }) => *files = None,
            (
                Terms::Pull { over, .. },
                Event::Failed { final_: true, .. } | Event::Closed { .. },
            ) => *over = true,
            _ => {}
        }
    }
}

async fn give<W: tokio::io::AsyncWrite + Unpin>(
    mut writer: FrameWriter<W>,
    first: Vec<Order>,
    mut queue: mpsc::Receiver<Order>,
) -> Fault {
    for order in first {
        if let Err(error) = writer.send(&order).await {
            return error.into();
        }
    }
    loop {
        let sent = match timeout(ALIVE_INTERVAL, queue.recv()).await {
            Ok(Some(order)) => writer.send(&order).await,
            Ok(None) => return Fault::Slow,
            Err(_) => writer.send(&Order::Alive).await,
        };
        if let Err(error) = sent {
            return error.into();
        }
    }
}
