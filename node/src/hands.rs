//! The hands: carries out what the machine wants of hypervisors, transfer proxies and the disk,
//! and tells it what came of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hypervisor::{Hypervisor, Instance, Launch, Qemu, QemuConfig, Simulated};
use model::decision::Granted;
use model::{
    Bytes, Epoch, FileId, HostName, MigrationId, PeerName, PowerState, PublicKey, RunProfile,
    SecretKey, TransferEnd, VmId,
};
use monitoring::sample::{self, Sample};
use protocol::{Command, Event, Found, GuestEvent, Told, TransferEvent};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use transfer_proxy::{Dial, End, Group, Pull, Relay, Serve, Share};

use crate::config::{self, Config, TransferConfig};
use crate::driver::Driver;
use crate::folder::Folder;
use crate::lock;
use crate::metrics::role;
use crate::monitor::Monitor;
use crate::proxies::Proxies;

/// How often guests are looked after that may have ended by themselves.
const LOOK: Duration = Duration::from_secs(2);
/// How often a transfer is looked at until its first bytes arrive.
const FIRST_BYTES_LOOK: Duration = Duration::from_millis(50);

/// A site's hands. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hands(Arc<Shared>);

struct Shared {
    folder: Folder,
    config: Config,
    proxies: Proxies,
    driver: Driver,
    monitor: Monitor,
    runtime: Handle,
    hosts: Mutex<HashMap<HostName, Arc<dyn Hypervisor>>>,
    /// One worker per guest, so that its commands are carried out in order.
    guests: Mutex<HashMap<(HostName, Instance), mpsc::UnboundedSender<Order>>>,
}

/// What a guest's worker is told.
enum Order {
    Do(Command),
    /// Look whether it still exists.
    Look,
}

impl Hands {
    pub(crate) fn new(
        folder: Folder,
        config: Config,
        proxies: Proxies,
        driver: Driver,
        monitor: Monitor,
    ) -> Self {
        Self(Arc::new(Shared {
            folder,
            config,
            proxies,
            driver,
            monitor,
            runtime: Handle::current(),
            hosts: Mutex::default(),
            guests: Mutex::default(),
        }))
    }

    /// Opens a host, and tells what its saved states depend on.
    pub(crate) async fn open_host(&self, host: &HostName) -> Result<RunProfile, hypervisor::Error> {
        let runtime = self.0.folder.host(host).join("run");
        let config = &self.0.config.hypervisor;
        let opened: Arc<dyn Hypervisor> = match config.driver {
            config::Driver::Simulated => Arc::new(Simulated::new(runtime)?),
            config::Driver::Qemu => Arc::new(Qemu::new(QemuConfig {
                runtime,
                binary: config.binary.clone(),
                accelerator: config.accelerator,
                user: config.user.clone(),
                networks: config.networks.clone(),
            })?),
        };
        let profile = opened.profile().await?;
        lock(&self.0.hosts).insert(host.clone(), opened);
        Ok(profile)
    }

    /// Forgets a host.
    pub(crate) fn close_host(&self, host: &HostName) {
        lock(&self.0.hosts).remove(host);
    }

    /// Every guest process of a host, and every saved run state of a guest that has none.
    pub(crate) async fn found(&self, host: &HostName) -> Result<Vec<Found>, hypervisor::Error> {
        let opened = self.host(host).expect("only opened hosts are asked");
        let guests = opened.list().await?;
        let mut found: Vec<_> = guests.iter().map(|guest| (guest.instance, guest.state)).collect();
        for instance in self.0.folder.saved(host) {
            if guests.iter().all(|guest| guest.instance != instance) {
                found.push((instance, PowerState::Suspended));
            }
        }
        let found = found.into_iter().map(|(instance, power)| {
            let Instance { vm, epoch } = instance;
            Found { host: host.clone(), vm, epoch, power }
        });
        Ok(found.collect())
    }

    /// The file with a guest's console output.
    pub(crate) fn console(&self, host: &HostName, instance: Instance) -> Option<PathBuf> {
        self.host(host).map(|host| host.console(instance))
    }

