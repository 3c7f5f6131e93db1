//! The sealed envelope: what is signed is the exact bytes that travel, never an encoding of what
//! was read from them.
//!
//! The order at the receiving end is fixed: size, then the key that this peer must have, then the
//! signature, and only then is anything parsed (security.md, "Signed requests").

use std::sync::Arc;
use std::time::Duration;

use model::key::{Payload, Strict, Verify};
use model::{
    Digest, EdgeHandle, JournalMark, PublicKey, Signature, SiteKey, Time, TransferEnd, limit,
};
use protocol::{Answer, Hop, Op, Origin, Request, Sealed as OriginBytes};
use serde::{Deserialize, Serialize};

use crate::federation::{Part, Sealed};

/// Something whose signatures hold. Made in this module only.
#[derive(Debug, Clone)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// The value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Names one request, so that its answer can be bound to it: the digest of its hop part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestDigest(Digest);

/// Why an envelope is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A part is missing, or larger than a message may be.
    #[error("a part is missing, or larger than {} bytes", limit::MAX_MESSAGE_BYTES)]
    Size,
    /// Another key than the one that this peer has.
    #[error("the hop part is not signed with the peer's key")]
    WrongKey,
    /// A signature does not hold.
    #[error("a signature does not hold")]
    BadSignature,
    /// The signed bytes are no statement of the version spoken here.
    #[error("the signed bytes are not of a known version")]
    Malformed,
    /// It was made for another site, or another request, or with another origin part.
    #[error("the parts do not belong together, or are for somebody else")]
    Misdirected,
    /// The sender's clock is off, or the message was kept back.
    #[error("the message's time differs from this site's clock by more than 120 s")]
    Stale,
}

/// The hop part of a request.
#[derive(Debug, Serialize, Deserialize)]
struct HopPart {
    /// Digest of the origin part's body; with its key, this vouches for both.
    origin: Digest,
    origin_key: PublicKey,
    audience: SiteKey,
    edge: Option<EdgeHandle>,
    nonce: [u8; 16],
    issued: Time,
    hops_left: u8,
    time_left_ms: u64,
    source: Option<TransferEnd>,
    target: Option<TransferEnd>,
    taken: Option<Signature>,
    /// How long the sender's journal is.
    journal: JournalMark,
}

impl Payload for HopPart {
    const TYPE: &'static str = "application/vnd.sojourn.hop.v2";
}

/// An answer, bound to its request.
#[derive(Debug, Serialize, Deserialize)]
struct AnswerPart {
    request: Digest,
    audience: SiteKey,
    answer: Answer,
    /// How long the sender's journal is.
    journal: JournalMark,
}

impl Payload for AnswerPart {
    const TYPE: &'static str = "application/vnd.sojourn.answer.v2";
}

/// What is carried up the paths of VMs. It is signed piece by piece by who made it; here one site
/// vouches for having sent it to another.
#[derive(Debug, Serialize, Deserialize)]
struct ValuesPart {
    audience: SiteKey,
    nonce: [u8; 16],
    issued: Time,
    carried: Vec<Carried>,
    /// How long the sender's journal is.
    journal: JournalMark,
}

impl Payload for ValuesPart {
    const TYPE: &'static str = "application/vnd.sojourn.values-hop.v3";
}

/// What goes up the path of a VM, as its owner signed it: bytes, signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carried {
    /// A block of values.
    Values(Vec<u8>, Signature),
    /// A statement of usage.
    Usage(Vec<u8>, Signature),
}

/// What becomes of one piece that was carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is kept, on stable storage, or what is kept says all that it says.
    Taken,
    /// It cannot be judged or kept yet; it is to come again.
    Later,
    /// It does not hold, and never will.
    Refused,
}

/// The answer to values: a verdict for each piece, in order.
#[derive(Debug, Serialize, Deserialize)]
struct VerdictsPart {
    request: Digest,
    audience: SiteKey,
    verdicts: Vec<Verdict>,
    /// How long the sender's journal is.
    journal: JournalMark,
}

impl Payload for VerdictsPart {
    const TYPE: &'static str = "application/vnd.sojourn.values-answer.v2";
}

