//! The sealed envelope and what is in it, from a peer that may be anybody or may lie.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use model::key::{Payload, Strict, Verify};
use model::{
    Digest, EdgeHandle, JournalMark, PublicKey, SecretKey, Signature, SiteKey, Time, limit,
};
use prost::Message;
use proto::envelope::{RequestDigest, Sealer, open_answer, open_request, seal_request};
use proto::federation::{Part, Sealed};
use protocol::{Answer, Hop, Op, Origin, Request};

use super::{exactly, reads_back};

/// When every input arrives.
pub(super) const NOW: Time = Time(1_800_000_000_000);

const HOP: &str = "application/vnd.sojourn.hop.v2";
const ANSWER: &str = "application/vnd.sojourn.answer.v2";

/// The keys of a peer, of this site, and of one who speaks through the peer.
struct Keys {
    peer: SecretKey,
    site: SecretKey,
    speaker: SecretKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let key = |seed| SecretKey::from_seed(&[seed; 32]);
    Keys { peer: key(1), site: key(2), speaker: key(3) }
});

fn site_key(key: &SecretKey) -> SiteKey {
    SiteKey(key.public().0)
}

fn peer() -> SiteKey {
    site_key(&KEYS.peer)
}

fn me() -> SiteKey {
    site_key(&KEYS.site)
}

fn part(kind: &str, body: &[u8], key: &SecretKey) -> Part {
    let signature = key.sign(kind, body).0.to_vec();
    Part { body: body.to_vec(), key: key.public().0.to_vec(), signature }
}

/// A request of `from` for `audience`, whose operation is in these very bytes.
fn request(from: &SecretKey, audience: SiteKey, origin: &Part) -> (Sealed, RequestDigest) {
    let sign = |kind: &str, body: &[u8]| from.sign(kind, body);
    let sealer = Sealer { site: site_key(from), sign: &sign, journal: JournalMark::new(7, sign) };
    let sealed = protocol::Sealed {
        body: origin.body.clone(),
        signature: Signature::from_slice(&origin.signature).expect("a signature made here"),
    };
    let any = Op::Confirm { vm: model::VmId([7; 16]) };
    let key = PublicKey::from_slice(&origin.key).expect("a key made here");
    let request = Request {
        origin: Origin { op: any, key, sealed: Some(Arc::new(sealed)) },
        hop: Hop {
            edge: Some(EdgeHandle([9; 16])),
            hops_left: 3,
            time_left: Duration::from_secs(5),
            source: None,
            target: None,
            taken: None,
        },
    };
    let never = |_: &PublicKey, _: &str, _: &[u8]| unreachable!("it is signed already");
    seal_request(&sealer, audience, &request, never, NOW, [4; 16])
}

/// The bytes on the wire of an honest peer's request.
pub(super) fn honest_request(op: &Op) -> Vec<u8> {
    let body = postcard::to_stdvec(op).expect("plain data");
    request(&KEYS.peer, me(), &part(Op::TYPE, &body, &KEYS.speaker)).0.encode_to_vec()
}

/// The body of the hop part of an honest peer's request.
pub(super) fn honest_hop() -> Vec<u8> {
    request(&KEYS.peer, me(), &ANY_ORIGIN).0.hop.expect("a request has a hop part").body
}

/// The bytes on the wire of an honest peer's answer to [`ASKED`].
pub(super) fn honest_answer(answer: &Answer) -> Vec<u8> {
    let body = answer_body(&[&postcard::to_stdvec(answer).expect("plain data")[..], &[7]].concat());
    Sealed { origin: None, hop: Some(part(ANSWER, &body, &KEYS.peer)) }.encode_to_vec()
}

/// What some honest speaker says.
static ANY_ORIGIN: LazyLock<Part> = LazyLock::new(|| {
    let op = Op::Confirm { vm: model::VmId([7; 16]) };
    part(Op::TYPE, &postcard::to_stdvec(&op).expect("plain data"), &KEYS.speaker)
});

/// A request of this site's own, which the peer answers: its digest, also in bytes.
static ASKED: LazyLock<(RequestDigest, Digest)> = LazyLock::new(|| {
    let (sealed, digest) = request(&KEYS.site, peer(), &ANY_ORIGIN);
    (digest, Digest::of(&sealed.hop.expect("a request has a hop part").body))
});

/// What is signed in an answer to [`ASKED`]: whom it is for, then `rest`.
fn answer_body(rest: &[u8]) -> Vec<u8> {
    [&ASKED.1.0[..], &me().0, rest].concat()
}

fn is_signed(part: &Part, kind: &str) -> bool {
    let key = PublicKey::from_slice(&part.key);
    let signature = Signature::from_slice(&part.signature);
    let both = key.zip(signature);
    both.is_some_and(|(key, signature)| Strict.verify(&key, kind, &part.body, &signature))
}

