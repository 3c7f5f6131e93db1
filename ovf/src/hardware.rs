//! The virtual hardware: items of CIM_ResourceAllocationSettingData, chosen by ResourceType.

use std::collections::BTreeSet;

use model::vm::Nic;
use model::{Resources, limit};

use crate::fault::{Fault, Place, Problem, cut};
use crate::unit::{bytes, number};
use crate::xml::{Node, Reading, label, text};

/// What the namespaces of CIM classes start with; OVF 2 has three of them for items.
const CIM: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_";

/// What a hardware section asks for.
#[derive(Debug)]
pub(crate) struct Hardware {
    pub(crate) resources: Resources,
    pub(crate) disks: Vec<DiskItem>,
    pub(crate) nics: Vec<Nic>,
}

/// A disk of the hardware.
#[derive(Debug)]
pub(crate) struct DiskItem {
    /// The id by which a boot order names it.
    pub(crate) instance: String,
    pub(crate) backing: Backing,
    pub(crate) place: Place,
}

/// What a disk's HostResource names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// A Disk of the DiskSection.
    Disk(String),
    /// A File of the References.
    File(String),
}

/// Reads a VirtualHardwareSection for one configuration of the package.
pub(crate) fn read<'a>(
    reading: &mut Reading<'a>,
    section: Node<'a>,
    configuration: Option<&str>,
    networks: &BTreeSet<String>,
    random_mac: &mut dyn FnMut() -> [u8; 6],
) -> Result<Hardware, Fault> {
    let (mut cpus, mut memory) = (None, None);
    let (mut disks, mut nics) = (Vec::new(), Vec::<Nic>::new());
    for item in items(reading, section, configuration)? {
        let kind = field(item, "ResourceType");
        let kind = kind.ok_or_else(|| reading.missing(item, "ResourceType"))?;
        match kind.as_str() {
            "3" => {
                let count = processors(&quantity(reading, item)?);
                let count = count.map_err(|problem| reading.fault(item, problem))?;
                once(reading, item, &mut cpus, count, "processor item")?;
            }
            "4" => {
                let units = field(item, "AllocationUnits");
                let units = units.ok_or_else(|| reading.missing(item, "AllocationUnits"))?;
                let size = bytes("the memory", &quantity(reading, item)?, &units)
                    .map_err(|problem| reading.fault(item, problem))?;
                once(reading, item, &mut memory, size, "memory item")?;
            }
            "10" => {
                bounded(reading, item, nics.len(), "network cards", limit::MAX_NICS)?;
                let nic = network_card(reading, item, networks, random_mac)?;
                if nics.iter().any(|other| other.mac == nic.mac) {
                    let problem = Problem::Second("network card with this MAC address".to_owned());
                    return Err(reading.fault(item, problem));
                }
                nics.push(nic);
            }
            "17" => {
                bounded(reading, item, disks.len(), "disks", limit::MAX_DISKS)?;
                disks.push(disk(reading, item)?);
            }
            // Disk controllers: which ones a guest gets is the hosting site's choice.
            "5" | "6" | "20" => {}
            _ => {
                let line = reading.place(item).line;
                reading.warn(|| {
                    let name = field(item, "ElementName").unwrap_or_default();
                    let (name, kind) = (cut(&name), cut(&kind));
                    format!("line {line}: the device {name:?} (resource type {kind}) is left out")
                });
            }
        }
    }
    let cpus = cpus.ok_or_else(|| reading.missing(section, "processor item (ResourceType 3)"))?;
    let memory = memory.ok_or_else(|| reading.missing(section, "memory item (ResourceType 4)"))?;
    Ok(Hardware { resources: Resources { cpus, memory }, disks, nics })
}

/// The items that hold for the configuration, in order.
fn items<'a>(
    reading: &mut Reading<'a>,
    section: Node<'a>,
    configuration: Option<&str>,
) -> Result<Vec<Node<'a>>, Fault> {
    let mut items: Vec<(Option<String>, Node<'a>)> = Vec::new();
    for node in section.children().filter(Node::is_element) {
        let known = ["Item", "StorageItem", "EthernetPortItem"];
        if !known.iter().any(|name| reading.is(node, name)) {
            if !["Info", "System"].iter().any(|name| reading.is(node, name)) {
                reading.pass_over(node)?;
            }
            continue;
        }
        // DSP0243, 8.4: bounds tell a range for people; the item without one is the value.
        if !matches!(reading.attribute(node, "bound"), None | Some("normal")) {
            continue;
        }
        let listed = reading.attribute(node, "configuration");
        if let Some(listed) = listed
            && !listed.split_whitespace().any(|name| Some(name) == configuration)
        {
            continue;
        }
        // An item for a configuration takes the place of the common one with the same id.
        let instance = field(node, "InstanceID");
        let same = items.iter_mut().find(|(seen, _)| listed.is_some() && *seen == instance);
        match same {
            Some(place) if instance.is_some() => place.1 = node,
            _ => items.push((instance, node)),
        }
    }
    Ok(items.into_iter().map(|(_, node)| node).collect())
}

