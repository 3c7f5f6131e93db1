//! Why a host did not do what it was asked.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Instance;
use crate::qemu::qmp::QmpError;

/// How a guest was left by a verb that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftAs {
    /// It executes.
    Running,
    /// It is in memory and does not execute.
    Paused,
    /// Its process is gone.
    Gone,
    /// It could not be asked.
    Unknown,
}

impl fmt::Display for LeftAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "the guest is left running",
            Self::Paused => "the guest is left paused",
            Self::Gone => "the guest is gone",
            Self::Unknown => "the guest's state is not known",
        })
    }
}

/// Why a [`crate::Hypervisor`] verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such guest.
    #[error("guest {0} does not exist on this host")]
    NoGuest(Instance),
    /// The guest exists and may not for this verb.
    #[error("guest {0} is running on this host, end it first")]
    Runs(Instance),
    /// The guest's saved state is not loaded yet, or its loading was cut off.
    #[error("guest {0} has not loaded its saved state, launch it again")]
    NotLoaded(Instance),
    /// The saved state depends on something that this host does not have.
    #[error("the saved state cannot go on here: {0}")]
    Profile(String),
    /// The file that should hold a saved state does not.
    #[error("{path} is not a saved state of this kind: {why}", path = path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A disk of the descriptor is not in the VM's folder, or is not a plain file.
    #[error("disk file {path} cannot be used, restore it or import the VM again",
            path = path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or folder did not obey.
    #[error("cannot {doing} {path}", path = path.display())]
    Io {
        /// The verb, such as `write`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The saving of a run state failed. No part of the file is left.
    #[error("cannot hibernate guest {instance}, {left}")]
    Hibernate {
        /// The guest.
        instance: Instance,
        /// How it was left.
        left: LeftAs,
        /// Why.
        source: Box<Error>,
    },
    /// The hypervisor says that saving the run state failed.
    #[error(
        "saving to {path} ended as {status:?}: {why}; check the free space there",
        path = path.display()
    )]
    Save {
        /// The file.
        path: PathBuf,
        /// QEMU's word for how it ended.
        status: String,
        /// QEMU's reason.
        why: String,
    },
    /// The hypervisor's program is not there.
    #[error(
        "cannot run {binary}: install QEMU (Debian: apt-get install qemu-system-x86 qemu-utils) \
         or name the right program in the configuration",
        binary = binary.display()
    )]
    NotInstalled {
        /// The program that was looked for.
        binary: PathBuf,
        /// Why it did not start.
        source: io::Error,
    },
    /// A program ended with a failure; its own words are quoted.
    #[error("{program} failed ({status}): {stderr}")]
    Program {
        /// The program and what it was to do.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
    /// The guest's process ended while it was needed; its own words are quoted.
    #[error("the process of guest {instance} ended: {stderr}")]
    Died {
        /// The guest.
        instance: Instance,
        /// The end of its log.
        stderr: String,
    },
    /// The guest's process did not do what it should in time.
    #[error("guest {instance} took longer than {limit:?} to {doing}")]
    Late {
        /// The guest.
        instance: Instance,
        /// What it should have done.
        doing: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The control connection to the guest's process failed.
    #[error("cannot control guest {instance}")]
    Control {
        /// The guest.
        instance: Instance,
        /// Why.
        source: QmpError,
    },
    /// A network card cannot be plugged into the bridge that its network is here.
    #[error("cannot plug a card of the network {network:?} into the bridge {bridge:?}: {why}")]
    Network {
        /// The network, as the VM's description calls it.
        network: String,
        /// The bridge, as the configuration calls it.
        bridge: String,
        /// Why, and what to do.
        why: String,
    },
    /// The configuration of this host cannot work.
    #[error("{0}")]
    Configuration(String),
    /// A failure that a test asked for.
    #[error("{0}")]
    Injected(String),
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}
