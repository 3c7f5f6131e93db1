//! The admin socket: what this site's own users ask, in thin handlers over the driver.

mod contracts;
mod peers;
mod usage;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use certs::Identity;
use hypervisor::Instance;
use model::{
    Bytes, HostName, Monitoring, OperationId, PeerName, PowerState, Resources, VmId, VmName,
};
use monitoring::block::Reading;
use monitoring::query::Cell;
use monitoring::seal::OpeningKey;
use proto::admin as api;
use proto::admin::admin_server::{Admin as AdminApi, AdminServer};
use protocol::{
    Action, Answer, Ask, Event, JourneyResult, Mode, NextMove, Progress, Reply, Site, VmView,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use crate::config::Config;
use crate::driver::{Driver, new_operation};
use crate::folder::Folder;
use crate::hands::{Hands, report};
use crate::journal::{EventLine, operation_subject, vm_subject};
use crate::library;
use crate::link::Links;
use crate::monitor::{Asked, Monitor, Shown, condition, opening_key, unvouch};
use crate::peers::Peers;

/// How long an eviction is tried before the VM is parked, if nothing is said.
const EVICT_LIFE: Duration = Duration::from_secs(600);
/// How often a watched operation is looked at for its transfer's progress.
const WATCH: Duration = Duration::from_millis(250);
/// How many values of each measure are shown at first, at most.
const MAX_KPI_VALUES: u32 = 10_000;
/// How often a followed console is looked at.
const CONSOLE_LOOK: Duration = Duration::from_millis(100);

/// Answers users.
pub(crate) struct Admin {
    pub(crate) folder: Folder,
    pub(crate) config: Config,
    pub(crate) identity: Arc<Identity>,
    pub(crate) peers: Peers,
    pub(crate) driver: Driver,
    pub(crate) hands: Hands,
    pub(crate) links: Links,
    pub(crate) monitor: Monitor,
    pub(crate) control: String,
    pub(crate) proxy: String,
}

/// Makes the socket, for the owner alone. The lock on the folder says that an old one is stale.
pub(crate) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves users until `stop` ends.
pub(crate) async fn serve(
    admin: Admin,
    listener: UnixListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::result::Result<(), tonic::transport::Error> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .build_v1()
        .expect("the committed descriptors are sound");
    // What tools of before the first version ask.
    let old_reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .build_v1alpha()
        .expect("the committed descriptors are sound");
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AdminServer<Admin>>().await;
    tonic::transport::Server::builder()
        .add_service(AdminServer::new(admin))
        .add_service(reflection)
        .add_service(old_reflection)
        .add_service(health_service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
}

type Result<T> = std::result::Result<Response<T>, Status>;

fn ok<T>(value: T) -> Result<T> {
    Ok(Response::new(value))
}

fn bad(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn broken(error: &dyn std::error::Error) -> Status {
    Status::internal(report(error))
}

fn down(ended: crate::driver::Ended) -> Status {
    Status::unavailable(ended.to_string())
}

impl Admin {
    async fn site<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Site) -> T + Send + 'static,
    ) -> std::result::Result<T, Status> {
        self.driver.visit(move |core| look(&core.site)).await.map_err(down)
    }

    async fn ask(&self, wish: Ask) -> std::result::Result<Reply, Status> {
        match self.driver.ask(wish).await.map_err(down)? {
            Reply::NotFound(text) => Err(Status::not_found(text)),
            Reply::Conflict(text) => Err(Status::aborted(text)),
            Reply::Unavailable(text) => {
                Err(Status::unavailable(format!("a site on the way does not answer: {text}")))
            }
            reply => Ok(reply),
        }
    }

    /// The VM that a user means: by name, by id, or by the beginning of its id.
    async fn find(&self, text: &str) -> std::result::Result<VmId, Status> {
        let text = text.to_owned();
        let found = self.site(move |site| {
            let exact = text.parse().ok().filter(|id| site.vm(*id).is_some());
            if let Some(id) = exact {
                return (text, vec![id]);
            }
            // Peers wait for this look.
            let all: Vec<VmView> = site.vms().collect();
            let hits = |keep: &dyn Fn(&VmView) -> bool| -> Vec<VmId> {
                all.iter().filter(|vm| keep(vm)).map(|vm| vm.vm).collect()
            };
            let named = hits(&|vm| vm.descriptor.name.as_str() == text && !vm.destroyed);
            let begun = hits(&|vm| text.len() >= 4 && vm.vm.to_string().starts_with(&text));
            let found = [named, begun].into_iter().find(|hits| !hits.is_empty());
            (text, found.unwrap_or_default())
        });
        match found.await? {
            (_, hits) if hits.len() == 1 => Ok(hits[0]),
            (text, hits) if hits.is_empty() => Err(Status::not_found(format!(
                "there is no VM {text}; `sojourn vm list` shows all"
            ))),
            (text, hits) => {
                let ids: Vec<String> = hits.iter().map(ToString::to_string).collect();
                Err(bad(format!("{text} could be any of {}; give more of the id", ids.join(", "))))
            }
        }
    }

    async fn vm(&self, id: VmId) -> std::result::Result<api::Vm, Status> {
        let view = self.site(move |site| site.vm(id)).await?;
        let view = view.ok_or_else(|| Status::not_found(format!("there is no VM {id}")))?;
        let mut vm = vm_message(&view);
        // What runs further on is asked there; a site that does not answer is not waited for long.
        if view.delegate.is_some() && !view.destroyed {
            let asked = self.driver.ask(Ask::Control(id, Action::Show));
            vm.state = match tokio::time::timeout(Duration::from_secs(5), asked).await {
                Ok(Ok(Reply::Answer(answer))) => match *answer {
                    Answer::State { power, parked: None, .. } => power.to_string(),
                    Answer::State { parked: Some(_), .. } => "parked".to_owned(),
                    Answer::Failed { .. } | Answer::Conflict { .. } => "moving".to_owned(),
                    _ => "unknown".to_owned(),
                },
                _ => "unknown".to_owned(),
            };
        }
        Ok(vm)
    }

    async fn operation(
        &self,
        id: OperationId,
        with_log: bool,
    ) -> std::result::Result<api::Operation, Status> {
        let found = self.driver.visit(move |core| {
            let progress = core.site.operation(id)?;
            let log = if with_log { core.events(&operation_subject(id)) } else { Ok(vec![]) };
            Some((progress, log))
        });
        let found = found.await.map_err(down)?;
        let (progress, log) =
            found.ok_or_else(|| Status::not_found(format!("there is no operation {id}")))?;
        let mut message = operation_message(&progress);
        message.log = log.map_err(|e| broken(&e))?.into_iter().map(event_message).collect();
        if let Some(chosen) = &progress.journey.chosen
            && let Some(now) = self.hands.progress(chosen.migration)
        {
            (message.bytes_done, message.bytes_total) = (now.done.0, now.total.0);
            message.bytes_second = now.rate.unwrap_or_default().0;
            message.seconds_left = now.left().map(|left| left.as_secs());
        }
        Ok(message)
    }

    async fn host_messages(&self) -> std::result::Result<Vec<api::Host>, Status> {
        self.site(|site| {
            let one = |(name, host): (&HostName, &protocol::Host)| {
                let used = site.state.used(name);
                let on_it = |vm: &&protocol::Vm| vm.stay.as_ref().is_some_and(|s| s.host == *name);
                api::Host {
                    name: name.to_string(),
                    cpus: host.capacity.cpus,
                    memory_bytes: host.capacity.memory.0,
                    cpus_used: used.cpus,
                    memory_used_bytes: used.memory.0,
                    draining: host.draining,
                    profile: String::new(),
                    vms: u32::try_from(site.state.vms.values().filter(on_it).count())
                        .unwrap_or(u32::MAX),
                }
            };
            site.state.hosts.iter().map(one).collect()
        })
        .await
    }

    async fn began(&self, wish: Ask, id: OperationId) -> Result<api::Operation> {
        self.ask(wish).await?;
        ok(self.operation(id, false).await?)
    }
}

#[tonic::async_trait]
impl AdminApi for Admin {
    async fn get_site(&self, _: Request<api::Nothing>) -> Result<api::Site> {
        let key = self.identity.site_key();
        let journal = self.driver.visit(|core| core.journal.len()).await.map_err(down)?;
        let written = std::fs::read_to_string(self.folder.config_file()).unwrap_or_default();
        let set: toml::Table = written.parse().unwrap_or_default();
        let mut settings = Vec::new();
        let all = toml::Table::try_from(&self.config).expect("a configuration is plain data");
        flatten("", &all, &set, &mut settings);
        ok(api::Site {
            name: self.config.name.to_string(),
            key: key.to_string(),
            fingerprint: key.fingerprint(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control_address: self.control.clone(),
            proxy_address: self.proxy.clone(),
            hypervisor: format!("{:?}", self.config.hypervisor.driver).to_lowercase(),
            journal,
            settings,
        })
    }

    async fn invite(&self, r: Request<api::InviteRequest>) -> Result<api::Invitation> {
        self.invite_peer(r.into_inner()).await
    }

    async fn join(&self, r: Request<api::JoinTicket>) -> Result<api::Peer> {
        self.join_peer(r.into_inner()).await
    }

    async fn list_peers(&self, _: Request<api::Nothing>) -> Result<api::Peers> {
        self.peer_messages().await
    }

    async fn set_peer(&self, r: Request<api::SetPeerRequest>) -> Result<api::Peer> {
        self.change_peering(r.into_inner()).await
    }

    async fn remove_peer(&self, r: Request<api::RemovePeerRequest>) -> Result<api::Operations> {
        self.end_peering(r.into_inner()).await
    }

    async fn list_hosts(&self, _: Request<api::Nothing>) -> Result<api::Hosts> {
        ok(api::Hosts { hosts: self.host_messages().await? })
    }

    async fn add_host(&self, r: Request<api::AddHostRequest>) -> Result<api::Host> {
        let ask = r.into_inner();
        let name: HostName = ask.name.parse().map_err(bad)?;
        if name.as_str() == protocol::LIBRARY {
            return Err(bad("the name library is taken by the place that only stores VMs"));
        }
        if ask.cpus == 0 || ask.memory_bytes < (16 << 20) {
            return Err(bad("a host has at least 1 processor and 16 MiB of memory for VMs"));
        }
        let opened = self.hands.open_host(&name).await;
        let profile = opened.map_err(|e| Status::failed_precondition(report(&e)))?;
        let described = format!(
            "{} {}, {}, {}",
            profile.hypervisor, profile.version, profile.machine, profile.accelerator
        );
        let capacity = Resources { cpus: ask.cpus, memory: Bytes(ask.memory_bytes) };
        self.driver.event(Event::Profile(name.clone(), profile)).await;
        self.ask(Ask::AddHost(name.clone(), capacity)).await?;
        let hosts = self.host_messages().await?;
        let host = hosts.into_iter().find(|host| host.name == name.as_str());
        let host = host.ok_or_else(|| Status::internal("the host is gone"))?;
        ok(api::Host { profile: described, ..host })
    }

    async fn drain_host(&self, r: Request<api::DrainHostRequest>) -> Result<api::Operations> {
        let ask = r.into_inner();
        let name: HostName = ask.name.parse().map_err(bad)?;
        let Reply::BeganMany(ids) = self.ask(Ask::DrainHost(name, !ask.undo)).await? else {
            return Err(Status::internal("an unexpected reply"));
        };
        let mut operations = Vec::new();
        for id in ids {
            operations.push(self.operation(id, false).await?);
        }
        ok(api::Operations { operations })
    }

    async fn remove_host(&self, r: Request<api::Name>) -> Result<api::Nothing> {
        let name: HostName = r.into_inner().name.parse().map_err(bad)?;
        self.ask(Ask::RemoveHost(name.clone())).await?;
        self.hands.close_host(&name);
        ok(api::Nothing {})
    }

    async fn import_vm(&self, r: Request<api::ImportRequest>) -> Result<api::Vm> {
        let ask = r.into_inner();
        let name: Option<VmName> = match ask.name.as_str() {
            "" => None,
            name => Some(name.parse().map_err(bad)?),
        };
        let path = PathBuf::from(ask.path);
        if !path.is_absolute() {
            return Err(bad("the package's path must be absolute"));
        }
        let folder = self.folder.clone();
        let importing =
            tokio::task::spawn_blocking(move || library::import(&folder, &path, name.as_ref()));
        let staged = importing.await.map_err(|e| broken(&e))?;
        let staged = staged.map_err(|e| Status::failed_precondition(report(&e)))?;
        let name = staged.descriptor.name.clone();
        let taken = self.site(move |site| {
            site.vms().any(|vm| vm.primary && !vm.destroyed && vm.descriptor.name == name)
        });
        let (descriptor, k0) = (staged.descriptor, staged.k0);
        let public = k0.public();
        if taken.await? {
            let stay = self.folder.stay(&protocol::library(), VmId::of(&public), model::Epoch(0));
            let _ = std::fs::remove_dir_all(stay);
            let text =
                format!("a VM {} exists already; choose another name with --name", descriptor.name);
            return Err(Status::already_exists(text));
        }
        self.driver.visit(move |core| core.add_key(k0)).await.map_err(down)?;
        let Reply::Imported(id) = self.ask(Ask::Import { descriptor, k0: public }).await? else {
            return Err(Status::internal("an unexpected reply"));
        };
        ok(api::Vm { warnings: staged.warnings, ..self.vm(id).await? })
    }

    async fn export_vm(&self, r: Request<api::ExportRequest>) -> Result<api::Nothing> {
        let ask = r.into_inner();
        let id = self.find(&ask.vm).await?;
        let path = PathBuf::from(ask.path);
        if !path.is_absolute() {
            return Err(bad("the package's path must be absolute"));
        }
        let stay = self.driver.visit(move |core| {
            let vm = core.site.state.vms.get(&id)?;
            let k0 = vm.up.is_none().then(|| core.key(&vm.chain.k0));
            let mut descriptor = vm.descriptor.clone();
            unvouch(&mut descriptor.monitoring, k0.as_ref());
            Some((descriptor, vm.stay.clone()?))
        });
        let text = "this site does not have the VM's files now; bring it home first";
        let (descriptor, stay) =
            stay.await.map_err(down)?.ok_or_else(|| Status::failed_precondition(text))?;
        if stay.power != PowerState::Defined || stay.starting {
            return Err(Status::failed_precondition(format!(
                "the VM is {}; stop it first, so that its disks are whole",
                stay.power
            )));
        }
        let files = self.folder.stay(&stay.host, id, stay.epoch);
        let exporting =
            tokio::task::spawn_blocking(move || library::export(&descriptor, &files, &path));
        exporting.await.map_err(|e| broken(&e))?.map_err(|e| broken(&e))?;
        ok(api::Nothing {})
    }

    async fn list_vms(&self, _: Request<api::Nothing>) -> Result<api::Vms> {
        let ids = self
            .site(|site| site.vms().filter(|vm| !vm.destroyed).map(|vm| vm.vm).collect::<Vec<_>>());
        let asked = ids.await?.into_iter().map(|id| self.vm(id));
        let mut vms = Vec::new();
        for vm in futures_in_order(asked).await {
            // One that left meanwhile is no error.
            vms.extend(vm.ok());
        }
        vms.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        ok(api::Vms { vms })
    }

    async fn get_vm(&self, r: Request<api::Name>) -> Result<api::Vm> {
        let id = self.find(&r.into_inner().name).await?;
        ok(self.vm(id).await?)
    }

    async fn list_events(&self, r: Request<api::Name>) -> Result<api::Events> {
        let text = r.into_inner().name;
        // The events of a VM that has left are kept; only its full id finds them.
        let id = match text.parse() {
            Ok(id) => id,
            Err(_) => self.find(&text).await?,
        };
        let lines = self.driver.visit(move |core| core.events(&vm_subject(id)));
        let lines = lines.await.map_err(down)?.map_err(|e| broken(&e))?;
        ok(api::Events { events: lines.into_iter().map(event_message).collect() })
    }

    async fn move_vm(&self, r: Request<api::MoveRequest>) -> Result<api::Operation> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        let peers = ask.peers.iter().map(|name| name.parse::<PeerName>().map_err(bad));
        let operation = new_operation();
        let wish = Ask::Move {
            operation,
            vm,
            peers: peers.collect::<std::result::Result<_, _>>()?,
            local_only: ask.local_only,
            boot: ask.boot,
            mode: if ask.restart { Mode::Restart } else { Mode::Hibernate },
            dry_run: ask.dry_run,
        };
        self.began(wish, operation).await
    }

    async fn evict_vm(&self, r: Request<api::EvictRequest>) -> Result<api::Operation> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        if ask.reason.chars().count() > model::limit::MAX_REASON_CHARS {
            return Err(bad("a reason has at most 400 characters"));
        }
        let within = match ask.deadline_seconds {
            0 => EVICT_LIFE,
            seconds => Duration::from_secs(seconds),
        };
        let operation = new_operation();
        let wish = Ask::Evict { operation, vm, reason: ask.reason, within };
        self.began(wish, operation).await
    }

    async fn control_vm(&self, r: Request<api::ControlRequest>) -> Result<api::Vm> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        let action = match ask.action.as_str() {
            "start" => Action::Start,
            "stop" => Action::Stop,
            "pause" => Action::Pause,
            "resume" => Action::Resume,
            "hibernate" => Action::Hibernate,
            "destroy" => Action::Destroy,
            other => return Err(bad(format!("there is no action {other}"))),
        };
        let Reply::Answer(answer) = self.ask(Ask::Control(vm, action)).await? else {
            return Err(Status::internal("an unexpected reply"));
        };
        match *answer {
            Answer::State { .. } | Answer::Done => ok(self.vm(vm).await?),
            Answer::Failed { reason } => Err(Status::failed_precondition(reason)),
            Answer::Conflict { reason, .. } => Err(Status::aborted(reason)),
            Answer::Refused { reasons } => Err(Status::permission_denied(reasons.join("; "))),
            _ => Err(Status::unavailable("the site that has the VM cannot be asked now")),
        }
    }

    async fn set_vm(&self, r: Request<api::SetRequest>) -> Result<api::Vm> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        let (section, warnings) = ovf::read_monitoring(&ask.monitoring).map_err(bad)?;
        let Reply::Answer(answer) = self.ask(Ask::Monitor(vm, section)).await? else {
            return Err(Status::internal("an unexpected reply"));
        };
        let why = match *answer {
            Answer::State { .. } => {
                return ok(api::Vm { warnings, ..self.vm(vm).await? });
            }
            Answer::Failed { reason } | Answer::Conflict { reason, .. } => reason,
            Answer::Refused { reasons } => reasons.join("; "),
            _ => "it cannot be asked now".to_owned(),
        };
        let text = "the site that has the VM goes on as before";
        Err(Status::aborted(format!("{text}: {why}; repeat the command when that has ended")))
    }

    async fn get_monitoring(&self, r: Request<api::Name>) -> Result<api::Monitoring> {
        let vm = self.find(&r.into_inner().name).await?;
        let section = self.watched(vm).await?.section;
        ok(api::Monitoring { section: ovf::monitoring_text(&section), revision: section.revision })
    }

    async fn adopt_vm(&self, r: Request<api::AdoptRequest>) -> Result<api::Vm> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        let statement = ask.statement;
        if !(10..=model::limit::MAX_REASON_CHARS).contains(&statement.chars().count()) {
            return Err(bad(
                "a statement has 10 to 400 characters; it says how the other side is \
                            known to be fenced, and by whom",
            ));
        }
        self.ask(Ask::Adopt { vm, statement }).await?;
        ok(self.vm(vm).await?)
    }

    async fn reclaim_vm(&self, r: Request<api::ReclaimRequest>) -> Result<api::Vm> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        let at = ask.peer.parse().map_err(bad)?;
        self.ask(Ask::Reclaim { vm, at }).await?;
        ok(self.vm(vm).await?)
    }

    async fn unfence(&self, r: Request<api::UnfenceRequest>) -> Result<api::Nothing> {
        let name = r.into_inner().vm;
        // It may be one that this site knows nothing else of.
        let vm = match name.parse() {
            Ok(id) => Some(id),
            Err(_) if name.is_empty() => None,
            Err(_) => Some(self.find(&name).await?),
        };
        self.ask(Ask::Unfence { vm }).await?;
        ok(api::Nothing {})
    }

    type ConsoleStream =
        Pin<Box<dyn Stream<Item = std::result::Result<api::ConsoleChunk, Status>> + Send>>;

    async fn console(&self, r: Request<api::ConsoleRequest>) -> Result<Self::ConsoleStream> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        let stay = self.site(move |site| site.state.vms.get(&vm)?.stay.clone()).await?;
        let text = "the VM is not at this site; its console is where it runs";
        let stay = stay.ok_or_else(|| Status::failed_precondition(text))?;
        let instance = Instance { vm, epoch: stay.epoch };
        let path = self.hands.console(&stay.host, instance);
        let path = path.ok_or_else(|| Status::failed_precondition("the VM is only stored here"))?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut file = None;
            loop {
                if file.is_none() {
                    file = tokio::fs::File::open(&path).await.ok();
                }
                let mut data = vec![0; 16 << 10];
                let read = match &mut file {
                    Some(file) => file.read(&mut data).await.unwrap_or(0),
                    None => 0,
                };
                data.truncate(read);
                if read > 0 && sender.send(Ok(api::ConsoleChunk { data })).await.is_err() {
                    return;
                }
                if read == 0 {
                    if !ask.follow || sender.is_closed() {
                        return;
                    }
                    tokio::time::sleep(CONSOLE_LOOK).await;
                }
            }
        });
        ok(Box::pin(ReceiverStream::new(receiver)))
    }

    type FollowKpiStream =
        Pin<Box<dyn Stream<Item = std::result::Result<api::KpiUpdate, Status>> + Send>>;

    async fn follow_kpi(&self, r: Request<api::KpiRequest>) -> Result<Self::FollowKpiStream> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        let watched = self.watched(vm).await?;
        let parse = |name: &String| name.parse().map_err(bad);
        let measures = ask.measures.iter().map(parse).collect::<std::result::Result<_, _>>()?;
        let last = usize::try_from(ask.last.clamp(1, MAX_KPI_VALUES)).expect("it is small");
        let asked = Asked { vm, measures, last, is_primary: watched.is_primary };
        let mut news = self.monitor.news();
        let unavailable =
            |error: crate::monitor::LedgerError| Status::unavailable(error.to_string());
        let first = self.monitor.newest(&asked, watched.key.as_ref()).await.map_err(unavailable)?;
        let monitor = self.monitor.clone();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut block = first.last;
            let mut is_first = true;
            let mut next = Ok(first);
            loop {
                let is_new = |shown: &Shown| is_first || !shown.values.is_empty();
                let message = match next {
                    Ok(shown) if is_new(&shown) => Some(Ok(kpi_message(&shown, &watched.section))),
                    Ok(_) => None,
                    Err(error) => Some(Err(unavailable(error))),
                };
                is_first = false;
                if let Some(message) = message
                    && sender.send(message).await.is_err()
                {
                    return;
                }
                if !ask.follow {
                    return;
                }
                next = loop {
                    let after = monitor.after(&asked, block, watched.key.as_ref()).await;
                    match after {
                        Ok(shown) if shown.last == block => {}
                        other => break other,
                    }
                    // Whoever is behind with the news looks as well.
                    let mut is_new = false;
                    while !is_new {
                        tokio::select! {
                            () = sender.closed() => return,
                            of = news.recv() => is_new = of.is_err() || of == Ok(vm),
                        }
                    }
                };
                if let Ok(shown) = &next {
                    block = shown.last;
                }
            }
        });
        ok(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn query_kpi(&self, r: Request<api::KpiQuery>) -> Result<api::KpiTable> {
        let ask = r.into_inner();
        let vm = self.find(&ask.vm).await?;
        let watched = self.watched(vm).await?;
        let table = self.monitor.query(vm, ask.sql, watched.key).await;
        let table = table.map_err(|error| Status::unavailable(error.to_string()))?.map_err(bad)?;
        let row =
            |cells: Vec<Cell>| api::KpiRow { cells: cells.into_iter().map(cell_message).collect() };
        ok(api::KpiTable {
            columns: table.columns,
            rows: table.rows.into_iter().map(row).collect(),
            cut: table.is_cut,
        })
    }

    type ExportUsageStream =
        Pin<Box<dyn Stream<Item = std::result::Result<api::UsageLine, Status>> + Send>>;

    async fn export_usage(&self, r: Request<api::UsageRequest>) -> Result<Self::ExportUsageStream> {
        let lines = self.usage_lines(r.into_inner()).await?;
        ok(Box::pin(tokio_stream::iter(lines.into_iter().map(Ok))))
    }

    async fn list_operations(&self, _: Request<api::Nothing>) -> Result<api::Operations> {
        let all = self.site(|site| site.operations().collect::<Vec<_>>()).await?;
        ok(api::Operations { operations: all.iter().map(operation_message).collect() })
    }

    async fn get_operation(&self, r: Request<api::OperationId>) -> Result<api::Operation> {
        let id = r.into_inner().id.parse().map_err(bad)?;
        ok(self.operation(id, true).await?)
    }

    type WatchOperationStream =
        Pin<Box<dyn Stream<Item = std::result::Result<api::Operation, Status>> + Send>>;

    async fn watch_operation(
        &self,
        r: Request<api::OperationId>,
    ) -> Result<Self::WatchOperationStream> {
        let id: OperationId = r.into_inner().id.parse().map_err(bad)?;
        let first = self.operation(id, true).await?;
        let admin = self.clone_for_watch();
        let mut changes = self.driver.changes();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut last = first.clone();
            if sender.send(Ok(first)).await.is_err() || last.ended {
                return;
            }
            while !sender.is_closed() {
                let _ = tokio::time::timeout(WATCH, changes.recv()).await;
                match admin.operation(id, true).await {
                    Ok(now) => {
                        if now != last {
                            last = now.clone();
                            if sender.send(Ok(now)).await.is_err() || last.ended {
                                return;
                            }
                        }
                    }
                    Err(status) => {
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                }
            }
        });
        ok(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn cancel_operation(&self, r: Request<api::OperationId>) -> Result<api::Nothing> {
        let id = r.into_inner().id.parse().map_err(bad)?;
        self.ask(Ask::Cancel(id)).await?;
        ok(api::Nothing {})
    }

    async fn list_offers(&self, _: Request<api::Nothing>) -> Result<api::Offers> {
        let offers = self.site(|site| {
            site.offers()
                .map(|offer| api::Offer {
                    vm: offer.vm.to_string(),
                    asker: offer.asker.map_or("this site".to_owned(), |peer| peer.to_string()),
                    at: offer.at,
                    expires_unix_ms: offer.terms.expires.0,
                    price_milli: offer.terms.price_milli,
                })
                .collect()
        });
        ok(api::Offers { offers: offers.await? })
    }

    async fn list_contracts(&self, _: Request<api::Nothing>) -> Result<api::Contracts> {
        ok(api::Contracts { contracts: self.contracts().await? })
    }

    async fn list_violations(&self, r: Request<api::ViolationsRequest>) -> Result<api::Violations> {
        let vm = match r.into_inner().vm.as_str() {
            "" => None,
            text => Some(self.accounted(text).await?),
        };
        ok(api::Violations { violations: self.violations(vm).await? })
    }
}

/// A VM whose values are shown.
struct Watched {
    section: Monitoring,
    is_primary: bool,
    /// What opens sealed values, at the primary.
    key: Option<OpeningKey>,
}

impl Admin {
    /// What is measured of a VM, as this site knows it.
    async fn watched(&self, vm: VmId) -> std::result::Result<Watched, Status> {
        let found = self.driver.visit(move |core| {
            let entry = core.site.state.vms.get(&vm)?;
            let is_primary = entry.up.is_none();
            let key = is_primary.then(|| opening_key(&core.key(&entry.chain.k0)));
            Some(Watched { section: entry.descriptor.monitoring.clone(), is_primary, key })
        });
        let text = "this site does not stand on the VM's path; ask a site that does";
        found.await.map_err(down)?.ok_or_else(|| Status::failed_precondition(text))
    }

    /// The parts that a watch needs after the call has returned.
    fn clone_for_watch(&self) -> Self {
        Self {
            folder: self.folder.clone(),
            config: self.config.clone(),
            identity: self.identity.clone(),
            peers: self.peers.clone(),
            driver: self.driver.clone(),
            hands: self.hands.clone(),
            links: self.links.clone(),
            monitor: self.monitor.clone(),
            control: self.control.clone(),
            proxy: self.proxy.clone(),
        }
    }
}

/// Waits for all, started together.
async fn futures_in_order<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = all.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, done) in &mut waiting {
            if done.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    waiting.into_iter().filter_map(|(_, done)| done).collect()
}

