//! What every implementation of `Hypervisor` keeps: one suite, run over the simulated host and over
//! real QEMU with a real guest.
//!
//! The guest is made by `cargo xtask guest-image`. Where it or QEMU is missing, the QEMU half says
//! so and passes, unless `SOJOURN_REQUIRE` names `qemu`.

// The helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hypervisor::{
    Accelerator, DiskCounters, Error, Guest, Hypervisor, Instance, IoCounters, Launch, Measured,
    NetworkCounters, Qemu, QemuConfig, Simulated, SimulatedFault,
};
use model::vm::{Disk, Nic, Restrictions};
use model::{Bytes, Descriptor, Epoch, FileId, PowerState, Resources, VmId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// For anything that a guest is waited for, on a machine that emulates it and does more besides.
const PATIENCE: Duration = Duration::from_secs(180);
const GRACE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy)]
enum Kind {
    Simulated,
    Qemu,
}

/// A site with any number of hosts, in a folder of its own. Nothing of it is left when it goes.
struct Site {
    kind: Kind,
    folder: TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        // A failed test must not leave processes. Their locks name them.
        for pid_file in glob_pid_files(self.folder.path()) {
            if let Some(pid) = holder(&pid_file) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn glob_pid_files(folder: &Path) -> Vec<PathBuf> {
    let folders = |path: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let guests = folders(folder).into_iter().flat_map(|host| folders(&host));
    guests.map(|guest| guest.join("pid")).filter(|path| path.exists()).collect()
}

fn holder(pid_file: &Path) -> Option<rustix::process::Pid> {
    use rustix::process::{Flock, FlockType, fcntl_getlk};
    let file = fs::File::open(pid_file).ok()?;
    fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??.pid
}

fn guest_image() -> PathBuf {
    std::env::var_os("SOJOURN_GUEST_IMAGE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest/disk.raw"),
        PathBuf::from,
    )
}

impl Site {
    /// None, with the reason printed, where this machine cannot have it.
    fn new(kind: Kind) -> Option<Self> {
        if matches!(kind, Kind::Qemu) {
            let image = guest_image();
            let missing = if !image.exists() {
                Some(format!("no guest at {}, run: cargo xtask guest-image", image.display()))
            } else {
                let version = Command::new("qemu-system-x86_64").arg("--version").output();
                version.err().map(|error| format!("no qemu-system-x86_64: {error}"))
            };
            if let Some(why) = missing {
                let required = std::env::var("SOJOURN_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|name| name == "qemu"), "{why}");
                println!("skipped: {why}");
                return None;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        // Guests run as another user, who must come through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Some(Self { kind, folder })
    }

    /// A host of the site. Asked again with the same name, it is the host after a restart.
    fn host(&self, name: &str) -> Box<dyn Hypervisor> {
        let runtime = self.folder.path().join(name);
        match self.kind {
            Kind::Simulated => Box::new(Simulated::new(runtime).unwrap()),
            Kind::Qemu => Box::new(Qemu::new(QemuConfig::new(runtime)).unwrap()),
        }
    }

    /// A VM's folder with its disk.
    async fn vm(&self, name: &str, host: &dyn Hypervisor) -> Launch {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        let disk = folder.join(FileId::disk(0).file_name());
        match self.kind {
            Kind::Simulated => fs::write(&disk, [7; 4096]).unwrap(),
            Kind::Qemu => drop(fs::copy(guest_image(), &disk).unwrap()),
        }
        Launch {
            instance: Instance { vm: VmId([0x5a; 16]), epoch: Epoch(3) },
            descriptor: Descriptor {
                name: name.parse().unwrap(),
                resources: Resources { cpus: 1, memory: Bytes::mib(128) },
                disks: vec![Disk {
                    file: FileId::disk(0),
                    capacity: Bytes(fs::metadata(&disk).unwrap().len()),
                }],
                nics: vec![Nic { network: "lan".to_owned(), mac: [0x52, 0x54, 0, 1, 2, 3] }],
                restrictions: Restrictions::default(),
                monitoring: Default::default(),
            },
            folder,
            state: None,
            profile: host.profile().await.unwrap(),
        }
    }
}

/// A line that the guest prints about every second.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Beat {
    counter: u64,
    uptime: u64,
    boot: String,
    since: u64,
}

fn beats(console: &Path) -> Vec<Beat> {
    let text = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
    let mut found = Vec::new();
    // The last line may not be whole.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Some(rest) = line.trim().strip_prefix("sojourn-guest counter=") else { continue };
        let line = format!("counter={rest}");
        let value = |key: &str| {
            let field =
                line.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
            field.unwrap().to_owned()
        };
        found.push(Beat {
            counter: value("counter").parse().unwrap(),
            uptime: value("uptime").parse().unwrap(),
            boot: value("boot"),
            since: value("since").parse().unwrap(),
        });
    }
    found
}

/// Waits until the guest has printed a beat that `wanted` takes.
async fn beat(host: &dyn Hypervisor, i: Instance, wanted: impl Fn(&Beat) -> bool) -> Beat {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // A simulated guest lives when it is looked at.
        host.state(i).await.unwrap();
        if let Some(beat) = beats(&host.console(i)).into_iter().find(&wanted) {
            return beat;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let console = fs::read_to_string(host.console(i)).unwrap_or_default();
    panic!("the guest did not come so far; its console: {console}");
}

async fn a_launched_guest_executes_nothing_until_it_is_resumed(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    let disk = vm.folder.join("disk0.raw");
    let before = fs::read(&disk).unwrap();
    assert_eq!(host.state(i).await.unwrap(), None);
    host.launch(&vm).await.unwrap();
    host.launch(&vm).await.expect("a launch may be repeated");
    assert_eq!(host.list().await.unwrap(), [Guest { instance: i, state: PowerState::Paused }]);
    assert_eq!(fs::read(host.console(i)).unwrap(), b"");
    // Hibernated before its first instruction and launched from that, it has still executed none.
    let state = vm.folder.join(FileId::STATE.file_name());
    host.hibernate(i, &state).await.unwrap();
    host.launch(&Launch { state: Some(state), ..vm.clone() }).await.unwrap();
    assert_eq!(host.state(i).await.unwrap(), Some(PowerState::Paused));
    assert_eq!(fs::read(host.console(i)).unwrap(), b"");
    assert!(fs::read(&disk).unwrap() == before, "the disk was written");

    host.resume(i).await.unwrap();
    host.resume(i).await.expect("a resume may be repeated");
    assert_eq!(host.state(i).await.unwrap(), Some(PowerState::Active));
    let first = beat(&*host, i, |_| true).await;
    assert_eq!(first.counter, first.since + first.uptime);
    assert!(matches!(host.launch(&vm).await, Err(Error::Runs(_))));
    assert!(matches!(host.forget(i).await, Err(Error::Runs(_))));
    host.kill(i).await.unwrap();
}

async fn a_paused_guest_stands_still_and_goes_on(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    let first = beat(&*host, i, |_| true).await;
    host.pause(i).await.unwrap();
    host.pause(i).await.expect("a pause may be repeated");
    assert_eq!(host.state(i).await.unwrap(), Some(PowerState::Paused));
    host.resume(i).await.unwrap();
    let later = beat(&*host, i, |beat| beat.uptime > first.uptime + 1).await;
    assert_eq!(later.boot, first.boot);
    // A guest that is paused cannot answer; it is ended without the grace.
    host.pause(i).await.unwrap();
    let asked = Instant::now();
    host.shut_down(i, PATIENCE).await.unwrap();
    assert!(asked.elapsed() < PATIENCE / 2, "a paused guest was waited for");
    assert_eq!(host.state(i).await.unwrap(), None);
}

async fn a_hibernated_guest_goes_on_at_another_host(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let (source, destination) = (site.host("a"), site.host("b"));
    let vm = site.vm("vm", &*source).await;
    let i = vm.instance;
    let state = vm.folder.join(FileId::STATE.file_name());
    assert!(matches!(source.hibernate(i, &state).await, Err(Error::NoGuest(_))));
    source.launch(&vm).await.unwrap();
    source.resume(i).await.unwrap();
    beat(&*source, i, |beat| beat.uptime >= 2).await;

    let before = source.measure(i).await.unwrap().expect("it runs");
    let used = source.hibernate(i, &state).await.unwrap().expect("it could be measured");
    assert_eq!(source.state(i).await.unwrap(), None, "its process is gone");
    assert_eq!(used.process, before.process);
    assert!(used.cpu_time >= before.cpu_time, "{used:?} after {before:?}");
    assert!(used.disks.written.bytes >= before.disks.written.bytes, "{used:?} after {before:?}");
    let again = source.hibernate(i, &state).await.expect("a hibernation may be repeated");
    assert_eq!(again, None, "the process that used it is gone");
    site.host("a").hibernate(i, &state).await.expect("also after a restart of the node");
    let last = beats(&source.console(i)).pop().expect("the console outlives the guest");

    let moved = site.folder.path().join("moved");
    fs::create_dir(&moved).unwrap();
    for name in ["disk0.raw", "state0.bin"] {
        fs::copy(vm.folder.join(name), moved.join(name)).unwrap();
    }
    let instance = Instance { epoch: Epoch(4), ..i };
    let there = Launch {
        instance,
        folder: moved.clone(),
        state: Some(moved.join("state0.bin")),
        ..vm.clone()
    };
    destination.launch(&there).await.unwrap();
    assert_eq!(destination.state(instance).await.unwrap(), Some(PowerState::Paused));
    assert_eq!(beats(&destination.console(instance)), []);
    destination.resume(instance).await.unwrap();
    let next = beat(&*destination, instance, |beat| beat.uptime > last.uptime).await;
    assert_eq!((&next.boot, next.since), (&last.boot, last.since), "it booted again");
    assert!(next.uptime <= last.uptime + 2, "{last:?} was followed by {next:?}");
    assert_eq!(next.counter, next.since + next.uptime, "disk and memory are of two moments");
    destination.kill(instance).await.unwrap();

    source.forget(i).await.unwrap();
    source.forget(i).await.expect("may be repeated");
    assert!(!source.console(i).exists());
    // The file is still there, but nothing says any more that it is the newest state.
    assert!(matches!(source.hibernate(i, &state).await, Err(Error::NoGuest(_))));
}

async fn a_guest_that_ran_on_after_its_hibernation_is_not_hibernated(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let mut vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    let state = vm.folder.join(FileId::STATE.file_name());
    host.launch(&vm).await.unwrap();
    host.hibernate(i, &state).await.unwrap();
    vm.state = Some(state.clone());
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    host.kill(i).await.unwrap();
    assert!(matches!(host.hibernate(i, &state).await, Err(Error::NoGuest(_))));
}

async fn a_refused_hibernation_leaves_the_guest_as_it_was(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    host.launch(&vm).await.unwrap();
    let nowhere = vm.folder.join("no-such-folder").join("state0.bin");
    let refused = host.hibernate(i, &nowhere).await.unwrap_err().to_string();
    assert!(refused.ends_with("the guest is left paused"), "{refused}");
    assert_eq!(host.state(i).await.unwrap(), Some(PowerState::Paused));
    host.resume(i).await.unwrap();
    let first = beat(&*host, i, |_| true).await;
    let refused = host.hibernate(i, &nowhere).await.unwrap_err().to_string();
    assert!(refused.ends_with("the guest is left running"), "{refused}");
    assert_eq!(host.state(i).await.unwrap(), Some(PowerState::Active));
    let later = beat(&*host, i, |beat| beat.uptime > first.uptime + 1).await;
    assert_eq!(later.boot, first.boot);
    host.kill(i).await.unwrap();
}

async fn a_guest_that_is_asked_to_stop_powers_itself_off(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let mut vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    beat(&*host, i, |_| true).await;
    host.shut_down(i, GRACE).await.unwrap();
    let console = fs::read_to_string(host.console(i)).unwrap();
    assert!(console.contains("sojourn-guest powering off"), "{console}");
    assert_eq!(host.list().await.unwrap(), []);
    host.shut_down(i, GRACE).await.expect("may be repeated");
    host.kill(i).await.expect("there is nothing to end");
    for verb in [host.resume(i).await, host.pause(i).await] {
        assert!(matches!(verb, Err(Error::NoGuest(_))));
    }
    // Its next stay is another instance; what it wrote to its disk is there.
    let before = beats(&host.console(i)).pop().unwrap();
    vm.instance.epoch = Epoch(4);
    host.launch(&vm).await.unwrap();
    host.resume(vm.instance).await.unwrap();
    let after = beat(&*host, vm.instance, |_| true).await;
    assert_ne!(after.boot, before.boot);
    if matches!(kind, Kind::Qemu) {
        assert_eq!(after.since, before.counter);
    }
    host.kill(vm.instance).await.unwrap();
}

async fn a_restarted_node_finds_its_guests_again(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    let first = beat(&*host, i, |_| true).await;
    drop(host);
    let host = site.host("a");
    assert_eq!(host.list().await.unwrap(), [Guest { instance: i, state: PowerState::Active }]);
    assert_eq!(site.host("b").list().await.unwrap(), [], "another host's guest is not ours");
    let later = beat(&*host, i, |beat| beat.uptime > first.uptime).await;
    assert_eq!(later.boot, first.boot);
    host.kill(i).await.unwrap();
    assert_eq!(host.list().await.unwrap(), []);
    assert!(!beats(&host.console(i)).is_empty(), "the console outlives the guest");
}

async fn a_launch_that_cannot_work_says_why_and_leaves_no_guest(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    let state = vm.folder.join(FileId::STATE.file_name());
    host.launch(&vm).await.unwrap();
    host.hibernate(i, &state).await.unwrap();

    let mut other = Launch { state: Some(state.clone()), ..vm.clone() };
    other.profile.machine = "pc-q35-9.9".to_owned();
    let error = host.launch(&other).await.unwrap_err();
    assert!(matches!(error, Error::Profile(_)));
    assert!(error.to_string().contains("the saved state needs pc-q35-9.9"), "{error}");

    fs::write(&state, "not a state").unwrap();
    let garbage = Launch { state: Some(state), ..vm.clone() };
    let error = host.launch(&garbage).await.unwrap_err();
    assert!(matches!(error, Error::State { .. } | Error::Died { .. }), "{error:?}");

    fs::rename(vm.folder.join("disk0.raw"), vm.folder.join("elsewhere")).unwrap();
    let error = host.launch(&vm).await.unwrap_err();
    assert!(matches!(error, Error::Disk { .. }));
    assert!(error.to_string().contains("disk0.raw"), "{error}");
    std::os::unix::fs::symlink("elsewhere", vm.folder.join("disk0.raw")).unwrap();
    assert!(matches!(host.launch(&vm).await, Err(Error::Disk { .. })), "a link was followed");
    assert_eq!(host.list().await.unwrap(), []);
}

/// Measures until `wanted` takes what was measured.
async fn measured(
    host: &dyn Hypervisor,
    i: Instance,
    mut wanted: impl FnMut(&Measured) -> bool,
) -> Measured {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let measured = host.measure(i).await.unwrap().expect("the guest exists");
        if wanted(&measured) {
            return measured;
        }
        assert!(Instant::now() < deadline, "the guest did not come so far: {measured:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What must stand still while a guest does.
fn counters(measured: &Measured) -> (Duration, DiskCounters, Option<NetworkCounters>) {
    (measured.cpu_time, measured.disks, measured.network)
}

async fn counters_grow_while_a_guest_runs_and_stand_still_while_it_is_paused(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    assert_eq!(host.measure(i).await.unwrap(), None);
    let launched = Instant::now();
    host.launch(&vm).await.unwrap();
    let unborn = measured(&*host, i, |_| true).await;
    assert_eq!(unborn.disks, DiskCounters::default());
    assert_eq!(unborn.memory_balloon, Some(Bytes::mib(128)));
    assert!(unborn.memory_resident > Bytes(0));

    host.resume(i).await.unwrap();
    beat(&*host, i, |_| true).await;
    let grown = |from: &Measured, to: &Measured| {
        let more = |from: IoCounters, to: IoCounters| {
            to.bytes > from.bytes && to.operations > from.operations && to.time > from.time
        };
        let disks =
            more(from.disks.read, to.disks.read) && more(from.disks.written, to.disks.written);
        disks && to.cpu_time > from.cpu_time
    };
    let first = measured(&*host, i, |now| grown(&unborn, now)).await;
    let later = measured(&*host, i, |now| grown(&first, now)).await;
    assert!(later.cpu_time <= launched.elapsed(), "it has one processor: {later:?}");
    match (kind, first.network, later.network) {
        (Kind::Simulated, Some(first), Some(later)) => {
            assert!(later.received.bytes > first.received.bytes);
            assert!(later.sent.packets > first.sent.packets);
        }
        (Kind::Qemu, None, None) => {}
        (_, first, later) => panic!("{first:?} {later:?}"),
    }

    host.pause(i).await.unwrap();
    // Its processors have stopped, and the threads that were them are about to sleep.
    let mut before = measured(&*host, i, |_| true).await;
    let still = |now: &Measured| {
        let earlier = std::mem::replace(&mut before, *now);
        counters(&earlier) == counters(now)
    };
    let paused = measured(&*host, i, still).await;
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_millis(500) {
        let now = measured(&*host, i, |_| true).await;
        assert_eq!(counters(&now), counters(&paused), "it was paused");
    }
    host.resume(i).await.unwrap();
    measured(&*host, i, |now| grown(&paused, now)).await;
    host.kill(i).await.unwrap();
    assert_eq!(host.measure(i).await.unwrap(), None);
}

async fn a_guest_that_ends_while_it_is_measured_is_none_and_no_error(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    for round in 0..10 {
        host.launch(&vm).await.unwrap();
        let looks = Cell::new(0);
        let measuring = async {
            while host.measure(i).await.unwrap().is_some() {
                looks.set(looks.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        let ending = async {
            while looks.get() < round / 3 {
                tokio::task::yield_now().await;
            }
            // At another moment of a measurement each time.
            tokio::time::sleep(Duration::from_micros(700 * (round % 3))).await;
            host.kill(i).await.unwrap();
        };
        tokio::join!(measuring, ending);
        assert_eq!(host.measure(i).await.unwrap(), None);
    }
}

async fn counters_begin_again_with_the_process_that_goes_on(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    let state = vm.folder.join(FileId::STATE.file_name());
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    let cpu = Duration::from_millis(500);
    let before =
        measured(&*host, i, |now| now.disks.read.operations > 0 && now.cpu_time > cpu).await;
    host.hibernate(i, &state).await.unwrap();
    assert_eq!(host.measure(i).await.unwrap(), None);
    let host = site.host("b");
    host.launch(&Launch { state: Some(state), ..vm.clone() }).await.unwrap();
    let after = measured(&*host, i, |_| true).await;
    assert_eq!(after.disks, DiskCounters::default());
    assert!(after.cpu_time < before.cpu_time, "{before:?} {after:?}");
    host.resume(i).await.unwrap();
    measured(&*host, i, |now| now.cpu_time > after.cpu_time).await;
    // The node that comes after this one goes on counting where it did.
    let host = site.host("b");
    measured(&*host, i, |now| now.cpu_time > after.cpu_time).await;
    host.kill(i).await.unwrap();
}

/// Whoever listens in the place of a simulated guest's own port; QEMU listens itself.
fn listen(kind: Kind, host: &dyn Hypervisor, i: Instance) -> Option<UnixListener> {
    let folder = fs::File::open(host.console(i).parent().unwrap()).unwrap();
    // Its folder may lie deeper than a socket's path.
    let path = format!("/proc/self/fd/{}/kpi", folder.as_raw_fd());
    matches!(kind, Kind::Simulated).then(|| {
        let _ = fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    })
}

async fn a_kpi_port_is_there_for_each_node_that_comes_and_after_a_hibernation(kind: Kind) {
    let Some(site) = Site::new(kind) else { return };
    let host = site.host(&"deep".repeat(40));
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    let state = vm.folder.join(FileId::STATE.file_name());
    assert!(host.kpi_port(i).await.unwrap().is_none());
    host.launch(&vm).await.unwrap();
    let listener = listen(kind, &*host, i);
    let first = host.kpi_port(i).await.unwrap().expect("a paused guest has its port");
    drop((first, host));
    let host = site.host(&"deep".repeat(40));
    host.resume(i).await.unwrap();
    let mut port = host.kpi_port(i).await.unwrap().expect("also for the next node");
    port.write_all(b"{\"after\":0}\n").await.unwrap();

    host.hibernate(i, &state).await.unwrap();
    drop(listener);
    let mut rest = Vec::new();
    let end = tokio::time::timeout(PATIENCE, port.read_to_end(&mut rest)).await.unwrap();
    assert!(end.is_err() || rest.is_empty(), "{rest:?}");
    assert!(host.kpi_port(i).await.unwrap().is_none());
    host.launch(&Launch { state: Some(state), ..vm.clone() }).await.unwrap();
    let listener = listen(kind, &*host, i);
    host.resume(i).await.unwrap();
    assert!(host.kpi_port(i).await.unwrap().is_some());
    host.kill(i).await.unwrap();
    drop(listener);
    assert!(host.kpi_port(i).await.unwrap().is_none());
}

macro_rules! contract {
    ($($claim:ident),* $(,)?) => {
        mod simulated {
            $(#[tokio::test]
            async fn $claim() {
                super::$claim(super::Kind::Simulated).await;
            })*
        }
        mod qemu {
            $(#[tokio::test]
            async fn $claim() {
                super::$claim(super::Kind::Qemu).await;
            })*
        }
    };
}

contract!(
    a_launched_guest_executes_nothing_until_it_is_resumed,
    a_paused_guest_stands_still_and_goes_on,
    a_hibernated_guest_goes_on_at_another_host,
    a_guest_that_ran_on_after_its_hibernation_is_not_hibernated,
    a_refused_hibernation_leaves_the_guest_as_it_was,
    a_guest_that_is_asked_to_stop_powers_itself_off,
    a_restarted_node_finds_its_guests_again,
    a_launch_that_cannot_work_says_why_and_leaves_no_guest,
    counters_grow_while_a_guest_runs_and_stand_still_while_it_is_paused,
    a_guest_that_ends_while_it_is_measured_is_none_and_no_error,
    counters_begin_again_with_the_process_that_goes_on,
    a_kpi_port_is_there_for_each_node_that_comes_and_after_a_hibernation,
);

#[tokio::test]
async fn a_guest_runs_without_roots_rights_in_a_session_of_its_own() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    host.launch(&vm).await.unwrap();
    let pid_file = host.console(vm.instance).with_file_name("pid");
    let pid = holder(&pid_file).expect("QEMU locks its pid file").as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(field("Uid:").iter().all(|uid| uid != "0"), "{status}");
    assert!(field("Gid:").iter().all(|gid| gid != "0"), "{status}");
    assert_eq!(field("Seccomp:"), ["2"], "no sandbox");
    let parent: i32 = field("PPid:")[0].parse().unwrap();
    assert_ne!(parent, std::process::id() as i32, "it is our child, and would be our zombie");
    // `getsid` of this process itself is of no use here: it is 0 where the session's leader lives
    // outside this PID namespace.
    let session = rustix::process::getsid(rustix::process::Pid::from_raw(pid.get())).unwrap();
    assert_eq!(session.as_raw_nonzero(), pid, "it leads no session of its own");
    host.kill(vm.instance).await.unwrap();
}

/// What QEMU answers to a command on a guest's control socket.
fn control(runtime: &Path, command: &str) -> serde_json::Value {
    let socket = UnixStream::connect(runtime.join("control.sock")).unwrap();
    let lines = format!("{{\"execute\": \"qmp_capabilities\"}}\n{{\"execute\": \"{command}\"}}\n");
    (&socket).write_all(lines.as_bytes()).unwrap();
    let answers = BufReader::new(&socket).lines().map(|line| line.unwrap());
    let values = answers.map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap());
    values.filter_map(|mut value| Some(value.get_mut("return")?.take())).nth(1).unwrap()
}

#[tokio::test]
async fn a_kpi_ports_connection_reaches_the_guests_device() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    host.launch(&vm).await.unwrap();
    let runtime = host.console(i).parent().unwrap().to_owned();
    let kpi = || {
        let devices = control(&runtime, "query-chardev");
        let kpi = devices.as_array().unwrap().iter().find(|device| device["label"] == "kpi");
        let kpi = kpi.unwrap();
        (kpi["filename"].as_str().unwrap().to_owned(), kpi["frontend-open"].as_bool().unwrap())
    };
    let connected = |wanted: bool| {
        let deadline = Instant::now() + PATIENCE;
        while kpi()
            != (format!("{}unix:kpi,server=on", if wanted { "" } else { "disconnected:" }), false)
        {
            assert!(Instant::now() < deadline, "{:?}", kpi());
        }
    };
    connected(false);
    let port = host.kpi_port(i).await.unwrap().unwrap();
    connected(true);
    drop(port);
    connected(false);
    let _port = host.kpi_port(i).await.unwrap().unwrap();
    connected(true);
    host.kill(i).await.unwrap();
    let left: Vec<_> = fs::read_dir(&runtime).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name != "kpi"), "{left:?}");
}

#[tokio::test]
async fn a_simulated_guests_port_is_whatever_listens_in_its_folder() {
    let site = Site::new(Kind::Simulated).unwrap();
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    host.launch(&vm).await.unwrap();
    assert!(host.kpi_port(i).await.unwrap().is_none(), "nothing listens");
    let listener = listen(Kind::Simulated, &*host, i).unwrap();
    let mut port = host.kpi_port(i).await.unwrap().unwrap();
    let (mut guest, _) = listener.accept().unwrap();
    port.write_all(b"{\"after\":0}\n").await.unwrap();
    let mut line = String::new();
    BufReader::new(&guest).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"after\":0}\n");
    guest.write_all(b"{\"seq\":1}\n").unwrap();
    drop(guest);
    let mut rows = String::new();
    port.read_to_string(&mut rows).await.unwrap();
    assert_eq!(rows, "{\"seq\":1}\n");
}

/// The middle and the longest of them.
fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], *times.last().unwrap())
}

