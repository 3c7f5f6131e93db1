//! A host whose guests are small files: for tests, and for machines that have no QEMU.
//!
//! A guest is `<runtime>/<vm>-<epoch>/guest.json`. It has a boot id, and an uptime that advances by
//! the wall clock while it is active; both are its memory, and go through the state file when it
//! is hibernated. So it outlives the node, as a process does, and a state that is lost or loaded
//! twice can be seen. Its disks must exist and are never written.
//!
//! What it is measured to have used follows from its uptime and its size alone, at fixed rates.
//! Its KPI port is the Unix socket `kpi` in its folder, if something listens there.
//!
//! Its console gets the lines that the project's test guest prints, one at most each time someone
//! looks at the guest. Power-off by ACPI always works, and at once.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use model::{Bytes, Digest, PowerState, Resources, RunProfile, VmId};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::measured::{DiskCounters, IoCounters, NetworkCounters, PacketCounters};
use crate::{Error, Guest, Hypervisor, Instance, Launch, LeftAs, Measured, files, socket};

/// Name of the file that is the guest.
const GUEST: &str = "guest.json";
/// Name of the record that the instance was hibernated, and not launched since.
const HIBERNATED: &str = "hibernated";
/// Name of the file with the serial console's output.
const CONSOLE: &str = "console.log";
/// Bytes of a state file at most; a real one is below 500.
const MAX_STATE_BYTES: u64 = 4096;

/// A simulated host.
#[derive(Debug)]
pub struct Simulated {
    runtime: PathBuf,
    /// One verb at a time, so that a guest's file has one writer.
    turn: Mutex<()>,
}

/// Verbs of a [`Simulated`] host that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimulatedFault {
    /// [`Hypervisor::launch`] fails and no guest exists.
    Launch,
    /// [`Hypervisor::resume`] fails and the guest stays paused.
    Resume,
    /// [`Hypervisor::hibernate`] fails and the guest goes on as it was.
    Hibernate,
}

/// Makes verbs of a [`Simulated`] host fail, from whatever process.
///
/// A fault is the file `fail-launch`, `fail-resume` or `fail-hibernate` in the host's runtime folder;
/// it acts until it is cleared, and its content is the error's text.
#[derive(Debug, Clone)]
pub struct SimulatedFaults {
    runtime: PathBuf,
}

/// What a guest keeps in memory, and so what its state file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    vm: VmId,
    /// Made at each boot.
    boot: String,
    uptime_ms: u64,
    /// The newest second of uptime that was printed; none when nothing was printed since boot.
    printed: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    memory: Memory,
    /// Wall-clock time in milliseconds up to which an active guest's uptime is counted.
    active_since_ms: Option<u64>,
    /// What is measured is made from it. A record of an earlier release has none of it.
    #[serde(default)]
    size: Size,
}

/// What a guest was launched with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    resources: Resources,
    nics: u64,
    /// Its uptime then: its counters are counted from here.
    uptime_ms: u64,
    /// The wall-clock time then, which tells this process from others.
    #[serde(default)]
    launched_ms: u64,
}

impl Record {
    fn power(&self) -> PowerState {
        if self.active_since_ms.is_some() { PowerState::Active } else { PowerState::Paused }
    }

    /// A guest that is a quarter busy, keeps half of its memory in use, and every 100 ms reads 2 KiB
    /// in 1 ms, writes 4 KiB in 2 ms, and gets and sends a packet through each card.
    fn measured(&self) -> Measured {
        let Size { resources, nics, uptime_ms, launched_ms } = self.size;
        let ran_ms = self.memory.uptime_ms.saturating_sub(uptime_ms);
        let rounds = ran_ms / 100;
        let io = |bytes: u64, ms: u64| IoCounters {
            bytes: Bytes(rounds.saturating_mul(bytes)),
            operations: rounds,
            time: Duration::from_millis(rounds.saturating_mul(ms)),
        };
        let packets = rounds.saturating_mul(nics);
        let traffic =
            |bytes: u64| PacketCounters { bytes: Bytes(packets.saturating_mul(bytes)), packets };
        Measured {
            process: launched_ms,
            cpu_time: Duration::from_millis(ran_ms) * resources.cpus / 4,
            memory_resident: Bytes(resources.memory.0 / 2),
            memory_balloon: Some(resources.memory),
            disks: DiskCounters { read: io(2048, 1), written: io(4096, 2) },
            network: Some(NetworkCounters { received: traffic(1500), sent: traffic(100) }),
        }
    }
}

