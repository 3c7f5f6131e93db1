//! What the two ends say, and its bytes: a length, a version, postcard. One parser for all.

use model::{Bytes, Digest, FileId, MigrationId, Token, VmId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::carrier::{Cut, Receiver, Sender, Stall};
use crate::fault::Reason;
use crate::transfer::{End, MAX_TELL_BYTES};

/// Version of everything in this module; the first byte of each frame.
const VERSION: u8 = 2;

/// Size of one control message, in bytes: a told message and what stands around it.
pub(crate) const MAX_CONTROL_BYTES: usize = MAX_TELL_BYTES + 64;

/// Size of the first message of either end, in bytes; more is not read from a stranger.
pub(crate) const MAX_GREETING_BYTES: usize = 128;

/// Size of what stands before the bytes of a chunk, in bytes.
pub(crate) const MAX_PIECE_BYTES: usize = 128;

/// Runs of chunks that a target names in one [`Holds`], of all files together. What is not named
/// is sent although it may be there.
pub(crate) const MAX_RUNS: usize = 4096;

/// Entries in one [`Control::Sums`].
pub(crate) const MAX_SUMS: usize = 1024;

/// Verdicts in one [`Control::Judged`].
pub(crate) const MAX_VERDICTS: usize = 24;

/// Bytes of a block: the unit in which chunks that changed a little are compared.
pub(crate) const BLOCK: usize = 4096;

/// Blocks of a chunk.
pub(crate) const BLOCKS: usize = model::manifest::CHUNK as usize / BLOCK;

/// Names the streams of one session.
pub(crate) type SessionId = [u8; 16];

/// Names one reading of the source's files: another one need not find the same.
pub(crate) type ContentId = [u8; 16];

/// A message on the control stream, or the first of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Control {
    /// The dialler's first: the capability. `session` is new each time.
    Hello { token: Token, session: SessionId },
    /// The dialler's first on each further stream: it is a lane of this session.
    Lane { token: Token, session: SessionId },
    /// The dialler's first on each stream of a leg: behind it comes a sealed connection to whom
    /// the token stands for.
    Through { token: Token },
    /// The same from a source that cannot be dialled: a connection to it can be made behind it.
    Spare { token: Token },
    /// The listener's first: what the token stands for.
    Welcome { vm: VmId, migration: MigrationId },
    /// A message of the node at the one end for the node at the other. Numbers ascend.
    Tell { number: u64, body: Vec<u8> },
    /// Every told message up to this number was taken.
    Taken { number: u64 },
    /// The sender gives up; the session ends.
    Broken(Reason),
    /// Nothing; the session lives.
    Alive,
    /// The target's first word about content, once in a session.
    Holds(Holds),
    /// The source's first word about content, once in a session.
    Layout { content: ContentId, files: Vec<(FileId, Bytes)>, data: Bytes },
    /// What the chunks of a file hold, from `first` on. The source says it of every chunk, in
    /// order. `data` is the size of all chunks that hold something, as far as is known by now.
    Sums { file: FileId, first: u32, entries: Vec<Entry>, data: Bytes },
    /// What the target makes of chunks that it holds something of: one verdict for each
    /// [`Entry::Data`] of such a chunk.
    Judged { file: FileId, verdicts: Vec<(u32, Verdict)> },
    /// The target is about to go on in another session: the source is to finish what it sends,
    /// and to begin nothing new.
    Rest,
    /// The source does so, and has sent so many pieces in this session in all.
    Resting { pieces: u64 },
    /// All was said and sent; `root` is [`model::Manifest::root`].
    End { root: Digest },
}

/// What a session shows in the place of a token where the stream that carries it has shown one.
pub(crate) fn sealed_token() -> Token {
    Token([0; 32])
}

impl Control {
    /// The end that this message about content is for, if it is one.
    pub(crate) fn content_for(&self) -> Option<End> {
        match self {
            Self::Holds(_) | Self::Judged { .. } | Self::Rest => Some(End::Source),
            Self::Layout { .. } | Self::Sums { .. } | Self::Resting { .. } | Self::End { .. } => {
                Some(End::Target)
            }
            Self::Hello { .. }
            | Self::Lane { .. }
            | Self::Through { .. }
            | Self::Spare { .. }
            | Self::Welcome { .. }
            | Self::Tell { .. }
            | Self::Taken { .. }
            | Self::Broken(_)
            | Self::Alive => None,
        }
    }
}

/// What a target has and needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Holds {
    /// Nothing is to be sent: everything is here, if it still has the root that comes.
    All,
    /// The session is only for what the nodes tell each other.
    Aside,
    /// Per file, what is here. Files that are not named have nothing.
    Some { content: Option<ContentId>, files: Vec<Held> },
}

