//! The proxy of this process: its handle, and the tables behind it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use model::{FileId, MigrationId, ProxyUri, SecretKey};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::carrier::{Attempt, Carrier, Code, Link, ResetKey, Stall};
use crate::gate::Gate;
use crate::message::{self, Control, MAX_GREETING_BYTES};
use crate::order::{Pull, PullError, Serve, ServeError, TellError, TransferProxy};
use crate::session::{ControlStream, OPEN_TIMEOUT};
use crate::source::Serving;
use crate::target::Pulling;
use crate::tls::{self, Hint, Tls};
use crate::transfer::{End, Event, MAX_TELL_BYTES, Progress, Transfer};
use crate::{source, target};

/// Strangers whose handshake is under way at once; from a quarter of it on, they must prove their
/// address first.
const MAX_OPENINGS: usize = 64;

/// How long [`Proxy::shut_down`] waits until the other ends are told.
const SHUT_DOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How to run a proxy.
#[derive(Debug, Clone)]
pub struct Config {
    /// The UDP address to listen at; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The address that peers dial, if it is another; port 0 stands for the port listened at.
    pub advertise: Option<SocketAddr>,
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
    /// Sessions that others opened to it. Each takes up to some 60 MiB when its path is slow and
    /// its disk fast, or the other way round.
    pub sessions: usize,
    /// Failed attempts per second after which an address is not answered for that second.
    pub bad_attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { serves: 256, pulls: 64, sessions: 64, bad_attempts: 64 }
    }
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another program has the port, perhaps another node of this machine.
    #[error("UDP port {0} is in use; stop the program that has it, or configure another port")]
    PortInUse(SocketAddr),
    /// The address cannot be listened at.
    #[error("cannot listen at UDP {address}")]
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
    carrier: Arc<Carrier>,
    events: mpsc::Sender<Event>,
    limits: Limits,
    gate: Gate,
    /// What keys for unknown hints are made from.
    decoys: Zeroizing<[u8; 32]>,
    serving: Mutex<HashMap<MigrationId, Arc<Serving>>>,
    pulling: Mutex<HashMap<MigrationId, Arc<Pulling>>>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Proxy {
    /// Opens the port and listens. `events` should be read without delay: a full channel holds up
    /// sessions, not other transfers' data.
    pub async fn start(config: Config, events: mpsc::Sender<Event>) -> Result<Self, StartError> {
        let Config { listen, advertise, limits, reset } = config;
        let tls = Tls::new();
        let decoys = Zeroizing::new(tls.random());
        let carrier = Carrier::bind(listen, tls, reset).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => StartError::PortInUse(listen),
            _ => StartError::Listen { address: listen, source },
        })?;
        let mut address = advertise.unwrap_or(carrier.address());
        if address.port() == 0 {
            address.set_port(carrier.address().port());
        }
        if address.ip().is_unspecified() {
            return Err(StartError::Advertise(address));
        }
        let shared = Arc::new(Shared {
            uri: ProxyUri::quic(address),
            carrier: Arc::new(carrier),
            events,
            limits,
            gate: Gate::new(Instant::now(), limits.bad_attempts),
            decoys,
            serving: Mutex::default(),
            pulling: Mutex::default(),
        });
        let owner =
            Owner { shared: shared.clone(), runtime: Handle::current(), tasks: Mutex::default() };
        owner.spawn(listen_for_sessions(shared));
        Ok(Self(Arc::new(owner)))
    }

    /// Ends the proxy. Transfers are interrupted, not closed: the other ends try again later.
    pub async fn shut_down(self) {
        let mut tasks = self.0.stop();
        while tasks.join_next().await.is_some() {}
        self.0.shared.carrier.close(SHUT_DOWN_TIMEOUT).await;
    }
}

impl TransferProxy for Proxy {
    fn uri(&self) -> ProxyUri {
        self.0.shared.uri.clone()
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
                && known.budget == serve.byte_budget;
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
        let new = Serving::new(transfer, &serve, key, public_key);
        serving.insert(serve.migration, Arc::new(new));
        Ok(())
    }