impl Simulated {
    /// The host of this runtime folder, which is made if needed.
    pub fn new(runtime: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&runtime).map_err(Error::io("make folder", &runtime))?;
        Ok(Self { runtime, turn: Mutex::new(()) })
    }

    /// The faults of this host.
    pub fn faults(&self) -> SimulatedFaults {
        SimulatedFaults::of(&self.runtime)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect("no verb panics while it has the turn")
    }

    fn folder(&self, instance: Instance) -> PathBuf {
        self.runtime.join(instance.to_string())
    }

    /// The guest as it is now: time that passed while it was active is counted.
    fn look(&self, instance: Instance) -> Result<Option<Record>, Error> {
        let path = self.folder(instance).join(GUEST);
        let Some(text) = read_limited(&path)? else { return Ok(None) };
        let mut record: Record = serde_json::from_slice(&text)
            .map_err(|e| Error::State { path: path.clone(), why: e.to_string() })?;
        if let Some(since) = record.active_since_ms {
            let now = now_ms();
            record.memory.uptime_ms += now.saturating_sub(since);
            record.active_since_ms = Some(now);
        }
        Ok(Some(record))
    }

    /// The guest as it is now, its console and its file as well.
    fn load(&self, instance: Instance) -> Result<Option<Record>, Error> {
        let Some(mut record) = self.look(instance)? else { return Ok(None) };
        if record.active_since_ms.is_some() {
            self.print(instance, &mut record.memory)?;
            self.store(instance, &record)?;
        }
        Ok(Some(record))
    }

    fn store(&self, instance: Instance, record: &Record) -> Result<(), Error> {
        let text = serde_json::to_vec(record).expect("records are plain data");
        files::write_atomically(&self.folder(instance).join(GUEST), &text)
    }

    fn print(&self, instance: Instance, memory: &mut Memory) -> Result<(), Error> {
        let (uptime, boot) = (memory.uptime_ms / 1000, &memory.boot);
        if memory.printed.is_some_and(|printed| printed >= uptime) {
            return Ok(());
        }
        let mut text = String::new();
        if memory.printed.is_none() {
            text.push_str(&format!("sojourn-guest booted boot={boot}\n"));
        }
        let line = format!("sojourn-guest counter={uptime} uptime={uptime} boot={boot} since=0\n");
        text.push_str(&line);
        memory.printed = Some(uptime);
        append(&self.console(instance), &text)
    }

    fn end(&self, instance: Instance) -> Result<(), Error> {
        files::remove(&self.folder(instance).join(GUEST))
    }

    fn set_active(&self, instance: Instance, active: bool) -> Result<(), Error> {
        let mut record = self.load(instance)?.ok_or(Error::NoGuest(instance))?;
        record.active_since_ms = active.then(now_ms);
        if active {
            self.print(instance, &mut record.memory)?;
        }
        self.store(instance, &record)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn append(path: &Path, text: &str) -> Result<(), Error> {
    fs::File::options()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Error::io("write", path))
}

/// The content of a file, or none when it is not there.
fn read_limited(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("open", path))?,
    };
    let mut content = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_STATE_BYTES), &mut content)
        .map_err(Error::io("read", path))?;
    Ok(Some(content))
}

fn read_state(launch: &Launch, path: &Path) -> Result<Memory, Error> {
    let error = |why: String| Error::State { path: path.to_owned(), why };
    let content = read_limited(path)?.ok_or_else(|| error("it is not there".to_owned()))?;
    let memory: Memory = serde_json::from_slice(&content).map_err(|e| error(e.to_string()))?;
    if memory.vm == launch.instance.vm {
        Ok(memory)
    } else {
        Err(error(format!("it is the memory of VM {}", memory.vm)))
    }
}

#[async_trait]
impl Hypervisor for Simulated {
    async fn profile(&self) -> Result<RunProfile, Error> {
        Ok(RunProfile {
            hypervisor: "simulated".to_owned(),
            version: "1".to_owned(),
            machine: "simulated-1".to_owned(),
            cpu: "simulated".to_owned(),
            accelerator: "none".to_owned(),
            firmware: Digest::of(b"sojourn simulated firmware 1"),
        })
    }

    async fn list(&self) -> Result<Vec<Guest>, Error> {
        let _turn = self.turn();
        let mut guests = Vec::new();
        for instance in files::instances(&self.runtime)? {
            if let Some(record) = self.load(instance)? {
                guests.push(Guest { instance, state: record.power() });
            }
        }
        Ok(guests)
    }

    async fn launch(&self, launch: &Launch) -> Result<(), Error> {
        let own = self.profile().await?;
        let _turn = self.turn();
        let instance = launch.instance;
        match self.load(instance)?.map(|record| record.power()) {
            Some(PowerState::Active) => return Err(Error::Runs(instance)),
            Some(_) => return Ok(()),
            None => {}
        }
        self.faults().check(SimulatedFault::Launch)?;
        for disk in &launch.descriptor.disks {
            files::check_disk(&launch.folder.join(disk.file.file_name()))?;
        }
        let memory = match &launch.state {
            Some(path) => {
                if let Some(why) = launch.profile.mismatch(&own) {
                    return Err(Error::Profile(why));
                }
                read_state(launch, path)?
            }
            None => Memory {
                vm: instance.vm,
                boot: format!("{:08x}", rand::random::<u32>()),
                uptime_ms: 0,
                printed: None,
            },
        };
        let folder = self.folder(instance);
        files::remove_folder(&folder)?;
        fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
        fs::write(folder.join(CONSOLE), "").map_err(Error::io("write", &folder.join(CONSOLE)))?;
        let size = Size {
            resources: launch.descriptor.resources,
            nics: launch.descriptor.nics.len() as u64,
            uptime_ms: memory.uptime_ms,
            launched_ms: now_ms(),
        };
        self.store(instance, &Record { memory, active_since_ms: None, size })
    }

