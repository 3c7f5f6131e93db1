//! The folder that a transfer fills. Everything here blocks.
//!
//! File names come from this program alone. What lies in the folder from an earlier attempt, or in
//! files that may be matched against, is read and hashed, never believed; whatever differs from
//! what the source says of a chunk is fetched again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use model::{Bytes, Digest, FileId, Manifest, ManifestFile, MigrationId, VmId};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use crate::buffer::Buffer;
use crate::chunk;
use crate::message::{ContentId, Entry, Held, MAX_RUNS, Piece, Run, Verdict};
use crate::piece;

/// Why content cannot be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another transfer, or the end of an earlier one, still writes there.
    #[error("{0} is in use by another transfer")]
    Busy(PathBuf),
    /// The file system does not take it.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    /// The bytes are not those that the source spoke of.
    #[error("a chunk of {0} does not match the manifest")]
    Mismatch(FileId),
    /// The blocks that came do not make the chunk with those that were here, which therefore are
    /// not what they were. A later session fetches it whole.
    #[error("a chunk of {0} changed here while its other blocks were fetched")]
    Base(FileId),
    /// Something that no source says that keeps to the protocol.
    #[error("something about {0} that the protocol does not allow")]
    Protocol(FileId),
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

/// A folder that holds some of the chunks that a source speaks of, and in the end all.
///
/// It is locked while this value lives, and writes under way keep the value alive: two transfers
/// never write into one folder.
pub(crate) struct Store {
    path: PathBuf,
    folder: File,
    /// In the order of a manifest.
    files: Vec<Filling>,
    state: Mutex<State>,
}

/// A file that is being filled.
struct Filling {
    id: FileId,
    size: u64,
    chunks: u32,
    path: PathBuf,
    file: File,
    /// What it may be made of in part, and the size of that.
    basis: Option<(File, u64)>,
}

/// What is here of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Here {
    /// Nothing: it lies in a hole.
    Hole,
    /// Some bytes.
    Some,
    /// Bytes with this hash, as this process saw itself.
    Data(Digest),
}

struct State {
    content: ContentId,
    /// Per file, what the source said of its chunks so far.
    said: Vec<Vec<Option<Digest>>>,
    here: Vec<Vec<Here>>,
    /// Chunks that are not what the source says, or of which it said nothing yet.
    left: u64,
    /// Bytes of chunks that are [`Here::Data`].
    verified: u64,
    /// What lies here is not what it was: it is not matched against any more.
    distrusted: bool,
}

impl State {
    /// Whether a chunk is as the source says.
    fn is_right(&self, at: usize, index: u32) -> bool {
        match (self.said[at].get(index as usize), self.here[at][index as usize]) {
            (Some(Some(said)), Here::Data(here)) => *said == here,
            (Some(None), Here::Hole) => true,
            _ => false,
        }
    }

    fn set_here(&mut self, at: usize, index: u32, length: usize, here: Here) {
        let was_right = self.is_right(at, index);
        let before = std::mem::replace(&mut self.here[at][index as usize], here);
        self.verified -= if matches!(before, Here::Data(_)) { length as u64 } else { 0 };
        self.verified += if matches!(here, Here::Data(_)) { length as u64 } else { 0 };
        self.left += u64::from(was_right);
        self.left -= u64::from(self.is_right(at, index));
    }
}

/// What a store is made from.
pub(crate) struct Layout<'a> {
    pub(crate) content: ContentId,
    /// Ascending.
    pub(crate) files: &'a [(FileId, Bytes)],
    /// Files that may come: one of these that does not is removed.
    pub(crate) expected: &'a [FileId],
    /// Files to match against.
    pub(crate) basis: &'a [(FileId, PathBuf)],
}

