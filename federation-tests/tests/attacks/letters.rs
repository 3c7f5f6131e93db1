//! Attacks on what carries a request: who calls, who signed, for whom, when, how large, in which
//! form. Each carries the destruction of the guest, which m could ask for in an honest form.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use certs::{Identity, Ticket};
use ed25519_dalek::{Signature as Ed25519, Verifier, VerifyingKey};
use federation_tests::bench::clock;
use federation_tests::process::hostile::{Hostile, Reply, site_key};
use model::key::Payload;
use model::{JournalMark, PublicKey, RequestId, SecretKey, Signature, SiteKey, Time};
use proto::envelope::{Carried, RequestDigest, Sealer, open_verdicts, seal_values};
use proto::federation::{HelloRequest, JoinRequest, JournalMark as Mark, Part, Sealed};
use protocol::{Action, Answer, Op, Request, Sealed as Origin};
use rustls::SignatureScheme;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tonic::Code;

use crate::forms::{self, NEUTRAL, small_order};
use crate::paths::all;
use crate::stage::{Attack, Heard, Refused, Stage, a_hop, a_key, attack, descriptor, request};

/// The payload type of a request's hop part.
const HOP: &str = "application/vnd.sojourn.hop.v2";

const NOT_SIGNED: &str = "a signature does not hold";
const NOT_THE_PEER: &str = "not signed with the peer's key";
const MISDIRECTED: &str = "are for somebody else";
const UNREADABLE: &str = "not of a known version";
const TOO_LARGE: &str = "larger than 1048576 bytes";
const OTHER_TIME: &str = "differs from this site's clock";

const BAD: Code = Code::InvalidArgument;

