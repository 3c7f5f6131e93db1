//! Attacks by a Destination that has everything of v's VM, and is told that it owns it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use federation_tests::process::SOON;
use federation_tests::process::hostile::{Asked, Reply};
use model::statement::{Cause, Fact};
use model::{
    Bytes, Certificate, Contract, Digest, EdgeHandle, Epoch, FileId, MigrationId, Offer, PublicKey,
    SecretKey, Signed, Statement, Terms, Time,
};
use protocol::{Action, Answer, Op};
use tonic::Status;
use transfer_proxy::{Event, Pull, Share, TransferProxy};

use crate::answers::target;
use crate::stage::{Attack, Heard, Refused, Stage, a_key, attack, signed};

/// What m knows of the VM that comes to it.
pub(crate) struct Handing {
    owner: SecretKey,
    migration: MigrationId,
    certificate: Certificate,
    /// v's key of the VM, until it was released.
    before: PublicKey,
}

const NOT_OWNED: Refused = Refused::Words("a statement that does not hold");
const NOT_BACK: Refused = Refused::Words("an answer that does not fit the request");

pub(crate) const ATTACKS: &[Attack] = &[
    attack("a handback of the Destination's that is none", NOT_BACK, |stage| {
        let owner = stage.handing.as_ref().unwrap().owner.public();
        let junk = Signed::from_parts(vec![7], owner, crate::forms::NEUTRAL);
        says(stage, Answer::HandedBack { certificate: junk })
    }),
    attack("a handback in the Destination's name", NOT_BACK, |stage| {
        let mut forged = signed(&back(stage), &a_key());
        forged.key = stage.handing.as_ref().unwrap().owner.public();
        says(stage, Answer::HandedBack { certificate: forged })
    }),
    attack("OWNED by another key", NOT_OWNED, |stage| {
        says(stage, Answer::Owned { statement: signed(&owned(stage), &a_key()) })
    }),
    attack("OWNED of an epoch that nobody gave", NOT_OWNED, |stage| {
        let statement = Statement { fact: Fact::Owned { epoch: Epoch(9) }, ..owned(stage) };
        let owner = &stage.handing.as_ref().unwrap().owner;
        says(stage, Answer::Owned { statement: signed(&statement, owner) })
    }),
];

/// Somebody else is answered at once, while v asks m again and again.
pub(crate) fn other_answers(stage: &Stage) -> Option<String> {
    let show = Op::Control { vm: stage.other.0, action: Action::Show };
    match stage.n_says(show, Some(stage.other.1)) {
        Heard::Says(Answer::State { .. }) => None,
        Heard::Says(answer) => Some(format!("{answer:?}")),
        _ => Some("there was no answer".to_owned()),
    }
}

/// v's user places a VM at m, which fetches it as it should. v releases it, and tells m so.
pub(crate) fn fetch(stage: &mut Stage) {
    let (owner, transfer) = (a_key(), a_key());
    let (fetched, given) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let fetches = Fetches {
        owner: owner.clone(),
        transfer,
        fetched: fetched.clone(),
        given: given.clone(),
        folder: stage.federation.folder().join("fetched"),
    };
    let (m, v, proxy) = (stage.m.identity().clone(), stage.v_key(), stage.m.proxy().clone());
    stage.m.answers(move |asked| match &asked.request.origin.op {
        Op::MigrationRequest { .. } => Reply::Says(Answer::Offers {
            offers: vec![fetches.offer(asked, &m, v)],
            reasons: vec![],
        }),
        _ => fetches.reply(asked, &proxy),
    });
    let before = stage.v().state().vms[&stage.home].chain.newest().owner;
    stage.v().done(&["vm", "place", "home", "--peer", "m", "--detach"]);
    let digest = stage.m.told(|event| match event {
        Event::Received { digest, .. } => Some(*digest),
        _ => None,
    });
    *fetched.lock().unwrap() = Some(digest);
    let (migration, certificate) = stage.federation.wait_for("v gives the VM to m", SOON, || {
        let given: Option<(MigrationId, Signed<Certificate>)> = given.lock().unwrap().clone();
        given.ok_or("it does not yet".to_owned())
    });
    let certificate = certificate.peek().unwrap();
    stage.handing = Some(Handing { owner, migration, certificate, before });
}

/// A migration, and the certificate that came of it.
type Given = (MigrationId, Signed<Certificate>);

