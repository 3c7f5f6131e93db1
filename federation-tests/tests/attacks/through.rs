//! Attacks on an Intermediary: m has a VM placed through v at n, and n answers wrongly; or m and n
//! speak for each other.

use std::sync::{Arc, Mutex};

use federation_tests::process::hostile::Reply;
use model::statement::Fact;
use model::{
    Contract, Descriptor, Digest, EdgeHandle, Epoch, MigrationId, Offer, SecretKey, Signed,
    Statement, Terms, Time, VmId,
};
use protocol::{Action, Answer, Down, Op};
use tonic::Status;

use crate::answers::target;
use crate::forms::{Broken, NEUTRAL, a_vm, certificate, small_order};
use crate::paths::all;
use crate::stage::{
    Attack, Bid, Heard, Refused, Stage, a_hop, a_key, attack, descriptor, request, signed,
};

/// A VM of m's on its way through v to n.
pub(crate) struct Through {
    bid: Bid,
    /// n's key of it.
    owner: SecretKey,
    /// The edge between v and n.
    edge: EdgeHandle,
}

/// What n is said to have fetched.
const FETCHED: Digest = Digest([7; 32]);

const NOT_SHOWN: Refused = Refused::NoOffer("CPUs are wanted");
const NOT_OWNED: Refused = Refused::Failed("the Destination's statement does not hold");
const BAD_CHAIN: Refused = Refused::Failed("chain of certificates does not hold");

/// n's offers, which v would pass on to m.
pub(crate) const OFFERS: &[Attack] = &[
    attack("an offer from beyond that nobody stands behind", NOT_SHOWN, |stage| {
        offered(stage, |offer| offer.target.proof = NEUTRAL)
    }),
    attack("an offer from beyond with a key behind which is no secret", NOT_SHOWN, |stage| {
        all(small_order()
            .take(2)
            .map(|weak| offered(stage, move |offer| offer.target = target(&weak, &a_key()))))
    }),
    attack("an offer from beyond without a contract", NOT_SHOWN, |stage| {
        offered(stage, |offer| offer.proposal = None)
    }),
    attack("an offer from beyond on terms that were not signed", NOT_SHOWN, |stage| {
        offered(stage, |offer| offer.terms.price_milli = 1)
    }),
    attack("an offer from beyond, of an edge that was not signed for", NOT_SHOWN, |stage| {
        offered(stage, |offer| offer.edge = EdgeHandle([7; 16]))
    }),
];

/// n has everything, and is to become the owner.
pub(crate) const DELIVERIES: &[Attack] = &[
    attack("OWNED from beyond, by another key", NOT_OWNED, |stage| {
        owned(stage, |statement, _| signed(statement, &a_key()))
    }),
    attack("OWNED from beyond, in the owner's name", NOT_OWNED, |stage| {
        owned(stage, |statement, owner| {
            let mut forged = signed(statement, &a_key());
            forged.key = owner.public();
            forged
        })
    }),
    attack("OWNED from beyond, of another epoch", NOT_OWNED, |stage| {
        stated(stage, |statement| statement.fact = Fact::Owned { epoch: Epoch(2) })
    }),
    attack("OWNED from beyond, of another VM", NOT_OWNED, |stage| {
        stated(stage, |statement| statement.vm = VmId([7; 16]))
    }),
    attack("OWNED from beyond, of another migration", NOT_OWNED, |stage| {
        stated(stage, |statement| statement.migration = MigrationId([7; 16]))
    }),
    attack("READY from beyond, in the place of OWNED", NOT_OWNED, |stage| {
        stated(stage, |statement| statement.fact = Fact::Ready { digest: FETCHED })
    }),
    attack("a certificate that both sides of a site have made up", DOES_NOT_CONTINUE, |stage| {
        let through = stage.through.as_ref().unwrap();
        let certificate = certificate(through.bid.vm, 1, &through.owner);
        let migration = certificate.migration().unwrap();
        let fact = Fact::Owned { epoch: Epoch(1) };
        let statement = Statement { vm: through.bid.vm, migration, fact };
        let statement = signed(&statement, &through.owner);
        n_says(stage, Answer::Owned { statement });
        let (vm, migration) = (through.bid.vm, through.bid.migration);
        let certificate = signed(&certificate, &a_key());
        let op = Op::Deliver { vm, migration, certificate };
        let controller = &through.bid.controller;
        stage.ask(&request(op, controller, a_hop(Some(through.bid.offer.edge))), controller)
    }),
    attack("a delivery along the edge on the other side", Refused::Unknown, |stage| {
        let through = stage.through.as_ref().unwrap();
        let mut deliver = stage.deliver(&through.bid, FETCHED);
        deliver.hop.edge = Some(through.edge);
        stage.ask(&deliver, &through.bid.controller)
    }),
    attack("a delivery from the other side", Refused::Unknown, |stage| {
        let through = stage.through.as_ref().unwrap();
        let deliver = stage.deliver(&through.bid, FETCHED);
        stage.n.ask(stage.v(), &deliver, &through.bid.controller).into()
    }),
    attack(
        "a delivery whose hops are used up",
        Refused::Failed("as many sites as it may"),
        |stage| {
            let through = stage.through.as_ref().unwrap();
            let mut deliver = stage.deliver(&through.bid, FETCHED);
            deliver.hop.hops_left = 0;
            stage.ask(&deliver, &through.bid.controller)
        },
    ),
    attack("a report by who does not own the VM yet", Refused::Unknown, |stage| {
        let through = stage.through.as_ref().unwrap();
        stage.n_says(report(through, through.bid.chain.clone()), Some(through.edge))
    }),
];

