//! OVF and OVA: descriptors, archives, manifests.

use std::fs;
use std::path::{Path, PathBuf};

use model::Descriptor;
use ovf::{DiskFormat, Limits, OpenError, Package, write_ova};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A descriptor that is taken; its disk is [`DISK`] in `disk.raw`.
pub(super) const GOOD: &str = include_str!("good.ovf");

/// The bytes of the disk.
pub(super) const DISK: [u8; 1024] = [0x5a; 1024];

/// Bytes of a disk that is written out to be packed again.
const MAX_UNPACKED_BYTES: u64 = 1 << 20;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("a temporary file takes what it gets");
    path
}

fn open(path: &Path) -> Result<Package, OpenError> {
    let mut last = 0;
    Package::open(path, &Limits::default(), None, &mut || {
        last += 1;
        [2, 0, 0, 0, 0, last]
    })
}

/// What holds for every package that is taken.
fn holds(package: &Package) {
    let Package { descriptor, disks, warnings, .. } = package;
    descriptor.check().expect("a descriptor within its limits");
    assert_eq!(descriptor.disks.len(), disks.len());
    let total: u64 = disks.iter().map(|disk| disk.capacity.0).sum();
    assert!(total <= Limits::default().capacity.0);
    for name in disks.iter().filter_map(|disk| disk.file.as_ref()) {
        let stays_inside = |part: &str| !["", ".", ".."].contains(&part);
        assert!(name.split('/').all(stays_inside), "{name:?} leads out of the package");
    }
    // Those about the descriptor are limited; there may be one for each file, and two more.
    assert!(warnings.len() <= ovf::limit::MAX_WARNINGS + ovf::limit::MAX_FILES + 3);
    for (at, nic) in descriptor.nics.iter().enumerate() {
        assert!(nic.mac[0] & 1 == 0, "a card has the address of a group");
        assert!(descriptor.nics[..at].iter().all(|other| other.mac != nic.mac));
    }
}

/// Whatever was read can be written, and reads back as the same.
fn packs_again(descriptor: &Descriptor, images: &[PathBuf], folder: &Path) {
    let path = folder.join("again.ova");
    write_ova(&path, descriptor, images).expect("what was read can be written");
    let again = open(&path).expect("what was written can be read");
    assert_eq!(again.descriptor, *descriptor);
    again.verify_manifest().expect("the manifest that we wrote");
}

/// The text of a descriptor, beside the one file that a good one refers to.
///
/// # Panics
///
/// If a promise is broken.
pub fn ovf(data: &[u8]) {
    let folder = folder();
    write(folder.path(), "disk.raw", DISK);
    let Ok(package) = open(&write(folder.path(), "a.ovf", data)) else { return };
    holds(&package);
    let without_disks = Descriptor { disks: vec![], ..package.descriptor };
    packs_again(&without_disks, &[], folder.path());
}

/// A whole archive.
///
/// # Panics
///
/// If a promise is broken.
pub fn ova(data: &[u8]) {
    let folder = folder();
    let Ok(package) = open(&write(folder.path(), "a.ova", data)) else { return };
    holds(&package);
    let sound = package.verify_manifest().is_ok();
    let mut images = vec![];
    for (at, disk) in package.disks.iter().enumerate() {
        let whole = disk.file.is_some() || disk.capacity.0 <= MAX_UNPACKED_BYTES;
        if !whole {
            return;
        }
        let image = folder.path().join(format!("image{at}"));
        let unpacked = package.extract_disk(at, &image);
        assert!(unpacked.is_ok() || !sound, "a disk fits the manifest and then does not");
        assert_eq!(unpacked.is_ok(), image.exists(), "of a disk that is refused nothing is left");
        if unpacked.is_err() {
            return;
        }
        let size = fs::metadata(&image).expect("it was written").len();
        assert!(disk.file.is_none() || size <= data.len() as u64);
        if disk.format == DiskFormat::Raw {
            assert!(size <= disk.capacity.0);
        }
        if disk.format != DiskFormat::Raw || size != disk.capacity.0 {
            return;
        }
        images.push(image);
    }
    packs_again(&package.descriptor, &images, folder.path());
}

/// The manifest of a good package. Where package and manifest agree, every file is named with its
/// true digest, and a file that changes later is noticed.
///
/// # Panics
///
/// If a promise is broken.
pub fn manifest(data: &[u8]) {
    let folder = folder();
    let disk = write(folder.path(), "disk.raw", DISK);
    write(folder.path(), "a.mf", data);
    let Ok(package) = open(&write(folder.path(), "a.ovf", GOOD)) else { return };
    holds(&package);
    if package.verify_manifest().is_err() {
        return;
    }
    let text = std::str::from_utf8(data).expect("a manifest that was taken is text");
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    for (name, bytes) in [("a.ovf", GOOD.as_bytes()), ("disk.raw", &DISK)] {
        let name = format!("({name})");
        let line = lines().find(|line| line.contains(&name)).expect("every file is named");
        if line.to_ascii_uppercase().starts_with("SHA256") {
            let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(bytes));
            assert!(line.to_ascii_lowercase().ends_with(&digest));
        }
    }
    fs::write(disk, [0x5b; DISK.len()]).expect("a temporary file takes what it gets");
    assert!(package.verify_manifest().is_err(), "a file that was changed is not noticed");
}
