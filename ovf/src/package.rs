//! A package that was opened: what it describes, and its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER_PERMISSIVE;
use model::{Bytes, Descriptor, VmName};

use crate::archive::{ArchiveError, check_name};
use crate::copy::{self, Span};
use crate::envelope::{self, DiskPlan, Envelope, Reference};
use crate::fault::{Fault, Problem, cut};
use crate::files::Files;
use crate::format::DiskFormat;
use crate::limit;
use crate::manifest::{self, Algorithm, Expected, ManifestError};

/// How much a package may bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// All its files together.
    pub package: Bytes,
    /// The capacities of all its disks together.
    pub capacity: Bytes,
}

impl Default for Limits {
    /// 4 TiB of files, 16 TiB of disks.
    fn default() -> Self {
        Self { package: Bytes(4 << 40), capacity: Bytes(16 << 40) }
    }
}

/// An OVF package, opened and checked but for the contents of its files.
#[derive(Debug)]
pub struct Package {
    /// The VM that it holds. [`Descriptor::check`] passed.
    pub descriptor: Descriptor,
    /// Where the VM's disks come from, in the order of the descriptor's.
    pub disks: Vec<DiskSource>,
    /// What was passed over or looks odd, one sentence each, for the user.
    pub warnings: Vec<String>,
    /// The descriptor, what it refers to and what the manifest names.
    files: BTreeMap<String, Span>,
    /// By file name; none where the package has no manifest.
    manifest: Option<BTreeMap<String, Expected>>,
}

/// What a disk of a package is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSource {
    /// The file in the package; none for a disk that starts empty.
    pub file: Option<String>,
    /// The format that the package says the file has. Not checked against the file: whoever
    /// converts it inspects it first.
    pub format: DiskFormat,
    /// The disk's size as the guest sees it. A raw file is never bigger.
    pub capacity: Bytes,
    /// How much of it is in use, if the package says so.
    pub populated: Option<Bytes>,
}

/// A package is not taken.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is no package, by its name.
    #[error("{0} is no package; a file that ends in .ova or .ovf is expected")]
    NotAPackage(PathBuf),
    /// A file cannot be read.
    #[error("{file} cannot be read")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// The archive is refused.
    #[error("{path} is not taken as an OVA")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: ArchiveError,
    },
    /// The descriptor's text is too long.
    #[error("the descriptor {0:?} has more than {max} bytes", max = limit::MAX_DESCRIPTOR_BYTES)]
    DescriptorTooLarge(String),
    /// The descriptor is not text.
    #[error("the descriptor {0:?} is not UTF-8; save it as UTF-8")]
    NotText(String),
    /// The descriptor is refused.
    #[error("the descriptor {file:?} is not taken")]
    Descriptor {
        /// The descriptor.
        file: String,
        /// Where and why.
        source: Fault,
    },
    /// What the descriptor asks for is beyond what a VM may have.
    #[error("the VM is beyond a limit")]
    Vm(#[source] model::vm::DescriptorError),
    /// The disks are too big together.
    #[error("the VM's disks have {asked} together, {allowed} are allowed")]
    Capacity {
        /// What they have.
        asked: Bytes,
        /// The limit.
        allowed: Bytes,
    },
    /// The files are too big together.
    #[error("the package's files have more than the {0} that are allowed")]
    TooLarge(Bytes),
    /// A file's name is unsafe, or what it names is.
    #[error("the file name {name:?} {why}")]
    FileName {
        /// The name, cut to a printable length.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The manifest is refused.
    #[error("the manifest {file:?} is not taken")]
    Manifest {
        /// The manifest.
        file: String,
        /// Why.
        source: ManifestError,
    },
    /// The descriptor does not match the manifest.
    #[error("{0:?} does not match its digest in the manifest; copy or download the package again")]
    Digest(String),
}

/// A file does not match the manifest, or cannot be read to tell.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read.
    #[error("{file:?} cannot be read")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file does not match.
    #[error("{0:?} does not match its digest in the manifest; copy or download the package again")]
    Digest(String),
}

