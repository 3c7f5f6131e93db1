//! Lives of a VM at simulated sites, whose nodes are killed at their journal rows.
//!
//! A life is a scenario in steps; each step is tried, and tried again, until what it is for has
//! come true, while nodes that were killed are started again. In one run every site is killed
//! once, each at a row of its own. Afterwards the VM has one guest, whose memory is the one that
//! it was placed with, and nothing else is left of it anywhere.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hypervisor::SimulatedFault;
use protocol::Row;

use crate::process::{Federation, SOON};

/// How long a step's command may go without its effect before it is said again.
const PATIENCE: Duration = Duration::from_secs(2);

/// A life of a VM in which rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Placed from a through b at c, monitored anew, moved to another host of c, forced out to b,
    /// home to a.
    Journey,
    /// Handed back by c, then placed; an eviction that c cannot begin; parked at c; moved; destroyed.
    Troubles,
    /// Placed on a host of its own primary, hibernated, started, stopped.
    Alone,
    /// Reclaimed past an Intermediary that is gone, adopted from a site that was lost, held when a
    /// journal is older than a peer remembers.
    Rescue,
    /// Fetched by c, whose Source is gone for longer than that is kept; placed when it is back.
    Forsaken,
}

/// Where each kind of row is written first by each site of a life.
pub const ROWS: [(&str, &[(Life, &str)]); 40] = {
    use Life::{Alone as L, Forsaken as F, Journey as J, Rescue as R, Troubles as T};
    [
        ("host_added", &[(J, "a"), (J, "b"), (J, "c")]),
        ("host_draining", &[(J, "c")]),
        ("host_removed", &[(J, "c")]),
        ("imported", &[(J, "a")]),
        ("began", &[(J, "a"), (J, "b"), (J, "c")]),
        ("chosen", &[(J, "a"), (J, "b"), (J, "c")]),
        ("concluded", &[(J, "a"), (J, "b"), (J, "c")]),
        ("offered", &[(J, "a"), (J, "b"), (J, "c")]),
        ("initiated", &[(J, "a"), (J, "b"), (J, "c")]),
        ("quiesced", &[(J, "a"), (J, "b"), (J, "c")]),
        ("sent", &[(J, "a"), (J, "b"), (J, "c")]),
        ("released", &[(J, "a"), (J, "b"), (J, "c")]),
        ("aborted", &[(T, "c")]),
        ("returned", &[(T, "a")]),
        ("receipted", &[(J, "a"), (J, "b"), (J, "c")]),
        ("tombstone", &[(J, "a"), (J, "b"), (J, "c")]),
        ("admitted", &[(J, "a"), (J, "b"), (J, "c")]),
        ("receiving", &[(J, "a"), (J, "b"), (J, "c")]),
        ("ready", &[(J, "a"), (J, "b"), (J, "c")]),
        ("lapsed", &[(F, "c")]),
        ("owned", &[(J, "a"), (J, "b"), (J, "c"), (L, "a")]),
        ("handed_back", &[(T, "c")]),
        ("dropped", &[(T, "a"), (T, "b")]),
        ("start_intent", &[(J, "a"), (J, "b"), (J, "c"), (L, "a")]),
        ("started", &[(J, "a"), (J, "b"), (J, "c"), (L, "a")]),
        ("stopped", &[(J, "b"), (J, "c"), (L, "a")]),
        ("parked", &[(T, "c")]),
        ("pending", &[(J, "b")]),
        ("relaying", &[(J, "b")]),
        ("flipped", &[(J, "a"), (J, "b")]),
        ("retired", &[(J, "a"), (J, "b"), (J, "c")]),
        ("learned", &[(J, "a"), (J, "b")]),
        ("monitored", &[(J, "a"), (J, "b"), (J, "c")]),
        ("destroyed", &[(T, "a"), (T, "b")]),
        ("adopted", &[(R, "a")]),
        ("superseded", &[(R, "c")]),
        ("reclaimed", &[(R, "c")]),
        ("rerouted", &[(R, "a")]),
        ("fenced", &[(R, "a")]),
        ("unfenced", &[(R, "a")]),
    ]
};

