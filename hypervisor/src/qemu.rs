//! A host whose guests are QEMU processes, one each, in a session of their own.
//!
//! A guest's runtime folder holds its sockets, its pid file, its console and QEMU's own log:
//!
//! ```text
//! <runtime>/<vm>-<epoch>/  control.sock  one client at a time: what changes the guest
//!                          status.sock   what only asks, so that it never waits for a save; each
//!                                        connection is for one question, milliseconds long
//!                          pid           locked by QEMU for as long as it lives
//!                          kpi           the other end of the guest's port `sojourn.kpi`
//!                          console.log   the guest's serial console
//!                          qemu.log      what QEMU itself complained of
//!                          hibernated    there when the guest was saved completely, and not resumed since
//! ```
//!
//! A process is found by the lock on its pid file, so a number that was reused cannot be mistaken
//! for it. A Unix socket's path may have 107 bytes only; QEMU is started inside the folder and we
//! connect through `/proc/self/fd`, so that the runtime folder may lie as deep as it wants.
//!
//! A saved state goes through a descriptor that we open and hand over, since QEMU's sandbox and its
//! user may open nothing of ours. What a guest may be in, seen from outside:
//!
//! ```text
//!            launch                resume
//!   (none) ---------->  paused  <----------->  active
//!     ^                   |         pause        |
//!     +------ hibernate --+-- kill, shut_down ---+
//! ```

mod host;
mod launch;
pub(crate) mod measure;
mod network;
mod process;
pub mod qmp;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use model::{PowerState, RunProfile};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::socket::{self, KPI};
use crate::user::{self, User};
use crate::{Error, Guest, Hypervisor, Instance, Launch, LeftAs, Measured, files};
use host::Facts;
pub(crate) use host::last_words;
use measure::Told;
use process::Process;
use qmp::{ANSWER_LIMIT, Qmp, QmpError};

/// The machine type of every guest, with its version, so that a newer QEMU makes the same machine.
const MACHINE: &str = "pc-q35-7.2";
/// The layout of the devices around the machine, as far as a saved state needs it; one more with
/// each change, so that an older state is refused in words before QEMU fails to load it.
/// 1 (written as nothing): disks and cards; 2: the KPI port and the balloon as well; 3: a card that
/// leads nowhere has no network of its own, whose state was saved too.
const LAYOUT: u32 = 3;
/// The CPU model of every guest: the oldest that has x86-64-v2, complete under TCG and under KVM.
const CPU: &str = "Nehalem-v1";

const CONTROL: &str = "control.sock";
const STATUS: &str = "status.sock";
const CONSOLE: &str = "console.log";
const LOG: &str = "qemu.log";
const PID: &str = "pid";
const HIBERNATED: &str = "hibernated";

/// How often a guest is asked to power off while it is given grace. One that has just begun to
/// boot does not hear the first.
const POWERDOWN_EVERY: Duration = Duration::from_secs(3);
/// For a process to be gone after it was told to, or forced.
const END_LIMIT: Duration = Duration::from_secs(30);
/// For a run state to be saved or loaded.
const STATE_LIMIT: Duration = Duration::from_secs(3600);
/// Between two looks at a save or a load.
const STATE_LOOK: Duration = Duration::from_millis(20);
/// Between two tries to connect to a process that is starting.
const CONNECT_LOOK: Duration = Duration::from_millis(10);

/// How guests execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where a real probe shows that it can run a guest, TCG elsewhere.
    #[default]
    Auto,
    /// QEMU's own emulator.
    Tcg,
    /// The processor itself, unprobed.
    Kvm,
}

/// What a [`Qemu`] host needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuConfig {
    /// The folder of this host's guests, and of no other host's.
    pub runtime: PathBuf,
    /// QEMU's program, as a path or a name to look up.
    #[serde(default = "QemuConfig::default_binary")]
    pub binary: PathBuf,
    /// How guests execute.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// The user that guests' processes run as when we are root; none means `nobody`.
    /// When we are not root, they run as we do.
    #[serde(default)]
    pub user: Option<String>,
    /// The bridge of this machine that each network is, by the name that VMs' descriptions call it.
    /// A card of any other leads nowhere.
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
}

impl QemuConfig {
    /// The defaults, for a runtime folder.
    pub fn new(runtime: PathBuf) -> Self {
        Self {
            runtime,
            binary: Self::default_binary(),
            accelerator: Accelerator::Auto,
            user: None,
            networks: BTreeMap::new(),
        }
    }

    fn default_binary() -> PathBuf {
        "qemu-system-x86_64".into()
    }
}

