//! Attacks on a Destination: on what v has offered, and on what makes it the owner of a VM.

use model::key::Payload;
use model::statement::{Cause, Fact};
use model::{
    Certificate, Chain, Digest, EdgeHandle, Epoch, MigrationId, Signed, Statement, TransferEnd,
    VmId,
};
use protocol::{Op, Request};

use crate::forms::{Broken, NEUTRAL, a_vm, bytes, small_order, zeros};
use crate::paths::all;
use crate::stage::{
    Attack, Bid, Heard, Refused, Stage, a_hop, a_key, attack, descriptor, request, signed,
};

const NO_OFFER: Refused = Refused::Gone("the offer has expired or was withdrawn");
const NOT_TAKEN: Refused =
    Refused::Gone("not signed by the site that takes the offer (class standard, ");
const NOT_OWNER: Refused = Refused::Gone("the source is not the VM's owner");
const NOT_GIVEN: Refused = Refused::Failed("does not give this site what arrived here");

pub(crate) const ATTACKS: &[Attack] = &[
    attack("an offer taken by who it was not made to", NO_OFFER, |stage| {
        let bid = stage.bid();
        stage.n.ask(stage.v(), &stage.initiate(&bid), &bid.controller).into()
    }),
    attack("an offer that was guessed", NO_OFFER, |stage| {
        took(stage, |_, request| request.hop.edge = Some(EdgeHandle(rand::random())))
    }),
    attack("no offer at all", Refused::Unknown, |stage| {
        took(stage, |_, request| request.hop.edge = None)
    }),
    attack("an offer that was made for another VM", NO_OFFER, |stage| {
        let other = stage.bid();
        took(stage, |_, request| request.hop.edge = Some(other.offer.edge))
    }),
    attack("an offer that was withdrawn", NO_OFFER, |stage| {
        let bid = stage.bid();
        stage.says(Op::Withdraw { vm: bid.vm, request: bid.request }, None);
        stage.ask(&stage.initiate(&bid), &bid.controller)
    }),
    attack("an offer that is taken twice", NO_OFFER, |stage| {
        let bid = &stage.guest;
        let mut again = stage.initiate(bid);
        let Op::InitiateTransfer { migration, .. } = &mut again.origin.op else { unreachable!() };
        *migration = MigrationId(rand::random());
        stage.ask(&again, &bid.controller)
    }),
    attack("an offer that another peer has withdrawn stands", NOT_TAKEN, |stage| {
        let bid = stage.bid();
        stage.n_says(Op::Withdraw { vm: bid.vm, request: bid.request }, None);
        let mut request = stage.initiate(&bid);
        request.hop.taken = None;
        stage.ask(&request, &bid.controller)
    }),
    attack("a contract that the customer has not signed", NOT_TAKEN, |stage| {
        took(stage, |_, request| request.hop.taken = None)
    }),
    attack("a contract that another peer has signed", NOT_TAKEN, |stage| {
        took(stage, |bid, request| {
            request.hop.taken = Some(stage.taken(bid, &stage.n, &bid.offer));
        })
    }),
    attack("a contract signed by its provider alone", NOT_TAKEN, |stage| {
        took(stage, |bid, request| request.hop.taken = bid.offer.proposal)
    }),
    attack("the signature of another contract", NOT_TAKEN, |stage| {
        let other = stage.bid();
        let taken = stage.taken(&other, &stage.m, &other.offer);
        took(stage, |_, request| request.hop.taken = Some(taken))
    }),
    attack("no source", Refused::Gone("the request names no source"), |stage| {
        took(stage, |_, request| request.hop.source = None)
    }),
    attack("a source that does not own the VM", NOT_OWNER, |stage| {
        took(stage, |bid, request| {
            request.hop.source = Some(stage.source(bid, &bid.transfer.public(), &a_key()));
        })
    }),
    attack("a source that the VM's owner does not stand behind", NOT_OWNER, |stage| {
        altered_source(stage, |source| source.transfer_key = a_key().public())
    }),
    attack("a source whose proof is of another kind", NOT_OWNER, |stage| {
        took(stage, |bid, request| {
            let source = request.hop.source.as_mut().unwrap();
            source.proof = bid.owner.sign(Op::TYPE, &source.transfer_key.0);
        })
    }),
    attack("a source behind whose keys is no secret", Refused::Gone("certificate 0"), |stage| {
        all(small_order().map(|weak| {
            took(stage, |bid, request| {
                let import =
                    Certificate { vm: bid.vm, epoch: Epoch(0), owner: weak, cause: Cause::Import };
                set_chain(request, |chain| chain.certificates = vec![signed(&import, &bid.k0)]);
                let source = request.hop.source.as_mut().unwrap();
                (source.vm_key, source.proof) = (weak, NEUTRAL);
            })
        }))
    }),
    attack("a transfer key behind which is no secret", NOT_OWNER, |stage| {
        all(small_order().map(|weak| {
            took(stage, |bid, request| {
                request.hop.source = Some(stage.source(bid, &weak, &bid.owner));
            })
        }))
    }),
    attack("a VM behind whose key is no secret", Refused::Gone("certificate 0"), |stage| {
        all(small_order().map(|weak| {
            let owner = a_key();
            let bid = Bid::of(&stage.m, stage.v(), descriptor("new"), VmId::of(&weak), 0);
            let import = Certificate {
                vm: bid.vm,
                epoch: Epoch(0),
                owner: owner.public(),
                cause: Cause::Import,
            };
            let certificates = vec![zeros(signed(&import, &owner), weak)];
            let bid = Bid { owner, chain: Chain { k0: weak, certificates }, ..bid };
            stage.ask(&stage.initiate(&bid), &bid.controller)
        }))
    }),
    attack("no certificate", Refused::Gone("1 to 4096 certificates"), |stage| {
        owned(stage, |of| of.empty())
    }),
    attack(
        "more certificates than there may be",
        Refused::Gone("1 to 4096 certificates"),
        |stage| owned(stage, |of| of.endless()),
    ),
    attack("a chain without its beginning", Refused::Gone("certificate 0"), |stage| {
        owned(stage, |of| of.beheaded())
    }),
    attack("a chain with an epoch left out", Refused::Gone("certificate 1"), |stage| {
        owned(stage, |of| of.gapped())
    }),
    attack("certificates out of order", Refused::Gone("certificate 1"), |stage| {
        owned(stage, |of| of.swapped())
    }),
    attack("a certificate that comes twice", Refused::Gone("certificate 3"), |stage| {
        owned(stage, |of| of.repeated())
    }),
    attack("a certificate of another VM", Refused::Gone("certificate 1"), |stage| {
        owned(stage, |of| of.of_another_vm())
    }),
    attack("a certificate by who is not the owner", Refused::Gone("certificate 1"), |stage| {
        owned(stage, |of| of.by_another())
    }),
    attack("a certificate in the owner's name", Refused::Gone("certificate 1"), |stage| {
        owned(stage, |of| of.forged())
    }),
    attack("an adoption that the owner has signed", Refused::Gone("certificate 1"), |stage| {
        owned(stage, |of| of.adopted_by_its_owner())
    }),
    attack("a second import", Refused::Gone("certificate 1"), |stage| {
        owned(stage, |of| of.imported_twice())
    }),
    attack("a chain under another VM's key", Refused::Gone("is not the key of VM"), |stage| {
        owned(stage, |of| of.under_another_key())
    }),
    attack("another VM by the same migration", Refused::Unknown, |stage| {
        took(stage, |_, request| {
            let Op::InitiateTransfer { migration, .. } = &mut request.origin.op else {
                unreachable!()
            };
            *migration = stage.coming.bid.migration;
        })
    }),
    attack("what was admitted, asked for by another key", Refused::Unknown, |stage| {
        let bid = &stage.coming.bid;
        let key = a_key();
        let mut request = stage.initiate(bid);
        request.origin.key = key.public();
        stage.ask(&request, &key)
    }),
    attack("a certificate delivered by another peer", Refused::Unknown, |stage| {
        let deliver = stage.deliver(&stage.coming.bid, stage.coming.digest);
        stage.n.ask(stage.v(), &deliver, &stage.coming.bid.controller).into()
    }),
    attack("a certificate delivered along another edge", Refused::Unknown, |stage| {
        let mut deliver = stage.deliver(&stage.coming.bid, stage.coming.digest);
        deliver.hop.edge = stage.edge();
        stage.ask(&deliver, &stage.coming.bid.controller)
    }),
    attack("a delivery that another key has signed", Refused::Failed("certificate 1"), |stage| {
        delivered(stage, |certificate| signed(certificate, &a_key()))
    }),
    attack("a delivery signed with the VM's own key", Refused::Failed("certificate 1"), |stage| {
        delivered(stage, |certificate| signed(certificate, &stage.coming.bid.k0))
    }),
    attack("a delivery in the owner's name", Refused::Failed("certificate 1"), |stage| {
        delivered(stage, |certificate| {
            let mut forged = signed(certificate, &a_key());
            forged.key = stage.coming.bid.owner.public();
            forged
        })
    }),
    attack("a delivery of another VM", Refused::Failed("certificate 1"), |stage| {
        given(stage, |certificate| certificate.vm = a_vm())
    }),
    attack("a delivery for an older epoch", Refused::Failed("certificate 1"), |stage| {
        given(stage, |certificate| certificate.epoch = Epoch(0))
    }),
    attack("a delivery for an epoch that skips one", Refused::Failed("certificate 1"), |stage| {
        given(stage, |certificate| certificate.epoch = Epoch(2))
    }),
    attack("a delivery to another owner", NOT_GIVEN, |stage| {
        given(stage, |certificate| certificate.owner = a_key().public())
    }),
    attack(
        "a delivery to an owner behind whose key is no secret",
        Refused::Failed("certificate 1"),
        |stage| all(small_order().map(|weak| given(stage, |certificate| certificate.owner = weak))),
    ),
    attack("a delivery of other data than arrived", NOT_GIVEN, |stage| {
        given(stage, |certificate| {
            let (migration, digest) = (stage.coming.bid.migration, Digest([7; 32]));
            certificate.cause = Cause::Release { migration, digest };
        })
    }),
    attack("a delivery by another migration", NOT_GIVEN, |stage| {
        given(stage, |certificate| {
            let (migration, digest) = (stage.guest.migration, stage.coming.digest);
            certificate.cause = Cause::Release { migration, digest };
        })
    }),
    attack("a delivery that is none but a handback", NOT_GIVEN, |stage| {
        given(stage, |certificate| {
            certificate.cause = Cause::Handback { migration: stage.coming.bid.migration };
        })
    }),
    attack("a delivery that is an import", Refused::Failed("certificate 1"), |stage| {
        given(stage, |certificate| certificate.cause = Cause::Import)
    }),
    attack("a delivery that is an adoption", Refused::Failed("certificate 1"), |stage| {
        given(stage, |certificate| {
            certificate.cause = Cause::Adopt { statement: Digest([7; 32]) };
        })
    }),
    attack(
        "a delivery whose certificate is a statement",
        Refused::Failed("certificate 1"),
        |stage| {
            let bid = &stage.coming.bid;
            let owned = Fact::Owned { epoch: Epoch(1) };
            let owned = signed(
                &Statement { vm: bid.vm, migration: bid.migration, fact: owned },
                &bid.owner,
            );
            delivered(stage, |_| Signed::from_parts(owned.body.clone(), owned.key, owned.signature))
        },
    ),
    attack("a delivery whose certificate breaks off", Refused::Failed("certificate 1"), |stage| {
        delivered(stage, |certificate| {
            let (mut body, owner) = (bytes(certificate), &stage.coming.bid.owner);
            body.pop();
            let signature = owner.sign(Certificate::TYPE, &body);
            Signed::from_parts(body, owner.public(), signature)
        })
    }),
];