/// Who seals: this site's identity.
pub struct Sealer<'a> {
    /// This site.
    pub site: SiteKey,
    /// Signs with the identity key: payload type, bytes.
    pub sign: &'a dyn Fn(&str, &[u8]) -> Signature,
    /// How long this site's journal is: peers remember the longest, so that an old copy is noticed.
    pub journal: JournalMark,
}

/// What an envelope held.
#[derive(Debug, Clone)]
pub struct Opened<T> {
    /// The request or the answer.
    pub content: Verified<T>,
    /// How long the sender's journal was when it spoke. Only the sender can check it.
    pub journal: JournalMark,
}

/// Seals a request of this site's own, or one that it passes on.
///
/// `sign_origin` signs with the origin's key; it is asked only for requests of this site's own.
pub fn seal_request(
    sealer: &Sealer<'_>,
    audience: SiteKey,
    request: &Request,
    sign_origin: impl FnOnce(&PublicKey, &str, &[u8]) -> Signature,
    now: Time,
    nonce: [u8; 16],
) -> (Sealed, RequestDigest) {
    let origin = &request.origin;
    let (body, signature) = match &origin.sealed {
        Some(sealed) => (sealed.body.clone(), sealed.signature),
        None => {
            let body = encode(&origin.op);
            let signature = sign_origin(&origin.key, Op::TYPE, &body);
            (body, signature)
        }
    };
    let hop = HopPart {
        origin: Digest::of(&body),
        origin_key: origin.key,
        audience,
        edge: request.hop.edge,
        nonce,
        issued: now,
        hops_left: request.hop.hops_left,
        time_left_ms: u64::try_from(request.hop.time_left.as_millis()).unwrap_or(u64::MAX),
        source: request.hop.source.clone(),
        target: request.hop.target.clone(),
        taken: request.hop.taken,
        journal: sealer.journal,
    };
    let hop = sealed_part(sealer, &hop);
    let digest = RequestDigest(Digest::of(&hop.body));
    let origin = part(body, origin.key, signature);
    (Sealed { origin: Some(origin), hop: Some(hop) }, digest)
}

/// Opens a request of the peer whose identity is `from`, made for `me`.
pub fn open_request(
    sealed: Sealed,
    from: SiteKey,
    me: SiteKey,
    now: Time,
) -> Result<(Opened<Request>, RequestDigest), EnvelopeError> {
    let origin = sealed.origin.ok_or(EnvelopeError::Size)?;
    let hop = sealed.hop.ok_or(EnvelopeError::Size)?;
    if origin.body.len() + hop.body.len() > limit::MAX_MESSAGE_BYTES {
        return Err(EnvelopeError::Size);
    }
    let digest = RequestDigest(Digest::of(&hop.body));
    let hop: HopPart = open_part(&hop, &from.public())?;
    let origin_key = PublicKey::from_slice(&origin.key).ok_or(EnvelopeError::Malformed)?;
    if hop.audience != me || hop.origin != Digest::of(&origin.body) || hop.origin_key != origin_key
    {
        return Err(EnvelopeError::Misdirected);
    }
    let apart = now.since(hop.issued).max(hop.issued.since(now));
    if apart > limit::MAX_CLOCK_SKEW {
        return Err(EnvelopeError::Stale);
    }
    let op: Op = open_part(&origin, &origin_key)?;
    let signature = Signature::from_slice(&origin.signature).ok_or(EnvelopeError::BadSignature)?;
    let request = Request {
        origin: Origin {
            op,
            key: origin_key,
            sealed: Some(Arc::new(OriginBytes { body: origin.body, signature })),
        },
        hop: Hop {
            edge: hop.edge,
            hops_left: hop.hops_left.min(limit::MAX_HOPS),
            time_left: Duration::from_millis(hop.time_left_ms),
            source: hop.source,
            target: hop.target,
            taken: hop.taken,
        },
    };
    Ok((Opened { content: Verified(request), journal: hop.journal }, digest))
}

/// Seals the answer to a request.
pub fn seal_answer(
    sealer: &Sealer<'_>,
    audience: SiteKey,
    request: RequestDigest,
    answer: Answer,
) -> Sealed {
    let hop = sealed_part(
        sealer,
        &AnswerPart { request: request.0, audience, answer, journal: sealer.journal },
    );
    Sealed { origin: None, hop: Some(hop) }
}

