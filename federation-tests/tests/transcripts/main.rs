//! What sites say, write and do in the course of a VM's life, word for word and by the millisecond.
//!
//! A transcript is to be read: it is how the rules look from outside. A change of the rules that is
//! meant changes transcripts; one that is not meant fails here, whatever else it leaves as it was.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::collections::BTreeSet;
use std::time::Duration;

use federation_tests::transcript::check;
use federation_tests::world::{Crypto, Fate, Flight, Load, World, asks, descriptor, host};
use model::peering::{Limits, Peering, Right};
use model::{Monitoring, OperationId, VmId};
use protocol::{Action, Ask, Config, Mode};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const SITES: [&str; 3] = ["a", "b", "c"];

/// a knows b, b knows c, and c has room; the VM is in a's library.
fn chain() -> (World, VmId) {
    let mut world = World::chain(&SITES);
    world.host("c", "c1", 2);
    let vm = world.import("a");
    (world, vm)
}

/// The same with the VM at c, and nothing told of how it came there.
fn placed() -> (World, VmId) {
    let (mut world, vm) = chain();
    world.place("a", vm);
    world.until_runs(vm, "c");
    world.run(MINUTE);
    world.federation.log.clear();
    (world, vm)
}

/// Each message comes twice, and what comes again not once more.
fn twice() -> impl FnMut(&mut Flight) -> Fate {
    let mut seen = BTreeSet::new();
    move |flight| {
        let (line, is_request) = match &flight.load {
            Load::Request { from, .. } => (from, true),
            Load::Answer { to, .. } => (to, false),
        };
        let is_new = seen.insert((line.site.clone(), line.call.0, is_request));
        if is_new { Fate::Twice } else { Fate::Arrives }
    }
}

#[test]
fn a_vm_is_placed_two_hops_away() {
    let (mut world, vm) = chain();
    world.place("a", vm);
    for _ in 0..8 {
        world.run(Duration::from_millis(40));
        world.show(vm);
    }
    world.run(25 * HOUR);
    check("placed", &world);
}

#[test]
fn it_is_controlled_monitored_and_destroyed_from_there() {
    let (mut world, vm) = placed();
    for action in [Action::Pause, Action::Resume, Action::Hibernate, Action::Start, Action::Stop] {
        world.ask("a", Ask::Control(vm, action));
        world.show(vm);
    }
    world.ask("a", Ask::Monitor(vm, Monitoring::default()));
    world.ask("c", Ask::Monitor(vm, Monitoring::default()));
    world.run(MINUTE);
    world.ask("a", Ask::Control(vm, Action::Start));
    world.ask("a", Ask::Control(vm, Action::Destroy));
    world.run(MINUTE);
    world.show(vm);
    world.ask("a", Ask::Control(vm, Action::Start));
    check("controlled", &world);
}

#[test]
fn a_host_is_emptied_and_removed() {
    let (mut world, vm) = placed();
    let other = world.import("c");
    world.host("c", "c2", 2);
    world.ask("c", Ask::DrainHost(host("c2"), true));
    world.place("c", other);
    world.run(MINUTE);
    world.ask("c", Ask::DrainHost(host("c2"), false));
    world.ask("c", Ask::RemoveHost(host("c1")));
    world.ask("c", Ask::DrainHost(host("c1"), true));
    world.ask("c", Ask::DrainHost(host("c1"), true));
    world.run(MINUTE);
    world.show(vm);
    world.ask("c", Ask::RemoveHost(host("c1")));
    world.ask("c", Ask::RemoveHost(host("c1")));
    world.ask("c", Ask::DrainHost(host("c1"), true));
    check("emptied", &world);
}

#[test]
fn it_is_forced_out_to_the_site_between_and_brought_home() {
    let (mut world, vm) = placed();
    world.host("b", "b1", 1);
    world.evict("c", vm, HOUR);
    world.run(MINUTE);
    world.show(vm);
    world.host("a", "a1", 1);
    world.bring_home("a", vm);
    world.run(MINUTE);
    world.show(vm);
    check("forced-out", &world);
}

#[test]
fn nobody_takes_what_is_forced_out_and_it_is_parked_until_there_is_room() {
    let (mut world, vm) = placed();
    world.import("c");
    world.federation.log.clear();
    world.cut("a", "b", true);
    world.evict("c", vm, 3 * MINUTE);
    world.run(MINUTE);
    world.show(vm);
    world.evict("c", vm, MINUTE);
    world.run(2 * MINUTE);
    world.cut("a", "b", false);
    world.run(MINUTE);
    world.show(vm);
    world.control("a", vm, Action::Start);
    world.host("b", "b1", 1);
    world.evict("c", vm, MINUTE);
    world.run(MINUTE);
    world.show(vm);
    check("parked", &world);
}

