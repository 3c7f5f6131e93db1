//! Files and their rows in one SQLite database.
//!
//! The store is a plain value that one thread owns (`queue.rs`).
//! What only changes a file that is open (`write`, `truncate`) changes a **draft** over the stored
//! version; what must last is a [`Job`], and [`Store::commit`] does those that wait together in
//! one transaction, so that many writers pay one sync of the disk.
//!
//! ```text
//!   write, truncate ──▶ draft in memory ──(over DRAFTS_MAX)──▶ chunks under a content of its own
//!                          │
//!        flush, fsync, rename, truncate by path
//!                          ▼
//!       one transaction: rows of the new lines, their notes in the outbox (by trigger),
//!                        the draft's chunks, the file's size and times
//!                          │
//!            ┌─────────────┴──────────────┐
//!         committed                    refused
//!   the draft is the stored       the draft is gone, the stored version is what is
//!   version                       read; whoever had written to it is told
//! ```
//!
//! If the process ends at any point, the next start finds the stored versions and their rows, and
//! nothing else.

mod content;
mod draft;
mod jobs;
mod rows;
mod schema;
mod writers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File as LockFile;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use self::content::{Stored, View};
use self::draft::{CHUNK, Draft, HandleId};
use self::rows::{Head, Ledger};
use self::writers::{Writer, Writers};
use crate::name::{Folder, Name};
use crate::outbox::Bell;
use crate::refusal::Refusal;

pub use self::schema::OpenError;
pub(crate) use self::schema::open_beside;
pub use self::writers::Process;

/// Files that there may be.
pub const FILES_MAX: usize = 1_024;

/// Files that may be open.
pub const HANDLES_MAX: usize = 16_384;

/// Largest file of `encrypted/`: each time it is stored, all of it becomes one row, and one value,
/// which a message between sites must hold.
pub const OPAQUE_MAX: u64 = 512 * 1024;

/// Bytes of drafts in memory. Above it, they go to the database.
const DRAFTS_MAX: usize = 8 * 1024 * 1024;

/// The number of the first file; those below are the directories'.
const FIRST_FILE: u64 = 16;

/// The number of the root directory.
pub const ROOT: u64 = 1;

/// How much the store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together. While a file is being changed it counts for the larger of its
    /// stored version and what it is becoming.
    pub quota: u64,
    /// Bytes of one file.
    pub file: u64,
    /// Bytes of all rows together, each counted with its values and 64 more. The oldest are
    /// removed, acknowledged or not; the latter are counted.
    pub rows: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { quota: 64 << 20, file: 64 << 20, rows: 256 << 20 }
    }
}

/// Something in the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Root,
    Folder(Folder),
    File(u64),
}

impl Node {
    pub(crate) fn of(number: u64) -> Self {
        match number {
            ROOT => Self::Root,
            2 => Self::Folder(Folder::Unencrypted),
            3 => Self::Folder(Folder::Encrypted),
            file => Self::File(file),
        }
    }

    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Root => ROOT,
            Self::Folder(Folder::Unencrypted) => 2,
            Self::Folder(Folder::Encrypted) => 3,
            Self::File(file) => file,
        }
    }
}

/// What `stat` shows of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub number: u64,
    /// Bytes, with what is not stored yet.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content changed.
    pub modified: SystemTime,
    /// When it changed at all.
    pub changed: SystemTime,
    /// Whether it has a name still.
    pub is_linked: bool,
}

/// Who makes a file, and with which permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What is to change of a file's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// When its content changed.
    pub modified: Option<SystemTime>,
}

/// What must be durable before it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// A process has closed a descriptor of this handle.
    Flush(u64, Process),
    /// What was written to this handle's file must be durable.
    Fsync(u64),
    /// The file's size, where no handle is named that would be closed later.
    Truncate {
        /// The file.
        file: u64,
        /// Its new size.
        size: u64,
    },
    /// A file gets another name in its directory, and is stored under it.
    Rename {
        /// The directory.
        folder: Folder,
        /// The name that it has.
        from: Name,
        /// The name that it gets; a file that has it loses it.
        to: Name,
    },
    /// A file loses its name.
    Unlink {
        /// The directory.
        folder: Folder,
        /// The name.
        name: Name,
    },
    /// Attributes change.
    Change {
        /// The file.
        file: u64,
        /// To what.
        change: Change,
    },
}

