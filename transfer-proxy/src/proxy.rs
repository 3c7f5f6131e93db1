//! The proxy of this process: its handle, and the tables behind it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use model::{Carrier, FileId, MigrationId, ProxyUri, PublicKey, SecretKey, Token};
use tokio::io::DuplexStream;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::carrier::{Attempt, Code, Doorstep, Link, Port, ResetKey, Stall, Stream, pipe};
use crate::gate::{Gate, network};
use crate::leg::{self, Leg, Spares, Way};
use crate::message::{self, Control, MAX_GREETING_BYTES, SessionId};
use crate::order::{Pull, PullError, Relay, Serve, ServeError, TellError, TransferProxy};
use crate::places::{Place, Places};
use crate::relay::Route;
use crate::session::{LAST_WORD_TIMEOUT, OPEN_TIMEOUT};
use crate::shaper::Shaper;
use crate::source::Serving;
use crate::target::Pulling;
use crate::tls::{self, Hint, Tls};
use crate::transfer::{End, Event, MAX_TELL_BYTES, Progress, Transfer};
use crate::{source, target};

/// Strangers whose handshake is under way at once. Each takes up to 256 KiB; where there is no
/// place left, one of whatever address holds most gives way.
const MAX_OPENINGS: usize = 128;

/// With more than so many, whoever comes over UDP must prove its address first.
const MAX_UNPROVEN: usize = 16;

/// Legs that others have dialled at once: sessions whose streams carry connections of others.
const MAX_LEGS: usize = 256;

/// How often it is looked whether what a leg is for is still there.
const LEG_LOOK: Duration = Duration::from_secs(1);

/// How long [`Proxy::shut_down`] waits until the other ends are told.
const SHUT_DOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How to run a proxy.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address to listen at, UDP and TCP; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether somebody else listens at the TCP port, and hands over what is meant for the proxy
    /// ([`Proxy::doorstep`]).
    pub shares_tcp: bool,
    /// What peers are told to dial, if it is not the address listened at.
    pub advertise: Option<ProxyUri>,
    /// What the proxy takes on.
    pub limits: Limits,
    /// By which others learn at once that it has started again: the same at every start.
    pub reset: ResetKey,
}

/// What a proxy takes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Transfers it is ready to send.
    pub serves: usize,
    /// Transfers it fetches.
    pub pulls: usize,
    /// Transfers of others that it passes on.
    pub relays: usize,
    /// Sessions that others opened to it. Each takes up to some 60 MiB when its path is slow and
    /// its disk fast, or the other way round.
    pub sessions: usize,
    /// Bytes a second of all transfers together, in each direction, if there is a limit.
    pub rate: Option<u64>,
    /// Failed attempts per second after which an address is not answered for that second.
    pub bad_attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { serves: 256, pulls: 64, relays: 256, sessions: 64, rate: None, bad_attempts: 64 }
    }
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another program has the port, perhaps another node of this machine.
    #[error("port {0} is in use; stop the program that has it, or configure another port")]
    PortInUse(SocketAddr),
    /// The address cannot be listened at.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address as configured.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Peers cannot dial "any address".
    #[error("{0} is no address that peers can dial; configure the address to advertise")]
    Advertise(SocketAddr),
}

/// A running transfer proxy. Clones are the same proxy.
///
/// It ends by [`Proxy::shut_down`]; when the last clone is dropped it ends without telling others
/// in good order.
#[derive(Clone)]
pub struct Proxy(Arc<Owner>);

