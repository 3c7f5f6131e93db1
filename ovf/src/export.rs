//! Writes a package: an OVA that reads back as the same descriptor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use model::vm::{Disk, Nic};
use model::{Bytes, Descriptor};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};
use tempfile::NamedTempFile;

use crate::copy;
use crate::envelope;
use crate::fault::Fault;
use crate::format::DiskFormat;
use crate::manifest::{Algorithm, Line};
use crate::monitoring;
use crate::restrictions;

const BLOCK: u64 = 512;
/// Disks of one SCSI controller: 16 addresses, one of which is the controller's own.
const DISKS_PER_CONTROLLER: usize = 15;
const CONTROLLER_ADDRESS: usize = 7;

const OVF: &str = "http://schemas.dmtf.org/ovf/envelope/1";
const RASD: &str =
    "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData";
const VSSD: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData";

/// A package is not written. Nothing is left of the target.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The descriptor is beyond a limit.
    #[error("the VM is beyond a limit")]
    Vm(#[source] model::vm::DescriptorError),
    /// Images and disks differ in number.
    #[error("the VM has {wanted} disks, {given} images are given")]
    Disks {
        /// How many disks the VM has.
        wanted: usize,
        /// How many images were given.
        given: usize,
    },
    /// An image is not as big as its disk.
    #[error("{image} has {actual} bytes, its disk has {capacity}; a raw image is expected")]
    Size {
        /// The image.
        image: PathBuf,
        /// Its size.
        actual: u64,
        /// The disk's size.
        capacity: u64,
    },
    /// An image cannot be read.
    #[error("{image} cannot be packed")]
    Image {
        /// The image.
        image: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The target cannot be written.
    #[error("{target} cannot be written")]
    Target {
        /// The target.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text would not read back.
    #[error("the VM cannot be described in OVF")]
    Unreadable(#[source] Fault),
    /// The text would read back as something else.
    #[error("OVF cannot hold the VM as it is; network names must not begin or end in blanks")]
    Unfaithful,
}

/// Writes a VM as an OVA: the descriptor, the manifest (SHA-256), then each disk as a raw image
/// (format [`DiskFormat::RAW_URI`]).
///
/// `disks` are the raw images of the descriptor's disks, in its order, each exactly as big as its
/// disk; nothing may write to them meanwhile.
/// The same input gives the same bytes: no time, owner or path goes in.
/// The file appears under its name when it is complete and on stable storage, with access for its
/// owner alone, since it holds the guest's disks.
pub fn write_ova(
    target: &Path,
    descriptor: &Descriptor,
    disks: &[PathBuf],
) -> Result<(), ExportError> {
    descriptor.check().map_err(ExportError::Vm)?;
    if disks.len() != descriptor.disks.len() {
        let (wanted, given) = (descriptor.disks.len(), disks.len());
        return Err(ExportError::Disks { wanted, given });
    }
    let ovf = text(descriptor).map_err(|source| in_target(target, source))?;
    check(&ovf, descriptor)?;
    let folder = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let to = |source| in_target(target, source);
    let mut temporary = NamedTempFile::new_in(folder).map_err(to)?;
    write(temporary.as_file_mut(), target, descriptor, disks, &ovf)?;
    temporary.as_file().sync_all().map_err(to)?;
    temporary.persist(target).map_err(|error| to(error.error))?;
    // The new name, too.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(to)
}

fn in_target(target: &Path, source: io::Error) -> ExportError {
    ExportError::Target { target: target.to_owned(), source }
}

/// Reads the text back, so that a package that nobody can take in is never written.
fn check(ovf: &str, descriptor: &Descriptor) -> Result<(), ExportError> {
    let back = envelope::read(ovf, None, &mut || [0; 6]).map_err(ExportError::Unreadable)?;
    let capacities: Option<Vec<Bytes>> = back.disks.iter().map(|disk| disk.capacity).collect();
    let back = back.descriptor(capacities.unwrap_or_default());
    if back == *descriptor { Ok(()) } else { Err(ExportError::Unfaithful) }
}

fn image_name(descriptor: &Descriptor, index: usize) -> String {
    format!("{}-disk{}.raw", descriptor.name, index + 1)
}

/// Writes the archive in one pass over the images: the manifest's place is kept free, since the
/// length of its text is known before the digests are.
fn write(
    file: &mut File,
    target: &Path,
    descriptor: &Descriptor,
    disks: &[PathBuf],
    ovf: &str,
) -> Result<(), ExportError> {
    let to = |source| in_target(target, source);
    let ovf_name = format!("{}.ovf", descriptor.name);
    let names: Vec<String> = (0..disks.len()).map(|at| image_name(descriptor, at)).collect();
    let unknown = [0; 32];
    let line = |name: &str, sha256: &[u8]| Line { name, sha256 }.to_string();
    let lines = names.iter().map(|name| line(name, &unknown).len() as u64);
    let manifest_size = line(&ovf_name, &unknown).len() as u64 + lines.sum::<u64>();

    let mut at = header(file, 0, &ovf_name, ovf.len() as u64).map_err(to)?;
    file.write_all_at(ovf.as_bytes(), at).map_err(to)?;
    let mut hasher = Algorithm::Sha256.hasher();
    hasher.update(ovf.as_bytes());
    let mut manifest = line(&ovf_name, &hasher.finalize());
    at = end(at, ovf.len() as u64);

    let manifest_at = header(file, at, &format!("{}.mf", descriptor.name), manifest_size);
    let manifest_at = manifest_at.map_err(to)?;
    at = end(manifest_at, manifest_size);

    for ((image, name), disk) in disks.iter().zip(&names).zip(&descriptor.disks) {
        let source = |source| ExportError::Image { image: image.clone(), source };
        let size = disk.capacity.0;
        let mut from = File::open(image).map_err(source)?;
        let actual = from.metadata().map_err(source)?.len();
        if actual != size {
            let (image, capacity) = (image.clone(), size);
            return Err(ExportError::Size { image, actual, capacity });
        }
        at = header(file, at, name, size).map_err(to)?;
        let mut hasher = Algorithm::Sha256.hasher();
        copy::copy(&mut from, size, file, at, Some(&mut hasher)).map_err(source)?;
        manifest.push_str(&line(name, &hasher.finalize()));
        at = end(at, size);
    }
    assert_eq!(manifest.len() as u64, manifest_size, "each line has the length of its digest");
    file.write_all_at(manifest.as_bytes(), manifest_at).map_err(to)?;
    // Two blocks of zeros end an archive.
    file.set_len(at + 2 * BLOCK).map_err(to)
}

/// Writes the header of a file at `at`; gives where its contents go.
fn header(file: &File, at: u64, name: &str, size: u64) -> io::Result<u64> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    // From 8 GiB on in base 256, which GNU tar, libarchive, Go and Python read.
    header.set_size(size);
    header.set_cksum();
    file.write_all_at(header.as_bytes(), at)?;
    Ok(at + BLOCK)
}

/// Where the next header goes after contents of `size` at `at`.
fn end(at: u64, size: u64) -> u64 {
    at + size.next_multiple_of(BLOCK)
}

/// The descriptor's text.
fn text(descriptor: &Descriptor) -> io::Result<String> {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let envelope = writer.create_element("Envelope").with_attributes([
        ("ovf:version", "1.0"),
        ("xml:lang", "en-US"),
        ("xmlns", OVF),
        ("xmlns:ovf", OVF),
        ("xmlns:rasd", RASD),
        ("xmlns:vssd", VSSD),
    ]);
    envelope.write_inner_content(|writer| {
        files(writer, descriptor)?;
        networks(writer, &descriptor.nics)?;
        let system = writer
            .create_element("VirtualSystem")
            .with_attribute(("ovf:id", descriptor.name.as_str()));
        system.write_inner_content(|writer| {
            leaf(writer, "Info", "A virtual machine")?;
            leaf(writer, "Name", descriptor.name.as_str())?;
            writer
                .create_element("VirtualHardwareSection")
                .write_inner_content(|writer| hardware(writer, descriptor))?;
            restrictions::write(writer, &descriptor.restrictions)?;
            monitoring::write(writer, &descriptor.monitoring)
        })?;
        Ok(())
    })?;
    let mut text = String::from_utf8(writer.into_inner()).expect("it was written from text");
    text.push('\n');
    Ok(text)
}

fn leaf(writer: &mut Writer<Vec<u8>>, name: &str, text: &str) -> io::Result<()> {
    writer.create_element(name).write_text_content(BytesText::new(text))?;
    Ok(())
}

fn files(writer: &mut Writer<Vec<u8>>, descriptor: &Descriptor) -> io::Result<()> {
    let each = |at: usize, disk: &Disk| {
        let (file, id) = (format!("file{}", at + 1), format!("disk{}", at + 1));
        (file, id, image_name(descriptor, at), disk.capacity.0.to_string())
    };
    let disks: Vec<_> = descriptor.disks.iter().enumerate().map(|(at, d)| each(at, d)).collect();
    let references = writer.create_element("References");
    if disks.is_empty() {
        references.write_empty()?;
        return Ok(());
    }
    references.write_inner_content(|writer| {
        for (file, _, href, size) in &disks {
            let element = writer.create_element("File").with_attributes([
                ("ovf:id", file.as_str()),
                ("ovf:href", href),
                ("ovf:size", size),
            ]);
            element.write_empty()?;
        }
        Ok(())
    })?;
    writer.create_element("DiskSection").write_inner_content(|writer| {
        leaf(writer, "Info", "The virtual disks")?;
        for (file, id, _, capacity) in &disks {
            let element = writer.create_element("Disk").with_attributes([
                ("ovf:diskId", id.as_str()),
                ("ovf:fileRef", file),
                ("ovf:capacity", capacity),
                ("ovf:capacityAllocationUnits", "byte"),
                ("ovf:format", DiskFormat::RAW_URI),
            ]);
            element.write_empty()?;
        }
        Ok(())
    })?;
    Ok(())
}

fn networks(writer: &mut Writer<Vec<u8>>, nics: &[Nic]) -> io::Result<()> {
    let mut names: Vec<&str> = nics.iter().map(|nic| nic.network.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Ok(());
    }
    writer.create_element("NetworkSection").write_inner_content(|writer| {
        leaf(writer, "Info", "The logical networks")?;
        for name in names {
            let element = writer.create_element("Network").with_attribute(("ovf:name", name));
            element
                .write_inner_content(|writer| leaf(writer, "Description", "A logical network"))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn hardware(writer: &mut Writer<Vec<u8>>, descriptor: &Descriptor) -> io::Result<()> {
    leaf(writer, "Info", "Virtual hardware")?;
    writer.create_element("System").write_inner_content(|writer| {
        leaf(writer, "vssd:ElementName", "Virtual Hardware Family")?;
        leaf(writer, "vssd:InstanceID", "0")?;
        leaf(writer, "vssd:VirtualSystemIdentifier", descriptor.name.as_str())?;
        // The standard names no families; this one is what other importers look for.
        leaf(writer, "vssd:VirtualSystemType", "vmx-10")
    })?;
    let mut instance = 0;
    let cpus = descriptor.resources.cpus.to_string();
    let memory = descriptor.resources.memory;
    let (units, memory) = match memory.0 % (1 << 20) {
        0 => ("byte * 2^20", memory.to_mib()),
        _ => ("byte", memory.0),
    };
    item(writer, &mut instance, "Processors", "3", &[("VirtualQuantity", cpus.as_str())])?;
    let memory = [("AllocationUnits", units), ("VirtualQuantity", &memory.to_string())];
    item(writer, &mut instance, "Memory", "4", &memory)?;
    for (number, disks) in descriptor.disks.chunks(DISKS_PER_CONTROLLER).enumerate() {
        let address = number.to_string();
        let fields = [("Address", address.as_str()), ("ResourceSubType", "lsilogic")];
        item(writer, &mut instance, "SCSI controller", "6", &fields)?;
        let controller = instance.to_string();
        for place in 0..disks.len() {
            let at = number * DISKS_PER_CONTROLLER + place;
            let address = (place + usize::from(place >= CONTROLLER_ADDRESS)).to_string();
            let resource = format!("ovf:/disk/disk{}", at + 1);
            let fields = [
                ("AddressOnParent", address.as_str()),
                ("HostResource", &resource),
                ("Parent", &controller),
            ];
            item(writer, &mut instance, &format!("Disk {}", at + 1), "17", &fields)?;
        }
    }
    for (at, nic) in descriptor.nics.iter().enumerate() {
        let mac = nic.mac.map(|byte| format!("{byte:02x}")).join(":");
        let fields = [
            ("Address", mac.as_str()),
            ("AutomaticAllocation", "true"),
            ("Connection", &nic.network),
            ("ResourceSubType", "E1000"),
        ];
        item(writer, &mut instance, &format!("Network card {}", at + 1), "10", &fields)?;
    }
    Ok(())
}

/// Writes an item. Its properties stand in alphabetical order, as the CIM schema wants them.
fn item(
    writer: &mut Writer<Vec<u8>>,
    instance: &mut usize,
    name: &str,
    kind: &str,
    fields: &[(&str, &str)],
) -> io::Result<()> {
    *instance += 1;
    let id = instance.to_string();
    let common = [("ElementName", name), ("InstanceID", id.as_str()), ("ResourceType", kind)];
    let mut fields: Vec<_> = common.iter().chain(fields).collect();
    fields.sort_unstable();
    writer.create_element("Item").write_inner_content(|writer| {
        for (property, value) in fields {
            leaf(writer, &format!("rasd:{property}"), value)?;
        }
        Ok(())
    })?;
    Ok(())
}
