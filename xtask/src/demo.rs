//! The demo: three sites with two hosts each, and a real guest that is placed, passed on, forced
//! out, and brought home when too many use it, while its owner follows how many do. It drives the
//! `sojourn` program as a user does.

mod guest;
mod sites;
mod stage;
mod users;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::prepare;
use crate::shell::{cargo, run as run_program};
use guest::Line;
use sites::Sites;
use stage::{NOBODY, Stage};
use users::Follow;

/// Lines that the guest is to say at each place, so that one sees it live there.
const LINES: u64 = 3;
/// How long the guest may take to say them.
const GUEST_LIMIT: Duration = Duration::from_secs(60);

/// One row of the table at the end.
struct Move {
    what: &'static str,
    controller: &'static str,
    intermediary: &'static str,
    source: &'static str,
    destination: &'static str,
    moved: String,
    took: Duration,
    line: Line,
}

/// `cargo xtask demo`.
pub(crate) fn run(keep: bool) -> Result<()> {
    println!("building, and looking for what the demo needs …");
    prepare::machine()?;
    let image = prepare::guest()?;
    run_program(cargo().args(["build", "--quiet", "-p", "cli"]))?;
    let begun = Instant::now();
    let mut sites = Sites::new(keep)?;
    let told = play(&mut sites, &image);
    if told.is_err() {
        eprintln!("\nthe demo failed; the end of each site's log:");
        sites.print_logs();
    }
    let cleaned = sites.close();
    let moves = told?;
    cleaned?;
    table(&moves);
    println!(
        "The boot id {} stayed the same, so this was one boot of one guest, and its counter (on \
         disk) and\nuptime (in memory) kept step through every move. Nothing was left running. \
         {:.0} s in all.",
        moves[0].line.boot,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

fn play(sites: &mut Sites, image: &std::path::Path) -> Result<Vec<Move>> {
    let stage = Stage::new();
    stage.title(
        "Sojourn: three clouds of different owners, one real guest",
        "alpha ─── beta ─── gamma     alpha and gamma do not know each other, and never will",
    );

    stage.step("Three sites, two hosts each");
    for name in ["alpha", "beta", "gamma"] {
        let fingerprint = sites.make(name, (name == "alpha").then_some(RULE))?;
        stage.say(&format!("{name:<6} is site {fingerprint}, with hosts {name}-1 and {name}-2"));
    }
    stage.say("alpha invites beta, beta invites gamma: a ticket each, good once");
    sites.join("beta", "alpha")?;
    sites.join("gamma", "beta")?;

    stage.step("alpha takes the guest's package into its library");
    let package = sites.pack(image)?;
    let vm = sites.json("alpha", &["vm", "import", &package])?;
    let id = vm["id"].as_str().context("the import gave no id")?.to_owned();
    stage.say(&format!("{package} is VM {id}; alpha is its primary site"));

    let mut moves = Vec::new();
    stage.step("alpha places it; beta has no host free, and passes the request on");
    sites.text("beta", &["host", "drain", "beta-1"])?;
    sites.text("beta", &["host", "drain", "beta-2"])?;
    let place = ["vm", "place", "guest", "--peer", "beta"];
    moves.push(perform(
        sites,
        &stage,
        &id,
        Plan {
            what: "place",
            roles: ["alpha", "beta", "alpha", "gamma"],
            at: "alpha",
            command: &place,
        },
        None,
    )?);
    stage.say("what alpha knows of it: ");
    stage.quote(&sites.text("alpha", &["vm", "list"])?);
    stage.say("a server in the guest writes its users to a file; alpha follows them from here on");
    stage.command("alpha", &["vm", "kpi", "guest", "--follow", "--measure", users::MEASURE]);
    let mut follow = Follow::new(sites, "alpha")?;
    stage.say(&follow.since()?);

    stage
        .step("gamma empties the host it is on: the same algorithm, between two hosts of one site");
    let host = sites.json("gamma", &["vm", "show", "guest"])?["host"].clone();
    let drain = ["host", "drain", host.as_str().context("no host")?];
    let last = moves.last().map(|last| last.line.clone());
    moves.push(perform(
        sites,
        &stage,
        &id,
        Plan {
            what: "drain",
            roles: ["gamma", NOBODY, "gamma", "gamma"],
            at: "gamma",
            command: &drain,
        },
        last.as_ref(),
    )?);
    stage.say(&follow.since()?);

    stage.step("gamma forces it out; beta, its delegator, has room again and must act");
    sites.text("beta", &["host", "drain", "beta-1", "--undo"])?;
    let evict = ["vm", "evict", "guest", "--reason", "planned maintenance"];
    let last = moves.last().map(|last| last.line.clone());
    moves.push(perform(
        sites,
        &stage,
        &id,
        Plan {
            what: "evict",
            roles: ["beta", NOBODY, "gamma", "beta"],
            at: "gamma",
            command: &evict,
        },
        last.as_ref(),
    )?);
    let left = sites.json("gamma", &["vm", "list"])?;
    ensure!(left.as_array().is_some_and(Vec::is_empty), "gamma still lists the VM");
    stage.say("gamma is off the VM's path: it lists no VM any more");
    stage.say(&follow.since()?);

    stage.step("alpha wants it home when its users are too many, or too few");
    let when = follow.soon()?;
    let section = sites.write("section.xml", &users::section(Some(&when)))?;
    let set = ["vm", "set", "guest", "--monitoring", &section];
    let last = moves.last().context("it was moved")?.line.clone();
    moves.push(come_home(
        sites,
        &stage,
        &id,
        &set,
        &when.replace("&gt;", ">").replace("&lt;", "<"),
        &last,
    )?);
    stage.say(&follow.since()?);
    let left = sites.json("beta", &["vm", "list"])?;
    ensure!(left.as_array().is_some_and(Vec::is_empty), "beta still lists the VM");
    stage.say("beta is off the path too");

    stage.say(&format!("{} values came to alpha, over all moves, each once", follow.count()));
    drop(follow);

    stage.step("The end: the guest is stopped by ACPI, and everything is put away");
    sites.text("alpha", &["vm", "stop", "guest"])?;
    let console = sites.text("alpha", &["vm", "console", "guest"])?;
    ensure!(console.contains("powering off"), "the guest did not shut down by itself");
    stage.console(console.lines().last().unwrap_or_default());
    Ok(moves)
}

/// What one move is: its roles (Controller, Intermediary, Source, Destination) and its command.
struct Plan<'a> {
    what: &'static str,
    roles: [&'static str; 4],
    at: &'static str,
    command: &'a [&'a str],
}

fn perform(
    sites: &Sites,
    stage: &Stage,
    id: &str,
    plan: Plan<'_>,
    before: Option<&Line>,
) -> Result<Move> {
    let [controller, intermediary, source, destination] = plan.roles;
    stage.roles(plan.roles);
    stage.command(plan.at, plan.command);
    let begun = Instant::now();
    sites.text(plan.at, plan.command)?;
    let took = begun.elapsed();
    let events = sites.json(destination, &["vm", "events", id])?;
    let mut texts =
        events.as_array().into_iter().flatten().filter_map(|event| event["text"].as_str());
    let arrived = texts.rfind(|text| text.starts_with("all ")).unwrap_or_default();
    let moved = arrived.to_owned();
    stage.say(&format!("{moved}; {:.1} s", took.as_secs_f64()));
    let line = goes_on(sites, stage, destination, before)?;
    Ok(Move {
        what: plan.what,
        controller,
        intermediary,
        source,
        destination,
        moved: short(&moved),
        took,
        line,
    })
}

/// Waits until the guest counts on at a site, with the disk and the memory that it had.
fn goes_on(sites: &Sites, stage: &Stage, at: &str, before: Option<&Line>) -> Result<Line> {
    let counter = before.map_or(0, |before| before.counter) + LINES;
    let line = guest::wait(sites, at, GUEST_LIMIT, counter)?;
    stage.console(&line.text);
    if let Some(before) = before {
        ensure!(line.boot == before.boot, "another boot: the memory did not come along");
        ensure!(line.counter > before.counter, "the counter on the disk went back");
    }
    ensure!(line.is_whole(), "disk and memory are of different moments: {}", line.text);
    Ok(line)
}

/// What alpha's policy `trigger` says when a condition of the VM's monitoring has come true.
const RULE: &str = "package sojourn.trigger\n\nimport rego.v1\n\n\
    move contains \"its users would be served better at home\" if {\n\
    \tinput.measure == \"web.current_users\"\n}\n";

/// How long the condition may take to come true, and the move that follows.
const HOME_LIMIT: Duration = Duration::from_secs(180);

/// A condition comes true, and alpha's policy moves the VM.
fn come_home(
    sites: &Sites,
    stage: &Stage,
    id: &str,
    set: &[&str],
    condition: &str,
    before: &Line,
) -> Result<Move> {
    let roles @ [controller, intermediary, source, destination] =
        ["alpha", NOBODY, "beta", "alpha"];
    stage.command(controller, set);
    sites.text(controller, set)?;
    stage.say(&format!("told by the guest's site when: {} {condition}", users::MEASURE));
    let events = || -> Result<Vec<String>> {
        let events = sites.json(controller, &["vm", "events", id])?;
        let texts = events.as_array().into_iter().flatten();
        Ok(texts.filter_map(|event| event["text"].as_str().map(str::to_owned)).collect())
    };
    let wait = |what: &str| -> Result<String> {
        let until = Instant::now() + HOME_LIMIT;
        loop {
            if let Some(found) = events()?.into_iter().rfind(|text| text.contains(what)) {
                return Ok(found);
            }
            ensure!(Instant::now() < until, "not told within {HOME_LIMIT:?}: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let decided = wait("looks for another place")?;
    let begun = Instant::now();
    stage.roles(roles);
    stage.say(&decided);
    let arrived = wait("this site owns it; epoch")?;
    let took = begun.elapsed();
    let moved = events()?.into_iter().rfind(|text| text.starts_with("all ")).unwrap_or_default();
    stage.say(&format!("{moved}; {arrived}; {:.1} s", took.as_secs_f64()));
    let line = goes_on(sites, stage, destination, Some(before))?;
    let moved = short(&moved);
    Ok(Move { what: "users", controller, intermediary, source, destination, moved, took, line })
}

/// `131.7 MiB, 113.4 MiB` from the Destination's own words.
fn short(moved: &str) -> String {
    let numbers: Vec<&str> = moved.split(' ').filter(|word| word.contains('.')).collect();
    match numbers[..] {
        [size, wire] => format!("{size} / {wire} MiB"),
        _ => moved.to_owned(),
    }
}

fn table(moves: &[Move]) {
    println!();
    println!(
        "{:<7}{:<12}{:<14}{:<8}{:<13}{:<21}{:>6}{:>9}{:>8}",
        "MOVE",
        "CONTROLLER",
        "INTERMEDIARY",
        "SOURCE",
        "DESTINATION",
        "FILES / ON THE WIRE",
        "TIME",
        "COUNTER",
        "UPTIME"
    );
    for one in moves {
        println!(
            "{:<7}{:<12}{:<14}{:<8}{:<13}{:<21}{:>4.1} s{:>9}{:>8}",
            one.what,
            one.controller,
            one.intermediary,
            one.source,
            one.destination,
            one.moved,
            one.took.as_secs_f64(),
            one.line.counter,
            one.line.uptime
        );
    }
    println!();
}
