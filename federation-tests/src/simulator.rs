//! Federations by the million: each seed makes a federation, its users, and everything that goes
//! wrong in it; the rules are checked after every event, and in the end every VM must be found.
//!
//! A run is a pure function of its seed. A run that breaks a rule is cut down to the fewest deeds
//! that still break one.

mod plan;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use model::{Monitoring, OperationId, VmId};
use protocol::{Ask, Reply};

pub use plan::Plan;
use plan::{Deed, Dice, HOSTS, NAMES, Wish};

use crate::world::{Crypto, Fate, World, host, site};

const HOUR: Duration = Duration::from_secs(3600);
/// How many shorter runs are tried to cut a failing one down.
const MAX_SHRINKS: usize = 400;

/// What was met, and how often: `("row", "released")`, `("fault", "crash")`, …
pub type Met = BTreeMap<(&'static str, &'static str), u64>;

/// How a run went.
#[derive(Debug, Clone)]
pub struct Run {
    /// The rule that was broken, and the latest of what happened before.
    pub broken: Option<String>,
    /// What was met.
    pub met: Met,
    /// Everything that happened, if it was kept.
    pub trace: Vec<String>,
}

/// Runs a plan. `trace` keeps what happens, for people; it changes nothing else.
///
/// Panics within are taken for broken rules; whoever does not want them printed sets a panic hook.
pub fn run(plan: &Plan, trace: bool) -> Run {
    let names = &NAMES[..plan.sites];
    let mut world = World::with(names, Crypto::Fast, &plan.config());
    world.federation.logging = trace;
    world.federation.counting = true;
    let result = catch_unwind(AssertUnwindSafe(|| play(plan, &mut world)));
    let broken = result.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned())
    });
    Run { broken, met: world.federation.met, trace: world.federation.log }
}

