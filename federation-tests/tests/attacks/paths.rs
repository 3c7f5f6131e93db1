//! Attacks along the paths of VMs: with edges, keys and chains that give no right to what is asked.

use federation_tests::process::hostile::site_key;
use model::statement::Fact;
use model::{
    Certificate, Chain, EdgeHandle, Epoch, MigrationId, Monitoring, SecretKey, SiteKey, Statement,
    VmId,
};
use protocol::{Action, Down, Mode, Op};

use crate::forms::{Broken, certificate, longer, small_order, zeros};
use crate::stage::{
    Attack, Heard, Refused, Stage, a_hop, a_key, attack, is_hung_up, request, signed,
};

const BAD_CHAIN: Refused = Refused::Failed("chain of certificates does not hold");
const NOT_LATER: Refused = Refused::Failed("not a later one that the VM's own key vouches for");

pub(crate) const ATTACKS: &[Attack] = &[
    attack("a voucher for no edge", Refused::Unknown, |stage| stage.says(stage.destroy(), None)),
    attack("a voucher for an edge that was guessed", Refused::Unknown, |stage| {
        stage.says(stage.destroy(), Some(EdgeHandle(rand::random())))
    }),
    attack("a voucher for the edge of nothing", Refused::Unknown, |stage| {
        stage.says(stage.destroy(), Some(EdgeHandle([0; 16])))
    }),
    attack("a voucher for the edge of another VM", Refused::Unknown, |stage| {
        stage.says(stage.destroy(), Some(stage.away.1))
    }),
    attack("a voucher for the edge of a VM that is still coming", Refused::Unknown, |stage| {
        stage.says(stage.destroy(), Some(stage.coming.bid.offer.edge))
    }),
    attack("another peer's edge", Refused::Unknown, |stage| {
        stage.n_says(stage.destroy(), stage.edge())
    }),
    attack("another VM along one's own edge", Refused::Unknown, |stage| {
        let destroy = Op::Control { vm: stage.other.0, action: Action::Destroy };
        stage.says(destroy, stage.edge())
    }),
    attack("another peer's VM along its own edge", Refused::Unknown, |stage| {
        let destroy = Op::Control { vm: stage.other.0, action: Action::Destroy };
        stage.says(destroy, Some(stage.other.1))
    }),
    attack("the site's own VM", Refused::Unknown, |stage| {
        stage.says(Op::Control { vm: stage.home, action: Action::Destroy }, stage.edge())
    }),
    attack("a VM up the path by which it came", Refused::Unknown, |stage| {
        stage.says(Op::Control { vm: stage.away.0, action: Action::Destroy }, Some(stage.away.1))
    }),
    attack("another peer's VM is to be handed over", Refused::Unknown, |stage| {
        stage.says(force(stage.other.0), stage.edge())
    }),
    attack("a VM that somebody else delegates is forced out", Refused::Unknown, |stage| {
        stage.says(evict(stage.guest.vm), stage.edge())
    }),
    attack("a VM is forced out along no edge", Refused::Unknown, |stage| {
        stage.says(evict(stage.away.0), None)
    }),
    attack("a VM is forced out by who does not have it", Refused::Unknown, |stage| {
        stage.n_says(evict(stage.away.0), Some(stage.away.1))
    }),
    attack("a report by who does not have the VM", Refused::Unknown, |stage| {
        let (chain, owner) = away(stage);
        let chain = longer(&chain, stage.away.0, &owner);
        stage.n_says(report(stage, chain), Some(stage.away.1))
    }),
    attack("a report along another edge", Refused::Unknown, |stage| {
        let (chain, owner) = away(stage);
        let chain = longer(&chain, stage.away.0, &owner);
        stage.says(report(stage, chain), stage.edge())
    }),
    attack("a report with an empty chain", BAD_CHAIN, |stage| told(stage, |of| of.empty())),
    attack("a report with a chain without its beginning", BAD_CHAIN, |stage| {
        told(stage, |of| of.beheaded())
    }),
    attack("a report with a chain that skips an epoch", BAD_CHAIN, |stage| {
        told(stage, |of| of.gapped())
    }),
    attack("a report with certificates out of order", BAD_CHAIN, |stage| {
        told(stage, |of| of.swapped())
    }),
    attack("a report with the same certificate twice", BAD_CHAIN, |stage| {
        told(stage, |of| of.repeated())
    }),
    attack("a report with a certificate of another VM", BAD_CHAIN, |stage| {
        told(stage, |of| of.of_another_vm())
    }),
    attack("a report with a certificate by who is not the owner", BAD_CHAIN, |stage| {
        told(stage, |of| of.by_another())
    }),
    attack("a report with a certificate in the owner's name", BAD_CHAIN, |stage| {
        told(stage, |of| of.forged())
    }),
    attack("a report of an adoption that the owner has signed", BAD_CHAIN, |stage| {
        told(stage, |of| of.adopted_by_its_owner())
    }),
    attack("a report of a second import", BAD_CHAIN, |stage| told(stage, |of| of.imported_twice())),
    attack("a report with a chain under another VM's key", BAD_CHAIN, |stage| {
        told(stage, |of| of.under_another_key())
    }),
    attack("a report with a chain without end", BAD_CHAIN, |stage| told(stage, |of| of.endless())),
    attack("a report with an owner behind whose key is no secret", BAD_CHAIN, |stage| {
        let (chain, owner) = away(stage);
        all(small_order().map(|weak| {
            let next = Certificate { owner: weak, ..certificate(stage.away.0, 2, &owner) };
            let by_weak = signed(&certificate(stage.away.0, 3, &a_key()), &a_key());
            let chain = chain.extended(signed(&next, &owner)).extended(zeros(by_weak, weak));
            stage.says(report(stage, chain), Some(stage.away.1))
        }))
    }),
    attack("a report of an older epoch", Refused::Ignored, |stage| {
        let (mut chain, _) = away(stage);
        chain.certificates.pop();
        stage.says(report(stage, chain), Some(stage.away.1))
    }),
    attack("a section that another key vouches for", NOT_LATER, |stage| {
        monitored(stage, &a_key(), 7)
    }),
    attack("a section that the VM's owner vouches for, and not the VM", NOT_LATER, |stage| {
        monitored(stage, &stage.guest.owner, 7)
    }),
    attack("a section that nobody vouches for", NOT_LATER, |stage| {
        let section = Monitoring { revision: 9, ..Monitoring::default() };
        stage.says(Op::Monitor { vm: stage.guest.vm, section }, stage.edge())
    }),
    attack("a section by another peer", Refused::Unknown, |stage| {
        stage.n_says(section(stage, &stage.guest.k0, 9), stage.edge())
    }),
    attack("a VM is reclaimed with a key that is not its own", Refused::Unknown, |stage| {
        let op = reclaim(stage, site_key(&stage.federation["m"]), stage.v_key());
        stage.ask(&request(op, &stage.guest.owner, a_hop(None)), &stage.guest.owner)
    }),
    attack("a VM is reclaimed by who has only seen its primary do so", Refused::Unknown, |stage| {
        let (by, k0) = (site_key(&stage.federation["m"]), &stage.guest.k0);
        let op = reclaim(stage, by, stage.v_key());
        stage.n.ask(stage.v(), &request(op, k0, a_hop(None)), k0).into()
    }),
    attack("a VM is reclaimed from another site", Refused::Unknown, |stage| {
        let [m, n] = ["m", "n"].map(|name| site_key(&stage.federation[name]));
        let k0 = &stage.guest.k0;
        stage.ask(&request(reclaim(stage, m, n), k0, a_hop(None)), k0)
    }),
    attack("a VM is reclaimed where its path begins", Refused::Unknown, |stage| {
        let op = Op::Reclaim {
            vm: stage.home,
            handle: EdgeHandle(rand::random()),
            by: site_key(&stage.federation["m"]),
            host: stage.v_key(),
        };
        let key = a_key();
        stage.ask(&request(op, &key, a_hop(None)), &key)
    }),
    attack("a VM is said to be adopted, without proof", BAD_CHAIN, |stage| {
        let chain = Broken { chain: &guest_chain(stage), ..Broken::of(&stage.guest) }.forged();
        stage.says(Op::Superseded { vm: stage.guest.vm, chain }, stage.edge())
    }),
    attack("a VM is said to be adopted, by who had it before", BAD_CHAIN, |stage| {
        let of = Broken { chain: &guest_chain(stage), ..Broken::of(&stage.guest) };
        let chain = of.adopted_by_its_owner();
        stage.says(Op::Superseded { vm: stage.guest.vm, chain }, stage.edge())
    }),
    attack("a VM is said to be elsewhere, by an owner that has signed twice", BAD_CHAIN, |stage| {
        let chain = longer(&stage.guest.chain, stage.guest.vm, &stage.guest.owner);
        let heard = stage.says(Op::Superseded { vm: stage.guest.vm, chain }, stage.edge());
        let events = stage.v().done(&["vm", "events", &stage.guest.vm.to_string()]).to_string();
        let alarm = "two different certificates of epoch 1";
        if events.contains(alarm) { heard } else { Heard::Words(format!("no alarm: {events}")) }
    }),
    attack("a VM is said to be adopted, by another peer", Refused::Unknown, |stage| {
        let cause = model::statement::Cause::Adopt { statement: model::Digest([7; 32]) };
        let adopts = Certificate { cause, ..certificate(stage.guest.vm, 2, &a_key()) };
        let chain = guest_chain(stage).extended(signed(&adopts, &stage.guest.k0));
        stage.n_says(Op::Superseded { vm: stage.guest.vm, chain }, stage.edge())
    }),
    attack(
        "a VM's owner is asked for by who has nothing to do with it",
        Refused::Unknown,
        |stage| stage.n_says(Op::Confirm { vm: stage.guest.vm }, stage.edge()),
    ),
    attack("a path is closed by another's word", Refused::Unknown, |stage| {
        let (vm, migration) = (stage.away.0, MigrationId(rand::random()));
        let owned = Statement { vm, migration, fact: Fact::Owned { epoch: Epoch(2) } };
        let owned = signed(&owned, &a_key());
        stage.n_says(Op::Retire { vm, migration, owned }, Some(stage.away.1))
    }),
    attack("a migration is finished that is not known", Refused::Unknown, |stage| {
        let (vm, migration) = (stage.guest.vm, MigrationId(rand::random()));
        stage.says(Op::TransferVerification { vm, migration, ready: None }, stage.edge())
    }),
];

