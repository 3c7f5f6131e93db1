//! What was written to a file since it was stored.

use std::collections::BTreeMap;

use super::writers::Writer;

/// Bytes of content in one row of the database: with its key it just fits a page of 4 KiB, so that
/// an append writes one page of content and not several.
pub(super) const CHUNK: u64 = 3_840;

/// Ranges that a draft tells apart; with more, they are taken for one.
const RANGES_MAX: usize = 64;

/// A handle, as the store numbers them.
pub(super) type HandleId = u64;

/// Changes to a file that are not stored: chunks over the stored version.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    /// Bytes of the stored version that are still seen, from its start.
    ///
    /// Where a cut goes through a chunk, that chunk is in `chunks` or spilled.
    pub keep: u64,
    /// The file's size now.
    pub size: u64,
    /// Whole chunks by number; one that is shorter goes on with zeros.
    pub chunks: BTreeMap<u64, Vec<u8>>,
    /// The content under which older chunks of this draft lie in the database.
    pub spill: Option<u64>,
    /// What was written: lines that touch it are new.
    pub written: Ranges,
    /// Who wrote the last byte, and may be in the middle of a line.
    pub tail: Option<Writer>,
}

impl Draft {
    /// A draft that has changed nothing yet of a stored version of `size` bytes.
    pub(super) fn over(size: u64) -> Self {
        Self { keep: size, size, ..Self::default() }
    }

    /// Bytes of content that it holds in memory.
    pub(super) fn memory(&self) -> usize {
        self.chunks.values().map(Vec::len).sum()
    }
}

/// Disjoint ranges of bytes, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Takes in `from..to`.
    pub(super) fn add(&mut self, mut from: u64, mut to: u64) {
        if from >= to {
            return;
        }
        let first = self.0.partition_point(|range| range.1 < from);
        let last = self.0.partition_point(|range| range.0 <= to);
        if first < last {
            from = from.min(self.0[first].0);
            to = to.max(self.0[last - 1].1);
        }
        self.0.splice(first..last, [(from, to)]);
        if self.0.len() > RANGES_MAX {
            self.0 = vec![(self.start().unwrap_or(from), self.end())];
        }
    }

    /// Forgets what lies at `end` and behind.
    pub(super) fn cut(&mut self, end: u64) {
        self.0.retain(|range| range.0 < end);
        if let Some(last) = self.0.last_mut() {
            last.1 = last.1.min(end);
        }
    }

    /// Whether a byte of `from..to` is in.
    pub(super) fn touch(&self, from: u64, to: u64) -> bool {
        let next = self.0.partition_point(|range| range.1 <= from);
        from < to && self.0.get(next).is_some_and(|range| range.0 < to)
    }

    /// The first byte.
    pub(super) fn start(&self) -> Option<u64> {
        self.0.first().map(|range| range.0)
    }

    /// Behind the last byte; 0 if there is none.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_say_what_a_set_of_bytes_says() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..2_000 {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 100];
            for _ in 0..12 {
                let from = random(100);
                let to = (from + random(12)).min(100);
                if random(8) == 0 {
                    ranges.cut(from);
                    bytes[usize::try_from(from).unwrap()..].fill(false);
                } else {
                    ranges.add(from, to);
                    for byte in from..to {
                        bytes[usize::try_from(byte).unwrap()] = true;
                    }
                }
                let (from, to) = (random(100), random(100));
                let expected = (from..to).any(|byte| bytes[usize::try_from(byte).unwrap()]);
                assert_eq!(ranges.touch(from, to), expected, "{ranges:?} {from}..{to}");
                assert!(ranges.0.windows(2).all(|pair| pair[0].1 < pair[1].0), "{ranges:?}");
            }
            let first = bytes.iter().position(|byte| *byte).map(|byte| byte as u64);
            assert_eq!(ranges.start(), first);
        }
    }

    #[test]
    fn many_ranges_become_one_that_covers_them() {
        let mut ranges = Ranges::default();
        for index in 0..=64 {
            ranges.add(index * 10, index * 10 + 1);
        }
        assert_eq!(ranges, Ranges(vec![(0, 641)]));
    }
}