    /// What a guest has used; none if it does not exist.
    pub(crate) async fn measure(
        &self,
        host: &HostName,
        instance: Instance,
    ) -> Result<Option<Sample>, hypervisor::Error> {
        let Some(opened) = self.host(host) else { return Ok(None) };
        let begun = Instant::now();
        let measured = opened.measure(instance).await?;
        if measured.is_some() {
            self.0.driver.metrics().measured(begun.elapsed());
        }
        Ok(measured.as_ref().map(sample))
    }

    /// What is wrong with hosts, each by its name: its hypervisor does not answer, or the folder
    /// where that keeps its guests is gone.
    pub(crate) async fn trouble_of_hosts(&self) -> Vec<String> {
        let hosts: Vec<_> = lock(&self.0.hosts).clone().into_iter().collect();
        let mut trouble = Vec::new();
        for (host, opened) in hosts {
            let runtime = self.0.folder.host(&host).join("run");
            let wrong = match opened.profile().await {
                Err(error) => Some(report(&error)),
                Ok(_) => match tokio::fs::read_dir(&runtime).await {
                    Err(error) => Some(format!("{}: {error}", runtime.display())),
                    Ok(_) => None,
                },
            };
            trouble.extend(wrong.map(|why| format!("{host}: {why}")));
        }
        trouble
    }

