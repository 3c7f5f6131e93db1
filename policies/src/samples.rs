//! Made-up requests that every policy is asked about before it is used.
//!
//! Each decision has a full one, with everything there and restricted, and an empty one.

use model::decision::{
    Admit, Candidate, Delegate, Expose, Group, Rank, Share, Transfer, TransferRole, Trigger,
};
use model::monitoring::{Delivery, Format, Monitoring, SealingKey, Specifier};
use model::vm::{Disk, Nic, Restrictions};
use model::{
    Bytes, Descriptor, FileId, Limits, PeerName, Peering, Resources, Right, Taken, Time, limit,
};

fn peer() -> PeerName {
    "sample".parse().expect("a name")
}

fn full_descriptor() -> Descriptor {
    Descriptor {
        name: "sample".parse().expect("a name"),
        resources: Resources { cpus: 4, memory: Bytes::mib(4096) },
        disks: vec![Disk { file: FileId::disk(0), capacity: Bytes::mib(10_240) }],
        nics: vec![Nic { network: "sample".to_owned(), mac: [2, 0, 0, 0, 0, 1] }],
        restrictions: Restrictions {
            no_delegation: true,
            countries: vec!["DE".to_owned(), "FR".to_owned()],
            max_price_milli: Some(10),
            apart: Some("sample".to_owned()),
        },
        monitoring: monitoring(),
    }
}

/// One measure of either kind, with either delivery.
fn monitoring() -> Monitoring {
    let specifier = |measure: &str, delivery| Specifier {
        measure: measure.parse().expect("a measure"),
        interval_ms: 1000,
        delivery,
        format: Format::Mean,
        sealed: true,
        limit: false,
    };
    let condition = "> 1000 ~ 50 for 30 s".parse().expect("a condition");
    Monitoring {
        revision: 1,
        specifiers: vec![
            specifier("cpu_share", Delivery::Every(10_000)),
            specifier("web.current_users", Delivery::When(condition)),
        ],
        sealing_key: Some(SealingKey([7; 32])),
        voucher: Some(model::Signature([8; 64])),
    }
}

fn empty_descriptor() -> Descriptor {
    Descriptor {
        resources: Resources { cpus: 1, memory: Bytes::mib(128) },
        disks: vec![],
        nics: vec![],
        restrictions: Restrictions::default(),
        monitoring: Default::default(),
        ..full_descriptor()
    }
}

/// As many offers as there can be, of every kind.
fn offers() -> Vec<Candidate> {
    let offer = |at: usize| Candidate {
        via: (at > 1).then(peer),
        peering: (at > 1).then(peering),
        price_milli: 7 * (at as u64 % 5),
        class: "standard".to_owned(),
        country: ["DE", "US", ""][at % 3].to_owned(),
        distance: u8::try_from(at / 2).expect("few offers").min(limit::MAX_HOPS),
        runs: !at.is_multiple_of(4),
        group: u32::try_from(at % 3).expect("a small number"),
    };
    (0..limit::MAX_OFFERS).map(offer).collect()
}

/// A word about a peer that says all that can be said.
fn peering() -> Peering {
    Peering {
        may: [Right::Place, Right::Host].into(),
        limits: Limits { vms: Some(5), rate: Some(Bytes::mib(100)), ..Limits::default() },
        contract: Some("2026-17".to_owned()),
        marks: ["own-domain".to_owned(), "partner".to_owned()].into(),
        ending: Some(Time(1_800_000_000_000)),
    }
}

pub fn admit() -> [Admit; 2] {
    [
        Admit {
            peer: Some(peer()),
            descriptor: full_descriptor(),
            free: Resources { cpus: 2, memory: Bytes::mib(2048) },
            peering: Some(peering()),
            taken: Taken { vms: 3, ..Taken::default() },
            group: Group { host: 1, site: 2 },
            price_milli: 12,
            country: "NL".to_owned(),
            now: Time(1_800_000_000_000),
        },
        Admit {
            peer: None,
            descriptor: empty_descriptor(),
            free: Resources { cpus: 8, memory: Bytes::mib(8192) },
            peering: None,
            taken: Taken::default(),
            group: Group::default(),
            price_milli: 0,
            country: String::new(),
            now: Time(1_800_000_000_000),
        },
    ]
}

pub fn delegate() -> [Delegate; 2] {
    [
        Delegate {
            peer: Some(peer()),
            peering: Some(peering()),
            to: peer(),
            to_peering: peering(),
            descriptor: full_descriptor(),
            hops_left: 0,
        },
        Delegate {
            peer: None,
            peering: None,
            to: peer(),
            to_peering: Peering::default(),
            descriptor: empty_descriptor(),
            hops_left: limit::MAX_HOPS,
        },
    ]
}

pub fn expose() -> [Expose; 2] {
    [
        Expose { peer: peer(), peering: peering(), offers: offers() },
        Expose { peer: peer(), peering: Peering::default(), offers: vec![] },
    ]
}

pub fn rank() -> [Rank; 2] {
    [
        Rank { descriptor: full_descriptor(), offers: offers() },
        Rank { descriptor: empty_descriptor(), offers: vec![] },
    ]
}

pub fn share() -> [Share; 2] {
    [
        Share {
            peer: Some(peer()),
            peering: Some(peering()),
            role: TransferRole::Source,
            descriptor: full_descriptor(),
            urgent: true,
        },
        Share {
            peer: None,
            peering: None,
            role: TransferRole::Relay,
            descriptor: empty_descriptor(),
            urgent: false,
        },
    ]
}

pub fn trigger() -> [Trigger; 2] {
    [
        Trigger {
            descriptor: full_descriptor(),
            measure: "web.current_users".to_owned(),
            condition: "> 1000 ~ 50 for 30 s".to_owned(),
            value: 1200.5,
            age_ms: 3_600_000,
            delegate: Some(peer()),
        },
        Trigger {
            descriptor: empty_descriptor(),
            measure: "cpu_share".to_owned(),
            condition: "< -1".to_owned(),
            value: -2.0,
            age_ms: 0,
            delegate: None,
        },
    ]
}

pub fn transfer() -> [Transfer; 2] {
    [
        Transfer {
            peer: peer(),
            peering: peering(),
            descriptor: full_descriptor(),
            size: Bytes::mib(10_240),
            must_meet: true,
        },
        Transfer {
            peer: peer(),
            peering: Peering::default(),
            descriptor: empty_descriptor(),
            size: Bytes(0),
            must_meet: false,
        },
    ]
}
