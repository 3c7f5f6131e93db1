//! The handoff, exhaustively: one migration between real `Site` machines, with every order of what
//! can happen, and a bounded number of crashes, lost and repeated messages at any point.
//!
//! A crash may come before the rows of an event are durable, after them, and between any two of
//! the effects. Time passes only when nothing else can happen.

#![allow(clippy::print_stdout, reason = "the counts of states are the result")]

use std::time::{Duration, Instant};

use federation_tests::world::{Crypto, Federation, Point, Step, World};
use model::{PeerName, VmId};
use protocol::{Config, Migration, SourceStep, TargetStep};
use stateright::{Checker, Model, Property};

/// Crashes are tried before each of the first effects of an event; no event has more.
const MAX_EFFECTS: usize = 8;

/// How many faults of each kind, and of all kinds together, one run may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Faults {
    crashes: u8,
    power_failures: u8,
    losses: u8,
    repeats: u8,
    early_deadlines: u8,
    all: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Now {
    federation: Federation,
    left: Faults,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    Do(Step),
    CrashIn(Step, Point),
    PowerFailure(PeerName),
    Lose(usize),
    Repeat(usize),
    Early(Step),
}

struct Handoff {
    vm: VmId,
    starts: Vec<Federation>,
    faults: Faults,
    /// The Destination keeps what is ready for less time than anything else takes, and can start
    /// the guest.
    is_impatient: bool,
}

impl Model for Handoff {
    type State = Now;
    type Action = Choice;

    fn init_states(&self) -> Vec<Now> {
        let now =
            |federation: &Federation| Now { federation: federation.clone(), left: self.faults };
        self.starts.iter().map(now).collect()
    }

    fn actions(&self, now: &Now, choices: &mut Vec<Choice>) {
        if !now.federation.violations.is_empty() {
            return;
        }
        let steps = now.federation.steps();
        if now.left.all > 0 && now.left.power_failures > 0 {
            choices.extend(now.federation.nodes.keys().cloned().map(Choice::PowerFailure));
        }
        if now.left.all > 0 && now.left.early_deadlines > 0 && !steps.is_empty() {
            let early = now.federation.early_steps().into_iter();
            choices.extend(early.filter(|step| !steps.contains(step)).map(Choice::Early));
        }
        for step in steps {
            if now.left.all > 0 {
                if let Step::Deliver(at) = step {
                    if now.left.losses > 0 {
                        choices.push(Choice::Lose(at));
                    }
                    if now.left.repeats > 0 {
                        choices.push(Choice::Repeat(at));
                    }
                }
                if now.left.crashes > 0 {
                    choices.push(Choice::CrashIn(step.clone(), Point::BeforeRows));
                    let points = (0..=MAX_EFFECTS).map(Point::AfterEffects);
                    choices.extend(points.map(|point| Choice::CrashIn(step.clone(), point)));
                }
            }
            choices.push(Choice::Do(step));
        }
    }

