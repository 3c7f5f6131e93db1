//! Some of the faults of `cargo xtask chaos`, of each kind: kills before a row, after it and after
//! the replies to it, of nodes, proxies and QEMU; processes that are held; cuts of the network,
//! one-way too. `cargo xtask chaos` does hundreds, and holds for a minute what here is held for
//! seconds.

#![allow(clippy::unwrap_used, reason = "a test says by it what must be so")]

use std::sync::Mutex;
use std::time::Duration;

use federation_tests::chaos::{self, Blow, Fault, What};
use federation_tests::lives;
use federation_tests::process::{Network, guest_disk, missing};
use federation_tests::side_by_side;

/// Lives at once.
const AT_ONCE: usize = 4;
/// How long what is held is held.
const HOLD: Duration = Duration::from_secs(5);

/// One or two of each kind, at the moments that say most.
const FAULTS: [&str; 12] = [
    "kill-node-at-a-before-released",
    "kill-node-at-c-after-released",
    "kill-node-at-a-replied-owned",
    "kill-proxy-a-at-c-after-receiving",
    "kill-proxy-c-at-c-after-sent",
    "kill-qemu-a-at-a-after-owned",
    "kill-qemu-c-at-c-replied-initiated",
    "hold-node-at-c-after-released",
    "hold-qemu-c-at-c-before-offered",
    "cut-c-both-all-at-c-before-ready",
    "cut-c-to-control-at-c-after-released",
    "cut-c-from-data-at-a-after-receiving",
];

#[test]
fn the_plan_has_every_row_of_every_life_at_every_point_and_each_fault_has_its_own_name() {
    let all = chaos::all(HOLD);
    for (kind, lives) in lives::ROWS {
        for point in ["before", "after", "replied"] {
            for (_, site) in lives {
                let at = format!("{point}:{kind}");
                let strikes = |fault: &Fault| match &fault.what {
                    What::Real(moment, blow) => {
                        *blow == Blow::KillNode && moment.site == *site && moment.at == at
                    }
                    What::Simulated(run) => {
                        run.kills.iter().any(|kill| kill.site == *site && kill.at == at)
                    }
                };
                assert!(all.iter().any(strikes), "no kill of {site} {at}");
            }
        }
    }
    let count: usize = all.iter().map(Fault::count).sum();
    assert!(count >= 300, "only {count} faults");
    let mut names: Vec<&str> = all.iter().map(|fault| fault.name.as_str()).collect();
    names.sort_unstable();
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None);
}

#[test]
fn a_real_guest_outlives_kills_holds_and_cuts_of_everything_around_it() {
    if let Err(why) = guest_disk() {
        return missing("qemu", why);
    }
    if let Err(why) = Network::new(&["a"]).map(drop) {
        return missing("netns", &format!("no network of one's own: {why}"));
    }
    let all = chaos::all(HOLD);
    let faults: Vec<&Fault> = FAULTS
        .iter()
        .map(|name| {
            all.iter().find(|fault| fault.name == *name).unwrap_or_else(|| panic!("{name}"))
        })
        .collect();
    let failures = Mutex::new(Vec::new());
    side_by_side(&faults, AT_ONCE, |fault| {
        let ended = chaos::run(fault);
        eprintln!("{:>6.1?} {} {:.1?}", ended.took, fault.name, ended.recoveries);
        let failure = ended.failure.map(|failure| (&fault.name, failure));
        failures.lock().unwrap().extend(failure);
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
}
