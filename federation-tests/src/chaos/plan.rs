//! Every fault there is.

use std::time::Duration;

use super::{Blow, Fault, Moment, What};
use crate::lives;
use crate::process::{Cut, Traffic, Way};

/// The points of a row at which a node is killed.
const POINTS: [&str; 3] = ["before", "after", "replied"];

/// How long cuts last: less and more than QUIC takes to give up a silent connection.
const CUTS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(20)];

/// The kinds of row that each site writes in the life of the real guest.
pub(super) const ROWS: [(&str, &[&str]); 3] = [
    (
        "a",
        &[
            "host_added",
            "imported",
            "began",
            "chosen",
            "concluded",
            "offered",
            "initiated",
            "quiesced",
            "sent",
            "released",
            "receipted",
            "tombstone",
            "admitted",
            "receiving",
            "ready",
            "owned",
            "start_intent",
            "started",
            "stopped",
            "flipped",
            "retired",
            "destroyed",
        ],
    ),
    ("b", &["pending", "flipped", "retired"]),
    (
        "c",
        &[
            "host_added",
            "admitted",
            "receiving",
            "ready",
            "owned",
            "start_intent",
            "started",
            "offered",
            "initiated",
            "quiesced",
            "stopped",
            "sent",
            "released",
            "receipted",
            "tombstone",
            "retired",
        ],
    ),
];

/// Moments at which the network is cut: before the transfer, in the middle of it, when it is sent,
/// and when the VM is between two owners; of the way out and of the way home.
const CUT_MOMENTS: [(&str, &str); 8] = [
    ("a", "after:began"),
    ("c", "after:receiving"),
    ("c", "before:ready"),
    ("a", "after:released"),
    ("c", "before:offered"),
    ("a", "after:receiving"),
    ("c", "after:sent"),
    ("c", "after:released"),
];

/// Moments at which the proxy of the other end is killed; a site's own is at each of its rows.
const PROXY_MOMENTS: [(&str, &str, &str); 8] = [
    ("c", "after:admitted", "a"),
    ("c", "after:receiving", "a"),
    ("c", "before:ready", "a"),
    ("a", "after:sent", "c"),
    ("a", "after:released", "c"),
    ("a", "after:receiving", "c"),
    ("c", "after:sent", "a"),
    ("c", "after:released", "a"),
];

/// The rows at which a site's guest has a process: it waits for the permission to run, runs, is to
/// be saved, is being saved.
const GUEST_ROWS: [(&str, &[&str]); 2] = [
    ("a", &["owned", "start_intent", "started"]),
    ("c", &["owned", "start_intent", "started", "offered", "initiated"]),
];

/// Moments at which QEMU is held.
const GUEST_MOMENTS: [(&str, &str); 8] = [
    ("c", "replied:started"),
    ("c", "before:offered"),
    ("c", "before:initiated"),
    ("c", "replied:initiated"),
    ("a", "before:owned"),
    ("a", "after:owned"),
    ("a", "replied:owned"),
    ("a", "replied:started"),
];

/// Moments at which a node is held.
const HOLD_MOMENTS: [(&str, &str); 12] = [
    ("a", "after:began"),
    ("a", "after:initiated"),
    ("a", "after:released"),
    ("a", "before:ready"),
    ("a", "before:owned"),
    ("b", "after:pending"),
    ("b", "before:flipped"),
    ("c", "after:admitted"),
    ("c", "before:ready"),
    ("c", "after:owned"),
    ("c", "replied:initiated"),
    ("c", "after:released"),
];

/// Every fault, those of a minute first, so that the end of a whole run does not wait for them.
/// What is held is held for `hold`.
pub fn all(hold: Duration) -> Vec<Fault> {
    let mut faults = holds(hold);
    faults.extend(cuts());
    faults.extend(proxies());
    faults.extend(at_rows(&GUEST_ROWS, |site, at, _| {
        real("QEMU killed", site, at, Blow::KillGuest(site))
    }));
    faults.extend(at_rows(&ROWS, |site, at, point| {
        real(node_killed(point), site, at, Blow::KillNode)
    }));
    let only_simulated = |site: &str, kind: &str| {
        !ROWS.iter().any(|(real, kinds)| *real == site && kinds.contains(&kind))
    };
    faults.extend(lives::runs(&POINTS, only_simulated).into_iter().map(simulated));
    faults
}