/// A host that runs its guests in QEMU.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
    /// Who guests run as; none when that is who we are.
    user: Option<User>,
    facts: OnceCell<Facts>,
    /// One launch of an instance at a time: QEMU excludes a second one only once it has started.
    turns: Mutex<HashMap<Instance, Arc<tokio::sync::Mutex<()>>>>,
}

/// QEMU's words for what a guest does ("RunState" in its QMP reference).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Status {
    status: String,
    running: bool,
}

impl Status {
    fn power(&self) -> PowerState {
        if self.running { PowerState::Active } else { PowerState::Paused }
    }

    /// Its state is not loaded, or loading.
    fn is_loading(&self) -> bool {
        self.status == "inmigrate"
    }
}

/// The progress of a save or a load, as `query-migrate` tells it.
#[derive(Debug, Deserialize)]
struct Migration {
    status: Option<String>,
    #[serde(rename = "error-desc")]
    error: Option<String>,
}

impl Migration {
    fn is_under_way(&self) -> bool {
        matches!(self.status.as_deref(), Some("setup" | "active" | "device" | "wait-unplug"))
    }

    fn is_completed(&self) -> bool {
        self.status.as_deref() == Some("completed")
    }
}

impl Qemu {
    /// The host of this configuration. Its runtime folder is made if needed.
    ///
    /// QEMU itself is looked for by the first verb that needs it.
    pub fn new(mut config: QemuConfig) -> Result<Self, Error> {
        fs::create_dir_all(&config.runtime).map_err(Error::io("make folder", &config.runtime))?;
        config.runtime =
            fs::canonicalize(&config.runtime).map_err(Error::io("find folder", &config.runtime))?;
        let user = user::guest_user(config.user.as_deref())?;
        if let Some(user) = &user {
            user.check_reach(&config.runtime)?;
        }
        Ok(Self { config, user, facts: OnceCell::new(), turns: Mutex::default() })
    }

    async fn facts(&self) -> Result<&Facts, Error> {
        self.facts.get_or_try_init(|| Facts::find(&self.config, self.user.as_ref())).await
    }

    fn folder(&self, instance: Instance) -> PathBuf {
        self.config.runtime.join(instance.to_string())
    }