    /// Counts what has crossed the network by now for the transfers that are open.
    ///
    /// Per role, the bytes that all that are open have left, and those that they move a second.
    pub(crate) fn count_transfers(&self) -> [(&'static str, Bytes, Bytes); 2] {
        let mut sums = [End::Source, End::Target].map(|end| (role(end), Bytes(0), Bytes(0)));
        for (migration, end) in self.0.driver.metrics().transfers() {
            self.count_transfer(migration, end);
            let Some(now) = self.0.proxies.progress_of(migration, end) else { continue };
            let sum = sums.iter_mut().find(|(name, ..)| *name == role(end));
            let (_, left, rate) = sum.expect("there is one for each end");
            left.0 += now.total.0.saturating_sub(now.done.0);
            rate.0 += now.rate.unwrap_or_default().0;
        }
        sums
    }

    fn count_transfer(&self, migration: MigrationId, end: End) {
        let metrics = self.0.driver.metrics();
        match self.0.proxies.wire(migration, end) {
            Some(wire) => metrics.transferred(migration, end, wire),
            // An order that waited for its proxy in vain is not known any more.
            None => metrics.transfer_is_closed(migration, end),
        }
    }

    /// The host's end of a guest's KPI port; none if it has none.
    pub(crate) async fn kpi_port(
        &self,
        host: &HostName,
        instance: Instance,
    ) -> Result<Option<UnixStream>, hypervisor::Error> {
        let Some(opened) = self.host(host) else { return Ok(None) };
        opened.kpi_port(instance).await
    }

    /// How far a transfer is: bytes done and in all.
    pub(crate) fn progress(&self, migration: MigrationId) -> Option<transfer_proxy::Progress> {
        self.0.proxies.progress(migration)
    }

    fn host(&self, host: &HostName) -> Option<Arc<dyn Hypervisor>> {
        lock(&self.0.hosts).get(host).cloned()
    }

    /// Ends a guest that is not this site's, before anything else happens.
    pub(crate) async fn end_stranger(&self, command: &Command) {
        let Command::Kill(host, vm, epoch) = command else { return };
        let Some(opened) = self.host(host) else { return };
        let instance = Instance { vm: *vm, epoch: *epoch };
        if let Err(error) = opened.kill(instance).await {
            tracing::error!(%instance, error = report(&error), "cannot end a guest that is not ours");
        }
    }

    /// Begins to carry out a command; what comes of it is told to the driver. One about a transfer
    /// goes to the proxy of the host that has the files of this end.
    pub(crate) fn carry_out(
        &self,
        command: Command,
        about: &About,
        key: impl Fn(&PublicKey) -> SecretKey,
    ) {
        if let Some((host, vm, epoch)) = command.guest() {
            let at = (host.clone(), Instance { vm, epoch });
            return self.order(at, Order::Do(command));
        }
        let proxy = self.0.proxies.of(&about.host);
        let carrier = self.0.config.transfer.carrier.or(about.granted.carrier);
        let share = about.share(&self.0.config.transfer);
        match command {
            Command::Serve { migration, vm, token, hint, key: public, peer_key, dial } => {
                let serve = Serve {
                    migration,
                    vm,
                    token_hash: token,
                    hint,
                    key: key(&public),
                    peer_key,
                    byte_budget: about.budget,
                    dial: dial.map(|end| dial_of(*end)),
                    share,
                };
                match proxy.serve(serve) {
                    Ok(()) => self.0.driver.metrics().transfer_is_open(migration, End::Source),
                    Err(error) => self.transfer_failed(migration, End::Source, report(&error)),
                }
            }
            Command::Provide { migration, host, vm, epoch, files } => {
                let folder = self.0.folder.stay(&host, vm, epoch);
                let history = folder.join(FileId::HISTORY.file_name());
                let paths = files.into_iter().map(|file| (file, folder.join(file.file_name())));
                let paths = paths.collect();
                let hands = self.clone();
                self.0.runtime.spawn(async move {
                    // The last of the VM's files is made now that it is quiet.
                    match hands.0.monitor.pack(Instance { vm, epoch }, &history).await {
                        Ok(()) => hands.0.proxies.of(&host).provide(migration, paths),
                        Err(why) => hands.transfer_failed(migration, End::Source, why),
                    }
                });
            }
            Command::Pull { migration, vm, source, key: public, host, epoch, files, budget } => {
                let folder = self.0.folder.stay(&host, vm, epoch);
                if let Err(error) = self.0.folder.make_stay(&folder) {
                    return self.transfer_failed(migration, End::Target, report(&error));
                }
                let basis = self.older_copies((&host, vm, epoch), &files);
                let pull = Pull {
                    migration,
                    vm,
                    from: source.uri,
                    token: source.token,
                    relay: source.relay,
                    key: key(&public),
                    peer_key: source.transfer_key,
                    folder,
                    budget,
                    expected: files,
                    basis,
                    carrier,
                    share,
                };
                match proxy.pull(pull) {
                    Ok(()) => {
                        self.0.driver.metrics().transfer_is_open(migration, End::Target);
                        self.watch_first_bytes(migration, host);
                    }
                    Err(error) => self.transfer_failed(migration, End::Target, report(&error)),
                }
            }
            Command::Relay { migration, token, hint, key: public, next } => {
                let relay = Relay {
                    migration,
                    token_hash: token,
                    hint,
                    key: key(&public),
                    next: dial_of(*next),
                    carrier,
                    share,
                };
                if let Err(error) = proxy.relay(relay) {
                    // Its ends try again, and give up in the end.
                    tracing::warn!(%migration, error = report(&error), "not passed on");
                }
            }
            Command::EndRelay { migration } => proxy.end_relay(migration),
            Command::Tell { migration, source, told } => {
                let message = postcard::to_allocvec(&told).expect("statements are plain data");
                if let Err(error) = proxy.tell(migration, end(source), message) {
                    // There is no session any more; it goes by the path.
                    tracing::debug!(%migration, error = report(&error), "not told");
                }
            }
            Command::Close { migration, source } => {
                self.count_transfer(migration, end(source));
                self.0.driver.metrics().transfer_is_closed(migration, end(source));
                proxy.close(migration, end(source));
            }
            _ => unreachable!("commands about guests went to their workers"),
        }
    }

    /// Files of earlier stays of a VM that the same proxy reaches: what they hold need not be
    /// fetched. Of those that cannot be read there are none.
    fn older_copies(
        &self,
        (host, vm, epoch): (&HostName, VmId, Epoch),
        files: &[FileId],
    ) -> Vec<(FileId, PathBuf)> {
        let copies = self
            .0
            .folder
            .stays_of(vm)
            .into_iter()
            .filter(|(at, stay)| *stay != epoch && self.0.proxies.share_one(at, host));
        // The newest is the likest.
        let Some((at, stay)) = copies.max_by_key(|(_, epoch)| *epoch) else { return vec![] };
        let folder = self.0.folder.stay(&at, vm, stay);
        let of = |file: &FileId| (*file, folder.join(file.file_name()));
        let disks = files.iter().filter(|file| **file != FileId::HISTORY);
        disks.map(of).filter(|(_, path)| path.is_file()).take(model::limit::MAX_FILES).collect()
    }

    fn transfer_failed(&self, migration: MigrationId, end: End, reason: String) {
        let event = TransferEvent::Failed { source: end == End::Source, reason };
        self.tell_driver(Event::Transfer { migration, event });
    }

    fn tell_driver(&self, event: Event) {
        let driver = self.0.driver.clone();
        self.0.runtime.spawn(async move { driver.event(event).await });
    }

    fn watch_first_bytes(&self, migration: MigrationId, host: HostName) {
        let hands = self.clone();
        self.0.runtime.spawn(async move {
            let progress = || hands.0.proxies.of(&host).progress(migration, End::Target);
            while let Some(progress) = progress() {
                if progress.done.0 > 0 {
                    let event = TransferEvent::Receiving;
                    return hands.0.driver.event(Event::Transfer { migration, event }).await;
                }
                tokio::time::sleep(FIRST_BYTES_LOOK).await;
            }
        });
    }

    /// Passes the proxy's events on, until the proxy ends.
    pub(crate) async fn relay_transfers(self, mut events: mpsc::Receiver<transfer_proxy::Event>) {
        while let Some(event) = events.recv().await {
            if let transfer_proxy::Event::Received { migration, wire, .. } = &event {
                self.0.driver.metrics().transferred(*migration, End::Target, *wire);
                // The first bytes may have come and the last with them, between two looks.
                let (migration, event) = (*migration, TransferEvent::Receiving);
                self.0.driver.event(Event::Transfer { migration, event }).await;
            }
            if let Some((migration, event)) = transfer_event(event) {
                self.0.driver.event(Event::Transfer { migration, event }).await;
            }
        }
    }

    /// Looks after guests that may have ended by themselves, for as long as the node runs.
    pub(crate) async fn look_after_guests(self) {
        let mut every = tokio::time::interval(LOOK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            for worker in lock(&self.0.guests).values() {
                let _ = worker.send(Order::Look);
            }
        }
    }

    /// Tells the worker of an adopted guest that it runs.
    pub(crate) fn adopt(&self, host: &HostName, instance: Instance) {
        self.order((host.clone(), instance), Order::Look);
    }

    fn order(&self, at: (HostName, Instance), order: Order) {
        let mut guests = lock(&self.0.guests);
        let purges = matches!(order, Order::Do(Command::Purge(..)));
        let worker = guests.entry(at.clone()).or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (hands, at) = (self.clone(), at.clone());
            self.0.runtime.spawn(async move { hands.work(at, receiver).await });
            sender
        });
        let _ = worker.send(order);
        if purges {
            guests.remove(&at);
        }
    }

    /// One guest's worker: its commands in order.
    async fn work(
        self,
        (host, instance): (HostName, Instance),
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        let mut exists = false;
        while let Some(order) = orders.recv().await {
            let event = match order {
                Order::Look => match self.host(&host) {
                    Some(opened) => match opened.state(instance).await {
                        Ok(None) if exists => Some(GuestEvent::Ended),
                        Ok(state) => {
                            exists = state.is_some();
                            None
                        }
                        Err(_) => None,
                    },
                    None => None,
                },
                Order::Do(command) => self.guest_command(&host, instance, command).await,
            };
            match &event {
                // A guest that ends before it ran has to be missed as well.
                Some(GuestEvent::Launched(_) | GuestEvent::Resumed | GuestEvent::Paused) => {
                    exists = true;
                }
                Some(GuestEvent::Ended | GuestEvent::Hibernated) => exists = false,
                _ => {}
            }
            if let Some(event) = event {
                let (vm, epoch) = (instance.vm, instance.epoch);
                self.0.driver.event(Event::Guest { vm, epoch, event }).await;
            }
        }
    }

    /// Has a guest taken to account, which need not be waited for while its process lives.
    fn account_soon(&self, instance: Instance) {
        let monitor = self.0.monitor.clone();
        self.0.runtime.spawn(async move { monitor.account(instance, None).await });
    }

    async fn guest_command(
        &self,
        host: &HostName,
        instance: Instance,
        command: Command,
    ) -> Option<GuestEvent> {
        let folder = self.0.folder.stay(host, instance.vm, instance.epoch);
        let state_file = folder.join(FileId::STATE.file_name());
        if let Command::Purge(..) = command {
            if let Some(opened) = self.host(host)
                && let Err(error) = opened.forget(instance).await
            {
                tracing::warn!(%instance, error = report(&error), "cannot forget a guest");
            }
            if let Err(error) = tokio::fs::remove_dir_all(&folder).await
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%instance, error = report(&error), "cannot delete files");
            }
            return None;
        }
        if let Command::DropState(..) = command {
            // A resume that follows does so again, and says why it cannot.
            if let Err(error) = drop_state(&state_file).await {
                tracing::warn!(%instance, %error, "cannot remove a saved run state");
            }
            return None;
        }
        let failed = |error: &dyn std::error::Error| GuestEvent::Failed(report(error));
        let Some(opened) = self.host(host) else {
            let why = format!("host {host} is not there");
            return Some(match command {
                Command::Launch { .. } => GuestEvent::LaunchFailed(why),
                _ => GuestEvent::Failed(why),
            });
        };
        let grace = Duration::from_secs(self.0.config.time.stop_grace_s);
        if matches!(command, Command::ShutDown(..) | Command::Kill(..)) {
            // Once its process has ended nobody can ask it any more.
            self.0.monitor.account(instance, None).await;
        }
        Some(match command {
            Command::Launch { descriptor, state, .. } => {
                let mine = match opened.profile().await {
                    Ok(mine) => mine,
                    Err(error) => return Some(GuestEvent::LaunchFailed(report(&error))),
                };
                let launch = Launch {
                    instance,
                    descriptor,
                    folder,
                    state: state.is_some().then_some(state_file),
                    profile: state.unwrap_or_else(|| mine.clone()),
                };
                match opened.launch(&launch).await {
                    Ok(()) => {
                        self.account_soon(instance);
                        GuestEvent::Launched(mine)
                    }
                    Err(error) => GuestEvent::LaunchFailed(report(&error)),
                }
            }
            // After a crash a saved state that is there counts, so none may be older than the disks.
            Command::Resume(..) => match opened.state(instance).await {
                Ok(Some(PowerState::Active | PowerState::Paused)) => {
                    match drop_state(&state_file).await {
                        Ok(()) => match opened.resume(instance).await {
                            Ok(()) => {
                                self.account_soon(instance);
                                GuestEvent::Resumed
                            }
                            Err(error) => failed(&error),
                        },
                        Err(error) => GuestEvent::Failed(format!(
                            "its saved run state cannot be removed: {error}"
                        )),
                    }
                }
                // Its saved state may be all that there is of it.
                Ok(_) => GuestEvent::Failed("there is no such guest".to_owned()),
                Err(error) => failed(&error),
            },
            Command::Pause(..) => match opened.pause(instance).await {
                Ok(()) => {
                    self.account_soon(instance);
                    GuestEvent::Paused
                }
                Err(error) => failed(&error),
            },
            Command::ShutDown(..) => match opened.shut_down(instance, grace).await {
                Ok(()) => GuestEvent::Ended,
                Err(error) => failed(&error),
            },
            Command::Kill(..) => match opened.kill(instance).await {
                Ok(()) => GuestEvent::Ended,
                Err(error) => failed(&error),
            },
            Command::Hibernate(..) => match opened.hibernate(instance, &state_file).await {
                Ok(used) => {
                    // Before anybody hears that it is quiet, and it moves on.
                    if let Some(used) = used.as_ref().map(sample) {
                        self.0.monitor.account(instance, Some(used)).await;
                    }
                    GuestEvent::Hibernated
                }
                Err(error) => failed(&error),
            },
            _ => return None,
        })
    }
}

