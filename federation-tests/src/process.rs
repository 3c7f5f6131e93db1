//! Real nodes: every site is a `sojourn site run` process with a state folder of its own.
//!
//! A [`Federation`] lives in a temporary folder and takes everything with it when it goes: nodes,
//! guests, files. Its sites listen at loopback addresses of their own, so that a restart finds its
//! port free and many federations run side by side; or each has a network namespace of its own
//! ([`Network`]), so that they can be cut off from one another. They are driven through the command
//! line, as a user would, and looked at through their files: the journal is folded with the very
//! [`protocol::State`] that the node uses.

pub mod application;
mod guest;
pub mod hostile;
mod network;
mod program;
mod proxy;
mod site;
mod small;

use std::ops::Index;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::vm::{Disk, Restrictions};
use model::{Bytes, Descriptor, FileId, Monitoring, Resources};
use program::Clock;
use protocol::{Down, SourceStep};
use tempfile::TempDir;

pub use guest::{Guest, Line};
pub use network::{Cut, Network, Traffic, Way};
pub use program::{guest_disk, interrupt, interrupted, missing, sojourn};
pub use proxy::Proxy;
pub use site::{Outcome, Site, Usage};
pub use small::Small;

/// How long a condition is waited for that should hold at once, or after a few repeats.
pub const SOON: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(40);

/// Several sites on this machine.
pub struct Federation {
    sites: Vec<Site>,
    folder: TempDir,
    network: Option<Network>,
}

