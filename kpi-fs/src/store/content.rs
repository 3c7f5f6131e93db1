//! The bytes of files: chunks in the database, and a draft over them.
//!
//! A chunk's key is its content's number and its place in it, so that a file's chunks lie together
//! in order. A file has one content; a draft that grows too large for memory has one of its own.

use rusqlite::{Connection, params};

use super::draft::{CHUNK, Draft};
use crate::refusal::Refusal;

/// Contents that the keys have room for.
const CONTENTS: u32 = 31;
/// Chunks of one content that the keys have room for.
const CHUNKS: u32 = 32;

/// The key of a chunk.
fn key(content: u64, chunk: u64) -> i64 {
    assert!(content < 1 << CONTENTS && chunk < 1 << CHUNKS, "limits are far below the keys'");
    i64::try_from(content << CHUNKS | chunk).expect("63 bits")
}

/// The keys of a content's chunks from `chunk` on.
fn keys(content: u64, chunk: u64) -> (i64, i64) {
    (key(content, chunk), key(content, (1 << CHUNKS) - 1))
}

/// Below all keys of a content and above those of the one before it.
pub(super) fn first_key(content: u64) -> i64 {
    key(content, 0)
}

/// The content that a key belongs to.
pub(super) fn of_key(key: i64) -> u64 {
    u64::try_from(key).unwrap_or_default() >> CHUNKS
}

/// A version of a file as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    /// Where its bytes are.
    pub content: u64,
    /// How many.
    pub size: u64,
    /// Whether its first line names the columns.
    pub has_header: bool,
}

/// A file as its readers see it.
pub(super) struct View<'a> {
    pub db: &'a Connection,
    pub stored: Option<Stored>,
    pub draft: Option<&'a Draft>,
}

impl View<'_> {
    pub(super) fn size(&self) -> u64 {
        match (self.draft, self.stored) {
            (Some(draft), _) => draft.size,
            (None, Some(stored)) => stored.size,
            (None, None) => 0,
        }
    }

    /// Up to `len` bytes from `offset` on; fewer at the end of the file.
    pub(super) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Refusal> {
        let end = self.size().min(offset.saturating_add(len as u64));
        if offset >= end {
            return Ok(Vec::new());
        }
        let mut window =
            Window { offset, bytes: vec![0; usize::try_from(end - offset).expect("at most len")] };
        // Each layer covers those before it.
        if let Some(stored) = self.stored {
            let keep = self.draft.map_or(stored.size, |draft| draft.keep);
            self.layer(stored.content, keep.min(end), &mut window)?;
        }
        if let Some(draft) = self.draft {
            if let Some(spill) = draft.spill {
                self.layer(spill, end, &mut window)?;
            }
            for (chunk, data) in draft.chunks.range(offset / CHUNK..=(end - 1) / CHUNK) {
                window.place(*chunk, data, end);
            }
        }
        Ok(window.bytes)
    }

    /// Lays a content's chunks that start before `end` into the window.
    fn layer(&self, content: u64, end: u64, window: &mut Window) -> Result<(), Refusal> {
        if end <= window.offset {
            return Ok(());
        }
        let mut query = self.db.prepare_cached(
            "SELECT id, data FROM \"kpi/chunks\" WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
        )?;
        let first = key(content, window.offset / CHUNK);
        let last = key(content, (end - 1) / CHUNK);
        let mut rows = query.query([first, last])?;
        while let Some(row) = rows.next()? {
            let chunk = u64::try_from(row.get::<_, i64>(0)?).unwrap_or_default();
            let chunk = chunk & ((1 << CHUNKS) - 1);
            let data = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            window.place(chunk, data, end);
        }
        Ok(())
    }

    /// One chunk, as long as the file goes.
    pub(super) fn chunk(&self, chunk: u64) -> Result<Vec<u8>, Refusal> {
        self.read(chunk * CHUNK, usize::try_from(CHUNK).expect("small"))
    }

    /// One byte of the file.
    pub(super) fn byte(&self, offset: u64) -> Result<Option<u8>, Refusal> {
        Ok(self.read(offset, 1)?.first().copied())
    }
}

/// What is read of a file.
struct Window {
    offset: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Lays a chunk over the window, with zeros to the chunk's end or to `end` if that is sooner.
    fn place(&mut self, chunk: u64, data: &[u8], end: u64) {
        let start = chunk * CHUNK;
        let from = start.max(self.offset);
        let to = (start + CHUNK).min(end).min(self.offset + self.bytes.len() as u64);
        if from >= to {
            return;
        }
        let index = |at: u64| usize::try_from(at).expect("within a window");
        let target = &mut self.bytes[index(from - self.offset)..index(to - self.offset)];
        let data = data.get(index(from - start)..).unwrap_or_default();
        let len = data.len().min(target.len());
        target[..len].copy_from_slice(&data[..len]);
        target[len..].fill(0);
    }
}

/// Writes the draft's chunks under `content`.
pub(super) fn write(db: &Connection, content: u64, draft: &Draft) -> Result<(), Refusal> {
    let mut insert =
        db.prepare_cached("INSERT OR REPLACE INTO \"kpi/chunks\" (id, data) VALUES (?1, ?2)")?;
    for (chunk, data) in &draft.chunks {
        insert.execute(params![key(content, *chunk), data])?;
    }
    Ok(())
}

/// Removes a content's chunks from `chunk` on.
pub(super) fn remove(db: &Connection, content: u64, chunk: u64) -> Result<(), Refusal> {
    let (first, last) = keys(content, chunk);
    db.prepare_cached("DELETE FROM \"kpi/chunks\" WHERE id BETWEEN ?1 AND ?2")?
        .execute([first, last])?;
    Ok(())
}

/// Makes the draft the stored version; answers where it is.
///
/// What is written is what the draft has; a draft that lies in the database and keeps nothing of
/// the stored version takes its place as it is.
pub(super) fn settle(
    db: &Connection,
    stored: Option<Stored>,
    draft: &Draft,
    fresh: u64,
) -> Result<u64, Refusal> {
    let target = match (stored, draft.spill) {
        (Some(old), Some(spill)) if draft.keep == 0 => {
            remove(db, old.content, 0)?;
            spill
        }
        (Some(old), spill) => {
            if draft.keep < old.size {
                remove(db, old.content, draft.keep.div_ceil(CHUNK))?;
            }
            if let Some(spill) = spill {
                let (first, last) = keys(spill, 0);
                let by = key(old.content, 0) - first;
                db.prepare_cached(
                    "UPDATE OR REPLACE \"kpi/chunks\" SET id = id + ?3 WHERE id BETWEEN ?1 AND ?2",
                )?
                .execute([first, last, by])?;
            }
            old.content
        }
        (None, spill) => spill.unwrap_or(fresh),
    };
    write(db, target, draft)?;
    Ok(target)
}
