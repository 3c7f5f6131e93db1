//! Makes packages for the tests.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use ovf::{Limits, OpenError, Package};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The bytes of the disk in [`GOOD`].
pub(crate) const DISK: [u8; 1024] = [0x5a; 1024];

/// A package that is taken, with one disk in `disk.raw`.
pub(crate) const GOOD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
  <References>
    <File ovf:id="file1" ovf:href="disk.raw" ovf:size="1024"/>
  </References>
  <DiskSection>
    <Info>Disks</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="1024"
      ovf:format="http://en.wikipedia.org/wiki/Byte"/>
  </DiskSection>
  <NetworkSection>
    <Info>Networks</Info>
    <Network ovf:name="lan"/>
  </NetworkSection>
  <VirtualSystem ovf:id="web">
    <Info>A VM</Info>
    <VirtualHardwareSection>
      <Info>Hardware</Info>
      <Item>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>2</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>256</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:HostResource>ovf:/disk/disk1</rasd:HostResource>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:Address>52:54:00:00:00:01</rasd:Address>
        <rasd:Connection>lan</rasd:Connection>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:ResourceType>10</rasd:ResourceType>
      </Item>
    </VirtualHardwareSection>
    <!--more-->
  </VirtualSystem>
</Envelope>
"#;

/// [`GOOD`] with one passage replaced.
pub(crate) fn good_but(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from:?} is not in the good descriptor");
    GOOD.replacen(from, to, 1)
}

/// A header and contents of any type, as an archive has them.
pub(crate) fn entry(name: &str, kind: u8, contents: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let field = &mut header.as_mut_bytes()[..name.len()];
    field.copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(contents.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(contents);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A record of an extended header, with its own length in front.
pub(crate) fn record(text: &str) -> String {
    let lengths = (1..).map(|length| format!("{length} {text}\n"));
    lengths.zip(1..).find(|(record, length)| record.len() == *length).unwrap().0
}

/// An archive of regular files.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        files.iter().flat_map(|(name, contents)| entry(name, b'0', contents)).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// The manifest of some files.
pub(crate) fn manifest(files: &[(&str, &[u8])]) -> String {
    let line = |(name, contents): &(&str, &[u8])| {
        let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(contents));
        format!("SHA256({name})= {digest}\n")
    };
    files.iter().map(line).collect()
}

/// The good package as an archive with a manifest.
pub(crate) fn good_archive() -> Vec<u8> {
    let manifest = manifest(&[("a.ovf", GOOD.as_bytes()), ("disk.raw", &DISK)]);
    archive(&[("a.ovf", GOOD.as_bytes()), ("a.mf", manifest.as_bytes()), ("disk.raw", &DISK)])
}

pub(crate) fn write(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Opens with default limits; cards without an address get 02:00:00:00:00:01 and following.
pub(crate) fn open(path: &Path) -> Result<Package, OpenError> {
    let mut last = 0;
    Package::open(path, &Limits::default(), None, &mut || {
        last += 1;
        [2, 0, 0, 0, 0, last]
    })
}

pub(crate) fn open_archive(bytes: &[u8]) -> Result<Package, OpenError> {
    let folder = tempfile::tempdir().unwrap();
    open(&write(&folder, "a.ova", bytes))
}

/// The good package's files, with this text as descriptor.
pub(crate) fn open_text(text: &str) -> Result<Package, OpenError> {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "disk.raw", DISK);
    open(&write(&folder, "a.ovf", text))
}

/// An error with all its sources.
pub(crate) fn story(error: &dyn Error) -> String {
    let mut story = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        story.push_str(": ");
        story.push_str(&source.to_string());
        next = source.source();
    }
    story
}
