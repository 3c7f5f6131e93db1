//! The handoff, exhaustively: one migration between real `Site` machines, with every order of what
//! can happen, and a bounded number of crashes, lost and repeated messages at any point.
//!
//! A crash may come before the rows of an event are durable, after them, and between any two of
//! the effects. Time passes only when nothing else can happen.

#![allow(clippy::print_stdout, reason = "the counts of states are the result")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use federation_tests::world::{Crypto, Federation, Load, Point, Step, World};
use model::{MigrationId, PeerName, VmId};
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
    start: Federation,
    vm: VmId,
    /// Migrations that are over at the start: how they ended says nothing.
    before: BTreeSet<MigrationId>,
    faults: Faults,
}

impl Model for Handoff {
    type State = Now;
    type Action = Choice;

    fn init_states(&self) -> Vec<Now> {
        vec![Now { federation: self.start.clone(), left: self.faults }]
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
                    let is_request =
                        matches!(now.federation.flights[at].load, Load::Request { .. });
                    if now.left.repeats > 0 && is_request {
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
        properties.extend(ENDS.map(|(name, is_met)| Property::sometimes(name, is_met)));
        properties
    }
}

/// What it is called, and whether a run has come to it.
type End = (&'static str, fn(&Handoff, &Now) -> bool);

/// All ends of a migration, and one state that none ends in.
const ENDS: [End; 7] = [
    (TOMBSTONE, |model, now| model.ends_with_source(now, SourceStep::Tombstone)),
    (ABORTED, |model, now| model.ends_with_source(now, SourceStep::Aborted)),
    (RETURNED, |model, now| model.ends_with_source(now, SourceStep::Returned)),
    (OWNED, |model, now| model.ends_with_target(now, TargetStep::Owned)),
    (HANDED_BACK, |model, now| model.ends_with_target(now, TargetStep::HandedBack)),
    (DROPPED, |model, now| model.ends_with_target(now, TargetStep::Dropped)),
    (LAPSED, |model, now| model.has_target(now, TargetStep::Lapsed)),
];

const TOMBSTONE: &str = "a Source ends in TOMBSTONE";
const ABORTED: &str = "a Source ends in ABORTED";
const RETURNED: &str = "a Source ends in RETURNED";
const OWNED: &str = "a Destination ends in OWNED";
const HANDED_BACK: &str = "a Destination ends in HANDED_BACK";
const DROPPED: &str = "a Destination ends in DROPPED";
const LAPSED: &str = "a Destination is LAPSED on the way";

impl Handoff {
    /// Begins with what users ask.
    fn new(mut world: World, vm: VmId, faults: Faults, ask: impl FnOnce(&mut World)) -> Self {
        let nodes = world.federation.nodes.values();
        let before = nodes.flat_map(|node| node.durable.migrations.keys().copied()).collect();
        ask(&mut world);
        let mut start = world.federation;
        start.logging = false;
        start.log.clear();
        Self { start, vm, before, faults }
    }

    /// Whether nothing more happens, and a Source stays in this step.
    fn ends_with_source(&self, now: &Now, step: SourceStep) -> bool {
        let is = |one: &Migration| one.source.as_ref().is_some_and(|role| role.step == step);
        now.federation.steps().is_empty() && self.has(now, is)
    }

    /// Whether nothing more happens, and a Destination stays in this step.
    fn ends_with_target(&self, now: &Now, step: TargetStep) -> bool {
        now.federation.steps().is_empty() && self.has_target(now, step)
    }

    fn has_target(&self, now: &Now, step: TargetStep) -> bool {
        self.has(now, |one| one.target.as_ref().is_some_and(|role| role.step == step))
    }

    /// Whether a migration that has begun since the start is so, at some site.
    fn has(&self, now: &Now, so: impl Fn(&Migration) -> bool) -> bool {
        let all = now.federation.nodes.values().flat_map(|node| &node.durable.migrations);
        all.into_iter().any(|(id, migration)| !self.before.contains(id) && so(migration))
    }
}

fn running(federation: &Federation, vm: VmId) -> usize {
    let guests = federation.nodes.values().flat_map(|node| &node.guests);
    guests.filter(|((_, of, _), guest)| *of == vm && guest.executes).count()
}

/// Where these choices lead, with all that happens on the way in its log.
fn told(model: &Handoff, choices: Vec<Choice>) -> Federation {
    let mut now = Now { federation: model.start.clone(), left: model.faults };
    now.federation.logging = true;
    for choice in choices {
        now.federation.log.push(format!("{choice:?}"));
        now = model.next_state(&now, choice).expect("it was possible before");
    }
    now.federation
}

/// Checks every run, shows the steps of a run that breaks a rule, and demands that runs come to
/// these ends and to no others.
fn check(name: &str, handoff: Handoff, ends: &[&str]) {
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
    let mut came = vec![];
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        let is_example = property.expectation == stateright::Expectation::Sometimes;
        match found {
            Some(_) if is_example => came.push(property.name),
            Some(path) => {
                let end = told(checker.model(), path.into_actions());
                panic!(
                    "{} does not hold:\n{}\nEND: {:?} {:?}, {} running",
                    property.name,
                    end.log.join("\n"),
                    end.violations,
                    end.leftovers(),
                    running(&end, checker.model().vm)
                );
            }
            None => {}
        }
    }
    assert_eq!(came, ends, "{name}");
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
fn two_impatient_sites() -> (World, VmId) {
    let config = Config {
        admit_life: Duration::from_secs(60),
        ready_life: Duration::ZERO,
        ..Config::default()
    };
    two_sites_with(&config)
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

/// What a Destination does with the guest.
const DESTINATIONS: [(bool, &str); 2] = [(true, "that starts it"), (false, "that does not")];
/// All ends that there are with one, and with the other, when one thing fails.
const ENDS_OF_ONCE: [&[&str]; 2] =
    [&[TOMBSTONE, ABORTED, OWNED, DROPPED], &[ABORTED, RETURNED, HANDED_BACK, DROPPED]];

/// With a Destination that starts the guest, and with one that does not.
fn whatever_fails(
    name: &str,
    prepare: fn() -> (World, VmId),
    (controller, to): (&str, &str),
    faults: Faults,
    ends: [&[&str]; 2],
) {
    for ((starts, which), ends) in DESTINATIONS.into_iter().zip(ends) {
        let (mut world, vm) = prepare();
        world.break_host(to, "h1", !starts);
        let handoff = Handoff::new(world, vm, faults, |world| {
            if controller == to {
                world.bring_home(controller, vm);
            } else {
                world.move_to(controller, vm, &[to]);
            }
        });
        check(&format!("{name} {which}"), handoff, ends);
    }
}

/// Two faults of any kinds.
const ANY_TWO: Faults =
    Faults { crashes: 2, power_failures: 2, losses: 2, repeats: 2, early_deadlines: 2, all: 2 };

#[test]
fn two_sites_hand_over_whatever_fails_once() {
    whatever_fails(
        "Controller and Source, Destination",
        two_sites,
        ("a", "b"),
        ANY_ONE,
        ENDS_OF_ONCE,
    );
}

#[test]
fn what_a_destination_keeps_no_longer_goes_back() {
    let (world, vm) = two_impatient_sites();
    let handoff = Handoff::new(world, vm, ANY_ONE, |world| {
        world.move_to("a", vm, &["b"]);
    });
    let ends = [TOMBSTONE, ABORTED, RETURNED, OWNED, HANDED_BACK, DROPPED, LAPSED];
    check("an impatient Destination", handoff, &ends);
}

#[test]
#[ignore = "takes longer than a test should; cargo xtask model"]
fn two_sites_hand_over_whatever_fails_twice() {
    // What waits for a deadline that comes too early has time to lapse.
    let ends: [&[&str]; 2] = [
        &[TOMBSTONE, ABORTED, RETURNED, OWNED, HANDED_BACK, DROPPED, LAPSED],
        &[ABORTED, RETURNED, HANDED_BACK, DROPPED, LAPSED],
    ];
    whatever_fails("Controller and Source, Destination", two_sites, ("a", "b"), ANY_TWO, ends);
}

#[test]
fn a_source_two_hops_away_hands_over_whatever_fails_once() {
    let name = "Source, Intermediary, Controller and Destination";
    whatever_fails(name, three_sites, ("a", "a"), ANY_ONE, ENDS_OF_ONCE);
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
    whatever_fails(
        "Controller, Source, Destination",
        three_roles,
        ("a", "d"),
        ANY_ONE,
        ENDS_OF_ONCE,
    );
}

/// As [`three_sites`], with a host at b too, while a and b both ask for the VM; a's host starts
/// guests, or starts none.
fn two_controllers(starts: bool, faults: Faults) -> Handoff {
    let (mut world, vm) = three_sites();
    world.host("b", "h1", 1);
    world.run(Duration::from_secs(3600));
    world.break_host("a", "h1", !starts);
    Handoff::new(world, vm, faults, |world| {
        world.bring_home("a", vm);
        world.bring_home("b", vm);
    })
}

const NONE: Faults =
    Faults { crashes: 0, power_failures: 0, losses: 0, repeats: 0, early_deadlines: 0, all: 0 };

#[test]
fn of_two_controllers_at_once_each_ends_and_the_vm_runs_once() {
    let ends: [&[&str]; 2] = [&[TOMBSTONE, OWNED], &[TOMBSTONE, RETURNED, OWNED, HANDED_BACK]];
    for ((starts, which), ends) in DESTINATIONS.into_iter().zip(ends) {
        let name = format!("Controllers a {which} and b, Source c");
        check(&name, two_controllers(starts, NONE), ends);
    }
}

#[test]
#[ignore = "takes longer than a test should; cargo xtask model"]
fn of_two_controllers_at_once_each_ends_also_if_a_site_crashes() {
    let faults = Faults { crashes: 1, all: 1, ..NONE };
    let ends = [TOMBSTONE, ABORTED, OWNED];
    check("Controllers a and b, Source c", two_controllers(true, faults), &ends);
}
