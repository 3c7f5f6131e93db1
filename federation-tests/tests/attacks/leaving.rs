//! Attacks on a Source: on the token that it gives out, on its one decision, and on what it keeps
//! until the Destination has the VM.

use federation_tests::bench::clock;
use federation_tests::process::SOON;
use model::key::Payload;
use model::statement::{Cause, Fact};
use model::{
    Bytes, Certificate, Digest, Epoch, FileId, MigrationId, SecretKey, Signed, Statement, Token,
};
use protocol::{Action, Answer, Op, Outcome, SourceStep};
use transfer_proxy::{End, Event, Pull, Share, TransferProxy};

use crate::forms::{NEUTRAL, a_vm, small_order, zeros};
use crate::paths::all;
use crate::stage::{Attack, Heard, Leave, Refused, Stage, a_hop, a_key, attack, request, signed};

/// What every bad token gets.
const REFUSED: Refused = Refused::Words("refused");
const NOT_SIGNED: Refused = Refused::Open("READY is not signed by the Destination");

/// Before anything was given out.
pub(crate) const RUNNING: &[Attack] = &[
    attack("a Destination behind whose key is no secret", WEAK, |stage| {
        all(small_order().map(|weak| forced(stage, |vm_key, _| *vm_key = weak)))
    }),
    attack("a Destination's transfer key behind which is no secret", WEAK, |stage| {
        all(small_order().map(|weak| forced(stage, |_, transfer_key| *transfer_key = weak)))
    }),
];

const WEAK: Refused = Refused::Failed("is no key that can sign");

/// With a token given out.
pub(crate) const OFFERED: &[Attack] = &[
    attack("a second migration of a VM that is leaving", Refused::Conflict, |stage| {
        forced(stage, |_, _| {})
    }),
    attack("a migration taken over by another key", Refused::Unknown, |stage| {
        let mut request = stage.force(&stage.leave);
        let key = a_key();
        request.origin.key = key.public();
        stage.ask(&request, &key)
    }),
    attack("a migration that another peer asks about", Refused::Unknown, |stage| {
        stage.n_says(stage.verification(None).origin.op, stage.edge())
    }),
    attack("a migration given up by another key", Refused::Unknown, |stage| {
        let mut request = stage.verification(None);
        let key = a_key();
        request.origin.key = key.public();
        stage.ask(&request, &key)
    }),
    attack("READY before anything was sent", Refused::Open("has not read everything"), |stage| {
        stage.ask(&stage.verification(Some(ready(stage, Digest([7; 32])))), &stage.leave.controller)
    }),
    attack("a request for a token, sent again", Refused::AsBefore, |stage| stage.again("force")),
    attack("a token that was guessed", REFUSED, |stage| {
        pulled(stage, |pull| pull.token = Token(rand::random()))
    }),
    attack("a token of nothing", REFUSED, |stage| {
        pulled(stage, |pull| pull.token = Token([0; 32]))
    }),
    attack("a token without its key", REFUSED, |stage| pulled(stage, |pull| pull.key = a_key())),
    attack("a token from the Destination's side of another VM", REFUSED, |stage| {
        pulled(stage, |pull| pull.token = stage.coming.bid.offer.target.token.clone())
    }),
    attack("a token with one bit altered", REFUSED, |stage| {
        pulled(stage, |pull| pull.token.0[31] ^= 1)
    }),
    attack("a Source that is not the one that was meant", REFUSED, |stage| {
        pulled(stage, |pull| pull.peer_key = a_key().public())
    }),
];

/// After the migration was given up.
pub(crate) const WITHDRAWN: &[Attack] = &[
    attack("a token after it was revoked", REFUSED, |stage| pulled(stage, |_| {})),
    attack("a request to give up, sent again", Refused::AsBefore, |stage| stage.again("abort")),
    attack("READY after it was given up", Refused::AsBefore, |stage| {
        let before = stage.kept()["abort"].answer.clone();
        let ready = ready(stage, Digest([7; 32]));
        let now = stage.m.ask(stage.v(), &stage.verification(Some(ready)), &stage.leave.controller);
        now.map_or_else(Heard::Ended, |now| Heard::Again(Box::new(before), Box::new(now)))
    }),
    attack("a VM handed back that has not left", Refused::Failed("not in a state"), |stage| {
        returned(stage, |certificate| signed(certificate, &stage.leave.vm_key))
    }),
];