/// One life, with one row for each site at which it is killed.
#[derive(Debug, Clone)]
pub struct Run {
    /// The life.
    pub life: Life,
    /// At most one for each site.
    pub kills: Vec<Kill>,
}

/// Where a node is killed.
#[derive(Debug, Clone)]
pub struct Kill {
    /// The site.
    pub site: &'static str,
    /// `before:KIND`, `after:KIND` or `replied:KIND`, as `SOJOURN_KILL` wants it.
    pub at: String,
}

/// The kills of the table that are `wanted`, at each of these points of a row (`before`, ...),
/// those of one life side by side.
pub fn runs(points: &[&str], wanted: impl Fn(&str, &str) -> bool) -> Vec<Run> {
    let mut runs = Vec::new();
    for life in [Life::Journey, Life::Troubles, Life::Alone, Life::Rescue, Life::Forsaken] {
        let mut left: Vec<(&'static str, Vec<String>)> = ["a", "b", "c"]
            .into_iter()
            .map(|site| {
                let here = |(kind, at): &&(&str, &[(Life, &str)])| {
                    at.contains(&(life, site)) && wanted(site, kind)
                };
                let kinds = ROWS.iter().filter(here).map(|(kind, _)| kind);
                let all = |kind| points.iter().map(move |point| format!("{point}:{kind}"));
                (site, kinds.flat_map(all).collect())
            })
            .collect();
        loop {
            // The lists have different lengths, so that the sites' rows do not go together.
            let kills: Vec<Kill> = left
                .iter_mut()
                .filter_map(|(site, kills)| Some(Kill { site, at: kills.pop()? }))
                .collect();
            if kills.is_empty() {
                break;
            }
            runs.push(Run { life, kills });
        }
    }
    runs
}

/// A federation whose nodes are killed, and the VM that lives in it.
struct Story<'a> {
    federation: &'a Federation,
    vm: String,
    /// The file that each kill leaves.
    marks: Vec<(Kill, PathBuf)>,
    /// What the guest's memory holds since it was placed.
    boot: Option<String>,
    /// The deaths of nodes since the step that goes on began, and how long others lasted.
    deaths: Mutex<Vec<(String, Instant)>>,
    recoveries: Mutex<Vec<(String, Duration)>>,
}

impl Run {
    /// The sites that it is lived at.
    pub fn federation(&self) -> Federation {
        let names: &[&str] = if self.life == Life::Alone { &["a"] } else { &["a", "b", "c"] };
        let federation = Federation::chain(names);
        if self.kills.iter().any(|kill| kill.at.ends_with(":relaying")) {
            let b = &federation["b"];
            b.stop();
            let rule = "package sojourn.transfer\n\nimport rego.v1\n\nmode := \"relayed\"\n";
            std::fs::write(b.folder().join("policies/transfer.rego"), rule)
                .expect("the folder can be written");
            b.start();
        }
        federation
    }
}

