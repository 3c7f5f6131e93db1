//! Disk images from outside, which are hostile until checked.
//!
//! We look at the header ourselves and refuse what could make a reader open other files, spend
//! without limit, or take the image for something else. Only then does `qemu-img` see it, with the
//! format that we found given explicitly, with limits, and with no more rights than it needs.
//! What a guest keeps is always raw.

mod convert;
mod header;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::Bytes;
use rustix::fs::{Mode, OFlags};

pub use convert::{ConvertLimits, convert_to_raw};

/// The formats that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// The disk itself, byte by byte. Also what every image is that has no known header.
    Raw,
    /// QEMU's format, versions 2 and 3 (QEMU's `docs/interop/qcow2.txt`).
    Qcow2,
    /// VMware's, in one file: monolithicSparse and streamOptimized (Virtual Disk Format 5.0).
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Microsoft's first, fixed and dynamic (Virtual Hard Disk Image Format Specification 1.0).
    Vhd,
}

impl ImageFormat {
    /// What `qemu-img` calls it.
    fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhd => "vpc",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "VMDK",
            Self::Vdi => "VDI",
            Self::Vhd => "VHD",
        })
    }
}

/// What an image says it is, and was not refused for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspection {
    /// Its format.
    pub format: ImageFormat,
    /// The size of the disk in it.
    pub virtual_size: Bytes,
}

/// Why an image is refused by its header alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The header fits two formats, so that two readers could see two disks.
    #[error("its header fits {0} and {1}")]
    Ambiguous(&'static str, &'static str),
    /// A known format that is not taken.
    #[error("{0} images are not taken, convert it to raw, qcow2 or streamOptimized VMDK first")]
    Unsupported(&'static str),
    /// It stands on another image.
    #[error("it needs another image beneath it, flatten it first")]
    Backing,
    /// Its data lies in other files.
    #[error("its data lies in other files, convert it to a single file first")]
    External,
    /// It is encrypted.
    #[error("it is encrypted, decrypt it first")]
    Encrypted,
    /// It needs a reader to know something that we do not.
    #[error("it needs features that are not known here: {0:#x}")]
    Features(u64),
    /// It is marked as damaged.
    #[error("it is marked as corrupt, repair it first")]
    Corrupt,
    /// A field is out of its range or contradicts another.
    #[error("its header is not sound: {0}")]
    Malformed(&'static str),
    /// The disk in it is larger than what is allowed.
    #[error("its disk has {size}, more than the {limit} that are allowed")]
    TooLarge {
        /// The size of the disk in it.
        size: Bytes,
        /// The largest that is allowed.
        limit: Bytes,
    },
}

/// Why an image was not read or not converted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image is refused.
    #[error("image {path} is refused", path = path.display())]
    Refused {
        /// The image.
        path: PathBuf,
        /// Why.
        source: Refusal,
    },
    /// The image is in another format than whoever handed it in says.
    #[error("image {path} is {found}, not {said} as it was said to be", path = path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What its header says.
        found: ImageFormat,
        /// What was said.
        said: ImageFormat,
    },
    /// The image cannot be read.
    #[error("cannot read image {path}", path = path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The raw disk cannot be written.
    #[error("cannot write disk {path}", path = path.display())]
    Write {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `qemu-img` is not there.
    #[error("cannot run {program}: apt-get install qemu-utils util-linux")]
    NotInstalled {
        /// The program.
        program: &'static str,
        /// Why it did not start.
        source: io::Error,
    },
    /// `qemu-img` did not convert the image; its own words are quoted.
    #[error("image {path} could not be converted ({status}): {stderr}", path = path.display())]
    Convert {
        /// The image.
        path: PathBuf,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// The conversion took too long.
    #[error("image {path} took more than {limit:?} to convert", path = path.display())]
    Late {
        /// The image.
        path: PathBuf,
        /// The limit.
        limit: Duration,
    },
    /// The machine is not set up for it.
    #[error(transparent)]
    Host(#[from] crate::Error),
}

/// Bytes of an image's beginning that are looked at: the largest first cluster of a qcow2.
const HEAD_BYTES: usize = 2 << 20;
/// Bytes of its end: a VMDK's footer and its end marker.
const TAIL_BYTES: usize = 1024;

/// Looks at the header of an image, and refuses what a site should not touch, or a disk of more than
/// `limit`. Reads its first 2 MiB and its last KiB, and nothing else.
pub fn inspect(path: &Path, limit: Bytes) -> Result<Inspection, ImageError> {
    let file = open_plain(path)?;
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    let length = file.metadata().map_err(read)?.len();
    let at_most = |bytes: usize| usize::try_from(length).unwrap_or(usize::MAX).min(bytes);
    let mut head = vec![0; at_most(HEAD_BYTES)];
    file.read_exact_at(&mut head, 0).map_err(read)?;
    let mut tail = vec![0; at_most(TAIL_BYTES)];
    let start = length - tail.len() as u64;
    file.read_exact_at(&mut tail, start).map_err(read)?;
    let refused = |source| ImageError::Refused { path: path.to_owned(), source };
    let found = header::inspect(&head, &tail, length).map_err(refused)?;
    if found.virtual_size > limit {
        return Err(refused(Refusal::TooLarge { size: found.virtual_size, limit }));
    }
    Ok(found)
}

/// Opens a file that must be plain and no link: a device or a pipe could block, or be anything.
fn open_plain(path: &Path) -> Result<File, ImageError> {
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| read(errno.into()))?;
    let file = File::from(fd);
    if file.metadata().map_err(read)?.is_file() {
        Ok(file)
    } else {
        Err(read(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file")))
    }
}