    async fn resume(&self, instance: Instance) -> Result<(), Error> {
        let _turn = self.turn();
        let record = self.load(instance)?.ok_or(Error::NoGuest(instance))?;
        if record.power() == PowerState::Active {
            return Ok(());
        }
        self.faults().check(SimulatedFault::Resume)?;
        // A state that was saved before is of the past from now on.
        files::remove(&self.folder(instance).join(HIBERNATED))?;
        self.set_active(instance, true)
    }

    async fn pause(&self, instance: Instance) -> Result<(), Error> {
        let _turn = self.turn();
        self.set_active(instance, false)
    }

    async fn shut_down(&self, instance: Instance, _grace: Duration) -> Result<(), Error> {
        let _turn = self.turn();
        if let Some(record) = self.load(instance)? {
            if record.power() == PowerState::Active {
                append(&self.console(instance), "sojourn-guest powering off\n")?;
            }
            self.end(instance)?;
        }
        Ok(())
    }

    async fn kill(&self, instance: Instance) -> Result<(), Error> {
        let _turn = self.turn();
        self.end(instance)
    }

    async fn hibernate(&self, instance: Instance, state: &Path) -> Result<Option<Measured>, Error> {
        let _turn = self.turn();
        let hibernated = self.folder(instance).join(HIBERNATED);
        let Some(record) = self.load(instance)? else {
            let done = hibernated.exists() && state.exists();
            return if done { Ok(None) } else { Err(Error::NoGuest(instance)) };
        };
        let save = || {
            self.faults().check(SimulatedFault::Hibernate)?;
            let memory = serde_json::to_vec(&record.memory).expect("memory is plain data");
            files::write_atomically(state, &memory)?;
            // The record comes before the end, so that whoever finds no guest finds the record.
            files::write_atomically(&hibernated, b"").inspect_err(|_| {
                let _ = fs::remove_file(state);
            })
        };
        save().map_err(|source| Error::Hibernate {
            instance,
            left: if record.power() == PowerState::Active {
                LeftAs::Running
            } else {
                LeftAs::Paused
            },
            source: Box::new(source),
        })?;
        self.end(instance)?;
        Ok(Some(record.measured()))
    }

    async fn state(&self, instance: Instance) -> Result<Option<PowerState>, Error> {
        let _turn = self.turn();
        Ok(self.load(instance)?.map(|record| record.power()))
    }

    async fn measure(&self, instance: Instance) -> Result<Option<Measured>, Error> {
        let _turn = self.turn();
        // Nothing is written for it: it may be asked for as often as possible.
        Ok(self.look(instance)?.map(|record| record.measured()))
    }

    async fn kpi_port(&self, instance: Instance) -> Result<Option<UnixStream>, Error> {
        if self.state(instance).await?.is_none() {
            return Ok(None);
        }
        socket::connect_kpi(&self.folder(instance)).await
    }

    async fn forget(&self, instance: Instance) -> Result<(), Error> {
        let _turn = self.turn();
        if self.load(instance)?.is_some() {
            return Err(Error::Runs(instance));
        }
        files::remove_folder(&self.folder(instance))
    }

    fn console(&self, instance: Instance) -> PathBuf {
        self.folder(instance).join(CONSOLE)
    }
}

impl SimulatedFault {
    fn file_name(self) -> &'static str {
        match self {
            Self::Launch => "fail-launch",
            Self::Resume => "fail-resume",
            Self::Hibernate => "fail-hibernate",
        }
    }
}

impl SimulatedFaults {
    /// The faults of the [`Simulated`] host with this runtime folder.
    pub fn of(runtime: &Path) -> Self {
        Self { runtime: runtime.to_owned() }
    }

    /// Makes the verb fail with `text` until [`Self::clear`].
    pub fn set(&self, fault: SimulatedFault, text: &str) -> Result<(), Error> {
        files::write_atomically(&self.runtime.join(fault.file_name()), text.as_bytes())
    }

    /// Lets the verb work again.
    pub fn clear(&self, fault: SimulatedFault) -> Result<(), Error> {
        files::remove(&self.runtime.join(fault.file_name()))
    }

    fn check(&self, fault: SimulatedFault) -> Result<(), Error> {
        match read_limited(&self.runtime.join(fault.file_name()))? {
            Some(text) => Err(Error::Injected(String::from_utf8_lossy(&text).trim().to_owned())),
            None => Ok(()),
        }
    }
}
