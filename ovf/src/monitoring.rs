//! Our own section on what is monitored, and the one of RESERVOIR's Claudia, which is read only.
//! Format: see the crate's documentation.

use std::io;

use data_encoding::BASE64;
use model::limit::MAX_SPECIFIERS;
use model::monitoring::{
    Comparison, Condition, Delivery, Format, Measure, Monitoring, SealingKey, Specifier,
    Thousandths, VmMeasure, is_kpi_column,
};
use quick_xml::Writer;
use quick_xml::events::BytesText;

use crate::fault::{Fault, Problem, cut};
use crate::restrictions::NAMESPACE;
use crate::unit::thousandths;
use crate::xml::{Node, Reading, label, text};

const SECTION: &str = "MonitoringSection";

/// The namespace of Claudia's sections.
const CLAUDIA: &str = "http://schemas.telefonica.com/claudia/ovf";
/// Claudia knows KPIs of a service, without tables; here they are of this file.
const CLAUDIA_TABLE: &str = "kpi";

/// Whether it is a section that is read here.
pub(crate) fn is_section(node: Node<'_>) -> bool {
    is_ours(node) || is_claudias(node)
}

/// Whether it is our own section.
pub(crate) fn is_ours(node: Node<'_>) -> bool {
    node.has_tag_name((NAMESPACE, SECTION))
}

fn is_claudias(node: Node<'_>) -> bool {
    ["KPISection", "ElasticArraySection"].iter().any(|name| node.has_tag_name((CLAUDIA, *name)))
}

/// Reads what is monitored of `system`.
pub(crate) fn read<'a>(reading: &mut Reading<'a>, system: Node<'a>) -> Result<Monitoring, Fault> {
    let mut monitoring = Monitoring::default();
    let mut section = None;
    for node in system.children().filter(|node| is_ours(*node)) {
        if section.replace(node).is_some() {
            return Err(reading.fault(node, Problem::Second(label(node))));
        }
        ours(reading, node, &mut monitoring)?;
    }
    claudia(reading, system, &mut monitoring)?;
    checked(reading, section.unwrap_or(system), monitoring)
}

/// Reads a section that stands alone.
pub(crate) fn read_alone<'a>(
    reading: &mut Reading<'a>,
    section: Node<'a>,
) -> Result<Monitoring, Fault> {
    let mut monitoring = Monitoring::default();
    ours(reading, section, &mut monitoring)?;
    checked(reading, section, monitoring)
}

fn checked<'a>(
    reading: &Reading<'a>,
    whole: Node<'a>,
    monitoring: Monitoring,
) -> Result<Monitoring, Fault> {
    let checked = monitoring.check().map_err(|error| {
        let problem = Problem::Monitoring(cut(&error.to_string()));
        reading.fault(whole, problem)
    });
    checked.map(|()| monitoring)
}

fn ours<'a>(
    reading: &Reading<'a>,
    section: Node<'a>,
    monitoring: &mut Monitoring,
) -> Result<(), Fault> {
    for node in section.children().filter(Node::is_element) {
        // Of the envelope's namespace, or of none where the section stands alone.
        if reading.is(node, "Info") || node.has_tag_name("Info") {
            continue;
        }
        let known = node.tag_name().namespace() == Some(NAMESPACE);
        if !known || node.first_element_child().is_some() {
            return unknown(reading, node);
        }
        match node.tag_name().name() {
            "SealingKey" if node.attributes().len() == 0 => {
                let text = text(node);
                let key = BASE64.decode(text.as_bytes()).ok();
                let Some(key) = key.and_then(|key| key.try_into().ok()) else {
                    let wanted = "an X25519 key is expected: 32 bytes in base64";
                    let problem = Problem::Value { what: "SealingKey", got: cut(&text), wanted };
                    return Err(reading.fault(node, problem));
                };
                if monitoring.sealing_key.replace(SealingKey(key)).is_some() {
                    return Err(reading.fault(node, Problem::Second(label(node))));
                }
            }
            "Monitor" => {
                room(reading, node, monitoring)?;
                monitoring.specifiers.push(specifier(reading, node)?);
            }
            _ => return unknown(reading, node),
        }
    }
    Ok(())
}

