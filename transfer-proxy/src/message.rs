//! What the two ends say, and its bytes: a length, a version, postcard. One parser for all.

use model::{FileId, MigrationId, Token, VmId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::carrier::{Cut, Receiver, Sender, Stall};
use crate::fault::Reason;
use crate::transfer::MAX_TELL_BYTES;

/// Version of everything in this module; the first byte of each frame.
const VERSION: u8 = 1;

/// Size of one control message, in bytes: a told message and what stands around it.
pub(crate) const MAX_CONTROL_BYTES: usize = MAX_TELL_BYTES + 64;

/// Size of the first message of either end, in bytes; more is not read from a stranger.
pub(crate) const MAX_GREETING_BYTES: usize = 128;

/// Size of one request for chunks, in bytes.
pub(crate) const MAX_FETCH_BYTES: usize = 64;

/// Size of a manifest, in bytes: enough for 2 TiB of data without holes.
pub(crate) const MAX_MANIFEST_BYTES: usize = 72 << 20;

/// Chunks of one [`Fetch`].
pub(crate) const MAX_RUN: u32 = 4;

/// A message on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Control {
    /// The target's first: the capability.
    Hello { token: Token },
    /// The source's first: what the token stands for.
    Welcome { vm: VmId, migration: MigrationId },
    /// A message of the node at the one end for the node at the other. Numbers ascend.
    Tell { number: u64, body: Vec<u8> },
    /// Every told message up to this number was taken.
    Taken { number: u64 },
    /// The sender gives up; the session ends.
    Broken(Reason),
}

/// The target asks for `count` chunks of a file, from `first` on, none of them all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Fetch {
    pub(crate) file: FileId,
    pub(crate) first: u32,
    pub(crate) count: u32,
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
    let length = u32::from_be_bytes(length) as usize;
    if length > limit {
        return Err(FrameError::Long);
    }
    let mut body = Vec::new();
    // Grown as bytes come, so that a length alone takes no memory.
    while body.len() < length {
        let start = body.len();
        body.resize(length.min(start + (64 << 10)), 0);
        receiver.fill(&mut body[start..], stall).await?;
    }
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

    fn every_control() -> [Control; 5] {
        [
            Control::Hello { token: Token([1; 32]) },
            Control::Welcome { vm: VmId([2; 16]), migration: MigrationId([3; 16]) },
            Control::Tell { number: 4, body: vec![5; 600] },
            Control::Taken { number: u64::MAX },
            Control::Broken(Reason::Changed(FileId::disk(6))),
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
    fn the_longest_told_message_fits_its_limit() {
        let bytes = frame(&Control::Tell { number: u64::MAX, body: vec![0; MAX_TELL_BYTES] });
        assert!(bytes.len() - 4 <= MAX_CONTROL_BYTES);
        let fetch = Fetch { file: FileId::STATE, first: u32::MAX, count: u32::MAX };
        assert!(frame(&fetch).len() - 4 <= MAX_FETCH_BYTES);
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
            let _ = parse::<Fetch>(&bytes);
            if let Ok(manifest) = parse::<model::Manifest>(&bytes) {
                let _ = manifest.check();
            }
        }
    }
}