const DOES_NOT_CONTINUE: Refused = Refused::Failed("does not continue the chain");

/// n has the VM.
pub(crate) const PLACED: &[Attack] = &[
    attack("a command from below", Refused::Unknown, |stage| {
        let through = stage.through.as_ref().unwrap();
        let destroy = Op::Control { vm: through.bid.vm, action: Action::Destroy };
        stage.n_says(destroy, Some(through.edge))
    }),
    attack("a command along the edge below, from above", Refused::Unknown, |stage| {
        let through = stage.through.as_ref().unwrap();
        let destroy = Op::Control { vm: through.bid.vm, action: Action::Destroy };
        stage.says(destroy, Some(through.edge))
    }),
    attack("a report from above", Refused::Unknown, |stage| {
        let through = stage.through.as_ref().unwrap();
        let chain = placed(stage).0.chain.clone();
        let longer = crate::forms::longer(&chain, through.bid.vm, &through.owner);
        stage.says(report(through, longer), Some(through.bid.offer.edge))
    }),
    attack("a report from below of what n has not been given", BAD_CHAIN, |stage| {
        let through = stage.through.as_ref().unwrap();
        let (known, vm) = (placed(stage).0, through.bid.vm);
        let of = Broken { chain: &known.chain, vm, owner: &through.owner };
        stage.n_says(report(through, of.by_another()), Some(through.edge))
    }),
    attack("a report from below with certificates out of order", BAD_CHAIN, |stage| {
        let through = stage.through.as_ref().unwrap();
        let (known, vm) = (placed(stage).0, through.bid.vm);
        let of = Broken { chain: &known.chain, vm, owner: &through.owner };
        stage.n_says(report(through, of.swapped()), Some(through.edge))
    }),
    attack("an eviction from above", Refused::Unknown, |stage| {
        let through = stage.through.as_ref().unwrap();
        let op = Op::Evict { vm: through.bid.vm, reason: "it must go".to_owned() };
        stage.says(op, Some(through.bid.offer.edge))
    }),
    attack("a certificate passed on, sent again", Refused::AsBefore, |stage| {
        n_says(stage, Answer::Owned { statement: owned_by(stage.through.as_ref().unwrap()) });
        stage.again("deliver through")
    }),
];

// What leads from one to the next.

/// m takes n's offer, which v has passed on, and n says that it has everything.
pub(crate) fn initiate(stage: &mut Stage) {
    let owner = a_key();
    let made = offers(stage, owner.clone(), |_| {});
    let bid = Bid::ask(&stage.m, stage.v(), large(), 1);
    let edge = made.lock().unwrap().take().expect("n was asked");
    let (vm, migration) = (bid.vm, bid.migration);
    let ready = Statement { vm, migration, fact: Fact::Ready { digest: FETCHED } };
    let ready = signed(&ready, &owner);
    n_says(stage, Answer::Arrived { ready, size: model::Bytes(1), wire: model::Bytes(1) });
    let answer = stage.keep("initiate through", &stage.initiate(&bid), &bid.controller);
    assert!(matches!(answer, Answer::Arrived { .. }), "{answer:?}");
    stage.through = Some(Through { bid, owner, edge });
}

/// n says that it owns the VM.
pub(crate) fn deliver(stage: &mut Stage) {
    let through = stage.through.as_ref().unwrap();
    n_says(stage, Answer::Owned { statement: owned_by(through) });
    let deliver = stage.deliver(&through.bid, FETCHED);
    let answer = stage.keep("deliver through", &deliver, &through.bid.controller);
    assert!(matches!(answer, Answer::Owned { .. }), "{answer:?}");
    let (known, edge) = placed(stage);
    assert_eq!((known.chain.epoch(), edge), (Epoch(1), through.edge));
}