fn unknown<'a, T>(reading: &Reading<'a>, node: Node<'a>) -> Result<T, Fault> {
    // Whoever wrote it expects values that nobody would tell.
    Err(reading.fault(node, Problem::Monitoring(format!("{} is not known here", label(node)))))
}

fn room<'a>(reading: &Reading<'a>, node: Node<'a>, monitoring: &Monitoring) -> Result<(), Fault> {
    let many = Problem::TooMany { what: "things to monitor", max: MAX_SPECIFIERS };
    let full = monitoring.specifiers.len() >= MAX_SPECIFIERS;
    if full { Err(reading.fault(node, many)) } else { Ok(()) }
}

fn specifier<'a>(reading: &Reading<'a>, node: Node<'a>) -> Result<Specifier, Fault> {
    let mut measure = None;
    let (mut interval, mut delivery, mut condition) = (0, None, None);
    let (mut format, mut sealed, mut limit) = (Format::Raw, false, false);
    for attribute in node.attributes() {
        let (name, value) = (attribute.name(), attribute.value().trim());
        let problem = |what, wanted: &str| {
            Problem::Monitoring(format!("{what} is {:?}; {wanted}", cut(value)))
        };
        let fault = |problem| reading.fault(node, problem);
        let milliseconds = |what| {
            let number = value.bytes().all(|b| b.is_ascii_digit()).then(|| value.parse().ok());
            number.flatten().ok_or_else(|| fault(problem(what, "milliseconds are expected")))
        };
        match name {
            _ if attribute.namespace().is_some() => return unknown(reading, node),
            "measure" => {
                let read = value.parse::<Measure>();
                measure = Some(read.map_err(|e| fault(problem("measure", &e.to_string())))?);
            }
            "intervalMs" => interval = milliseconds("intervalMs")?,
            "deliveryMs" => delivery = Some(milliseconds("deliveryMs")?),
            "when" => {
                let read = value.parse::<Condition>();
                condition = Some(read.map_err(|e| fault(problem("when", &e.to_string())))?);
            }
            "format" => {
                let read = value.parse();
                format = read.map_err(|e: model::monitoring::NotOne| {
                    fault(problem("format", &e.to_string()))
                })?;
            }
            "sealed" => sealed = yes(value).ok_or_else(|| fault(problem("sealed", YES)))?,
            "limit" => limit = yes(value).ok_or_else(|| fault(problem("limit", YES)))?,
            _ => {
                let problem = format!("the attribute {} is not known here", cut(name));
                return Err(fault(Problem::Monitoring(problem)));
            }
        }
    }
    let measure = measure.ok_or_else(|| reading.missing(node, "measure"))?;
    let delivery = match (delivery, condition) {
        (Some(_), Some(_)) => {
            let problem = "deliveryMs and when exclude each other".to_owned();
            return Err(reading.fault(node, Problem::Monitoring(problem)));
        }
        (_, Some(condition)) => Delivery::When(condition),
        (every, None) => Delivery::Every(every.unwrap_or(0)),
    };
    Ok(Specifier { measure, interval_ms: interval, delivery, format, sealed, limit })
}

const YES: &str = "true or false is expected";