    fn next_state(&self, now: &Now, choice: Choice) -> Option<Now> {
        let mut next = now.clone();
        match choice {
            Choice::Do(step) => next.federation.perform(&step, &mut |_, _| None),
            Choice::CrashIn(step, point) => {
                let mut possible = false;
                next.federation.perform(&step, &mut |_, output| {
                    possible = match point {
                        Point::BeforeRows => true,
                        // With no rows this is the same as before them.
                        Point::Unsynced(_) | Point::AfterEffects(0) => !output.rows.is_empty(),
                        Point::AfterEffects(at) => at <= output.effects.len(),
                    };
                    assert!(output.effects.len() <= MAX_EFFECTS, "an event has more effects");
                    possible.then_some(point)
                });
                if !possible {
                    return None;
                }
                next.left.crashes -= 1;
                next.left.all -= 1;
            }
            Choice::PowerFailure(name) => {
                next.federation.crash(&name);
                next.federation.end_guests(&name);
                next.left.power_failures -= 1;
                next.left.all -= 1;
            }
            Choice::Early(step) => {
                next.federation.perform(&step, &mut |_, _| None);
                next.left.early_deadlines -= 1;
                next.left.all -= 1;
            }
            Choice::Lose(at) => {
                next.federation.lose(at);
                next.left.losses -= 1;
                next.left.all -= 1;
            }
            Choice::Repeat(at) => {
                next.federation.repeat(at);
                next.left.repeats -= 1;
                next.left.all -= 1;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            // At most one guest executes, under the newest epoch; some site holds the newest
            // content; nothing is both released and aborted; see `world::invariant`.
            Property::always("every rule of the handoff holds", |_, now: &Now| {
                now.federation.violations.is_empty()
            }),
            Property::always(
                "it comes to rest with one running guest",
                |model: &Self, now: &Now| {
                    !now.federation.steps().is_empty()
                        || (running(&now.federation, model.vm) == 1
                            && now.federation.leftovers().is_empty())
                },
            ),
        ];
        // Which ends there are shows where something can go wrong.
        if self.faults.all > 0 {
            properties.extend([
                Property::sometimes("a Source ends in TOMBSTONE", |_, now: &Now| {
                    rests_with_source(now, SourceStep::Tombstone)
                }),
                Property::sometimes("a Source ends in ABORTED", |_, now: &Now| {
                    rests_with_source(now, SourceStep::Aborted)
                }),
                Property::sometimes("a Destination ends in OWNED", |_, now: &Now| {
                    rests_with_target(now, TargetStep::Owned)
                }),
                Property::sometimes("a Destination ends in DROPPED", |_, now: &Now| {
                    rests_with_target(now, TargetStep::Dropped)
                }),
            ]);
        }
        // Among several starts there is one whose Destination cannot launch the guest.
        if self.faults.all > 0 && self.starts.len() > 1 {
            properties.extend([
                Property::sometimes("a Source ends in RETURNED", |_, now: &Now| {
                    rests_with_source(now, SourceStep::Returned)
                }),
                Property::sometimes("a Destination ends in HANDED_BACK", |_, now: &Now| {
                    rests_with_target(now, TargetStep::HandedBack)
                }),
            ]);
        }
        if self.is_impatient {
            properties.extend([
                Property::sometimes("a Destination is LAPSED", |_, now: &Now| {
                    let mut nodes = now.federation.nodes.values();
                    nodes.any(|node| {
                        has_target(node.durable.migrations.values(), TargetStep::Lapsed)
                    })
                }),
                // Its host starts guests: there is no other reason.
                Property::sometimes("a LAPSED one ends in HANDED_BACK", |_, now: &Now| {
                    rests_with_target(now, TargetStep::HandedBack)
                }),
                Property::sometimes("a Source ends in RETURNED", |_, now: &Now| {
                    rests_with_source(now, SourceStep::Returned)
                }),
            ]);
        }
        properties
    }
}

fn has_target<'a>(mut all: impl Iterator<Item = &'a Migration>, step: TargetStep) -> bool {
    all.any(|migration| migration.target.as_ref().is_some_and(|role| role.step == step))
}

/// Whether nothing more happens, and a Source of some migration stays in this step.
fn rests_with_source(now: &Now, step: SourceStep) -> bool {
    rests_with(now, |migration| migration.source.as_ref().is_some_and(|role| role.step == step))
}

/// Whether nothing more happens, and a Destination of some migration stays in this step.
fn rests_with_target(now: &Now, step: TargetStep) -> bool {
    rests_with(now, |migration| migration.target.as_ref().is_some_and(|role| role.step == step))
}

fn rests_with(now: &Now, so: impl Fn(&Migration) -> bool) -> bool {
    let mut nodes = now.federation.nodes.values();
    now.federation.steps().is_empty() && nodes.any(|node| node.durable.migrations.values().any(&so))
}

