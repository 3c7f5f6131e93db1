//! What comes of answers that are not what was asked for: for each step of a move, each wrong answer,
//! and whether it comes once or whenever that step is asked for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use federation_tests::world::{Fate, Flight, Load, World, asks, site};
use model::{OperationId, PeerName, Signature, Signed, VmId};
use protocol::{Answer, CallError, Outcome};

use crate::compare;

const HOUR: Duration = Duration::from_secs(3600);
/// So long a site lies that always lies.
const LYING: Duration = Duration::from_secs(2 * 3600);

/// Answers by the form they have.
type Heard = Rc<RefCell<BTreeMap<&'static str, Answer>>>;

/// A wrong answer.
#[derive(Clone, Copy)]
enum Wrong {
    Gone,
    Conflict,
    Failed,
    Refused,
    Unknown,
    Done,
    Accepted,
    /// It cannot be read.
    Garbled,
    /// The right one, with signatures that nobody has made.
    Forged,
    /// What was answered when the VM moved before.
    Earlier,
    /// What was answered when another VM moved.
    Another,
}

impl Wrong {
    const ALL: [(Self, &'static str); 11] = [
        (Self::Gone, "gone"),
        (Self::Conflict, "a conflict"),
        (Self::Failed, "failed"),
        (Self::Refused, "refused"),
        (Self::Unknown, "unknown"),
        (Self::Done, "done"),
        (Self::Accepted, "accepted"),
        (Self::Garbled, "not to be read"),
        (Self::Forged, "forged"),
        (Self::Earlier, "said before"),
        (Self::Another, "of another VM"),
    ];

    /// Instead of the right answer, if that would be another.
    fn instead_of(self, right: &Answer, heard: [&Heard; 2]) -> Option<Result<Answer, CallError>> {
        let reason = || "so it says".to_owned();
        let heard_in = |heard: &Heard| heard.borrow().get(form(right)).cloned();
        let wrong = match self {
            Self::Gone => Answer::Gone { reason: reason() },
            Self::Conflict => {
                Answer::Conflict { reason: reason(), retry_after: Duration::from_secs(7) }
            }
            Self::Failed => Answer::Failed { reason: reason() },
            Self::Refused => Answer::Refused { reasons: vec![reason(), reason()] },
            Self::Unknown => Answer::Unknown,
            Self::Done => Answer::Done,
            Self::Accepted => Answer::Accepted,
            Self::Garbled => return Some(Err(CallError::Garbled("it is cut off".to_owned()))),
            Self::Forged => forged(right)?,
            Self::Earlier => heard_in(heard[0])?,
            Self::Another => heard_in(heard[1])?,
        };
        (wrong != *right).then_some(Ok(wrong))
    }
}

/// The form of an answer, by a word.
fn form(answer: &Answer) -> &'static str {
    match answer {
        Answer::Offers { .. } => "offers",
        Answer::Prepared { .. } => "prepared",
        Answer::Arrived { .. } => "arrived",
        Answer::Verified(Outcome::Open { .. }) => "open",
        Answer::Verified(Outcome::Released(_)) => "released",
        Answer::Verified(Outcome::Aborted(_)) => "aborted",
        Answer::Verified(Outcome::Differs { .. }) => "differs",
        Answer::Owned { .. } => "owned",
        Answer::HandedBack { .. } => "handed back",
        _ => "another",
    }
}

fn forged(right: &Answer) -> Option<Answer> {
    fn forge<T>(signed: &mut Signed<T>) {
        signed.signature = Signature([7; 64]);
    }
    let mut answer = right.clone();
    match &mut answer {
        Answer::Arrived { ready, .. } => forge(ready),
        Answer::Owned { statement } | Answer::Verified(Outcome::Aborted(statement)) => {
            forge(statement);
        }
        Answer::HandedBack { certificate } | Answer::Verified(Outcome::Released(certificate)) => {
            forge(certificate);
        }
        _ => return None,
    }
    Some(answer)
}

/// A move in which one site lies.
struct Play {
    /// What moves where, and who lies.
    title: &'static str,
    /// The site that lies.
    liar: &'static str,
    /// What it is asked.
    steps: &'static [&'static str],
    /// The site whose operation it is.
    at: &'static str,
    /// Who knows whom, who has hosts, and the VMs where they are at first.
    set: fn() -> (World, [VmId; 2]),
    /// Moves a VM as it will be moved; and then, if it is not the last time, back.
    moves: fn(&mut World, VmId) -> OperationId,
    back: fn(&mut World, VmId),
}