/// A disk is not extracted. Nothing is left of the target.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// There is no such disk.
    #[error("the package has {count} disks, there is no disk {index}")]
    NoSuchDisk {
        /// The number asked for, from 0.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Reading or writing failed.
    #[error("disk {index} cannot be written to {target}")]
    Io {
        /// The disk's number, from 0.
        index: usize,
        /// Where it was to go.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk's file does not match the manifest.
    #[error("{0:?} does not match its digest in the manifest; copy or download the package again")]
    Digest(String),
}

impl Package {
    /// Opens an OVA or OVF file and reads its descriptor; the files of disks are not read yet.
    ///
    /// `name` takes the place of the name in the package.
    /// `random_mac` is asked once for each network card whose address the package does not fix,
    /// for a locally administered unicast address.
    pub fn open(
        path: &Path,
        limits: &Limits,
        name: Option<&VmName>,
        random_mac: &mut dyn FnMut() -> [u8; 6],
    ) -> Result<Self, OpenError> {
        let mut files = Files::open(path, limits)?;
        let file = files.descriptor.clone();
        let manifest = read_manifest(&mut files)?;
        let text = read_descriptor(&mut files, manifest.as_ref())?;
        // Some tools put a byte order mark in front, which is no part of the text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let refuse = |source| OpenError::Descriptor { file: file.clone(), source };
        let mut envelope = envelope::read(text, name, random_mac).map_err(refuse)?;
        let mut spans = Vec::new();
        for reference in &envelope.references {
            spans.push(find(&mut files, reference, &file)?);
        }
        let disks = envelope.disks.iter().map(|plan| source(plan, &envelope, &spans));
        let disks = disks.collect::<Result<Vec<_>, Fault>>().map_err(refuse)?;
        let total = disks.iter().fold(0, |sum: u64, disk| sum.saturating_add(disk.capacity.0));
        if total > limits.capacity.0 {
            let (asked, allowed) = (Bytes(total), limits.capacity);
            return Err(OpenError::Capacity { asked, allowed });
        }
        let descriptor = envelope.descriptor(disks.iter().map(|disk| disk.capacity));
        descriptor.check().map_err(OpenError::Vm)?;
        let mut warnings = std::mem::take(&mut envelope.warnings);
        let used: BTreeSet<&str> =
            spans.iter().map(|(name, _)| name.as_str()).chain([file.as_str()]).collect();
        if files.get(&files.beside("cert"))?.is_some() {
            warnings.push("the certificate is passed over: who signed is not checked".to_owned());
        }
        let named = check_manifest(&mut files, &used, manifest.as_ref(), &mut warnings)?;
        let beside = ["mf", "cert"].map(|ending| files.beside(ending));
        let unused = |name: &&str| !used.contains(name) && !beside.iter().any(|n| n == name);
        for name in files.names().filter(unused) {
            warnings.push(format!("the file {:?} is passed over: nothing refers to it", cut(name)));
        }
        let descriptor_span = files.get(&file)?.expect("it was read");
        let files = spans.into_iter().chain(named).chain([(file, descriptor_span)]).collect();
        Ok(Self { descriptor, disks, warnings, files, manifest })
    }

    /// Reads every file of the manifest and compares its digest.
    ///
    /// A package without a manifest passes; [`Package::warnings`] says that it has none.
    pub fn verify_manifest(&self) -> Result<(), VerifyError> {
        for (name, expected) in self.manifest.iter().flatten() {
            let span = &self.files[name];
            let mut hasher = expected.algorithm.hasher();
            copy::digest(&mut span.reader(), span.size, &mut hasher)
                .map_err(|source| VerifyError::Io { file: name.clone(), source })?;
            if !expected.is_met(hasher) {
                return Err(VerifyError::Digest(name.clone()));
            }
        }
        Ok(())
    }

    /// Writes the file of a disk to `target`, in the format that the package has it in, and
    /// compares its digest on the way if there is a manifest.
    ///
    /// `target` must not exist. Blocks of zeros become holes. It is on stable storage at return.
    /// A disk that starts empty becomes a raw image of its capacity.
    pub fn extract_disk(&self, index: usize, target: &Path) -> Result<(), ExtractError> {
        let count = self.disks.len();
        let disk = self.disks.get(index).ok_or(ExtractError::NoSuchDisk { index, count })?;
        let io = |source| ExtractError::Io { index, target: target.to_owned(), source };
        let file = OpenOptions::new().write(true).create_new(true).open(target).map_err(io)?;
        let result = self.write_disk(disk, &file).map_err(io).and_then(|matches| {
            let name = || disk.file.clone().unwrap_or_default();
            if matches { Ok(()) } else { Err(ExtractError::Digest(name())) }
        });
        if result.is_err() {
            // The first error says more than one of cleaning up.
            let _ = fs::remove_file(target);
        }
        result
    }

    /// Whether the disk matched its digest.
    fn write_disk(&self, disk: &DiskSource, target: &fs::File) -> io::Result<bool> {
        let Some(name) = &disk.file else {
            target.set_len(disk.capacity.0)?;
            target.sync_all()?;
            return Ok(true);
        };
        let span = &self.files[name];
        let expected = self.manifest.as_ref().and_then(|manifest| manifest.get(name));
        // Without a manifest nothing is compared, so nothing is computed.
        let mut hasher = expected.map(|expected| expected.algorithm.hasher());
        copy::copy(&mut span.reader(), span.size, target, 0, hasher.as_mut())?;
        target.set_len(span.size)?;
        target.sync_all()?;
        Ok(expected.zip(hasher).is_none_or(|(expected, hasher)| expected.is_met(hasher)))
    }
}

fn read_manifest(files: &mut Files) -> Result<Option<BTreeMap<String, Expected>>, OpenError> {
    let file = files.beside("mf");
    let Some(span) = files.get(&file)? else { return Ok(None) };
    let refuse = |source| OpenError::Manifest { file: file.clone(), source };
    if span.size > limit::MAX_MANIFEST_BYTES {
        return Err(refuse(ManifestError::TooLarge));
    }
    let bytes = span.read_all().map_err(|source| OpenError::Io { file: file.clone(), source })?;
    let text = String::from_utf8(bytes).map_err(|_| refuse(ManifestError::NotText))?;
    manifest::parse(&text).map_err(refuse).map(Some)
}

/// The descriptor's text; its digest is compared before a parser sees it.
fn read_descriptor(
    files: &mut Files,
    manifest: Option<&BTreeMap<String, Expected>>,
) -> Result<String, OpenError> {
    let file = files.descriptor.clone();
    let span = files.get(&file)?.expect("a package without a descriptor was refused");
    if span.size > limit::MAX_DESCRIPTOR_BYTES {
        return Err(OpenError::DescriptorTooLarge(file));
    }
    let bytes = span.read_all().map_err(|source| OpenError::Io { file: file.clone(), source })?;
    if let Some(expected) = manifest.and_then(|manifest| manifest.get(&file)) {
        let mut hasher = expected.algorithm.hasher();
        hasher.update(&bytes);
        if !expected.is_met(hasher) {
            return Err(OpenError::Digest(file));
        }
    }
    String::from_utf8(bytes).map_err(|_| OpenError::NotText(file))
}

/// The file that a reference names, with the name that the package has it under.
fn find(
    files: &mut Files,
    reference: &Reference,
    descriptor: &str,
) -> Result<(String, Span), OpenError> {
    let refuse = |problem| OpenError::Descriptor {
        file: descriptor.to_owned(),
        source: Fault { place: reference.place, problem },
    };
    let href = reference.href.strip_prefix("./").unwrap_or(&reference.href);
    let decoded = percent_decoded(href).filter(|decoded| decoded != href);
    // An href is a URI reference, but many tools write the bare name.
    for name in [Some(href.to_owned()), decoded].into_iter().flatten() {
        if let Err(why) = check_name(&name) {
            return Err(refuse(Problem::FileName { name: cut(&name), why }));
        }
        let Some(span) = files.get(&name)? else { continue };
        return match reference.size {
            Some(declared) if declared != span.size => {
                let (name, actual) = (cut(&name), span.size);
                Err(refuse(Problem::FileSize { name, actual, declared }))
            }
            _ => Ok((name, span)),
        };
    }
    Err(refuse(Problem::Dangling { what: "the file", id: cut(href) }))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2)?;
        bytes.extend(HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

fn source(
    plan: &DiskPlan,
    envelope: &Envelope,
    spans: &[(String, Span)],
) -> Result<DiskSource, Fault> {
    let file = plan.reference.map(|at| &spans[at]);
    let size = file.map_or(0, |(_, span)| span.size);
    let capacity = plan.capacity.unwrap_or(Bytes(size));
    if plan.format == DiskFormat::Raw && size > capacity.0 {
        // The quota is held against the capacity, so the image must not go beyond it.
        let name = plan.reference.map_or("", |at| &envelope.references[at].href);
        let problem = Problem::FileSize { name: cut(name), actual: size, declared: capacity.0 };
        return Err(Fault { place: plan.place, problem });
    }
    Ok(DiskSource {
        file: file.map(|(name, _)| name.clone()),
        format: plan.format,
        capacity,
        populated: plan.populated,
    })
}

/// Holds the manifest and the files in use against each other; gives the files that it names.
fn check_manifest(
    files: &mut Files,
    used: &BTreeSet<&str>,
    manifest: Option<&BTreeMap<String, Expected>>,
    warnings: &mut Vec<String>,
) -> Result<Vec<(String, Span)>, OpenError> {
    let Some(manifest) = manifest else {
        warnings.push("the package has no manifest: damage on its way cannot be seen".to_owned());
        return Ok(Vec::new());
    };
    let file = files.beside("mf");
    let refuse = |source| OpenError::Manifest { file: file.clone(), source };
    let mut named = Vec::new();
    for name in manifest.keys() {
        let span = files.get(name)?;
        let span = span.ok_or_else(|| refuse(ManifestError::NoSuchFile(cut(name))))?;
        named.push((name.clone(), span));
    }
    if let Some(name) = used.iter().find(|name| !manifest.contains_key(**name)) {
        return Err(refuse(ManifestError::Unlisted(cut(name))));
    }
    if manifest.values().any(|expected| expected.algorithm == Algorithm::Sha1) {
        warnings.push("the manifest has SHA-1 digests, which only show accidents".to_owned());
    }
    Ok(named)
}