    fn turn(&self, instance: Instance) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().expect("nothing panics while it holds the turns");
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(instance).or_default().clone()
    }

    fn process(&self, instance: Instance) -> Result<Option<Process>, Error> {
        Process::find(&self.folder(instance).join(PID))
    }

    /// Connects to a process that lives, waiting for it while it starts.
    async fn connect(&self, instance: Instance, socket: &str) -> Result<Qmp, Error> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let error = match Qmp::connect_in(&self.folder(instance), socket).await {
                Ok(qmp) => return Ok(qmp),
                Err(error) => error,
            };
            if self.process(instance)?.is_none() {
                return Err(Error::NoGuest(instance));
            }
            if !matches!(error, QmpError::Socket(_)) || Instant::now() > deadline {
                return Err(Error::Control { instance, source: error });
            }
            sleep(CONNECT_LOOK).await;
        }
    }

    /// What the guest does; none when it has no process.
    async fn status(&self, instance: Instance) -> Result<Option<Status>, Error> {
        if self.process(instance)?.is_none() {
            return Ok(None);
        }
        let asked = match self.connect(instance, STATUS).await {
            Ok(mut qmp) => qmp.ask::<Status>("query-status").await,
            Err(Error::NoGuest(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        match asked {
            Ok(status) => Ok(Some(status)),
            Err(_) if self.process(instance)?.is_none() => Ok(None),
            Err(source) => Err(Error::Control { instance, source }),
        }
    }

    /// Looks at a process that lived a moment ago.
    async fn look(&self, instance: Instance, process: &Process) -> Result<Measured, Error> {
        let mut qmp = self.connect(instance, STATUS).await?;
        let told = Told::ask(&mut qmp).await;
        // Others wait for the socket, and need not wait for the kernel's files.
        drop(qmp);
        let told = told.map_err(|source| Error::Control { instance, source })?;
        told.measured(&process.proc_folder())
    }

    /// Ends a process by force and waits until it is gone.
    async fn force(&self, instance: Instance) -> Result<(), Error> {
        if let Some(process) = self.process(instance)? {
            process.kill()?;
            self.wait_gone(instance, &process).await?;
        }
        self.tidy(instance)
    }

    async fn wait_gone(&self, instance: Instance, process: &Process) -> Result<(), Error> {
        if process.ended_within(END_LIMIT).await? {
            Ok(())
        } else {
            Err(Error::Late { instance, doing: "end", limit: END_LIMIT })
        }
    }

    /// Removes what an ended process leaves besides its console, its log and its records.
    fn tidy(&self, instance: Instance) -> Result<(), Error> {
        let folder = self.folder(instance);
        [CONTROL, STATUS, KPI, PID].iter().try_for_each(|name| files::remove(&folder.join(name)))
    }

    /// The story of a process that ended by itself.
    fn died(&self, instance: Instance) -> Error {
        let log = fs::read(self.folder(instance).join(LOG)).unwrap_or_default();
        let mut stderr = last_words(&log);
        if stderr.contains("KVM") && stderr.contains("Permission denied") {
            let user = self.user.as_ref().map_or("this user", |user| user.name.as_str());
            stderr.push_str(&format!(
                "; let {user} open /dev/kvm (setfacl -m u:{user}:rw /dev/kvm), \
                 or configure the accelerator tcg"
            ));
        }
        Error::Died { instance, stderr }
    }

    /// Turns a control failure into the story of the process's end, when that is what it was.
    async fn explain(&self, instance: Instance, source: QmpError) -> Error {
        if let Ok(Some(process)) = self.process(instance) {
            let closed = matches!(source, QmpError::Closed);
            if !closed || !process.ended_within(ANSWER_LIMIT).await.unwrap_or(false) {
                return Error::Control { instance, source };
            }
        }
        self.died(instance)
    }

    /// Feeds a saved state to a process that waits for one. It is loaded and paused afterwards.
    async fn load(&self, instance: Instance, state: &Path) -> Result<(), Error> {
        let file = File::open(state).map_err(Error::io("open the saved state", state))?;
        let mut qmp = self.connect(instance, CONTROL).await?;
        let loading = async {
            qmp.give_fd("state", &file).await?;
            qmp.run("migrate-incoming", json!({ "uri": "fd:state" })).await?;
            let migration = wait_for_migration(&mut qmp).await?;
            let status: Status = qmp.ask("query-status").await?;
            Ok((migration, status))
        };
        let (migration, status) = match loading.await {
            Ok(ends) => ends,
            Err(source) => return Err(self.explain(instance, source).await),
        };
        match migration {
            None => Err(Error::Late { instance, doing: "load its state", limit: STATE_LIMIT }),
            Some(migration) if !migration.is_completed() || status.is_loading() => {
                let why = migration.error.unwrap_or_else(|| format!("{status:?}"));
                Err(Error::State { path: state.to_owned(), why })
            }
            // A state must never come with permission to run in it.
            Some(_) if status.running => Err(Error::Runs(instance)),
            Some(_) => Ok(()),
        }
    }

    /// Has QEMU write the run state of a stopped guest to `partial`, or finds that it has already:
    /// a caller that was killed in the middle of it left QEMU to finish it.
    async fn save(&self, qmp: &mut Qmp, instance: Instance, partial: &Path) -> Result<(), Error> {
        let control = |source| Error::Control { instance, source };
        let status: Status = qmp.ask("query-status").await.map_err(control)?;
        let earlier: Migration = qmp.ask("query-migrate").await.map_err(control)?;
        let ours = (earlier.is_under_way() || status.status == "postmigrate") && partial.exists();
        if !ours {
            files::remove(&self.folder(instance).join(HIBERNATED))?;
            let file = create_private(partial)?;
            let start = async {
                let unlimited = json!({ "max-bandwidth": 1_u64 << 60 });
                qmp.run("migrate-set-parameters", unlimited).await?;
                qmp.give_fd("state", &file).await?;
                qmp.run("migrate", json!({ "uri": "fd:state" })).await
            };
            start.await.map_err(control)?;
        }
        let migration = wait_for_migration(qmp).await.map_err(control)?;
        match migration {
            None => Err(Error::Late { instance, doing: "save its state", limit: STATE_LIMIT }),
            Some(migration) if migration.is_completed() => Ok(()),
            Some(migration) => Err(Error::Save {
                path: partial.to_owned(),
                status: migration.status.unwrap_or_default(),
                why: migration.error.unwrap_or_else(|| "QEMU gives no reason".to_owned()),
            }),
        }
    }

    /// Whether a guest without a process is hibernated in the file `state`.
    fn recall_hibernation(&self, instance: Instance, state: &Path) -> Result<(), Error> {
        let partial = files::partial(state);
        if !self.folder(instance).join(HIBERNATED).exists() {
            return Err(Error::NoGuest(instance));
        }
        if partial.exists() {
            // The machine went down between the record and the name.
            return files::complete(&partial, state);
        }
        if state.exists() { Ok(()) } else { Err(Error::NoGuest(instance)) }
    }

    /// After a save that failed: leaves no file, and the guest as it was.
    async fn undo_save(
        &self,
        qmp: &mut Qmp,
        instance: Instance,
        was_running: bool,
        partial: &Path,
    ) -> LeftAs {
        // QEMU may still be writing when our patience ended; when it is not, this does nothing.
        let _ = qmp.run("migrate_cancel", json!({})).await;
        for path in [&self.folder(instance).join(HIBERNATED), partial] {
            if let Err(error) = files::remove(path) {
                tracing::warn!(%error, "a part of a saved state is left");
            }
        }
        if was_running {
            let _ = qmp.run("cont", json!({})).await;
        }
        match qmp.ask::<Status>("query-status").await {
            Ok(status) if status.running => LeftAs::Running,
            Ok(_) => LeftAs::Paused,
            Err(QmpError::Closed) => LeftAs::Gone,
            Err(_) => LeftAs::Unknown,
        }
    }
}

/// Looks at a save or a load until it has ended; none when that took too long.
async fn wait_for_migration(qmp: &mut Qmp) -> Result<Option<Migration>, QmpError> {
    let deadline = Instant::now() + STATE_LIMIT;
    while Instant::now() < deadline {
        let migration: Migration = qmp.ask("query-migrate").await?;
        match migration.status.as_deref() {
            Some("completed" | "failed" | "cancelled") => return Ok(Some(migration)),
            _ => sleep(STATE_LOOK).await,
        }
    }
    Ok(None)
}

/// A new file that no one else may read: a run state holds all of the guest's secrets.
fn create_private(path: &Path) -> Result<File, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    files::remove(path)?;
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn profile(&self) -> Result<RunProfile, Error> {
        Ok(self.facts().await?.profile())
    }

    async fn list(&self) -> Result<Vec<Guest>, Error> {
        let mut guests = Vec::new();
        for instance in files::instances(&self.config.runtime)? {
            let state = match self.status(instance).await {
                Ok(None) => continue,
                Ok(Some(status)) => status.power(),
                // It lives and does not answer. Whoever must make sure that nothing runs has to
                // take it for running.
                Err(error) => {
                    tracing::warn!(%instance, %error, "a guest does not answer");
                    PowerState::Active
                }
            };
            guests.push(Guest { instance, state });
        }
        Ok(guests)
    }

    async fn launch(&self, launch: &Launch) -> Result<(), Error> {
        let instance = launch.instance;
        let facts = self.facts().await?;
        let turn = self.turn(instance);
        let _turn = turn.lock().await;
        match self.status(instance).await? {
            Some(status) if status.running => return Err(Error::Runs(instance)),
            // An earlier launch was cut off while it loaded.
            Some(status) if status.is_loading() => self.force(instance).await?,
            Some(_) => return Ok(()),
            None => {}
        }
        if launch.state.is_some()
            && let Some(why) = launch.profile.mismatch(&facts.profile())
        {
            return Err(Error::Profile(why));
        }
        let folder = self.folder(instance);
        let (user, config) = (self.user.as_ref(), &self.config);
        let ways = network::ways(&launch.descriptor.nics, &config.networks).await?;
        let arguments = launch::prepare(launch, facts, user, &folder, &ways)?;
        let started = launch::start(&config.binary, user, &folder, arguments, ways).await?;
        if started.ended_or_ready().await?.is_none() {
            return Err(self.died(instance));
        }
        if let Some(state) = &launch.state
            && let Err(error) = self.load(instance, state).await
        {
            self.force(instance).await?;
            return Err(error);
        }
        Ok(())
    }

    async fn resume(&self, instance: Instance) -> Result<(), Error> {
        let control = |source| Error::Control { instance, source };
        let mut qmp = self.connect(instance, CONTROL).await?;
        let status: Status = qmp.ask("query-status").await.map_err(control)?;
        if status.running {
            return Ok(());
        }
        if status.is_loading() {
            // `cont` here would mean "run as soon as loaded".
            return Err(Error::NotLoaded(instance));
        }
        // A state that was saved before is of the past from the next instruction on.
        files::remove(&self.folder(instance).join(HIBERNATED))?;
        qmp.run("cont", json!({})).await.map_err(control)?;
        Ok(())
    }

    async fn pause(&self, instance: Instance) -> Result<(), Error> {
        let control = |source| Error::Control { instance, source };
        let mut qmp = self.connect(instance, CONTROL).await?;
        let status: Status = qmp.ask("query-status").await.map_err(control)?;
        if status.running {
            qmp.run("stop", json!({})).await.map_err(control)?;
        }
        Ok(())
    }

    async fn shut_down(&self, instance: Instance, grace: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + grace;
        while let Some(process) = self.process(instance)? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let asked = async {
                let mut qmp = self.connect(instance, CONTROL).await?;
                let control = |source| Error::Control { instance, source };
                let status: Status = qmp.ask("query-status").await.map_err(control)?;
                if status.running {
                    qmp.run("system_powerdown", json!({})).await.map_err(control)?;
                }
                Ok::<_, Error>(status.running)
            };
            // Paused, or deaf: no grace will help it.
            if !matches!(asked.await, Ok(true)) {
                break;
            }
            if process.ended_within(left.min(POWERDOWN_EVERY)).await? {
                break;
            }
        }
        self.force(instance).await
    }

    async fn kill(&self, instance: Instance) -> Result<(), Error> {
        self.force(instance).await
    }

    async fn hibernate(&self, instance: Instance, state: &Path) -> Result<Option<Measured>, Error> {
        let Some(process) = self.process(instance)? else {
            return self.recall_hibernation(instance, state).map(|()| None);
        };
        let control = |source| Error::Control { instance, source };
        let mut qmp = self.connect(instance, CONTROL).await?;
        let status: Status = qmp.ask("query-status").await.map_err(control)?;
        if status.is_loading() {
            return Err(Error::NotLoaded(instance));
        }
        let partial = files::partial(state);
        let hibernated = self.folder(instance).join(HIBERNATED);
        let saving = async {
            if status.running {
                qmp.run("stop", json!({})).await.map_err(control)?;
            }
            if status.status == "postmigrate" && hibernated.exists() && !partial.exists() {
                // An earlier call did all but the end.
                return Ok(());
            }
            self.save(&mut qmp, instance, &partial).await?;
            files::sync(&partial).await?;
            // From here on a partial file is a complete one, which only lacks its name.
            files::write_atomically(&hibernated, b"")?;
            files::complete(&partial, state)
        };
        if let Err(source) = saving.await {
            let left = self.undo_save(&mut qmp, instance, status.running, &partial).await;
            let source = if left == LeftAs::Gone { self.died(instance) } else { source };
            return Err(Error::Hibernate { instance, left, source: Box::new(source) });
        }
        // QEMU answers a stop a little before its processors sleep, so what was used is looked at now
        // and not then. A guest that cannot be measured is saved all the same.
        let told = Told::ask(&mut qmp).await.map_err(control);
        let used = told.and_then(|told| told.measured(&process.proc_folder())).ok();
        // It has flushed its disks and given them up, so there is nothing that force could lose.
        self.force(instance).await.map(|()| used)
    }

    async fn state(&self, instance: Instance) -> Result<Option<PowerState>, Error> {
        Ok(self.status(instance).await?.map(|status| status.power()))
    }

    async fn measure(&self, instance: Instance) -> Result<Option<Measured>, Error> {
        let Some(process) = self.process(instance)? else { return Ok(None) };
        let measured = self.look(instance, &process).await;
        // A process that ends gives up its lock, its sockets and its threads before it is gone.
        let may_be_ending = match &measured {
            Ok(_) => false,
            Err(Error::NoGuest(_) | Error::Io { .. }) => true,
            Err(error) => matches!(error, Error::Control { source: QmpError::Closed, .. }),
        };
        let patience = if may_be_ending { ANSWER_LIMIT } else { Duration::ZERO };
        if process.ended_within(patience).await? { Ok(None) } else { measured.map(Some) }
    }

    async fn kpi_port(&self, instance: Instance) -> Result<Option<UnixStream>, Error> {
        // A process that is starting opens its sockets one by one; one that answers has them all.
        if self.status(instance).await?.is_none() {
            return Ok(None);
        }
        socket::connect_kpi(&self.folder(instance)).await
    }

    async fn forget(&self, instance: Instance) -> Result<(), Error> {
        let turn = self.turn(instance);
        let _turn = turn.lock().await;
        if self.process(instance)?.is_some() {
            return Err(Error::Runs(instance));
        }
        files::remove_folder(&self.folder(instance))
    }

    fn console(&self, instance: Instance) -> PathBuf {
        self.folder(instance).join(CONSOLE)
    }
}