/// Ends the proxy's tasks with its last handle; the tasks themselves hold only [`Shared`].
struct Owner {
    shared: Arc<Shared>,
    runtime: Handle,
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    uri: ProxyUri,
    port: Arc<Port>,
    tls: Tls,
    events: mpsc::Sender<Event>,
    limits: Limits,
    gate: Gate,
    /// The same for attempts over UDP in the name of an address that is not proven: there proof is
    /// demanded, and the attempt that brings it is looked at.
    unproven: Gate,
    /// Sessions that others may open yet.
    sessions: Semaphore,
    /// Legs that they may dial yet.
    legs: Semaphore,
    /// What keys for unknown hints are made from.
    decoys: Zeroizing<[u8; 32]>,
    /// The site's link, in each direction.
    sending: Arc<Shaper>,
    taking: Arc<Shaper>,
    serving: Mutex<HashMap<MigrationId, Arc<Serving>>>,
    pulling: Mutex<HashMap<MigrationId, Arc<Pulling>>>,
    routes: Mutex<HashMap<MigrationId, Arc<Route>>>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Proxy {
    /// Opens the port and listens. `events` should be read without delay: a full channel holds up
    /// sessions, not other transfers' data.
    pub async fn start(config: Config, events: mpsc::Sender<Event>) -> Result<Self, StartError> {
        let Config { listen, shares_tcp, advertise, limits, reset } = config;
        let tls = Tls::new();
        let decoys = Zeroizing::new(tls.random());
        let port = Port::bind(listen, !shares_tcp, &tls, &reset).map_err(|source| match source
            .kind()
        {
            io::ErrorKind::AddrInUse => StartError::PortInUse(listen),
            _ => StartError::Listen { address: listen, source },
        })?;
        let bound = port.address();
        let uri = match advertise {
            Some(uri) => uri,
            None if bound.ip().is_unspecified() => return Err(StartError::Advertise(bound)),
            None => ProxyUri::at(bound),
        };
        let shared = Arc::new(Shared {
            uri,
            port: Arc::new(port),
            tls,
            events,
            limits,
            sessions: Semaphore::new(limits.sessions),
            legs: Semaphore::new(MAX_LEGS),
            gate: Gate::new(Instant::now(), limits.bad_attempts),
            unproven: Gate::new(Instant::now(), limits.bad_attempts),
            decoys,
            sending: Shaper::new(limits.rate),
            taking: Shaper::new(limits.rate),
            serving: Mutex::default(),
            pulling: Mutex::default(),
            routes: Mutex::default(),
        });
        let owner =
            Owner { shared: shared.clone(), runtime: Handle::current(), tasks: Mutex::default() };
        owner.spawn(listen_for_sessions(shared));
        Ok(Self(Arc::new(owner)))
    }

    /// Where whoever listens at the TCP port in the proxy's place hands over connections.
    pub fn doorstep(&self) -> Doorstep {
        self.0.shared.port.doorstep()
    }

    /// The port that it listens at, UDP and TCP.
    pub(crate) fn port(&self) -> u16 {
        self.0.shared.port.address().port()
    }

    /// Ends the proxy. Transfers are interrupted, not closed: the other ends try again later.
    pub async fn shut_down(self) {
        let mut tasks = self.0.stop();
        while tasks.join_next().await.is_some() {}
        self.0.shared.port.close(SHUT_DOWN_TIMEOUT).await;
    }
}

impl TransferProxy for Proxy {
    fn uri(&self) -> ProxyUri {
        self.0.shared.uri.clone()
    }

