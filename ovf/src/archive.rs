//! Reads an OVA's table of contents: a POSIX tar archive of regular files (DSP0243, 5.3).
//!
//! Headers are walked here rather than by the `tar` crate's iterator, which applies GNU
//! extensions silently and reads extended headers of any size into memory. The crate decodes the
//! fields.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use model::Bytes;

use crate::copy::Span;
use crate::fault::cut;
use crate::limit;

const BLOCK: u64 = 512;

/// An archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive cannot be read.
    #[error("the archive cannot be read")]
    Io(#[source] io::Error),
    /// The archive ends too early.
    #[error("the archive ends within {0:?}; copy or download it again")]
    Truncated(String),
    /// A header does not match its checksum or holds no sensible number.
    #[error("the header at byte {0} is damaged, or this is no tar archive")]
    Header(u64),
    /// An entry is no regular file.
    #[error("the entry {name:?} is {kind}; an OVA holds regular files in plain ustar or pax form")]
    Kind {
        /// The entry.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// An entry's name is unsafe.
    #[error("the entry {name:?} {why}")]
    Name {
        /// The name, cut to a printable length.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two entries have one name.
    #[error("two entries are named {0:?}")]
    Duplicate(String),
    /// Too many entries.
    #[error("the archive holds more than {max} files", max = limit::MAX_FILES)]
    TooMany,
    /// All files together are too big.
    #[error("the files have more than the {0} that are allowed")]
    TooLarge(Bytes),
    /// The descriptor is not where it must be.
    #[error("the first entry is {0:?}; it must be the .ovf descriptor")]
    DescriptorNotFirst(String),
    /// There is no entry.
    #[error("the archive is empty")]
    Empty,
}

/// All files of the archive, in their order. The first one is the descriptor.
pub(crate) fn index(file: File, most: Bytes) -> Result<Vec<(String, Span)>, ArchiveError> {
    let length = file.metadata().map_err(ArchiveError::Io)?.len();
    let file = Arc::new(file);
    let mut files = Vec::new();
    let mut names = BTreeSet::new();
    let mut total: u64 = 0;
    let mut at = 0;
    let mut pax = Pax::default();
    for _ in 0..limit::MAX_HEADERS {
        // A well-formed archive ends in zero blocks; one that ends between entries lost nothing.
        let Some(header) = header_at(&file, at, length)? else {
            return if files.is_empty() { Err(ArchiveError::Empty) } else { Ok(files) };
        };
        let kind = header.as_old().linkflag[0];
        let (name, size) = match kind {
            b'x' | b'g' => (PAX.to_owned(), header.entry_size().ok()),
            _ => (pax.path.take().map_or_else(|| path(&header), Ok)?, {
                pax.size.take().or_else(|| header.entry_size().ok())
            }),
        };
        let size = size.ok_or(ArchiveError::Header(at))?;
        // Before the contents: a header that is refused says more than an archive that ends.
        if let Some(kind) = refused(kind) {
            return Err(ArchiveError::Kind { name: cut(&name), kind });
        }
        let data = at + BLOCK;
        let next = size.checked_next_multiple_of(BLOCK).and_then(|size| data.checked_add(size));
        let next = next
            .filter(|&next| next <= length)
            .ok_or_else(|| ArchiveError::Truncated(cut(&name)))?;
        let span = Span { file: Arc::clone(&file), offset: data, size };
        at = next;
        if matches!(kind, b'x' | b'g') {
            let found = Pax::read(&span)?;
            if kind == b'x' {
                pax = found;
            } else if found.path.is_some() || found.size.is_some() {
                return Err(ArchiveError::Kind { name, kind: "a name or size for all files" });
            }
            continue;
        }
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        if let Err(why) = check_name(&name) {
            return Err(ArchiveError::Name { name: cut(&name), why });
        }
        if files.is_empty() && !is_descriptor(&name) {
            return Err(ArchiveError::DescriptorNotFirst(cut(&name)));
        }
        if !names.insert(name.clone()) {
            return Err(ArchiveError::Duplicate(cut(&name)));
        }
        if names.len() > limit::MAX_FILES {
            return Err(ArchiveError::TooMany);
        }
        total = total.saturating_add(size);
        if total > most.0 {
            return Err(ArchiveError::TooLarge(most));
        }
        files.push((name, span));
    }
    Err(ArchiveError::TooMany)
}

/// How errors name an extended header.
const PAX: &str = "(extended header)";

/// Whether a file is a descriptor, by its name.
pub(crate) fn is_descriptor(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case("ovf"))
}

/// Why a name may not stand in a package, if so: it must stay inside on every system.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > limit::MAX_NAME_BYTES {
        return Err("is too long");
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err("has a control character or a backslash");
    }
    if name.contains("://") {
        return Err("is an address, and nothing is fetched; put the file into the package");
    }
    if name.starts_with('/') {
        return Err("is absolute; it must be relative to the package");
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("has an empty, \".\" or \"..\" part; it must stay inside the package");
    }
    Ok(())
}