/// Removes a saved run state for good: after a power cut, too, it is not there.
async fn drop_state(state: &Path) -> std::io::Result<()> {
    match tokio::fs::remove_file(state).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        removed => removed?,
    }
    let folder = state.parent().expect("a state file lies in its stay's folder");
    tokio::fs::File::open(folder).await?.sync_all().await
}

/// What the hypervisor has counted, for the one who adds it up.
fn sample(measured: &hypervisor::Measured) -> Sample {
    let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    let (read, written) = (measured.disks.read, measured.disks.written);
    let disk = sample::Disk {
        read_bytes: read.bytes.0,
        written_bytes: written.bytes.0,
        reads: read.operations,
        writes: written.operations,
        read_ns: nanos(read.time),
        write_ns: nanos(written.time),
    };
    let network = measured.network.map(|network| sample::Network {
        received_bytes: network.received.bytes.0,
        sent_bytes: network.sent.bytes.0,
        received_packets: network.received.packets,
        sent_packets: network.sent.packets,
    });
    let counted = sample::Counted { cpu_ns: nanos(measured.cpu_time), disk, network };
    Sample {
        process: measured.process,
        counted,
        memory_resident: measured.memory_resident.0,
        memory_balloon: measured.memory_balloon.map(|bytes| bytes.0),
    }
}