/// Lives it, and returns how long after each kill that was noticed what the life was about came true.
/// Panics where anything was lost or is left.
pub fn live(run: &Run, federation: &Federation) -> Vec<(Kill, Duration)> {
    // The row is written where bytes are seen to arrive, which a small disk's never are.
    let slow = run.kills.iter().any(|kill| kill.at.ends_with(":receiving"));
    let disk = federation.folder().join("large.raw");
    if slow {
        let noise = (0_u64..(48 << 20) / 8)
            .flat_map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        std::fs::write(&disk, noise.collect::<Vec<u8>>()).expect("the folder can be written");
    }
    federation.package("web", slow.then_some(disk.as_path()));
    let mark = |kill: &Kill| federation.folder().join(format!("killed-{}", kill.site));
    let marks: Vec<(Kill, PathBuf)> =
        run.kills.iter().map(|kill| (kill.clone(), mark(kill))).collect();
    let mut story = Story {
        federation,
        vm: String::new(),
        marks,
        boot: None,
        deaths: Mutex::default(),
        recoveries: Mutex::default(),
    };
    if run.life == Life::Rescue {
        // The frozen copy must be there when the site that has the VM is lost.
        story.federation["a"].configure("time", "purge_s", 600);
    }
    if run.life == Life::Forsaken {
        story.federation["c"].configure("time", "migration_s", 10);
        story.federation["c"].configure("time", "ready_s", 0);
    }
    for kill in &run.kills {
        story.federation[kill.site].stop();
        story.start(kill.site);
    }
    match run.life {
        Life::Rescue => rescue(&mut story),
        Life::Forsaken => forsaken(&mut story),
        Life::Journey => journey(&mut story),
        Life::Troubles => troubles(&mut story),
        Life::Alone => alone(&mut story),
    }
    for (kill, mark) in &story.marks {
        assert!(mark.exists(), "{} never wrote the row of {:?}", kill.site, kill.at);
    }
    assert_all_rows_have_kills(federation, &[]);
    let recoveries = story.recoveries.into_inner().expect("no thread panicked with it");
    let took = |kill: &Kill| {
        let of_site = recoveries.iter().find(|(site, _)| site == kill.site);
        Some((kill.clone(), of_site?.1))
    };
    run.kills.iter().filter_map(took).collect()
}

/// Rows that a kill at another may bring about.
const OF_TROUBLE: [&str; 5] = ["aborted", "returned", "lapsed", "handed_back", "dropped"];

/// No site writes a row at which it is killed in no life, be it of the table or of `more`.
pub fn assert_all_rows_have_kills(federation: &Federation, more: &[(&str, &[&str])]) {
    for site in federation.sites() {
        for row in site.rows() {
            let kind = row.kind();
            if OF_TROUBLE.contains(&kind) {
                continue;
            }
            let lives = ROWS.iter().filter(|(of, _)| *of == kind).flat_map(|(_, lives)| *lives);
            let is_named = lives.into_iter().any(|(_, at)| *at == site.name())
                || more.iter().any(|(at, kinds)| *at == site.name() && kinds.contains(&kind));
            assert!(is_named, "{} writes {kind} and is never killed at it", site.name());
        }
    }
}

