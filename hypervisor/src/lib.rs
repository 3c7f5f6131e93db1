//! Runs the guests of one host: the trait [`Hypervisor`] and its two implementations.
//!
//! [`Qemu`] drives one QEMU process per guest; [`Simulated`] keeps a small file per guest, for tests
//! and machines without QEMU. Both keep the same contract, and one test suite holds them to it.
//!
//! A guest outlives the process that launched it: whoever opens the same runtime folder later finds
//! it again by its folder `<runtime>/<vm>-<epoch>`, never by a process's name.
//! Nothing here decides whether a guest may run; that is the caller's row in its journal.

mod error;
mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod image;
mod instance;
mod measured;
pub mod qemu;
pub mod simulated;
mod socket;
mod user;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use model::{Descriptor, PowerState, RunProfile};
use tokio::net::UnixStream;

pub use error::{Error, LeftAs};
pub use image::{ConvertLimits, ImageError, ImageFormat, Inspection, Refusal};
pub use instance::{Instance, InstanceError};
pub use measured::{DiskCounters, IoCounters, Measured, NetworkCounters, PacketCounters};
pub use qemu::{Accelerator, Qemu, QemuConfig};
pub use simulated::{Simulated, SimulatedFault, SimulatedFaults};

/// The name of the virtio-serial port that a guest's KPIs leave through.
/// In a Linux guest it is `/dev/virtio-ports/sojourn.kpi`.
pub const KPI_PORT: &str = "sojourn.kpi";

/// What a guest is launched from.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Which stay of which VM.
    pub instance: Instance,
    /// Processors, memory, disks and network cards.
    pub descriptor: Descriptor,
    /// The folder that holds the VM's files under [`model::FileId::file_name`].
    pub folder: PathBuf,
    /// A saved run state to go on from; none boots from the first disk.
    pub state: Option<PathBuf>,
    /// What the saved run state depends on. Without a state nothing depends on it.
    pub profile: RunProfile,
}

/// A guest that exists on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guest {
    /// Which stay of which VM.
    pub instance: Instance,
    /// [`PowerState::Active`] or [`PowerState::Paused`].
    pub state: PowerState,
}

/// One host that runs guests.
///
/// Every verb may be repeated: a caller that crashed and does not know how far it came says the
/// same again. Guests are [`PowerState::Active`] or [`PowerState::Paused`]; a guest that is neither
/// does not exist here.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What a run state that is saved here depends on.
    async fn profile(&self) -> Result<RunProfile, Error>;

    /// Every guest whose process exists, in ascending order, as found in the runtime folder.
    async fn list(&self) -> Result<Vec<Guest>, Error>;

    /// Makes the guest exist, paused: it has not executed one instruction, or its state is loaded.
    ///
    /// A guest that exists and is paused is left as it is; one that runs is [`Error::Runs`].
    /// The state file is only read. Once the guest has been resumed the file no longer fits its
    /// disks, and it is for the caller to remove it.
    async fn launch(&self, launch: &Launch) -> Result<(), Error>;

    /// Lets the guest execute. A guest that runs goes on running.
    async fn resume(&self, instance: Instance) -> Result<(), Error>;

    /// Stops execution, keeping the guest in memory. A paused guest stays paused.
    async fn pause(&self, instance: Instance) -> Result<(), Error>;

    /// Asks the guest to power off (ACPI) and ends it by force after `grace`.
    ///
    /// Returns when its process is gone, or at once when there is none.
    /// A paused guest cannot answer and must not be continued for it, so it is ended at once.
    async fn shut_down(&self, instance: Instance, grace: Duration) -> Result<(), Error>;

    /// Ends the guest as a power cut would. Returns when its process is gone, or was none.
    async fn kill(&self, instance: Instance) -> Result<(), Error>;

    /// Pauses the guest, saves its run state to the file `state`, and ends its process. Returns what
    /// the guest had used when it was paused; none when its process had ended before, or nobody
    /// could tell.
    ///
    /// The file appears under its name only when it is complete and on the disk, so that a caller
    /// who crashed may say it again: with no process, a complete file and the record of this very
    /// hibernation is success. A leftover file that an earlier hibernation wrote is not.
    /// On failure no part of a file is left and [`Error::Hibernate`] says how the guest was left.
    async fn hibernate(&self, instance: Instance, state: &Path) -> Result<Option<Measured>, Error>;

    /// The guest's state, or none when it does not exist.
    async fn state(&self, instance: Instance) -> Result<Option<PowerState>, Error>;

    /// What the guest has used since its process began, or none when it does not exist.
    ///
    /// It is a look of some milliseconds that changes nothing, at a running or a paused guest.
    async fn measure(&self, instance: Instance) -> Result<Option<Measured>, Error>;

    /// Connects to the host's end of the guest's port [`KPI_PORT`].
    ///
    /// None when the guest does not exist or has no such port, as one that an earlier release
    /// launched. It may be asked again at any time, also after a restart of the node.
    /// One connection is served at a time: a second one is there, and nothing comes or goes before
    /// the first is closed. It ends with the guest's process.
    /// Nothing is read for a guest that nobody is connected to, so that what it writes then waits
    /// in the guest; what is written to a guest that has not opened its port waits here.
    async fn kpi_port(&self, instance: Instance) -> Result<Option<UnixStream>, Error>;

    /// Removes what an ended guest left in the runtime folder: its console and its records.
    ///
    /// [`Error::Runs`] when it still exists. Says nothing about disks and state files.
    async fn forget(&self, instance: Instance) -> Result<(), Error>;

    /// The file that the guest's serial console is written to, whether it exists yet or not.
    ///
    /// It is kept when the guest ends, until the next launch of the instance or
    /// [`Hypervisor::forget`].
    fn console(&self, instance: Instance) -> PathBuf;
}