fn force(vm: VmId) -> Op {
    Op::ForcedMigration {
        vm,
        migration: MigrationId(rand::random()),
        target_vm_key: a_key().public(),
        target_transfer_key: a_key().public(),
        mode: Mode::Hibernate,
    }
}

fn evict(vm: VmId) -> Op {
    Op::Evict { vm, reason: "it must go".to_owned() }
}

/// The chain of v's VM that m has, and m's key of it.
pub(crate) fn away(stage: &Stage) -> (Chain, SecretKey) {
    let known = stage.v().state().vms[&stage.away.0].clone();
    assert!(matches!(known.down, Down::Edge(_)), "it is at m");
    let owner = stage.m.key(&known.chain.newest().owner).clone();
    (known.chain, owner)
}

/// The chain of m's VM that v has.
fn guest_chain(stage: &Stage) -> Chain {
    stage.v().state().vms[&stage.guest.vm].chain.clone()
}

fn report(stage: &Stage, chain: Chain) -> Op {
    Op::Report { vm: stage.away.0, chain, parked: Some("it has no place".to_owned()) }
}

/// m reports with a chain that is broken in some way.
fn told(stage: &Stage, broken: impl FnOnce(&Broken<'_>) -> Chain) -> Heard {
    let (chain, owner) = away(stage);
    let of = Broken { chain: &chain, vm: stage.away.0, owner: &owner };
    stage.says(report(stage, broken(&of)), Some(stage.away.1))
}

/// One that was heard, if all are alike; they are told apart by their form.
pub(crate) fn all(heard: impl Iterator<Item = Heard>) -> Heard {
    let mut heard: Vec<Heard> = heard.collect();
    let form = |heard: &Heard| match heard {
        Heard::Ended(status) if is_hung_up(status) => "hung up".to_owned(),
        Heard::Ended(status) => format!("{:?}", status.code()),
        Heard::Says(answer) => format!("{answer:?}"),
        Heard::Words(words) => words.clone(),
        Heard::Again(..) => "again".to_owned(),
    };
    let forms: std::collections::BTreeSet<String> = heard.iter().map(form).collect();
    if forms.len() == 1 { heard.remove(0) } else { Heard::Words(format!("{forms:?}")) }
}

fn section(stage: &Stage, by: &SecretKey, revision: u64) -> Op {
    let mut section = Monitoring { revision, ..Monitoring::default() };
    section.vouch(|kind, body| by.sign(kind, body));
    Op::Monitor { vm: stage.guest.vm, section }
}

fn monitored(stage: &Stage, by: &SecretKey, revision: u64) -> Heard {
    stage.says(section(stage, by, revision), stage.edge())
}

fn reclaim(stage: &Stage, by: SiteKey, host: SiteKey) -> Op {
    Op::Reclaim { vm: stage.guest.vm, handle: EdgeHandle(rand::random()), by, host }
}
