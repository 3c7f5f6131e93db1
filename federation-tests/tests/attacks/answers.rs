//! Attacks by who is asked: m, as Source or Destination, answers what v's user wants.

use certs::Identity;
use federation_tests::process::Site;
use federation_tests::process::hostile::{Asked, Reply, site_key};
use model::statement::Fact;
use model::{
    Bytes, Certificate, Chain, Contract, EdgeHandle, Epoch, FileId, JournalMark, MigrationId,
    Monitoring, Offer, PublicKey, SecretKey, Signature, Signed, SiteKey, Statement, Terms, Time,
    Token, TransferEnd,
};
use proto::envelope::{RequestDigest, Sealer, seal_answer};
use proto::federation::Sealed;
use protocol::{Answer, Op, Outcome, Told};
use tonic::Status;
use transfer_proxy::{End, Serve, Share, TransferProxy};

use crate::forms::{Broken, NEUTRAL, bytes, certificate, small_order};
use crate::paths::{all, away};
use crate::stage::{Attack, Heard, Refused, Stage, a_key, attack, signed};

const ANSWER: &str = "application/vnd.sojourn.answer.v2";

const NO_PROOF: Refused = Refused::Words("has no proof: not believed");
const NOT_SIGNED: Refused = Refused::Words("a signature does not hold");
const NOT_THE_PEER: Refused = Refused::Words("not signed with the peer's key");
const MISDIRECTED: Refused = Refused::Words("are for somebody else");
const UNREADABLE: Refused = Refused::Words("not of a known version");

/// Answers to a request to pause v's VM, which goes on running.
pub(crate) const ANSWERS: &[Attack] = &[
    attack("an answer with a byte altered", NOT_SIGNED, |stage| {
        answered(stage, |_, answer| *hop(answer).body.last_mut().unwrap() ^= 1)
    }),
    attack("an answer that another peer has signed", NOT_THE_PEER, |stage| {
        let n = stage.n.identity().clone();
        let v = stage.v_key();
        answered(stage, move |asked, answer| *answer = sealed(&n, v, asked.digest, Answer::Done))
    }),
    attack("an answer with a peer's key and another's signature", NOT_SIGNED, |stage| {
        let n = stage.n.identity().clone();
        answered(stage, move |_, answer| sign(answer, ANSWER, &n))
    }),
    attack("an answer that was signed as a request", NOT_SIGNED, |stage| {
        let m = stage.m.identity().clone();
        let kind = "application/vnd.sojourn.hop.v2";
        answered(stage, move |_, answer| sign(answer, kind, &m))
    }),
    attack("an answer to another site", MISDIRECTED, |stage| {
        let m = stage.m.identity().clone();
        let n = site_key(&stage.federation["n"]);
        answered(stage, move |asked, answer| *answer = sealed(&m, n, asked.digest, Answer::Done))
    }),
    attack("an answer to another request", MISDIRECTED, |stage| {
        let mut first = None;
        let (m, v) = (stage.m.identity().clone(), stage.v_key());
        stage.m.answers(move |asked| {
            let digest = *first.get_or_insert(asked.digest);
            Reply::Sends(sealed(&m, v, digest, Answer::Done))
        });
        stage.v().run(&["vm", "pause", "away"]);
        pauses(stage)
    }),
    attack("an answer that is given again", MISDIRECTED, |stage| {
        let (m, v) = (stage.m.identity().clone(), stage.v_key());
        let mut first = None;
        stage.m.answers(move |asked| {
            let answer = || sealed(&m, v, asked.digest, Answer::Unknown);
            Reply::Sends(first.get_or_insert_with(answer).clone())
        });
        stage.v().run(&["vm", "pause", "away"]);
        pauses(stage)
    }),
    attack("an answer without a part", Refused::Words("a part is missing"), |stage| {
        answered(stage, |_, answer| answer.hop = None)
    }),
    attack("an answer larger than a message may be", Refused::Words("larger than"), |stage| {
        let (m, v) = (stage.m.identity().clone(), stage.v_key());
        answered(stage, move |asked, answer| {
            let reason = "x".repeat(1 << 20);
            *answer = sealed(&m, v, asked.digest, Answer::Failed { reason });
        })
    }),
    attack("an answer that is not known", UNREADABLE, |stage| {
        let m = stage.m.identity().clone();
        answered(stage, move |_, answer| {
            hop(answer).body[64] = 99;
            sign(answer, ANSWER, &m);
        })
    }),
    attack("an answer with more behind it", UNREADABLE, |stage| {
        let m = stage.m.identity().clone();
        answered(stage, move |_, answer| {
            hop(answer).body.push(0);
            sign(answer, ANSWER, &m);
        })
    }),
    attack("a longer journal that m remembers, and nobody has signed", NO_PROOF, |stage| {
        remembered(stage, |_, mark| proto::federation::JournalMark {
            signature: vec![],
            ..mark.into()
        })
    }),
    attack("a longer journal that m remembers, by its own signature", NO_PROOF, |stage| {
        remembered(stage, |stage, mark| {
            let m = stage.m.identity();
            JournalMark::new(mark.length, |kind, body| m.sign(kind, body)).into()
        })
    }),
    attack(
        "a longer journal that m remembers, under v's mark of a shorter one",
        NO_PROOF,
        |stage| remembered(stage, |_, mark| mark.into()),
    ),
    attack("an answer that is of another kind", Refused::Words("cannot be asked now"), |stage| {
        says(stage, Answer::Offers { offers: vec![], reasons: vec![] });
        pauses(stage)
    }),
];