#[derive(Debug, Clone)]
struct File {
    folder: Folder,
    name: Name,
    owner: Owner,
    modified: SystemTime,
    changed: SystemTime,
    stored: Option<Stored>,
    draft: Option<Draft>,
    /// What the stored version's start says; `None` if it was not read since.
    head: Option<Head>,
    /// Who wrote what is in the draft.
    writers: Writers,
    handles: u32,
    is_linked: bool,
}

impl File {
    fn size(&self) -> u64 {
        self.draft.as_ref().map_or_else(|| self.stored_size(), |draft| draft.size)
    }

    fn stored_size(&self) -> u64 {
        self.stored.map_or(0, |stored| stored.size)
    }

    /// What it counts for against the quota.
    fn weight(&self) -> u64 {
        self.stored_size().max(self.size())
    }

    fn view<'a>(&'a self, db: &'a Connection) -> View<'a> {
        View { db, stored: self.stored, draft: self.draft.as_ref() }
    }

    fn draft(&mut self) -> &mut Draft {
        let size = self.stored_size();
        self.draft.get_or_insert_with(|| Draft::over(size))
    }
}

#[derive(Debug)]
struct Handle {
    file: u64,
    /// What has to be told at the next fsync, or close by who wrote through it.
    refused: Option<(Refusal, Writers)>,
}

/// What a failed attempt puts back.
#[derive(Debug)]
struct Undo {
    /// Files as they were, the newest change last.
    files: Vec<(u64, Option<File>)>,
    ledger: Ledger,
    next_content: u64,
    garbage: usize,
}

/// The open store.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    limits: Limits,
    files: BTreeMap<u64, File>,
    /// By directory and name in small letters: tables do not tell them apart.
    names: BTreeMap<(Folder, String), u64>,
    handles: HashMap<HandleId, Handle>,
    /// Bytes that the files count for.
    used: u64,
    ledger: Ledger,
    next_file: u64,
    next_content: u64,
    next_handle: HandleId,
    /// Contents that belong to no file any more.
    garbage: Vec<u64>,
    bell: Arc<Bell>,
    /// Held while the store is open.
    _lock: LockFile,
}

