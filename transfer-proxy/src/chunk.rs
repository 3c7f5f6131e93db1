//! Files as chunks: hashes, holes, positional reads. Everything here blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use model::Digest;
use model::manifest::CHUNK;
use rustix::fs::SeekFrom;

use crate::buffer::Buffer;
use crate::message::{BLOCK, BlockSet, Run};

/// Bytes of a block that are looked at first when it may be zero.
const FIRST_BYTES: usize = 64;

/// How many bytes a file of `size` bytes has in chunk `index`; at most [`CHUNK`].
pub(crate) fn length(size: u64, index: u32) -> usize {
    let start = offset(index);
    usize::try_from((size - start).min(u64::from(CHUNK))).expect("at most one chunk")
}

/// Where chunk `index` starts.
pub(crate) fn offset(index: u32) -> u64 {
    u64::from(index) * u64::from(CHUNK)
}

/// The manifest's entry for the bytes of a chunk: none where all is zero.
pub(crate) fn entry(bytes: &[u8]) -> Option<Digest> {
    (!bytes.chunks(BLOCK).all(is_zero)).then(|| Digest::of(bytes))
}

/// Most blocks that hold something show it in their first bytes. The rest without a branch inside,
/// so that it runs at the speed of memory.
fn is_zero(block: &[u8]) -> bool {
    let (first, rest) = block.split_at(block.len().min(FIRST_BYTES));
    let all = |bytes: &[u8]| bytes.iter().fold(0, |all, byte| all | byte);
    all(first) == 0 && all(rest) == 0
}

/// Reads chunk `index` of a file of `size` bytes. A file that is shorter by now is an error.
pub(crate) fn read(file: &File, size: u64, index: u32) -> io::Result<Buffer> {
    let mut bytes = Buffer::unfilled(length(size, index));
    file.read_exact_at(&mut bytes, offset(index))?;
    Ok(bytes)
}

/// Runs of chunks of which the file has some bytes; all others lie in holes. Holes are not read.
pub(crate) fn data_runs(file: &File, size: u64) -> io::Result<Vec<Run>> {
    let count = count(size)?;
    let mut runs: Vec<Run> = Vec::new();
    let mut next = 0;
    while next < count {
        let data = match rustix::fs::seek(file, SeekFrom::Data(offset(next))) {
            Ok(at) if at < size => at,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                return Ok(vec![Run { first: 0, count }]);
            }
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(size);
        let first = index_of(data);
        let end = index_of(hole - 1) + 1;
        match runs.last_mut() {
            Some(run) if run.end() == first => run.count += end - first,
            _ => runs.push(Run { first, count: end - first }),
        }
        next = end;
    }
    Ok(runs)
}

/// How many chunks a file of `size` bytes has.
pub(crate) fn count(size: u64) -> io::Result<u32> {
    u32::try_from(size.div_ceil(u64::from(CHUNK)))
        .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}

/// The chunk that a byte of a file lies in, where the file has no more than [`count`] can tell.
fn index_of(at: u64) -> u32 {
    u32::try_from(at / u64::from(CHUNK)).expect("the size was counted")
}

/// Bytes of the chunks in `runs` of a file of `size` bytes.
pub(crate) fn bytes_of(size: u64, runs: &[Run]) -> u64 {
    runs.iter().map(|run| offset(run.end()).min(size) - offset(run.first)).sum()
}

/// One sum for each block of a chunk, by which blocks that are most probably the same are found:
/// the first 8 bytes of their BLAKE3 hash, little-endian. Whether they are the same is decided by
/// the hash of the chunk.
pub(crate) fn sums(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(BLOCK).map(sum).collect()
}

fn sum(block: &[u8]) -> u64 {
    let hash = blake3::hash(block);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("8 of 32 bytes");
    u64::from_le_bytes(*first)
}

