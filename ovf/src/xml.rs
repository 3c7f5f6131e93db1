//! Reads XML with limits, and walks it with places and warnings.

use quick_xml::Reader;
use quick_xml::events::Event;
use roxmltree::{Document, ParsingOptions};

use crate::fault::{Fault, Place, Problem, cut};
use crate::limit;

pub(crate) type Node<'a> = roxmltree::Node<'a, 'a>;

/// Parses a descriptor.
///
/// It is scanned first, in one pass and constant memory, because the tree's cost grows with the
/// square of an element's attributes and with namespaces times elements.
pub(crate) fn parse(text: &str) -> Result<Document<'_>, Fault> {
    let elements = scan(text)?;
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: 4 * u32::try_from(limit::MAX_ELEMENTS).expect("the limit is small"),
        ..Default::default()
    };
    let document = Document::parse_with_options(text, options).map_err(|error| {
        let pos = error.pos();
        let problem = match &error {
            roxmltree::Error::UnknownEntityReference(name, _) => Problem::Entity(cut(name)),
            roxmltree::Error::DtdDetected => Problem::Doctype,
            // The place is told once, in front.
            _ => Problem::Malformed(cut(&error.to_string().replace(&format!(" at {pos}"), ""))),
        };
        Fault { place: Place { line: pos.row, column: pos.col }, problem }
    })?;
    // Where the two readers differ, the tree has what the scan did not see.
    debug_assert_eq!(document.descendants().filter(Node::is_element).count(), elements);
    Ok(document)
}

/// Refuses what must not reach the tree, and counts the elements.
fn scan(text: &str) -> Result<usize, Fault> {
    let mut reader = Reader::from_str(text);
    let (mut depth, mut elements, mut namespaces) = (0, 0, 0);
    loop {
        let start = offset(reader.buffer_position());
        let fault = |at, problem| Fault { place: Place::at(text, at), problem };
        let many = |what, max| fault(start, Problem::TooMany { what, max });
        let event = reader.read_event().map_err(|error| {
            let at = offset(reader.error_position());
            fault(at, Problem::Malformed(cut(&error.to_string())))
        })?;
        let (element, levels) = match event {
            Event::Eof => return Ok(elements),
            Event::DocType(_) => return Err(fault(start, Problem::Doctype)),
            Event::Start(element) => (element, 1),
            Event::Empty(element) => (element, 0),
            Event::End(_) => {
                depth -= 1;
                continue;
            }
            _ => continue,
        };
        elements += 1;
        if elements > limit::MAX_ELEMENTS {
            return Err(many("elements", limit::MAX_ELEMENTS));
        }
        depth += levels;
        if depth > limit::MAX_DEPTH {
            return Err(many("levels of elements", limit::MAX_DEPTH));
        }
        for (count, attribute) in element.attributes().with_checks(false).enumerate() {
            if count == limit::MAX_ATTRIBUTES {
                return Err(many("attributes of one element", limit::MAX_ATTRIBUTES));
            }
            let attribute = attribute
                .map_err(|error| fault(start, Problem::Malformed(cut(&error.to_string()))))?;
            namespaces += usize::from(attribute.key.as_namespace_binding().is_some());
        }
        if namespaces > limit::MAX_NAMESPACES {
            return Err(many("namespace declarations", limit::MAX_NAMESPACES));
        }
    }
}

fn offset(position: u64) -> usize {
    usize::try_from(position).expect("the text is in memory")
}

