//! What comes of answers that are not what was asked for, and of requests that are not what they
//! should be: for each step of a move, each lie, and whether it is told once or whenever that step is
//! asked for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use federation_tests::transcript::compare;
use federation_tests::world::{Fate, Flight, Load, World, asks, site};
use model::{Chain, EdgeHandle, MigrationId, OperationId, PeerName, Signature, Signed, VmId};
use protocol::{Answer, CallError, Op, Outcome, Request};

const HOUR: Duration = Duration::from_secs(3600);
const SITES: [&str; 3] = ["a", "b", "c"];
/// So long a site lies that always lies.
const LYING: Duration = Duration::from_secs(3700);

/// What was said as another move went well: requests by their operation, answers by their form.
#[derive(Default)]
struct Heard {
    requests: BTreeMap<&'static str, Request>,
    answers: BTreeMap<&'static str, Answer>,
}

type Told = Rc<RefCell<Heard>>;

/// Puts a lie in the place of what was to be said.
#[derive(Clone, Copy)]
enum Lie {
    Answer(Wrong),
    Request(Altered),
}

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
    fn instead_of(self, right: &Answer, told: [&Heard; 2]) -> Option<Result<Answer, CallError>> {
        let reason = || "so it says".to_owned();
        let heard_in = |heard: &Heard| heard.answers.get(form(right)).cloned();
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
            Self::Earlier => heard_in(told[0])?,
            Self::Another => heard_in(told[1])?,
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

fn forge<T>(signed: &mut Signed<T>) {
    signed.signature = Signature([7; 64]);
}

fn forged(right: &Answer) -> Option<Answer> {
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

/// A request that is not as it should be.
#[derive(Clone, Copy)]
enum Altered {
    NoEdge,
    WrongEdge,
    EdgeOfAnother,
    NoHopLeft,
    NoTime,
    NoEnds,
    NotTaken,
    /// As it was when the VM moved before.
    Earlier,
    /// As it was when another VM moved.
    Another,
    /// The same for this VM, with what the other one's says.
    LikeAnother,
    UnknownMigration,
    AnotherMigration,
    OtherKey,
    ShortChain,
    ForgedChain,
    Forged,
    Nothing,
}

impl Altered {
    const ALL: [(Self, &'static str); 17] = [
        (Self::NoEdge, "without an edge"),
        (Self::WrongEdge, "along no edge that there is"),
        (Self::EdgeOfAnother, "along the edge of another VM"),
        (Self::NoHopLeft, "with no hop left"),
        (Self::NoTime, "with no time left"),
        (Self::NoEnds, "without an end of the transfer"),
        (Self::NotTaken, "without a signed contract"),
        (Self::Earlier, "as it was before"),
        (Self::Another, "as it was for another VM"),
        (Self::LikeAnother, "with what it said of another VM"),
        (Self::UnknownMigration, "of a migration that nobody knows"),
        (Self::AnotherMigration, "of another VM's migration"),
        (Self::OtherKey, "by somebody else"),
        (Self::ShortChain, "with a chain cut short"),
        (Self::ForgedChain, "with a forged chain"),
        (Self::Forged, "with a forged signature"),
        (Self::Nothing, "with nothing to show"),
    ];

    /// The request as it is then, if that is another.
    fn of(self, right: &Request, told: [&Heard; 2]) -> Option<Request> {
        let name = right.origin.op.name();
        let another = told[1].requests.get(name);
        let mut request = right.clone();
        let (origin, hop) = (&mut request.origin, &mut request.hop);
        match self {
            Self::NoEdge => hop.edge = None,
            Self::WrongEdge => hop.edge = Some(EdgeHandle([9; 16])),
            Self::EdgeOfAnother => hop.edge = another?.hop.edge,
            Self::NoHopLeft => hop.hops_left = 0,
            Self::NoTime => hop.time_left = Duration::ZERO,
            Self::NoEnds => (hop.source, hop.target) = (None, None),
            Self::NotTaken => hop.taken = None,
            Self::Earlier => request = told[0].requests.get(name)?.clone(),
            Self::Another => request = another?.clone(),
            Self::LikeAnother => {
                let vm = right.origin.op.vm();
                let migration = right.origin.op.migration();
                origin.op = another?.origin.op.clone();
                *vm_of(&mut origin.op) = vm;
                if let (Some(id), Some(migration)) = (migration_of(&mut origin.op), migration) {
                    *id = migration;
                }
            }
            Self::UnknownMigration => *migration_of(&mut origin.op)? = MigrationId([9; 16]),
            Self::AnotherMigration => {
                *migration_of(&mut origin.op)? = another?.origin.op.migration()?;
            }
            Self::OtherKey => origin.key = another?.origin.key,
            Self::ShortChain => {
                chain_of(&mut origin.op)?.certificates.pop();
            }
            Self::ForgedChain => chain_of(&mut origin.op)?.certificates.last_mut().map(forge)?,
            Self::Forged => match &mut origin.op {
                Op::TransferVerification { ready: Some(ready), .. } => forge(ready),
                Op::Deliver { certificate, .. } | Op::Handback { certificate, .. } => {
                    forge(certificate);
                }
                Op::Retire { owned, .. } => forge(owned),
                _ => return None,
            },
            Self::Nothing => match &mut origin.op {
                Op::TransferVerification { ready, .. } => *ready = None,
                _ => return None,
            },
        }
        (request != *right).then_some(request)
    }
}

fn vm_of(op: &mut Op) -> &mut VmId {
    match op {
        Op::MigrationRequest { vm, .. }
        | Op::ForcedMigration { vm, .. }
        | Op::Evict { vm, .. }
        | Op::InitiateTransfer { vm, .. }
        | Op::TransferVerification { vm, .. }
        | Op::Deliver { vm, .. }
        | Op::Handback { vm, .. }
        | Op::Retire { vm, .. }
        | Op::Control { vm, .. }
        | Op::Monitor { vm, .. }
        | Op::Report { vm, .. }
        | Op::Confirm { vm }
        | Op::Reclaim { vm, .. }
        | Op::Superseded { vm, .. }
        | Op::Withdraw { vm, .. } => vm,
    }
}

fn migration_of(op: &mut Op) -> Option<&mut MigrationId> {
    match op {
        Op::ForcedMigration { migration, .. }
        | Op::InitiateTransfer { migration, .. }
        | Op::TransferVerification { migration, .. }
        | Op::Deliver { migration, .. }
        | Op::Handback { migration, .. }
        | Op::Retire { migration, .. } => Some(migration),
        _ => None,
    }
}

fn chain_of(op: &mut Op) -> Option<&mut Chain> {
    match op {
        Op::InitiateTransfer { chain, .. }
        | Op::Report { chain, .. }
        | Op::Superseded { chain, .. } => Some(chain),
        _ => None,
    }
}

/// An answer in a few words.
fn brief(answer: &Result<Box<Answer>, CallError>) -> String {
    match answer.as_deref() {
        Ok(Answer::Offers { offers, reasons }) => format!("{} offers {reasons:?}", offers.len()),
        Ok(
            answer @ (Answer::Failed { .. }
            | Answer::Gone { .. }
            | Answer::Conflict { .. }
            | Answer::Refused { .. }
            | Answer::Unknown
            | Answer::Done
            | Answer::Accepted
            | Answer::State { .. }
            | Answer::Verified(Outcome::Open { .. })),
        ) => format!("{answer:?}"),
        Ok(answer) => form(answer).to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

/// A move in which one site lies, or is lied to.
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
    let mut world = World::of(&SITES);
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
    let mut world = World::chain(&SITES);
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
    fn with(&self, step: &'static str, lie: Lie, always: bool) -> Option<String> {
        let (mut world, [vm, other]) = (self.set)();
        // It takes half of the time; set it to see what came before a failure.
        world.federation.logging = false;
        let told = self.listen(&mut world, [vm, other]);
        let seen = self.deceive(&mut world, told, step, lie, always);
        let began = world.elapsed();
        let operation = (self.moves)(&mut world, vm);
        let at = self.at;
        world.run_while(LYING, |world| {
            world.state(at).journeys.get(&operation).is_some_and(|one| one.result.is_none())
        });
        let took = world.elapsed() - began;
        let result = world.state(at).journeys[&operation].result.clone();
        let counts = seen.borrow().asked.clone();
        world.run(LYING.saturating_sub(took));
        let Seen { lies, answers, .. } = seen.take();
        if lies == 0 {
            return None;
        }
        let there = |world: &World| world.running_at(vm).join(" and ");
        let place = there(&world);
        world.settle();
        let is_kept = |at: &&&str| world.state(at).vms.get(&vm).is_some_and(|vm| vm.stay.is_some());
        let kept = SITES.iter().filter(is_kept).count();
        assert_eq!(kept, 1, "{step}, {always}: it is at one site");
        let mut line = answers.map(|answer| format!("{answer}; ")).unwrap_or_default();
        match result {
            Some(result) => write!(line, "{result:?}").unwrap(),
            None => line.push_str("nothing yet"),
        }
        write!(line, " after {} ms", took.as_millis()).unwrap();
        for (name, count) in counts {
            write!(line, ", {count} {name}").unwrap();
        }
        write!(line, "; {lies} lies; runs at {place:?}, and {:?} at last", there(&world)).unwrap();
        Some(line)
    }

    /// Moves one VM and the other with nothing said that is wrong, and tells what the liar said and
    /// was asked for each.
    fn listen(&self, world: &mut World, vms: [VmId; 2]) -> [Told; 2] {
        let liar = site(self.liar);
        let heard: [Told; 2] = Default::default();
        for (heard, vm) in heard.iter().zip(vms) {
            let heard = Rc::clone(heard);
            let liar = liar.clone();
            world.network(move |flight| {
                let mut heard = heard.borrow_mut();
                match &flight.load {
                    Load::Answer { from, answer: Ok(answer), .. } if *from == liar => {
                        heard.answers.insert(form(answer), (**answer).clone());
                    }
                    Load::Request { to, request, .. } if *to == liar => {
                        heard.requests.insert(request.origin.op.name(), (**request).clone());
                    }
                    _ => {}
                }
                Fate::Arrives
            });
            (self.moves)(world, vm);
            world.run(HOUR);
            (self.back)(world, vm);
            world.run(HOUR);
        }
        heard
    }

    /// From now on the liar, or whoever asks it, says this of the step.
    fn deceive(
        &self,
        world: &mut World,
        heard: [Told; 2],
        step: &'static str,
        lie: Lie,
        always: bool,
    ) -> Rc<RefCell<Seen>> {
        let liar = site(self.liar);
        let seen: Rc<RefCell<Seen>> = Default::default();
        let saw = Rc::clone(&seen);
        let mut calls = Vec::new();
        world.network(move |flight| {
            let (mut seen, told) = (saw.borrow_mut(), [heard[0].borrow(), heard[1].borrow()]);
            let told = [&*told[0], &*told[1]];
            let again = always || seen.lies == 0;
            let is_step = is_of(flight, &liar, step);
            match (&mut flight.load, lie) {
                (Load::Request { from, request, .. }, lie) => {
                    *seen.asked.entry(request.origin.op.name()).or_default() += 1;
                    let line = (from.site.clone(), from.life, from.call);
                    let altered = match lie {
                        Lie::Request(lie) if is_step && again => lie.of(request, told),
                        _ => None,
                    };
                    if let Some(altered) = altered {
                        **request = altered;
                        seen.lies += 1;
                        calls.push(line);
                    } else if is_step && matches!(lie, Lie::Answer(_)) {
                        calls.push(line);
                    }
                }
                (Load::Answer { to, answer, .. }, lie) => {
                    let line = (to.site.clone(), to.life, to.call);
                    if !calls.contains(&line) {
                        return Fate::Arrives;
                    }
                    match (lie, &*answer) {
                        (Lie::Request(_), _) => {
                            seen.answers.get_or_insert(brief(answer));
                        }
                        (Lie::Answer(wrong), Ok(right)) if again => {
                            if let Some(wrong) = wrong.instead_of(right, told) {
                                *answer = wrong.map(Box::new);
                                seen.lies += 1;
                            }
                        }
                        _ => {}
                    }
                }
            }
            Fate::Arrives
        });
        world.federation.is_deceived();
        seen
    }

    /// Plays it with each lie, once and, if that is asked for, always.
    fn play(&self, lies: &[(Lie, &'static str)], often: &[bool], text: &mut String) {
        writeln!(text, "{}", self.title).unwrap();
        for step in self.steps {
            for always in often {
                let mut told: Vec<(String, Vec<&str>)> = Vec::new();
                for (lie, name) in lies {
                    let Some(line) = self.with(step, *lie, *always) else { continue };
                    match told.iter_mut().find(|(other, _)| *other == line) {
                        Some((_, names)) => names.push(name),
                        None => told.push((line, vec![name])),
                    }
                }
                let often = if *always { "always" } else { "once" };
                for (line, names) in told {
                    writeln!(text, "  {step}, {often} {}: {line}", names.join(", ")).unwrap();
                }
            }
        }
    }
}

/// What was seen of a play.
#[derive(Default)]
struct Seen {
    asked: BTreeMap<&'static str, u32>,
    lies: u32,
    /// What was answered to the first request that was altered.
    answers: Option<String>,
}

fn plays() -> [Play; 8] {
    const SOURCE: &[&str] = &["forced migration", "transfer verification", "retire"];
    const DESTINATION: &[&str] = &["migration request", "initiate transfer", "deliver"];
    [
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
    ]
}

fn table(name: &str, lies: &[(Lie, &'static str)], often: &[bool]) {
    let mut text = String::new();
    for play in plays() {
        play.play(lies, often, &mut text);
    }
    compare(&format!("replies/{name}"), &text);
}

#[test]
fn whatever_is_answered_one_site_has_the_vm_and_nothing_is_left_over() {
    let lies = Wrong::ALL.map(|(lie, name)| (Lie::Answer(lie), name));
    table("answers", &lies, &[false, true]);
}

#[test]
fn whatever_is_asked_one_site_has_the_vm_and_nothing_is_left_over() {
    let lies = Altered::ALL.map(|(lie, name)| (Lie::Request(lie), name));
    table("requests", &lies, &[false]);
}
