//! Journeys of VMs through small federations, step by step in virtual time.

use std::time::Duration;

use federation_tests::world::{Crypto, Fate, Flight, Load, When, World, asks, host, site};
use model::PowerState::{Active, Defined, Paused, Suspended};
use model::key::Strict;
use model::{Bytes, Epoch, Monitoring, Signature, Signed, VmId};
use protocol::{
    Action, Answer, Ask, Config, JourneyResult, LIBRARY, Mode, Outcome, Reply, SourceStep,
    TargetStep,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// a knows b, b knows c; the VM of a runs at c.
fn placed_at_c() -> (World, VmId) {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("c", "c1", 4);
    let vm = world.import("a");
    let operation = world.place("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "c");
    (world, vm)
}

#[test]
fn a_vm_is_placed_through_an_intermediary_by_a_primary_that_does_not_know_the_destination() {
    let (mut world, vm) = placed_at_c();
    assert_eq!(world.path("a", vm), ["a", "b", "c"]);
    assert_eq!(world.power("a", vm), Active);
    assert_eq!(world.epoch("a", vm), Some(Epoch(1)));
    world.settle();
    assert!(world.runs(vm, "c"));
    assert_eq!(world.host_of("b", vm), None);
}

#[test]
fn the_same_journey_holds_with_real_signatures() {
    let mut world = World::with(&["a", "b", "c"], Crypto::Real, &Config::default());
    world.peer("a", "b");
    world.peer("b", "c");
    world.host("a", "a1", 4);
    world.host("c", "c1", 4);
    let vm = world.import("a");
    let away = world.move_to("a", vm, &["b"]);
    assert_eq!(world.result("a", away), JourneyResult::Done);
    world.until_runs(vm, "c");
    let home = world.bring_home("a", vm);
    assert_eq!(world.result("a", home), JourneyResult::Done);
    world.until_runs(vm, "a");
    world.settle();
}

#[test]
fn draining_a_host_moves_its_guest_to_another_host_of_the_site_with_its_memory() {
    let (mut world, vm) = placed_at_c();
    let memory = world.memory(vm);
    world.host("c", "c2", 4);
    let Reply::BeganMany(operations) = world.ask("c", Ask::DrainHost(host("c1"), true)) else {
        panic!("draining began nothing")
    };
    assert_eq!(operations.len(), 1);
    assert_eq!(world.result("c", operations[0]), JourneyResult::Done);
    world.until_runs(vm, "c");
    assert_eq!(world.host_of("c", vm).as_deref(), Some("c2"));
    assert_eq!(world.memory(vm), memory);
    assert_eq!(world.path("a", vm), ["a", "b", "c"]);
    world.settle();
    assert_eq!(world.epoch("a", vm), world.epoch("c", vm));
    assert_eq!(world.ask("c", Ask::RemoveHost(host("c1"))), Reply::Done);
}

#[test]
fn news_from_below_reaches_the_primary_though_the_site_between_restarts_before_it_could_pass_it_on()
{
    let (mut world, vm) = placed_at_c();
    world.host("c", "c2", 4);
    world.crash("a");
    let Reply::BeganMany(operations) = world.ask("c", Ask::DrainHost(host("c1"), true)) else {
        panic!("draining began nothing")
    };
    assert_eq!(world.result("c", operations[0]), JourneyResult::Done);
    world.run_until("b has heard of it", MINUTE, |world| world.epoch("b", vm) == Some(Epoch(2)));
    world.crash("b");
    world.start("b");
    world.start("a");
    world.run_until("a has heard of it", HOUR, |world| world.epoch("a", vm) == Some(Epoch(2)));
    world.settle();
}

#[test]
fn a_guest_forced_out_of_its_site_comes_up_at_the_delegator_with_its_memory() {
    let (mut world, vm) = placed_at_c();
    let memory = world.memory(vm);
    world.host("b", "b1", 4);
    let operation = world.evict("c", vm, HOUR);
    world.until_runs(vm, "b");
    assert_eq!(world.memory(vm), memory);
    assert_eq!(world.result("c", operation), JourneyResult::PassedUp);
    world.settle();
    assert!(world.runs(vm, "b"));
    assert_eq!(world.path("a", vm), ["a", "b"]);
    assert!(!world.state("c").vms.contains_key(&vm), "c still stands on the path");
}

#[test]
fn the_primary_brings_its_vm_home_with_its_memory_and_closes_the_path() {
    let (mut world, vm) = placed_at_c();
    let memory = world.memory(vm);
    world.host("a", "a1", 4);
    let operation = world.bring_home("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "a");
    assert_eq!(world.memory(vm), memory);
    world.settle();
    assert_eq!(world.path("a", vm), ["a"]);
    for other in ["b", "c"] {
        assert!(!world.state(other).vms.contains_key(&vm), "{other} still stands on the path");
    }
}

#[test]
fn chains_of_two_three_and_five_sites_carry_a_vm_to_their_end_and_home_again() {
    for length in [2, 3, 5] {
        let names = &["a", "b", "c", "d", "e"][..length];
        let last = names[length - 1];
        let mut world = World::chain(names);
        world.host(last, "h1", 1);
        let vm = world.import("a");
        let operation = world.place("a", vm);
        assert_eq!(world.result("a", operation), JourneyResult::Done, "{length} sites");
        world.until_runs(vm, last);
        assert_eq!(world.path("a", vm), names);
        world.host("a", "a1", 1);
        let operation = world.bring_home("a", vm);
        assert_eq!(world.result("a", operation), JourneyResult::Done, "{length} sites");
        world.until_runs(vm, "a");
        world.settle();
        assert_eq!(world.path("a", vm), ["a"]);
    }
}

#[test]
fn a_request_in_a_circle_of_peers_ends() {
    let mut world = World::of(&["a", "b", "c"]);
    for (one, other) in [("a", "b"), ("b", "c"), ("c", "a")] {
        world.peer(one, other);
    }
    let vm = world.import("a");
    let operation = world.place("a", vm);
    let JourneyResult::NoPlace(reasons) = world.result("a", operation) else {
        panic!("there is no place")
    };
    assert!(!reasons.is_empty());
    assert!(world.elapsed() < MINUTE, "it took {:?}", world.elapsed());
    world.host("c", "c1", 1);
    let operation = world.place("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "c");
    world.settle();
}

#[test]
fn a_dead_peer_among_several_costs_its_time_limit_and_nothing_else() {
    let mut world = World::of(&["a", "b", "dead"]);
    world.peer("a", "b");
    world.peer("a", "dead");
    world.host("b", "b1", 1);
    let vm = world.import("a");
    let to_dead = |load: &Load| matches!(load, Load::Request { to, .. } if *to == site("dead"));
    world.network(
        move |flight| {
            if to_dead(&flight.load) { Fate::Late(48 * HOUR) } else { Fate::Arrives }
        },
    );
    let before = world.elapsed();
    let operation = world.place("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    let limit = Config::default().request_limit;
    let took = world.elapsed() - before;
    assert!(took < limit + Duration::from_secs(2), "it took {took:?}");
    world.until_runs(vm, "b");
}

#[test]
fn an_offer_that_is_gone_when_it_is_taken_makes_room_for_the_next() {
    let mut world = World::of(&["a", "b", "c"]);
    world.peer("a", "b");
    world.peer("a", "c");
    world.host("b", "b1", 1);
    world.host("c", "c1", 1);
    let (one, other) = (world.import("a"), world.import("a"));
    let operations = [world.place("a", one), world.place("a", other)];
    for operation in operations {
        assert_eq!(world.result("a", operation), JourneyResult::Done);
    }
    world.run(MINUTE);
    let mut places = [world.running_at(one), world.running_at(other)].concat();
    places.sort_unstable();
    assert_eq!(places, ["b", "c"]);
    world.settle();
}

#[test]
fn two_controllers_at_once_never_run_the_vm_twice_and_both_end() {
    let (mut world, vm) = placed_at_c();
    world.host("a", "a1", 1);
    world.host("b", "b1", 1);
    let at_a = world.bring_home("a", vm);
    let at_b = world.bring_home("b", vm);
    let results = [world.result("a", at_a), world.result("b", at_b)];
    assert!(results.contains(&JourneyResult::Done), "{results:?}");
    world.settle();
    assert_eq!(world.running_at(vm).len(), 1, "{results:?}");
}

#[test]
fn a_destination_that_cannot_launch_hands_back_and_the_guest_goes_on_at_the_source() {
    let (mut world, vm) = placed_at_c();
    let memory = world.memory(vm);
    world.host("b", "b1", 1);
    world.break_host("b", "b1", true);
    let operation = world.bring_home("b", vm);
    let JourneyResult::GaveUp(reason) = world.result("b", operation) else {
        panic!("it cannot have worked")
    };
    assert!(reason.contains("could not start"), "{reason}");
    world.until_runs(vm, "c");
    assert_eq!(world.memory(vm), memory);
    world.settle();
    assert!(world.runs(vm, "c"));
    // The next move finds a sound chain: out, back, and out again.
    world.break_host("b", "b1", false);
    let operation = world.bring_home("b", vm);
    assert_eq!(world.result("b", operation), JourneyResult::Done);
    world.until_runs(vm, "b");
    assert_eq!(world.memory(vm), memory);
    world.settle();
}

#[test]
fn an_eviction_comes_to_the_one_place_of_five_that_works() {
    let mut world = World::of(&["a", "b", "c", "d", "e", "f"]);
    for site in ["b", "c", "d", "e", "f"] {
        world.peer("a", site);
        world.host(site, "host", 1);
        world.break_host(site, "host", site != "f");
    }
    world.host("a", "a1", 1);
    let vm = world.import("a");
    let home = world.bring_home("a", vm);
    assert_eq!(world.result("a", home), JourneyResult::Done);
    let evicted = world.evict("a", vm, HOUR);
    world.until_runs(vm, "f");
    assert_eq!(world.result("a", evicted), JourneyResult::Done);
    world.settle();
}

#[test]
fn draining_a_host_comes_to_the_one_host_of_six_that_works() {
    let (mut world, vm) = placed_at_c();
    // Its delegator is not asked before they are all tried.
    for name in ["h1", "h2", "h3", "h4", "h5"] {
        world.host("c", name, 4);
        world.break_host("c", name, name != "h5");
    }
    world.ask("c", Ask::DrainHost(host("c1"), true));
    let is_there = |world: &World| world.host_of("c", vm).as_deref() == Some("h5");
    world.run_until("it is at the last host", HOUR, is_there);
    world.settle();
    assert!(world.runs(vm, "c"));
}

#[test]
fn an_eviction_that_finds_no_place_parks_the_vm_at_its_deadline_and_keeps_its_files() {
    let (mut world, vm) = placed_at_c();
    world.cut("b", "c", true);
    let operation = world.evict("c", vm, HOUR);
    world.run(59 * MINUTE);
    assert!(world.runs(vm, "c"), "it is stopped before its time");
    let result = world.result("c", operation);
    assert!(matches!(result, JourneyResult::Parked(_)), "{result:?}");
    world.run(MINUTE);
    assert_eq!(world.running_at(vm).len(), 0);
    assert!(world.state("c").vms[&vm].stay.is_some());
    world.cut("b", "c", false);
    world.settle();
    assert_eq!(world.power("a", vm), Suspended);
    let parked = world.state("a").vms[&vm].parked.clone();
    assert!(parked.is_some(), "the primary was not told");
}

#[test]
fn the_library_of_the_primary_is_the_last_resort_of_an_eviction() {
    let (mut world, vm) = placed_at_c();
    let operation = world.evict("c", vm, HOUR);
    assert_eq!(world.result("c", operation), JourneyResult::PassedUp);
    world.settle();
    assert_eq!(world.running_at(vm).len(), 0);
    assert_eq!(world.host_of("a", vm).as_deref(), Some(LIBRARY));
    assert_eq!(world.power("a", vm), Suspended);
    // From there it goes on as soon as there is room, with what it had in memory.
    world.host("a", "a1", 1);
    let operation = world.bring_home("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "a");
    world.settle();
}

#[test]
fn a_destroyed_vm_leaves_nothing_and_is_gone_for_every_site_on_its_path() {
    let (mut world, vm) = placed_at_c();
    assert_eq!(world.control("a", vm, Action::Destroy), Answer::Done);
    world.settle();
    assert_eq!(world.running_at(vm).len(), 0);
    for name in ["a", "b", "c"] {
        let entry = world.state(name).vms.get(&vm);
        assert!(entry.is_none_or(|vm| vm.destroyed), "{name} does not know");
        let node = &world.federation.nodes[&site(name)];
        assert!(node.copies.is_empty(), "{name} has files");
    }
    let again = world.ask("a", Ask::Control(vm, Action::Start));
    assert!(matches!(again, Reply::NotFound(_)), "{again:?}");
}

#[test]
fn the_run_state_is_changed_over_two_hops_and_only_in_legal_ways() {
    let (mut world, vm) = placed_at_c();
    let power = |answer| match answer {
        Answer::State { power, .. } => Some(power),
        _ => None,
    };
    for (action, result) in [
        (Action::Pause, Some(Paused)),
        (Action::Pause, Some(Paused)),
        (Action::Resume, Some(Active)),
        (Action::Hibernate, Some(Suspended)),
        (Action::Resume, None),
        (Action::Pause, None),
        (Action::Start, Some(Active)),
        (Action::Start, Some(Active)),
        (Action::Stop, Some(Defined)),
        (Action::Hibernate, None),
        (Action::Start, Some(Active)),
    ] {
        assert_eq!(power(world.control("a", vm, action)), result, "{action:?}");
    }
    world.settle();
    assert!(world.runs(vm, "c"));
}

#[test]
fn a_cancelled_move_leaves_the_guest_running_where_it_was() {
    let (mut world, vm) = placed_at_c();
    let memory = world.memory(vm);
    world.host("a", "a1", 1);
    for operation in ["migration request", "forced migration", "initiate transfer"] {
        world.network(
            move |flight| {
                if asks(flight, operation) { Fate::Late(MINUTE) } else { Fate::Arrives }
            },
        );
        let moving = world.bring_home("a", vm);
        world.run(Duration::from_millis(300));
        let reply = world.ask("a", Ask::Cancel(moving));
        if reply == Reply::Done {
            assert_eq!(world.result("a", moving), JourneyResult::Cancelled);
        }
        world.settle();
        assert_eq!(world.running_at(vm).len(), 1, "{operation}");
        assert_eq!(world.memory(vm), memory, "{operation}");
    }
}

#[test]
fn a_source_that_is_on_the_way_to_the_destination_stays_on_the_path() {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("b", "b1", 1);
    let vm = world.import("a");
    let operation = world.place("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "b");
    world.host("c", "c1", 1);
    let operation = world.place("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "c");
    world.settle();
    assert_eq!(world.path("a", vm), ["a", "b", "c"]);
    assert_eq!(world.power("a", vm), Active);
}

#[test]
fn a_forced_migration_that_comes_late_does_not_open_its_migration_again_at_the_new_owner() {
    // b has had the VM before, has passed it on, and is on the way to it by the edge of then.
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("b", "b1", 1);
    let vm = world.import("a");
    let operation = world.place("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.host("c", "c1", 1);
    let operation = world.move_to("b", vm, &["c"]);
    assert_eq!(world.result("b", operation), JourneyResult::Done);
    world.until_runs(vm, "c");
    let mut is_first = true;
    world.network(move |flight| {
        let to_b = matches!(&flight.load, Load::Request { to, .. } if *to == site("b"));
        if to_b && asks(flight, "forced migration") && std::mem::take(&mut is_first) {
            return Fate::Late(MINUTE);
        }
        Fate::Arrives
    });
    let operation = world.move_to("a", vm, &["b"]);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "b");
    let opened = |world: &World| {
        let migrations = world.state("b").migrations.values();
        migrations.filter(|migration| migration.source.is_some()).count()
    };
    let before = opened(&world);
    world.run(2 * MINUTE);
    assert_eq!(opened(&world), before, "{}", world.story());
    world.settle();
    assert!(world.runs(vm, "b"));
}

#[test]
fn a_dry_run_shows_the_ranking_and_leaves_nothing_behind() {
    let (mut world, vm) = placed_at_c();
    world.host("a", "a1", 1);
    world.host("b", "b1", 1);
    let before: Vec<_> = ["b", "c"].map(|name| world.state(name).clone()).into();
    let operation = world.dry_run("a", vm);
    let JourneyResult::Ranking(lines) = world.result("a", operation) else { panic!("no ranking") };
    assert_eq!(lines.len(), 2, "{lines:?}");
    world.settle();
    assert!(world.runs(vm, "c"));
    let after: Vec<_> = ["b", "c"].map(|name| world.state(name).clone()).into();
    assert_eq!(before, after);
}

#[test]
fn a_vm_moved_by_restart_boots_at_the_destination() {
    let (mut world, vm) = placed_at_c();
    world.host("b", "b1", 1);
    let memory = world.memory(vm);
    let operation = model::OperationId([77; 16]);
    world.begin(
        "b",
        Ask::Move {
            operation,
            vm,
            peers: Default::default(),
            local_only: true,
            boot: false,
            mode: Mode::Restart,
            dry_run: false,
        },
    );
    assert_eq!(world.result("b", operation), JourneyResult::Done);
    world.until_runs(vm, "b");
    assert_ne!(world.memory(vm), memory, "it was not booted");
    world.settle();
}

#[test]
fn a_move_that_is_cancelled_while_its_source_is_away_does_not_keep_the_vm_from_moving() {
    let (mut world, vm) = placed_at_c();
    world.host("a", "a1", 1);
    world.host("b", "b1", 1);
    world.network(|flight| match asks(flight, "initiate transfer") {
        true => Fate::Late(HOUR),
        false => Fate::Arrives,
    });
    let moving = world.move_to("a", vm, &["b"]);
    world.run(Duration::from_millis(300));
    assert!(world.state("c").open_source(vm).is_some(), "{}", world.story());
    world.crash("c");
    assert_eq!(world.ask("a", Ask::Cancel(moving)), Reply::Done);
    world.run(MINUTE);
    world.start("c");
    assert_eq!(world.result("a", moving), JourneyResult::Cancelled);
    world.calm();
    let operation = world.bring_home("b", vm);
    assert_eq!(world.result("b", operation), JourneyResult::Done);
    assert!(world.elapsed() < HOUR, "it had to wait\n{}", world.story());
    world.until_runs(vm, "b");
}

#[test]
fn a_guest_that_is_made_and_saved_at_once_runs_again_when_its_move_is_given_up_meanwhile() {
    for is_full in [false, true] {
        let mut world = World::chain(&["a", "b"]);
        world.host("a", "a1", 1);
        let vm = world.import("a");
        world.bring_home("a", vm);
        world.until_runs(vm, "a");
        world.host("b", "b1", 1);
        let moving = world.move_to("a", vm, &["b"]);
        let admitted = |world: &World| world.state("b").migrations_of(vm).next().is_some();
        world.run_until("b is to fetch it", MINUTE, admitted);
        world.power_failure("a");
        world.start("a");
        let initiated = |world: &World| {
            let open = world.state("a").open_source(vm).map(|(_, source)| source.step);
            open == Some(SourceStep::Initiated)
        };
        world.run_until("b comes for it before the guest is there", MINUTE, initiated);
        assert!(world.running_at(vm).is_empty());
        // Its memory may find no space.
        world.fill_files("a", is_full);
        assert_eq!(world.ask("a", Ask::Cancel(moving)), Reply::Done);
        world.until_runs(vm, "a");
        world.run(HOUR);
        assert!(world.runs(vm, "a"), "{}", world.story());
    }
}

#[test]
fn a_vm_that_is_being_saved_is_not_resumed_before_that_is_done() {
    let (mut world, vm) = placed_at_c();
    let memory = world.memory(vm);
    world.control("a", vm, Action::Pause);
    let saving = world.begin("a", Ask::Control(vm, Action::Hibernate));
    world.run(Duration::from_millis(20));
    let reply = world.control("a", vm, Action::Resume);
    assert!(matches!(reply, Answer::Conflict { .. }), "{reply:?}");
    world.run(MINUTE);
    assert!(world.reply(saving).is_some());
    assert_eq!(world.power("a", vm), Suspended);
    world.control("a", vm, Action::Start);
    world.until_runs(vm, "c");
    assert_eq!(world.memory(vm), memory);
}

#[test]
fn a_destination_that_is_ready_with_what_it_never_fetched_does_not_keep_the_vm_from_moving() {
    let mut world = World::chain(&["a", "b"]);
    world.host("a", "a1", 1);
    world.host("b", "b1", 1);
    let vm = world.import("a");
    let placed = world.bring_home("a", vm);
    assert_eq!(world.result("a", placed), JourneyResult::Done);
    world.until_runs(vm, "a");
    let began = world.elapsed();
    world.network(|flight| match asks(flight, "initiate transfer") {
        true => Fate::Late(HOUR),
        false => Fate::Arrives,
    });
    let moving = world.move_to("a", vm, &["b"]);
    world.run(Duration::from_millis(300));
    let at = world.federation.flights.iter().position(|flight| asks(flight, "initiate transfer"));
    let Load::Request { from, to, request } = world.federation.flights.remove(at.unwrap()).load
    else {
        unreachable!("it asks")
    };
    let ready = Signed::from_parts(vec![7], request.origin.key, Signature([7; 64]));
    let answer = Answer::Arrived { ready, size: Bytes(1), wire: Bytes(1) };
    world.federation.forge(Load::Answer { to: from, from: to, answer: Ok(Box::new(answer)) });
    assert!(matches!(world.result("a", moving), JourneyResult::GaveUp(_)));
    assert!(world.elapsed() - began < HOUR, "it had to wait\n{}", world.story());
    assert!(world.runs(vm, "a") && world.state("a").open_source(vm).is_none());
    world.calm();
    let again = world.move_to("a", vm, &["b"]);
    assert_eq!(world.result("a", again), JourneyResult::Done);
    world.until_runs(vm, "b");
}

/// c has all of a VM whose Source is out of its reach, before that has decided or, if `released`,
/// after it has; until c keeps it no longer.
fn forsaken(released: bool) -> (World, VmId) {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("c", "c1", 1);
    let vm = world.import("a");
    world.place("a", vm);
    let step = |world: &World| {
        let migration = world.state("c").migrations.values().next();
        migration.and_then(|migration| Some(migration.target.as_ref()?.step))
    };
    let ready = |world: &World| step(world) == Some(TargetStep::Ready);
    world.run_until("all is there", MINUTE, ready);
    if released {
        // The READY has passed b when b loses c.
        world.run(Duration::from_millis(6));
    }
    world.cut("a", "c", true);
    world.cut("b", "c", true);
    world.run(7 * 24 * HOUR);
    assert!(ready(&world), "c keeps it for as long as it has said\n{}", world.story());
    let next = world.next_move("c", vm).expect("c shows what it waits for");
    assert!(next.until.is_some(), "nothing waits for ever: {next:?}");
    world.run_until("c keeps it no longer", 2 * 24 * HOUR, |world| {
        step(world) == Some(TargetStep::Lapsed)
    });
    let decided = world.state("a").migrations.values().any(|migration| {
        migration.source.as_ref().is_some_and(|source| source.step == SourceStep::Released)
    });
    assert_eq!(decided, released, "{}", world.story());
    let free = world.state("c").taken().count();
    assert_eq!(free, 0, "c's capacity is free again");
    world.cut("a", "c", false);
    world.cut("b", "c", false);
    (world, vm)
}

#[test]
fn what_nobody_comes_for_is_deleted_at_last_and_the_vm_stays_with_its_source() {
    let (mut world, vm) = forsaken(false);
    world.insist("a", "it is placed after all", |w| w.place("a", vm), |w| w.runs(vm, "c"));
    world.settle();
}

#[test]
fn what_is_released_to_a_destination_that_keeps_it_no_longer_goes_back_and_is_not_lost() {
    let (mut world, vm) = forsaken(true);
    world.run_until("it goes back", HOUR, |world| {
        let mut owners = world.owners(vm).into_iter();
        owners.next().is_some_and(|(owner, ..)| owner == "a")
    });
    world.insist("a", "it is placed after all", |w| w.place("a", vm), |w| w.runs(vm, "c"));
    world.settle();
}

#[test]
fn a_vm_is_reclaimed_though_an_operation_waits_for_the_site_that_is_gone_and_goes_on_by_the_new_path()
 {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("b", "b1", 1);
    let vm = world.import("a");
    world.place("a", vm);
    world.until_runs(vm, "b");
    world.host("c", "c1", 1);
    world.host("a", "a1", 1);
    // What a asks comes too late: b has moved the VM on by then, and burns down.
    world.network(|flight| match flight.load.clone() {
        Load::Request { from, .. } if from.site == site("a") => Fate::Late(HOUR),
        _ => Fate::Arrives,
    });
    let home = world.bring_home("a", vm);
    world.move_to("b", vm, &["c"]);
    world.until_runs(vm, "c");
    world.lose_for_good("b");
    world.calm();
    world.run(HOUR);
    world.peer("a", "c");
    assert_eq!(world.ask("a", Ask::Reclaim { vm, at: site("c") }), Reply::Done);
    assert!(world.state("a").journeys[&home].result.is_none(), "it has not been given up");
    assert!(matches!(world.result("a", home), JourneyResult::GaveUp(_)));
    let home = world.bring_home("a", vm);
    assert_eq!(world.result("a", home), JourneyResult::Done);
    world.until_runs(vm, "a");
    assert_eq!(world.path("a", vm), ["a"]);
}

#[test]
fn a_vm_is_reclaimed_at_its_new_place_though_the_site_on_the_way_there_is_gone_before_it_is_handed_over()
 {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("c", "c1", 1);
    let vm = world.import("a");
    world.network(|flight| match asks(flight, "deliver") {
        true => Fate::Lost,
        false => Fate::Arrives,
    });
    let placed = world.place("a", vm);
    world.until_runs(vm, "c");
    world.lose_for_good("b");
    world.calm();
    world.run(HOUR);
    assert!(world.state("a").journeys[&placed].result.is_none());
    world.peer("a", "c");
    assert_eq!(world.ask("a", Ask::Reclaim { vm, at: site("c") }), Reply::Done);
    assert_eq!(world.result("a", placed), JourneyResult::Done);
    assert_eq!(world.path("a", vm), ["a", "c"]);
    assert_eq!(world.power("a", vm), Active);
    world.host("a", "a1", 1);
    let home = world.bring_home("a", vm);
    assert_eq!(world.result("a", home), JourneyResult::Done);
    world.until_runs(vm, "a");
}

/// The answers that tell of a release are lost.
fn release_is_not_told(flight: &mut Flight) -> Fate {
    match &flight.load {
        Load::Answer { answer: Ok(answer), .. } => match **answer {
            Answer::Verified(Outcome::Released(_)) => Fate::Lost,
            _ => Fate::Arrives,
        },
        _ => Fate::Arrives,
    }
}

#[test]
fn the_path_is_turned_though_the_source_is_gone_for_good_before_its_controller_hears_of_the_release()
 {
    let chains: [&[&str]; 3] = [&["a", "b"], &["a", "b", "d"], &["a", "b", "d", "e"]];
    let crashes = [None, Some(("a", "flipped")), Some(("b", "flipped")), Some(("a", "concluded"))];
    for (names, crash) in chains.iter().flat_map(|names| crashes.map(|crash| (names, crash))) {
        let mut world = World::of(&["a", "b", "c", "d", "e"]);
        names.windows(2).for_each(|pair| world.peer(pair[0], pair[1]));
        world.peer("a", "c");
        world.host("c", "c1", 1);
        let vm = world.import("a");
        let placed = world.place("a", vm);
        assert_eq!(world.result("a", placed), JourneyResult::Done);
        world.until_runs(vm, "c");
        let last = names[names.len() - 1];
        world.host(last, "h1", 1);
        world.network(release_is_not_told);
        if let Some((site, row)) = crash {
            world.crash_at(site, row, When::Before, 0);
        }
        let moved = world.move_to("a", vm, &["b"]);
        world.until_runs(vm, last);
        world.lose_for_good("c");
        let turned = |world: &World| world.path("a", vm) == **names;
        world.run_until("the path is turned", 10 * MINUTE, turned);
        assert_eq!(world.result("a", moved), JourneyResult::Done);
        assert_eq!(world.power("a", vm), Active);
        world.settle();
    }
}

#[test]
fn a_power_failure_ends_the_guest_and_the_site_boots_it_again() {
    let (mut world, vm) = placed_at_c();
    world.power_failure("c");
    assert_eq!(world.running_at(vm).len(), 0);
    world.start("c");
    world.until_runs(vm, "c");
    world.settle();
}

#[test]
fn what_is_monitored_is_changed_by_the_primary_alone_and_reaches_every_site_on_the_path() {
    let (mut world, vm) = placed_at_c();
    let change = || Ask::Monitor(vm, Monitoring::default());
    let Reply::Answer(answer) = world.ask("a", change()) else { panic!("no answer") };
    assert!(matches!(*answer, Answer::State { power: Active, .. }), "{answer:?}");
    assert_eq!(["a", "b", "c"].map(|at| world.revision(at, vm)), [1, 1, 1]);
    for at in ["b", "c"] {
        assert!(matches!(world.ask(at, change()), Reply::Conflict(_)), "{at} is not its primary");
    }
    assert_eq!(world.revision("c", vm), 1);
}

#[test]
fn what_a_source_monitors_does_not_change_while_it_is_moved_and_moves_with_the_vm() {
    let (mut world, vm) = placed_at_c();
    world.host("b", "b1", 4);
    let change = || Ask::Monitor(vm, Monitoring::default());
    // The offers are asked for with what was monitored before.
    let mut held = 0;
    world.network(move |flight| {
        if !asks(flight, "forced migration") || held > 0 {
            return Fate::Arrives;
        }
        held += 1;
        Fate::Late(Duration::from_secs(5))
    });
    let home = world.move_to("a", vm, &["b"]);
    let chosen = |world: &World| {
        world.state("a").journeys.get(&home).is_some_and(|journey| journey.chosen.is_some())
    };
    world.run_until("an offer is chosen", MINUTE, chosen);
    assert!(matches!(world.ask("a", change()), Reply::Answer(_)));
    assert_eq!(world.revision("c", vm), 1, "the Source has promised nothing yet");
    let offered = |world: &World| world.state("c").open_source(vm).is_some();
    world.run_until("the Source makes ready", MINUTE, offered);
    let Reply::Answer(answer) = world.ask("a", change()) else { panic!("no answer") };
    assert!(matches!(*answer, Answer::Conflict { .. }), "{answer:?}");
    assert_eq!(world.result("a", home), JourneyResult::Done);
    world.until_runs(vm, "b");
    assert_eq!(world.revision("b", vm), 2, "b passed it on, and has the VM now");
    world.settle();
}

#[test]
fn each_edge_of_a_path_has_a_contract_that_both_of_its_sites_have_signed() {
    let mut world = World::with(&["a", "b", "c"], Crypto::Real, &Config::default());
    world.peer("a", "b");
    world.peer("b", "c");
    world.host("c", "c1", 4);
    let vm = world.import("a");
    let placed = world.place("a", vm);
    assert_eq!(world.result("a", placed), JourneyResult::Done);
    world.settle();
    let contracts = |world: &World, at: &str| {
        let of = |contract: protocol::ContractView| {
            assert!(contract.agreed.holds(&Strict), "{contract:?}");
            let other = contract.peer.to_string();
            (other, contract.provides, contract.ended, contract.agreed)
        };
        world.contracts(at).into_iter().map(of).collect::<Vec<_>>()
    };
    let [of_a] = &contracts(&world, "a")[..] else { panic!("a has one contract") };
    let [up, down] = &contracts(&world, "b")[..] else { panic!("b has two contracts") };
    let [of_c] = &contracts(&world, "c")[..] else { panic!("c has one contract") };
    assert_eq!((of_a.0.as_str(), of_a.1, of_a.2), ("b", false, None));
    assert_eq!((up.0.as_str(), up.1, up.2), ("a", true, None));
    assert_eq!((down.0.as_str(), down.1, down.2), ("c", false, None));
    assert_eq!((of_c.0.as_str(), of_c.1, of_c.2), ("b", true, None));
    // The two ends of an edge have the same, and nobody has that of two others.
    assert_eq!((&of_a.3, &of_c.3), (&up.3, &down.3));
    assert_ne!(of_a.3.contract.provider, of_c.3.contract.provider);
    // It is kept when the VM has gone another way, also over a restart.
    world.host("a", "a1", 4);
    let home = world.bring_home("a", vm);
    assert_eq!(world.result("a", home), JourneyResult::Done);
    world.settle();
    for (at, count) in [("a", 1), ("b", 2), ("c", 1)] {
        world.crash(at);
        world.start(at);
        let all = contracts(&world, at);
        assert_eq!(all.len(), count, "{at}");
        assert!(all.iter().all(|contract| contract.2 == Some(Epoch(2))), "{at}: {all:?}");
    }
}

#[test]
fn an_offer_is_taken_by_who_signs_its_contract_alone() {
    let (mut world, vm) = placed_at_c();
    world.host("b", "b1", 4);
    let forged = Signature([7; 64]);
    for taken in [None, Some(forged)] {
        let moved = world.move_to("a", vm, &["b"]);
        let takes = |flight: &Flight| asks(flight, "initiate transfer");
        let is_sent = |world: &World| world.federation.flights.iter().any(takes);
        world.run_until("the offer is taken", MINUTE, is_sent);
        for flight in world.federation.flights.iter_mut().filter(|flight| takes(flight)) {
            let Load::Request { request, .. } = &mut flight.load else { panic!("a request") };
            request.hop.taken = taken;
        }
        let result = world.result("a", moved);
        let JourneyResult::GaveUp(why) = &result else { panic!("{result:?}") };
        assert!(why.contains("the contract is not signed"), "{why}");
        assert!(world.runs(vm, "c"));
    }
}

/// a knows b, b knows c, and so on; the VM of the first is placed at the last and runs there.
fn placed_at_last(sites: &[&str], prepare: impl Fn(&mut World)) -> (World, VmId) {
    let mut world = World::chain(sites);
    prepare(&mut world);
    world.host(sites[0], "first", 4);
    let last = sites[sites.len() - 1];
    world.host(last, "last", 4);
    let vm = world.import(sites[0]);
    let operation = world.move_to(sites[0], vm, &[sites[1]]);
    assert_eq!(world.result(sites[0], operation), JourneyResult::Done);
    world.until_runs(vm, last);
    (world, vm)
}

fn comes_home(world: &mut World, vm: VmId) {
    let home = world.bring_home("a", vm);
    assert_eq!(world.result("a", home), JourneyResult::Done);
    world.until_runs(vm, "a");
    world.settle();
}

#[test]
fn sites_that_relay_stand_between_source_and_destination_both_ways_and_nobody_else_does() {
    let relay = |world: &mut World| ["b", "c"].iter().for_each(|at| world.relay(at));
    let (mut world, vm) = placed_at_last(&["a", "b", "c", "d"], relay);
    assert_eq!(world.last_session(), ["d", "c", "b", "a"]);
    comes_home(&mut world, vm);
    assert_eq!(world.last_session(), ["a", "b", "c", "d"]);
    let one = |world: &mut World| world.relay("b");
    let (mut world, vm) = placed_at_last(&["a", "b", "c", "d"], one);
    assert_eq!(world.last_session(), ["d", "b", "a"]);
    comes_home(&mut world, vm);
    assert_eq!(world.last_session(), ["a", "b", "d"]);
}

#[test]
fn a_controller_in_the_middle_relays_what_is_moved_below_it() {
    let mut world = World::of(&["a", "b", "c", "d"]);
    ["a", "c", "d"].iter().for_each(|at| world.peer("b", at));
    world.relay("b");
    world.host("c", "c1", 1);
    let vm = world.import("a");
    let operation = world.place("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "c");
    world.host("d", "d1", 1);
    world.evict("c", vm, HOUR);
    world.until_runs(vm, "d");
    assert_eq!(world.last_session(), ["d", "b", "c"]);
    world.settle();
}

#[test]
fn where_the_controller_and_the_site_below_it_relay_the_way_to_the_source_has_no_round() {
    let mut world = World::of(&["a", "b", "c", "d"]);
    world.peer("a", "b");
    ["c", "d"].iter().for_each(|at| world.peer("b", at));
    ["a", "b"].iter().for_each(|at| world.relay(at));
    world.host("c", "c1", 1);
    let vm = world.import("a");
    let operation = world.place("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "c");
    world.host("d", "d1", 1);
    let operation = world.move_to("a", vm, &["b"]);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "d");
    assert_eq!(world.last_session(), ["d", "b", "c"]);
    world.settle();
}

#[test]
fn a_proxy_that_nobody_can_dial_dials_the_other_end_and_takes_vms_all_the_same() {
    let (mut world, vm) = placed_at_last(&["a", "b", "c"], |world| world.dial_out("a"));
    assert_eq!(world.last_session(), ["c", "a"], "the Source has dialled");
    comes_home(&mut world, vm);
    assert_eq!(world.last_session(), ["a", "c"]);
}

#[test]
fn two_proxies_that_nobody_can_dial_meet_at_a_site_on_the_way() {
    let prepare = |world: &mut World| ["a", "d"].iter().for_each(|at| world.dial_out(at));
    let (mut world, vm) = placed_at_last(&["a", "b", "c", "d"], prepare);
    assert_eq!(world.last_session(), ["d", "c", "a"], "the site nearest to the Destination");
    comes_home(&mut world, vm);
    assert_eq!(world.last_session().len(), 3);
}

#[test]
fn two_neighbours_that_nobody_can_dial_are_told_so_and_the_vm_stays_where_it_is() {
    let mut world = World::chain(&["a", "b"]);
    ["a", "b"].iter().for_each(|at| world.dial_out(at));
    world.host("b", "b1", 1);
    let vm = world.import("a");
    let operation = world.place("a", vm);
    let JourneyResult::GaveUp(reason) = world.result("a", operation) else {
        panic!("it cannot be placed\n{}", world.story())
    };
    assert!(reason.contains("no site on the way relays"), "{reason}");
    world.settle();
    assert_eq!(world.host_of("a", vm).as_deref(), Some(LIBRARY));
}

#[test]
fn a_relay_that_crashes_at_any_moment_goes_on_with_what_it_passed_on() {
    for kind in ["relaying", "pending", "flipped"] {
        for when in [When::Before, When::After] {
            let mut world = World::chain(&["a", "b", "c", "d"]);
            ["b", "c"].iter().for_each(|at| world.relay(at));
            world.host("d", "d1", 1);
            let vm = world.import("a");
            world.crash_at("c", kind, when, 0);
            world.insist(
                "a",
                "it is placed",
                |world| world.place("a", vm),
                |world| world.runs(vm, "d"),
            );
            assert!(!world.crashes().is_empty(), "c never came to {kind}");
            world.settle();
        }
    }
}

#[test]
fn an_offer_of_a_peer_that_is_being_removed_is_not_taken() {
    let mut world = World::of(&["a", "b"]);
    world.peer("a", "b");
    world.host("b", "b1", 4);
    let vm = world.import("a");
    // It was asked, and its offer is on the way.
    let operation = world.move_to("a", vm, &["b"]);
    world.leave("a", "b", Some(Duration::from_secs(600)));
    assert!(matches!(world.result("a", operation), JourneyResult::NoPlace(_)));
    assert_eq!(world.path("a", vm), ["a"]);
    assert!(world.has_left("a", "b"));
    world.leave("a", "b", None);
    world.settle();
}

#[test]
fn what_was_to_be_tried_again_when_the_clock_was_ahead_is_tried_as_soon_when_it_is_set_right() {
    let (mut world, vm) = placed_at_c();
    world.host("a", "a1", 1);
    world.cut("a", "b", true);
    world.set_clock("a", 36_000_000);
    let operation = world.bring_home("a", vm);
    world.run(10 * MINUTE);
    world.set_clock("a", 0);
    world.cut("a", "b", false);
    // The place that was offered is given up by now; that is heard at the next try.
    let ended = move |world: &World| world.state("a").journeys[&operation].result.is_some();
    world.run_until("the move ends", 5 * MINUTE, ended);
    world.settle();
    let operation = world.bring_home("a", vm);
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    world.until_runs(vm, "a");
}
