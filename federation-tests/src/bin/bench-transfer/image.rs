//! Files to move, the same for the same seed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use federation_tests::bench::Failure;

/// What disks are written by.
pub(crate) const BLOCK: u64 = 4096;
/// Extents of data in an image.
const EXTENTS: (u64, u64) = (64 << 10, 8 << 20);
/// Extents of changes in an image.
const CHANGES: (u64, u64) = (16 << 10, 1 << 20);
/// Words of what stands for text. Of 3 to 9 letters, in any order, zstd at level 1 makes a third.
const WORDS: usize = 1024;

/// A range of a file: where it begins, and how long it is, bytes.
pub(crate) type Extent = (u64, u64);

/// Numbers from a seed (splitmix64).
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number of whole blocks between two, each size of them (1, 2, 4, …) as likely.
    fn length(&mut self, (least, most): (u64, u64)) -> u64 {
        let share = self.below(1 << 20) as f64 / f64::from(1 << 20);
        let length = least as f64 * (most as f64 / least as f64).powf(share);
        (length as u64).next_multiple_of(BLOCK)
    }

    /// Bytes that no compression shrinks.
    pub(crate) fn random(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).expect("it fits memory")];
        for part in bytes.chunks_mut(8) {
            let number = self.next().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
        bytes
    }

    /// Bytes that are like text.
    fn text(&mut self, length: u64, words: &[Vec<u8>]) -> Vec<u8> {
        let length = usize::try_from(length).expect("it fits memory");
        let mut bytes = Vec::with_capacity(length + 16);
        while bytes.len() < length {
            bytes.extend(&words[self.below(WORDS as u64) as usize]);
        }
        bytes.truncate(length);
        bytes
    }
}

/// Makes a file of `size` random bytes.
pub(crate) fn random(path: &Path, size: u64, seed: u64) -> Result<(), Failure> {
    let (file, mut draws) = (File::create(path)?, Draws::new(seed));
    let mut at = 0;
    while at < size {
        let bytes = draws.random((size - at).min(1 << 20));
        file.write_all_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Makes a disk image of `size` bytes, of which `share` is data in extents of 64 KiB to 8 MiB, one
/// half of them random and one half like text, and holes between. Where the data is.
pub(crate) fn disk(path: &Path, size: u64, share: f64, seed: u64) -> Result<Vec<Extent>, Failure> {
    let (file, mut draws) = (File::create(path)?, Draws::new(seed));
    file.set_len(size)?;
    let words: Vec<Vec<u8>> = (0..WORDS)
        .map(|_| {
            let letters = 3 + draws.below(7);
            (0..letters).map(|_| b'a' + draws.below(26) as u8).chain([b' ']).collect()
        })
        .collect();
    let (mut extents, mut at, mut data) = (Vec::new(), 0, 0_u64);
    while at < size {
        let length = draws.length(EXTENTS).min(size - at);
        let bytes = match draws.below(2) {
            0 => draws.random(length),
            _ => draws.text(length, &words),
        };
        file.write_all_at(&bytes, at)?;
        extents.push((at, length));
        (at, data) = (at + length, data + length);
        // So much hole that the share of data is right here, give or take a half of it.
        let whole = data as f64 / share;
        let hole = (whole - at as f64).max(0.0) * (0.5 + draws.below(1000) as f64 / 1000.0);
        at += (hole as u64).next_multiple_of(BLOCK);
    }
    Ok(extents)
}

/// How an image is changed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// In extents of 16 KiB to 1 MiB.
    Extents,
    /// In single blocks.
    Blocks,
}

/// Writes random bytes over `share` of the data in an image, in place. How many bytes it wrote.
pub(crate) fn change(
    path: &Path,
    extents: &[Extent],
    share: f64,
    how: Change,
    seed: u64,
) -> Result<u64, Failure> {
    let (file, mut draws) = (File::options().write(true).open(path)?, Draws::new(seed));
    let data: u64 = extents.iter().map(|(_, length)| length).sum();
    let wanted = (data as f64 * share) as u64;
    let mut changed = std::collections::BTreeSet::new();
    while (changed.len() as u64) * BLOCK < wanted {
        // A block of the data, each as likely.
        let mut block = draws.below(data / BLOCK) * BLOCK;
        let within = extents.iter().find(|(_, length)| {
            let is_here = block < *length;
            block -= if is_here { 0 } else { *length };
            is_here
        });
        let (start, end) = match within {
            Some((at, length)) => (at + block / BLOCK * BLOCK, at + length),
            None => continue,
        };
        let length = match how {
            Change::Extents => draws.length(CHANGES),
            Change::Blocks => BLOCK,
        };
        let length = length.min(end - start);
        file.write_all_at(&draws.random(length), start)?;
        changed.extend((start..start + length).step_by(BLOCK as usize));
    }
    Ok(changed.len() as u64 * BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn an_image_has_its_share_of_data_where_it_says_and_the_same_by_the_same_seed() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [1, 2].map(|nth| folder.path().join(nth.to_string()));
        let extents = paths.each_ref().map(|path| disk(path, 96 * MIB, 0.4, 7).unwrap());
        assert_eq!(extents[0], extents[1]);
        let [bytes, again] = paths.map(|path| std::fs::read(path).unwrap());
        assert!(bytes == again);
        let data: u64 = extents[0].iter().map(|(_, length)| length).sum();
        let share = data as f64 / (96 * MIB) as f64;
        assert!((0.3..0.5).contains(&share), "{share}");
        let blocks = bytes.chunks(BLOCK as usize);
        let written = blocks.filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64;
        assert_eq!(written * BLOCK, data);
    }

    #[test]
    fn as_many_bytes_change_as_it_says_and_none_outside_the_data() {
        let folder = tempfile::tempdir().unwrap();
        for how in [Change::Extents, Change::Blocks] {
            let path = folder.path().join("image");
            let extents = disk(&path, 96 * MIB, 0.4, 7).unwrap();
            let before = std::fs::read(&path).unwrap();
            let changed = change(&path, &extents, 0.05, how, 8).unwrap();
            let after = std::fs::read(&path).unwrap();
            let blocks = before.chunks(BLOCK as usize).zip(after.chunks(BLOCK as usize));
            let differ: Vec<u64> = (0..)
                .step_by(BLOCK as usize)
                .zip(blocks)
                .filter(|(_, (before, after))| before != after)
                .map(|(at, _)| at)
                .collect();
            assert_eq!(differ.len() as u64 * BLOCK, changed, "{how:?}");
            let is_data = |at: u64| {
                extents.iter().any(|(start, length)| (*start..start + length).contains(&at))
            };
            assert!(differ.into_iter().all(is_data), "{how:?}");
            let data: u64 = extents.iter().map(|(_, length)| length).sum();
            let share = changed as f64 / data as f64;
            assert!((0.05..0.09).contains(&share), "{how:?}: {share}");
        }
    }
}
