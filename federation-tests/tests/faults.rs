//! One fault at every place of whole journeys: a crash at every row that any site writes, a lost,
//! a repeated and a late message at every position. The journeys must come to their end with one
//! running guest, and leave nothing behind.

#![allow(clippy::print_stdout, reason = "a failing run is found by the last line")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use federation_tests::world::{Crypto, Fate, When, World, host};
use model::{Monitoring, VmId};
use protocol::{Action, Ask, Config, Row, TargetStep};

const SITES: [&str; 3] = ["a", "b", "c"];
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Lets a user of `at` move the VM to a host of this site.
fn home(world: &mut World, at: &str, vm: VmId) {
    let so = |world: &World| world.runs(vm, at);
    world.insist(at, "the VM comes home", |world| world.bring_home(at, vm), so);
}

/// From a over b to c; forced out to b; home to a.
fn place_evict_home(prepare: &dyn Fn(&mut World)) -> World {
    let mut world = World::chain(&SITES);
    prepare(&mut world);
    world.host("c", "c1", 1);
    let vm = world.import("a");
    world.insist("a", "the VM is placed", |w| w.place("a", vm), |w| w.runs(vm, "c"));
    let changed = |world: &World| world.revision("c", vm) > 0;
    world.ask_until("a", &Ask::Monitor(vm, Monitoring::default()), changed);
    world.host("b", "b1", 1);
    world.insist("c", "the VM leaves", |w| w.evict("c", vm, HOUR), |w| w.runs(vm, "b"));
    world.host("a", "a1", 1);
    home(&mut world, "a", vm);
    world.settle();
    assert!(world.runs(vm, "a"));
    assert!(world.revision("a", vm) > 0);
    assert_eq!(world.path("a", vm), ["a"]);
    for other in ["b", "c"] {
        assert!(
            !world.state(other).vms.contains_key(&vm),
            "{other} is on the path\n{}",
            world.story()
        );
    }
    world
}

/// The same where b passes on every transfer, and nobody can dial a.
fn through_a_relay(prepare: &dyn Fn(&mut World)) -> World {
    place_evict_home(&|world| {
        world.relay("b");
        world.dial_out("a");
        prepare(world);
    })
}

/// What goes wrong in a VM's life: handed back, out of reach, parked, drained, destroyed.
fn troubles(prepare: &dyn Fn(&mut World)) -> World {
    let mut world = World::chain(&SITES);
    prepare(&mut world);
    world.host("c", "c1", 1);
    world.host("b", "b1", 1);
    let vm = world.import("a");
    world.break_host("b", "b1", true);
    world.insist("a", "the VM is placed", |w| w.place("a", vm), |w| w.runs(vm, "c"));

    let back = world.bring_home("b", vm);
    world.run(HOUR);
    assert!(world.runs(vm, "c"), "handing back failed\n{}", world.story());
    let journey = world.state("b").journeys.get(&back);
    assert!(journey.is_none_or(|journey| journey.result.is_some()), "{}", world.story());

    // The Destination never reaches the Source, and the user loses patience.
    world.host("a", "a1", 1);
    world.cut("a", "c", true);
    let moving = world.bring_home("a", vm);
    world.run(MINUTE);
    world.begin("a", Ask::Cancel(moving));
    world.run(2 * 24 * HOUR);
    world.cut("a", "c", false);
    world.run(HOUR);
    assert_eq!(world.running_at(vm).len(), 1, "cancelling failed\n{}", world.story());

    // No place in time.
    let at = world.running_at(vm)[0].to_owned();
    if at == "c" {
        world.cut("b", "c", true);
        let parked = |world: &World| world.running_at(vm).is_empty();
        world.insist("c", "the VM is parked", |w| w.evict("c", vm, 10 * MINUTE), parked);
        world.cut("b", "c", false);
        world.run(HOUR);
    }
    home(&mut world, "a", vm);

    world.host("a", "a2", 1);
    let drained = |world: &World| world.host_of("a", vm).as_deref() == Some("a2");
    world.ask_until("a", &Ask::DrainHost(host("a1"), true), drained);
    world.run(HOUR);
    let removed = |world: &World| !world.state("a").hosts.contains_key(&host("a1"));
    world.ask_until("a", &Ask::RemoveHost(host("a1")), removed);
    let running = |world: &World| world.runs(vm, "a");
    world.run_until("the VM runs on the other host", HOUR, running);

    world.insist(
        "a",
        "the VM is placed again",
        |w| w.move_to("a", vm, &["b"]),
        |w| w.runs(vm, "c"),
    );
    let gone = |world: &World| world.state("a").vms[&vm].destroyed;
    world.ask_until("a", &Ask::Control(vm, Action::Destroy), gone);
    world.settle();
    assert!(world.running_at(vm).is_empty());
    world
}

