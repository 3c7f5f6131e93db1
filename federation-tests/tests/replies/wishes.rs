//! What users are told who ask for something while a VM moves: for each wish and site, the reply at
//! each of the moments of a move, and where the VM runs an hour later.

use std::fmt::Write;
use std::time::Duration;

use federation_tests::transcript::compare;
use federation_tests::world::{World, descriptor, host, site};
use model::{Monitoring, OperationId, VmId};
use protocol::{Action, Ask, Mode, Reply};

const HOUR: Duration = Duration::from_secs(3600);

/// Milliseconds after the move began at c, by way of b to a; the last when all is over.
const MOMENTS: [u64; 10] = [0, 15, 30, 45, 130, 150, 190, 210, 230, 60_000];

/// The VM of a, at c by way of b, on its way home for so many milliseconds.
fn at_moment(millis: u64) -> (World, VmId) {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("c", "c1", 2);
    let vm = world.import("a");
    world.place("a", vm);
    world.until_runs(vm, "c");
    world.host("a", "a1", 2);
    world.host("b", "b1", 2);
    world.run(HOUR);
    world.bring_home("a", vm);
    world.run(Duration::from_millis(millis));
    (world, vm)
}

fn wishes(world: &World, vm: VmId) -> Vec<(&'static str, Ask)> {
    let state = world.state("a");
    let k0 = state.vms[&vm].chain.k0;
    let move_home = state.open_journey(vm).expect("it is on its way").operation;
    let nobodys = VmId([9; 16]);
    let (operation, within) = (OperationId([8; 16]), HOUR);
    let moves = |vm, peer: Option<&str>, local_only, dry_run| Ask::Move {
        operation,
        vm,
        peers: peer.map(site).into_iter().collect(),
        local_only,
        boot: true,
        mode: Mode::Hibernate,
        dry_run,
    };
    let evict = |vm| Ask::Evict { operation, vm, reason: "maintenance".to_owned(), within };
    let statement = "c burnt down".to_owned();
    let mut wishes = vec![
        ("move it to b", moves(vm, Some("b"), false, false)),
        ("move it to c", moves(vm, Some("c"), false, false)),
        ("move it to nobody", moves(vm, Some("n"), false, false)),
        ("move it here", moves(vm, None, true, false)),
        ("look where it could go", moves(vm, None, false, true)),
        ("move what is not there", moves(nobodys, None, false, false)),
        ("evict it", evict(vm)),
        ("evict what is not there", evict(nobodys)),
        ("adopt what is not there", Ask::Adopt { vm: nobodys, statement }),
        ("reclaim it at b", Ask::Reclaim { vm, at: site("b") }),
        ("reclaim it at c", Ask::Reclaim { vm, at: site("c") }),
        ("reclaim what is not there", Ask::Reclaim { vm: nobodys, at: site("b") }),
        ("unfence", Ask::Unfence { vm: None }),
        ("leave b", Ask::Leave(site("b"))),
        ("cancel nothing", Ask::Cancel(operation)),
        ("cancel the move", Ask::Cancel(move_home)),
        ("monitor it", Ask::Monitor(vm, Monitoring::default())),
        ("monitor what is not there", Ask::Monitor(nobodys, Monitoring::default())),
        ("start what is not there", Ask::Control(nobodys, Action::Start)),
        ("drain c1", Ask::DrainHost(host("c1"), true)),
        ("drain no longer", Ask::DrainHost(host("c1"), false)),
        ("remove a1", Ask::RemoveHost(host("a1"))),
        ("remove c1", Ask::RemoveHost(host("c1"))),
        ("import it again", Ask::Import { descriptor: descriptor(), k0 }),
    ];
    let actions = [
        ("show it", Action::Show),
        ("start it", Action::Start),
        ("stop it", Action::Stop),
        ("pause it", Action::Pause),
        ("resume it", Action::Resume),
        ("hibernate it", Action::Hibernate),
        ("destroy it", Action::Destroy),
    ];
    wishes.extend(actions.map(|(name, action)| (name, Ask::Control(vm, action))));
    wishes
}

#[test]
fn whatever_users_ask_for_while_a_vm_moves_they_are_told() {
    let (world, vm) = at_moment(0);
    let mut text = String::new();
    for (name, wish) in wishes(&world, vm) {
        for at in ["a", "b", "c"] {
            // Only the primary has the VM's key.
            if matches!(wish, Ask::Import { .. }) && at != "a" {
                continue;
            }
            let mut replies: Vec<(Vec<u64>, String)> = Vec::new();
            for millis in MOMENTS {
                let (mut world, vm) = at_moment(millis);
                let reply = match world.ask(at, wish.clone()) {
                    Reply::Answer(answer) => format!("{answer:?}"),
                    reply => format!("{reply:?}"),
                };
                world.run(HOUR);
                let there = world.running_at(vm).join(" and ");
                let line = format!("{reply}; runs at {there:?}");
                match replies.last_mut() {
                    Some((moments, last)) if *last == line => moments.push(millis),
                    _ => replies.push((vec![millis], line)),
                }
            }
            writeln!(text, "{at}, {name}").unwrap();
            for (moments, line) in replies {
                writeln!(text, "  {moments:?} {line}").unwrap();
            }
        }
    }
    compare("replies/wishes", &text);
}
