//! What a source has to send: the files of a quiet guest, and what is known of their chunks.
//!
//! Files are read once where the path allows it: a chunk is hashed when it is read to be sent.
//! What no session asks for is read by [`Content::survey`], so that the manifest is made in any
//! case. Whatever is read again must be what it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use model::{Bytes, Digest, FileId, Manifest, ManifestFile, MigrationId, VmId, limit};
use tokio::sync::watch;

use crate::buffer::Buffer;
use crate::chunk;
use crate::fault::{Fault, Reason};
use crate::message::{ContentId, Entry, MAX_SUMS, Run};

/// What is known of a chunk: nothing; all zero; its hash.
type Known = Option<Option<Digest>>;

/// The files of one transfer, open.
pub(crate) struct Content {
    /// Of this reading.
    pub(crate) id: ContentId,
    /// In the order of a manifest.
    pub(crate) files: Vec<Listed>,
    known: Mutex<Vec<Vec<Known>>>,
    /// Chunks of which nothing is known yet. Watched by whoever waits for news.
    pub(crate) unknown: watch::Sender<u64>,
    /// Bytes of chunks that hold something, as far as is known.
    data: AtomicU64,
}

/// A file, and what it looked like when it was opened.
pub(crate) struct Listed {
    pub(crate) id: FileId,
    pub(crate) size: u64,
    pub(crate) chunks: u32,
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

/// What changes when somebody writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let data = file.metadata()?;
        Ok(Self { size: data.len(), modified: (data.mtime(), data.mtime_nsec()) })
    }
}