#[test]
fn its_primary_finds_no_place_and_asks_again_until_its_time_is_up() {
    let mut world = World::chain(&["a", "b"]);
    world.host("a", "a1", 1);
    let vm = world.import("a");
    world.place("a", vm);
    world.run(MINUTE);
    world.federation.log.clear();
    world.evict("a", vm, 5 * MINUTE);
    world.run(MINUTE);
    let elsewhere = world.place("b", vm);
    world.ask("b", Ask::Cancel(elsewhere));
    world.host("b", "b1", 1);
    world.break_host("b", "b1", true);
    world.run(5 * MINUTE);
    world.show(vm);
    check("no-place", &world);
}

#[test]
fn a_destination_that_cannot_start_it_gives_it_back_and_the_next_offer_is_taken() {
    let mut world = World::of(&SITES);
    world.peer("a", "b");
    world.peer("a", "c");
    for (site, name) in [("b", "b1"), ("c", "c1")] {
        world.host(site, name, 1);
    }
    let vm = world.import("a");
    world.break_host("b", "b1", true);
    world.break_host("c", "c1", true);
    world.place("a", vm);
    world.run(MINUTE);
    world.show(vm);
    world.break_host("c", "c1", false);
    world.place("a", vm);
    world.run(MINUTE);
    world.show(vm);
    check("given-back", &world);
}

#[test]
fn a_move_is_cancelled_at_each_of_its_steps() {
    let (mut world, vm) = placed();
    world.host("b", "b1", 1);
    let steps =
        ["migration request", "forced migration", "initiate transfer", "transfer verification"];
    for step in steps {
        world.network(move |flight| match asks(flight, step) {
            true => Fate::Late(20 * Duration::from_secs(1)),
            false => Fate::Arrives,
        });
        let moving = world.move_to("a", vm, &["b"]);
        world.run(Duration::from_secs(1));
        world.show(vm);
        world.ask("a", Ask::Cancel(moving));
        world.ask("a", Ask::Cancel(moving));
        world.run(2 * MINUTE);
        world.show(vm);
    }
    world.ask("a", Ask::Cancel(OperationId([9; 16])));
    check("cancelled", &world);
}

#[test]
fn messages_are_lost_at_each_step_and_said_again() {
    let (mut world, vm) = placed();
    world.host("a", "a1", 1);
    let mut lost = BTreeSet::new();
    world.network(move |flight| {
        let steps = [
            "forced migration",
            "initiate transfer",
            "transfer verification",
            "deliver",
            "retire",
            "report",
        ];
        let step = steps.into_iter().find(|step| asks(flight, step));
        if step.is_some_and(|step| lost.insert(step)) { Fate::Lost } else { Fate::Arrives }
    });
    world.host("c", "c2", 2);
    world.ask("c", Ask::DrainHost(host("c1"), true));
    world.run(Duration::from_secs(10));
    world.bring_home("a", vm);
    world.run(10 * MINUTE);
    world.show(vm);
    check("lost", &world);
}

#[test]
fn its_source_does_not_answer_for_a_while() {
    let (mut world, vm) = placed();
    world.host("a", "a1", 1);
    world.crash("c");
    world.bring_home("a", vm);
    world.run(5 * MINUTE);
    world.show(vm);
    world.start("c");
    world.run(10 * MINUTE);
    world.show(vm);
    check("silent", &world);
}

#[test]
fn it_moves_through_the_proxies_of_sites_that_relay() {
    let mut world = World::chain(&SITES);
    world.relay("b");
    world.dial_out("a");
    world.host("c", "c1", 1);
    let vm = world.import("a");
    world.place("a", vm);
    world.run(2 * MINUTE);
    world.crash("b");
    world.start("b");
    world.host("a", "a1", 1);
    world.bring_home("a", vm);
    world.run(2 * MINUTE);
    world.show(vm);
    check("relayed", &world);
}