/// What comes over the wire, from whoever gets so far. A value comes out only if the peer signed
/// the hop part, and the one who speaks the origin part.
///
/// # Panics
///
/// If a promise is broken.
pub fn sealed(data: &[u8]) {
    let Ok(sealed) = Sealed::decode(data) else { return };
    if let Ok((opened, _)) = open_request(sealed.clone(), peer(), me(), NOW) {
        let hop = sealed.hop.as_ref().expect("what was opened has both parts");
        let origin = sealed.origin.as_ref().expect("what was opened has both parts");
        assert_eq!(hop.key, peer().0);
        assert!(is_signed(hop, HOP) && is_signed(origin, Op::TYPE));
        assert!(hop.body.len() + origin.body.len() <= limit::MAX_MESSAGE_BYTES);
        assert!(opened.content.into_inner().hop.hops_left <= limit::MAX_HOPS);
    }
    if open_answer(&sealed, peer(), me(), ASKED.0).is_ok() {
        let hop = sealed.hop.as_ref().expect("what was opened has a hop part");
        assert!(hop.key == peer().0 && is_signed(hop, ANSWER));
        assert!(hop.body.starts_with(&answer_body(&[])));
    }
}

/// The hop part, in bytes that the peer did sign.
///
/// # Panics
///
/// If a promise is broken.
pub fn hop(data: &[u8]) {
    let origin = &*ANY_ORIGIN;
    let sealed = Sealed { origin: Some(origin.clone()), hop: Some(part(HOP, data, &KEYS.peer)) };
    let Ok((opened, _)) = open_request(sealed, peer(), me(), NOW) else { return };
    let vouches_for = [&Digest::of(&origin.body).0[..], &origin.key, &me().0].concat();
    assert!(data.starts_with(&vouches_for), "it is for another origin part or another site");
    let hop = opened.content.into_inner().hop;
    assert!(hop.hops_left <= limit::MAX_HOPS);
    if let Some(source) = &hop.source {
        let uri = source.uri.to_string();
        assert!(uri.len() <= limit::MAX_URI_CHARS && uri.parse().as_ref() == Ok(&source.uri));
        assert!(!format!("{hop:?}").contains(&format!("{:?}", source.token.0)));
    }
}

/// The operation, in bytes that were signed by the one who speaks, and vouched for by the peer. If
/// it opens, it is what the bytes say, and the next site gets the same bytes.
///
/// # Panics
///
/// If a promise is broken.
pub fn operation(data: &[u8]) {
    let said = exactly::<Op>(data);
    // Signatures take most of the time; that nonsense is refused need not be seen each time.
    if said.is_none() && !data.len().is_multiple_of(8) {
        return;
    }
    let origin = part(Op::TYPE, data, &KEYS.speaker);
    let (sealed, _) = request(&KEYS.peer, me(), &origin);
    let Ok((opened, _)) = open_request(sealed, peer(), me(), NOW) else {
        assert!(data.len() > limit::MAX_MESSAGE_BYTES / 2 || said.is_none());
        return;
    };
    let opened = opened.content.into_inner();
    let op = &opened.origin.op;
    assert_eq!(said.as_ref(), Some(op));
    reads_back(op);
    assert!(!format!("{op:?} {} {} {:?}", op.name(), op.vm(), op.migration()).is_empty());
    if let Op::MigrationRequest { descriptor, .. } = op
        && descriptor.check().is_ok()
    {
        assert!(descriptor.disks.len() <= limit::MAX_DISKS);
        assert!(descriptor.nics.len() <= limit::MAX_NICS);
    }
    let sign = |kind: &str, body: &[u8]| KEYS.site.sign(kind, body);
    let sealer = Sealer { site: me(), sign: &sign, journal: JournalMark::new(8, sign) };
    let never = |_: &PublicKey, _: &str, _: &[u8]| unreachable!("it is signed already");
    let next = site_key(&KEYS.speaker);
    let (onward, _) = seal_request(&sealer, next, &opened, never, NOW, [5; 16]);
    assert_eq!(onward.origin, Some(origin));
    let (there, _) = open_request(onward, me(), next, NOW).expect("what was passed on opens");
    assert_eq!(there.content.into_inner().origin.op, *op);
}

/// An answer, in bytes that the peer did sign. `data` is what stands behind the digest of the
/// request and the site that it is for.
///
/// # Panics
///
/// If a promise is broken.
pub fn answer(data: &[u8]) {
    let hop = part(ANSWER, &answer_body(data), &KEYS.peer);
    let sealed = Sealed { origin: None, hop: Some(hop) };
    let Ok(opened) = open_answer(&sealed, peer(), me(), ASKED.0) else { return };
    let answer = opened.content.into_inner();
    reads_back(&answer);
    assert!(!format!("{answer:?}").is_empty());
    if let Answer::Offers { offers, .. } = &answer {
        for offer in offers {
            assert!(offer.target.uri.to_string().len() <= limit::MAX_URI_CHARS);
        }
    }
}
