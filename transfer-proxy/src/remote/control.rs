//! The proxy's end of the channel: lets its node in, does what it orders, tells what happens.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use certs::Identity;
use model::{MigrationId, SiteKey};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::order::{PullError, TransferProxy};
use crate::proxy::Proxy;
use crate::remote::held::Held;
use crate::remote::wire::{
    ALIVE_INTERVAL, ALPN, Asked, FrameWriter, Hello, MAX_FRAME_BYTES, MAX_GREETING_BYTES,
    OPEN_TIMEOUT, Order, Report, VERSION, Welcome, WireError, receive,
};
use crate::transfer::{End, Event, Progress};

/// Connections whose caller is not known yet.
const MAX_OPENINGS: usize = 16;

/// Orders of the node that wait to be carried out.
const ORDERS: usize = 64;

/// Reports that wait to be sent. A node that takes them so slowly is told everything anew on its
/// next connection.
const REPORTS: usize = 1024;

/// How often the node hears how far transfers are.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Wait after a connection could not be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Characters of an error that the node is told.
const MAX_ERROR_CHARS: usize = 8192;

/// The control port of a proxy process.
pub(crate) struct ControlPort {
    pub(crate) listener: TcpListener,
    pub(crate) identity: Identity,
    /// The only one who is let in.
    pub(crate) node: SiteKey,
    pub(crate) proxy: Proxy,
    /// What the proxy tells.
    pub(crate) events: mpsc::Receiver<Event>,
}

impl ControlPort {
    /// Serves the node, for as long as the future is polled.
    pub(crate) async fn run(self) {
        let Self { listener, identity, node, proxy, events } = self;
        let (arrived, arrivals) = mpsc::channel(1);
        let entrance = Arc::new(Entrance { identity, node, proxy: proxy.clone() });
        let (passed, shown) = (HashSet::new(), HashMap::new());
        let office = Office { proxy, held: Held::default(), controller: None, passed, shown };
        tokio::join!(entrance.run(listener, arrived), office.run(events, arrivals));
    }
}

/// Whom TLS lets in: the node, also when it has a new key that the one here has certified.
struct OnlyNode {
    key: SiteKey,
    renewed: Mutex<Option<SiteKey>>,
}

impl OnlyNode {
    fn renewed(&self) -> std::sync::MutexGuard<'_, Option<SiteKey>> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl certs::Trust for OnlyNode {
    fn knows(&self, key: &SiteKey) -> bool {
        *key == self.key || self.renewed().as_ref() == Some(key)
    }

    fn succeeded(&self, old: &SiteKey, new: &SiteKey) {
        if *old == self.key {
            *self.renewed() = Some(*new);
        }
    }

    fn admits_strangers(&self) -> bool {
        false
    }
}

/// Where connections come in, and are looked at one by one.
struct Entrance {
    identity: Identity,
    node: SiteKey,
    proxy: Proxy,
}

type Stream = TlsStream<TcpStream>;