pub(crate) const ATTACKS: &[Attack] = &[
    attack("a hop part that another peer has signed", Refused::Code(BAD, NOT_THE_PEER), |stage| {
        let (sealed, _) = stage.n.seal(stage.v_key(), &destruction(stage).0, &a_key());
        send(stage, &stage.m, sealed)
    }),
    attack(
        "another peer's request, over one's own channel",
        Refused::Code(BAD, NOT_THE_PEER),
        |stage| send(stage, &stage.n, sealed(stage)),
    ),
    attack(
        "a hop part with a peer's key and another's signature",
        Refused::Code(BAD, NOT_SIGNED),
        |stage| {
            altered(stage, |hop, _| hop.signature = signature(HOP, &hop.body, stage.n.identity()))
        },
    ),
    attack("a hop part that was signed as an answer", Refused::Code(BAD, NOT_SIGNED), |stage| {
        let kind = "application/vnd.sojourn.answer.v2";
        altered(stage, |hop, _| hop.signature = signature(kind, &hop.body, stage.m.identity()))
    }),
    attack("a signature of half the length", Refused::Code(BAD, NOT_SIGNED), |stage| {
        altered(stage, |hop, _| hop.signature.truncate(32))
    }),
    attack("a request for another site", Refused::Code(BAD, MISDIRECTED), |stage| {
        let (request, key) = destruction(stage);
        let (sealed, _) = stage.m.seal(site_key(&stage.federation["n"]), &request, &key);
        send(stage, &stage.m, sealed)
    }),
    attack(
        "a request that has expired",
        Refused::Code(Code::FailedPrecondition, OTHER_TIME),
        |stage| sealed_at(stage, Time(clock().0 - 121_000)),
    ),
    attack(
        "a request from the future",
        Refused::Code(Code::FailedPrecondition, OTHER_TIME),
        |stage| sealed_at(stage, clock().after(Duration::from_secs(150))),
    ),
    attack(
        "a request from the end of time",
        Refused::Code(Code::FailedPrecondition, OTHER_TIME),
        |stage| sealed_at(stage, Time(u64::MAX)),
    ),
    attack("a request larger than a message may be", Refused::Code(BAD, TOO_LARGE), |stage| {
        let reason = "x".repeat(1 << 20);
        stage.says(Op::Evict { vm: stage.away.0, reason }, Some(stage.away.1))
    }),
    attack(
        "a request larger than a message is read",
        Refused::Code(Code::OutOfRange, "too large"),
        |stage| {
            let reason = "x".repeat(3 << 20);
            stage.says(Op::Evict { vm: stage.away.0, reason }, Some(stage.away.1))
        },
    ),
    attack("a request without a hop part", Refused::Code(BAD, "a part is missing"), |stage| {
        send(stage, &stage.m, Sealed { hop: None, ..sealed(stage) })
    }),
    attack("a request without an origin part", Refused::Code(BAD, "a part is missing"), |stage| {
        send(stage, &stage.m, Sealed { origin: None, ..sealed(stage) })
    }),
    attack("another origin part under a hop part", Refused::Code(BAD, MISDIRECTED), |stage| {
        let (show, key) = (Op::Control { vm: stage.guest.vm, action: Action::Show }, a_key());
        let show = request(show, &key, a_hop(stage.edge()));
        let (show, _) = stage.m.seal(stage.v_key(), &show, &key);
        send(stage, &stage.m, Sealed { hop: show.hop, ..sealed(stage) })
    }),
    attack("the same origin part in another's name", Refused::Code(BAD, MISDIRECTED), |stage| {
        let key = a_key();
        altered(stage, |_, origin| {
            origin.key = key.public().0.to_vec();
            origin.signature = key.sign(Op::TYPE, &origin.body).0.to_vec();
        })
    }),
    attack(
        "an origin part that who speaks has not signed",
        Refused::Code(BAD, NOT_SIGNED),
        |stage| {
            let (request, _) = destruction(stage);
            let (sealed, _) = stage.m.seal(stage.v_key(), &request, &a_key());
            send(stage, &stage.m, sealed)
        },
    ),
    attack(
        "an origin part that was signed as a certificate",
        Refused::Code(BAD, NOT_SIGNED),
        |stage| {
            said(stage, &forms::bytes(&stage.destroy()), "application/vnd.sojourn.certificate.v1")
        },
    ),
    attack(
        "a restriction that is not known, behind an operation",
        Refused::Code(BAD, UNREADABLE),
        |stage| said(stage, &[&forms::bytes(&stage.destroy())[..], &[1]].concat(), Op::TYPE),
    ),
    attack("an operation that is not known", Refused::Code(BAD, UNREADABLE), |stage| {
        said(stage, &[&[99], &stage.guest.vm.0[..]].concat(), Op::TYPE)
    }),
    attack("an operation that breaks off", Refused::Code(BAD, UNREADABLE), |stage| {
        let body = forms::bytes(&stage.destroy());
        said(stage, &body[..body.len() - 1], Op::TYPE)
    }),
    attack(
        "a restriction that is not known, behind a hop part",
        Refused::Code(BAD, UNREADABLE),
        |stage| {
            altered(stage, |hop, _| {
                hop.body.push(1);
                hop.signature = signature(HOP, &hop.body, stage.m.identity());
            })
        },
    ),
    attack("a hop part with its hops raised on the way", Refused::Code(BAD, NOT_SIGNED), |stage| {
        let (asked, key) = destruction(stage);
        let [low, high] = [1, 255].map(|hops_left| {
            let hop = protocol::Hop { hops_left, ..asked.hop.clone() };
            let request = Request { hop, ..asked.clone() };
            stage.m.seal(stage.v_key(), &request, &key).0
        });
        let hop = Part { body: high.hop.unwrap().body, ..low.hop.unwrap() };
        send(stage, &stage.m, Sealed { origin: low.origin, hop: Some(hop) })
    }),
    attack(
        "an operation under another one's name",
        Refused::Code(BAD, "not the one that was called"),
        |stage| {
            let op = Op::Confirm { vm: stage.guest.vm };
            let heard = stage.m.send(stage.v(), &op, sealed(stage));
            heard.map_or_else(Heard::Ended, |_| Heard::Words("it was answered".into()))
        },
    ),
    attack("a caller who is no peer", Refused::HungUp, |stage| {
        let stranger = Identity::from_seed(&rand::random());
        shown(stage, certs::client_config(&stranger, stage.v_key()).unwrap())
    }),
    attack(
        "values that have expired",
        Refused::Code(Code::FailedPrecondition, OTHER_TIME),
        |stage| carried(stage, &stage.m, stage.v_key(), Time(clock().0 - 121_000), &[1]),
    ),
    attack("values for another site", Refused::Code(BAD, MISDIRECTED), |stage| {
        carried(stage, &stage.m, site_key(&stage.federation["n"]), clock(), &[1])
    }),
    attack("values larger than a message may be", Refused::Code(BAD, TOO_LARGE), |stage| {
        carried(stage, &stage.m, stage.v_key(), clock(), &[1; 1 << 20])
    }),
    attack("values that are none", Refused::Words("[Refused, Refused]"), |stage| {
        carried(stage, &stage.m, stage.v_key(), clock(), &[1; 100])
    }),
    attack("values in the place of a request", Refused::Code(BAD, "a part is missing"), |stage| {
        let (values, _) = sealed_values(&stage.m, stage.v_key(), clock(), &[1]);
        send(stage, &stage.m, values)
    }),
    attack("a request in the place of values", Refused::Code(BAD, NOT_SIGNED), |stage| {
        let sealed = sealed(stage);
        let heard = stage.m.call(stage.v(), async move |mut client| client.values(sealed).await);
        heard.map_or_else(Heard::Ended, |_| Heard::Words("they were taken".into()))
    }),
    attack(
        "a protocol that nobody speaks",
        Refused::Code(Code::FailedPrecondition, "versions"),
        |stage| {
            let hello = HelloRequest { oldest_version: 99, newest_version: 99, journal: None };
            let heard = stage.m.call(stage.v(), async move |mut client| client.hello(hello).await);
            heard.map_or_else(Heard::Ended, |_| Heard::Words("it was greeted".into()))
        },
    ),
    attack("a greeting that marks no journal", Refused::Code(BAD, "is not signed"), |stage| {
        let marks = [None, Some(Mark { length: 1, signature: vec![7; 63] })];
        all(marks.into_iter().map(|journal| {
            let hello = HelloRequest { oldest_version: 1, newest_version: 99, journal };
            let heard = stage.m.call(stage.v(), async move |mut client| client.hello(hello).await);
            heard.map_or_else(Heard::Ended, |_| Heard::Words("it was greeted".into()))
        }))
    }),
    attack("a ticket shown by a site behind whose key is no secret", Refused::HungUp, |stage| {
        all(small_order().filter_map(|weak| {
            let tls = weak_site(&weak, stage.v_key())?;
            let ticket = stage.v().done(&["peer", "invite"]);
            let ticket = Ticket::parse(ticket["ticket"].as_str().unwrap()).unwrap();
            Some(join(stage, tls, ticket.secret().as_bytes().to_vec()))
        }))
    }),
    attack(
        "a ticket's secret that was guessed",
        Refused::Code(Code::PermissionDenied, "ticket"),
        |stage| joining(stage, vec![7; 32]),
    ),
    attack(
        "a ticket's secret of another length",
        Refused::Code(Code::PermissionDenied, "ticket"),
        |stage| joining(stage, vec![7; 31]),
    ),
    attack(
        "a request that has no hops left",
        Refused::NoOffer("as many sites as it may"),
        |stage| {
            let key = a_key();
            let op = forms::migration_request(stage.guest.vm, descriptor("guest"));
            let hop = protocol::Hop { hops_left: 0, ..a_hop(None) };
            stage.ask(&request(op, &key, hop), &key)
        },
    ),
    attack("more hops than there may be", Refused::Words("with 7 hops left"), |stage| {
        passed_on(stage, descriptor("new"))
    }),
    attack("a VM that may not be passed on", Refused::Words("not passed on"), |stage| {
        let mut bound = descriptor("new");
        bound.restrictions.no_delegation = true;
        passed_on(stage, bound)
    }),
    attack("a descriptor without a processor", Refused::NoOffer("cpus must be 1 to"), |stage| {
        let mut bad = descriptor("new");
        bad.resources.cpus = 0;
        stage.says(forms::migration_request(forms::a_vm(), bad), None)
    }),
    attack(
        "a descriptor whose disk is another VM's file",
        Refused::NoOffer("disk 0 does not name"),
        |stage| {
            let mut bad = descriptor("new");
            bad.disks[0].file = model::FileId::disk(7);
            stage.says(forms::migration_request(forms::a_vm(), bad), None)
        },
    ),
    attack(
        "an offer asked for another peer's VM",
        Refused::NoOffer("answers for the VM already"),
        |stage| stage.says(forms::migration_request(stage.other.0, descriptor("other")), None),
    ),
    attack("another peer's request id", Refused::NoOffer("has been here already"), |stage| {
        let id = RequestId(rand::random());
        let op =
            Op::MigrationRequest { vm: forms::a_vm(), request: id, descriptor: descriptor("new") };
        stage.says(op.clone(), None);
        stage.n_says(op, None)
    }),
];

