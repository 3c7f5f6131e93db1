//! The TLS carrier: TLS 1.3 over TCP, a connection for each stream of a session.
//!
//! All connections of a session show the same hint and the same keys. The first carries control;
//! in the place of a message it tells why the session is closed ([`closing_frame`]), and its end
//! is the end of the session.
//!
//! Where two ends cannot reach each other, or may not know each other's address, a connection goes
//! through a stream of another session ([`super::pipe`]) in the place of a socket.

mod diag;
mod loss;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use model::PublicKey;
use rustls::pki_types::ServerName;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadBuf, ReadHalf,
    WriteHalf,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::{StartHandshake, TlsAcceptor, TlsConnector, TlsStream};

use super::{Closed, Code, Cut, IDLE_TIMEOUT, KEEP_ALIVE, Stream};
use crate::tls;

/// Connections that carry data at once: one core at either end encrypts for each. Each takes the
/// share of one in a queue that is full, so that more would leave too little to others.
pub(crate) const LANES: usize = 2;

/// Bytes that are sent at once before it is looked at what the path loses.
const WORTH_A_LOOK: usize = 32 << 10;

/// How long the reason for which a session is closed may take to be told.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections that wait before they are looked at.
const BACKLOG: u32 = 256;

/// The congestion control for paths that lose at random: it paces by the rate that arrives, not by
/// loss. All others are left to what the system does, as a rule cubic: see `loss`.
const LOSS_TOLERANT: &str = "bbr";

/// Pause after the system had no descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bytes that are taken from a socket at once. rustls by itself takes 4 KiB: four system calls for
/// each record.
const READ_BYTES: usize = 256 << 10;

/// Keep-alives without an answer after which a connection is lost.
const KEEP_ALIVE_TRIES: u32 = (IDLE_TIMEOUT.as_secs() / KEEP_ALIVE.as_secs()) as u32;

/// A length of a message that stands for the reason of the end of the session.
const CLOSING: u32 = 0xffff_ff00;

/// What an end sends in the place of a message when it closes the session.
fn closing_frame(code: Code) -> [u8; 4] {
    (CLOSING | code as u32).to_be_bytes()
}

/// The reason that stands in the place of a message's length, if one does.
pub(crate) fn closing_code(length: u32) -> Option<Code> {
    Code::ALL.into_iter().find(|code| length == CLOSING | *code as u32)
}