fn yes(value: &str) -> Option<bool> {
    match value {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// Takes over what RESERVOIR's Claudia has in a service's description: KPIs, and the rules by which
/// it adds and removes machines. What it would do then has no place here; when it would, has.
fn claudia<'a>(
    reading: &mut Reading<'a>,
    system: Node<'a>,
    monitoring: &mut Monitoring,
) -> Result<(), Fault> {
    // Of the whole service, or of the system: there is one system, so that they mean the same.
    let envelope = system.document().root_element();
    let sections =
        |name| envelope.descendants().filter(move |node| node.has_tag_name((CLAUDIA, name)));
    let mut named = vec![];
    for node in sections("KPISection").flat_map(|section| section.children()) {
        if !node.has_tag_name((CLAUDIA, "KPI")) {
            continue;
        }
        let name = attribute(node, "KPIname").ok_or_else(|| reading.missing(node, "KPIname"))?;
        let kind = attribute(node, "KPItype").unwrap_or("AGENT");
        let Some(measure) = measure_of(reading, node, name, kind)? else { continue };
        named.push(measure.clone());
        if !monitoring.specifiers.iter().any(|other| other.measure == measure) {
            room(reading, node, monitoring)?;
            let delivery = Delivery::Every(0);
            let (interval_ms, format, sealed) = (0, Format::Raw, false);
            let specifier =
                Specifier { measure, interval_ms, delivery, format, sealed, limit: false };
            monitoring.specifiers.push(specifier);
        }
    }
    for rule in sections("ElasticArraySection").flat_map(|section| section.children()) {
        if !rule.has_tag_name((CLAUDIA, "Rule")) {
            continue;
        }
        room(reading, rule, monitoring)?;
        if let Some(specifier) = rule_of(reading, rule)? {
            monitoring.specifiers.push(specifier);
        }
    }
    Ok(())
}

/// A rule of Claudia's: the mean over the window is looked at so often; it is above the quota.
fn rule_of<'a>(reading: &mut Reading<'a>, rule: Node<'a>) -> Result<Option<Specifier>, Fault> {
    let child = |name| rule.children().find(|node| node.has_tag_name((CLAUDIA, name)));
    let missing = |part| reading.missing(rule, part);
    let name = text(child("KPIName").ok_or_else(|| missing("KPIName"))?);
    let quota = child("Quota").ok_or_else(|| missing("Quota"))?;
    let number = |node: Node<'a>, what| {
        let text = text(node);
        thousandths(&text).and_then(|n| i64::try_from(n).ok()).ok_or_else(|| {
            let wanted = "a number with at most three digits after its point is expected";
            reading.fault(node, Problem::Value { what, got: cut(&text), wanted })
        })
    };
    let threshold = Thousandths(number(quota, "Quota")?);
    let tolerance = child("Tolerance").map(|node| number(node, "Tolerance")).transpose()?;
    // In hundredths of the quota.
    let hysteresis = tolerance.unwrap_or(0).saturating_mul(threshold.0) / 100_000;
    let time = |node: Node<'a>, what, unit: i64| {
        let milliseconds = number(node, what)?.saturating_mul(unit) / 1000;
        u32::try_from(milliseconds).map_err(|_| {
            let wanted = "a time below 49 days is expected";
            let problem = Problem::Value { what, got: cut(&text(node)), wanted };
            reading.fault(node, problem)
        })
    };
    let window = child("Window").map(|node| {
        let unit = match attribute(node, "unit").unwrap_or("minute") {
            "second" | "seconds" => 1000,
            "minute" | "minutes" => 60_000,
            "hour" | "hours" => 3_600_000,
            other => {
                let wanted = "second, minute or hour is expected";
                let problem = Problem::Value { what: "the window's unit", got: cut(other), wanted };
                return Err(reading.fault(node, problem));
            }
        };
        time(node, "Window", unit)
    });
    let lasting_ms = window.transpose()?.unwrap_or(0);
    let interval = child("Frequency").map(|node| time(node, "Frequency", 1000)).transpose()?;
    let kind = child("KPIType").map(text).unwrap_or_else(|| "AGENT".to_owned());
    let Some(measure) = measure_of(reading, rule, &name, &kind)? else { return Ok(None) };
    let condition = Condition {
        comparison: Comparison::Above,
        threshold,
        hysteresis: Thousandths(hysteresis),
        lasting_ms,
    };
    Ok(Some(Specifier {
        measure,
        interval_ms: interval.unwrap_or(0),
        delivery: Delivery::When(condition),
        format: Format::Mean,
        sealed: false,
        limit: false,
    }))
}