/// With a ticket that was used, and another one that is good.
pub(crate) const TICKETS: &[Attack] =
    &[attack("a ticket that was used", Refused::Code(Code::PermissionDenied, "ticket"), |stage| {
        joining(stage, stage.ticket.clone())
    })];

/// Somebody becomes a peer, who has nothing to do with anything.
pub(crate) fn use_ticket(stage: &mut Stage) {
    let ticket = stage.v().done(&["peer", "invite"]);
    let ticket = Ticket::parse(ticket["ticket"].as_str().unwrap()).unwrap();
    stage.ticket = ticket.secret().as_bytes().to_vec();
    let tls = certs::client_config(&Identity::from_seed(&rand::random()), stage.v_key());
    let heard = join(stage, tls.unwrap(), stage.ticket.clone());
    assert_eq!(heard.fault(&Refused::Words("it is a peer")), None);
}

/// m's request to destroy the guest, unsigned, and the key that it speaks with.
fn destruction(stage: &Stage) -> (Request, SecretKey) {
    let key = a_key();
    (request(stage.destroy(), &key, a_hop(stage.edge())), key)
}

fn sealed(stage: &Stage) -> Sealed {
    let (request, key) = destruction(stage);
    stage.m.seal(stage.v_key(), &request, &key).0
}