#[test]
fn it_is_moved_by_restart_and_only_stored() {
    let (mut world, vm) = placed();
    world.host("b", "b1", 1);
    let wish = |operation, mode, dry_run| Ask::Move {
        operation: OperationId([operation; 16]),
        vm,
        peers: Default::default(),
        local_only: true,
        boot: false,
        mode,
        dry_run,
    };
    world.ask("b", wish(1, Mode::Restart, true));
    world.run(MINUTE);
    world.ask("b", wish(2, Mode::Restart, false));
    world.ask("b", wish(3, Mode::Restart, false));
    world.run(MINUTE);
    world.show(vm);
    world.evict("b", vm, HOUR);
    world.run(10 * MINUTE);
    world.show(vm);
    check("restarted", &world);
}

#[test]
fn its_primary_finds_it_again_past_a_site_that_is_gone_and_takes_it_over_when_its_host_is() {
    let (mut world, vm) = placed();
    world.lose_for_good("b");
    world.ask("a", Ask::Reclaim { vm, at: "c".parse().unwrap() });
    world.peer("a", "c");
    world.ask("a", Ask::Reclaim { vm, at: "c".parse().unwrap() });
    world.run(MINUTE);
    world.show(vm);
    world.power_failure("c");
    let statement = "c burnt down".to_owned();
    world.ask("a", Ask::Adopt { vm, statement: statement.clone() });
    world.ask("a", Ask::Adopt { vm, statement });
    world.show(vm);
    world.start("c");
    world.run(10 * MINUTE);
    world.show(vm);
    check("rescued", &world);
}

#[test]
fn a_site_that_has_forgotten_runs_nothing_until_it_is_told() {
    let (mut world, vm) = placed();
    world.host("b", "b1", 1);
    world.bring_home("b", vm);
    world.run(MINUTE);
    world.bring_home("c", vm);
    world.run(MINUTE);
    world.federation.log.clear();
    world.restore_journal("c", 60);
    world.run(2 * MINUTE);
    world.show(vm);
    world.restore_journal("a", 60);
    world.run(2 * MINUTE);
    world.ask("a", Ask::Unfence { vm: None });
    world.run(MINUTE);
    world.show(vm);
    check("forgotten", &world);
}

#[test]
fn a_peering_ends_and_strands_nobody() {
    let (mut world, vm) = placed();
    world.peer("a", "c");
    world.host("a", "a1", 1);
    world.leave("b", "c", Some(HOUR));
    world.show_peerings();
    world.run(10 * MINUTE);
    world.show(vm);
    world.show_peerings();
    world.leave("a", "c", Some(HOUR));
    world.show_peerings();
    world.leave("a", "c", None);
    world.run(MINUTE);
    world.show_peerings();
    check("parted", &world);
}

#[test]
fn nothing_new_goes_to_a_peer_whose_peering_ends() {
    let (mut world, vm) = chain();
    world.leave("a", "b", Some(HOUR));
    world.move_to("a", vm, &["b"]);
    world.place("a", vm);
    world.run(MINUTE);
    world.leave("a", "b", None);
    world.leave("b", "a", Some(HOUR));
    world.place("a", vm);
    world.run(MINUTE);
    check("ending", &world);
}

#[test]
fn only_so_many_offers_are_tried_and_an_eviction_tries_the_others_then_and_less_and_less_often() {
    let mut world = World::of(&["a", "b", "c", "d", "e", "f"]);
    for site in ["b", "c", "d", "e", "f"] {
        world.peer("a", site);
        world.host(site, "host", 1);
        world.break_host(site, "host", site != "f");
    }
    let vm = world.import("a");
    world.move_to("a", vm, &["b", "c", "d", "e", "f"]);
    world.run(MINUTE);
    world.show(vm);
    world.move_to("a", vm, &["f"]);
    world.run(MINUTE);
    // Nor is there space in the library.
    world.fill_files("a", true);
    world.evict("f", vm, 2 * HOUR);
    world.run(HOUR);
    world.show(vm);
    let evicted = world.state("a").open_journey(vm).unwrap().operation;
    world.ask("a", Ask::Cancel(evicted));
    world.run(HOUR / 2);
    world.fill_files("a", false);
    world.run(HOUR);
    world.show(vm);
    let words = [": chose", "asking again", " ended: ", " shows "];
    world.federation.log.retain(|line| words.iter().any(|word| line.contains(word)));
    check("tried", &world);
}

#[test]
fn a_controller_stands_between_two_proxies_that_nobody_can_dial() {
    let mut world = World::of(&["a", "b", "c", "d"]);
    ["a", "c", "d"].iter().for_each(|peer| world.peer("b", peer));
    world.host("c", "c1", 1);
    let vm = world.import("a");
    world.place("a", vm);
    world.until_runs(vm, "c");
    world.dial_out("c");
    world.dial_out("d");
    world.host("d", "d1", 1);
    world.move_to("b", vm, &["d"]);
    world.run(2 * MINUTE);
    world.show(vm);
    world.relay("b");
    world.host("b", "b1", 1);
    world.bring_home("b", vm);
    world.run(2 * MINUTE);
    world.move_to("b", vm, &["c"]);
    world.run(2 * MINUTE);
    world.show(vm);
    check("between", &world);
}