const NO_PLACE: Refused = Refused::Words("exit 4");

/// Offers for a VM of v's.
pub(crate) const OFFERS: &[Attack] = &[
    attack("an offer whose transfer key nobody stands behind", NO_PLACE, |stage| {
        offered(stage, |_, offer, _| offer.target.proof = Signature([7; 64]))
    }),
    attack("an offer whose transfer key another key stands behind", NO_PLACE, |stage| {
        offered(stage, |_, offer, _| {
            let key = offer.target.transfer_key.0;
            offer.target.proof = a_key().sign(TransferEnd::TYPE, &key);
        })
    }),
    attack("an offer with a key behind which is no secret", NO_PLACE, |stage| {
        all(small_order().map(|weak| {
            offered(stage, move |_, offer, _| {
                (offer.target.vm_key, offer.target.proof) = (weak, NEUTRAL);
            })
        }))
    }),
    attack("an offer with a transfer key behind which is no secret", NO_PLACE, |stage| {
        all(small_order()
            .map(|weak| offered(stage, move |_, offer, key| offer.target = target(&weak, key))))
    }),
    attack("an offer by a relay behind whose key is no secret", NO_PLACE, |stage| {
        all(small_order()
            .map(|weak| offered(stage, move |_, offer, _| offer.target.relay = Some(weak))))
    }),
    attack("an offer without a contract", NO_PLACE, |stage| {
        offered(stage, |_, offer, _| offer.proposal = None)
    }),
    attack("an offer whose contract another site has signed", NO_PLACE, |stage| {
        let n = stage.n.identity().clone();
        offered(stage, move |made, offer, _| offer.proposal = Some(made.signed_by(&n)))
    }),
    attack("an offer on better terms than were signed", NO_PLACE, |stage| {
        offered(stage, |_, offer, _| offer.terms.price_milli = 1)
    }),
    attack("an offer of an edge that was not signed for", NO_PLACE, |stage| {
        offered(stage, |_, offer, _| offer.edge = EdgeHandle([7; 16]))
    }),
    attack("an offer with a contract of another VM", NO_PLACE, |stage| {
        let vm = stage.away.0;
        resigned(stage, move |contract| contract.vm = vm)
    }),
    attack("an offer with a contract with another site", NO_PLACE, |stage| {
        let n = site_key(&stage.federation["n"]);
        resigned(stage, move |contract| contract.customer = n)
    }),
    attack("an offer with a contract in another site's name", NO_PLACE, |stage| {
        let n = site_key(&stage.federation["n"]);
        resigned(stage, move |contract| contract.provider = n)
    }),
    attack("an offer for another descriptor", NO_PLACE, |stage| {
        resigned(stage, |contract| contract.descriptor = model::Digest([7; 32]))
    }),
];

const NOT_OWNER: Refused = Refused::Words("the source is not the VM's owner");