/// The blocks of a chunk whose sums are not `sums`. Where there are fewer sums, they differ.
pub(crate) fn blocks_unlike(bytes: &[u8], sums: &[u64]) -> BlockSet {
    set_of(bytes, |at, block| sums.get(at) != Some(&sum(block)))
}

/// The blocks of a chunk that are not all zero.
pub(crate) fn blocks_with_data(bytes: &[u8]) -> BlockSet {
    set_of(bytes, |_, block| !is_zero(block))
}

fn set_of(bytes: &[u8], wanted: impl Fn(usize, &[u8]) -> bool) -> BlockSet {
    let mut set = BlockSet::default();
    for (at, block) in bytes.chunks(BLOCK).enumerate() {
        if wanted(at, block) {
            set.add(at);
        }
    }
    set
}

/// The bytes of these blocks.
pub(crate) fn take(bytes: &[u8], set: &BlockSet) -> Buffer {
    let mut taken = Buffer::unfilled(bytes.len());
    let mut length = 0;
    for span in set.spans(bytes.len()).expect("the set was made of these bytes") {
        let block = &bytes[span];
        taken[length..length + block.len()].copy_from_slice(block);
        length += block.len();
    }
    taken.truncate(length);
    taken
}

/// Puts the bytes of these blocks into a chunk; whether they fit.
pub(crate) fn put(bytes: &mut [u8], set: &BlockSet, mut taken: &[u8]) -> bool {
    let Some(spans) = set.spans(bytes.len()) else { return false };
    for span in spans {
        let Some((block, rest)) = taken.split_at_checked(span.len()) else { return false };
        bytes[span].copy_from_slice(block);
        taken = rest;
    }
    taken.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn only_chunks_with_bytes_are_among_the_data() {
        let file = tempfile::tempfile().unwrap();
        let size = 9 * MIB + 3;
        file.set_len(size).unwrap();
        assert_eq!(data_runs(&file, size).unwrap(), []);
        file.write_all_at(b"x", 3 * MIB - 1).unwrap();
        file.write_all_at(b"x", 3 * MIB).unwrap();
        file.write_all_at(b"x", 6 * MIB + 7).unwrap();
        file.write_all_at(b"end", 9 * MIB).unwrap();
        let runs = data_runs(&file, size).unwrap();
        let expected = [(2, 2), (6, 1), (9, 1)].map(|(first, count)| Run { first, count });
        assert_eq!(runs, expected);
        assert_eq!(bytes_of(size, &runs), 3 * MIB + 3);
    }

    #[test]
    fn written_zeros_are_no_data() {
        assert_eq!(entry(&[0; 5000]), None);
        assert_eq!(entry(&[]), None);
        let mut bytes = vec![0; 5000];
        bytes[4999] = 1;
        assert_eq!(entry(&bytes), Some(Digest::of(&bytes)));
    }

    #[test]
    fn blocks_taken_from_one_chunk_make_the_other_the_same() {
        let mut new: Vec<u8> = (0..5 * BLOCK + 9).map(|at| (at / 7) as u8).collect();
        let old = new.clone();
        new[BLOCK] ^= 1;
        new[5 * BLOCK + 8] ^= 1;
        let set = blocks_unlike(&new, &sums(&old));
        assert_eq!(set.len(), 2);
        let taken = take(&new, &set);
        assert_eq!(taken.len(), BLOCK + 9);
        let mut patched = old.clone();
        assert!(put(&mut patched, &set, &taken));
        assert!(patched == new);
        assert!(!put(&mut patched, &set, &taken[1..]));
        assert!(!put(&mut patched, &set, &[&taken[..], &[0]].concat()));
        assert!(!put(&mut patched[..BLOCK], &set, &taken));
        assert_eq!(blocks_unlike(&new, &[]).len(), 6);
        assert_eq!(blocks_with_data(&[0; 3 * BLOCK]).len(), 0);
    }

    #[test]
    fn a_file_shorter_than_told_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"data", 0).unwrap();
        assert_eq!(read(&file, 8, 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