/// Which rule was broken: the first line of the reason, without numbers and identifiers.
pub fn rule(why: &str) -> String {
    let words = why.lines().next().unwrap_or_default().split_whitespace();
    let words = words.filter(|word| !word.contains(|letter: char| letter.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}

/// The shortest plan found of which this still is so.
pub fn shrink(plan: &Plan, so: impl Fn(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut left = MAX_SHRINKS;
    let mut chunk = best.deeds.len().div_ceil(2).max(1);
    let mut is_so = |plan: &Plan| {
        left = left.saturating_sub(1);
        left > 0 && so(plan)
    };
    if best.odds > 0 {
        let calm = Plan { odds: 0, ..best.clone() };
        if is_so(&calm) {
            best = calm;
        }
    }
    loop {
        let mut at = 0;
        let before = best.deeds.len();
        while at < best.deeds.len() {
            let mut shorter = best.clone();
            let end = (at + chunk).min(shorter.deeds.len());
            // The time passes all the same.
            let lost: Duration = shorter.deeds.drain(at..end).map(|(_, span)| span).sum();
            if let Some(before) = at.checked_sub(1) {
                shorter.deeds[before].1 += lost;
            }
            if is_so(&shorter) {
                best = shorter;
            } else {
                at += chunk;
            }
        }
        if chunk == 1 && best.deeds.len() == before {
            return best;
        }
        chunk = (chunk / 2).max(1);
    }
}

fn play(plan: &Plan, world: &mut World) {
    for (one, to) in &plan.links {
        world.peer(NAMES[*one], NAMES[*to]);
    }
    plan.relays.iter().for_each(|at| world.relay(NAMES[*at]));
    plan.dials_out.iter().for_each(|at| world.dial_out(NAMES[*at]));
    for at in &NAMES[..plan.sites] {
        for name in HOSTS {
            world.host(at, name, plan.room);
        }
    }
    let vms: Vec<VmId> = (0..plan.vms).map(|_| world.import(NAMES[0])).collect();
    let (seed, odds) = (plan.seed, plan.odds);
    let mut message = 0_u64;
    world.network(move |_| {
        message += 1;
        let mut dice = Dice(seed ^ (message << 20));
        if dice.below(100) >= odds {
            return Fate::Arrives;
        }
        match dice.below(3) {
            0 => Fate::Lost,
            1 => Fate::Twice,
            _ => Fate::Late(Duration::from_millis(dice.throw() % 40_000)),
        }
    });
    let mut operations = vec![];
    for (deed, span) in &plan.deeds {
        perform(plan, world, &vms, &mut operations, *deed);
        world.run(*span);
        world.met_moves();
    }
    end(plan, world, &vms);
}

fn perform(
    plan: &Plan,
    world: &mut World,
    vms: &[VmId],
    operations: &mut Vec<OperationId>,
    deed: Deed,
) {
    let ends = |link: usize| {
        let (one, other) = plan.links[link];
        (NAMES[one], NAMES[other])
    };
    match deed {
        Deed::Ask(at, wish) => {
            world.met("wish", name_of(&wish));
            if let Wish::Host(number, true) = wish {
                world.open_host(NAMES[at], HOSTS[number]);
            }
            let ask = ask(plan, wish, vms, operations);
            world.begin(NAMES[at], ask);
        }
        Deed::CrashAt(at, kind, when) => world.crash_at(NAMES[at], kind, when, 0),
        Deed::Crash(at) if world.is_up(NAMES[at]) => {
            world.met("fault", "crash");
            world.crash(NAMES[at]);
        }
        Deed::PowerFailure(at) if world.is_up(NAMES[at]) => {
            world.met("fault", "power failure");
            world.power_failure(NAMES[at]);
        }
        Deed::Crash(_) | Deed::PowerFailure(_) => {}
        Deed::StartAll => {
            for down in world.federation.down() {
                world.start(down.as_str());
            }
        }
        Deed::Cut { link, one_way } => {
            let (one, other) = ends(link);
            world.met("fault", if one_way { "cut one way" } else { "cut both ways" });
            world.cut_one_way(one, other, true);
            if !one_way {
                world.cut_one_way(other, one, true);
            }
        }
        Deed::Join(link) => {
            let (one, other) = ends(link);
            world.cut(one, other, false);
        }
        Deed::Slow(link, by) => {
            let (one, other) = ends(link);
            world.met("fault", "slow link");
            world.slow(one, other, Duration::from_millis(by));
        }
        Deed::BreakHost { site, host, broken } => {
            world.met("fault", "broken host");
            world.break_host(NAMES[site], HOSTS[host], broken);
        }
        Deed::SetClock(at, by) => {
            world.met("fault", "clock jump");
            world.set_clock(NAMES[at], by);
        }
        Deed::FullJournal(at, full) => {
            world.met("fault", "full disk (journal)");
            world.fill_journal(NAMES[at], full);
        }
        Deed::FullFiles(at, full) => {
            world.met("fault", "full disk (files)");
            world.fill_files(NAMES[at], full);
        }
        Deed::Damage(at) => {
            world.met("fault", "damaged files");
            world.damage(NAMES[at]);
        }
        Deed::SlowDisk(at, by) => {
            world.met("fault", "slow disk");
            world.slow_disk(NAMES[at], Duration::from_millis(by));
        }
        Deed::Gone(at) => {
            world.met("fault", "peer gone for good");
            world.lose_for_good(NAMES[at]);
        }
        Deed::Leave { link, second, within } => {
            let (one, other) = ends(link);
            let (at, peer) = if second { (other, one) } else { (one, other) };
            if world.is_up(at) {
                world.met("fault", "peering ended");
                world.leave(at, peer, Some(Duration::from_secs(within)));
            }
        }
        Deed::Restore(at, share) => {
            if world.restore_journal(NAMES[at], share) {
                world.met("fault", "journal from an old copy");
            }
        }
    }
}

fn name_of(wish: &Wish) -> &'static str {
    match wish {
        Wish::Move { dry_run: true, .. } => "look for offers",
        Wish::Move { local: true, .. } => "move here",
        Wish::Move { .. } => "move",
        Wish::Evict { .. } => "evict",
        Wish::Cancel(_) => "cancel",
        Wish::Drain(..) => "drain",
        Wish::Host(_, true) => "add a host",
        Wish::Host(_, false) => "remove a host",
        Wish::Control(..) => "control",
        Wish::Reclaim(..) => "reclaim",
        Wish::Monitor(_) => "change what is monitored",
    }
}

fn ask(plan: &Plan, wish: Wish, vms: &[VmId], operations: &mut Vec<OperationId>) -> Ask {
    let count = u8::try_from(operations.len() + 1).expect("few operations");
    let operation = OperationId([count; 16]);
    match wish {
        Wish::Move { vm, local, boot, mode, dry_run } => {
            operations.push(operation);
            Ask::Move {
                operation,
                vm: vms[vm],
                peers: Default::default(),
                local_only: local,
                boot,
                mode,
                dry_run,
            }
        }
        Wish::Evict { vm, within } => {
            operations.push(operation);
            let within = Duration::from_secs(within);
            Ask::Evict { operation, vm: vms[vm], reason: "maintenance".to_owned(), within }
        }
        Wish::Cancel(back) => {
            let last = operations.len().checked_sub(1 + back).map(|at| operations[at]);
            Ask::Cancel(last.unwrap_or(operation))
        }
        Wish::Drain(at, drain) => Ask::DrainHost(host(HOSTS[at]), drain),
        Wish::Host(at, true) => Ask::AddHost(host(HOSTS[at]), World::room(plan.room)),
        Wish::Host(at, false) => Ask::RemoveHost(host(HOSTS[at])),
        Wish::Control(vm, action) => Ask::Control(vms[vm], action),
        Wish::Reclaim(vm, at) => Ask::Reclaim { vm: vms[vm], at: site(NAMES[at]) },
        // What is in it does not matter to the rules; its revision does.
        Wish::Monitor(vm) => Ask::Monitor(vms[vm], Monitoring::default()),
    }
}

/// All faults end. Nothing may be left over, every VM must be owned by one site, and its primary's
/// user must get it home and running.
fn end(plan: &Plan, world: &mut World, vms: &[VmId]) {
    world.heal();
    for (one, to) in &plan.links {
        world.slow(NAMES[*one], NAMES[*to], Duration::ZERO);
        world.cut(NAMES[*one], NAMES[*to], false);
    }
    let there: Vec<&str> =
        NAMES[..plan.sites].iter().copied().filter(|at| world.is_up(at)).collect();
    for at in &there {
        for name in HOSTS {
            world.break_host(at, name, false);
            world.host(at, name, plan.room);
            world.begin(at, Ask::DrainHost(host(name), false));
        }
    }
    if plan.restores() {
        // Where it could not be done before, now that everybody is there to remember.
        for (deed, span) in &plan.deeds {
            if matches!(deed, Deed::Restore(..)) {
                perform(plan, world, vms, &mut vec![], *deed);
                world.run(*span);
            }
        }
        // Who has forgotten something may have forgotten a VM; it must not run twice all the same.
        world.run(2 * HOUR);
        for at in &there {
            // An operator who has asked around knows.
            if world.remembers_best(at) {
                world.begin(at, Ask::Unfence { vm: None });
            }
        }
        world.run(6 * HOUR);
        return;
    }
    if plan.loses_a_site() {
        // Copies that were frozen are kept for a day.
        world.run(12 * HOUR);
        for vm in vms {
            rescue(world, *vm);
        }
        return;
    }
    leave(plan, world);
    world.settle();
    world.host(NAMES[0], "spare", u32::try_from(vms.len()).expect("few VMs"));
    for vm in vms {
        if world.is_destroyed(*vm) {
            assert!(world.running_at(*vm).is_empty(), "a destroyed VM runs\n{}", world.story());
            continue;
        }
        let owners = world.owners(*vm);
        assert_eq!(owners.len(), 1, "{vm} is owned by {owners:?}\n{}", world.story());
        let (owner, runs, wanted) = &owners[0];
        assert!(*runs || !wanted, "{vm} should run at {owner}\n{}", world.story());
        let home = NAMES[0];
        let before = world.revision(home, *vm);
        world.ask_until(home, &Ask::Monitor(*vm, Monitoring::default()), |world| {
            let now = world.revision(home, *vm);
            now > before && world.revision(owner, *vm) == now
        });
        if !world.runs(*vm, home) {
            world.insist(
                home,
                "the VM comes home",
                |world| world.bring_home(home, *vm),
                |world| world.runs(*vm, home),
            );
        }
        if plan.reclaims() {
            // Sites that were passed over while they were there are not told.
            continue;
        }
        world.settle();
        assert_eq!(world.path(home, *vm), [home], "its path is not closed\n{}", world.story());
        for other in &NAMES[1..plan.sites] {
            let known = world.state(other).vms.contains_key(vm);
            assert!(!known, "{other} is on the path of {vm}\n{}", world.story());
        }
    }
}

/// Where a peering was to end, nothing is shared any more when there is a place for every VM: nobody
/// is stranded. Then they meet again, for what is looked at next.
fn leave(plan: &Plan, world: &mut World) {
    for (deed, _) in &plan.deeds {
        let Deed::Leave { link, second, .. } = *deed else { continue };
        let (one, other) = plan.links[link];
        let (at, peer) = if second { (other, one) } else { (one, other) };
        let (at, peer) = (NAMES[at], NAMES[peer]);
        if world.is_ending(at, peer) && !plan.reclaims() {
            world.host(NAMES[0], "refuge", u32::try_from(plan.vms).expect("few VMs"));
            world.run_until("nothing is shared", 12 * HOUR, |world| world.has_left(at, peer));
        }
        world.leave(at, peer, None);
    }
}

/// A site is lost for good: what an operator of the primary does about a VM.
fn rescue(world: &mut World, vm: VmId) {
    let home = NAMES[0];
    if world.is_destroyed(vm) {
        return;
    }
    let owners = world.owners(vm);
    assert!(owners.len() <= 1, "{vm} is owned by {owners:?}\n{}", world.story());
    match owners.first() {
        Some((owner, ..)) if owner != home => {
            // The path to it may have gone with the site.
            let owner = owner.clone();
            world.peer(home, &owner);
            let reply = world.ask(home, Ask::Reclaim { vm, at: site(&owner) });
            assert_eq!(reply, Reply::Done, "{vm} is not reclaimed\n{}", world.story());
            world.met("rescue", "reclaimed");
            world.run(HOUR);
        }
        Some(_) => {}
        None => {
            let statement = "the other site has burnt down".to_owned();
            let is_frozen = world.has_frozen(home, vm);
            match world.ask(home, Ask::Adopt { vm, statement }) {
                Reply::Done => world.met("rescue", "adopted"),
                // It was with the lost site for so long that no copy is left.
                _ if !is_frozen => world.met("rescue", "lost with its site"),
                reply => panic!("{vm} is not adopted: {reply:?}\n{}", world.story()),
            }
            world.run(HOUR);
        }
    }
    let running = world.running_at(vm);
    assert!(running.len() <= 1, "{vm} runs at {running:?}\n{}", world.story());
}
