//! How the bytes of a chunk travel: which of its blocks, and whether compressed.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use model::manifest::CHUNK;

use crate::buffer::Buffer;
use crate::carrier::Link;
use crate::chunk;
use crate::message::{BLOCK, Form, Piece};

/// Level of zstd: the fastest of those that shrink disk images by half.
const LEVEL: i32 = 1;

/// Of so many chunks that did not shrink, one is tried again.
const RETRY_CHUNKS: u32 = 16;

/// How often the rate of the path is looked at.
const RATE_INTERVAL: Duration = Duration::from_millis(200);

/// Compression must be so many times as fast as the path, for it takes a core from what else is
/// done.
const HEADROOM: f64 = 2.0;

/// Bytes that a second of compressing takes in, until it was measured.
const FIRST_SPEED: f64 = 300e6;

/// Finds out whether compression pays: when it takes bytes in faster than the path takes them,
/// and they shrink.
pub(crate) struct Gauge {
    link: Link,
    state: Mutex<State>,
}

struct State {
    since: Instant,
    wire: u64,
    /// Bytes a second on the path, once it was measured.
    rate: Option<f64>,
    /// Bytes a second into the compression.
    speed: f64,
    /// Chunks to be sent as they are before the next is tried.
    pass: u32,
}

impl Gauge {
    pub(crate) fn new(link: Link) -> Self {
        let wire = link.wire_bytes();
        let state = State { since: Instant::now(), wire, rate: None, speed: FIRST_SPEED, pass: 0 };
        Self { link, state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Whether the next chunk is to be compressed.
    pub(crate) fn squeeze(&self) -> bool {
        let mut state = self.state();
        let past = state.since.elapsed();
        if past >= RATE_INTERVAL {
            let wire = self.link.wire_bytes();
            state.rate = Some((wire - state.wire) as f64 / past.as_secs_f64());
            (state.since, state.wire) = (Instant::now(), wire);
        }
        let pays = state.rate.is_some_and(|rate| rate * HEADROOM < state.speed);
        if pays && state.pass > 0 {
            state.pass -= 1;
            return false;
        }
        pays
    }

    fn learn(&self, bytes: usize, packed: usize, took: Duration) {
        let mut state = self.state();
        let speed = bytes as f64 / took.as_secs_f64().max(1e-6);
        state.speed += (speed - state.speed) / 8.0;
        state.pass = if is_smaller(bytes, packed) { 0 } else { RETRY_CHUNKS - 1 };
    }
}

/// Whether it was worth the effort.
fn is_smaller(bytes: usize, packed: usize) -> bool {
    packed + bytes / 16 < bytes
}

/// Gives the bytes of a chunk the form in which they are fewest: only the blocks that differ from
/// those with `sums`, or only those that hold something; compressed if there is a gauge and they
/// shrink. The flag tells whether they are.
pub(crate) fn make(
    bytes: Buffer,
    sums: Option<&[u64]>,
    gauge: Option<&Gauge>,
) -> (Form, bool, Buffer) {
    let (form, picked) = pick(bytes, sums);
    let Some(gauge) = gauge else { return (form, false, picked) };
    let start = Instant::now();
    let mut packed = Buffer::unfilled(picked.len());
    // An error: it does not fit, as it does not shrink.
    let length = zstd::bulk::compress_to_buffer(&picked, &mut packed[..], LEVEL);
    let length = length.unwrap_or(picked.len());
    gauge.learn(picked.len(), length, start.elapsed());
    if is_smaller(picked.len(), length) {
        packed.truncate(length);
        (form, true, packed)
    } else {
        (form, false, picked)
    }
}

fn pick(bytes: Buffer, sums: Option<&[u64]>) -> (Form, Buffer) {
    let blocks = bytes.len().div_ceil(BLOCK);
    let set = match sums {
        Some(sums) => chunk::blocks_unlike(&bytes, sums),
        None => chunk::blocks_with_data(&bytes),
    };
    // A few blocks less are not worth a second copy.
    if set.len() + blocks / 8 >= blocks {
        return (Form::Whole, bytes);
    }
    let picked = chunk::take(&bytes, &set);
    (if sums.is_some() { Form::Patch(set) } else { Form::Sparse(set) }, picked)
}

/// The chunk of `length` bytes that a piece makes of what came behind it. `base` is what the
/// target has of it. None if it does not fit, whatever the digest.
pub(crate) fn unmake(
    piece: &Piece,
    came: Buffer,
    length: usize,
    base: impl FnOnce() -> Option<Buffer>,
) -> Option<Buffer> {
    let bytes = if piece.packed {
        let mut bytes = Buffer::unfilled(CHUNK as usize);
        let length = zstd::bulk::decompress_to_buffer(&came, &mut bytes[..]).ok()?;
        bytes.truncate(length);
        bytes
    } else {
        came
    };
    match &piece.form {
        Form::Whole => (bytes.len() == length).then_some(bytes),
        Form::Sparse(set) => {
            let mut chunk = Buffer::zeroed(length);
            chunk::put(&mut chunk, set, &bytes).then_some(chunk)
        }
        Form::Patch(set) => {
            let mut chunk = base().filter(|base| base.len() == length)?;
            chunk::put(&mut chunk, set, &bytes).then_some(chunk)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::BlockSet;
    use model::{Digest, FileId};

    const LENGTH: usize = 20 * BLOCK + 5;

    fn piece(form: Form, packed: bool, bytes: &[u8]) -> Piece {
        let (file, digest) = (FileId::disk(0), Digest([0; 32]));
        Piece { file, index: 0, digest, form, packed, length: bytes.len() as u32 }
    }

    fn noise() -> Vec<u8> {
        (0..LENGTH as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    #[test]
    fn a_chunk_with_few_blocks_of_data_travels_as_these_blocks() {
        let mut bytes = vec![0; LENGTH];
        bytes[3 * BLOCK] = 7;
        bytes[LENGTH - 1] = 8;
        let (form, packed, sent) = make(bytes[..].into(), None, None);
        assert!(matches!(form, Form::Sparse(_)) && !packed);
        assert_eq!(sent.len(), BLOCK + 5);
        let back = unmake(&piece(form, packed, &sent), sent, LENGTH, || None);
        assert!(back.unwrap()[..] == bytes);
    }

    #[test]
    fn a_changed_block_is_all_that_travels_to_whoever_has_the_others() {
        let old = noise();
        let mut new = old.clone();
        new[7 * BLOCK + 1] ^= 1;
        let (form, packed, sent) = make(new[..].into(), Some(&chunk::sums(&old)), None);
        assert_eq!(sent.len(), BLOCK);
        let copy = Buffer::from(&sent[..]);
        let back = unmake(&piece(form, packed, &sent), copy, LENGTH, || Some(old[..].into()));
        assert!(back.unwrap()[..] == new);
        // Without the others it is worth nothing.
        assert!(unmake(&piece(form, packed, &sent), sent, LENGTH, || None).is_none());
    }

    #[test]
    fn what_differs_everywhere_travels_whole() {
        let (form, _, sent) = make(noise()[..].into(), Some(&[0; 21]), None);
        assert!(form == Form::Whole && sent[..] == noise());
        let (form, _, sent) = make(noise()[..].into(), None, None);
        assert!(form == Form::Whole && sent[..] == noise());
    }

    #[test]
    fn what_does_not_fit_makes_no_chunk_and_no_bomb_takes_more_than_a_chunk() {
        let whole = |bytes: Vec<u8>, packed| {
            unmake(&piece(Form::Whole, packed, &bytes), bytes[..].into(), LENGTH, || None)
        };
        assert!(whole(noise(), false).is_some());
        assert!(whole(noise()[1..].to_vec(), false).is_none());
        assert!(whole(noise(), true).is_none(), "not compressed at all");
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(bomb.len() < 16 << 10);
        assert!(whole(bomb, true).is_none());
        let mut set = BlockSet::default();
        set.add(21);
        let outside = piece(Form::Sparse(set), false, &[]);
        assert!(unmake(&outside, Buffer::zeroed(BLOCK), LENGTH, || None).is_none());
    }
}
