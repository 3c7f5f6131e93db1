//! The manifest: what one transfer moves, by content.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::key::Payload;
use crate::quantity::Bytes;
use crate::{Digest, MigrationId, VmId, limit};

/// What a file of a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A disk, as a raw image.
    Disk,
    /// The saved run state of a hibernated guest.
    State,
    /// What was measured of it and is not delivered yet, and where measuring is.
    History,
}

/// A file of a VM, by kind and number. It holds no path and no host: where the file lies is the
/// business of the site that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Its kind.
    pub kind: FileKind,
    /// Its number within the kind, from 0.
    pub index: u16,
}

impl FileId {
    /// The saved run state; a VM has one at most.
    pub const STATE: Self = Self { kind: FileKind::State, index: 0 };

    /// The history of its monitoring; a VM has one.
    pub const HISTORY: Self = Self { kind: FileKind::History, index: 0 };

    /// The disk with the given number.
    pub fn disk(index: usize) -> Self {
        let index = u16::try_from(index).expect("disks are bounded by limit::MAX_DISKS");
        Self { kind: FileKind::Disk, index }
    }

    /// The file's name within the folder of its VM, on whatever site.
    pub fn file_name(&self) -> String {
        match self.kind {
            FileKind::Disk => format!("disk{}.raw", self.index),
            FileKind::State => format!("state{}.bin", self.index),
            FileKind::History => format!("history{}.bin", self.index),
        }
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}

/// Bytes of one chunk; the last chunk of a file may be shorter.
pub const CHUNK: u32 = 1 << 20;

/// One file of a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Which file.
    pub id: FileId,
    /// Its length.
    pub size: Bytes,
    /// One entry per [`CHUNK`] of the file, in order: its BLAKE3 hash, or none where all is zero.
    pub chunks: Vec<Option<Digest>>,
}

/// Everything that one transfer moves. Its [`Manifest::root`] is what READY and the certificate
/// speak of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Manifest {
    /// The VM.
    pub vm: VmId,
    /// The migration.
    pub migration: MigrationId,
    /// Its files, in ascending order of id, each once.
    pub files: Vec<ManifestFile>,
}

impl Payload for Manifest {
    const TYPE: &'static str = "application/vnd.sojourn.manifest.v1";
}

/// A manifest that contradicts itself or breaks a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too many files, or none in order.
    #[error("files are not in strictly ascending order, or more than {}", limit::MAX_FILES)]
    Files,
    /// The number of chunks does not fit the file's size.
    #[error("{file}: {size} bytes do not make {chunks} chunks")]
    Chunks {
        /// The file.
        file: FileId,
        /// Its size in bytes.
        size: u64,
        /// How many chunks the manifest lists.
        chunks: usize,
    },
}

impl Manifest {
    /// Checks that it is consistent. Whoever takes a manifest from outside calls this first.
    pub fn check(&self) -> Result<(), ManifestError> {
        let ascending = self.files.windows(2).all(|pair| pair[0].id < pair[1].id);
        if self.files.len() > limit::MAX_FILES || !ascending {
            return Err(ManifestError::Files);
        }
        for file in &self.files {
            if file.size.0.div_ceil(u64::from(CHUNK)) != file.chunks.len() as u64 {
                return Err(ManifestError::Chunks {
                    file: file.id,
                    size: file.size.0,
                    chunks: file.chunks.len(),
                });
            }
        }
        Ok(())
    }

    /// The digest of all content: files, sizes and chunks, without the migration, so that the
    /// same content has the same digest whichever way it went.
    pub fn root(&self) -> Digest {
        let bytes = postcard::to_stdvec(&(self.vm, &self.files)).expect("manifests are plain data");
        Digest(blake3::derive_key("sojourn 2026 manifest root v1", &bytes))
    }

    /// Bytes of all files, as long as they look to the guest.
    pub fn size(&self) -> Bytes {
        Bytes(self.files.iter().map(|file| file.size.0).sum())
    }

    /// Whether a saved run state is among the files.
    pub fn has_state(&self) -> bool {
        self.files.iter().any(|file| file.id.kind == FileKind::State)
    }
}
