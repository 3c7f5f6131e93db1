//! The descriptor as a whole: what its text says, before any file is looked at.

use std::collections::{BTreeMap, BTreeSet};

use model::vm::{Disk, Nic, Restrictions};
use model::{Bytes, Descriptor, FileId, Monitoring, Resources, VmName};

use crate::fault::{Fault, Place, Problem, cut};
use crate::format::DiskFormat;
use crate::hardware::{self, Backing, DiskItem};
use crate::limit;
use crate::monitoring;
use crate::restrictions;
use crate::unit::{bytes, number};
use crate::xml::{self, Node, Reading, text};

/// The namespaces of OVF 1.x and 2.x.
const NAMESPACES: [&str; 2] =
    ["http://schemas.dmtf.org/ovf/envelope/1", "http://schemas.dmtf.org/ovf/envelope/2"];
const VMWARE: &str = "http://www.vmware.com/schema/ovf";

/// Sections of the standard that speak to people or to other platforms.
const INFORMATIVE: [&str; 6] = [
    "AnnotationSection",
    "EulaSection",
    "InstallSection",
    "ProductSection",
    "ResourceAllocationSection",
    "StartupSection",
];

/// What a descriptor says.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) name: VmName,
    pub(crate) resources: Resources,
    pub(crate) nics: Vec<Nic>,
    pub(crate) restrictions: Restrictions,
    pub(crate) monitoring: Monitoring,
    pub(crate) disks: Vec<DiskPlan>,
    pub(crate) references: Vec<Reference>,
    pub(crate) warnings: Vec<String>,
}

/// A file that the descriptor refers to.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) href: String,
    pub(crate) size: Option<u64>,
    pub(crate) place: Place,
    id: String,
}

/// A disk as the descriptor has it.
#[derive(Debug, Clone)]
pub(crate) struct DiskPlan {
    /// Which reference holds it; none for a disk that starts empty.
    pub(crate) reference: Option<usize>,
    pub(crate) format: DiskFormat,
    /// None where it is the size of the (raw) file.
    pub(crate) capacity: Option<Bytes>,
    pub(crate) populated: Option<Bytes>,
    pub(crate) place: Place,
}

impl Envelope {
    /// The VM's descriptor, given the capacities of its disks.
    pub(crate) fn descriptor(&self, capacities: impl IntoIterator<Item = Bytes>) -> Descriptor {
        let disk = |(at, capacity)| Disk { file: FileId::disk(at), capacity };
        Descriptor {
            name: self.name.clone(),
            resources: self.resources,
            disks: capacities.into_iter().enumerate().map(disk).collect(),
            nics: self.nics.clone(),
            restrictions: self.restrictions.clone(),
            monitoring: self.monitoring.clone(),
        }
    }
}

/// Reads a descriptor. `name` takes the place of the one in it.
pub(crate) fn read(
    text: &str,
    name: Option<&VmName>,
    random_mac: &mut dyn FnMut() -> [u8; 6],
) -> Result<Envelope, Fault> {
    let document = xml::parse(text)?;
    let root: Node<'_> = document.root_element();
    let namespace = root.tag_name().namespace().filter(|found| NAMESPACES.contains(found));
    let Some(namespace) = namespace.filter(|_| root.tag_name().name() == "Envelope") else {
        let place = Place::at(text, root.range().start);
        return Err(Fault { place, problem: Problem::NotAnEnvelope });
    };
    let mut reading = Reading::new(text, namespace);
    let reading = &mut reading;
    let mut systems = Vec::new();
    systems_of(reading, root, &mut systems)?;
    let &[system] = systems.as_slice() else {
        return Err(reading.fault(root, Problem::Systems(systems.len())));
    };
    let references = references(reading, root)?;
    let declared = declared_disks(reading, root, &references)?;
    let networks = names(reading, root, "NetworkSection", "Network", "name");
    let configuration = configuration(reading, root);
    let (section, boots_from) = system_sections(reading, system)?;
    let mut hardware =
        hardware::read(reading, section, configuration.as_deref(), &networks, random_mac)?;
    // The sort is stable: the others keep their order behind the one to boot from.
    hardware.disks.sort_by_key(|disk| boots_from != Some(disk.instance.as_str()));
    let disks = disks(&hardware.disks, &declared, &references)?;
    let name = match name {
        Some(name) => name.clone(),
        None => vm_name(reading, system)?,
    };
    let restrictions = restrictions::read(reading, system)?;
    let monitoring = monitoring::read(reading, system)?;
    let warnings = std::mem::replace(reading, Reading::new(text, namespace)).into_warnings();
    let (resources, nics) = (hardware.resources, hardware.nics);
    Ok(Envelope { name, resources, nics, restrictions, monitoring, disks, references, warnings })
}