/// What there is to know of a command beside itself.
pub(crate) struct About {
    /// The host whose files it is about.
    pub(crate) host: HostName,
    /// Bytes that a Source may send.
    pub(crate) budget: Bytes,
    /// The peer that the transfer is made with.
    pub(crate) peer: Option<PeerName>,
    /// What the peering with it lets all its transfers take, in bytes a second.
    pub(crate) peer_rate: Option<Bytes>,
    /// It is of a VM that must leave by a deadline.
    pub(crate) urgent: bool,
    /// What policy lets it take of the site's links.
    pub(crate) granted: Granted,
}

impl About {
    fn share(&self, config: &TransferConfig) -> Share {
        let group = self.peer.as_ref().map(|peer| {
            let digest = blake3::hash(peer.as_str().as_bytes());
            let first: [u8; 8] = digest.as_bytes()[..8].try_into().expect("8 of 32 bytes");
            Group(u64::from_le_bytes(first))
        });
        let Granted { rate, weight, .. } = self.granted;
        let rate = rate.into_iter().chain(config.migration_rate).min();
        let group_rate = config.peer_rate.into_iter().chain(self.peer_rate).min();
        Share { weight, urgent: self.urgent, rate, group, group_rate }
    }
}

/// A proxy to dial, from what its site said of it.
fn dial_of(end: TransferEnd) -> Dial {
    Dial { uri: end.uri, token: end.token, key: end.relay.unwrap_or(end.transfer_key) }
}

