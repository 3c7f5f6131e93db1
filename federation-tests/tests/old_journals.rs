//! A site's journal is put back from an old copy: what the site has forgotten, it neither denies nor
//! overrules, and goes on once others have told it what became of its VMs.

use std::collections::BTreeSet;
use std::time::Duration;

use federation_tests::world::{Fate, Flight, Load, World, asks};
use model::{Epoch, VmId};
use protocol::{Answer, Ask, JourneyResult, Outcome, Reply, SourceStep, TargetStep};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A VM's primary a, b, and behind it c and d.
fn fork() -> World {
    let mut world = World::of(&["a", "b", "c", "d"]);
    for (one, other) in [("a", "b"), ("b", "c"), ("b", "d")] {
        world.peer(one, other);
    }
    world
}

/// A VM of a's at c, and a host at d that is free for it.
fn at_c() -> (World, VmId) {
    let mut world = fork();
    world.host("c", "c1", 2);
    let vm = another_at_c(&mut world);
    world.host("d", "d1", 1);
    (world, vm)
}

/// One more VM of a's at c, whose journal goes on with it.
fn another_at_c(world: &mut World) -> VmId {
    let vm = world.import("a");
    world.place("a", vm);
    world.until_runs(vm, "c");
    vm
}

#[test]
fn a_source_that_is_controller_too_and_forgets_its_release_turns_its_path_and_keeps_no_stay() {
    let mut restored = 0;
    for names in [&["a", "b"][..], &["a", "b", "d"]] {
        for share in 50..100 {
            let mut world = World::chain(names);
            world.host("a", "a1", 1);
            let vm = world.import("a");
            world.bring_home("a", vm);
            world.until_runs(vm, "a");
            let last = names[names.len() - 1];
            world.host(last, "h1", 1);
            let is_owned = |flight: &Flight| {
                let Load::Answer { answer: Ok(answer), .. } = &flight.load else { return false };
                matches!(**answer, Answer::Owned { .. })
            };
            world.network(move |flight| match asks(flight, "report") || is_owned(flight) {
                true => Fate::Lost,
                false => Fate::Arrives,
            });
            let moved = world.move_to("a", vm, &["b"]);
            world.until_runs(vm, last);
            world.run(MINUTE);
            let was_chosen = |world: &World| {
                let journey = world.state("a").journeys.get(&moved);
                journey.is_some_and(|journey| journey.chosen.is_some())
            };
            if !world.restore_journal("a", share) || !was_chosen(&world) {
                continue;
            }
            restored += 1;
            world.calm();
            world.run(10 * MINUTE);
            world.ask("a", Ask::Unfence { vm: None });
            world.run(HOUR);
            // What it had is kept at a site that was told that the VM is another's.
            world.run(24 * HOUR);
            assert!(world.runs(vm, last), "{names:?}, {share}\n{}", world.story());
            assert_eq!(world.path("a", vm), *names, "{share}\n{}", world.story());
            assert!(world.state("a").vms[&vm].stay.is_none());
            assert!(world.state("a").journeys[&moved].result.is_some());
        }
    }
    assert!(restored > 5, "only {restored} old journals were put back");
}