/// What is to be monitored of a VM, as the text of a descriptor says it, or the section alone.
///
/// Gives warnings about what was passed over, too.
///
/// # Errors
///
/// The first thing that makes no sense, with its place; or that nothing is said of monitoring.
pub fn read_monitoring(text: &str) -> Result<(Monitoring, Vec<String>), Fault> {
    let document = xml::parse(text)?;
    let root: Node<'_> = document.root_element();
    if monitoring::is_ours(root) {
        return Ok((monitoring::read_alone(&mut Reading::new(text, NAMESPACES[0]), root)?, vec![]));
    }
    let place = Place::at(text, root.range().start);
    if root.tag_name().name() != "Envelope" {
        return Err(Fault { place, problem: Problem::NotMonitoring });
    }
    if !root.descendants().any(monitoring::is_section) {
        let (element, part) = ("the descriptor".to_owned(), "MonitoringSection");
        return Err(Fault { place, problem: Problem::Missing { element, part } });
    }
    let envelope = read(text, None, &mut || [0; 6])?;
    Ok((envelope.monitoring, envelope.warnings))
}

/// Finds all virtual systems, and judges the sections on the way to them.
fn systems_of<'a>(
    reading: &mut Reading<'a>,
    node: Node<'a>,
    systems: &mut Vec<Node<'a>>,
) -> Result<(), Fault> {
    const READ: [&str; 6] = [
        "References",
        "DiskSection",
        "NetworkSection",
        "DeploymentOptionSection",
        // Translations, and what every part of an envelope may have.
        "Strings",
        "Info",
    ];
    for child in node.children().filter(Node::is_element) {
        if reading.is(child, "VirtualSystem") {
            systems.push(child);
        } else if reading.is(child, "VirtualSystemCollection") {
            // The depth of elements is limited, so this ends.
            systems_of(reading, child, systems)?;
        } else if !READ.iter().chain(&["Name"]).any(|name| reading.is(child, name)) {
            section(reading, child)?;
        }
    }
    Ok(())
}

/// Judges a section that is not read.
fn section<'a>(reading: &mut Reading<'a>, node: Node<'a>) -> Result<(), Fault> {
    if restrictions::is_section(node) || monitoring::is_section(node) {
        return Ok(());
    }
    if INFORMATIVE.iter().any(|name| reading.is(node, name)) {
        reading.note_passed(node);
        return Ok(());
    }
    reading.pass_over(node)
}

/// The hardware section of a system, and the instance that its boot order puts first.
fn system_sections<'a>(
    reading: &mut Reading<'a>,
    system: Node<'a>,
) -> Result<(Node<'a>, Option<&'a str>), Fault> {
    let (mut hardware, mut boots_from) = (None, None);
    for node in system.children().filter(Node::is_element) {
        if reading.is(node, "VirtualHardwareSection") {
            if hardware.is_some() {
                // DSP0243, 8.1: alternatives for other platforms; the first is as good as any.
                reading.note_passed(node);
            } else {
                hardware = Some(node);
            }
        } else if node.has_tag_name((VMWARE, "BootOrderSection"))
            && node.attribute((VMWARE, "type")) == Some("disk")
            && boots_from.is_none()
        {
            // vSphere writes it without ovf:required, so it has to be understood.
            boots_from = node.attribute((VMWARE, "instanceId"));
        } else if !["Info", "Name", "OperatingSystemSection"]
            .iter()
            .any(|name| reading.is(node, name))
        {
            section(reading, node)?;
        }
    }
    let hardware = hardware.ok_or_else(|| reading.missing(system, "VirtualHardwareSection"))?;
    Ok((hardware, boots_from))
}

