//! A short life of a real guest, in which one fault strikes.
//!
//! Its VM is imported at `a`, placed through `b` at `c`, where it boots, and comes home to `a` with
//! its memory; there it is stopped, its disk is looked at, and it is destroyed.
//! Three threads: one lives this life and insists on each step, one strikes and starts again what
//! has died, one reads the consoles.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::FileId;
use rustix::process::{Signal, kill_process};

use super::witness::Witness;
use super::{Blow, Failure, Moment, RECOVERY_LIMIT, plan, watched};
use crate::lives;
use crate::process::{Cut, Federation, Network, Traffic, guest_disk, interrupted};

/// The sites, in the order in which they are peers.
const SITES: [&str; 3] = ["a", "b", "c"];
/// How long a step's command may go without its effect before it is said again.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a step may take, not counting the fault.
const STEP_LIMIT: Duration = Duration::from_secs(RECOVERY_LIMIT.as_secs() + 60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(40);
/// Where a disk's first sector says where its second partition begins, in sectors (MBR): the guest
/// counts in the first sector of that.
const SECOND_PARTITION_AT: u64 = 446 + 16 + 8;
/// What a disk is made longer by where arriving bytes must be seen to arrive.
const NOISE: u64 = 48 << 20;

/// Lives it, and returns how long after the fault's end the VM was as it should be.
pub(super) fn live(moment: &Moment, blow: Blow) -> Result<Duration, Failure> {
    let federation = match blow {
        Blow::Cut(..) => match Network::new(&SITES) {
            Ok(network) => Federation::over(network),
            Err(why) => return Err(Failure { why, kept: None }),
        },
        _ => Federation::new(),
    };
    watched(federation, |federation| {
        prepare(federation, moment, blow);
        Trip::new(federation, moment, blow).live()
    })
}

/// Makes the sites and starts them, one of them so that it stops itself at the moment.
fn prepare(federation: &mut Federation, moment: &Moment, blow: Blow) {
    for name in SITES {
        federation.add_real(name).configure("time", "stop_grace_s", 10);
        if matches!(blow, Blow::Cut(Cut { traffic: Traffic::Data, .. }, _)) {
            // Over TCP it would be one port with what nodes say.
            federation[name].configure("transfer", "carrier", "quic");
        }
    }
    if matches!(blow, Blow::KillProxy(_) | Blow::HoldProxy(..)) {
        federation.add_proxy("a");
        federation.add_proxy("c");
    }
    let mark = mark(federation).display().to_string();
    let signal = if blow == Blow::KillNode { "kill" } else { "stop" };
    for site in federation.sites() {
        if site.name() == moment.site {
            site.start_with(&[
                ("SOJOURN_KILL", &moment.at),
                ("SOJOURN_KILL_ONCE", &mark),
                ("SOJOURN_KILL_SIGNAL", signal),
            ]);
        } else {
            site.start();
        }
    }
    federation.join("a", "b");
    federation.join("b", "c");
}

/// The file that says that the moment has come.
fn mark(federation: &Federation) -> PathBuf {
    federation.folder().join("struck")
}

/// How far the fault is.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Awaited,
    Lasting,
    Ended(Instant),
}

struct Trip<'a> {
    federation: &'a Federation,
    moment: &'a Moment,
    blow: Blow,
    vm: Mutex<String>,
    stage: Mutex<Stage>,
    witness: Mutex<Witness>,
    /// When each step ended, and whether it only waited while the guest ran.
    steps: Mutex<Vec<(Instant, bool)>>,
    /// What the other threads found wrong.
    wrong: Mutex<Option<String>>,
    over: AtomicBool,
}

impl<'a> Trip<'a> {
    fn new(federation: &'a Federation, moment: &'a Moment, blow: Blow) -> Self {
        Self {
            federation,
            moment,
            blow,
            vm: Mutex::default(),
            stage: Mutex::new(Stage::Awaited),
            witness: Mutex::default(),
            steps: Mutex::default(),
            wrong: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    fn live(&self) -> Duration {
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            for work in [Self::strike, Self::watch] {
                scope.spawn(move || {
                    let work = || work(self);
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                    if let Err(panic) = done {
                        lock(&self.wrong).get_or_insert(super::words(&*panic));
                    }
                });
            }
            let _over = Over(&self.over);
            self.steps()
        })
    }