/// A Source's answers when v brings its VM home.
pub(crate) const PREPARED: &[Attack] = &[
    attack("a Source that does not own the VM", NOT_OWNER, |stage| {
        prepared(stage, |home| home.source = source(&a_key().public(), &a_key(), &home.source))
    }),
    attack("a Source that the owner does not stand behind", NOT_OWNER, |stage| {
        prepared(stage, |home| home.source.transfer_key = a_key().public())
    }),
    attack("a Source's transfer key behind which is no secret", NOT_OWNER, |stage| {
        all(small_order().take(2).map(|weak| {
            prepared(stage, |home| home.source = source(&weak, &home.owner, &home.source))
        }))
    }),
    attack("a Source that shows the chain of before", NOT_OWNER, |stage| {
        prepared(stage, |home| home.chain.certificates.truncate(1))
    }),
    attack(
        "a Source that shows another VM's chain",
        Refused::Words("not the key of VM"),
        |stage| {
            let other = stage.guest.chain.clone();
            prepared(stage, |home| home.chain = other)
        },
    ),
    attack(
        "a Source that shows a chain without its beginning",
        Refused::Words("certificate 0"),
        |stage| prepared(stage, |home| home.chain = home.broken().beheaded()),
    ),
    attack(
        "a Source that shows certificates out of order",
        Refused::Words("certificate 2"),
        |stage| prepared(stage, |home| home.chain = home.broken().swapped()),
    ),
];

const KEPT: Refused = Refused::Words("the Source kept it");

/// A Source's answers when v has everything of the VM that it brings home.
pub(crate) const RELEASED: &[Attack] = &[
    attack("a release that another key has signed", KEPT, |stage| {
        released(stage, |release, _| signed(release, &a_key()))
    }),
    attack("a release in the owner's name", KEPT, |stage| {
        released(stage, |release, owner| {
            let mut forged = signed(release, &a_key());
            forged.key = owner.public();
            forged
        })
    }),
    attack("a release to another owner", KEPT, |stage| {
        released(stage, |release, owner| {
            signed(&Certificate { owner: a_key().public(), ..release.clone() }, owner)
        })
    }),
    attack("a release of another epoch", KEPT, |stage| {
        released(stage, |release, owner| {
            signed(&Certificate { epoch: Epoch(7), ..release.clone() }, owner)
        })
    }),
    attack("a release of another VM", KEPT, |stage| {
        released(stage, |release, owner| {
            signed(&Certificate { vm: crate::forms::a_vm(), ..release.clone() }, owner)
        })
    }),
];

/// What is wrong with an answer that m gives as it should, if something is.
pub(crate) fn shows(stage: &Stage) -> Option<String> {
    let epoch = Epoch(1);
    says(stage, Answer::State { power: model::PowerState::Active, epoch, parked: None });
    let shown = stage.v().run(&["vm", "resume", "away"]);
    (shown.code != 0).then(|| format!("{shown:?}"))
}

/// What is wrong with an offer that m makes as it should, if something is.
pub(crate) fn offers(stage: &Stage) -> Option<String> {
    match offered(stage, |_, _, _| {}) {
        Heard::Words(words) if words.starts_with("exit 0") => None,
        Heard::Words(words) => Some(words),
        _ => Some("no words".to_owned()),
    }
}

fn words(site: &Site, arguments: &[&str]) -> Heard {
    let said = site.run(arguments);
    Heard::Words(format!("exit {}: {} {}", said.code, said.err, said.out))
}

pub(crate) fn pauses(stage: &Stage) -> Heard {
    let heard = words(stage.v(), &["vm", "pause", "away"]);
    stage.m.answers(|_| Reply::Ends(Status::unavailable("not now")));
    heard
}

/// m greets v anew, and remembers a journal of v's that is longer than there ever was: v's last
/// mark, at another length, made into something.
fn remembered(
    stage: &Stage,
    made: impl Fn(&Stage, JournalMark) -> proto::federation::JournalMark,
) -> Heard {
    greets_again(stage);
    let shown = stage.m.shown().expect("v has greeted m");
    let before = stage.v().log_text().matches("has no proof").count();
    let length = u64::MAX >> 1;
    stage.m.remembers(Some(made(stage, JournalMark { length, ..shown })));
    greets_again(stage);
    stage.m.remembers(None);
    let log = stage.v().log_text();
    let heard = log.match_indices("a peer says that it remembers").skip(before).map(|(at, _)| at);
    Heard::Words(heard.map(|at| log[at..].lines().next().unwrap_or_default()).collect())
}