/// Opens the answer that the peer whose identity is `from` gave to `request`.
pub fn open_answer(
    sealed: &Sealed,
    from: SiteKey,
    me: SiteKey,
    request: RequestDigest,
) -> Result<Opened<Answer>, EnvelopeError> {
    let hop = sealed.hop.as_ref().ok_or(EnvelopeError::Size)?;
    if hop.body.len() > limit::MAX_MESSAGE_BYTES {
        return Err(EnvelopeError::Size);
    }
    let answer: AnswerPart = open_part(hop, &from.public())?;
    if answer.audience != me || answer.request != request.0 {
        return Err(EnvelopeError::Misdirected);
    }
    Ok(Opened { content: Verified(answer.answer), journal: answer.journal })
}

/// Bytes of what is carried that a message holds, next to its own.
pub const MAX_VALUES_BYTES: usize = limit::MAX_MESSAGE_BYTES - 1024;

/// Seals what is carried, of [`MAX_VALUES_BYTES`] together at most.
pub fn seal_values(
    sealer: &Sealer<'_>,
    audience: SiteKey,
    carried: Vec<Carried>,
    now: Time,
    nonce: [u8; 16],
) -> (Sealed, RequestDigest) {
    let part = ValuesPart { audience, nonce, issued: now, carried, journal: sealer.journal };
    let hop = sealed_part(sealer, &part);
    let digest = RequestDigest(Digest::of(&hop.body));
    (Sealed { origin: None, hop: Some(hop) }, digest)
}

/// Opens values of the peer whose identity is `from`, sent to `me`.
pub fn open_values(
    sealed: Sealed,
    from: SiteKey,
    me: SiteKey,
    now: Time,
) -> Result<(Opened<Vec<Carried>>, RequestDigest), EnvelopeError> {
    let hop = sealed.hop.ok_or(EnvelopeError::Size)?;
    if hop.body.len() > limit::MAX_MESSAGE_BYTES {
        return Err(EnvelopeError::Size);
    }
    let digest = RequestDigest(Digest::of(&hop.body));
    let part: ValuesPart = open_part(&hop, &from.public())?;
    if part.audience != me {
        return Err(EnvelopeError::Misdirected);
    }
    let apart = now.since(part.issued).max(part.issued.since(now));
    if apart > limit::MAX_CLOCK_SKEW {
        return Err(EnvelopeError::Stale);
    }
    Ok((Opened { content: Verified(part.carried), journal: part.journal }, digest))
}

/// Seals the verdicts on a message of values.
pub fn seal_verdicts(
    sealer: &Sealer<'_>,
    audience: SiteKey,
    request: RequestDigest,
    verdicts: Vec<Verdict>,
) -> Sealed {
    let part = VerdictsPart { request: request.0, audience, verdicts, journal: sealer.journal };
    Sealed { origin: None, hop: Some(sealed_part(sealer, &part)) }
}

/// Opens the verdicts that the peer whose identity is `from` gave.
pub fn open_verdicts(
    sealed: &Sealed,
    from: SiteKey,
    me: SiteKey,
    request: RequestDigest,
) -> Result<Opened<Vec<Verdict>>, EnvelopeError> {
    let hop = sealed.hop.as_ref().ok_or(EnvelopeError::Size)?;
    if hop.body.len() > limit::MAX_MESSAGE_BYTES {
        return Err(EnvelopeError::Size);
    }
    let part: VerdictsPart = open_part(hop, &from.public())?;
    if part.audience != me || part.request != request.0 {
        return Err(EnvelopeError::Misdirected);
    }
    Ok(Opened { content: Verified(part.verdicts), journal: part.journal })
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("messages are plain data")
}

fn sealed_part<T: Payload>(sealer: &Sealer<'_>, value: &T) -> Part {
    let body = encode(value);
    let signature = (sealer.sign)(T::TYPE, &body);
    part(body, sealer.site.public(), signature)
}

fn part(body: Vec<u8>, key: PublicKey, signature: Signature) -> Part {
    Part { body, key: key.0.to_vec(), signature: signature.0.to_vec() }
}