    fn provide(&self, migration: MigrationId, files: Vec<(FileId, PathBuf)>) {
        let known = guard(&self.0.shared.serving).get(&migration).cloned();
        match known {
            Some(serving) => self.0.spawn(serving.provide(files)),
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
        let new = Arc::new(Pulling {
            transfer: Transfer::new(pull.migration, End::Target, shared.events.clone()),
            key: tls::transfer_key(&pull.key),
            active: AtomicBool::new(true),
            pull,
        });
        pulling.insert(new.pull.migration, new.clone());
        self.0.spawn(target::run(new, shared.carrier.clone()));
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
        self.shared.carrier.hang_up();
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

    fn by_hint(&self, hint: &Hint) -> Option<Arc<Serving>> {
        guard(&self.serving).values().find(|serving| serving.hint == *hint).cloned()
    }

    /// The key to answer with. An unknown hint gets a key of its own, the same each time, so that
    /// nobody can find out which hints are known.
    fn key_for(&self, hint: &Hint) -> tls::TransferKey {
        let seed = Zeroizing::new(*blake3::keyed_hash(&self.decoys, hint).as_bytes());
        let decoy = tls::transfer_key(&SecretKey::from_seed(&seed));
        self.by_hint(hint).map_or(decoy, |serving| serving.key.clone())
    }
}

async fn listen_for_sessions(shared: Arc<Shared>) {
    let openings = Arc::new(Semaphore::new(MAX_OPENINGS));
    let sessions = Arc::new(Semaphore::new(shared.limits.sessions));
    let mut running = JoinSet::new();
    while let Some(attempt) = shared.carrier.accept().await {
        while running.try_join_next().is_some() {}
        if !shared.gate.is_open(Instant::now(), attempt.from()) {
            attempt.ignore();
        } else if openings.available_permits() <= MAX_OPENINGS * 3 / 4 && !attempt.is_proven() {
            attempt.demand_proof();
        } else if let Ok(opening) = openings.clone().try_acquire_owned() {
            running.spawn(receive_session(shared.clone(), attempt, opening, sessions.clone()));
        } else {
            attempt.ignore();
        }
    }
}

async fn receive_session(
    shared: Arc<Shared>,
    attempt: Attempt,
    opening: OwnedSemaphorePermit,
    sessions: Arc<Semaphore>,
) {
    let from = attempt.from();
    let opened = tokio::time::timeout(OPEN_TIMEOUT, open_session(&shared, attempt)).await;
    drop(opening);
    let Ok(Some((serving, link, stream))) = opened else {
        shared.gate.failed(Instant::now(), from);
        return;
    };
    match sessions.try_acquire() {
        Ok(_session) => source::run(serving, link, stream).await,
        Err(_) => {
            tracing::warn!(migration = %serving.transfer.migration, "too many sessions");
            link.close(Code::Away);
        }
    }
}

/// Finds the transfer of whoever dials; none if key, hint and token do not belong together.
async fn open_session(
    shared: &Arc<Shared>,
    attempt: Attempt,
) -> Option<(Arc<Serving>, Link, ControlStream)> {
    // A session's handshake must not keep alive what holds the session.
    let keys = Arc::downgrade(shared);
    let key_of = move |hint: &Hint| keys.upgrade().map(|shared| shared.key_for(hint));
    let (link, hint) = attempt.answer(key_of).await.ok()?;
    let (sender, mut receiver) = link.accept().await.ok()?;
    let hello = message::receive(&mut receiver, MAX_GREETING_BYTES, Stall::Never).await;
    let serving = shared.by_hint(&hint).filter(|serving| {
        // Hashes are compared: how far a guess agrees with the hash tells nothing of the token.
        link.peer_key() == Some(serving.peer_key)
            && matches!(&hello, Ok(Control::Hello { token }) if token.hash() == serving.token_hash)
    });
    match serving {
        Some(serving) => Some((serving, link, ControlStream { sender, receiver })),
        None => {
            tracing::debug!("a session was refused");
            link.close(Code::Refused);
            None
        }
    }
}