fn end(source: bool) -> End {
    if source { End::Source } else { End::Target }
}

/// What the machine hears of a proxy's event.
fn transfer_event(event: transfer_proxy::Event) -> Option<(MigrationId, TransferEvent)> {
    use transfer_proxy::Event as E;
    Some(match event {
        E::Opened { migration } => (migration, TransferEvent::Opened),
        E::Sent { migration, digest, .. } => (migration, TransferEvent::Sent { digest }),
        E::Received { migration, digest, size, wire, has_state } => {
            (migration, TransferEvent::Received { digest, size, wire, has_state })
        }
        E::Told { migration, end, message } => {
            // The other end is a stranger: what cannot be read was not said.
            let (told, rest): (Told, _) = postcard::take_from_bytes(&message).ok()?;
            if !rest.is_empty() {
                return None;
            }
            (migration, TransferEvent::Told { source: end == End::Source, told })
        }
        E::Closed { migration, end: End::Target } => {
            let reason = "the Source has ended the transfer".to_owned();
            (migration, TransferEvent::Failed { source: false, reason })
        }
        E::Closed { end: End::Source, .. } => return None,
        E::Failed { migration, end, error, final_ } => {
            tracing::warn!(%migration, ?end, error, final_, "transfer trouble");
            if !final_ {
                return None;
            }
            (migration, TransferEvent::Failed { source: end == End::Source, reason: error })
        }
    })
}

/// An error with its causes, on one line.
pub(crate) fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
