//! Journeys of VMs through small federations, step by step in virtual time.

use federation_tests::world::World;
use protocol::JourneyResult;

#[test]
fn a_vm_is_placed_through_an_intermediary_that_its_primary_knows() {
    let mut world = World::chain(&["a", "b", "c"]);
    world.host("c", "c1", 4);
    let vm = world.import("a");
    let operation = world.place("a", vm);
    world.until_runs(vm, "c");
    assert_eq!(world.result("a", operation), JourneyResult::Done);
    assert_eq!(world.path("a", vm), ["a", "b", "c"]);
    world.settle();
    assert!(world.runs(vm, "c"));
}
