//! The program `sojourn-testbed`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use testbed::Settings;

use super::bed::{emulator, wait_until};
use super::{MBIT, has_device, is_there, ms};

fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sojourn-testbed"));
    command.args(["link", "--rate", "100Mbit", "--rtt", "2ms"]).args(words);
    command.stdin(Stdio::null());
    command
}

/// Whether links can be made here.
fn can_run() -> bool {
    emulator(Settings::new(100 * MBIT, ms(1))).is_some()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn commands_run_on_their_sides_and_their_exit_codes_are_told() {
    if !can_run() {
        return;
    }
    let shows = |address: &str| format!("ip address show dev link | grep -q 'inet {address}/'");
    let (a, b) = (shows("10.77.0.1"), shows("10.77.0.2"));
    let done = program(&["--a", &a, "--b", &b]).output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("A: exit status: 0"), "{}", said(&done));
    let done = program(&["--a", &b, "--b", &a]).output().unwrap();
    assert_eq!(done.status.code(), Some(1), "{}", said(&done));
    let done = program(&["--b", "true", "--", "sh", "-c", "exit 7"]).output().unwrap();
    assert_eq!(done.status.code(), Some(7), "{}", said(&done));
    assert!(said(&done).contains("A to B: 0 packets of 0 bytes arrived"), "{}", said(&done));
}

#[test]
fn what_still_runs_on_a_side_is_ended_with_the_link() {
    if !can_run() {
        return;
    }
    // A server that nobody ends, and what it has started.
    let server = "sleep 300 & echo $! $$; wait";
    let done = program(&["--a", "true", "--b", server]).output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    let numbers = String::from_utf8(done.stdout).unwrap();
    let numbers: Vec<u32> = numbers.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 2);
    assert!(numbers.into_iter().all(|number| !is_there(number)));
}

#[test]
fn a_killed_program_leaves_no_namespace_no_device_and_no_process() {
    if !can_run() {
        return;
    }
    let mut killed = program(&[]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(killed.stdout.take().unwrap()).lines().take(2);
    let files: Vec<PathBuf> = lines
        .map(|line| {
            let line = line.unwrap();
            let file = line.split_whitespace().nth(1).and_then(|word| word.strip_prefix("--net="));
            file.unwrap_or_else(|| panic!("{line}")).into()
        })
        .collect();
    assert_eq!(files.len(), 2);
    // Held open, the namespaces stay, and it can be seen what of the link is in them.
    let held: Vec<File> = files.iter().map(|file| File::open(file).unwrap()).collect();
    assert!(held.iter().all(has_device));
    killed.kill().unwrap();
    killed.wait().unwrap();
    for (file, space) in files.iter().zip(&held) {
        wait_until("its process goes", || !file.exists());
        wait_until("its device goes", || !has_device(space));
    }
}

#[test]
fn commands_of_a_killed_program_end_with_it() {
    if !can_run() {
        return;
    }
    let mut command = program(&["--", "sh", "-c", "echo $$; exec sleep 300"]);
    let mut killed = command.stdout(Stdio::piped()).spawn().unwrap();
    let line = BufReader::new(killed.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let number: u32 = line.parse().unwrap();
    assert!(is_there(number));
    killed.kill().unwrap();
    killed.wait().unwrap();
    wait_until("its command goes", || !is_there(number));
}

#[test]
fn an_interruption_ends_commands_that_do_not_care_and_is_a_failure() {
    if !can_run() {
        return;
    }
    let mut command = program(&["--a", "trap '' INT; sleep 300 & echo $! $$; wait"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut interrupted = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(interrupted.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let numbers: Vec<u32> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 2);
    // As a terminal does it: to the program, and to all that it has started.
    let group = i32::try_from(interrupted.id()).ok().and_then(Pid::from_raw).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    let done = interrupted.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1), "{}", said(&done));
    assert!(said(&done).contains("interrupted"), "{}", said(&done));
    assert!(numbers.into_iter().all(|number| !is_there(number)));
}

#[test]
fn what_is_wrong_with_the_words_is_said() {
    let wrong = [
        (["--loss", "0.01"], 2, "as in 0.1%"),
        (["--queue", "1M"], 2, "as in 1MiB"),
        (["--jitter", "2ms"], 1, "jitter of 2ms is above the delay of 1ms"),
        (["--queue", "1000B"], 1, "no room for a packet of 1500"),
        (["--mtu", "20"], 1, "an MTU of 20 is below 68"),
    ];
    for (words, code, expected) in wrong {
        let done = program(&words).output().unwrap();
        assert_eq!(done.status.code(), Some(code), "{words:?}: {}", said(&done));
        assert!(said(&done).contains(expected), "{words:?}: {}", said(&done));
    }
}

#[test]
fn without_rights_it_says_which() {
    // A user namespace without a mapping has no rights over anything.
    let mut command = Command::new("unshare");
    command.args(["--user", "--"]).arg(env!("CARGO_BIN_EXE_sojourn-testbed"));
    let done = command.args(["link", "--rate", "1Mbit", "--rtt", "1ms"]).output().unwrap();
    let said = said(&done);
    assert!(said.contains("root"), "{said}");
    assert_eq!(done.status.code(), Some(1), "{said}");
}
