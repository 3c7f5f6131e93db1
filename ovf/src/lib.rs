//! OVF and OVA: virtual machines in and out of a site (DMTF DSP0243, versions 1.x and 2.x).
//! Section numbers in comments are those of version 1.1.
//!
//! A package is hostile until checked: it is opened by [`Package::open`], which reads the
//! descriptor and looks at every file's name and size, but unpacks nothing.
//! [`Package::extract_disk`] then streams one disk at a time, and [`Package::verify_manifest`]
//! holds every file against the digests that came with it.
//! [`write_ova`] writes a package that reads back as the same descriptor.
//!
//! # What is read of the descriptor
//!
//! ```text
//! Envelope                          namespace .../ovf/envelope/1 or /2
//! |- References/File                id, href, size; compression and chunkSize are refused
//! |- DiskSection/Disk               diskId, fileRef, capacity, capacityAllocationUnits, format,
//! |                                 populatedSize; without fileRef: an empty disk
//! |- NetworkSection/Network         name
//! |- DeploymentOptionSection        its default Configuration is taken
//! `- VirtualSystem                  exactly one, also within a VirtualSystemCollection
//!    |- @id, Name                   the VM's name, Name first
//!    |- VirtualHardwareSection      the first one
//!    |  `- Item, StorageItem, EthernetPortItem, by ResourceType (CIM_ResourceAllocationSettingData)
//!    |       3  processors          VirtualQuantity
//!    |       4  memory              VirtualQuantity in AllocationUnits (DSP0004 programmatic units)
//!    |       10 network card        Connection, Address (a MAC address)
//!    |       17 disk                HostResource: ovf:/disk/ID or ovf:/file/ID
//!    |       5, 6, 20 controllers   passed over: the site chooses its own
//!    |       others                 passed over with a warning
//!    |- vmw:BootOrderSection        the disk that it names comes first
//!    |- sj:RestrictionsSection      our own, below
//!    |- sj:MonitoringSection        our own, below
//!    `- rsrvr:ElasticArraySection   of RESERVOIR's Claudia, as is rsrvr:KPISection anywhere; below
//! ```
//!
//! DSP0243 lets any section be added, and says that one with `ovf:required="true"`, which is the
//! default, must be understood or the import must fail. So it does here, with name and line.
//! Sections of the standard that only speak to people or to other platforms (annotations,
//! products, licences, operating systems, start-up order) are passed over with a warning.
//!
//! # Restrictions
//!
//! What a VM's owner rules out travels in a section of our own, optional for other tools:
//!
//! ```xml
//! <sj:RestrictionsSection ovf:required="false" xmlns:sj="https://sojourn.example/ovf/1">
//!   <Info>What the owner of this virtual machine rules out</Info>
//!   <sj:NoDelegation/>
//!   <sj:Country>CH</sj:Country>
//!   <sj:MaxPricePerHour>1.250</sj:MaxPricePerHour>
//!   <sj:Apart>shop-database</sj:Apart>
//! </sj:RestrictionsSection>
//! ```
//!
//! VMs with the same word in `Apart` must not share a host.
//! For us nothing in it is optional: an element that is not known, anything of a later version of
//! the namespace, or a section in another place is an error, since an unknown restriction is a
//! refusal.

//!
//! # Monitoring
//!
//! What is to be measured of the VM (papers/003, IV; no document of the DMTF has it) travels in
//! another one:
//!
//! ```xml
//! <sj:MonitoringSection ovf:required="false" xmlns:sj="https://sojourn.example/ovf/1">
//!   <Info>What is measured of this virtual machine</Info>
//!   <sj:SealingKey>zl2OWcF0bDXKLjNJr7gnBWnvLEuMf8wYfXqWjYoOtRM=</sj:SealingKey>
//!   <sj:Monitor measure="cpu_share" intervalMs="1000" deliveryMs="10000" format="mean"/>
//!   <sj:Monitor measure="web.current_users" when="&gt; 1000 ~ 50 for 30 s" sealed="true"/>
//! </sj:MonitoringSection>
//! ```
//!
//! | attribute | what | without it |
//! | --- | --- | --- |
//! | `measure` | [`VmMeasure`](model::monitoring::VmMeasure) by name, or a KPI as `file.column` or `encrypted/file` | an error |
//! | `intervalMs` | milliseconds between two measurements; 0 is as often as possible | 0 |
//! | `deliveryMs` | milliseconds between two deliveries; 0 is as soon as there is a value | 0 |
//! | `when` | instead: deliver when a [`Condition`](model::monitoring::Condition) becomes true | |
//! | `format` | `raw`, or `min`, `max`, `mean`, `median` of a delivery's values | `raw` |
//! | `sealed` | whether only the holder of the sealing key may read the values | `false` |
//! | `limit` | whether `when` is a limit of service, which whoever takes the VM undertakes to keep | `false` |
//!
//! `SealingKey` is an X25519 public key (RFC 7748) in base64, whose other half the package's maker
//! keeps; without one the VM's primary makes the pair at import, and alone opens what is sealed.
//! What is not known in the section is an error, with its line.
//!
//! RESERVOIR's Claudia (`http://schemas.telefonica.com/claudia/ovf`) has two sections that mean the
//! same, and are read, never written:
//!
//! | Claudia | here |
//! | --- | --- |
//! | `KPISection/KPI@KPIname` | `kpi.NAME`, each value as soon as it is there; of a dotted name the last part |
//! | `@KPItype="VEEHW"` | `cpu`, `memory`, `disk`, `network` as `cpu_share`, `memory_resident`, `disk_written`, `network_sent` |
//! | `ElasticArraySection/Rule` | a specifier with a condition: mean of `KPIName` above `Quota` |
//! | `Window@unit` | for how long (`second`, `minute`, `hour`; minutes without a unit) |
//! | `Frequency` | the interval, in seconds |
//! | `Tolerance` | the hysteresis, in hundredths of the quota |
//! | `min`, `max`, `initial` of a system | passed over: one VM is described |

mod archive;
mod copy;
mod envelope;
mod export;
mod fault;
mod files;
mod format;
mod hardware;
pub mod limit;
mod manifest;
mod monitoring;
mod package;
mod restrictions;
mod unit;
mod xml;

pub use archive::ArchiveError;
pub use envelope::read_monitoring;
pub use export::{ExportError, write_ova};
pub use fault::{Fault, Place, Problem};
pub use format::DiskFormat;
pub use manifest::ManifestError;
pub use monitoring::monitoring_text;
pub use package::{DiskSource, ExtractError, Limits, OpenError, Package, VerifyError};