/// What is in the folder before anybody said what comes: chunks with bytes, per file.
pub(crate) fn look(
    path: &Path,
    expected: &[FileId],
    basis: &[(FileId, PathBuf)],
) -> Result<Vec<Held>, StoreError> {
    let mut found = Vec::new();
    for id in expected {
        let mut held = Vec::new();
        let own = path.join(id.file_name());
        let basis = basis.iter().filter(|(of, _)| of == id).map(|(_, path)| path.clone());
        for path in std::iter::once(own).chain(basis) {
            match File::open(&path) {
                Ok(file) => {
                    let runs = file.metadata().and_then(|data| chunk::data_runs(&file, data.len()));
                    held.extend(runs.map_err(StoreError::at(&path))?);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::at(&path)(error)),
            }
        }
        if !held.is_empty() {
            let held = merged(held);
            found.push(Held { file: *id, known: 0, missing: vec![], held });
        }
    }
    Ok(bounded(found))
}

/// Ascending, without overlaps.
fn merged(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable_by_key(|run| run.first);
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match merged.last_mut() {
            Some(last) if run.first <= last.end() => {
                last.count = last.end().max(run.end()) - last.first;
            }
            _ => merged.push(run),
        }
    }
    merged
}

/// No more runs than may be told: gaps between runs are named too, which costs a question each.
fn bounded(mut found: Vec<Held>) -> Vec<Held> {
    let share = MAX_RUNS / (2 * found.len()).max(1);
    let close = |runs: &mut Vec<Run>| {
        if runs.len() > share {
            let parts = runs.chunks(runs.len().div_ceil(share));
            *runs = parts
                .map(|part| {
                    let (first, last) = (part[0], part[part.len() - 1]);
                    Run { first: first.first, count: last.end() - first.first }
                })
                .collect();
        }
    };
    for held in &mut found {
        close(&mut held.held);
        close(&mut held.missing);
    }
    found
}

