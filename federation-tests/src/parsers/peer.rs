//! A peer that says what it likes, and a running machine that must bear it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use model::{EdgeHandle, Monitoring, OperationId, PublicKey, Signature, TransferEnd, VmId};
use protocol::{Action, Answer, Ask, CallId, Config, Hop, Mode, Op, Origin, Request};
use serde::{Deserialize, Serialize};

use crate::world::{Crypto, Federation, Flight, Line, Load, World, site};

/// Things that happen in one input.
const MAX_SAID: usize = 12;

/// The site whose machine is under test.
const SITE: &str = "alpha";
/// The peer that may say anything; it has an honest machine, and a liar speaks in its name.
const PEER: &str = "mallory";

/// Something that happens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Said {
    /// The peer asks for something, along any edge, in anybody's name.
    Asks {
        edge: Option<EdgeHandle>,
        hops_left: u8,
        time_left_ms: u64,
        source: Option<TransferEnd>,
        target: Option<TransferEnd>,
        /// Its signature of a contract.
        taken: Option<Signature>,
        key: PublicKey,
        op: Op,
    },
    /// The peer answers the first request on its way to it.
    Answers(Answer),
    /// Time passes.
    Waits { seconds: u16 },
    /// The site's user wants something that involves the peer.
    Wishes { what: u8 },
}

/// A site and a peer, with a VM of either at the other, and one more at home.
pub(super) struct Stage {
    pub(super) federation: Federation,
    /// The site's, at the peer.
    away: VmId,
    /// The peer's, at the site.
    guest: VmId,
    /// The site's, not placed.
    home: VmId,
}

static STAGE: LazyLock<Stage> = LazyLock::new(|| set_up(|_| {}));

/// Builds the stage; `prepare` sees the world before the first VM is placed.
pub(super) fn set_up(prepare: impl FnOnce(&mut World)) -> Stage {
    const A_MINUTE: Duration = Duration::from_secs(60);
    let mut world = World::with(&[SITE, PEER], Crypto::Fast, &Config::default());
    world.peer(SITE, PEER);
    world.host(SITE, "a1", 4);
    world.host(PEER, "m1", 4);
    prepare(&mut world);
    let away = world.import(SITE);
    let operation = world.move_to(SITE, away, &[PEER]);
    world.result(SITE, operation);
    let guest = world.import(PEER);
    let operation = world.move_to(PEER, guest, &[SITE]);
    world.result(PEER, operation);
    let home = world.import(SITE);
    world.run(A_MINUTE);
    world.calm();
    let mut federation = world.federation;
    federation.log.clear();
    Stage { federation, away, guest, home }
}

/// What a peer says to a running machine: requests along any edge, answers to what it was asked,
/// one after the other. The machine does not panic, and the rules hold that the scenarios check.
///
/// # Panics
///
/// If a promise is broken.
pub fn peer(data: &[u8]) {
    let mut world = World::with(&[], Crypto::Fast, &Config::default());
    world.federation = STAGE.federation.clone();
    let mut rest = data;
    for number in 0..MAX_SAID {
        let Ok((said, behind)) = postcard::take_from_bytes::<Said>(rest) else { break };
        rest = behind;
        happen(&mut world, number, said);
    }
    world.run(Duration::from_secs(600));
}

fn happen(world: &mut World, number: usize, said: Said) {
    const A_MOMENT: Duration = Duration::from_millis(20);
    match said {
        Said::Asks { edge, hops_left, time_left_ms, source, target, taken, key, op } => {
            let body = postcard::to_stdvec(&op).expect("plain data");
            let sealed = protocol::Sealed { body, signature: Signature([0; 64]) };
            let hops_left = hops_left.min(model::limit::MAX_HOPS);
            let time_left = Duration::from_millis(time_left_ms);
            let request = Box::new(Request {
                origin: Origin { op, key, sealed: Some(Arc::new(sealed)) },
                hop: Hop { edge, hops_left, time_left, source, target, taken },
            });
            // Nobody waits for the answer.
            let from = Line { site: site(PEER), life: u32::MAX, call: CallId(number as u64) };
            world.federation.forge(Load::Request { from, to: site(SITE), request });
            world.run(A_MOMENT);
        }
        Said::Answers(answer) => {
            let asked = |flight: &Flight| match &flight.load {
                Load::Request { to, .. } => *to == site(PEER),
                Load::Answer { .. } => false,
            };
            let at = world.federation.flights.iter().position(asked);
            if let Some(at) = at
                && let Load::Request { from, .. } = world.federation.flights.remove(at).load
            {
                let answer = Ok(Box::new(answer));
                world.federation.forge(Load::Answer { to: from, from: site(PEER), answer });
            }
            world.run(Duration::ZERO);
        }
        Said::Waits { seconds } => world.run(Duration::from_secs(seconds.into())),
        Said::Wishes { what } => {
            let wish = wish(what, number);
            world.begin(SITE, wish);
        }
    }
}

fn wish(what: u8, number: usize) -> Ask {
    let operation = OperationId([0xf0 | number as u8; 16]);
    let Stage { away, guest, home, .. } = *STAGE;
    let moves = |vm, local_only: bool| Ask::Move {
        operation,
        vm,
        peers: std::iter::once(site(PEER)).filter(|_| !local_only).collect(),
        local_only,
        boot: true,
        mode: Mode::Hibernate,
        dry_run: what >= 128,
    };
    let evicts = |vm| Ask::Evict {
        operation,
        vm,
        reason: "maintenance".to_owned(),
        within: Duration::from_secs(30),
    };
    match what % 9 {
        0 => moves(home, false),
        1 => moves(away, true),
        2 => evicts(guest),
        3 => evicts(home),
        4 => Ask::Control(away, Action::Show),
        5 => Ask::Control(away, Action::Destroy),
        6 => Ask::Reclaim { vm: away, at: site(PEER) },
        7 => Ask::Monitor(away, Monitoring::default()),
        _ => Ask::Control(guest, Action::Stop),
    }
}