/// What a target has of one file. The first two speak of the reading `content` alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) file: FileId,
    /// It knows the entries of the chunks before this one.
    pub(crate) known: u32,
    /// Of these, those whose bytes it does not have.
    pub(crate) missing: Vec<Run>,
    /// Chunks of which it has some bytes, perhaps the right ones.
    pub(crate) held: Vec<Run>,
}

/// Chunks side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Run {
    pub(crate) fn end(self) -> u32 {
        self.first.saturating_add(self.count)
    }

    pub(crate) fn has(self, index: u32) -> bool {
        (self.first..self.end()).contains(&index)
    }
}

/// What one chunk holds, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Entry {
    /// So many chunks are all zero.
    Zero(u32),
    /// A chunk's BLAKE3 hash.
    Data(Digest),
}

/// What the target makes of a chunk that it holds something of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// It is the same.
    Kept,
    /// It is to be sent.
    Wanted,
    /// The blocks that differ from those with these sums are to be sent; see [`crate::chunk`].
    Patch(Vec<u64>),
}

/// Stands before the bytes of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) file: FileId,
    pub(crate) index: u32,
    /// Of the chunk.
    pub(crate) digest: Digest,
    pub(crate) form: Form,
    /// Whether the bytes that follow are compressed (zstd, RFC 8878).
    pub(crate) packed: bool,
    /// How many bytes follow; never more than a chunk has.
    pub(crate) length: u32,
}

/// Which bytes of a chunk are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Form {
    /// All.
    Whole,
    /// The blocks of this set; the others are zero.
    Sparse(BlockSet),
    /// The blocks of this set; the others are those that the target has.
    Patch(BlockSet),
}

/// Blocks of a chunk: a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct BlockSet([u64; BLOCKS / 64]);

impl BlockSet {
    pub(crate) fn add(&mut self, block: usize) {
        self.0[block / 64] |= 1 << (block % 64);
    }

    pub(crate) fn has(&self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Where in a chunk of `length` bytes they lie; none if one lies outside.
    pub(crate) fn spans(
        &self,
        length: usize,
    ) -> Option<impl Iterator<Item = std::ops::Range<usize>> + '_> {
        let outside = (length.div_ceil(BLOCK)..BLOCKS).any(|block| self.has(block));
        let span = move |block: usize| block * BLOCK..((block + 1) * BLOCK).min(length);
        (!outside).then(|| (0..BLOCKS).filter(|block| self.has(*block)).map(span))
    }
}

/// Why no message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The session or the stream ended.
    #[error("stream ended")]
    Cut,
    /// Longer than this kind of message may be.
    #[error("message too long")]
    Long,
    /// A version that this program does not speak.
    #[error("unknown version")]
    Version,
    /// No message of the expected kind.
    #[error("malformed message")]
    Malformed,
}

impl From<Cut> for FrameError {
    fn from(_: Cut) -> Self {
        Self::Cut
    }
}

/// Sends one message.
pub(crate) async fn send<T: Serialize>(sender: &mut Sender, message: &T) -> Result<(), Cut> {
    sender.send(frame(message).into()).await
}

pub(crate) fn frame<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes =
        postcard::to_extend(message, vec![0, 0, 0, 0, VERSION]).expect("messages are plain data");
    let length = u32::try_from(bytes.len() - 4).expect("messages are far below 4 GiB");
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Receives one message whose frame has at most `limit` bytes behind its length.
pub(crate) async fn receive<T: DeserializeOwned>(
    receiver: &mut Receiver,
    limit: usize,
    stall: Stall,
) -> Result<T, FrameError> {
    let mut length = [0; 4];
    receiver.fill(&mut length, stall).await?;
    let length = u32::from_be_bytes(length);
    if receiver.is_closing(length) {
        return Err(FrameError::Cut);
    }
    let length = length as usize;
    if length > limit {
        return Err(FrameError::Long);
    }
    let mut body = vec![0; length];
    receiver.fill(&mut body, stall).await?;
    parse(&body)
}