impl Store {
    /// Opens the folder `path`, making it if its parent is there, and gives each file its size.
    pub(crate) fn open(path: &Path, layout: &Layout<'_>) -> Result<Self, StoreError> {
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
        let comes = |id: &FileId| layout.files.iter().any(|(file, _)| file == id);
        for id in layout.expected.iter().filter(|id| !comes(id)) {
            let path = path.join(id.file_name());
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(StoreError::at(&path))?,
            }
        }
        let mut files = Vec::with_capacity(layout.files.len());
        let mut state = State {
            content: layout.content,
            said: vec![vec![]; layout.files.len()],
            here: Vec::with_capacity(layout.files.len()),
            left: 0,
            verified: 0,
            distrusted: false,
        };
        for (id, size) in layout.files {
            let path = path.join(id.file_name());
            let basis = layout.basis.iter().find(|(of, _)| of == id).map(|(_, path)| path);
            let (filling, here) =
                Filling::open(*id, size.0, path.clone(), basis).map_err(StoreError::at(&path))?;
            state.left += u64::from(filling.chunks);
            state.here.push(here);
            files.push(filling);
        }
        Ok(Self { path: path.to_owned(), folder, files, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Whether these are its files.
    pub(crate) fn has_files(&self, files: &[(FileId, Bytes)]) -> bool {
        let own = self.files.iter().map(|file| (file.id, Bytes(file.size)));
        own.eq(files.iter().copied())
    }

    /// From here on the source speaks of this reading of its files. What it said of another is
    /// forgotten.
    pub(crate) fn turn_to(&self, content: ContentId) {
        let mut state = self.state();
        if state.content != content {
            state.content = content;
            state.said.iter_mut().for_each(Vec::clear);
            state.left = self.files.iter().map(|file| u64::from(file.chunks)).sum();
        }
    }

    /// What is here, as a source is told it.
    ///
    /// What it said from the first chunk on of which this end waits for some blocks is forgotten:
    /// the source says it again, and is asked for the same blocks. Else it would send such chunks
    /// whole, as it does not know any more which blocks those were.
    pub(crate) fn declare(&self) -> (ContentId, Vec<Held>) {
        let mut state = self.state();
        for (at, file) in self.files.iter().enumerate() {
            let known = u32::try_from(state.said[at].len()).expect("as many as chunks");
            let is_patched = |index: &u32| {
                !state.is_right(at, *index) && file.holds(*index, &state.here[at], state.distrusted)
            };
            let keep = (0..known).find(is_patched).unwrap_or(known);
            let right = (keep..known).filter(|index| state.is_right(at, *index)).count();
            state.left += right as u64;
            state.said[at].truncate(keep as usize);
        }
        let declared = self.files.iter().enumerate().map(|(at, file)| {
            let known = u32::try_from(state.said[at].len()).expect("as many as chunks");
            let (mut missing, mut held) = (Vec::new(), Vec::new());
            for index in 0..file.chunks {
                if index < known && !state.is_right(at, index) {
                    push(&mut missing, index);
                }
                if file.holds(index, &state.here[at], state.distrusted) {
                    push(&mut held, index);
                }
            }
            Held { file: file.id, known, missing, held }
        });
        (state.content, bounded(declared.collect()))
    }

    /// Bytes of chunks that are verified.
    pub(crate) fn verified_bytes(&self) -> u64 {
        self.state().verified
    }

    /// Takes what the source says of chunks from `first` on, which is where it ended before, and
    /// gives its verdict of those that were declared in `held`.
    pub(crate) fn learn(
        &self,
        id: FileId,
        first: u32,
        entries: &[Entry],
        held: impl Fn(u32) -> bool,
    ) -> Result<Vec<(u32, Verdict)>, StoreError> {
        let at = self.position(id)?;
        let file = &self.files[at];
        if self.state().said[at].len() != first as usize {
            return Err(StoreError::Protocol(id));
        }
        let (mut next, mut verdicts) = (first, Vec::new());
        for entry in entries {
            let count = match entry {
                Entry::Zero(count) => *count,
                Entry::Data(_) => 1,
            };
            let run = Run { first: next, count };
            if run.end() > file.chunks || count == 0 {
                return Err(StoreError::Protocol(id));
            }
            match entry {
                Entry::Zero(_) => self.be_zero(at, run)?,
                Entry::Data(digest) => {
                    {
                        let mut state = self.state();
                        state.said[at].push(Some(*digest));
                        state.left -= u64::from(state.is_right(at, next));
                    }
                    if held(next) {
                        verdicts.push((next, self.judge(at, next, *digest)?));
                    } else {
                        let here = self.state().here[at][next as usize];
                        if matches!(here, Here::Data(here) if here != *digest) {
                            return Err(StoreError::Mismatch(id));
                        }
                    }
                }
            }
            next = run.end();
        }
        Ok(verdicts)
    }

    fn be_zero(&self, at: usize, run: Run) -> Result<(), StoreError> {
        let file = &self.files[at];
        for index in run.first..run.end() {
            let here = self.state().here[at][index as usize];
            if here != Here::Hole {
                clear(&file.file, file.size, index).map_err(StoreError::at(&file.path))?;
            }
            let mut state = self.state();
            state.said[at].push(None);
            let length = chunk::length(file.size, index);
            if here == Here::Hole {
                state.left -= 1;
            } else {
                state.set_here(at, index, length, Here::Hole);
            }
        }
        Ok(())
    }

    /// Whether what is here, or in the basis, is the chunk with this hash.
    fn judge(&self, at: usize, index: u32, digest: Digest) -> Result<Verdict, StoreError> {
        let file = &self.files[at];
        let length = chunk::length(file.size, index);
        let here = self.state().here[at][index as usize];
        if here == Here::Data(digest) {
            return Ok(Verdict::Kept);
        }
        let Some(bytes) = file.base(index, here).map_err(StoreError::at(&file.path))? else {
            return Ok(Verdict::Wanted);
        };
        match chunk::entry(&bytes) {
            None => Ok(Verdict::Wanted),
            Some(entry) if entry == digest => {
                if here == Here::Hole {
                    file.write(index, &bytes)?;
                }
                self.state().set_here(at, index, length, Here::Data(digest));
                Ok(Verdict::Kept)
            }
            Some(_) => Ok(Verdict::Patch(chunk::sums(&bytes))),
        }
    }

    /// Checks what came of a chunk and writes it to its place.
    pub(crate) fn put(&self, piece: &Piece, came: Buffer) -> Result<(), StoreError> {
        let at = self.position(piece.file)?;
        let (file, index) = (&self.files[at], piece.index);
        let length = self.length(piece.file, index)?;
        let here = self.state().here[at][index as usize];
        let mut unread = None;
        let base = || match file.base(index, here) {
            Ok(base) => base,
            Err(error) => {
                unread = Some(error);
                None
            }
        };
        let made = piece::unmake(piece, came, length, base);
        if let Some(error) = unread {
            return Err(StoreError::at(&file.path)(error));
        }
        let is_patch = matches!(piece.form, crate::message::Form::Patch(_));
        let bytes = match made {
            Some(bytes) if chunk::entry(&bytes) == Some(piece.digest) => bytes,
            Some(_) if is_patch => {
                self.state().distrusted = true;
                return Err(StoreError::Base(piece.file));
            }
            _ => return Err(StoreError::Mismatch(piece.file)),
        };
        let said = self.state().said[at].get(index as usize).copied();
        if said.is_some_and(|said| said != Some(piece.digest)) {
            return Err(StoreError::Mismatch(piece.file));
        }
        let empty = here == Here::Hole;
        self.state().set_here(at, index, length, Here::Some);
        if empty {
            file.write_sparsely(index, &bytes)?;
        } else {
            file.write(index, &bytes)?;
        }
        self.state().set_here(at, index, length, Here::Data(piece.digest));
        Ok(())
    }

    /// How many bytes a chunk has.
    pub(crate) fn length(&self, id: FileId, index: u32) -> Result<usize, StoreError> {
        let file = &self.files[self.position(id)?];
        let exists = index < file.chunks;
        exists.then(|| chunk::length(file.size, index)).ok_or(StoreError::Protocol(id))
    }

    /// Whether every chunk is what the source says.
    pub(crate) fn is_complete(&self) -> bool {
        self.state().left == 0
    }

    /// Brings everything to stable storage, and tells what it is. Only for a store that is
    /// complete.
    pub(crate) fn finish(&self, vm: VmId, migration: MigrationId) -> Result<Manifest, StoreError> {
        assert!(self.is_complete(), "a store is finished when it is complete");
        for file in &self.files {
            file.file.sync_all().map_err(StoreError::at(&file.path))?;
        }
        self.folder.sync_all().map_err(StoreError::at(&self.path))?;
        let state = self.state();
        let files = self.files.iter().zip(&state.said).map(|(file, said)| ManifestFile {
            id: file.id,
            size: Bytes(file.size),
            chunks: said.clone(),
        });
        Ok(Manifest { vm, migration, files: files.collect() })
    }

    fn position(&self, id: FileId) -> Result<usize, StoreError> {
        self.files.iter().position(|file| file.id == id).ok_or(StoreError::Protocol(id))
    }
}

fn push(runs: &mut Vec<Run>, index: u32) {
    match runs.last_mut() {
        Some(run) if run.end() == index => run.count += 1,
        _ => runs.push(Run { first: index, count: 1 }),
    }
}

impl Filling {
    /// Opens the file at its size, and tells which chunks have bytes.
    fn open(
        id: FileId,
        size: u64,
        path: PathBuf,
        basis: Option<&PathBuf>,
    ) -> io::Result<(Self, Vec<Here>)> {
        let chunks = chunk::count(size)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        file.set_len(size)?;
        let mut here = vec![Here::Hole; chunks as usize];
        for run in chunk::data_runs(&file, size)? {
            here[run.first as usize..run.end() as usize].fill(Here::Some);
        }
        let basis = match basis.map(File::open) {
            Some(Ok(basis)) => {
                let size = basis.metadata()?.len();
                Some((basis, size))
            }
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => None,
        };
        Ok((Self { id, size, chunks, path, file, basis }, here))
    }

    /// Whether there are bytes of this chunk that may be of use.
    fn holds(&self, index: u32, here: &[Here], distrusted: bool) -> bool {
        match here[index as usize] {
            Here::Data(_) => true,
            Here::Some => !distrusted,
            Here::Hole => !distrusted && self.has_basis(index),
        }
    }

    /// Whether the basis has this chunk in full.
    fn has_basis(&self, index: u32) -> bool {
        let end = chunk::offset(index) + chunk::length(self.size, index) as u64;
        self.basis.as_ref().is_some_and(|(_, size)| *size >= end)
    }

    /// What there is that may be the chunk, or much of it.
    fn base(&self, index: u32, here: Here) -> io::Result<Option<Buffer>> {
        match (&self.basis, here) {
            (_, Here::Some | Here::Data(_)) => chunk::read(&self.file, self.size, index).map(Some),
            (Some((basis, _)), Here::Hole) if self.has_basis(index) => {
                chunk::read(basis, self.size, index).map(Some)
            }
            (_, Here::Hole) => Ok(None),
        }
    }

    fn write(&self, index: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all_at(bytes, chunk::offset(index));
        written.map_err(StoreError::at(&self.path))
    }

    /// Leaves blocks that are all zero to the hole that the chunk lies in.
    fn write_sparsely(&self, index: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let set = chunk::blocks_with_data(bytes);
        let mut spans = set.spans(bytes.len()).expect("blocks of these bytes").peekable();
        while let Some(mut span) = spans.next() {
            while let Some(next) = spans.next_if(|next| next.start == span.end) {
                span.end = next.end;
            }
            let at = chunk::offset(index) + span.start as u64;
            self.file.write_all_at(&bytes[span], at).map_err(StoreError::at(&self.path))?;
        }
        Ok(())
    }
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
    use crate::message::Form;

    const MIB: usize = 1 << 20;
    const DISK: FileId = FileId { kind: model::FileKind::Disk, index: 0 };

    fn content() -> Vec<u8> {
        let mut content = vec![0; 4 * MIB + 7];
        content[..MIB].fill(1);
        content[3 * MIB..4 * MIB].fill(3);
        content[4 * MIB..].fill(4);
        content
    }

    fn entries() -> Vec<Entry> {
        let content = content();
        let mut entries = vec![];
        for chunk in content.chunks(MIB) {
            entries.push(chunk::entry(chunk).map_or(Entry::Zero(1), Entry::Data));
        }
        entries
    }

    fn open_with(path: &Path, basis: &[(FileId, PathBuf)]) -> Result<Store, StoreError> {
        let files = [(DISK, Bytes(content().len() as u64))];
        let expected = &[DISK, FileId::STATE];
        Store::open(path, &Layout { content: [1; 16], files: &files, expected, basis })
    }

    fn open(path: &Path) -> Result<Store, StoreError> {
        open_with(path, &[])
    }

    fn whole(index: u32, bytes: &[u8]) -> Piece {
        let (digest, length) = (Digest::of(bytes), bytes.len() as u32);
        Piece { file: DISK, index, digest, form: Form::Whole, packed: false, length }
    }

    fn filled(byte: u8) -> Buffer {
        vec![byte; MIB][..].into()
    }

    fn finish(store: &Store) -> Manifest {
        store.finish(VmId([1; 16]), MigrationId([2; 16])).unwrap()
    }

    #[test]
    fn what_is_there_is_kept_what_is_torn_is_patched_and_holes_are_zero() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let mut torn = content();
        torn[3 * MIB + 5] = 0;
        torn[2 * MIB] = 9;
        torn.push(0);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("disk0.raw"), &torn).unwrap();
        std::fs::write(path.join("state0.bin"), "left over").unwrap();
        let held = look(&path, &[DISK, FileId::STATE], &[]).unwrap();
        assert_eq!(held[0].held, [Run { first: 0, count: 5 }]);
        let store = open(&path).unwrap();
        let verdicts = store.learn(DISK, 0, &entries(), |_| true).unwrap();
        assert_eq!(verdicts.len(), 3);
        assert_eq!((&verdicts[0], &verdicts[2]), (&(0, Verdict::Kept), &(4, Verdict::Kept)));
        let Verdict::Patch(sums) = &verdicts[1].1 else { panic!("{:?}", verdicts[1]) };
        assert_eq!(store.verified_bytes(), MIB as u64 + 7);
        assert!(!store.is_complete());
        let chunk = content()[3 * MIB..4 * MIB].to_vec();
        let (form, packed, bytes) = piece::make(chunk[..].into(), Some(sums), None);
        assert_eq!(bytes.len(), 4096);
        let piece = Piece { form, packed, length: 4096, ..whole(3, &chunk) };
        store.put(&piece, bytes).unwrap();
        assert!(store.is_complete());
        assert_eq!(finish(&store).size(), Bytes(content().len() as u64));
        assert!(std::fs::read(path.join("disk0.raw")).unwrap() == content());
        assert!(!path.join("state0.bin").exists());
    }