/// b and c are peers of a, which has two VMs at c; b has room.
fn star() -> (World, [VmId; 2]) {
    let mut world = World::of(&["a", "b", "c"]);
    world.peer("a", "b");
    world.peer("a", "c");
    world.host("c", "c1", 2);
    let vms = [world.import("a"), world.import("a")];
    for vm in vms {
        world.place("a", vm);
        world.until_runs(vm, "c");
    }
    world.host("b", "b1", 2);
    (world, vms)
}

/// The same where no guest starts at b.
fn broken() -> (World, [VmId; 2]) {
    let (mut world, vms) = star();
    world.break_host("b", "b1", true);
    (world, vms)
}

/// a knows b and b knows c; a has two VMs at c, and room.
fn chain() -> (World, [VmId; 2]) {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("c", "c1", 2);
    let vms = [world.import("a"), world.import("a")];
    for vm in vms {
        world.place("a", vm);
        world.until_runs(vm, "c");
    }
    world.host("a", "a1", 2);
    (world, vms)
}

/// The same with the VMs at a.
fn at_home() -> (World, [VmId; 2]) {
    let (mut world, vms) = chain();
    for vm in vms {
        world.bring_home("a", vm);
        world.until_runs(vm, "a");
    }
    (world, vms)
}

fn to_b(world: &mut World, vm: VmId) -> OperationId {
    world.move_to("a", vm, &["b"])
}

fn to_c(world: &mut World, vm: VmId) {
    world.move_to("a", vm, &["c"]);
    world.until_runs(vm, "c");
}

fn stays_at_c(world: &mut World, vm: VmId) {
    world.until_runs(vm, "c");
}

fn home(world: &mut World, vm: VmId) -> OperationId {
    world.bring_home("a", vm)
}

fn away(world: &mut World, vm: VmId) {
    world.move_to("a", vm, &["b"]);
    world.until_runs(vm, "c");
}

fn comes_home(world: &mut World, vm: VmId) {
    home(world, vm);
    world.until_runs(vm, "a");
}

fn out_of_c(world: &mut World, vm: VmId) -> OperationId {
    world.evict("c", vm, HOUR)
}

/// The requests to a site, and its answers, as they pass.
fn is_of(flight: &Flight, liar: &PeerName, step: &str) -> bool {
    asks(flight, step) && matches!(&flight.load, Load::Request { to, .. } if to == liar)
}

impl Play {
    /// Plays it with one lie, and says what came of it; [`None`] where it would be no lie.
    fn with(&self, step: &'static str, wrong: Wrong, always: bool) -> Option<String> {
        let (mut world, [vm, other]) = (self.set)();
        let liar = site(self.liar);
        let heard: [Heard; 2] = Default::default();
        for (heard, vm) in heard.iter().zip([vm, other]) {
            let heard = Rc::clone(heard);
            let liar = liar.clone();
            world.network(move |flight| {
                if let Load::Answer { from, answer: Ok(answer), .. } = &flight.load
                    && *from == liar
                {
                    heard.borrow_mut().insert(form(answer), (**answer).clone());
                }
                Fate::Arrives
            });
            (self.moves)(&mut world, vm);
            world.run(HOUR);
            (self.back)(&mut world, vm);
            world.run(HOUR);
        }
        let asked: Rc<RefCell<BTreeMap<&'static str, u32>>> = Default::default();
        let lies = Rc::new(RefCell::new(0));
        let (counts, told) = (Rc::clone(&asked), Rc::clone(&lies));
        let mut calls = Vec::new();
        world.network(move |flight| {
            match &mut flight.load {
                Load::Request { from, request, .. } => {
                    let name = request.origin.op.name();
                    *counts.borrow_mut().entry(name).or_default() += 1;
                    let line = (from.site.clone(), from.life, from.call);
                    if is_of(flight, &liar, step) {
                        calls.push(line);
                    }
                }
                Load::Answer { to, answer, .. } => {
                    let line = (to.site.clone(), to.life, to.call);
                    let mut lies = told.borrow_mut();
                    let again = always || *lies == 0;
                    if let (true, true, Ok(right)) = (again, calls.contains(&line), &*answer)
                        && let Some(wrong) = wrong.instead_of(right, [&heard[0], &heard[1]])
                    {
                        *answer = wrong.map(Box::new);
                        *lies += 1;
                    }
                }
            }
            Fate::Arrives
        });
        let began = world.elapsed();
        let operation = (self.moves)(&mut world, vm);
        let at = self.at;
        world.run_while(LYING, |world| {
            world.state(at).journeys.get(&operation).is_some_and(|one| one.result.is_none())
        });
        let took = world.elapsed() - began;
        let result = world.state(at).journeys[&operation].result.clone();
        let counts = asked.borrow().clone();
        world.run(LYING.saturating_sub(took));
        let lies = *lies.borrow();
        if lies == 0 {
            return None;
        }
        let there = |world: &World| world.running_at(vm).join(" and ");
        let place = there(&world);
        world.settle();
        let mut line = match result {
            Some(result) => format!("{result:?}"),
            None => "nothing yet".to_owned(),
        };
        write!(line, " after {} ms", took.as_millis()).unwrap();
        for (name, count) in counts {
            write!(line, ", {count} {name}").unwrap();
        }
        write!(line, "; {lies} lies; runs at {place:?}, and {:?} at last", there(&world)).unwrap();
        Some(line)
    }