#[test]
fn vms_of_a_group_stay_apart() {
    let mut world = World::of(&["a", "b", "c", "d"]);
    for (one, other) in [("a", "b"), ("a", "c"), ("b", "c"), ("d", "b")] {
        world.peer(one, other);
    }
    for (at, name) in [("b", "b1"), ("b", "b2"), ("c", "c1"), ("a", "a1")] {
        world.host(at, name, 8);
    }
    let of = |group: Option<&str>| {
        let mut described = descriptor();
        described.restrictions.apart = group.map(str::to_owned);
        described
    };
    let at_d = world.import_as("d", of(Some("db")));
    world.place("d", at_d);
    world.run(MINUTE);
    let groups = [Some("db"), Some("db"), Some("db"), Some("web"), None, Some("db"), Some("db")];
    let vms: Vec<VmId> = groups.iter().map(|group| world.import_as("a", of(*group))).collect();
    for (at, vm) in vms.iter().enumerate() {
        world.dry_run("a", *vm);
        world.run(MINUTE);
        world.place("a", *vm);
        // Some come while the one before is on its way.
        world.run(if at % 2 == 0 { Duration::from_millis(60) } else { MINUTE });
    }
    world.run(MINUTE);
    for at in ["a", "b"] {
        for vm in &vms {
            world.dry_run(at, *vm);
        }
    }
    world.run(MINUTE);
    world.control("a", vms[0], Action::Destroy);
    world.dry_run("a", vms[1]);
    world.bring_home("a", vms[1]);
    world.dry_run("a", vms[2]);
    world.run(MINUTE);
    world.dry_run("a", vms[2]);
    world.dry_run("d", at_d);
    world.run(MINUTE);
    for vm in vms {
        world.show(vm);
    }
    let words = [" ended: ", ": chose ", " shows "];
    world.federation.log.retain(|line| words.iter().any(|word| line.contains(word)));
    check("apart", &world);
}

#[test]
fn what_is_ready_is_kept_for_so_long_and_no_longer() {
    let config = Config { admit_life: MINUTE, ready_life: MINUTE, ..Config::default() };
    let mut world = World::with(&SITES, Crypto::Fast, &config);
    world.peer("a", "b");
    world.peer("b", "c");
    world.host("c", "c1", 1);
    let vm = world.import("a");
    world.place("a", vm);
    // The READY has passed b.
    world.run(Duration::from_millis(141));
    world.cut("a", "c", true);
    world.cut("b", "c", true);
    world.show(vm);
    world.run(3 * MINUTE);
    world.show(vm);
    world.cut("a", "c", false);
    world.cut("b", "c", false);
    world.run(2 * HOUR);
    world.show(vm);
    check("lapsed", &world);
}

#[test]
fn two_controllers_want_it_at_once() {
    let (mut world, vm) = placed();
    world.host("a", "a1", 1);
    world.host("b", "b1", 1);
    world.bring_home("a", vm);
    world.bring_home("b", vm);
    world.run(10 * MINUTE);
    world.show(vm);
    check("wanted-twice", &world);
}

#[test]
fn a_destination_that_is_never_reached_again_makes_room_for_the_next_offer() {
    let mut world = World::of(&SITES);
    for (peer, name) in [("b", "b1"), ("c", "c1")] {
        world.peer("a", peer);
        world.host(peer, name, 1);
    }
    let vm = world.import("a");
    let mut first = None;
    world.network(move |flight| {
        let to = match &flight.load {
            Load::Request { to, .. } if asks(flight, "initiate transfer") => to,
            _ => return Fate::Arrives,
        };
        if *first.get_or_insert(to.clone()) == *to { Fate::Lost } else { Fate::Arrives }
    });
    world.place("a", vm);
    world.run(10 * MINUTE);
    world.show(vm);
    check("unreached", &world);
}

#[test]
fn a_source_is_never_reached_again_and_the_move_is_given_up() {
    let (mut world, vm) = placed();
    world.host("a", "a1", 1);
    world.cut("b", "c", true);
    world.bring_home("a", vm);
    world.run(5 * MINUTE);
    world.show(vm);
    check("given-up", &world);
}