fn running(federation: &Federation, vm: VmId) -> usize {
    let guests = federation.nodes.values().flat_map(|node| &node.guests);
    guests.filter(|((_, of, _), guest)| *of == vm && guest.executes).count()
}

/// Checks every run, and shows the steps of a run that breaks a rule.
fn check(name: &str, handoff: Handoff) {
    let began = Instant::now();
    let faults = handoff.faults;
    let checker = handoff.checker().threads(2).spawn_dfs().join();
    println!(
        "{name}, {faults:?}: {} states, {} of them different, depth {}, in {:?}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        let is_example = property.expectation == stateright::Expectation::Sometimes;
        match found {
            Some(path) if !is_example => {
                let mut story = vec![];
                for (now, choice) in path.into_vec() {
                    let federation = &now.federation;
                    story.push(match &choice {
                        Some(Choice::Do(step)) => federation.describe(step),
                        Some(Choice::CrashIn(step, point)) => {
                            format!("{}  ** CRASH {point:?}", federation.describe(step))
                        }
                        Some(Choice::PowerFailure(name)) => format!("{name}  ** POWER FAILURE"),
                        Some(Choice::Early(step)) => {
                            format!("{}  ** EARLY", federation.describe(step))
                        }
                        Some(Choice::Lose(at)) => {
                            format!("{}  ** LOST", federation.describe(&Step::Deliver(*at)))
                        }
                        Some(Choice::Repeat(at)) => {
                            format!("{}  ** REPEATED", federation.describe(&Step::Deliver(*at)))
                        }
                        None => format!(
                            "END: {:?} {:?}, {} running",
                            federation.violations,
                            federation.leftovers(),
                            running(federation, checker.model().vm)
                        ),
                    });
                }
                panic!("{} does not hold:\n{}", property.name, story.join("\n"));
            }
            None if is_example => panic!("{} was never reached", property.name),
            _ => {}
        }
    }
}

/// A federation at the moment when a user has asked for a move, whose Destination can launch the
/// guest, and the same with one that cannot.
fn starts(
    prepare: impl Fn() -> (World, VmId),
    controller: &str,
    to: &str,
) -> (Vec<Federation>, VmId) {
    let mut starts = vec![];
    let mut id = None;
    for broken in [false, true] {
        let (mut world, vm) = prepare();
        world.break_host(to, "h1", broken);
        if controller == to {
            world.bring_home(controller, vm);
        } else {
            world.move_to(controller, vm, &[to]);
        }
        world.federation.logging = false;
        world.federation.log.clear();
        starts.push(world.federation);
        id = Some(vm);
    }
    (starts, id.expect("two starts"))
}

/// The VM of a runs at a, which is its Controller and its Source; b may be its Destination.
fn two_sites() -> (World, VmId) {
    two_sites_with(&Config::default())
}

fn two_sites_with(config: &Config) -> (World, VmId) {
    let mut world = World::with(&["a", "b"], Crypto::Fast, config);
    world.peer("a", "b");
    world.host("a", "h1", 1);
    let vm = world.import("a");
    world.bring_home("a", vm);
    world.until_runs(vm, "a");
    world.settle();
    world.host("b", "h1", 1);
    world.run(Duration::from_secs(3600));
    (world, vm)
}

/// The same where what is ready is kept for a minute, and b starts its guests.
fn two_impatient_sites() -> (Vec<Federation>, VmId) {
    let config = Config {
        admit_life: Duration::from_secs(60),
        ready_life: Duration::ZERO,
        ..Config::default()
    };
    let (mut world, vm) = two_sites_with(&config);
    world.move_to("a", vm, &["b"]);
    world.federation.logging = false;
    world.federation.log.clear();
    (vec![world.federation], vm)
}

/// a knows b, b knows c. The VM of a runs at c; a is Controller, b on the way.
fn three_sites() -> (World, VmId) {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("c", "h1", 1);
    let vm = world.import("a");
    world.move_to("a", vm, &["b"]);
    world.until_runs(vm, "c");
    world.settle();
    world.host("a", "h1", 1);
    world.run(Duration::from_secs(3600));
    (world, vm)
}