/// The one parser of everything that a peer sends.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match body.split_first() {
        Some((&VERSION, message)) => match postcard::take_from_bytes(message) {
            Ok((message, [])) => Ok(message),
            _ => Err(FrameError::Malformed),
        },
        Some(_) => Err(FrameError::Version),
        None => Err(FrameError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_control() -> Vec<Control> {
        let (file, session) = (FileId::disk(6), [9; 16]);
        let run = Run { first: 1, count: u32::MAX };
        vec![
            Control::Hello { token: Token([1; 32]), session },
            Control::Lane { token: Token([1; 32]), session },
            Control::Welcome { vm: VmId([2; 16]), migration: MigrationId([3; 16]) },
            Control::Tell { number: 4, body: vec![5; 600] },
            Control::Taken { number: u64::MAX },
            Control::Broken(Reason::Changed(file)),
            Control::Alive,
            Control::Holds(Holds::All),
            Control::Holds(Holds::Aside),
            Control::Holds(Holds::Some {
                content: Some(session),
                files: vec![Held { file, known: 7, missing: vec![run], held: vec![run; 3] }],
            }),
            Control::Layout {
                content: session,
                files: vec![(file, Bytes(8)), (FileId::STATE, Bytes(0))],
                data: Bytes(4),
            },
            Control::Sums {
                file,
                first: 9,
                entries: vec![Entry::Zero(3), Entry::Data(Digest([7; 32]))],
                data: Bytes(4),
            },
            Control::Judged {
                file,
                verdicts: vec![
                    (1, Verdict::Kept),
                    (2, Verdict::Wanted),
                    (3, Verdict::Patch(vec![u64::MAX; BLOCKS])),
                ],
            },
            Control::Rest,
            Control::Resting { pieces: 300 },
            Control::End { root: Digest([8; 32]) },
        ]
    }

    #[test]
    fn every_message_reads_back_and_no_shortened_or_lengthened_one_does() {
        for message in every_control() {
            let bytes = frame(&message);
            assert_eq!(parse::<Control>(&bytes[4..]), Ok(message));
            for end in 4..bytes.len() {
                assert!(parse::<Control>(&bytes[4..end]).is_err());
            }
            let longer = [&bytes[4..], &[0]].concat();
            assert_eq!(parse::<Control>(&longer), Err(FrameError::Malformed));
        }
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = frame(&Control::Taken { number: 1 });
        bytes[4] = VERSION + 1;
        assert_eq!(parse::<Control>(&bytes[4..]), Err(FrameError::Version));
    }

    #[test]
    fn the_longest_message_of_each_kind_fits_its_limit() {
        let file = FileId { kind: model::FileKind::History, index: u16::MAX };
        let run = Run { first: u32::MAX, count: u32::MAX };
        let digest = Digest([0xff; 32]);
        let data = Bytes(u64::MAX);
        let held = Held { file, known: u32::MAX, missing: vec![], held: vec![] };
        let mut files = vec![held; model::limit::MAX_FILES];
        files[0].held = vec![run; MAX_RUNS];
        let verdict = (u32::MAX, Verdict::Patch(vec![u64::MAX; BLOCKS]));
        for control in [
            Control::Tell { number: u64::MAX, body: vec![0; MAX_TELL_BYTES] },
            Control::Holds(Holds::Some { content: Some([0xff; 16]), files }),
            Control::Layout {
                content: [0xff; 16],
                files: vec![(file, data); model::limit::MAX_FILES],
                data,
            },
            Control::Sums {
                file,
                first: u32::MAX,
                entries: vec![Entry::Data(digest); MAX_SUMS],
                data,
            },
            Control::Judged { file, verdicts: vec![verdict; MAX_VERDICTS] },
        ] {
            assert!(frame(&control).len() - 4 <= MAX_CONTROL_BYTES, "{control:?}");
        }
        let hello = Control::Hello { token: Token([0xff; 32]), session: [0xff; 16] };
        assert!(frame(&hello).len() - 4 <= MAX_GREETING_BYTES);
        let form = Form::Patch(BlockSet([u64::MAX; 4]));
        let piece = Piece { file, index: u32::MAX, digest, form, packed: true, length: u32::MAX };
        assert!(frame(&piece).len() - 4 <= MAX_PIECE_BYTES);
    }

    #[test]
    fn blocks_lie_within_their_chunk() {
        let mut set = BlockSet::default();
        (0..BLOCKS).step_by(100).for_each(|block| set.add(block));
        let spans: Vec<_> = set.spans(1 << 20).unwrap().collect();
        assert_eq!(spans, [0..4096, 409_600..413_696, 819_200..823_296]);
        assert_eq!((set.len(), set.has(100), set.has(101)), (3, true, false));
        let spans: Vec<_> = set.spans(200 * BLOCK + 7).unwrap().collect();
        assert_eq!(spans[2], 819_200..819_207);
        assert!(set.spans(200 * BLOCK).is_none());
    }

    #[test]
    fn bytes_without_sense_never_panic_the_parser() {
        let mut seed = 1_u64;
        for length in 0..4000 {
            let mut bytes = vec![VERSION; 1];
            bytes.extend((0..length % 97).map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            }));
            let _ = parse::<Control>(&bytes);
            if let Ok(piece) = parse::<Piece>(&bytes)
                && let Form::Sparse(set) | Form::Patch(set) = piece.form
            {
                let _ = set.spans(1 << 20).map(Iterator::count);
            }
        }
    }
}