/// One at each point of each of these rows.
fn at_rows(
    rows: &[(&'static str, &[&str])],
    make: impl Fn(&'static str, &str, &str) -> Fault,
) -> Vec<Fault> {
    let mut faults = vec![];
    for (site, kinds) in rows {
        for kind in *kinds {
            for point in POINTS {
                faults.push(make(site, &format!("{point}:{kind}"), point));
            }
        }
    }
    faults
}

fn node_killed(point: &str) -> &'static str {
    match point {
        "before" => "node killed before a row",
        "after" => "node killed after a row",
        _ => "node killed after the replies to a row",
    }
}

fn simulated(run: lives::Run) -> Fault {
    let kills = run.kills.iter().map(|kill| format!("{}-{}", kill.site, dashed(&kill.at)));
    let name = format!("simulated-{:?}-{}", run.life, kills.collect::<Vec<_>>().join("+"));
    Fault {
        name: name.to_lowercase(),
        kind: "node killed at rows of simulated lives",
        what: What::Simulated(run),
    }
}

fn real(kind: &'static str, site: &'static str, at: &str, blow: Blow) -> Fault {
    let what = match blow {
        Blow::KillNode => "kill-node".to_owned(),
        Blow::HoldNode(_) => "hold-node".to_owned(),
        Blow::KillProxy(of) => format!("kill-proxy-{of}"),
        Blow::HoldProxy(of, _) => format!("hold-proxy-{of}"),
        Blow::KillGuest(of) => format!("kill-qemu-{of}"),
        Blow::HoldGuest(of, _) => format!("hold-qemu-{of}"),
        Blow::Cut(Cut { site, way, traffic }, _) => {
            format!("cut-{site}-{way:?}-{traffic:?}").to_lowercase()
        }
    };
    let name = format!("{what}-at-{site}-{}", dashed(at));
    Fault { name, kind, what: What::Real(Moment { site, at: at.to_owned() }, blow) }
}

fn dashed(at: &str) -> String {
    at.replace([':', '_'], "-")
}

fn holds(hold: Duration) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (site, at) in HOLD_MOMENTS {
        faults.push(real("node held", site, at, Blow::HoldNode(hold)));
    }
    for (site, at) in GUEST_MOMENTS {
        faults.push(real("QEMU held", site, at, Blow::HoldGuest(site, hold)));
    }
    for (site, at) in [("c", "after:receiving"), ("c", "after:sent")] {
        for of in ["a", "c"] {
            faults.push(real("proxy held", site, at, Blow::HoldProxy(of, hold)));
        }
    }
    faults
}

fn proxies() -> Vec<Fault> {
    let [a, _, c] = ROWS;
    let mut faults =
        at_rows(&[a, c], |site, at, _| real("proxy killed", site, at, Blow::KillProxy(site)));
    let others = PROXY_MOMENTS.into_iter();
    faults.extend(others.map(|(site, at, of)| real("proxy killed", site, at, Blow::KillProxy(of))));
    faults
}

fn cuts() -> Vec<Fault> {
    let mut faults = Vec::new();
    for (site, at) in CUT_MOMENTS {
        for way in [Way::Both, Way::To, Way::From] {
            let all = ["a", "b", "c"].map(|cut| (cut, Traffic::All));
            let parts = [("c", Traffic::Control), ("c", Traffic::Data)];
            for (cut, traffic) in all.into_iter().chain(parts) {
                let time = CUTS[faults.len() % CUTS.len()];
                let kind = match way {
                    Way::Both => "network cut",
                    Way::To | Way::From => "network cut one way",
                };
                let cut = Cut { site: cut, way, traffic };
                faults.push(real(kind, site, at, Blow::Cut(cut, time)));
            }
        }
    }
    faults
}

/// Those of `faults` whose name contains `only`, and of these about as many as `count` says, drawn
/// by `seed` from every kind alike.
pub fn chosen(faults: Vec<Fault>, only: &str, count: usize, seed: u64) -> Vec<Fault> {
    let mut kinds: Vec<(&str, Vec<Fault>)> = Vec::new();
    let mut draw = seed;
    for fault in faults.into_iter().filter(|fault| fault.name.contains(only)) {
        match kinds.iter_mut().find(|(kind, _)| *kind == fault.kind) {
            Some((_, of_kind)) => of_kind.push(fault),
            None => kinds.push((fault.kind, vec![fault])),
        }
    }
    let mut taken = Vec::new();
    let mut faults = 0;
    while faults < count && !kinds.is_empty() {
        for (_, of_kind) in &mut kinds {
            let at = usize::try_from(next(&mut draw) % of_kind.len() as u64);
            let fault = of_kind.swap_remove(at.expect("it is smaller than a length"));
            faults += fault.count();
            taken.push(fault);
        }
        kinds.retain(|(_, of_kind)| !of_kind.is_empty());
    }
    taken.sort_by_key(|fault| std::cmp::Reverse(fault.lasts()));
    taken
}

/// The next number of a sequence (splitmix64, Steele et al. 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_has_every_kind_and_is_the_same_for_the_same_seed() {
        let draw = |seed| {
            let drawn = chosen(all(Duration::ZERO), "", 60, seed);
            drawn.into_iter().map(|fault| (fault.kind, fault.name)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let kinds = |faults: Vec<&'static str>| {
            faults.into_iter().collect::<std::collections::BTreeSet<_>>()
        };
        let drawn = kinds(draw(7).into_iter().map(|(kind, _)| kind).collect());
        let every = kinds(all(Duration::ZERO).into_iter().map(|fault| fault.kind).collect());
        assert_eq!(drawn, every);
    }
}
