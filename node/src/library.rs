//! The library: packages in and out, and the files of VMs that are only stored.

use std::path::{Path, PathBuf};

use hypervisor::{ConvertLimits, ImageFormat};
use model::{Bytes, Epoch, FileId, SecretKey, VmId, VmName};
use ovf::{DiskFormat, Package};

use crate::folder::{Folder, FolderError};

/// Why a package was not taken in or not written. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The package cannot be read.
    #[error("{path} cannot be imported")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ovf::OpenError,
    },
    /// The package is damaged.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What differs.
        #[source]
        source: ovf::VerifyError,
    },
    /// A disk cannot be taken out.
    #[error("disk {index} of {path} cannot be read")]
    Extract {
        /// The file.
        path: PathBuf,
        /// The disk.
        index: usize,
        /// Why.
        #[source]
        source: ovf::ExtractError,
    },
    /// A disk's image is not acceptable.
    #[error("disk {index} of {path} is refused")]
    Image {
        /// The file.
        path: PathBuf,
        /// The disk.
        index: usize,
        /// Why.
        #[source]
        source: hypervisor::ImageError,
    },
    /// The library cannot be written.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The disk says no.
    #[error("cannot write {path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The VM cannot be written as a package.
    #[error("the VM cannot be exported")]
    Export(#[from] ovf::ExportError),
}

/// A VM whose files lie in the library, and that is not in the journal yet.
pub(crate) struct Staged {
    pub descriptor: model::Descriptor,
    pub k0: SecretKey,
    pub warnings: Vec<String>,
}

/// The package's files, raw and checked, under the id of a new VM.
///
/// Blocks; to be called off the async threads. If it fails, what it wrote is removed again; after
/// a crash the next start does so.
pub(crate) fn import(
    folder: &Folder,
    path: &Path,
    name: Option<&VmName>,
) -> Result<Staged, LibraryError> {
    let limits = ovf::Limits::default();
    let package = Package::open(path, &limits, name, &mut random_mac)
        .map_err(|source| LibraryError::Open { path: path.to_owned(), source })?;
    package
        .verify_manifest()
        .map_err(|source| LibraryError::Damaged { path: path.to_owned(), source })?;
    let k0 = SecretKey::from_seed(&rand::random());
    let vm = VmId::of(&k0.public());
    let stay = folder.stay(&protocol::library(), vm, Epoch(0));
    folder.make_stay(&stay)?;
    let filled = fill(&package, path, &stay);
    if filled.is_err() {
        // The first error says more than one of cleaning up.
        let _ = std::fs::remove_dir_all(&stay);
    }
    let warnings = package.warnings.clone();
    filled.map(|mut descriptor| {
        crate::monitor::vouch(&mut descriptor.monitoring, &k0);
        Staged { descriptor, k0, warnings }
    })
}

fn fill(package: &Package, path: &Path, stay: &Path) -> Result<model::Descriptor, LibraryError> {
    let mut descriptor = package.descriptor.clone();
    for (index, disk) in package.disks.iter().enumerate() {
        let packed = stay.join(format!("import{index}.tmp"));
        let raw = stay.join(FileId::disk(index).file_name());
        package.extract_disk(index, &packed).map_err(|source| LibraryError::Extract {
            path: path.to_owned(),
            index,
            source,
        })?;
        let image = |source| LibraryError::Image { path: path.to_owned(), index, source };
        let format = match disk.format {
            _ if disk.file.is_none() => ImageFormat::Raw,
            DiskFormat::Raw => ImageFormat::Raw,
            DiskFormat::VmdkStream | DiskFormat::VmdkSparse => ImageFormat::Vmdk,
            DiskFormat::Qcow2 => ImageFormat::Qcow2,
            DiskFormat::Vhd => ImageFormat::Vhd,
        };
        // Headers round up to whole sectors or clusters.
        let limits = ConvertLimits::new(Bytes(disk.capacity.0.next_multiple_of(1 << 20)));
        let converting = hypervisor::image::convert_to_raw(&packed, format, &raw, &limits);
        let size = tokio::runtime::Handle::current().block_on(converting).map_err(image)?;
        descriptor.disks[index].capacity = size;
        std::fs::remove_file(&packed)
            .map_err(|source| LibraryError::Io { path: packed.clone(), source })?;
    }
    let sync = |path: &Path| std::fs::File::open(path).and_then(|folder| folder.sync_all());
    sync(stay).map_err(|source| LibraryError::Io { path: stay.to_owned(), source })?;
    if let Some(library) = stay.parent() {
        sync(library).map_err(|source| LibraryError::Io { path: library.to_owned(), source })?;
    }
    Ok(descriptor)
}

/// Removes what an import left behind that never reached the journal.
pub(crate) fn sweep(folder: &Folder, known: impl Fn(VmId) -> bool) {
    let Ok(entries) = std::fs::read_dir(folder.library()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let vm = name.to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
        if vm.is_some_and(|vm| !known(vm)) {
            tracing::info!(folder = ?name, "removing what an interrupted import left behind");
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a VM that does not run as an OVA. Blocks.
pub(crate) fn export(
    descriptor: &model::Descriptor,
    stay: &Path,
    target: &Path,
) -> Result<(), LibraryError> {
    let disks: Vec<PathBuf> =
        descriptor.disks.iter().map(|disk| stay.join(disk.file.file_name())).collect();
    Ok(ovf::write_ova(target, descriptor, &disks)?)
}

/// A locally administered unicast address.
fn random_mac() -> [u8; 6] {
    let mut mac: [u8; 6] = rand::random();
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}
