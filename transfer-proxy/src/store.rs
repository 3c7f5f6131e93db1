//! The folder that a transfer fills. Everything here blocks.
//!
//! File names come from this program alone. What lies in the folder from an earlier attempt is
//! read and hashed, never believed; whatever differs from the manifest is fetched again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use model::{FileId, Manifest};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use crate::chunk;
use crate::message::{Fetch, MAX_RUN};

/// Why content cannot be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another transfer, or the end of an earlier one, still writes there.
    #[error("{0} is in use by another transfer")]
    Busy(PathBuf),
    /// The file system does not take it.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// The bytes are not those that the manifest lists.
    #[error("a chunk of {0} does not match the manifest")]
    Mismatch(FileId),
}

impl StoreError {
    fn at(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |error| Self::Io { path: path.to_owned(), error }
    }

    /// Whether there is no room left.
    pub(crate) fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { error, .. } if matches!(error.kind(), StorageFull | QuotaExceeded))
    }
}

/// A folder that holds some of a manifest's chunks, and in the end all.
///
/// It is locked while this value lives, and writes under way keep the value alive: two transfers
/// never write into one folder.
pub(crate) struct Store {
    manifest: Manifest,
    path: PathBuf,
    folder: File,
    /// In the manifest's order.
    files: Vec<File>,
    /// Per file and chunk: whether this process saw that the file holds it.
    verified: Mutex<Vec<Vec<bool>>>,
}

impl Store {
    /// Opens the folder `path`, making it if its parent is there, gives each file its size, and
    /// finds out by reading which chunks are there already. Files among `expected` that the
    /// manifest does not have are removed.
    pub(crate) fn open(
        path: &Path,
        manifest: Manifest,
        expected: &[FileId],
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, StoreError> {
        let at = StoreError::at(path);
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.and_then(|()| sync_parent(path)).map_err(&at)?,
        }
        let folder = File::open(path).map_err(&at)?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Busy(path.to_owned())),
            locked => locked.map_err(|error| at(error.into()))?,
        }
        for id in expected.iter().filter(|id| manifest.files.iter().all(|file| file.id != **id)) {
            let path = path.join(id.file_name());
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(StoreError::at(&path))?,
            }
        }
        let mut files = Vec::with_capacity(manifest.files.len());
        let mut verified = Vec::with_capacity(manifest.files.len());
        for listed in &manifest.files {
            let path = path.join(listed.id.file_name());
            let (file, held) = prepare(&path, listed, stop).map_err(StoreError::at(&path))?;
            files.push(file);
            verified.push(held);
        }
        let path = path.to_owned();
        Ok(Self { manifest, path, folder, files, verified: Mutex::new(verified) })
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes of data chunks that are verified.
    pub(crate) fn verified_bytes(&self) -> u64 {
        let verified = self.verified.lock().expect("no holder of this lock panics");
        let chunks = |at: usize| {
            let file = &self.manifest.files[at];
            (0..)
                .zip(file.chunks.iter().zip(&verified[at]))
                .filter(|(_, (entry, verified))| entry.is_some() && **verified)
                .map(|(index, _)| chunk::length(file.size.0, index) as u64)
                .sum::<u64>()
        };
        (0..self.files.len()).map(chunks).sum()
    }

    /// What is still to fetch, in runs of neighbours.
    pub(crate) fn missing(&self) -> Vec<Fetch> {
        let verified = self.verified.lock().expect("no holder of this lock panics");
        let mut runs: Vec<Fetch> = Vec::new();
        for (file, verified) in self.manifest.files.iter().zip(verified.iter()) {
            for (index, verified) in (0..).zip(verified) {
                if *verified {
                    continue;
                }
                match runs.last_mut() {
                    Some(run)
                        if run.file == file.id
                            && run.first + run.count == index
                            && run.count < MAX_RUN =>
                    {
                        run.count += 1;
                    }
                    _ => runs.push(Fetch { file: file.id, first: index, count: 1 }),
                }
            }
        }
        runs
    }

    /// How many bytes a chunk has.
    pub(crate) fn length(&self, id: FileId, index: u32) -> usize {
        chunk::length(self.manifest.files[self.position(id)].size.0, index)
    }

    /// Checks a chunk and writes it where the manifest says.
    pub(crate) fn write(&self, id: FileId, index: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let at = self.position(id);
        if chunk::entry(bytes) != self.manifest.files[at].chunks[index as usize] {
            return Err(StoreError::Mismatch(id));
        }
        self.files[at]
            .write_all_at(bytes, chunk::offset(index))
            .map_err(StoreError::at(&self.path.join(id.file_name())))?;
        self.verified.lock().expect("no holder of this lock panics")[at][index as usize] = true;
        Ok(())
    }

    /// Brings everything to stable storage. Only for a store that misses nothing.
    pub(crate) fn finish(&self) -> Result<(), StoreError> {
        assert!(self.missing().is_empty(), "a store is finished when nothing is missing");
        for (file, listed) in self.files.iter().zip(&self.manifest.files) {
            let path = self.path.join(listed.id.file_name());
            file.sync_all().map_err(StoreError::at(&path))?;
        }
        self.folder.sync_all().map_err(StoreError::at(&self.path))
    }

    fn position(&self, id: FileId) -> usize {
        let files = &self.manifest.files;
        files.iter().position(|file| file.id == id).expect("requests come from the manifest")
    }
}