#[test]
fn a_site_with_an_old_journal_goes_on_though_moves_past_it_came_to_nothing() {
    let (mut kept, mut lost) = (0, BTreeSet::new());
    for share in (0..100).step_by(4) {
        let (mut world, vm) = at_c();
        world.fill_files("d", true);
        for _ in 0..=share / 4 % 2 {
            let moved = world.move_to("a", vm, &["b"]);
            assert!(matches!(world.result("a", moved), JourneyResult::GaveUp(_)));
        }
        world.until_runs(vm, "c");
        another_at_c(&mut world);
        assert!(world.restore_journal("c", share), "{share}");
        let is_held = |world: &World| world.state("c").held.contains(&vm);
        world.run(MINUTE);
        if world.state("c").vms.get(&vm).is_some_and(|entry| entry.stay.is_some()) {
            kept += 1;
            world.run_until("c goes on", HOUR, |world| !is_held(world));
            world.until_runs(vm, "c");
            world.fill_files("d", false);
            let moved = world.move_to("a", vm, &["b"]);
            assert_eq!(world.result("a", moved), JourneyResult::Done);
            world.until_runs(vm, "d");
            world.run(HOUR);
            assert!(world.runs(vm, "d") && world.path("a", vm) == ["a", "b", "d"], "{share}");
        } else if is_held(&world) {
            // It was on its way there, as far as that journal knows: what came is the VM.
            let migrations = world.state("c").migrations.values();
            let steps = migrations.filter_map(|one| one.target.as_ref()).map(|target| target.step);
            lost.extend(steps);
            world.run(9 * 24 * HOUR);
            let reply = world.ask("c", Ask::Unfence { vm: None });
            assert!(matches!(reply, Reply::Conflict(_)), "{reply:?}");
            assert!(is_held(&world) && world.has_files("c", vm), "{share}\n{}", world.story());
            assert!(matches!(world.ask("c", Ask::Unfence { vm: Some(vm) }), Reply::Done));
            assert!(!is_held(&world), "{share}\n{}", world.story());
        }
    }
    assert!(kept > 2, "{kept} old journals knew of the VM");
    let on_the_way = [TargetStep::Admitted, TargetStep::Receiving, TargetStep::Ready];
    assert_eq!(lost, BTreeSet::from(on_the_way), "what old journals knew of its coming");
}

#[test]
fn a_source_that_has_forgotten_its_release_does_not_run_the_vm_again_while_nobody_else_tells() {
    let mut forgot = 0;
    for share in (0..100).step_by(4) {
        let (mut world, vm) = at_c();
        world.network(|flight| match (asks(flight, "report"), &flight.load) {
            (true, _) => Fate::Lost,
            (_, Load::Answer { answer: Ok(answer), .. })
                if matches!(**answer, Answer::Verified(Outcome::Released(_))) =>
            {
                Fate::Lost
            }
            _ => Fate::Arrives,
        });
        let moved = world.move_to("a", vm, &["b"]);
        world.until_runs(vm, "d");
        assert!(world.restore_journal("c", share), "{share}");
        let releases = world.state("c").migrations.values().any(|one| one.source.is_some());
        let has_it = world.state("c").vms.get(&vm).is_some_and(|entry| entry.stay.is_some());
        if releases || !has_it {
            continue;
        }
        forgot += 1;
        world.run(HOUR);
        assert!(world.runs(vm, "d"), "{share}\n{}", world.story());
        world.calm();
        assert_eq!(world.result("a", moved), JourneyResult::Done);
        world.run(HOUR);
        assert!(world.runs(vm, "d") && world.path("a", vm) == ["a", "b", "d"], "{share}");
        assert!(world.state("c").vms[&vm].stay.is_none(), "{share}\n{}", world.story());
    }
    assert!(forgot > 2, "{forgot} old journals had the VM and knew of no move");
}

#[test]
fn a_primary_with_an_old_journal_is_told_where_its_vm_is_though_a_later_move_came_to_nothing() {
    let mut forgot = 0;
    for share in (0..100).step_by(4) {
        let mut world = fork();
        world.host("a", "a1", 1);
        let vm = world.import("a");
        world.bring_home("a", vm);
        world.until_runs(vm, "a");
        world.host("c", "c1", 1);
        let moved = world.move_to("a", vm, &["b"]);
        assert_eq!(world.result("a", moved), JourneyResult::Done);
        world.until_runs(vm, "c");
        world.host("d", "d1", 1);
        world.fill_files("d", true);
        let failed = world.move_to("a", vm, &["b"]);
        assert!(matches!(world.result("a", failed), JourneyResult::GaveUp(_)));
        world.until_runs(vm, "c");
        assert!(world.restore_journal("a", share), "{share}");
        let stays = |world: &World| world.state("a").vms[&vm].stay.is_some();
        let has_released = world.state("a").migrations.values().any(|one| {
            one.source.as_ref().is_some_and(|source| source.step >= SourceStep::Released)
        });
        if !world.state("a").vms.contains_key(&vm) || !stays(&world) || has_released {
            continue;
        }
        forgot += 1;
        world.run_until("a has been told", HOUR, |world| !stays(world));
        assert!(world.runs(vm, "c"), "{share}\n{}", world.story());
    }
    assert!(forgot > 2, "{forgot} old journals had the VM");
}