impl Story<'_> {
    /// Starts a node, to be killed at its row if it was not yet.
    fn start(&self, site: &str) {
        let due = self.marks.iter().find(|(kill, mark)| kill.site == site && !mark.exists());
        match due {
            Some((kill, mark)) => self.federation[site].start_with(&[
                ("SOJOURN_KILL", &kill.at),
                ("SOJOURN_KILL_ONCE", mark.to_str().expect("a short name")),
            ]),
            None => self.federation[site].start(),
        }
    }

    /// Says something until it has come true, and starts nodes that died meanwhile.
    fn insist(&self, what: &str, say: impl Fn(&Federation), so: impl Fn(&Federation) -> bool) {
        let mut said: Option<Instant> = None;
        self.federation.wait_for(what, SOON, || {
            self.revive();
            if !self.vm.is_empty() {
                self.federation.assert_one_runs(&self.vm);
            }
            if so(self.federation) {
                self.recovered();
                return Ok(());
            }
            if said.is_none_or(|said| said.elapsed() > PATIENCE) {
                say(self.federation);
                said = Some(Instant::now());
            }
            Err("it has not come true".to_owned())
        });
    }

    /// Starts nodes that died, and notes when.
    fn revive(&self) {
        let died = self.federation.revive().into_iter();
        let died = died.map(|site| (site.to_owned(), Instant::now()));
        self.deaths.lock().expect("no thread panicked with it").extend(died);
    }

    /// What was wanted is so: nodes that died on the way have not prevented it.
    fn recovered(&self) {
        let mut deaths = self.deaths.lock().expect("no thread panicked with it");
        let took = deaths.drain(..).map(|(site, at)| (site, at.elapsed()));
        self.recoveries.lock().expect("no thread panicked with it").extend(took);
    }

    /// Says a command at a site. How it ends is no matter: what it is for is looked at.
    fn insist_on(&self, site: &str, command: &[&str], so: impl Fn(&Federation) -> bool) {
        let say = |federation: &Federation| {
            federation[site].run(command);
        };
        self.insist(&format!("{command:?} at {site}"), say, so);
    }

    fn host(&self, site: &str, host: &str) {
        let command = ["host", "add", host, "--cpus", "1", "--memory", "128M"];
        self.insist_on(site, &command, |federation| {
            let hosts = federation[site].state().hosts;
            hosts.contains_key(&host.parse().expect("a legal name"))
                && federation[site].run(&["host", "list"]).code == 0
        });
    }

    fn import(&mut self, site: &str) {
        let package = self.federation.folder().join("web.ova").display().to_string();
        let known = |federation: &Federation| federation[site].state().vms.into_keys().next();
        self.insist_on(site, &["vm", "import", &package], |all| known(all).is_some());
        self.vm = known(self.federation).expect("it was imported").to_string();
    }

    /// Whether a guest executes at a host, and nowhere else. From the first time on it must be the
    /// same one.
    fn runs(&self, site: &str, host: &str) -> impl Fn(&Federation) -> bool {
        let (vm, site, host) = (self.vm.clone(), site.to_owned(), host.to_owned());
        move |federation| federation.runs_at(&vm, &site).is_some_and(|guest| guest.host() == host)
    }

    /// Checks that the VM is at this site and nothing of it elsewhere.
    fn settle(&mut self, site: &str, path: &[&str]) {
        self.insist(
            "no node is down",
            |_| {},
            |federation| {
                federation.sites().iter().all(|site| site.run(&["site", "show"]).code == 0)
            },
        );
        self.settle_reviving(|federation, vm| federation.settle(vm, site, true, path));
        let boot = self.federation.runs_at(&self.vm, site).expect("it was settled").boot;
        let before = self.boot.get_or_insert(boot.clone());
        assert_eq!(*before, boot, "its memory was lost\n{}", self.federation.story());
    }

    /// Nodes may die while things settle, at rows that come late.
    fn settle_reviving(&self, settle: impl FnOnce(&Federation, &str)) {
        let done = AtomicBool::new(false);
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    self.revive();
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let _end = End(&done);
            settle(self.federation, &self.vm);
        });
        self.recovered();
    }
}

/// What is to be monitored from then on.
const SECTION: &str = "<sj:MonitoringSection xmlns:sj='https://sojourn.example/ovf/1'>\
    <sj:Monitor measure='cpu_time'/></sj:MonitoringSection>";

fn journey(story: &mut Story<'_>) {
    story.host("c", "c1");
    story.import("a");
    story.insist_on("a", &["vm", "place", "web", "--detach"], story.runs("c", "c1"));
    story.settle("c", &["a", "b", "c"]);

    let section = story.federation.folder().join("section.xml");
    std::fs::write(&section, SECTION).expect("the folder can be written");
    let set = ["vm", "set", "web", "--monitoring", section.to_str().expect("a short name")];
    story.insist_on("a", &set, |federation| {
        let revision = |site: &str| {
            let vm = federation[site].state().vms.into_values().next();
            vm.map(|vm| vm.descriptor.monitoring.revision)
        };
        // The package's own was the first.
        revision("a") > Some(1) && revision("a") == revision("c")
    });

    story.host("c", "c2");
    story.insist_on("c", &["host", "drain", "c1", "--detach"], story.runs("c", "c2"));
    story.settle("c", &["a", "b", "c"]);
    let gone = |federation: &Federation| federation["c"].state().hosts.len() == 1;
    story.insist_on("c", &["host", "remove", "c1"], gone);

    story.host("b", "b1");
    let evict = ["vm", "evict", "web", "--reason", "closing", "--detach"];
    story.insist_on("c", &evict, story.runs("b", "b1"));
    story.settle("b", &["a", "b"]);

    story.host("a", "a1");
    let home = ["vm", "migrate", "web", "--local-only", "--detach"];
    story.insist_on("a", &home, story.runs("a", "a1"));
    story.settle("a", &["a"]);
}