fn references<'a>(reading: &Reading<'a>, root: Node<'a>) -> Result<Vec<Reference>, Fault> {
    let mut references: Vec<Reference> = Vec::new();
    let files =
        reading.children(root, "References").flat_map(|part| reading.children(part, "File"));
    for file in files {
        if references.len() == limit::MAX_FILES {
            let problem = Problem::TooMany { what: "files", max: limit::MAX_FILES };
            return Err(reading.fault(file, problem));
        }
        let attribute =
            |name| reading.attribute(file, name).ok_or_else(|| reading.missing(file, name));
        let (id, href) = (attribute("id")?.to_owned(), attribute("href")?.to_owned());
        if references.iter().any(|other| other.id == id) {
            return Err(reading.fault(file, Problem::Second(cut(&format!("File {id:?}")))));
        }
        let unsupported = |what: String, instead| {
            Err(reading.fault(file, Problem::Unsupported { what, instead }))
        };
        if let Some(compression) = reading.attribute(file, "compression")
            && !matches!(compression, "" | "identity")
        {
            let what = format!("compression of files with {:?}", cut(compression));
            return unsupported(what, "export the package without it");
        }
        if reading.attribute(file, "chunkSize").is_some() {
            let what = "a file that is split into chunks".to_owned();
            return unsupported(what, "export the package without chunks");
        }
        let size = reading.attribute(file, "size").map(|size| number("the file's size", size));
        let size = size.transpose().map_err(|problem| reading.fault(file, problem))?;
        references.push(Reference { href, size, place: reading.place(file), id });
    }
    Ok(references)
}

/// The disks of the DiskSection, by their id.
fn declared_disks<'a>(
    reading: &Reading<'a>,
    root: Node<'a>,
    references: &[Reference],
) -> Result<BTreeMap<&'a str, DiskPlan>, Fault> {
    let mut disks = BTreeMap::new();
    let nodes =
        reading.children(root, "DiskSection").flat_map(|part| reading.children(part, "Disk"));
    for node in nodes {
        let fault = |problem| reading.fault(node, problem);
        let attribute = |name| reading.attribute(node, name);
        let id = attribute("diskId").ok_or_else(|| reading.missing(node, "diskId"))?;
        if attribute("parentRef").is_some() {
            return Err(fault(Problem::Unsupported {
                what: "a disk that is a difference to another".to_owned(),
                instead: "consolidate the VM's snapshots and export it again",
            }));
        }
        let reference = attribute("fileRef")
            .map(|id| find(references, id).ok_or_else(|| fault(dangling("the file", id))))
            .transpose()?;
        let format = match (reference, attribute("format")) {
            (None, _) => DiskFormat::Raw,
            (Some(_), None) => return Err(reading.missing(node, "format")),
            (Some(_), Some(uri)) => DiskFormat::of_uri(uri).ok_or_else(|| {
                fault(Problem::Value {
                    what: "the disk's format",
                    got: cut(uri),
                    wanted: "the address of raw, qcow2, vhd, or sparse or stream-optimized vmdk \
                             is expected",
                })
            })?,
        };
        let capacity = attribute("capacity").ok_or_else(|| reading.missing(node, "capacity"))?;
        let units = attribute("capacityAllocationUnits").unwrap_or("byte");
        let capacity = bytes("the disk's capacity", capacity, units).map_err(fault)?;
        let populated = attribute("populatedSize")
            .map(|size| number("the disk's populated size", size).map(Bytes))
            .transpose()
            .map_err(fault)?;
        let place = reading.place(node);
        let plan = DiskPlan { reference, format, capacity: Some(capacity), populated, place };
        if disks.insert(id, plan).is_some() {
            return Err(fault(Problem::Second(cut(&format!("Disk {id:?}")))));
        }
    }
    Ok(disks)
}

