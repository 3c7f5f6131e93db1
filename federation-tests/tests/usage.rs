//! What a new user gets wrong: each mistake ends with its own exit code and a message that says
//! what happened, why, and what to do next.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use federation_tests::process::{Federation, Outcome, SOON, sojourn};
use hypervisor::SimulatedFault;

/// Exit codes of the command line.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const REFUSED: i32 = 4;
const LATER: i32 = 5;
const CONFLICT: i32 = 6;
const TIMED_OUT: i32 = 124;

/// Runs the program without a site of the harness.
fn program(arguments: &[&str]) -> Outcome {
    let output = Command::new(sojourn()).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

/// Runs the node of a site in the foreground; it is expected to end at once.
fn run_node(folder: &Path) -> Outcome {
    program(&["site", "run", folder.to_str().unwrap()])
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_that_is_no_package_is_refused_with_what_is_expected() {
    let federation = Federation::chain(&["a"]);
    let (folder, a) = (federation.folder(), &federation["a"]);
    a.run(&["vm", "import", "/nowhere/web.ova"])
        .says(FAILED, &["/nowhere/web.ova", "No such file"]);
    let note = folder.join("note.txt");
    fs::write(&note, "hello").unwrap();
    a.run(&["vm", "import", text(&note)]).says(FAILED, &["note.txt", ".ova or .ovf is expected"]);
    let fake = folder.join("fake.ova");
    fs::write(&fake, "hello").unwrap();
    a.run(&["vm", "import", text(&fake)]).says(FAILED, &["fake.ova", "not taken as an OVA"]);
    assert_eq!(a.vms(), Vec::<String>::new());
    assert!(fs::read_dir(a.folder().join("library")).unwrap().next().is_none(), "nothing is left");
}

#[test]
fn a_damaged_package_is_refused_by_the_name_of_the_damaged_file() {
    let federation = Federation::chain(&["a"]);
    let package = federation.package("web", None);
    let mut bytes = fs::read(&package).unwrap();
    let at = bytes.len() - (1 << 19);
    bytes[at] ^= 1;
    fs::write(&package, bytes).unwrap();
    let a = &federation["a"];
    let refused = a.run(&["vm", "import", text(&package)]);
    refused.says(FAILED, &["damaged", "web-disk1.raw", "does not match its digest", "again"]);
    let short = fs::read(&package).unwrap();
    fs::write(&package, &short[..short.len() / 2]).unwrap();
    assert_eq!(a.run(&["vm", "import", text(&package)]).code, FAILED);
    assert!(fs::read_dir(a.folder().join("library")).unwrap().next().is_none(), "nothing is left");
}

#[test]
fn a_vm_that_is_not_there_or_could_be_several_is_said_so() {
    let mut federation = Federation::chain(&["a", "b"]);
    federation.add("c").start();
    federation.join("b", "c");
    let a = &federation["a"];
    a.run(&["vm", "show", "web"]).says(NOT_FOUND, &["there is no VM web", "sojourn vm list"]);
    federation.import("a", "web");
    let package = federation.package("web", None);
    a.run(&["vm", "import", text(&package)]).says(CONFLICT, &["exists already", "--name"]);
    a.done(&["vm", "import", text(&package), "--name", "web-2"]);
    a.run(&["vm", "import", text(&package), "--name", "a b"]).says(USAGE, &["a b"]);

    // Two owners call their VMs the same, and both place them here.
    federation.import("c", "web");
    federation["b"].host("b1", 2);
    a.done(&["vm", "place", "web"]);
    federation["c"].done(&["vm", "place", "web"]);
    let refused = federation["b"].run(&["vm", "stop", "web"]);
    refused.says(USAGE, &["could be any of", "give more of the id"]);
    let vms = federation["b"].done(&["vm", "list"]);
    let id = vms[0]["id"].as_str().unwrap();
    federation["b"].done(&["vm", "stop", &id[..12]]);
}

#[test]
fn a_placement_without_peers_or_capacity_says_what_every_site_said() {
    let federation = Federation::chain(&["a", "b", "c"]);
    federation.import("a", "web");
    let a = &federation["a"];
    let alone = a.run(&["vm", "place", "web", "--local-only"]);
    alone.says(REFUSED, &["no place was found", "no host takes VMs here now"]);
    a.run(&["vm", "place", "web", "--peer", "z"]).says(NOT_FOUND, &["there is no peer z"]);
    // The one that says so is two sites away, behind b.
    let small = ["host", "add", "c1", "--cpus", "1", "--memory", "64M"];
    federation["c"].done(&small);
    let full = a.run(&["vm", "place", "web"]);
    full.says(REFUSED, &["no place was found", "memory"]);
    assert!(!full.err.contains("c1"), "hosts are not named beyond their site: {full:?}");
    let local = a.run(&["vm", "start", "web"]);
    local.says(FAILED, &["it is in the library; place it first"]);
}

#[test]
fn a_site_without_peers_and_hosts_says_so_when_it_places() {
    let federation = Federation::chain(&["a"]);
    federation.import("a", "web");
    let nowhere = federation["a"].run(&["vm", "place", "web"]);
    nowhere.says(REFUSED, &["no place was found", "no host takes VMs here now"]);
}

#[test]
fn a_hypervisor_that_cannot_be_run_is_named_when_a_host_is_added() {
    let mut federation = Federation::new();
    let a = federation.add_real("a");
    a.configure("hypervisor", "binary", "/nowhere/qemu");
    a.start();
    let add = a.run(&["host", "add", "a1", "--cpus", "1", "--memory", "1G"]);
    add.says(FAILED, &["/nowhere/qemu", "apt-get install"]);
    assert_eq!(a.done(&["host", "list"]).as_array().unwrap().len(), 0);
    a.run(&["doctor"]).says(FAILED, &["in the way"]);
}

#[test]
fn a_host_that_makes_no_sense_is_refused() {
    let federation = Federation::chain(&["a"]);
    let a = &federation["a"];
    let add = |name: &str, cpus: &str, memory: &str| {
        a.run(&["host", "add", name, "--cpus", cpus, "--memory", memory])
    };
    add("a1", "0", "1G").says(USAGE, &["at least 1 processor"]);
    add("a1", "1", "lots").says(USAGE, &["such as 512M"]);
    add("library", "1", "1G").says(USAGE, &["taken"]);
    add("A 1", "1", "1G").says(USAGE, &["A 1"]);
    a.run(&["host", "drain", "a1"]).says(NOT_FOUND, &["there is no host a1"]);
    a.run(&["host", "remove", "a1"]).says(NOT_FOUND, &["there is no host a1"]);
}

#[test]
fn a_host_with_a_vm_cannot_be_removed() {
    let federation = Federation::chain(&["a", "b"]);
    federation["b"].host("b1", 1);
    let vm = federation.import("a", "web");
    federation["a"].done(&["vm", "place", "web"]);
    federation.settle(&vm, "b", true, &["a", "b"]);
    let b = &federation["b"];
    b.run(&["host", "remove", "b1"]).says(CONFLICT, &["host b1 still has 1 VMs", "drain it first"]);
    b.run(&["vm", "migrate", "web", "--peer", "a", "--local-only"]).says(USAGE, &["--local-only"]);
}

#[test]
fn a_port_that_is_in_use_and_a_folder_that_has_a_node_are_named() {
    let mut federation = Federation::new();
    let a = federation.add("a");
    let taken = std::net::TcpListener::bind(a.address()).unwrap();
    let in_use = run_node(a.folder());
    in_use.says(FAILED, &[&a.address().to_string(), "peers (TCP)", "another node or program"]);
    drop(taken);
    a.start();
    run_node(a.folder()).says(FAILED, &["another node runs on", "stop it first"]);
    let again = program(&["site", "init", text(a.folder()), "--name", "a"]);
    again.says(CONFLICT, &["holds a site already", "nothing was changed"]);
    assert_eq!(a.run(&["site", "show"]).code, 0, "the first goes on");
}

#[test]
fn a_folder_of_a_newer_release_is_refused_and_left_alone() {
    let federation = Federation::chain(&["a"]);
    let a = &federation["a"];
    a.host("a1", 1);
    a.stop();
    let journal = a.folder().join("journal.db");
    let set = |version: i64| {
        let db = rusqlite::Connection::open(&journal).unwrap();
        let was: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        db.pragma_update(None, "user_version", version).unwrap();
        was
    };
    let known = set(999);
    let refused = run_node(a.folder());
    refused.says(FAILED, &["newer release", "schema 999", "run that release"]);
    set(known);
    a.start();
    assert_eq!(a.done(&["host", "list"])[0]["name"], "a1", "nothing was changed");
}

#[test]
fn a_ticket_is_good_once_in_time_and_elsewhere() {
    let mut federation = Federation::new();
    for name in ["a", "b", "c"] {
        federation.add(name).start();
    }
    let (a, b, c) = (&federation["a"], &federation["b"], &federation["c"]);
    let invite = |valid: &str| {
        a.done(&["peer", "invite", "--valid", valid])["ticket"].as_str().unwrap().to_owned()
    };
    let ticket = invite("1h");
    a.run(&["peer", "join", &ticket]).says(USAGE, &["this very site", "at the other one"]);
    b.run(&["peer", "join", "hello"]).says(USAGE, &["ticket"]);
    let half = &ticket[..ticket.len() / 2];
    b.run(&["peer", "join", half]).says(USAGE, &["ticket"]);
    let mut garbled = ticket.clone().into_bytes();
    let last = garbled.last_mut().unwrap();
    *last = if *last == b'A' { b'B' } else { b'A' };
    let garbled = String::from_utf8(garbled).unwrap();
    b.run(&["peer", "join", &garbled]).says(USAGE, &["ticket"]);
    b.done(&["peer", "join", &ticket]);
    b.done(&["peer", "join", &ticket]);
    c.run(&["peer", "join", &ticket]).says(FAILED, &["ask for a new one"]);

    let short = invite("1s");
    federation.wait_for("it expires", SOON, || {
        let late = c.run(&["peer", "join", &short]);
        // It was not used while it was waited for: joining is tried only once it is too late.
        if late.err.contains("expired") { Ok(()) } else { Err(format!("{late:?}")) }
    });
    a.run(&["peer", "invite", "--valid", "90d"]).says(USAGE, &["90d"]);
    a.run(&["peer", "invite", "--valid", "9000h"]).says(USAGE, &["30 days"]);
    let down = invite("1h");
    a.stop();
    c.run(&["peer", "join", &down]).says(LATER, &["connect"]);
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_with_the_nearest_known_one() {
    let mut federation = Federation::new();
    let a = federation.add("a");
    a.configure("time", "purge", 5);
    run_node(a.folder()).says(FAILED, &["sojourn.toml", "unknown field `purge`", "`purge_s`"]);
}

#[test]
fn a_node_that_does_not_run_and_a_folder_without_a_site_are_told_apart() {
    let mut federation = Federation::new();
    let a = federation.add("a");
    let down = a.run(&["vm", "list"]);
    down.says(LATER, &["no node answers", "sojourn site run"]);
    let empty: PathBuf = federation.folder().join("empty");
    fs::create_dir(&empty).unwrap();
    let nothing = program(&["--site", text(&empty), "vm", "list"]);
    nothing.says(NOT_FOUND, &["holds no site", "sojourn site init"]);
    run_node(&empty).says(FAILED, &["not a site's folder", "sojourn site init"]);
    program(&["--site", "/nowhere", "vm", "list"]).says(NOT_FOUND, &["/nowhere holds no site"]);
    let a = &federation["a"];
    a.start();
    a.kill();
    a.run(&["vm", "list"]).says(LATER, &["no node answers"]);
}

#[test]
fn waiting_for_an_operation_ends_with_the_time_and_the_operation_goes_on() {
    let federation = Federation::chain(&["a", "b"]);
    federation["b"].host("b1", 1);
    federation.import("a", "web");
    let a = &federation["a"];
    federation["b"].freeze();
    let begun = a.done(&["vm", "place", "web", "--detach"]);
    let id = begun["id"].as_str().unwrap();
    let late = a.run(&["op", "wait", id, "--timeout", "1s"]);
    late.says(TIMED_OUT, &["not ended in that time", "goes on"]);
    a.run(&["vm", "place", "web"]).says(CONFLICT, &[id, "is moving this VM already"]);
    a.done(&["op", "cancel", id]);
    a.run(&["op", "cancel", id]).says(CONFLICT, &["has ended"]);
    a.run(&["op", "wait", id]).says(FAILED, &["cancelled"]);
    let unknown = a.run(&["op", "wait", "00000000000000000000000000000000"]);
    unknown.says(NOT_FOUND, &["there is no operation"]);
    a.run(&["op", "show", "seven"]).says(USAGE, &["seven"]);
    federation["b"].thaw();
}

#[test]
fn destroying_is_said_twice() {
    let federation = Federation::chain(&["a"]);
    federation.import("a", "web");
    let a = &federation["a"];
    a.run(&["vm", "destroy", "web"]).says(USAGE, &["for good", "--yes"]);
    assert_eq!(a.vms(), ["web"]);
    a.done(&["vm", "destroy", "web", "--yes"]);
    a.run(&["vm", "destroy", "web", "--yes"]).says(NOT_FOUND, &["there is no VM web"]);
}

#[test]
fn an_export_of_what_runs_or_is_elsewhere_says_what_to_do_first() {
    let federation = Federation::chain(&["a", "b"]);
    federation["b"].host("b1", 1);
    let vm = federation.import("a", "web");
    let target = federation.folder().join("out.ova");
    federation["a"].done(&["vm", "place", "web"]);
    federation.settle(&vm, "b", true, &["a", "b"]);
    let away = federation["a"].run(&["vm", "export", "web", text(&target)]);
    away.says(FAILED, &["does not have the VM's files", "bring it home first"]);
    let runs = federation["b"].run(&["vm", "export", "web", text(&target)]);
    runs.says(FAILED, &["running", "stop it first"]);
    let console = federation["a"].run(&["vm", "console", "web"]);
    console.says(FAILED, &["where it runs"]);
    federation["b"].done(&["vm", "stop", "web"]);
    federation["b"].done(&["vm", "export", "web", text(&target)]);
    federation["a"].done(&["vm", "import", text(&target), "--name", "copy"]);
}

#[test]
fn a_peer_that_has_removed_this_site_is_not_mistaken_for_one_that_is_down() {
    let federation = Federation::chain(&["a", "b"]);
    federation["b"].host("b1", 1);
    federation.import("a", "web");
    federation["b"].done(&["peer", "remove", "a"]);
    let refused = federation["a"].run(&["vm", "place", "web"]);
    refused.says(REFUSED, &["no place was found", "a site does not answer"]);
    let shown = federation["a"].done(&["peer", "show", "b"]);
    assert!(shown["trouble"].to_string().contains("hangs up when it sees who calls"), "{shown}");
}

#[test]
fn a_guest_whose_hypervisor_refuses_to_let_it_run_is_told_again_until_it_runs() {
    let federation = Federation::chain(&["a"]);
    let a = &federation["a"];
    a.host("one", 1);
    let vm = federation.import("a", "web");
    let faults = a.faults("one");
    faults.set(SimulatedFault::Resume, "busy").unwrap();
    a.done(&["vm", "place", "web"]);
    federation.wait_for("it stands still", SOON, || {
        let guests = federation.guests(&vm);
        let said = a.log_text().contains("busy");
        if said && guests.len() == 1 && !guests[0].runs {
            Ok(())
        } else {
            Err(format!("{guests:?}"))
        }
    });
    faults.clear(SimulatedFault::Resume).unwrap();
    federation.settle(&vm, "a", true, &["a"]);
}