/// m takes an offer of v's, in a request that is wrong in some respect.
fn took(stage: &Stage, alter: impl FnOnce(&Bid, &mut Request)) -> Heard {
    let bid = stage.bid();
    let mut request = stage.initiate(&bid);
    alter(&bid, &mut request);
    stage.ask(&request, &bid.controller)
}

fn altered_source(stage: &Stage, alter: impl FnOnce(&mut TransferEnd)) -> Heard {
    took(stage, |_, request| alter(request.hop.source.as_mut().unwrap()))
}

fn set_chain(request: &mut Request, set: impl FnOnce(&mut Chain)) {
    let Op::InitiateTransfer { chain, .. } = &mut request.origin.op else { unreachable!() };
    set(chain);
}

/// m takes an offer, and shows a chain that is broken in some way.
fn owned(stage: &Stage, broken: impl FnOnce(&Broken<'_>) -> Chain) -> Heard {
    took(stage, |bid, request| set_chain(request, |chain| *chain = broken(&Broken::of(bid))))
}

/// m delivers a certificate that is not the one by which v would own what has arrived.
fn delivered(
    stage: &Stage,
    certificate: impl FnOnce(&Certificate) -> Signed<Certificate>,
) -> Heard {
    let (bid, digest) = (&stage.coming.bid, stage.coming.digest);
    let certificate = certificate(&stage.release(bid, digest));
    let op = Op::Deliver { vm: bid.vm, migration: bid.migration, certificate };
    stage.ask(&request(op, &bid.controller, a_hop(Some(bid.offer.edge))), &bid.controller)
}

/// The same, signed by who owns the VM.
fn given(stage: &Stage, alter: impl FnOnce(&mut Certificate)) -> Heard {
    delivered(stage, |certificate| {
        let mut certificate = certificate.clone();
        alter(&mut certificate);
        signed(&certificate, &stage.coming.bid.owner)
    })
}