/// With everything sent, and nothing decided.
pub(crate) const SENT: &[Attack] = &[
    attack("a token that is used, with another key", REFUSED, |stage| {
        pulled(stage, |pull| pull.key = a_key())
    }),
    attack("the token of a migration that was given up before", REFUSED, |stage| {
        let Answer::Prepared { source, .. } = &stage.kept()["force"].answer else { unreachable!() };
        pulled(stage, |pull| pull.token = source.token.clone())
    }),
    attack(
        "another Destination for what was sent",
        Refused::Failed("another Destination"),
        |stage| {
            let Leave { migration, controller, transfer, .. } = &stage.leave;
            let (controller, transfer) = (controller.clone(), transfer.clone());
            let other = Leave { migration: *migration, controller, transfer, vm_key: a_key() };
            stage.ask(&stage.force(&other), &other.controller)
        },
    ),
    attack("READY signed by another key", NOT_SIGNED, |stage| {
        stated(stage, |ready| signed(ready, &a_key()))
    }),
    attack("READY in the Destination's name", NOT_SIGNED, |stage| {
        stated(stage, |ready| {
            let mut forged = signed(ready, &a_key());
            forged.key = stage.leave.vm_key.public();
            forged
        })
    }),
    attack("READY signed as something else", NOT_SIGNED, |stage| {
        stated(stage, |ready| {
            let key = &stage.leave.vm_key;
            Signed::seal(ready, key.public(), |_, body| key.sign(Certificate::TYPE, body))
        })
    }),
    attack("READY by a key behind which is no secret", NOT_SIGNED, |stage| {
        all(small_order()
            .map(|weak| stated(stage, |ready| zeros(signed(ready, &stage.leave.vm_key), weak))))
    }),
    attack("READY of another migration", Refused::Open("for another migration"), |stage| {
        meant(stage, |ready| ready.migration = stage.guest.migration)
    }),
    attack("READY of another VM", Refused::Open("for another migration"), |stage| {
        meant(stage, |ready| ready.vm = a_vm())
    }),
    attack("READY of other data", Refused::Differs, |stage| {
        meant(stage, |ready| ready.fact = Fact::Ready { digest: Digest([7; 32]) })
    }),
    attack("OWNED in the place of READY", Refused::Differs, |stage| {
        meant(stage, |ready| ready.fact = Fact::Owned { epoch: Epoch(2) })
    }),
    attack("a section while it is leaving", Refused::Conflict, |stage| {
        let mut section = model::Monitoring { revision: 5, ..Default::default() };
        section.vouch(|kind, body| stage.guest.k0.sign(kind, body));
        stage.says(Op::Monitor { vm: stage.guest.vm, section }, stage.edge())
    }),
    attack("a VM destroyed while it is leaving", Refused::Conflict, |stage| {
        stage.says(stage.destroy(), stage.edge())
    }),
    attack("a VM handed back that was not released", Refused::Failed("not in a state"), |stage| {
        returned(stage, |certificate| signed(certificate, &stage.leave.vm_key))
    }),
];

const NOT_OWNED: Refused = Refused::Failed("the Destination's statement does not hold");
const NOT_BACK: Refused = Refused::Failed("does not give the VM back");