/// Key, then signature, then parsing.
fn open_part<T: Payload>(part: &Part, expected: &PublicKey) -> Result<T, EnvelopeError> {
    if part.key != expected.0 {
        return Err(EnvelopeError::WrongKey);
    }
    let signature = Signature::from_slice(&part.signature).ok_or(EnvelopeError::BadSignature)?;
    if !Strict.verify(expected, T::TYPE, &part.body, &signature) {
        return Err(EnvelopeError::BadSignature);
    }
    match postcard::take_from_bytes(&part.body) {
        Ok((value, [])) => Ok(value),
        _ => Err(EnvelopeError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use model::{MigrationId, SecretKey, VmId};

    use super::*;

    const NOW: Time = Time(1_800_000_000_000);
    const MARK: JournalMark = JournalMark { length: 7, signature: Signature([6; 64]) };

    struct Ends {
        alice: SecretKey,
        bob: SiteKey,
        speaker: SecretKey,
    }

    fn ends() -> Ends {
        Ends {
            alice: SecretKey::from_seed(&[1; 32]),
            bob: SiteKey(SecretKey::from_seed(&[2; 32]).public().0),
            speaker: SecretKey::from_seed(&[3; 32]),
        }
    }

    fn request(ends: &Ends) -> Request {
        let op = Op::TransferVerification {
            vm: VmId([7; 16]),
            migration: MigrationId([8; 16]),
            ready: None,
        };
        Request {
            origin: Origin { op, key: ends.speaker.public(), sealed: None },
            hop: Hop {
                edge: Some(EdgeHandle([9; 16])),
                hops_left: 3,
                time_left: Duration::from_secs(5),
                source: None,
                target: None,
                taken: None,
            },
        }
    }

    fn seal(ends: &Ends) -> (Sealed, RequestDigest) {
        let sign = |kind: &str, body: &[u8]| ends.alice.sign(kind, body);
        let sealer = Sealer { site: SiteKey(ends.alice.public().0), sign: &sign, journal: MARK };
        let speaker = &ends.speaker;
        let origin = |_: &PublicKey, kind: &str, body: &[u8]| speaker.sign(kind, body);
        seal_request(&sealer, ends.bob, &request(ends), origin, NOW, [4; 16])
    }

    #[test]
    fn a_sealed_request_opens_at_its_audience_with_what_was_said() {
        let ends = ends();
        let from = SiteKey(ends.alice.public().0);
        let (sealed, digest) = seal(&ends);
        let (opened, seen) = open_request(sealed, from, ends.bob, NOW).unwrap();
        assert_eq!(opened.journal, MARK);
        let opened = opened.content.into_inner();
        assert_eq!(seen, digest);
        assert_eq!(opened.origin.op, request(&ends).origin.op);
        assert_eq!(opened.hop, request(&ends).hop);
    }

    #[test]
    fn every_altered_byte_of_a_request_is_noticed() {
        let ends = ends();
        let from = SiteKey(ends.alice.public().0);
        let (sealed, _) = seal(&ends);
        let bytes = prost::Message::encode_to_vec(&sealed);
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            let Ok(altered) = <Sealed as prost::Message>::decode(&altered[..]) else { continue };
            let opened = open_request(altered, from, ends.bob, NOW);
            assert!(opened.is_err(), "byte {at} was altered and nobody noticed");
        }
    }

    #[test]
    fn a_request_for_another_site_by_another_peer_or_of_another_time_is_refused() {
        let ends = ends();
        let from = SiteKey(ends.alice.public().0);
        let (sealed, _) = seal(&ends);
        let open = |from, me, now| open_request(sealed.clone(), from, me, now).map(|_| ());
        assert_eq!(open(from, from, NOW), Err(EnvelopeError::Misdirected));
        assert_eq!(open(ends.bob, ends.bob, NOW), Err(EnvelopeError::WrongKey));
        assert_eq!(open(from, ends.bob, Time(NOW.0 + 120_001)), Err(EnvelopeError::Stale));
        assert_eq!(open(from, ends.bob, Time(NOW.0 - 120_001)), Err(EnvelopeError::Stale));
    }

    #[test]
    fn an_origin_part_under_another_hop_part_is_refused() {
        let ends = ends();
        let from = SiteKey(ends.alice.public().0);
        let (mut sealed, _) = seal(&ends);
        let other = SecretKey::from_seed(&[5; 32]);
        let body = sealed.origin.as_ref().unwrap().body.clone();
        let signature = other.sign(Op::TYPE, &body);
        sealed.origin = Some(part(body, other.public(), signature));
        let opened = open_request(sealed, from, ends.bob, NOW).map(|_| ());
        assert_eq!(opened, Err(EnvelopeError::Misdirected));
    }

    #[test]
    fn an_answer_to_another_request_is_refused() {
        let ends = ends();
        let alice = SiteKey(ends.alice.public().0);
        let bob = SecretKey::from_seed(&[2; 32]);
        let sign = |kind: &str, body: &[u8]| bob.sign(kind, body);
        let sealer = Sealer { site: ends.bob, sign: &sign, journal: MARK };
        let (_, digest) = seal(&ends);
        let sealed = seal_answer(&sealer, alice, digest, Answer::Done);
        let opened = open_answer(&sealed, ends.bob, alice, digest).unwrap();
        assert_eq!(opened.content.into_inner(), Answer::Done);
        let other = RequestDigest(Digest([0; 32]));
        assert_eq!(
            open_answer(&sealed, ends.bob, alice, other).map(|_| ()),
            Err(EnvelopeError::Misdirected)
        );
    }

    #[test]
    fn values_open_at_their_audience_and_verdicts_at_who_sent_them_unaltered_and_in_time() {
        let ends = ends();
        let alice = SiteKey(ends.alice.public().0);
        let sign = |kind: &str, body: &[u8]| ends.alice.sign(kind, body);
        let sealer = Sealer { site: alice, sign: &sign, journal: MARK };
        let signature = Signature([4; 64]);
        let carried =
            vec![Carried::Values(vec![1, 2, 3], signature), Carried::Usage(vec![5], signature)];
        let (sealed, digest) = seal_values(&sealer, ends.bob, carried.clone(), NOW, [4; 16]);
        let (opened, seen) = open_values(sealed.clone(), alice, ends.bob, NOW).unwrap();
        assert_eq!((seen, opened.content.into_inner()), (digest, carried));
        let open = |from, me, now| open_values(sealed.clone(), from, me, now).map(|_| ());
        assert_eq!(open(alice, alice, NOW), Err(EnvelopeError::Misdirected));
        assert_eq!(open(ends.bob, ends.bob, NOW), Err(EnvelopeError::WrongKey));
        assert_eq!(open(alice, ends.bob, Time(NOW.0 + 120_001)), Err(EnvelopeError::Stale));
        let bytes = prost::Message::encode_to_vec(&sealed);
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            let Ok(altered) = <Sealed as prost::Message>::decode(&altered[..]) else { continue };
            assert!(open_values(altered, alice, ends.bob, NOW).is_err(), "byte {at}");
        }
        let bob = SecretKey::from_seed(&[2; 32]);
        let sign = |kind: &str, body: &[u8]| bob.sign(kind, body);
        let sealer = Sealer { site: ends.bob, sign: &sign, journal: MARK };
        let verdicts = vec![Verdict::Taken, Verdict::Refused];
        let sealed = seal_verdicts(&sealer, alice, digest, verdicts.clone());
        let opened = open_verdicts(&sealed, ends.bob, alice, digest).unwrap();
        assert_eq!(opened.content.into_inner(), verdicts);
        let other = RequestDigest(Digest([0; 32]));
        assert!(open_verdicts(&sealed, ends.bob, alice, other).is_err());
    }

    #[test]
    fn a_relayed_origin_keeps_its_bytes() {
        let ends = ends();
        let from = SiteKey(ends.alice.public().0);
        let (sealed, _) = seal(&ends);
        let sent = sealed.origin.clone().unwrap();
        let (opened, _) = open_request(sealed, from, ends.bob, NOW).unwrap();
        let bob = SecretKey::from_seed(&[2; 32]);
        let sign = |kind: &str, body: &[u8]| bob.sign(kind, body);
        let sealer = Sealer { site: ends.bob, sign: &sign, journal: MARK };
        let never = |_: &PublicKey, _: &str, _: &[u8]| panic!("signed anew");
        let (onward, _) =
            seal_request(&sealer, from, &opened.content.into_inner(), never, NOW, [6; 16]);
        assert_eq!(onward.origin.unwrap(), sent);
    }
}