fn send(stage: &Stage, from: &Hostile, sealed: Sealed) -> Heard {
    let heard = from.send(stage.v(), &stage.destroy(), sealed);
    heard.map_or_else(Heard::Ended, |_| Heard::Words("it was answered".into()))
}

fn sealed_at(stage: &Stage, at: Time) -> Heard {
    let (request, key) = destruction(stage);
    send(stage, &stage.m, stage.m.seal_at(stage.v_key(), &request, &key, at).0)
}

/// The request with its hop part, or its origin part, altered after it was sealed.
fn altered(stage: &Stage, alter: impl FnOnce(&mut Part, &mut Part)) -> Heard {
    let mut sealed = sealed(stage);
    alter(sealed.hop.as_mut().unwrap(), sealed.origin.as_mut().unwrap());
    send(stage, &stage.m, sealed)
}

fn sealed_values(by: &Hostile, to: SiteKey, at: Time, body: &[u8]) -> (Sealed, RequestDigest) {
    let sign = |kind: &str, body: &[u8]| by.identity().sign(kind, body);
    let sealer =
        Sealer { site: by.identity().site_key(), sign: &sign, journal: JournalMark::new(1, sign) };
    let signature = Signature([7; 64]);
    let carried =
        vec![Carried::Values(body.to_vec(), signature), Carried::Usage(vec![1; 100], signature)];
    seal_values(&sealer, to, carried, at, rand::random())
}

/// Values and usage that nobody has made, and what becomes of them.
fn carried(stage: &Stage, by: &Hostile, to: SiteKey, at: Time, body: &[u8]) -> Heard {
    let (sealed, digest) = sealed_values(by, to, at, body);
    let heard = by.call(stage.v(), async move |mut client| client.values(sealed).await);
    heard.map_or_else(Heard::Ended, |answer| {
        let me = by.identity().site_key();
        let opened = open_verdicts(answer.get_ref(), stage.v_key(), me, digest);
        Heard::Words(format!("{:?}", opened.unwrap().content.into_inner()))
    })
}

/// m asks for a place with as many hops as can be said: how n hears of it from v.
fn passed_on(stage: &Stage, descriptor: model::Descriptor) -> Heard {
    let heard = Arc::new(Mutex::new("not passed on".to_owned()));
    let hears = heard.clone();
    stage.n.answers(move |asked| {
        *hears.lock().unwrap() = format!("with {} hops left", asked.request.hop.hops_left);
        Reply::Says(Answer::Offers { offers: vec![], reasons: vec![] })
    });
    let key = a_key();
    let hop = protocol::Hop { hops_left: 255, ..a_hop(None) };
    let op = forms::migration_request(forms::a_vm(), descriptor);
    stage.ask(&request(op, &key, hop), &key);
    let heard = heard.lock().unwrap();
    Heard::Words(heard.clone())
}