impl Content {
    /// Opens the files. Of chunks in holes all is known by that.
    pub(crate) fn open(id: ContentId, mut files: Vec<(FileId, PathBuf)>) -> Result<Self, Fault> {
        files.sort();
        if files.len() > limit::MAX_FILES || files.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(Reason::Manifest.into());
        }
        let mut listed = Vec::with_capacity(files.len());
        let mut known = Vec::with_capacity(files.len());
        let (mut unknown, mut data) = (0, 0);
        for (id, path) in files {
            let unreadable = |error: io::Error| {
                Fault::with(Reason::Unreadable(id), format_args!("{}: {error}", path.display()))
            };
            let file = File::open(&path).map_err(unreadable)?;
            let stamp = Stamp::of(&file).map_err(unreadable)?;
            let chunks = chunk::count(stamp.size).map_err(unreadable)?;
            let runs = chunk::data_runs(&file, stamp.size).map_err(unreadable)?;
            let mut of_file: Vec<Known> = vec![Some(None); chunks as usize];
            for run in &runs {
                of_file[run.first as usize..run.end() as usize].fill(None);
                unknown += u64::from(run.count);
            }
            data += chunk::bytes_of(stamp.size, &runs);
            known.push(of_file);
            listed.push(Listed { id, size: stamp.size, chunks, path, file, stamp });
        }
        let (unknown, data) = (watch::Sender::new(unknown), AtomicU64::new(data));
        Ok(Self { id, files: listed, known: Mutex::new(known), unknown, data })
    }

    fn known(&self) -> MutexGuard<'_, Vec<Vec<Known>>> {
        self.known.lock().expect("no holder of this lock panics")
    }

    /// Where a file stands in [`Content::files`].
    pub(crate) fn position(&self, id: FileId) -> Option<usize> {
        self.files.iter().position(|file| file.id == id)
    }

    /// Files and sizes.
    pub(crate) fn layout(&self) -> Vec<(FileId, Bytes)> {
        self.files.iter().map(|file| (file.id, Bytes(file.size))).collect()
    }

    /// Bytes of chunks that hold something, as far as is known: the rest of them at most.
    pub(crate) fn data(&self) -> u64 {
        self.data.load(Ordering::Relaxed)
    }

    /// Whether it is known what a chunk holds.
    pub(crate) fn is_known(&self, at: usize, index: u32) -> bool {
        self.known()[at][index as usize].is_some()
    }

    /// Whether a chunk is known to be all zero.
    pub(crate) fn is_zero(&self, at: usize, index: u32) -> bool {
        self.known()[at][index as usize] == Some(None)
    }

    /// Reads a chunk; none if it is all zero. What it is becomes known, and what is known must be
    /// what it is. Blocks.
    pub(crate) fn read(&self, at: usize, index: u32) -> Result<Option<(Digest, Buffer)>, Fault> {
        let listed = &self.files[at];
        let bytes = chunk::read(&listed.file, listed.size, index).map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::UnexpectedEof => Reason::Changed(listed.id),
                _ => Reason::Unreadable(listed.id),
            };
            Fault::with(reason, format_args!("{}: {error}", listed.path.display()))
        })?;
        let entry = chunk::entry(&bytes);
        let mut known = self.known();
        let slot = &mut known[at][index as usize];
        match *slot {
            Some(before) if before != entry => return Err(Reason::Changed(listed.id).into()),
            Some(_) => {}
            None => {
                *slot = Some(entry);
                drop(known);
                if entry.is_none() {
                    self.data.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
                }
                self.unknown.send_modify(|unknown| *unknown -= 1);
            }
        }
        Ok(entry.map(|digest| (digest, bytes)))
    }

    /// Reads up to `count` of the chunks of which nothing is known, from the first on, by as many
    /// threads as there are cores. Stops when told. Blocks.
    pub(crate) fn survey(
        &self,
        count: usize,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Fault> {
        let chosen: Vec<(usize, u32)> = {
            let known = self.known();
            let unknown = known.iter().enumerate().flat_map(|(at, chunks)| {
                (0..).zip(chunks).filter(|(_, known)| known.is_none()).map(move |(n, _)| (at, n))
            });
            unknown.take(count).collect()
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = chosen.len().div_ceil(cores).max(1);
        let work = |chosen: &[(usize, u32)]| {
            chosen
                .iter()
                .take_while(|_| !stop())
                .try_for_each(|(at, index)| self.read(*at, *index).map(drop))
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                chosen.chunks(share).map(|part| scope.spawn(move || work(part))).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("reading does not panic"))
        })
    }

    /// What is known of the chunks of a file from `first` on without a gap, as much of it as one
    /// message tells; and the chunk behind the last of them.
    pub(crate) fn entries(&self, at: usize, first: u32) -> (Vec<Entry>, u32) {
        let known = self.known();
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = first;
        for known in known[at].iter().skip(first as usize) {
            let Some(known) = known else { break };
            if let (None, Some(Entry::Zero(count))) = (known, entries.last_mut()) {
                *count += 1;
            } else if entries.len() == MAX_SUMS {
                break;
            } else {
                entries.push(known.map_or(Entry::Zero(1), Entry::Data));
            }
            next += 1;
        }
        (entries, next)
    }

    /// The manifest, once all is known. No file may have changed since it was opened.
    pub(crate) fn manifest(&self, vm: VmId, migration: MigrationId) -> Result<Manifest, Fault> {
        for listed in &self.files {
            let stamp = Stamp::of(&listed.file)
                .map_err(|error| Fault::with(Reason::Unreadable(listed.id), error))?;
            if stamp != listed.stamp {
                return Err(Reason::Changed(listed.id).into());
            }
        }
        let known = self.known();
        let files = self.files.iter().zip(known.iter()).map(|(listed, known)| ManifestFile {
            id: listed.id,
            size: Bytes(listed.size),
            chunks: known.iter().map(|known| known.expect("all is known")).collect(),
        });
        Ok(Manifest { vm, migration, files: files.collect() })
    }
}

/// Walks the chunks of files in order.
#[derive(Default)]
pub(crate) struct Walk {
    at: usize,
    index: u32,
}

impl Walk {
    /// The next chunk that is not known to be all zero.
    pub(crate) fn next(&mut self, content: &Content) -> Option<(usize, u32)> {
        loop {
            let listed = content.files.get(self.at)?;
            if self.index == listed.chunks {
                *self = Self { at: self.at + 1, index: 0 };
                continue;
            }
            let chunk = (self.at, self.index);
            self.index += 1;
            if !content.is_zero(chunk.0, chunk.1) {
                return Some(chunk);
            }
        }
    }
}

/// Whether a chunk is in one of the runs, which ascend.
pub(crate) fn is_among(runs: &[Run], index: u32) -> bool {
    let at = runs.partition_point(|run| run.first <= index);
    at > 0 && runs[at - 1].has(index)
}
