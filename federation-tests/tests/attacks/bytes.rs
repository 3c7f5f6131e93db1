//! Every byte of a sample of each message is altered in turn, and none is taken.
//!
//! All bytes go through the very functions that a site reads with; some of each message go to a
//! site ([`REQUESTS`], [`ANSWERS`]).

use std::mem::discriminant;
use std::sync::LazyLock;

use federation_tests::bench::clock;
use federation_tests::parsers::seeds::spoken;
use federation_tests::process::hostile::Reply;
use federation_tests::side_by_side;
use model::key::{Payload, Strict};
use model::{
    Agreed, Certificate, Chain, Contract, Digest, EdgeHandle, JournalMark, Monitoring, SecretKey,
    Signature, Signed, SiteKey, Statement, Terms, Time, TransferEnd, VmId,
};
use prost::Message;
use proto::envelope::{
    Carried, RequestDigest, Sealer, Verdict, open_answer, open_request, open_values, open_verdicts,
    seal_answer, seal_request, seal_values, seal_verdicts,
};
use proto::federation::{Part, Sealed};
use protocol::{Answer, Op, Outcome};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Code;

use crate::answers::{answered, hop, pauses, sealed};
use crate::forms::bytes;
use crate::paths::all;
use crate::stage::{Attack, Heard, Refused, a_hop, a_key, attack, request};

/// One of each operation and of each answer, as sites say them in the life of a VM.
static SAID: LazyLock<(Vec<Op>, Vec<Answer>)> = LazyLock::new(|| {
    let (mut ops, mut answers) = spoken();
    let handback = ops.iter().find_map(|op| match op {
        Op::Deliver { vm, migration, certificate } => Some((*vm, *migration, certificate.clone())),
        _ => None,
    });
    let (vm, migration, certificate) = handback.unwrap();
    ops.push(Op::Handback { vm, migration, certificate: certificate.clone() });
    answers.push(Answer::HandedBack { certificate });
    let longest = |one: &[u8], other: &[u8]| other.len().cmp(&one.len());
    ops.sort_by(|one, other| longest(&bytes(one), &bytes(other)));
    ops.sort_by_key(Op::name);
    ops.dedup_by_key(|op| op.name());
    let mut kinds: Vec<Answer> = vec![];
    answers.sort_by(|one, other| longest(&bytes(one), &bytes(other)));
    for answer in answers {
        if kinds.iter().all(|kind| discriminant(kind) != discriminant(&answer)) {
            kinds.push(answer);
        }
    }
    (ops, kinds)
});

/// Parts of a message that are altered on their way.
const PARTS: [fn(&mut Part) -> &mut Vec<u8>; 3] =
    [|part| &mut part.body, |part| &mut part.key, |part| &mut part.signature];

pub(crate) const REQUESTS: &[Attack] = &[attack(
    "each kind of request, with bytes of each part altered",
    Refused::Code(Code::InvalidArgument, ""),
    |stage| {
        all(SAID.0.iter().flat_map(|op| {
            let key = a_key();
            let request = request(op.clone(), &key, a_hop(stage.edge()));
            PARTS.iter().flat_map(move |part| {
                let request = request.clone();
                let key = key.clone();
                [true, false].map(|of_hop| {
                    let (mut sealed, _) = stage.m.seal(stage.v_key(), &request, &key);
                    let altered = if of_hop { &mut sealed.hop } else { &mut sealed.origin };
                    any_bit(part(altered.as_mut().unwrap()));
                    let heard = stage.m.send(stage.v(), op, sealed);
                    heard.map_or_else(Heard::Ended, |_| Heard::Words("answered".into()))
                })
            })
        }))
    },
)];

pub(crate) const ANSWERS: &[Attack] = &[
    attack("each kind of answer, altered", Refused::Words("a signature does not hold"), |stage| {
        all(SAID.1.iter().map(|said| {
            let (m, v, said) = (stage.m.identity().clone(), stage.v_key(), said.clone());
            stage.m.answers(move |asked| {
                let mut answer = sealed(&m, v, asked.digest, said.clone());
                any_bit(&mut hop(&mut answer).body);
                Reply::Sends(answer)
            });
            pauses(stage)
        }))
    }),
    attack("an answer in another's name", Refused::Words("with the peer's key"), |stage| {
        answered(stage, |_, answer| any_bit(&mut hop(answer).key))
    }),
];