/// A call that fails is the last on its connection; v tries again, on a new one.
fn greets_again(stage: &Stage) {
    let mut has_failed = false;
    stage.m.answers(move |_| {
        if std::mem::replace(&mut has_failed, true) {
            Reply::Says(Answer::Failed { reason: "not now".to_owned() })
        } else {
            Reply::Ends(Status::unavailable("not now"))
        }
    });
    pauses(stage);
}

fn says(stage: &Stage, answer: Answer) {
    stage.m.answers(move |_| Reply::Says(answer.clone()));
}

pub(crate) fn sealed(by: &Identity, to: SiteKey, request: RequestDigest, answer: Answer) -> Sealed {
    let sign = |kind: &str, body: &[u8]| by.sign(kind, body);
    let sealer = Sealer { site: by.site_key(), sign: &sign, journal: JournalMark::new(1, sign) };
    seal_answer(&sealer, to, request, answer)
}

pub(crate) fn hop(answer: &mut Sealed) -> &mut proto::federation::Part {
    answer.hop.as_mut().unwrap()
}

fn sign(answer: &mut Sealed, kind: &str, by: &Identity) {
    let hop = hop(answer);
    hop.signature = by.sign(kind, &hop.body).0.to_vec();
}

/// v's user pauses the VM that is at m, whose answer says that it is so, and is then altered.
pub(crate) fn answered(
    stage: &Stage,
    alter: impl Fn(&Asked, &mut Sealed) + Send + 'static,
) -> Heard {
    let (m, v) = (stage.m.identity().clone(), stage.v_key());
    let epoch = Epoch(1);
    let paused = Answer::State { power: model::PowerState::Paused, epoch, parked: None };
    stage.m.answers(move |asked| {
        let mut answer = sealed(&m, v, asked.digest, paused.clone());
        alter(asked, &mut answer);
        Reply::Sends(answer)
    });
    pauses(stage)
}

/// The contract that comes with an offer of m's.
struct Made(Contract);

impl Made {
    fn signed_by(&self, by: &Identity) -> Signature {
        self.0.clone().propose(|kind, body| by.sign(kind, body)).provider
    }
}

pub(crate) fn target(shows: &PublicKey, by: &SecretKey) -> TransferEnd {
    TransferEnd {
        uri: "sojourn://127.0.0.1:1".parse().unwrap(),
        token: Token([7; 32]),
        relay: None,
        transfer_key: *shows,
        vm_key: by.public(),
        proof: by.sign(TransferEnd::TYPE, &shows.0),
    }
}

/// v's user asks m for a place for a VM; m's offer is sound before it is altered.
fn offered(stage: &Stage, alter: impl Fn(&Made, &mut Offer, &SecretKey) + Send + 'static) -> Heard {
    let (m, customer) = (stage.m.identity().clone(), stage.v_key());
    stage.m.answers(move |asked| {
        let Op::MigrationRequest { vm, descriptor, .. } = &asked.request.origin.op else {
            return Reply::Says(Answer::Done);
        };
        let (edge, key) = (EdgeHandle(rand::random()), a_key());
        let terms = Terms {
            price_milli: 5,
            penalty_milli: 0,
            class: "standard".to_owned(),
            country: String::new(),
            expires: Time(u64::MAX),
            runs: true,
        };
        let (vm, descriptor, provider) = (*vm, descriptor.digest(), m.site_key());
        let terms_signed = terms.clone();
        let made = Made(Contract { vm, descriptor, edge, provider, customer, terms: terms_signed });
        let proposal = Some(made.signed_by(&m));
        let target = target(&a_key().public(), &key);
        let mut offer = Offer { edge, target, terms, proposal, distance: 0 };
        alter(&made, &mut offer, &key);
        Reply::Says(Answer::Offers { offers: vec![offer], reasons: vec![] })
    });
    words(stage.v(), &["vm", "place", "home", "--peer", "m", "--dry-run"])
}

/// The same, with a contract that m has signed, and that is another one.
fn resigned(stage: &Stage, alter: impl Fn(&mut Contract) + Send + 'static) -> Heard {
    let m = stage.m.identity().clone();
    offered(stage, move |made, offer, _| {
        let mut contract = made.0.clone();
        alter(&mut contract);
        offer.proposal = Some(Made(contract).signed_by(&m));
    })
}

/// What m has of v's VM.
struct Home {
    owner: SecretKey,
    chain: Chain,
    vm: model::VmId,
    source: TransferEnd,
}