    fn inner_uri(&self) -> ProxyUri {
        let mut bound = self.0.shared.port.address();
        if bound.ip().is_unspecified() {
            bound.set_ip(match bound {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        ProxyUri::at(bound)
    }

    fn serve(&self, serve: Serve) -> Result<(), ServeError> {
        let shared = &self.0.shared;
        let public_key = serve.key.public();
        let mut serving = guard(&shared.serving);
        if let Some(known) = serving.get(&serve.migration) {
            let same = known.vm == serve.vm
                && known.token_hash == serve.token_hash
                && known.hint == serve.hint
                && known.public_key == public_key
                && known.peer_key == serve.peer_key
                && known.budget == serve.byte_budget
                && known.dial == serve.dial;
            return if same { Ok(()) } else { Err(ServeError::Conflict(serve.migration)) };
        }
        if serving.values().any(|known| known.hint == serve.hint) {
            return Err(ServeError::Conflict(serve.migration));
        }
        if serving.len() >= shared.limits.serves {
            return Err(ServeError::Full(serving.len()));
        }
        let transfer = Transfer::new(serve.migration, End::Source, shared.events.clone());
        let key = tls::transfer_key(&serve.key);
        let part = shared.sending.part(serve.share.clone());
        let leg = serve.dial.as_ref().map(|dial| Leg::new(dial, None, key.clone()));
        let new = Arc::new(Serving::new(transfer, &serve, part, key, public_key));
        serving.insert(serve.migration, new.clone());
        if let Some(leg) = leg {
            self.0.spawn(dial_out(shared.clone(), new, leg));
        }
        Ok(())
    }

    fn relay(&self, relay: Relay) -> Result<(), ServeError> {
        let shared = &self.0.shared;
        let mut routes = guard(&shared.routes);
        match routes.get(&relay.migration) {
            Some(known) if known.relay.has_terms_of(&relay) => return Ok(()),
            Some(known) => known.close(),
            None if routes.len() >= shared.limits.relays => {
                return Err(ServeError::Full(routes.len()));
            }
            None => {}
        }
        let (key, part) = (tls::transfer_key(&relay.key), shared.sending.part(relay.share.clone()));
        routes.insert(relay.migration, Arc::new(Route::new(relay, key, part)));
        Ok(())
    }

    fn end_relay(&self, migration: MigrationId) {
        if let Some(route) = guard(&self.0.shared.routes).remove(&migration) {
            route.close();
        }
    }

    fn provide(&self, migration: MigrationId, files: Vec<(FileId, PathBuf)>) {
        let known = guard(&self.0.shared.serving).get(&migration).cloned();
        match known {
            Some(serving) => self.0.spawn(serving.provide(self.0.shared.tls.random(), files)),
            None => {
                let events = self.0.shared.events.clone();
                self.0.spawn(async move {
                    let transfer = Transfer::new(migration, End::Source, events);
                    transfer.fail("files of a transfer that is not served".into()).await;
                });
            }
        }
    }

    fn pull(&self, pull: Pull) -> Result<(), PullError> {
        let shared = &self.0.shared;
        let mut pulling = guard(&shared.pulling);
        if let Some(known) = pulling.get(&pull.migration) {
            if known.active.load(Ordering::Relaxed) {
                let same = known.pull.has_terms_of(&pull);
                return if same { Ok(()) } else { Err(PullError::Conflict(pull.migration)) };
            }
        } else if pulling.len() >= shared.limits.pulls {
            return Err(PullError::Full(pulling.len()));
        }
        let key = tls::transfer_key(&pull.key);
        let way = pull.detour().map(|dial| Way::new(&dial, pull.carrier, key.clone()));
        let new = Arc::new(Pulling {
            transfer: Transfer::new(pull.migration, End::Target, shared.events.clone()),
            key,
            way,
            active: AtomicBool::new(true),
            part: shared.taking.part(pull.share.clone()),
            pull,
        });
        pulling.insert(new.pull.migration, new.clone());
        self.0.spawn(target::run(new, shared.port.clone(), shared.tls.clone()));
        Ok(())
    }

    fn tell(&self, migration: MigrationId, end: End, message: Vec<u8>) -> Result<(), TellError> {
        if message.len() > MAX_TELL_BYTES {
            return Err(TellError::Long(message.len()));
        }
        self.0
            .shared
            .with(migration, end, |transfer| transfer.outbox.push(message))
            .ok_or(TellError::Unknown(migration))
    }

    fn close(&self, migration: MigrationId, end: End) {
        let shared = &self.0.shared;
        shared.with(migration, end, Transfer::close);
        match end {
            End::Source => drop(guard(&shared.serving).remove(&migration)),
            End::Target => drop(guard(&shared.pulling).remove(&migration)),
        }
    }

    fn progress(&self, migration: MigrationId, end: End) -> Option<Progress> {
        self.0.shared.with(migration, end, Transfer::progress)
    }
}

impl Owner {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = guard(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.runtime);
    }

    /// Ends all work and every session, and hands over the tasks that are ending.
    fn stop(&self) -> JoinSet<()> {
        let mut tasks = std::mem::take(&mut *guard(&self.tasks));
        tasks.abort_all();
        let serving = guard(&self.shared.serving);
        let pulling = guard(&self.shared.pulling);
        guard(&self.shared.routes).drain().for_each(|(_, route)| route.close());
        let serving = serving.values().map(|serving| &serving.transfer);
        let pulling = pulling.values().map(|pulling| &pulling.transfer);
        for transfer in serving.chain(pulling) {
            transfer.halt();
            transfer.hang_up();
        }
        tasks
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.stop());
        self.shared.port.hang_up();
    }
}

impl Shared {
    fn with<T>(
        &self,
        migration: MigrationId,
        end: End,
        act: impl FnOnce(&Transfer) -> T,
    ) -> Option<T> {
        match end {
            End::Source => guard(&self.serving).get(&migration).map(|known| act(&known.transfer)),
            End::Target => guard(&self.pulling).get(&migration).map(|known| act(&known.transfer)),
        }
    }