/// c has all of the VM, and loses its Source before it hears what became of it, until it keeps
/// nothing of it any more.
fn forsaken(prepare: &dyn Fn(&mut World)) -> World {
    let config = Config { admit_life: 5 * MINUTE, ready_life: 5 * MINUTE, ..Config::default() };
    let mut world = World::with(&SITES, Crypto::Fast, &config);
    world.peer("a", "b");
    world.peer("b", "c");
    prepare(&mut world);
    world.host("c", "c1", 1);
    let vm = world.import("a");
    world.place("a", vm);
    let sent = |world: &World| {
        let mut migrations = world.state("c").migrations.values();
        let steps = migrations.find_map(|migration| Some(migration.target.as_ref()?.step));
        steps == Some(TargetStep::Ready)
    };
    world.run_while(HOUR, |world| !sent(world));
    // The READY has passed b.
    world.run(Duration::from_millis(6));
    world.cut("a", "c", true);
    world.cut("b", "c", true);
    world.run(11 * MINUTE);
    world.cut("a", "c", false);
    world.cut("b", "c", false);
    world.insist("a", "the VM is placed", |w| w.place("a", vm), |w| w.runs(vm, "c"));
    world.settle();
    world
}

type Journey = fn(&dyn Fn(&mut World)) -> World;

/// Runs a journey once for every row of every site, with a crash at it; tells which rows there
/// were.
fn crash_everywhere(journey: Journey) -> BTreeSet<&'static str> {
    let mut covered = BTreeSet::new();
    let mut runs = 0;
    for site in SITES {
        for kind in Row::KINDS {
            for when in [When::Before, When::After] {
                for skip in 0.. {
                    println!("crash of {site} {when:?} {kind}, {skip} skipped");
                    let world = journey(&|world| world.crash_at(site, kind, when, skip));
                    runs += 1;
                    if world.crashes().is_empty() {
                        break;
                    }
                    covered.insert(kind);
                }
            }
        }
    }
    println!("{runs} journeys, {} kinds of rows", covered.len());
    covered
}

#[test]
fn a_crash_at_any_row_of_any_site_is_survived() {
    let mut covered = crash_everywhere(place_evict_home);
    covered.extend(crash_everywhere(through_a_relay));
    covered.extend(crash_everywhere(troubles));
    covered.extend(crash_everywhere(forsaken));
    // Written only when an operator rescues a VM or a node, which no journey here asks for.
    let rescues = ["adopted", "superseded", "reclaimed", "rerouted", "fenced", "unfenced"];
    let all = Row::KINDS.iter().filter(|kind| !rescues.contains(kind));
    let missing: Vec<_> = all.filter(|kind| !covered.contains(*kind)).collect();
    assert!(missing.is_empty(), "no crash at {missing:?}");
}

/// Runs a journey once for every message, with this fate for it.
fn trouble_every_message(journey: Journey, fate: Fate) {
    for nth in 0.. {
        println!("message {nth}: {fate:?}");
        let seen = Rc::new(Cell::new(0));
        let count = seen.clone();
        journey(&move |world: &mut World| {
            let count = count.clone();
            world.network(move |_| {
                count.set(count.get() + 1);
                if count.get() == nth + 1 { fate } else { Fate::Arrives }
            });
        });
        if seen.get() <= nth {
            return println!("{nth} messages");
        }
    }
}

#[test]
fn any_lost_message_is_survived() {
    trouble_every_message(place_evict_home, Fate::Lost);
    trouble_every_message(through_a_relay, Fate::Lost);
    trouble_every_message(troubles, Fate::Lost);
    trouble_every_message(forsaken, Fate::Lost);
}

#[test]
fn any_repeated_message_is_survived() {
    trouble_every_message(place_evict_home, Fate::Twice);
    trouble_every_message(through_a_relay, Fate::Twice);
    trouble_every_message(troubles, Fate::Twice);
    trouble_every_message(forsaken, Fate::Twice);
}

#[test]
fn any_late_message_is_survived() {
    for late in [Duration::from_secs(2), Duration::from_secs(45)] {
        trouble_every_message(place_evict_home, Fate::Late(late));
        trouble_every_message(through_a_relay, Fate::Late(late));
        trouble_every_message(troubles, Fate::Late(late));
        trouble_every_message(forsaken, Fate::Late(late));
    }
}