/// With the VM released, and not owned by the Destination.
pub(crate) const RELEASED: &[Attack] = &[
    attack("READY, sent again", Refused::AsBefore, |stage| stage.again("ready")),
    attack("a VM started that was released", Refused::Failed("handed over"), |stage| {
        stage.says(Op::Control { vm: stage.guest.vm, action: Action::Start }, stage.edge())
    }),
    attack("a VM destroyed that was released", Refused::Failed("handed over"), |stage| {
        stage.says(stage.destroy(), stage.edge())
    }),
    attack("a handback that another key has signed", Refused::Failed("certificate 3"), |stage| {
        returned(stage, |certificate| signed(certificate, &a_key()))
    }),
    attack(
        "a handback that an earlier owner has signed",
        Refused::Failed("certificate 3"),
        |stage| returned(stage, |certificate| signed(certificate, &stage.guest.owner)),
    ),
    attack("a handback of another VM", Refused::Failed("certificate 3"), |stage| {
        back(stage, |certificate| certificate.vm = a_vm())
    }),
    attack("a handback for the epoch that it had", Refused::Failed("certificate 3"), |stage| {
        back(stage, |certificate| certificate.epoch = Epoch(1))
    }),
    attack("a handback to another site", NOT_BACK, |stage| {
        back(stage, |certificate| certificate.owner = a_key().public())
    }),
    attack("a handback that releases it anew", NOT_BACK, |stage| {
        let (migration, digest) = (stage.leave.migration, Digest([7; 32]));
        back(stage, |certificate| certificate.cause = Cause::Release { migration, digest })
    }),
    attack("a handback of another migration", NOT_BACK, |stage| {
        let migration = stage.guest.migration;
        back(stage, |certificate| certificate.cause = Cause::Handback { migration })
    }),
    attack("OWNED signed by another key", NOT_OWNED, |stage| {
        retired(stage, &a_key(), Fact::Owned { epoch: Epoch(2) })
    }),
    attack("OWNED of another epoch", NOT_OWNED, |stage| {
        retired(stage, &stage.leave.vm_key, Fact::Owned { epoch: Epoch(3) })
    }),
    attack("READY in the place of OWNED", NOT_OWNED, |stage| {
        retired(stage, &stage.leave.vm_key, Fact::Ready { digest: Digest([7; 32]) })
    }),
    attack("ABORTED in the place of OWNED", NOT_OWNED, |stage| {
        retired(stage, &stage.leave.vm_key, Fact::Aborted)
    }),
    attack("OWNED with a signature of nothing", NOT_OWNED, |stage| {
        let mut owned = owned(stage, &stage.leave.vm_key, Fact::Owned { epoch: Epoch(2) });
        owned.signature = NEUTRAL;
        stage.says(retire(stage, owned), stage.edge())
    }),
    attack("what was released is given up", Refused::AsBefore, |stage| {
        let before = stage.kept()["ready"].answer.clone();
        let now = stage.m.ask(stage.v(), &stage.verification(None), &stage.leave.controller);
        now.map_or_else(Heard::Ended, |now| Heard::Again(Box::new(before), Box::new(now)))
    }),
];

/// Every command of before, with the VM where it was again; also after a restart.
pub(crate) const REPEATED: &[Attack] = &[
    attack("the order to fetch, sent again", Refused::AsBefore, |s| s.again("initiate")),
    attack("the certificate, sent again", Refused::AsBefore, |s| s.again("deliver")),
    attack("the order to give up, sent again later", Refused::AsBefore, |s| s.again("abort")),
    attack("READY, sent again later", Refused::AsBefore, |s| s.again("ready")),
    attack("the handback, sent again", Refused::AsBefore, |s| s.again("handback")),
    attack("a token of a VM that came back", REFUSED, |stage| pulled(stage, |_| {})),
];

pub(crate) const REPEATED_AFTER_A_RESTART: &[Attack] = &[
    attack("the order to fetch, sent again after a restart", Refused::AsBefore, |s| {
        s.again("initiate")
    }),
    attack("the certificate, sent again after a restart", Refused::AsBefore, |s| {
        s.again("deliver")
    }),
    attack("the order to give up, sent again after a restart", Refused::AsBefore, |s| {
        s.again("abort")
    }),
    attack("READY, sent again after a restart", Refused::AsBefore, |s| s.again("ready")),
    attack("the handback, sent again after a restart", Refused::AsBefore, |s| s.again("handback")),
    attack("a token of a VM that came back, after a restart", REFUSED, |stage| {
        pulled(stage, |_| {})
    }),
    attack(
        "an offer taken after a restart",
        Refused::Gone("has expired or was withdrawn"),
        |stage| {
            let mut again = stage.initiate(&stage.guest);
            let Op::InitiateTransfer { migration, .. } = &mut again.origin.op else {
                unreachable!()
            };
            *migration = MigrationId(rand::random());
            stage.ask(&again, &stage.guest.controller)
        },
    ),
];