/// The header at `at`, or none where the archive ends.
fn header_at(file: &File, at: u64, length: u64) -> Result<Option<tar::Header>, ArchiveError> {
    if at == length {
        return Ok(None);
    }
    if length - at < BLOCK {
        return Err(ArchiveError::Truncated("a header".to_owned()));
    }
    let mut header = tar::Header::new_old();
    let block = header.as_mut_bytes();
    file.read_exact_at(block, at).map_err(ArchiveError::Io)?;
    if block.iter().all(|&b| b == 0) {
        return Ok(None);
    }
    // The checksum is the sum of all bytes, its own field counted as spaces.
    let sum: u32 = block[..148].iter().chain(&block[156..]).map(|&b| u32::from(b)).sum();
    match header.cksum() {
        Ok(declared) if declared == sum + 8 * u32::from(b' ') => Ok(Some(header)),
        _ => Err(ArchiveError::Header(at)),
    }
}

fn path(header: &tar::Header) -> Result<String, ArchiveError> {
    let bytes = header.path_bytes();
    String::from_utf8(bytes.to_vec()).map_err(|_| ArchiveError::Name {
        name: cut(&String::from_utf8_lossy(&bytes)),
        why: "is not UTF-8",
    })
}

/// What an entry of this type is, if it is refused.
fn refused(kind: u8) -> Option<&'static str> {
    Some(match kind {
        b'0' | 0 | b'x' | b'g' => return None,
        b'1' => "a hard link",
        b'2' => "a symbolic link",
        b'3' | b'4' => "a device",
        b'5' => "a folder",
        b'6' => "a named pipe",
        b'L' | b'K' => "a GNU long name",
        b'S' => "a GNU sparse file",
        _ => "of an unknown type",
    })
}

/// What an extended header says of the next file (POSIX.1-2001, pax interchange format).
#[derive(Debug, Default)]
struct Pax {
    path: Option<String>,
    size: Option<u64>,
}

impl Pax {
    fn read(span: &Span) -> Result<Self, ArchiveError> {
        let damaged = || ArchiveError::Header(span.offset - BLOCK);
        if span.size > limit::MAX_PAX_BYTES {
            return Err(damaged());
        }
        let bytes = span.read_all().map_err(ArchiveError::Io)?;
        let mut pax = Self::default();
        let mut rest = std::str::from_utf8(&bytes).map_err(|_| damaged())?;
        // A record is "LENGTH KEY=VALUE\n", where LENGTH counts all of it.
        while !rest.is_empty() {
            let (digits, _) = rest.split_once(' ').ok_or_else(damaged)?;
            let length: usize = digits.parse().map_err(|_| damaged())?;
            let record = rest.get(digits.len() + 1..length).ok_or_else(damaged)?;
            rest = &rest[length..];
            let record = record.strip_suffix('\n').ok_or_else(damaged)?;
            let (key, value) = record.split_once('=').ok_or_else(damaged)?;
            match key {
                "path" => pax.path = Some(value.to_owned()),
                "size" => pax.size = Some(value.parse().map_err(|_| damaged())?),
                key if key.starts_with("GNU.sparse") => {
                    return Err(ArchiveError::Kind {
                        name: PAX.to_owned(),
                        kind: "for a GNU sparse file",
                    });
                }
                // Times, owners and comments.
                _ => {}
            }
        }
        Ok(pax)
    }
}