fn troubles(story: &mut Story<'_>) {
    story.host("c", "c1");
    story.import("a");
    let faults = story.federation["c"].faults("c1");
    faults.set(SimulatedFault::Launch, "no luck").expect("the folder can be written");
    let returned = |federation: &Federation| wrote(federation, "a", "returned");
    story.insist_on("a", &["vm", "place", "web", "--detach"], returned);
    story.settle_reviving(|federation, vm| federation.settle(vm, "a", false, &["a"]));
    faults.clear(SimulatedFault::Launch).expect("the folder can be written");
    story.insist_on("a", &["vm", "place", "web", "--detach"], story.runs("c", "c1"));
    story.settle("c", &["a", "b", "c"]);

    // c wants it gone and b takes it, but its run state cannot be saved.
    faults.set(SimulatedFault::Hibernate, "no space").expect("the folder can be written");
    story.host("b", "b1");
    let evict = ["vm", "evict", "web", "--reason", "closing", "--deadline", "4s", "--detach"];
    let dropped = |federation: &Federation| {
        wrote(federation, "c", "aborted") && wrote(federation, "b", "dropped")
    };
    story.insist_on("c", &evict, dropped);
    // It goes on where it is, whatever it is called, until the time is up and it is parked.
    story.insist_on("c", &evict, |federation| {
        let state = federation["c"].state();
        state.vms.values().any(|vm| vm.parked.is_some())
    });
    faults.clear(SimulatedFault::Hibernate).expect("the folder can be written");
    let home = ["vm", "migrate", "web", "--peer", "b", "--detach"];
    story.insist_on("a", &home, story.runs("b", "b1"));
    story.settle("b", &["a", "b"]);

    let gone = |federation: &Federation| wrote(federation, "a", "destroyed");
    story.insist_on("a", &["vm", "destroy", "web", "--yes"], gone);
    story.settle_reviving(|federation, vm| federation.settle_destroyed(vm));
}

fn alone(story: &mut Story<'_>) {
    story.host("a", "a1");
    story.import("a");
    story.insist_on("a", &["vm", "place", "web", "--detach"], story.runs("a", "a1"));
    story.settle("a", &["a"]);
    let hibernated = |federation: &Federation| shows(federation, "hibernated");
    story.insist_on("a", &["vm", "hibernate", "web"], hibernated);
    story.insist_on("a", &["vm", "start", "web"], story.runs("a", "a1"));
    story.settle("a", &["a"]);
    story.insist_on("a", &["vm", "stop", "web"], |federation| shows(federation, "stopped"));
    story.settle_reviving(|federation, vm| federation.settle(vm, "a", false, &["a"]));
}