/// Opens one file at its size, and tells which chunks it holds. Where the manifest has a hole,
/// so has the file.
fn prepare(
    path: &Path,
    listed: &model::ManifestFile,
    stop: &dyn Fn() -> bool,
) -> io::Result<(File, Vec<bool>)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    file.set_len(listed.size.0)?;
    let present = chunk::scan(&file, listed.size.0, stop)?;
    let mut verified = Vec::with_capacity(present.len());
    for (index, (present, wanted)) in (0..).zip(present.iter().zip(&listed.chunks)) {
        if wanted.is_none() && present.is_some() {
            clear(&file, listed.size.0, index)?;
        }
        verified.push(wanted.is_none() || present == wanted);
    }
    Ok((file, verified))
}

fn clear(file: &File, size: u64, index: u32) -> io::Result<()> {
    let length = chunk::length(size, index);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, hole, chunk::offset(index), length as u64) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            file.write_all_at(&vec![0; length], chunk::offset(index))
        }
        punched => Ok(punched?),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Bytes, ManifestFile, MigrationId, VmId};

    const MIB: usize = 1 << 20;

    fn manifest(content: &[u8]) -> Manifest {
        let chunks = content.chunks(MIB).map(chunk::entry).collect();
        let file = ManifestFile { id: FileId::disk(0), size: Bytes(content.len() as u64), chunks };
        Manifest { vm: VmId([1; 16]), migration: MigrationId([2; 16]), files: vec![file] }
    }

    fn content() -> Vec<u8> {
        let mut content = vec![0; 4 * MIB + 7];
        content[..MIB].fill(1);
        content[3 * MIB..4 * MIB].fill(3);
        content[4 * MIB..].fill(4);
        content
    }

    fn open(path: &Path) -> Result<Store, StoreError> {
        Store::open(path, manifest(&content()), &[FileId::disk(0), FileId::STATE], &|| false)
    }

    #[test]
    fn what_is_there_is_kept_what_is_torn_is_fetched_and_holes_are_zero() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let mut torn = content();
        torn[3 * MIB + 5] = 0;
        torn[2 * MIB] = 9;
        torn.push(0);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("disk0.raw"), &torn).unwrap();
        std::fs::write(path.join("state0.bin"), "left over").unwrap();
        let store = open(&path).unwrap();
        let missing = [Fetch { file: FileId::disk(0), first: 3, count: 1 }];
        assert_eq!(store.missing(), missing);
        assert_eq!(store.verified_bytes(), MIB as u64 + 7);
        store.write(FileId::disk(0), 3, &content()[3 * MIB..4 * MIB]).unwrap();
        store.finish().unwrap();
        assert!(std::fs::read(path.join("disk0.raw")).unwrap() == content());
        assert!(!path.join("state0.bin").exists());
    }

    #[test]
    fn a_chunk_that_does_not_match_is_neither_written_nor_counted() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let wrong = store.write(FileId::disk(0), 0, &[7; MIB]);
        assert!(matches!(wrong, Err(StoreError::Mismatch(_))));
        assert_eq!(store.verified_bytes(), 0);
        let file = std::fs::read(folder.path().join("disk0.raw")).unwrap();
        assert!(file.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn two_transfers_never_write_into_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        assert!(matches!(open(folder.path()), Err(StoreError::Busy(_))));
        drop(first);
        assert!(open(folder.path()).is_ok());
    }

    #[test]
    fn a_link_in_the_folder_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, "precious").unwrap();
        let path = folder.path().join("vm");
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, path.join("disk0.raw")).unwrap();
        assert!(matches!(open(&path), Err(StoreError::Io { .. })));
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"precious");
    }
}