#[test]
fn what_was_released_and_came_back_goes_on_above_the_epoch_that_was_forgotten() {
    let (mut forgot, mut named) = (0, 0);
    for share in (0..100).step_by(4) {
        let (mut world, vm) = at_c();
        world.break_host("d", "d1", true);
        let moved = world.move_to("a", vm, &["b"]);
        assert!(matches!(world.result("a", moved), JourneyResult::GaveUp(_)));
        world.until_runs(vm, "c");
        let back = world.epoch("c", vm).unwrap();
        assert_eq!(back, Epoch(3), "released once, and handed back");
        // A Source shows its chain when it is asked for the next move.
        world.fill_files("d", true);
        let moved = world.move_to("a", vm, &["b"]);
        assert!(matches!(world.result("a", moved), JourneyResult::GaveUp(_)));
        world.until_runs(vm, "c");
        world.fill_files("d", false);
        another_at_c(&mut world);
        assert!(world.restore_journal("c", share), "{share}");
        let before = world.state("c").vms.get(&vm).filter(|entry| entry.stay.is_some());
        if before.is_none_or(|entry| entry.chain.epoch() == back) {
            continue;
        }
        forgot += 1;
        world.run(10 * MINUTE);
        assert_eq!(world.epoch("c", vm), Some(back), "{share}\n{}", world.story());
        if world.state("c").held.contains(&vm) {
            // As far as that journal knows the move may have been under way.
            let reply = world.ask("c", Ask::Unfence { vm: None });
            assert!(matches!(reply, Reply::Conflict(_)), "{reply:?}");
            assert!(matches!(world.ask("c", Ask::Unfence { vm: Some(vm) }), Reply::Done));
            named += 1;
        }
        world.until_runs(vm, "c");
        world.break_host("d", "d1", false);
        let moved = world.move_to("a", vm, &["b"]);
        assert_eq!(world.result("a", moved), JourneyResult::Done);
        assert_eq!(world.epoch("a", vm), Some(back.next()), "{share}");
        world.until_runs(vm, "d");
    }
    assert!(named > 0 && forgot > named, "{forgot} old journals had the VM, {named} on its way");
}

#[test]
fn a_move_that_was_chosen_before_its_source_knows_what_it_has_waits_for_it_and_is_done() {
    let mut tried = 0;
    for share in (0..100).step_by(10) {
        let (mut world, vm) = at_c();
        another_at_c(&mut world);
        assert!(world.restore_journal("c", share), "{share}");
        if world.state("c").vms.get(&vm).is_none_or(|entry| entry.stay.is_none()) {
            continue;
        }
        tried += 1;
        world.network(|flight| match asks(flight, "confirm") {
            true => Fate::Lost,
            false => Fate::Arrives,
        });
        let moved = world.move_to("a", vm, &["b"]);
        world.run(Duration::from_secs(30));
        assert!(world.state("a").journeys[&moved].chosen.is_some(), "{share}");
        assert!(world.state("c").held.contains(&vm), "{share}");
        world.calm();
        assert_eq!(world.result("a", moved), JourneyResult::Done);
        world.until_runs(vm, "d");
    }
    assert!(tried > 1, "{tried} old journals had the VM");
}