fn rescue(story: &mut Story<'_>) {
    story.host("c", "c1");
    story.import("a");
    story.insist_on("a", &["vm", "place", "web", "--detach"], story.runs("c", "c1"));

    // The Intermediary is gone for good: the primary joins the hosting site itself.
    story.insist(
        "the journeys end",
        |_| {},
        |federation| {
            ["a", "b", "c"].iter().all(|site| {
                federation[site].state().journeys.values().all(|journey| journey.result.is_some())
            })
        },
    );
    story.federation["b"].kill();
    let join = |federation: &Federation| {
        let invited = federation["a"].run(&["peer", "invite"]);
        if invited.code == 0 {
            let ticket = invited.json()["ticket"].as_str().expect("it has a ticket").to_owned();
            federation["c"].run(&["peer", "join", &ticket]);
        }
    };
    story.insist("a and c are peers", join, |federation| {
        let peers = federation["c"].run(&["peer", "show", "a"]);
        peers.code == 0 && federation["a"].run(&["peer", "show", "c"]).code == 0
    });
    story.insist_on("a", &["vm", "reclaim", "web", "--at", "c"], |federation| {
        wrote(federation, "a", "rerouted") && wrote(federation, "c", "reclaimed")
    });
    story.insist("the primary reaches it", |_| {}, |all| shows(all, "running"));

    // The hosting site is lost as well; when it turns up again, it learns that it was given up.
    if story.federation["c"].run(&["site", "show"]).code == 0 {
        story.federation["c"].kill();
    }
    let adopt = ["vm", "adopt", "web", "--statement", "c burnt down, says the operator"];
    story.insist_on("a", &adopt, |federation| wrote(federation, "a", "adopted"));
    story.start("c");
    story.insist(
        "c ends its guest",
        |_| {},
        |federation| {
            wrote(federation, "c", "superseded") && federation.guests(&story.vm).is_empty()
        },
    );
    story.host("a", "a1");
    let local = ["vm", "place", "web", "--local-only", "--detach"];
    story.insist_on("a", &local, story.runs("a", "a1"));

    // An old copy of the journal is put back: the peers remember more.
    story.insist("a's node runs", |_| {}, |all| all["a"].run(&["site", "show"]).code == 0);
    story.federation["a"].stop();
    let journal = story.federation["a"].folder().join("journal.db");
    let old = std::fs::read(&journal).expect("the journal is there");
    story.start("a");
    for host in ["x1", "x2", "x3"] {
        story.host("a", host);
    }
    let ask = |federation: &Federation| {
        federation["a"].run(&["vm", "migrate", "web", "--peer", "c", "--dry-run"]);
    };
    ask(story.federation);
    story.insist("a's node runs", |_| {}, |all| all["a"].run(&["site", "show"]).code == 0);
    story.federation["a"].stop();
    std::fs::write(&journal, old).expect("the folder can be written");
    story.start("a");
    let unfence = |federation: &Federation| {
        ask(federation);
        federation["a"].run(&["site", "unfence", "--yes"]);
    };
    story.insist("it is let run again", unfence, |all| wrote(all, "a", "unfenced"));
    story.insist_on("a", &["vm", "start", "web"], story.runs("a", "a1"));
}

fn forsaken(story: &mut Story<'_>) {
    story.host("c", "c1");
    story.import("a");
    // The Source dies with all that was read, before it has decided.
    let (a, dead) = (&story.federation["a"], story.federation.folder().join("dead-a"));
    let dead_path = dead.to_str().expect("a short name");
    a.stop();
    a.start_with(&[("SOJOURN_KILL", "before:released"), ("SOJOURN_KILL_ONCE", dead_path)]);
    let place = ["vm", "place", "web", "--detach"];
    a.run(&place);
    story.federation.wait_for("a dies before it releases the VM", SOON, || {
        dead.exists().then_some(()).ok_or_else(|| "it has not come so far".to_owned())
    });
    a.kill();
    story.insist("c keeps it no longer", |_| {}, |all| wrote(all, "c", "lapsed"));
    story.start("a");
    story.insist_on("a", &place, story.runs("c", "c1"));
    story.settle("c", &["a", "b", "c"]);
}

fn shows(federation: &Federation, state: &str) -> bool {
    let shown = federation["a"].run(&["vm", "show", "web"]);
    shown.code == 0 && shown.json()["state"] == state
}

fn wrote(federation: &Federation, site: &str, kind: &str) -> bool {
    let kinds: BTreeSet<&str> = federation[site].rows().iter().map(Row::kind).collect();
    kinds.contains(kind)
}