/// One reading of a descriptor: knows the text for places and gathers warnings.
pub(crate) struct Reading<'a> {
    text: &'a str,
    /// The namespace of the envelope, which differs between versions 1 and 2.
    envelope: &'a str,
    warnings: Vec<String>,
    unprinted: usize,
    passed_over: Vec<(String, usize, u32)>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(text: &'a str, envelope: &'a str) -> Self {
        let (warnings, passed_over) = (Vec::new(), Vec::new());
        Self { text, envelope, warnings, unprinted: 0, passed_over }
    }

    pub(crate) fn place(&self, node: Node<'a>) -> Place {
        Place::at(self.text, node.range().start)
    }

    pub(crate) fn fault(&self, node: Node<'a>, problem: Problem) -> Fault {
        Fault { place: self.place(node), problem }
    }

    pub(crate) fn missing(&self, node: Node<'a>, part: &'static str) -> Fault {
        self.fault(node, Problem::Missing { element: label(node), part })
    }

    /// Whether it is an element of OVF's own namespace with this name.
    pub(crate) fn is(&self, node: Node<'a>, name: &str) -> bool {
        self.is_ours(node) && node.tag_name().name() == name
    }

    /// Whether it is an element of OVF's own namespace.
    pub(crate) fn is_ours(&self, node: Node<'a>) -> bool {
        node.is_element() && node.tag_name().namespace() == Some(self.envelope)
    }

    /// The children with this name, in OVF's own namespace.
    pub(crate) fn children(
        &self,
        node: Node<'a>,
        name: &'static str,
    ) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let envelope = self.envelope;
        node.children().filter(move |child| child.has_tag_name((envelope, name)))
    }

    /// An attribute, qualified as the standard has it or not as some tools do.
    pub(crate) fn attribute(&self, node: Node<'a>, name: &str) -> Option<&'a str> {
        node.attribute((self.envelope, name)).or_else(|| node.attribute(name)).map(str::trim)
    }

    /// Passes over an element that is not known, unless it must be understood.
    pub(crate) fn pass_over(&mut self, node: Node<'a>) -> Result<(), Fault> {
        match self.attribute(node, "required") {
            Some("false" | "0") => {}
            None | Some("true" | "1") => {
                return Err(self.fault(node, Problem::Required(label(node))));
            }
            Some(other) => {
                let (what, wanted) = ("ovf:required", "true or false is expected");
                let problem = Problem::Value { what, got: cut(other), wanted };
                return Err(self.fault(node, problem));
            }
        }
        self.note_passed(node);
        Ok(())
    }

    /// Warns of an element that is passed over; the same kind only once, with its number.
    pub(crate) fn note_passed(&mut self, node: Node<'a>) {
        let label = label(node);
        if let Some((_, count, _)) = self.passed_over.iter_mut().find(|(seen, ..)| *seen == label) {
            *count += 1;
        } else if self.passed_over.len() < limit::MAX_WARNINGS {
            let line = self.place(node).line;
            self.passed_over.push((label, 1, line));
        } else {
            self.unprinted += 1;
        }
    }

    pub(crate) fn warn(&mut self, warning: impl FnOnce() -> String) {
        if self.warnings.len() < limit::MAX_WARNINGS {
            self.warnings.push(warning());
        } else {
            self.unprinted += 1;
        }
    }

    /// All warnings.
    pub(crate) fn into_warnings(mut self) -> Vec<String> {
        for (label, count, line) in self.passed_over {
            self.warnings.push(match count {
                1 => format!("line {line}: {label} is passed over"),
                _ => format!("line {line}: {label} is passed over, {count} times in all"),
            });
        }
        let more = self.warnings.len().saturating_sub(limit::MAX_WARNINGS) + self.unprinted;
        self.warnings.truncate(limit::MAX_WARNINGS);
        if more > 0 {
            self.warnings.push(format!("{more} more warnings"));
        }
        self.warnings
    }
}

/// What an element is called in messages.
pub(crate) fn label(node: Node<'_>) -> String {
    let name = node.tag_name();
    let prefix = name.namespace().and_then(|namespace| node.lookup_prefix(namespace));
    // OVF's own names read better bare, whatever prefix the tool gave them.
    cut(&match prefix {
        Some(prefix) if prefix != "ovf" => format!("{prefix}:{}", name.name()),
        _ => name.name().to_owned(),
    })
}

/// The text of an element, without that of its children.
pub(crate) fn text(node: Node<'_>) -> String {
    let parts = node.children().filter(|child| child.is_text());
    parts.filter_map(|part| part.text()).collect::<String>().trim().to_owned()
}