    #[test]
    fn a_chunk_that_does_not_match_is_neither_written_nor_counted() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let piece = whole(0, &[1; MIB]);
        let wrong = store.put(&piece, filled(7));
        assert!(matches!(wrong, Err(StoreError::Mismatch(_))));
        assert_eq!(store.verified_bytes(), 0);
        let file = std::fs::read(folder.path().join("disk0.raw")).unwrap();
        assert!(file.iter().all(|byte| *byte == 0));
        // Nor is one that is not what the source said of it, whichever comes first.
        store.learn(DISK, 0, &entries()[..1], |_| false).unwrap();
        let other = store.put(&whole(0, &[7; MIB]), filled(7));
        assert!(matches!(other, Err(StoreError::Mismatch(_))));
        store.put(&whole(3, &[7; MIB]), filled(7)).unwrap();
        let other = store.learn(DISK, 1, &entries()[1..], |_| false);
        assert!(matches!(other, Err(StoreError::Mismatch(_))));
        assert!(!store.is_complete());
    }

    #[test]
    fn what_no_honest_source_says_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let learn = |file, first, entries: &[Entry]| store.learn(file, first, entries, |_| false);
        let some = Entry::Data(Digest([1; 32]));
        assert!(matches!(learn(DISK, 1, &[some]), Err(StoreError::Protocol(_))));
        assert!(matches!(learn(DISK, 0, &[some; 6]), Err(StoreError::Protocol(_))));
        assert!(matches!(learn(FileId::STATE, 0, &[some]), Err(StoreError::Protocol(_))));
        drop(store);
        let store = open(folder.path()).unwrap();
        let learn = |first, entries: &[Entry]| store.learn(DISK, first, entries, |_| false);
        for count in [0, 6, u32::MAX] {
            assert!(matches!(learn(0, &[Entry::Zero(count)]), Err(StoreError::Protocol(_))));
        }
        let beyond = Piece { index: 5, ..whole(0, &[1; MIB]) };
        assert!(matches!(store.put(&beyond, filled(1)), Err(StoreError::Protocol(_))));
        assert!(matches!(store.length(DISK, u32::MAX), Err(StoreError::Protocol(_))));
    }

    #[test]
    fn an_older_image_gives_what_did_not_change() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("old.raw");
        let mut bytes = content();
        bytes[3 * MIB + 4096] = 9;
        std::fs::write(&old, &bytes[..4 * MIB]).unwrap();
        let basis = [(DISK, old)];
        let path = folder.path().join("vm");
        let held = look(&path, &[DISK], &basis).unwrap();
        assert_eq!(held[0].held, [Run { first: 0, count: 4 }]);
        let store = open_with(&path, &basis).unwrap();
        let verdicts = store.learn(DISK, 0, &entries(), |index| index < 4).unwrap();
        assert_eq!(verdicts[0], (0, Verdict::Kept));
        let Verdict::Patch(sums) = &verdicts[1].1 else { panic!("{:?}", verdicts[1]) };
        let chunk = content()[3 * MIB..4 * MIB].to_vec();
        let (form, packed, bytes) = piece::make(chunk[..].into(), Some(sums), None);
        store.put(&Piece { form, packed, length: 4096, ..whole(3, &chunk) }, bytes).unwrap();
        store.put(&whole(4, &[4; 7]), [4; 7][..].into()).unwrap();
        assert!(store.is_complete());
        finish(&store);
        assert!(std::fs::read(path.join("disk0.raw")).unwrap() == content());
    }

    #[test]
    fn what_changes_under_a_patch_is_fetched_whole_by_the_next_session() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk0.raw");
        let mut torn = content();
        torn[3 * MIB] = 9;
        std::fs::write(&file, &torn).unwrap();
        let store = open(folder.path()).unwrap();
        let verdicts = store.learn(DISK, 0, &entries(), |_| true).unwrap();
        let Verdict::Patch(sums) = &verdicts[1].1 else { panic!("{:?}", verdicts[1]) };
        let damage = OpenOptions::new().write(true).open(&file).unwrap();
        damage.write_all_at(b"!", 3 * MIB as u64 + 9000).unwrap();
        let chunk = content()[3 * MIB..4 * MIB].to_vec();
        let (form, packed, bytes) = piece::make(chunk[..].into(), Some(sums), None);
        let piece = Piece { form, packed, length: 4096, ..whole(3, &chunk) };
        assert!(matches!(store.put(&piece, bytes), Err(StoreError::Base(_))));
        let (content_id, declared) = store.declare();
        assert_eq!((content_id, declared[0].known), ([1; 16], 5));
        assert_eq!(declared[0].missing, [Run { first: 3, count: 1 }]);
        let held = [(0, 1), (4, 1)].map(|(first, count)| Run { first, count });
        assert_eq!(declared[0].held, held);
        store.put(&whole(3, &chunk), chunk[..].into()).unwrap();
        assert!(store.is_complete());
    }

    #[test]
    fn blocks_that_did_not_come_in_one_session_are_asked_for_again_in_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let mut torn = content();
        torn[3 * MIB] = 9;
        std::fs::write(folder.path().join("disk0.raw"), &torn).unwrap();
        let store = open(folder.path()).unwrap();
        let verdicts = store.learn(DISK, 0, &entries(), |_| true).unwrap();
        assert!(matches!(verdicts[1], (3, Verdict::Patch(_))), "{verdicts:?}");
        let (_, declared) = store.declare();
        assert_eq!((declared[0].known, &declared[0].missing[..]), (3, &[][..]));
        let again = store.learn(DISK, 3, &entries()[3..], |_| true).unwrap();
        assert_eq!(again, [verdicts[1].clone(), (4, Verdict::Kept)]);
        let chunk = content()[3 * MIB..4 * MIB].to_vec();
        store.put(&whole(3, &chunk), chunk[..].into()).unwrap();
        assert!(store.is_complete());
        assert_eq!(store.declare().1[0].known, 5);
    }

    #[test]
    fn another_reading_of_the_source_is_learnt_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        store.learn(DISK, 0, &entries(), |_| false).unwrap();
        store.put(&whole(0, &[1; MIB]), filled(1)).unwrap();
        store.turn_to([2; 16]);
        let (content, declared) = store.declare();
        assert_eq!((content, declared[0].known), ([2; 16], 0));
        assert_eq!(declared[0].held, [Run { first: 0, count: 1 }]);
        let verdicts = store.learn(DISK, 0, &entries(), |index| index == 0).unwrap();
        assert_eq!(verdicts, [(0, Verdict::Kept)]);
    }

    #[test]
    fn no_more_runs_are_told_than_may_be() {
        let runs: Vec<_> = (0..100_000).map(|n| Run { first: 3 * n, count: 1 }).collect();
        let held = Held { file: DISK, known: 0, missing: runs.clone(), held: runs };
        let told = bounded(vec![held.clone(), held]);
        let count: usize = told.iter().map(|held| held.missing.len() + held.held.len()).sum();
        assert!(count <= MAX_RUNS && count > MAX_RUNS / 2, "{count}");
        let has = |index| told[1].held.iter().any(|run| run.has(index));
        assert!((0..100_000).all(|n| has(3 * n)));
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
