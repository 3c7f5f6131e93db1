//! What comes of a peering that ends: for each side of each of a path's, what is shown of the VM, and
//! what keeps the peering.

use std::time::Duration;

use federation_tests::transcript::{compare, told};
use federation_tests::world::{Fate, World, asks};
use protocol::Ask;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// a knows b, b knows c; the VM of a is at c by way of b. Then a peering ends.
fn one_parts(at: &str, peer: &str, elsewhere: &[&str], restarts: bool) -> World {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("c", "c1", 4);
    let vm = world.import("a");
    world.place("a", vm);
    world.until_runs(vm, "c");
    world.run(MINUTE);
    for site in elsewhere {
        world.host(site, "new", 4);
    }
    world.federation.log.clear();
    world.leave(at, peer, Some(HOUR));
    world.ask(at, Ask::Leave(peer.parse().unwrap()));
    world.show_peerings();
    if restarts {
        world.crash(at);
        world.start(at);
    }
    for wait in [MINUTE, HOUR, 30 * HOUR] {
        // They try every five seconds.
        world.federation.logging = wait == MINUTE;
        world.run(wait);
        world.federation.logging = true;
        world.show(vm);
        world.show_peerings();
    }
    world
}

#[test]
fn each_peering_of_a_path_ends_from_either_side() {
    let ends = [
        ("a", "b", "a"),
        ("b", "a", "a"),
        ("b", "c", "b"),
        ("b", "c", "a"),
        ("c", "b", "b"),
        ("c", "b", "a"),
    ];
    let text: String = ends
        .iter()
        .map(|(at, peer, elsewhere)| {
            let world = one_parts(at, peer, &[elsewhere], false);
            format!("{at} parts from {peer}, room at {elsewhere}\n{}", told(&world))
        })
        .collect();
    compare("replies/parts", &text);
}

#[test]
fn a_peering_ends_with_no_other_place_for_the_vm_and_over_restarts() {
    let ends = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")];
    let text: String = ends
        .iter()
        .map(|(at, peer)| {
            let world = one_parts(at, peer, &[], true);
            format!("{at} parts from {peer}\n{}", told(&world))
        })
        .collect();
    compare("replies/parts-without-room", &text);
}

#[test]
fn a_peering_ends_while_a_migration_is_open_that_needs_it() {
    let mut text = String::new();
    let steps = ["forced migration", "initiate transfer", "transfer verification", "deliver"];
    for step in steps {
        // Where its guest does not start, the VM is handed back.
        for broken in [false, true] {
            let mut world = World::chain(&["a", "b", "c"]);
            world.host("c", "c1", 2);
            let vm = world.import("a");
            world.break_host("c", "c1", broken);
            world.network(move |flight| match asks(flight, step) {
                true => Fate::Lost,
                false => Fate::Arrives,
            });
            world.place("a", vm);
            world.run(Duration::from_secs(1));
            for (at, peer) in [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")] {
                world.leave(at, peer, Some(HOUR));
            }
            world.show(vm);
            world.show_peerings();
            for _ in 0..3 {
                world.federation.log.push(format!("{step} is lost, broken host {broken}"));
                // They try every five seconds.
                world.federation.logging = false;
                world.run(10 * HOUR);
                world.federation.logging = true;
                world.show(vm);
                world.show_peerings();
            }
            let words = [" ends its ", " is lost", " shows "];
            world.federation.log.retain(|line| words.iter().any(|word| line.contains(word)));
            text.push_str(&told(&world));
        }
    }
    compare("replies/parts-in-between", &text);
}