fn any_bit(bytes: &mut [u8]) {
    let at = usize::from(rand::random::<u16>()) % bytes.len();
    bytes[at] ^= 1 << (rand::random::<u8>() % 8);
}

/// Takes each byte in turn and alters a bit of it. Whatever still reads is not to be `taken`.
fn every_byte(what: &str, whole: &[u8], taken: impl Fn(&[u8]) -> bool) -> usize {
    assert!(taken(whole), "{what} is taken as it is");
    for at in 0..whole.len() {
        let mut altered = whole.to_vec();
        altered[at] ^= 1 << (at % 8);
        assert!(!taken(&altered), "{what}: byte {at} of {} was altered", whole.len());
    }
    whole.len()
}

/// The two sites of the messages, and when they are read.
struct Line {
    peer: SecretKey,
    me: SiteKey,
    at: Time,
}

impl Line {
    fn new() -> Self {
        Self { peer: a_key(), me: site_key(&a_key()), at: clock() }
    }

    fn from(&self) -> SiteKey {
        site_key(&self.peer)
    }

    fn sealer<T>(&self, with: impl FnOnce(&Sealer<'_>) -> T) -> T {
        let sign = |kind: &str, body: &[u8]| self.peer.sign(kind, body);
        with(&Sealer { site: self.from(), sign: &sign, journal: JournalMark::new(7, sign) })
    }

    fn requested(&self, op: &Op) -> (Sealed, RequestDigest) {
        let key = a_key();
        let end = TransferEnd {
            uri: "sojourn://192.0.2.1:7420".parse().unwrap(),
            token: model::Token([5; 32]),
            relay: Some(key.public()),
            transfer_key: key.public(),
            vm_key: key.public(),
            proof: Signature([6; 64]),
        };
        let mut request = request(op.clone(), &key, a_hop(Some(EdgeHandle([9; 16]))));
        request.hop.taken = Some(Signature([8; 64]));
        (request.hop.source, request.hop.target) = (Some(end.clone()), Some(end));
        let by = |_: &_, kind: &str, body: &[u8]| key.sign(kind, body);
        self.sealer(|sealer| seal_request(sealer, self.me, &request, by, self.at, rand::random()))
    }
}

fn site_key(key: &SecretKey) -> SiteKey {
    SiteKey(key.public().0)
}

fn read(message: &[u8], opens: impl Fn(Sealed) -> bool) -> bool {
    Sealed::decode(message).is_ok_and(opens)
}

fn request_bytes(op: &Op) -> usize {
    let line = Line::new();
    let whole = line.requested(op).0.encode_to_vec();
    every_byte(op.name(), &whole, |message| {
        read(message, |sealed| open_request(sealed, line.from(), line.me, line.at).is_ok())
    })
}

fn answer_bytes(answer: &Answer) -> usize {
    let line = Line::new();
    let (_, digest) = line.requested(&Op::Confirm { vm: VmId([7; 16]) });
    let whole = line.sealer(|sealer| seal_answer(sealer, line.me, digest, answer.clone()));
    every_byte(&format!("{answer:?}"), &whole.encode_to_vec(), |message| {
        read(message, |sealed| open_answer(&sealed, line.from(), line.me, digest).is_ok())
    })
}

fn value_bytes() -> usize {
    let line = Line::new();
    let carried = vec![
        Carried::Values(vec![3; 200], Signature([4; 64])),
        Carried::Usage(vec![5; 100], Signature([6; 64])),
    ];
    let (values, digest) =
        line.sealer(|sealer| seal_values(sealer, line.me, carried, line.at, rand::random()));
    let verdicts = vec![Verdict::Taken, Verdict::Later, Verdict::Refused];
    let verdicts = line.sealer(|sealer| seal_verdicts(sealer, line.me, digest, verdicts));
    let values = every_byte("values", &values.encode_to_vec(), |message| {
        read(message, |sealed| open_values(sealed, line.from(), line.me, line.at).is_ok())
    });
    values
        + every_byte("verdicts", &verdicts.encode_to_vec(), |message| {
            read(message, |sealed| open_verdicts(&sealed, line.from(), line.me, digest).is_ok())
        })
}

/// A value that is carried within messages: whatever its bytes are altered to, it does not hold.
fn part_bytes<T: Serialize + DeserializeOwned>(
    what: &str,
    value: &T,
    holds: impl Fn(&T) -> bool,
) -> usize {
    every_byte(what, &bytes(value), |altered| {
        let value = postcard::take_from_bytes(altered);
        value.is_ok_and(|(value, rest)| rest.is_empty() && holds(&value))
    })
}

fn signed_bytes<T: Payload>(what: &str, signed: &Signed<T>) -> usize {
    let key = signed.key;
    part_bytes(what, signed, |signed| signed.open(&key, &Strict).is_ok())
}

/// What one site has signed and others pass on: certificates, statements, contracts, sections.
fn carried_bytes() -> usize {
    let mut bytes = 0;
    let (mut chain, mut certificate, mut statements) = (None, None, vec![]);
    for op in spoken().0 {
        match op {
            Op::InitiateTransfer { vm, chain: of, .. } => chain = Some((vm, of)),
            Op::Deliver { certificate: of, .. } => certificate = Some(of),
            Op::TransferVerification { ready: Some(of), .. } => statements.push(("READY", of)),
            Op::Retire { owned, .. } => statements.push(("OWNED", owned)),
            _ => {}
        }
    }
    let aborted = SAID.1.iter().find_map(|answer| match answer {
        Answer::Verified(Outcome::Aborted(of)) => Some(("ABORTED", of.clone())),
        _ => None,
    });
    statements.extend(aborted);
    let (vm, chain): (VmId, Chain) = chain.unwrap();
    bytes += part_bytes("a chain", &chain, |chain| chain.verify(vm, &Strict).is_ok());
    bytes += signed_bytes::<Certificate>("a certificate", &certificate.unwrap());
    for (what, statement) in &statements {
        bytes += signed_bytes::<Statement>(what, statement);
    }
    bytes += part_bytes("a contract", &agreed(), |agreed: &Agreed| agreed.holds(&Strict));
    let k0 = a_key();
    let mut section = Monitoring { revision: 3, ..Monitoring::default() };
    section.vouch(|kind, body| k0.sign(kind, body));
    bytes
        + part_bytes("a section", &section, |section: &Monitoring| {
            section.is_vouched(&k0.public(), &Strict)
        })
}

fn agreed() -> Agreed {
    let (provider, customer) = (a_key(), a_key());
    let contract = Contract {
        vm: VmId([3; 16]),
        descriptor: Digest([4; 32]),
        edge: EdgeHandle([5; 16]),
        provider: site_key(&provider),
        customer: site_key(&customer),
        terms: Terms {
            price_milli: 1500,
            penalty_milli: 200,
            class: "standard".to_owned(),
            country: "SE".to_owned(),
            expires: clock(),
            runs: true,
        },
    };
    let proposal = contract.propose(|kind, body| provider.sign(kind, body));
    proposal.take(|kind, body| customer.sign(kind, body))
}

#[test]
fn no_byte_of_any_message_can_be_altered() {
    let (ops, answers) = &*SAID;
    assert_eq!((ops.len(), answers.len()), (OPERATIONS, KINDS), "there is one of each");
    let sizes = std::sync::atomic::AtomicUsize::new(0);
    let work: Vec<Box<dyn Fn() -> usize + Sync>> = vec![
        Box::new(|| ops.iter().map(request_bytes).sum()),
        Box::new(|| answers.iter().map(answer_bytes).sum()),
        Box::new(value_bytes),
        Box::new(carried_bytes),
    ];
    side_by_side(&work, 2, |work| {
        sizes.fetch_add(work(), std::sync::atomic::Ordering::Relaxed);
    });
    eprintln!("{} bytes were altered, one after the other", sizes.into_inner());
}

/// The operations that there are.
const OPERATIONS: usize = 15;
/// The kinds of answers that there are.
const KINDS: usize = 15;