fn flatten(prefix: &str, all: &toml::Table, set: &toml::Table, out: &mut Vec<api::Setting>) {
    for (key, value) in all {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let written = set.get(key);
        if let toml::Value::Table(inner) = value {
            let empty = toml::Table::new();
            let inner_set = written.and_then(toml::Value::as_table).unwrap_or(&empty);
            flatten(&name, inner, inner_set, out);
        } else {
            let whence = if written.is_some() { crate::config::FILE } else { "default" };
            let value = value.to_string();
            out.push(api::Setting { key: name, value, whence: whence.to_owned() });
        }
    }
}

fn event_message(line: EventLine) -> api::Event {
    let (_, vm) = line.subject.split_once(':').unwrap_or_default();
    api::Event { unix_ms: line.at.0, vm: vm.to_owned(), text: line.text }
}

fn kpi_message(shown: &Shown, section: &Monitoring) -> api::KpiUpdate {
    use api::kpi_value::Value;
    let one = |seen: &monitoring::query::Seen| api::KpiValue {
        epoch: seen.epoch.0,
        number: seen.number,
        at_unix_ms: seen.at.0,
        received_unix_ms: seen.received.0,
        measure: seen.measure.to_string(),
        format: seen.format.to_string(),
        of: seen.of,
        condition: condition(section, seen),
        value: Some(match seen.reading.clone() {
            Reading::Integer(number) => Value::Integer(number),
            Reading::Number(number) => Value::NumberValue(number),
            Reading::Text(text) => Value::Text(text),
            Reading::Content(content) => Value::Content(content),
        }),
    };
    let standing = api::KpiStanding {
        values: shown.standing.values,
        missing: shown.standing.missing,
        dropped: shown.standing.dropped,
        owed: shown.standing.owed,
        sealed: shown.sealed,
    };
    api::KpiUpdate { values: shown.values.iter().map(one).collect(), standing: Some(standing) }
}