fn lost(error: &io::Error) -> Closed {
    // Whether the other end did not like our key, or we not its: both are a refusal, and neither
    // says which.
    let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    if is_tls { Closed::ByPeer(Code::Refused) } else { Closed::Lost(error.to_string()) }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

/// The TCP port.
pub(crate) struct Port {
    tls: tls::Tls,
    /// None where somebody else listens.
    listener: Option<TcpListener>,
    handed_over: tokio::sync::Mutex<mpsc::Receiver<(Start, IpAddr)>>,
    doorstep: Doorstep,
    /// Becomes true once.
    closed: watch::Sender<bool>,
}

/// Where somebody else who listens at the proxy's TCP port hands over what is meant for it.
#[derive(Clone)]
pub struct Doorstep(mpsc::Sender<(Start, IpAddr)>);

impl Doorstep {
    /// Whether whoever sent this wants the proxy.
    pub fn is_for(hello: &rustls::server::ClientHello<'_>) -> bool {
        hello.alpn().is_some_and(|mut offered| offered.any(|name| name == tls::PROTOCOL))
    }

    /// Hands over a connection whose first message is read and not answered. Where too many wait
    /// it is closed.
    pub fn hand_over(&self, connection: StartHandshake<TcpStream>, from: IpAddr) {
        let _ = self.0.try_send((Start::Begun(Box::new(connection)), from));
    }
}

/// A connection on which nothing was said by this end.
enum Start {
    New(TcpStream),
    Begun(Box<StartHandshake<TcpStream>>),
    Sealed(DuplexStream),
}

impl Port {
    /// Opens the port, or waits for what is handed over. Must be called within a tokio runtime.
    pub(crate) fn bind(listen: Option<SocketAddr>, tls: tls::Tls) -> io::Result<Self> {
        let listener = listen.map(Self::listen).transpose()?;
        let (sender, receiver) = mpsc::channel(BACKLOG as usize);
        let handed_over = tokio::sync::Mutex::new(receiver);
        let closed = watch::Sender::new(false);
        Ok(Self { tls, listener, handed_over, doorstep: Doorstep(sender), closed })
    }

    pub(crate) fn doorstep(&self) -> Doorstep {
        self.doorstep.clone()
    }

    fn listen(listen: SocketAddr) -> io::Result<TcpListener> {
        let socket = match listen {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        // A proxy that starts again has its port at once.
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        socket.listen(BACKLOG)
    }

    /// Waits for the next one to dial; none once the port is closed.
    pub(crate) async fn accept(&self) -> Option<Attempt> {
        let mut closed = self.closed.subscribe();
        let over = async {
            // Cannot fail: the sender is borrowed from self.
            let _ = closed.wait_for(|closed| *closed).await;
        };
        let mut handed_over = self.handed_over.lock().await;
        let (start, from) = tokio::select! {
            () = over => return None,
            handed_over = handed_over.recv() => handed_over?,
            accepted = self.next() => accepted,
        };
        Some(self.attempt(start, from))
    }

    fn attempt(&self, start: Start, from: IpAddr) -> Attempt {
        Attempt { start, from, tls: self.tls.clone(), closed: self.closed.clone() }
    }

    pub(super) fn sealed(&self, connection: DuplexStream, from: IpAddr) -> Attempt {
        self.attempt(Start::Sealed(connection), from)
    }

    async fn next(&self) -> (Start, IpAddr) {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        loop {
            match listener.accept().await {
                Ok((socket, from)) => return (Start::New(socket), from.ip()),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Makes a session with the proxy at `address`, which must show `peer`.
    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        key: tls::TransferKey,
        peer: &PublicKey,
        hint: &tls::Hint,
    ) -> Result<Link, Closed> {
        let config = Arc::new(self.tls.dial(key, peer, hint));
        self.begin(Dialling { way: Way::At(address), config, trip: Arc::default() }, peer).await
    }

    pub(super) async fn dial_through(
        &self,
        way: Opener,
        key: tls::TransferKey,
        peer: &PublicKey,
    ) -> Result<Link, Closed> {
        // What the connection goes through has shown a token, and knows by it who is to answer.
        let config = Arc::new(self.tls.dial(key, peer, &[0; 16]));
        self.begin(Dialling { way: Way::Through(way), config, trip: Arc::default() }, peer).await
    }

    async fn begin(&self, dialling: Dialling, peer: &PublicKey) -> Result<Link, Closed> {
        let shared = Arc::new(Shared::default());
        let first = dialling.connect(&shared).await.map_err(|error| lost(&error))?;
        shared.be_first(&first);
        let link = Link {
            shared,
            first: Arc::new(Mutex::new(Some(first))),
            dialling: Some(dialling),
            peer: Some(*peer),
        };
        link.end_with(self.closed.subscribe());
        Ok(link)
    }

    /// Closes every session and the port.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }
}

/// Someone dials.
pub(crate) struct Attempt {
    start: Start,
    from: IpAddr,
    tls: tls::Tls,
    closed: watch::Sender<bool>,
}

impl Attempt {
    pub(crate) fn from(&self) -> IpAddr {
        self.from
    }

    /// Makes the session, with the key that `key_of` has for the hint, and tells that hint.
    pub(crate) async fn answer(
        self,
        key_of: impl Fn(&tls::Hint) -> Option<tls::TransferKey> + Send + Sync + 'static,
    ) -> Result<(Link, tls::Hint), Closed> {
        let (config, hint) = self.tls.answer(key_of);
        let config = Arc::new(config);
        let shared = Arc::new(Shared::default());
        let accepted = match self.start {
            Start::New(socket) => TlsAcceptor::from(config).accept(counted(socket, &shared)).await,
            Start::Begun(begun) => {
                let StartHandshake { accepted, io, .. } = *begun;
                // Whoever listened may have done so in another runtime.
                let here = io.into_std().and_then(TcpStream::from_std);
                let here = here.map_err(|error| lost(&error))?;
                let socket = counted(here, &shared);
                StartHandshake::from_parts(accepted, socket).into_stream(config).await
            }
            Start::Sealed(connection) => {
                TlsAcceptor::from(config).accept(sealed(connection, &shared)).await
            }
        };
        let accepted = accepted.map_err(|error| lost(&error))?;
        let shown = accepted.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = shown.and_then(tls::shown_key);
        let hint = *hint.get().expect("without a hint no key was found and no handshake done");
        let first = stream(TlsStream::Server(accepted), &shared);
        shared.be_first(&first);
        let first = Arc::new(Mutex::new(Some(first)));
        let link = Link { shared, first, dialling: None, peer };
        link.end_with(self.closed.subscribe());
        Ok((link, hint))
    }
}

/// What a system cannot do makes a session slower, not wrong.
fn prepare(socket: &TcpStream) {
    use rustix::net::sockopt;
    let _ = socket.set_nodelay(true);
    // Lanes are quiet while the guest is being stopped; what stands between must not forget them.
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, KEEP_ALIVE);
    let _ = sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE);
    let _ = sockopt::set_tcp_keepcnt(socket, KEEP_ALIVE_TRIES);
}

/// Makes a socket ready for a session.
fn counted(socket: TcpStream, shared: &Shared) -> BufReader<Counted> {
    prepare(&socket);
    let addresses = socket.local_addr().ok().zip(socket.peer_addr().ok());
    metered(Socket::Tcp(socket), addresses, shared)
}

/// Makes a connection ready for a session that goes through streams of another, which has the
/// socket and minds its losses.
fn sealed(connection: DuplexStream, shared: &Shared) -> BufReader<Counted> {
    metered(Socket::Sealed(connection), None, shared)
}

fn metered(
    socket: Socket,
    addresses: Option<(SocketAddr, SocketAddr)>,
    shared: &Shared,
) -> BufReader<Counted> {
    let (bytes, bears_losses) = (AtomicU64::new(0), AtomicBool::new(false));
    let meter = Arc::new(Meter { bytes, addresses, bears_losses });
    guard(&shared.meters).push(meter.clone());
    BufReader::with_capacity(READ_BYTES, Counted { socket, meter, bears_losses: false })
}

type Tls = TlsStream<BufReader<Counted>>;

fn stream(tls: Tls, shared: &Arc<Shared>) -> Stream {
    let (read, write) = tokio::io::split(tls);
    let write = Arc::new(tokio::sync::Mutex::new(Half { write, midway: false }));
    Stream {
        sender: super::Sender::Tcp(Sender { write, shared: shared.clone() }),
        receiver: super::Receiver::Tcp(Receiver { read, shared: shared.clone() }),
    }
}

/// Makes connections through something else.
pub(crate) type Opener =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<DuplexStream>> + Send>> + Send + Sync>;

/// Where connections go.
#[derive(Clone)]
enum Way {
    At(SocketAddr),
    Through(Opener),
}

/// How to make one more connection.
#[derive(Clone)]
struct Dialling {
    way: Way,
    /// How long the last connection took to be made.
    trip: Arc<AtomicU64>,
    config: Arc<rustls::ClientConfig>,
}

impl Dialling {
    async fn connect(&self, shared: &Arc<Shared>) -> io::Result<Stream> {
        let mut begun = Instant::now();
        let took = |begun: Instant| {
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.trip.store(took, Ordering::Relaxed);
        };
        let counted = match &self.way {
            Way::At(address) => {
                let socket = TcpStream::connect(address).await?;
                took(begun);
                counted(socket, shared)
            }
            Way::Through(open) => {
                let connection = open().await?;
                begun = Instant::now();
                sealed(connection, shared)
            }
        };
        // The name is needed by an interface and never sent.
        let name = ServerName::from(std::net::Ipv4Addr::UNSPECIFIED);
        let connected = TlsConnector::from(self.config.clone()).connect(name, counted).await?;
        if matches!(self.way, Way::Through(_)) {
            // One trip of a handshake, from end to end.
            took(begun);
        }
        Ok(stream(TlsStream::Client(connected), shared))
    }
}

/// What all connections of a session have in common.
struct Shared {
    closed: watch::Sender<Option<Closed>>,
    /// Of each connection.
    meters: Mutex<Vec<Arc<Meter>>>,
    losses: Mutex<Losses>,
    /// Where the reason of the end is told.
    control: Mutex<Option<Writer>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            closed: watch::Sender::new(None),
            meters: Mutex::default(),
            losses: Mutex::default(),
            control: Mutex::default(),
        }
    }
}