    fn play(&self, text: &mut String) {
        writeln!(text, "{}", self.title).unwrap();
        for step in self.steps {
            for (always, often) in [(false, "once"), (true, "always")] {
                let mut told: Vec<(String, Vec<&str>)> = Vec::new();
                for (wrong, name) in Wrong::ALL {
                    let Some(line) = self.with(step, wrong, always) else { continue };
                    match told.iter_mut().find(|(other, _)| *other == line) {
                        Some((_, names)) => names.push(name),
                        None => told.push((line, vec![name])),
                    }
                }
                for (line, names) in told {
                    writeln!(text, "  {step}, {often} {}: {line}", names.join(", ")).unwrap();
                }
            }
        }
    }
}

#[test]
fn whatever_is_answered_the_vm_runs_somewhere_and_nothing_is_left_over() {
    const SOURCE: &[&str] = &["forced migration", "transfer verification", "retire"];
    const DESTINATION: &[&str] = &["migration request", "initiate transfer", "deliver"];
    let plays = [
        Play {
            title: "a moves its VM from c to b, and c lies",
            liar: "c",
            steps: SOURCE,
            at: "a",
            set: star,
            moves: to_b,
            back: to_c,
        },
        Play {
            title: "a moves its VM from c to b, and b lies",
            liar: "b",
            steps: DESTINATION,
            at: "a",
            set: star,
            moves: to_b,
            back: to_c,
        },
        Play {
            title: "a moves its VM from c to b where it does not start, and c lies",
            liar: "c",
            steps: &["handback"],
            at: "a",
            set: broken,
            moves: to_b,
            back: stays_at_c,
        },
        Play {
            title: "a moves its VM from c to b where it does not start, and b lies",
            liar: "b",
            steps: &["deliver"],
            at: "a",
            set: broken,
            moves: to_b,
            back: stays_at_c,
        },
        Play {
            title: "a brings its VM home from c through b, and c lies",
            liar: "c",
            steps: SOURCE,
            at: "a",
            set: chain,
            moves: home,
            back: away,
        },
        Play {
            title: "a places its VM at c through b, and c lies",
            liar: "c",
            steps: DESTINATION,
            at: "a",
            set: at_home,
            moves: |world, vm| world.move_to("a", vm, &["b"]),
            back: comes_home,
        },
        Play {
            title: "c wants the VM of a gone, and b between them lies",
            liar: "b",
            steps: &["eviction", "forced migration", "report"],
            at: "c",
            set: chain,
            moves: out_of_c,
            back: away,
        },
        Play {
            title: "c wants the VM of a gone, and a lies",
            liar: "a",
            steps: &["eviction", "migration request", "initiate transfer", "deliver", "report"],
            at: "c",
            set: chain,
            moves: out_of_c,
            back: away,
        },
    ];
    let mut text = String::new();
    for play in plays {
        play.play(&mut text);
    }
    compare("lies", &text);
}