    // The life.

    fn steps(&self) -> Duration {
        let federation = self.federation;
        self.host("c", "c1");
        self.host("a", "a1");
        let disk = self.disk();
        let package = federation.package("web", Some(&disk)).display().to_string();
        self.insist("a", &["vm", "import", &package], || {
            let state = federation["a"].state();
            state.vms.keys().next().map(ToString::to_string).ok_or_else(String::new)
        });
        let imported = federation["a"].state().vms.into_keys().next();
        *lock(&self.vm) = imported.expect("it was imported").to_string();

        self.travel("c", &["vm", "place", "web", "--peer", "b", "--detach"]);
        self.settle(|vm| federation.unsettled(vm, "c", true, &SITES));
        self.travel("a", &["vm", "migrate", "web", "--local-only", "--detach"]);
        self.settle(|vm| federation.unsettled(vm, "a", true, &["a"]));

        let vm = lock(&self.vm).clone();
        self.insist("a", &["vm", "stop", "web"], || {
            let guests = federation.guests(&vm);
            let shown = federation["a"].run(&["vm", "show", "web"]);
            let stopped = shown.code == 0 && shown.json()["state"] == "stopped";
            if guests.is_empty() && stopped { Ok(()) } else { Err(format!("{guests:?} {shown:?}")) }
        });
        let on_disk = self.counter_on_disk();
        lock(&self.witness).look(federation, &vm);
        self.insist("a", &["vm", "destroy", "web", "--yes"], || {
            let mut vms = federation["a"].state().vms.into_values();
            if vms.all(|vm| vm.destroyed) { Ok(()) } else { Err("it is there".to_owned()) }
        });
        self.settle(|vm| federation.left_of(vm).or_else(|| self.left_on_hosts()));
        // What was cut off may not have been needed any more.
        self.until("the fault has ended", || match *lock(&self.stage) {
            Stage::Lasting => Err("it lasts".to_owned()),
            _ => Ok(()),
        });
        lives::assert_all_rows_have_kills(federation, plan::ROWS.as_slice());
        let Stage::Ended(ended) = *lock(&self.stage) else {
            panic!("{} never came to {}", self.moment.site, self.moment.at)
        };
        let witness = lock(&self.witness);
        let boots = if matches!(self.blow, Blow::KillGuest(_)) { 2 } else { 1 };
        if let Some(wrong) = witness.contradiction(on_disk, boots) {
            panic!("{wrong}\n{witness:#?}\n{}", federation.story());
        }
        // What was under way when the fault ended has come true after so long; where the guest only
        // ran at that time, it has counted on.
        let steps = lock(&self.steps);
        let after =
            |(end, idle): &(Instant, bool)| Some((end.checked_duration_since(ended)?, *idle));
        let (whole, idle) = steps.iter().find_map(after).unwrap_or((ended.elapsed(), false));
        let counted = witness.next_after(ended).filter(|_| idle);
        counted.map_or(whole, |counted| counted.min(whole))
    }

    fn host(&self, site: &str, host: &str) {
        let command = ["host", "add", host, "--cpus", "1", "--memory", "128M"];
        self.insist(site, &command, || {
            let hosts = self.federation[site].state().hosts;
            let known = hosts.contains_key(&host.parse().expect("a legal name"));
            let open = self.federation[site].run(&["host", "list"]).code == 0;
            if known && open { Ok(()) } else { Err("it is not there".to_owned()) }
        });
    }

    /// Moves the guest, until it is the only one and counts on at this site.
    fn travel(&self, site: &str, command: &[&str]) {
        let vm = lock(&self.vm).clone();
        let before = lock(&self.witness).counter();
        let mut said: Option<Instant> = None;
        self.until(&format!("it counts on at {site}"), || {
            let Some(guest) = self.federation.runs_at(&vm, site) else {
                if said.is_none_or(|said| said.elapsed() > PATIENCE) {
                    self.start_if_killed();
                    self.federation["a"].run(command);
                    said = Some(Instant::now());
                }
                return Err(format!("its guests: {:#?}", self.federation.guests(&vm)));
            };
            let counter = lock(&self.witness).counter_in(&guest.folder).unwrap_or_default();
            if counter > before { Ok(()) } else { Err(format!("it says: {}", guest.console())) }
        });
        self.ended(false);
    }