impl Shared {
    /// Looks at what the path loses, if that was not done a moment ago.
    fn mind_losses(&self) {
        // Another lane does.
        let Ok(mut losses) = self.losses.try_lock() else { return };
        let now = Instant::now();
        if losses.is_settled || losses.looked.is_some_and(|then| now - then < loss::INTERVAL) {
            return;
        }
        losses.looked = Some(now);
        let meters = guard(&self.meters).clone();
        let random = losses.are_random(now, &meters);
        // An error: a kernel that does not tell, or a connection that has just ended.
        losses.is_settled = !matches!(random, Ok(false));
        if let Ok(true) = random {
            for meter in meters {
                meter.bears_losses.store(true, Ordering::Relaxed);
            }
        }
    }

    fn be_first(&self, stream: &Stream) {
        if let super::Sender::Tcp(sender) = &stream.sender {
            *guard(&self.control) = Some(sender.write.clone());
        }
    }

    /// The first reason stays.
    fn end(&self, why: Closed) -> bool {
        self.closed.send_if_modified(|closed| {
            let is_first = closed.is_none();
            closed.get_or_insert(why);
            is_first
        })
    }

    async fn ended(&self) -> Closed {
        let mut closed = self.closed.subscribe();
        // Cannot fail: the sender is borrowed from self.
        let ended = closed.wait_for(Option::is_some).await;
        ended.ok().and_then(|closed| closed.clone()).unwrap_or(Closed::Here)
    }