fn cell_message(cell: Cell) -> api::KpiCell {
    use api::kpi_cell::Value;
    let value = match cell {
        Cell::Null => None,
        Cell::Integer(number) => Some(Value::Integer(number)),
        Cell::Real(number) => Some(Value::Number(number)),
        Cell::Text(text) => Some(Value::Text(text)),
        Cell::Blob(bytes) => Some(Value::Content(bytes)),
    };
    api::KpiCell { value }
}

fn vm_message(view: &VmView) -> api::Vm {
    let state = match (&view.here, &view.parked) {
        _ if view.destroyed => "destroyed".to_owned(),
        (_, Some(_)) => "parked".to_owned(),
        (Some((_, power)), None) => power.to_string(),
        (None, None) if view.delegate.is_none() => "moving".to_owned(),
        (None, None) => "unknown".to_owned(),
    };
    let place = match (&view.here, &view.delegate) {
        (Some((host, _)), _) if host.as_str() == protocol::LIBRARY => "library",
        (Some(_), _) => "here",
        (None, Some(_)) => "delegated",
        (None, None) => "on its way",
    };
    api::Vm {
        id: view.vm.to_string(),
        name: view.descriptor.name.to_string(),
        state,
        epoch: view.epoch.0,
        place: place.to_owned(),
        host: view.here.as_ref().map(|(host, _)| host.to_string()).unwrap_or_default(),
        delegator: view.delegator.as_ref().map(ToString::to_string).unwrap_or_default(),
        delegate: view.delegate.as_ref().map(ToString::to_string).unwrap_or_default(),
        primary: view.primary,
        cpus: view.descriptor.resources.cpus,
        memory_bytes: view.descriptor.resources.memory.0,
        disk_bytes: view.descriptor.disks.iter().map(|disk| disk.capacity.0).collect(),
        parked: view.parked.clone().unwrap_or_default(),
        next: view.next.as_ref().map(next_message),
        warnings: vec![],
    }
}

