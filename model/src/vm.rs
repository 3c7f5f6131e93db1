//! The VM descriptor and the run profile.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limit;
use crate::monitoring::{Monitoring, MonitoringError};
use crate::quantity::{Bytes, Resources};
use crate::{Digest, FileId, VmName};

/// The description of a single VM, as it travels with requests ("VM descriptor", papers/003, II-A).
///
/// It is read from OVF (DMTF DSP0243) at import; what a site's users may name of their own
/// organisation in OVF is not taken over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// What its users call it.
    pub name: VmName,
    /// Virtual processors and memory.
    pub resources: Resources,
    /// Its disks, in boot order.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// What its owner rules out; each only narrows what a site may do.
    pub restrictions: Restrictions,
    /// What is measured of it, and told to the site that placed it.
    #[serde(default)]
    pub monitoring: Monitoring,
}

/// A virtual disk. Kept as a raw image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The file that holds it.
    pub file: FileId,
    /// Its size as the guest sees it.
    pub capacity: Bytes,
}

/// A virtual network card.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The logical network that it joins, by the name in the OVF.
    pub network: String,
    /// Its hardware address, fixed for the VM's life.
    pub mac: [u8; 6],
}

/// What the VM's owner rules out. A restriction that a site does not know is a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restrictions {
    /// The site that takes it must run it itself.
    pub no_delegation: bool,
    /// Countries (ISO 3166-1, two letters) that it may run in; empty means any.
    pub countries: Vec<String>,
    /// Highest price per hour, in thousandths of the contract's currency; none means any.
    pub max_price_milli: Option<u64>,
    /// The group whose VMs must not share a host with it, such as `shop-database`; none means that
    /// any may.
    ///
    /// A site counts as one group the VMs that bear the word and that the same party asked it for,
    /// and nobody else's: so a refusal tells a peer nothing but where its own VMs are, and nobody
    /// can find out or crowd out the VMs of others by their word. The price is that VMs which come
    /// to a site through two of its peers do not know of each other there.
    pub apart: Option<String>,
}

/// A descriptor that breaks a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// A count is out of its range.
    #[error("{what} must be {min} to {max}, got {got}")]
    Range {
        /// What is counted.
        what: &'static str,
        /// Smallest legal value.
        min: u64,
        /// Largest legal value.
        max: u64,
        /// The value found.
        got: u64,
    },
    /// Two disks name one file, or a disk names a file of another kind.
    #[error("disk {0} does not name a disk file of its own")]
    DiskFile(usize),
    /// A country is not two capital letters.
    #[error("a country is two capital letters (ISO 3166-1), got {0:?}")]
    Country(String),
    /// The name of a group is not legal.
    #[error("a group of VMs that stay apart is 1 to 63 printable characters, got {0:?}")]
    Group(String),
    /// A network's name is too long or not printable.
    #[error("a network's name is 1 to 63 printable characters, got {0:?}")]
    Network(String),
    /// What is to be monitored breaks a rule.
    #[error("its monitoring: {0}")]
    Monitoring(#[from] MonitoringError),
}

impl Descriptor {
    /// Checks every limit. Whoever takes a descriptor from outside calls this first.
    pub fn check(&self) -> Result<(), DescriptorError> {
        let range = |what, min, max, got| {
            if (min..=max).contains(&got) {
                Ok(())
            } else {
                Err(DescriptorError::Range { what, min, max, got })
            }
        };
        range("cpus", 1, limit::MAX_CPUS.into(), self.resources.cpus.into())?;
        range("memory in MiB", 1, 16 << 20, self.resources.memory.to_mib())?;
        range("disks", 0, limit::MAX_DISKS as u64, self.disks.len() as u64)?;
        range("network cards", 0, limit::MAX_NICS as u64, self.nics.len() as u64)?;
        for (at, disk) in self.disks.iter().enumerate() {
            if disk.file != FileId::disk(at) {
                return Err(DescriptorError::DiskFile(at));
            }
            range("disk capacity in bytes", 0, 1 << 46, disk.capacity.0)?;
        }
        for nic in &self.nics {
            let length = nic.network.chars().count();
            if !(1..=63).contains(&length) || nic.network.chars().any(char::is_control) {
                return Err(DescriptorError::Network(nic.network.chars().take(63).collect()));
            }
        }
        range("countries", 0, 300, self.restrictions.countries.len() as u64)?;
        for country in &self.restrictions.countries {
            if country.len() != 2 || !country.bytes().all(|b| b.is_ascii_uppercase()) {
                return Err(DescriptorError::Country(country.chars().take(20).collect()));
            }
        }
        if let Some(group) = &self.restrictions.apart
            && !is_group(group)
        {
            return Err(DescriptorError::Group(group.chars().take(63).collect()));
        }
        Ok(self.monitoring.check()?)
    }

    /// What all of its disks hold at most.
    pub fn disk_capacity(&self) -> Bytes {
        Bytes(self.disks.iter().map(|disk| disk.capacity.0).sum())
    }

    /// The digest that contracts and certificates name it by.
    pub fn digest(&self) -> Digest {
        Digest::of(&postcard::to_stdvec(self).expect("descriptors are plain data"))
    }
}

/// Whether this can name a group of VMs that stay apart.
pub fn is_group(word: &str) -> bool {
    (1..=63).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_graphic())
}

/// What a saved run state depends on; pinned at the VM's first start and moved with its state.
///
/// It is compared before a byte moves, and refused by name on a mismatch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunProfile {
    /// Which hypervisor saved it: `qemu` or `simulated`.
    pub hypervisor: String,
    /// The hypervisor's version, as far as saved states depend on it, such as `7.2`.
    pub version: String,
    /// Versioned machine type, and the layout of the devices around it, such as `pc-q35-7.2+3`.
    pub machine: String,
    /// Named CPU model, never `host`.
    pub cpu: String,
    /// `tcg` or `kvm`. The saved state of one does not load under the other.
    pub accelerator: String,
    /// Digest of the firmware.
    pub firmware: Digest,
}

impl RunProfile {
    /// The first thing in which a state saved under `self` cannot go on under `other`, in words.
    pub fn mismatch(&self, other: &Self) -> Option<String> {
        let named = [
            ("hypervisor", &self.hypervisor, &other.hypervisor),
            ("hypervisor version", &self.version, &other.version),
            ("machine type", &self.machine, &other.machine),
            ("CPU model", &self.cpu, &other.cpu),
            ("accelerator", &self.accelerator, &other.accelerator),
        ];
        for (what, mine, theirs) in named {
            if mine != theirs {
                return Some(format!("{what} is {theirs}, the saved state needs {mine}"));
            }
        }
        (self.firmware != other.firmware).then(|| "firmware differs".to_owned())
    }
}

/// The state of a VM, after DMTF DSP1057 (Virtual System Profile), table "Virtual system states".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// DSP1057 "Defined": its files are there, it does not run and has no saved run state.
    Defined,
    /// DSP1057 "Active": it executes.
    Active,
    /// DSP1057 "Paused": in memory, not executing.
    Paused,
    /// DSP1057 "Suspended": its run state is saved to a file.
    Suspended,
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Defined => "stopped",
            Self::Active => "running",
            Self::Paused => "paused",
            Self::Suspended => "hibernated",
        })
    }
}