impl Entrance {
    async fn run(self: Arc<Self>, listener: TcpListener, arrived: mpsc::Sender<Stream>) {
        let openings = Arc::new(Semaphore::new(MAX_OPENINGS));
        let mut opening = JoinSet::new();
        loop {
            // Others wait in the system's queue.
            let permit = openings.clone().acquire_owned().await.expect("it is never closed");
            while opening.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => {
                    opening.spawn(self.clone().receive(stream, permit, arrived.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn receive(
        self: Arc<Self>,
        stream: TcpStream,
        _permit: OwnedSemaphorePermit,
        arrived: mpsc::Sender<Stream>,
    ) {
        match timeout(OPEN_TIMEOUT, self.open(stream)).await {
            // The office is gone only with the whole process.
            Ok(Ok(stream)) => drop(arrived.send(stream).await),
            Ok(Err(error)) => {
                let why = certs::Refusal::of(&error).map(ToString::to_string);
                let why = why.unwrap_or_else(|| error.to_string());
                tracing::warn!(error = why, "a control connection was refused");
            }
            Err(_) => tracing::warn!("a control connection was not made in time"),
        }
    }

    async fn open(&self, stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        let mut stream = TlsAcceptor::from(self.tls()?).accept(stream).await?;
        let Hello { lowest, highest } =
            receive(&mut stream, MAX_GREETING_BYTES).await.map_err(io::Error::other)?;
        let speaks = (lowest..=highest).contains(&VERSION);
        let welcome = match speaks {
            true => {
                Welcome::Speak { version: VERSION, uri: self.proxy.uri(), port: self.proxy.port() }
            }
            false => Welcome::Unsupported { lowest: VERSION, highest: VERSION },
        };
        FrameWriter::new(&mut stream).send(&welcome).await.map_err(io::Error::other)?;
        if speaks {
            return Ok(stream);
        }
        let text = format!("the node speaks versions {lowest} to {highest}, this proxy {VERSION}");
        Err(io::Error::other(text))
    }

    /// Made for each connection: its certificate has an end, and this process may have none.
    fn tls(&self) -> io::Result<Arc<ServerConfig>> {
        let trust = Arc::new(OnlyNode { key: self.node, renewed: Mutex::default() });
        let config = certs::server_config(&self.identity, trust).map_err(io::Error::other)?;
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

/// The node's present connection.
struct Controller {
    orders: mpsc::Receiver<Order>,
    reports: mpsc::Sender<Report>,
    /// Ends with it.
    _task: JoinSet<()>,
}

impl Controller {
    fn new(stream: Stream, first: Vec<Report>) -> Self {
        let (orders_in, orders) = mpsc::channel(ORDERS);
        let (reports, reports_out) = mpsc::channel(REPORTS);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let (mut reader, writer) = tokio::io::split(stream);
            let reading = async {
                loop {
                    let order = receive(&mut reader, MAX_FRAME_BYTES).await?;
                    if orders_in.send(order).await.is_err() {
                        return Ok(());
                    }
                }
            };
            let over: Result<(), WireError> = tokio::select! {
                over = reading => over,
                over = report(FrameWriter::new(writer), first, reports_out) => over,
            };
            if let Err(error) = over {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "the node's connection is over; transfers go on");
            }
        });
        Self { orders, reports, _task: task }
    }
}

async fn report<W: tokio::io::AsyncWrite + Unpin>(
    mut writer: FrameWriter<W>,
    first: Vec<Report>,
    mut reports: mpsc::Receiver<Report>,
) -> Result<(), WireError> {
    for report in first {
        writer.send(&report).await?;
    }
    loop {
        match timeout(ALIVE_INTERVAL, reports.recv()).await {
            Ok(Some(report)) => writer.send(&report).await?,
            // It was not fast enough, or a newer connection took over.
            Ok(None) => return Ok(()),
            Err(_) => writer.send(&Report::Alive).await?,
        }
    }
}

/// Where orders are carried out, one after another, and events come together. It never waits for
/// a connection.
struct Office {
    proxy: Proxy,
    held: Held,
    controller: Option<Controller>,
    /// What is passed on.
    passed: HashSet<MigrationId>,
    /// What the present connection was last told of each transfer.
    shown: HashMap<(MigrationId, End), Progress>,
}

impl Office {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut arrivals: mpsc::Receiver<Stream>,
    ) {
        let mut progress = interval(PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let order = async {
                match &mut self.controller {
                    Some(controller) => controller.orders.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = events.recv() => self.happened(event),
                Some(stream) = arrivals.recv() => self.take_over(stream),
                order = order => match order {
                    Some(order) => self.carry_out(order),
                    None => self.controller = None,
                },
                _ = progress.tick() => self.show_progress(),
            }
        }
    }

    /// The newest connection counts: an older one is a leftover of a node that is gone.
    fn take_over(&mut self, stream: Stream) {
        tracing::info!(transfers = self.held.transfers().len(), "the node is connected");
        let missed = self.held.events().into_iter().map(Report::Event);
        let first = missed.chain([Report::Synced]).collect();
        self.controller = Some(Controller::new(stream, first));
        self.shown.clear();
    }

    fn happened(&mut self, mut event: Event) {
        if let Event::Failed { error, .. } = &mut event {
            *error = error.chars().take(MAX_ERROR_CHARS).collect();
        }
        log(&event);
        self.held.note(&event);
        self.say(Report::Event(event));
    }

    fn say(&mut self, report: Report) {
        if let Some(controller) = &self.controller
            && controller.reports.try_send(report).is_err()
        {
            self.controller = None;
        }
    }

    fn show_progress(&mut self) {
        if self.controller.is_none() {
            return;
        }
        for transfer in self.held.transfers() {
            let Some(now) = self.proxy.progress(transfer.0, transfer.1) else { continue };
            if self.shown.insert(transfer, now) != Some(now) {
                self.say(Report::progress(transfer, &now));
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        let about = order.transfer();
        let done = match order.read() {
            Ok(asked) => self.obey(asked),
            Err(error) => Err(error.to_string()),
        };
        if let (Err(error), Some((migration, end))) = (done, about) {
            self.say(Report::Event(Event::Failed { migration, end, error, final_: true }));
        }
    }

    fn obey(&mut self, asked: Asked) -> Result<(), String> {
        match asked {
            Asked::Serve(serve) => {
                let transfer = (serve.migration, End::Source);
                self.proxy.serve(serve).map_err(|error| error.to_string())?;
                self.held.open(transfer);
            }
            Asked::Provide(migration, files) => self.proxy.provide(migration, files),
            Asked::Pull(pull) => {
                let transfer = (pull.migration, End::Target);
                let anew = self.held.is_over(transfer);
                match self.proxy.pull(pull.clone()) {
                    Err(PullError::Conflict(migration)) => {
                        // The node's side refuses this while it lives: it is another node by now,
                        // which went on from a later step.
                        self.proxy.close(migration, End::Target);
                        self.proxy.pull(pull).map_err(|error| error.to_string())?;
                        self.held.open_anew(transfer);
                    }
                    Err(error) => return Err(error.to_string()),
                    Ok(()) if anew => self.held.open_anew(transfer),
                    Ok(()) => self.held.open(transfer),
                }
            }
            Asked::Tell(migration, end, message) => {
                if let Err(error) = self.proxy.tell(migration, end, message) {
                    tracing::debug!(%error, "not told");
                }
            }
            Asked::Close(migration, end) => self.close((migration, end)),
            Asked::Relay(relay) => {
                let migration = relay.migration;
                match self.proxy.relay(relay) {
                    Ok(()) => drop(self.passed.insert(migration)),
                    Err(error) => tracing::warn!(%migration, %error, "not passed on"),
                }
            }
            Asked::EndRelay(migration) => {
                self.passed.remove(&migration);
                self.proxy.end_relay(migration);
            }
            Asked::Keep(open, passed) => {
                for transfer in self.held.transfers() {
                    if !open.contains(&transfer) {
                        self.close(transfer);
                    }
                }
                for migration in self.passed.extract_if(|known| !passed.contains(known)) {
                    self.proxy.end_relay(migration);
                }
            }
            Asked::Nothing => {}
        }
        Ok(())
    }

    fn close(&mut self, transfer: (MigrationId, End)) {
        self.proxy.close(transfer.0, transfer.1);
        self.held.close(transfer);
        self.shown.remove(&transfer);
    }
}

/// What the proxy's operator wants to see.
fn log(event: &Event) {
    let (migration, end) = event.transfer();
    match event {
        Event::Opened { .. } => tracing::info!(%migration, "a target has come"),
        Event::Sent { size, .. } => tracing::info!(%migration, %size, "files are read"),
        Event::Received { size, wire, .. } => {
            tracing::info!(%migration, %size, %wire, "files are here and checked");
        }
        Event::Closed { .. } => tracing::info!(%migration, ?end, "the other end closed"),
        Event::Failed { error, final_, .. } => {
            tracing::warn!(%migration, ?end, error, final_, "transfer trouble");
        }
        Event::Told { .. } => {}
    }
}