/// Where offers and tokens do not last.
pub(crate) const LATE: &[Attack] = &[
    attack("an offer that has expired", Refused::Gone("has expired or was withdrawn"), |stage| {
        let bid = stage.bid();
        stage.federation.wait_for("the offer expires", SOON, || {
            let left = bid.offer.terms.expires.since(clock());
            if left.is_zero() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        stage.ask(&stage.initiate(&bid), &bid.controller)
    }),
    attack("a token that has expired", REFUSED, |stage| pulled(stage, |_| {})),
];

// What leads from one to the next.

pub(crate) fn offer(stage: &mut Stage) {
    stage.keep("force", &stage.force(&stage.leave), &stage.leave.controller);
    stage.prepared = prepared(stage, "force");
}

pub(crate) fn withdraw(stage: &mut Stage) {
    let answer = stage.keep("abort", &stage.verification(None), &stage.leave.controller);
    assert!(matches!(answer, Answer::Verified(Outcome::Aborted(_))), "{answer:?}");
    stage.guest_runs();
}

pub(crate) fn send(stage: &mut Stage) {
    stage.leave = Leave::new();
    stage.keep("force again", &stage.force(&stage.leave), &stage.leave.controller);
    stage.prepared = prepared(stage, "force again");
    let mut pull = pull(stage);
    pull.migration = stage.leave.migration;
    stage.m.proxy().pull(pull).unwrap();
    stage.sent = stage.m.told(|event| match event {
        Event::Received { digest, .. } => Some(*digest),
        Event::Failed { final_: true, error, .. } => panic!("{error}"),
        _ => None,
    });
    stage.federation.wait_for("v has sent everything", SOON, || {
        let migration = &stage.v().state().migrations[&stage.leave.migration];
        let step = migration.source.as_ref().map(|source| source.step);
        if step == Some(SourceStep::Sent) { Ok(()) } else { Err(format!("{step:?}")) }
    });
}

pub(crate) fn release(stage: &mut Stage) {
    let ready = ready(stage, stage.sent);
    let answer = stage.keep("ready", &stage.verification(Some(ready)), &stage.leave.controller);
    assert!(matches!(answer, Answer::Verified(Outcome::Released(_))), "{answer:?}");
}

pub(crate) fn hand_back(stage: &mut Stage) {
    let certificate = signed(&handback(stage), &stage.leave.vm_key);
    let op = Op::Handback { vm: stage.guest.vm, migration: stage.leave.migration, certificate };
    let request = request(op, &stage.leave.controller, a_hop(stage.edge()));
    let answer = stage.keep("handback", &request, &stage.leave.controller);
    assert_eq!(answer, Answer::Done);
    stage.m.proxy().close(stage.leave.migration, End::Target);
    stage.guest_runs();
}

pub(crate) fn restart(stage: &mut Stage) {
    stage.v().crash();
    stage.guest_runs();
}

/// v's offers and tokens last for a second or two; a token is given out, and expires.
pub(crate) fn grow_late(stage: &mut Stage) {
    stage.v().stop();
    stage.v().configure("time", "offer_s", 1);
    stage.v().configure("time", "migration_s", 2);
    stage.v().start();
    stage.guest_runs();
    stage.leave = Leave::new();
    stage.keep("force late", &stage.force(&stage.leave), &stage.leave.controller);
    stage.prepared = prepared(stage, "force late");
    stage.federation.wait_for("v waits no longer", SOON, || {
        let migration = &stage.v().state().migrations[&stage.leave.migration];
        let step = migration.source.as_ref().map(|source| source.step);
        if step == Some(SourceStep::Aborted) { Ok(()) } else { Err(format!("{step:?}")) }
    });
}

/// m is told that the guest is not executing, for it is leaving.
pub(crate) fn guest_waits(stage: &Stage) -> Option<String> {
    let show = Op::Control { vm: stage.guest.vm, action: Action::Show };
    match stage.says(show, stage.edge()) {
        Heard::Says(Answer::State { power: model::PowerState::Suspended, .. }) => None,
        Heard::Says(answer) => Some(format!("{answer:?}")),
        _ => Some("there was no answer".to_owned()),
    }
}

/// m is told once more that the guest is its own.
pub(crate) fn stays_released(stage: &Stage) -> Option<String> {
    stage.again("ready").fault(&Refused::AsBefore)
}

// What the attacks are made of.

fn prepared(stage: &Stage, name: &str) -> Option<model::TransferEnd> {
    match &stage.kept()[name].answer {
        Answer::Prepared { source, .. } => Some(source.clone()),
        other => panic!("{other:?}"),
    }
}

/// m asks for the guest, with keys of its choice.
fn forced(
    stage: &Stage,
    alter: impl FnOnce(&mut model::PublicKey, &mut model::PublicKey),
) -> Heard {
    let leave = Leave::new();
    let mut request = stage.force(&leave);
    let Op::ForcedMigration { target_vm_key, target_transfer_key, .. } = &mut request.origin.op
    else {
        unreachable!()
    };
    alter(target_vm_key, target_transfer_key);
    stage.ask(&request, &leave.controller)
}

/// What m's proxy must do to get the guest's files. The transfer has another name at m each time,
/// so that one is not taken for another.
fn pull(stage: &Stage) -> Pull {
    let source = stage.prepared.as_ref().unwrap();
    let migration = MigrationId(rand::random());
    Pull {
        migration,
        vm: stage.guest.vm,
        from: source.uri.clone(),
        token: source.token.clone(),
        relay: None,
        key: stage.leave.transfer.clone(),
        peer_key: source.transfer_key,
        folder: stage.federation.folder().join(format!("taken-{migration}")),
        budget: Bytes::mib(1024),
        expected: vec![FileId::disk(0), FileId::STATE, FileId::HISTORY],
        basis: vec![],
        carrier: None,
        share: Share::default(),
    }
}

/// m's proxy tries to get the guest's files, in a way that is wrong in some respect.
pub(crate) fn pulled(stage: &Stage, alter: impl FnOnce(&mut Pull)) -> Heard {
    let mut pull = pull(stage);
    alter(&mut pull);
    let (migration, folder) = (pull.migration, pull.folder.clone());
    stage.m.proxy().pull(pull).unwrap();
    let words = stage.m.told(|event| match event {
        Event::Failed { error, .. } if event.transfer().0 == migration => Some(error.clone()),
        Event::Received { .. } => Some("everything was handed out".to_owned()),
        _ => None,
    });
    stage.m.proxy().close(migration, End::Target);
    Heard::Words(if folder.exists() { format!("files were written: {words}") } else { words })
}

fn ready(stage: &Stage, digest: Digest) -> Signed<Statement> {
    let (vm, migration) = (stage.guest.vm, stage.leave.migration);
    signed(&Statement { vm, migration, fact: Fact::Ready { digest } }, &stage.leave.vm_key)
}

/// m shows a READY that is not the Destination's word.
fn stated(stage: &Stage, seal: impl FnOnce(&Statement) -> Signed<Statement>) -> Heard {
    let (vm, migration) = (stage.guest.vm, stage.leave.migration);
    let honest = Statement { vm, migration, fact: Fact::Ready { digest: stage.sent } };
    stage.ask(&stage.verification(Some(seal(&honest))), &stage.leave.controller)
}

/// m shows a READY that says something else.
fn meant(stage: &Stage, alter: impl FnOnce(&mut Statement)) -> Heard {
    stated(stage, |ready| {
        let mut ready = ready.clone();
        alter(&mut ready);
        signed(&ready, &stage.leave.vm_key)
    })
}

/// The certificate by which v owns the guest again.
fn handback(stage: &Stage) -> Certificate {
    let known = &stage.v().state().migrations[&stage.leave.migration];
    let owner = known.source.as_ref().unwrap().copy.key;
    let cause = Cause::Handback { migration: stage.leave.migration };
    Certificate { vm: stage.guest.vm, epoch: Epoch(3), owner, cause }
}

fn returned(stage: &Stage, seal: impl FnOnce(&Certificate) -> Signed<Certificate>) -> Heard {
    let certificate = seal(&handback(stage));
    let op = Op::Handback { vm: stage.guest.vm, migration: stage.leave.migration, certificate };
    stage.says(op, stage.edge())
}

fn back(stage: &Stage, alter: impl FnOnce(&mut Certificate)) -> Heard {
    returned(stage, |certificate| {
        let mut certificate = certificate.clone();
        alter(&mut certificate);
        signed(&certificate, &stage.leave.vm_key)
    })
}

fn owned(stage: &Stage, by: &SecretKey, fact: Fact) -> Signed<Statement> {
    signed(&Statement { vm: stage.guest.vm, migration: stage.leave.migration, fact }, by)
}

fn retire(stage: &Stage, owned: Signed<Statement>) -> Op {
    Op::Retire { vm: stage.guest.vm, migration: stage.leave.migration, owned }
}

fn retired(stage: &Stage, by: &SecretKey, fact: Fact) -> Heard {
    stage.says(retire(stage, owned(stage, by, fact)), stage.edge())
}
