//! What comes over a session and over the channel to a proxy, read as by the other end: for
//! fuzzing. The messages are this crate's own, so what must hold of them is checked here.

use model::manifest::CHUNK;
use model::{Bytes, Digest, FileId, MigrationId, Token, VmId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::buffer::Buffer;
use crate::fault::Reason;
use crate::message::{self, BlockSet, Control, Entry, Form, Held, Holds, Piece, Run, Verdict};
use crate::piece;
use crate::remote::wire::{self, Asked, Hello, Order, Report, Welcome};
use crate::tls::hint_among;

/// One frame of a session, behind its length, taken for a message of each kind. Gives what the
/// other end's node tells, for whom that is meant.
///
/// # Panics
///
/// If a message that was read is another one when it is written and read again.
pub fn session(body: &[u8]) -> Option<Vec<u8>> {
    let framed = |bytes: Vec<u8>| bytes[4..].to_vec();
    let control: Option<Control> = message::parse(body).ok();
    if let Some(control) = &control {
        assert_eq!(message::parse(&framed(message::frame(control))).as_ref(), Ok(control));
    }
    match control {
        Some(Control::Tell { body, .. }) => Some(body),
        _ => None,
    }
}

/// A frame of each kind, as [`session`] and [`lane`] read them: to begin with.
pub fn frames() -> Vec<Vec<u8>> {
    let (file, id) = (FileId::disk(0), [9; 16]);
    let run = Run { first: 1, count: 2 };
    let held = Held { file, known: 7, missing: vec![run], held: vec![run; 3] };
    let verdicts = vec![(1, Verdict::Kept), (2, Verdict::Wanted), (3, Verdict::Patch(vec![5; 9]))];
    let mut set = BlockSet::default();
    set.add(2);
    let piece = |form, packed, length| {
        let digest = Digest([4; 32]);
        let frame = message::frame(&Piece { file, index: 3, digest, form, packed, length });
        let behind = frame.len() - 4;
        let behind = u8::try_from(behind).expect("such frames are short");
        [&[behind], &frame[4..], &vec![6; length as usize]].concat()
    };
    let controls = [
        Control::Hello { token: Token([7; 32]), session: id },
        Control::Lane { token: Token([7; 32]), session: id },
        Control::Through { token: Token([7; 32]) },
        Control::Spare { token: Token([7; 32]) },
        Control::Welcome { vm: VmId([2; 16]), migration: MigrationId([3; 16]) },
        Control::Tell { number: 4, body: vec![1, 2, 3] },
        Control::Taken { number: 200 },
        Control::Broken(Reason::Changed(file)),
        Control::Alive,
        Control::Holds(Holds::Aside),
        Control::Holds(Holds::Some { content: Some(id), files: vec![held] }),
        Control::Layout { content: id, files: vec![(file, Bytes(8))], data: Bytes(4) },
        Control::Sums {
            file,
            first: 9,
            entries: vec![Entry::Zero(3), Entry::Data(Digest([7; 32]))],
            data: Bytes(4),
        },
        Control::Judged { file, verdicts },
        Control::Rest,
        Control::Resting { pieces: 300 },
        Control::End { root: Digest([8; 32]) },
    ];
    let controls = controls.iter().map(|control| message::frame(control)[4..].to_vec());
    let pieces = [
        piece(Form::Whole, false, 9),
        piece(Form::Sparse(set), false, 4096),
        piece(Form::Patch(set), true, 20),
    ];
    controls.chain(pieces).collect()
}

/// What comes on a lane: the frame before a chunk, and behind it the chunk's bytes, made into a
/// chunk of `length` bytes with `base` as what is here of it.
///
/// # Panics
///
/// If a message that was read is another one when it is written and read again, or the chunk has
/// another length.
pub fn lane(body: &[u8], came: &[u8], base: &[u8]) {
    let Ok(piece) = message::parse::<Piece>(body) else { return };
    assert_eq!(message::parse(&message::frame(&piece)[4..]), Ok(piece));
    // More of either is not read.
    let chunk = |bytes: &[u8]| Buffer::from(&bytes[..bytes.len().min(CHUNK as usize)]);
    let (came, base) = (chunk(came), chunk(base));
    let length = base.len();
    let made = piece::unmake(&piece, came, length, || Some(base));
    assert!(made.is_none_or(|made| made.len() == length));
}

/// Everything that comes over the channel between a node and its proxy, as each of the two ends
/// reads it, up to the first message that is none.
///
/// # Panics
///
/// If a message that was read is another one when it is written and read again, or an order that
/// is taken names a path that is not absolute.
pub async fn channel(stream: &[u8]) {
    let mut from_node = stream;
    if wire::receive::<Hello>(&mut from_node, wire::MAX_GREETING_BYTES).await.is_ok() {
        while let Ok(order) = wire::receive::<Order>(&mut from_node, wire::MAX_FRAME_BYTES).await {
            reads_back(&order);
            let transfer = order.transfer();
            match order.read() {
                Ok(Asked::Provide(migration, files)) => {
                    assert_eq!(transfer.map(|(about, _)| about), Some(migration));
                    assert!(files.iter().all(|(_, path)| path.is_absolute()));
                }
                Ok(Asked::Pull(pull)) => assert!(pull.folder.is_absolute()),
                Ok(_) | Err(wire::BadPath) => {}
            }
        }
    }
    let mut from_proxy = stream;
    if wire::receive::<Welcome>(&mut from_proxy, wire::MAX_GREETING_BYTES).await.is_ok() {
        while let Ok(report) = wire::receive::<Report>(&mut from_proxy, wire::MAX_FRAME_BYTES).await
        {
            reads_back(&report);
        }
    }
}

/// Some messages hold keys and cannot be compared; their bytes can.
fn reads_back<T: Serialize + DeserializeOwned>(message: &T) {
    let bytes = postcard::to_stdvec(message).expect("messages are plain data");
    let Ok(back) = wire::parse::<T>(&bytes) else { panic!("what was written is not read") };
    assert_eq!(postcard::to_stdvec(&back).expect("messages are plain data"), bytes);
}

/// The hint among the protocols that a dialler offers, which stand in `offered` with a byte of
/// length before each (RFC 7301, section 3.1).
///
/// # Panics
///
/// If the hint is none of the protocols.
pub fn hint(offered: &[u8]) -> Option<[u8; 16]> {
    let mut names: Vec<&[u8]> = vec![];
    let mut rest = offered;
    while let Some((&length, behind)) = rest.split_first() {
        let Some((name, more)) = behind.split_at_checked(length.into()) else { break };
        names.push(name);
        rest = more;
    }
    let hint = hint_among(names.iter().copied())?;
    let text = data_encoding::HEXLOWER.encode(&hint);
    assert!(names.contains(&text.as_bytes()));
    Some(hint)
}
