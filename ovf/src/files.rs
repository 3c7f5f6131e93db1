//! The files of a package, in an archive or in a folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::archive::{self, check_name, is_descriptor};
use crate::copy::Span;
use crate::fault::cut;
use crate::package::{Limits, OpenError};

/// The files that were found so far, by their name within the package.
#[derive(Debug)]
pub(crate) struct Files {
    /// The name of the descriptor.
    pub(crate) descriptor: String,
    /// Where more are found on demand; none for an archive, of which all are known.
    folder: Option<OwnedFd>,
    found: BTreeMap<String, Span>,
    limits: Limits,
}

impl Files {
    /// Opens a package by the ending of its name.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { file: path.display().to_string(), source };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if is_descriptor(name) {
            // A path without a folder has an empty parent.
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())
                .map_err(|errno| io(errno.into()))?;
            let mut files = Self {
                descriptor: name.to_owned(),
                folder: Some(folder),
                found: BTreeMap::new(),
                limits: limits.clone(),
            };
            return match files.get(name)? {
                Some(_) => Ok(files),
                None => Err(io(io::ErrorKind::NotFound.into())),
            };
        }
        if !name.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case("ova")) {
            return Err(OpenError::NotAPackage(path.to_owned()));
        }
        let file = File::open(path).map_err(io)?;
        let entries = archive::index(file, limits.package)
            .map_err(|source| OpenError::Archive { path: path.to_owned(), source })?;
        let (descriptor, _) = entries.first().expect("an archive without a file was refused");
        Ok(Self {
            descriptor: descriptor.clone(),
            folder: None,
            found: entries.into_iter().collect(),
            limits: limits.clone(),
        })
    }

    /// The descriptor's name with another ending, as its manifest and certificate have it.
    pub(crate) fn beside(&self, ending: &str) -> String {
        let stem = self.descriptor.rsplit_once('.').map_or("", |(stem, _)| stem);
        format!("{stem}.{ending}")
    }

    /// The names of all files found so far.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.found.keys().map(String::as_str)
    }

    /// A file by its name, if it is there.
    pub(crate) fn get(&mut self, name: &str) -> Result<Option<Span>, OpenError> {
        if let Some(span) = self.found.get(name) {
            return Ok(Some(span.clone()));
        }
        let Some(folder) = &self.folder else { return Ok(None) };
        if let Err(why) = check_name(name) {
            return Err(OpenError::FileName { name: cut(name), why });
        }
        // The kernel keeps the walk inside the folder, links included, without a race.
        // Non-blocking: a named pipe must not hold the import.
        let opened = rustix::fs::openat2(
            folder,
            name,
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        );
        let file = match opened {
            Ok(descriptor) => File::from(descriptor),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV | Errno::LOOP) => {
                let why = "is a link that leads out of the package's folder";
                return Err(OpenError::FileName { name: cut(name), why });
            }
            Err(errno) => {
                return Err(OpenError::Io { file: cut(name), source: errno.into() });
            }
        };
        let meta = file.metadata().map_err(|source| OpenError::Io { file: cut(name), source })?;
        if !meta.is_file() {
            return Err(OpenError::FileName { name: cut(name), why: "is not a regular file" });
        }
        let total = self.found.values().fold(meta.len(), |sum, span| sum.saturating_add(span.size));
        if total > self.limits.package.0 {
            return Err(OpenError::TooLarge(self.limits.package));
        }
        let span = Span { file: Arc::new(file), offset: 0, size: meta.len() };
        self.found.insert(name.to_owned(), span.clone());
        Ok(Some(span))
    }
}