    async fn serve_session(
        &self,
        serving: Arc<Serving>,
        link: Link,
        stream: Stream,
        session: SessionId,
    ) {
        match self.sessions.try_acquire() {
            Ok(_session) => source::run(serving, link, stream, session).await,
            Err(_) => {
                tracing::warn!(migration = %serving.transfer.migration, "too many sessions");
                link.close(Code::Away);
            }
        }
    }

    fn by_hint(&self, hint: &Hint) -> Option<Arc<Serving>> {
        guard(&self.serving).values().find(|serving| serving.hint == *hint).cloned()
    }

    /// The key to answer with. An unknown hint gets a key of its own, the same each time, so that
    /// nobody can find out which hints are known.
    fn key_for(&self, hint: &Hint) -> tls::TransferKey {
        let seed = Zeroizing::new(*blake3::keyed_hash(&self.decoys, hint).as_bytes());
        let decoy = tls::transfer_key(&SecretKey::from_seed(&seed));
        let of_source = self.by_hint(hint).map(|serving| serving.key.clone());
        let of_leg = || {
            // Only where somebody is to come with that token.
            let is_it = |token: &Token, way: &Way| way.spares().is_some() && token.hint() == *hint;
            let routes = guard(&self.routes);
            let mut known = routes.values();
            let route = known.find(|route| {
                route.relay.hint == *hint || is_it(&route.relay.next.token, &route.way)
            });
            let of_route = route.map(|route| route.key.clone());
            drop(routes);
            of_route.or_else(|| {
                let pulling = guard(&self.pulling);
                let found = pulling.values().find(|pulling| {
                    pulling.way.as_ref().is_some_and(|way| is_it(&pulling.pull.token, way))
                });
                found.map(|pulling| pulling.key.clone())
            })
        };
        of_source.or_else(of_leg).unwrap_or(decoy)
    }