impl Federation {
    /// One without sites.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sojourn-").tempdir();
        let folder = folder.expect("a temporary folder can be made");
        // Guests run as another user and must be able to pass.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))
            .expect("the folder is ours");
        Self { sites: Vec::new(), folder, network: None }
    }

    /// One whose sites have network namespaces of their own, joined by a network that can be cut.
    pub fn over(network: Network) -> Self {
        let mut federation = Self::new();
        federation.network = Some(network);
        federation
    }

    /// The network, if it has one of its own.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Leaves the folder behind when the federation goes, and says where it is.
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// Simulated sites, made, running, and each joined with the next.
    pub fn chain(names: &[&str]) -> Self {
        let mut federation = Self::new();
        for name in names {
            federation.add(name).start();
        }
        for pair in names.windows(2) {
            federation.join(pair[0], pair[1]);
        }
        federation
    }

    /// Makes a site with simulated hosts. Its node does not run yet.
    pub fn add(&mut self, name: &str) -> &Site {
        self.make(name, &["--simulated"])
    }

    /// Makes a site whose hosts run QEMU.
    pub fn add_real(&mut self, name: &str) -> &Site {
        self.make(name, &[])
    }

    /// Makes a site with simulated hosts whose node's clock is ahead of this machine's by so many
    /// seconds; or says why it cannot be.
    pub fn add_ahead(&mut self, name: &str, seconds: i64) -> Result<&Site, &'static str> {
        let clock = Clock::ahead(seconds)?;
        self.add(name);
        let site = self.sites.last_mut().expect("just added");
        site.set_clock(clock);
        Ok(site)
    }

    fn make(&mut self, name: &str, flags: &[&str]) -> &Site {
        let place = self.network.as_ref().map(|network| network.place(name));
        let site = Site::make(name, self.folder.path().join(name), place, flags);
        // Short enough to be seen in a test, and long enough for every other time in it.
        site.configure("time", "purge_s", 1);
        site.configure("time", "request_s", 3);
        self.sites.push(site);
        self.sites.last().expect("just added")
    }

    /// Gives a site a transfer proxy in a process of its own.
    pub fn add_proxy(&mut self, name: &str) {
        let site = self.sites.iter_mut().find(|site| site.name() == name);
        site.expect("a site of the federation").add_proxy();
    }

    /// A folder that goes with the federation.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All sites.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Makes two sites peers.
    pub fn join(&self, host: &str, guest: &str) {
        let invitation = self[host].done(&["peer", "invite"]);
        let ticket = invitation["ticket"].as_str().expect("an invitation has a ticket");
        self[guest].done(&["peer", "join", ticket]);
    }

    /// An OVA with one processor, 128 MiB and this disk; a small one is made where none is given.
    pub fn package(&self, name: &str, disk: Option<&Path>) -> PathBuf {
        self.monitored(name, disk, &Monitoring::default())
    }

    /// A package of a VM whose owner rules this out.
    pub fn restricted(&self, name: &str, restrictions: Restrictions) -> PathBuf {
        self.packed(name, None, restrictions, &Monitoring::default())
    }

    /// A package of a VM of which this is measured.
    pub fn monitored(&self, name: &str, disk: Option<&Path>, monitoring: &Monitoring) -> PathBuf {
        self.packed(name, disk, Restrictions::default(), monitoring)
    }

    fn packed(
        &self,
        name: &str,
        disk: Option<&Path>,
        restrictions: Restrictions,
        monitoring: &Monitoring,
    ) -> PathBuf {
        let small = self.folder.path().join("disk.raw");
        let disk = disk.unwrap_or_else(|| {
            let content: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
            std::fs::write(&small, content).expect("the folder can be written");
            &small
        });
        let capacity = Bytes(disk.metadata().expect("the disk is there").len());
        let descriptor = Descriptor {
            name: name.parse().expect("a legal name"),
            resources: Resources { cpus: 1, memory: Bytes::mib(128) },
            disks: vec![Disk { file: FileId::disk(0), capacity }],
            nics: vec![],
            restrictions,
            monitoring: monitoring.clone(),
        };
        let target = self.folder.path().join(format!("{name}.ova"));
        ovf::write_ova(&target, &descriptor, &[disk.to_owned()]).expect("a sound package");
        target
    }

    /// Takes a small VM into a site's library, and returns its id.
    pub fn import(&self, site: &str, name: &str) -> String {
        let package = self.package(name, None);
        let vm = self[site].done(&["vm", "import", &package.display().to_string()]);
        vm["id"].as_str().expect("a VM has an id").to_owned()
    }

    /// Every guest of a VM at every site, whether it executes or not.
    pub fn guests(&self, vm: &str) -> Vec<Guest> {
        let at = |site: &Site| guest::guests(site.name(), site.folder(), vm);
        self.sites.iter().flat_map(at).collect()
    }

    /// Every console of real guests of a VM that there is now: its file and what it says.
    pub fn consoles(&self, vm: &str) -> Vec<(PathBuf, String)> {
        let folders = self.sites.iter().flat_map(|site| guest::runtime_folders(site.folder()));
        let files = folders.map(|folder| folder.join("console.log"));
        let of_vm = files.filter(|file| file.to_str().is_some_and(|path| path.contains(vm)));
        of_vm
            .filter_map(|file| Some((std::fs::read_to_string(&file).ok()?, file)))
            .map(|(text, file)| (file, text))
            .collect()
    }

    /// The one guest of a VM that executes, if it is at this site and there is no other.
    pub fn runs_at(&self, vm: &str, site: &str) -> Option<Guest> {
        match self.guests(vm).as_slice() {
            [one] if one.runs && one.site == site => Some(one.clone()),
            _ => None,
        }
    }

    /// Fails unless no VM has two guests that execute: what may never be, not for a moment.
    pub fn assert_one_runs(&self, vm: &str) {
        let running: Vec<Guest> = self.guests(vm).into_iter().filter(|guest| guest.runs).collect();
        assert!(running.len() <= 1, "{vm} runs more than once: {running:#?}");
    }

    /// Waits until a VM is at this site with all that it is, and nowhere else is anything of it.
    ///
    /// One guest that executes (or none, if `runs` is false), one folder with files, an owner, no
    /// open role, no open operation; sites that are not `on_path` have forgotten it.
    pub fn settle(&self, vm: &str, site: &str, runs: bool, on_path: &[&str]) {
        self.wait_for(&format!("{vm} is settled at {site}"), SOON, || {
            self.assert_one_runs(vm);
            self.unsettled(vm, site, runs, on_path).map_or(Ok(()), Err)
        });
    }

    /// Why a VM is not settled, as [`Federation::settle`] waits for.
    pub fn unsettled(&self, vm: &str, at: &str, runs: bool, on_path: &[&str]) -> Option<String> {
        let guests = self.guests(vm);
        if runs && self.runs_at(vm, at).is_none() {
            return Some(format!("it should run at {at}, and its guests are {guests:#?}"));
        }
        if !runs && !guests.is_empty() {
            return Some(format!("it should not run, and its guests are {guests:#?}"));
        }
        let folders: Vec<PathBuf> = self.sites.iter().flat_map(|site| site.files_of(vm)).collect();
        if folders.len() != 1 || !folders[0].starts_with(self[at].folder()) {
            return Some(format!("its files are in {folders:#?}"));
        }
        self.sites.iter().find_map(|site| {
            let text = |what: String| Some(format!("{}: {what}", site.name()));
            let state = site.state();
            let id = vm.parse().expect("an id");
            if let Some(known) = state.vms.get(&id) {
                let here = known.stay.is_some() && known.down == Down::Here;
                if here != (site.name() == at) || !on_path.contains(&site.name()) {
                    return text(format!("it stands on the path as {:?}", known.down));
                }
            } else if on_path.contains(&site.name()) {
                return text("it is not on the path".to_owned());
            }
            open_role(&state).and_then(text)
        })
    }

    /// Waits until a VM was destroyed everywhere, with all that was of it.
    pub fn settle_destroyed(&self, vm: &str) {
        self.wait_for(&format!("nothing is left of {vm}"), SOON, || {
            self.left_of(vm).map_or(Ok(()), Err)
        });
    }

    /// What is left of a VM that was destroyed.
    pub fn left_of(&self, vm: &str) -> Option<String> {
        let guests = self.guests(vm);
        let folders: Vec<_> = self.sites.iter().flat_map(|site| site.files_of(vm)).collect();
        if !guests.is_empty() || !folders.is_empty() {
            return Some(format!("left: {guests:#?} {folders:#?}"));
        }
        self.sites.iter().find_map(|site| {
            let state = site.state();
            let known = state.vms.get(&vm.parse().expect("an id"));
            if known.is_some_and(|vm| !vm.destroyed) {
                return Some(format!("{} still has it", site.name()));
            }
            open_role(&state).map(|what| format!("{}: {what}", site.name()))
        })
    }

    /// Starts every node and proxy again that has ended by itself or by a test's wish. Returns the
    /// sites whose nodes were started.
    pub fn revive(&self) -> Vec<&str> {
        self.sites.iter().filter(|site| site.revive()).map(Site::name).collect()
    }

    /// Looks again and again until `look` gives a value; fails with what it said last.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<T, String>,
    ) -> T {
        let until = Instant::now() + limit;
        loop {
            match look() {
                Ok(value) => return value,
                Err(why) if Instant::now() > until => {
                    panic!("not in {limit:?}: {what}\n{why}\n{}", self.story())
                }
                Err(_) if interrupted() => panic!("interrupted: {what}"),
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// What every site wrote last, for a failed test's report.
    pub fn story(&self) -> String {
        let tail = |site: &Site| format!("--- {}\n{}", site.name(), site.log_tail());
        self.sites.iter().map(tail).collect::<Vec<_>>().join("\n")
    }
}

/// What of a site's roles is still open.
fn open_role(state: &protocol::State) -> Option<String> {
    let journey = state.journeys.values().find(|journey| journey.result.is_none());
    if let Some(open) = journey {
        return Some(format!("operation {} is open", open.operation));
    }
    state.migrations.iter().find_map(|(id, migration)| {
        let source = migration.source.as_ref().map(|source| source.step);
        let target = migration.target.as_ref().map(|target| target.step);
        let ended = [SourceStep::Aborted, SourceStep::Returned, SourceStep::Tombstone];
        if let Some(step) = source.filter(|step| !ended.contains(step)) {
            return Some(format!("it is Source of {id}, {step:?}"));
        }
        let step = target.filter(|step| step.arrives())?;
        Some(format!("it is Destination of {id}, {step:?}"))
    })
}

impl Index<&str> for Federation {
    type Output = Site;

    fn index(&self, name: &str) -> &Site {
        self.sites.iter().find(|site| site.name() == name).expect("a site of the federation")
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.story());
        }
        for site in &self.sites {
            site.kill();
            site.proxy().inspect(|proxy| proxy.kill());
        }
        for site in &self.sites {
            guest::end_all(site.folder());
        }
    }
}
