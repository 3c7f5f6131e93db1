//! Which names files and columns may have.
//!
//! A file's name becomes a table's, and a field of the first line a column's.
//! They are always quoted, and still come from a small set, so that whoever reads them later (a
//! shell, a policy, a plot) need not be careful.
//!
//! | name | is |
//! | --- | --- |
//! | a letter or `_`, then letters, digits, `_`, `-`, `.`; ASCII, [`NAME_MAX`] bytes at most | an [`Identifier`]: a table, or a column |
//! | that, starting with `sqlite_` or `kpi_` in any case | refused: SQLite's own, and ours |
//! | `rowid`, `_rowid_`, `oid` in any case | refused as a column: SQLite gives them a meaning |
//! | starts with `.` or `#`, or ends with `~`; printable ASCII | a [`Name::Scratch`]: an editor's or a program's temporary file, never a row |
//! | everything else | refused |

use std::fmt;

use crate::refusal::Refusal;

/// Longest name, in bytes.
pub const NAME_MAX: usize = 64;

/// What starts a name that is not for applications.
const RESERVED: [&str; 2] = ["sqlite_", "kpi_"];

/// Column names that SQLite gives a meaning of its own.
const ROW_IDS: [&str; 3] = ["rowid", "_rowid_", "oid"];

/// A name that a table or a column may have: the rules of the module's table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identifier(String);

impl Identifier {
    /// Reads a file's name.
    pub fn of_table(name: &[u8]) -> Result<Self, Refusal> {
        Self::parse(name).ok_or_else(|| Refusal::Name(shown(name)))
    }

    /// Reads a field of the first line.
    pub fn of_column(name: &str) -> Result<Self, Refusal> {
        let is_row_id = ROW_IDS.iter().any(|id| name.eq_ignore_ascii_case(id));
        Self::parse(name.as_bytes())
            .filter(|_| !is_row_id)
            .ok_or_else(|| Refusal::Column(shown(name.as_bytes())))
    }

    /// The name of a column that has none: `column1`, `column2`, …
    pub fn numbered(index: usize) -> Self {
        Self(format!("column{}", index + 1))
    }

    fn parse(name: &[u8]) -> Option<Self> {
        let (first, rest) = name.split_first()?;
        let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
        let fits = (first.is_ascii_alphabetic() || *first == b'_') && rest.iter().all(is_inside);
        if !fits || name.len() > NAME_MAX {
            return None;
        }
        let name = std::str::from_utf8(name).ok()?;
        let is_reserved = |start: &&str| {
            name.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start))
        };
        if RESERVED.iter().any(is_reserved) {
            return None;
        }
        Some(Self(name.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As SQL wants it. Nothing in an identifier needs escaping.
    pub(crate) fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }

    /// Whether SQLite would take the two for one.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// It becomes a table.
    Kpi(Identifier),
    /// It is kept as a file and nothing else.
    Scratch(String),
}

impl Name {
    /// Reads a directory entry's name.
    pub fn parse(name: &[u8]) -> Result<Self, Refusal> {
        if name.len() > NAME_MAX {
            return Err(Refusal::NameLong(name.len()));
        }
        let is_scratch = matches!(name.first(), Some(b'.' | b'#')) || name.last() == Some(&b'~');
        if !is_scratch {
            return Identifier::of_table(name).map(Self::Kpi);
        }
        let is_plain = name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'/');
        match std::str::from_utf8(name) {
            Ok(name) if is_plain && name != "." && name != ".." => Ok(Self::Scratch(name.into())),
            _ => Err(Refusal::Name(shown(name))),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Kpi(name) => name.as_str(),
            Self::Scratch(name) => name,
        }
    }

    /// The table that it becomes.
    pub fn table(&self) -> Option<&Identifier> {
        match self {
            Self::Kpi(name) => Some(name),
            Self::Scratch(_) => None,
        }
    }
}

/// One of the two directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Folder {
    /// CSV, a row a line.
    Unencrypted,
    /// Opaque, a row each time a file is stored.
    Encrypted,
}

impl Folder {
    /// Both, in the order in which they are listed.
    pub const ALL: [Self; 2] = [Self::Unencrypted, Self::Encrypted];

    /// Its name in the file system and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unencrypted => "unencrypted",
            Self::Encrypted => "encrypted",
        }
    }

    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|folder| folder.as_str().as_bytes() == name)
    }

    /// The table of a file of this directory, not quoted.
    ///
    /// The two directories may have files of one name. No name has a slash, so that neither these
    /// tables nor the store's own can be confused with an application's.
    pub fn table(self, name: &Identifier) -> String {
        match self {
            Self::Unencrypted => name.as_str().to_owned(),
            Self::Encrypted => format!("encrypted/{name}"),
        }
    }
}

/// A hostile name, fit for a log.
fn shown(name: &[u8]) -> String {
    let shown = &name[..name.len().min(NAME_MAX)];
    String::from_utf8_lossy(shown).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &[u8]) -> &'static str {
        match Name::parse(name) {
            Ok(Name::Kpi(_)) => "kpi",
            Ok(Name::Scratch(_)) => "scratch",
            Err(Refusal::NameLong(_)) => "long",
            Err(_) => "refused",
        }
    }

    #[test]
    fn names_that_become_tables_are_told_from_those_that_do_not() {
        for (name, expected) in [
            (&b"current_users"[..], "kpi"),
            (b"Users-2.csv", "kpi"),
            (b"_", "kpi"),
            (b"select", "kpi"),
            (b"sqlite", "kpi"),
            (b".users.swp", "scratch"),
            (b"users~", "scratch"),
            (b"#users#", "scratch"),
            (b"", "refused"),
            (b".", "refused"),
            (b"..", "refused"),
            (b"4913", "refused"),
            (b"-rf", "refused"),
            (b"a b", "refused"),
            (b"a\"; drop table x; --", "refused"),
            (b"sqlite_master", "refused"),
            (b"SQLite_sequence", "refused"),
            (b"KPI_rows", "refused"),
            ("größe".as_bytes(), "refused"),
            (b"\xff\xfe", "refused"),
            (b".\x07", "refused"),
            (b"a\nb", "refused"),
            (&[b'a'; 64], "kpi"),
            (&[b'a'; 65], "long"),
        ] {
            assert_eq!(kind(name), expected, "{:?}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn what_sqlite_means_by_a_name_is_no_column() {
        for name in ["rowid", "OID", "_rowid_", "kpi_seq", "sqlite_x", "5", "", "a,b"] {
            assert!(Identifier::of_column(name).is_err(), "{name}");
        }
        assert_eq!(Identifier::of_column("rowids").unwrap().as_str(), "rowids");
        assert_eq!(Identifier::numbered(0).as_str(), "column1");
    }
}