    fn close(self: &Arc<Self>, code: Code) {
        if !self.end(Closed::Here) {
            return;
        }
        let Some(control) = guard(&self.control).take() else { return };
        let last_word = async move {
            let mut control = control.lock().await;
            // Within a message the reason would be taken for a part of it. And whoever is not
            // there any more needs none.
            if !control.midway {
                let _ = control.write.write_all(&closing_frame(code)).await;
            }
            let _ = control.write.shutdown().await;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(LAST_WORD_TIMEOUT, last_word));
        }
    }
}

/// A session. Clones are the same session.
#[derive(Clone)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    first: Arc<Mutex<Option<Stream>>>,
    /// At the end that dialled.
    dialling: Option<Dialling>,
    peer: Option<PublicKey>,
}

impl Link {
    /// Ends the session with its port.
    fn end_with(&self, mut port: watch::Receiver<bool>) {
        let shared = Arc::downgrade(&self.shared);
        let mut closed = self.shared.closed.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                // Fails when the session was dropped.
                _ = closed.wait_for(Option::is_some) => {}
                _ = port.wait_for(|closed| *closed) => {
                    if let Some(shared) = shared.upgrade() {
                        shared.close(Code::Away);
                    }
                }
            }
        });
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(super) fn peer_key(&self) -> Option<PublicKey> {
        self.peer
    }

    pub(super) async fn open(&self) -> Result<Stream, Cut> {
        let first = guard(&self.first).take();
        match (first, &self.dialling) {
            (Some(first), _) => Ok(first),
            (None, Some(dialling)) => tokio::select! {
                opened = dialling.connect(&self.shared) => opened.map_err(|_| Cut),
                _ = self.shared.ended() => Err(Cut),
            },
            (None, None) => Err(Cut),
        }
    }

    pub(super) async fn accept(&self) -> Result<Stream, Cut> {
        let first = guard(&self.first).take();
        match first {
            Some(first) => Ok(first),
            None => {
                self.shared.ended().await;
                Err(Cut)
            }
        }
    }

    /// Gives `stream`, the first of `other`, to this session: it ends with this one.
    pub(super) fn join(&self, other: &Self, mut stream: Stream) -> Stream {
        guard(&self.shared.meters).append(&mut guard(&other.shared.meters));
        if let super::Sender::Tcp(sender) = &mut stream.sender {
            sender.shared = self.shared.clone();
        }
        if let super::Receiver::Tcp(receiver) = &mut stream.receiver {
            receiver.shared = self.shared.clone();
        }
        stream
    }

    pub(super) fn be_raw(&self) {
        guard(&self.shared.control).take();
    }

    pub(super) fn trip(&self) -> Duration {
        let taken = self.dialling.as_ref().map(|dialling| dialling.trip.load(Ordering::Relaxed));
        Duration::from_micros(taken.unwrap_or_default())
    }

    pub(super) fn close(&self, code: Code) {
        self.shared.close(code);
    }

    pub(super) async fn closed(&self) -> Closed {
        self.shared.ended().await
    }

    pub(super) fn wire_bytes(&self) -> u64 {
        let meters = guard(&self.shared.meters);
        meters.iter().map(|meter| meter.bytes.load(Ordering::Relaxed)).sum()
    }
}