impl Store {
    /// Opens the store at `path`, making it if there is none.
    ///
    /// One process at a time has it; looking at it from others is for [`crate::outbox::Outbox`].
    pub fn open(path: &Path, limits: Limits) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        let db = schema::open(path)?;
        let error = |source| OpenError::Sqlite { path: path.to_owned(), source };
        let mut store = Self {
            db,
            limits,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            handles: HashMap::new(),
            used: 0,
            ledger: Ledger { next_seq: 1, bytes: 0, bytes_max: limits.rows },
            next_file: FIRST_FILE,
            next_content: 1,
            next_handle: 1,
            garbage: Vec::new(),
            bell: Arc::default(),
            _lock: lock,
        };
        store.load().map_err(error)?;
        Ok(store)
    }

    fn load(&mut self) -> rusqlite::Result<()> {
        let mut contents = BTreeSet::new();
        let mut query = self.db.prepare(
            "SELECT id, folder, name, mode, uid, gid, mtime_ns, content, size, has_header
             FROM \"kpi/files\"",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let number = |column| row.get::<_, i64>(column).map(|n| u64::try_from(n).unwrap_or(0));
            let small = |column| row.get::<_, u32>(column);
            contents.insert(number(7)?);
            let (folder, name) = (row.get::<_, String>(1)?, row.get::<_, String>(2)?);
            let read = (Folder::from_name(folder.as_bytes()), Name::parse(name.as_bytes()));
            let (Some(folder), Ok(name)) = read else {
                // Only another program can have written it; it stays where it is.
                continue;
            };
            let stored = Stored { content: number(7)?, size: number(8)?, has_header: row.get(9)? };
            let modified = UNIX_EPOCH + Duration::from_nanos(number(6)?);
            let file = File {
                folder,
                name,
                owner: Owner { mode: small(3)?, uid: small(4)?, gid: small(5)? },
                modified,
                changed: modified,
                stored: Some(stored),
                draft: None,
                head: None,
                writers: Writers::default(),
                handles: 0,
                is_linked: true,
            };
            let id = number(0)?;
            self.next_file = self.next_file.max(id + 1);
            self.next_content = self.next_content.max(stored.content + 1);
            self.used += file.weight();
            self.names.insert(key(folder, &file.name), id);
            self.files.insert(id, file);
        }
        drop(rows);
        drop(query);
        self.find_garbage(&contents)?;
        let seq: Option<i64> = self
            .db
            .prepare("SELECT seq FROM sqlite_sequence WHERE name = 'kpi/outbox'")?
            .query_map([], |row| row.get(0))?
            .next()
            .transpose()?;
        self.ledger.next_seq = seq.unwrap_or_default() + 1;
        self.bell.ring(self.ledger.next_seq - 1);
        let bytes: i64 =
            self.db.query_row("SELECT ifnull(sum(bytes), 0) FROM \"kpi/outbox\"", [], |row| {
                row.get(0)
            })?;
        self.ledger.bytes = u64::try_from(bytes).unwrap_or_default();
        Ok(())
    }

    /// Finds the chunks of drafts, and of files without a name, that a killed process has left.
    fn find_garbage(&mut self, contents: &BTreeSet<u64>) -> rusqlite::Result<()> {
        let mut query =
            self.db.prepare("SELECT id FROM \"kpi/chunks\" WHERE id >= ?1 ORDER BY id LIMIT 1")?;
        let mut content = 0;
        loop {
            let next =
                query.query_map([content::first_key(content)], |row| row.get::<_, i64>(0))?;
            let Some(found) = next.last().transpose()? else { return Ok(()) };
            let found = content::of_key(found);
            if !contents.contains(&found) {
                self.garbage.push(found);
            }
            self.next_content = self.next_content.max(found + 1);
            content = found + 1;
        }
    }

    /// Rings when there are new rows.
    pub fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// Bytes that the files count for, and the quota.
    pub fn usage(&self) -> (u64, u64) {
        (self.used, self.limits.quota)
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// Finds a file by its name.
    pub fn find(&self, folder: Folder, name: &[u8]) -> Result<u64, Refusal> {
        let name = Name::parse(name).map_err(|refusal| match refusal {
            Refusal::NameLong(_) => refusal,
            // It could not be there.
            _ => Refusal::NotFound,
        })?;
        self.find_named(folder, &name)
    }

    fn find_named(&self, folder: Folder, name: &Name) -> Result<u64, Refusal> {
        let found = self.names.get(&key(folder, name)).filter(|id| self.files[id].name == *name);
        found.copied().ok_or(Refusal::NotFound)
    }

    /// A file's name, also after it was taken away.
    pub fn name(&self, file: u64) -> Option<&str> {
        self.files.get(&file).map(|file| file.name.as_str())
    }

    /// Files of a directory whose number is above `after`, in the order of their numbers.
    pub fn list(&self, folder: Folder, after: u64) -> impl Iterator<Item = (u64, &str)> {
        let range = self.files.range((Bound::Excluded(after), Bound::Unbounded));
        let listed = range.filter(move |(_, file)| file.is_linked && file.folder == folder);
        listed.map(|(number, file)| (*number, file.name.as_str()))
    }

    /// What `stat` shows.
    pub fn attributes(&self, file: u64) -> Result<Attributes, Refusal> {
        let found = self.files.get(&file).ok_or(Refusal::NotFound)?;
        Ok(Attributes {
            number: file,
            size: found.size(),
            mode: found.owner.mode,
            uid: found.owner.uid,
            gid: found.owner.gid,
            modified: found.modified,
            changed: found.changed,
            is_linked: found.is_linked,
        })
    }

    /// Makes a file, which is durable with its first flush, and opens it; answers file and handle.
    pub fn create(
        &mut self,
        folder: Folder,
        name: &[u8],
        owner: Owner,
    ) -> Result<(u64, u64), Refusal> {
        let name = Name::parse(name)?;
        let place = key(folder, &name);
        if let Some(there) = self.names.get(&place) {
            let there = self.files[there].name.as_str();
            let is_same = there == name.as_str();
            return Err(if is_same { Refusal::Exists } else { Refusal::NameCase(there.into()) });
        }
        if self.names.len() >= FILES_MAX {
            return Err(Refusal::Files(self.names.len()));
        }
        let file = self.next_file;
        let now = SystemTime::now();
        self.files.insert(
            file,
            File {
                folder,
                name,
                owner,
                modified: now,
                changed: now,
                stored: None,
                draft: Some(Draft::over(0)),
                head: None,
                writers: Writers::default(),
                handles: 0,
                is_linked: true,
            },
        );
        self.names.insert(place, file);
        self.next_file += 1;
        match self.open_handle(file) {
            Ok(handle) => {
                self.file_mut(file).writers.add((handle, None));
                Ok((file, handle))
            }
            Err(refusal) => {
                self.remove_from_memory(file);
                Err(refusal)
            }
        }
    }

    /// Opens a file; answers a handle.
    pub fn open_handle(&mut self, file: u64) -> Result<u64, Refusal> {
        if self.handles.len() >= HANDLES_MAX {
            return Err(Refusal::Handles(self.handles.len()));
        }
        let found = self.files.get_mut(&file).ok_or(Refusal::NotFound)?;
        found.handles += 1;
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, Handle { file, refused: None });
        Ok(handle)
    }

    /// Forgets a handle. What it wrote and did not store waits for the file's other handles, and
    /// is gone with the last.
    pub fn release(&mut self, handle: u64) {
        let Some(Handle { file, .. }) = self.handles.remove(&handle) else { return };
        let found = self.file_mut(file);
        found.handles -= 1;
        found.writers.retain(|writer| writer.0 != handle);
        if found.handles > 0 {
            return;
        }
        if found.is_linked && found.stored.is_some() {
            self.drop_draft(file);
        } else {
            self.remove_from_memory(file);
        }
    }

    /// Up to `len` bytes of a file from `offset` on, also those that are not stored yet.
    pub fn read(&self, file: u64, offset: u64, len: usize) -> Result<Vec<u8>, Refusal> {
        self.files.get(&file).ok_or(Refusal::NotFound)?.view(&self.db).read(offset, len)
    }

    /// Writes all of `data`, or nothing.
    ///
    /// After a refusal everything that is written through the handle is refused until it is
    /// flushed or synced, which answers the same once more and gives up what was not stored:
    /// else half of a line could be stored as if it were one.
    pub fn write(
        &mut self,
        handle: u64,
        process: Process,
        at: Position,
        data: &[u8],
    ) -> Result<(), Refusal> {
        let open = self.handles.get(&handle).ok_or(Refusal::Handle)?;
        if let Some((refused, _)) = &open.refused {
            return Err(refused.clone());
        }
        let file = open.file;
        let offset = match at {
            Position::At(offset) => offset,
            Position::End => self.files[&file].size(),
        };
        let done = self.write_at((handle, process), file, offset, data);
        self.remember((handle, Some(process)), &done);
        done
    }

    fn write_at(
        &mut self,
        (handle, process): (HandleId, Process),
        file: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Refusal> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64).ok_or(Refusal::Argument)?;
        let old_size = self.files[&file].size();
        let size = old_size.max(end);
        self.check_size(file, size)?;
        let found = self.files.get(&file).expect("a handle's file");
        let view = found.view(&self.db);
        // A line's end that comes where there was none cuts a line in two, and both are new.
        let cuts = |at: u64| -> Result<bool, Refusal> {
            Ok(at < old_size && view.byte(at)? != Some(b'\n'))
        };
        let cuts_before = data.first() == Some(&b'\n') && cuts(offset)?;
        let cuts_behind = data.last() == Some(&b'\n') && cuts(end - 1)?;
        let mut chunks = Vec::new();
        let mut at = offset;
        while at < end {
            let chunk = at / CHUNK;
            let start = chunk * CHUNK;
            let to = end.min(start + CHUNK);
            let index = |place: u64, base: u64| usize::try_from(place - base).expect("in memory");
            let known = found.draft.as_ref().is_some_and(|draft| draft.chunks.contains_key(&chunk));
            let is_whole = at == start && to >= old_size.min(start + CHUNK);
            let base = if known || is_whole { None } else { Some(view.chunk(chunk)?) };
            chunks.push((chunk, base, index(at, start), index(at, offset)..index(to, offset)));
            at = to;
        }
        let found = self.file_mut(file);
        let draft = found.draft();
        for (chunk, base, from, part) in chunks {
            let bytes = draft.chunks.entry(chunk).or_default();
            if let Some(base) = base {
                *bytes = base;
            }
            let to = from + part.len();
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(&data[part]);
        }
        draft.written.add(offset.min(old_size), end);
        if cuts_before {
            draft.written.add(offset.saturating_sub(1), offset);
        }
        if cuts_behind {
            draft.written.add(end, (end + 1).min(old_size));
        }
        draft.size = size;
        if end == size {
            draft.tail = Some((handle, Some(process)));
        }
        found.writers.add((handle, Some(process)));
        self.touched(file);
        self.spill()
    }

    /// Sets the size of a file that is open.
    pub fn truncate(&mut self, handle: u64, size: u64) -> Result<(), Refusal> {
        let open = self.handles.get(&handle).ok_or(Refusal::Handle)?;
        if let Some((refused, _)) = &open.refused {
            return Err(refused.clone());
        }
        let file = open.file;
        let done = self.resize(file, size);
        if done.is_ok() {
            self.file_mut(file).writers.add((handle, None));
        }
        self.remember((handle, None), &done);
        done
    }

    fn resize(&mut self, file: u64, size: u64) -> Result<(), Refusal> {
        let old = self.files[&file].size();
        self.check_size(file, size)?;
        let found = &self.files[&file];
        let view = found.view(&self.db);
        // The chunk that the cut goes through, as it is from now on.
        let edge = size / CHUNK;
        let cut =
            if size < old && !size.is_multiple_of(CHUNK) { Some(view.chunk(edge)?) } else { None };
        let is_cut_line = size > 0
            && size < old
            && (found.folder == Folder::Encrypted || view.byte(size - 1)? != Some(b'\n'));
        let spill = found.draft.as_ref().and_then(|draft| draft.spill);
        if let Some(spill) = spill.filter(|_| size < old) {
            content::remove(&self.db, spill, size.div_ceil(CHUNK))?;
        }
        let found = self.file_mut(file);
        let draft = found.draft();
        if size < old {
            draft.chunks.split_off(&size.div_ceil(CHUNK));
            if let Some(mut cut) = cut {
                cut.truncate(usize::try_from(size % CHUNK).expect("within a chunk"));
                draft.chunks.insert(edge, cut);
            }
            draft.keep = draft.keep.min(size);
            draft.written.cut(size);
            if is_cut_line {
                draft.written.add(size - 1, size);
            }
        } else {
            draft.written.add(old, size);
        }
        draft.size = size;
        draft.tail = None;
        self.touched(file);
        Ok(())
    }

    /// Notes a refusal for the handle's next close or fsync.
    fn remember(&mut self, writer: Writer, done: &Result<(), Refusal>) {
        let Err(refusal) = done else { return };
        let Some(open) = self.handles.get_mut(&writer.0) else { return };
        let mut writers = Writers::default();
        for earlier in self.files[&open.file].writers.of(writer.0) {
            writers.add(*earlier);
        }
        writers.add(writer);
        open.refused = Some((refusal.clone(), writers));
    }

    fn check_size(&self, file: u64, size: u64) -> Result<(), Refusal> {
        let found = &self.files[&file];
        let limit = match found.folder {
            Folder::Unencrypted => self.limits.file,
            Folder::Encrypted => self.limits.file.min(OPAQUE_MAX),
        };
        let old = found.size();
        if size > old && size > limit {
            return Err(Refusal::Large { size, limit });
        }
        let used = self.used - found.weight() + found.stored_size().max(size);
        if size > old && used > self.limits.quota {
            return Err(Refusal::Quota { used, quota: self.limits.quota });
        }
        Ok(())
    }

    fn file_mut(&mut self, file: u64) -> &mut File {
        self.files.get_mut(&file).expect("a handle's file is there")
    }

    fn touched(&mut self, file: u64) {
        let now = SystemTime::now();
        let found = self.file_mut(file);
        found.modified = now;
        found.changed = now;
        self.weigh();
    }

    /// Counts anew what the files are.
    fn weigh(&mut self) {
        self.used = self.files.values().map(File::weight).sum();
    }

    /// Moves drafts to the database if they have become too large for memory.
    fn spill(&mut self) -> Result<(), Refusal> {
        let memory: usize =
            self.files.values().filter_map(|file| file.draft.as_ref()).map(Draft::memory).sum();
        if memory <= DRAFTS_MAX {
            return Ok(());
        }
        let mut next = self.next_content;
        let spilled = in_transaction(&self.db, || {
            let mut spilled = Vec::new();
            for (number, file) in &self.files {
                let Some(draft) = file.draft.as_ref().filter(|draft| !draft.chunks.is_empty())
                else {
                    continue;
                };
                let content = draft.spill.unwrap_or(next);
                next = next.max(content + 1);
                content::write(&self.db, content, draft)?;
                spilled.push((*number, content));
            }
            Ok(spilled)
        })?;
        self.next_content = next;
        for (file, content) in spilled {
            let draft = self.file_mut(file).draft();
            draft.spill = Some(content);
            draft.chunks.clear();
        }
        Ok(())
    }

    /// Takes a draft away, so that the file is its stored version again.
    fn drop_draft(&mut self, file: u64) {
        let found = self.file_mut(file);
        let spill = found.draft.take().and_then(|draft| draft.spill);
        found.writers = Writers::default();
        self.garbage.extend(spill);
        self.weigh();
    }

    /// Takes a file out of memory. Its row in the database must be gone, or never have been.
    fn remove_from_memory(&mut self, file: u64) {
        self.drop_draft(file);
        let gone = self.files.remove(&file).expect("it is there");
        self.garbage.extend(gone.stored.map(|stored| stored.content));
        if gone.is_linked {
            self.names.remove(&key(gone.folder, &gone.name));
        }
        self.weigh();
    }
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// To this byte.
    At(u64),
    /// Behind the last byte, wherever that is by now (`O_APPEND`).
    End,
}

fn key(folder: Folder, name: &Name) -> (Folder, String) {
    (folder, name.as_str().to_ascii_lowercase())
}

/// The time as it is stored: nanoseconds since 1970, none before.
fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Runs `work` in a transaction, which is rolled back if it or the commit fails.
fn in_transaction<T>(
    db: &Connection,
    work: impl FnOnce() -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    let done = work().and_then(|value| {
        db.execute_batch("COMMIT")?;
        Ok(value)
    });
    // A full disk ends a transaction by itself.
    if done.is_err() && !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    done
}

fn lock(path: &Path) -> Result<LockFile, OpenError> {
    let mut name = path.as_os_str().to_owned();
    // Not the database itself: SQLite's own locks would go with the first descriptor closed.
    name.push("-lock");
    let name = PathBuf::from(name);
    let error = |source| OpenError::Lock { path: name.clone(), source };
    let file =
        LockFile::options().create(true).truncate(false).write(true).open(&name).map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(error(source)),
    }
}