#[tokio::test]
async fn measuring_without_a_pause_leaves_room_for_who_asks_for_the_state() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let host: Arc<dyn Hypervisor> = site.host("a").into();
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let measuring: Vec<_> = (0..3)
        .map(|_| {
            let (host, done) = (host.clone(), done.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    host.measure(i).await.unwrap().expect("it runs");
                    times.push(begun.elapsed());
                }
                times
            })
        })
        .collect();
    let mut asked = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        assert_eq!(host.state(i).await.unwrap(), Some(PowerState::Active));
        host.resume(i).await.expect("its control socket is another");
        asked.push(begun.elapsed());
    }
    done.store(true, Ordering::Relaxed);
    for measured in measuring {
        let times = measured.await.unwrap();
        println!("{} measurements, middle and longest {:?}", times.len(), spread(times));
    }
    let (middle, longest) = spread(asked);
    println!("the state meanwhile, middle and longest {:?}", (middle, longest));
    assert!(middle < Duration::from_secs(1), "the state was waited for");
    host.kill(i).await.unwrap();
}

/// QEMU without the devices that the first release did not give its guests.
const EARLIER: &str = r#"#!/bin/sh
left=$#
while [ $left -gt 0 ]; do
  word=$1; shift; left=$((left - 1))
  case "$word" in
    -device | -chardev)
      value=$1; shift; left=$((left - 1))
      case "$value" in
        virtio-serial-pci,* | virtserialport,* | virtio-balloon-pci,* | socket,id=kpi,*) ;;
        *) set -- "$@" "$word" "$value" ;;
      esac ;;
    *) set -- "$@" "$word" ;;
  esac