/// A property of an item, whichever CIM class it is of.
fn field(item: Node<'_>, name: &str) -> Option<String> {
    let is_cim = |node: &Node<'_>| {
        node.tag_name().namespace().is_some_and(|namespace| namespace.starts_with(CIM))
    };
    item.children().find(|node| is_cim(node) && node.tag_name().name() == name).map(text)
}

fn quantity<'a>(reading: &Reading<'a>, item: Node<'a>) -> Result<String, Fault> {
    field(item, "VirtualQuantity").ok_or_else(|| reading.missing(item, "VirtualQuantity"))
}

fn processors(text: &str) -> Result<u32, Problem> {
    let count = number("the number of processors", text)?;
    u32::try_from(count).map_err(|_| Problem::Value {
        what: "the number of processors",
        got: cut(text),
        wanted: "far fewer are expected",
    })
}

fn once<'a, T>(
    reading: &Reading<'a>,
    item: Node<'a>,
    slot: &mut Option<T>,
    value: T,
    what: &str,
) -> Result<(), Fault> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(reading.fault(item, Problem::Second(what.to_owned()))),
    }
}

fn bounded<'a>(
    reading: &Reading<'a>,
    item: Node<'a>,
    count: usize,
    what: &'static str,
    max: usize,
) -> Result<(), Fault> {
    if count < max { Ok(()) } else { Err(reading.fault(item, Problem::TooMany { what, max })) }
}

fn network_card<'a>(
    reading: &mut Reading<'a>,
    item: Node<'a>,
    networks: &BTreeSet<String>,
    random_mac: &mut dyn FnMut() -> [u8; 6],
) -> Result<Nic, Fault> {
    let line = reading.place(item).line;
    let network = field(item, "Connection").filter(|name| !name.is_empty());
    let network = network.ok_or_else(|| reading.missing(item, "Connection"))?;
    if !networks.contains(&network) {
        let name = cut(&network);
        reading.warn(|| format!("line {line}: the NetworkSection has no network {name:?}"));
    }
    let address = field(item, "Address").filter(|address| !address.is_empty());
    let mac = match &address {
        None => random_mac(),
        Some(address) => mac(address).ok_or_else(|| {
            let wanted = "the MAC address of one card is expected, such as 52:54:00:12:34:56";
            let problem = Problem::Value { what: "Address", got: cut(address), wanted };
            reading.fault(item, problem)
        })?,
    };
    Ok(Nic { network, mac })
}

/// A unicast MAC address, with colons, with dashes or in one word.
fn mac(text: &str) -> Option<[u8; 6]> {
    let digits: String = match text.len() {
        12 => text.to_owned(),
        17 => {
            let separator = text.chars().nth(2).filter(|c| matches!(c, ':' | '-'))?;
            let parts: Vec<&str> = text.split(separator).collect();
            (parts.len() == 6 && parts.iter().all(|part| part.len() == 2))
                .then(|| parts.concat())?
        }
        _ => return None,
    };
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?;
    let mac: [u8; 6] = bytes.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

fn disk<'a>(reading: &Reading<'a>, item: Node<'a>) -> Result<DiskItem, Fault> {
    let resource = field(item, "HostResource");
    let resource = resource.ok_or_else(|| reading.missing(item, "HostResource"))?;
    let backing = backing(&resource).ok_or_else(|| {
        let wanted = "ovf:/disk/ID or ovf:/file/ID is expected";
        reading.fault(item, Problem::Value { what: "HostResource", got: cut(&resource), wanted })
    })?;
    let instance = field(item, "InstanceID").unwrap_or_else(|| label(item));
    Ok(DiskItem { instance, backing, place: reading.place(item) })
}

/// Older tools leave out the scheme.
fn backing(resource: &str) -> Option<Backing> {
    let path = resource.strip_prefix("ovf:").unwrap_or(resource);
    let (kind, id) = path.strip_prefix('/')?.split_once('/')?;
    match kind {
        "disk" => Some(Backing::Disk(id.to_owned())),
        "file" => Some(Backing::File(id.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_read_in_all_spellings_and_only_of_one_card() {
        let wanted = Some([0x52, 0x54, 0, 0x12, 0x34, 0xab]);
        for good in ["52:54:00:12:34:ab", "52-54-00-12-34-AB", "5254001234AB"] {
            assert_eq!(mac(good), wanted, "{good}");
        }
        let bad = ["", "auto", "53:54:00:12:34:ab", "00:00:00:00:00:00", "52:54:00:12:34:zz"];
        for bad in bad.iter().chain(&["52:54-00:12:34:ab", "5:254:00:12:34:ab", "ä2:54:00:12:34:"])
        {
            assert_eq!(mac(bad), None, "{bad:?} was taken");
        }
    }

    #[test]
    fn host_resources_are_read_with_and_without_scheme() {
        assert_eq!(backing("ovf:/disk/a"), Some(Backing::Disk("a".into())));
        assert_eq!(backing("/disk/a/b"), Some(Backing::Disk("a/b".into())));
        assert_eq!(backing("ovf:/file/a"), Some(Backing::File("a".into())));
        for bad in ["", "a", "ovf:/net/a", "file:///etc/passwd", "disk/a"] {
            assert_eq!(backing(bad), None, "{bad:?} was taken");
        }
    }
}