fn signature(kind: &str, body: &[u8], by: &Identity) -> Vec<u8> {
    by.sign(kind, body).0.to_vec()
}

/// These bytes as the origin part, signed as a payload of this type.
fn said(stage: &Stage, body: &[u8], kind: &str) -> Heard {
    let (mut request, key) = destruction(stage);
    let signature: Signature = key.sign(kind, body);
    request.origin.sealed = Some(Arc::new(Origin { body: body.to_vec(), signature }));
    send(stage, &stage.m, stage.m.seal(stage.v_key(), &request, &key).0)
}

/// A call as whom `tls` shows.
pub(crate) fn shown(stage: &Stage, tls: Arc<rustls::ClientConfig>) -> Heard {
    let sealed = sealed(stage);
    let heard =
        stage.m.call_as(tls, stage.v(), async move |mut client| client.control(sealed).await);
    heard.map_or_else(Heard::Ended, |_| Heard::Words("it was answered".into()))
}

/// Joins while there is an open invitation, which is then used by nobody.
fn joining(stage: &Stage, secret: Vec<u8>) -> Heard {
    stage.v().done(&["peer", "invite"]);
    let stranger = Identity::from_seed(&rand::random());
    let tls = certs::client_config(&stranger, stage.v_key()).unwrap();
    join(stage, tls, secret)
}

/// Asks to be a peer, as whom `tls` shows.
pub(crate) fn join(stage: &Stage, tls: Arc<rustls::ClientConfig>, secret: Vec<u8>) -> Heard {
    let ask = JoinRequest { secret, name: "x".into(), addresses: vec!["127.0.0.1:1".into()] };
    let heard = stage.m.call_as(tls, stage.v(), async move |mut client| client.join(ask).await);
    heard.map_or_else(Heard::Ended, |_| Heard::Words("it is a peer".into()))
}

/// What shows the certificates of a site whose key is of small order: for the leaf's signature is
/// one that holds by Ed25519's equation alone. None where none is found.
fn weak_site(weak: &PublicKey, peer: SiteKey) -> Option<Arc<rustls::ClientConfig>> {
    let honest = Identity::from_seed(&rand::random());
    let names = [honest.site_key(), SiteKey(weak.0)].map(|key| {
        let name = certs::server_name(&key).to_str().into_owned();
        name.into_bytes()
    });
    (0..64).find_map(|_| {
        let config = certs::client_config(&honest, peer).unwrap();
        let shown = config.client_auth_cert_resolver.resolve(&[], &[SignatureScheme::ED25519]);
        let shown = shown.unwrap();
        let [leaf, root] = &shown.cert[..] else { panic!("a leaf and a root") };
        let root = replaced(root, &honest.site_key().0, &weak.0);
        let mut leaf = replaced(leaf, &names[0], &names[1]);
        // SEQUENCE { what is signed, the algorithm (7 bytes), BIT STRING { the signature } }.
        let signature = leaf.len() - 64;
        let signed = leaf[4..signature - 10].to_vec();
        let holds = |by: &PublicKey| {
            let by = [&by.0[..], &NEUTRAL.0[32..]].concat().try_into().unwrap();
            let key = VerifyingKey::from_bytes(&weak.0).ok()?;
            key.verify(&signed, &Ed25519::from_bytes(&by)).is_ok().then_some(by)
        };
        leaf[signature..].copy_from_slice(&small_order().find_map(|by| holds(&by))?);
        let shown = CertifiedKey::new(vec![leaf.into(), root.into()], shown.key.clone());
        let mut config = (*config).clone();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown));
        Some(Arc::new(config))
    })
}

/// The same bytes with `old`, which is somewhere among them, replaced by `new`.
fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = bytes.windows(old.len()).position(|part| part == old).unwrap();
    [&bytes[..at], new, &bytes[at + old.len()..]].concat()
}