done
exec qemu-system-x86_64 "$@"
"#;

#[tokio::test]
async fn a_guest_of_the_first_release_is_measured_has_no_port_and_leaves_a_state_that_is_refused() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let mut config = QemuConfig::new(site.folder.path().join("a"));
    config.binary = site.folder.path().join("earlier");
    fs::write(&config.binary, EARLIER).unwrap();
    fs::set_permissions(&config.binary, fs::Permissions::from_mode(0o755)).unwrap();
    let earlier = Qemu::new(config).unwrap();
    let mut vm = site.vm("vm", &earlier).await;
    earlier.launch(&vm).await.unwrap();

    let (host, i) = (site.host("a"), vm.instance);
    let measured = host.measure(i).await.unwrap().unwrap();
    assert_eq!(measured.memory_balloon, None);
    assert!(host.kpi_port(i).await.unwrap().is_none());
    let state = vm.folder.join(FileId::STATE.file_name());
    host.hibernate(i, &state).await.unwrap();
    vm.state = Some(state);
    vm.profile.machine = "pc-q35-7.2".to_owned();
    let error = host.launch(&vm).await.unwrap_err();
    assert!(matches!(error, Error::Profile(_)), "{error:?}");
    let words = "machine type is pc-q35-7.2+3, the saved state needs pc-q35-7.2";
    assert!(error.to_string().ends_with(words), "{error}");
    assert_eq!(host.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_simulated_guest_of_an_earlier_release_is_found_and_has_used_nothing_yet() {
    let site = Site::new(Kind::Simulated).unwrap();
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    host.launch(&vm).await.unwrap();
    let path = host.console(vm.instance).with_file_name("guest.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record.as_object_mut().unwrap().remove("size").expect("its size is recorded");
    fs::write(&path, record.to_string()).unwrap();
    host.resume(vm.instance).await.unwrap();
    let measured = host.measure(vm.instance).await.unwrap().unwrap();
    assert_eq!((measured.cpu_time, measured.memory_resident), (Duration::ZERO, Bytes(0)));
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_guest_goes_on() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    let first = beat(&*host, i, |_| true).await;
    let Some(full) = FullFolder::new(&site.folder.path().join("full")) else { return };
    let error = host.hibernate(i, &full.0.join("state0.bin")).await.unwrap_err();
    let Error::Hibernate { left, source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(left.to_string(), "the guest is left running");
    assert!(source.to_string().contains("No space left on device"), "{source}");
    assert_eq!(fs::read_dir(&full.0).unwrap().count(), 0, "a part of the state is left");
    let later = beat(&*host, i, |beat| beat.uptime > first.uptime + 1).await;
    assert_eq!(later.boot, first.boot);
    // With room it works, after a failure too.
    host.hibernate(i, &vm.folder.join("state0.bin")).await.unwrap();
}

#[tokio::test]
async fn a_hibernation_that_was_cut_off_is_finished_by_the_next() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let host = site.host("a");
    let mut vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    let state = vm.folder.join(FileId::STATE.file_name());
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    let first = beat(&*host, i, |_| true).await;
    let begun = async {
        while !vm.folder.join("state0.bin.partial").exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = begun => {}
        done = host.hibernate(i, &state) => panic!("it was over before it was cut off: {done:?}"),
    }
    drop(host);
    let host = site.host("a");
    host.hibernate(i, &state).await.unwrap();
    assert!(!vm.folder.join("state0.bin.partial").exists());
    vm.state = Some(state);
    host.launch(&vm).await.unwrap();
    host.resume(i).await.unwrap();
    let next = beat(&*host, i, |beat| beat.uptime > first.uptime).await;
    assert_eq!(next.boot, first.boot);
    assert_eq!(next.counter, next.since + next.uptime);
    host.kill(i).await.unwrap();
}

#[tokio::test]
async fn a_hibernation_that_was_cut_off_after_its_file_was_complete_only_ends_the_guest() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let host = site.host("a");
    let vm = site.vm("vm", &*host).await;
    let i = vm.instance;
    let state = vm.folder.join(FileId::STATE.file_name());
    let runtime = host.console(i).parent().unwrap().to_owned();
    host.launch(&vm).await.unwrap();
    // QEMU has saved, to someone else here, and waits for its end.
    let listener = UnixListener::bind(site.folder.path().join("sink")).unwrap();
    fs::set_permissions(site.folder.path().join("sink"), fs::Permissions::from_mode(0o777))
        .unwrap();
    let sink = std::thread::spawn(move || {
        std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()).unwrap()
    });
    let control = UnixStream::connect(runtime.join("control.sock")).unwrap();
    let mut lines = BufReader::new(&control).lines().map(Result::unwrap);
    let mut run = |command: String| {
        (&control).write_all(command.as_bytes()).unwrap();
        lines.find(|line| line.contains("return") || line.contains("error")).unwrap()
    };
    run("{\"execute\": \"qmp_capabilities\"}".to_owned());
    let uri = format!("unix:{}", site.folder.path().join("sink").display());
    run(format!("{{\"execute\": \"migrate\", \"arguments\": {{\"uri\": \"{uri}\"}}}}"));
    let deadline = Instant::now() + PATIENCE;
    while !run("{\"execute\": \"query-status\"}".to_owned()).contains("postmigrate") {
        assert!(Instant::now() < deadline, "QEMU did not save");
    }
    drop(control);
    assert!(sink.join().unwrap() > 0);

    // Without the record the file may be of any time: the guest is kept.
    fs::write(&state, "complete").unwrap();
    let error = host.hibernate(i, &state).await.unwrap_err();
    assert!(error.to_string().ends_with("the guest is left paused"), "{error}");
    fs::write(runtime.join("hibernated"), "").unwrap();
    host.hibernate(i, &state).await.unwrap();
    assert_eq!(host.state(i).await.unwrap(), None);
    assert_eq!(fs::read(&state).unwrap(), b"complete");
    // And when the machine went down before the file had its name.
    fs::rename(&state, vm.folder.join("state0.bin.partial")).unwrap();
    host.hibernate(i, &state).await.unwrap();
    assert_eq!(fs::read(&state).unwrap(), b"complete");
}