impl Home {
    fn of(stage: &Stage) -> Self {
        let (chain, owner) = away(stage);
        let shown = a_key();
        let source = TransferEnd { uri: stage.m.proxy().uri(), ..target(&shown.public(), &owner) };
        Self { owner, chain, vm: stage.away.0, source }
    }

    fn broken(&self) -> Broken<'_> {
        Broken { chain: &self.chain, vm: self.vm, owner: &self.owner }
    }

    fn aborted(&self, migration: MigrationId) -> Signed<Statement> {
        signed(&Statement { vm: self.vm, migration, fact: Fact::Aborted }, &self.owner)
    }
}

fn source(shows: &PublicKey, by: &SecretKey, of: &TransferEnd) -> TransferEnd {
    TransferEnd { uri: of.uri.clone(), ..target(shows, by) }
}

/// v's user brings the VM home that is at m, which says that it is ready in some wrong way.
fn prepared(stage: &Stage, alter: impl FnOnce(&mut Home)) -> Heard {
    let mut home = Home::of(stage);
    alter(&mut home);
    stage.m.answers(move |asked| match &asked.request.origin.op {
        Op::ForcedMigration { .. } => Reply::Says(Answer::Prepared {
            source: home.source.clone(),
            chain: home.chain.clone(),
            active: false,
            profile: None,
            monitoring: Monitoring::default(),
        }),
        Op::TransferVerification { migration, .. } => {
            Reply::Says(Answer::Verified(Outcome::Aborted(home.aborted(*migration))))
        }
        _ => Reply::Ends(Status::unavailable("not now")),
    });
    words(stage.v(), &["vm", "migrate", "away", "--local-only"])
}

/// v's user brings the VM home, m sends all of it, and then says that it is v's, in some wrong way:
/// by the path and over the session. In the end it says that it has kept it.
fn released(stage: &Stage, forge: fn(&Certificate, &SecretKey) -> Signed<Certificate>) -> Heard {
    let home = Home::of(stage);
    let proxy = stage.m.proxy().clone();
    let disk = stage.federation.folder().join("home.raw");
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let (token, shown) = (Token(rand::random()), a_key());
    let mut tries = 0;
    stage.m.answers(move |asked| match &asked.request.origin.op {
        Op::ForcedMigration { migration, target_transfer_key, .. } => {
            let serve = Serve {
                migration: *migration,
                vm: home.vm,
                token_hash: token.hash(),
                hint: token.hint(),
                key: shown.clone(),
                peer_key: *target_transfer_key,
                byte_budget: Bytes::mib(64),
                dial: None,
                share: Share::default(),
            };
            proxy.serve(serve).unwrap();
            proxy.provide(*migration, vec![(FileId::disk(0), disk.clone())]);
            let source = source(&shown.public(), &home.owner, &home.source);
            Reply::Says(Answer::Prepared {
                source: TransferEnd { token: token.clone(), ..source },
                chain: home.chain.clone(),
                active: false,
                profile: None,
                monitoring: Monitoring::default(),
            })
        }
        Op::TransferVerification { migration, ready, .. } => {
            tries += 1;
            let ready = ready.as_ref().and_then(|ready| Some((ready.peek().ok()?, ready.key)));
            let tell = |told: Told| proxy.tell(*migration, End::Source, bytes(&told)).unwrap();
            match ready {
                Some((Statement { fact: Fact::Ready { digest }, .. }, owner)) if tries == 1 => {
                    let epoch = home.chain.certificates.len() as u64;
                    let cause = model::statement::Cause::Release { migration: *migration, digest };
                    let release = certificate(home.vm, epoch, &home.owner);
                    let release = Certificate { owner, cause, ..release };
                    let forged = forge(&release, &home.owner);
                    tell(Told::Released(forged.clone()));
                    Reply::Says(Answer::Verified(Outcome::Released(forged)))
                }
                _ => {
                    let aborted = home.aborted(*migration);
                    tell(Told::Aborted(aborted.clone()));
                    Reply::Says(Answer::Verified(Outcome::Aborted(aborted)))
                }
            }
        }
        _ => Reply::Ends(Status::unavailable("not now")),
    });
    let heard = words(stage.v(), &["vm", "migrate", "away", "--local-only"]);
    stage.dropped();
    heard
}
