//! The table of attacks: what a peer with a sound identity, or anybody else, could try on a site.
//!
//! Each is made on a real node, over its real ports, by sites that the test plays. Each is refused,
//! in the way that the table says; nothing that is durable has changed after it, and no guest; and
//! an honest request right behind it gets its answer.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

mod answers;
mod bytes;
mod forms;
mod handing;
mod leaving;
mod letters;
mod paths;
mod placing;
mod stage;
mod through;

use std::collections::BTreeSet;
use std::sync::Mutex;

use federation_tests::side_by_side;
use stage::{Attack, Stage};

/// Attacks at one point of a story.
struct Section {
    /// What leads there from the section before.
    begin: fn(&mut Stage),
    attacks: &'static [Attack],
    /// What is wrong with an honest request, if it is.
    honest: fn(&Stage) -> Option<String>,
}

const fn section(
    begin: fn(&mut Stage),
    attacks: &'static [Attack],
    honest: fn(&Stage) -> Option<String>,
) -> Section {
    Section { begin, attacks, honest }
}

/// Stories, each on a stage of its own.
const STORIES: [&[Section]; 3] = [
    &[
        section(|_| {}, letters::ATTACKS, Stage::guest_answers),
        section(|_| {}, bytes::REQUESTS, Stage::guest_answers),
        section(|_| {}, paths::ATTACKS, Stage::guest_answers),
        section(|_| {}, placing::ATTACKS, Stage::guest_answers),
        section(|_| {}, through::OFFERS, through::passes_on),
        section(through::initiate, through::DELIVERIES, Stage::guest_answers),
        section(through::deliver, through::PLACED, Stage::guest_answers),
        section(letters::use_ticket, letters::TICKETS, Stage::guest_answers),
    ],
    &[
        section(|_| {}, leaving::RUNNING, Stage::guest_answers),
        section(leaving::offer, leaving::OFFERED, Stage::guest_answers),
        section(leaving::withdraw, leaving::WITHDRAWN, Stage::guest_answers),
        section(leaving::send, leaving::SENT, leaving::guest_waits),
        section(leaving::release, leaving::RELEASED, leaving::stays_released),
        section(leaving::hand_back, leaving::REPEATED, Stage::guest_answers),
        section(leaving::restart, leaving::REPEATED_AFTER_A_RESTART, Stage::guest_answers),
        section(leaving::grow_late, leaving::LATE, Stage::guest_answers),
    ],
    &[
        section(|_| {}, answers::ANSWERS, answers::shows),
        section(|_| {}, bytes::ANSWERS, answers::shows),
        section(|stage| stage.is_tried = true, answers::OFFERS, answers::offers),
        section(|_| {}, answers::PREPARED, answers::offers),
        section(|_| {}, answers::RELEASED, answers::offers),
        section(handing::fetch, handing::ATTACKS, handing::other_answers),
    ],
];

/// Fewest attacks that the table may have.
const FEWEST: usize = 60;

#[test]
fn every_attack_of_the_table_is_refused_and_changes_nothing() {
    let sections = || STORIES.iter().copied().flatten();
    let names: Vec<&str> =
        sections().flat_map(|section| section.attacks).map(|attack| attack.name).collect();
    let distinct: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(distinct.len(), names.len(), "each attack has a name of its own");
    assert!(names.len() >= FEWEST, "{} attacks", names.len());

    let faults = Mutex::new(vec![]);
    side_by_side(&STORIES, STORIES.len(), |story| {
        let mut stage = Stage::set();
        for section in *story {
            (section.begin)(&mut stage);
            let found = section.attacks.iter().filter_map(|attack| fault(&stage, section, attack));
            let found: Vec<String> = found.collect();
            faults.lock().unwrap().extend(found);
        }
    });
    let faults = faults.into_inner().unwrap();
    eprintln!("{} attacks, {} not refused as they must be", names.len(), faults.len());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// What is wrong with how an attack was taken.
fn fault(stage: &Stage, section: &Section, attack: &Attack) -> Option<String> {
    let before = stage.standing();
    let heard = (attack.by)(stage).fault(&attack.refused);
    let changed = before.changed(&stage.standing());
    let honest = (section.honest)(stage).map(|why| format!("an honest request gets {why}"));
    let fault = heard.or(changed).or(honest)?;
    Some(format!("{}: {fault}", attack.name))
}