    /// Notes that a step has ended, in which the guest only ran or which was to change something.
    fn ended(&self, idle: bool) {
        lock(&self.steps).push((Instant::now(), idle));
    }

    /// A guest whose process was killed is stopped, and its operator starts it again.
    fn start_if_killed(&self) {
        if !matches!(self.blow, Blow::KillGuest(_))
            || !matches!(*lock(&self.stage), Stage::Ended(_))
        {
            return;
        }
        for site in ["a", "c"] {
            let shown = self.federation[site].run(&["vm", "show", "web"]);
            if shown.code == 0 && shown.json()["state"] == "stopped" {
                self.federation[site].run(&["vm", "start", "web"]);
            }
        }
    }

    /// Waits until nothing is unsettled any more.
    fn settle(&self, unsettled: impl Fn(&str) -> Option<String>) {
        let vm = lock(&self.vm).clone();
        self.until("it is settled", || unsettled(&vm).map_or(Ok(()), Err));
        self.ended(true);
    }

    /// Says a command, again and again, until `so`.
    fn insist<T>(&self, site: &str, command: &[&str], so: impl Fn() -> Result<T, String>) -> T {
        let mut said: Option<Instant> = None;
        let so = self.until(&format!("{command:?} at {site}"), || {
            let now = so();
            if now.is_err() && said.is_none_or(|said| said.elapsed() > PATIENCE) {
                self.federation[site].run(command);
                said = Some(Instant::now());
            }
            now
        });
        self.ended(false);
        so
    }

