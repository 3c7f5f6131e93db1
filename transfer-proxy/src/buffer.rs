//! Room for the bytes of a chunk, used again and again: fresh memory of a chunk's size costs a page
//! fault for each 4 KiB of it and is zeroed twice, which took a source a quarter of its time.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

use model::manifest::CHUNK;

/// Buffers that this process keeps for later, for all transfers together: two for each lane of two
/// sessions at full speed. Whoever needs more gets more, and the rest goes when it was used.
const MAX_SPARE: usize = 16;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn spare() -> MutexGuard<'static, Vec<Vec<u8>>> {
    SPARE.lock().expect("no holder of this lock panics")
}

/// At most a chunk of bytes.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Always a chunk long.
    room: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// Of `length` bytes, at most a chunk. They are what they are: of chunks that were here before.
    /// Whoever asks fills all of them.
    pub(crate) fn unfilled(length: usize) -> Self {
        assert!(length <= CHUNK as usize, "no buffer is longer than a chunk");
        let room = spare().pop().unwrap_or_else(|| vec![0; CHUNK as usize]);
        Self { room, length }
    }

    /// Of `length` bytes that are all zero.
    pub(crate) fn zeroed(length: usize) -> Self {
        let mut buffer = Self::unfilled(length);
        buffer.fill(0);
        buffer
    }

    /// Keeps the first `length` bytes.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl From<&[u8]> for Buffer {
    /// At most a chunk of bytes.
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::unfilled(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.room[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.room[..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = spare();
        if spare.len() < MAX_SPARE {
            spare.push(std::mem::take(&mut self.room));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_bytes_that_it_was_made_of_and_no_others() {
        let mut buffer = Buffer::from(&[7; 5000][..]);
        buffer.truncate(9000);
        assert_eq!(buffer[..], [7; 5000]);
        buffer.truncate(10);
        assert_eq!(buffer[..], [7; 10]);
        drop(buffer);
        assert_eq!(Buffer::zeroed(5000)[..], [0; 5000]);
    }

    #[test]
    fn no_more_buffers_are_kept_than_may_be() {
        let taken: Vec<_> = (0..2 * MAX_SPARE).map(|_| Buffer::unfilled(1)).collect();
        drop(taken);
        assert!((1..=MAX_SPARE).contains(&spare().len()));
    }
}
