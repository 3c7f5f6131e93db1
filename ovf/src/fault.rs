//! What is wrong in a descriptor, and where.

use std::fmt;

/// A place in the descriptor's text, both counted from 1; the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Place {
    /// The place of the byte at `offset`.
    pub(crate) fn at(text: &str, offset: usize) -> Self {
        let before = &text[..text.floor_char_boundary(offset)];
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let count = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
        Self {
            line: count(before.bytes().filter(|&b| b == b'\n').count()),
            column: count(before[start..].chars().count()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A descriptor is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// Why.
    pub problem: Problem,
}

/// Why a descriptor is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is not XML.
    #[error("not well-formed XML: {0}")]
    Malformed(String),
    /// It has a document type declaration.
    #[error("document type declarations are refused, since they define entities; remove it")]
    Doctype,
    /// It uses an entity that XML does not predefine.
    #[error("the entity {0:?} is refused; only those that XML predefines are read")]
    Entity(String),
    /// A limit is passed.
    #[error("more than {max} {what}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The root element is something else.
    #[error("the root element is no OVF envelope of version 1 or 2 (DMTF DSP0243)")]
    NotAnEnvelope,
    /// The root element says nothing of monitoring.
    #[error("the root element is neither a MonitoringSection nor an OVF envelope with one")]
    NotMonitoring,
    /// An element lacks a part.
    #[error("{element} has no {part}")]
    Missing {
        /// The element.
        element: String,
        /// The child or attribute.
        part: &'static str,
    },
    /// An element stands twice where one is legal.
    #[error("a second {0}; one is expected")]
    Second(String),
    /// A value makes no sense.
    #[error("{what} is {got:?}; {wanted}")]
    Value {
        /// What the value is of.
        what: &'static str,
        /// The value, cut to a printable length.
        got: String,
        /// What would be legal.
        wanted: &'static str,
    },
    /// Something refers to what is not there.
    #[error("{what} {id:?} is not in the package")]
    Dangling {
        /// What is referred to.
        what: &'static str,
        /// By what.
        id: String,
    },
    /// A part that must be understood is not known.
    #[error(
        "{0} is not known here, and must be understood (ovf:required is true unless it says false)"
    )]
    Required(String),
    /// A restriction that is not known, or not where it belongs.
    #[error("the restriction {0} is not known here; an unknown restriction is a refusal")]
    Restriction(String),
    /// What is to be monitored is not said as it should be.
    #[error("the monitoring section: {0}")]
    Monitoring(String),
    /// A lawful feature that is not supported.
    #[error("{what} is not supported; {instead}")]
    Unsupported {
        /// The feature.
        what: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// Not exactly one VM.
    #[error("the package holds {0} virtual systems; one is expected: export the VMs one by one")]
    Systems(usize),
    /// The VM's name cannot be made into one.
    #[error("no VM name can be made of {0:?}; pass one with --name")]
    Name(String),
    /// A reference leaves the package.
    #[error("the file name {name:?} {why}")]
    FileName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file is not as big as the descriptor says.
    #[error("the file {name:?} has {actual} bytes, the descriptor says {declared}")]
    FileSize {
        /// The file.
        name: String,
        /// Its size.
        actual: u64,
        /// The size that the descriptor gives.
        declared: u64,
    },
}

/// The text in a length that can be printed.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