    /// Looks until it is so. The time of the fault itself does not count.
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
        let began = Instant::now();
        loop {
            let why = match look() {
                Ok(value) => return value,
                Err(why) => why,
            };
            if let Some(wrong) = lock(&self.wrong).take() {
                panic!("{wrong}\n{}", self.federation.story());
            }
            let since = match *lock(&self.stage) {
                Stage::Awaited => began,
                Stage::Lasting => Instant::now(),
                Stage::Ended(at) => began.max(at),
            };
            assert!(!interrupted(), "interrupted: {what}");
            assert!(
                since.elapsed() < STEP_LIMIT,
                "not in {STEP_LIMIT:?}: {what}\n{why}\n{}",
                self.federation.story()
            );
            std::thread::sleep(LOOK);
        }
    }

    fn disk(&self) -> PathBuf {
        let image = guest_disk().unwrap_or_else(|why| panic!("{why}"));
        if !self.moment.at.ends_with(":receiving") {
            return image;
        }
        // The row is written where bytes are seen to arrive, which those of few are not.
        let long = self.federation.folder().join("long.raw");
        std::fs::copy(&image, &long).expect("the folder can be written");
        let noise =
            (0_u64..NOISE / 8).flat_map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        let file = File::options().append(true).open(&long).expect("it was just made");
        std::io::Write::write_all(&mut &file, &noise.collect::<Vec<u8>>()).expect("there is space");
        long
    }

    /// The counter on the disk of the VM, which is stopped at home.
    fn counter_on_disk(&self) -> u64 {
        let folders = self.federation["a"].files_of(&lock(&self.vm));
        let [folder] = folders.as_slice() else { panic!("its files are in {folders:?}") };
        let disk = File::open(folder.join(FileId::disk(0).file_name())).expect("it has its disk");
        let mut start = [0; 4];
        disk.read_exact_at(&mut start, SECOND_PARTITION_AT).expect("it is long enough");
        let mut sector = [0; 512];
        let counter_at = 512 * u64::from(u32::from_le_bytes(start));
        disk.read_exact_at(&mut sector, counter_at).expect("it is long enough");
        let text = String::from_utf8_lossy(&sector);
        let mut words = text.split(' ');
        assert_eq!(words.next(), Some("sojourn"), "the guest's sector: {text}");
        words.next().and_then(|word| word.parse().ok()).expect("a number follows")
    }

    /// What is left on hosts when the VM was destroyed.
    fn left_on_hosts(&self) -> Option<String> {
        SITES.iter().find_map(|site| {
            let site = &self.federation[site];
            let left = site.stays();
            if !left.is_empty() {
                return Some(format!("left: {left:?}"));
            }
            let listed = site.run(&["host", "list"]);
            if listed.code != 0 {
                return Some(format!("{listed:?}"));
            }
            let hosts = listed.json();
            let free =
                |host: &serde_json::Value| host["memory_used_bytes"] == 0 && host["cpus_used"] == 0;
            let taken = hosts.as_array().expect("a list").iter().find(|host| !free(host))?;
            Some(format!("capacity is taken: {taken}"))
        })
    }

    // The fault.

    /// Waits for the moment, and strikes. Starts again what has died, by this or by itself.
    fn strike(&self) {
        let mark = mark(self.federation);
        while !self.over.load(Ordering::Relaxed) {
            let now = Instant::now();
            let awaited = matches!(*lock(&self.stage), Stage::Awaited);
            let died = self.federation.sites().iter().any(|site| {
                // Looked at before it is started, which takes its time.
                awaited && site.name() == self.moment.site && site.is_gone()
            });
            if awaited && mark.exists() {
                if self.blow != Blow::KillNode {
                    self.stage(Stage::Lasting);
                    self.fall();
                    self.stage(Stage::Ended(Instant::now()));
                } else if died {
                    self.stage(Stage::Ended(now));
                }
            }
            self.federation.revive();
            std::thread::sleep(LOOK / 4);
        }
    }

    fn stage(&self, stage: Stage) {
        *lock(&self.stage) = stage;
    }

    fn fall(&self) {
        let here = &self.federation[self.moment.site];
        self.federation.wait_for("the node holds itself", RECOVERY_LIMIT, || {
            if here.is_frozen() { Ok(()) } else { Err("it does not".to_owned()) }
        });
        let proxy = |site| self.federation[site].proxy().expect("it has one for this");
        match self.blow {
            Blow::KillNode => unreachable!("the node does that itself"),
            Blow::HoldNode(time) => self.sleep(time),
            Blow::KillProxy(site) => proxy(site).signal(Signal::KILL),
            Blow::HoldProxy(site, time) => {
                proxy(site).signal(Signal::STOP);
                here.thaw();
                self.sleep(time);
                proxy(site).signal(Signal::CONT);
            }
            Blow::KillGuest(site) => {
                let guest = self.guest(site);
                kill_process(guest, Signal::KILL).expect("it was just there");
            }
            Blow::HoldGuest(site, time) => {
                let guest = self.guest(site);
                kill_process(guest, Signal::STOP).expect("it was just there");
                here.thaw();
                self.sleep(time);
                // The node may have ended it meanwhile.
                let _ = kill_process(guest, Signal::CONT);
            }
            Blow::Cut(cut, time) => {
                let network = self.federation.network().expect("it has one for this");
                network.cut(cut);
                here.thaw();
                self.sleep(time);
                let vanished = network.heal();
                let carries = cut.site != "b" && cut.traffic != Traffic::Control;
                let is_busy = carries && self.moment.at.ends_with(":receiving");
                assert!(vanished > 0 || !is_busy, "nothing was cut off: {cut:?}");
            }
        }
        here.thaw();
    }

    fn guest(&self, site: &str) -> rustix::process::Pid {
        let guests = self.federation.guests(&lock(&self.vm));
        let guest = guests.iter().find(|guest| guest.site == site);
        guest.and_then(|guest| guest.process()).expect("it has a process at this moment")
    }

    /// Lets time pass, unless the life is over before.
    fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.over.load(Ordering::Relaxed) && !interrupted() {
            std::thread::sleep(LOOK);
        }
    }

    // The witness.

    fn watch(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let vm = lock(&self.vm).clone();
            if !vm.is_empty() {
                self.federation.assert_one_runs(&vm);
                lock(&self.witness).look(self.federation, &vm);
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
