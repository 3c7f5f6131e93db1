//! Our own section: what the VM's owner rules out. Format: see the crate's documentation.

use std::io;

use model::vm::Restrictions;
use quick_xml::Writer;
use quick_xml::events::BytesText;

use crate::fault::{Fault, Problem, cut};
use crate::monitoring;
use crate::unit::thousandths;
use crate::xml::{Node, Reading, label, text};

/// The namespace of the section that is read and written.
pub(crate) const NAMESPACE: &str = "https://sojourn.example/ovf/1";
/// What the namespaces of all its versions start with.
const FAMILY: &str = "https://sojourn.example/ovf/";
const SECTION: &str = "RestrictionsSection";

/// Whether it is our section on restrictions.
pub(crate) fn is_section(node: Node<'_>) -> bool {
    node.has_tag_name((NAMESPACE, SECTION))
}

/// Reads the restrictions of `system`.
pub(crate) fn read<'a>(reading: &Reading<'a>, system: Node<'a>) -> Result<Restrictions, Fault> {
    let unknown = |node| Err(reading.fault(node, Problem::Restriction(label(node))));
    let mut section = None;
    // What stands elsewhere, or in a version to come, restricts something that we cannot tell.
    for node in system.document().descendants() {
        let ours = |node: Node<'a>| {
            node.tag_name().namespace().is_some_and(|namespace| namespace.starts_with(FAMILY))
        };
        let within = |parent| is_section(parent) || monitoring::is_ours(parent);
        if !ours(node) || node.parent().is_some_and(within) {
            continue;
        }
        if node.parent() == Some(system) && monitoring::is_ours(node) {
            continue;
        }
        if !is_section(node) || node.parent() != Some(system) {
            return unknown(node);
        }
        if section.replace(node).is_some() {
            return Err(reading.fault(node, Problem::Second(label(node))));
        }
    }
    let mut restrictions = Restrictions::default();
    let Some(section) = section else { return Ok(restrictions) };
    for node in section.children() {
        if reading.is(node, "Info") || !node.is_element() {
            if node.is_text() && !node.text().unwrap_or_default().trim().is_empty() {
                return unknown(section);
            }
            continue;
        }
        // An attribute or a child could change what the element means.
        let plain = node.attributes().len() == 0 && node.first_element_child().is_none();
        if node.tag_name().namespace() != Some(NAMESPACE) || !plain {
            return unknown(node);
        }
        let text = text(node);
        let bad = |what, wanted| {
            Err(reading.fault(node, Problem::Value { what, got: cut(&text), wanted }))
        };
        match node.tag_name().name() {
            "NoDelegation" => {
                if !matches!(text.as_str(), "" | "true") {
                    return bad("NoDelegation", "nothing or true is expected; else leave it out");
                }
                restrictions.no_delegation = true;
            }
            "Country" => {
                if text.len() != 2 || !text.bytes().all(|b| b.is_ascii_uppercase()) {
                    return bad("Country", "two capital letters (ISO 3166-1) are expected");
                }
                restrictions.countries.push(text);
            }
            "MaxPricePerHour" => {
                let Some(price) = thousandths(&text) else {
                    return bad("MaxPricePerHour", "a price such as 1.250 is expected");
                };
                if restrictions.max_price_milli.replace(price).is_some() {
                    return Err(reading.fault(node, Problem::Second(label(node))));
                }
            }
            "Apart" => {
                if !model::vm::is_group(&text) {
                    return bad("Apart", "1 to 63 printable characters are expected");
                }
                if restrictions.apart.replace(text).is_some() {
                    return Err(reading.fault(node, Problem::Second(label(node))));
                }
            }
            _ => return unknown(node),
        }
    }
    Ok(restrictions)
}

/// Writes the section, if there is something to say.
pub(crate) fn write(writer: &mut Writer<Vec<u8>>, what: &Restrictions) -> io::Result<()> {
    if *what == Restrictions::default() {
        return Ok(());
    }
    let section = writer
        .create_element("sj:RestrictionsSection")
        .with_attribute(("ovf:required", "false"))
        .with_attribute(("xmlns:sj", NAMESPACE));
    section.write_inner_content(|writer| {
        let info = BytesText::new("What the owner of this virtual machine rules out");
        writer.create_element("Info").write_text_content(info)?;
        if what.no_delegation {
            writer.create_element("sj:NoDelegation").write_empty()?;
        }
        for country in &what.countries {
            writer.create_element("sj:Country").write_text_content(BytesText::new(country))?;
        }
        if let Some(price) = what.max_price_milli {
            let price = format!("{}.{:03}", price / 1000, price % 1000);
            writer
                .create_element("sj:MaxPricePerHour")
                .write_text_content(BytesText::new(&price))?;
        }
        if let Some(group) = &what.apart {
            writer.create_element("sj:Apart").write_text_content(BytesText::new(group))?;
        }
        Ok(())
    })?;
    Ok(())
}