fn find(references: &[Reference], id: &str) -> Option<usize> {
    references.iter().position(|reference| reference.id == id)
}

fn dangling(what: &'static str, id: &str) -> Problem {
    Problem::Dangling { what, id: cut(id) }
}

/// What the disks of the hardware are made of.
fn disks(
    items: &[DiskItem],
    declared: &BTreeMap<&str, DiskPlan>,
    references: &[Reference],
) -> Result<Vec<DiskPlan>, Fault> {
    let mut used = BTreeSet::new();
    let mut plans = Vec::new();
    for item in items {
        let place = item.place;
        let fault = |problem| Fault { place, problem };
        plans.push(match &item.backing {
            Backing::Disk(id) => {
                if !used.insert(id) {
                    return Err(fault(Problem::Second(cut(&format!("use of the disk {id:?}")))));
                }
                let plan = declared.get(id.as_str());
                plan.cloned().ok_or_else(|| fault(dangling("the disk", id)))?
            }
            Backing::File(id) => {
                let at = find(references, id).ok_or_else(|| fault(dangling("the file", id)))?;
                // Nothing tells the format, and it is never guessed from the contents.
                if !references[at].href.ends_with(".raw") && !references[at].href.ends_with(".img")
                {
                    return Err(fault(Problem::Unsupported {
                        what: format!("the disk {:?} without a format", cut(&references[at].href)),
                        instead: "describe it by a Disk element with ovf:format",
                    }));
                }
                let (reference, format) = (Some(at), DiskFormat::Raw);
                DiskPlan { reference, format, capacity: None, populated: None, place }
            }
        });
    }
    Ok(plans)
}

/// The values of one attribute of all elements of a section.
fn names<'a>(
    reading: &Reading<'a>,
    root: Node<'a>,
    section: &'static str,
    element: &'static str,
    attribute: &str,
) -> BTreeSet<String> {
    let elements = reading.children(root, section).flat_map(|part| reading.children(part, element));
    elements.filter_map(|node| reading.attribute(node, attribute)).map(str::to_owned).collect()
}

/// The configuration to take: the default one, else the first (DSP0243, 9.8).
fn configuration<'a>(reading: &mut Reading<'a>, root: Node<'a>) -> Option<String> {
    let section = reading.children(root, "DeploymentOptionSection").next()?;
    let all: Vec<_> = reading.children(section, "Configuration").collect();
    let is_default =
        |node: &&Node<'a>| matches!(reading.attribute(**node, "default"), Some("true" | "1"));
    let chosen = *all.iter().find(is_default).or(all.first())?;
    let id = reading.attribute(chosen, "id")?.to_owned();
    let line = reading.place(chosen).line;
    if all.len() > 1 {
        let name = cut(&id);
        reading.warn(|| format!("line {line}: of {} configurations, {name:?} is taken", all.len()));
    }
    Some(id)
}

/// The VM's name: lower case, and dashes for all that a name may not hold.
fn vm_name<'a>(reading: &mut Reading<'a>, system: Node<'a>) -> Result<VmName, Fault> {
    let name = reading.children(system, "Name").next().map(text).filter(|name| !name.is_empty());
    let id = reading.attribute(system, "id").map(str::to_owned);
    let given = name.or(id).ok_or_else(|| reading.missing(system, "id"))?;
    let mut made = String::new();
    for c in given.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            made.push(c);
        } else if !made.is_empty() && !made.ends_with('-') {
            made.push('-');
        }
    }
    made.truncate(63);
    let made: VmName = made
        .trim_end_matches('-')
        .parse()
        .map_err(|_| reading.fault(system, Problem::Name(cut(&given))))?;
    if made.as_str() != given {
        let given = cut(&given);
        reading.warn(|| format!("the VM is named {made} here; the package calls it {given:?}"));
    }
    Ok(made)
}