/// What a KPI of Claudia's is here. Those of the machine itself (`VEEHW`) are known by a few names;
/// one that is not is passed over.
fn measure_of<'a>(
    reading: &mut Reading<'a>,
    node: Node<'a>,
    name: &str,
    kind: &str,
) -> Result<Option<Measure>, Fault> {
    if kind == "VEEHW" {
        let found = match name {
            "cpu" => Some(VmMeasure::CpuShare),
            "memory" => Some(VmMeasure::MemoryResident),
            "disk" => Some(VmMeasure::DiskWritten),
            "network" => Some(VmMeasure::NetworkSent),
            other => match other.parse() {
                Ok(Measure::Vm(measure)) => Some(measure),
                _ => None,
            },
        };
        if found.is_none() {
            let line = reading.place(node).line;
            let name = cut(name);
            reading.warn(|| format!("line {line}: no measure is called {name:?}; passed over"));
        }
        return Ok(found.map(Measure::Vm));
    }
    // Names of Claudia's tree: the last part is the KPI's own.
    let column = name.rsplit('.').next().unwrap_or(name);
    if !is_kpi_column(column) {
        let wanted = "letters, digits, - and _ are expected, beginning with a letter or _";
        let problem = Problem::Value { what: "the KPI's name", got: cut(name), wanted };
        return Err(reading.fault(node, problem));
    }
    let (table, column) = (CLAUDIA_TABLE.to_owned(), column.to_owned());
    Ok(Some(Measure::Kpi { table, column }))
}

/// An attribute, qualified or not.
fn attribute<'a>(node: Node<'a>, name: &str) -> Option<&'a str> {
    node.attribute((CLAUDIA, name)).or_else(|| node.attribute(name)).map(str::trim)
}

/// Writes the section, if there is something to say.
pub(crate) fn write(writer: &mut Writer<Vec<u8>>, what: &Monitoring) -> io::Result<()> {
    let here = [("ovf:required", "false"), ("xmlns:sj", NAMESPACE)];
    if *what == Monitoring::default() { Ok(()) } else { write_section(writer, &here, what) }
}

/// The section as a document of its own, which [`read_monitoring`](crate::read_monitoring) reads.
pub fn monitoring_text(what: &Monitoring) -> String {
    let mut writer = Writer::new_with_indent(vec![], b' ', 2);
    write_section(&mut writer, &[("xmlns:sj", NAMESPACE)], what)
        .expect("memory takes what is written");
    String::from_utf8(writer.into_inner()).expect("it is written as UTF-8")
}

fn write_section(
    writer: &mut Writer<Vec<u8>>,
    attributes: &[(&str, &str)],
    what: &Monitoring,
) -> io::Result<()> {
    let section = writer.create_element("sj:MonitoringSection");
    let section = section.with_attributes(attributes.iter().copied());
    section.write_inner_content(|writer| {
        let info = BytesText::new("What is measured of this virtual machine");
        writer.create_element("Info").write_text_content(info)?;
        if let Some(key) = what.sealing_key {
            let key = BASE64.encode(&key.0);
            writer.create_element("sj:SealingKey").write_text_content(BytesText::new(&key))?;
        }
        for specifier in &what.specifiers {
            let measure = specifier.measure.to_string();
            let interval = specifier.interval_ms.to_string();
            let (name, value) = match &specifier.delivery {
                Delivery::Every(every) => ("deliveryMs", every.to_string()),
                Delivery::When(condition) => ("when", condition.to_string()),
            };
            let format = specifier.format.to_string();
            let element = writer.create_element("sj:Monitor").with_attributes([
                ("measure", measure.as_str()),
                ("intervalMs", &interval),
                (name, &value),
                ("format", &format),
                ("sealed", if specifier.sealed { "true" } else { "false" }),
            ]);
            let limit = specifier.limit.then_some(("limit", "true"));
            element.with_attributes(limit).write_empty()?;
        }
        Ok(())
    })?;
    Ok(())
}