/// One fault of any kind.
const ANY_ONE: Faults =
    Faults { crashes: 1, power_failures: 1, losses: 1, repeats: 1, early_deadlines: 1, all: 1 };

#[test]
fn two_sites_hand_over_whatever_fails_once() {
    let (starts, vm) = starts(two_sites, "a", "b");
    check(
        "Controller and Source, Destination",
        Handoff { vm, starts, faults: ANY_ONE, is_impatient: false },
    );
}

#[test]
fn what_a_destination_keeps_no_longer_goes_back() {
    let (starts, vm) = two_impatient_sites();
    check("an impatient Destination", Handoff { vm, starts, faults: ANY_ONE, is_impatient: true });
}

#[test]
#[ignore = "takes longer than a test should; cargo xtask model"]
fn two_sites_hand_over_with_two_crashes_or_a_crash_and_a_lost_or_repeated_message() {
    let (starts, vm) = starts(two_sites, "a", "b");
    let faults = Faults { crashes: 2, power_failures: 0, early_deadlines: 0, all: 2, ..ANY_ONE };
    check(
        "Controller and Source, Destination",
        Handoff { vm, starts, faults, is_impatient: false },
    );
}

#[test]
fn a_source_two_hops_away_hands_over_whatever_fails_once() {
    let (starts, vm) = starts(three_sites, "a", "a");
    check(
        "Controller and Destination, Intermediary, Source",
        Handoff { vm, starts, faults: ANY_ONE, is_impatient: false },
    );
}

/// d and c know a. The VM of a runs at c; a is Controller, d may be the Destination.
fn three_roles() -> (World, VmId) {
    let mut world = World::chain(&["d", "a", "c"]);
    world.host("c", "h1", 1);
    let vm = world.import("a");
    world.place("a", vm);
    world.until_runs(vm, "c");
    world.settle();
    world.host("d", "h1", 1);
    world.run(Duration::from_secs(3600));
    (world, vm)
}

#[test]
fn three_roles_at_three_sites_hand_over_whatever_fails_once() {
    let (starts, vm) = starts(three_roles, "a", "d");
    check(
        "Controller, Source, Destination",
        Handoff { vm, starts, faults: ANY_ONE, is_impatient: false },
    );
}

/// As [`three_sites`], with a host at b too; and the same where a's host starts no guest.
fn two_controllers() -> (Vec<Federation>, VmId) {
    let mut starts = vec![];
    let mut id = None;
    for broken in [false, true] {
        let (mut world, vm) = three_sites();
        world.host("b", "h1", 1);
        world.run(Duration::from_secs(3600));
        world.break_host("a", "h1", broken);
        world.bring_home("a", vm);
        world.bring_home("b", vm);
        world.federation.logging = false;
        world.federation.log.clear();
        starts.push(world.federation);
        id = Some(vm);
    }
    (starts, id.expect("two starts"))
}

const NONE: Faults =
    Faults { crashes: 0, power_failures: 0, losses: 0, repeats: 0, early_deadlines: 0, all: 0 };

#[test]
fn of_two_controllers_at_once_each_ends_and_the_vm_runs_once() {
    let (starts, vm) = two_controllers();
    check(
        "Controllers a and b, Source c",
        Handoff { vm, starts, faults: NONE, is_impatient: false },
    );
}

#[test]
#[ignore = "takes longer than a test should; cargo xtask model"]
fn of_two_controllers_at_once_each_ends_also_if_a_site_crashes() {
    let (mut starts, vm) = two_controllers();
    // With the other one it takes five times as long.
    starts.truncate(1);
    let faults = Faults { crashes: 1, all: 1, ..NONE };
    check("Controllers a and b, Source c", Handoff { vm, starts, faults, is_impatient: false });
}