/// What v knows of the VM, and the edge below.
fn placed(stage: &Stage) -> (protocol::Vm, EdgeHandle) {
    let known = stage.v().state().vms[&stage.through.as_ref().unwrap().bid.vm].clone();
    let Down::Edge(edge) = &known.down else { panic!("{:?}", known.down) };
    let edge = edge.handle;
    (known, edge)
}

// What the attacks are made of.

/// More than v has room for.
fn large() -> Descriptor {
    let mut large = descriptor("large");
    large.resources.cpus = 100;
    large
}

/// n makes offers from here on, which are sound before they are altered. The edge of the last one.
fn offers(
    stage: &Stage,
    owner: SecretKey,
    alter: impl Fn(&mut Offer) + Send + 'static,
) -> Arc<Mutex<Option<EdgeHandle>>> {
    let (n, customer) = (stage.n.identity().clone(), stage.v_key());
    let made = Arc::new(Mutex::new(None));
    let makes = made.clone();
    stage.n.answers(move |asked| {
        let Op::MigrationRequest { vm, descriptor, .. } = &asked.request.origin.op else {
            return Reply::Ends(Status::unavailable("not now"));
        };
        let (edge, provider) = (EdgeHandle(rand::random()), n.site_key());
        let terms = Terms {
            price_milli: 5,
            penalty_milli: 0,
            class: "standard".to_owned(),
            country: String::new(),
            expires: Time(u64::MAX),
            runs: true,
        };
        let (vm, descriptor) = (*vm, descriptor.digest());
        let contract = Contract { vm, descriptor, edge, provider, customer, terms: terms.clone() };
        let proposal = contract.propose(|kind, body| n.sign(kind, body));
        let target = target(&a_key().public(), &owner);
        let proposal = Some(proposal.provider);
        let mut offer = Offer { edge, target, terms, proposal, distance: 0 };
        alter(&mut offer);
        *makes.lock().unwrap() = Some(edge);
        Reply::Says(Answer::Offers { offers: vec![offer], reasons: vec![] })
    });
    made
}

/// m asks v for a place for which only n has room; what n offers is wrong in some way.
fn offered(stage: &Stage, alter: impl Fn(&mut Offer) + Send + 'static) -> Heard {
    let made = offers(stage, a_key(), alter);
    let heard = stage.says(crate::forms::migration_request(a_vm(), large()), None);
    assert!(made.lock().unwrap().is_some(), "n was asked");
    heard
}

/// What is wrong with an offer of n's that v passes on as it should, if something is.
pub(crate) fn passes_on(stage: &Stage) -> Option<String> {
    offers(stage, a_key(), |_| {});
    match stage.says(crate::forms::migration_request(a_vm(), large()), None) {
        Heard::Says(Answer::Offers { offers, .. }) if offers.len() == 1 => None,
        Heard::Says(answer) => Some(format!("{answer:?}")),
        _ => Some("there was no answer".to_owned()),
    }
}

fn n_says(stage: &Stage, answer: Answer) {
    stage.n.answers(move |_| Reply::Says(answer.clone()));
}

fn owned_by(through: &Through) -> Signed<Statement> {
    let (vm, migration) = (through.bid.vm, through.bid.migration);
    let fact = Fact::Owned { epoch: Epoch(1) };
    signed(&Statement { vm, migration, fact }, &through.owner)
}

/// m delivers the certificate, and n says in some wrong way that it owns the VM.
fn owned(stage: &Stage, forge: impl FnOnce(&Statement, &SecretKey) -> Signed<Statement>) -> Heard {
    let through = stage.through.as_ref().unwrap();
    let honest = owned_by(through).peek().unwrap();
    n_says(stage, Answer::Owned { statement: forge(&honest, &through.owner) });
    stage.ask(&stage.deliver(&through.bid, FETCHED), &through.bid.controller)
}

/// The same, where n's statement says something else.
fn stated(stage: &Stage, alter: impl FnOnce(&mut Statement)) -> Heard {
    owned(stage, |statement, owner| {
        let mut statement = statement.clone();
        alter(&mut statement);
        signed(&statement, owner)
    })
}

fn report(through: &Through, chain: model::Chain) -> Op {
    Op::Report { vm: through.bid.vm, chain, parked: Some("it has no place".to_owned()) }
}
