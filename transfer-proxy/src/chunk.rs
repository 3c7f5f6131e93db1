//! Files as chunks: hashes, holes, positional reads. Everything here blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use model::Digest;
use model::manifest::CHUNK;
use rustix::fs::SeekFrom;

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
    // In blocks without a branch inside, so that it runs at the speed of memory.
    let zero = bytes.chunks(4096).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0);
    (!zero).then(|| Digest::of(bytes))
}

/// Reads chunk `index` of a file of `size` bytes. A file that is shorter by now is an error.
pub(crate) fn read(file: &File, size: u64, index: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length(size, index)];
    file.read_exact_at(&mut bytes, offset(index))?;
    Ok(bytes)
}

/// The manifest's entries for the first `size` bytes of a file. Holes are not read.
///
/// `stop` is asked before each chunk, and ends the work with [`io::ErrorKind::Interrupted`].
pub(crate) fn scan(
    file: &File,
    size: u64,
    stop: &dyn Fn() -> bool,
) -> io::Result<Vec<Option<Digest>>> {
    let count = u32::try_from(size.div_ceil(u64::from(CHUNK)))
        .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut entries = Vec::with_capacity(count as usize);
    // No data lies between the chunk at hand and here.
    let mut next_data = 0;
    for index in 0..count {
        if stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let start = offset(index);
        let end = start + length(size, index) as u64;
        if next_data <= start {
            next_data = data_from(file, start, size)?;
        }
        entries.push(if next_data >= end { None } else { entry(&read(file, size, index)?) });
    }
    Ok(entries)
}

/// Where the first data at or after `start` lies; `size` if there is only a hole.
fn data_from(file: &File, start: u64, size: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(start)) {
        Ok(at) => Ok(at),
        Err(rustix::io::Errno::NXIO) => Ok(size),
        // A file system that knows no holes.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(start),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn holes_and_written_zeros_are_both_no_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 * MIB + 3).unwrap();
        file.write_all_at(&vec![0; 1 << 20], MIB).unwrap();
        file.write_all_at(b"x", 3 * MIB - 1).unwrap();
        file.write_all_at(b"end", 5 * MIB).unwrap();
        let entries = scan(&file, 5 * MIB + 3, &|| false).unwrap();
        let mut third = vec![0; 1 << 20];
        third[(1 << 20) - 1] = b'x';
        let expected = [None, None, Some(Digest::of(&third)), None, None, Some(Digest::of(b"end"))];
        assert_eq!(entries, expected);
    }

    #[test]
    fn a_file_shorter_than_told_is_an_error_unless_only_a_hole_is_missing() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"data", 0).unwrap();
        assert_eq!(scan(&file, 8, &|| false).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(scan(&file, 0, &|| false).unwrap(), []);
    }

    #[test]
    fn a_scan_stops_when_told() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MIB).unwrap();
        let error = scan(&file, MIB, &|| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