fn next_message(next: &NextMove) -> api::NextMove {
    let (until, then) = next.until.map_or((0, ""), |(at, then)| (at.0, then));
    api::NextMove {
        migration: next.migration.map(|id| id.to_string()).unwrap_or_default(),
        state: next.state.to_owned(),
        who: next.who.to_owned(),
        until_unix_ms: until,
        then: then.to_owned(),
    }
}

fn operation_message(progress: &Progress) -> api::Operation {
    let journey = &progress.journey;
    let goal = &journey.goal;
    let kind = match (&goal.evict, goal.boot) {
        (Some(_), _) => "evict",
        (None, true) => "place",
        (None, false) => "migrate",
    };
    let (result, details) = match &journey.result {
        None => ("", vec![]),
        Some(JourneyResult::Done) => ("done", vec![]),
        Some(JourneyResult::NoPlace(reasons)) => ("no_place", reasons.clone()),
        Some(JourneyResult::GaveUp(reason)) => ("gave_up", vec![reason.clone()]),
        Some(JourneyResult::PassedUp) => ("passed_up", vec![]),
        Some(JourneyResult::Parked(reason)) => ("parked", vec![reason.clone()]),
        Some(JourneyResult::Cancelled) => ("cancelled", vec![]),
        Some(JourneyResult::Ranking(lines)) => ("ranking", lines.clone()),
    };
    api::Operation {
        id: journey.operation.to_string(),
        vm: journey.vm.to_string(),
        kind: kind.to_owned(),
        phase: if journey.result.is_some() { "ended" } else { progress.phase }.to_owned(),
        ended: journey.result.is_some(),
        result: result.to_owned(),
        details,
        log: vec![],
        migration: journey.chosen.as_ref().map(|c| c.migration.to_string()).unwrap_or_default(),
        bytes_done: 0,
        bytes_total: 0,
        bytes_second: 0,
        seconds_left: None,
    }
}