    /// What the first words on a stream of a leg ask for, if their token stands for something, and
    /// the key that its dialler showed is the right one where it is known.
    fn errand(&self, greeting: &Control, shown: Option<PublicKey>) -> Option<Errand> {
        match greeting {
            Control::Through { token } => {
                let hash = token.hash();
                let routes = guard(&self.routes);
                let route = routes.values().find(|route| route.relay.token_hash == hash).cloned();
                drop(routes);
                let serving = || {
                    let serving = self.by_hint(&token.hint())?;
                    (serving.token_hash == hash).then_some(Errand::Answer(serving))
                };
                route.map(Errand::Pass).or_else(serving)
            }
            Control::Spare { token } => {
                // Hashes are compared: how far a guess agrees with the hash tells nothing of the
                // token.
                // A source that brings streams shows its own key: others that have seen the token
                // could take its place in the queue.
                let is_it = |known: &Token, key: &PublicKey| {
                    known.hash() == token.hash() && shown == Some(*key)
                };
                let routes = guard(&self.routes);
                let next = |route: &Arc<Route>| route.relay.next.clone();
                let route = routes.values().find(|route| {
                    let next = next(route);
                    is_it(&next.token, &next.key)
                });
                let at_route = route.and_then(|route| route.way.spares().cloned());
                drop(routes);
                let at_target = || {
                    let pulling = guard(&self.pulling);
                    let found = pulling
                        .values()
                        .find(|pulling| is_it(&pulling.pull.token, &pulling.pull.peer_key))?;
                    found.way.as_ref()?.spares().cloned()
                };
                at_route.or_else(at_target).map(Errand::Keep)
            }
            _ => None,
        }
    }
}

impl Shared {
    /// Whether what a leg is for is still there, and the same.
    fn stands(&self, errand: &Errand) -> bool {
        match errand {
            Errand::Pass(route) => {
                let migration = route.relay.migration;
                guard(&self.routes).get(&migration).is_some_and(|known| Arc::ptr_eq(known, route))
            }
            Errand::Answer(serving) => {
                let migration = serving.transfer.migration;
                guard(&self.serving)
                    .get(&migration)
                    .is_some_and(|known| Arc::ptr_eq(known, serving))
            }
            Errand::Keep(spares) => {
                let is_it =
                    |way: &Way| way.spares().is_some_and(|known| Arc::ptr_eq(known, spares));
                guard(&self.routes).values().any(|route| is_it(&route.way))
                    || guard(&self.pulling)
                        .values()
                        .any(|pull| pull.way.as_ref().is_some_and(is_it))
            }
        }
    }
}

/// What a stream of a leg is for.
#[derive(Clone)]
enum Errand {
    /// It is passed on.
    Pass(Arc<Route>),
    /// The source is here.
    Answer(Arc<Serving>),
    /// It waits to be used.
    Keep(Arc<Spares>),
}

impl Errand {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pass(one), Self::Pass(other)) => Arc::ptr_eq(one, other),
            (Self::Answer(one), Self::Answer(other)) => Arc::ptr_eq(one, other),
            (Self::Keep(one), Self::Keep(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    async fn run(self, shared: Arc<Shared>, stream: Stream, from: IpAddr) {
        match self {
            Self::Pass(route) => route.carry(&shared.port, stream).await,
            Self::Answer(serving) => {
                let connection = pipe::connection(stream, vec![]);
                receive_sealed(shared, serving, connection, from).await;
            }
            Self::Keep(spares) => spares.add(stream),
        }
    }
}

/// Attends to the streams of a leg that was dialled to this proxy, until it or what it is for ends.
async fn run_leg(shared: Arc<Shared>, link: Link, first: Stream, errand: Errand, from: IpAddr) {
    let Ok(_leg) = shared.legs.try_acquire() else { return link.close(Code::Away) };
    link.be_raw();
    if link.kind() == Carrier::Tls {
        return errand.run(shared.clone(), first, from).await;
    }
    let mut carried = JoinSet::new();
    carried.spawn(errand.clone().run(shared.clone(), first, from));
    let over = async {
        loop {
            tokio::time::sleep(LEG_LOOK).await;
            if !shared.stands(&errand) {
                return;
            }
        }
    };
    let streams = async {
        while let Ok(mut stream) = link.accept().await {
            while carried.try_join_next().is_some() {}
            if carried.len() >= leg::MAX_STREAMS {
                continue;
            }
            let (shared, known, link) = (shared.clone(), errand.clone(), link.clone());
            carried.spawn(async move {
                let receiving =
                    message::receive(&mut stream.receiver, MAX_GREETING_BYTES, Stall::Never);
                let Ok(Ok(greeting)) = tokio::time::timeout(OPEN_TIMEOUT, receiving).await else {
                    return;
                };
                // All streams of a leg are for the same. Whoever asks for something else, or for
                // what has taken its place, is to dial anew.
                match shared.errand(&greeting, link.peer_key()) {
                    Some(errand) if errand.is_same(&known) => {
                        known.run(shared, stream, from).await;
                    }
                    _ => link.close(Code::Away),
                }
            });
        }
    };
    tokio::select! {
        () = over => link.close(Code::Away),
        () = streams => {}
    }
    // Sessions within have a last word to write down.
    let drained = async { while carried.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(2 * LAST_WORD_TIMEOUT, drained).await;
}

/// Source: dials where nobody can dial it.
async fn dial_out(shared: Arc<Shared>, serving: Arc<Serving>, leg: Leg) {
    let arrived = |connection| {
        let here = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        receive_sealed(shared.clone(), serving.clone(), connection, here)
    };
    leg::bring_spares(&serving.transfer, leg, &shared.port, arrived).await;
}

/// A connection to this source that came through a stream whose token was its own.
async fn receive_sealed(
    shared: Arc<Shared>,
    serving: Arc<Serving>,
    connection: DuplexStream,
    from: IpAddr,
) {
    let Ok(_permit) = serving.sealed.clone().try_acquire_owned() else { return };
    let attempt = shared.port.sealed(connection, from);
    let opening = open_session(&shared, attempt, Some(serving));
    let Ok(opened) = tokio::time::timeout(OPEN_TIMEOUT, opening).await else { return };
    if let Opened::Session(serving, link, stream, session) = opened {
        shared.serve_session(serving, link, stream, session).await;
    }
}

async fn listen_for_sessions(shared: Arc<Shared>) {
    let openings = Places::new(MAX_OPENINGS, MAX_OPENINGS);
    let mut running = JoinSet::new();
    while let Some(attempt) = shared.port.accept().await {
        while running.try_join_next().is_some() {}
        let (now, from) = (Instant::now(), attempt.from());
        if !attempt.is_proven()
            && (openings.taken() > MAX_UNPROVEN || !shared.unproven.is_open(now, from))
        {
            attempt.demand_proof();
        } else if !shared.gate.is_open(now, from) {
            attempt.ignore();
        } else {
            running.spawn(receive_session(shared.clone(), attempt, openings.take(network(from))));
        }
    }
}

async fn receive_session(shared: Arc<Shared>, attempt: Attempt, mut opening: Place<IpAddr>) {
    let from = attempt.from();
    // What is done in an address's name before it is proven is not held against whoever has it.
    let gate = if attempt.is_proven() { &shared.gate } else { &shared.unproven };
    let opened = tokio::select! {
        opened = tokio::time::timeout(OPEN_TIMEOUT, open_session(&shared, attempt, None)) => opened,
        () = opening.lost() => return,
    };
    drop(opening);
    match opened {
        Ok(Opened::Session(serving, link, stream, session)) => {
            shared.serve_session(serving, link, stream, session).await;
        }
        Ok(Opened::Leg(link, stream, errand)) => run_leg(shared, link, stream, errand, from).await,
        Ok(Opened::Lane | Opened::Unused) => {}
        Ok(Opened::Refused) | Err(_) => gate.failed(Instant::now(), from),
    }
}

/// What became of an attempt.
enum Opened {
    Session(Arc<Serving>, Link, Stream, SessionId),
    /// It carries connections of others.
    Leg(Link, Stream, Errand),
    /// It is one more connection of a session that there is.
    Lane,
    /// Nothing was asked.
    Unused,
    Refused,
}

/// Finds the transfer of whoever dials; refused if key, hint and token do not belong together.
/// What comes through a stream that has shown a token is for that transfer alone.
async fn open_session(
    shared: &Arc<Shared>,
    attempt: Attempt,
    sealed: Option<Arc<Serving>>,
) -> Opened {
    let opened = match &sealed {
        Some(serving) => {
            let key = serving.key.clone();
            attempt.answer(move |_| Some(key.clone())).await
        }
        None => {
            // A session's handshake must not keep alive what holds the session.
            let keys = Arc::downgrade(shared);
            attempt.answer(move |hint| Some(keys.upgrade()?.key_for(hint))).await
        }
    };
    let Ok((link, hint)) = opened else { return Opened::Refused };
    let Ok(Stream { sender, mut receiver }) = link.accept().await else {
        // Whoever has the right key may have dialled over both carriers, and taken the other.
        let is_known = shared.by_hint(&hint).is_some_and(|serving| serving.is_of(&link));
        return if is_known { Opened::Unused } else { Opened::Refused };
    };
    let greeting = message::receive(&mut receiver, MAX_GREETING_BYTES, Stall::Never).await;
    let stream = Stream { sender, receiver };
    if let (None, Ok(greeting)) = (&sealed, &greeting)
        && let Some(errand) = shared.errand(greeting, link.peer_key())
    {
        return Opened::Leg(link, stream, errand);
    }
    // Hashes are compared: how far a guess agrees with the hash tells nothing of the token.
    let wanted = sealed.as_ref().map(|_| message::sealed_token().hash());
    let serving = sealed.or_else(|| shared.by_hint(&hint)).filter(|serving| {
        let token = match &greeting {
            Ok(Control::Hello { token, .. } | Control::Lane { token, .. }) => token.hash(),
            _ => return false,
        };
        serving.is_of(&link) && token == wanted.unwrap_or(serving.token_hash)
    });
    match (serving, greeting) {
        (Some(serving), Ok(Control::Hello { session, .. })) => {
            Opened::Session(serving, link, stream, session)
        }
        (Some(serving), Ok(Control::Lane { session, .. })) => {
            serving.join(session, &link, stream).await;
            Opened::Lane
        }
        _ => {
            tracing::debug!("a session was refused");
            link.close(Code::Refused);
            Opened::Refused
        }
    }
}