struct Half {
    write: WriteHalf<Tls>,
    /// Part of a message was given away.
    midway: bool,
}

type Writer = Arc<tokio::sync::Mutex<Half>>;

/// The sending half of a connection.
pub(crate) struct Sender {
    write: Writer,
    shared: Arc<Shared>,
}

impl Sender {
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        let sending = async {
            let mut half = self.write.lock().await;
            half.midway = true;
            half.write.write_all(bytes).await?;
            half.write.flush().await?;
            half.midway = false;
            io::Result::Ok(())
        };
        let mut sending = std::pin::pin!(sending);
        let is_long = bytes.len() >= WORTH_A_LOOK;
        let sent = loop {
            tokio::select! {
                biased;
                sent = &mut sending => break sent,
                _ = self.shared.ended() => return Err(Cut),
                // A path that stands still is looked at too.
                () = tokio::time::sleep(loss::INTERVAL), if is_long => self.shared.mind_losses(),
            }
        };
        if is_long {
            self.shared.mind_losses();
        }
        sent.map_err(|_| Cut)
    }

    pub(super) async fn finish(&mut self) {
        let _ = self.write.lock().await.write.shutdown().await;
    }
}

/// The receiving half of a connection.
pub(crate) struct Receiver {
    read: ReadHalf<Tls>,
    shared: Arc<Shared>,
}

impl Receiver {
    pub(super) async fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Cut> {
        tokio::select! {
            biased;
            read = self.read.read_exact(buffer) => read.map(drop).map_err(|_| Cut),
            _ = self.shared.ended() => Err(Cut),
        }
    }

    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Cut> {
        tokio::select! {
            biased;
            read = self.read.read(buffer) => read.map_err(|_| Cut),
            _ = self.shared.ended() => Err(Cut),
        }
    }

    /// The session is over because of `why`, as far as this end is concerned.
    pub(super) fn end(&self, why: Closed) {
        self.shared.end(why);
    }
}

/// What a connection goes through.
enum Socket {
    Tcp(TcpStream),
    Sealed(DuplexStream),
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Sealed(connection) => Pin::new(connection).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Sealed(connection) => Pin::new(connection).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(context, parts),
            Self::Sealed(connection) => Pin::new(connection).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(socket) => socket.is_write_vectored(),
            Self::Sealed(connection) => connection.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(context),
            Self::Sealed(connection) => Pin::new(connection).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Sealed(connection) => Pin::new(connection).poll_shutdown(context),
        }
    }
}

/// What a session knows of one of its connections.
struct Meter {
    /// In both directions.
    bytes: AtomicU64,
    /// Own and peer's.
    addresses: Option<(SocketAddr, SocketAddr)>,
    /// Its losses are to be borne.
    bears_losses: AtomicBool,
}

/// What is known of a session's losses.
#[derive(Default)]
struct Losses {
    judge: loss::Judge,
    diag: Option<diag::Diag>,
    looked: Option<Instant>,
    /// They are borne, or cannot be seen.
    is_settled: bool,
}

impl Losses {
    fn are_random(&mut self, now: Instant, meters: &[Arc<Meter>]) -> io::Result<bool> {
        let diag = match &mut self.diag {
            Some(diag) => diag,
            none => none.insert(diag::Diag::open()?),
        };
        let ask = |meter: &Arc<Meter>| {
            let (own, peer) = meter.addresses.ok_or(io::ErrorKind::NotConnected)?;
            diag.ask(own, peer)
        };
        let samples: Vec<_> = meters.iter().map(ask).collect::<io::Result<_>>()?;
        Ok(self.judge.is_random(now, &samples))
    }
}

/// A socket that counts what passes it.
struct Counted {
    socket: Socket,
    meter: Arc<Meter>,
    bears_losses: bool,
}

impl Counted {
    fn count(&self, bytes: usize) {
        self.meter.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn bear_losses(&mut self) {
        if !self.bears_losses && self.meter.bears_losses.load(Ordering::Relaxed) {
            self.bears_losses = true;
            if let Socket::Tcp(socket) = &self.socket {
                // A system that has no such control keeps its own.
                let _ = rustix::net::sockopt::set_tcp_congestion(socket, LOSS_TOLERANT);
            }
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        self.count(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.bear_losses();
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = &written {
            self.count(*count);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.bear_losses();
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, parts);
        if let Poll::Ready(Ok(count)) = &written {
            self.count(*count);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