/// A folder with room for 1 MiB. Only root can make one.
struct FullFolder(PathBuf);

impl FullFolder {
    fn new(path: &Path) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(path);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(path.to_owned()));
        }
        println!("skipped: mounting a small file system needs root");
        None
    }
}

impl Drop for FullFolder {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_runtime_folder_may_lie_deeper_than_a_sockets_path() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let host = site.host(&"deep".repeat(40));
    let vm = site.vm("vm", &*host).await;
    host.launch(&vm).await.unwrap();
    assert_eq!(host.state(vm.instance).await.unwrap(), Some(PowerState::Paused));
    host.kill(vm.instance).await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_missing_or_dies_is_told_with_what_to_do() {
    let Some(site) = Site::new(Kind::Qemu) else { return };
    let mut config = QemuConfig::new(site.folder.path().join("a"));
    config.binary = "/no/such/qemu".into();
    let error = Qemu::new(config.clone()).unwrap().profile().await.unwrap_err();
    assert!(error.to_string().contains("apt-get install qemu-system-x86"), "{error}");

    config.binary = "qemu-system-x86_64".into();
    config.accelerator = Accelerator::Tcg;
    let host = Qemu::new(config).unwrap();
    let mut vm = site.vm("vm", &host).await;
    vm.descriptor.resources.memory = Bytes(1 << 60);
    let error = host.launch(&vm).await.unwrap_err();
    assert!(matches!(&error, Error::Died { stderr, .. } if stderr.contains("memory")), "{error:?}");
    assert_eq!(host.list().await.unwrap(), []);
}

#[tokio::test]
async fn an_injected_fault_acts_until_it_is_cleared() {
    let Some(site) = Site::new(Kind::Simulated) else { return };
    let host = Simulated::new(site.folder.path().join("a")).unwrap();
    let vm = site.vm("vm", &host).await;
    let i = vm.instance;
    let state = vm.folder.join("state0.bin");
    let faults = host.faults();
    faults.set(SimulatedFault::Launch, "no memory").unwrap();
    assert_eq!(host.launch(&vm).await.unwrap_err().to_string(), "no memory");
    assert_eq!(host.list().await.unwrap(), []);
    faults.clear(SimulatedFault::Launch).unwrap();
    host.launch(&vm).await.unwrap();
    faults.set(SimulatedFault::Resume, "no").unwrap();
    assert!(matches!(host.resume(i).await, Err(Error::Injected(_))));
    faults.clear(SimulatedFault::Resume).unwrap();
    host.resume(i).await.unwrap();
    faults.set(SimulatedFault::Hibernate, "no").unwrap();
    assert!(matches!(host.hibernate(i, &state).await, Err(Error::Hibernate { .. })));
    assert_eq!(host.state(i).await.unwrap(), Some(PowerState::Active));
    assert!(!state.exists());
    faults.clear(SimulatedFault::Hibernate).unwrap();
    host.hibernate(i, &state).await.unwrap();
}