#[test]
fn nobody_is_asked_twice_or_too_far_away() {
    let mut world = World::chain(&["a", "b", "c", "d", "e", "f"]);
    world.peer("a", "c");
    world.host("f", "f1", 1);
    let vm = world.import("a");
    world.network(twice());
    world.place("a", vm);
    world.run(MINUTE);
    world.calm();
    let out_of_reach = world.import("a");
    world.host("e", "e1", 1);
    world.place("a", out_of_reach);
    world.run(MINUTE);
    world.show(out_of_reach);
    check("far", &world);
}

#[test]
fn peerings_let_so_much_be_done_and_no_more() {
    let mut world = World::chain(&SITES);
    world.host("b", "b1", 4);
    world.host("c", "c1", 4);
    let only = |may: &[Right], vms| Peering {
        may: may.iter().copied().collect(),
        limits: Limits { vms, ..Limits::default() },
        ..Peering::default()
    };
    let (one, other) = (world.import("a"), world.import("a"));
    world.terms("a", "b", only(&[Right::Place], None));
    world.move_to("a", one, &["b"]);
    world.place("a", one);
    world.terms("a", "b", only(&[Right::Host], None));
    world.terms("b", "a", only(&[Right::Place], Some(1)));
    world.move_to("a", one, &["d"]);
    world.place("a", one);
    world.run(MINUTE);
    world.place("a", other);
    world.run(MINUTE);
    world.terms("b", "a", only(&[Right::Host], None));
    world.place("a", other);
    world.run(MINUTE);
    world.terms("a", "b", Peering::default());
    world.terms("b", "a", Peering::default());
    world.terms("b", "c", only(&[Right::Place], None));
    world.host("b", "b2", 4);
    world.ask("b", Ask::DrainHost(host("b1"), true));
    world.run(MINUTE);
    world.terms("c", "b", only(&[Right::Place], Some(0)));
    world.terms("b", "c", Peering::default());
    world.ask("b", Ask::DrainHost(host("b2"), true));
    world.run(10 * MINUTE);
    world.show(one);
    check("terms", &world);
}

#[test]
fn every_message_comes_twice() {
    let (mut world, vm) = chain();
    world.host("a", "a1", 1);
    world.network(twice());
    world.move_to("a", vm, &["b"]);
    world.run(MINUTE);
    world.ask("a", Ask::Control(vm, Action::Pause));
    world.bring_home("a", vm);
    world.run(MINUTE);
    world.show(vm);
    check("twice", &world);
}

#[test]
fn every_message_is_late() {
    let (mut world, vm) = chain();
    world.host("a", "a1", 1);
    world.network(|_| Fate::Late(Duration::from_secs(3)));
    world.move_to("a", vm, &["b"]);
    world.run(2 * MINUTE);
    world.network(|_| Fate::Late(Duration::from_secs(45)));
    world.bring_home("a", vm);
    world.run(10 * MINUTE);
    world.show(vm);
    check("late", &world);
}

#[test]
fn every_site_starts_anew_at_each_step_of_a_move() {
    let (mut world, vm) = placed();
    world.host("a", "a1", 1);
    world.bring_home("a", vm);
    for _ in 0..12 {
        world.run(Duration::from_millis(25));
        for site in SITES {
            world.crash(site);
        }
        for site in SITES {
            world.start(site);
        }
    }
    world.run(10 * MINUTE);
    world.show(vm);
    check("restarts", &world);
}

#[test]
fn disks_are_full_and_files_damaged_on_the_way() {
    let (mut world, vm) = chain();
    world.fill_files("c", true);
    world.place("a", vm);
    world.run(MINUTE);
    world.fill_files("c", false);
    world.damage("c");
    world.place("a", vm);
    world.run(10 * MINUTE);
    world.fill_journal("c", true);
    world.ask("a", Ask::Control(vm, Action::Stop));
    world.run(MINUTE);
    world.fill_journal("c", false);
    world.run(MINUTE);
    world.show(vm);
    check("full", &world);
}

#[test]
fn a_guest_dies_by_itself_and_its_host_loses_power() {
    let (mut world, vm) = placed();
    world.power_failure("c");
    world.run(MINUTE);
    world.show(vm);
    world.start("c");
    world.run(MINUTE);
    world.break_host("c", "c1", true);
    world.power_failure("c");
    world.start("c");
    world.run(5 * MINUTE);
    world.show(vm);
    world.break_host("c", "c1", false);
    world.run(5 * MINUTE);
    world.show(vm);
    check("power", &world);
}
