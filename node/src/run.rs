//! Starting and stopping a node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use certs::Identity;
use model::ProxyUri;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use transfer_proxy::{Proxy, TransferProxy};

use crate::admin::{self, Admin};
use crate::config::Endpoint;
use crate::driver::{Driver, Start};
use crate::folder::{Folder, FolderError};
use crate::gate::{self, Gate};
use crate::hands::{Hands, report};
use crate::journal::{Journal, JournalError};
use crate::library;
use crate::link::Links;
use crate::metrics::{self, CountedPolicy, Health, Metrics, Page};
use crate::monitor::Monitor;
use crate::peers::Peers;
use crate::proxies::Proxies;

/// Files that are open at most where the system has no bound of its own.
const MANY_FILES: u64 = 1 << 20;
/// Events of transfers that wait for the driver.
const TRANSFER_EVENTS: usize = 256;

/// Why a node does not start. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The site's policies.
    #[error("the site's policies are not sound; `sojourn policy check` shows where")]
    Policy(#[from] policies::Unsound),
    /// The monitoring database.
    #[error(
        "monitoring.db cannot be opened; moved away, a new one is made: values are lost, VMs are \
         not"
    )]
    Monitoring(#[from] monitoring::book::BookError),
    /// An address cannot be listened at.
    #[error("cannot listen at {address} for {what}; is another node or program using it?")]
    Listen {
        /// What for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The transfer proxy does not start.
    #[error("the transfer proxy does not start")]
    Proxy(#[from] transfer_proxy::StartError),
    /// The admin socket cannot be made.
    #[error("cannot listen at the admin socket {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] certs::TlsError),
    /// A host's hypervisor does not answer, so that its guests cannot be known.
    #[error("the hypervisor of host {host} does not answer")]
    Host {
        /// The host.
        host: model::HostName,
        /// Why.
        #[source]
        source: hypervisor::Error,
    },
    /// The driver ended before it was ready.
    #[error("the node ended while it was starting")]
    Ended,
}

/// A node that runs.
pub struct Running {
    /// Where peers reach its control port.
    pub control: String,
    /// Where other proxies reach its own.
    pub proxy: String,
    folder: Folder,
    policy: Arc<CountedPolicy>,
    driver: Driver,
    stop: watch::Sender<bool>,
    driving: JoinHandle<Result<(), JournalError>>,
    doors: Vec<JoinHandle<()>>,
    /// Shows metrics and health, also that the node is shutting down.
    page: Option<JoinHandle<()>>,
    transfer_proxy: Proxy,
    _control_plane: ControlPlane,
    _lock: std::fs::File,
}

/// Runs whatever a peer's request passes: gate, driver and links.
///
/// They share one thread, since a change of threads takes longer than most of what a request needs
/// done. While a commit waits for the disk, another thread takes its place. Guests, files and users
/// are served by the threads of the program.
struct ControlPlane(Option<Runtime>);

impl ControlPlane {
    fn start() -> Self {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        threads.worker_threads(1).thread_name("control").enable_all();
        Self(Some(threads.build().expect("threads can be started")))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("it is taken on drop only")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // A runtime that waited for its threads must not be dropped by a task.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts the node of the site in `folder`. It serves peers and users when this returns.
pub async fn start(folder: Folder) -> Result<Running, StartError> {
    let config = folder.config()?;
    let lock = folder.lock()?;
    raise_open_files();
    let identity = Arc::new(Identity::load(folder.path()).map_err(FolderError::from)?);
    let metrics = Metrics::default();
    let policy = Arc::new(CountedPolicy::new(policies_in(&folder)?, metrics.clone()));
    let mut journal = Journal::open(&folder.journal())?;
    let loaded = journal.load()?;
    library::sweep(&folder, |vm| {
        let mut moves = loaded.state.migrations_of(vm);
        loaded.state.vms.contains_key(&vm) || moves.next().is_some()
    });

    let listen = config.control.listen;
    let listen_error = |source| StartError::Listen { what: "peers (TCP)", address: listen, source };
    let control_plane = ControlPlane::start();
    let threads = control_plane.runtime();
    let listener = threads.spawn(gate::listen(listen)).await.expect("it does not panic");
    let listener = listener.map_err(listen_error)?;
    let control_at = listener.local_addr().map_err(listen_error)?;
    let watched = match &config.metrics {
        None => None,
        Some(watching) => Some(metrics::listen(watching).await.map_err(|source| {
            StartError::Listen { what: "metrics", address: watching.listen, source }
        })?),
    };
    let (transfers, transfer_events) = mpsc::channel(TRANSFER_EVENTS);
    let mut data = proxy_config(&config.proxy, control_at, &identity);
    data.limits.rate = config.transfer.rate.map(|rate| rate.0);
    let shares_tcp = data.shares_tcp;
    let proxy = Proxy::start(data, transfers.clone()).await?;
    let doorstep = shares_tcp.then(|| proxy.doorstep());
    let (proxies, connections) =
        Proxies::new(proxy.clone(), &config.proxies, &identity, &transfers);
    let control = advertised(&config.control, control_at);

    let (driver, inputs) = Driver::channel(metrics);
    let peers = Peers::default();
    peers.load(journal.peers()?, journal.inviting_until()?);
    let links =
        Links::new(identity.clone(), peers.clone(), driver.clone(), threads.handle().clone());
    let monitor = Monitor::open(&folder, &driver, policy.clone())?;
    let hands = Hands::new(
        folder.clone(),
        config.clone(),
        proxies.clone(),
        driver.clone(),
        monitor.clone(),
    );

    let (mut profiles, mut found) = (Vec::new(), Vec::new());
    for host in loaded.state.hosts.keys() {
        let error = |source| StartError::Host { host: host.clone(), source };
        profiles.push((host.clone(), hands.open_host(host).await.map_err(error)?));
        found.extend(hands.found(host).await.map_err(error)?);
    }
    for guest in &found {
        hands.adopt(&guest.host, hypervisor::Instance { vm: guest.vm, epoch: guest.epoch });
    }

    let journal_seen = links.longest_journal_seen(journal.mark(&identity)).await;
    if journal_seen > journal.len() {
        tracing::error!(
            journal = journal.len(),
            journal_seen,
            "ALARM: a peer remembers a longer journal of this site; was an old copy restored? VMs \
             are held until their delegators confirm them"
        );
    }
    let begin = Start {
        config: config.protocol(),
        journal,
        loaded,
        policy: policy.clone(),
        identity: identity.clone(),
        known: peers.clone(),
        proxies: proxies.clone(),
        profiles,
        found,
        journal_seen,
    };
    let (ready, is_ready) = oneshot::channel();
    let (driving, its_hands, its_links) = (driver.clone(), hands.clone(), links.clone());
    let driving = threads
        .spawn(async move { driving.run(begin, inputs, &its_hands, &its_links, ready).await });
    if is_ready.await.is_err() {
        return Err(match driving.await {
            Ok(Err(error)) => error.into(),
            _ => StartError::Ended,
        });
    }

    let (stop, stopping) = watch::channel(false);
    let gate = Gate {
        identity: identity.clone(),
        name: config.name.clone(),
        peers: peers.clone(),
        driver: driver.clone(),
        monitor: monitor.clone(),
    };
    let tls = certs::server_config(&identity, Arc::new(peers.clone()))?;
    let (watching, known) = (config.metrics.clone(), peers.clone());
    let socket = folder.socket();
    let proxy_at = proxy.uri().authority().to_owned();
    let admin = Admin {
        folder: folder.clone(),
        config,
        identity,
        peers,
        driver: driver.clone(),
        hands: hands.clone(),
        links: links.clone(),
        monitor: monitor.clone(),
        control: control.clone(),
        proxy: proxy_at.clone(),
    };
    let admin_listener = admin::listen(&socket)
        .map_err(|source| StartError::Socket { path: socket.clone(), source })?;
    let for_peers = gate::serve(gate, listener, tls, doorstep, stopped(stopping.clone()));
    let peers_door = Arc::new(AtomicBool::new(true));
    let page = watched.zip(watching).map(|(listener, watching)| {
        let health = Health {
            driver: driver.clone(),
            proxies,
            hands: hands.clone(),
            monitor: monitor.clone(),
            peers_door: peers_door.clone(),
            stopping: stopping.clone(),
        };
        tokio::spawn(Page::new(&watching, known, health).serve(listener))
    });
    let mut doors = vec![
        threads.spawn(async move {
            door("peers", for_peers).await;
            peers_door.store(false, Ordering::Relaxed);
        }),
        tokio::spawn(door("users", admin::serve(admin, admin_listener, stopped(stopping)))),
        tokio::spawn(hands.clone().relay_transfers(transfer_events)),
        tokio::spawn(hands.clone().look_after_guests()),
        tokio::spawn(monitor.run(links, hands)),
    ];
    // The machine has given every order again that is still open.
    doors.extend(connections.into_iter().map(|connection| tokio::spawn(connection.run())));
    Ok(Running {
        control,
        proxy: proxy_at,
        folder,
        policy,
        driver,
        stop,
        driving,
        doors,
        page,
        transfer_proxy: proxy,
        _control_plane: control_plane,
        _lock: lock,
    })
}

impl Running {
    /// Waits until the node ends by itself, which it does only when its journal fails.
    pub async fn failed(&mut self) -> Option<JournalError> {
        match (&mut self.driving).await {
            Ok(Err(error)) => Some(error),
            _ => None,
        }
    }

    /// Reads the site's policies again, and takes them up whole; or, if anything is wrong with one
    /// of them, tells what in the log and leaves all as they are.
    pub async fn reload_policies(&self) {
        let folder = self.folder.clone();
        // Checking takes a while, and much longer where a rule does not end.
        let read = tokio::task::spawn_blocking(move || policies_in(&folder)).await;
        match read {
            Ok(Ok(engine)) => {
                self.policy.replace(engine);
                tracing::info!("the policies were read again, and are in force");
            }
            Ok(Err(policies::Unsound(errors))) => {
                for error in &errors {
                    tracing::error!(error = error.in_full(), "a policy is not sound");
                }
                tracing::error!(
                    "the policies were not taken up, and the ones before stay in force; \
                     `sojourn policy check` shows what is wrong"
                );
            }
            Err(error) => {
                tracing::error!(%error, "the policies were not taken up: they could not be read");
            }
        }
    }

    /// Ends the node. Guests go on; transfers go on after the next start.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.driver.stop().await;
        for door in &self.doors {
            door.abort();
        }
        self.transfer_proxy.shut_down().await;
        let _ = self.driving.await;
        self.page.inspect(|page| page.abort());
        let _ = std::fs::remove_file(self.folder.socket());
    }
}

/// Lets this process have as many files and sockets open as the system would: many systems begin
/// with a thousand, and let programs have more.
fn raise_open_files() {
    let files = getrlimit(Resource::Nofile);
    let most = files.maximum.unwrap_or(MANY_FILES);
    if files.current.is_some_and(|now| now < most)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..files })
    {
        tracing::warn!(%error, "the number of open files cannot be raised");
    }
}

/// The policies of a site: its own, and the defaults for the rest.
fn policies_in(folder: &Folder) -> Result<policies::Engine, policies::Unsound> {
    match folder.policies().exists() {
        true => policies::Engine::load(&folder.policies()),
        false => Ok(policies::Engine::defaults()),
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn door(
    what: &'static str,
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
) {
    if let Err(error) = serving.await {
        tracing::error!(error = report(&error), "the door for {what} has closed");
    }
}

/// One port number for TCP and UDP, where the operator names none.
fn proxy_config(
    endpoint: &Endpoint,
    control: SocketAddr,
    identity: &Identity,
) -> transfer_proxy::Config {
    let mut listen = endpoint.listen;
    if listen.port() == 0 {
        listen.set_port(control.port());
    }
    let advertise = endpoint.advertise.as_deref();
    let advertise = advertise.and_then(|text| ProxyUri::configured(text).ok());
    transfer_proxy::Config {
        listen,
        // One TCP port is enough for both: what a caller asks for first tells whom it wants.
        shares_tcp: listen.port() == control.port(),
        advertise,
        limits: transfer_proxy::Limits::default(),
        reset: transfer_proxy::ResetKey::of(identity),
    }
}

fn advertised(endpoint: &Endpoint, bound: SocketAddr) -> String {
    endpoint.advertise.clone().unwrap_or_else(|| bound.to_string())
}
