//! Policy decisions in a second of processor time, by the policies that every site has and by the longest examples.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use federation_tests::bench::{Failure, median};
use federation_tests::process::Usage;
use model::decision::{
    Admit, Candidate, Delegate, Expose, Group, Policy, Rank, Share, Transfer, TransferRole, Trigger,
};
use model::vm::Restrictions;
use model::{Bytes, Descriptor, Limits, PeerName, Peering, Resources, Taken, Time};
use policies::Engine;
use serde_json::{Value, json};

/// What a site may be made of, from `policies/examples`: the longest of each decision.
const EXAMPLES: [(&str, &str); 7] = [
    ("admit", "admit-quota"),
    ("delegate", "delegate-hops"),
    ("expose", "expose-partners"),
    ("rank", "rank-country"),
    ("share", "share-by-peer"),
    ("transfer", "transfer-relayed"),
    ("trigger", "trigger-load"),
];
/// Hosts of a site, or offers at hand.
const CHOICES: [usize; 2] = [1, 10];

/// Decides each for so long, and tells how often that went.
pub(crate) fn run(time: Duration, rounds: usize) -> Result<Value, Failure> {
    let folder = tempfile::tempdir()?;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples");
    for (decision, example) in EXAMPLES {
        let source = examples.join(format!("{example}.rego"));
        std::fs::copy(source, folder.path().join(format!("{decision}.rego")))?;
    }
    let engines = [Engine::defaults(), Engine::load(folder.path())?];
    println!();
    println!("Policy decisions in a second of processor time:");
    println!("{:<36}{:>12}{:>12}", "", "defaults", "examples");
    let mut all = Vec::new();
    for (name, decide) in cases()? {
        let [defaults, examples] = engines.each_ref().map(|engine| {
            let rates = (0..rounds).map(|_| rate(time, || decide(engine))).collect();
            median(rates)
        });
        println!("{name:<36}{defaults:>12.0}{examples:>12.0}");
        all.push(json!({ "decision": name, "defaults": defaults, "examples": examples }));
    }
    Ok(all.into())
}

/// How often in a second of processor time.
fn rate(time: Duration, mut decide: impl FnMut()) -> f64 {
    let used = || Usage::of(std::process::id()).cpu;
    let (begun, before, mut made) = (Instant::now(), used(), 0_u64);
    while begun.elapsed() < time {
        (0..16).for_each(|_| decide());
        made += 16;
    }
    made as f64 / used().saturating_sub(before).as_secs_f64()
}

/// A decision to be taken.
type Decide = Box<dyn Fn(&Engine)>;

fn cases() -> Result<Vec<(String, Decide)>, Failure> {
    let peer: PeerName = "beta".parse()?;
    let peering = Peering {
        limits: Limits { vms: Some(20), ..Limits::default() },
        marks: ["partner".to_owned()].into(),
        ..Peering::default()
    };
    let descriptor = Descriptor {
        name: "web".parse()?,
        resources: Resources { cpus: 1, memory: Bytes::mib(512) },
        disks: vec![],
        nics: vec![],
        restrictions: Restrictions::default(),
        monitoring: Default::default(),
    };
    let admit = |free: u64| Admit {
        peer: Some(peer.clone()),
        descriptor: descriptor.clone(),
        free: Resources { cpus: 8, memory: Bytes::mib(free) },
        peering: Some(peering.clone()),
        taken: Taken::default(),
        group: Group::default(),
        price_milli: 100,
        country: "SE".to_owned(),
        now: Time(1_800_000_000_000),
    };
    let (allowed, refused) = (admit(8192), admit(64));
    let mut cases: Vec<(String, Decide)> = vec![
        ("admit, allowed".to_owned(), Box::new(move |all| drop(black_box(all.admit(&allowed))))),
        ("admit, refused".to_owned(), Box::new(move |all| drop(black_box(all.admit(&refused))))),
    ];
    let refused = admit(64);
    cases.push((
        "admit at a site of 10 full hosts".to_owned(),
        Box::new(move |all| (0..10).for_each(|_| drop(black_box(all.admit(&refused))))),
    ));
    let delegate = Delegate {
        peer: Some(peer.clone()),
        peering: Some(peering.clone()),
        to: "gamma".parse()?,
        to_peering: peering.clone(),
        descriptor: descriptor.clone(),
        hops_left: 3,
    };
    cases.push((
        "delegate, to one peer".to_owned(),
        Box::new(move |all| drop(black_box(all.delegate(&delegate)))),
    ));
    for count in CHOICES {
        let offer = |at: usize| Candidate {
            via: (at > 0).then(|| peer.clone()),
            peering: (at > 0).then(|| peering.clone()),
            price_milli: 100 + at as u64,
            class: "standard".to_owned(),
            country: "SE".to_owned(),
            distance: u8::from(at > 0),
            runs: true,
            group: 0,
        };
        let offers: Vec<Candidate> = (0..count).map(offer).collect();
        let expose =
            Expose { peer: peer.clone(), peering: peering.clone(), offers: offers.clone() };
        let rank = Rank { descriptor: descriptor.clone(), offers };
        let of = |what: &str| format!("{what}, {count} offer{}", if count > 1 { "s" } else { "" });
        cases.push((of("expose"), Box::new(move |all| drop(black_box(all.expose(&expose))))));
        cases.push((of("rank"), Box::new(move |all| drop(black_box(all.rank(&rank))))));
    }
    cases.extend(about_moves(peer, peering, descriptor));
    Ok(cases)
}

fn about_moves(peer: PeerName, peering: Peering, descriptor: Descriptor) -> [(String, Decide); 3] {
    let transfer = Transfer {
        peer: peer.clone(),
        peering: peering.clone(),
        descriptor: descriptor.clone(),
        size: Bytes::mib(512),
        must_meet: false,
    };
    let share = Share {
        peer: Some(peer.clone()),
        peering: Some(peering),
        role: TransferRole::Source,
        descriptor: descriptor.clone(),
        urgent: false,
    };
    let trigger = Trigger {
        descriptor,
        measure: "web.users".to_owned(),
        condition: "> 1000 for 30 s".to_owned(),
        value: 1200.0,
        age_ms: 400,
        delegate: Some(peer),
    };
    [
        ("transfer".to_owned(), Box::new(move |all| _ = black_box(all.transfer(&transfer)))),
        ("share".to_owned(), Box::new(move |all| _ = black_box(all.share(&share)))),
        ("trigger".to_owned(), Box::new(move |all| drop(black_box(all.trigger(&trigger))))),
    ]
}