/// How m fetches a VM.
struct Fetches {
    owner: SecretKey,
    transfer: SecretKey,
    /// The digest of what has arrived.
    fetched: Arc<Mutex<Option<Digest>>>,
    /// The certificate that came.
    given: Arc<Mutex<Option<Given>>>,
    folder: std::path::PathBuf,
}

impl Fetches {
    fn offer(&self, asked: &Asked, m: &certs::Identity, customer: model::SiteKey) -> Offer {
        let Op::MigrationRequest { vm, descriptor, .. } = &asked.request.origin.op else {
            unreachable!("the caller has looked")
        };
        let (vm, descriptor) = (*vm, descriptor.digest());
        let (edge, provider) = (EdgeHandle(rand::random()), m.site_key());
        let terms = Terms {
            price_milli: 0,
            penalty_milli: 0,
            class: "standard".to_owned(),
            country: String::new(),
            expires: Time(u64::MAX),
            runs: true,
        };
        let contract = Contract { vm, descriptor, edge, provider, customer, terms: terms.clone() };
        let proposal = Some(contract.propose(|kind, body| m.sign(kind, body)).provider);
        let target = target(&self.transfer.public(), &self.owner);
        Offer { edge, target, terms, proposal, distance: 0 }
    }

    fn reply(&self, asked: &Asked, proxy: &transfer_proxy::Proxy) -> Reply {
        let not_now = Reply::Ends(Status::unavailable("not now"));
        match &asked.request.origin.op {
            Op::InitiateTransfer { vm, migration, .. } => {
                if let Some(digest) = *self.fetched.lock().unwrap() {
                    let (vm, migration) = (*vm, *migration);
                    let ready = Statement { vm, migration, fact: Fact::Ready { digest } };
                    let (ready, size) = (signed(&ready, &self.owner), Bytes(1));
                    return Reply::Says(Answer::Arrived { ready, size, wire: size });
                }
                let source = asked.request.hop.source.clone().expect("v names itself");
                let pull = Pull {
                    migration: *migration,
                    vm: *vm,
                    from: source.uri,
                    token: source.token,
                    relay: None,
                    key: self.transfer.clone(),
                    peer_key: source.transfer_key,
                    folder: self.folder.clone(),
                    budget: Bytes::mib(1024),
                    expected: vec![FileId::disk(0), FileId::STATE, FileId::HISTORY],
                    basis: vec![],
                    carrier: None,
                    share: Share::default(),
                };
                proxy.pull(pull).expect("m's proxy has room");
                not_now
            }
            Op::Deliver { migration, certificate, .. } => {
                *self.given.lock().unwrap() = Some((*migration, certificate.clone()));
                not_now
            }
            _ => not_now,
        }
    }
}

fn owned(stage: &Stage) -> Statement {
    let handing = stage.handing.as_ref().unwrap();
    let fact = Fact::Owned { epoch: handing.certificate.epoch };
    Statement { vm: stage.home, migration: handing.migration, fact }
}

/// The certificate by which v would have it again.
fn back(stage: &Stage) -> Certificate {
    let handing = stage.handing.as_ref().unwrap();
    let cause = Cause::Handback { migration: handing.migration };
    let epoch = handing.certificate.epoch.next();
    Certificate { vm: stage.home, epoch, owner: handing.before, cause }
}

/// m answers so when it is told that it owns the VM. Why v asks again.
fn says(stage: &Stage, answer: Answer) -> Heard {
    const AGAIN: &str = "asking again: ";
    let count = || stage.v().log_text().matches(AGAIN).count();
    let (before, was_asked) = (count(), Arc::new(AtomicBool::new(false)));
    let is_asked = was_asked.clone();
    stage.m.answers(move |asked| match &asked.request.origin.op {
        Op::Deliver { .. } => {
            is_asked.store(true, Ordering::Relaxed);
            Reply::Says(answer.clone())
        }
        _ => Reply::Ends(Status::unavailable("not now")),
    });
    stage.federation.wait_for("v asks again", SOON, || {
        let is_so = was_asked.load(Ordering::Relaxed) && count() > before;
        if is_so { Ok(()) } else { Err("it does not".to_owned()) }
    });
    let log = stage.v().log_text();
    let last = log.rsplit(AGAIN).next().and_then(|rest| rest.lines().next());
    Heard::Words(last.unwrap_or_default().to_owned())
}
